"""The limits of the messages of admin.proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ddib_fed.wire.limits.kinds import Inner, Limit, Many, Number, Text
from ddib_fed.wire.limits.shared import COUNT, INSTITUTION, LONGEST_LINE, NAME, SECONDS, SHAPE, SIZE, TIME

MESSAGES: Final[Mapping[str, Mapping[str, Limit]]] = {
    "StatusRequest": {},
    "StatusResponse": {
        "institution": INSTITUTION,
        "name": NAME,
        "roles": Many(NAME, 8),
        "version": NAME,
        "state": Text(LONGEST_LINE),
        "listen": Text(300),
        "address": Text(300),
        "model": Inner(),
        "peers": Many(Inner(), 10_000),
        "jobs": Many(SIZE, 64),
        "uptime_s": SECONDS,
        "certificate_expires": TIME,
        "root_expires": TIME,
        "active_streams": COUNT,
        "calibrations": Many(Inner(), 1_000),
    },
    "CalibrationStatus": {
        **dict.fromkeys(("sha256", "kind", "state"), NAME),
        **dict.fromkeys(("source", "target"), Text(318)),
        "expires": TIME,
        "warning": Text(LONGEST_LINE),
    },
    "ModelStatus": {
        "domain": NAME,
        "kind": NAME,
        "sample_shape": SHAPE,
        "sha256": NAME,
        "parameters": SIZE,
        "device": NAME,
    },
    "PeerStatus": {
        "institution": INSTITUTION,
        "identity": Text(1_000),
        "address": Text(300),
        "fingerprint": Text(256),  # of two roots
        "problem": Text(LONGEST_LINE),
        "failed": TIME,
        "suspended": Text(LONGEST_LINE),
    },
    "ReloadRequest": {},
    "ReloadResponse": {"changes": Many(Text(LONGEST_LINE), 20_000)},
    "DrainRequest": {},
    "DrainResponse": {"running_jobs": COUNT},
    "WorkersRequest": {"count": Number(0, 256)},
    "WorkersResponse": {
        "executor": Text(16),
        "wanted": COUNT,
        "ready": Many(Text(LONGEST_LINE), 256),
        "replaced": COUNT,
        "problem": Text(LONGEST_LINE),
    },
}
