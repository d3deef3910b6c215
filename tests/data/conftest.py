"""Makes the scripts of `data/` importable, as they are when run by path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
