"""Science files: values, units and geometry in; results with the same out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from front_helpers import SmoothPrior

from posterior import science_files
from posterior.errors import CapabilityError, FileProblem, InputError
from posterior.operators import GaussianBlur, SuperResolution
from posterior.restoration import Restoration, restore
from posterior.science_files import (
    format_of,
    from_array,
    read,
    result_name,
    split_name,
    write,
)
from posterior.values import ValueScale

EXTRA = "the extra [science] is not installed"
SLICE = (1000 * np.random.default_rng(0).random((40, 36))).astype(np.int16)
VOLUME = (1000 * np.random.default_rng(1).random((5, 40, 36))).astype(np.int16)
AFFINE = np.array([[-2, 0, 0, 10], [0, 1.5, 0.125, 20], [0, -0.125, 3, -7], [0, 0, 0, 1.0]])


def nifti(path: Path, values: np.ndarray = VOLUME) -> Path:
    """(D, H, W), slope 1/2 and intercept 3, in millimetres."""
    nibabel = pytest.importorskip("nibabel", reason=EXTRA)
    image = nibabel.Nifti1Image(values.T, AFFINE)
    image.header.set_slope_inter(0.5, 3)
    image.header.set_xyzt_units("mm")
    image.set_qform(AFFINE, "scanner")
    image.to_filename(path)
    return path


def dicom(path: Path, stored: np.ndarray = SLICE, **tags: object) -> Path:
    """(H, W) or frames, slope 2 and intercept -1024."""
    pydicom = pytest.importorskip("pydicom", reason=EXTRA)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.dataset.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = pydicom.uid.CTImageStorage, "1.2.3", "CT"
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = "2", "-1024"
    data.PixelSpacing, data.SliceThickness = ["0.5", "0.75"], "4"
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    data.ImagePositionPatient = ["-10", "20", "30"]
    if stored.ndim == 3:
        data.NumberOfFrames = stored.shape[0]
    data.PixelData = stored.astype(np.uint16).tobytes()
    for key, value in tags.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)
    return path


def fits(path: Path, values: np.ndarray = SLICE) -> Path:
    """One image, BSCALE 2 and BZERO 100, with celestial coordinates."""
    library = pytest.importorskip("astropy.io.fits", reason=EXTRA)
    unit = library.PrimaryHDU(values.astype(np.float64))
    unit.header.update(
        CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRPIX1=18.0, CRPIX2=20.5, CRVAL1=30.0, CRVAL2=-5.0,
        CDELT1=-0.01, CDELT2=0.02, BUNIT="Jy", OBJECT="M87",
    )  # fmt: skip
    unit.scale("int16", bscale=2, bzero=100)
    unit.writeto(path)
    return path


def hdf5(path: Path, values: np.ndarray = VOLUME) -> Path:
    """One dataset in a group, with attributes, beside something that is no image."""
    h5py = pytest.importorskip("h5py", reason=EXTRA)
    with h5py.File(path, "w") as file:
        file["run/t2"] = values
        file["run/t2"].attrs.update(units="ms", spacing=[1.0, 2.0, 3.0])
        file["run/names"] = ["a", "b"]
        file["run/times"] = np.arange(5.0)
    return path


def netcdf(path: Path, values: np.ndarray = SLICE, engine: str = "h5netcdf") -> Path:
    """(time 1, lat, lon), packed, with coordinates and a grid mapping."""
    xarray = pytest.importorskip("xarray", reason=EXTRA)
    pytest.importorskip("h5netcdf", reason=EXTRA)
    height, width = values.shape
    field = xarray.DataArray(
        values[None] / 10,
        {"time": [3.0], "lat": 50.0 - np.arange(height), "lon": 2.0 * np.arange(width)},
        ("time", "lat", "lon"),
        attrs={"units": "K", "grid_mapping": "crs"},
    )
    field["time"].attrs["units"] = "days since 2000-01-01"
    data = xarray.Dataset({"sst": field, "crs": ((), 0)}, attrs={"title": "sea"})
    packing = {"sst": {"dtype": "int16", "scale_factor": 0.1, "_FillValue": -1}}
    data.to_netcdf(path, engine=engine, encoding=packing)
    return path


def run(image: object, operator: object = "identity", **change: object) -> Restoration:
    settings = {"noise": 0.1, "prior": SmoothPrior(), "method": "dps", "steps": 2, "n": 2}
    return restore(image, operator, **{**settings, **change})


# Reading -----------------------------------------------------------------------------------------


def test_nifti_is_read_by_slices(tmp_path: Path) -> None:
    file = read(nifti(tmp_path / "a.nii.gz"))
    assert file.values.shape == (5, 40, 36)
    nibabel = pytest.importorskip("nibabel")
    assert np.array_equal(file.values, nibabel.load(file.path).get_fdata().T)
    np.testing.assert_allclose(file.metadata["affine"], AFFINE, atol=1e-6)  # stored in float32
    assert file.metadata["space_units"] == "mm"


def test_dicom_is_rescaled(tmp_path: Path) -> None:
    file = read(dicom(tmp_path / "IM0001"))  # as scanners name them
    assert file.format == "DICOM"
    assert np.array_equal(file.values[0], 2.0 * SLICE - 1024)
    assert file.metadata["PixelSpacing"] == [0.5, 0.75]
    assert file.metadata["slope_intercept"] == [2.0, -1024.0]
    frames = read(dicom(tmp_path / "frames.dcm", VOLUME))
    assert np.array_equal(frames.values, 2.0 * VOLUME - 1024)


def test_fits_is_scaled(tmp_path: Path) -> None:
    file = read(fits(tmp_path / "a.fits"))
    np.testing.assert_allclose(file.values[0], SLICE, atol=1)  # steps of BSCALE = 2
    assert file.metadata["BUNIT"] == "Jy"
    assert file.metadata["wcs"]["CRVAL1"] == 30.0
    assert read(f"{file.path}:0").values.shape == (1, 40, 36)


def test_hdf5_datasets_have_names(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5")
    file = read(path)  # the only one that can be an image
    assert file.name == "run/t2"
    assert np.array_equal(file.values, VOLUME)
    assert file.metadata == {"units": "ms", "spacing": [1.0, 2.0, 3.0]}
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as opened:
        opened["phase"] = SLICE * (1 + 2j)
    with pytest.raises(FileProblem, match=r"several datasets.*a\.h5:phase"):
        read(path)
    assert np.array_equal(read(f"{path}:/phase").values[0], SLICE * (1 + 2j))
    with pytest.raises(FileProblem, match=r"no dataset 't1': there are phase, run/t2"):
        read(f"{path}:t1")
    with pytest.raises(FileProblem, match=r"shape \(5,\)"):
        read(f"{path}:run/times")


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_netcdf_is_unpacked(tmp_path: Path, engine: str) -> None:
    file = read(netcdf(tmp_path / "a.nc", engine=engine))
    np.testing.assert_allclose(file.values[0], SLICE / 10, atol=1e-4)
    assert file.metadata["dims"] == ["time", "lat", "lon"]
    assert file.metadata["units"] == "K"


def test_names() -> None:
    assert split_name("a/b.h5:run/t2") == (Path("a/b.h5"), "run/t2")
    assert split_name("C:/b.png") == (Path("C:/b.png"), "")
    assert result_name("in/brain.nii.gz") == "brain"
    assert result_name(Path("maps.h5:run/t2")) == "maps-run-t2"
    assert result_name("photo.v2.png") == "photo.v2"
    assert format_of("x.FITS") == "FITS"
    assert format_of("photo.png") is None


# Broken files ------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Path], Path]] = {
    "a.nii": nifti, "a.nii.gz": nifti, "a.dcm": dicom, "a.fits": fits, "a.h5": hdf5, "a.nc": netcdf,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_broken_files_are_one_error(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(FileProblem, match=re.escape(name)):
        read(path)
    path.write_text("not an image\n" * 400)
    with pytest.raises(FileProblem, match=re.escape(name)):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(FileProblem, match="empty"):
        read(path)
    path.unlink()
    with pytest.raises(FileProblem, match="no such file"):
        read(path)


def test_wrong_dimensions_and_values(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="two axes longer than 1"):
        read(nifti(tmp_path / "4d.nii", np.zeros((3, 4, 5, 6), np.int16)))
    holes = SLICE.astype(float)
    holes[3, 3] = np.nan
    library = pytest.importorskip("astropy.io.fits", reason=EXTRA)
    library.PrimaryHDU(holes).writeto(tmp_path / "nan.fits")
    with pytest.raises(FileProblem, match="NaN"):
        read(tmp_path / "nan.fits")
    library.PrimaryHDU().writeto(tmp_path / "none.fits")
    with pytest.raises(FileProblem, match="no image extension"):
        read(tmp_path / "none.fits")
    with pytest.raises(FileProblem, match="colour"):
        read(dicom(tmp_path / "rgb.dcm", SamplesPerPixel=3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FileProblem, match="Python objects"):
        read(tmp_path / "pickle.npy")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"x")

    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(science_files.importlib, "import_module", absent)
    with pytest.raises(CapabilityError, match=r"HDF5 files need h5py: .*\[science\]"):
        read(path)


# Geometry ----------------------------------------------------------------------------------------


def test_nifti_results_lie_where_the_input_does(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason=EXTRA)
    file = read(nifti(tmp_path / "a.nii.gz"))
    whole = nibabel.load(write(tmp_path / "b.nii.gz", file.values, file))
    assert np.array_equal(whole.get_fdata(), file.values.T)
    np.testing.assert_allclose(whole.affine, AFFINE, atol=1e-6)
    assert [int(form(coded=True)[1]) for form in (whole.get_sform, whole.get_qform)] == [2, 1]
    part = file.slices("1:3").window(top=4, left=6, height=20, width=10)
    cut = nibabel.load(write(tmp_path / "c.nii.gz", part.values, part))
    assert cut.shape == (10, 20, 2)
    where = AFFINE @ [6, 4, 1, 1]  # of the first voxel that was kept
    np.testing.assert_allclose(cut.affine[:3, 3], where[:3], atol=1e-5)
    finer = part.enlarged(40, 20)
    fine = nibabel.load(write(tmp_path / "d.nii.gz", np.zeros((2, 40, 20)), finer))
    corner = np.array([-0.5, -0.5, -0.5, 1])  # the field of view stays
    np.testing.assert_allclose(fine.affine @ corner, cut.affine @ corner, atol=1e-5)
    np.testing.assert_allclose(fine.affine[:3, :2] * 2, cut.affine[:3, :2], atol=1e-6)


def test_an_axis_of_length_one_stays(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason=EXTRA)
    file = read(nifti(tmp_path / "coronal.nii", VOLUME[:, :1]))  # (36, 1, 5)
    assert file.values.shape == (1, 5, 36)
    part = file.window(top=1, left=2, height=3, width=30)
    cut = nibabel.load(write(tmp_path / "cut.nii", part.values, part))
    assert cut.shape == (30, 1, 3)
    np.testing.assert_allclose(cut.affine[:3, 3], (AFFINE @ [2, 0, 1, 1])[:3], atol=1e-5)
    assert np.array_equal(cut.get_fdata()[:, 0].T, part.values[0])


def test_dicom_results_are_nifti_in_the_same_place(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason=EXTRA)
    file = read(dicom(tmp_path / "a.dcm"))
    assert file.result_suffix == ".nii.gz"
    image = nibabel.load(write(tmp_path / "a.nii.gz", file.values, file))
    assert np.array_equal(image.get_fdata().T, 2.0 * SLICE - 1024)
    # column 3 and row 5 in patient millimetres (left, posterior, superior), turned to RAS
    x, y, z = -10 + 3 * 0.75, 20 + 5 * 0.5, 30
    np.testing.assert_allclose((image.affine @ [3, 5, 0, 1])[:3], [-x, -y, z], atol=1e-5)


def test_fits_results_point_at_the_same_sky(tmp_path: Path) -> None:
    library = pytest.importorskip("astropy.io.fits", reason=EXTRA)
    from astropy.wcs import WCS

    file = read(fits(tmp_path / "a.fits"))
    part = file.window(top=4, left=6, height=20, width=10)
    finer = part.enlarged(40, 20)
    sky = WCS(library.getheader(file.path))
    cut = library.getheader(write(tmp_path / "b.fits", part.values, part))
    fine = library.getheader(write(tmp_path / "c.fits", np.ones((1, 40, 20)), finer))
    at = sky.pixel_to_world_values(6 + 2.5, 4 + 7.5)
    np.testing.assert_allclose(WCS(cut).pixel_to_world_values(2.5, 7.5), at, atol=1e-9)
    np.testing.assert_allclose(WCS(fine).pixel_to_world_values(5.5, 15.5), at, atol=1e-9)
    assert (cut["BUNIT"], cut["OBJECT"], cut["BITPIX"]) == ("Jy", "M87", -32)
    assert "BSCALE" not in cut
    np.testing.assert_array_equal(library.getdata(tmp_path / "b.fits"), part.values[0])


def test_hdf5_results_keep_name_and_attributes(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason=EXTRA)
    file = read(hdf5(tmp_path / "a.h5")).slices("-1")
    with h5py.File(write(tmp_path / "b.h5", file.values, file)) as opened:
        dataset = opened["run/t2"]
        assert np.array_equal(dataset[()], VOLUME[4:])
        assert dataset.attrs["units"] == "ms"
        assert dataset.attrs["posterior_origin"].tolist() == [4.0, 0.0, 0.0]


def test_netcdf_results_keep_coordinates(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason=EXTRA)
    file = read(netcdf(tmp_path / "a.nc"))
    part = file.window(top=4, left=6, height=20, width=10)
    write(tmp_path / "b.nc", part.values, part)
    write(tmp_path / "c.nc", np.ones((1, 40, 20)), part.enlarged(40, 20))
    with xarray.open_dataset(tmp_path / "b.nc", decode_times=False) as data:
        assert data["sst"].dims == ("time", "lat", "lon")
        np.testing.assert_allclose(data["sst"].values, part.values, rtol=1e-6)
        assert data["lat"].values.tolist() == (50.0 - np.arange(4, 24)).tolist()
        assert data["time"].attrs["units"] == "days since 2000-01-01"
        assert (data["sst"].attrs["units"], data.attrs["title"]) == ("K", "sea")
        assert "crs" in data
    with xarray.open_dataset(tmp_path / "c.nc", decode_times=False) as data:
        np.testing.assert_allclose(data["lon"].values, 11.5 + np.arange(20), atol=1e-12)


def test_slices_and_results_that_make_no_sense(tmp_path: Path) -> None:
    file = from_array(VOLUME)
    for wanted in ("5", "3:3", "-6", "7:"):
        with pytest.raises(InputError, match="slices 0 to 4"):
            file.slices(wanted)
    with pytest.raises(InputError, match="FIRST:END"):
        file.slices("1:2:3")
    with pytest.raises(InputError, match=r"\.npy, not a\.png"):
        write(tmp_path / "a.png", file.values, file)
    with pytest.raises(InputError, match=r"\(5, 40, 36\)"):
        write(tmp_path / "a.npy", file.values[0], file)


def test_scales_are_their_own_inverse() -> None:
    scale = ValueScale(-1024.0, 3071.0)
    values = VOLUME.astype(np.float64)
    x = scale.x(values)
    assert x.shape == (5, 1, 40, 36)
    np.testing.assert_allclose(scale.values(x), values, atol=4095 * 2**-23)  # float32 in [-1, 1]
    np.testing.assert_allclose(scale.spread(torch.full((1, 1, 2, 2), 0.5)), 1023.75)
    phases = ValueScale(-5.0, 5.0)
    z = (VOLUME * (1 - 2j))[:, :4] / 1000
    assert phases.x(z).shape == (5, 2, 4, 36)
    np.testing.assert_allclose(phases.values(phases.x(z)), z, atol=1e-6)


# The front door ----------------------------------------------------------------------------------


def test_a_volume_is_restored_by_slices(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason=EXTRA)
    path = nifti(tmp_path / "brain.nii.gz")
    out = run(path, GaussianBlur(sigma=1.0), slices="1:3", value_range=(0, 600), crop="32x34+2+3")
    assert out.draws.shape == (2, 2, 1, 34, 32)
    assert "NIfTI values 0 to 600 are black to white (as given)" in out.report
    folder = out.save(tmp_path / "out")
    assert {p.name for p in folder.iterdir()} == {
        "mean.nii.gz", "std.nii.gz", "draw-0.nii.gz", "draw-1.nii.gz", "sheet.png",
        "samples.safetensors", "report.json",
    }  # fmt: skip
    mean, std = (nibabel.load(folder / f"{name}.nii.gz") for name in ("mean", "std"))
    np.testing.assert_allclose(
        mean.get_fdata().T, 300 * (out.mean[:, 0].double() + 1), rtol=1e-6, atol=1e-4
    )
    np.testing.assert_allclose(std.get_fdata().T, 300 * out.std[:, 0].double(), rtol=1e-6)
    np.testing.assert_allclose(mean.affine[:3, 3], (AFFINE @ [2, 3, 1, 1])[:3], atol=1e-5)
    image = json.loads((folder / "report.json").read_text())["image"]
    assert (image["values"]["low"], image["values"]["high"]) == (0, 600)
    with pytest.raises(FileProblem, match="overwrite"):
        out.save(folder)
    out.save(folder, overwrite=True)
    # a slice does not depend on the others: seed + b is the stream of measurement b
    alone = run(path, GaussianBlur(sigma=1.0), slices=2, value_range=(0, 600), crop="32x34+2+3",
                seed=1)  # fmt: skip
    torch.testing.assert_close(alone.draws[:, 0], out.draws[:, 1], rtol=0, atol=1e-6)


def test_an_image_also_gets_pictures(tmp_path: Path) -> None:
    library = pytest.importorskip("astropy.io.fits", reason=EXTRA)
    out = run(fits(tmp_path / "sky.fits"), SuperResolution(factor=2))
    low, high = out.info.science.extremes
    assert f"{low:g} to {high:g} Jy are black to white (the extremes" in out.report
    folder = out.save(tmp_path / "out")
    assert {"mean.png", "mean.fits", "draw-1.png", "sheet.png"} < {p.name for p in folder.iterdir()}
    data, header = library.getdata(folder / "mean.fits", header=True)
    assert data.shape == (80, 72)
    assert header["CDELT1"] == pytest.approx(-0.005)


def test_values_that_cannot_be_restored(tmp_path: Path) -> None:
    path = tmp_path / "ct.npy"
    np.save(path, SLICE.astype(np.float32))
    with pytest.raises(FileProblem, match="far outside 0 to 100"):
        run(path, value_range=(0, 100))
    for wrong in ((3, 3), (1, 0), (0, np.inf), 5, (1, 2, 3), "ab"):
        with pytest.raises(InputError, match="value_range is"):
            run(path, value_range=wrong)
    with pytest.raises(InputError, match="of science files"):
        run(torch.zeros(3, 32, 32), value_range=(0, 1))
    with pytest.raises(FileProblem, match="constant"):
        run(nifti(tmp_path / "flat.nii", np.zeros((2, 32, 32), np.int16)))
    with pytest.raises(InputError, match="which part of space"):
        run(fits(tmp_path / "a.fits"), GaussianBlur(sigma=1.0, boundary="valid"))


def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("nibabel", "pydicom", "astropy", "h5py", "xarray", "h5netcdf"):
        pytest.importorskip(library, reason=EXTRA)
    text = (Path(__file__).parents[2] / "docs" / "science_files.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "science_files"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/science_files.md", "exec", dont_inherit=True), names)
