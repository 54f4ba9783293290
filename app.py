"""Start the web app: `python app.py`, then open http://127.0.0.1:7860."""

import os
import sys
from pathlib import Path

from restorer import RestoreError, settings


def main() -> None:
    """Read the settings, set what Gradio reads from the environment when imported, and serve."""
    try:
        serve(settings.read(Path(__file__).resolve().parent))
    except (RestoreError, OSError) as error:
        sys.exit(f"app: {error}")


def serve(found: settings.Settings) -> None:
    """Gradio reads these when it is imported: so they are set first."""
    os.environ["GRADIO_TEMP_DIR"] = str(found.upload_folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["FORWARDED_ALLOW_IPS"] = found.forwarded_allow_ips
    from restorer.web import server

    server.serve(found)


if __name__ == "__main__":
    main()
