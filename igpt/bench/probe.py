"""What a probe does: features beside transformers', fits of 25 layers beside scikit-learn's."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from igpt import compute
from igpt.bench import measure, train
from igpt.bench.peers import Peer, open_peer
from igpt.bench.train import N_COLORS, Size, lively_network
from igpt.errors import UserError
from igpt.model.head import log_softmax
from igpt.model.sizes import Shape, forward_flops
from igpt.probing.features import compiled_copy, pooled_layers
from igpt.probing.logistic import fit_logistic

N_LAYERS = 25
N_CLASSES = 10
WIDTH = 512
STRENGTHS = tuple(10.0 ** np.arange(-5, 3))
# How much higher than scikit-learn's our loss may be, nats an image.
TOLERANCE = 1e-4


def random_features(n: int, width: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, width) float32, standardised, with a spectrum that falls as real features' does.

    The variance along axis i is 1 / i^3 (so that of a small trained network's features falls to its
    hundredth axis), in axes turned at random; each class has a mean. With them, (n,) labels.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(N_CLASSES, size=n)
    scales = np.arange(1, width + 1) ** -1.5
    means = 0.5 * rng.standard_normal((N_CLASSES, width)) * scales
    plain = rng.standard_normal((n, width)) * scales + means[labels]
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    turned = plain @ turn
    return ((turned - turned.mean(0)) / turned.std(0)).astype(np.float32), labels


def by_sklearn(features: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases for each strength, one fit after another with scikit-learn's defaults.

    On one thread: its products are so small that a second one makes it two to nine times slower.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    fits = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
            fits.append((model.coef_, model.intercept_))
    return fits


def objective_of(
    weights: np.ndarray,
    biases: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    strength: float,
) -> float:
    """Nats an image: mean log-loss + ||W||^2 / (2 strength N), in float64."""
    log_prob = log_softmax(features.astype(np.float64) @ weights.T + biases)
    loss = -log_prob[np.arange(len(labels)), labels].mean()
    return float(loss + (weights.astype(np.float64) ** 2).sum() / (2 * strength * len(labels)))


def bench_images(
    n: int,
    width: int,
    peers: Sequence[str],
    *,
    repeats: int = measure.REPEATS,
    at_most_s: float = float("inf"),
) -> list[measure.Row]:
    """Rows for n images; one layer is fitted, and the seconds are for all layers.

    Raises:
        UserError: our loss is higher than scikit-learn's by more than the tolerance.
    """
    features, labels = random_features(n, width, seed=n)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        fit = fit_logistic(features, labels, n_classes=N_CLASSES, strengths=STRENGTHS)
        return fit.weights, fit.biases

    works: dict[str, Callable[[], object]] = {measure.OURS: ours}
    note = "random features"
    fitted = ours()
    if "sklearn" in peers:
        works["scikit-learn"] = lambda: by_sklearn(features, labels)
        gap = _largest_gap(fitted, by_sklearn(features, labels), features, labels)
        if gap > TOLERANCE:
            raise UserError(f"our probe's loss is {gap:.1e} above scikit-learn's at {n} images")
        note += f"; our loss minus theirs at most {gap:.0e}"
    spans = measure.take_turns(works, repeats=repeats, at_most_s=at_most_s, warm=True)
    for values in spans.values():
        values[:] = [N_LAYERS * value for value in values]
    work = f"probe {N_LAYERS} layers N={n} D={width} C={N_CLASSES} {len(STRENGTHS)} strengths"
    return measure.rows_of(work, spans, note=note)


def _largest_gap(
    fitted: tuple[np.ndarray, np.ndarray],
    theirs: list[tuple[np.ndarray, np.ndarray]],
    features: np.ndarray,
    labels: np.ndarray,
) -> float:
    gaps = []
    for i, strength in enumerate(STRENGTHS):
        own = objective_of(fitted[0][i], fitted[1][i], features, labels, strength)
        other = objective_of(*theirs[i], features, labels, strength)
        gaps.append(own - other)
    return max(gaps)


def bench_features(
    size: Size,
    layers: Sequence[int],
    peers: Sequence[str],
    *,
    n_batches: int = 8,
    repeats: int = measure.REPEATS,
    at_most_s: float = float("inf"),
) -> list[measure.Row]:
    """Rows of features, blocks compiled as in every probe of many images; every peer in our type.

    A peer's features are the plain means that its users take, of all layers always: it cannot stop.

    Raises:
        UserError: a peer's means are others, so that times would not compare.
    """
    device = compute.default_device()
    dtype = compute.choose_dtype("auto", device)
    network = lively_network(size, device).eval()
    generator = torch.Generator().manual_seed(1)
    shape = (n_batches, size.batch_size, size.seq_len)
    batches = torch.randint(N_COLORS, shape, generator=generator).to(device)
    compiled = compiled_copy(network) if train.can_compile(device) else network
    opened = {name: peer for name in peers if (peer := open_peer(name, network)).streams}

    @torch.inference_mode()
    def ours() -> None:
        with compute.autocast(device, dtype):
            for batch in batches:
                pooled_layers(compiled, batch, None, layers=layers)

    works: dict[str, Callable[[], object]] = {measure.OURS: ours}
    with torch.inference_mode(), compute.autocast(device, dtype):
        plain = pooled_layers(network, batches[0], None, layers=[1], normalised=False)[0]
    for name, peer in opened.items():
        works[name] = lambda peer=peer: [_means(peer, batch, dtype) for batch in batches]  # type: ignore[misc]
        gap = float((_means(peer, batches[0], dtype)[1] - plain).abs().max())
        if not gap <= train.TOLERANCE[dtype]:
            raise UserError(f"{name}'s features lie {gap:.1e} from ours at {size}")
    config = dataclasses.replace(size.model, n_layer=layers[-1])
    flops = forward_flops(config, Shape(n_colors=0, seq_len=size.seq_len, objective="ar"))
    spans = measure.take_turns(works, repeats=repeats, device=device, at_most_s=at_most_s)
    number = (
        f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]} alone"
    )
    n = n_batches * size.batch_size
    return measure.rows_of(
        f"features of {n} images, {size}, {number}",
        spans,
        limit_s=n * flops / measure.matrix_rate(device, dtype),
        limit="matrix rate",
        note=f"{dtype}; the peer: plain means of all layers".removeprefix("torch."),
    )


@torch.inference_mode()
def _means(peer: Peer, tokens: Tensor, dtype: torch.dtype) -> list[Tensor]:
    assert peer.streams is not None
    with compute.autocast(tokens.device, dtype):
        return [h.mean(1, dtype=torch.float32) for h in peer.streams(tokens)]


# The network of `cifar10-32`, whose best layer is the fourth.
FEATURES = Size(1024, 192, 6, 3, 4)
BEST_LAYER = 4


def bench_probe(
    peers: Sequence[str], *, quick: bool, at_most_s: float = float("inf")
) -> list[measure.Row]:
    """All rows: what takes most of a probe's time, and its fits."""
    models = [name for name in peers if name != "sklearn"]
    if quick:
        (size,) = train.QUICK
        rows = bench_features(size, range(size.n_layer + 1), models, repeats=3, at_most_s=6)
        return rows + bench_images(500, 64, peers, repeats=3, at_most_s=6)
    rows = []
    for layers in (range(FEATURES.n_layer + 1), [BEST_LAYER]):
        rows += bench_features(FEATURES, layers, models, at_most_s=at_most_s)
    for n in (1_000, 10_000):
        rows += bench_images(n, WIDTH, peers, at_most_s=at_most_s)
    return rows
