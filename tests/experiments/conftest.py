"""Suites are called as a user would, with a Python that only pretends to run."""

import os
import subprocess

import pytest

from tests.experiments.suites import ROOT, STUB


@pytest.fixture
def call(tmp_path):
    """Runs a suite from a folder that is not the project, without flags of the caller's environment."""
    stub = tmp_path / "python-stub"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def call_suite(suite, *arguments, popen=False, **environment):
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
        kept |= {"MOPD_PYTHON": str(stub), "RECORD": str(tmp_path / "record"), "OMP_NUM_THREADS": "1"}
        options = {"cwd": tmp_path, "env": kept | environment, "text": True}
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = ["bash", str(ROOT / "experiments" / suite), *arguments]
        return subprocess.Popen(command, **options) if popen else subprocess.run(command, timeout=600, **options)

    return call_suite
