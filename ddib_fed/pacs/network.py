"""Peers that speak DICOM: who they are, why one does not answer, and what is sent to it, asked of it and received.

What goes wrong is named by its cause. No peer is believed: what it may send is bounded while it arrives, and what it
sends for a study has to be of that study.
"""

from __future__ import annotations

import logging
import math
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import (
    ConfigError,
    DdibError,
    ItemNotFound,
    PeerUnreachable,
    RefusedError,
    UsageError,
    extra,
)
from ddib_fed.files import is_disk_full, make_private_folders, read_private
from ddib_fed.formats.dicom import pydicom, read_header, readable_syntaxes

CONNECT_S: Final = 10.0
"""Seconds to wait for a connection, a handshake or an answer to a request for an association."""
ANSWER_S: Final = 300.0
"""Seconds to wait for the answer to one message: a PACS may take a while for a large instance."""
IDLE_S: Final = 60.0  # abort an association after this many seconds of silence
PDU_BYTES: Final = 1 << 17
"""Announced length of a PDU; longer ones abort the association (the field allows 4 GiB)."""
MESSAGE_BYTES: Final = 1 << 20  # bound of a message in memory: a command, or an answer to a query
MOST_ANSWERS: Final = 1000  # bound of answers that wait to be read
MOST_REQUESTS: Final = 10  # bound of requests that wait: no window of asynchronous operations is negotiated
RESERVE: Final = 64 << 20
"""Bytes of the disk that stay free; less than this may arrive without a look at the room that there is."""
LOOK_S: Final = 0.1  # look at the free space at most this often while instances arrive
REPEAT_S: Final = 60.0
"""Repeat a refusal in the log, and look hosts up, at most this often: a stranger may call at any rate."""
LOG: Final = "its log says why"
VERIFICATION: Final = "1.2.840.10008.1.1"
TAKEN: Final = (
    "CTImageStorage", "EnhancedCTImageStorage", "LegacyConvertedEnhancedCTImageStorage",
    "MRImageStorage", "EnhancedMRImageStorage", "LegacyConvertedEnhancedMRImageStorage",
    "PositronEmissionTomographyImageStorage", "EnhancedPETImageStorage", "LegacyConvertedEnhancedPETImageStorage",
    "ComputedRadiographyImageStorage", "DigitalXRayImageStorageForPresentation",
    "DigitalMammographyXRayImageStorageForPresentation", "UltrasoundImageStorage", "SecondaryCaptureImageStorage",
)  # fmt: skip
"""Storage classes of single pictures, and of enhanced files whose frames are slices."""
_REJECTIONS: Final = {
    (1, 3): ("it does not know the AE title {own}", "add {own} and this machine's address to its known AEs"),
    (1, 7): ("its AE title is not {called}", "the peer's own AE title goes before the @: AE@HOST:PORT"),
    (1, 1): ("it gave no reason", "its log does: often the AE title {own} or the address is unknown there"),
    (3, 2): ("it has as many associations as it takes", "try again later, or raise its limit"),
}
"""By source and diagnostic of an A-ASSOCIATE-RJ (PS3.8, 9.3.4); others have their reason in words."""
_STATUSES: Final = {
    0xA7: "out of resources", 0xA9: "the data set does not match its class", 0xC0: "cannot understand",
    0x01: "refused: not authorised, or the class is not supported",
}  # fmt: skip


