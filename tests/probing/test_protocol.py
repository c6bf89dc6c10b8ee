"""The probe's protocol, its saved form and its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from igpt.errors import UserError
from igpt.model.head import SavedProbe
from igpt.probing import protocol
from igpt.probing.protocol import (
    Labelled,
    LayerScore,
    accuracy_of,
    best_score,
    check_labels,
    join_layers,
    pixel_features,
    present_labels,
    probe_layers,
    score_of,
    window,
)

N_LAYERS, WIDTH, N_CLASSES = 3, 8, 4


def split(n: int, seed: int, *, signal: tuple[float, ...] = (0.2, 3.0, 0.5)) -> Labelled:
    """Layers that know the class more or less well: the middle one best."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N_CLASSES, n)
    centres = np.random.default_rng(0).normal(size=(N_CLASSES, WIDTH))
    noise = rng.normal(size=(N_LAYERS, n, WIDTH))
    features = np.array(signal)[:, None, None] * centres[labels] + noise
    return Labelled(features.astype(np.float32), labels)


def a_probe() -> SavedProbe:
    return SavedProbe(
        weights=np.eye(3, 5, dtype=np.float32),
        biases=np.array([0.0, 0.5, 0.0], np.float32),
        layer=2,
        normalised=True,
        strength=0.1,
        labels=(0, 2, 5),
        classes=("cat", "dog", "owl"),
        model_digest="m",
        protocol="chosen on valid",
    )


def test_best_layer_is_chosen_and_scored_as_scikit_learn_scores_it() -> None:
    train, valid, test = split(300, 1), split(100, 2), split(200, 3)
    result, weights, biases = probe_layers(train, valid, test, layers=[0, 1, 2])
    assert result.layer == 1
    assert [score.layer for score in result.by_layer] == [0, 1, 2]
    assert result.valid_accuracy == result.by_layer[1].valid_accuracy
    both = np.concatenate([train.features[1], valid.features[1]])
    labels = np.concatenate([train.labels, valid.labels])
    scaler = StandardScaler().fit(both)
    reference = LogisticRegression(C=result.strength, tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(both), labels)
    expected = reference.predict_proba(scaler.transform(test.features[1]))
    scores = test.features[1] @ weights.T + biases
    ours = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.abs(ours - expected).max() < 1e-3
    accuracy = (scores.argmax(axis=1) == test.labels).mean()
    assert result.test_accuracy == pytest.approx(accuracy)
    assert (result.n_train, result.n_valid, result.n_test) == (300, 100, 200)


def test_scores_are_counted_by_hand_however_many_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    weights, biases, features = (
        rng.normal(size=(3, 5)),
        rng.normal(size=3),
        rng.normal(size=(40, 5)),
    )
    present, labels = np.array([2, 4, 9]), rng.choice([2, 4, 7, 9], 40)  # 7 cannot be guessed
    chances = np.exp(features @ weights.T + biases)
    chances /= chances.sum(axis=1, keepdims=True)
    right = sum(present[row.argmax()] == label for row, label in zip(chances, labels, strict=True))
    column = {2: 0, 4: 1, 9: 2}
    losses = [-np.log(chances[i, column[n]]) for i, n in enumerate(labels.tolist()) if n in column]
    for size in (7, 100):
        monkeypatch.setattr(protocol, "SCORED_ROWS", size)
        arguments = (weights, biases, present, features)
        score = score_of(*arguments, labels, layer=6, strength=0.3)
        assert accuracy_of(*arguments, labels) == right / 40
        assert (score.layer, score.strength, score.valid_accuracy) == (6, 0.3, right / 40)
        assert score.valid_loss_nats == pytest.approx(np.mean(losses))
        unknown = score_of(*arguments, np.full(40, 7), layer=6, strength=0.3)
        assert (unknown.valid_accuracy, unknown.valid_loss_nats) == (0, np.inf)


def test_among_equal_accuracies_the_lowest_loss_is_best() -> None:
    scores = [
        LayerScore(layer=i, strength=1.0, valid_accuracy=accuracy, valid_loss_nats=loss)
        for i, (accuracy, loss) in enumerate([(0.5, 0.1), (0.6, 0.9), (0.6, 0.8), (0.6, 0.85)])
    ]
    assert best_score(scores).layer == 2


def test_standard_error_is_that_of_a_share_and_each_layer_is_told() -> None:
    told: list[int] = []
    weak = (0.2, 0.8, 0.5)
    parts = [split(n, seed, signal=weak) for n, seed in ((300, 1), (100, 2), (200, 3))]
    result, _, _ = probe_layers(*parts, layers=[0, 1, 2], progress=told.append)
    share = result.test_accuracy
    assert result.test_accuracy_se == pytest.approx((share * (1 - share) / 200) ** 0.5)
    assert 0 < share < 1
    assert told == [1, 1, 1]


