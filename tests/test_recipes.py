"""A recipe that is not tested rots: each one builds, and its shrunken twin learns."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from igpt.config import ModelConfig
from igpt.errors import UserError
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, parameter_count
from igpt.recipes import RECIPES, recipe
from igpt.train.objectives import loss_count, loss_sum
from igpt.train.optim import Optimizer, clip_gradients, lr_factor_at

# Parameters with 512 colours, counted once by hand from PAPER.md's formula.
PARAMETERS = {
    "igpt-s": 76_571_648,
    "igpt-m": 455_157_760,
    "igpt-l": 1_362_250_752,
    "igpt-xl": 6_810_875_904,
    "demo": 4 * (12 * 128**2 + 2 * 128) + 2 * 512 * 128 + 256 * 128 + 2 * 128,
    **dict.fromkeys(
        ("cifar10-record", "cifar10-paper"),
        6 * (12 * 192**2 + 2 * 192) + 2 * 512 * 192 + 256 * 192 + 2 * 192,
    ),
    "record-32": 6 * (12 * 192**2 + 2 * 192) + 2 * 512 * 192 + 1024 * 192 + 2 * 192,
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_count_in_the_table(name):
    config = recipe(name)
    shape = Shape(
        n_colors=config.data.n_colors,
        seq_len=config.data.seq_len,
        objective=config.train.objective,
    )
    assert parameter_count(config.model, shape) == PARAMETERS[name]
    assert config.recipe == name


@pytest.mark.parametrize("name", RECIPES)
def test_shrunken_twin_learns_one_batch(name):
    config = recipe(name)
    train = dataclasses.replace(config.train, total_steps=20, warmup_steps=2, lr=0.003)
    model = ModelConfig(n_layer=2, n_head=2, n_embd=16)
    network = GPT(model, n_colors=8, seq_len=9, objective=train.objective)
    network.init_weights(torch.Generator().manual_seed(0))
    network.checkpoint_activations = train.checkpoint_activations
    optimizer = Optimizer(network, train)
    tokens = torch.randint(0, 8, (4, 9), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(20):
        loss = loss_sum(network(tokens), tokens, None) / loss_count("ar", tokens, None)
        loss.backward()
        clip_gradients(network.parameters(), train.grad_clip_norm)
        optimizer.step(lr_factor_at(step, train, 2))
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match=r"there is no recipe 'igpt-z': did you mean igpt-s\?"):
        recipe("igpt-z")
    with pytest.raises(UserError, match="known: igpt-s, igpt-m"):
        recipe("zzzzzzzz")


PAPER = [name for name in RECIPES if name.startswith("igpt-")]
NARROW = (
    "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --train.batch-size 2 "
    "--train.micro-batch 1 --train.total-steps 2 --train.compile off --train.precision fp32 "
    "--train.draw-every 0 --data.n-colors 16 --train.valid-images 4"
).split()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A small ImageNet: `raw`, the official layout, and packed in two parts at both sides."""
    from tests.images.pictures import encoded, smooth, tar_bytes

    folder = tmp_path_factory.mktemp("imagenet")
    (folder / "raw").mkdir()
    photos = [encoded(smooth(230, 250, i), "JPEG", quality=80) for i in range(8)]
    classes = {
        f"n0000000{c}.tar": tar_bytes({f"n0000000{c}_{i}.JPEG": photos[i % 8] for i in range(36)})
        for c in range(2)
    }
    (folder / "raw" / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(classes))
    for side in (32, 64):
        for part in ("1/2", "2/2"):
            out = str(folder / f"packed{side}")
            call("prepare", str(folder / "raw"), out, "--image-size", str(side), "--part", part)
    return folder


def call(*args):
    from igpt.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 0, args


@pytest.mark.parametrize("objective", ["ar", "bert"])
@pytest.mark.parametrize("name", PAPER)
def test_paper_recipe_trains_on_a_set_packed_in_parts(name, objective, imagenet, tmp_path):
    side = recipe(name).data.image_size
    options = [*NARROW, "--recipe", name, "--train.objective", objective]
    call("pretrain", str(imagenet / f"packed{side}"), str(tmp_path / "run"), *options)
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_paper_recipe_trains_on_the_official_tars(imagenet, tmp_path):
    call("pretrain", str(imagenet / "raw"), str(tmp_path / "run"), "--recipe", "igpt-s", *NARROW)


def test_commands_of_the_cluster_page_run_one_after_another(imagenet, tmp_path, monkeypatch):
    """As one process, on the small ImageNet, with the network and the steps narrowed."""
    page = (Path(__file__).parent.parent / "docs" / "howto" / "cluster.md").read_text()
    code = "\n".join(re.findall(r"^ {4}(.+)$", page.replace("\\\n", " "), re.MULTILINE))
    commands = [shlex.split(line) for line in re.findall(r"igpt ((?:[a-z]+) .+)$", code, re.M)]
    commands.sort(key=lambda words: words[0] != "prepare")
    monkeypatch.chdir(tmp_path)
    for words in commands:
        words = [str(imagenet / "raw") if word == "/data/imagenet" else word for word in words]
        if words[0] == "prepare":
            shutil.rmtree(words[2], ignore_errors=True)
            words = words[: words.index("--part")] if "--part" in words else words
        call(*words, *(NARROW if words[0] == "pretrain" else ()))
    assert {words[0] for words in commands} == {"prepare", "pretrain", "evaluate", "probe"}
