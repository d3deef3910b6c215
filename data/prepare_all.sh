#!/usr/bin/env bash
# Fetches and prepares the benchmarks: load -> split -> parquet, each in a folder of its own.
#
#   bash data/prepare_all.sh [--local FILES] [DIR] [NAME ...]
#
# DIR      where the folders go; default: datasets/ of this project
# NAME     which benchmarks; default: all. Names: see BENCHMARKS below
# --local  a folder with one folder of files per NAME, for machines without network; nothing is fetched then
#
# ToolUse is not on the hub: TOOLUSE_FILE names a file of its records. Environment: MOPD_PYTHON, a Python with the packages.
# One that fails does not stop the others. Exit codes: 0 all were prepared, 1 some failed (they are named at the end), 2 bad input.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # called with sh, where that is another shell
set -euo pipefail
# shellcheck source=trainer/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../trainer/launch.sh"

# name | folder below DIR | --dataset_name | how it is split: tasks, tests (of each task), none (held out only), both (train and test exist)
BENCHMARKS='
biology|sciknoweval/biology|Biology|tasks
chemistry|sciknoweval/chemistry|Chemistry|tasks
material|sciknoweval/material|Material|tasks
physics|sciknoweval/physics|Physics|tasks
tooluse|tooluse|tooluse|file
lcb_v6|lcb_v6|livecodebench/code_generation_lite-v6|tests
gpqa|gpqa|Idavidrein/gpqa-D|none
mmlu_pro|mmlu_pro|TIGER-Lab/MMLU-Pro|none
math500|math500|math-ai/math500|none
aime24|aime24|math-ai/aime24|none
aime25|aime25|math-ai/aime25|none
hmmt25_feb|hmmt25_feb|MathArena/hmmt_feb_2025|none
hmmt25_nov|hmmt25_nov|MathArena/hmmt_nov_2025|none
gsm8k|gsm8k|openai/gsm8k|both
deepmath|deepmath|zwhe99/DeepMath-103K|tasks
humanevalplus|humanevalplus|evalplus/humanevalplus|none
mbppplus|mbppplus|evalplus/mbppplus|none
'

line_of() { # NAME: prints its line; status 1 where there is none
    grep -m 1 "^$1|" <<<"$BENCHMARKS"
}

load() { # DATASET_NAME OUTPUT NAME
    "$MOPD_PYTHON" "$MOPD_ROOT/data/load_dataset.py" --dataset_name "$1" --output_path "$2" ${local_files:+--local "$local_files/$3"}
}

parquet() { # FOLDER SPLIT...
    local folder=$1
    shift
    "$MOPD_PYTHON" "$MOPD_ROOT/data/preprocess.py" --data_source "$folder" --splits "$@"
}

prepare_tooluse() { # FOLDER: from the published train.json and test.json, or from one file of records
    local folder=$1 brought=${local_files:+$local_files/tooluse} file=${TOOLUSE_FILE-}
    if [[ -z $file && -f $brought/train.json && -f $brought/test.json ]]; then
        cp -- "$brought/train.json" "$brought/test.json" "$folder" || return 1
    elif [[ -z $file && -d $brought ]]; then
        file=$(find "$brought" -maxdepth 1 -name '*.json' | sort | head -n 1)
    fi
    if [[ -n $file ]]; then
        "$MOPD_PYTHON" "$MOPD_ROOT/data/split_tasks.py" --json_path "$file" --output_dir "$folder" || return 1
    elif [[ ! -f $folder/train.json || ! -f $folder/test.json ]]; then
        mopd_say "tooluse: its records are not on the hub; name a file of them with TOOLUSE_FILE=FILE, or put" \
            "the published train.json and test.json into $folder"
        return 1
    fi
    parquet "$folder" train test
}

prepare() { # NAME: every step only after the one before it
    local name folder source split drop=''
    IFS='|' read -r name folder source split < <(line_of "$1")
    folder=$target/$folder
    mkdir -p -- "$folder" || return 1
    [[ $name != deepmath ]] || drop=--drop # a few of its 103,000 answers may be beyond the verifier
    case $split in
    tasks | tests)
        load "$source" "$folder/all.json" "$name" &&
            "$MOPD_PYTHON" "$MOPD_ROOT/data/split_$split.py" --json_path "$folder/all.json" --output_dir "$folder" &&
            parquet "$folder" train test ${drop:+"$drop"}
        ;;
    none) load "$source" "$folder/test.json" "$name" && parquet "$folder" test ;;
    both)
        load "$source-train" "$folder/train.json" "$name" && load "$source" "$folder/test.json" "$name" &&
            parquet "$folder" train test
        ;;
    file) prepare_tooluse "$folder" ;;
    esac
}

local_files=''
arguments=()
while (($#)); do
    case $1 in
    --local)
        (($# > 1)) || mopd_fail 2 '--local wants a folder behind it.'
        local_files=$2
        shift
        ;;
    -h | --help)
        sed -n '2,/^\[/{/^\[/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    -*) mopd_fail 2 "$1 is not known; --local and --help are." ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
[[ -z $local_files || -d $local_files ]] || mopd_fail 2 "--local $local_files: no such folder."
local_files=${local_files:+$(CDPATH='' cd -- "$local_files" && pwd -P)}

target=$MOPD_ROOT/datasets
if ((${#arguments[@]})) && ! line_of "${arguments[0]}" >/dev/null; then
    target=${arguments[0]}
    # A first word that is neither a folder nor looks like one is a misspelt name, not a wish for a new folder.
    [[ $target == */* || $target == . || $target == .. || -d $target || ${#arguments[@]} -gt 1 ]] ||
        mopd_fail 2 "'$target' is neither a benchmark nor a folder; benchmarks: $(cut -d'|' -f1 <<<"$BENCHMARKS" | xargs). A new folder: ./$target"
    arguments=("${arguments[@]:1}")
fi
((${#arguments[@]})) || mapfile -t arguments < <(cut -d'|' -f1 <<<"$BENCHMARKS" | grep .)
for name in "${arguments[@]}"; do
    line_of "$name" >/dev/null || mopd_fail 2 "'$name' is not a benchmark; wanted: $(cut -d'|' -f1 <<<"$BENCHMARKS" | xargs)"
done

mopd_python
export PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH}
failed=()
for name in "${arguments[@]}"; do
    mopd_say "== $name"
    prepare "$name" || failed+=("$name")
done
if ((${#failed[@]})); then
    mopd_say '' "Not prepared: ${failed[*]} (what was wrong is said above; the others are ready). To try them again:" \
        "    bash $(printf %q "${BASH_SOURCE[0]}") ${local_files:+--local $(printf %q "$local_files") }$(printf %q "$target") ${failed[*]}"
    exit 1
fi
mopd_say '' "All prepared in $target. To train on one: DATA_PATH=$target/NAME bash run_local_sdpo.sh"
