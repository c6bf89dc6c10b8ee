"""Drawing images: 256 tokens, and a whole image of 1,024, for 16 images and for one."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import torch

from igpt import compute
from igpt.bench import measure
from igpt.bench.peers import open_peer
from igpt.bench.train import Size, lively_network
from igpt.generate.sample import sampling
from igpt.model import native
from igpt.model.decoder import cache_bytes, large_memory, open_decoder
from igpt.model.gpt import GPT
from igpt.model.sizes import parameter_count

SIZE = Size(1024, 256, 12, 8, 16)
QUICK = Size(256, 64, 2, 4, 4)
GPU_SIZE = Size(1024, 512, 24, 8, 64)


def draw_tokens(network: GPT, n_images: int, n_tokens: int) -> None:
    """Draw the first tokens of some images, as `igpt sample` does, and leave the rest."""
    for _ in islice(sampling(network, n_images, batch_size=n_images), n_tokens):
        pass


def read_bytes(network: GPT, n_images: int, n_tokens: int) -> float:
    """Bytes that must be read to draw: all matrices once a token, and what the cache holds then."""
    dtype = open_decoder(network).dtype
    shape = network.shape
    tables = (network.n_colors + network.seq_len) * network.config.n_embd
    matrices = (parameter_count(network.config, shape) - tables) * dtype.itemsize
    a_position = cache_bytes(network, dtype) / network.seq_len
    return n_tokens * matrices + n_images * a_position * n_tokens * (n_tokens + 1) / 2


def read_rate(network: GPT, n_images: int, n_tokens: int) -> float:
    """Bytes a second at which all threads read as much memory as a step does, halfway through.

    From large pages, again and again, by the decoder's own threads: nothing that computes besides
    can read faster. Where there is no compiled code, the speed of a copy.
    """
    library = native.library("decode")
    if network.wte.weight.device.type != "cpu" or library is None:
        return measure.copy_rate(network.wte.weight.device)
    n_bytes = int(read_bytes(network, n_images, n_tokens) / n_tokens) // 64 * 64
    memory = large_memory(n_bytes).zero_()
    read = partial(library.read_all, memory.data_ptr(), n_bytes, torch.get_num_threads())
    repeats = max(measure.REPEATS, 2**29 // n_bytes)
    return n_bytes / statistics.median(measure.take_turns({"": read}, repeats=repeats)[""])


def bench_tokens(
    network: GPT,
    peers: Sequence[str],
    *,
    n_images: int,
    n_tokens: int,
    repeats: int = measure.REPEATS,
    at_most_s: float = float("inf"),
) -> list[measure.Row]:
    """Rows of one number of images and tokens."""
    device = network.wte.weight.device
    works: dict[str, Callable[[], object]] = {
        measure.OURS: lambda: draw_tokens(network, n_images, n_tokens)
    }
    dtype = open_decoder(network).dtype
    opened = {name: open_peer(name, network) for name in peers}
    if "transformers" in peers and dtype != torch.float32:
        name = f"transformers in {dtype}".replace("torch.", "")
        opened[name] = open_peer("transformers", network, dtype=dtype)
    for name, peer in opened.items():
        works[name] = lambda peer=peer: peer.generate(n_images, n_tokens)  # type: ignore[misc]
    spans = measure.take_turns(works, repeats=repeats, device=device, at_most_s=at_most_s)
    config = network.config
    return measure.rows_of(
        f"sample {n_tokens} tokens T={network.seq_len} d={config.n_embd} L={config.n_layer} "
        f"B={n_images}",
        spans,
        limit_s=read_bytes(network, n_images, n_tokens) / read_rate(network, n_images, n_tokens),
        limit="reading speed",
        note=f"ours {dtype}, peers float32".replace("torch.", ""),
    )


def bench_sample(
    peers: Sequence[str], *, quick: bool, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """All rows. A whole image is drawn by ourselves alone, since peers need minutes for it."""
    device = compute.default_device()
    size = GPU_SIZE if device.type == "cuda" else SIZE
    if quick:
        network = lively_network(QUICK, device).eval()
        return bench_tokens(network, peers, n_images=4, n_tokens=64, at_most_s=8)
    network = lively_network(size, device).eval()
    rows = []
    for n_images in (size.batch_size, 1):
        rows += bench_tokens(network, peers, n_images=n_images, n_tokens=256, at_most_s=at_most_s)
    rows += bench_tokens(
        network, [], n_images=size.batch_size, n_tokens=network.seq_len, at_most_s=at_most_s
    )
    return rows
