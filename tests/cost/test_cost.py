"""What photos cost: the arithmetic, the model of other GPUs, what is measured, and the command."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import restorer
from restorer import tables
from restorer.__main__ import main
from restorer.cost import benchmark, pricing, report
from restorer.cost.pricing import Price, Work
from restorer.errors import InvalidOption
from restorer.faces.engine import FaceEngine
from restorer.images import photo
from tests.conftest import save_network
from tests.test_pipeline_faces import Negative, two_faces


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_network(tmp_path / "weights/custom/tiny.safetensors", seed=1, features=8, convs=2)
    return tmp_path / "weights"


def test_money():
    assert pricing.dollars(2, 0.0003) == pytest.approx(0.0006)
    assert pricing.images_per_dollar(2, 0.0003) == pytest.approx(1666.67, abs=0.01)


def test_every_price_says_when_and_where():
    found = pricing.prices()
    assert set(found) >= {"T4", "L4", "A10G", "A100", "H100", "H200", "CPU"}
    for name, price in found.items():
        assert 1e-6 < price.usd_per_second < 0.01
        assert price.date.startswith("20") and price.source.startswith("https://")
        assert (name == pricing.CPU) == (price.fp16_tflops == 0) == (price.gb_per_second == 0)


def test_a_price_of_ones_own():
    found = pricing.prices({"T4": 0.5})
    assert (found["T4"].usd_per_second, found["T4"].fp16_tflops) == (0.5, 65)
    assert found["L4"] == pricing.prices()["L4"]
    with pytest.raises(InvalidOption, match=r"no price for 'T5'; there are prices for T4, L4"):
        pricing.prices({"T5": 1})
    for wrong in (0, -1, math.nan):
        with pytest.raises(InvalidOption, match="must be above 0"):
            pricing.prices({"T4": wrong})


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_gpus_are_known_by_what_their_driver_calls_them(device, name):
    assert pricing.find_price(device, pricing.prices()) == name


def test_estimates_follow_the_slower_of_arithmetic_and_memory():
    gpu = Price("X", 0.001, 100, 1000, "", "")
    arithmetic, traffic = Work(35e12, 1e9), Work(1e12, 700e9)
    assert pricing.estimate_seconds(arithmetic, gpu, elsewhere=0.5) == pytest.approx(1.5)
    assert pricing.estimate_seconds(traffic, gpu, elsewhere=0.5) == pytest.approx(1.5)
    assert pricing.estimate_seconds(arithmetic * 2 + traffic, gpu, elsewhere=0) == pytest.approx(71 / 35)
    twice = Price("Y", 0.001, 200, 2000, "", "")
    assert pricing.estimate_seconds(arithmetic, twice, elsewhere=0.5) == pytest.approx(1.0)


def test_work_is_what_the_shapes_say():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.nn.ReLU())
    image = torch.zeros(1, 3, 10, 20)
    with torch.inference_mode(), benchmark.count_work() as work:
        network(image)
    assert work().flops == 2 * (3 * 9) * 5 * 200
    convolution = 3 * 200 + 5 * 3 * 9 + 5 * 200
    assert work().bytes == 2 * (convolution + 2 * 5 * 200)


def test_work_of_a_photo_is_that_of_its_tiles(weights):
    run = restorer.load("custom/tiny", weights=weights, device="cpu:torch", face_enhance="off")
    data = benchmark.sample(40, 30, face=False)
    with benchmark.count_work() as work:
        run.restore(data)
    # 3 → 8, two of 8 → 8, 8 → 48, each of 3 x 3; the photo is one tile
    weights_used = 9 * (3 * 8 + 2 * 8 * 8 + 8 * 48)
    assert work().flops == 2 * weights_used * 40 * 30


@pytest.mark.parametrize("size", [(33, 47), (360, 240), (900, 100)])
@pytest.mark.parametrize("face", [False, True])
def test_samples_have_the_size_that_was_asked_for(size, face):
    data = benchmark.sample(*size, face=face)
    seen = photo.decode(data)
    assert (seen.width, seen.height, seen.meta.format) == (*size, "jpeg")
    assert np.ptp(seen.pixels) > 100


def test_a_photo_is_timed_with_and_without_a_face(weights):
    made = []

    def fresh(device: str = "cpu:ncnn") -> restorer.Restorer:
        run = restorer.load("custom/tiny", weights=weights, device=device)
        run._faces.loaded["yunet"] = two_faces
        run._faces.loaded["GFPGANv1.3"] = FaceEngine(Negative(), device=torch.device("cpu"))
        made.append(run)
        return run

    plain = benchmark.measure(fresh, 200, 140, repeats=2)
    faces = benchmark.measure(fresh, 200, 140, face=True, repeats=2)
    assert (plain.faces, faces.faces, len(made)) == (0, 2, 4)
    for one in (plain, faces):
        assert 0 < one.elsewhere < one.steady
        assert one.first > 0 and one.quoted > 0
        assert one.work.flops == plain.work.flops, "a Negative multiplies no matrices"
        assert one.work.flops > 0, "torch did it, whose work is counted, though ncnn was timed"
    assert faces.work.bytes > plain.work.bytes


def test_a_photo_whose_face_was_not_found_is_no_second_one_without(weights, monkeypatch):
    none = (np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))
    monkeypatch.setattr("restorer.faces.networks.load", lambda *_, **__: lambda _: none)
    asked = {"repeats": 1, "told": lambda _: None, "weights": str(weights), "device": "cpu"}
    measured = report.time_models(["custom/tiny"], [(64, 48), (96, 80)], **asked)
    assert [(one.width, one.faces) for one in measured.timings] == [(64, 0), (96, 0)]
    assert [told[:26] for told in measured.left] == [
        "No face was restored in 64",
        "No face was restored in 96",
    ]


def test_rows_say_what_was_measured_and_what_was_not():
    done = benchmark.Timing("m", 100, 50, 9000, 0, 3.0, (2.0,), 0.1, 2.1, Work(1e12, 1e9))
    prices = pricing.prices()
    cpu = report.Report("Some CPU", 4, {"m": 1.0}, [done], []).rows(prices)
    assert [row["device"] for row in cpu if row["how"] == "measured"] == ["CPU"]
    assert cpu[0]["usd_per_image"] == pytest.approx(2 * 4 * prices["CPU"].usd_per_second), "of every core"
    assert {row["device"] for row in cpu[1:]} == set(prices) - {"CPU"}
    for row in cpu[1:]:
        price = prices[row["device"]]
        seconds = pricing.estimate_seconds(done.work, price, elsewhere=0.1)
        assert (row["how"], row["seconds"], row["first"]) == ("estimated", seconds, None)
        assert row["images_per_usd"] * row["usd_per_image"] == pytest.approx(1)
    gpu = report.Report("Tesla T4", 0, {}, [done], []).rows(prices)
    assert gpu[0]["usd_per_image"] == 2 * prices["T4"].usd_per_second
    assert "T4" not in {row["device"] for row in gpu[1:]}, "what was measured is not estimated too"
    unknown = report.Report("GeForce", 0, {}, [done], []).rows(prices)
    assert (unknown[0]["device"], unknown[0]["usd_per_image"]) == ("GeForce", None)
    own = report.Report("GeForce", 0, {}, [done], []).rows(prices, 0.5)
    assert own[0]["usd_per_image"] == 1


def test_the_command(weights, tmp_path, capsys):
    table, picture = tmp_path / "out.csv", tmp_path / "out.png"
    words = ["cost", "--weights-dir", str(weights), "--device", "cpu", "--models", "custom/tiny"]
    words += ["--sizes", "64x48,96x80", "--repeats", "1", "--csv", str(table), "--plot", str(picture)]
    assert main([*words, "--price", "T4=0.5", "--price", "0.25"]) == 0
    rows = list(csv.DictReader(table.open()))
    assert {(row["width"], row["height"]) for row in rows} == {("64", "48"), ("96", "80")}
    measured = [row for row in rows if row["how"] == "measured"]
    assert len(measured) == 2
    for row in rows:
        price = {"T4": 0.5, "CPU": 0.25}.get(row["device"]) or pricing.prices()[row["device"]].usd_per_second
        assert float(row["usd_per_image"]) == pytest.approx(float(row["seconds"]) * price)
    told = capsys.readouterr().out
    assert "cold start" in told and "measured" in told and "estimated" in told
    assert "Faces were not timed: yunet is not present" in told
    assert photo.decode(picture.read_bytes()).width > 500


def test_what_another_machine_measured_takes_the_place_of_estimates(weights, tmp_path, capsys):
    done = benchmark.Timing("custom/tiny", 64, 48, 9000, 0, 3.0, (2.0,), 0.1, 2.1, Work(1e9, 1e9))
    other = report.Report("Tesla T4", 0, {}, [done], []).rows(pricing.prices())
    file, out = tmp_path / "t4.csv", tmp_path / "out.csv"
    file.write_bytes(tables.to_csv(other))
    assert report.read_measured(file) == [row for row in other if row["how"] == "measured"]
    words = ["cost", "--weights-dir", str(weights), "--device", "cpu", "--models", "custom/tiny"]
    words += ["--sizes", "64x48", "--repeats", "1", "--csv", str(out), "--measured", str(file)]
    assert main(words) == 0
    rows = [row for row in csv.DictReader(out.open()) if row["device"] == "T4"]
    assert [(row["how"], float(row["seconds"])) for row in rows] == [("measured", 2.0)]
    file.write_text("nothing\n")
    assert report.read_measured(file) == []
    assert main([*words[:-1], str(tmp_path / "absent.csv")]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sizes", "512"], "the size '512' should be like 512x512"),
        (["--sizes", "8x8"], "from 16 pixels"),
        (["--price", "T9=1"], "no price for 'T9'"),
        (["--price", "cheap"], "should be like 0.0002"),
        (["--price", "-1"], "must be above 0"),
        (["--repeats", "0"], "repeats is 0"),
        (["--models", "nothing"], "there is no model 'nothing'"),
        (["--csv", "nowhere/a.csv"], "cannot be written"),
        (["--plot", "a.txt"], "neither .png nor .svg"),
    ],
)
def test_wrong_calls(weights, words, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["cost", "--weights-dir", str(weights), "--device", "cpu", *words]) == 2
    assert told in capsys.readouterr().err
