#!/usr/bin/env bash
# Teacher-signal analysis of recorded rollouts: data set, contexts, targets, scores, metrics, figures.
#   ROLLOUT_DIR=outputs/NAME bash analysis/run_ana.sh [--dry-run] [argument of score_teacher_contexts.py ...]
#     --dry-run   prints the commands and stops
#     --help      prints this and stops
#   ROLLOUT_DIR     a run's folder, its rollouts, or one file of them
#   MODEL           who scores: a model's folder; default: the newest checkpoints/step_N/hf in ROLLOUT_DIR
#   OUTPUT_DIR      default analysis_outputs/teacher_signal
#   CONDITIONS      contexts that are compared, parted by blanks, or all; default: the published nine
#   MAX_PROMPTS     default 300;  MAX_RESPONSES  of a prompt, default 8;  MAX_MODEL_LEN  in tokens, default 8192
#   PROMPTS         the run's train.parquet, for chat templates whose roles cannot be read from a rollout's text
#   NUM_BOOTSTRAP   resamples for the intervals, default 2000
#   SEED            of what is drawn, default 42
#   DEVICE, DTYPE   of the model; default: chosen by score_teacher_contexts.py
#   STRONG_SUCCESS  what generate_strong_success.py wrote, if it is to be scored too
# Scores that are there already are kept: a call that was interrupted goes on.
# Exit codes: 0 done, 1 a step failed, 2 bad input, or no matplotlib (the metrics are there then), 130 interrupted.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=trainer/launch.sh
source "$here/../trainer/launch.sh"

dry=''
case ${1-} in
-h | --help)
    mopd_help
    exit 0
    ;;
--dry-run)
    dry=1
    shift
    ;;
esac

rollouts=${ROLLOUT_DIR-} output=${OUTPUT_DIR:-analysis_outputs/teacher_signal}
[[ -n $rollouts ]] || mopd_fail 2 'No rollouts: set ROLLOUT_DIR to a folder of a run, such as outputs/NAME or rollouts/NAME.'
[[ -e $rollouts ]] || mopd_fail 2 "ROLLOUT_DIR is '$rollouts', which is not there; name a folder of a run, or one file of its rollouts."
model=${MODEL-}
if [[ -z $model ]]; then
    shopt -s nullglob
    models=("$rollouts"/checkpoints/step_*/hf)
    [[ ${#models[@]} -gt 0 ]] || mopd_fail 2 "No model: $rollouts holds no checkpoints/step_N/hf; set MODEL to a model's folder."
    model=$(printf '%s\n' "${models[@]}" | sort -V | tail -n 1)
fi
[[ -d $model ]] || mopd_fail 2 "MODEL is '$model', which is no folder; models are not fetched here (hf download NAME --local-dir FOLDER)."

conditions=(base solution another_solution failure_solution solution+failure_solution all_solutions random_peer
    verifier_score_ordered solution+another_solution+failure_solution)
[[ -z ${CONDITIONS-} ]] || read -r -a conditions <<<"$CONDITIONS"
conditions=(--condition-filter "${conditions[@]}")
[[ ${CONDITIONS-} != all ]] || conditions=()
seed=${SEED:-42} scored=("$@")
[[ -n ${STRONG_SUCCESS-} ]] || scored=(--self-target-only "${scored[@]}")

[[ -n $dry ]] || mopd_python
export PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH}
step() { # SCRIPT ARGUMENT...
    if [[ -n $dry ]]; then
        printf 'python'
        printf ' %q' "$here/$1" "${@:2}"
        printf '\n'
    else
        printf '\n%s\n' "$1" >&2
        "$MOPD_PYTHON" "$here/$1" "${@:2}"
    fi
}

step prepare_rollout_dataset.py --input "$rollouts" --output-dir "$output" --max-prompts "${MAX_PROMPTS:-300}" \
    --max-responses-per-prompt "${MAX_RESPONSES:-8}" --seed "$seed" ${PROMPTS:+--data "$PROMPTS"}
step build_context_variants.py --candidates "$output/candidate_responses.jsonl" \
    --evidence "$output/evidence_items.jsonl" --output "$output/context_variants.jsonl" --seed "$seed" "${conditions[@]}"
step build_target_responses.py --candidates "$output/candidate_responses.jsonl" \
    --output "$output/target_responses.jsonl" --seed "$seed" ${STRONG_SUCCESS:+--strong-success "$STRONG_SUCCESS"}
step score_teacher_contexts.py --variants "$output/context_variants.jsonl" --targets "$output/target_responses.jsonl" \
    --output "$output/teacher_scores.jsonl" --model "$model" --max-model-len "${MAX_MODEL_LEN:-8192}" \
    ${DEVICE:+--device "$DEVICE"} ${DTYPE:+--dtype "$DTYPE"} "${scored[@]}"
step compute_teacher_signal_metrics.py --input "$output/teacher_scores.jsonl" \
    --output "$output/teacher_signal_metrics.json" --num-bootstrap "${NUM_BOOTSTRAP:-2000}" --seed "$seed"
for sample_set in effective_only both_present_effective_only; do
    step plot_teacher_metrics.py --input "$output/teacher_signal_metrics.json" --output-dir "$output/figures/$sample_set" \
        --sample-set "$sample_set"
done
