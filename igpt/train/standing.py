"""How far a run has come, which checkpoint it goes on from, and the palette it was started with."""

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import igpt
from igpt import system
from igpt.config import RunConfig
from igpt.errors import UserError
from igpt.files import read_json
from igpt.tokens.palette import Palette
from igpt.tokens.tokenizer import RawTokens, Tokenizer
from igpt.train import checkpoint
from igpt.train.folder import exported_step, read_metrics


def versions() -> dict[str, str]:
    """Software and machine, so that a figure can be traced."""
    return {
        "igpt": igpt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {system.cores()} cores",
    }


def tokenizer_of(folder: Path, config: RunConfig, facts: dict[str, Any]) -> Tokenizer:
    """The tokeniser that a run was started with.

    Raises:
        UserError: the palette is missing, or not the one that the run was started with.
    """
    if config.data.tokens == "raw":
        return RawTokens()
    path = folder / "palette.npy"
    palette = Palette.load(path)
    started_with = facts.get("palette_digest", palette.digest)
    if palette.digest != started_with:
        raise UserError(
            f"{path} is not the palette that the run was started with (digest "
            f"{palette.digest[:12]}, recorded {started_with[:12]}): put the right one back"
        )
    return palette


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a run has come."""

    step: int
    """Updates behind what is saved."""
    checkpoint: Path | None
    """To go on from; none: from the start, or the run is done and its checkpoints are gone."""
    damaged: list[str] = field(default_factory=list)
    """A line for each newer checkpoint that cannot be used."""
    state: dict[str, Any] = field(default_factory=dict)
    """Of the checkpoint."""


def standing(folder: Path, config: RunConfig) -> Standing:
    """How far the run in a folder has come; every checkpoint that is looked at is verified.

    Raises:
        UserError: there are checkpoints and none is intact, or there were some and they are gone.
    """
    path, damaged = checkpoint.newest(folder)
    if path is not None:
        return standing_at(path, damaged)
    done = exported_step(folder)
    if done >= config.train.total_steps:
        return Standing(step=done, checkpoint=None, damaged=damaged)
    if damaged:
        raise UserError(
            f"{folder} has {len(damaged)} checkpoints and none is intact ({damaged[0]}): "
            "restore one of them, or start another run folder"
        )
    logged = max((line["step"] for line in read_metrics(folder)), default=0)
    # A checkpoint is written while training goes on, at the latest until the next one is due.
    if logged > 2 * config.train.checkpoint_every or done > 0:
        raise UserError(
            f"{folder} was trained for {max(logged, done)} steps, but its checkpoints are gone: "
            "restore one of them, or start another run folder"
        )
    return Standing(step=0, checkpoint=None)


def standing_at(path: Path, damaged: list[str]) -> Standing:
    """How far a run has come with an intact checkpoint."""
    step, state = checkpoint.step_of(path), read_json(path / "state.json")
    return Standing(step=step, checkpoint=path, damaged=damaged, state=state)
