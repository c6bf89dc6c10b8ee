"""The plan of the house (docs/ARCHITECTURE.md): imports go one way, `__init__` files are empty."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "igpt"

# A room may import itself and the rooms in earlier rows, never its neighbours in the same row.
ROWS = [
    ["errors"],
    ["system"],
    ["config", "files", "streams"],
    ["caches"],
    ["recipes", "progress"],
    ["cpp"],
    ["compute"],
    ["images"],
    ["tokens"],
    ["model"],
    ["train"],
    ["modelfolder"],
    ["shipped"],
    ["pixelmodel"],
    ["probe"],
    ["evaluate", "generate", "interop"],
    ["train.run"],
    ["train.search"],
    ["sklearn"],
    ["web"],
    ["bench"],
    ["cli"],
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or "__" not in p.name)

# PixelModel's methods call the later rooms on first use, so that one object offers everything;
# the import stands inside the method, and nothing in those rooms is needed to load a model.
LAZY_EXCEPTIONS = {"pixelmodel"}


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return row_name(".".join(parts))


def row_name(module):
    """Of a module, by its dotted name in the package: a row of its own, or its room's."""
    return next((name for name in ROW_OF if "." in name and module == name), module.split(".")[0])


def imported(tree, *, top_level_only):
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "igpt":
                yield from (f"igpt.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    assert room in ROW_OF, f"{room} is not in the plan"
    tree = ast.parse(path.read_text())
    for name in imported(tree, top_level_only=room in LAZY_EXCEPTIONS):
        if not name.startswith("igpt."):
            continue
        other = row_name(name.removeprefix("igpt."))
        if other in ("__version__", room) or room.split(".")[0] == other:
            continue
        assert ROW_OF[other] < ROW_OF[room], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_rooms_stay_light(path):
    room = room_of(path)
    names = {
        name.split(".")[0] for name in imported(ast.parse(path.read_text()), top_level_only=False)
    }
    if room in ("errors", "config", "recipes", "files"):
        assert not names & {"torch", "numpy", "PIL", "sklearn", "rich"}
    if room in ("images", "streams", "tokens"):
        assert "torch" not in names


def test_room_init_files_hold_a_docstring_and_nothing_else():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path
