"""`python -m ddib_fed.node`: a node with every role that its node.toml lists, on one model and one port."""

from __future__ import annotations

from ddib_fed.terminal import importing

if __name__ == "__main__":
    with importing():
        from ddib_fed.node.command import node_command, run
    run(node_command(None))
