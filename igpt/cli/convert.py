"""`igpt convert`."""

from pathlib import Path
from typing import Literal

from igpt.cli.arguments import Model, Out


def convert(
    model: Model,
    out: Out,
    *,
    to: Literal["igpt", "transformers", "transformers-classifier"] = "igpt",
    palette: str | None = None,
) -> None:
    """Rewrite a model in another format, and prove it by reading it back.

    Args:
        model: a run, a model folder, a transformers folder, a Hub id, or the prefix or .index file
            of a TensorFlow checkpoint of the authors' (model.ckpt-1000000).
        out: folder to write.
        to: igpt: a model folder; transformers: for ImageGPTForCausalImageModeling;
            transformers-classifier: a fine-tuned model, for ImageGPTForImageClassification, which
            must be fed [sos, tokens[:-1]] to give the same scores.
        palette: the authors' kmeans_centers.npy, which their TensorFlow checkpoints need.
    """
    from igpt.interop.openai import is_checkpoint, read_openai
    from igpt.interop.transformers import write_transformers
    from igpt.pixelmodel import load

    loaded = read_openai(model, palette) if is_checkpoint(model) else load(model)
    if to == "igpt":
        loaded.save(out)
    else:
        write_transformers(loaded, Path(out), classes=to == "transformers-classifier")
    print(out)
