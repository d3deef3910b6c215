"""Weight transfer where vLLM has none of its own: an engine over gloo, for samplers without a GPU.

On GPUs vLLM's engines "nccl" and "ipc" stand in its place; the calls are the same. What the trainer's end of these
needs from vLLM is here as well, at the door to vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_common import trainer_init
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.utils.network_utils import get_open_port

from trainer.workers.receiving import Receiver
from trainer.workers.sampler_types import Fingerprint, probe


@dataclass
class GlooAddress(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the trainer's rank 0 waits."""

    host: str
    port: int
    deadline_s: float


@dataclass
class GlooBucket(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What the next message holds."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooEngine(WeightTransferEngine):  # type: ignore[misc]
    """Takes messages of weights from the trainer's rank 0 and loads them layer by layer."""

    init_info_cls = GlooAddress
    update_info_cls = GlooBucket

    def init_transfer_engine(self, init_info: GlooAddress) -> None:
        """Joins rank 0's group of two."""
        self.receiver: Receiver | None = Receiver(init_info.host, init_info.port, init_info.deadline_s)

    def start_weight_update(self) -> None:
        """Makes every layer wait for its weights."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooBucket) -> None:
        """Takes one message and loads what it holds."""
        assert self.receiver is not None
        self.model.load_weights(self.receiver.take(update_info.names, update_info.dtype_names, update_info.shapes))

    def finish_weight_update(self) -> None:
        """Completes layers that got no weight of their own."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leaves the group."""
        self.receiver = None


WeightTransferEngineFactory.register_engine("gloo", GlooEngine)


def free_port() -> int:
    """A port that is free on this machine."""
    return int(get_open_port())


def nccl_communicator(place: Mapping[str, Any]) -> Any:
    """The trainer's end of the group that vLLM's engine "nccl" joins; waits for the engine."""
    return trainer_init(dict(place))


def repack_tied_head(model: Any) -> None:
    """Rebuilds the packed copy of an output layer that shares the embedding's weights.

    On CPU linear layers compute from a packed copy. A reload refreshes it only for layers that
    receive weights of their own; a tied output layer receives none and would keep the old values.
    """
    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head.weight.data_ptr() != embedding.weight.data_ptr():
        return
    head.quant_method.process_weights_after_loading(head)


@torch.no_grad()
def fingerprints(model: Any) -> dict[str, Fingerprint]:
    """What every parameter group makes of the probe, computed as the engine computes.

    Reading weights would not do: on CPU linear layers compute from packed copies, which may be stale.
    """
    return {name: fingerprint_of(model, name, layer) for name, layer in model.named_modules() if has_weight(layer)}


def has_weight(layer: nn.Module) -> bool:
    """Whether a layer has parameters of its own, rather than of the layers within."""
    return any(True for _ in layer.parameters(recurse=False))


def fingerprint_of(model: Any, name: str, layer: Any) -> Fingerprint:
    """The response of one layer, and which of the trainer's weights it is made of."""
    path, _, last = name.rpartition(".")
    fused = model.packed_modules_mapping.get(last, [last])
    parts = [".".join(filter(None, (path, part))) for part in fused]
    weights = [f"{part}.weight" for part in parts]
    if isinstance(layer, LinearBase | ParallelLMHead):
        width = layer.embedding_dim if isinstance(layer, ParallelLMHead) else layer.input_size
        like = next(layer.parameters(recurse=False))
        response = layer.quant_method.apply(layer, torch.from_numpy(probe(width)).to(like)[None])[0]
    elif layer.weight.ndim == 2:
        response = layer.weight.float() @ torch.from_numpy(probe(layer.weight.shape[1])).to(layer.weight.device)
    else:
        response = layer.weight
    # Vocabularies are padded; the trainer's are not.
    pieces = [response.reshape(-1)[: getattr(layer, "org_vocab_size", None)]]
    if getattr(layer, "bias", None) is not None:
        weights += [f"{part}.bias" for part in parts]
        pieces.append(layer.bias.reshape(-1))
    return Fingerprint(tuple(weights), torch.cat([piece.float() for piece in pieces]).cpu().numpy())
