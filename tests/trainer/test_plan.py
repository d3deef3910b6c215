"""The preflight: five broken runs whose every fault is told, and plans of good ones, here and for other machines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.test_plan_memory import QWEN3_4B, QWEN3_8B, described
from trainer.config.compose import PROJECT, resolve
from trainer.errors import BAD_INPUT, DONE
from trainer.plan import main
from trainer.planning.estimate import Cost

CHAIN = PROJECT / "datasets" / "chain"
OWN = "actor_rollout_ref.ref.placement=own"
BUDGET = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=490"
FUSED = "actor_rollout_ref.model.use_fused_kernels"
SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization"
Planner = Callable[..., tuple[int, str]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planner:
    """Runs the command in an empty folder; its exit code and what it said, in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str, **flags: str) -> tuple[int, str]:
        for flag, value in flags.items():
            monkeypatch.setenv(flag, value)
        code = main(arguments)
        assert not (tmp_path / "outputs").exists()
        return code, capsys.readouterr().out

    return run


def data_folder(folder: Path, count: int = 40, **changes: Any) -> str:
    """A DATA_PATH with `count` training rows, the second one changed, and the embedded held-out ones."""
    folder.mkdir()
    rows: list[dict[str, Any]] = pq.read_table(CHAIN / "train.parquet").to_pylist()[:count]
    rows[1] = {**rows[1], **changes}
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    shutil.copy(CHAIN / "test.parquet", folder / "test.parquet")
    return str(folder)


def model_folder(folder: Path, *lacking: str) -> str:
    """The embedded model without some of its files."""
    shutil.copytree(CHAIN / "model", folder)
    for name in lacking:
        (folder / name).unlink()
    return str(folder)


def assert_told(said: str, *words: str) -> None:
    """Every one of these faults is told, and nothing else."""
    for word in words:
        assert word in said, f"{word!r} is not told in:\n{said}"
    assert f"{len(words)} problems:" in said, said


def test_faults_of_schema_model_data_and_placement_are_told_together(plan: Planner, tmp_path: Path) -> None:
    code, said = plan(
        "data.train_batch_size=many",
        "trainer.save_freq_typo=5",
        f"data.val_files={tmp_path}/none.parquet",
        MODEL_PATH=str(tmp_path / "nothing"),
        DATA_PATH=data_folder(tmp_path / "data", data_source="chian"),
        NNODES="2",
        ROLLOUT_BATCH_SIZE="1",
    )
    assert code == BAD_INPUT
    assert_told(
        said,
        "data.train_batch_size='many'",
        "trainer.save_freq_typo: unknown key",
        "nothing: no such folder",
        "none.parquet: no such file",
        "'chian' has no verifier",
        "set NNODES=1",
        "a group of one has no peers",
    )


def test_overrides_that_cannot_be_composed_hide_nothing(plan: Planner, tmp_path: Path) -> None:
    code, said = plan(
        "--gpus=2",
        "novalue",
        "data.seed=[",
        OWN,
        MODEL_PATH=model_folder(tmp_path / "model", "tokenizer.json"),
        DATA_PATH=data_folder(tmp_path / "data", prompt=[]),
        N_GPUS_PER_NODE="4",
    )
    assert code == BAD_INPUT
    assert_told(
        said,
        "novalue: settings have the form key=value",
        "data.seed=[",
        "no tokenizer could be loaded",
        "row 1: prompt=[]",
        "trainer.n_gpus_per_node=4: 2 GPUs are visible",
        "teacher_regularization=ema needs the student's",
        "need as many GPUs, and 2 are visible",
    )


