"""The page in a real browser: many photos, queues, reloads and files."""

import io
import shutil
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.conftest import files_below, photo_like, png
from tests.serving import HELD, STANDIN, held, served
from tests.web.browsing import (
    TIMEOUT,
    choose,
    choose_model,
    download,
    expect_progress,
    new_page,
    sizes,
    watched,
)

pytestmark = pytest.mark.slow


def start_long_job(page: Page, rng: np.random.Generator, name: str = "holiday.png") -> None:
    choose(page, photo_like(rng, 300, 400), name)
    expect(page.locator("#summary")).to_contain_text("1600 × 1200")
    choose_model(page, "custom/slow")
    page.click("#start")
    expect_progress(page)


@pytest.mark.usefixtures("hold")
def test_stop_cancels_and_next_photo_is_restored(page, rng, folder):
    start_long_job(page, rng)
    before = len(list(folder.glob("processed/*/*/after.jpg")))
    page.click("#stop")
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("#summary")).to_contain_text("Stopped")
    expect(page.locator("#download")).to_be_hidden()
    choose(page, photo_like(rng, 30, 30), "next.png")
    expect(page.locator("#summary")).to_contain_text("30 × 30")
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    assert download(page)[0] == "next_4x.png"
    assert len(list(folder.glob("processed/*/*/after.jpg"))) == before + 1, "the stopped photo left no files"


def test_stop_keeps_the_earlier_result_for_a_reload(browser, address, folder, rng):
    page = new_page(browser)  # errors are not watched: a reload aborts Gradio's requests
    page.goto(address)
    choose(page, photo_like(rng, 300, 300))
    expect(page.locator("#summary")).to_contain_text("1200 × 1200")
    page.click("#start")
    expect(page.locator("#result-text")).to_contain_text("custom/quick")
    choose_model(page, "custom/slow")
    with held(folder):
        page.click("#start")
        expect_progress(page)
        page.click("#stop")
        expect(page.locator("#summary")).to_contain_text("Stopped.")
    expect(page.locator("#result-text")).to_contain_text("custom/quick")
    page.reload()
    expect(page.locator("#result-text")).to_contain_text("custom/quick")
    assert download(page)[0] == "holiday_4x.png"
    page.close()


def test_photo_dropped_beside_the_box_replaces_the_one_on_display(page, rng, tmp_path):
    choose(page, photo_like(rng, 30, 40))
    expect(page.locator("#before img")).to_be_visible()
    (tmp_path / "other.png").write_bytes(png(photo_like(rng, 50, 20)))
    box = page.locator("#before img").bounding_box()
    browser = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "other.png")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": data}
        browser.send("Input.dispatchDragEvent", event)
    expect(page.locator("#summary")).to_contain_text("20 × 50 →")


def test_broken_photo_does_not_stop_batch(page, rng):
    page.get_by_role("tab", name="Many photos").click()
    files = []
    for name, side in (("one.png", 30), ("broken.png", 0), ("two.png", 40)):
        data = png(photo_like(rng, side, side)) if side else b"not a picture"
        files.append({"name": name, "mimeType": "image/png", "buffer": data})
    page.set_input_files("#uploads input[type=file]", files)
    expect(page.locator("#gallery")).to_contain_text("two.png: waiting")
    page.click("#start-all")
    expect(page.locator("#download-all")).to_be_visible()
    expect(page.locator("#batch-summary")).to_contain_text("2 of 3 photos restored, 1 failed")
    captions = page.locator("#gallery .caption-label").all_inner_texts()
    assert captions[0].startswith("one.png: 120 × 120") and captions[2].startswith("two.png: 160 × 160")
    assert captions[1].startswith("broken.png: ⚠ the file is not an image in a supported format")
    assert "autopilot" not in captions[0]
    page.locator("#gallery button").nth(2).click()
    assert sizes(page, "#slider-all") == [[160, 160], [160, 160]]
    page.locator("#gallery button").nth(1).click()
    expect(page.locator("#slider-all")).to_be_hidden()
    page.get_by_label("Remove this file").nth(1).click()
    expect(page.locator("#uploads")).not_to_contain_text("broken")
    expect(page.locator("#gallery")).to_contain_text("two.png: 160 × 160")
    expect(page.locator("#download-all")).to_be_visible()
    with page.expect_download() as event:
        page.click("#download-all")
    with zipfile.ZipFile(event.value.path()) as archive:
        assert archive.namelist() == ["one_4x.png", "two_4x.png"]
        assert Image.open(archive.open("two_4x.png")).size == (160, 160)
    page.locator("#autopilot input").check()
    page.click("#start-all")
    expect(page.locator("#many")).to_contain_text("autopilot: ")  # below each photo, or above if all have it


