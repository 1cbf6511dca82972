#!/usr/bin/env bash
# Starts N processes of one job on this machine, connected over the loopback interface.
#
#   launch/clusters/local.sh N maverick train CONFIG [key=value ...]
#
# The exit code is 1 if any process ended with 1 (a bug), else the highest exit code; an aborted or killed process counts
# as 76 (a peer failed).
set -u

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 N COMMAND ..." >&2
    exit 78
fi
count=$1
shift

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export MAVERICK_COORDINATOR=127.0.0.1:$port MAVERICK_NUM_PROCESSES=$count

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for ((i = 0; i < count; i++)); do
    MAVERICK_PROCESS_ID=$i "$@" &
    pids+=($!)
done

result=0
bug=0
for i in "${!pids[@]}"; do
    pid=${pids[i]}
    wait "$pid"
    code=$?
    while kill -0 "$pid" 2>/dev/null; do # a signal to this script interrupts `wait`, but not the process
        wait "$pid"
        code=$?
    done
    case $code in
        134) # JAX aborts a process when it loses another one
            echo "process $i aborted, as after the death of another process" >&2
            code=76
            ;;
        137 | 143)
            echo "process $i was killed (signal $((code - 128))); the same command resumes the run" >&2
            code=76
            ;;
        1) bug=1 ;;
    esac
    ((code > result)) && result=$code
done
((bug)) && exit 1
exit "$result"
