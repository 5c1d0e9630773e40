"""Classes and guidance of a request, checked against what a side offers."""

from __future__ import annotations

from ddib_fed.bridge.model import check_decoding, check_encoding
from ddib_fed.errors import InputError, PolicyDenied, SettingsInvalid
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.node.role import NodeContext
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.wire.contracts.contract import MAX_CLASS_NAME, ContractSide
from ddib_fed.wire.contracts.guidance import GuidanceTerms, check_offered
from source_node.jobs.records import JobSpec

MAX_LISTED = 200


def class_index(side: ContractSide, asked: str, classes: int | None = None) -> int | None:
    """The index of a class of one side; None when none was asked for."""
    if not asked:
        return None
    index = side.class_index(asked, classes)
    if index is None:
        names = ", ".join(side.class_names)
        facts: dict[str, str | int] = {
            "class": asked[:MAX_CLASS_NAME],
            "of": f"{side.institution}/{side.domain}",
            "classes": names[:MAX_LISTED] if names else side.classes if classes is None else classes,
        }
        raise SettingsInvalid(f"{side.institution}/{side.domain} has no class {asked!r}", facts=facts)
    return index


def decoded_class(
    side: ContractSide, terms: GuidanceTerms | None, asked: str, guidance: Guidance
) -> int | None:
    """The index of the class that a side is to decode to, so guided; None when none was asked for."""
    of = f"{side.institution}/{side.domain}"
    check_offered(guidance, terms, of)
    by_classifier = guidance.classifier_scale is not None and terms is not None
    index = class_index(side, asked, terms.classifier_classes if by_classifier and terms else None)
    if index is None and guidance.steers:
        remedy = "--target-class CLASS (for a cycle --source-class too), or --pairs"
        raise SettingsInvalid(
            f"guidance needs a class of {of}, and none is given",
            hint=remedy,
            facts={"of": of, "guidance": "needs a class", "remedy": remedy},
        )
    return index


def own_classes(node: NodeContext, spec: JobSpec) -> dict[str, int | None]:
    """The indices of the source classes of a job; guidance is checked where a cycle comes back to the own model."""
    side, terms, model = node.side(), node.guidance(), node.running_engine.model
    settings, back = solver_settings(spec.solver), spec.guidance if spec.cycle else UNGUIDED
    found: dict[str, int | None] = {}
    try:
        for asked in dict.fromkeys(own for own, _ in spec.class_pairs()):
            found[asked] = decoded_class(side, terms, asked, back)
            check_encoding(model, settings, found[asked])
            if spec.cycle:
                check_decoding(model, settings, found[asked], back)
    except (InputError, PolicyDenied) as error:
        if back != UNGUIDED:
            error.facts["cycle"] = (
                "is guided on its way back as well, by the source's own model: leave --cycle out"
            )
        raise
    return found


def target_classes(side: ContractSide, terms: GuidanceTerms | None, spec: JobSpec) -> dict[str, int | None]:
    asked = dict.fromkeys(other for _, other in spec.class_pairs())
    return {each: decoded_class(side, terms, each, spec.guidance) for each in asked}