def test_dropped_folder_is_read_with_its_folders(page, rng, tmp_path):
    for name in ("a.png", "below/b.png", "below/notes.txt", "README", "a.h"):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).write_bytes(png(photo_like(rng, 20, 20)))
    page.get_by_role("tab", name="Many photos").click()
    box = page.locator("#uploads").bounding_box()
    page.evaluate("""document.addEventListener("change", (event) => {
        if (event.target.closest("#uploads")) window.dropped = [...event.target.files].map((f) => f.name);
    }, true)""")
    browser = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "album")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 50, "y": box["y"] + 50, "data": data}
        browser.send("Input.dispatchDragEvent", event)
    for name in ("a.png", "b.png"):
        expect(page.locator("#gallery")).to_contain_text(f"{name}: waiting")
    assert sorted(page.evaluate("dropped")) == ["a.png", "b.png"]


@pytest.mark.usefixtures("hold")
def test_stop_keeps_finished_photos(page, rng):
    choose_model(page, "custom/slow")
    page.get_by_role("tab", name="Many photos").click()
    files = []
    for name, side in (("small.png", 20), ("large.png", 300)):
        files.append({"name": name, "mimeType": "image/png", "buffer": png(photo_like(rng, side, side))})
    page.set_input_files("#uploads input[type=file]", files)
    page.click("#start-all")
    expect(page.locator("#gallery")).to_contain_text("small.png: 80 × 80")
    expect(page.locator("#gallery")).to_contain_text("large.png: running")
    expect(page.locator("#uploads")).to_contain_text("small")
    for button in page.get_by_label("Remove this file").all():
        expect(button).to_be_hidden()
    expect(page.locator("#uploads input[type=file]")).to_have_count(0)
    page.click("#stop-all")
    expect(page.locator("#download-all")).to_contain_text("1 photo,")
    expect(page.locator("#gallery")).to_contain_text("large.png: stopped")
    expect(page.locator("#start-all")).to_be_visible()
    expect(page.get_by_label("Remove this file").last).to_be_visible()


def test_stopped_batch_continues_with_the_photos_that_are_left(page, folder, rng):
    choose_model(page, "custom/slow")
    page.get_by_role("tab", name="Many photos").click()
    files = [
        {"name": f"{name}.png", "mimeType": "image/png", "buffer": png(photo_like(rng, side, side))}
        for name, side in (("first", 20), ("second", 300), ("third", 24))
    ]
    page.set_input_files("#uploads input[type=file]", files)
    rest = page.locator("#continue-all")
    with held(folder):
        page.click("#start-all")
        expect(page.locator("#gallery")).to_contain_text("first.png: 80 × 80")
        page.click("#stop-all")
        expect(rest).to_have_text("Continue, 2 photos left")
    rest.click()
    expect(page.locator("#stop-all")).to_be_visible()
    expect(rest).to_be_hidden()
    expect(page.locator("#download-all")).to_contain_text("3 photos,")
    expect(rest).to_be_hidden()
    with page.expect_download() as event:
        page.click("#download-all")
    with zipfile.ZipFile(event.value.path()) as archive:
        assert archive.namelist() == ["first_4x.png", "second_4x.png", "third_4x.png"]


def test_two_pages_get_their_own_results(browser, address, rng):
    with watched(browser, address) as one, watched(browser, address) as two:
        choose(one, photo_like(rng, 40, 40), "one.png")
        choose(two, photo_like(rng, 30, 50), "two.png")
        expect(one.locator("#summary")).to_contain_text("160 × 160")
        expect(two.locator("#summary")).to_contain_text("200 × 120")
        one.click("#start")
        two.click("#start")
        for page, name, size in ((one, "one_4x.png", (160, 160)), (two, "two_4x.png", (200, 120))):
            expect(page.locator("#download")).to_be_visible()
            file, data = download(page)
            assert (file, Image.open(io.BytesIO(data)).size) == (name, size)


@pytest.mark.usefixtures("hold")
def test_waiting_pages_show_their_position_and_leave_the_queue(browser, address, rng):
    with watched(browser, address) as two, watched(browser, address) as many:
        one = new_page(browser)
        one.goto(address)
        start_long_job(one, rng)
        choose(two, photo_like(rng, 30, 40))
        expect(two.locator("#summary")).to_contain_text("160 × 120")
        two.click("#start")
        expect(two.locator("#progress")).to_contain_text("Waiting: 1 ahead in the queue")
        many.get_by_role("tab", name="Many photos").click()
        files = [{"name": "a.png", "mimeType": "image/png", "buffer": png(photo_like(rng, 20, 20))}]
        many.set_input_files("#uploads input[type=file]", files)
        many.click("#start-all")
        expect(many.locator("#progress-all")).to_contain_text("Waiting: 2 ahead in the queue")
        assert httpx.get(f"{address}/ready").json()["queue_length"] == 3
        two.click("#stop")
        expect(two.locator("#start")).to_be_visible()
        assert httpx.get(f"{address}/ready").json()["queue_length"] == 2
        one.click("#stop")
        expect(many.locator("#gallery")).to_contain_text("a.png: 80 × 80")
        one.close()


