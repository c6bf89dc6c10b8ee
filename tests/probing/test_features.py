"""Features against the plain computation, and the cache against doing it again."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt import compute
from igpt.config import ModelConfig, Objective
from igpt.errors import UserError
from igpt.model.gpt import GPT
from igpt.probing import features as features_module
from igpt.probing.features import (
    EncodedImages,
    extract_features,
    mean_of_bands,
    tokens_digest,
    weights_digest,
)
from igpt.tokens.masks import own_masks

N, T, K, D, L = 11, 16, 7, 12, 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    return tmp_path / "features"


def network(objective: Objective = "ar", *, seed: int = 0) -> GPT:
    """A small network with every tensor drawn, norms too, so that nothing cancels out."""
    made = GPT(
        ModelConfig(n_layer=L, n_head=3, n_embd=D), n_colors=K, seq_len=T, objective=objective
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.6, generator=generator)
    return made.eval()


def tokens(*, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, K, (N, T))


def plain(
    model: GPT, images: np.ndarray, masked: np.ndarray | None, *, normalised: bool
) -> np.ndarray:
    """All layers of each image on its own, in float64."""
    model = model.double()
    rows = []
    with torch.no_grad():
        for i in range(len(images)):
            mask = None if masked is None else torch.from_numpy(masked[i : i + 1])
            hidden = model.hidden(torch.from_numpy(images[i : i + 1]), mask)
            outs = [model.normalised(k, h) if normalised else h for k, h in enumerate(hidden)]
            rows.append(torch.stack([out[0].mean(0) for out in outs]))
    model.float()
    return torch.stack(rows, dim=1).numpy()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_features_are_means_over_positions(objective: Objective, normalised: bool) -> None:
    model, images = network(objective), tokens()
    masked = own_masks(images, seed=5, mask_prob=0.3) if objective == "bert" else None
    expected = plain(model, images, masked, normalised=normalised)
    found = extract_features(
        model,
        images,
        normalised=normalised,
        mask_prob=0.3,
        mask_seed=5,
        precision="fp32",
        batch_size=4,
        keep=False,
    )
    assert found.shape == (L + 1, N, D)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("normalised", [True, False])
def test_bands_are_means_of_four_stretches_of_rows_and_the_spread(normalised: bool) -> None:
    model, images = network(), tokens()
    found = extract_features(
        model, images, normalised=normalised, pooling="bands", precision="fp32", keep=False
    )
    assert found.shape == (L + 1, N, 5 * D)
    with torch.no_grad():
        for layer, h in enumerate(model.hidden(torch.from_numpy(images))):
            x = (model.normalised(layer, h) if normalised else h).double().numpy()  # (N, T, D)
            parts = [x[:, 4 * band : 4 * band + 4].mean(axis=1) for band in range(4)]
            spread = np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).mean(axis=1))
            expected = np.concatenate([*parts, spread], axis=1)
            assert np.abs(found[layer] - expected).max() < 1e-4


def test_batch_size_changes_nothing() -> None:
    model = network()
    one = extract_features(model, tokens(), precision="fp32", batch_size=1, keep=False)
    all_at_once = extract_features(model, tokens(), precision="fp32", batch_size=N, keep=False)
    assert np.abs(one - all_at_once).max() < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.skipif(not compute.has_compiler(), reason="needs a C++ compiler")
def test_compiled_blocks_give_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    plain = extract_features(model, tokens(), precision="fp32", batch_size=4, keep=False)
    monkeypatch.setattr(features_module, "COMPILE_FROM_TOKENS", 0)
    fast = extract_features(model, tokens(), precision="fp32", batch_size=4, keep=False)
    assert np.abs(plain - fast).max() < 1e-4
    assert not any(block._compiled_call_impl for block in model.h)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the compiler meets our own attention
        extract_features(model, tokens(), precision="bf16", batch_size=4, keep=False)


def test_some_layers_are_those_of_all_and_later_blocks_are_not_run() -> None:
    model = network()
    everything = extract_features(model, tokens(), precision="fp32", keep=False)
    with torch.no_grad():
        for parameter in model.h[2].parameters():
            parameter.fill_(torch.nan)  # ln_1 of block 2 belongs to layer 2
    some = extract_features(model, tokens(), layers=[0, 1], precision="fp32", keep=False)
    assert np.array_equal(some, everything[[0, 1]])


def test_bfloat16_is_near_float32() -> None:
    model = network()
    exact = extract_features(model, tokens(), precision="fp32", keep=False)
    rough = extract_features(model, tokens(), precision="bf16", keep=False)
    assert np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


def test_kept_features_are_read_back_without_the_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    first = extract_features(model, tokens(), precision="fp32")
    assert len(list(cache.glob("*.npy"))) == 1

    def not_again(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr(features_module, "pooled_layers", not_again)
    second = extract_features(model, tokens(), precision="fp32")
    assert np.array_equal(first, second)


def test_damaged_kept_features_are_named_and_computed_again(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    first = np.array(extract_features(model, tokens(), precision="fp32"))
    (path,) = cache.glob("*.npy")
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert np.array_equal(extract_features(model, tokens(), precision="fp32"), first)
    assert f"{path} in the cache does not match its checksum" in capsys.readouterr().err
    path.with_suffix(".sha256").unlink()  # as an earlier igpt left it
    assert np.array_equal(extract_features(model, tokens(), precision="fp32"), first)


def test_everything_that_matters_gives_another_file(cache: Path) -> None:
    extract_features(network(), tokens(), precision="fp32")
    extract_features(network(seed=1), tokens(), precision="fp32")
    extract_features(network(), tokens(seed=1), precision="fp32")
    extract_features(network(), tokens(), normalised=False, precision="fp32")
    extract_features(network(), tokens(), layers=[1], precision="fp32")
    extract_features(network(), tokens(), precision="bf16")
    extract_features(network(), tokens(), pooling="bands", precision="fp32")
    assert len(list(cache.glob("*.npy"))) == 7
    extract_features(network("bert"), tokens(), precision="fp32")
    extract_features(network("bert"), tokens(), mask_seed=1, precision="fp32")
    extract_features(network("bert"), tokens(), mask_prob=0.5, precision="fp32")
    assert len(list(cache.glob("*.npy"))) == 10


def test_mask_settings_do_not_matter_to_an_autoregressive_model(cache: Path) -> None:
    extract_features(network(), tokens(), precision="fp32")
    extract_features(network(), tokens(), mask_seed=3, precision="fp32")
    assert len(list(cache.glob("*.npy"))) == 1


def test_failure_leaves_no_half_written_file(cache: Path) -> None:
    def stop(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(network(), tokens(), batch_size=2, progress=stop)
    assert list(cache.iterdir()) == []


def test_images_encoded_as_they_are_read_give_the_same_features(cache: Path) -> None:
    images = np.random.default_rng(0).integers(0, K, (N, 4, 4, 3)).astype(np.uint8)
    lazy = EncodedImages(images, lambda part: part[..., 0].reshape(len(part), -1))
    ready = images[..., 0].reshape(N, -1)
    assert tokens_digest(lazy) == tokens_digest(ready)
    assert np.array_equal(extract_features(network(), lazy), extract_features(network(), ready))
    assert len(list(cache.glob("*.npy"))) == 1


def test_digest_does_not_depend_on_the_integer_type() -> None:
    assert tokens_digest(tokens()) == tokens_digest(tokens().astype(np.uint8))
    assert tokens_digest(tokens()) == tokens_digest(tokens(), batch_size=3)
    assert tokens_digest(tokens()) != tokens_digest(tokens()[::-1])


def test_digest_sees_every_weight() -> None:
    model = network()
    before = weights_digest(model)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[0] += 0.5
        after = weights_digest(model)
        assert after != before
        before = after


@pytest.mark.parametrize("layers", [[], [L + 1], [-1], [1, 0], [1, 1]])
def test_layers_that_are_not_there_are_refused(layers: list[int]) -> None:
    with pytest.raises(UserError, match="from 0 to 3"):
        extract_features(network(), tokens(), layers=layers, keep=False)


def test_tokens_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="has 9 tokens, the network reads 16"):
        extract_features(network(), tokens()[:, :9], keep=False)


def test_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="no images"):
        extract_features(network(), tokens()[:0], keep=False)


def test_the_paper_s_mean_comes_out_of_the_bands() -> None:
    model, images = network(), tokens()
    bands = extract_features(model, images, pooling="bands", precision="fp32", keep=False)
    mean = extract_features(model, images, precision="fp32", keep=False)
    found = mean_of_bands(bands)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mean, atol=1e-5)


def test_features_of_bert_do_not_depend_on_what_else_is_looked_at() -> None:
    model, images = network("bert"), tokens()
    images[3] = images[7]
    whole = extract_features(model, images, keep=False, precision="fp32")
    order = np.array([7, 0, 3])
    some = extract_features(model, images[order], keep=False, precision="fp32")
    assert np.allclose(some, whole[:, order], atol=1e-5)
    assert np.allclose(some[:, 0], some[:, 2], atol=1e-6)
    other = extract_features(model, images, keep=False, precision="fp32", mask_seed=1)
    assert not np.allclose(other, whole, atol=1e-3)
