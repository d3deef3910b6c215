"""Tests that are Python code, from the response to the verdict, and programs that try to pass them unfairly."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mopd.rewards import settings
from mopd.rewards.code import verify
from mopd.rewards.settings import RewardSettings
from mopd.types import Outcome

RIGHT = Outcome.of(True)
TRAIN = {"split": "train"}


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def truth(*tests: str, name: str | None = None, **more: object) -> str:
    return json.dumps({"inputs": list(tests), "outputs": [""] * len(tests), "testtype": "code", "fn_name": name} | more)


COMPARISONS = truth("assert f(1, [2]) == [1, 2]\nassert f(b=[], a=3) == [3]")

# As EvalPlus writes the tests of HumanEval ...
CHECKED = """
def is_floats(x) -> bool:
    return isinstance(x, float) or (isinstance(x, (list, tuple)) and len(x) > 0 and all(map(is_floats, x)))

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert abs(out - exp) <= atol
    else:
        assert out == exp, f"out: {out}, exp: {exp}"

def check(candidate):
    inputs = [[(1, 2), 3], [(), 0.5]]
    results = [(1, 2, 3), (0.5,)]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""
# ... and of MBPP.
LOOPED = (
    CHECKED.partition("def check")[0]
    + """
inputs = [[(1, 2), 3], [(), 0.5]]
results = [(1, 2, 3), (0.5,)]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(f(*inp), exp, 0)
"""
)
FORMS = {
    "comparisons": truth("assert f((1, 2), 3) == (1, 2, 3)\nassert f((), 0.5) == (0.5,)"),
    "check, not called": truth(CHECKED, name="f"),
    "check, called": truth(f"{CHECKED}\ncheck(f)"),
    "loop": truth(LOOPED, name="f"),
    "mapped": truth(
        "assert len([1 for out, exp in zip(map(f, [(1, 2), ()], [3, 0.5]), [(1, 2, 3), (0.5,)]) if out == exp]) == 2\n"
        "assert all(map(lambda xs, x: f(xs, x) == xs + (x,), [(1, 2), ()], [3, 0.5]))"
    ),
    "several": truth("assert f((), 1) == (1,)", CHECKED, name="f"),
}


@pytest.fixture
def trusting() -> Iterator[None]:
    before = settings.current()
    settings.configure(RewardSettings(trust_assertions=True))
    yield
    settings.configure(before)


def test_comparisons_are_made_outside() -> None:
    assert verify(fenced("def f(a, b): return [a, *b]"), COMPARISONS, TRAIN) == RIGHT
    assert verify(fenced("f = lambda a, b: (a, *b)"), COMPARISONS, TRAIN) == RIGHT
    outcome = verify(fenced("def f(a, b): return b"), COMPARISONS, TRAIN)
    assert outcome.feedback.startswith("Test Case 1: Wrong Answer\nInput:\n1\n[2]\nOutput:\n[2]")
    assert (
        verify(
            fenced("def f(a, b): return [a, *b]"), truth("assert f(1, [2]) == [1, 2]", "assert f(1, []) == []")
        ).reward
        == 0
    )


def test_comparisons_count_truth_values_as_python_does() -> None:
    assert verify(fenced("def f(): return 1"), truth("assert f() == True")) == RIGHT
    assert verify(fenced("def f(): return 1.0"), truth("assert f() == 1")) == RIGHT
    assert verify(fenced("def f(): return 0.1 + 0.2"), truth("assert f() == 0.3")).status == "wrong"


def test_functions_may_remember_what_they_were_called_with() -> None:
    counter = "n = 0\ndef f():\n  global n\n  n += 1\n  return n\ndef g(): return n"
    assert verify(fenced(counter), truth("assert f() == 1\nassert f() == 2"), TRAIN) == RIGHT
    assert verify(fenced(counter), truth("assert f() == 1\nassert g() == 1"), TRAIN) == RIGHT


