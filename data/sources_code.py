"""Programming sources: LiveCodeBench, Codeforces, CodeElo, EvalPlus and the verifiable corpus.

The ground truth of a task is its `tests`: a JSON object with `inputs`, `outputs`, `testtype` (stdin: what a program
reads and prints; functional: arguments, one JSON value per line, and the returned JSON value; code: assertions that
run after the program), `fn_name`, `time_limit` in seconds and optionally `context`, code that stands before the answer.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from packed_tests import read_packed
from records import MISSING, is_given
from sources_base import ELO, Row, Source, Task, text_of

CODE_REQUEST = (
    "You are a coding expert. You will be given a programming problem; write a Python program that solves it. "
    "The time limit is {limit}. Reason step by step first, and give the whole program in one ```python code block at "
    "the end of your response.\n\n"
)
FIRST_DAY, DAY_AFTER = "2025-02-01", "2025-05-01"
"""Contests of the published LiveCodeBench v6 rows: from the first day to before the second."""
LIVE_LIMIT = 6
"""Seconds that a LiveCodeBench test gets, although the prompt says one: other machines are slower."""
EVALPLUS_LIMIT = 5
"""Seconds for all assertions of an EvalPlus task together."""


def hidden_tests(
    inputs: Sequence[str], outputs: Sequence[str], testtype: str, limit: float, name: str = "", context: str = ""
) -> str:
    """The tests of a task as its record has them.

    Raises:
        ValueError: there are none.
    """
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(
            f"there are {len(inputs)} inputs and {len(outputs)} outputs of tests; wanted as many, at least 1"
        )
    tests = {
        "inputs": list(inputs),
        "outputs": list(outputs),
        "testtype": testtype,
        "fn_name": name,
        "time_limit": limit,
    }
    return json.dumps({**tests, "context": context} if context else tests)


def request(statement: str, limit: float) -> str:
    """The prompt of a programming task."""
    return CODE_REQUEST.format(limit="1 second" if limit == 1 else f"{limit:g} seconds") + statement


def livecodebench(row: Row, index: int) -> Task:
    """A row of livecodebench/code_generation_lite; only the private tests are hidden, and only they are kept."""
    statement, tests = text_of(row, "question_content"), read_packed(text_of(row, "private_test_cases"))
    types = {test["testtype"] for test in tests}
    if len(types) != 1:
        raise ValueError(f"the tests are of {len(types)} types ({', '.join(sorted(types)) or 'none'}); wanted one")
    name = str((json.loads(row.get("metadata") or "{}") or {}).get("func_name") or "")
    if types == {"functional"}:
        head = signature(text_of(row, "starter_code"), name)
        statement += f"\n\nYour solution should have the following signature:\n```python\n{head}\n```"
    inputs, outputs = [test["input"] for test in tests], [test["output"] for test in tests]
    hidden = hidden_tests(inputs, outputs, types.pop(), LIVE_LIMIT, name)
    return Task("code", "livecodebench", statement, request(statement, 1), tests=hidden)


def signature(starter: str, name: str) -> str:
    """The line of the starter code that begins the function `name`.

    Raises:
        ValueError: there is none.
    """
    heads = [line.strip() for line in starter.splitlines() if line.strip().startswith(f"def {name}(")]
    if not name or not heads:
        raise ValueError(f"the starter code {starter!r} does not define the function {name!r} of the tests")
    return heads[0]


def is_recent(row: Row) -> bool:
    """Whether a LiveCodeBench problem is of the published contests."""
    return FIRST_DAY <= str(row["contest_date"])[:10] < DAY_AFTER


def pairs(examples: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Inputs and outputs of examples, which are objects {input, output} or pairs."""
    both = [(one["input"], one["output"]) if isinstance(one, Mapping) else tuple(one) for one in examples]
    return [str(given) for given, _ in both], [str(wanted) for _, wanted in both]


def statement_of(row: Row, parts: Mapping[str, str]) -> str:
    """Title, description and the sections that the row has; `parts` names column and heading of each."""
    sections = [text_of(row, "title"), text_of(row, "description")]
    sections += [f"{heading}:\n{row[name]}" for name, heading in parts.items() if is_given(row.get(name))]
    for given, wanted in zip(*pairs(row.get("examples") or ()), strict=True):
        sections.append(f"Example input:\n{given}\nExample output:\n{wanted}")
    return "\n\n".join([*sections, *([f"Note:\n{row['note']}"] if is_given(row.get("note")) else [])])


def codeforces(row: Row, index: int) -> Task:
    """A row of open-r1/codeforces with all its official tests."""
    statement = statement_of(row, {"input_format": "Input", "output_format": "Output"})
    limit = row.get("time_limit") or 1
    tests = hidden_tests(*pairs(row["official_tests"]), "stdin", limit)
    rated = int(row.get("rating") or ELO)
    return Task("code", "codeforces", statement, request(statement, limit), tests=tests, elo=rated)


