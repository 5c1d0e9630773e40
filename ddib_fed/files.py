"""Durable, private files: written whole or not at all, mode 0600; keys are read only where others cannot.

A reader sees the old bytes or the new ones, never a part; nothing is overwritten by default; and a key that
others can read or replace is not used, as with ssh.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import rfc8785

from ddib_fed.errors import AlreadyExists, ConfigError, FileMissing, InputError, MessageInvalid, StateConflict
from ddib_fed.names import nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound="BaseModel")

# A PEM chain, a peer file or a request is a few KiB.
MAX_SMALL_FILE_BYTES = 64 << 10
RETRY_AFTER_S = 60.0  # how often a full disk is worth looking at again
MANY, SIDE_BY_SIDE, SHARED = 3, 16, 64
"""Files from which they are synced side by side, how many at once, and how many by threads that stay."""
LOCK = ".ddib-translate.lock"


def make_private_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, each for its owner alone, and their names durable."""
    for each in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        each.mkdir(mode=0o700, exist_ok=True)
        sync_folder(each.parent)
    folder.mkdir(mode=0o700, exist_ok=True)  # raises if it is a file


def private_folder(folder: Path) -> Path:
    """Make a folder as `make_private_folders` does, and make an existing one private."""
    make_private_folders(folder)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def model_folder(path: Path) -> Path:
    """Make a folder of weights, private if this user may change it; its files are private in any case."""
    make_private_folders(path)
    with suppress(PermissionError):
        private_folder(path)
    return path


def check_private_folder(folder: Path) -> None:
    """Check that only this user can write to a folder, or that it can be created."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    _check_usable(there, 0o700)
    if there == folder:
        refuse_open_folder(folder)


def check_private_file(path: Path) -> None:
    """Check that this user can read and write a file, or that it is missing."""
    if os.path.lexists(path):
        _check_usable(path, 0o600)


def _check_usable(path: Path, mode: int) -> None:
    """Check that a path is a folder (mode 0700) or a file (0600) which this user can use so."""
    name, folder, uid = shlex.quote(str(path)), mode == 0o700, os.geteuid()
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}", hint=f"namei -l {name}") from error
    if not (stat.S_ISDIR(status.st_mode) if folder else stat.S_ISREG(status.st_mode)):
        raise ConfigError(f"{path} is no {'folder' if folder else 'file'}", hint=f"move {path} away")
    if os.access(path, mode >> 6, effective_ids=os.access in os.supports_effective_ids):
        return
    if status.st_uid != uid:
        hint = f"chown {uid} {name}"
    elif status.st_mode & mode != mode:
        hint = f"chmod {mode:o} {name}"
    else:
        hint = f"findmnt -T {name} shows whether it is mounted read-only"
    raise ConfigError(f"{path} cannot be read and written by the user {uid}", hint=hint)


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def write_file(path: Path, data: bytes, *, private: bool = False, overwrite: bool = True) -> None:
    """Write a file atomically and durably: a synced temporary file beside it is renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600 if private else 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
    except FileExistsError as error:
        hint = f"move {path} away first if it is meant to be replaced"
        raise AlreadyExists(f"{path} exists and is not overwritten", hint=hint) from error
    except OSError as error:
        error.filename = error.filename or str(path)  # writing to an open file names none
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_each(paths: Sequence[Path] | Sequence[str]) -> dict[int, OSError]:
    """Sync files side by side, so that one commit of the journal covers many; return errors by position."""

    def sync(path: Path | str) -> OSError | None:
        try:
            sync_folder(path)
        except OSError as error:
            return error
        return None

    if len(paths) <= SHARED:
        results = list((map if len(paths) < MANY else _syncing().map)(sync, paths))
    else:  # with threads of its own: others would wait for all of them
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="sync") as threads:
            results = list(threads.map(sync, paths))
    return {place: error for place, error in enumerate(results) if error is not None}


