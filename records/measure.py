"""The figures of the model that ships, by the protocol of TARGETS.md, and the model's folder.

    python records/measure.py stage RUN FOLDER      float16 weights, from the last step
    python records/measure.py probe FOLDER [N_TRAIN] linear probes, few labels; keeps the best probe
    python records/measure.py features FOLDER SPLIT START   one stretch of them, kept for `probe`
    python records/measure.py nats FOLDER           likelihood on validation and test
    python records/measure.py transfer FOLDER NAME DATA [MAX_IMAGES]
    python records/measure.py ship FOLDER NAME      into the package, with its card

Every choice is made on validation; figures go to `shipped.json` beside this file. Features are
pooled by bands once; the paper's mean is that of the four equal bands, so one pass gives both.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import card
import numpy as np

from igpt import compute, shipped
from igpt.cli.opening import open_for
from igpt.evaluate.features import EncodedImages, extract_features
from igpt.evaluate.fewlabel import evaluate_few_labels
from igpt.evaluate.likelihood import token_surprise
from igpt.evaluate.probe import Labelled, join_layers, pixel_features, probe_layers
from igpt.evaluate.probing import PROTOCOL, labels_of
from igpt.evaluate.savedprobe import SavedProbe
from igpt.images.packed import PackedSet
from igpt.modelfolder import ModelParts, read_newest
from igpt.pixelmodel import PixelModel, load
from igpt.runs import write_json
from igpt.shipped import write_shipped

RESULTS = Path(__file__).with_name("shipped.json")
SPLITS = ("train", "valid", "test")
LABELS_A_CLASS = (4, 25, 400)
N_SUBSETS = 5
CHUNK = 9000


def keep(name: str, figures: dict[str, Any], start_s: float) -> None:
    """Add figures to `shipped.json`, with their cost."""
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found[name] = {**figures, "cpu_s": round(time.process_time() - start_s, 1)}
    write_json(RESULTS, found)
    print(name, json.dumps(figures)[:300], flush=True)


def cifar10(model: PixelModel) -> PackedSet:
    """The data set at the model's size, split as for training."""
    return open_for(model, "cifar10")


def stage(run: Path, folder: Path) -> None:
    """Write the run's last checkpoint as it would ship, without probe and card."""
    write_shipped(folder, read_newest(run), {})


def stretch_of(model: PixelModel, data: PackedSet, split: Any, start: int) -> np.ndarray:
    """Features of up to `CHUNK` images of a split, from the cache where they were made before."""
    rows = data.images(split)[start : start + CHUNK]
    tokens = EncodedImages(rows, model.tokenizer.encode)
    return extract_features(model.network, tokens, pooling="bands")


def features_of(
    model: PixelModel, data: PackedSet, n_train: int | None = None
) -> dict[str, dict[str, Labelled]]:
    """By pooling and split; the paper's mean is that of the bands.

    Only the first `n_train` images of the training split are looked at; none: all.
    """
    found: dict[str, dict[str, Labelled]] = {"mean": {}, "bands": {}, "raw pixels": {}}
    width = model.network.config.n_embd
    for split in ("valid", "test", "train"):
        parts: list[np.ndarray] = []
        n = data.n(split) if split != "train" or n_train is None else n_train
        for start in range(0, n, CHUNK):
            parts.append(stretch_of(model, data, split, start))
            print(f"{split}: {start + parts[-1].shape[1]}", flush=True)
        bands = np.concatenate(parts, axis=1)
        images, labels = (
            part[: bands.shape[1]] for part in (data.images(split), labels_of(data, split))
        )
        cut = bands[:, :, : 4 * width].reshape(*bands.shape[:2], 4, width)
        found["bands"][split] = Labelled(bands, labels)
        found["mean"][split] = Labelled(cut.mean(axis=2), labels)
        found["raw pixels"][split] = Labelled(pixel_features(images[:])[None], labels)
    return found


