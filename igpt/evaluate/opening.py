"""The images that a trained model is looked at with: at its size, split as it was trained."""

from pathlib import Path

from igpt.errors import UserError
from igpt.images.packed.format import is_packed
from igpt.images.packed.read import PackedSet
from igpt.images.packed.seen import seen_of
from igpt.images.prepare import open_data
from igpt.images.splits import SPLITS
from igpt.progress import say
from igpt.trained import Trained


def open_for(
    model: Trained, data: str, *, image_size: int | None = None, max_images: int | None = None
) -> PackedSet:
    """DATA at the model's size or another one, split as it was for training.

    Raises:
        UserError: there is none, or it is packed at a smaller size.
    """
    check_max_images(max_images)
    wanted = image_size or model.image_size
    if is_packed(Path(data)) and (held := PackedSet.open(data).image_size) < wanted:
        raise UserError(
            f"{data} is packed at {held} pixels, {wanted} are needed here: "
            f"prepare it again with --image-size {wanted}"
        )
    trained = model.facts.trained
    packed = open_data(
        data,
        image_size=wanted,
        seed=trained.get("seed", 0),
        valid_fraction=trained.get("valid_fraction"),
    )
    packed = packed.at_most(max_images)
    _say_of_seen(model, packed, data)
    return packed


def _say_of_seen(model: Trained, packed: PackedSet, data: str) -> None:
    """Say which images are judged that the model was trained on: since then the set has changed."""
    then = model.facts.trained.get("data_digest")
    if then in (None, packed.digest):
        return
    if model.folder is None or model.folder.name != "model":
        return  # no run is beside it
    for split in SPLITS[1:]:
        if seen := seen_of(packed, split, model.folder.parent):
            say(
                f"warning: {seen} of {packed.n(split)} {split} images of {data} are among those "
                "that this model was trained on (files were added, removed or moved since, or it "
                "is another split): figures on them are too good; judge it on images of their own, "
                "or on the set that it was trained on, packed by igpt prepare"
            )


def open_labelled(
    model: Trained, data: str, *, image_size: int | None = None, max_images: int | None = None
) -> "PackedSet":
    """`open_for`, of images with a label alone, for what fits or judges a classifier.

    How many have none is said, and which classes are judged that training lacks.
    """
    packed = open_for(model, data, image_size=image_size, max_images=max_images)
    if packed.classes is None:
        return packed
    held = packed.labelled()
    for split in SPLITS:
        if (n_without := packed.n(split) - held.n(split)) and held.n(split):
            say(f"{n_without} of {packed.n(split)} {split} images have no label and are left out")
    seen = set(held.classes_of("train"))
    for split in SPLITS[1:]:
        if unseen := [name for name in held.classes_of(split) if name not in seen]:
            some = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            say(
                f"warning: {len(unseen)} classes of {split} that training lacks ({some}): "
                "their images cannot be told and count as wrong; are the names spelled alike?"
            )
    return held


def check_max_images(max_images: int | None) -> None:
    """Refuse a number of images that leaves nothing to look at.

    Raises:
        UserError: it is below 1.
    """
    if max_images is not None and max_images < 1:
        raise UserError(f"--max-images is {max_images}: it must be at least 1")
