"""The promises that tests hold, by the word that `@pytest.mark.promise` takes."""

from __future__ import annotations

from typing import Final

PROMISES: Final = {
    "latents": "Only latents cross",
    "identity": "Nobody speaks for another",
    "rotation": "Certificates rotate, peers come and go, without a restart",
    "jobs": "Nothing accepted is lost, nothing done twice",
    "standing": "A peer or stranger cannot take a node down",
    "bytes": "Untrusted bytes never crash or run code",
    "secrets": "No secret, no patient in a log or on disk",
}
"""The sentences are those of SECURITY.md."""
