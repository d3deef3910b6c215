"""Makes the scripts of `data/` importable, as they are when run by path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))


@pytest.fixture
def real_rows() -> Path:
    """The folder of real benchmark rows, where this machine has one."""
    folder = os.environ.get("MOPD_REAL_ROWS")
    if not folder:
        pytest.skip("MOPD_REAL_ROWS is not set; it names a folder with sciknoweval/{chemistry,physics} and tooluse")
    return Path(folder)
