"""Checkpoints that are whole or absent: safetensors and JSON under a hashed manifest.

A checkpoint is a folder `step-0001000/` with `model.safetensors`, `optimizer.safetensors`,
`state.json` and `manifest.json`, which holds the sha256 of each and of itself. The folder is filled
beside its place and renamed into it, so a kill at any moment leaves the earlier ones as they were.
`igpt.train.sharded` writes networks that are cut up over ranks, as one safetensors file a rank.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from igpt.errors import UserError
from igpt.files import read_json, settle_below, sha256_of, writing_folder
from igpt.manifest import KIND, fault_of, write_manifest
from igpt.train.tensors import write_tensors

_STEP_FOLDER = re.compile(r"step-(\d{7,})")
_MAIN_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one checkpoint holds."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates stands."""
    return run / "checkpoints" / f"step-{step:07d}"


def save(
    path: Path,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder; it appears whole or not at all.

    Args:
        path: of the folder.
        model: weights by name.
        optimizer: its state by name.
        state: of state.json.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    parts = {"model": model, "optimizer": optimizer}
    with writing_folder(path, kind=KIND) as part:
        digests = {}
        for name, tensors in parts.items():
            file = f"{name}.safetensors"
            digests[file] = write_tensors(part / file, tensors)
        (part / "state.json").write_bytes((json.dumps(dict(state), indent=2) + "\n").encode())
        digests["state.json"] = sha256_of(part / "state.json")
        write_manifest(part, digests)


def load(path: Path, *, checked: bool = False) -> Checkpoint:
    """The checkpoint at `path`.

    Args:
        path: of the folder.
        checked: its hashes were compared just now.

    Raises:
        UserError: a file is missing or damaged.
    """
    fault = None if checked else fault_of(path)
    if fault:
        raise UserError(f"checkpoint {path} cannot be used: {fault}")
    state = read_json(path / "state.json")
    try:
        model, optimizer = _read_whole(path)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} cannot be used: {error}") from error
    return Checkpoint(path, int(state["step"]), model, optimizer, state)


def _is_of_one_rank(path: Path) -> bool:
    return all((path / name).is_file() for name in _MAIN_FILES)


def _read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and optimiser state, put together where ranks wrote a part each."""
    if _is_of_one_rank(path):
        model, optimizer = (safetensors.torch.load_file(path / name) for name in _MAIN_FILES)
        return model, optimizer
    from igpt.train import sharded  # rarely needed, and slow to import

    tensors = sharded.read(path, {}, with_optimizer=True)
    weights = {name: tensor for name, tensor in tensors.items() if "/" not in name}
    return weights, {name: tensor for name, tensor in tensors.items() if "/" in name}


def all_steps(run: Path) -> list[tuple[int, Path]]:
    """Every checkpoint folder of a run, newest first, intact or not."""
    found = [
        (int(match[1]), path)
        for path in (run / "checkpoints").glob("step-*")
        if (match := _STEP_FOLDER.fullmatch(path.name))
    ]
    return sorted(found, reverse=True)


def newest(run: Path, *, before: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint, and a line for each newer one that was passed over.

    Args:
        run: its folder.
        before: look at steps up to this one only.
    """
    settle_below(run / "checkpoints", kind=KIND)
    rejected: list[str] = []
    for step, path in all_steps(run):
        if before is not None and step > before:
            continue
        fault = fault_of(path)
        if fault is None:
            return path, rejected
        rejected.append(f"passed over {path}: {fault}")
    return None, rejected


def step_of(path: Path) -> int:
    """The updates made before the checkpoint at `path`, as its name says."""
    return int(path.name.removeprefix("step-"))
