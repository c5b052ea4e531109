#!/usr/bin/env bash
# Evaluate on a Slurm cluster: one task per GPU, started by srun.
#
#   slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [GPUS] [arguments of test.py]
#
# Environment: GPUS (8), GPUS_PER_NODE (8, at most GPUS), CPUS_PER_TASK (12), SRUN_ARGS, MASTER_PORT (29500), PYTHON.
set -euo pipefail

if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [GPUS] [arguments of test.py]" >&2
    exit 2
fi
partition=$1 job=$2
shift 2
files=("${@:1:2}")
shift 2
if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    GPUS=$1
    shift
fi
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
((per_node <= gpus)) || per_node=$gpus

# SRUN_ARGS is split into words on purpose.
# shellcheck disable=SC2086
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-12}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/test.py" "${files[@]}" "$@" --launcher slurm
