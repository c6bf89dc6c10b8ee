"""Checkpoints written by all ranks together, each its own part of every tensor.

The folder is that of `igpt.train.checkpoint`, with one safetensors file a rank in place of two for
all: PyTorch's distributed checkpointing with its safetensors storage, so nothing is pickled. Either
kind of folder is read at any number of ranks. All ranks must see the same file system.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor

from igpt.errors import UserError
from igpt.files import write_error, writing_folder
from igpt.manifest import KIND, write_manifest
from igpt.train.distributed import World


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], world: World) -> None:
    """Write a checkpoint folder with all ranks; it appears whole or not at all.

    Args:
        path: the checkpoint's folder.
        tensors: weights, and the optimiser's state under names with a slash; the same names on
            every rank.
        state: of state.json.
        world: this process's place.

    Raises:
        UserError: a rank cannot write its part; earlier checkpoints are untouched.
    """
    if not world.is_first:
        _write_part(_name_from_first(None), path, tensors)
        world.from_first(0)
        return
    with writing_folder(path, kind=KIND) as part:
        _write_part(_name_from_first(part), path, tensors)
        (part / "state.json").write_text(json.dumps(dict(state), indent=2) + "\n")
        write_manifest(part)
    world.from_first(0)


def _name_from_first(part: Path | None) -> Path:
    names = [str(part)]
    dist.broadcast_object_list(names, 0)
    return Path(names[0])


def _write_part(part: Path, path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Single numbers (a moment's step count) as vectors: the storage slices every tensor.
    plain = {name: t.detach().reshape(-1) if t.ndim == 0 else t for name, t in tensors.items()}
    writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
    try:
        save_parts(plain, storage_writer=writer)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, OSError):
            raise write_error(Path(f"{path} (rank {rank})"), cause) from error
        raise UserError(f"cannot write {path}: rank {rank}: {cause}") from error


def read(path: Path, like: Mapping[str, Tensor], *, with_optimizer: bool) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder of either kind, each cut up like its parameter.

    Args:
        path: an intact checkpoint's folder.
        like: the parameters by name, as this rank holds them; none: every tensor whole.
        with_optimizer: whether to read more than the weights.
    """
    reader = HuggingFaceStorageReader(str(path))
    found: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        parameter = like.get(name.partition("/")[0])
        if "/" in name and not with_optimizer:
            continue
        if isinstance(parameter, DTensor) and parameter.shape == entry.size:
            found[name] = torch.empty_like(parameter)
        else:
            found[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        # It warns that a single process reads, which is meant where tensors are wanted whole.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(found, storage_reader=reader, no_dist=not like)
    return {name: _as_number(name, t) for name, t in found.items()}


def _as_number(name: str, tensor: Tensor) -> Tensor:
    return tensor.reshape(()) if name.endswith("/step") else tensor
