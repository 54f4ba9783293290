"""The page in a real browser: comparisons, keyboards, phones, contrast, and what is beside it."""

import io
import re
import shutil
import time

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.conftest import photo_like
from tests.serving import STANDIN, held, served
from tests.web.browsing import (
    choose,
    choose_model,
    download,
    new_page,
    sizes,
    wait_for_other_result,
    watched,
)

pytestmark = pytest.mark.slow


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
    shown, whole = page.evaluate(
        "() => { const i = document.querySelector('#view img');"
        "return [[i.clientWidth, i.clientHeight], [i.naturalWidth, i.naturalHeight]] }"
    )
    assert np.abs(np.subtract(shown, whole)).max() <= 1, "the view, which shows the middle, hides the corner"
    page.click("#go-right")
    assert next_source() != corner
    page.keyboard.press("ArrowLeft")
    assert next_source() == corner


@pytest.mark.long
def test_page_can_be_used_with_keyboard_only(page, folder, rng):
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
    with held(folder):
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


@pytest.mark.long
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


def test_first_preview_comes_into_view_and_fullscreen_hides_the_page(page, rng):
    choose(page, photo_like(rng, 300, 300))
    expect(page.locator("#before img")).to_be_visible()
    page.click("#before img")
    expect(page.locator("#detail img").last).to_be_visible()
    expect(page.locator("#detail")).to_be_in_viewport(ratio=0.9)
    page.locator("#detail").hover()
    page.locator("#detail button[title*=ullscreen]").click()
    style = "e => [getComputedStyle(e).position, getComputedStyle(e).backgroundColor]"
    position, background = page.locator("#detail").evaluate(style)
    assert position == "fixed" and background == page.locator("body").evaluate(style)[1]


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
    # The handle comes before the image
    page.route("**/file=**", lambda route: (time.sleep(0.5), route.continue_()))
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
