import json
import types

import numpy as np
import pytest
from PIL import Image

import igpt
from igpt.errors import UserError
from tests.networks import pixel_model


@pytest.fixture
def model():
    return pixel_model(image_size=4)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)


def test_a_saved_model_comes_back_equal(model, pictures, tmp_path):
    again = igpt.load(model.save(tmp_path / "model"))
    tokens = model.encode(pictures)
    assert np.array_equal(tokens, again.encode(pictures))
    assert (model.logits(tokens) == again.logits(tokens)).all()
    assert again.facts == model.facts
    assert again.digest() == model.digest()


def test_a_model_says_what_it_is(model, tmp_path):
    said = repr(igpt.load(model.save(tmp_path / "mine")))
    network = model.network
    size = f"{network.config.n_layer} layers of {network.config.n_embd}"
    assert said == f"<PixelModel mine: ar, 4 x 4 pixels, {network.n_colors} colours, {size}>"
    assert repr(model).startswith("<PixelModel: ar, ")


def test_images_come_as_arrays_pictures_or_paths_of_any_size(model, pictures, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0]).save(path)
    expected = model.encode(pictures[0])
    assert np.array_equal(model.encode(path), expected)
    assert np.array_equal(model.encode(str(path)), expected)
    assert np.array_equal(model.encode([Image.open(path), pictures[0]]), np.repeat(expected, 2, 0))
    large = pictures[0].repeat(6, 0).repeat(6, 1)
    wide = np.concatenate([large[:, :5], large, large[:, -5:]], axis=1)
    assert np.array_equal(model.encode(wide), expected)  # centre square, then area


def test_nats_are_the_mean_surprise(model, pictures):
    surprise = model.surprise(pictures)
    assert surprise.shape == (3, 4, 4)
    np.testing.assert_allclose(model.nats(pictures), surprise.mean((1, 2)))


def test_features_are_those_of_the_asked_layer(model, pictures):
    assert model.features(pictures, layer=0).shape == (3, model.network.config.n_embd)
    with pytest.raises(UserError, match=r"layer 9 does not exist: choose 0 to 2, or 'best'"):
        model.features(pictures, layer=9)


def test_completions_keep_what_is_given(model, pictures):
    drawn = model.complete(pictures, keep_rows=0.5, n=2, seed=1)
    assert drawn.shape == (3, 2, 4, 4, 3)
    kept = model.decode(model.encode(pictures))[:, None, :2]
    assert np.array_equal(drawn[:, :, :2], np.broadcast_to(kept, drawn[:, :, :2].shape))
    with pytest.raises(UserError, match=r"give either keep_rows or keep"):
        model.complete(pictures)
    with pytest.raises(UserError, match=r"the mask is \(3, 4\): this model needs \(4, 4\) pixels"):
        model.complete(pictures, keep=np.ones((3, 4), bool))


def test_grey_and_float_arrays_are_images_too(model, pictures):
    grey = pictures[..., :1].repeat(3, axis=3)
    assert np.array_equal(model.encode(grey[0, ..., 0]), model.encode(grey[0]))
    assert np.array_equal(model.encode(pictures / 255), model.encode(pictures))
    with pytest.raises(UserError, match="are no images: give"):
        model.encode([np.zeros((5, 5, 7))])


def test_best_features_are_those_that_the_saved_probe_reads(model, pictures, tmp_path):
    assert model.feature_choice().pooling == "mean"
    model.classifier = types.SimpleNamespace(layer=1, pooling="bands", normalised=False)
    choice = model.feature_choice()
    assert (choice.layer, choice.pooling, choice.normalised) == (1, "bands", False)
    best = model.features(pictures)
    assert best.shape == (len(pictures), choice.width)
    same = model.features(pictures, layer=1, pooling="bands", normalised=False)
    assert np.array_equal(best, same)
    assert model.feature_choice(layer=np.int64(1)).pooling == "mean"
    with pytest.raises(UserError, match="pooling 'max' does not exist: choose from mean, bands"):
        model.features(pictures, pooling="max")


def test_no_images_and_no_probe_are_said_plainly(model, pictures):
    with pytest.raises(UserError, match=r"there are no images: pass at least one"):
        model.encode([])
    with pytest.raises(UserError, match=r"has no probe: run `igpt probe MODEL DATA` first"):
        model.classify(pictures)


def broken(folder, name, change):
    path = folder / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_damaged_folder_is_one_line_that_names_the_file(model, tmp_path):
    folder = model.save(tmp_path / "model")
    broken(folder, "config.json", lambda d: d["igpt"].update(schema_version=99))
    with pytest.raises(UserError, match=r"config.json has schema version 99"):
        igpt.load(folder)
    model.save(folder)
    broken(folder, "preprocessor_config.json", lambda d: d.pop("clusters"))
    with pytest.raises(UserError, match=r"preprocessor_config.json has no clusters"):
        igpt.load(folder)
    model.save(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        igpt.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        igpt.load(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda d: d.pop("n_layer"), r"config.json is damaged \(KeyError\('n_layer"),
        ("config.json", lambda d: d["igpt"].update(odd=1), r"config.json is damaged \(TypeError"),
        ("config.json", lambda d: d.update(n_embd="wide"), r"config.json is damaged"),
        ("config.json", lambda d: d.update(vocab_size=9), r"clusters are \(27, 3\), the model has"),
        (
            "preprocessor_config.json",
            lambda d: d["clusters"].append([1]),
            r"are no \(K, 3\) numbers",
        ),
        (
            "preprocessor_config.json",
            lambda d: d["clusters"][0].__setitem__(0, 9),
            r"lie in \[-1, 1",
        ),
    ],
)
def test_a_changed_description_is_one_line_that_names_the_file(
    model, tmp_path, name, change, message
):
    folder = model.save(tmp_path / "model")
    broken(folder, name, change)
    with pytest.raises(UserError, match=message) as error:
        igpt.load(folder)
    assert name.split(".")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_saving_over_something_else_is_refused(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not a model folder of igpt: choose another place"):
        model.save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_text("{}")
    with pytest.raises(UserError, match=r"run is not a model folder of igpt: choose another place"):
        model.save(run)


def test_a_place_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no model \(config.json is missing\)"):
        igpt.load(tmp_path)


def test_saving_leaves_what_igpt_did_not_write(model, tmp_path):
    """Notes, a repository, an edited card; what another program's config.json stands for."""
    folder = model.save(tmp_path / "clone")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (folder / "notes.md").write_text("what I found out")
    (folder / "README.md").write_text("my own card")
    igpt.load(folder).save(folder)
    assert (folder / ".git" / "HEAD").read_text() == "ref: refs/heads/main"
    assert (folder / "notes.md").read_text() == "what I found out"
    assert (folder / "README.md").read_text() == "my own card"
    assert igpt.load(folder).digest() == model.digest()
    app = tmp_path / "app"
    app.mkdir()
    (app / "config.json").write_text('{"name": "shop", "port": 8080}')
    with pytest.raises(UserError, match="is not a model folder of igpt"):
        model.save(app)
    assert [p.name for p in app.iterdir()] == ["config.json"]
