"""Measure the memory that this process may still take, and convert out-of-memory errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from ..errors import OutOfMemory

_CGROUP = Path("/sys/fs/cgroup")
# Limit, usage, and the part of the usage that the kernel can drop: cgroup version 2, then 1
_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
# Messages of torch's allocators that raise a plain RuntimeError (CPU, MPS, the CUDA runtime)
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator", "out of memory")


def free(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Return the free bytes of a GPU, or of this machine within the limit of its container."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + max(cached, 0)
    available = psutil.virtual_memory().available
    for limit_file, usage_file, stat_file in _FILES:
        try:
            limit = int((cgroup / limit_file).read_text())  # ValueError for "max", which is no limit
            usage = int((cgroup / usage_file).read_text())
            stat = dict(line.split() for line in (cgroup / stat_file).read_text().splitlines())
        except (OSError, ValueError):
            continue
        droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        available = min(available, max(0, limit - usage + droppable))
    return available


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Convert every out-of-memory error of the block to OutOfMemory; empty a GPU's cache."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory("out of memory") from error
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory("out of GPU memory") from error
    except RuntimeError as error:
        if any(text in str(error) for text in _OUT_OF_MEMORY):
            raise OutOfMemory("out of memory") from error
        raise
