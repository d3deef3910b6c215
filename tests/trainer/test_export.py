"""An exported folder holds the checkpoint's own weights, says what it is, and is there whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import export, fsdp
from trainer.config.compose import PROJECT, as_yaml, resolve
from trainer.forward import ResponseScorer
from trainer.resume import METHOD_LINE
from trainer.workers.state import Saving, StateKeeper

MODEL = str(PROJECT / "datasets" / "chain" / "model")
TOKENS = torch.arange(3, 43)[None]
SECRET = "hf_thisIsNobodysToken"


@dataclass(frozen=True)
class Written:
    """A run with checkpoints at steps 2 and 4, and what their models say."""

    folder: Path
    logits: dict[tuple[int, str], Tensor]


def shaken(seed: int) -> ResponseScorer:
    """The embedded model, moved as a training step would."""
    scorer = ResponseScorer(fsdp.load_model(MODEL, torch.float32, "sdpa"))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return scorer


def says(model: Any) -> Tensor:
    """The logits of some tokens."""
    with torch.no_grad():
        logits: Tensor = model(TOKENS).logits
    return logits


def save(folder: Path, step: int, settings: str) -> dict[tuple[int, str], Tensor]:
    """A checkpoint, written by the code that writes a run's."""
    models = {"student": shaken(step), "teacher": shaken(step + 100)}
    keeper = StateKeeper(0, 1, deadline_s=60.0)
    saving = Saving(str(folder / "checkpoints" / f"step_{step}"), step, {"seed": 42}, settings, keep=9)
    student = models["student"]
    weights = {name: weight.clone() for name, weight in fsdp.full_weights(student)}
    keeper.stage(saving, models, torch.optim.AdamW(student.parameters()), weights, student.model, MODEL)
    keeper.settle()
    return {(step, name): says(model.model) for name, model in models.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("somebodys-machine") / "run"
    folder.mkdir()
    settings = f"{METHOD_LINE} mopd\n" + as_yaml(resolve("mopd", [f"trainer.output_dir={folder}"], {}).tree)
    (folder / "config.yaml").write_text(settings)
    manifest = {
        "method": "mopd",
        "seed": 42,
        "commit": "c0ffee",
        "actors": {"device": "cpu"},
        "versions": {"mopd": "9"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    records = [
        {"step": 0, "val-core/chain/acc/mean@8": 0.25, "val-aux/chain/prompts": 96},
        {"step": 1},
        {"step": 2, "val-core/chain/acc/mean@8": 0.5, "val-aux/chain/prompts": 96},
        {"step": 3},
        {"step": 4},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    logits = save(folder, 2, settings) | save(folder, 4, settings)
    return Written(folder, logits)


@pytest.fixture
def copy(made: Written, tmp_path: Path) -> Path:
    """A run that a test may spoil."""
    return Path(shutil.copytree(made.folder, tmp_path / "copy"))


def exported(source: Path, output: Path, *more: str) -> Path:
    assert export.main([str(source), "--output", str(output), *more]) == 0
    return output


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("weights", ["student", "teacher"])
def test_transformers_loads_the_same_model(made: Written, tmp_path: Path, weights: str) -> None:
    folder = exported(made.folder, tmp_path / "out", "--weights", weights)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    torch.testing.assert_close(says(model), made.logits[4, weights], rtol=0, atol=0)
    assert not torch.equal(made.logits[4, "student"], made.logits[4, "teacher"])


def test_a_step_or_a_checkpoint_names_the_weights(made: Written, tmp_path: Path) -> None:
    by_step = exported(made.folder, tmp_path / "a", "--step", "2")
    by_folder = exported(made.folder / "checkpoints" / "step_2", tmp_path / "b")
    by_hf = exported(made.folder / "checkpoints" / "step_2" / "hf", tmp_path / "c")
    expected = made.logits[2, "student"]
    for folder in (by_step, by_folder, by_hf):
        torch.testing.assert_close(says(AutoModelForCausalLM.from_pretrained(folder)), expected, rtol=0, atol=0)


def test_shards_give_what_hf_would_have_given(made: Written, copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "checkpoints" / "step_4" / "hf")
    whole, sharded = exported(made.folder, tmp_path / "whole"), exported(copy, tmp_path / "sharded")
    assert {file.name for file in whole.iterdir()} == {file.name for file in sharded.iterdir()}
    theirs, ours = load_file(whole / "model.safetensors"), load_file(sharded / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_tokenizer_template_and_generation_go_along(made: Written, tmp_path: Path) -> None:
    folder = exported(made.folder, tmp_path / "out")
    ours, base = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "user", "content": "calc 7 + 5"}]
    asked = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] for tokenizer in (ours, base)
    ]
    assert asked[0] == asked[1]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache
    assert model.generation_config.eos_token_id == base.eos_token_id


def test_a_cast_rounds_every_weight_once(made: Written, tmp_path: Path) -> None:
    folder = exported(made.folder, tmp_path / "out", "--dtype", "bfloat16")
    hf = load_file(made.folder / "checkpoints" / "step_4" / "hf" / "model.safetensors")
    ours = load_file(folder / "model.safetensors")
    assert {name: weight.bfloat16().tolist() for name, weight in hf.items()} == {n: w.tolist() for n, w in ours.items()}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_precision_is_that_of_the_sampler_unless_asked(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "actors": {"device": "cuda"}}))
    assert json.loads((exported(copy, tmp_path / "a") / "config.json").read_text())["dtype"] == "bfloat16"


