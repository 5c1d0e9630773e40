"""Image translation between two institutions that share neither pictures nor weights (federated DDIB).

>>> import ddib_fed
>>> result = ddib_fed.translate("scan.png", "satellite", "relief", cycle=True)
>>> result[0].picture.save("relief.png")
"""

from typing import TYPE_CHECKING, Any

from ddib_fed.names import __version__ as __version__

if TYPE_CHECKING:
    from ddib_fed.api import Model, TranslatedSample, load, translate
    from ddib_fed.calibration.record import Calibration as Calibration
    from ddib_fed.calibration.record import Dial as Dial
    from ddib_fed.client.client import Client as Client
    from ddib_fed.client.dial import measure_dial as measure_dial
    from ddib_fed.client.profile import Profile as Profile
    from ddib_fed.errors import DdibError as DdibError
    from ddib_fed.node.operator import Node as Node
    from ddib_fed.training.calibrating import CalibrationRequest as CalibrationRequest
    from ddib_fed.training.calibrating import calibrate as calibrate

__all__ = [
    "Calibration",
    "CalibrationRequest",
    "Client",
    "DdibError",
    "Dial",
    "Model",
    "Node",
    "Profile",
    "TranslatedSample",
    "calibrate",
    "load",
    "measure_dial",
    "translate",
]

_HOMES = {
    "Calibration": "ddib_fed.calibration.record",
    "CalibrationRequest": "ddib_fed.training.calibrating",
    "Client": "ddib_fed.client.client",
    "DdibError": "ddib_fed.errors",
    "Dial": "ddib_fed.calibration.record",
    "Node": "ddib_fed.node.operator",
    "Profile": "ddib_fed.client.profile",
    "calibrate": "ddib_fed.training.calibrating",
    "measure_dial": "ddib_fed.client.dial",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "ddib_fed.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
