"""Which module of mrlib imports which, read from the sources with `ast`, and the picture of it.

    python -m tests.support.import_graph figures/imports.png

An import counts wherever it stands: at the top, inside a function, under TYPE_CHECKING, or as import_module("mrlib.x").
A name that a package loads on first use [PEP 562], such as `open_dataset` of `mrlib.data`, is an import of the module
that defines it; the package's table of names is no import.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent.parent / "mrlib"
LAYERS = (  # bottom first; a name stands for its submodules too; names in one row do not import one another
    ("arguments", "downloads", "locks", "memory"),
    ("files", "parallel", "jobs"),
    ("tensors",),
    ("ops",),
    ("layers",),
    ("data",),
    ("sim",),
    ("datasets",),
    ("augment", "align"),
    ("detect",),  # above align: a detector reads the `Aligned` that an aligner hands over, with its words and dynamics
    ("metrics",),
    ("baselines",),
    ("retriever",),
    ("papers",),
    ("checkpoint", "probes", "audit"),
    ("training",),
    ("train", "grid_file"),
    ("plots",),
    ("video", "grid"),
    ("notebooks", "widgets", "find"),
)
APART = {("detect", "augment")}  # two slots: the first does not import the second, although it lies higher
HIGHEST = {"notebooks": "arguments", "plots": "data", "widgets": "data"}  # they import nothing above this


@dataclass(frozen=True)
class Import:
    """One import in a source file."""

    importer: str  # "mrlib.data.check"
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of a package with its file; a package itself is its `__init__`."""
    files = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imports(root: Path = ROOT) -> list[Import]:
    """All imports between modules of one package, each once."""
    files = modules(root)
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
    tables = {name: _table(tree) for name, tree in trees.items()}
    edges = []
    for importer, tree in trees.items():
        package = importer if files[importer].name == "__init__.py" else importer.rpartition(".")[0]
        for line, base, names in _statements(tree, package, root.name):
            for imported in dict.fromkeys(_resolve(base, name, tables) for name in names):
                edges.append(Import(importer, imported, line))
    return [edge for edge in edges if edge.importer != edge.imported]


