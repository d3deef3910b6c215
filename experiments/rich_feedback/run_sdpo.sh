#!/usr/bin/env bash
# Distillation from peers and from the feedback of tests: LiveCodeBench, in the published settings.
#   bash experiments/rich_feedback/run_sdpo.sh --dry-run | --local | --slurm [OPTION | key=value ...]
#     --dry-run   prints the command line of every run and starts nothing
#     --local     runs them here, one after the other; once more: skips what is done and resumes the rest
#     --slurm     hands each to Slurm as a job of its own; with --dry-run prints the lines of sbatch
#     --quick     two steps of the embedded task in place of all that: tries the machinery
#     --only      these runs only, by their names without the seed; NAME may be a pattern such as '*Qwen3*'
# Environment: METHOD      mopd (default) or sdpo
#              DATASETS    folders, or names below datasets/; default: lcb_v6
#              MODELS      folders of models; default: Qwen/Qwen3-8B
#              SEEDS       default 42
#              OUTPUT_DIR  the folder of all runs; default outputs/rich_feedback
#              and the flags of run_local_sdpo.sh, such as TOTAL_STEPS; settings key=value win over everything
# Exit codes: 0 all are done, 1 one failed (the others ran), 2 bad input, 75 stopped by a signal.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=experiments/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../common.sh"

suite_options rich_feedback "$@"
suite_seeds 42
method=$(suite_method)
suite_benchmarks lcb_v6 Qwen/Qwen3-8B
suite_default LR=1e-6 ALPHA=1.0
suite_run_on_all "$method" '' \
    actor_rollout_ref.actor.ppo_mini_batch_size=1 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=0 \
    actor_rollout_ref.actor.self_distillation.distillation_topk=20 \
    actor_rollout_ref.actor.self_distillation.teacher_update_rate=0.01 \
    actor_rollout_ref.actor.self_distillation.include_environment_feedback=true \
    actor_rollout_ref.rollout.val_kwargs.n=4
suite_start
exit "$SUITE_CODE"
