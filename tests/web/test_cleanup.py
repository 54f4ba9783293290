"""Things age by a clock nobody sets, only ours go, and what is needed stays."""

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


def put(folder, name=None, *, age=0.0):
    place = folder / (name or uuid.uuid4().hex)
    place.mkdir()
    (place / "a.png").write_bytes(b"bytes")
    for path in (place / "a.png", place):
        os.utime(path, (time.time() - age,) * 2)
    return place


def janitor(folder, clock, *, needed=lambda name: False):
    return CacheCleaner(folder, needed=needed, age=HOUR, clock=clock)


def test_what_is_an_hour_old_goes_and_what_was_touched_stays(folder):
    clock = Clock()
    sweeps = janitor(folder, clock)
    sweeps.sweep()
    old, touched = put(folder), put(folder)
    clock.now += 1
    assert sweeps.sweep() == []
    clock.now += HOUR - 2
    (touched / "a.png").write_bytes(b"new")
    assert sweeps.sweep() == []
    clock.now += 2
    assert sweeps.sweep() == [old] and touched.exists()
    clock.now += HOUR
    assert sweeps.sweep() == [touched] and not any(folder.iterdir())


@pytest.mark.parametrize("day", [86_400, -86_400])
def test_a_clock_that_is_set_deletes_nothing_early_or_late(folder, monkeypatch, day):
    clock, really = Clock(), time.time
    sweeps = janitor(folder, clock)
    sweeps.sweep()
    before = put(folder)
    clock.now += 1
    sweeps.sweep()
    monkeypatch.setattr(time, "time", lambda: really() + day)
    after = put(folder, age=0)
    clock.now += HOUR - 2
    assert sweeps.sweep() == [] and before.exists() and after.exists()
    clock.now += 2
    gone = sweeps.sweep()
    clock.now += HOUR
    assert sorted(gone + sweeps.sweep()) == sorted([before, after])


def test_an_earlier_process_s_things_go_by_their_own_age(folder, monkeypatch):
    clock, really = Clock(), time.time
    place = put(folder)
    monkeypatch.setattr(time, "time", lambda: really() + HOUR - 10)
    sweeps = janitor(folder, clock)
    assert sweeps.sweep() == []
    clock.now += 11
    assert sweeps.sweep() == [place]


def test_what_is_needed_stays_and_its_hour_begins_when_it_is_no_more(folder):
    clock, needed = Clock(), set()
    sweeps = janitor(folder, clock, needed=lambda name: name in needed)
    place = put(folder)
    needed.add(place.name)
    for _ in range(5):
        clock.now += HOUR
        assert sweeps.sweep() == []
    needed.clear()
    clock.now += HOUR - 1
    assert sweeps.sweep() == []
    clock.now += 1
    assert sweeps.sweep() == [place]


def test_only_our_own_names_go_and_no_link_is_followed(folder, tmp_path):
    clock = Clock()
    mine = [put(folder, name) for name in ("pictures", "a" * 31, "A" * 32, ".hidden")]
    (folder / "letter.txt").write_text("mine")
    outside = put(tmp_path, "outside")
    (folder / ("b" * 32)).symlink_to(outside, target_is_directory=True)
    inside = put(folder, "c" * 32)
    (inside / "link").symlink_to(outside, target_is_directory=True)
    ours = [put(folder, name) for name in ("d" * 64, "e" * 32 + ".part", "tmpab_cd12x")]
    sweeps = janitor(folder, clock)
    sweeps.sweep()
    clock.now += 2 * HOUR
    assert set(sweeps.sweep()) == {folder / ("b" * 32), inside, *ours}
    assert all((place / "a.png").exists() for place in (*mine, outside))
    assert (folder / "letter.txt").exists()


def test_a_download_under_way_is_not_cut_off(folder):
    clock = Clock()
    place = put(folder)
    (place / "a.png").write_bytes(b"x" * 1_000_000)
    sweeps = janitor(folder, clock)
    sweeps.sweep()
    clock.now += 2 * HOUR
    with (place / "a.png").open("rb") as file:
        first = file.read(10)
        sweeps.sweep()
        assert len(first + file.read()) == 1_000_000
