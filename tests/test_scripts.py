"""The shell scripts: clean, callable from anywhere, and clear about which Python they use."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [name for name in house.project_files(ROOT) if name.endswith(".sh") or name in {".ci/run", ".ci/tool"}]
RUNS = [name for name in SCRIPTS if name.startswith("run_") and name != "run_tests.sh"]
TOOLS = ["bash", "cat", "cp", "dirname", "flock", "grep", "ln", "mkdir", "rm", "sed", "sha256sum"]
TOOLS += ["sleep", "tail", "xargs"]

# A Python that has all pins: says so when pins.py asks, and otherwise repeats what it was called with.
SATISFIED = """#!/bin/bash
case "$1" in *pins.py) exit 0 ;; esac
printf '%s\\n' "$@" "PYTHONPATH=$PYTHONPATH" "PWD=$PWD"
"""
# A Python that has none, but can make an environment; that has them once pip ran.
MAKER = """#!/bin/bash
me=$0
case "$*" in
*"sys, venv, ensurepip"*) echo 3.11 ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$me" "$3/bin/python" && ln -s python "$3/bin/uv" ;;
*"import sys"*) echo 3.11 ;;
*pins.py*) [[ -e $(dirname "$me")/installed ]] || { echo 'torch is not installed, wanted 2.13.0'; exit 1; } ;;
*"pip install"*) sleep ${SLOW-0}; [[ ! ${FAIL-} ]] || { echo "no space left on device"; exit 1; }
                 echo run >>"$(dirname "$me")/installed" ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """A copy of what set-up needs, and a PATH with no Python on it yet: (folder, folder of programs)."""
    folder, programs = tmp_path / "project", tmp_path / "bin"
    (folder / "trainer").mkdir(parents=True)
    programs.mkdir()
    for name in [
        *RUNS,
        "run_tests.sh",
        "setup.py",
        "trainer/launch.sh",
        "trainer/pins.py",
        "cpu-overrides.txt",
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


def start(project, *command, cwd=None, **environment):
    folder, programs = project
    environment = {"PATH": str(programs), "HOME": str(folder), "MOPD_DEVICE": "cpu", **environment}
    return subprocess.Popen(
        ["bash", *map(str, command)],
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


# ------------------------------------------------------------------ the files


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert program, "shellcheck is not installed: pip install -r requirements-dev.txt"
    found = subprocess.run([program, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_read(script):
    assert subprocess.run(["bash", "-n", script], cwd=ROOT).returncode == 0


def test_scripts_can_be_executed():
    programs = [name for name in SCRIPTS if name != "trainer/launch.sh" and "run" in Path(name).name]
    assert programs
    assert not [name for name in programs if not os.access(ROOT / name, os.X_OK)]


def test_the_readme_shows_the_command_that_ci_runs():
    if not (ROOT / "README.md").exists():
        pytest.skip("README.md is not written yet")
    assert "bash run_tests.sh" in (ROOT / "README.md").read_text()
    assert "check tests bash run_tests.sh\n" in (ROOT / ".ci/run").read_text()


# ------------------------------------------------------------------ a run


@pytest.mark.parametrize("script", RUNS)
def test_arguments_reach_the_trainer_and_the_folder_stays(project, tmp_path, script):
    folder, programs = project
    write_python(programs / "python3", SATISFIED)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    code, out, err = call(project, folder / script, "my-try.1", "trainer.total=3", "a b=c", cwd=elsewhere)
    assert code == 0, err
    config = {"run_local_sdpo.sh": "mopd", "run_local_grpo.sh": "grpo"}.get(script)
    lines = out.splitlines()
    assert lines[:4] == ["-P", "-m", "trainer.main", "--config-name"]
    assert config in (None, lines[4])
    assert lines[5:8] == ["trainer.experiment_suffix='my-try.1'", "trainer.total=3", "a b=c"]
    assert f"PYTHONPATH={folder}" in lines
    assert f"PWD={elsewhere}" in lines


def test_without_a_suffix_there_is_none(project):
    write_python(project[1] / "python3", SATISFIED)
    code, out, _ = call(project, "run_local_sdpo.sh", "LR=1", "word")
    assert code == 0
    assert "experiment_suffix" not in out
    assert "LR=1\nword\n" in out


@pytest.mark.parametrize("suffix", ["a/b", "a b", "ä", "$x", "", "a;b"])
def test_a_suffix_that_cannot_name_a_folder_is_refused(project, suffix):
    write_python(project[1] / "python3", SATISFIED)
    code, out, err = call(project, "run_local_sdpo.sh", suffix, LC_ALL="C")
    assert (code, out) == (2, "")
    assert f"The suffix is '{suffix}'" in err


# ------------------------------------------------------------------ which Python


def test_setup_only_is_content_with_an_active_python(project):
    folder, programs = project
    write_python(programs / "python3", SATISFIED)
    for _ in range(2):
        code, out, err = call(project, "run_local_sdpo.sh", "--setup-only")
        assert (code, out) == (0, "")
        assert f"ready: {programs}/python3" in err
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("script", ["run_local_sdpo.sh", "run_tests.sh"])
def test_setup_only_stands_alone(project, script):
    code, _, err = call(project, script, "--setup-only", "more")
    assert code == 2
    assert "takes no other arguments" in err


def test_a_named_python_is_used_as_it_is(project):
    python = project[0] / "mine"
    write_python(python, MAKER)
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", MOPD_PYTHON=str(python))
    assert code == 0
    assert "as it is, although torch is not installed" in err


def test_no_suitable_python_is_a_clear_message(project):
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only")
    assert code == 2
    assert "No suitable Python on PATH" in err
    assert "3.11 3.12" in err


def test_set_up_runs_once_and_again_when_a_pin_changes(project):
    folder, programs = project
    write_python(programs / "python3.11", MAKER)
    installed = folder / ".venv/bin/installed"
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only")
    assert code == 0, err
    first = installed.read_text()
    assert "setting up .venv: torch" in err

    code, _, err = call(project, "run_local_grpo.sh", "--setup-only")
    assert (code, installed.read_text()) == (0, first)
    assert "setting up" not in err

    with (folder / "requirements.txt").open("a") as file:
        file.write("another==1.0\n")
    code, _, err = call(project, "run_local_grpo.sh", "--setup-only")
    assert code == 0
    assert installed.read_text() > first


def test_test_tools_are_added_and_stay(project):
    folder, programs = project
    write_python(programs / "python3.11", MAKER)
    call(project, "run_local_sdpo.sh", "--setup-only")
    _, _, err = call(project, "run_tests.sh", "--setup-only")
    assert "setting up .venv: test tools" in err
    for script in ["run_tests.sh", "run_local_sdpo.sh"]:
        assert "setting up" not in call(project, script, "--setup-only")[2]
    assert (folder / ".venv/.mopd-ready").read_text().endswith(" dev\n")


def test_a_failed_installation_says_so_and_the_next_start_goes_on(project):
    folder, programs = project
    write_python(programs / "python3.11", MAKER)
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", FAIL="1")
    assert code == 1
    assert "no space left on device" in err
    assert "failed at: installer" in err
    assert not (folder / ".venv/.mopd-ready").exists()
    assert call(project, "run_local_sdpo.sh", "--setup-only")[0] == 0


def test_two_starts_at_the_same_time_set_up_once(project):
    folder, programs = project
    write_python(programs / "python3.11", MAKER)
    first = start(project, "run_local_sdpo.sh", "--setup-only", SLOW="0.5")
    while not (folder / ".venv/bin/python").exists() and first.poll() is None:
        time.sleep(0.02)
    code, _, err = call(project, "run_local_grpo.sh", "--setup-only")
    first.communicate(timeout=60)
    assert (first.returncode, code) == (0, 0)
    assert "another start is setting up .venv; waiting" in err
    assert "torch" not in err


def test_an_environment_for_another_device_is_not_touched(project):
    write_python(project[1] / "python3.11", MAKER)
    call(project, "run_local_sdpo.sh", "--setup-only")
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", MOPD_DEVICE="cuda")
    assert code == 2
    assert "was set up for cpu and this machine is cuda" in err


# ------------------------------------------------------------------ run_tests.sh


@pytest.mark.parametrize(
    ("arguments", "selection"),
    [([], "not slow and not cluster"), (["--all"], "not cluster"), (["--all", "-k", "x"], "not cluster")],
)
def test_what_is_selected(project, arguments, selection):
    write_python(project[1] / "python3", SATISFIED)
    code, out, _ = call(project, "run_tests.sh", *arguments)
    assert code == 0
    rest = [argument for argument in arguments if argument != "--all"]
    assert out.splitlines()[: 4 + len(rest)] == ["-m", "pytest", "-m", selection, *rest]


def test_a_cluster_without_tests_fails(project):
    write_python(project[1] / "python3", SATISFIED.replace("printf", '[[ "$*" != *collect-only* ]] || exit 5; printf'))
    code, out, err = call(project, "run_tests.sh", "--cluster")
    assert (code, out) == (1, "")
    assert "no test in tests/ has the mark 'cluster'" in err


def test_the_exit_code_of_pytest_is_passed_on(project):
    write_python(project[1] / "python3", SATISFIED + "exit 3\n")
    assert call(project, "run_tests.sh")[0] == 3
