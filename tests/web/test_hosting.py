"""Docker, Hugging Face Spaces, Modal: no engine and no cloud here, but their own packages and our files."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from starlette.testclient import TestClient

import restorer
from restorer.cost import pricing
from restorer.web import settings
from tests.conftest import photo_like, png, save_network

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: the word and the rest of each, without comments, on one line."""
    plain = re.sub(r"(?m)^#.*\n", "", DOCKERFILE)
    lines = re.sub(r"\\\n\s*", "", plain).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def environment() -> dict[str, str]:
    """What the image sets."""
    given = " ".join(rest for word, rest in instructions() if word == "ENV")
    return dict(re.findall(r"(\w+)=(\S+)", given))


def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


# Docker


def test_the_dockerfile_passes_its_linter():
    linter = shutil.which("hadolint") or ROOT / ".venv/bin/hadolint"
    subprocess.run([linter, "--failure-threshold", "info", ROOT / "Dockerfile"], check=True)


def test_the_image_keeps_its_rules():
    words = [word for word, _ in instructions()]
    by_word = {word: [rest for other, rest in instructions() if other == word] for word in words}
    assert by_word["FROM"][0].startswith("python:3.12-slim")
    assert by_word["USER"] == ["1000"], "a number, so that a host can tell it is not root"
    assert words.index("USER") < words.index("CMD") and words[-1] == "CMD"
    assert json.loads(by_word["ENTRYPOINT"][0]) == ["tini", "--"]
    assert {rest.partition("=")[0] for rest in by_word["ARG"]} == {"TORCH_BACKEND", "WEIGHTS"}
    assert "HEALTHCHECK" in words and "/health" in by_word["HEALTHCHECK"][0]
    runs = " ".join(by_word["RUN"])
    assert "gradio" not in runs and "app.py" not in runs, "Gradio keeps a seed from its first import on"
    written = [environment()[name] for name in ("UPLOAD_FOLDER", "PROCESSED_FOLDER", "RESTORER_WEIGHTS")]
    assert by_word["VOLUME"] == ["/data"] and all(folder.startswith("/data/") for folder in written)
    assert environment()["HOME"] == "/tmp", "the only other place that may be written"
    assert not re.search(r"(?i)(api_key|token|secret|password)\s*=", DOCKERFILE)


