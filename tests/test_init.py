"""The modules and names of the package after `import mrlib`."""

import json
import pkgutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import mrlib

ROOT = Path(mrlib.__file__).parent


def test_every_module_can_be_reached_after_import_mrlib():
    in_folder = {module.name for module in pkgutil.iter_modules([str(ROOT)])}
    assert set(mrlib._SUBMODULES) == in_folder
    assert list(mrlib._SUBMODULES) == sorted(in_folder)
    assert in_folder <= set(dir(mrlib))
    for name in in_folder:
        assert getattr(mrlib, name).__name__ == f"mrlib.{name}"


def test_import_mrlib_loads_no_module_before_it_is_used():
    """In a fresh process; `mrlib.audit` is named in the README."""
    code = "import json, sys, mrlib; loaded = [m for m in sys.modules if m.startswith('mrlib.')]; mrlib.audit.cut"
    process = subprocess.run(
        [sys.executable, "-c", f"{code}; print(json.dumps(loaded))"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == []


def test_the_public_members_are_those_of_their_modules():
    for name, module in mrlib._MEMBERS.items():
        assert getattr(mrlib, name) is getattr(getattr(mrlib, module), name)


def test_the_version_is_read_from_the_package():
    """The build takes it from the same line, so an installed copy reports the same version."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"] and "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "mrlib/__init__.py"
    assert [int(part) >= 0 for part in mrlib.__version__.split(".")] == [True] * 3
    try:
        installed = metadata.version("mrlib")
    except metadata.PackageNotFoundError:
        return
    assert installed == mrlib.__version__
