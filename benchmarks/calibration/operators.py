"""What the operators of two nodes type until a calibration is signed and the source's model is trained with it."""

from __future__ import annotations

import json

from ddib_fed import Calibration
from ddib_fed.testing import TwoNodes, ddib

STEPS, BATCH = 400, 32
"""Of the source's training."""


def sign(nodes: TwoNodes, kind: str, *materials: object) -> Calibration:
    """Propose a calibration to the target; return it once both operators have signed it."""
    source, target = nodes.source.config_path, nodes.target.config_path
    words = ("--kind", kind, *materials, "--yes", "--format", "json", "--config", source)
    proposed = json.loads(ddib("calibrate", "--peer", nodes.to, *words))
    if proposed["state"] != "signed":
        ddib("calibrate", "accept", proposed["sha256"], "--yes", "--config", target)
        ddib("calibrate", "send", proposed["sha256"], "--config", source)
    return Calibration.open(nodes.source.config.paths.calibrations / f"{proposed['sha256']}.json")


def retrain(nodes: TwoNodes, calibration: Calibration) -> None:
    """Train the source's model again, on its pictures mapped by what both signed; its node then serves it."""
    source = nodes.source
    file, init, out = (source.folder / name for name in ("colours.json", "model", "mapped"))
    ddib("calibrate", "show", calibration.sha256.hex(), "--out", file, "--config", source.config_path)
    words = ("--steps", STEPS, "--batch", BATCH, "--set", "precision=bfloat16", "--out", out)
    ddib("model", "train", "--domain", "satellite", "--init", init, "--calibration", file, *words)
    source.stop()
    source.configure({"bundle": "mapped"})
    source.start()
