"""Start the web app: `python app.py`, then open http://127.0.0.1:7860."""

import sys
from pathlib import Path

from restorer import RestoreError
from restorer.web import settings


def main() -> None:
    """Read the settings, set what Gradio reads from the environment when imported, and serve."""
    try:
        serve(settings.read(Path(__file__).resolve().parent))
    except (RestoreError, OSError) as error:
        sys.exit(f"app: {error}")


def serve(found: settings.Settings) -> None:
    """Serve with these settings until somebody ends it."""
    settings.prepare_gradio(found)
    from restorer.web import server

    server.serve(found)


if __name__ == "__main__":
    main()
