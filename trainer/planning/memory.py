"""Bytes that an actor process holds at its peak, by part; docs/planning.md derives every term.

The terms follow what the code keeps alive: `forward.py` (logits of response positions, in fp32), `objectives.py` (whole
[B, T, V] tensors, no chunks), `workers/policy.py` (teacher first, then student, both held through the backward pass)
and FSDP2 (layers gathered one by one, the rest from forward to backward).
"""

from __future__ import annotations

from dataclasses import dataclass

from mopd.methods import Method
from trainer.parts import PROVED_ROLLOUTS, PROVED_TOKENS
from trainer.planning.architecture import Architecture

FP32 = 4
LOGIT_COPIES = {"divergence": 6.0, "sampled_token": 5.0, "policy": 4.0, "preference": 4.0, "likelihood": 4.0}
"""fp32 tensors of [tokens, V] alive at once, by signal: student and teacher, what the loss saves, and temporaries."""
WHOLE_VOCABULARY_COPIES = 14.0
"""The same where the divergence is taken over the whole vocabulary."""
HELD_LOGITS = {"divergence": 2.0, "sampled_token": 2.0, "policy": 1.0, "preference": 1.0, "likelihood": 1.0}
"""Of these, held while the layers' gradients are computed."""


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch, all of whose sequences are of one length."""

    rows: int
    prompt: int
    """Tokens of the student's prompt."""
    response: int

    @property
    def student_tokens(self) -> int:
        """Tokens of the student's forward pass."""
        return self.rows * (self.prompt + self.response)

    @property
    def response_tokens(self) -> int:
        """Tokens whose logits are made."""
        return self.rows * self.response


@dataclass(frozen=True)
class ActorPlan:
    """What decides the memory of an actor process."""

    student: Architecture
    beside: Architecture | None
    """The teacher, or the reference, where it lies beside the student; None where there is none."""
    method: Method
    whole_vocabulary: bool
    """Whether the divergence is taken over the whole vocabulary."""
    distant: bool
    """Whether the teacher answers from elsewhere."""
    ranks: int
    on_gpu: bool
    recompute: bool
    """Gradient checkpointing."""
    eager: bool
    """Attention that keeps its [L, L] weights."""
    micro_batch: MicroBatch

    @property
    def element(self) -> int:
        """Bytes of an element in forward passes."""
        return 2 if self.on_gpu else FP32


def memory_of(plan: ActorPlan) -> dict[str, float]:
    """Bytes by part at the peak of a step, on one rank.

    The peak is the largest of five moments: the loss (all copies of the logits), the backward pass through a layer, its
    end at the embedding, the optimiser's step, and publishing, when there are no gradients. Parts of the other moments
    do not appear. A checkpoint that is being written comes on top: see `staged`.
    """
    steady = steady_parts(plan)
    update = (loss_moment(plan), layer_moment(plan), root_moment(plan), optimizer_moment(plan))
    moments = [{**steady, **moment} for moment in (*update, publish_moment(plan))]
    peak: dict[str, float] = max(moments, key=total)
    return peak


def total(parts: dict[str, float]) -> float:
    """Bytes of all parts."""
    return sum(parts.values())


def steady_parts(plan: ActorPlan) -> dict[str, float]:
    """What a rank holds throughout: masters, gradients, AdamW's two moments and the teacher beside, all fp32 shards."""
    share = FP32 * plan.student.parameters / plan.ranks
    parts = {"weights (fp32)": share, "gradients": share, "optimiser": 2 * share}
    if plan.beside is not None:
        parts["teacher beside"] = FP32 * plan.beside.parameters / plan.ranks
    return parts


def logits_bytes(plan: ActorPlan) -> float:
    """One fp32 tensor of [response tokens, V]."""
    return float(FP32 * plan.micro_batch.response_tokens * plan.student.vocabulary)


def logit_copies(plan: ActorPlan) -> tuple[float, float]:
    """Copies of the logits alive in the loss, and while layers are differentiated."""
    signal, held = plan.method.signal, HELD_LOGITS[plan.method.signal]
    copies = LOGIT_COPIES[signal]
    if signal == "divergence" and plan.whole_vocabulary:
        copies = WHOLE_VOCABULARY_COPIES
    if plan.method.has_reference:
        return copies + 1, held + 1
    return (copies - 1, held - 1) if plan.distant else (copies, held)


def layer_activation(model: Architecture, element: int) -> float:
    """Bytes that one layer keeps per token for its backward pass.

    Norms run in fp32 and keep their input as such, beside the normalised value and the scaled one; attention keeps
    query, key, value and its output, the feed-forward part four tensors of its width.
    """
    norms = 2 * model.hidden * (FP32 + 2 * element)
    queries = model.query_width * (FP32 + 3 * element)
    keys = model.kv_width * (FP32 + 3 * element)
    return float(norms + queries + keys + 4 * model.intermediate * element)


