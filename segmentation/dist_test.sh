#!/usr/bin/env bash
# Evaluate with several processes on one or more machines, started by torchrun.
#
#   dist_test.sh PROCESSES CONFIG CHECKPOINT [arguments of test.py]     (or PROCESSES last, as in the mm-series)
#
# On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set. PYTHON names the interpreter.
set -euo pipefail

[[ ${3:-} =~ ^[1-9][0-9]*$ && -f ${1:-} ]] && set -- "$3" "$1" "$2" "${@:4}"
if [[ $# -lt 3 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PROCESSES CONFIG CHECKPOINT [arguments of test.py]" >&2
    exit 2
fi
processes=$1
shift

if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    rendezvous=(--standalone) # takes a free port
else
    rendezvous=(
        --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}"
    )
fi

exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node "$processes" \
    "$(dirname "$0")/test.py" "$@" --launcher pytorch
