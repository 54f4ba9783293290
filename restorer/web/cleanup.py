"""Delete expired uploads, previews and results, and what an earlier process left behind."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Only names that Gradio or this project creates: a folder may hold other files of its owner
_OWN_NAMES = re.compile(r"[0-9a-f]{32}(\.part)?|[0-9a-f]{64}|tmp[a-z0-9_]{8}")


class CacheCleaner:
    """Delete entries of `folders` that were not changed for `max_age` seconds.

    folders  only their direct children with names of ours are deleted; links are not followed
    in_use   returns whether an entry of that name must stay whatever its age
    max_age  in seconds
    clock    a monotonic clock in seconds, so that setting the system clock deletes nothing early or late:
             an entry that is new since the last sweep is at most as old as that sweep
    """

    def __init__(
        self,
        *folders: Path,
        in_use: Callable[[str], bool],
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders, self._in_use, self._max_age, self._clock = folders, in_use, max_age, clock
        self._entries: dict[Path, tuple[int, float]] = {}  # last change in ns, and `clock` at that time
        self._last_sweep: float | None = None

    def sweep(self) -> list[Path]:
        """Delete expired entries and return them. What cannot be deleted is tried again at the next sweep."""
        now, deleted, entries = self._clock(), [], {}
        for path in self._own_entries():
            changed = _last_change(path)
            previous, since = self._entries.get(path, (None, 0.0))
            if previous != changed:
                age = max(0.0, time.time() - changed / 1e9)
                since = now - (age if self._last_sweep is None else min(age, now - self._last_sweep))
            if self._in_use(path.name):
                since = now
            if now - since >= self._max_age and _delete(path):
                deleted.append(path)
            else:
                entries[path] = changed, since
        self._entries, self._last_sweep = entries, now
        return deleted

    def _own_entries(self) -> Iterator[Path]:
        for folder in self._folders:
            if folder.is_dir():
                yield from (path for path in folder.iterdir() if _OWN_NAMES.fullmatch(path.name))


def _last_change(path: Path) -> int:
    """Return the latest change below a path in nanoseconds; ctime too, as a copy may preserve mtime."""
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
    except OSError:  # in use, or already deleted
        return not path.exists()
    return True
