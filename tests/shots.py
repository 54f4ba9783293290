"""`make shots`: write screenshots of the page's main states to shots/.

Faces are restored by the stand-in of standin.py.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.web.test_page import CHROMIUM, ROOT, STANDIN, served, upload

OUT = ROOT / "shots"
WIDE = {"width": 1360, "height": 900}
PORTRAIT = ROOT / "assets/samples/portrait.jpg"


def main() -> int:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        with served(
            Path(folder), STANDIN, RESTORER_WEIGHTS=str(ROOT / "weights"), MODEL="best", DEVICE="cpu"
        ) as address:
            for name, size in (("wide", WIDE), ("phone", {"width": 375, "height": 750}), ("dark", WIDE)):
                shoot_restore_tab(browser.new_page(viewport=size), address, name)
            shoot_batch_tab(browser.new_page(viewport=WIDE), address)
        browser.close()
    return 0


def shoot_restore_tab(page: Page, address: str, name: str) -> None:
    def shoot(state: str) -> None:
        page.wait_for_timeout(700)
        page.screenshot(path=OUT / f"{name}-{state}.png", full_page=True)

    page.goto(address + ("?__theme=dark" if name == "dark" else ""))
    expect(page.locator("#start")).to_be_visible(timeout=30_000)
    shoot("1-empty")
    data = io.BytesIO()
    with Image.open(PORTRAIT) as portrait:
        portrait.resize((640, 640 * portrait.height // portrait.width)).save(data, "PNG")
    upload(page, "large.png", data.getvalue())
    expect(page.locator("#summary")).to_contain_text("about", timeout=300_000)
    shoot("2-ready")
    page.click("#start")
    expect(page.locator("#before")).to_contain_text("Step ", timeout=300_000)
    shoot("3-running")
    page.click("#stop")
    upload(page, PORTRAIT.name, PORTRAIT.read_bytes())
    expect(page.locator("#summary")).to_contain_text("240 ×")
    page.click("#start")
    expect(page.locator("#view img").first).to_be_visible(timeout=300_000)
    shoot("4-done")
    page.click("#options button")
    shoot("5-options")
    upload(page, "notes.png", b"no picture")
    expect(page.locator("#summary")).to_contain_text("⚠")
    shoot("6-error")
    page.close()


def shoot_batch_tab(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("tab", name="Many photos").click()
    samples = sorted((ROOT / "assets/samples").glob("*.jpg"))
    files = [{"name": path.name, "mimeType": "image/jpeg", "buffer": path.read_bytes()} for path in samples]
    files.insert(1, {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    page.set_input_files("#uploads input[type=file]", files)
    expect(page.locator("#table")).to_contain_text("waiting")
    page.click("#start-all")
    expect(page.locator("#download-all")).to_be_visible(timeout=300_000)
    page.locator("#gallery button").first.click()
    page.wait_for_timeout(1500)
    page.screenshot(path=OUT / "wide-7-many.png", full_page=True)
    page.close()


if __name__ == "__main__":
    sys.exit(main())
