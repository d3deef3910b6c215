"""Publishing: the student's weights to the sampler, bucket by bucket, and the proof that they arrived.

    link = LINKS["gloo"](sampler, transfer)                 rank 0, once for every sampler process
    link.publish(fsdp.full_weights(student), ...)           rank 0, after every step
    theirs = link.answers()                                 the sampler's log-probs by the new weights

The sampler's side is vLLM's weight-transfer API, and rank 0 drives it by vLLM's four calls: init_weight_transfer_engine
once, then start_weight_update, update_weights for every bucket, finish_weight_update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo
from torch.multiprocessing.reductions import reduce_tensor

from mopd.types import FloatArray, IntArray
from trainer import cluster, failpoints
from trainer.rendezvous import open_store
from trainer.workers.sampler_types import Fingerprint, probe

DOING = "publishing weights"
GRACE_S = 5.0
"""How long a sampler that broke a transfer off has to tell why."""

Bucket = list[tuple[str, Tensor]]
"""Weights that travel together, by name."""


class PublishError(RuntimeError):
    """The sampler does not compute what the trainer computes; the message says by how much and where."""


@dataclass(frozen=True)
class Transfer:
    """How weights travel."""

    backend: str
    """A key of `LINKS`."""
    bucket_bytes: int
    """Most bytes gathered and sent at once; a larger weight travels alone."""
    deadline_s: float
    """Longest wait for the sampler to take a bucket."""


def plan_buckets(sizes: Sequence[int], limit: int) -> list[int]:
    """How many consecutive weights travel together, at most `limit` bytes; a larger weight travels alone."""
    counts: list[int] = []
    filled = limit
    for size in sizes:
        if not counts or filled + size > limit:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += size
    return counts


def note_of(bucket: Bucket) -> dict[str, Any]:
    """What vLLM wants to know of a bucket before it takes it."""
    return {
        "names": [name for name, _ in bucket],
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in bucket],
        "shapes": [list(weight.shape) for _, weight in bucket],
    }


def packed(bucket: Bucket) -> Tensor:
    """The weights of a bucket as one message of bytes."""
    return torch.cat([weight.reshape(-1).view(torch.uint8) for _, weight in bucket])


class Link(ABC):
    """Rank 0's way to one sampler."""

    dtype = torch.bfloat16
    """Of weights on the way: the precision of the engine at the other end."""

    def __init__(self, sampler: Any, transfer: Transfer) -> None:
        self.sampler, self.transfer = sampler, transfer
        self.calls: list[Any] = []
        try:
            self.connect()
        except RuntimeError as error:
            self.explain("the sampler did not connect", error)

    @abstractmethod
    def connect(self) -> None:
        """Opens the way; both sides come to it at the same time."""

    @abstractmethod
    def hand_over(self, bucket: Bucket) -> None:
        """Tells the sampler of a bucket and moves it."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls the sampler without waiting; it answers calls in their order."""
        self.calls.append(getattr(self.sampler, method).remote(*arguments))
        return self.calls[-1]

    def begin(self) -> None:
        """Makes the sampler wait for weights."""
        self.calls = []
        self.call("start_weight_update")

    def send(self, bucket: Bucket, place: str) -> None:
        """Sends a bucket, and says which one, `place`, where the sampler did not take it."""
        try:
            self.hand_over(bucket)
        except RuntimeError as error:
            self.explain(f"the sampler did not take bucket {place}", error)

    def finish(self, version: int, sequences: Sequence[IntArray]) -> None:
        """All was sent: asks the sampler to score `sequences` by it."""
        self.call("finish_weight_update", version)
        self.call("score", sequences)

    def answers(self) -> list[FloatArray]:
        """Waits until the sampler is done; its log-probs [L - 1] of the sequences given to `publish`."""
        try:
            scores: list[FloatArray] = cluster.gather(self.calls, DOING, self.transfer.deadline_s)[-1]
        except cluster.DeadlineError as error:
            self.explain("the sampler did not load the weights", error)
        return scores

    def explain(self, failure: str, error: RuntimeError) -> NoReturn:
        """Raises what the sampler itself says of a failure; where it is silent, that it was waited for."""
        cluster.failed_within(self.calls, DOING, GRACE_S)
        waited = f"{DOING}: {failure} within {self.transfer.deadline_s:g} s"
        raise cluster.DeadlineError(f"{waited} ({str(error).splitlines()[0]})") from error


def publish(
    links: Sequence[Link],
    weights: Iterator[tuple[str, Tensor]],
    numels: Sequence[int],
    version: int,
    sequences: Sequence[IntArray],
) -> None:
    """Sends `weights` of `numels` elements to every sampler, gathered once, and asks each to score `sequences` by them.

    When one is lost on the way the others get all weights nevertheless: none of them is left with half of them.

    Raises:
        WorkerError: a sampler failed, died, or did not take a bucket in time.
    """
    first, whole, failures = links[0], list(links), list[cluster.WorkerError]()
    for link in links:
        link.begin()
    plan = plan_buckets([numel * first.dtype.itemsize for numel in numels], first.transfer.bucket_bytes)
    for number, count in enumerate(plan, start=1):
        failpoints.hit("sync.mid", step=version)
        bucket = [(name, weight.to(first.dtype)) for name, weight in islice(weights, count)]
        outcomes = {link: sent(link, bucket, f"{number} of {len(plan)}") for link in whole}
        failures += [error for error in outcomes.values() if error is not None]
        whole = [link for link, error in outcomes.items() if error is None]
        if not whole:
            break
    for link in whole:
        link.finish(version, sequences)
    if failures:
        raise failures[0]


