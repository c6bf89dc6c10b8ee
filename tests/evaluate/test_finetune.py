"""Fine-tuning: both losses, early stopping, the baseline from scratch, another resolution."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from igpt.config import FinetuneConfig, ModelConfig, Objective
from igpt.errors import UserError
from igpt.evaluate import finetune as finetune_module
from igpt.evaluate.classifier import (
    Classifier,
    from_scratch,
    predict,
    resampled,
)
from igpt.evaluate.finetune import finetune, finetune_and_test
from igpt.model.gpt import GPT
from igpt.probe.protocol import LabelledImages
from igpt.probe.vote import modal_vote
from igpt.tokens.masks import bert_masks

SIDE, K, C = 4, 6, 3
QUICK = FinetuneConfig(
    lr=0.01,
    total_steps=20,
    batch_size=16,
    micro_batch=16,
    valid_every=5,
    augment=False,
    precision="fp32",
)


def network(objective: Objective = "ar", *, std: float = 0.3) -> GPT:
    model = GPT(
        ModelConfig(n_layer=2, n_head=2, n_embd=16),
        n_colors=K,
        seq_len=SIDE * SIDE,
        objective=objective,
    )
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        model.head.weight.normal_(0.0, std, generator=generator)
    return model


def encode(images: np.ndarray) -> np.ndarray:
    return images[..., 0].reshape(len(images), -1).astype(np.int64)


def split(n: int, seed: int) -> LabelledImages:
    """The class is which two of the six colours an image is made of."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    shade = 2 * labels[:, None, None] + rng.integers(0, 2, (n, SIDE, SIDE))
    return LabelledImages(np.repeat(shade[..., None], 3, axis=3).astype(np.uint8), labels)


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_first_losses_are_ln_c_and_the_networks_own(objective: Objective) -> None:
    model = network(objective)
    train = split(16, 1)
    config = replace(QUICK, total_steps=1, valid_every=1)
    _, points = finetune(
        model, train, train, encode=encode, n_classes=C, mask_prob=0.3, config=config
    )
    tokens = torch.from_numpy(encode(train.images[np.sort(order_of(train, config))]))
    assert points[0].class_nats == pytest.approx(math.log(C), abs=1e-6)
    with torch.no_grad():
        if objective == "ar":
            expected = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        else:
            masks = bert_masks(0, 1, slots=range(16), seq_len=SIDE**2, mask_prob=0.3)
            masked = torch.from_numpy(masks)
            nats = F.cross_entropy(
                model(tokens, masked).flatten(0, 1), tokens.flatten(), reduction="none"
            ).view(16, -1)
            own = [row[mask].mean() for row, mask in zip(nats, masked, strict=True) if mask.any()]
            expected = torch.stack(own).mean()
    assert points[0].token_nats == pytest.approx(float(expected), abs=1e-5)


def order_of(train: LabelledImages, config: FinetuneConfig) -> np.ndarray:
    from igpt.tokens.batches import BatchStream

    rows = np.arange(len(train.labels))[:, None]
    stream = BatchStream(
        rows, None, None, batch_size=config.batch_size, seed=config.seed, name="finetune"
    )
    return stream.at(0).ids


def test_scores_are_the_head_on_pooled_normalised_features() -> None:
    model = network()
    tokens = torch.from_numpy(encode(split(5, 0).images))
    for layer in range(3):
        classifier = Classifier(model, C, layer=layer)
        with torch.no_grad():
            classifier.head.weight.normal_()
            hidden = list(model.hidden(tokens))
            expected = model.normalised(layer, hidden[layer]).mean(1) @ classifier.head.weight.T
            scores, logits = classifier(tokens, generate=True)
            alone, none = classifier(tokens)
        assert torch.allclose(scores, expected, atol=1e-6)
        assert torch.allclose(alone, scores)
        assert none is None
        assert torch.allclose(logits, model(tokens), atol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_classes_are_learned_and_the_network_itself_stays(
    objective: Objective, joint: bool
) -> None:
    model = network(objective)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = replace(QUICK, joint=joint, total_steps=60)
    classifier, result = finetune_and_test(
        model,
        split(120, 1),
        split(40, 2),
        split(60, 3),
        encode=encode,
        n_classes=C,
        mask_prob=0.2,
        config=config,
        n_masks=3,
    )
    assert result.test_accuracy > 0.9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (result.curve[0].token_nats is None) == (not joint)
    assert classifier.head.weight.abs().max() > 0


def test_micro_batches_do_not_change_the_step() -> None:
    states = []
    for micro_batch in (16, 5):
        config = replace(QUICK, total_steps=3, micro_batch=micro_batch)
        classifier, _ = finetune(
            network(), split(16, 1), None, encode=encode, n_classes=C, mask_prob=0.2, config=config
        )
        states.append(classifier.head.weight.detach())
    assert torch.allclose(states[0], states[1], atol=1e-5)


def test_best_weights_are_kept_and_training_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    valid = split(10, 2)
    shares = iter([0.2, 0.8, 0.5, 0.8, 0.1, 0.3, 0.9])
    heads: list[torch.Tensor] = []

    def scripted(classifier: Classifier, images: np.ndarray, **_: object) -> np.ndarray:
        heads.append(classifier.head.weight.detach().clone())
        right = round(next(shares) * 10)
        return np.where(np.arange(10) < right, valid.labels, valid.labels + 1)

    monkeypatch.setattr(finetune_module, "predict", scripted)
    config = replace(QUICK, total_steps=100, valid_every=2, patience=3)
    classifier, points = finetune(
        network(), split(32, 1), valid, encode=encode, n_classes=C, mask_prob=0.2, config=config
    )
    assert [point.step for point in points] == [2, 4, 6, 8, 10]
    assert torch.equal(classifier.head.weight, heads[1])


def test_rates_are_tried_until_validation_accuracy_falls() -> None:
    tried: list[float] = []
    accuracy_of = {0.1: 0.4, 0.03: 0.7, 0.01: 0.6, 0.003: 0.9}

    def scripted(*_: object, config: FinetuneConfig, **__: object) -> object:
        tried.append(config.lr)
        point = finetune_module.FinetunePoint(
            step=1, class_nats=1.0, token_nats=None, valid_accuracy=accuracy_of[config.lr]
        )
        return Classifier(network(), C), (point,)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_module, "finetune", scripted)
        _, result = finetune_and_test(
            network(),
            *(split(9, seed) for seed in range(3)),
            encode=encode,
            n_classes=C,
            mask_prob=0.2,
            config=QUICK,
            rates=tuple(accuracy_of),
        )
    assert tried == [0.1, 0.03, 0.01]
    assert (result.lr, result.valid_accuracy) == (0.03, 0.7)


