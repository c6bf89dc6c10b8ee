"""The figures of a model that ships, by the protocol of TARGETS.md, and the model's folder.

    python records/measure.py stage RUN FOLDER       float16 weights, and the run's metrics
    python records/measure.py probe FOLDER [MAX_IMAGES]    linear probes, few labels; keeps the best
    python records/measure.py nats FOLDER            likelihood on validation and test
    python records/measure.py transfer FOLDER NAME DATA [MAX_IMAGES]
    python records/measure.py border DATA SIDE PIXELS OUT.npz    what is smaller than the model
    python records/measure.py checkpoints FOLDER RUN loss and a quick probe of what the run keeps
    python records/measure.py repalette FOLDER PALETTE.npy OUT STEPS    the loss under other colours
    python records/measure.py ship FOLDER            into the package, with its card

FOLDER is named as the model. Every choice is made on validation. Figures go to
`shipped/NAME/figures.json` beside this file; a command that was stopped goes on where it was, and
what is there of the same model is not measured again.
"""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import card
import numpy as np
import torch
from keeping import N_JOINED, SHIPPED, measured, read_figures

from igpt import compute, shipped
from igpt.config import RunConfig
from igpt.evaluation.likelihood import token_surprise
from igpt.files import LIST, write_json, writing_folder
from igpt.formats.folder import read_newest, write_folder
from igpt.images.packed.read import PackedSet
from igpt.images.prepare import open_data
from igpt.images.splits import SPLITS, Split
from igpt.jobs.evaluate import likelihood_of
from igpt.jobs.opening import open_for
from igpt.jobs.pretrain import train_run
from igpt.loading import load, load_run
from igpt.model.gpt import GPT
from igpt.pixelmodel import PixelModel
from igpt.probing.exact import probe_kmeans, probe_model, probe_pixels
from igpt.probing.features import EncodedImages, extract_features, mean_of_bands
from igpt.probing.fewlabel import evaluate_few_labels
from igpt.probing.kmeans import KMeansConfig
from igpt.probing.protocol import Labelled, pixel_features, probe_layers
from igpt.probing.solve import labels_of
from igpt.recipes import recipe
from igpt.shipped import write_shipped
from igpt.tokens.palette import Palette
from igpt.train.checkpoint import all_steps
from igpt.train.folder import read_run
from igpt.trained import Trained

N_SUBSETS = 5
JUDGED: tuple[Split, ...] = ("test", "valid")
# Images whose features are made and kept at a time: what a stopped command loses at most.
STRETCH = 9000
# A quick probe of a checkpoint: as of the proxies, see `ablate.py`.
N_QUICK_FIT, N_QUICK_JUDGED, N_QUICK_NATS = 3000, 2000, 1000
QUICK_STRENGTHS = (1e-3, 1e-2, 1e-1)
# Of the recipe's peak rates: a network that is trained already starts to learn other colours.
REPALETTE_RATE = 0.25


def keep(model: PixelModel, name: str, measure: Callable[[], dict[str, Any]], **how: Any) -> None:
    """Add figures of a model to its book."""
    assert model.folder is not None
    book = SHIPPED / model.folder.name / "figures.json"
    measured(book, name, measure, of=model.digest(), **how)


