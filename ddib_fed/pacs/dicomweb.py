"""A DICOMweb service (PS3.18), by dicomweb-client: instances go to the disk as they come, other answers are short."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.message import Message
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ddib_fed.errors import ConfigError, DiskFull, RefusedError, Unauthenticated, UsageError, extra
from ddib_fed.files import read_private
from ddib_fed.formats.dicom import pydicom
from ddib_fed.pacs import network
from ddib_fed.pacs.network import LOG, OwnEntity, down

_KIND = "application/dicom"


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
        session.hooks["response"].append(_read)
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
        self.url, self.session, self._errors = url.rstrip("/"), session, requests
        self.client = DICOMwebClient(self.url, session=session, timeout=(network.CONNECT_S, network.ANSWER_S))
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
        except (ValueError, LookupError, TypeError) as error:  # what answers is no JSON of DICOM
            raise down(f"{self.url} does not answer as DICOMweb does: {type(error).__name__}") from error
        except errors.RequestException as error:
            raise down(f"{self.url}: {_root(error)}", "is the address right, and does it run?") from error

    def ask(self) -> str:
        with self._explained():
            self.client.search_for_studies(limit=1)
        return "answers QIDO-RS"

    def store(self, files: Sequence[Path], stored: Callable[[Path], object]) -> None:
        """Send each file by STOW-RS, and call `stored` when the service has it."""
        for path in files:
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
        """Write the instances of the one study that a query finds to a folder; return their number."""
        with self._explained():
            studies = self.client.search_for_studies(search_filters=dict(query), limit=2)
            study = network.the_one([str(each["0020000D"]["Value"][0]) for each in studies], query, self.url)
            accept, count = {"Accept": f'multipart/related; type="{_KIND}"'}, 0
            address, timeout = f"{self.url}/studies/{quote(study)}", (network.CONNECT_S, network.ANSWER_S)
            with self.session.get(address, headers=accept, stream=True, timeout=timeout) as answer:
                answer.raise_for_status()
                bodies = parts(answer.iter_content(1 << 16), answer.headers.get("Content-Type", ""))
                for count, body in groupby(bodies, itemgetter(0)):
                    with (path := folder / f"{count:06}.dcm").open("wb") as file:
                        for _, piece in body:
                            if why := network.no_room(folder):
                                why = f"{self.url}: broken off: {why}"
                                raise DiskFull(why, hop="client", hint=f"df -h {folder}")
                            file.write(piece)
                    network.require_study(path, study)
        return count


def _read(response: Any, stream: bool = False, **_: Any) -> None:
    """Read an answer that is short; with `; charset=utf-8` dicomweb-client does not read it."""
    body, stream = b"", stream and not response.is_redirect  # which is read anyhow
    for piece in () if stream else response.iter_content(1 << 16):
        body += piece
        if len(body) > network.MESSAGE_BYTES:
            why = f"{response.url.partition('?')[0]} answers with more than {network.MESSAGE_BYTES:,} bytes"
            raise RefusedError(why, hop="client", hint="--query 'StudyInstanceUID=...' asks for less")
    if not stream:
        response._content = body  # noqa: SLF001 - which requests keeps there itself
        response.headers["Content-Type"] = response.headers.get("Content-Type", "").partition(";")[0].strip()


def parts(pieces: Iterable[bytes], content_type: str) -> Iterator[tuple[int, bytes]]:
    """Yield pieces of a multipart message's bodies, each with its part's number; raise ValueError if it has no end."""
    kind = Message()
    kind["Content-Type"] = content_type
    if kind.get_content_type() == _KIND:  # one instance without parts, of some services
        yield from zip(repeat(1), pieces)
        return
    boundary = kind.get_boundary("").encode()
    delimiter, held, number, in_head = b"\r\n--" + boundary, b"\r\n", 0, False
    for piece in pieces if boundary else ():
        held += piece
        while True:
            if in_head:
                if held.startswith(b"--"):
                    return
                _, ends, rest = held.partition(b"\r\n\r\n")
                if not ends:
                    break
                in_head, held = False, rest
            body, ends, rest = held.partition(delimiter)
            if not ends:
                body, rest = held[: -len(delimiter)], held[-len(delimiter) :]
            held = rest
            if number:
                yield number, body
            if not ends:
                break
            number, in_head = number + 1, True
        if len(held) > 1 << 16:
            raise ValueError("the head of a part is too long")
    raise ValueError("it has no end")


def _root(error: BaseException) -> str:
    """Return the message of the innermost error of requests."""
    text = str(error).rpartition("Caused by ")[2] or str(error)
    return text.rpartition("]")[2].partition("(_ssl")[0].strip(" :\"')") or text[:200]
