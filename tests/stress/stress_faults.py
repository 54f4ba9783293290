"""Random faults of engines, exchanged tiles of real photos, and altered weights."""

import hashlib
import io
import os
import pickle
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restorer.errors import BadWeights, InvalidOutput, OutOfMemory
from restorer.inference import tiling
from restorer.inference.engine import Engine
from restorer.models import architectures, registry
from tests.inference.test_bad_engine import WRONG, Scripted, out_of_memory
from tests.inference.test_tiling import nearest

SEED, ROUNDS = 2310, 3000
SAMPLES = sorted((Path(__file__).parents[2] / "assets/samples").glob("*.jpg"))


def test_faults_at_random_tiles_give_exact_results_or_errors():
    rng, outcomes = np.random.default_rng(SEED), {"clean": 0, "error": 0}
    for _ in range(ROUNDS):
        shape = tuple(rng.integers(40, 260, 2))
        image = rng.integers(0, 256, (-(-shape[0] // 9), -(-shape[1] // 9), 3), np.uint8)
        image = image.repeat(9, axis=0).repeat(9, axis=1)
        pad, tile = int(rng.integers(0, 6)), int(rng.integers(32, 129))
        # at most one: two identical wrong answers in a row count as the network's real output
        wrong = {
            int(call): WRONG[rng.integers(len(WRONG))] for call in rng.integers(0, 60, rng.integers(0, 2))
        }
        faults = wrong | {int(call): out_of_memory for call in rng.integers(0, 60, rng.integers(0, 4))}
        try:
            out = tiling.run(image, Scripted(nearest(2), faults), scale=2, tile=tile, pad=pad)
        except (InvalidOutput, OutOfMemory, RuntimeError, ValueError):
            outcomes["error"] += 1
        else:
            np.testing.assert_array_equal(out, nearest(2)(image))
            outcomes["clean"] += 1
    assert min(outcomes.values()) > ROUNDS / 10
    print(f"\n{ROUNDS} images, seed {SEED}: {outcomes['clean']} clean, {outcomes['error']} errors, 0 wrong")


def test_exchanged_neighbours_are_detected_in_photos():
    """With the built-in network, on the samples and 60 photos of the shared sets."""
    weights = Path(__file__).parents[2] / "weights/restore-lite-x4.safetensors"
    state = architectures.read_state(weights)
    spec = architectures.detect(state, weights.name)
    engine = Engine(architectures.build(spec, state, weights.name), scale=4, device=torch.device("cpu"))
    detected = missed = false_alarms = count = 0
    sets = Path(os.environ.get("RESTORER_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "sets"
    photos = [path for path in sorted(sets.rglob("*")) if path.suffix in (".png", ".jpg")]
    random.Random(SEED).shuffle(photos)
    for sample in SAMPLES + photos[:60]:
        image = np.asarray(Image.open(sample).convert("RGB"))[:320, :320]
        if min(image.shape[:2]) < 200:
            continue
        windows = [image[tile.window.slices] for tile in tiling.tiles(*image.shape[:2], tile=96, pad=16)]
        answers = [engine(np.ascontiguousarray(window)) for window in windows]
        false_alarms += sum(tiling._unlike(*pair) for pair in zip(answers, windows, strict=True))
        count += len(windows)
        for first, second in pairwise(range(len(windows))):
            differs = tiling._unlike(answers[first], windows[second])
            detected, missed = detected + differs, missed + (not differs)
    assert false_alarms < count / 100 and detected > 4 * missed
    print(f"\n{detected} of {detected + missed} exchanged neighbours detected;")
    print(f"{false_alarms} of {count} correct tiles suspected")


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path, function):
        self.path, self.function = path, function

    def __reduce__(self):
        code = f"open({str(self.path)!r}, 'w').close()"
        return {
            "system": (os.system, (f"touch {self.path}",)),
            "exec": (exec, (code,)),
            "eval": (eval, (code,)),
        }[self.function]


def payloads(canary):
    """Files that would run code if they were loaded as pickles."""
    for function in ("system", "exec", "eval"):
        for payload in (
            Canary(canary, function),
            {"params": {"a.weight": Canary(canary, function)}},
            [Canary(canary, function)],
        ):
            for protocol in (0, 2, 4):
                yield pickle.dumps(payload, protocol)
            for use_zip in (True, False):
                out = io.BytesIO()
                torch.save(payload, out, _use_new_zipfile_serialization=use_zip)
                yield out.getvalue()


def test_pickles_that_run_code_are_never_loaded(tmp_path):
    canary, count = tmp_path / "canary", 0
    for data in payloads(canary):
        for name in ("own.pth", "own.safetensors"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(BadWeights):
                architectures.read_state(tmp_path / name)
            count += 1
    assert not canary.exists()
    torch.load(io.BytesIO(data), weights_only=False)
    assert canary.exists(), "the payloads run no code"
    print(f"\n{count} pickle payloads refused, canary untouched")


def test_altered_official_files_are_never_loaded(tmp_path):
    """Files with a known sha256."""
    from restorer.models import download

    source = Path(__file__).parents[2] / "weights/restore-lite-x4.safetensors"
    original, rng = source.read_bytes(), random.Random(SEED)
    model = registry.find("restore-lite-x4", tmp_path)
    file, count = tmp_path / "file.safetensors", 0
    for number in range(2000):
        data = bytearray(original)
        if number % 4 == 0:
            data = data[: rng.randrange(len(data))]
        elif number % 4 == 1:
            data += rng.randbytes(rng.randrange(1, 100))
        else:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        if hashlib.sha256(data).digest() == hashlib.sha256(original).digest():
            continue
        with pytest.raises(BadWeights):
            download._verify(model, file, download.sha256(file))
        assert not file.exists()
        count += 1
    print(f"\n{count} altered files, seed {SEED}: none loaded")


def test_truncated_custom_weights_are_never_loaded(tmp_path):
    """Without a sha256, a flipped bit of a number cannot be detected."""
    from tests.conftest import save_network

    rng, outcomes = random.Random(SEED), {"refused": 0, "loaded": 0}
    for name in ("own.pth", "own.safetensors"):
        save_network(tmp_path / name, seed=1)
        original = (tmp_path / name).read_bytes()
        for number in range(1000):
            data = bytearray(original)
            if number % 2:
                data = data[: rng.randrange(len(data))]
            else:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (tmp_path / name).write_bytes(data)
            try:
                state = architectures.read_state(tmp_path / name)
                architectures.build(architectures.detect(state, name), state, name)
            except BadWeights:
                outcomes["refused"] += 1
            else:
                assert len(data) == len(original), "a truncated file was loaded"
                outcomes["loaded"] += 1
    print(f"\n2000 altered custom files, seed {SEED}: {outcomes}")


def test_eight_processes_get_one_intact_file_from_flaky_server(tmp_path):
    """Ten rounds of the test in tests/models/test_download.py."""
    from tests.models.test_download import eight_fetch_from_a_flaky_server

    for number in range(10):
        (folder := tmp_path / str(number)).mkdir()
        eight_fetch_from_a_flaky_server(folder, SEED + number)
    print(f"\n10 rounds of eight processes, seeds {SEED} to {SEED + 9}: one intact file each time")
