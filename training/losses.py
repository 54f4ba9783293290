"""Loss terms and the discriminator. Images are (n, 3, h, w) float32 in 0..1."""

import torch
from torch import nn
from torch.nn import functional

from restorer.models import compat

from .precision import has_bfloat16

GRADIENT, SPECTRUM, ARTEFACTS = 1.0, 0.05, 0.5  # weights; that of the pixels is 1
_BORDER = 10.0  # weight of a gradient near a border of JPEG's blocks, relative to the others
_CROP = 128  # side of the discriminator's crops: it costs more than the student
_BATCH = 24


def total(
    output: torch.Tensor,
    target: torch.Tensor,
    reference: torch.Tensor,
    borders: tuple[torch.Tensor, torch.Tensor],
    *,
    strength: float,
) -> torch.Tensor:
    """Return the weighted sum of the terms that need no discriminator.

    reference  output of the averaged weights, see artefacts()
    borders    where horizontal and vertical gradients are near a border of JPEG's blocks, (n, 1, 1, w-1) and
               (n, 1, h-1, 1) bool
    strength   weight of local_rms() and of periodic_rms()
    """
    difference = output - target
    loss = difference.abs().mean() + SPECTRUM * spectrum(difference)
    loss = loss + ARTEFACTS * artefacts(difference, reference - target)
    for axis, border in zip((-1, -2), borders, strict=True):
        slope, target_slope = output.diff(dim=axis), target.diff(dim=axis)
        weight = torch.where(border, _BORDER, 1.0)
        loss = loss + GRADIENT / 2 * ((slope - target_slope).abs() * weight).mean()
        for rms in (local_rms, periodic_rms):
            loss = loss + strength / 2 * (rms(slope) - rms(target_slope)).abs().mean()
    return loss


def spectrum(difference: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute real and imaginary part of the orthonormal Fourier transform."""
    return torch.view_as_real(torch.fft.rfft2(difference, norm="ortho")).abs().mean()


def artefacts(difference: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the L1 loss weighted by the local variance of the residual, zero where the reference is worse.

    Locally discriminative learning (Liang et al., 2022): texture leaves an even residual, artefacts an uneven
    one, and the averaged weights, which give the residual `reference`, produce fewer of them.
    """
    with torch.no_grad():
        error, reference_error = (image.abs().sum(1, keepdim=True) for image in (difference, reference))
        mean = _box_mean(error)
        local = ((_box_mean(error.square()) - mean.square()) * (49 / 48)).clamp_min(0)
        whole = error.var(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12).pow(0.2)
        weight = torch.where(error < reference_error, 0, whole * local)
    return (weight * difference.abs()).mean()


def local_rms(slope: torch.Tensor) -> torch.Tensor:
    """Return the strength of gradients in windows of 8 pixels, wherever edges lie: L1 averages texture."""
    return (functional.avg_pool2d(slope.square(), 8, 4) + 1e-5).sqrt()


def periodic_rms(slope: torch.Tensor) -> torch.Tensor:
    """Return the strength of gradients of each phase of 8 pixels in windows of 32.

    A dot every 8 pixels has the local strength of texture, but not in every phase.
    """
    energy = slope.square()
    for axis in (2, 4):  # the second is the width, after the height was split in two
        side = energy.shape[axis]
        window = min(32, side // 8 * 8)
        energy = energy.narrow(axis, 0, side // window * window).unflatten(axis, (-1, window // 8, 8))
        energy = energy.mean(axis + 1)
    return (energy + 1e-5).sqrt()


def _box_mean(image: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(functional.pad(image, (3, 3, 3, 3), mode="reflect"), 7, 1)


class Critic:
    """A U-Net discriminator with spectral normalisation, as Real-ESRGAN's, and its optimizer."""

    def __init__(self, device: torch.device, seed: int, features: int = 24) -> None:
        torch.manual_seed(seed)
        network = compat.load_attribute("basicsr.archs.discriminator_arch", "UNetDiscriminatorSN")
        self.network: nn.Module = network(3, num_feat=features).to(device)
        self._adam = torch.optim.Adam(self.network.parameters(), lr=3e-4, betas=(0.9, 0.99))
        self._device = device

    def generator_loss(self, output: torch.Tensor) -> torch.Tensor:
        """Return the loss of outputs that are recognised as such."""
        self.network.requires_grad_(False)
        loss = functional.softplus(-self._logits(_corner(output))).mean()
        self.network.requires_grad_(True)
        return loss

    def update(self, target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Train on targets and outputs; return the share of pixels that are classified correctly."""
        real, fake = _corner(target), _corner(output.detach())
        logits = self._logits(torch.cat([real, fake]))
        real_logits, fake_logits = logits[: len(real)], logits[len(real) :]
        loss = functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean()
        self._adam.zero_grad()
        loss.backward()
        for parameter in self.network.parameters():
            parameter.grad.nan_to_num_(0, 0, 0)
        self._adam.step()
        with torch.no_grad():
            return ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=has_bfloat16(self._device)):
            return self.network(images.contiguous(memory_format=torch.channels_last)).float()

    def state(self) -> dict:
        return {"network": self.network.state_dict(), "adam": self._adam.state_dict()}

    def load(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self._adam.load_state_dict(state["adam"])


def _corner(images: torch.Tensor) -> torch.Tensor:
    """Return a part of the batch; the crops it comes from are random already."""
    return images[:_BATCH, :, :_CROP, :_CROP]
