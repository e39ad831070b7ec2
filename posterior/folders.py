"""Results on disk: nothing is lost, and nothing is left half written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posterior.errors import FileProblem

_OURS = re.compile(
    r"(degraded|mean|std|draw-\d+)\.(png|npy|nii|nii\.gz|fits|h5|nc)"
    r"|(source|reconstruction|difference|sheet)\.png"
    r"|samples\.safetensors|report\.json",
    re.ASCII,
)


def check_free(folder: Path, overwrite: bool = False) -> None:
    """Raise `FileProblem` unless results may be written to `folder`; touches nothing."""
    if folder.is_dir():
        held = sorted(folder.iterdir())
        foreign = [path.name for path in held if not _is_ours(path)]
        if held and not overwrite:
            raise FileProblem(f"{folder} exists and is not empty: overwrite it or name another")
        if foreign:
            raise FileProblem(
                f"{folder} holds files that are not an earlier result ({foreign[0]}): it is never "
                "overwritten, name another folder"
            )
    elif folder.exists() or folder.is_symlink():
        raise FileProblem(f"{folder} is a file: name a folder")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir():
        raise FileProblem(f"{folder} cannot be made: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FileProblem(f"{folder} cannot be made: {parent} is not writable")


def _is_ours(path: Path) -> bool:
    """A file of an earlier result, or the numbered folder of one image of a batch."""
    if path.name.isdecimal() and path.is_dir() and not path.is_symlink():
        return all(_OURS.fullmatch(inner.name) and inner.is_file() for inner in path.iterdir())
    return bool(_OURS.fullmatch(path.name)) and path.is_file()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` if, and only if, the block succeeds."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as problem:
        raise FileProblem(f"cannot write {folder}: {problem.strerror}") from None
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:  # an interrupt between the two renames too
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    except OSError as problem:
        if isinstance(problem, FileProblem):
            raise
        raise FileProblem(f"cannot write {folder}: {problem.strerror or problem}") from problem
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if, and only if, the block succeeds."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    except OSError as problem:
        raise FileProblem(f"cannot write {path}: {problem.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as problem:
        raise FileProblem(f"cannot write {path}: {problem.strerror or problem}") from problem
    finally:
        temporary.unlink(missing_ok=True)
