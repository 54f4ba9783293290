"""Draw masks with OpenCV: damage that the cut-outs lack, and thin content that is not damage.

Every function draws white on a black canvas (_CANVAS, _CANVAS) uint8 that is later halved, so that lines can
be half a pixel thin.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from .cutouts import SIDE

_CANVAS = 2 * SIDE
_LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789    .,-:")
Drawing = Callable[[np.ndarray, np.random.Generator], None]


def draw_all(kinds: list[str], count: int, workers: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return names "kind/number", sorted by kind, and masks (n, SIDE, SIDE) uint8; n is about `count`.

    A mask depends only on its kind, its number and the seed.
    """
    each = max(count // len(kinds), 2)
    jobs = [(kind, number) for kind in sorted(kinds) for number in range(each)]
    with ThreadPoolExecutor(workers) as pool:
        masks = list(pool.map(lambda job: draw(*job, seed), jobs))
    return [f"{kind}/{number:05}" for kind, number in jobs], np.stack(masks)


def draw(kind: str, number: int, seed: int) -> np.ndarray:
    """Return a mask (SIDE, SIDE) uint8 of a kind of DAMAGE or CONTENT."""
    rng = np.random.default_rng((seed, number, *kind.encode()))
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    (DAMAGE | CONTENT)[kind](canvas, rng)
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _lines(canvas: np.ndarray, points: np.ndarray, level: int, thickness: int) -> None:
    """Draw a polyline through (n, 2) points, in sixteenths of a pixel."""
    cv2.polylines(canvas, [np.rint(points * 16).astype(np.int32)], False, level, thickness, cv2.LINE_AA, 4)


def _bezier(corners: np.ndarray, count: int = 24) -> np.ndarray:
    """Return (count, 2) points on the cubic curve of (4, 2) control points."""
    t = np.linspace(0, 1, count)[:, None]
    weights = np.hstack(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3))
    return weights @ corners


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return smooth noise (_CANVAS, _CANVAS) float32, mostly in 0..1."""
    field = rng.random((cells, cells), np.float32)
    return cv2.resize(field, (_CANVAS, _CANVAS), interpolation=cv2.INTER_CUBIC)


def _direction(angle: float) -> np.ndarray:
    return np.array((np.cos(angle), np.sin(angle)))


def _scratch(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one to seven almost parallel, straight, partly interrupted lines."""
    base = rng.choice((np.pi / 2, 0, rng.uniform(0, np.pi)), p=(0.4, 0.15, 0.45))
    for _ in range(rng.integers(1, 8)):
        along = _direction(base + rng.normal(0, 0.03))
        length = _CANVAS * rng.choice((rng.uniform(0.1, 0.6), 1.5))
        middle, bow = rng.uniform(0.1, 0.9, 2) * _CANVAS, rng.normal(0, 6)
        t = np.linspace(-0.5, 0.5, 33)[:, None]
        points = middle + t * length * along + (0.25 - t**2) * bow * _direction(base + np.pi / 2)
        thickness, level = int(rng.choice((1, 2, 2, 3, 4, 5))), rng.uniform(120, 255)
        strength = np.interp(np.linspace(0, 9, 32), np.arange(10), rng.uniform(0.5, 1.15, 10))
        gap = rng.choice((0, 0, 0.1, 0.3))
        for index in range(32):
            if rng.random() >= gap:
                _lines(canvas, points[index : index + 2], int(min(level * strength[index], 255)), thickness)


