"""What every look at a trained model begins and ends with: the model, its images, the record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igpt import compute
from igpt.config import whole
from igpt.errors import UserError
from igpt.files import kept_if_possible, plain
from igpt.images.packed.format import is_packed
from igpt.images.packed.read import PackedSet
from igpt.images.packed.seen import line_of_seen, n_seen
from igpt.images.prepare import open_data
from igpt.images.splits import SPLITS, Split
from igpt.loading import load
from igpt.pixelmodel import PixelModel
from igpt.progress import say
from igpt.report.record import write_record
from igpt.system import at_home
from igpt.trained import Trained


def opened(model: str | Path | PixelModel, *, device: str | None = None) -> tuple[str, PixelModel]:
    """A model, and what to call it.

    Args:
        model: what `igpt.load` takes, or a model in memory.
        device: where the weights of one that is loaded go; none: the first accelerator.
    """
    if isinstance(model, PixelModel):
        return str(model.folder or "a model in memory"), model
    return str(at_home(model)), load(model, device=device)


def open_for(
    model: Trained, data: str, *, image_size: int | None = None, max_images: int | None = None
) -> PackedSet:
    """DATA at the model's size or another one, split as it was for training.

    Images of its valid and test that the model was trained on, as files came or went since, are
    counted in a warning.

    Raises:
        UserError: there is none, or it is packed at a smaller size.
    """
    max_images = check_max_images(max_images)
    wanted = image_size or model.image_size
    if is_packed(at_home(data)) and (held := PackedSet.open(data).image_size) < wanted:
        raise UserError(
            f"{data} is packed at {held} pixels, {wanted} are needed here: "
            f"prepare it again with --image-size {wanted}"
        )
    trained = model.facts.trained

    def opened(side: int) -> PackedSet:
        fraction = trained.get("valid_fraction")
        return open_data(
            data, image_size=side, seed=trained.get("seed", 0), valid_fraction=fraction
        )

    packed = opened(wanted)
    if model.seen is not None:
        same = packed if wanted == model.image_size else opened(model.image_size)
        if said := line_of_seen(counts_of_seen(model, same)):
            say(
                f"warning: the model was trained on {said} of {data}, whose files are not those of "
                "its training any more: figures on them are too good"
            )
    return packed.at_most(max_images)


def counts_of_seen(model: Trained, data: PackedSet) -> list[tuple[Split, int, int]]:
    """Of valid and test: how many images the model was trained on, and of how many.

    Sets that it was trained on, unchanged, have none; copies of one picture in them are their own.
    """
    seen, splits, trained = model.seen, SPLITS[1:], model.facts.trained
    known = [entry["digest"] for entry in trained.get("mixed", [])]
    known += [trained.get("data_digest"), trained.get("finetuned_digest")]
    if seen is None or data.digest in known:
        return []
    found = ((split, n_seen(data.images(split), seen), data.n(split)) for split in splits)
    return [(split, n, total) for split, n, total in found if n]


def open_labelled(
    model: Trained, data: str, *, image_size: int | None = None, max_images: int | None = None
) -> PackedSet:
    """`open_for`, of images with a label alone, for what fits or judges a classifier.

    How many have none is said.
    """
    packed = open_for(model, data, image_size=image_size, max_images=max_images)
    if packed.classes is None:
        return packed
    held = packed.labelled()
    for split in SPLITS:
        if (n_without := packed.n(split) - held.n(split)) and held.n(split):
            say(f"{n_without} of {packed.n(split)} {split} images have no label and are left out")
    return held


def check_max_images(max_images: int | None) -> int | None:
    """A number of images, or none for all; refuses one that leaves nothing to look at.

    Raises:
        UserError: it is below 1, or no whole number.
    """
    if max_images is None:
        return None
    if (n := whole(max_images, "--max-images")) < 1:
        raise UserError(f"--max-images is {n}: it must be at least 1")
    return n


def recorded(
    place: str,
    model: PixelModel,
    name: str,
    figures: Mapping[str, Any],
    *,
    data: PackedSet,
    split: Split = "test",
    seed: int | None = None,
    precision: compute.Precision = "auto",
) -> dict[str, Any]:
    """The figures with what they are about, as `--json` prints them; a run keeps them.

    What cannot be recorded is shown all the same.

    Args:
        place: what the model was called.
        model: what it is.
        name: of the record in `evaluations/`.
        figures: plain values for JSON.
        data: what was looked at.
        split: that the figures are from.
        seed: of the draws, if any.
        precision: as it was asked for; the type that ran is recorded.
    """
    ran = compute.name_of(compute.choose_dtype(precision, model.device))
    figures = {**figures, "precision": ran, "device": model.device.type}
    if run := record_place(Path(place)):
        digest, source = model.digest(), data.source
        with kept_if_possible("the figures are"):
            write_record(run, name, figures, model=digest, data=source, split=split, seed=seed)
    drawn = {} if seed is None else {"seed": seed}
    named = {"model": place, "data": data.source, "split": split, **drawn}
    return {**named, **plain(figures)}


def record_place(model: Path) -> Path | None:
    """The run folder that a model's name is, where its figures are kept; else none."""
    return model if (model / "metrics.jsonl").is_file() else None
