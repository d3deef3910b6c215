"""Bytes that an actor process holds at its peak, by part; docs/planning.md derives every term.

The terms follow what the code keeps alive: `layout.py` (packed or padded rows), `planning/vocabulary.py` (the loss),
`workers/views.py` (teacher first, then student, both output matrices held through the loss) and FSDP2 (layers gathered
one by one, the rest from forward to backward).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mopd.methods import Method
from trainer.parts import PROVED_ROLLOUTS, PROVED_TOKENS
from trainer.planning.architecture import Architecture
from trainer.planning.vocabulary import FP32, Way, backward_bytes, forward_bytes

Away = Literal["weights (fp32)", "optimiser", "teacher beside"]
"""Parts of a rank that may lie in the host's memory between phases."""


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch, all of whose sequences are of one length."""

    rows: int
    prompts: int
    """Different prompts of the student's: as many as rows, or fewer where a group shares one."""
    prompt: int
    """Tokens of the student's prompt."""
    response: int

    @property
    def padded_tokens(self) -> int:
        """Tokens of the student's forward pass in padded rows; the keys that the tokens of a packed row attend to."""
        return self.rows * (self.prompt + self.response)

    @property
    def packed_tokens(self) -> int:
        """Tokens of the student's forward pass in a packed row: every prompt once, no response's last token."""
        return self.prompts * self.prompt + self.rows * (self.response - 1)

    @property
    def response_tokens(self) -> int:
        """Tokens that go through the vocabulary."""
        return self.rows * self.response


@dataclass(frozen=True)
class ActorPlan:
    """What decides the memory of an actor process."""

    student: Architecture
    beside: Architecture | None
    """The teacher, or the reference, where it lies beside the student; None where there is none."""
    method: Method
    topk: int | None
    """Entries that a divergence compares; None for the whole vocabulary."""
    union: bool
    """Whether both models choose them."""
    mixes: bool
    """Whether the teacher is a mixture of two models."""
    distant: bool
    """Whether the teacher answers from elsewhere."""
    ranks: int
    on_gpu: bool
    recompute: bool
    """Gradient checkpointing."""
    packed: bool
    """Whether rows are packed into one."""
    fused: bool
    """Whether the loss goes through the vocabulary by parts."""
    eager: bool
    """Attention that keeps its [L, L] weights."""
    micro_batch: MicroBatch
    away: frozenset[Away] = frozenset()
    """What lies in the host's memory, and not on the GPU, while it is not needed."""
    adapters: int = 0
    """Weights of the student's adapters, of which alone there are gradients and moments; 0: all weights are trained."""
    teacher_adapters: int = 0
    """Weights of those with which the student's base is its moving average."""

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        return self.adapters or self.student.parameters

    @property
    def element(self) -> int:
        """Bytes of an element in forward passes."""
        return 2 if self.on_gpu else FP32

    @property
    def tokens(self) -> int:
        """Tokens of the student's forward pass."""
        return self.micro_batch.packed_tokens if self.packed else self.micro_batch.padded_tokens

    @property
    def whole_vocabulary(self) -> bool:
        """Whether the divergence is taken over the whole vocabulary."""
        return self.method.signal == "divergence" and (self.topk is None or self.topk >= self.student.vocabulary)

    @property
    def way(self) -> Way:
        """The micro-batch's way through the vocabulary."""
        compares = self.method.signal == "divergence"
        return Way(
            fused=self.fused,
            signal=self.method.signal,
            entries=(self.topk or 1) * (2 if self.union else 1) if compares else 1,
            whole=self.whole_vocabulary,
            union=self.union and compares and not self.distant,
            other=not self.distant and (self.method.distils or self.method.has_reference),
            mixes=self.mixes and self.method.distils,
            tokens=self.micro_batch.response_tokens,
            hidden=self.student.hidden,
            vocabulary=self.student.vocabulary,
            element=self.element,
            device="cuda" if self.on_gpu else "cpu",
            frozen=bool(self.adapters),
        )


def memory_of(plan: ActorPlan) -> dict[str, float]:
    """Bytes by part at the peak of a step, on one rank.

    The peak is the largest of seven moments: the loss, its way back to the hidden states, the backward pass through a
    layer, its end at the embedding, the optimiser's step, and publishing and proving it, when there are no gradients.
    Parts of the other moments do not appear. A checkpoint that is being written comes on top: see `staged`.
    """
    steady = steady_parts(plan)
    learning = (loss_moment(plan), head_moment(plan), layer_moment(plan), root_moment(plan))
    moments = [
        *({**without(plan, steady, "optimiser"), **moment} for moment in learning),
        {**steady, **optimizer_moment(plan)},
        while_publishing(plan),
    ]
    peak: dict[str, float] = max(moments, key=total)
    return peak


