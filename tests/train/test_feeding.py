from contextlib import contextmanager

import numpy as np
import pytest

from igpt.config import DataConfig, RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.images.packed.rows import Packing
from igpt.images.prepare import open_data, prepare
from igpt.images.sources.find import open_source
from igpt.tokens.palette import Palette
from igpt.tokens.stored import store_tokens
from igpt.tokens.tokenizer import RawTokens
from igpt.train.feeding import (
    Ingredient,
    epoch_images,
    fitted_palette,
    originals,
    parse_mix,
    training_stream,
)
from tests.images.pictures import encoded, write_tree
from tests.images.test_live import painted

CONFIG = RunConfig(
    data=DataConfig(image_size=8, n_colors=2), train=TrainConfig(batch_size=6, total_steps=9)
)


@contextmanager
def streamed(sets, tokenizer=None):
    with originals(CONFIG, sets, workers=1) as live:
        yield training_stream(CONFIG, sets, tokenizer or RawTokens(), live)


def plain(folder, color, n=20):
    """A packed set of images of one colour."""
    image = encoded(np.full((8, 8, 3), color, np.uint8))
    return open_data(
        str(write_tree(folder, {f"{i:02d}.png": image for i in range(n)})), image_size=8
    )


def test_folding_adds_the_validation_images(digits):
    images = digits.trained_images(fold_validation=True)
    assert len(images) == digits.n("train") + digits.n("valid")
    np.testing.assert_array_equal(images[-3:], digits.images("valid")[-3:])
    assert len(digits.trained_images(fold_validation=False)) == digits.n("train")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("0.5:none:web.tar", (0.5, "none", "web.tar")),
        ("3:imagenet:C:odd:name/", (3.0, "imagenet", "C:odd:name/")),
    ],
)
def test_a_mix_is_parsed(text, parsed):
    assert parse_mix(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "web.tar", "1:web.tar", "0:none:a", "-1:none:a", "nan:none:a", "1:blur:a", "1:none:"],
)
def test_what_is_no_mix_is_one_line(text):
    with pytest.raises(UserError, match=r"--mix .*write WEIGHT:AUGMENT:DATA, such as 0.5:none:web"):
        parse_mix(text)


def test_sets_are_mixed_by_weight_with_their_own_changes(tmp_path, digits):
    web = plain(tmp_path / "web", 200)
    sets = [
        Ingredient(packed=digits, augment="flip"),
        Ingredient(packed=web, augment="none", weight=0.5),
    ]
    with streamed(sets) as stream:
        tokens = np.concatenate([stream.at(step).tokens for step in range(20)])
    assert (tokens == 200).all(axis=1).sum() == 40
    assert epoch_images(CONFIG, sets) == round(1.5 * digits.n("train"))


def test_a_palette_counts_sets_by_weight(tmp_path):
    few, many = plain(tmp_path / "few", 0, n=12), plain(tmp_path / "many", 100, n=60)
    third = plain(tmp_path / "third", 120, n=12)
    sets = [
        Ingredient(packed=few, augment="none"),
        Ingredient(packed=many, augment="none", weight=0.1),
        Ingredient(packed=third, augment="none", weight=0.3),
    ]
    levels = sorted(fitted_palette(CONFIG, sets).levels()[:, 0].tolist())
    assert levels == [0, 115]  # (0.1 * 100 + 0.3 * 120) / 0.4, whatever the numbers of images


def test_live_crops_are_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    photos = write_tree(tmp_path / "in", {f"{i:02d}.jpg": painted(i) for i in range(10)})
    packed = open_data(str(photos), image_size=8)
    live = Ingredient(packed=packed, augment="imagenet", data=str(photos))
    with streamed([live]) as stream:
        whole = stream.at(4)
        np.testing.assert_array_equal(stream.at(4, slice(2, 5)).tokens, whole.tokens[2:5])
        ahead = list(stream.prefetch(4, 6))
    np.testing.assert_array_equal(ahead[0].tokens, whole.tokens)
    seen, stored = whole.tokens.mean(1), packed.images("train")[:].mean((1, 2, 3))
    np.testing.assert_array_equal(np.abs(seen[:, None] - stored).argmin(1), whole.ids)


def test_stored_tokens_are_used_where_nothing_changes_the_images(digits, monkeypatch):
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (40, 3)))
    store_tokens(digits, palette)
    kept = Ingredient(packed=digits, augment="none")
    with streamed([kept], palette) as stream:
        expected = palette.encode(digits.images("train")[stream.at(3).ids])
        monkeypatch.setattr(Palette, "encode", None)
        np.testing.assert_array_equal(stream.at(3).tokens, expected)


def test_stored_crops_stand_for_crops_made_anew(tmp_path):
    """The paper's recipes ask for random crops: a set that holds some trains on those."""
    photos = write_tree(tmp_path / "in", {f"{i:02d}.jpg": painted(i) for i in range(10)})
    prepare(open_source(str(photos)), tmp_path / "out", packing=Packing(image_size=8, views=2))
    packed = PackedSet.open(tmp_path / "out")
    with streamed([Ingredient(packed=packed, augment="imagenet")]) as stream:
        batch = stream.at(2)
    stored = packed.images("train")[batch.ids].reshape(6, -1)
    np.testing.assert_array_equal(batch.tokens, stored)