def _table(tree: ast.Module) -> dict[str, str]:
    """The table of names that a package loads on first use: `_MEMBERS = {name: module}`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "_MEMBERS" for t in node.targets):
            return ast.literal_eval(node.value)
    return {}


def _statements(tree: ast.Module, package: str, root: str) -> Iterator[tuple[int, str, list[str]]]:
    """Line, module and imported names of every import of the package `root`; no names for a module as a whole."""
    lazy = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
    skipped = {id(inner) for node in lazy for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == root:
                    yield node.lineno, alias.name, [""]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] == root:
                yield node.lineno, base, [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            if name.split(".")[0] == root:
                yield node.lineno, name, [""]


def _resolve(base: str, name: str, tables: dict[str, dict[str, str]]) -> str:
    """The module that `from base import name` loads."""
    member = tables.get(base, {}).get(name, "")
    options = (f"{base}.{name}", member, f"{base}.{member}")
    return next((option for option in options if option in tables), base)


def layer(module: str) -> str:
    """The name in `LAYERS` that a module belongs to; "" for the package itself."""
    return f"{module}.".split(".")[1]


def upward(edges: Iterable[Import]) -> list[Import]:
    """The imports that the table does not allow."""
    height = {name: i for i, row in enumerate(LAYERS) for name in row}

    def allowed(edge: Import) -> bool:
        importer, imported = layer(edge.importer), layer(edge.imported)
        if importer == imported:
            return True
        if (importer, imported) in APART:
            return False
        highest = height[HIGHEST[importer]] if importer in HIGHEST else height[importer] - 1
        return imported in height and height[imported] <= highest

    return [edge for edge in edges if layer(edge.importer) in height and not allowed(edge)]


def cycles(edges: Iterable[Import]) -> list[list[str]]:
    """The groups of modules that import one another, directly or through others."""
    reach = reachable(edges)
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in reach if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def reachable(edges: Iterable[Import]) -> dict[str, set[str]]:
    """For every module all that it imports, directly or through others."""
    direct: dict[str, set[str]] = {}
    for edge in edges:
        direct.setdefault(edge.importer, set()).add(edge.imported)
        direct.setdefault(edge.imported, set())
    reach = {}
    for module in direct:
        reach[module], stack = set(), list(direct[module])
        while stack:
            if (other := stack.pop()) not in reach[module]:
                reach[module].add(other)
                stack += direct[other]
    return reach


# ---- the picture ----

WIDTH_CM, BOX_CM, ROW_CM, COLUMNS = 15, (2.2, 0.42), 0.72, 6


def draw(file: Path, root: Path = ROOT) -> None:
    """One box per module, a frame per layer, an arrow per import; red arrows point up.

    An arrow that follows from others is left out: if a imports b and c, and b imports c, there is none from a to c.
    """
    edges = imports(root)
    boxes, frames = _layout(modules(root), reachable(edges))
    height = max(y + rows for _, y, _, rows in frames.values())
    fig = plt.figure(figsize=(WIDTH_CM / 2.54, (height * ROW_CM + 0.2) / 2.54))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH_CM), ylim=(height * ROW_CM + 0.1, -0.1))
    ax.axis("off")
    palette = [plt.get_cmap("tab20")(i) for i in range(20) if i not in (6, 7)]  # without the reds
    colours = {name: palette[i % len(palette)] for i, name in enumerate(frames)}
    for name, (x, y, columns, rows) in frames.items():
        corner, size = (x * _step() + 0.08, y * ROW_CM + 0.03), (columns * _step() - 0.06, rows * ROW_CM - 0.06)
        look = {"boxstyle": "round,pad=0,rounding_size=0.08", "lw": 0, "facecolor": colours[name], "alpha": 0.22}
        ax.add_patch(FancyBboxPatch(corner, *size, **look))
        if columns * rows > 1:
            ax.text(corner[0] + 0.06, corner[1] + 0.04, name, fontsize=6, style="italic", va="top", color="0.25")
    up = {(edge.importer, edge.imported) for edge in upward(edges)}
    for a, b in sorted(_reduced(edges) | up):
        if a not in boxes or b not in boxes:  # a module without a layer, which the test reports
            continue
        _arrow(ax, boxes[a], boxes[b], "red" if (a, b) in up else colours[layer(a)])
    for module, (x, y) in boxes.items():
        corner = x - BOX_CM[0] / 2, y - BOX_CM[1] / 2
        look = {"boxstyle": "round,pad=0,rounding_size=0.06", "lw": 0.6, "edgecolor": "0.4", "facecolor": "white"}
        ax.add_patch(FancyBboxPatch(corner, *BOX_CM, **look, zorder=3))
        text = module.removeprefix(f"{root.name}.{layer(module)}").lstrip(".") or (
            layer(module) if modules(root)[module].name != "__init__.py" else "__init__"
        )
        size = 6.5 * min(1, 16 / len(text))  # long names stay inside their boxes
        ax.text(x, y, text, fontsize=size, ha="center", va="center", zorder=4)
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=150, metadata={"Software": None})
    plt.close(fig)


def _step() -> float:
    return (WIDTH_CM - 0.1) / COLUMNS


def _layout(
    files: Iterable[str], reach: dict[str, set[str]]
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float, int, int]]]:
    """The centre of every box in cm, and of every layer x and y of its frame and its columns and rows, in boxes."""
    boxes, frames, y = {}, {}, 0.0
    for row in reversed(LAYERS):
        groups = {name: [module for module in files if layer(module) == name] for name in row}
        groups = {name: members for name, members in groups.items() if members}
        if not groups:
            continue
        rows = next(r for r in range(1, 99) if sum(-(-len(g) // r) for g in groups.values()) <= COLUMNS)
        title = 0.35 if rows > 1 or max(map(len, groups.values())) > 1 else 0
        columns = {name: -(-len(members) // rows) for name, members in groups.items()}
        x = (COLUMNS - sum(columns.values())) / 2
        for name, members in groups.items():
            members = sorted(members, key=lambda m: (-len({n for n in reach.get(m, ()) if layer(n) == name}), m))
            for i, module in enumerate(members):
                place = x + i % columns[name] + 0.5, y + title + i // columns[name] + 0.5
                boxes[module] = place[0] * _step() + 0.05, place[1] * ROW_CM
            frames[name] = x, y, columns[name], rows + title
            x += columns[name]
        y += rows + title
    return boxes, frames


def _reduced(edges: Iterable[Import]) -> set[tuple[str, str]]:
    """The pairs (importer, imported) that do not follow from others."""
    reach = reachable(edges)
    pairs = {(edge.importer, edge.imported) for edge in edges if layer(edge.importer)}
    others: dict[str, set[str]] = {}
    for a, b in pairs:
        others.setdefault(a, set()).add(b)
    return {(a, b) for a, b in pairs if not any(b in reach[c] for c in others[a] - {b})}


def _arrow(ax: plt.Axes, start: tuple[float, float], end: tuple[float, float], colour) -> None:
    (x0, y0), (x1, y1) = start, end
    half_width, half_height = BOX_CM[0] / 2, BOX_CM[1] / 2
    if abs(y0 - y1) < 0.1:  # neighbours: from side to side
        side = half_width if x1 > x0 else -half_width
        start, end, bend = (x0 + side, y0), (x1 - side, y1), 0.0 if abs(x1 - x0) < 1.5 * _step() else 0.25
    else:
        down = half_height if y1 > y0 else -half_height
        shift = 0.3 * max(-1.0, min(1.0, (x1 - x0) / _step())) * half_width
        start, end, bend = (x0 + shift, y0 + down), (x1 - shift, y1 - down), 0.06
    style = {"arrowstyle": "-|>,head_length=2.6,head_width=1.3", "connectionstyle": f"arc3,rad={bend}"}
    ax.add_patch(FancyArrowPatch(start, end, **style, color=colour, lw=0.7, alpha=0.85, shrinkA=0, shrinkB=0, zorder=2))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.import_graph", description="Draw which module imports which."
    )
    parser.add_argument("file", type=Path, help="the picture, .png")
    draw(parser.parse_args(arguments).file)


if __name__ == "__main__":
    main()
