"""To the Hub and back, against an endpoint on this machine; and what is said when it cannot be."""

import huggingface_hub.constants
import numpy as np
import pytest

import igpt
from igpt.cli.main import main
from igpt.errors import UserError
from igpt.files import write_bytes
from igpt.formats.hub import fetch
from igpt.model import native
from tests.formats.fake_hub import SHA, TOKEN, FakeHub
from tests.networks import pixel_model

# huggingface_hub's own way of sending a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = FakeHub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        fake.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is compiled code
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield fake
    fake.close()


@pytest.fixture(autouse=True)
def plain_decoder(monkeypatch):
    """To compile the decoder takes longer than to draw the card's few pictures without it."""
    monkeypatch.setattr(native, "library", lambda name: None)


@pytest.fixture
def folder(tmp_path):
    return pixel_model(image_size=4).save(tmp_path / "mine")


def run(capsys, *args):
    """Status, output and the one line of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    told = capsys.readouterr()
    return stop.value.code, told.out.strip(), told.err.strip().splitlines()[-1:]


def test_pushed_and_pulled_it_is_the_same_model(hub, folder, tmp_path, capsys):
    status, out, _ = run(capsys, "push", folder, "me/tiny", "--private", "--license", "mit")
    assert (status, out) == (0, f"{hub.url}/me/tiny/commit/{SHA}")
    files = hub.repos["me/tiny"]
    assert set(files) == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "samples.png"
    }  # fmt: skip
    assert hub.private["me/tiny"]
    assert b'license: "mit"' in files["README.md"]
    assert b"# me/tiny" in files["README.md"]
    status, out, _ = run(capsys, "pull", "me/tiny", tmp_path / "got")
    assert (status, out) == (0, str(tmp_path / "got"))
    assert not any(path.is_symlink() for path in (tmp_path / "got").iterdir())
    expected = pixel_model(image_size=4).digest()
    assert igpt.load(tmp_path / "got").digest() == expected
    assert igpt.load("hf:me/tiny").digest() == expected


def test_offline_what_was_fetched_is_used_and_nothing_is_asked(
    hub, folder, tmp_path, monkeypatch, capsys
):
    run(capsys, "push", folder, "me/tiny")
    fetch("me/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert igpt.load("hf:me/tiny").image_size == 4
    status, _, line = run(capsys, "push", folder, "me/tiny")
    assert status == 2
    assert line == [
        "igpt: error: cannot push to me/tiny: HF_HUB_OFFLINE forbids asking the Hub: unset it, "
        "or fetch the model beforehand"
    ]
    for command in (("pull", "me/other", tmp_path / "o"), ("sample", "hf:me/other")):
        status, _, line = run(capsys, *command)
        assert status == 2
        assert line[0].startswith(f"igpt: error: cannot fetch {command[1]}: HF_HUB_OFFLINE")
    assert hub.requests == []
    assert not (tmp_path / "o").exists()


def test_an_older_bin_is_fetched_where_there_are_no_safetensors(hub, folder):
    import torch
    from safetensors.torch import load_file

    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    del files["model.safetensors"]
    config = files["config.json"].replace(b'"igpt"', b'"ours"')  # as transformers wrote it
    hub.private["their/old"] = False
    hub.repos["their/old"] = {
        **files,
        "config.json": config,
        "pytorch_model.bin": (folder / "pytorch_model.bin").read_bytes(),
        "harmful.py": b"print()",
    }
    assert igpt.load("hf:their/old").facts.trained["source"] == "transformers"
    assert not any("harmful" in request for request in hub.requests)


def test_refusals_are_one_line(hub, folder, tmp_path, capsys, monkeypatch):
    status, _, line = run(capsys, "pull", "me/nothing", tmp_path / "o")
    assert status == 2
    assert line[0].startswith("igpt: error: cannot fetch me/nothing from the Hub: ")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    status, _, line = run(capsys, "push", folder, "me/tiny")
    assert status == 2
    assert line == [
        "igpt: error: me/tiny may not be written: log in by `hf auth login` as someone who may"
    ]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.takes_files = False
    status, _, line = run(capsys, "push", folder, "me/tiny")
    assert status == 2
    assert line[0].startswith("igpt: error: cannot push to me/tiny: Error while uploading")
    status, _, line = run(capsys, "push", folder, "tiny")
    assert (status, line) == (2, ["igpt: error: tiny is no Hub id: write owner/name"])
    status, _, line = run(capsys, "pull", "../tiny/x", tmp_path / "o")
    assert (status, line) == (2, ["igpt: error: ../tiny/x is no Hub id: write owner/name"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    status, _, line = run(capsys, "pull", "me/tiny", tmp_path / "full")
    assert status == 2
    assert "is not empty: choose another place" in line[0]


def test_a_damaged_model_on_the_hub_is_refused_before_it_is_copied(hub, folder, tmp_path, capsys):
    run(capsys, "push", folder, "me/tiny")
    hub.repos["me/tiny"]["model.safetensors"] = b"cut short"
    status, _, line = run(capsys, "pull", "me/tiny", tmp_path / "o")
    assert status == 2
    assert "model.safetensors is damaged" in line[0]
    assert not (tmp_path / "o").exists()


def test_an_unreachable_hub_is_said_plainly(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot fetch me/tiny: the Hub cannot be reached"):
        fetch("me/tiny")


def test_a_runs_figures_and_pictures_go_into_the_card(folder, tmp_path, capsys):
    """Of records, those of these very weights; of a data set's path, the name."""
    from igpt.cli.push import write_published
    from igpt.report.record import write_record

    model = igpt.load(folder)
    model.facts.trained.update(data="/home/me/photos", recipe="demo", seed=3, step=1600)
    run_folder = tmp_path / "run"
    write_bytes(run_folder / "metrics.jsonl", b"")
    write_bytes(run_folder / "pictures" / "samples.png", b"\x89PNG")
    figures = {"test_accuracy": 0.5, "test_accuracy_se": 0.01, "layer": 2}
    nats = {"nats_per_token": 2.5, "nats_per_token_se": 0.25, "bits_per_pixel": 3.6}
    about = {"data": "cifar10", "split": "test"}
    write_record(run_folder, "probe", figures, model=model.digest(), **about)
    write_record(run_folder, "likelihood-test", nats, model=model.digest(), **about)
    write_record(run_folder, "finetune", {**figures, "test_accuracy": 0.9}, model="older", **about)
    out = tmp_path / "out"
    write_published(model, out, "me/tiny", run=run_folder, license_name=None)
    card = (out / "README.md").read_text()
    assert "| accuracy, linear probe of layer 2 | 50.00% ± 1.00% | cifar10 | test |" in card
    assert "| nats per token | 2.5000 ± 0.2500 | cifar10 | test |" in card
    assert "| data | photos |" in card
    assert "| recipe | demo |" in card
    assert "90.00%" not in card
    assert "/home/me" not in card
    assert "license" not in card
    assert "![samples](samples.png)" in card
    assert (out / "samples.png").read_bytes() == b"\x89PNG"