def test_an_unknown_method_hides_nothing(plan: Planner, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    Path(model, "config.json").write_text("{")
    code, said = plan(
        "--config-name=modp",
        "actor_rollout_ref.actor.ppo_mini_batch_size=7",
        MODEL_PATH=model,
        DATA_PATH=str(tmp_path / "none"),
        NNODES="3",
    )
    assert code == BAD_INPUT
    assert_told(
        said,
        "--config-name modp: no such method",
        "ppo_mini_batch_size=7 does not divide",
        "config.json cannot be read",
        "train.parquet: no such file",
        "test.parquet: no such file",
        "set NNODES=1",
    )


def test_what_a_method_cannot_use_is_told_beside_a_small_file_and_a_model_without_template(
    plan: Planner, tmp_path: Path
) -> None:
    code, said = plan(
        "--config-name=grpo",
        "--gpus=1",
        "algorithm.overlong_buffer=9000",
        "trainer.n_gpus_per_node=2",
        MODEL_PATH=model_folder(tmp_path / "model", "chat_template.jinja"),
        TEACHER_MODEL_PATH=str(CHAIN / "model"),
        DATA_PATH=data_folder(tmp_path / "data", count=20),
    )
    assert code == BAD_INPUT
    assert_told(
        said,
        "the loss vanilla asks no teacher",
        "algorithm.overlong_buffer=9000 is above",
        "no chat template",
        "has 20 prompts that fit",
        "trainer.n_gpus_per_node=2: 1 GPUs are visible",
    )


def test_a_distant_teacher_with_lengths_and_data_that_do_not_fit(plan: Planner, tmp_path: Path) -> None:
    code, said = plan(
        "--config-name=ts_sdpo",
        "--gpus=2",
        OWN,
        "actor_rollout_ref.ref.n_gpus=3",
        "actor_rollout_ref.actor.self_distillation.distillation_topk=null",
        f"data.val_files={tmp_path}/none.parquet",
        MODEL_PATH=str(CHAIN / "model"),
        ROLLOUT_RESPONSE_LENGTH="40000",
    )
    assert code == BAD_INPUT
    for word in (
        "whole distributions would have to be sent",
        "actor_rollout_ref.ref.n_gpus=3: 1 actor processes",
        "need as many GPUs, and 2 are visible",
        "the model reads 16384 tokens",
        "none.parquet: no such file",
    ):
        assert word in said, said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("profile=nope", "profile=nope"),
        ("data=3", "data=3"),
        ("~data", "~data: settings have the form key=value"),
        ("actor_rollout_ref.model.path=[", "actor_rollout_ref.model.path=["),
        ("actor_rollout_ref.actor.optim.betas=[2, 0.9]", "actor_rollout_ref.actor.optim.betas.0=2"),
        ("actor_rollout_ref.rollout.sync_tolerance=-1", "actor_rollout_ref.rollout.sync_tolerance"),
    ],
)
def test_whatever_an_override_breaks_the_rest_is_checked(plan: Planner, override: str, words: str) -> None:
    code, said = plan("--gpus=0", override, NNODES="2")
    assert code == BAD_INPUT
    assert words in said
    assert "set NNODES=1" in said


