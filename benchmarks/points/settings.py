"""Which solvers are measured on which pairs of domains of points, and where the figures lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddib_fed.diffusion.plans import SolverSettings

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "solvers"
PAIRS = (
    ("moons", "checkerboards"),
    ("concentric-rings", "parallel-squares"),
    ("concentric-squares", "parallel-rings"),
)


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    settings: SolverSettings
    carried: bool = False
    note: str = ""

    @property
    def key(self) -> str:
        s = self.settings
        parts = [
            s.solver,
            str(s.evaluations),
            "" if s.grid == "default" else s.grid,
            "carried" if self.carried else "",
        ]
        return "-".join(part for part in parts if part)

    @property
    def label(self) -> str:
        s = self.settings
        name = f"{s.solver}, order {s.order}" if s.order else s.solver
        return f"{name}{self.note}"


# The cheap ones first, so that a table is there soon.
SETTINGS = (
    *(Setting(SolverSettings("unipc", 3, n)) for n in (24, 32, 48, 100, 200)),
    Setting(SolverSettings("alf", 2, 48), carried=True, note=", auxiliary carried"),
    Setting(SolverSettings("alf", 2, 48), note=", auxiliary dropped"),
    Setting(SolverSettings("alf", 2, 100), note=", auxiliary dropped"),
    Setting(SolverSettings("alf", 2, 200), note=", auxiliary dropped"),
    Setting(SolverSettings("rk4", 4, 48)),
    Setting(SolverSettings("rk4", 4, 100)),
    Setting(SolverSettings("rk4", 4, 200)),
    Setting(SolverSettings("ddim", 1, 200)),
    # The baseline: the public code's number of steps on its grid.
    Setting(SolverSettings("ddim", 1, 4000, "integer"), note=", integer grid"),
    Setting(SolverSettings("ddim", 1, 1000)),
    # Not the baseline, but what our grid alone gives it.
    Setting(SolverSettings("ddim", 1, 4000)),
)
