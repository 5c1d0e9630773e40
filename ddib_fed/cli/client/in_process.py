"""`ddib translate --source MODEL --target MODEL`: the same command over two models of this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.model_options import (
    BATCH,
    CALIBRATION,
    CLASSIFIER,
    DEVICE,
    DTYPE,
    SCENE,
    SOFTEN,
    THREADS,
    read_given,
)
from ddib_fed.cli.public_code import PUBLIC_CODE, take_settings
from ddib_fed.errors import UsageError
from ddib_fed.guidance import Guidance
from ddib_fed.processes import require_alone
from ddib_fed.wire.jobs import Settings

if TYPE_CHECKING:
    from ddib_fed.bridge.local_party import LocalParty
    from ddib_fed.client.in_process import InProcess
    from ddib_fed.models.bundle import Bundle

MODELS = (
    click.option(
        "--source",
        "source_model",
        metavar="MODEL",
        help="Without nodes: model that encodes, its name or folder.",
    ),
    click.option(
        "--target",
        "target_model",
        metavar="MODEL",
        help="Without nodes: model that decodes.",
    ),
)
ALONE = (
    SOFTEN,
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Without nodes: seed of the noise of softening and of --eta.",
    ),
    CALIBRATION,
    SCENE,
    CLASSIFIER,
    click.option(
        "--guide",
        type=click.Choice(["decode", "both"]),
        default="decode",
        show_default=True,
        help="Without nodes: guide only decoding, as the public code does, or also encoding, so that a cycle closes.",
    ),
    *PUBLIC_CODE,
    BATCH,
    DTYPE,
    DEVICE,
    THREADS,
)
"""What two models in one process take, and nodes do not."""
OF_NODES = ("no_calibration", "deadline", "detach", "quiet", "profile_path")
_OF_PICTURES = ("soften", "calibration", "scene", "classifier", "guide", "batch", "dtype")
_NAMES = (
    *("soften", "seed", "calibration", "scene", "classifier", "guide", "batch", "dtype", "device", "threads"),
    *("compat", "diffusion_steps", "noise_schedule", "timestep_respacing", "eta", "ddpm"),
)


def open_in_process(
    source: str | None, target: str | None, asked: dict[str, Any]
) -> tuple[InProcess | None, Settings | None]:
    """Two models behind the client's interface, and the solver; takes what is for them out of `asked`.

    Nothing where the command is for nodes.
    """
    given = {name: asked.pop(name) for name in _NAMES}
    if source is None or target is None:
        if source or target:
            raise UsageError("--source and --target are both needed", hint="add the other one")
        options.refuse_idle(
            _NAMES, "is for two models in one process", hint="add --source and --target, or omit it"
        )
        return None, None
    options.refuse_idle(OF_NODES, "is for nodes", hint="omit it, or translate --to INSTITUTION/DOMAIN")
    require_alone("a translation without nodes")
    from ddib_fed.client.in_process import Here, InProcess
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.models.shipped import open_bundle

    bundles = open_bundle(source), open_bundle(target)
    pictures = bundles[0].manifest.sample_kind == "picture"
    solver = take_settings(given | asked, [bundle.manifest for bundle in bundles])
    if (
        given["compat"] is not None and pictures
    ):  # the public code neither softens nor leaves values unclipped
        given["soften"] = 0.0 if given["soften"] is None else given["soften"]
        asked["clip"] = True if asked["clip"] is None else asked["clip"]
    _refuse_idle(source, bundles[0], given, asked, solver)
    if given["classifier"] is not None and asked["classifier_scale"] is None:
        asked["classifier_scale"] = 1.0
    here = Here(
        given["soften"],
        given["seed"],
        read_given(given["calibration"]),
        given["guide"] == "both",
        replace(SolverSettings(), levels=solver.levels, eta=solver.eta, ancestral=solver.ancestral),
    )
    _ = Guidance(asked["guidance"], asked["classifier_scale"], encoding=here.guide_encoding)
    settings = Settings(
        solver.solver, solver.order, solver.evaluations, solver.grid, asked["depth"], asked["encoder"]
    )
    return InProcess(*_parties(bundles, given, pictures=pictures), here), settings


def _parties(
    bundles: tuple[Bundle, Bundle], given: Mapping[str, Any], *, pictures: bool
) -> tuple[LocalParty, LocalParty]:
    """One for each model, or one for both."""
    from ddib_fed.bridge.local_party import open_party
    from ddib_fed.models.shipped import open_bundle

    classifier = None if given["classifier"] is None else open_bundle(given["classifier"])
    made: dict[str, LocalParty] = {}
    for bundle in bundles:
        if bundle.digest not in made:
            scene = given["scene"]
            made[bundle.digest] = open_party(
                bundle if scene is None else bundle.of_scenes(*scene),
                given["device"],
                given["dtype"],
                classifier=classifier,
                together=given["batch"] if pictures else 0,
                threads=given["threads"],
            )
    return made[bundles[0].digest], made[bundles[1].digest]


def _refuse_idle(
    source: str, bundle: Bundle, given: Mapping[str, Any], asked: Mapping[str, Any], solver: Any
) -> None:
    """Options that would have no effect."""
    softened = given["soften"] if given["soften"] is not None else bundle.manifest.soften_sigma
    if bundle.manifest.sample_kind != "picture":
        softened = 0.0
        options.refuse_idle(
            _OF_PICTURES, f"is for pictures, and {source} is a model of points", hint="omit it"
        )
    if not softened and not solver.stochastic:
        options.refuse_idle(
            ("seed",),
            "sets the noise of softening and of --eta, and there is neither",
            hint="omit --seed; --soften-sigma 0.05, or --eta 0.5 with --solver ddim, draws noise",
        )
    if given["classifier"] is None:
        options.refuse_idle(
            ("classifier_scale",), "weighs --classifier, which is not given", hint="add --classifier MODEL"
        )
        if asked["guidance"] is None:
            options.refuse_idle(
                ("guide",), "needs guidance", hint="add --classifier MODEL or --guidance SCALE, or omit it"
            )
