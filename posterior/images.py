"""Image files and arrays in, tensors (C, H, W) in [-1, 1] out; and back, with nothing lost.

Files are PNG, JPEG, TIFF, WebP and `.npy`; 8 or 16 bits; grey or RGB, with or without alpha. Every
file is first decoded to one integer array (H, W, C); only then does it become a tensor, so formats,
orientation and alpha are each handled in one place. Pillow decodes what has 8 bits, imagecodecs
and tifffile (a dependency of scikit-image) what has 16, which Pillow would cut down to 8.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from posterior.errors import FileProblem, InputError, InputTypeError
from posterior.folders import replacing

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from posterior.science_files import ScienceFile
    from posterior.values import ValueScale

Array = np.ndarray[Any, Any]

MAX_PIXELS = 100_000_000
"""Files that claim more pixels than this are refused before anything is decoded."""

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".npy")


@dataclass(frozen=True)
class ImageInfo:
    """What a file or array was, beside its pixels; enough to write results of the same kind.

    Attributes:
        bits: 8 or 16, the depth of the samples (floats count as 16).
        mode: how it was stored: Pillow's name of the mode, or the dtype of an array.
        alpha: (1, H, W) in [0, 1], or None.
        orientation: the EXIF orientation that was undone, 1 for none.
        icc: the colour profile, or None.
        name: the file's stem, or "image".
        science: the file of values that it was, or None for a picture.
        scale: of such a file, the values at x = -1 and 1.
    """

    bits: int = 16
    mode: str = "RGB"
    alpha: Tensor | None = None
    orientation: int = 1
    icc: bytes | None = None
    name: str = "image"
    science: ScienceFile | None = None
    scale: ValueScale | None = None


def as_images(image: object) -> tuple[Tensor, ImageInfo]:
    """Any image that `restore` takes as (B, C, H, W) float32 in [-1, 1], C = 1 or 3, on its device.

    Args:
        image: a path; a numpy array (H, W) or (H, W, C), where uint8 and uint16 mean [0, 255] and
            [0, 65535] and floats are in [-1, 1]; a torch tensor (C, H, W) or (B, C, H, W), float
            in [-1, 1] or uint8.

    Raises:
        FileProblem: the file cannot be read.
        InputError, InputTypeError: wrong shape, dtype or range.
    """
    if isinstance(image, (str, os.PathLike)):
        pixels, info = read_image(image)
        return pixels[None], info
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_numpy(image)
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # a Pillow image
        array, mode, icc = _pillow_array(image, "the image")
        pixels, info = _finish(array, ImageInfo(mode=mode, icc=icc))
        return pixels[None], info
    raise InputTypeError(
        f"an image is a path, a numpy array or a torch tensor, not {type(image).__name__}"
    )


def read_image(path: str | os.PathLike[str]) -> tuple[Tensor, ImageInfo]:
    """A file as (C, H, W) float32 in [-1, 1], C = 1 (grey) or 3, and what was kept aside.

    EXIF orientation is applied. Palettes become RGB, CMYK becomes RGB without colour management,
    alpha is kept in `ImageInfo.alpha`. Files speak [0, 1]: a `.npy` of floats, (H, W) or
    (H, W, C), holds values in [0, 1].

    Raises:
        FileProblem: missing, empty, truncated, not an image, too large, or of a kind that cannot be
            read without losing something (several pages, 32-bit samples).
    """
    path = Path(path)
    if not path.exists():
        raise FileProblem(f"no such file: {path}")
    if not path.is_file():
        raise FileProblem(f"not a file: {path}")
    if path.stat().st_size == 0:
        raise FileProblem(f"{path} is empty")
    read = _read_npy if path.suffix.lower() == ".npy" else _read_encoded
    try:
        return read(path)
    except FileProblem:
        raise
    except MemoryError:
        raise FileProblem(f"{path} does not fit into memory") from None
    except PermissionError:
        raise FileProblem(f"{path} may not be read: permission denied") from None
    except Exception as problem:  # decoders raise nearly everything on broken files
        raise FileProblem(f"{path} is broken or truncated ({_one_line(problem)})") from problem


def write_image(
    path: str | os.PathLike[str],
    image: Tensor,
    *,
    bits: int = 8,
    alpha: Tensor | None = None,
    icc: bytes | None = None,
) -> None:
    """Write (C, H, W) in [-1, 1] (clipped, rounded) in the format that the suffix names.

    Args:
        path: ends in .png, .tif, .tiff, .jpg, .jpeg, .webp or .npy; written whole or not at all.
        image: C = 1 (grey) or 3 (RGB).
        bits: 8, or 16 for PNG, TIFF and .npy.
        alpha: (1, H, W) in [0, 1]; not for JPEG.
        icc: colour profile, for PNG, JPEG and WebP and 8-bit TIFF.

    Raises:
        InputError: a combination that the format does not have.
        FileProblem: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"cannot write {path.name}: the suffix must be one of {_join(SUFFIXES)}")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"an image to write is (1|3, H, W), got {tuple(image.shape)}")
    if bits not in (8, 16):
        raise InputError(f"bits must be 8 or 16, got {bits}")
    if bits == 16 and suffix in (".jpg", ".jpeg", ".webp"):
        raise InputError(f"{suffix[1:]} has no 16 bits: write PNG or TIFF")
    if alpha is not None and suffix in (".jpg", ".jpeg"):
        raise InputError("JPEG has no alpha: write PNG, TIFF or WebP")
    if alpha is not None and alpha.shape[-2:] != image.shape[-2:]:
        raise InputError(f"alpha is {tuple(alpha.shape)} but the image {tuple(image.shape)}")
    array = _quantised((image + 1) / 2, bits)
    if alpha is not None:
        array = np.concatenate([array, _quantised(alpha.reshape(1, *alpha.shape[-2:]), bits)], -1)
    with replacing(path) as temporary:
        _encode(temporary, suffix, array, icc)


