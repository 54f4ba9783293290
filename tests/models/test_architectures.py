"""Weights files of every kind, made from seeded networks, against those networks."""

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
    """Threads that wait for one another over such small tensors cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def network_class(arch: str) -> type:
    return compat.load(MODULES[arch], arch)


def network(arch: str, parameters: dict, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = network_class(arch)(num_in_ch=3, num_out_ch=3, **parameters)
    for parameter in made.parameters():  # biases and slopes too, which are otherwise all alike
        nn.init.uniform_(parameter, -0.2, 0.2)
    return made.eval()


def saved(state: Any, path: Path) -> Path:
    if path.suffix.lower() == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def loaded(path: Path) -> tuple[architectures.NetworkSpec, nn.Module]:
    state = architectures.read_state(path)
    shape = architectures.detect(state, path.stem)
    return shape, architectures.build(shape, state, path.stem).eval()


def assert_same_output(first: nn.Module, second: nn.Module) -> torch.Tensor:
    picture = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        out = first(picture)
        assert torch.equal(second(picture), out)
    return out


@pytest.mark.parametrize(
    ("scale", "features", "blocks", "grow"), [(4, 8, 2, 4), (2, 12, 1, 6), (1, 4, 3, 2), (4, 64, 1, 32)]
)
def test_rrdbnet_is_read_from_its_shapes(scale, features, blocks, grow, tmp_path):
    parameters = {"num_feat": features, "num_block": blocks, "num_grow_ch": grow, "scale": scale}
    original = network("RRDBNet", parameters)
    shape, built = loaded(saved({"params_ema": original.state_dict()}, tmp_path / "net.pth"))
    assert (shape.arch, shape.parameters, shape.scale) == ("RRDBNet", parameters, scale)
    assert shape.align == {4: 1, 2: 2, 1: 4}[scale]
    assert shape.bytes > 0 and shape.pad > 0
    out = assert_same_output(original, built)
    assert out.shape == (1, 3, 8 * scale, 12 * scale)


@pytest.mark.parametrize(
    ("scale", "features", "convs"), [(4, 6, 3), (2, 16, 1), (1, 4, 2), (3, 5, 0), (8, 64, 16)]
)
def test_compact_is_read_from_its_shapes(scale, features, convs, tmp_path):
    parameters = {"num_feat": features, "num_conv": convs, "upscale": scale, "act_type": "prelu"}
    original = network("SRVGGNetCompact", parameters)
    shape, built = loaded(saved({"params": original.state_dict()}, tmp_path / "net.pth"))
    assert (shape.arch, shape.parameters, shape.scale) == ("SRVGGNetCompact", parameters, scale)
    assert (shape.align, shape.pad) == (1, convs + 2)
    out = assert_same_output(original, built)
    assert out.shape == (1, 3, 8 * scale, 12 * scale)


def test_pad_of_a_compact_network_is_its_receptive_field(tmp_path):
    shape, built = loaded(saved(network("SRVGGNetCompact", COMPACT).state_dict(), tmp_path / "net.pth"))
    side = 2 * shape.pad + 5
    picture = torch.rand(1, 3, side, side).requires_grad_()
    centre = built(picture)[
        0, :, 4 * (side // 2) : 4 * (side // 2) + 4, 4 * (side // 2) : 4 * (side // 2) + 4
    ]
    centre.sum().backward()
    assert picture.grad is not None
    rows = picture.grad[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert (side // 2 - rows.min(), rows.max() - side // 2) == (shape.pad, shape.pad)


@pytest.mark.parametrize("wrap", ["params_ema", "params", "bare", "both", "ordered", "module"])
def test_where_the_tensors_lie_in_a_pth(wrap, tmp_path):
    original, other = network("SRVGGNetCompact", COMPACT), network("SRVGGNetCompact", COMPACT, seed=1)
    state = original.state_dict()
    found = {
        "bare": dict(state),
        "both": {"params": other.state_dict(), "params_ema": state},
        "ordered": collections.OrderedDict(state),
        "module": {f"module.{key}": tensor for key, tensor in state.items()},
    }.get(wrap, {wrap: state})
    assert_same_output(original, loaded(saved(found, tmp_path / "net.pth"))[1])


def test_old_kind_of_pth(tmp_path):
    original = network("SRVGGNetCompact", COMPACT)
    torch.save(original.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert_same_output(original, loaded(tmp_path / "net.pth")[1])


@pytest.mark.parametrize("name", ["net.safetensors", "NET.SAFETENSORS", "half.pth", "half.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_other_precisions_are_widened(name, dtype, tmp_path):
    original = network("SRVGGNetCompact", COMPACT).to(dtype)
    built = loaded(saved(original.state_dict(), tmp_path / name))[1]
    assert {tensor.dtype for tensor in built.state_dict().values()} == {torch.float32}
    assert_same_output(original.float(), built)


class OldRRDB(nn.Module):
    """ESRGAN's network of 2018, whose state dict has the old names (architecture.py and block.py there)."""

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
        seen = [x]
        for number in range(1, 6):
            seen.append(getattr(self, f"conv{number}")(torch.cat(seen, 1)))
        return seen[-1] * 0.2 + x


