"""Ten thousand broken files of each kind and a shelf of bombs, opened as a server opens those of strangers.

Each answer is a picture or one of the documented errors; nothing hangs, nothing dies but the process that
opened the file, and this one does not grow.
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
HANG, REFUSAL = 10.0, 0.25  # seconds: no answer takes longer; a bomb's, of a hundred, but one
GROWTH = 64  # MB that this process may have gained at the end
DOCUMENTED = (UnsupportedImage, DamagedImage, ImageTooLarge)


def memory() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def answered(data: bytes) -> tuple[Photo | None, str, float]:
    """The picture, or the error's text; and the seconds it took."""
    begun = time.perf_counter()
    try:
        return sandbox.decode(data, max_pixels=100_000_000), "", time.perf_counter() - begun
    except DOCUMENTED as error:
        return None, f"{type(error).__name__}: {error}", time.perf_counter() - begun


def check_words(text: str) -> None:
    assert not re.search(r"/\w+/|0x[0-9a-f]{6}|Traceback|\.py\b", text), text


@pytest.fixture(autouse=True)
def started():
    sandbox.start()


@pytest.fixture
def deaths(caplog):
    """What was logged of processes that ended without an answer."""
    caplog.set_level(logging.WARNING, "restorer.images.sandbox")
    return lambda: [record.getMessage() for record in caplog.records]


def test_mutations(deaths):
    good = whole_files(np.random.default_rng(7))
    before, slowest, read, refused = memory(), 0.0, 0, 0
    for kind, data in good.items():
        rng = np.random.default_rng([SEED, *kind.encode()])
        for mutated in broken.mutations(data, MUTATIONS, rng):
            photo, text, seconds = answered(mutated)
            check_words(text)
            assert seconds < HANG, (kind, seconds)
            slowest, read, refused = max(slowest, seconds), read + bool(photo), refused + (photo is None)
    growth = memory() - before
    print(f"\n{read + refused} mutations of {len(good)} files, seed {SEED}: {read} read, {refused} refused,")
    print(f"slowest {slowest:.2f} s, {growth:+.1f} MB, {len(deaths())} processes ended: {set(deaths())}")
    assert growth < GROWTH
    assert not deaths(), "each was a documented error, but a fault of a reader's too"


def test_go_fuzz(shared, deaths):
    before, slowest, read, files = memory(), 0.0, 0, sorted((shared / "hostile/go-fuzz").iterdir())
    for file in files:
        photo, text, seconds = answered(file.read_bytes())
        check_words(text)
        slowest, read = max(slowest, seconds), read + bool(photo)
    growth = memory() - before
    print(f"\n{len(files)} files: {read} read, slowest {slowest:.2f} s, {growth:+.1f} MB, {set(deaths())}")
    assert slowest < HANG
    assert growth < GROWTH
    assert not deaths()


@pytest.mark.parametrize("name", sorted(broken.BOMBS))
def test_bombs_are_refused_at_once(name, deaths):
    bomb = broken.BOMBS[name]()
    before, taken = memory(), []
    for _ in range(100):
        photo, text, seconds = answered(bomb)
        assert photo is None, "refused"
        check_words(text)
        taken.append(seconds)
    growth = memory() - before
    late = sorted(taken)[98]
    print(f"\n{name}: {len(bomb)} bytes, p50 {sorted(taken)[50] * 1e3:.0f}, p99 {late * 1e3:.0f} ms, {text}")
    assert late < REFUSAL
    assert growth < GROWTH
    assert not deaths()


@pytest.mark.parametrize("name", sorted(broken.WEIGHTS))
def test_what_would_unfold_beside_the_picture_does_not_cost_it(name):
    """The picture is read, and what is beside it is left out with a word or not looked into."""
    for _ in range(20):
        photo, text, seconds = answered(broken.WEIGHTS[name]())
        assert photo is not None, text
        assert seconds < 2


def test_what_does_not_end_is_ended(tmp_path, monkeypatch):
    """Also a process that puts off its own alarm, as one that was taken over could."""
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
        photo, text, seconds = answered(word)
        assert photo is None and "could not be opened within 10 seconds" in text
        assert seconds < HANG + 2.5
    time.sleep(2)
    assert Path(f"/proc/{forker}/task/{forker}/children").read_text() == ""


def _parent(folder: Path) -> int:
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
