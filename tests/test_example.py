"""`examples/igpt_min.py`, the whole idea in one file, computes what the package computes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import igpt
from igpt.cli.main import main
from igpt.config import SampleConfig
from igpt.generate.sample import sample
from igpt.images.prepare import open_data
from igpt.probing.features import extract_features
from igpt.tokens.palette import Palette
from tests.images.pictures import smooth

EXAMPLE = Path(__file__).parent.parent / "examples" / "igpt_min.py"
spec = importlib.util.spec_from_file_location("igpt_min", EXAMPLE)
igpt_min = importlib.util.module_from_spec(spec)
spec.loader.exec_module(igpt_min)

SIZE, STEPS, BATCH = 8, 20, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the package: the paper's optimiser in float32, each step's loss on record."""
    folder = tmp_path_factory.mktemp("example") / "run"
    words = (
        f"--data.image-size {SIZE} --data.n-colors 16 --model.n-layer 2 --model.n-head 2 "
        f"--model.n-embd 16 --train.total-steps {STEPS} --train.batch-size {BATCH} "
        "--train.warmup-steps 3 --train.log-every 1 --train.precision fp32 --train.compile off "
        "--train.valid-images 16"
    )
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "digits", str(folder), *words.split()])
    assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def trained(run):
    """The example's network after the same steps, its losses, and the palette of both."""
    palette = np.load(run / "palette.npy")
    images = open_data("digits", image_size=SIZE).images("train")[:]
    tokens = igpt_min.encode(np.asarray(images), palette)
    network = igpt_min.GPT(
        n_layer=2, n_head=2, width=16, n_colors=len(palette), seq_len=SIZE * SIZE
    )
    network.init_weights(seed=0)
    losses = igpt_min.train(
        network, tokens, steps=STEPS, batch_size=BATCH, lr=3e-3, seed=0, warmup=3, log=list
    )
    return network, losses, palette


def test_the_example_reads_in_a_lesson():
    assert len(EXAMPLE.read_text().splitlines()) <= 350


def test_its_losses_are_the_packages(run, trained):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [line["loss_nats"] for line in lines if "loss_nats" in line]
    assert trained[1] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]


def test_its_samples_are_the_packages(run, trained):
    network, _, palette = trained
    model = igpt.load(run)
    expected = sample(model.network, 3, seed=1, config=SampleConfig(), precision="fp32")
    none = torch.empty(3, 0, dtype=torch.int64)
    found = igpt_min.draw(network, none, SIZE * SIZE, seed=1)
    # Two roads to the same weights differ in the last bits, which can move a draw near a border.
    assert (found.numpy() == expected).mean() > 0.99
    network.load_state_dict(model.network.state_dict())
    same = igpt_min.draw(network, none, SIZE * SIZE, seed=1)
    np.testing.assert_array_equal(same.numpy(), expected)
    np.testing.assert_array_equal(igpt_min.decode(same.numpy(), palette), model.decode(expected))


def test_its_features_are_the_packages(run, trained):
    network = trained[0]
    model = igpt.load(run)
    network.load_state_dict(model.network.state_dict())
    images = np.asarray(open_data("digits", image_size=SIZE).images("test")[:5])
    tokens = torch.from_numpy(model.encode(images))
    found = igpt_min.features_of(network, tokens)
    for layer in range(3):
        (expected,) = extract_features(
            model.network, model.encode(images), layers=[layer], precision="fp32", keep=False
        )
        np.testing.assert_allclose(found[layer].numpy(), expected, atol=1e-5)


def test_its_palette_is_as_good_as_the_packages():
    images = np.stack([smooth(16, 16, i) for i in range(20)])
    ours = Palette(igpt_min.fit_palette(images, 32))
    assert ours.error(images).rms < 1.1 * Palette.fit(images, 32).error(images).rms


def test_it_runs_on_a_folder_of_pictures(tmp_path, monkeypatch, capsys):
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            picture = smooth(20, 20, i + (50 if label == "b" else 0))
            Image.fromarray(picture).save(tmp_path / "photos" / label / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["igpt_min.py", "photos", "--size", "8", "--steps", "2"])
    igpt_min.main()
    assert "layer 4" in capsys.readouterr().out
    with Image.open("samples.png") as picture:
        assert picture.size == (4 * 8 * 4, 8 * 4)  # four test images: every fifth one