@pytest.mark.parametrize("place", range(3))
def test_every_split_needs_its_labels(place: int) -> None:
    splits = [split(300, 1), split(100, 2), split(200, 3)]
    splits[place] = Labelled(splits[place].features, splits[place].labels[1:])
    with pytest.raises(UserError, match=f"{('train', 'valid', 'test')[place]} has"):
        probe_layers(*splits, layers=[0, 1, 2])


def test_test_labels_choose_nothing() -> None:
    train, valid, test = split(300, 1), split(100, 2), split(200, 3)
    shuffled = Labelled(test.features, np.roll(test.labels, 7))
    one, weights, _ = probe_layers(train, valid, test, layers=[0, 1, 2])
    other, same_weights, _ = probe_layers(train, valid, shuffled, layers=[0, 1, 2])
    assert replace(one, test_accuracy=0, test_accuracy_se=0) == replace(
        other, test_accuracy=0, test_accuracy_se=0
    )
    assert np.array_equal(weights, same_weights)


def test_labels_need_not_be_consecutive() -> None:
    names = np.array([3, 7, 8, 40])
    plain = split(300, 1), split(100, 2), split(200, 3)
    renamed = tuple(Labelled(part.features, names[part.labels]) for part in plain)
    one, _, _ = probe_layers(*plain, layers=[0, 1, 2])
    other, _, _ = probe_layers(*renamed, layers=[0, 1, 2])
    assert other.labels == (3, 7, 8, 40)
    assert replace(one, labels=()) == replace(other, labels=())
    assert present_labels(renamed[0].labels).tolist() == [3, 7, 8, 40]


def test_class_that_train_lacks_counts_as_wrong() -> None:
    train, valid, test = split(300, 1), split(100, 2), split(200, 3)
    few = train.labels != 3
    without = Labelled(train.features[:, few], train.labels[few])
    result, _, _ = probe_layers(without, valid, test, layers=[0, 1, 2])
    assert result.valid_accuracy <= (valid.labels != 3).mean()


@pytest.mark.parametrize(
    ("labels", "n_images", "message"),
    [
        (None, 5, "no labels"),
        (np.zeros(5, int), 5, "all train images are of one class"),
        (np.arange(5), 5, "5 train images of 5 classes"),
        (np.zeros(4, int), 5, "5 images but 4 labels"),
        (np.zeros(0, int), 0, "no train images"),
        (np.array([0, 1, -1, -1, 0]), 5, "2 of the train images have no label"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    labels: np.ndarray | None, n_images: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_labels(labels, n_images, "train")


def test_pixels_lie_between_minus_one_and_one() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1] = 255
    features = pixel_features(images)
    assert features.shape == (2, 48)
    assert features.dtype == np.float32
    assert (features[0] == -1).all()
    assert (features[1] == 1).all()


@pytest.mark.parametrize(("around", "taken"), [(0, 0), (1, 0), (3, 1), (6, 2)])
def test_joined_layers_are_adjacent_and_centred(around: int, taken: int) -> None:
    features = np.arange(7, dtype=np.float32)[:, None, None] * np.ones((7, 4, 2), np.float32)
    layers = window(around, len(features), 5)
    assert window(around, len(features), 9) == range(7)
    assert layers == range(taken, taken + 5)
    joined = join_layers(features, layers)
    assert joined.shape == (1, 4, 10)
    assert (len(list(joined)), len(joined[0])) == (1, 4)
    assert (
        joined[0][np.array([2])][0].tolist() == np.repeat(np.arange(taken, taken + 5), 2).tolist()
    )


def test_saved_probe_comes_back_whole(tmp_path: Path) -> None:
    probe = a_probe()
    probe.save(tmp_path)
    again = SavedProbe.load(tmp_path, model_digest="m")
    assert np.array_equal(again.weights, probe.weights)
    assert np.array_equal(again.biases, probe.biases)
    assert replace(again, weights=probe.weights, biases=probe.biases) == probe
    assert again.classify(np.eye(5, dtype=np.float32)[:3] * 2) == ["cat", "dog", "owl"]
    assert np.exp(again.log_prob(np.ones((2, 5), np.float32))).sum(axis=1) == pytest.approx(1)


def test_probe_of_another_model_is_refused(tmp_path: Path) -> None:
    a_probe().save(tmp_path)
    with pytest.raises(UserError, match="fitted on another model or palette"):
        SavedProbe.load(tmp_path, model_digest="other")


def test_damaged_probe_is_refused(tmp_path: Path) -> None:
    a_probe().save(tmp_path)
    document = json.loads((tmp_path / "probe.json").read_text())
    for key in document:
        if key == "model_digest":
            continue
        broken = {name: value for name, value in document.items() if name != key}
        (tmp_path / "probe.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="is damaged"):
            SavedProbe.load(tmp_path, model_digest="m")
    (tmp_path / "probe.json").write_text(json.dumps(document))
    data = bytearray((tmp_path / "probe.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "probe.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        SavedProbe.load(tmp_path, model_digest="m")
    (tmp_path / "probe.safetensors").unlink()
    with pytest.raises(UserError, match="is damaged"):
        SavedProbe.load(tmp_path, model_digest="m")
