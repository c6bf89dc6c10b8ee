"""An independent check of the shipped probe: transformers and scikit-learn alone, no igpt.

    python records/check.py cifar-10-batches-bin [--refit] [NAME]

CIFAR-10 comes from the official binary files (data_batch_1.bin to test_batch.bin, compared with
their published md5), the model and its palette from the files that ship, as transformers opens
them. What must agree with the record book within 0.3 points: the accuracy of the saved classifier
on the test images (some 6 CPU minutes at 16 x 16, an hour at 32 x 32) and, with --refit, of
scikit-learn's own logistic regression at the same strength, fitted on all 50,000 training images
(their features cost five times as much again).
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ImageGPTModel

HERE = Path(__file__).parent
MODELS = HERE.parent / "igpt" / "models"
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
BATCH_TOKENS = 25_600
BANDS = 4
TOLERANCE = 0.003


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(10,000, 32, 32, 3) uint8 and (10,000,) labels of an official file."""
    data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != MD5[path.name]:
        raise SystemExit(f"{path} is not the official file: its md5 is {found}")
    records = np.frombuffer(data, np.uint8).reshape(10_000, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(int)


def tokens_of(images: np.ndarray, clusters: np.ndarray, side: int) -> np.ndarray:
    """Means of squares of pixels, each the number of its nearest colour: (n, side²)."""
    scale = 32 // side
    reduced = images.reshape(-1, side, scale, side, scale, 3).mean(axis=(2, 4))
    pixels = np.rint(reduced).reshape(len(images), side**2, 3) / 127.5 - 1
    gaps = -2 * pixels @ clusters.T + (clusters**2).sum(axis=1)
    return np.asarray(gaps.argmin(axis=2))


@torch.inference_mode()
def features_of(
    images: np.ndarray, model: ImageGPTModel, clusters: np.ndarray, layer: int
) -> np.ndarray:
    """Means over four bands of rows and the spread of the normalised input of a block: (n, 5 D)."""
    found, side = [], math.isqrt(model.config.n_positions)
    batch, block = BATCH_TOKENS // side**2, cast(Any, model.h[layer])
    for start in range(0, len(images), batch):
        tokens = torch.from_numpy(tokens_of(images[start : start + batch], clusters, side))
        first = torch.full((len(tokens), 1), len(clusters))  # the token that starts an image
        given = torch.cat([first, tokens[:, :-1]], dim=1)
        hidden = model(given, output_hidden_states=True).hidden_states[layer]
        normed = block.ln_1(hidden)
        bands = normed.unflatten(1, (BANDS, -1)).mean(dim=2).flatten(1)
        found.append(torch.cat([bands, normed.std(dim=1, correction=0)], dim=1).numpy())
        if start % 2_000 == 0:
            print(f"features of {start} of {len(images)} images", flush=True)
    return np.concatenate(found)


def main(data: str, *rest: str) -> None:
    """Compute the figures and compare them with the book's."""
    name = next((word for word in rest if word != "--refit"), "cifar10-small")
    place = MODELS / name
    probe = json.loads((place / "probe.json").read_text())
    held = load_file(place / "probe.safetensors")
    clusters = np.array(json.loads((place / "preprocessor_config.json").read_text())["clusters"])
    model = ImageGPTModel.from_pretrained(place, dtype=torch.float32).eval()
    model.h = model.h[: probe["layer"] + 1]  # what lies above is not looked at
    sets = {name: read(Path(data) / name) for name in MD5}
    test_images, test_labels = sets.pop("test_batch.bin")
    images = np.concatenate([images for images, _ in sets.values()])
    labels = np.concatenate([labels for _, labels in sets.values()])
    test = features_of(test_images, model, clusters, probe["layer"])
    saved = float(((test @ held["weights"].T + held["biases"]).argmax(1) == test_labels).mean())
    print(f"the saved classifier: {saved:.4f}", flush=True)
    found = [saved]
    if "--refit" in rest:
        train = features_of(images, model, clusters, probe["layer"])
        fitted = make_pipeline(
            StandardScaler(), LogisticRegression(C=probe["strength"], max_iter=1000)
        ).fit(train, labels)
        own = float(fitted.score(test, test_labels))
        print(f"scikit-learn's, fitted here: {own:.4f}")
        found.append(own)
    figures = json.loads((HERE / "shipped" / name / "figures.json").read_text())
    book = figures["probe, bands"]["test_accuracy"]
    print(f"in the record book: {book:.4f}")
    if max(abs(value - book) for value in found) > TOLERANCE:
        raise SystemExit(f"they differ by more than {100 * TOLERANCE:.1f} points")


if __name__ == "__main__":
    main(*sys.argv[1:])
