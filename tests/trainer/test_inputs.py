"""Bad input through the real command: exit code 2, what was wrong, the value, the remedy; and nothing is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config.compose import PROJECT
from trainer.errors import BAD_INPUT
from trainer.main import main
from trainer.resume import history

CHAIN = PROJECT / "datasets" / "chain"
Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs the command, sees it refuse, and gives what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, method: str = "mopd", **flags: str) -> str:
        for flag, value in flags.items():
            monkeypatch.setenv(flag, value)
        monkeypatch.setattr("trainer.session.start_workers", lambda *_: pytest.fail("workers were started"))
        assert main(["--config-name", method, *overrides]) == BAD_INPUT
        assert not (tmp_path / "outputs").exists()
        return capsys.readouterr().err

    return run


def rows(**changes: Any) -> list[dict[str, Any]]:
    """Twenty rows as the embedded data has them, the second one changed."""
    good: list[dict[str, Any]] = pq.read_table(CHAIN / "train.parquet").to_pylist()[:20]
    good[1] = {**good[1], **changes}
    return good


def data_folder(folder: Path, train: list[dict[str, Any]]) -> str:
    """A DATA_PATH with these training rows and the embedded held-out ones."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(train), folder / "train.parquet")
    shutil.copy(CHAIN / "test.parquet", folder / "test.parquet")
    return str(folder)


