"""Signing in to a page inside another site's frame, as on a Space, in a real browser."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, expect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from restorer.web.auth import ApiKeyMiddleware
from tests.conftest import wait_until
from tests.serving import free_port
from tests.web.browsing import new_page

pytestmark = pytest.mark.slow

KEY = "a key of many characters"


def write_certificate(folder: Path) -> None:
    """Write cert.pem and key.pem for 127.0.0.1 and localhost."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def serving(app: object, folder: Path | None = None) -> Iterator[int]:
    """Serve an ASGI application, over TLS if a folder has a certificate, and yield the port."""
    port = free_port()
    tls = {"ssl_keyfile": folder / "key.pem", "ssl_certfile": str(folder / "cert.pem")} if folder else {}
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning", **tls))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield port
    finally:
        server.should_exit = True
        thread.join()


def site(frame: str) -> Starlette:
    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(f"<!doctype html><iframe src='{frame}' width=600 height=600></iframe>")

    return Starlette(routes=[Route("/", page)])


def protected() -> Starlette:
    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse("<!doctype html><p id=app>the app</p>")

    routes = [Route("/", page)]
    return Starlette(routes=routes, middleware=[Middleware(ApiKeyMiddleware, key=KEY)])


def test_sign_in_inside_another_site_lasts(browser: Browser, tmp_path):
    write_certificate(tmp_path)
    with (
        serving(protected(), tmp_path) as port,
        serving(site(f"https://127.0.0.1:{port}/"), tmp_path) as outer,
    ):
        page = new_page(browser)
        page.goto(f"https://localhost:{outer}/")
        frame = page.frame_locator("iframe")
        expect(frame.locator("#framed")).to_be_visible()
        frame.locator("#key").fill(KEY)
        frame.locator("button").click()
        expect(frame.locator("#app")).to_be_visible()
        page.reload()
        expect(frame.locator("#app")).to_be_visible()
        page.goto(f"https://127.0.0.1:{port}/")
        expect(page.locator("#key")).to_be_visible()  # the sign-in is that of the other site alone
        expect(page.locator("#framed")).to_be_hidden()
        page.context.close()


def test_form_without_tls_inside_another_site_links_to_a_tab(browser: Browser):
    with serving(protected()) as port, serving(site(f"http://127.0.0.1:{port}/")) as outer:
        page = new_page(browser)
        page.goto(f"http://localhost:{outer}/")
        frame = page.frame_locator("iframe")
        frame.locator("#key").fill(KEY)
        frame.locator("button").click()
        expect(frame.locator("#framed")).to_contain_text("open it in a tab")
        with page.context.expect_page() as opened:
            frame.locator("#framed a").click()
        tab = opened.value
        tab.locator("#key").fill(KEY)
        tab.locator("button").click()
        expect(tab.locator("#app")).to_be_visible()
        page.context.close()
