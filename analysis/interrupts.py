"""Imported before the libraries that take seconds to load: whoever interrupts a command then sees no traceback.

The interpreter still ends as one does that was interrupted: a shell sees exit code 130.
"""

from __future__ import annotations

import sys
from types import TracebackType


def told(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Prints an error that nobody caught, and of an interruption nothing but the fact."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = told
