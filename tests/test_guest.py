"""Python is a guest in its caller's process: whatever is called, the process is as it was.

`tests/test_names.py` holds the list of public names; one that is missing below fails here.
"""

import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import igpt
from igpt.pixelmodel import PixelModel
from tests.networks import pixel_model


def state_of_process():
    """All that others in this process rely on, by name."""
    return {
        "random numbers of Python": random.getstate(),
        "random numbers of numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002 - theirs,
        "random numbers of torch": torch.get_rng_state().tolist(),
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads of torch": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "warnings": list(warnings.filters),
        "errors of numpy": np.geterr(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "path": list(sys.path),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "locale": locale.setlocale(locale.LC_ALL),
        "loggers": (list(logging.root.handlers), logging.root.level),
        "bomb limit of Pillow": Image.MAX_IMAGE_PIXELS,
        "cut images of Pillow": ImageFile.LOAD_TRUNCATED_IMAGES,
        "drawing": dict(mpl.rcParams),
        "threads": {t.name for t in threading.enumerate() if not t.daemon},
        "umask": os.umask(os.umask(0o022)),
    }


SMALL = {"total_steps": 2, "batch_size": 4, "warmup_steps": 1, "compile": "off"}
MODEL = {"n_layer": 1, "n_head": 1, "n_embd": 8}


def pretrained(place, name):
    data = {"image_size": 4, "n_colors": 8}
    return igpt.pretrain(place / "photos", place / name, data=data, model=MODEL, train=SMALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labelled photographs and a model: what the calls below are given."""
    folder = tmp_path_factory.mktemp("guest")
    rng = np.random.default_rng(0)
    for inner in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (folder / "photos" / inner).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / inner / f"{i}.png")
    pixel_model().save(folder / "model")
    # Also: libraries that are imported for the first time have filters and variables of their own.
    pretrained(folder, "run")
    return folder


def images(n=2):
    return np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


CALLS = {
    "pretrain": lambda place: pretrained(place, "another"),
    "load": lambda place: igpt.load(place / "run"),
    "evaluate": lambda place: igpt.evaluate(place / "run", place / "photos"),
    "probe": lambda place: igpt.probe(place / "run", place / "photos", raw_pixels=False),
    "finetune": lambda place: igpt.finetune(
        place / "run", place / "photos", place / "tuned", total_steps=2, batch_size=4
    ),
    "Palette": lambda _place: igpt.Palette.fit(images(8), n_colors=4, seed=0),
    "sklearn": lambda place: igpt.sklearn.IGPTFeatures(place / "model").fit_transform(images()),
    "PixelModel.logits": lambda _place: pixel_model().logits(np.zeros((1, 64), np.int64)),
    "PixelModel.features": lambda _place: pixel_model().features(images()),
    "PixelModel.nats": lambda _place: pixel_model().nats(images()),
    "PixelModel.surprise": lambda _place: pixel_model().surprise(images()),
    "PixelModel.token_nats": lambda _place: pixel_model().token_nats(images()),
    "PixelModel.sample": lambda _place: pixel_model().sample(2, seed=1),
    "PixelModel.complete": lambda _place: pixel_model().complete(images(), keep_rows=0.5),
    "PixelModel.save": lambda place: pixel_model().save(place / "saved"),
}
# These compute nothing; a classifier needs a saved probe, and says so in the same words.
NOTHING_TO_DO = {"Interrupted", "UserError", "Run", "PixelModel"}


def test_every_public_function_is_called():
    assert {name for name in igpt.__all__ if name not in NOTHING_TO_DO} <= set(CALLS)
    methods = {f"PixelModel.{name}" for name in vars(PixelModel) if not name.startswith("_")}
    assert methods - {"PixelModel.classify"} <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_the_process_is_as_it_was(name, place, monkeypatch):
    monkeypatch.chdir(place)
    before = state_of_process()
    CALLS[name](place)
    after = state_of_process()
    assert [key for key in before if before[key] != after[key]] == []