@pytest.mark.long
def test_reload_and_new_tab_show_photo_job_and_result_again(browser, address, folder, rng):
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    page.goto(address)
    choose(page, photo_like(rng, 60, 90))
    expect(page.locator("#summary")).to_contain_text("360 × 240")
    page.reload()
    expect(page.locator("#summary")).to_contain_text("90 × 60 → 360 × 240")
    expect(page.locator("#before img")).to_be_visible()
    choose(page, photo_like(rng, 300, 600))
    expect(page.locator("#summary")).to_contain_text("2400 × 1200")
    choose_model(page, "custom/slow")
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
    with held(folder):
        page.click("#start")
        expect_progress(page)
        page.reload()
        assert dialogs == ["beforeunload"], "leaving a running job was not questioned"
        expect(page.locator("#stop")).to_be_visible()
        expect_progress(page)
        page.close()
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#download")).to_be_visible()
    assert download(page)[0] == "holiday_4x.png"
    page.reload()
    expect(page.locator("#result-text")).to_contain_text("2400 × 1200 · custom/slow")
    context.close()


@pytest.mark.usefixtures("hold")
def test_a_new_tab_and_a_click_leave_a_running_job_alone(browser, address, rng):
    """A new tab shows the job, and another photo there does not stop it. There are no previews meanwhile."""
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT)
    page, other = context.new_page(), context.new_page()
    page.goto(address)
    start_long_job(page, rng)
    page.locator("#before img").click()
    other.goto(address)
    expect_progress(other)
    other.on("dialog", lambda dialog: dialog.accept())
    other.reload()
    expect_progress(other)
    choose(other, photo_like(rng, 30, 40))
    expect(other.locator("#summary")).to_contain_text("160 × 120")
    assert httpx.get(f"{address}/ready").json()["queue_length"] == 1
    page.click("#stop")
    expect(page.locator("#summary")).to_contain_text("Stopped.")
    context.close()


def test_reload_shows_many_photos_again(browser, address, rng):
    page = new_page(browser)  # errors are not watched: a reload aborts Gradio's requests
    page.goto(address)
    page.get_by_role("tab", name="Many photos").click()
    files = [
        {"name": f"{side}.png", "mimeType": "image/png", "buffer": png(photo_like(rng, side, side))}
        for side in (20, 30)
    ]
    page.set_input_files("#uploads input[type=file]", files)
    page.click("#start-all")
    expect(page.locator("#download-all")).to_be_visible()
    page.reload()
    page.get_by_role("tab", name="Many photos").click()
    expect(page.locator("#gallery")).to_contain_text("30.png: 120 × 120")
    with page.expect_download() as event:
        page.click("#download-all")
    with zipfile.ZipFile(event.value.path()) as archive:
        assert archive.namelist() == ["20_4x.png", "30_4x.png"]
    page.close()


@pytest.mark.usefixtures("hold")
def test_new_upload_replaces_running_photo(page, rng):
    start_long_job(page, rng, "first.png")
    choose(page, photo_like(rng, 30, 30), "second.png")
    expect(page.locator("#summary")).to_contain_text("30 × 30")
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    assert download(page)[0] == "second_4x.png"


def test_server_exits_cleanly_while_restoring(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with held(tmp_path), served(tmp_path, HELD, MODEL="custom/slow") as address:
        page = new_page(browser)
        page.goto(address)
        choose(page, photo_like(rng, 300, 400))
        expect(page.locator("#summary")).to_contain_text("1600 × 1200")
        page.click("#start")
        expect_progress(page)
    page.close()


@pytest.mark.long
def test_files_of_page_are_deleted_after_retention(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    limits = {"RETENTION_SECONDS": "15", "CLEANUP_INTERVAL": "1"}
    with served(tmp_path, STANDIN, MODEL="custom/slow", **limits) as address:
        page = new_page(browser)
        page.goto(address)
        choose(page, photo_like(rng, 240, 400))
        expect(page.locator("#summary")).to_contain_text("400 × 240 →")
        page.click("#start")
        expect(page.locator("#view img").first).to_be_visible()
        assert list(tmp_path.glob("processed/kept/*/*/samples"))
        choose(page, photo_like(rng, 240, 900))
        expect(page.locator("#summary")).to_contain_text("900 × 240 →")
        with held(tmp_path):
            page.click("#start")
            page.click("#stop")
            expect(page.locator("#summary")).to_contain_text("Stopped.")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and _files(tmp_path):
            time.sleep(0.5)
        assert _files(tmp_path) == []
        page.reload()
        expect(page.locator("#summary")).to_contain_text("photos and results are kept for 15 seconds")
        page.wait_for_function("!JSON.parse(localStorage['neural-image-restore']).photo")  # reported once
        page.close()


def _files(folder: Path) -> list[Path]:
    roots = (folder / "uploads", folder / "processed")
    return [path for path in files_below(*roots) if path.name != ".lock"]
