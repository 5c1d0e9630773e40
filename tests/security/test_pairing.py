"""Pairing: two sides with a code admit each other; nobody else is admitted, whatever is between them."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from spake2 import SPAKE2_A, SPAKE2_B

from ddib_fed import errors
from ddib_fed.security import pairing
from ddib_fed.security.pairing import MAGIC, MAX_FRAME, PairedPeer, dial, listen, new_code, parse_code
from ddib_fed.security.peers import Peer
from tests.cli.client.answers import listening
from tests.node.institutions import Institution

CODE, OTHER = "482-173-063", "111-222-335"


@dataclass
class Side:
    """A node that may refuse, and remembers whom it admitted."""

    peer: Peer
    refuses: errors.DdibError | None = None
    admitted: list[str] = field(default_factory=list)

    @property
    def own(self) -> bytes:
        return self.peer.to_bytes()

    def judge(self, other: Peer) -> None:
        if self.refuses is not None:
            raise self.refuses

    def admit(self, other: Peer) -> None:
        self.admitted.append(other.institution)


class Waiting:
    """South's side, listening on a thread."""

    def __init__(self, south: Side, *, life_s: float = 20.0) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.strangers: list[str] = []
        self._pool = ThreadPoolExecutor(1)

        def run() -> PairedPeer:
            with listener:
                return listen(listener, CODE, south, life_s=life_s, on_stranger=self._note)

        self.result: Future[PairedPeer] = self._pool.submit(run)

    def _note(self, _host: str, why: str) -> None:
        self.strangers.append(why)

    def settle(self) -> None:
        """Wait until one connection has ended."""
        until = time.monotonic() + 60
        while not (self.strangers or self.result.done()):
            assert time.monotonic() < until
            threading.Event().wait(0.01)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


@pytest.fixture
def north(tmp_path: Path) -> Side:
    return Side(Institution("north.example", tmp_path / "north").peer())


@pytest.fixture
def south(tmp_path: Path) -> Side:
    return Side(Institution("south.example", tmp_path / "south").peer())


@pytest.fixture
def waiting(south: Side) -> Iterator[Waiting]:
    made = Waiting(south)
    yield made
    made.close()


