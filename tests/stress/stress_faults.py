"""Random faults of engines, exchanged tiles of real photos, and altered weights."""

import hashlib
import io
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restorer.errors import BadWeights, InvalidOutput, OutOfMemory
from restorer.inference import network
from restorer.models import architectures, loader, registry, sources
from tests.inference.seeded import image
from tests.inference.test_tiling import BLURS, WRONG, out_of_memory, run, scripted, whole

SEED, ROUNDS = 2310, 3000
SAMPLES = sorted((Path(__file__).parents[2] / "assets/samples").glob("*.jpg"))


def test_faults_at_random_tiles_give_exact_results_or_errors():
    rng, outcomes = np.random.default_rng(SEED), {"clean": 0, "error": 0}
    for _ in range(ROUNDS):
        first = image(*(int(side) for side in rng.integers(40, 260, 2)))
        tile = int(rng.integers(32, 129))
        kinds = list(WRONG.values())
        wrong = {
            int(call): kinds[rng.integers(len(kinds))] for call in rng.integers(0, 60, rng.integers(0, 2))
        }
        faults = wrong | {int(call): out_of_memory for call in rng.integers(0, 60, rng.integers(0, 4))}
        try:
            out = run(BLURS, first, scripted(BLURS, faults)[0], tile=tile)
        except (InvalidOutput, OutOfMemory):
            outcomes["error"] += 1
        else:
            torch.testing.assert_close(out, whole(BLURS, first), rtol=0, atol=1e-6)
            outcomes["clean"] += 1
    assert min(outcomes.values()) > ROUNDS / 10
    print(f"\n{ROUNDS} images, seed {SEED}: {outcomes['clean']} clean, {outcomes['error']} errors, 0 wrong")


def test_exchanged_neighbours_are_detected_in_photos():
    """In each segment of the built-in network, on the samples and 60 photos of the shared sets."""
    folder = Path(__file__).parents[2] / "weights"
    state = loader.load(sources.locate(registry.find(registry.BUILT_IN, folder), folder)).state
    parts = network.segments(architectures.build(architectures.detect(state, "lite"), state, "lite"))
    detected = missed = 0
    sets = Path(os.environ.get("RESTORER_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "sets"
    photos = [path for path in sorted(sets.rglob("*")) if path.suffix in (".png", ".jpg")]
    random.Random(SEED).shuffle(photos)
    for sample in SAMPLES + photos[:60]:
        pixels = np.asarray(Image.open(sample).convert("RGB"))[:160, :160]
        first = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
        for index, part in enumerate(parts):
            windows = []

            def exchanged(*window, part=part, windows=windows):
                windows.append(window)
                return part.module(*(windows[0] if len(windows) == 2 else window))

            compute = [part.module for part in parts]
            compute[index] = exchanged
            with torch.inference_mode():
                try:
                    run(parts, first, compute, tile=64)
                    missed += len(windows) > 1
                except InvalidOutput:
                    detected += 1
                run(parts, first, tile=64)  # raises for a false alarm
    assert detected > 20 * missed
    print(f"\n{detected} of {detected + missed} exchanged neighbours detected, no false alarm")


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

    source = Path(__file__).parents[2] / f"weights/{registry.BUILT_IN}.safetensors"
    original, rng = source.read_bytes(), random.Random(SEED)
    model = registry.find(registry.BUILT_IN, tmp_path)
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
