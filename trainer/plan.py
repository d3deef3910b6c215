"""`python -m trainer.plan --config-name NAME key=value ...`: what a run would be refused for, and what it would need.

Starts nothing and needs no GPU; `--gpus 8 --gpu-memory 80GB` asks for a machine that one is not on. Exit codes: 0 the
run can start, 2 it cannot: every problem is told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.config.compose import METHODS
from trainer.errors import BAD_INPUT, DONE
from trainer.planning.planned import Machine, Plan

if TYPE_CHECKING:
    from trainer.planning.preflight import Examined

UNITS = {"GB": 30, "GIB": 30, "G": 30, "MIB": 20, "MB": 20}
"""Powers of two: a card sold with 80 GB has nearly 80 GiB."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.plan", description="Tells what a run needs; starts nothing."
    )
    parser.add_argument("--config-name", default="mopd", help=f"the method: {', '.join(METHODS)}")
    parser.add_argument("--gpus", type=int, help="plans for so many GPUs, whatever this machine has; 0: for a CPU")
    parser.add_argument("--gpu", default=None, help="their kind: H100 (taken where none is named), H200, A100, GH200")
    parser.add_argument("--gpu-memory", type=in_bytes, metavar="80GB", help="memory of each; by default its kind's")
    parser.add_argument("--all", action="store_true", help="shows every setting, not only those that stand out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the plan there as JSON too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of docs/configuration.md")
    return parser.parse_intermixed_args(argv)


def in_bytes(text: str) -> float:
    """A size as a person writes it: 80GB, 80GiB or 80."""
    number = text.rstrip("GMiIBbgm ")
    unit = text[len(number) :].strip().upper() or "GB"
    if unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 80GB")
    try:
        return float(number) * float(1 << UNITS[unit])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 80GB") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model is a folder: nobody is asked for what is not there
    found = plan(asked, os.environ)
    from trainer.planning.tables import show

    show(found, Console(highlight=False), every_setting=asked.all)
    try:
        if asked.json:
            asked.json.write_text(json.dumps(as_json(found), indent=2) + "\n")
    except OSError as error:
        sys.stderr.write(f"--json {asked.json}: cannot be written ({error.strerror}); name another file\n")
        return BAD_INPUT
    return BAD_INPUT if found.problems else DONE


def plan(asked: argparse.Namespace, environment: Mapping[str, str]) -> Plan:
    """Examines and estimates what the command line asks for."""
    # Here and not above: help and a faulty command line need not wait for torch.
    from trainer.planning.origins import settings_of
    from trainer.planning.preflight import Asked, examine

    machine, faults = machine_of(asked)
    wanted = Asked(asked.config_name, tuple(asked.overrides), environment)
    examined = examine(wanted, machine.gpus)
    settings = settings_of(wanted, examined.method, examined.resolved.tree) if examined.resolved else []
    begun = Plan(examined.method, machine, (*faults, *examined.problems), examined.notes, tuple(settings))
    return begun if examined.resolved is None else estimated(begun, examined)


def estimated(begun: Plan, examined: Examined) -> Plan:
    """The plan with what can be computed: with faults in the data, memory still; without a model, nothing."""
    from trainer.placement import placement_of
    from trainer.planning import estimate
    from trainer.planning.adapters import adapter_parameters
    from trainer.planning.architecture import architecture_of
    from trainer.planning.budget import Spread, prompt_lengths, teacher_contexts
    from trainer.planning.rollouts import packing_plan

    assert examined.resolved is not None
    config, inputs, device = examined.resolved.config, examined.inputs, begun.machine.device
    paths = config.actor_rollout_ref.model.path, config.actor_rollout_ref.ref.model.path
    try:
        student = architecture_of(paths[0])
        teacher = student if paths[1] is None else architecture_of(paths[1])
        models = estimate.Models(student, teacher, adapter_parameters(config))
    except Exception:  # whatever transformers raises of a description; its fault is among the problems
        return begun
    placement = placement_of(config, begun.machine.gpus)
    longest = config.data.max_prompt_length
    prompt = Spread(longest, longest, longest) if inputs is None else prompt_lengths(inputs.train)
    memory = estimate.holders(config, placement, models, prompt, device)
    found = replace(
        begun,
        memory=tuple(memory),
        cache_tokens=estimate.cache_tokens(config, placement, models, device),
        notes=(*begun.notes, *estimate.host_notes(config, placement, models, prompt)),
        problems=(*begun.problems, *estimate.misfits(config, placement, models, memory, device)),
    )
    if begun.problems:
        return found
    most = estimate.longest_response(config)
    contexts, packing, costs = [], [], []
    for response in dict.fromkeys((most, max(1, most // 2))):
        context = None if inputs is None else teacher_contexts(config, inputs, response)
        lengths = estimate.assumed_lengths(config, prompt, context, response)
        rows = [longest] if inputs is None else [len(ids) for ids in inputs.train.prompt_ids]
        cut = packing_plan(config, placement, lengths, rows)
        costs.append(estimate.cost_of(config, placement, models, lengths, cut, device))
        packing.append(cut)
        contexts += [] if context is None else [context]
    return replace(
        found,
        prompts=None if inputs is None else prompt,
        left_out=0 if inputs is None else inputs.train.dropped,
        contexts=tuple(contexts),
        packing=tuple(packing),
        costs=tuple(costs),
    )


def machine_of(asked: argparse.Namespace) -> tuple[Machine, list[str]]:
    """The machine asked for, or this one, and sentences for a description that is none."""
    import torch

    from trainer.planning.costs import DEVICES

    described = any(value is not None for value in (asked.gpus, asked.gpu, asked.gpu_memory))
    visible = torch.cuda.device_count()
    gpus = asked.gpus if asked.gpus is not None else max(visible, 1) if described else visible
    kind, faults = (asked.gpu or "H100").upper(), []
    if kind not in DEVICES or kind == "CPU":
        faults.append(f"--gpu {asked.gpu}: unknown; known: {', '.join(name for name in DEVICES if name != 'CPU')}")
        kind = "H100"
    if gpus < 0:
        faults.append(f"--gpus {gpus}: must be 0 or more")
    if gpus <= 0:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return Machine(0, replace(DEVICES["CPU"], memory=memory), described), faults
    device = DEVICES[kind]
    if not described:
        name = torch.cuda.get_device_name(0)
        known = [kind for kind in sorted(DEVICES, key=len, reverse=True) if kind in name]
        found = float(torch.cuda.get_device_properties(0).total_memory)
        return Machine(gpus, replace(DEVICES[known[0]] if known else device, memory=found), False), faults
    return Machine(gpus, device if asked.gpu_memory is None else replace(device, memory=asked.gpu_memory), True), faults


def as_json(found: Plan) -> dict[str, Any]:
    """The plan for machines: bytes, seconds and tokens."""
    return {**asdict(found), "can_run": not found.problems}


if __name__ == "__main__":
    sys.exit(main())
