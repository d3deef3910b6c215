"""The card of an exported model: what it is, how it was trained, how good it was before and after.

Every figure is the run's own; what it did not write down is said to be unknown. Paths are cut to
their end: what else they tell of a machine is nobody's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.comparing.runs import Moment, moments_of
from trainer.config.compose import as_yaml
from trainer.replaying.records import PastRun, told

PAPER = "Multi-Rollout On-Policy Distillation via Peer Successes and Failures"
ARXIV = "2605.12652"
METHODS: Mapping[str, str] = {
    "mopd": "multi-rollout on-policy distillation: the teacher is the student, shown its own right and wrong attempts",
    "sdpo": "self-distillation: the teacher is the student, shown a right attempt, or feedback",
    "opsd": "on-policy self-distillation: the teacher is the student, shown a reference solution",
}
"""What methods do, in words; the others are told by their names."""
SECTIONS = ("data", "actor_rollout_ref", "algorithm", "reward")
"""Settings that decide what a model learns; the others are folders, trackers and how often a run is looked at."""
HUB_CACHE = re.compile(r"models--(.+?)--(.+?)(?:/|$)")


@dataclass(frozen=True)
class Exported:
    """What lies beside the card."""

    title: str
    step: int
    weights: str
    """`student` or `teacher`."""
    dtype: str
    adapter: bool = False
    """Whether it is the adapter alone, without the base model."""


ADAPTER_USE = """## Use

This is a low-rank adapter (LoRA) in the format of the package peft; it needs the base model.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "PATH")
```

`vllm serve {base} --enable-lora --lora-modules trained=PATH` serves it."""


def card_of(exported: Exported, settings: Mapping[str, Any], run: PastRun | None) -> str:
    """The card, as Markdown with a header for the hub.

    Args:
        exported: what it describes.
        settings: those of the checkpoint, as nested dictionaries.
        run: the run that wrote the checkpoint; None where its folder is not at hand.
    """
    parts = [
        header(exported, settings),
        f"# {exported.title}",
        introduction(exported, settings, run),
        usage(exported, settings),
    ]
    parts += [training(exported, settings, run), quality(exported, settings, run), LICENCE, citation()]
    return "\n\n".join(parts) + "\n"


def header(exported: Exported, settings: Mapping[str, Any]) -> str:
    """What the hub reads; the licence, and a base model whose name on the hub is unknown, are left to the user."""
    name = base_model(settings)
    known = HUB_CACHE.search(str(told(settings, "actor_rollout_ref", "model", "path"))) is not None
    lines = [
        "---",
        "# license: fill in; the licences of the base model and of the data decide which you may give",
        f"base_model: {json.dumps(name)}"
        if known
        else f"# base_model: fill in OWNER/NAME; trained from a folder {name}",
        f"library_name: {'peft' if exported.adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags: [mopd, on-policy-distillation, reinforcement-learning]",
        "---",
    ]
    return "\n".join(lines)


def base_model(settings: Mapping[str, Any]) -> str:
    """The initial model: its name on the hub where its folder tells it, else the end of its path."""
    path = str(told(settings, "actor_rollout_ref", "model", "path"))
    cached = HUB_CACHE.search(path)
    return f"{cached[1]}/{cached[2]}" if cached else shortened(path)


def shortened(path: str) -> str:
    """The last two parts of a path: enough to know what is meant, and no more of somebody's machine."""
    return "/".join(Path(path).parts[-2:])


def method_of(run: PastRun | None) -> str | None:
    """The name of the run's method."""
    method = told(run.manifest, "method") if run else None
    return method if isinstance(method, str) else None


def introduction(exported: Exported, settings: Mapping[str, Any], run: PastRun | None) -> str:
    """What it is, in a few sentences."""
    method = method_of(run)
    named = f"`{method}`" if method else "a method whose name is not at hand"
    does = METHODS.get(method or "")
    whose = "the student" if exported.weights == "student" else "the teacher, the student's exponential moving average,"
    return (
        f"{base_model(settings)} trained with {named}{f' ({does})' if does else ''}. These are the weights of {whose}"
        f" after step {exported.step}, in {exported.dtype}. The trainer implements"
        f" [{PAPER}](https://arxiv.org/abs/{ARXIV})."
    )


def usage(exported: Exported, settings: Mapping[str, Any]) -> str:
    """How it is asked."""
    if exported.adapter:
        return ADAPTER_USE.format(base=base_model(settings))
    template = told(settings, "data", "apply_chat_template_kwargs") or {}
    more = "".join(f", {name}={value!r}" for name, value in template.items())
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH", dtype="{exported.dtype}")
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{more}
)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens={told(settings, "data", "max_response_length")})[0]))
```

