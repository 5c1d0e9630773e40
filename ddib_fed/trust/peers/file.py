"""Peer files: the file with which an institution introduces its node.

Only the known fields are accepted; all are checked, alone and together, before any is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from ddib_fed.errors import InputError, PolicyDenied, Unauthenticated
from ddib_fed.rpc.addresses import split_address
from ddib_fed.trust.identity import Identity, check_institution, check_root
from ddib_fed.trust.pki import MAX_ROOTS, certificate_pem, fingerprint, parse_certificates, same_fingerprint

FORMAT_VERSION: Final = 1
_HINT: Final = "ddib peer export writes one, on the other side"
_SHOWN: Final = 40
_FIELDS: Final = frozenset({"format_version", "institution", "identity", "address", "roots"})


@dataclass(frozen=True, slots=True)
class Peer:
    """Another institution's node, as described by its peer file.

    Attributes:
        institution: DNS name.
        identity: Its node.
        address: ``host:port`` to dial.
        roots: Its institution's roots, at most two.
    """

    institution: str
    identity: Identity
    address: str
    roots: tuple[x509.Certificate, ...]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One for each root, to be compared out of band."""
        return tuple(fingerprint(root) for root in self.roots)

    @property
    def fingerprint(self) -> str:
        """The fingerprints on one line."""
        return ", ".join(self.fingerprints)

    def still_vouches_for(self, earlier: Peer) -> bool:
        """Whether a connection that was made by an earlier entry may go on under this one.

        It may when it leads to the same node, and each root by which it may have been verified is pinned still.
        """
        return self.identity == earlier.identity and set(earlier.roots) <= set(self.roots)

    def to_bytes(self) -> bytes:
        """The peer file."""
        content = {
            "format_version": FORMAT_VERSION,
            "institution": self.institution,
            "identity": self.identity.uri,
            "address": self.address,
            "roots": [certificate_pem(root).decode() for root in self.roots],
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def parse_peer(data: bytes, what: str) -> Peer:
    """Read a peer file strictly.

    Args:
        data: The file's content.
        what: What to call it in an error.

    Raises:
        InputError: It is not a peer file, or its parts do not fit together.
    """
    try:
        content = json.loads(data, object_pairs_hook=_once)
    except InputError as exc:
        raise InputError(f"{what} is no peer file: {exc.detail}", hint=_HINT) from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{what} is no peer file: it is not JSON", hint=_HINT) from exc
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise InputError(
            f"{what} is no peer file: it must have exactly {', '.join(sorted(_FIELDS))}", hint=_HINT
        )
    if type(content["format_version"]) is not int or content["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{what} has format version {str(content['format_version'])[:_SHOWN]!a}, "
            f"this release reads {FORMAT_VERSION}",
            hint="ddib --version on both sides",
        )
    texts = (content["institution"], content["identity"], content["address"])
    if not all(isinstance(text, str) and len(text) <= 512 for text in texts):
        raise InputError(f"{what}: institution, identity and address are short texts", hint=_HINT)
    try:
        identity, institution = Identity.parse(texts[1]), check_institution(texts[0])
    except InputError as exc:
        raise InputError(f"{what}: {exc.detail}", hint=_HINT) from exc
    if identity.kind != "node" or identity.institution != institution:
        raise InputError(f"{what}: {identity} is not a node of {institution}", hint=_HINT)
    return Peer(institution, identity, _address(texts[2], what), _roots(content["roots"], institution, what))


def compare(peer: Peer, fingerprints: Sequence[str], *, pinned: tuple[x509.Certificate, ...]) -> None:
    """Compare the given fingerprints with the file, before anything else in the file is used."""
    hint = "compare it with the output of `ddib peer export` there; if it differs, stop"
    for text in fingerprints:
        if not any(same_fingerprint(own, text) for own in peer.fingerprints):
            raise PolicyDenied(
                f"the root of {peer.institution} was not confirmed: {text} was read out, "
                f"its file has {peer.fingerprint}",
                hint=hint,
            )
    for root in peer.roots:
        if root not in pinned and not any(same_fingerprint(fingerprint(root), text) for text in fingerprints):
            raise PolicyDenied(
                f"the root of {peer.institution} is {fingerprint(root)}, which was not confirmed", hint=hint
            )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError("a field is repeated")
    return found


def _address(text: str, what: str) -> str:
    try:
        host, _port = split_address(text)
    except ValueError as exc:
        raise InputError(f"{what}: {exc}", hint=_HINT) from exc
    if "%" in host:
        raise InputError(
            f"{what}: {text!r} names a network interface of one machine, which others do not have", hint=_HINT
        )
    return text


def _roots(blocks: Any, institution: str, what: str) -> tuple[x509.Certificate, ...]:
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MAX_ROOTS:
        raise InputError(f"{what}: roots is a list of 1 to {MAX_ROOTS} certificates in PEM", hint=_HINT)
    roots: list[x509.Certificate] = []
    for block in blocks:
        # An escape of JSON may stand for half a character, which no encoding has; PEM is ASCII.
        found = parse_certificates(
            block.encode("ascii", "replace") if isinstance(block, str) else b"", what, hint=_HINT
        )
        if len(found) != 1:
            raise InputError(f"{what}: one certificate is expected in each entry of roots", hint=_HINT)
        try:
            check_root(found[0], institution)
        except Unauthenticated as exc:
            raise InputError(f"{what}: {exc.detail}", hint=_HINT) from exc
        roots.append(found[0])
    return tuple(roots)
