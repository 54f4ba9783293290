"""The benchmark's own arithmetic. What it times is not tested here."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from bench import growth, lines, peers, quality, rounds, seam, serving, subjects, table
from restorer.models import architectures


def test_rounds_are_interleaved_with_a_rotating_start():
    called = []
    runs = {name: lambda name=name: called.append(name) or name.upper() for name in "abc"}
    seconds, outputs = rounds.interleaved(runs, rounds=4, keep=lambda out: out * 2)
    assert "".join(called) == "abcbcacababc"
    assert outputs == {"a": "AA", "b": "BB", "c": "CC"}
    assert {name: len(own) for name, own in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_ratio_is_the_median_of_the_rounds():
    result = rounds.summary({"restorer": [1.0, 10.0, 2.0], "peer": [2.0, 30.0, 2.0]})
    assert result["peer"] == {"min": 2.0, "median": 2.0, "ratio": 2.0}  # medians alone would say 1
    assert result["restorer"] == {"min": 1.0, "median": 2.0, "ratio": 1.0}


def test_share_of_the_server_lasts_from_submission_to_the_end_of_the_stream():
    requests = serving._Requests()
    for path, start, end in (
        ("/gradio_api/upload", 0.0, 1.0),
        ("/gradio_api/queue/join", 3.0, 3.5),
        ("/gradio_api/queue/data", 5.0, 9.0),
        ("/gradio_api/file=a.png", 20.0, 20.25),
    ):
        requests.add(path, start, end)
    requests.add("/gradio_api/heartbeat/x", 0.0, 99.0)
    assert requests.seconds == 1 + (9 - 3) + 0.25


@pytest.mark.parametrize(("tile", "context"), [(16, 0), (13, 3), (20, 10), (64, 5)])
def test_tilings_of_peers_equal_the_whole_where_no_context_is_needed(tile, context, rng):
    pixels = rng.integers(0, 256, (50, 33, 3), np.uint8)
    expected = _nearest(peers.planes(pixels))
    cropped = peers.in_tiles(
        pixels, lambda part: peers.levels(_nearest(peers.planes(part))), scale=2, tile=tile, pad=context
    )
    assert np.array_equal(cropped, peers.levels(expected))
    blended = seam.blended(peers.planes(pixels), _nearest, scale=2, tile=tile, overlap=context or 1)
    torch.testing.assert_close(blended, expected)


def test_blended_tiles_are_weighted_by_their_distance_from_the_edge():
    first = iter([0.0, 1.0])
    planes = torch.zeros(1, 3, 4, 12)
    out = seam.blended(planes, lambda part: torch.full_like(part, next(first)), scale=1, tile=8, overlap=4)
    assert out[0, 0, 0].tolist() == pytest.approx([0] * 4 + [0.2, 0.4, 0.6, 0.8] + [1] * 4)


def test_flops_of_known_networks():
    compact = subjects._SHAPES[subjects.GENERAL]
    network = _network(*compact)
    assert subjects.flops(network) == pytest.approx(2.418e6, rel=1e-3)
    assert subjects.flops(nn.Conv2d(3, 8, 3, padding=1)) == 2 * 3 * 8 * 9


@pytest.mark.parametrize("name", subjects._SHAPES)
def test_random_weights_keep_the_light_of_a_picture(name):
    state = subjects._seeded(name)
    shape = architectures.detect(state, name)
    planes = torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        output = architectures.build(shape, state, name)(planes)
    torch.testing.assert_close(output.mean((2, 3)), planes.mean((2, 3)), atol=0.01, rtol=0)


def test_levels_are_clipped_rounded_and_transposed():
    planes = torch.tensor([[[[-1.0, 0.5]], [[0.1, 2.0]], [[1.0, 0.0]]]])
    assert np.array_equal(peers.levels(planes), [[[0, 26, 255], [128, 255, 0]]])
    done = np.zeros((2, 2, 3), np.uint8)
    assert peers.levels(done) is done


def test_wrong_pixels_are_reported():
    contestants = {"good": {"psnr": 61.0}, "bad": {"psnr": 59.0}, "unlike": {"psnr": None}}
    assert lines.wrong({"same_from": 60.0, "contestants": contestants}) == ["bad"]


def test_results_are_compared_without_the_low_frequencies_of_the_network():
    pixels = lines.picture(48)
    larger = cv2.resize(pixels, (192, 192), interpolation=cv2.INTER_CUBIC).clip(20, 230)
    alike, shifted = (lines.matched(result, pixels).astype(int) for result in (larger, larger + 9))
    assert np.abs(alike - shifted).max() <= 1
    darker = lines.matched(larger, pixels // 2)
    assert darker.mean() == pytest.approx(pixels.mean() / 2, abs=1)


@pytest.mark.parametrize(
    ("line", "ratios", "gpu", "missed"),
    [
        (("network", subjects.X4PLUS, "128 x 128"), {"RealESRGANer": 1.41, "ncnn": 1.0}, False, 0),
        (("network", subjects.X4PLUS, "128 x 128"), {"RealESRGANer": 1.39, "ncnn": 0.99}, False, 2),
        (("network", subjects.LITE, "128 x 128"), {"RealESRGANer": 1.1}, False, 0),
        (("file", subjects.GENERAL, "256 x 256"), {"RealESRGANer": 1.49}, False, 1),
        (("file", subjects.GENERAL, "256 x 256, opaque RGBA"), {"RealESRGANer": 2.9}, False, 1),
        (("file", subjects.X4PLUS, "128 x 128, 2x"), {"RealESRGANer": 3.4}, False, 1),
        (("folder", subjects.GENERAL, "8 of 1024 x 1024"), {"RealESRGANer": 4.9}, True, 1),
        (("folder", subjects.GENERAL, "8 of 1024 x 1024"), {"RealESRGANer": 4.9}, False, 0),
        (("network", subjects.X4PLUS, "512 x 512"), {"RealESRGANer": 1.3}, True, 1),
        (("faces", "GFPGAN", "4 faces"), {"GFPGANer": 0.9}, False, 0),
        (("faces", "GFPGAN", "8 faces"), {"GFPGANer": 3.9}, True, 1),
    ],
)
def test_missed_goals_are_listed(line, ratios, gpu, missed):
    contestants = {"restorer": {"median": 0.027, "ratio": 1.0}}
    contestants |= {name: {"median": 0.027 * ratio, "ratio": ratio} for name, ratio in ratios.items()}
    figure, network, photo = line
    line = {"figure": figure, "network": network, "photo": photo, "contestants": contestants}
    assert len(lines.missed(line, gpu=gpu)) == missed


def test_full_run_has_every_size_of_every_network():
    full = lines.every((256, 512))
    assert len(set(full)) == len(full)
    for name in subjects.NAMES:
        assert {line.side for line in full if line.network == name} == {256, 512}
    assert {line.network for line in full if line.twice} == {subjects.X4PLUS}


def test_tables_have_a_row_per_line_and_a_column_per_contestant():
    ours = {"median": 0.5, "min": 0.25, "ratio": 1.0, "gflops": 80.0}
    peer = {"median": 1.25, "min": 1.0, "ratio": 2.5, "gflops": 20.0}
    network = {"figure": "network", "network": "n", "photo": "8 x 8"}
    results = {
        "machine": {
            "device": "CPU",
            "cores": 2,
            "threads": 2,
            "instructions": ["avx2"],
            "versions": {"torch": "2"},
            "matrix_gflops": 160.0,
        },
        "lines": [
            {**network, "contestants": {"peer": peer, "restorer": ours}},
            {**network, "photo": "9 x 9", "contestants": {"restorer": ours}},
        ],
        "memory": [{**network, "contestants": {"restorer": 12.4}}],
        "seams": [{"network": "n", "tiling": "restorer", "tile": 32, "largest": 0, "mean": 0.125}],
        "left_out": {"other": "not here"},
    }
    text = table.markdown(results)
    assert "| network | photo | restorer | peer |\n|---|---|---|---|\n" in text
    assert "| n | 8 x 8 | 0.500 | 1.25 (2.50) |" in text
    assert "| n | 9 x 9 | 0.500 |  |" in text
    assert "| n | 8 x 8 | 80 (50%) | 20 (12%) |" in text
    assert "| n | restorer | 32 | 0 | 0.12 |" in text
    assert "| n | 8 x 8 | 12 |" in text
    assert "Left out: other (not here)" in text


def test_growth_is_fitted_to_full_size_tiles():
    def point(megapixels, memory):
        return growth.Point(megapixels, 2 + 0.5 * megapixels, round(memory), 0)

    points = [point(0.1, 5), *(point(size, 50e6 + 1.5 * 3e6 * size) for size in (1, 5, 50))]
    memory, seconds = growth.fitted(points)
    assert memory == pytest.approx((50e6, 1.5), rel=1e-6)
    assert seconds == pytest.approx((2, 0.5), rel=1e-6)


def _nearest(planes):
    return nn.functional.interpolate(planes, scale_factor=2)


def _network(module, arch, parameters):
    torch.manual_seed(0)
    return subjects.compat.load_attribute(module, arch)(**parameters).eval().requires_grad_(False)


def test_blocks_and_blotches_are_measured(rng):
    smooth = np.full((256, 256, 3), 128, np.uint8) + np.arange(256, dtype=np.uint8)[:, None, None] // 4
    smooth[::2] += 1
    blocky, blotchy = smooth.copy(), smooth.copy()
    blocky += rng.integers(0, 9, (8, 8, 1), np.uint8).repeat(32, 0).repeat(32, 1)
    blotchy[..., 2] += rng.integers(0, 9, (64, 64), np.uint8).repeat(4, 0).repeat(4, 1)
    same, blocks, blotches = (
        quality.figures(image, smooth.copy(), smooth, None, False) for image in (smooth, blocky, blotchy)
    )
    assert same.blocks == 1 and blocks.blocks > 1.2
    assert same.blotches < 1 and blotches.blotches > 3 and blocks.blotches < 1
    assert same.energy == 1 and np.isnan(same.truth) and np.isnan(same.niqe)


def test_a_grid_is_measured(rng):
    noise = rng.integers(120, 136, (256, 256, 3), np.uint8)
    dots, texture = noise.copy(), np.tile(noise[:8, :8], (32, 32, 1))
    dots[3::8, 5::8] = 160
    assert quality.grid(noise) < 1.2 < 2 < min(quality.grid(dots), quality.grid(texture))
