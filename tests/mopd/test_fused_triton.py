"""The Triton kernels, without a GPU: in Triton's interpreter, and compiled for GPUs; and which kernels do the work."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mopd import fused_kernels
from mopd.fused import linear_logprobs
from mopd.fused_kernels import faster

HERE = Path(__file__).resolve().parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install --no-deps triton==3.7.1"
)

COMPILED = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mopd import fused_triton

def binary(kernel, fixed, **types):
    types |= {name: "constexpr" for name in fixed}
    source = ASTSource(fn=kernel, signature=types, constexprs=fixed)
    return triton.compile(source, target=GPUTarget("cuda", ARCH, 32)).asm["cubin"]

for logits, total in (("*fp32", "*fp64"), ("*bf16", "*fp32")):
    fixed = {"GROUP": 16, "LANES": fused_triton.LANES, "ALIGNED": 8, "ENTROPY": True, "FLOOR": -1e6}
    assert binary(fused_triton._scan, fixed, logits=logits, stride="i32", vocabulary="i32", peaks=logits,
                  largest="*fp32", total=total, weighted="*fp32", inverse="fp32")
    assert binary(fused_triton._outside, {"COLUMNS": fused_triton.COLUMNS}, logits=logits, stride="i32", columns="i32",
                  normaliser="*fp32", shift="*fp32", inverse="fp32", out="*bf16", out_stride="i32")
print("compiled")
"""


def run(*command: str, cache: Path, **changes: str) -> str:
    """What a process prints; it must end well."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_", "MOPD_"))}
    settings = {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", **changes}
    done = subprocess.run(
        [sys.executable, *command], env=clean | settings, cwd=HERE.parents[1], capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@needs_triton
def test_the_kernels_do_in_the_interpreter_what_torch_does(tmp_path: Path) -> None:
    cases = str(HERE / "fused_triton_cases.py")
    told = run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", cases, cache=tmp_path, TRITON_INTERPRET="1")
    assert re.search(r"\b15 passed", told), told


@needs_triton
@pytest.mark.parametrize("architecture", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_kernels_compile_for_gpus(architecture: int, tmp_path: Path) -> None:
    assert "compiled" in run("-c", COMPILED.replace("ARCH", str(architecture)), cache=tmp_path)


def test_a_cpu_never_asks_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOPD_KERNEL", raising=False)
    monkeypatch.setattr(fused_kernels, "faster", lambda *_: pytest.fail("there is nothing to choose"))
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(20, 4, requires_grad=True)
    linear_logprobs(hidden, weight, torch.arange(3)).logprobs.sum().backward()
    assert "mopd.fused_triton" not in sys.modules


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("fast", "MOPD_KERNEL is 'fast'; it must be one of auto, torch, triton"),
        ("triton", "needs a GPU and the package"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("MOPD_KERNEL", asked)
    with pytest.raises(ValueError, match=message):
        linear_logprobs(torch.randn(3, 4), torch.randn(20, 4), torch.arange(3))


@pytest.mark.parametrize("slow", ["torch", "triton"])
def test_the_faster_way_is_chosen_whatever_its_first_run_costs(slow: str) -> None:
    ran: list[str] = []

    def by(way: str) -> None:
        time.sleep(0.2 if way not in ran else 0.05 if way == slow else 0.0)  # the first compiles
        ran.append(way)

    assert faster(by, lambda: None) == {"torch": "triton", "triton": "torch"}[slow]


def test_a_way_that_fails_is_not_taken() -> None:
    def by(way: str) -> None:
        if way == "triton":
            raise RuntimeError("no compiler")

    with pytest.warns(UserWarning, match="Triton fails here.*no compiler"):
        assert faster(by, lambda: None) == "torch"


def test_work_that_torch_cannot_do_is_an_error() -> None:
    def by(way: str) -> None:
        if way == "torch":
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        faster(by, lambda: None)
