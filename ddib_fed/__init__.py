"""Image translation between two institutions that share neither pictures nor weights (federated DDIB).

>>> import ddib_fed
>>> request = ddib_fed.Request(cycle=True)
>>> for result in ddib_fed.translate("scan.png", "satellite", "relief", request):  # doctest: +SKIP
...     result.picture.save("relief.png")
"""

from typing import TYPE_CHECKING, Any

from ddib_fed.names import __version__ as __version__

if TYPE_CHECKING:
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
    from ddib_fed.client.parts import WrittenStudy as WrittenStudy
    from ddib_fed.client.profile import Profile as Profile
    from ddib_fed.client.results import Delivered as Delivered
    from ddib_fed.client.results import Translated as Translated
    from ddib_fed.data.study import Study as Study
    from ddib_fed.engine.party import Party as Party
    from ddib_fed.errors import DdibError as DdibError
    from ddib_fed.figures import Figures as Figures
    from ddib_fed.figures import evaluate as evaluate
    from ddib_fed.importing import Imported as Imported
    from ddib_fed.importing import Importer as Importer
    from ddib_fed.importing import ImportOptions as ImportOptions
    from ddib_fed.model import Model as Model
    from ddib_fed.model import train as train
    from ddib_fed.node.operator import Node as Node
    from ddib_fed.protocol.messages import Domains as Domains
    from ddib_fed.recognition import Reader as Reader
    from ddib_fed.record import Guidance as Guidance
    from ddib_fed.record import Record as Record
    from ddib_fed.record import Settings as Settings
    from ddib_fed.rehearsal import Rehearsal as Rehearsal
    from ddib_fed.training.calibrating import CalibrationRequest as CalibrationRequest
    from ddib_fed.training.calibrating import calibrate as calibrate
    from ddib_fed.training.config import TrainConfig as TrainConfig

_HOMES = {
    "Calibration": "ddib_fed.calibration.record",
    "CalibrationRequest": "ddib_fed.training.calibrating",
    "Client": "ddib_fed.client.client",
    "DdibError": "ddib_fed.errors",
    "Delivered": "ddib_fed.client.results",
    "Dial": "ddib_fed.calibration.record",
    "Domains": "ddib_fed.protocol.messages",
    "Event": "ddib_fed.client.jobs",
    "Figures": "ddib_fed.figures",
    "Guidance": "ddib_fed.record",
    "ImportOptions": "ddib_fed.importing",
    "Imported": "ddib_fed.importing",
    "Importer": "ddib_fed.importing",
    "Job": "ddib_fed.client.jobs",
    "Model": "ddib_fed.model",
    "Node": "ddib_fed.node.operator",
    "Party": "ddib_fed.engine.party",
    "Profile": "ddib_fed.client.profile",
    "Progress": "ddib_fed.client.jobs",
    "Reader": "ddib_fed.recognition",
    "Record": "ddib_fed.record",
    "Rehearsal": "ddib_fed.rehearsal",
    "Request": "ddib_fed.client.jobs",
    "Run": "ddib_fed.client.folder_run",
    "Settings": "ddib_fed.record",
    "Study": "ddib_fed.data.study",
    "TrainConfig": "ddib_fed.training.config",
    "Translated": "ddib_fed.client.results",
    "WrittenStudy": "ddib_fed.client.parts",
    "calibrate": "ddib_fed.training.calibrating",
    "evaluate": "ddib_fed.figures",
    "measure_dial": "ddib_fed.client.dial",
    "train": "ddib_fed.model",
    "translate": "ddib_fed.api",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names are there


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
