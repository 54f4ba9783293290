"""Weights files of every format, written from seeded networks and compared with those networks."""

import collections
import functools
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from restorer.errors import BadWeights
from restorer.models import architectures, compat

RRDB = {"num_feat": 8, "num_block": 2, "num_grow_ch": 4, "scale": 4}
COMPACT = {"num_feat": 6, "num_conv": 3, "upscale": 4, "act_type": "prelu"}
MODULES = {"RRDBNet": "basicsr.archs.rrdbnet_arch", "SRVGGNetCompact": "basicsr.archs.srvgg_arch"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: on tensors this small, synchronisation costs more than threads save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def network_class(arch: str) -> type:
    return compat.load_attribute(MODULES[arch], arch)


def network(arch: str, parameters: dict, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    result = network_class(arch)(num_in_ch=3, num_out_ch=3, **parameters)
    for parameter in result.parameters():  # biases and slopes too, which are constant by default
        nn.init.uniform_(parameter, -0.2, 0.2)
    return result.eval()


def save(state: Any, path: Path) -> Path:
    if path.suffix.lower() == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def load(path: Path) -> tuple[architectures.NetworkSpec, nn.Module]:
    state = architectures.read_state(path)
    spec = architectures.detect(state, path.stem)
    return spec, architectures.build(spec, state, path.stem).eval()


def assert_same_output(first: nn.Module, second: nn.Module) -> torch.Tensor:
    image = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        out = first(image)
        assert torch.equal(second(image), out)
    return out


@pytest.mark.parametrize(
    ("scale", "features", "blocks", "growth"), [(4, 8, 2, 4), (2, 12, 1, 6), (1, 4, 3, 2), (4, 64, 1, 32)]
)
def test_rrdbnet_spec_is_detected_from_tensor_shapes(scale, features, blocks, growth, tmp_path):
    parameters = {"num_feat": features, "num_block": blocks, "num_grow_ch": growth, "scale": scale}
    original = network("RRDBNet", parameters)
    spec, built = load(save({"params_ema": original.state_dict()}, tmp_path / "net.pth"))
    assert (spec.arch, spec.parameters, spec.scale) == ("RRDBNet", parameters, scale)
    assert spec.align == {4: 1, 2: 2, 1: 4}[scale]
    out = assert_same_output(original, built)
    assert out.shape == (1, 3, 8 * scale, 12 * scale)


@pytest.mark.parametrize(
    ("scale", "features", "convs"), [(4, 6, 3), (2, 16, 1), (1, 4, 2), (3, 5, 0), (8, 64, 16)]
)
def test_compact_spec_is_detected_from_tensor_shapes(scale, features, convs, tmp_path):
    parameters = {"num_feat": features, "num_conv": convs, "upscale": scale, "act_type": "prelu"}
    original = network("SRVGGNetCompact", parameters)
    spec, built = load(save({"params": original.state_dict()}, tmp_path / "net.pth"))
    assert (spec.arch, spec.parameters, spec.scale) == ("SRVGGNetCompact", parameters, scale)
    assert spec.align == 1
    out = assert_same_output(original, built)
    assert out.shape == (1, 3, 8 * scale, 12 * scale)


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "bare", "both", "ordered", "module"])
def test_pth_state_dict_is_read_from_any_wrapper(wrapper, tmp_path):
    original, other = network("SRVGGNetCompact", COMPACT), network("SRVGGNetCompact", COMPACT, seed=1)
    state = original.state_dict()
    checkpoint = {
        "bare": dict(state),
        "both": {"params": other.state_dict(), "params_ema": state},
        "ordered": collections.OrderedDict(state),
        "module": {f"module.{key}": tensor for key, tensor in state.items()},
    }.get(wrapper, {wrapper: state})
    assert_same_output(original, load(save(checkpoint, tmp_path / "net.pth"))[1])


