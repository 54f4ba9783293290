"""The command line's arguments; the commands are in the other modules of this package."""

import argparse
import math
import re
from pathlib import Path

from ..errors import InvalidOption
from ..options import (
    ANIMATED_FORMATS,
    CHOICES,
    CPU_BACKENDS,
    VULKAN,
    Limits,
    Options,
    Sequences,
)
from ..version import __version__

_METAVARS = {"long_side": "PIXELS", "print_size": "30x20cm", "max_bytes": "N"}
# The options that change nothing while another one is off
_PARTS = {
    "colour": ("colour_strength",),
    "face_enhance": ("face_model", "face_detector", "face_strength", "face_mask", "face_large"),
    "repair": ("repair_sensitivity",),
}


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


def options_of(parsed: argparse.Namespace) -> Options:
    """Return the options. Raises InvalidOption, also for one that would change nothing."""
    options = Options(**{name: value for name, value in vars(parsed).items() if name in Options.names()})
    for whole, parts in _PARTS.items():
        changed = [part for part in parts if getattr(options, part) != getattr(Options, part)]
        unused = getattr(options, whole) == "off" and not (options.autopilot and whole == "colour")
        if changed and unused:
            uses = " or ".join(f"{_flag(whole)} {choice}" for choice in CHOICES[whole] if choice != "off")
            raise InvalidOption(f"{_flag(changed[0])} changes nothing without {uses}")
    return options


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


def _add_option(command: argparse.ArgumentParser, name: str) -> None:
    """Add an option with the type, the default, the choices and the description of its field in Options."""
    default, text = getattr(Options, name), Options.descriptions().get(name, "").replace("%", "%%")
    about = re.sub(r"`(\w+)`|\w+_\w+", _as_flag, text)
    if default is True:
        command.add_argument(_flag(name), dest=name, action="store_false", help=f"do not {about}")
    elif default is False:
        command.add_argument(_flag(name), action="store_true", help=about)
    else:
        command.add_argument(
            _flag(name),
            type=_face_enhance if name == "face_enhance" else type(default),
            default=default,
            choices=CHOICES.get(name),
            metavar=_METAVARS.get(name),
            help=about if default == "" else f"{about} [%(default)s]",
        )


def _as_flag(match: re.Match[str]) -> str:
    """Return the flag for the name of an option in a description, and any other text as it is."""
    name = match[1] or match[0]
    return _flag(name) if name in Options.names() else match[0]


def _flag(name: str) -> str:
    """Return the flag that changes an option from its default."""
    if getattr(Options, name) is True:
        name = f"no_{name.removeprefix('keep_')}"
    return f"--{name.replace('_', '-')}"


def _restore_options() -> argparse.ArgumentParser:
    """Return the options that restore and batch share: those of Options, and of the command line."""
    command = argparse.ArgumentParser(add_help=False)
    for name in Options.names():
        _add_option(command, name)
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
    command.add_argument("--fp32", action="store_true", help="use full precision on a GPU too")
    return command


def _add_photos(command: argparse.ArgumentParser) -> None:
    command.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="files or folders")


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
    _add_option(command, "face_detector")


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