def displayed(image: Tensor) -> Tensor:
    """(C, H, W) as what is looked at: of two channels (a complex image) the magnitude, 0 black."""
    return image if image.shape[0] != 2 else image.norm(dim=0, keepdim=True) * 2 - 1


def from_integers(array: Array) -> Tensor:
    """uint8 or uint16 (H, W, C) as float32 (C, H, W) in [0, 1]."""
    largest = float(np.iinfo(array.dtype).max)
    values = np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(values) / largest


# Arrays and tensors ------------------------------------------------------------------------------


def _from_tensor(image: Tensor) -> tuple[Tensor, ImageInfo]:
    if image.device.type == "meta":
        raise InputError("the image is on the meta device: it has a shape but no values")
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3) or 0 in image.shape:
        hint = ""
        if image.ndim == 3 and image.shape[-1] in (1, 3):
            hint = "; (H, W, C) is for numpy arrays: use image.permute(2, 0, 1)"
        raise InputError(
            f"an image tensor is (C, H, W) or (B, C, H, W) with C = 1 or 3, got "
            f"{tuple(image.shape)}{hint}"
        )
    pixels = image if image.ndim == 4 else image[None]
    if image.dtype == torch.uint8:
        return pixels.float() / 127.5 - 1, ImageInfo(bits=8, mode="uint8")
    if not image.dtype.is_floating_point:
        raise InputTypeError(f"an image tensor is float in [-1, 1] or uint8, not {image.dtype}")
    _check_range(pixels.detach())
    return pixels.detach().float(), ImageInfo(mode=str(image.dtype).removeprefix("torch."))


def _from_numpy(image: Array) -> tuple[Tensor, ImageInfo]:
    array = _with_channels(image, "an image array")
    info = ImageInfo(mode=str(image.dtype))
    if image.dtype in (np.uint8, np.uint16):
        pixels, info = _finish(array, info)
        return pixels[None], info
    if not np.issubdtype(image.dtype, np.floating):
        raise InputTypeError(
            f"an image array is uint8, uint16 or float in [-1, 1], not {image.dtype}"
        )
    if array.shape[2] not in (1, 3):
        raise InputError(f"a float image has 1 or 3 channels, got {array.shape[2]}: pass no alpha")
    pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32))
    _check_range(pixels)
    return pixels[None], info


def _with_channels(image: Array, what: str) -> Array:
    """(H, W) or (H, W, C) as (H, W, C) with 1 to 4 channels."""
    array = image[..., None] if image.ndim == 2 else image
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4 or 0 in array.shape:
        hint = ""
        if image.ndim == 3 and image.shape[0] in (1, 3):
            hint = (
                "; (C, H, W) is for torch tensors: move the channels last, or use torch.from_numpy"
            )
        raise InputError(f"{what} is (H, W) or (H, W, 1..4), got {image.shape}{hint}")
    return array


