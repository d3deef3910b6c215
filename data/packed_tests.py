"""The hidden tests of LiveCodeBench, which are packed as base64 of zlib of a pickle of JSON text.

A pickle is a program, and loading one that was downloaded runs it. Here nothing is unpickled: the one thing that
such a pickle may hold, a single text, is read from its operations, and everything else is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

MIB = 1 << 20
LARGEST_PACKED = 256 * MIB
"""Characters of base64 that are accepted."""
LARGEST_UNPACKED = 1024 * MIB
"""Bytes that they may unpack to; a kilobyte of zlib can hold a megabyte of zeros."""

BEGIN = {"PROTO", "FRAME"}
TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
AFTER = {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}
"""The operations of a pickled text, in the order in which they come before STOP."""


def read_packed(packed: str) -> list[dict[str, Any]]:
    """The tests: objects with `input`, `output` and `testtype`. Plain JSON text is read as well.

    Raises:
        ValueError: `packed` is neither, or holds something else, or unpacks to more than `LARGEST_UNPACKED` bytes.
    """
    text = packed if packed.lstrip()[:1] in ("[", "{") else pickled_text(unpack(packed))
    try:
        tests = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tests are not JSON: {error}") from None
    if not isinstance(tests, list) or not all(is_test(test) for test in tests):
        raise ValueError("the tests must be a list of objects with texts `input`, `output` and `testtype`")
    return tests


def is_test(test: Any) -> bool:
    """Whether something is a test of LiveCodeBench."""
    names = ("input", "output", "testtype")
    return isinstance(test, dict) and all(isinstance(test.get(name), str) for name in names)


def unpack(packed: str) -> bytes:
    """base64, then zlib.

    Raises:
        ValueError: it is not that, is cut short, or is too large on either side.
    """
    if len(packed) > LARGEST_PACKED:
        raise ValueError(f"the packed tests have {len(packed)} characters; at most {LARGEST_PACKED} are accepted")
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(packed, validate=True), LARGEST_UNPACKED + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"the packed tests are not base64 of zlib: {error}") from None
    if len(data) > LARGEST_UNPACKED:
        raise ValueError(f"the packed tests unpack to more than {LARGEST_UNPACKED} bytes")
    if not stream.eof or stream.unused_data:
        raise ValueError("the packed tests are not one whole zlib stream")
    return data


def pickled_text(data: bytes) -> str:
    """The text that a pickle of a single text holds; runs nothing.

    Raises:
        ValueError: the pickle holds anything else, or is followed by something.
    """
    stage = 0
    text: str | None = None
    order = (BEGIN, TEXTS, AFTER)
    try:
        for operation, argument, position in pickletools.genops(data):
            if operation.name == "STOP" and text is not None and position == len(data) - 1:
                return text
            stage = next((later for later in range(stage, 3) if operation.name in order[later]), 3)
            if stage == 3 or (stage == 1 and text is not None):
                raise ValueError(f"the pickle has {operation.name} at byte {position}; only a single text is read")
            text = argument if stage == 1 else text
    except (ValueError, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"the packed tests are not a pickled text: {error}") from None
    raise ValueError("the packed tests are not a pickled text: it does not end where it should")
