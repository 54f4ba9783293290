"""Wide holes are filled by big-lama, of whose interface a small TorchScript program stands in."""

import hashlib
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import restorer
from restorer.__main__ import main
from restorer.errors import BadWeights, InvalidOutput, OutOfMemory
from restorer.models import registry
from restorer.repair import damage, pipeline, wide_holes
from tests.conftest import photo_like, png, save_network
from tests.models.test_download import own_network, server, whole  # noqa: F401  fixtures

CPU = torch.device("cpu")
NOTE = "holes wider than 60 pixels are filled with a blur: big-lama"


class MeanOfKnown(torch.nn.Module):
    """Fill the mask with the mean of the other pixels; refuse what LaMa could not take."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2], image.shape[3]
        assert image.shape[1] == 3 and mask.shape[1] == 1 and image.shape[2:] == mask.shape[2:]
        assert height % 8 == 0 and width % 8 == 0 and min(height, width) >= 16 and max(height, width) <= 1024
        assert bool(((mask == 0) | (mask == 1)).all()) and bool(((image >= 0) & (image <= 1)).all())
        known = 1 - mask
        mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
        return image * known + self.factor * mean * mask


def save(path, factor=1.0):
    module = MeanOfKnown().eval()
    torch.nn.init.constant_(module.factor, factor)
    torch.jit.script(module).save(str(path))
    return path


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return save(tmp_path_factory.mktemp("program") / "big-lama.pt")


@pytest.fixture(scope="session")
def network(program):
    return wide_holes.Lama(program, CPU)


def blank(height=300, width=260):
    return np.zeros((height, width), bool)


def test_only_what_is_wide_is_chosen():
    mask = blank()
    mask[5:62, 5:250] = True  # 57 pixels wide
    mask[100:200, 30:110] = mask[150:154, 110:250] = True  # 80 pixels wide, with a scratch that ends in it
    mask[220:230, 5:250] = mask[240:, 200:] = True  # the second as wide as it is seen, at a corner
    chosen = wide_holes.select(mask)
    assert chosen[100:200, 30:110].all() and not chosen[:100].any() and not chosen[200:].any()
    assert not chosen[150:154, 118:].any()
    assert not wide_holes.select(blank()).any() and wide_holes.select(~blank()).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_hole_gets_its_surroundings_and_all_else_stays(network, rng, dtype):
    white = np.iinfo(dtype).max
    image = np.empty((340, 1201, 3), dtype)
    image[:, :600], image[:, 600:] = (white // 5, white // 3, white // 2), (white // 2, white // 7, white)
    clean, holes = image.copy(), blank(340, 1201)
    holes[100:180, 100:190] = holes[260:, 1110:] = True  # the second at the corner
    unknown = holes.copy()
    unknown[:, 300:304] = True  # a scratch, in the context of the first hole
    image[unknown] = rng.integers(0, white, (int(unknown.sum()), 3), dtype)
    filled = wide_holes.fill(image, holes, unknown, network)
    np.testing.assert_array_equal(filled[~holes], image[~holes])
    np.testing.assert_allclose(filled[holes].astype(int), clean[holes].astype(int), atol=1)
    assert filled.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_large_holes_are_filled_on_a_smaller_scale(network, dtype):
    image, holes = np.full((1500, 700, 3), (40, 90, 200), dtype), blank(1500, 700)
    holes[101:1307, 201:522] = True
    image[holes] = 255
    filled = wide_holes.fill(image, holes, holes, network)
    assert np.abs(filled.astype(int) - (40, 90, 200)).max() <= 1


def test_flat_photos_are_padded(network):
    image, holes = np.full((3, 700, 3), 90, np.uint8), blank(3, 700)
    holes[:, 100:300] = True
    assert (wide_holes.fill(image, holes, holes, network) == 90).all()


def test_what_cannot_be_filled_is_an_error(network, tmp_path):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    image, holes = np.zeros((300, 260, 3), np.uint8), blank()
    holes[50:150, 50:150] = True
    with pytest.raises(Stop):
        wide_holes.fill(image, holes, holes, network, progress=stop)
    with pytest.raises(InvalidOutput, match="NaN"):
        wide_holes.fill(image, holes, holes, wide_holes.Lama(save(tmp_path / "nan.pt", float("nan")), CPU))
    for size in ((300, 260), (1100, 80)):
        with pytest.raises(InvalidOutput, match="nothing around"):
            wide_holes.fill(np.zeros((*size, 3), np.uint8), ~blank(*size), ~blank(*size), network)
    with pytest.raises(InvalidOutput, match="^big-lama failed$"):
        network(np.zeros((8, 1100, 3), np.uint8), blank(8, 1100))  # too wide for the program
    full = wide_holes.Lama(save(tmp_path / "full.pt"), CPU)
    full._program = Mock(side_effect=RuntimeError("DefaultCPUAllocator: not enough memory"))
    with pytest.raises(OutOfMemory):
        full(image, holes)
    (tmp_path / "big-lama.pt").write_bytes(b"no program")
    with pytest.raises(BadWeights, match=r"big-lama\.pt is not a TorchScript program"):
        wide_holes.Lama(tmp_path / "big-lama.pt", CPU)


@pytest.fixture
def masked(rng):
    """Return a photo's file and masks of a wide and of a thin hole."""
    wide, thin = blank(200, 220), blank(200, 220)
    wide[60:150, 40:130], thin[20:24, 10:200] = True, True
    return png(photo_like(rng, 200, 220)), wide, thin


