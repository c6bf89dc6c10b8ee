"""What commands on a trained model share: its data at its size, and the record of its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.evaluation.opening import check_max_images as check_max_images
from igpt.evaluation.opening import open_for as open_for
from igpt.evaluation.opening import open_labelled as open_labelled

if TYPE_CHECKING:
    from igpt.compute import Precision
    from igpt.images.packed.read import PackedSet
    from igpt.images.splits import Split
    from igpt.pixelmodel import PixelModel


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

    What cannot be recorded is shown all the same.

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
    from igpt.files import kept_if_possible, plain
    from igpt.report.record import write_record

    ran = name_of(choose_dtype(precision, model.device))
    figures = {**figures, "precision": ran, "device": model.device.type}
    if run := record_place(Path(place)):
        digest, source = model.digest(), data.source
        with kept_if_possible("the figures are"):
            write_record(run, name, figures, model=digest, data=source, split=split, seed=seed)
    drawn = {} if seed is None else {"seed": seed}
    named = {"model": place, "data": data.source, "split": split, **drawn}
    return {**named, **plain(figures)}


def record_place(model: Path) -> Path | None:
    """The run folder that a MODEL argument names, where its figures are kept; else none."""
    return model if (model / "metrics.jsonl").is_file() else None
