"""Scripted engines over many sizes, exchanged tiles of real photos, weights that are not what they were."""

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


def test_faults_at_random_tiles_of_random_pictures():
    rng, ends = np.random.default_rng(SEED), {"clean": 0, "error": 0}
    for _ in range(ROUNDS):
        shape = tuple(rng.integers(40, 260, 2))
        image = rng.integers(0, 256, (-(-shape[0] // 9), -(-shape[1] // 9), 3), np.uint8)
        image = image.repeat(9, axis=0).repeat(9, axis=1)
        pad, tile = int(rng.integers(0, 6)), int(rng.integers(32, 129))
        # one a picture: two that are alike, one after the other, are a network's own opinion
        wrong = {
            int(call): WRONG[rng.integers(len(WRONG))] for call in rng.integers(0, 60, rng.integers(0, 2))
        }
        faults = wrong | {int(call): out_of_memory for call in rng.integers(0, 60, rng.integers(0, 4))}
        try:
            out = tiling.run(image, Scripted(nearest(2), faults), scale=2, tile=tile, pad=pad)
        except (InvalidOutput, OutOfMemory, RuntimeError, ValueError):
            ends["error"] += 1
        else:
            np.testing.assert_array_equal(out, nearest(2)(image))
            ends["clean"] += 1
    assert min(ends.values()) > ROUNDS / 10
    print(f"\n{ROUNDS} pictures, seed {SEED}: {ends['clean']} clean, {ends['error']} errors, 0 wrong")


def test_exchanged_neighbours_in_photos():
    """How often a tile's answer is told from its neighbour's, with the built-in network and random ones."""
    weights = Path(__file__).parents[2] / "weights/restore-lite-x4.safetensors"
    state = architectures.read_state(weights)
    shape = architectures.detect(state, weights.name)
    engine = Engine(architectures.build(shape, state, weights.name), scale=4, device=torch.device("cpu"))
    found = alike = false = seen = 0
    sets = Path(os.environ.get("RESTORER_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "sets"
    photos = [path for path in sorted(sets.rglob("*")) if path.suffix in (".png", ".jpg")]
    random.Random(SEED).shuffle(photos)
    for sample in SAMPLES + photos[:60]:
        image = np.asarray(Image.open(sample).convert("RGB"))[:320, :320]
        if min(image.shape[:2]) < 200:
            continue
        windows = [image[tile.window.slices] for tile in tiling.tiles(*image.shape[:2], tile=96, pad=16)]
        answers = [engine(np.ascontiguousarray(window)) for window in windows]
        false += sum(tiling._unlike(*both) for both in zip(answers, windows, strict=True))
        seen += len(windows)
        for one, other in pairwise(range(len(windows))):
            told = tiling._unlike(answers[one], windows[other])
            found, alike = found + told, alike + (not told)
    assert false < seen / 100 and found > 4 * alike
    print(f"\n{found} of {found + alike} exchanged neighbours found; {false} of {seen} right ones suspected")


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path, how):
        self.path, self.how = path, how

    def __reduce__(self):
        code = f"open({str(self.path)!r}, 'w').close()"
        return {
            "system": (os.system, (f"touch {self.path}",)),
            "exec": (exec, (code,)),
            "eval": (eval, (code,)),
        }[self.how]


def payloads(canary):
    """Files that would run code if they were loaded as pickles."""
    for how in ("system", "exec", "eval"):
        for inside in (
            Canary(canary, how),
            {"params": {"a.weight": Canary(canary, how)}},
            [Canary(canary, how)],
        ):
            for protocol in (0, 2, 4):
                yield pickle.dumps(inside, protocol)
            for new in (True, False):
                out = io.BytesIO()
                torch.save(inside, out, _use_new_zipfile_serialization=new)
                yield out.getvalue()


def test_pickles_that_run_code_are_never_loaded(tmp_path):
    canary, tried = tmp_path / "canary", 0
    for data in payloads(canary):
        for name in ("own.pth", "own.safetensors"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(BadWeights):
                architectures.read_state(tmp_path / name)
            tried += 1
    assert not canary.exists()
    torch.load(io.BytesIO(data), weights_only=False)
    assert canary.exists(), "the last payload works"
    print(f"\n{tried} pickle payloads refused, canary untouched")


def test_altered_official_files_are_never_loaded(tmp_path):
    """Every change of a file with a known sha256 is seen, whatever it is."""
    from restorer.models import download

    source = Path(__file__).parents[2] / "weights/restore-lite-x4.safetensors"
    whole, rng = source.read_bytes(), random.Random(SEED)
    ours = registry.find("restore-lite-x4", tmp_path)
    file, tried = tmp_path / "file.safetensors", 0
    for number in range(2000):
        data = bytearray(whole)
        if number % 4 == 0:
            data = data[: rng.randrange(len(data))]
        elif number % 4 == 1:
            data += rng.randbytes(rng.randrange(1, 100))
        else:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        if hashlib.sha256(data).digest() == hashlib.sha256(whole).digest():
            continue
        with pytest.raises(BadWeights):
            download._verify(ours, file, download.sha256(file))
        assert not file.exists()
        tried += 1
    print(f"\n{tried} altered files, seed {SEED}: none loaded")


def test_altered_files_of_ones_own_are_loaded_whole_or_not_at_all(tmp_path):
    """Without a sha256: cuts are always refused; a flipped bit of a number cannot be seen."""
    from tests.conftest import save_network

    rng, ends = random.Random(SEED), {"refused": 0, "loaded": 0}
    for name in ("own.pth", "own.safetensors"):
        save_network(tmp_path / name, seed=1)
        whole = (tmp_path / name).read_bytes()
        for number in range(1000):
            data = bytearray(whole)
            if number % 2:
                data = data[: rng.randrange(len(data))]
            else:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (tmp_path / name).write_bytes(data)
            try:
                state = architectures.read_state(tmp_path / name)
                architectures.build(architectures.detect(state, name), state, name)
            except BadWeights:
                ends["refused"] += 1
            else:
                assert len(data) == len(whole), "a cut file was taken for whole"
                ends["loaded"] += 1
    print(f"\n2000 altered files of one's own, seed {SEED}: {ends}")


def test_eight_processes_a_slow_and_flaky_server_and_one_good_file(tmp_path):
    """As in tests/models/test_download.py, many rounds."""
    from tests.models.test_download import eight_fetch_from_a_flaky_server

    for number in range(10):
        (folder := tmp_path / str(number)).mkdir()
        eight_fetch_from_a_flaky_server(folder, SEED + number)
    print(f"\n10 rounds of eight processes, seeds {SEED} to {SEED + 9}: one good file each time")
