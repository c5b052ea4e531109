#!/usr/bin/env bash
# Train or evaluate with several processes on one or more machines, started by torchrun.
#
#   dist_train.sh PROCESSES CONFIG [arguments of train.py]     (or CONFIG PROCESSES, the order of the mm-series)
#
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set. After a failure torchrun starts
# the training again, from its last checkpoint, up to MAX_RESTARTS times (0). PYTHON names the interpreter.
set -euo pipefail

[[ ${2:-} =~ ^[1-9][0-9]*$ && -f ${1:-} ]] && set -- "$2" "$1" "${@:3}"
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PROCESSES CONFIG [arguments of train.py]" >&2
    exit 2
fi
processes=$1 config=$2
shift 2

if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    rendezvous=(--standalone) # takes a free port
elif [[ ${MAX_RESTARTS:-0} != 0 ]]; then # with the static one, below, machines do not hear of each other's failures
    rendezvous=(
        --nnodes "${NNODES:-1}" --rdzv_backend c10d --rdzv_id "$config"
        --rdzv_endpoint "${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
    )
else
    rendezvous=(
        --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}"
    )
fi

# Processes that start again must not find the addresses of those before in torchrun's store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# For torchrun: signals on which a training saves itself and ends, and the seconds that it has for this.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=120
exec "${PYTHON:-python}" "$(dirname "$0")/../internimage/torchrun.py" "${rendezvous[@]}" --nproc_per_node "$processes" \
    --max_restarts "${MAX_RESTARTS:-0}" "$(dirname "$0")/train.py" --cfg "$config" --launcher pytorch "$@"