def _crack(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw jagged, branching lines."""
    thickest = int(rng.integers(2, 8))
    branches = [
        (rng.uniform(0.1, 0.9, 2) * _CANVAS, rng.uniform(0, 7), thickest) for _ in range(rng.integers(1, 4))
    ]
    step = rng.uniform(6, 22)
    for _ in range(14):
        if not branches:
            break
        point, angle, thickness = branches.pop(0)
        heading = angle
        for _ in range(rng.integers(8, 60)):
            heading += 0.3 * (angle - heading) + rng.normal(0, 0.55)
            end = point + step * rng.uniform(0.4, 1.6) * _direction(heading)
            _lines(canvas, np.stack((point, end)), 255, int(max(1, thickness + rng.integers(-1, 2))))
            point = end
            if rng.random() < 0.05 and thickness > 1:
                branches.append((point, heading + rng.choice((-1, 1)) * rng.uniform(0.5, 1.3), thickness - 1))


def _fold(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one or two frayed lines across the frame."""
    angle = rng.choice((0, np.pi / 2, rng.uniform(0, np.pi)))
    for _ in range(rng.integers(1, 3)):
        middle = rng.uniform(0.3, 0.7, 2) * _CANVAS
        t = np.linspace(-0.8, 0.8, 40)[:, None]
        wobble = np.cumsum(rng.normal(0, rng.choice((0.3, 1.5)), 40))[:, None]
        points = middle + t * _CANVAS * _direction(angle) + wobble * _direction(angle + np.pi / 2)
        _lines(canvas, points, 255, int(rng.integers(3, 16)))
        angle += np.pi / 2 + rng.normal(0, 0.05)
    soft = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(1.5, 4)).astype(np.float32) / 255
    rough = 0.6 * _noise(rng, int(rng.integers(120, 300))) + 0.4 * _noise(rng, 40)
    edge = rng.uniform(0.75, 1.05)
    near = np.minimum(soft * 4, 1)
    canvas[:] = np.clip((soft + rough - edge) * rng.uniform(2, 6), 0, 1) * near * 255


