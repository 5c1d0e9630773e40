"""Opens the bundle named in node.toml and refuses one that the node must not serve."""

from __future__ import annotations

from typing import Any

import torch

from ddib_fed.bridge.engine.budget import Recipe
from ddib_fed.bridge.engine.executors import Pool, process_pool
from ddib_fed.bridge.engine.ray_actors import ray_pool
from ddib_fed.bridge.serving import ServingParty
from ddib_fed.errors import BundleInvalid, ConfigError, MemoryExhausted, SettingsInvalid
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.manifest import check_guide
from ddib_fed.names import size_from
from ddib_fed.node.config import NodeConfig
from ddib_fed.wire.contracts.contract import HIGHEST_TERMINAL_LAMBDA

TRIAL_ROWS, TRIAL_PIXELS = 2_048, 65_536
"""Sizes of calls where nobody looks which are best."""


def load_hosted(config: NodeConfig) -> Bundle:
    """The verified bundle that node.toml names."""
    place = config.paths.bundle
    bundle = load_bundle(place)
    expected, named = config.model.bundle_domain or config.model.domain, bundle.manifest.domain
    if named != expected:
        raise ConfigError(
            f"the bundle {place} is of the domain {named!a}, and {config.path} says {expected!a}",
            hint=f"put the model of {expected} there; or, where it is that model under another name, write "
            f'bundle_domain = "{named}" into [model] of {config.path}',
        )
    terminal = bundle.schedule.lambda_min
    if bundle.manifest.role == "generator" and terminal > HIGHEST_TERMINAL_LAMBDA:
        raise BundleInvalid(
            f"the schedule of {place} ends at lambda {terminal:.2f}, and each contract needs "
            f"{HIGHEST_TERMINAL_LAMBDA} or less",
            hint="train it with a schedule that ends in noise, e.g. the default one",
        )
    if config.model.scene is None:
        return bundle
    try:
        return bundle.of_scenes(*size_from(config.model.scene))
    except SettingsInvalid as error:
        raise ConfigError(
            f"scene = {config.model.scene!a} in [model] of {config.path} cannot be used: {error.detail}",
            hint=error.hint,
        ) from error


def load_classifier(config: NodeConfig, bundle: Bundle) -> Bundle | None:
    """The verified classifier that node.toml names for guiding the model; None where it names none."""
    place = config.paths.classifier
    if place is None:
        return None
    classifier = load_bundle(place)
    hint = (
        f"name another folder as [model] classifier in {config.path}, or leave it out; "
        "ddib model show FOLDER says what one is"
    )
    if classifier.manifest.role != "classifier":
        raise ConfigError(f"{place} is a {classifier.manifest.role}, not a classifier", hint=hint)
    try:
        check_guide(bundle.manifest, classifier.manifest)
    except SettingsInvalid as error:
        raise ConfigError(f"{place} cannot guide {config.paths.bundle}: {error.detail}", hint=hint) from error
    return classifier


def _address(config: NodeConfig) -> str:
    if not config.engine.ray_address:
        raise ConfigError(
            f'{config.path} says executor = "ray", and not where the cluster is',
            hint='ray_address = "HOST:6379" in [engine], the address of its head; "local" starts one on this machine',
        )
    return config.engine.ray_address


def open_engine(config: NodeConfig, *, trial: bool = False) -> ServingParty:
    """Load and warm up the model of a node, here or in its workers."""
    section = config.engine
    bundle = load_hosted(config)
    classifier = load_classifier(config, bundle)
    options: dict[str, Any] = {
        "device": section.device,
        "threads": section.threads,
        "dtype": section.dtype,
        "compiling": section.compile,
        "merge_rows": TRIAL_ROWS if trial else 0,
        "merge_pixels": section.merge_pixels or (TRIAL_PIXELS if trial else 0),
        "costs": None if trial else config.paths.costs,
    }
    try:
        if section.executor == "inline":
            return ServingParty(bundle, classifier=classifier, **options)
        recipe = Recipe(bundle, classifier, **options)
        if section.executor == "processes":
            pool: Pool = process_pool(recipe, workers=section.workers)
        else:
            pool = ray_pool(recipe, address=_address(config), workers=section.workers)
        return ServingParty(bundle, classifier=classifier, threads=section.threads, pool=pool)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MemoryExhausted(
            f"the model {config.paths.bundle} does not fit into the memory of {section.device}",
            hint="a smaller engine.merge_pixels, or another engine.device",
        ) from error
    except RuntimeError as error:  # what torch raises for an operation that a device or dtype lacks
        raise ConfigError(
            f"the model {config.paths.bundle} cannot run on engine.device = {section.device!a} in "
            f"engine.dtype = {section.dtype!a}: {str(error).partition(chr(10))[0]}",
            hint='engine.dtype = "float32", or another engine.device',
        ) from error
