"""What the container and the systemd unit start: a node of any role."""

from ddib_fed.terminal import importing

if __name__ == "__main__":
    with importing():
        from ddib_fed.node.command import node_command, run
    run(node_command(None))
