"""No search for garbage while there is none: importing makes a million objects that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage meanwhile, and later none in what has been made meanwhile.

    To look through the same objects again and again is a third of the time that libraries take to load.
    """
    former = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if former:
            gc.enable()
