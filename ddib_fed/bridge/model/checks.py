"""What a model can be asked for: samples of its shape and scale, classes, guidance, calibrations, settings of legs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ddib_fed.bridge.model.distilled import check_steps
from ddib_fed.bridge.model.domain_model import Array, DomainModel, Labels
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import NotFinite, PictureMisfit, SettingsInvalid, ShapeMismatch
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.models.units.normalisation import Normalisation

FARTHEST = 3.0
"""A number beyond it lies a whole range outside of [-1, 1]: the pictures are of another scale, as 0 to 255."""


def check_samples(model: DomainModel, samples: Array) -> None:
    """Return when `samples` is (N, *sample_shape), N at least 1, and finite."""
    shape = model.sample_shape
    if samples.ndim != len(shape) + 1 or samples.shape[1:] != shape or samples.shape[0] == 0:
        expected = f"(N, {', '.join(map(str, shape))})"
        raise ShapeMismatch(
            f"an array of shape {samples.shape} where {model.manifest.name} takes {expected}",
            hint="both models must be of one sample shape",
            facts={"got": str(tuple(samples.shape)), "expected": expected},
        )
    if not np.isfinite(samples).all():
        count = int((~np.isfinite(samples)).sum())
        raise NotFinite(
            f"{count} values of {model.manifest.name} are NaN or infinite",
            hint="compute in float32; train the model again if that does not help",
            facts={"not_finite": count},
        )


def check_given(model: DomainModel, samples: Array) -> None:
    """As `check_samples`, of data in their own units."""
    check_samples(model, samples)
    low, high = float(samples.min()), float(samples.max())
    if model.is_picture and max(-low, high) > FARTHEST:
        raise PictureMisfit(
            f"pictures from {low:g} to {high:g} are not in [-1, 1]",
            hint="ddib_fed.samples.images.read_fitted brings a file into [-1, 1]",
            facts={"holds": f"{low:g} to {high:g}", "takes": "-1 to 1"},
        )


def check_guidance(model: DomainModel, guidance: Guidance) -> None:
    """Return when the model can be guided so."""
    name = model.manifest.name
    if guidance.scale is not None and model.manifest.null_class is None:
        raise SettingsInvalid(
            f"{name} has no class for none, which classifier-free guidance needs",
            hint="use a classifier, or train a model with dropped labels",
            facts={"field": "guidance"},
        )
    if guidance.classifier_scale is not None and model.classifier is None:
        raise SettingsInvalid(
            f"classifier_scale {guidance.classifier_scale:g} weighs a classifier, and {name} has none",
            hint="add --classifier MODEL, or leave --classifier-scale out",
            facts={"field": "classifier_scale"},
        )
    if guidance.clip and model.is_picture and model.manifest.normalisation != Normalisation():
        raise SettingsInvalid(
            f"predictions of {name} cannot be clipped: its units are not those of [-1, 1]",
            hint="--no-clip leaves them as they are",
            facts={"field": "clip"},
        )


def check_calibration(model: DomainModel, calibration: ChannelMap | None) -> None:
    """Return when the model can work in the basis of a calibration."""
    if calibration is None:
        return
    if not model.is_picture:
        raise SettingsInvalid(
            f"{model.manifest.name} is a model of points, and a calibration maps the channels of pictures",
            hint="leave the calibration out; points are translated without one",
            facts={"field": "calibration"},
        )
    if calibration.channels != model.sample_shape[0]:
        raise SettingsInvalid(
            f"the calibration maps {calibration.channels} channels, and pictures of {model.manifest.name} have "
            f"{model.sample_shape[0]}",
            hint="ddib model show tells a model's shape; a calibration is for two models of one shape",
            facts={"field": "calibration"},
        )


def check_label(model: DomainModel, label: Labels, guidance: Guidance = UNGUIDED) -> None:
    """Check that the model, guided like this, accepts this class, these classes, or none."""
    manifest, classes = model.manifest, model.classes(guidance)
    if label is None:
        if guidance.scale is not None:
            raise SettingsInvalid(
                f"guidance {guidance.scale:g} needs a class, and none is given for {manifest.name}",
                hint="--target-class CLASS (to draw: --class CLASS), or leave --guidance out",
            )
        must = manifest.num_classes is not None and manifest.null_class is None
        if must or guidance.classifier_scale is not None:
            raise SettingsInvalid(
                f"{manifest.name} needs a class",
                hint=f"choose one of 0 to {classes - 1}",
                facts={"class": "none", "classes": classes},
            )
        return
    found = np.atleast_1d(np.asarray(label, dtype=np.int64))
    if classes == 0:
        raise SettingsInvalid(
            f"{manifest.name} has no classes",
            hint="leave the class out",
            facts={"class": str(label), "classes": 0},
        )
    if found.size == 0 or found.min() < 0 or found.max() >= classes:
        raise SettingsInvalid(
            f"{manifest.name} has the classes 0 to {classes - 1}, not {label}",
            facts={"class": str(label), "classes": classes},
        )


def check_decoding(
    model: DomainModel, settings: SolverSettings, label: Labels, guidance: Guidance = UNGUIDED
) -> None:
    """Return when a leg from noise to data can be computed so."""
    model.plan(settings)
    check_steps(model.bundle, replace(settings, encoder="ode"), guidance)
    check_guidance(model, guidance)
    check_label(model, label, guidance)
    _check_ancestral(model, settings, guidance)


def check_encoding(
    model: DomainModel,
    settings: SolverSettings,
    label: Labels,
    guidance: Guidance = UNGUIDED,
    soften: float | None = None,
) -> None:
    """Return when a leg from data to noise can be computed so."""
    model.plan(settings.of_the_ode(), model.sigma(soften))
    guidance = guidance if guidance.encoding else UNGUIDED
    check_steps(model.bundle, settings, guidance)
    model.check_encoder(settings.encoder, guidance)
    check_guidance(model, guidance)
    # A model without classes may be given the class that its classifier needs to decode.
    if model.manifest.num_classes is not None or guidance.steers or model.classifier is None:
        check_label(model, label, guidance)


def _check_ancestral(model: DomainModel, settings: SolverSettings, guidance: Guidance) -> None:
    """The public code's DDPM takes another step for learned variances and for classifier guidance."""
    why = "is guided by a classifier" if guidance.classifier_scale is not None else ""
    if model.manifest.learns_variance:
        why = "learned its variance"
    if settings.ancestral and why:
        raise SettingsInvalid(
            f"{model.manifest.name} {why}, which the step of DDPM here leaves out",
            hint="use --eta 1 instead of --ddpm",
        )
