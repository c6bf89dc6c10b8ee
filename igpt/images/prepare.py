"""Preparing: any source to a packed set, decoded in parallel, restartable, in parts."""

import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from igpt import caches, system
from igpt.errors import Interrupted, UserError
from igpt.files import FolderLock, cache_folder, check_room
from igpt.images.packed.format import is_packed
from igpt.images.packed.merge import merge_parts, missing_parts, part_folder
from igpt.images.packed.read import PackedSet
from igpt.images.packed.rows import Packed, Packing, fingerprint, pack_block
from igpt.images.packed.write import SHARD_BYTES, PackWriter, Progress, check_target
from igpt.images.rejects import MAX_BAD, allowed, check_max_bad, check_rejects, in_words, n_lost
from igpt.images.sources import remote
from igpt.images.sources.find import NAMED, files_of, open_source, unknown_data
from igpt.images.sources.folders import walk_folders
from igpt.images.sources.source import BLOCK_IMAGES, WHOLE, Block, Part, Source
from igpt.images.workers import n_workers, worker_pool
from igpt.progress import say, ticking
from igpt.system import at_home

COMMIT_EVERY_S = 5.0
# Starting processes takes about as long as decoding this many photographs; forking, a tenth of it.
FEW_IMAGES = 1000


def open_data(
    data: str,
    *,
    image_size: int,
    seed: int = 0,
    valid_fraction: float | None = None,
    max_bad: float | None = None,
) -> PackedSet:
    """What the command line calls DATA, as a packed set; prepared into the cache where needed.

    Args:
        data: a name (cifar10), a packed set, a folder of images, a tar, a parquet or csv file.
        image_size: side S in pixels.
        seed: of the validation split, where this call prepares the set.
        valid_fraction: its share of the training images; None: the paper's for this source.
        max_bad: share of images that may be left out, where DATA is no packed set; None: what
            `rejects.allow` said.

    Returns:
        The set. A packed set given by path keeps the split it was prepared with.

    Raises:
        UserError: there is no such data, or it cannot be had at this size.
    """
    max_bad = allowed() if max_bad is None else max_bad
    check_max_bad(max_bad)
    path = at_home(data)
    if is_packed(path):
        packed = PackedSet.open(path)
        if packed.image_size == image_size:
            return packed
        if packed.image_size < image_size:
            raise UserError(
                f"{data} is packed at {packed.image_size} pixels, too small for "
                f"data.image_size {image_size}: choose at most {packed.image_size}"
            )
    folder = cache_folder() / "packed" / f"{_cache_name(data, path)}-{image_size}"
    if not is_packed(folder):
        with FolderLock(folder, wait=True):  # ranks of one run all come here at once
            if not is_packed(folder):
                packing = Packing(image_size=image_size)
                _prepare(open_source(data), folder, packing=packing, max_bad=max_bad)
    caches.used(folder)
    packed = PackedSet.open(folder)
    _say_left_out(packed, max_bad)
    return packed.with_split(
        seed, packed.valid_fraction if valid_fraction is None else valid_fraction
    )


def _say_left_out(packed: PackedSet, max_bad: float) -> None:
    """What a set in the cache lacks, each time it is used."""
    reasons, n_read = packed.manifest["rejects"], packed.manifest["n_read"]
    listed = packed.folder / "rejects.csv"
    check_rejects(reasons, n_read=n_read, n_images=n_read, max_bad=max_bad, listed=str(listed))
    if lost := n_lost(reasons):
        say(f"{lost} of {n_read} images are left out ({in_words(reasons)}): {listed} names each")


def _cache_name(data: str, path: Path) -> str:
    """A name that changes when the files do: of a folder or file, with their sizes and times."""
    if data in NAMED:
        return data
    if remote.is_remote(data):
        return remote.mirror(data).key
    if path.is_dir():
        walk = walk_folders(path)
        files: Iterable[Path] = (path / inner / name for inner, names in walk for name in names)
    elif not (files := files_of(path)):
        raise unknown_data(data)
    state = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=8)
    for file in files:
        try:
            stat = file.stat()
            state.update(os.fsencode(file) + f"/{stat.st_size}/{stat.st_mtime_ns}".encode())
        except OSError:  # such as a link to nothing, which is left out later
            state.update(os.fsencode(file))
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in path.absolute().name)
    return f"{stem[:60]}-{state.hexdigest()}"


def prepare(
    source: Source,
    out: Path,
    *,
    packing: Packing,
    valid_fraction: float | None = None,
    part: Part = WHOLE,
    workers: int = 0,
    max_bad: float = MAX_BAD,
    shard_bytes: int = SHARD_BYTES,
) -> PackedSet:
    """Prepare a source, or go on with a preparation that was cut off.

    Args:
        source: what to read.
        out: folder of the packed set to be. A part has a folder of its own in it; the process
            that finishes the last part puts them together.
        packing: what is made of every image.
        valid_fraction: share for validation; None: the source's own.
        part: the share of this process.
        workers: processes; 0: one a core.
        max_bad: share of images that may be left out.
        shard_bytes: most bytes of images in a shard.

    Returns:
        The whole set; or this part, while others are missing (`missing_parts`).

    Raises:
        UserError: too many images cannot be used, or `out` cannot be written or holds another set.
        Interrupted: Ctrl-C; what was done is kept.
    """
    if valid_fraction is not None and not 0 < valid_fraction < 1:
        raise UserError(f"the share for validation is {valid_fraction}: choose between 0 and 1")
    check_max_bad(max_bad)
    n_workers(workers)  # refuses a number below 0
    target = out if part == WHOLE else part_folder(out, part)
    if target == out or not is_packed(target):
        check_target(target)
        if is_packed(out):
            check_target(out)
        if not target.exists():  # one that is gone on with was looked at when it began
            n_images = max(0, source.n_images) // part.count
            n_bytes = 3 * packing.image_size**2 * max(1, packing.views) * n_images
            check_room(target, n_bytes, f"{n_images:,} images")
        with FolderLock(target):
            _prepare(
                source,
                target,
                packing=packing,
                valid_fraction=valid_fraction,
                part=part,
                workers=workers,
                max_bad=max_bad,
                shard_bytes=shard_bytes,
            )
    if target != out and not missing_parts(out, part.count):
        merge_parts(out, part.count)
        target = out
    return PackedSet.open(target)


