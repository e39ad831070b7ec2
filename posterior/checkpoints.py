"""The saved state of a run, and the proof that it belongs to the run that continues it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from posterior.errors import FileProblem, InputTypeError, ResumeError
from posterior.fingerprints import fingerprint
from posterior.samples import load_tensors, save_tensors

_FORMAT = "posterior.checkpoint/1"


@dataclass(frozen=True)
class Saved:
    """Where a run stands: the state and failures of its rows, moves done, counts, seconds spent."""

    state: dict[str, Tensor]
    failed: Tensor
    done: int
    nfe: int
    vjp: int
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of the run described by `identity` in a folder, one file, replaced whole."""

    folder: str | os.PathLike[str]
    identity: Mapping[str, object]

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)):
            raise InputTypeError(
                f"checkpoint= and resume= are folders, not {type(self.folder).__name__}"
            )

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / "checkpoint.safetensors"

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Content hash of every part of the identity."""
        return {name: fingerprint(part) for name, part in self.identity.items()}

    def prepare(self, resumed: bool) -> Checkpoint:
        """Make the folder; refuse to replace the checkpoint of another run, or unasked this one's.

        Args:
            resumed: the run continues a checkpoint, so its own may be replaced.
        """
        folder = Path(self.folder)
        if folder.exists() and not folder.is_dir():
            raise FileProblem(f"checkpoint={folder} is a file: name a folder")
        if self.path.exists():
            try:
                self.load()
            except ResumeError as error:
                raise FileProblem(f"{error}; choose another folder for this one") from None
            if not resumed:
                raise FileProblem(
                    f"{self.path} holds this run already: continue it with resume=, or remove it"
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileProblem(f"cannot make the folder {folder}: {error}") from None
        return self

    def save(self, saved: Saved) -> None:
        """Write the state whole or not at all."""
        tensors = {f"state.{k}": v for k, v in saved.state.items()} | {"failed": saved.failed}
        progress = [saved.done, saved.nfe, saved.vjp, saved.seconds]
        metadata = {
            "format": _FORMAT,
            "identity": json.dumps(self.hashes),
            "progress": json.dumps(progress),
        }
        save_tensors(self.path, tensors, metadata)

    def load(self) -> Saved:
        """Read the state; `ResumeError` where anything of the run differs."""
        tensors, metadata = load_tensors(self.path)
        if metadata.get("format") != _FORMAT:
            raise FileProblem(f"{self.path} is not the checkpoint of a run")
        try:
            theirs = json.loads(metadata["identity"])
            done, nfe, vjp, seconds = json.loads(metadata["progress"])
            failed = tensors["failed"]
        except (KeyError, ValueError) as error:
            raise FileProblem(f"{self.path} is a broken checkpoint: {error!r}") from None
        differ = [name for name, value in self.hashes.items() if value != theirs.get(name)]
        if differ:
            raise ResumeError(f"{self.path} holds another run; what differs: {', '.join(differ)}")
        state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
        return Saved(state, failed, done, nfe, vjp, seconds)
