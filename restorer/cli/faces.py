"""`restorer faces`: find faces and print them as JSON lines."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import output_paths
from ..atomic import write_atomic
from ..errors import BadWeights, InvalidOption, RestoreError, WeightsUnavailable
from ..folders import LeftOut
from ..images import file_types
from ..models import registry
from .summary import print_failure, print_left_out

if TYPE_CHECKING:
    from ..pipeline import Restorer


def run(parsed: argparse.Namespace) -> int:
    """Print a JSON line for each face of each photo; draw them into copies with --draw."""
    left_out: list[LeftOut] = []
    tasks: list[output_paths.OutputTask] = []
    if parsed.draw:
        tasks = output_paths.plan(
            parsed.photos, parsed.draw, mark="_faces", image_format="png", left_out=left_out
        )
        photos = [(task.source, task.path("png")) for task in tasks]
    else:
        photos = [(source, None) for source, _ in output_paths.sources(parsed.photos, None, left_out)]
    originals = {source.resolve() for source, _ in photos}
    registry.find(parsed.face_detector, registry.weights_folder(parsed.weights_dir), "detect")
    counts = print_left_out(left_out)
    if not photos and not counts["failed"]:
        raise InvalidOption("no photos found")
    if problems := output_paths.unwritable(tasks):
        folder, problem = next(iter(problems.items()))
        raise OSError(f"{folder} cannot be written: {problem}")
    from .. import pipeline

    restorer = pipeline.Restorer(
        weights=parsed.weights_dir, device=parsed.device, face_detector=parsed.face_detector
    )
    succeeded = [_find_faces(source, restorer, target, originals) for source, target in photos]
    return 0 if all(succeeded) and not counts["failed"] else 1


def _find_faces(source: Path, restorer: "Restorer", target: Path | None, originals: set[Path]) -> bool:
    """Print the faces of one photo and draw them into `target`; return whether that succeeded."""
    from ..faces import detect
    from ..images import encode

    try:
        photo, faces = restorer.find_faces(source.read_bytes())
        if target and (reason := output_paths.skip_reason(target, overwrite=True, originals=originals)):
            print(f"{source}: not drawn, {reason}", file=sys.stderr)
        elif target:
            picture = replace(photo, pixels=detect.draw(photo.pixels, faces), alpha=None)
            image_format = file_types.format_of(target) or "png"
            write_atomic(target, encode.encode(picture, image_format).data)
    except (WeightsUnavailable, BadWeights):
        raise
    except (RestoreError, OSError) as error:
        print_failure(source, error)
        return False
    for face in faces:
        line = {"file": str(source), "box": face.box, "score": face.score}
        print(json.dumps({**line, "landmarks": face.landmarks.tolist()}), flush=True)
    return not (target and target.resolve() in originals)
