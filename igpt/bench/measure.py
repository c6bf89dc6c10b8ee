"""Timing several ways of doing one piece of work, taking turns, and what comes of it.

Beside what was measured before, only ratios to peers are compared, whatever the machine.
"""

import gc
import math
import multiprocessing
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import igpt
from igpt import compute, system
from igpt.errors import UserError
from igpt.files import write_json

REPEATS = 5
OURS = "igpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Our time beside one peer's, for one piece of work."""

    row: str
    """The work, with its sizes."""
    peer: str
    """Who else did it; empty where there is only our own time."""
    ours_s: float
    """Median seconds."""
    peer_s: float | None
    """Median seconds of the peer."""
    ratio: float | None
    """How many times as long the peer took: medians divided."""
    spread: float
    """Half the distance between the quartiles of the ratio over the rounds (of our seconds, where
    there is no peer), as a share of its median."""
    share_of_limit: float | None
    """The time that the limit named in `limit` allows, as a share of ours."""
    limit: str = ""
    """What bounds the work, as measured on the spot."""
    note: str = ""
    """What else the reader must know, such as the number type."""
    repeats: int = REPEATS
    """Rounds, after one of warm-up."""
    memory_bytes: int | None = None
    """The most memory that a process of its own held for the work, where that was looked at."""


Spans = dict[str, list[float]]
Clock = Literal["wall", "cpu"]

