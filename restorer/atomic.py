"""Write files atomically."""

import errno
import os
import re
import uuid
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees a part of it. Makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the name without the bytes
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk takes no more: it is full, beyond a quota, failing or read-only."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_partial(name: str) -> bool:
    """Whether a file of that name is one that write_atomic() did not finish."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.part", name) is not None
