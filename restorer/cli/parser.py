"""What the command line takes. What it does is in __main__.py."""

import argparse
from pathlib import Path

from ..options import DEVICE_HELP, FACE_ENHANCE, FACE_MASKS, FORMATS, PRESETS, Options
from ..version import __version__


def parser() -> argparse.ArgumentParser:
    """The parser of every command; `command` is the one that was given."""
    made = argparse.ArgumentParser(
        prog="python -m restorer",
        description="Restore old, small and damaged photos.",
        epilog="'restore' may be left out: python -m restorer photo.jpg scans/ -o out/. "
        "For its options: python -m restorer restore --help",
    )
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(required=True, metavar="COMMAND", dest="command")
    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument("--weights-dir", metavar="DIR", help="where the models' files are (weights/)")

    asked = [weights, _options()]
    command = commands.add_parser("restore", parents=asked, help="restore photos and folders of photos")
    command.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="files, or folders of them")
    command.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="folder, or file for one photo (beside the photo)"
    )
    command.add_argument("--overwrite", action="store_true", help="restore again what is there already")

    command = commands.add_parser("faces", parents=[weights], help="find faces: a JSON line for each")
    command.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="files, or folders of them")
    command.add_argument("--draw", type=Path, metavar="OUT", help="folder for copies with the faces drawn in")
    command.add_argument(
        "--face-detector", default=Options.face_detector, help="yunet or retinaface (%(default)s)"
    )
    command.add_argument("--device", help=DEVICE_HELP)

    command = commands.add_parser(
        "batch",
        parents=asked,
        help="restore a folder of any size, on one machine or many; goes on where it was ended",
    )
    command.add_argument(
        "source", metavar="IN", help="a folder, or a URL that fsspec knows: s3://bucket/scans"
    )
    command.add_argument("output", metavar="OUT", help="the same, for the results")
    command.add_argument("--ray", metavar="ADDRESS", help="local, auto, or a cluster's address (without Ray)")
    command.add_argument("--workers", type=int, default=0, help="with Ray; 0: as many as there is room for")
    command.add_argument("--gpus-per-worker", type=float, metavar="N", help="(1 if there are GPUs, else 0)")
    command.add_argument("--cpus-per-worker", type=int, default=1, metavar="N", help="(%(default)s)")
    command.add_argument("--retry-failed", action="store_true", help="try what failed in earlier runs again")

    command = commands.add_parser("models", parents=[weights], help="list the models")
    command.add_argument("--fetch", nargs="+", default=[], metavar="NAME", help="download these first")

    command = commands.add_parser("cost", parents=[weights], help="time photos here, and tell what they cost")
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
        help="dollars a second of a device of assets/gpu_prices.csv; without a name, of this machine",
    )
    command.add_argument(
        "--measured", action="append", type=Path, default=[], metavar="FILE", help="--csv of another machine"
    )
    command.add_argument("--csv", type=Path, metavar="FILE", help="the table as a file")
    command.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it: .png or .svg")
    command.add_argument("--device", help=DEVICE_HELP)
    return made


def _options() -> argparse.ArgumentParser:
    """What restore and batch both take."""
    command = argparse.ArgumentParser(add_help=False)
    command.add_argument(
        "--model",
        default=Options.model,
        help=f"{', '.join(PRESETS)}, or a name that 'models' lists (%(default)s)",
    )
    command.add_argument("--outscale", type=float, default=Options.outscale, help="1 to 8 (%(default)s)")
    command.add_argument("--format", choices=FORMATS, default=Options.format, help="(%(default)s)")
    command.add_argument(
        "--quality", type=int, default=Options.quality, help="1 to 100, of JPEG, WebP and AVIF (%(default)s)"
    )
    command.add_argument(
        "--denoise",
        type=float,
        default=Options.denoise,
        help="0 to 1, for realesr-general-x4v3: how much noise to remove (%(default)s)",
    )
    command.add_argument(
        "--no-metadata", dest="keep_metadata", action="store_false", help="leave EXIF, XMP and DPI out"
    )
    command.add_argument("--remove-gps", action="store_true", help="leave out where the photo was taken")
    command.add_argument(
        "--face-enhance",
        type=_face_enhance,
        choices=FACE_ENHANCE,
        default=Options.face_enhance,
        help="true and false are understood too (%(default)s)",
    )
    command.add_argument(
        "--face-model", default=Options.face_model, help="a name that 'models' lists (%(default)s)"
    )
    command.add_argument(
        "--face-detector", default=Options.face_detector, help="yunet or retinaface (%(default)s)"
    )
    command.add_argument(
        "--face-strength", type=float, default=Options.face_strength, help="0 to 1: a blend (%(default)s)"
    )
    command.add_argument("--face-mask", choices=FACE_MASKS, default=Options.face_mask, help="(%(default)s)")
    command.add_argument("--face-large", action="store_true", help="also faces of more than 512 pixels")
    command.add_argument(
        "--tile", type=int, default=Options.tile, help="side in pixels; 0: by free memory (%(default)s)"
    )
    command.add_argument("--device", help=DEVICE_HELP)
    command.add_argument("--fp32", action="store_true", help="full precision on a GPU too")
    return command


def _face_enhance(text: str) -> str:
    return {"true": "on", "false": "off"}.get(text.lower(), text)
