"""A node whose disk is full says so until there is room again."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from ddib_fed.node.admin import AdminClient
from tests.e2e.harness import free_port
from tests.node.running.test_daemon import Running, ready
from tests.small_disks import small_disk
from tests.source_node.conftest import wait_until


def readyz(port: int) -> tuple[int, str]:
    """Status and text of the probe."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_a_node_is_not_ready_while_its_disk_is_full(tmp_path) -> None:
    """`ddib status` and /readyz name the folder; with room it serves again by itself."""
    with small_disk(tmp_path / "disk", 64) as disk:
        config = ready(disk.folder / "north", "north.example", "source")
        port = free_port()
        text = config.path.read_text()
        config.path.write_text(text.replace("[http]", f'[http]\nlisten = "127.0.0.1:{port}"', 1))
        config = type(config).load(config.path)
        running = Running(config).serving()
        try:
            client = AdminClient(config)
            disk.fill()
            wait_until(lambda: client.status().state.startswith("degraded: the disk of "))
            code, said = readyz(port)
            assert (code, str(disk.folder) in said) == (503, True)
            disk.free()
            wait_until(lambda: client.status().state == "serving")
            assert readyz(port)[0] == 200
        finally:
            assert running.end() == 0
