"""Detached signatures of model bundles by an institution's root: who put these very files together.

`signature.json` lies beside the files of a bundle and changes no digest. It names every file with its SHA-256, the
institution, the root and the time, and is signed with the root's key, which may lie on a machine without a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import BundleInvalid, ModelNotFound
from ddib_fed.files import MAX_SMALL_FILE_BYTES, write_file
from ddib_fed.trust.certificates import Authority, fingerprint
from ddib_fed.trust.identity import check_root

SIGNATURE_FILE: Final = "signature.json"
FORMAT_VERSION: Final = 1
_PURPOSE: Final = b"ddib-fed model bundle\n"
_SIGN: Final = "ddib model sign BUNDLE, where the root's key is"
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Statement(BaseModel):
    """What is signed.

    Attributes:
        format_version: Of the statement.
        institution: Whose root signs.
        root: Fingerprint of the root.
        signed_at: ISO 8601, UTC.
        files: SHA-256, hex, of each file of the bundle, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    institution: str
    root: str
    signed_at: str
    files: dict[str, _Digest]

    @property
    def signed_bytes(self) -> bytes:
        """The bytes under the signature."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return _PURPOSE + text.encode()


class Signed(BaseModel):
    """`signature.json`: the statement, and its ECDSA signature (SHA-256), base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    statement: Statement
    signature: str


def sign_bundle(folder: Path, authority: Authority, *, now: datetime | None = None) -> Statement:
    """Sign the files of a bundle; an earlier signature is replaced.

    Args:
        folder: Of the bundle.
        authority: The institution's root and its key.
        now: For the statement.

    Raises:
        ModelNotFound: There are no files.
    """
    statement = Statement(
        format_version=FORMAT_VERSION,
        institution=authority.institution,
        root=fingerprint(authority.certificate),
        signed_at=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        files=_digests(folder),
    )
    signature = authority.key.sign(statement.signed_bytes, ec.ECDSA(hashes.SHA256()))
    signed = Signed(statement=statement, signature=base64.b64encode(signature).decode())
    write_file(folder / SIGNATURE_FILE, (signed.model_dump_json(indent=1) + "\n").encode(), private=True)
    return statement


def verify_bundle(folder: Path, roots: tuple[x509.Certificate, ...], institution: str) -> Statement:
    """The statement of a bundle, when a root of the institution has signed exactly the files that are there.

    Args:
        folder: Of the bundle.
        roots: The institution's roots.
        institution: Whose signature is wanted.

    Raises:
        ModelNotFound: There are no files.
        BundleInvalid: There is no signature, it is of another root, or of other files.
    """
    signed = _read(folder)
    statement = signed.statement
    if statement.institution != institution:
        raise _invalid(folder, f"it is signed by {statement.institution[:100]!a}, not by {institution}")
    root = next((root for root in roots if fingerprint(root) == statement.root), None)
    if root is None:
        raise _invalid(folder, f"it is signed with another root than those of {institution}")
    check_root(root, institution)
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _invalid(folder, f"the root of {institution} has a key of another kind than signs bundles")
    try:
        key.verify(
            base64.b64decode(signed.signature, validate=True),
            statement.signed_bytes,
            ec.ECDSA(hashes.SHA256()),
        )
    except (InvalidSignature, ValueError) as error:
        raise _invalid(folder, f"its signature is not that of the root of {institution}") from error
    if (found := _digests(folder)) != statement.files:
        changed = sorted(dict(found.items() ^ statement.files.items()))
        raise _invalid(folder, f"{', '.join(changed)[:200]} changed after it was signed")
    return statement


def _read(folder: Path) -> Signed:
    path = folder / SIGNATURE_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SMALL_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise _invalid(folder, "it is not signed") from error
    try:
        signed = Signed.model_validate_json(data)
    except ValidationError as error:
        raise _invalid(folder, f"{SIGNATURE_FILE} cannot be read") from error
    if signed.statement.format_version != FORMAT_VERSION:
        raise _invalid(folder, f"{SIGNATURE_FILE} is of another release")
    return signed


def _digests(folder: Path) -> dict[str, str]:
    """Of every file of the bundle but the signature."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.name != SIGNATURE_FILE:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if not found:
        raise ModelNotFound(f"there is no model bundle in {folder}")
    return found


def _invalid(folder: Path, problem: str) -> BundleInvalid:
    return BundleInvalid(f"{folder}: {problem}", hint=_SIGN, facts={"file": SIGNATURE_FILE})
