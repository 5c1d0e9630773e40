"""Image translation between two institutions that share neither pictures nor weights (federated DDIB).

>>> import ddib_fed
>>> result = ddib_fed.translate("scan.png", "satellite", "relief", cycle=True)
>>> result[0].picture.save("relief.png")
"""

from typing import TYPE_CHECKING, Any

from ddib_fed.names import __version__ as __version__

if TYPE_CHECKING:
    from ddib_fed.api import TranslatedSample as TranslatedSample
    from ddib_fed.api import translate as translate
    from ddib_fed.client.client import Client as Client
    from ddib_fed.engine.party import Party as Party
    from ddib_fed.errors import DdibError as DdibError
    from ddib_fed.figures import Figures as Figures
    from ddib_fed.figures import evaluate as evaluate
    from ddib_fed.importing import Imported as Imported
    from ddib_fed.importing import Importer as Importer
    from ddib_fed.importing import ImportOptions as ImportOptions
    from ddib_fed.model import Model as Model
    from ddib_fed.model import train as train
    from ddib_fed.record import Guidance as Guidance
    from ddib_fed.record import Settings as Settings
    from ddib_fed.rehearsal import Rehearsal as Rehearsal
    from ddib_fed.training.config import TrainConfig as TrainConfig

_HOMES = {
    "Client": "ddib_fed.client.client",
    "DdibError": "ddib_fed.errors",
    "Figures": "ddib_fed.figures",
    "Guidance": "ddib_fed.record",
    "Imported": "ddib_fed.importing",
    "Importer": "ddib_fed.importing",
    "ImportOptions": "ddib_fed.importing",
    "Model": "ddib_fed.model",
    "Party": "ddib_fed.engine.party",
    "Rehearsal": "ddib_fed.rehearsal",
    "Settings": "ddib_fed.record",
    "TrainConfig": "ddib_fed.training.config",
    "TranslatedSample": "ddib_fed.api",
    "evaluate": "ddib_fed.figures",
    "train": "ddib_fed.model",
    "translate": "ddib_fed.api",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names are there


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
