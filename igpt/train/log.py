"""What a run writes down of itself: metrics.jsonl, pictures, TensorBoard, Weights & Biases.

The run's folder is always written to. Trackers only watch: one that fails is said once and left
out, and training goes on. Weights & Biases writes offline, below the run folder: nothing leaves the
machine until the user calls `wandb sync`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from igpt import compute
from igpt.config import TrackerName
from igpt.errors import UserError
from igpt.files import read_json, write_bytes, write_error
from igpt.images.grid import to_png_bytes
from igpt.progress import say
from igpt.train.folder import read_metrics
from igpt.train.optim import lr_factor_at
from igpt.train.trainer import Trainer


def drop_metrics_after(run: Path, step: int, *, owes_validation: bool = False) -> None:
    """Forget lines that a killed run wrote after the checkpoint it resumes from.

    Args:
        run: its folder.
        step: of the checkpoint.
        owes_validation: the figures of that very step will be written anew.
    """
    kept = [
        line
        for line in read_metrics(run)
        if line["step"] < step
        or (line["step"] == step and ("loss_nats" in line or not owes_validation))
    ]
    write_bytes(run / "metrics.jsonl", "".join(json.dumps(k) + "\n" for k in kept).encode())


def write_metrics(run: Path, line: Mapping[str, Any]) -> None:
    """Append one line, whole."""
    path = run / "metrics.jsonl"
    try:
        with path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise write_error(path, error) from error


class Tracker(Protocol):
    """Takes down lines of figures, and pictures."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take down figures by name; `step` is among them."""

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Take down a (H, W, 3) uint8 picture."""

    def close(self) -> None:
        """Write out what waits."""


class Told:
    """A tracker that hands each line of figures to a function."""

    def __init__(self, function: Callable[[Mapping[str, Any]], object]) -> None:
        self._function = function

    def write(self, line: Mapping[str, Any]) -> None:
        """Hand it on."""
        self._function(line)

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Pictures lie in the run's folder."""

    def close(self) -> None:
        """Nothing waits."""


class Folder:
    """metrics.jsonl and pictures/training/ in the run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, line: Mapping[str, Any]) -> None:
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

    def write(self, line: Mapping[str, Any]) -> None:
        """One scalar a figure."""
        for name, value in plain_figures(line).items():
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

        self._wandb = wandb
        self._run = wandb.init(
            project="igpt",
            name=trainer.folder.name,
            id=_identity(trainer.folder),
            resume="allow",
            dir=trainer.folder,
            config=trainer.config.to_dict(),
            mode="offline",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def write(self, line: Mapping[str, Any]) -> None:
        """One history row."""
        self._run.log(plain_figures(line), step=line["step"])

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """An image."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Write out what waits."""
        self._run.finish()


