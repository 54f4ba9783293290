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

import cv2
import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from restorer.models import registry
from tests.conftest import files_below, photo_like, png, save_quick_and_slow

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
APP, STANDIN, PACED = ROOT / "app.py", ROOT / "tests/standin.py", ROOT / "tests/paced.py"
_TIMEOUT = 180_000  # milliseconds, long enough for a busy machine
expect.set_options(timeout=_TIMEOUT)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def served(folder: Path, script: Path = APP, **environment: str):
    """Run `python app.py` or another script with its own folders and port; yield the address.

    The server must exit with code 0 after SIGTERM.
    """
    with launched(folder, script, **environment) as (server, address):
        yield address
        server.terminate()
        assert server.wait(timeout=120) == 0, (folder / "log").read_text()


@contextmanager
def launched(folder: Path, script: Path = APP, **environment: str):
    """Like served(), but yield the process too and do not check its exit."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
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
    address = f"http://127.0.0.1:{environment['PORT']}"
    try:
        _wait_until_ready(server, address)
        yield server, address
    finally:
        server.kill()
        server.wait(timeout=120)


def _wait_until_ready(server: subprocess.Popen, address: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            httpx.get(address, timeout=30)
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")


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
    page.set_default_timeout(_TIMEOUT)
    return page


@contextmanager
def watched(browser: Browser, address: str, **options):
    """Open the page and fail on console errors, failed requests and requests to other hosts."""
    page, errors = new_page(browser, **options), []
    page.on("console", lambda m: m.type == "error" and not is_icon(m) and errors.append(m.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda r: r.status >= 400 and errors.append(f"{r.status} {r.url}"))
    page.on("request", lambda r: r.url.startswith(("data:", "blob:", address)) or errors.append(r.url))
    page.on("requestfailed", lambda r: aborted_by_page(r) or errors.append(f"{r.failure} {r.url}"))
    try:
        page.goto(address)
        expect(page.locator("#start")).to_be_visible()
        yield page
    except Exception as error:
        raise AssertionError(f"{error}\nErrors of the page: {errors}") from error
    page.close()
    assert errors == []


def is_icon(message: ConsoleMessage) -> bool:
    """Below a path, the icon that browsers request is that of the site."""
    return message.location["url"].endswith("/favicon.ico")


def aborted_by_page(request: Request) -> bool:
    """The page closes streams once all events have arrived, and aborts loading images it replaces."""
    is_stream = "/queue/data" in request.url or "/upload_progress" in request.url
    return is_stream or request.failure == "net::ERR_ABORTED"


@pytest.fixture
def page(browser, address):
    with watched(browser, address) as page:
        yield page


def choose(page: Page, pixels: np.ndarray, name: str = "holiday.png", **options) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG" if name.endswith("png") else "JPEG", **options)
    upload(page, name, data.getvalue())


def upload(page: Page, name: str, data: bytes) -> None:
    clear = page.locator("#upload :not(.clear-status) > [aria-label=Clear]")  # that of an error is invisible
    if clear.count():
        clear.click()
    page.set_input_files("#upload input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})


def choose_model(page: Page, name: str) -> None:
    page.click("#options button")
    page.click("#model input")
    page.click(f"[role=option]:has-text('{name}')")
    expect(page.locator("#model input")).to_have_value(re.compile(name))


def expect_progress(page: Page) -> None:
    """The bar over the photo has moved."""
    expect(page.locator("#progress")).to_contain_text(re.compile(r"[1-9]\d* %"))


def wait_for_other_result(page: Page, old: str) -> None:
    page.wait_for_function(
        "old => ![old, undefined].includes(document.querySelectorAll('#slider img')[1]?.src)", arg=old
    )


def sizes(page: Page, slider: str) -> list[list[int]]:
    images = page.locator(f"{slider} img")
    expect(images).to_have_count(2)
    page.wait_for_function(
        "selector => [...document.querySelectorAll(selector)].every(i => i.complete)", arg=f"{slider} img"
    )
    return [image.evaluate("i => [i.naturalWidth, i.naturalHeight]") for image in images.all()]


def download(page: Page) -> tuple[str, bytes]:
    with page.expect_download() as event:
        page.click("#download")
    return event.value.suggested_filename, Path(event.value.path()).read_bytes()


def test_photo_is_restored_compared_and_downloaded(page, rng):
    choose(page, photo_like(rng, 60, 90))
    expect(page.locator("#summary")).to_contain_text("90 × 60 → 360 × 240 · custom/quick")
    expect(page.locator("#summary")).to_contain_text(re.compile(r"about \d+ s"))
    expect(page.locator("#before img")).to_be_visible()
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    expect(page.locator("#result-text")).to_contain_text("360 × 240 · custom/quick")
    assert sizes(page, "#slider") == [[360, 240], [360, 240]]
    name, data = download(page)
    assert name == "holiday_4x.png"
    assert Image.open(io.BytesIO(data)).size == (360, 240)
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_options_change_result(page, rng):
    choose(page, photo_like(rng, 40, 50), "old photo.jpg", quality=90)
    page.click("#outscale label:has-text('2x')")
    expect(page.locator("#summary")).to_contain_text("50 × 40 → 100 × 80")
    page.click("#options button")
    page.click("#format input")
    page.click("[role=option]:has-text('TIFF')")
    page.click("#start")
    expect(page.locator("#download")).to_contain_text("TIFF")
    name, data = download(page)
    assert re.fullmatch(r"old.photo_2x\.tif", name)
    assert Image.open(io.BytesIO(data)).size == (100, 80)


def test_stop_cancels_and_next_photo_is_restored(page, rng, folder):
    choose(page, photo_like(rng, 900, 1100))
    expect(page.locator("#summary")).to_contain_text("4400 × 3600")
    choose_model(page, "custom/slow")
    page.click("#start")
    expect_progress(page)
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


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("notes.png", b"just text", "not an image in a supported format"),
        ("cut.png", None, "damaged or incomplete"),
    ],
)
def test_unreadable_upload_shows_its_error(page, rng, name, data, message):
    if data is None:
        data = png(photo_like(rng, 60, 60))[:2000]
    upload(page, name, data)
    expect(page.locator("#summary")).to_contain_text(message)
    assert "/" not in page.locator("#summary p").first.inner_text(), "a path of the server"
    expect(page.locator("#start")).to_be_disabled()
    choose(page, photo_like(rng, 30, 30))
    expect(page.locator("#start")).to_be_enabled()


def test_click_zooms_to_position_and_arrows_pan(page, rng):
    pixels = photo_like(rng, 300, 500)
    pixels[:60, :100] = (250, 20, 20)
    choose(page, pixels)
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    expect(page.locator("#view img").first).to_be_visible()
    assert sizes(page, "#view") == [[1200, 720], [1200, 720]]
    sources = [page.locator("#view img").first.get_attribute("src")]

    def next_source() -> str:
        page.wait_for_function("old => document.querySelector('#view img').src != old", arg=sources[-1])
        sources.append(page.locator("#view img").first.get_attribute("src"))
        return sources[-1]

    box = page.locator("#slider img").first.bounding_box()
    page.mouse.click(box["x"] + 0.05 * box["width"], box["y"] + 0.05 * box["height"])
    corner = next_source()
    pixel = Image.open(io.BytesIO(httpx.get(corner).content)).getpixel((100, 100))
    assert np.abs(np.array(pixel) - (250, 20, 20)).max() < 20, "not the red corner"
    page.click("#go-right")
    assert next_source() != corner
    page.keyboard.press("ArrowLeft")
    assert next_source() == corner


def test_detail_is_previewed_and_models_are_compared(page, rng):
    pixels = photo_like(rng, 300, 400)
    pixels[:150, :200] = (250, 20, 20)
    choose(page, pixels)

    def detail() -> np.ndarray:
        expect(page.locator("#detail img")).to_have_count(2)
        assert sizes(page, "#detail") == [[768, 768], [768, 768]]
        data = httpx.get(page.locator("#detail img").first.get_attribute("src")).content
        return np.asarray(Image.open(io.BytesIO(data)))

    def is_red(pixel: np.ndarray) -> bool:
        return bool(np.abs(pixel - (250.0, 20, 20)).max() < 30)

    page.locator("#try").press("Enter")
    centre = detail()
    assert is_red(centre[100, 100]) and not is_red(centre[500, 700])
    old = page.locator("#detail img").first.get_attribute("src")
    box = page.locator("#before img").bounding_box()
    page.locator("#before img").click(position={"x": 0.1 * box["width"], "y": 0.1 * box["height"]})
    page.wait_for_function("old => document.querySelector('#detail img').src != old", arg=old)
    assert is_red(detail()[500, 700]), "not in the red corner"
    page.click("#compare")
    expect(page.locator("#comparison img")).to_have_count(6)  # two custom, one built in, three installed
    for name in (registry.BUILT_IN, "RealESRGAN_x4plus", "custom/slow"):
        expect(page.locator("#comparison")).to_contain_text(name)
    expect(page.locator("#summary")).to_contain_text("custom/quick")
    page.locator(f"#comparison button:has-text('{registry.BUILT_IN}')").first.click()
    expect(page.locator("#summary")).to_contain_text(f"1600 × 1200 · {registry.BUILT_IN}")


def test_quality_chooses_model_unless_one_is_chosen(page, rng):
    choose(page, photo_like(rng, 30, 40))
    expect(page.locator("#summary")).to_contain_text("custom/quick")
    expect(page.locator("#preset")).to_contain_text("custom/quick is chosen under More options")
    expect(page.locator("#preset input").first).to_be_disabled()
    choose_model(page, "As chosen under Quality")
    expect(page.locator("#summary")).to_contain_text(
        "Large photo on a CPU: fast model. Best gives more detail"
    )
    page.locator("#preset label:has-text('Best')").click()
    expect(page.locator("#summary")).to_contain_text("best quality")
    expect(page.locator("#preset")).to_contain_text(re.compile(r"Best · \d+ s"), timeout=120_000)
    page.locator("#preset label:has-text('Fast')").click()
    expect(page.locator("#summary")).to_contain_text("· fast")
    expect(page.locator("#summary")).not_to_contain_text("Large photo")


def test_long_side_overrides_size(page, rng):
    choose(page, photo_like(rng, 50, 100))
    page.click("#options button")
    page.fill("#long_side input", "333")
    page.keyboard.press("Tab")
    expect(page.locator("#summary")).to_contain_text("333 × 167")
    page.click("#start")
    expect(page.locator("#result-text")).to_contain_text("333 × 167")
    assert Image.open(io.BytesIO(download(page)[1])).size == (333, 167)
    page.fill("#long_side input", "3000")
    page.keyboard.press("Tab")
    expect(page.locator("#summary")).to_contain_text("choose from 100 to 800")
    expect(page.locator("#start")).to_be_disabled()
    page.fill("#long_side input", "0")
    page.fill("#print_size :is(input, textarea)", "1x0.5in")
    page.keyboard.press("Tab")
    expect(page.locator("#summary")).to_contain_text("300 × 150")
    expect(page.locator("#outscale")).to_contain_text("Print size is set under More options")


def test_result_disappears_with_its_photo(page, rng):
    for next_upload in ("sample", "broken", "none"):
        choose(page, photo_like(rng, 30, 40))
        expect(page.locator("#summary")).to_contain_text("40 × 30 →")
        page.click("#start")
        expect(page.locator("#view img").first).to_be_visible()
        if next_upload == "sample":
            page.click("#upload [aria-label=Clear]")
            page.locator("#samples button").first.click()
            expect(page.locator("#before img")).to_be_visible()
            expect(page.locator("#upload [aria-label=Clear]")).to_be_visible()  # the sample is uploaded
        elif next_upload == "broken":
            upload(page, "broken.png", b"no photo")
            expect(page.locator("#upload [aria-label=Clear]")).to_be_visible()
        else:
            page.click("#upload [aria-label=Clear]")
        for selector in ("#slider", "#download", "#view", "#strength"):
            expect(page.locator(selector)).to_be_hidden()


def test_page_can_be_used_with_keyboard_only(page, rng):
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
    expect(page.locator("#summary")).to_contain_text("1200 × 900")
    choose_model(page, "custom/slow")
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#summary")).to_contain_text("Stopped.")
    expect(page.locator("#start")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#view img").first).to_be_visible()
    old = page.locator("#view img").first.get_attribute("src")
    page.locator("#slider").focus()
    page.keyboard.press("Enter")  # the same red corner
    page.wait_for_function("old => document.querySelector('#view img').src != old", arg=old)


def test_page_is_accessible_and_has_contrast(browser, address, rng):
    """No rule of axe is broken; and contrast of at least 4.5:1 where axe cannot tell (WCAG 2.1, AA)."""

    def check(state: str) -> None:
        page.wait_for_timeout(500)
        assert Axe().run(page).response["violations"] == [], (theme, state)
        assert page.evaluate(FIND_LOW_CONTRAST) == [], (theme, state)

    for theme in ("light", "dark"):
        page = new_page(browser)
        page.goto(f"{address}?__theme={theme}")
        expect(page.locator("#start")).to_be_visible()
        check("first sight")
        choose(page, photo_like(rng, 40, 50))
        expect(page.locator("#summary")).to_contain_text("about")
        page.click("#repair > button")
        page.check("#repair_on input")
        expect(page.locator("#mask")).to_be_visible()
        check("repair")
        page.click("#start")
        expect(page.locator("#view img").first).to_be_visible()
        page.click("#options button")
        check("done")
        page.get_by_role("tab", name="Many photos").click()
        check("many")
        page.close()


FIND_LOW_CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0.95) return c;
    }
    return [255, 255, 255];
  };
  const failures = [];
  for (const e of document.querySelectorAll("main *, .gradio-container *")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
    if (!text || !e.offsetParent || e.closest("[disabled], .image-container, footer, .hide")) continue;
    const colours = [rgb(getComputedStyle(e).color), background(e)];
    const [a, b] = colours.map(luminance).sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) failures.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return failures;
}"""


