"""Nodes that are set up wrongly: `init` refuses, `check` finds what `serve` would die of, `serve` is no traceback."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.trust.soundness.attack import Result, Said, attack, ddib
from benchmarks.trust.soundness.nodes import served
from ddib_fed.node.command import node_command
from ddib_fed.node.command import run as run_group
from ddib_fed.trust import pki
from tests.e2e.harness import Node
from tests.node.tiny_nodes import save_model


def checked(node: Node) -> Said:
    """`ddib-source-node check`."""
    words, shown, errors = ["check", "--config", str(node.config_path)], io.StringIO(), io.StringIO()
    started, code = time.monotonic(), 0
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
        try:
            run_group(lambda **how: node_command("source")(words, **how))
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Said(code, shown.getvalue(), errors.getvalue(), time.monotonic() - started)


@attack(
    16,
    "`ddib init node` with domains, names, addresses and folders that peers or a start would refuse",
    before="took a domain that every peer refuses, wrote `localhost` into the peer file while listening on 0.0.0.0",
    test="tests/cli/node/test_init.py::test_a_domain_that_every_peer_would_refuse_is_refused_here",
)
def init(folder: Path, result: Result) -> None:
    usual = {"--institution": "north.example", "--role": "source", "--domain": "moons"}
    for name, changes in {
        "a domain with a blank": {"--domain": "my moons"}, "a domain with a slash": {"--domain": "a/b"},
        "a domain with a newline": {"--domain": "a\nb"}, "a domain of 300": {"--domain": "a" * 300},
        "a domain with an accent": {"--domain": "lünen"}, "no domain": {"--domain": ""},
        "a domain like an option": {"--domain": "-x"}, "a domain of another script": {"--domain": "mo\u043ens"},
        "everywhere without an address": {"--listen": "0.0.0.0:7443"}, "the same of IPv6": {"--listen": "[::]:7443"},
        "an address nobody dials": {"--address": "0.0.0.0:7443"}, "port 0": {"--address": "north.example:0"},
        "an IPv6 written as IPv4": {"--address": "[::ffff:0.0.0.0]:7443"}, "zero": {"--address": "0:7443"},
        "an institution in capitals": {"--institution": "North.Example"}, "one label": {"--institution": "north"},
        "an address as an institution": {"--institution": "10.0.0.1"}, "a wildcard": {"--institution": "*.example"},
        "a name with a dot": {"--name": "node.1"}, "a name with a slash": {"--name": "../x"}, "no name": {"--name": ""},
    }.items():  # fmt: skip
        out = folder / "n"
        words = [word for pair in {**usual, **changes}.items() for word in pair]
        result.refused(name, ddib("init", "node", *words, "--out", out), codes=(2, 3))
        if out.exists():
            result.add(f"{name}: something was written", held=False)
            out.rename(folder / f"left-{len(list(folder.iterdir()))}")
    writable = folder / "shared"
    writable.mkdir()
    writable.chmod(0o777)
    said = ddib("init", "node", *[w for pair in usual.items() for w in pair], "--out", writable)
    kept = said.code != 0 or (writable / "state").stat().st_mode & 0o077 == 0
    result.add("a folder in which everybody writes", kept, said.code, said.error)


def _edit(old: str, new: str) -> Callable[[Node], object]:
    return lambda node: node.edit(old, new)


def _written(name: str, content: bytes) -> Callable[[Node], object]:
    def write(node: Node) -> None:
        (node.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (node.folder / name).write_bytes(content)

    return write


def _linked(name: str, to: str) -> Callable[[Node], object]:
    def link(node: Node) -> None:
        path = node.folder / name
        if path.exists():
            path.rename(path.with_name(path.name + ".away"))
        path.symlink_to(to)

    return link


def _shared_state(node: Node) -> None:
    """The state is a link to a folder in which everybody may write."""
    (node.folder / "state").rename(node.folder / "elsewhere")
    (node.folder / "elsewhere").chmod(0o777)
    (node.folder / "state").symlink_to("elsewhere")


def _others_identity(node: Node) -> None:
    for name in ("leaf.pem", "leaf.key"):
        (node.config.paths.pki / name).unlink()
    pki.issue_to_folder(pki.load_authority(node.config.paths.pki), node.config.paths.pki, "node", "node-2")


def _shared_peers(node: Node) -> None:
    (node.folder / "state" / "peers").mkdir(exist_ok=True)
    (node.folder / "state" / "peers").chmod(0o777)


def _audit_folder(node: Node) -> None:
    node.config.paths.audit.unlink(missing_ok=True)
    node.config.paths.audit.mkdir()


WRONG: dict[str, Callable[[Node], object]] = {
    "state is a link to a shared folder": _shared_state,
    "state/pki of mode 0777": lambda n: (n.folder / "state" / "pki").chmod(0o777),
    "state/peers of mode 0777": _shared_peers,
    "ca.key of mode 0644": lambda n: (n.folder / "state" / "pki" / "ca.key").chmod(0o644),
    "leaf.key of mode 0640": lambda n: (n.folder / "state" / "pki" / "leaf.key").chmod(0o640),
    "a certificate of another node": _others_identity,
    "a manifest that is not JSON": _written("model/manifest.json", b"{"),
    "a manifest of NaN": _written("model/manifest.json", b'{"format": NaN}'),
    "an empty file of weights": _written("model/model.safetensors", b""),
    "weights with a header of 2^63 bytes": _written("model/model.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"),
    "a damaged gate.json": _written("model/gate.json", b'{"format": 1'),
    "a model that is a link to nowhere": _linked("model", "nowhere"),
    "a device with a number that is not there": _edit('# device = "auto"', 'device = "cuda:99"'),
    "no threads": _edit("# threads = ", "threads = 0 # "),
    "a domain of its own": _edit('domain = "moons"  ', 'domain = "scans"  '),
    "its own port for the probes": lambda n: n.edit('# listen = "127.0.0.1:9464"', f'listen = "127.0.0.1:{n.port}"'),
    "probes on every interface": _edit('# listen = "127.0.0.1:9464"', 'listen = "0.0.0.0:9464"'),
    "a privileged address": _edit("127.0.0.1:", "192.0.2.1:"),
    "a policy that is not TOML": _edit("[policy]", "[policy]\nfile = "),
    "node.toml as UTF-16": lambda n: n.config_path.write_bytes(n.config_path.read_text().encode("utf-16")),
    "node.toml in a folder's place": lambda n: (n.config_path.unlink(), n.config_path.mkdir()),
    "a key twice": _edit("[limits]", "[limits]\n[limits]"),
    "a job database of text": _written("state/jobs.sqlite", b"not a database at all, but text" * 40),
    "a spool that is a file": _written("state/spool", b""),
    "an audit log that is a folder": _audit_folder,
    "a socket's place taken by a folder": lambda n: n.config.paths.admin_socket.mkdir(),
    "a softening key of three bytes": _written("state/pki/softening.key", b"abc"),
    "a list of quotas that is none": _edit("[policy]", '[policy]\nquotas = "all"'),
}  # fmt: skip


@attack(
    16,
    "28 broken set-ups: `check` and `serve` agree, and neither is a traceback",
    before="`check` passed a bundle of another domain, a device that does not exist, a state folder of mode 0777",
    test="tests/node/running/test_startup.py::test_check_finds_what_serve_ends_with",
)
def start(folder: Path, result: Result) -> None:
    for number, (what, spoil) in enumerate(WRONG.items()):
        node = Node.create(folder / str(number), "source", "north.example", "moons", pretrained=False)
        save_model(node.config)
        spoil(node)
        check, log = checked(node), node.folder / "log.txt"
        code = served(node)
        text = log.read_text() if log.exists() else ""
        agree = (check.code == 0) == (code is None)
        plain = (
            "Traceback" not in check.text + text and check.code in {0, 2, 3, 6} and code not in {1, -6, -11}
        )
        result.add(
            what,
            agree and plain,
            check.code,
            f"check {check.code}, serve {code}: {_why(check)} {text[-100:] if not agree or not plain else ''}",
        )


def _why(check: Said) -> str:
    """The first step that `check` found wrong."""
    lines = [line for line in check.out.splitlines() if " ok " not in line and "warning" not in line]
    return " ".join((lines[0] if lines else check.error).split())
