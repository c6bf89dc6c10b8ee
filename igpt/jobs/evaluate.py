"""Likelihood of images under a model (paper §3.4), with all ranks where there are several."""

import dataclasses
from pathlib import Path
from typing import Any

from igpt import compute
from igpt.evaluation.likelihood import likelihood
from igpt.images.packed.read import PackedSet
from igpt.images.splits import Split
from igpt.jobs.opening import check_max_images, open_for, opened, recorded
from igpt.pixelmodel import PixelModel
from igpt.probing.features import EncodedImages
from igpt.progress import Counter, quietly, ticking
from igpt.system import as_text
from igpt.train.distributed import ALONE, World, joined


def evaluate(
    model: str | Path | PixelModel,
    data: str | Path,
    /,
    *,
    split: Split = "test",
    max_images: int | None = None,
    precision: compute.Precision = "auto",
    verbose: bool = False,
) -> dict[str, Any]:
    """Likelihood of a split, as `igpt evaluate` gives it; a run keeps the figures.

    Args:
        model: what `igpt.load` takes, or a model.
        data: a name (cifar10), a packed set, a folder of images, a tar, a parquet or csv file.
        split: which images; train and valid are fixed by the seed of the data.
        max_images: judge so many images at most, drawn at random; none: all.
        precision: of the matrix products; auto: bf16 where the processor has it.
        verbose: say on standard error what the command says.

    Returns:
        What `igpt evaluate --json` prints: the fields of `igpt.evaluation.likelihood.Likelihood`
        (`nats_per_token` over all T tokens, `bits_per_pixel`, ...) and what they are about. Under
        torchrun, where every rank calls this, nothing on those after the first.

    Raises:
        UserError: there is no such model or data, or the split has no images.
    """
    max_images = check_max_images(max_images)
    with quietly(not verbose), joined() as world:
        place, loaded = opened(model)
        with world.first_alone():
            packed = open_for(loaded, as_text(data))
        figures = likelihood_of(
            loaded, packed, split=split, max_images=max_images, precision=precision, world=world
        )
        if not figures:
            return {}
        name = f"likelihood-{split}"
        return recorded(place, loaded, name, figures, data=packed, split=split, precision=precision)


def likelihood_of(
    model: PixelModel,
    data: PackedSet,
    *,
    split: Split,
    max_images: int | None = None,
    precision: compute.Precision = "auto",
    world: World = ALONE,
) -> dict[str, Any]:
    """The likelihood of a split beside unigram and bigram counts of the training split.

    Args:
        model: what is judged.
        data: images at its size.
        split: which of them.
        max_images: judge so many at most, drawn at random; the training split is counted whole.
        precision: of the matrix products.
        world: processes that share the images; only the first one gets figures.

    Returns:
        The fields of `Likelihood`; on every process but the first nothing.
    """
    data.check_has(split)
    encode = model.tokenizer.encode
    images = data.at_most(max_images).images(split)
    with ticking(f"likelihood, {split}") as ticker:
        found = likelihood(
            model.network,
            EncodedImages(images, encode),
            EncodedImages(data.images("train"), encode),
            tokens_per_pixel=model.network.seq_len // model.image_size**2,
            mask_prob=model.facts.mask_prob,
            precision=precision,
            world=world,
            progress=Counter(ticker, len(images), "images"),
        )
    return {} if found is None else dataclasses.asdict(found)
