"""The figures are drawn from what the metrics' command wrote; what is something else is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "analysis"


def summary_of(auc=None, **buckets):
    """A condition's summary; without an AUC nothing of it is defined."""
    figures = {} if auc is None else {"success_auc": auc, "success_auc_ci": [auc - 0.1, auc + 0.1]}
    by_bucket = {name: summary_of(value) for name, value in buckets.items()}
    return {"count_prompts": 3 if auc else 0, **figures, "by_bucket": by_bucket}


def document_of(**conditions):
    part = {"conditions": conditions, "paired_by_target_type": {"self_response": conditions}}
    return {"sample_sets": {"all_samples": part, "effective_only": part}}


@pytest.fixture
def plot(tmp_path):
    """Draws a document, or whatever a text says; returns the exit code. Figures go to `out`."""
    plotting = pytest.importorskip("matplotlib") and __import__("plot_teacher_metrics")

    def draw(document, *flags):
        file = tmp_path / "m.json"
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        return plotting.main(["--input", str(file), "--output-dir", str(tmp_path / "out"), *flags])

    return draw


def is_png(file):
    content = file.read_bytes()
    return content.startswith(b"\x89PNG") and len(content) > 5000


def test_bars_are_drawn_and_what_is_missing_is_told(plot, tmp_path, capsys):
    names = {"base": 0.5, "a+very+long+condition+of+many+parts+$x$": 0.8, "feedback": None}
    document = document_of(**{name: summary_of(auc, easy=auc) for name, auc in names.items()})
    assert plot(document, "--paired-target-type", "self_response") == 0
    assert {file.name for file in (tmp_path / "out").iterdir() if is_png(file)} == {
        "teacher_metrics_main.png",
        "teacher_metrics_by_bucket.png",
    }
    assert "teacher_metrics_off_path.png: left out" in capsys.readouterr().err


def test_absent_bars_are_absent_and_others_have_their_height():
    pytest.importorskip("matplotlib")
    import plot_teacher_metrics as plotting

    conditions = {"base": summary_of(0.5), "solution": summary_of(0.8), "feedback": summary_of()}
    figure = plotting.figures_of(plotting.Found("all", conditions))["teacher_metrics_main.png"]
    (axes,) = [axes for axes in figure.axes if axes.get_title().startswith("AUC")]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.8]
    lines = [line.get_xdata() for line in axes.lines[:2]]
    assert [list(line) for line in lines] == [pytest.approx([0.4, 0.6]), pytest.approx([0.7, 0.9])]
    assert [text.get_text().strip() for text in axes.texts].count("not defined") == 1
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "base (3)",
        "solution (3)",
        "feedback (0)",
    ]


def test_bars_by_bucket_say_of_how_many_prompts_and_few_have_no_line():
    pytest.importorskip("matplotlib")
    import plot_teacher_metrics as plotting

    conditions = {"base": summary_of(0.5, easy=0.75, hard=0.25)}
    conditions["base"]["by_bucket"]["easy"] |= {"success_auc_prompts": 2}
    del conditions["base"]["by_bucket"]["easy"]["success_auc_ci"]
    figure = plotting.figures_of(plotting.Found("all", conditions))["teacher_metrics_by_bucket.png"]
    (axes,) = [axes for axes in figure.axes if axes.get_title().startswith("AUC")]
    assert [text.get_text() for text in axes.texts] == ["0.75 (2)", "0.25 (3)"]
    lines = [list(line.get_xdata()) for line in axes.lines if line.get_color() == "black"]
    assert lines == [pytest.approx([0.15, 0.35])]


