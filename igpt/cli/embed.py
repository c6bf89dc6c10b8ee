"""`igpt embed`."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.cli.arguments import Model
from igpt.cli.images import FileImages, Images, image_files
from igpt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

ENDINGS = (".npz", ".parquet")


def embed(
    model: Model,
    images: Images,
    *,
    out: str = "features.npz",
    layer: int | None = None,
    raw_residual: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Features of images to a file: the path, the label and the vector of each.

    The label is the name of the folder that an image lies in.

    Args:
        model: a run, a model folder or a shipped name.
        images: image files, or folders of them with all folders below.
        out: file to write, .npz (arrays path, label, vector) or .parquet (columns of these names).
        layer: from 0 to L; none: the saved probe's, or the middle one where none is saved.
        raw_residual: pool the residual stream itself in place of the paper's normalised features.
        force: replace a file that exists.
        json: print what was written as one JSON document.
    """
    path = _checked(out, force=force)
    files = image_files(images)

    from igpt import compute
    from igpt.evaluate.features import EncodedImages, extract_features
    from igpt.pixelmodel import load
    from igpt.progress import ticking

    compute.set_threads()
    loaded = load(model)
    chosen = loaded.best_layer() if layer is None else layer
    done = 0
    with ticking("features") as ticker:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            ticker.update(done, len(files), "images")

        vectors = extract_features(
            loaded.network,
            EncodedImages(FileImages(files, loaded.image_size), loaded.tokenizer.encode),
            layers=[chosen],
            normalised=not raw_residual,
            mask_prob=loaded.facts.mask_prob,
            keep=False,
            progress=advance,
        )[0]
    _write(
        path, [str(file) for file in files], [file.resolve().parent.name for file in files], vectors
    )
    said = {"out": str(path), "images": len(files), "layer": chosen, "width": vectors.shape[1]}
    if json:
        print(json_format.dumps(said))
    else:
        print(f"{path}: {len(files)} vectors of {vectors.shape[1]} numbers, layer {chosen}")


def _checked(out: str, *, force: bool) -> Path:
    path = Path(out)
    if path.suffix not in ENDINGS:
        raise UserError(f"--out {out}: its ending must be {' or '.join(ENDINGS)}")
    if path.is_dir() or (path.exists() and not force):
        raise UserError(f"{out} exists: choose another place, or add --force")
    return path


def _write(path: Path, paths: list[str], labels: list[str], vectors: "np.ndarray") -> None:
    """One row an image, in one of the two forms."""
    import numpy as np

    from igpt.runs import writing

    with writing(path) as part:
        if path.suffix == ".npz":
            with part.open("wb") as file:
                np.savez(file, path=np.array(paths), label=np.array(labels), vector=vectors)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        pq.write_table(pa.table({"path": paths, "label": labels, "vector": column}), part)