def test_same_seed_gives_the_same_classifier() -> None:
    def head() -> torch.Tensor:
        classifier, _ = finetune(
            from_scratch(network(), seed=1),
            split(32, 1),
            None,
            encode=encode,
            n_classes=C,
            mask_prob=0.2,
            config=replace(QUICK, augment=True),
        )
        return classifier.head.weight

    assert torch.equal(head(), head())


def test_from_scratch_has_the_shape_but_not_the_weights() -> None:
    model = network()
    fresh = from_scratch(model, seed=3)
    assert fresh.head.weight.abs().max() == 0
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in fresh.state_dict().items()} == shapes
    assert not torch.equal(fresh.wte.weight, model.wte.weight)


def test_loss_that_is_not_finite_is_refused() -> None:
    model = network()
    with torch.no_grad():
        model.wte.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"not finite at step 1 .* lower finetune\.lr"):
        finetune(model, split(16, 1), None, encode=encode, n_classes=C, mask_prob=0.2, config=QUICK)


def test_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="choose from 0 to 2"):
        Classifier(network(), C, layer=3)


def test_resampled_positions_at_the_same_size_are_the_same() -> None:
    model = network()
    same = resampled(model, image_size=SIDE, new_image_size=SIDE)
    assert torch.allclose(same.wpe.weight, model.wpe.weight, atol=1e-6)


def test_resampled_network_reads_larger_images() -> None:
    model = network()
    with torch.no_grad():  # a ramp to the right
        model.wpe.weight.copy_(torch.arange(SIDE).repeat(SIDE)[:, None].expand(-1, 16))
    larger = resampled(model, image_size=SIDE, new_image_size=6)
    assert larger.seq_len == 36
    row = larger.wpe.weight.view(6, 6, 16)[2, :, 0]
    assert (row.diff() > 0).all()
    assert torch.allclose(row, larger.wpe.weight.view(6, 6, 16)[4, :, 5], atol=1e-5)
    assert torch.equal(larger.wte.weight, model.wte.weight)
    tokens = torch.zeros(2, 36, dtype=torch.int64)
    assert larger(tokens).shape == (2, 36, K)


def test_network_of_another_size_is_not_resampled() -> None:
    with pytest.raises(UserError, match="16 tokens are no 3 px image"):
        resampled(network(), image_size=3, new_image_size=6)


def test_vote_is_the_modal_class() -> None:
    votes = np.array([[0, 1, 2, 2], [0, 1, 1, 2], [2, 0, 1, 2]])
    assert modal_vote(votes, n_classes=3, seed=0).tolist() == [0, 1, 1, 2]


def test_ties_are_broken_at_random_and_by_seed() -> None:
    votes = np.stack([np.zeros(400, int), np.full(400, 2)])
    one = modal_vote(votes, n_classes=4, seed=0)
    assert set(one.tolist()) == {0, 2}
    assert 100 < (one == 0).sum() < 300
    assert np.array_equal(one, modal_vote(votes, n_classes=4, seed=0))


def test_bert_is_judged_behind_several_masks() -> None:
    classifier = Classifier(network("bert"), C).eval()
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    images = split(50, 1).images
    answers = [
        predict(classifier, images, encode=encode, mask_prob=0.9, n_masks=n) for n in (1, 1, 5)
    ]
    assert np.array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