def attention_weights(plan: ActorPlan, length: int) -> float:
    """Bytes of the [L, L] weights of one layer, where attention keeps them."""
    if not plan.eager:
        return 0.0
    return float(plan.micro_batch.rows * plan.student.heads * length**2 * (FP32 + 2 * plan.element))


def kept_activations(plan: ActorPlan) -> float:
    """Bytes kept from the student's forward pass until its backward pass."""
    model, batch = plan.student, plan.micro_batch
    ends = model.hidden * (batch.student_tokens * (FP32 + 2 * plan.element) + batch.response_tokens * plan.element)
    if plan.recompute:
        return float(ends + model.layers * batch.student_tokens * model.hidden * plan.element)
    return ends + model.layers * one_layer(plan)


def one_layer(plan: ActorPlan) -> float:
    """Bytes that one layer of the student keeps for the micro-batch."""
    batch = plan.micro_batch
    length = batch.prompt + batch.response
    return batch.student_tokens * layer_activation(plan.student, plan.element) + attention_weights(plan, length)


def gathered(plan: ActorPlan) -> float:
    """Bytes of whole weights in a forward or backward pass: all outside the layers, and the layers at hand.

    One rank alone copies the layer at hand; several hold it, the gathered message it came in, and the next one's.
    """
    layers = 1 if plan.ranks == 1 else 3
    return float(plan.element * (plan.student.root + layers * plan.student.layer))


def loss_moment(plan: ActorPlan) -> dict[str, float]:
    """Where all copies of the logits are alive: the end of the loss and the beginning of its backward pass."""
    copies, _ = logit_copies(plan)
    return {
        "activations": kept_activations(plan),
        "logits and divergence": copies * logits_bytes(plan),
        "gathered weights, buffers": gathered(plan),
    }


def layer_moment(plan: ActorPlan) -> dict[str, float]:
    """In the backward pass, where gradients of the output layer and of one layer wait to be reduced."""
    model, batch = plan.student, plan.micro_batch
    _, held = logit_copies(plan)
    activations = kept_activations(plan) + (one_layer(plan) if plan.recompute else 0)
    flowing = batch.student_tokens * plan.element * (3 * model.intermediate + 3 * model.hidden)
    reducing = (plan.element + 2 * FP32) * model.layer + plan.element * model.hidden * model.vocabulary
    return {
        "activations": activations + flowing,
        "logits and divergence": held * logits_bytes(plan),
        "gathered weights, buffers": gathered(plan) + reducing,
    }


def root_moment(plan: ActorPlan) -> dict[str, float]:
    """At the end of the backward pass: weights and gradients of all that lies outside the layers, whole.

    A tied embedding has two gradients, until they are added. Then the weights are given up, and the gradients copied
    into the message that is reduced; last come message and answer.
    """
    _, held = logit_copies(plan)
    passing = (
        plan.element * (3 if plan.student.tied else 2),
        plan.element + FP32,
        FP32 * (1 + 1 / plan.ranks),
    )
    return {
        "logits and divergence": held * logits_bytes(plan),
        "gathered weights, buffers": max(passing) * plan.student.root,
    }


def optimizer_moment(plan: ActorPlan) -> dict[str, float]:
    """AdamW's temporaries: of all weights at once on a GPU, weight by weight on a CPU."""
    whole = plan.student.parameters if plan.on_gpu else 2 * plan.student.largest
    return {"optimiser's temporaries": FP32 * whole / plan.ranks}


def publish_moment(plan: ActorPlan) -> dict[str, float]:
    """The largest weight whole, in fp32 and as it is sent, and four copies of the logits that prove the publish."""
    proof = 4.0 * FP32 * PROVED_ROLLOUTS * PROVED_TOKENS * plan.student.vocabulary
    whole = (FP32 + plan.element) * plan.student.largest
    return {"gradients": 0.0, "logits and divergence": proof, "gathered weights, buffers": float(whole)}


def staged(plan: ActorPlan, *, follows: bool) -> tuple[float, float]:
    """Bytes of host memory that a checkpoint takes while it is written and training goes on: per rank, and on rank 0.

    Every rank copies its shards of student, moments, and a teacher that `follows` the student; rank 0 adds the whole
    student, as it is written for others to load.
    """
    shards = FP32 * (3 + int(follows)) * plan.student.parameters / plan.ranks
    return shards, shards + FP32 * plan.student.parameters
