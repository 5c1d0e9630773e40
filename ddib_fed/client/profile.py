"""The client's profile: client.toml, checked.

The private key and the certificates are in a folder beside the file, never in it.
"""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, field_validator

from ddib_fed.errors import AlreadyExists, ConfigError, FileMissing, InputError, Unauthenticated
from ddib_fed.files import load_toml, problem_text, write_file
from ddib_fed.names import label_from
from ddib_fed.protocol.addresses import Proxy, ProxyUrl, split_address
from ddib_fed.record import Frozen
from ddib_fed.security.diagnosis import Diagnosis, diagnose
from ddib_fed.security.identity import Identity
from ddib_fed.security.pki import Certificates, install, load_identity, make_request
from ddib_fed.security.tls import is_due, renew_through
from ddib_fed.telemetry import TelemetrySettings

FILE_NAME = "client.toml"
USUAL_NODE = "node-1"
FOLDER = "client"  # where `ddib init node` puts the first client, in the node's folder


class Profile(Frozen):
    institution: str
    name: str
    source_address: str
    source_identity: str
    pki: str = "pki"
    proxy: ProxyUrl | None = None
    proxy_login: str | None = None
    telemetry: TelemetrySettings = TelemetrySettings()
    dicom: dict[str, Any] = Field(default_factory=dict)
    """The table of the extension `ddib_fed.pacs`, which checks it."""
    _path: Path = PrivateAttr(default=Path(FILE_NAME))

    @field_validator("source_address")
    @classmethod
    def _address(cls, value: str) -> str:
        split_address(value)
        return value

    @classmethod
    def load(cls, path: str | Path | None = None) -> Profile:
        """Read the profile at `path`, or the first of the usual places."""
        place = Path(path) if path is not None else find_profile()
        profile = load_toml(place, cls, hint="ddib init client --help")
        if not profile.source_identity.endswith("." + profile.institution):
            raise ConfigError(
                f"{place}: source_identity {profile.source_identity!r} is not of {profile.institution!r}",
                hint=f"a client talks to its own institution's source node, e.g. node-1.{profile.institution}",
            )
        profile._path = place.resolve()  # noqa: SLF001 - its own private attribute
        return profile

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        institution: str,
        address: str,
        name: str | None = None,
        node: str = "node-1",
        sign: Callable[[bytes], bytes] | None = None,
    ) -> Profile:
        """Make a client: a commented client.toml, its key, and its certificate or the request for one, NAME.csr.

        Parameters
        ----------
        folder
            Folder of client.toml; made if missing.
        institution, address, node
            The institution's DNS name, and HOST:PORT and name of its source node.
        name
            The client's name inside the institution, one DNS label; without it this user's.
        sign
            Signs the request, as `Node.pki.sign` does where the node that issues is on this machine.

        Raises
        ------
        AlreadyExists, InputError
            The folder has a client; a value cannot be used. Nothing is written then.
        """
        identity = Identity(institution, "client", name or _person_here())
        out, hint = Path(folder), "ddib init --help"
        path, request = out / FILE_NAME, out / f"{identity.name}.csr"
        for place in (path, request, out / "pki" / "leaf.key"):
            if place.exists():
                raise AlreadyExists(f"{place} exists and is not overwritten", hint="another --out folder")
        try:
            text = render_client_toml(
                institution=institution,
                name=identity.name,
                source_address=address,
                source_identity=Identity(institution, "node", node).dns_name,
                pki="pki",
            )
        except ValidationError as error:
            raise InputError(problem_text(error), hint=hint) from error
        out.mkdir(parents=True, exist_ok=True)
        content = make_request(out / "pki", identity)
        if sign is None:
            request.write_bytes(content)
        else:
            install(out / "pki", sign(content), expected=identity)
        write_file(path, text.encode(), overwrite=False)
        return cls.load(path)

    @property
    def certificates(self) -> Certificates:
        """The client's key and certificates."""
        return Certificates(self.pki_folder, Identity(self.institution, "client", self.name))

    @property
    def way(self) -> Proxy | None:
        login = None if self.proxy_login is None else self._path.parent / self.proxy_login
        return Proxy.of(self.proxy, login)

    @property
    def hop(self) -> str:
        return f"source {self.institution}" if self.institution else ""

    @property
    def path(self) -> Path:
        return self._path

    @property
    def pki_folder(self) -> Path:
        return self._path.parent / self.pki

    def diagnosis(self) -> Diagnosis:
        """Connect to the source node as every command does, and return what came of it."""
        to, name = self.source_address, self.source_identity
        return diagnose(to, server_name=name, pki_folder=self.pki_folder, proxy=self.way)

    def beside(self, name: str) -> Path:
        """Return a path of client.toml, which is relative to it."""
        return self._path.parent / name


def _person_here() -> str:
    """Return the name of whoever types, as one DNS label."""
    try:
        return label_from(getpass.getuser(), "client-1")
    except (OSError, KeyError):
        return "client-1"


def candidates(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return where a profile is searched for, first match wins; `DDIB_PROFILE`, if set, is the only place."""
    if named := environ.get("DDIB_PROFILE"):
        return (Path(named),)
    config = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (Path(FILE_NAME), Path(FOLDER) / FILE_NAME, config / "ddib" / FILE_NAME)


def find_profile(environ: Mapping[str, str] = os.environ) -> Path:
    places = candidates(environ)
    profile = next((place for place in places if place.is_file()), None)
    if profile is None:
        raise FileMissing(
            f"no client profile found; looked at {', '.join(map(str, places))}",
            hint="--profile FILE names one; ddib init client --help says how one is made",
        )
    return profile


_TEMPLATE = """\
# A ddib-fed client. Paths are relative to this file.
# `ddib doctor --profile {file}` checks it and the way to the node.

institution = "{institution}"
name = "{name}"                      # the certificate carries spiffe://{institution}/client/{name}

# Where the institution's source node listens, and the name that its certificate must carry.
source_address = "{source_address}"
source_identity = "{source_identity}"

# Where this network lets only an HTTP proxy out; none is used otherwise, whatever https_proxy says.
# proxy = "http://proxy.{institution}:3128"
# proxy_login = "proxy.login"         # a file with USER:PASSWORD, mode 600

# Folder of this client's key and certificates; keep it private.
pki = "{pki}"

# Traces for the institution's own OpenTelemetry collector; needs the packages of the extra `otel`.
# [telemetry]
# endpoint = "http://127.0.0.1:4318"

# Studies from a PACS and back, of which docs/routing.md says the keys; needs the packages of the extra `dicom`.
# [dicom]
# peers = ["PACS@pacs.{institution}:4242", "https://pacs.{institution}/dicom-web"]   # `ddib doctor` asks them
"""


def render_client_toml(**values: str) -> str:
    """Return a commented client.toml that `Profile.load` accepts, of its keys without a default and `pki`."""
    Profile.model_validate(values)
    return _TEMPLATE.format(file=FILE_NAME, **values)


def renew_client(profile: Profile, *, now: datetime | None = None) -> bool:
    """Renew a client's certificate through its source node when two thirds of its life are over."""
    moment = now or datetime.now(UTC)
    credentials = load_identity(profile.pki_folder)
    if not is_due(credentials, moment):
        return False
    if moment >= credentials.not_after:
        raise Unauthenticated(
            f"the certificate of {credentials.identity} expired at {credentials.not_after:%Y-%m-%d %H:%M} UTC",
            hint=f"ddib pki request --profile {shlex.quote(str(profile.path))}",
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
