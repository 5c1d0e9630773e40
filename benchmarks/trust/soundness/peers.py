"""Fingerprints that differ, for peers that are known and for new ones."""

from __future__ import annotations

from pathlib import Path

from benchmarks.trust.soundness.attack import Result, attack, ddib
from ddib_fed.trust.certificates import certificate_pem
from tests.e2e.harness import Node
from tests.node.institutions import Institution
from tests.trust.peers.test_store import changed


def _wrong(right: str, of_another: str) -> dict[str, str]:
    """What might be read out instead."""
    flipped = right[:-1] + ("0" if right[-1] != "0" else "1")
    return {
        "another root's": of_another,
        "the last digit": flipped,
        "its first half": right[: len(right) // 2],
        "without its last byte": right[:-3],
        "its prefix alone": "SHA256:",
        "nothing": "",
        "a blank": " ",
        "a pattern": "SHA256:*",
        "with more behind": right + ":00",
        "twice": f"{right} {right}",
        "of another hash": right.replace("SHA256", "SHA1"),
        "zeros": "SHA256:" + ":".join(["00"] * 32),
        "other digits that look so": right.replace("0", "\u0660").replace("1", "\u0661"),
    }


@attack(
    8,
    "`ddib peer add --fingerprint WRONG` for a known peer, with --replace, for one of two roots, for a new peer",
    before="“admitted” for whoever is known: it returned before comparing",
    test="tests/trust/peers/test_store.py::test_a_fingerprint_that_is_given_is_compared_also_when_the_peer_is_known",
)
def known_peer(folder: Path, result: Result) -> None:
    north = Node.create(folder / "north", "source", "north.example", "moons", pretrained=False)
    known, attacker = (Institution("south.example", folder / name) for name in ("south", "attacker"))
    file, config = folder / "s.peer", ("--config", north.config_path)
    right = known.peer().fingerprint
    file.write_bytes(known.peer("south.example:7442").to_bytes())
    for what, wrong in _wrong(right, attacker.peer().fingerprint).items():
        said = ddib("peer", "add", file, "--fingerprint", wrong, *config)
        result.refused(f"new: {what}", said, codes=(2, 3, 5))
    added = ddib("peer", "add", file, "--fingerprint", right, *config)
    result.add("the right one is admitted", added.code == 0, added.code, added.error)
    before = {path.name: path.read_bytes() for path in north.config.paths.peers.iterdir()}
    for further in ((), ("--replace",)):
        for what, wrong in _wrong(right, attacker.peer().fingerprint).items():
            said = ddib("peer", "add", file, "--fingerprint", wrong, *further, *config)
            result.refused(f"known{' '.join(('', *further))}: {what}", said, codes=(2, 3, 5))
    both = [certificate_pem(root).decode() for root in (known.root, attacker.root)]
    file.write_bytes(changed(known.peer("south.example:7442"), roots=both))
    for what, wrong in {
        "of the known root alone": right,
        "of the new root alone": attacker.peer().fingerprint,
    }.items():
        said = ddib("peer", "add", file, "--fingerprint", wrong, *config)
        result.refused(f"two roots without --replace, {what}", said, codes=(2, 3, 5, 7))
    file.write_bytes(changed(known.peer("south.example:7442"), roots=both))
    said = ddib("peer", "add", file, "--fingerprint", right, "--replace", *config)
    result.refused("an attacker's root beside the known one, --replace", said, codes=(2, 3, 5))
    file.write_bytes(attacker.peer("south.example:7442").to_bytes())
    said = ddib("peer", "add", file, "--fingerprint", right, "--replace", *config)
    result.refused("the attacker's file with the genuine fingerprint, --replace", said, codes=(2, 3, 5))
    after = {path.name: path.read_bytes() for path in north.config.paths.peers.iterdir()}
    result.add("the entry is what it was", before == after)
