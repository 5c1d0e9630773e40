"""Runs one job's items through encode, the peer and (for a cycle) back, stage beside stage.

The encoder fills a queue of two latents, gRPC empties it, the caller's thread reads what comes back, and a worker
decodes returned latents: memory holds a handful of items whatever the job's size.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from ddib_fed.data.points import parse_npy, to_npy
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.errors import DdibError, InputError, LatentNotGaussian
from ddib_fed.evaluation.metrics import CycleError, cycle_error
from ddib_fed.node.batching import Control
from ddib_fed.node.events import EventHub
from ddib_fed.node.job_records import PENDING_ITEMS, ItemState, JobState, Part
from ddib_fed.node.jobs import Item, Job, JobStore
from ddib_fed.node.role import NodeContext
from ddib_fed.node.settings import solver_settings
from ddib_fed.wire.contract import Contract
from ddib_fed.wire.latent import ApprovedLatent, Latent, approve
from source_node.remote import Decoded, Progress, Remote, Remotes

# Latents that wait for the wire; the one being encoded and the one being sent come on top.
QUEUED_LATENTS = 2
# How often a blocked stage looks whether it should still wait.
POLL_S = 0.2


class Pipeline:
    """One job's way; `run` may be called again for what an interruption left."""

    def __init__(
        self,
        node: NodeContext,
        store: JobStore,
        events: EventHub,
        remotes: Remotes,
        job: Job,
        control: Control,
    ) -> None:
        self._node = node
        self._engine = node.running_engine
        self._store = store
        self._events = events
        self._remotes = remotes
        self._job = job
        self._control = control
        self._settings = solver_settings(job.spec.solver)
        self._sent: dict[int, dict[str, Any]] = {}

    def run(self, items: Sequence[Item]) -> None:
        """Take the items as far as they go.

        Raises:
            DdibError: The job cannot go on now (UnavailableError and the like: try again) or at all.
        """
        spec = self._job.spec
        remote = self._remotes.get(spec.target_institution)
        contract = remote.negotiate(self._node.side(), spec.target_domain, self._control)
        batch = contract.limits.max_items_per_stream
        for start in range(0, len(items), batch):
            self._stream(remote, contract, items[start : start + batch])

    def _stream(self, remote: Remote, contract: Contract, items: Sequence[Item]) -> None:
        """One Decode call; an item that the peer refuses is failed, and the rest goes on in another call."""
        left = list(items)
        while left:
            try:
                self._one_call(remote, contract, left)
            except (InputError, LatentNotGaussian) as error:
                number = error.facts.get("item", "")
                refused = [item for item in left if str(item.index) == number]
                if not refused:
                    raise
                self._fail_item(refused[0].index, error)
            else:
                return
            done = {i.index for i in self._store.get(self._job.job_id).items if i.state not in PENDING_ITEMS}
            left = [item for item in left if item.index not in done]

    def _one_call(self, remote: Remote, contract: Contract, items: Sequence[Item]) -> None:
        spec = self._job.spec
        outgoing = _Outgoing(self._control)
        call = remote.decode(
            contract,
            request_id=self._job.job_id,
            solver=self._settings,
            round_trip=spec.cycle,
            items=len(items),
            latents=iter(outgoing),
            control=self._control,
        )
        encoder = _Encoder(
            lambda: self._encode_all(items, contract, outgoing), outgoing, on_error=call.cancel
        )
        returns: list[Future[None]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="return") as worker:
            try:
                encoder.start()
                for answer in call:
                    if isinstance(answer, Progress):
                        self._step(answer.item, answer.stage)(answer.step, answer.steps)
                    else:
                        returns.append(worker.submit(self._receive, answer, contract))
                        _raise_first_done(returns)
            except DdibError:
                # What the encoder met is the cause; the call's own error only follows from it.
                encoder.reraise()
                self._control.check()
                raise
            finally:
                encoder.stop()
                call.cancel()
            for future in returns:
                future.result()
        encoder.reraise()

    # Encode

    def _encode_all(self, items: Sequence[Item], contract: Contract, outgoing: _Outgoing) -> None:
        for item in items:
            outgoing.check()
            try:
                approved = self._encode(item, contract)
            except (InputError, LatentNotGaussian) as error:
                self._fail_item(item.index, error)
                continue
            outgoing.put(approved)
        outgoing.put(None)

    def _encode(self, item: Item, contract: Contract) -> ApprovedLatent:
        """The item's latent: the stored one after an interruption, else a new one, stored before it is sent."""
        job_id = self._job.job_id
        if item.state == ItemState.ENCODED:
            record = dict(item.provenance)
            statistics = LatentStatistics(**record["latent"])
            latent = Latent.from_bytes(
                self._store.read_part(job_id, item.index, Part.ENCODED), self._engine.sample_shape
            )
        else:
            samples = self._input(item)
            encoded = self._engine.encode(
                samples, self._settings, control=self._control, on_step=self._step(item.index, "encode")
            )
            latent, statistics = encoded.latent, encoded.statistics
            record = self._record(item, statistics, encoded.seconds, latent, contract)
            self._store.put_part(job_id, item.index, Part.ENCODED, latent.to_bytes())
            if self._job.spec.keep_latent:
                self._store.put_part(job_id, item.index, Part.LATENT, to_npy(latent.data))
            self._store.advance(job_id, item.index, ItemState.ENCODED, record)
            self._observe("encode", encoded.seconds, len(samples))
        self._sent[item.index] = record
        approved = approve(latent, contract, statistics, item=item.index)
        self._node.audit.write(
            "latent_sent",
            job=job_id,
            item=item.index,
            peer=contract.target.institution,
            latent=latent.sha256.hex(),
            contract=contract.digest.hex(),
        )
        self._node.metrics.latent_bytes.labels("out").inc(approved.size_bytes)
        return approved

    def _input(self, item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
        limits = self._node.config.limits
        return parse_npy(
            self._store.read_input(self._job.job_id, item.index),
            max_bytes=limits.max_item_bytes,
            max_points=limits.max_points_per_item,
            dim=self._engine.sample_shape[0],
        )

    def _record(
        self, item: Item, statistics: LatentStatistics, seconds: float, latent: Latent, contract: Contract
    ) -> dict[str, Any]:
        """What will be written beside the result; grows as the item goes on."""
        return {
            "source_institution": contract.source.institution,
            "source_domain": contract.source.domain,
            "target_institution": contract.target.institution,
            "target_domain": contract.target.domain,
            "contract_sha256": contract.digest.hex(),
            "source_model_sha256": contract.source.model_sha256.hex(),
            "target_model_sha256": contract.target.model_sha256.hex(),
            "input_sha256": item.sha256.hex(),
            "latent_sha256": latent.sha256.hex(),
            "soften_sigma": contract.source.soften_sigma,
            "latent": asdict(statistics),
            "samples": int(latent.data.shape[0]),
            "seconds": {"encode": seconds},
            "wire_bytes": 0,
            "encoded_at": time.time(),
        }

    # What comes back

    def _receive(self, answer: Decoded, contract: Contract) -> None:
        """Store a translation, and close the cycle where one was asked for."""
        job_id = self._job.job_id
        record = self._sent[answer.item]
        parse_npy(
            answer.file,
            max_bytes=self._node.config.limits.max_item_bytes,
            max_points=self._node.config.limits.max_points_per_item,
            dim=contract.target.sample_shape[0],
        )
        self._store.put_part(job_id, answer.item, Part.TRANSLATION, answer.file)
        crossed = answer.sent_bytes + len(answer.file)
        record["seconds"]["remote"] = answer.seconds
        if answer.round_trip is not None:
            crossed += answer.round_trip.size_bytes
            record["cycle"] = dict(self._close_cycle(answer.item, answer.round_trip, record))
        record["wire_bytes"] = crossed
        self._store.advance(job_id, answer.item, ItemState.DECODED, record)
        self._node.metrics.items.labels("decode", "ok").inc()
        self._publish(answer.item, "done")

    def _close_cycle(self, index: int, latent: Latent, record: dict[str, Any]) -> CycleError:
        """Decode the translation's latent with the own model, keep it, and measure how far it is from the input."""
        decoded = self._engine.decode(
            latent, self._settings, control=self._control, on_step=self._step(index, "return")
        )
        self._store.put_part(self._job.job_id, index, Part.RETURNED, to_npy(decoded.samples))
        record["seconds"]["return"] = decoded.seconds
        self._observe("return", decoded.seconds, len(decoded.samples))
        item = next(item for item in self._store.get(self._job.job_id).items if item.index == index)
        return cycle_error(self._engine.normalise(self._input(item)), decoded.normalised)

    # Telling

    def _fail_item(self, index: int, error: DdibError) -> None:
        from source_node.runner import error_record

        self._store.fail_item(self._job.job_id, index, error_record(error))
        self._node.metrics.items.labels("encode", "failed").inc()
        self._publish(index, "failed", reason=error.reason)

    def _observe(self, stage: str, seconds: float, samples: int) -> None:
        self._node.metrics.seconds.labels(stage).observe(seconds)
        self._node.metrics.samples.labels(stage).inc(samples)

    def _step(self, index: int, stage: str) -> Callable[[int, int], None]:
        def on_step(step: int, steps: int) -> None:
            self._events.publish(
                self._job.job_id, state=JobState.RUNNING, item=index, stage=stage, step=step, steps=steps
            )

        return on_step

    def _publish(self, index: int, stage: str, *, reason: str = "") -> None:
        items = self._store.get(self._job.job_id).items
        done = sum(item.state not in PENDING_ITEMS for item in items)
        self._events.publish(
            self._job.job_id,
            state=JobState.RUNNING,
            item=index,
            stage=stage,
            reason=reason,
            items_done=done,
            items=len(items),
        )


class _Encoder:
    """The encoding stage on a thread of its own; its error is kept for whoever runs the pipeline."""

    def __init__(
        self, work: Callable[[], None], outgoing: _Outgoing, *, on_error: Callable[[], None]
    ) -> None:
        self._work = work
        self._outgoing = outgoing
        self._on_error = on_error
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `reraise` on the pipeline's thread
            self._error = error
            self._on_error()

    def reraise(self) -> None:
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """No more latents are wanted; the item in hand is finished and stored first."""
        self._outgoing.stop()
        self._thread.join()


class _Stopped(Exception):  # noqa: N818 - a signal between two threads of this module
    """The call ended before the encoder did."""


class _Outgoing:
    """Latents between the encoder and gRPC: bounded, and left by both when the call is over."""

    def __init__(self, control: Control) -> None:
        self._queue: queue.Queue[ApprovedLatent | None] = queue.Queue(QUEUED_LATENTS)
        self._control = control
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def check(self) -> None:
        self._control.check()
        if self._stopped.is_set():
            raise _Stopped

    def put(self, latent: ApprovedLatent | None) -> None:
        while True:
            self.check()
            try:
                self._queue.put(latent, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[ApprovedLatent]:
        while not (self._control.cancelled or self._stopped.is_set()):
            try:
                latent = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if latent is None:
                return
            yield latent


def _raise_first_done(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        if future.done():
            future.result()
