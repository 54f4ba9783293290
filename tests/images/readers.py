"""Independent readers of metadata: exiftool and ImageMagick, for tests that skip where they are absent."""

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
needs_imagemagick = pytest.mark.skipif(not shutil.which("convert"), reason="ImageMagick is not installed")


def exiftool(data: bytes) -> dict[str, object]:
    """Return every tag as "group:name", numbers as numbers; the last value of a name that occurs twice."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return json.loads(_run_exiftool("-json", "-G1", "-a", "-n", "-struct", file.name))[0]


def tagged(path: Path, data: bytes, *assignments: str) -> bytes:
    """Return the file with tags that exiftool wrote."""
    path.write_bytes(data)
    _run_exiftool("-q", "-n", "-overwrite_original", *assignments, str(path))
    return path.read_bytes()


def _run_exiftool(*arguments: str) -> bytes:
    """Return what exiftool prints. All tests share one process, as it starts slowly."""
    process = _exiftool()
    assert process.stdin and process.stdout
    process.stdin.write("\n".join([*arguments, "-echo3", "${status}", "-execute1", ""]).encode())
    process.stdin.flush()
    lines = [process.stdout.readline()]
    while lines[-1] != b"{ready1}\n":
        assert lines[-1], "exiftool has ended"
        lines.append(process.stdout.readline())
    assert lines[-2] == b"0\n", (arguments, lines)
    return b"".join(lines[:-2])


@functools.cache
def _exiftool() -> subprocess.Popen:
    # It does not end with its input, so the shell tells it to, even if pytest was killed
    command = r"(cat; printf '\n-stay_open\nFalse\n') | exiftool -stay_open True -@ -"
    return subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def converted(data: bytes, source: str, target: str) -> bytes:
    """Return the file as ImageMagick converts it."""
    command = ["convert", f"{source}:-", f"{target}:-"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout
