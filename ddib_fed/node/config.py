"""The configuration of a node: node.toml, checked, and the commented one that `ddib init node` writes.

Each key is a field whose description is its comment. Paths are relative to the file. The listening address and the
dial address are two settings: behind a firewall they differ.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, model_validator
from pydantic.fields import FieldInfo

from ddib_fed.errors import DdibError
from ddib_fed.extensions import extensions
from ddib_fed.files import load_toml
from ddib_fed.names import (
    CONFIG_VARIABLE,
    check_domain,
    check_institution,
    is_domain,
    is_institution,
    is_label,
    nearest,
    size_from,
)
from ddib_fed.protocol.addresses import Proxy, ProxyUrl, is_every_address, is_loopback, split_address
from ddib_fed.protocol.contract import MAX_GUIDANCE, CalibrationKind
from ddib_fed.record import Frozen
from ddib_fed.security.peers import PeerStore
from ddib_fed.telemetry import NodeTelemetry
from ddib_fed.training.config import SHIPPED, TrainConfig

Role = Literal["source", "target"]
Use = Literal["send", "decode", "calibrate"]
EVERY: Final = "*"
LEAST_LIFE_S: Final = 60.0
"""A node looks every 10 s whether its certificate is due."""
MOST_LIFE_S: Final = 366 * 86_400.0
MAX_POINTS_PER_ITEM: Final = 100_000
"""This takes seconds of work: a larger set takes several files."""
MAX_SOCKET_PATH: Final = 100
"""sun_path holds 108 bytes on Linux and 104 on macOS, with the closing zero."""
_TRAIN_PATHS: Final = frozenset({"data", "images", "init", "calibration"})
_TRAIN_FIELDS: Final = {
    name.removesuffix("_s"): name
    for name in TrainConfig.fields_of("points", "pictures", "autoencoder")
    if name != "name"
}


def where(is_right: Callable[[str], object], otherwise: str = "") -> AfterValidator:
    """Accept texts for which `is_right` is true; without `otherwise`, texts for which it raises no ValueError."""

    def checked_text(value: str) -> str:
        if not is_right(value) and otherwise:
            raise ValueError(f"{value!a} is no {otherwise}")
        return value

    return AfterValidator(checked_text)


def _is_issuer(value: str) -> bool:
    name, at, address = value.partition("@")
    return bool(at) and is_label(name) and bool(split_address(address))


def _is_target(value: str) -> bool:
    institution, slash, domain = value.partition("/")
    return value == EVERY or (is_institution(institution) and bool(slash) == is_domain(domain))


Institution = Annotated[str, AfterValidator(check_institution)]
Domain = Annotated[str, AfterValidator(check_domain)]
Address = Annotated[str, where(split_address)]
Listen = Annotated[str, where(partial(split_address, bound=True))]
Size = Annotated[str, where(size_from)]
NodeName = Annotated[str, where(is_label, "node's name, which is one DNS label in lower case, e.g. node-1")]
Issuer = Annotated[
    str, where(_is_issuer, "issuer, which is NODE@HOST:PORT, e.g. node-1@issuer.north.example:7443")
]
RayAddress = Annotated[str, where(lambda value: value in {"", "local"} or split_address(value))]
PeerName = Annotated[
    str,
    where(lambda value: value == EVERY or is_institution(value), 'institution, e.g. south.example, or "*"'),
]
ClientName = Annotated[
    str, where(lambda value: value == EVERY or is_label(value), 'client\'s name, e.g. alice, or "*"')
]
Target = Annotated[str, where(_is_target, "target, e.g. south.example/relief or south.example")]
Loopback = Annotated[
    str,
    where(
        lambda value: split_address(value, bound=True)[0] in {"127.0.0.1", "::1", "localhost"},
        "address of http.listen: it is unencrypted and only for 127.0.0.1, ::1 or localhost",
    ),
]


def key(default: Any, description: str, **more: Any) -> Any:
    """Return a field with its default, and its comment in the template."""
    return Field(default, description=description, **more)


class NodeSection(Frozen):
    """Who the node is, where it listens, and how it reaches its peers."""

    institution: Institution = Field(description="DNS name of the institution; its certificates carry it")
    name: NodeName = key("node-1", "the node's name, one DNS label")
    roles: tuple[Role, ...] = key(
        ("source",), '"source" encodes for its own clients, "target" decodes for admitted peers', min_length=1
    )
    listen: Listen = Field(description="address and port to bind")
    address: Address = Field(description="what clients and peers dial")
    state: str = key("state", "keys, peers, jobs, audit; keep it private and backed up")
    proxy: ProxyUrl | None = key(
        None,
        "HTTP CONNECT proxy to all peers; https_proxy is never looked at",
        examples=["http://proxy.north.example:3128"],
    )
    proxy_login: str | None = key(None, "file with USER:PASSWORD for it, mode 600", examples=["proxy.login"])


class ModelSection(Frozen):
    """The one model that the node hosts."""

    domain: Domain = Field(description="the domain's name, as peers see it")
    bundle: str = key("model", "manifest.json and model.safetensors; `train` writes them")
    classifier: str | None = key(None, "folder of a classifier for guided requests", examples=["classifier"])
    scene: Size | None = key(
        None, "HxW, of volumes DxHxW, in tiles; the same at both nodes", examples=["512x512"]
    )
    bundle_domain: str | None = key(None, "what the bundle calls it, if otherwise", examples=["imported"])


class TrainSection(Frozen, extra="allow"):
    """The options and --set fields of `ddib model train`, e.g. skip_bad for --skip-bad."""

    def config(self, folder: Path, domain: str, *, threads: int = 1, **run: str) -> TrainConfig:
        """Return the configuration of a run whose paths start at the folder; raise ValueError for an unknown key."""
        values: dict[str, Any] = {} if self.names_data else {"domain": domain}
        for name, value in self._keys.items():
            if name not in _TRAIN_FIELDS:
                close = nearest(name, _TRAIN_FIELDS, cutoff=0.5)
                meant = f"; did you mean {close!r}?" if close else ""
                raise ValueError(f"train.{name}: unknown key{meant}")
            values[_TRAIN_FIELDS[name]] = folder / value if name in _TRAIN_PATHS else value
        hint = "`ddib model train --help` explains the options"
        return TrainConfig.checked({"threads": threads, **values, **run}, hint)

    @property
    def names_data(self) -> bool:
        return bool(self._keys.keys() & {"domain", "data", "images"})

    def pictures(self, folder: Path) -> str | None:
        images, domain = self._keys.get("images"), self._keys.get("domain")
        return str(folder / images) if images else domain

    @property
    def _keys(self) -> dict[str, Any]:
        return self.model_extra or {}


class LimitsSection(Frozen):
    """Raise them only as far as the machine's memory goes."""

    max_item_bytes: int = key(64 << 20, "of one file", ge=1)
    max_pixels: int = key(89_000_000, "of one picture", ge=1)
    max_items_per_job: int = key(1_000, "files of a job", ge=1, le=100_000)
    max_evaluations: int = key(2_000, "network evaluations of one leg, at most 10000", ge=1, le=10_000)
    max_open_jobs: int = key(64, "source: unfinished jobs for one peer", ge=1)
    max_spool_bytes: int = key(4 << 30, "source: files of jobs; one client has five eighths of them", ge=1)
    decode_memory_mib: int = key(220, "source: of pictures being decoded or written", ge=64, le=1 << 20)
    stall_s: float = key(60.0, "an upload whose next piece does not come within this is ended", gt=0, le=3600)
    request_s: float = key(20.0, "a call whose request does not come within this is ended", gt=0, le=3600)
    idle_s: float = key(300.0, "a stream on which nothing moves for so long is ended", gt=0, le=86_400)
    result_days: float = key(7.0, "source: results that nobody fetches are removed after this", gt=0)
    max_streams: int = key(64, "calls that stream at once, five eighths for one caller", ge=1, le=256)
    drain_s: float = key(60.0, "running work has this long after SIGTERM", ge=0)


