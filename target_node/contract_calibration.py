"""The calibration that a source proposes: held here too, as both institutions signed it, and allowed here."""

from __future__ import annotations

from ddib_fed.bridge.calibration.applied import check_target
from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.errors import ContractMismatch, Difference
from ddib_fed.node.calibration.checks import usable_calibration
from ddib_fed.node.role import NodeContext
from ddib_fed.wire.contracts.contract import Contract


def check_calibration(node: NodeContext, contract: Contract) -> None:
    """Return if latents under the contract's calibration, or without one, are decoded here."""
    terms = contract.calibration
    if terms is None:
        return
    found = usable_calibration(
        node,
        terms.sha256,
        source=(contract.source.institution, contract.source.domain),
        target=(contract.target.institution, contract.target.domain),
        side="target",
    )
    _require_terms(found, contract)
    check_target(node.running_engine.model.manifest)


def _require_terms(found: Calibration, contract: Contract) -> None:
    if found.terms != contract.calibration:
        terms, proposed = found.terms, contract.calibration
        assert proposed is not None  # the caller looked
        raise ContractMismatch(
            f"{contract.source.institution} proposed the calibration {proposed} until {proposed.expires}, and both "
            f"institutions signed {terms} until {terms.expires}",
            differences=(
                Difference(
                    "calibration",
                    f"{proposed}, {proposed.expires}",
                    f"{terms}, {terms.expires}",
                    "Upgrade ddib-fed at the source: it must propose the terms that were signed.",
                ),
            ),
        )
