"""The images that a trained model is looked at with: at its size, split as it was trained."""

from pathlib import Path

from igpt.errors import UserError
from igpt.images.packed.format import is_packed
from igpt.images.packed.read import PackedSet
from igpt.images.prepare import open_data
from igpt.pixelmodel import PixelModel


def open_for(
    model: PixelModel, data: str, *, image_size: int | None = None, max_images: int | None = None
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
    return packed.at_most(max_images)


def check_max_images(max_images: int | None) -> None:
    """Refuse a number of images that leaves nothing to look at.

    Raises:
        UserError: it is below 1.
    """
    if max_images is not None and max_images < 1:
        raise UserError(f"--max-images is {max_images}: it must be at least 1")
