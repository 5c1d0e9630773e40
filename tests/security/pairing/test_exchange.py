"""Two sides with a code admit each other; nobody else is admitted, whatever is between them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from spake2 import SPAKE2_B

from ddib_fed.errors import (
    DdibError,
    DeadlineExceeded,
    InputError,
    PeerUnreachable,
    PolicyDenied,
    Unauthenticated,
)
from ddib_fed.security import pairing
from ddib_fed.security.pairing import MAGIC, dial
from tests.cli.client.answers import listening
from tests.security.pairing.sides import CODE, OTHER, Side, Waiting


def end(waiting: Waiting, error: type[DdibError]) -> DdibError:
    caught = waiting.result.exception(timeout=20)
    assert isinstance(caught, error), caught
    return caught


def test_both_sides_admit_each_other(north: Side, south: Side, waiting: Waiting) -> None:
    """Each gets the other's file as it is, and knows that it is admitted there."""
    there, here = dial(waiting.address, CODE, north), waiting.result.result(20)
    assert (there.other, there.mutual) == (south.peer, True)
    assert (here.other, here.mutual) == (north.peer, True)
    assert (north.admitted, south.admitted) == (["south.example"], ["north.example"])


def test_another_code_admits_nobody_and_uses_the_code_up(north: Side, south: Side, waiting: Waiting) -> None:
    """One try: the right code comes too late."""
    with pytest.raises(Unauthenticated, match="another code"):
        dial(waiting.address, OTHER, north)
    assert "used up" in end(waiting, Unauthenticated).detail
    with pytest.raises(PeerUnreachable) as caught:
        dial(waiting.address, CODE, north)
    assert "ddib pair --listen" in caught.value.hint
    assert north.admitted == south.admitted == []


def test_a_code_expires(north: Side, south: Side) -> None:
    """Nobody is waited for longer."""
    waiting = Waiting(south, life_s=0.05)
    assert "expired" in end(waiting, DeadlineExceeded).detail
    waiting.close()
    with pytest.raises(PeerUnreachable):
        dial(waiting.address, CODE, north)


@pytest.mark.parametrize("who", ["north", "south"])
def test_what_one_side_refuses_neither_admits(north: Side, south: Side, waiting: Waiting, who: str) -> None:
    """Before anybody is admitted both files are judged; the other side hears why, escaped."""
    (north if who == "north" else south).refuses = PolicyDenied("its name is \x1b[31mred")
    with pytest.raises(PolicyDenied) as caught:
        dial(waiting.address, CODE, north)
    told = end(waiting, PolicyDenied)
    heard = told if who == "north" else caught.value
    assert "refuses this node: its name is \\x1b[31mred" in heard.detail
    assert north.admitted == south.admitted == []


@pytest.mark.parametrize("who", ["north", "south"])
def test_a_file_that_is_none_is_refused(north: Side, south: Side, waiting: Waiting, who: str) -> None:
    """Also from the side that has the code, which hears the fixed sentence and no more."""
    (north if who == "north" else south).file = b"{}"
    here = PolicyDenied if who == "north" else InputError
    with pytest.raises(here) as caught:
        dial(waiting.address, CODE, north)
    there = end(waiting, InputError if who == "north" else PolicyDenied)
    told, found = (caught.value, there) if who == "north" else (there, caught.value)
    assert "no peer file" in found.detail
    assert told.detail.endswith(f"refuses this node: {InputError.sentence} ({InputError.reason})")
    assert north.admitted == south.admitted == []


def test_a_dialler_that_cannot_write_leaves_the_listener_in_doubt(
    north: Side, south: Side, waiting: Waiting
) -> None:
    """The listener has admitted it by then, and says that it does not know of the other way."""
    north.fails = PolicyDenied("the disk is full")
    with pytest.raises(PolicyDenied):
        dial(waiting.address, CODE, north)
    assert not waiting.result.result(20).mutual
    assert south.admitted == ["north.example"]


# What stands between the two sides.

Change = Callable[[str, int, bytes], bytes]
HEAD = 4


