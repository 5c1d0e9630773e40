"""Content credentials (C2PA) in PNG files: a signed statement inside the file that a model made it.

The EU's AI Act asks for a mark that machines can read (Article 50(2)). Nothing is asked of the network: no time stamp
authority, no remote manifest. The certificate must be one for content credentials (C2PA 2.1, 14.5): its extended key
usage allows e-mail protection, document signing or C2PA claims, and it is signed by another.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ConfigError, InputError, extra
from ddib_fed.files import read_private, read_small
from ddib_fed.names import __version__
from ddib_fed.record import Record

PNG: Final = "image/png"
MADE_BY_A_MODEL: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for a picture that a trained model made."""
_MAKER: Final = {"name": "ddib-fed", "version": __version__}
OFFLINE: Final = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"ocsp_fetch": False, "remote_manifest_fetch": False},
}
"""No smaller copy of the picture beside it, and nothing from the network."""
_CURVES: Final = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_HOW: Final = "docs/formats.md says which certificate is needed and how to make one for a trial"


@dataclass(frozen=True, slots=True)
class Credentials:
    chain: str
    key: str
    algorithm: str

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Credentials:
        _c2pa()
        chain, secret = read_small(certificate, hint=_HOW), read_private(key, hint=_HOW)
        if b"BEGIN CERTIFICATE" not in chain:
            raise ConfigError(f"{certificate} holds no certificate in PEM", hop="client", hint=_HOW)
        try:
            loaded = load_pem_private_key(secret, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"{key} holds no plain private key in PEM: {error}", hop="client", hint=_HOW
            ) from error
        algorithm = "ps256" if isinstance(loaded, rsa.RSAPrivateKey) else None
        if isinstance(loaded, ec.EllipticCurvePrivateKey):
            algorithm = _CURVES.get(loaded.curve.name)
        elif isinstance(loaded, ed25519.Ed25519PrivateKey):
            algorithm = "ed25519"
        if algorithm is None:
            why = f"{key}: C2PA signs with ECDSA (P-256, P-384, P-521), Ed25519 or RSA"
            raise ConfigError(why, hop="client", hint=_HOW)
        signer = cls(chain.decode("ascii", "replace"), secret.decode("ascii", "replace"), algorithm)
        # Signing a picture shows whether a certificate is accepted.
        _sign(encode_png(np.zeros((1, 1, 1), np.uint8)), _statement("A trial of the certificate", {}), signer)
        return signer


def mark(content: bytes, record: Record, credentials: Credentials) -> bytes:
    """Return the PNG with a signed statement, which has no file name and nothing of the source picture."""
    about = (
        f"Translated from {record.source_institution}/{record.source_domain} to "
        f"{record.target_institution}/{record.target_domain}"
    )
    names = ("source_model_sha256", "target_model_sha256", "contract_sha256")
    return _sign(content, _statement(about, {name: getattr(record, name) for name in names}), credentials)


def _sign(content: bytes, manifest: dict[str, Any], credentials: Credentials) -> bytes:
    package = _c2pa()
    try:
        parts = credentials.algorithm, credentials.chain, credentials.key
        info = package.C2paSignerInfo(*(part.encode() for part in parts), None)
        with package.Signer.from_info(info) as signer, package.Context.from_dict(OFFLINE) as context:
            builder = package.Builder(json.dumps(manifest), context)
            out = io.BytesIO()
            builder.sign(signer, PNG, io.BytesIO(content), out)
    except package.C2paError as error:
        raise InputError(f"credentials were refused: {error}"[:400], hop="client", hint=_HOW) from error
    return out.getvalue()


def _c2pa() -> Any:
    with extra("c2pa", "c2pa-python", "content credentials need c2pa-python, which is not installed"):
        import c2pa
    return c2pa


def _statement(about: str, models: dict[str, str]) -> dict[str, Any]:
    created = {
        "action": "c2pa.created",
        "digitalSourceType": MADE_BY_A_MODEL,
        "softwareAgent": _MAKER,
        "description": about,
    }
    return {
        "claim_generator_info": [_MAKER],
        "format": PNG,
        "title": "synthetic picture",
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [created]}},
            {"label": "org.ddib-fed.translation", "data": models},
        ],
    }
