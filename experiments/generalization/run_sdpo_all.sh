#!/usr/bin/env bash
# Distillation from peers on five benchmarks with two models, in the published settings, without feedback.
#   bash experiments/generalization/run_sdpo_all.sh --dry-run | --local | --slurm [OPTION | key=value ...]
#     --dry-run   prints the command line of every run and starts nothing
#     --local     runs them here, one after the other; once more: skips what is done and resumes the rest
#     --slurm     hands each to Slurm as a job of its own; with --dry-run prints the lines of sbatch
#     --quick     two steps of the embedded task in place of all that: tries the machinery
#     --only      these runs only, by their names without the seed; NAME may be a pattern such as '*Qwen3*'
# Environment: METHOD      mopd (default) or sdpo
#              DATASETS    folders, or names below datasets/; default: biology, chemistry, material, physics, tooluse
#              MODELS      folders of models; default: Qwen/Qwen3-8B allenai/Olmo-3-7B-Instruct
#              SEEDS       default 42
#              OUTPUT_DIR  the folder of all runs; default outputs/generalization
#              and the flags of run_local_sdpo.sh, such as TOTAL_STEPS; settings key=value win over everything
# Exit codes: 0 all are done, 1 one failed (the others ran), 2 bad input, 75 stopped by a signal.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=experiments/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../common.sh"

suite_options generalization "$@"
suite_seeds 42
method=$(suite_method)
suite_benchmarks 'sciknoweval/biology sciknoweval/chemistry sciknoweval/material sciknoweval/physics tooluse' \
    'Qwen/Qwen3-8B allenai/Olmo-3-7B-Instruct'
suite_default LR=1e-5 ALPHA=0.5
suite_run_on_all "$method" '' \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=10 \
    actor_rollout_ref.actor.self_distillation.distillation_topk=100 \
    actor_rollout_ref.actor.self_distillation.include_environment_feedback=false \
    actor_rollout_ref.rollout.val_kwargs.n=16
suite_start
exit "$SUITE_CODE"
