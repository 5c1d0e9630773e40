"""The limits of every field of every message, in one table.

Each field has its limit here, or the name of its check; a test fails for a missing field.
The comments in the protos and docs/protocol.md state the same limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ddib_fed.errors import SettingsInvalid
from ddib_fed.wire.checks import DIGEST_BYTES, MAX_CLASSES
from ddib_fed.wire.contracts.contract import MAX_CLASS_NAME, MAX_CLASS_NAMES, MAX_SIDE_LENGTH
from ddib_fed.wire.contracts.guidance import MAX_GUIDANCE
from ddib_fed.wire.limits.kinds import Anything, Bytes, Choice, Inner, Limit, Many, Number, Text
from ddib_fed.wire.version import MAX_VERSIONS

LAST_MOMENT: Final = 253_402_300_799.0
"""The end of the year 9999 in Unix seconds: no calendar goes further."""
LONGEST_S: Final = 1e10
"""The longest duration: 300 years."""
LARGEST: Final = 1e12
"""The largest figure of an ODE, an error or a statistic."""
MOST_BYTES: Final = 1 << 50
MOST_ITEMS: Final = 1_000_000
MAX_EVALUATIONS: Final = 10_000
LONGEST_LINE: Final = 4_000
"""The longest line of a node's answer to its operator; longer texts are cut."""


_DIGEST = Bytes(DIGEST_BYTES, DIGEST_BYTES)
_TIME = Number(0, LAST_MOMENT)
_SECONDS = Number(0, LONGEST_S)
_FIGURE = Number(-LARGEST, LARGEST)
_ERROR = Number(0, LARGEST)
_COUNT = Number(0, MOST_ITEMS)
_SIZE = Number(0, MOST_BYTES)
_INSTITUTION = Text(253)
_NAME = Text(64)
_CLASS = Text(MAX_CLASS_NAME)
_JOB_ID = Text(64)
_SHAPE = Many(Number(1, MAX_SIDE_LENGTH), 5)
_CLASSES = Number(0, MAX_CLASSES)
_CLASS_NAMES = Many(_CLASS, MAX_CLASS_NAMES)
_VERSIONS = Many(Inner(), MAX_VERSIONS, least=1)
_ANY = Anything()
_JOINER = Anything("wire.streams.chunks.Joiner")
_OPENED = Anything("wire.streams.chunks.open_file")
_TENSOR = Anything("wire.latent.open_tensor")
_SIDE = Anything("wire.contracts.contract.ContractSide")
_LIMITS = Anything("wire.contracts.contract.ContractLimits")
_TERMS = Anything("wire.contracts.contract.PictureTerms")
_GUIDANCE = Anything("wire.contracts.guidance.GuidanceTerms")
_CALIBRATION = Anything("wire.contracts.calibration.CalibrationTerms")
_CONTRACT = Anything("wire.contracts.contract.Contract")
_TARGET = Anything("target_node.service")
_SOURCE = Anything("source_node.service")
_STORE = Anything("node.jobs.JobStore")
_REMOTE = Anything("source_node.decode_call.DecodeCall")
_COLLECTOR = Anything("node.results.Collector")


def _setting(low: float, high: float) -> Number:
    return Number(low, high, SettingsInvalid)


