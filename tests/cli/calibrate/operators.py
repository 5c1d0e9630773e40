"""Both operators at two nodes that run in this process."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from ddib_fed.calibration.record import CalibratedSide, CalibrationStore, Making
from ddib_fed.models.units import ChannelMap
from ddib_fed.testing import ddib
from tests import audit_rows
from tests.calibration.examples import calibration
from tests.e2e.in_process import InProcessNodes
from tests.node.picture_examples import pictures_model

TO = "south.example/drawings"


run = partial(ddib, "calibrate")


@dataclass
class Operators:
    """Both operators at their nodes."""

    nodes: InProcessNodes
    folder: Path
    _before: dict[str, int] = field(default_factory=dict)

    @property
    def north(self) -> Path:
        return self.folder / "north" / "node.toml"

    @property
    def south(self) -> Path:
        return self.folder / "south" / "node.toml"

    def stored(self, at: str) -> CalibrationStore:
        return CalibrationStore(self.folder / at / "state" / "calibrations")

    def clear(self) -> None:
        """No calibration, nothing published; `acts` begins anew."""
        for at in ("north", "south"):
            state = self.folder / at / "state"
            for file in (*(state / "calibrations").glob("*.json"), *state.glob("aggregate.json")):
                file.unlink()
            self._before[at] = len(self._lines(at))

    def acts(self, at: str) -> list[str]:
        return [record["act"] for record in self._lines(at)[self._before.get(at, 0) :]]

    def _lines(self, at: str) -> list[dict]:
        return audit_rows.records(self.folder / at / "state" / "node.sqlite")

    def anchored(self, **changes) -> Path:
        """A file with a calibration from anchors: light and dark are exchanged."""
        units = pictures_model("scans", seed=1)[0].normalisation
        sides = {"source": "scans", "target": "drawings"}
        found = {
            "map": ChannelMap(rotation=((-1,),)),
            "made": Making(method="anchors", anchors=8, created=datetime.now(UTC)),
            **{name: CalibratedSide(domain=domain, units=units) for name, domain in sides.items()},
        }
        made = calibration(**(found | changes))
        path = self.folder / f"{made.sha256.hex()[:8]}.json"
        made.save(path)
        return path

    def agree(self) -> str:
        """South accepts what north proposed, and north fetches the signature; its digest."""
        sha256 = self.stored("north").list()[0].sha256.hex()
        run("accept", sha256[:12], "--yes", "--config", self.south)
        run("send", sha256[:12], "--config", self.north)
        return sha256

    def propose(self, **changes) -> str:
        file = self.anchored(**changes)
        run("--peer", TO, "--from", file, "--yes", "--config", self.north)
        return self.stored("north").list()[0].sha256.hex()
