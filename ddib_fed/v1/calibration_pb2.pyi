from ddib_fed.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CalibrationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALIBRATION_STATE_UNSPECIFIED: _ClassVar[CalibrationState]
    CALIBRATION_STATE_SIGNED: _ClassVar[CalibrationState]
    CALIBRATION_STATE_PENDING: _ClassVar[CalibrationState]
CALIBRATION_STATE_UNSPECIFIED: CalibrationState
CALIBRATION_STATE_SIGNED: CalibrationState
CALIBRATION_STATE_PENDING: CalibrationState

class GetAggregateRequest(_message.Message):
    __slots__ = ("domain",)
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    domain: str
    def __init__(self, domain: _Optional[str] = ...) -> None: ...

class GetAggregateResponse(_message.Message):
    __slots__ = ("aggregate",)
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    aggregate: bytes
    def __init__(self, aggregate: _Optional[bytes] = ...) -> None: ...

class GetUnitsRequest(_message.Message):
    __slots__ = ("domain", "latents")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    domain: str
    latents: bool
    def __init__(self, domain: _Optional[str] = ..., latents: _Optional[bool] = ...) -> None: ...

class GetUnitsResponse(_message.Message):
    __slots__ = ("units",)
    UNITS_FIELD_NUMBER: _ClassVar[int]
    units: bytes
    def __init__(self, units: _Optional[bytes] = ...) -> None: ...

class CalibrationSignature(_message.Message):
    __slots__ = ("signed_at", "certificate", "signature")
    SIGNED_AT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signed_at: int
    certificate: str
    signature: bytes
    def __init__(self, signed_at: _Optional[int] = ..., certificate: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SignCalibrationRequest(_message.Message):
    __slots__ = ("calibration", "source")
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    calibration: bytes
    source: CalibrationSignature
    def __init__(self, calibration: _Optional[bytes] = ..., source: _Optional[_Union[CalibrationSignature, _Mapping]] = ...) -> None: ...

class SignCalibrationResponse(_message.Message):
    __slots__ = ("state", "target")
    STATE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    state: CalibrationState
    target: CalibrationSignature
    def __init__(self, state: _Optional[_Union[CalibrationState, str]] = ..., target: _Optional[_Union[CalibrationSignature, _Mapping]] = ...) -> None: ...
