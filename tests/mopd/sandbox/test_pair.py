"""Assert-style tests hold against whatever the program returns or does, and see what honest programs return."""

# ruff: noqa: E501 - a program reads best as it was written

import json

import pytest

from mopd.rewards.sandbox import values
from tests.mopd.sandbox.world import GENEROUS, LIMITS

TESTS = """
def check(candidate):
    assert candidate([1, 2]) == 3
    assert candidate([]) == 0
check(total)
"""
WITNESS = "# WITNESS-0123abcd\n" * 1000
HONEST = "def total(x): return sum(x)"

FORGERIES = {
    "equal to all": "class A:\n    def __eq__(self, other): return True\ndef total(x): return A()",
    "number that equals all": "class A(int):\n    def __eq__(self, other): return True\ndef total(x): return A(-1)",
    "exit": "import os\ndef total(x): os._exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "system exit": "def total(x): raise SystemExit(0)",
    "keyboard interrupt": "def total(x): raise KeyboardInterrupt",
    "own exception class": "class SystemExit(Exception): pass\ndef total(x): raise SystemExit(0)",
    "patched builtins": "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.isinstance = lambda *a: True\ndef total(x): return -1",
    "forged answers": "import os, json\nfor a in ('[\"list\", \"value\", 3]', '[]', '{}', '[\"tuple\", \"value\"]', 'x'):\n    os.write(3, len(a).to_bytes(8, 'little') + a.encode())\ndef total(x): return -1",
    "endless answer": "import os\nos.write(3, bytes([255]) * 8)\ndef total(x): return -1",
    "deep answer": "import os\na = b'[' * 100000\nos.write(3, len(a).to_bytes(8, 'little') + a)\ndef total(x): return -1",
    "closed link": "import os\nos.close(3)\ndef total(x): return 3",
    "half an answer": "import os\ndef total(x):\n    os.write(3, (100).to_bytes(8, 'little') + b'[')\n    os._exit(0)",
    "signals": "import os, signal\ntry: os.kill(-1, signal.SIGKILL)\nexcept OSError: pass\nfor p in range(2, 300):\n    if p != os.getpid():\n        try: os.kill(p, 9)\n        except OSError: pass\ndef total(x): return -1",
    "no function": "x = 1",
    "no program": "def (",
    "loop": "def total(x):\n    while True: pass",
    "sleep": "import time\ndef total(x): time.sleep(100)",
    "wrong": "def total(x): return 3",
    "looks for the tests": """
import gc, re, sys
def total(x):
    seen = [repr(o) for o in gc.get_objects()]
    frame = sys._getframe()
    while frame: seen.append(repr(frame.f_locals)); frame = frame.f_back
    if any(re.search('WITNESS-[0-9a-f]{8}', text) for text in seen): print('found')
    return -1
""",
    "scans its memory for the tests": """
import ctypes, re
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
libc.sbrk.argtypes = [ctypes.c_ssize_t]
def total(x):
    end = libc.sbrk(0)
    r = 0
    for page in range(end - (8 << 20), end, 4096):
        if re.search(b'WITNESS-[0-9a-f]{8}', ctypes.string_at(page, 4096)): print('found')
    return -1
""",
}  # fmt: skip


def test_an_honest_program_passes(sandbox):
    result = sandbox.pair(HONEST, TESTS, ["total"], GENEROUS)
    assert (result.status, result.exit_code, result.stderr) == ("ok", 0, b"")


@pytest.mark.parametrize("source", FORGERIES.values(), ids=FORGERIES.keys())
def test_no_forgery_passes(sandbox, source):
    result = sandbox.pair(source, TESTS + WITNESS, ["total"], LIMITS)
    assert result.status in ("error", "timeout")
    assert b"found" not in result.stdout
    assert sandbox.pair(HONEST, TESTS, ["total"], GENEROUS).status == "ok"


def test_plain_values_arrive_as_they_are(sandbox):
    tests = """
import math
x = [3, 1, 2]
assert f(x) == (10 ** 40, {3}, frozenset([1]), {(1, 2): b"a"}, None, True, "é\\udc80", 2.5, 1j, [[]])
assert x == [3, 1, 2]
y = {"a": [2, 1]}
assert order(x, y) is None and x == [1, 2, 3] and y == {"a": [1, 2]}
assert type(f(x)[5]) is bool and type(f(x)) is tuple
assert math.isnan(nan()) and f"{nan(minus=True)}" == "-inf"
assert counted("aab") == {"a": 2, "b": 1}
assert grid() == [[0, 1]]
"""
    program = """
import collections, numpy
def f(x):
    x.sort()
    print("noise")
    return 10 ** 40, {3}, frozenset([1]), {(1, 2): b"a"}, None, True, "é\\udc80", 2.5, 1j, [[]]
def order(x, y):
    x.sort()
    y["a"].sort()
def nan(minus=False): return -float("inf") if minus else float("nan")
def counted(x): return collections.Counter(x)
def grid(): return numpy.arange(2).reshape(1, 2)
"""
    result = sandbox.pair(program, tests, ["f", "nan", "counted", "grid", "order"], GENEROUS)
    assert result.status == "ok", result
    assert result.stdout == b"noise\n" * 3


