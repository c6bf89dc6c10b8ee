"""Checkpoints that are whole or absent: safetensors and JSON under a hashed manifest.

A checkpoint is a folder `step-0001000/` with `model.safetensors`, `optimizer.safetensors`,
`state.json` and `manifest.json`, which holds the sha256 of each and of itself. The folder is filled
beside its place and renamed into it, so a kill at any moment leaves the earlier ones as they were.
`igpt.train.sharded` writes networks that are cut up over ranks, as one safetensors file a rank.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from igpt.errors import UserError
from igpt.files import read_json, settle_below, sha256_of, writing_folder

SCHEMA_VERSION = 1
KIND = ("*.safetensors", "*.json")
_STEP_FOLDER = re.compile(r"step-(\d{7,})")


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

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    with writing_folder(path, kind=KIND) as part:
        # The system's own `open` is used, as safetensors hides the reason of a failed write.
        (part / "model.safetensors").write_bytes(safetensors.torch.save(_plain(model)))
        (part / "optimizer.safetensors").write_bytes(safetensors.torch.save(_plain(optimizer)))
        (part / "state.json").write_text(json.dumps(dict(state), indent=2) + "\n")
        write_manifest(part)


def write_manifest(folder: Path) -> None:
    """Close a checkpoint folder with the hashes of all that it holds."""
    digests = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_bytes(_manifest_bytes(digests))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _manifest_bytes(digests: Mapping[str, str]) -> bytes:
    content = {"schema_version": SCHEMA_VERSION, "sha256": dict(digests)}
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "own_sha256": own}, indent=2) + "\n").encode()


def fault_of(path: Path) -> str | None:
    """Why the checkpoint at `path` may not be used; none where it is intact."""
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return "manifest.json is missing"
    try:
        digests = json.loads(manifest.read_bytes())["sha256"]
        intact = manifest.read_bytes() == _manifest_bytes(digests)
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        return "manifest.json is damaged"
    for name in sorted(digests):
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_of(path / name) != digests[name]:
            return f"{name} is damaged (its sha256 differs from the manifest's)"
    return None


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`, after its hashes were checked.

    Raises:
        UserError: a file is missing or damaged.
    """
    if fault := fault_of(path):
        raise UserError(f"checkpoint {path} cannot be used: {fault}")
    state = read_json(path / "state.json")
    try:
        model, optimizer = _read_whole(path)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} cannot be used: {error}") from error
    return Checkpoint(path, int(state["step"]), model, optimizer, state)


def _read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and optimiser state, put together where ranks wrote a part each."""
    if (path / "model.safetensors").is_file():
        return (
            safetensors.torch.load_file(path / "model.safetensors"),
            safetensors.torch.load_file(path / "optimizer.safetensors"),
        )
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


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint, and a line for each newer one that was passed over."""
    settle_below(run / "checkpoints", kind=KIND)
    rejected: list[str] = []
    for _, path in all_steps(run):
        fault = fault_of(path)
        if fault is None:
            return path, rejected
        rejected.append(f"passed over {path}: {fault}")
    return None, rejected


def prune(run: Path, *, keep_last: int, keep_at: tuple[int, ...]) -> None:
    """Delete old checkpoints: all but the newest `keep_last` and those at steps `keep_at`."""
    for step, path in all_steps(run)[keep_last:]:
        if step not in keep_at:
            shutil.rmtree(path, ignore_errors=True)


def step_of(path: Path) -> int:
    """The updates made before the checkpoint at `path`, as its name says."""
    return int(path.name.removeprefix("step-"))


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


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy named weights into a network, every one accounted for.

    Raises:
        UserError: a tensor is missing, extra or of another shape, by name.
    """
    check_weights(network, tensors, where=where)
    network.load_state_dict(dict(tensors))