@cache
def _syncing() -> ThreadPoolExecutor:
    """Return lasting threads: starting some for each group of files takes longer than syncing it."""
    return ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="sync")


def sync_folder(folder: Path | str) -> None:
    """Make added and removed names of a folder durable, or what was written to a file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(out: Path, hint: str = "wait for it to end, or choose another --out folder") -> Iterator[None]:
    """Let this process alone write to a folder, which is made if it is missing; raise StateConflict if another does."""
    made, lock = not out.exists(), out / LOCK
    make_private_folders(out)
    with lock.open("ab") as file:  # NFS locks no folder, and no file that is open for reading alone
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):  # the other has it, or has just removed it
            alone = False
        except OSError:
            alone = True  # a file system without locks: a second run there is not noticed
        if not alone:
            raise StateConflict(f"another command is writing to {out}", hint=hint, hop="client")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    out.rmdir()


def write_json(path: Path, figures: Mapping[str, Any], *, private: bool = False) -> None:
    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    write_file(path, (text + "\n").encode(), private=private)


def has_sha256(path: Path, sha256: object) -> bool:
    """Return whether a file exists and has this SHA-256, hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def parse_json(data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it cannot be read."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give a private, empty folder, which is renamed to `path` at the end; after an error nothing is left of it.

    A folder that is there already is moved aside first and removed last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.new.", dir=path.parent))
    try:
        yield staging
        if path.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(aside / path.name)
            staging.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            staging.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_folder(source: Path, path: Path) -> None:
    """Copy the files of a folder, e.g. of weights that ship with the package; the copy is private."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in sorted(entry for entry in source.iterdir() if entry.is_file()):
        write_file(path / file.name, file.read_bytes(), private=True)


def read_private(path: Path, *, hint: str = "", max_bytes: int = MAX_SMALL_FILE_BYTES) -> bytes:
    """Return the content of a secret file; raise unless only its owner can read or replace it."""
    for folder in dict.fromkeys((path.parent, path.resolve().parent)):
        if folder.is_dir():
            refuse_open_folder(folder)
    return read_small(path, hint=hint, private=True, max_bytes=max_bytes)


def refuse_open_folder(folder: Path) -> None:
    """Raise unless only its owner, this user or root, can put files into a folder."""
    try:
        status = folder.stat()
    except OSError as exc:
        raise FileMissing(f"there is no {folder}") from exc
    _check_owner(folder, status)
    if not status.st_mode & 0o022:
        return
    if status.st_mode & stat.S_ISVTX:  # /tmp: others need it as it is
        raise ConfigError(
            f"{folder} is a folder that everybody shares, and keys lie in it",
            hint="move them to one of your own",
        )
    raise ConfigError(
        f"{folder} can be written to by others than its owner (mode {stat.S_IMODE(status.st_mode):04o}), who could put "
        "other keys there",
        hint=f"chmod 700 {shlex.quote(str(folder))}",
    )


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(
            f"{path} belongs to the user {found.st_uid}, and this process runs as {os.geteuid()}",
            hint=f"run this as that user, or: chown {os.geteuid()} {shlex.quote(str(path))}",
        )


def read_small(
    path: Path,
    *,
    hint: str = "",
    private: bool = False,
    pipe: bool = False,
    max_bytes: int = MAX_SMALL_FILE_BYTES,
) -> bytes:
    """Return a small file's content; it must be regular unless `pipe`, and unreadable for others if `private`."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        with open(path, "rb", opener=None if pipe else without_waiting) as file:
            status = os.fstat(file.fileno())
            if not pipe and not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is no regular file", hint=hint or f"move {path} away")
            if private:
                _check_owner(path, status)
            if private and status.st_mode & 0o077:
                raise ConfigError(
                    f"{path} can be read by others than its owner (mode {stat.S_IMODE(status.st_mode):04o})",
                    hint=f"chmod 600 {shlex.quote(str(path))}",
                )
            data = file.read(max_bytes + 1)
    except FileNotFoundError as exc:
        what = f"{path} is a link that leads nowhere" if path.is_symlink() else f"there is no {path}"
        raise FileMissing(what, hint=hint) from exc
    except OSError as exc:
        look = f"namei -l {shlex.quote(str(path))} shows each folder of the path and who may read there"
        raise InputError(f"{path} cannot be read: {exc.strerror}", hint=look) from exc
    if len(data) > max_bytes:
        raise InputError(f"{path} is larger than {max_bytes} bytes", hint=hint)
    return data


DIGEST_BYTES = 32

Value = Mapping[str, "Value"] | Sequence["Value"] | str | bool | int | float


def canonical_json(value: Value) -> bytes:
    """Return the canonical text of a value, as ASCII bytes.

    Raise ValueError for a string that is not printable ASCII, an integer over 2^53 - 1, or a number that is not finite.
    """
    return rfc8785.dumps(_narrowed(value))


def _narrowed(value: Value) -> Any:
    """Return the value in the types that the library writes; raise for an ambiguous one."""
    if isinstance(value, str):
        if not (value.isascii() and value.isprintable()):
            raise ValueError("only printable ASCII is hashed")
        return value
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_narrowed(key): _narrowed(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_narrowed(item) for item in value]
    raise TypeError(f"{type(value).__name__} does not occur in what is hashed")


def require(ok: bool, field: str, detail: str) -> None:
    """Raise MessageInvalid with the field unless `ok`; domain types check their fields with it."""
    if not ok:
        raise MessageInvalid(f"{field}: {detail}", facts={"field": field})


MAX_CONFIG_BYTES = 1 << 20


def load_toml(path: Path, model: type[M], *, hint: str) -> M:
    from pydantic import ValidationError

    data = read_small(path, hint=hint, pipe=True, max_bytes=MAX_CONFIG_BYTES)
    try:
        values = tomllib.loads(data.decode("utf-8-sig"))  # some editors put a BOM first
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}", hint="save it as UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply", hint=f"correct {path}") from error
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, data.decode("utf-8-sig"), error) from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ConfigError(f"{path} cannot be used:\n  " + "\n  ".join(lines), hint=f"edit {path}") from error


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the field of the first problem that pydantic found, and the problem; its value is not quoted."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


