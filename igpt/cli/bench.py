"""`igpt bench`."""

import json as json_format
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from igpt.errors import UserError

if TYPE_CHECKING:
    from igpt.bench.measure import Row

Work = Literal["train", "sample", "data", "probe", "start", "growth"]
PEERS: dict[str, tuple[str, ...]] = {
    "train": ("transformers", "mingpt", "sketch"),
    "sample": ("transformers", "sketch"),
    "data": ("transformers", "pillow"),
    "probe": ("sklearn",),
    "start": (),
    "growth": (),
}
ALSO = {"sample": ("mingpt",)}  # can be asked for, but takes minutes


def bench(
    work: Positional[Work],
    *,
    against: str | None = None,
    quick: bool = False,
    json: bool = False,
    out: str | None = None,
    check: str | None = None,
    at_most_s: float = 60.0,
    clock: Literal["wall", "cpu"] = "wall",
    photos: tuple[str, ...] = (),
    parts: str | None = None,
) -> None:
    """Our speed beside other projects', on the same inputs, taking turns in one run.

    Args:
        work: train (a step), sample, data (tokens, preparing, loading), probe, start (of the
            program), growth (time and memory against size).
        against: peers, separated by commas: transformers, mingpt, sketch (a plain PyTorch model),
            pillow (a plain loop); none: those that take seconds.
        quick: one small size, within 40 seconds.
        json: print the rows as one JSON document.
        out: also keep that document in this file (.json).
        check: compare the ratios with those kept in this file, and fail if one is much lower.
        at_most_s: seconds after which a row makes no further rounds; growth: after which each of
            its parts is ended, and what it did not reach is left out.
        clock: wall; cpu counts processor seconds on one thread, for a machine that others use too.
        photos: data: tars of JPEGs to prepare; none: pictures that are made on the spot.
        parts: growth: with what, separated by commas: T, B, d, L, prepare, palette, probe, embed
            (the number of their images), ranks; none: with each.
    """
    if photos and work != "data":
        raise UserError(f"--photos is for bench data, not for bench {work}: drop it")
    if parts is not None and work != "growth":
        raise UserError(f"--parts is for bench growth, not for bench {work}: drop it")
    peers = _peers(work, against)
    target = None if out is None else _target(out)
    kept = None if check is None else _kept(check)

    from igpt import compute
    from igpt.bench import measure

    compute.set_threads()
    options: dict[str, object] = {}
    if work == "data":
        options["photos"] = [_photos(name) for name in photos]
    if parts is not None:
        options["parts"] = _parts(parts)
    with measure.counting(clock):
        rows = _measure_of(work)(peers, quick=quick, at_most_s=at_most_s, **options)
        if target is not None:
            measure.write(target, rows)
        said = json_format.dumps(measure.document(rows)) if json else measure.table(rows)
    print(said)
    if kept is not None:
        from igpt.bench.regression import check_ratios

        check_ratios(rows, kept, where=str(check))


def _peers(work: Work, against: str | None) -> list[str]:
    known = PEERS[work] + ALSO.get(work, ())
    if against is None:
        return list(PEERS[work])
    names = [name.strip() for name in against.split(",") if name.strip()]
    for name in names:
        if not known:
            raise UserError(f"bench {work} has no peers: drop --against")
        if name not in known:
            raise UserError(
                f"--against {name}: bench {work} knows {', '.join(known)}: choose among these"
            )
    return names


def _parts(parts: str) -> list[str]:
    from igpt.bench.growth import PARTS

    names = [name.strip() for name in parts.split(",") if name.strip()]
    for name in names:
        if name not in PARTS:
            raise UserError(
                f"--parts {name}: bench growth knows {', '.join(PARTS)}: choose among these"
            )
    return names


def _photos(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--photos {name} is no file: name a tar of JPEGs")
    return path


def _target(out: str) -> Path:
    from igpt.cli.outputs import checked

    return checked(out, "--out", (".json",), force=True)


def _kept(check: str) -> list[dict[str, object]]:
    from igpt.files import read_json

    path = Path(check)
    if not path.is_file():
        raise UserError(f"--check {check} is no file: measure first, with --out {check}")
    document = read_json(path)
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"--check {check} is not what bench wrote: measure anew, with --out")
    return rows


def _measure_of(work: Work) -> "Callable[..., list[Row]]":
    """The function that measures this work; only its module is imported."""
    from importlib import import_module

    measure: Callable[..., list[Row]] = getattr(
        import_module(f"igpt.bench.{work}"), f"bench_{work}"
    )
    return measure
