"""The commands end to end on small files: what they write, and what they say about what they cannot use."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import compute_metrics
import pytest

ROOM = Path(__file__).parents[2] / "diversity"


def raw_rows(seed, prompts=6, attempts=8, words="abc"):
    """Rollout lines of a run whose answers are drawn from these words."""
    draw = random.Random(seed)
    return [
        {
            "input": f"prompt {prompt}",
            "output": " ".join(draw.choice(words) for _ in range(6)),
            "score": float(draw.random() < 0.5),
            "step": 1,
            "uid": f"1-{prompt}",
            "rollout_id": f"1-{prompt}-{place}",
        }
        for prompt in range(prompts)
        for place in range(attempts)
    ]


def run(*arguments):
    return compute_metrics.main([str(argument) for argument in arguments])


def read(folder):
    """The summary by label, and the rows by label and prompt."""
    summary = {row["method"]: row for row in json.loads((folder / "summary.json").read_text())["summary"]}
    lines = (folder / "per_prompt.jsonl").read_text().splitlines()
    return summary, {(row["method"], row["prompt_id"]): row for row in map(json.loads, lines)}


@pytest.fixture
def two_runs(write):
    return write("few.jsonl", raw_rows(0, words="ab")), write("many.jsonl", raw_rows(1, words="abcdefghijkl"))


def test_labels_are_those_of_the_command_line_and_the_wider_run_is_the_more_diverse(two_runs, tmp_path, capsys):
    few, many = two_runs
    assert run("--run", f"MOPD_V2={few}", "--run", f"mine={many}", "--output-dir", tmp_path / "out") == 0
    summary, rows = read(tmp_path / "out")
    assert list(summary) == ["MOPD_V2", "mine"]
    assert len(rows) == 12
    assert "mine" in capsys.readouterr().out
    for metric in ("distinct2", "pairwise_text_distance", "unique_response_ratio"):
        assert summary["mine"][f"{metric}_mean"] > summary["MOPD_V2"][f"{metric}_mean"]
    assert summary["mine"]["self_bleu4_mean"] < summary["MOPD_V2"]["self_bleu4_mean"]
    with (tmp_path / "out/summary.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["MOPD_V2", "mine"]
    studies = [json.loads(line) for line in (tmp_path / "out/case_studies.jsonl").read_text().splitlines()]
    assert [study["gap"] for study in studies] == sorted((study["gap"] for study in studies), reverse=True)
    assert len(studies[0]["high"]["responses"]) == 8


def test_the_order_of_lines_changes_nothing(write, tmp_path):
    rows = raw_rows(2)
    for name in ("straight", "shuffled"):
        assert run("--run", f"a={write(f'{name}.jsonl', rows)}", "--output-dir", tmp_path / name) == 0
        random.Random(3).shuffle(rows)
    assert read(tmp_path / "straight") == read(tmp_path / "shuffled")


def test_candidate_rows_and_raw_lines_give_the_same_figures(write, tmp_path):
    raw = raw_rows(4)
    candidates = [
        {"prompt_id": row["input"], "response_id": row["rollout_id"], "response_text": row["output"],
         "reward": row["score"]}
        for row in raw
    ]  # fmt: skip
    for name, rows in (("raw", raw), ("candidates", candidates)):
        assert run("--run", f"a={write(f'{name}.jsonl', rows)}", "--output-dir", tmp_path / name) == 0
    (first, _), (second, _) = read(tmp_path / "raw"), read(tmp_path / "candidates")
    assert first["a"] == pytest.approx(second["a"])


def test_only_shared_prompts_and_the_first_of_them(write, tmp_path):
    first, second = write("a.jsonl", raw_rows(0, prompts=6)), write("b.jsonl", raw_rows(1, prompts=4))
    limits = ["--intersect-prompts", "--max-prompts", "3", "--max-responses-per-prompt", "4"]
    assert run("--run", f"a={first}", "--run", f"b={second}", "--output-dir", tmp_path / "out", *limits) == 0
    _, rows = read(tmp_path / "out")
    assert len(rows) == 6
    assert {row["n_rollouts"] for row in rows.values()} == {4}
    assert len({prompt for _, prompt in rows}) == 3


def test_what_no_prompt_defines_is_in_no_file(write, tmp_path):
    rows = [{**row, "score": float("nan")} for row in raw_rows(0)]
    assert run("--run", f"a={write('nan.jsonl', rows)}", "--output-dir", tmp_path / "out") == 0
    summary, _ = read(tmp_path / "out")
    assert not [name for name in summary["a"] if name.startswith(("pass@", "success_", "mean_reward", "corr_"))]
    assert summary["a"]["distinct2_prompts"] == 6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--run", "a"], "must have the form NAME=PATH"),
        (["--run", "a=/nowhere"], "no such file or folder"),
        (["--run", "a={file}", "--run", "a={file}"], "label a is there twice"),
        (["--run", "a={file}", "--min-responses-per-prompt", "99"], "no prompt has 99 attempts"),
    ],
)
def test_what_cannot_be_used_ends_with_2(write, tmp_path, capsys, arguments, told):
    file = write("a.jsonl", raw_rows(0))
    assert run(*(argument.format(file=file) for argument in arguments), "--output-dir", tmp_path / "out") == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_runs_without_a_prompt_in_common_are_told(write, tmp_path, capsys):
    first = write("a.jsonl", raw_rows(0))
    second = write("b.jsonl", [{**row, "input": "else"} for row in raw_rows(1, prompts=1)])
    asked = ["--run", f"a={first}", "--run", f"b={second}", "--intersect-prompts", "--output-dir", tmp_path / "out"]
    assert run(*asked) == 2
    assert "no prompt in common" in capsys.readouterr().err


def test_groups_of_different_size_are_told(write, tmp_path, capsys):
    first, second = write("a.jsonl", raw_rows(0)), write("b.jsonl", raw_rows(1, attempts=4))
    assert run("--run", f"a={first}", "--run", f"b={second}", "--output-dir", tmp_path / "out") == 0
    assert "groups differ in size" in capsys.readouterr().err


# ------------------------------------------------------------------ by path, as people call them


def call(*command, cwd, **environment):
    """A command with the Python of the tests and the project on its path."""
    asked = {**os.environ, "PYTHONPATH": str(ROOM.parent) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    asked |= {"MOPD_PYTHON": sys.executable, "NO_COLOR": "1", **environment}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=asked, capture_output=True, text=True)


def test_the_script_measures_and_draws(two_runs, tmp_path):
    pytest.importorskip("matplotlib")
    few, many = two_runs
    done = call(
        "bash", ROOM / "run_diversity.sh", "--run", f"third one={few}",
        cwd=tmp_path, TASK="generic", MOPD_CANDIDATES=str(many), BASE_CANDIDATES=str(few), OUTPUT_DIR="out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary, _ = read(tmp_path / "out")
    assert list(summary) == ["MOPD", "base", "third one"]
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert set(drawn) == {
        "passk_curve.png",
        "method_diversity_bars.png",
        "diversity_vs_passk.png",
        "success_diversity_vs_passk.png",
    }
    assert all(content.startswith(b"\x89PNG") and len(content) > 5000 for content in drawn.values())


def test_the_script_says_what_it_wants(tmp_path):
    for environment, told in (
        ({}, "No attempts to compare"),
        ({"GENERATE_SDPO": "1"}, "CKPT_PATH"),
        ({"GENERATE_SDPO": "perhaps"}, "must be 1"),
        ({"MOPD_CANDIDATES": "/nowhere"}, "no such file or folder"),
    ):
        done = call("bash", ROOM / "run_diversity.sh", cwd=tmp_path, **environment)
        assert done.returncode == 2
        assert told in done.stderr


SAMPLER = """\
#!/usr/bin/env bash
# A Python that does not sample, but writes down what it was asked for, and some responses.
if [[ " $* " != *" trainer.evaluate "* ]]; then exec {python} "$@"; fi
printf '%s\\n' "$@" >{folder}/asked
mkdir -p out/sdpo && cp {responses} out/sdpo/responses.jsonl
"""


def test_what_is_shown_as_sdpo_can_be_sampled_first(write, tmp_path):
    pytest.importorskip("matplotlib")
    responses, python = write("few.jsonl", raw_rows(0)), tmp_path / "python"
    python.write_text(SAMPLER.format(python=sys.executable, folder=tmp_path, responses=responses))
    python.chmod(0o755)
    flags = {"GENERATE_SDPO": "1", "CKPT_PATH": "steps/step_3", "EVAL_N": "4", "OUTPUT_DIR": "out", "TASK": "generic"}
    done = call("bash", ROOM / "run_diversity.sh", cwd=tmp_path, MOPD_PYTHON=str(python), **flags)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().split()
    assert {"model=steps/step_3", "n=4", "data=datasets/lcb_v6/test.parquet", "output=out/sdpo"} <= set(asked)
    assert list(read(tmp_path / "out")[0]) == ["SDPO"]


def test_without_matplotlib_the_remedy_is_told(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('hidden')\n")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOM.parent}"}
    done = call(sys.executable, ROOM / "plot_metrics.py", cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert "requirements-analysis.txt" in done.stderr


@pytest.mark.parametrize("content", ["", "{}", '{"summary": []}', '{"summary": [1]}', "[" * 100_000])
def test_what_is_no_summary_is_told(tmp_path, capsys, content):
    pytest.importorskip("matplotlib")
    import plot_metrics

    (tmp_path / "summary.json").write_text(content)
    (tmp_path / "rows.jsonl").write_text("")
    files = {"--summary": "summary.json", "--per-prompt": "rows.jsonl", "--output-dir": "out"}
    assert plot_metrics.main([text for flag, name in files.items() for text in (flag, str(tmp_path / name))]) == 2
    assert "--summary" in capsys.readouterr().err
