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
    from ddib_fed.client.client import Client as Client
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
    from ddib_fed.protocol.messages import Domains as Domains
    from ddib_fed.record import Guidance as Guidance
    from ddib_fed.record import Record as Record
    from ddib_fed.record import Settings as Settings

_HOMES = {
    "Client": "ddib_fed.client.client",
    "DdibError": "ddib_fed.errors",
    "Delivered": "ddib_fed.client.results",
    "Domains": "ddib_fed.protocol.messages",
    "Event": "ddib_fed.client.jobs",
    "Guidance": "ddib_fed.record",
    "Job": "ddib_fed.client.jobs",
    "Model": "ddib_fed.api",
    "Profile": "ddib_fed.client.profile",
    "Progress": "ddib_fed.client.jobs",
    "Record": "ddib_fed.record",
    "Request": "ddib_fed.client.jobs",
    "Run": "ddib_fed.client.folder_run",
    "Settings": "ddib_fed.record",
    "Study": "ddib_fed.formats.study",
    "Translated": "ddib_fed.client.results",
    "WrittenStudy": "ddib_fed.formats.parts",
    "translate": "ddib_fed.api",
}
__all__ = [
    "Client",
    "DdibError",
    "Delivered",
    "Domains",
    "Event",
    "Guidance",
    "Job",
    "Model",
    "Profile",
    "Progress",
    "Record",
    "Request",
    "Run",
    "Settings",
    "Study",
    "Translated",
    "WrittenStudy",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
