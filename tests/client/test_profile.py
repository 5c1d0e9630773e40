"""client.toml: strict, found in the usual places, relative to itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddib_fed.client.profile import Profile, candidates, find_profile, render_client_toml
from ddib_fed.errors import ConfigError, FileMissing


def text(**changes: str) -> str:
    values = {
        "institution": "north.example",
        "name": "alice",
        "source_address": "localhost:7443",
        "source_identity": "node-1.north.example",
        "pki": "pki",
    }
    return render_client_toml(**(values | changes))


def test_the_template_is_accepted_and_paths_are_relative_to_it(tmp_path):
    """What `ddib init client` writes can be read, wherever one stands."""
    (tmp_path / "client.toml").write_text(text())
    profile = Profile.load(tmp_path / "client.toml")
    assert (profile.institution, profile.name) == ("north.example", "alice")
    assert profile.pki_folder == tmp_path / "pki"


def test_a_node_of_another_institution_is_refused(tmp_path):
    """A client talks to its own institution's node, or its pictures would go to a stranger."""
    (tmp_path / "client.toml").write_text(text(source_identity="node-1.south.example"))
    with pytest.raises(ConfigError, match=r"south\.example"):
        Profile.load(tmp_path / "client.toml")


def test_the_environment_names_the_only_place(tmp_path, monkeypatch):
    """DDIB_PROFILE wins over ./client.toml, and a wrong one is not passed over in silence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.toml").write_text(text())
    (tmp_path / "other.toml").write_text(text())
    assert find_profile({"DDIB_PROFILE": str(tmp_path / "other.toml")}) == tmp_path / "other.toml"
    with pytest.raises(FileMissing, match=r"gone\.toml"):
        find_profile({"DDIB_PROFILE": str(tmp_path / "gone.toml")})


def test_the_current_folder_comes_before_the_home(tmp_path, monkeypatch):
    """./client.toml, the first client of a node made here, then ~/.config/ddib/client.toml."""
    home = tmp_path / "config" / "ddib" / "client.toml"
    home.parent.mkdir(parents=True)
    home.write_text(text())
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert find_profile(environ) == home
    (here / "client").mkdir()
    (here / "client" / "client.toml").write_text(text())
    assert find_profile(environ).resolve() == here / "client" / "client.toml"
    (here / "client.toml").write_text(text())
    assert find_profile(environ).resolve() == here / "client.toml"


def test_the_page_of_commands_lists_every_key():
    """In docs/troubleshooting.md, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
    section = page.partition("## The client's profile")[2].partition("\n## ")[0]
    keys = " ".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE))
    assert set(re.findall(r"\w+", keys)) == set(Profile.model_fields)
    named = ("./client.toml", "./client/client.toml", "~/.config/ddib/client.toml")
    assert [Path(place).expanduser() for place in named] == list(candidates({}))
    assert all(f"`{place}`" in section for place in named)
