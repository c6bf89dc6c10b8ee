"""The full counts of TARGETS, Reliability rows 1 to 3, by `make soak`; quick forms stand elsewhere.

Each prints what it counted; `RESULTS.md` quotes it.
"""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
import time

import pytest

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
N_COMPILED_KILLS = 5
COMPILED_STEPS = 600
COMPILED_S = 180.0
"""No further kill after this; at least one is made."""


def printed(capsys, line):
    """Show a line whatever pytest captures."""
    with capsys.disabled():
        print(f"\n{line}")


def config(**train):
    return dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **train))


def test_row_1_killed_fifty_times_and_resumed_the_weights_are_the_same_bits(
    digits, tmp_path, capsys
):
    long = config(total_steps=STEPS, checkpoint_every=7, log_every=50, valid_every=500)
    killing.train(tmp_path / "whole", long, "digits")
    context, rng = killing.forks(), random.Random(0)
    kills = attempts = 0
    while kills < N_KILLS:
        # Half of the moments are counted from the start, the others from the first new checkpoint.
        kills += killing.killed_after(
            context,
            0.6 * rng.random(),
            tmp_path / "broken",
            long,
            "digits",
            from_start=rng.random() < 0.5,
        )
        attempts += 1
        assert attempts < 2 * N_KILLS
    reached = killing.newest_step(tmp_path / "broken")
    assert 0 < reached < STEPS
    killing.train(tmp_path / "broken", long, "digits")
    whole = killing.final_weights(tmp_path / "whole", STEPS)
    assert killing.final_weights(tmp_path / "broken", STEPS) == whole
    printed(
        capsys,
        f"row 1: {kills} SIGKILLs (the last near step {reached} of {STEPS}), "
        "resumed each time: the final weights are bit for bit those of the unbroken run",
    )


@pytest.mark.skipif(not compute.has_compiler(), reason="blocks are compiled by a C++ compiler")
def test_row_1_of_the_compiled_path_in_bfloat16(digits, tmp_path, capsys, monkeypatch):
    # What the first run compiles, the others find here.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    default = config(
        total_steps=COMPILED_STEPS,
        checkpoint_every=7,
        log_every=50,
        valid_every=500,
        precision="bf16",
        compile="blocks",
    )
    context, rng, end_s = killing.forks(), random.Random(2), time.monotonic() + COMPILED_S
    killing.train_in_child(context, tmp_path / "whole", default, "digits")
    kills = 0
    while kills < N_COMPILED_KILLS and time.monotonic() < end_s:
        kills += killing.killed_after(context, rng.random(), tmp_path / "broken", default, "digits")
    reached = killing.newest_step(tmp_path / "broken")
    assert kills > 0 and 0 < reached < COMPILED_STEPS
    killing.train_in_child(context, tmp_path / "broken", default, "digits")
    whole = killing.final_weights(tmp_path / "whole", COMPILED_STEPS)
    assert killing.final_weights(tmp_path / "broken", COMPILED_STEPS) == whole
    printed(
        capsys,
        f"row 1, compiled blocks in bfloat16: {kills} SIGKILLs (the last near step {reached} of "
        f"{COMPILED_STEPS}), resumed each time: the same bits",
    )


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
