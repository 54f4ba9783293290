"""Face networks of the true shapes against gfpgan's own classes, with seeded random weights."""

import numpy as np
import pytest
import torch

from restorer.errors import BadWeights
from restorer.faces.engine import FaceEngine
from restorer.faces.parsenet import ParseNet
from restorer.models import architectures, compat
from tests.conftest import photo_like

CPU = torch.device("cpu")
GFPGAN = {
    "out_size": 512,
    "num_style_feat": 512,
    "channel_multiplier": 2,
    "decoder_load_path": None,
    "fix_decoder": False,
    "num_mlp": 8,
    "input_is_latent": True,
    "different_w": True,
    "narrow": 1,
    "sft_half": True,
}


def seeded(module: str, name: str, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return compat.load(module, name)(**arguments).eval()


@pytest.mark.parametrize(
    ("module", "name", "arguments", "asked"),
    [
        ("gfpgan.archs.gfpganv1_clean_arch", "GFPGANv1Clean", GFPGAN, {"randomize_noise": False}),
        ("gfpgan.archs.restoreformer_arch", "RestoreFormer", {}, {}),
    ],
)
def test_a_crop_is_what_the_package_makes_of_it_and_twice_the_same(module, name, arguments, asked, rng):
    theirs = seeded(module, name, **arguments)
    state = theirs.state_dict()
    shape = architectures.detect_face_network(state, "face", name)
    assert shape.arch == name
    crop = photo_like(rng, 512, 512)
    batch = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with torch.inference_mode():
        expected = theirs(batch, **asked)[0][0].clamp(-1, 1).permute(1, 2, 0).numpy()
    run = FaceEngine(architectures.build(shape, state, name), device=CPU)
    first, second = run([crop])[0], run([crop])[0]
    assert np.abs(first - (expected + 1) / 2 * 255).max() <= 1
    assert first.tobytes() == second.tobytes()


def test_parsing_tells_face_from_the_rest(rng):
    network = seeded("facexlib.parsing.parsenet", "ParseNet", in_size=512, out_size=512, parsing_ch=19)
    state = network.state_dict()
    assert architectures.detect_face_network(state, "parse", "x").arch == "ParseNet"
    crop = photo_like(rng, 512, 512)
    batch = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        classes = network(batch)[0].argmax(1)[0].numpy()
    mask = ParseNet(
        architectures.build(architectures.detect_face_network(state, "parse", "x"), state, "x"), device=CPU
    )(crop)
    share = np.isin(classes, range(1, 13)).mean()
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1 + 1e-5
    assert abs(mask.mean() - share) < 0.02


def test_a_network_of_another_kind_is_named(rng):
    state = {"body.0.weight": torch.zeros(1)}
    with pytest.raises(BadWeights, match="no face network of the kind 'face'.*body.0.weight"):
        architectures.detect_face_network(state, "face", "custom")
