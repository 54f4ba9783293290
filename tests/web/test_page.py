"""The page in a real browser: a photo is chosen, restored and downloaded."""

import io
import re

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from restorer.models import registry
from tests.conftest import photo_like, png
from tests.web.browsing import (
    choose,
    choose_model,
    download,
    new_page,
    sizes,
    upload,
    wait_for_other_result,
)

pytestmark = pytest.mark.slow


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


# The stream of answers to submissions is half a second behind everything else
LATE = """const real = window.fetch;
window.fetch = async (...request) => {
  const answer = await real(...request);
  if (!String(request[0].url ?? request[0]).includes("/queue/data")) return answer;
  const late = new TransformStream({ async transform(part, output) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    output.enqueue(part);
  } });
  return new Response(answer.body.pipeThrough(late), answer);
};"""


def test_nothing_is_lost_when_the_stream_of_answers_is_late(browser, address, rng):
    page = new_page(browser)
    page.add_init_script(LATE)
    page.goto(address)
    upload(page, "notes.png", b"just text")
    expect(page.locator("#summary")).to_contain_text("not an image")
    page.wait_for_timeout(750)  # the server has answered all and ended the stream
    choose(page, photo_like(rng, 30, 30))
    expect(page.locator("#start")).to_be_enabled()
    page.close()


def test_submission_is_cancelled_before_its_id_is_known(page):
    statuses = page.evaluate("""() => {
        const { id } = window.gradio_config.dependencies.find((one) => one.api_name === "show_look");
        const post = async (path, data) => (await fetch(`gradio_api/${path}`, {
            method: "POST", headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ ...data, fn_index: id, session_hash: "another" }),
        })).status;
        return Promise.all([post("queue/join", { data: [null, ""] }), post("cancel"), post("reset")]);
    }""")
    assert statuses == [200, 200, 200]


@pytest.mark.long
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
    expect(page.locator("#compare")).to_have_text("Working…")
    expect(page.locator("#comparison img")).to_have_count(6)  # two custom, one built in, three installed
    for name in (registry.BUILT_IN, "RealESRGAN_x4plus", "custom/slow"):
        expect(page.locator("#comparison")).to_contain_text(name)
    expect(page.locator("#compare")).to_have_text("Compare models")
    expect(page.locator("#compare")).to_be_enabled()
    expect(page.locator("#summary")).to_contain_text("custom/quick")
    page.locator(f"#comparison button:has-text('{registry.BUILT_IN}')").first.click()
    expect(page.locator("#summary")).to_contain_text(f"1600 × 1200 · {registry.BUILT_IN}")


@pytest.mark.parametrize("shape", [(120, 480), (480, 120)])
def test_position_is_where_the_photo_was_clicked(page, shape):
    """The corner of another colour is found on a screenshot."""
    pixels = np.full((*shape, 3), 240, np.uint8)
    pixels[shape[0] // 2 :, shape[1] // 2 :] = (255, 0, 0)
    choose(page, pixels)
    expect(page.locator("#try")).to_be_enabled()
    image = page.locator("#before img")
    page.wait_for_function("document.querySelector('#before img')?.naturalWidth")
    seen = np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("RGB")).astype(int)
    rows, columns = np.nonzero((seen[..., 0] > 200) & (seen[..., 1] < 50))
    image.click(position={"x": columns.mean(), "y": rows.mean()})
    page.wait_for_function("document.querySelector('#crop-position :is(textarea, input)').value")
    value = page.locator("#crop-position :is(textarea, input)").input_value()
    assert [float(part) for part in value.split(",")] == pytest.approx([0.75, 0.75], abs=0.02)
    expect(page.locator("#detail img")).to_have_count(2)


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


def test_suggestions_are_offered_while_they_would_change_something(page, rng):
    choose(page, photo_like(rng, 30, 40))
    expect(page.locator("#look")).to_contain_text("Suggested: 4x")
    page.click("#outscale label:has-text('2x')")
    expect(page.locator("#summary")).to_contain_text("80 × 60")
    page.click("#use")
    expect(page.locator("#summary")).to_contain_text("160 × 120")
    expect(page.locator("#use")).to_be_hidden()
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    page.click("#outscale label:has-text('3x')")
    expect(page.locator("#summary")).to_contain_text("120 × 90")
    for selector in ("#use", "#look"):
        expect(page.locator(selector)).to_be_hidden()


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
    page.fill("#print_size :is(input, textarea)", "30")
    page.keyboard.press("Tab")
    expect(page.locator("#summary")).to_contain_text("Print size is '30'; write it as 30x20cm")


def test_toasts_name_controls_by_their_labels(page, rng):
    choose(page, photo_like(rng, 50, 100))
    page.click("#options button")
    page.fill("#print_size :is(input, textarea)", "30")
    page.keyboard.press("Tab")
    expect(page.locator("#start")).to_be_disabled()
    page.click("#before img")
    expect(page.get_by_test_id("toast-body")).to_contain_text("Print size is '30'")


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


def test_damage_is_marked_edited_and_filled(page, folder):
    y, x = np.mgrid[0:160, 0:200]
    pixels = np.stack([90 + y / 4, 80 + x / 5, 100 + 0 * x], axis=2).astype(np.uint8)
    choose(page, pixels, "clean.png")
    expect(page.locator("#summary")).to_contain_text("about")
    cv2.line(pixels, (50, 40), (120, 110), (245, 245, 245), 2, cv2.LINE_AA)
    for row in range(3):  # a look counts twelve areas
        for column in range(4):
            speck = (15 + 55 * column, 22 + 55 * row)
            cv2.circle(pixels, speck, 2, (245, 245, 245), -1, cv2.LINE_AA)
    choose(page, pixels, "scratched.png")
    expect(page.locator("#repair > button")).to_contain_text("possible damage")
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
    expect(page.locator("#repair_on input")).not_to_be_checked()
    expect(page.locator("#mask")).to_be_hidden()
    page.check("#repair_on input")
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


def test_strength_blends_with_the_enlarged_photo(page, rng):
    pixels = photo_like(rng, 30, 40)
    choose(page, pixels)
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    full = np.asarray(Image.open(io.BytesIO(download(page)[1]))).astype(int)
    old = page.locator("#slider img").nth(1).get_attribute("src")
    expect(page.locator("#strength input[type=range]")).to_be_visible()
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
