from ddib_fed.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("institution", "name", "roles", "version", "state", "listen", "address", "model", "peers", "jobs", "uptime_s", "certificate_expires", "active_streams", "calibrations", "root_expires", "workers")
    class JobsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_STREAMS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    ROOT_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    institution: str
    name: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    version: str
    state: str
    listen: str
    address: str
    model: ModelStatus
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    jobs: _containers.ScalarMap[str, int]
    uptime_s: float
    certificate_expires: float
    active_streams: int
    calibrations: _containers.RepeatedCompositeFieldContainer[CalibrationStatus]
    root_expires: float
    workers: WorkersStatus
    def __init__(self, institution: _Optional[str] = ..., name: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., listen: _Optional[str] = ..., address: _Optional[str] = ..., model: _Optional[_Union[ModelStatus, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., jobs: _Optional[_Mapping[str, int]] = ..., uptime_s: _Optional[float] = ..., certificate_expires: _Optional[float] = ..., active_streams: _Optional[int] = ..., calibrations: _Optional[_Iterable[_Union[CalibrationStatus, _Mapping]]] = ..., root_expires: _Optional[float] = ..., workers: _Optional[_Union[WorkersStatus, _Mapping]] = ...) -> None: ...

class CalibrationStatus(_message.Message):
    __slots__ = ("sha256", "kind", "source", "target", "state", "expires", "warning", "dial")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    DIAL_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    kind: str
    source: str
    target: str
    state: str
    expires: float
    warning: str
    dial: str
    def __init__(self, sha256: _Optional[str] = ..., kind: _Optional[str] = ..., source: _Optional[str] = ..., target: _Optional[str] = ..., state: _Optional[str] = ..., expires: _Optional[float] = ..., warning: _Optional[str] = ..., dial: _Optional[str] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("domain", "kind", "sample_shape", "sha256", "parameters", "device")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    domain: str
    kind: str
    sample_shape: _containers.RepeatedScalarFieldContainer[int]
    sha256: str
    parameters: int
    device: str
    def __init__(self, domain: _Optional[str] = ..., kind: _Optional[str] = ..., sample_shape: _Optional[_Iterable[int]] = ..., sha256: _Optional[str] = ..., parameters: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("institution", "identity", "address", "fingerprint", "problem", "failed", "suspended")
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    institution: str
    identity: str
    address: str
    fingerprint: str
    problem: str
    failed: float
    suspended: str
    def __init__(self, institution: _Optional[str] = ..., identity: _Optional[str] = ..., address: _Optional[str] = ..., fingerprint: _Optional[str] = ..., problem: _Optional[str] = ..., failed: _Optional[float] = ..., suspended: _Optional[str] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, changes: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("running_jobs",)
    RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    running_jobs: int
    def __init__(self, running_jobs: _Optional[int] = ...) -> None: ...

class WorkersStatus(_message.Message):
    __slots__ = ("executor", "wanted", "ready", "replaced", "problem")
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    executor: str
    wanted: int
    ready: _containers.RepeatedScalarFieldContainer[str]
    replaced: int
    problem: str
    def __init__(self, executor: _Optional[str] = ..., wanted: _Optional[int] = ..., ready: _Optional[_Iterable[str]] = ..., replaced: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...
