"""What needs no trained Transformer: simple models of the same tokens, and label-free rivals.

    python records/rivals.py PALETTE.npy [AUTHORS.npy]

Writes `rivals.json`, a part at a time. The probes look at CIFAR-10's test split once, with layer
and strength chosen on validation, as for the model itself.
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from igpt import compute
from igpt.evaluate.features import EncodedImages
from igpt.evaluate.kmeans_features import KMeansConfig
from igpt.evaluate.likelihood import Counts, gzip_nats_per_token
from igpt.evaluate.pixelcnn import PixelCNNConfig, pixelcnn_nats
from igpt.evaluate.probing import probe_kmeans, probe_pixels
from igpt.images.grid import to_png_bytes
from igpt.images.prepare import open_data
from igpt.runs import write_json
from igpt.tokens.palette import Palette

RESULTS = Path(__file__).with_name("rivals.json")
IMAGE_SIZE = 16
N_PNG = 2000


def simple_nats(data: Any, palette: Palette) -> dict[str, float]:
    """Nats per token of the test split by models that only count, under one palette."""
    tokens = {name: EncodedImages(data.images(name), palette.encode) for name in ("train", "test")}
    counts = Counts.of(tokens["train"], n_colors=palette.n_colors, stride=1)
    return {
        "unigram": counts.unigram_nats(tokens["test"]),
        "bigram": counts.bigram_nats(tokens["test"]),
        "gzip": gzip_nats_per_token(tokens["test"]),
    }


def png_nats(data: Any, palette: Palette) -> float:
    """Nats a pixel of PNG files of the same reduced colours, headers left out."""
    images = palette.decode(palette.encode(data.images("test")[:N_PNG]))
    empty = len(to_png_bytes(np.zeros((1, 1, 3), np.uint8)))
    n_bytes = sum(len(to_png_bytes(image)) - empty for image in images)
    return 8 * n_bytes * math.log(2) / (N_PNG * IMAGE_SIZE**2)


def main(palettes: list[str]) -> None:
    """Measure everything, writing after each part."""
    compute.set_threads()
    data = open_data("cifar10", image_size=IMAGE_SIZE, seed=0, valid_fraction=0.1)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}

    def keep(name: str, figures: dict[str, Any], start_s: float) -> None:
        found[name] = {**figures, "cpu_s": round(time.process_time() - start_s, 1)}
        write_json(RESULTS, found)
        print(name, json.dumps(found[name]), flush=True)

    for name, file in zip(("ours", "authors"), palettes, strict=False):
        start_s = time.process_time()
        palette = Palette.load(Path(file))
        figures = {**simple_nats(data, palette), "png": png_nats(data, palette)}
        keep(f"nats-{name}", {**figures, "sha256": palette.digest}, start_s)
    start_s = time.process_time()
    keep("raw-pixels", probe_pixels(data), start_s)
    for n_centers in (100, 400):
        start_s = time.process_time()
        config = KMeansConfig(n_centers=n_centers)
        keep(f"kmeans-{n_centers}", probe_kmeans(data, config), start_s)
    start_s = time.process_time()
    palette = Palette.load(Path(palettes[0]))
    train, test = (palette.encode(data.images(name)[:]) for name in ("train", "test"))
    config = PixelCNNConfig()
    nats = pixelcnn_nats(train, test[:N_PNG], n_colors=palette.n_colors, config=config)
    keep("pixelcnn", {"nats_per_token": nats, **dataclasses.asdict(config)}, start_s)


if __name__ == "__main__":
    main(sys.argv[1:])
