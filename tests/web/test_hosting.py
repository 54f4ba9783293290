"""Docker, Hugging Face Spaces and Modal, checked with their own packages: no Docker engine, no cloud."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import yaml
from starlette.testclient import TestClient

import restorer
from restorer import output_paths
from restorer.cost import pricing
from restorer.models import registry
from restorer.web import settings
from tests.conftest import photo_like, png, save_network
from tests.serving import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each as name and arguments, with continued lines joined."""
    plain = re.sub(r"(?m)^#.*\n", "", DOCKERFILE)
    lines = re.sub(r"\\\n\s*", "", plain).splitlines()
    return [(name, arguments) for name, _, arguments in (line.partition(" ") for line in lines) if name]


def environment() -> dict[str, str]:
    """The environment variables of the image."""
    variables = " ".join(arguments for name, arguments in instructions() if name == "ENV")
    return dict(re.findall(r"(\w+)=(\S+)", variables))


# Docker


def test_dockerfile_passes_hadolint():
    linter = shutil.which("hadolint") or ROOT / ".venv/bin/hadolint"
    subprocess.run([linter, "--failure-threshold", "info", ROOT / "Dockerfile"], check=True)


def test_image_is_unprivileged_and_writes_only_to_data():
    names = [name for name, _ in instructions()]
    by_name = {name: [arguments for other, arguments in instructions() if other == name] for name in names}
    assert by_name["FROM"][0].startswith("python:3.12-slim")
    assert by_name["USER"] == ["1000"], "a number lets a host verify that it is not root"
    assert names.index("USER") < names.index("CMD") and names[-1] == "CMD"
    assert json.loads(by_name["ENTRYPOINT"][0]) == ["tini", "--"]
    assert {argument.partition("=")[0] for argument in by_name["ARG"]} == {"TORCH_BACKEND", "WEIGHTS"}
    assert "HEALTHCHECK" in names and "/health" in by_name["HEALTHCHECK"][0]
    runs = " ".join(by_name["RUN"])
    assert "gradio" not in runs and "app.py" not in runs, "Gradio would store a seed in the image"
    written = [environment()[name] for name in ("UPLOAD_FOLDER", "PROCESSED_FOLDER", "RESTORER_WEIGHTS")]
    assert by_name["VOLUME"] == ["/data"] and all(folder.startswith("/data/") for folder in written)
    assert environment()["HOME"] == "/tmp", "the only other writable folder"
    assert not re.search(r"(?i)(api_key|token|secret|password)\s*=", DOCKERFILE)


