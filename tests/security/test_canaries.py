"""No secret and no patient in a log or on a node's disk, at every level of the log."""

import io
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddib_fed import Request
from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import DdibError
from ddib_fed.record import Settings
from ddib_fed.testing import START_S, NodeProcess, TwoNodes, ddib
from tests.conftest import Evidence
from tests.data_modules.picture_examples import chunk
from tests.e2e.harness import two_nodes
from tests.node.picture_examples import noise, save_pictures_model, to_bits
from tests.security.tap.search import Place, Secrets, look

pytestmark = [pytest.mark.e2e, pytest.mark.promise("secrets")]

CANARY = "Lovelace-Ada-1815-12-10"
XMP = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{CANARY}</dc:creator></x:xmpmeta>'


def icc() -> bytes:
    """A profile whose description is the canary, with a head as the standard has it."""
    text = CANARY.encode()
    tag = b"desc" + bytes(4) + len(text).to_bytes(4, "big") + text
    table = (1).to_bytes(4, "big") + b"desc" + (144).to_bytes(4, "big") + len(tag).to_bytes(4, "big")
    size = 128 + len(table) + len(tag)
    head = size.to_bytes(4, "big") + b"lcms" + bytes(4) + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(88)
    return head + table + tag


def exif() -> Image.Exif:
    made = Image.Exif()
    made[270], made[315], made[40092] = CANARY, CANARY, CANARY.encode("utf-16-le")
    return made


def whole(folder: Path) -> list[Path]:
    """Pictures that a node translates; each name is the canary with its format."""
    text = PngInfo()
    text.add_text("Patient", CANARY)
    text.add_itxt("XML:com.adobe.xmp", XMP)
    pixels = [to_bits(noise(seed=seed), np.uint8) for seed in range(41, 45)]
    paths = [folder / f"{CANARY}-{suffix}.{suffix}" for suffix in ("png", "jpg", "tif", "npy")]
    Image.fromarray(pixels[0]).save(paths[0], pnginfo=text, icc_profile=icc(), exif=exif())
    Image.fromarray(pixels[1]).save(
        paths[1], quality=95, exif=exif(), icc_profile=icc(), comment=CANARY.encode(), xmp=XMP.encode()
    )
    Image.fromarray(pixels[2]).save(paths[2], exif=exif(), icc_profile=icc())
    np.save(paths[3], pixels[3].astype(np.float32))
    return paths


TOLERATED = {"PNG with a broken chunk", "PNG with an unknown critical chunk"}
"""Of `damaged`: pixels are whole, and are read."""


def damaged() -> dict[str, bytes]:
    """Damaged and foreign files, with the canary where a parser might quote it."""
    text = CANARY.encode()
    png = io.BytesIO()
    Image.fromarray(to_bits(noise(seed=46), np.uint8)).save(png, "PNG")
    good = png.getvalue()
    dicom = bytes(128) + b"DICM" + b"\x10\x00\x10\x00PN" + struct.pack("<H", len(text)) + text
    head = f"{{'descr': '{CANARY}', 'fortran_order': False, 'shape': (16, 16), }}".encode()
    header = head + b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    tiff = io.BytesIO()
    Image.fromarray(to_bits(noise(seed=47), np.uint8)).save(tiff, "TIFF", exif=exif(), compression="tiff_lzw")
    torn = bytearray(tiff.getvalue())
    torn[40:120] = text * 3 + torn[40 + 3 * len(text) : 120]
    return {
        "DICOM": dicom,
        "npy of a type": b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(256),
        "PNG with a broken chunk": good[:33] + chunk(b"tEXt", b"Patient\0" + text)[:-2] + b"\0\0" + good[33:],
        "PNG cut off": good[:33] + chunk(b"tEXt", b"Patient\0" + text),
        "PNG with an unknown critical chunk": good[:33] + chunk(b"LOVE", text) + good[33:],
        "TIFF with torn strips": bytes(torn),
        "JPEG without a scan": b"\xff\xd8\xff\xfe" + struct.pack(">H", len(text) + 2) + text + b"\xff\xd9",
        "text": text * 20,
    }


