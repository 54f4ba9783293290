import asyncio
import gc
import os
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from restorer import Restorer, UnsupportedImage, settings
from restorer.errors import Cancelled
from restorer.photo import Meta, Photo
from restorer.web import ui, work


def slow(tiles, log, *, seconds=0.05):
    """A restoration that only counts its tiles."""

    def restore(progress):
        for done in range(tiles):
            progress(done, tiles)
            log.append(done)
            time.sleep(seconds)
        return "restored"

    return restore


def taken(steps):
    """All that an asynchronous generator yields."""

    async def take():
        return [step async for step in steps]

    return asyncio.run(take())


def test_steps_end_with_the_result(monkeypatch):
    monkeypatch.setattr(work, "_BEAT", 0.02)
    *steps, last = taken(work.Workshop().steps(slow(4, [])))
    assert last == "restored"
    assert all(isinstance(step, work.Step) and step.done <= step.total for step in steps)
    assert steps


def test_an_error_comes_out_where_the_steps_are_taken():
    def fails(progress):
        raise UnsupportedImage("no")

    with pytest.raises(UnsupportedImage, match="no"):
        taken(work.Workshop().steps(fails))


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_leaving_stops_within_a_tile_and_the_next_one_waits_for_that(monkeypatch, way):
    monkeypatch.setattr(work, "_BEAT", 0.01)
    shop, first, second = work.Workshop(), [], []

    async def leave(end):
        steps = shop.steps(slow(100, first))
        while not first:
            await anext(steps)
        await end(steps)

    async def close(steps):
        await steps.aclose()

    async def cancel(steps):
        waiting = asyncio.ensure_future(anext(steps))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(leave({"close": close, "cancel": cancel}[way]))
    done = len(first)
    assert taken(shop.steps(slow(2, second)))[-1] == "restored"
    assert len(first) <= done + 1
    assert second == [0, 1]


def test_a_closed_workshop_stops_its_photo_and_takes_no_other(monkeypatch):
    monkeypatch.setattr(work, "_BEAT", 0.01)
    shop, log = work.Workshop(), []

    async def under_way():
        steps = shop.steps(slow(100, log))
        while not log:
            await anext(steps)
        assert shop.close(seconds=5)
        async for _ in steps:
            pass

    with pytest.raises(Cancelled):
        asyncio.run(under_way())
    assert len(log) < 100


def test_what_was_stopped_or_failed_does_not_stay_in_memory(monkeypatch):
    monkeypatch.setattr(work, "_BEAT", 0.01)
    kept = []

    class Picture:
        pass

    def restore(progress):
        picture = Picture()
        kept.append(weakref.ref(picture))
        for done in range(50):
            progress(done, 50)
            time.sleep(0.01)
        raise UnsupportedImage("no")

    async def leave():
        steps = shop.steps(restore)
        while not kept:
            await anext(steps)
        await steps.aclose()

    async def fail():
        with pytest.raises(UnsupportedImage):
            async for _ in shop.steps(restore):
                pass

    shop = work.Workshop()
    gc.disable()
    try:
        asyncio.run(leave())
        asyncio.run(fail())
        shop.close(seconds=5)
        time.sleep(0.1)
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


def test_previews_are_of_one_size_and_show_what_the_photo_shows(tmp_path):
    before = Photo(
        np.full((30, 40, 3), 60000, np.uint16), np.zeros((30, 40), np.uint16), Meta("png", depth=16)
    )
    after = Photo(np.full((3000, 4000, 3), 200, np.uint8), None, Meta("png"))
    result = SimpleNamespace(
        data=b"bytes", format="jpeg", width=4000, height=3000, before=before, after=after
    )
    shown = work.store(result, "holiday.heic", 100, tmp_path)
    assert shown.file.name == "holiday_100x.jpg"
    assert shown.file.read_bytes() == b"bytes"
    one, two = Image.open(shown.before), Image.open(shown.after)
    assert one.size == two.size == (2048, 1536)
    assert one.getpixel((9, 9)) == (255, 255, 255), "transparent is white"
    assert two.getpixel((9, 9)) == (200, 200, 200)


def test_results_are_kept_for_an_hour(tmp_path):
    for name, age in (("young", 0), ("old", 4000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "mine.txt").touch()
    os.utime(tmp_path / "mine.txt", (0, 0))
    work.sweep(tmp_path, work.AGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "young"]


def test_only_uploads_are_read(tmp_path):
    for name in ("secret.png", "uploads/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = settings.Settings(upload_folder=tmp_path / "uploads")
    page = ui._Page(Restorer(weights=tmp_path), found, work.Workshop())
    values = (4, "auto", 1, "off", "GFPGANv1.3", 1, "same", 95, True, False)
    assert "8 × 8" in page.chosen(str(tmp_path / "uploads/mine.png"), *values)[0]
    for path in ("secret.png", "uploads/../secret.png", "uploads/gone.png", "uploads"):
        assert "⚠" in page.chosen(str(tmp_path / path), *values)[0]
        *_, last = taken(page.restore(str(tmp_path / path), *values))
        assert "⚠" in last[1]
