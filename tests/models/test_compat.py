"""Classes without their packages: equal to the real ones, and in nobody's way. In a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMON = """
import json, sys
import torch
from restorer.models import compat

MODULES = {"RRDBNet": "basicsr.archs.rrdbnet_arch", "SRVGGNetCompact": "basicsr.archs.srvgg_arch"}
PARAMETERS = {
    "RRDBNet": {"num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 2},
    "SRVGGNetCompact": {"num_feat": 8, "num_conv": 2, "upscale": 2},
}
RGB = {"num_in_ch": 3, "num_out_ch": 3}
told = {}

def ours(name):
    return compat.load(MODULES[name], name)(**RGB, **PARAMETERS[name]).eval()

def real(name):
    return getattr(sys.modules[MODULES[name]], name)(**RGB, **PARAMETERS[name]).eval()

def compare(first, second):
    second.load_state_dict(first.state_dict(), strict=True)
    picture = torch.rand(1, 3, 8, 10)
    with torch.inference_mode():
        return torch.equal(first(picture), second(picture)) and float(first(picture).std()) > 0

def loaded():
    tops = ("basicsr", "gfpgan", "realesrgan", "facexlib", "torchvision")
    return sorted(name for name in sys.modules if name.partition(".")[0] in tops)

def use_the_packages():
    import basicsr, gfpgan, realesrgan
    from basicsr.data.degradations import rgb_to_grayscale
    from torchvision.transforms import functional
    assert realesrgan.RealESRGANer and gfpgan.GFPGANer and basicsr.archs.build_network
    return torch.equal(
        rgb_to_grayscale(torch.ones(3, 2, 2)), functional.rgb_to_grayscale(torch.ones(3, 2, 2))
    )
"""

STEPS = """
nets = {name: ours(name) for name in MODULES}
gfpgan = compat.load("gfpgan.archs.gfpganv1_clean_arch", "GFPGANv1Clean")
told["classes"] = [gfpgan.__name__]
told["classes"] += [compat.load("gfpgan.archs.restoreformer_arch", "RestoreFormer").__name__]
told["classes"] += [compat.load("realesrgan.archs.srvgg_arch", "SRVGGNetCompact").__name__]
told["left behind"] = loaded()

from restorer.models import architectures as networks
for name in MODULES:
    networks.build(networks.recognise(nets[name].state_dict(), name), nets[name].state_dict(), name)
told["compiler"] = "torch._dynamo" in sys.modules

import torchvision
from torchvision import ops
told["torchvision"] = sys.modules["torchvision"] is torchvision and ops is torchvision.ops

try:
    import basicsr
except ModuleNotFoundError as error:
    told["without install"] = error.name
told["debris"] = len([name for name in loaded() if name.startswith("basicsr")])
told["amid debris"] = compare(ours("RRDBNet"), ours("RRDBNet"))

compat.install()
compat.install()
told["packages"] = use_the_packages()
told["equal"] = [compare(net, real(name)) for name, net in nets.items()]
told["the same class"] = [type(ours(name)) is type(real(name)) for name in MODULES]
from basicsr.archs import build_network
told["registry"] = type(build_network({"type": "RRDBNet", **PARAMETERS["RRDBNet"], **RGB})).__name__
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    """What a process has to tell that takes the classes, then imports the packages, then takes them again."""
    command = [sys.executable, "-W", "ignore", "-c", COMMON + STEPS]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_classes_come_alone_and_leave_nothing_behind(told):
    assert told["classes"] == ["GFPGANv1Clean", "RestoreFormer", "SRVGGNetCompact"]
    assert told["left behind"] == []


def test_building_a_network_does_not_import_torchs_compiler(told):
    assert told["compiler"] is False


def test_packages_can_be_imported_after_the_classes(told):
    assert told["torchvision"] and told["packages"]
    assert told["registry"] == "RRDBNet"


def test_import_that_failed_half_way_is_in_nobodys_way(told):
    assert told["without install"] == "torchvision.transforms.functional_tensor"
    assert told["debris"] > 10  # else there is nothing to test
    assert told["amid debris"]


def test_output_is_that_of_the_packages_own_classes(told):
    assert told["equal"] == [True, True]


def test_imported_packages_give_their_own_classes(told):
    assert told["the same class"] == [True, True]


def test_absent_package_is_told_by_name():
    script = "from restorer.models import compat; compat._PACKAGES = ('not_there',); compat.load('x', 'y')"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "No module named 'not_there'" in run.stderr


def test_stand_in_gives_way_to_the_real_module_when_it_is_used(monkeypatch):
    from restorer.models import compat

    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    stand_in = compat._on_demand("colorsys")
    monkeypatch.setitem(sys.modules, "colorsys", stand_in)
    assert stand_in.rgb_to_hsv(1, 0, 0) == (0, 1, 1)
    assert sys.modules["colorsys"] is not stand_in
    with pytest.raises(AttributeError):
        _ = stand_in.no_such_name


def test_classes_can_be_asked_for_by_many_threads_at_once():
    script = """
import threading
import torch
from restorer.models import compat
asked = [("basicsr.archs.rrdbnet_arch", "RRDBNet"), ("realesrgan.archs.srvgg_arch", "SRVGGNetCompact")] * 8
failed, together = [], threading.Barrier(len(asked))
def get(module, name):
    together.wait()
    try:
        compat.load(module, name)
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=get, args=one) for one in asked]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert not failed, failed
"""
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