def is_comparable(row: Row) -> bool:
    """Whether the printed text decides: all tests are there, on stdin, and no checker accepts other answers."""
    on_stdin = row.get("input_mode") in (None, "stdio")
    return on_stdin and bool(row.get("official_tests_complete")) and not row.get("generated_checker")


def code_elo(row: Row, index: int) -> Task:
    """A row of Qwen/CodeElo, which has no hidden tests: the examples of the statement are the tests."""
    statement = statement_of(row, {"input": "Input", "output": "Output"})
    limit = (row.get("time_limit_ms") or 1000) / 1000
    tests = hidden_tests(*pairs(row["examples"]), "stdin", limit)
    rated = int(row.get("rating") or ELO)
    return Task("code", "code_elo", statement, request(statement, limit), tests=tests, elo=rated)


def humaneval(row: Row, index: int) -> Task:
    """A row of evalplus/humanevalplus; what stands before the function in its prompt is the context of the answer."""
    start, name, check = text_of(row, "prompt"), text_of(row, "entry_point"), row.get("test")
    before, found, _ = start.partition(f"def {name}(")
    if not is_given(check):
        raise ValueError("`test` is missing: the assertions cannot be made from inputs alone, use the file of the hub")
    if not found:
        raise ValueError(f"the prompt does not define the function {name!r} of the tests")
    statement = f"Complete the following function.\n```python\n{start.rstrip()}\n```"
    tests = hidden_tests([f"{check}\n\ncheck({name})"], [""], "code", EVALPLUS_LIMIT, name, before.strip())
    return Task("code", "humanevalplus", statement, request(statement, EVALPLUS_LIMIT), tests=tests)


def mbpp(row: Row, index: int) -> Task:
    """A row of evalplus/mbppplus; the first assertion of its short list shows the name and the arguments."""
    question, check, shown = text_of(row, "prompt"), row.get("test"), row.get("test_list") or [row.get("assertion")]
    if not is_given(check):
        raise ValueError("`test` is missing: the assertions cannot be made from inputs alone, use the file of the hub")
    example = str(shown[0] or "").strip().splitlines()
    statement = question.strip() + (f"\n\nYour code should pass this test:\n{example[0]}" if example else "")
    name = function_under_test(example[0] if example else "", str(row.get("code") or ""))
    tests = hidden_tests([str(check)], [""], "code", EVALPLUS_LIMIT, name)
    return Task("code", "mbppplus", statement, request(statement, EVALPLUS_LIMIT), tests=tests)


def function_under_test(assertion: str, solution: str) -> str:
    """The function that an assertion tests: one that the solution defines, else one that Python does not; else empty.

    Example: `function_under_test("assert set(both((1, 2))) == {1}", "")` is `both`.
    """
    try:
        called = [node.func.id for node in ast.walk(ast.parse(assertion)) if is_named_call(node)]
        defined = {node.name for node in ast.walk(ast.parse(solution)) if isinstance(node, ast.FunctionDef)}
    except (SyntaxError, ValueError):
        return ""
    ours = [name for name in called if name in defined] or [name for name in called if not hasattr(builtins, name)]
    return ours[0] if ours else ""


def is_named_call(node: ast.AST) -> TypeGuard[Any]:
    """Whether a node calls something by a plain name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def corpus(row: Row, index: int) -> Task:
    """A row of lasgroup/verifiable-corpus, which is in the published form but for its prompt."""
    kind, dataset, question = (text_of(row, name) for name in ("kind", "dataset", "description"))
    given = {name: row[name] for name in ("answer", "tests", "system") if is_given(row.get(name))}
    prompt = next((row[name] for name in ("prompt", "problem") if is_given(row.get(name))), question)
    rated = row.get("elo")
    elo = ELO if rated in (None, MISSING) else int(rated)
    return Task(kind, dataset, question, prompt, elo=elo, **given)


SOURCES = (
    Source(
        "livecodebench/code_generation_lite-v6",
        "livecodebench/code_generation_lite",
        livecodebench,
        revision="refs/pr/6",
        keep=is_recent,
        category=lambda row: str(row["difficulty"]),
    ),
    Source(
        "open-r1/codeforces", "open-r1/codeforces", codeforces, config="verifiable", split="train", keep=is_comparable
    ),
    Source("Qwen/CodeElo", "Qwen/CodeElo", code_elo),
    Source("evalplus/humanevalplus", "evalplus/humanevalplus", humaneval),
    Source("evalplus/mbppplus", "evalplus/mbppplus", mbpp),
    Source(
        "lasgroup/verifiable-corpus",
        "lasgroup/verifiable-corpus",
        corpus,
        split="train",
        category=lambda row: str(row["kind"]),
    ),
)
