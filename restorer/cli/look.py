"""`restorer look`: say what is wrong with photos and which options suit them."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .. import output_paths
from ..errors import InvalidOption, RestoreError
from ..folders import LeftOut
from .summary import print_failure, print_left_out

if TYPE_CHECKING:
    from ..pipeline import Restorer


def run(parsed: argparse.Namespace) -> int:
    """Print what a look at each photo finds, with reasons, and the options that it suggests."""
    left_out: list[LeftOut] = []
    photos = [source for source, _ in output_paths.sources(parsed.photos, None, left_out)]
    counts = print_left_out(left_out)
    if not photos and not counts["failed"]:
        raise InvalidOption("no photos found")
    from .. import pipeline

    restorer = pipeline.Restorer(weights=parsed.weights_dir)
    succeeded = [_look(source, restorer, as_json=parsed.json) for source in photos]
    return 0 if all(succeeded) and not counts["failed"] else 1


def _look(source: Path, restorer: "Restorer", *, as_json: bool) -> bool:
    """Print the look at one photo; return whether that succeeded."""
    try:
        seen = restorer.look(source.read_bytes())
    except (RestoreError, OSError) as error:
        print_failure(source, error)
        return False
    if as_json:
        print(json.dumps({"file": str(source), **seen.as_dict()}), flush=True)
        return True
    print(f"{source}: {seen.line}")
    for finding in seen.findings:
        print(f"  {finding.text}: {finding.reason}")
    return True
