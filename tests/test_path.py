"""The main path reads in one sitting (docs/ARCHITECTURE.md), and nothing is too long to read."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "igpt"
MAIN_PATH = [
    "images/decode",
    "images/packed/read",
    "tokens/palette",
    "tokens/batches",
    "model/gpt",
    "train/objectives",
    "train/loop",
    "train/checkpoint",
    "probing/features",
    "probing/protocol",
]


def test_main_path_has_at_most_2400_lines():
    assert sum(len((PACKAGE / f"{p}.py").read_text().splitlines()) for p in MAIN_PATH) <= 2400


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_modules_and_functions_can_be_read(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 700
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            assert length <= 60, f"{node.name} at line {node.lineno} has {length} lines"


def docstring_lines(node):
    """A command's docstring is its help and as long as it has options, so it does not count."""
    first = node.body[0]
    has_one = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first.end_lineno - first.lineno + 1 if has_one else 0
