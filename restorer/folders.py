"""Walk a folder; whatever is left out of it is listed with the reason."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

NOT_A_PHOTO = "its name does not end like that of a supported format"
HIDDEN = "hidden"
RESULTS = "the folder of the results"


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not restored.

    reason  in words for users
    failed  whether it could not be read, which is a failure
    """

    path: str
    reason: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {'failed' if self.failed else 'left out'}, {self.reason}"


def files(
    folder: str | os.PathLike[str], left_out: list[LeftOut], *, exclude: str | os.PathLike[str] = ""
) -> Iterator["os.DirEntry[str]"]:
    """Yield every file below a folder in order of name. Links to files are followed.

    left_out  what is not yielded is added here: hidden files and folders, links to folders, what cannot be
              read, and the folder `exclude`, which is that of the results
    """
    exclude = os.path.realpath(exclude) if exclude else ""
    stack = _listed(folder, left_out)
    while stack:
        entry = stack.pop()
        if reason := _reason(entry, exclude):
            left_out.append(LeftOut(entry.path, reason))
        elif _is_folder(entry):
            stack += _listed(entry.path, left_out)
        else:
            yield entry


def _listed(folder: str | os.PathLike[str], left_out: list[LeftOut]) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder, last name first."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except FileNotFoundError:  # removed meanwhile
        return []
    except OSError as error:
        left_out.append(LeftOut(os.fspath(folder), error.strerror or str(error), failed=True))
        return []


def _reason(entry: "os.DirEntry[str]", exclude: str) -> str:
    """Return why an entry is left out, whatever its suffix; "" if it is not."""
    if entry.name.startswith("."):
        return HIDDEN
    if _is_folder(entry):
        return RESULTS if exclude and os.path.realpath(entry.path) == exclude else ""
    try:
        if entry.is_dir():
            return "a link to a folder; name that folder to restore its photos"
        # a link to nothing fails when it is read, as a photo of that name was expected
        return "" if entry.is_file() or not os.path.exists(entry.path) else "not a regular file"
    except OSError:
        return ""


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir(follow_symlinks=False)
