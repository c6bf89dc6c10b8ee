"""The models that ship inside the package, checked against their hashes before use.

`igpt/models/NAME/` is a model folder with a probe, a card and a manifest of the sha256 of each
file.
"""

from pathlib import Path

import safetensors.torch
import torch

from igpt.errors import UserError
from igpt.files import writing_folder
from igpt.formats.folder import write_folder
from igpt.manifest import fault_of, write_manifest
from igpt.trained import Trained

MODELS = Path(__file__).with_name("models")
# float16 keeps eight times as many steps between two powers of two as bfloat16; weights fit it.
STORED = torch.float16


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


def write_shipped(folder: Path, parts: Trained, files: dict[str, bytes]) -> None:
    """Write a model as it ships: float16 weights, further files, and the manifest.

    Args:
        folder: to write; it appears whole or not at all.
        parts: of the model.
        files: by name, such as the card and the probe.
    """
    with writing_folder(folder) as part:
        write_folder(part, parts)
        path = part / "model.safetensors"
        halved = {name: t.to(STORED) for name, t in safetensors.torch.load_file(path).items()}
        path.write_bytes(safetensors.torch.save(halved, metadata={"format": "pt"}))
        for name, data in files.items():
            (part / name).write_bytes(data)
        write_manifest(part)