def test_damage_is_marked_edited_and_filled(page, folder):
    y, x = np.mgrid[0:160, 0:200]
    pixels = np.stack([90 + y / 4, 80 + x / 5, 100 + 0 * x], axis=2).astype(np.uint8)
    choose(page, pixels, "clean.png")
    expect(page.locator("#summary")).to_contain_text("about")
    cv2.line(pixels, (20, 10), (150, 140), (245, 245, 245), 2, cv2.LINE_AA)
    choose(page, pixels, "scratched.png")
    expect(page.locator("#repair > button")).to_contain_text("seen on this photo")
    expect(page.locator("#mask")).to_be_hidden()
    page.click("#repair > button")
    expect(page.locator("#brush")).to_be_hidden()
    page.check("#repair_on input")
    expect(page.locator("#mask")).to_be_visible()
    marked = """() => {
      const mask = document.querySelector("#mask"), { width, height } = mask;
      const { data } = mask.getContext("2d").getImageData(0, 0, width, height);
      return Array.from({ length: width * height }, (_, i) => data[4 * i + 3] > 0);
    }"""

    def mask() -> np.ndarray:
        page.wait_for_timeout(300)  # it is drawn with the next frame
        return np.array(page.evaluate(marked)).reshape(160, 200)

    first = mask()
    assert first[75, 85] and first.mean() < 0.1
    page.locator("#repair_sensitivity input[type=range]").fill("0.9")
    assert mask().sum() > first.sum()

    def paint(tool: str, x: float, y: float) -> None:
        page.check(f"#brush input[value={tool}]")
        box = page.locator("#mask").bounding_box()
        page.mouse.click(box["x"] + x / 200 * box["width"], box["y"] + y / 160 * box["height"])

    paint("Add", 160, 32)
    paint("Remove", 85.5, 75.5)

    edited = mask()
    assert edited[32, 160] and not edited[75, 85]
    assert page.locator("#detail").is_hidden(), "the brush is no click on the photo"
    page.click("#start")
    expect(page.locator("#result-text")).to_contain_text("% repaired")
    file = max(folder.glob("processed/*/*/mask.png"), key=lambda path: path.stat().st_mtime)
    np.testing.assert_array_equal(np.asarray(Image.open(file)), edited)
    before = page.locator("#slider img").first.get_attribute("src")
    page.check("#mark input")
    expect(page.locator("#slider img").first).not_to_have_attribute("src", before)
    expect(page.locator("#slider img").first).to_have_attribute("src", re.compile("marked.jpg"))
    expect(page.locator("#brush")).to_be_hidden()
    page.click("#back")
    expect(page.locator("#slider")).to_be_hidden()
    np.testing.assert_array_equal(mask(), edited)
    page.click("#brush-undo")
    assert mask()[75, 85]
    choose(page, pixels[:40, :50], "other.png")
    expect(page.locator("#mask")).to_be_visible()
    page.wait_for_function("document.querySelector('#mask')?.width === 50")


