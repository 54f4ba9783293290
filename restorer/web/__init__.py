"""The web app: server, authentication, job queue, page (ui) and REST API (rest)."""
