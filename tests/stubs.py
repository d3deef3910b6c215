"""A copy of the scripts on a PATH of stubs, for tests of the scripts and of set-up."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["bash", "cat", "cp", "dirname", "flock", "grep", "ln", "mkdir", "rm", "sed", "sha256sum"]
TOOLS += ["readlink", "sleep", "tail", "xargs"]

# A Python that has all pins: says so when pins.py asks, and otherwise repeats what it was called with.
SATISFIED = """#!/bin/bash
case "$1" in *pins.py) exit 0 ;; esac
printf '%s\\n' "$@" "PYTHONPATH=$PYTHONPATH" "PWD=$PWD"
"""
# A Python that has none, but can make an environment; that has them once pip ran.
MAKER = """#!/bin/bash
me=$0
[[ ! ${RECORD-} ]] || echo "${0##*/} $*" >>"$RECORD"
case "$*" in
*"sys, venv, ensurepip"*) echo 3.11 ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$me" "$3/bin/python" && ln -s python "$3/bin/uv" ;;
*"import sys"*) echo 3.11 ;;
*pins.py*) [[ -e $(dirname "$me")/installed ]] || { echo 'torch is not installed, wanted 2.13.0'; exit 1; } ;;
*"pip install"*+cpu) [[ ! ${NO_WHEEL-} ]] || { echo 'No matching distribution found'; exit 1; } ;;&
*"--torch-backend cpu"*) [[ ! ${NO_INDEX-} ]] || { echo 'error: dns error'; exit 1; } ;;&
*"pip install"*) sleep ${SLOW-0}; [[ ! ${FAIL-} ]] || { echo "no space left on device"; exit 1; }
                 echo run >>"$(dirname "$me")/installed" ;;
esac
"""


def make_project(tmp_path):
    """A copy of what set-up needs, and a PATH with no Python on it yet: (folder, folder of programs)."""
    folder, programs = tmp_path / "project", tmp_path / "bin"
    (folder / "trainer").mkdir(parents=True)
    (folder / "docs").mkdir()
    programs.mkdir()
    for name in [
        *[path.name for path in ROOT.glob("run_*.sh")],
        "setup.py",
        "trainer/launch.sh",
        "trainer/pins.py",
        "cpu-overrides.txt",
        "docs/configuration.md",
    ]:
        shutil.copy(ROOT / name, folder / name)
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, folder)
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool))
    return folder, programs


def write_python(path, text):
    path.write_text(text)
    path.chmod(0o755)


def start(project, *command, cwd=None, shell="bash", **environment):
    folder, programs = project
    environment = {"PATH": str(programs), "HOME": str(folder), "MOPD_DEVICE": "cpu", **environment}
    return subprocess.Popen(
        [shell, *map(str, command)],
        cwd=cwd or folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call(project, *command, **more):
    process = start(project, *command, **more)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