def test_what_is_gone_through_arrives_as_such(sandbox):
    tests = """
x = gen(range(3))
assert next(x) == 0 and list(x) == [1, 4] and list(x) == []
assert list(mapped(iter("12"))) == [1, 2] and sum(filtered({1: 0, 2: 0}.keys())) == 2
assert view({"a": 1}, "keys") == {"a"} and list(view({"a": 1}, "values")) == [1]
assert list(view({"a": 1}, "items")) == [("a", 1)]
assert steps() == range(0, 10, 3) and len(steps()) == 4
assert line()[0] == 2 and line().popleft() == 2
"""
    program = """
from collections import deque
def gen(x):
    for y in x: yield y * y
def mapped(x): return map(int, x)
def filtered(x): return filter(lambda y: y > 1, x)
def view(x, name): return getattr(x, name)()
def steps(): return range(0, 10, 3)
def line(): return deque([2, 3])
"""
    result = sandbox.pair(program, tests, ["gen", "mapped", "filtered", "view", "steps", "line"], GENEROUS)
    assert result.status == "ok", result


def test_nothing_is_not_close_to_a_number(sandbox):
    pytest.importorskip("numpy")
    program = """
import numpy
def f(i): return [[], [[]], iter(()), numpy.zeros((0, 1)), {}, range(0)][i]
"""
    tests = """
import numpy as np
from numpy.testing import assert_allclose
def holds(check, i):
    try: return check(f(i), 3.5) is not False
    except (AssertionError, TypeError): return False
checks = [np.allclose, lambda a, b: np.isclose(a, [b]).all(), assert_allclose, np.testing.assert_almost_equal,
          np.testing.assert_array_almost_equal, np.testing.assert_array_equal]
assert not [(check, i) for check in checks for i in range(6) if holds(check, i)]
assert not [check for check in checks[1:] if not holds(lambda _, b: check(b, b), 0)]
"""
    result = sandbox.pair(program, tests, ["f"], GENEROUS)
    assert result.status == "ok", result


def test_numbers_and_nothing_are_close_to_themselves(sandbox):
    pytest.importorskip("numpy")
    tests = "import numpy as np\nassert np.allclose(f(3.5), 3.5 + 1e-9)\nassert np.allclose(f([]), [])\n"
    tests += "np.testing.assert_allclose(f([1.0, 2.0]), [1.0, 2.0], rtol=1e-7)"
    assert sandbox.pair("def f(x): return x", tests, ["f"], GENEROUS).status == "ok"


def test_who_returns_a_value_changes_nothing_that_it_is_compared_with(sandbox):
    result = sandbox.pair("def f(x):\n    x[:] = []\n    return []", "x = [1]\nassert f(x) == x", ["f"], GENEROUS)
    assert result.status == "error"


def test_exceptions_arrive_by_their_type(sandbox):
    tests = """
def raises(kind, *a):
    try: f(*a)
    except kind as error: return str(error)
    raise SystemExit(f"no {kind}")
assert raises(ValueError, 1) == "one"
assert raises(KeyError, 2) == "'two'" or True
assert raises(RuntimeError, 3) == "Own: three"
assert raises(TypeError)
assert raises(ZeroDivisionError, 0)
"""
    program = """
class Own(Exception): pass
def f(x):
    if x == 1: raise ValueError("one")
    if x == 2: raise KeyError("two")
    if x == 3: raise Own("three")
    return 1 / x
"""
    result = sandbox.pair(program, tests, ["f"], GENEROUS)
    assert result.status == "ok", result
    assert b"ValueError: one" in result.stderr


def test_what_the_tests_say_stays_with_them(sandbox):
    result = sandbox.pair("def f(): return 1", "print('gold')\nassert f() == 2, 'gold'", ["f"], LIMITS)
    assert result.status == "error"
    assert b"gold" not in result.stdout + result.stderr


# ------------------------------------------------------------------ values as texts


@pytest.mark.parametrize("value", [0, -1, 1 << 60, -(1 << 5000), 0.1, float("inf"), "", "\udc80\x00", b"\xff", (), [()],
                                   {1: {2: set()}}, frozenset([(1,)]), None, False, 1 + 2j])  # fmt: skip
def test_a_value_returns_from_its_text(value):
    back = values.decode(json.loads(json.dumps(values.encode(value))))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", '["set", ["list"]]', '["dict", ["list"]]', '["int", "x"]',
                                  '["float", 1]', '["range", 1.5]', '["range", "a"]', '["keys", ["list"]]', '["items", 1]', '["eval", "1"]', '["bytes", "x"]', '["complex", "1"]', "1.5"])  # fmt: skip
def test_what_is_no_value_is_refused(text):
    with pytest.raises(ValueError):
        values.decode(json.loads(text))


@pytest.mark.parametrize("data", [b"", b"NaN", b"[Infinity]", b"-1e999", b'{"a": 1, "a": 1}', b"[1", b"1 2", b"\xff",
                                  b"[" * 100_000 + b"]" * 100_000, b"9" * 5000])  # fmt: skip
def test_what_is_no_strict_json_is_refused(data):
    assert values.checked_json(data) is None


def test_strict_json_is_kept():
    assert values.checked_json('{"a": [1.5, null, "é"]}'.encode()) == '{"a": [1.5, null, "é"]}'
