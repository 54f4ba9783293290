import asyncio
import errno
import json
import re
import shutil
import threading
import uuid
import zipfile
from pathlib import Path
from unittest import mock

import cv2
import gradio as gr
import numpy as np
import pytest
from PIL import Image

from restorer import Options, Restorer, Result, UnsupportedImage
from restorer.errors import Cancelled
from restorer.images.photo import Meta, Photo
from restorer.look import Look
from restorer.web import previews, settings
from restorer.web.gpu_queue import GpuQueue
from restorer.web.job_runner import JobRunner
from restorer.web.jobs import Job, Jobs
from restorer.web.metrics import Metrics
from restorer.web.service import FULL, Service
from restorer.web.ui import components, form, layout, restore_tab, texts
from restorer.web.ui.batch_tab import BatchTab
from restorer.web.ui.result_view import ResultView
from restorer.web.worker import Worker
from tests.conftest import photo_like


def service_of(folder):
    folders = {"upload_folder": folder / "uploads", "processed_folder": folder / "processed"}
    queue = GpuQueue(worker := Worker(), 20)
    exported = Metrics(worker, queue, lambda: 0)
    return Service(settings.Settings(**folders), Restorer(weights=folder), worker, queue, exported)


def result_of(before: Photo, after: Photo, **options: object) -> Result:
    return Result(
        *(before, after, after, "m", "5a", "built in", "cpu", Options(**options)),
        data=b"bytes",
        format="jpeg",
        seconds=1.0,
        warnings=("w",),
    )


def written(folder, before, after, **options) -> previews.ResultFiles:
    result = result_of(before, after, **options)
    file = previews.write(result, "holiday.heic", folder / uuid.uuid4().hex, result.options.size_mark)
    files = previews.ResultFiles(file, folder)
    previews.write_previews(result, files)
    previews.cache_result(result, files)
    return files


def test_previews_have_one_size_and_the_colours_of_the_photo(tmp_path):
    before = Photo(
        np.full((30, 40, 3), 60000, np.uint16), np.zeros((30, 40), np.uint16), Meta("png", depth=16)
    )
    after = Photo(np.full((3000, 4000, 3), 200, np.uint8), None, Meta("png"))
    files = written(tmp_path, before, after, outscale=8)
    assert files.file.name == "holiday_8x.jpg"
    assert files.file.read_bytes() == b"bytes"
    first, second = Image.open(files.before), Image.open(files.after)
    assert first.size == second.size == (2048, 1536)
    assert first.getpixel((9, 9)) == (255, 255, 255), "transparency is not white"
    assert second.getpixel((9, 9)) == (200, 200, 200)


def test_cached_result_round_trips_and_zoom_shows_its_pixels(tmp_path, rng):
    noise = rng.integers(0, 256, (75, 125, 3), np.uint8)
    small = cv2.resize(noise, (500, 300), interpolation=cv2.INTER_CUBIC)
    large = cv2.resize(small, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    files = written(tmp_path, Photo(small, None, Meta("png")), Photo(large, None, Meta("png")))
    result = previews.cached_result(files.cache)
    assert np.array_equal(result.after.pixels, large) and np.array_equal(result.before.pixels, small)
    assert result.warnings == ("w",) and result.before.meta == Meta("png")
    corners = {(0.5, 0.5): (400, 240), (0, 0): (0, 0), (1, 1): (800, 480), (0.6, 0.3): (600, 0)}
    for position, (left, top) in corners.items():
        paths = previews.zoomed_pair(result, position, files)
        before, after = (np.asarray(Image.open(path)).astype(float) for path in paths)
        expected = large[top : top + 720, left : left + 1200]
        assert before.shape == after.shape == (720, 1200, 3)
        assert np.abs(after - expected).mean() < 2
        assert np.abs(before - expected).mean() < 3, "not the same position"
    for position, visible, (left, right, top, bottom) in (
        ((0, 1), (800, 500), (0, 800, 700, 1200)),  # the view shows the corner
        ((0.1, 0.5), (300, 720), (0, 400, 240, 960)),  # the spot is in the middle
    ):
        _, path = previews.zoomed_pair(result, position, files, visible)
        after = np.asarray(Image.open(path)).astype(float)
        assert after.shape == (bottom - top, right - left, 3)
        assert np.abs(after - large[top:bottom, left:right]).mean() < 2
    shutil.rmtree(files.cache)
    with pytest.raises(UnsupportedImage, match="restore the photo again"):
        previews.cached_result(files.cache)


def test_zip_numbers_files_of_the_same_name(tmp_path):
    files = [tmp_path / folder / "a.png" for folder in "xyz"] + [tmp_path / "x/A.png"]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(number))
    with zipfile.ZipFile(previews.write_zip(files, tmp_path / "restored.zip")) as archive:
        assert archive.namelist() == ["a.png", "a-2.png", "a-3.png", "A-4.png"]
        assert [archive.read(name) for name in archive.namelist()] == [b"0", b"1", b"2", b"3"]


