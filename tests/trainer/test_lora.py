"""Adapters are the model with W + scale B A in the place of W, for each voice; nothing else is trained or kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.test_ranks import plans_of, ragged_samples
from trainer import export, fsdp
from trainer.adapters import CONFIG, FACTORS, WEIGHTS, AdapterSettings, Voice, adapt, factors, is_factor, target_names
from trainer.config.compose import PROJECT, as_yaml, resolve
from trainer.inputs import examined
from trainer.meters import Meter
from trainer.placement import placement_of
from trainer.planning import estimate
from trainer.planning.adapters import adapter_parameters
from trainer.planning.architecture import architecture_of
from trainer.planning.budget import Spread
from trainer.planning.memory import memory_of, steady_parts
from trainer.resume import METHOD_LINE
from trainer.settings import loss_settings
from trainer.workers import policy
from trainer.workers.gauging import teacher_logprobs
from trainer.workers.policy import OptimSettings, PolicyWorker
from trainer.workers.reading import Reader
from trainer.workers.state import Saving
from trainer.workers.views import TeacherSettings

MODEL = str(PROJECT / "datasets" / "chain" / "model")
SETTINGS = AdapterSettings(4, 6.0, "all-linear")
TOKENS = torch.arange(3, 43)[None]
SAMPLES = ragged_samples(9)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """A group of this process alone, which every worker here finds already there."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(policy.dist, "init_process_group", lambda *_, **__: None)
        yield
    dist.destroy_process_group()


def worker_of(
    method: str = "mopd",
    teacher: TeacherSettings | None = None,
    *,
    path: str = MODEL,
    adapters: AdapterSettings | None = SETTINGS,
    checkpointing: bool = False,
) -> PolicyWorker:
    """An actor of one rank that has joined; its optimiser takes large steps."""
    worker = PolicyWorker(
        rank=0,
        ranks=1,
        device="cpu",
        model_path=path,
        attn_implementation="packed",
        gradient_checkpointing=checkpointing,
        loss=loss_settings(resolve(method, [], {}).config),
        optim=OptimSettings(1e-2, 0, 0.01, (0.9, 0.999), 1.0),
        teacher=teacher or TeacherSettings("ema", 0.25, None),
        seed=3,
        deadline_s=60.0,
        adapters=adapters,
    )
    worker.store = None  # the group is there already
    worker.join("", 0)
    return worker


def shake(worker: PolicyWorker) -> PolicyWorker:
    """Moves every factor: each voice has another model then."""
    random = torch.Generator().manual_seed(1)
    for name, parameter in worker.student.named_parameters():
        if is_factor(name):
            moved = 0.1 * torch.randn(parameter.shape, generator=random)
            parameter.detach().to_local().add_(moved)  # type: ignore[attr-defined]
    return worker


def whole_model(worker: PolicyWorker, voice: Voice, folder: Path) -> str:
    """A folder with the plain model that one voice's factors make of the base, computed here from their definition."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    added = {name: fsdp.whole(factor) for name, factor in factors(worker.student.model, voice).items()}
    down, up = FACTORS[voice]
    weights = dict(model.named_parameters())
    for name in [name.removesuffix(down) for name in added if name.endswith(down)]:
        weights[f"{name}weight"].data += 6.0 / 4 * added[f"{name}{up}"] @ added[f"{name}{down}"]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return str(folder)


def backward(worker: PolicyWorker, method: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one mini-batch in several micro-batches."""
    [plan] = plans_of(SAMPLES, 1, 150, method)
    assert len(plan.micro_batches) > 1
    worker.loss_sum = 0.0
    for micro_batch, denominator in zip(plan.micro_batches, plan.denominators, strict=True):
        worker.accumulate(micro_batch, None, denominator, Meter(), frozenset())
    named = worker.student.model.named_parameters()
    found = {name: weight.grad.full_tensor() for name, weight in named if weight.grad is not None}
    worker.optimizer.zero_grad(set_to_none=True)
    return worker.loss_sum, found


def sequences() -> list[Any]:
    return [np.concatenate([sample.prompt_ids, sample.response_ids]) for sample in SAMPLES]


def step(worker: PolicyWorker, number: int = 1) -> Any:
    return worker.update(plans_of(SAMPLES, 1, 100_000, "mopd"), number, frozenset())


# ------------------------------------------------------------------ the model


