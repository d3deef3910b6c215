"""Runs one program in the process made for it, as Python runs a script, to its end."""

from __future__ import annotations

import atexit
import builtins
import io
import json
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

_FILE = "solution.py"
_OURS = os.path.dirname(__file__)


def run(source: bytes, call_text: bytes, value_fd: int) -> int:
    """The exit status of a program, after all that Python does at the end of a script.

    Args:
        source: the program; it runs as `__main__`, or as an imported module where there is a call.
        call_text: JSON of the `name`, `arguments` and `kwargs` of a `types.Call`, or null for none.
        value_fd: where the JSON text of the returned value goes.
    """
    call: dict[str, str] | None = json.loads(call_text)
    module = types.ModuleType("solution" if call else "__main__")
    sys.modules[module.__name__] = module
    module.__dict__.update(__builtins__=builtins, __file__=_FILE)
    dump, write = json.dumps, os.write  # taken before the program could replace them by mistake

    def body() -> None:
        exec(compile(source, _FILE, "exec", dont_inherit=True), module.__dict__)
        if call is not None:
            value = find(module, call["name"])(*json.loads(call["arguments"]), **json.loads(call["kwargs"]))
            text = dump(value, allow_nan=False, default=_plain).encode()
            while text:
                text = text[write(value_fd, text) :]

    return finish(guarded(body, source), module)


def find(module: types.ModuleType, name: str) -> Callable[..., Any]:
    """The function of this name: a method of a new `Solution`, else a name of the module.

    Raises:
        AttributeError: there is neither.
    """
    solution: Any = getattr(module, "Solution", None)
    function: Callable[..., Any] = getattr(solution() if hasattr(solution, name) else module, name)
    return function


def guarded(body: Callable[[], None], source: bytes) -> int:
    """Runs `body`; the exit status that Python would give, with the traceback on standard error."""
    try:
        body()
    except SystemExit as exit_:
        return _status_of(exit_)
    except BaseException as error:
        report(error, source)
        return 1
    return 0


def _status_of(exit_: SystemExit) -> int:
    if exit_.code is None or isinstance(exit_.code, int):
        return (exit_.code or 0) & 0xFF
    print(exit_.code, file=sys.stderr)
    return 1


def report(error: BaseException, source: bytes) -> None:
    """Prints the traceback without the frames of this folder, by the program's own hook if it has one."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    error = error.with_traceback(trace)
    try:
        lines = source.decode(errors="replace").splitlines(keepends=True)
        linecache.cache[_FILE] = (len(source), None, lines, _FILE)
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(error)
        else:
            sys.excepthook(type(error), error, trace)
    except BaseException:  # for instance memory still full, or no standard error left
        os.write(2, f"{type(error).__name__}\n".encode())


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as those of Python."""
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} cannot be compared")


def finish(status: int, module: types.ModuleType) -> int:
    """Waits for threads, runs exit handlers and flushes, as Python does at its end; the final exit status."""
    try:
        getattr(threading, "_shutdown")()  # noqa: B009 - private, and the one way to wait as Python waits
        getattr(atexit, "_run_exitfuncs")()  # noqa: B009
    except BaseException as error:
        report(error, b"")
    files = [value for value in list(module.__dict__.values()) if isinstance(value, io.IOBase)]
    is_flushed = flush(*files, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return status if is_flushed else status or 120


def flush(*streams: Any) -> bool:
    """Writes out what streams hold back; whether that worked for all that are open."""
    is_flushed = True
    for stream in streams:
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except BaseException:
            is_flushed = False
    return is_flushed
