"""`igpt sample`."""

import dataclasses
import time
from typing import Literal

from igpt.cli.outputs import Model, Outputs, watch
from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.model import native

DEFAULT = SampleConfig()
MAX_IMAGES = 4096


def sample(
    model: Model,
    *,
    n: int = 64,
    seed: int = 0,
    temperature: float = DEFAULT.temperature,
    top_k: int | None = DEFAULT.top_k,
    top_p: float | None = DEFAULT.top_p,
    out: str = "samples.png",
    gif: str | None = None,
    tokens: str | None = None,
    enlarge: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    force: bool = False,
    json: bool = False,
) -> None:
    """Draw new images, pixel by pixel.

    Args:
        model: a run, a model folder or a shipped name, trained with the ar objective.
        n: how many.
        seed: the same seed gives the same images, alone or together.
        temperature: divides the logits; 1 is the paper's, 0 always takes the likeliest colour.
        top_k: draw among the k likeliest colours only.
        top_p: draw among the likeliest colours that hold this share of the probability.
        out: picture to write, .png.
        gif: animation of the drawing to write, .gif or .webp.
        tokens: tokens to write, .npz.
        enlarge: every pixel becomes this many a side; none: as many as make an image about 96.
        precision: type of the matrix products; auto: bf16 where the processor has it.
        force: replace files that exist.
        json: print the result as one JSON document.
    """
    outputs = Outputs.checked(out=out, gif=gif, tokens=tokens, force=force)
    config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    if n > MAX_IMAGES:
        raise UserError(f"--n is {n}: at most {MAX_IMAGES} fit into one picture")
    if enlarge is not None and not 1 <= enlarge <= 64:
        raise UserError(f"--enlarge is {enlarge}: choose from 1 to 64")

    native.build_ahead("decode")
    from igpt import compute
    from igpt.generate.sample import sampling
    from igpt.images.grid import tile
    from igpt.loading import load
    from igpt.train.distributed import gathered, joined

    compute.set_threads()
    with joined() as world:
        loaded = load(model)
        enlarge = enlarge or outputs.enlargement(n, loaded.image_size)
        outputs.check_size(n * (loaded.image_size * enlarge) ** 2)
        if 1 < world.size > n:
            raise UserError(f"--n is {n}: {world.size} processes need at least an image each")
        start_s = time.monotonic()
        own = world.slots(n)
        steps = sampling(
            loaded.network,
            own.stop - own.start,
            seed=seed,
            first=own.start,
            config=config,
            precision=precision,
        )
        last, looks = watch(steps, loaded.decode, label="sample", record=gif is not None)
        drawn = gathered(last.tokens, world)
        looks = [gathered(images, world) for images in looks]
    if not world.is_first:
        return
    seconds = time.monotonic() - start_s
    outputs.write(
        tile(loaded.decode(drawn), enlarge=enlarge),
        [tile(images, enlarge=enlarge) for images in looks],
        tokens=drawn,
    )
    facts = {"model": model, "n": n, "seed": seed, **dataclasses.asdict(config)}
    outputs.report({**facts, "seconds": round(seconds, 3)}, json=json)
