"""The authors' TensorFlow checkpoints, read from files that the tests write to the format."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.cli.main import main
from igpt.errors import UserError
from igpt.formats.openai import Bundle, crc32c, find_checkpoint, read_openai, unmasked
from igpt.loading import load
from igpt.tokens.palette import Palette
from tests.oracles import bundle as oracle


@given(st.binary(max_size=300))
def test_crc_is_the_bitwise_one(data):
    assert crc32c(data) == oracle.crc(data) == unmasked(oracle.masked(data))


def test_crc_of_the_standard_check_and_of_many_lanes():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    data = np.random.default_rng(0).bytes(70_001)
    assert crc32c(data) == oracle.crc(data)


@settings(deadline=None, max_examples=20)  # the oracle's checksums are slow
@given(
    st.dictionaries(st.text("abc/", min_size=1, max_size=9), st.integers(0, 5), max_size=30),
    st.integers(1, 4),
    st.sampled_from([1, 40, 4096]),
)
def test_every_tensor_of_any_bundle_is_read(tmp_path_factory, sizes, n_shards, block_bytes):
    prefix = tmp_path_factory.mktemp("b") / "model.ckpt-1"
    tensors = {name: np.arange(2 * n, dtype=np.float32).reshape(2, n) for name, n in sizes.items()}
    oracle.write_bundle(prefix, tensors, n_shards=n_shards, block_bytes=block_bytes)
    bundle = Bundle(prefix)
    assert set(bundle.entries) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(bundle.read(name), array)


def released(*, sos=True, D=12, H=3, L=2, K=8, T=16):
    """Random weights under the released names, in the released shapes."""
    rng = np.random.default_rng(0)
    shapes = {"wte": (K, D), "wpe": (T, D), "wtet": (K, D), "ln_f/g": (D,)}
    if sos:
        shapes["sos"] = (D,)
    for layer in range(L):
        shapes |= {f"h{layer}/attn/{p}_proj": (H, D // H, D) for p in "qkvc"}
        shapes |= {f"h{layer}/ln_{i}/g": (D,) for i in (1, 2)}
        shapes |= {f"h{layer}/mlp/c_fc/w": (D, 4 * D), f"h{layer}/mlp/c_proj/w": (4 * D, D)}
    return {f"model/{k}": rng.normal(0, 0.4, s).astype(np.float32) for k, s in shapes.items()}


def with_training(weights):
    moments = {f"{name}/{m}": np.ones(3, np.float32) for name in weights for m in ("adam_m",)}
    return {**weights, **moments, "global_step": np.array(1000, np.int64)}


@pytest.fixture
def files(tmp_path):
    prefix, palette = tmp_path / "model.ckpt-1000", tmp_path / "kmeans_centers.npy"
    colors = np.random.default_rng(1).uniform(-1, 1, (8, 3)).astype(np.float32)
    Palette(colors).save(palette)
    oracle.write_bundle(prefix, with_training(released()), n_shards=3, block_bytes=200)
    return prefix, palette


def reference_logits(w, tokens, *, sos):
    """The released model.py's einsums, in float64; (T,) tokens -> (T, K)."""
    w = {k.removeprefix("model/"): v.astype(np.float64) for k, v in w.items()}

    def norm(x, g):
        return g * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    x = w["wte"][tokens]
    if sos:
        x = np.concatenate([w["sos"][None], x[:-1]])
    h = x + w["wpe"]
    for layer in range(2):
        n = norm(h, w[f"h{layer}/ln_1/g"])
        q, k, v = (np.einsum("sf,hef->hse", n, w[f"h{layer}/attn/{p}_proj"]) for p in "qkv")
        scores = np.einsum("hse,hte->hst", q, k) / np.sqrt(q.shape[-1])
        if sos:
            scores = np.where(np.tri(len(h)), scores, -1e10)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        a = np.einsum("hst,hte->hse", p / p.sum(-1, keepdims=True), v)
        h = h + np.einsum("hse,hef->sf", a, w[f"h{layer}/attn/c_proj"])
        m = norm(h, w[f"h{layer}/ln_2/g"]) @ w[f"h{layer}/mlp/c_fc/w"]
        h = h + (m / (1 + np.exp(-1.702 * m))) @ w[f"h{layer}/mlp/c_proj/w"]
    return norm(h, w["ln_f/g"]) @ w["wtet"].T


