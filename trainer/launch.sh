# shellcheck shell=bash
# The shell functions of every script here: which Python to use, and how to start a run with it.
#
#   source trainer/launch.sh
#   mopd_python [dev]              sets MOPD_PYTHON, making .venv when no Python at hand has the pinned packages
#   mopd_run CONFIG_NAME "$@"      [suffix] [key=value ...]  ->  python -m trainer.main --config-name CONFIG_NAME ...
#
# Environment: MOPD_PYTHON   a Python to use as it is, whatever packages it has
#              MOPD_DEVICE   cpu, cuda or gh200: set up for a machine other than this one
#              ROLLOUT_BACKEND=hf   vLLM is neither installed nor asked for
# Callers have `set -euo pipefail`. All messages go to stderr; exit codes: 1 set-up failed, 2 bad input.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "This bash is $BASH_VERSION; the scripts need 4.4 or newer. Put a newer bash first on PATH." >&2
    exit 2
fi

MOPD_ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
MOPD_VENV=$MOPD_ROOT/.venv
MOPD_LOG=$MOPD_VENV/setup.log
MOPD_STAMP=$MOPD_VENV/.mopd-ready # written last: "cpu HASH [dev]"; without it a set-up was interrupted
MOPD_UV=uv==0.13.8                # the installer, in .venv only

mopd_say() { printf '%s\n' "$@" >&2; } # LINE...

mopd_fail() { # CODE LINE...
    local code=$1
    shift
    mopd_say "$@"
    exit "$code"
}

# ---------------------------------------------------------------- which Python

mopd_device() { # prints which requirements-*.txt this machine needs: cpu; cuda; gh200 (a GPU beside an Arm processor)
    case ${MOPD_DEVICE-} in
    cpu | cuda | gh200) printf '%s' "$MOPD_DEVICE" ;;
    '')
        if [[ $(nvidia-smi -L 2>/dev/null || true) != *"GPU "* ]]; then
            printf cpu
        elif [[ $HOSTTYPE == aarch64 ]]; then
            printf gh200
        else
            printf cuda
        fi
        ;;
    *) mopd_fail 2 "MOPD_DEVICE is '$MOPD_DEVICE'; it must be cpu, cuda or gh200 (or be unset: then a GPU is looked for)." ;;
    esac
}

mopd_misses() { # PYTHON DEVICE [dev]: prints how its packages differ from the pins; status 0 when they do not
    local python=$1
    shift
    PYTHONSAFEPATH=1 "$python" "$MOPD_ROOT/trainer/pins.py" "$MOPD_ROOT" "$@" 2>&1
}

mopd_stamp() { # DEVICE: what .venv/.mopd-ready says when .venv is complete for the present requirement files
    local hash # without comments, and without the test tools (mopd_misses sees those): a start without network goes on
    hash=$(cd "$MOPD_ROOT" && sed 's/ *#.*//; /^$/d' requirements.txt "requirements-$1.txt" cpu-overrides.txt setup.py | sha256sum)
    printf '%s %s' "$1" "${hash%% *}"
}