def test_large_weights_lie_in_several_files(made: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SHARD", "300KB")
    folder = exported(made.folder, tmp_path / "out")
    files = list(folder.glob("*.safetensors"))
    assert len(files) > 1
    assert {file.stat().st_mode for file in files} == {(folder / "config.json").stat().st_mode}
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(says(model), made.logits[4, "student"], rtol=0, atol=0)


# ------------------------------------------------------------------ the card


def header_of(card: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(card.split("---\n")[1]))


def test_the_card_tells_the_runs_own_figures(made: Written, tmp_path: Path) -> None:
    card = (exported(made.folder, tmp_path / "mine", "--step", "2") / "README.md").read_text()
    assert header_of(card)["library_name"] == "transformers"
    assert "license" not in header_of(card)
    assert "# license: fill in" in card
    assert "| chain: mean@8 | 25.0 | 50.0 |" in card
    assert "after step 2" in card
    assert "96 prompts of chain" in card
    for text in ("# mine\n", "`mopd`", "c0ffee", "| seed | 42 |", "2605.12652", "train_batch_size: 16"):
        assert text in card
    assert "was not measured" not in card
    assert "somebodys-machine" not in card
    assert str(PROJECT) not in card


def test_the_card_says_what_was_not_measured(made: Written, tmp_path: Path) -> None:
    card = (exported(made.folder, tmp_path / "out", "--weights", "teacher") / "README.md").read_text()
    assert "the teacher, whose weights these are, was not measured" in card
    assert "These weights are of step 4, which was not measured" in card
    assert "after step 2 |" in card


def test_a_checkpoint_alone_has_a_card_without_figures(made: Written, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(made.folder / "checkpoints" / "step_2", tmp_path / "elsewhere" / "step_2"))
    settings = (alone / "config.yaml").read_text()
    found = export.source_of(alone, None)
    assert found.run is not None, "the settings say where the run lies"
    card = export.card_of(
        export.Exported("t", 2, "student", "float32"), OmegaConf.to_container(OmegaConf.create(settings)), None
    )
    assert "Unknown: its run's folder was not at hand" in card


def test_a_base_model_from_the_hubs_cache_is_named_as_on_the_hub() -> None:
    path = "/home/a/.cache/huggingface/hub/models--Qwen--Qwen3-4B/snapshots/1cfa9a7"
    settings = {"actor_rollout_ref": {"model": {"path": path}}}
    card = export.card_of(export.Exported("t", 2, "student", "float32"), settings, None)
    assert header_of(card)["base_model"] == "Qwen/Qwen3-4B"


# ------------------------------------------------------------------ refusals


def refused(arguments: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said, once it is sure that nothing was written."""
    before = sorted(output.parent.rglob("*"))
    assert export.main([*arguments, "--output", str(output)]) == 2
    assert sorted(output.parent.rglob("*")) == before
    return capsys.readouterr().err


def test_what_cannot_be_exported_is_refused(
    made: Written, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, checkpoints = tmp_path / "out", copy / "checkpoints"
    assert "no such folder" in refused([str(tmp_path / "none")], out, capsys)
    assert "has the steps 2, 4" in refused([str(made.folder), "--step", "3"], out, capsys)
    assert "leave --step out" in refused([str(checkpoints / "step_2"), "--step", "2"], out, capsys)
    assert "is there already" in refused([str(made.folder)], copy, capsys)
    damaged = checkpoints / "step_4" / "hf" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "model.safetensors is damaged" in refused([str(copy)], out, capsys)
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()
    assert "holds no checkpoint" in refused([str(copy)], out, capsys)


def test_weights_that_were_not_kept_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keeper, student = StateKeeper(0, 1, deadline_s=60.0), shaken(1)
    settings = f"{METHOD_LINE} grpo\n" + as_yaml(resolve("grpo", [], {}).tree)
    saving = Saving(str(tmp_path / "step_1"), 1, {}, settings, keep=9)
    weights = dict(fsdp.full_weights(student))
    keeper.stage(saving, {"student": student}, torch.optim.AdamW(student.parameters()), weights, student.model, MODEL)
    keeper.settle()
    said = refused([str(tmp_path / "step_1"), "--weights", "teacher"], tmp_path / "out", capsys)
    assert "keeps no such weights" in said


def test_shards_without_a_description_are_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy / "checkpoints" / "step_4"
    shutil.rmtree(folder / "hf")
    described = json.loads((folder / "manifest.json").read_text())
    del described["files"]["config.yaml"]
    (folder / "manifest.json").write_text(json.dumps(described))
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace(MODEL, "/gone/model"))
    assert "is not at /gone/model; bring it there" in refused([str(copy)], tmp_path / "out", capsys)


def test_a_failed_write_leaves_nothing(
    made: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "card_of", full)
        assert export.main([str(made.folder), "--output", str(tmp_path / "out")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_does_not_come_along(made: Written, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    folder = exported(made.folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list(folder.glob("*.safetensors"))) == 1


# ------------------------------------------------------------------ the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that notes what it is asked; nothing leaves this process."""
    asked: list[dict[str, Any]] = []

    def create(name: str, **given: Any) -> huggingface_hub.RepoUrl:
        asked.append({"name": name, **given})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: SECRET)
    monkeypatch.setattr(huggingface_hub, "whoami", lambda: {"name": "me"})
    monkeypatch.setattr(huggingface_hub, "create_repo", create)
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **given: asked.append(given))
    return asked