def plain_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """A line's figures as single numbers; one by layer becomes one a layer, `name/3`."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            found.update({f"{name}/{layer}": float(v) for layer, v in enumerate(value)})
        elif name != "step":
            found[name] = value
    return found


def _identity(folder: Path) -> str:
    """16 hex digits that stay the run's, whatever is changed when it is resumed."""
    facts = read_json(folder / "config.json").get("facts", {})
    if "id" in facts:
        return str(facts["id"])[:16]
    text = json.dumps([folder.name, facts.get("data_digest"), facts.get("command")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Guarded:
    """A tracker that only watches: what fails in it is said once, and it is left out from then."""

    def __init__(self, name: str, trainer: Trainer) -> None:
        self._name = name
        self._own: Tracker | None = None
        self._call(lambda: setattr(self, "_own", _KINDS[name](trainer)))

    def _call(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self._own = None
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"warning: {self._name} is left out from here on: {reason}")

    def write(self, line: Mapping[str, Any]) -> None:
        """Hand the line on."""
        if (own := self._own) is not None:
            self._call(lambda: own.write(line))

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Hand the picture on."""
        if (own := self._own) is not None:
            self._call(lambda: own.show(step, name, picture))

    def close(self) -> None:
        """Close it."""
        if (own := self._own) is not None:
            self._call(own.close)


_KINDS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check_trackers(names: tuple[TrackerName, ...], folder: Path) -> None:
    """Refuse a tracker whose package is not installed, or whose place is taken.

    Raises:
        UserError: names the package, or the file in the way.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"train.track {name} needs the package {name}: pip install 'igpt[tracking]'"
            )
        place = folder / name
        if place.exists() and not place.is_dir():
            raise UserError(
                f"train.track {name} writes to the folder {place}, which is a file: move it away"
            )


@contextmanager
def tracking(trainer: Trainer) -> Iterator[list[Tracker]]:
    """The run's trackers, open for the time of the block; none on ranks after the first."""
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if trainer.world.is_first:
            trackers.append(Folder(trainer.folder))
            for name in trainer.config.train.track:
                trackers.append(_Guarded(name, trainer))
                stack.callback(trackers[-1].close)
        yield trackers


class Meter:
    """Means since the last log line, and what the trackers are told.

    Args:
        trainer: of the run.
        trackers: to tell; none on ranks after the first.
    """

    def __init__(self, trainer: Trainer, trackers: Sequence[Tracker]) -> None:
        self._trainer = trainer
        self._trackers = trackers
        rate = compute.matrix_rate(trainer.device, trainer.dtype)
        self._limit = rate * trainer.world.size
        self._losses: list[float] = []
        self._grad_norm = 0.0
        self._start_s = time.perf_counter()
        self._paused_steps = 0
        # The first step of a process may compile for minutes, which says nothing of the others.
        self._warms_up = trainer.config.train.compile != "off" or trainer.device.type != "cpu"
        if self._warms_up and trainer.config.train.compile != "off":
            say("compiling for the first step, which may take a minute or two")

    def add(self, loss_nats: float, grad_norm: float) -> None:
        """Take in one step."""
        self._losses.append(loss_nats)
        self._grad_norm = grad_norm
        if self._warms_up:
            self._warms_up = False
            self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what was done besides training out of the speed."""
        self._start_s = time.perf_counter()
        self._paused_steps = len(self._losses)

    def log(self) -> str:
        """Write a line of figures; returns its essence for the terminal."""
        trainer, train = self._trainer, self._trainer.config.train
        loss_nats = sum(self._losses) / len(self._losses)
        line = {
            "step": trainer.step,
            "images": trainer.step * train.batch_size,
            "loss_nats": loss_nats,
            "lr": train.lr * lr_factor_at(trainer.step - 1, train, trainer.warmup_steps),
            "grad_norm": self._grad_norm,
            **self._speed(),
            "memory_bytes": compute.peak_memory_bytes(trainer.device),
        }
        self.write(line)
        self._losses.clear()
        self.restart_clock()
        if "left_s" not in line:
            return f"loss {loss_nats:.4f}"
        return (
            f"loss {loss_nats:.4f}  {line['images_per_s']:.0f} images/s  "
            f"{line['tokens_per_s']:,.0f} tokens/s  MFU {line['mfu']:.0%}  "
            f"{countdown(line['left_s'])} left"
        )

    def _speed(self) -> dict[str, float]:
        """Of the steps since the clock was started; nothing where there was none."""
        trainer, train = self._trainer, self._trainer.config.train
        timed_steps = len(self._losses) - self._paused_steps
        if not timed_steps:
            return {}
        images_per_s = timed_steps * train.batch_size / (time.perf_counter() - self._start_s)
        return {
            "images_per_s": images_per_s,
            "tokens_per_s": images_per_s * trainer.tokens_per_image,
            "mfu": images_per_s * trainer.flops_per_image / self._limit,
            "left_s": (train.total_steps - trainer.step) * train.batch_size / images_per_s,
        }

    def write(self, line: Mapping[str, Any]) -> None:
        """Tell the trackers."""
        for tracker in self._trackers:
            tracker.write(line)

    def write_figures(self, figures: Mapping[str, Any]) -> None:
        """Tell the trackers what was found at this step, pictures apart from numbers."""
        trainer, line = self._trainer, {}
        for name, value in figures.items():
            if isinstance(value, np.ndarray):
                for tracker in self._trackers:
                    tracker.show(trainer.step, name, value)
            else:
                line[name] = value
        if line:
            images = trainer.step * trainer.config.train.batch_size
            self.write({"step": trainer.step, "images": images, **line})
        self.restart_clock()


def countdown(span_s: float) -> str:
    """A span of time as a person says it: `40 s`, `12 min`, `3 h 05 min`, `2 d 04 h`."""
    minutes = round(span_s / 60)
    if span_s < 100:
        return f"{span_s:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
