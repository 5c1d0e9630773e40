"""The model that a node hosts: its scene, its engine, its memory for decoding, and pictures on their way through it."""

import threading
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import Cancelled, ConfigError, ImageTooLarge, ImageUnreadable, ShapeMismatch
from ddib_fed.evaluation.samples import read_answer
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.role import MIB, DecodingMemory, load_hosted, rule_of_side
from ddib_fed.v1.common_pb2 import PictureTerms
from tests.e2e.harness import wait_until
from tests.node.picture_examples import SIZE, save_pictures_model
from tests.node.tiny_nodes import make_config, node_toml
from tests.protocol.examples import picture_side


def configured(folder: Path, scene: str) -> NodeConfig:
    """A node of scans of 16 x 16 with this scene; read, not made."""
    text = node_toml(domain="scans")
    assert '# scene = "512x512"' in text
    text = text.replace('# scene = "512x512"', f'scene = "{scene}"')
    (folder / "node.toml").write_text(text)
    save_pictures_model(folder / "model", "scans", seed=1)
    return NodeConfig.load(folder / "node.toml")


def test_a_scene_is_the_size_of_the_nodes_samples(tmp_path: Path) -> None:
    bundle = load_hosted(configured(tmp_path, "20x33"))
    assert (bundle.manifest.sample_shape, bundle.tile) == ((1, 20, 33), (16, 16))


@pytest.mark.parametrize(
    ("scene", "said"), [("20x15", "smaller than the model's pictures, 16"), ("20", "no size")]
)
def test_a_scene_that_cannot_be_is_refused_with_its_text(tmp_path: Path, scene: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        load_hosted(configured(tmp_path, scene))
    assert "scene" in refused.value.detail


def test_the_executor_ray_needs_an_address(tmp_path):
    with pytest.raises(ConfigError, match='"ray" needs ray_address'):
        make_config(tmp_path / "node", "north.example", "source", executor='"ray"')
    with pytest.raises(ConfigError):
        make_config(tmp_path / "other", "north.example", "source", ray_address='"head"')
    with pytest.raises(ConfigError, match="executor is one of inline, processes, ray"):
        make_config(tmp_path / "third", "north.example", "source", executor='"proceses"')


def test_many_at_once_stay_within_the_budget_and_all_are_served() -> None:
    """Each holds its file first and asks for more then, which could leave all of them waiting for one another."""
    memory, lock, most = DecodingMemory(90), threading.Lock(), 0

    def decode(client: str, size: int, cost: int) -> None:
        nonlocal most
        with memory.file(client, size, lambda: bytes(size), lambda _: cost) as content:
            assert len(content) == size
            with lock:
                most = max(most, memory.taken_bytes)

    threads = [threading.Thread(target=decode, args=(str(n % 9), 30, 10 * (n % 7))) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert 30 <= most <= 90 + 22
    assert memory.taken_bytes == 0


def test_what_is_over_the_whole_budget_is_refused_at_once() -> None:
    memory = DecodingMemory(10 * MIB)
    with pytest.raises(ImageTooLarge) as caught, memory.file("a", MIB, lambda: b"", lambda _: 20 * MIB):
        pass
    assert caught.value.facts == {"memory_mib": "21", "limit_mib": "10"}
    assert memory.taken_bytes == 0


class Asked:
    """Files that are decoded by threads of their own, in the order in which they get memory."""

    def __init__(self, memory: DecodingMemory) -> None:
        self._memory = memory
        self.order: list[str] = []
        self._go: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def ask(self, client: str, name: str, size: int, **options) -> None:
        """Returns when it is decoded, or waits."""
        before, go = self._memory.waiting, self._go.setdefault(name, threading.Event())

        def decode() -> None:
            try:
                with self._memory.work(client, size, **options):
                    self.order.append(name)
                    go.wait(20)
            except Cancelled:
                self.order.append(f"{name} ended")

        self._threads.append(threading.Thread(target=decode))
        self._threads[-1].start()
        wait_until(lambda: name in self.order or self._memory.waiting > before)

    def finish(self, *names: str) -> None:
        for name in names:
            self._go[name].set()

    def join(self) -> list[str]:
        for thread in self._threads:
            thread.join(20)
        return self.order


def test_a_large_file_is_not_overtaken_for_ever_and_small_ones_do_not_wait_for_it() -> None:
    asked = Asked(DecodingMemory(90, of_one=1))
    asked.ask("a", "first", 60)
    asked.ask("b", "large", 90)
    asked.ask("c", "less large", 40)  # would fit beside the one that is decoded
    asked.ask("d", "small", 20)
    asked.finish("small", "first", "large", "less large")
    assert asked.join() == ["first", "small", "large", "less large"]


def side(form: PictureFormat):
    """The rule of the other side's pictures."""
    return rule_of_side(
        picture_side(
            sample_shape=(1, SIZE, SIZE), picture=PictureTerms(low=form.low, high=form.high, bits=form.bits)
        )
    )


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (encode_png(np.zeros((SIZE, SIZE + 1, 1), np.uint8)), ImageTooLarge),
        (encode_png(np.zeros((SIZE, SIZE - 1, 1), np.uint8)), ShapeMismatch),
        (encode_png(np.zeros((SIZE, SIZE, 3), np.uint8)), ShapeMismatch),
        (encode_png(np.zeros((SIZE, SIZE, 1), np.uint16)), ShapeMismatch),
        (b"\xff\xd8\xff\xe0", ImageUnreadable),
        (b"", ImageUnreadable),
    ],
    ids=["larger", "smaller", "colour", "deeper", "a JPEG", "nothing"],
)
def test_an_answer_that_was_not_agreed_is_refused(content, error):
    with pytest.raises(error):
        read_answer(content, side(PictureFormat()))


def test_a_client_has_no_more_files_decoded_at_once_than_it_may() -> None:
    asked = Asked(DecodingMemory(90, of_one=2))
    for number in range(3):
        asked.ask("a", str(number), 5)
    assert sorted(asked.order) == ["0", "1"]
    asked.ask("b", "mine", 5)
    assert "mine" in asked.order
    asked.finish("0", "1", "2", "mine")
    assert "2" in asked.join()
