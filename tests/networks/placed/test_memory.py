"""Settings of the C library's allocator, tested by their effect."""

from __future__ import annotations

import subprocess
import sys

import pytest

MANY_THREADS = """
import ctypes, sys, tempfile, threading
from ddib_fed.networks.placed.memory import share_heaps
if sys.argv[1] == "shared":
    assert share_heaps()
libc, barrier = ctypes.CDLL(None), threading.Barrier(12)
libc.malloc.restype = ctypes.c_void_p
def work():
    barrier.wait()
    held = [libc.malloc(1000) for _ in range(100)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
with tempfile.NamedTemporaryFile() as file:
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    assert libc.malloc_info(0, stream) == 0
    libc.fclose(stream)
    print(open(file.name).read().count("<heap nr="))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc has arenas")
def test_threads_share_two_heaps_once_told() -> None:
    """And had one each before, so that the count means something."""

    def heaps(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MANY_THREADS, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert heaps("shared") <= 2 < heaps("plain")
