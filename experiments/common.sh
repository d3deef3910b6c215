# shellcheck shell=bash
# The shell functions of every suite of runs: which runs there are, where they run, and what became of them.
#
#   source experiments/common.sh
#   suite_options STUDY "$@"       reads the command line: sets SUITE_PLACE, SUITE_DRY_RUN, SUITE_QUICK and SUITE_ROOT
#   suite_seeds SEED ...           what SEEDS is where the caller has not set it
#   suite_default FLAG=VALUE ...   environment flags of every run, as far as the caller has not set them
#   suite_run NAME METHOD [FLAG=VALUE | KEY=VALUE ...]     one run for every seed of SEEDS
#   suite_benchmarks DATASETS MODELS                       what suite_run_on_all runs on; --quick: the embedded task
#   suite_run_on_all METHOD VARIANT [FLAG=VALUE | KEY=VALUE ...]     suite_run on every data set with every model
#   suite_start [COMMAND]          after COMMAND starts them; comes back only where they ran. SUITE_CODE is the exit code
#                                  0 all are done, 1 one failed, 75 stopped by a signal, the same command goes on
#
# A run is kept as one line of shell, the one that --dry-run prints: nothing else is ever started. Where lines run is up
# to suite_in_PLACE alone; another scheduler is one more such function, with an option in suite_options.
# Every run has a folder SUITE_ROOT/NAME-seedN, and what it says goes to SUITE_ROOT/logs. One that ended well leaves its
# line in FOLDER/.finished and is not started again by the same line; any other goes on from its newest checkpoint.

SUITE_HOME=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=trainer/launch.sh
source "$SUITE_HOME/../trainer/launch.sh"

SUITE_NAMES=() SUITE_LINES=() # of each run: its name, and the line of shell that it is
SUITE_RESULTS=()              # of each run that was looked at: what became of it, in words
SUITE_KNOWN=()                # names without seeds, also of runs that --only leaves out
SUITE_CODE=0 SUITE_STOPPED=0

# ---------------------------------------------------------------- what is asked for

suite_options() { # STUDY [ARGUMENT ...]
    local study=$1
    shift
    SUITE_PLACE=no_place SUITE_DRY_RUN=0 SUITE_QUICK=0 SUITE_ONLY=() SUITE_SETTINGS=()
    while [[ $# -gt 0 ]]; do
        case $1 in
        -h | --help)
            mopd_help
            exit 0
            ;;
        --dry-run) SUITE_DRY_RUN=1 ;;
        --local) SUITE_PLACE=local ;;
        --slurm) SUITE_PLACE=slurm ;;
        --quick) SUITE_QUICK=1 ;;
        --only)
            [[ -n ${2-} ]] || mopd_fail 2 '--only wants names: --only NAME[,NAME]'
            IFS=, read -ra SUITE_ONLY <<<"$2"
            shift
            ;;
        data.seed=* | trainer.output_dir=* | trainer.experiment_name=*)
            mopd_fail 2 "$1: each run has its own; SEEDS='0 1 2' names the seeds, OUTPUT_DIR the folder of all runs."
            ;;
        --skip-install) mopd_fail 2 '--skip-install: runs install nothing; MOPD_PYTHON names a Python to use as is.' ;;
        [A-Z]*=*) mopd_fail 2 "$1: a flag of the environment; write it before the command." ;;
        -*) mopd_fail 2 "Unknown option '$1'; --help tells which there are." ;;
        *=*) SUITE_SETTINGS+=("$1") ;;
        *) mopd_fail 2 "'$1' is neither an option nor a setting key=value; --help tells which there are." ;;
        esac
        shift
    done
    if ((SUITE_QUICK)); then
        study+=-quick
        suite_refuse_flags '--quick is the embedded task and model' MODEL_PATH DATA_PATH VAL_DATA_PATH MODELS DATASETS
    fi
    SUITE_ROOT=${OUTPUT_DIR:-outputs/$study}
    [[ $SUITE_ROOT == /* ]] || SUITE_ROOT=$PWD/$SUITE_ROOT # lines are also started from elsewhere
    mapfile -t SUITE_FLAGS < <(sed -n 's/^|[^|]*| \([A-Z][A-Z_]*\) |.*/\1/p' "$MOPD_ROOT/docs/configuration.md")
}

suite_refuse_flags() { # WHY FLAG...: refuses flags that would be left unread
    local flag
    for flag in "${@:2}"; do
        [[ -z ${!flag-} ]] || mopd_fail 2 "$flag is set to '${!flag}', but $1; unset it."
    done
}

suite_seeds() { # SEED ...
    SEEDS=${SEEDS:-${SEED:-$*}} SEEDS=${SEEDS//,/ }
    [[ $SEEDS =~ ^[0-9\ ]+$ ]] || mopd_fail 2 "SEEDS is '$SEEDS'; it must be whole numbers, as in SEEDS='0 1 2'."
}

suite_method() { # prints the method of a distillation suite
    case ${METHOD:=mopd} in
    mopd | sdpo) printf '%s' "$METHOD" ;;
    *) mopd_fail 2 "METHOD is '$METHOD'; it must be mopd (two successful peers, one failed) or sdpo (one)." ;;
    esac
}

