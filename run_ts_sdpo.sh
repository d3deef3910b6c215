#!/usr/bin/env bash
# Distils another model of the same vocabulary, shown a successful peer; unset, the teacher is the initial student.
#   TEACHER_MODEL_PATH=FOLDER bash run_ts_sdpo.sh [suffix] [key=value ...]      suffix: ends the name of the run's folder
#     --setup-only   as sole argument: makes the environment and stops
#     --cfg job      prints the resolved configuration and stops
#     --help         prints this and stops
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/trainer/launch.sh"
mopd_run ts_sdpo "$@"
