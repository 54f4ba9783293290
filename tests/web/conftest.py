"""Fixtures: a browser, a server with small networks, and its page."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.conftest import save_quick_and_slow
from tests.serving import HELD, held, served
from tests.web.browsing import CHROMIUM, watched


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    save_quick_and_slow(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, HELD) as address:
        yield address


@pytest.fixture
def hold(folder):
    with held(folder):
        yield


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    with sync_playwright() as playwright:
        # Chromium restarts a request for each certificate error that a page ignores, 32 times at most
        options = ["--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tabs(browser):
    """A browser context shared for its HTTP cache; each new tab starts with empty storage."""
    context = browser.new_context()
    context.add_init_script("if (!sessionStorage.length) localStorage.clear()")  # a new tab, not a reload
    yield context
    context.close()


@pytest.fixture
def page(tabs, address):
    with watched(tabs, address) as page:
        yield page
