"""Many more requests of the OpenAPI description."""

from tests.web import test_isolation


def test_no_request_of_openapi_description_gets_5xx(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    count = test_isolation.fuzzed(tmp_path, seed=2311, examples=300)
    assert count > 1000
    print(f"{count} requests of the OpenAPI description: no 5xx, every answer as described")