suite_default() { # FLAG=VALUE ...
    local pair flag
    for pair in "$@"; do
        flag=${pair%%=*}
        export "$flag=${!flag:-${pair#*=}}"
    done
}

suite_label() { # PATH: prints it as a part of a name: what follows datasets/, without characters that folders dislike
    local label=${1%/}
    label=${label##*datasets/}
    label=${label#"${label%%[!./]*}"}
    printf '%s' "${label//[^A-Za-z0-9._-]/-}"
}

# ---------------------------------------------------------------- the runs

suite_run() { # NAME METHOD [FLAG=VALUE | KEY=VALUE ...]
    local seed
    SUITE_KNOWN+=("$1")
    suite_wanted "$1" || return 0
    for seed in $SEEDS; do
        suite_add "$1-seed$seed" "$2" "SEED=$seed" "${@:3}"
    done
}

suite_wanted() { # NAME: does --only name it, as it is or as a pattern, or is there no --only?
    local pattern
    for pattern in "${SUITE_ONLY[@]-"$1"}"; do
        # shellcheck disable=SC2053 # it is a pattern
        [[ $1 != $pattern ]] || return 0
    done
    return 1
}

suite_refuse_unknown() { # what --only names in vain
    local pattern name found
    for pattern in "${SUITE_ONLY[@]}"; do
        found=0
        for name in "${SUITE_KNOWN[@]}"; do
            # shellcheck disable=SC2053 # it is a pattern
            [[ $name != $pattern ]] || found=1
        done
        ((found)) || mopd_fail 2 "--only: no run is called '$pattern'; there are ${SUITE_KNOWN[*]}."
    done
}

suite_benchmarks() { # DATASETS MODELS: both as words, unless the caller names others; and the published lengths
    SUITE_DATA=(chain) SUITE_MODELS=(embedded)
    if ((SUITE_QUICK)); then
        suite_default TOTAL_STEPS=2
        return
    fi
    read -ra SUITE_DATA <<<"${DATASETS:-${DATA_PATH:-$1}}"
    read -ra SUITE_MODELS <<<"${MODELS:-${MODEL_PATH:-$2}}"
    suite_default TRAIN_BATCH_SIZE=32 ROLLOUT_BATCH_SIZE=8 ROLLOUT_PROMPT_LENGTH=2048 ROLLOUT_RESPONSE_LENGTH=8192
}

suite_run_on_all() { # METHOD VARIANT [FLAG=VALUE | KEY=VALUE ...]: VARIANT is a part of the name, or empty
    local data model name paths
    for data in "${SUITE_DATA[@]}"; do
        [[ $data == [./]* || -d $data ]] || data=$MOPD_ROOT/datasets/$data
        for model in "${SUITE_MODELS[@]%/}"; do
            name=$1-$(suite_label "$data")-$(suite_label "${model##*/}")${2:+-$2}
            paths=("DATA_PATH=$data" "MODEL_PATH=$model")
            ((!SUITE_QUICK)) || name=$1-chain-embedded${2:+-$2} paths=()
            suite_run "$name" "$1" "${paths[@]}" "${@:3}"
        done
    done
}

suite_add() { # NAME METHOD [FLAG=VALUE | KEY=VALUE ...]: the last value of a flag or key counts, so the caller's
    local name=$1 method=$2 flag argument key keys=() words=(env)
    local -A flags=() values=()
    shift 2
    [[ -n ${SUITE_PYTHON-} ]] || suite_python
    [[ $name =~ ^[A-Za-z0-9._-]+$ ]] ||
        mopd_fail 2 "A run would be called '$name'; it names a folder, so letters, digits and . _ - only."
    [[ " ${SUITE_NAMES[*]-} " != *" $name "* ]] ||
        mopd_fail 2 "Two runs would be called '$name'; name each seed, model and data set once."
    for flag in "${SUITE_FLAGS[@]}"; do
        flags[$flag]=${!flag-}
    done
    for flag in CKPT_DIR ROLLOUT_DATA_DIR VALIDATION_DATA_DIR; do # one folder cannot be that of several runs
        flags[$flag]+=${flags[$flag]:+/$name}
    done
    for argument in "$@" "OUTPUT_DIR=$SUITE_ROOT/$name" "${SUITE_SETTINGS[@]}"; do
        key=${argument%%=*}
        if [[ $key =~ ^[A-Z_]+$ ]]; then
            flags[$key]=${argument#*=}
        else
            [[ -n ${values[$key]+x} ]] || keys+=("$key")
            values[$key]=${argument#*=}
        fi
    done
    for flag in MODEL_PATH DATA_PATH VAL_DATA_PATH TEACHER_MODEL_PATH; do # the line is also started from elsewhere
        [[ ${flags[$flag]} == /* || ! -e ${flags[$flag]} ]] || flags[$flag]=$PWD/${flags[$flag]}
    done
    for flag in "${SUITE_FLAGS[@]}"; do
        [[ -z ${flags[$flag]} ]] || words+=("$flag=${flags[$flag]}")
    done
    words+=("PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH}")
    words+=("$SUITE_PYTHON" -P -m trainer.main --config-name "$method")
    for key in "${keys[@]}"; do
        words+=("$key=${values[$key]}")
    done
    printf -v argument '%q ' "${words[@]}"
    SUITE_NAMES+=("$name")
    SUITE_LINES+=("${argument% }")
}

suite_python() { # sets SUITE_PYTHON: for real runs one that has the packages, else whichever it would likely be
    if ((SUITE_DRY_RUN)) || [[ $SUITE_PLACE == no_place ]]; then
        SUITE_PYTHON=${MOPD_PYTHON:-python}
        [[ -n ${MOPD_PYTHON-} || ! -x $MOPD_VENV/bin/python ]] || SUITE_PYTHON=$MOPD_VENV/bin/python
        return
    fi
    mopd_python
    SUITE_PYTHON=$MOPD_PYTHON
}

# ---------------------------------------------------------------- where they run

# shellcheck disable=SC2120 # the ablations call it with a command, the others without
suite_start() { # [COMMAND]: starts every run, where that was asked for; COMMAND comes first, where runs do start
    suite_refuse_unknown
    [[ $SUITE_PLACE != slurm ]] || suite_slurm_lines
    if ((SUITE_DRY_RUN)); then
        printf '%s\n' "${SUITE_LINES[@]}"
        exit 0
    fi
    [[ $# -eq 0 || $SUITE_PLACE != local ]] || "$@"
    "suite_in_$SUITE_PLACE"
}

suite_in_no_place() {
    mopd_say "Nothing was started. Say where these are to run, ${#SUITE_NAMES[@]} in all:" "${SUITE_NAMES[@]/#/    }" \
        '  --local    on this machine, one after the other, each on all of its GPUs' \
        '  --slurm    each as a job of Slurm (options: SBATCH_PARTITION and the like; docs/howto/slurm.md)' \
        '  --dry-run  elsewhere: prints a command line for each, to be given to a scheduler as a job of its own. Once' \
        '             they have ended, --local with the same OUTPUT_DIR tells what is missing, and runs it here' \
        'With --quick either is a small try-out on the embedded task. --help tells the rest.'
    exit 2
}

suite_slurm_lines() { # makes of every line the one that hands it to Slurm, as a job of its own
    local place words job=$MOPD_ROOT/experiments/slurm/mopd.sbatch
    for place in "${!SUITE_NAMES[@]}"; do
        words=(sbatch "--job-name=${SUITE_NAMES[place]}" "--nodes=${NNODES:-1}")
        words+=("--output=$SUITE_ROOT/logs/${SUITE_NAMES[place]}.log" "--export=ALL,MOPD_HOME=$MOPD_ROOT")
        printf -v SUITE_LINES[place] '%q ' "${words[@]}" "$job" bash -c "exec ${SUITE_LINES[place]}"
        SUITE_LINES[place]=${SUITE_LINES[place]% }
    done
}

suite_in_slurm() { # hands every run in; they end some time. The trainer tells at once of one that is done already
    local line
    command -v sbatch >/dev/null || mopd_fail 2 'There is no sbatch here; call this on a machine of the cluster, or with --dry-run.'
    mkdir -p -- "$SUITE_ROOT/logs"
    for line in "${SUITE_LINES[@]}"; do
        bash -c "exec $line" || suite_settle 1
    done
    mopd_say "${#SUITE_LINES[@]} jobs, into $SUITE_ROOT; what they say is in logs/ there. When they have ended, --local with the" \
        'same OUTPUT_DIR tells what is missing.'
    exit "$SUITE_CODE"
}

suite_in_local() {
    local place SUITE_CHILD=''
    trap suite_stop INT TERM USR1
    mkdir -p -- "$SUITE_ROOT/logs"
    mopd_say "${#SUITE_NAMES[@]} runs, one after the other, into $SUITE_ROOT; what they say is in logs/ there"
    for place in "${!SUITE_NAMES[@]}"; do
        suite_local_run "$((place + 1))" "${SUITE_NAMES[place]}" "${SUITE_LINES[place]}"
    done
    trap - INT TERM USR1
    suite_summary
}

suite_stop() { # hands a signal on to the run at work, so that it saves; no other is started
    SUITE_STOPPED=1
    [[ -z $SUITE_CHILD ]] || kill -TERM "$SUITE_CHILD" 2>/dev/null || true
}

suite_local_run() { # NUMBER NAME LINE: runs it, unless it ended well before, and notes the result
    local log=$SUITE_ROOT/logs/$2.log start=$SECONDS code=0
    if suite_finished "$2" "$3"; then
        SUITE_RESULTS+=('done before')
        return
    fi
    if ((SUITE_STOPPED)); then
        SUITE_RESULTS+=('not started')
        suite_settle 75
        return
    fi
    mopd_say "[$1/${#SUITE_NAMES[@]}] $2 ..."
    printf '## %s\n' "$3" >>"$log"
    suite_wait "$3" "$log" || code=$?
    SUITE_RESULTS+=("$(suite_outcome "$code") after $((SECONDS - start)) s")
    mopd_say "    ${SUITE_RESULTS[-1]}"
    if [[ $code -eq 0 ]]; then
        printf '%s\n' "$3" >"$SUITE_ROOT/$2/.finished"
    else
        suite_settle "$code"
        tail -n 8 "$log" | sed 's/^/    | /' >&2
    fi
}

suite_settle() { # CODE: of a run that is not done. One that failed weighs more than one that was stopped
    case $1 in
    75 | 130 | 143) ((SUITE_CODE)) || SUITE_CODE=75 ;;
    *) SUITE_CODE=1 ;;
    esac
}

suite_finished() { # NAME LINE: did the run end well, started by this very line?
    local mark=$SUITE_ROOT/$1/.finished
    [[ -r $mark && $(<"$mark") == "$2" ]]
}

suite_wait() { # LINE LOG: runs it and gives its exit code
    local code=0
    set -m # in a process group of its own: Ctrl-C reaches it once, by suite_stop, and it has time to save
    bash -c "exec $1" >>"$2" 2>&1 </dev/null &
    SUITE_CHILD=$!
    set +m
    ((!SUITE_STOPPED)) || suite_stop # a signal in between
    wait "$SUITE_CHILD" || code=$?
    while ((code > 128)) && kill -0 "$SUITE_CHILD" 2>/dev/null; do # only the waiting was interrupted
        code=0
        wait "$SUITE_CHILD" || code=$?
    done
    SUITE_CHILD=''
    return "$code"
}

suite_outcome() { # CODE: prints what an exit code of trainer.main means
    case $1 in
    0) printf 'done' ;;
    2) printf 'REFUSED (exit code 2)' ;;
    3) printf 'FAILED: it no longer learnt (exit code 3)' ;;
    75 | 130 | 143) printf 'stopped (exit code %d)' "$1" ;;
    *) printf 'FAILED (exit code %d)' "$1" ;;
    esac
}

suite_summary() { # a table of all runs
    local place width=4 name
    for name in "${SUITE_NAMES[@]}"; do
        ((width >= ${#name})) || width=${#name}
    done
    printf '\n%-*s  %s\n' "$width" run result
    for place in "${!SUITE_NAMES[@]}"; do
        printf '%-*s  %s\n' "$width" "${SUITE_NAMES[place]}" "${SUITE_RESULTS[place]}"
    done
    ((SUITE_CODE == 0)) ||
        mopd_say '' 'Not all are done. The same command goes on: it skips those that are, and resumes at checkpoints.' \
            "Why one ended is at the end of its log in $SUITE_ROOT/logs."
}
