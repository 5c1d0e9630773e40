"""What a running node writes: every line is JSON where that was asked for, and none holds what is in a picture."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddib_fed.errors import DdibError
from ddib_fed.protocol.messages import Settings
from tests.e2e.harness import Node, Pair, ddib
from tests.node.picture_examples import SECRET, noise, save_pictures_model, to_bits, write_files

pytestmark = [pytest.mark.e2e, pytest.mark.promise("secrets")]

TARGET = "south.example/relief"


@pytest.fixture
def talkative(tmp_path: Path) -> Iterator[Pair]:
    """Picture nodes that log as JSON at debug, in an environment that asks gRPC to say everything."""
    pair = Pair.create(tmp_path, "relief", domain="scans", pretrained=False)
    for seed, (node, domain) in enumerate(((pair.north, "scans"), (pair.south, "relief"))):
        save_pictures_model(node.folder / "model", domain, seed=seed)
        node.edit('# level = "info"', 'level = "debug"')
        node.edit('# format = "text"', 'format = "json"')
        node.environment |= {"GRPC_TRACE": "all", "GRPC_VERBOSITY": "debug"}
    yield pair
    pair.stop()


def lines(node: Node) -> list[dict[str, object]]:
    return [json.loads(line) for line in (node.folder / "log.txt").read_text().splitlines()]


def damaged_tiff() -> bytes:
    """LZW, which Pillow's libtiff reads, with rubbish in the middle."""
    file = io.BytesIO()
    Image.fromarray(to_bits(noise(64, 64, seed=5), np.uint8)).save(file, "TIFF", compression="tiff_lzw")
    content = bytearray(file.getvalue())
    content[1_000:1_040] = b"\xff\x00\xaa\x13" * 10
    return bytes(content)


def test_every_line_of_a_json_log_is_json_and_none_holds_metadata(talkative: Pair, tmp_path: Path) -> None:
    """At debug, with EXIF, TIFF tags and PNG text, a damaged TIFF, a handshake that fails and GRPC_TRACE=all."""
    (tmp_path / "in").mkdir()
    pair, files = talkative.start(), write_files(tmp_path / "in")
    ddib("translate", *files.paths, "--to", TARGET, "--evaluations", 12, "--out", tmp_path / "out",
         "--profile", pair.profile)  # fmt: skip
    with pair.client() as client, pytest.raises(DdibError):
        client.translate([damaged_tiff()], TARGET, Settings(evaluations=12))
    for node in (pair.north, pair.south):
        with socket.create_connection(("127.0.0.1", node.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.recv(100)
        assert node.terminate() == 0
        written = lines(node)
        assert {"debug", "info"} >= {line["level"] for line in written}
        assert all(str(line["logger"]).split(".")[0] in {"ddib_fed", f"{node.role}_node"} for line in written)
        assert SECRET not in (node.folder / "log.txt").read_text()
        said = [str(line["message"]) for line in written if line["level"] == "info"]
        assert len([text for text in said if text.startswith("serving ")]) == 1
        assert said[-1] == "stopped"
        # Of one job: a damaged file is refused before there is another.
        ends = [line for line in written if "seconds" in line or "received" in line]
        assert [line.get("state", "came") for line in ends] == ["finished" if node is pair.north else "came"]


def test_a_node_that_cannot_start_says_so_in_json(talkative: Pair) -> None:
    """The error with its reason and what to try is one line of the log, and the exit code is the error's."""
    node = talkative.south
    (node.folder / "model" / "manifest.json").unlink()
    node.start(wait=False)
    assert node.process is not None
    assert node.process.wait(60) in {3, 6}
    assert lines(node)[-1]["level"] == "error"
