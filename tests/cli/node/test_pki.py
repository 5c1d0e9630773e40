"""`ddib pki` as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddib_fed.cli.init import make_node
from ddib_fed.cli.pki import pki
from ddib_fed.errors import AlreadyExists, Cancelled


def write_config(folder: Path, name: str = "node-1", institution: str = "north.example") -> Path:
    """A node.toml in a new folder."""
    make_node(folder, institution=institution, roles=("source",), domain="moons", name=name,
              listen="127.0.0.1:0", address="127.0.0.1:7443", with_ca=False)  # fmt: skip
    return folder / "node.toml"


def run(*arguments: object, answer: str | None = None) -> Result:
    """A command that must succeed; its error is raised otherwise."""
    result = CliRunner().invoke(pki, [str(a) for a in arguments], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The issuer's node.toml."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "one")
    assert "fingerprint  SHA256:" in run("init", "--config", config).output
    return config


def shown(*arguments: object) -> dict[str, object]:
    return json.loads(run("show", "--format", "json", *arguments).output)


def test_init_makes_the_root_and_the_nodes_certificate(one: Path) -> None:
    """And a second time refuses."""
    found = shown("--config", one)
    assert (found["identity"], found["role"], found["issuer"]) == (
        "spiffe://north.example/node/node-1",
        "node",
        True,
    )
    with pytest.raises(AlreadyExists):
        run("init", "--config", one)


def test_a_second_node_by_request_issue_install(one: Path, tmp_path: Path) -> None:
    """The documented way, with the commands' own file names."""
    two = write_config(tmp_path / "two", "node-2")
    said = run("request", "--config", two).output
    assert "ddib pki issue node-2.csr" in said
    run("issue", "node-2.csr", "--config", one, answer="y\n")
    run("install", "node-2.pem", "--config", two)
    assert shown("--config", two)["identity"] == "spiffe://north.example/node/node-2"
    assert shown("--config", two)["issuer"] is False


def test_signing_asks_first(one: Path, tmp_path: Path) -> None:
    """Who holds the key of a request becomes whom it names; `--yes` is for scripts."""
    two = write_config(tmp_path / "two", "node-2")
    run("request", "--config", two)
    with pytest.raises(Cancelled, match="nothing was signed"):
        run("issue", "node-2.csr", "--config", one, answer="n\n")
    assert not Path("node-2.pem").exists()
    run("issue", "node-2.csr", "--config", one, "--yes")
    assert Path("node-2.pem").exists()
