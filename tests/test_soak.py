"""The full counts of TARGETS, Reliability rows 1 to 3, by `make soak`; quick forms stand elsewhere.

Each prints what it counted; `RESULTS.md` quotes it.
"""

import dataclasses
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from igpt import compute
from igpt.jobs import pretrain as run
from igpt.train import checkpoint
from igpt.train.standing import standing
from tests.full_disk import digests
from tests.train import killing
from tests.train.making import TINY, opened
from tests.train.test_checkpoint import damage

pytestmark = pytest.mark.slow

N_KILLS = 50
N_DAMAGES = 200
STEPS = 4000
N_COMPILED_KILLS = 10
COMPILED_STEPS = 1000


def printed(capsys, line):
    """Show a line whatever pytest captures."""
    with capsys.disabled():
        print(f"\n{line}")


def config(**train):
    return dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **train))


LONG = config(total_steps=STEPS, checkpoint_every=7, log_every=50, valid_every=500)
TUNING = {
    "total_steps": STEPS,
    "checkpoint_every": 7,
    "valid_every": 500,
    "batch_size": 6,
    "micro_batch": 6,
    "patience": STEPS,
    "precision": "fp32",
    "compile": "off",
}
CROPS = dataclasses.replace(LONG, data=dataclasses.replace(LONG.data, augment="imagenet"))
# How each kind of run is started and gone on with: what `killing.train` or `killing.tune` takes.
KINDS = {
    "plain": (LONG, "digits", {}),
    "from other weights": (LONG, "digits", {"init_from": "{base}/start/model"}),
    "a mixture": (LONG, "digits", {"mix": ["0.5:flip:{base}/photos"]}),
    "live crops": (CROPS, "{base}/photos", {"workers": 1}),
    "fine-tuning": (TUNING, "digits", {"work": killing.tune, "model": "{base}/start/model"}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, own_cache):
    """Photos to mix in and to crop, and a model to start from."""
    folder = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(40):
            picture = Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8))
            picture.save(folder / "photos" / name / f"{i}.jpg")
    killing.train(folder / "start", TINY, "digits")
    return folder


def placed(value, base):
    """A value of `KINDS` with the place of the base in it."""
    if isinstance(value, str):
        return value.replace("{base}", str(base))
    return [placed(item, base) for item in value] if isinstance(value, list) else value


def killed_often(kind, base, folder, *, n_kills, rng, change=lambda config: config):
    """Carry a kind of run to its end twice, once killed all the way; what was counted.

    Half of the moments are counted from the start, the others from the first new checkpoint.
    """
    how, data, options = KINDS[kind]
    how, data = change(how), placed(data, base)
    options = {name: placed(value, base) for name, value in options.items()}
    steps = how["total_steps"] if kind == "fine-tuning" else how.train.total_steps
    context, broken = killing.forks(), folder / "broken"
    killing.train_in_child(context, folder / "whole", how, data, **options)
    kills = attempts = 0
    while kills < n_kills:
        moment = {"from_start": rng.random() < 0.5}
        kills += killing.killed_after(
            context, 0.6 * rng.random(), broken, how, data, **moment, **options
        )
        attempts += 1
        assert attempts < 2 * n_kills
    reached = killing.newest_step(broken)
    assert 0 < reached < steps
    killing.train_in_child(context, broken, how, data, **options)
    whole = killing.final_weights(folder / "whole", steps)
    assert killing.final_weights(broken, steps) == whole
    return (
        f"{kind}: {kills} SIGKILLs (the last near step {reached} of {steps}), resumed each time: "
        "the final weights are bit for bit those of the unbroken run"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_row_1_killed_fifty_times_and_resumed_the_weights_are_the_same_bits(
    base, tmp_path, capsys, kind
):
    said = killed_often(kind, base, tmp_path, n_kills=N_KILLS, rng=random.Random(0))
    printed(capsys, f"row 1, {said}")


@pytest.mark.skipif(not compute.has_compiler(), reason="blocks are compiled by a C++ compiler")
@pytest.mark.parametrize("kind", ["plain", "fine-tuning"])
def test_row_1_of_the_compiled_path_in_bfloat16(base, tmp_path, capsys, monkeypatch, kind):
    # What the first run compiles, the others find here.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    default = {"total_steps": COMPILED_STEPS, "precision": "bf16", "compile": "blocks"}

    def compiled(how):
        if kind == "fine-tuning":
            return {**how, **default}
        return dataclasses.replace(how, train=dataclasses.replace(how.train, **default))

    said = killed_often(
        kind, base, tmp_path, n_kills=N_COMPILED_KILLS, rng=random.Random(2), change=compiled
    )
    printed(capsys, f"row 1, compiled blocks in bfloat16, {said}")


def test_row_2_every_one_of_200_damages_is_detected(digits, tmp_path, capsys):
    folder = tmp_path / "run"
    killing.train(folder, config(), "digits")
    (_, newest), (step, earlier), *_ = checkpoint.all_steps(folder)
    trainer = opened(digits, folder)
    shutil.copytree(newest, tmp_path / "kept")
    rng, detected = random.Random(1), 0
    names = sorted(path.name for path in newest.iterdir())
    for number in range(N_DAMAGES):
        name = names[number % len(names)]
        damage(newest / name, rng.choice(["cut", "flip"]), rng)
        capsys.readouterr()
        at = standing(folder, trainer.config)
        run.go_back(trainer, at)
        assert trainer.step == step
        assert f"passed over {newest}: {name} is damaged" in at.damaged[0]
        detected += 1
        shutil.rmtree(newest)
        shutil.copytree(tmp_path / "kept", newest)
    run.go_back(trainer, standing(folder, trainer.config))
    assert trainer.step > step
    assert earlier.exists()
    printed(
        capsys,
        f"row 2: {detected} of {N_DAMAGES} damages (cut short or one bit flipped, over "
        f"{len(names)} files) detected and named, the checkpoint before used",
    )


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="needs `unshare -rm` to mount a small disk",
)
@pytest.mark.parametrize("kind", ["save", "prepare", "report"])
def test_row_3_a_disk_that_fills_up_at_any_page_leaves_what_was_there(
    digits, tmp_path, capsys, kind
):
    if kind == "report":
        killing.train(tmp_path / "run", config(), "digits")
    command = ["unshare", "-rm", sys.executable, "-m", "tests.full_disk", kind, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["problems"] == []
    assert result["status"] == 0
    assert result["failed"] > 5
    printed(
        capsys,
        f"row 3: {kind} on a disk that fills up one page (4 KiB) later each time: "
        f"{result['failed']} of {result['failed']} failures left the old state whole, "
        "with one line and status 2",
    )


def test_digests_see_a_changed_byte(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = digests(tmp_path)
    (tmp_path / "a").write_bytes(b"2")
    assert digests(tmp_path) != before
