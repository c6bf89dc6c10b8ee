"""Every command that a document shows exists, with the options it is shown with."""

import contextlib
import functools
import inspect
import io
import re
from pathlib import Path

import pytest

from igpt.cli.main import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "RESULTS.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMAND = re.compile(r"(?:^|[`( ])igpt ([a-z]+)((?: [^`\n|]*)?)")


def shown_commands():
    """(page, command, options) wherever a page shows `igpt COMMAND ...` as code."""
    for page in PAGES:
        if page.exists():
            for code in code_of(page.read_text()):
                for name, rest in COMMAND.findall(code):
                    options = re.findall(r"--[a-z][a-z0-9.-]*", rest)
                    yield pytest.param(name, options, id=f"{page.name}-{name}-{len(options)}")


def code_of(text):
    """Inline code and indented or fenced code lines."""
    yield from (f"`{code}`" for code in re.findall(r"`([^`\n]+)`", text))
    yield from re.findall(r"^ {4}(.+)$", text, re.MULTILINE)
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        yield from block.splitlines()


def options_in(text):
    return sorted(set(re.findall(r"--[a-z][a-z0-9.-]*", text)))


@functools.cache
def help_of(name):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return text.getvalue()


@pytest.mark.parametrize(("name", "options"), list(shown_commands()))
def test_shown_command_exists_with_its_options(name, options):
    assert name in COMMANDS
    known = set(options_in(help_of(name)))
    assert set(options) - {"--help", "--debug"} <= known


def test_every_command_stands_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"igpt {name}" not in text] == []


def test_public_names_are_documented():
    import igpt

    for name in igpt.__all__:
        assert (getattr(igpt, name).__doc__ or "").strip(), name
    for name, method in inspect.getmembers(igpt.PixelModel, inspect.isfunction):
        if not name.startswith("_"):
            assert (method.__doc__ or "").strip(), name
