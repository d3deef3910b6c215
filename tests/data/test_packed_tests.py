"""Hidden tests of LiveCodeBench are read without running what they are packed in."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import packed_tests
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_tests import pickled_text, read_packed

TESTS = [{"input": "é 1\n", "output": "2\n", "testtype": "stdin"}]


def pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("count", [1, 500])
def test_every_protocol_is_read(protocol: int, count: int) -> None:
    for escaped in (True, False):
        text = json.dumps(TESTS * count, ensure_ascii=escaped)
        assert read_packed(pack(pickle.dumps(text, protocol=protocol))) == TESTS * count


@settings(deadline=None)
@given(st.text(), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_any_text_comes_back(text: str, protocol: int) -> None:
    assert pickled_text(pickle.dumps(text, protocol=protocol)) == text


def test_plain_json_is_read() -> None:
    assert read_packed(json.dumps(TESTS)) == TESTS


class Call:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    for thing in (Call(tmp_path / "made"), [json.dumps(TESTS), Call(tmp_path / "made")]):
        with pytest.raises(ValueError, match="only a single text is read"):
            read_packed(pack(pickle.dumps(thing, protocol=protocol)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("thing", [TESTS, b"[]", 5, None, ("a", "b"), {"a": "b"}, print, 1.5, True])
def test_anything_but_a_text_is_refused(thing: object) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(ValueError, match="not a pickled text"):
            pickled_text(pickle.dumps(thing, protocol=protocol))


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_noise_is_refused_or_read_as_unpickling_would(noise: bytes) -> None:
    for data in (noise, pickle.dumps("[]") + noise + b".", pickle.dumps("[]" * 9)[:-1] + noise):
        text = None
        with contextlib.suppress(ValueError):
            text = pickled_text(data)
        assert text is None or pickle.loads(data) == text


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ("!!!", "not base64 of zlib"),
        (base64.b64encode(b"not zlib").decode(), "not base64 of zlib"),
        (pack(pickle.dumps("[]"))[:-12] + "AAAA", "zlib"),
        (base64.b64encode(zlib.compress(pickle.dumps("[]")) + b"more").decode(), "not one whole zlib stream"),
        (pack(pickle.dumps("[")), "not JSON"),
        (pack(pickle.dumps("[" * 100_000)), "not JSON"),
        (pack(pickle.dumps('{"a": 1}')), "must be a list of objects"),
        (pack(pickle.dumps('[{"input": 1, "output": "2", "testtype": "stdin"}]')), "must be a list of objects"),
        ('["x"]', "must be a list of objects"),
    ],
)
def test_what_is_not_packed_tests_is_refused(packed: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_packed(packed)


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = pack(b"0" * (8 << 20))
    assert len(bomb) < 20_000
    monkeypatch.setattr(packed_tests, "LARGEST_UNPACKED", 1 << 20)
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        read_packed(bomb)
    monkeypatch.setattr(packed_tests, "LARGEST_PACKED", 100)
    with pytest.raises(ValueError, match="at most 100 are accepted"):
        read_packed(bomb)
