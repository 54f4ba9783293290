"""The proxy configurations of docs/hosting.md, run by nginx and Caddy: TLS, another port, a sub-path."""

import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect
from starlette.testclient import TestClient

from restorer import InvalidOption
from restorer.web import middleware, server
from tests.conftest import photo_like, png, sampled, save_quick_and_slow
from tests.serving import free_port, launched
from tests.web.browsing import choose, download, watched
from tests.web.test_isolation import paths_of
from tests.web.test_rest import ended, settings_in
from tests.web.test_sign_in_frame import write_certificate

pytestmark = pytest.mark.slow

DOCS = (Path(__file__).parents[2] / "docs/hosting.md").read_text()
NGINX = """worker_processes 1; daemon off; pid {0}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;
    uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;
    {1}
}}"""
ROOT = "/photos"


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)
    return text


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, app_port: int, root: str) -> list:
    """Write the configuration and return the command that runs it."""
    text = replaced(
        block("nginx"),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/ssl/photos.pem", f"{folder}/cert.pem"),
        ("/etc/ssl/photos.key", f"{folder}/key.pem"),
        ("127.0.0.1:7860", f"127.0.0.1:{app_port}"),
        *([("location / ", f"location {root}/ ")] if root else []),
    )
    (folder / "nginx.conf").write_text(NGINX.format(folder, text))
    command = ["nginx", "-c", folder / "nginx.conf", "-p", folder, "-g", "master_process off;"]
    subprocess.run([*command, "-t"], check=True)
    return command


def caddy(folder: Path, port: int, app_port: int, root: str) -> list:
    """Write the configuration and return the command that runs it."""
    text = replaced(
        block("caddy"),
        ("{\n    servers", "{\n    admin off\n    auto_https disable_redirects\n    servers"),
        ("photos.example.org {", f"https://127.0.0.1:{port} {{\n    tls {folder}/cert.pem {folder}/key.pem"),
        ("reverse_proxy 127.0.0.1:7860", f"reverse_proxy {f'{root}/* ' * bool(root)}127.0.0.1:{app_port}"),
    )
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]


PROXIES = {"nginx": nginx, "caddy": caddy}


@contextmanager
def proxied(folder: Path, name: str, root: str, **environment: str) -> Iterator[str]:
    """Run the app behind a proxy and yield the public address."""
    if shutil.which(name) is None:
        pytest.skip(f"needs {name} on the PATH")
    save_quick_and_slow(folder)
    write_certificate(folder)
    trusted = {"FORWARDED_ALLOW_IPS": "127.0.0.1", "ROOT_PATH": root, **environment}
    with launched(folder, **trusted) as (_, app_address):
        port = free_port()
        command = PROXIES[name](folder, port, urlsplit(app_address).port or 0, root)
        home = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/bin"}
        with (folder / "proxy.log").open("w") as log:
            proxy = subprocess.Popen(command, stdout=log, stderr=log, env=home)
        try:
            address = f"https://127.0.0.1:{port}{root}"
            _wait_for(address, folder)
            yield address
        finally:
            proxy.kill()  # Caddy waits for open connections
            proxy.wait(30)


def _wait_for(address: str, folder: Path) -> None:
    for _ in range(300):
        try:
            httpx.get(f"{address}/health", verify=trust(folder)).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError((folder / "proxy.log").read_text() + (folder / "log").read_text())


