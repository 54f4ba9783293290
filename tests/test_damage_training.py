"""Composed damage matches its labels; training resumes exactly; what is exported loads."""

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from restorer.repair import networks
from training.damage import __main__, compose, cutouts, draw, jpeg, learn, tensors
from training.damage.photos import Bank, vary

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        noise = np.random.default_rng(number).random((8, 10, 3))
        image = cv2.resize(noise, (150, 130), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        cv2.imwrite(str(folder / f"{number}.png"), np.rint(image * 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def photos(folder):
    return Bank(folder, slice(None), 64, device=CPU)


@pytest.fixture(scope="module")
def damage():
    return compose.Atlas(*draw.draw_all(list(draw.DAMAGE), 8, 1, 0), CPU)


@pytest.fixture(scope="module")
def content():
    return compose.Atlas(*draw.draw_all(list(draw.CONTENT), 18, 1, 0), CPU)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_composition_changes_nothing_outside_its_label(photos, damage, content, monkeypatch):
    monkeypatch.setattr(jpeg, "compress", lambda image, *_: image)
    batch = compose.compose(photos, damage, content, 16, rng())
    change = (batch.photo - batch.clean).abs().amax(1, keepdim=True)
    assert batch.damage.sum() > 100
    assert change[batch.touched == 0].max() == 0
    undamaged = (batch.touched == 1) & (batch.damage == 0) & (batch.weight > 0)
    assert not undamaged.any() or change[undamaged].max() <= 0.02  # faint, and a level of rounding
    assert ((batch.weight > 0) | (batch.damage == 0)).all()


def test_content_has_no_label_and_more_weight(photos, damage, content):
    batch = compose.compose(photos, damage, content, 8, rng(), undamaged=1, plain=0)
    assert torch.equal(batch.photo, batch.clean)
    assert batch.damage.sum() == batch.touched.sum() == 0
    assert (batch.weight > 1).any()


def test_unscaled_crops_are_exact(photos):
    rows = {tuple(row) for row in photos._rows.tolist()}
    crops = (photos.sample(16, rng()) * 255).round().byte().permute(0, 2, 3, 1)
    exact = [all(tuple(pixel) in rows for pixel in crop.reshape(-1, 3).tolist()) for crop in crops]
    assert 2 <= sum(exact) < 16


def test_varied_crops_are_photographs_in_other_colours():
    crops = torch.rand(400, 3, 8, 8, generator=rng())
    varied = vary(crops, rng(1))
    assert varied.shape == crops.shape and varied.min() >= 0 and varied.max() <= 1
    unchanged = [torch.allclose(before, after) for before, after in zip(crops, varied, strict=True)]
    assert 0.05 < sum(unchanged) / 400 < 0.16  # 0.11 on average
    grey = [torch.allclose(crop[0], crop[1]) for crop in varied]
    assert 0.15 < sum(grey) / 400 < 0.35
    assert torch.equal(varied, vary(crops, rng(1)))


def test_varied_crops_show_two_photographs_in_some():
    crops = torch.full((400, 3, 8, 8), 0.2)
    crops[::2] = 0.6
    varied = vary(crops, rng())
    spread = (varied.amax((2, 3)) - varied.amin((2, 3))).amax(1)
    assert 0.06 < (spread > 0.05).float().mean() < 0.18  # 0.12 on average


@pytest.mark.parametrize(("varied", "share"), [(False, 0), (True, 0.5)])
def test_half_of_varied_crops_are_turned_by_any_angle(tmp_path, monkeypatch, varied, share):
    y, x = np.mgrid[:96, :110]  # a crop of 64 that is turned often does not fit
    cv2.imwrite(str(tmp_path / "coordinates.png"), np.stack((0 * x, y, x), 2).astype(np.uint8))
    monkeypatch.setattr("training.damage.photos.vary", lambda crops, rng: crops)
    bank = Bank(tmp_path, slice(None), 64, device=CPU, varied=varied)
    places = bank.sample(200, rng())[:, :2] * 255  # of each pixel, x and y
    down, right = places.diff(dim=2)[..., :-1], places.diff(dim=3)[:, :, :-1]
    for step in (down, right):
        assert (step - step.mean((2, 3), keepdim=True)).abs().max() < 0.01  # no edge was passed
    down, right = down.mean((2, 3)), right.mean((2, 3))
    area = (down[:, 0] * right[:, 1] - down[:, 1] * right[:, 0]).abs()
    assert area.min() > 0.4 and area.max() < 2.2
    turned = (right.abs().amin(1) > 0.01).float().mean()
    assert abs(turned - share) <= 0.1 * (share > 0)


def test_a_bank_varies_crops(folder, monkeypatch):
    bank = Bank(folder, slice(None), 64, device=CPU, varied=True)
    crops, random = bank.sample(8, rng()), rng()
    monkeypatch.setattr("training.damage.photos.vary", lambda crops, rng: crops)
    plain = bank.sample(8, random)
    assert torch.equal(crops, vary(plain, random)) and not torch.equal(crops, plain)


@pytest.mark.parametrize("sigma", [0, 0.5, 1.6])
def test_blur_is_opencv_s(sigma):
    image = torch.rand(1, 1, 20, 30, generator=rng())
    blurred = compose.blur(image, torch.tensor([float(sigma)]))[0, 0].numpy()
    expected = image[0, 0].numpy()
    if sigma:
        expected = cv2.GaussianBlur(expected, (11, 11), sigma, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(blurred - expected).max() < 1e-5


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_is_close_to_libjpeg_s(quality):
    noise = np.random.default_rng(0).random((24, 24, 3))
    image = cv2.resize(noise, (128, 96), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    image = np.rint(image * 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    expected = np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    result = jpeg.compress(tensor, torch.tensor([float(quality)]))[0] * 255
    result = result.round().byte().permute(1, 2, 0).numpy()
    assert cv2.PSNR(result, expected) > cv2.PSNR(image, expected) + 6


def test_phase_moves_the_blocks():
    image = torch.rand(1, 3, 64, 64, generator=rng())
    quality = torch.tensor([50.0])
    shifted = jpeg.compress(image[..., 5:, 3:], quality, (5, 3))
    assert torch.equal(shifted[..., 16:, 16:], jpeg.compress(image, quality)[..., 21:, 19:])


def test_packed_cutouts_resemble_the_folder(tmp_path):
    (tmp_path / "hair").mkdir()
    image = np.zeros((cutouts.SIDE, cutouts.SIDE, 4), np.uint8)
    cv2.line(image, (10, 30), (300, 380), (255, 255, 255, 255), 2, cv2.LINE_AA)
    cv2.imwrite(str(tmp_path / "hair" / "a.png"), image)
    cutouts.pack(tmp_path, tmp_path / "packed.npz")
    names, alphas = cutouts.load(tmp_path / "packed.npz", 1)
    assert names == ["hair/a"]
    assert cv2.PSNR(alphas[0], image[..., 3].copy()) > 35


def steps(run, photos, damage, content, count):
    for _ in range(count):
        random = run.generator()
        run.share = run.step / 10
        run.train_step(compose.compose(photos, damage, content, 2, random), random)


@pytest.mark.slow
def test_resume_equals_an_uninterrupted_run(photos, damage, content, tmp_path):
    whole = learn.Run(CPU, tmp_path / "none.pt")
    steps(whole, photos, damage, content, 3)
    first = learn.Run(CPU, tmp_path / "checkpoint.pt")
    steps(first, photos, damage, content, 1)
    first.save()
    second = learn.Run(CPU, tmp_path / "checkpoint.pt")
    assert second.step == 1
    steps(second, photos, damage, content, 2)
    for part in ("detector", "filler"):
        expected, resumed = (run.learners[part].mean for run in (whole, second))
        assert all(torch.equal(value, expected[name]) for name, value in resumed.items())
    second.export(tmp_path)
    for name, network in (("detector", networks.Detector()), ("filler", networks.Filler())):
        file = tmp_path / f"damage-{name}.safetensors"
        assert file.stat().st_size <= 3_000_000
        network.load_state_dict(safetensors.torch.load_file(file), strict=True)
    again = learn.Run(CPU, tmp_path / "none.pt", seed=1)
    again.load_weights(tmp_path)
    for part in ("detector", "filler"):
        for name, value in again.learners[part].mean.items():
            assert torch.equal(value, second.learners[part].mean[name].half().float())


def test_a_step_trains_every_parameter(photos, damage, content, tmp_path):
    run = learn.Run(CPU, tmp_path / "none.pt")
    learners = run.learners.values()
    before = [[parameter.detach().clone() for parameter in learner.weights.values()] for learner in learners]
    steps(run, photos, damage, content, 2)
    for learner, old in zip(learners, before, strict=True):
        assert not any(torch.equal(a, b) for a, b in zip(learner.weights.values(), old, strict=True))


def test_one_network_is_trained_and_written_alone(photos, damage, content, tmp_path):
    run = learn.Run(CPU, tmp_path / "checkpoint.pt", only="filler")
    steps(run, photos, damage, content, 1)
    run.save()
    run.export(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["damage-filler.safetensors"]
    assert learn.Run(CPU, tmp_path / "checkpoint.pt", only="filler").step == 1
    both = learn.Run(CPU, tmp_path / "checkpoint.pt")
    both.save()
    learn.Run(CPU, tmp_path / "checkpoint.pt", only="filler").save()
    again = learn.Run(CPU, tmp_path / "checkpoint.pt")
    own, saved = (run.learners["detector"].weights.values() for run in (again, both))
    assert all(map(torch.equal, own, saved))


def test_widened_network_computes_what_the_narrow_one_did():
    narrow, wide = networks.UNet(3, 1, (8, 12, 16)), networks.UNet(3, 1, (8, 16, 24))
    torch.nn.init.normal_(narrow.head.weight)
    for parameter, saved in zip(wide.parameters(), narrow.parameters(), strict=True):
        learn.widen(parameter, saved)
    image = torch.rand(1, 3, 64, 64, generator=rng())
    with torch.inference_mode():
        torch.testing.assert_close(wide(image), narrow(image))
    assert sum(p.count_nonzero() for p in wide.parameters()) > sum(p.numel() for p in narrow.parameters())


def test_composed_crops_are_used_again_turned(photos, damage, content, monkeypatch):
    monkeypatch.setattr(__main__.Composer, "POOL", 3)
    composed = __main__.Composer(photos, damage, content, 6)
    *new, again = (composed.next(step, rng(step)) for step in (0, 1, 2, 5))
    assert len({float(batch.photo.sum()) for batch in new}) == 3
    assert {len(part) for batch in (*new, again) for part in batch} == {6}
    (source,) = [batch for batch in new if torch.equal(torch.rot90(batch.photo, 1, (2, 3)), again.photo)]
    for before, after in zip(source, again, strict=True):
        assert torch.equal(torch.rot90(before, 1, (2, 3)), after)


def test_a_bad_batch_does_not_end_the_run(photos, damage, content, tmp_path):
    run = learn.Run(CPU, tmp_path / "none.pt")
    batch = compose.compose(photos, damage, content, 2, rng())
    run.train_step(batch._replace(photo=batch.photo * float("nan")), rng())
    for learner in run.learners.values():
        assert all(
            parameter.isfinite().all() for parameter in (*learner.weights.values(), *learner.mean.values())
        )


def test_the_last_tenth_of_each_kind_is_held_out():
    names = [f"{kind}/{number:02}" for kind, count in (("dirt", 20), ("hair", 3)) for number in range(count)]
    alphas = np.arange(23, dtype=np.uint8)
    (learnt, _), (held, held_alphas) = __main__.hold_out(names, alphas)
    assert held == ["dirt/18", "dirt/19", "hair/02"]
    assert held_alphas.tolist() == [18, 19, 22]
    assert sorted(learnt + held) == names


def test_choices_follow_their_weights():
    counts = torch.bincount(tensors.choose(torch.tensor([1.0, 0, 3]), 4000, rng()), minlength=3)
    assert counts[1] == 0
    assert abs(counts[2] - 3000) < 120