def test_old_esrgan_names_are_understood(tmp_path):
    torch.manual_seed(3)
    old = OldRRDB(features=8, blocks=2, grow=4).eval()
    assert {
        "model.0.weight",
        "model.1.sub.0.RDB1.conv1.0.weight",
        "model.1.sub.2.bias",
        "model.10.bias",
    } <= set(old.state_dict())
    shape, built = loaded(saved(old.state_dict(), tmp_path / "4x-Old.pth"))
    assert shape.parameters == RRDB
    picture = torch.rand(1, 3, 9, 7)
    with torch.inference_mode():
        np.testing.assert_allclose(built(picture), old(picture), atol=1e-6)


def old_name(key: str) -> str:
    """From basicsr's name of a tensor to that of 2018: the other way than architectures.py goes."""
    fixed = {"conv_first": "0", "conv_body": "1.sub.2", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8"}
    place, _, kind = key.rpartition(".")
    if place.startswith("body."):
        _, block, dense, conv = place.split(".")
        return f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"
    return f"model.{(fixed | {'conv_last': '10'})[place]}.{kind}"


def bsrgan_name(key: str) -> str:
    """From basicsr's name of a tensor to that of BSRGAN and of ESRGAN's second code."""
    fixed = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
    place, _, kind = key.rpartition(".")
    if place.startswith("body."):
        place = place.replace("body", "RRDB_trunk").replace("rdb", "RDB")
    return f"{fixed.get(place, place)}.{kind}"


@pytest.mark.parametrize("rename", [old_name, bsrgan_name])
def test_names_go_there_and_back(rename, tmp_path):
    original = network("RRDBNet", RRDB)
    renamed = {rename(key): tensor for key, tensor in original.state_dict().items()}
    assert len(set(renamed) & set(original.state_dict())) <= 4  # conv_first and conv_last, at most
    state = architectures.read_state(saved(renamed, tmp_path / "net.pth"))
    assert list(state) == list(original.state_dict())
    assert_same_output(original, loaded(tmp_path / "net.pth")[1])


def test_old_names_of_two_ends_of_the_trunk_are_refused(tmp_path):
    renamed = {old_name(key): tensor for key, tensor in network("RRDBNet", RRDB).state_dict().items()}
    renamed["model.1.sub.5.weight"] = renamed["model.1.sub.2.weight"]
    with pytest.raises(BadWeights, match=r"model\.1\.sub\.5\.weight would be its second conv_body\.weight"):
        architectures.read_state(saved(renamed, tmp_path / "net.pth"))


def without(state: dict, key: str) -> dict:
    return {name: tensor for name, tensor in state.items() if name != key}


def rebuilt(state: dict) -> nn.Module:
    return architectures.build(architectures.detect(state, "net"), state, "net")


@pytest.mark.parametrize(
    ("arch", "parameters"), [("RRDBNet", RRDB | {"num_block": 1}), ("SRVGGNetCompact", COMPACT)]
)
def test_missing_key_is_named_whichever_it_is(arch, parameters):
    state = network(arch, parameters).state_dict()
    for key in state:
        with pytest.raises(BadWeights, match=rf"net does not fit {arch}: {key} is missing"):
            rebuilt(without(state, key))


@pytest.mark.parametrize(
    ("arch", "parameters"), [("RRDBNet", RRDB | {"num_block": 1}), ("SRVGGNetCompact", COMPACT)]
)
def test_tensor_of_another_shape_is_named_whichever_it_is(arch, parameters):
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
def test_key_too_much_is_named(arch, extra, tmp_path):
    state = dict(network(arch, RRDB if arch == "RRDBNet" else COMPACT).state_dict())
    state[extra] = torch.zeros(8, 8, 3, 3)
    with pytest.raises(BadWeights, match=f"does not fit {arch}: {extra} does not belong to it"):
        loaded(saved(state, tmp_path / "net.pth"))


@pytest.mark.parametrize("key", ["body.4.weight", "body.3.weight"])
def test_the_first_of_several_misfits_is_named(key, tmp_path):
    state = dict(network("SRVGGNetCompact", COMPACT).state_dict())
    state["body.5.weight"] = state["body.5.weight"][:2]
    state["aaa"] = torch.zeros(1)
    with pytest.raises(BadWeights, match=f": {key} is missing"):
        loaded(saved(without(state, key), tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"layers.0.weight": torch.ones(3, 3)}, "neither .* 'layers.0.weight'"),
        ({"model.0.weight": torch.ones(8, 3, 3, 3)}, "neither .* 'model.0.weight'"),
        (
            {"conv_first.weight": torch.ones(180, 3, 3, 3), "layers.0.w": torch.ones(1)},
            "body.0.rdb1.conv1.weight",
        ),
        ({"conv_first.weight": torch.ones(8, 4, 3, 3)}, r"for RGB: conv_first.weight is \(8, 4, 3, 3\)"),
        ({"conv_first.weight": torch.tensor(1.0)}, "conv_first.weight should be"),
        ({"body.0.weight": torch.ones(8, 1, 3, 3)}, r"for RGB: body.0.weight is \(8, 1, 3, 3\)"),
        ({"body.0.weight": torch.ones(12, 3, 3, 3)}, "body.1.weight"),
        ({"body.0.weight": torch.tensor(1.0)}, "body.0.weight should be"),
        ({"body.first.weight": torch.ones(1)}, "neither .* 'body.first.weight'"),
    ],
)
def test_other_networks_are_refused_by_a_key(state, told, tmp_path):
    with pytest.raises(BadWeights, match=told):
        loaded(saved(state, tmp_path / "net.pth"))


