"""Ten thousand mutations of each file, and decompression bombs, decoded as a server decodes uploads.

Each file decodes or raises one of the documented errors; nothing hangs, no decoding process dies, and the
memory of the calling process does not grow.
"""

import logging
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from restorer.errors import DamagedImage, ImageTooLarge, UnsupportedImage
from restorer.images import sandbox
from restorer.images.photo import Photo
from tests import broken
from tests.conftest import shared
from tests.images.test_photo import whole_files

__all__ = ["shared"]  # a fixture
SEED = 20_26
MUTATIONS = int(os.environ.get("MUTATIONS", "10000"))  # of each file
MAX_SECONDS = 10.0  # of any file
MAX_BOMB_SECONDS = 0.25  # 99th percentile of 100 bombs
MAX_GROWTH = 64  # MB of this process
DOCUMENTED = (UnsupportedImage, DamagedImage, ImageTooLarge)


def memory() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def decode(data: bytes) -> tuple[Photo | None, str, float]:
    """Return the photo or None, the text of the error, and the seconds it took."""
    start = time.perf_counter()
    try:
        return sandbox.decode(data, max_pixels=100_000_000), "", time.perf_counter() - start
    except DOCUMENTED as error:
        return None, f"{type(error).__name__}: {error}", time.perf_counter() - start


def check_message(text: str) -> None:
    assert not re.search(r"/\w+/|0x[0-9a-f]{6}|Traceback|\.py\b", text), text


@pytest.fixture(autouse=True)
def started_sandbox():
    sandbox.start()


@pytest.fixture
def deaths(caplog):
    """Log messages about processes that died without a response."""
    caplog.set_level(logging.WARNING, "restorer.images.sandbox")
    return lambda: [record.getMessage() for record in caplog.records]


def test_mutations_decode_or_raise_documented_errors(deaths):
    files = whole_files(np.random.default_rng(7))
    before, slowest, decoded, count = memory(), 0.0, 0, 0
    for kind, data in files.items():
        rng = np.random.default_rng([SEED, *kind.encode()])
        for mutated in broken.mutations(data, MUTATIONS, rng):
            photo, text, seconds = decode(mutated)
            check_message(text)
            assert seconds < MAX_SECONDS, (kind, seconds)
            slowest, decoded, count = max(slowest, seconds), decoded + bool(photo), count + 1
    growth, refused = memory() - before, count - decoded
    print(f"\n{count} mutations of {len(files)} files, seed {SEED}: {decoded} decoded, {refused} refused,")
    print(f"slowest {slowest:.2f} s, {growth:+.1f} MB, {len(deaths())} processes died: {set(deaths())}")
    assert growth < MAX_GROWTH
    assert not deaths(), "a decoder crashed, although the error was a documented one"


def test_go_fuzz_files_decode_or_raise_documented_errors(shared, deaths):
    before, slowest, decoded, files = memory(), 0.0, 0, sorted((shared / "hostile/go-fuzz").iterdir())
    for file in files:
        photo, text, seconds = decode(file.read_bytes())
        check_message(text)
        slowest, decoded = max(slowest, seconds), decoded + bool(photo)
    growth = memory() - before
    print(f"\n{len(files)} files: {decoded} decoded, slowest {slowest:.2f} s, {growth:+.1f} MB")
    print(f"processes died: {set(deaths())}")
    assert slowest < MAX_SECONDS
    assert growth < MAX_GROWTH
    assert not deaths()


@pytest.mark.parametrize("name", sorted(broken.BOMBS))
def test_bombs_are_refused_quickly(name, deaths):
    bomb = broken.BOMBS[name]()
    before, durations = memory(), []
    for _ in range(100):
        photo, text, seconds = decode(bomb)
        assert photo is None
        check_message(text)
        durations.append(seconds)
    growth = memory() - before
    p50, p99 = sorted(durations)[50], sorted(durations)[98]
    print(f"\n{name}: {len(bomb)} bytes, p50 {p50 * 1e3:.0f}, p99 {p99 * 1e3:.0f} ms, {text}")
    assert p99 < MAX_BOMB_SECONDS
    assert growth < MAX_GROWTH
    assert not deaths()


@pytest.mark.parametrize("name", sorted(broken.WEIGHTS))
def test_metadata_bombs_do_not_prevent_decoding(name):
    """Huge metadata is skipped with a warning, or ignored."""
    for _ in range(20):
        photo, text, seconds = decode(broken.WEIGHTS[name]())
        assert photo is not None, text
        assert seconds < 2


def test_hanging_decoder_is_killed(tmp_path, monkeypatch):
    """Even one that disables its own alarm, as a compromised process could."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, time\nimport restorer.images.photo\n"
        "def decode(data, **_):\n"
        "    if data == b'FREE': signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "    time.sleep(600)\n"
        "restorer.images.photo.decode = decode\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sandbox, "_forker", sandbox._Forker())
    sandbox.start()
    forker = next(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"restorer.images.sandbox_worker" in path.read_bytes()
        and _parent(path.parent) == os.getpid()
        and str(tmp_path).encode() in (path.parent / "environ").read_bytes()
    )
    for word in (b"HANG", b"FREE"):
        photo, text, seconds = decode(word)
        assert photo is None and "could not be opened within 10 seconds" in text
        assert seconds < MAX_SECONDS + 2.5
    time.sleep(2)
    assert Path(f"/proc/{forker}/task/{forker}/children").read_text() == ""


def _parent(folder: Path) -> int:
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
