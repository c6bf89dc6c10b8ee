"""The data side: colours to tokens, preparing, and the batches of a training run.

Beside transformers' image processor and a plain Pillow loop. What the loader must keep up with is
measured too: the share of a training run that its steps spend waiting for batches.
"""

import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from igpt import compute
from igpt.bench import measure
from igpt.config import Augment, ModelConfig, TrainConfig
from igpt.errors import UserError
from igpt.files import cache_folder
from igpt.images.crop import CROP_SIZE, center_crop
from igpt.images.decode import open_image
from igpt.images.packed.format import is_packed
from igpt.images.packed.read import PackedSet
from igpt.images.packed.rows import Packing
from igpt.images.prepare import open_data, prepare
from igpt.images.sources.archive import read_files
from igpt.images.sources.find import open_source
from igpt.images.workers import n_workers
from igpt.model.gpt import GPT
from igpt.tokens.batches import BatchStream
from igpt.tokens.palette import Palette
from igpt.tokens.tokenizer import ImageArray
from igpt.train.objectives import loss_sum
from igpt.train.optim import Optimizer

IMAGE_SIZE = 32
BATCH_SIZE = 128
WAITING_BATCH = 16
N_COLORS = 512
TRANSFORMERS, PILLOW = "transformers", "pillow"
# transformers' processor is fastest at this many images a call, and slow enough for few of them.
PEER_CALL = 64
# Its distances are rounded to float32, so that between two colours as near it may take the other.
TOLERANCE = 1e-6


def bench_data(
    peers: Sequence[str] = (TRANSFORMERS, PILLOW),
    *,
    quick: bool,
    photos: Sequence[Path] = (),
    at_most_s: float = float("inf"),
) -> list[measure.Row]:
    """All rows.

    Args:
        peers: which to set beside ours.
        quick: fewer images and rounds.
        photos: tars of JPEGs to prepare; none: pictures that are made here.
        at_most_s: no further round of a row begins after this many seconds.
    """
    at_most_s = min(at_most_s, 3.0) if quick else at_most_s
    with tempfile.TemporaryDirectory(prefix="igpt-bench-") as folder:
        packed = packed_images(Path(folder) / "packed", 2048 if quick else 12_000)
        rows = bench_tokens(packed, peers, n=1024 if quick else 10_000, at_most_s=at_most_s)
        rows += bench_loader(packed, at_most_s=at_most_s)
        rows += bench_waiting(packed, n_steps=5 if quick else 30)
        tars = list(photos) or [made_photos(Path(folder) / "made.tar", 200 if quick else 1000)]
        for tar in tars:
            rows += bench_prepare(tar, peers, Path(folder), at_most_s=at_most_s)
    return rows


def packed_images(folder: Path, n: int) -> PackedSet:
    """CIFAR-10 where the cache has it, else n pictures made here, packed at 32 x 32."""
    if is_packed(cache_folder() / "packed" / f"cifar10-{IMAGE_SIZE}"):
        return open_data("cifar10", image_size=IMAGE_SIZE)
    rng = np.random.default_rng(0)
    images = np.stack([picture(IMAGE_SIZE, IMAGE_SIZE, rng) for _ in range(n)])
    np.save(folder.with_suffix(".npy"), images)
    source = open_source(str(folder.with_suffix(".npy")))
    return prepare(source, folder, packing=Packing(image_size=IMAGE_SIZE))


def some_palette(packed: PackedSet) -> Palette:
    """Colours of pixels drawn from the images, its table made: fitting would take longer."""
    rng = np.random.default_rng(2)
    pixels = np.unique(packed.images("train")[:1000].reshape(-1, 3), axis=0)
    palette = Palette(rng.choice(pixels, N_COLORS, replace=False) / 127.5 - 1)
    palette.encode_compact(packed.images("train")[:1])
    return palette


def picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Like a photograph in how well it compresses: (height, width, 3) uint8."""
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + rng.normal(0, 12, smooth.shape).astype(np.int16)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def made_photos(path: Path, n: int) -> Path:
    """A tar of n JPEGs of a camera's shapes, about 300 x 400."""
    import tarfile

    rng = np.random.default_rng(1)
    with tarfile.open(path, "w") as tar:
        for i in range(n):
            height, width = (int(side) for side in rng.integers(220, 420, 2))
            file = io.BytesIO()
            Image.fromarray(picture(height, width, rng)).save(file, "JPEG", quality=85)
            member = tarfile.TarInfo(f"{i:05d}.jpg")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    return path


