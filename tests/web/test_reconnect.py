"""A page whose connection is cut, or whose server is restarted, works again without the user."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import photo_like, sampled, save_quick_and_slow
from tests.serving import HELD, exit_code, free_port, held, launched
from tests.web.browsing import choose, choose_model, download, expect_progress, new_page

pytestmark = pytest.mark.slow

_CUT_SECONDS = 6


class Relay:
    """A TCP proxy on a port of its own whose connections can be cut, and whose uploads can be stopped.

    stop_uploads  whether to forward the first 64 kB of an upload and then no more of that connection
    """

    stop_uploads = False

    def __init__(self, port: int) -> None:
        self._target, self._connections = port, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._open:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._connections += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                if self.stop_uploads and b"POST /gradio_api/upload?" in data:
                    return
            target.shutdown(socket.SHUT_RDWR)

    def cut(self, seconds: float) -> None:
        """Close all connections, and new ones for that long."""
        self._open = False
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._open = True

    def close(self) -> None:
        self._listener.close()
        self.cut(0)


@contextmanager
def relayed(port: int) -> Iterator[Relay]:
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    page = new_page(browser)
    page.goto(address)
    expect(page.locator("#start")).to_be_visible()
    page.evaluate("window.firstLoad = true")
    yield page
    page.close()


def start_slow_photo(page: Page) -> None:
    choose(page, photo_like(np.random.default_rng(3), 300, 300))
    expect(page.locator("#summary")).to_contain_text("1200 × 1200")
    choose_model(page, "custom/slow")
    page.click("#start")
    expect_progress(page)


def check_restores(page: Page) -> None:
    choose(page, photo_like(np.random.default_rng(3), 30, 40))
    expect(page.locator("#summary")).to_contain_text("160 × 120")
    page.click("#start")
    expect(page.locator("#download")).to_be_visible()
    assert download(page)[0] == "holiday_4x.png"


@pytest.fixture
def server(tmp_path):
    """Start servers, one after the other, on one port."""
    save_quick_and_slow(tmp_path)
    port = str(free_port())
    return lambda **changes: launched(tmp_path, HELD, PORT=port, **changes)


def test_result_arrives_after_the_connection_was_cut(browser, server, tmp_path):
    with (
        server() as (_, address),
        relayed(int(address.rpartition(":")[2])) as relay,
        opened(browser, f"http://127.0.0.1:{relay.port}") as page,
    ):
        with held(tmp_path):
            start_slow_photo(page)
            relay.cut(_CUT_SECONDS)
        expect_result(page)


def test_page_completes_after_the_connection_was_cut_while_it_loaded(browser, server):
    """Gradio loads the code of its components when they are needed, and does not try again."""
    with server() as (_, address):
        page, loads = new_page(browser), []
        page.on("framenavigated", lambda frame: loads.append(frame.url))
        page.route("**/assets/Gallery-*.js", lambda r: r.abort() if len(loads) < 2 else r.continue_())
        page.goto(address)
        page.wait_for_function("performance.getEntriesByType('navigation')[0].type === 'reload'")
        check_restores(page)
        page.close()


# A minute until a page gives up an answer takes 3 seconds
HURRY = """const real = setTimeout;
window.setTimeout = (call, ms, ...rest) => real(call, ms === 60000 ? 3000 : ms, ...rest);"""


@pytest.mark.long
def test_page_reloads_if_the_answer_to_the_end_of_a_job_is_lost(browser, server, tmp_path):
    with server() as (_, address):
        page, loads = new_page(browser), []
        page.add_init_script(HURRY)
        page.on("framenavigated", lambda frame: loads.append(frame.url))
        page.goto(address)
        lost = {"event_id": "lost"}
        with held(tmp_path):
            start_slow_photo(page)
            page.route("**/queue/join*", lambda r: r.fulfill(json=lost) if len(loads) < 2 else r.continue_())
        page.wait_for_function("performance.getEntriesByType('navigation')[0].type === 'reload'")
        expect_result(page)
        page.close()


def test_page_goes_on_after_the_server_was_suspended(browser, server, tmp_path):
    with server() as (process, address), opened(browser, address) as page:
        with held(tmp_path):
            start_slow_photo(page)
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(_CUT_SECONDS)
            os.kill(process.pid, signal.SIGCONT)
            page.click("#stop")
            expect(page.locator("#start")).to_be_visible()
        assert page.evaluate("window.firstLoad")
        check_restores(page)


def test_page_says_that_an_upload_stopped(browser, server):
    noise = np.random.default_rng(3).integers(0, 256, (700, 1000, 3), np.uint8)  # 2 MB, more than the buffers
    with (
        server(UPLOAD_TIMEOUT="1") as (_, address),
        relayed(int(address.rpartition(":")[2])) as relay,
        opened(browser, f"http://127.0.0.1:{relay.port}") as page,
    ):
        relay.stop_uploads = True
        choose(page, noise)
        toast = page.get_by_text("the upload stopped for 1 seconds")
        expect(toast).to_contain_text("check the connection and send it again")
        assert "{" not in toast.inner_text()
        relay.stop_uploads = False
        check_restores(page)


@pytest.mark.parametrize(
    ("number", "state"),
    sampled([*product([signal.SIGTERM, signal.SIGKILL], ["restoring", "idle", "result on display"])], 1),
)
def test_page_comes_back_after_a_restart(browser, server, tmp_path, number, state):
    with server() as (process, address), opened(browser, address) as page:
        with held(tmp_path):
            if state == "restoring":
                start_slow_photo(page)
            elif state == "result on display":
                check_restores(page)
            stop(process, number)
        with server():
            page.wait_for_function("() => !window.firstLoad && document.querySelector('#start, #stop')")
            if state == "idle":
                check_restores(page)
            else:  # the job goes on, and its result is shown again
                expect_result(page)


def expect_result(page: Page) -> None:
    expect(page.locator("#download")).to_be_visible()
    assert download(page)[0] == "holiday_4x.png"


def stop(process: BaseProcess, number: signal.Signals) -> None:
    process.terminate() if number == signal.SIGTERM else process.kill()
    assert exit_code(process) == (0 if number == signal.SIGTERM else -number)
