from ddib_fed.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MediaType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEDIA_TYPE_UNSPECIFIED: _ClassVar[MediaType]
    MEDIA_TYPE_NPY: _ClassVar[MediaType]
    MEDIA_TYPE_PNG: _ClassVar[MediaType]
    MEDIA_TYPE_JPEG: _ClassVar[MediaType]
    MEDIA_TYPE_TIFF: _ClassVar[MediaType]
MEDIA_TYPE_UNSPECIFIED: MediaType
MEDIA_TYPE_NPY: MediaType
MEDIA_TYPE_PNG: MediaType
MEDIA_TYPE_JPEG: MediaType
MEDIA_TYPE_TIFF: MediaType

class TensorHeader(_message.Message):
    __slots__ = ("shape", "size_bytes", "sha256")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    size_bytes: int
    sha256: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class FileHeader(_message.Message):
    __slots__ = ("media_type", "size_bytes", "sha256")
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    media_type: MediaType
    size_bytes: int
    sha256: bytes
    def __init__(self, media_type: _Optional[_Union[MediaType, str]] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class PictureTerms(_message.Message):
    __slots__ = ("low", "high", "bits")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    bits: int
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ..., bits: _Optional[int] = ...) -> None: ...

class SolverSettings(_message.Message):
    __slots__ = ("solver", "order", "evaluations", "grid", "depth", "share", "temperature", "blend")
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    BLEND_FIELD_NUMBER: _ClassVar[int]
    solver: str
    order: int
    evaluations: int
    grid: str
    depth: float
    share: float
    temperature: float
    blend: float
    def __init__(self, solver: _Optional[str] = ..., order: _Optional[int] = ..., evaluations: _Optional[int] = ..., grid: _Optional[str] = ..., depth: _Optional[float] = ..., share: _Optional[float] = ..., temperature: _Optional[float] = ..., blend: _Optional[float] = ...) -> None: ...

class GuidanceSettings(_message.Message):
    __slots__ = ("guidance", "classifier_scale", "clip")
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIER_SCALE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    guidance: float
    classifier_scale: float
    clip: bool
    def __init__(self, guidance: _Optional[float] = ..., classifier_scale: _Optional[float] = ..., clip: _Optional[bool] = ...) -> None: ...

class GuidanceTerms(_message.Message):
    __slots__ = ("max_guidance", "max_classifier_scale", "classifier_sha256", "classifier_classes", "clip")
    MAX_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_CLASSIFIER_SCALE_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIER_SHA256_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIER_CLASSES_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    max_guidance: float
    max_classifier_scale: float
    classifier_sha256: bytes
    classifier_classes: int
    clip: bool
    def __init__(self, max_guidance: _Optional[float] = ..., max_classifier_scale: _Optional[float] = ..., classifier_sha256: _Optional[bytes] = ..., classifier_classes: _Optional[int] = ..., clip: _Optional[bool] = ...) -> None: ...

class CalibrationTerms(_message.Message):
    __slots__ = ("sha256", "kind", "expires")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    kind: str
    expires: int
    def __init__(self, sha256: _Optional[bytes] = ..., kind: _Optional[str] = ..., expires: _Optional[int] = ...) -> None: ...

class LatentStatistics(_message.Message):
    __slots__ = ("mean", "std", "kurtosis", "correlation", "count")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    KURTOSIS_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    mean: float
    std: float
    kurtosis: float
    correlation: float
    count: int
    def __init__(self, mean: _Optional[float] = ..., std: _Optional[float] = ..., kurtosis: _Optional[float] = ..., correlation: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class AuditHead(_message.Message):
    __slots__ = ("lines", "sha256")
    LINES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    lines: int
    sha256: bytes
    def __init__(self, lines: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "sentence", "incident", "retry_after_ms", "facts", "differences", "institution", "refused")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    INCIDENT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    sentence: str
    incident: str
    retry_after_ms: int
    facts: _containers.ScalarMap[str, str]
    differences: _containers.RepeatedCompositeFieldContainer[FieldDifference]
    institution: str
    refused: _containers.RepeatedCompositeFieldContainer[RefusedItems]
    def __init__(self, reason: _Optional[str] = ..., sentence: _Optional[str] = ..., incident: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., facts: _Optional[_Mapping[str, str]] = ..., differences: _Optional[_Iterable[_Union[FieldDifference, _Mapping]]] = ..., institution: _Optional[str] = ..., refused: _Optional[_Iterable[_Union[RefusedItems, _Mapping]]] = ...) -> None: ...

class RefusedItems(_message.Message):
    __slots__ = ("reason", "items")
    REASON_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    items: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, reason: _Optional[str] = ..., items: _Optional[_Iterable[int]] = ...) -> None: ...

class FieldDifference(_message.Message):
    __slots__ = ("field", "source", "target", "remedy")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    field: str
    source: str
    target: str
    remedy: str
    def __init__(self, field: _Optional[str] = ..., source: _Optional[str] = ..., target: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...
