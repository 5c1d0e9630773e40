"""A certificate for content credentials: an authority of its own, and a leaf that may sign documents."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ddib_fed.client.credentials import OFFLINE, PNG


def read_mark(content: bytes) -> dict | None:
    """The statement inside a PNG as C2PA's JSON; None without one."""
    with c2pa.Context.from_dict(OFFLINE) as context:
        try:
            with c2pa.Reader(PNG, io.BytesIO(content), context=context) as reader:
                return json.loads(reader.json())
        except c2pa.C2paError as error:
            if "ManifestNotFound" not in str(error):
                raise
            return None


def write_signer(folder: Path, usage=ExtendedKeyUsageOID.EMAIL_PROTECTION) -> tuple[Path, Path]:
    """Chain and key, PEM, in a folder; `usage` is the leaf's extended key usage."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate(
        "Test root", root_key, "Test root", root_key, [(x509.BasicConstraints(True, None), True)]
    )
    leaf = _certificate(
        "north.example pictures", key, "Test root", root_key,
        [(x509.BasicConstraints(False, None), True), (x509.ExtendedKeyUsage([usage]), False)],
    )  # fmt: skip
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (leaf, root)))
    secret.touch(mode=0o600)
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return chain, secret


def _certificate(name, key, issuer, issuer_key, extensions):
    now = datetime.now(UTC)
    signing = name != issuer
    usage = x509.KeyUsage(signing, False, False, False, False, not signing, not signing, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text):
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "north.example"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )
