"""Science files: arrays of physical values in, results with the same geometry out.

    NIfTI (.nii, .nii.gz)            nibabel
    DICOM (.dcm, .dicom, .ima)       pydicom; results become NIfTI
    FITS (.fits, .fit, .fts)         astropy
    HDF5 (.h5, .hdf5)                h5py
    NetCDF (.nc, .nc4, .cdf)         xarray, with h5netcdf (NetCDF-4) or scipy (NetCDF-3)
    NumPy (.npy)                     numpy

The libraries are extras, imported when a file asks for them. Their own scaling is applied (slope
and intercept of NIfTI and DICOM, BSCALE and BZERO, scale_factor and add_offset), so values are in
the units that the file declares. A file with several arrays is read as `file.h5:name`: a dataset of
HDF5, a variable of NetCDF, an extension of FITS by name or number.

Every array becomes real or complex `values` (D, H, W), D slices of H rows: what a file stores with
axes of length 1 has them again in the result. NIfTI and DICOM are indexed (column, row, slice), so
W is the first axis of a NIfTI array.

DICOM is only read. A clinical DICOM says who acquired what, when and on which machine; a draw of a
model is none of that, and must not look like an acquisition in an archive. Its results are NIfTI
files with the position, orientation and pixel spacing of the input.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from posterior.errors import CapabilityError, FileProblem, InputError
from posterior.folders import replacing

Array = np.ndarray[Any, Any]

MAX_VALUES = 1_000_000_000
"""Files that claim more values than this are refused before they are read."""

_SUFFIXES = {
    ".nii": "NIfTI", ".nii.gz": "NIfTI",
    ".dcm": "DICOM", ".dicom": "DICOM", ".ima": "DICOM",
    ".fits": "FITS", ".fit": "FITS", ".fts": "FITS", ".fits.gz": "FITS",
    ".h5": "HDF5", ".hdf5": "HDF5",
    ".nc": "NetCDF", ".nc4": "NetCDF", ".cdf": "NetCDF",
}  # fmt: skip
_RESULTS = {"DICOM": ".nii.gz", "FITS": ".fits", "HDF5": ".h5", "NetCDF": ".nc", "NumPy": ".npy"}
_SELECTOR = re.compile(r"(.+\.(?:h5|hdf5|nc|nc4|cdf|fits|fit|fts|fits\.gz)):(.+)", re.I | re.S)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's patient axes -> NIfTI's


@dataclass(frozen=True, eq=False)
class ScienceFile:
    """What a file held, and what a result of the same geometry needs.

    Attributes:
        path: of the file, without the name of an array in it.
        format: "NIfTI", "DICOM", "FITS", "HDF5", "NetCDF" or "NumPy".
        values: (D, H, W), float64 or complex128, in the units of the file.
        metadata: what the file says about them (affine, pixel spacing, units, ...), JSON values.
        name: of the array inside the file, "" where there is but one.
        origin: (slice, row, column) of the first voxel, counted in voxels of the file.
        step: voxels of the file per voxel along the three.
    """

    path: Path
    format: str
    values: Array
    metadata: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    step: tuple[float, float, float] = (1.0, 1.0, 1.0)
    _stored: tuple[int, ...] = ()  # the shape in the file
    _axes: tuple[int | None, int, int] = (None, 0, 1)  # of the stored array: slice, row, column
    _template: Any = None  # of the format: header, attributes, coordinates

    @property
    def result_suffix(self) -> str:
        """The suffix of results."""
        if self.format == "NIfTI":
            return ".nii.gz" if self.path.name.lower().endswith(".gz") else ".nii"
        return _RESULTS[self.format]

    @property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest value; of complex ones -m, m with m the largest magnitude."""
        if np.iscomplexobj(self.values):
            largest = float(np.abs(self.values).max())
            return -largest, largest
        return float(self.values.min()), float(self.values.max())

    def window(self, top: int, left: int, height: int, width: int) -> ScienceFile:
        """A part of every slice."""
        return self._cut(slice(None), slice(top, top + height), slice(left, left + width))

    def slices(self, wanted: str) -> ScienceFile:
        """Some slices: "90" or "80:100", counted from 0, the last one excluded; "-1" is the last.

        Raises:
            InputError: it does not say slices, or there are none.
        """
        match = re.fullmatch(r"\s*(-?\d+)\s*|\s*(-?\d*)\s*:\s*(-?\d*)\s*", wanted)
        if match is None:
            raise InputError(f"slices are N or FIRST:END, such as 90 or 80:100, not {wanted!r}")
        depth = self.values.shape[0]
        if match[1] is not None:
            first = int(match[1]) + depth * (int(match[1]) < 0)
            ends = (first, first + 1) if 0 <= first < depth else (0, 0)
        else:
            bounds = slice(*(int(end) if end else None for end in (match[2], match[3])))
            ends = bounds.indices(depth)[:2]
        if ends[0] >= ends[1]:
            raise InputError(f"{self.path.name} has the slices 0 to {depth - 1}, not {wanted}")
        return self._cut(slice(*ends), slice(None), slice(None))

    def enlarged(self, height: int, width: int) -> ScienceFile:
        """The file of results (D, height, width) that cover the same field of view."""
        scale = (1.0, self.values.shape[1] / height, self.values.shape[2] / width)
        origin = _three(
            o + s * (0.5 * f - 0.5) for o, s, f in zip(self.origin, self.step, scale, strict=True)
        )  # centres: the first new voxel begins where the first old one does
        step = _three(s * f for s, f in zip(self.step, scale, strict=True))
        return replace(self, origin=origin, step=step)

    def _cut(self, *ranges: slice) -> ScienceFile:
        firsts = (r.start or 0 for r in ranges)
        origin = _three(
            o + s * first for o, s, first in zip(self.origin, self.step, firsts, strict=True)
        )
        return replace(self, values=self.values[tuple(ranges)], origin=origin)

    @property
    def _moved(self) -> bool:
        return self.origin != (0.0, 0.0, 0.0) or self.step != (1.0, 1.0, 1.0)

    def _stored_as(self, values: Array) -> Array:
        """(D, H, W) with the order and the axes of length 1 of the file; floats of 32 bits."""
        order = [a for a in self._axes if a is not None]
        kept = values if self._axes[0] is not None else values[0]
        kept = kept.transpose(np.argsort(order))
        shape = list(self._stored)
        for axis, size in zip(sorted(order), kept.shape, strict=True):
            shape[axis] = size
        kind = np.complex64 if np.iscomplexobj(values) else np.float32
        array: Array = np.ascontiguousarray(kept.reshape(shape), dtype=kind)
        return array

    def _along(self, axis: int) -> tuple[float, float]:
        """(origin, step) of an axis of the stored array; (0, 1) for one of length 1."""
        which = self._axes.index(axis) if axis in self._axes else None
        return (0.0, 1.0) if which is None else (self.origin[which], self.step[which])


