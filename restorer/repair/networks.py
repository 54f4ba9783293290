"""The networks of old-photo repair: a damage detector and a filler of thin damage.

Both are U-Nets of plain convolutions without normalisation, so that a pixel of the output depends only on its
neighbourhood: a large photo can be processed in tiles. Both sides of an input are multiples of STRIDE, and a
tile starts at multiples of STRIDE; pixels farther than a network's reach away have no influence.
"""

import torch
from torch import nn
from torch.nn import functional

STRIDE = 64
_PRIOR = -2.5  # logit of the share of damaged pixels in training
_AVERAGES = 6  # levels of the filler's averages; the coarsest has cells of 64 pixels


def convolution(
    inputs: int, outputs: int, size: int = 3, *, stride: int = 1, scale: float = 1.0
) -> nn.Conv2d:
    """Return a convolution that keeps the scale of features, times `scale`; its bias is zero."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2)
    with torch.no_grad():
        nn.init.kaiming_normal_(layer.weight, a=0.1).mul_(scale)
        nn.init.zeros_(layer.get_parameter("bias"))
    return layer


class Block(nn.Module):
    """Two 3x3 convolutions with a residual connection; (N, width, h, w) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = convolution(width, width, scale=0.3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.second(functional.leaky_relu(self.first(features), 0.1))


class UNet(nn.Module):
    """A U-Net that starts and ends at half the resolution, by pixel unshuffling and shuffling.

    inputs, outputs  number of channels
    widths           features at 1/2, 1/4, 1/8 ... of the resolution

    Maps (N, inputs, h, w) to (N, outputs, h, w); h and w are multiples of 2 ** len(widths). Untrained, its
    outputs are close to zero.
    """

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.stem = convolution(4 * inputs, widths[0])
        self.encoders = nn.ModuleList(Block(width) for width in widths)
        self.downs = nn.ModuleList(convolution(fine, coarse, stride=2) for fine, coarse in pairs)
        self.ups = nn.ModuleList(convolution(coarse, fine, 1) for fine, coarse in pairs)
        self.decoders = nn.ModuleList(Block(width) for width in widths)
        self.head = convolution(widths[0], 4 * outputs, scale=0.01)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        halved = functional.pixel_unshuffle(image, 2).contiguous(memory_format=torch.channels_last)
        features = functional.leaky_relu(self.stem(halved), 0.1)
        skips = []
        for level, encoder in enumerate(self.encoders):
            if level:
                features = functional.leaky_relu(self.downs[level - 1](features), 0.1)
            features = encoder(features)
            skips.append(features)
        features = self.decoders[-1](features)
        for level in reversed(range(len(self.ups))):
            features = skips[level] + functional.interpolate(self.ups[level](features), scale_factor=2.0)
            features = self.decoders[level](functional.leaky_relu(features, 0.1))
        return functional.pixel_shuffle(self.head(features), 2)


class Detector(nn.Module):
    """Map photos (N, 3, h, w) RGB in 0..1 to logits (N, 1, h, w) of damage, of the same dtype."""

    reach = 192  # pixels, a multiple of STRIDE; 140 of the U-Net, rounded up

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(3, 1, (32, 56, 96, 144))
        nn.init.constant_(self.unet.head.get_parameter("bias"), _PRIOR)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.unet(image - 0.5)


class Filler(nn.Module):
    """Fill the mask's pixels; pass the others through.

    Maps photos (N, 3, h, w) RGB in 0..1 and masks (N, 1, h, w), 1 where a pixel is to be filled and else 0,
    to pixels (N, 3, h, w), unclamped. Values under the mask do not matter, but must be finite.
    """

    reach = 320  # pixels, a multiple of STRIDE; 140 of the U-Net and 128 of the averages, rounded up

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(4, 3, (40, 64, 88, 104))

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask > 0, self.predict(image, mask), image)

    def predict(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the network's output at every pixel, float32; arguments as for forward()."""
        guess = average_fill(image.float(), mask.float())
        return guess + self.unet(torch.cat((guess - 0.5, mask.float()), 1)).float()


def average_fill(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fill masked pixels with averages of known ones, of the smallest cells that have any.

    image, mask, result (N, 3, h, w), (N, 1, h, w), (N, 3, h, w) float32; h and w multiples of STRIDE. A pixel
    without a known one within 64 pixels becomes grey, 0.5. Pull-push (Gortler et al., The Lumigraph, 1996).
    """
    weights = [1 - mask]
    sums = [image * weights[0]]
    for _ in range(_AVERAGES):
        weights.append(functional.avg_pool2d(weights[-1], 2))
        sums.append(functional.avg_pool2d(sums[-1], 2))
    filled = torch.where(weights[-1] > 0, sums[-1] / weights[-1].clamp(min=1e-6), 0.5)
    for weight, total in zip(weights[-2::-1], sums[-2::-1], strict=True):
        coarse = functional.interpolate(filled, scale_factor=2.0, mode="bilinear", align_corners=False)
        share = (weight * 4).clamp(max=1)  # trust a cell fully from a quarter of known pixels
        filled = share * total / weight.clamp(min=1e-6) + (1 - share) * coarse
    return torch.where(mask > 0, filled, image)
