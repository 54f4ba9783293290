"""bench/results.json as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .rounds import OURS

_TITLES = {
    "network": "Network only: seconds (times ours)",
    "file": "File to file: seconds (times ours)",
    "folder": "Folder to folder: seconds (times ours)",
    "faces": "Faces: seconds (times ours)",
}


def markdown(results: Mapping[str, Any]) -> str:
    """Every table: seconds for each figure, part of the machine's rate, memory."""
    parts = [_machine(results["machine"])]
    lines = results["lines"]
    for figure, title in _TITLES.items():
        of_figure = [line for line in lines if line["figure"] == figure]
        parts += _section(title, of_figure, _seconds)
    of_network = [line for line in lines if line["figure"] == "network"]
    rate = results["machine"]["matrix_gflops"]
    title = f"GFLOP/s, and part of the matrix product's {rate:.0f} GFLOP/s"
    parts += _section(
        title, of_network, lambda result: f"{result['gflops']:.0f} ({result['gflops'] / rate:.0%})"
    )
    if results.get("seams"):
        parts += ["**Tiles beside the whole picture: difference in levels of 255**", seams(results["seams"])]
    title = "Peak memory beyond the imported libraries, MiB"
    parts += _section(title, results.get("memory", []), "{:.0f}".format)
    parts += [f"Left out: {name} ({why})" for name, why in results.get("left_out", {}).items()]
    return "\n\n".join(parts) + "\n"


def rows(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(cells[0]), *body])


def seams(differences: Sequence[Mapping[str, Any]]) -> str:
    """The table of bench.seam."""
    body = [
        [row["network"], row["tiling"], str(row["tile"]), str(row["largest"]), f"{row['mean']:.2g}"]
        for row in differences
    ]
    return rows([["network", "tiles", "side", "largest", "mean"], *body])


def _section(title: str, lines: Sequence[Mapping[str, Any]], cell: Callable[[Any], str]) -> list[str]:
    if not lines:
        return []
    names = list(dict.fromkeys([OURS, *(name for line in lines for name in line["contestants"])]))
    body = []
    for line in lines:
        result = [line["contestants"].get(name) for name in names]
        body.append([line["network"], line["photo"], *("" if one is None else cell(one) for one in result)])
    return [f"**{title}**", rows([["network", "photo", *names], *body])]


def _seconds(result: Mapping[str, Any]) -> str:
    """Three digits, and the ratio where there is one that is not ours to ourselves."""
    shown = f"{result['median']:#.3g}".rstrip(".")
    return shown if result.get("ratio", 1.0) == 1.0 else f"{shown} ({result['ratio']:.2f})"


def _machine(machine: Mapping[str, Any]) -> str:
    cores = f", {machine['cores']} cores" if machine["cores"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    instructions = ", ".join(machine["instructions"])
    return f"{machine['device']}{cores}, {machine['threads']} threads ({instructions}); {versions}."
