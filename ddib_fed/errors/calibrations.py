"""Refusals of calibrations; each reason is a class of its own."""

from __future__ import annotations

from ddib_fed.errors.refusals import RefusedError


class CalibrationRefused(RefusedError):
    """A calibration that is not used; each reason is a class below."""

    reason = "CALIBRATION_REFUSED"
    sentence = "the calibration is refused"


class CalibrationUnknown(CalibrationRefused):
    """No calibration of this digest is stored here, or it is not active any more."""

    reason = "CALIBRATION_UNKNOWN"
    sentence = "this node has no active calibration of this digest"


class CalibrationExpired(CalibrationRefused):
    """Its time has ended."""

    reason = "CALIBRATION_EXPIRED"
    sentence = "the calibration has expired"


class CalibrationUnsigned(CalibrationRefused):
    """A signature of one of the two institutions is missing."""

    reason = "CALIBRATION_UNSIGNED"
    sentence = "the calibration is not signed by both institutions"


class CalibrationAltered(CalibrationRefused):
    """A signature is not one over this content."""

    reason = "CALIBRATION_ALTERED"
    sentence = "a signature of the calibration does not belong to its content"


class CalibrationSigner(CalibrationRefused):
    """It was signed by somebody who is not, or no longer, trusted to sign for the institution."""

    reason = "CALIBRATION_SIGNER"
    sentence = "a signer of the calibration is not a trusted node of its institution"


class CalibrationKindDenied(CalibrationRefused):
    """The policy does not list its kind."""

    reason = "CALIBRATION_KIND"
    sentence = "the policy of this node does not allow this kind of calibration"


class CalibrationForeign(CalibrationRefused):
    """It is between other institutions or domains."""

    reason = "CALIBRATION_FOREIGN"
    sentence = "the calibration is for other institutions or domains"


class CalibrationUnits(CalibrationRefused):
    """Its numbers are in the units of another model, e.g. one that was replaced."""

    reason = "CALIBRATION_UNITS"
    sentence = "the calibration is for the units of another model"


class CalibrationModel(CalibrationRefused):
    """The model and the calibration do not belong together: one was made with a map that the other does not have."""

    reason = "CALIBRATION_MODEL"
    sentence = "the model was trained with another calibration than this translation's, or with none"


class CalibrationInvalid(CalibrationRefused):
    """It is no calibration, is over a limit, or names an aggregate that was not published here."""

    reason = "CALIBRATION_INVALID"
    sentence = "the calibration is malformed, over a limit, or not made from what this node published"


class CalibrationIneffective(CalibrationRefused):
    """Its figures are no better than none, or another optimum is nearly as good."""

    reason = "CALIBRATION_INEFFECTIVE"
    sentence = "the calibration's figures do not show that it is right"