def bench_tokens(
    packed: PackedSet, peers: Sequence[str], *, n: int, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """Images to tokens on one core, from uint8 arrays.

    Raises:
        UserError: the peer's tokens differ, so that times would not compare.
    """
    images = packed.images("train")[:n]
    palette = some_palette(packed)
    works: dict[str, Callable[[], object]] = {measure.OURS: lambda: palette.encode_compact(images)}
    if TRANSFORMERS in peers:
        few = list(images[:PEER_CALL])
        peer = transformers_processor(palette)
        if worse_by(palette, images[:PEER_CALL], peer(few)) > TOLERANCE:
            raise UserError("transformers' tokens differ from ours: times mean nothing")
        works[TRANSFORMERS] = lambda: peer(few)
    spans = measure.take_turns(works, at_most_s=at_most_s)
    if TRANSFORMERS in spans:  # it took few images, and its time grows with their number
        spans[TRANSFORMERS] = [span * len(images) / PEER_CALL for span in spans[TRANSFORMERS]]
    moved_bytes = images.nbytes + 2 * images.nbytes // 3
    rate = len(images) / statistics.median(spans[measure.OURS])
    return measure.rows_of(
        f"colour tokenising, {len(images):,} images of {IMAGE_SIZE} x {IMAGE_SIZE}",
        spans,
        limit_s=moved_bytes / compute.copy_rate(compute.default_device()),
        limit="copy rate",
        note=f"{rate:,.0f} images/s on one core; the peer at {PEER_CALL} images a call",
    )


def worse_by(palette: Palette, images: np.ndarray, tokens: np.ndarray) -> float:
    """How much farther, squared, these tokens' colours lie than ours at most, where they differ."""
    pixels = images.reshape(-1, 3) / 127.5 - 1
    ours, theirs = palette.encode(images).reshape(-1), np.asarray(tokens).reshape(-1)
    if ours.shape != theirs.shape:
        return float("inf")
    colors = palette.colors.astype(np.float64)
    farther = ((pixels - colors[theirs]) ** 2 - (pixels - colors[ours]) ** 2).sum(1)
    return float(np.abs(farther).max())


def transformers_processor(palette: Palette) -> Callable[[list[np.ndarray]], np.ndarray]:
    """transformers' ImageGPT processor with these colours: images to tokens (n, T)."""
    from transformers import ImageGPTImageProcessor

    processor = ImageGPTImageProcessor(clusters=palette.colors.tolist(), do_resize=False)

    def tokens(images: list[np.ndarray]) -> np.ndarray:
        return np.asarray(processor(images, return_tensors="np")["input_ids"])

    return tokens


def bench_loader(packed: PackedSet, *, at_most_s: float = float("inf")) -> list[measure.Row]:
    """Batches on one thread: tokenised on the fly with each augmentation, and from tokens."""
    palette = some_palette(packed)
    images = packed.images("train")
    tokens = palette.encode_compact(images[:])
    choices: list[tuple[str, ImageArray, Augment]] = [
        ("on the fly", images, "none"),
        ("on the fly, flipped", images, "flip"),
        ("on the fly, CIFAR's crops", images, "cifar"),
        ("pre-tokenised", tokens, "none"),
    ]
    rows = []
    for name, held, augment in choices:
        stream = BatchStream(held, None, palette, batch_size=BATCH_SIZE, seed=0, augment=augment)
        steps = min(len(images), 10_000) // BATCH_SIZE

        def epoch(stream: BatchStream = stream, steps: int = steps) -> None:
            for step in range(steps):
                stream.at(step)

        with threadpool_limits(1):
            spans = measure.take_turns({measure.OURS: epoch}, at_most_s=at_most_s)
        rate = steps * BATCH_SIZE / statistics.median(spans[measure.OURS])
        rows += measure.rows_of(
            f"loader, {name}, {steps * BATCH_SIZE:,} images in batches of {BATCH_SIZE}",
            spans,
            note=f"{rate:,.0f} images/s on one core",
        )
    return rows


def bench_waiting(packed: PackedSet, *, n_steps: int) -> list[measure.Row]:
    """What a training step waits for its batch, which is made ahead in a thread of its own."""
    palette = some_palette(packed)
    stream = BatchStream(
        packed.images("train"), None, palette, batch_size=WAITING_BATCH, seed=0, augment="cifar"
    )
    step = training_step(palette)
    waits, spans = [], []
    before_s = time.perf_counter()
    for batch in stream.prefetch(0, n_steps + 3):
        waits.append(time.perf_counter() - before_s)
        step(batch.tokens)
        spans.append(time.perf_counter() - before_s)
        before_s = time.perf_counter()
    share = sum(waits[3:]) / sum(spans[3:])
    step_s = statistics.median(spans)
    return measure.rows_of(
        f"waiting for a batch of {WAITING_BATCH}, of a training step of {step_s:.3f} s",
        {measure.OURS: waits[3:]},
        note=f"{share:.2%} of {n_steps} steps (T=1,024 d=128 L=5), with CIFAR's crops",
    )


def training_step(palette: Palette) -> Callable[[np.ndarray], float]:
    """A forward and a backward pass and an update of a small network."""
    config = ModelConfig(n_layer=5, n_head=4, n_embd=128)
    network = GPT(config, n_colors=palette.n_colors, seq_len=IMAGE_SIZE**2)
    network.init_weights(torch.Generator().manual_seed(0))
    device = compute.default_device()
    network.to(device)
    optimizer = Optimizer(network, TrainConfig(warmup_steps=1))
    dtype = compute.choose_dtype("auto", device)

    def step(batch: np.ndarray) -> float:
        tokens = torch.from_numpy(batch).to(device)
        with compute.autocast(device, dtype):
            logits = network(tokens)
        loss = loss_sum(logits, tokens, None) / tokens.numel()
        loss.backward()
        optimizer.step(0.01)
        return float(loss.detach())

    return step


def bench_prepare(
    tar: Path, peers: Sequence[str], folder: Path, *, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """The JPEGs of a tar to a packed set, decoded in full and at a reduced scale, on all cores."""
    files = jpegs_of(tar)
    n_errors = min(len(files), 500)
    exact = np.stack([reference(data) for data in files[:n_errors]])
    cores = 1 if measure.counts_one_thread() else n_workers(0)
    rows = []
    for name, reduced in (("decoded in full", False), ("at a reduced scale", True)):
        out = folder / "out"

        def ours(out: Path = out, reduced: bool = reduced) -> None:
            shutil.rmtree(out, ignore_errors=True)
            packing = Packing(image_size=IMAGE_SIZE, reduced=reduced)
            prepare(open_source(str(tar), unlabelled=True), out, packing=packing, workers=cores)

        works: dict[str, Callable[[], object]] = {measure.OURS: ours}
        if PILLOW in peers:
            works[PILLOW] = lambda: plain_loop(tar, folder / "plain.npy")
        spans = measure.take_turns(works, at_most_s=at_most_s)
        rate = len(files) / statistics.median(spans[measure.OURS])
        images = PackedSet.open(out).images_at(np.arange(n_errors))[:]
        error = float(np.abs(images - exact).mean())
        rows += measure.rows_of(
            f"prepare {tar.name}, {len(files):,} JPEGs, {name}, {cores} processes",
            spans,
            note=f"{rate / cores:,.0f} images/s a core; mean error {error:.2f} levels, the loop's "
            f"{plain_error(files[:n_errors], exact):.2f}",
        )
    return rows


def plain_error(files: Sequence[bytes], exact: np.ndarray) -> float:
    """The Pillow loop's mean error in levels."""
    return float(np.abs(np.stack([plain(data) for data in files]) - exact).mean())


def jpegs_of(tar: Path) -> list[bytes]:
    """The bytes of every JPEG in a tar.

    Raises:
        UserError: there are none, or it is no tar.
    """
    with tar.open("rb") as file:
        files = [
            os.pread(file.fileno(), member.size, member.start)
            for member in read_files(tar)
            if member.name.lower().endswith((".jpg", ".jpeg"))
        ]
    if not files:
        raise UserError(f"{tar} holds no JPEGs: name a tar of them")
    return files


def plain_loop(tar: Path, out: Path) -> None:
    """What one would write with Pillow and tarfile, in one process: a tar to an array on disk."""
    import tarfile

    images = []
    with tarfile.open(tar) as members:
        for member in members:
            if member.name.lower().endswith((".jpg", ".jpeg")):
                file = members.extractfile(member)
                assert file is not None
                images.append(plain(file.read()))
    np.save(out, np.stack(images))


def plain(data: bytes) -> np.ndarray:
    """One image of that loop: (S, S, 3) uint8."""
    image: Image.Image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    if short > CROP_SIZE:
        scale = CROP_SIZE / short
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BOX)
        short = CROP_SIZE
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))


def reference(data: bytes) -> np.ndarray:
    """Decoded in full, exact areas, float64, never rounded: (S, S, 3)."""
    with open_image(data) as file:
        image = np.asarray(file.convert("RGB")).astype(np.float64)
    crop = center_crop(*image.shape[:2])
    rows = _shares(crop.height, crop.resized[0], crop.top, crop.side)
    columns = _shares(crop.width, crop.resized[1], crop.left, crop.side)
    exact: np.ndarray = np.einsum("jh,hwc,kw->jkc", rows, image, columns, optimize=True)
    return exact


def _shares(n: int, resized: int, start: int, side: int) -> np.ndarray:
    """Of n pixels in each of `IMAGE_SIZE` cells of a crop: (S, n), written down plainly."""
    edges = (start + np.arange(IMAGE_SIZE + 1) * side / IMAGE_SIZE) * n / resized
    left = np.maximum(edges[:-1, None], np.arange(n))
    right = np.minimum(edges[1:, None], np.arange(1, n + 1))
    shares = np.maximum(right - left, 0)
    normed: np.ndarray = shares / shares.sum(1, keepdims=True)
    return normed
