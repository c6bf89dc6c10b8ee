"""`igpt report`."""

from pathlib import Path

from igpt.cli.arguments import Run
from igpt.errors import UserError


def report(run: Run) -> None:
    """One self-contained HTML file about a run: curves, pictures, figures and their tables.

    Args:
        run: run folder; what has not been evaluated yet is left out.
    """
    from igpt.evaluate.report import write_report

    folder = Path(run)
    if not (folder / "config.json").is_file():
        raise UserError(f"{run} holds no run (config.json is missing): check the path")
    print(write_report(folder))
