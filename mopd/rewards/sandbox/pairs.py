"""Assert-style tests in a process of their own: the program that they test only ever sees their calls."""

from __future__ import annotations

import builtins
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from mopd.rewards.sandbox import program, values


def run_tests(tests: bytes, names: list[str], link: int, limit: int) -> int:
    """Runs tests against the program at the other end of `link`; the exit status: 0 if nothing was raised.

    Args:
        tests: a script that uses the functions `names` as if they were its own.
        names: functions of the program.
        link: the stream between both.
        limit: bytes of one value.
    """
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    module.__dict__.update({name: _proxy(name, link, limit) for name in names}, __builtins__=builtins)

    def body() -> None:
        _refuse_empty_arrays(tests)
        exec(compile(tests, "tests.py", "exec", dont_inherit=True), module.__dict__)

    return program.finish(program.guarded(body, tests), module)


_COMPARING = {
    "numpy": ("isclose", "allclose"),
    "numpy.testing": (
        "assert_allclose",
        "assert_almost_equal",
        "assert_array_almost_equal",
        "assert_array_equal",
        "assert_equal",
    ),
}


def _refuse_empty_arrays(tests: bytes) -> None:
    """Makes numpy's comparisons fail on an empty array beside a full one: to numpy, [] is close to every number."""

    def strict(function: Callable[..., Any], size: Callable[[Any], int]) -> Callable[..., Any]:
        def compare(left: Any, right: Any, *arguments: Any, **kwargs: Any) -> Any:
            if (size(left) == 0) != (size(right) == 0):
                raise AssertionError("an empty array is compared with another")
            return function(left, right, *arguments, **kwargs)

        return compare

    for place, names in _COMPARING.items():
        # Importing takes longer than most tests: only what they mention.
        if not all(part.encode() in tests for part in place.split(".")):
            continue
        module, size = importlib.import_module(place), importlib.import_module("numpy").size
        for name in names:
            setattr(module, name, strict(getattr(module, name), size))


def _proxy(name: str, link: int, limit: int) -> Callable[..., Any]:
    """A function that calls the program's function of this name, and changes the arguments that it changed."""

    def call(*arguments: Any, **kwargs: Any) -> Any:
        values.send(link, [name, arguments, kwargs])
        kind, value, changed = values.receive(link, limit)
        if kind != "value":
            raise _exception(str(kind), str(value))
        # What sorts in place returns nothing; who returns a value has no business with what the test compares it with.
        for before, after in zip(arguments, changed if value is None else [], strict=False):
            _change(before, after)
        return value

    return call


def _exception(name: str, message: str) -> Exception:
    """The exception of this name if Python has one, so that tests may expect it; never one that ends the tests."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, StopIteration):
        return RuntimeError(f"{name}: {message}")
    try:
        return kind(message)
    except TypeError:
        return RuntimeError(f"{name}: {message}")


def _change(before: Any, after: Any) -> None:
    if type(before) is not type(after):
        return
    if isinstance(before, list):
        before[:] = after
    elif isinstance(before, (dict, set)):
        before.clear()
        before.update(after)


def serve(source: bytes, link: int, limit: int) -> int:
    """Runs a program, then answers calls of its functions until the tests end; the exit status."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    module.__dict__.update(__builtins__=builtins, __file__="solution.py")

    def body() -> None:
        exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
        while True:
            _answer(module, source, link, limit)

    return program.guarded(body, source)


def _answer(module: types.ModuleType, source: bytes, link: int, limit: int) -> None:
    try:
        name, arguments, kwargs = values.receive(link, limit)
    except EOFError:
        raise SystemExit(0) from None
    try:
        value = program.find(module, name)(*arguments, **kwargs)
        program.flush(sys.stdout, sys.__stdout__)  # this process will not end by itself
        values.send(link, ["value", value, _changeable(arguments)])
    except Exception as error:
        program.report(error, source)
        values.send(link, [type(error).__name__, str(error)[:1000], []])


def _changeable(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments that a call can have changed; None for the others."""
    return [argument if type(argument) in (list, dict, set) else None for argument in arguments]
