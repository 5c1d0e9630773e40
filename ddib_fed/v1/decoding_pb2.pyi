from ddib_fed.v1 import common_pb2 as _common_pb2
from ddib_fed.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeDomainRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class DescribeDomainResponse(_message.Message):
    __slots__ = ("protocol", "side", "limits")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    side: ContractSide
    limits: ContractLimits
    def __init__(self, protocol: _Optional[int] = ..., side: _Optional[_Union[ContractSide, _Mapping]] = ..., limits: _Optional[_Union[ContractLimits, _Mapping]] = ...) -> None: ...

class ContractSide(_message.Message):
    __slots__ = ("institution", "domain", "sample_kind", "sample_shape", "model_sha256", "terminal_lambda", "initial_lambda", "classes", "size_rule", "value_range", "soften_sigma", "picture", "class_names", "latent_shape", "autoencoder_sha256", "spacing_mm", "shared_noise")
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_KIND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_LAMBDA_FIELD_NUMBER: _ClassVar[int]
    INITIAL_LAMBDA_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SIZE_RULE_FIELD_NUMBER: _ClassVar[int]
    VALUE_RANGE_FIELD_NUMBER: _ClassVar[int]
    SOFTEN_SIGMA_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    LATENT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODER_SHA256_FIELD_NUMBER: _ClassVar[int]
    SPACING_MM_FIELD_NUMBER: _ClassVar[int]
    SHARED_NOISE_FIELD_NUMBER: _ClassVar[int]
    institution: str
    domain: str
    sample_kind: str
    sample_shape: _containers.RepeatedScalarFieldContainer[int]
    model_sha256: bytes
    terminal_lambda: float
    initial_lambda: float
    classes: int
    size_rule: str
    value_range: str
    soften_sigma: float
    picture: _common_pb2.PictureTerms
    class_names: _containers.RepeatedScalarFieldContainer[str]
    latent_shape: _containers.RepeatedScalarFieldContainer[int]
    autoencoder_sha256: bytes
    spacing_mm: _containers.RepeatedScalarFieldContainer[float]
    shared_noise: bool
    def __init__(self, institution: _Optional[str] = ..., domain: _Optional[str] = ..., sample_kind: _Optional[str] = ..., sample_shape: _Optional[_Iterable[int]] = ..., model_sha256: _Optional[bytes] = ..., terminal_lambda: _Optional[float] = ..., initial_lambda: _Optional[float] = ..., classes: _Optional[int] = ..., size_rule: _Optional[str] = ..., value_range: _Optional[str] = ..., soften_sigma: _Optional[float] = ..., picture: _Optional[_Union[_common_pb2.PictureTerms, _Mapping]] = ..., class_names: _Optional[_Iterable[str]] = ..., latent_shape: _Optional[_Iterable[int]] = ..., autoencoder_sha256: _Optional[bytes] = ..., spacing_mm: _Optional[_Iterable[float]] = ..., shared_noise: _Optional[bool] = ...) -> None: ...

class ContractLimits(_message.Message):
    __slots__ = ("max_items_per_stream", "max_samples_per_item", "max_latent_bytes", "max_evaluations", "guidance", "min_evaluations")
    MAX_ITEMS_PER_STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_PER_ITEM_FIELD_NUMBER: _ClassVar[int]
    MAX_LATENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    MIN_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    max_items_per_stream: int
    max_samples_per_item: int
    max_latent_bytes: int
    max_evaluations: int
    guidance: _common_pb2.GuidanceTerms
    min_evaluations: int
    def __init__(self, max_items_per_stream: _Optional[int] = ..., max_samples_per_item: _Optional[int] = ..., max_latent_bytes: _Optional[int] = ..., max_evaluations: _Optional[int] = ..., guidance: _Optional[_Union[_common_pb2.GuidanceTerms, _Mapping]] = ..., min_evaluations: _Optional[int] = ...) -> None: ...

