#!/usr/bin/env bash
# Ablations of MOPD: what the teacher sees, matched-budget controls of it, alpha, k and the teacher. Ends in one report.
#   bash experiments/ablations/run.sh --dry-run | --local | --slurm [--quick] [--only NAME[,NAME]] [key=value ...]
#     --dry-run   prints the command line of every run and starts nothing
#     --local     runs them here, one after the other, and compares them; once more: skips what is done, goes on
#     --slurm     hands each to Slurm as a job of its own; with --dry-run prints the lines of sbatch
#     --quick     12 steps of the embedded task, one seed: about 10 minutes on two cores; it decides nothing
#     --only      these variants only, or patterns of their names; variants.txt beside this script has them all
# Environment: MODEL_PATH, DATA_PATH  what is trained, as for run_local_sdpo.sh; default: the embedded model and task
#              SEEDS                  default '0 1 2', with --quick 0
#              OUTPUT_DIR             the folder of all runs and of the report; default outputs/ablations
#              and the flags of run_local_sdpo.sh, such as TOTAL_STEPS; settings key=value win over everything
# Leaves OUTPUT_DIR/report: index.html, comparison.txt, comparison.png, and a figure for each axis.
# Exit codes: 0 all are done, 1 one failed (the others ran and are compared), 2 bad input, 75 stopped by a signal.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=experiments/common.sh
source "$here/../common.sh"
# shellcheck source=experiments/ablations/report.sh
source "$here/report.sh"

DISTILL=actor_rollout_ref.actor.self_distillation
METHOD_ITSELF=( # what every variant departs from, whatever the defaults are
    "$DISTILL".include_{primary,another,failure}_solution"=true"
    "$DISTILL.failure_solution_condition=always"
    "$DISTILL.include_environment_feedback=false" # it would be a context of its own
    "$DISTILL".{summarize_solutions=false,peer_control_mode=none}
    "$DISTILL".{alpha=0.5,distillation_topk=100,teacher_regularization=ema,teacher_update_rate=0.05}
    'trainer.health.stop_on=[]' # that a variant learns nothing is a result
)

suite_options ablations "$@"
suite_refuse_flags 'that is what is varied here' ALPHA INCLUDE_{PRIMARY,ANOTHER,FAILURE}_SOLUTION \
    FAILURE_SOLUTION_CONDITION SUMMARIZE_SOLUTIONS PEER_CONTROL_MODE
if ((SUITE_QUICK)); then
    suite_default TOTAL_STEPS=12 SEEDS="${SEED:-0}"
    METHOD_ITSELF+=(trainer.test_freq=6)
fi
suite_seeds 0 1 2
declare -A AXIS_OF=() SETTINGS_OF=() # of each variant, by name
while read -r axis name settings; do
    [[ -n $axis && $axis != '#'* ]] || continue
    AXIS_OF[$name]=$axis SETTINGS_OF[$name]=$settings
    read -ra settings <<<"$settings"
    suite_run "$name" mopd "${METHOD_ITSELF[@]}" "${settings[@]/#/$DISTILL.}"
done <"$here/variants.txt"
suite_start report_needs
((SUITE_STOPPED)) || report
exit "$SUITE_CODE"
