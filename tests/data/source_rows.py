"""Rows of the shape that every source has on the hub, invented here, and files of them."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]


def science(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "question": f"Which is {number}?",
        "choices": {"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
        "type": "mcq-4-choices",
        "domain": "Biology",
        "details": {"level": "L3", "task": "t", "subtask": f"sub{number % 2}"},
    }
    return {**row, **changes}


def packed(tests: Any, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests), protocol=protocol))).decode()


def live(kind: str = "stdin", date: str = "2025-03-08T00:00:00", **changes: Any) -> dict[str, Any]:
    tests = [{"input": f"{n}\n", "output": f"{n + 1}\n", "testtype": kind} for n in range(4)]
    row = {
        "question_title": "Next",
        "question_content": "Give the number after n.",
        "contest_date": datetime.fromisoformat(date),
        "starter_code": "class Solution:\n    def after(self, n: int) -> int:\n        "
        if kind == "functional"
        else "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": packed(tests),
        "metadata": json.dumps({"func_name": "after"} if kind == "functional" else {}),
    }
    return {**row, **changes}


def gpqa(number: int) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {place}": f"wrong {place}" for place in (1, 2, 3)}
    return {"Question": f"Q{number}", "Correct Answer": "right\n", **wrong, "High-level domain": "Physics"}


FORCES: dict[str, Any] = {
    "title": "Sum",
    "description": "Add two numbers.",
    "input_format": "Two numbers.",
    "output_format": "Their sum.",
    "note": None,
    "examples": [{"input": "1 2", "output": "3"}],
    "official_tests": [{"input": "1 2", "output": "3"}, {"input": "4 4", "output": "8"}],
    "official_tests_complete": True,
    "input_mode": "stdio",
    "generated_checker": None,
    "time_limit": 2.0,
    "rating": 800,
}
ELO: dict[str, Any] = {
    "title": "Sum",
    "description": "Add two numbers.",
    "input": "Two numbers.",
    "output": "Their sum.",
    "note": "Easy.",
    "examples": [["1 2", "3"]],
    "time_limit_ms": 1500,
    "rating": 900,
}
HUMANEVAL: dict[str, Any] = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef root(n: int) -> float:\n    """The square root."""\n',
    "entry_point": "root",
    "canonical_solution": "    return math.sqrt(n)\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2.0\n    assert candidate(9) == 3.0\n",
}
MBPP: dict[str, Any] = {
    "task_id": 2,
    "prompt": "Write a function to double a number.",
    "code": "def double(n):\n    return 2 * n",
    "test_list": ["assert double(2) == 4"],
    "test": "assert double(2) == 4\nassert double(-1) == -2\n",
}
CORPUS: dict[str, Any] = {
    "kind": "math",
    "dataset": "math",
    "description": "What is 1 + 1?",
    "problem": "What is 1 + 1? Box it.",
    "answer": "2",
    "tests": "-",
    "elo": 1200,
}

ROWS: dict[str, tuple[str, Rows]] = {
    "Biology": ("test", [science(n) for n in range(20)]),
    "Chemistry": ("test", [science(n, domain="Chemistry") for n in range(20)]),
    "Material": ("test", [science(n, domain="Material") for n in range(20)]),
    "Physics": ("test", [science(n, domain="Physics") for n in range(20)]),
    "livecodebench/code_generation_lite-v6": ("test", [live(), live("functional"), live(date="2024-12-01")]),
    "Idavidrein/gpqa-D": ("train", [gpqa(n) for n in range(12)]),
    "TIGER-Lab/MMLU-Pro": (
        "test",
        [{"question": "Q", "options": [str(n) for n in range(10)], "answer": "J", "category": "law"}],
    ),
    "math-ai/aime24": ("test", [{"problem": "P", "solution": "\\boxed{\\frac{1}{2}}"}]),
    "math-ai/aime25": ("test", [{"problem": "P", "answer": "70"}]),
    "math-ai/math500": ("test", [{"problem": "P", "answer": "\\pi", "subject": "Algebra"}]),
    "math-ai/amc23": ("test", [{"question": "P", "answer": 27.0}]),
    "MathArena/hmmt_feb_2025": ("train", [{"problem": "P", "answer": "103"}]),
    "MathArena/hmmt_nov_2025": ("train", [{"problem": "P", "answer": "7"}]),
    "openai/gsm8k": ("test", [{"question": "P", "answer": "So <<1=1>>.\n#### 1,000"}]),
    "openai/gsm8k-train": ("train", [{"question": "R", "answer": "It is.\n#### -5"}]),
    "zwhe99/DeepMath-103K": (
        "train",
        [{"question": f"P{n}", "final_answer": "5", "topic": "Sets", "difficulty": 4.0} for n in range(5)],
    ),
    "open-r1/codeforces": ("train", [FORCES, {**FORCES, "generated_checker": "any"}]),
    "Qwen/CodeElo": ("test", [ELO]),
    "evalplus/humanevalplus": ("test", [HUMANEVAL]),
    "evalplus/mbppplus": ("test", [MBPP]),
    "lasgroup/verifiable-corpus": ("train", [CORPUS]),
}
"""Split and rows by the name of the source."""


def write_parquet(folder: Path, name: str, other_split: bool = True) -> Path:
    """The rows of a source as the hub lays them out, beside a file of another split."""
    split, rows = ROWS[name]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    if other_split:
        pq.write_table(pa.table({"x": [1]}), folder / "data" / "validation-00000-of-00001.parquet")
    return folder
