"""Segments compute what the network does, with exactly the context that they name."""

import pytest
import torch

from restorer.inference import network
from restorer.inference.network import IMAGE
from restorer.models import architectures
from tests.inference.seeded import NETWORKS, create, image


def run(parts, first):
    maps = {IMAGE: first}
    for index, part in enumerate(parts):
        maps[part.writes] = part.module(*(maps[name] for name in part.reads))
        assert maps[part.writes].shape[1] == part.channels
        for name in network.unused(parts, index, maps):
            if index < len(parts) - 1:
                del maps[name]
    return maps["output"]


@pytest.mark.parametrize("kind", NETWORKS)
def test_segments_equal_the_network(kind):
    module, align = create(kind), NETWORKS[kind][3]
    parts = network.segments(module)
    for height, width in ((1, 1), (7, 30), (33, 20)):
        batch = image(height * align, width * align)
        first = torch.nn.functional.pixel_unshuffle(batch, align)
        torch.testing.assert_close(run(parts, first), module(batch), rtol=0, atol=0)


@pytest.mark.parametrize("kind", NETWORKS)
def test_halo_is_the_context_that_a_segment_needs(kind):
    """Around a pixel in the middle; one row less changes it."""
    for part in network.segments(create(kind)):
        height = width = 4 * part.halo + 1
        maps = [image(height, width, channels) for channels in part.inputs]
        whole = part.module(*maps)

        def pixel(halo, part=part, maps=maps, middle=2 * part.halo):
            window = slice(middle - halo, middle + halo + 1)
            output = part.module(*(m[..., window, window] for m in maps))
            core = slice(halo * part.scale, (halo + 1) * part.scale)
            return output[..., core, core]

        core = slice(2 * part.halo * part.scale, (2 * part.halo + 1) * part.scale)
        torch.testing.assert_close(pixel(part.halo), whole[..., core, core], rtol=1e-5, atol=1e-6)
        assert (pixel(part.halo - 1) - whole[..., core, core]).abs().max() > 1e-5


def test_rrdbnet_needs_four_maps():
    parameters = {"num_feat": 64, "num_block": 23, "num_grow_ch": 32, "scale": 4}
    parts = network.segments(architectures.create("RRDBNet", parameters))
    assert len(parts) == 1 + 69 + 2
    assert network.map_channels(parts) == 4 * 64


def test_small_compact_network_is_one_segment_and_needs_only_the_image():
    parameters = {"num_feat": 64, "num_conv": 9, "upscale": 4, "act_type": "prelu"}
    (part,) = network.segments(architectures.create("SRVGGNetCompact", parameters))
    assert part.halo == 11 and network.map_channels([part]) == 3


def test_halves_of_a_compact_network_take_turns():
    parameters = {"num_feat": 64, "num_conv": 32, "upscale": 4, "act_type": "prelu"}
    parts = network.segments(architectures.create("SRVGGNetCompact", parameters))
    assert network.map_channels(parts) == 2 * 64 + 3
    assert sum(part.halo for part in parts) == 34, "the receptive field"
