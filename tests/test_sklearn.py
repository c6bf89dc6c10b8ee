"""The estimators against scikit-learn's own checks, and in its tools."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import igpt
from igpt.errors import UserError
from igpt.sklearn import IGPTClassifier, IGPTFeatures
from tests.networks import pixel_model

SIDE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixel_model(image_size=SIDE).save(tmp_path_factory.mktemp("sklearn") / "model")


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    """The checks' estimators are made before there is a folder, so they name it from here."""
    monkeypatch.chdir(folder.parent)


def tiny_pictures(_, rows):
    """Any numbers as pixels that follow them: what scikit-learn's checks make up is no image.

    The pixels of a picture differ in brightness, so few colours still tell close numbers apart.
    """
    n_pixels = SIDE**2
    tiled = np.tile(np.asarray(rows, np.float64), -(-3 * n_pixels // rows.shape[1]))
    values = tiled[:, : 3 * n_pixels].reshape(-1, n_pixels, 3)
    levels = 128 + 60 * values + np.linspace(-90, 90, n_pixels)[:, None]
    return np.clip(levels, 0, 255).astype(np.uint8).reshape(-1, SIDE, SIDE, 3)


class NumberFeatures(IGPTFeatures):
    _as_pictures = tiny_pictures


class NumberClassifier(IGPTClassifier):
    _as_pictures = tiny_pictures


@parametrize_with_checks([NumberFeatures("model"), NumberClassifier("model")])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def labelled():
    """Dark and light pictures."""
    rng = np.random.default_rng(0)
    dark, light = (rng.integers(low, low + 60, (12, SIDE, SIDE, 3)) for low in (20, 160))
    y = np.array(["dark", "light"]).repeat(12)
    order = rng.permutation(24)
    return np.concatenate([dark, light]).astype(np.uint8)[order], y[order]


def test_fitting_features_computes_none(labelled, monkeypatch):
    features = IGPTFeatures("model")
    monkeypatch.setattr("igpt.pixelmodel.PixelModel.features", None)
    features.fit(labelled[0])
    assert features.layer_ == 1
    assert len(features.get_feature_names_out()) == 16


@pytest.mark.parametrize("pooling", [None, "mean", "bands"])
def test_pooling_is_a_parameter(labelled, pooling):
    width = 80 if pooling == "bands" else 16
    features = IGPTFeatures("model", pooling=pooling).fit(labelled[0])
    assert features.transform(labelled[0][:3]).shape == (3, width)
    assert len(features.get_feature_names_out()) == width
    classifier = IGPTClassifier("model", pooling=pooling, C=1.0).fit(*labelled)
    assert classifier.coef_.shape[1] == width


def test_columns_of_paths_and_tables_of_one_are_images(labelled, tmp_path):
    pd = pytest.importorskip("pandas")
    paths = []
    for i, image in enumerate(labelled[0][:4]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    table = pd.DataFrame({"path": paths, "taken": range(4)})
    want = IGPTFeatures("model").fit_transform(labelled[0][:4])
    for X in (paths, np.array(paths, object)[:, None], table["path"], table[["path"]]):
        np.testing.assert_array_equal(IGPTFeatures("model").fit_transform(X), want)
    both = ColumnTransformer(
        [("image", IGPTFeatures("model"), ["path"]), ("rest", "passthrough", ["taken"])]
    )
    assert both.fit_transform(table).shape == (4, 17)


def test_grey_arrays_and_floats_are_images(labelled):
    grey = labelled[0][..., 0]
    want = IGPTFeatures("model").fit_transform(np.repeat(grey[..., None], 3, 3))
    for X in (grey, grey[..., None], grey / 255):
        np.testing.assert_array_equal(IGPTFeatures("model").fit_transform(X), want)


def test_features_are_the_models(labelled, folder):
    images, _ = labelled
    model = igpt.load(folder)
    for layer, number in (("best", 1), (2, 2)):
        found = IGPTFeatures("model", layer=layer).fit_transform(images)
        np.testing.assert_array_equal(found, model.features(images, number))


def test_images_come_in_every_form(labelled, tmp_path):
    images, _ = labelled
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    features = IGPTFeatures("model").fit(images)
    expected = features.transform(images)
    names = [str(path) for path in paths]
    forms = [
        list(images),
        paths,
        names,
        np.array(names),
        [Image.open(path) for path in paths],
        images.reshape(24, -1),
        images.reshape(24, -1).astype(np.float64),
    ]
    for form in forms:
        np.testing.assert_array_equal(features.transform(form), expected)


def test_classes_are_told_apart_by_few_labels(labelled):
    images, y = labelled
    classifier = IGPTClassifier("model").fit(images[:8], y[:8])
    assert classifier.score(images[8:], y[8:]) == 1
    assert list(classifier.classes_) == ["dark", "light"]
    probabilities = classifier.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (classifier.classes_[probabilities.argmax(1)] == classifier.predict(images)).all()
    assert ((classifier.decision_function(images) > 0) == (y == "light")).all()


def test_the_optimum_is_scikit_learns(labelled):
    images, y = labelled
    rng = np.random.default_rng(1)
    three = np.where(rng.random(24) < 0.3, "other", y)
    ours = IGPTClassifier("model", C=0.1).fit(images, three)
    features = IGPTFeatures("model").fit_transform(images)
    scale = features.std(0)
    theirs = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(features / scale, three)
    np.testing.assert_allclose(
        ours.predict_proba(images), theirs.predict_proba(features / scale), atol=2e-3
    )


def test_pipelines_searches_and_workers(labelled):
    images, y = labelled
    pipeline = make_pipeline(IGPTFeatures("model"), LogisticRegression())
    search = GridSearchCV(pipeline, {"igptfeatures__layer": [0, 1, "best"]}, cv=3).fit(images, y)
    assert search.best_score_ == 1
    search = GridSearchCV(IGPTClassifier("model"), {"C": [0.01, 1.0, None]}, cv=3)
    assert search.fit(list(images), y).best_score_ == 1
    assert cross_val_score(IGPTClassifier("model"), images, y, cv=3).mean() == 1


def test_pickles_hold_the_name_and_no_weights(labelled, folder):
    images, y = labelled
    classifier = IGPTClassifier(str(folder)).fit(images, y)
    pickled = pickle.dumps(classifier)
    assert len(pickled) < 4000 < (folder / "model.safetensors").stat().st_size
    igpt.sklearn._kept.cache_clear()
    assert (pickle.loads(pickled).predict(images) == classifier.predict(images)).all()


def test_clones_are_unfitted_and_names_of_outputs_follow_scikit_learn(labelled):
    images, _ = labelled
    features = IGPTFeatures("model", layer=0).fit(images)
    assert clone(features).get_params() == features.get_params()
    assert not hasattr(clone(features), "layer_")
    assert features.get_feature_names_out()[[0, -1]].tolist() == ["igptfeatures0", "igptfeatures15"]


def test_another_model_under_the_name_is_refused(labelled, tmp_path):
    images, y = labelled
    pixel_model(image_size=SIDE).save(tmp_path / "m")
    classifier = IGPTClassifier(tmp_path / "m").fit(images, y)
    other = pixel_model(image_size=SIDE)
    other.network.wpe.weight.data += 1
    other.save(tmp_path / "m")
    with pytest.raises(UserError, match=r"m is another model than the one fitted on: fit again"):
        classifier.predict(images)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((2, 47)), r"X has rows of 47 numbers: this model reads .* rows of 48"),
        (np.full((2, 48), 0.5), r"X has rows that are no levels: give whole numbers from 0 to 255"),
        (np.full((2, 48), 256), r"X has rows that are no levels"),
        ("cat.png", r"X is a single image: pass a list of images"),
        (["no.png"], r"no.png"),
        (np.zeros((2, 5, 5, 7)), r"\(2, 5, 5, 7\) .* are no images: give \(N, H, W\)"),
    ],
)
def test_what_is_no_image_is_said_plainly(X, message):
    with pytest.raises(UserError, match=message) as error:
        IGPTFeatures("model").fit(X).transform(X)
    assert "\n" not in str(error.value)


