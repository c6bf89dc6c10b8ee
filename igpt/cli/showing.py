"""What `igpt demo` shows of a model that ships: completions, samples, and what a few labels do."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.progress import say

if TYPE_CHECKING:
    import numpy as np

    from igpt.pixelmodel import PixelModel
    from igpt.shipped import Examples

N_SAMPLES = 32
N_COMPLETED = 8
N_COMPLETIONS = 5
ENLARGE = 6
FEW_LABELS = (4, 25)
N_SUBSETS = 3


def show_shipped(name: str, folder: Path) -> None:
    """Draw with the shipped model of a name, probe it on its examples, and leave two pictures.

    Args:
        name: of the model.
        folder: where the pictures go; made if it is not there.

    Raises:
        UserError: the model in this installation is damaged, or the folder cannot be written.
    """
    from igpt import compute
    from igpt.pixelmodel import load
    from igpt.shipped import read_examples

    start_s = time.monotonic()
    compute.set_threads()
    model = load(name)
    network = model.network
    say(
        f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{model.image_size} x {model.image_size} pixels, "
        f"trained without labels on {model.facts.trained.get('data')}"
    )
    unseen = read_examples(name, "judge")
    _draw(model, unseen.images, folder)
    say("a few labels, counted on images that were not trained on")
    for line in few_label_lines(model, read_examples(name, "fit"), unseen):
        print(line)
    print(f"pictures  {folder / 'completions.png'}, {folder / 'samples.png'}")
    print(f"everything took {time.monotonic() - start_s:.0f} s")
    print("train one yourself, from nothing, in minutes: igpt demo --train")


def _draw(model: "PixelModel", originals: "np.ndarray", folder: Path) -> None:
    from igpt.images.grid import tile, to_png_bytes
    from igpt.runs import write_bytes

    folder.mkdir(parents=True, exist_ok=True)
    say(f"completing {N_COMPLETED} images from their upper half, {N_COMPLETIONS} times each")
    picture = completion_picture(model, originals[:N_COMPLETED])
    write_bytes(folder / "completions.png", to_png_bytes(picture))
    say(f"drawing {N_SAMPLES} images from nothing")
    samples = model.sample(N_SAMPLES, seed=0)
    write_bytes(folder / "samples.png", to_png_bytes(tile(samples, columns=8, enlarge=ENLARGE)))


def completion_picture(model: "PixelModel", originals: "np.ndarray") -> "np.ndarray":
    """A row an image: its upper half, completions, the original; (H, W, 3) uint8."""
    import numpy as np

    from igpt.images.grid import tile

    drawn = model.complete(originals, keep_rows=0.5, n=N_COMPLETIONS, seed=0)
    given = originals.copy()
    given[:, model.image_size // 2 :] = 127
    rows = np.concatenate([given[:, None], drawn, originals[:, None]], axis=1)
    return tile(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1], enlarge=ENLARGE)


def few_label_lines(model: "PixelModel", fit: "Examples", judge: "Examples") -> list[str]:
    """One line for each number of labels: features beside raw pixels, mean over subsets.

    The layer is the saved probe's: to choose among all would take longer than all else here.
    """
    from igpt.evaluate.features import extract_features
    from igpt.evaluate.fewlabel import evaluate_few_labels
    from igpt.evaluate.probe import Labelled, pixel_features

    probe = model.probe()
    pooling = "mean" if probe is None else probe.pooling
    splits = []
    for part in (fit, judge):
        tokens = model.tokenizer.encode(part.images)
        layers = extract_features(
            model.network, tokens, layers=[model.best_layer()], pooling=pooling, keep=False
        )
        splits.append(
            (
                Labelled(layers, part.labels),
                Labelled(pixel_features(part.images)[None], part.labels),
            )
        )
    lines = []
    for count in FEW_LABELS:
        shares = []
        for of_fit, of_judge in zip(*splits, strict=True):
            result = evaluate_few_labels(
                of_fit,
                of_judge,
                layers=range(len(of_fit.features)),
                labels_per_class=count,
                n_subsets=N_SUBSETS,
                seed=0,
            )
            shares.append(result.mean)
        lines.append(
            f"{count:>3} labels a class: {shares[0]:.1%} right with its features, "
            f"{shares[1]:.1%} with raw pixels"
        )
    return lines