@pytest.mark.parametrize("sos", [True, False], ids=["ar", "bert"])
def test_logits_are_those_of_the_released_code(files, sos):
    prefix, palette = files
    weights = released(sos=sos)
    oracle.write_bundle(prefix, with_training(weights), n_shards=2)
    model = load(prefix, palette=str(palette))
    assert model.facts.objective == ("ar" if sos else "bert")
    tokens = np.random.default_rng(2).integers(0, 8, 16)
    found = model.logits(tokens[None])[0].numpy()
    np.testing.assert_allclose(found, reference_logits(weights, tokens, sos=sos), atol=1e-4)


def test_convert_makes_a_model_folder_of_it(files, tmp_path, capsys):
    import igpt

    prefix, palette = files
    out = tmp_path / "model"
    with pytest.raises(SystemExit) as stop:
        main(["convert", f"{prefix}.index", str(out), "--palette", str(palette)])
    assert stop.value.code == 0
    tokens = torch.arange(16)[None] % 8
    direct = load(prefix, palette=str(palette))
    assert torch.equal(igpt.load(out).logits(tokens), direct.logits(tokens))


def test_a_head_of_zeros_is_none_and_another_classifies(files):
    prefix, palette = files
    for fill, has in ((0, False), (1, True)):
        head = np.full((5, 12), fill, np.float32)
        oracle.write_bundle(prefix, {**released(), "model/clf/wclf": head})
        assert (read_openai(prefix, str(palette)).probe() is not None) == has


def test_an_output_head_of_zeros_is_warned_of(files):
    prefix, palette = files
    weights = released()
    weights["model/wtet"] = np.zeros_like(weights["model/wtet"])
    oracle.write_bundle(prefix, weights)
    with pytest.warns(UserWarning, match=r"ckpt-1000.index: the output head is all zero"):
        read_openai(prefix, str(palette))


def change(path, at, value=None):
    data = bytearray(path.read_bytes())
    if value is None:
        del data[at:]
    else:
        data[at] ^= value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("suffix", "at", "value", "message"),
    [
        (".index", 3, 1, "checksum of a block differs"),
        (".index", -1, 1, "does not end as"),
        (".index", 20, None, "does not end as"),
        (".data-00001-of-00003", 3, 1, r"data-00001-of-00003 is damaged: the checksum of model/"),
        (".data-00002-of-00003", -9, None, "data-00002-of-00003 is cut short"),
    ],
)
def test_damage_is_named_in_one_line(files, suffix, at, value, message):
    prefix, palette = files
    change(prefix.with_name(prefix.name + suffix), at, value)
    with pytest.raises(UserError, match=message) as error:
        read_openai(prefix, str(palette))
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_change_of_one_byte_of_the_index_goes_unseen(tmp_path_factory, data):
    prefix = tmp_path_factory.mktemp("b") / "m"
    oracle.write_bundle(prefix, {"a": np.ones(3, np.float32), "ab": np.zeros(2, np.float32)})
    index = prefix.with_name("m.index")
    size = index.stat().st_size
    change(index, data.draw(st.integers(0, size - 49)), data.draw(st.integers(1, 255)))
    try:
        bundle = Bundle(prefix)
    except UserError:
        return
    assert set(bundle.entries) == {"a", "ab"}  # the empty meta-index alone may be changed


