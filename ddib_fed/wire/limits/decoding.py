"""The limits of the messages of decoding.proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ddib_fed.errors import SettingsInvalid
from ddib_fed.wire.limits.kinds import Anything, Inner, Limit
from ddib_fed.wire.limits.shared import ANY, LIMITS, REMOTE, SIDE, TARGET

MESSAGES: Final[Mapping[str, Mapping[str, Limit]]] = {
    "DescribeDomainRequest": {"protocol": ANY},
    "DescribeDomainResponse": {
        "protocol": ANY,
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
                "model_sha256",
                "terminal_lambda",
                "initial_lambda",
                "classes",
                "size_rule",
                "value_range",
                "soften_sigma",
                "class_names",
            ),
            SIDE,
        ),
        "picture": Inner(),
    },
    "ContractLimits": {
        **dict.fromkeys(
            (
                "max_items_per_stream",
                "max_samples_per_item",
                "max_latent_bytes",
                "max_evaluations",
                "min_evaluations",
            ),
            LIMITS,
        ),
        "guidance": Inner(),
    },
    "Contract": {
        **dict.fromkeys(("source", "target", "limits"), Inner(required=True)),
        "calibration": Inner(),
    },
    "NegotiateContractRequest": {
        "protocol": ANY,
        "source": Inner(required=True),
        "calibration": Inner(),
    },
    "NegotiateContractResponse": {
        "contract": Inner(required=True),
        "sha256": Anything("wire.contracts.agreement.confirm"),
    },
    "DecodeRequest": dict.fromkeys(("header", "latent", "chunk", "trailer"), Inner()),
    "DecodeHeader": {
        "contract_sha256": TARGET,
        "request_id": TARGET,
        "solver": Inner(required=True, error=SettingsInvalid),
        "round_trip": ANY,
        "items": TARGET,
        "target_class": TARGET,
        "guidance": Inner(),
    },
    "LatentHeader": {
        "item": Anything("wire.latent.LatentOpener"),
        "tensor": Inner(),
        "contract_sha256": Anything("wire.latent.LatentOpener"),
        "audit": Inner(),
    },
    "DecodeResponse": dict.fromkeys(("progress", "result", "latent", "chunk", "trailer"), Inner()),
    "DecodeProgress": dict.fromkeys(("item", "stage", "step", "steps"), REMOTE),
    "DecodedHeader": {"item": REMOTE, "file": Inner(), "seconds": REMOTE, "audit": Inner()},
}
