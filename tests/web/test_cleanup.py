"""Entries age by a monotonic clock; foreign names and entries in use stay."""

import os
import time
import uuid

import pytest

from restorer.web.cleanup import CacheCleaner

HOUR = 3600


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "swept").mkdir()
    return tmp_path / "swept"


def add_entry(folder, name=None, *, age=0.0):
    entry = folder / (name or uuid.uuid4().hex)
    entry.mkdir()
    (entry / "a.png").write_bytes(b"bytes")
    for path in (entry / "a.png", entry):
        os.utime(path, (time.time() - age,) * 2)
    return entry


def cleaner_of(folder, clock, *, in_use=lambda name: False):
    return CacheCleaner(folder, in_use=in_use, max_age=HOUR, clock=clock)


def test_expired_entry_is_deleted_and_changed_one_stays(folder):
    clock = Clock()
    cleaner = cleaner_of(folder, clock)
    cleaner.sweep()
    old, touched = add_entry(folder), add_entry(folder)
    clock.now += 1
    assert cleaner.sweep() == []
    clock.now += HOUR - 2
    (touched / "a.png").write_bytes(b"new")
    assert cleaner.sweep() == []
    clock.now += 2
    assert cleaner.sweep() == [old] and touched.exists()
    clock.now += HOUR
    assert cleaner.sweep() == [touched] and not any(folder.iterdir())


@pytest.mark.parametrize("day", [86_400, -86_400])
def test_setting_the_system_clock_deletes_nothing_early_or_late(folder, monkeypatch, day):
    clock, real_time = Clock(), time.time
    cleaner = cleaner_of(folder, clock)
    cleaner.sweep()
    before = add_entry(folder)
    clock.now += 1
    cleaner.sweep()
    monkeypatch.setattr(time, "time", lambda: real_time() + day)
    after = add_entry(folder, age=0)
    clock.now += HOUR - 2
    assert cleaner.sweep() == [] and before.exists() and after.exists()
    clock.now += 2
    deleted = cleaner.sweep()
    clock.now += HOUR
    assert sorted(deleted + cleaner.sweep()) == sorted([before, after])


def test_entries_of_an_earlier_process_expire_by_their_own_age(folder, monkeypatch):
    clock, real_time = Clock(), time.time
    entry = add_entry(folder)
    monkeypatch.setattr(time, "time", lambda: real_time() + HOUR - 10)
    cleaner = cleaner_of(folder, clock)
    assert cleaner.sweep() == []
    clock.now += 11
    assert cleaner.sweep() == [entry]


def test_entry_in_use_stays_and_ages_from_its_release(folder):
    clock, in_use = Clock(), set()
    cleaner = cleaner_of(folder, clock, in_use=lambda name: name in in_use)
    entry = add_entry(folder)
    in_use.add(entry.name)
    for _ in range(5):
        clock.now += HOUR
        assert cleaner.sweep() == []
    in_use.clear()
    clock.now += HOUR - 1
    assert cleaner.sweep() == []
    clock.now += 1
    assert cleaner.sweep() == [entry]


def test_foreign_names_stay_and_links_are_not_followed(folder, tmp_path):
    clock = Clock()
    foreign = [add_entry(folder, name) for name in ("pictures", "a" * 31, "A" * 32, ".hidden")]
    (folder / "letter.txt").write_text("mine")
    outside = add_entry(tmp_path, "outside")
    (folder / ("b" * 32)).symlink_to(outside, target_is_directory=True)
    with_link = add_entry(folder, "c" * 32)
    (with_link / "link").symlink_to(outside, target_is_directory=True)
    own = [add_entry(folder, name) for name in ("d" * 64, "e" * 32 + ".part", "tmpab_cd12x")]
    cleaner = cleaner_of(folder, clock)
    cleaner.sweep()
    clock.now += 2 * HOUR
    assert set(cleaner.sweep()) == {folder / ("b" * 32), with_link, *own}
    assert all((entry / "a.png").exists() for entry in (*foreign, outside))
    assert (folder / "letter.txt").exists()


def test_open_download_survives_deletion(folder):
    clock = Clock()
    entry = add_entry(folder)
    (entry / "a.png").write_bytes(b"x" * 1_000_000)
    cleaner = cleaner_of(folder, clock)
    cleaner.sweep()
    clock.now += 2 * HOUR
    with (entry / "a.png").open("rb") as file:
        first = file.read(10)
        cleaner.sweep()
        assert len(first + file.read()) == 1_000_000