def _flake(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw irregular patches where the emulsion came off."""
    field = 0.6 * _noise(rng, int(rng.integers(8, 30))) + 0.3 * _noise(rng, 60) + 0.1 * _noise(rng, 200)
    threshold = np.quantile(field, rng.uniform(0.96, 0.997))
    canvas[:] = np.clip((field - threshold) * 40, 0, 1) * 255


def _wires(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw smooth parallel lines with a little sag, and sometimes a pole."""
    tilt, sag, thickness = rng.normal(0, 0.25), rng.uniform(0, 120), int(rng.integers(1, 6))
    x = np.linspace(-60, _CANVAS + 60, 40)
    for _ in range(rng.integers(1, 8)):
        centre = rng.uniform(0.2, 0.8)
        shape = ((x / _CANVAS - centre) ** 2 - 0.1) * sag * 2
        y = rng.uniform(0, 1) * _CANVAS + tilt * rng.normal(1, 0.05) * (x - _CANVAS / 2) + shape
        _lines(canvas, np.stack((x, y), 1), 255, thickness)
    if rng.random() < 0.3:
        pole = rng.uniform(0, _CANVAS) + np.array((0, rng.normal(0, 10)))
        _lines(canvas, np.stack((pole, (-20, _CANVAS + 20)), 1), 255, int(rng.integers(6, 40)))
    if rng.random() < 0.4:
        canvas[:] = np.rot90(canvas)


def _branches(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a tree's twigs."""
    start = np.array((rng.uniform(0.1, 0.9) * _CANVAS, _CANVAS))
    twigs = [(start, -np.pi / 2 + rng.normal(0, 0.4), rng.uniform(5, 20))]
    for _ in range(rng.integers(30, 120)):
        if not twigs:
            break
        point, angle, thickness = twigs.pop(0)
        length = rng.uniform(30, 140)
        bends = [_direction(angle + rng.normal(0, 0.2)) * k / 3 for k in range(4)]
        corners = point + length * np.stack(bends)
        _lines(canvas, _bezier(corners, 10), 255, max(1, round(thickness)))
        for _ in range(rng.integers(1, 4)):
            if thickness > 1:
                bend = angle + rng.normal(0, 0.55)
                twigs.append((corners[3], bend, thickness * rng.uniform(0.5, 0.85)))


def _strands(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a bundle of hair or grass."""
    corners = rng.uniform(-0.1, 1.1, (4, 2)) * _CANVAS
    spread = rng.uniform(5, 90, (4, 1))
    for _ in range(rng.integers(8, 90)):
        strand = corners + rng.normal(0, 1, (4, 2)) * spread
        _lines(canvas, _bezier(strand), int(rng.integers(80, 256)), int(rng.choice((1, 1, 2, 3))))


def _whiskers(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a few tapered curves that start near one point."""
    root, side = rng.uniform(0.3, 0.7, 2) * _CANVAS, rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(3, 12)):
        angle, length = side + rng.normal(0, 0.4), rng.uniform(150, 500)
        ahead = np.linspace(0, length, 4)[:, None] * _direction(angle)
        aside = np.array((0, 0, 0.1, 0.3))[:, None] * rng.normal(0, 0.6) * length * _direction(angle + 1.57)
        points = _bezier(root + rng.normal(0, 25, 2) + ahead + aside)
        thickness = rng.uniform(2, 5)
        for index in range(23):
            _lines(canvas, points[index : index + 2], 255, max(1, round(thickness * (1 - index / 23))))


def _text(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw lines of letters."""
    size, thickness, font = rng.uniform(0.6, 3.5), int(rng.integers(1, 7)), int(rng.integers(0, 8))
    y = rng.uniform(0, 200)
    while y < _CANVAS:
        y += 34 * size
        text = "".join(rng.choice(_LETTERS, int(rng.integers(4, 40))))
        place = (int(rng.integers(-30, 200)), int(y))
        cv2.putText(canvas, text, place, font, size, 255, thickness, cv2.LINE_AA)
        if rng.random() < 0.15:
            y += rng.uniform(0, 300)


def _stars(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw round points of different brightness, or lights."""
    for _ in range(rng.integers(15, 200)):
        place = tuple(int(v) for v in rng.integers(0, _CANVAS * 16, 2))
        radius = int(16 * rng.choice((1, 1.5, 2, 3), p=(0.5, 0.25, 0.15, 0.1)))
        cv2.circle(canvas, place, radius, int(rng.integers(60, 256)), -1, cv2.LINE_AA, 4)
    canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 2))


def _snow(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw soft flakes, the near ones large and faint, all falling in one direction."""
    angle, streak = rng.uniform(0, 180), rng.uniform(1, 2.5)
    for _ in range(rng.integers(40, 260)):
        place = tuple(int(v) for v in rng.integers(0, _CANVAS, 2))
        radius = rng.uniform(1.5, rng.choice((4, 9)))
        axes = (max(1, round(radius * streak)), max(1, round(radius)))
        cv2.ellipse(canvas, place, axes, angle, 0, 360, int(rng.integers(90, 256)), -1, cv2.LINE_AA)
    canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(1.5, 4))


def _rain(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw many short, soft, parallel streaks."""
    angle, length = np.pi / 2 + rng.normal(0, 0.3), rng.uniform(30, 160)
    for _ in range(rng.integers(50, 260)):
        start = rng.uniform(-50, _CANVAS, 2)
        end = start + rng.uniform(0.5, 1.2) * length * _direction(angle + rng.normal(0, 0.02))
        _lines(canvas, np.stack((start, end)), int(rng.integers(60, 220)), int(rng.integers(1, 4)))
    canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.8, 2.5))


