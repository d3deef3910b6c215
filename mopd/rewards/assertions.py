"""Tests that are Python code: what they want from a program, and which of them are plain comparisons."""

from __future__ import annotations

import ast
import builtins
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BUILTINS = frozenset(dir(builtins)) | {"__file__", "__name__"}


def wanted_names(code: ast.Module, function: str = "") -> frozenset[str]:
    """The names that test code wants from the program: `function`, and all that it reads and does not bind itself.

    A built-in is never wanted unless it is `function`: else a program could define a `zip` that ends the loop of
    the test before it begins. Where the code imports with a star, what else it reads cannot be told, and `function`
    alone is wanted.
    """
    nodes = list(ast.walk(code))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    if function and any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in nodes):
        return frozenset({function})
    return frozenset((read - _bound(nodes) - BUILTINS) | ({function} if function else set()))


def _bound(nodes: Sequence[ast.AST]) -> set[str]:
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    names |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    imported = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return names | {(alias.asname or alias.name).partition(".")[0] for alias in imported}


@dataclass(frozen=True)
class Comparison:
    """`assert f(arguments, **keywords) == expected`, where all values can be written as JSON without loss."""

    function: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    expected: Any


def comparisons(code: ast.Module, names: frozenset[str]) -> tuple[Comparison, ...] | None:
    """The comparisons that test code consists of, beside imports and docstrings; None where it does anything else.

    They can be made outside the process of the program, which then has nothing to forge. A tuple, a set or a key
    that is no text cannot be written as JSON, so code that has one is left as it is. So is code that calls several
    functions, or expects different results of one call: each call is made in a fresh process, and such functions
    may have something to remember.
    """
    found: list[Comparison] = []
    for statement in code.body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
            continue
        comparison = _comparison(statement, names)
        if comparison is None:
            return None
        found.append(comparison)
    calls = {(one.function, repr(one.arguments), repr(one.keywords)) for one in found}
    results = {(one.function, repr(one.arguments), repr(one.keywords), repr(one.expected)) for one in found}
    one_function = len({one.function for one in found}) == 1
    return tuple(found) if one_function and len(calls) == len(results) else None


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _comparison(statement: ast.stmt, names: frozenset[str]) -> Comparison | None:
    match statement:
        case ast.Assert(
            test=ast.Compare(
                left=ast.Call(func=ast.Name(id=function), args=args, keywords=keywords),
                ops=[ast.Eq()],
                comparators=[expected],
            )
        ) if function in names:
            pass
        case _:
            return None
    try:
        arguments = tuple(_plain(argument) for argument in args)
        named = {keyword.arg: _plain(keyword.value) for keyword in keywords if keyword.arg}
        wanted = _plain(expected)
    except (ValueError, RecursionError, MemoryError):
        return None
    if len(named) < len(keywords):  # one of them is `**values`
        return None
    return Comparison(function, arguments, named, wanted)


def _plain(node: ast.expr) -> Any:
    """The value of a literal that JSON can hold without loss.

    Raises:
        ValueError: it is another expression, or holds what JSON cannot.
    """
    value = ast.literal_eval(node)
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict):
            pending.extend(part.values())
            if not all(isinstance(key, str) for key in part):
                raise ValueError("a key that is no text")
        elif not (part is None or isinstance(part, bool | int | str) or _is_finite(part)):
            raise ValueError("no JSON value")
    return value


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