def _check_range(pixels: Tensor) -> None:
    if not torch.isfinite(pixels).all():
        raise InputError("the image holds NaN or infinite values")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1.5 or high > 1.5:  # noise may reach a little beyond [-1, 1]
        advice = "divide by 127.5 and subtract 1" if high > 2 and low >= 0 else "rescale it"
        raise InputError(
            f"a float image is in [-1, 1], this one runs from {low:.4g} to {high:.4g}: {advice}"
        )


def _finish(array: Array, info: ImageInfo) -> tuple[Tensor, ImageInfo]:
    """uint8 or uint16 (H, W, C), C = 1..4: pixels in [-1, 1], with alpha set aside."""
    values = from_integers(array)
    alpha = values[-1:] if values.shape[0] in (2, 4) else None
    colour = values if alpha is None else values[:-1]
    return colour * 2 - 1, replace(info, bits=8 * array.dtype.itemsize, alpha=alpha)


# Decoding ----------------------------------------------------------------------------------------


def _read_npy(path: Path) -> tuple[Tensor, ImageInfo]:
    stored = np.load(path, mmap_mode="r", allow_pickle=False)  # a map: a lying header costs nothing
    if not isinstance(stored, np.ndarray):
        raise FileProblem(f"{path} holds several arrays: give one image per file")
    try:
        array = _with_channels(stored, "the array")
    except InputError as problem:
        raise FileProblem(f"{path}: {problem}") from None
    _check_size(path, array.shape[1], array.shape[0])
    info = ImageInfo(mode=str(stored.dtype), name=path.stem)
    if stored.dtype in (np.uint8, np.uint16):
        return _finish(np.array(array), info)
    if not np.issubdtype(stored.dtype, np.floating):
        raise FileProblem(f"{path}: an image is uint8, uint16 or float, not {stored.dtype}")
    values = torch.from_numpy(np.array(array.transpose(2, 0, 1), dtype=np.float32))
    if not torch.isfinite(values).all():
        raise FileProblem(f"{path} holds NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    if low < -0.25 or high > 1.25:
        raise FileProblem(
            f"{path}: floats in a file are in [0, 1], these run from {low:.4g} to {high:.4g} "
            "(arrays in [-1, 1] can be passed from Python)"
        )
    if values.shape[0] in (2, 4):
        raise FileProblem(f"{path}: floats have 1 or 3 channels, got {values.shape[0]}")
    return values * 2 - 1, info


def _read_encoded(path: Path) -> tuple[Tensor, ImageInfo]:
    with path.open("rb") as file:
        head = file.read(26)
    if head[:4] in _TIFF:
        found = _read_tiff16(path)
        if found is not None:
            return found
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # odd metadata is not our business
        Image.init()  # otherwise Pillow does not know TIFF and WebP by name
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise FileProblem(f"{path} is not a PNG, JPEG, TIFF, WebP or .npy image") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise FileProblem(f"{path} claims too many pixels to be a photograph") from None
        with image:
            _check_size(path, *image.size)
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # phones: the second one is a preview
                raise FileProblem(f"{path} has {frames} frames: extract the one you mean")
            orientation = int(image.getexif().get(0x0112, 1))
            if image.format == "PNG" and head[24] == 16:
                array, mode = _decode_png16(path), f"{image.mode} (16 bit)"
            else:
                array, mode, _ = _pillow_array(image, str(path))
            info = ImageInfo(mode=mode, icc=_icc(image), name=path.stem)
            if image.format == "TIFF" and orientation in _TURNS:  # Pillow has turned it
                return _finish(array, replace(info, orientation=orientation))
    return _finish(*_upright(array, info, orientation))


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _read_tiff16(path: Path) -> tuple[Tensor, ImageInfo] | None:
    """A TIFF with more than 8 bits per sample; None for one that Pillow can read."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if not page.is_reduced]
        page: Any = pages[0]
        if page.bitspersample <= 8:
            return None
        if len(pages) > 1:
            raise FileProblem(f"{path} has {len(pages)} pages: extract the one you mean")
        _check_size(path, page.imagewidth, page.imagelength)
        kind = page.photometric.name
        if page.dtype != np.uint16 or kind not in ("RGB", "MINISBLACK", "MINISWHITE"):
            raise FileProblem(
                f"{path} is a TIFF of {page.bitspersample}-bit {kind} samples: convert it to 8 or "
                "16-bit grey or RGB"
            )
        array = np.asarray(page.asarray())
        if page.planarconfig == 2 and array.ndim == 3:  # one plane per channel
            array = np.moveaxis(array, 0, -1)
        if kind == "MINISWHITE":
            array = 65535 - array
        orientation = int(page.tags.valueof(274, 1))
    array = _with_channels(array, str(path))
    mode = ("L", "LA", "RGB", "RGBA")[array.shape[2] - 1] + " (16 bit)"
    return _finish(*_upright(array, ImageInfo(mode=mode, name=path.stem), orientation))


def _decode_png16(path: Path) -> Array:
    import imagecodecs

    data = path.read_bytes()
    if b"IEND" not in data[-64:]:
        raise FileProblem(f"{path} is broken or truncated (the PNG has no end)")
    return _with_channels(np.asarray(imagecodecs.png_decode(data)), str(path))


def _upright(array: Array, info: ImageInfo, orientation: int) -> tuple[Array, ImageInfo]:
    """Undo an EXIF orientation."""
    turn = _TURNS.get(orientation)
    return (turn(array), replace(info, orientation=orientation)) if turn else (array, info)


_TURNS: dict[int, Callable[[Array], Array]] = {  # what undoes each EXIF orientation
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def _pillow_array(image: PillowImage | Any, what: str) -> tuple[Array, str, bytes | None]:
    """A Pillow image as an integer array (H, W, C), its mode, and its colour profile."""
    mode = image.mode
    transparent = "transparency" in image.info
    if mode in ("I;16", "I;16L", "I;16B"):
        return np.asarray(image).astype(np.uint16)[..., None], mode, _icc(image)
    if mode in ("I", "F"):
        raise FileProblem(f"{what} has 32-bit samples: convert it to 8 or 16 bits")
    target = {
        "1": "L", "L": "LA" if transparent else "L", "LA": "LA", "La": "LA",
        "P": "RGBA" if transparent else "RGB", "PA": "RGBA",
        "RGB": "RGBA" if transparent else "RGB", "RGBA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB",
        "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB",
    }.get(mode)  # fmt: skip
    if target is None:
        raise FileProblem(f"{what} is stored in mode {mode}: convert it to RGB")
    array = np.asarray(image if mode == target else image.convert(target))
    return _with_channels(array, what), mode, _icc(image)


def _icc(image: PillowImage | Any) -> bytes | None:
    """The colour profile, where it describes the pixels that are kept."""
    profile = image.info.get("icc_profile")
    kept = {b"RGB ": ("RGB", "RGBA", "P"), b"GRAY": ("L", "LA", "I;16")}
    return profile if profile and image.mode in kept.get(profile[16:20], ()) else None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise FileProblem(
            f"{path} claims {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million"
        )


# Encoding ----------------------------------------------------------------------------------------


def _quantised(values: Tensor, bits: int) -> Array:
    """(C, H, W) in [0, 1] as an integer array (H, W, C)."""
    largest = 2**bits - 1
    scaled = (values.detach().double().cpu().clamp(0, 1) * largest).round()
    array: Array = scaled.permute(1, 2, 0).numpy().astype(np.uint8 if bits == 8 else np.uint16)
    return array


def _encode(path: Path, suffix: str, array: Array, icc: bytes | None) -> None:
    from PIL import Image

    flat = np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)
    if suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, flat)
    elif array.dtype == np.uint8:
        options: dict[str, Any] = {"icc_profile": icc} if icc else {}
        options |= {".jpg": {"quality": 95}, ".jpeg": {"quality": 95}}.get(suffix, {})
        options |= {".webp": {"lossless": True, "exact": True}}.get(suffix, {})
        Image.fromarray(flat).save(path, **options)
    elif suffix == ".png":
        import imagecodecs

        path.write_bytes(_with_profile(bytes(imagecodecs.png_encode(flat, level=6)), icc))
    else:
        import tifffile

        tifffile.imwrite(
            path,
            flat,
            photometric="rgb" if array.shape[2] > 2 else "minisblack",
            extrasamples=["unassalpha"] if array.shape[2] in (2, 4) else None,
            planarconfig="contig" if flat.ndim == 3 else None,
            compression="zlib",
            metadata=None,
        )


def _with_profile(png: bytes, icc: bytes | None) -> bytes:
    """A PNG with an iCCP chunk after its header."""
    if not icc:
        return png
    body = b"iCCP" + b"icc\0\0" + zlib.compress(icc)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    header = 8 + 25  # signature and IHDR
    return png[:header] + chunk + png[header:]


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def _join(words: tuple[str, ...]) -> str:
    return ", ".join(words)
