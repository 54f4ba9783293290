"""Lower layers never import higher ones, and most of them do not import torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import restorer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "restorer"

# From the bottom up; a module imports only from its own layer and from earlier ones in this list
LAYERS = [
    {"errors", "options", "progress", "atomic", "folders", "tables", "version", "exit_status"},
    {"images"},
    {"models", "output_paths"},
    {"inference"},
    {"faces", "repair"},
    {"result", "look", "networks", "estimate"},
    {"pipeline"},
    {"sequences"},
    {"batch", "evaluation", "cost"},
    {"cli", "web"},
    {"__main__"},
]
WITHOUT_TORCH = {
    *LAYERS[0],
    *LAYERS[1],
    "output_paths",
    "result",
    "look",
    "estimate",
    "networks",
    "pipeline",
    "sequences",
    "batch",
    "evaluation",
    "cost",
    "cli",
}


def modules() -> dict[str, Path]:
    """The package's modules by their name without "restorer."; the package itself is omitted."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if name := ".".join(parts[:-1] if parts[-1] == "__init__" else parts):
            paths[name] = path
    return paths


def imported(name: str, path: Path, *, deferred: bool = True) -> set[str]:
    """The modules of this package that a module imports.

    deferred  include imports inside functions and under TYPE_CHECKING
    """
    tree = ast.parse(path.read_text())
    known, names = modules(), set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree) if deferred else tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        for alias in node.names:
            full = ".".join(filter(None, [*base, alias.name]))
            names.add(full if full in known else ".".join(filter(None, base)))
    return names - {"", name}


def test_every_module_has_a_layer():
    assert {name.partition(".")[0] for name in modules()} == set().union(*LAYERS)


def test_lower_layers_never_import_higher_ones():
    layer = {name: index for index, names in enumerate(LAYERS) for name in names}
    for name, path in modules().items():
        for other in imported(name, path):
            assert layer[other.partition(".")[0]] <= layer[name.partition(".")[0]], f"{name} imports {other}"


def test_imports_have_no_cycles():
    TopologicalSorter(
        {name: imported(name, path, deferred=False) for name, path in modules().items()}
    ).prepare()


def test_bottom_layer_imports_only_the_standard_library():
    for name in LAYERS[0]:
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").partition(".")[0] in sys.stdlib_module_names


def test_importing_the_package_does_not_import_torch():
    names = [f"restorer.{name}" for name in modules() if name.partition(".")[0] in WITHOUT_TORCH]
    code = f"import importlib, sys, restorer\nfor name in {names}: importlib.import_module(name)\n"
    code += "restorer.Restorer, restorer.load\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_entry_points_are_short():
    for name in ("app.py", "evaluate.py"):
        assert len((ROOT / name).read_text().splitlines()) < 80


def test_every_public_name_can_be_imported():
    assert all(getattr(restorer, name) is not None for name in restorer.__all__)
