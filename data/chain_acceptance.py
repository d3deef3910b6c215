"""What a warm-started model must be able to do before it is worth training: figures, and their bounds.

The figures are taken in the real world (the fixed table), on the student's own samples for drawn prompts:

* the student alone: share of right samples (mean@k), of prompts with at least one right sample (pass@k);
* the teacher: mean probability of the right value at result positions, before and after reading peers. On the
  path (all results so far are right) it must rise; off the path (one is wrong) it must not fall, for there a
  teacher that copies its peer by position instead of looking the operands up would teach the student
  mistakes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from chain import MODULUS, STEPS, TABLE, Problem, distinct_problems, true_results
from chain_contexts import MODES, Mode, Results, choose, peers_of, teacher_prompt
from chain_tokenizer import END
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3ForCausalLM

from mopd.rewards.chain import STEP
from mopd.types import Peers

MEAN_RANGE = (0.20, 0.34)
PASS_RANGE = (0.75, 0.95)
RISE = {"1S": 0.17, "2S": 0.08, "1S1F": 0.17, "2S1F": 0.08}
"""Least rise on the path, by mode; a failure alone need not help."""
FALL = {"1S": 0.04, "2S": 0.055, "1S1F": 0.04, "2S1F": 0.055, "1F": 0.03}
"""Largest fall off the path, by mode."""


@dataclass(frozen=True)
class Reading:
    """Mean probabilities of the right value, alone and with peers, over `count` result positions."""

    student: float
    teacher: float
    count: int

    @property
    def change(self) -> float:
        """What the peers add."""
        return self.teacher - self.student


@dataclass(frozen=True)
class Figures:
    """All acceptance figures."""

    mean_at_k: float
    pass_at_k: float
    well_formed: float
    """Share of samples that read as chains."""
    samples: int
    """k"""
    on_path: Mapping[str, Reading]
    """By mode."""
    off_path: Mapping[str, Reading]
    """By mode."""

    def table(self) -> str:
        """The figures for a reader."""
        lines = [
            f"student alone: mean@{self.samples} {self.mean_at_k:.3f}, "
            f"pass@{self.samples} {self.pass_at_k:.3f}, well-formed {self.well_formed:.3f}",
            "mean probability of the right value, student -> teacher (number of positions)",
            f"{'context':8} {'prefix right':>24} {'prefix wrong':>24}",
        ]
        for mode in self.on_path:
            cells = [
                f"{r.student:.3f} -> {r.teacher:.3f} ({r.count})" for r in (self.on_path[mode], self.off_path[mode])
            ]
            lines.append(f"{mode:8} {cells[0]:>24} {cells[1]:>24}")
        return "\n".join(lines)

    def problems(self, slack: float = 0.0) -> list[str]:
        """The bounds that do not hold, each with its figure; `slack` loosens them, for small samples."""
        found = []
        for name, figure, (low, high) in (
            (f"mean@{self.samples}", self.mean_at_k, MEAN_RANGE),
            (f"pass@{self.samples}", self.pass_at_k, PASS_RANGE),
        ):
            if not low - slack <= figure <= high + slack:
                found.append(f"{name} must be in {low}..{high}; got {figure:.3f}")
        for mode, least in RISE.items():
            if not self.on_path[mode].change >= least - slack:
                found.append(f"{mode} on the path must rise by {least}; got {self.on_path[mode].change:+.3f}")
        for mode, most in FALL.items():
            if not self.off_path[mode].change >= -most - slack:
                found.append(f"{mode} off the path may fall by {most}; got {self.off_path[mode].change:+.3f}")
        return found


@torch.no_grad()
def sample(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], limit: int, seed: int
) -> list[str]:
    """One response per prompt at temperature 1, at most `limit` tokens, without the end token.

    The prompts must have the same number of tokens, as all prompts of the task have.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens_N_T = torch.tensor(tokenizer(prompts)["input_ids"])
    length = tokens_N_T.shape[1]
    cache, fresh = None, tokens_N_T
    for _ in range(limit):
        output = model(input_ids=fresh, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        fresh = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=generator)
        tokens_N_T = torch.cat([tokens_N_T, fresh], dim=1)
    return [text.split(END)[0] for text in tokenizer.batch_decode(tokens_N_T[:, length:])]


