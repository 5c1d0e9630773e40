"""Which models were trained on samples that this package, or one that it names, carries.

A name is no proof: a user's folder may be called relief, and a file moons.npy. What was trained on a domain that
ships says so in its manifest; only then do the samples that ship stand for the model's own.
"""

from __future__ import annotations

from ddib_fed.datasets.shipped import SHIPPED, ShippedDomain
from ddib_fed.datasets.synthetic import DOMAINS
from ddib_fed.models.manifest import DataNote, Manifest
from ddib_fed.models.units.normalisation import Normalisation

POINT = (2,)
"""Shape of a sample of a synthetic domain."""


def data_note(domain: ShippedDomain) -> DataNote:
    return DataNote(source=domain.package, licence=domain.licence, note=domain.note)


def carried_domain(manifest: Manifest) -> str | None:
    trained = _on_pictures(manifest) if manifest.sample_kind == "picture" else _on_points(manifest)
    return manifest.domain if trained else None


def _on_points(manifest: Manifest) -> bool:
    units = manifest.normalisation
    return manifest.domain in DOMAINS and manifest.sample_shape == POINT and units == Normalisation()


def _on_pictures(manifest: Manifest) -> bool:
    domain = SHIPPED.get(manifest.domain)
    if domain is None:
        return False
    return manifest.sample_shape == domain.shape and manifest.data == data_note(domain)