def relay(to: str, change: Change) -> Callable[[socket.socket], None]:
    """Passes frames on; `change` gets direction, the frame's number, and what it carries."""

    def answer(connection: socket.socket) -> None:
        host, port = to.split(":")
        with socket.create_connection((host, int(port))) as onward:
            back = threading.Thread(target=pump, args=("back", onward, connection), daemon=True)
            back.start()
            pump("forth", connection, onward)
            back.join(5)

    def pump(direction: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError, EOFError):
            sink.sendall(read(source, len(MAGIC)))
            for number in range(100):
                head = read(source, HEAD)
                body = read(source, int.from_bytes(head, "big"))
                sink.sendall(head + change(direction, number, body))
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    return answer


def read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def test_a_relay_changes_nothing(north: Side, waiting: Waiting) -> None:
    """Such as a forwarded port: it sees neither code nor files."""
    seen: list[bytes] = []

    def look(direction: str, number: int, data: bytes) -> bytes:
        seen.append(data)
        return data

    with listening(relay(waiting.address, look)) as between:
        assert dial(between, CODE, north).mutual
    everything = b"".join(seen)
    assert waiting.result.result(20).mutual
    assert len(everything) > 1000
    assert b"example" not in everything
    assert b"CERTIFICATE" not in everything


FRAMES = ["SPAKE2", "proof", "file", "judgement", "admission"]


@pytest.mark.parametrize("direction", ["forth", "back"])
@pytest.mark.parametrize("number", range(5), ids=FRAMES)
def test_nobody_is_admitted_by_whom_a_changed_frame_reaches(
    north: Side, south: Side, waiting: Waiting, direction: str, number: int
) -> None:
    """One bit of any frame. Nobody at all is admitted before both have judged; afterwards no side calls it mutual."""

    def change(way: str, at: int, data: bytes) -> bytes:
        return bytes([*data[:-1], data[-1] ^ 1]) if (way, at) == (direction, number) else data

    with listening(relay(waiting.address, change)) as between, suppress(DdibError):
        dial(between, CODE, north)
    waiting.settle()
    # A message that is no point of the curve is a stranger's: the code is still good.
    if not waiting.strangers:
        result = waiting.result.exception(20)
        assert result is not None or not waiting.result.result().mutual
    if number < FRAMES.index("judgement") or (direction, number) == ("forth", 3):
        assert north.admitted == south.admitted == []
    elif direction == "back":
        assert north.admitted == []
    if not waiting.result.done():
        dial(waiting.address, CODE, north)


def test_whoever_answers_in_place_of_the_listener_has_one_guess(north: Side) -> None:
    """A wrong guess ends the dialler, and its proof fits no other code than the right one."""
    heard: list[bytes] = []

    def impostor(connection: socket.socket) -> None:
        state = SPAKE2_B(OTHER.encode(), idA=b"ddib pair: dialler", idB=b"ddib pair: listener")
        message = state.start()
        theirs = read(connection, len(MAGIC) + 4 + 33)[-33:]
        connection.sendall(MAGIC + len(message).to_bytes(4, "big") + message)
        proof = read(connection, 4 + 32)[4:]
        keys = pairing._keys(state.finish(theirs), "listener", message, theirs)
        heard.append(proof)
        assert proof != keys.other_proof
        connection.sendall((32).to_bytes(4, "big") + keys.own_proof)

    with listening(impostor) as address, pytest.raises(Unauthenticated, match="another code"):
        dial(address, CODE, north)
    assert len(heard) == 1
    assert north.admitted == []


def test_a_mirror_is_no_other_side(north: Side) -> None:
    """What the dialler sends, sent back to it."""

    def mirror(connection: socket.socket) -> None:
        while data := connection.recv(4096):
            connection.sendall(data)

    with listening(mirror) as address, pytest.raises(PeerUnreachable, match="SPAKE2"):
        dial(address, CODE, north)
    assert north.admitted == []


def test_the_diallers_own_proof_sent_back_proves_nothing(north: Side) -> None:
    """Each side proves the code in its own name, so whoever answers without the code cannot borrow the proof."""

    def parrot(connection: socket.socket) -> None:
        state = SPAKE2_B(OTHER.encode(), idA=b"ddib pair: dialler", idB=b"ddib pair: listener")
        message = state.start()
        read(connection, len(MAGIC) + 4 + 33)
        connection.sendall(MAGIC + len(message).to_bytes(4, "big") + message)
        connection.sendall(read(connection, 4 + 32))

    with listening(parrot) as address, pytest.raises(Unauthenticated, match="another code"):
        dial(address, CODE, north)
    assert north.admitted == []
