"""The configuration of a node: node.toml, checked; paths are relative to the file.

The listening address and the name to be called by are two settings: behind a firewall they differ.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ddib_fed.datasets.synthetic import DOMAINS
from ddib_fed.names import check_domain, is_institution, is_label
from ddib_fed.rpc.addresses import is_every_address, is_loopback, split_address
from ddib_fed.toml_files import load_toml
from ddib_fed.training.options import SHIPPED
from ddib_fed.training.table import TrainTable

Role = Literal["source", "target"]
Format = Literal["PNG", "JPEG", "TIFF", "NPY"]
# sun_path holds 108 bytes on Linux and 104 on macOS, with the closing zero.
MAX_SOCKET_PATH = 100


class Section(BaseModel):
    """A table of the file: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSection(Section):
    """Who the node is and where it listens."""

    institution: str
    name: str = "node-1"
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("source",)
    listen: str
    address: str
    state: str = "state"

    @field_validator("institution")
    @classmethod
    def _institution(cls, value: str) -> str:
        if not is_institution(value):
            raise ValueError("an institution is a DNS name in lower case, e.g. north.example")
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not is_label(value):
            raise ValueError("a node's name is one DNS label in lower case, e.g. node-1")
        return value

    @field_validator("listen", "address")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        split_address(value, bound=info.field_name == "listen")
        return value


class ModelSection(Section):
    """The one model that the node hosts.

    Attributes:
        bundle: Its folder.
        domain: What peers call it.
        bundle_domain: What the bundle itself calls its domain, where that is another name; none for `domain`.
    """

    bundle: str = "model"
    domain: str
    bundle_domain: str | None = None

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        return check_domain(value)


class LimitsSection(Section):
    """What the node accepts; units are in the names."""

    max_items_per_job: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    max_points_per_item: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    max_item_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    max_pixels: Annotated[int, Field(ge=1)] = 89_000_000
    # Of one file. The decoders read one; the number stands here so that it can be seen.
    max_frames: Literal[1] = 1
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = ("PNG", "JPEG", "TIFF", "NPY")
    max_evaluations: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    max_open_jobs: Annotated[int, Field(ge=1)] = 64
    max_spool_bytes: Annotated[int, Field(ge=1)] = 4 << 30
    max_staged_bytes: Annotated[int, Field(ge=1)] = 2 << 30
    decode_memory_mib: Annotated[int, Field(ge=64, le=1 << 20)] = 1_280
    stall_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    result_days: Annotated[float, Field(gt=0)] = 7.0
    job_deadline_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    max_streams: Annotated[int, Field(ge=1, le=256)] = 24
    max_streams_per_identity: Annotated[int, Field(ge=1, le=256)] = 8
    drain_s: Annotated[float, Field(ge=0)] = 60.0


class EngineSection(Section):
    """Where and how the network runs."""

    device: str = "auto"
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    merge_rows: Annotated[int, Field(ge=1)] = 2_048
    merge_pixels: Annotated[int, Field(ge=1)] = 65_536
    max_trajectories: Annotated[int, Field(ge=1, le=64)] = 16
    running_jobs: Annotated[int, Field(ge=1, le=16)] = 2


class PolicySection(Section):
    """What the node allows beyond the protocol."""

    round_trip: bool = True
    size_rule: Literal["model", "refuse"] = "model"
    samples_per_day: Annotated[int, Field(ge=0)] = 0
    # The least depth of a latent, in (0, 1]: 1 for noise alone. Less keeps structure, and some of the picture.
    least_depth: Annotated[float, Field(gt=0, le=1)] = 1.0


class IdentitySection(Section):
    """How the node's certificate is renewed when the CA's key is not on this machine."""

    issuer: str | None = None
    renew_command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is not None:
            name, at, address = value.partition("@")
            if not at or not is_label(name):
                raise ValueError("an issuer is NODE@HOST:PORT, e.g. node-1@issuer.north.example:7443")
            split_address(address)
        return value


