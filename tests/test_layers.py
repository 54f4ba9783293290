"""Who may import whom: lower rooms never know of higher ones, and only a few of them know torch."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "restorer"

# From the bottom up; a module imports from the rows above its own, and from its own row where it says so
ROWS = [
    {"errors", "columns"},
    {"options", "cost"},
    {"arguments"},
    {"files", "models", "compat", "tiling", "pixels"},
    {"color", "degrade", "metrics", "report", "store", "sources"},
    {"download", "networks", "formats", "report_page", "selection"},
    {"photo", "winograd", "graph", "loader"},
    {"ncnn_network", "openvino_network"},
    {"encode", "backends", "cell"},
    {"contained", "cuda_graphs"},
    {"engine", "upscale"},
    {"engines", "faces"},
    {"result"},
    {"pipeline"},
    {"jobs", "batch", "evaluation", "timing"},
    {"cost_report"},
    {"cluster", "evaluation_cli"},
    {"commands"},
    {"settings"},  # read by the doors only
    {"web", "__main__"},
]
TORCH = {
    "networks",
    "loader",
    "winograd",
    "ncnn_network",
    "openvino_network",
    "backends",
    "cuda_graphs",
    "engine",
}
TORCH |= {"faces"}
ON_DEMAND = {"batch", "metrics", "timing"}  # inside functions: to set its threads, for LPIPS, to count it


def room(path: Path) -> str:
    """The module's own name, or that of the package it lies in."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> set[str]:
    """The rooms of this package, and the outside packages, that a file imports anywhere in it."""
    found: set[str] = set()
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {f".{name.partition('.')[0]}" for name in names}
    return found


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_room_has_its_row():
    assert {room(path) for path in modules()} == set().union(*ROWS)


def test_lower_never_imports_higher():
    row = {name: index for index, names in enumerate(ROWS) for name in names}
    for path in modules():
        for name in imported(path):
            if name.startswith(".") and name[1:] in row and name[1:] != room(path):
                assert row[name[1:]] < row[room(path)], f"{path.name} imports {name[1:]}"


def test_only_the_network_rooms_import_torch():
    assert {room(path) for path in modules() if "torch" in imported(path)} == TORCH | ON_DEMAND


def test_everything_but_those_imports_without_torch_or_a_gpu():
    names = {room(path) for path in modules()} - TORCH - {"__main__", "web"}
    code = f"import sys, restorer\nfor n in {sorted(names)}: __import__('restorer.' + n)\n"
    code += "restorer.Restorer, restorer.load\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_app_holds_no_logic():
    assert len((ROOT / "app.py").read_text().splitlines()) < 80
