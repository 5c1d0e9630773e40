"""Two real nodes with a tap between them, runs over it, and what must not cross in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddib_fed.bridge.party import Leg, ToEncode
from ddib_fed.bridge.serving import ServingParty
from ddib_fed.bridge.softening import Softener, load_key
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import DdibError
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.node.model.pictures import limits_of, read_picture, rule_of
from ddib_fed.samples.images import decode_image, encode_png
from ddib_fed.trust import pki
from ddib_fed.wire.jobs import Settings
from tests.e2e.harness import Node, Pair
from tests.e2e.processes import PLANT
from tests.node.picture_examples import SECRET, Files, save_pictures_model, write_files
from tests.trust.tap.relay import Tap
from tests.trust.tap.search import Traffic
from tests.trust.tap.secrets import Secrets
from tests.trust.tap.third import tap_between

EVALUATIONS = 12
DEEP = PictureFormat(low=-1000.0, high=2000.0, bits=16)
TARGET = "south.example/relief"


@dataclass(frozen=True, slots=True)
class Shown:
    """A file as north sees it.

    Attributes:
        path: Of the file.
        pixels: As they lie in it.
        samples: (C, H, W) in [-1, 1], of the model's size.
        units: The same in the units of the model.
    """

    path: Path
    pixels: np.ndarray
    samples: np.ndarray
    units: np.ndarray


@dataclass
class Bench:
    """North's scans become south's relief; everything between them goes through the tap.

    Attributes:
        pair: Both nodes, started by `running`.
        tap: Between them.
        files: What the client translates.
        evaluations: Of a leg.
    """

    pair: Pair
    tap: Tap
    files: Files
    evaluations: int = EVALUATIONS

    @classmethod
    def shipped(cls, folder: Path, pictures: Mapping[str, np.ndarray]) -> Bench:
        """The shipped models of satellite and relief, and pictures (H, W, C) uint8 as PNG files."""
        pair = Pair.create(folder, "relief", domain="satellite")
        tap = tap_between(pair, folder / "tap")
        (at := folder / "in").mkdir()
        for name, pixels in pictures.items():
            (at / f"{name}.png").write_bytes(encode_png(pixels))
        sizes = {name: pixels.shape[:2] for name, pixels in pictures.items()}
        return cls(pair, tap, Files(at, sizes, dict(pictures)), 24)

    @classmethod
    def create(
        cls, folder: Path, *, classes: tuple[str, ...] = (), form: PictureFormat = DEEP, **policy: str
    ) -> Bench:
        """Both nodes with small models of pictures, and the tap; `policy` are lines of both node.toml."""
        pair = Pair.create(folder, "relief", domain="scans", pretrained=False)
        save_pictures_model(pair.north.folder / "model", "scans", seed=1)
        save_pictures_model(
            pair.south.folder / "model",
            "relief",
            seed=2,
            form=form,
            classes=classes,
            class_dropout=bool(classes),
        )
        for node in (pair.north, pair.south):
            for name, value in policy.items():
                text = node.config_path.read_text().splitlines()
                lines = [f"{name} = {value}" if line.startswith(f"# {name} = ") else line for line in text]
                assert lines != text, name
                node.config_path.write_text("\n".join(lines) + "\n")
        tap = tap_between(pair, folder / "tap")
        (folder / "in").mkdir()
        return cls(pair, tap, write_files(folder / "in"))

    @contextlib.contextmanager
    def running(self, node: Node, planted: str = "") -> Iterator[None]:
        """One of the nodes for a while, with a leak planted in its process or none."""
        node.environment = {PLANT: f"tests.trust.tap.leaks:{planted}"} if planted else {}
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
        """What crossed on the connections from the given one on; the nodes that made them must have ended."""
        return Traffic(self.tap.connections[since:])

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
        config = self.pair.north.config
        manifest = load_bundle(config.paths.bundle).manifest
        for path in self.files.paths:
            content = path.read_bytes()
            samples = read_picture(content, rule_of(manifest), limits_of(config.limits)).samples
            yield Shown(
                path, decode_image(content).pixels, samples, manifest.normalisation.apply(samples[None])[0]
            )

    def latents(self) -> Mapping[str, np.ndarray]:
        """What north may send: computed again here, from the bundle, the files and the node's noise."""
        party = ServingParty(load_bundle(self.pair.north.config.paths.bundle), device="cpu", threads=1)
        leg, softener = Leg(SolverSettings(evaluations=self.evaluations)), self.softener
        try:
            return {
                shown.path.stem: party.encode(
                    ToEncode(
                        0,
                        shown.samples[None],
                        None,
                        lambda picture: softener.for_picture(picture, "south.example"),
                    ),
                    leg,
                ).latent.data
                for shown in self.pictures()
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
