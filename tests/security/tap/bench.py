"""Two real nodes with a tap between them, runs over it, and what must not cross in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddib_fed.data.fitting import fit_picture
from ddib_fed.data.pictures import decode_image
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.gate import Softener, load_key
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.errors import DdibError
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.node.role import limits_of
from ddib_fed.protocol.messages import Settings
from ddib_fed.security import pki
from tests.e2e.harness import Node, Pair
from tests.e2e.processes import PLANT
from tests.node.picture_examples import SECRET, Files, save_pictures_model, write_files
from tests.security.tap.relay import Tap, tap_between
from tests.security.tap.search import Traffic
from tests.security.tap.secrets import Secrets

EVALUATIONS = 12
DEEP = PictureFormat(low=-1000.0, high=2000.0, bits=16)
TARGET = "south.example/relief"


@dataclass(frozen=True, slots=True)
class Shown:
    """A file as north sees it."""

    path: Path
    pixels: np.ndarray
    samples: np.ndarray
    units: np.ndarray


@dataclass
class Bench:
    """North's scans become south's relief; everything between them goes through the tap."""

    pair: Pair
    tap: Tap
    files: Files
    evaluations: int = EVALUATIONS

    @classmethod
    def create(cls, folder: Path) -> Bench:
        """Both nodes with small models of pictures, and the tap."""
        pair = Pair.create(folder, "relief", domain="scans", pretrained=False)
        save_pictures_model(pair.north.folder / "model", "scans", seed=1)
        save_pictures_model(pair.south.folder / "model", "relief", seed=2, form=DEEP)
        tap = tap_between(pair, folder / "tap")
        (folder / "in").mkdir()
        return cls(pair, tap, write_files(folder / "in"))

    @contextlib.contextmanager
    def running(self, node: Node, planted: str = "") -> Iterator[None]:
        """One of the nodes for a while, with a leak planted in its process or none."""
        node.environment = {PLANT: f"tests.security.tap.leaks:{planted}"} if planted else {}
        node.start()
        try:
            yield
        finally:
            node.stop()

    def translate(self, **asked: object) -> bool:
        """All files, with the latents of the way back; whether the job was finished."""
        with self.pair.client(patience_s=0) as client:
            try:
                client.translate(
                    self.files.paths,
                    TARGET,
                    Settings(evaluations=self.evaluations),
                    deadline_s=30,
                    **{"cycle": True, **asked},  # type: ignore[arg-type]
                )
            except DdibError:
                return False
            return True

    def kept(self, since: int = 0) -> Traffic:
        """What crossed in the calls from the given one on; the nodes that made them must have ended."""
        return Traffic(self.tap.calls[since:])

    def secrets(self) -> Secrets:
        """Everything of these files, models and keys."""
        found = Secrets()
        for shown in self.pictures():
            name = shown.path.stem
            found.sample(name, shown.pixels, shown.units)
            found.numbers(f"{name}, fitted, as pixels", np.rint((shown.samples + 1) * 127.5).astype(np.uint8))
            found.file(f"file {shown.path.name}", shown.path.read_bytes())
            found.word(f"name {name}", name)
            noise = self.softener.for_picture(shown.units[None], "south.example")
            found.numbers(f"softening noise of {name}", noise)
        for node in (self.pair.north, self.pair.south):
            found.weights(node.institution, node.config.paths.bundle / "model.safetensors")
            add_keys(found, node)
        for name, text in (
            ("metadata", SECRET),
            ("client", "client/alice"),
            ("folder", str(self.files.folder)),
        ):
            found.word(name, text)
        return found

    @property
    def softener(self) -> Softener:
        """North's."""
        paths = self.pair.north.config.paths
        return Softener(load_key(paths.softening_key), load_bundle(paths.bundle).digest)

    def pictures(self) -> Iterator[Shown]:
        """What north sees of each file."""
        manifest = load_bundle(self.pair.north.config.paths.bundle).manifest
        for path in self.files.paths:
            content = path.read_bytes()
            samples = self.seen(content)
            yield Shown(
                path, decode_image(content).pixels, samples, manifest.normalisation.apply(samples[None])[0]
            )

    def seen(self, content: bytes) -> np.ndarray:
        """The samples (C, H, W) in [-1, 1] that north makes of a file's content, to the last bit."""
        config = self.pair.north.config
        rule = picture_rule(load_bundle(config.paths.bundle).manifest)
        return fit_picture(decode_image(content, limits_of(config.limits)), rule).samples

    def latents(self) -> dict[str, np.ndarray]:
        """What north may send of the files: computed again, from the bundle, the files and the node's noise."""
        return self.encoded({each.path.stem: each.samples for each in self.pictures()})

    def encoded(self, samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Latents (1, C, H, W) by north's model and noise, by name; samples (C, H, W) in [-1, 1]."""
        party = ServingParty(load_bundle(self.pair.north.config.paths.bundle), device="cpu", threads=1)
        leg, softener = Leg(SolverSettings(evaluations=self.evaluations)), self.softener

        def soften(picture: np.ndarray) -> np.ndarray:
            return softener.for_picture(picture, "south.example")

        try:
            return {
                name: party.encode(ToEncode(0, each[None], None, soften), leg).latent.data
                for name, each in samples.items()
            }
        finally:
            party.close()

    def close(self) -> None:
        """End both nodes and the tap."""
        self.pair.stop()
        self.tap.close()


def add_keys(found: Secrets, node: Node) -> None:
    """The private keys of a node, as they lie on the disk and as numbers, and its softening key."""
    folder = node.config.paths.pki
    for path in sorted(folder.glob("*.key")):
        pem = path.read_bytes()
        # The private value in PKCS #8; what follows it is the public key, which every certificate has.
        found.long.add(f"{node.institution} {path.name}", b"".join(pem.splitlines()[1:-1])[48:88])
        for key in pki.load_keys(pem, path):
            number = key.private_numbers().private_value
            found.key(f"{node.institution} {path.name}", number.to_bytes(32, "big"))
            found.key(f"{node.institution} {path.name}", number.to_bytes(32, "little"))
    if node.config.paths.softening_key.exists():
        found.key(f"{node.institution} softening key", load_key(node.config.paths.softening_key))
