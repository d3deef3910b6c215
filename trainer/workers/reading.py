"""Reads torch's checkpoints without running code that somebody may have put into them.

A checkpoint's index is a pickle, and so are the few values of its optimiser that are no tensors.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from trainer.checkpoint import CheckpointError

INDEX = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
    "collections": ("OrderedDict",),
}
"""What an index is made of, by module."""


class IndexUnpickler(pickle.Unpickler):
    """Makes the objects of an index and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or number format of this name.

        Raises:
            CheckpointError: no index needs it.
        """
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in INDEX.get(module, ()):
            raise CheckpointError(f"the checkpoint's index asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


class Reader(FileSystemReader):
    """Reads shards and their index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index."""
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            metadata: Metadata = IndexUnpickler(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class Planner(DefaultLoadPlanner):
    """Loads values that are no tensors as plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Takes one such value."""
        plain = torch.load(value, weights_only=True)
        super().load_bytes(read_item, packed(plain))


def packed(value: Any) -> io.BytesIO:
    """A value as torch saves it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file
