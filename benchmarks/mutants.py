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
import gc
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
PAIRS = ("min max", "any all", "amin amax", "argmin argmax", "floor ceil")
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
# Fields whose contents are no behaviour, or only a message.
LEFT_ALONE = ("annotation", "returns", "exc", "cause")
PRELOADED = "torch numpy scipy.optimize sklearn.linear_model hypothesis pytest PIL.Image psutil"
RUN = "-x -q -p no:cacheprovider -m".split()
QUICK = "not slow and not gpu"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One place of a tree, and what stands there instead."""

    number: int
    line: int
    holder: ast.AST
    field: str
    index: int | None
    new: ast.AST

    def __str__(self) -> str:
        held = getattr(self.holder, self.field)
        old = held if self.index is None else held[self.index]
        was, now = (" ".join(ast.unparse(node).split()) for node in (old, self.new))
        return f"#{self.number} line {self.line}: {was[:90]}  ->  {now[:90]}"

    def apply(self) -> None:
        """Change the tree that the mutant was found in."""
        if self.index is None:
            setattr(self.holder, self.field, self.new)
        else:
            getattr(self.holder, self.field)[self.index] = self.new


def mutants_of(tree: ast.Module) -> list[Mutant]:
    """All mutants of a module, from its first line to its last."""
    found: list[Mutant] = []

    def look(holder: ast.AST, line: int) -> None:
        for field, value in ast.iter_fields(holder):
            if field in LEFT_ALONE:
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or isinstance(node, ast.Assert | ast.JoinedStr):
                    continue
                own = getattr(node, "lineno", line)
                for new in _instead_of(node):
                    found.append(Mutant(len(found), own, holder, field, index, new))
                look(node, own)

    look(tree, 0)
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
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Name(id=name) if name in NAMES:
            yield _with(node, id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield _with(node, attr=NAMES[name])
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
        status = self.status_of(None, at_most_s=600)
        if status != 0:
            log = (folder / "log").read_text()
            raise SystemExit(f"{log}\nthe tests of {module} do not pass as they are: {status}")
        # The first run compiled C++; what else it kept would hide what a mutant computes.
        for kept in (folder / "cache").iterdir():
            if not kept.name.startswith((".native-", "native-")):
                shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        (folder / "cache").rename(folder / "code")
        for name in (folder / "modules").read_text().split():
            importlib.import_module(name)
        gc.freeze()  # children need not look through what is loaded
        self.limit_s = 15 + 4 * (time.monotonic() - start_s)

    def status_of(self, mutant: Mutant | None, *, at_most_s: float) -> int | None:
        """pytest's exit status with a mutant, or the module as it is; none: its time was up."""
        if mutant is not None:
            shutil.copytree(self._folder / "code", self._folder / "cache")
        child = os.fork()
        if child == 0:
            os.setsid()
            self._become(mutant)
        end_s = time.monotonic() + at_most_s
        done, status = 0, 0
        while not done and time.monotonic() < end_s:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not done:
            os.waitpid(child, 0)
        if mutant is not None:
            shutil.rmtree(self._folder / "cache", ignore_errors=True)
        shutil.rmtree(self._folder / "temporary", ignore_errors=True)
        return os.waitstatus_to_exitcode(status) if done else None

    def _become(self, mutant: Mutant | None) -> None:
        """In the child: import the mutant where the module is asked for, test, end."""
        import pytest

        status = 3
        with open(self._folder / "log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                if mutant is not None:
                    mutant.apply()
                code = compile(ast.fix_missing_locations(self.tree), self._module, "exec")
                get_code, own = SourceFileLoader.get_code, str(self._module)

                def changed(loader: SourceFileLoader, name: str) -> object:
                    if loader.path != own:
                        return get_code(loader, name)
                    if mutant is None:
                        (self._folder / "modules").write_text(" ".join(_loaded()))
                    return code

                SourceFileLoader.get_code = changed  # type: ignore[method-assign, assignment]
                os.environ["IGPT_TEST_CACHE"] = str(self._folder / "cache")
                temporary = f"--basetemp={self._folder / 'temporary'}"
                status = int(pytest.main([*RUN, QUICK, temporary, *self._tests]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)


def _loaded() -> Iterator[str]:
    """The modules of the package that are whole by now, and so need no mutant."""
    for name in [name for name in sys.modules if name.startswith("igpt")]:
        if not getattr(sys.modules[name].__spec__, "_initializing", False):
            yield name


def main() -> None:
    """Try the mutants of one module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+", help="files, or single tests")
    parser.add_argument("--n", type=int, default=60, help="mutants drawn; fewer: all")
    parser.add_argument("--seed", type=int, default=0)
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
