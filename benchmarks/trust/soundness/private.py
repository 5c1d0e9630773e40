"""What must not be read by others: metadata of pictures in logs, keys, weights and jobs on the disk."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, Said, attack, ddib
from benchmarks.trust.soundness.samples import photograph, written
from ddib_fed.models.catalogue import copy_shipped
from tests.chaos.load import stub_pair
from tests.e2e.harness import Node, Pair
from tests.node.tiny_nodes import npy
from tests.samples.picture_examples import with_chunk

CANARY = "Somerville-1780"


def _saved(kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph()).save(file, kind, **how)
    return file.getvalue()


def _metadata() -> dict[str, bytes]:
    """Pictures with the canary in each place that a format has for words; some are damaged."""
    exif, text = Image.Exif(), PngInfo()
    for tag in (270, 271, 315, 33432, 0x9C9B):
        exif[tag] = CANARY
    text.add_text("Patient", CANARY)
    text.add_text("Comment", CANARY, zip=True)
    text.add_itxt("XML:com.adobe.xmp", f"<x>{CANARY}</x>", zip=True)
    tagged = io.BytesIO()
    tifffile.imwrite(tagged, photograph(), photometric="rgb", description=CANARY, software=CANARY,
                     extratags=[(700, 7, len(CANARY), CANARY.encode(), True),
                                (65_000, 2, 0, CANARY, True)])  # fmt: skip
    plain = _saved("PNG")
    lzw = bytearray(_saved("TIFF", compression="tiff_lzw", description=CANARY))
    lzw[200:240] = b"\xff\x00\xaa\x13" * 10
    jpeg = _saved("JPEG", exif=exif, comment=CANARY, icc_profile=CANARY.encode() * 20)
    return {
        f"{CANARY}.png": _saved("PNG", pnginfo=text, exif=exif, icc_profile=CANARY.encode() * 20),
        "exif.jpg": jpeg, "tags.tif": tagged.getvalue(), "cut.jpg": jpeg[: len(jpeg) // 2], "damaged.tif": bytes(lzw),
        "unknown.png": with_chunk(plain, b"prVt", CANARY.encode()),
        "broken-exif.png": with_chunk(plain, b"eXIf", b"MM\0*" + CANARY.encode() * 9),
    }  # fmt: skip


@attack(
    11,
    "a canary in EXIF, XMP, ICC, texts, tags, comments and names, to nodes that log all at debug as JSON",
    before="Pillow's logger wrote EXIF at debug; C-core lines in a JSON log",
    test="tests/e2e/admission/test_logs.py::test_every_line_of_a_json_log_is_json_and_none_holds_metadata",
)
def metadata(folder: Path, result: Result) -> None:
    pair = nodes.pictures()
    for path in written(folder / CANARY, _metadata()):
        said = ddib("translate", path, "--to", nodes.SATELLITE, "--cycle", "--evaluations", 12, "--out", folder / "o",
                    "--profile", pair.profile)  # fmt: skip
        result.add(path.name, said.code in {0, 3, 5, 11}, said.code, said.error if said.code else "")
    for node in (pair.north, pair.south):
        with socket.create_connection(("127.0.0.1", node.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.recv(100)
        log = (node.folder / "log.txt").read_text()
        other = [line for line in log.splitlines() if not _is_json(line)]
        result.add(f"{node.institution}: every line is JSON", not other, said=other[0] if other else "")
        loggers = {json.loads(line)["logger"].split(".")[0] for line in log.splitlines() if _is_json(line)}
        result.add(
            f"{node.institution}: own loggers alone",
            loggers <= {"ddib_fed", "source_node", "target_node"},
            said=str(loggers),
        )
        state = [
            path for path in node.folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
        ]
        result.add(
            f"{node.institution}: the canary is nowhere on its disk",
            not state,
            said=str([p.name for p in state]),
        )
        result.measured.append(f"{node.institution}: {len(log.splitlines())} lines")


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _keys(pair: Pair) -> dict[str, tuple[Path, Callable[[], Said]]]:
    """Private keys, and a command that uses each."""
    north, pki = pair.north, pair.north.config.paths.pki
    alice = next(pair.profile.parent.rglob("leaf.key"))
    model = north.config.paths.bundle
    config, out = ("--config", north.config_path), ("--out", pair.profile.parent / "more")
    return {
        "ca.key: pki issue": (pki / "ca.key", lambda: ddib("pki", "issue", "--client", "bob", *out, *config)),
        "ca.key: model sign": (pki / "ca.key", lambda: ddib("model", "sign", model, *config)),
        "ca.key: init client": (pki / "ca.key", lambda: ddib("init", "client", "--node-config", north.config_path,
                                                            "--name", "eve", *out)),
        "leaf.key: peer test": (pki / "leaf.key", lambda: ddib("peer", "test", "south.example", *config)),
        "a client's: domains": (alice, lambda: ddib("domains", "--profile", pair.profile)),
        "a client's: translate": (alice, lambda: ddib("job", "list", "--profile", pair.profile)),
        "a client's: doctor": (alice, lambda: ddib("doctor", "--profile", pair.profile)),
    }  # fmt: skip


@attack(
    12,
    "private keys of modes 0644, 0640, 0604, 0660, 0601 and in an open folder, with every command that uses one",
    before="accepted (0644 `ca.key`, leaf and client keys)",
    test="tests/trust/test_private_keys.py::test_a_key_that_others_can_read_is_refused_with_the_command_that_closes_it",
)
def keys(folder: Path, result: Result) -> None:
    del folder
    pair = nodes.points()
    for what, (key, use) in _keys(pair).items():
        for mode in (0o644, 0o640, 0o604, 0o660, 0o601):
            key.chmod(mode)
            try:
                said = use()
            finally:
                key.chmod(0o600)
            result.refused(f"{what}, 0{mode:o}", said, "chmod", codes=(3, 5))
        key.parent.chmod(0o777)
        try:
            said = use()
        finally:
            key.parent.chmod(0o700)
        result.refused(f"{what}, its folder 0777", said, "chmod", codes=(3, 5))


@attack(
    12,
    "everything that nodes, clients and commands write under `umask 0`: weights, models, backups, latents, jobs, keys",
    before="weights and model folders could be read by others",
    test="tests/models/test_bundle.py::test_weights_are_their_owners_alone",
)
def modes(folder: Path, result: Result) -> None:
    before = os.umask(0)
    try:
        pair = stub_pair(folder / "pair")
        try:
            pair.start()
            (folder / "p.npy").write_bytes(npy(40))
            ddib("translate", folder / "p.npy", "--to", "south.example/moons", "--keep-latents", "--out", folder / "o",
                 "--profile", pair.profile)  # fmt: skip
            ddib("job", "submit", folder / "p.npy", "--to", "south.example/moons", "--profile", pair.profile)
            ddib("backup", "--config", pair.north.config_path, "--out", folder / "north.backup")
            for name in ("north", "south"):
                _closed(result, folder / "pair" / name / "state", f"{name}'s state")
        finally:
            pair.stop()
        ddib(
            "model",
            "train",
            "--domain",
            "moons",
            "--steps",
            2,
            "--width",
            16,
            "--batch",
            16,
            "--out",
            folder / "m",
        )
        copy_shipped("moons", folder / "copied")
        ddib("restore", folder / "north.backup", "--out", folder / "restored")
        node = Node.create(folder / "single", "source", "north.example", "moons", pretrained=False)
        ddib("model", "install", folder / "m", "--config", node.config_path)
        _closed(result, folder / "restored" / "state", "a restored node's state")
        _closed(result, node.folder / "state", "a node with an installed model")
        for name in ("m", "copied"):
            _closed(result, folder / name, f"model {name}")
        for path in (folder / "north.backup", *folder.glob("o/*.latent.npy"), pair.profile.parent / "pki"):
            _closed(result, path, path.name)
    finally:
        os.umask(before)


PUBLIC = {".pem", ".sock", ".peer"}


def _closed(result: Result, path: Path, what: str) -> None:
    """Note whether nobody else can read anything there, directly or because a folder above it is closed."""
    if not path.exists():
        result.add(what, held=False, said="it was not written")
        return
    found = [path] if path.is_file() else []
    if path.is_dir() and path.stat().st_mode & 0o077:
        found = [each for each in path.rglob("*") if each.is_file() and each.suffix not in PUBLIC]
    open_ = [each.name for each in found if each.stat().st_mode & 0o077]
    result.add(what, not open_, said=", ".join(open_[:4]))
