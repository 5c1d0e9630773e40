"""Opens the bundle that node.toml names, and refuses one that the node must not serve."""

from __future__ import annotations

from ddib_fed.errors import BundleInvalid, ConfigError
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.node.config import NodeConfig
from ddib_fed.wire.contract import HIGHEST_TERMINAL_LAMBDA


def load_hosted(config: NodeConfig) -> Bundle:
    """The verified bundle at the configured place.

    Raises:
        ModelNotFound: There is none.
        BundleInvalid: It fails its checks, or no peer could agree on a contract with it.
        ConfigError: It is of another domain than node.toml says: peers would be sent what they did not ask for.
    """
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
    return bundle