def _three(numbers: Iterable[float]) -> tuple[float, float, float]:
    z, y, x = numbers
    return z, y, x


def split_name(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """`file.h5:name` as (file.h5, name); any other path as (path, "")."""
    text = os.fspath(path)
    match = None if Path(text).exists() else _SELECTOR.fullmatch(text)
    return (Path(match[1]), match[2]) if match else (Path(text), "")


def result_name(path: str | os.PathLike[str]) -> str:
    """The name of the results of a file: brain.nii.gz -> brain, maps.h5:run/t2 -> maps-run-t2."""
    file, name = split_name(path)
    suffix = _suffix(file)
    stem = file.name[: -len(suffix)] if suffix else file.stem
    return "-".join([stem, *filter(None, name.split("/"))])


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format of a science file by its suffix, of a DICOM without one by its beginning."""
    file, _ = split_name(path)
    suffix = _suffix(file)
    if suffix:
        return _SUFFIXES[suffix]
    if not file.suffix or file.suffix[1:].isdigit():  # as scanners name them: IM0001, 1.2.840.1
        try:
            with file.open("rb") as opened:
                return "DICOM" if opened.read(132)[128:] == b"DICM" else None
        except OSError:
            return None
    return None


def read(path: str | os.PathLike[str]) -> ScienceFile:
    """The array of a science file or `.npy`, with its geometry.

    Raises:
        FileProblem: missing, broken, not of its format, several arrays and none named, not a
            two- or three-dimensional array of finite numbers.
        CapabilityError: the library of its format is not installed.
    """
    file, name = split_name(path)
    kind = "NumPy" if file.suffix.lower() == ".npy" else format_of(file)
    if kind is None:
        raise FileProblem(f"{file} is no science file: known are {', '.join(_SUFFIXES)} and .npy")
    if not file.exists():
        raise FileProblem(f"no such file: {file}")
    if not file.is_file():
        raise FileProblem(f"not a file: {file}")
    if file.stat().st_size == 0:
        raise FileProblem(f"{file} is empty")
    try:
        found = _READERS[kind](file, name)
    except (FileProblem, CapabilityError):
        raise
    except MemoryError:
        raise FileProblem(f"{file} does not fit into memory") from None
    except PermissionError:
        raise FileProblem(f"{file} may not be read: permission denied") from None
    except Exception as problem:  # the libraries raise nearly everything on broken files
        text = " ".join(str(problem).split())[:120] or type(problem).__name__
        raise FileProblem(f"{file} is broken, truncated or not {kind} ({text})") from problem
    if not np.isfinite(found.values).all():
        raise FileProblem(f"{path} holds NaN or infinite values: fill them first")
    return found


def from_array(values: Array) -> ScienceFile:
    """Values (H, W) or a stack (N, H, W) as if they came from a `.npy` file.

    Raises:
        InputError: other shapes, NaN.
    """
    try:
        file = _of_numpy(Path("the array"), values)
    except FileProblem as problem:
        raise InputError(str(problem)) from None
    if not np.isfinite(file.values).all():
        raise InputError("the array holds NaN or infinite values: fill them first")
    return file


def write(path: str | os.PathLike[str], values: Array, like: ScienceFile) -> Path:
    """Write values (D, H, W) with the geometry of `like`: same format, 32-bit floats.

    Args:
        path: ends in `like.result_suffix`; written whole or not at all.
        values: as many slices as `like`, in the units of the file.
        like: what the input was, cut and enlarged as the values are.
    """
    path = Path(path)
    if not path.name.lower().endswith(like.result_suffix):
        raise InputError(f"a result of {like.path.name} is {like.result_suffix}, not {path.name}")
    if values.ndim != 3 or values.shape[0] != like.values.shape[0]:
        depth, *size = like.values.shape
        raise InputError(f"values are ({depth}, {size[0]}, {size[1]}), got {values.shape}")
    with _named_as(path, like.result_suffix) as temporary:
        _WRITERS[like.format](temporary, like._stored_as(values), like)
    return path


@contextmanager
def _named_as(path: Path, suffix: str) -> Iterator[Path]:
    """As `replacing`, for libraries that read the format off a double suffix."""
    with replacing(path) as temporary:
        if suffix.count(".") == 1:
            yield temporary
            return
        longer = temporary.with_name(temporary.name + suffix)
        try:
            yield longer
            longer.replace(temporary)
        finally:
            longer.unlink(missing_ok=True)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return max((s for s in _SUFFIXES if name.endswith(s)), key=len, default="")


def _library(module: str, kind: str, package: str | None = None) -> Any:
    """A library of the extra, when a file asks for it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise CapabilityError(
            f"{kind} files need {package or module.split('.')[0]}: "
            'pip install "posterior-sampling[science]"'
        ) from None


def _layout(file: Path, shape: tuple[int, ...], slowest_first: bool = True) -> Any:
    """The stored axes that are (slice, row, column): those longer than 1."""
    if math.prod(shape) > MAX_VALUES:
        raise FileProblem(f"{file} claims {math.prod(shape)} values: cut out the part you mean")
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if not slowest_first:
        axes.reverse()
    if len(axes) not in (2, 3):
        raise FileProblem(
            f"{file} holds an array of shape {tuple(shape)}: an image has two axes longer than 1, "
            "a volume three; extract the part you mean"
        )
    return (None, *axes) if len(axes) == 2 else tuple(axes)


def _found(
    file: Path, kind: str, stored: Array, axes: Any, name: str = "", **known: Any
) -> ScienceFile:
    if stored.dtype.kind not in "biufc":
        raise FileProblem(f"{file}: the values are {stored.dtype}, not numbers")
    order = [axis for axis in axes if axis is not None]
    dtype = np.complex128 if stored.dtype.kind == "c" else np.float64
    ones = [axis for axis in range(stored.ndim) if axis not in order]
    values = stored.transpose([*ones, *order]).reshape(-1, *(stored.shape[a] for a in order[-2:]))
    return ScienceFile(
        file, kind, np.array(values, dtype=dtype), name=name, _stored=tuple(stored.shape),
        _axes=axes, **known,
    )  # fmt: skip


def _choose(file: Path, wanted: str, names: list[str], what: str) -> str:
    """The array that is meant: the named one, or the only one."""
    if wanted:
        if wanted.strip("/") in names:
            return wanted.strip("/")
        raise FileProblem(
            f"{file} has no {what} {wanted!r}: there are {', '.join(names) or 'none'}"
        )
    if len(names) == 1:
        return names[0]
    if not names:
        raise FileProblem(f"{file} has no {what} of two or three dimensions")
    raise FileProblem(f"{file} has several {what}s, say which: {file}:{names[0]} ({names})")


# NIfTI and DICOM ---------------------------------------------------------------------------------


def _read_nifti(file: Path, _: str) -> ScienceFile:
    nibabel = _library("nibabel", "NIfTI")
    image = nibabel.load(file)
    if not isinstance(image, nibabel.Nifti1Pair):  # NIfTI-2 is one, too
        raise FileProblem(f"{file} is {type(image).__name__}, not NIfTI")
    axes = _layout(file, image.shape, slowest_first=False)
    header = image.header
    metadata = {
        "affine": np.asarray(image.affine).tolist(),
        "voxel_size": [float(z) for z in header.get_zooms()[:3]],
        "space_units": header.get_xyzt_units()[0],
        "slope_intercept": [image.dataobj.slope, image.dataobj.inter],
    }
    return _found(
        file, "NIfTI", np.asanyarray(image.dataobj), axes, metadata=metadata,
        _template=(type(image), image.affine, header.copy()),
    )  # fmt: skip


def _write_nifti(path: Path, array: Array, like: ScienceFile) -> None:
    nibabel = _library("nibabel", "NIfTI")
    made, affine, header = like._template or (nibabel.Nifti1Image, np.eye(4), None)
    move = np.eye(4)
    for axis in range(min(array.ndim, 3)):
        move[axis, 3], move[axis, axis] = like._along(axis)
    image = made(array, affine @ move, header)
    image.set_data_dtype(array.dtype)
    image.header["cal_min"] = image.header["cal_max"] = 0  # of the display of the input
    if header is not None:
        for get, put in ((header.get_sform, image.set_sform), (header.get_qform, image.set_qform)):
            form, code = get(coded=True)
            put(None if form is None else form @ move, int(code))
    image.to_filename(path)


def _read_dicom(file: Path, _: str) -> ScienceFile:
    pydicom = _library("pydicom", "DICOM")
    try:
        data = pydicom.dcmread(file)
    except pydicom.errors.InvalidDicomError:
        raise FileProblem(f"{file} is not a DICOM file") from None
    if "PixelData" not in data:
        raise FileProblem(f"{file} holds no image (or is truncated before it)")
    if int(data.get("SamplesPerPixel", 1)) != 1:
        raise FileProblem(f"{file} is a colour DICOM: export it as PNG or TIFF")
    claimed = (int(data.get("NumberOfFrames", 1) or 1), int(data.Rows), int(data.Columns))
    _layout(file, claimed)
    pixels = pydicom.pixels.apply_rescale(data.pixel_array, data)
    # indexed as NIfTI, (column, row, slice)
    stored = np.asarray(pixels).T
    metadata: dict[str, Any] = {
        "slope_intercept": [
            float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0)),
        ],
        "units": str(data.get("RescaleType", "HU" if data.get("Modality") == "CT" else "")),
    }  # fmt: skip
    for key in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
        if data.get(key) is not None:
            metadata[key] = [float(v) for v in data[key].value]
    affine = _dicom_affine(data)
    template = None
    if affine is not None:
        nibabel = _library("nibabel", "results of DICOM", "nibabel")
        header = nibabel.Nifti1Header()
        header.set_xyzt_units("mm")
        header.set_sform(affine, "scanner")
        header.set_qform(affine, "scanner")
        template = (nibabel.Nifti1Image, affine, header)
        metadata["affine"] = affine.tolist()
    axes = _layout(file, stored.shape, slowest_first=False)
    return _found(file, "DICOM", stored, axes, metadata=metadata, _template=template)


