"""Folders of runs for the tests of the report, with texts that would do harm if they were taken for markup."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mopd.types import IntArray
from trainer.config.compose import as_yaml, resolve
from trainer.recorded import LIKELIEST, Likeliest, Recorded, Side, arrays_of
from trainer.resume import METHOD_LINE
from trainer.tracking import open_lines, sha256_of, write_line

HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'><!-- <script>",
    "]]>\"'`${window.harmed = 1}{{harmed}}%%SCRIPT%%&lt;b&gt;&#60;",
    "\u202egnol si siht\u202c \u2066a\u2069 \u200f\u061c",
    "nul \x00 bell \x07 escape \x1b[31m return \r end",
    "half \ud83d and \udc00 and whole \U0001f600",
    "line\u2028separator\u2029and\x85next",
    "w" * 3000,
    "javascript:window.harmed=1",
]
"""What a model may say."""
SHOWN_BY_NUMBER = "\u202e\u202c\u2066\u2069\u200f\u061c\x00\x07\x1b\r\u2028\u2029\x85"
"""What of it the page shows by its number."""


def pieces(token_ids: IntArray) -> list[str]:
    """A tokenizer in which every character is a token."""
    return [chr(token) for token in token_ids.tolist()]


def as_seen(text: str) -> str:
    """A text as the page shows it."""
    return "".join(
        f"U+{ord(char):04X}" if char in SHOWN_BY_NUMBER or "\ud800" <= char <= "\udfff" else char for char in text
    )


def lines_of(step: int, groups: int, siblings: int, texts: Sequence[str], recorded: int) -> list[dict[str, Any]]:
    """The rollout lines of a step; the first `recorded` groups have divergences."""
    rng, lines = random.Random(step), []
    for number in range(groups):
        prompt, truth = rng.choice(texts), rng.choice(texts)
        outputs = [f"{step}-{number}-{index} says {rng.choice(texts)}" for index in range(siblings)]
        for index, output in enumerate(outputs):
            peer = (index + 1) % siblings
            status = ("right", "wrong", "unknown")[(index + number) % 3]
            line = {
                "input": f"user\n{prompt}",
                "output": output,
                "gts": truth,
                "score": {"right": 1.0, "wrong": 0.0}.get(status),
                "step": step,
                "uid": f"{step}-{number}",
                "prompt_id": str(number),
                "rollout_id": f"{step}-{number}-{index}",
                "data_source": ("chain", "a/b <i>c")[number % 2],
                "success": {"right": True, "wrong": False}.get(status),
                "status": status,
                "feedback": rng.choice(texts) if status == "wrong" else "",
                "finish_reason": "stop",
                "response_length": len(output),
                "policy_version": step - 1,
                "peers": [{"slot": "primary", "rollout_id": f"{step}-{number}-{peer}", "reason": rng.choice(texts)}],
                "fallbacks": [f"another: {rng.choice(texts)}"],
                "teacher_prompt": f"Prompt {rng.choice(texts)}\n{outputs[peer]}\nSolve."
                if status != "unknown"
                else None,
                "usable": status != "unknown",
            }
            line["teacher_prompt_sha256"] = line["teacher_prompt"] and sha256_of(line["teacher_prompt"])
            if number < recorded:
                line["divergence"] = [round(rng.expovariate(10), 6) for _ in output]
                line["divergence"][0] = None
            lines.append(line)
    return lines


def likeliest_of(said: str, rng: np.random.Generator) -> Likeliest:
    """Lists at every character of a text: it stands at every place of them in turn, and then at none."""
    count, others = len(said), np.asarray([ord(char) for char in dict.fromkeys("".join(HOSTILE))])
    ids = np.stack([rng.permutation(others)[:LIKELIEST] for _ in said]).astype(np.int32)
    for at, char in enumerate(said):
        ids[at][ids[at] == ord(char)] = ord("~")
        if at % (LIKELIEST + 1) < LIKELIEST:
            ids[at, at % (LIKELIEST + 1)] = ord(char)
    shares = np.sort(rng.dirichlet([0.5] * (LIKELIEST + 1), size=count), axis=1)[:, :0:-1]
    return Likeliest(ids, np.log(np.maximum(shares, 1e-9)).astype(np.float16))


def run_in(
    folder: Path,
    *,
    steps: int = 3,
    groups: int = 3,
    siblings: int = 4,
    texts: Sequence[str] = HOSTILE,
    recorded: int = 2,
    overrides: Sequence[str] = (),
    sides: Sequence[Side] = ("student", "teacher"),
) -> Path:
    """The folder of a run of so many steps, as far as a report reads it; `sides` have likeliest tokens."""
    (folder / "rollouts").mkdir(parents=True)
    tree = resolve("mopd", list(overrides), {}).tree
    (folder / "config.yaml").write_text(f"{METHOD_LINE} mopd\n{as_yaml(tree)}")
    (folder / "manifest.json").write_text(json.dumps({"method": "mopd", "machine": {"platform": texts[0]}}))
    rng = random.Random(0)
    with open_lines(folder / "metrics.jsonl", "w") as metrics:
        for step in range(steps + 1):
            write_line(metrics, record(step, rng))
    for step in range(1, steps + 1):
        lines = lines_of(step, groups, siblings, texts, recorded)
        with open_lines(folder / "rollouts" / f"{step}.jsonl", "w") as file:
            for line in lines:
                write_line(file, line)
        tokens = [ord(char) for line in lines for char in line["output"]]
        dice = np.random.default_rng(step)
        kept = {
            index: Recorded(likeliest={side: likeliest_of(line["output"], dice) for side in sides})
            for index, line in enumerate(lines)
            if "divergence" in line
        }
        np.savez(
            folder / "rollouts" / f"{step}.npz",
            lengths=np.asarray([len(line["output"]) for line in lines], np.int32),
            token_ids=np.asarray(tokens, np.int32),
            sampler_logprobs=np.full(len(tokens), -0.5, np.float32),
            **arrays_of(kept),
        )
    return folder


def record(step: int, rng: random.Random) -> dict[str, Any]:
    """A step's metrics."""
    found: dict[str, Any] = {"step": step, "timing_s/step": 2.0, "timing_s/sample": 0.5, "timing_s/learn": 1.0}
    found |= {"timing_s/learn/forward": 0.25, "critic/rewards/mean": rng.random(), "actor/loss": None}
    if step % 2 == 0:
        found |= {f"val-core/{source}/acc/mean@8": rng.random() for source in ("chain", "a/b <i>c")}
    return found
