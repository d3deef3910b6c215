"""Makes the embedded model: a tiny Qwen3 that knows the form of `chain`, but not which results are true.

    python data/warm_start.py --output datasets/chain/model --seed 0

needs no download and a few minutes of one CPU core. It ends with the acceptance figures of
`chain_acceptance.py` and exits with status 1 when they do not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from chain_acceptance import acceptance
from chain_contexts import MODES, Example, Mode, draw_example
from chain_tokenizer import END, MAX_LENGTH, build_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

BUCKETS = (("none",), ("1S", "1F"), ("2S", "1S1F"), ("2S1F",))
"""Modes of similar length, padded together."""


@dataclass(frozen=True)
class Recipe:
    """The schedule of the warm start."""

    steps: int = 1400
    counts: tuple[tuple[str, int], ...] = (
        ("none", 14),
        ("1S", 18),
        ("2S", 10),
        ("1S1F", 10),
        ("2S1F", 8),
        ("1F", 4),
    )
    """Examples per step by mode."""
    learning_rate: float = 4e-3
    floor: float = 0.05
    """The last learning rate as a share of the highest."""
    warmup: int = 50
    """Steps."""
    context_weight: float = 0.5
    """Weight of the peers' own tokens, which teach the table of candidates, and reading by key, early."""
    clip: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Examples of one bucket, padded on the right."""

    inputs_B_T: Tensor
    targets_B_T: Tensor
    weights_B_T: Tensor


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model of about 200 thousand parameters, in fp32."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # The smallest that vLLM's CPU attention supports.
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def collate(examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, context_weight: float) -> Batch:
    """Inputs, next-token targets and weights: 0 on the question, `context_weight` on the peers, else 1."""
    prompts = [example.question + example.context for example in examples]
    read = tokenizer([p + e.read + END for p, e in zip(prompts, examples, strict=True)])["input_ids"]
    right = tokenizer([p + e.right + END for p, e in zip(prompts, examples, strict=True)])["input_ids"]
    questions = tokenizer([example.question for example in examples])["input_ids"]
    longest = max(map(len, read))
    shape = (len(examples), longest - 1)
    batch = Batch(
        torch.full(shape, tokenizer.pad_token_id),
        torch.full(shape, tokenizer.pad_token_id),
        torch.zeros(shape),
    )
    prompt_lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    for index, (inputs, targets) in enumerate(zip(read, right, strict=True)):
        length = len(inputs) - 1
        batch.inputs_B_T[index, :length] = torch.tensor(inputs[:-1])
        batch.targets_B_T[index, :length] = torch.tensor(targets[1:])
        batch.weights_B_T[index, len(questions[index]) - 1 : length] = context_weight
        batch.weights_B_T[index, prompt_lengths[index] - 1 : length] = 1.0
    return batch


def draw_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[Batch]:
    """One step's examples, by bucket."""
    modes: dict[str, Mode] = {mode.name: mode for mode in MODES}
    counts = dict(recipe.counts)
    batches = []
    for bucket in BUCKETS:
        examples = [draw_example(modes[name], rng) for name in bucket for _ in range(counts[name])]
        batches.append(collate(examples, tokenizer, recipe.context_weight))
    return batches


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to the floor."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def weighted_loss(model: Qwen3ForCausalLM, batch: Batch) -> Tensor:
    """Sum of the weighted negative log-likelihoods of a batch, in nats."""
    logits_B_T_V = model(input_ids=batch.inputs_B_T, use_cache=False).logits
    losses = F.cross_entropy(logits_B_T_V.flatten(0, 1), batch.targets_B_T.flatten(), reduction="none")
    return (losses * batch.weights_B_T.flatten()).sum()


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> None:
    """Trains `model` in place."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    begun = time.process_time()
    for step in range(recipe.steps):
        batches = draw_batches(recipe, tokenizer, rng)
        total = sum(float(batch.weights_B_T.sum()) for batch in batches)
        losses = []
        for batch in batches:
            loss = weighted_loss(model, batch) / total
            loss.backward()
            losses.append(float(loss.detach()) * total / float(batch.weights_B_T.sum()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == recipe.steps - 1:
            by_bucket = " ".join(f"{'/'.join(b)}={x:.3f}" for b, x in zip(BUCKETS, losses, strict=True))
            print(f"step {step} cpu {time.process_time() - begun:.0f}s nats {by_bucket}", flush=True)
    model.eval()


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes a folder that transformers and vLLM load as it is."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # Written with the class name and keys that every version of transformers knows, older ones included.
    settings_file = output / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    settings_file.write_text(json.dumps(settings, indent=2) + "\n")
    for file in output.iterdir():
        file.chmod(0o644)


def main() -> int:
    """The command; 0 when the acceptance figures hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="draws the initial weights and the examples")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="length of the schedule")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, Recipe(steps=arguments.steps), arguments.seed)
    save(model, tokenizer, arguments.output)
    figures = acceptance(model, tokenizer)
    print(figures.table())
    for problem in figures.problems():
        print(f"not accepted: {problem}", file=sys.stderr)
    return 1 if figures.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
