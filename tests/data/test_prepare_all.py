"""One command prepares every benchmark; one that fails does not stop the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.source_rows import write_parquet

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data" / "prepare_all.sh"


def prepare(where: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line = ["bash", str(SCRIPT), *map(str, arguments)]
    known = {**os.environ, "MOPD_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(line, cwd=where, env=known, capture_output=True, text=True, check=False, timeout=300)


def tool(index: int) -> dict[str, object]:
    answer = json.dumps([{"Action": "go", "Action_Input": json.dumps({"x": index})}])
    made = {"prompt": f"Go {index}.", "description": f"Go {index}.", "idx": index, "dataset": "tooluse"}
    return {**made, "system": None, "answer": answer, "tests": None, "kind": "tooluse", "elo": 1500}


def test_benchmarks_are_prepared_from_files_and_failures_are_named(tmp_path: Path) -> None:
    files, target = tmp_path / "my files", tmp_path / "prepared here"
    for name, source in [("biology", "Biology"), ("lcb_v6", "livecodebench/code_generation_lite-v6")]:
        write_parquet(files / name, source)
    for source in ("openai/gsm8k", "openai/gsm8k-train"):
        write_parquet(files / "gsm8k", source, other_split=False)
    (files / "tooluse").mkdir()
    (files / "tooluse" / "sample.json").write_text("\n".join(json.dumps(tool(index)) for index in range(20)))
    names = ["gpqa", "biology", "lcb_v6", "gsm8k", "tooluse"]
    done = prepare(tmp_path, "--local", "my files", target, *names)
    assert done.returncode == 1, done.stderr
    assert f"--local {files}: no such folder" not in done.stderr
    assert "gpqa: no such folder" in done.stderr
    assert "Not prepared: gpqa (" in done.stderr
    assert done.stderr.rstrip().endswith(" gpqa")
    counts = {
        path.relative_to(target).as_posix(): pq.read_metadata(path).num_rows for path in target.rglob("*.parquet")
    }
    assert counts == {
        "sciknoweval/biology/train.parquet": 18,
        "sciknoweval/biology/test.parquet": 2,
        "lcb_v6/train.parquet": 2,
        "lcb_v6/test.parquet": 2,
        "gsm8k/train.parquet": 1,
        "gsm8k/test.parquet": 1,
        "tooluse/train.parquet": 18,
        "tooluse/test.parquet": 2,
    }
    write_parquet(files / "gpqa", "Idavidrein/gpqa-D")
    retry = done.stderr.rstrip().splitlines()[-1].strip()
    again = subprocess.run(
        ["bash", "-c", retry],
        cwd=ROOT,
        env={**os.environ, "MOPD_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert [path.name for path in (target / "gpqa").glob("*.parquet")] == ["test.parquet"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpqqa"], "neither a benchmark nor a folder"),
        (["./out", "gpqqa"], "'gpqqa' is not a benchmark; wanted: biology"),
        (["--local", "nowhere"], "no such folder"),
        (["--local"], "wants a folder"),
        (["--offline"], "is not known"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = prepare(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_tool_rows_come_from_a_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("\n".join(json.dumps(tool(index)) for index in range(20)))
    assert "TOOLUSE_FILE=FILE" in prepare(tmp_path, "./out", "tooluse").stderr
    assert prepare(tmp_path, "./out", "tooluse", TOOLUSE_FILE=str(file)).returncode == 0
    assert pq.read_metadata(tmp_path / "out" / "tooluse" / "train.parquet").num_rows == 18


def test_help_names_the_arguments(tmp_path: Path) -> None:
    done = prepare(tmp_path, "--help")
    assert done.returncode == 0
    assert "[--local FILES] [DIR] [NAME ...]" in done.stdout