@pytest.mark.parametrize("kind", ["ema", "frozen", "live", "trust-region", "reference"])
def test_loss_and_gradient_are_those_of_the_merged_model_beside_its_teacher(kind: Any, tmp_path: Path) -> None:
    """dL/dA = scale B' dL/dW and dL/dB = scale dL/dW A' with dL/dW of a plain model; the teacher a plain model too."""
    method = "dpo" if kind == "reference" else "mopd"
    teaching = TeacherSettings("frozen" if kind == "reference" else kind, 0.25, None)
    ours = shake(worker_of(method, teaching, checkpointing=kind == "ema"))
    assert ours.teacher is None, "no second copy of the base"
    student = whole_model(ours, "student", tmp_path / "student")
    teacher = whole_model(ours, "teacher", tmp_path / "teacher") if kind == "ema" else MODEL
    plain = replace(teaching, kind="frozen" if kind == "ema" else teaching.kind, model_path=teacher)
    theirs = worker_of(method, plain, path=student, adapters=None)
    if kind == "reference":
        theirs.teacher = fsdp.build_scorer(  # the reference of a plain run is its own first model
            MODEL,
            theirs.student.model.lm_head.weight.device_mesh,
            attn_implementation="packed",
            gradient_checkpointing=False,
        ).eval()
        theirs.views.teacher = theirs.teacher
    wanted_loss, wanted = backward(theirs, method)
    loss, found = backward(ours, method)
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    own = {name: fsdp.whole(factor) for name, factor in factors(ours.student.model, "student").items()}
    assert found.keys() == own.keys()
    for name in [name.removesuffix("lora_A") for name in own if name.endswith("lora_A")]:
        slope, down, up = wanted[f"{name}weight"], own[f"{name}lora_A"], own[f"{name}lora_B"]
        for factor, expected in (("lora_A", 1.5 * up.T @ slope), ("lora_B", 1.5 * slope @ down.T)):
            gap = (found[name + factor] - expected).norm() / expected.norm()
            assert gap < 1e-3, (name, factor, float(gap))
    assert ours.student.adapters is not None
    assert ours.student.adapters.voice == "student"


def test_what_is_published_is_the_plain_model_of_the_student(tmp_path: Path) -> None:
    ours = shake(worker_of())
    wanted = AutoModelForCausalLM.from_pretrained(whole_model(ours, "student", tmp_path / "student"))
    weights = dict(fsdp.full_weights(ours.student))
    assert weights.keys() == dict(wanted.named_parameters()).keys()
    for name, weight in wanted.named_parameters():
        torch.testing.assert_close(weights[name], weight.detach(), rtol=0, atol=1e-6)
    assert [weight.numel() for weight in weights.values()] == fsdp.full_sizes(ours.student)
    plain = worker_of(path=str(tmp_path / "student"), adapters=None)
    for one, other in zip(ours.logprobs(sequences()), plain.logprobs(sequences()), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


def test_a_run_begins_as_its_base_and_trains_nothing_but_its_adapters() -> None:
    ours, plain = worker_of(), worker_of(adapters=None)
    before = ours.logprobs(sequences())
    assert all(np.array_equal(one, other) for one, other in zip(before, plain.logprobs(sequences()), strict=True))
    base = {name: fsdp.whole(weight).clone() for name, weight in ours.student.named_parameters()}
    assert np.isfinite(step(ours).gradient_norms[0])
    moved = {
        name for name, weight in ours.student.named_parameters() if not torch.equal(fsdp.whole(weight), base[name])
    }
    # B begins as zero, so that A gets its first gradient in the second step; weight decay moves it in the first.
    names = set(ours.student.state_dict())
    assert moved >= {name for name in names if name.endswith("lora_B")}
    assert all(is_factor(name) for name in moved)
    held = sum(state["exp_avg"].numel() for state in ours.optimizer.state.values())
    assert held == adapter_parameters(resolve("mopd", ["actor_rollout_ref.model.lora_rank=4"], {}).config)


def test_the_teacher_follows_by_its_rate() -> None:
    ours = worker_of(teacher=TeacherSettings("ema", 0.25, None))
    old = [fsdp.whole(factor).clone() for factor in factors(ours.student, "teacher").values()]
    step(ours)
    pairs = zip(factors(ours.student, "teacher").values(), old, factors(ours.student, "student").values(), strict=True)
    for teacher, before, student in pairs:
        torch.testing.assert_close(fsdp.whole(teacher), 0.75 * before + 0.25 * fsdp.whole(student))


@pytest.mark.parametrize("kind", ["ema", "trust-region"])
def test_states_made_early_and_gauges_are_the_teachers(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = shake(worker_of(teacher=TeacherSettings(kind, 0.25, None)))
    teacher = whole_model(ours, "teacher", tmp_path / "t") if kind == "ema" else MODEL
    student = whole_model(ours, "student", tmp_path / "s")
    plain = TeacherSettings("frozen" if kind == "ema" else kind, 0.25, teacher)
    theirs = worker_of(teacher=plain, path=student, adapters=None)
    [plan] = plans_of(SAMPLES, 1, 100_000, "mopd")
    [batch] = plan.micro_batches
    found, wanted = (teacher_logprobs(batch, worker.views) for worker in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    if kind != "ema":
        return
    loss, gradient = backward(ours, "mopd")
    taught = {sample.index: states for sample, states in zip(batch, ours.views.taught(batch), strict=True)}
    monkeypatch.setattr("trainer.workers.views.cluster.gather", lambda asked, *_: asked)
    ours.views.known = taught
    early_loss, early = backward(ours, "mopd")
    assert early_loss == pytest.approx(loss, rel=1e-5)
    assert all(torch.allclose(early[name], slope, rtol=1e-3, atol=1e-7) for name, slope in gradient.items())


def test_a_base_in_another_precision_is_kept_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsdp, "compute_dtype", lambda device: torch.bfloat16)
    ours = worker_of()
    dtypes = {name: weight.dtype for name, weight in ours.student.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if is_factor(name)} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if not is_factor(name)} == {torch.bfloat16}
    assert np.isfinite(step(ours).gradient_norms[0])
    assert {weight.dtype for _, weight in fsdp.full_weights(ours.student)} == {torch.float32}


# ------------------------------------------------------------------ what is kept


def test_a_checkpoint_is_small_and_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    ours = worker_of()
    step(ours)
    wanted = {name: fsdp.whole(weight).clone() for name, weight in ours.student.named_parameters()}
    moments = [value.clone() for state in ours.optimizer.state.values() for value in state.values()]
    ours.save(Saving(str(tmp_path / "step_1"), 1, {}, "", keep=2))
    ours.settle()
    added = adapter_parameters(resolve("mopd", ["actor_rollout_ref.model.lora_rank=4"], {}).config)
    kept = Reader(tmp_path / "step_1" / "state").read_metadata().state_dict_metadata
    sizes = {name: entry.size.numel() for name, entry in kept.items() if isinstance(entry, TensorStorageMetadata)}
    assert sum(size for name, size in sizes.items() if name.startswith("student.")) == 2 * added  # and the teacher's
    moved = [size for name, size in sizes.items() if name.endswith((".exp_avg", ".exp_avg_sq"))]
    assert sum(moved) == 2 * added
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "step_1" / "hf")
    for name, weight in fsdp.full_weights(ours.student):
        assert torch.equal(hf.get_parameter(name), weight)
    other = shake(worker_of())
    other.restore(str(tmp_path / "step_1"))
    for name, weight in other.student.named_parameters():
        assert torch.equal(fsdp.whole(weight), wanted[name]), name
    found = [value for state in other.optimizer.state.values() for value in state.values()]
    assert all(torch.equal(one, two) for one, two in zip(found, moments, strict=True))
    assert step(ours, 2).loss == step(other, 2).loss


