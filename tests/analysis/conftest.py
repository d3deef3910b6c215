"""Makes the scripts of `analysis/` importable, as they are when run by path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))
