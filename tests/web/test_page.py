"""The page in a real browser, against a real server with small networks."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.conftest import photo_like, png, save_quick_and_slow

ROOT = Path(__file__).parents[2]
APP, STANDIN, PACED = ROOT / "app.py", ROOT / "tests/standin.py", ROOT / "tests/paced.py"
_PATIENCE = 180_000  # milliseconds, for machines with much else to do
expect.set_options(timeout=_PATIENCE)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def served(folder: Path, script: Path = APP, **environment: str):
    """`python app.py`, or a stand-in, with its own folders and port; the address, once it answers."""
    with launched(folder, script, **environment) as (server, address):
        yield address
        server.terminate()
        assert server.wait(timeout=120) == 0, (folder / "log").read_text()


@contextmanager
def launched(folder: Path, script: Path = APP, **environment: str):
    """The same, process and address, for who ends it himself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PORT": str(port),
        "UPLOAD_FOLDER": str(folder / "uploads"),
        "PROCESSED_FOLDER": str(folder / "processed"),
        "RESTORER_WEIGHTS": str(folder / "weights"),
        "MODEL": "custom/quick",
        "DEVICE": "cpu:torch",
        **environment,
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, script], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _await_answer(server, address)
        yield server, address
    finally:
        server.kill()
        server.wait(timeout=120)


def _await_answer(server: subprocess.Popen, address: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            httpx.get(address, timeout=30)
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    save_quick_and_slow(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, PACED, PACE="0.5") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def new_page(browser: Browser, **options) -> Page:
    page = browser.new_page(**options)
    page.set_default_timeout(_PATIENCE)
    return page


@contextmanager
def watched(browser: Browser, address: str, **options):
    """A page on which nothing may fail: no console error, no failed request, none to anywhere else."""
    page, wrong = new_page(browser, **options), []
    page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status} {r.url}"))
    page.on("request", lambda r: r.url.startswith(("data:", "blob:", address)) or wrong.append(r.url))
    page.on("requestfailed", lambda r: ended_by_the_page(r) or wrong.append(f"{r.failure} {r.url}"))
    page.goto(address)
    expect(page.locator("#start")).to_be_visible()
    yield page
    page.close()
    assert wrong == []


def ended_by_the_page(request: Request) -> bool:
    """The page closes its streams when all events have come, and leaves pictures that others replaced."""
    is_stream = "/queue/data" in request.url or "/upload_progress" in request.url
    return is_stream or request.failure == "net::ERR_ABORTED"


@pytest.fixture
def page(browser, address):
    with watched(browser, address) as page:
        yield page


def choose(page: Page, pixels: np.ndarray, name: str = "holiday.png", **save) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG" if name.endswith("png") else "JPEG", **save)
    upload(page, name, data.getvalue())


