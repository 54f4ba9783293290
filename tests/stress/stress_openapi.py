"""The OpenAPI description with many more requests."""

from tests.web import test_isolation


def test_no_request_of_the_description_is_an_error_of_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    count = test_isolation.fuzzed(tmp_path, seed=2311, examples=300)
    assert count > 1000
    print(f"{count} requests of the description: no 5xx")
