"""Take one image along the main path and print what stands at each arrow, as a Markdown table.

Usage: python docs/walk.py [RUN], after `igpt demo --train`; RUN is runs/demo unless told otherwise.
"""

import sys

import numpy as np
import torch

import igpt
from igpt.images.prepare import open_data
from igpt.images.splits import Split
from igpt.tokens.batches import BatchStream
from igpt.tokens.palette import Palette
from igpt.train.objectives import loss_count, loss_sum


def row(step: str, where: str, value: object) -> None:
    """One line of the table: shape, type and first values of an array or tensor."""
    array = value.detach().float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    kind = str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else "float"
    first = ", ".join(f"{v:.4g}" for v in array.reshape(-1)[:4])
    print(f"| {step} | `{where}` | `{tuple(array.shape)} {kind}` | {first} |")


def main() -> None:
    """Print the walk."""
    model = igpt.load(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    assert isinstance(model.tokenizer, Palette)
    large = open_data("cifar10", image_size=32)
    data = open_data("cifar10", image_size=model.image_size)
    # The split is by seed, so the first training image of the archive may be in either part.
    split: Split = "train"
    print("| step | where | shape and type | first values |")
    print("|---|---|---|---|")
    row("read", "images/decode.py", large.images(split)[0])
    image = data.images(split)[0]
    row("pack", "images/packed/read.py", image)
    row("palette", "tokens/palette.py", model.tokenizer.colors)
    tokens = model.encode(image)
    row("encode", "tokens/palette.py", tokens)
    stream = BatchStream(data.images(split), None, model.tokenizer, batch_size=16, seed=0)
    row("batch of step 0", "tokens/batches.py", stream.at(0).tokens)
    layers = list(model.network.hidden(torch.from_numpy(tokens)))
    row("layer 0", "model/gpt.py", layers[0])
    row("last layer", "model/gpt.py", layers[-1])
    logits = model.logits(tokens)
    row("logits", "model/gpt.py", logits)
    total = loss_sum(logits, torch.from_numpy(tokens), None)
    count = loss_count("ar", torch.from_numpy(tokens), None)
    row("loss sum, nats", "train/objectives.py", total)
    row("loss count, tokens", "train/objectives.py", count)
    row(f"features of layer {model.best_layer()}", "probing/features.py", model.features(image))
    print(f"\nThe probe says: {', '.join(model.classify(image))}.")


if __name__ == "__main__":
    main()
