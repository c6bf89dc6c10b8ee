"""What each difference to the paper changes on a small set: the column of docs/paper.md.

    nice -n 19 python records/differences.py FOLDER [NAME ...]

CIFAR-10 at 8 x 8 pixels and 64 colours, a network of 32 channels and 3 layers, three seeds; every
row trains both ways from the same seed and writes the differences, ours less the paper's, to
differences.json. FOLDER keeps the runs, so that the same command goes on where it was stopped. It
says whether a difference is large at this size, and nothing of the paper's.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import igpt
from igpt import system
from igpt.files import write_json
from igpt.images.packed.rows import Packing
from igpt.images.prepare import open_data, prepare
from igpt.images.sources.find import open_source

OUT = Path(__file__).parent / "differences.json"
SEEDS = (0, 1, 2)
SIDE, LARGE = 8, 12
N_LABELLED = 1_000
N_PICTURES = 6_000
TRAIN = {
    "total_steps": 1_000,
    "batch_size": 64,
    "micro_batch": 64,
    "valid_every": 1_000,
    "checkpoint_every": 1_000,
    "compile": "off",
    "precision": "fp32",
    "warmup_steps": 50,
}
TUNE = {
    "total_steps": 400,
    "batch_size": 64,
    "micro_batch": 64,
    "valid_every": 50,
    "compile": "off",
    "precision": "fp32",
}
RATES = (0.003, 0.001, 0.0003, 0.0001)


class Trials:
    """Runs below one folder, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pretrained(self, name: str, seed: int, data: str = "cifar10", **changed: Any) -> Path:
        """A run, trained to its end."""
        run = self.folder / f"{name}-{seed}"
        side, augment = changed.pop("image_size", SIDE), changed.pop("augment", "none")
        igpt.pretrain(
            data,
            run,
            data={"image_size": side, "n_colors": 64, "augment": augment},
            model={"n_layer": 3, "n_head": 2, "n_embd": 32},
            train={**TRAIN, **changed},
            seed=seed,
            resume=True,
        )
        return run

    def nats(self, run: Path) -> float:
        """Test loss in nats a token, in float32."""
        found = igpt.evaluate(run, "cifar10", max_images=2_000, precision="fp32")
        return float(found["nats_per_token"])

    def accuracy(self, name: str, run: Path, seed: int, **changed: Any) -> float:
        """Test accuracy in percent after fine-tuning on few labels."""
        rates, side = changed.pop("rates", ()), changed.pop("image_size", None)
        tuned = igpt.finetune(
            run,
            "cifar10",
            self.folder / f"tuned-{name}-{seed}",
            rates=rates,
            image_size=side,
            max_images=N_LABELLED,
            resume=True,
            **{**TUNE, **changed},
            seed=seed,
        )
        return 100 * float(tuned.result["test_accuracy"])

    def pictures(self) -> Path:
        """Part of CIFAR-10 as files, which can be cropped anew."""
        folder = self.folder / "pictures"
        images = open_data("cifar10", image_size=32).images("train")[:N_PICTURES]
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            if not (path := folder / f"{i:05}.png").exists():
                Image.fromarray(image).save(path)
        return folder

    def packed(self, views: int) -> str:
        """These, packed."""
        folder = self.folder / f"packed-{views}"
        if not (folder / "manifest.json").exists():
            packing = Packing(image_size=SIDE, views=views)
            prepare(open_source(str(self.pictures())), folder, packing=packing)
        return str(folder)


Differ = Callable[[Trials, int], float]


def learned(**changed: Any) -> Differ:
    """Test loss of the default less that of a run with something changed."""

    def differ(trials: Trials, seed: int) -> float:
        other = trials.pretrained("-".join(changed), seed, **changed)
        return trials.nats(trials.pretrained("base", seed)) - trials.nats(other)

    return differ


def tuned(**changed: Any) -> Differ:
    """Accuracy of the default less that of a fine-tuning with something changed."""

    def differ(trials: Trials, seed: int) -> float:
        run = trials.pretrained("base", seed)
        other = trials.accuracy("-".join(changed), run, seed, **changed)
        return trials.accuracy("base", run, seed) - other

    return differ


def views(trials: Trials, seed: int) -> float:
    """Four crops an image that are kept, less new ones in every epoch."""
    ours = trials.pretrained("views", seed, data=trials.packed(4))
    paper = trials.pretrained("live", seed, data=trials.packed(0), augment="imagenet")
    return trials.nats(ours) - trials.nats(paper)


def positions(trials: Trials, seed: int) -> float:
    """Fine-tuned at a larger size from the smaller one, less pre-trained there."""
    large = trials.pretrained("large", seed, image_size=LARGE)
    paper = trials.accuracy("large", large, seed)
    run = trials.pretrained("base", seed)
    return trials.accuracy("resampled", run, seed, image_size=LARGE) - paper


ROWS: dict[str, tuple[str, Differ]] = {
    "clipping": ("nats a token", learned(grad_clip_norm=0.0)),
    "views": ("nats a token", views),
    "tuned-clipping": ("points", tuned(grad_clip_norm=0.0)),
    "folding": ("points", tuned(fold_validation="on")),
    "patience": ("points", tuned(patience=1_000_000)),
    "rate": ("points", tuned(rates=RATES)),
    "positions": ("points", positions),
    "precision": ("nats a token, of float32 less bfloat16", learned(precision="bf16")),
}


def main() -> None:
    """Run what was named and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ROWS))
    asked = parser.parse_args()
    trials = Trials(asked.folder)
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in asked.names or ROWS:
        unit, differ = ROWS[name]
        values = [round(differ(trials, seed), 4) for seed in SEEDS]
        found[name] = {
            "unit": unit,
            "ours_less_the_papers": values,
            "mean": round(statistics.mean(values), 4),
            "spread": round(statistics.stdev(values), 4),
            "seeds": list(SEEDS),
            "machine": system.processor_name(),
        }
        write_json(OUT, found)
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
