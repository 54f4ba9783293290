"""Where the points of a stored picture are in the result, for the metadata that counts in pixels."""

from typing import NamedTuple

Box = tuple[float, float, float, float]  # left, top, width, height; a point has no size


class Placement(NamedTuple):
    """The orientation that was applied, then the scale.

    orientation       of EXIF, 1 to 8
    width, height     of the stored picture, in pixels
    scale_x, scale_y  side of the result divided by that of the stored picture, along the latter's x and y
    """

    orientation: int = 1
    width: float = 1.0
    height: float = 1.0
    scale_x: float = 1.0
    scale_y: float = 1.0

    @property
    def turned(self) -> bool:
        """Whether x and y are exchanged."""
        return self.orientation >= 5

    @property
    def fractions(self) -> "Placement":
        """For coordinates that are fractions of the sides, which the scale does not change."""
        return Placement(self.orientation)

    @property
    def changes_nothing(self) -> bool:
        return (self.orientation, self.scale_x, self.scale_y) == (1, 1.0, 1.0)

    def box(self, box: Box) -> Box:
        """Return where a box of the stored picture is in the result."""
        left, top, across, down = box
        left, across, width = (value * self.scale_x for value in (left, across, self.width))
        top, down, height = (value * self.scale_y for value in (top, down, self.height))
        if self.turned:
            left, top, across, down, width, height = top, left, down, across, height, width
        if self.orientation in (2, 3, 6, 7):
            left = width - left - across
        if self.orientation in (3, 4, 7, 8):
            top = height - top - down
        return left, top, across, down

    def pair(self, x: float, y: float) -> tuple[float, float]:
        """Return two lengths, or two densities, along the axes of the result."""
        x, y = x * self.scale_x, y * self.scale_y
        return (y, x) if self.turned else (x, y)


def placement(orientation: int, stored: tuple[int, int], result: tuple[int, int]) -> Placement:
    """Return how a stored picture of (width, height) became a result of (width, height)."""
    width, height = result[::-1] if orientation >= 5 else result
    return Placement(orientation, *stored, width / stored[0], height / stored[1])