def test_nothing_is_sent_unless_asked(made: Written, tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    exported(made.folder, tmp_path / "out")
    assert not hub


def test_an_upload_sends_the_finished_folder_to_a_private_repository(
    made: Written, tmp_path: Path, hub: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(made.folder, tmp_path / "out", "--upload", "me/model")
    assert hub[0] == {"name": "me/model", "private": True, "exist_ok": True}
    assert (hub[1]["repo_id"], hub[1]["folder_path"]) == ("me/model", folder)
    assert "# me/model\n" in (folder / "README.md").read_text()
    assert "https://huggingface.co/me/model" in capsys.readouterr().out


def test_an_upload_that_cannot_be_is_refused_before_anything_is_written(
    made: Written,
    tmp_path: Path,
    hub: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def silent() -> Any:
        raise ConnectionError(f"no route, {SECRET}")

    def asked(name: str = "me/model") -> str:
        return refused([str(made.folder), "--upload", name], tmp_path / "out", capsys)

    assert "write NAME or OWNER/NAME" in asked("a/b/c")
    monkeypatch.setattr(huggingface_hub, "whoami", silent)
    said = asked()
    assert "the hub did not let us in (ConnectionError)" in said
    assert SECRET not in said
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "no token" in asked()
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    assert "HF_HUB_OFFLINE forbids the network; leave --upload out, and later: hf upload me/model DIR" in asked()
    assert not hub


def test_a_failed_upload_keeps_the_folder_and_the_token(
    made: Written,
    tmp_path: Path,
    hub: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError(f"403 for Bearer {SECRET}")

    monkeypatch.setattr(huggingface_hub, "upload_folder", broken)
    assert export.main([str(made.folder), "--output", str(tmp_path / "out"), "--upload", "me/model"]) == 1
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err
    assert (tmp_path / "out" / "model.safetensors").is_file()