class EngineSection(Frozen):
    """Where and how the network runs."""

    executor: str = key(
        "inline", 'or "processes": one for each GPU or core; or "ray": actors on your own Ray cluster'
    )
    workers: int = key(0, "of processes or ray; 0: one on each GPU, without any on each core", ge=0, le=256)
    ray_address: RayAddress = key("", '"HOST:6379", the head of the Ray cluster; "local" starts one here')
    device: str = key("auto", "cpu, cuda, cuda:1; auto takes a GPU where there is one")
    threads: int = key(0, "of the network on CPUs; 0 measures at start and keeps the fastest", ge=0, le=256)
    dtype: Literal["float32", "bfloat16", "float16"] = key(
        "float32", "of the network; bfloat16 and float16 (GPUs) are less exact; states stay float32"
    )
    merge_pixels: int = key(0, "pixels in one network call; 0 measures at each start what is best", ge=0)
    running_jobs: int = key(24, "source: jobs worked on at once, of one client two thirds", ge=1, le=64)

    @model_validator(mode="after")
    def _has_its_cluster(self) -> EngineSection:
        if self.executor == "ray" and not self.ray_address:
            raise ValueError(
                'executor = "ray" needs ray_address = "HOST:6379"; "local" starts a cluster here'
            )
        known = "inline", "processes", *extensions("ddib_fed.executors")
        if self.executor not in known:
            raise ValueError(f"executor is one of {', '.join(known)}")
        return self


