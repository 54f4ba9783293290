"""Cost of photos: prices, the estimates for GPUs, the measurements and the command."""

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


def test_dollars_and_images_per_dollar():
    assert pricing.dollars(2, 0.0003) == pytest.approx(0.0006)
    assert pricing.images_per_dollar(2, 0.0003) == pytest.approx(1666.67, abs=0.01)


def test_every_price_has_a_date_and_a_source():
    table = pricing.prices()
    assert set(table) >= {"T4", "L4", "A10G", "A100", "H100", "H200", "CPU"}
    for name, price in table.items():
        assert 1e-6 < price.usd_per_second < 0.01
        assert price.date.startswith("20") and price.source.startswith("https://")
        assert (name == pricing.CPU) == (price.fp16_tflops == 0) == (price.gb_per_second == 0)


def test_price_overrides():
    table = pricing.prices({"T4": 0.5})
    assert (table["T4"].usd_per_second, table["T4"].fp16_tflops) == (0.5, 65)
    assert table["L4"] == pricing.prices()["L4"]
    with pytest.raises(InvalidOption, match=r"no price for 'T5'; use one of T4, L4"):
        pricing.prices({"T5": 1})
    for invalid in (0, -1, math.nan):
        with pytest.raises(InvalidOption, match="must be above 0"):
            pricing.prices({"T4": invalid})


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
def test_gpu_is_matched_by_its_driver_name(device, name):
    assert pricing.match_gpu(device, pricing.prices()) == name


def test_estimate_is_the_slower_of_arithmetic_and_memory_traffic():
    gpu = Price("X", 0.001, 100, 1000, "", "")
    arithmetic, traffic = Work(35e12, 1e9), Work(1e12, 700e9)
    assert pricing.estimate_seconds(arithmetic, gpu, codec_seconds=0.5) == pytest.approx(1.5)
    assert pricing.estimate_seconds(traffic, gpu, codec_seconds=0.5) == pytest.approx(1.5)
    both = Work(71e12, 702e9)
    assert pricing.estimate_seconds(both, gpu, codec_seconds=0) == pytest.approx(71 / 35)
    faster = Price("Y", 0.001, 200, 2000, "", "")
    assert pricing.estimate_seconds(arithmetic, faster, codec_seconds=0.5) == pytest.approx(1.0)


def test_work_follows_from_the_shapes():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.nn.ReLU())
    image = torch.zeros(1, 3, 10, 20)
    with torch.inference_mode(), benchmark.count_work() as work:
        network(image)
    assert work().flops == 2 * (3 * 9) * 5 * 200  # two for each multiply-add
    convolution = 3 * 200 + 5 * 3 * 9 + 5 * 200
    assert work().bytes == 2 * (convolution + 2 * 5 * 200)


def test_work_of_a_photo_is_that_of_its_tiles(weights):
    tiny = restorer.load("custom/tiny", weights=weights, device="cpu:torch", face_enhance="off")
    data = benchmark.sample(40, 30, face=False)
    with benchmark.count_work() as work:
        tiny.restore(data)
    # 3 x 3 convolutions of 3 → 8, twice 8 → 8, and 8 → 48 channels; the photo is one tile, of which one pixel
    # is computed again with a context of 4
    parameters = 9 * (3 * 8 + 2 * 8 * 8 + 8 * 48)
    assert work().flops == 2 * parameters * (40 * 30 + 9 * 9)


@pytest.mark.parametrize("size", [(33, 47), (360, 240), (900, 100)])
@pytest.mark.parametrize("face", [False, True])
def test_sample_has_the_requested_size(size, face):
    data = benchmark.sample(*size, face=face)
    decoded = photo.decode(data)
    assert (decoded.width, decoded.height, decoded.meta.format) == (*size, "jpeg")
    assert np.ptp(decoded.pixels) > 100


def test_photo_is_timed_with_and_without_a_face(weights):
    devices = []

    def load(device: str = "cpu:ncnn") -> restorer.Restorer:
        tiny = restorer.load("custom/tiny", weights=weights, device=device)
        tiny.networks.cache.loaded["yunet"] = None, two_faces
        tiny.networks.cache.loaded["GFPGANv1.3"] = None, FaceEngine(Negative(), device=torch.device("cpu"))
        devices.append(device)
        return tiny

    plain = benchmark.measure(load, 200, 140, repeats=2)
    faces = benchmark.measure(load, 200, 140, face=True, repeats=2)
    assert (plain.faces, faces.faces) == (0, 2)
    assert devices == ["cpu:ncnn", "cpu:torch"] * 2, "ncnn is timed, torch is counted"
    for timing in (plain, faces):
        assert 0 < timing.codec_seconds < timing.seconds
        assert timing.first > 0 and timing.plan_seconds > 0
        assert timing.work.flops == plain.work.flops > 0, "Negative has no convolution"
    assert faces.work.bytes > plain.work.bytes


