"""Wide holes are filled by big-lama, of whose interface a small TorchScript program stands in."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import restorer
from restorer.errors import BadWeights, InvalidOutput
from restorer.models import registry
from restorer.repair import damage, large_holes, pipeline
from tests.conftest import photo_like, png, save_network
from tests.models.test_download import own_network, server, status, whole  # noqa: F401  fixtures

CPU = torch.device("cpu")


class MeanOfKnown(torch.nn.Module):
    """Fill the mask with the mean of the other pixels; refuse what LaMa could not take."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert image.shape[1] == 3 and mask.shape[1] == 1 and image.dtype == torch.float32
        assert image.shape[2] % 8 == 0 and image.shape[3] % 8 == 0 and image.shape[2:] == mask.shape[2:]
        assert image.shape[2] <= 1024 and image.shape[3] <= 1024
        assert bool(((mask == 0) | (mask == 1)).all()) and bool(((image >= 0) & (image <= 1)).all())
        known = 1 - mask
        mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
        return image * known + self.factor * mean * mask


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """Return the bytes of the program, as a file has them."""
    file = tmp_path_factory.mktemp("program") / "big-lama.pt"
    torch.jit.script(MeanOfKnown().eval()).save(str(file))
    return file.read_bytes()


@pytest.fixture
def network(program, tmp_path):
    (tmp_path / "program.pt").write_bytes(program)
    return large_holes.load(tmp_path / "program.pt", CPU)


def blank(height=300, width=260):
    return np.zeros((height, width), bool)


def test_only_areas_that_are_somewhere_wide_are_chosen():
    mask = blank()
    mask[5:62, 5:250] = True  # 57 pixels wide
    mask[100:200, 30:110] = mask[150:154, 110:250] = True  # 80 pixels wide, with a scratch that touches it
    mask[220:230, 5:250] = True
    chosen = large_holes.select(mask)
    assert chosen[100:200, 30:110].all() and chosen[150:154, 110:250].all()
    assert chosen.sum() == 100 * 80 + 4 * 140
    assert not large_holes.select(blank()).any() and large_holes.select(~blank()).all()


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
    filled = large_holes.fill(image, holes, unknown, network)
    np.testing.assert_array_equal(filled[~holes], image[~holes])
    np.testing.assert_allclose(filled[holes].astype(int), clean[holes].astype(int), atol=1)
    assert filled.dtype == dtype


def test_large_holes_are_filled_on_a_smaller_scale(network):
    image, holes = np.full((1500, 700, 3), (40, 90, 200), np.uint8), blank(1500, 700)
    holes[101:1307, 201:522] = True
    image[holes] = 255
    filled = large_holes.fill(image, holes, holes, network)
    assert np.abs(filled.astype(int) - (40, 90, 200)).max() <= 1


def test_cancelling_and_wrong_results_stop(network):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    image, holes = np.zeros((300, 260, 3), np.uint8), blank()
    holes[50:150, 50:150] = True
    with pytest.raises(Stop):
        large_holes.fill(image, holes, holes, network, progress=stop)
    with torch.no_grad():
        network.factor.fill_(float("nan"))
    with pytest.raises(InvalidOutput):
        large_holes.fill(image, holes, holes, network)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "big-lama.pt").write_bytes(b"no program")
    with pytest.raises(BadWeights, match=r"big-lama\.pt is no TorchScript program"):
        large_holes.load(tmp_path / "big-lama.pt", CPU)


@pytest.fixture
def masked(rng):
    """Return a photo with a wide and a thin hole, and their mask."""
    pixels, mask = photo_like(rng, 200, 220), blank(200, 220)
    mask[60:150, 40:130] = mask[20:24, 10:200] = True
    return png(pixels), mask


@pytest.fixture
def run(program, server, tmp_path, monkeypatch):  # noqa: F811
    """A Restorer that downloads the program from a local server."""
    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    model = registry.find(pipeline.LARGE_FILLER, tmp_path, "fill")
    digest, url = hashlib.sha256(program).hexdigest(), f"{server.url}/big-lama.pt"
    local = replace(model, bytes=len(program), sha256=digest, url=url)
    models = tuple(local if one == model else one for one in registry.MODELS)
    monkeypatch.setattr(registry, "MODELS", models)
    server.answers["/big-lama.pt"] = whole(program)
    return restorer.Restorer(weights=tmp_path, model="custom/tiny", face_enhance="off", outscale=1)


def test_program_is_downloaded_for_wide_holes_only(run, server, masked):  # noqa: F811
    data, mask = masked
    thin = mask.copy()
    thin[60:150] = False
    assert list(run.restore(data, mask=thin).receipt["repair"]["models"]) == [pipeline.FILLER]
    assert not server.requests
    both, wide = (run.restore(data, mask=one) for one in (mask, mask & ~thin))
    assert set(both.receipt["repair"]["models"]) == {pipeline.FILLER, pipeline.LARGE_FILLER}
    assert list(wide.receipt["repair"]["models"]) == [pipeline.LARGE_FILLER]
    assert len(server.requests) == 1 and (run.weights / "big-lama.pt").is_file()
    for result in (both, wide):
        assert not result.warnings
        assert len(np.unique(result.repair.photo.pixels[60:150, 40:130].reshape(-1, 3), axis=0)) == 1
    before, after = both.before.pixels, both.repair.photo.pixels
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert (after[20:24, 10:200] != before[20:24, 10:200]).any()


def test_without_it_wide_holes_are_blurred_and_named(run, server, masked):  # noqa: F811
    data, mask = masked
    server.answers["/big-lama.pt"] = status(404)
    for _ in range(2):  # the second time it is not asked for again
        result = run.restore(data, mask=mask)
        assert list(result.receipt["repair"]["models"]) == [pipeline.FILLER]
        (warning,) = result.warnings
        assert warning.startswith("holes wider than 60 pixels are filled with a blur: big-lama is not")
        assert str(run.weights) not in warning
        before, repaired = result.before.pixels, result.repair.photo.pixels
        np.testing.assert_array_equal(repaired[~mask], before[~mask])
    assert len(server.requests) == 1


def test_a_damaged_file_is_named(run, masked, program):
    data, mask = masked
    (run.weights / "big-lama.pt").write_bytes(program[:-1] + b"!")
    (warning,) = run.restore(data, mask=mask).warnings
    assert "big-lama.pt" in warning and str(run.weights) not in warning


def test_detected_wide_areas_are_filled_by_it(run, rng, monkeypatch):
    probability = np.zeros((200, 220), np.float32)
    probability[60:150, 40:130] = 0.9
    monkeypatch.setattr(damage, "detect", lambda image, *_, **__: probability)
    result = run.restore(png(photo_like(rng, 200, 220)), repair="on")
    assert pipeline.LARGE_FILLER in result.receipt["repair"]["models"]
