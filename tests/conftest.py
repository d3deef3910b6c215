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
