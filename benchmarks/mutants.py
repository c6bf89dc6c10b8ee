"""Small faults put into a module on purpose: which of them do its quick tests not notice?

    OMP_NUM_THREADS=1 python benchmarks/mutants.py igpt/train/optim.py tests/train/test_optim.py

A mutant is the module with one place changed: a comparison, an operator, a number, a condition, an
argument left out, a statement left out. It is never written to disk: torch is loaded once, and a
child forked for each mutant imports the changed tree and runs the quick tests named. Messages,
assertions and annotations stay as they are; tests that start other processes see the module
unchanged. A survivor is printed with its number and line; `--only` tries some numbers again.
"""

import argparse
import ast
import contextlib
import functools
import gc
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest

OPERATORS = (
    "Lt LtE, LtE Lt, Gt GtE, GtE Gt, Eq NotEq, NotEq Eq, Is IsNot, IsNot Is, In NotIn, NotIn In, "
    "Add Sub, Sub Add, Mult Div, Div Mult, FloorDiv Mult, Mod FloorDiv, Pow Mult, "
    "BitAnd BitOr, BitOr BitAnd, And Or, Or And"
)
SWAPS = {getattr(ast, a): getattr(ast, b) for a, b in map(str.split, OPERATORS.split(", "))}
PAIRS = ("min max", "any all", "amin amax", "argmin argmax", "floor ceil")
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
# Fields whose contents are no behaviour, or only a message.
LEFT_ALONE = ("annotation", "returns", "exc", "cause", "decorator_list")
PRELOADED = "torch numpy scipy.optimize sklearn.linear_model hypothesis PIL.Image psutil"
RUN = [*"-x -q -p no:cacheprovider -m".split(), "not slow and not gpu"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One place of a tree, and what stands there instead."""

    number: int
    line: int
    old: ast.AST
    new: ast.AST
    put: Callable[[ast.AST], None]
    """Changes the tree that it was found in."""

    def __str__(self) -> str:
        was, now = (" ".join(ast.unparse(node).split())[:90] for node in (self.old, self.new))
        return f"#{self.number} line {self.line}: {was}  ->  {now}"


def mutants_of(tree: ast.Module) -> list[Mutant]:
    """All mutants of a module, from its first line to its last."""
    found: list[Mutant] = []

    def look(node: ast.AST, line: int, put: Callable[[ast.AST], None]) -> None:
        if isinstance(node, ast.Assert | ast.JoinedStr):
            return
        line = getattr(node, "lineno", line)
        for number, new in enumerate(_instead_of(node), len(found)):
            found.append(Mutant(number, line, node, new, put))
        for field, value in ast.iter_fields(node):
            if field in LEFT_ALONE:
                continue
            if isinstance(value, ast.AST):
                look(value, line, functools.partial(setattr, node, field))
            elif isinstance(value, list):
                for index, part in enumerate(value):
                    if isinstance(part, ast.AST):
                        look(part, line, functools.partial(value.__setitem__, index))

    look(tree, 0, lambda _: None)
    return found


def _instead_of(node: ast.AST) -> Iterator[ast.AST]:
    """The other forms of one node, whatever stands inside it."""
    match node:
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in SWAPS:
            yield _with(node, op=SWAPS[type(node.op)]())
        case ast.Compare():
            for i, op in enumerate(node.ops):
                yield _with(node, ops=[*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]])
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 1.5 or 1.0)
        case ast.If() | ast.While() | ast.IfExp() if not isinstance(node.test, ast.Compare):
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.Break() | ast.Continue():
            yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
        case ast.Name(id=name) if name in NAMES:
            yield ast.Name(NAMES[name], node.ctx)
        case ast.Attribute(attr=name) if name in NAMES:
            yield ast.Attribute(node.value, NAMES[name], node.ctx)
    match node:
        case ast.Raise() | ast.AugAssign() | ast.Expr(value=ast.Call() | ast.Yield()):
            yield ast.Pass()
        case ast.Call():
            for i, keyword in enumerate(node.keywords):
                if keyword.arg not in (None, "strict"):
                    yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _with(node: ast.AST, **fields: object) -> ast.AST:
    kept = {name: getattr(node, name, None) for name in node._fields}
    return type(node)(**{**kept, **fields})


class Bench:
    """A module, its tests and a cache folder that holds compiled code and nothing else."""

    def __init__(self, module: Path, tests: list[str], folder: Path) -> None:
        self._module, self._tests, self._folder = module.resolve(), tests, folder
        self.tree = ast.parse(module.read_text())
        (folder / "cache").mkdir()
        start_s = time.monotonic()
        if self.status_of(None, at_most_s=600):
            raise SystemExit(f"{(folder / 'log').read_text()}\nthe module as it is does not pass")
        # The first run compiled C++; what else it kept would hide what a mutant computes.
        for kept in (folder / "cache").iterdir():
            if not kept.name.startswith((".native-", "native-")):
                shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        (folder / "cache").rename(folder / "code")
        for name in (folder / "modules").read_text().split():
            importlib.import_module(name)
        gc.freeze()  # children need not look through what is loaded
        self.limit_s = 15 + 4 * (time.monotonic() - start_s)

    def status_of(self, mutant: Mutant | None, *, at_most_s: float) -> int:
        """pytest's exit status with a mutant, or the module as it is; below 0: killed."""
        if mutant is not None:
            shutil.rmtree(self._folder / "cache", ignore_errors=True)
            shutil.copytree(self._folder / "code", self._folder / "cache")
        if not (child := os.fork()):
            os.setsid()
            signal.alarm(int(at_most_s))
            status = 3
            with contextlib.suppress(BaseException):
                status = self._become(mutant)
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what its tests have started
        shutil.rmtree(self._folder / "temporary", ignore_errors=True)
        return status

    def _become(self, mutant: Mutant | None) -> int:
        """In the child: import the mutant where the module is asked for; pytest's exit status."""
        log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if mutant is not None:
            mutant.put(mutant.new)
        code = compile(ast.fix_missing_locations(self.tree), self._module, "exec")
        get_code, own = SourceFileLoader.get_code, str(self._module)

        def changed(loader: SourceFileLoader, name: str) -> CodeType | None:
            if loader.path != own:
                return get_code(loader, name)
            # What is whole by now does not import the module, and serves all mutants.
            ours = [(name, m) for name, m in sys.modules.items() if name.startswith("igpt")]
            whole = [n for n, m in ours if not getattr(m.__spec__, "_initializing", False)]
            (self._folder / "modules").write_text(" ".join(whole))
            return code

        SourceFileLoader.get_code = changed  # type: ignore[method-assign, assignment]
        os.environ["IGPT_TEST_CACHE"] = str(self._folder / "cache")
        temporary = f"--basetemp={self._folder / 'temporary'}"
        return int(pytest.main([*RUN, temporary, *self._tests]))


def main() -> None:
    """Try the mutants of one module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="files, or single tests")
    parser.add_argument("--n", type=int, default=60, help="mutants drawn; fewer: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants, instead of a draw")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in PRELOADED.split():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.module, options.tests, Path(folder))
        every = mutants_of(bench.tree)
        drawn = random.Random(options.seed).sample(every, min(options.n, len(every)))
        tried = [every[i] for i in options.only] if options.only else drawn
        survivors = 0
        for mutant in sorted(tried, key=lambda mutant: mutant.number):
            if bench.status_of(mutant, at_most_s=bench.limit_s) == 0:
                survivors += 1
                print(mutant, flush=True)
    counts = f"{len(tried)} of {len(every)} mutants tried, {len(tried) - survivors} killed"
    print(f"{options.module}: {counts}, {survivors} survived; seed {options.seed}")


if __name__ == "__main__":
    main()
