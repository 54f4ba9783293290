"""evaluate.py, from the command line to the HTML report, with small seeded networks."""

import csv
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

import evaluate
from restorer import Options, tables
from restorer.errors import InvalidOption
from restorer.evaluation import cases, degradation, html_report, metrics, summary
from restorer.images import resample
from tests.conftest import photo_like, png, refuse_to_list, save_network
from tests.web.browsing import CHROMIUM


@pytest.fixture
def folder(tmp_path, rng, monkeypatch) -> Path:
    """Three photos in test_inputs/, the model custom/one, and custom/two in the weights folder other/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path / "weights"))
    save_network(tmp_path / "weights/custom/one.safetensors", seed=1)
    save_network(tmp_path / "other/custom/two.safetensors", seed=2)
    for name, (height, width) in {"a": (64, 96), "b/a": (97, 66), "c": (72, 72)}.items():
        path = tmp_path / f"test_inputs/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(photo_like(rng, height, width)))
    return tmp_path


def run(*arguments: str) -> tuple[int, dict]:
    """Return the exit status and the report."""
    code = evaluate.main([*arguments, "--device", "cpu"])
    file = Path("test_results/report.json")
    return code, json.loads(file.read_text()) if file.is_file() else {}


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_reported_metrics_match_the_written_images(folder, capsys):
    code, report = run("--models", "custom/one:face_enhance=off,other:face_enhance=off", "--seeds", "3,4")
    assert code == 0
    variants = ["bicubic", "custom/one:face_enhance=off", "other:face_enhance=off"]
    assert [(row["photo"], row["seed"], row["variant"]) for row in report["rows"]] == [
        (photo, seed, variant) for photo in ("a", "b/a", "c") for seed in (3, 4) for variant in variants
    ]
    for row in report["rows"]:
        truth = read(f"test_inputs/{row['photo']}.png")
        truth = truth[: len(truth) // 4 * 4, : truth.shape[1] // 4 * 4]
        name = f"{row['photo']}_seed{row['seed']}.png"
        variant_folder = row["variant"].replace("/", "_").replace(":", "_")
        image = read(f"test_results/{variant_folder}/{name}")
        for metric in ("psnr", "ssim"):
            measure = getattr(metrics, metric)
            assert row[metric] == pytest.approx(measure(truth, image, border=4))
            assert row[f"{metric}_y"] == pytest.approx(measure(truth, image, border=4, y=True))
        seed = [row["seed"], zlib.crc32(row["photo"].rpartition("/")[2].encode())]
        expected = degradation.degrade(truth, degradation.RECIPES["default"], seed=seed)
        np.testing.assert_array_equal(read(f"test_results/input/{name}"), expected)
    for variant in variants:
        own = [row for row in report["rows"] if row["variant"] == variant]
        statistics = report["summary"][variant]["ssim"]
        values = [row["ssim"] for row in own]
        assert statistics["mean"] == pytest.approx(np.mean(values))
        assert statistics["median"] == pytest.approx(np.median(values))
        assert (statistics["worst"], statistics["count"]) == (min(values), 6)
        means = [np.mean([row["ssim"] for row in own if row["seed"] == seed]) for seed in (3, 4)]
        assert statistics["spread"] == pytest.approx(np.std(means, ddof=1))
    lines = csv.DictReader(Path("test_results/report.csv").read_text().splitlines())
    assert [line["ssim"] for line in lines] == [str(row["ssim"]) for row in report["rows"]]
    printed = capsys.readouterr().out
    gain = report["summary"][variants[1]]["psnr"]["mean"] - report["summary"]["bicubic"]["psnr"]["mean"]
    assert f"({gain:+.2f})" in printed
    assert "LPIPS: skipped" in printed


def test_photos_with_originals_are_not_degraded(folder, rng):
    truth = photo_like(rng, 90, 70)
    small = truth[1:89:4, 1:69:4]
    for name, image in {"x_LR": small, "y": small, "x_HR": truth, "y_big": truth}.items():
        Path(f"pairs/{name}.png").parent.mkdir(exist_ok=True)
        Path(f"pairs/{name}.png").write_bytes(png(image))
    Path("originals").mkdir()
    Path("originals/y.png").write_bytes(png(truth))
    options = ("--models", "custom/one", "--published")
    code, report = run("pairs/x_LR.png", "--gt", "pairs", *options)
    assert code == 0
    np.testing.assert_array_equal(read("test_results/input/x_LR.png"), small)
    large = degradation.matlab_bicubic(small, 4)
    assert report["rows"][0]["psnr_y"] == pytest.approx(
        metrics.psnr(truth[:88, :68], large, border=4, y=True)
    ), "the original's two extra rows and columns are cropped"
    assert run("pairs/y.png", "--gt", "originals", *options)[1]["rows"][0] == {
        **report["rows"][0],
        "photo": "y",
    }
    code, _ = run("pairs/y_big.png", "--gt", "originals", *options)
    assert code == 1, "no original has that name"


def test_pairs_whose_sizes_do_not_match_fail_and_rounded_sizes_pass(folder, rng):
    truth = photo_like(rng, 129, 161)
    for name, image in {
        "fits": np.ascontiguousarray(truth[2::4, 2::4]),
        "rounded": np.zeros((33, 41, 3), np.uint8),
        "other": truth[:70, :90],
        "cut": truth[:32, :30],
    }.items():
        for side, pixels in (("LR", image), ("HR", truth)):
            Path(f"{side}/{name}.png").parent.mkdir(exist_ok=True)
            Path(f"{side}/{name}.png").write_bytes(png(pixels))
    code, report = run("LR", "--gt", "HR", "--models", "custom/one")
    assert code == 1
    assert {row["photo"] for row in report["rows"]} == {"fits", "rounded"}
    assert all("same whole multiple" in reason for reason in report["provenance"]["failed"])
    for name, height, width in (("fits", 128, 160), ("rounded", 129, 161)):
        image = read(f"test_results/custom_one/{name}.png")
        row = next(row for row in report["rows"] if (row["photo"], row["variant"]) == (name, "custom/one"))
        expected = metrics.psnr(truth[:height, :width], image[:height, :width], border=4)
        assert row["psnr"] == pytest.approx(expected)


def test_pairs_match_within_one_folder_and_across_mirrored_folders(folder, rng):
    first, second = photo_like(rng, 64, 80), photo_like(rng, 64, 96)
    for name, truth in {"a": first, "b": second}.items():
        for side, image in (("LR", truth[2::4, 2::4]), ("HR", truth)):
            for path in (Path(f"{side}/{name}/x.png"), Path(f"one/{name}_{side}.png")):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(np.ascontiguousarray(image)))
    code, apart = run("LR", "--gt", "HR", "--models", "custom/one")
    assert (code, [row["photo"] for row in apart["rows"]]) == (0, ["a/x"] * 2 + ["b/x"] * 2)
    code, together = run("one", "--gt", "one", "--models", "custom/one")
    assert (code, [row["photo"] for row in together["rows"]]) == (0, ["a_LR"] * 2 + ["b_LR"] * 2)
    assert [row["psnr"] for row in apart["rows"]] == [row["psnr"] for row in together["rows"]]
    Path("flat").mkdir()
    Path("flat/x.png").write_bytes(png(first))
    assert run("LR", "--gt", "flat", "--models", "custom/one")[0] == 2, "two photos share an original"


def test_original_of_another_bit_depth_is_compared_and_damaged_original_fails(folder, rng):
    import imagecodecs

    truth = photo_like(rng, 64, 80).astype(np.uint16) * 257
    small = np.ascontiguousarray(truth[2::4, 2::4])
    for name, (low, high) in {"deep": (small, truth >> 8), "both": (small, truth)}.items():
        for side, image in (("LR", low), ("HR", high)):
            Path(side).mkdir(exist_ok=True)
            dtype = np.uint8 if image.max() < 256 else np.uint16
            Path(f"{side}/{name}.png").write_bytes(imagecodecs.png_encode(image.astype(dtype)))
    Path("LR/damaged.png").write_bytes(Path("LR/deep.png").read_bytes())
    Path("HR/damaged.png").write_bytes(Path("HR/deep.png").read_bytes()[:300])
    code, report = run("LR", "--gt", "HR", "--models", "custom/one")
    assert code == 1
    assert "original damaged.png: the PNG file is damaged" in report["provenance"]["failed"][0]
    deep, both = (
        next(row["psnr"] for row in report["rows"] if (row["photo"], row["variant"]) == (name, "custom/one"))
        for name in ("deep", "both")
    )
    assert deep == pytest.approx(both, abs=0.1)


def test_photos_with_similar_names_get_separate_results(folder, rng):
    Path("names").mkdir()
    for name in ("a.png", "a .png", "A.jpg", "a.tif"):
        Path("names", name).write_bytes(png(photo_like(rng, 40, 40)))
    code, report = run("names", "--models", "custom/one", "-o", "test_results")
    assert code == 0
    names = {row["photo"] for row in report["rows"]}
    assert len(names) == 4
    assert {path.stem for path in Path("test_results/custom_one").iterdir()} == names


def test_photo_too_small_for_a_metric_fails_its_threshold(folder):
    Path("few.png").write_bytes(png(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)))
    code, report = run("few.png", "--models", "custom/one", "--fail-under", "psnr=1")
    assert code == 1, "a missing metric is below any threshold"
    assert report["rows"][1]["psnr"] is None
    assert run("few.png", "--models", "custom/one", "--published")[0] == 1, "too few pixels for MATLAB"


def test_stale_report_is_deleted_when_every_photo_fails(folder):
    run("--models", "custom/one")
    assert Path("test_results/report.html").is_file()
    Path("test_inputs/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run("test_inputs/broken.png", "--models", "custom/one") == (1, {})
    assert not Path("test_results/report.html").exists()


def test_large_image_is_cropped_to_where_most_edges_are(rng):
    image = np.full((2000, 1500, 3), 90, np.uint8)
    image[1500:1600, 900:1000] = rng.integers(0, 256, (100, 100, 3))
    rows, columns = html_report._most_detailed_crop(image)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (1200, 800), "portrait, as the image is"
    assert rows.start <= 1500 and rows.stop >= 1600 and columns.start <= 900 and columns.stop >= 1000
    for height, width in ((4, 1204), (1, 2000), (1300, 3)):
        narrow = np.zeros((height, width, 3), np.uint8)
        assert max(narrow[html_report._most_detailed_crop(narrow)].shape) == 1200


def test_no_reference_metrics_match_the_written_image(folder, rng):
    Path("large.png").write_bytes(png(photo_like(rng, 200, 300)))
    code, report = run("large.png", "--no-reference", "--scale", "1.5", "--models", "custom/one")
    assert code == 0
    row, image = report["rows"][1], read("test_results/custom_one/large.png")
    assert image.shape == (300, 450, 3)
    assert "psnr" not in row
    before = read("large.png")
    assert row["niqe"] == pytest.approx(metrics.niqe(image))
    assert row["sharpness"] == pytest.approx(metrics.sharpness(image))
    assert row["consistency"] == pytest.approx(metrics.consistency(before, image))
    assert row["blockiness"] == pytest.approx(metrics.blockiness(resample.resize(image, 300, 200)))


def test_published_protocol_downscales_by_matlab_bicubic(folder):
    run("test_inputs/a.png", "--published", "--models", "custom/one")
    expected = degradation.matlab_bicubic(read("test_inputs/a.png"), 1 / 4)
    np.testing.assert_array_equal(read("test_results/input/a.png"), expected)


def test_drift_is_that_of_the_face_that_moved_most():
    from types import SimpleNamespace

    from skimage import data

    from restorer.faces import align, detect, pipeline
    from restorer.images import photo

    scene = np.ascontiguousarray(np.hstack([data.astronaut()[0:256, 96:352]] * 2))
    landmarks = np.array([(107, 107), (144, 105), (126, 132), (113, 148), (143, 147)], float)
    detections = [detect.Detection((0, 0, 9, 9), 0.9, landmarks + (x, 0)) for x in (0, 256)]
    faces = pipeline.crop_faces(scene, detections)
    options = Options(outscale=2)
    large = np.repeat(np.repeat(scene, 2, 0), 2, 1)
    assert align.magnification(faces[0].affine) > 2

    def drift(pixels: np.ndarray) -> float:
        after = photo.Photo(pixels, None, photo.Meta("png"))
        return cases.drift(SimpleNamespace(options=options, after=after, faces=tuple(faces)))

    still = drift(large)
    assert still < 0.001
    moved = large.copy()
    moved[:, 512:] = np.roll(large[:, 512:], 24, axis=1)
    assert drift(moved) > 20 * still
    assert np.isnan(cases.drift(SimpleNamespace(options=options, faces=())))


@pytest.mark.parametrize(
    ("threshold", "code"), [("psnr=1", 0), ("psnr=99", 1), ("ssim=0.999", 1), ("niqe=5", 1), ("drift=9", 1)]
)
def test_mean_below_its_threshold_exits_with_1(folder, threshold, code, capsys):
    assert run("test_inputs/c.png", "--models", "custom/one", "--fail-under", threshold)[0] == code
    assert bool(code) == (threshold.partition("=")[0] in capsys.readouterr().err)


def test_damaged_photo_is_reported_and_the_others_are_evaluated(folder, capsys):
    data = Path("test_inputs/a.png").read_bytes()
    Path("test_inputs/broken.png").write_bytes(data[:200])
    Path("test_inputs/tiny.png").write_bytes(png(np.zeros((3, 3, 3), np.uint8)))
    code, report = run("--models", "custom/one")
    assert code == 1
    assert {row["photo"] for row in report["rows"]} == {"a", "b/a", "c"}
    assert [reason.partition(":")[0] for reason in report["provenance"]["failed"]] == ["broken", "tiny"]
    assert "broken.png: failed, the PNG file is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["other"], "no photos found"),
        (["--models", "no-such-model"], "unknown model 'no-such-model'"),
        (["--models", "custom/one:denoise=x"], "denoise is 'x'; use a number"),
        (["--models", "custom/one:long_side=90"], "long_side cannot be set for a model; use --scale"),
        (["--models", "custom/one:print_size=9x6cm"], "print_size cannot be set for a model; use --scale"),
        (["--models", "custom/one:outscale=2"], "use --scale"),
        (["--models", "custom/one:hue=1"], "unknown option 'hue'"),
        (["--models", "custom/one,custom/one"], "have the same folder name"),
        (["--recipe", "burnt"], "unknown recipe 'burnt'; use one of default, heavy"),
        (["--scale", "2.5"], "whole number"),
        (["--seeds", "one"], "seeds is 'one'"),
        (["--gt", "nowhere"], "nowhere is not a folder"),
        (["--scale", "0"], "scale is 0.0; use 1 to 8"),
        (["--scale", "nan"], "scale is nan; use 1 to 8"),
        (["--seeds", "-1"], "seeds is '-1'; use distinct numbers of 0 or more"),
        (["--seeds", "1,1"], "use distinct numbers"),
        (["--fail-under", "ssim=nan"], "threshold is 'ssim=nan'; use ssim=0.8"),
        (["--no-reference", "--gt", "other"], "--no-reference and --gt contradict each other"),
        (["--gt", "other", "--scale", "2"], "--gt and --scale contradict"),
        (["--published", "--recipe", "heavy"], "--published and --recipe contradict"),
        (["--fail-under", "sharpness=1"], "no threshold for 'sharpness'; use one of psnr"),
        (["--fail-under", "ssim"], "use ssim=0.8"),
    ],
)
def test_invalid_arguments_fail_before_any_photo(folder, arguments, message, capsys):
    code, report = run(*arguments)
    assert (code, report) == (2, {})
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_named_and_fails(folder, monkeypatch, capsys):
    (folder / "test_inputs/closed").mkdir()
    refuse_to_list(monkeypatch, "closed")
    code, report = run("--models", "custom/one:face_enhance=off")
    assert code == 1 and report["summary"]
    assert "closed: failed, Permission denied" in capsys.readouterr().err


def test_missing_weights_stop_the_run(folder, capsys):
    code, report = run("--models", "RealESRNet_x4plus")
    assert (code, report) == (1, {})
    assert capsys.readouterr().err.count("RealESRNet_x4plus") < 12, "reported once, not for each photo"


@pytest.mark.parametrize(
    ("name", "original"),
    [("a_LR", "a_HR"), ("a", "a_HR"), ("b_x4", "b"), ("img_SRF_4_LR", "img_SRF_4_HR"), ("lr", None)],
)
def test_find_original_ignores_pair_suffixes(tmp_path, name, original):
    for stem in ("a_HR", "b", "img_SRF_4_HR", "control_HR"):
        (tmp_path / f"{stem}.png").touch()
    if original is None:
        with pytest.raises(InvalidOption, match="no original in"):
            cases.find_original(Path("elsewhere") / f"{name}.png", tmp_path)
    else:
        assert cases.find_original(Path("elsewhere") / f"{name}.png", tmp_path).stem == original


def test_photos_are_ranked_from_both_ends():
    gains = {"a": 0, "b": 3, "c": -2, "d": 1}
    rows = [
        {"photo": photo, "variant": variant, "seed": 0, "psnr": 20 + ord(photo) % 7 + gain}
        for photo, gained in gains.items()
        for variant, gain in (("bicubic", 0), ("x", gained))
    ]
    assert summary.rank_photos(rows, "x") == [
        ("b", "best of 4"),
        ("c", "worst of 4"),
        ("d", "number 2 of 4"),
        ("a", "number 3 of 4"),
    ]


def test_infinite_psnr_gives_valid_json():
    row = {"photo": "a", "variant": "x", "seed": 0, "psnr": float("inf"), "drift": float("nan")}
    report = json.loads(summary.to_json([row], {}), parse_constant=pytest.fail)
    assert report["rows"][0]["psnr"] is None
    rows = [{**row, "variant": variant} for variant in ("bicubic", "x")]
    assert "inf" in summary.table(summary.summarise(rows))[-1], "without a gain of nan"


def test_names_that_are_not_utf_8_are_escaped():
    row = {"photo": os.fsdecode(b"caf\xe9.png"), "variant": "x", "seed": 0, "psnr": 30.0}
    assert rb"caf\udce9.png" in tables.to_csv([row])
    assert rb"caf\udce9.png" in summary.to_json([row], {})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_page_is_self_contained_and_its_slider_moves(folder):
    Path("test_inputs/<i>&.png").write_bytes(Path("test_inputs/a.png").read_bytes())
    assert run("--models", "custom/one")[0] == 0
    page_file = Path("test_results/report.html").resolve()
    assert page_file.read_text().count("http") == page_file.read_text().count("http://www.w3.org"), (
        "only SVG namespaces"
    )
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 800})
        urls, errors = [], []
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_file.as_uri())
        figure = page.locator("figure").filter(has_text="<i>&")
        assert figure.count() == 1
        visible = figure.locator("img:visible")
        assert [image.get_attribute("data-name") for image in visible.all()] == ["bicubic", "custom/one"]
        figure.get_by_label("left image", exact=True).select_option("original")
        figure.get_by_label("visible part of the left image").fill("80")
        clipped = figure.locator("img.left")
        assert clipped.get_attribute("data-name") == "original"
        assert "20%" in clipped.evaluate("image => getComputedStyle(image).clipPath")
        box = figure.locator(".compare").bounding_box()
        assert (box["width"], box["height"]) == (96, 64)
        assert page.evaluate("document.documentElement.scrollWidth") <= 900
        assert not errors
        assert all(url.startswith(("file:", "data:")) for url in urls)
        browser.close()