def _dicom_affine(data: Any) -> Array | None:
    """(column, row, slice) -> RAS millimetres (DICOM PS3.3, C.7.6.2.1.1); None if not stated."""
    keys = ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
    if any(data.get(key) is None for key in keys):
        return None
    spacing, turn, origin = (np.array([float(v) for v in data[key].value]) for key in keys)
    gap = float(data.get("SpacingBetweenSlices") or data.get("SliceThickness") or 1)
    affine = np.eye(4)
    affine[:3, 0] = turn[:3] * spacing[1]  # to the next column
    affine[:3, 1] = turn[3:] * spacing[0]  # to the next row
    affine[:3, 2] = np.cross(turn[:3], turn[3:]) * gap
    affine[:3, 3] = origin
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    return affine


# FITS --------------------------------------------------------------------------------------------


def _read_fits(file: Path, name: str) -> ScienceFile:
    fits = _library("astropy.io.fits", "FITS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*truncated.*")
        with fits.open(file, memmap=False) as units:
            images = {
                (unit.name or str(k)): unit
                for k, unit in enumerate(units)
                if unit.is_image and len([n for n in unit.shape if n > 1]) in (2, 3)
            }
            if name.isdigit() and int(name) < len(units) and units[int(name)].is_image:
                unit, chosen = units[int(name)], name
            else:
                chosen = _choose(file, name, list(images), "image extension")
                unit = images[chosen]
            axes = _layout(file, unit.shape)
            stored, header = np.array(unit.data), unit.header.copy()
    kept = ("BUNIT", "OBJECT", "TELESCOP", "INSTRUME", "DATE-OBS")
    metadata = {key: header[key] for key in kept if key in header}
    metadata["wcs"] = {
        key: header[key]
        for key in header
        if re.fullmatch(r"(CTYPE|CRPIX|CRVAL|CDELT|CUNIT)\d|(CD|PC)\d_\d", key)
    }
    return _found(
        file, "FITS", stored, axes, chosen if name else "", metadata=metadata, _template=header
    )


