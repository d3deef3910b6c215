"""Every line that a suite would start is a valid run, with the published settings; what cannot be meant is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.suites import ABLATIONS, GRPO, RICH_GRPO, RICH_SDPO, ROOT, SDPO, SUITES, lines_of, started
from trainer.config.compose import contradictions, read_yaml

# ------------------------------------------------------------------ what would be started


@pytest.mark.parametrize(
    ("suite", "quick", "method"),
    [
        *(
            (suite, quick, method)
            for suite in (SDPO, RICH_SDPO)
            for quick in (False, True)
            for method in ("mopd", "sdpo")
        ),
        *((suite, quick, "grpo") for suite in (GRPO, RICH_GRPO) for quick in (False, True)),
        (ABLATIONS, True, "mopd"),
    ],
)
def test_every_line_is_a_run_that_can_be_started(call, tmp_path, suite, quick, method):
    lines = lines_of(call(suite, "--local", "--dry-run", *["--quick"] * quick, METHOD=method, SEEDS="3 4"))
    assert len({line.name for line in lines}) == len(lines) > 1
    for line in {(one.method, *one.settings): one for one in lines}.values():
        assert contradictions(line.config) == []
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+-seed[34]", line.name)
        assert line.name.endswith(f"-seed{line.flags['SEED']}")
        assert Path(line.flags["OUTPUT_DIR"]).parent.parent == tmp_path / "outputs"
    assert {line.method for line in lines} == {method}
    assert not (tmp_path / "outputs").exists()
    assert started(tmp_path) == []


def test_a_line_is_started_by_bash_as_it_is(call, tmp_path):
    """Also with a folder whose name has a space, a quote and a dollar sign."""
    output = tmp_path / "a b'c $HOME"
    done = call(RICH_SDPO, "--dry-run", "--quick", OUTPUT_DIR=str(output), MOPD_PYTHON=sys.executable)
    told = subprocess.run(
        ["bash", "-c", f"{done.stdout.strip()} --cfg job"], cwd="/", capture_output=True, text=True, timeout=120
    )
    assert (told.returncode, told.stderr) == (0, "")
    (tmp_path / "told.yaml").write_text(told.stdout)
    asked = read_yaml(tmp_path / "told.yaml")["trainer"]
    assert asked["output_dir"] == f"{output}/mopd-chain-embedded-seed42"


def test_generalization_is_as_published(call):
    lines = lines_of(call(SDPO, "--dry-run"))
    folders = ["sciknoweval/biology", "sciknoweval/chemistry", "sciknoweval/material", "sciknoweval/physics", "tooluse"]
    data = [str(ROOT / "datasets" / folder) for folder in folders]
    models = ["Qwen/Qwen3-8B", "allenai/Olmo-3-7B-Instruct"]
    assert [(line.flags["DATA_PATH"], line.flags["MODEL_PATH"]) for line in lines] == [
        (d, m) for d in data for m in models
    ]
    assert [line.name for line in lines[:2]] == [
        "mopd-sciknoweval-biology-Qwen3-8B-seed42",
        "mopd-sciknoweval-biology-Olmo-3-7B-Instruct-seed42",
    ]
    assert key_settings(lines[0].config) == (32, 8, 32, 1e-5, 10, 16, 2048, 8192)
    distill = lines[0].config.actor_rollout_ref.actor.self_distillation
    assert (distill.alpha, distill.distillation_topk, distill.teacher_update_rate) == (0.5, 100, 0.05)
    assert not distill.include_environment_feedback
    assert lines[0].config.data.train_files == f"{data[0]}/train.parquet"


def test_the_grpo_baseline_has_two_rates_on_and_off_policy(call):
    lines = lines_of(call(GRPO, "--dry-run"))
    assert len(lines) == 40
    assert {line.method for line in lines} == {"grpo"}
    assert {key_settings(line.config) for line in lines[::10]} == {
        (32, 8, mini, lr, 10, 16, 2048, 8192) for mini in (8, 32) for lr in (1e-5, 1e-6)
    }
    assert lines[0].name == "grpo-sciknoweval-biology-Qwen3-8B-lr1e-5-mini8-seed42"


def test_rich_feedback_is_as_published(call):
    (ours,), (baseline,) = lines_of(call(RICH_SDPO, "--dry-run")), lines_of(call(RICH_GRPO, "--dry-run"))
    assert key_settings(ours.config) == (32, 8, 1, 1e-6, 0, 4, 2048, 8192)
    distill = ours.config.actor_rollout_ref.actor.self_distillation
    assert (distill.alpha, distill.distillation_topk, distill.teacher_update_rate) == (1.0, 20, 0.01)
    assert distill.include_environment_feedback
    batch, n, mini, lr, _, val_n, *_ = key_settings(baseline.config)
    assert (batch, n, mini, lr, val_n) == (32, 8, 8, 1e-6, 4)
    assert (ours.name, baseline.name) == ("mopd-lcb_v6-Qwen3-8B-seed42", "grpo-lcb_v6-Qwen3-8B-seed42")


def key_settings(config):
    """Batch, group, mini-batch, learning rate, warm-up, validation samples, and both lengths."""
    paths, data = config.actor_rollout_ref, config.data
    learning = paths.actor.ppo_mini_batch_size, paths.actor.optim.lr, paths.actor.optim.lr_warmup_steps
    lengths = data.max_prompt_length, data.max_response_length
    return data.train_batch_size, paths.rollout.n, *learning, paths.rollout.val_kwargs.n, *lengths


def test_flags_and_settings_of_the_caller_win(call, tmp_path):
    (tmp_path / "mine").mkdir()
    flags = {"LR": "3e-5", "TOTAL_STEPS": "7", "MODELS": "/models/one", "DATASETS": "mine", "CKPT_DIR": "/scratch"}
    (line,) = lines_of(call(SDPO, "--dry-run", "actor_rollout_ref.rollout.val_kwargs.n=2", **flags))
    assert (line.config.actor_rollout_ref.actor.optim.lr, line.config.trainer.total_training_steps) == (3e-5, 7)
    assert [one for one in line.settings if "val_kwargs" in one] == ["actor_rollout_ref.rollout.val_kwargs.n=2"]
    assert line.name == "mopd-mine-one-seed42"
    assert line.flags["DATA_PATH"] == str(tmp_path / "mine")
    assert line.flags["CKPT_DIR"] == f"/scratch/{line.name}"


# ------------------------------------------------------------------ the ablations


def test_the_ablations_have_every_variant_and_nothing_else_differs(call):
    lines = lines_of(call(ABLATIONS, "--dry-run", "--quick", SEEDS="4"))
    found = {line.name.removesuffix("-seed4"): varied(line.config) for line in lines}
    base = found["2S1F"]
    assert next(iter(found)) == "2S1F", "the first is what others are compared with"
    assert base == ((True, True, True), "none", 0.5, 100, "ema", 0.05)
    assert {name: shown for name, (shown, *rest) in found.items() if (*rest,) == base[1:]} == {
        "2S1F": (True, True, True),
        "2S": (True, True, False),
        "1S": (True, False, False),
        "F": (False, False, True),
    }
    alone = [{values[place] for values in found.values() if departs(values, base) == [place]} for place in range(1, 6)]
    assert alone[0] == {"random_peer", "unrelated_prompt", "success_only_matched"}
    assert alone[1] == {0.0, 1.0}
    assert alone[2] == {1, 20}
    assert alone[3] == {"frozen", "live", "trust-region"}
    assert alone[4] == {0.01, 0.2}
    assert len(found) == 4 + sum(map(len, alone)), "a variant departs in one respect only"


def varied(config):
    """What the ablations vary, in a fixed order."""
    one = config.actor_rollout_ref.actor.self_distillation
    assert one.failure_solution_condition == "always"
    assert not one.include_environment_feedback
    shown = one.include_primary_solution, one.include_another_solution, one.include_failure_solution
    teacher = one.teacher_regularization, one.teacher_update_rate
    return shown, one.peer_control_mode, one.alpha, one.distillation_topk, *teacher


def departs(values, base):
    """The places at which two tuples differ."""
    return [place for place, (one, other) in enumerate(zip(values, base, strict=True)) if one != other]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("suite", "arguments", "flags", "said"),
    [
        (SDPO, [], {}, "Nothing was started."),
        (ABLATIONS, ["--quick"], {}, "Nothing was started."),
        (SDPO, ["--local", "--only", ""], {}, "--only NAME[,NAME]"),
        (SDPO, ["--locally"], {}, "Unknown option '--locally'"),
        (SDPO, ["--skip-install"], {}, "MOPD_PYTHON"),
        (SDPO, ["--local", "word"], {}, "'word' is neither"),
        (SDPO, ["--local", "LR=3"], {}, "LR=3: a flag of the environment"),
        (SDPO, ["--local", "data.seed=3"], {}, "SEEDS='0 1 2'"),
        (SDPO, ["--local", "trainer.output_dir=x"], {}, "OUTPUT_DIR"),
        (SDPO, ["--local"], {"METHOD": "grpo"}, "METHOD is 'grpo'"),
        (SDPO, ["--local"], {"SEEDS": "one"}, "SEEDS is 'one'"),
        (SDPO, ["--local"], {"SEEDS": "1 1"}, "Two runs would be called"),
        (SDPO, ["--local", "--only", "x"], {}, "no run is called 'x'; there are mopd-sciknoweval-biology-Qwen3-8B"),
        (ABLATIONS, ["--local", "--only", "2S,x"], {}, "no run is called 'x'; there are 2S1F 2S 1S F"),
        (ABLATIONS, ["--local", "--only", "x"], {}, "no run is called 'x'"),
        (SDPO, ["--local", "--only"], {}, "--only NAME[,NAME]"),
        (SDPO, ["--local", "--quick"], {"MODELS": "m"}, "MODELS is set to 'm', but --quick"),
        (ABLATIONS, ["--local"], {"ALPHA": "1"}, "ALPHA is set to '1', but that is what is varied here"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(call, tmp_path, suite, arguments, flags, said):
    done = call(suite, *arguments, **flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert started(tmp_path) == []


def test_without_a_mode_a_scheduler_is_named(call):
    told = call(RICH_GRPO).stderr
    assert "Nothing was started." in told
    assert "scheduler" in told
    assert "    grpo-lcb_v6-Qwen3-8B-seed42\n" in told


@pytest.mark.parametrize("suite", SUITES)
def test_help_is_the_comment_at_the_top(call, suite):
    done = call(suite, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash experiments/{suite} --dry-run | --local" in done.stdout