class DicomPeer(NamedTuple):
    """An application entity, as `AE@HOST:PORT`; without a port of one that only calls."""

    aet: str
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str, *, calls: bool = False) -> DicomPeer:
        aet, _, address = text.partition("@")
        host, _, port = (address, "", "0") if calls else address.rpartition(":")
        named = 0 < len(aet.strip()) <= 16 and aet.isascii() and aet.isprintable() and "\\" not in aet
        named = named and (not calls or host.count(":") != 1)  # a host alone, or an IPv6 address
        if not (named and host and port.isdecimal() and (calls or 0 < int(port) < 65536)):
            form = "AE@HOST" if calls else "AE@HOST:PORT"
            raise UsageError(f"{text!r} is no {form}", hint=f"{form}; an AE title has up to 16 characters")
        return cls(aet.strip(), host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class OwnEntity:
    """This client: AE title, folder of `ca.pem`, `cert.pem` and `key.pem`, file with USER:PASSWORD or a token."""

    aet: str
    tls: Path | None = None
    login: Path | None = None

    def context(self, protocol: int) -> ssl.SSLContext | None:
        if self.tls is None:
            return None
        read_private(self.tls / "key.pem", hint="the key of cert.pem, in PEM")
        made = _LateHandshake(protocol) if protocol == ssl.PROTOCOL_TLS_SERVER else ssl.SSLContext(protocol)
        try:
            made.load_verify_locations(self.tls / "ca.pem")
            made.load_cert_chain(self.tls / "cert.pem", self.tls / "key.pem")
        except (OSError, ssl.SSLError) as error:
            why = f"{self.tls} holds no usable ca.pem, cert.pem and key.pem: {error}"
            raise ConfigError(why, hop="client", hint="[dicom] tls in client.toml; all in PEM") from error
        made.minimum_version, made.verify_mode = ssl.TLSVersion.TLSv1_2, ssl.CERT_REQUIRED
        return made


class _LateHandshake(ssl.SSLContext):
    """Leaves the handshake to the association's thread: pynetdicom's one of accepting would wait for each caller."""

    def wrap_socket(self, *given: Any, **how: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*given, **how | {"do_handshake_on_connect": False})


def pynetdicom() -> Any:
    with extra("dicom", "pynetdicom", "DICOM over the network needs pynetdicom, which is not installed"):
        import pynetdicom as package
        from pynetdicom import _config
    # Its log has data sets in it, and instances are as large as the disk allows.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    _config.STORE_RECV_CHUNKED_DATASET = True
    return package


def _entity(own: OwnEntity) -> Any:
    entity = pynetdicom().AE(ae_title=own.aet)
    entity.acse_timeout = entity.connection_timeout = CONNECT_S
    entity.dimse_timeout = ANSWER_S
    entity.network_timeout = IDLE_S
    entity.maximum_pdu_size = PDU_BYTES
    return entity


def _bound(event: Any, most: int, refuse: Callable[[str, str], object], room: Callable[[], str]) -> None:
    """Abort an association that sends too much, or more than `most` messages; tell `refuse` why and what helps."""
    association, receive = event.assoc, event.assoc.dul.socket.recv

    def bounded(size: int) -> Any:
        message, why, how = association.dimse.message, "", LOG
        file = message and message._data_set_file  # noqa: SLF001 - pynetdicom's, of an instance
        if size > PDU_BYTES + 1024:  # some do not count headers
            why = f"it sends a PDU of {size:,} bytes, and {PDU_BYTES:,} were announced"
        elif association.dimse.msg_queue.qsize() > most:
            why = f"it sends more than {most:,} messages without waiting for an answer"
        elif message and message.encoded_command_set.tell() + message.data_set.tell() > MESSAGE_BYTES:
            why = f"it sends more than {MESSAGE_BYTES:,} bytes that are no instance"
        elif file:
            why, how = room(), "more room on the disk, or a larger [dicom] most_gib"
        if not why:
            return receive(size)
        refuse(why, how)
        association.dul.to_user_queue.put(None)  # its thread may wait for a request, or for an answer
        association.dimse.msg_queue.put((None, None))
        raise ValueError(why)  # pynetdicom sends an A-ABORT, and both threads end

    association.dul.socket.recv = bounded


def no_room(folder: Path) -> str:
    """Say why a folder's disk is too full; empty if it is not."""
    free = shutil.disk_usage(folder).free
    return "" if free > RESERVE else f"{free >> 20:,} MiB of the disk are free"


def _without_delay(event: Any) -> None:
    """Send and acknowledge what is small at once: dcmtk's sockets wait for that, 40 ms with each message."""
    for name in ("TCP_NODELAY", "TCP_QUICKACK"):  # the second is Linux's, and holds for a while
        if (sock := event.assoc.dul.socket.socket) is not None and hasattr(socket, name):
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 1)