def test_legacy_pth_format_is_read(tmp_path):
    original = network("SRVGGNetCompact", COMPACT)
    torch.save(original.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert_same_output(original, load(tmp_path / "net.pth")[1])


@pytest.mark.parametrize("name", ["net.safetensors", "NET.SAFETENSORS", "half.pth", "half.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_floating_point_tensors_are_converted_to_float32(name, dtype, tmp_path):
    original = network("SRVGGNetCompact", COMPACT).to(dtype)
    built = load(save(original.state_dict(), tmp_path / name))[1]
    assert {tensor.dtype for tensor in built.state_dict().values()} == {torch.float32}
    assert_same_output(original.float(), built)


class OldRRDB(nn.Module):
    """The ESRGAN network of 2018 with its original key names (its architecture.py and block.py)."""

    def __init__(self, features: int, blocks: int, grow: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, 1, 1)

        def up() -> tuple[nn.Module, ...]:
            return nn.Upsample(scale_factor=2, mode="nearest"), conv(features, features), nn.LeakyReLU(0.2)

        trunk = nn.Sequential(*(Triple(features, grow) for _ in range(blocks)), conv(features, features))
        last = conv(features, features), nn.LeakyReLU(0.2), conv(features, 3)
        self.model = nn.Sequential(conv(3, features), Shortcut(trunk), *up(), *up(), *last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class Shortcut(nn.Module):
    def __init__(self, sub: nn.Module) -> None:
        super().__init__()
        self.sub = sub

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.sub(x)


class Triple(nn.Module):
    def __init__(self, features: int, grow: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = (Dense(features, grow) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.RDB3(self.RDB2(self.RDB1(x))) * 0.2 + x


class Dense(nn.Module):
    def __init__(self, features: int, grow: int) -> None:
        super().__init__()
        for number in range(1, 6):
            layers = [nn.Conv2d(features + (number - 1) * grow, grow if number < 5 else features, 3, 1, 1)]
            setattr(self, f"conv{number}", nn.Sequential(*layers, *[nn.LeakyReLU(0.2)] * (number < 5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [x]
        for number in range(1, 6):
            outputs.append(getattr(self, f"conv{number}")(torch.cat(outputs, 1)))
        return outputs[-1] * 0.2 + x


def test_old_esrgan_keys_are_renamed(tmp_path):
    torch.manual_seed(3)
    old = OldRRDB(features=8, blocks=2, grow=4).eval()
    assert {
        "model.0.weight",
        "model.1.sub.0.RDB1.conv1.0.weight",
        "model.1.sub.2.bias",
        "model.10.bias",
    } <= set(old.state_dict())
    spec, built = load(save(old.state_dict(), tmp_path / "4x-Old.pth"))
    assert spec.parameters == RRDB
    image = torch.rand(1, 3, 9, 7)
    with torch.inference_mode():
        np.testing.assert_allclose(built(image), old(image), atol=1e-6)


def old_name(key: str) -> str:
    """Map a basicsr key to that of ESRGAN (2018), the inverse of what architectures.py does."""
    fixed = {"conv_first": "0", "conv_body": "1.sub.2", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8"}
    layer, _, kind = key.rpartition(".")
    if layer.startswith("body."):
        _, block, dense, conv = layer.split(".")
        return f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"
    return f"model.{(fixed | {'conv_last': '10'})[layer]}.{kind}"


def bsrgan_name(key: str) -> str:
    """Map a basicsr key to that of BSRGAN and of ESRGAN's later code."""
    fixed = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
    layer, _, kind = key.rpartition(".")
    if layer.startswith("body."):
        layer = layer.replace("body", "RRDB_trunk").replace("rdb", "RDB")
    return f"{fixed.get(layer, layer)}.{kind}"


@pytest.mark.parametrize("rename", [old_name, bsrgan_name])
def test_renamed_keys_are_mapped_back_to_basicsr(rename, tmp_path):
    original = network("RRDBNet", RRDB)
    renamed = {rename(key): tensor for key, tensor in original.state_dict().items()}
    # Only the weights and biases of conv_first and conv_last may keep their names
    assert len(set(renamed) & set(original.state_dict())) <= 4
    state = architectures.read_state(save(renamed, tmp_path / "net.pth"))
    assert list(state) == list(original.state_dict())
    assert_same_output(original, load(tmp_path / "net.pth")[1])


def test_old_keys_that_map_to_the_same_key_are_rejected(tmp_path):
    renamed = {old_name(key): tensor for key, tensor in network("RRDBNet", RRDB).state_dict().items()}
    renamed["model.1.sub.5.weight"] = renamed["model.1.sub.2.weight"]
    with pytest.raises(BadWeights, match=r"model\.1\.sub\.5\.weight is a duplicate of conv_body\.weight"):
        architectures.read_state(save(renamed, tmp_path / "net.pth"))


def without(state: dict, key: str) -> dict:
    return {name: tensor for name, tensor in state.items() if name != key}


def rebuilt(state: dict) -> nn.Module:
    return architectures.build(architectures.detect(state, "net"), state, "net")


@pytest.mark.parametrize(
    ("arch", "parameters"), [("RRDBNet", RRDB | {"num_block": 1}), ("SRVGGNetCompact", COMPACT)]
)
def test_every_missing_key_is_named(arch, parameters):
    state = network(arch, parameters).state_dict()
    for key in state:
        with pytest.raises(BadWeights, match=rf"net does not match {arch}: {key} is missing"):
            rebuilt(without(state, key))


@pytest.mark.parametrize(
    ("arch", "parameters"), [("RRDBNet", RRDB | {"num_block": 1}), ("SRVGGNetCompact", COMPACT)]
)
def test_every_tensor_of_another_shape_is_named(arch, parameters):
    state = dict(network(arch, parameters).state_dict())
    for key, tensor in state.items():
        with pytest.raises(BadWeights, match=rf"{key} (should be|is) .*2\)"):
            rebuilt(state | {key: torch.zeros(7, *tensor.shape[1:], 2)})


@pytest.mark.parametrize(
    ("arch", "extra"),
    [
        ("RRDBNet", "attention.weight"),
        ("RRDBNet", "body.0.rdb1.conv6.weight"),
        ("RRDBNet", "body.900000000.rdb1.conv1.weight"),
        ("SRVGGNetCompact", "body.0.running_mean"),
        ("SRVGGNetCompact", "body.999999999.weight"),
        ("SRVGGNetCompact", "tail.weight"),
    ],
)
def test_unexpected_key_is_named(arch, extra, tmp_path):
    state = dict(network(arch, RRDB if arch == "RRDBNet" else COMPACT).state_dict())
    state[extra] = torch.zeros(8, 8, 3, 3)
    with pytest.raises(BadWeights, match=f"does not match {arch}: unexpected key {extra}"):
        load(save(state, tmp_path / "net.pth"))


@pytest.mark.parametrize("key", ["body.4.weight", "body.3.weight"])
def test_first_of_several_mismatches_is_named(key, tmp_path):
    state = dict(network("SRVGGNetCompact", COMPACT).state_dict())
    state["body.5.weight"] = state["body.5.weight"][:2]
    state["aaa"] = torch.zeros(1)
    with pytest.raises(BadWeights, match=f": {key} is missing"):
        load(save(without(state, key), tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"layers.0.weight": torch.ones(3, 3)}, "neither .* 'layers.0.weight'"),
        ({"model.0.weight": torch.ones(8, 3, 3, 3)}, "neither .* 'model.0.weight'"),
        (
            {"conv_first.weight": torch.ones(180, 3, 3, 3), "layers.0.w": torch.ones(1)},
            "body.0.rdb1.conv1.weight",
        ),
        ({"conv_first.weight": torch.ones(8, 4, 3, 3)}, r"RGB RRDBNet: conv_first.weight is \(8, 4, 3, 3\)"),
        ({"conv_first.weight": torch.tensor(1.0)}, "conv_first.weight should be"),
        ({"body.0.weight": torch.ones(8, 1, 3, 3)}, r"RGB SRVGGNetCompact: body.0.weight is \(8, 1, 3, 3\)"),
        ({"body.0.weight": torch.ones(12, 3, 3, 3)}, "body.1.weight"),
        ({"body.0.weight": torch.tensor(1.0)}, "body.0.weight should be"),
        ({"body.first.weight": torch.ones(1)}, "neither .* 'body.first.weight'"),
    ],
)
def test_unsupported_networks_are_rejected_by_key(state, message, tmp_path):
    with pytest.raises(BadWeights, match=message):
        load(save(state, tmp_path / "net.pth"))


def test_compact_with_another_activation_is_rejected(tmp_path):
    state = network("SRVGGNetCompact", COMPACT | {"act_type": "leakyrelu"}).state_dict()
    with pytest.raises(BadWeights, match=r"has no body\.1\.weight: .* PReLU"):
        load(save(state, tmp_path / "net.pth"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64])
def test_non_float_tensors_are_rejected(dtype, tmp_path):
    state = {
        key: tensor.to(dtype) for key, tensor in network("SRVGGNetCompact", COMPACT).state_dict().items()
    }
    with pytest.raises(BadWeights, match=f"body.0.weight should be .* of {dtype}"):
        load(save(state, tmp_path / "net.pth"))


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_non_finite_values_are_rejected_by_key(name, value, tmp_path):
    state = {key: tensor.double() for key, tensor in network("RRDBNet", RRDB).state_dict().items()}
    state["body.1.rdb2.conv3.bias"][1] = value
    with pytest.raises(BadWeights, match=r"NaN or infinite values in 'body\.1\.rdb2\.conv3\.bias'"):
        architectures.read_state(save(state, tmp_path / name))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            {"params": {"body.0.weight": torch.ones(2).to_sparse()}},
            "'body.0.weight', which is not a dense CPU tensor",
        ),
        (
            {"params": {"body.0.weight": torch.ones(1).expand(10**6, 10**9)}},
            "'body.0.weight', which is not a dense CPU tensor",
        ),
        (
            {"params": {"body.0.weight": torch.ones(2, device="meta")}},
            "'body.0.weight', which is not a dense CPU tensor",
        ),
        ({"params": {"body.0.weight": torch.ones(0, 3, 3, 3)}}, "an empty tensor in 'body.0.weight'"),
        ({"params": {"body.0.weight": [1.0]}}, "'body.0.weight', which is not a tensor"),
        ({"params": torch.ones(3)}, "no tensors"),
        ({"params": {}}, "no tensors"),
        ({}, "no tensors"),
        (torch.ones(3), "no tensors"),
        ([1, 2], "no tensors"),
        ({"epoch": 3, "body.0.weight": torch.ones(1)}, "'epoch', which is not a tensor"),
    ],
)
def test_invalid_state_dict_is_rejected(checkpoint, message, tmp_path):
    with pytest.raises(BadWeights, match=f"net.pth contains .*{message}"):
        architectures.read_state(save(checkpoint, tmp_path / "net.pth"))


class Canary:
    def __init__(self, path: Path) -> None:
        self.command = f"touch {path}"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "inside"])
def test_code_in_a_pickle_is_never_executed(kind, protocol, tmp_path):
    canary = tmp_path / "ran"
    state = dict(network("SRVGGNetCompact", COMPACT).state_dict())
    path = tmp_path / "net.pth"
    if kind == "plain":
        path.write_bytes(pickle.dumps(Canary(canary), protocol))
    elif kind == "inside":
        torch.save({"params": state | {"body.0.weight": Canary(canary)}}, path, pickle_protocol=protocol)
    else:
        checkpoint = {"params": state, "note": Canary(canary)}
        torch.save(checkpoint, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(BadWeights, match="net.pth is not a readable weights file"):
        architectures.read_state(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # unrestricted unpickling does run it


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"PK\x03\x04", b"<html>404</html>", b"\x80\x02}q\x00."]
)
def test_garbage_is_rejected(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadWeights, match=f"{name} (is not a readable weights file|contains no tensors)"):
        architectures.read_state(tmp_path / name)


def test_missing_file_is_rejected(tmp_path):
    for name in ("net.pth", "net.safetensors"):
        with pytest.raises(BadWeights, match=f"{name} cannot be read: No such file or directory"):
            architectures.read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_truncated_file_is_rejected(name, tmp_path):
    data = save(network("SRVGGNetCompact", COMPACT).state_dict(), tmp_path / name).read_bytes()
    for length in range(0, len(data), len(data) // 60):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(BadWeights):
            architectures.read_state(tmp_path / name)


def test_corrupted_pickle_is_rejected_or_still_valid(tmp_path):
    rng = random.Random(11)
    path = save(network("SRVGGNetCompact", COMPACT).state_dict(), tmp_path / "net.pth")
    with zipfile.ZipFile(path) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    rejected = 0
    for _ in range(300):
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in parts.items():
                corrupted = bytearray(content)
                if entry.endswith("data.pkl"):
                    for _ in range(rng.randint(1, 5)):
                        corrupted[rng.randrange(len(corrupted))] = rng.randrange(256)
                archive.writestr(entry, bytes(corrupted))
        try:
            load(path)
        except BadWeights:
            rejected += 1
    assert rejected > 250


def test_safetensors_header_with_excessive_length_is_rejected(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(BadWeights):
        architectures.read_state(tmp_path / "net.safetensors")


def test_interpolation_is_the_weighted_mean():
    first, second = (dict(network("SRVGGNetCompact", COMPACT, seed).state_dict()) for seed in (1, 2))
    mixed = architectures.interpolate(first, second, 0.3)
    assert list(mixed) == list(first)
    for key in first:
        np.testing.assert_allclose(mixed[key], 0.3 * first[key] + 0.7 * second[key], atol=1e-7)
    for weight, expected in ((1, first), (0, second)):
        assert all(
            torch.equal(tensor, expected[key])
            for key, tensor in architectures.interpolate(first, second, weight).items()
        )


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_interpolation_of_different_networks_is_rejected(change):
    first = dict(network("SRVGGNetCompact", COMPACT).state_dict())
    second = without(first, "body.3.weight") if change == "missing" else dict(first)
    if change == "extra":
        second["body.3.weight2"] = torch.ones(1)
    if change == "shape":  # would broadcast
        second["body.3.weight"] = torch.ones(1)
    with pytest.raises(BadWeights, match=r"body\.3\.weight"):
        architectures.interpolate(first, second, 0.5)


@pytest.mark.parametrize(
    ("name", "convs"),
    [("realesr-general-x4v3", 32), ("realesr-general-wdn-x4v3", 32), ("realesr-animevideov3", 16)],
)
def test_real_checkpoints_load(name, convs, shared):
    path = shared / "weights" / f"{name}.pth"
    spec, built = load(path)
    assert spec.arch == "SRVGGNetCompact"
    assert spec.parameters == {"num_feat": 64, "num_conv": convs, "upscale": 4, "act_type": "prelu"}
    reference = network("SRVGGNetCompact", spec.parameters)
    reference.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["params"], strict=True)
    assert_same_output(reference, built)


def test_denoise_1_is_the_general_model_and_0_its_pair(shared):
    general, wdn = (
        architectures.read_state(shared / "weights" / f"realesr-general-{name}.pth")
        for name in ("x4v3", "wdn-x4v3")
    )
    spec = architectures.detect(general, "general")
    mixes = {
        weight: architectures.build(spec, architectures.interpolate(general, wdn, weight), "blend")
        for weight in (0, 0.5, 1)
    }
    assert_same_output(mixes[1], architectures.build(spec, general, "general"))
    assert_same_output(mixes[0], architectures.build(spec, wdn, "wdn"))
    key = "body.30.weight"
    assert torch.allclose(mixes[0.5].state_dict()[key], (general[key] + wdn[key]) / 2, atol=1e-7)
    assert not torch.allclose(mixes[0.5].state_dict()[key], general[key])
