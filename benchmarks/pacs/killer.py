"""Kills the parts of a site at random, and starts them again."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests

from benchmarks.pacs.site import Site

TRIES = 600
PARTS = ("receiver", "source node", "target node", "PACS")


class Killer(threading.Thread):
    def __init__(self, site: Site, draw: random.Random) -> None:
        super().__init__()
        self.draw, self.stop, self.counts = draw, threading.Event(), Counter[str]()
        parts = (site.receiver.kill, site.pair.source.kill, site.pair.target.kill, site.pacs.kill)
        starts = (site.start_receiver, site.pair.source.start, site.pair.target.start, site.pacs.start)
        self.parts: dict[str, tuple[Callable[[], Any], ...]] = dict(
            zip(PARTS, zip(parts, starts, strict=True), strict=True)
        )

    def run(self) -> None:
        while not self.stop.wait(self.draw.uniform(2.0, 6.0)):
            name = self.draw.choice(PARTS)
            kill, start = self.parts[name]
            self.counts[name] += 1
            kill()
            time.sleep(self.draw.uniform(0.2, 2.0))
            start()


def insist(attempt: Callable[[], bool]) -> None:
    """Try until it works."""
    for _ in range(TRIES):
        try:
            if attempt():
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise TimeoutError("a sender gave up")
