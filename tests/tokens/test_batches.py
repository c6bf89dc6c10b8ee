import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.tokens.batches import Batch, BatchStream, Source
from igpt.tokens.tokenizer import RawTokens

RAW = RawTokens()


def numbered(n, side=2, first=0):
    """Images that each hold their own number in every byte."""
    return np.broadcast_to(
        np.arange(first, first + n, dtype=np.uint8)[:, None, None, None], (n, side, side, 3)
    )


def textured(n, side=4):
    return np.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def numbered_stream(n, batch_size, seed=0, **options):
    return BatchStream(
        numbered(n), np.arange(n) % 10, RAW, batch_size=batch_size, seed=seed, **options
    )


def assert_same(first, second):
    assert first.step == second.step
    for name in ("tokens", "ids", "labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@settings(deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 17), seed=st.integers(0, 9))
def test_each_image_comes_once_an_epoch(n, batch_size, seed):
    stream = numbered_stream(n, batch_size, seed)
    steps = -(-3 * n // batch_size)
    ids = np.concatenate([stream.at(step).ids for step in range(steps)])[: 3 * n]
    epochs = ids.reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))


@settings(deadline=None)
@given(n=st.integers(1, 60), step=st.integers(0, 10**9))
def test_tokens_labels_and_ids_belong_together(n, step):
    batch = numbered_stream(n, 8).at(step)
    assert batch.tokens.dtype == np.int64
    assert batch.tokens.shape == (8, 12)
    np.testing.assert_array_equal(batch.tokens, np.repeat(batch.ids[:, None], 12, axis=1))
    np.testing.assert_array_equal(batch.labels, batch.ids % 10)
    assert batch.step == step


@settings(deadline=None)
@given(
    step=st.integers(0, 10**6),
    start=st.integers(0, 16),
    n=st.integers(0, 16),
    augment=st.sampled_from(["none", "flip", "cifar"]),
)
def test_slots_of_a_step_are_the_same_alone(step, start, n, augment):
    stream = BatchStream(textured(37), np.arange(37), RAW, batch_size=16, seed=1, augment=augment)
    slots = slice(start, min(start + n, 16))
    part, whole = stream.at(step, slots), stream.at(step)
    np.testing.assert_array_equal(part.ids, whole.ids[slots])
    np.testing.assert_array_equal(part.labels, whole.labels[slots])
    np.testing.assert_array_equal(part.tokens, whole.tokens[slots])


def test_two_ranks_together_hold_what_one_does():
    one = numbered_stream(50, 8).at(5)
    ranks = [numbered_stream(50, 8).at(5, slice(4 * rank, 4 * rank + 4)) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([batch.ids for batch in ranks]), one.ids)


def test_late_steps_cost_what_early_ones_do():
    stream = numbered_stream(50, 32)

    def seconds_at(step):
        start_s = time.perf_counter()
        for _ in range(20):
            stream.at(step)
        return time.perf_counter() - start_s

    seconds_at(0)
    assert seconds_at(10**9) < 10 * seconds_at(0)


def test_without_labels_there_are_none():
    batch = BatchStream(numbered(9), None, RAW, batch_size=4, seed=0).at(0)
    assert batch.labels is None


def test_seeds_and_names_give_other_orders():
    streams = [
        numbered_stream(50, 50),
        numbered_stream(50, 50, 1),
        numbered_stream(50, 50, name="b"),
    ]
    assert len({stream.at(0).ids.tobytes() for stream in streams}) == 3


def test_flip_turns_half_of_the_images_left_to_right():
    images = textured(10)
    stream = BatchStream(images, None, RAW, batch_size=500, seed=0, augment="flip")
    batch = stream.at(0)
    seen = RAW.decode(batch.tokens)
    as_is = (seen == images[batch.ids]).all(axis=(1, 2, 3))
    flipped = (seen == images[batch.ids][:, :, ::-1]).all(axis=(1, 2, 3))
    assert (as_is ^ flipped).all()
    assert 0.4 < flipped.mean() < 0.6
    again = RAW.decode(stream.at(1).tokens)
    assert (again != seen).any()


