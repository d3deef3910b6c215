"""Runs a user's reward function in a process of its own: a request per line on stdin, an answer per line on stdout.

    python -P custom_worker.py FILE NAME

Started by `mopd.rewards.custom`; imports nothing of the project, so that whatever the user's file does to this
process stays here. The first line out is `{"ready": true}`, or `{"failed": why}` where the function cannot be used.
After it, `{"data_source", "solution_str", "ground_truth", "extra_info"}` is answered by `{"result": value}`, by
`{"invalid": what it was}` for a value that JSON cannot hold, or by `{"error": last line, "traceback": all}`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
KEPT = ("score", "acc", "feedback")
"""What is read of a dictionary; whatever else the function tells is left out."""
PR_SET_PDEATHSIG = 1


class NotPlainError(TypeError):
    """A value that is neither text, number, truth value nor None."""


def load(path: str, name: str) -> Callable[..., Any]:
    """The function `name` of the Python file `path`, whose folder is searched by its imports.

    Raises:
        ValueError: there is none, or it cannot be called as rewards are.
    """
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location("custom_reward_function", path)
    if spec is None or spec.loader is None:
        raise ValueError("is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"has no function {name}")
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{name} is async; it must be a plain function")
    signature = None
    with contextlib.suppress(ValueError, TypeError):  # some callables written in C do not tell theirs
        signature = inspect.signature(function)
    try:
        if signature is not None:
            signature.bind(**dict.fromkeys(ARGUMENTS))
    except TypeError as error:
        raise ValueError(
            f"{name}{signature} cannot be called as {name}({', '.join(f'{a}=...' for a in ARGUMENTS)}) ({error})"
        ) from None
    return function  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """A value as JSON has it; numbers of numpy and torch become Python's.

    Raises:
        NotPlainError: JSON cannot hold it.
    """
    if isinstance(value, Mapping):
        return {key: plain(value[key]) for key in KEPT if key in value}
    if not isinstance(value, (bool, int, float, str, type(None))) and getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, (bool, int, float, str, type(None))):
        length = f" of length {len(value)}" if hasattr(value, "__len__") else ""
        raise NotPlainError(f"a {type(value).__name__}{length}")
    return value


def answered(function: Callable[..., Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """What the function makes of one request."""
    try:
        return {"result": plain(function(**{name: request[name] for name in ARGUMENTS}))}
    except NotPlainError as error:
        return {"invalid": str(error)}
    # Whatever the user's function raises, sys.exit included, is told and not passed on.
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def serve(path: str, name: str) -> None:
    """Loads the function and answers until stdin ends."""
    # The function's own prints go to stderr, and it may read stdin: neither may disturb the conversation.
    requests = os.fdopen(os.dup(0), encoding="utf-8", errors="surrogatepass")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        function = load(path, name)
    except BaseException as error:
        why = str(error) if type(error) is ValueError else f"cannot be imported ({type(error).__name__}: {error})"
        print(json.dumps({"failed": why}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in requests:
        print(json.dumps(answered(function, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    # Whoever asks may be killed; nobody is to go on for them.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    serve(*sys.argv[1:])
