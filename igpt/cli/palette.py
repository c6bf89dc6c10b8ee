"""`igpt palette`."""

import dataclasses
from typing import TYPE_CHECKING, Any

from igpt.cli.outputs import Out, Source, checked, print_json
from igpt.config import DataConfig

if TYPE_CHECKING:
    from igpt.tokens.palette import PaletteError

_DATA = DataConfig()


def palette(
    src: Source,
    out: Out,
    *,
    image_size: int = _DATA.image_size,
    n_colors: int = _DATA.n_colors,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Fit a colour palette to the training images and report what it loses.

    Args:
        src: a name (cifar10), a packed set, a folder of images, a tar, a parquet or csv file.
        out: the palette file to write (.npy, as the authors store theirs).
        image_size: side S that images are reduced to first, in pixels.
        n_colors: colours K in the palette.
        seed: of the k-means start, and of the validation split.
        json: print the result as one JSON document.
    """
    path = checked(out, "OUT", (".npy",))
    DataConfig(image_size=image_size, n_colors=n_colors)  # refuses what no run could use

    from igpt.images.prepare import open_data
    from igpt.progress import say
    from igpt.tokens.palette import Palette

    data = open_data(src, image_size=image_size, seed=seed)
    data.check_has("train")
    say(f"fitting {n_colors} colours to the {data.n('train')} training images of {data.source}")
    fitted = Palette.fit(data.images("train"), n_colors=n_colors, seed=seed)
    fitted.save(path)
    errors = {
        split: fitted.error(data.images(split)) for split in ("train", "valid") if data.n(split)
    }
    if json:
        about = {"palette": out, "data": data.source, "sha256": fitted.digest}
        figures = {split: _values(error) for split, error in errors.items()}
        print_json({**about, "n_colors": fitted.n_colors, **figures})
        return
    print(f"{out}: {fitted.n_colors} colours from {data.source}")
    for split, error in errors.items():
        red, green, blue = error.rms_rgb
        print(
            f"  {split}: RMS error {error.rms:.2f} of 255 levels "
            f"(red {red:.2f}, green {green:.2f}, blue {blue:.2f}), PSNR {error.psnr_db:.2f} dB, "
            f"unigram entropy {error.entropy_nats:.3f} nats a token"
        )


def _values(error: "PaletteError") -> dict[str, Any]:
    # JSON knows no infinity: a palette that loses nothing has no PSNR.
    psnr_db = error.psnr_db if error.rms else None
    return {**dataclasses.asdict(error), "psnr_db": psnr_db}
