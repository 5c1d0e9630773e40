from ddib_fed.v1 import common_pb2 as _common_pb2
from ddib_fed.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_FINISHED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class ItemState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ITEM_STATE_UNSPECIFIED: _ClassVar[ItemState]
    ITEM_STATE_RECEIVED: _ClassVar[ItemState]
    ITEM_STATE_ENCODED: _ClassVar[ItemState]
    ITEM_STATE_DECODED: _ClassVar[ItemState]
    ITEM_STATE_DELIVERED: _ClassVar[ItemState]
    ITEM_STATE_FAILED: _ClassVar[ItemState]

class ResultPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_PART_UNSPECIFIED: _ClassVar[ResultPart]
    RESULT_PART_TRANSLATION: _ClassVar[ResultPart]
    RESULT_PART_RETURNED: _ClassVar[ResultPart]
    RESULT_PART_LATENT: _ClassVar[ResultPart]
    RESULT_PART_SOURCE: _ClassVar[ResultPart]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_FINISHED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
ITEM_STATE_UNSPECIFIED: ItemState
ITEM_STATE_RECEIVED: ItemState
ITEM_STATE_ENCODED: ItemState
ITEM_STATE_DECODED: ItemState
ITEM_STATE_DELIVERED: ItemState
ITEM_STATE_FAILED: ItemState
RESULT_PART_UNSPECIFIED: ResultPart
RESULT_PART_TRANSLATION: ResultPart
RESULT_PART_RETURNED: ResultPart
RESULT_PART_LATENT: ResultPart
RESULT_PART_SOURCE: ResultPart

class ListDomainsRequest(_message.Message):
    __slots__ = ("own_alone",)
    OWN_ALONE_FIELD_NUMBER: _ClassVar[int]
    own_alone: bool
    def __init__(self, own_alone: _Optional[bool] = ...) -> None: ...

class ListDomainsResponse(_message.Message):
    __slots__ = ("institution", "domain", "sample_kind", "sample_shape", "domains", "classes", "class_names", "tiles", "spacing_mm", "intensity", "slices")
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_KIND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    SPACING_MM_FIELD_NUMBER: _ClassVar[int]
    INTENSITY_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    institution: str
    domain: str
    sample_kind: str
    sample_shape: _containers.RepeatedScalarFieldContainer[int]
    domains: _containers.RepeatedCompositeFieldContainer[Domain]
    classes: int
    class_names: _containers.RepeatedScalarFieldContainer[str]
    tiles: bool
    spacing_mm: _containers.RepeatedScalarFieldContainer[float]
    intensity: str
    slices: str
    def __init__(self, institution: _Optional[str] = ..., domain: _Optional[str] = ..., sample_kind: _Optional[str] = ..., sample_shape: _Optional[_Iterable[int]] = ..., domains: _Optional[_Iterable[_Union[Domain, _Mapping]]] = ..., classes: _Optional[int] = ..., class_names: _Optional[_Iterable[str]] = ..., tiles: _Optional[bool] = ..., spacing_mm: _Optional[_Iterable[float]] = ..., intensity: _Optional[str] = ..., slices: _Optional[str] = ...) -> None: ...

