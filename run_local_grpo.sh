#!/usr/bin/env bash
# Trains with GRPO, the baseline: same flags, model, lengths and budget as run_local_sdpo.sh.
#   bash run_local_grpo.sh [suffix] [key=value ...]      --setup-only as sole argument: make the environment and stop
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/trainer/launch.sh"
mopd_run grpo "$@"
