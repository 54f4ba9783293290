"""Entries expire by modification time; foreign names and entries in use stay."""

import os
import shutil
import time
import uuid
from types import SimpleNamespace

import pytest

from restorer.web import cleanup

HOUR = 3600


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "swept").mkdir()
    return tmp_path / "swept"


@pytest.fixture
def advance(monkeypatch):
    """Advance the clock of the cleanup: ctime, which counts too, cannot be set."""
    seconds = 0.0
    monkeypatch.setattr(cleanup, "time", SimpleNamespace(time=lambda: time.time() + seconds))

    def advance(by):
        nonlocal seconds
        seconds += by

    return advance


def add_entry(folder, name=None):
    entry = folder / (name or uuid.uuid4().hex)
    entry.mkdir()
    (entry / "a.png").write_bytes(b"bytes")
    return entry


def swept(*folders, in_use=lambda name: False):
    return cleanup.sweep(folders, in_use=in_use, max_age=HOUR)


def test_expired_entry_is_deleted_and_changed_one_stays(folder, tmp_path, advance):
    (tmp_path / "other").mkdir()
    folders = folder, tmp_path / "other", tmp_path / "missing"
    old, touched, other = add_entry(folder), add_entry(folder), add_entry(tmp_path / "other")
    advance(HOUR / 2)
    assert swept(*folders) == []
    os.utime(touched / "a.png", (time.time() + HOUR / 2,) * 2)
    advance(HOUR / 2 + 1)
    assert swept(*folders) == [old, other] and touched.exists()
    advance(HOUR)
    assert swept(*folders) == [touched] and not any(folder.iterdir())


def test_copy_with_an_old_modification_time_stays(folder):
    entry = add_entry(folder)
    for path in (entry / "a.png", entry):
        os.utime(path, (time.time() - 9 * HOUR,) * 2)
    assert swept(folder) == [] and entry.exists()


def test_entry_that_disappears_meanwhile_does_not_stop_the_sweep(folder, advance, monkeypatch):
    """As when a client deletes its job."""
    other, entry, scandir = add_entry(folder), add_entry(folder), os.scandir
    (entry / "below").mkdir()

    def delete_and_list(path):
        if str(path).endswith("below"):  # rmtree also lists descriptors
            monkeypatch.setattr(os, "scandir", scandir)
            shutil.rmtree(entry)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", delete_and_list)
    advance(9 * HOUR)
    assert sorted(swept(folder)) == sorted([other, entry]) and not any(folder.iterdir())


def test_entry_in_use_stays(folder, advance):
    entry = add_entry(folder)
    advance(9 * HOUR)
    assert swept(folder, in_use=lambda name: name == entry.name) == []
    assert swept(folder) == [entry]


def test_foreign_names_stay_and_links_are_not_followed(folder, tmp_path, advance):
    foreign = [add_entry(folder, name) for name in ("pictures", "a" * 31, "A" * 32, ".hidden")]
    (folder / "letter.txt").write_text("mine")
    outside = add_entry(tmp_path, "outside")
    (folder / ("b" * 32)).symlink_to(outside, target_is_directory=True)
    with_link = add_entry(folder, "c" * 32)
    (with_link / "link").symlink_to(outside, target_is_directory=True)
    own = [add_entry(folder, name) for name in ("d" * 64, "e" * 32 + ".part", "tmpab_cd12x")]
    advance(2 * HOUR)
    assert set(swept(folder)) == {folder / ("b" * 32), with_link, *own}
    assert all((entry / "a.png").exists() for entry in (*foreign, outside))
    assert (folder / "letter.txt").exists()


def test_open_download_survives_deletion(folder, advance):
    entry = add_entry(folder)
    (entry / "a.png").write_bytes(b"x" * 1_000_000)
    advance(2 * HOUR)
    with (entry / "a.png").open("rb") as file:
        first = file.read(10)
        assert swept(folder) == [entry]
        assert len(first + file.read()) == 1_000_000
