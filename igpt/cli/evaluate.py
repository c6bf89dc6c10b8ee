"""`igpt evaluate`."""

from typing import Literal

from igpt.cli.outputs import Data, Model, print_json


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
    from igpt.jobs.evaluate import evaluate as measure

    compute.set_threads()
    found = measure(
        model, data, split=split, max_images=max_images, precision=precision, verbose=True
    )
    if not found:
        return
    if json:
        print_json(found)
        return
    print(f"{model} on the {split} split of {data}, {found['n_images']} images")
    spread = f"± {found['nats_per_token_se']:.4f} (standard error over images)"
    print(f"  {found['nats_per_token']:.4f} nats per token {spread}")
    if found["bits_per_pixel"] is not None:
        print(f"  {found['bits_per_pixel']:.4f} bits per pixel under this palette")
    if found["bits_per_dim"] is not None:
        print(f"  {found['bits_per_dim']:.4f} bits per dimension")
    counted = [
        f"{name} {found[f'{name}_nats_per_token']:.4f}"
        for name in ("unigram", "bigram")
        if found[f"{name}_nats_per_token"] is not None
    ]
    if counted:
        print(f"  {', '.join(counted)}")
