#!/usr/bin/env bash
# Sets up (test tools too) and tests. Works from any folder; pytest runs at the root of the project.
#   bash run_tests.sh [--all] [--cluster] [pytest arguments]
#     (neither)     all tests but the slow ones and those that need a cluster
#     --all         the slow ones too          --cluster     the Slurm and multi-node ones too, as root: installs Slurm
#     --setup-only  as sole argument: makes the environment and stops
#     --help        prints this and stops
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/trainer/launch.sh"

slow='not slow' cluster='not cluster' arguments=()
for argument in "$@"; do
    case $argument in
    -h | --help)
        mopd_help
        exit 0
        ;;
    --all) slow='' ;;
    --cluster) cluster='' ;;
    --setup-only) [[ $# -eq 1 ]] || mopd_fail 2 '--setup-only makes the environment and stops; it takes no other arguments.' ;;
    *) arguments+=("$argument") ;;
    esac
done

mopd_python dev
if [[ ${1-} == --setup-only ]]; then
    mopd_say "ready: $MOPD_PYTHON"
    exit 0
fi
cd "$MOPD_ROOT"
export PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH}
if [[ -z $cluster ]] && ! "$MOPD_PYTHON" -m pytest -q --collect-only -m cluster >/dev/null; then
    mopd_fail 1 "--cluster: no test in tests/ has the mark 'cluster' (or they cannot be collected), so nothing would be tested on a cluster."
fi
if [[ -z $cluster ]]; then
    export PATH=$PATH:/usr/sbin:/sbin # where Slurm's daemons are
    bash tests/cluster/install_slurm.sh
fi
# Files side by side, on four cores at most; `-n 0` among the arguments runs one after the other.
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1) # nproc would heed the variable
side_by_side=(-n "$((cores > 4 ? 4 : cores))" --dist loadfile)
((cores > 1)) || side_by_side=()
exec "$MOPD_PYTHON" -m pytest "${side_by_side[@]}" -m "$slow${slow:+${cluster:+ and }}$cluster" "${arguments[@]}"
