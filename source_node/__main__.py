"""`ddib-source-node` and `python -m source_node`: train | serve | check."""

from ddib_fed.terminal import importing


def main() -> None:
    with importing():
        from ddib_fed.node.command import node_command, run
    run(node_command("source"))


if __name__ == "__main__":
    main()
