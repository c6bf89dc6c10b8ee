import dataclasses
import json

import pytest

from igpt import compute
from igpt.cli.main import main
from igpt.model.sizes import Shape, parameter_count, train_flops
from igpt.recipes import recipe
from igpt.train.settings import in_words, plan_of


def test_a_plan_has_the_formulas_figures(monkeypatch):
    monkeypatch.setattr(compute, "matrix_rate", lambda device, dtype: 1e12)
    config = recipe("igpt-s")
    shape = Shape(n_colors=512, seq_len=1024, objective="ar")
    plan = plan_of(config)
    assert plan.parameters == parameter_count(config.model, shape)
    assert plan.images == 128_000_000  # the paper's million steps of 128
    assert plan.total_flops == train_flops(config.model, shape) * 128_000_000
    assert plan.least_s == pytest.approx(plan.total_flops / 0.5e12)
    assert plan.most_s == pytest.approx(5 * plan.least_s)
    assert plan.memory_bytes > 16 * plan.parameters


def test_more_images_at_once_take_more_memory():
    train = dataclasses.replace(recipe("demo").train, micro_batch=1)
    one = plan_of(dataclasses.replace(recipe("demo"), train=train))
    train = dataclasses.replace(train, micro_batch=4)
    four = plan_of(dataclasses.replace(recipe("demo"), train=train))
    assert four.memory_bytes > one.memory_bytes


def test_the_command_plans_without_data_or_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main(["pretrain", "/no/data", str(folder), "--recipe", "demo", "--plan", *options])
        assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "parameters",
        "tokens",
        "operations",
        "memory",
        "matrix",
        "time",
    ]
    assert json.loads(lines[-1])["tokens_per_image"] == 256
    assert not folder.exists()


@pytest.mark.parametrize(
    ("span_s", "words"),
    [(3.2, "3.2 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2 h"), (86_400 * 2500, "6.8 years")],
)
def test_a_span_in_words(span_s, words):
    assert in_words(span_s) == words