def stage(run: Path, folder: Path) -> None:
    """Write the run's last checkpoint as it would ship.

    Its metrics go into the record book; the figures of another model leave it.
    """
    write_shipped(folder, read_newest(run), {})
    book = SHIPPED / folder.name
    book.mkdir(parents=True, exist_ok=True)
    (book / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    digest = load(folder).digest()
    figures = read_figures(book / "figures.json")
    write_json(
        book / "figures.json",
        {name: held for name, held in figures.items() if held["of"] == digest},
    )


def banded_features(model: PixelModel, images: Any) -> np.ndarray:
    """(L + 1, N, 5 D) float32, a stretch at a time from the cache folder or into it."""
    parts = []
    for start in range(0, len(images), STRETCH):
        tokens = EncodedImages(images[start : start + STRETCH], model.tokenizer.encode)
        parts.append(extract_features(model.network, tokens, pooling="bands"))
        print(f"features of {start + len(tokens)} of {len(images)} images", flush=True)
    return np.concatenate(parts, axis=1)


def features_of(model: PixelModel, data: PackedSet) -> dict[str, dict[Split, Labelled]]:
    """By pooling and split: one pass serves both poolings, raw pixels stand beside them."""
    found: dict[str, dict[Split, Labelled]] = {"mean": {}, "bands": {}, "raw pixels": {}}
    for split in SPLITS:
        images, labels = data.images(split), labels_of(data, split)
        bands = banded_features(model, images)
        found["bands"][split] = Labelled(bands, labels)
        found["mean"][split] = Labelled(mean_of_bands(bands), labels)
        found["raw pixels"][split] = Labelled(pixel_features(images[:])[None], labels)
    return found


def probe_each(
    model: PixelModel,
    data: PackedSet,
    found: dict[str, dict[Split, Labelled]],
    prefix: str,
    *,
    n_joined: int = 0,
    save: bool = False,
) -> None:
    """The probe with either pooling and that of raw pixels.

    Args:
        model: whose features they are.
        data: what they are of.
        found: as `features_of` gives them.
        prefix: of the figures' names.
        n_joined: layers to probe side by side as well; 0: none.
        save: keep the classifier that sees bands in the model's folder.
    """
    lacks_probe = save and model.folder is not None and not (model.folder / "probe.json").is_file()
    for pooling in ("mean", "bands"):
        options: Any = {
            "pooling": pooling,
            "features": tuple(found[pooling][split] for split in SPLITS),
            "raw_pixels": False,
            "n_joined": n_joined,
            "save": save and pooling == "bands",
        }
        keep(
            model,
            f"{prefix}, {pooling}",
            functools.partial(probe_model, model, data, **options),
            again=lacks_probe and pooling == "bands",
        )
    keep(model, f"{prefix}, raw pixels", lambda: probe_pixels(data))


def probe_cifar(folder: Path, max_images: int | None) -> None:
    """Probes by layer and pooling, and few labels."""
    model = load(folder)
    data = open_for(model, "cifar10", max_images=max_images)
    found = features_of(model, data)
    probe_each(model, data, found, "probe", n_joined=N_JOINED, save=True)
    for count in card.COUNTS:
        for method, splits in found.items():
            keep(
                model,
                f"few labels, {count}, {method}",
                functools.partial(few_labels, splits["train"], splits["test"], count),
            )


def few_labels(train: Labelled, test: Labelled, count: int) -> dict[str, Any]:
    """Accuracy over subsets of so many labels a class."""
    result = evaluate_few_labels(
        train,
        test,
        layers=range(len(train.features)),
        labels_per_class=count,
        n_subsets=N_SUBSETS,
    )
    return dataclasses.asdict(result)


def nats(folder: Path) -> None:
    """Likelihood of all validation and test images."""
    model = load(folder)
    data = open_for(model, "cifar10")
    for split in JUDGED:
        keep(model, f"nats, {split}", functools.partial(likelihood_of, model, data, split=split))


def transfer(folder: Path, name: str, source: str, max_images: int | None) -> None:
    """The same probes on other labelled images, and that of k-means of those images."""
    model = load(folder)
    data = open_for(model, source, max_images=max_images)
    probe_each(model, data, features_of(model, data), f"transfer, {name}")
    keep(model, f"transfer, {name}, k-means", lambda: probe_kmeans(data, KMeansConfig()))


def border(source: str, side: int, pixels: int, out: Path) -> None:
    """Write labelled images of this side as arrays, black pixels added on all four sides."""
    data = open_data(source, image_size=side)
    parts: dict[str, tuple[Split, ...]] = {"train": ("train", "valid"), "test": ("test",)}
    arrays: dict[str, Any] = {}
    around = [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)]
    for part, splits in parts.items():
        images = np.concatenate([data.images(split)[:] for split in splits])
        arrays[f"x_{part}"] = np.pad(images, around)
        arrays[f"y_{part}"] = np.concatenate([labels_of(data, split) for split in splits])
    np.savez_compressed(out, **arrays)


def checkpoints(folder: Path, run: Path) -> None:
    """The paper's Figure 3: validation loss and a quick probe of each checkpoint of the run."""
    model = load(folder)
    data = open_for(model, "cifar10")
    for step, _ in sorted(all_steps(run)):
        keep(
            model,
            f"checkpoint, {step}",
            functools.partial(judged_quickly, run, step, data),
        )