def while_publishing(plan: ActorPlan) -> dict[str, float]:
    """Bytes by part that a rank holds while it sends weights and proves them, when a sampler is awake beside it."""
    steady = without(plan, steady_parts(plan), "optimiser", "teacher beside")
    moments = [{**steady, **moment} for moment in (publish_moment(plan), proof_moment(plan))]
    peak: dict[str, float] = max(moments, key=total)
    return peak


def while_sampling(plan: ActorPlan, *, teaches: bool = False) -> dict[str, float]:
    """Bytes by part that a rank keeps on its device while rollouts are drawn; `teaches`: groups to the teacher."""
    steady = without(plan, steady_parts(plan), "weights (fp32)", "optimiser", "teacher beside")
    idle = {**steady, "gradients": 0.0}
    if not teaches or plan.beside is None:
        return idle
    whole = plan.element * (plan.beside.root + (1 if plan.ranks == 1 else 3) * plan.beside.layer)
    states = plan.tokens * plan.element * (3 * plan.beside.intermediate + 3 * plan.beside.hidden)
    shards = FP32 * plan.beside.parameters / plan.ranks
    return {**idle, "teacher beside": shards, "gathered weights, buffers": float(whole), "activations": float(states)}


def without(plan: ActorPlan, parts: dict[str, float], *idle: Away) -> dict[str, float]:
    """The parts that are on the device while those of `idle` are not needed."""
    gone = plan.away.intersection(idle) if plan.on_gpu else frozenset()
    return {name: size for name, size in parts.items() if name not in gone}


def offloaded(plan: ActorPlan) -> float:
    """Bytes of the host's memory that a rank takes for what is away; on a GPU."""
    steady = steady_parts(plan)
    return sum(steady.get(name, 0.0) for name in plan.away) if plan.on_gpu else 0.0


def total(parts: dict[str, float]) -> float:
    """Bytes of all parts."""
    return sum(parts.values())


def steady_parts(plan: ActorPlan) -> dict[str, float]:
    """What a rank holds throughout: masters, gradients, AdamW's two moments and the teacher beside, all fp32 shards.

    Under adapters the student's own weights are no masters, but as they are computed with.
    """
    share = FP32 * plan.trained / plan.ranks
    frozen = plan.element * plan.student.parameters if plan.adapters else 0
    held = share + (frozen + FP32 * plan.teacher_adapters) / plan.ranks
    parts = {"weights (fp32)": held, "gradients": share, "optimiser": 2 * share}
    if plan.beside is not None:
        parts["teacher beside"] = FP32 * plan.beside.parameters / plan.ranks
    return parts


def layer_activation(plan: ActorPlan) -> float:
    """Bytes that one layer keeps for its backward pass, attention weights left out.

    Norms run in fp32 and keep their input as such, beside the normalised value and the scaled one; attention keeps
    query, key, value and its output, the feed-forward part four tensors of its width. For a packed row on a GPU the
    keys and values of a prompt are copied for each response.
    """
    model, element = plan.student, plan.element
    norms = 2 * model.hidden * (FP32 + 2 * element)
    queries = model.query_width * (FP32 + 3 * element)
    keys = model.kv_width * (FP32 + element)
    attended = plan.micro_batch.padded_tokens if plan.packed and plan.on_gpu else plan.tokens
    wide = 4 * model.intermediate * element
    return float(plan.tokens * (norms + queries + keys + wide) + attended * 2 * model.kv_width * element)


def attention_weights(plan: ActorPlan, length: int) -> float:
    """Bytes of the [L, L] weights of one layer, where attention keeps them."""
    if not plan.eager:
        return 0.0
    return float(plan.micro_batch.rows * plan.student.heads * length**2 * (FP32 + 2 * plan.element))


def kept_activations(plan: ActorPlan) -> float:
    """Bytes kept from the student's forward pass until its backward pass, the gathered hidden states among them."""
    model, batch = plan.student, plan.micro_batch
    ends = model.hidden * (plan.tokens * (FP32 + 2 * plan.element) + batch.response_tokens * plan.element)
    if plan.recompute:
        return float(ends + model.layers * plan.tokens * model.hidden * plan.element)
    return ends + model.layers * one_layer(plan)


