"""Fetch a model's file so that what lies in the weights folder is whole and is what it should be."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import filelock
import httpx
from tqdm import tqdm

from .errors import BadWeights, WeightsUnavailable
from .models import Model

_CHUNK = 1 << 20
_TIMEOUT = httpx.Timeout(30, connect=10)


def ensure(model: Model, weights: Path) -> Path:
    """The path of a model's verified file, downloaded first where it is absent.

    Tries the Hugging Face mirror, then the official release; writes to a `.part` file that a later call
    resumes; one process at a time. A custom model is taken as it is. Raises WeightsUnavailable when
    the file is absent and no address answers, and BadWeights when its sha256 is wrong: such a file is
    renamed to `<name>.bad` and never loaded.
    """
    path = weights / model.file
    if not model.sha256:
        if not path.is_file():
            raise WeightsUnavailable(f"{model.name} was removed: {path} is gone")
        return path
    if path.is_file():
        _verify(model, path, _sha256(path))
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():  # another process may have fetched it while we waited
                _fetch(model, path)
    except OSError as error:
        raise WeightsUnavailable(
            f"{model.name} is not present and cannot be stored in {path.parent}: {error.strerror}"
        ) from error
    return path


def addresses(model: Model) -> Iterator[str]:
    """Where the file can be had, best first."""
    if model.mirror:
        from huggingface_hub import hf_hub_url

        yield hf_hub_url(model.mirror, model.file)
    yield model.url


def _fetch(model: Model, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    bad: BadWeights | None = None
    for address in [] if _offline() else addresses(model):
        try:
            _verify(model, part, _stream(address, part, model))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failures.append(f"{address}: {error or type(error).__name__}")
        except BadWeights as error:
            bad = error
        else:
            part.replace(path)
            return
    if bad is not None:
        raise bad
    why = "; ".join(failures) or "HF_HUB_OFFLINE is set"
    raise WeightsUnavailable(
        f"{model.name} is not present and could not be downloaded ({why}). "
        f"Fetch {model.url} yourself and put it into {path.parent} as {path.name}"
    )


def _stream(address: str, part: Path, model: Model) -> str:
    """Download to `part`, going on where an earlier try stopped; the sha256 of the whole file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if 0 < have < model.bytes:
        headers["Range"] = f"bytes={have}-"
    client = httpx.stream("GET", address, headers=headers, follow_redirects=True, timeout=_TIMEOUT)
    with client as response:
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        digest = hashlib.sha256(part.read_bytes() if resumed else b"")
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(
                desc=model.name,
                total=model.bytes,
                initial=have if resumed else 0,
                unit="B",
                unit_scale=True,
                disable=None,  # no bar where nobody watches
            ) as bar,
        ):
            for chunk in response.iter_bytes(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
    if (size := part.stat().st_size) < model.bytes:
        raise httpx.RemoteProtocolError(f"ended after {size} of {model.bytes} bytes")
    return digest.hexdigest()


def _verify(model: Model, path: Path, found: str) -> None:
    if found == model.sha256:
        return
    aside = path.with_name(path.name.removesuffix(".part") + ".bad")
    try:
        path.replace(aside)
        told = f"It was set aside as {aside.name}; the next try downloads it again"
    except OSError:
        told = "Delete it"
    raise BadWeights(
        f"{path.name} is not {model.name}: its sha256 is {found} and should be {model.sha256}. {told}"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
