"""Read and write JPEG XL (ISO/IEC 18181) with libjxl, called through the copy that imagecodecs installs.

imagecodecs' own functions neither return nor store a profile, and declare 16-bit samples as linear light.
The structures are those of libjxl's public headers, 0.9 and later.
"""

import ctypes
import functools
from ctypes import POINTER, byref, c_double, c_float, c_int, c_int64, c_size_t, c_uint8, c_uint32, c_void_p
from dataclasses import replace

import imagecodecs
import numpy as np

from ...errors import UnsupportedImage
from .boxes import boxes
from .decoded import CheckSize, Raw
from .metadata import C2PA, FIRST_ONLY, Item, RawMetadata

MAX_SIDE = 2**30 - 1
CONTAINER, CODESTREAM = b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"
_MAX_INFLATED = 1 << 23  # bytes of a compressed metadata box
_PART = 1 << 20  # bytes of output at a time
# Of 10. Of 6 megapixels, lossy 5 takes six times as long for 14% less, lossless 3 three times for 11% less
_LOSSY_EFFORT, _LOSSLESS_EFFORT = 4, 2
_EFFORT = 0  # JxlEncoderFrameSettingId
# JxlDecoderStatus and JxlEncoderStatus
_SUCCESS, _MORE_OUTPUT, _NEEDS_BUFFER, _BASIC_INFO, _COLOUR, _IMAGE = 0, 2, 5, 0x40, 0x100, 0x1000
_ORIGINAL = 0  # JxlColorProfileTarget
_GREY = 1  # JxlColorSpace
_CMYK = b"CMYK"  # in the header of a profile
_SRGB = (1, 1, 13)  # JxlWhitePoint, JxlPrimaries, JxlTransferFunction
_UINT8, _UINT16 = 2, 3  # JxlDataType
# Boxes that describe how the picture is stored
_STORAGE = (b"JXL ", b"ftyp", b"jxll", b"jxli", b"jxlc", b"jxlp", b"jbrd")
_OTHERS = {b"jhgm": Item("gain map")}


class _BasicInfo(ctypes.Structure):
    _fields_ = (
        *((name, c_uint32) for name in ("container", "width", "height", "bits", "exponent_bits")),
        ("intensity_target", c_float),
        ("min_nits", c_float),
        ("relative_to_max_display", c_int),
        ("linear_below", c_float),
        *((name, c_int) for name in ("original_profile", "preview", "animated", "orientation")),
        *((name, c_uint32) for name in ("colours", "extra_channels", "alpha_bits", "alpha_exponent_bits")),
        ("premultiplied", c_int),
        ("_unused", c_uint32 * 8),  # preview, animation, intrinsic size
        ("_padding", c_uint8 * 100),
    )


class _ColourEncoding(ctypes.Structure):
    _fields_ = (
        ("space", c_int),
        ("white_point", c_int),
        ("_white", c_double * 2),
        ("primaries", c_int),
        ("_chromaticities", c_double * 6),
        ("transfer", c_int),
        ("gamma", c_double),
        ("intent", c_int),
    )


class _Cms(ctypes.Structure):
    """JxlCmsInterface: the functions of a colour management system."""

    _fields_ = (("functions", c_void_p * 8),)


class _PixelFormat(ctypes.Structure):
    _fields_ = (("channels", c_uint32), ("kind", c_int), ("endianness", c_int), ("align", c_size_t))


