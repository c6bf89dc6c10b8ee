"""Folders that version 0.1 wrote open for ever, with the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

import igpt
from igpt.config import SampleConfig
from igpt.generate.sample import sampling
from igpt.model import native

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_folder_of_the_first_version_gives_its_numbers(objective, monkeypatch):
    monkeypatch.setattr(
        native, "library", lambda name: None
    )  # to compile takes longer than to draw
    expected = json.loads((GOLDEN / objective / "expected.json").read_text())
    model = igpt.load(GOLDEN / objective)
    assert model.facts.objective == objective
    assert model.facts.trained == {"data": "made up", "seed": 7}
    tokens = model.encode(np.array(expected["images"], np.uint8))
    assert tokens.tolist() == expected["tokens"]
    np.testing.assert_allclose(model.logits(tokens).numpy(), expected["logits"], atol=1e-4)
    if objective == "ar":
        steps = sampling(model.network, 4, seed=0, config=SampleConfig(), precision="fp32")
        *_, last = steps
        assert last.tokens.tolist() == expected["samples"]