_CLOCKS: dict[Clock, compute.Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_clock: ContextVar[Clock] = ContextVar("clock", default="wall")


@contextmanager
def counting(clock: Clock) -> Iterator[None]:
    """Count by this clock inside.

    `cpu` counts the processor's seconds of this process on one thread: what is left to compare by
    where other programs take the processor away, which stretches a wall clock's seconds.
    """
    before = torch.get_num_threads()
    token = _clock.set(clock)
    if clock == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        _clock.reset(token)
        torch.set_num_threads(before)


def counts_one_thread() -> bool:
    """Whether only what this process itself does is counted, so that it must do all of it."""
    return _clock.get() == "cpu"


def now_s() -> float:
    """The time by the clock that counts."""
    return _CLOCKS[_clock.get()]()


def take_turns(
    works: Mapping[str, Callable[[], object]],
    *,
    repeats: int = REPEATS,
    device: torch.device | None = None,
    at_most_s: float = float("inf"),
    warm: bool = False,
) -> Spans:
    """Seconds of each work in each round, everyone once a round, after one round of warm-up.

    Garbage is collected between works, not during them.

    Args:
        works: by name.
        repeats: rounds.
        device: waited for at the ends of each span; none: the CPU.
        at_most_s: no further round begins after this many seconds (two are always made).
        warm: every work has been done once already.
    """
    spans: Spans = {name: [] for name in works}
    for work in [] if warm else works.values():
        _span_of(work, device)
    end_s = time.perf_counter() + at_most_s
    for done in range(repeats):
        if done >= 2 and time.perf_counter() > end_s:
            break
        for name, work in works.items():
            spans[name].append(_span_of(work, device))
    return spans


def _span_of(work: Callable[[], object], device: torch.device | None) -> float:
    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    gc.collect()
    gc.disable()
    try:
        wait()
        start_s = now_s()
        work()
        wait()
        return now_s() - start_s
    finally:
        gc.enable()


def rows_of(
    row: str,
    spans: Spans,
    *,
    ours: str = OURS,
    limit_s: float | None = None,
    limit: str = "",
    note: str = "",
) -> list[Row]:
    """One `Row` for each peer in `spans`; with no peer, one for our time alone.

    Args:
        row: the work, with its sizes.
        spans: what `take_turns` gave.
        ours: the name of our own work in it.
        limit_s: seconds that the machine's limit allows.
        limit: that limit in words.
        note: for the reader.
    """
    own = spans[ours]
    ours_s = statistics.median(own)
    share = None if limit_s is None else limit_s / ours_s
    facts: dict[str, Any] = {
        "row": row,
        "ours_s": ours_s,
        "share_of_limit": share,
        "limit": limit,
        "note": note,
        "repeats": len(own),
    }
    peers = [name for name in spans if name != ours]
    if not peers:
        return [Row(peer="", peer_s=None, ratio=None, spread=spread_of(own), **facts)]
    rows = []
    for peer in peers:
        peer_s = statistics.median(spans[peer])
        ratios = [other / one for one, other in zip(own, spans[peer], strict=True)]
        spread = spread_of(ratios)
        rows.append(Row(peer=peer, peer_s=peer_s, ratio=peer_s / ours_s, spread=spread, **facts))
    return rows


def spread_of(values: Sequence[float]) -> float:
    """Half the distance between the quartiles as a share of the median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / middle


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What was measured on: names, versions, and the limits as measured now."""
    device = device or compute.default_device()
    rates = _rates(device)
    return {
        "kind": kind(device),
        "device": _device_name(device),
        "cores": system.cores(),
        "threads": torch.get_num_threads(),
        "number_type": compute.name_of(compute.choose_dtype("auto", device)),
        "clock": _clock.get(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "igpt": igpt.__version__,
        **rates,
    }


def kind(device: torch.device | None = None) -> str:
    """The kind of machine, whose figures compare: a CPU's instruction set, or a card's name."""
    device = device or compute.default_device()
    if device.type == "cuda":
        return re.sub("[^a-z0-9]+", "-", _device_name(device).lower())
    return system.instruction_set() if device.type == "cpu" else device.type


def _rates(device: torch.device) -> dict[str, float]:
    return {
        "float32_flops": matrix_rate(device, torch.float32),
        "bfloat16_flops": matrix_rate(device, torch.bfloat16),
        "copy_bytes_per_s": copy_rate(device),
    }


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, by the clock that counts."""
    return compute.matrix_rate(device, dtype, _CLOCKS[_clock.get()])


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read plus written, of a large copy, by the clock that counts."""
    return compute.copy_rate(device, _CLOCKS[_clock.get()])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return system.processor_name()


def heading(device: torch.device | None = None) -> str:
    """The machine and its limits in one line, to stand above a table."""
    facts = machine(device)
    return (
        f"{facts['device']} ({facts['kind']}), {facts['threads']} threads, trains in "
        f"{facts['number_type']}; matrix products in float32 {facts['float32_flops'] / 1e9:,.0f}, "
        f"in bfloat16 {facts['bfloat16_flops'] / 1e9:,.0f} GFLOP/s, "
        f"copies {facts['copy_bytes_per_s'] / 1e9:,.1f} GB/s; torch {facts['torch']}"
    )


def document(rows: Iterable[Row], device: torch.device | None = None) -> dict[str, Any]:
    """What `--json` prints and `benchmarks/` keeps."""
    return {
        "machine": machine(device),
        "command": " ".join(["igpt", *sys.argv[1:]]),
        "rows": [asdict(row) for row in rows],
    }


def write(path: Path, rows: Iterable[Row], device: torch.device | None = None) -> None:
    """Keep a document as JSON."""
    write_json(path, document(rows, device))


def table(rows: Iterable[Row]) -> str:
    """The rows as a table in Markdown, for a terminal and for RESULTS.md."""
    lines = [
        "| work | peer | ours | peer's | ratio | spread | share of limit | memory | note |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
        share = "" if row.share_of_limit is None else f"{row.share_of_limit:.0%} of {row.limit}"
        peer_s = "" if row.peer_s is None else in_words(row.peer_s)
        cells = (
            row.row,
            row.peer,
            in_words(row.ours_s),
            peer_s,
            ratio,
            f"± {row.spread:.0%}",
            share,
            "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.0f} MiB",
            row.note,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_words(span_s: float) -> str:
    """A span with its unit, three digits."""
    if span_s >= 1:
        return f"{span_s:.3g} s"
    if span_s >= 1e-3:
        return f"{span_s * 1e3:.3g} ms"
    return f"{span_s * 1e6:.3g} us"


def in_own_process(
    work: Callable[..., Any], *args: Any, at_most_s: float = float("inf")
) -> tuple[Any, int] | None:
    """What `work(*args)` returns in a fresh process, and the most bytes it held there.

    Peak memory belongs to a whole process, so each figure needs its own. None where it took longer
    than `at_most_s`, for which it is killed.

    Raises:
        RuntimeError: the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, work, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(None if math.isinf(at_most_s) else at_most_s):
            process.kill()
            return None
        found: tuple[Any, int] = receiver.recv()
        return found
    except EOFError:
        raise RuntimeError(f"{work.__name__}{args} ended without a result") from None
    finally:
        process.join()


def _report(sender: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    result = work(*args)
    sender.send((result, compute.peak_memory_bytes(compute.default_device())))


# A ratio may be lower by this share, and by twice its spreads, before it counts as a regression.
MARGIN = 0.15


def slower(rows: Sequence[Row], kept: Sequence[Mapping[str, object]]) -> list[str]:
    """A line for each row whose ratio fell. Seconds are not compared: machines differ."""
    before = {(row.get("row"), row.get("peer"), row.get("note")): row for row in kept}
    lines = []
    for row in rows:
        old = before.get((row.row, row.peer, row.note))
        if old is None or row.ratio is None or not isinstance(old.get("ratio"), float):
            continue
        ratio, spread = float(str(old["ratio"])), float(str(old["spread"]))
        if row.ratio < ratio * (1 - MARGIN - 2 * (spread + row.spread)):
            lines.append(f"{row.row} against {row.peer}: {ratio:.2f} x -> {row.ratio:.2f} x")
    return lines


def check_ratios(rows: Sequence[Row], kept: Sequence[Mapping[str, object]], *, where: str) -> None:
    """Refuse rows that are slower than those kept.

    Raises:
        UserError: names each ratio that fell; or no row is among those kept.
    """
    measured = {(row.row, row.peer) for row in rows if row.ratio is not None}
    if not measured & {(row.get("row"), row.get("peer")) for row in kept}:
        raise UserError(f"no row of {where} was measured now: check with the same work and sizes")
    if lines := slower(rows, kept):
        raise UserError(
            f"slower than in {where}: {'; '.join(lines)}: run it again on an idle machine, and "
            "find the change that did it"
        )
