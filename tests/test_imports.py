"""Imports inside the package point one way: `LAYERS` of tests/support/import_graph.py is the order, bottom first."""

import pytest

from tests.support.import_graph import LAYERS, ROOT, cycles, draw, imports, layer, modules, upward


def test_every_module_has_a_layer():
    known = {name for row in LAYERS for name in row}
    assert [module for module in modules() if layer(module) not in {"", *known}] == []


@pytest.fixture(scope="module")
def edges():
    return imports()


def test_every_import_points_down(edges):
    assert [str(edge) for edge in upward(edges)] == []


def test_no_module_imports_itself_through_others(edges):
    assert cycles(edges) == []


@pytest.fixture
def package(tmp_path):
    """A function that writes a package `mrlib` with some modules, {"data.bank": source}."""

    def write(**sources):
        root = tmp_path / "mrlib"
        for name, source in sources.items():
            file = root / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(source)
        return root

    return write


UPWARD = [
    "from mrlib.papers import get",
    "import mrlib.papers",
    "from mrlib import papers",
    "from .. import papers",
    "from ..papers import get",
    "def f():\n    from mrlib import papers",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mrlib.papers import Paper",
    "from importlib import import_module\nx = import_module('mrlib.papers')",
]


@pytest.mark.parametrize("source", UPWARD)
def test_an_upward_import_is_found_in_every_form(source, package):
    (edge,) = imports(package(data__bank=source, papers=""))
    assert (edge.importer, edge.imported, upward([edge])) == ("mrlib.data.bank", "mrlib.papers", [edge])


def test_a_downward_import_is_allowed(package):
    (edge,) = imports(package(papers="from mrlib.data import bank", data__bank=""))
    assert (edge.imported, upward([edge])) == ("mrlib.data.bank", [])


def test_importing_a_name_that_loads_on_first_use_counts_as_importing_its_module(package):
    root = package(sim__world="from mrlib.data import open_dataset", data__bank="", datasets="")
    lazy = "def __getattr__(name):\n    return getattr(import_module('mrlib.datasets'), name)\n"
    (root / "data/__init__.py").write_text(f"_MEMBERS = {{'open_dataset': 'mrlib.datasets'}}\n{lazy}")
    (edge,) = imports(root)
    assert (edge.importer, edge.imported, upward([edge])) == ("mrlib.sim.world", "mrlib.datasets", [edge])


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("align__joint", "align.words", True),
        ("align__joint", "augment.splice", False),
        ("augment__splice", "align.words", False),
        ("detect__dab", "align", True),
        ("detect__dab", "align.words", True),
        ("detect__dab", "augment.splice", False),
        ("align__joint", "detect", False),
        ("plots", "data.bank", True),
        ("plots", "metrics", False),
        ("metrics", "plots", False),
    ],
)
def test_allowed_imports_between_slots_and_of_pictures(importer, imported, allowed, package):
    names = ("align__joint", "align__words", "augment__splice", "detect__dab", "data__bank", "plots", "metrics")
    edges = imports(package(**dict.fromkeys(names, "") | {importer: f"import mrlib.{imported}"}))
    assert (len(edges), upward(edges) == []) == (1, allowed)


def test_a_cycle_is_found_with_all_its_modules(package):
    sources = {"data__a": "import mrlib.data.b", "data__b": "import mrlib.data.c", "data__c": "import mrlib.data.a"}
    assert cycles(imports(package(**sources, data__d="import mrlib.data.a"))) == [
        ["mrlib.data.a", "mrlib.data.b", "mrlib.data.c"]
    ]


def test_the_picture_is_drawn(tmp_path):
    draw(tmp_path / "imports.png", ROOT)
    assert (tmp_path / "imports.png").read_bytes().startswith(b"\x89PNG")
