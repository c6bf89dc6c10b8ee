"""The plan of the house (docs/ARCHITECTURE.md): imports go one way, `__init__` files are empty."""

import ast
import importlib.util
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "igpt"

# A room may import itself and the rooms in earlier rows, never its neighbours in the same row.
ROWS = [
    ["errors"],
    ["system"],
    ["config", "files", "streams", "published"],
    ["caches", "manifest"],
    ["recipes", "progress"],
    ["cpp"],
    ["compute"],
    ["images"],
    ["tokens"],
    ["model"],
    ["trained", "train"],
    ["formats"],
    ["shipped"],
    ["probing"],
    ["evaluation", "generate"],
    ["pixelmodel"],
    ["loading"],
    ["report"],
    ["jobs"],
    ["sklearn"],
    ["web"],
    ["bench"],
    ["cli"],
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
# What stands beside the package and imports from it: only a long run would find a name that moved.
BESIDE = [
    path
    for folder in ("tests", "records", "benchmarks", "examples")
    for path in sorted((PACKAGE.parent / folder).rglob("*.py"))
]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or "__" not in p.name)


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(tree):
    """Every name that is imported, at the top, in a function or for its type alone."""
    for node in ast.walk(tree):
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
    for name in imported(tree):
        if not name.startswith("igpt."):
            continue
        other = name.split(".")[1]
        if other in ("__version__", room):
            continue
        assert ROW_OF[other] < ROW_OF[room], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_rooms_stay_light(path):
    room = room_of(path)
    names = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
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


def test_no_module_imports_itself_by_way_of_others():
    names = {dotted(path): path for path in MODULES}
    edges = {name: used(path, names) - {name} for name, path in names.items()}
    while True:  # a module that imports none of those left is in no circle
        free = {name for name, others in edges.items() if not others & edges.keys()}
        if not free:
            break
        edges = {name: others for name, others in edges.items() if name not in free}
    assert not edges, sorted(edges)


def dotted(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def used(path, names):
    """The modules of the package that one imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names.keys()


@pytest.mark.parametrize("path", BESIDE, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_what_is_imported_from_the_package_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "igpt":
            for alias in node.names:
                assert there(node.module, alias.name), f"line {node.lineno}: {alias.name}"


def there(module, name):
    """Whether a module, or its folder, holds a name."""
    return hasattr(importlib.import_module(module), name) or bool(
        importlib.util.find_spec(f"{module}.{name}")
    )


def test_every_room_is_a_package_that_git_keeps():
    rooms = {path.parent for path in MODULES} - {PACKAGE}
    assert [str(room) for room in rooms if not (room / "__init__.py").is_file()] == []
    ignored = (PACKAGE.parent / ".gitignore").read_text().split()
    assert not {f"{room.name}/" for room in rooms} & set(ignored)