# Argument types by function, without the prefix Jxl
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "DecoderCreate": (c_void_p,),
    "DecoderDestroy": (c_void_p,),
    "DecoderSetKeepOrientation": (c_void_p, c_int),
    "DecoderSetUnpremultiplyAlpha": (c_void_p, c_int),
    "DecoderSetInput": (c_void_p, c_void_p, c_size_t),
    "DecoderCloseInput": (c_void_p,),
    "DecoderSubscribeEvents": (c_void_p, c_int),
    "DecoderProcessInput": (c_void_p,),
    "DecoderGetBasicInfo": (c_void_p, POINTER(_BasicInfo)),
    "DecoderGetColorAsEncodedProfile": (c_void_p, c_int, POINTER(_ColourEncoding)),
    "GetDefaultCms": (),
    "DecoderSetCms": (c_void_p, _Cms),
    "DecoderSetOutputColorProfile": (c_void_p, c_void_p, c_void_p, c_size_t),
    "DecoderGetICCProfileSize": (c_void_p, c_int, POINTER(c_size_t)),
    "DecoderGetColorAsICCProfile": (c_void_p, c_int, c_void_p, c_size_t),
    "DecoderSetImageOutBuffer": (c_void_p, POINTER(_PixelFormat), c_void_p, c_size_t),
    "EncoderCreate": (c_void_p,),
    "EncoderDestroy": (c_void_p,),
    "EncoderSetParallelRunner": (c_void_p, c_void_p, c_void_p),
    "EncoderInitBasicInfo": (POINTER(_BasicInfo),),
    "EncoderSetBasicInfo": (c_void_p, POINTER(_BasicInfo)),
    "EncoderSetICCProfile": (c_void_p, c_void_p, c_size_t),
    "ColorEncodingSetToSRGB": (POINTER(_ColourEncoding), c_int),
    "EncoderSetColorEncoding": (c_void_p, POINTER(_ColourEncoding)),
    "EncoderFrameSettingsCreate": (c_void_p, c_void_p),
    "EncoderFrameSettingsSetOption": (c_void_p, c_int, c_int64),
    "EncoderSetFrameLossless": (c_void_p, c_int),
    "EncoderSetFrameDistance": (c_void_p, c_float),
    "EncoderDistanceFromQuality": (c_float,),
    "EncoderAddImageFrame": (c_void_p, POINTER(_PixelFormat), c_void_p, c_size_t),
    "EncoderUseBoxes": (c_void_p,),
    "EncoderAddBox": (c_void_p, c_void_p, c_void_p, c_size_t, c_int),
    "EncoderCloseInput": (c_void_p,),
    "EncoderProcessOutput": (c_void_p, POINTER(c_void_p), POINTER(c_size_t)),
    "ThreadParallelRunnerCreate": (c_void_p, c_size_t),
    "ThreadParallelRunnerDestroy": (c_void_p,),
    "ThreadParallelRunnerDefaultNumWorkerThreads": (),
}
_RESULTS: dict[str, type] = {name: c_void_p for name in _ARGUMENTS if name.endswith("Create")}
_RESULTS |= {"EncoderDistanceFromQuality": c_float, "GetDefaultCms": POINTER(_Cms)}


@functools.cache
def library() -> ctypes.CDLL:
    """Load libjxl. Raises UnsupportedImage where imagecodecs has no shared copy of it."""
    try:
        from imagecodecs import _jpegxl

        # Functions are looked up in the libraries that the extension was linked with, too
        libjxl = ctypes.CDLL(_jpegxl.__file__)
        for name, arguments in _ARGUMENTS.items():
            function = getattr(libjxl, f"Jxl{name}")
            function.argtypes, function.restype = arguments, _RESULTS.get(name, c_int)
    except (ImportError, OSError, AttributeError) as error:
        raise UnsupportedImage(
            "JPEG XL is not supported here: imagecodecs was installed without libjxl; use PNG or TIFF"
        ) from error
    return libjxl


def read(data: bytes, check: CheckSize, warnings: list[str]) -> Raw:
    """Decode the first frame; more than 8 bits are scaled to uint16.

    Raises ValueError for a damaged file and UnsupportedImage for CMYK.
    """
    blocks, has_jpeg = _metadata(data, warnings)
    libjxl = library()
    decoder = c_void_p(libjxl.JxlDecoderCreate(None))
    try:
        _check(libjxl.JxlDecoderSetKeepOrientation(decoder, True))
        _check(libjxl.JxlDecoderSetUnpremultiplyAlpha(decoder, True))
        _check(libjxl.JxlDecoderSetCms(decoder, libjxl.JxlGetDefaultCms().contents))
        _check(libjxl.JxlDecoderSubscribeEvents(decoder, _BASIC_INFO | _COLOUR | _IMAGE))
        _check(libjxl.JxlDecoderSetInput(decoder, data, len(data)))
        libjxl.JxlDecoderCloseInput(decoder)
        info = _BasicInfo()
        _expect(libjxl, decoder, _BASIC_INFO)
        _check(libjxl.JxlDecoderGetBasicInfo(decoder, byref(info)))
        check(info.width, info.height)
        _expect(libjxl, decoder, _COLOUR)
        blocks = replace(blocks, icc=_profile(libjxl, decoder, info))
        samples = _decode(libjxl, decoder, info)
    finally:
        libjxl.JxlDecoderDestroy(decoder)
    if info.animated:
        warnings.append(FIRST_ONLY)
    if info.extra_channels > (info.alpha_bits > 0):
        warnings.append("channels beyond colour and alpha were left out")
    if info.exponent_bits or info.bits > 16:
        warnings.append("the floating-point samples were reduced to 16 bits per channel, from 0 to 1")
    lossless = bool(info.original_profile) and not has_jpeg
    return Raw(samples, blocks, orientation=info.orientation, lossless=lossless)


