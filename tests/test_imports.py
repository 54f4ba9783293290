"""The direction of imports: lower layers never import higher ones, and torch stays out of most of them."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "restorer"

# From the bottom up; a module imports from its own layer and the ones above it in this list
LAYERS = [
    {"errors", "options", "progress", "atomic", "tables", "version", "exit_status"},
    {"images"},
    {"models", "output_paths"},
    {"inference"},
    {"faces"},
    {"result"},
    {"pipeline"},
    {"batch", "evaluation", "cost"},
    {"cli", "web"},
    {"__main__"},
]
WITHOUT_TORCH = {
    *LAYERS[0],
    *LAYERS[1],
    "output_paths",
    "result",
    "pipeline",
    "batch",
    "evaluation",
    "cost",
    "cli",
}


def modules() -> dict[str, Path]:
    """The modules of the package by name below it, the package's own __init__ left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if name := ".".join(parts[:-1] if parts[-1] == "__init__" else parts):
            found[name] = path
    return found


def imported(name: str, path: Path, *, deferred: bool = True) -> set[str]:
    """The modules of this package that a file imports, below the package.

    deferred  include imports inside functions and under TYPE_CHECKING
    """
    tree = ast.parse(path.read_text())
    known, found = modules(), set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree) if deferred else tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        for alias in node.names:
            full = ".".join(filter(None, [*base, alias.name]))
            found.add(full if full in known else ".".join(filter(None, base)))
    return found - {"", name}


def test_every_package_has_a_layer():
    assert {name.partition(".")[0] for name in modules()} == set().union(*LAYERS)


def test_lower_layers_never_import_higher_ones():
    layer = {name: index for index, names in enumerate(LAYERS) for name in names}
    for name, path in modules().items():
        for other in imported(name, path):
            assert layer[other.partition(".")[0]] <= layer[name.partition(".")[0]], f"{name} imports {other}"


def test_no_module_imports_itself_through_others():
    TopologicalSorter(
        {name: imported(name, path, deferred=False) for name, path in modules().items()}
    ).prepare()


def test_the_bottom_layer_needs_the_standard_library_only():
    for name in LAYERS[0]:
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").partition(".")[0] in sys.stdlib_module_names


def test_torch_is_not_imported_before_it_is_needed():
    names = [f"restorer.{name}" for name in modules() if name.partition(".")[0] in WITHOUT_TORCH]
    code = f"import importlib, sys, restorer\nfor name in {names}: importlib.import_module(name)\n"
    code += "restorer.Restorer, restorer.load\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_entry_points_hold_no_logic():
    for name in ("app.py", "evaluate.py"):
        assert len((ROOT / name).read_text().splitlines()) < 80
