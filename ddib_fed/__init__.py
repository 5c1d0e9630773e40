"""Image translation between two institutions that share neither pictures nor weights (federated DDIB).

>>> import ddib_fed
>>> request = ddib_fed.Request(cycle=True)
>>> for result in ddib_fed.translate("scan.png", "satellite", "relief", request):  # doctest: +SKIP
...     result.picture.save("relief.png")
"""

from typing import TYPE_CHECKING, Any

from ddib_fed.names import __version__ as __version__

if TYPE_CHECKING:
    from ddib_fed.api import translate
    from ddib_fed.calibration.record import Calibration, Dial
    from ddib_fed.client.client import Client
    from ddib_fed.client.dial import measure_dial
    from ddib_fed.client.folder_run import Run
    from ddib_fed.client.jobs import Event, Job, Progress, Request
    from ddib_fed.client.profile import Profile
    from ddib_fed.client.results import Delivered, Translated
    from ddib_fed.engine.party import Party
    from ddib_fed.errors import DdibError
    from ddib_fed.figures import Figures, evaluate
    from ddib_fed.model import Model, train
    from ddib_fed.node.operator import Node
    from ddib_fed.protocol.messages import Domains
    from ddib_fed.recognition import Reader
    from ddib_fed.record import Guidance, Record, Settings
    from ddib_fed.rehearsal import Rehearsal
    from ddib_fed.training.calibrating import CalibrationRequest, calibrate
    from ddib_fed.training.config import TrainConfig
    from ddib_fed.training.run import Opened
    from ddib_fed.training.trainer import Task

__all__ = [
    "Calibration", "CalibrationRequest", "Client", "DdibError", "Delivered", "Dial", "Domains", "Event",
    "Figures", "Guidance", "Job", "Model", "Node", "Opened", "Party", "Profile", "Progress", "Reader", "Record",
    "Rehearsal", "Request", "Run", "Settings", "Task", "TrainConfig", "Translated", "calibrate", "evaluate",
    "measure_dial", "train", "translate",
]  # fmt: skip
_NAMES = {
    "ddib_fed.api": "translate",
    "ddib_fed.calibration.record": "Calibration Dial",
    "ddib_fed.client.client": "Client",
    "ddib_fed.client.dial": "measure_dial",
    "ddib_fed.client.folder_run": "Run",
    "ddib_fed.client.jobs": "Event Job Progress Request",
    "ddib_fed.client.profile": "Profile",
    "ddib_fed.client.results": "Delivered Translated",
    "ddib_fed.engine.party": "Party",
    "ddib_fed.errors": "DdibError",
    "ddib_fed.figures": "Figures evaluate",
    "ddib_fed.recognition": "Reader",
    "ddib_fed.model": "Model train",
    "ddib_fed.node.operator": "Node",
    "ddib_fed.protocol.messages": "Domains",
    "ddib_fed.record": "Guidance Record Settings",
    "ddib_fed.rehearsal": "Rehearsal",
    "ddib_fed.training.calibrating": "CalibrationRequest calibrate",
    "ddib_fed.training.config": "TrainConfig",
    "ddib_fed.training.run": "Opened",
    "ddib_fed.training.trainer": "Task",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
