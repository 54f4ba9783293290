"""Compare networks on held-out photographs: fidelity, blocks and texture, in a table."""

from collections.abc import Callable

import torch
from torch.nn import functional

from .pool import BLOCK, Pool

BORDER = 32  # output pixels between the borders of JPEG's 8 x 8 blocks at scale 4
_HEADER = f"{'':24}{'truth dB':>10}{'teacher dB':>12}{'blocks':>8}{'energy':>8}"

Upscale = Callable[[torch.Tensor], torch.Tensor]


def table(networks: dict[str, Upscale], pool: Pool) -> str:
    """Return a row per network, for light and for heavy degradation, and rows for bicubic and the teacher.

    networks    upscale (n, 3, h, w) float32 in 0..1 by 4
    truth dB    PSNR to the original less that of bicubic; teacher dB likewise to the teacher's output
    blocks      see blockiness(); energy is that of gradients, relative to the teacher's
    """
    lines = [_HEADER]
    severe = torch.arange(pool.size) % BLOCK % 2 == 1  # as in create_block()
    for kind, chosen in (("light", ~severe), ("heavy", severe)):
        indices = chosen.nonzero().flatten().tolist()
        figures: dict[str, list[list[float]]] = {}
        for batch in (indices[i : i + BLOCK] for i in range(0, len(indices), BLOCK)):
            small, teacher, truth = (_image(t, batch) for t in (pool.small, pool.teacher, pool.truth))
            bicubic = functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)
            outputs = {"bicubic": bicubic, "teacher": teacher}
            outputs |= {name: upscale(small).clamp(0, 1) for name, upscale in networks.items()}
            plain, plain_teacher = psnr(bicubic, truth), psnr(bicubic, teacher)
            for name, output in outputs.items():
                columns = (psnr(output, truth) - plain, psnr(output, teacher) - plain_teacher)
                columns += (blockiness(output), energy(output) / energy(teacher).clamp_min(1e-12))
                figures.setdefault(name, []).append(torch.stack(columns).cpu())
        for name, batches in figures.items():
            all_figures = torch.cat(batches, 1)
            to_truth, to_teacher = all_figures[:2].mean(1).tolist()
            blocks, strength = all_figures[2:].median(1).values.tolist()
            nearer = f"{'':12}" if name == "teacher" else f"{to_teacher:+12.2f}"
            lines.append(f"  {kind} {name:16}{to_truth:+10.2f}{nearer}{blocks:8.2f}{strength:8.2f}")
    return "\n".join(lines)


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return decibels for each of n images."""
    return -10 * (output - target).square().mean((1, 2, 3)).clamp_min(1e-10).log10()


def blockiness(output: torch.Tensor) -> torch.Tensor:
    """Return the gradient across borders of the input's 8 x 8 blocks over the gradient elsewhere, (n,)."""
    ratios = []
    for image in (output, output.mT):
        gradient = image.diff(dim=-1).abs().mean((1, 2))
        border = torch.arange(1, gradient.shape[-1] + 1, device=output.device) % BORDER == 0
        ratios.append(gradient[:, border].mean(1) / gradient[:, ~border].mean(1).clamp_min(1e-6))
    return (ratios[0] + ratios[1]) / 2


def energy(image: torch.Tensor) -> torch.Tensor:
    """Return the mean square gradient of the grey image, (n,)."""
    grey = image.mean(1)
    return sum(grey.diff(dim=axis).square().mean((1, 2)) for axis in (-1, -2))


def _image(tensor: torch.Tensor, indices: list[int]) -> torch.Tensor:
    return tensor[indices].permute(0, 3, 1, 2).float() / 255