def test_a_dry_run_writes_what_would_be_sent(folder, tmp_path, capsys):
    status, out, _ = run(capsys, "push", folder, "me/tiny", "--dry-run", tmp_path / "dry")
    assert (status, out) == (0, str(tmp_path / "dry"))
    assert igpt.load(tmp_path / "dry").digest() == igpt.load(folder).digest()
    assert "`[sos, tokens[:-1]]`" in (tmp_path / "dry" / "README.md").read_text()


def test_a_saved_probe_travels_with_the_model(hub, folder, tmp_path, capsys):
    model = igpt.load(folder)
    head = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    model.take_class_head(head, ["cat", "dog"], protocol="drawn at random")
    model.save(folder)
    run(capsys, "push", folder, "me/tiny")
    run(capsys, "pull", "me/tiny", tmp_path / "got")
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)
    assert igpt.load(tmp_path / "got").classify(images) == model.classify(images)
    assert b"model.classify(" in hub.repos["me/tiny"]["README.md"]


def test_a_probe_that_does_not_fit_is_left_behind_with_a_word(folder, tmp_path):
    (folder / "probe.json").write_text('{"model_digest": "another"}')
    with pytest.warns(
        UserWarning, match=r"saved without its probe: .* was fitted on another model"
    ):
        igpt.load(folder).save(tmp_path / "out")
    assert not (tmp_path / "out" / "probe.json").exists()
    assert "classify" not in (tmp_path / "out" / "README.md").read_text()


def test_a_name_without_the_prefix_is_never_asked_for(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("me/tiny", "runs/typo", "model", "a/b/c"):
        for command in (("sample", name), ("info", name)):
            status, _, line = run(capsys, *command)
            assert status == 2, command
            assert "Traceback" not in line[0]
        with pytest.raises(UserError, match=r"neither a run nor a model folder.*hf:owner/name"):
            igpt.load(name)
    assert hub.requests == []
    with pytest.raises(UserError, match="no Hub id"):
        igpt.load("hf:model")


def test_a_public_repository_is_not_taken_for_a_private_one(hub, folder, capsys):
    """The Hub ignores `private` where the repository is there: nothing may be sent then."""
    run(capsys, "push", folder, "me/tiny")
    (folder / "README.md").unlink()
    hub.requests.clear()
    before = dict(hub.repos["me/tiny"])
    status, out, line = run(capsys, "push", folder, "me/tiny", "--private")
    assert (status, out) == (2, "")
    assert line[0].startswith("igpt: error: me/tiny is public on the Hub and --private would not")
    assert not [r for r in hub.requests if not r.startswith(("GET", "HEAD"))]
    assert hub.repos["me/tiny"] == before
    hub.private["me/tiny"] = True
    assert run(capsys, "push", folder, "me/tiny", "--private")[0] == 0


def test_a_dry_run_writes_into_nobodys_folder(folder, tmp_path, capsys):
    app = tmp_path / "app"
    write_bytes(app / "config.json", b'{"name": "shop"}')
    write_bytes(app / "src" / "main.py", b"ten days")
    status, _, line = run(capsys, "push", folder, "me/tiny", "--dry-run", app)
    assert status == 2 and "is not empty" in line[0]
    assert (app / "src" / "main.py").read_bytes() == b"ten days"
