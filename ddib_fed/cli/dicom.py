"""`ddib dicom receive`: series that a PACS sends become translated series that it gets back."""

from __future__ import annotations

import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import group, option
from ddib_fed.cli.translate import header_of
from ddib_fed.client.exchange import delivery, into_folder, own_entity
from ddib_fed.client.folder_run import RunOptions, RunProgress
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import locked
from ddib_fed.errors import UsageError
from ddib_fed.formats.dicom_network import DicomPeer, Receiver


@group()
def dicom() -> None:
    """Receive studies from a PACS and hand their translations back (docs/routing.md)."""


@dicom.command(
    epilog="\b\nExamples:\n"
    "  ddib dicom receive --from PACS@10.0.0.7 --to south.example/brain-t2 --send PACS@10.0.0.7:4242\n"
    "  ddib dicom receive --from CT1@10.0.0.9 --from CT2@10.0.0.10 --to south.example/mr --stow https://pacs/dicom-web"
)
@option("--aet AE", "AE title of this receiver; default: [dicom] aet of the profile, which is DDIB.", str)
@option("--port PORT", "Port that it listens at; default: that of [dicom], 11112.", click.IntRange(1, 65_535))
@option("callers --from AE@HOST", "Who may send; may be repeated.", str, multiple=True, required=True)
@option(
    "target --to INSTITUTION/DOMAIN", "Target of all series, where client.toml has no [[dicom.route]].", str
)
@options.SEND
@options.STOW
@option("--out DIR", "Write derived series below DIR, a folder for each.")
@options.with_options(options.SOLVING)
@options.NO_CALIBRATION
@options.INTENSITY
@options.PROFILE
def receive(
    aet: str | None,
    port: int | None,
    callers: tuple[str, ...],
    target: str | None,
    send: str | None,
    stow: str | None,
    out: Path | None,
    intensity: str,
    profile_path: Path | None,
    **given: Any,
) -> None:
    """Receive DICOM series (C-STORE), translate each once, and hand the derived series on, until SIGTERM.

    An instance is on the disk before its C-STORE succeeds; after a kill the same command goes on where it was. The log
    says what becomes of each series, by a key, and holds no patient data. TLS, the spool and its bounds are in the
    table [dicom] of the profile (docs/routing.md).
    """
    from ddib_fed.client.routing import Router, check_setup, header_to, log
    from ddib_fed.node.command import set_up_logging

    profile = Profile.load(profile_path)
    settings = profile.dicom
    own = own_entity(profile, aet and DicomPeer.parse(f"{aet}@localhost", calls=True).aet)
    targets = [target] if target else [*dict.fromkeys(route.to for route in settings.route)]
    if not targets or (target and settings.route):
        hint = f"--to INSTITUTION/DOMAIN without [[dicom.route]] in {profile.path}, or [[dicom.route]] without --to"
        raise UsageError("one of --to and [[dicom.route]] says where series go", hint=hint)
    if (out is None) == (send is None and stow is None):
        raise UsageError("where do derived series go?", hint="one of --send, --stow and --out")
    deliver = into_folder(out) if out is not None else delivery(profile, send, stow, aet)
    assert deliver is not None
    known = [DicomPeer.parse(each, calls=True) for each in callers]
    fixed = {"source_class": "", "target_class": "", "cycle": False, "keep_latent": False}
    asked = {**fixed, "guidance": None, "classifier_scale": None, **given}
    run = RunOptions(profile, header_of(targets[0], asked), Path(), RunProgress())
    spool = profile.beside(settings.spool)
    set_up_logging("info", "text")
    # What readers say of a file may quote its header.
    warnings.simplefilter("ignore")
    threading.excepthook = lambda hook: log.error("a thread ended by %s", hook.exc_type.__name__)
    for each in targets:
        check_setup(profile, header_to(each, run.header))
    with locked(spool, "stop the receiver that runs there, or set another [dicom] spool in client.toml"):
        busy: dict[int, float] = {}
        reading = {"intensity": intensity, "slices": "auto", "tile": "auto"}
        router = Router(spool, run, reading, settings, deliver, busy)
        receiver = Receiver(
            own, port or settings.port, spool / ".arriving", known, router.keep, router.ended, log.warning,
            settings.most_associations, busy=busy, room=router.room,
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