_COMMON: Final[Mapping[str, Mapping[str, Limit]]] = {
    "ProtocolVersion": {"major": Anything("wire.version"), "minor": Anything("wire.version")},
    "Chunk": {"index": _JOINER, "data": _JOINER},  # not read here: it would be copied
    "Trailer": {"chunks": _JOINER},
    "TensorHeader": dict.fromkeys(("dtype", "shape", "size_bytes", "sha256"), _TENSOR),
    "FileHeader": dict.fromkeys(("media_type", "size_bytes", "sha256"), _OPENED),
    "PictureTerms": dict.fromkeys(("low", "high", "bits"), _TERMS),
    "SolverSettings": {
        "solver": Text(32, error=SettingsInvalid),
        "order": _setting(0, 4),
        "evaluations": _setting(1, MAX_EVALUATIONS),
        "grid": Text(64, error=SettingsInvalid),
        "depth": _setting(0, 1),
        "encoder": Text(32, error=SettingsInvalid),
    },
    "GuidanceSettings": {
        **dict.fromkeys(("guidance", "classifier_scale"), _setting(0, MAX_GUIDANCE)),
        "clip": _ANY,
    },
    "GuidanceTerms": dict.fromkeys(
        ("max_guidance", "max_classifier_scale", "classifier_sha256", "classifier_classes", "clip"),
        _GUIDANCE,
    ),
    "CalibrationTerms": dict.fromkeys(("sha256", "kind", "expires"), _CALIBRATION),
    "LatentStatistics": {
        **dict.fromkeys(("mean", "kurtosis", "correlation"), _FIGURE),
        "std": _ERROR,
        "count": _SIZE,
    },
    "ErrorDetail": {
        "reason": _NAME,
        "sentence": Text(200),
        "incident": Text(32),
        "retry_after_ms": _ANY,  # capped where it is used
        "facts": Many(Text(200), 16),
        "differences": Many(Inner(), 16),
        "institution": _INSTITUTION,
    },
    "FieldDifference": dict.fromkeys(("field", "source", "target", "remedy"), Text(200)),
}
_DECODING: Final[Mapping[str, Mapping[str, Limit]]] = {
    "DescribeDomainRequest": {"versions": _VERSIONS},
    "DescribeDomainResponse": {
        "versions": _VERSIONS,
        "side": Inner(required=True),
        "limits": Inner(required=True),
    },
    "ContractSide": {
        **dict.fromkeys(
            (
                "institution",
                "domain",
                "sample_kind",
                "sample_shape",
                "dtype",
                "model_sha256",
                "terminal_lambda",
                "initial_lambda",
                "classes",
                "size_rule",
                "value_range",
                "soften_sigma",
                "class_names",
            ),
            _SIDE,
        ),
        "picture": Inner(),
    },
    "ContractLimits": {
        **dict.fromkeys(
            ("max_items_per_stream", "max_samples_per_item", "max_latent_bytes", "max_evaluations"), _LIMITS
        ),
        "guidance": Inner(),
    },
    "Contract": {
        **dict.fromkeys(("version", "source", "target", "limits"), Inner(required=True)),
        "calibration": Inner(),
        "latent_type": _CONTRACT,
    },
    "NegotiateContractRequest": {
        "versions": _VERSIONS,
        "source": Inner(required=True),
        "calibration": Inner(),
        "latent_types": Many(Choice(), 8),
    },
    "NegotiateContractResponse": {
        "contract": Inner(required=True),
        "sha256": Anything("wire.contracts.agreement.confirm"),
    },
    "DecodeRequest": dict.fromkeys(("header", "latent", "chunk", "trailer"), Inner()),
    "DecodeHeader": {
        "contract_sha256": _TARGET,
        "request_id": _TARGET,
        "solver": Inner(required=True, error=SettingsInvalid),
        "round_trip": _ANY,
        "items": _TARGET,
        "target_class": _TARGET,
        "guidance": Inner(),
    },
    "LatentHeader": {
        "item": Anything("wire.latent.LatentOpener"),
        "tensor": Inner(),
        "contract_sha256": Anything("wire.latent.LatentOpener"),
    },
    "DecodeResponse": dict.fromkeys(("progress", "result", "latent", "chunk", "trailer"), Inner()),
    "DecodeProgress": dict.fromkeys(("item", "stage", "step", "steps"), _REMOTE),
    "DecodedHeader": {"item": _REMOTE, "file": Inner(), "seconds": _REMOTE},
}
_TRANSLATION: Final[Mapping[str, Mapping[str, Limit]]] = {
    "ListDomainsRequest": {},
    "ListDomainsResponse": {
        "institution": _INSTITUTION,
        "domain": _NAME,
        "sample_kind": Choice(),
        "sample_shape": _SHAPE,
        "domains": Many(Inner(), 10_000),
        "classes": _CLASSES,
        "class_names": _CLASS_NAMES,
    },
    "Domain": {
        "institution": _INSTITUTION,
        "domain": _NAME,
        "sample_kind": _ANY,  # not set if the peer could not be asked
        "sample_shape": _SHAPE,
        "status": _NAME,
        "latency_ms": Number(0, LONGEST_S),
        "classes": _CLASSES,
        "class_names": _CLASS_NAMES,
        "size_rule": _NAME,
        "guidance": Inner(),
        "calibration": Inner(),
    },
    "SubmitJobRequest": dict.fromkeys(("header", "item", "chunk", "trailer"), Inner()),
    "JobHeader": {
        "version": Inner(required=True),
        "request_id": Anything("node.job_records.JobSpec"),
        "target_institution": _INSTITUTION,
        "target_domain": _SOURCE,
        "solver": Inner(required=True, error=SettingsInvalid),
        "cycle": _ANY,
        "keep_latent": _ANY,
        "items": _SOURCE,
        "deadline_s": _SOURCE,
        "source_class": _CLASS,
        "target_class": _CLASS,
        "guidance": Inner(),
        "item_classes": Many(Inner(), MOST_ITEMS),
        "model_size": _ANY,
        "no_calibration": _ANY,
        "latent_type": _SOURCE,
    },
    "ItemClasses": dict.fromkeys(("source_class", "target_class"), _CLASS),
    "SubmitJobResponse": {"job_id": _JOB_ID, "state": Choice(), "repeated_request": _ANY},
    "WatchJobRequest": {"job_id": _STORE, "after_sequence": _ANY},
    "WatchJobResponse": {
        "sequence": _ANY,
        "state": Choice(),
        "item": _COUNT,
        "stage": Text(32),
        "step": _COUNT,
        "steps": _COUNT,
        "reason": _NAME,
        "items_done": _COUNT,
        "items": _COUNT,
    },
    "GetJobRequest": {"job_id": _STORE},
    "GetJobResponse": {"job": Inner(required=True)},
    "Job": {
        "job_id": _JOB_ID,
        "request_id": _NAME,
        "state": Choice(),
        "target_institution": _INSTITUTION,
        "target_domain": _NAME,
        "solver": Inner(required=True),
        "cycle": _ANY,
        "keep_latent": _ANY,
        **dict.fromkeys(("created", "finished", "expires"), _TIME),
        "items": Many(Inner(), MOST_ITEMS),
        "error": Inner(),
        "source_class": _CLASS,
        "target_class": _CLASS,
        "guidance": Inner(),
        "model_size": _ANY,
        "no_calibration": _ANY,
    },
    "Item": {
        "index": _COUNT,
        "state": Choice(),
        "size_bytes": _SIZE,
        "sha256": _DIGEST,
        "error": Inner(),
        "classes": Inner(),
    },
    "ListJobsRequest": {"limit": _SOURCE},
    "ListJobsResponse": {"jobs": Many(Inner(), 1_000)},
    "CancelJobRequest": {"job_id": _STORE},
    "CancelJobResponse": {"state": Choice()},
    "FetchResultsRequest": {"job_id": _STORE, "items": _SOURCE},
    "FetchResultsResponse": dict.fromkeys(("result", "chunk", "trailer"), Inner()),
    "ResultHeader": {"item": _COLLECTOR, "part": _COLLECTOR, "file": Inner(), "provenance": Inner()},
    "Provenance": {
        "job_id": _COLLECTOR,
        **dict.fromkeys(("source_institution", "target_institution"), _INSTITUTION),
        **dict.fromkeys(("source_domain", "target_domain"), _NAME),
        **dict.fromkeys(
            (
                "contract_sha256",
                "source_model_sha256",
                "target_model_sha256",
                "input_sha256",
                "latent_sha256",
            ),
            _DIGEST,
        ),
        "solver": Inner(required=True),
        "soften_sigma": Number(0, 1),
        "latent": Inner(required=True),
        "wire_bytes": _SIZE,
        "seconds": Many(_SECONDS, 16),
        "cycle": Inner(),
        "samples": _SIZE,
        "picture": Inner(),
        "source_class": _CLASS,
        "target_class": _CLASS,
        "guidance": Inner(),
        "classifier_sha256": _DIGEST,
        "calibration_sha256": _DIGEST,
        "calibration_kind": _NAME,
        "latent_type": Choice(),
    },
    "PictureFigures": {
        **dict.fromkeys(("height", "width"), Number(1, 1 << 30)),
        "size_rule": _NAME,
        "terms": Inner(required=True),
        "cycle_mse": _ERROR,
        **dict.fromkeys(
            (
                "cycle_psnr",
                "edge_correlation",
                "mutual_information",
                "slope",
                "intercept",
                "source_low",
                "source_high",
                "back_slope",
                "back_intercept",
            ),
            _FIGURE,
        ),
        **dict.fromkeys(("outside", "used"), Number(0, 1)),
        **dict.fromkeys(("least_edge_correlation", "agreement", "least_agreement"), Number(-1, 1)),
        "least_mutual_information": Number(0, 64),
        "structure_doubtful": _ANY,
        "clipped": Number(0, 1 << 40),
    },
    "CycleError": dict.fromkeys(("median", "mean", "p99", "max"), _ERROR),
    "AcknowledgeItemsRequest": {"job_id": _STORE, "items": Many(Inner(), MOST_ITEMS)},
    "Acknowledgement": {"item": _STORE, "sha256": _DIGEST},
    "AcknowledgeItemsResponse": {"remaining": _COUNT},
    "DeleteJobRequest": {"job_id": _STORE},
    "DeleteJobResponse": {},
}
_IDENTITY: Final[Mapping[str, Mapping[str, Limit]]] = {
    "RenewRequest": {"certificate_request": Bytes(1, 8 << 10)},
    "RenewResponse": {"certificate": Text(64 << 10), "roots": Text(64 << 10)},
}
_SIGNING: Final[Mapping[str, Mapping[str, Limit]]] = {
    "GetAggregateRequest": {"domain": _NAME},
    "GetAggregateResponse": {"aggregate": Bytes(1, 64 << 10)},
    "GetUnitsRequest": {"domain": _NAME},
    "GetUnitsResponse": {"units": Bytes(1, 4 << 10)},
    "CalibrationSignature": {
        "signed_at": Number(0, LAST_MOMENT),
        "certificate": Text(16 << 10),
        "signature": Bytes(1, 256),
    },
    "SignCalibrationRequest": {"calibration": Bytes(1, 16 << 10), "source": Inner(required=True)},
    "SignCalibrationResponse": {"state": Choice(), "target": Inner()},
}
_ADMIN: Final[Mapping[str, Mapping[str, Limit]]] = {
    "StatusRequest": {},
    "StatusResponse": {
        "institution": _INSTITUTION,
        "name": _NAME,
        "roles": Many(_NAME, 8),
        "version": _NAME,
        "state": Text(LONGEST_LINE),
        "listen": Text(300),
        "address": Text(300),
        "model": Inner(),
        "peers": Many(Inner(), 10_000),
        "jobs": Many(_SIZE, 64),
        "uptime_s": _SECONDS,
        "certificate_expires": _TIME,
        "active_streams": _COUNT,
        "calibrations": Many(Inner(), 1_000),
    },
    "CalibrationStatus": {
        **dict.fromkeys(("sha256", "kind", "state"), _NAME),
        **dict.fromkeys(("source", "target"), Text(318)),
        "expires": _TIME,
        "warning": Text(LONGEST_LINE),
    },
    "ModelStatus": {
        "domain": _NAME,
        "kind": _NAME,
        "sample_shape": _SHAPE,
        "sha256": _NAME,
        "parameters": _SIZE,
        "device": _NAME,
    },
    "PeerStatus": {
        "institution": _INSTITUTION,
        "identity": Text(1_000),
        "address": Text(300),
        "fingerprint": Text(256),  # of two roots during a roll-over
    },
    "ReloadRequest": {},
    "ReloadResponse": {"changes": Many(Text(LONGEST_LINE), 20_000)},
    "DrainRequest": {},
    "DrainResponse": {"running_jobs": _COUNT},
    "WorkersRequest": {"count": Number(0, 256)},
    "WorkersResponse": {
        "executor": Text(16),
        "wanted": _COUNT,
        "ready": Many(Text(LONGEST_LINE), 256),
        "replaced": _COUNT,
        "problem": Text(LONGEST_LINE),
    },
}
FIELDS: Final[Mapping[str, Mapping[str, Limit]]] = MappingProxyType(
    {**_COMMON, **_DECODING, **_TRANSLATION, **_SIGNING, **_IDENTITY, **_ADMIN}
)
"""The limit of each field, by the names of the message and the field; docs/protocol.md and the protos state them."""
