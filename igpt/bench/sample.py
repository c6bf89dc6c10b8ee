"""Drawing images: 256 tokens, and a whole image of 1,024, for 16 images and for one."""

from collections.abc import Callable, Sequence
from itertools import islice

from igpt import compute
from igpt.bench import measure
from igpt.bench.peers import open_peer
from igpt.bench.train import Size, lively_network
from igpt.generate.sample import sampling
from igpt.model.decoder import cache_bytes, open_decoder
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, parameter_count

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
    shape = Shape(n_colors=network.n_colors, seq_len=network.seq_len, objective="ar")
    tables = (network.n_colors + network.seq_len) * network.config.n_embd
    matrices = (parameter_count(network.config, shape) - tables) * dtype.itemsize
    a_position = cache_bytes(network, dtype) / network.seq_len
    return n_tokens * matrices + n_images * a_position * n_tokens * (n_tokens + 1) / 2


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
    for name in peers:
        generate = open_peer(name, network).generate
        works[name] = lambda generate=generate: generate(n_images, n_tokens)  # type: ignore[misc]
    spans = measure.take_turns(works, repeats=repeats, device=device, at_most_s=at_most_s)
    config = network.config
    dtype = open_decoder(network).dtype
    return measure.rows_of(
        f"sample {n_tokens} tokens T={network.seq_len} d={config.n_embd} L={config.n_layer} "
        f"B={n_images}",
        spans,
        # A copy moves as many bytes out as in; reading alone is at least that fast.
        limit_s=read_bytes(network, n_images, n_tokens) / measure.copy_rate(device),
        limit="copy speed",
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
