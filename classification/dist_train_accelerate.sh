#!/usr/bin/env bash
# Train or evaluate with several processes on one or more machines, started by `accelerate launch`.
#
#   dist_train_accelerate.sh PROCESSES ACCELERATE_YAML CONFIG [arguments of train.py]
#
# PROCESSES are those of one machine. On several machines, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT
# set. PYTHON names the interpreter.
set -euo pipefail

if [[ $# -lt 3 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PROCESSES ACCELERATE_YAML CONFIG [arguments of train.py]" >&2
    exit 2
fi
processes=$1 accelerate=$2 config=$3
shift 3

nodes=${NNODES:-1} port=${PORT:-29500}
[[ $nodes == 1 ]] && port=${PORT:-0} # 0 takes a free port

# For torchrun: signals on which a training saves itself and ends, and the seconds that it has for this.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=120
exec "${PYTHON:-python}" -m accelerate.commands.launch --config_file "$accelerate" \
    --num_processes $((processes * nodes)) --num_machines "$nodes" --machine_rank "${NODE_RANK:-0}" \
    --main_process_ip "${MASTER_ADDR:-127.0.0.1}" --main_process_port "$port" \
    --deepspeed_multinode_launcher standard \
    "$(dirname "$0")/train_accelerate.py" --cfg "$config" "$@"