TARGET = "south.example/relief"
LEVELS = (
    "debug",  # all lines of the others, and more
    *(pytest.param(level, marks=pytest.mark.long) for level in ("info", "warning", "error")),
)
KEY_FILES = {"ca.key", "leaf.key", "softening.key"}


@dataclass
class Ward:
    """Two nodes after they have translated, and refused, everything with a canary in it, at one level of the log."""

    pair: TwoNodes
    secrets: Secrets
    outcomes: dict[str, str]


@pytest.fixture(scope="module", params=LEVELS)
def ward(request: pytest.FixtureRequest) -> Iterator[Ward]:
    with tempfile.TemporaryDirectory(prefix="ddib-ward-") as name:
        models = Path(name) / "scans", Path(name) / "relief"
        for seed, model in enumerate(models):
            save_pictures_model(model, model.name, seed=seed)
        pair = two_nodes(Path(name), *models, settings={"level": request.param})
        for node in pair.both:
            node.environment = {"GRPC_TRACE": "all", "GRPC_VERBOSITY": "debug"}
        (folder := Path(name) / "in").mkdir()
        paths = whole(folder)
        try:
            pair.start()
            ddib("translate", *paths, "--to", TARGET, "--evaluations", 12, "--cycle", "--keep-latents",
                 "--out", folder / "out", "--profile", pair.profile)  # fmt: skip
            outcomes = {name: outcome(pair, content) for name, content in damaged().items()}
        finally:
            codes = [node.stop(START_S) for node in pair.both]
        assert codes == [0, 0]
        yield Ward(pair, secrets_of(pair, paths, folder / "out"), outcomes)


def outcome(pair: TwoNodes, content: bytes) -> str:
    """What comes of a file that a client submits."""
    with pair.client(patience_s=0) as client:
        try:
            list(client.translate([content], TARGET, Request(Settings(evaluations=12))))
        except DdibError as error:
            return "quoted" if CANARY in f"{error} {error.detail} {error.facts}" else "refused"
    return "read"


def secrets_of(pair: TwoNodes, paths: list[Path], out: Path) -> Secrets:
    """Names, metadata, pixels, files, what came back and its latents, keys."""
    found = Secrets()
    found.word("canary", CANARY)
    for path in paths:
        pixels = decode_image(path.read_bytes()).pixels
        found.sample(f"pixels of {path.suffix}", pixels, (pixels / np.float32(127.5) - 1) / np.float32(0.5))
        found.file(f"file {path.suffix}", path.read_bytes())
    for path in out.glob("*.npy"):
        found.numbers(f"latent {path.name[-12:]}", np.load(path))
    for path in out.glob("*.png"):
        found.numbers(f"result {path.name[-14:]}", decode_image(path.read_bytes()).pixels)
    for node in pair.both:
        found.node(node)
    return found


def places(node: NodeProcess) -> Iterator[Place]:
    for path in sorted(node.folder.rglob("*")):
        if path.is_file() and path.name not in KEY_FILES and node.folder / "model" not in path.parents:
            yield Place(str(path.relative_to(node.folder)), path.read_bytes(), numbers=True)


def test_no_refusal_quotes_a_file(ward: Ward) -> None:
    """Damaged and foreign files are refused, but two whose pixels are whole: the canaries passed through that code."""
    assert ward.outcomes == {name: "read" if name in TOLERATED else "refused" for name in damaged()}


def test_nothing_of_a_patient_is_in_a_log_or_on_a_disk(ward: Ward, evidence: Evidence) -> None:
    """After delivery, of names, EXIF, XMP, ICC, DICOM, pixels, results, latents and keys: no log, spool or database."""
    searched = [place for node in (ward.pair.source, ward.pair.target) for place in places(node)]
    assert {"node.log", "state/node.sqlite"} <= {place.where for place in searched}
    windows, cases = ward.secrets.size()
    evidence.cases(cases)
    evidence.figure(f"{windows:,} windows in {sum(len(place.data) for place in searched):,} bytes")
    assert look(searched, ward.secrets) == []


def test_a_canary_on_a_disk_would_be_found(ward: Ward) -> None:
    """The same search over the same folders with a line more in a log."""
    line = Place("node.log", b"decoding " + CANARY.encode("utf-16-le") + b" for a client", numbers=True)
    assert "canary in utf-16-le" in {each.what for each in look([line], ward.secrets)}