def problem_text(error: ValidationError) -> str:
    """Return the first problem as FIELD: PROBLEM; without a field where it is of the whole text."""
    return ": ".join(filter(None, first_problem(error)))


def _not_toml(path: Path, text: str, error: tomllib.TOMLDecodeError) -> ConfigError:
    """Return the error of invalid TOML; it names the lines of a table that is declared twice."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    tables = [each for each in lines if re.fullmatch(r"\[[\w.\"' -]+\]", each)]
    twice = next((each for each in tables if tables.count(each) > 1), None)
    if twice is None:
        return ConfigError(f"{path} is not valid TOML: {error}", hint=f"correct {path}")
    places = " and ".join(str(number) for number, line in enumerate(lines, start=1) if line == twice)
    hint = f"merge the {twice} tables: all their keys below one header"
    return ConfigError(f"{path} declares {twice} twice, in lines {places}", hint=hint)


def _explain(model: type[BaseModel], item: Any) -> str:
    """Return one line for one pydantic error, with a suggestion for a misspelt key."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _keys_at(model, item["loc"][:-1])
        close = nearest(str(item["loc"][-1]), known, cutoff=0.5)
        meant = f"did you mean {close!r}?" if close else f"known keys: {', '.join(known) or 'none'}"
        return f"{where}: unknown key; {meant}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {message} (got {item.get('input')!r})" if where else message


def _keys_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Return the known keys of the table that has a wrong key."""
    current: Any = model
    for part in location:
        field = current.model_fields.get(str(part)) if current else None
        arms = (field.annotation, *get_args(field.annotation)) if field else ()
        current = next((arm for arm in arms if hasattr(arm, "model_fields")), None)
    return sorted(current.model_fields) if current else []
