"""Independent readers of metadata: exiftool and ImageMagick, for tests that skip where they are absent."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
needs_imagemagick = pytest.mark.skipif(not shutil.which("convert"), reason="ImageMagick is not installed")


def exiftool(data: bytes) -> dict[str, object]:
    """Return every tag as "group:name", numbers as numbers; the last value of a name that occurs twice."""
    command = ["exiftool", "-json", "-G1", "-a", "-n", "-struct", "-"]
    read = subprocess.run(command, input=data, capture_output=True, check=True)
    return json.loads(read.stdout)[0]


def tagged(path: Path, data: bytes, *assignments: str) -> bytes:
    """Return the file with tags that exiftool wrote."""
    path.write_bytes(data)
    subprocess.run(
        ["exiftool", "-q", "-n", "-overwrite_original", *assignments, str(path)],
        check=True,
        capture_output=True,
    )
    return path.read_bytes()


def converted(data: bytes, source: str, target: str) -> bytes:
    """Return the file as ImageMagick converts it."""
    command = ["convert", f"{source}:-", f"{target}:-"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout
