"""Complete face networks against gfpgan's own classes, with seeded random weights."""

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
    return compat.load_attribute(module, name)(**arguments).eval()


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "name", "arguments", "options", "side"),
    [
        ("gfpgan.archs.gfpganv1_clean_arch", "GFPGANv1Clean", GFPGAN, {"randomize_noise": False}, 512),
        ("gfpgan.archs.restoreformer_arch", "RestoreFormer", {}, {}, 256),
    ],
)
def test_restored_crop_matches_the_package_and_is_reproducible(module, name, arguments, options, side, rng):
    reference = seeded(module, name, **arguments)
    state = reference.state_dict()
    spec = architectures.detect_face_network(state, "face", name)
    assert spec.arch == name
    crop = photo_like(rng, side, side)
    batch = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with torch.inference_mode():
        expected = reference(batch, **options)[0][0].clamp(-1, 1).permute(1, 2, 0).numpy()
    run = FaceEngine(architectures.build(spec, state, name), device=CPU)
    first, second = run([crop])[0], run([crop])[0]
    assert np.abs(first - (expected + 1) / 2 * 255).max() <= 1
    assert first.tobytes() == second.tobytes()


@pytest.mark.slow
def test_parsing_mask_matches_the_classes_of_the_network(rng):
    network = seeded("facexlib.parsing.parsenet", "ParseNet", in_size=512, out_size=512, parsing_ch=19)
    state = network.state_dict()
    assert architectures.detect_face_network(state, "parse", "x").arch == "ParseNet"
    crop = photo_like(rng, 256, 256)
    batch = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        classes = network(batch)[0].argmax(1)[0].numpy()
    mask = ParseNet(
        architectures.build(architectures.detect_face_network(state, "parse", "x"), state, "x"), device=CPU
    )(crop)
    share = np.isin(classes, range(1, 13)).mean()
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1 + 1e-5
    assert abs(mask.mean() - share) < 0.02


def test_unknown_network_raises_with_its_first_key(rng):
    state = {"body.0.weight": torch.zeros(1)}
    with pytest.raises(BadWeights, match="not a supported 'face' network.*body.0.weight"):
        architectures.detect_face_network(state, "face", "custom")