def test_zip_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("1")
    monkeypatch.setattr(zipfile.ZipFile, "write", mock.Mock(side_effect=OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        previews.write_zip([tmp_path / "a.png"], tmp_path / "restored.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def page_of(folder, service=None) -> restore_tab.RestoreTab:
    service = service or service_of(folder)
    runner = JobRunner(service, Jobs(folder / "uploads/jobs", folder / "processed"))
    with gr.Blocks() as blocks:
        hidden = components.build_hidden_fields()
        tab = components.PhotoTab(service.restorer, "1 hour", hidden)
        page = restore_tab.RestoreTab(runner, tab, ResultView(service, tab))
    service.queue.attach(blocks, runner.run)
    return page


CHOSEN = {
    "preset": "auto",
    "outscale": 4,
    "restore_faces": False,
    "repair": True,
    "repair_sensitivity": 0.5,
    "model": "",
    "long_side": 0,
    "print_size": "",
    "denoise": 1,
    "colour": "off",
    "colour_strength": 1,
    "face_model": "GFPGANv1.3",
    "face_strength": 1,
    "format": "same",
    "quality": 95,
    "max_bytes": 0,
    "keep_metadata": True,
    "remove_gps": False,
}
VALUES = tuple(CHOSEN.values())


def values_with(**changes: object) -> tuple[object, ...]:
    return tuple((CHOSEN | changes).values())


def test_only_uploads_are_read(tmp_path):
    for name in ("secret.png", "uploads/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    page = page_of(tmp_path)
    c, values = page.components, VALUES
    shown = asyncio.run(page.pick(str(tmp_path / "uploads/mine.png"), None, "", *values))
    assert "8 × 8" in shown[c.message]
    for name in ("secret.png", "uploads/../secret.png", "uploads/gone.png", "uploads"):
        path = str(tmp_path / name)
        assert "⚠" in asyncio.run(page.pick(path, None, "", *values))[c.message]
        photo = form.SelectedPhoto(path, shown[c.selected].outline)
        message = asyncio.run(page.start(photo, "", *values))[c.message]
        assert message.startswith("⚠") and str(tmp_path) not in message
        mask = asyncio.run(page.start(shown[c.selected], path, *values_with(repair=True)))[c.message]
        assert mask == "⚠ the marks could not be uploaded; try again"
        remembered = json.dumps({"photo": f"../{name}", "job": "../jobs"})
        assert c.photo not in page.resume(remembered, *values)


def test_upload_that_is_shown_already_keeps_its_job(tmp_path, monkeypatch):
    path = tmp_path / "uploads/mine.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8)).save(path)
    page = page_of(tmp_path)
    shown = asyncio.run(page.pick(str(path), None, "", *VALUES))[page.components.selected]
    monkeypatch.setattr(page.runner.jobs, "get", lambda job: pytest.fail("its job would be cancelled"))
    assert asyncio.run(page.pick(str(path), shown, "a job", *VALUES)) == gr.skip()


def test_repair_is_reset_for_another_photo_only(tmp_path):
    page = page_of(tmp_path)
    c = page.components
    for name in ("first.png", "second.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "uploads" / name)
    chosen = values_with(repair=True, repair_sensitivity=0.9)
    first = asyncio.run(page.pick(str(tmp_path / "uploads/first.png"), None, "", *chosen))
    assert not {c.fields["repair"], c.fields["repair_sensitivity"]} & first.keys()
    for path in (str(tmp_path / "uploads/second.png"), None):
        second = asyncio.run(page.pick(path, first[c.selected], "", *chosen))
        assert second[c.fields["repair"]] is False
        assert second[c.fields["repair_sensitivity"]] == Options.repair_sensitivity


def test_start_and_end_of_a_job_cancel_late_looks_and_estimates(tmp_path):
    """And what they cancel has no successor, which Gradio would start then."""
    events = layout.build(page_of(tmp_path).runner).get_config_file()["dependencies"]
    late = {
        event["id"] for event in events if re.match("(show_look|measure|estimate)", event["api_name"] or "")
    }
    cancelled = [set(event["cancels"]) for event in events if late <= set(event["cancels"])]
    assert len(late) == 9 and len(cancelled) == 2
    assert not set.union(*cancelled) & {event["trigger_after"] for event in events}


def test_other_clients_are_answered_while_an_upload_is_decoded(tmp_path, monkeypatch):
    page, answered = page_of(tmp_path), threading.Event()
    monkeypatch.setattr(page, "_show_upload", lambda path, values: {"answered": answered.wait(60)})

    async def pick_and_answer() -> bool:
        picking = asyncio.create_task(page.pick("a.png", None, "", *VALUES))
        await asyncio.sleep(0)
        answered.set()
        return (await picking)["answered"]

    assert asyncio.run(pick_and_answer())


def test_a_stopped_job_leaves_the_earlier_result_on_display(tmp_path, rng):
    page = page_of(tmp_path)
    Image.fromarray(photo_like(rng, 20, 30)).save(tmp_path / "uploads/a.png")
    c = page.components
    photo = asyncio.run(page.pick(str(tmp_path / "uploads/a.png"), None, "", *VALUES))[c.selected]
    plain = Photo(photo_like(rng, 20, 30), None, Meta("png"))
    earlier = written(tmp_path, plain, Photo(photo_like(rng, 80, 120), None, Meta("png")))
    job = accepted(page, tmp_path / "uploads/a.png")
    page.runner.jobs.end(job, "cancelled")
    without, stopped = (page.finish(job.id, job.id, photo, shown, *VALUES) for shown in (None, earlier))
    assert all(updates[c.message].startswith("Stopped.") for updates in (without, stopped))
    assert c.result_column not in without and without[c.start]["value"] == "Restore"
    assert stopped[c.result_column].visible and stopped[c.start]["value"] == "Restore again"
    shutil.rmtree(earlier.cache)
    assert page.finish(job.id, job.id, photo, earlier, *VALUES)[c.start]["value"] == "Restore"


def test_a_full_disk_is_reported_when_a_photo_or_a_batch_is_accepted(tmp_path, monkeypatch, rng):
    page = page_of(tmp_path)
    batch, upload = batch_of(page), tmp_path / "uploads/a.png"
    Image.fromarray(photo_like(rng, 20, 30)).save(upload)
    photo = asyncio.run(page.pick(str(upload), None, "", *VALUES))[page.components.selected]
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
    monkeypatch.setattr(page.runner, "start", mock.Mock(side_effect=full))
    message = asyncio.run(page.start(photo, "", *VALUES))[page.components.message]
    assert message == asyncio.run(batch.start([str(upload)], False, *VALUES))[batch.components.message]
    assert message == f"⚠ {FULL}"
    monkeypatch.setattr(previews, "preview", mock.Mock(side_effect=full))
    assert asyncio.run(page.pick(str(upload), None, "", *VALUES))[page.components.message] == message


def test_a_strength_that_is_not_changed_writes_nothing(tmp_path, rng):
    page = page_of(tmp_path)
    small, large = photo_like(rng, 20, 30), photo_like(rng, 80, 120)
    files = written(tmp_path, Photo(small, None, Meta("png")), Photo(large, None, Meta("png")))
    shown = page.components.shown
    assert page.view.recompose(files, None, 100) == gr.skip()
    half = page.view.recompose(files, files, 50)[shown]
    assert half.file.read_bytes() != files.file.read_bytes()
    assert page.view.recompose(files, half, 50) == gr.skip()
    assert page.view.recompose(files, half, 100)[shown] not in (files, half)


def test_reload_sets_the_options_of_the_job(tmp_path, rng):
    page = page_of(tmp_path)
    c, upload = page.components, tmp_path / "uploads/a.png"
    Image.fromarray(photo_like(rng, 20, 30)).save(upload)
    chosen = values_with(
        preset="fast",
        outscale=2,
        restore_faces=True,
        repair=False,
        repair_sensitivity=0.75,
        long_side=90,
        denoise=0.5,
        colour="auto",
        colour_strength=0.25,
        face_model="GFPGANv1.4",
        face_strength=0.75,
        format="webp",
        quality=60,
        max_bytes=9000,
        keep_metadata=False,
        remove_gps=True,
    )
    printed = values_with(outscale=1, print_size="30x20cm", model="RealESRGAN_x4plus")
    for values in (VALUES, chosen, printed):
        options = page.form.option_values(values)
        job = page.runner.jobs.add([("a.png", upload)], options, transfer=shutil.copyfile)
        updates = page.resume(json.dumps({"photo": "a.png", "job": job.id}), *VALUES)
        shown = tuple(updates[field]["value"] for field in c.options)
        assert shown == values and updates[c.job] == job.id
    assert "90 × 60" in page.resume(json.dumps({"photo": "a.png", "job": ""}), *chosen)[c.message]


def batch_of(page: restore_tab.RestoreTab) -> BatchTab:
    with gr.Blocks():
        return BatchTab(page, components.ManyTab(components.build_hidden_fields()))


def accepted(page: restore_tab.RestoreTab, *uploads: Path) -> Job:
    """A job that nothing runs."""
    return page.runner.jobs.add([(path.name, path) for path in uploads], {}, transfer=shutil.copyfile)


def test_a_running_batch_stays_when_other_photos_are_chosen(tmp_path):
    page = page_of(tmp_path)
    batch = batch_of(page)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "uploads" / name)
    first, second = (tmp_path / "uploads" / name for name in ("a.png", "b.png"))
    job, c = accepted(page, first), batch.components
    assert batch.pick([str(second)], job.id) == gr.skip()
    page.runner.jobs.end(job, "cancelled")
    states = [batch.update(job.id, paths)[c.start] for paths in ([str(first)], [str(second)], None)]
    assert [button.value for button in states] == ["Restore again", "Restore all", "Restore all"]
    assert [button.interactive for button in states] == [True, True, False]
    assert batch.pick([str(second)], job.id)[c.job] == ""


def test_results_are_shown_if_there_is_no_room_for_their_zip(tmp_path, monkeypatch):
    page = page_of(tmp_path)
    batch = batch_of(page)
    Image.new("RGB", (8, 8)).save(tmp_path / "uploads/a.png")
    job = accepted(page, tmp_path / "uploads/a.png")
    file = page.runner.jobs.result_folder(job, 0) / "a_4x.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"result")
    result = {"file": file.name, "width": 32, "height": 32, "warnings": [], "faces": ""}
    page.runner.jobs.finish_file(job, job.items[0], result=result)
    page.runner.jobs.end(job, "completed")
    offered = batch.update(job.id)
    monkeypatch.setattr(previews, "write_zip", mock.Mock(side_effect=OSError(errno.ENOSPC, "disk full")))
    updates, c = batch.update(job.id), batch.components
    assert c.archive in offered and c.archive not in updates and c.gallery in updates


def test_job_that_is_added_while_its_event_is_cancelled_is_queued(tmp_path, monkeypatch):
    page, adding, cancelled = page_of(tmp_path), threading.Event(), threading.Event()
    Image.new("RGB", (8, 8)).save(tmp_path / "uploads/a.png")
    submitted = asyncio.Queue()

    def add() -> Job:
        adding.set()
        cancelled.wait(60)
        return accepted(page, tmp_path / "uploads/a.png")

    async def accept_and_cancel() -> Job:
        task = asyncio.create_task(page.runner.accept(add))
        await asyncio.to_thread(adding.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()
        return await asyncio.wait_for(submitted.get(), 60)

    monkeypatch.setattr(page.runner, "submit", submitted.put)
    assert asyncio.run(accept_and_cancel()).state == "queued"


def test_a_cancelled_run_leaves_the_job_alone_that_was_queued_again(tmp_path, monkeypatch):
    page = page_of(tmp_path)
    (tmp_path / "processed").mkdir()
    (tmp_path / "uploads/a.png").write_text("a photo")
    job, runner, c = accepted(page, tmp_path / "uploads/a.png"), page.runner, batch_of(page).components
    batch, release = BatchTab(page, c), asyncio.Event()

    async def run(work):
        await release.wait()
        with pytest.raises(Cancelled):  # at its next step
            work(lambda done, total: None)
        raise Cancelled("stopped")

    def restore(data, options, progress, **_):
        progress(1, 2)
        raise AssertionError("the run was not stopped")

    monkeypatch.setattr(runner.service, "run", run)
    monkeypatch.setattr(runner.service, "restore_to_file", restore)
    for name in ("submit", "remove"):
        monkeypatch.setattr(runner.service.queue, name, mock.AsyncMock())

    async def stop_and_continue() -> None:
        await runner.submit(job)
        first, running = runner.queued[job.id], asyncio.create_task(runner.run(job.id))
        await asyncio.sleep(0)
        assert await runner.cancel(job)
        for _ in range(2):  # the second tab finds it running
            assert (await batch.proceed(job.id))[c.stop].visible
        again = runner.queued[job.id]
        assert again is not first
        release.set()
        await running
        assert runner.queued[job.id] is again and not job.ended

    asyncio.run(stop_and_continue())
    assert "have expired" in asyncio.run(batch.proceed("gone"))[c.message]


def test_job_with_options_that_cannot_work_is_refused(tmp_path):
    page = page_of(tmp_path)
    batch = batch_of(page)
    Image.new("RGB", (8, 8)).save(tmp_path / "uploads/a.png")
    for changes, message in (
        ({"print_size": "large"}, "⚠ Print size is 'large'; write it as 30x20cm"),
        (
            {"long_side": 90, "print_size": "9x6cm"},
            "⚠ Long side in pixels is 90 and Print size 9x6cm; use one",
        ),
    ):
        updates = asyncio.run(batch.start([str(tmp_path / "uploads/a.png")], False, *values_with(**changes)))
        assert list(updates) == [batch.components.message]
        assert updates[batch.components.message].startswith(message)
    assert not page.runner.jobs.unfinished()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3600, "1 hour"),
        (5400, "90 minutes"),
        (9000, "2 hours"),
        (90, "90 seconds"),
        (60, "1 minute"),
        (86400, "1 day"),
        (100_000, "27 hours"),
        (1.6, "1 second"),
    ],
)
def test_no_more_time_is_promised_than_there_is(seconds, words):
    assert texts.period(seconds) == words


def test_job_without_photos_is_refused(tmp_path):
    (tmp_path / "processed").mkdir()
    with pytest.raises(UnsupportedImage, match="choose at least one"):
        asyncio.run(page_of(tmp_path).runner.start([], {}))


def test_the_page_shows_a_look_and_uses_its_suggestions(tmp_path, monkeypatch):
    (tmp_path / "uploads").mkdir()
    Image.new("RGB", (8, 8), (90, 90, 90)).save(tmp_path / "uploads/mine.png")
    page = page_of(tmp_path)
    c = page.components
    shown = asyncio.run(page.pick(str(tmp_path / "uploads/mine.png"), None, "", *VALUES))
    data = (tmp_path / "uploads/mine.png").read_bytes()
    assert page.show_look(shown[c.selected], "")[c.look].value == page.restorer.look(data).line
    assert page.show_look(shown[c.selected], "a job") == gr.skip() == page.show_look(None, "")
    suggested = Look(8, 8, (), {"outscale": 2.0, "colour": "auto", "face_enhance": "off"})
    monkeypatch.setattr(page.restorer, "look", lambda data: suggested)
    suggestion = page.show_look(shown[c.selected], "")[c.suggestion]
    used = dict(zip(form.SUGGESTED_FIELDS, form.use_suggestions(suggestion), strict=True))
    assert used == {"outscale": 2, "long_side": 0, "print_size": "", "colour": "auto", "restore_faces": False}
    assert not form.offer_suggestions(suggestion, *used.values()).visible, "nothing would change"
    assert not form.offer_suggestions(suggestion, *{**used, "long_side": None}.values()).visible, "empty"
    assert not form.offer_suggestions(None, 4, 0, "", "off", True).visible
    others = {"outscale": 4, "long_side": 333, "print_size": "9x6in", "colour": "off", "restore_faces": True}
    for name, other in others.items():
        assert form.offer_suggestions(suggestion, *{**used, name: other}.values()).visible, name


def test_many_photos_are_restored_as_suggested_if_wanted(tmp_path, monkeypatch):
    page, sent = page_of(tmp_path), []
    batch = batch_of(page)

    async def start(paths, options):
        sent.append(page.service.options(options).autopilot)
        raise UnsupportedImage("no photos")

    monkeypatch.setattr(page.runner, "start", start)
    for autopilot in (True, False):
        updates = asyncio.run(batch.start([], autopilot, *VALUES))
        assert updates == {batch.components.message: "⚠ no photos"}
    assert sent == [True, False]


def test_a_look_without_colours_leaves_those_that_were_chosen():
    assert form.suggested_values({"outscale": 2.0}) == {"outscale": 2, "long_side": 0, "print_size": ""}
    assert texts.look("Faded. Suggested: 2x, colour auto") == "Faded. Suggested: 2x, Faded colours: If faded"


def test_many_photos_are_repaired_only_where_damage_is_certain(tmp_path, monkeypatch):
    page, sent = page_of(tmp_path), []

    async def start(paths, options):
        sent.append(options["repair"])
        raise UnsupportedImage("no photos")

    monkeypatch.setattr(page.runner, "start", start)
    for repair in (True, False):
        asyncio.run(batch_of(page).start([], False, *values_with(repair=repair)))
    assert sent == ["auto", "off"]


@pytest.mark.parametrize(("bytes_", "text"), [(1, "1 kB"), (999_000, "999 kB"), (1_250_000, "1.2 MB")])
def test_sizes_of_files_are_never_zero(bytes_, text):
    assert texts.file_size(bytes_) == text


def test_a_photo_of_its_own_size_starts_at_half_strength(tmp_path):
    page = page_of(tmp_path)
    strengths = [
        page.form.option_values(values_with(outscale=outscale, long_side=long_side)).get("strength")
        for outscale, long_side in ((1, 0), (4, 0), (1, 100))
    ]
    assert strengths == [0.5, None, None]


@pytest.mark.parametrize(
    ("upload", "name"),
    [
        ("holiday.png", "holiday_4x.png"),
        ("../../etc/passwd", "passwd_4x.png"),
        ("C:\\Users\\me\\scan.tif", "scan_4x.png"),
        ("a\nb\0c:d?.jpg", "a_b_c_d__4x.png"),
        ("...", "photo_4x.png"),
        ("", "photo_4x.png"),
        ("写" * 300 + ".jpg", "写" * 40 + "_4x.png"),
    ],
)
def test_result_name_is_valid_on_every_system(tmp_path, upload, name):
    class FakeResult:
        repair = None
        data, format, options = b"bytes", "png", Options()

    assert previews.write(FakeResult, upload, tmp_path, "_4x") == tmp_path / name
    assert (tmp_path / name).read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd_2x.jpg"),
        ("..\\..\\evil.png", "evil_2x.jpg"),
        ("/absolute/path.png", "path_2x.jpg"),
        ("a\0b.png", "a_b_2x.jpg"),
        ("a\r\nSet-Cookie: x.png", "a__Set-Cookie_ x_2x.jpg"),
        ("\u202egnp.exe", "_gnp_2x.jpg"),
        ("CON.png", "CON_2x.jpg"),
        ("nul", "nul_2x.jpg"),
        ("..", "photo_2x.jpg"),
        ("", "photo_2x.jpg"),
        ("....png", "photo_2x.jpg"),
        ('<img src=x onerror="a()">.png', "_img src=x onerror=_a()___2x.jpg"),
        ("ü" * 300, "ü" * 60 + "_2x.jpg"),
        ("\ud800.png", "__2x.jpg"),
        ("写真.heic", "写真_2x.jpg"),
    ],
)
def test_result_name_stays_inside_its_folder(name, expected, tmp_path):
    photo = Photo(np.zeros((3, 4, 3), np.uint8), None, Meta("png"))
    result = result_of(photo, photo, outscale=2)
    file = previews.write(result, name, tmp_path / "folder", "_2x")
    assert [file] == list((tmp_path / "folder").iterdir())
    assert file.name == expected