FORGERIES = {
    "leaves at once": "import os\nos._exit(0)",
    "leaves in the call": "import os\ndef f(*a, **k): os._exit(0)",
    "exits at once": "import sys\nsys.exit()",
    "exits in the call": "import sys\ndef f(*a, **k): sys.exit(0)",
    "raises its exit": "def f(*a, **k): raise SystemExit(0)",
    "raises the end of a loop": "def f(*a, **k): raise StopIteration",
    "leaves at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(*a, **k): return None",
    "leaves in the hook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef f(*a, **k): return None",
    "equals everything": "class A:\n  def __eq__(self, o): return True\n  def __ne__(self, o): return False\n"
    "  def __sub__(self, o): return 0\n  def __abs__(self): return 0\ndef f(*a, **k): return A()",
    "is a tuple that equals everything": "class A(tuple):\n  def __eq__(self, o): return True\n"
    "  def __ne__(self, o): return False\ndef f(*a, **k): return A()",
    "is a list that equals everything": "class A(list):\n  def __eq__(self, o): return True\n"
    "  def __ne__(self, o): return False\ndef f(*a, **k): return A()",
    "replaces functions": "import builtins\nbuiltins.zip = builtins.enumerate = lambda *a: []\n"
    "builtins.AssertionError = Warning\nbuiltins.isinstance = builtins.abs = builtins.all = lambda *a: True\n"
    "def f(*a, **k): return None",
    "defines functions of the test": "def zip(*a): return []\nenumerate = assertion = zip\n"
    "def check(*a): pass\ndef isinstance(*a): return True\ndef f(*a, **k): return None",
    "changes the results": "import sys\ndef f(*a, **k):\n  frame = sys._getframe()\n  while frame:\n"
    "    for v in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
    "      if type(v) is list: v.clear()\n    frame = frame.f_back",
    "prints what a judge might": "print('PASSED')\nprint('OK')\nprint('{\"status\": \"ok\", \"reward\": 1}')\n"
    "def f(*a, **k): print('ok')",
    "writes everywhere": "import os\ndef f(*a, **k):\n  for fd in range(64):\n    try: os.write(fd, b'[\"ok\"]\\n')\n"
    "    except OSError: pass",
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_comparisons_cannot_be_forged(forgery: str) -> None:
    outcome = verify(fenced(FORGERIES[forgery]), COMPARISONS, {"split": "test"})
    assert (outcome.reward, outcome.status) == (0.0, "wrong")


# ------------------------------------------------------------------ assertions in a process of their own


@pytest.mark.parametrize("form", FORMS)
def test_good_functions_pass(form: str) -> None:
    assert verify(fenced("def f(xs, x): return (*xs, x)"), FORMS[form], TRAIN) == RIGHT
    assert verify(fenced("def g(x): return (x,)\ndef f(xs, x): return xs + g(x)"), FORMS[form], TRAIN) == RIGHT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "program",
    [
        "def f(xs, x): return xs",
        "def f(xs, x): return [*xs, x]",
        "def f(x): return x",
        "def g(): pass",
        "f = 3",
        "def f(",
    ],
)
def test_bad_functions_fail(form: str, program: str) -> None:
    outcome = verify(fenced(program), FORMS[form], TRAIN)
    assert (outcome.reward, outcome.status) == (0.0, "wrong")
    assert outcome.feedback


