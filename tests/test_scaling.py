"""Every figure in the tables of docs/scaling.md follows from the formulas of the code."""

import re
from pathlib import Path

import pytest

from igpt.model.sizes import (
    SIZES,
    Shape,
    activation_bytes,
    forward_flops,
    parameter_count,
    train_flops,
)
from igpt.recipes import RECIPES
from igpt.train.memory import STATE_BYTES, gathered_bytes

TEXT = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text()
XL = RECIPES["igpt-xl"]
XL_SHAPE = Shape(n_colors=512, seq_len=64**2, objective="ar")
IMAGES = 128e6
TIMES = "\u00d7"
RATE, INSIDE, BETWEEN = 495e12, 450e9, 50e9


def rows(columns):
    """Rows of numbers of the tables that have so many columns."""
    found = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("|")]
    return [row for row in found if len(row) == columns and re.match(r"[\d.]+$", row[-1])]


PASSES = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.endswith(" 1.28 M |")]


@pytest.mark.parametrize("row", rows(7), ids=lambda row: f"{row[0]} GPUs, {row[1]} images")
def test_memory_of_xl(row):
    gpus, images = int(row[0]), int(row[1])
    states = STATE_BYTES * parameter_count(XL.model, XL_SHAPE) / gpus
    kept = images * activation_bytes(XL.model, XL_SHAPE, recompute=True, width=2)
    gathered = gathered_bytes(XL.model, XL_SHAPE, width=2)
    total = states + kept + gathered
    exact = [states, kept, gathered, total, 1.1 * total + 2e9]
    assert row[2:] == [f"{value / 1e9:.1f}" for value in exact]


@pytest.mark.parametrize("row", rows(5)[:3], ids=lambda row: f"{row[0]} GPUs")
def test_time_of_xl(row):
    gpus, batch = int(row[0]), int(row[1])
    computing_s = batch / gpus * train_flops(XL.model, XL_SHAPE) * 4 / 3 / RATE
    moved = parameter_count(XL.model, XL_SHAPE) * (2 + 2 + 4)
    moving_s = moved / (INSIDE if gpus == 8 else BETWEEN)
    days = max(computing_s, moving_s) * IMAGES / batch / 86400
    assert row[2:4] == [f"{computing_s:.1f}", f"{moving_s:.1f}"]
    assert float(row[4]) == pytest.approx(days, rel=0.03)


@pytest.mark.parametrize("row", rows(5)[3:], ids=lambda row: f"{row[0]} {row[1]}")
def test_memory_of_the_smaller_models(row):
    model, side = SIZES[row[0].lower()], int(row[1].removesuffix("²"))
    shape = Shape(n_colors=512, seq_len=side**2, objective="ar")
    assert row[2] == f"{STATE_BYTES * parameter_count(model, shape) / 1e9:.1f}"
    for text, recompute in zip(row[3:], (False, True), strict=True):
        assert text == f"{activation_bytes(model, shape, recompute=recompute, width=2) / 1e9:.2f}"


@pytest.mark.parametrize("row", PASSES, ids=lambda row: f"{row[0]} {row[1]} {row[2]}")
def test_hours_of_a_pass_over_imagenet(row):
    model = XL.model if row[0] == "XL" else SIZES[row[0].lower()]
    shape = Shape(n_colors=512, seq_len=int(row[1].removesuffix("²")) ** 2, objective="ar")
    flops = {"forward": forward_flops, "fine-tuning": train_flops}[row[2]](model, shape)
    hours = flops * 1_281_167 / RATE / 3600
    assert row[3:7] == [f"{hours / gpus:.3g}" for gpus in (1, 8, 64, 512)]


def test_the_tables_are_all_there():
    assert len(PASSES) == 14
    assert (len(rows(7)), len(rows(5))) == (4, 12)


def test_figures_in_the_text():
    parameters = parameter_count(XL.model, XL_SHAPE)
    flops = train_flops(XL.model, XL_SHAPE)
    whole = activation_bytes(XL.model, XL_SHAPE, recompute=False, width=2)
    for text in (
        f"{parameters:,} parameters",
        f"{STATE_BYTES * parameters / 1e9:.1f} GB in all",
        f"{activation_bytes(XL.model, XL_SHAPE, recompute=True, width=2) / 1e9:.1f} GB an image",
        f"keeps {whole / 1e9:.1f} GB",
        f"{flops / 1e14:.2f} {TIMES} 10¹⁴ operations",
        f"{flops * 4 / 3 / 1e14:.2f} {TIMES} 10¹⁴ with the recomputation",
        f"{flops * IMAGES / 1e22:.1f} {TIMES} 10²²",
        f"{2 * parameters / 1e9:.1f} GB of bfloat16",
        f"{4 * parameters / 1e9:.1f} GB of float32",
    ):
        assert text in TEXT, text