class PolicySection(Frozen):
    """What peers and own clients may do beyond the protocol."""

    peers: dict[PeerName, tuple[Use, ...]] = key(
        {EVERY: ("send", "decode", "calibrate")}, 'what each peer may be used for; "*" is the others'
    )
    clients: dict[ClientName, tuple[Target, ...]] = key(
        {EVERY: (EVERY,)},
        'where each client may translate to, as { "alice" = ["south.example/relief"] }; "*" is the others',
    )
    least_soften_sigma: float = key(0.0, "of pictures, sigma / alpha; a model's manifest has it", ge=0, le=1)
    round_trip: bool = key(True, "target: encode the output again for a peer that asks for a cycle check")
    least_depth: float = key(1.0, "of a latent, in (0, 1]: less keeps some of the picture", gt=0, le=1)
    least_evaluations: int = key(8, "of a latent; 0 for any number, flow maps are exempt", ge=0, le=10_000)
    least_share: float = key(1.0, "of the network in encoding: less shows more of the picture", ge=0, le=1)
    shared_noise: bool = key(False, "one noise for a volume, if the peer agrees: less flicker, shows more")
    max_guidance: float = key(10.0, "of guidance and classifier-scale; 0 for none", ge=0, le=MAX_GUIDANCE)
    calibration: tuple[CalibrationKind, ...] = key(
        (), 'kinds that peers may agree on: "rotation", "tone", "colour-map"; none by default'
    )
    size_rule: Literal["model", "refuse"] = key(
        "model", 'pictures of other sizes: fitted as the model\'s manifest says, or "refuse"'
    )
    evaluations_per_day: int = key(20_000_000_000, "target: of a peer, x points or pixels; 0: no limit", ge=0)
    quotas: dict[Institution, Annotated[int, Field(ge=0)]] = key(
        {}, 'target: the same for single peers, as { "south.example" = 1000000000000 }'
    )
    samples_per_day: int = key(0, "target: points or pictures of a peer, 0: no limit", ge=0)
    client_evaluations_per_day: int = key(20_000_000_000, "source: of a client, as evaluations_per_day", ge=0)


class IdentitySection(Frozen):
    """How the node's certificate is renewed, and how long those live that it issues."""

    issuer: Issuer | None = key(
        None,
        "where another node of the institution issues the certificates",
        examples=["node-1@issuer.north.example:7443"],
    )
    node_life_s: float = key(
        86_400.0,
        "of certificates issued to nodes, at least 60; renewed after two thirds",
        ge=LEAST_LIFE_S,
        le=MOST_LIFE_S,
    )
    client_life_s: float = key(30 * 86_400.0, "the same, of clients", ge=LEAST_LIFE_S, le=MOST_LIFE_S)
    recovery_days: float = key(30.0, "a node may be off so long and come back; 0 for never", ge=0, le=366)

    def life(self, kind: str) -> timedelta:
        return timedelta(seconds=self.node_life_s if kind == "node" else self.client_life_s)


class HttpSection(Frozen):
    """Plain HTTP for probes and metrics; loopback only."""

    listen: Loopback | None = key(
        None, "/healthz, /readyz, /metrics; loopback only", examples=["127.0.0.1:9464"]
    )


class LogSection(Frozen):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = key("info", "debug, info, warning, error")
    format: Literal["text", "json"] = key("text", "or json, one object a line")


class NodePaths:
    def __init__(self, folder: Path, node: NodeSection, model: ModelSection) -> None:
        self.bundle = folder / model.bundle
        self.classifier = None if model.classifier is None else folder / model.classifier
        self.state = state = folder / node.state
        self.pki = state / "pki"
        self.store = state / "node.sqlite"
        self.spool = state / "spool"
        self.softening_key = state / "softening.key"
        self.calibrations = state / "calibrations"
        self.aggregate = state / "aggregate.json"
        self.admin_socket = state / "admin.sock"
        if len(str(self.admin_socket).encode()) > MAX_SOCKET_PATH:
            name = hashlib.sha256(str(state).encode()).hexdigest()[:16]
            self.admin_socket = Path(tempfile.gettempdir()) / f"ddib-{name}" / "admin.sock"


