"""Every error that this package raises on purpose.

    RestoreError
        InvalidOption        an option's value is outside its range
            UnsuitableOption  ... for a photo of this size, but not for others
        UnsupportedImage     not an image, or of an unsupported format
            DamagedImage     of a supported format, but truncated or corrupt
        ImageTooLarge        more input or output pixels than a limit or a format allows
        UnknownModel         no model of that name
        WeightsUnavailable   the model's file is absent and could not be downloaded
        BadWeights           the model's file is present but invalid
        OutOfMemory          not even the smallest tile fits into memory
        DeviceLost           the GPU failed; this process cannot use it any longer
        InvalidOutput        a network returned NaN or a wrong shape, or a tile is missing
        Cancelled            the caller stopped the work
        TimedOut             no progress for too long; the job was aborted
        QueueFull            the queue is full, or the server is shutting down
        DiskFull             a disk has no room for an upload or a result

A message names the value, the limit and what to do. It contains no server path except where the path is
the point (weights), so interfaces may show it to untrusted clients.
"""


class RestoreError(Exception):
    """Base class of every expected error."""


class InvalidOption(RestoreError, ValueError):
    pass


class UnsuitableOption(InvalidOption):
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
    """Its arguments are a summary without paths and addresses, and details that may have them."""

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


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
    """Raise this in a progress callback to stop a restoration within one tile."""
