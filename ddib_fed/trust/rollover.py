"""Root roll-over in three steps, with old and new root trusted together in between.

    start    a new root is made and trusted beside the old one; peers are given both
    switch   certificates come from the new root from now on
    finish   the old root is no longer trusted, once every certificate from it has been renewed

No step needs two machines at the same moment, and no key is overwritten.
"""

from __future__ import annotations

from pathlib import Path

from ddib_fed.errors import AlreadyExists, InputError, StateConflict
from ddib_fed.files import read_private, read_small, write_file
from ddib_fed.trust.certificates import certificate_pem, new_authority, parse_certificates
from ddib_fed.trust.pki import Authority, changing_roots, load_authority, load_keys, write_key

_NEXT_KEY, _NEXT_CERTIFICATE = "ca-next.key", "ca-next.pem"


def start(folder: Path) -> Authority:
    """Make the next root, and trust it beside the current one.

    Raises:
        FileMissing: The folder does not issue.
        AlreadyExists: A roll-over is under way.
    """
    with changing_roots(folder):
        return _start(folder)


def _start(folder: Path) -> Authority:
    current = load_authority(folder)
    roots = parse_certificates(read_small(folder / "roots.pem"), "roots.pem")
    if (folder / _NEXT_KEY).exists() or len(roots) > 1:
        raise AlreadyExists(f"a roll-over is under way in {folder}", hint="ddib pki show")
    successor = new_authority(current.institution)
    write_key(folder / _NEXT_KEY, successor.key)
    write_file(
        folder / _NEXT_CERTIFICATE, certificate_pem(successor.certificate), private=True, overwrite=False
    )
    write_file(
        folder / "roots.pem", certificate_pem(current.certificate, successor.certificate), private=True
    )
    return successor


def switch(folder: Path) -> Authority:
    """Issue from the next root; the old one's files are kept under another name.

    Raises:
        StateConflict: No roll-over was started.
        InputError: The next root and its key cannot be read, or do not belong together.
    """
    key, certificate = folder / _NEXT_KEY, folder / _NEXT_CERTIFICATE
    if not certificate.exists():
        raise StateConflict(f"no roll-over was started in {folder}", hint="ddib pki init --roll-over start")
    _check_next(folder, key if key.exists() else folder / "ca.key", certificate)
    if key.exists():
        old = load_authority(folder).certificate.serial_number
        write_file(folder / f"old-{old:x}-ca.key", read_private(folder / "ca.key"), private=True)
        write_file(folder / f"old-{old:x}-ca.pem", read_small(folder / "ca.pem"), private=True)
        key.replace(folder / "ca.key")
    certificate.replace(
        folder / "ca.pem"
    )  # a crash before this line leaves the certificate for the next attempt
    return load_authority(folder)


def _check_next(folder: Path, key: Path, certificate: Path) -> None:
    """Check, before a file is moved, that the key is the next root's and that the root is trusted."""
    successor = parse_certificates(read_small(certificate), str(certificate))[0]
    if load_keys(read_private(key), key)[0].public_key() != successor.public_key():
        raise InputError(f"{key} is not the key of {certificate}", hint="put both back from a backup")
    if successor not in parse_certificates(read_small(folder / "roots.pem"), "roots.pem"):
        raise StateConflict(
            f"the root in {certificate} is not among those trusted in {folder / 'roots.pem'}",
            hint=f"move {certificate} away, then ddib pki init --roll-over start",
        )


def finish(folder: Path) -> Authority:
    """Trust only the current root.

    Raises:
        StateConflict: The switch has not happened, or there is one root only.
    """
    if (folder / _NEXT_CERTIFICATE).exists():
        raise StateConflict(
            "certificates still come from the old root", hint="ddib pki init --roll-over switch"
        )
    with changing_roots(folder):
        current = load_authority(folder)
        if len(parse_certificates(read_small(folder / "roots.pem"), "roots.pem")) < 2:
            raise StateConflict(f"no roll-over is under way in {folder}")
        write_file(folder / "roots.pem", certificate_pem(current.certificate), private=True)
    return current
