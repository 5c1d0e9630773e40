"""What to try after an error: on the command line, and for somebody at the page of `ddib web`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ddib_fed.errors import DdibError, ExtraMissing

# The default hint by reason, for errors without their own; parents of the class are tried after it.
NEXT_STEPS: Final[Mapping[str, str]] = {
    "INTERNAL": "give the incident's id, where there is one, to the node's operator, whose log has the rest",
    "INPUT_INVALID": "correct what the message names, then repeat the command",
    "CONFIG_INVALID": "tell the node's operator: its log, and its `check --config node.toml`, name the setting",
    "USAGE": "the command's --help",
    "SETTINGS_INVALID": "the command's --help says what each option takes",
    "MESSAGE_INVALID": "ddib --version on both machines: client and node may be of different releases",
    "SHAPE_MISMATCH": "`ddib domains` shows the shapes that nodes take, `ddib model show MODEL` that of a model",
    "PICTURE_MISFIT": "convert the picture to the units of the model, or use a model of its units",
    "KIND_MISMATCH": "`ddib domains` shows what nodes take, `ddib model show MODEL` what a model takes",
    "IMAGE_UNREADABLE": "open the file in a viewer and save it again, as PNG, JPEG or TIFF",
    "IMAGE_TOO_LARGE": "make the picture smaller, or cut it into several files",
    "NOT_FINITE": "replace the values that are NaN or infinite, e.g. by numpy.nan_to_num",
    "POINTS_UNREADABLE": "numpy.save(file, points) with points of shape (N, D) writes such a file",
    "POINTS_TOO_MANY": "split the file into several and translate them in one call",
    "ITEMS_TOO_MANY": "ddib translate ... --detach makes jobs as small as the node allows; the operator can raise "
    "[limits] max_items_per_job in node.toml",
    "BUNDLE_INVALID": "ddib model show DIR names the check that fails",
    "CONTRACT_MISMATCH": "send the table to both operators; ddib domains lists what can be reached now",
    "STATE_CONFLICT": "ddib job list shows the job's state",
    "REFUSED": "ask the operator of the node that refused",
    "CALIBRATION_REFUSED": "the operators of both nodes: ddib calibrate list; or ddib translate --no-calibration",
    "CALIBRATION_EXPIRED": "the operator: ddib calibrate --peer INSTITUTION/DOMAIN; or ddib translate --no-calibration",
    "CALIBRATION_KIND": "the operators: [policy] calibration in node.toml; or ddib translate --no-calibration",
    "CALIBRATION_UNITS": "the node's operator: ddib calibrate list, and ddib model show of the model that is served",
    "UNAUTHENTICATED": "`ddib doctor`, at a node `ddib pki show`, names what is wrong with the certificate",
    "PEER_UNKNOWN": "a client: its operator (ddib pki show lists it); a node: the operators exchange peer files, "
    "ddib peer export and ddib peer add",
    "PEER_SUSPENDED": "accepted jobs wait; the operator of the node that refused lifts it: ddib peer suspend --undo",
    "LATENT_NOT_GAUSSIAN": "leave it out, or train the source's model longer and with data like it",
    "NOT_FOUND": "check the name",
    "JOB_NOT_FOUND": "ddib job list",
    "ITEM_NOT_FOUND": "ddib job show JOB",
    "DOMAIN_NOT_FOUND": "ddib domains",
    "PEER_NOT_FOUND": "ddib domains, or ddib peer list at the node",
    "MODEL_NOT_FOUND": "`ddib model list` lists the models that ship, `ddib model train` makes one",
    "FILE_NOT_FOUND": "check the path",
    "REQUEST_ID_CONFLICT": "submit again: a new request id is made for each job",
    "ALREADY_EXISTS": "choose another folder, or --force",
    "EXHAUSTED": "try again later; ddib job list shows what is under way",
    "UNAVAILABLE": "run ddib doctor, then repeat the command",
    "NOT_READY": "repeat the command in a moment",
    "DRAINING": "repeat the command when the node is back",
    "PEER_UNREACHABLE": "ddib doctor",
    "CHUNK_CORRUPT": "repeat the command; the bytes were damaged in transit",
    "CANCELLED": "ddib job list",
    "DEADLINE_EXCEEDED": "translate fewer or smaller files at once",
    "JOB_FAILED": "ddib job show JOB",
    "FILES_LEFT_OUT": "repair the listed files, then the same command again",
    "PEER_FAULT": "tell the operator of that institution; ddib domains lists what can be reached now",
    "DISK_FULL": "df -h shows the disks of this machine; a node's own are its operator's",
    "OUT_OF_BOUNDS": "the report names the figure",
}


def next_step(error: DdibError) -> str:
    """What to try: the error's own hint, else the table's line for its class or the nearest parent."""
    if error.hint:
        return error.hint
    return _of_class(error, NEXT_STEPS)


def next_steps(errors: Iterable[DdibError]) -> str:
    steps = dict.fromkeys(step for error in errors if (step := next_step(error)))
    return "\n".join([*steps][:3])


# By reason, for somebody at the page: an error's own hint is for a shell. Parents of the class are tried after it.
STEPS: Final[Mapping[str, str]] = {
    "INTERNAL": "give the incident's number, where there is one, to the operator of your node",
    "INPUT_INVALID": "correct the file, or leave it out, and drop it again",
    "USAGE": "choose otherwise, or rename the file, and translate again",
    "CONFIG_INVALID": "ask the operator of your node",
    "IMAGE_UNREADABLE": "open it in a viewer and save it again as PNG, JPEG or TIFF, or leave it out",
    "IMAGE_TOO_LARGE": "make it smaller, or cut it into several files",
    "SETTINGS_INVALID": "choose otherwise on the start page",
    "PICTURE_MISFIT": "bring its values to the range that the message names, or leave it out",
    "CONTRACT_MISMATCH": "tell the operators of both nodes; choose another domain meanwhile",
    "STATE_CONFLICT": "load the page again",
    "REFUSED": "ask the operator of the node that refused",
    "UNAUTHENTICATED": "ask the operator of your node for a new certificate",
    "LATENT_NOT_GAUSSIAN": "leave it out, or drop a picture like those that your node's model was trained on",
    "NOT_FOUND": "go back to the start page, and choose again",
    "ALREADY_EXISTS": "move the earlier results away, and translate again",
    "EXHAUSTED": "wait a while, and translate again; what is finished is here",
    "DISK_FULL": "make room on the disk, and translate again; what is finished is here",
    "UNAVAILABLE": "wait a while, and translate again; ask the operator of your node if it stays so",
    "CHUNK_CORRUPT": "translate again: the bytes were damaged on the way",
    "CANCELLED": "drop the rest again to continue",
    "DEADLINE_EXCEEDED": "translate again, fewer files at once",
    "JOB_FAILED": "translate again; ask the operator of your node if it fails again",
    "FILES_LEFT_OUT": "repair what is listed, or choose otherwise, and drop it again; what was translated is here",
    "PEER_FAULT": "tell the operator of that institution; choose another domain meanwhile",
}


def step_in_words(error: DdibError) -> str:
    """What somebody at the page can do about an error, without a command of a shell where there is another way."""
    if isinstance(error, ExtraMissing):
        return f"in a terminal: {error.hint}; then start the page again"
    return _of_class(error, STEPS)


def _of_class(error: DdibError, steps: Mapping[str, str]) -> str:
    """The line for the class of an error or the nearest parent that has one."""
    reasons = (str(getattr(kind, "reason", "")) for kind in type(error).__mro__)
    return next((steps[reason] for reason in reasons if reason in steps), "")