def test_a_missing_data_folder_is_told_for_both_files_with_the_command(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(DATA_PATH=str(tmp_path / "none"))
    assert said.count("no such file") == 2
    assert f"python data/preprocess.py --data_source {tmp_path}/none" in said


def test_a_missing_model_folder_is_told_with_the_missing_data(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(MODEL_PATH=str(tmp_path / "none"), DATA_PATH=str(tmp_path / "nothing"))
    assert "it must be a Hugging Face model folder (MODEL_PATH)" in said
    assert said.count("no such file") == 2
    assert "3 problems" in said


@pytest.mark.parametrize("fault", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_model_folder_that_lacks_a_part_is_refused(refuse: Refuse, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHAIN / "model", folder)
    (folder / fault).unlink()
    said = refuse(MODEL_PATH=str(folder))
    words = {
        "config.json": "no config.json",
        "model.safetensors": "no weights",
        "tokenizer.json": "no tokenizer",
        "chat_template.jinja": "no chat template",
    }
    assert words[fault] in said
    assert str(folder) in said


def test_a_damaged_model_description_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    shutil.copytree(CHAIN / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    assert "config.json cannot be read" in refuse(MODEL_PATH=str(tmp_path / "model"))


def test_lengths_beyond_the_model_are_refused(refuse: Refuse) -> None:
    most = json.loads((CHAIN / "model" / "config.json").read_text())["max_position_embeddings"]
    said = refuse(f"data.max_response_length={most}")
    assert f"reads {most} tokens" in said
    assert "ROLLOUT_RESPONSE_LENGTH" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward_model": {"style": "rule", "ground_truth": None}}, "'ground_truth': None} must hold a ground_truth"),
        ({"prompt": []}, "row 1: prompt=[] must be messages that end with a user's"),
        ({"data_source": "chian"}, "data_source 'chian' has no verifier; known: "),
    ],
)
def test_a_row_that_is_no_task_is_refused(refuse: Refuse, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refuse(DATA_PATH=data_folder(tmp_path / "data", rows(**changes)))


def test_a_missing_column_is_named(refuse: Refuse, tmp_path: Path) -> None:
    without = [{key: value for key, value in row.items() if key != "reward_model"} for row in rows()]
    said = refuse(DATA_PATH=data_folder(tmp_path / "data", without))
    assert "no column reward_model" in said


def test_a_batch_larger_than_the_data_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(
        "actor_rollout_ref.actor.ppo_mini_batch_size=32",
        DATA_PATH=data_folder(tmp_path / "d", rows()),
        TRAIN_BATCH_SIZE="32",
    )
    assert "data.train_batch_size=32" in said
    assert "has 20 prompts that fit; lower TRAIN_BATCH_SIZE" in said


def test_prompts_over_the_limit_are_counted_and_refused_when_they_may_not_be_left_out(refuse: Refuse) -> None:
    said = refuse("data.filter_overlong_prompts=false", ROLLOUT_PROMPT_LENGTH="10")
    assert "512 of 512 prompts exceed data.max_prompt_length=10" in said
    assert "96 of 96 prompts exceed" in said


def test_a_contradiction_is_told_beside_faulty_data(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(DATA_PATH=str(tmp_path / "none"), ROLLOUT_BATCH_SIZE="1")
    assert "a group of one has no peers" in said
    assert "3 problems" in said


def test_several_nodes_and_absent_gpus_are_refused(refuse: Refuse) -> None:
    said = refuse("trainer.device=cuda", NNODES="2", N_GPUS_PER_NODE="64")
    assert "set NNODES=1" in said
    assert "trainer.n_gpus_per_node=64" in said


def test_a_folder_that_cannot_be_written_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "name another OUTPUT_DIR" in refuse(OUTPUT_DIR=str(tmp_path / "file" / "run"))


def test_json_beside_a_missing_parquet_is_converted_or_its_fault_told(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"prompt": "x"}\n')
    (tmp_path / "test.json").write_text("not json\n")
    said = refuse(DATA_PATH=str(tmp_path))
    assert "train.json" in said
    assert "test.json" in said


def test_an_unknown_method_is_refused(refuse: Refuse) -> None:
    assert "no such method; known: mopd, sdpo, grpo" in refuse(method="modp")


def test_the_resolved_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config-name", "mopd", "--cfg", "job"]) == 0
    assert "max_reprompt_len: 10240" in capsys.readouterr().out


def test_attention_that_is_not_installed_is_refused(refuse: Refuse) -> None:
    assert "flash-attn is not installed" in refuse(ATTN_IMPLEMENTATION="flash_attention_2")


def test_a_flag_given_as_a_key_is_explained(refuse: Refuse) -> None:
    assert "write TOTAL_STEPS=... before the command" in refuse("TOTAL_STEPS=3")


def test_a_folder_that_is_no_run_is_left_alone(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("mine: true")
    assert "holds no run of this project" in refuse(OUTPUT_DIR=str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.yaml"]
    assert (tmp_path / "mine" / "config.yaml").read_text() == "mine: true"


@pytest.mark.parametrize("content", ["garbage\n", "null\n", "[]\n", '{"step": null}\n'])
def test_metrics_that_are_no_runs_are_refused(refuse: Refuse, tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("# method: mopd")
    (tmp_path / "run" / "metrics.jsonl").write_text(content)
    assert "holds no run of this project" in refuse(OUTPUT_DIR=str(tmp_path / "run"))


def test_half_a_first_line_of_metrics_is_no_run_to_lose(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# method: mopd")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a')
    assert history(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"ste')
    assert history(tmp_path) == [{"step": 4}]


def test_parquet_that_is_there_is_never_converted_over(refuse: Refuse, tmp_path: Path) -> None:
    record = {"idx": 1, "kind": "mcq", "dataset": "sciknoweval", "answer": "A", "prompt": "p", "description": "d"}
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(record) + "\n")
    shutil.copy(CHAIN / "test.parquet", tmp_path / "test.parquet")
    refuse(DATA_PATH=str(tmp_path))
    assert (tmp_path / "test.parquet").read_bytes() == (CHAIN / "test.parquet").read_bytes()
    assert (tmp_path / "train.parquet").is_file()


def test_weights_and_architectures_that_cannot_be_loaded_are_refused(refuse: Refuse, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHAIN / "model", folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    assert "model.safetensors cannot be read" in refuse(MODEL_PATH=str(folder))
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "model_type": "t5"}))
    assert "is no causal language model" in refuse(MODEL_PATH=str(folder))


@pytest.mark.parametrize(
    "override", ["data=3", "~data", "hydra.run.dir=x", "actor_rollout_ref.model=3", "profile=null"]
)
def test_overrides_of_the_wrong_kind_are_refused(refuse: Refuse, override: str) -> None:
    assert "nothing was started" in refuse(override)


def test_rollouts_that_cannot_be_dealt_in_the_published_order_are_told_at_the_start(refuse: Refuse) -> None:
    said = refuse("reference_compat=true", "trainer.n_gpus_per_node=3")
    assert "128 rollouts" in said
    assert "choose a multiple of 3" in said
