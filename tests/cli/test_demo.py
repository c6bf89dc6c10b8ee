import dataclasses

import pytest

from igpt.cli import demo as demo_module
from igpt.cli.demo import demo
from igpt.config import ModelConfig
from igpt.errors import UserError
from igpt.recipes import recipe
from igpt.train.folder import read_metrics


@pytest.fixture
def small(monkeypatch):
    """The demo's recipe cut to four steps of a tiny network, on a machine without a network."""
    config = recipe("demo")
    train = dataclasses.replace(
        config.train, total_steps=4, batch_size=4, warmup_steps=1, compile="off", precision="fp32"
    )
    model = ModelConfig(n_layer=2, n_head=2, n_embd=16)
    monkeypatch.setattr(
        demo_module, "recipe", lambda name: dataclasses.replace(config, train=train, model=model)
    )
    monkeypatch.setenv("IGPT_OFFLINE", "1")


def test_without_a_source_of_cifar_the_demo_shows_digits_to_its_end(small, tmp_path, capsys):
    folder = tmp_path / "demo"
    demo(train=True, out=str(folder))
    out, err = capsys.readouterr()
    assert "CIFAR-10 cannot be had" in err
    assert "showing scikit-learn's digits instead" in err
    assert f"report  {folder / 'report.html'}" in out
    assert "raw pixels" in out
    assert "from bands of rows and spread" in out
    for name in ("samples", "completions", "probe", "likelihood-test"):
        assert (folder / "evaluations" / f"{name}.json").is_file()
    page = (folder / "report.html").read_text()
    assert "digits" in page
    assert "the same from bands of rows" in page
    assert page.count("data:image/png;base64") >= 2


def test_a_finished_demo_is_not_done_again_and_an_interrupted_one_goes_on(small, tmp_path, capsys):
    folder = tmp_path / "demo"
    demo(train=True, resume=True, out=str(folder))
    metrics = read_metrics(folder)
    (folder / "evaluations" / "probe.json").unlink()
    (folder / "report.html").unlink()
    capsys.readouterr()
    demo(train=True, resume=True, out=str(folder))
    out, err = capsys.readouterr()
    assert read_metrics(folder) == metrics
    assert "is finished: all 4 steps are done" in err
    assert "== probe" in err
    assert "== samples" not in err
    assert (folder / "report.html").is_file()
    assert "linear probe" in out


def test_a_demo_over_another_run_is_refused(small, tmp_path):
    folder = tmp_path / "demo"
    demo(train=True, out=str(folder))
    before = (folder / "report.html").read_bytes()
    with pytest.raises(UserError, match="already holds a run: add --resume to go on with it"):
        demo(train=True, out=str(folder))
    assert (folder / "report.html").read_bytes() == before
