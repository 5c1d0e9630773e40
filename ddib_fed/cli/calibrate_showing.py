"""Prints a calibration, and asks whether something may leave."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from ddib_fed.errors import Cancelled, UsageError
from ddib_fed.terminal import lines, number, size

if TYPE_CHECKING:
    from ddib_fed.calibration.record import Calibration
    from ddib_fed.models.sidecars import Figure
    from ddib_fed.node.config import NodeConfig


def confirmed(question: str, *, yes: bool) -> None:
    """Return if the operator agrees."""
    if yes:
        return
    from ddib_fed.node.admitting import confirm

    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="look at what is shown above, then add --yes")
    if not confirm(question):
        raise Cancelled("not confirmed; nothing left and nothing was signed", hint="the same command again")


def show_calibration(calibration: Calibration) -> None:
    """What it is, how it was made, and what it does, a line each on stdout."""
    made, effect = calibration.made, calibration.effect
    text = {
        "calibration": f"{calibration.kind}, {side_name(calibration.source)} to {side_name(calibration.target)}",
        "made from": _made_from(calibration),
        **_effect(calibration),
    }
    if made.crossed_bytes:
        where = "" if calibration.target.institution else "nothing in one process; between nodes "
        text["crosses"] = f"{where}{size(made.crossed_bytes)} of aggregate, once"
        if made.epsilon is not None and made.delta is not None:
            noise = f"epsilon {made.epsilon:g}, delta {made.delta:g} for each {made.target_unit}"
            text["crosses"] += f", with noise: {noise}"
    else:
        text["crosses"] = "nothing but the calibration itself"
    text["expires"] = f"{calibration.expires:%Y-%m-%d}"
    text["sha256"] = calibration.sha256.hex()
    if effect.forced:
        text["forced"] = "its figures were refused, and --force took it"
    lines(text)


def how_jobs_use(calibration: Calibration, config: NodeConfig) -> tuple[str, ...]:
    """What a source does, once both have signed, so that its jobs use it: lines for its operator."""
    from ddib_fed.calibration.record import fits
    from ddib_fed.node.role import load_hosted
    from ddib_fed.training.config import SHIPPED

    short, target, path = calibration.sha256.hex()[:12], calibration.target.institution, config.path
    if fits(calibration, load_hosted(config).manifest):
        return (f"jobs to {target} use it from now on; ddib translate --no-calibration leaves it out",)
    model = config.paths.bundle
    named = config.train.pictures(config.folder) or "PICTURES"
    own = f"--domain {named}" if named in SHIPPED else f"--images {shlex.quote(str(named))}"
    trained = config.folder / f"{model.name}-{short}"
    file, start, made = (shlex.quote(str(each)) for each in (config.folder / f"{short}.json", model, trained))
    return (
        f"jobs to {target} use it once this node's model is trained with it:",
        f"  ddib calibrate show {short} --out {file} --config {shlex.quote(str(path))}",
        f"  ddib model train {own} --init {start} --calibration {file} --out {made}",
        f'then [model] bundle = "{trained.name}" in {path}, and restart the node',
    )


def _effect(calibration: Calibration) -> dict[str, str]:
    """What its figures are, in words; further ones by their names."""
    effect = calibration.effect
    before, after = interval(effect.distance_before), interval(effect.distance)
    if calibration.made.method == "anchors":
        text = {
            "error": f"{before} without it, {after} with it: mean squared, each anchor by a map of the others",
            "gain": f"{interval(effect.margin)} of the error goes",
        }
    else:
        text = {
            "distance": f"{before} without it, {after} with it: of the source's colours to the target's",
            "margin": f"{interval(effect.margin)} of the distance without it: so much farther is the next best one",
        }
    shown = {name: interval(figure) for name, figure in effect.figures.items()}
    if {"anchors_psnr", "anchors_psnr_without"} <= shown.keys():
        with_it, without = shown.pop("anchors_psnr"), shown.pop("anchors_psnr_without")
        text["PSNR"] = f"{without} dB without it, {with_it} dB with it: of the anchors, by the map alone"
    if "undone_psnr" in shown:
        text["undone"] = f"{shown.pop('undone_psnr')} dB: pictures mapped and mapped back"
    return text | shown


def interval(figure: Figure) -> str:
    """A figure with its interval of 95 %, where it has one."""
    if figure.low == figure.high:
        return number(figure.value)
    return f"{number(figure.value)} ({number(figure.low)} to {number(figure.high)})"


def _made_from(calibration: Calibration) -> str:
    made = calibration.made
    if made.method == "anchors":
        return f"{made.anchors} anchors, pictures of the same things in both domains"
    theirs = f"an aggregate over {made.target_pictures} {made.target_unit}s"
    if not made.aggregate_sha256:
        return (
            f"a file: {made.source_pictures} pictures and {theirs}, which was not {calibration.target.institution}'s; "
            "the figures are of those"
        )
    return f"{made.source_pictures} pictures of the source, and {theirs} of the target"


def side_name(side: object) -> str:
    institution, domain = (str(getattr(side, name)) for name in ("institution", "domain"))
    return f"{institution}/{domain}" if institution else domain