class NodeConfig(Frozen):
    node: NodeSection
    model: ModelSection
    train: TrainSection = TrainSection()
    limits: LimitsSection = LimitsSection()
    engine: EngineSection = EngineSection()
    policy: PolicySection = PolicySection()
    identity: IdentitySection = IdentitySection()
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()
    telemetry: NodeTelemetry = NodeTelemetry()
    _path: Path = PrivateAttr(default=Path("node.toml"))

    @model_validator(mode="after")
    def _trains(self) -> NodeConfig:
        try:
            self.train.config(Path(), self.model.domain)
        except DdibError as error:
            raise ValueError(f"train: {error.detail}; {error.hint}") from error
        return self

    @classmethod
    def load(cls, path: Path) -> NodeConfig:
        hint = (
            f"--config FILE or {CONFIG_VARIABLE} names one that is elsewhere; "
            "a new one: ddib init node --role source --model satellite"
        )
        config = load_toml(path, cls, hint=hint)
        config._path = path.resolve()  # noqa: SLF001 - its own class
        return config

    @property
    def path(self) -> Path:
        return self._path

    @property
    def folder(self) -> Path:
        return self._path.parent

    @property
    def command(self) -> str:
        return f"ddib-{self.node.roles[0]}-node"

    @property
    def not_dialled(self) -> str | None:
        """Why other machines cannot dial `node.address` although the node listens for them; None if they can."""
        address, listen = self.node.address, self.node.listen
        dialled, listens = split_address(address)[0], split_address(listen, bound=True)[0]
        if is_every_address(dialled):
            return f"node.address = {address!a} is not an address that clients and peers can dial"
        if is_loopback(dialled) and not is_loopback(listens):
            return f"node.address = {address!a}, node.listen = {listen!a}: others cannot dial that address"
        return None

    @property
    def proxy(self) -> Proxy | None:
        login = None if self.node.proxy_login is None else self.folder / self.node.proxy_login
        return Proxy.of(self.node.proxy, login)

    @property
    def paths(self) -> NodePaths:
        return NodePaths(self.folder, self.node, self.model)


def peer_store(config: NodeConfig) -> PeerStore:
    """Return the node's store of trust, whose changes are lines of its audit log."""
    return PeerStore(config.paths.state, config.node.institution, config.paths.store)


_TRAIN_BUILT_IN: Final = """\
domain = "{domain}"             # a built-in domain, or instead of it points or pictures of your own:
                                # data = "points.npy" of shape (N, D), or images = "FOLDER" with size = 64
"""
_TRAIN_OWN: Final = """\
# images = "pictures"           # the folder with the pictures of {domain}, or instead data = "points.npy", shape (N, D)
# size = 64                     # height and width for the network; both institutions need the same
"""
_TRAIN_REST: Final = """\
# steps = 2000                  # or time = "2h"; without either the preset's steps
# resume: the same command resumes a run that was stopped; --force starts it again
seed = 0
"""


def render_node_toml(node: NodeSection, model: ModelSection) -> str:
    """Return a commented node.toml that `NodeConfig.load` accepts."""
    from ddib_fed.datasets import DOMAINS  # which needs numpy

    settings = {
        "node": node.model_dump(exclude={"proxy", "proxy_login"}),
        "model": model.model_dump(exclude_none=True),
    }
    text = (
        "# A ddib-fed node. Paths are relative to this file.\n"
        f"# `ddib-{node.roles[0]}-node check --config node.toml` says whether it can be used.\n"
    )
    for section, field in NodeConfig.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        text += f"\n# {kind.__doc__}\n[{section}]\n"
        if section == "train":
            built_in = model.domain in SHIPPED or model.domain in DOMAINS
            text += (_TRAIN_BUILT_IN if built_in else _TRAIN_OWN).format(domain=model.domain) + _TRAIN_REST
        elif issubclass(kind, BaseModel):
            text += "".join(
                _line(key, info, settings.get(section, {})) for key, info in kind.model_fields.items()
            )
    return text


def _line(key: str, info: FieldInfo, settings: Mapping[str, Any]) -> str:
    value = settings.get(key, info.examples[0] if info.examples else info.default)
    line = f"{'' if key in settings else '# '}{key} = {toml_text(value)}"
    return f"{line:31} # {info.description}\n"


def toml_text(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_text(key)} = {toml_text(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, ensure_ascii=False)
