import json

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.prepare import Packing, prepare
from igpt.images.sources.find import open_source
from igpt.tokens.batches import BatchStream
from igpt.tokens.palette import Palette
from igpt.tokens.stored import store_tokens, stored_tokens
from igpt.tokens.tokenizer import RawTokens

PALETTE = Palette(np.random.default_rng(0).uniform(-1, 1, (300, 3)))


@pytest.fixture
def packed(tmp_path):
    return prepare(open_source("digits"), tmp_path / "set", packing=Packing(image_size=8))


def stored(packed, split="train", tokenizer=PALETTE):
    return stored_tokens(packed, tokenizer, packed.rows(split))


@pytest.mark.parametrize("tokenizer", [PALETTE, Palette(PALETTE.colors[:17]), RawTokens()])
def test_stored_tokens_are_those_of_the_images(packed, tokenizer):
    assert stored(packed, tokenizer=tokenizer) is None
    path = store_tokens(packed, tokenizer)
    tokens = stored(packed, "valid", tokenizer)
    assert np.load(path, mmap_mode="r").dtype == (np.uint16 if tokenizer is PALETTE else np.uint8)
    assert tokens.shape == tokens[:].shape
    np.testing.assert_array_equal(tokens[:], tokenizer.encode(packed.images("valid")[:]))


def test_a_stream_of_stored_tokens_is_that_of_the_images(packed):
    store_tokens(packed, PALETTE)
    slow, fast = (
        BatchStream(images, None, PALETTE, batch_size=7, seed=3)
        for images in (packed.images("train"), stored(packed))
    )
    for step in (0, 500):
        np.testing.assert_array_equal(slow.at(step).tokens, fast.at(step).tokens)


def test_tokens_cannot_be_augmented(packed):
    store_tokens(packed, PALETTE)
    with pytest.raises(UserError, match="tokens, which cannot be augmented"):
        BatchStream(stored(packed), None, PALETTE, batch_size=7, seed=3, augment="flip")


def test_storing_again_changes_nothing(packed):
    path = store_tokens(packed, PALETTE)
    before = path.stat().st_mtime_ns
    assert store_tokens(packed, PALETTE) == path
    assert path.stat().st_mtime_ns == before


def test_half_written_tokens_are_not_read(packed):
    store_tokens(packed, PALETTE).with_suffix(".json").unlink()
    assert stored(packed) is None


def test_cut_tokens_are_one_line(packed):
    path = store_tokens(packed, PALETTE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"tokens-.*npy is missing or damaged: delete"):
        stored(packed)


@pytest.mark.parametrize("key", ["of", "palette"])
def test_tokens_of_other_images_are_one_line(packed, key):
    path = store_tokens(packed, PALETTE).with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "other"}))
    with pytest.raises(UserError, match="holds tokens of other images: delete"):
        stored(packed)
