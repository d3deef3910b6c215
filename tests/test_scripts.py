"""The shell scripts: clean, callable from anywhere, and clear about which Python they use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house
from tests.stubs import MAKER, SATISFIED, call, make_project, write_python

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [
    name for name in house.project_files(ROOT) if name.endswith((".sh", ".sbatch")) or name in {".ci/run", ".ci/tool"}
]
RUNS = [name for name in SCRIPTS if name.startswith("run_") and name != "run_tests.sh"]


@pytest.fixture
def project(tmp_path):
    """A copy of what set-up needs, and a PATH with no Python on it yet: (folder, folder of programs)."""
    return make_project(tmp_path)


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


@pytest.mark.parametrize("script", [name for name in SCRIPTS if "/" not in name])
def test_launch_scripts_are_short_and_share_one_library(script):
    text = (ROOT / script).read_text()
    assert text.count("\n") <= 60
    assert 'trainer/launch.sh"\n' in text, "the functions are in trainer/launch.sh"
    assert "() {" not in text, "a function of a script belongs into trainer/launch.sh"


def test_the_readme_shows_the_command_that_ci_runs():
    if not (ROOT / "README.md").exists():
        pytest.skip("README.md is not written yet")
    assert "bash run_tests.sh" in (ROOT / "README.md").read_text()
    assert "check tests bash run_tests.sh\n" in (ROOT / ".ci/run").read_text()


# ------------------------------------------------------------------ a run


CONFIGS = {
    "run_local_sdpo.sh": "mopd",
    "run_local_grpo.sh": "grpo",
    "run_local_rloo.sh": "rloo",
    "run_local_gspo.sh": "gspo",
    "run_local_dpo.sh": "dpo",
    "run_local_simpo.sh": "simpo",
    "run_local_sft.sh": "verified_sft",
    "run_ts_sdpo.sh": "ts_sdpo",
}


@pytest.mark.parametrize("script", CONFIGS)
def test_arguments_reach_the_trainer_and_the_folder_stays(project, tmp_path, script):
    folder, programs = project
    write_python(programs / "python3", SATISFIED)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    code, out, err = call(project, folder / script, "my-try.1", "trainer.total=3", "a b=c", cwd=elsewhere)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[:4] == ["-P", "-m", "trainer.main", "--config-name"]
    assert lines[4] == CONFIGS[script]
    assert lines[5:8] == ["trainer.experiment_suffix='my-try.1'", "trainer.total=3", "a b=c"]
    assert f"PYTHONPATH={folder}" in lines
    assert f"PWD={elsewhere}" in lines


def test_flags_and_arguments_reach_the_evaluation(project):
    folder, programs = project
    write_python(programs / "python3", SATISFIED)
    flags = {"CKPT_PATH": "a b/step_2", "EVAL_N": "4", "DATA_PATH": "data", "OUTPUT_DIR": "out"}
    code, out, err = call(project, folder / "run_eval.sh", "top_p=0.5", **flags)
    assert code == 0, err
    given = ["model=a b/step_2", "n=4", "data=data/test.parquet", "output=out", "top_p=0.5"]
    assert out.splitlines()[:8] == ["-P", "-m", "trainer.evaluate", *given]


def test_every_run_script_is_known_here():
    assert {script for script in RUNS if script != "run_eval.sh"} == set(CONFIGS)


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


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("script", [*RUNS, "run_tests.sh"])
def test_help_needs_no_python(project, script, option):
    code, out, err = call(project, script, option)
    assert (code, err) == (0, "")
    assert f"bash {script} [" in out
    assert "#" not in out


def test_help_names_every_flag(project):
    reference = (ROOT / "docs/configuration.md").read_text()
    flags = {row.split("|")[2].strip() for row in reference.splitlines() if row.startswith("| `")} - {""}
    assert flags > {"DATA_PATH", "TOTAL_STEPS"}
    _, out, _ = call(project, "run_local_sdpo.sh", "--help")
    assert flags <= set(out.split())


@pytest.mark.parametrize("arguments", [["--lr=3"], ["try", "--no-such"], ["a=b", "-x"], ["--"]])
def test_an_unknown_option_is_refused_before_set_up(project, arguments):
    code, out, err = call(project, "run_local_grpo.sh", *arguments)
    assert (code, out) == (2, "")
    assert f"Unknown option '{arguments[-1]}'" in err
    assert "setting up" not in err


def test_the_configuration_can_be_printed(project):
    write_python(project[1] / "python3", SATISFIED)
    assert "--cfg\njob\n" in call(project, "run_local_sdpo.sh", "--cfg", "job")[1]


# ------------------------------------------------------------------ odd places


@pytest.fixture
def odd_project(project, tmp_path):
    """The same in a folder whose name has a space, a quote and a dollar sign."""
    folder, programs = project
    write_python(programs / "python3", SATISFIED)
    return folder.rename(tmp_path / "a b'c $HOME"), programs


def test_called_through_links_and_from_an_empty_environment(odd_project, tmp_path):
    folder, programs = odd_project
    (tmp_path / "link").symlink_to(folder / "run_local_sdpo.sh")
    (tmp_path / "link to link").symlink_to("link")
    done = subprocess.run(
        [shutil.which("bash"), "link to link", "x=1"],
        cwd=tmp_path,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"PYTHONPATH={folder}\n" in done.stdout


@pytest.mark.parametrize("script", [*RUNS, "run_tests.sh"])
def test_called_with_another_shell(odd_project, script):
    shell = shutil.which("dash") or shutil.which("busybox")
    if not shell:
        pytest.skip("no shell other than bash here: neither dash nor busybox")
    folder, _ = odd_project
    command = [folder / script] if shell.endswith("dash") else ["sh", folder / script]
    code, out, err = call(odd_project, *command, "x=1", shell=shell)
    assert (code, err) == (0, "")
    assert "x=1\n" in out


def test_a_search_path_of_cd_leads_nowhere_else(odd_project, tmp_path):
    folder, _ = odd_project
    (tmp_path / "elsewhere" / folder.name / "trainer").mkdir(parents=True)
    script = Path(folder.name) / "run_local_sdpo.sh"
    code, out, _ = call(odd_project, script, cwd=tmp_path, CDPATH=str(tmp_path / "elsewhere"))
    assert code == 0
    assert f"PYTHONPATH={folder}\n" in out


def test_a_folder_that_cannot_be_written_is_a_clear_message(project):
    folder, programs = project
    write_python(programs / "python3.11", MAKER)
    (folder / ".venv.lock").mkdir()  # refuses to be opened, also for root
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only")
    assert code == 1
    assert err.startswith(f"Cannot write to {folder}, where .venv is to be made.")


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
