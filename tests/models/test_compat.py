"""Classes loaded without their packages equal the originals and leave no trace. Runs in subprocesses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

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
results = {}

def loaded_network(name):
    return compat.load_attribute(MODULES[name], name)(**RGB, **PARAMETERS[name]).eval()

def packaged_network(name):
    return getattr(sys.modules[MODULES[name]], name)(**RGB, **PARAMETERS[name]).eval()

def compare(first, second):
    second.load_state_dict(first.state_dict(), strict=True)
    image = torch.rand(1, 3, 8, 10)
    with torch.inference_mode():
        return torch.equal(first(image), second(image)) and float(first(image).std()) > 0

def imported_modules():
    tops = ("basicsr", "gfpgan", "realesrgan", "facexlib", "torchvision")
    return sorted(name for name in sys.modules if name.partition(".")[0] in tops)

def packages_work():
    import basicsr, gfpgan, realesrgan
    from basicsr.data.degradations import rgb_to_grayscale
    from torchvision.transforms import functional
    assert realesrgan.RealESRGANer and gfpgan.GFPGANer and basicsr.archs.build_network
    return torch.equal(
        rgb_to_grayscale(torch.ones(3, 2, 2)), functional.rgb_to_grayscale(torch.ones(3, 2, 2))
    )
"""

STEPS = """
nets = {name: loaded_network(name) for name in MODULES}
gfpgan = compat.load_attribute("gfpgan.archs.gfpganv1_clean_arch", "GFPGANv1Clean")
results["classes"] = [gfpgan.__name__]
results["classes"] += [compat.load_attribute("gfpgan.archs.restoreformer_arch", "RestoreFormer").__name__]
results["classes"] += [compat.load_attribute("realesrgan.archs.srvgg_arch", "SRVGGNetCompact").__name__]
results["leftover modules"] = imported_modules()

from restorer.models import architectures as networks
for name in MODULES:
    networks.build(networks.detect(nets[name].state_dict(), name), nets[name].state_dict(), name)
results["compiler imported"] = "torch._dynamo" in sys.modules

import torchvision
from torchvision import ops
results["torchvision"] = sys.modules["torchvision"] is torchvision and ops is torchvision.ops

try:
    import basicsr
except ModuleNotFoundError as error:
    results["missing without install"] = error.name
results["modules after failure"] = len([name for name in imported_modules() if name.startswith("basicsr")])
results["equal after failure"] = compare(loaded_network("RRDBNet"), loaded_network("RRDBNet"))

compat.install()
compat.install()
results["packages work"] = packages_work()
results["equal outputs"] = [compare(net, packaged_network(name)) for name, net in nets.items()]
results["same class"] = [type(loaded_network(name)) is type(packaged_network(name)) for name in MODULES]
from basicsr.archs import build_network
results["registry"] = type(build_network({"type": "RRDBNet", **PARAMETERS["RRDBNet"], **RGB})).__name__
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    """What a process reports that loads the classes, imports the packages and loads the classes again."""
    command = [sys.executable, "-W", "ignore", "-c", COMMON + STEPS]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_loading_classes_leaves_no_modules_behind(results):
    assert results["classes"] == ["GFPGANv1Clean", "RestoreFormer", "SRVGGNetCompact"]
    assert results["leftover modules"] == []


def test_building_a_network_does_not_import_the_torch_compiler(results):
    assert results["compiler imported"] is False


def test_packages_can_be_imported_after_the_classes(results):
    assert results["torchvision"] and results["packages work"]
    assert results["registry"] == "RRDBNet"


def test_failed_package_import_does_not_affect_loading(results):
    assert results["missing without install"] == "torchvision.transforms.functional_tensor"
    assert results["modules after failure"] > 10  # the failed import left modules
    assert results["equal after failure"]


def test_outputs_equal_those_of_the_packages_classes(results):
    assert results["equal outputs"] == [True, True]


def test_imported_packages_supply_their_own_classes(results):
    assert results["same class"] == [True, True]


def test_missing_package_is_named():
    """Only basicsr is required; importing another absent package fails as usual."""
    script = """
import importlib.util, torch
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith(ABSENT) else find_spec(name, *rest)
from restorer.models import compat
print(compat.load_attribute("basicsr.archs.srvgg_arch", "SRVGGNetCompact").__name__)
"""
    for absent, output in (
        (("facexlib", "gfpgan", "realesrgan"), "SRVGGNetCompact"),
        (("basicsr",), "No module named 'basicsr'"),
    ):
        command = [sys.executable, "-c", script.replace("ABSENT", repr(absent))]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert output in run.stdout + run.stderr


def test_rrdbnet_loads_without_distutils():
    """Python 3.12 has none, unless setuptools is installed."""
    script = """
import sys, torch
sys.modules["distutils"] = None
from restorer.models import compat
network = compat.load_attribute("basicsr.archs.rrdbnet_arch", "RRDBNet")
print(network.__name__, sys.modules.get("distutils.version"))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "RRDBNet None\n", run.stderr


def test_lazy_module_is_replaced_by_the_real_one_on_first_use(monkeypatch):
    from restorer.models import compat

    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    stub = compat._lazy_module("colorsys")
    monkeypatch.setitem(sys.modules, "colorsys", stub)
    assert stub.rgb_to_hsv(1, 0, 0) == (0, 1, 1)
    assert sys.modules["colorsys"] is not stub
    with pytest.raises(AttributeError):
        _ = stub.no_such_name


def test_classes_can_be_loaded_by_many_threads_at_once():
    script = """
import threading
import torch
from restorer.models import compat
targets = [("basicsr.archs.rrdbnet_arch", "RRDBNet"), ("realesrgan.archs.srvgg_arch", "SRVGGNetCompact")] * 8
errors, barrier = [], threading.Barrier(len(targets))
def load(module, name):
    barrier.wait()
    try:
        compat.load_attribute(module, name)
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=load, args=target) for target in targets]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert not errors, errors
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
