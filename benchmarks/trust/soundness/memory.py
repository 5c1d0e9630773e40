"""Files that are small and become large, and uploads that never end: what they cost in memory."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tifffile
from PIL import Image

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, attack, peak_of, resident_mb
from ddib_fed.client.profile import Profile
from ddib_fed.rpc.error_details import from_rpc_error
from ddib_fed.trust import tls
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1 import translation_pb2_grpc as rpc
from ddib_fed.wire.streams.chunks import MAX_CHUNK, file_header, stream
from tests.e2e.harness import Pair, wait_until
from tests.samples.picture_examples import chunk
from tests.source_node.served import job_header

SIDE = 9_400
MOST_MB = 2_048 * 1.048576
"""The whole process of a source with a small model, by docs/operating.md."""
UPLOADS = 24


def _png(side: int, depth: int, colour: int, channels: int, *, interlaced: bool = False) -> bytes:
    """A PNG of one colour, of any size: its rows are compressed one by one."""
    row, packer = bytes(1 + side * channels * depth // 8), zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _with_text(content: bytes) -> bytes:
    """64 MiB of zeros as a compressed comment and as a colour profile."""
    zeros = zlib.compress(bytes(64 << 20), 9)
    beside = chunk(b"zTXt", b"a\0\0" + zeros) + chunk(b"iCCP", b"a\0\0" + zeros)
    return content[:33] + beside + content[33:]


def _tiff(**how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((SIDE, SIDE, 3), np.uint16), photometric="rgb", **how)
    return file.getvalue()


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, "JPEG", progressive=True, quality=30)
    return file.getvalue()


def bombs() -> dict[str, bytes]:
    """Files by name."""
    return {
        "rgb16.png": _png(SIDE, 16, 2, 3),
        "rgba16.png": _png(SIDE, 16, 6, 4),
        "interlaced.png": _png(SIDE, 16, 2, 3, interlaced=True),
        "one-bit.png": _png(4 * SIDE, 1, 0, 1),
        "comments.png": _with_text(_png(32, 8, 2, 3)),
        "one-strip.tif": _tiff(compression="zlib", rowsperstrip=SIDE),
        "tiles.tif": _tiff(compression="zlib", tile=(4_096, 4_096)),
        "progressive.jpg": _jpeg(),
    }


@attack(
    14,
    f"pictures of {SIDE:,} x {SIDE:,} x 16 bit in files below 1 MB, in eight forms, to a node; one twice at once",
    before="one PNG of 0.5 MB cost the source 4.4 GB",
    test="tests/node/model/test_decoding_memory.py::test_many_at_once_stay_within_the_budget_and_all_are_served",
)
def pictures(folder: Path, result: Result) -> None:
    pair = nodes.pictures()
    with peak_of(nodes.pid(pair.north)) as grown:
        for name, content in bombs().items():
            (folder / name).write_bytes(content)
            ended = _translated(pair, folder / name, 2 if name == "rgb16.png" else 1)
            whole = resident_mb(nodes.pid(pair.north), "VmHWM")
            good = set(ended) <= {0, 3, 8, 11} and pair.north.state() == "serving" and whole < MOST_MB
            result.add(
                name, good, ended[0], f"{len(content) / 1e6:.1f} MB, the node at most {whole:.0f} MB so far"
            )
        result.measured.append(f"+{grown():.0f} MB, {whole:.0f} MB in all; documented: 2 GiB")


def _translated(pair: Pair, path: Path, count: int) -> list[int]:
    """The exit codes of translations of one file at the same time."""
    ended: list[int] = []

    def translate(number: int) -> None:
        out = path.with_name(f"{path.name}-{number}")
        done = _process("translate", path, "--to", nodes.SATELLITE, "--evaluations", 8, "--out", out,
                        "--profile", pair.profile)  # fmt: skip
        ended.append(done.returncode)

    threads = [threading.Thread(target=translate, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def _process(*words: object) -> subprocess.CompletedProcess[str]:
    script = "from ddib_fed.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@attack(
    14,
    "the same PNG twice in a folder for `ddib model train --images`, in one process",
    before="not looked at",
    test="tests/samples/test_picture_memory.py::test_decoding_takes_no_more_than_its_header_states",
)
def alone(folder: Path, result: Result) -> None:
    (folder / "in").mkdir()
    for number in range(2):
        (folder / "in" / f"{number}.png").write_bytes(_png(SIDE, 16, 2, 3))
    done = _process("model", "train", "--images", folder / "in", "--size", 16, "--steps", 1, "--batch", 2,
                    "--network", "model_channels=32", "--network", "channel_mult=1",
                    "--network", "num_res_blocks=1", "--out", folder / "m")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    result.add("memory", peak < 2_500 and "Traceback" not in done.stderr, done.returncode, done.stderr[:120])
    result.measured.append(f"at most {peak:.0f} MB, torch included")


def _stalled(size: int, go: threading.Event) -> Iterator[pb.SubmitJobRequest]:
    """An upload whose last chunk does not come."""
    data = b"\x89PNG\r\n\x1a\n" + bytes(size)
    header = file_header(common_pb2.MEDIA_TYPE_PNG, data)
    sent = [
        job_header(1, target_domain="relief"),
        *stream(pb.SubmitJobRequest, "item", header, data, MAX_CHUNK),
    ]
    yield from sent[:-2]
    go.wait(60)


@attack(
    14,
    f"{UPLOADS} uploads of 32 MB that stall before their last chunk",
    before="took the source from 0.4 to 3 GB",
    test="tests/source_node/test_uploads.py::test_what_has_come_of_an_item_is_on_the_disk",
)
def uploads(folder: Path, result: Result) -> None:
    del folder
    pair, go, ends = nodes.pictures(), threading.Event(), Counter[str]()
    spool = pair.north.config.paths.spool

    def staged_mb() -> float:
        files = [path for path in spool.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) / 1e6

    with ddib_channel(pair.profile, pair.north.port) as channel, peak_of(nodes.pid(pair.north)) as grown:

        def upload() -> None:
            try:
                rpc.TranslationServiceStub(channel).SubmitJob(_stalled(32_000_000, go), timeout=60)
            except grpc.RpcError as error:
                ends[from_rpc_error(error, "").reason] += 1

        before = staged_mb()
        threads = [threading.Thread(target=upload) for _ in range(UPLOADS)]
        for thread in threads:
            thread.start()
        time.sleep(8)
        staged, at_once = staged_mb() - before, dict(ends)
        result.add(
            "they lie on the disk, or are refused at once", staged > 100, said=f"{staged:.0f} MB {at_once}"
        )
        result.add("the node serves", pair.north.state() == "serving")
        result.add("memory", grown() < 600, said=f"+{grown():.0f} MB")
        result.measured.append(
            f"+{grown():.0f} MB with {staged:.0f} MB on the disk; refused at once: {at_once or 'none'}"
        )
        go.set()
        for thread in threads:
            thread.join()
    wait_until(lambda: staged_mb() < before + 1, seconds=30, what="an empty spool")
    result.add("nothing is left on the disk", staged_mb() < before + 1)


def ddib_channel(profile: Path, port: int) -> grpc.Channel:
    """Alice's connection to north."""
    folder = Profile.load(profile).pki_folder
    return tls.channel(f"127.0.0.1:{port}", server_name="node-1.north.example", pki_folder=folder, own=True)