def test_only_what_is_needed_is_sent_to_the_build(tmp_path):
    """The context, as .dockerignore's rules leave it: the last pattern that fits a path decides."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def sent(path: str) -> bool:
        ignored = False
        for rule in rules:
            pattern = rule.lstrip("!").replace(".", r"\.").replace("**/", "(.*/)?").replace("*", "[^/]*")
            if re.match(rf"{pattern}(/|$)", path):
                ignored = not rule.startswith("!")
        return not ignored

    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY"]
    for name in (one for names in copied for one in names):
        assert sent(name) and (ROOT / name).exists(), name
    assert sent("weights/restore-lite-x4.safetensors") and sent("restorer/web/ui/page.js")
    for name in (
        ".env",
        ".git/config",
        "weights/GFPGANv1.3.pth",
        "weights/custom/a.pth",
        ".venv/bin/python",
        "temp_uploads/a",
        "tests/conftest.py",
        "restorer/__pycache__/a.pyc",
    ):
        assert not sent(name), name


def test_compose_keeps_its_rules():
    told = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    inside = environment()
    assert set(told["services"]) == {"restorer", "restorer-gpu"}
    for name, service in told["services"].items():
        assert service["read_only"] is True and service["tmpfs"] == ["/tmp"]
        assert service["volumes"] == ["data:/data"] and "data" in told["volumes"]
        assert service["restart"] == "unless-stopped" and service["mem_limit"].endswith("g")
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service["env_file"] == [{"path": ".env", "required": False}]
        for variable in ("HOST", "PORT", "RESTORER_WEIGHTS"):
            assert service["environment"][variable] == inside[variable], "whatever .env says"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "opened on purpose only"
        assert (name == "restorer-gpu") == ("devices" in str(service.get("deploy")))
    assert told["services"]["restorer-gpu"]["profiles"] == ["gpu"]
    folders = {service["environment"]["UPLOAD_FOLDER"] for service in told["services"].values()}
    assert len(folders) == 2, "two servers never share jobs"


def test_its_install_and_start_lines_work_for_an_ordinary_user(tmp_path):
    """In a tree of its own under a temporary folder, with paths of the image put below that."""
    place = {"/app": tmp_path / "app", "/data": tmp_path / "data", "/opt/venv": tmp_path / "venv"}

    def moved(text: str) -> str:
        for inside, here in place.items():
            text = re.sub(rf"{inside}(?=[/\s\"]|$)", str(here), text)
        return text

    for folder in (place["/app"], place["/data"], tmp_path / "tmp"):
        folder.mkdir(mode=0o777)
    for word, rest in instructions():
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                source, into = ROOT / name, place["/app"] / (name if target != "./" else "")
                if source.is_dir():
                    left = shutil.ignore_patterns("__pycache__", "*.pth", "*.onnx", "custom")
                    shutil.copytree(source, into, ignore=left)
                else:
                    shutil.copy(source, into)
    install = next(rest for word, rest in instructions() if word == "RUN" and "uv venv" in rest)
    lines = [line for line in install.split(" && ") if not line.lstrip().startswith("pip ")]
    script = moved(" && ".join(lines)).replace("--no-cache ", "").replace("uv ", f"{sys.executable} -m uv ")
    user, python = ordinary_user()
    pypi = {**os.environ, "TORCH_BACKEND": "", "UV_PYTHON": python}
    subprocess.run(["bash", "-ec", script], cwd=place["/app"], env=pypi, check=True)
    for folder in (place["/data"], tmp_path / "tmp"):
        folder.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own are for their owner alone
        if folder.stat().st_uid == os.geteuid() and str(folder) != "/":
            folder.chmod(folder.stat().st_mode | 0o055)
    port = free_port()
    words = json.loads(next(rest for word, rest in instructions() if word == "CMD"))
    command = [moved(word) for word in words]
    variables = {name: moved(text) for name, text in environment().items()}
    variables |= {"HOST": "127.0.0.1", "PORT": str(port)}
    variables |= {"HOME": str(tmp_path / "tmp"), "PATH": os.environ["PATH"]}
    before = {path for path in place["/app"].rglob("*")}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=place["/app"], env=variables, stdout=log, stderr=log, **user)
        try:
            answer = await_ready(server, port)
        finally:
            server.terminate()
            server.wait(120)
    assert answer["model"] == "RealESRGAN_x4plus", (tmp_path / "log").read_text()
    assert {path for path in place["/app"].rglob("*")} == before, "nothing is written beside the program"
    shutil.rmtree(place["/opt/venv"])


def ordinary_user() -> tuple[dict, str]:
    """Whom the server is started as, and a Python that they may run: nobody, where we are root."""
    if os.geteuid() != 0:
        return {}, sys.executable
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    for python in (Path(sys.executable).resolve(), "/usr/local/bin/python3", "/usr/bin/python3"):
        try:
            subprocess.run([python, "-c", "import venv"], **nobody, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return nobody, str(python)
    raise AssertionError("no Python here may be run by an ordinary user")


def await_ready(server: subprocess.Popen, port: int) -> dict:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/ready")
            if answer.status_code == 200:
                return answer.json()
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise AssertionError("the server was not ready in time")


# Hugging Face Spaces


def test_the_readmes_front_matter_is_that_of_a_space():
    text = (ROOT / "README.md").read_text()
    told = yaml.safe_load(text.split("---")[1])
    locked = re.findall(r"(?m)^gradio==(\S+)", (ROOT / "requirements.lock").read_text())
    assert (told["sdk"], told["sdk_version"], told["app_file"]) == ("gradio", *locked, "app.py")
    assert told["python_version"] in ("3.10", "3.11", "3.12")
    assert len(told["short_description"]) <= 60, "the hub refuses longer ones"
    assert (ROOT / told["app_file"]).is_file()


def test_what_a_space_lacks_is_chosen_for_it(tmp_path, monkeypatch):
    for name in ("HOST", "FORWARDED_ALLOW_IPS", "RESTORER_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(settings, "_SPACE_DISK", tmp_path / "data")
    assert settings.read(tmp_path).host == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "someone/restorer")
    found = settings.read(tmp_path)
    assert (found.host, found.forwarded_allow_ips, found.restorer_weights) == ("0.0.0.0", "*", "")
    (tmp_path / "data").mkdir()
    assert settings.read(tmp_path).restorer_weights == str(tmp_path / "data/weights")
    monkeypatch.setenv("HOST", "127.0.0.1")
    assert settings.read(tmp_path).host == "127.0.0.1"


def test_it_starts_on_a_space_and_has_a_model_at_once(tmp_path):
    port = free_port()
    faked = {"SPACE_ID": "someone/restorer", "SYSTEM": "spaces", "SPACE_HOST": "someone-restorer.hf.space"}
    own = {"HOST": "127.0.0.1", "PORT": str(port), "HF_HUB_OFFLINE": "1"}
    folders = {"UPLOAD_FOLDER": "up", "PROCESSED_FOLDER": "done", "RESTORER_WEIGHTS": "weights"}
    own |= {name: str(tmp_path / folder) for name, folder in folders.items()}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, ROOT / "app.py"], env={**os.environ, **faked, **own}, stdout=log, stderr=log
        )
        try:
            assert await_ready(server, port)["model"] == "RealESRGAN_x4plus", (tmp_path / "log").read_text()
            assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
        finally:
            server.terminate()
            server.wait(120)


def test_on_zero_gpu_the_lent_restorer_does_what_the_plain_one_does(tmp_path, rng):
    """With the real package, which off ZeroGPU calls the function as it is."""
    from restorer.errors import Cancelled, ImageTooLarge
    from restorer.web.zerogpu import ZeroGpuRestorer

    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    given = {"weights": tmp_path, "device": "cpu:torch", "model": "custom/tiny", "face_enhance": "off"}
    lent, plain = ZeroGpuRestorer(**given), restorer.Restorer(**given)
    data = png(photo_like(rng, 90, 120))
    steps: list[tuple[int, int]] = []
    result = lent.restore(data, tile=32, progress=lambda *step: steps.append(step))
    assert result.data == plain.restore(data, tile=32).data
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] > 4
    with pytest.raises(ImageTooLarge, match="choose a smaller scale"):
        ZeroGpuRestorer(**given, limits=restorer.Limits(output_pixels=10)).restore(data)

    def leave(done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        lent.restore(data, tile=32, progress=leave)
    lent.measure()
    assert lent._paces._seen.keys() == {"custom/tiny", "png"}, "from photos, not measured beside the GPU"


def test_a_server_on_zero_gpu_has_the_lent_restorer(monkeypatch):
    from restorer.web import server, zerogpu

    assert server._restorer_class() is restorer.Restorer
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert server._restorer_class() is zerogpu.ZeroGpuRestorer


# Modal


@pytest.fixture
def modal_app(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("RESTORER_GPU", "RESTORER_SECRET"):
        monkeypatch.delenv(name, raising=False)
    sys.modules.pop("modal_app", None)
    import modal_app as made

    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    monkeypatch.setattr(made, "WEIGHTS", str(tmp_path))
    return made


def test_modal_functions_say_what_they_run_on(modal_app):
    for function in (modal_app.web, modal_app.timed):
        spec = function._spec_
        assert str(spec.gpus).upper() == "L4", "named, not any"
        assert "/weights" in spec.volumes
    assert modal_app.benchmark._spec_.gpus is None
    assert "/jobs" in modal_app.web._spec_.volumes


@pytest.mark.parametrize("secret", ["", "restorer"])
def test_modal_counts_the_same_secrets_here_and_in_a_container(secret):
    """A container imports the file with the image's variables only, and refuses another number of parts."""
    script = "import os, modal, modal_app\nprint(len(modal_app.web._spec_.secrets), modal_app.IN_IMAGE)"
    here = {**os.environ, "RESTORER_SECRET": secret}
    run = partial(subprocess.run, [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    told = run(env=here)
    count, inside = told.stdout.split(" ", 1)
    there = {**os.environ, **json.loads(inside.replace("'", '"'))}
    again = run(env=there)
    assert again.stdout.split()[0] == count == ("1" if secret else "0")


def test_modal_serves_the_same_app(modal_app, tmp_path, monkeypatch):
    monkeypatch.setenv("UPLOAD_FOLDER", str(tmp_path / "up"))
    monkeypatch.setenv("PROCESSED_FOLDER", str(tmp_path / "done"))
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path))
    with TestClient(modal_app.web._raw_f_()) as client:
        assert client.get("/health").status_code == 200
        assert "custom/tiny" in str(client.get("/models").json())


