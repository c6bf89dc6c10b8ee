"""What igpt 0.1 wrote keeps working: a run that was cut off, a model with its probe, a packed set.

The folders below `fixtures/v0_1` were written by 0.1 itself and are never made anew;
`expected.json` is what 0.1 computed from them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import igpt
from igpt.cli.main import main

OLD = Path(__file__).parent / "fixtures" / "v0_1"
EXPECTED = json.loads((OLD / "expected.json").read_text())


def run_igpt(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0


@pytest.fixture
def old(tmp_path):
    """A copy that may be written to."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(old):
    run_igpt("pretrain", "digits", old / "run", "--resume")
    end = load_file(old / "run/model/model.safetensors")
    assert end["transformer.h.0.attn.c_attn.weight"].shape == (8, 24)
    checkpoint = load_file(old / "run/checkpoints/step-0000012/model.safetensors")
    sums = {
        name: float(np.abs(value.astype(np.float64)).sum()) for name, value in checkpoint.items()
    }
    assert sums == pytest.approx(EXPECTED["end_of_run"], rel=1e-5)
    lines = [json.loads(line) for line in (old / "run/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss_nats"] for line in lines if "loss_nats" in line}
    expected = {line["step"]: line["loss_nats"] for line in EXPECTED["losses"]}
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_model_gives_the_features_and_classes_that_it_gave(old):
    model = igpt.load(old / "model")
    images = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    np.testing.assert_allclose(model.features(images), EXPECTED["features"], atol=2e-5)
    assert model.classify(images) == EXPECTED["classes"]


def test_a_packed_set_is_trained_on(old, tmp_path):
    words = "--data.image-size 8 --data.n-colors 8 --model.n-layer 1 --model.n-head 1"
    words += " --model.n-embd 8 --train.total-steps 2 --train.batch-size 4 --train.compile off"
    run_igpt("pretrain", old / "packed", tmp_path / "new", *words.split())
    assert (tmp_path / "new/model/model.safetensors").is_file()