class Domain(_message.Message):
    __slots__ = ("institution", "domain", "sample_kind", "sample_shape", "status", "latency_ms", "classes", "class_names", "size_rule", "guidance", "calibration")
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_KIND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    SIZE_RULE_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    institution: str
    domain: str
    sample_kind: str
    sample_shape: _containers.RepeatedScalarFieldContainer[int]
    status: str
    latency_ms: int
    classes: int
    class_names: _containers.RepeatedScalarFieldContainer[str]
    size_rule: str
    guidance: _common_pb2.GuidanceTerms
    calibration: _common_pb2.CalibrationTerms
    def __init__(self, institution: _Optional[str] = ..., domain: _Optional[str] = ..., sample_kind: _Optional[str] = ..., sample_shape: _Optional[_Iterable[int]] = ..., status: _Optional[str] = ..., latency_ms: _Optional[int] = ..., classes: _Optional[int] = ..., class_names: _Optional[_Iterable[str]] = ..., size_rule: _Optional[str] = ..., guidance: _Optional[_Union[_common_pb2.GuidanceTerms, _Mapping]] = ..., calibration: _Optional[_Union[_common_pb2.CalibrationTerms, _Mapping]] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("header", "item", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: JobHeader
    item: _common_pb2.FileHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[JobHeader, _Mapping]] = ..., item: _Optional[_Union[_common_pb2.FileHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class JobHeader(_message.Message):
    __slots__ = ("protocol", "request_id", "target_institution", "target_domain", "solver", "cycle", "keep_latent", "items", "deadline_s", "source_class", "target_class", "guidance", "item_classes", "model_size", "no_calibration", "calibration_sha256", "volume_sha256")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    CYCLE_FIELD_NUMBER: _ClassVar[int]
    KEEP_LATENT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TARGET_CLASS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    ITEM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    MODEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    NO_CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    VOLUME_SHA256_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    request_id: str
    target_institution: str
    target_domain: str
    solver: _common_pb2.SolverSettings
    cycle: bool
    keep_latent: bool
    items: int
    deadline_s: int
    source_class: str
    target_class: str
    guidance: _common_pb2.GuidanceSettings
    item_classes: _containers.RepeatedCompositeFieldContainer[ItemClasses]
    model_size: bool
    no_calibration: bool
    calibration_sha256: bytes
    volume_sha256: bytes
    def __init__(self, protocol: _Optional[int] = ..., request_id: _Optional[str] = ..., target_institution: _Optional[str] = ..., target_domain: _Optional[str] = ..., solver: _Optional[_Union[_common_pb2.SolverSettings, _Mapping]] = ..., cycle: _Optional[bool] = ..., keep_latent: _Optional[bool] = ..., items: _Optional[int] = ..., deadline_s: _Optional[int] = ..., source_class: _Optional[str] = ..., target_class: _Optional[str] = ..., guidance: _Optional[_Union[_common_pb2.GuidanceSettings, _Mapping]] = ..., item_classes: _Optional[_Iterable[_Union[ItemClasses, _Mapping]]] = ..., model_size: _Optional[bool] = ..., no_calibration: _Optional[bool] = ..., calibration_sha256: _Optional[bytes] = ..., volume_sha256: _Optional[bytes] = ...) -> None: ...

class ItemClasses(_message.Message):
    __slots__ = ("source_class", "target_class")
    SOURCE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TARGET_CLASS_FIELD_NUMBER: _ClassVar[int]
    source_class: str
    target_class: str
    def __init__(self, source_class: _Optional[str] = ..., target_class: _Optional[str] = ...) -> None: ...

class SubmitJobResponse(_message.Message):
    __slots__ = ("job_id", "state", "repeated_request")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPEATED_REQUEST_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    state: JobState
    repeated_request: bool
    def __init__(self, job_id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., repeated_request: _Optional[bool] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("job_id", "after_sequence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after_sequence: int
    def __init__(self, job_id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("sequence", "state", "item", "stage", "step", "steps", "reason", "items_done", "items")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ITEMS_DONE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    state: JobState
    item: int
    stage: str
    step: int
    steps: int
    reason: str
    items_done: int
    items: int
    def __init__(self, sequence: _Optional[int] = ..., state: _Optional[_Union[JobState, str]] = ..., item: _Optional[int] = ..., stage: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., reason: _Optional[str] = ..., items_done: _Optional[int] = ..., items: _Optional[int] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "request", "state", "created", "finished", "expires", "items", "error", "item_count", "items_done", "calibration")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_DONE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    request: JobHeader
    state: JobState
    created: float
    finished: float
    expires: float
    items: _containers.RepeatedCompositeFieldContainer[Item]
    error: _common_pb2.ErrorDetail
    item_count: int
    items_done: int
    calibration: bytes
    def __init__(self, job_id: _Optional[str] = ..., request: _Optional[_Union[JobHeader, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., created: _Optional[float] = ..., finished: _Optional[float] = ..., expires: _Optional[float] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., item_count: _Optional[int] = ..., items_done: _Optional[int] = ..., calibration: _Optional[bytes] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("index", "state", "size_bytes", "sha256", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    state: ItemState
    size_bytes: int
    sha256: bytes
    error: _common_pb2.ErrorDetail
    def __init__(self, index: _Optional[int] = ..., state: _Optional[_Union[ItemState, str]] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    def __init__(self, state: _Optional[_Union[JobState, str]] = ...) -> None: ...

class FetchResultsRequest(_message.Message):
    __slots__ = ("job_id", "items")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    items: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, job_id: _Optional[str] = ..., items: _Optional[_Iterable[int]] = ...) -> None: ...

class FetchResultsResponse(_message.Message):
    __slots__ = ("result", "data")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    result: ResultHeader
    data: bytes
    def __init__(self, result: _Optional[_Union[ResultHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ResultHeader(_message.Message):
    __slots__ = ("item", "part", "file", "provenance")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    item: int
    part: ResultPart
    file: _common_pb2.FileHeader
    provenance: Provenance
    def __init__(self, item: _Optional[int] = ..., part: _Optional[_Union[ResultPart, str]] = ..., file: _Optional[_Union[_common_pb2.FileHeader, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("job_id", "source_institution", "source_domain", "target_institution", "target_domain", "contract_sha256", "source_model_sha256", "target_model_sha256", "input_sha256", "latent_sha256", "solver", "soften_sigma", "latent", "wire_bytes", "seconds", "cycle", "samples", "picture", "source_class", "target_class", "guidance", "classifier_sha256", "calibration_sha256", "calibration_kind", "policy_sha256", "shared_noise")
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TARGET_INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_SHA256_FIELD_NUMBER: _ClassVar[int]
    SOURCE_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    LATENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    SOFTEN_SIGMA_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CYCLE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TARGET_CLASS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIER_SHA256_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SHA256_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_KIND_FIELD_NUMBER: _ClassVar[int]
    POLICY_SHA256_FIELD_NUMBER: _ClassVar[int]
    SHARED_NOISE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    source_institution: str
    source_domain: str
    target_institution: str
    target_domain: str
    contract_sha256: str
    source_model_sha256: str
    target_model_sha256: str
    input_sha256: str
    latent_sha256: str
    solver: _common_pb2.SolverSettings
    soften_sigma: float
    latent: _common_pb2.LatentStatistics
    wire_bytes: int
    seconds: _containers.ScalarMap[str, float]
    cycle: CycleError
    samples: int
    picture: PictureFigures
    source_class: str
    target_class: str
    guidance: _common_pb2.GuidanceSettings
    classifier_sha256: str
    calibration_sha256: str
    calibration_kind: str
    policy_sha256: str
    shared_noise: bool
    def __init__(self, job_id: _Optional[str] = ..., source_institution: _Optional[str] = ..., source_domain: _Optional[str] = ..., target_institution: _Optional[str] = ..., target_domain: _Optional[str] = ..., contract_sha256: _Optional[str] = ..., source_model_sha256: _Optional[str] = ..., target_model_sha256: _Optional[str] = ..., input_sha256: _Optional[str] = ..., latent_sha256: _Optional[str] = ..., solver: _Optional[_Union[_common_pb2.SolverSettings, _Mapping]] = ..., soften_sigma: _Optional[float] = ..., latent: _Optional[_Union[_common_pb2.LatentStatistics, _Mapping]] = ..., wire_bytes: _Optional[int] = ..., seconds: _Optional[_Mapping[str, float]] = ..., cycle: _Optional[_Union[CycleError, _Mapping]] = ..., samples: _Optional[int] = ..., picture: _Optional[_Union[PictureFigures, _Mapping]] = ..., source_class: _Optional[str] = ..., target_class: _Optional[str] = ..., guidance: _Optional[_Union[_common_pb2.GuidanceSettings, _Mapping]] = ..., classifier_sha256: _Optional[str] = ..., calibration_sha256: _Optional[str] = ..., calibration_kind: _Optional[str] = ..., policy_sha256: _Optional[str] = ..., shared_noise: _Optional[bool] = ...) -> None: ...

class PictureFigures(_message.Message):
    __slots__ = ("depth", "height", "width", "size_rule", "low", "high", "bits", "cycle_mse", "cycle_psnr", "edge_correlation", "slope", "intercept", "least_edge_correlation", "structure_doubtful", "clipped", "source_low", "source_high", "back_slope", "back_intercept", "outside", "used", "differs", "most_differs", "differs_at", "autoencoder_psnr", "fitted_height", "fitted_width")
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    SIZE_RULE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    CYCLE_MSE_FIELD_NUMBER: _ClassVar[int]
    CYCLE_PSNR_FIELD_NUMBER: _ClassVar[int]
    EDGE_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    SLOPE_FIELD_NUMBER: _ClassVar[int]
    INTERCEPT_FIELD_NUMBER: _ClassVar[int]
    LEAST_EDGE_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    STRUCTURE_DOUBTFUL_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LOW_FIELD_NUMBER: _ClassVar[int]
    SOURCE_HIGH_FIELD_NUMBER: _ClassVar[int]
    BACK_SLOPE_FIELD_NUMBER: _ClassVar[int]
    BACK_INTERCEPT_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    DIFFERS_FIELD_NUMBER: _ClassVar[int]
    MOST_DIFFERS_FIELD_NUMBER: _ClassVar[int]
    DIFFERS_AT_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODER_PSNR_FIELD_NUMBER: _ClassVar[int]
    FITTED_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FITTED_WIDTH_FIELD_NUMBER: _ClassVar[int]
    depth: int
    height: int
    width: int
    size_rule: str
    low: float
    high: float
    bits: int
    cycle_mse: float
    cycle_psnr: float
    edge_correlation: float
    slope: float
    intercept: float
    least_edge_correlation: float
    structure_doubtful: bool
    clipped: int
    source_low: float
    source_high: float
    back_slope: float
    back_intercept: float
    outside: float
    used: float
    differs: float
    most_differs: float
    differs_at: str
    autoencoder_psnr: float
    fitted_height: int
    fitted_width: int
    def __init__(self, depth: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., size_rule: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., bits: _Optional[int] = ..., cycle_mse: _Optional[float] = ..., cycle_psnr: _Optional[float] = ..., edge_correlation: _Optional[float] = ..., slope: _Optional[float] = ..., intercept: _Optional[float] = ..., least_edge_correlation: _Optional[float] = ..., structure_doubtful: _Optional[bool] = ..., clipped: _Optional[int] = ..., source_low: _Optional[float] = ..., source_high: _Optional[float] = ..., back_slope: _Optional[float] = ..., back_intercept: _Optional[float] = ..., outside: _Optional[float] = ..., used: _Optional[float] = ..., differs: _Optional[float] = ..., most_differs: _Optional[float] = ..., differs_at: _Optional[str] = ..., autoencoder_psnr: _Optional[float] = ..., fitted_height: _Optional[int] = ..., fitted_width: _Optional[int] = ...) -> None: ...

class CycleError(_message.Message):
    __slots__ = ("median", "mean", "p99", "max")
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    median: float
    mean: float
    p99: float
    max: float
    def __init__(self, median: _Optional[float] = ..., mean: _Optional[float] = ..., p99: _Optional[float] = ..., max: _Optional[float] = ...) -> None: ...

class AcknowledgeItemsRequest(_message.Message):
    __slots__ = ("job_id", "items")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    items: _containers.RepeatedCompositeFieldContainer[Acknowledgement]
    def __init__(self, job_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Acknowledgement, _Mapping]]] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("item", "sha256")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    item: int
    sha256: bytes
    def __init__(self, item: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class AcknowledgeItemsResponse(_message.Message):
    __slots__ = ("remaining",)
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    remaining: int
    def __init__(self, remaining: _Optional[int] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