def _write_fits(path: Path, array: Array, like: ScienceFile) -> None:
    fits = _library("astropy.io.fits", "FITS")
    header = like._template.copy()
    for key in ("BSCALE", "BZERO", "BLANK", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM", "EXTNAME"):
        header.remove(key, ignore_missing=True, remove_all=True)
    if like._moved:
        _move_wcs(header, like, array.ndim)
    unit = fits.PrimaryHDU(array, header)
    unit.header.add_history("posterior: values are results of a model, not measurements")
    unit.writeto(path, overwrite=True)


def _move_wcs(header: Any, like: ScienceFile, ndim: int) -> None:
    """World coordinates (Greisen & Calabretta 2002) of pixels that were cut or made smaller.

    Pixels are counted from 1 at their centre; a matrix of increments is multiplied by column.
    """
    versions = {
        m[1] for key in header if (m := re.fullmatch(r"(?:CTYPE|CRPIX|CRVAL)\d([A-Z]?)", key))
    }
    for axis in range(ndim):
        j = ndim - axis
        origin, step = like._along(axis)
        for a in versions:
            header[f"CRPIX{j}{a}"] = (header.get(f"CRPIX{j}{a}", 0.0) - 1 - origin) / step + 1
            if step == 1:
                continue
            matrix = [k for k in header if re.fullmatch(rf"(CD|PC)\d_\d{a}", k)]
            if not matrix:
                header[f"CDELT{j}{a}"] = header.get(f"CDELT{j}{a}", 1.0) * step
                continue
            if matrix[0].startswith("PC"):
                header[f"PC{j}_{j}{a}"] = header.get(f"PC{j}_{j}{a}", 1.0)
            for i in range(1, ndim + 1):
                for key in (f"CD{i}_{j}{a}", f"PC{i}_{j}{a}"):
                    if key in header:
                        header[key] = header[key] * step


# HDF5, NetCDF, NumPy -----------------------------------------------------------------------------


def _read_hdf5(file: Path, name: str) -> ScienceFile:
    h5py = _library("h5py", "HDF5")
    with h5py.File(file, "r") as opened:
        names: list[str] = []

        def note(key: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "biufc":
                longer = [n for n in item.shape or () if n > 1]
                if len(longer) in (2, 3):
                    names.append(key)

        opened.visititems(note)
        if name and name.strip("/") not in names and isinstance(opened.get(name), h5py.Dataset):
            _layout(file, opened[name].shape or ())  # says what is wrong with it
        chosen = _choose(file, name, names, "dataset")
        dataset = opened[chosen]
        axes = _layout(file, dataset.shape)
        attributes = {
            key: dataset.attrs[key]
            for key in dataset.attrs
            if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME")
        }
        stored = dataset[()]
    metadata = {key: _plain(value) for key, value in attributes.items()}
    return _found(
        file, "HDF5", stored, axes, chosen, metadata=metadata, _template=(chosen, attributes)
    )


def _write_hdf5(path: Path, array: Array, like: ScienceFile) -> None:
    h5py = _library("h5py", "HDF5")
    name, attributes = like._template
    with h5py.File(path, "w") as opened:
        dataset = opened.create_dataset(name, data=array)
        for key, value in attributes.items():
            dataset.attrs[key] = value
        if like._moved:  # HDF5 has no geometry of its own
            dataset.attrs["posterior_origin"] = like.origin
            dataset.attrs["posterior_step"] = like.step


def _read_netcdf(file: Path, name: str) -> ScienceFile:
    xarray = _library("xarray", "NetCDF")
    with file.open("rb") as opened:
        engine = "scipy" if opened.read(3) == b"CDF" else "h5netcdf"
    if engine == "h5netcdf":
        _library("h5netcdf", "NetCDF")
    # times stay the numbers that they are, so that they are written back unchanged
    with xarray.open_dataset(file, engine=engine, decode_times=False) as data:
        names = [
            str(key)
            for key, variable in data.data_vars.items()
            if len([n for n in variable.shape if n > 1]) in (2, 3)
            and variable.dtype.kind in "biufc"
        ]
        if name and name in data.data_vars and name not in names:
            _layout(file, data[name].shape)
        chosen = _choose(file, name, names, "variable")
        axes = _layout(file, data[chosen].shape)
        variable = data[chosen].load()
        beside = data.drop_vars(
            [key for key in data.data_vars if key == chosen or data[key].ndim]
        ).load()
    metadata = {key: _plain(value) for key, value in variable.attrs.items()}
    metadata["dims"] = [str(d) for d in variable.dims]
    stored = np.asarray(variable.values)
    return _found(
        file, "NetCDF", stored, axes, chosen, metadata=metadata, _template=(variable, beside)
    )


def _write_netcdf(path: Path, array: Array, like: ScienceFile) -> None:
    xarray = _library("xarray", "NetCDF")
    variable, beside = like._template
    where = {dim: like._along(axis) for axis, dim in enumerate(variable.dims)}
    sizes = dict(zip(variable.dims, array.shape, strict=True))
    coordinates = {}
    for key, coordinate in variable.coords.items():
        moved = [
            d for d in coordinate.dims if where[d] != (0.0, 1.0) or sizes[d] != coordinate.sizes[d]
        ]
        if not moved:
            coordinates[key] = coordinate.variable
        elif all(where[d][1] == 1 for d in moved):
            cut = {d: slice(int(where[d][0]), int(where[d][0]) + sizes[d]) for d in moved}
            coordinates[key] = coordinate.variable.isel(cut)
        elif coordinate.ndim == 1 and coordinate.dtype.kind in "iuf":
            (dim,) = coordinate.dims
            points = _between(coordinate.values, *where[dim], sizes[dim])
            coordinates[key] = xarray.Variable(dim, points, coordinate.attrs)
    result = xarray.DataArray(array, coordinates, variable.dims, attrs=variable.attrs)
    beside = beside.drop_vars([key for key in beside.coords if beside[key].ndim])
    data = beside.assign({variable.name: result})
    data.to_netcdf(path, engine="h5netcdf")


def _between(values: Array, origin: float, step: float, count: int) -> Array:
    """A coordinate at origin + step k, linear between its values and beyond its ends."""
    at = origin + step * np.arange(count)
    k = np.clip(np.floor(at).astype(int), 0, len(values) - 2)
    values = values.astype(np.float64)
    result: Array = values[k] + (at - k) * (values[k + 1] - values[k])
    return result


def _read_numpy(file: Path, _: str) -> ScienceFile:
    stored = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(stored, np.ndarray):
        raise FileProblem(f"{file} holds several arrays: give one image per file")
    return _of_numpy(file, np.asarray(stored))


def _of_numpy(file: Path, stored: Array) -> ScienceFile:
    if stored.ndim == 3 and 1 < stored.shape[2] <= 4:
        raise FileProblem(
            f"{file}: values are (H, W) or a stack (N, H, W), not {stored.shape} with channels"
        )
    return _found(file, "NumPy", stored, _layout(file, stored.shape))


def _write_numpy(path: Path, array: Array, like: ScienceFile) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _plain(value: Any) -> Any:
    """A JSON value of an attribute."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return value if isinstance(value, (str, int, float, bool, list)) else str(value)


_Reader = Callable[[Path, str], ScienceFile]
_READERS: dict[str, _Reader] = {
    "NIfTI": _read_nifti,
    "DICOM": _read_dicom,
    "FITS": _read_fits,
    "HDF5": _read_hdf5,
    "NetCDF": _read_netcdf,
    "NumPy": _read_numpy,
}
_WRITERS: dict[str, Callable[[Path, Array, ScienceFile], None]] = {
    "NIfTI": _write_nifti,
    "DICOM": _write_nifti,
    "FITS": _write_fits,
    "HDF5": _write_hdf5,
    "NetCDF": _write_netcdf,
    "NumPy": _write_numpy,
}
