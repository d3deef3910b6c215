#!/usr/bin/env bash
# Diversity of several runs' attempts: metrics, then figures.
#   bash diversity/run_diversity.sh [argument of compute_metrics.py ...]
# Each of these is a file of candidate rows or of raw rollout lines, or a folder of such files. One that is not set is
# left out where its default is not there; further runs are given as --run NAME=PATH.
#   SDPO_CANDIDATES   default ./rollouts/sdpo/candidate_responses.jsonl; shown as SDPO
#   MOPD_CANDIDATES   default ./rollouts/mopd/candidate_responses.jsonl; shown as MOPD
#   BASE_CANDIDATES   default ./rollouts/base/candidate_responses.jsonl; shown as base
#   OUTPUT_DIR        default analysis_outputs/diversity_lcbv6
#   TASK              code (default: the programs are compared) or generic
# GENERATE_SDPO=1 first samples what is shown as SDPO, with run_eval.sh:
#   CKPT_PATH           checkpoints/step_N of a run, or a model's folder
#   DATA_PATH           default datasets/lcb_v6; VAL_DATA_PATH where the held-out rows are elsewhere
#   EVAL_N              responses per prompt, default 8
#   VALIDATION_DATA_DIR where they go, default OUTPUT_DIR/sdpo
#   ROLLOUT_INPUT_DIR   where they are then read from, default VALIDATION_DATA_DIR/responses.jsonl
# Exit codes: 0 done, 1 sampling failed, 2 bad input, or no matplotlib (the metrics are there then).
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=trainer/launch.sh
source "$here/../trainer/launch.sh"

case ${1-} in
-h | --help)
    mopd_help
    exit 0
    ;;
esac
output=${OUTPUT_DIR:-analysis_outputs/diversity_lcbv6}
sdpo=${SDPO_CANDIDATES-}

case ${GENERATE_SDPO:-0} in
0 | false | False) ;;
1 | true | True)
    [[ -n ${CKPT_PATH-} ]] || mopd_fail 2 'GENERATE_SDPO=1 samples from a model: name it, CKPT_PATH=OUTPUT_DIR/checkpoints/step_N or a folder.'
    validation=${VALIDATION_DATA_DIR:-$output/sdpo}
    DATA_PATH=${DATA_PATH:-datasets/lcb_v6} EVAL_N=${EVAL_N:-8} OUTPUT_DIR=$validation bash "$here/../run_eval.sh"
    sdpo=${ROLLOUT_INPUT_DIR:-$validation/responses.jsonl}
    ;;
*) mopd_fail 2 "GENERATE_SDPO is '$GENERATE_SDPO'; it must be 1 (sample first) or 0." ;;
esac

runs=()
add_run() { # NAME PATH DEFAULT: the path, or the default where it is there
    local path=${2:-$3}
    [[ -z $2 && ! -e $3 ]] || runs+=(--run "$1=$path")
}
add_run SDPO "$sdpo" ./rollouts/sdpo/candidate_responses.jsonl
add_run MOPD "${MOPD_CANDIDATES-}" ./rollouts/mopd/candidate_responses.jsonl
add_run base "${BASE_CANDIDATES-}" ./rollouts/base/candidate_responses.jsonl
[[ ${#runs[@]} -gt 0 || " $*" == *' --run'* ]] ||
    mopd_fail 2 'No attempts to compare: set SDPO_CANDIDATES, MOPD_CANDIDATES or BASE_CANDIDATES to a file or folder of' \
        'rollouts, or give --run NAME=PATH.'

mopd_python
export PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH}
"$MOPD_PYTHON" "$here/compute_metrics.py" --task "${TASK:-code}" --output-dir "$output" "${runs[@]}" "$@"
"$MOPD_PYTHON" "$here/plot_metrics.py" --summary "$output/summary.json" --per-prompt "$output/per_prompt.jsonl" \
    --output-dir "$output"