def _mesh(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw regularly spaced lines: a fence, a net, window bars or tiles."""
    spacing, thickness = rng.uniform(20, 160), int(rng.integers(1, 6))
    base, skew = rng.uniform(0, np.pi), rng.choice((np.pi / 2, rng.uniform(0.6, 2)))
    for angle in (base, base + skew)[: rng.integers(1, 3)]:
        along, across = _direction(angle), _direction(angle + np.pi / 2)
        for offset in np.arange(-0.75 * _CANVAS, 0.75 * _CANVAS, spacing):
            middle = _CANVAS / 2 + offset * across
            _lines(canvas, np.stack((middle - _CANVAS * along, middle + _CANVAS * along)), 255, thickness)


def _leaves(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw the sky between leaves: many small patches where a crown is thin."""
    fine = 0.6 * _noise(rng, int(rng.integers(60, 160))) + 0.4 * _noise(rng, int(rng.integers(160, 320)))
    field = fine + rng.uniform(0.2, 0.9) * _noise(rng, int(rng.integers(3, 8)))
    threshold = np.quantile(field, rng.uniform(0.75, 0.97))
    canvas[:] = np.clip((field - threshold) * rng.uniform(8, 40), 0, 1) * 255


def _flowers(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw flowers of about the same size; without petals they would be spots."""
    size, petals = rng.uniform(6, 40), int(rng.choice((5, 8, 13)))
    middle = rng.uniform(0, 1, 2) * _CANVAS
    spread = rng.uniform(0.15, 0.6) * _CANVAS
    for _ in range(rng.integers(10, 120)):
        x, y = rng.normal(middle, spread)
        radius, turn = size * rng.uniform(0.6, 1.2), rng.uniform(0, 7)
        flat, level = rng.uniform(0.4, 1), int(rng.integers(150, 256))
        for angle in turn + np.arange(petals) * 2 * np.pi / petals:
            end = np.array((x, y)) + radius * _direction(angle) * (1, flat)
            _lines(canvas, np.stack(((x, y), end)), level, max(1, round(2 * radius / petals)))
        centre = int(rng.integers(0, 200))
        cv2.circle(canvas, (round(x), round(y)), max(1, round(radius / 4)), centre, -1, cv2.LINE_AA)


def _spires(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw roofs that taper to a spire, a mast or a cross, or posts."""
    for _ in range(rng.integers(1, 6)):
        x, top = rng.uniform(0, 1) * _CANVAS, rng.uniform(0.05, 0.7) * _CANVAS
        half, shoulder = rng.uniform(4, 70), rng.uniform(0.05, 0.5) * _CANVAS
        tip, low = rng.uniform(0, 3), top + shoulder
        right = ((tip, top), (half, low), (half, _CANVAS))
        outline = np.array([(x + w, y) for w, y in right] + [(x - w, y) for w, y in right[::-1]])
        cv2.fillPoly(canvas, [np.rint(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        mast, thickness = top - rng.uniform(0, 150), int(rng.integers(1, 5))
        _lines(canvas, np.array(((x, mast), (x, top + 20))), 255, thickness)
        if rng.random() < 0.5:
            arm, at = rng.uniform(4, 20), mast + rng.uniform(4, 25)
            _lines(canvas, np.array(((x - arm, at), (x + arm, at))), 255, thickness)
    if rng.random() < 0.2:
        canvas[:] = np.rot90(canvas, int(rng.integers(1, 4)))


def _glints(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw light on water: flat streaks, smaller towards the horizon."""
    horizon, longest = rng.uniform(0, 0.6) * _CANVAS, rng.uniform(10, 60)
    for _ in range(rng.integers(60, 500)):
        depth = rng.random()
        x, y = rng.uniform(0, 1) * _CANVAS, horizon + depth**2 * (_CANVAS - horizon)
        axes = max(1, round(longest * depth * rng.uniform(0.3, 1))), max(1, round(longest * depth / 8))
        tilt = rng.normal(0, 4)
        level = int(rng.integers(80, 256))
        cv2.ellipse(canvas, (round(x), round(y)), axes, tilt, 0, 360, level, -1, cv2.LINE_AA)
    canvas[:] = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 1.5))


DAMAGE: dict[str, Drawing] = {"crack": _crack, "flake": _flake, "fold": _fold, "scratch": _scratch}
CONTENT: dict[str, Drawing] = {
    "branches": _branches,
    "flowers": _flowers,
    "glints": _glints,
    "leaves": _leaves,
    "mesh": _mesh,
    "rain": _rain,
    "snow": _snow,
    "spires": _spires,
    "stars": _stars,
    "strands": _strands,
    "text": _text,
    "whiskers": _whiskers,
    "wires": _wires,
}
