"""The command line's arguments; the commands are in the other modules of this package."""

import argparse
import math
from pathlib import Path
from typing import Any

from ..errors import InvalidOption
from ..options import (
    ANIMATED_FORMATS,
    CHOICES,
    CPU_BACKENDS,
    PRESETS,
    PRINT_DPI,
    VULKAN,
    Limits,
    Options,
    Sequences,
)
from ..version import __version__


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed `command` is the name of one."""
    parser = argparse.ArgumentParser(
        prog="python -m restorer",
        description="Restore old, small and damaged photos.",
        epilog="'restore' may be omitted: python -m restorer photo.jpg scans/ -o out/. "
        "Its options: python -m restorer restore --help",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    weights, backend = _weights_options(), _backend_option()
    restoring = [weights, _restore_options(), backend]
    _add_restore(
        commands.add_parser("restore", parents=restoring, help="restore photos and folders of photos")
    )
    _add_faces(
        commands.add_parser(
            "faces", parents=[weights, _device_option()], help="detect faces, print a JSON line for each"
        )
    )
    command = commands.add_parser(
        "look", parents=[weights], help="say what is wrong with photos and which options suit them"
    )
    _add_photos(command)
    command.add_argument("--json", action="store_true", help="print a JSON line for each photo")
    _add_batch(
        commands.add_parser(
            "batch", parents=restoring, help="restore a folder of any size, on one machine or many; resumable"
        )
    )
    command = commands.add_parser("models", parents=[weights], help="list the models")
    command.add_argument("--fetch", nargs="+", default=[], metavar="NAME", help="download these models first")
    _add_cost(
        commands.add_parser(
            "cost", parents=[weights, backend], help="time photos on this machine and estimate their cost"
        )
    )
    command = commands.add_parser(
        "backends", parents=[weights], help="time the backends of this machine's CPU, and choose the fastest"
    )
    command.add_argument("--save", action="store_true", help="use the fastest ones in later runs")
    command.add_argument("--rounds", type=int, default=2, help="of each backend (%(default)s)")
    return parser


def device_name(device: str | None, backend: str) -> str | None:
    """Return the device name of Restorer for the options --device and --backend: "cpu:ncnn" for cpu and ncnn.

    Raises InvalidOption if the device does not compute with that backend.
    """
    if backend == "auto" or (device, backend) == (VULKAN, "ncnn"):
        return device
    name = f"cpu:{backend}"
    if device in (None, "cpu", name):
        return name
    raise InvalidOption(f"backend {backend} does not run on device {device!r}; use --device cpu")


def limits(megapixels: float) -> Limits:
    """Return the limits for photos of so many megapixels. Raises InvalidOption."""
    if not 0 < megapixels < math.inf:
        raise InvalidOption(f"max_megapixels is {megapixels}; it must be above 0")
    default = Limits()
    pixels = round(megapixels * 1e6)
    return Limits(pixels, pixels * default.output_pixels // default.input_pixels)


def sequences(parsed: argparse.Namespace) -> Sequences:
    """Return what is restored of files with several pictures. Raises InvalidOption for another format."""
    chosen = Sequences(parsed.pages == "all", parsed.frames == "all")
    if chosen.frames and parsed.format not in ANIMATED_FORMATS:
        raise InvalidOption(
            f"format is {parsed.format}; with --frames all use one of {', '.join(ANIMATED_FORMATS)}"
        )
    return chosen


def _weights_options() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(add_help=False)
    command.add_argument("--weights-dir", metavar="DIR", help="model files (RESTORER_WEIGHTS, else weights/)")
    return command


def _device_option() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(add_help=False)
    command.add_argument("--device", help="cuda, mps, cpu or vulkan (the fastest available)")
    return command


def _backend_option() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(add_help=False, parents=[_device_option()])
    command.add_argument(
        "--backend",
        choices=("auto", *CPU_BACKENDS),
        default="auto",
        help="how a CPU computes; auto is the fastest, see 'backends'; bfloat16 is less exact (%(default)s)",
    )
    return command


def _add_option(command: argparse.ArgumentParser, name: str, **details: Any) -> None:  # noqa: ANN401
    """Add an option with the type, the default and the choices of its field in Options."""
    default, choices = getattr(Options, name), CHOICES.get(name)
    command.add_argument(
        f"--{name.replace('_', '-')}", type=type(default), default=default, choices=choices, **details
    )


def _restore_options() -> argparse.ArgumentParser:
    """Return the options that restore and batch share."""
    command = argparse.ArgumentParser(add_help=False)
    _add_option(command, "model", help=f"{', '.join(PRESETS)}, or a name listed by 'models' (%(default)s)")
    _add_option(command, "outscale", help="1 to 8 (%(default)s)")
    _add_option(
        command,
        "strength",
        help="0 to 1: blend of the plainly enlarged photo and the restored one (%(default)s)",
    )
    _add_option(command, "long_side", metavar="PIXELS", help="of the result, instead of --outscale")
    _add_option(
        command,
        "print_size",
        metavar="30x20cm",
        help="enough pixels for a print, in mm, cm or in, instead of --outscale",
    )
    _add_option(
        command,
        "dpi",
        help=f"resolution to store and to print at ({PRINT_DPI} with --print-size, else the photo's)",
    )
    _add_option(command, "format", help="(%(default)s)")
    _add_option(command, "quality", help="1 to 100, for JPEG, WebP, AVIF and JPEG XL (%(default)s)")
    _add_option(
        command,
        "max_bytes",
        metavar="N",
        help="of the file: lowers the quality until it fits; 0: any number (%(default)s)",
    )
    command.add_argument(
        "--max-megapixels",
        type=float,
        default=Limits.input_pixels / 1e6,
        metavar="N",
        help="of a photo; the result may have four times as many (%(default)g)",
    )
    command.add_argument(
        "--pages",
        choices=("first", "all"),
        default="first",
        help="of TIFF and HEIC; each becomes a result with its number in the name (%(default)s)",
    )
    command.add_argument(
        "--frames",
        choices=("first", "all"),
        default="first",
        help="of animated GIF, WebP and PNG, which stay animations (%(default)s)",
    )
    command.add_argument(
        "--keep-times", action="store_true", help="give results the modification time of their photos"
    )
    _add_option(
        command, "denoise", help="0 to 1, for realesr-general-x4v3: how much noise to remove (%(default)s)"
    )
    _add_option(
        command,
        "colour",
        help="auto corrects certain fading, on any; neutral removes the tone of black-and-white photos too "
        "(%(default)s)",
    )
    _add_option(
        command,
        "colour_strength",
        help="0 to 1: blend of the photo's colours and the corrected ones (%(default)s)",
    )
    command.add_argument(
        "--autopilot",
        action="store_true",
        help="per photo, set --colour and --face-enhance as 'look' suggests, unless they are given",
    )
    command.add_argument(
        "--no-metadata",
        dest="keep_metadata",
        action="store_false",
        help="keep nothing but the colour profile, and the resolution if --dpi or --print-size sets it",
    )
    command.add_argument(
        "--remove-gps",
        action="store_true",
        help="remove coordinates and place names from EXIF, XMP, IPTC, PNG text and GeoTIFF, with them the "
        "maker note, which may hold both, and Photoshop's resources except rights and paths; titles, "
        "captions, keywords and comments stay",
    )
    command.add_argument(
        "--face-enhance",
        type=_face_enhance,
        choices=CHOICES["face_enhance"],
        default=Options.face_enhance,
        help="true and false are accepted too (%(default)s)",
    )
    _add_option(command, "face_model", help="a name listed by 'models' (%(default)s)")
    _add_face_detector(command)
    _add_option(command, "face_strength", help="0 to 1: blend of upscaled and restored face (%(default)s)")
    _add_option(command, "face_mask", help="(%(default)s)")
    command.add_argument("--face-large", action="store_true", help="also restore faces above 512 pixels")
    _add_option(
        command,
        "repair",
        help="fill dust, hairs, scratches and stains; auto: only where they are seen with confidence "
        "(%(default)s)",
    )
    _add_option(
        command, "repair_sensitivity", help="0 to 1: how much of what may be damage is filled (%(default)s)"
    )
    _add_option(
        command,
        "tile",
        help="side of a tile; changes nothing in the result on a CPU; 0: by free memory (%(default)s)",
    )
    command.add_argument("--fp32", action="store_true", help="use full precision on a GPU too")
    return command


def _add_photos(command: argparse.ArgumentParser) -> None:
    command.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="files or folders")


def _add_face_detector(command: argparse.ArgumentParser) -> None:
    _add_option(command, "face_detector", help="yunet or retinaface (%(default)s)")


def _add_restore(command: argparse.ArgumentParser) -> None:
    _add_photos(command)
    command.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="folder, or file for one photo (beside the photo)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace existing results")
    command.add_argument(
        "--mask", type=Path, metavar="FILE", help="fill the light pixels of this picture, for one photo"
    )
    command.add_argument(
        "--mask-out", type=Path, metavar="FILE", help="write what was filled to a PNG, for one photo"
    )


def _add_faces(command: argparse.ArgumentParser) -> None:
    _add_photos(command)
    command.add_argument("--draw", type=Path, metavar="OUT", help="folder for copies with the faces drawn in")
    _add_face_detector(command)


def _add_batch(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="IN", help="a folder or an fsspec URL: s3://bucket/scans")
    command.add_argument("output", metavar="OUT", help="folder or URL for the results")
    command.add_argument("--ray", metavar="ADDRESS", help="local, auto, or a cluster's address (without Ray)")
    command.add_argument("--workers", type=int, default=0, help="with Ray; 0: as many as fit (%(default)s)")
    command.add_argument("--gpus-per-worker", type=float, metavar="N", help="(1 if there are GPUs, else 0)")
    command.add_argument("--cpus-per-worker", type=int, default=1, metavar="N", help="(%(default)s)")
    command.add_argument(
        "--retry-failed", action="store_true", help="retry photos that failed in earlier runs"
    )


def _add_cost(command: argparse.ArgumentParser) -> None:
    command.add_argument("--models", default=Options.model, metavar="A,B", help="(%(default)s)")
    command.add_argument(
        "--sizes", default="256x256,512x512,1024x1024", metavar="WxH,WxH", help="of the photos (%(default)s)"
    )
    command.add_argument("--repeats", type=int, default=3, help="photos of each size (%(default)s)")
    command.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="T4=USD",
        help="dollars a second of a device in assets/gpu_prices.csv; without a name, of this machine",
    )
    command.add_argument(
        "--measured", action="append", type=Path, default=[], metavar="FILE", help="--csv of another machine"
    )
    command.add_argument("--csv", type=Path, metavar="FILE", help="write the table to a file")
    command.add_argument("--plot", type=Path, metavar="FILE", help="plot the table: .png or .svg")


def _face_enhance(text: str) -> str:
    return {"true": "on", "false": "off"}.get(text.lower(), text)
