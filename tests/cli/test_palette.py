import json

import numpy as np
import pytest
from PIL import Image

from igpt.cli.palette import palette
from igpt.errors import UserError
from igpt.tokens.palette import Palette


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Forty images of many colours, in two classes."""
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_palette_is_written_with_its_error(folder, tmp_path, capsys):
    out = tmp_path / "p.npy"
    palette(str(folder), str(out), image_size=8, n_colors=16, json=True)
    result = json.loads(capsys.readouterr().out)
    saved = Palette.load(out)
    assert (result["sha256"], result["n_colors"]) == (saved.digest, 16)
    for split in ("train", "valid"):
        assert 20 < result[split]["rms"] < 60
        assert len(result[split]["rms_rgb"]) == 3
        assert 15 < result[split]["psnr_db"] < 25
        assert 2 < result[split]["entropy_nats"] <= np.log(16)


def test_palette_prints_what_it_lost(folder, tmp_path, capsys):
    palette(str(folder), str(tmp_path / "p.npy"), image_size=8, n_colors=16)
    out = capsys.readouterr().out
    assert "16 colours from" in out
    assert "valid: RMS error" in out
    assert "nats a token" in out


def test_nothing_lost_is_valid_json(folder, tmp_path, capsys):
    palette(str(folder), str(tmp_path / "p.npy"), image_size=1, n_colors=2, json=True)
    capsys.readouterr()
    for path in folder.rglob("*.png"):
        shade = 255 * (int(path.stem) % 2)
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)
    palette(str(folder), str(tmp_path / "q.npy"), image_size=8, n_colors=2, json=True)
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["valid"]["rms"] == 0
    assert result["valid"]["psnr_db"] is None


def test_palette_refuses_to_overwrite(folder, tmp_path):
    out = tmp_path / "p.npy"
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"p\.npy exists: choose another name, or remove it"):
        palette(str(folder), str(out), image_size=8)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("p", {}, "choose a name that ends in .npy"),
        ("p.npy", {"n_colors": 1}, "n_colors is 1: choose from 2 to 65536"),
        ("p.npy", {"image_size": 0}, "image_size is 0: choose from 1 to 256 pixels"),
    ],
)
def test_palette_refuses(folder, tmp_path, out, options, message):
    with pytest.raises(UserError, match=message):
        palette(str(folder), str(tmp_path / out), **options)
