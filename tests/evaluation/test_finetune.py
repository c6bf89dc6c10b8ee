"""Fine-tuning: both losses, early stopping, the baseline from scratch, another resolution."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from igpt.config import FinetuneConfig, ModelConfig, Objective
from igpt.errors import UserError
from igpt.evaluation import finetune as finetune_module
from igpt.evaluation.classifier import (
    Classifier,
    from_scratch,
    predict,
)
from igpt.evaluation.finetune import Task, accuracy, settings_of, tune, tune_in_memory
from igpt.model.gpt import GPT
from igpt.model.head import modal_vote
from igpt.probing.protocol import LabelledImages
from igpt.tokens.masks import bert_masks
from igpt.train.folder import read_metrics
from igpt.trained import resampled

SIDE, K, C = 4, 6, 3
QUICK = FinetuneConfig(
    lr=0.01,
    total_steps=20,
    batch_size=16,
    micro_batch=16,
    valid_every=5,
    augment="none",
    compile="off",
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


def task(model: GPT, train: LabelledImages, valid: LabelledImages | None = None, **more) -> Task:
    given = {"n_classes": C, "mask_prob": 0.2, **more}
    return Task(
        network=model,
        tokenizer=SimpleNamespace(encode=encode),
        train=train,
        valid=valid,
        **given,
    )


def tuned(own: Task, config: FinetuneConfig, folder):
    settings = settings_of(own, config, n_images=len(own.train.labels))
    return tune(own, config, settings, folder)


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_first_losses_are_ln_c_and_the_networks_own(objective: Objective, tmp_path) -> None:
    model = network(objective)
    train = split(16, 1)
    config = replace(QUICK, total_steps=1, valid_every=1)
    own = task(model, train, train, mask_prob=0.3)
    trainer, found = tuned(own, config, tmp_path)
    batch = trainer.stream.at(0)
    tokens = torch.from_numpy(batch.tokens)
    assert (train.labels[batch.ids] == batch.labels).all()
    assert found.curve[0].class_nats == pytest.approx(math.log(C), abs=1e-6)
    with torch.no_grad():
        if objective == "ar":
            expected = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        else:
            masks = bert_masks(0, 0, slots=range(16), seq_len=SIDE**2, mask_prob=0.3)
            masked = torch.from_numpy(masks)
            nats = F.cross_entropy(
                model(tokens, masked).flatten(0, 1), tokens.flatten(), reduction="none"
            ).view(16, -1)
            own = [row[mask].mean() for row, mask in zip(nats, masked, strict=True) if mask.any()]
            expected = torch.stack(own).mean()
    assert found.curve[0].token_nats == pytest.approx(float(expected), abs=1e-5)


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
    objective: Objective, joint: bool, tmp_path
) -> None:
    model = network(objective)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = task(model, split(120, 1), split(40, 2))
    trainer, found = tuned(own, replace(QUICK, joint=joint, total_steps=60), tmp_path)
    assert accuracy(trainer, split(60, 3), own, n_masks=3) > 0.9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (found.curve[0].token_nats is None) == (not joint)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_class_loss_alone_trains_what_it_reaches(layer: int) -> None:
    config = replace(QUICK, joint=False, layer=layer, total_steps=2)
    model = network()
    after = tune_in_memory(task(model, split(16, 1)), config).network
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert "wte.weight" in changed
    assert "head.weight" not in changed
    assert any(name.startswith("h.1.mlp") for name in changed) == (layer == 2)
    assert ("ln_f.weight" in changed) == (layer == 2)


def test_micro_batches_do_not_change_the_step() -> None:
    heads = [
        tune_in_memory(
            task(network(), split(16, 1)),
            replace(QUICK, total_steps=3, micro_batch=micro_batch),
        ).head.weight.detach()
        for micro_batch in (16, 5)
    ]
    assert torch.allclose(heads[0], heads[1], atol=1e-5)


def test_recomputing_the_blocks_changes_nothing() -> None:
    heads = [
        tune_in_memory(
            task(network(), split(16, 1)),
            replace(QUICK, total_steps=3, checkpoint_activations=recompute),
        ).head.weight.detach()
        for recompute in (False, True)
    ]
    assert torch.equal(heads[0], heads[1])


def scripted(monkeypatch: pytest.MonkeyPatch, shares: list[float]) -> list[torch.Tensor]:
    """Let validation find these accuracies; returns the heads that it looks at."""
    heads: list[torch.Tensor] = []
    rest = iter(shares)

    def look(trainer, *_: object, **__: object) -> float:
        heads.append(trainer.network.head.weight.detach().clone())
        return next(rest)

    monkeypatch.setattr(finetune_module, "accuracy", look)
    return heads


def test_best_weights_are_kept_and_training_stops(monkeypatch, tmp_path) -> None:
    heads = scripted(monkeypatch, [0.2, 0.8, 0.5, 0.8, 0.1, 0.3, 0.9])
    config = replace(QUICK, total_steps=100, valid_every=2, patience=3)
    trainer, found = tuned(task(network(), split(32, 1), split(10, 2)), config, tmp_path)
    assert [point.step for point in found.curve] == [2, 4, 6, 8, 10]
    assert found.step == 4
    assert torch.equal(trainer.network.head.weight, heads[1])
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step-0000004", "step-0000010"]


def test_a_run_that_is_over_makes_no_more_steps(monkeypatch, tmp_path) -> None:
    heads = scripted(monkeypatch, [0.2, 0.8, 0.5, 0.8, 0.1])
    config = replace(QUICK, total_steps=100, valid_every=2, patience=3)
    own = task(network(), split(32, 1), split(10, 2))
    tuned(own, config, tmp_path)
    trainer, found = tuned(own, config, tmp_path)
    assert found.step == 4
    assert torch.equal(trainer.network.head.weight, heads[1])
    assert len(heads) == 5


@pytest.mark.parametrize("stop", [1, 5, 6, 13])
def test_a_run_cut_off_anywhere_ends_in_the_same_bits(stop: int, monkeypatch, tmp_path) -> None:
    own = task(network("bert"), split(40, 1), split(10, 2))
    config = replace(QUICK, total_steps=15, checkpoint_every=4, patience=2)
    whole, expected = tuned(own, config, tmp_path / "whole")
    step = finetune_module.run_steps.__globals__["train_step"]

    class Killed(BaseException):
        pass

    def until(trainer, batch):
        if trainer.step == stop:
            raise Killed
        return step(trainer, batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setitem(finetune_module.run_steps.__globals__, "train_step", until)
        tuned(own, config, tmp_path / "cut")
    again, found = tuned(own, config, tmp_path / "cut")
    assert found == expected
    pairs = zip(whole.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    lines = [
        [
            {k: v for k, v in line.items() if k in ("class_nats", "token_nats", "valid_accuracy")}
            for line in held
        ]
        for held in (read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "cut"))
    ]
    assert lines[0] == lines[1]


def test_same_seed_gives_the_same_classifier() -> None:
    heads = [
        tune_in_memory(
            task(from_scratch(network(), seed=1), split(32, 1)), replace(QUICK, augment="cifar")
        ).head.weight
        for _ in range(2)
    ]
    assert torch.equal(heads[0], heads[1])


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
    with pytest.raises(UserError, match=r"at step 1 .* not finite.* lower --finetune\.lr or ano"):
        tune_in_memory(task(model, split(16, 1)), QUICK)


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
