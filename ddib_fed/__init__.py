"""Image translation between two institutions that share neither pictures nor weights (federated DDIB).

>>> import ddib_fed
>>> request = ddib_fed.Request(cycle=True)
>>> for result in ddib_fed.translate("scan.png", "satellite", "relief", request):  # doctest: +SKIP
...     result.picture.save("relief.png")
"""

from typing import TYPE_CHECKING, Any

from ddib_fed.names import __version__ as __version__

if TYPE_CHECKING:
    from ddib_fed.api import Model as Model
    from ddib_fed.api import translate as translate
    from ddib_fed.calibration.record import Calibration as Calibration
    from ddib_fed.calibration.record import Dial as Dial
    from ddib_fed.client.client import Client as Client
    from ddib_fed.client.dial import measure_dial as measure_dial
    from ddib_fed.client.folder_run import Run as Run
    from ddib_fed.client.jobs import Event as Event
    from ddib_fed.client.jobs import Job as Job
    from ddib_fed.client.jobs import Progress as Progress
    from ddib_fed.client.jobs import Request as Request
    from ddib_fed.client.profile import Profile as Profile
    from ddib_fed.client.results import Delivered as Delivered
    from ddib_fed.client.results import Translated as Translated
    from ddib_fed.errors import DdibError as DdibError
    from ddib_fed.formats.parts import WrittenStudy as WrittenStudy
    from ddib_fed.formats.study import Study as Study
    from ddib_fed.node.operator import Node as Node
    from ddib_fed.protocol.messages import Domains as Domains
    from ddib_fed.record import Guidance as Guidance
    from ddib_fed.record import Record as Record
    from ddib_fed.record import Settings as Settings
    from ddib_fed.training.calibrating import CalibrationRequest as CalibrationRequest
    from ddib_fed.training.calibrating import calibrate as calibrate

_HOMES = {
    "Calibration": "ddib_fed.calibration.record",
    "CalibrationRequest": "ddib_fed.training.calibrating",
    "Client": "ddib_fed.client.client",
    "DdibError": "ddib_fed.errors",
    "Delivered": "ddib_fed.client.results",
    "Dial": "ddib_fed.calibration.record",
    "Domains": "ddib_fed.protocol.messages",
    "Event": "ddib_fed.client.jobs",
    "Guidance": "ddib_fed.record",
    "Job": "ddib_fed.client.jobs",
    "Model": "ddib_fed.api",
    "Node": "ddib_fed.node.operator",
    "Profile": "ddib_fed.client.profile",
    "Progress": "ddib_fed.client.jobs",
    "Record": "ddib_fed.record",
    "Request": "ddib_fed.client.jobs",
    "Run": "ddib_fed.client.folder_run",
    "Settings": "ddib_fed.record",
    "Study": "ddib_fed.formats.study",
    "Translated": "ddib_fed.client.results",
    "WrittenStudy": "ddib_fed.formats.parts",
    "calibrate": "ddib_fed.training.calibrating",
    "measure_dial": "ddib_fed.client.dial",
    "translate": "ddib_fed.api",
}
__all__ = [
    "Calibration",
    "CalibrationRequest",
    "Client",
    "DdibError",
    "Delivered",
    "Dial",
    "Domains",
    "Event",
    "Guidance",
    "Job",
    "Model",
    "Node",
    "Profile",
    "Progress",
    "Record",
    "Request",
    "Run",
    "Settings",
    "Study",
    "Translated",
    "WrittenStudy",
    "calibrate",
    "measure_dial",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
