"""Image translation between two institutions that share neither pictures nor weights (federated DDIB).

>>> import ddib_fed
>>> result = ddib_fed.translate("scan.png", "satellite", "relief", cycle=True)
>>> result[0].picture.save("relief.png")
"""

from typing import TYPE_CHECKING, Any

from ddib_fed.names import __version__ as __version__

if TYPE_CHECKING:
    from ddib_fed.api import Model, TranslatedSample, load, translate
    from ddib_fed.client.client import Client as Client
    from ddib_fed.errors import DdibError as DdibError

__all__ = ["Client", "DdibError", "Model", "TranslatedSample", "load", "translate"]

_HOMES = {"Client": "ddib_fed.client.client", "DdibError": "ddib_fed.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "ddib_fed.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