def test_build_context_has_only_required_files():
    """In .dockerignore the last pattern that matches a path decides."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def sent(path: str) -> bool:
        ignored = False
        for rule in rules:
            pattern = rule.lstrip("!").replace(".", r"\.").replace("**/", "(.*/)?").replace("*", "[^/]*")
            if re.match(rf"{pattern}(/|$)", path):
                ignored = not rule.startswith("!")
        return not ignored

    copied = [arguments.split()[:-1] for name, arguments in instructions() if name == "COPY"]
    for name in (name for names in copied for name in names):
        assert sent(name) and (ROOT / name).exists(), name
    assert sent(f"weights/{registry.BUILT_IN}.safetensors") and sent("restorer/web/ui/page.js")
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


def test_compose_services_are_confined():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    image = environment()
    assert set(compose["services"]) == {"restorer", "restorer-gpu"}
    for name, service in compose["services"].items():
        assert service["read_only"] is True and service["tmpfs"] == ["/tmp"]
        assert service["volumes"] == ["data:/data"] and "data" in compose["volumes"]
        assert service["restart"] == "unless-stopped" and service["mem_limit"].endswith("g")
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service["env_file"] == [{"path": ".env", "required": False}]
        for variable in ("HOST", "PORT", "RESTORER_WEIGHTS"):
            assert service["environment"][variable] == image[variable], "overridable in .env"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (name == "restorer-gpu") == ("devices" in str(service.get("deploy")))
    assert compose["services"]["restorer-gpu"]["profiles"] == ["gpu"]
    folders = {service["environment"]["UPLOAD_FOLDER"] for service in compose["services"].values()}
    assert len(folders) == 2, "two servers share jobs"
    kernels = compose["services"]["restorer-gpu"]["environment"]["TRITON_CACHE_DIR"]
    assert kernels.startswith("/data/"), "Docker forbids to execute files of a tmpfs"


@pytest.mark.long
def test_image_installs_and_starts_for_unprivileged_user(tmp_path):
    """Runs the instructions of the Dockerfile with its paths moved below a temporary folder."""
    moved = {"/app": tmp_path / "app", "/data": tmp_path / "data", "/opt/venv": tmp_path / "venv"}

    def move_paths(text: str) -> str:
        for path, folder in moved.items():
            text = re.sub(rf"{path}(?=[/\s\"]|$)", str(folder), text)
        return text

    for folder in (moved["/app"], moved["/data"], tmp_path / "tmp"):
        folder.mkdir(mode=0o777)
    for instruction, arguments in instructions():
        if instruction == "COPY":
            *names, target = arguments.split()
            for name in names:
                source, destination = ROOT / name, moved["/app"] / (name if target != "./" else "")
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.pth", "*.onnx", "custom")
                    shutil.copytree(source, destination, ignore=ignored)
                else:
                    shutil.copy(source, destination)
    install = next(script for name, script in instructions() if name == "RUN" and "uv venv" in script)
    commands = [line for line in install.split(" && ") if not line.lstrip().startswith("pip ")]
    script = move_paths(" && ".join(commands))
    script = script.replace("--no-cache ", "").replace("uv ", f"{sys.executable} -m uv ")
    user, python = unprivileged_user()
    pypi = {**os.environ, "TORCH_BACKEND": "", "UV_PYTHON": python}
    subprocess.run(["bash", "-ec", script], cwd=moved["/app"], env=pypi, check=True)
    for folder in (moved["/data"], tmp_path / "tmp"):
        folder.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):  # pytest creates them for their owner only
        if folder.stat().st_uid == os.geteuid() and str(folder) != "/":
            folder.chmod(folder.stat().st_mode | 0o055)
    port = free_port()
    words = json.loads(next(arguments for name, arguments in instructions() if name == "CMD"))
    command = [move_paths(word) for word in words]
    variables = {name: move_paths(value) for name, value in environment().items()}
    variables |= {"HOST": "127.0.0.1", "PORT": str(port)}
    variables |= {"HOME": str(tmp_path / "tmp"), "PATH": os.environ["PATH"]}
    before = set(moved["/app"].rglob("*"))
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=moved["/app"], env=variables, stdout=log, stderr=log, **user)
        try:
            answer = await_ready(server, port)
        finally:
            server.terminate()
            server.wait(120)
    assert answer["model"] == "RealESRGAN_x4plus", (tmp_path / "log").read_text()
    assert set(moved["/app"].rglob("*")) == before, "the server wrote into its program folder"
    shutil.rmtree(moved["/opt/venv"])


def unprivileged_user() -> tuple[dict, str]:
    """Arguments of Popen for a user without rights, nobody if we are root, and a Python they may run."""
    if os.geteuid() != 0:
        return {}, sys.executable
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    for python in (Path(sys.executable).resolve(), "/usr/local/bin/python3", "/usr/bin/python3"):
        try:
            subprocess.run([python, "-c", "import venv"], **nobody, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return nobody, str(python)
    raise AssertionError("no Python that user nobody may run")


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

WITHOUT_SPACES = """
import importlib.metadata

def version(name, real_version=importlib.metadata.version):
    if name == "spaces":
        raise importlib.metadata.PackageNotFoundError(name)
    return real_version(name)

