"""A DICOMweb service (PS3.18): studies are asked for and stored over HTTP, by dicomweb-client."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ddib_fed.errors import ConfigError, RefusedError, Unauthenticated, UsageError, extra
from ddib_fed.files import read_private
from ddib_fed.formats.dicom import pydicom, quiet
from ddib_fed.formats.dicom_network import ANSWER_S, CONNECT_S, LOG, OwnEntity, down, the_one


class Web:
    """A service at an address, over TLS where that is https."""

    def __init__(self, own: OwnEntity, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"{url!r} is no address of DICOMweb", hint="https://HOST/dicom-web")
        with extra("dicom", "dicomweb-client", "DICOMweb needs dicomweb-client, which is not installed"):
            import requests
            from dicomweb_client.api import DICOMwebClient
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)
        session = requests.Session()
        session.trust_env = False  # neither ~/.netrc nor a proxy that others set sees pictures
        session.max_redirects = 0  # a page of login is no answer
        session.hooks["response"].append(_without_parameters)
        if own.tls is not None:
            own.context(ssl.PROTOCOL_TLS_CLIENT)
            session.verify = str(own.tls / "ca.pem")
            session.cert = (str(own.tls / "cert.pem"), str(own.tls / "key.pem"))
        if own.login is not None:
            login = read_private(own.login, hint="USER:PASSWORD, or a bearer token").decode().strip()
            if parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
                raise ConfigError(f"{url} would show the login to the network", hop="client", hint="https://")
            if ":" in login:
                session.auth = (login.partition(":")[0], login.partition(":")[2])
            else:
                session.headers["Authorization"] = f"Bearer {login}"
        self.url, self._errors = url, requests
        self.client = DICOMwebClient(url.rstrip("/"), session=session, timeout=(CONNECT_S, ANSWER_S))
        self.client.set_http_retry_params(retry=False)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        errors = self._errors.exceptions
        try:
            yield
        except errors.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if code in {401, 403}:
                why = f"{self.url} does not accept the login ({code})"
                raise Unauthenticated(why, hop="client", hint="[dicom] login in client.toml") from error
            if code in {400, 404, 405}:
                hint = "its path is often /dicom-web, /dicomweb or /rs"
                raise down(f"{self.url} is no DICOMweb service ({code})", hint) from error
            if code < 500:
                raise RefusedError(f"{self.url} answered {code}", hop="client", hint=LOG) from error
            raise down(f"{self.url} answered {code}") from error
        except errors.SSLError as error:
            hint = "http:// where it has no TLS; else [dicom] tls in client.toml names the folder with its ca.pem"
            raise down(f"{self.url}: no TLS: {_root(error)}", hint) from error
        except (ValueError, KeyError, TypeError) as error:  # what answers is no JSON of DICOM
            raise down(f"{self.url} does not answer as DICOMweb does: {type(error).__name__}") from error
        except errors.RequestException as error:
            raise down(f"{self.url}: {_root(error)}", "is the address right, and does it run?") from error

    def ask(self) -> str:
        with self._explained():
            self.client.search_for_studies(limit=1)
        return "answers QIDO-RS"

    def store(self, files: Sequence[Path], stored: Callable[[Path], object]) -> None:
        """STOW-RS of each file; `stored` is called when the service has it."""
        for path in files:
            with quiet():
                dataset = pydicom().dcmread(path)
                with self._explained():
                    answer = self.client.store_instances([dataset])
            has = [each.get("ReferencedSOPInstanceUID") for each in answer.get("ReferencedSOPSequence") or ()]
            if dataset.SOPInstanceUID not in has:
                code = int((answer.get("FailedSOPSequence") or [{}])[0].get("FailureReason", 0))
                why = f"{self.url} does not say that it stored an instance (failure 0x{code:04X})"
                raise RefusedError(why, hop="client", hint=LOG)
            stored(path)

    def fetch(self, query: Mapping[str, str], folder: Path) -> int:
        """The instances of the one study that a query finds, as files; how many."""
        with self._explained():
            found = self.client.search_for_studies(search_filters=dict(query), limit=2)
            study = the_one([str(each["0020000D"]["Value"][0]) for each in found], query, self.url)
            count = 0
            with quiet():
                for count, dataset in enumerate(self.client.iter_study(study), 1):
                    dataset.save_as(folder / f"{count:06}.dcm", enforce_file_format=True)
        return count


def _without_parameters(response: Any, **_: Any) -> None:
    """With `; charset=utf-8` dicomweb-client does not read an answer."""
    kind = response.headers.get("Content-Type", "")
    if not kind.startswith("multipart/"):
        response.headers["Content-Type"] = kind.partition(";")[0].strip()


def _root(error: BaseException) -> str:
    """What lies at the bottom of an error of requests, in its own words."""
    text = str(error).rpartition("Caused by ")[2] or str(error)
    return text.rpartition("]")[2].partition("(_ssl")[0].strip(" :\"')") or text[:200]
