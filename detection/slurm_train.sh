#!/usr/bin/env bash
# Train on a Slurm cluster: one task per GPU, started by srun.
#
#   slurm_train.sh PARTITION JOB_NAME CONFIG [GPUS] [arguments of train.py]
#
# Slurm warns the training two minutes before its time ends; it saves itself then, as on SIGTERM, and exits with code
# 75. A batch job is put into the queue again and goes on at the same step; give sbatch what the allocation needs:
#
#   sbatch --requeue --signal=USR1@120 --open-mode=append --gres=gpu:8 --ntasks-per-node=8 --wrap "slurm_train.sh ..."
#
# Environment: GPUS (8), GPUS_PER_NODE (8, at most GPUS), CPUS_PER_TASK (12), SRUN_ARGS, MASTER_PORT (29500), PYTHON.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [GPUS] [arguments of train.py]" >&2
    exit 2
fi
partition=$1 job=$2
shift 2
files=("${@:1:1}")
shift 1
if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    GPUS=$1
    shift
fi
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
((per_node <= gpus)) || per_node=$gpus

# train.py goes on from its newest checkpoint by itself. But a --resume FILE of the command line must not take precedence
# when the job was queued again; the last --resume counts.
resume=()
[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || resume=(--resume)

code=0
# SRUN_ARGS is split into words on purpose.
# shellcheck disable=SC2086
srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-12}" --kill-on-bad-exit=1 --signal=USR1@120 \
    ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "${files[@]}" "$@" \
    ${resume[@]+"${resume[@]}"} --launcher slurm || code=$?

if [[ $code == 75 ]] && ! { [[ -n ${SLURM_JOB_ID:-} ]] && scontrol requeue "$SLURM_JOB_ID"; }; then
    echo "stopped and saved; start the same command again to go on" >&2
fi
exit "$code"