@contextmanager
def associated(own: OwnEntity, peer: DicomPeer, contexts: Sequence[Any]) -> Iterator[Any]:
    """Open an association with a peer, which must accept at least one of the contexts."""
    context, event, refused = own.context(ssl.PROTOCOL_TLS_CLIENT), pynetdicom().evt, list[str]()
    opened = partial(_bound, most=MOST_ANSWERS, refuse=lambda why, _: refused.append(why), room=lambda: "")
    entity, association = _entity(own), None
    with suppress(OSError):  # there is no such host
        association = entity.associate(
            peer.host,
            peer.port,
            contexts=[*contexts],
            ae_title=peer.aet,
            tls_args=None if context is None else (context, peer.host),
            evt_handlers=[(event.EVT_CONN_OPEN, opened), (event.EVT_DATA_SENT, _without_delay)],
        )
    if association is None or not (association.is_established or refused):
        raise _why_not(own, peer, association, contexts)
    try:
        if not refused:
            yield association
    finally:
        if association.is_established:
            association.release()
        if refused:
            raise RefusedError(f"{peer}: broken off: {refused[0]}", hop="client", hint=LOG)


def _why_not(own: OwnEntity, peer: DicomPeer, association: Any, contexts: Sequence[Any]) -> DdibError:
    """Return the error that says why a peer made no association."""
    answer: Any = None if association is None else association.acceptor.primitive
    if association is not None and association.is_rejected:
        reason = int(answer.result_source), int(answer.diagnostic)
        why, how = _REJECTIONS.get(reason, (f"its reason is {answer.reason_str}", LOG))
        why, how = (text.format(own=own.aet, called=peer.aet) for text in (why, how))
        return RefusedError(f"{peer} rejected the association: {why}", hop="client", hint=how)
    if answer is not None and answer.result == 0:
        asked = ", ".join(sorted({each.abstract_syntax.name for each in contexts}))
        why = f"{peer} accepted the association and no presentation context of it: {asked}"
        how = "the peer's configuration says which storage classes and transfer syntaxes it takes"
        return RefusedError(why, hop="client", hint=how)
    why, hint = _unanswered(own, peer)
    return down(f"{peer}: {why}", hint)


def down(why: str, hint: str = LOG) -> PeerUnreachable:
    return PeerUnreachable(why, hop="client", hint=hint)


def _unanswered(own: OwnEntity, peer: DicomPeer) -> tuple[str, str]:
    """Say why a request for an association had no answer, by connecting again step by step; and what helps."""
    at, without = f"{peer.host}:{peer.port}", "does it ask for TLS? else unset [dicom] tls"
    try:
        with socket.create_connection((peer.host, peer.port), timeout=CONNECT_S) as plain:
            if (context := own.context(ssl.PROTOCOL_TLS_CLIENT)) is None:
                hint = "is it a DICOM port, and does it ask for TLS? then set [dicom] tls in client.toml"
                return f"{at} accepts connections and does not answer the request for an association", hint
            with context.wrap_socket(plain, server_hostname=peer.host) as wrapped, suppress(TimeoutError):
                wrapped.settimeout(1.0)  # in TLS 1.3 the verdict on our certificate comes after the handshake
                wrapped.recv(1)
    except socket.gaierror:
        return f"there is no host {peer.host}", f"getent hosts {peer.host}"
    except ConnectionRefusedError:
        return f"nothing listens at {at}", "is the port right, and does the peer run?"
    except TimeoutError:
        return f"{at} does not answer within {CONNECT_S:.0f} s", "a firewall, or a wrong address"
    except ssl.SSLCertVerificationError as error:
        hint = f"openssl s_client -connect {at} -CAfile {own.tls}/ca.pem   shows it"
        return f"its certificate is not accepted: {error.verify_message}", hint
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in reason:
            return f"it refuses our certificate: {reason}", f"it must know the CA of {own.tls}/cert.pem"
        return f"no TLS at {at}: {reason}", without
    except ConnectionResetError:
        return f"{at} breaks the TLS handshake off", without
    except OSError as error:
        return f"{at} cannot be reached: {error.strerror or error}", f"getent hosts {peer.host}"
    return f"{at} speaks TLS and does not answer the request for an association", LOG


