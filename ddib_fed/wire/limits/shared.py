"""Limits that fields of several messages share."""

from __future__ import annotations

from typing import Final

from ddib_fed.errors import SettingsInvalid
from ddib_fed.wire.checks import DIGEST_BYTES, MAX_CLASSES
from ddib_fed.wire.contracts.contract import MAX_CLASS_NAME, MAX_CLASS_NAMES, MAX_SIDE_LENGTH
from ddib_fed.wire.limits.kinds import Anything, Bytes, Many, Number, Text

LAST_MOMENT: Final = 253_402_300_799.0
"""The end of the year 9999 in Unix seconds: no calendar goes further."""
LONGEST_S: Final = 1e10
"""The longest duration: 300 years."""
LARGEST: Final = 1e12
"""The largest figure of an ODE, an error or a statistic."""
MOST_BYTES: Final = 1 << 50
MOST_ITEMS: Final = 1_000_000
MOST_LINES: Final = 1 << 53
"""Lines of an audit log."""
MAX_EVALUATIONS: Final = 10_000
LONGEST_LINE: Final = 4_000
"""The longest line of a node's answer to its operator; longer texts are cut."""


DIGEST = Bytes(DIGEST_BYTES, DIGEST_BYTES)
TIME = Number(0, LAST_MOMENT)
SECONDS = Number(0, LONGEST_S)
FIGURE = Number(-LARGEST, LARGEST)
ERROR = Number(0, LARGEST)
COUNT = Number(0, MOST_ITEMS)
SIZE = Number(0, MOST_BYTES)
INSTITUTION = Text(253)
NAME = Text(64)
CLASS = Text(MAX_CLASS_NAME)
JOB_ID = Text(64)
SHAPE = Many(Number(1, MAX_SIDE_LENGTH), 5)
CLASSES = Number(0, MAX_CLASSES)
CLASS_NAMES = Many(CLASS, MAX_CLASS_NAMES)
ANY = Anything()
JOINER = Anything("wire.streams.chunks.Joiner")
OPENED = Anything("wire.streams.chunks.open_file")
TENSOR = Anything("wire.latent.open_tensor")
SIDE = Anything("wire.contracts.contract.ContractSide")
LIMITS = Anything("wire.contracts.contract.ContractLimits")
TERMS = Anything("wire.contracts.contract.PictureTerms")
GUIDANCE = Anything("wire.contracts.guidance.GuidanceTerms")
CALIBRATION = Anything("wire.contracts.calibration.CalibrationTerms")
TARGET = Anything("target_node.service")
SOURCE = Anything("source_node.service")
STORE = Anything("source_node.jobs.store.JobStore")
REMOTE = Anything("source_node.peer.decode_call.DecodeCall")
COLLECTOR = Anything("client.results.Collector")


def setting(low: float, high: float) -> Number:
    return Number(low, high, SettingsInvalid)
