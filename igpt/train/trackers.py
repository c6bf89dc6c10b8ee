"""Where a run's figures and pictures go: always its folder; TensorBoard and W&B when asked for.

Weights & Biases writes offline, below the run folder: nothing leaves the machine until the user
calls `wandb sync`.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from igpt.config import TrackerName
from igpt.errors import UserError
from igpt.files import write_bytes
from igpt.images.grid import to_png_bytes
from igpt.train.tracking import write_metrics
from igpt.train.trainer import Trainer


class Tracker(Protocol):
    """Takes down lines of figures, and pictures."""

    def write(self, line: dict[str, Any]) -> None:
        """Take down figures by name; `step` is among them."""

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Take down a (H, W, 3) uint8 picture."""

    def close(self) -> None:
        """Write out what waits."""


class Folder:
    """metrics.jsonl and pictures/training/ in the run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        write_metrics(self._folder, line)

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write a PNG named by what it is and its step."""
        path = self._folder / "pictures" / "training" / f"{name}-{step:07d}.png"
        write_bytes(path, to_png_bytes(picture))

    def close(self) -> None:
        """Nothing waits."""


class TensorBoard:
    """Event files in tensorboard/ of the run folder."""

    def __init__(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = str(trainer.folder / "tensorboard")
        # What a killed run wrote after the checkpoint that it resumes from is hidden.
        self._writer = SummaryWriter(place, purge_step=trainer.step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """One scalar a figure."""
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, line["step"])

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """An image."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write out what waits."""
        self._writer.close()


class WeightsAndBiases:
    """An offline run in wandb/ of the run folder; a resumed run has the same id."""

    def __init__(self, trainer: Trainer) -> None:
        import wandb

        facts = (trainer.folder / "config.json").read_bytes()
        self._wandb = wandb
        self._run = wandb.init(
            project="igpt",
            name=trainer.folder.name,
            id=hashlib.sha256(str(trainer.folder.resolve()).encode() + facts).hexdigest()[:16],
            resume="allow",
            dir=trainer.folder,
            config=trainer.config.to_dict(),
            mode="offline",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def write(self, line: dict[str, Any]) -> None:
        """One history row."""
        self._run.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """An image."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Write out what waits."""
        self._run.finish()


_KINDS: dict[TrackerName, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_trackers(names: tuple[TrackerName, ...]) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        UserError: names the package.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"train.track {name} needs the package {name}: pip install 'igpt[tracking]'"
            )


@contextmanager
def tracking(trainer: Trainer) -> Iterator[list[Tracker]]:
    """The run's trackers, open for the time of the block; none on ranks after the first."""
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if trainer.world.is_first:
            trackers.append(Folder(trainer.folder))
            for name in trainer.config.train.track:
                trackers.append(_KINDS[name](trainer))
                stack.callback(trackers[-1].close)
        yield trackers