@pytest.mark.slow
def test_photo_without_a_detected_face_is_skipped(weights, monkeypatch):
    no_faces = (np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))
    monkeypatch.setattr("restorer.faces.networks.load", lambda *_, **__: lambda _: no_faces)
    options = {"repeats": 1, "log": lambda _: None, "weights": str(weights), "device": "cpu"}
    measured = report.time_models(["custom/tiny"], [(64, 48), (96, 80)], **options)
    assert [(timing.width, timing.faces) for timing in measured.timings] == [(64, 0), (96, 0)]
    assert measured.skipped == [
        "No face was restored in 64 x 48 pixels.",
        "No face was restored in 96 x 80 pixels.",
    ]


def test_rows_are_measured_here_and_estimated_for_other_gpus():
    timing = benchmark.Timing("m", 100, 50, 9000, 0, 3.0, (2.0,), 0.1, 2.1, Work(1e12, 1e9))
    prices = pricing.prices()
    cpu = report.Report("Some CPU", 4, {"m": 1.0}, [timing], []).rows(prices)
    assert [row["device"] for row in cpu if row["how"] == "measured"] == ["CPU"]
    assert cpu[0]["usd_per_image"] == pytest.approx(2 * 4 * prices["CPU"].usd_per_second), "for every core"
    assert {row["device"] for row in cpu[1:]} == set(prices) - {"CPU"}
    for row in cpu[1:]:
        price = prices[row["device"]]
        seconds = pricing.estimate_seconds(timing.work, price, codec_seconds=0.1)
        assert (row["how"], row["seconds"], row["first"]) == ("estimated", seconds, None)
        assert row["images_per_usd"] * row["usd_per_image"] == pytest.approx(1)
    gpu = report.Report("Tesla T4", 0, {}, [timing], []).rows(prices)
    assert gpu[0]["usd_per_image"] == 2 * prices["T4"].usd_per_second
    assert "T4" not in {row["device"] for row in gpu[1:]}, "the measured GPU is not estimated"
    unknown = report.Report("GeForce", 0, {}, [timing], []).rows(prices)
    assert (unknown[0]["device"], unknown[0]["usd_per_image"]) == ("GeForce", None)
    own = report.Report("GeForce", 0, {}, [timing], []).rows(prices, 0.5)
    assert own[0]["usd_per_image"] == 1


@pytest.mark.slow
def test_cost_command_writes_csv_and_plot_with_overridden_prices(weights, tmp_path, capsys):
    table, picture = tmp_path / "out.csv", tmp_path / "out.png"
    arguments = ["cost", "--weights-dir", str(weights), "--device", "cpu", "--models", "custom/tiny"]
    arguments += ["--sizes", "64x48,96x80", "--repeats", "1", "--csv", str(table), "--plot", str(picture)]
    assert main([*arguments, "--price", "T4=0.5", "--price", "0.25"]) == 0
    rows = list(csv.DictReader(table.open()))
    assert {(row["width"], row["height"]) for row in rows} == {("64", "48"), ("96", "80")}
    measured = [row for row in rows if row["how"] == "measured"]
    assert len(measured) == 2
    for row in rows:
        price = {"T4": 0.5, "CPU": 0.25}.get(row["device"]) or pricing.prices()[row["device"]].usd_per_second
        assert float(row["usd_per_image"]) == pytest.approx(float(row["seconds"]) * price)
    out = capsys.readouterr().out
    assert "cold start" in out and "measured" in out and "estimated" in out
    assert "Faces were not timed: yunet is not present" in out
    assert photo.decode(picture.read_bytes()).width > 500


@pytest.mark.slow
def test_measurements_of_another_machine_replace_estimates(weights, tmp_path, capsys):
    timing = benchmark.Timing("custom/tiny", 64, 48, 9000, 0, 3.0, (2.0,), 0.1, 2.1, Work(1e9, 1e9))
    other = report.Report("Tesla T4", 0, {}, [timing], []).rows(pricing.prices())
    file, out = tmp_path / "t4.csv", tmp_path / "out.csv"
    file.write_bytes(tables.to_csv(other))
    assert report.read_measured(file) == [row for row in other if row["how"] == "measured"]
    arguments = ["cost", "--weights-dir", str(weights), "--device", "cpu", "--models", "custom/tiny"]
    arguments += ["--sizes", "64x48", "--repeats", "1", "--csv", str(out), "--measured", str(file)]
    assert main(arguments) == 0
    rows = [row for row in csv.DictReader(out.open()) if row["device"] == "T4"]
    assert [(row["how"], float(row["seconds"])) for row in rows] == [("measured", 2.0)]
    file.write_text("nothing\n")
    assert report.read_measured(file) == []
    assert main([*arguments[:-1], str(tmp_path / "absent.csv")]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "512"], "size is '512'; use 512x512"),
        (["--sizes", "8x8"], "sides of 16 pixels or more"),
        (["--price", "T9=1"], "no price for 'T9'"),
        (["--price", "cheap"], "price is 'cheap'; use 0.0002"),
        (["--price", "-1"], "must be above 0"),
        (["--repeats", "0"], "repeats is 0"),
        (["--models", "nothing"], "unknown model 'nothing'"),
        (["--csv", "nowhere/a.csv"], "cannot be written"),
        (["--plot", "a.txt"], "use .png or .svg"),
    ],
)
def test_invalid_arguments_exit_with_2(weights, arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["cost", "--weights-dir", str(weights), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err
