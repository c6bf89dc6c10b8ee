import errno
import random
import shutil

import pytest
import torch

from igpt.errors import UserError
from igpt.train import checkpoint
from tests.strategies import lively_gpt


def write(run, step):
    tensors = {"a": torch.full((3,), float(step)), "b": torch.arange(4)}
    path = checkpoint.folder_of(run, step)
    checkpoint.save(
        path, model=tensors, optimizer={"a/exp_avg": tensors["a"]}, state={"step": step}
    )
    return path


def test_what_is_saved_is_loaded(tmp_path):
    held = checkpoint.load(write(tmp_path, 7))
    assert held.step == 7
    assert torch.equal(held.model["a"], torch.full((3,), 7.0))
    assert held.model["b"].dtype == torch.int64


def test_newest_intact_one_is_used(tmp_path):
    for step in (1, 2, 30):
        write(tmp_path, step)
    path, rejected = checkpoint.newest(tmp_path)
    assert path == checkpoint.folder_of(tmp_path, 30)
    assert rejected == []


def damage(path, kind, rng):
    data = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["cut", "flip", "delete"])
def test_any_damaged_file_is_detected_and_the_one_before_is_used(tmp_path, kind):
    """TARGETS, Reliability row 2, quick form; the 200 trials are in test_soak."""
    rng = random.Random(0)
    good = write(tmp_path, 1)
    whole = write(tmp_path, 2)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        for _ in range(3):
            kept = tmp_path / "kept"
            shutil.copytree(whole, kept)
            damage(whole / name, kind, rng)
            path, rejected = checkpoint.newest(tmp_path)
            assert path == good
            assert len(rejected) == 1
            assert name in rejected[0]
            assert str(whole) in rejected[0]
            with pytest.raises(UserError, match="cannot be used"):
                checkpoint.load(whole)
            shutil.rmtree(whole)
            kept.rename(whole)


def test_full_disk_leaves_the_earlier_checkpoint_and_says_so(tmp_path, monkeypatch):
    good = write(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == (good, [])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [good.name]


def test_prune_keeps_the_newest_and_the_chosen_steps(tmp_path):
    for step in range(1, 8):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, keep_at=(3,))
    assert [step for step, _ in checkpoint.all_steps(tmp_path)] == [7, 6, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("sos"), "tensor sos is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "tensor extra is not part of this network"),
        (lambda s: s.update(sos=torch.zeros(3)), r"tensor sos is \(3,\), this network has \(16,\)"),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_refused_by_name(change, message):
    network = lively_gpt()
    state = dict(network.state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        checkpoint.load_weights(network, state, where="file")
