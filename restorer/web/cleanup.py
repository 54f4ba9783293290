"""Delete what Gradio's delete_cache misses: results, ended jobs, and files of earlier processes."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# Only names that Gradio or this project creates: a folder may hold other files of its owner
_OWN_NAMES = re.compile(r"[0-9a-f]{32}(\.part)?|[0-9a-f]{64}|tmp[a-z0-9_]{8}")


def sweep(folders: Iterable[Path], *, in_use: Callable[[str], bool], max_age: float) -> list[Path]:
    """Delete the entries of `folders` that were not changed for `max_age` seconds, and return them.

    Only direct children with names of ours are deleted; links are not followed. What cannot be deleted is
    tried again at the next sweep.

    in_use  returns whether an entry of that name must stay whatever its age
    """
    oldest, deleted = time.time() - max_age, []
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if not _OWN_NAMES.fullmatch(path.name) or in_use(path.name):
                continue
            if _last_change(path) <= oldest and _delete(path):
                deleted.append(path)
    return deleted


def _last_change(path: Path) -> float:
    """Return the latest change below a path in seconds since 1970; ctime too, as copies may keep mtime."""
    latest = 0.0
    below = (  # links are not followed, and a folder that disappears meanwhile is passed over
        os.path.join(parent, name) for parent, folders, files in os.walk(path) for name in folders + files
    )
    for part in (path, *(() if path.is_symlink() else below)):
        try:
            stat = os.lstat(part)
        except OSError:
            continue
        latest = max(latest, stat.st_mtime, stat.st_ctime)
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
