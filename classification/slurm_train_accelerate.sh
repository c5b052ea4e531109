#!/usr/bin/env bash
# Train or evaluate on a Slurm cluster with Accelerate and DeepSpeed: one task per GPU, started by srun.
#
#   slurm_train_accelerate.sh PARTITION JOB_NAME ACCELERATE_YAML CONFIG [GPUS] [arguments of train.py]
#
# Environment: GPUS (8), GPUS_PER_NODE (8, at most GPUS), CPUS_PER_TASK (12), SRUN_ARGS, MASTER_PORT (29500), PYTHON.
#
# Slurm warns the training two minutes before its time ends; it saves itself then, as on SIGTERM, and exits with code
# 75. A batch job is put into the queue again and goes on at the same step; give sbatch what the allocation needs:
#
#   sbatch --requeue --signal=USR1@120 --open-mode=append --gres=gpu:8 --ntasks-per-node=8 --wrap "slurm_train_accelerate.sh ..."
set -euo pipefail

if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB_NAME ACCELERATE_YAML CONFIG [GPUS] [arguments of train.py]" >&2
    exit 2
fi
partition=$1 job=$2 accelerate=$3 config=$4
shift 4

# What `accelerate launch` would give each process; srun hands the environment on.
settings=$("${PYTHON:-python}" -m accelerate.commands.launch --config_file "$accelerate" --num_processes 1 \
    --num_machines 1 --machine_rank 0 --main_process_port 0 --no_python env | grep -E '^(ACCELERATE|FSDP)_')
while IFS= read -r line; do export "${line?}"; done <<<"$settings"

TRAIN_SCRIPT=train_accelerate.py exec "$(dirname "$0")/slurm_train.sh" "$partition" "$job" "$config" "$@"