@pytest.fixture
def run(program, server, tmp_path, monkeypatch):  # noqa: F811
    """A Restorer without the file, which a local server has."""
    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    body = program.read_bytes()
    model = registry.find(pipeline.WIDE_FILLER, tmp_path, "fill")
    digest, url = hashlib.sha256(body).hexdigest(), f"{server.url}/big-lama.pt"
    local = replace(model, bytes=len(body), sha256=digest, url=url)
    models = tuple(local if one == model else one for one in registry.MODELS)
    monkeypatch.setattr(registry, "MODELS", models)
    server.answers["/big-lama.pt"] = whole(body)
    return restorer.Restorer(weights=tmp_path, model="custom/tiny", face_enhance="off", outscale=1)


def names(result):
    return set(result.receipt["repair"]["models"])


def test_fetched_program_fills_wide_holes_only(run, server, masked, capsys):  # noqa: F811
    data, wide, thin = masked
    without = run.restore(data, mask=wide | thin)
    assert without.warnings == (f"{NOTE} is not present; run python -m restorer models --fetch big-lama",)
    assert names(without) == {pipeline.FILLER} and not server.requests
    assert main(["models", "--fetch", "big-lama", "--weights-dir", str(run.weights)]) == 0
    assert len(server.requests) == 1 and "big-lama.pt" in capsys.readouterr().out
    assert names(run.restore(data, mask=thin)) == {pipeline.FILLER}
    result = run.restore(data, mask=wide | thin)
    assert names(result) == {pipeline.FILLER, pipeline.WIDE_FILLER} and not result.warnings
    before, after = result.before.pixels, result.repair.photo.pixels
    assert len(np.unique(after[70:140, 50:120].reshape(-1, 3), axis=0)) == 1
    np.testing.assert_array_equal(after[~(wide | thin)], before[~(wide | thin)])
    assert (after[thin] != before[thin]).any(-1).mean() > 0.9


@pytest.mark.parametrize("damaged", [True, False])
def test_if_it_fails_holes_are_blurred_and_the_reason_named(run, masked, program, damaged):
    data, wide, _ = masked
    body = program.read_bytes()
    (run.weights / "big-lama.pt").write_bytes(body[:-1] + b"!" if damaged else body)
    mask = wide if damaged else np.ones_like(wide)
    result = run.restore(data, mask=mask)
    (warning,) = result.warnings
    assert warning.startswith("holes wider than 60 pixels are filled with a blur: ")
    assert str(run.weights) not in warning and names(result) == {pipeline.FILLER}
    np.testing.assert_array_equal(result.repair.photo.pixels[~mask], result.before.pixels[~mask])


def test_detected_wide_areas_are_filled_by_it_but_not_by_auto(run, rng, monkeypatch, program):
    """Narrow gaps between narrow areas close when the mask is widened by two pixels."""
    probability = np.zeros((200, 220), np.float32)
    probability[60:150, 40:130] = 0.9999
    probability[60:150:20] = probability[:, 40:130:20] = 0
    monkeypatch.setattr(damage, "detect", lambda image, *_, **__: probability)
    (run.weights / "big-lama.pt").write_bytes(program.read_bytes())
    data = png(photo_like(rng, 200, 220))
    assert wide_holes.select(damage.mask(probability, 0.5, confident=True)).any()
    assert names(run.restore(data, repair="auto")) == {pipeline.DETECTOR, pipeline.FILLER}
    assert pipeline.WIDE_FILLER in names(run.restore(data, repair="on"))
