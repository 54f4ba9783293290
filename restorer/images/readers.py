"""Read each format: the samples and the metadata as they are stored in the file."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UnsupportedImage
from . import icc
from .formats import heif, jp2, jpeg, jxl, metadata, png, tiff, webp
from .formats.decoded import CheckSize, Raw
from .formats.metadata import FIRST_ONLY, Item, RawMetadata

# Pillow's modes, and the mode each is converted to
_TARGETS = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA"}
_TARGETS |= {"RGB": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "RGBA": "RGBA", "RGBa": "RGBA"}
_CONVERTED = "the colours were converted from {} to sRGB"

Reader = Callable[[bytes, CheckSize, "list[str]"], Raw]


def _read_jpeg(data: bytes, check: CheckSize, warnings: list[str]) -> Raw:
    image, blocks = jpeg.split_metadata(data)
    if jpeg.FURTHER_PICTURES in blocks.others:
        warnings.append(FIRST_ONLY)
        blocks = replace(blocks, others=tuple(set(blocks.others) - {jpeg.FURTHER_PICTURES}))
    frame = jpeg.frame(image)
    check(frame.width, frame.height)
    if frame.hierarchical:
        raise UnsupportedImage("hierarchical JPEG is not supported; save the photo as ordinary JPEG or PNG")
    complete = jpeg.has_end(image)
    if frame.lossless or frame.bits > 8:
        if not complete:
            raise ValueError("no end marker")
        return Raw(jpeg.decode_deep(image, frame), blocks, lossless=frame.lossless)
    if complete:
        return _samples(_open(image, "JPEG", check), blocks, warnings)
    # What follows the last pixel is not read: all endings give one picture only if all of it is there
    first, *others = (_open(ended, "JPEG", check) for ended in jpeg.with_ends(image))
    if any(other.tobytes() != first.tobytes() for other in others):
        raise ValueError("truncated")
    warnings.append("the file lacks its end marker; all pixels are there")
    return _samples(first, blocks, warnings)


def _read_png(data: bytes, check: CheckSize, warnings: list[str]) -> Raw:
    frames = png.frame_count(data)
    check(*png.size(data), part=True, frames=frames)
    if frames > 1:
        warnings.append(FIRST_ONLY)
    image, blocks = png.split_metadata(data, warnings)
    check(*png.size(image))
    return Raw(imagecodecs.png_decode(image), blocks, animated=frames > 1)


def _read_tiff(data: bytes, check: CheckSize, warnings: list[str]) -> Raw:
    data, block = tiff.main_page(data, metadata.parse_exif(data, warnings))
    directory = tiff.Directory(block)
    check(directory.width, directory.height)
    check(*directory.tile, part=True)
    directory.check_complete(len(data))
    pages = tiff.count_pages(data) if block.has_next else 1
    others = metadata.left_out(block)
    if pages > 1:
        warnings.append(FIRST_ONLY)
    elif block.has_next:
        others += (Item("thumbnail or mask"),)
    exif, dpi = metadata.serialize_exif(block), metadata.resolution(block)
    blocks = replace(directory.metadata(), exif=exif, dpi=dpi, others=others)
    samples = tiff.decode(data, directory, warnings)
    if samples is not None:
        if directory.channels > np.atleast_3d(samples).shape[2]:
            warnings.append("channels beyond colour and alpha were left out")
        if directory.photometric in tiff.LAB:
            warnings.append(_CONVERTED.format("Lab"))
            blocks = replace(blocks, icc=b"")
        return Raw(samples, blocks, pages=pages)
    try:
        image = _open(directory.strip_metadata(data), "TIFF", check)
    except UnidentifiedImageError as error:
        raise UnsupportedImage(
            f"unsupported TIFF (photometric interpretation {directory.photometric}, "
            f"{directory.channels} x {max(directory.bits)} bits); save it as RGB"
        ) from error
    if max(directory.bits) > 8:
        warnings.append("the colours were reduced to 8 bits per channel")
    return replace(_samples(image, blocks, warnings), pages=pages)


def _read_other(data: bytes, check: CheckSize, warnings: list[str], *, image_format: str) -> Raw:
    image = _open(data, image_format, check)
    blocks = RawMetadata.from_pillow(image.info)
    animated = getattr(image, "is_animated", False)
    if animated:
        warnings.append(FIRST_ONLY)
    if image_format == "GIF" and b"XMP DataXMP" in data:
        blocks = replace(blocks, others=(Item("XMP"),))
    if image_format != "WEBP":
        return replace(_samples(image, blocks, warnings), animated=animated)
    chunks = webp.chunks(data)
    raw = _samples(image, replace(blocks, others=webp.others(chunks)), warnings)
    return replace(raw, lossless=not animated and webp.LOSSLESS in chunks, animated=animated)


def _open(data: bytes, image_format: str, check: CheckSize) -> Image.Image:
    if image_format == "WEBP":  # only this reader scans every frame
        check(1, 1, part=True, frames=data.count(b"ANMF"))
    image = Image.open(io.BytesIO(data), formats=[image_format])
    check(image.width, image.height)
    image.load()
    return image


def _samples(image: Image.Image, blocks: RawMetadata, warnings: list[str]) -> Raw:
    """Return the samples of a loaded 8-bit image, (H, W) or (H, W, 2 to 4). CMYK and Lab become sRGB."""
    if image.mode == "LAB":
        warnings.append(_CONVERTED.format("Lab"))
        return Raw(icc.lab_to_srgb(np.asarray(image), signed=True), replace(blocks, icc=b""))
    if image.mode == "CMYK":
        warnings.append(_CONVERTED.format("CMYK"))
        image, blocks = _cmyk_to_srgb(image, blocks.icc, warnings), replace(blocks, icc=b"")
    target = _TARGETS.get(image.mode)
    if target is None:
        raise UnsupportedImage(f"unsupported pixel format {image.mode}; save the image as RGB")
    if "transparency" in image.info and target in ("L", "RGB"):
        target = {"L": "LA", "RGB": "RGBA"}[target]
    return Raw(np.asarray(image if target == image.mode else image.convert(target)), blocks)


def _cmyk_to_srgb(image: Image.Image, profile: bytes, warnings: list[str]) -> Image.Image:
    if icc.color_space(profile) != "CMYK":
        state = "with a damaged profile" if profile else "without a profile"
        warnings.append(f"CMYK {state}: the colours are approximate")
        profile = b""
    return icc.to_srgb(image, profile)


READERS: dict[str, Reader] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "tiff": _read_tiff,
    "avif": heif.read_avif,
    "heif": heif.read_heic,
    "jxl": jxl.read,
    "jp2": jp2.read,
    "webp": partial(_read_other, image_format="WEBP"),
    "gif": partial(_read_other, image_format="GIF"),
    "bmp": partial(_read_other, image_format="BMP"),
}
