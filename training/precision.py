"""Where 16 bits are fast."""

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Return whether convolutions in bfloat16 are faster than in float32: on GPUs and on CPUs with AMX."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
