"""Named tensors: on disk as safetensors, and each accounted for where they go into a network."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from igpt.errors import UserError

# What safetensors calls the types that a run may hold.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file tensor by tensor, without a second copy of it all; its sha256.

    The system's own `open` is used, as safetensors hides the reason of a failed write.
    """
    # The widest types first, so that each tensor lies at a multiple of its own.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for tensor in tensors.values():
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            data = plain.view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Account for every one of the named weights.

    Raises:
        UserError: a tensor is missing, extra or of another shape, by name.
    """
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    check_tensors(own, tensors, where=where)


def check_tensors(
    shapes: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor], *, where: str
) -> None:
    """Account for every tensor, of weights or of an optimiser's state.

    Raises:
        UserError: a tensor is missing, extra or of another shape, by name.
    """
    for name in shapes:
        if name not in tensors:
            raise UserError(f"{where}: tensor {name} is missing: use a matching file or config")
    for name, value in tensors.items():
        if name not in shapes:
            raise UserError(f"{where}: tensor {name} is not part of this network")
        if tuple(value.shape) != tuple(shapes[name]):
            raise UserError(
                f"{where}: tensor {name} is {tuple(value.shape)}, "
                f"this network has {tuple(shapes[name])}: check the model settings"
            )


def check_finite(tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse weights that are no numbers, by name.

    Raises:
        UserError: one holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        # The sum is finite where all numbers are: in float64 none of ours overflows.
        if not tensor.sum(dtype=torch.float64).isfinite():
            raise UserError(f"{where}: tensor {name} holds what is no number: use an intact one")


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy named weights into a network, every one accounted for.

    Raises:
        UserError: a tensor is missing, extra or of another shape, by name.
    """
    check_weights(network, tensors, where=where)
    check_finite(tensors, where=where)
    network.load_state_dict(dict(tensors))
