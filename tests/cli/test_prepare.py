"""`igpt prepare`: what it prints, and bad input: line, status, table of rejects."""

import csv
import errno
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from igpt.cli.images import ImageFiles
from igpt.cli.main import PREPARING
from igpt.images.packed.read import PackedSet
from igpt.images.packed.write import GrowingArray
from tests.cli.test_main import run
from tests.images.pictures import class_files, encoded, noise, smooth, tar_bytes, write_tree
from tests.images.sources.test_named import records

GOOD = {f"{i:02d}.png": encoded(noise(9, 9, i)) for i in range(20)}
PHOTO = encoded(noise(16, 16), "JPEG")


def png_of_size(side: int) -> bytes:
    """A PNG whose header claims side x side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    whole = encoded(noise(4, 4))
    return whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]


def prepare(capsys, data, out, *options):
    command = ["prepare", str(data), str(out), "--image-size", "8", "--workers", "1"]
    return run([*command, *options], capsys)


def rejects(folder: Path) -> dict[str, str]:
    with (folder / "rejects.csv").open(newline="") as file:
        return {row["image"]: row["reason"] for row in csv.DictReader(file)}


def last(err: str) -> str:
    return err.strip().splitlines()[-1]


def test_facts_are_printed_and_rejects_counted(tmp_path, capsys):
    folder = write_tree(tmp_path / "in", GOOD | {"bad.png": b"?"})
    status, out, _ = prepare(capsys, folder, tmp_path / "set")
    assert status == 0
    assert out.splitlines()[-2:] == [
        f"left out, by reason ({tmp_path / 'set' / 'rejects.csv'} names each):",
        "        1  not an image, or of a kind that is not read",
    ]
    status, out, _ = prepare(capsys, folder, tmp_path / "other", "--json", "--views", "2")
    facts = json.loads(out)
    assert (facts["train"], facts["valid"], facts["n_read"], facts["n_rejected"]) == (36, 2, 21, 1)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.jpg", PHOTO[: len(PHOTO) // 2], "damaged or cut off"),
        ("zero.jpg", b"", "the file is empty"),
        (
            "bomb.png",
            png_of_size(2**30),
            "1073741824 x 1073741824 pixels take 4294967296.0 GiB to decode, more than 1",
        ),
        ("enormous.png", png_of_size(9000), "9000 x 9000 pixels cannot be in 120 bytes"),
        ("text.jpg", b"hello", "not an image, or of a kind that is not read"),
        ("one.png", encoded(noise(1, 1)), "smaller than 8 x 8"),
    ],
)
def test_a_bad_image_is_left_out_and_above_max_bad_it_stops(tmp_path, capsys, name, data, reason):
    folder = write_tree(tmp_path / "in", GOOD | {name: data})
    assert prepare(capsys, folder, tmp_path / "set")[0] == 0
    assert rejects(tmp_path / "set") == {name: reason}
    status, _, err = prepare(capsys, folder, tmp_path / "strict", "--max-bad", "0.04")
    assert (status, last(err)) == (
        2,
        f"igpt: error: 1 of 21 images cannot be used (1 {reason}), more than --max-bad 0.04 "
        f"allows: see {tmp_path / 'strict' / 'rejects.csv'}, mend them or raise --max-bad",
    )
    assert not (tmp_path / "strict" / "manifest.json").exists()


def test_a_wrong_ending_does_not_matter_and_one_pixel_can_be_enlarged(tmp_path, capsys):
    files = GOOD | {"photo.png": PHOTO, "one.jpg": encoded(noise(1, 1))}
    folder = write_tree(tmp_path / "in", files)
    assert prepare(capsys, folder, tmp_path / "set", "--upsample")[0] == 0
    assert rejects(tmp_path / "set") == {}


def test_an_empty_class_is_named(tmp_path, capsys):
    folder = write_tree(tmp_path / "in", class_files(10) | {"c/": b""})
    status, out, _ = prepare(capsys, folder, tmp_path / "set", "--max-bad", "0", "--json")
    assert (status, json.loads(out)["classes"]) == (0, 2)
    assert rejects(tmp_path / "set") == {"c": "class folder without images"}


def test_labels_without_files_and_files_without_labels_are_named(tmp_path, capsys):
    rows = "".join(f"{name},{i % 2}\n" for i, name in enumerate(list(GOOD)[:-1]))
    write_tree(tmp_path, GOOD)
    (tmp_path / "list.csv").write_text("path,label\n" + rows + "nothing.png,1\n00.png,0\n")
    assert prepare(capsys, tmp_path / "list.csv", tmp_path / "set")[0] == 0
    assert rejects(tmp_path / "set") == {
        "nothing.png": "there is no such file",
        "00.png": "the same name as one before",
        "19.png": "beside the images of the table but not in it",
    }


def test_names_that_lead_out_of_a_tar_are_named_and_write_nothing(tmp_path, capsys):
    files = GOOD | {"../up.png": GOOD["00.png"], "/top.png": GOOD["00.png"]}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(tar_bytes(files))
    assert prepare(capsys, tmp_path / "in" / "a.tar", tmp_path / "set", "--max-bad", "0.2")[0] == 0
    reason = "name leads out of the archive"
    assert list(rejects(tmp_path / "set").values()) == [reason] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "set"]


def test_keys_that_come_twice_in_a_tar_are_named(tmp_path, capsys):
    first, second = tar_bytes(GOOD), tar_bytes({"00.png": GOOD["00.png"]})
    body = first[: 1024 * 20]  # each image takes a header and a block
    assert body + second != first
    (tmp_path / "a.tar").write_bytes(body + second)
    assert prepare(capsys, tmp_path / "a.tar", tmp_path / "set")[0] == 0
    assert rejects(tmp_path / "set") == {"a.tar/00.png": "the same name as one before"}


def test_a_shard_cut_in_the_middle_is_left_out_whole_or_refused(tmp_path, capsys):
    whole = tar_bytes(GOOD)
    write_tree(tmp_path / "in", {f"{i}.tar": whole for i in range(9)} | {"9.tar": whole[:9000]})
    assert prepare(capsys, tmp_path / "in", tmp_path / "set")[0] == 0
    reasons = rejects(tmp_path / "set")
    assert set(reasons.values()) == {"archive is cut off or damaged"}
    assert {key.split("/")[0] for key in reasons} == {"9.tar"}
    status, _, err = prepare(capsys, tmp_path / "in" / "9.tar", tmp_path / "other")
    assert (status, last(err)) == (
        2,
        f"igpt: error: {tmp_path / 'in' / '9.tar'}: archive is cut off or damaged: fetch it again "
        "(its last file is not whole)",
    )


def test_a_wrong_checksum_is_one_line(tmp_path, capsys):
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    folder = write_tree(tmp_path / "in", {name: records(2)[0] for name in names})
    status, _, err = prepare(capsys, folder, tmp_path / "set")
    assert (status, last(err)) == (
        2,
        f"igpt: error: cifar10: data_batch_1.bin from {folder} has a wrong checksum: fetch it anew",
    )


def test_a_full_disk_is_one_line_and_nothing_half_is_read_as_whole(tmp_path, capsys, monkeypatch):
    folder = write_tree(tmp_path / "in", GOOD)

    def full(self, rows):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(GrowingArray, "append", full)
        status, _, err = prepare(capsys, folder, tmp_path / "set")
    assert status == 2
    assert last(err).startswith(f"igpt: error: cannot write {tmp_path / 'set'}")
    assert "No space left on device" in last(err) or "disk is full" in last(err)
    status, _, err = run(["info", str(tmp_path / "set")], capsys)
    assert status == 2
    assert prepare(capsys, folder, tmp_path / "set")[0] == 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--part", "4/3"], "--part 4/3 is not a part: write it as 3/16, from 1/16 to 16/16"),
        (["--views", "-1"], "--views -1 is not possible: choose 0 or more random crops"),
        (["--workers", "-1"], "--workers -1 is not possible: choose 0 for one a core, or more"),
        (["--valid-fraction", "1"], "the share for validation is 1.0: choose between 0 and 1"),
        (["--tokens", "no.npy"], "cannot read palette no.npy: No such file or directory: check"),
        (["--max-bad", "-1"], "--max-bad -1.0 is not a share: choose from 0 to 1"),
    ],
)
def test_impossible_options_are_one_line(tmp_path, capsys, options, line):
    folder = write_tree(tmp_path / "in", GOOD)
    status, out, err = prepare(capsys, folder, tmp_path / "set", *options)
    assert (status, out) == (2, "")
    assert last(err).startswith(f"igpt: error: {line}")


def test_a_part_without_images_is_one_line(tmp_path, capsys):
    folder = write_tree(tmp_path / "in", GOOD)
    status, _, err = prepare(capsys, folder, tmp_path / "set", "--part", "2/2")
    assert (status, last(err)) == (
        2,
        f"igpt: error: --part 2/2 of {folder} is empty: it is read in blocks of 64 images, "
        "so choose fewer parts",
    )


def test_parts_of_several_machines_merge(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("igpt.images.sources.source.BLOCK_IMAGES", 4)
    folder = write_tree(tmp_path / "in", GOOD)
    for number in (2, 1):
        status, _, err = prepare(capsys, folder, tmp_path / "set", "--part", f"{number}/2")
        assert status == 0
        if number == 2:
            assert last(err) == "part 2/2 is done; missing: 1/2"
    assert len(np.load(tmp_path / "set" / "labels.npy")) == 20
    assert not list((tmp_path / "set").glob("part-*"))


def test_every_command_of_many_images_has_max_bad_and_one_default(capsys):
    for name in ("prepare", *PREPARING, "embed", "rank", "classify", "complete"):
        status, out, _ = run([name, "--help"], capsys)
        assert status == 0
        shown = re.sub(r"[^ -~]+|\s+", " ", out.rpartition("--max-bad")[2])
        assert re.match(r" FLOAT .*?\(default: 0\.1\)", shown), (name, shown[:200])


def test_max_bad_of_a_command_that_prepares_counts_for_it_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    folder = write_tree(tmp_path / "in", class_files(10) | {f"a/{i}.jpg": b"x" for i in range(9)})
    command = ["palette", str(folder), str(tmp_path / "a.npy")]
    command += ["--image-size", "8", "--n-colors", "8"]
    assert run([*command, "--max-bad", "0.5"], capsys)[0] == 0
    (tmp_path / "a.npy").unlink()
    status, _, err = run(command, capsys)
    assert status == 2
    assert "9 of 29 images cannot be used" in err and "--max-bad 0.1 allows" in err
    assert run([*command, "--max-bad", "nan"], capsys)[0] == 2


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (37, 900)])
def test_a_photograph_is_the_same_pixels_to_prepare_and_to_embed(tmp_path, capsys, size):
    kinds = {f"{kind}.{end}": (kind, end) for kind, end in (("JPEG", "jpg"), ("PNG", "png"))}
    files = {name: encoded(smooth(*size, 3), kind) for name, (kind, _) in kinds.items()}
    folder = write_tree(tmp_path / "in", files)
    assert prepare(capsys, folder, tmp_path / "set")[0] == 0
    packed = PackedSet.open(tmp_path / "set")
    stored = {image.tobytes() for split in ("train", "valid") for image in packed.images(split)}
    squares = ImageFiles([str(folder)]).squares(slice(None), 8)
    assert {made.tobytes() for _, made, _ in squares} == stored
