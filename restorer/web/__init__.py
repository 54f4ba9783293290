"""The doors for browsers and programs: the page (ui), the key (guard), the app that joins them (server)."""
