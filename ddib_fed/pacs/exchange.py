"""Studies that come from a PACS and go back to one, for a client's commands; its profile says who it is there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ddib_fed import Profile, Run
from ddib_fed.errors import UsageError
from ddib_fed.files import load_toml, make_private_folders, write_file
from ddib_fed.formats.dicom import read_header
from ddib_fed.pacs.dicomweb import Web
from ddib_fed.pacs.network import DicomPeer, OwnEntity, echo, fetch, parse_query, store
from ddib_fed.terminal import say

FROZEN: Final = ConfigDict(frozen=True, extra="forbid")
Deliver = Callable[[Sequence[Path], Callable[[Path], object]], None]
"""Hands files on, and calls its second argument with each that the other side has."""
FETCHED = ".ddib-study-"
"""How the folder of a fetched study begins, in the folder of the results, until these are complete."""


class DicomRoute(BaseModel):
    """A `[[dicom.route]]`: a target, and shell patterns that a series' headers must fit."""

    model_config = FROZEN

    to: str = Field(pattern="^[^/]+/[^/]+$")
    modality: str = "*"
    image_type: str = "*"
    body_part_examined: str = "*"
    series_description: str = "*"


class DicomSettings(BaseModel):
    """The table `[dicom]` of client.toml (docs/routing.md); its paths are relative to the file."""

    model_config = FROZEN

    aet: str = Field("DDIB", min_length=1, max_length=16, pattern=r"^[!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?$")
    port: int = Field(11112, ge=1, le=65535)
    peers: tuple[str, ...] = ()
    tls: str | None = None
    login: str | None = None
    spool: str = "dicom-spool"
    quiet_s: float = Field(5.0, gt=0, le=3600)
    most_gib: float = Field(20.0, gt=0)
    most_instances: int = Field(20_000, ge=1)
    most_associations: int = Field(10, ge=1, le=1000)
    expire_h: float = Field(24.0, gt=0)
    most_shrink: float = Field(2.0, ge=1)
    report: Literal["none", "sr"] = "none"
    route: tuple[DicomRoute, ...] = ()


class _File(BaseModel):
    """What of client.toml is read here."""

    dicom: DicomSettings = DicomSettings()


def settings_of(profile: Profile) -> DicomSettings:
    """Return the table `[dicom]` of a profile; raise ConfigError if it cannot be used."""
    if not profile.dicom:
        return DicomSettings()
    return load_toml(profile.path, _File, hint="docs/routing.md says the keys of [dicom]").dicom


def own_entity(profile: Profile, aet: str | None = None) -> OwnEntity:
    """Return this client as DICOM peers see it, by the profile's table `[dicom]`."""
    settings = settings_of(profile)
    tls, login = (each and profile.beside(each) for each in (settings.tls, settings.login))
    return OwnEntity(aet or settings.aet, tls or None, login or None)


def is_web(peer: str) -> bool:
    return "://" in peer or ("/" in peer and "@" not in peer)


def diagnose(profile: Profile) -> Iterator[str]:
    """Yield what each peer of `[dicom] peers` says; the first that does not answer raises the cause."""
    for peer in settings_of(profile).peers:
        own = own_entity(profile)
        yield f"{peer}: {Web(own, peer).ask() if is_web(peer) else echo(own, DicomPeer.parse(peer))}"


def delivery(profile: Profile, send: str, aet: str | None = None) -> Deliver:
    """Return what hands files on to a peer: AE@HOST:PORT, or the URL of a DICOMweb service."""
    own = own_entity(profile, aet)
    if is_web(send):
        Web(own, send)  # what is wrong with it is said now
        return lambda files, stored: Web(own, send).store(files, stored)  # the login may have changed
    peer = DicomPeer.parse(send)
    return lambda files, stored: store(own, peer, files, stored)


def fetched_study(profile: Profile, query: str, pacs: str | None, out: Path) -> Path:
    """Return a folder in `out` with the study that a query finds, fetched unless an earlier run has."""
    if pacs is None:
        raise UsageError(
            "where does --query look?", hint="--pacs AE@HOST:PORT, or --pacs https://HOST/dicom-web"
        )
    asked, own = parse_query(query), own_entity(profile)
    digest = hashlib.sha256(f"{query} {pacs}".encode()).hexdigest()[:8]
    folder = out / f"{FETCHED}{digest}" / f"study-{digest}"
    if not folder.is_dir():
        make_private_folders(part := folder.with_name("part"))
        try:
            if is_web(pacs):
                count = Web(own, pacs).fetch(asked, part)
            else:
                port = settings_of(profile).port
                count = fetch(own, DicomPeer.parse(pacs), port, asked, part, partial(say, err=True))
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


def hand_on(run: Run, deliver: Deliver) -> None:
    """Hand the DICOM files of a run's studies on; not of one of which a part was refused."""
    whole = [each for each in run.written if not each.refused]
    files = sorted(path for each in whole for path in each.files if path.suffix == ".dcm")
    if not files:
        raise UsageError("there is no derived DICOM series to hand on", hint="leave --send out")
    deliver(files, lambda _: None)
    say(f"handed on {len(files):,} instances", err=True)


def into_folder(out: Path) -> Deliver:
    """Return what copies files to OUT/KEY, where KEY is that of their series in the spool."""

    def deliver(files: Sequence[Path], stored: Callable[[Path], object]) -> None:
        for path in files:
            parts = path.parts
            folder = out / parts[len(parts) - parts[::-1].index("out") - 2]
            make_private_folders(folder)
            write_file(folder / path.name, path.read_bytes(), private=True)
            stored(path)

    return deliver
