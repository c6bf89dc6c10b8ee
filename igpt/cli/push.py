"""`igpt push`."""

import copy
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.outputs import Model
from igpt.cli.pull import HubId

if TYPE_CHECKING:
    from igpt.formats.card import Records
    from igpt.pixelmodel import PixelModel

PICTURES = ("samples.png", "completions.png")
N_DRAWN = 16


def push(
    model: Model,
    hub_id: HubId,
    *,
    private: bool = False,
    license: str | None = None,
    dry_run: str | None = None,
) -> None:
    """Put a model on the Hugging Face Hub, with a card made from what its run recorded.

    The login is the one that `hf auth login` left, or HF_TOKEN.

    Args:
        model: a run (its figures and pictures go into the card), or a model folder.
        hub_id: owner/name; made where it does not exist.
        private: visible to its owner only.
        license: of the weights, as the Hub names licences (mit, cc-by-4.0, ...); none: not stated.
        dry_run: folder to write what would be sent to, new or empty; nothing is sent.
    """
    from igpt.cli.outputs import empty_folder
    from igpt.formats import hub
    from igpt.loading import load

    hub.check_hub_id(hub_id)
    place = None if dry_run is None else empty_folder(dry_run, option="--dry-run")
    if place is None:
        hub.check_can_publish(hub_id)
    loaded = load(model)
    with tempfile.TemporaryDirectory() as made:
        folder = place or Path(made) / "model"
        write_published(loaded, folder, hub_id, run=Path(model), license_name=license)
        print(folder if place else hub.publish(folder, hub_id, private=private))


def write_published(
    model: "PixelModel", folder: Path, name: str, *, run: Path, license_name: str | None
) -> None:
    """A model folder with pictures and the whole card, without what its training images were."""
    from igpt.files import claim
    from igpt.formats.card import model_card
    from igpt.formats.folder import transformers_class

    model = copy.copy(model)
    model.seen = None
    model.save(folder)
    pictures = [name for name in PICTURES if (run / "pictures" / name).is_file()]
    for picture in pictures:
        shutil.copyfile(run / "pictures" / picture, folder / picture)
    if not pictures and model.network.objective == "ar" and model.network.predicts:
        pictures = [_draw(model, folder)]
    card = model_card(
        model,
        name=name,
        architecture=transformers_class(model.network),
        classifies=(folder / "probe.json").is_file(),
        records=_records(run),
        pictures=pictures,
        license_name=license_name,
    )
    (folder / "README.md").write_text(card)
    claim(folder, "README.md", *pictures)


def _draw(model: "PixelModel", folder: Path) -> str:
    from igpt.images.grid import enlargement, tile, to_png_bytes

    drawn = model.sample(N_DRAWN, seed=0)
    picture = tile(drawn, columns=8, enlarge=enlargement(model.image_size))
    (folder / PICTURES[0]).write_bytes(to_png_bytes(picture))
    return PICTURES[0]


def _records(run: Path) -> "Records":
    from igpt.jobs.opening import record_place
    from igpt.report.record import read_records

    return read_records(run) if record_place(run) else {}