class Contract(_message.Message):
    __slots__ = ("source", "target", "limits", "calibration")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    source: ContractSide
    target: ContractSide
    limits: ContractLimits
    calibration: _common_pb2.CalibrationTerms
    def __init__(self, source: _Optional[_Union[ContractSide, _Mapping]] = ..., target: _Optional[_Union[ContractSide, _Mapping]] = ..., limits: _Optional[_Union[ContractLimits, _Mapping]] = ..., calibration: _Optional[_Union[_common_pb2.CalibrationTerms, _Mapping]] = ...) -> None: ...

class NegotiateContractRequest(_message.Message):
    __slots__ = ("protocol", "source", "calibration")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    source: ContractSide
    calibration: _common_pb2.CalibrationTerms
    def __init__(self, protocol: _Optional[int] = ..., source: _Optional[_Union[ContractSide, _Mapping]] = ..., calibration: _Optional[_Union[_common_pb2.CalibrationTerms, _Mapping]] = ...) -> None: ...

class NegotiateContractResponse(_message.Message):
    __slots__ = ("contract", "sha256")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    contract: Contract
    sha256: bytes
    def __init__(self, contract: _Optional[_Union[Contract, _Mapping]] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("header", "latent", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: DecodeHeader
    latent: LatentHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[DecodeHeader, _Mapping]] = ..., latent: _Optional[_Union[LatentHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class DecodeHeader(_message.Message):
    __slots__ = ("contract_sha256", "request_id", "solver", "round_trip", "items", "guidance")
    CONTRACT_SHA256_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    contract_sha256: bytes
    request_id: str
    solver: _common_pb2.SolverSettings
    round_trip: bool
    items: int
    guidance: _common_pb2.GuidanceSettings
    def __init__(self, contract_sha256: _Optional[bytes] = ..., request_id: _Optional[str] = ..., solver: _Optional[_Union[_common_pb2.SolverSettings, _Mapping]] = ..., round_trip: _Optional[bool] = ..., items: _Optional[int] = ..., guidance: _Optional[_Union[_common_pb2.GuidanceSettings, _Mapping]] = ...) -> None: ...

class LatentHeader(_message.Message):
    __slots__ = ("item", "tensor", "contract_sha256", "audit", "target_class")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_SHA256_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    TARGET_CLASS_FIELD_NUMBER: _ClassVar[int]
    item: int
    tensor: _common_pb2.TensorHeader
    contract_sha256: bytes
    audit: _common_pb2.AuditHead
    target_class: int
    def __init__(self, item: _Optional[int] = ..., tensor: _Optional[_Union[_common_pb2.TensorHeader, _Mapping]] = ..., contract_sha256: _Optional[bytes] = ..., audit: _Optional[_Union[_common_pb2.AuditHead, _Mapping]] = ..., target_class: _Optional[int] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("progress", "result", "latent", "data")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    progress: DecodeProgress
    result: DecodedHeader
    latent: LatentHeader
    data: bytes
    def __init__(self, progress: _Optional[_Union[DecodeProgress, _Mapping]] = ..., result: _Optional[_Union[DecodedHeader, _Mapping]] = ..., latent: _Optional[_Union[LatentHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class DecodeProgress(_message.Message):
    __slots__ = ("item", "stage", "step", "steps")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    item: int
    stage: str
    step: int
    steps: int
    def __init__(self, item: _Optional[int] = ..., stage: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class DecodedHeader(_message.Message):
    __slots__ = ("item", "file", "seconds", "audit")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    item: int
    file: _common_pb2.FileHeader
    seconds: float
    audit: _common_pb2.AuditHead
    def __init__(self, item: _Optional[int] = ..., file: _Optional[_Union[_common_pb2.FileHeader, _Mapping]] = ..., seconds: _Optional[float] = ..., audit: _Optional[_Union[_common_pb2.AuditHead, _Mapping]] = ...) -> None: ...
