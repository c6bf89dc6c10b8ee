"""What a run trains on: one set of images, or several mixed, each with its own random changes."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

from igpt.config import Augment, RunConfig
from igpt.errors import UserError
from igpt.images.live import LiveImages, open_live
from igpt.images.packed.read import PackedSet
from igpt.images.prepare import open_data
from igpt.images.workers import n_workers
from igpt.progress import say
from igpt.tokens.batches import BatchStream, Source
from igpt.tokens.order import Mixture
from igpt.tokens.palette import Palette
from igpt.tokens.stored import stored_tokens
from igpt.tokens.tokenizer import ImageArray, Tokenizer

Mixed = tuple[float, Augment, str]
"""Weight, random changes and DATA of a set that is mixed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """One set of images, and its part in a mixture."""

    packed: PackedSet
    augment: Augment
    """Random changes, drawn anew each time an image comes."""
    weight: float = 1
    """Its share of the batches, relative to the other sets' weights."""
    data: str | None = None
    """What the command line calls DATA; none: the packed set's folder."""

    def facts(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, and where it was found."""
        own = {"digest": self.packed.digest, "weight": self.weight, "augment": self.augment}
        return {**own, "data": self.data or str(self.packed.folder)}


def open_sets(data: str, mixed: Sequence[Mixed], config: RunConfig) -> list[Ingredient]:
    """DATA and what is mixed in, prepared where needed.

    Args:
        data: what the command line calls DATA.
        mixed: weight, augmentation and DATA of each further set.
        config: of the run.

    Raises:
        UserError: one cannot be read, has another validation share, or no image to train on.
    """
    sets = []
    for weight, augment, name in ((1.0, config.data.augment, data), *mixed):
        packed = open_data(
            name,
            image_size=config.data.image_size,
            seed=config.seed,
            valid_fraction=config.data.valid_fraction,
        )
        packed.check_has("train")
        sets.append(Ingredient(packed=packed, augment=augment, weight=weight, data=name))
    asked, held = config.data.valid_fraction, sets[0].packed.valid_fraction
    if asked is not None and asked != held:
        raise UserError(
            f"{data} was prepared with a validation share of {held}, not {asked}: drop "
            "--data.valid-fraction, or prepare it again with --valid-fraction"
        )
    return sets


def parse_mix(text: str) -> Mixed:
    """`0.5:none:web.tar` is half as many images as DATA has, from web.tar, left as they are.

    Raises:
        UserError: it is not of this form.
    """
    weight, _, rest = text.partition(":")
    augment, _, data = rest.partition(":")
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf") or augment not in get_args(Augment) or not data:
        raise UserError(
            f"--mix {text} is not a set to mix in: write WEIGHT:AUGMENT:DATA, such as "
            f"0.5:none:web.tar, with one of {', '.join(get_args(Augment))} in the middle"
        )
    return number, augment, data  # type: ignore[return-value]  # checked above


def fitted_palette(config: RunConfig, ingredients: Sequence[Ingredient]) -> Palette:
    """A palette of the training images, each set counting by its weight in the mixture."""
    say(f"fitting a palette of {config.data.n_colors} colours on the training split")
    if len(ingredients) == 1:
        images = ingredients[0].packed.images("train")
        return Palette.fit(images, n_colors=config.data.n_colors, seed=config.seed)
    from igpt.tokens.fit import fit_mixed

    sets = [(ingredient.packed.images("train"), ingredient.weight) for ingredient in ingredients]
    return Palette(fit_mixed(sets, config.data.n_colors, seed=config.seed))


def epoch_images(config: RunConfig, ingredients: Sequence[Ingredient]) -> int:
    """Images drawn, from all sets together, while the first one comes once."""
    first = ingredients[0]
    share = first.weight / sum(ingredient.weight for ingredient in ingredients)
    return round(
        len(first.packed.trained_rows(fold_validation=config.data.fold_validation)) / share
    )


@contextmanager
def originals(
    config: RunConfig, ingredients: Sequence[Ingredient], *, workers: int = 0
) -> Iterator[list[LiveImages | None]]:
    """What decodes anew those sets that ask for it; its processes end with the block.

    Entered before a run is created, so that what cannot be used so leaves no run behind.

    Args:
        config: of the run.
        ingredients: DATA, and what is mixed in.
        workers: processes of this rank; 0: its share of the cores.

    Raises:
        UserError: a set has no originals, or the weights cannot be mixed.
    """
    Mixture([ingredient.weight for ingredient in ingredients])
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = n_workers(workers) if workers else max(1, n_workers(0) // ranks_here)
    with ExitStack() as held:
        live: list[LiveImages | None] = []
        for ingredient in ingredients:
            packed, opened = ingredient.packed, None
            if _holds_crops(ingredient):
                n = packed.manifest["views"]
                say(f"{packed.folder} holds {n} random crops of each image: these are trained on")
            elif ingredient.augment == "imagenet":
                rows = packed.trained_rows(fold_validation=config.data.fold_validation)
                opened = held.enter_context(open_live(packed, rows, workers=workers))
            live.append(opened)
        yield live


def training_stream(
    config: RunConfig,
    ingredients: Sequence[Ingredient],
    tokenizer: Tokenizer,
    live: Sequence[LiveImages | None],
) -> BatchStream:
    """The batches of a run.

    Args:
        config: of the run.
        ingredients: DATA, and what is mixed in.
        tokenizer: colours to tokens.
        live: of each, from `originals`.

    Raises:
        UserError: a set cannot be used so.
    """
    sources = []
    for number, (ingredient, opened) in enumerate(zip(ingredients, live, strict=True)):
        if _holds_crops(ingredient):
            ingredient = dataclasses.replace(ingredient, augment="none")
        source = Source(
            images=opened or _kept(config, ingredient, tokenizer),
            augment=ingredient.augment,
            weight=ingredient.weight,
            name=f"mixed-{number}" if number else "train",
        )
        sources.append(source)
    return BatchStream.mixed(
        sources, tokenizer, batch_size=config.train.batch_size, seed=config.seed
    )


def _holds_crops(ingredient: Ingredient) -> bool:
    """Whether the random crops asked for were stored when the set was prepared."""
    return ingredient.augment == "imagenet" and bool(ingredient.packed.manifest["views"])


def _kept(config: RunConfig, ingredient: Ingredient, tokenizer: Tokenizer) -> ImageArray:
    """Packed images, or their tokens where these are stored and nothing changes the images."""
    packed = ingredient.packed
    rows = packed.trained_rows(fold_validation=config.data.fold_validation)
    stored = None
    if ingredient.augment == "none":
        stored = stored_tokens(packed, tokenizer, rows)
    return packed.images_at(rows) if stored is None else stored