def upload(page: Page, name: str, data: bytes) -> None:
    if page.locator("#upload [aria-label=Clear]").count():
        page.click("#upload [aria-label=Clear]")
    page.set_input_files("#upload input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})


def choose_model(page: Page, name: str) -> None:
    page.click("#options button")
    page.click("#model input")
    page.click(f"[role=option]:has-text('{name}')")
    expect(page.locator("#model input")).to_have_value(re.compile(name))


def sizes(page: Page, slider: str) -> list[list[int]]:
    pictures = page.locator(f"{slider} img")
    expect(pictures).to_have_count(2)
    page.wait_for_function(
        "name => [...document.querySelectorAll(name)].every(i => i.complete)", arg=f"{slider} img"
    )
    return [picture.evaluate("i => [i.naturalWidth, i.naturalHeight]") for picture in pictures.all()]


def saved(page: Page) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.click("#download")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_a_photo_is_restored_compared_and_taken_home(page, rng):
    choose(page, photo_like(rng, 60, 90))
    expect(page.locator("#said")).to_contain_text("90 × 60 → 360 × 240 PNG · custom/quick")
    expect(page.locator("#said")).to_contain_text(re.compile(r"1 tile, about \d+ s"))
    expect(page.locator("#before img")).to_be_visible()
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    expect(page.locator("#told")).to_contain_text("360 × 240 · custom/quick")
    assert sizes(page, "#slider") == [[360, 240], [360, 240]]
    name, data = saved(page)
    assert name == "holiday_4x.png"
    assert Image.open(io.BytesIO(data)).size == (360, 240)
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_options_change_the_result(page, rng):
    choose(page, photo_like(rng, 40, 50), "old photo.jpg", quality=90)
    page.click("#outscale label:has-text('2x')")
    expect(page.locator("#said")).to_contain_text("50 × 40 → 100 × 80")
    page.click("#options button")
    page.click("#format input")
    page.click("[role=option]:has-text('TIFF')")
    page.click("#start")
    expect(page.locator("#download")).to_contain_text("TIFF")
    name, data = saved(page)
    assert re.fullmatch(r"old.photo_2x\.tif", name)
    assert Image.open(io.BytesIO(data)).size == (100, 80)


def test_stop_stops_and_the_next_photo_has_its_turn(page, rng, folder):
    choose(page, photo_like(rng, 900, 1100))
    expect(page.locator("#said")).to_contain_text("4400 × 3600")
    choose_model(page, "custom/slow")
    page.click("#start")
    expect(page.locator("#before")).to_contain_text("Step ")
    before = len(list(folder.glob("processed/*/after.jpg")))
    with page.expect_response("**/gradio_api/cancel") as cancelled:
        page.click("#stop")
    assert cancelled.value.ok
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("#said")).to_contain_text("Stopped")
    expect(page.locator("#download")).to_be_hidden()
    choose(page, photo_like(rng, 30, 30), "next.png")
    expect(page.locator("#said")).to_contain_text("30 × 30")
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    assert saved(page)[0] == "next_4x.png"
    assert len(list(folder.glob("processed/*/after.jpg"))) == before + 1, "the stopped photo left nothing"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.png", b"just text", "not an image of a kind that is read"),
        ("cut.png", None, "damaged or incomplete"),
    ],
)
def test_what_cannot_be_read_is_said_in_words(page, rng, name, data, words):
    if data is None:
        data = png(photo_like(rng, 60, 60))[:2000]
    upload(page, name, data)
    expect(page.locator("#said")).to_contain_text(words)
    assert "/" not in page.locator("#said p").first.inner_text(), "no place of the server"
    expect(page.locator("#start")).to_be_disabled()
    choose(page, photo_like(rng, 30, 30))
    expect(page.locator("#start")).to_be_enabled()


def test_a_click_shows_that_spot_at_full_size_and_the_arrows_move_it(page, rng):
    pixels = photo_like(rng, 300, 500)
    pixels[:60, :100] = (250, 20, 20)
    choose(page, pixels)
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    expect(page.locator("#view img").first).to_be_visible()
    assert sizes(page, "#view") == [[1200, 720], [1200, 720]]
    pictures = [page.locator("#view img").first.get_attribute("src")]

    def changed() -> str:
        page.wait_for_function("old => document.querySelector('#view img').src != old", arg=pictures[-1])
        pictures.append(page.locator("#view img").first.get_attribute("src"))
        return pictures[-1]

    box = page.locator("#slider img").first.bounding_box()
    page.mouse.click(box["x"] + 0.05 * box["width"], box["y"] + 0.05 * box["height"])
    corner = changed()
    seen = Image.open(io.BytesIO(httpx.get(corner).content)).getpixel((100, 100))
    assert np.abs(np.array(seen) - (250, 20, 20)).max() < 20, "the red corner"
    page.click("#go-right")
    assert changed() != corner
    page.keyboard.press("ArrowLeft")
    assert changed() == corner


def test_a_detail_is_tried_first_and_models_are_compared(page, rng):
    pixels = photo_like(rng, 300, 400)
    pixels[:150, :200] = (250, 20, 20)
    choose(page, pixels)

    def shown() -> np.ndarray:
        expect(page.locator("#detail img")).to_have_count(2)
        assert sizes(page, "#detail") == [[768, 768], [768, 768]]
        data = httpx.get(page.locator("#detail img").first.get_attribute("src")).content
        return np.asarray(Image.open(io.BytesIO(data)))

    def red(pixel: np.ndarray) -> bool:
        return bool(np.abs(pixel - (250.0, 20, 20)).max() < 30)

    page.locator("#try").press("Enter")
    middle = shown()
    assert red(middle[100, 100]) and not red(middle[500, 700])
    old = page.locator("#detail img").first.get_attribute("src")
    box = page.locator("#before img").bounding_box()
    page.locator("#before img").click(position={"x": 0.1 * box["width"], "y": 0.1 * box["height"]})
    page.wait_for_function("old => document.querySelector('#detail img').src != old", arg=old)
    assert red(shown()[500, 700]), "the detail lies in the red corner"
    page.click("#compare")
    expect(page.locator("#sheet img")).to_have_count(6)  # two here, one built in, three installed
    for name in ("restore-lite-x4", "RealESRGAN_x4plus", "custom/slow"):
        expect(page.locator("#sheet")).to_contain_text(name)
    expect(page.locator("#said")).to_contain_text("custom/quick")
    page.locator("#sheet button:has-text('restore-lite-x4')").first.click()
    expect(page.locator("#said")).to_contain_text("1600 × 1200 PNG · restore-lite-x4")


