"""Install the newest versions that requirements.txt allows, and import what uses them."""

import shutil
import subprocess
import sys

from tests.serving import ROOT


def test_requirements_install_and_import(tmp_path):
    """Without the lock, as on a Space or with a plain pip install: the newest versions allowed."""
    python = tmp_path / "venv/bin/python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    install = ["pip", "install", "--quiet", "--python", python, "-r", ROOT / "requirements.txt"]
    subprocess.run([*uv, *install], check=True)
    script = """
import torch, torchvision, app, evaluate
from restorer.models import compat
from restorer.web import server
compat.load_attribute("basicsr.archs.rrdbnet_arch", "RRDBNet")
compat.install()
import realesrgan, gfpgan
"""
    subprocess.run([python, "-c", script], cwd=ROOT, check=True)
    shutil.rmtree(tmp_path / "venv")
