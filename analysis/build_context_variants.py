"""What a teacher could be shown for each response: one row per response and condition.

    python analysis/build_context_variants.py --candidates DIR/candidate_responses.jsonl \\
        --evidence DIR/evidence_items.jsonl --output DIR/context_variants.jsonl

Peers are chosen by `mopd.peers` and shown by `mopd.contexts`, as in training; `context_conditions.py` lists the
conditions. Nothing is cut here: how much fits depends on a tokenizer, so `score_teacher_contexts.py` renders and fits.
Exit codes: 0 done, 2 bad input.

Departures from the published script:

1. Peers, the failed one too, are drawn by the rule of training with `--seed`; the published script takes the first in
   the order `r1, r10, r2`. All conditions of a response share one draw.
2. Texts of peers are distinct, cut or unknown responses are no peers, and summaries do not depend on a first solution.
3. `all_solutions` shows every success, where the published one repeats `solution+another_solution`.
   `random_summary_control` draws from all other prompts, where the published one takes the first.
4. Only responses with a known verdict have rows; nothing can be learnt from the others.
5. A row holds the messages, the peers by slot and why each was chosen, besides the published `assembled_context_text`,
   which is the text of the last user message.
6. Every piece that a row names must stand in `--evidence`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
from context_conditions import Condition, Selection, read_config
from json_lines import BadInput
from rich.console import Console
from rich.progress import track
from row_files import Needed, Row, natural, read_rows, short_hash, write_whole
from teacher_prompts import last_text, sections_used
from variant_peers import GroupPeers, control_peers, group_of

from mopd.contexts import ContextSettings, build_view
from mopd.controls import CONTROLS
from mopd.types import Group, Peers, Rollout, View

NEEDED: Needed = {
    "prompt_id": str,
    "prompt": str,
    "response_id": str,
    "response_text": str,
    "reward": (float, int, type(None)),
    "success": (bool, type(None)),
}
"""What a candidate row must have."""


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="build_context_variants.py", description="Teacher contexts per response.")
    parser.add_argument("--candidates", type=Path, required=True, metavar="FILE", help="candidate_responses.jsonl")
    parser.add_argument("--evidence", type=Path, required=True, metavar="FILE", help="evidence_items.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--variant-config", type=Path, metavar="JSON", help="other conditions than the published ones")
    parser.add_argument("--condition-filter", nargs="+", metavar="NAME", help="only these conditions")
    parser.add_argument("--seed", type=int, default=42, help="draws the peers")
    return parser.parse_args(argv)


def read_groups(file: Path) -> dict[str, list[Row]]:
    """The candidate rows by prompt, in natural order of their responses.

    Raises:
        BadInput: the file cannot be read, or a row lacks what is needed or is there twice.
    """
    groups: dict[str, list[Row]] = {}
    for row in read_rows(file, NEEDED):
        groups.setdefault(row["prompt_id"], []).append(row)
    for prompt_id, rows in groups.items():
        if twice := [name for name, times in Counter(row["response_id"] for row in rows).items() if times > 1]:
            raise BadInput(
                f"{file}: prompt {prompt_id} has the response {twice[0]} twice; each needs a name of its own"
            )
        rows.sort(key=lambda row: natural(row["response_id"]))
    return groups


@dataclass(frozen=True)
class Variants:
    """Makes the rows of all prompts."""

    selection: Selection
    conditions: tuple[Condition, ...]
    seed: int
    known_evidence: frozenset[str]

    def rows(self, groups: Mapping[str, Sequence[Row]], console: Console) -> Iterator[Row]:
        """The rows of every prompt, response and condition, in this order.

        Raises:
            BadInput: a piece is shown that the evidence does not have.
        """
        by_prompt = {prompt_id: group_of(rows) for prompt_id, rows in groups.items()}
        controls = self.controls(list(by_prompt.values()))
        successes = [(group.uid, one) for group in by_prompt.values() for one in right_of(group, self.selection)]
        for prompt_id, rows in track(groups.items(), "building contexts", console=console, transient=True):
            others = [(rollout, True) for uid, rollout in successes if uid != prompt_id]
            peers = GroupPeers(rows, by_prompt[prompt_id], self.selection, self.seed, others, controls[prompt_id])
            for own, row in enumerate(rows):
                if row["success"] is not None:
                    yield from (self.row(peers, own, condition) for condition in self.conditions)

    def controls(self, groups: Sequence[Group]) -> dict[str, dict[str, tuple[Peers, ...]]]:
        """By prompt and condition, the peers of matched-budget controls."""
        found: dict[str, dict[str, tuple[Peers, ...]]] = {group.uid: {} for group in groups}
        for condition in self.conditions:
            if condition.peer_control in CONTROLS:
                every = control_peers(groups, condition, self.selection, self.seed)
                for group, peers in zip(groups, every, strict=True):
                    found[group.uid][condition.name] = peers
        return found

    def row(self, peers: GroupPeers, own: int, condition: Condition) -> Row:
        """The row of one response under one condition."""
        candidate, settings = peers.rows[own], self.selection.settings(condition)
        view = build_view(peers.group.prompt.messages, peers.of(own, condition), settings)
        names = (candidate["prompt_id"], candidate["response_id"])
        shown = view.peers
        kept = {name: candidate.get(name) for name in ("uid", "reward", "success", "difficulty_bucket")}
        pieces = evidence_of(view, candidate["response_id"])
        if missing := sorted({*pieces} - self.known_evidence):
            raise BadInput(f"--evidence: has no {missing[0]}; it and --candidates are not of one data set")
        text = last_text(view.messages, settings, closing=condition.force_reprompt)
        return {
            "variant_id": short_hash(condition.name, *names),
            "condition": condition.name,
            "prompt_id": names[0],
            "response_id": names[1],
            **kept,
            "variant_spec": {**asdict(condition), **global_spec(self.selection), "seed": self.seed},
            "sections_used": sections_used(shown),
            "evidence_ids": pieces,
            "primary_solution_response_id": next((c.rollout_id for c in shown.choices if c.slot == "primary"), None),
            "summary_sources": [choice.rollout_id for choice in shown.choices if choice.slot == "summary"],
            "assembled_context_text": text,
            "assembled_context_length_chars": len(text),
            "response_text": candidate["response_text"],
            "known_places": candidate.get("known_places", []),
            "prompt_messages": list(peers.group.prompt.messages),
            "peers": {name: value for name, value in asdict(shown).items() if value not in (None, (), [])},
            "context_settings": changed(settings),
        }


def right_of(group: Group, selection: Selection) -> list[Rollout]:
    """The successes of a group that may be shown to others."""
    return [
        rollout
        for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True)
        if outcome.success and (selection.include_truncated_peers or not rollout.truncated)
    ]


def evidence_of(view: View, response_id: str) -> list[str]:
    """The pieces that a view shows, as the evidence names them."""
    kinds = {"summary": "summary"}
    pieces = [f"{choice.rollout_id}::{kinds.get(choice.slot, 'response_full')}" for choice in view.peers.choices]
    return [*pieces, *([f"{response_id}::feedback"] if view.peers.feedback is not None else [])]


def global_spec(selection: Selection) -> Row:
    """What holds for all conditions, as a row tells it."""
    told = asdict(selection)
    del told["context"]  # in the row's settings
    return told


def changed(settings: ContextSettings) -> Row:
    """What is not as `ContextSettings` has it by default."""
    default = ContextSettings()
    values = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def filtered(conditions: tuple[Condition, ...], names: Sequence[str] | None) -> tuple[Condition, ...]:
    """The conditions of these names.

    Raises:
        BadInput: there is none of a name.
    """
    if names is None:
        return conditions
    known = [condition.name for condition in conditions]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"--condition-filter {unknown[0]}: no such condition; there are {', '.join(known)}")
    return tuple(condition for condition in conditions if condition.name in names)


def build(asked: argparse.Namespace, console: Console) -> tuple[int, int, int]:
    """Writes all rows; how many rows, responses and conditions.

    Raises:
        BadInput: what was named cannot be read or written.
    """
    selection, conditions = read_config(asked.variant_config)
    conditions = filtered(conditions, asked.condition_filter)
    groups = read_groups(asked.candidates)
    known = frozenset(row["evidence_id"] for row in read_rows(asked.evidence, {"evidence_id": str}))
    variants = Variants(selection, conditions, asked.seed, known)
    written = write_whole(asked.output, variants.rows(groups, console))
    return written, written // len(conditions), len(conditions)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        rows, responses, conditions = build(asked, errors)
    except BadInput as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    console.print(
        f"  {rows:,} contexts: {responses:,} responses under {conditions} conditions\n  written to {asked.output}",
        soft_wrap=True,
        markup=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
