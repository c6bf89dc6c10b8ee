"""What commands on a trained model share: its data at its size, and the record of its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.errors import UserError

if TYPE_CHECKING:
    from igpt.compute import Precision
    from igpt.images.packed.read import PackedSet
    from igpt.images.splits import Split
    from igpt.pixelmodel import PixelModel


def open_for(
    model: "PixelModel", data: str, *, image_size: int | None = None, max_images: int | None = None
) -> "PackedSet":
    """DATA at the model's size or another one, split as it was for training.

    Raises:
        UserError: there is none, or it is packed at a smaller size.
    """
    from igpt.images.packed.format import is_packed
    from igpt.images.packed.read import PackedSet
    from igpt.images.prepare import open_data

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


def recorded(
    place: str,
    model: "PixelModel",
    name: str,
    figures: Mapping[str, Any],
    *,
    data: "PackedSet",
    split: "Split" = "test",
    seed: int | None = None,
    precision: "Precision" = "auto",
) -> dict[str, Any]:
    """The figures with what they are about, as `--json` prints them; a run keeps them.

    Args:
        place: the MODEL argument.
        model: what it names.
        name: of the record in `evaluations/`.
        figures: plain values for JSON.
        data: what was looked at.
        split: that the figures are from.
        seed: of the draws, if any.
        precision: as it was asked for; the type that ran is recorded.
    """
    from igpt.compute import choose_dtype, name_of
    from igpt.evaluate.record import write_record

    ran = name_of(choose_dtype(precision, model.device))
    figures = {**figures, "precision": ran, "device": model.device.type}
    if run := record_place(Path(place)):
        digest = model.digest()
        write_record(run, name, figures, model=digest, data=data.source, split=split, seed=seed)
    drawn = {} if seed is None else {"seed": seed}
    return {"model": place, "data": data.source, "split": split, **drawn, **figures}


def record_place(model: Path) -> Path | None:
    """The run folder that a MODEL argument names, where its figures are kept; else none."""
    return model if (model / "metrics.jsonl").is_file() else None