def _contexts(kinds: Iterable[str]) -> list[Any]:
    """Propose storage classes in the two transfer syntaxes that every peer has."""
    uids = pydicom().uid
    plain = [uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian]
    return [pynetdicom().build_context(kind, plain) for kind in dict.fromkeys(kinds)]


def echo(own: OwnEntity, peer: DicomPeer) -> str:
    """Send a C-ECHO, and name the usual storage classes that it accepts; raise PeerUnreachable or RefusedError."""
    usual = ("MRImageStorage", "CTImageStorage", "SecondaryCaptureImageStorage")
    uids = {name: getattr(pydicom().uid, name) for name in usual}
    with associated(own, peer, _contexts([VERIFICATION, *uids.values()])) as association:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        if VERIFICATION in accepted and association.send_c_echo().get("Status", -1):
            raise down(f"{peer} does not answer C-ECHO")
    stores = [name.removesuffix("ImageStorage") for name in usual if uids[name] in accepted]
    if not stores:
        why = f"{peer} answers, and accepts no storage: no presentation context of {', '.join(usual)}"
        raise RefusedError(why, hop="client", hint="its configuration says which storage classes it takes")
    return f"answers {own.aet}, stores {', '.join(stores)}"


def store(own: OwnEntity, peer: DicomPeer, files: Sequence[Path], stored: Callable[[Path], object]) -> None:
    """Send each file by C-STORE, and call `stored` when the peer has it; raise RefusedError at the first refusal."""
    meta = pydicom().filereader.read_file_meta_info
    with associated(
        own, peer, _contexts(meta(path).MediaStorageSOPClassUID for path in files)
    ) as association:
        for path in files:
            try:
                status = association.send_c_store(path).get("Status")
            except ValueError as error:  # no presentation context for it was accepted
                why = f"{peer} takes no {meta(path).MediaStorageSOPClassUID.name}"
                raise RefusedError(why, hop="client", hint=LOG) from error
            except RuntimeError as error:
                raise down(f"{peer} ended the association") from error
            if status is None:
                raise down(f"{peer} did not answer a C-STORE")
            if status and status >> 12 != 0xB:  # 0xB...: stored, with a warning
                why = f"{peer} refused an instance: {_STATUSES.get(status >> 8, 'failure')} (0x{status:04X})"
                raise RefusedError(why, hop="client", hint=LOG)
            stored(path)


def the_one(studies: Iterable[str], query: Mapping[str, str], where: object) -> str:
    """Return the study that a peer found; raise ItemNotFound unless it is one, and the one asked for."""
    uid = query.get("StudyInstanceUID", "*")
    studies = {each for each in studies if (each and set("*?\\") & set(uid)) or each == uid}
    if len(studies) == 1:
        return studies.pop()
    asked = "&".join(f"{key}={value}" for key, value in query.items())
    problem = f"{where} has {'several studies' if studies else 'no study'} of {asked}"
    named = [f"--query StudyInstanceUID={each}" for each in sorted(studies)]
    named[8:] = [f"{len(named) - 8} more"] if len(named) > 8 else []
    hint = ", or ".join(named) or "compare the values of --query with those that the archive shows"
    raise ItemNotFound(problem, hop="client", hint=hint)


