"""Format rows as CSV and as aligned text."""

import csv
import io
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]


def to_csv(rows: Sequence[Row]) -> bytes:
    """Return the rows as a CSV file in UTF-8; columns that a row lacks stay empty."""
    out = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode(errors="backslashreplace")  # names that are not UTF-8


def align_columns(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Return lines with aligned columns: the first `left` columns left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
