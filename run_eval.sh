#!/usr/bin/env bash
# Evaluates a checkpoint or a model: mean@k, pass@k and maj@k per data source.
#   CKPT_PATH=FOLDER bash run_eval.sh [key=value ...]    CKPT_PATH: checkpoints/step_N of a run, or a model's folder
#     keys: data=PARQUET n=8 output=DIR temperature= top_p= enable_thinking= seed= ...
#     --setup-only   as sole argument: makes the environment and stops
#     --help         prints this and stops
# Flags: CKPT_PATH or MODEL_PATH, EVAL_N, VAL_DATA_PATH or DATA_PATH (a folder with test.parquet), OUTPUT_DIR.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/trainer/launch.sh"
mopd_options "$@"
data=${VAL_DATA_PATH-${DATA_PATH-}}
[[ -z $data || $data == *.parquet ]] || data=$data/test.parquet
model=${CKPT_PATH-${MODEL_PATH-}}
mopd_evaluate ${model:+"model=$model"} ${EVAL_N:+"n=$EVAL_N"} ${data:+"data=$data"} \
    ${OUTPUT_DIR:+"output=$OUTPUT_DIR"} "$@"
