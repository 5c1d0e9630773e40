"""Studies that come from a PACS and go back to one, for a client's commands; its profile says who it is there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ddib_fed.client.folder_run import FolderRun
from ddib_fed.client.profile import Profile
from ddib_fed.errors import UsageError
from ddib_fed.files import make_private_folders, write_file
from ddib_fed.formats.dicom import read_header
from ddib_fed.formats.dicom_network import DicomPeer, OwnEntity, echo, fetch, parse_query, store
from ddib_fed.formats.dicomweb import Web
from ddib_fed.terminal import say

Deliver = Callable[[Sequence[Path], Callable[[Path], object]], None]
"""Hands files on, and calls its second argument with each that the other side has."""
FETCHED = ".ddib-study-"
"""How the folder of a fetched study begins, in the folder of the results, until these are complete."""


def own_entity(profile: Profile, aet: str | None = None) -> OwnEntity:
    """This client as DICOM peers see it, by the profile's table `[dicom]`."""
    settings = profile.dicom
    tls, login = (each and profile.beside(each) for each in (settings.tls, settings.login))
    return OwnEntity(aet or settings.aet, tls or None, login or None)


def ask_peer(profile: Profile, peer: str) -> str:
    """What a peer of `[dicom] peers` says; an error names the cause."""
    own = own_entity(profile)
    if peer.startswith(("http://", "https://")):
        return Web(own, peer).ask()
    return echo(own, DicomPeer.parse(peer))


def delivery(profile: Profile, send: str | None, stow: str | None, aet: str | None = None) -> Deliver | None:
    """What hands files on to the peer that was given, if one was."""
    if send is None and stow is None:
        return None
    if send is not None and stow is not None:
        raise UsageError("--send and --stow are two ways", hint="leave one of them out")
    own = own_entity(profile, aet)
    if stow is not None:
        Web(own, stow)  # what is wrong with it is said now
        return lambda files, stored: Web(own, stow).store(files, stored)  # the login may have changed
    peer = DicomPeer.parse(str(send))
    return lambda files, stored: store(own, peer, files, stored)


def fetched_study(profile: Profile, query: str, pacs: str | None, web: str | None, out: Path) -> Path:
    """A folder in `out` with the study that a query finds, fetched unless an earlier run has."""
    if (pacs is None) == (web is None):
        raise UsageError("where does --query look?", hint="one of --pacs AE@HOST:PORT and --dicomweb URL")
    asked, own = parse_query(query), own_entity(profile)
    digest = hashlib.sha256(f"{query} {pacs or web}".encode()).hexdigest()[:8]
    folder = out / f"{FETCHED}{digest}" / f"study-{digest}"
    if not folder.is_dir():
        make_private_folders(part := folder.with_name("part"))
        try:
            if web is not None:
                count = Web(own, web).fetch(asked, part)
            else:
                there = DicomPeer.parse(str(pacs))
                count = fetch(own, there, profile.dicom.port, asked, part, partial(say, err=True))
        except BaseException:
            shutil.rmtree(folder.parent, ignore_errors=True)
            raise
        headers = ((path, read_header(path, ["SyntheticData"])) for path in part.glob("*.dcm"))
        for path in (synthetic := [path for path, of in headers if of.get("SyntheticData") == "YES"]):
            path.unlink()
        part.replace(folder)
        say(f"fetched {count:,} instances, {len(synthetic):,} of which are synthetic and left out", err=True)
    return folder


def drop_fetched(out: Path) -> None:
    """Remove the studies that were fetched for results that are complete."""
    for folder in out.glob(f"{FETCHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def hand_on(run: FolderRun, deliver: Deliver | None) -> None:
    """Hand the DICOM files of a run's studies on, if a peer was given; not of one of which a part was refused."""
    if deliver is None:
        return
    whole = [each for each in run.written if not each.refused]
    files = sorted(path for each in whole for path in each.files if path.suffix == ".dcm")
    if not files:
        raise UsageError("there is no derived DICOM series to hand on", hint="leave --send and --stow out")
    deliver(files, lambda _: None)
    say(f"handed on {len(files):,} instances", err=True)


def into_folder(out: Path) -> Deliver:
    """Copies files to OUT/KEY, where KEY is that of their series in the spool."""

    def deliver(files: Sequence[Path], stored: Callable[[Path], object]) -> None:
        for path in files:
            parts = path.parts
            folder = out / parts[len(parts) - parts[::-1].index("out") - 2]
            make_private_folders(folder)
            write_file(folder / path.name, path.read_bytes(), private=True)
            stored(path)

    return deliver
