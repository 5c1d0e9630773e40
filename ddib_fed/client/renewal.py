"""Renewal of a client's certificate through its source node."""

from __future__ import annotations

import shlex
from datetime import datetime

from ddib_fed.client.profile import Profile
from ddib_fed.errors import Unauthenticated
from ddib_fed.trust.pki import load_identity
from ddib_fed.trust.renewal import is_due, renew_through, utc_now


def renew_client(profile: Profile, *, now: datetime | None = None) -> bool:
    """Renew a client's certificate through its source node when two thirds of its life are over."""
    moment = now or utc_now()
    credentials = load_identity(profile.pki_folder)
    if not is_due(credentials, moment):
        return False
    if moment >= credentials.not_after:
        raise Unauthenticated(
            f"the certificate of {credentials.identity} expired at {credentials.not_after:%Y-%m-%d %H:%M} UTC",
            hint=f"ddib pki request --folder {shlex.quote(str(profile.pki_folder))} --identity {credentials.identity}",
        )
    renew_through(
        profile.pki_folder,
        address=profile.source_address,
        server_name=profile.source_identity,
        hop=profile.hop,
        proxy=profile.way,
        now=moment,
    )
    return True