def test_missing_models_and_layers_are_said_plainly(labelled):
    with pytest.raises(UserError, match=r"nowhere is neither a run nor a model folder"):
        IGPTFeatures("nowhere").fit(labelled[0])
    with pytest.raises(UserError, match=r"layer 9 does not exist"):
        IGPTFeatures("model", layer=9).fit(labelled[0])


def test_the_estimators_are_loaded_when_they_are_asked_for():
    code = "import sys, igpt; assert 'sklearn' in dir(igpt) and 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert igpt.__getattr__("sklearn").IGPTFeatures is IGPTFeatures


def pictures_of_two(n=24):
    """Dark and light ones, with their names."""
    rng = np.random.default_rng(0)
    levels = np.where(np.arange(n) % 2, 60, 190)[:, None, None, None]
    images = np.clip(levels + rng.integers(-50, 50, (n, 8, 8, 3)), 0, 255).astype(np.uint8)
    return images, np.where(np.arange(n) % 2, "dark", "light")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return str(pixel_model().save(tmp_path_factory.mktemp("m") / "m"))


@pytest.mark.parametrize("C", [0, -1, float("nan"), -np.inf, "1", [1.0]])
def test_strengths_that_are_none_are_refused_as_scikit_learn_refuses_them(saved, C):
    with pytest.raises(ValueError, match="The 'C' parameter of IGPTClassifier must be"):
        IGPTClassifier(saved, C=C).fit(*pictures_of_two())


@pytest.mark.parametrize("C", [1, np.float32(1), np.int64(1), 1e12, np.inf])
def test_every_strength_that_is_one_gives_a_classifier(saved, C):
    X, y = pictures_of_two()
    fitted = IGPTClassifier(saved, C=C).fit(X, y)
    assert np.isfinite(fitted.coef_).all() and np.isfinite(fitted.predict_proba(X)).all()
    assert fitted.score(X, y) == 1


def test_layers_of_a_search_come_from_numpy(saved):
    X, _ = pictures_of_two()
    expected = IGPTFeatures(saved, layer=1).fit_transform(X)
    np.testing.assert_array_equal(IGPTFeatures(saved, layer=np.int64(1)).fit_transform(X), expected)
    for layer in (-1, 1.5, "first", None):
        with pytest.raises(ValueError, match="The 'layer' parameter"):
            IGPTFeatures(saved, layer=layer).fit(X)
