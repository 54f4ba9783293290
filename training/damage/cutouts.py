"""Load cut-outs of damage, and pack them: `python -m training.damage.cutouts FOLDER OUT.npz`.

FOLDER has one folder a kind with RGBA images of SIDE x SIDE pixels; only alpha is used.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

SIDE = 400
_QUALITY = 60  # of WebP
_NOISE = 8  # levels; compression leaves fainter alphas where there is nothing


def load(path: Path, workers: int) -> tuple[list[str], np.ndarray]:
    """Return names "kind/name", sorted, and alphas (n, SIDE, SIDE) uint8, from a folder or a packed file."""
    if path.is_dir():
        files = sorted(path.glob("*/*.png"))
        names = [f"{file.parent.name}/{file.stem}" for file in files]
        blobs = [np.fromfile(file, np.uint8) for file in files]
    else:
        with np.load(path) as packed:
            names = [str(name) for name in packed["names"]]
            blobs = np.split(packed["blobs"], packed["ends"][:-1])
    if not names:
        raise SystemExit(f"training: no cut-outs in {path}")
    with ThreadPoolExecutor(workers) as pool:
        return names, np.stack(list(pool.map(_alpha, blobs)))


def _alpha(blob: np.ndarray) -> np.ndarray:
    image = cv2.imdecode(blob, cv2.IMREAD_UNCHANGED)
    alpha = image if image.ndim == 2 else image[..., 3] if image.shape[2] == 4 else image[..., 1]
    if alpha.shape != (SIDE, SIDE):
        raise SystemExit(f"training: a cut-out has {alpha.shape} pixels; use {SIDE} x {SIDE}")
    return np.where(alpha < _NOISE, 0, alpha).astype(np.uint8)


def pack(folder: Path, out: Path) -> None:
    """Write the alphas of a folder, compressed with loss, to one file."""
    names, alphas = load(folder, workers=4)
    settings = (cv2.IMWRITE_WEBP_QUALITY, _QUALITY)
    blobs = [cv2.imencode(".webp", alpha, settings)[1].ravel() for alpha in alphas]
    ends = np.cumsum([len(blob) for blob in blobs])
    np.savez(out, names=np.array(names), blobs=np.concatenate(blobs), ends=ends)
    print(f"{out}: {len(names)} cut-outs, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m training.damage.cutouts FOLDER OUT.npz")
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
