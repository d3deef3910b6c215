"""Runs side by side: intervals are Student's, groups differ in their seed only, and bad folders are told."""

import json
import math
import random
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import compare
from trainer.comparing import drawing
from trainer.comparing.intervals import estimate, t_quantile
from trainer.comparing.runs import grouped, read_run, read_runs

CONFIG = """\
# method: {method}
data:
  seed: {seed}
actor_rollout_ref:
  actor:
    alpha: {alpha}
trainer:
  output_dir: {folder}
  total_training_steps: {steps}
"""


@pytest.fixture
def make_run(tmp_path):
    """Writes the folder of a run: validated every second step, 100 prompt and 300 response tokens a step."""

    def make(name, means, *, method="mopd", seed=0, alpha=0.5, tokens=400, source="chain"):
        folder = tmp_path / name
        folder.mkdir()
        steps = 2 * (len(means) - 1)
        text = CONFIG.format(method=method, seed=seed, alpha=alpha, folder=folder, steps=steps)
        (folder / "config.yaml").write_text(text)
        (folder / "manifest.json").write_text(json.dumps({"method": method, "seed": seed, "commit": "abc"}))
        with (folder / "metrics.jsonl").open("w") as file:
            for step in range(steps + 1):
                record = {"step": step, "health/warnings": None}
                if step:
                    record |= {"perf/total_num_tokens": tokens, "prompt_length/mean": 1.0, "response_length/mean": 3.0}
                if step % 2 == 0:
                    record[f"val-core/{source}/acc/mean@8"] = means[step // 2]
                    record[f"val-core/{source}/acc/pass@8"] = 1.0
                    record[f"val-core/{source}/acc/maj@8"] = 0.0
                file.write(json.dumps(record) + "\n")
        return folder

    return make


def told(capsys, *arguments):
    """What the command prints as JSON."""
    assert compare.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------------------ intervals


@pytest.mark.parametrize(
    ("confidence", "degrees", "t"),
    [
        (0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 3, 3.1824), (0.95, 4, 2.7764), (0.95, 9, 2.2622),
        (0.95, 30, 2.0423), (0.95, 120, 1.9799), (0.99, 5, 4.0321), (0.8, 10, 1.3722),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(confidence, degrees, t):
    assert t_quantile(confidence, degrees) == pytest.approx(t, abs=6e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.995), st.integers(1, 40))
def test_the_density_between_quantiles_integrates_to_the_confidence(confidence, degrees):
    t = t_quantile(confidence, degrees)
    xs = np.linspace(0.0, t, 20_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    density = scale * (1 + xs**2 / degrees) ** (-(degrees + 1) / 2)
    assert 2 * np.trapezoid(density, xs) == pytest.approx(confidence, abs=2e-4)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        found = estimate([draw.gauss(0.3, 0.1) for _ in range(3)], 0.9)
        held += found.low <= 0.3 <= found.high
    assert held / 2000 == pytest.approx(0.9, abs=0.025)  # over three standard errors


def test_one_seed_has_no_interval():
    assert estimate([0.5], 0.95).half_width is None


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 1), (1.0, 1), (0.95, 0)])
def test_impossible_quantiles_are_refused(confidence, degrees):
    with pytest.raises(ValueError):
        t_quantile(confidence, degrees)


# ------------------------------------------------------------------ groups


def test_runs_that_differ_in_their_seed_are_one_group(make_run):
    runs = [make_run(f"m{seed}", [0.2, 0.5], seed=seed) for seed in range(3)]
    runs += [make_run("g", [0.2, 0.4], method="grpo")]
    groups = grouped(read_runs(list(map(str, runs))))
    assert [(group.name, group.seeds) for group in groups] == [("mopd", [0, 1, 2]), ("grpo", [0])]


def test_other_settings_are_another_group_that_tells_them(make_run):
    folders = [make_run(f"a{alpha}", [0.2, 0.5], alpha=alpha) for alpha in (0.5, 1.0)]
    groups = grouped(read_runs(list(map(str, folders))))
    assert [group.name for group in groups] == ["mopd alpha=0.5", "mopd alpha=1.0"]


def test_a_name_puts_runs_together_and_says_where_they_differ(make_run, capsys):
    folders = [make_run(f"a{alpha}", [0.2, 0.5], alpha=alpha) for alpha in (0.5, 1.0)]
    found = told(capsys, *(f"ours={folder}" for folder in folders))
    assert [group["name"] for group in found["groups"]] == ["ours"]
    assert "differ in more than the seed" in found["cautions"][1]
    assert "a seed is there more than once" in found["cautions"][0]


