"""Two goals of time for sets of any size.

    python benchmarks/shares.py ranks|large [--images N] [--rounds R]

`ranks`: `igpt evaluate` and `igpt embed` by two processes of one thread against one process of one
thread. Each command is run on N and on N / 8 images; the difference leaves out what starting takes.
`large`: `probe --large` against extracting the features of all layers once, in one process.
Generated images (16 x 16, a class is a hue), the model that ships. Prints a line a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

N_CLASSES, SIDE = 10, 16


def pictures(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, S, S, 3) uint8 of noise around a colour, and (n,) classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N_CLASSES, n)
    hues = np.random.default_rng(0).integers(60, 200, (N_CLASSES, 3))
    noise = rng.normal(0, 50, (n, SIDE, SIDE, 3))
    return np.clip(hues[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


def seconds(words: list[str], ranks: int, folder: Path) -> float:
    """Of a command by so many processes of one thread each."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launcher += ["-m", "--"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "IGPT_CACHE": str(folder / "cache")}
    began = time.monotonic()
    subprocess.run(
        [*launcher, "igpt", *words], env=env, check=True, capture_output=True, cwd=folder
    )
    return time.monotonic() - began


def compare_ranks(n: int, rounds: int, folder: Path) -> None:
    """Print how many times faster two processes are."""
    images, labels = pictures(n, 1)
    few = n // 8
    for count, name in ((n, "many"), (few, "few")):
        np.savez(
            folder / f"{name}.npz",
            x_train=images[:64],
            y_train=labels[:64],
            x_test=images[:count],
            y_test=labels[:count],
        )
        (folder / name).mkdir()
        for i, image in enumerate(images[:count]):
            Image.fromarray(image).save(folder / name / f"{i:05d}.png")
    model = "cifar10-small"
    commands: dict[str, Callable[[str, str], list[str]]] = {
        "evaluate": lambda name, _: ["evaluate", model, f"{name}.npz", "--json"],
        "embed": lambda name, out: ["embed", model, name, "--out", out, "--force", "--json"],
    }
    for command, words in commands.items():
        found = []
        for _ in range(rounds):
            spans = {
                ranks: seconds(words("many", f"{ranks}.npz"), ranks, folder)
                - seconds(words("few", f"{ranks}.npz"), ranks, folder)
                for ranks in (1, 2)
            }
            found.append(spans[1] / spans[2])
            print(json.dumps({"command": command, **spans, "times": found[-1]}), flush=True)
        print(f"{command}: {statistics.median(found):.2f} x, {min(found):.2f} to {max(found):.2f}")


def compare_large(n: int, rounds: int, folder: Path) -> None:
    """Print how much longer than extraction the large probe takes."""
    os.environ["IGPT_CACHE"] = str(folder / "cache")
    import igpt
    from igpt import compute
    from igpt.images.prepare import open_data
    from igpt.images.splits import SPLITS
    from igpt.probing.exact import Seen
    from igpt.probing.features import EncodedImages, stream_features
    from igpt.probing.large import probe_large
    from igpt.probing.solve import Solver

    compute.set_threads()
    images, labels = pictures(n, 1)
    tests = n // 6
    np.savez(
        folder / "all.npz",
        x_train=images[tests:],
        y_train=labels[tests:],
        x_test=images[:tests],
        y_test=labels[:tests],
    )
    model = igpt.load("cifar10-small")
    data = open_data(str(folder / "all.npz"), image_size=model.image_size)
    seen: Seen = {"normalised": True, "pooling": "mean", "precision": "auto"}
    config = model.network.config
    found = []
    for _ in range(rounds):
        began = time.monotonic()
        for split in SPLITS:
            shape = (config.n_layer + 1, data.n(split), config.n_embd)
            held = np.lib.format.open_memmap(folder / "held.npy", "w+", np.float16, shape)
            tokens = EncodedImages(data.images(split), model.tokenizer.encode)
            stream_features(held, model.network, tokens, **seen)
        alone = time.monotonic() - began
        began = time.monotonic()
        # The share of the training images that 20,000 are of 50,000.
        figures = probe_large(
            model,
            data,
            seen=seen,
            layer_images=data.n("train") * 2 // 5,
            solver=Solver(),
            raw_pixels=False,
            save=False,
        )
        whole = time.monotonic() - began
        found.append(whole / alone)
        told = {"extraction_s": alone, "large_s": whole, "times": found[-1]}
        print(json.dumps({**told, "layer": figures["layer"]}), flush=True)
    print(f"large: {statistics.median(found):.2f} x, {min(found):.2f} to {max(found):.2f}")


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("ranks", "large"))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shares-") as scratch:
        work = compare_ranks if asked.what == "ranks" else compare_large
        work(asked.images, asked.rounds, Path(scratch))


if __name__ == "__main__":
    main()
