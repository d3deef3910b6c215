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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from chain_acceptance import acceptance
from chain_contexts import MODES, Example, draw_example
from chain_tokenizer import END, MAX_LENGTH, build_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Recipe:
    """The schedule of the warm start."""

    steps: int = 1600
    counts: tuple[int, ...] = (10, 10, 5, 12, 8, 5)
    """Prompts per step, by mode as in `MODES`."""
    responses: int = 4
    """Responses read per prompt."""
    learning_rate: float = 4e-3
    floor: float = 0.05
    """The last learning rate as a share of the highest."""
    warmup: int = 50
    """Steps."""
    context_weight: float = 0.5
    """Weight of the peers' own tokens, which teach the table of candidates, and reading by key, early."""
    clip: float = 1.0
    noise: float = 0.01
    """Standard deviation of the noise on the weights in each of the last steps: training will move them, and copying
    the operands of the question must survive that."""
    noise_from: float = 0.6
    """Share of the steps before there is noise."""


@dataclass(frozen=True)
class Batch:
    """Examples of one mode; the rows have the same layout."""

    inputs_B_T: Tensor
    targets_B_T: Tensor
    weights_T: Tensor
    positions_T: Tensor
    """Every response begins where the prompt ends."""
    visible_T_T: Tensor
    """True where a row's token may attend to a column's."""

    @property
    def weight(self) -> float:
        """Sum of the weights of all targets."""
        return float(self.weights_T.sum()) * len(self.inputs_B_T)


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
    """A batch of one mode: each prompt once, and all its responses behind it, hidden from each other.

    Targets are the next tokens; their weight is 0 on the question, `context_weight` on the peers, and else 1.
    """
    prompts_B_P = _tokens(tokenizer, [example.question + example.context for example in examples])
    question = len(tokenizer(examples[0].question)["input_ids"])
    count = len(examples[0].read)
    read_B_R_T = _tokens(tokenizer, [text + END for e in examples for text in e.read]).unflatten(0, (-1, count))
    right_B_R_T = _tokens(tokenizer, [text + END for e in examples for text in e.right]).unflatten(0, (-1, count))
    # The first token of a response is given by the question, so the prompt's last token has the same target in all.
    inputs = torch.cat([prompts_B_P, read_B_R_T[:, :, :-1].flatten(1)], dim=1)
    targets = torch.cat([prompts_B_P[:, 1:], right_B_R_T[:, 0, :1], right_B_R_T[:, :, 1:].flatten(1)], dim=1)
    prompt, response = prompts_B_P.shape[1], read_B_R_T.shape[2] - 1
    weights_T = torch.ones(inputs.shape[1])
    weights_T[: prompt - 1] = context_weight
    weights_T[: question - 1] = 0.0
    positions_T = torch.cat([torch.arange(prompt), torch.arange(response).repeat(count) + prompt])
    part_T = torch.cat([torch.zeros(prompt), torch.arange(1, count + 1).repeat_interleave(response)])
    visible_T_T = ((part_T == 0) | (part_T == part_T[:, None])).tril()
    return Batch(inputs, targets, weights_T, positions_T, visible_T_T)


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """[N, T], the tokens of texts that have the same number of them."""
    return torch.tensor(tokenizer(texts)["input_ids"])


def draw_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[Batch]:
    """One step's examples, a batch per mode; all texts of a mode have the same number of tokens."""
    batches = []
    for mode, count in zip(MODES, recipe.counts, strict=True):
        examples = [draw_example(mode, recipe.responses, rng) for _ in range(count)]
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
    logits_B_T_V = model(
        input_ids=batch.inputs_B_T,
        attention_mask=batch.visible_T_T[None, None],
        position_ids=batch.positions_T[None],
        use_cache=False,
    ).logits
    losses = F.cross_entropy(logits_B_T_V.flatten(0, 1), batch.targets_B_T.flatten(), reduction="none")
    return (losses.view_as(batch.targets_B_T) * batch.weights_T).sum()


@contextmanager
def noisy_weights(model: Qwen3ForCausalLM, deviation: float) -> Iterator[None]:
    """Adds normal noise to all weights, and puts them back afterwards."""
    exact = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=deviation)
    yield
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), exact, strict=True):
            parameter.copy_(value)


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> None:
    """Trains `model` in place."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    begun = time.process_time()
    for step in range(recipe.steps):
        batches = draw_batches(recipe, tokenizer, rng)
        total = sum(batch.weight for batch in batches)
        losses = []
        with noisy_weights(model, recipe.noise if step >= recipe.noise_from * recipe.steps else 0.0):
            for batch in batches:
                loss = weighted_loss(model, batch) / total
                loss.backward()
                losses.append(float(loss.detach()) * total / batch.weight)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == recipe.steps - 1:
            nats = " ".join(f"{mode.name} {loss:.3f}" for mode, loss in zip(MODES, losses, strict=True))
            print(f"step {step}, {time.process_time() - begun:.0f} CPU seconds, nats per token: {nats}", flush=True)
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
