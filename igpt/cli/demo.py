"""`igpt demo`: what a model that ships can do, or the whole story on CIFAR-10, ending in a page."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.config import DataConfig, RunConfig
from igpt.errors import UserError
from igpt.progress import say
from igpt.recipes import recipe

if TYPE_CHECKING:
    from igpt.images.packed.read import PackedSet
    from igpt.pixelmodel import PixelModel

N_SAMPLES = 64
N_JUDGED = 2000
DIGITS_SIZE = 8
ENLARGE = 4


def demo(*, train: bool = False, resume: bool = False, out: str | None = None) -> None:
    """The model that ships at work within a minute; --train: the whole story from nothing.

    Args:
        train: fetch CIFAR-10 and train a small model from nothing (5 to 12 minutes on two cores).
        resume: go on with what an earlier demo left, whether it was interrupted or finished.
        out: folder to write; none: runs/shipped, with --train runs/demo.
    """
    from igpt import shipped
    from igpt.cli.outputs import folder_to_fill
    from igpt.model import native

    place = folder_to_fill(
        ("runs/demo" if train else "runs/shipped") if out is None else out, "--out"
    )
    for part in ("attention", "decode") if train else ("decode", "attention"):
        native.build_ahead(part)
    if train:
        _train_and_show(place, resume=resume)
    elif known := shipped.names():
        show_shipped(SHOWN if SHOWN in known else known[0], place)
    else:
        raise UserError("no model ships with this installation: run `igpt demo --train`")


def _train_and_show(folder: Path, *, resume: bool) -> None:
    """Data, palette, training, samples, completions, probe, report."""
    from igpt import compute
    from igpt.jobs.pretrain import train_run
    from igpt.loading import load
    from igpt.report.report import write_report

    compute.set_threads()
    start_s = time.monotonic()
    with _stage("data"):
        data, config = _data_and_config(folder)
    with _stage("training"):
        command = f"igpt demo --train --out {folder}"
        result = train_run(data, folder, config, command=command, resume=resume)
    model = load(folder)
    packed = _open(data, config)
    stages: dict[str, Callable[[PixelModel, PackedSet, Path], Any]] = {
        "likelihood-test": _likelihood,
        "samples": lambda model, _, folder: _samples(model, folder),
        "completions": _completions,
        "probe": _probe,
    }
    for name, stage in stages.items():
        if not _is_done(folder, name, model):
            with _stage(name):
                stage(model, packed, folder)
    page = write_report(folder)
    minutes = (time.monotonic() - start_s) / 60
    _print_summary(folder, result.step, minutes)
    print(f"report  {page}")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    from igpt.progress import say

    start_s = time.monotonic()
    say(f"== {name}")
    yield
    say(f"== {name} took {time.monotonic() - start_s:.0f} s")


def _data_and_config(folder: Path) -> tuple[str, RunConfig]:
    """CIFAR-10 where it can be had, else scikit-learn's digits; an earlier run keeps its own."""
    from igpt.progress import say

    config = recipe("demo")
    small = dataclasses.replace(
        config, data=DataConfig(image_size=DIGITS_SIZE, n_colors=17, augment="none")
    )
    if (folder / "config.json").is_file():
        from igpt.train.folder import read_run

        stored, _ = read_run(folder)
        return ("digits" if stored.data.image_size == DIGITS_SIZE else "cifar10"), stored
    try:
        _open("cifar10", config)
    except UserError as error:
        say(f"CIFAR-10 cannot be had ({error}); showing scikit-learn's digits instead")
        return "digits", small
    return "cifar10", config


def _open(data: str, config: RunConfig) -> "PackedSet":
    from igpt.images.prepare import open_data

    return open_data(
        data,
        image_size=config.data.image_size,
        seed=config.seed,
        valid_fraction=config.data.valid_fraction,
    )


def _is_done(folder: Path, name: str, model: "PixelModel") -> bool:
    from igpt.files import read_json

    path = folder / "evaluations" / f"{name}.json"
    return path.is_file() and read_json(path).get("model") == model.digest()


def _likelihood(model: "PixelModel", data: "PackedSet", folder: Path) -> None:
    from igpt.jobs.evaluate import likelihood_of
    from igpt.report.record import write_record

    result = likelihood_of(model, data, split="test", max_images=N_JUDGED)
    write_record(
        folder, "likelihood-test", result, model=model.digest(), data=data.source, split="test"
    )


