"""The command end to end on small files: what it writes, and what it says about what it cannot use."""

import csv
import json
import random

import compute_teacher_signal_metrics as command
import pytest


def lines_of(prompts=6, attempts=6, conditions=("base", "solution"), seed=0):
    """Lines of a file of scores; each prompt has as many successes as failures, but the last has none."""
    draw = random.Random(seed)
    return [
        {
            "variant_id": f"{condition}-{prompt}-{place}",
            "target_id": f"{prompt}-{place}",
            "condition": condition,
            "target_type": "self_response",
            "prompt_id": f"p{prompt}",
            "sections_used": {"solution": condition == "solution" and place > 0},
            "teacher_score": draw.gauss(-1.0, 0.1),
            "teacher_response_len": 9,
            "teacher_prompt_len": 20,
            "teacher_prompt_truncated": False,
            "reward": float(prompt + 1 < prompts and place % 2),
            "success": bool(prompt + 1 < prompts and place % 2),
            "difficulty_bucket": "medium" if prompt + 1 < prompts else "hard",
        }
        for condition in conditions
        for prompt in range(prompts)
        for place in range(attempts)
    ]


@pytest.fixture
def write(tmp_path):
    """Writes lines into a file, a text as it is, and returns it."""

    def write_lines(lines):
        file = tmp_path / "scores.jsonl"
        file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return file

    return write_lines


def run(file, folder, *flags):
    return command.main(["--input", str(file), "--output", str(folder / "m.json"), *map(str, flags)])


def test_what_is_written(write, tmp_path, capsys):
    file = write(lines_of(prompts=9))
    assert run(file, tmp_path / "new", "--num-bootstrap", 50) == 0
    document = json.loads((tmp_path / "new/m.json").read_text())
    assert document["input"] == str(file)
    assert document["condition_sample_counts"] == {"base": 54, "solution": 54}
    assert (document["prompt_count"], document["both_present_prompt_count"]) == (9, 8)
    summary = document["sample_sets"]["all_samples"]["conditions"]["base"]
    assert (summary["count_prompts"], summary["success_auc_prompts"]) == (9, 8)
    assert set(summary["by_bucket"]) == {"medium", "hard"}
    assert summary["mean_prompt_length"] == 20.0
    assert summary["truncation_rate"] == 0.0
    table = (tmp_path / "new/m_table7.md").read_text()
    assert "both_present_effective_only" in table
    assert f"| solution | 8 | {document_told(document, 'solution', 'mean_spearman')}" in table
    with (tmp_path / "new/m_table7.csv").open() as rows:
        by_condition = {row["condition"]: row for row in csv.DictReader(rows)}
    shown = document["sample_sets"]["both_present_effective_only"]["conditions"]["solution"]
    assert float(by_condition["solution"]["success_auc_ci_high"]) == shown["success_auc_ci"][1]
    assert "solution" in capsys.readouterr().out


def test_few_prompts_have_means_and_no_intervals(write, tmp_path):
    assert run(write(lines_of(prompts=8)), tmp_path, "--num-bootstrap", 50) == 0
    summary = json.loads((tmp_path / "m.json").read_text())["sample_sets"]["all_samples"]["conditions"]["solution"]
    assert summary["success_auc_prompts"] == 7
    assert "success_auc" in summary
    assert "success_auc_ci" not in summary
    assert "mean_prompt_length_ci" in summary  # of 8 prompts
    with (tmp_path / "m_table7.csv").open() as rows:
        assert {row["success_auc_ci_low"] for row in csv.DictReader(rows)} == {""}


def document_told(document, condition, metric):
    summary = document["sample_sets"]["both_present_effective_only"]["conditions"][condition]
    low, high = summary[f"{metric}_ci"]
    return f"{summary[metric]:.3f} [{low:.3f}, {high:.3f}]"


def intervals_of(folder):
    conditions = json.loads((folder / "m.json").read_text())["sample_sets"]["all_samples"]["conditions"]
    return [summary.get("success_auc_ci") for summary in conditions.values()]


def test_number_and_seed_of_resamples_are_heeded(write, tmp_path):
    file = write(lines_of(prompts=12))
    flags = [(50, 1), (50, 1), (50, 2), (500, 1), (0, 1)]
    for place, (count, seed) in enumerate(flags):
        assert run(file, tmp_path / str(place), "--num-bootstrap", count, "--seed", seed) == 0
    first, again, other_seed, more, none = (intervals_of(tmp_path / str(place)) for place in range(5))
    assert first == again
    assert first != other_seed
    assert first != more
    assert none == [None, None]


