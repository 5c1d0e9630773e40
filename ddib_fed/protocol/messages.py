"""States, settings, domains and records, the messages that carry them, and the check of received messages.

Requests and answers pass through `check` before any part of them is used: it refuses fields that are not in protos/,
and values outside the limits that are options of the fields, see protos/ddib_fed/v1/limits.proto. What a domain type
demands beyond them is checked where it is made.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from pydantic import ConfigDict, TypeAdapter

from ddib_fed.errors import DdibError, MessageInvalid, SettingsInvalid, UnknownFields, error_class
from ddib_fed.files import DIGEST_BYTES
from ddib_fed.record import Record, Settings
from ddib_fed.v1 import common_pb2, translation_pb2


class JobState(StrEnum):
    """State of a job; the names are those of translation.proto without their prefix."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        return self in {JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}


class ItemState(StrEnum):
    """State of an item of a job; the names are those of translation.proto without their prefix."""

    RECEIVED = "RECEIVED"
    ENCODED = "ENCODED"
    DECODED = "DECODED"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


def settings_to_pb(settings: Settings) -> common_pb2.SolverSettings:
    return common_pb2.SolverSettings(**asdict(settings))


_BASE64 = ConfigDict(val_json_bytes="base64")


@dataclass(frozen=True, slots=True)
class GuidanceTerms:
    """What guidance a target offers: its largest scales, 0 for none, and the classes of its classifier."""

    __pydantic_config__ = _BASE64
    max_guidance: float = 0.0
    max_classifier_scale: float = 0.0
    classifier_sha256: bytes = b""
    classifier_classes: int = 0
    clip: bool = False


@dataclass(frozen=True, slots=True)
class CalibrationTerms:
    """The calibration of a target: its digest, its kind, and when it ends, in Unix seconds."""

    __pydantic_config__ = _BASE64
    sha256: bytes = b""
    kind: str = ""
    expires: int = 0


@dataclass(frozen=True, slots=True)
class Domain:
    """A target domain as the source node sees it: without a name while its node does not answer.

    `status` is "ready" or the reason of an error; `sample_shape` is (C, H, W), (C, D, H, W) of volumes, (D,) of points.
    """

    institution: str
    domain: str = ""
    sample_kind: str = ""
    sample_shape: tuple[int, ...] = ()
    status: str = ""
    latency_ms: int = 0
    classes: int = 0
    class_names: tuple[str, ...] = ()
    size_rule: str = ""
    guidance: GuidanceTerms = GuidanceTerms()
    calibration: CalibrationTerms | None = None

    @property
    def target(self) -> str:
        return f"{self.institution}/{self.domain}"

    @property
    def is_ready(self) -> bool:
        return self.status == "ready"

    @property
    def why(self) -> str:
        """Say why it is not ready; empty if it is."""
        return "" if self.is_ready else error_class(self.status).sentence


@dataclass(frozen=True, slots=True)
class Domains:
    """The own domain of a node, how its model reads volumes, maps and larger pictures, and its targets."""

    institution: str
    domain: str = ""
    sample_kind: str = ""
    sample_shape: tuple[int, ...] = ()
    domains: tuple[Domain, ...] = ()
    classes: int = 0
    class_names: tuple[str, ...] = ()
    tiles: bool = False
    spacing_mm: tuple[float, ...] = ()
    intensity: str = ""
    slices: str = ""


def domains_value(message: translation_pb2.ListDomainsResponse) -> Domains:
    """Return the domains that a source node listed."""
    return TypeAdapter(Domains).validate_json(json.dumps(_plain(message)))


def _plain(message: Message) -> dict[str, Any]:
    # Which commands without jobs do not need.
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


# Records of finished translations

_LOCAL: Final = frozenset({"format", "input", "files", "doubtful", "doubts", "asked_sha256"})
"""The client adds these fields to the record."""


def provenance_message(stored: Mapping[str, Any]) -> translation_pb2.Provenance:
    """Return the stored record of a finished translation, for the client."""
    return translation_pb2.Provenance(**{name: stored[name] for name in stored.keys() - _LOCAL})


def provenance_record(message: translation_pb2.Provenance) -> Record:
    """Return the record that a source node sent; its fields were checked when the message arrived."""
    values = _plain(message)
    # A map has another order in each process; a record that is written again must be the same bytes.
    values["seconds"] = dict(sorted(values["seconds"].items()))
    try:
        return Record.model_validate(values)
    except (ValueError, SettingsInvalid) as error:  # fields that are right alone, and wrong together
        raise MessageInvalid(f"the record of a result: {error}") from error


