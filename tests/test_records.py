"""The record book: figures are measured once, and no table is typed."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from igpt import shipped
from igpt.loading import load
from igpt.probing.protocol import Labelled

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def book(monkeypatch):
    """The scripts of `records/` can be imported, as they import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "records"))


def test_figures_are_measured_once_for_a_model(tmp_path):
    from keeping import measured

    path, asked = tmp_path / "figures.json", []

    def measure():
        asked.append(len(asked))
        return {"value": asked[-1]}

    for of in ("first", "first", "second"):
        measured(path, "row", measure, of=of)
    measured(path, "other", measure, of="first")
    assert asked == [0, 1, 2]
    found = json.loads(path.read_text())
    assert (found["row"]["value"], found["row"]["of"]) == (1, "second")
    assert found["other"]["value"] == 2
    measured(path, "row", measure, of="second", again=True)
    assert json.loads(path.read_text())["row"]["value"] == 3


def test_the_probe_judges_few_labels_of_the_training_and_the_test_split(monkeypatch, tmp_path):
    import card
    import measure

    generator = np.random.default_rng(0)
    classes = np.arange(80) % 4
    means = generator.normal(size=(4, 6))
    splits = {
        split: Labelled(means[classes][None] + noise * generator.normal(size=(1, 80, 6)), classes)
        for split, noise in (("train", 0.1), ("valid", 9.0), ("test", 0.1))
    }
    kept = {}
    monkeypatch.setattr(card, "COUNTS", (4,))
    for name, stand_in in {
        "load": lambda folder: None,
        "open_for": lambda *args, **options: None,
        "features_of": lambda model, data: {"bands": splits},
        "probe_each": lambda *args, **options: None,
        "keep": lambda model, name, measure: kept.update({name: measure()}),
    }.items():
        monkeypatch.setattr(measure, name, stand_in)
    measure.probe_cifar(tmp_path, None)
    (figures,) = kept.values()
    assert list(kept) == ["few labels, 4, bands"]
    assert figures["mean"] > 0.9


def test_a_border_keeps_each_image_and_its_label(tmp_path):
    import measure

    images = np.random.default_rng(0).integers(1, 256, (2, 20, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(20)
    np.savez(
        tmp_path / "small.npz",
        x_train=images[0],
        y_train=labels,
        x_test=images[1],
        y_test=labels,
    )
    measure.border(str(tmp_path / "small.npz"), 6, 2, tmp_path / "padded.npz")
    with np.load(tmp_path / "padded.npz") as held:
        for part, given in zip(("train", "test"), images, strict=True):
            padded, order = held[f"x_{part}"], held[f"y_{part}"]
            assert sorted(order) == list(labels)
            np.testing.assert_array_equal(padded[:, 2:-2, 2:-2], given[order])
            assert padded.shape == (20, 10, 10, 3)
            assert padded.sum() == given.sum()  # nothing but black around


def test_a_curve_is_thinned_and_ends_with_the_last_point(monkeypatch, tmp_path):
    import book

    monkeypatch.setattr(book, "SHIPPED", tmp_path)
    (tmp_path / "model").mkdir()
    for n, step in ((1, 1), (31, 1), (32, 2), (65, 4)):
        lines = [json.dumps({"images": i, "valid_nats": 1.0}) for i in range(1, n + 1)]
        (tmp_path / "model/metrics.jsonl").write_text("\n".join(lines))
        shown = [int(row.split("|")[1]) for row in book.curve_rows("model")[2:]]
        assert shown[-1] == n
        assert all(later - earlier == step for earlier, later in itertools.pairwise(shown))
        assert len(shown) < 2 * book.N_CURVE


@pytest.mark.parametrize("document", ["RESULTS.md", "records/README.md"])
def test_the_tables_of_the_models_that_ship_are_those_of_their_figures(document):
    import book

    path = ROOT / document
    text = path.read_text()
    for name, table in book.documents()[path].items():
        assert book.replaced(text, name, table) == text, "run records/book.py"


@pytest.mark.parametrize("name", shipped.names())
def test_the_card_and_the_figures_are_of_the_model_that_ships(name):
    import card

    model = load(name)
    assert {figures["of"] for figures in card.Book.of(name).figures.values()} == {model.digest()}
    assert (shipped.MODELS / name / "README.md").read_text() == card.card(model, name)
