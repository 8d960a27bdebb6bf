"""Measure the structure of the package and check its rules: ``python -m tests.structure``.

Prints files, layers of imports, cycles, imports against the order of packages and lengths of functions. Exits with 1
where a rule is broken. Imports under ``TYPE_CHECKING`` do not count. Imports inside functions count for cycles and for
the order of packages, which is import-linter's; layers are given with and without them.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
ROOT = REPOSITORY / "glprune"
MAX_LAYERS = 13
MAX_FILES = 15

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Import:
    """One module that imports another."""

    importer: str
    imported: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@dataclass(frozen=True)
class Function:
    """A function: where it is, its lines without its docstring, and whether all of it is annotated."""

    place: str
    lines: int
    typed: bool


@dataclass(frozen=True)
class Module:
    """A parsed file of the package."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def package(self) -> str:
        """The part of the package that the order speaks of; empty for the package's own ``__init__``."""
        return f"{self.name}.".split(".")[1]

    def targets(self) -> Iterator[tuple[str, int, bool]]:
        """Every name imported anywhere but under TYPE_CHECKING, with its line and whether it is lazy."""
        for node, lazy in _statements(self.tree, False):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno, lazy) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    raise ValueError(f"{self.name}:{node.lineno}: a relative import; write it in full")
                yield from ((f"{base}.{alias.name}", node.lineno, lazy) for alias in node.names)

    def functions(self) -> Iterator[Function]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(f"{self.name}:{node.lineno} {node.name}", _lines(node), _typed(node))


def _statements(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other, lazy
            continue
        yield child, lazy
        yield from _statements(
            child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        )


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    docstring = ast.get_docstring(node) is not None
    said = (first.end_lineno or first.lineno) - first.lineno + 1 if docstring else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - said


def _typed(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    extra = [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
    named = [a for a in (*arguments, *extra) if a.arg not in ("self", "cls")]
    return node.returns is not None and all(a.annotation is not None for a in named)


@dataclass(frozen=True)
class Structure:
    """The modules of a package and the imports between them."""

    modules: dict[str, Module]
    imports: tuple[Import, ...]

    @classmethod
    def read(cls, root: Path = ROOT) -> Structure:
        modules = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(name, path)
        found = []
        for module in modules.values():
            for target, line, lazy in module.targets():
                known = _owner(target, modules)
                if known not in (None, module.name):
                    found.append(Import(module.name, known, line, lazy))
        return cls(modules, tuple(found))

    def graph(self, lazy: bool) -> dict[str, set[str]]:
        """Module -> modules it imports; with ``lazy`` also those that its functions import."""
        graph: dict[str, set[str]] = {name: set() for name in self.modules}
        for found in self.imports:
            if lazy or not found.lazy:
                graph[found.importer].add(found.imported)
        return graph

    def cycles(self) -> list[str]:
        """One cycle of imports, lazy ones among them, if there is any."""
        try:
            list(TopologicalSorter(self.graph(lazy=True)).static_order())
        except CycleError as error:
            return [" -> ".join(reversed(error.args[1]))]
        return []

    def against_order(self) -> list[str]:
        """Imports of a package that comes earlier in the order, or beside it."""
        rank = {name: number for number, line in enumerate(order_of_packages()) for name in line}
        faults = []
        for found in self.imports:
            importer, imported = (self.modules[n].package for n in (found.importer, found.imported))
            if not imported or not importer or importer == imported:
                continue
            missing = [name for name in (importer, imported) if name not in rank]
            if missing:
                faults.append(f"{missing[0]} has no place in the order of packages")
            elif rank[imported] <= rank[importer]:
                faults.append(str(found))
        return sorted(set(faults))

    def files(self) -> Counter[str]:
        """Folder -> Python files in it."""
        return Counter(
            m.name if m.path.name == "__init__.py" else m.name.rpartition(".")[0]
            for m in self.modules.values()
        )

    def functions(self) -> list[Function]:
        return [f for module in self.modules.values() for f in module.functions()]

    def violations(self) -> list[str]:
        """Every broken rule, one line each."""
        chain = longest_chain(self.graph(lazy=False)) if not self.cycles() else []
        return [
            *(f"cycle: {cycle}" for cycle in self.cycles()),
            *(f"against the order of packages: {found}" for found in self.against_order()),
            *(
                f"{package} has {count} files, at most {MAX_FILES}"
                for package, count in self.files().items()
                if count > MAX_FILES
            ),
            *([f"{len(chain)} layers, at most {MAX_LAYERS}"] if len(chain) > MAX_LAYERS else []),
        ]


def order_of_packages() -> list[list[str]]:
    """The layers that import-linter checks, the highest first; packages of one layer are independent."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def _owner(target: str, modules: Mapping[str, Module]) -> str | None:
    """The module that an imported name is, or is of."""
    if target in modules:
        return target
    parent = target.rpartition(".")[0]
    return parent if parent in modules else None


def longest_chain(graph: Graph) -> list[str]:
    """The longest chain of imports in a graph without cycles, from the top; its length is the number of layers."""
    below: dict[str, list[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        below[name] = [name, *max((below[other] for other in graph[name]), key=len, default=[])]
    return max(below.values(), key=len, default=[])


def _report(structure: Structure) -> Iterator[str]:
    functions = structure.functions()
    lengths = sorted(f.lines for f in functions)
    lazy = sum(i.lazy for i in structure.imports)
    yield f"Python files            {len(structure.modules)}"
    yield f"imports between modules {len(structure.imports)} ({lazy} of them inside functions)"
    if structure.cycles():
        yield "layers                  not defined, since imports make a cycle"
    else:
        for text, with_lazy in (("at import time", False), ("with imports inside functions", True)):
            chain = longest_chain(structure.graph(with_lazy))
            yield f"layers                  {len(chain)} {text}: {' > '.join(n.removeprefix('glprune.') for n in chain)}"
    yield f"functions               {len(functions)}, {sum(f.typed for f in functions) / len(functions):.0%} fully typed"
    p95 = statistics.quantiles(lengths, n=20)[-1]
    yield f"function length         median {statistics.median(lengths):g}, p95 {p95:g}, longest {lengths[-1]} lines"
    for longest in sorted(functions, key=lambda f: -f.lines)[:5]:
        yield f"  {longest.lines:>4} {longest.place}"
    yield "files in each package"
    for package, count in sorted(structure.files().items()):
        yield f"  {count:>4} {package}"


def main() -> int:
    """Print the structure and every broken rule."""
    structure = Structure.read()
    print("\n".join(_report(structure)))
    found = structure.violations()
    print(f"broken rules            {len(found)}", *(f"  {line}" for line in found), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
