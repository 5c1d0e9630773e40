"""The warm models of a running node: another becomes active while work on the one before is finished."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

from ddib_fed.bridge.serving import ServingParty
from ddib_fed.errors import ConfigError, DdibError, StateConflict
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model.hosted import open_engine
from ddib_fed.node.model.library import choose, configured_digest, installed, place_of
from ddib_fed.node.role import NodeContext, RoleService

log = logging.getLogger(__name__)


class Models:
    """Switches models, and closes those that nothing needs any more.

    Args:
        node: Whose models.
        roles: Ask them which models accepted work began with.
    """

    def __init__(self, node: NodeContext, roles: Sequence[RoleService]) -> None:
        self._node = node
        self._roles = roles
        self._switching = threading.Lock()

    def activate(self, digest: str) -> str:
        """Serve a model of this node from now on.

        It is loaded and warm, and the choice on the disk, before anything changes for those who call.

        Args:
            digest: Of the bundle, 64 hexadecimal digits.

        Returns:
            The digest of the model that was active.

        Raises:
            StateConflict: Another switch is under way, or the model is of other samples, which accepted jobs are not.
            NotReady: No model is loaded yet.
            DdibError: It cannot be loaded.
        """
        if not self._switching.acquire(blocking=False):
            raise StateConflict("another model is being activated", hint="ddib status")
        try:
            before = self._node.active_digest
            if digest != before:
                self._switch(digest)
            return before
        finally:
            self._switching.release()

    def _switch(self, digest: str) -> None:
        before = self._node.running_engine
        engine = self._open(digest)
        try:
            _check_alike(before, engine)
            loaded = self._node.prepare(engine)
            self._node.audit.write("model_activated", sha256=digest, before=before.model.bundle.digest)
            choose(self._node.config, digest)
            self._node.make_active(loaded)
        except BaseException:
            if not self._node.is_warm(digest):
                engine.close()
            raise
        log.info("serving %s, no longer %s", digest[:12], before.model.bundle.digest[:12])

    def _open(self, digest: str) -> ServingParty:
        """The model, warm: one that is still loaded for earlier work, or from its folder."""
        with suppress(DdibError), self._node.serving(digest) as node:
            return node.running_engine
        config = self._node.config
        engine = open_engine(config, place=place_of(config, digest))
        if engine.model.bundle.digest != digest:
            engine.close()
            raise ConfigError(f"the model installed as {digest[:12]} is {engine.model.bundle.digest[:12]}")
        return engine

    def load_needed(self) -> None:
        """At start: load the models with which accepted jobs began, as far as they are there."""
        for digest in self._needed():
            if self._node.is_warm(digest) or not _has(self._node.config, digest):
                continue
            try:
                self._node.keep_warm(self._open(digest))
                log.info("loaded %s as well: accepted jobs began with it", digest[:12])
            except DdibError as error:
                log.warning(
                    "the model %s cannot be loaded, its jobs begin again: %s", digest[:12], error.detail
                )

    def retire(self) -> None:
        """Close the models that are no longer active, in use, or needed."""
        if len(self._node.all_models()) < 2:
            return  # as nearly always; who needs which is not asked
        for engine in self._node.retire(self._needed()):
            log.info("closed %s: nothing needs it any more", engine.model.bundle.digest[:12])
            engine.close()

    def close(self) -> None:
        """Close all."""
        for engine in self._node.all_models():
            engine.close()

    def _needed(self) -> frozenset[str]:
        return frozenset(digest for role in self._roles for digest in role.models_needed())


def _has(config: NodeConfig, digest: str) -> bool:
    return digest == configured_digest(config) or digest in installed(config)


def _check_alike(before: ServingParty, after: ServingParty) -> None:
    """Accepted jobs were checked against the model of before: another kind or size needs a drained node.

    Raises:
        StateConflict: It is of another.
    """
    own, other = before.model.manifest, after.model.manifest
    kinds = [(each.sample_kind, tuple(each.sample_shape), each.num_classes) for each in (own, other)]
    if kinds[0] != kinds[1]:
        raise StateConflict(
            f"the model is of samples {kinds[1]} (kind, shape, classes), and {kinds[0]} are served",
            hint="ddib drain, put the bundle at [model] bundle, and start the node",
        )