def test_the_length_of_a_run_parts_no_group(make_run):
    folders = [make_run("short", [0.2, 0.5], seed=1), make_run("long", [0.2, 0.5, 0.6], seed=2)]
    assert len(grouped(read_runs(list(map(str, folders))))) == 1


# ------------------------------------------------------------------ figures


def test_points_are_means_over_seeds_with_their_intervals(make_run, capsys):
    means = [[0.1, 0.5], [0.3, 0.7], [0.2, 0.9]]
    found = told(capsys, *(make_run(f"m{seed}", own, seed=seed) for seed, own in enumerate(means)))
    figure = found["figures"]["chain: mean@8"]
    last = figure["by_step"]["mopd"][-1]
    values = [own[-1] for own in means]
    half = 4.3027 * statistics.stdev(values) / math.sqrt(3)
    assert (last["step"], last["n"], last["mean"]) == (2, 3, pytest.approx(0.7))
    assert (last["low"], last["high"]) == pytest.approx((0.7 - half, 0.7 + half), abs=1e-4)
    assert figure["table"][0]["at_step"]["mean"] == pytest.approx(0.7)
    assert set(found["figures"]) == {"chain: mean@8", "chain: pass@8"}


def test_tokens_are_those_of_responses_and_curves_are_read_between_their_points(make_run, capsys):
    slow = make_run("slow", [0.0, 0.4, 0.8], seed=1)  # 300 response tokens a step, so 600 between validations
    fast = make_run("fast", [0.0, 0.5, 1.0], seed=2, tokens=800)  # twice as many
    figure = told(capsys, slow, fast)["figures"]["chain: mean@8"]
    by_tokens = {point["tokens"]: point for point in figure["by_tokens"]["mopd"]}
    assert list(by_tokens) == [0.0, 600.0, 1200.0]
    assert by_tokens[600.0]["mean"] == pytest.approx((0.4 + 0.25) / 2)
    assert by_tokens[1200.0]["mean"] == pytest.approx((0.8 + 0.5) / 2)
    assert figure["tokens"] == 1200.0
    assert figure["table"][0]["at_tokens"]["mean"] == pytest.approx(0.65)


def test_differences_are_taken_seed_by_seed(make_run, capsys):
    shifts = {0: 0.0, 1: 0.3, 2: 0.1}  # what the seed does to both methods
    folders = [make_run(f"m{seed}", [0.1, 0.2 + shift], seed=seed) for seed, shift in shifts.items()]
    folders += [
        make_run(f"g{seed}", [0.1, 0.3 + shift], seed=seed, method="grpo")
        for seed, shift in (*shifts.items(), (7, 0.6))
    ]
    first, second = told(capsys, *folders)["figures"]["chain: mean@8"]["table"]
    assert first["difference"] is None
    assert (second["n"], second["difference"]["n"]) == (4, 3)
    assert second["difference"]["mean"] == pytest.approx(0.1)
    assert second["difference"]["high"] - second["difference"]["low"] < 1e-9


def test_the_table_takes_the_last_step_that_all_runs_have(make_run, capsys):
    folders = [make_run("short", [0.2, 0.5]), make_run("long", [0.2, 0.4, 0.9], method="grpo")]
    figure = told(capsys, *folders)["figures"]["chain: mean@8"]
    assert figure["step"] == 2
    assert [row["at_step"]["mean"] for row in figure["table"]] == [0.5, 0.4]


def test_before_anything_was_learnt_there_is_no_difference(make_run, capsys):
    folders = [make_run("short", [0.2]), make_run("long", [0.3, 0.4], method="grpo")]
    found = told(capsys, *folders)
    figure = found["figures"]["chain: mean@8"]
    assert figure["step"] == 0
    assert [row["at_step"]["mean"] for row in figure["table"]] == [0.2, 0.3]
    assert [row["difference"] for row in figure["table"]] == [None, None]
    (sentence,) = found["cautions"]
    assert sentence.startswith("chain: mean@8, chain: pass@8: no difference is given")


def test_data_sources_are_kept_apart(make_run, capsys):
    folders = [make_run("a", [0.2, 0.5]), make_run("b", [0.3, 0.6], source="sets/of: all", method="grpo")]
    figures = told(capsys, *folders)["figures"]
    assert [row["group"] for row in figures["sets/of: all: mean@8"]["table"]] == ["grpo"]
    assert [row["group"] for row in figures["chain: mean@8"]["table"]] == ["mopd"]


