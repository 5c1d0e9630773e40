"""host:port: one strict grammar for files, peers and options."""

from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, InputError
from ddib_fed.node.config import ModelSection, NodeConfig, NodeSection, render_node_toml
from ddib_fed.protocol.addresses import split_address
from ddib_fed.security.peers import parse_peer
from tests.node.institutions import Institution, changed

GOOD = {
    "localhost:7441": ("localhost", 7441),
    "127.0.0.1:1": ("127.0.0.1", 1),
    "node-1.North.example:65535": ("node-1.North.example", 65535),
    "north.example.:7443": ("north.example.", 7443),
    "source_node:7443": ("source_node", 7443),
    "[::1]:7443": ("::1", 7443),
    "[2001:db8::a]:443": ("2001:db8::a", 443),
}
BAD = [
    "", ":7443", "host", "host:0", "host:65536", "host:07443", "host:+1", "host:\uff17443", "host:7443 ", "host:7443\n",
    "host\x1b]0;x\x07:7443", "host\u202e:1", "h\xf6st:1", "\ud800:1", "user@host:1", "https://host:1", "host:1/x",
    "[host]:1", "::1:7443", "[::1]", "[:::1]:1", "127.1:1", "2130706433:1", "0x7f.1:1", "256.0.0.1:1", "-host:1",
    "a..b:1", "*:7443", "a" * 64 + ":1", "a." * 127 + "a:1", "unix:1",
]  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), GOOD.items())
def test_an_address_has_a_host_and_a_port(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_what_is_no_address_is_refused_in_printable_words(text: str) -> None:
    """Nothing but what can be shown and dialled as it stands; the words of the refusal can be shown too."""
    with pytest.raises(ValueError, match="is not host:port") as refused:
        split_address(text)
    assert str(refused.value).isprintable()


def test_only_what_is_bound_may_leave_the_port_open() -> None:
    """0 is a free port for a socket, and nothing that anybody could dial."""
    assert split_address("127.0.0.1:0", bound=True) == ("127.0.0.1", 0)
    assert split_address("[fe80::1%eth0]:0", bound=True) == ("fe80::1%eth0", 0)
    with pytest.raises(ValueError, match="1 to 65535"):
        split_address("127.0.0.1:0")


def test_a_peer_file_holds_to_it(tmp_path: Path) -> None:
    peer = Institution("south.example", tmp_path / "south").peer()
    for address in (*BAD, "[fe80::1%eth0]:1"):
        with pytest.raises(InputError, match=r"south\.peer"):
            parse_peer(changed(peer, address=address), "south.peer")


ESC = "a\\u001b]8;;http://x\\u0007:1"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('listen = "127.0.0.1:0"', f'listen = "{ESC}"'),
        ('address = "localhost:7443"', f'address = "{ESC}"'),
        ('# listen = "127.0.0.1:9464"', f'listen = "{ESC}"'),
        ('# issuer = "node-1@issuer.north.example:7443"', f'issuer = "node-1@{ESC}"'),
        ('institution = "north.example"', 'institution = "north.example\\n"'),
    ],
)
def test_node_toml_holds_to_it(tmp_path: Path, old: str, new: str) -> None:
    """Each place that takes an address, and the names beside it, refuse control characters when the file is read."""
    node = NodeSection(institution="north.example", listen="127.0.0.1:0", address="localhost:7443")
    text = render_node_toml(node, ModelSection(domain="moons"))
    assert old in text
    (tmp_path / "node.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        NodeConfig.load(tmp_path / "node.toml")
    assert "\x1b" not in str(refused.value)