def test_compact_with_an_activation_that_leaves_no_trace_is_refused(tmp_path):
    state = network("SRVGGNetCompact", COMPACT | {"act_type": "leakyrelu"}).state_dict()
    with pytest.raises(BadWeights, match=r"has no body\.1\.weight: .* PReLU"):
        loaded(saved(state, tmp_path / "net.pth"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64])
def test_numbers_of_another_kind_are_refused(dtype, tmp_path):
    state = {
        key: tensor.to(dtype) for key, tensor in network("SRVGGNetCompact", COMPACT).state_dict().items()
    }
    with pytest.raises(BadWeights, match=f"body.0.weight should be .* of {dtype}"):
        loaded(saved(state, tmp_path / "net.pth"))


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_numbers_that_are_not_finite_are_refused_by_key(name, value, tmp_path):
    state = {key: tensor.double() for key, tensor in network("RRDBNet", RRDB).state_dict().items()}
    state["body.1.rdb2.conv3.bias"][1] = value
    with pytest.raises(BadWeights, match=r"NaN or infinite values in 'body\.1\.rdb2\.conv3\.bias'"):
        architectures.read_state(saved(state, tmp_path / name))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            {"params": {"body.0.weight": torch.ones(2).to_sparse()}},
            "'body.0.weight', which is not an ordinary",
        ),
        (
            {"params": {"body.0.weight": torch.ones(1).expand(10**6, 10**9)}},
            "'body.0.weight', which is not an ordinary",
        ),
        (
            {"params": {"body.0.weight": torch.ones(2, device="meta")}},
            "'body.0.weight', which is not an ordinary",
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
def test_what_is_no_state_dict_is_refused(found, told, tmp_path):
    with pytest.raises(BadWeights, match=f"net.pth holds .*{told}"):
        architectures.read_state(saved(found, tmp_path / "net.pth"))


class Canary:
    def __init__(self, path: Path) -> None:
        self.command = f"touch {path}"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "inside"])
def test_code_in_a_pickle_is_never_run(kind, protocol, tmp_path):
    canary = tmp_path / "ran"
    state = dict(network("SRVGGNetCompact", COMPACT).state_dict())
    path = tmp_path / "net.pth"
    if kind == "plain":
        path.write_bytes(pickle.dumps(Canary(canary), protocol))
    elif kind == "inside":
        torch.save({"params": state | {"body.0.weight": Canary(canary)}}, path, pickle_protocol=protocol)
    else:
        whole = {"params": state, "note": Canary(canary)}
        torch.save(whole, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(BadWeights, match="net.pth is not a readable weights file"):
        architectures.read_state(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # the canary does sing where it is let


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"PK\x03\x04", b"<html>404</html>", b"\x80\x02}q\x00."]
)
def test_garbage_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadWeights, match=f"{name} (is not a readable weights file|holds no tensors)"):
        architectures.read_state(tmp_path / name)