def test_the_order_of_lines_changes_nothing(write, tmp_path):
    lines = lines_of()
    for name in ("straight", "shuffled"):
        assert run(write(lines), tmp_path / name, "--num-bootstrap", 20) == 0
        random.Random(3).shuffle(lines)
    texts = [(tmp_path / name / "m.json").read_text() for name in ("straight", "shuffled")]
    straight, shuffled = (json.loads(text, parse_float=lambda told: round(float(told), 9)) for text in texts)
    assert straight["sample_sets"] == shuffled["sample_sets"]


def test_what_nothing_defines_is_in_no_file(write, tmp_path, capsys):
    lines = [{**line, "reward": None, "success": None} for line in lines_of()]
    assert run(write(lines), tmp_path, "--num-bootstrap", 20, "--table-sample-set", "all_samples") == 0
    assert "no prompt has both" in " ".join(capsys.readouterr().err.split())
    summary = json.loads((tmp_path / "m.json").read_text())["sample_sets"]["all_samples"]["conditions"]["base"]
    assert {name for name in summary if not name.endswith(("_ci", "_prompts"))} == {
        "mean_prompt_length",
        "truncation_rate",
        "by_bucket",
    }
    assert (tmp_path / "m_table7.md").read_text().endswith("| base | 6 |\n| solution | 6 |\n")


def test_the_table_goes_where_it_is_asked_for(write, tmp_path):
    where = ["--table-output", tmp_path / "deep/t.csv", "--table-sample-set", "all_samples", "--num-bootstrap", 0]
    assert run(write(lines_of()), tmp_path, *where) == 0
    assert (tmp_path / "deep/t.md").read_text().startswith("Teacher signal, all_samples")
    assert (tmp_path / "deep/t.csv").exists()
    assert not (tmp_path / "m_table7.md").exists()


GOOD = lines_of(prompts=1, attempts=1, conditions=("base",))[0]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "holds no scores"),
        (["{"], "line 1: is no JSON"),
        (["[" * 100_000], "line 1: is no JSON"),
        (["[]"], "an object with the fields of a score is wanted"),
        ([{"condition": "base"}], "neither `teacher_score` nor"),
        ([GOOD, {**GOOD, "variant_id": "w", "teacher_score": "high"}], "line 2: has 'high' as its `teacher_score`"),
        ([{**GOOD, "teacher_score": 1e300}], "a number up to 1e+09"),
        ([{**GOOD, "reward": 10**400}], "as its `reward`"),
        ([{**GOOD, "success": "yes"}], "true, false or null"),
        ([{**GOOD, "prompt_id": None}], "has None as its `prompt_id`"),
        ([GOOD, GOOD], "line 2: the same variant and target stand at line 1"),
        ([{"condition": "base"}] * 99, "and 89 more"),
    ],
)
def test_what_cannot_be_used_ends_with_2(write, tmp_path, capsys, lines, told):
    assert run(write(lines), tmp_path / "out") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_read_or_written_end_with_2(write, tmp_path, capsys):
    assert run(tmp_path / "nowhere.jsonl", tmp_path) == 2
    assert "cannot be read" in capsys.readouterr().err
    file = write(lines_of(prompts=2))
    assert run(file, file, "--num-bootstrap", 0) == 2  # a file where a folder is wanted
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--num-bootstrap", "-1"), ("--seed", "-1"), ("--table-sample-set", "some")])
def test_flags_that_make_no_sense_end_with_2(write, tmp_path, flags):
    with pytest.raises(SystemExit) as end:
        run(write(lines_of(prompts=2)), tmp_path, *flags)
    assert end.value.code == 2


def test_hostile_numbers_do_not_stop_it(write, tmp_path):
    lines = [
        {**line, "teacher_score": score, "reward": reward}
        for line, score, reward in zip(
            lines_of(),
            [float("nan"), float("-inf"), -1e9, -0.0, None, True] * 12,
            [1e9, -1e9, float("nan"), None, 0.5] * 15,
            strict=False,
        )
    ]
    assert run(write(lines), tmp_path, "--num-bootstrap", 20) == 0
    assert "NaN" not in (tmp_path / "m.json").read_text()