def test_an_output_folder_that_cannot_be_used_is_told_beside_the_rest(plan: Planner, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    code, said = plan(OUTPUT_DIR=str(tmp_path / "mine"), DATA_PATH=str(tmp_path / "none"))
    assert code == BAD_INPUT
    assert_told(said, "holds no run of this project", "train.parquet: no such file", "test.parquet: no such file")
    code, said = plan(OUTPUT_DIR=str(tmp_path / "file" / "run"), DATA_PATH=str(CHAIN))
    assert code == BAD_INPUT
    assert "cannot be written; name another OUTPUT_DIR" in said


def test_the_plain_run_can_start(plan: Planner) -> None:
    code, said = plan("--gpus=0")
    assert code == DONE
    for word in ("This run can start", "profile embedded", "Context budget", "Packing", "Memory", "learn: student"):
        assert word in said
    assert "reference_compat" not in said
    assert max(map(len, said.splitlines())) <= 80
    code, said = plan("--gpus=0", "--all")
    assert code == DONE
    assert "reference_compat" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_file_that_cannot_be_written_is_told(plan: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpus=0", "--json", "none/plan.json"]) == BAD_INPUT
    assert "--json none/plan.json: cannot be written" in capsys.readouterr().err


def test_settings_are_told_with_their_origin(plan: Planner, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    code, _ = plan("--gpus=0", "--json", str(file), "data.shuffle=false", "trainer.test_freq=10", LR="0.001")
    found = json.loads(file.read_text())
    origins = {setting["key"]: setting["origin"] for setting in found["settings"]}
    values = {setting["key"]: setting["value"] for setting in found["settings"]}
    assert code == DONE
    assert found["can_run"] is True
    assert origins["data.shuffle"] == origins["trainer.test_freq"] == "override"
    assert origins["actor_rollout_ref.actor.optim.lr"] == "flag LR"
    assert origins["data.max_response_length"] == "profile embedded"
    assert origins["actor_rollout_ref.actor.self_distillation.include_another_solution"] == "mopd.yaml"
    assert origins["actor_rollout_ref.actor.grad_clip"] == "actor.yaml"
    assert origins["reference_compat"] == "base.yaml"
    tree = resolve("mopd", ["data.shuffle=false"], {"LR": "0.001"}).tree
    assert values["actor_rollout_ref.actor.optim.lr"] == tree["actor_rollout_ref"]["actor"]["optim"]["lr"] == 0.001


def test_peers_that_do_not_fit_are_counted_by_the_run_s_own_rules(plan: Planner, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    distill = "actor_rollout_ref.actor.self_distillation"
    limits = ("data.max_prompt_length=20", f"{distill}.max_reprompt_len=150", "data.max_response_length=64")
    assert plan("--gpus=0", "--json", str(file), *limits)[0] == DONE
    long, short = json.loads(file.read_text())["contexts"]
    assert (long["response"], short["response"]) == (64, 32)
    assert long["peers"] == short["peers"] == 3 * long["prompts"]
    assert long["cut"] == long["peers"]
    assert long["dropped"] == short["cut"] == 0
    assert long["lengths"]["most"] <= 150
    too_tight = (*limits[:1], f"{distill}.max_reprompt_len=30", limits[2])
    assert plan("--gpus=0", "--json", str(file), *too_tight)[0] == DONE
    assert json.loads(file.read_text())["contexts"][0]["dropped"] == long["peers"]


def test_a_large_model_is_planned_for_a_machine_that_is_not_there(plan: Planner, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    asked = ["--gpus=8", "--gpu-memory=80GB", "--json", str(file), "data.max_prompt_length=1024"]
    model = described(tmp_path / "qwen3", **QWEN3_4B)
    code, said = plan(*asked, f"{FUSED}=false", MODEL_PATH=model)
    assert code == BAD_INPUT
    assert_beside_the_sampler(said, f"{FUSED}=true")
    code, said = plan(*asked, "trainer.save_freq=0")
    found = json.loads(file.read_text())
    assert code == DONE, said
    assert "has no weights: this is planned from its config.json" in said
    assert "GiB in all actor processes while a checkpoint is written" in said, "the last one is"
    held = {holder["name"]: sum(holder["parts"].values()) for holder in found["memory"]}
    assert all(size <= 80 * 2**30 for size in held.values())
    assert found["packing"][0]["rollouts"] == 256
    assert max(found["costs"][0]["seconds"], key=found["costs"][0]["seconds"].get) == "sample: decode"


def test_a_model_that_lacks_room_beside_the_sampler_fits_once_that_sleeps(plan: Planner, tmp_path: Path) -> None:
    """Rank 0 then has its GPU alone while it learns; what is left to fit is what it keeps while rollouts are drawn."""
    asked = ["--gpus=8", "--gpu-memory=80GB", "data.max_prompt_length=1024"]
    model = described(tmp_path / "qwen3", **QWEN3_8B)
    code, said = plan(*asked, MODEL_PATH=model)
    assert code == BAD_INPUT
    assert_beside_the_sampler(said, "actor_rollout_ref.rollout.free_cache_engine=true")
    sleeping = [*asked, "actor_rollout_ref.rollout.free_cache_engine=true"]
    code, said = plan(*sleeping, MODEL_PATH=model)
    assert code == DONE, said
    assert "actor rank 0 while sampling" in said
    code, said = plan(*sleeping, f"{SHARE}=0.85", "trainer.save_freq=0", MODEL_PATH=model)
    assert code == BAD_INPUT
    assert "memory: actor rank 0 while sampling needs" in said
    code, said = plan(*sleeping, "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true", MODEL_PATH=model)
    assert code == DONE, said
    assert "for what is not on the GPUs between phases" in said


def test_sampling_beside_learning_takes_the_longer_of_both() -> None:
    seconds = {
        "sample: prefill": 1.0,
        "sample: decode": 4.0,
        "learn: teacher": 2.0,
        "learn: student": 5.0,
        "publish": 0.5,
    }
    assert Cost(1, seconds, 1, 1).total == 12.5
    assert Cost(1, seconds, 1, 1, overlap=True).total == 7.5


def assert_beside_the_sampler(said: str, remedy: str) -> None:
    """Rank 0 and the sampler share a GPU, which is what does not fit."""
    assert "1 problem:" in said, said
    assert "memory: actor rank 0 (on GPU 0) needs" in said
    assert f"lower {SHARE}=0.55" in said
    assert f"set {remedy}" in said


def test_the_packing_plan_is_that_of_the_run(plan: Planner, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = ["--config-name=grpo", "--gpus=0", "--json", str(file)]
    assert plan(*arguments, BUDGET)[0] == DONE
    packing = json.loads(file.read_text())["packing"][0]
    # Prompts of 17 tokens and responses of 32; a group of 8 shares its prompt, once in every micro-batch that it is in.
    assert packing["optimizer_steps"] == 2
    assert packing["asked_tokens"] == 128 * 49
    prompts, rest = divmod(packing["student_tokens"] - 128 * 31, 17)
    assert rest == packing["teacher_tokens"] == 0
    assert 16 <= prompts <= 64
    assert packing["largest"] * 31 + 17 <= 490
    assert plan(*arguments, BUDGET, "actor_rollout_ref.model.attn_implementation=sdpa")[0] == DONE
    packing = json.loads(file.read_text())["packing"][0]
    # Ten padded rows to a micro-batch, of 64 in each of the two steps.
    assert (packing["optimizer_steps"], packing["largest"], packing["micro_batches"]) == (2, 10, 14)
    assert packing["student_tokens"] == packing["asked_tokens"] == 128 * 49


@pytest.mark.parametrize("text", ["much", "80XB"])
def test_a_size_that_is_none_is_refused(plan: Planner, text: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        plan(f"--gpu-memory={text}")