def one_layer(plan: ActorPlan) -> float:
    """Bytes that one layer of the student keeps for the micro-batch."""
    return layer_activation(plan) + attention_weights(plan, plan.micro_batch.prompt + plan.micro_batch.response)


def gathered(plan: ActorPlan) -> float:
    """Bytes of whole weights in a forward or backward pass: all outside the layers, and the layers at hand.

    One rank alone copies the layer at hand; several hold it, the gathered message it came in, and the next one's.
    """
    layers = 1 if plan.ranks == 1 else 3
    return float(plan.element * (plan.student.root + layers * plan.student.layer))


def loss_moment(plan: ActorPlan) -> dict[str, float]:
    """The end of the loss: the student's weights outside the layers are whole, and the teacher's."""
    beside = 0 if plan.beside is None else plan.beside.root
    return {
        "activations": kept_activations(plan),
        "logits and divergence": forward_bytes(plan.way),
        "gathered weights, buffers": float(plan.element * (plan.student.root + beside)),
    }


def head_moment(plan: ActorPlan) -> dict[str, float]:
    """The beginning of the backward pass; the teacher's weights are needed again only for whole distributions."""
    again = plan.beside is not None and plan.whole_vocabulary
    roots = plan.student.root + (plan.beside.root if again and plan.beside is not None else 0)
    return {
        "activations": kept_activations(plan),
        "logits and divergence": backward_bytes(plan.way),
        "gathered weights, buffers": float(plan.element * roots),
    }


def layer_moment(plan: ActorPlan) -> dict[str, float]:
    """In the backward pass, where gradients of the output layer and of one layer wait to be reduced."""
    model = plan.student
    activations = kept_activations(plan) + (one_layer(plan) if plan.recompute else 0)
    flowing = plan.tokens * plan.element * (3 * model.intermediate + 3 * model.hidden)
    reduced = plan.adapters / model.layers if plan.adapters else model.layer
    reducing = (plan.element + 2 * FP32) * reduced + plan.way.matrix_gradient
    return {
        "activations": activations + flowing,
        "logits and divergence": plan.way.others,
        "gathered weights, buffers": gathered(plan) + reducing,
    }


def root_moment(plan: ActorPlan) -> dict[str, float]:
    """At the end of the backward pass: weights and gradients of all that lies outside the layers, whole.

    A tied embedding has two gradients, until they are added. Then the weights are given up, and the gradients copied
    into the message that is reduced; last come message and answer.
    """
    if plan.adapters:
        passing: tuple[float, ...] = (plan.element,)  # nothing of this is trained
    else:
        passing = (
            plan.element * (3 if plan.student.tied else 2),
            plan.element + FP32,
            FP32 * (1 + 1 / plan.ranks),
        )
    return {
        "logits and divergence": plan.way.others + plan.way.states,
        "gathered weights, buffers": max(passing) * plan.student.root,
    }


def optimizer_moment(plan: ActorPlan) -> dict[str, float]:
    """AdamW's temporaries: of all weights at once on a GPU, weight by weight on a CPU."""
    whole = plan.trained if plan.on_gpu else min(2 * plan.student.largest, plan.trained)
    return {"optimiser's temporaries": FP32 * whole / plan.ranks}


def publish_moment(plan: ActorPlan) -> dict[str, float]:
    """The largest weight whole, in fp32 and as it is sent; with adapters what they add to it as well."""
    copies = FP32 * (2 if plan.adapters else 1) + plan.element
    return {"gradients": 0.0, "gathered weights, buffers": float(copies * plan.student.largest)}


def proof_moment(plan: ActorPlan) -> dict[str, float]:
    """The log-probs that prove a publish: of some tokens, without gradient."""
    way = replace(plan.way, signal="policy", entries=1, whole=False, union=False, other=False, mixes=False)
    proof = forward_bytes(replace(way, tokens=PROVED_ROLLOUTS * PROVED_TOKENS))
    return {"gradients": 0.0, "logits and divergence": proof, "gathered weights, buffers": gathered(plan)}


def staged(plan: ActorPlan, *, follows: bool) -> tuple[float, float]:
    """Bytes of host memory that a checkpoint takes while it is written and training goes on: per rank, and on rank 0.

    Every rank copies its shards of what is trained, moments, and a teacher that `follows`; rank 0 adds the whole
    student, as it is written for others to load.
    """
    shards = FP32 * (3 + int(follows)) * plan.trained / plan.ranks
    return shards, shards + FP32 * plan.student.parameters
