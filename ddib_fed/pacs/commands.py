"""`ddib dicom receive`: series that a PACS sends become translated series that it gets back."""

from __future__ import annotations

import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.options import group, option
from ddib_fed.errors import UsageError
from ddib_fed.files import locked

REFUSED = (*(each.name for each in options.SETTINGS.values() if each.here), "pairs", "limit")
"""Settings of other commands: the targets of series have no classes to pair."""


@group()
def dicom() -> None:
    """Receive studies from a PACS and hand their translations back (docs/routing.md)."""


@dicom.command(
    epilog="\b\nExamples:\n"
    "  ddib dicom receive --from PACS@10.0.0.7 --to south.example/brain-t2 --send PACS@10.0.0.7:4242\n"
    "  ddib dicom receive --from CT1@10.0.0.9 --from CT2@10.0.0.10 --to south.example/mr --send https://pacs/dicom-web"
)
@option("--aet AE", "AE title of this receiver; default: [dicom] aet of the profile, which is DDIB.", str)
@option("--port PORT", "Port that it listens at; default: that of [dicom], 11112.", click.IntRange(1, 65_535))
@option("callers --from AE@HOST", "Who may send; may be repeated.", str, multiple=True, required=True)
@option(
    "target --to INSTITUTION/DOMAIN", "Target of all series, where client.toml has no [[dicom.route]].", str
)
@options.SEND
@option("--out DIR", "Write derived series below DIR, a folder for each.")
@options.QUALITY
@options.EVALUATIONS
@options.SHARE
@option(
    "--calibration none", "Leave out the calibration that both operators agreed on.", ("none",), default=None
)
@options.INTENSITY
@options.PROFILE
@options.SET
def receive(
    aet: str | None,
    port: int | None,
    callers: tuple[str, ...],
    target: str | None,
    send: str | None,
    out: Path | None,
    calibration: str | None,
    intensity: str,
    profile_path: Path | None,
    settings: dict[str, Any],
    **given: Any,
) -> None:
    """Receive DICOM series (C-STORE), translate each once, and hand the derived series on, until SIGTERM.

    An instance is on the disk before its C-STORE succeeds; after a kill the same command goes on where it was. The log
    says what becomes of each series, by a key, and holds no patient data. TLS, the spool and its bounds are in the
    table [dicom] of the profile (docs/routing.md).
    """
    from ddib_fed.node.command import set_up_logging
    from ddib_fed.pacs.exchange import delivery, into_folder, own_entity, settings_of
    from ddib_fed.pacs.network import DicomPeer, Receiver
    from ddib_fed.pacs.routing import Router, check_setup, log

    hint = "omit it"
    options.refuse_settings(settings, REFUSED, "has no effect on series that a PACS sends", hint=hint)
    profile = ddib_fed.Profile.load(profile_path)
    table = settings_of(profile)
    own = own_entity(profile, aet and DicomPeer.parse(f"{aet}@localhost", calls=True).aet)
    targets = [target] if target else [*dict.fromkeys(route.to for route in table.route)]
    if not targets or (target and table.route):
        hint = f"--to INSTITUTION/DOMAIN without [[dicom.route]] in {profile.path}, or [[dicom.route]] without --to"
        raise UsageError("one of --to and [[dicom.route]] says where series go", hint=hint)
    if (out is None) == (send is None):
        raise UsageError("where do derived series go?", hint="one of --send and --out")
    deliver = into_folder(out) if out is not None else delivery(profile, str(send), aet)
    known = [DicomPeer.parse(each, calls=True) for each in callers]
    request = options.asked(settings, without_calibration=calibration is not None, **given)
    spool = profile.beside(table.spool)
    set_up_logging("info", "text")
    # What readers say of a file may quote its header.
    warnings.simplefilter("ignore")
    threading.excepthook = lambda hook: log.error("a thread ended by %s", hook.exc_type.__name__)
    for each in targets:
        check_setup(profile, each, request)
    with locked(spool, "stop the receiver that runs there, or set another [dicom] spool in client.toml"):
        busy: dict[int, float] = {}
        router = Router(spool, profile, targets[0], request, intensity, table, deliver, busy)
        receiver = Receiver(
            own, port or table.port, spool / ".arriving", known, router.keep, router.ended, log.warning,
            table.most_associations, busy=busy, room=router.room,
        )  # fmt: skip
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        receiver.start()
        where = f"port {receiver.port}{' over TLS' if own.tls else ''}"
        log.info(
            "receiving as %s at %s from %s, for %s", own.aet, where, ", ".join(callers), ", ".join(targets)
        )
        # What it is at when this process ends, the next one does again.
        threading.Thread(target=router.run, daemon=True).start()
        stop.wait()
        receiver.stop()
        log.info("stopped")