def _decode(libjxl: ctypes.CDLL, decoder: c_void_p, info: _BasicInfo) -> np.ndarray:
    channels = info.colours + (info.alpha_bits > 0)
    deep = info.bits > 8
    layout = _PixelFormat(channels, _UINT16 if deep else _UINT8, 0, 0)
    _expect(libjxl, decoder, _NEEDS_BUFFER)
    samples = np.empty((info.height, info.width, channels), np.uint16 if deep else np.uint8)
    buffer = samples.ctypes.data_as(c_void_p)
    _check(libjxl.JxlDecoderSetImageOutBuffer(decoder, byref(layout), buffer, samples.nbytes))
    _expect(libjxl, decoder, _IMAGE)
    return samples


def _profile(libjxl: ctypes.CDLL, decoder: c_void_p, info: _BasicInfo) -> bytes:
    """Make the file's colour space that of the decoded samples; return its ICC profile, b"" for sRGB."""
    colours, size = _ColourEncoding(), c_size_t()
    described = libjxl.JxlDecoderGetColorAsEncodedProfile(decoder, _ORIGINAL, byref(colours)) == _SUCCESS
    primaries = _SRGB[1] if colours.space == _GREY else colours.primaries  # grey has none
    if described and (colours.white_point, primaries, colours.transfer) == _SRGB:
        return b""
    _check(libjxl.JxlDecoderGetICCProfileSize(decoder, _ORIGINAL, byref(size)))
    profile = ctypes.create_string_buffer(size.value)
    _check(libjxl.JxlDecoderGetColorAsICCProfile(decoder, _ORIGINAL, profile, size.value))
    if profile.raw[16:20] == _CMYK:
        raise UnsupportedImage("CMYK in JPEG XL is not supported; save the photo as RGB or as TIFF")
    if not info.original_profile:  # a lossy file, which could be decoded to linear light
        _check(libjxl.JxlDecoderSetOutputColorProfile(decoder, None, profile, size.value))
    return profile.raw


def _metadata(data: bytes, warnings: list[str]) -> tuple[RawMetadata, bool]:
    """Return what the boxes of a file hold, and whether it is a transcoded JPEG."""
    blocks, others, has_jpeg, room = dict[bytes, bytes](), [], False, _MAX_INFLATED
    for kind, contents in boxes(data) if data.startswith(CONTAINER) else ():
        if kind == b"brob":
            kind = contents[:4]
            try:
                contents = bytes(imagecodecs.brotli_decode(contents[4:], out=room))
            except (RuntimeError, ValueError):
                warnings.append("a damaged metadata box was left out")
                continue
            room = max(room - len(contents), 1)
        has_jpeg |= kind == b"jbrd"
        if kind in (b"Exif", b"xml "):
            blocks.setdefault(kind, contents)
        elif kind == b"jumb" and b"c2pa" in contents:
            others.append(C2PA)
        elif kind not in _STORAGE:
            others.append(_OTHERS.get(kind) or Item("JPEG XL boxes", kind.decode("latin-1")))
    exif = blocks.get(b"Exif", b"")
    # The offset of the TIFF header precedes it; pillow-jxl-plugin leaves it out
    start = 0 if exif.startswith((b"II*\0", b"MM\0*")) else 4 + int.from_bytes(exif[:4], "big")
    metadata = RawMetadata(
        exif=exif[start:], xmp=blocks.get(b"xml ", b""), others=tuple(dict.fromkeys(others))
    )
    return metadata, has_jpeg


