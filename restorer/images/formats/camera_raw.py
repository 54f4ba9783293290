"""Recognise the files of cameras that hold what the sensor measured, by their first bytes.

Others that are TIFF files are recognised by their directories, see tiff.py.
"""

_MARKS = (
    (8, b"CR\x02", "Canon CR2"),
    (4, b"ftypcrx ", "Canon CR3"),
    (6, b"HEAPCCDR", "Canon CRW"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (0, b"IIRO", "Olympus ORF"),
    (0, b"IIRS", "Olympus ORF"),
    (0, b"MMOR", "Olympus ORF"),
    (0, b"IIU\0", "Panasonic RW2"),
    (0, b"FOVb", "Sigma X3F"),
    (0, b"\0MRM", "Minolta MRW"),
    (8, b"IIII", "Phase One IIQ"),
    (8, b"MMMM", "Phase One IIQ"),
)


def camera(start: bytes) -> str:
    """Return maker and kind of a raw file by its first bytes, "" for any other file."""
    return next((name for at, mark, name in _MARKS if start.startswith(mark, at)), "")
