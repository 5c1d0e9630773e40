"""`ddib model install|activate|rollback|sign|verify`: another model for a node, which may run."""

from __future__ import annotations

from pathlib import Path

import click

from ddib_fed.cli import completing, options
from ddib_fed.cli.help import command
from ddib_fed.cli.next_commands import with_config
from ddib_fed.cli.output import outcome
from ddib_fed.terminal import say


@command(epilog="\b\nExample:\n  ddib model install trained/model --config node.toml")
@options.CONFIG
@options.OUTCOME
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
def install(*, config_path: Path, bundle: Path) -> None:
    """Verify a bundle and copy it to a node's models; `ddib model activate` lets the node serve it.

    A model that is there already gets the bundle's files that change no digest: learned steps, bounds of the gate,
    reports, the signature.
    """
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model import library
    from ddib_fed.trust.audit.log import noting

    config = NodeConfig.load(config_path)
    digest = library.install(
        config, bundle, recorded=lambda digest: noting(config.paths.audit, "model_installed", sha256=digest)
    )
    say(f"installed {digest}")
    say(f"next: ddib model activate {digest[:12]}{with_config(config_path)}")
    outcome(installed=digest)


@command(epilog="\b\nExample:\n  ddib model activate 3f5a9c --config node.toml")
@options.CONFIG
@options.OUTCOME
@click.argument("digest", shell_complete=completing.installed_models)
def activate(*, config_path: Path, digest: str) -> None:
    """Let a node serve an installed model from now on, without a restart.

    Jobs and calls that began with another model are finished on that one. DIGEST may be shortened. A node that does not
    run serves it from its start.
    """
    from ddib_fed.models.bundle import load_bundle
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model import library

    config = NodeConfig.load(config_path)
    _switch(config_path, load_bundle(library.place_of(config, digest)).digest)


@command()
@options.CONFIG
@options.OUTCOME
def rollback(*, config_path: Path) -> None:
    """Let a node serve the previously active model again, as `ddib model activate` does."""
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model import library

    _switch(config_path, library.previous(NodeConfig.load(config_path)))


@command(epilog="\b\nExample:\n  ddib model sign trained/model --pki /mnt/offline/pki")
@options.CONFIG
@click.option(
    "--pki",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder with ca.pem and ca.key, instead of the node's own; it may be on a machine without a network.",
)
@options.OUTCOME
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
def sign(*, config_path: Path, folder: Path | None, bundle: Path) -> None:
    """Sign the files of a bundle with the institution's root; its digest does not change.

    A node with `[model] signed = true` installs and serves only bundles that are signed this way, and guides with such
    a classifier alone.
    """
    from ddib_fed.models.bundle import load_bundle
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.pki import load_authority
    from ddib_fed.trust.signed_bundles import SIGNATURE_FILE, sign_bundle

    authority = load_authority(folder or NodeConfig.load(config_path).paths.pki)
    digest = load_bundle(bundle).digest  # what is signed is a bundle that can be used
    statement = sign_bundle(bundle, authority)
    say(
        f"signed {digest} for {statement.institution}, {len(statement.files)} files: {bundle / SIGNATURE_FILE}"
    )
    outcome(
        signed=digest,
        institution=statement.institution,
        files=len(statement.files),
        signature=bundle / SIGNATURE_FILE,
    )


@command()
@options.CONFIG
@options.OUTCOME
@click.argument("bundle", type=click.Path(file_okay=False, path_type=Path))
def verify(*, config_path: Path, bundle: Path) -> None:
    """Verify that a bundle is whole, and that the institution's root has signed its files."""
    from ddib_fed.models.bundle import load_bundle
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model.library import check_signed

    statement = check_signed(NodeConfig.load(config_path), bundle)
    digest = load_bundle(bundle).digest
    say(f"{digest} was signed by {statement.institution} at {statement.signed_at}")
    outcome(verified=digest, institution=statement.institution, signed_at=statement.signed_at)


def _switch(config_path: Path, digest: str) -> None:
    """Through the running node; by the choice on the disk for one that does not run."""
    from ddib_fed.errors import UnavailableError
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model.library import active_digest, choose
    from ddib_fed.node.running.admin import AdminClient
    from ddib_fed.trust.audit.log import noting

    config = NodeConfig.load(config_path)
    client = AdminClient(config)
    try:
        client.status()
    except UnavailableError:
        serving = active_digest(config)
        with noting(
            config.paths.audit, "model_activated", sha256=digest, before=serving, from_next_start=True
        ):
            before = choose(config, digest).previous
        say(f"active from the next start: {digest[:12]}, before {before[:12] or 'none'}")
        outcome(active=digest, before=before or None, from_next_start=True)
        return
    before = client.activate(digest)
    say(f"active {digest[:12]}, before {before[:12]}; what began with that one is finished on it")
    outcome(active=digest, before=before or None, from_next_start=False)