mopd_venv_ready() { # DEVICE [dev]: is .venv complete, and as the requirement files want it?
    local stamp
    [[ -x $MOPD_VENV/bin/python && -r $MOPD_STAMP ]] || return 1
    stamp=$(<"$MOPD_STAMP")
    [[ ${stamp% dev} == "$(mopd_stamp "$1")" ]] || return 1
    [[ $# -eq 1 || $stamp == *" dev" ]] || return 1
    mopd_misses "$MOPD_VENV/bin/python" "$@" >/dev/null
}

# shellcheck disable=SC2120 # scripts call it with dev, mopd_run without
mopd_python() { # [dev]: sets MOPD_PYTHON
    local device active misses
    device=$(mopd_device)
    if [[ -n ${MOPD_PYTHON-} ]]; then
        command -v "$MOPD_PYTHON" >/dev/null || mopd_fail 2 "MOPD_PYTHON is '$MOPD_PYTHON', which cannot be run; name a Python, or unset it to let the script find or make one."
        misses=$(mopd_misses "$MOPD_PYTHON" "$device" "$@") || mopd_say "using MOPD_PYTHON=$MOPD_PYTHON as it is, although ${misses//$'\n'/; }"
        return 0
    fi
    active=$(command -v "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/}python3" || command -v python3 || command -v python || true)
    if [[ -n $active && $active != "$MOPD_VENV"/* ]]; then
        if misses=$(mopd_misses "$active" "$device" "$@"); then
            MOPD_PYTHON=$active
            return 0
        fi
        # Silent about a plain Python, which nobody meant to be used; one that has torch may be a container's.
        [[ -z ${VIRTUAL_ENV-}${CONDA_PREFIX-} && $misses == *@('torch is not installed'|'Python is ')* ]] ||
            mopd_say "the active Python ($active) is not used: ${misses//$'\n'/; }"
    fi
    mopd_venv_ready "$device" "$@" || mopd_set_up "$device" "$@"
    MOPD_PYTHON=$MOPD_VENV/bin/python
}

mopd_supported() { # prints the versions of Python that setup.py declares
    sed -n 's/.*Python :: \([0-9]*\.[0-9]*\)".*/\1/p' "$MOPD_ROOT/setup.py"
}

mopd_find_python() { # prints a Python of a supported version that can make environments; 3.11 is the tested one
    local versions name version found=''
    mapfile -t versions < <(mopd_supported)
    for name in "${versions[@]/#/python}" python3 python; do
        version=$("$name" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if [[ " ${versions[*]} " == *" $version "* ]]; then
            command -v "$name"
            return 0
        fi
        found+="${found:+, }$name is $version"
    done
    mopd_fail 2 "No suitable Python on PATH: ${found:-none that has the modules venv and ensurepip was found}. Wanted: one of ${versions[*]}," \
        "with venv (on Debian and Ubuntu, for instance: apt install python3.11 python3.11-venv)."
}

# ---------------------------------------------------------------- making .venv

mopd_step() { # NAME COMMAND...: one line for people, the rest in the log
    local name=$1 start=$SECONDS
    shift
    printf 'setting up .venv: %s ...' "$name" >&2
    printf '\n## %s: %s\n' "$name" "$*" >>"$MOPD_LOG"
    if "$@" >>"$MOPD_LOG" 2>&1 </dev/null; then
        printf ' %d s\n' $((SECONDS - start)) >&2
        return 0
    fi
    printf ' FAILED after %d s. The end of %s:\n\n' $((SECONDS - start)) "$MOPD_LOG" >&2
    tail -n 15 "$MOPD_LOG" | sed 's/^/    /' >&2
    mopd_fail 1 '' "Setting up .venv failed at: $name. What to check: the network; the free disk space (df -h: 5 GB are enough" \
        'without a GPU, 20 GB with one); where pip takes packages from (pip config list). Then start the same command' \
        "again: it goes on from here. To begin anew: rm -rf $MOPD_VENV"
}

mopd_pip_settings() { # uv does not read pip's configuration: hand over what decides where packages come from
    local key value
    while IFS='=' read -r key value; do
        value=${value#\'}
        value=${value%\'}
        value=${value//\\n/ }
        case $key in
        *.index-url) export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX-$value} ;;
        *.extra-index-url) export UV_INDEX=${UV_INDEX-$value} UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY-unsafe-best-match} ;;
        *.find-links) export UV_FIND_LINKS=${UV_FIND_LINKS-${value// /,}} ;;
        *.cert) export SSL_CERT_FILE=${SSL_CERT_FILE-$value} ;;
        esac
    done < <("$MOPD_VENV/bin/python" -m pip config list 2>/dev/null)
}

mopd_make_venv() { # an environment with a working pip in it; an existing one is kept when it can be
    local python version
    if version=$("$MOPD_VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
        mopd_supported | grep -qxF "$version" ||
            mopd_fail 2 "The Python of $MOPD_VENV is $version; wanted: one of $(mopd_supported | xargs). Remove that folder and start again."
        "$MOPD_VENV/bin/python" -m pip --version >/dev/null 2>&1 && return 0
        "$MOPD_VENV/bin/python" -m ensurepip >/dev/null 2>&1 && return 0
    fi
    python=$(mopd_find_python)
    rm -rf "$MOPD_VENV"
    mkdir "$MOPD_VENV"
    mopd_step "environment with $python" "$python" -m venv "$MOPD_VENV"
}

mopd_torch_pin() { # prints the version of torch, which is the same for every device
    sed -n 's/^torch==//p' "$MOPD_ROOT/requirements-cpu.txt"
}

mopd_torch_cpu() { # pip first: it knows this machine's own wheels; where there are none, uv knows torch's CPU builds
    local pin python=$MOPD_VENV/bin/python
    pin=$(mopd_torch_pin)
    "$python" -m pip install --compile --no-deps "torch==$pin+cpu" ||
        "$MOPD_VENV/bin/uv" pip install --python "$python" --torch-backend cpu --no-deps "torch==$pin" || {
        mopd_say "torch $pin+cpu, the build without GPU support, was found neither where pip looks (pip config list) nor in" \
            "PyTorch's own index of CPU builds. Where that cannot be reached, bring the wheel torch-$pin+cpu-*.whl for this" \
            "Python and processor in a folder, and start again with PIP_FIND_LINKS=FOLDER in the environment."
        return 1
    }
}

mopd_install() { # DEVICE [dev]
    local device=$1 python=$MOPD_VENV/bin/python
    local uv=("$MOPD_VENV/bin/uv" pip install --python "$python") files=(-r "$MOPD_ROOT/requirements-$1.txt")
    export PIP_USER=0 # pip may be set to install for the user, which an environment refuses
    mopd_pip_settings
    mopd_step installer "$python" -m pip install --compile "$MOPD_UV"
    mkdir -p -- "$("$MOPD_VENV/bin/uv" cache dir 2>/dev/null)" 2>/dev/null || export UV_NO_CACHE=1 # no home to write to
    [[ ${ROLLOUT_BACKEND-} != hf ]] || files=(-r "$MOPD_ROOT/requirements.txt" "torch==$(mopd_torch_pin)") # no vLLM
    if [[ $device == cpu ]]; then
        files+=(--override "$MOPD_ROOT/cpu-overrides.txt")
        mopd_step torch mopd_torch_cpu
    else
        files+=("torch!=$(mopd_torch_pin)+cpu") # to a resolver, a CPU build that it happens to find is the newer one
    fi
    # uv writes no bytecode unless asked, and then every start would compile vLLM again where Python may not write it.
    mopd_step 'Ray, vLLM, transformers' "${uv[@]}" --compile-bytecode "${files[@]}"
    [[ $# -eq 1 ]] || mopd_step 'test tools' "${uv[@]}" --compile-bytecode -r "$MOPD_ROOT/requirements-dev.txt" "${files[@]}"
    mopd_step 'this project' "${uv[@]}" --no-deps --no-build-isolation -e "$MOPD_ROOT"
    mopd_step check mopd_misses "$python" "$@"
}

mopd_glibc() { # DEVICE: prints the oldest C library for which all packages have wheels (llguidance; tilelang on Arm)
    if [[ $HOSTTYPE == aarch64 && $1 != cpu ]]; then printf 2.34; else printf 2.31; fi
}

mopd_platform() { # DEVICE: refuses what packages are not made for, before anything is made
    local found wanted
    [[ $OSTYPE == linux* ]] || mopd_fail 2 "This system is $OSTYPE; vLLM and Ray are installed on Linux only. A container or a virtual machine with Linux will do."
    found=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)
    found=${found#glibc } wanted=$(mopd_glibc "$1")
    [[ ! $found =~ ^2\.[0-9]+$ ]] || ((${found#2.} >= ${wanted#2.})) ||
        mopd_fail 2 "The C library of this system is glibc $found; some packages of vLLM have wheels for $wanted and newer only ($HOSTTYPE)." \
            'Use a newer system or a container with one (glibc is 2.31 in Debian 11 and Ubuntu 20.04, 2.34 in RHEL 9), see docs/setup.md.'
}

mopd_set_up() { # DEVICE [dev]: makes .venv once, also when two starts want it, and goes on after an interruption
    local device=$1 start=$SECONDS dev=("${@:2}") stamp=''
    mopd_platform "$device"
    { exec 9>>"$MOPD_ROOT/.venv.lock"; } 2>/dev/null || mopd_fail 1 "Cannot write to $MOPD_ROOT, where .venv is to be made. Make the folder writable, or name a Python that has the packages: MOPD_PYTHON=PATH."
    if command -v flock >/dev/null && ! flock -n 9; then
        mopd_say 'another start is setting up .venv; waiting for it ...'
        flock 9
    fi
    if ! mopd_venv_ready "$device" "${dev[@]}"; then
        [[ ! -r $MOPD_STAMP ]] || stamp=$(<"$MOPD_STAMP")
        [[ -z $stamp || $stamp == "$device "* ]] ||
            mopd_fail 2 ".venv was set up for ${stamp%% *} and this machine is ${device}. Remove $MOPD_VENV, or set MOPD_DEVICE=${stamp%% *} to go on with it."
        [[ $stamp != *" dev" ]] || dev=(dev)
        mopd_make_venv
        rm -f "$MOPD_STAMP"
        mopd_install "$device" "${dev[@]}"
        printf '%s\n' "$(mopd_stamp "$device")${dev[*]:+ dev}" >"$MOPD_STAMP"
        mopd_say "setting up .venv: done in $((SECONDS - start)) s"
    fi
    exec 9>&-
}

# ---------------------------------------------------------------- starting a run

mopd_help() { # prints the comment at the top of the script that was called
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[-1]}"
}

mopd_options() { # ARGUMENT...: answers --help, refuses what nobody reads
    local argument flags
    for argument in "$@"; do
        case $argument in
        -h | --help)
            mopd_help
            [[ ${0##*/} != run_eval.sh ]] || exit 0
            printf '\nEnvironment flags, for instance TOTAL_STEPS=3 bash %s:\n' "${0##*/}"
            mapfile -t flags < <(sed -n 's/^|[^|]*| \([A-Z][A-Z_]*\) |.*/\1/p' "$MOPD_ROOT/docs/configuration.md")
            printf '  %s %s %s %s\n' "${flags[@]}"
            printf 'Each flag and key, with its default: docs/configuration.md. Set-up, also without network: docs/setup.md.\n'
            exit 0
            ;;
        --setup-only | --cfg | --cfg=*) ;;
        -*) mopd_fail 2 "Unknown option '$argument'. There are --help, --setup-only and --cfg job; settings are written key=value" \
            'without dashes, for instance trainer.total_training_steps=3 (docs/configuration.md lists them).' ;;
        esac
    done
}

mopd_set_up_only() { # [ARGUMENT...]: with --setup-only as sole argument makes the environment and ends
    [[ " $* " == *' --setup-only '* ]] || return 0
    [[ $# -eq 1 ]] || mopd_fail 2 '--setup-only makes the environment and stops; it takes no other arguments.'
    mopd_python
    mopd_say "ready: $MOPD_PYTHON"
    exit 0
}

mopd_start() { # MODULE ARGUMENT...: ends in the command itself
    mopd_python
    # No cd: paths that the user gives are relative to where the user stands. -P: what lies there is not imported.
    export PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH}
    exec "$MOPD_PYTHON" -P -m "$@"
}

mopd_evaluate() { # [--setup-only | key=value ...]
    mopd_set_up_only "$@"
    mopd_start trainer.evaluate "$@"
}

mopd_run() { # CONFIG_NAME [--setup-only | [suffix] [key=value ...]]
    local config=$1 arguments=()
    shift
    mopd_options "$@"
    mopd_set_up_only "$@"
    if [[ $# -gt 0 && $1 != -* && $1 != *=* && $1 != '~'* ]]; then
        [[ $1 =~ ^[A-Za-z0-9._-]+$ ]] || mopd_fail 2 "The suffix is '$1'; it becomes part of a folder's name, so it may have letters, digits and . _ - only." \
            "Settings are written key=value."
        arguments=("trainer.experiment_suffix='$1'") # quoted for Hydra, to which 1e5 or true would not be a string
        shift
    fi
    mopd_start trainer.main --config-name "$config" "${arguments[@]}" "$@"
}