def encode(samples: np.ndarray, metadata: RawMetadata, quality: int, *, lossless: bool) -> bytes:
    """Return a file of (H, W) or (H, W, 2 to 4) samples, uint8 or uint16, with profile, EXIF and XMP.

    quality  1 to 100, which libjxl maps to its distance as for cjxl; 100 is lossless

    Raises UnsupportedImage where libjxl is absent, ValueError if it fails.
    """
    libjxl = library()
    samples = np.ascontiguousarray(np.atleast_3d(samples))
    height, width, channels = samples.shape
    bits, grey, alpha = samples.itemsize * 8, channels < 3, channels in (2, 4)
    lossless = lossless or quality == 100
    effort = _LOSSLESS_EFFORT if lossless else _LOSSY_EFFORT
    encoder = c_void_p(libjxl.JxlEncoderCreate(None))
    threads = libjxl.JxlThreadParallelRunnerDefaultNumWorkerThreads()
    runner = c_void_p(libjxl.JxlThreadParallelRunnerCreate(None, threads))
    try:
        run = ctypes.cast(libjxl.JxlThreadParallelRunner, c_void_p)
        _check(libjxl.JxlEncoderSetParallelRunner(encoder, run, runner))
        info = _BasicInfo()
        libjxl.JxlEncoderInitBasicInfo(byref(info))
        info.width, info.height, info.bits = width, height, bits
        info.colours, info.extra_channels = (1 if grey else 3), int(alpha)
        info.alpha_bits, info.original_profile = bits * alpha, lossless
        _check(libjxl.JxlEncoderSetBasicInfo(encoder, byref(info)))
        if metadata.icc:
            _check(libjxl.JxlEncoderSetICCProfile(encoder, metadata.icc, len(metadata.icc)))
        else:
            colours = _ColourEncoding()
            libjxl.JxlColorEncodingSetToSRGB(byref(colours), grey)
            _check(libjxl.JxlEncoderSetColorEncoding(encoder, byref(colours)))
        settings = c_void_p(libjxl.JxlEncoderFrameSettingsCreate(encoder, None))
        _check(libjxl.JxlEncoderFrameSettingsSetOption(settings, _EFFORT, effort))
        if lossless:
            _check(libjxl.JxlEncoderSetFrameLossless(settings, True))
        else:
            distance = libjxl.JxlEncoderDistanceFromQuality(quality)
            _check(libjxl.JxlEncoderSetFrameDistance(settings, distance))
        _add_boxes(
            libjxl, encoder, {b"Exif": metadata.exif and bytes(4) + metadata.exif, b"xml ": metadata.xmp}
        )
        layout = _PixelFormat(channels, _UINT16 if bits == 16 else _UINT8, 0, 0)
        buffer = samples.ctypes.data_as(c_void_p)
        _check(libjxl.JxlEncoderAddImageFrame(settings, byref(layout), buffer, samples.nbytes))
        libjxl.JxlEncoderCloseInput(encoder)
        return _output(libjxl, encoder)
    finally:
        libjxl.JxlEncoderDestroy(encoder)
        libjxl.JxlThreadParallelRunnerDestroy(runner)


def _add_boxes(libjxl: ctypes.CDLL, encoder: c_void_p, contents: dict[bytes, bytes]) -> None:
    present = {kind: body for kind, body in contents.items() if body}
    if present:
        _check(libjxl.JxlEncoderUseBoxes(encoder))
    for kind, body in present.items():
        _check(libjxl.JxlEncoderAddBox(encoder, kind, body, len(body), False))


def _output(libjxl: ctypes.CDLL, encoder: c_void_p) -> bytes:
    out, part = [], ctypes.create_string_buffer(_PART)
    status = _MORE_OUTPUT
    while status == _MORE_OUTPUT:
        end, free = c_void_p(ctypes.addressof(part)), c_size_t(_PART)
        status = libjxl.JxlEncoderProcessOutput(encoder, byref(end), byref(free))
        out.append(part.raw[: _PART - free.value])
    _check(status)
    return b"".join(out)


def _expect(libjxl: ctypes.CDLL, decoder: c_void_p, event: int) -> None:
    if (status := libjxl.JxlDecoderProcessInput(decoder)) != event:
        raise ValueError(f"libjxl's event is {status}, not {event}")


def _check(status: int) -> None:
    if status != _SUCCESS:
        raise ValueError(f"libjxl's status is {status}")