def test_cifar_augmentation_cuts_each_image_anew():
    images = textured(3, side=16)
    batch = BatchStream(images, None, RAW, batch_size=600, seed=0, augment="cifar").at(0)
    seen = {}
    for image_id, image in zip(batch.ids, RAW.decode(batch.tokens), strict=True):
        seen.setdefault(int(image_id), set()).add(image.tobytes())
    for image_id, image in enumerate(images):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        cuts = [padded[top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
        possible = {cut.tobytes() for cut in [*cuts, *(cut[:, ::-1] for cut in cuts)]}
        assert seen[image_id] <= possible
        assert len(seen[image_id]) > 35


@pytest.mark.parametrize("augment", ["flip", "cifar"])
def test_images_are_left_as_they_are(augment):
    images = textured(10)
    before = images.copy()
    BatchStream(images, None, RAW, batch_size=500, seed=0, augment=augment).at(0)
    np.testing.assert_array_equal(images, before)


def test_tokens_are_taken_as_they_are():
    tokens = np.arange(40, dtype=np.uint16).reshape(10, 4)
    batch = BatchStream(tokens, None, None, batch_size=7, seed=0).at(3)
    assert batch.tokens.dtype == np.int64
    np.testing.assert_array_equal(batch.tokens, tokens[batch.ids])


@settings(deadline=None, max_examples=30)
@given(
    weights=st.lists(st.fractions(Fraction(1, 10), 5, max_denominator=10), min_size=1, max_size=4),
    batch_size=st.integers(1, 9),
)
def test_mixtures_have_exact_proportions(weights, batch_size):
    sources = [
        Source(images=numbered(7, first=10 * k), weight=float(weight), name=f"s{k}")
        for k, weight in enumerate(weights)
    ]
    decimals = [Fraction(str(float(weight))) for weight in weights]
    if max(weight.denominator for weight in decimals) > 1000:
        return  # thirds have no short decimal form
    stream = BatchStream.mixed(sources, RAW, batch_size=batch_size, seed=0)
    ids = np.concatenate([stream.at(step).ids for step in range(40)])
    for k, weight in enumerate(decimals):
        share = weight / sum(decimals)
        came = np.cumsum(ids // 7 == k)
        expected = np.arange(1, len(ids) + 1) * float(share)
        assert np.abs(came - expected).max() <= 2  # never further off than that


def test_mixed_sources_keep_their_own_epochs_and_labels():
    sources = [
        Source(images=numbered(5), labels=np.arange(5), weight=3, name="labelled"),
        Source(images=numbered(4, first=100), weight=1, name="web"),
    ]
    stream = BatchStream.mixed(sources, RAW, batch_size=8, seed=0)
    batches = [stream.at(step) for step in range(10)]
    ids = np.concatenate([batch.ids for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    values = np.concatenate([batch.tokens[:, 0] for batch in batches])
    own = ids[ids < 5]
    assert (np.sort(own[:60].reshape(12, 5), axis=1) == np.arange(5)).all()
    np.testing.assert_array_equal(labels, np.where(ids < 5, ids, -1))
    np.testing.assert_array_equal(values, np.where(ids < 5, ids, 95 + ids))
    part = stream.at(3, slice(2, 5))
    np.testing.assert_array_equal(part.ids, batches[3].ids[2:5])
    np.testing.assert_array_equal(part.tokens, batches[3].tokens[2:5])


def test_each_source_has_its_own_augmentation():
    images = textured(20)
    sources = [
        Source(images=images, augment="flip", name="a"),
        Source(images=images, name="b"),
    ]
    stream = BatchStream.mixed(sources, RAW, batch_size=400, seed=0)
    batch = stream.at(0)
    as_is = (RAW.decode(batch.tokens) == images[batch.ids % 20]).all(axis=(1, 2, 3))
    assert as_is[batch.ids >= 20].all()
    assert 0.3 < as_is[batch.ids < 20].mean() < 0.7


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 0), "each must be above 0"),
        ((1, -2), "each must be above 0"),
        ((1, float("nan")), "each must be above 0"),
        ((1, float("inf")), "each must be above 0"),
        ((1, 1 / 3), "no simple ratio"),
    ],
)
def test_weights_are_checked(weights, message):
    sources = [Source(images=numbered(5), weight=weight, name=str(weight)) for weight in weights]
    with pytest.raises(UserError, match=message):
        BatchStream.mixed(sources, RAW, batch_size=8, seed=0)


def test_sources_need_different_names():
    with pytest.raises(UserError, match="give each a name of its own"):
        BatchStream.mixed([Source(images=numbered(5))] * 2, RAW, batch_size=8, seed=0)


def test_sources_of_different_sizes_are_refused():
    sources = [Source(images=numbered(5)), Source(images=numbered(5, side=3), name="b")]
    with pytest.raises(UserError, match=r"images of \[12, 27\] tokens"):
        BatchStream.mixed(sources, RAW, batch_size=8, seed=0).at(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": numbered(0), "labels": None, "tokenizer": RAW}, "no images to draw from"),
        ({"images": numbered(3), "labels": np.zeros(2), "tokenizer": RAW}, "3 images but 2 labels"),
        (
            {"images": np.zeros((3, 4)), "labels": None, "tokenizer": None, "augment": "flip"},
            "cannot be augmented",
        ),
        (
            {"images": numbered(3), "labels": None, "tokenizer": RAW, "augment": "imagenet"},
            "store them with igpt prepare --views",
        ),
    ],
)
def test_stream_refuses(options, message):
    with pytest.raises(UserError, match=message):
        BatchStream(**options, batch_size=2, seed=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_prefetch_gives_what_at_gives(threads):
    stream = numbered_stream(50, 8)
    batches = list(stream.prefetch(7, 30, threads=threads))
    assert len(batches) == 23
    for step, batch in enumerate(batches, start=7):
        assert_same(batch, stream.at(step))
    part = next(stream.prefetch(7, 30, slice(2, 5)))
    assert part.ids.tolist() == batches[0].ids[2:5].tolist()


def batch_threads():
    return [thread for thread in threading.enumerate() if "igpt-batches" in thread.name]


def test_prefetch_threads_end_when_used_up():
    for _ in numbered_stream(50, 8).prefetch(0, 5):
        pass
    assert not batch_threads()


def test_prefetch_threads_end_when_closed_early():
    batches = numbered_stream(50, 8).prefetch(0, 10**9, threads=2)
    next(batches)
    assert batch_threads()
    batches.close()
    assert not batch_threads()


def test_prefetch_threads_end_when_the_consumer_fails():
    def consume():
        for _ in numbered_stream(50, 8).prefetch(0, 10**9):
            raise RuntimeError("in the consumer")

    with pytest.raises(RuntimeError, match="in the consumer"):
        consume()
    assert not batch_threads()


def test_an_error_in_a_thread_is_raised_at_its_step():
    class Broken:
        def __len__(self):
            return 5

        def __getitem__(self, ids):
            if 3 in ids:
                raise UserError("shard 3 is damaged")
            return numbered(5)[ids]

    stream = BatchStream(Broken(), None, RAW, batch_size=1, seed=0)
    order = [int(numbered_stream(5, 1).at(step).ids[0]) for step in range(5)]
    seen = []
    with pytest.raises(UserError, match="shard 3 is damaged"):
        for batch in stream.prefetch(0, 5):
            seen.append(int(batch.ids[0]))
    assert seen == order[: order.index(3)]
    assert not batch_threads()


def test_prefetch_stays_a_few_batches_ahead():
    asked = []

    class Counting(BatchStream):
        def at(self, step, slots=None):
            asked.append(step)
            return Batch(np.zeros((1, 1), np.int64), None, step, np.zeros(1, np.int64))

    batches = Counting(numbered(5), None, RAW, batch_size=1, seed=0).prefetch(0, 100, ahead=3)
    next(batches)
    time.sleep(0.05)
    assert max(asked) <= 4
    batches.close()
