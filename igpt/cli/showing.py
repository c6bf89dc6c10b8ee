"""What `igpt demo` shows of a model that ships: completions, samples, and what a few labels do."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.errors import UserError
from igpt.progress import say

if TYPE_CHECKING:
    import numpy as np

    from igpt.images.packed.read import PackedSet
    from igpt.pixelmodel import PixelModel
    from igpt.probing.protocol import LabelledImages

N_SAMPLES = 32
N_COMPLETED = 8
N_COMPLETIONS = 5
ENLARGE = 6
FEW_LABELS = (4, 25)
N_SUBSETS = 3
# Images of a split that are looked at: features of these take seconds on two cores.
N_LABELLED = 500


def show_shipped(name: str, folder: Path) -> None:
    """Draw with the shipped model of a name, probe it, and leave two pictures.

    Args:
        name: of the model.
        folder: where the pictures go; made if it is not there.

    Raises:
        UserError: the model in this installation is damaged, or the folder cannot be written.
    """
    from igpt import compute
    from igpt.loading import load

    start_s = time.monotonic()
    compute.set_threads()
    model = load(name)
    network = model.network
    say(
        f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{model.image_size} x {model.image_size} pixels, "
        f"trained without labels on {model.facts.trained.get('data')}"
    )
    fit, judge, originals = _images_to_show(model)
    _draw(model, originals, folder)
    say(f"a few labels, counted on {len(judge.labels)} images that were not trained on")
    for line in few_label_lines(model, fit, judge):
        print(line)
    print(f"pictures  {folder / 'completions.png'}, {folder / 'samples.png'}")
    print(f"everything took {time.monotonic() - start_s:.0f} s")
    print("train one yourself, from nothing, in minutes: igpt demo --train")


def _images_to_show(
    model: "PixelModel",
) -> "tuple[LabelledImages, LabelledImages, np.ndarray]":
    """Images to learn labels from, images to judge on, and images to complete.

    CIFAR-10's, of which the last two were not trained on; where it cannot be had, digits and pieces
    of photographs.
    """
    from igpt.jobs.opening import open_for

    try:
        fit, judge = _some_labelled(open_for(model, "cifar10"))
    except UserError as error:
        say(
            f"CIFAR-10 cannot be had ({error}); showing scikit-learn's digits and pieces of its "
            "photographs instead"
        )
        return *_some_labelled(open_for(model, "digits")), photograph_pieces(model.image_size)
    return fit, judge, judge.images[:N_COMPLETED]


def _some_labelled(data: "PackedSet") -> "tuple[LabelledImages, LabelledImages]":
    """Some images of the training split and some of the validation split."""
    from igpt.probing.exact import labels_of
    from igpt.probing.protocol import LabelledImages

    some = data.at_most(N_LABELLED)
    fit, judge = (
        LabelledImages(some.images(split)[:], labels_of(some, split))
        for split in ("train", "valid")
    )
    return fit, judge


def photograph_pieces(side: int) -> "np.ndarray":
    """The quarters of the two photographs that come with scikit-learn: (8, S, S, 3) uint8."""
    import numpy as np
    from sklearn.datasets import load_sample_images

    from igpt.images.taking import square

    return np.stack(
        [
            square(piece, side)
            for photograph in load_sample_images().images
            for half in np.array_split(photograph, 2)
            for piece in np.array_split(half, 2, axis=1)
        ]
    )


def _draw(model: "PixelModel", originals: "np.ndarray", folder: Path) -> None:
    from igpt.files import write_bytes
    from igpt.images.grid import tile, to_png_bytes
    from igpt.report.grids import completions

    folder.mkdir(parents=True, exist_ok=True)
    say(f"completing {len(originals)} images from their upper half, {N_COMPLETIONS} times each")
    picture = completions(model, originals, n=N_COMPLETIONS, seed=0, enlarge=ENLARGE)
    write_bytes(folder / "completions.png", to_png_bytes(picture))
    say(f"drawing {N_SAMPLES} images from nothing")
    samples = model.sample(N_SAMPLES, seed=0)
    write_bytes(folder / "samples.png", to_png_bytes(tile(samples, columns=8, enlarge=ENLARGE)))


def few_label_lines(
    model: "PixelModel", fit: "LabelledImages", judge: "LabelledImages"
) -> list[str]:
    """One line for each number of labels: features beside raw pixels, mean over subsets.

    The layer is the saved probe's: to choose among all would take longer than all else here.
    """
    from igpt.probing.fewlabel import evaluate_few_labels
    from igpt.probing.protocol import Labelled, pixel_features

    probe = model.probe()
    pooling = "mean" if probe is None else probe.pooling
    methods = {
        "features": lambda images: model.features(images, pooling=pooling),
        "raw pixels": pixel_features,
    }
    splits = {
        method: [Labelled(vectors(part.images)[None], part.labels) for part in (fit, judge)]
        for method, vectors in methods.items()
    }
    lines = []
    for count in FEW_LABELS:
        shares = {
            method: evaluate_few_labels(
                *parts, layers=[0], labels_per_class=count, n_subsets=N_SUBSETS, seed=0
            ).mean
            for method, parts in splits.items()
        }
        lines.append(
            f"{count:>3} labels a class: {shares['features']:.1%} right with its features, "
            f"{shares['raw pixels']:.1%} with raw pixels"
        )
    return lines
