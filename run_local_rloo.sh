#!/usr/bin/env bash
# Trains with RLOO: same flags, model, lengths and budget as run_local_sdpo.sh.
#   bash run_local_rloo.sh [suffix] [key=value ...]      suffix: ends the name of the run's folder
#     --setup-only   as sole argument: makes the environment and stops
#     --cfg job      prints the resolved configuration and stops
#     --help         prints this and stops
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/trainer/launch.sh"
mopd_run rloo "$@"
