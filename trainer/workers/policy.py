"""One rank of the actor: its shard of student and teacher, the optimiser, and one step's update."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh

from mopd.importance import mismatch
from mopd.teacher import ema_
from mopd.types import FloatArray, IntArray
from trainer import failpoints, fsdp, weights
from trainer.accounting import Account, Tally, pass_over
from trainer.adapters import AdapterSettings
from trainer.attention import PACKED
from trainer.attention_choice import choose_attention
from trainer.forward import padded, step_rows
from trainer.layout import TokenBatch, batch_of
from trainer.meters import Meter, record_mismatch
from trainer.objectives import LossSettings, Targets, contribution
from trainer.packing import MiniBatch, Sample, loss_mask
from trainer.recorded import Recorded
from trainer.rendezvous import open_store
from trainer.scores import HEADS, States
from trainer.weights import LINKS, Link, Transfer, responses_of
from trainer.workers.gauging import note_bare, note_scores
from trainer.workers.models import ModelSettings, OptimSettings, adapter_of, averaged, build_models, on_rank_0, sizes
from trainer.workers.offload import Offload, optimizer_tensors
from trainer.workers.recording import likeliest_of, recorded_of, recorded_rows
from trainer.workers.state import Saving, StateKeeper
from trainer.workers.teacher import DistantTeacher
from trainer.workers.views import TeacherSettings, Views, chosen_of

PATIENCE_S = 30.0
"""How much longer a rank waits for the others than the controller waits for it."""


@dataclass(frozen=True)
class Update:
    """What one rank reports of a step."""

    meter: Meter
    loss: float
    """This rank's part of the loss, summed over the optimiser steps."""
    gradient_norms: tuple[float, ...]
    """Of each optimiser step, over all ranks, before clipping."""
    skipped: int
    """Optimiser steps not taken because the gradient was not finite."""
    recorded: dict[int, Recorded]
    """Of the rollouts asked for, by index."""
    tally: Tally
    """What was forwarded, and how long each phase took."""
    seconds: float