def test_quality_chooses_the_model_unless_an_exact_one_is_chosen(page, rng):
    choose(page, photo_like(rng, 30, 40))
    expect(page.locator("#said")).to_contain_text("custom/quick")
    expect(page.locator("#preset")).to_contain_text("custom/quick is chosen under More options")
    expect(page.locator("#preset input").first).to_be_disabled()
    choose_model(page, "As chosen under Quality")
    expect(page.locator("#said")).to_contain_text(
        "Large photo on a CPU: fast model; choose Best for more detail"
    )
    page.locator("#preset label:has-text('Best')").click()
    expect(page.locator("#said")).to_contain_text("RealESRGAN_x4plus")
    expect(page.locator("#preset")).to_contain_text(re.compile(r"Best · \d+ s"), timeout=120_000)
    page.locator("#preset label:has-text('Fast')").click()
    expect(page.locator("#said")).to_contain_text("restore-lite-x4")
    expect(page.locator("#said")).not_to_contain_text("Large photo")


def test_a_long_side_in_pixels_takes_the_place_of_times(page, rng):
    choose(page, photo_like(rng, 50, 100))
    page.click("#options button")
    page.fill("#long_side input", "333")
    page.keyboard.press("Tab")
    expect(page.locator("#said")).to_contain_text("333 × 167")
    page.click("#start")
    expect(page.locator("#told")).to_contain_text("333 × 167")
    assert Image.open(io.BytesIO(saved(page)[1])).size == (333, 167)
    page.fill("#long_side input", "3000")
    page.keyboard.press("Tab")
    expect(page.locator("#said")).to_contain_text("choose from 100 to 800")
    expect(page.locator("#start")).to_be_disabled()


def test_what_there_is_of_a_photo_goes_with_it(page, rng):
    for then in ("another", "broken", "none"):
        choose(page, photo_like(rng, 30, 40))
        expect(page.locator("#said")).to_contain_text("40 × 30 →")
        page.click("#start")
        expect(page.locator("#view img").first).to_be_visible()
        if then == "another":
            page.locator("#samples button").first.click()
            expect(page.locator("#before img")).to_be_visible()
            expect(page.locator("#upload [aria-label=Clear]")).to_be_visible()  # the sample has arrived there
        elif then == "broken":
            upload(page, "broken.png", b"no photo")
            expect(page.locator("#upload [aria-label=Clear]")).to_be_visible()
        else:
            page.click("#upload [aria-label=Clear]")
        for gone in ("#slider", "#download", "#view", "#compared"):
            expect(page.locator(gone)).to_be_hidden()