class HttpSection(Section):
    """Plain HTTP for probes and metrics; loopback only."""

    listen: str | None = None

    @field_validator("listen")
    @classmethod
    def _loopback(cls, value: str | None) -> str | None:
        if value is not None and split_address(value, bound=True)[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError("http.listen is unencrypted and therefore only for 127.0.0.1, ::1 or localhost")
        return value


class LogSection(Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Where a node keeps things, absolute."""

    bundle: Path
    state: Path
    pki: Path
    peers: Path
    jobs: Path
    spool: Path
    audit: Path
    softening_key: Path
    admin_socket: Path


def command_of(roles: tuple[Role, ...]) -> str:
    """The program that runs a node of these roles."""
    return "python -m ddib_fed.node" if len(roles) > 1 else f"ddib-{roles[0]}-node"


def _socket_path(state: Path) -> Path:
    """`state/admin.sock`, or a private short path when that is too long for a Unix socket."""
    plain = state / "admin.sock"
    if len(str(plain).encode()) <= MAX_SOCKET_PATH:
        return plain
    name = hashlib.sha256(str(state).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ddib-{name}" / "admin.sock"


class NodeConfig(Section):
    """The whole of node.toml."""

    node: NodeSection
    model: ModelSection
    train: TrainTable = TrainTable()
    limits: LimitsSection = LimitsSection()
    engine: EngineSection = EngineSection()
    policy: PolicySection = PolicySection()
    identity: IdentitySection = IdentitySection()
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()
    _folder: Path = PrivateAttr(default=Path())
    _name: str = PrivateAttr(default="node.toml")

    @model_validator(mode="after")
    def _trains(self) -> NodeConfig:
        self.train.check(self.model.domain)
        return self

    @classmethod
    def load(cls, path: Path) -> NodeConfig:
        """Read a node.toml.

        Raises:
            FileMissing: There is no such file.
            ConfigError: A key is unknown, missing, or its value cannot be used.
        """
        config = load_toml(
            path, cls, hint="ddib init node --institution north.example --role source --domain moons"
        )
        place = path.resolve()
        config._folder, config._name = place.parent, place.name  # noqa: SLF001 - its own private attributes
        return config

    def with_roles(self, roles: tuple[Role, ...]) -> NodeConfig:
        """The same node with only these roles."""
        copy = self.model_copy(update={"node": self.node.model_copy(update={"roles": roles})})
        copy._folder, copy._name = self._folder, self._name  # noqa: SLF001 - its own private attributes
        return copy

    @property
    def path(self) -> Path:
        """The file itself."""
        return self._folder / self._name

    @property
    def command(self) -> str:
        """The program that runs this node."""
        return command_of(self.node.roles)

    @property
    def folder(self) -> Path:
        """Where the file stands; what `train.data` and other paths are relative to."""
        return self._folder

    @property
    def not_dialled(self) -> str | None:
        """Why other machines cannot dial `node.address` although the node listens for them; none when they can."""
        (listens, _), (dialled, _) = (
            split_address(self.node.listen, bound=True),
            split_address(self.node.address),
        )
        if is_every_address(dialled):
            return f"node.address = {self.node.address!a} is nothing that clients and peers could dial"
        if is_loopback(dialled) and not is_loopback(listens):
            said = f"node.address = {self.node.address!a}, node.listen = {self.node.listen!a}"
            return f"{said}: others cannot dial that address"
        return None

    @property
    def paths(self) -> NodePaths:
        """Where the node keeps things."""
        state = self._folder / self.node.state
        return NodePaths(
            bundle=self._folder / self.model.bundle,
            state=state,
            pki=state / "pki",
            peers=state / "peers",
            jobs=state / "jobs.sqlite",
            spool=state / "spool",
            audit=state / "audit.jsonl",
            softening_key=state / "softening.key",
            admin_socket=_socket_path(state),
        )


_TEMPLATE = """\
# A ddib-fed node. Paths are relative to this file.
# `{command} check --config node.toml` says whether it can be used.

[node]
institution = "{institution}"   # DNS name of the institution; its certificates carry it
name = "{name}"
roles = [{roles}]               # "source" encodes for its own clients, "target" decodes for admitted peers
listen = "{listen}"             # address and port to bind
address = "{address}"           # what clients and peers dial
state = "state"                 # keys, peers, jobs, audit; keep it private and backed up

[model]
domain = "{domain}"             # the domain's name, as peers see it
bundle = {bundle:23} # manifest.json and model.safetensors; written by `{command} train`
{bundle_domain:31} # what the bundle calls its domain, where that is another name on purpose

[train]                         # the options of `ddib model train`, e.g. held_out for --held-out
{trained}
# steps = 2000                  # or time = "2h"; without either the preset's steps
# resume: the same command resumes a run that was stopped; --force starts it again
seed = 0

[limits]                        # the defaults; raise them only as far as the machine's memory goes
# max_points_per_item = 100000
# max_item_bytes = 67108864
# max_pixels = 89000000         # of one picture
# max_frames = 1                # of one file; a TIFF or PNG of several pictures is refused
# formats = ["PNG", "JPEG", "TIFF", "NPY"]  # of pictures that clients send
# max_items_per_job = 1000
# max_evaluations = 10000       # network evaluations of one leg
# max_open_jobs = 64            # source: unfinished jobs; more are refused with a time to try again
# max_spool_bytes = 4294967296  # source: files of jobs
# max_staged_bytes = 2147483648 # source: of one client, files that are being received at once
# decode_memory_mib = 1280      # source: what decoding and writing pictures may take at once, in all
# stall_s = 60.0                # an upload whose next piece does not come within this is ended
# job_deadline_s = 86400.0      # source: a job is given up after this
# result_days = 7.0             # source: results that nobody fetches are removed after this
# max_streams = 24
# max_streams_per_identity = 8
# drain_s = 60.0                # what runs has this long after SIGTERM

[engine]
# device = "auto"               # cpu, cuda, cuda:1; auto takes a GPU where there is one
# threads = 0                   # CPU threads of the network; 0 measures at start and keeps the fastest
# dtype = "float32"             # of the network: float32, bfloat16, float16; what is integrated stays float32
# merge_rows = 2048             # points of several requests evaluated in one network call
# merge_pixels = 65536          # pictures: their pixels together
# max_trajectories = 16         # requests that are integrated at once; more wait
# running_jobs = 2              # source: jobs worked on at once

[policy]
# round_trip = true             # target: encode the output again for a peer that asks for a cycle check
# least_depth = 1.0             # of a latent, in (0, 1]: less keeps structure, and some of the picture
# size_rule = "model"           # pictures of other sizes: fitted as the model's manifest says, or "refuse"
# samples_per_day = 0           # target: quota for each peer, 0 for none

[identity]                      # only where another node of the institution issues the certificates
# issuer = "node-1@issuer.north.example:7443"
# renew_command = ["/usr/local/bin/renew"]

[http]
# listen = "127.0.0.1:9464"     # /healthz, /readyz, /metrics; loopback only

[log]
# level = "info"                # debug, info, warning, error
# format = "text"               # or json, one object a line
"""


_BUILT_IN = """\
domain = "{domain}"             # a built-in domain, or instead of it points or pictures of your own:
                                # data = "points.npy" of shape (N, D), or images = "FOLDER" with size = 64"""
_OWN = """\
# images = "pictures"           # the folder with the pictures of {domain}, or instead data = "points.npy", shape (N, D)
# size = 64                     # height and width for the network; both institutions need the same"""


def _trained(domain: str) -> str:
    """The lines of [train] that name what is learned."""
    built_in = domain in SHIPPED or domain in DOMAINS
    return (_BUILT_IN if built_in else _OWN).format(domain=domain)


def render_node_toml(
    *,
    institution: str,
    name: str,
    roles: tuple[Role, ...],
    domain: str,
    listen: str,
    address: str,
    bundle: str = "model",
    bundle_domain: str | None = None,
) -> str:
    """A commented node.toml that `NodeConfig.load` accepts.

    Raises:
        ValueError: A value cannot be used (pydantic's error, which is one).
    """
    NodeSection(institution=institution, name=name, roles=roles, listen=listen, address=address)
    ModelSection(domain=domain, bundle=bundle)
    command = command_of(roles)
    return _TEMPLATE.format(
        command=command,
        institution=institution,
        name=name,
        roles=", ".join(f'"{role}"' for role in roles),
        domain=domain,
        trained=_trained(domain),
        listen=listen,
        address=address,
        bundle=_string(bundle),
        bundle_domain=f"bundle_domain = {_string(bundle_domain)}"
        if bundle_domain
        else '# bundle_domain = "imported"',
    )


def _string(text: str) -> str:
    """A text as TOML writes it; a path may hold quotes and backslashes."""
    return json.dumps(text, ensure_ascii=False)
