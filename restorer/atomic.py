"""Write files atomically."""

import errno
import os
import re
import tempfile
import uuid
from pathlib import Path

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see all of it or nothing. Create the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave the name without the bytes
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def copy_times(source: Path, target: Path) -> None:
    """Give a file the times of access and modification of another. Raises OSError."""
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def check_writable(folder: Path) -> None:
    """Write a file in a folder, read it and delete it. Raises OSError.

    Of a folder that does not exist yet, check the one that it would be created in.
    """
    with tempfile.NamedTemporaryFile(dir=nearest_existing(folder), prefix=".check") as file:
        file.write(data := uuid.uuid4().bytes)
        file.flush()
        file.seek(0)
        if file.read() != data:
            raise OSError(errno.EIO, os.strerror(errno.EIO), file.name)


def nearest_existing(folder: Path) -> Path:
    """Return a folder, or the first of its parents that exists."""
    return next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that a disk accepts no writes: full, over quota, failing or read-only."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def is_partial(name: str) -> bool:
    """Return whether a file of that name was left by an interrupted write_atomic()."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.part", name) is not None
