"""The names that users build on: changing one needs an entry in the changelog, and here."""

import json
from pathlib import Path

import pytest

import igpt
from igpt import sklearn
from igpt.cli.main import COMMANDS
from tests.test_docs import help_of, options_in

KEPT = Path(__file__).parent / "fixtures" / "names.json"


def public(holder):
    return sorted(name for name in dir(holder) if not name.startswith("_"))


def names():
    """All public names of Python, by their holder, and every option of every command."""
    held = {
        "igpt": sorted(igpt.__all__),
        "igpt.PixelModel": public(igpt.PixelModel),
        "igpt.Palette": public(igpt.Palette),
        "igpt.Run": public(igpt.Run),
        "igpt.sklearn": sorted(sklearn.__all__),
    }
    return held | {f"igpt {name}": options_in(help_of(name)) for name in COMMANDS}


@pytest.fixture(scope="module")
def now():
    return names()


@pytest.mark.parametrize("holder", json.loads(KEPT.read_text()))
def test_a_public_name_stays(holder, now):
    kept = json.loads(KEPT.read_text())[holder]
    assert now[holder] == kept, (
        f"{holder}: gone {sorted(set(kept) - set(now[holder]))}, "
        f"new {sorted(set(now[holder]) - set(kept))}: say it in CHANGELOG.md, then write "
        f"{KEPT.name} anew by `python -m tests.test_names`"
    )


def test_every_holder_is_kept(now):
    assert set(now) == set(json.loads(KEPT.read_text()))


if __name__ == "__main__":
    KEPT.write_text(json.dumps(names(), indent=1) + "\n")
