"""Sets up two institutions whose nodes admit one another, and translates files through them.

Everything runs through the commands and the client that users have, and each command is printed so that it can be
pasted. Started nodes are always stopped, unless they are to be kept.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.errors import CalibrationIneffective, Cancelled, InternalError
from ddib_fed.terminal import console, say

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.record import Calibration
    from ddib_fed.cli.client.delivery import Delivered
    from ddib_fed.cli.client.translation.order import Order
    from ddib_fed.cli.demo.institutions import Institution


DRAWS = 3
"""Of the noise of what is published for a calibration: about one in a hundred supports none."""


def show(command: str) -> None:
    say(f"$ {command}", style="dim")


@dataclass(frozen=True, slots=True)
class Site:
    """Description of one of the two institutions."""

    name: str
    domain: str
    bundle: Path | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two institutions in one folder, and a client of the first."""

    out: Path
    source: Institution
    target: Institution
    person: str
    calibrations: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str, str], ...] = ()
    begun: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, out: Path, source: Site, target: Site, person: str, calibrations: tuple[str, ...] = ()
    ) -> Pair:
        """Two institutions, not yet set up, on free ports; their folders are named by their first labels."""
        from ddib_fed.cli.demo.institutions import Institution, free_ports

        first, second = (
            Institution(site.name, role, site.domain, out / site.name.partition(".")[0], port, site.bundle)
            for site, role, port in zip((source, target), ("source", "target"), free_ports(2), strict=True)
        )
        return cls(out, first, second, person, calibrations)

    @property
    def institutions(self) -> tuple[Institution, Institution]:
        return self.source, self.target

    @property
    def profile(self) -> Path:
        return self.out / self.person / "client.toml"

    @property
    def to(self) -> str:
        return f"{self.target.name}/{self.target.domain}"

    def begin(self) -> None:
        self._set_up(self.begun.append)

    def stop(self) -> None:
        for institution in self.institutions:
            institution.stop()

    @contextlib.contextmanager
    def running(self, *, keep: bool) -> Iterator[None]:
        """Set up both nodes, let them admit each other, and serve; stop them at the end unless they are kept."""
        try:
            if self.begun:
                for line in self.begun:
                    show(line)
            else:
                self._set_up(show)
            with console(stderr=True).status("the nodes load and warm up their models"):
                for institution in self.institutions:
                    institution.wait_ready()
            yield
        except Cancelled as error:
            keep = False
            raise Cancelled("interrupted; the demo's nodes are stopped", hint="ddib demo") from error
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                self.stop()

    def _set_up(self, show: Callable[[str], None]) -> None:
        from ddib_fed.cli.demo.institutions import run_command

        source, target = self.institutions
        source_print, target_print = source.set_up(show), target.set_up(show)
        source.admit(show, target.peer_file, target_print)
        target.admit(show, source.peer_file, source_print)
        for institution in self.institutions:
            if self.calibrations:
                institution.allow_calibrations(show, self.calibrations)
            for setting in self.settings:
                institution.configure(show, *setting)
            institution.start(show)
        run_command(
            show, "init", "client", "--node-config", self.source.config_path, "--name", self.person,
            "--out", self.out / self.person,
        )  # fmt: skip

    def translate(self, files: Sequence[Path], order: Order, out: Path, *, shown: str) -> list[Delivered]:
        """Translate like `ddib translate --cycle --keep-latents`, through the client."""
        from ddib_fed.bridge.records.translation_record import DOUBTFUL_BELOW
        from ddib_fed.cli.client.choosing import Chosen
        from ddib_fed.cli.client.translation.run import Manner
        from ddib_fed.cli.client.translation.whole import conclude, translate_files
        from ddib_fed.client.profile import Profile

        show(_command(shown, order, out, self.profile))
        profile = Profile.load(self.profile)
        manner = Manner(out, force=False, skip_bad=False, doubtful_below=DOUBTFUL_BELOW)
        outcome, _ = translate_files(profile, Chosen.files(files), order, manner, page=False)
        conclude(outcome, out, profile.hop, skip_bad=False)
        return list(outcome.delivered)

    def calibrate(self, kind: str) -> Calibration:
        """Publish, and agree on a calibration; where the published noise does not support one, publish again."""
        for draw in range(1, DRAWS):
            self.publish(again=draw > 1)
            try:
                return self.agree(kind)
            except CalibrationIneffective as error:
                say(f"refused: {error.detail}", "the noise is drawn once more: these pictures are public")
        self.publish(again=True)
        return self.agree(kind)

    def publish(self, *, again: bool = False) -> None:
        """Publish an aggregate of the target's pictures, as its operator does."""
        from ddib_fed.cli.demo.institutions import run_command

        target = self.target
        words = ("publish", "--config", target.config_path, "--pictures", target.domain, "--yes")
        further = ("--again",) if again else ()
        say(*run_command(show, "calibrate", *words, *further).splitlines())

    def agree(self, kind: str) -> Calibration:
        """Calibrate the source to what the target published, and sign it at both, as their operators do."""
        from ddib_fed.cli.demo.institutions import run_command
        from ddib_fed.node.config import NodeConfig
        from ddib_fed.trust.calibrations.store import CalibrationStore

        source, target = self.source, self.target
        words = (
            "--peer",
            self.to,
            "--config",
            source.config_path,
            "--pictures",
            source.domain,
            "--kind",
            kind,
            "--yes",
        )
        say(*run_command(show, "calibrate", *words).splitlines())
        store = CalibrationStore(NodeConfig.load(source.config_path).paths.calibrations)
        places = (source.name, source.domain), (target.name, target.domain)
        for proposed in store.between(*places)[:1]:
            name = proposed.sha256.hex()[:12]
            run_command(show, "calibrate", "accept", name, "--yes", "--config", target.config_path)
            signed = run_command(show, "calibrate", "send", name, "--config", source.config_path)
            say(*signed.splitlines())
        found = store.active(*places, now=datetime.now(UTC))
        if found is None or found.signed.calibration.kind != kind:
            raise InternalError("`ddib calibrate --peer` left no calibration that both have signed")
        return found.signed.calibration

    def say_how_to_go_on(self, shown: str) -> None:
        """Print addresses, and example commands for the files in `shown`."""
        for institution in self.institutions:
            pid = institution.process.pid if institution.process is not None else "-"
            say(
                f"{institution.name} ({institution.role} node) listens on 127.0.0.1:{institution.port}, pid {pid}"
            )
        profile, again = f"--profile {shlex.quote(str(self.profile))}", f"again-{self.source.domain}"
        stop = "; ".join(
            f"ddib drain --config {shlex.quote(str(institution.config_path))}"
            for institution in self.institutions
        )
        say("try:")
        say(f"  ddib domains {profile}")
        say(f"  ddib translate {shown} --to {self.to} --out {again} --evaluations 24 --cycle {profile}")
        say(f"  ddib job list {profile}")
        say(f"  ddib status --config {shlex.quote(str(self.source.config_path))}")
        say(f"  {stop}   # stop both")


def _command(shown: str, order: Order, out: Path, profile: Path) -> str:
    """The settings as options; defaults are omitted."""
    from ddib_fed.wire.jobs import Settings

    words = ["ddib translate", shown, "--to", order.target]
    if order.settings.evaluations != Settings().evaluations:
        words += ["--evaluations", str(order.settings.evaluations)]
    words += ["--out", str(out)]
    words += ["--cycle"] if order.cycle else []
    words += ["--keep-latents"] if order.keep_latent else []
    return " ".join([*words, "--profile", str(profile)])
