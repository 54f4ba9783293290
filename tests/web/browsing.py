"""Use the page in a real browser."""

import io
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

TIMEOUT = 180_000  # milliseconds, long enough for a busy machine
expect.set_options(timeout=TIMEOUT)
# The first takes 0.6 of the time of the others for a page
_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _BROWSERS)), None)


def new_page(browser: Browser | BrowserContext, **options) -> Page:
    page = browser.new_page(**options)
    page.set_default_timeout(TIMEOUT)
    return page


@contextmanager
def watched(browser: Browser | BrowserContext, address: str, **options):
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
    finally:
        page.close()
    assert not errors, errors


def is_icon(message: ConsoleMessage) -> bool:
    """Below a path, the icon that browsers request is that of the site."""
    return message.location["url"].endswith("/favicon.ico")


def aborted_by_page(request: Request) -> bool:
    """The page closes streams once all events have arrived, and aborts loading images it replaces."""
    is_stream = "/queue/data" in request.url or "/upload_progress" in request.url
    return is_stream or request.failure == "net::ERR_ABORTED"


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
