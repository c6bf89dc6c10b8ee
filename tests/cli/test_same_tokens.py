"""One way to resize: a file gives the same tokens in whatever command or estimator reads it."""

import numpy as np
import pytest

from igpt.images.packed.read import PackedSet
from igpt.sklearn import IGPTClassifier, IGPTFeatures
from igpt.tokens.palette import Palette
from tests.cli.test_main import run
from tests.images.pictures import encoded, noise, smooth
from tests.networks import pixel_model, probe_of

# Read at a reduced scale, in full, grey, with alpha, and smaller than 224 pixels.
FILES = {
    "a.jpg": encoded(smooth(900, 1200), "JPEG"),
    "b.jpg": encoded(smooth(301, 403), "JPEG"),
    "c.png": encoded(smooth(300, 230)),
    "d.png": encoded(noise(9, 20)),
}


@pytest.fixture
def seen(monkeypatch):
    """The tokens of all images that were encoded."""
    held, encode = [], Palette.encode

    def spied(self, images):
        tokens = encode(self, images)
        held.extend(map(bytes, np.asarray(tokens, np.int64).reshape(-1, 64)))
        return tokens

    monkeypatch.setattr(Palette, "encode", spied)
    return held


def test_a_file_gives_the_same_tokens_everywhere(tmp_path, monkeypatch, capsys, seen):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, data in FILES.items():
        (tmp_path / "photos" / name).write_bytes(data)
    model = pixel_model()
    model.save("tiny")
    probe_of(model).save(tmp_path / "tiny")
    assert run(["prepare", "photos", "packed", "--image-size", "8"], capsys)[0] == 0
    packed = PackedSet.open(tmp_path / "packed")
    model.encode(packed.images_at(np.arange(4))[:])
    prepared = set(seen)
    assert len(prepared) == 4
    paths = [f"photos/{name}" for name in FILES]
    commands = {
        "embed": ["embed", "tiny", "photos", "--out", "f.npz"],
        "classify": ["classify", "tiny", "photos"],
        "complete": ["complete", "tiny", "photos", "--n", "1"],
        "rank": ["rank", "tiny", "photos"],
        "maps": ["rank", "tiny", "photos", "--maps", "maps.png"],
    }
    for name, command in commands.items():
        seen.clear()
        assert run(command, capsys)[0] == 0, name
        assert set(seen) == prepared, name
    for estimator in (IGPTFeatures("tiny"), IGPTClassifier("tiny")):
        seen.clear()
        estimator.fit(paths, [0, 1, 0, 1])
        (estimator.transform if isinstance(estimator, IGPTFeatures) else estimator.predict)(paths)
        assert set(seen) == prepared, estimator
