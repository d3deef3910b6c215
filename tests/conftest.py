"""What every test starts from: one thread for sums, and scripts that use the Python of the tests."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: sums in a fixed order
os.environ.setdefault("MOPD_PYTHON", sys.executable)  # a script started by a test sets nothing up
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the project."""
    return ROOT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tests that need a GPU are not even collected where there is none: says so where they were asked for."""
    reporter, folder = terminalreporter, ROOT / "tests" / "gpu"
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    wanted = any(path == folder or path in folder.parents or folder in path.parents for path in asked)
    ran = any(
        getattr(each, "nodeid", "").startswith("tests/gpu/") for those in reporter.stats.values() for each in those
    )
    if wanted and not ran:
        reporter.write_line("tests/gpu: not run: no GPU")
