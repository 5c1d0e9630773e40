"""One attack: what is tried, what an earlier release did, the test that holds it, and what comes of it now.

An attack tries several variants; each is a case that held or did not.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ddib_fed.cli.main import run

LONGEST = 150
"""Characters of a message in the table."""


@dataclass(frozen=True)
class Said:
    """What a command ended with.

    Attributes:
        code: Exit code.
        out: Its stdout.
        err: Its stderr.
        seconds: It took so long.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def error(self) -> str:
        """The line of the error; the last line where there is none."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return next((line[7:] for line in lines if line.startswith("error: ")), lines[-1] if lines else "")


@dataclass(frozen=True)
class Case:
    """One variant of an attack.

    Attributes:
        what: The variant.
        held: Whether it was refused, named or survived as it must be.
        code: Exit code, where a command ended with one.
        said: The message, or what was found instead.
    """

    what: str
    held: bool
    code: int | None = None
    said: str = ""


@dataclass
class Result:
    """What came of an attack.

    Attributes:
        cases: Each variant.
        measured: Memory, times, counts: a text each.
        seconds: All of it took so long.
    """

    cases: list[Case] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, what: str, held: bool, code: int | None = None, said: str = "") -> None:
        """Note a variant."""
        self.cases.append(Case(what, bool(held), code, said))

    def refused(self, what: str, said: Said, *words: str, codes: tuple[int, ...] = (2, 3, 5)) -> None:
        """Note a variant that holds when the command refuses with one of the codes and names all of the words."""
        named = all(word in said.text for word in words)
        plain = "Traceback" not in said.text
        self.add(what, said.code in codes and named and plain, said.code, said.error)

    @property
    def open(self) -> list[Case]:
        """Variants that got through."""
        return [case for case in self.cases if not case.held]


@dataclass(frozen=True)
class Attack:
    """An attack and its place in the report.

    Attributes:
        item: Number of the hole.
        what: What is tried.
        before: What happened when it was found.
        test: The test that holds it, a path below tests/.
        perform: Tries every variant in a new folder.
    """

    item: int
    what: str
    before: str
    test: str
    perform: Callable[[Path, Result], None]

    def tried(self) -> Result:
        """Perform it; what it raises is a variant that did not hold."""
        result, started = Result(), time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"ddib-door-{self.item}-") as folder:
            try:
                self.perform(Path(folder), result)
            except Exception as error:  # noqa: BLE001 - a traceback is the worst answer to an attack
                result.add("the attack itself", held=False, said=f"{type(error).__name__}: {error}")
        result.seconds = time.monotonic() - started
        return result


ATTACKS: list[Attack] = []
"""Every attack, in the order of their modules."""


def attack(
    item: int, what: str, *, before: str, test: str
) -> Callable[[Callable[[Path, Result], None]], Callable[[Path, Result], None]]:
    """Add the decorated function as an attack."""

    def add(perform: Callable[[Path, Result], None]) -> Callable[[Path, Result], None]:
        ATTACKS.append(Attack(item, what, before, test, perform))
        return perform

    return add


def ddib(*words: object) -> Said:
    """A `ddib` command, as typed."""
    shown, errors, started = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
        code = run([str(word) for word in words])
    return Said(int(code), shown.getvalue(), errors.getvalue(), time.monotonic() - started)


def resident_mb(pid: int | str, what: str = "VmRSS") -> float:
    """Memory of a process, or with "VmHWM" its peak so far, in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{what}:")[1].split()[0]) * 1024 / 1e6


@contextlib.contextmanager
def peak_of(pid: int) -> Iterator[Callable[[], float]]:
    """Forgets the peak of a process; the function given tells by how many MB memory has risen at most since."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = resident_mb(pid)
    yield lambda: max(0.0, resident_mb(pid, "VmHWM") - before)


def shortened(text: str) -> str:
    """A message for a cell of a table: without folders of this run, on one line, printable."""
    text = re.sub(r"/\S*?ddib-(door|nodes)-[^/\s]+/", "", text)
    text = (
        "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text).replace("|", "\\|").replace("`", "'")
    )
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def cell(result: Result) -> str:
    """What happened, for the table: how many variants held, exit codes, one message, figures."""
    held, codes = len(result.cases) - len(result.open), Counter(case.code for case in result.cases)
    parts = [f"{held} of {len(result.cases)} held"]
    if known := [
        f"exit {code}" + (f" ({n})" if len(codes) > 1 else "")
        for code, n in codes.items()
        if code is not None
    ]:
        parts.append(", ".join(known))
    if said := next((case.said for case in result.cases if case.held and case.said), ""):
        parts.append(f"“{shortened(said)}”")
    parts += [f"**got through: {shortened(case.what)}: {shortened(case.said)}**" for case in result.open]
    return "; ".join([*parts, *result.measured, f"{result.seconds:.1f} s"])