def test_the_adapter_folder_is_in_the_format_of_peft(tmp_path: Path) -> None:
    ours = shake(worker_of(adapters=replace(SETTINGS, targets=("q_proj", "down_proj"))))
    ours.save(Saving(str(tmp_path / "step_1"), 1, {}, "", keep=2))
    ours.settle()
    config = json.loads((tmp_path / "step_1" / "adapter" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 6.0, ["down_proj", "q_proj"])
    kept = load_file(tmp_path / "step_1" / "adapter" / WEIGHTS)
    layers = len(ours.student.model.model.layers)
    assert len(kept) == 2 * 2 * layers
    own = factors(ours.student.model, "student")
    name = "model.layers.0.self_attn.q_proj.lora_B"
    assert torch.equal(kept[f"base_model.model.{name}.weight"], fsdp.whole(own[name]))


@pytest.mark.slow
def test_peft_loads_the_adapter_and_has_the_students_logits(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = shake(worker_of())
    ours.save(Saving(str(tmp_path / "step_1"), 1, {}, "", keep=2))
    ours.settle()
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "step_1" / "adapter").eval()
    with torch.no_grad():
        found = loaded(TOKENS).logits
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "step_1" / "hf")(TOKENS).logits
        before = AutoModelForCausalLM.from_pretrained(MODEL)(TOKENS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert float((found - before).abs().max()) > 0.1


def checkpoint_of(worker: PolicyWorker, folder: Path) -> Path:
    """A checkpoint of a run of adapters."""
    overrides = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=6"]
    tree = resolve("mopd", [*overrides, f"trainer.output_dir={folder}"], {}).tree
    worker.save(Saving(str(folder / "step_1"), 1, {}, f"{METHOD_LINE} mopd\n{as_yaml(tree)}", keep=2))
    worker.settle()
    return folder / "step_1"


@pytest.mark.parametrize("weights", ["student", "teacher"])
def test_an_export_is_the_plain_model_of_either(weights: Any, tmp_path: Path) -> None:
    ours = shake(worker_of())
    wanted = AutoModelForCausalLM.from_pretrained(whole_model(ours, weights, tmp_path / "wanted"))
    folder = checkpoint_of(ours, tmp_path)
    found = tmp_path / "out"
    assert export.main([str(folder), "--output", str(found), "--weights", weights, "--merged"]) == 0
    for name, weight in AutoModelForCausalLM.from_pretrained(found).named_parameters():
        torch.testing.assert_close(weight, wanted.get_parameter(name), rtol=0, atol=1e-6)


def test_an_adapter_is_exported_alone_and_hf_may_be_gone(tmp_path: Path) -> None:
    ours = shake(worker_of())
    folder = checkpoint_of(ours, tmp_path)
    assert export.main([str(folder), "--output", str(tmp_path / "alone"), "--adapter", "--dtype", "float32"]) == 0
    kept, alone = (load_file(place / WEIGHTS) for place in (folder / "adapter", tmp_path / "alone"))
    assert kept.keys() == alone.keys()
    assert all(torch.equal(factor, alone[name]) for name, factor in kept.items())
    assert "peft" in (tmp_path / "alone" / "README.md").read_text()
    shutil.rmtree(folder / "hf")
    assert export.main([str(folder), "--output", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for name, weight in fsdp.full_weights(ours.student):
        torch.testing.assert_close(merged.get_parameter(name), weight, rtol=0, atol=1e-6)


def test_an_adapter_of_a_run_that_had_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = worker_of(adapters=None)
    tree = resolve("mopd", [f"trainer.output_dir={tmp_path}"], {}).tree
    plain.save(Saving(str(tmp_path / "step_1"), 1, {}, f"{METHOD_LINE} mopd\n{as_yaml(tree)}", keep=2))
    plain.settle()
    assert export.main([str(tmp_path / "step_1"), "--output", str(tmp_path / "out"), "--adapter"]) == 2
    assert "--adapter: the run trained all weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(("kind", "voices"), [("ema", 2), ("frozen", 1)])
def test_the_plan_knows_what_is_held(kind: Any, voices: int) -> None:
    overrides = [f"actor_rollout_ref.actor.self_distillation.teacher_regularization={kind}"]
    plans = []
    for rank in (4, 0):
        config = resolve("mopd", [*overrides, f"actor_rollout_ref.model.lora_rank={rank}"], {}).config
        sizes = architecture_of(MODEL)
        models = estimate.Models(sizes, sizes, adapter_parameters(config))
        plans.append(estimate.actor_plans(config, placement_of(config, 0), models, Spread(10, 20, 30))[0])
    adapted, plain = plans
    ours, parts = worker_of(teacher=TeacherSettings(kind, 0.25, None)), steady_parts(adapted)
    trained = sum(weight.numel() for weight in ours.student.parameters() if weight.requires_grad)
    held = sum(weight.numel() for weight in ours.student.parameters())
    assert held == sum(fsdp.full_sizes(ours.student)) + voices * trained
    assert parts == {"weights (fp32)": 4 * held, "gradients": 4 * trained, "optimiser": 8 * trained}
    assert sum(memory_of(adapted).values()) < sum(memory_of(plain).values())
    staged_bytes, plain_bytes = (estimate.staged(plan, follows=kind == "ema")[0] for plan in plans)
    assert staged_bytes == 4 * (2 + voices) * trained < plain_bytes


def test_all_linear_is_every_layer_but_the_output_and_the_seed_decides_where_they_begin() -> None:
    models = [AutoModelForCausalLM.from_pretrained(MODEL) for _ in range(3)]
    names = target_names(models[0], "all-linear")
    assert {name.rpartition(".")[-1] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    for model, seed in zip(models, (1, 1, 2), strict=True):
        adapt(model, SETTINGS, seed, teacher=True)
    first, same, other = ([*factors(model, "student").values()] for model in models)
    assert all(torch.equal(one, two) for one, two in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])
    pairs = zip(first, factors(models[0], "teacher").values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora_rank=4", "target_modules=[q_proj,lm_head]"], "lm_head names no linear layer that can be adapted"),
        (["lora_rank=4", "target_modules=[query]"], "this model has q_proj, k_proj"),
        (["target_modules=[q_proj]"], "without adapters all weights are trained; set"),
    ],
)
def test_what_cannot_be_is_told_at_the_start(overrides: list[str], words: str) -> None:
    asked = [f"actor_rollout_ref.model.{override}" for override in overrides]
    _, problems = examined(resolve("mopd", asked, {}).config, 0)
    assert len(problems) == 1
    assert words in problems[0]
    assert problems[0].startswith("actor_rollout_ref.model.target_modules")
