"""Rows of text as columns."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Rows of cells as lines whose columns stand below each other, the first `left` of them to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
