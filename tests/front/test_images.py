"""Files in, files out: every format, depth, mode and orientation, and what is no image at all."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps

from posterior import images
from posterior.errors import FileProblem, InputError, InputTypeError
from posterior.images import as_images, read_image, write_image

CASES = [
    (suffix, bits, channels, alpha)
    for suffix in (".png", ".tif", ".webp", ".npy")
    for bits in (8, 16)
    for channels in (1, 3)
    for alpha in (False, True)
    if not (suffix == ".webp" and bits == 16)
]


def levels(channels: int, bits: int, size: tuple[int, int] = (40, 37)) -> torch.Tensor:
    """Every kind of value that `bits` can hold, (C, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(channels + bits)
    top = 2**bits - 1
    values = torch.randint(0, top + 1, (channels, *size), generator=generator)
    values[:, 0, 0], values[:, 0, 1] = 0, top
    return values / top


@pytest.mark.parametrize(("suffix", "bits", "channels", "alpha"), CASES)
def test_what_is_written_is_read_back_exactly(
    tmp_path: Path, suffix: str, bits: int, channels: int, alpha: bool
) -> None:
    image = levels(channels, bits) * 2 - 1
    opacity = levels(1, bits) if alpha else None
    path = tmp_path / f"image{suffix}"
    write_image(path, image, bits=bits, alpha=opacity)
    read, info = read_image(path)
    if suffix == ".webp":  # has no grey
        read = read[:channels]
    assert torch.equal(read, image)
    assert info.bits == bits
    assert info.name == "image"
    assert (info.alpha is None) == (opacity is None)
    assert opacity is None or torch.equal(info.alpha, opacity)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file is left


def test_jpeg_is_close(tmp_path: Path, cat: np.ndarray) -> None:
    image = torch.from_numpy(cat.transpose(2, 0, 1) / 127.5 - 1).float()
    write_image(tmp_path / "cat.jpg", image)
    read, info = read_image(tmp_path / "cat.jpg")
    assert (read - image).abs().mean() < 0.05
    assert info.bits == 8


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    picture = Image.fromarray((np.arange(24 * 16 * 3) % 251).astype(np.uint8).reshape(24, 16, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"turned{suffix}", exif=exif)
    with Image.open(tmp_path / f"turned{suffix}") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    read, info = read_image(tmp_path / f"turned{suffix}")
    assert info.orientation == orientation
    assert np.array_equal(((read + 1) * 127.5).round().numpy().transpose(1, 2, 0), upright)


def test_orientation_of_a_16_bit_tiff(tmp_path: Path) -> None:
    array = np.arange(20 * 10 * 3, dtype=np.uint16).reshape(20, 10, 3) * 100
    path = tmp_path / "turned.tif"
    tifffile.imwrite(path, array, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    read, info = read_image(path)
    assert info.orientation == 6
    assert torch.equal(read, images.from_integers(np.rot90(array, -1)) * 2 - 1)


def test_alpha_turns_with_the_image(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(12 * 8 * 4, dtype=np.uint8).reshape(12, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 8
    picture.save(tmp_path / "a.png", exif=exif)
    read, info = read_image(tmp_path / "a.png")
    assert read.shape == (3, 8, 12)
    assert info.alpha is not None
    assert info.alpha.shape == (1, 8, 12)


@pytest.mark.parametrize(
    ("mode", "channels", "alpha"),
    [("1", 1, False), ("L", 1, False), ("LA", 1, True), ("P", 3, False), ("RGBA", 3, True),
     ("CMYK", 3, False), ("YCbCr", 3, False), ("I;16", 1, False)],
)  # fmt: skip
def test_modes_of_pillow(tmp_path: Path, mode: str, channels: int, alpha: bool) -> None:
    source = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3) // 2)
    picture = (
        Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60)
        if mode == "I;16"
        else source.convert("L").convert(mode)
        if mode in ("1", "L", "LA")
        else source.convert(mode)
    )
    suffix = ".tif" if mode in ("CMYK", "YCbCr") else ".png"
    picture.save(tmp_path / f"m{suffix}")
    read, info = read_image(tmp_path / f"m{suffix}")
    assert read.shape == (channels, 32, 32)
    assert (info.alpha is not None) == alpha
    assert info.bits == (16 if mode == "I;16" else 8)


def test_transparent_palette_and_transparent_grey(tmp_path: Path) -> None:
    palette = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).convert("P")
    palette.save(tmp_path / "p.png", transparency=3)
    read, info = read_image(tmp_path / "p.png")
    assert read.shape == (3, 32, 32)
    assert info.alpha is not None
    assert float(info.alpha.min()) == 0
    Image.new("L", (32, 32), 7).save(tmp_path / "l.png", transparency=7)
    read, info = read_image(tmp_path / "l.png")
    assert read.shape == (1, 32, 32)
    assert info.alpha is not None
    assert float(info.alpha.max()) == 0


def test_a_pillow_image_and_its_file_agree(tmp_path: Path, cat: np.ndarray) -> None:
    picture = Image.fromarray(cat)
    picture.save(tmp_path / "cat.png")
    from_file, _ = as_images(tmp_path / "cat.png")
    for other in (picture, cat, torch.from_numpy(cat.copy()).permute(2, 0, 1)):
        assert torch.allclose(as_images(other)[0], from_file, atol=1e-6)


def test_colour_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", icc_profile=profile)
    read, info = read_image(tmp_path / "a.png")
    assert info.icc == profile
    for bits in (8, 16):
        write_image(tmp_path / f"b{bits}.png", read, bits=bits, icc=profile)
        assert read_image(tmp_path / f"b{bits}.png")[1].icc == profile


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_tiffs_of_other_programs(
    tmp_path: Path, compression: str | None, planar: str
) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    stored = array if planar == "contig" else array.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "a.tif", np.ascontiguousarray(stored), photometric="rgb",
        planarconfig=planar, compression=compression, predictor=compression is not None,
    )  # fmt: skip
    assert torch.equal(read_image(tmp_path / "a.tif")[0], images.from_integers(array) * 2 - 1)


def test_arrays(cat: np.ndarray) -> None:
    deep = cat.astype(np.uint16) * 257
    grey = cat[..., 0]
    assert torch.equal(as_images(deep)[0], as_images(cat)[0])
    assert as_images(deep)[1].bits == 16
    assert as_images(grey)[0].shape == (1, 1, 64, 64)
    floats = (cat / 127.5 - 1).astype(np.float64)
    assert torch.allclose(as_images(floats)[0], as_images(cat)[0], atol=1e-6)
    assert as_images(torch.zeros(5, 3, 40, 41))[0].shape == (5, 3, 40, 41)
    with_alpha = np.dstack([cat, grey])
    pixels, info = as_images(with_alpha)
    assert pixels.shape == (1, 3, 64, 64)
    assert info.alpha is not None


def test_float_npy_is_in_0_1(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 40 * 40).reshape(40, 40))
    read, info = read_image(tmp_path / "a.npy")
    assert (float(read.min()), float(read.max())) == (-1, 1)
    assert info.bits == 16


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def encoded(suffix: str, bits: int = 8) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        write_image(path, levels(3, bits) * 2 - 1, bits=bits)
        return path.read_bytes()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("suffix", "bits"),
    [(".png", 8), (".png", 16), (".jpg", 8), (".tif", 8), (".tif", 16), (".webp", 8), (".npy", 8)],
)
def test_truncated_files(tmp_path: Path, suffix: str, bits: int, share: float) -> None:
    data = encoded(suffix, bits)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FileProblem) as problem:
        read_image(path)
    assert "\n" not in str(problem.value)
    assert path.name in str(problem.value)