def test_modal_restores_a_photo_of_a_batch(modal_app, tmp_path, rng):
    data = png(photo_like(rng, 20, 24))
    options = {"model": "custom/tiny", "face_enhance": "off"}
    worker = modal_app.Restoring()
    name, result, form, error = worker.restore.local("a.png", data, options)
    plain = restorer.Restorer(weights=tmp_path).restore(data, **options)  # this process keeps to one way
    assert (name, result, form, error) == ("a.png", plain.data, "png", "")
    assert "damaged" in worker.restore.local("b.png", data[:100], options)[3]


def test_modal_measures_rows_for_the_cost_table(modal_app, capsys):
    rows = modal_app.timed.local(["custom/tiny"], [(48, 32)], 2)
    assert [row["how"] for row in rows] == ["measured"]
    assert rows[0]["usd_per_second"] == pytest.approx(
        pricing.prices()["CPU"].usd_per_second * (psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)
    )
    assert len(re.findall(r"\d\.\d{3}(?=, |\s?s$)", capsys.readouterr().out)) >= 1


# The requirements themselves


def test_requirements_alone_install_and_import(tmp_path):
    """Without the lock, as a Space and a plain pip install have them: the newest that are allowed."""
    python = tmp_path / "venv/bin/python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    install = ["pip", "install", "--quiet", "--python", python, "-r", ROOT / "requirements.txt"]
    subprocess.run([*uv, *install], check=True)
    script = """
import torch, torchvision, app, evaluate
from restorer.models import compat
from restorer.web import server
compat.load("basicsr.archs.rrdbnet_arch", "RRDBNet")
compat.install()
import realesrgan, gfpgan
"""
    subprocess.run([python, "-c", script], cwd=ROOT, check=True)
    shutil.rmtree(tmp_path / "venv")
