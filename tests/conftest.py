"""Fixtures and helpers that several test files share."""

import asyncio
import io
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# restorer/__init__.py sets this too, but too late if a test imports torch first
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests of downloads use a local server
os.environ["AUTO_CPU_MEGAPIXELS"] = "0"  # "auto" is the built-in model, which is fast, unless a test sets it


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors: tests of servers and browsers wait as much as they compute."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of servers and browsers: a long one that started last would run alone."""
    items.sort(key=lambda item: "web" not in item.path.relative_to(item.config.rootpath).parts)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and images that some checkouts have beside them."""
    folder = Path(os.environ.get("RESTORER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs real weights and images in {folder} (or RESTORER_SHARED)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def photo_like(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return (height, width, 3) uint8 with smooth areas, edges and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([128 + 90 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], axis=2)
    base[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return np.clip(base + rng.normal(0, 3, base.shape), 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Encode (height, width, channels) uint8 pixels as PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def refuse_to_list(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Refuse to list folders whose path ends so, as without permission, which root does not need."""
    real = os.scandir

    def scandir(path: str | Path) -> Iterator[os.DirEntry]:
        if str(path).endswith(end):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until a condition holds; the timeout is long enough for a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not hold within {seconds:g} s"
        time.sleep(0.01)


def files_below(*folders: Path) -> list[Path]:
    """Every file in the folders, which a server may be deleting from at the same time."""
    walks = (walk for folder in folders for walk in os.walk(folder))
    return [Path(parent, name) for parent, _, names in walks for name in names]


def collect(steps: AsyncIterator) -> list:
    """Return everything that an asynchronous generator yields."""

    async def collect() -> list:
        return [step async for step in steps]

    return asyncio.run(collect())


def sampled(items: list, count: int) -> list:
    """Return a seeded sample of a long sweep; all of it with SWEEP=all, which `make stress` sets."""
    if os.environ.get("SWEEP") == "all" or len(items) <= count:
        return items
    return random.Random(7).sample(items, count)


def sweep(names: str, *values: list, count: int) -> pytest.MarkDecorator:
    """Parametrize a test by a sample of the combinations of values, see sampled()."""
    return pytest.mark.parametrize(names, sampled([*itertools.product(*values)], count))


def save_quick_and_slow(folder: Path) -> None:
    """Write the models custom/quick and custom/slow below a server's folder."""
    save_network(folder / "weights/custom/quick.safetensors", seed=1)
    save_network(folder / "weights/custom/slow.safetensors", seed=2, features=64, convs=16)


def save_network(path: Path, *, seed: int, scale: int = 4, features: int = 8, convs: int = 2) -> None:
    """Write a small SRVGGNetCompact with seeded weights as .pth or .safetensors."""
    import safetensors.torch
    import torch

    from restorer.models import compat

    architecture = compat.load_attribute("basicsr.archs.srvgg_arch", "SRVGGNetCompact")
    with torch.random.fork_rng(devices=[]):  # the architecture draws biases
        torch.manual_seed(seed)
        network = architecture(num_feat=features, num_conv=convs, upscale=scale)
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(tensor.shape, generator=generator) * 0.1 if tensor.ndim > 1 else tensor.abs()
        for key, tensor in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"params": state}, path)