def test_all_can_be_done_with_the_keyboard(page, rng):
    pixels = photo_like(rng, 300, 400)
    pixels[:90, :120] = (250, 20, 20)
    choose(page, pixels)
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator("#before")).to_have_attribute("tabindex", "0")
    page.locator("#before").focus()
    for key in ("ArrowLeft",) * 9 + ("ArrowUp",) * 9 + ("Enter",):
        page.keyboard.press(key)
    expect(page.locator("#detail img")).to_have_count(2)
    data = httpx.get(page.locator("#detail img").first.get_attribute("src")).content
    assert np.abs(np.array(Image.open(io.BytesIO(data)).getpixel((60, 60))) - (250, 20, 20)).max() < 30
    page.locator("#outscale input:checked").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#said")).to_contain_text("1200 × 900")
    choose_model(page, "custom/slow")
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("Stopped.")
    expect(page.locator("#start")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#view img").first).to_be_visible()
    old = page.locator("#view img").first.get_attribute("src")
    page.locator("#slider").focus()
    page.keyboard.press("Enter")  # the same red corner
    page.wait_for_function("old => document.querySelector('#view img').src != old", arg=old)


def test_everything_has_a_name_and_is_legible(browser, address, rng):
    """What assistive technology is told, and WCAG's contrast of 4.5 to 1, in light and in dark."""
    for theme in ("light", "dark"):
        page = new_page(browser)
        page.goto(f"{address}?__theme={theme}")
        expect(page.locator("#start")).to_be_visible()
        choose(page, photo_like(rng, 40, 50))
        expect(page.locator("#said")).to_contain_text("about")
        page.click("#start")
        expect(page.locator("#view img").first).to_be_visible()
        page.click("#options button")
        page.wait_for_timeout(500)
        assert page.evaluate(NAMELESS) == [], theme
        assert page.evaluate(FAINT) == [], theme
        page.close()


NAMELESS = """() => [...document.querySelectorAll("button, input, img, select, textarea, [role=slider]")]
  .filter((e) => e.offsetParent && !e.closest(".toast-wrap"))
  .filter((e) => !(e.ariaLabel || e.alt || e.title || e.textContent.trim() || e.labels?.length
    || e.getAttribute("aria-labelledby") || e.type === "file"))
  .map((e) => e.outerHTML.slice(0, 160))"""
FAINT = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0.95) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("main *, .gradio-container *")) {
    const words = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
    if (!words || !e.offsetParent || e.closest("[disabled], .image-container, footer, .hide")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${words.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def test_a_sample_and_a_pasted_photo_are_taken_as_uploads(page, rng):
    page.locator("#samples button").first.click()
    expect(page.locator("#said")).to_contain_text("→")
    paste(page, photo_like(rng, 20, 30))
    expect(page.locator("#said")).to_contain_text("30 × 20 → 120 × 80")
    page.get_by_role("tab", name="Many photos").click()
    paste(page, photo_like(rng, 20, 30))
    expect(page.locator("#table")).to_contain_text("pasted.png")


def paste(page: Page, pixels: np.ndarray) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(data), given = new DataTransfer();
            given.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: given, bubbles: true }));
        }""",
        list(data.getvalue()),
    )


def test_many_photos_with_a_broken_one(page, rng):
    page.get_by_role("tab", name="Many photos").click()
    files = []
    for name, side in (("one.png", 30), ("broken.png", 0), ("two.png", 40)):
        data = png(photo_like(rng, side, side)) if side else b"not a picture"
        files.append({"name": name, "mimeType": "image/png", "buffer": data})
    page.set_input_files("#uploads input[type=file]", files)
    expect(page.locator("#table")).to_contain_text("waiting")
    page.click("#start-all")
    expect(page.locator("#download-all")).to_be_visible()
    said = " ".join(page.locator("#table").inner_text().split())
    assert re.search(r"one.png done: 120 × 120.*broken.png failed: .*two.png done: 160 × 160", said), said
    expect(page.locator("#gallery button img")).to_have_count(2)
    page.locator("#gallery button").nth(1).click()
    assert sizes(page, "#slider-all") == [[160, 160], [160, 160]]
    page.get_by_label("Remove this file").nth(1).click()
    expect(page.locator("#table")).not_to_contain_text("broken")
    expect(page.locator("#gallery button img")).to_have_count(2)
    expect(page.locator("#download-all")).to_be_visible()
    with page.expect_download() as download:
        page.click("#download-all")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == ["one_4x.png", "two_4x.png"]
        assert Image.open(archive.open("two_4x.png")).size == (160, 160)


def test_stop_keeps_the_photos_that_are_done(page, rng):
    choose_model(page, "custom/slow")
    page.get_by_role("tab", name="Many photos").click()
    files = []
    for name, side in (("small.png", 20), ("large.png", 900)):
        files.append({"name": name, "mimeType": "image/png", "buffer": png(photo_like(rng, side, side))})
    page.set_input_files("#uploads input[type=file]", files)
    page.click("#start-all")
    expect(page.locator("#table")).to_contain_text(re.compile(r"done: .*tile \d+ of", re.DOTALL))
    page.click("#stop-all")
    expect(page.locator("#download-all")).to_contain_text("1 photo,")
    expect(page.locator("#table")).to_contain_text("not restored: stopped")
    expect(page.locator("#start-all")).to_be_visible()


def test_each_face_can_be_switched_off_and_weakened(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")

    def changed(page: Page, old: str) -> str:
        page.wait_for_function("old => document.querySelectorAll('#slider img')[1].src != old", arg=old)
        return page.locator("#slider img").nth(1).get_attribute("src")

    with served(tmp_path, STANDIN) as address, watched(browser, address) as page:
        choose(page, photo_like(rng, 240, 400))
        page.click("#start")
        expect(page.locator("#told")).to_contain_text("faces: 2 found, 2 restored")
        expect(page.locator("#faces img")).to_have_count(2)
        whole = saved(page)[1]
        first = page.locator("#slider img").nth(1).get_attribute("src")
        hidden = next(tmp_path.glob("processed/kept/*/samples"))
        assert httpx.get(f"{address}/gradio_api/file={hidden}").status_code == 403
        page.get_by_label("Face 1 restored").uncheck()
        second = changed(page, first)
        expect(page.locator("#told")).to_contain_text("1 of them switched off")
        one = saved(page)[1]
        page.get_by_label("Face 2 restored").uncheck()
        third = changed(page, second)
        none = saved(page)[1]
        page.locator("#restore_faces input").uncheck()
        page.click("#start")
        changed(page, third)
        expect(page.locator("#faces")).to_be_hidden()
        plain = saved(page)[1]
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (whole, one, none, plain)]
    assert np.array_equal(pictures[2], pictures[3]), "all switched off is what restoring without faces gives"
    left, right = np.s_[:, :800], np.s_[:, 800:]
    assert not np.array_equal(pictures[0][left], pictures[1][left])
    assert np.array_equal(pictures[0][right], pictures[1][right])
    assert np.array_equal(pictures[1][left], pictures[2][left])
    assert not np.array_equal(pictures[1][right], pictures[2][right])


def test_two_pages_do_not_mix_their_results(browser, address, rng):
    with watched(browser, address) as one, watched(browser, address) as two:
        choose(one, photo_like(rng, 40, 40), "one.png")
        choose(two, photo_like(rng, 30, 50), "two.png")
        expect(one.locator("#said")).to_contain_text("160 × 160")
        expect(two.locator("#said")).to_contain_text("200 × 120")
        one.click("#start")
        two.click("#start")
        for page, name, size in ((one, "one_4x.png", (160, 160)), (two, "two_4x.png", (200, 120))):
            expect(page.locator("#download")).to_be_visible()
            found, data = saved(page)
            assert (found, Image.open(io.BytesIO(data)).size) == (name, size)


def test_the_page_fits_a_phone(browser, address):
    with watched(browser, address, viewport={"width": 375, "height": 700}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_another_photo_while_one_is_worked_on_takes_its_place(page, rng):
    choose(page, photo_like(rng, 900, 1100), "first.png")
    expect(page.locator("#said")).to_contain_text("4400 × 3600")
    choose_model(page, "custom/slow")
    page.click("#start")
    expect(page.locator("#before")).to_contain_text("Step ")
    choose(page, photo_like(rng, 30, 30), "second.png")
    expect(page.locator("#said")).to_contain_text("30 × 30")
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    assert saved(page)[0] == "second_4x.png"


def test_the_server_ends_well_in_the_middle_of_a_photo(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with served(
        tmp_path, PACED, MODEL="custom/slow", PACE="0.5"
    ) as address:  # which asserts exit code 0 after SIGTERM
        page = new_page(browser)
        page.goto(address)
        choose(page, photo_like(rng, 900, 1100))
        expect(page.locator("#said")).to_contain_text("4400 × 3600")
        page.click("#start")
        expect(page.locator("#before")).to_contain_text("Step ")
    page.close()


def test_nothing_of_a_page_is_left_after_its_time(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with served(tmp_path, STANDIN, RETENTION_SECONDS="15", CLEANUP_INTERVAL="1") as address:
        page = new_page(browser)
        page.goto(address)
        for then in ("#restored", "#stopped"):
            choose(page, photo_like(rng, 240, 400 if then == "#restored" else 900))
            expect(page.locator("#said")).to_contain_text("240 →")
            page.click("#start")
            if then == "#restored":
                expect(page.locator("#view img").first).to_be_visible()
                assert list(tmp_path.glob("processed/kept/*/samples"))
            else:
                page.click("#stop")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and _files(tmp_path):
            time.sleep(0.5)
        assert _files(tmp_path) == []
        page.close()


def _files(folder: Path) -> list[Path]:
    roots = (folder / "uploads", folder / "processed")
    return [path for root in roots for path in root.rglob("*") if path.is_file() and path.name != ".lock"]


def test_with_a_key_the_page_asks_for_it(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with served(tmp_path, API_KEY="open sesame") as address:
        assert httpx.get(f"{address}/config").status_code == 401
        assert httpx.get(f"{address}/config", headers={"X-API-KEY": "open sesame"}).status_code == 200
        page = new_page(browser)
        page.goto(address)
        page.fill("#key", "open sesame")
        page.click("text=Sign in")
        choose(page, photo_like(rng, 20, 20))
        expect(page.locator("#said")).to_contain_text("80 × 80")
        page.click("#start")
        expect(page.locator("#download")).to_be_visible()
        page.close()
        assert "open sesame" not in (tmp_path / "log").read_text()


def test_the_description_of_rest_is_shown(browser, address):
    page, wrong = new_page(browser), []
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("request", lambda r: r.url.startswith(("data:", address)) or wrong.append(r.url))
    page.goto(f"{address}/docs")
    enhance = page.locator(".opblock-post").first
    enhance.locator(".opblock-summary").click()
    expect(enhance).to_contain_text("face_strength")
    expect(enhance).to_contain_text("curl -F files=@old.jpg")
    assert wrong == []
    page.close()