def require_study(path: Path, study: str) -> None:
    """Raise RefusedError unless an instance is of the study that was asked for: it may be another person's."""
    if str(read_header(path, ["StudyInstanceUID"]).get("StudyInstanceUID")) != study:
        hint = "the same command again; else ask the archive's operator"
        raise RefusedError(f"an instance is of another study than {study}", hop="client", hint=hint)


def parse_query(text: str) -> dict[str, str]:
    """Parse `KEYWORD=VALUE[&KEYWORD=VALUE...]`, attributes of the study level."""
    conditions = {}
    for part in text.split("&"):
        keyword, mark, value = part.partition("=")
        if not mark or not value.strip() or pydicom().datadict.tag_for_keyword(keyword) is None:
            hint = "--query 'StudyInstanceUID=1.2.3', or 'PatientID=123&StudyDate=20260102'"
            raise UsageError(f"--query: {part!r} is no KEYWORD=VALUE of DICOM", hint=hint)
        conditions[keyword] = value.strip()
    return conditions


def fetch(
    own: OwnEntity,
    peer: DicomPeer,
    port: int,
    query: Mapping[str, str],
    folder: Path,
    say: Callable[[str], object],
) -> int:
    """Find one study (C-FIND), have it sent to our AE title (C-MOVE), and return its number of instances."""
    uids = pynetdicom().sop_class
    find, move = (getattr(uids, f"StudyRootQueryRetrieveInformationModel{each}") for each in ("Find", "Move"))
    asked = pydicom().Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", ""
    for keyword, value in query.items():
        setattr(asked, keyword, value)
    studies, code = set[str](), -1
    with associated(own, peer, [pynetdicom().build_context(find)]) as finding:
        for status, dataset in finding.send_c_find(asked, find):
            code = status.get("Status", -1) if status else -1
            studies |= {str(dataset.get("StudyInstanceUID", ""))} if dataset else set()
    if code:
        raise down(f"{peer} did not answer the query: status 0x{code & 0xFFFF:04X}")
    wanted = pydicom().Dataset()
    wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "STUDY", the_one(studies, query, peer)
    kept: list[Path] = []

    def keep(path: Path, *_: object) -> int:
        require_study(path, wanted.StudyInstanceUID)
        kept.append(path.replace(folder / f"{path.stem}.dcm"))
        return 0

    # Reports lie beside pictures, and a PACS may send under another title than the one that it is asked by.
    kinds = [each.abstract_syntax for each in pynetdicom().AllStoragePresentationContexts]
    callers, arriving = [DicomPeer("", peer.host)], folder / ".arriving"
    receiver = Receiver(own, port, arriving, callers, keep, say=say, kinds=kinds)
    receiver.start()
    try:
        status, failed = None, 0
        with associated(own, peer, [pynetdicom().build_context(move)]) as moving:
            for status, _ in moving.send_c_move(wanted, own.aet, move):
                failed = int(status.get("NumberOfFailedSuboperations", 0) or 0) if status else failed
    finally:
        receiver.stop()
    code = status.get("Status", -1) if status else -1
    if code or failed or not kept:
        why = f"status 0x{code & 0xFFFF:04X}, {failed} not sent; {len(kept)} instances came"
        why = f"it does not know {own.aet} as a destination" if code == 0xA801 else why
        hint = f"the peer must know {own.aet} at this machine's address and port {port} ([dicom] port)"
        raise down(f"{peer} did not send the study to {own.aet}: {why}", hint)
    return len(kept)


