import asyncio
import gc
import os
import time
import weakref
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from restorer import Options, Restorer, Result, UnsupportedImage, settings
from restorer.errors import Cancelled
from restorer.photo import Meta, Photo
from restorer.web import handlers, many, work


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


def stored(tmp_path, before, after, **options) -> work.Shown:
    result = Result(
        *(b"bytes", "jpeg", after.width, after.height, "m", "5a", 1.0, ("w",), before, after, (), ""),
        options=Options(**options),
        strengths={},
        under=(),
    )
    shown = work.store(result, "holiday.heic", tmp_path)
    work.keep(result, shown)
    return shown


def test_previews_are_of_one_size_and_show_what_the_photo_shows(tmp_path):
    before = Photo(
        np.full((30, 40, 3), 60000, np.uint16), np.zeros((30, 40), np.uint16), Meta("png", depth=16)
    )
    after = Photo(np.full((3000, 4000, 3), 200, np.uint8), None, Meta("png"))
    shown = stored(tmp_path, before, after, outscale=8)
    assert shown.file.name == "holiday_8x.jpg"
    assert shown.file.read_bytes() == b"bytes"
    one, two = Image.open(shown.before), Image.open(shown.after)
    assert one.size == two.size == (2048, 1536)
    assert one.getpixel((9, 9)) == (255, 255, 255), "transparent is white"
    assert two.getpixel((9, 9)) == (200, 200, 200)


def test_what_is_kept_comes_back_and_a_closer_look_shows_its_pixels(tmp_path, rng):
    noise = rng.integers(0, 256, (75, 125, 3), np.uint8)
    small = cv2.resize(noise, (500, 300), interpolation=cv2.INTER_CUBIC)
    large = cv2.resize(small, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    shown = stored(tmp_path, Photo(small, None, Meta("png")), Photo(large, None, Meta("png")))
    result = work.kept(shown)
    assert np.array_equal(result.after.pixels, large) and np.array_equal(result.before.pixels, small)
    assert result.warnings == ("w",) and result.before.meta == Meta("png")
    for spot, left, top in (((0.5, 0.5), 400, 240), ((0, 0), 0, 0), ((1, 1), 800, 480), ((0.6, 0.3), 600, 0)):
        paths = work.look(result, spot, shown)
        before, after = (np.asarray(Image.open(path)).astype(float) for path in paths)
        whole = large[top : top + 720, left : left + 1200]
        assert before.shape == after.shape == (720, 1200, 3)
        assert np.abs(after - whole).mean() < 2
        assert np.abs(before - whole).mean() < 3, "the same spot"
    work.forget(shown)
    with pytest.raises(UnsupportedImage, match="restore the photo again"):
        work.kept(shown)


def test_an_archive_numbers_files_of_one_name(tmp_path):
    files = [tmp_path / folder / "a.png" for folder in "xyz"] + [tmp_path / "x/A.png"]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(number))
    with zipfile.ZipFile(work.zipped(files, tmp_path)) as archive:
        assert archive.namelist() == ["a.png", "a-2.png", "a-3.png", "A-4.png"]
        assert [archive.read(name) for name in archive.namelist()] == [b"0", b"1", b"2", b"3"]


def test_a_batch_tells_what_was_stopped_but_not_of_photos_chosen_meanwhile(tmp_path):
    tab = many.ManyPhotos(handlers.Page(Restorer(weights=tmp_path), settings.Settings(), work.Workshop()))
    rows = [["a", "done: 8 × 8"], ["b", "failed: no"], ["c", "tile 1 of 3"], ["d", "waiting"]]
    told = tab.archive((), rows)[3]
    assert [said for _, said in told] == ["done: 8 × 8", "failed: no", *["not restored: stopped"] * 2]
    others = [["e", "waiting"], ["f", "waiting"]]
    assert tab.archive((), others)[3] == others


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
    found = settings.Settings(upload_folder=tmp_path / "uploads", processed_folder=tmp_path / "made")
    page = handlers.Page(Restorer(weights=tmp_path), found, work.Workshop())
    found.processed_folder.mkdir()
    values = (4, 0, "auto", 1, False, "GFPGANv1.3", 1, "same", 95, True, False)
    assert "8 × 8" in page.picked(str(tmp_path / "uploads/mine.png"), *values)[2]
    for path in ("secret.png", "uploads/../secret.png", "uploads/gone.png", "uploads"):
        assert "⚠" in page.picked(str(tmp_path / path), *values)[2]
        *_, last = taken(page.restore(str(tmp_path / path), *values))
        assert isinstance(last, handlers.Failed) and str(tmp_path) not in last.why