def _samples(model: "PixelModel", folder: Path) -> None:
    from igpt.files import write_bytes
    from igpt.images.grid import tile, to_png_bytes
    from igpt.report.record import write_record

    images = model.sample(N_SAMPLES, seed=0)
    picture = tile(images, columns=16, enlarge=ENLARGE)
    write_bytes(folder / "pictures" / "samples.png", to_png_bytes(picture))
    about = {"n": N_SAMPLES, "temperature": 1.0}
    write_record(folder, "samples", about, model=model.digest(), seed=0)


def _completions(model: "PixelModel", data: "PackedSet", folder: Path) -> None:
    from igpt.files import write_bytes
    from igpt.images.grid import to_png_bytes
    from igpt.report.grids import completions
    from igpt.report.record import write_record

    shown = data.images("test")[:N_COMPLETED]
    picture = completions(model, shown, n=N_COMPLETIONS, seed=0)
    write_bytes(folder / "pictures" / "completions.png", to_png_bytes(picture))
    about = {"n": N_COMPLETIONS, "keep_rows": 0.5}
    write_record(
        folder,
        "completions",
        about,
        model=model.digest(),
        data=data.source,
        split="test",
        seed=0,
    )


def _probe(model: "PixelModel", data: "PackedSet", folder: Path) -> None:
    """With the paper's mean over positions, and with bands of rows; one pass serves both."""
    from igpt.images.splits import SPLITS
    from igpt.probing.exact import labelled_features, probe_model
    from igpt.probing.features import mean_of_bands
    from igpt.probing.protocol import Labelled
    from igpt.report.record import write_record

    bands = tuple(labelled_features(model, data, split, pooling="bands") for split in SPLITS)
    means = tuple(Labelled(mean_of_bands(part.features), part.labels) for part in bands)
    result = probe_model(model, data, features=means, save=False)
    # The better classifier of the two is the one that `igpt classify` gets.
    result["bands"] = probe_model(model, data, pooling="bands", features=bands, raw_pixels=False)
    write_record(folder, "probe", result, model=model.digest(), data=data.source, split="test")


def _print_summary(folder: Path, step: int, minutes: float) -> None:
    from igpt.files import read_json

    nats = read_json(folder / "evaluations" / "likelihood-test.json")["result"]
    probe = read_json(folder / "evaluations" / "probe.json")["result"]
    gain = probe["test_accuracy"] - probe["raw_pixels"]["test_accuracy"]
    print(f"trained {step} steps; everything took {minutes:.1f} minutes")
    print(
        f"test likelihood  {nats['nats_per_token']:.4f} nats per token "
        f"(bigram {nats['bigram_nats_per_token']:.4f})"
    )
    print(
        f"linear probe     {probe['test_accuracy']:.2%} at layer {probe['layer']}; "
        f"raw pixels {probe['raw_pixels']['test_accuracy']:.2%} ({100 * gain:+.1f} points)"
    )
    print(f"                 {probe['bands']['test_accuracy']:.2%} from bands of rows and spread")


if TYPE_CHECKING:
    import numpy as np

    from igpt.images.packed.read import PackedSet
    from igpt.pixelmodel import PixelModel
    from igpt.probing.protocol import LabelledImages

# Of the models that ship, the one with the most to see.
SHOWN = "cifar10-32"
N_DRAWN = 32
N_COMPLETED = 8
N_COMPLETIONS = 5
FEW_LABELS = (4, 25)
N_SUBSETS = 3
# Features of these take a quarter of a minute on two cores.
LABELS_A_CLASS = 30
N_JUDGED_ON = 400


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
    """As many images of each class of the training split, and some of the validation split."""
    import numpy as np

    from igpt.probing.fewlabel import subset_rows
    from igpt.probing.protocol import LabelledImages
    from igpt.probing.solve import labels_of

    labels = labels_of(data, "train")
    rows = np.sort(subset_rows(labels, LABELS_A_CLASS, seed=0, subset=0))
    few = data.at_most(N_JUDGED_ON)
    judge = LabelledImages(few.images("valid")[:], labels_of(few, "valid"))
    return LabelledImages(data.images("train")[rows], labels[rows]), judge


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
    from igpt.images.grid import enlargement, tile, to_png_bytes
    from igpt.report.grids import completions

    folder.mkdir(parents=True, exist_ok=True)
    say(f"completing {len(originals)} images from their upper half, {N_COMPLETIONS} times each")
    picture = completions(model, originals, n=N_COMPLETIONS, seed=0)
    write_bytes(folder / "completions.png", to_png_bytes(picture))
    say(f"drawing {N_DRAWN} images from nothing")
    samples = model.sample(N_DRAWN, seed=0)
    picture = tile(samples, columns=8, enlarge=enlargement(model.image_size))
    write_bytes(folder / "samples.png", to_png_bytes(picture))


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
