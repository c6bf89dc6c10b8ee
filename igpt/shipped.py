"""The models that ship inside the package, checked against their hashes before use.

`igpt/models/NAME/` is a model folder with a probe, a card, a few labelled example images and a
manifest of the sha256 of each file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

from igpt.errors import UserError
from igpt.modelfolder import ModelParts, write_folder
from igpt.runs import writing_folder
from igpt.train.checkpoint import fault_of, write_manifest

MODELS = Path(__file__).with_name("models")
EXAMPLES = "examples.safetensors"
# float16 keeps eight times as many steps between two powers of two as bfloat16; weights fit it.
STORED = torch.float16


@dataclass(frozen=True, slots=True)
class Examples:
    """Images that ship with a model, at its size, and what is on them."""

    images: np.ndarray
    """(N, S, S, 3) uint8."""
    labels: np.ndarray
    """(N,) int64."""


def names() -> list[str]:
    """The models that ship, in order."""
    return sorted(path.parent.name for path in MODELS.glob("*/manifest.json"))


def is_shipped(folder: Path | None) -> bool:
    """Whether a model lies inside the installed package, where nothing may be written."""
    return folder is not None and folder.parent == MODELS


def folder_of(name: str) -> Path:
    """Where the shipped model of a name lies, after its files were checked.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = MODELS / name
    if fault := fault_of(folder):
        raise UserError(
            f"the shipped model {name} cannot be used: {fault} in {folder}: install igpt again "
            "(pip install --force-reinstall igpt)"
        )
    return folder


def read_examples(name: str, part: str) -> Examples:
    """The `fit` images, for a few labels, or the `judge` images, of which none was trained on.

    Raises:
        UserError: a file of the model is missing or damaged.
    """
    path = folder_of(name) / EXAMPLES
    try:
        tensors = safetensors.numpy.load_file(path)
        return Examples(tensors[f"{part}/images"], tensors[f"{part}/labels"].astype(np.int64))
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} holds no examples ({error}): install igpt again") from error


def write_shipped(
    folder: Path, parts: ModelParts, examples: dict[str, Examples], files: dict[str, bytes]
) -> Path:
    """Write a model as it ships: float16 weights, examples, further files, and the manifest.

    Args:
        folder: to write; it appears whole or not at all.
        parts: of the model.
        examples: by part.
        files: by name, such as the card and the probe.
    """
    with writing_folder(folder) as part:
        write_folder(part, parts)
        path = part / "model.safetensors"
        halved = {name: t.to(STORED) for name, t in safetensors.torch.load_file(path).items()}
        path.write_bytes(safetensors.torch.save(halved, metadata={"format": "pt"}))
        arrays = {}
        for name, held in examples.items():
            arrays[f"{name}/images"] = np.ascontiguousarray(held.images)
            arrays[f"{name}/labels"] = held.labels.astype(np.uint8)
        (part / EXAMPLES).write_bytes(safetensors.numpy.save(arrays))
        for name, data in files.items():
            (part / name).write_bytes(data)
        write_manifest(part)
    return folder
