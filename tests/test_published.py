"""What leaves this machine names no place, person, host or command; a run keeps them all."""

import getpass
import json
import socket
from pathlib import Path

import pytest

from igpt import files
from igpt.cli.main import main
from igpt.cli.push import write_published
from igpt.formats.onnx import write_onnx
from igpt.formats.transformers import write_transformers
from igpt.model.head import SavedProbe
from igpt.published import name_of, published, shown, shown_command
from igpt.report.report import write_report
from igpt.trained import ModelFacts
from tests.networks import pixel_model
from tests.report.test_report import a_run, fill

SECRETS = ("/srv/clients", "jane", "node17", "igpt pretrain", "python3.11")
FACTS = {
    "id": "jane",
    "data": "/srv/clients/acme",
    "data_digest": "0" * 64,
    "command": "igpt pretrain /srv/clients/acme /home/jane/run --data.palette=/home/jane/p.npy",
    "commands": ["igpt pretrain /srv/clients/acme /home/jane/run"],
    "machine": "node17, 2 cores",
    "host": "node17",
    "mixed": [{"digest": "1", "weight": 1.0, "augment": "none", "data": "/srv/clients/web.tar"}],
    "init_from": {"model": "/home/jane/runs/a", "digest": "2"},
    "finetuned": "/srv/clients/acme, at most 5 images of a split",
    "something new": "/home/jane",
    "seed": 3,
    "step": 7,
}


def a_model(folder):
    model = pixel_model(image_size=4)
    facts = ModelFacts(objective="ar", image_size=4, tokens="palette", trained=FACTS)
    model.facts = facts
    model.take_class_head(
        model.network.head.weight.detach().numpy()[:2], ["a", "b"], protocol="on /home/jane/photos"
    )
    return model


def texts(folder: Path) -> str:
    return "\n".join(
        f"{path.name}\n{path.read_bytes().decode(errors='replace')}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


@pytest.mark.parametrize("how", ["save", "push", "onnx", "transformers"])
def test_no_folder_that_is_passed_on_says_whose_it_was(tmp_path, how):
    model, out = a_model(tmp_path), tmp_path / "out"
    if how == "save":
        model.save(out)
    elif how == "push":
        write_published(model, out, "me/x", run=tmp_path, license_name=None)
    elif how == "onnx":
        pytest.importorskip("onnxscript")
        write_onnx(model, out)
    else:
        pytest.importorskip("transformers")
        write_transformers(model, out)
    held = texts(out)
    for secret in (*SECRETS, getpass.getuser() + "/", socket.gethostname()):
        assert secret not in held, secret
    if how == "save":
        trained = json.loads((out / "config.json").read_text())["igpt"]["trained"]
        assert trained["data"] == "acme"
        assert trained["mixed"][0]["data"] == "web.tar"
        assert trained["init_from"] == {"model": "a", "digest": "2"}
        assert (trained["seed"], trained["step"]) == (3, 7)
        assert "on photos" in (out / "probe.json").read_text()


def test_the_report_says_by_which_command_but_not_where(tmp_path):
    folder = a_run(tmp_path / "run")
    fill(folder)
    document = files.read_json(folder / "config.json")
    document["facts"] = FACTS
    document["data"]["palette"] = "/home/jane/p.npy"
    files.write_json(folder / "config.json", document)
    page = write_report(folder).read_text()
    for secret in SECRETS[:3]:
        assert secret not in page
    assert "igpt pretrain acme run --data.palette=p.npy" in page
    assert str(Path.cwd()) not in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/srv/a b/photos", "photos"),
        ("photos/cats", "photos/cats"),
        ("~/photos", "photos"),
        ("../../jane/photos", "photos"),
        (r"C:\Users\jane\photos", "photos"),
        ("0.5:none:/srv/web.tar", "0.5:none:web.tar"),
        ("--out=/srv/a.png", "--out=a.png"),
        ("s3://jane:key@bucket/a.tar?token=1", "a.tar"),
        ("hf:owner/name", "hf:owner/name"),
        ("1e-3", "1e-3"),
        ("/", "a folder"),
        (str(Path.home()), "a folder"),
    ],
)
def test_a_word_keeps_the_name_alone(text, said):
    assert shown(text) == said


def test_commands_are_shown_with_names():
    assert shown_command("igpt pretrain '/srv/a b/c' runs/a") == "igpt pretrain c runs/a"
    call = "igpt.pretrain('/srv/a b/c', \"/home/jane/it's\", recipe='demo')"
    assert shown_command(call) == "igpt.pretrain('c', \"it's\", recipe='demo')"
    assert shown_command("igpt '") == "igpt"
    assert name_of("cifar10 (npm mirror)") == "cifar10 (npm mirror)"


def test_what_is_not_known_to_be_harmless_stays_here():
    assert set(published({"a new fact": 1, "seed": 0})) == {"seed"}


def test_a_run_keeps_what_its_model_folder_does_not_say(tmp_path, digits, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = "--data.image-size 8 --data.n-colors 8 --model.n-layer 1 --model.n-head 1"
    options += " --model.n-embd 8 --train.total-steps 1 --train.batch-size 2 --train.compile off"
    monkeypatch.setattr("sys.argv", ["igpt", "pretrain", "digits", "run"])
    with pytest.raises(SystemExit):
        main(["pretrain", "digits", "run", *options.split()])
    assert json.loads(Path("run/config.json").read_text())["facts"]["command"]
    assert "command" not in Path("run/model/config.json").read_text()
    assert Path("run/model/seen.npy").is_file()
    with pytest.raises(SystemExit):
        main(["push", "run", "me/x", "--dry-run", "sent"])
    assert not Path("sent/seen.npy").exists()


def test_a_probe_of_before_is_cleaned_when_it_is_written_again(tmp_path):
    probe = a_model(tmp_path).classifier
    assert isinstance(probe, SavedProbe)
    probe.save(tmp_path)
    assert "/home" not in (tmp_path / "probe.json").read_text()