PACKAGE: Final = "ddib_fed.v1"
SETTINGS: Final = frozenset({"SolverSettings", "GuidanceSettings"})
"""Messages whose values are the user's choice: a wrong one is `SettingsInvalid`."""
MAX_ITEMS: Final = 16
_WHOLE: Final = frozenset({FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64})
_DEFAULTS: Final[Mapping[int, tuple[float, float]]] = {
    FieldDescriptor.CPPTYPE_STRING: (0, 64),  # characters
    FieldDescriptor.CPPTYPE_DOUBLE: (-1e12, 1e12),
    FieldDescriptor.CPPTYPE_BOOL: (0, 1),
    **dict.fromkeys(_WHOLE, (0, 2**53)),
}


class Limits(NamedTuple):
    """The limits of one field; `low` and `high` are of its type's values, lengths or bytes."""

    name: str
    field: FieldDescriptor
    low: float
    high: float
    max_items: int
    required: bool
    needed: bool
    """An unset field is outside its limits: a number of 0, an empty text, a required message."""
    error: type[DdibError]


def check(message: Any) -> None:
    """Raise unless a message has only known fields within their limits; other packages' messages and objects pass.

    Raise UnknownFields for a field of another release, SettingsInvalid for a solver's setting outside its limits, and
    MessageInvalid for another field, which `facts["field"]` names.
    """
    if not isinstance(message, Message) or message.DESCRIPTOR.file.package != PACKAGE:
        return
    _check(message)


def _check(message: Message) -> None:
    if len(UnknownFieldSet(message)):
        raise UnknownFields(f"a {message.DESCRIPTOR.name} has fields that this release does not know")
    limits, listed = limits_of(message.DESCRIPTOR), message.ListFields()
    present = {field.number for field, _ in listed}
    for number, bounds in limits.items():
        if bounds.needed and number not in present:
            raise _outside(
                bounds, "must be set" if bounds.required else _range(bounds, bounds.field.default_value)
            )
    for field, value in listed:
        bounds, values = limits[field.number], [value]
        if field.is_repeated:
            if len(value) > bounds.max_items:
                raise _outside(bounds, f"must be at most {bounds.max_items} in number, not {len(value)}")
            values = list(value.values() if isinstance(value, Mapping) else value)
        for one in values:
            if isinstance(one, Message):
                _check(one)
            # Written so that NaN fails.
            elif not bounds.low <= (len(one) if isinstance(one, str | bytes) else one) <= bounds.high:
                raise _outside(bounds, _range(bounds, one))


def _range(limits: Limits, value: str | bytes | float) -> str:
    if limits.field.enum_type is not None and not value:
        return "must be set"
    unit = " characters" if isinstance(value, str) else " bytes" if isinstance(value, bytes) else ""
    return f"must be from {limits.low:g} to {limits.high:g}{unit}"


def _outside(limits: Limits, detail: str) -> DdibError:
    return limits.error(f"{limits.name} {detail}", facts={"field": limits.field.name})


@cache
def limits_of(descriptor: Descriptor) -> Mapping[int, Limits]:
    return {field.number: _of_field(descriptor.name, field) for field in descriptor.fields}


def _of_field(message: str, field: FieldDescriptor) -> Limits:
    kind, value = field.message_type, field
    if kind is not None and kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
    low, high = _DEFAULTS.get(value.cpp_type, (0, 0))
    if value.type == value.TYPE_BYTES:
        low = high = DIGEST_BYTES
    elif value.enum_type is not None:
        low, high = 1, max(value.enum_type.values_by_number)
    stated = {option.name: set_to for option, set_to in field.GetOptions().ListFields()}
    low = stated.get("min", low)
    required = stated.get("required", False)
    settings = SETTINGS & {message, "" if kind is None else kind.name}
    return Limits(
        name=f"{message}.{field.name}",
        field=field,
        low=low,
        high=stated.get("max", high),
        max_items=stated.get("max_items", MAX_ITEMS),
        required=required,
        needed=required or (low > 0 and not field.is_repeated and not field.has_presence),
        error=SettingsInvalid if settings else MessageInvalid,
    )
