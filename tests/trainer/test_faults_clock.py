"""A clock that is set while a run goes on moves no deadline: who reads the time of day is known here."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from trainer.config.compose import PROJECT

READERS = {
    "trainer/stopping.py": "a job's end is told as a time of day; it is read once, and monotonic from there",
    "trainer/session.py": "the manifest says when the run started",
    "trainer/report.py": "the report says when it was written",
    "trainer/trackers/mlflow.py": "MLflow wants the time of day beside every figure",
    "trainer/workers/profiling.py": "a trace puts what several processes did on one axis; nothing waits by it",
}
"""Files that read the time of day, and why."""
TIMES_OF_DAY = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
TIMES_OF_DAY |= {f"datetime.{name}" for name in TIMES_OF_DAY if name.startswith("date")}


def readings(path: str, text: str) -> Iterator[str]:
    """Lines of a source that read the time of day."""
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in TIMES_OF_DAY:
            yield f"{path}:{node.lineno}: {ast.unparse(node.func)}"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"{path}:{node.lineno}: {name.name}" for name in node.names if name.name.startswith("time"))


@pytest.mark.parametrize(
    "text", ["import time\nend = time.time() + 5", "from time import time", "import datetime\ndatetime.datetime.now()"]
)
def test_a_reading_is_seen(text: str) -> None:
    assert len(list(readings("trainer/some.py", text))) == 1


def test_deadlines_are_monotonic() -> None:
    sources = [path for room in ("trainer", "mopd") for path in (PROJECT / room).rglob("*.py")]
    assert len(sources) > 60
    found = [line for path in sources for line in readings(str(path.relative_to(PROJECT)), path.read_text())]
    assert [line for line in found if line.split(":")[0] not in READERS] == []
    assert {line.split(":")[0] for line in found} == READERS.keys(), "a reader reads no more"
