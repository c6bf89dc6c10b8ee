"""How large the package is and how far its entries reach: what `docs/DECISIONS.md` quotes.

Usage: python benchmarks/house.py [PACKAGE]. Every internal import counts, late ones too.
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ENTRIES = {
    "igpt pretrain": "cli.pretrain",
    "the loop": "train.loop",
    "igpt sample": "cli.sample",
    "igpt probe": "cli.probe",
}


def modules_of(package: Path) -> dict[str, Path]:
    """Each module's name below the package, and its file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("igpt.") for name in names if name.startswith("igpt.")}
    return found & modules.keys()


def reached(entry: str, graph: dict[str, set[str]]) -> set[str]:
    """Everything that an entry imports, and what that imports, and so on."""
    seen, waiting = {entry}, [entry]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Sets of modules that import each other, directly or by others."""
    reach = {name: reached(name, graph) for name in graph}
    found = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph}
    return sorted(circle for circle in found if len(circle) > 1)


def function_lengths(paths: list[Path]) -> Iterator[int]:
    """Lines of every function and method."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.end_lineno - node.lineno + 1


def main() -> None:
    """Print the table."""
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "igpt"
    modules = modules_of(package)
    lines = {name: len(path.read_text().splitlines()) for name, path in modules.items()}
    graph = {name: imports_of(path, modules) for name, path in modules.items()}
    lengths = sorted(function_lengths(list(modules.values())))
    written = [n for name, n in lines.items() if modules[name].name != "__init__.py"]
    rows = [
        ("modules, lines", f"{len(written)}, {sum(lines.values()):,}"),
        ("lines a module: median, most", f"{statistics.median(written):.0f}, {max(written)}"),
        ("functions", f"{len(lengths):,}"),
        ("lines a function: median, p90, most",
         f"{statistics.median(lengths):.0f}, {lengths[int(0.9 * len(lengths))]}, {lengths[-1]}"),
        ("circles", "; ".join(" + ".join(c) for c in circles(graph)) or "none"),
    ]  # fmt: skip
    for title, entry in ENTRIES.items():
        found = reached(entry, graph)
        rows.append((f"from {title}: modules, lines",
                     f"{len(found)}, {sum(lines[name] for name in found):,}"))  # fmt: skip
    print("| what | is |\n|---|---|")
    for title, value in rows:
        print(f"| {title} | {value} |")


if __name__ == "__main__":
    main()