def test_a_flipped_byte_never_gives_another_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix, bits in ((".png", 8), (".png", 16), (".tif", 16), (".jpg", 8), (".webp", 8)):
        data = encoded(suffix, bits)
        path = tmp_path / f"flip{suffix}"
        for _ in range(15):
            broken = bytearray(data)
            broken[generator.integers(len(data) // 4)] ^= 1 << int(generator.integers(8))
            path.write_bytes(broken)
            with contextlib.suppress(FileProblem):
                read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.png", b"", "empty"),
        ("text.png", b"this is no image at all, whatever its name says", "not a PNG"),
        ("bomb.png", bomb(60000, 60000), "pixels"),
        ("wide.png", bomb(20000, 6000), "pixels"),
        ("text.npy", b"this is no array", "broken"),
        ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG"),
    ],
)
def test_not_images(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileProblem, match=words):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 5), np.uint8), "1..4"),
        (np.zeros((2, 4, 4, 3), np.uint8), "1..4"),
        (np.zeros((3, 40, 40), np.uint8), "torch tensors: move the channels last"),
        (np.zeros(16, np.uint8), "1..4"),
        (np.zeros((0, 4), np.uint8), "1..4"),
        (np.zeros((4, 4), np.int64), "uint8, uint16 or float"),
        (np.zeros((4, 4), np.complex64), "uint8, uint16 or float"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), 200.0), r"\[0, 1\]"),
        (np.full((4, 4), -0.9), r"\[0, 1\]"),
        (np.array([{"pickled": 1}]), "broken|pickle"),
    ],
)
def test_npy_that_is_no_image(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(FileProblem, match=words):
        read_image(tmp_path / "a.npy")


def test_a_lying_npy_header_costs_nothing(tmp_path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(FileProblem):
        read_image(tmp_path / "a.npy")


def test_files_that_would_lose_something(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), k) for k in (1, 200)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    tifffile.imwrite(
        tmp_path / "deep.tif", np.zeros((2, 8, 8), np.uint16), photometric="minisblack"
    )
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((8, 8), np.float32))
    tifffile.imwrite(tmp_path / "wide.tif", np.zeros((8, 8), np.uint32))
    for name, words in [("pages", "frames"), ("deep", "pages"), ("float", "32"), ("wide", "32")]:
        with pytest.raises(FileProblem, match=words):
            read_image(tmp_path / f"{name}.tif")
    for path in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(FileProblem):
            read_image(path)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (torch.zeros(3, 8, 8, device="meta"), InputError, "meta"),
        (torch.zeros(8, 8), InputError, "C, H, W"),
        (torch.zeros(8, 8, 3), InputError, "permute"),
        (torch.zeros(4, 8, 8), InputError, "1 or 3"),
        (torch.zeros(0, 3, 8, 8), InputError, "B, C, H, W"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), InputTypeError, "uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), InputTypeError, "float"),
        (torch.full((3, 8, 8), 255.0), InputError, "127.5"),
        (torch.full((3, 8, 8), -7.0), InputError, "rescale"),
        (torch.full((3, 8, 8), torch.inf), InputError, "infinite"),
        (np.full((8, 8), np.nan), InputError, "NaN"),
        (np.zeros((3, 40, 40)), InputError, "from_numpy"),
        (np.zeros((8, 8, 4)), InputError, "alpha"),
        (np.zeros((8, 8), np.int32), InputTypeError, "uint8"),
        (np.zeros((8, 8), bool), InputTypeError, "uint8"),
        (17, InputTypeError, "path"),
        (None, InputTypeError, "path"),
        ([[1, 2], [3, 4]], InputTypeError, "path"),
    ],
)
def test_arrays_that_are_no_images(image: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        as_images(image)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("a.bmp", {}, "suffix"),
        ("a.jpg", {"bits": 16}, "16 bits"),
        ("a.webp", {"bits": 16}, "16 bits"),
        ("a.png", {"bits": 12}, "8 or 16"),
        ("a.jpg", {"alpha": torch.ones(1, 8, 8)}, "alpha"),
        ("a.png", {"alpha": torch.ones(1, 9, 8)}, "alpha"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_image(tmp_path / name, torch.zeros(3, 8, 8), **change)
    with pytest.raises(FileProblem):
        write_image(tmp_path / "nowhere" / "a.png", torch.zeros(3, 8, 8))
    assert list(tmp_path.iterdir()) == []