def test_sample_and_pasted_photo_are_uploaded(page, rng):
    page.locator("#samples button").first.click()
    expect(page.locator("#summary")).to_contain_text("→")
    paste(page, photo_like(rng, 20, 30))
    expect(page.locator("#summary")).to_contain_text("30 × 20 → 120 × 80")
    page.get_by_role("tab", name="Many photos").click()
    paste(page, photo_like(rng, 20, 30))
    expect(page.locator("#gallery")).to_contain_text("pasted.png: waiting")


def paste(page: Page, pixels: np.ndarray) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(data), transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            const options = { clipboardData: transfer, bubbles: true };
            document.body.dispatchEvent(new ClipboardEvent("paste", options));
        }""",
        list(data.getvalue()),
    )


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
    page.locator("#gallery button").nth(2).click()
    assert sizes(page, "#slider-all") == [[160, 160], [160, 160]]
    page.get_by_label("Remove this file").nth(1).click()
    expect(page.locator("#uploads")).not_to_contain_text("broken")
    expect(page.locator("#gallery")).to_contain_text("two.png: 160 × 160")
    expect(page.locator("#download-all")).to_be_visible()
    with page.expect_download() as event:
        page.click("#download-all")
    with zipfile.ZipFile(event.value.path()) as archive:
        assert archive.namelist() == ["one_4x.png", "two_4x.png"]
        assert Image.open(archive.open("two_4x.png")).size == (160, 160)


def test_dropped_folder_is_read_with_its_folders(page, rng, tmp_path):
    for name in ("a.png", "below/b.png", "below/notes.txt"):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).write_bytes(png(photo_like(rng, 20, 20)))
    page.get_by_role("tab", name="Many photos").click()
    box = page.locator("#uploads").bounding_box()
    browser = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "album")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 50, "y": box["y"] + 50, "data": data}
        browser.send("Input.dispatchDragEvent", event)
    for name in ("a.png", "b.png"):
        expect(page.locator("#gallery")).to_contain_text(f"{name}: waiting")
    assert "notes" not in page.locator("#gallery").inner_text()


def test_stop_keeps_finished_photos(page, rng):
    choose_model(page, "custom/slow")
    page.get_by_role("tab", name="Many photos").click()
    files = []
    for name, side in (("small.png", 20), ("large.png", 900)):
        files.append({"name": name, "mimeType": "image/png", "buffer": png(photo_like(rng, side, side))})
    page.set_input_files("#uploads input[type=file]", files)
    page.click("#start-all")
    expect(page.locator("#gallery")).to_contain_text("small.png: 80 × 80")
    expect(page.locator("#gallery")).to_contain_text("large.png: running")
    page.click("#stop-all")
    expect(page.locator("#download-all")).to_contain_text("1 photo,")
    expect(page.locator("#gallery")).to_contain_text("large.png: stopped")
    expect(page.locator("#start-all")).to_be_visible()


def test_faces_can_be_switched_off_one_by_one(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")

    def next_source(page: Page, old: str) -> str:
        wait_for_other_result(page, old)
        return page.locator("#slider img").nth(1).get_attribute("src")

    with served(tmp_path, STANDIN) as address, watched(browser, address) as page:
        choose(page, photo_like(rng, 240, 400))
        page.click("#start")
        expect(page.locator("#result-text")).to_contain_text("faces: 2 found, 2 restored")
        expect(page.locator("#faces img")).to_have_count(2)
        both = download(page)[1]
        first = page.locator("#slider img").nth(1).get_attribute("src")
        hidden = next(tmp_path.glob("processed/kept/*/*/samples"))
        assert httpx.get(f"{address}/gradio_api/file={hidden}").status_code == 403
        page.get_by_label("Face 1 restored").uncheck()
        second = next_source(page, first)
        expect(page.locator("#result-text")).to_contain_text("1 of them switched off")
        one = download(page)[1]
        page.get_by_label("Face 2 restored").uncheck()
        third = next_source(page, second)
        none = download(page)[1]
        page.locator("#restore_faces input").uncheck()
        page.click("#start")
        next_source(page, third)
        expect(page.locator("#faces")).to_be_hidden()
        plain = download(page)[1]
    images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (both, one, none, plain)]
    assert np.array_equal(images[2], images[3]), "all switched off differs from a result without faces"
    left, right = np.s_[:, :800], np.s_[:, 800:]
    assert not np.array_equal(images[0][left], images[1][left])
    assert np.array_equal(images[0][right], images[1][right])
    assert np.array_equal(images[1][left], images[2][left])
    assert not np.array_equal(images[1][right], images[2][right])


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


def test_waiting_pages_show_their_position_and_leave_the_queue(browser, address, rng):
    with watched(browser, address) as two, watched(browser, address) as many:
        one = new_page(browser)
        one.goto(address)
        choose(one, photo_like(rng, 900, 1100))
        expect(one.locator("#summary")).to_contain_text("4400 × 3600")
        choose_model(one, "custom/slow")
        one.click("#start")
        expect_progress(one)
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


@pytest.mark.parametrize("width", [320, 375])
def test_page_fits_phone(browser, address, rng, width):
    with watched(browser, address, viewport={"width": width, "height": 700}) as page:
        expect(page.locator("#example-slider img").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        choose(page, photo_like(rng, 30, 40))
        page.click("#start")
        expect(page.locator("#download")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        top, bottom = (page.locator(one).bounding_box() for one in ("#slider", "#download"))
        assert bottom["y"] + bottom["height"] - top["y"] <= 700, "the result does not fit on one screen"


def test_swipe_over_the_comparison_scrolls_a_phone(browser, address):
    options = {"viewport": {"width": 375, "height": 700}, "has_touch": True, "is_mobile": True}
    with watched(browser, address, **options) as page:
        image = page.locator("#example-slider img").first
        expect(image).to_be_visible()
        image.evaluate("image => image.scrollIntoView({ block: 'center' })")
        before, box = page.evaluate("scrollY"), image.bounding_box()
        page.context.new_cdp_session(page).send(
            "Input.synthesizeScrollGesture",
            {"x": box["x"] + 40, "y": box["y"] + box["height"] / 2, "yDistance": -150, "speed": 600},
        )
        assert page.evaluate("scrollY") > before + 100


def test_example_is_compared_until_a_photo_is_chosen(page, rng):
    expect(page.locator("#example-text")).to_contain_text("Example")
    assert sizes(page, "#example-slider") == [[280, 210], [1120, 840]]
    choose(page, photo_like(rng, 30, 40))
    expect(page.locator("#before img")).to_be_visible()
    expect(page.locator("#example-slider")).to_be_hidden()
    page.click("#upload [aria-label=Clear]")
    expect(page.locator("#example-slider")).to_be_visible()
    expect(page.locator("#samples")).to_be_visible()


def test_comparison_by_keyboard_and_by_holding(page, rng):
    choose(page, photo_like(rng, 20, 80))  # as wide as the page
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    after, handle = page.locator("#slider img").nth(1), page.locator("#slider [role=slider]")
    handle.focus()
    for key, share in (("ArrowRight", 55), ("End", 100), ("Home", 0)):
        page.keyboard.press(key)
        page.wait_for_function(
            "([handle, share]) => Math.abs(handle.ariaValueNow - share) <= 1",
            arg=[handle.element_handle(), share],
        )
        left = after.evaluate("i => parseFloat(getComputedStyle(i).clipPath.split(' ').pop())")
        assert abs(left - share) < 2
    page.locator("#hold").hover()
    page.mouse.down()
    expect(after).to_have_css("opacity", "0")
    page.mouse.up()
    expect(after).to_have_css("opacity", "1")


def test_wheel_zooms_both_sides_alike(page, rng):
    choose(page, photo_like(rng, 60, 90))
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    assert sizes(page, "#slider") == [[360, 240], [360, 240]]
    page.locator("#slider img").first.hover(position={"x": 20, "y": 20})
    for _ in range(60):
        page.mouse.wheel(0, -100)
    scales = [
        float(re.search(r"scale\(([\d.]+)\)", image.get_attribute("style")).group(1))
        for image in page.locator("#slider img").all()
    ]
    assert scales[0] == scales[1] >= 8


def test_strength_blends_with_the_enlarged_photo(page, rng):
    pixels = photo_like(rng, 30, 40)
    choose(page, pixels)
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    full = np.asarray(Image.open(io.BytesIO(download(page)[1]))).astype(int)
    old = page.locator("#slider img").nth(1).get_attribute("src")
    page.locator("#strength input[type=range]").focus()
    page.keyboard.press("Home")
    wait_for_other_result(page, old)
    expect(page.locator("#download")).to_be_visible()
    none = np.asarray(Image.open(io.BytesIO(download(page)[1]))).astype(int)
    assert np.array_equal(none, cv2.resize(pixels, (160, 120), interpolation=cv2.INTER_CUBIC))
    assert np.abs(full - none).max() > 0
    page.locator("#strength input[type=range]").evaluate(
        "input => { input.value = 60; input.dispatchEvent(new Event('input', { bubbles: true })) }"
    )
    expect(page.locator("#slider img").nth(1)).to_have_css("opacity", "1")  # no less than the server's 0 %


def test_reload_and_new_tab_show_photo_job_and_result_again(browser, address, rng):
    context = browser.new_context()
    context.set_default_timeout(_TIMEOUT)
    page = context.new_page()
    page.goto(address)
    choose(page, photo_like(rng, 60, 90))
    expect(page.locator("#summary")).to_contain_text("360 × 240")
    page.reload()
    expect(page.locator("#summary")).to_contain_text("90 × 60 → 360 × 240")
    expect(page.locator("#before img")).to_be_visible()
    choose(page, photo_like(rng, 200, 200))
    expect(page.locator("#summary")).to_contain_text("800 × 800")
    choose_model(page, "custom/slow")
    page.click("#start")
    expect_progress(page)
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
    page.reload()
    assert dialogs == ["beforeunload"], "leaving a running job was not questioned"
    expect_progress(page)
    expect(page.locator("#stop")).to_be_visible()
    page.close()
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#download")).to_be_visible()
    assert download(page)[0] == "holiday_4x.png"
    page.reload()
    expect(page.locator("#result-text")).to_contain_text("800 × 800 · custom/slow")
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


def test_new_upload_replaces_running_photo(page, rng):
    choose(page, photo_like(rng, 900, 1100), "first.png")
    expect(page.locator("#summary")).to_contain_text("4400 × 3600")
    choose_model(page, "custom/slow")
    page.click("#start")
    expect_progress(page)
    choose(page, photo_like(rng, 30, 30), "second.png")
    expect(page.locator("#summary")).to_contain_text("30 × 30")
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    assert download(page)[0] == "second_4x.png"


def test_server_exits_cleanly_while_restoring(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with served(tmp_path, PACED, MODEL="custom/slow", PACE="0.5") as address:
        page = new_page(browser)
        page.goto(address)
        choose(page, photo_like(rng, 900, 1100))
        expect(page.locator("#summary")).to_contain_text("4400 × 3600")
        page.click("#start")
        expect_progress(page)
    page.close()


def test_files_of_page_are_deleted_after_retention(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with served(tmp_path, STANDIN, RETENTION_SECONDS="15", CLEANUP_INTERVAL="1") as address:
        page = new_page(browser)
        page.goto(address)
        for outcome, width in (("restored", 400), ("stopped", 900)):
            choose(page, photo_like(rng, 240, width))
            expect(page.locator("#summary")).to_contain_text(f"{width} × 240 →")
            page.click("#start")
            if outcome == "restored":
                expect(page.locator("#view img").first).to_be_visible()
                assert list(tmp_path.glob("processed/kept/*/*/samples"))
            else:
                page.click("#stop")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and _files(tmp_path):
            time.sleep(0.5)
        assert _files(tmp_path) == []
        page.reload()
        expect(page.locator("#summary")).to_contain_text("photos and results are kept for 15 seconds")
        page.close()


def _files(folder: Path) -> list[Path]:
    roots = (folder / "uploads", folder / "processed")
    return [path for path in files_below(*roots) if path.name != ".lock"]


def test_page_requires_api_key(browser, folder, rng, tmp_path):
    shutil.copytree(folder / "weights", tmp_path / "weights")
    with served(tmp_path, API_KEY="open sesame") as address:
        assert httpx.get(f"{address}/config").status_code == 401
        assert httpx.get(f"{address}/config", headers={"X-API-KEY": "open sesame"}).status_code == 200
        page = new_page(browser)
        page.goto(address)
        page.fill("#key", "open sesame")
        page.click("text=Sign in")
        choose(page, photo_like(rng, 20, 20))
        expect(page.locator("#summary")).to_contain_text("80 × 80")
        page.click("#start")
        expect(page.locator("#download")).to_be_visible()
        page.close()
        assert "open sesame" not in (tmp_path / "log").read_text()


def test_rest_documentation_is_shown(browser, address):
    page, errors = new_page(browser), []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("request", lambda r: r.url.startswith(("data:", address)) or errors.append(r.url))
    page.goto(f"{address}/docs")
    enhance = page.locator(".opblock-post").first
    enhance.locator(".opblock-summary").click()
    expect(enhance).to_contain_text("face_strength")
    expect(enhance).to_contain_text("curl -F files=@old.jpg")
    assert errors == []
    page.close()
