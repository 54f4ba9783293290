"""Rows as people and spreadsheets read them."""

import csv
import io
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]


def to_csv(rows: Sequence[Row]) -> bytes:
    """A file with a line for each row; what a row does not have is empty."""
    out = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def align_columns(rows: Sequence[Sequence[str]], *, left: int) -> str:
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
