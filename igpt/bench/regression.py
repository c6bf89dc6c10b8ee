"""Whether we became slower: ratios to peers beside those measured before, whatever the machine."""

from collections.abc import Mapping, Sequence

from igpt.bench.measure import Row
from igpt.errors import UserError

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