`vllm serve PATH --dtype {exported.dtype}` serves it. The chat template's arguments are those of training."""


def training(exported: Exported, settings: Mapping[str, Any], run: PastRun | None) -> str:
    """Data and settings."""

    def of(*path: str) -> Any:
        return told(settings, *path)

    manifest = run.manifest if run else {}
    data, rollout = "data", ("actor_rollout_ref", "rollout")
    versions = told(manifest, "versions") or {}
    rows: list[tuple[str, Any]] = [
        ("base model", base_model(settings)),
        ("method", method_of(run) or "unknown"),
        ("training data", shortened(str(of(data, "train_files")))),
        ("held-out data", shortened(str(of(data, "val_files")))),
        ("steps", exported.step),
        ("prompts per step, attempts per prompt", f"{of(data, 'train_batch_size')}, {of(*rollout, 'n')}"),
        ("longest prompt, response (tokens)", f"{of(data, 'max_prompt_length')}, {of(data, 'max_response_length')}"),
        ("sampling temperature", of(*rollout, "temperature")),
        ("learning rate", of("actor_rollout_ref", "actor", "optim", "lr")),
        ("seed", of(data, "seed")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown"),
        ("commit of the trainer", told(manifest, "commit") or "unknown"),
    ]
    chosen = {name: without_folders(settings[name]) for name in SECTIONS if name in settings}
    return "\n".join(
        [
            "## Training",
            "",
            *table(("", ""), rows),
            "",
            "<details><summary>All settings that decide what it learns</summary>",
            "",
            "```yaml",
            as_yaml(chosen).rstrip("\n"),
            "```",
            "",
            "</details>",
        ]
    )


def without_folders(tree: Any) -> Any:
    """Settings with every absolute path cut to its end."""
    if isinstance(tree, Mapping):
        return {key: without_folders(value) for key, value in tree.items()}
    return shortened(tree) if isinstance(tree, str) and tree.startswith("/") else tree


def quality(exported: Exported, settings: Mapping[str, Any], run: PastRun | None) -> str:
    """Held-out quality before training and at the last look up to this step."""
    moments = [moment for moment in moments_of(run.history) if moment.step <= exported.step] if run else []
    if run is None or not moments:
        why = "its run's folder was not at hand" if run is None else "the run did not measure any"
        return (
            f"## Held-out quality\n\nUnknown: {why}. `python -m trainer.evaluate model=PATH data=PARQUET` measures it."
        )
    return "\n".join(["## Held-out quality", "", *figures(moments), "", remark(exported, settings, run, moments)])


def figures(moments: Sequence[Moment]) -> list[str]:
    """A table of the first and the last of some moments, in per cent."""
    first, last = moments[0], moments[-1]
    before = {} if first.step else first.figures
    rows = [(name, share(before.get(name)), share(value)) for name, value in sorted(last.figures.items())]
    return table(("per cent", "before training", f"after step {last.step}"), rows)


def share(value: float | None) -> str:
    """A share in per cent."""
    return "not measured" if value is None else f"{100 * value:.1f}"


def remark(exported: Exported, settings: Mapping[str, Any], run: PastRun, moments: Sequence[Moment]) -> str:
    """What the figures are figures of."""
    drawn = told(settings, "actor_rollout_ref", "rollout", "val_kwargs") or {}
    last = next(record for record in run.history if record["step"] == moments[-1].step)
    prompts = {
        name.removeprefix("val-aux/").removesuffix("/prompts"): int(count)
        for name, count in last.items()
        if name.startswith("val-aux/") and name.endswith("/prompts") and isinstance(count, (int, float))
    }
    counted = (
        ", ".join(f"{count} prompts of {name}" for name, count in prompts.items()) or "an unknown number of prompts"
    )
    said = [
        f"By the run itself, on {counted}: {drawn.get('n')} responses to each at temperature"
        f" {drawn.get('temperature')}; mean@k is the share of right responses, pass@k that of prompts with a right one"
        " among k."
    ]
    if exported.weights != "student":
        said.append("They are the student's; the teacher, whose weights these are, was not measured.")
    if moments[-1].step != exported.step:
        said.append(f"These weights are of step {exported.step}, which was not measured.")
    return " ".join(said)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


LICENCE = """## Licence

Not set here. The base model's licence and those of the data decide; fill in `license:` in the header."""


def citation() -> str:
    """The paper."""
    return f"## Paper\n\n{PAPER}, [arXiv {ARXIV}](https://arxiv.org/abs/{ARXIV})."
