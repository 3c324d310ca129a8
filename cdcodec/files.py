"""Which file goes where, and outputs that are either whole or not there. Standard library only."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cdcodec.errors import CdcodecError, OutputError

STANDARD = "-"
"""As a source, standard input; as a target, standard output."""


class PlanError(ValueError):
    """The paths on the command line do not say what is to be written where."""


class ExistsError(OutputError):
    """Something stands already where an output was to go."""


@dataclass(frozen=True)
class Job:
    """One file to be made: paths as the user wrote them, or STANDARD."""

    source: str
    target: str


def plan(
    paths: Sequence[str],
    folder: str | None,
    *,
    suffix: str,
    source_suffixes: Collection[str],
    target_suffixes: Collection[str],
) -> list[Job]:
    """What `encode` or `decode` with these paths is to do.

    With `folder`, every path is an input: a file becomes folder/NAME + suffix, a folder is searched for files that end
    in one of `source_suffixes` and its tree is kept. Without, the paths are IN OUT if the second ends in one of
    `target_suffixes` or is STANDARD, else one IN, whose output lies beside it.
    Nothing is created. Raises PlanError, OutputError (colliding names), OSError (a folder cannot be read).
    """
    if folder is not None:
        if len(paths) == 1 and _ending(folder) in target_suffixes and not os.path.isdir(folder):
            raise PlanError(f"-o names a folder; to write one file, say: {paths[0]} {folder}")
        jobs = [job for path in paths for job in _into(path, folder, suffix, source_suffixes)]
        return _without_collisions(jobs)
    for path in paths:
        if os.path.isdir(path):
            raise PlanError(f"{path} is a folder: say with -o DIR where its pictures should go")
    if len(paths) == 1:
        source = paths[0]
        target = STANDARD if source == STANDARD else os.path.splitext(source)[0] + suffix
    elif len(paths) == 2 and (paths[1] == STANDARD or _ending(paths[1]) in target_suffixes):
        source, target = paths
    else:
        hint = f"; {paths[1]} is not a name for an output" if len(paths) == 2 else ""
        raise PlanError(f"several inputs need -o DIR{hint}")
    return _without_collisions([Job(source, target)])


def prepare(jobs: Sequence[Job], *, create: bool) -> None:
    """Make sure that the folders of all targets exist and can be written to; `create` makes missing ones.

    Raises OutputError, also where standard output is asked for and is a terminal.
    """
    if any(job.target == STANDARD for job in jobs):
        _refuse_terminal()
    for folder in dict.fromkeys(os.path.dirname(job.target) or os.curdir for job in jobs if job.target != STANDARD):
        if create:
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise OutputError(f"the folder {folder} cannot be created: {error.strerror}") from error
        if not os.path.isdir(folder):
            raise OutputError(f"the folder {folder} does not exist; create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {folder} is not writable")


def exists(job: Job) -> bool:
    """Whether something stands where the output is to go."""
    return job.target != STANDARD and os.path.lexists(job.target)


def read(source: str) -> bytes:
    """The contents of a file or of standard input. Raises CdcodecError."""
    try:
        if source == STANDARD:
            if sys.stdin is None:  # where it was closed
                raise CdcodecError("it is closed; name a file, or pipe one in")
            if sys.stdin.isatty():
                raise CdcodecError("standard input is a terminal; name a file, or pipe one in")
            return sys.stdin.buffer.read()
        with open(source, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise CdcodecError("no such file") from None
    except IsADirectoryError:
        raise CdcodecError("this is a folder, not a file") from None
    except OSError as error:
        raise CdcodecError(f"cannot be read: {error.strerror or error}") from error


def write(target: str, data: bytes, *, force: bool) -> None:
    """Write a whole file or nothing, or to standard output.

    The bytes go to a temporary file beside the target that is then renamed, so that a failed or interrupted run leaves
    the target as it was. Without `force` an existing file is never replaced, not even one that appeared meanwhile.
    Raises OutputError; BrokenPipeError when nobody reads standard output any more.
    """
    if target == STANDARD:
        _refuse_terminal()
        rest = memoryview(data)
        while rest:  # unbuffered (python -u), it takes only as much as fits the pipe
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
        return
    if force and os.path.islink(target):
        target = os.path.realpath(target)
    temporary = os.path.join(os.path.dirname(target), f".cdcodec-{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        if force:
            os.replace(temporary, target)
        else:
            _rename_to_new(temporary, target)
    except FileExistsError:
        raise already_exists(target) from None
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        _remove_if_there(temporary)


def shown(source: str) -> str:
    """A source as messages name it."""
    return "standard input" if source == STANDARD else source


def already_exists(target: str) -> ExistsError:
    return ExistsError(f"{target} exists already; --force replaces it, --skip-existing leaves it alone")


def one_line(error: BaseException) -> str:
    """What to tell the user about an error."""
    if isinstance(error, CdcodecError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error) or "out of memory" in str(error):
        text = "not enough memory"
    else:
        text = f"internal error, {type(error).__name__}: {error} (--debug before the command shows where)"
    return " ".join(text.split())


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _into(path: str, folder: str, suffix: str, source_suffixes: Collection[str]) -> Iterator[Job]:
    if path == STANDARD:
        raise PlanError("standard input has no name to use in -o DIR; name the output instead")
    if not os.path.isdir(path):
        yield Job(path, os.path.join(folder, os.path.splitext(os.path.basename(path))[0] + suffix))
        return
    found = False
    for source in _walk(path):
        if _ending(source) in source_suffixes:
            found = True
            yield Job(source, os.path.join(folder, os.path.splitext(os.path.relpath(source, path))[0] + suffix))
    if not found:
        raise PlanError(f"the folder {path} holds nothing to work on")


def _walk(folder: str) -> Iterator[str]:
    """The files below a folder in the order of their names, hidden ones left out."""

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(root, name) for name in sorted(names) if not name.startswith("."))


def _without_collisions(jobs: list[Job]) -> list[Job]:
    """The jobs, each source once. Raises OutputError if two would write the same file, or one its own input."""

    def identity(path: str) -> str:
        path = path if path == STANDARD else os.path.normcase(os.path.abspath(path))
        return unicodedata.normalize("NFC", path).casefold() if sys.platform == "darwin" else path

    taken: dict[str, Job] = {}
    for job in jobs:
        first = taken.setdefault(identity(job.target), job)
        if identity(first.source) != identity(job.source):
            raise OutputError(f"{first.source} and {job.source} would both be written to {job.target}")
    for job in jobs:
        if job.source != STANDARD and identity(job.source) in taken:
            raise OutputError(f"{job.source} would be overwritten by an output; choose another name or folder")
    return list(taken.values())


def _refuse_terminal() -> None:
    if sys.stdout is None:  # where it was closed
        raise OutputError("standard output is closed; name a file, or pipe it on")
    if sys.stdout.isatty():
        raise OutputError("standard output is a terminal; name a file, or pipe it on")


def _rename_to_new(temporary: str, target: str) -> None:
    """Rename without replacing (but for a file that appears at that very moment, where there are no hard links). Raises
    FileExistsError."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError, NotImplementedError):  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError from None
        os.replace(temporary, target)


def _remove_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
