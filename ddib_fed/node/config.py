"""The configuration of a node: node.toml, checked; paths are relative to the file.

The listening address and the dial address are two settings: behind a firewall they differ.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ddib_fed.names import CONFIG_VARIABLE, check_domain, is_institution, is_label, size_from
from ddib_fed.node.settings.paths import NodePaths, paths_of
from ddib_fed.node.settings.policy_table import PolicySection
from ddib_fed.node.settings.section import Section
from ddib_fed.node.settings.train_table import TrainTable
from ddib_fed.rpc.addresses import is_every_address, is_loopback, split_address
from ddib_fed.rpc.proxy import Proxy, ProxyUrl
from ddib_fed.telemetry.settings import NodeTelemetry
from ddib_fed.toml_files import load_toml, parse_toml

Role = Literal["source", "target"]
Format = Literal["PNG", "JPEG", "TIFF", "NPY"]
# A node looks every 10 s whether its certificate is due.
LEAST_LIFE_S = 60.0


class NodeSection(Section):
    """Who the node is, where it listens, and how it reaches its peers."""

    institution: str
    name: str = "node-1"
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("source",)
    listen: str
    address: str
    state: str = "state"
    proxy: ProxyUrl | None = None
    proxy_login: str | None = None

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
    """The one model that the node hosts."""

    bundle: str = "model"
    domain: str
    bundle_domain: str | None = None
    classifier: str | None = None
    scene: str | None = None

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        return check_domain(value)

    @field_validator("scene")
    @classmethod
    def _scene(cls, value: str | None) -> str | None:
        if value is not None:
            size_from(value)
        return value


class LimitsSection(Section):
    """The node's limits; units are in the names."""

    max_items_per_job: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    max_points_per_item: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    max_item_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    max_pixels: Annotated[int, Field(ge=1)] = 89_000_000
    # Of one file. The decoders read one; the setting makes the limit visible.
    max_frames: Literal[1] = 1
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = ("PNG", "JPEG", "TIFF", "NPY")
    max_evaluations: Annotated[int, Field(ge=1, le=10_000)] = 2_000
    max_open_jobs: Annotated[int, Field(ge=1)] = 64
    max_spool_bytes: Annotated[int, Field(ge=1)] = 4 << 30
    max_staged_bytes: Annotated[int, Field(ge=1)] = 2 << 30
    decode_memory_mib: Annotated[int, Field(ge=64, le=1 << 20)] = 220
    stall_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    idle_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    request_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    result_days: Annotated[float, Field(gt=0)] = 7.0
    job_deadline_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    max_streams: Annotated[int, Field(ge=1, le=256)] = 64
    max_streams_per_identity: Annotated[int, Field(ge=1, le=256)] = 40
    drain_s: Annotated[float, Field(ge=0)] = 60.0


class EngineSection(Section):
    """Where and how the network runs."""

    executor: Literal["inline", "processes", "ray"] = "inline"
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    ray_address: str = ""
    device: str = "auto"
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    merge_rows: Annotated[int, Field(ge=0)] = 0
    merge_pixels: Annotated[int, Field(ge=0)] = 0
    max_trajectories: Annotated[int, Field(ge=1, le=64)] = 64
    running_jobs: Annotated[int, Field(ge=1, le=64)] = 24

    @field_validator("ray_address")
    @classmethod
    def _ray_address(cls, value: str) -> str:
        if value not in {"", "local"}:
            split_address(value)
        return value


class IdentitySection(Section):
    """How the node's certificate is renewed, and how long those live that it issues."""

    issuer: str | None = None
    renew_command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    node_life_s: Annotated[float, Field(ge=LEAST_LIFE_S, le=366 * 86_400)] = 86_400.0
    client_life_s: Annotated[float, Field(ge=LEAST_LIFE_S, le=366 * 86_400)] = 30 * 86_400.0
    recovery_days: Annotated[float, Field(ge=0, le=366)] = 30.0

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is not None:
            name, at, address = value.partition("@")
            if not at or not is_label(name):
                raise ValueError("an issuer is NODE@HOST:PORT, e.g. node-1@issuer.north.example:7443")
            split_address(address)
        return value

    def life(self, kind: str) -> timedelta:
        return timedelta(seconds=self.node_life_s if kind == "node" else self.client_life_s)


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


def command_of(roles: tuple[Role, ...]) -> str:
    return "python -m ddib_fed.node" if len(roles) > 1 else f"ddib-{roles[0]}-node"


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
    telemetry: NodeTelemetry = NodeTelemetry()
    _folder: Path = PrivateAttr(default=Path())
    _name: str = PrivateAttr(default="node.toml")

    @model_validator(mode="after")
    def _trains(self) -> NodeConfig:
        self.train.check(self.model.domain)
        return self

    @classmethod
    def load(cls, path: Path) -> NodeConfig:
        """Read a node.toml."""
        config = load_toml(
            path,
            cls,
            hint=f"--config FILE or {CONFIG_VARIABLE} names one that is elsewhere; "
            "a new one: ddib init node --role source --model satellite",
        )
        return config._at(path)  # noqa: SLF001 - its own class

    @classmethod
    def parse(cls, data: bytes, path: Path) -> NodeConfig:
        return parse_toml(data, cls, path)._at(path)  # noqa: SLF001 - its own class

    def _at(self, path: Path) -> NodeConfig:
        place = path.resolve()
        self._folder, self._name = place.parent, place.name
        return self

    def with_policy(self, policy: PolicySection) -> NodeConfig:
        """The same node under another policy."""
        copy = self.model_copy(update={"policy": policy})
        copy._folder, copy._name = self._folder, self._name  # noqa: SLF001 - its own private attributes
        return copy

    def with_roles(self, roles: tuple[Role, ...]) -> NodeConfig:
        """The same node with only these roles."""
        copy = self.model_copy(update={"node": self.node.model_copy(update={"roles": roles})})
        copy._folder, copy._name = self._folder, self._name  # noqa: SLF001 - its own private attributes
        return copy

    @property
    def path(self) -> Path:
        return self._folder / self._name

    @property
    def command(self) -> str:
        return command_of(self.node.roles)

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def not_dialled(self) -> str | None:
        """Why other machines cannot dial `node.address` although the node listens for them; None if they can."""
        (listens, _), (dialled, _) = (
            split_address(self.node.listen, bound=True),
            split_address(self.node.address),
        )
        if is_every_address(dialled):
            return f"node.address = {self.node.address!a} is not an address that clients and peers can dial"
        if is_loopback(dialled) and not is_loopback(listens):
            said = f"node.address = {self.node.address!a}, node.listen = {self.node.listen!a}"
            return f"{said}: others cannot dial that address"
        return None

    @property
    def proxy(self) -> Proxy | None:
        login = None if self.node.proxy_login is None else self._folder / self.node.proxy_login
        return Proxy.of(self.node.proxy, login)

    @property
    def paths(self) -> NodePaths:
        """The paths of the node's files."""
        return paths_of(
            self._folder, self.node.state, bundle=self.model.bundle, classifier=self.model.classifier
        )
