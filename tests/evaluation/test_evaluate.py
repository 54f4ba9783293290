"""The quality report, from the command line to the page, with small networks of known weights."""

import csv
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

import evaluate
from restorer.errors import InvalidOption
from restorer.evaluation import cases, degradation, html_report, metrics, summary
from restorer.images import resample
from tests.conftest import photo_like, png, save_network


@pytest.fixture
def folder(tmp_path, rng, monkeypatch) -> Path:
    """Three photos in test_inputs/, and two networks: custom/one here, custom/two in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path / "weights"))
    save_network(tmp_path / "weights/custom/one.safetensors", seed=1)
    save_network(tmp_path / "other/custom/two.safetensors", seed=2)
    for name, (height, width) in {"a": (64, 96), "b/a": (97, 66), "c": (72, 72)}.items():
        path = tmp_path / f"test_inputs/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(photo_like(rng, height, width)))
    return tmp_path


def run(*words: str) -> tuple[int, dict]:
    """The exit code, and the report."""
    code = evaluate.main([*words, "--device", "cpu"])
    file = Path("test_results/report.json")
    return code, json.loads(file.read_text()) if file.is_file() else {}


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_every_figure_is_that_of_the_pictures_it_leaves_behind(folder, capsys):
    code, found = run("--models", "custom/one:face_enhance=off,other:face_enhance=off", "--seeds", "3,4")
    assert code == 0
    variants = ["bicubic", "custom/one:face_enhance=off", "other:face_enhance=off"]
    assert [(row["photo"], row["seed"], row["variant"]) for row in found["rows"]] == [
        (photo, seed, variant) for photo in ("a", "b/a", "c") for seed in (3, 4) for variant in variants
    ]
    for row in found["rows"]:
        truth = read(f"test_inputs/{row['photo']}.png")
        truth = truth[: len(truth) // 4 * 4, : truth.shape[1] // 4 * 4]
        name = f"{row['photo']}_seed{row['seed']}.png"
        kept = row["variant"].replace("/", "_").replace(":", "_")
        image = read(f"test_results/{kept}/{name}")
        for metric in ("psnr", "ssim"):
            measure = getattr(metrics, metric)
            assert row[metric] == pytest.approx(measure(truth, image, border=4))
            assert row[f"{metric}_y"] == pytest.approx(measure(truth, image, border=4, y=True))
        own = [row["seed"], zlib.crc32(row["photo"].rpartition("/")[2].encode())]
        expected = degradation.degrade(truth, degradation.RECIPES["default"], seed=own)
        np.testing.assert_array_equal(read(f"test_results/input/{name}"), expected)
    for variant in variants:
        own = [row for row in found["rows"] if row["variant"] == variant]
        figures = found["summary"][variant]["ssim"]
        values = [row["ssim"] for row in own]
        assert figures["mean"] == pytest.approx(np.mean(values))
        assert figures["median"] == pytest.approx(np.median(values))
        assert (figures["worst"], figures["count"]) == (min(values), 6)
        means = [np.mean([row["ssim"] for row in own if row["seed"] == seed]) for seed in (3, 4)]
        assert figures["spread"] == pytest.approx(np.std(means, ddof=1))
    lines = csv.DictReader(Path("test_results/report.csv").read_text().splitlines())
    assert [line["ssim"] for line in lines] == [str(row["ssim"]) for row in found["rows"]]
    printed = capsys.readouterr().out
    gain = found["summary"][variants[1]]["psnr"]["mean"] - found["summary"]["bicubic"]["psnr"]["mean"]
    assert f"({gain:+.2f})" in printed
    assert "is not there" in printed, "LPIPS is left out, and that is said"


def test_with_originals_the_inputs_stay_as_they_are(folder, rng):
    truth = photo_like(rng, 90, 70)
    small = truth[1:89:4, 1:69:4]
    for name, image in {"x_LR": small, "y": small, "x_HR": truth, "y_big": truth}.items():
        Path(f"pairs/{name}.png").parent.mkdir(exist_ok=True)
        Path(f"pairs/{name}.png").write_bytes(png(image))
    Path("originals").mkdir()
    Path("originals/y.png").write_bytes(png(truth))
    words = ("--models", "custom/one", "--published")
    code, found = run("pairs/x_LR.png", "--gt", "pairs", *words)
    assert code == 0
    np.testing.assert_array_equal(read("test_results/input/x_LR.png"), small)
    large = degradation.matlab_bicubic(small, 4)
    assert found["rows"][0]["psnr_y"] == pytest.approx(
        metrics.psnr(truth[:88, :68], large, border=4, y=True)
    ), "the original's two rows and columns more are cut off"
    assert run("pairs/y.png", "--gt", "originals", *words)[1]["rows"][0] == {**found["rows"][0], "photo": "y"}
    code, _ = run("pairs/y_big.png", "--gt", "originals", *words)
    assert code == 1, "no original of that name"


def test_pairs_that_do_not_fit_are_refused_and_rounded_ones_are_not(folder, rng):
    truth = photo_like(rng, 129, 161)
    for name, image in {
        "fits": np.ascontiguousarray(truth[2::4, 2::4]),
        "rounded": np.zeros((33, 41, 3), np.uint8),
        "other": truth[:70, :90],
        "cut": truth[:32, :30],
    }.items():
        for place, one in (("LR", image), ("HR", truth)):
            Path(f"{place}/{name}.png").parent.mkdir(exist_ok=True)
            Path(f"{place}/{name}.png").write_bytes(png(one))
    code, found = run("LR", "--gt", "HR", "--models", "custom/one")
    assert code == 1
    assert {row["photo"] for row in found["rows"]} == {"fits", "rounded"}
    assert all("whole number of times" in one for one in found["told"]["failed"])
    for name, height, width in (("fits", 128, 160), ("rounded", 129, 161)):
        image = read(f"test_results/custom_one/{name}.png")
        row = next(row for row in found["rows"] if (row["photo"], row["variant"]) == (name, "custom/one"))
        same = (truth[:height, :width], image[:height, :width])
        assert row["psnr"] == pytest.approx(metrics.psnr(*same, border=4))


def test_pairs_may_lie_in_one_folder_or_in_folders_of_the_same_names(folder, rng):
    first, second = photo_like(rng, 64, 80), photo_like(rng, 64, 96)
    for name, truth in {"a": first, "b": second}.items():
        for place, image in (("LR", truth[2::4, 2::4]), ("HR", truth)):
            for path in (Path(f"{place}/{name}/x.png"), Path(f"one/{name}_{place}.png")):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(np.ascontiguousarray(image)))
    code, apart = run("LR", "--gt", "HR", "--models", "custom/one")
    assert (code, [row["photo"] for row in apart["rows"]]) == (0, ["a/x"] * 2 + ["b/x"] * 2)
    code, together = run("one", "--gt", "one", "--models", "custom/one")
    assert (code, [row["photo"] for row in together["rows"]]) == (0, ["a_LR"] * 2 + ["b_LR"] * 2)
    assert [row["psnr"] for row in apart["rows"]] == [row["psnr"] for row in together["rows"]]
    Path("flat").mkdir()
    Path("flat/x.png").write_bytes(png(first))
    assert run("LR", "--gt", "flat", "--models", "custom/one")[0] == 2, "one original for two photos"


def test_an_original_of_other_depth_or_damaged(folder, rng):
    import imagecodecs

    truth = photo_like(rng, 64, 80).astype(np.uint16) * 257
    small = np.ascontiguousarray(truth[2::4, 2::4])
    for name, (one, two) in {"deep": (small, truth >> 8), "both": (small, truth)}.items():
        for place, image in (("LR", one), ("HR", two)):
            Path(place).mkdir(exist_ok=True)
            kind = np.uint8 if image.max() < 256 else np.uint16
            Path(f"{place}/{name}.png").write_bytes(imagecodecs.png_encode(image.astype(kind)))
    Path("LR/damaged.png").write_bytes(Path("LR/deep.png").read_bytes())
    Path("HR/damaged.png").write_bytes(Path("HR/deep.png").read_bytes()[:300])
    code, found = run("LR", "--gt", "HR", "--models", "custom/one")
    assert code == 1
    assert "its original damaged.png: the PNG file is damaged" in found["told"]["failed"][0]
    deep, both = (
        next(row["psnr"] for row in found["rows"] if (row["photo"], row["variant"]) == (name, "custom/one"))
        for name in ("deep", "both")
    )
    assert deep == pytest.approx(both, abs=0.1)


def test_names_that_differ_by_little_stay_apart(folder, rng):
    Path("names").mkdir()
    for name in ("a.png", "a .png", "A.jpg", "a.tif"):
        Path("names", name).write_bytes(png(photo_like(rng, 40, 40)))
    code, found = run("names", "--models", "custom/one", "-o", "test_results")
    assert code == 0
    names = {row["photo"] for row in found["rows"]}
    assert len(names) == 4
    assert {path.stem for path in Path("test_results/custom_one").iterdir()} == names


def test_photos_too_small_for_a_figure_have_none(folder):
    Path("few.png").write_bytes(png(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)))
    code, found = run("few.png", "--models", "custom/one", "--fail-under", "psnr=1")
    assert code == 1, "what has no figure does not pass"
    assert found["rows"][1]["psnr"] is None
    assert run("few.png", "--models", "custom/one", "--published")[0] == 1, "too few pixels for MATLAB's"


def test_an_older_report_is_not_left_for_a_new_one(folder):
    run("--models", "custom/one")
    assert Path("test_results/report.html").is_file()
    Path("test_inputs/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run("test_inputs/broken.png", "--models", "custom/one") == (1, {})
    assert not Path("test_results/report.html").exists()


def test_of_a_large_picture_the_part_with_most_edges_is_shown(rng):
    image = np.full((2000, 1500, 3), 90, np.uint8)
    image[1500:1600, 900:1000] = rng.integers(0, 256, (100, 100, 3))
    rows, columns = html_report._liveliest(image)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (1200, 800), "upright as the picture is"
    assert rows.start <= 1500 and rows.stop >= 1600 and columns.start <= 900 and columns.stop >= 1000


def test_without_originals(folder, rng):
    Path("large.png").write_bytes(png(photo_like(rng, 200, 300)))
    code, found = run("large.png", "--no-reference", "--scale", "1.5", "--models", "custom/one")
    assert code == 0
    row, image = found["rows"][1], read("test_results/custom_one/large.png")
    assert image.shape == (300, 450, 3)
    assert "psnr" not in row
    before = read("large.png")
    assert row["niqe"] == pytest.approx(metrics.niqe(image))
    assert row["sharpness"] == pytest.approx(metrics.sharpness(image))
    assert row["consistency"] == pytest.approx(metrics.consistency(before, image))
    assert row["blockiness"] == pytest.approx(metrics.blockiness(resample.resize(image, 300, 200)))


def test_published_protocol_makes_photos_small_by_matlabs_bicubic(folder):
    run("test_inputs/a.png", "--published", "--models", "custom/one")
    expected = degradation.matlab_bicubic(read("test_inputs/a.png"), 1 / 4)
    np.testing.assert_array_equal(read("test_results/input/a.png"), expected)


def test_drift_is_of_the_face_that_moved_most():
    from types import SimpleNamespace

    from skimage import data

    from restorer.faces import align, detect, pipeline
    from restorer.images import photo

    scene = np.ascontiguousarray(np.hstack([data.astronaut()[0:256, 96:352]] * 2))
    marks = np.array([(107, 107), (144, 105), (126, 132), (113, 148), (143, 147)], float)
    found = [detect.Detection((0, 0, 9, 9), 0.9, marks + (x, 0)) for x in (0, 256)]
    faces = pipeline.crop_faces(scene, found)
    before = photo.Photo(scene, None, photo.Meta("png"))
    large = np.repeat(np.repeat(scene, 2, 0), 2, 1)
    assert align.magnification(faces[0].affine) > 2

    def drift(pixels: np.ndarray) -> float:
        after = photo.Photo(pixels, None, before.meta)
        return cases.drift(SimpleNamespace(width=1024, before=before, after=after, faces=tuple(faces)))

    still = drift(large)
    assert still < 0.001
    moved = large.copy()
    moved[:, 512:] = np.roll(large[:, 512:], 24, axis=1)
    assert drift(moved) > 20 * still
    assert np.isnan(cases.drift(SimpleNamespace(width=1024, before=before, after=before, faces=())))


@pytest.mark.parametrize(
    ("asked", "code"), [("psnr=1", 0), ("psnr=99", 1), ("ssim=0.999", 1), ("niqe=5", 1), ("drift=9", 1)]
)
def test_a_figure_that_is_too_low_fails(folder, asked, code, capsys):
    assert run("test_inputs/c.png", "--models", "custom/one", "--fail-under", asked)[0] == code
    assert bool(code) == (asked.partition("=")[0] in capsys.readouterr().err)


def test_a_damaged_photo_is_told_and_the_others_are_judged(folder, capsys):
    whole = Path("test_inputs/a.png").read_bytes()
    Path("test_inputs/broken.png").write_bytes(whole[:200])
    Path("test_inputs/tiny.png").write_bytes(png(np.zeros((3, 3, 3), np.uint8)))
    code, found = run("--models", "custom/one")
    assert code == 1
    assert {row["photo"] for row in found["rows"]} == {"a", "b/a", "c"}
    assert [one.partition(":")[0] for one in found["told"]["failed"]] == ["broken", "tiny"]
    assert "broken.png: failed, the PNG file is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["other"], "no photos found"),
        (["--models", "no-such-model"], "there is no model 'no-such-model'"),
        (["--models", "custom/one:denoise=x"], "denoise is 'x'"),
        (["--models", "custom/one:outscale=2"], "use --scale"),
        (["--models", "custom/one:colour=1"], "there is no option 'colour'"),
        (["--models", "custom/one,custom/one"], "would have one name"),
        (["--recipe", "burnt"], "recipe is 'burnt'"),
        (["--scale", "2.5"], "whole number"),
        (["--seeds", "one"], "seeds is 'one'"),
        (["--gt", "nowhere"], "nowhere is not a folder"),
        (["--scale", "0"], "scale is 0.0; it must be from 1 to 8"),
        (["--scale", "nan"], "it must be from 1 to 8"),
        (["--seeds", "-1"], "no seed may be negative"),
        (["--seeds", "1,1"], "there twice"),
        (["--fail-under", "ssim=nan"], "should be like ssim=0.8"),
        (["--no-reference", "--gt", "other"], "--no-reference and --gt contradict each other"),
        (["--gt", "other", "--scale", "2"], "--gt and --scale contradict"),
        (["--published", "--recipe", "heavy"], "--published and --recipe contradict"),
        (["--fail-under", "sharpness=1"], "'sharpness' is no metric to fail for"),
        (["--fail-under", "ssim"], "ssim=0.8"),
    ],
)
def test_wrong_calls_are_told_before_anything_is_done(folder, words, told, capsys):
    code, found = run(*words)
    assert (code, found) == (2, {})
    assert told in capsys.readouterr().err


def test_weights_that_are_missing_end_it_at_once(folder, capsys):
    code, found = run("--models", "RealESRNet_x4plus")
    assert (code, found) == (1, {})
    assert capsys.readouterr().err.count("RealESRNet_x4plus") < 12, "not once a photo"


@pytest.mark.parametrize(
    ("name", "found"),
    [("a_LR", "a_HR"), ("a", "a_HR"), ("b_x4", "b"), ("img_SRF_4_LR", "img_SRF_4_HR"), ("lr", None)],
)
def test_partner(tmp_path, name, found):
    for one in ("a_HR", "b", "img_SRF_4_HR", "control_HR"):
        (tmp_path / f"{one}.png").touch()
    if found is None:
        with pytest.raises(InvalidOption, match="there is no original"):
            cases.find_original(Path("elsewhere") / f"{name}.png", tmp_path)
    else:
        assert cases.find_original(Path("elsewhere") / f"{name}.png", tmp_path).stem == found


def test_photos_are_listed_best_and_worst_first():
    gains = {"a": 0, "b": 3, "c": -2, "d": 1}
    rows = [
        {"photo": photo, "variant": variant, "seed": 0, "psnr": 20 + ord(photo) % 7 + gain}
        for photo, gained in gains.items()
        for variant, gain in (("bicubic", 0), ("x", gained))
    ]
    assert summary.ranked(rows, "x") == [
        ("b", "best of 4"),
        ("c", "worst of 4"),
        ("d", "number 2 of 4"),
        ("a", "number 3 of 4"),
    ]


def test_equal_pictures_make_valid_json():
    row = {"photo": "a", "variant": "x", "seed": 0, "psnr": float("inf"), "drift": float("nan")}
    found = json.loads(summary.as_json([row], {}), parse_constant=pytest.fail)
    assert found["rows"][0]["psnr"] is None
    rows = [{**row, "variant": variant} for variant in ("bicubic", "x")]
    assert "inf" in summary.table(summary.summarise(rows))[-1], "and no gain of nan"


def test_the_page_stands_alone_and_its_slider_moves(folder):
    Path("test_inputs/<i>&.png").write_bytes(Path("test_inputs/a.png").read_bytes())
    assert run("--models", "custom/one")[0] == 0
    page_file = Path("test_results/report.html").resolve()
    assert page_file.read_text().count("http") == page_file.read_text().count("http://www.w3.org"), "of SVG"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 800})
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(page_file.as_uri())
        figure = page.locator("figure").filter(has_text="<i>&")
        assert figure.count() == 1
        seen = figure.locator("img:visible")
        assert [one.get_attribute("data-name") for one in seen.all()] == ["bicubic", "custom/one"]
        figure.get_by_label("left picture", exact=True).select_option("original")
        figure.get_by_label("how much of the left picture").fill("80")
        clipped = figure.locator("img.left")
        assert clipped.get_attribute("data-name") == "original"
        assert "20%" in clipped.evaluate("one => getComputedStyle(one).clipPath")
        box = figure.locator(".compare").bounding_box()
        assert (box["width"], box["height"]) == (96, 64)
        assert page.evaluate("document.documentElement.scrollWidth") <= 900
        assert not wrong
        assert all(url.startswith(("file:", "data:")) for url in asked)
        browser.close()
