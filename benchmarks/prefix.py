"""`python benchmarks/prefix.py [--json]`: a group's responses packed behind their one prompt, against padded rows.

A small Qwen3 of random weights forwards and backwards 8 responses of R tokens to one prompt of P tokens, once as 8
padded rows with the library's own attention and once packed. Both run one after the other in one process with one
thread, in changing order; told are the medians of the pairs' ratios of CPU seconds. Both must give the same loss and
the same gradient.

    ratio_pP_rR             packed, the prompt shared / padded, forward and backward
    unshared_pP_rR          packed, the prompt repeated / padded, likewise
    teacher_pP_rR           packed, the prompt shared / padded, forward alone
    tokens_pP_rR            the same ratio of tokens: what could be expected if every token cost the same
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

SHAPES = ((1024, 64), (128, 256))
"""Lengths of prompt and responses."""
RESPONSES = 8
VOCABULARY = 512
CLOSE = 1e-4
"""How far the two losses, and relatively the two gradients, may be apart in fp32."""


@dataclass(frozen=True)
class Way:
    """One way of forwarding: a model and a batch for it."""

    model: Any
    batch: Any

    def loss(self) -> Tensor:
        """The mean negative log-probability of the response tokens."""
        from trainer.layout import hidden_states

        logits = self.model.lm_head(hidden_states(self.model, self.batch))
        return torch.nn.functional.cross_entropy(logits, self.batch.tokens)

    def learn(self) -> float:
        """CPU seconds of forward and backward; the gradient stays in the model."""
        self.model.zero_grad()
        begun = time.process_time()
        self.loss().backward()
        return time.process_time() - begun

    @torch.no_grad()
    def teach(self) -> float:
        """CPU seconds of a forward alone."""
        begun = time.process_time()
        self.loss()
        return time.process_time() - begun

    def gradient(self) -> Tensor:
        """Of all weights, in one line, as the last `learn` left it."""
        return torch.cat([weight.grad.flatten() for weight in self.model.parameters()])


def make_model(attention: str) -> Any:
    """4 layers of width 256, 4 heads for queries and 2 for keys, random weights that are the same every time."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


def make_ways(prompt: int, response: int) -> dict[str, Way]:
    """The ways by name; `unshared` differs in the first token of each prompt, which makes them distinct."""
    from trainer.attention import PACKED
    from trainer.layout import batch_of

    drawn = np.random.default_rng(0)
    shared = [drawn.integers(0, VOCABULARY, prompt, dtype=np.int32)] * RESPONSES
    distinct = [np.concatenate([[row], one[1:]]).astype(np.int32) for row, one in enumerate(shared)]
    responses = [drawn.integers(0, VOCABULARY, response, dtype=np.int32) for _ in range(RESPONSES)]
    device, packed = torch.device("cpu"), make_model(PACKED)
    return {
        "padded": Way(make_model("sdpa"), batch_of(shared, responses, device, packed=False)),
        "ratio": Way(packed, batch_of(shared, responses, device, packed=True)),
        "unshared": Way(packed, batch_of(distinct, responses, device, packed=True)),
    }


def measure(prompt: int, response: int, pairs: int) -> dict[str, float]:
    """All figures of a shape; the module says what they mean. Raises RuntimeError if the two ways disagree."""
    ways = make_ways(prompt, response)
    padded, shared = ways["padded"], ways["ratio"]
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "teacher", "padded teacher")}
    for number in range(-1, pairs):
        order = list(ways) if number % 2 else list(reversed(ways))
        taken = {name: ways[name].learn() for name in order}
        taken |= {"teacher": shared.teach(), "padded teacher": padded.teach()}
        for name, value in taken.items() if number >= 0 else ():  # the first round warms up
            seconds[name].append(value)
    check(padded, shared)
    suffix = f"p{prompt}_r{response}"
    bases = {"ratio": "padded", "unshared": "padded", "teacher": "padded teacher"}
    ratios = {
        f"{name}_{suffix}": statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
        for name, base in bases.items()
    }
    tokens = shared.batch.tokens_forwarded / padded.batch.tokens_forwarded
    return {
        **ratios,
        f"tokens_{suffix}": tokens,
        f"padded_seconds_{suffix}": statistics.median(seconds["padded"]),
    }


def check(padded: Way, shared: Way) -> None:
    """Prints how far loss and gradient are apart. Raises RuntimeError where that is more than rounding."""
    for way in (padded, shared):
        way.learn()
    expected, found = padded.gradient(), shared.gradient()
    losses = [float(way.loss().detach()) for way in (padded, shared)]
    apart = float((found - expected).norm() / expected.norm())
    print(f"loss {losses[0]:.7f} padded, {losses[1]:.7f} packed; gradients differ by {apart:.1e} of their norm")
    if abs(losses[0] - losses[1]) > CLOSE or apart > CLOSE:
        raise RuntimeError("the packed way is not the padded one: loss or gradient differ by more than rounding")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/prefix.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="the last line is a JSON object of all figures")
    asked = parser.parse_args(argv)
    if asked.pairs < 1:
        parser.error("needs --pairs >= 1")
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for prompt, response in SHAPES:
        print(f"prompt {prompt}, {RESPONSES} responses of {response}:")
        figures = measure(prompt, response, asked.pairs)
        for name, value in figures.items():
            print(f"    {name:26} {value:.4g}")
        found |= figures
    if asked.json:
        print(json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    if "OMP_NUM_THREADS" not in os.environ:  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {"OMP_NUM_THREADS": "1", **os.environ})
    sys.exit(main())