def judged_quickly(run: Path, step: int, data: PackedSet) -> dict[str, Any]:
    """Nats per token, and by pooling the best layer's accuracy, all on validation images."""
    model = load_run(run, step=step)
    images = data.images("valid")[:N_QUICK_NATS]
    surprise = token_surprise(model.network, EncodedImages(images, model.tokenizer.encode))
    figures: dict[str, Any] = {
        "images": model.facts.trained["images"],
        "valid_nats": float(surprise.mean()),
    }
    parts = []
    counts: dict[Split, int] = {"train": N_QUICK_FIT, "valid": N_QUICK_JUDGED}
    for split, n in counts.items():
        some = data.at_most(n)
        tokens = EncodedImages(some.images(split), model.tokenizer.encode)
        bands = extract_features(model.network, tokens, pooling="bands", keep=False)
        parts.append((bands, labels_of(some, split)))
    for pooling in ("mean", "bands"):
        fit, judge = (
            Labelled(mean_of_bands(bands) if pooling == "mean" else bands, labels)
            for bands, labels in parts
        )
        layers = range(len(fit.features))
        # What stands for test here is validation again: test is not looked at.
        result, _, _ = probe_layers(fit, judge, judge, layers=layers, strengths=QUICK_STRENGTHS)
        figures[pooling] = result.valid_accuracy
    return figures


def repalette(folder: Path, palette: Palette, out: Path, steps: int) -> None:
    """Train the model on under another palette for a while, in the run OUT; then its loss."""
    model = load(folder)
    start = out.with_name(f"{out.name}-start")
    if not start.is_dir():
        parts = Trained(recoloured(model, palette), palette, model.facts)
        with writing_folder(start) as part:
            write_folder(part, parts)
    config = read_run(out)[0] if (out / "config.json").is_file() else going_on(model, steps)
    train_run("cifar10", out, config, command=" ".join(sys.argv), resume=True, init_from=str(start))
    trained = load_run(out)
    data = open_for(model, "cifar10")
    extra = {"palette": palette.digest, "steps": steps, "images": steps * config.train.batch_size}

    def likelihood(split: Split) -> dict[str, Any]:
        return {**likelihood_of(trained, data, split=split), **extra}

    for split in JUDGED:
        measure = functools.partial(likelihood, split)
        keep(model, f"nats after repalette, {split}", measure)


def recoloured(model: PixelModel, palette: Palette) -> GPT:
    """The network with the rows of each colour taken from the nearest one of its own palette."""
    tokens = np.arange(palette.n_colors)[:, None]  # (K, 1)
    nearest = torch.from_numpy(model.tokenizer.encode(palette.decode(tokens))[:, 0])
    network = copy.deepcopy(model.network)
    network.n_colors = palette.n_colors
    for table in (network.wte, network.head):
        table.weight = torch.nn.Parameter(table.weight.detach()[nearest])
    return network


def going_on(model: PixelModel, steps: int) -> RunConfig:
    """The recipe of the model at a part of its rates, which fall to 0."""
    config = recipe(model.facts.trained["recipe"])
    train = dataclasses.replace(
        config.train,
        total_steps=steps,
        warmup_steps=0,
        schedule="linear",
        decay_fraction=1.0,
        lr=REPALETTE_RATE * config.train.lr,
        muon_lr=REPALETTE_RATE * config.train.muon_lr,
    )
    data = dataclasses.replace(config.data, image_size=model.image_size)
    return dataclasses.replace(config, data=data, model=model.network.config, train=train)


def ship(folder: Path) -> None:
    """Write the package's own folder of the model from a staged one, with its card."""
    model, name = load(folder), folder.name
    files = {file: (folder / file).read_bytes() for file in ("probe.json", "probe.safetensors")}
    files["README.md"] = card.card(model, name).encode()
    target = shipped.MODELS / name
    write_shipped(target, Trained(model.network, model.tokenizer, model.facts), files)
    (target / LIST).unlink()  # nobody replaces what is installed
    print(f"{target}: {load(name).best_layer()=}")


def main(command: str, place: str, *rest: str) -> None:
    """Run one of the commands above."""
    compute.set_threads()
    folder = Path(place)
    match command, rest:
        case "stage", (target,):
            stage(folder, Path(target))
        case "probe", limit:
            probe_cifar(folder, int(limit[0]) if limit else None)
        case "nats", ():
            nats(folder)
        case "transfer", (name, data, *limit):
            transfer(folder, name, data, int(limit[0]) if limit else None)
        case "border", (side, pixels, out):
            border(place, int(side), int(pixels), Path(out))
        case "checkpoints", (run,):
            checkpoints(folder, Path(run))
        case "repalette", (palette, out, steps):
            repalette(folder, Palette.load(palette), Path(out), int(steps))
        case "ship", ():
            ship(folder)
        case _:
            raise SystemExit(f"{command}: see the head of this file")


if __name__ == "__main__":
    main(*sys.argv[1:])
