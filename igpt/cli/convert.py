"""`igpt convert`."""

from typing import Literal

from igpt.cli.outputs import Model, Out, empty_folder


def convert(
    model: Model,
    out: Out,
    *,
    to: Literal["igpt", "transformers", "transformers-classifier", "onnx"] = "igpt",
    layer: int | None = None,
    palette: str | None = None,
) -> None:
    """Rewrite a model in another format, and prove it by reading it back.

    Args:
        model: a run, a model folder, a transformers folder, hf:owner/name, or a TensorFlow
            checkpoint of the authors': its folder, its prefix (model.ckpt-1000000) or any of its
            files.
        out: folder to write, new or empty.
        to: igpt: a model folder; transformers: for ImageGPTForCausalImageModeling;
            transformers-classifier: a fine-tuned model, for ImageGPTForImageClassification, which
            must be fed [sos, tokens[:-1]] to give the same scores; onnx: the feature extractor and
            one step of the sampler for ONNX runtimes (extra `onnx`).
        layer: onnx only, of the features; none: the saved probe's, or the middle one.
        palette: the colours of a TensorFlow checkpoint; none: kmeans_centers.npy beside it.
    """
    folder = empty_folder(out)

    from igpt.formats.transformers import write_transformers
    from igpt.loading import load

    loaded = load(model, palette=palette)
    if to == "igpt":
        loaded.save(folder)
    elif to == "onnx":
        from igpt.formats.onnx import write_onnx

        write_onnx(loaded, folder, layer=layer)
    else:
        write_transformers(loaded, folder, classes=to == "transformers-classifier")
    print(out)