@pytest.mark.parametrize("form", ["check, not called", "loop", "mapped"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_assertions_cannot_be_forged(form: str, forgery: str) -> None:
    outcome = verify(fenced(FORGERIES[forgery]), FORMS[form], TRAIN)
    assert (outcome.reward, outcome.status) == (0.0, "wrong")


def test_other_assertions_about_functions() -> None:
    tests = """
import math
assert math.isclose(f(2.0), 2 ** 0.5, rel_tol=1e-9)
assert f(4) is not None and not f(0)
assert {f(x) for x in (1, 4)} == {1, 2}
try:
    f(-1)
except ValueError:
    pass
else:
    raise AssertionError("no error")
"""
    assert verify(fenced("import math\ndef f(x): return math.sqrt(x)"), truth(tests), TRAIN) == RIGHT
    assert verify(fenced("def f(x): return x ** 0.5"), truth(tests), TRAIN).status == "wrong"


def test_assertions_that_run_too_long_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mopd.rewards.code.LEAST_SECONDS", 0.3)
    outcome = verify(fenced("def f(*a):\n  while True: pass"), truth(CHECKED, name="f", time_limit=0.1), TRAIN)
    assert outcome == Outcome.of(False, "Time Limit Exceeded")


def test_feedback_shows_nothing_of_the_assertions() -> None:
    tests = "assert f(1) == {'golden'}, 'golden'"
    for program in ["def f(x): return x", "def f(x): return 1 // 0", "def f(): pass", "def g(): pass"]:
        outcome = verify(fenced(program), truth(tests), TRAIN)
        assert outcome.status == "wrong"
        assert outcome.feedback
        assert "golden" not in outcome.feedback
    assert verify(fenced("def f(x): return x"), truth(tests)).feedback == "Test Case 1: Wrong Answer"
    crashed = verify(fenced("def g(x):\n  return 1 // x\nf = lambda x: g(0)"), truth(tests, context="import math"))
    assert crashed.feedback == (
        "Runtime Error\nZeroDivisionError: integer division or modulo by zero\nline 3, in <lambda>\nline 2, in g"
    )
    odd = verify(fenced("def f(x): return object()"), truth(tests))
    assert odd.feedback == "Runtime Error\nTypeError: a value of type object cannot be compared"
    assert "SyntaxError" in verify(fenced("def f(x: return"), truth(tests)).feedback
    assert verify(fenced("def f(x): return {'golden'}"), truth(tests)) == RIGHT


# ------------------------------------------------------------------ objects of the program

STACK = """
class Stack:
    def __init__(self):
        self.xs = []
    def push(self, x):
        self.xs.append(x)
    def pop(self):
        return self.xs.pop()
"""
OBJECTS = truth("stack = Stack()\nstack.push(3)\nassert stack.pop() == 3")


def test_objects_are_judged_in_evaluation_only() -> None:
    for info in (TRAIN, {"split": None}, {}, None):
        outcome = verify(fenced(STACK), OBJECTS, info)
        assert (outcome.reward, outcome.status) == (None, "unknown")
        assert "own Stack" in outcome.feedback
        assert "trust_assertions" in outcome.feedback
    assert verify(fenced(STACK), OBJECTS, {"split": "test"}) == RIGHT
    wrong = verify(fenced(STACK.replace("pop()", "pop('')")), OBJECTS, {"split": "test"})
    assert wrong == Outcome.of(False, "Runtime Error\nTypeError")
    wrong = verify(fenced(STACK.replace("pop()", "pop")), OBJECTS, {"split": "test"})
    assert wrong == Outcome.of(False, "Test Case 1: Wrong Answer")


@pytest.mark.usefixtures("trusting")
def test_the_user_may_trust_assertions_in_training() -> None:
    assert verify(fenced(STACK), OBJECTS, TRAIN) == RIGHT


@pytest.mark.parametrize("forgery", ["leaves at once", "exits at once", "leaves at exit", "prints what a judge might"])
def test_ending_early_passes_nothing_even_where_objects_are_trusted(forgery: str) -> None:
    program = f"class Stack:\n  pop = push = lambda self, *x: None\n{FORGERIES[forgery]}"
    assert verify(fenced(program), OBJECTS, {"split": "test"}).status == "wrong"
    for ending in ("os._exit(0)", "sys.exit(0)"):
        program = f"import os, sys\nclass Stack:\n  def push(self, x): {ending}"
        assert verify(fenced(program), OBJECTS, {"split": "test"}).status == "wrong"


def test_a_class_in_place_of_the_named_function_is_called_as_a_function() -> None:
    """Else a program could escape its verdict by a class of that name."""
    program = "class f:\n  def __new__(cls, xs, x): return (*xs, x)"
    assert verify(fenced(program), FORMS["loop"], TRAIN) == RIGHT
    assert verify(fenced("class f:\n  def __init__(self, *x): pass"), FORMS["loop"], TRAIN).status == "wrong"


@pytest.mark.parametrize(
    "tests",
    ["assert all(map(f, (1, 2)))", "for out, exp in zip(map(f, (1, 2)), (1, 2)):\n    assert out == exp"],
)
def test_a_program_cannot_end_the_loops_of_its_test(tests: str) -> None:
    program = "def f(x): raise StopIteration"
    assert verify(fenced(program), truth(tests), TRAIN).status == "wrong"


def test_a_program_cannot_change_what_its_test_expects() -> None:
    tests = "def ref(xs): return sum(xs)\nfor inp in [[[1, 2]], [[4]]]:\n    assert f(*inp) == ref(*inp)"
    assert verify(fenced("def f(xs):\n  xs.clear()\n  return 0"), truth(tests), TRAIN).status == "wrong"
    in_place = "xs = [(3,), (1,)]\nf(xs)\nassert xs == [(1,), (3,)]"
    assert verify(fenced("def f(xs): xs.sort()"), truth(in_place), TRAIN) == RIGHT