def test_missing_shards_palettes_and_tensors_are_named(files):
    prefix, palette = files
    palette.rename(palette.with_name("colors.npy"))
    palette = palette.with_name("colors.npy")
    with pytest.raises(UserError, match=r"ckpt-1000 has no colours: put .*kmeans_centers.npy"):
        read_openai(prefix)
    with pytest.raises(UserError, match=r"cannot read .*gone.index"):
        read_openai(prefix.with_name("gone"), str(palette))
    weights = released()
    for name, message in (
        ("h1/attn/k_proj", "model/h1/attn/k_proj is missing"),
        ("h1/ln_2/g", "h.1.ln_2.weight is missing"),
        ("wpe", "holds no image GPT"),
    ):
        oracle.write_bundle(prefix, {k: v for k, v in weights.items() if k != f"model/{name}"})
        with pytest.raises(UserError, match=message):
            read_openai(prefix, str(palette))
    oracle.write_bundle(prefix, {**weights, "model/odd": np.ones(2, np.float32)})
    with pytest.raises(UserError, match=r"tensor odd is not part of this network"):
        read_openai(prefix, str(palette))
    oracle.write_bundle(prefix, weights, n_shards=2)
    prefix.with_name(f"{prefix.name}.data-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002: No such file"):
        read_openai(prefix, str(palette))


def test_the_folder_the_prefix_and_any_file_mean_the_checkpoint(files):
    prefix, _ = files
    names = ("", ".index", ".meta", ".data-00001-of-00003")
    for name in (str(prefix.parent), *(f"{prefix}{part}" for part in names)):
        assert find_checkpoint(name) == prefix
    for name in (f"{prefix}0", str(prefix.parent / "nowhere"), "openai/imagegpt-small"):
        assert find_checkpoint(name) is None
    oracle.write_bundle(prefix.with_name("model.ckpt-2000"), released())
    with pytest.raises(UserError, match=r"holds several checkpoints: name one, as .*ckpt-2000"):
        find_checkpoint(str(prefix.parent))


def test_load_takes_a_checkpoint_with_its_palette_beside_it(files):
    import igpt

    prefix, palette = files
    direct = load(prefix, palette=str(palette))
    assert igpt.load(prefix.parent).digest() == igpt.load(prefix).digest() == direct.digest()


def test_one_command_gives_the_loss_on_the_released_tokens(files, capsys):
    """With the authors' files it gives 2.0895, 2.0614 and 2.0466 (PAPER §C)."""
    prefix, _ = files
    rng = np.random.default_rng(3)
    tokens = {split: rng.integers(0, 8, (4, 16)) for split in ("tr", "va", "te")}
    for split, held in tokens.items():
        np.save(prefix.with_name(f"imagenet_{split}X.npy"), held)
        np.save(prefix.with_name(f"imagenet_{split}Y.npy"), np.eye(1000)[rng.integers(0, 9, 4)])
    data = str(prefix.with_name("imagenet_teX.npy"))
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(prefix), data, "--precision", "fp32", "--json"])
    assert stop.value.code == 0
    weights, losses = released(), []
    for image in tokens["te"]:
        logits = reference_logits(weights, image, sos=True)
        log_sum = np.log(np.exp(logits).sum(-1))
        losses.append((log_sum - logits[np.arange(16), image]).mean())
    found = json.loads(capsys.readouterr().out)
    assert found["nats_per_token"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert found["n_images"] == 4


@pytest.mark.parametrize("n_shards", [1, 3])
def test_tensorflow_itself_writes_what_is_read(tmp_path, n_shards):
    """Opt-in: where TensorFlow is installed (`pip install tensorflow-cpu`; 2.21 was tried)."""
    tf = pytest.importorskip("tensorflow")
    prefix = tmp_path / "model.ckpt-1"
    weights = with_training(released(D=24))
    parts = [str(tmp_path / f"part-{shard}") for shard in range(n_shards)]
    for shard, part in enumerate(parts):
        names = sorted(weights)[shard::n_shards]
        tf.raw_ops.SaveV2(
            prefix=part,
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(weights[name]) for name in names],
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(prefix), delete_old_dirs=False
    )
    assert len(list(tmp_path.glob("model.ckpt-1.data-*"))) == n_shards
    bundle = Bundle(prefix)
    assert set(bundle.entries) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(bundle.read(name), array)
    Palette(np.random.default_rng(1).uniform(-1, 1, (8, 3))).save(tmp_path / "kmeans_centers.npy")
    assert read_openai(prefix).network.config.n_layer == 2
