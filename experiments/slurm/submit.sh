#!/usr/bin/env bash
# Submits a run to Slurm, or one for every seed; needs bash and sbatch only.
#   bash experiments/slurm/submit.sh [--dry-run] [--seeds SEEDS] [OPTION OF SBATCH ...] -- COMMAND [ARGUMENT ...]
#     --dry-run   prints the command line of sbatch and starts nothing
#     --seeds     an array job: 0-2, or 0,7,42
# For instance
#   bash experiments/slurm/submit.sh --nodes=2 --time=12:00:00 -- bash run_local_sdpo.sh first-try
#   bash experiments/slurm/submit.sh --seeds 0-2 --gpus-per-node=4 -- bash run_local_grpo.sh data.train_batch_size=16
# The environment goes with it: flags such as MODEL_PATH, and those that experiments/slurm/mopd.sbatch names.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../trainer/launch.sh"

dry_run='' words=(sbatch) command=()
while [[ $# -gt 0 ]]; do
    case $1 in
    -h | --help)
        mopd_help
        exit 0
        ;;
    --dry-run) dry_run=1 ;;
    --seeds)
        [[ ${2-} =~ ^[0-9][0-9,-]*$ ]] || mopd_fail 2 "--seeds is '${2-}'; it must be like 0-2 or 0,7,42."
        words+=("--array=$2")
        shift
        ;;
    --)
        shift
        command=("$@")
        break
        ;;
    -*) words+=("$1") ;;
    *) mopd_fail 2 "'$1' is no option; write options of sbatch as --key=value, and the command after --." ;;
    esac
    shift
done
((${#command[@]})) || mopd_fail 2 'No command; for instance: bash experiments/slurm/submit.sh --nodes=2 -- bash run_local_sdpo.sh'
words+=("--export=ALL,MOPD_HOME=$MOPD_ROOT" "$MOPD_ROOT/experiments/slurm/mopd.sbatch" "${command[@]}")
if [[ -n $dry_run ]]; then
    printf '%q ' "${words[@]}"
    printf '\n'
    exit 0
fi
command -v sbatch >/dev/null || mopd_fail 2 'There is no sbatch here; call this on a machine of the cluster (--dry-run prints what it would do).'
exec "${words[@]}"