@dataclass(slots=True)
class Receiver:
    """A Storage SCP, in threads of its own from `start` to `stop`.

    Instances arrive in `folder`, emptied at the start; `keep` moves a file away, and returns the status of its C-STORE.
    `room` says why the bytes that are not kept yet are too many. `busy` is when something last came, by association.
    """

    own: OwnEntity
    port: int
    folder: Path
    callers: Sequence[DicomPeer]
    keep: Callable[[Path, int, str], int]
    ended: Callable[[int, bool], object] = lambda *_: None
    say: Callable[[str], object] = str
    most: int = 10
    kinds: Sequence[str] = ()
    room: Callable[[int], str] = lambda _: ""
    busy: dict[int, float] = field(default_factory=dict)
    _server: Any = None
    _done: dict[str, float] = field(default_factory=dict)
    _addresses: dict[DicomPeer, set[str]] = field(default_factory=dict)

    def start(self) -> None:
        make_private_folders(self.folder)
        for left in self.folder.iterdir():
            left.unlink()
        tempfile.tempdir = str(self.folder)  # of what pynetdicom writes; the file is then renamed, not copied
        event = pynetdicom().evt
        entity = _entity(self.own)
        syntaxes = readable_syntaxes()
        entity.add_supported_context(VERIFICATION)
        for kind in self.kinds or [getattr(pydicom().uid, name) for name in TAKEN]:
            entity.add_supported_context(kind, syntaxes)
        handlers = [
            (event.EVT_CONN_OPEN, self._opened),
            (event.EVT_DATA_SENT, _without_delay),
            (event.EVT_REQUESTED, self._requested),
            (event.EVT_ACCEPTED, self._accepted),
            (event.EVT_C_STORE, self._stored),
            (event.EVT_RELEASED, self._ended),
            (event.EVT_CONN_CLOSE, self._ended),
        ]
        how = {"ssl_context": self.own.context(ssl.PROTOCOL_TLS_SERVER), "evt_handlers": handlers}
        self._look_up()
        try:
            self._server = server = entity.make_server(("", self.port), **how)
        except OSError as error:
            why = f"port {self.port} cannot be listened at: {error.strerror or error}"
            hint = f"ss -ltnp 'sport = :{self.port}' shows by whom: a receiver has to be stopped meanwhile"
            raise ConfigError(why, hop="client", hint=hint) from error
        server.verify_request = self._admits
        server.socket.listen(128)
        entity.maximum_associations = 1 << 16  # they are counted by address
        entity._servers.append(server)  # noqa: SLF001 - from which it removes itself
        server._gc = [0, math.inf]  # noqa: SLF001 - else it collects garbage, a second, after 60 connections of anybody
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        tempfile.tempdir = None
        if self._server is not None:
            self._server.shutdown()

    def _admits(self, request: Any, address: tuple[Any, ...]) -> bool:
        """Admit a connection of a caller's address, before a thread is made for it; it may oust idle ones."""
        del request
        if not self._titles(host := str(address[0])):
            self._tell(f"{host}: connection closed: no caller has this address; try: --from AE@{host}")
            return False
        idle = [each for each in self._associations(host) if not each.is_established]
        if len(idle) >= self.most:
            self._tell(f"{host}: it has {self.most} connections without an association; the oldest is closed")
        for each in idle[: max(len(idle) + 1 - self.most, 0)]:
            each.dul.to_user_queue.put(None)  # its thread waits for a request
            with suppress(OSError, AttributeError):  # it is closed already
                each.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        return True

    def _associations(self, host: str) -> list[Any]:
        return [each for each in self._server.active_associations if each.requestor.address == host]

    def _titles(self, host: str) -> set[str]:
        """Return the AE titles that may call from an address; "" stands for any."""
        titles = {caller.aet for caller, addresses in [*self._addresses.items()] if host in addresses}
        if not titles and self._is_due("hosts", REPEAT_S):
            threading.Thread(target=self._look_up, daemon=True).start()  # meanwhile others call
        return titles

    def _look_up(self) -> None:
        for caller in self.callers:
            with suppress(OSError):  # what was found before holds
                addresses = socket.getaddrinfo(caller.host, None)
                self._addresses[caller] = {str(each[4][0]) for each in addresses}

    def _is_due(self, what: str, every: float) -> bool:
        """Return whether `what` was last due at least `every` seconds ago, and note that it is due now."""
        now = time.monotonic()
        if now - self._done.get(what, -math.inf) < every:
            return False
        if len(self._done) > 1000:  # lines with what strangers call themselves
            self._done.clear()
        self._done[what] = now
        return True

    def _tell(self, line: str, every: float = REPEAT_S) -> None:
        if self._is_due(line, every):
            self.say(line)

    def _opened(self, event: Any) -> None:
        """Bound the size of what a connection sends, and the wait for it."""

        def refuse(why: str, how: str) -> None:
            self._tell(f"{_caller(event)}: association aborted: {why}; try: {how}")
            self._ended(event)

        event.assoc.dul.socket.socket.settimeout(IDLE_S)
        _bound(event, MOST_REQUESTS, refuse, partial(self._no_room, id(event.assoc)))

    def _no_room(self, association: int) -> str:
        """Say, at most every LOOK_S, why there is no room for what arrives; empty if there is."""
        arrived, self.busy[association] = 0, time.monotonic()
        if not self._is_due("room", LOOK_S):
            return ""
        for each in self.folder.iterdir():
            with suppress(FileNotFoundError):  # it was kept meanwhile
                arrived += each.stat().st_size
        return "" if arrived < RESERVE else self.room(arrived) or no_room(self.folder)

    def _requested(self, event: Any) -> None:
        """Reject an association that is not allowed, with the reason of the standard."""
        association, host = event.assoc, event.assoc.requestor.address
        asked = association.requestor.primitive
        if asked.called_ae_title.strip() != self.own.aet:
            why, reason = f"it calls {asked.called_ae_title.strip()}, this is {self.own.aet}", (1, 1, 7)
        elif not {"", asked.calling_ae_title.strip()} & self._titles(host):
            why, reason = "--from does not have its AE title with this address", (1, 1, 3)
        elif sum(each.is_established for each in self._associations(host)) >= self.most:
            why, reason = f"its address has [dicom] most_associations, {self.most}, already", (2, 3, 2)
        else:
            return
        self._tell(f"{_caller(event)}: association rejected: {why}")
        association.acse.send_reject(*reason)
        association.kill()  # once the rejection is on its way

    def _accepted(self, event: Any) -> None:
        kinds = {each.abstract_syntax for each in event.assoc.rejected_contexts}
        refused = sorted({kind.name if kind.name != kind else "an unknown class" for kind in kinds})
        what = ", ".join(refused[:8]) + (f" and {len(refused) - 8} more" if len(refused) > 8 else "")
        line = f"{_caller(event)}: these classes or transfer syntaxes that it may send are not taken: {what}"
        if refused:
            self._tell(line, math.inf)

    def _stored(self, event: Any) -> int:
        path = event.dataset_path
        try:
            return self.keep(path, id(event.assoc), _caller(event))
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender must not believe that it is stored
            why = error.detail if isinstance(error, RefusedError) else type(error).__name__
            self.say(f"{_caller(event)}: an instance was not stored: {why}")
            return 0xA700 if is_disk_full(error) else 0xC000
        finally:
            path.unlink(missing_ok=True)
            self.busy.pop(id(event.assoc), None)

    def _ended(self, event: Any) -> None:
        released, message = event.event.name == "EVT_RELEASED", event.assoc.dimse.message
        self.busy.pop(id(event.assoc), None)
        if message is not None and message._data_set_file:  # noqa: SLF001 - pynetdicom leaves it there
            message._data_set_path.unlink(missing_ok=True)  # noqa: SLF001
            self.say(f"{_caller(event)}: the association broke off within an instance, which is not stored")
        for _, each in [*event.assoc.dimse.msg_queue.queue]:
            if path := getattr(each, "_dataset_path", None):  # it came whole, and nobody waits for its answer
                path.unlink(missing_ok=True)
        self.ended(id(event.assoc), released)


def _caller(event: Any) -> str:
    asked = event.assoc.requestor.primitive
    aet = asked.calling_ae_title.strip() if asked is not None else "?"
    return f"{aet}@{event.assoc.requestor.address}"
