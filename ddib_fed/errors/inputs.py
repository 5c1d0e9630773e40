"""Errors of what was given: options, configuration, files, arrays, settings, messages, bundles."""

from __future__ import annotations

from ddib_fed.errors.tree import DdibError, ExitCode


class InputError(DdibError):
    """Input that cannot be used."""

    reason = "INPUT_INVALID"
    status = "INVALID_ARGUMENT"
    exit_code = ExitCode.BAD_INPUT
    sentence = "the input cannot be used"


class UsageError(InputError):
    """Options that contradict each other; local."""

    reason = "USAGE"
    exit_code = ExitCode.USAGE
    sentence = "the options contradict each other"


class ConfigError(InputError):
    """A configuration file that cannot be used; local."""

    reason = "CONFIG_INVALID"
    sentence = "the configuration cannot be used"


class ExtraMissing(InputError):
    """A package of an optional extra is not installed; the hint has the command that installs it."""

    reason = "EXTRA_MISSING"
    exit_code = ExitCode.USAGE
    sentence = "an optional package is not installed"


class ImageUnreadable(InputError):
    """Bytes that are not a picture of an accepted format."""

    reason = "IMAGE_UNREADABLE"
    sentence = "the picture cannot be read"


class ImageTooLarge(InputError):
    """A picture over the limits on pixels, frames or bytes."""

    reason = "IMAGE_TOO_LARGE"
    sentence = "the picture is over the limit"


class PointsUnreadable(InputError):
    """Bytes that are not a .npy array of numbers."""

    reason = "POINTS_UNREADABLE"
    sentence = (
        "the points cannot be read: a .npy file with an (N, D) array of floats is expected, without pickles"
    )


class PointsTooMany(InputError):
    """More points, or more bytes, than the node accepts in one item."""

    reason = "POINTS_TOO_MANY"
    sentence = "there are more points or bytes than the limit for one item"


class ItemsTooMany(InputError):
    """More files than the node accepts in one job."""

    reason = "ITEMS_TOO_MANY"
    sentence = "there are more files than the node accepts in one job"


class NotFinite(InputError):
    """NaN or infinity where numbers are needed."""

    reason = "NOT_FINITE"
    sentence = "there are values that are NaN or infinite"


class ShapeMismatch(InputError):
    """An array whose shape is not the model's."""

    reason = "SHAPE_MISMATCH"
    sentence = "the shape is not the one the model takes"


class PictureMisfit(InputError):
    """A picture whose type, values or channels do not fit the model; see `samples.units`."""

    reason = "PICTURE_MISFIT"
    sentence = "the picture's type, values or channels are not those that the model takes"


class KindMismatch(InputError):
    """Points for a picture model, or a picture for a point model."""

    reason = "KIND_MISMATCH"
    sentence = "the file holds another kind of sample than the model takes: points and pictures differ"


class SettingsInvalid(InputError):
    """A solver, grid, number of steps or option that does not exist or is out of range."""

    reason = "SETTINGS_INVALID"
    sentence = "the settings are not valid"


class MessageInvalid(InputError):
    """A message or a stream that violates the protocol."""

    reason = "MESSAGE_INVALID"
    sentence = "the message breaks the protocol"


class UnknownFields(MessageInvalid):
    """A message with fields that the agreed protocol version does not know."""

    reason = "UNKNOWN_FIELDS"
    sentence = "the message has fields that this protocol version does not know"


class BundleInvalid(InputError):
    """A model on disk, or a checkpoint, that fails its checks."""

    reason = "BUNDLE_INVALID"
    sentence = "the model bundle fails its checks"
