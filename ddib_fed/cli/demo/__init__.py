"""`ddib demo`: institutions on this machine."""