def test_a_side_that_keeps_sending_is_left_in_time() -> None:
    """The limit is of the whole exchange, not of each piece of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line, done = pairing._Line(ours, 0.3), threading.Event()

        def act() -> None:
            raise errors.InputError("no")

        def drip() -> None:
            with suppress(OSError):
                while not done.wait(0.001):
                    theirs.sendall(b"\x00\x00\x00\x00")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(errors.InputError):
                # It waits until the other side is gone, which it never is, or its time is up.
                line.tell(act)
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("place", range(9))
def test_every_single_wrong_digit_is_found(place: int) -> None:
    digits = new_code().replace("-", "")
    for other in set("0123456789") - {digits[place]}:
        with pytest.raises(errors.UsageError, match="is wrong"):
            parse_code(digits[:place] + other + digits[place + 1 :])


def end(waiting: Waiting, error: type[errors.DdibError]) -> errors.DdibError:
    caught = waiting.result.exception(timeout=60)
    assert isinstance(caught, error), caught
    return caught


def test_both_sides_admit_each_other(north: Side, south: Side, waiting: Waiting) -> None:
    there, here = dial(waiting.address, CODE, north), waiting.result.result(20)
    assert (there.other, there.mutual) == (south.peer, True)
    assert (here.other, here.mutual) == (north.peer, True)
    assert (north.admitted, south.admitted) == (["south.example"], ["north.example"])


def test_another_code_admits_nobody_and_uses_the_code_up(north: Side, south: Side, waiting: Waiting) -> None:
    with pytest.raises(errors.Unauthenticated, match="another code"):
        dial(waiting.address, OTHER, north)
    assert "used up" in end(waiting, errors.Unauthenticated).detail
    with pytest.raises(errors.PeerUnreachable) as caught:
        dial(waiting.address, CODE, north)
    assert "ddib pair --listen" in caught.value.hint
    assert north.admitted == south.admitted == []


def test_a_code_expires(north: Side, south: Side) -> None:
    waiting = Waiting(south, life_s=0.05)
    assert "expired" in end(waiting, errors.DeadlineExceeded).detail
    waiting.close()
    with pytest.raises(errors.PeerUnreachable):
        dial(waiting.address, CODE, north)


@pytest.mark.parametrize("who", ["north", "south"])
def test_what_one_side_refuses_neither_admits(north: Side, south: Side, waiting: Waiting, who: str) -> None:
    """Before anybody is admitted both files are judged; the other side hears why, escaped."""
    (north if who == "north" else south).refuses = errors.PolicyDenied("its name is \x1b[31mred")
    with pytest.raises(errors.PolicyDenied) as caught:
        dial(waiting.address, CODE, north)
    told = end(waiting, errors.PolicyDenied)
    heard = told if who == "north" else caught.value
    assert "refuses this node: its name is \\x1b[31mred" in heard.detail
    assert north.admitted == south.admitted == []


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


FRAMES = ["SPAKE2", "proof", "file", "judgement", "admission"]


@pytest.mark.parametrize("direction", ["forth", "back"])
@pytest.mark.parametrize("number", range(5), ids=FRAMES)
def test_nobody_is_admitted_by_whom_a_changed_frame_reaches(north, south, waiting, direction, number):
    """One bit of any frame. Nobody at all is admitted before both have judged; afterwards no side calls it mutual."""

    def change(way: str, at: int, data: bytes) -> bytes:
        return bytes([*data[:-1], data[-1] ^ 1]) if (way, at) == (direction, number) else data

    with listening(relay(waiting.address, change)) as between, suppress(errors.DdibError):
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


@pytest.mark.parametrize("who", ["guesses", "sends the proof back"])
def test_whoever_answers_in_place_of_the_listener_has_one_guess(north: Side, who: str) -> None:
    """A wrong guess ends the dialler, whose proof fits the right code alone; sent back it proves nothing."""
    heard: list[bytes] = []

    def impostor(connection: socket.socket) -> None:
        state = SPAKE2_B(OTHER.encode(), idA=b"ddib pair: dialler", idB=b"ddib pair: listener")
        message = state.start()
        theirs = read(connection, len(MAGIC) + 4 + 33)[-33:]
        connection.sendall(MAGIC + len(message).to_bytes(4, "big") + message)
        heard.append(proof := read(connection, 4 + 32)[4:])
        keys = pairing._keys(state.finish(theirs), "listener", message, theirs)
        assert proof != keys.other_proof
        connection.sendall((32).to_bytes(4, "big") + (keys.own_proof if who == "guesses" else proof))

    with listening(impostor) as address, pytest.raises(errors.Unauthenticated, match="another code"):
        dial(address, CODE, north)
    assert len(heard) == 1
    assert north.admitted == []


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n", MAGIC + b"\x00\x00\x00\x21" + b"A" * 33,
        MAGIC + (MAX_FRAME + 1).to_bytes(4, "big"), b"ddib-pair/9\n",
    ],
    ids=["HTTP", "no point of the curve", "a long frame", "another release"],
)  # fmt: skip
def test_connections_without_a_code_use_nothing_up(north, south, waiting, sent):
    """A scan of ports cannot stop two operators; the listener tells its own of it."""
    host, port = waiting.address.split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(sent)
    dial(waiting.address, CODE, north)
    assert waiting.result.result(20).mutual
    assert len(waiting.strangers) == 1
    assert south.admitted == ["north.example"]


def test_a_message_without_a_proof_tests_no_code(north: Side, waiting: Waiting) -> None:
    """Whoever leaves before the proof has learned nothing: the listener shows its own only after it."""
    host, port = waiting.address.split(":")
    message = SPAKE2_A(OTHER.encode()).start()
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(MAGIC + len(message).to_bytes(4, "big") + message)
        answer = b""
        while len(answer) < len(MAGIC) + 4 + len(message):
            answer += stranger.recv(100)
        stranger.settimeout(0.1)
        with pytest.raises(TimeoutError):
            stranger.recv(1)
    dial(waiting.address, CODE, north)
    assert waiting.result.result(20).mutual
