"""Train the detector, the filler or both on the same batches; a run resumes from its checkpoint."""

import os
from pathlib import Path

import safetensors.torch
import torch
from torch.nn import functional

from restorer.repair.networks import Detector, Filler

from ..optimizer import Averaged
from ..precision import has_bfloat16
from .compose import Batch

_DECAY = 0.998  # of the moving average of the weights, which is the result
_POSITIVE = 2.0  # weight of damaged pixels in the cross entropy
_RATE = 1.6e-3  # of Muon, and of Adam for biases and the first and last layers; 6e-3 diverged


class Learner(Averaged):
    """One network in training."""

    def __init__(self, network: Detector | Filler, device: torch.device) -> None:
        self.network = network.to(device)
        weights = dict(network.named_parameters())
        ends = ("unet.stem.", "unet.head.")
        kernels = [name for name in weights if weights[name].ndim == 4 and not name.startswith(ends)]
        super().__init__(weights, kernels, _DECAY)


class Run:
    """The networks in training, the step and the share of the training that is done.

    file  checkpoint; loaded if it exists
    only  "detector" or "filler", the one network to train; None: both
    """

    def __init__(self, device: torch.device, file: Path, seed: int = 0, only: str | None = None) -> None:
        torch.manual_seed(seed)
        self.device, self.file, self.seed = device, file, seed
        self.step, self.share, self._checkpoint = 0, 0.0, {}
        kinds: dict[str, type[Detector | Filler]] = {"detector": Detector, "filler": Filler}
        self.learners = {
            name: Learner(kind(), device) for name, kind in kinds.items() if only in (None, name)
        }
        if file.is_file():
            self._checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            self.step, self.share = self._checkpoint["step"], self._checkpoint["share"]
            for name in self.learners.keys() & self._checkpoint.keys():
                self.learners[name].load(self._checkpoint[name])

    def load_weights(self, folder: Path) -> None:
        """Start from the weights that export() wrote, of this or a narrower network, with new optimizers."""
        for name, learner in self.learners.items():
            state = safetensors.torch.load_file(folder / f"damage-{name}.safetensors")
            with torch.no_grad():
                for key, mean in learner.mean.items():
                    mean.copy_(widen(learner.weights[key], state[key]))

    def generator(self) -> torch.Generator:
        """Return the random numbers of this step, which depend only on its number and the seed."""
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.step)

    def train_step(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        """Train on a batch; return the loss of each network in self.learners, on the device."""
        rate, losses = rate_factor(self.share), []
        for name, learner in self.learners.items():
            loss = self._detection(batch) if name == "detector" else self._filling(batch, rng)
            loss.backward()
            learner.update(_RATE * rate)
            losses.append(loss.detach())
        self.step += 1
        return torch.stack(losses)

    def _detection(self, batch: Batch) -> torch.Tensor:
        with self.precision():
            logits = self.learners["detector"].network(batch.photo)
        return detection_loss(logits.float(), batch)

    def _filling(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        mask = holes(batch, rng)
        with self.precision():
            output = self.learners["filler"].network.predict(batch.photo, mask)
        return filling_loss(output, batch, mask)

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device))

    def save(self) -> None:
        """Write the checkpoint."""
        # With the networks of earlier runs that this one does not train
        checkpoint = self._checkpoint | {"step": self.step, "share": self.share}
        checkpoint |= {name: learner.state() for name, learner in self.learners.items()}
        part = self.file.with_suffix(".part")
        torch.save(checkpoint, part)
        os.replace(part, self.file)

    def export(self, folder: Path) -> None:
        """Write the averaged weights as float16: damage-detector.safetensors, damage-filler.safetensors."""
        for name, learner in self.learners.items():
            part = folder / f"damage-{name}.part"
            safetensors.torch.save_file(learner.export(), part)
            os.replace(part, folder / f"damage-{name}.safetensors")


@torch.no_grad()
def widen(parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """Copy a narrower network's parameter into this one, which keeps its values for the added channels.

    What the saved channels read of the added ones becomes zero, so that the network computes what it did.
    """
    outputs = len(saved)
    if parameter.ndim == 1:
        parameter[:outputs] = saved
    else:
        parameter[:outputs] = 0
        parameter[:outputs, : saved.shape[1]] = saved
    return parameter


def rate_factor(share: float) -> float:
    """Return the share of the full rate: warm-up over 2 % of the run, linear decay over its last 70 %."""
    return max(min((share + 0.001) / 0.02, 1.0, (1 - share) / 0.7), 0.0)


def detection_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return cross entropy plus soft Dice of the whole batch; logits (n, 1, h, w) float32."""
    entropy = functional.binary_cross_entropy_with_logits(logits, batch.damage, reduction="none")
    weight = batch.weight * (1 + (_POSITIVE - 1) * batch.damage)
    entropy = (entropy * weight).sum() / batch.weight.sum().clamp(min=1)
    counted = (batch.weight > 0).float()
    probability = logits.sigmoid() * counted
    both = (probability * batch.damage).sum()
    dice = 1 - (2 * both + 1) / (probability.sum() + (batch.damage * counted).sum() + 1)
    return 4 * entropy + 0.5 * dice


def holes(batch: Batch, rng: torch.Generator) -> torch.Tensor:
    """Return masks (n, 1, h, w) for the filler: the damage, widened by 1 to 3 pixels or by all faint edges.

    Crops without damage, and some with it, take over the next crop's mask too.
    """
    count = len(batch.photo)
    u = torch.rand(2, count, 1, 1, 1, device=batch.photo.device, generator=rng)
    wide = batch.damage
    options = []
    for _ in range(3):
        wide = functional.max_pool2d(wide, 3, 1, 1)
        options.append(wide)
    covered = functional.max_pool2d(batch.touched * (batch.weight == 0), 3, 1, 1)
    mask = torch.where(u[0] < 0.35, options[0], torch.where(u[0] < 0.75, options[1], options[2]))
    mask = torch.where(u[0] < 0.15, torch.maximum(mask, covered), mask)
    empty = batch.damage.amax((1, 2, 3), keepdim=True) == 0
    other = mask.roll(count // 2, 0).flip(3)
    return torch.where(empty | (u[1] < 0.25), torch.maximum(mask, other), mask)


def filling_loss(output: torch.Tensor, batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    """Return L1 of pixels and of gradients in the mask, and a little L1 of the pixels around it."""
    ring = functional.max_pool2d(mask, 9, 1, 4) - mask
    error = (output - batch.clean).abs().mean(1, keepdim=True)
    loss = (error * mask).sum() / mask.sum().clamp(min=1)
    loss = loss + 0.1 * (error * ring).sum() / ring.sum().clamp(min=1)
    composed = torch.where(mask > 0, output, batch.clean)
    for dim in (2, 3):
        size = mask.shape[dim] - 1
        touching = torch.maximum(mask.narrow(dim, 0, size), mask.narrow(dim, 1, size))
        slope = (composed.diff(dim=dim) - batch.clean.diff(dim=dim)).abs().mean(1, keepdim=True)
        loss = loss + 0.5 * (slope * touching).sum() / touching.sum().clamp(min=1)
    return loss
