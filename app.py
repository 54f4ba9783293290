"""Start the web app: `python app.py`, then open http://127.0.0.1:7860."""

import sys
from pathlib import Path

from restorer import RestoreError
from restorer.web import settings


def main() -> None:
    """Read the settings and serve; print expected errors without a traceback."""
    try:
        serve(settings.read(Path(__file__).resolve().parent))
    except (RestoreError, OSError) as error:
        sys.exit(f"app: {error}")


def serve(values: settings.Settings) -> None:
    """Serve with these settings until the process is stopped."""
    settings.prepare_gradio(values)  # before Gradio is imported
    from restorer.web import server

    server.serve(values)


if __name__ == "__main__":
    main()