def test_file_that_is_not_there_is_refused(tmp_path):
    for name in ("net.pth", "net.safetensors"):
        with pytest.raises(BadWeights, match=f"{name} cannot be read: No such file or directory"):
            architectures.read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_every_way_of_cutting_a_file_off_is_refused(name, tmp_path):
    whole = saved(network("SRVGGNetCompact", COMPACT).state_dict(), tmp_path / name).read_bytes()
    for length in range(0, len(whole), len(whole) // 60):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(BadWeights):
            architectures.read_state(tmp_path / name)


def test_altered_bytes_are_refused_or_still_a_state_dict(tmp_path):
    dice = random.Random(11)
    path = saved(network("SRVGGNetCompact", COMPACT).state_dict(), tmp_path / "net.pth")
    with zipfile.ZipFile(path) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    refused = 0
    for _ in range(300):
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in parts.items():
                altered = bytearray(content)
                if entry.endswith("data.pkl"):
                    for _ in range(dice.randint(1, 5)):
                        altered[dice.randrange(len(altered))] = dice.randrange(256)
                archive.writestr(entry, bytes(altered))
        try:
            loaded(path)
        except BadWeights:
            refused += 1
    assert refused > 250


def test_header_of_safetensors_that_promises_too_much_is_refused(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(BadWeights):
        architectures.read_state(tmp_path / "net.safetensors")


def test_blend_is_the_mix_computed_by_hand():
    first, second = (dict(network("SRVGGNetCompact", COMPACT, seed).state_dict()) for seed in (1, 2))
    mixed = architectures.interpolate(first, second, 0.3)
    assert list(mixed) == list(first)
    for key in first:
        np.testing.assert_allclose(mixed[key], 0.3 * first[key] + 0.7 * second[key], atol=1e-7)
    for share, alone in ((1, first), (0, second)):
        assert all(
            torch.equal(tensor, alone[key])
            for key, tensor in architectures.interpolate(first, second, share).items()
        )


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_blend_of_two_kinds_of_network_is_refused(change):
    first = dict(network("SRVGGNetCompact", COMPACT).state_dict())
    second = without(first, "body.3.weight") if change == "missing" else dict(first)
    if change == "extra":
        second["body.3.weight2"] = torch.ones(1)
    if change == "shape":  # one that could be broadcast
        second["body.3.weight"] = torch.ones(1)
    with pytest.raises(BadWeights, match=r"body\.3\.weight"):
        architectures.interpolate(first, second, 0.5)


@pytest.mark.parametrize(
    ("name", "convs"),
    [("realesr-general-x4v3", 32), ("realesr-general-wdn-x4v3", 32), ("realesr-animevideov3", 16)],
)
def test_real_checkpoints_load(name, convs, shared):
    path = shared / "weights" / f"{name}.pth"
    shape, built = loaded(path)
    assert shape.arch == "SRVGGNetCompact"
    assert shape.parameters == {"num_feat": 64, "num_conv": convs, "upscale": 4, "act_type": "prelu"}
    reference = network("SRVGGNetCompact", shape.parameters)
    reference.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["params"], strict=True)
    assert_same_output(reference, built)


def test_denoise_one_is_the_general_model_and_zero_the_other(shared):
    general, wdn = (
        architectures.read_state(shared / "weights" / f"realesr-general-{name}.pth")
        for name in ("x4v3", "wdn-x4v3")
    )
    shape = architectures.detect(general, "general")
    mixes = {
        share: architectures.build(shape, architectures.interpolate(general, wdn, share), "blend")
        for share in (0, 0.5, 1)
    }
    assert_same_output(mixes[1], architectures.build(shape, general, "general"))
    assert_same_output(mixes[0], architectures.build(shape, wdn, "wdn"))
    key = "body.30.weight"
    assert torch.allclose(mixes[0.5].state_dict()[key], (general[key] + wdn[key]) / 2, atol=1e-7)
    assert not torch.allclose(mixes[0.5].state_dict()[key], general[key])
