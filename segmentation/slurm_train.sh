#!/usr/bin/env bash
# Train on a Slurm cluster: one task per GPU, started by srun.
#
#   slurm_train.sh PARTITION JOB_NAME CONFIG [GPUS] [arguments of train.py]
#
# Two minutes before its time ends, or when it must make room, the training saves its place and exits with 75. Then this
# script queues it again with --resume: by itself, or as the batch job that it is called from.
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

# A batch job that was queued again starts this script with its first arguments.
resume=()
[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || resume=(--resume)
while true; do
    code=0
    # SRUN_ARGS is split into words on purpose.
    # shellcheck disable=SC2086
    srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-12}" --kill-on-bad-exit=1 --signal=USR1@120 \
        ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "${files[@]}" "$@" --launcher slurm \
        ${resume[@]+"${resume[@]}"} || code=$?
    ((code == 75)) || exit "$code"
    resume=(--resume)
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        exec scontrol requeue "$SLURM_JOB_ID"
    fi
done
