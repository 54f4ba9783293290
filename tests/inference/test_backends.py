"""Every way to compute a network gives the picture that basicsr's own class gives.

Tiny networks with seeded weights cover shapes of which no real weights are installed (2x, 1x, few features),
and what does not depend on weights. Accuracy is judged on real weights.
"""

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from restorer.errors import BadWeights, InvalidOption, OutOfMemory
from restorer.inference import backends, engine
from restorer.models import architectures, loader, registry, sources
from restorer.options import DEVICES
from tests.reference import photos

ROOT = Path(__file__).parents[2]
SHAPES = {
    "compact": ("SRVGGNetCompact", {"num_feat": 20, "num_conv": 3, "upscale": 4, "act_type": "prelu"}, 4, 1),
    "compact x2": (
        "SRVGGNetCompact",
        {"num_feat": 8, "num_conv": 1, "upscale": 2, "act_type": "prelu"},
        2,
        1,
    ),
    "rrdb": ("RRDBNet", {"num_feat": 16, "num_block": 4, "num_grow_ch": 8, "scale": 4}, 4, 1),
    "rrdb x2": ("RRDBNet", {"num_feat": 8, "num_block": 1, "num_grow_ch": 8, "scale": 2}, 2, 2),
    "rrdb x1": ("RRDBNet", {"num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 1}, 1, 4),
}
CPU = backends._PREFERRED["RRDBNet"]


def seeded(kind):
    """A shape and its tensors, large enough that every layer shows in the result."""
    arch, parameters, scale, align = SHAPES[kind]
    shape = architectures.NetworkSpec(arch, parameters, scale, align, pad=4, bytes=1000)
    random = torch.Generator().manual_seed(1)
    network = architectures.create(arch, parameters)
    state = {
        key: torch.randn(tensor.shape, generator=random) / max(1, tensor[0].numel()) ** 0.5
        for key, tensor in network.state_dict().items()
    }
    return shape, state


def picture(height, width, align=1):
    return torch.rand(1, 3, height * align, width * align, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("way", CPU)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_way_gives_the_same_picture(kind, way):
    """Sides that are and are not multiples of Winograd's four, in one strip of windows and in several."""
    shape, state = seeded(kind)
    plain = architectures.build(shape, state, kind)
    run, name = backends.build(way, shape, state, kind)
    assert name == way
    with torch.inference_mode():
        for height, width in ((1, 1), (7, 3), (16, 16), (5, 90), (70, 37), (16, 16)):
            batch = picture(height, width, shape.align)
            expected, found = plain(batch), run(batch)
            assert found.shape == expected.shape
            assert expected.std() > 0.1, "a picture of one colour proves nothing"
            torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@functools.cache
def real(name):
    """An installed network, a photo, and PyTorch's result in float32."""
    state = loader.load(sources.installed(registry.find(name, Path("absent")))).state
    shape = architectures.detect(state, name)
    pixels = np.ascontiguousarray(photos()["chelsea"].transpose(2, 0, 1))
    batch = torch.from_numpy(pixels)[None] / 255
    with torch.inference_mode():
        return shape, state, batch, architectures.build(shape, state, name)(batch)


def decibels(result, expected):
    """PSNR where 1 is white."""
    return float(-10 * (result - expected).double().square().mean().log10())


@pytest.mark.parametrize("way", CPU[:-1])
@pytest.mark.parametrize("name", sources.PACKAGED)
def test_every_backend_agrees_on_real_weights(name, way):
    shape, state, batch, expected = real(name)
    with torch.inference_mode():
        result = backends.build(way, shape, state, name)[0](batch)
    assert decibels(result, expected) > 100  # 120 and more were seen
    assert (result - expected).abs().max() < 1 / 255


@pytest.mark.parametrize("name", sources.PACKAGED)
def test_bfloat16_is_near_on_real_weights(name):
    shape, state, batch, expected = real(name)
    with torch.inference_mode():
        result = backends.build(backends.BFLOAT16, shape, state, name)[0](batch)
    assert 40 < decibels(result, expected) < 70, "near, and not float32"


@pytest.mark.parametrize("kind", SHAPES)
def test_bfloats_are_near_and_only_taken_when_asked_for(kind):
    shape, state = seeded(kind)
    plain = architectures.build(shape, state, kind)
    run, name = backends.build(backends.BFLOAT16, shape, state, kind)
    assert name == backends.BFLOAT16 not in CPU
    batch = picture(40, 30, shape.align)
    with torch.inference_mode():
        expected, found = plain(batch), run(batch)
    assert found.dtype == torch.float32
    far = float((found - expected).abs().max() / expected.abs().max())
    assert 1e-4 < far < 0.05


@pytest.mark.parametrize("way", CPU)
def test_nothing_is_left_of_the_tile_before(way):
    shape, state = seeded("rrdb")
    run, _ = backends.build(way, shape, state, "rrdb")
    with torch.inference_mode():
        alone = run(picture(9, 11)).clone()
        run(picture(9, 11) * 50)
        run(picture(30, 8))
        assert torch.equal(run(picture(9, 11)), alone)


@pytest.mark.parametrize("way", CPU)
def test_not_a_number_is_seen_whatever_the_way(way):
    shape, state = seeded("compact")
    state["body.2.bias"][3] = torch.nan
    run, _ = backends.build(way, shape, state, "compact")
    with pytest.raises(engine.InvalidOutput):
        engine.Engine(run, scale=4, device=torch.device("cpu"))(np.zeros((8, 8, 3), np.uint8))


def test_openvino_compiles_few_sizes_once_and_holds_no_more():
    shape, state = seeded("compact x2")
    run, _ = backends.build("cpu:openvino", shape, state, "compact x2")
    compiled = []
    true = run._core.compile_model
    run._core = mock.Mock()
    run._core.compile_model.side_effect = lambda *given: compiled.append(given) or true(*given)
    for _ in range(3):
        for side in (20, 24, 28, 32):
            run(picture(side, side))
    assert len(compiled) == 4
    run(picture(700, 700))
    run(picture(690, 700))
    assert len(compiled) == 6 and len(run._compiled) == 1, "large ones come with large buffers"


def scripted(monkeypatch, hundredths):
    """Ways that take so long by a clock of their own, always or run by run, and the record of their turns."""
    clock, turns = [0.0], []

    def made(way, *_):
        def run(_picture):
            turns.append(way)
            cost = hundredths[way]
            clock[0] += (cost if isinstance(cost, int | float) else cost[turns.count(way) - 1]) / 100

        return run

    monkeypatch.setattr(backends, "_made", made)
    monkeypatch.setattr(backends, "_CHOSEN", {})
    monkeypatch.setattr(backends.time, "perf_counter", lambda: clock[0])
    return turns


@pytest.mark.parametrize(
    ("winograd", "ncnn", "plain", "expected"),
    [(1, 2, 3, "winograd"), (3, 2, 1, "torch"), (1.1, 1, 1.05, "winograd"), (2, 1, 1.5, "ncnn")],
)
def test_the_fastest_way_is_taken_when_it_is_clearly_faster(monkeypatch, winograd, ncnn, plain, expected):
    ways = {"cpu:winograd": winograd, "cpu:openvino": 9, "cpu:ncnn": ncnn, "cpu:torch": plain}
    turns = scripted(monkeypatch, ways)
    shape, state = seeded("rrdb")
    assert backends.build("cpu", shape, state, "rrdb")[1] == f"cpu:{expected}"
    assert turns[:4] == list(ways), "each at least once"
    assert turns.count("cpu:openvino") == 1, "who is far behind is not tried again"
    rounds = 2 if expected == "winograd" else 9  # more where a choice would change
    assert turns.count("cpu:winograd") == turns.count(f"cpu:{expected}") == rounds
    count = len(turns)
    assert backends.build("cpu", shape, state, "rrdb")[1] == f"cpu:{expected}"
    assert len(turns) == count, "one process tries once"


@pytest.mark.parametrize(
    ("winograd", "runs"),
    [((9, 9, 9, 9, 5), 5), ((400,), 1)],
    ids=["disturbed four times", "no more is tried after three seconds"],
)
def test_a_busy_machine_keeps_to_the_first_way(monkeypatch, winograd, runs):
    turns = scripted(
        monkeypatch, {"cpu:winograd": winograd, "cpu:openvino": 4.5, "cpu:ncnn": 5, "cpu:torch": 5}
    )
    assert backends.build("cpu", *seeded("rrdb"), "rrdb")[1] == "cpu:winograd"
    assert turns.count("cpu:winograd") == runs


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_tried_is_a_shorter_network_of_the_same_kind(kind, monkeypatch):
    monkeypatch.setattr(backends, "_PARTS", 2)
    shape, state = seeded(kind)
    short, kept = backends._sample(shape, state)
    architectures.build(short, kept, "a sample")  # neither a tensor too few nor too many
    parts = {"num_block", "num_conv"} & set(shape.parameters)
    assert all(short.parameters[name] == min(2, shape.parameters[name]) for name in parts)


def test_without_packages_the_others_remain_and_asking_for_it_says_why(monkeypatch):
    seconds = {"cpu:torch": 2.0, "cpu:winograd": 1.0}
    scripted(monkeypatch, seconds)
    monkeypatch.setattr(backends, "_has", lambda package: False)
    assert backends.build("cpu", *seeded("compact"), "compact")[1] == "cpu:winograd"
    monkeypatch.undo()
    monkeypatch.setattr(backends, "_has", lambda package: False)
    with pytest.raises(InvalidOption, match="ncnn is not installed"):
        backends.build("cpu:ncnn", *seeded("compact"), "compact")


def test_a_gpu_that_vulkan_does_not_drive_is_an_error():
    from restorer.inference.backends import ncnn

    if ncnn.gpus():
        run, _ = backends.build("vulkan", *seeded("compact"), "compact")
        assert run(picture(8, 8)).shape == (1, 3, 32, 32)
    else:
        with pytest.raises(InvalidOption, match="vulkan"):
            backends.build("vulkan", *seeded("compact"), "compact")


def test_weights_that_do_not_fit_are_an_error_whatever_the_way():
    for way in ("cpu", *CPU):
        shape, state = seeded("compact")
        del state["body.2.bias"]
        with pytest.raises(BadWeights, match=r"body\.2\.bias is missing"):
            backends.build(way, shape, state, "custom/cut.pth")


def test_a_tile_that_ncnn_gives_up_is_out_of_memory(monkeypatch):
    shape, state = seeded("compact")
    run, _ = backends.build("cpu:ncnn", shape, state, "compact")
    run._output = "no such blob"  # how ncnn says that it did not come to an end: with a number
    with pytest.raises(OutOfMemory):
        engine.Engine(run, scale=4, device=torch.device("cpu"))(np.zeros((8, 8, 3), np.uint8))


def test_an_absent_device_is_an_error_that_names_it():
    with pytest.raises(InvalidOption, match="'cuda:77'"):
        backends.pick_device("cuda:77")
    assert set(backends.NAMES) < set(DEVICES)
    with pytest.raises(InvalidOption, match="'abacus'.*cpu:openvino"):
        backends.pick_device("abacus")
    for name in ("cpu:0", "meta", "hpu", "CPU", "", ["cpu"], b"cpu", "cuda:x"):
        with pytest.raises(InvalidOption, match="the devices are cuda, mps, cpu"):
            backends.pick_device(name)
    for name in ("cpu", *set(backends.NAMES) - {backends.BFLOAT16}):
        assert backends.pick_device(name) == torch.device("cpu")


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_is_refused_where_the_processor_has_no_kernels_for_it(monkeypatch, supported):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: supported)
    if supported:
        assert backends.pick_device(backends.BFLOAT16) == torch.device("cpu")
    else:
        with pytest.raises(InvalidOption, match="cpu:bfloat16 needs a processor .*; use cpu"):
            backends.pick_device(backends.BFLOAT16)


@pytest.mark.parametrize(
    ("onednn", "kernels", "expected"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_bfloat16_needs_onednn_and_its_kernels(monkeypatch, onednn, kernels, expected):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    mkldnn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: kernels)
    monkeypatch.setattr(backends.torch, "ops", SimpleNamespace(mkldnn=mkldnn))
    assert backends.has_bfloat16_kernels() is expected


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sets oneDNN's limit for x86")
def test_a_processor_limited_to_avx2_has_no_bfloat16_kernels():
    code = "from restorer.inference import backends; print(backends.has_bfloat16_kernels())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
