"""What every run leaves that was carried to its end."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from igpt.loading import load
from igpt.pixelmodel import PixelModel
from igpt.train.folder import read_metrics


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The folder of a run that was carried to its end, and what is in it."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; of a fine-tuning those of its first seed, at one rate."""
        return read_metrics(self.folder)

    @cached_property
    def model(self) -> PixelModel:
        """The model of the last step; the classifying one of a fine-tuning's first seed."""
        return load(self.folder / "model")
