"""Folders that are nobody's yet."""

from __future__ import annotations

import os
from pathlib import Path


def fresh(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3, ... that is not there."""
    number, candidate = 1, folder
    while os.path.lexists(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
