"""The record of a translation as the protobuf message `Provenance`, both ways; imports no torch."""

from __future__ import annotations

from ddib_fed.bridge.records.translation_record import PictureFigures, Translation
from ddib_fed.v1 import common_pb2, translation_pb2
from ddib_fed.wire.mapping import from_message, to_message

_LOCAL = ("format", "input", "files", "doubtful", "doubts", "asked_sha256")
"""What the client adds to the record."""
_TERMS = ("low", "high", "bits")


def provenance_message(record: Translation) -> translation_pb2.Provenance:
    """The record of a finished translation, for the client."""
    return to_message(
        record,
        translation_pb2.Provenance,
        local=_LOCAL,
        picture=_picture_message(record),
        classifier_sha256=bytes.fromhex(record.classifier_sha256) or None,
        calibration_sha256=bytes.fromhex(record.calibration_sha256) or None,
        policy_sha256=bytes.fromhex(record.policy_sha256) or None,
    )


def _picture_message(record: Translation) -> translation_pb2.PictureFigures | None:
    picture = record.picture
    if picture is None:
        return None
    terms = common_pb2.PictureTerms(low=picture.low, high=picture.high, bits=picture.bits)
    return to_message(picture, translation_pb2.PictureFigures, local=_TERMS, terms=terms)


def provenance_record(pb: translation_pb2.Provenance) -> Translation:
    """The record that a source node sent; its fields were checked when the message arrived."""
    return from_message(
        pb,
        Translation,
        local=_LOCAL,
        picture=_picture(pb.picture) if pb.HasField("picture") else None,
        # A map has another order in each process; a record that is written again must be the same bytes.
        seconds=dict(sorted(pb.seconds.items())),
    )


def _picture(pb: translation_pb2.PictureFigures) -> PictureFigures:
    terms = {name: getattr(pb.terms, name) for name in _TERMS}
    return from_message(pb, PictureFigures, **terms)
