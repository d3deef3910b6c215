#!/usr/bin/env bash
# One node's part of a Slurm job: experiments/slurm/mopd.sbatch starts it on every node, in the container if there is one.
#   node.sh COMMAND [ARGUMENT ...]
# Looks at the node and says what is wrong with it, by its name. The first node starts Ray, waits for the others and runs
# the command; the others join, and leave when it has ended. With one node the command runs as it would anywhere.
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../trainer/launch.sh"

# Slurm sends these to all processes of a job; the run alone knows what to do, and listens for itself.
trap '' USR1 TERM

read -ra nodes <<<"$MOPD_NODES"
name=${nodes[SLURM_NODEID]} wait_s=${MOPD_WAIT_S:-600} ray=''

fault() { # LINE: what is wrong with this node
    printf '%s: %s\n' "$name" "$1" >"$MOPD_MEET/fault-$name" 2>/dev/null || mopd_say "$name: $1"
    exit 2
}

await() { # FILE WHO: waits for a file of another node's, aloud
    local start=$SECONDS spoke=$SECONDS
    until [[ -e $MOPD_MEET/$1 ]]; do
        ls "$MOPD_MEET" >/dev/null # or a network file system may not look again
        if compgen -G "$MOPD_MEET/fault-*" >/dev/null; then
            mopd_say "$name: another node cannot take part"
            exit 2
        fi
        ((SECONDS - start < wait_s)) || fault "waited for $2 in vain for $wait_s s (MOPD_WAIT_S)"
        if ((SECONDS - spoke >= 15)); then
            spoke=$SECONDS
            mopd_say "$name: waiting for $2 for $((SECONDS - start)) s"
        fi
        sleep 0.5
    done
}

check_node() { # refuses a node that cannot take part
    local found
    [[ -d $MOPD_MEET ]] || fault "there is no $MOPD_MEET; all nodes must see the folder where sbatch was called"
    : >"$MOPD_MEET/.seen-$name" || fault "cannot write to $MOPD_MEET"
    command -v "${MOPD_PYTHON-python3}" >/dev/null || fault "there is no ${MOPD_PYTHON-python3}; name one by MOPD_PYTHON"
    if [[ ${MOPD_DEVICE-} == @(cuda|gh200) || -n ${SLURM_GPUS_ON_NODE-} ]]; then
        found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true
        ((found >= ${N_GPUS_PER_NODE:-1})) || fault "$found GPUs are visible, ${N_GPUS_PER_NODE:-1} are asked (N_GPUS_PER_NODE); ask for them with --gpus-per-node"
    fi
}

check_python() { # sets MOPD_PYTHON, and address to what other nodes reach this one at
    local peer=${nodes[0]}
    [[ $name != "${nodes[0]}" ]] || peer=${nodes[1]}
    mopd_python
    address=$("$MOPD_PYTHON" -P -m trainer.network "${MOPD_INTERFACE-}" "$peer" 2>&1) || fault "$address"
}

free_port() { # sets port: one of which the next is free as well, different from job to job
    port=$((20000 + SLURM_JOB_ID * 2 % 10000))
    while (: <>"/dev/tcp/$address/$port") 2>/dev/null || (: <>"/dev/tcp/$address/$((port + 1))") 2>/dev/null; do
        port=$((port + 2))
    done
}

start_ray() { # OPTION...: as long as this node is to take part. Signals are for the run, keys for the controller
    local deaf='import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])'
    env -u WANDB_API_KEY -u HF_TOKEN -u HUGGING_FACE_HUB_TOKEN -u MLFLOW_TRACKING_TOKEN -u MLFLOW_TRACKING_PASSWORD \
        -u MLFLOW_TRACKING_URI RAY_preload_python_modules=trainer.workers.uncollected RAY_worker_niceness=0 \
        "$MOPD_PYTHON" -c "$deaf" -m ray.scripts.scripts start --block --node-ip-address="$address" \
        --num-cpus="${MOPD_CPUS:-${SLURM_CPUS_ON_NODE:-$(nproc)}}" --min-worker-port=0 --max-worker-port=0 "$@" \
        >"$MOPD_MEET/ray-$name.log" 2>&1 </dev/null &
    ray=$!
    disown "$ray" # its end is no news
}

end_ray() { # what Ray started ends with it
    [[ -z $ray ]] || kill -KILL "$ray" 2>/dev/null || true
}

lead() { # COMMAND...: the first node
    local code=0 place other start=$SECONDS
    free_port
    start_ray --head --port="$port" --ray-client-server-port="$((port + 1))" --include-dashboard=false \
        --temp-dir="/tmp/ray-$UID-$SLURM_JOB_ID"
    until (: <>"/dev/tcp/$address/$port") 2>/dev/null; do
        kill -0 "$ray" 2>/dev/null || fault "Ray ended: $(tail -n 3 "$MOPD_MEET/ray-$name.log")"
        ((SECONDS - start < wait_s)) || fault "Ray did not start within $wait_s s (MOPD_WAIT_S)"
        sleep 0.2
    done
    export RAY_ADDRESS=$address:$port
    printf '%s\n' "$RAY_ADDRESS" >"$MOPD_MEET/.head"
    mv -- "$MOPD_MEET/.head" "$MOPD_MEET/head"
    for place in "${!nodes[@]}"; do
        other=${nodes[place]}
        ((place == 0)) || await "ready-$other" "$other"
    done
    mopd_say "$name: Ray at $RAY_ADDRESS on ${#nodes[@]} nodes"
    "$@" || code=$?
    printf '%s\n' "$code" >"$MOPD_MEET/code"
    : >"$MOPD_MEET/ended"
    end_ray
    rm -rf -- "/tmp/ray-$UID-$SLURM_JOB_ID"
    return "$code"
}

follow() { # any other node
    local told=''
    await head "${nodes[0]}"
    start_ray --address="$(<"$MOPD_MEET/head")"
    : >"$MOPD_MEET/ready-$name"
    until [[ -e $MOPD_MEET/ended ]]; do
        if [[ -z $told ]] && ! kill -0 "$ray" 2>/dev/null; then
            told=1
            mopd_say "$name: Ray ended: $(tail -n 3 "$MOPD_MEET/ray-$name.log" 2>/dev/null)"
        fi
        [[ -d $MOPD_MEET ]] || break # the job has ended
        sleep 1
    done
    end_ray
    rm -rf -- "/tmp/ray-$UID-$SLURM_JOB_ID"
}

check_node
export PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH}
if ((${#nodes[@]} == 1)); then
    code=0
    "$@" || code=$?
    printf '%s\n' "$code" >"$MOPD_MEET/code"
    exit "$code"
fi
check_python
export MOPD_PYTHON
if ((SLURM_NODEID == 0)); then lead "$@"; else follow; fi
