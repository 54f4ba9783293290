"""A front end on another origin calls the API from a real browser."""

import base64

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page
from starlette.testclient import TestClient

from restorer.web import server
from tests.conftest import photo_like, png, save_quick_and_slow
from tests.serving import launched
from tests.web.test_rest import settings_in
from tests.web.test_sign_in_frame import serving, site

pytestmark = pytest.mark.slow

KEY = "a key of many characters"
# Restore a photo with the key in a header, follow it with EventSource, fetch the result, and delete the job
FRONT_END = """async ([api, key, photo]) => {
  const bytes = Uint8Array.from(atob(photo), (char) => char.charCodeAt(0));
  const form = new FormData();
  form.append("files", new Blob([bytes], { type: "image/png" }), "a.png");
  const headers = { "X-API-KEY": key };
  const accepted = await fetch(`${api}/enhance`, { method: "POST", body: form, headers });
  if (!accepted.ok) return `${accepted.status}: ${await accepted.text()}`;
  const { job_id: id } = await accepted.json();
  const source = new EventSource(`${api}/status/${id}/events?access_token=${encodeURIComponent(key)}`);
  let ends = 0;
  const status = await new Promise((resolve, reject) => {
    source.addEventListener("end", (event) => { ends += 1; resolve(JSON.parse(event.data)); });
    source.onerror = () => source.readyState === EventSource.CLOSED && reject(new Error("refused"));
  });
  while (source.readyState !== EventSource.CLOSED) await new Promise((resolve) => setTimeout(resolve, 50));
  const bearer = { Authorization: `Bearer ${key}` };
  const file = await fetch(status.results[0].url, { headers: bearer });
  const deleted = await fetch(`${api}/jobs/${id}`, { method: "DELETE", headers });
  return {
    location: accepted.headers.get("Location") === `/status/${id}`,
    name: file.headers.get("Content-Disposition"),
    bytes: (await file.arrayBuffer()).byteLength > 100,
    deleted: (await deleted.json()).status,
    state: status.status,
    ends,
  };
}"""
FETCH = "([url, options]) => fetch(url, options).then((answer) => answer.status, () => 'refused')"


@pytest.fixture
def pages(browser: Browser, tmp_path):
    """An API, and a page on an origin that may call it and one on an origin that may not."""
    save_quick_and_slow(tmp_path)
    with serving(site("about:blank")) as port:
        allowed = f"http://localhost:{port}"
        environment = {"API_KEY": KEY, "ALLOWED_ORIGINS": f"https://other.example, {allowed}"}
        with launched(tmp_path, **environment) as (_, address):
            context = browser.new_context()
            page, stranger = context.new_page(), context.new_page()
            page.goto(allowed)
            stranger.goto(f"http://127.0.0.1:{port}")
            yield address, page, stranger
            context.close()


def test_front_end_on_an_allowed_origin_restores_a_photo(pages: tuple[str, Page, Page]):
    address, page, stranger = pages
    photo = base64.b64encode(png(photo_like(np.random.default_rng(1), 30, 40))).decode()
    result = page.evaluate(FRONT_END, [address, KEY, photo])
    assert result == {
        "location": True,
        "name": 'attachment; filename="a_4x.png"',
        "bytes": True,
        "deleted": "deleted",
        "state": "completed",
        "ends": 1,
    }
    preflighted = {"headers": {"X-API-KEY": KEY}}
    assert page.evaluate(FETCH, [f"{address}/models", preflighted]) == 200
    assert page.evaluate(FETCH, [f"{address}/models", {}]) == 401, "readable, so that it can be displayed"
    assert stranger.evaluate(FETCH, [f"{address}/models", preflighted]) == "refused"
    assert stranger.evaluate(FETCH, [f"{address}/health", {}]) == "refused"


def test_front_end_on_an_allowed_origin_cannot_use_a_session(pages: tuple[str, Page, Page]):
    address, page, _ = pages
    tab = page.context.new_page()
    tab.goto(address)
    tab.locator("#key").fill(KEY)
    tab.locator("button").click()
    tab.wait_for_selector("#start")
    token = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}["restorer_session"]
    assert page.evaluate(FETCH, [f"{address}/models", {"credentials": "include"}]) == "refused"
    origin = page.evaluate("location.origin")
    headers = {"cookie": f"restorer_session={token}", "origin": origin}
    assert httpx.get(f"{address}/models", headers=headers).status_code == 401


@pytest.mark.parametrize("origin", ["http://app.example", "https://app.example:8443", "null", "", "*"])
def test_only_the_exact_origin_is_allowed(tmp_path, origin):
    app = server.asgi(settings_in(tmp_path, allowed_origins="https://app.example"))
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        preflight = {"access-control-request-method": "POST"}
        for method, headers in (("GET", {}), ("POST", {}), ("DELETE", {}), ("OPTIONS", preflight)):
            answer = client.request(method, "/models", headers={"origin": origin, **headers})
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.status_code == (200 if method == "GET" else 403)
        answer = client.get("/models", headers={"origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in answer.headers
