"""Deletes what nobody needs any more: uploads, previews, results, and what an earlier process left."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Only names that Gradio or this project gives: a folder may hold other things of its owner's
_OURS = re.compile(r"[0-9a-f]{32}(\.part)?|[0-9a-f]{64}|tmp[a-z0-9_]{8}")


class CacheCleaner:
    """Sweeps folders of things that each have an age, counted anew from every change.

    folders  whose direct children are swept, where their names are ours; no link is followed
    needed   tells of a name that it must stay however old it is
    age      in seconds

    The age is counted by a clock that nobody sets: what was not there at one sweep is not older at the next
    than the time between them.
    """

    def __init__(
        self,
        *folders: Path,
        needed: Callable[[str], bool],
        age: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders, self._needed, self._age, self._clock = folders, needed, age, clock
        self._seen: dict[Path, tuple[int, float]] = {}  # its latest change, and when the clock said it was
        self._last: float | None = None

    def sweep(self) -> list[Path]:
        """Delete what is too old; what was deleted. What cannot be is tried again at the next sweep."""
        now, gone, seen = self._clock(), [], {}
        for path in self._ours():
            changed = _changed(path)
            before, since = self._seen.get(path, (None, 0.0))
            if before != changed:
                old = max(0.0, time.time() - changed / 1e9)
                since = now - (old if self._last is None else min(old, now - self._last))
            if self._needed(path.name):
                since = now
            if now - since >= self._age and _delete(path):
                gone.append(path)
            else:
                seen[path] = changed, since
        self._seen, self._last = seen, now
        return gone

    def _ours(self) -> Iterator[Path]:
        for folder in self._folders:
            if folder.is_dir():
                yield from (path for path in folder.iterdir() if _OURS.fullmatch(path.name))


def _changed(path: Path) -> int:
    """When anything in it was last changed, in nanoseconds; ctime too, for a copy keeps the other."""
    latest = 0
    for part in (path, *([] if path.is_symlink() else path.rglob("*"))):
        try:
            stat = part.lstat()
        except OSError:
            continue
        latest = max(latest, stat.st_mtime_ns, stat.st_ctime_ns)
    return latest


def _delete(path: Path) -> bool:
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError:  # in use, or already gone
        return not path.exists()
    return True
