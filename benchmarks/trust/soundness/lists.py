"""The list of withdrawn identities as editors and hands leave it, while a node runs and before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, Said, attack, ddib
from tests.e2e.harness import Node, wait_until

ALICE, BOB = (f"spiffe://north.example/client/{name}" for name in ("alice", "bob"))


def damaged() -> dict[str, bytes]:
    """Lists that name alice, by what was done to them."""
    plain = f"# lost laptops\n{ALICE}\n"
    return {
        "a BOM": b"\xef\xbb\xbf" + plain.encode(),
        "two BOMs": b"\xef\xbb\xbf" * 2 + ALICE.encode(),
        "UTF-16": plain.encode("utf-16"),
        "UTF-16, big endian, without a BOM": plain.encode("utf-16-be"),
        "UTF-16, little endian, without a BOM": plain.encode("utf-16-le"),
        "UTF-32": plain.encode("utf-32"),
        "UTF-7": plain.encode("utf-7"),
        "EBCDIC": plain.encode("cp500"),
        "Latin-1 comments": "# verlorene Schlüssel\n".encode("latin-1") + ALICE.encode(),
        "two names on a line": f"{ALICE} {BOB}\n".encode(),
        "two names and a comma": f"{ALICE},{BOB}\n".encode(),
        "in capitals": ALICE.upper().encode(),
        "a slash at the end": f"{ALICE}/".encode(),
        "in quotes": f'"{ALICE}"'.encode(),
        "a wide blank": f"\u3000{ALICE}".encode(),
        "a blank that does not break": f"{ALICE}\xa0".encode(),
        "a zero-width blank": f"{ALICE}\u200b".encode(),
        "lines that end with CR": f"{BOB}\r{ALICE}\r".encode(),
        "lines that end with CR LF": f"{BOB}\r\n{ALICE}\r\n".encode(),
        "a form feed": f"\f{ALICE}".encode(),
        "a line separator": f"{BOB}\u2028{ALICE}".encode(),
        "NUL": f"{ALICE}\0".encode(),
        "only the name": b"alice\n",
        "escaped": ALICE.replace("/", "%2F").encode(),
        "nothing": b"",
        "a lone newline": b"\n",
        "a table": f"identity;since\n{ALICE};2026\n".encode(),
    }


def _anew(node: Node) -> Said:
    """Put a sound list in place, let everybody in again, and withdraw alice by the command."""
    path, config = node.config.paths.pki / "withdrawn.txt", ("--config", node.config_path)
    path.write_text(f"{ALICE}\n{BOB}\n")
    for name in (ALICE, BOB):
        ddib("pki", "reinstate", name, *config)
    return ddib("pki", "withdraw", ALICE, *config)


def _domains(profile: Path) -> Said:
    return ddib("domains", "--profile", profile)


@attack(
    9,
    "`withdrawn.txt` in 27 forms on a running node, read again by `ddib reload`: a call of the withdrawn client",
    before="with a BOM, as UTF-16, or with two names on a line the client was accepted again",
    test="tests/trust/peers/test_withdrawn.py::test_a_damaged_list_withdraws_whom_it_withdrew_and_is_a_problem",
)
def running(folder: Path, result: Result) -> None:
    del folder
    pair = nodes.points()
    config = ("--config", pair.north.config_path)
    path = pair.north.config.paths.pki / "withdrawn.txt"
    result.add("alice is served before", _domains(pair.profile).code == 0)
    try:
        for what, content in damaged().items():
            withdrawn = _anew(pair.north)
            path.write_bytes(content)
            ddib("reload", *config)
            said, status = _domains(pair.profile), ddib("status", *config)
            listed = ddib("pki", "withdrawn", *config)
            loud = "withdrawn.txt" in status.text or ALICE in listed.text
            refused = withdrawn.code == 0 and said.code == 5
            result.add(f"{what}: alice is refused", refused, said.code, said.error)
            result.add(f"{what}: read, or said by status", loud, said=status.text[-120:])
        path.unlink(missing_ok=True)
        for what, done in {"a folder": path.mkdir, "a pipe": lambda: os.mkfifo(path), "a link to nowhere":
                           lambda: path.symlink_to("nowhere"), "gone": lambda: None}.items():  # fmt: skip
            withdrawn = _anew(pair.north)
            path.unlink()
            done()
            ddib("reload", *config)
            said = _domains(pair.profile)
            refused = withdrawn.code == 0 and said.code == 5
            result.add(f"{what}: alice is refused", refused, said.code, said.error)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    finally:
        _anew(pair.north)
        ddib("pki", "reinstate", ALICE, *config)
        ddib("reload", *config)
    wait_until(lambda: _domains(pair.profile).code == 0, seconds=10, what="alice served again")
    result.add("alice is served after `pki reinstate`", held=True)


@attack(
    9,
    "the same 27 forms before a start: `check`, and whom `ddib pki withdrawn` lists",
    before="started, and withdrew nobody",
    test="tests/trust/peers/test_withdrawn.py::test_a_damaged_list_stops_a_start",
)
def starting(folder: Path, result: Result) -> None:
    from benchmarks.trust.soundness.setups import checked
    from ddib_fed.models.catalogue import copy_shipped

    north = Node.create(folder / "north", "source", "north.example", "moons", pretrained=False)
    copy_shipped("moons", north.folder / "model")
    path = north.config.paths.pki / "withdrawn.txt"
    kept = north.config.paths.pki / "withdrawn.last"
    for what, content in damaged().items():
        kept.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        ddib("pki", "withdraw", ALICE, "--config", north.config_path)
        path.write_bytes(content)
        check = checked(north)
        listed = ddib("pki", "withdrawn", "--config", north.config_path)
        good = (check.code == 0 and ALICE in listed.out) or (
            check.code == 3 and "withdrawn.txt" in check.text
        )
        result.add(what, good and "Traceback" not in check.text, check.code, check.error)
