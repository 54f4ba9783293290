"""Everything this package raises on purpose.

    RestoreError
        InvalidOption        an option's value is outside its range
        UnsupportedImage     not an image, or of a kind that is not read
            DamagedImage     of a kind that is read, but cut off or broken
        ImageTooLarge        more pixels, in or out, than a limit or a format allows
        UnknownModel         no model of that name
        WeightsUnavailable   the model's file is absent and could not be fetched
        BadWeights           the model's file is there, but is not what it should be
        OutOfMemory          not even the smallest tile fits
        DeviceLost           the GPU failed: this process can use it no more
        InvalidOutput        a network gave NaN, a wrong shape, or a tile is missing
        Cancelled            the caller asked to stop
        TimedOut             the device told of no step for longer than it may: it is given up
        QueueFull            too many are waiting, or the server is ending
        DiskFull             what comes in or goes out finds no room on the server's disk

A message names the value, the limit and what to do. It holds no path of a server but where
the path is the point (weights), so a door may show it to a stranger.
"""


class RestoreError(Exception):
    """The root: catch this to catch every expected failure."""


class InvalidOption(RestoreError, ValueError):
    pass


class UnsupportedImage(RestoreError):
    pass


class DamagedImage(UnsupportedImage):
    pass


class ImageTooLarge(RestoreError):
    pass


class UnknownModel(RestoreError):
    pass


class WeightsUnavailable(RestoreError):
    pass


class BadWeights(RestoreError):
    pass


class OutOfMemory(RestoreError):
    pass


class DeviceLost(RestoreError):
    pass


class InvalidOutput(RestoreError):
    pass


class TimedOut(RestoreError):
    pass


class QueueFull(RestoreError):
    pass


class DiskFull(RestoreError):
    pass


class Cancelled(RestoreError):
    """Raise it from a progress callback to stop a restoration within one tile."""
