"""The page of a client: pictures in, a domain, progress, and source and translation side by side; no torch."""