@pytest.mark.parametrize(
    "document",
    [
        "", "{}", "[" * 100_000, "[1]", '{"sample_sets": 1}', document_of(), document_of(base={}),
        document_of(base={**summary_of(0.5), "success_auc": "high"}),
        document_of(base={**summary_of(0.5), "success_auc_ci": [0.1]}),
        document_of(base={**summary_of(0.5), "success_auc_ci": 3}),
        document_of(base={**summary_of(0.5), "by_bucket": {"easy": 3}}),
    ],
)  # fmt: skip
def test_what_is_no_file_of_metrics_is_told(plot, tmp_path, capsys, document):
    assert plot(document) == 2
    assert "--input" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_target_type_is_told(plot, capsys):
    assert plot(document_of(base=summary_of(0.5)), "--paired-target-type", "strong") == 2
    assert "there are: self_response" in capsys.readouterr().err


# ------------------------------------------------------------------ heat maps


@pytest.fixture
def heatmap(tmp_path):
    """Draws a specification; returns the exit code. The figure is `grid.png`."""
    plotting = pytest.importorskip("matplotlib") and __import__("plot_heatmap_grid")

    def draw(spec):
        file = tmp_path / "spec.json"
        file.write_text(spec if isinstance(spec, str) else json.dumps(spec))
        source = ["--demo"] if spec is None else ["--input", str(file)]
        return plotting.main([*source, "--output", str(tmp_path / "grid.png")])

    return draw


def test_the_demo_is_drawn_and_says_that_its_numbers_are_invented(heatmap, tmp_path):
    assert heatmap(None) == 0
    assert is_png(tmp_path / "grid.png")
    import plot_heatmap_grid as plotting

    assert "invented" in plotting.draw(plotting.grid_of(plotting.DEMO)).get_suptitle()


def test_every_cell_has_its_number_and_an_empty_one_a_dash():
    pytest.importorskip("matplotlib")
    import plot_heatmap_grid as plotting

    spec = {"data": [[0.125, None], [-3, float("nan")]], "annotation_fmt": "+.1f", "highlights": [[1, 0]]}
    figure = plotting.draw(plotting.grid_of(spec))
    assert [text.get_text() for text in figure.axes[0].texts] == ["+0.1", "–", "-3.0", "–"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "is no JSON"),
        ([], "an object with the field `data`"),
        ({}, "rows of equally many numbers"),
        ({"data": [[1], [1, 2]]}, "rows of equally many numbers"),
        ({"data": [["a"]]}, "numbers or null"),
        ({"data": [[None]]}, "no number"),
        ({"data": [[1]] * 300}, "up to 200"),
        ({"data": [[1]], "colour": "red"}, "unknown field 'colour'"),
        ({"data": [[1]], "row_labels": ["a", "b"]}, "1 labels are wanted"),
        ({"data": [[1]], "cmap": "no map"}, "colour map"),
        ({"data": [[1]], "annotation_fmt": "%d"}, "such as .2f"),
        ({"data": [[1]], "vmin": 2, "vmax": 1}, "above `vmax`"),
        ({"data": [[1]], "vmax": "x"}, "a number is wanted"),
        ({"data": [[1]], "figsize": [0, 1e9]}, "in inches"),
        ({"data": [[1]], "highlights": [[0, 1]]}, "columns 0 to 0"),
        ({"data": [[1]], "dots": [3]}, "pairs [row, column]"),
        ({"data": [[1]], "top_bands": [{"start": 0, "end": 5}]}, "from 0 to 0"),
        ({"data": [[1]], "top_bands": [{"start": 0, "end": 0, "color": "dark"}]}, "a colour such as"),
    ],
)
def test_a_specification_that_cannot_be_drawn_is_told(heatmap, tmp_path, capsys, spec, told):
    assert heatmap(spec) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "grid.png").exists()


# ------------------------------------------------------------------ by path, as people call them


@pytest.mark.parametrize("script", ["plot_teacher_metrics.py", "plot_heatmap_grid.py"])
def test_without_matplotlib_the_remedy_is_told(tmp_path, script):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('hidden')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOM.parent}"}
    done = subprocess.run([sys.executable, ROOM / script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "requirements-analysis.txt" in done.stderr