def test_figures_that_were_not_measured_are_absent(make_run):
    folder = make_run("a", [0.2, math.nan, 0.6])
    lines = (folder / "metrics.jsonl").read_text().replace('"perf/total_num_tokens": 400', '"other": 1')
    (folder / "metrics.jsonl").write_text(lines)
    moments = read_run(folder).moments
    assert [(moment.step, moment.tokens) for moment in moments] == [(0, 0.0), (2, None), (4, None)]
    assert "chain: mean@8" not in moments[1].figures
    assert compare.main([str(folder), "--json"]) == 0


# ------------------------------------------------------------------ the command


def test_a_table_is_printed_and_a_figure_drawn(make_run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "100")
    folders = [str(make_run(f"m{seed}", [0.1, 0.5 + seed / 10], seed=seed)) for seed in range(2)]
    for name, begins in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml")):
        assert compare.main([*folders, "--figure", str(tmp_path / "new" / name)]) == 0
        assert (tmp_path / "new" / name).read_bytes().startswith(begins)
    out = capsys.readouterr().out
    assert "chain: mean@8" in out
    assert "0.550 ± 0.635" in out


def test_names_are_shown_as_they_are(make_run, capsys, monkeypatch):
    monkeypatch.setattr(compare, "can_draw", lambda: False)
    assert compare.main([f"[b]$a$={make_run('a', [0.2, 0.5])}"]) == 0
    assert "[b]$a$" in capsys.readouterr().out


def test_without_matplotlib_the_tables_are_there_and_the_remedy_is_told(make_run, capsys, monkeypatch):
    monkeypatch.setattr(compare, "can_draw", lambda: False)
    folder = str(make_run("a", [0.2, 0.5]))
    assert compare.main([folder]) == 0
    assert str(drawing.REQUIREMENTS) in "".join(capsys.readouterr().out.split("\n"))
    assert compare.main([folder, "--figure", "a.png"]) == 2
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert drawing.REQUIREMENTS.is_file()


def test_a_figure_of_unknown_kind_is_refused(make_run, capsys):
    assert compare.main([str(make_run("a", [0.2, 0.5])), "--figure", "a.txt"]) == 2
    assert ".png" in capsys.readouterr().err


def test_every_bad_folder_is_told_at_once(make_run, tmp_path, capsys):
    good = make_run("good", [0.2, 0.5])
    empty = tmp_path / "empty"
    empty.mkdir()
    unvalidated = make_run("unvalidated", [0.2, 0.5])
    (unvalidated / "metrics.jsonl").write_text('{"step": 1}\n')
    broken = make_run("broken", [0.2, 0.5])
    (broken / "metrics.jsonl").write_text("[1]\n")
    folders = [good, tmp_path / "nowhere", empty, unvalidated, broken, good]
    assert compare.main([str(folder) for folder in folders]) == 2
    err = capsys.readouterr().err
    assert "5 problems" in err
    for text in ("no such folder", "is no OUTPUT_DIR", "no held-out quality yet", "cannot be read", "is there twice"):
        assert text in err
    assert compare.main([str(good), f"bad={empty}"]) == 2
    assert f"bad={empty}: " in capsys.readouterr().err


def test_the_folder_of_a_suite_is_told_with_how_to_name_its_runs(make_run, tmp_path, capsys):
    (tmp_path / "suite").mkdir()
    for seed in range(2):
        make_run(f"suite/mopd-seed{seed}", [0.2, 0.5], seed=seed)
    (tmp_path / "suite/logs").mkdir()
    assert compare.main([str(make_run("good", [0.2, 0.5])), str(tmp_path / "suite")]) == 2
    suite = tmp_path / "suite"
    assert f"{suite}: is no run, but holds 2 of them; name those: {suite}/*-seed*" in capsys.readouterr().err
    named = sorted(str(folder) for folder in suite.glob("*-seed*"))
    assert len(told(capsys, *named)["groups"][0]["runs"]) == 2


def test_it_is_a_command(make_run, root, tmp_path):
    folder = make_run("a", [0.2, 0.5])
    command = [sys.executable, "-m", "trainer.compare", str(folder), "--json"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["chain: mean@8"]["step"] == 2
