"""Values as texts: the strict JSON that a call returns, and plain values on their way between two programs."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any


def _refuse(name: str) -> None:
    raise ValueError(f"{name[:64]} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:64]} is too large a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is repeated in an object")
    return result


STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
"""Reads JSON without NaN, infinities and doubled keys; else it raises ValueError, or RecursionError where the nesting
is too deep."""


def checked_json(data: bytes) -> str | None:
    """The text, if it is one JSON value without NaN, infinities, doubled keys or too deep nesting, else None."""
    try:
        text = data.decode()
        STRICT.decode(text)
    except (ValueError, RecursionError):
        return None
    return text


# ------------------------------------------------------------------ between a test and the program it tests

_CONTAINERS: dict[str, type[Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "iterator": Iterator,
    "keys": KeysView,
    "items": ItemsView,
    "values": ValuesView,
}
_MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "iterator": iter,
    "keys": lambda parts: dict.fromkeys(parts).keys(),
    "items": lambda parts: dict(parts).items(),
    "values": lambda parts: dict(enumerate(parts)).values(),
}
"""How a container is made of a list, where its type does not do that."""
_SMALL = 1 << 53


def encode(value: Any) -> Any:
    """A plain value as JSON that keeps its type: scalars as they are, others as lists that begin with the type.

    Values of subclasses become values of the plain type, arrays and numbers of numpy lists and numbers of Python.
    An iterator, such as a generator, is read to its end and becomes one over what it gave.

    Raises:
        TypeError: the value, or one in it, is not of a plain type.
    """
    if value is None or isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist())
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_SMALL < number < _SMALL else ["int", hex(number)]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", *([encode(key), encode(entry)] for key, entry in dict.items(value))]
    if isinstance(value, range):
        return ["range", *map(encode, (value.start, value.stop, value.step))]
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return [name, *map(encode, value)]
    raise TypeError(f"a value of type {type(value).__name__} cannot be compared")


def decode(value: Any) -> Any:
    """The plain value of what `encode` gave.

    Raises:
        ValueError: it is something else.
    """
    if value is None or type(value) in (bool, str, int):
        return value
    if type(value) is not list or not value or type(value[0]) is not str:
        raise ValueError("not an encoded value")
    try:
        return _decoded(value[0], value[1:])
    except (TypeError, OverflowError, IndexError) as error:
        raise ValueError(f"not an encoded value: {error}") from None


def _decoded(kind: str, parts: list[Any]) -> Any:
    if kind in _CONTAINERS:
        return _MAKERS.get(kind, _CONTAINERS[kind])([decode(part) for part in parts])
    if kind == "dict":
        return {decode(key): decode(entry) for key, entry in parts}
    if kind == "range":
        return range(*map(decode, parts))
    if kind == "int":
        return int(parts[0], 16)
    if kind == "float":
        return float.fromhex(parts[0])
    if kind == "complex":
        return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
    if kind == "bytes":
        return bytes.fromhex(parts[0])
    raise ValueError(f"no type {kind[:20]!r}")


def send(fd: int, value: Any) -> None:
    """Writes an encoded value to a stream: its length in eight bytes, and its text."""
    text = json.dumps(encode(value)).encode()
    data = memoryview(len(text).to_bytes(8, "little") + text)
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int, limit: int) -> Any:
    """Reads the next value of a stream.

    Raises:
        EOFError: the stream has ended.
        ValueError: what came is not an encoded value, or longer than `limit` bytes.
    """
    size = int.from_bytes(_read(fd, 8), "little")
    if size > limit:
        raise ValueError(f"a value of {size} bytes is longer than {limit}")
    try:
        return decode(json.loads(_read(fd, size), parse_constant=_refuse, parse_float=_refuse))
    except RecursionError:
        raise ValueError("a value is nested too deeply") from None


def _read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the program ended before its test")
        data += piece
    return bytes(data)
