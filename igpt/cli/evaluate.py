"""`igpt evaluate`."""

import dataclasses
import json as json_format
from typing import TYPE_CHECKING, Literal

from igpt.cli.arguments import Data, Model

if TYPE_CHECKING:
    from igpt.compute import Precision
    from igpt.evaluation.likelihood import Likelihood
    from igpt.images.packed.read import PackedSet
    from igpt.images.splits import Split
    from igpt.pixelmodel import PixelModel
    from igpt.train.distributed import World


def evaluate(
    model: Model,
    data: Data,
    *,
    split: Literal["train", "valid", "test"] = "test",
    max_images: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    json: bool = False,
) -> None:
    """Likelihood of a split: nats per token over all T tokens, and bits per pixel.

    Args:
        model: a run, a model folder or a shipped name.
        data: a name (cifar10), a packed set, a folder of images, a tar, a parquet or csv file.
        split: which images; train and valid are fixed by the seed of the data.
        max_images: judge so many images at most, drawn at random; none: all.
        precision: of the matrix products; auto: bf16 where the processor has it, fp32 for figures
            to four digits.
        json: print the result as one JSON document.
    """
    from igpt import compute
    from igpt.cli.opening import check_max_images, open_for, recorded
    from igpt.loading import load
    from igpt.train.distributed import joined

    check_max_images(max_images)
    compute.set_threads()
    with joined() as world:
        loaded = load(model)
        with world.first_alone():
            packed = open_for(loaded, data)
        result = _shared_likelihood(loaded, packed, split, max_images, precision, world)
    if result is None:
        return
    name, figures = f"likelihood-{split}", dataclasses.asdict(result)
    judged = packed.at_most(max_images)
    document = recorded(model, loaded, name, figures, data=judged, split=split, precision=precision)
    if json:
        print(json_format.dumps(document))
        return
    print(f"{model} on the {split} split of {data}, {result.n_images} images")
    spread = f"± {result.nats_per_token_se:.4f} (standard error over images)"
    print(f"  {result.nats_per_token:.4f} nats per token {spread}")
    if result.bits_per_pixel is not None:
        print(f"  {result.bits_per_pixel:.4f} bits per pixel under this palette")
    if result.bits_per_dim is not None:
        print(f"  {result.bits_per_dim:.4f} bits per dimension")
    named = {"unigram": result.unigram_nats_per_token, "bigram": result.bigram_nats_per_token}
    counted = [f"{name} {nats:.4f}" for name, nats in named.items() if nats is not None]
    if counted:
        print(f"  {', '.join(counted)}")


def measure_likelihood(
    model: "PixelModel",
    data: "PackedSet",
    *,
    split: "Split",
    max_images: int | None = None,
    precision: "Precision" = "auto",
) -> "Likelihood":
    """The likelihood of a split beside unigram and bigram counts of the training split.

    Args:
        model: what is judged.
        data: images at its size.
        split: which of them.
        max_images: judge so many at most, drawn at random; the training split is counted whole.
        precision: of the matrix products.
    """
    from igpt.train.distributed import World

    found = _shared_likelihood(model, data, split, max_images, precision, World())
    assert found is not None
    return found


def _shared_likelihood(
    model: "PixelModel",
    data: "PackedSet",
    split: "Split",
    max_images: int | None,
    precision: "Precision",
    world: "World",
) -> "Likelihood | None":
    from igpt.evaluation.likelihood import likelihood
    from igpt.probing.features import EncodedImages
    from igpt.progress import Counter, ticking

    encode = model.tokenizer.encode
    images = data.at_most(max_images).images(split)
    with ticking(f"likelihood, {split}") as ticker:
        return likelihood(
            model.network,
            EncodedImages(images, encode),
            EncodedImages(data.images("train"), encode),
            tokens_per_pixel=model.network.seq_len // model.image_size**2,
            mask_prob=model.facts.mask_prob,
            precision=precision,
            world=world,
            progress=Counter(ticker, len(images), "images"),
        )