importlib.metadata.version = version
"""


def test_readme_front_matter_configures_space():
    text = (ROOT / "README.md").read_text()
    config = yaml.safe_load(text.split("---")[1])
    locked = re.findall(r"(?m)^gradio==(\S+)", (ROOT / "requirements.lock").read_text())
    assert (config["sdk"], config["sdk_version"], config["app_file"]) == ("gradio", *locked, "app.py")
    assert config["python_version"] in ("3.10", "3.11", "3.12")
    assert len(config["short_description"]) <= 60, "the hub refuses longer ones"
    assert (ROOT / config["app_file"]).is_file()


def test_space_gets_suitable_defaults(tmp_path, monkeypatch):
    for name in ("HOST", "FORWARDED_ALLOW_IPS", "RESTORER_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(settings, "_SPACE_DISK", tmp_path / "data")
    assert settings.read(tmp_path).host == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "someone/restorer")
    values = settings.read(tmp_path)
    assert (values.host, values.forwarded_allow_ips, values.restorer_weights) == ("0.0.0.0", "*", "")
    (tmp_path / "data").mkdir()
    assert settings.read(tmp_path).restorer_weights == str(tmp_path / "data/weights")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8001")
    assert settings.read(tmp_path).port == 8001
    monkeypatch.setenv("HOST", "127.0.0.1")
    assert settings.read(tmp_path).host == "127.0.0.1"


@pytest.mark.parametrize("spaces", ["installed", "missing"])
def test_app_starts_offline_on_space(tmp_path, spaces):
    port = free_port()
    space = {"SPACE_ID": "someone/restorer", "SYSTEM": "spaces", "SPACE_HOST": "someone-restorer.hf.space"}
    variables = {"HOST": "127.0.0.1", "PORT": str(port), "HF_HUB_OFFLINE": "1"}
    folders = {"UPLOAD_FOLDER": "up", "PROCESSED_FOLDER": "done", "RESTORER_WEIGHTS": "weights"}
    variables |= {name: str(tmp_path / folder) for name, folder in folders.items()}
    if spaces == "missing":
        (tmp_path / "sitecustomize.py").write_text(WITHOUT_SPACES)
        variables["PYTHONPATH"] = str(tmp_path)
    variables = {**os.environ, **space, **variables}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, ROOT / "app.py"], env=variables, stdout=log, stderr=log)
        try:
            assert await_ready(server, port)["model"] == "RealESRGAN_x4plus", (tmp_path / "log").read_text()
            assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
            listening = {
                connection.laddr.port
                for connection in psutil.Process(server.pid).net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
            assert listening == {port}, "Gradio's server for edits to the code"
        finally:
            server.terminate()
            server.wait(120)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log and "error" not in log.lower(), log


def test_zero_gpu_restorer_gives_same_results(tmp_path, rng):
    """With the real package, which calls the function unchanged outside ZeroGPU."""
    from restorer.errors import Cancelled, ImageTooLarge
    from restorer.web.zerogpu import ZeroGpuRestorer

    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    options = {"weights": tmp_path, "device": "cpu:torch", "model": "custom/tiny", "face_enhance": "off"}
    zero_gpu, plain = ZeroGpuRestorer(**options), restorer.Restorer(**options)
    data = png(photo_like(rng, 90, 120))
    steps: list[tuple[int, int]] = []
    result = zero_gpu.restore(data, tile=32, progress=lambda *step: steps.append(step))
    assert result.data == plain.restore(data, tile=32).data
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] > 4
    assert zero_gpu.restore(data, tile=32, repair="on").repair.source == "on"
    on_gpu = ZeroGpuRestorer(**options | {"device": "cuda"})
    assert on_gpu.find_damage(on_gpu.decode(data)).shape == (90, 120), "outside the fork, which has the GPU"
    with pytest.raises(ImageTooLarge, match="choose a smaller scale"):
        ZeroGpuRestorer(**options, limits=restorer.Limits(output_pixels=10)).restore(data)

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        zero_gpu.restore(data, tile=32, progress=cancel)
    zero_gpu.measure()
    assert zero_gpu._estimator._seen.keys() == {"custom/tiny", "png"}, "measured without a GPU"


def test_server_uses_zero_gpu_restorer_on_zero_gpu(monkeypatch):
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
    import modal_app

    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    monkeypatch.setattr(modal_app, "WEIGHTS", str(tmp_path))
    return modal_app


def test_modal_functions_request_their_gpu(modal_app):
    for function in (modal_app.web, modal_app.timed):
        spec = function._spec_
        assert str(spec.gpus).upper() == "L4"
        assert "/weights" in spec.volumes
    assert modal_app.benchmark._spec_.gpus is None
    assert "/jobs" in modal_app.web._spec_.volumes


@pytest.mark.parametrize("secret", ["", "restorer"])
def test_modal_secrets_match_in_container(secret):
    """A container imports the file with the image's variables only and must define the same objects."""
    script = "import os, modal, modal_app\nprint(len(modal_app.web._spec_.secrets), modal_app.IN_IMAGE)"
    local = {**os.environ, "RESTORER_SECRET": secret}
    run = partial(subprocess.run, [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    count, in_image = run(env=local).stdout.split(" ", 1)
    container = {**os.environ, **json.loads(in_image.replace("'", '"'))}
    assert run(env=container).stdout.split()[0] == count == ("1" if secret else "0")


def test_modal_serves_app(modal_app, tmp_path, monkeypatch):
    monkeypatch.setenv("UPLOAD_FOLDER", str(tmp_path / "up"))
    monkeypatch.setenv("PROCESSED_FOLDER", str(tmp_path / "done"))
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path))
    with TestClient(modal_app.web._raw_f_()) as client:
        assert client.get("/health").status_code == 200
        assert "custom/tiny" in str(client.get("/models").json())


