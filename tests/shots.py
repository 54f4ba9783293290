"""`make shots`: write screenshots of the page's states to shots/.

Faces are restored by the stand-in of standin.py.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serving import ROOT, STANDIN, launched
from tests.web.browsing import CHROMIUM, expect_progress, new_page, upload

OUT = ROOT / "shots"
SIZES = {
    "wide": {"width": 1360, "height": 850},
    "1024": {"width": 1024, "height": 768},
    "phone": {"width": 375, "height": 750},
    "dark": {"width": 1360, "height": 850},
}
KITTEN, PORTRAIT = (ROOT / f"assets/samples/{name}.jpg" for name in ("kitten", "portrait"))


def main() -> int:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        settings = {"RESTORER_WEIGHTS": str(ROOT / "weights"), "MODEL": "best", "DEVICE": "cpu"}
        with launched(Path(folder), STANDIN, **settings) as (_, address):
            for name in SIZES:
                shoot_one_photo(browser, address, name)
                shoot_many_photos(browser, address, name)
        (short := Path(folder, "short")).mkdir()  # a folder without uploads that expire at once
        shoot_reconnecting_and_expired(browser, short, settings)
        browser.close()
    return 0


def opened(browser: Browser, address: str, name: str) -> Page:
    page = new_page(browser, viewport=SIZES[name])
    page.goto(address + ("?__theme=dark" if name == "dark" else ""))
    expect(page.locator("#start")).to_be_visible()
    return page


def shoot(page: Page, name: str, *, full: bool = False) -> None:
    page.wait_for_timeout(1200)
    page.screenshot(path=OUT / f"{name}.png", full_page=full)


def shoot_one_photo(browser: Browser, address: str, name: str) -> None:
    page = opened(browser, address, name)
    shoot(page, f"{name}-1-first-sight")
    upload(page, KITTEN.name, KITTEN.read_bytes())
    expect(page.locator("#summary")).to_contain_text("about")
    shoot(page, f"{name}-2-ready")
    page.click("#start")
    expect_progress(page)
    shoot(page, f"{name}-3-running")
    expect(page.locator("#view img").first).to_be_visible()
    shoot(page, f"{name}-4-done", full=True)
    page.locator("#slider img").first.hover(position={"x": 60, "y": 60})
    for _ in range(25):
        page.mouse.wheel(0, -100)
    shoot(page, f"{name}-5-zoomed")
    page.locator("#strength input[type=range]").focus()
    for _ in range(10):
        page.keyboard.press("PageDown")
    shoot(page, f"{name}-6-strength")
    data = io.BytesIO()
    with Image.open(PORTRAIT) as portrait:
        portrait.save(data, "PNG")
    upload(page, "portrait.png", data.getvalue())
    expect(page.locator("#summary")).to_contain_text("240 ×")
    page.click("#start")
    expect(page.locator("#faces img").first).to_be_visible()
    page.click("#options button")
    shoot(page, f"{name}-7-faces-and-options", full=True)
    upload(page, "notes.png", b"no picture")
    expect(page.locator("#summary")).to_contain_text("⚠")
    shoot(page, f"{name}-8-error")
    page.close()


def shoot_many_photos(browser: Browser, address: str, name: str) -> None:
    page = opened(browser, address, name)
    page.locator("#preset label:has-text('Fast')").click()
    page.get_by_role("tab", name="Many photos").click()
    samples = sorted((ROOT / "assets/samples").glob("*.jpg"))
    files = [{"name": path.name, "mimeType": "image/jpeg", "buffer": path.read_bytes()} for path in samples]
    files.insert(1, {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    page.set_input_files("#uploads input[type=file]", files)
    expect(page.locator("#gallery")).to_contain_text("waiting")
    page.click("#start-all")
    expect(page.locator("#download-all")).to_be_visible()
    page.locator("#gallery button").first.click()
    shoot(page, f"{name}-9-many", full=True)
    page.close()


def shoot_reconnecting_and_expired(browser: Browser, folder: Path, settings: dict[str, str]) -> None:
    with launched(folder, STANDIN, RETENTION_SECONDS="20", CLEANUP_INTERVAL="1", **settings) as (
        server,
        address,
    ):
        page = opened(browser, address, "wide")
        upload(page, KITTEN.name, KITTEN.read_bytes())
        expect(page.locator("#summary")).to_contain_text("→")
        page.wait_for_timeout(45_000)
        page.reload()
        expect(page.locator("#summary")).to_contain_text("expired")
        shoot(page, "wide-10-expired")
        upload(page, KITTEN.name, KITTEN.read_bytes())
        page.click("#start")
        expect_progress(page)
        server.kill()
        page.wait_for_timeout(3000)
        shoot(page, "wide-11-reconnecting")
        page.close()


if __name__ == "__main__":
    sys.exit(main())
