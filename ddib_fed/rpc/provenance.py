"""The record of a translation as the protobuf message `Provenance`, both ways; imports no torch."""

from __future__ import annotations

from typing import Any

from ddib_fed.bridge.translation_record import (
    CycleError,
    GuidanceUsed,
    LatentFigures,
    PictureFigures,
    SolverUsed,
    Translation,
)
from ddib_fed.v1 import common_pb2, translation_pb2

_NAMES = ("source_institution", "source_domain", "target_institution", "target_domain")
_DIGESTS = (
    "contract_sha256",
    "source_model_sha256",
    "target_model_sha256",
    "input_sha256",
    "latent_sha256",
)
_TERMS = ("low", "high", "bits")
_FIGURES = tuple(
    field.name for field in translation_pb2.PictureFigures.DESCRIPTOR.fields if field.name != "terms"
)
_PLAIN = ("job_id", "soften_sigma", "wire_bytes", "samples", "source_class", "target_class", *_NAMES)


def provenance_message(record: Translation) -> translation_pb2.Provenance:
    """The record of a finished translation, for the client."""
    solver, latent, picture = record.solver, record.latent, record.picture
    values: dict[str, Any] = {name: bytes.fromhex(getattr(record, name)) for name in _DIGESTS}
    values |= {name: getattr(record, name) for name in _PLAIN}
    return translation_pb2.Provenance(
        # The whole way is not said, so that clients of before understand.
        solver=common_pb2.SolverSettings(**(solver.model_dump() | {"depth": solver.depth % 1.0})),
        guidance=_guidance_message(record.guidance),
        classifier_sha256=bytes.fromhex(record.classifier_sha256) or None,
        latent=common_pb2.LatentStatistics(**latent.model_dump(exclude_none=True)),
        seconds=record.seconds,
        cycle=None if record.cycle is None else translation_pb2.CycleError(**record.cycle.model_dump()),
        picture=None if picture is None else _figures_message(picture),
        **values,
    )


def _guidance_message(used: GuidanceUsed | None) -> common_pb2.GuidanceSettings | None:
    return None if used is None else common_pb2.GuidanceSettings(**used.model_dump(exclude_none=True))


def _figures_message(picture: PictureFigures) -> translation_pb2.PictureFigures:
    values: dict[str, Any] = picture.model_dump(exclude_none=True)
    terms = {name: values[name] for name in _TERMS}
    figures = {name: values[name] for name in _FIGURES if name in values}
    return translation_pb2.PictureFigures(terms=common_pb2.PictureTerms(**terms), **figures)


def provenance_record(pb: translation_pb2.Provenance) -> Translation:
    """The record that a source node sent; its fields were checked when the message arrived."""
    solver = pb.solver
    return Translation(
        solver=SolverUsed(
            solver=solver.solver,
            order=solver.order,
            evaluations=solver.evaluations,
            grid=solver.grid,
            depth=solver.depth or 1.0,
        ),
        guidance=GuidanceUsed(**_fields(pb.guidance)) if pb.HasField("guidance") else None,
        classifier_sha256=pb.classifier_sha256.hex(),
        latent=LatentFigures(**_fields(pb.latent)),
        seconds=dict(pb.seconds),
        cycle=CycleError(**_fields(pb.cycle)) if pb.HasField("cycle") else None,
        picture=_figures(pb.picture) if pb.HasField("picture") else None,
        **{name: getattr(pb, name).hex() for name in _DIGESTS},
        **{name: getattr(pb, name) for name in _PLAIN},
    )


def _figures(pb: translation_pb2.PictureFigures) -> PictureFigures:
    values = {name: value for name, value in _fields(pb).items() if name != "terms"}
    return PictureFigures(**_fields(pb.terms), **values)


def _fields(pb: Any) -> dict[str, Any]:
    """Every field that has a value: those without a presence of their own always have one."""
    return {
        field.name: getattr(pb, field.name)
        for field in pb.DESCRIPTOR.fields
        if not field.has_presence or pb.HasField(field.name)
    }