def trust(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


@pytest.mark.parametrize(("name", "root"), sampled([*product(PROXIES, [ROOT, ""])], 2))
def test_documented_proxy_serves_rest_page_and_client(name, root, tmp_path, browser, monkeypatch):
    photo = png(photo_like(np.random.default_rng(1), 30, 40))
    (tmp_path / "a.png").write_bytes(photo)
    with proxied(tmp_path, name, root) as address:
        http = httpx.Client(verify=trust(tmp_path), timeout=120)
        accepted = http.post(f"{address}/enhance", files={"files": ("a.png", photo)})
        assert accepted.status_code == 202, accepted.text
        origin = address.removesuffix(root)
        status_url = origin + accepted.headers["location"]
        assert status_url == f"{address}/status/{accepted.json()['job_id']}"
        with http.stream("GET", f"{status_url}/events") as events:
            assert '"completed"' in list(events.iter_lines())[-2]
        (result,) = http.get(status_url).json()["results"]
        assert result["url"].startswith(f"{address}/processed/")
        assert http.get(result["url"]).content[:4] == b"\x89PNG"
        schema = http.get(f"{address}/openapi.json").json()
        assert schema["servers"] == [{"url": root or "/"}]
        assert f'"{root}/openapi.json"' in http.get(f"{address}/docs").text.replace("'", '"')
        assert http.get(f"{address}/docs/static/swagger-ui.css").status_code == 200
        config = http.get(f"{address}/config").json()
        assert config["root"] == address
        with watched(browser, f"{address}/") as page:
            choose(page, photo_like(np.random.default_rng(1), 30, 40))
            expect(page.locator("#summary")).to_contain_text("160 × 120")
            page.click("#start")
            expect(page.locator("#download")).to_be_visible()
            assert download(page)[0] == "holiday_4x.png"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        client = Client(f"{address}/", verbose=False, download_files=str(tmp_path / "downloads"))
        file, _, _ = client.predict(handle_file(tmp_path / "a.png"), api_name="/enhance")
        assert Path(file).read_bytes() == http.get(result["url"]).content


@pytest.mark.parametrize("base", ["", ROOT])
def test_root_path_is_that_of_an_asgi_application_too(tmp_path, base):
    address, photo = "http://127.0.0.1:7860", png(photo_like(np.random.default_rng(1), 20, 20))
    with TestClient(server.asgi(settings_in(tmp_path, root_path=ROOT)), base_url=address) as client:
        accepted = client.post(f"{base}/enhance", files={"files": ("a.png", photo)})
        job = accepted.json()["job_id"]
        assert accepted.headers["location"] == f"{ROOT}/status/{job}"
        (result,) = ended(client, job)["results"]
        assert result["url"] == f"{address}{ROOT}/processed/{job}/0/a_4x.png"
        assert client.get(result["url"]).status_code == 200
        assert client.get(f"{base}/config").json()["root"] == f"{address}{ROOT}"


@pytest.mark.parametrize("path", ["/status", "/gradio_api/x", "/docs", "/config"])
def test_root_path_of_the_server_itself_is_refused(tmp_path, path):
    with pytest.raises(InvalidOption, match=f"ROOT_PATH is '{path}', a path of the server"):
        server.asgi(settings_in(tmp_path, root_path=path))


def test_every_path_that_is_served_is_refused_as_root_path(tmp_path):
    app = server.asgi(settings_in(tmp_path, root_path="/statuses"))
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        paths = {path.split("/")[1] for _, path in paths_of(app.routes)} - {""}
        served = {path for path in paths if client.get(f"/{path}").status_code != 404}
        described = {path.split("/")[1] for path in client.get("/openapi.json").json()["paths"]}
    assert {"docs", "models", "config"} <= served
    assert not [path for path in served | described if not middleware.SERVED.match(f"/{path}")]


def test_root_path_is_optional_in_requests(tmp_path):
    """A proxy may remove the path; health checks of a container do not know it."""
    save_quick_and_slow(tmp_path)
    with launched(tmp_path, ROOT_PATH=ROOT) as (_, address):
        public = f"{address}{ROOT}"
        photo = png(photo_like(np.random.default_rng(1), 20, 20))
        for base in (address, public):
            accepted = httpx.post(f"{base}/enhance", files={"files": ("a.png", photo)})
            assert accepted.headers["location"] == f"{ROOT}/status/{accepted.json()['job_id']}"
            assert httpx.get(f"{base}/config").json()["root"] == public
            assert httpx.get(f"{base}/health").status_code == 200
            assert httpx.get(f"{base}/photosx").status_code == 404
            assert httpx.get(f"{base}/gradio_api/deep_link").status_code == 404
