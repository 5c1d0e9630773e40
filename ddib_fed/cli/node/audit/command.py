"""`ddib audit`: its commands, of which `verify` and `anchors` are here."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import group
from ddib_fed.cli.node.audit.reading import export, show, tail
from ddib_fed.cli.output import outcome, print_json
from ddib_fed.errors import ChunkCorrupt, FileMissing
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.audit.reading import Verified
    from ddib_fed.trust.identity import Identity


@group()
def audit() -> None:
    """Read, follow, export and verify the node's audit log; exchange its ends with peers."""


for _command in (show, tail, export):
    audit.add_command(_command)


def _node(config_path: Path) -> tuple[NodeConfig, Identity]:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.identity import Identity

    config = NodeConfig.load(config_path)
    return config, Identity(config.node.institution, "node", config.node.name)


def _missing(path: Path) -> FileMissing:
    return FileMissing(f"there is no {path}", hint="a node writes it when it serves")


@audit.command(
    epilog="\b\nExamples:\n"
    "  ddib audit verify --config node.toml --head 3f5a...\n"
    "  ddib audit verify --config node.toml --anchor from-south.json"
)
@options.CONFIG
@click.option(
    "--head",
    metavar="DIGEST",
    help="A head noted earlier: the log must still contain the line with this digest.",
)
@click.option(
    "--anchor",
    "files",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What a peer noted of this log, from `ddib audit anchors` there: the log must still contain those lines.",
)
@options.FORMAT
def verify(config_path: Path, head: str | None, files: tuple[Path, ...], output_format: str) -> None:
    """Read the whole log, follow its chain, and print its head.

    The chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off, or that
    the file was rewritten: for that, pass a head that was kept elsewhere, or the anchors that a peer holds.
    """
    from ddib_fed.trust.audit import reading
    from ddib_fed.trust.audit.reading import read_anchors

    config, own = _node(config_path)
    path = config.paths.audit
    anchors = [read_anchors(file, of=own).by_line() for file in files]
    found = None
    # Each file by itself: two peers may have noted the same line, one of them wrongly.
    for held in anchors or [{}]:
        try:
            found = reading.verify(path, noted=head, anchors=held)
        except FileNotFoundError as error:
            raise _missing(path) from error
        if not found.ok:
            break
    assert found is not None  # there is at least one
    _show(path, found, output_format, checked=sum(map(len, anchors)))
    if not found.ok:
        where = "" if found.broken_line is None else f", line {found.broken_line}"
        raise ChunkCorrupt(
            f"{path}{where}: {found.problem}",
            hint="keep the file unchanged, and find out who could write to it",
        )


def _show(path: Path, found: Verified, output_format: str, *, checked: int) -> None:
    if output_format == "json":
        print_json({"path": path, "ok": found.ok, **dataclasses.asdict(found)})
        return
    say(f"lines  {found.lines}")
    say(f"head   {found.head}")
    if checked:
        say(f"anchors  {checked} lines that peers noted, {'all there' if found.ok else 'not all there'}")
    if found.torn_bytes:
        say(f"torn   {found.torn_bytes} bytes of a write interrupted by a crash")


@audit.command(epilog="\b\nExample:\n  ddib audit anchors --peer south.example --out for-south.json")
@options.CONFIG
@click.option(
    "--peer",
    "institution",
    required=True,
    metavar="INSTITUTION",
    help="Whose log they are of.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write them here; otherwise to stdout.",
)
@options.OUTCOME
def anchors(config_path: Path, institution: str, out: Path | None) -> None:
    """Write what this node noted of a peer's audit log, so that the peer can verify its log with it.

    With each latent and each translation the two nodes tell each other the ends of their logs. The file contains
    numbers of lines, digests and times. Ends that contradict each other show that the peer's log was rewritten.
    """
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.trust.audit.reading import AnchorFile, held_of, thinned

    config, own = _node(config_path)
    peer = peer_store(config).get(institution)
    try:
        held = held_of(config.paths.audit, institution)
    except FileNotFoundError as error:
        raise _missing(config.paths.audit) from error
    if not held.anchors:
        raise FileMissing(
            f"the audit log has no end of the log of {institution}",
            hint="it comes with each latent and translation, from nodes that speak protocol 1.5",
        )
    made = AnchorFile(of=peer.identity.uri, noted_by=own.uri, anchors=thinned(held.anchors))
    if out is None:
        print_json(made.model_dump(mode="json"))
    else:
        _write(out, made.to_bytes())
        say(f"wrote {out}: {len(held.anchors)} ends noted, the last with {held.anchors[-1].lines} lines")
        say(f"send it to {institution}, for: ddib audit verify --anchor {shlex.quote(out.name)}")
        outcome(written=out, of=peer.identity.uri, ends=len(held.anchors), last_line=held.anchors[-1].lines)
    if held.contradiction:
        raise ChunkCorrupt(
            f"the log of {institution} was rewritten or went back: {held.contradiction}",
            hint="ask its operator; keep this node's log, which shows it",
        )


def _write(path: Path, data: bytes) -> None:
    from ddib_fed.errors import AlreadyExists

    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists and is not overwritten", hint="choose another --out") from error