class EmptyPartError(UserError):
    """There are more parts than blocks of images."""


def _prepare(
    source: Source,
    out: Path,
    *,
    packing: Packing,
    valid_fraction: float | None = None,
    part: Part = WHOLE,
    workers: int = 0,
    max_bad: float = MAX_BAD,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    settings = {"source": source.name, **asdict(packing), "part": [part.index, part.count]}
    kept = "kept" if part == WHOLE else f"kept-{part.index:02d}-of-{part.count:02d}"
    writer = PackWriter(
        out, packing.image_size, settings=settings, shard_bytes=shard_bytes, kept_name=kept
    )
    for line in source.decided:
        say(line)
    try:
        _fill(writer, source, packing, part=part, workers=workers, max_bad=max_bad)
        if not writer.progress.blocks and part != WHOLE:
            raise EmptyPartError(
                f"--part {part.index}/{part.count} of {source.name} is empty: it is read in blocks "
                f"of {BLOCK_IMAGES} images, so choose fewer parts"
            )
        if not writer.n_rows:
            raise UserError(
                f"{source.name} gave no usable image: {in_words(writer.progress.reasons)}"
            )
        writer.finish(_facts(source, packing, valid_fraction, writer))
    except KeyboardInterrupt as stop:
        writer.commit()
        raise Interrupted(
            f"stopped after {writer.progress.n_read} images: the same command goes on from there",
            getattr(stop, "signal_number", signal.SIGINT),
        ) from None
    finally:
        writer.abandon()


def _fill(
    writer: PackWriter,
    source: Source,
    packing: Packing,
    *,
    part: Part,
    workers: int,
    max_bad: float,
) -> None:
    """Append every block that is not done yet."""
    done = writer.progress
    blocks = source.blocks(part)
    before = Progress()
    for block in islice(blocks, done.blocks):
        before.add(fingerprint(block))
    if done.held and (before.blocks, before.held) != (done.blocks, done.held):
        raise UserError(
            f"{source.name} has changed since {writer.folder} was begun: images, labels or splits "
            "came, went or are others; put them back, or delete that folder and prepare anew"
        )
    expected = source.n_images // part.count
    start_s, start_n, committed_s = time.monotonic(), done.n_read, time.monotonic()
    results = _packed(blocks, packing, workers=workers, n_images=expected)
    first = list(islice(results, 1))  # starts the processes, before the progress bar's thread
    with ticking("preparing") as ticker:
        for packed in chain(first, results):
            writer.append(packed.images, packed.labels, packed.codes, packed.originals)
            for key, reason in packed.rejects:
                writer.reject(key, reason)
            done.add(packed.holds)
            done.n_read += packed.n_read
            done.source_px = max(done.source_px, packed.source_px)
            _check_rejects(writer, max_bad, n_images=max(done.n_read, expected))
            now_s = time.monotonic()
            rate = (done.n_read - start_n) / max(now_s - start_s, 1e-3)
            ticker.update(done.n_read, max(expected, done.n_read), f"{rate:,.0f} images/s")
            if now_s - committed_s > COMMIT_EVERY_S:
                writer.commit()
                committed_s = now_s
    # Where an earlier process was refused at its end, no block is left that would ask.
    _check_rejects(writer, max_bad, n_images=done.n_read)


def _packed(
    blocks: Iterator[Block], packing: Packing, *, workers: int, n_images: int
) -> Iterator[Packed]:
    """Blocks packed in order, by several processes where that pays."""
    first = next(blocks, None)
    if first is None:
        return
    blocks = chain([first], blocks)
    workers = n_workers(workers)
    # Arrays need no decoding: sending them to a process costs more than reducing them.
    few = FEW_IMAGES // 10 if system.start_method() == "fork" else FEW_IMAGES
    if workers == 1 or isinstance(first.images, np.ndarray) or 0 < n_images < few:
        # Many small products: a second thread in each costs more than it brings.
        with threadpool_limits(1):
            yield from (pack_block(block, packing) for block in blocks)
        return
    with worker_pool(workers) as pool:
        pending: deque[Future[Packed]] = deque()
        try:
            for block in blocks:
                pending.append(pool.submit(pack_block, block, packing))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died, perhaps for want of memory: "
                "the same command goes on from there, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_rejects(writer: PackWriter, max_bad: float, *, n_images: int) -> None:
    done = writer.progress
    try:
        check_rejects(
            done.reasons,
            n_read=done.n_read,
            n_images=n_images,
            max_bad=max_bad,
            listed=str(writer.folder / "rejects.csv"),
        )
    except UserError:
        writer.commit()  # so that the list of them is on disk
        raise


def _facts(
    source: Source, packing: Packing, valid_fraction: float | None, writer: PackWriter
) -> dict[str, Any]:
    classes = source.classes
    if classes == ():
        classes = tuple(map(str, range(writer.largest_label + 1)))
    return {
        "source": source.name,
        "decided": list(source.decided),
        "source_px": source.source_px or writer.progress.source_px,
        "classes": classes,
        "views": packing.views,
        "own_splits": sorted(source.own_splits),
        "seed": packing.seed,
        "valid_fraction": valid_fraction or source.valid_fraction,
    }
