#!/usr/bin/env bash
# Trains with MOPD: teacher contexts of two right solutions and a wrong one. Sets itself up on first use.
#   bash run_local_sdpo.sh [suffix] [key=value ...]      --setup-only as sole argument: make the environment and stop
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/trainer/launch.sh"
mopd_run mopd "$@"