def read_results(problem: Problem, response: str) -> Results | None:
    """The results that `response` writes, or None where it is no chain of `problem`."""
    matches = [STEP.fullmatch(part) for part in response.split(" ; ")]
    results = tuple(int(match.group(3)) for match in matches if match is not None)
    well_formed = len(results) == len(problem.operators) and problem.response(results) == response
    return results if well_formed else None


@torch.no_grad()
def right_probabilities(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, cases: list[tuple[Problem, Results, Peers]]
) -> torch.Tensor:
    """[N, steps], the probability of the right result of the operands written in each case.

    The cases must be of one mode: chains of the same form have the same number of tokens.
    """
    texts = [teacher_prompt(problem, peers) + problem.response(results) for problem, results, peers in cases]
    tokens_N_T = torch.tensor(tokenizer(texts)["input_ids"])
    (equals,) = tokenizer(" = ")["input_ids"]
    digits = torch.tensor(tokenizer([f"{digit}" for digit in range(MODULUS)])["input_ids"]).flatten()
    truths = [[TABLE[key].true for key in problem.keys(results[:-1])] for problem, results, _ in cases]
    places_S = (tokens_N_T[0] == equals).nonzero().flatten()[-STEPS:]
    values = []
    for tokens, truth in zip(tokens_N_T.split(64), torch.tensor(truths).split(64), strict=True):
        probabilities_N_S_V = model(input_ids=tokens, use_cache=False).logits[:, places_S].softmax(-1)
        values.append(probabilities_N_S_V.gather(-1, digits[truth][..., None]).squeeze(-1))
    return torch.cat(values)


def cases_of(
    mode: Mode, groups: list[tuple[Problem, list[Results | None]]], most: int, rng: random.Random
) -> list[tuple[Problem, Results, Peers]]:
    """Up to `most` samples per problem with siblings for `mode`, drawn at random, never the sample itself."""
    cases = []
    for problem, group in groups:
        found = []
        right = true_results(problem)[-1]
        for index, own in enumerate(group):
            siblings = [other for place, other in enumerate(group) if place != index and other is not None]
            rng.shuffle(siblings)
            successes = [other for other in siblings if other[-1] == right]
            failures = [other for other in siblings if other[-1] != right]
            chosen = choose(mode, successes, failures, distinct=True)
            if own is not None and chosen is not None:
                found.append((problem, own, peers_of(problem, mode, chosen)))
        cases += rng.sample(found, min(most, len(found)))
    return cases


def compare(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, cases: list[tuple[Problem, Results, Peers]]
) -> tuple[Reading, Reading]:
    """Readings on the path and off it; not a number where there are no such positions."""
    if not cases:
        return Reading(math.nan, math.nan, 0), Reading(math.nan, math.nan, 0)
    truth = torch.tensor([true_results(problem) for problem, _, _ in cases])
    same = torch.tensor([results for _, results, _ in cases]) == truth
    before = torch.cat([torch.ones(len(cases), 1, dtype=torch.bool), same[:, :-1]], dim=1).cumprod(1).bool()
    alone = right_probabilities(model, tokenizer, [(problem, results, Peers()) for problem, results, _ in cases])
    reading = right_probabilities(model, tokenizer, cases)
    on, off = (
        Reading(float(alone[part].mean()), float(reading[part].mean()), int(part.sum())) for part in (before, ~before)
    )
    return on, off


def acceptance(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompts: int = 1024,
    samples: int = 8,
    cases: int = 2,
    seed: int = 0,
) -> Figures:
    """The figures of `model` on `prompts` prompts of `seed`; with seed 0 the first 96 are the held-out ones."""
    problems = distinct_problems(prompts, seed)
    asked = [problem for problem in problems for _ in range(samples)]
    texts = [teacher_prompt(problem, Peers()) for problem in asked]
    responses = sample(model, tokenizer, texts, limit=6 * STEPS, seed=seed)
    results = [read_results(problem, text) for problem, text in zip(asked, responses, strict=True)]
    groups = [(problem, results[i * samples : (i + 1) * samples]) for i, problem in enumerate(problems)]
    wins = torch.tensor([[r is not None and r[-1] == true_results(p)[-1] for r in group] for p, group in groups])
    rng = random.Random(seed)
    on_path, off_path = {}, {}
    for mode in MODES[1:]:
        on_path[mode.name], off_path[mode.name] = compare(model, tokenizer, cases_of(mode, groups, cases, rng))
    return Figures(
        float(wins.float().mean()),
        float(wins.any(1).float().mean()),
        sum(result is not None for result in results) / len(results),
        samples,
        on_path,
        off_path,
    )
