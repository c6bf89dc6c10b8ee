"""Models by name, and of runs that ended: the only place that knows every form one can have."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from igpt import compute, shipped
from igpt.errors import UserError
from igpt.files import LIST, read_json, writing_folder
from igpt.formats.folder import KIND, check_may_replace, read_folder, read_newest
from igpt.formats.hub import HUB, fetch, parts_of
from igpt.formats.openai import find_checkpoint, read_openai
from igpt.formats.transformers import read_transformers
from igpt.pixelmodel import PixelModel
from igpt.system import at_home
from igpt.train.folder import read_metrics
from igpt.trained import Trained


def load(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    palette: str | None = None,
) -> PixelModel:
    """A model by name: a shipped one, a run, a model folder, a foreign checkpoint or a Hub id.

    Args:
        source: the name of a model that ships (`cifar10-32`, `cifar10-small`); a path to a run, a
            model folder, a transformers folder or a TensorFlow checkpoint of the authors' (folder,
            prefix or any of its files); or `hf:owner/name[@revision]` on the Hub.
        device: where its weights go; none: the first accelerator, else the CPU.
        palette: the colours of a TensorFlow checkpoint; none: the kmeans_centers.npy beside it.

    Raises:
        UserError: there is nothing of the kind, or a file in it is missing or damaged.
    """
    name = str(at_home(source))
    prefix = find_checkpoint(name)
    found = _read_folder(_folder_of(name)) if prefix is None else read_openai(prefix, palette)
    return _placed(found, device)


def _placed(found: Trained, device: str | torch.device | None) -> PixelModel:
    found.network.to(compute.default_device() if device is None else compute.device_of(device))
    return PixelModel(
        found.network,
        found.tokenizer,
        found.facts,
        folder=found.folder,
        classifier=found.classifier,
        seen=found.seen,
    )


def _folder_of(name: str) -> Path:
    """Where the model of a name lies; one on the Hub is fetched."""
    if name.startswith(HUB):
        return fetch(name)
    if (path := Path(name)).is_dir():
        return path
    if (known := shipped.names()) and name in known:
        return shipped.folder_of(name)
    ships = ", ".join(known) or "none in this installation"
    raise UserError(
        f"{name} is neither a run nor a model folder: check the path, take a "
        f"model that ships ({ships}), or one on the Hub by {HUB}owner/name"
    )


def _read_folder(path: Path) -> Trained:
    document = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no model (config.json is missing): check the path")
    if "finetune" in document:  # its checkpoints hold a class head, too
        if not (path / "model" / "config.json").is_file():
            raise UserError(f"{path} is a fine-tuning that is not finished: add --resume to it")
        return _read_folder(path / "model")
    if "facts" in document:
        return read_newest(path)
    if _is_from_transformers(document):
        return read_transformers(path, document)
    return read_folder(path, document)


def _is_from_transformers(document: dict[str, Any]) -> bool:
    """Whether transformers wrote a folder last; our own facts may have come through it."""
    has_facts = "schema_version" in (document.get("igpt") or {})
    ours = has_facts and "transformers_version" not in document
    return document.get("model_type") == "imagegpt" and not ours


def load_run(
    folder: Path, *, step: int | None = None, device: str | torch.device | None = None
) -> PixelModel:
    """The model of a run's newest intact checkpoint, or of the one after `step` updates."""
    return _placed(read_newest(folder, step=step), device)


def export_run(folder: Path) -> Path:
    """Write the newest checkpoint of a run as its `model/` folder."""
    return load_run(folder).save(folder / "model")


def pull(hub_id: str, out: Path, *, revision: str | None = None) -> Path:
    """Copy a model from the Hub into a folder of its own, after it was read as a whole.

    Args:
        hub_id: `owner/name`, after `hf:` or not, with `@revision` or not.
        out: folder to write; it appears whole or not at all.
        revision: branch, tag or commit; none: the newest.

    Raises:
        UserError: there is no such model, it cannot be read, or `out` holds something else.
    """
    parts_of(hub_id)  # a name that is none is said first
    check_may_replace(out)
    fetched = fetch(hub_id, revision=revision)
    load(fetched)
    with writing_folder(out, kind=KIND, keep_others=True) as part:
        for file in sorted(fetched.iterdir()):
            if file.is_file() and file.name != LIST:
                shutil.copyfile(file, part / file.name)  # the Hub's cache holds links
    return out


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