def probe_cifar(folder: Path, n_train: int | None) -> None:
    """Probes by layer and pooling, joined layers, few labels; the better probe stays in FOLDER."""
    model = load(folder)
    data = cifar10(model)
    found = features_of(model, data, n_train)
    best = None
    for pooling, splits in found.items():
        start_s = time.process_time()
        layers = range(len(splits["train"].features))
        result, weights, biases = probe_layers(*(splits[s] for s in SPLITS), layers=layers)
        keep(f"probe, {pooling}", dataclasses.asdict(result), start_s)
        if pooling != "raw pixels" and (
            best is None or best[0].valid_accuracy < result.valid_accuracy
        ):
            best = (result, weights, biases, pooling)
    assert best is not None
    keep_probe(model, data, folder, *best)
    for pooling in ("mean", "bands"):
        start_s = time.process_time()
        splits = found[pooling]
        joined = [
            Labelled(join_layers(splits[s].features, 4, n_joined=3)[0][None], splits[s].labels)
            for s in SPLITS
        ]
        result, _, _ = probe_layers(*joined, layers=[4])
        keep(f"probe, {pooling}, layers 3 to 5 joined", dataclasses.asdict(result), start_s)
    for count in LABELS_A_CLASS:
        for pooling, splits in found.items():
            start_s = time.process_time()
            few = evaluate_few_labels(
                splits["train"],
                splits["test"],
                layers=range(len(splits["train"].features)),
                labels_per_class=count,
                n_subsets=N_SUBSETS,
            )
            keep(f"few labels, {count}, {pooling}", dataclasses.asdict(few), start_s)


def keep_probe(
    model: PixelModel,
    data: PackedSet,
    folder: Path,
    result: Any,
    weights: Any,
    biases: Any,
    pooling: Any,
) -> None:
    """Save the chosen classifier in FOLDER."""
    assert data.classes is not None
    SavedProbe(
        weights=weights,
        biases=biases,
        layer=result.layer,
        normalised=True,
        pooling=pooling,
        strength=result.strength,
        labels=result.labels,
        classes=tuple(data.classes[label] for label in result.labels),
        model_digest=model.digest(),
        protocol=PROTOCOL.format(source=data.source),
    ).save(folder)


def measure_nats(folder: Path) -> None:
    """Nats per token over all tokens."""
    model = load(folder)
    data = cifar10(model)
    for split in ("valid", "test"):
        start_s = time.process_time()
        tokens = EncodedImages(data.images(split), model.tokenizer.encode)
        nats = token_surprise(model.network, tokens, precision="bf16").mean(axis=1)
        figures = {"nats_per_token": float(nats.mean()), "se": float(nats.std() / len(nats) ** 0.5)}
        keep(f"nats, {split}", {**figures, "n_images": len(nats)}, start_s)


def transfer(folder: Path, name: str, source: str, max_images: int | None) -> None:
    """The same probes on other labelled images, beside raw pixels at the same size."""
    model = load(folder)
    data = open_for(model, source, max_images=max_images)
    start_s = time.process_time()
    found = features_of(model, data)
    for pooling, splits in found.items():
        layers = range(len(splits["train"].features))
        result, _, _ = probe_layers(*(splits[s] for s in SPLITS), layers=layers)
        keep(f"transfer, {name}, {pooling}", dataclasses.asdict(result), start_s)


def ship(folder: Path, name: str) -> None:
    """Write the package's own folder of the model from a staged one, with its card."""
    model = load(folder)
    files = {file: (folder / file).read_bytes() for file in ("probe.json", "probe.safetensors")}
    files["README.md"] = card.card(model, name).encode()
    target = shipped.MODELS / name
    write_shipped(target, ModelParts(model.network, model.tokenizer, model.facts), files)
    print(f"{target}: {load(name).best_layer()=}")


def main(command: str, *arguments: str) -> None:
    """Run one of the commands above."""
    compute.set_threads()
    if command == "stage":
        stage(Path(arguments[0]), Path(arguments[1]))
    elif command == "probe":
        probe_cifar(Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else None)
    elif command == "features":
        model = load(Path(arguments[0]))
        stretch_of(model, cifar10(model), arguments[1], int(arguments[2]))
    elif command == "nats":
        measure_nats(Path(arguments[0]))
    elif command == "transfer":
        limit = int(arguments[3]) if len(arguments) > 3 else None
        transfer(Path(arguments[0]), arguments[1], arguments[2], limit)
    elif command == "ship":
        ship(Path(arguments[0]), arguments[1])
    else:
        raise SystemExit(f"{command}: see the head of this file")


if __name__ == "__main__":
    main(*sys.argv[1:])
