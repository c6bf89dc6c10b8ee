"""`igpt bench`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from igpt.cli.outputs import show
from igpt.errors import UserError
from igpt.system import limit_cpu

if TYPE_CHECKING:
    from igpt.bench.measure import Row

Work = Literal["train", "sample", "data", "probe", "start", "growth", "all"]
PEERS: dict[Work, tuple[str, ...]] = {
    "train": ("transformers", "mingpt", "sketch"),
    "sample": ("transformers", "sketch"),
    "data": ("transformers", "pillow"),
    "probe": ("transformers", "sklearn"),
    "start": (),
    "growth": (),
}
ALSO: dict[Work, tuple[str, ...]] = {"sample": ("mingpt",)}  # can be asked for, but takes minutes
ALL = tuple(work for work in PEERS if work != "growth")  # which takes half an hour


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
    cpu: Literal["avx2", "avx512"] | None = None,
    photos: tuple[str, ...] = (),
    parts: str | None = None,
) -> None:
    """Our speed beside other projects', on the same inputs, taking turns in one run.

    Args:
        work: train (a step), sample, data (tokens, preparing, loading), probe, start (of the
            program), growth (time and memory against size), all (but growth).
        against: peers, separated by commas: transformers, mingpt, sketch (a plain PyTorch model),
            pillow (a plain loop); none: those that take seconds.
        quick: one small size, within 40 seconds.
        json: print the rows as one JSON document.
        out: also keep that document in this file (.json), or in FOLDER/KIND/WORK.json, by the kind
            of machine.
        check: compare the ratios with those kept in this file, or in this folder as --out keeps
            them, and fail if one is much lower or they are of another kind of machine.
        at_most_s: seconds after which a row makes no further rounds; growth: after which each of
            its parts is ended, and what it did not reach is left out.
        clock: wall; cpu counts processor seconds on one thread, for a machine that others use too.
        cpu: use no more of the processor than this set of instructions; none: all of it.
        photos: data: tars of JPEGs to prepare; none: pictures that are made on the spot.
        parts: growth: with what, separated by commas: T, B, d, L, prepare, palette, probe, embed
            (the number of their images), ranks; none: with each.
    """
    if photos and work not in ("data", "all"):
        raise UserError(f"--photos is for bench data, not for bench {work}: drop it")
    if parts is not None and work != "growth":
        raise UserError(f"--parts is for bench growth, not for bench {work}: drop it")
    peers = {name: _peers(name, against) for name in (ALL if work == "all" else (work,))}
    options: dict[Work, dict[str, object]] = {name: {} for name in peers}
    if "data" in options:
        options["data"]["photos"] = [_photos(name) for name in photos]
    if parts is not None:
        options["growth"]["parts"] = _parts(parts)
    limit_cpu(cpu)

    from igpt import compute
    from igpt.bench import measure
    from igpt.bench.measure import check_ratios

    targets = {name: _target(out, name) for name in peers} if out is not None else {}
    kept = {name: _kept(check, name) for name in peers} if check is not None else {}
    compute.set_threads()
    rows: list[Row] = []
    with measure.counting(clock):
        for name, names in peers.items():
            found = _measure_of(name)(names, quick=quick, at_most_s=at_most_s, **options[name])
            rows += found
            if name in targets:  # of several works one file grows
                own = len(set(targets.values())) == len(targets)
                measure.write(targets[name], found if own else rows)
        said = measure.document(rows) if json else None
        show(said or {}, [measure.heading(), "", measure.table(rows)], json=bool(said))
    if check:
        before = [row for one in kept.values() for row in one]
        check_ratios(rows, before, where=check)


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


def _place(name: str, work: Work) -> str:
    """The file that `name` is, or that it has for this work on a machine of this kind."""
    from igpt.bench import measure

    folder = Path(name)
    # A name that is too long is no folder.
    is_folder = bool(name) and os.path.isdir(folder)  # noqa: PTH112
    return str(folder / measure.kind() / f"{work}.json") if is_folder else name


def _target(out: str, work: Work) -> Path:
    from igpt.cli.outputs import checked

    place = _place(out, work)
    if place != out:
        Path(place).parent.mkdir(exist_ok=True)
    return checked(place, "--out", (".json",), force=True)


def _kept(check: str, work: Work) -> list[dict[str, object]]:
    from igpt.bench import measure
    from igpt.files import read_json

    path = Path(_place(check, work))
    if not path.is_file():
        raise UserError(f"--check {path} is no file: measure first, with --out {check}")
    document = read_json(path)
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"--check {path} is not what bench wrote: measure anew, with --out")
    kind = document["machine"].get("kind")
    if kind != measure.kind():
        raise UserError(
            f"--check {path} was measured on {kind}, this is {measure.kind()}: ratios compare "
            "between machines of one kind only"
        )
    return rows


def _measure_of(work: Work) -> "Callable[..., list[Row]]":
    """The function that measures this work; only its module is imported."""
    from importlib import import_module

    measure: Callable[..., list[Row]] = getattr(
        import_module(f"igpt.bench.{work}"), f"bench_{work}"
    )
    return measure
