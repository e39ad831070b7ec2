"""The result of a run: draws, their statistics, diagnostics, and how they were made."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from posterior.errors import CapabilityError, FileProblem, InputError
from posterior.operators.base import check_number

_FORMAT = "posterior.samples/1"


@dataclass(frozen=True, eq=False)
class Samples:
    """Draws from p(x | y), n for each of B measurements.

    Attributes:
        draws: (n, B, *event), decoded where the prior is a latent one.
        diagnostics: per draw, each (n, B): `residual` is the root mean square of (y - A(x)) / std
            (1 for the truth; absent without a measurement), `failed_step` the step at which a row
            turned non-finite and was frozen (-1: it did not).
        provenance: method, prior, operator, seed, versions, counts, seconds: JSON values.
        latents: the draws before decoding, or None.
    """

    draws: Tensor
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    latents: Tensor | None = None

    @property
    def good(self) -> Tensor:
        """(n, B) bool: the draws that were not frozen on the way."""
        failed = self.diagnostics.get("failed_step")
        if failed is None:
            return torch.ones(self.draws.shape[:2], dtype=torch.bool)
        return failed < 0

    @cached_property
    def mean(self) -> Tensor:
        """Mean over the draws that did not fail, (B, *event)."""
        kept = self._weights()
        return torch.where(kept > 0, self.draws, 0).sum(0) / kept.sum(0)

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation over the draws, (B, *event); needs two draws."""
        kept = self._weights()
        if bool((kept.sum(0) < 2).any()):
            raise InputError("a standard deviation needs at least two draws: ask for n >= 2")
        squares = torch.where(kept > 0, (self.draws - self.mean) ** 2, 0).sum(0)
        return (squares / (kept.sum(0) - 1)).sqrt()

    def quantile(self, q: float) -> Tensor:
        """The q-quantile over the draws, (B, *event), 0 <= q <= 1."""
        q = check_number("a quantile", q, 0, 1)
        draws = torch.where(self._weights() > 0, self.draws, torch.nan)
        return torch.nanquantile(draws, q, dim=0)

    @property
    def report(self) -> str:
        """What was run and how it went, a line each."""
        return "\n".join(self._report_lines())

    def _weights(self) -> Tensor:
        good = self.good.to(self.draws)
        return good.reshape(*good.shape, *([1] * (self.draws.ndim - 2)))

    def _report_lines(self) -> list[str]:
        p = self.provenance
        n, b = self.draws.shape[:2]
        lines = [
            f"{n} draws of {b} measurement{'s' * (b != 1)}, event {tuple(self.draws.shape[2:])}"
        ]
        for key in ("method", "why", "prior", "operator", "noise", "grid"):
            if p.get(key):
                lines.append(f"{key}: {p[key]}")
        if "nfe" in p:
            lines.append(
                f"cost: {p['nfe']:g} network evaluations and {p['vjp']:g} backward passes per draw,"
                f" {p['seconds']:.3g} s in all"
            )
        r = self.diagnostics.get("residual", torch.empty(0))
        r = r[torch.isfinite(r)]
        if r.numel():
            lines.append(
                f"residual over noise: {float(r.mean()):.3g} on average (1 for the truth),"
                f" {float(r.min()):.3g} to {float(r.max()):.3g}"
            )
        failed = int((~self.good).sum())
        if failed:
            lines.append(f"FAILED: {failed} of {n * b} draws turned non-finite and were frozen")
        lines.extend(p.get("notes", []))
        return lines

    def to_xarray(self) -> Any:
        """An `xarray.Dataset`: `draws`, `mean`, `std`, diagnostics and latents with named axes.

        Axes are `draw` and `measurement`, then those of the event by their number: (channel, y, x)
        for images, (channel, z, y, x) for volumes, `x` for vectors, `axis0`, `axis1`, ... for
        others; those of latents begin with `latent_`. `std` is there where every measurement has
        two good draws; the mean is over good draws, too. The attributes are the provenance, values
        that are not numbers or texts as JSON, so that `to_netcdf` writes them.

        Raises:
            CapabilityError: xarray is not installed.
        """
        try:
            xarray = importlib.import_module("xarray")
        except ImportError:
            raise CapabilityError(
                'to_xarray needs xarray: pip install "posterior-sampling[xarray]"'
            ) from None
        axes = _axis_names(self.draws.ndim - 2)
        each = ("draw", "measurement")
        variables = {
            "draws": ((*each, *axes), self.draws),
            "mean": (("measurement", *axes), self.mean),
            **{key: (each, value) for key, value in self.diagnostics.items()},
        }
        if bool((self.good.sum(0) >= 2).all()):
            variables["std"] = (("measurement", *axes), self.std)
        if self.latents is not None:
            inner = (f"latent_{axis}" for axis in _axis_names(self.latents.ndim - 2))
            variables["latents"] = ((*each, *inner), self.latents)
        n, b = self.draws.shape[:2]
        first = int(self.provenance.get("first_draw") or 0)
        return xarray.Dataset(
            {key: (dims, value.detach().cpu().numpy()) for key, (dims, value) in variables.items()},
            {"draw": range(first, first + n), "measurement": range(b)},
            {k: _attribute(v) for k, v in self.provenance.items() if v is not None},
        )

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write samples.safetensors and report.json into `folder`; refuses to overwrite."""
        out = Path(folder)
        if out.exists() and not out.is_dir():
            raise FileProblem(f"{out} is a file: name a folder to save into")
        data, report = out / "samples.safetensors", out / "report.json"
        for path in (data, report):
            if path.exists() and not overwrite:
                raise FileProblem(f"{path} exists: choose another folder or pass overwrite=True")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileProblem(f"cannot make the folder {out}: {error}") from None
        tensors = {"draws": self.draws}
        if self.latents is not None:
            tensors["latents"] = self.latents
        tensors |= {f"diagnostics.{k}": v for k, v in self.diagnostics.items()}
        save_tensors(data, tensors, {"format": _FORMAT, "provenance": json.dumps(self.provenance)})
        write_atomically(report, to_json(self.summary()))
        return out

    def summary(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "report": self._report_lines(),
            "provenance": dict(self.provenance),
            "diagnostics": {k: v.tolist() for k, v in self.diagnostics.items()},
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Samples:
        """Read what `save` wrote."""
        path = Path(folder)
        path = path / "samples.safetensors" if path.is_dir() else path
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != _FORMAT:
            raise FileProblem(f"{path} was not written by Samples.save")
        return Samples(
            tensors["draws"],
            {k[12:]: v for k, v in tensors.items() if k.startswith("diagnostics.")},
            json.loads(metadata["provenance"]),
            tensors.get("latents"),
        )


def _axis_names(count: int) -> tuple[str, ...]:
    """Names of the axes of an event, by their number."""
    known = {
        0: (),
        1: ("x",),
        2: ("y", "x"),
        3: ("channel", "y", "x"),
        4: ("channel", "z", "y", "x"),
    }
    return known.get(count) or tuple(f"axis{k}" for k in range(count))


def _attribute(value: object) -> str | int | float:
    """A value of the provenance as NetCDF has them."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(value)


def to_json(value: object) -> bytes:
    """A JSON document; null for the numbers that JSON does not have (inf, nan)."""

    def plain(value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return (json.dumps(plain(value), indent=2) + "\n").encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".part-{path.name}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FileProblem(f"cannot write {path}: {error}") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all."""
    part = path.with_name(f".part-{path.name}")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise FileProblem(f"cannot write {path}: {error}") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file."""
    if not path.is_file():
        raise FileProblem(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise FileProblem(f"{path} is not a readable safetensors file: {error}") from None
