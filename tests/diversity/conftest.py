"""Makes the scripts of `diversity/` importable, as they are when run by path."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "diversity"))


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSON Lines into a file of this name, and returns it."""

    def write_rows(name, rows):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write_rows