def test_modal_restores_photo_of_batch(modal_app, tmp_path, rng):
    data = png(photo_like(rng, 20, 24))
    options = {"model": "custom/tiny", "face_enhance": "off"}
    worker = modal_app.Restoring()
    name, result, image_format, error = worker.restore.local("a.png", data, options)
    plain = restorer.Restorer(weights=tmp_path).restore(data, **options)  # on the same backend
    assert (name, result, image_format, error) == ("a.png", plain.data, "png", "")
    assert "damaged" in worker.restore.local("b.png", data[:100], options)[3]


def test_modal_names_every_photo_that_failed(modal_app, tmp_path, monkeypatch, capsys):
    def starmap(inputs, **_):
        for name, data, options in inputs:
            assert options["format"] == "jpeg" if (tmp_path / "b.jpg") == target else "format" not in options
            if name.endswith("killed.png"):
                yield RuntimeError("killed")
            else:
                yield (name, data, "png", "") if data else (name, b"", "", "no picture")

    restoring = SimpleNamespace(restore=SimpleNamespace(starmap=starmap))
    monkeypatch.setattr(modal_app, "Restoring", lambda: restoring)
    folder, target = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, data in (("a.png", b"a"), ("empty.png", b""), ("killed.png", b"k"), ("gone.png", b"g")):
        (folder / name).write_bytes(data)
    real_plan = output_paths.plan

    def plan(*args, **options):
        tasks = real_plan(*args, **options)
        (folder / "gone.png").unlink(missing_ok=True)
        return tasks

    monkeypatch.setattr(output_paths, "plan", plan)
    with pytest.raises(SystemExit):
        modal_app.main.info.raw_f(str(folder), str(target))
    printed = capsys.readouterr().out
    for name, reason in (("empty", "no picture"), ("killed", "its container did"), ("gone", "No such file")):
        assert re.search(rf"{name}\.png: failed, {reason}", printed)
    assert "1 restored, 0 skipped, 3 failed" in printed
    assert [path.name for path in target.iterdir()] == ["a_4x.png"]
    target = tmp_path / "b.jpg"
    modal_app.main.info.raw_f(str(folder / "a.png"), str(target))
    assert target.read_bytes() == b"a"


def test_modal_measures_rows_of_cost_table(modal_app, capsys):
    rows = modal_app.timed.local(["custom/tiny"], [(48, 32)], 2)
    assert [row["how"] for row in rows] == ["measured"]
    assert rows[0]["usd_per_second"] == pytest.approx(
        pricing.prices()["CPU"].usd_per_second * (psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)
    )
    assert len(re.findall(r"\d\.\d{3}(?=, |\s?s$)", capsys.readouterr().out)) >= 1
