"""`igpt prepare`."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.cli.outputs import Out, Source, print_facts, print_json
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.images.rejects import MAX_BAD

if TYPE_CHECKING:
    from igpt.images.sources.source import Part
    from igpt.tokens.palette import Palette


def prepare(
    src: Source,
    out: Out,
    *,
    image_size: int = 32,
    views: int = 0,
    upsample: bool = False,
    unlabelled: bool = False,
    channels: str | None = None,
    full_decoding: bool = False,
    keep_side: int = 0,
    seed: int = 0,
    valid_fraction: float | None = None,
    part: str = "1/1",
    workers: int = 0,
    max_bad: float = MAX_BAD,
    tokens: str | None = None,
    json: bool = False,
) -> None:
    """Decode, crop, reduce and pack images, from any source.

    Each image is taken at a shorter side of 224 pixels, its middle 224 x 224 kept and averaged down
    to the input resolution (paper §3.1); one smaller than that keeps its whole centre square. The
    same command goes on where an earlier one was stopped.

    Args:
        src: a name (cifar10, cifar100, stl10, fashion-mnist, digits), a folder of images (one
            folder a class, or none), the folder of ImageNet's official tars, a packed set, or a
            .tar, .tar.gz, .zip, .csv, .jsonl, .parquet, .arrow, .npz or .npy file; * in a file's
            name takes several. Or elsewhere: hf:owner/name[@revision][:config], https://..., s3://...
        out: folder of the packed set.
        image_size: side S of the result, in pixels.
        views: random crops stored of each training image (shorter side 256 to 384, 224 x 224).
        upsample: enlarge images that are smaller than the result instead of leaving them out.
        unlabelled: leave labels out, wherever they would come from.
        channels: of an array (.npz, .npy): those, from 0, that become red, green and blue, such as
            3,2,1, or one that becomes grey; none: 1, 3 or 4 channels are grey, RGB and RGBA.
        full_decoding: decode every JPEG in full; else at a reduced scale where that is enough.
        keep_side: also keep every image as a JPEG of this shorter side, such as 256, to be cropped
            anew in training (data.augment imagenet); 0: the originals serve while they are there.
        seed: of the validation split and the random crops.
        valid_fraction: share of the training images for validation; none: the paper's, 0.1, for
            ImageNet 0.04.
        part: prepare one part, such as 3/16; the process that finishes the last one merges them.
            Under torchrun each process prepares one.
        workers: processes that decode; 0: one a core.
        max_bad: share of images that may be left out before it stops.
        tokens: a palette (.npy) whose tokens are stored beside the images; training with this
            palette and without augmentation then need not encode them.
        json: print the result as one JSON document.
    """
    from igpt.cli.outputs import folder_to_fill
    from igpt.images.levels import parsed_channels
    from igpt.images.packed.rows import Packing
    from igpt.images.prepare import prepare as prepare_source
    from igpt.images.sources.find import open_source
    from igpt.tokens.palette import Palette

    share = _share(part)
    taken = parsed_channels(channels) if channels is not None else ()
    folder = folder_to_fill(out)
    palette = None if tokens is None else Palette.load(tokens)
    packing = Packing(
        image_size=image_size,
        views=views,
        upsample=upsample,
        reduced=not full_decoding,
        seed=seed,
        keep_side=keep_side,
    )
    start_s = time.monotonic()
    work = functools.partial(
        prepare_source,
        open_source(src, unlabelled=unlabelled, channels=taken),
        folder,
        packing=packing,
        valid_fraction=valid_fraction,
        part=share,
        workers=workers,
        max_bad=max_bad,
    )
    if (whole := _gathered(work, folder)) is None:
        return
    facts = _facts(whole, time.monotonic() - start_s)
    facts |= _completed(whole, folder, share, palette)
    if json:
        print_json(facts)
        return
    print_facts({name: fact for name, fact in facts.items() if name != "rejects"})
    _print_rejects(whole)


def _share(part: str) -> "Part":
    """What this process does: the part that was asked for, or its rank's."""
    from igpt.images.sources.source import Part
    from igpt.progress import n_ranks, own_rank

    if n_ranks() == 1:
        return Part.parse(part)
    if part != "1/1":
        raise UserError("--part is the rank under torchrun: leave it out")
    return Part(own_rank() + 1, n_ranks())


def _gathered(work: Callable[[], PackedSet], folder: Path) -> PackedSet | None:
    """Do the work; what is to be reported once all ranks have their part, on the first of them.

    Raises:
        UserError: a rank's part is empty.
    """
    from igpt.progress import n_ranks

    if n_ranks() == 1:
        return work()
    import torch

    from igpt.errors import Elsewhere
    from igpt.images.prepare import EmptyPartError
    from igpt.images.sources.source import BLOCK_IMAGES
    from igpt.train.distributed import joined

    is_empty = False
    try:
        work()
    except EmptyPartError:
        is_empty = True
    with joined() as world:  # where all have their part, the last one has merged them
        n_empty = int(world.sum(torch.tensor(int(is_empty))))
        if n_empty and not world.is_first:
            raise Elsewhere("the first rank says why")
        if n_empty:
            raise UserError(
                f"{n_empty} of {world.size} processes have no images to prepare for {folder}, as "
                f"they are read in blocks of {BLOCK_IMAGES}: start fewer"
            )
    return PackedSet.open(folder) if world.is_first else None


def _completed(
    packed: PackedSet, folder: Path, share: "Part", palette: "Palette | None"
) -> dict[str, str]:
    """Store the tokens of a whole set; of a part, say which others are missing."""
    from igpt.images.packed.merge import missing_parts
    from igpt.progress import say
    from igpt.tokens.stored import store_tokens

    if packed.folder == folder:
        return {} if palette is None else {"tokens": str(store_tokens(packed, palette))}
    missing = ", ".join(f"{i}/{share.count}" for i in missing_parts(folder, share.count))
    say(f"part {share.index}/{share.count} is done; missing: {missing}")
    return {}


def _facts(packed: PackedSet, seconds: float) -> dict[str, Any]:
    manifest = packed.manifest
    return {
        "folder": str(packed.folder),
        "source": packed.source,
        "image_size": packed.image_size,
        "train": packed.n("train"),
        "valid": packed.n("valid"),
        "test": packed.n("test"),
        "classes": None if packed.classes is None else len(packed.classes),
        "shards": len(manifest["shards"]),
        "bytes": sum(entry["n"] for entry in manifest["shards"]) * 3 * packed.image_size**2,
        "n_read": manifest["n_read"],
        "n_rejected": sum(manifest["rejects"].values()),
        "rejects": manifest["rejects"],
        "digest": packed.digest,
        "seconds": round(seconds, 3),
        "images_per_s": round(manifest["n_read"] / max(seconds, 1e-9), 1),
    }


def _print_rejects(packed: PackedSet) -> None:
    rejects = packed.manifest["rejects"]
    if not rejects:
        return
    print(f"\nleft out, by reason ({packed.folder / 'rejects.csv'} names each):")
    for reason, n in sorted(rejects.items(), key=lambda item: -item[1]):
        print(f"{n:>9}  {reason}")