class PolicyWorker:
    """One rank of the actor."""

    def __init__(
        self,
        *,
        rank: int,
        ranks: int,
        device: str,
        model_path: str,
        attn_implementation: str,
        gradient_checkpointing: bool,
        loss: LossSettings,
        optim: OptimSettings,
        teacher: TeacherSettings,
        seed: int,
        deadline_s: float,
        distant: DistantTeacher | None = None,
        student_offload: bool = False,
        optimizer_offload: bool = False,
        teacher_offload: bool = False,
        adapters: AdapterSettings | None = None,
    ) -> None:
        self.student_offload, self.optimizer_offload = student_offload, optimizer_offload
        self.teacher_offload = teacher_offload
        self.distant = distant
        self.rank, self.ranks, self.deadline_s = rank, ranks, deadline_s
        self.device = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
        self.models = ModelSettings(model_path, attn_implementation, gradient_checkpointing, adapters, seed)
        self.packed = attn_implementation == PACKED
        self.loss, self.optim, self.teaching = loss, optim, teacher
        self.step = 0
        self.untaught: Exception | None = None
        """Why the teacher could not be shown something early."""
        self.links: dict[int, Link] = {}
        """By the sampler's number; on rank 0."""
        torch.manual_seed(seed)

    def rendezvous(self) -> tuple[str, int]:
        """Where rank 0 listens for the others: this machine's address and a free port, held from now on."""
        self.store = open_store(self.ranks, timedelta(seconds=self.deadline_s))
        return self.store.host, self.store.port

    def join(self, host: str, port: int) -> dict[str, str | int]:
        """Joins the other ranks and builds the shards of student, teacher and optimiser."""
        # The controller is to lose patience first: it knows who has not answered, a rank knows only that it waits.
        timeout = timedelta(seconds=self.deadline_s + PATIENCE_S)
        if self.rank:
            self.store = TCPStore(host, port, self.ranks, is_master=False, timeout=timeout)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.ranks, timeout=timeout)
        mesh = init_device_mesh(self.device.type, (self.ranks,))

        built = build_models(self.models, mesh, self.loss, self.teaching, self.optim, distant=self.distant is not None)
        self.student, self.teacher, self.optimizer = built.student, built.teacher, built.optimizer
        models = (self.student, self.teacher, self.distant)
        account = Account(self.device)
        self.views = Views(
            *models, self.loss, self.teaching, self.device, self.packed, account, self.deadline_s, voice=built.voice
        )
        self.away_between_steps = Offload(self.device, lambda: optimizer_tensors(self.optimizer))
        self.away_while_sampling = Offload(self.device, lambda: fsdp.shards(self.student))
        self.away_between_updates = Offload(self.device, lambda: fsdp.shards(self.teacher or nn.Module()))
        self.keeper = StateKeeper(self.rank, self.ranks, self.deadline_s)
        attention = choose_attention(self.models.attn_implementation, self.device, fsdp.compute_dtype(self.device.type))
        return {"torch": torch.__version__, "attention": attention, **sizes(self.student)}

    def connect(self, number: int, sampler: Any, transfer: Transfer) -> None:
        """Opens rank 0's way to a sampler; an earlier way to one of this number is given up."""
        if not self.rank:
            self.links[number] = LINKS[transfer.backend](sampler, transfer)

    def publish(
        self, version: int, sequences: Sequence[IntArray], numbers: Sequence[int]
    ) -> tuple[list[FloatArray], list[list[FloatArray]]]:
        """Gives samplers the student's weights as `version`; ours and each one's log-probs of `sequences`.

        A collective: all ranks call it. What matters is rank 0's answer.
        """
        with self.student_here():
            return self.publish_here(version, sequences, [self.links[number] for number in numbers if not self.rank])

    def publish_here(
        self, version: int, sequences: Sequence[IntArray], links: Sequence[Link]
    ) -> tuple[list[FloatArray], list[list[FloatArray]]]:
        """As `publish`, of a student that is on the device."""
        gathered = fsdp.full_weights(self.student)
        try:
            if links:
                weights.publish(links, gathered, fsdp.full_sizes(self.student), version, sequences)
        finally:
            # Gathering and scoring are collectives: whatever became of the samplers, every rank goes through both.
            for _ in gathered:
                pass
            ours = self.logprobs(sequences)
        return ours, [link.answers() for link in links]

    def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """The student's log-probs [L - 1] of every token [L] after the first, at temperature 1."""
        if not sequences:
            return []
        prompts, rest = [tokens[:1] for tokens in sequences], [tokens[1:] for tokens in sequences]
        values = self.score(batch_of(prompts, rest, self.device, packed=self.packed), 1.0)
        return np.split(values, np.cumsum([len(tokens) for tokens in rest])[:-1])

    def responses(self, backend: str) -> dict[str, FloatArray]:
        """How every weight answers the probe, on rank 0. A collective: all ranks call it."""
        with self.student_here():
            return responses_of(fsdp.full_weights(self.student), LINKS[backend].dtype)

    @torch.no_grad()
    def score(self, batch: TokenBatch, temperature: float) -> FloatArray:
        """The student's log-probs [M] of a batch's response tokens."""
        with self.views.reading(self.student, batch) as hidden:
            states = States(hidden, self.student.head)
            found = HEADS[self.loss.head].logprobs(states, batch.tokens, temperature)
        values: FloatArray = found.logprobs.float().cpu().numpy()
        return values

    def score_again(self, micro_batch: Sequence[Sample]) -> list[FloatArray]:
        """The log-probs [T] of a micro-batch's responses before anything changes; 0 for tokens that do not count."""
        whole = self.views.lay_out(micro_batch)
        chosen = chosen_of(micro_batch, self.device)
        batch = whole.only(chosen)
        self.views.account.forwarded("student", pass_over(batch, micro_batch, on_view=False))
        with self.views.account.turn("forward"):
            values = self.score(batch, self.loss.temperature)
        rows = np.zeros(len(chosen), dtype=np.float32)
        rows[chosen.cpu().numpy()] = values
        return np.split(rows, np.cumsum([len(sample.response_ids) for sample in micro_batch])[:-1])

    @contextmanager
    def optimizer_here(self) -> Iterator[None]:
        """Inside, the optimiser's state is on the device."""
        with self.away_between_steps.at_hand() if self.optimizer_offload else nullcontext():
            yield

    @contextmanager
    def student_here(self) -> Iterator[None]:
        """Inside, the student is on the device."""
        with self.away_while_sampling.at_hand() if self.student_offload else nullcontext():
            yield

    @contextmanager
    def teacher_here(self) -> Iterator[None]:
        """Inside, the teacher beside the student is on the device."""
        with self.away_between_updates.at_hand() if self.teacher_offload else nullcontext():
            yield

    def teach(self, mini_batch: MiniBatch) -> Tensor | list[Tensor]:
        """The teacher's states [M, H] of every sample's tokens that count, on the CPU, in the order of micro-batches.

        A collective: all ranks call it, with as many micro-batches. Of one sample there is no list.
        """
        try:
            with self.teacher_here():
                found = [states for part in mini_batch.micro_batches for states in self.views.taught(part)]
        except Exception as error:
            self.untaught = error  # nobody may ask for these states, and the other ranks are a collective ahead
            raise
        return found[0] if len(found) == 1 else found

    def update(
        self,
        mini_batches: Sequence[MiniBatch],
        step: int,
        record: frozenset[int],
        taught: Mapping[int, Any] | None = None,
    ) -> Update:
        """As `learn`, with a teacher that is brought to the device for it; `taught` as `Policy.begin` has it."""
        if self.untaught is not None:
            raise self.untaught
        self.views.known = taught
        try:
            with self.student_here(), self.teacher_here():
                return self.learn(mini_batches, step, record)
        finally:
            self.views.known = None  # or the states would lie in the object store until the next update

    def learn(self, mini_batches: Sequence[MiniBatch], step: int, record: frozenset[int]) -> Update:
        """One training step: an optimiser step per mini-batch, then one of the teacher.

        With more than one mini-batch the first policy's log-probs are taken before anything changes.
        """
        started = time.perf_counter()
        self.step = step
        self.loss_sum = 0.0
        meter, skipped = Meter(), 0
        norms: list[float] = []
        recorded: dict[int, Recorded] = {}
        old = [
            [
                self.score_again(micro_batch) if len(mini_batches) > 1 else None
                for micro_batch in mini_batch.micro_batches
            ]
            for mini_batch in mini_batches
        ]
        note_bare(meter, mini_batches[0].bare if mini_batches else (), self.views)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.rate(step)
        for mini_batch, old_rows in zip(mini_batches, old, strict=True):
            if not mini_batch.micro_batches:
                continue
            parts = zip(mini_batch.micro_batches, old_rows, mini_batch.denominators, strict=True)
            for micro_batch, rows, denominator in parts:
                # What was first seen stays: later epochs see a student that has moved.
                recorded = self.accumulate(micro_batch, rows, denominator, meter, record) | recorded
            with self.views.account.turn("optimiser"):
                norms.append(self.take_step())
                skipped += not np.isfinite(norms[-1])
            failpoints.hit("step.after_opt", step=step, rank=self.rank)
        if self.follows and len(norms) > skipped:
            with self.views.account.turn("optimiser"):
                ema_(*averaged(self.student, self.teacher), self.teaching.rate)
        tally, self.views.account = self.views.account.closed(), Account(self.device)
        seconds = time.perf_counter() - started
        return Update(meter, self.loss_sum, tuple(norms), skipped, recorded, tally, seconds)

    def take_step(self) -> float:
        """One step of the optimiser, unless the gradient is not finite; the gradient's norm before clipping."""
        norm = fsdp.gradient_norm(self.student, self.optim.grad_clip)
        # The norm is that of all ranks, so that all take or skip the step alike.
        if np.isfinite(norm):
            with self.optimizer_here():
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def accumulate(
        self,
        micro_batch: Sequence[Sample],
        old_rows: list[FloatArray] | None,
        denominator: float,
        meter: Meter,
        record: frozenset[int],
    ) -> dict[int, Recorded]:
        """Adds one micro-batch's gradient; returns what is kept of the rollouts of `record`."""
        view = self.views.lay_out(micro_batch)
        targets = self.targets_of(micro_batch, view, old_rows)
        batch = view.only(chosen_of(micro_batch, self.device))
        with ExitStack() as held:
            rows = recorded_rows(micro_batch, record)
            student, teacher = self.views.states_of(micro_batch, batch, held, rows)
            with self.views.account.turn("loss"):
                likeliest = likeliest_of(rows, student, teacher, self.loss.temperature)
                part = contribution(student, teacher, batch.tokens, targets, self.loss, denominator)
            if (self.loss.divergence.topk or len(student.weight)) < len(student.weight):
                held.close()  # the teacher's weights have said what they have to say
            loss = part.loss * failpoints.factor("step.loss", step=self.step, rank=self.rank)
            self.loss_sum += float(loss.detach())
            # FSDP averages gradients over ranks; the parts are to be added.
            with self.views.account.turn("backward"):
                (loss * self.ranks).backward()
        note_scores(meter, micro_batch, part, targets.mask)
        gap = (part.old_logprobs - targets.sampler_logprobs).abs()
        meter.peak("rollout_corr/logprob_max_abs_diff", gap, targets.mask)
        meter.add("rollout_corr/logprob_mean_abs_diff", gap, targets.mask)
        apart = mismatch(part.old_logprobs, targets.sampler_logprobs, targets.mask)
        record_mismatch(meter, apart, self.loss.rollout_is, self.loss.rollout_is_threshold)
        for name, values in part.measured.items():
            per_token = values.shape == targets.mask.shape
            meter.add(name, values, targets.mask if per_token else torch.ones_like(values))
        return recorded_of(micro_batch, record, part.measured.get("self_distillation/divergence"), likeliest)

    def targets_of(
        self, micro_batch: Sequence[Sample], batch: TokenBatch, old_rows: list[FloatArray] | None
    ) -> Targets:
        """The loss's inputs of a micro-batch."""
        stepped = any(sample.step_ids is not None for sample in micro_batch)
        return Targets(
            mask=padded([loss_mask(sample) for sample in micro_batch], batch.present),
            advantages=padded([sample.streams.advantages for sample in micro_batch], batch.present),
            sampler_logprobs=padded([sample.sampler_logprobs for sample in micro_batch], batch.present),
            old_logprobs=None if old_rows is None else padded(old_rows, batch.present),
            step_ids=step_rows(micro_batch, batch.present) if stepped else None,
            rewards=torch.tensor([sample.reward for sample in micro_batch] or [float("nan")]),
            groups=[sample.group for sample in micro_batch] or [0],
        )

    def weights(self) -> dict[str, Tensor]:
        """The student's whole weights by name on rank 0, nothing on the others. A collective: all ranks call it."""
        return on_rank_0(self.rank, lambda: fsdp.full_weights(self.student))

    def save(self, saving: Saving) -> None:
        """Begins to write a checkpoint; the last one is whole by then. A collective: all ranks call it."""
        path = self.models.path
        with self.student_here(), self.optimizer_here(), self.teacher_here():
            adapter = adapter_of(self.student, self.rank, path)
            self.keeper.stage(
                saving, self.kept(), self.optimizer, self.weights(), self.student.model, path, adapter=adapter
            )

    def saved(self) -> bool:
        """Whether no checkpoint is being written."""
        return self.keeper.ended()

    def settle(self) -> None:
        """Waits for the last checkpoint, and raises what went wrong with it."""
        self.keeper.settle()

    def restore(self, folder: str) -> None:
        """Takes student, optimiser and teacher from a checkpoint. A collective: all ranks call it."""
        with self.student_here(), self.optimizer_here(), self.teacher_here():
            self.keeper.load(folder, self.kept(), self.optimizer)

    @property
    def follows(self) -> bool:
        """Whether a teacher follows the student."""
        return self.loss.method.distils and self.teaching.kind == "ema" and self.views.speaker is not None

    def kept(self) -> Mapping[str, nn.Module]:
        """The models that a checkpoint keeps: the student, and a teacher beside it that follows it."""
        kept: dict[str, nn.Module] = {"student": self.student}
        return kept | ({"teacher": self.teacher} if self.follows and self.teacher is not None else {})
