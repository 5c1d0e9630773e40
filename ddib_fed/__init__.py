"""Image translation between two institutions that share neither pictures nor weights (federated DDIB)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddib_fed.client.client import Client as Client

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`ddib_fed.Client`, imported when asked for: `import ddib_fed` loads nothing."""
    if name == "Client":
        from ddib_fed.client.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