def sent(link: Link, bucket: Bucket, place: str) -> cluster.WorkerError | None:
    """Sends a bucket; what went wrong, if anything did."""
    try:
        link.send(bucket, place)
    except cluster.WorkerError as error:
        return error
    return None


class GlooLink(Link):
    """Over TCP, between processors; a bucket that was gathered on a GPU is copied from there."""

    dtype = torch.float32

    def connect(self) -> None:
        """Makes a group of two; the sampler finds it through a store at this rank."""
        timeout = timedelta(seconds=self.transfer.deadline_s)
        store = open_store(2, timeout)
        address = {"host": store.host, "port": store.port, "deadline_s": self.transfer.deadline_s}
        self.call("init_weight_transfer_engine", address)
        self.group: Any = ProcessGroupGloo(store, 0, 2, timeout)

    def hand_over(self, bucket: Bucket) -> None:
        """Sends one message; the sampler loads it while the next bucket is gathered."""
        self.call("update_weights", note_of(bucket))
        self.group.send([packed(bucket).cpu()], 1, 0).wait(timedelta(seconds=self.transfer.deadline_s))


class HalfGlooLink(GlooLink):
    """The same in half the bytes, to a sampler on a GPU that has no way of its own."""

    dtype = torch.bfloat16


class NcclLink(Link):
    """Between GPUs, to vLLM's engine "nccl". Written from vLLM's source; not run yet."""

    def connect(self) -> None:
        """Joins vLLM's communicator as its rank 0."""
        # Here and not above: the communicator is vLLM's, which nobody else on the trainer's side needs.
        from trainer.workers.sampler_transfer import free_port, nccl_communicator

        place = {"master_address": cluster.this_address(), "master_port": free_port(), "world_size": 2}
        size = self.transfer.bucket_bytes
        self.call(
            "init_weight_transfer_engine", {**place, "rank_offset": 1, "packed": True, "packed_buffer_size_bytes": size}
        )
        self.communicator = nccl_communicator(place)

    def hand_over(self, bucket: Bucket) -> None:
        """Broadcasts one message: the engine packs by the same size, so that a bucket is one message to it too."""
        taken = self.call("update_weights", note_of(bucket))
        message = packed(bucket)
        self.communicator.broadcast(message, src=0)
        cluster.gather([taken], DOING, self.transfer.deadline_s)


class IpcLink(Link):
    """Within one GPU, to vLLM's engine "ipc": the sampler reads this rank's memory. Written from vLLM's source; not
    run yet."""

    def connect(self) -> None:
        """Nothing is opened; the engine learns that handles come weight by weight."""
        cluster.gather([self.call("init_weight_transfer_engine", {"packed": False})], DOING, self.transfer.deadline_s)

    def hand_over(self, bucket: Bucket) -> None:
        """Shows the sampler where the weights lie, and keeps them there until it has read them."""
        held = [weight.contiguous() for _, weight in bucket]
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        torch.cuda.current_stream().synchronize()
        handles = [{gpu: reduce_tensor(weight)[1]} for weight in held]
        taken = self.call("update_weights", {**note_of(bucket), "ipc_handles": handles})
        cluster.gather([taken], DOING, self.transfer.deadline_s)
        torch.cuda.ipc_collect()


LINKS: Mapping[str, type[Link]] = {"gloo": GlooLink, "gloo-bf16": HalfGlooLink, "nccl": NcclLink, "ipc": IpcLink}


# ------------------------------------------------------------------ the proof


def largest_gap(ours: Sequence[FloatArray], theirs: Sequence[FloatArray]) -> float:
    """The largest difference of log-probs; not a number where one of them is none."""
    gaps = [np.abs(one - other) for one, other in zip(ours, theirs, strict=True)]
    return float(np.concatenate(gaps).max())


def responses_of(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> dict[str, FloatArray]:
    """What every weight, rounded to `dtype`, makes of the probe; a vector stands for itself."""
    answers = {}
    for name, weight in weights:
        whole = weight.to(dtype).float()
        response = whole @ torch.from_numpy(probe(whole.shape[1])).to(whole.device) if whole.ndim == 2 else whole
        answers[name] = response.reshape(-1).cpu().numpy()
    return answers


def differing_groups(
    ours: Mapping[str, FloatArray], theirs: Mapping[str, Fingerprint], dtype: torch.dtype
) -> dict[str, float]:
    """The sampler's parameter groups that answer otherwise than the trainer's weights, with the largest difference
    as a share of the group's largest value; the worst first."""
    gaps = {}
    for group, fingerprint in theirs.items():
        # A tied output layer has no weight of its own on the trainer's side.
        parts = [ours.get(name, ours["model.embed_tokens.weight"]) for name in fingerprint.weights]
        expected = np.concatenate(parts)
        if expected.shape != fingerprint.response.shape:
            gaps[group] = float("inf")
            continue
        scale = max(float(np.abs(expected).max()), torch.finfo(dtype).tiny)
        gaps[group] = float(np.abs(expected - fingerprint.response).max()) / scale
    bound = 16 * torch.finfo(dtype).eps
    worst_first = sorted(gaps.items(), key=lambda item: -item[1])
    return {group: gap for group, gap in worst_first if not gap <= bound}
