"""`igpt report`."""

from pathlib import Path

from igpt.cli.outputs import Run
from igpt.errors import UserError
from igpt.system import at_home


def report(run: Run, *, name: str | None = None, beside: tuple[str, ...] = ()) -> None:
    """One self-contained HTML file about a run: curves, pictures, figures and their tables.

    The figures and tables are also written to RUN/figures, as SVG, PNG and JSON.

    Args:
        run: run folder; what has not been evaluated yet is left out.
        name: what this run is called beside others.
        beside: other runs for the paper's Figures 2, 3 and 4, each as NAME=RUN; runs of one NAME
            are one model trained with several seeds.
    """
    from igpt.report.report import OWN_NAME, write_report

    others: dict[str, list[Path]] = {}
    for text in beside:
        other, sign, folder = text.partition("=")
        if not sign or not other or not folder:
            raise UserError(f"--beside {text}: write NAME=RUN, such as BERT=runs/bert")
        others.setdefault(other, []).append(_checked(folder))
    print(write_report(_checked(run), name=name or OWN_NAME, beside=others))


def _checked(run: str) -> Path:
    folder = at_home(run)
    if not (folder / "config.json").is_file():
        raise UserError(f"{run} holds no run (config.json is missing): check the path")
    return folder
