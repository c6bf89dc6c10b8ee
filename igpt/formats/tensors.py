"""The weights of a transformers folder: one file or many, safetensors or the older `.bin`."""

import pickle
import warnings
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from igpt.errors import UserError
from igpt.files import read_json, refuse_pointer

NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Every tensor of a folder, and the file that was read or that lists the files.

    Raises:
        UserError: there is no weight file, or one is missing, damaged or holds anything else.
    """
    for name in NAMES:
        path = folder / name
        if path.is_file():
            return (_read_sharded(path) if path.suffix == ".json" else _read(path)), path
    raise UserError(f"{folder} holds no weights: it needs one of {', '.join(NAMES)}")


def warn_of_zero_head(head: Tensor, *, where: str) -> None:
    """Say that a model cannot predict yet: (K, D) zeros are the output head's initial state."""
    if not head.any():
        warnings.warn(
            f"{where}: the output head is all zero, so it was never trained: samples, completions "
            "and likelihoods will mean nothing",
            stacklevel=2,
        )


def _read_sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index lists, each from the file that it names."""
    document = read_json(index)
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{index} has no weight_map of tensor names to files: restore it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which lies outside its folder: restore it")
        shard = _read(index.parent / name)
        listed = {tensor for tensor, place in places.items() if place == name}
        if odd := sorted(listed ^ set(shard)):
            raise UserError(f"{index.parent / name} and {index.name} disagree on {odd[0]}")
        tensors |= shard
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing: restore the model folder")
    refuse_pointer(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): restore the model folder") from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    """A pickle, of which nothing but tensors is ever built."""
    _check_zip(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds something else than tensors, so it is not read") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: restore the model folder") from error
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise UserError(f"{path} holds something else than named tensors, so it is not read")
    for name, tensor in held.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: tensor {name} is larger than its numbers: restore the file")
    return dict(held)


def _check_zip(path: Path) -> None:
    """Refuse what unpacks to more than the file: torch itself never compresses.

    Raises:
        UserError: it is no zip file, or one with compressed parts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise UserError(f"{path} is compressed, as torch writes no file: restore it")
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is damaged, or of torch before 1.6: restore it, or save it as safetensors"
        ) from error
