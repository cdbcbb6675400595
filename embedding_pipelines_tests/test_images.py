"""The recipe from bytes to pixels: golden digests of each mode and format, values by reasoning."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener

from embedding_pipelines import images
from embedding_pipelines.images import (
    ImageError,
    Resize,
    decode,
    digest,
    format_of,
    perceptual,
    prepare,
    recipe,
)

HEIGHT, WIDTH = 12, 16
LOSSLESS: dict[str, dict[str, Any]] = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True},
    "HEIF": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
}


def _scene() -> np.ndarray:
    """[12, 16, 3]: a slope in each channel, and no two sides alike."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([columns * 15, rows * 20, 250 - rows * 9 - columns * 8], axis=-1).astype(
        np.uint8
    )


SCENE = _scene()


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _heic(image: Image.Image, **options: Any) -> bytes:
    """As phones write it, but without loss."""
    register_heif_opener()
    return _save(image, "HEIF", **LOSSLESS["HEIF"], **options)


def _rgb() -> Image.Image:
    return Image.fromarray(SCENE)


def _grey() -> Image.Image:
    return _rgb().convert("L")


def _palette() -> Image.Image:
    return _rgb().quantize(16, dither=Image.Dither.NONE)


def _rgba() -> Image.Image:
    image = _rgb()
    image.putalpha(Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) * 17, (HEIGHT, 1))))
    return image


def _deep() -> Image.Image:
    return Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 340)


def _animation() -> list[Image.Image]:
    return [_rgb(), Image.new("RGB", (WIDTH, HEIGHT), "red")]


def _png(
    depth: int, colour: int, row: bytes, width: int, *chunks: tuple[bytes, bytes], height: int = 1
) -> bytes:
    """A PNG of one row with its filter byte before it, which Pillow itself cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def _cmyk_profile() -> bytes:
    """A profile by which paper is white, all inks are black, and one ink a middle grey."""
    nodes = b"".join(
        bytes([255 if not any(inks) else 0 if all(inks) else 128, 128, 128])
        for inks in np.ndindex(2, 2, 2, 2)  # the last ink varies fastest
    )
    slope = bytes(range(256))
    unity = struct.pack(">9i", *(65536 if n in (0, 4, 8) else 0 for n in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unity + slope * 4 + nodes + slope * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0"
    place, index, body = 128 + 4 + 12 * 3, b"", b""
    for name, tag in ((b"A2B0", table), (b"wtpt", white), (b"cprt", text)):
        index += struct.pack(">4sII", name, place + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4s4s4s4s4s12x4s", place + len(body), b"", b"\x02\x40\0\0", b"prtr",
                         b"CMYK", b"Lab ", b"acsp") + bytes(28)  # fmt: skip
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", 3) + index + body


FILES: dict[str, Callable[[], bytes]] = {
    "png rgb": lambda: _save(_rgb(), "PNG"),
    "png grey": lambda: _save(_grey(), "PNG"),
    "png black and white": lambda: _save(_grey().convert("1"), "PNG"),
    "png palette": lambda: _save(_palette(), "PNG"),
    "png palette with a transparent colour": lambda: _save(_palette(), "PNG", transparency=3),
    "png rgba": lambda: _save(_rgba(), "PNG"),
    "png grey and alpha": lambda: _save(_rgba().convert("LA"), "PNG"),
    "png grey of 16 bits": lambda: _save(_deep(), "PNG"),
    "apng": lambda: _save(
        _animation()[0], "PNG", save_all=True, append_images=_animation()[1:], duration=100
    ),
    "jpeg": lambda: _save(_rgb(), "JPEG", quality=90),
    "jpeg progressive": lambda: _save(_rgb(), "JPEG", quality=90, progressive=True),
    "jpeg grey": lambda: _save(_grey(), "JPEG", quality=90),
    "jpeg cmyk": lambda: _save(_rgb().convert("CMYK"), "JPEG", quality=90),
    "webp": lambda: _save(_rgb(), "WEBP", quality=90),
    "webp lossless": lambda: _save(_rgb(), "WEBP", lossless=True),
    "webp rgba": lambda: _save(_rgba(), "WEBP", lossless=True, exact=True),
    "webp animated": lambda: _save(
        _animation()[0], "WEBP", save_all=True, append_images=_animation()[1:], lossless=True
    ),
    "gif": lambda: _save(_palette(), "GIF"),
    "gif animated": lambda: _save(
        _palette(), "GIF", save_all=True, append_images=_animation()[1:], duration=100
    ),
    "bmp": lambda: _save(_rgb(), "BMP"),
    "pcx": lambda: _save(_rgb(), "PCX"),
    "tiff": lambda: _save(_rgb(), "TIFF"),
    "tiff lzw": lambda: _save(_rgb(), "TIFF", compression="tiff_lzw"),
    "tiff cmyk": lambda: _save(_rgb().convert("CMYK"), "TIFF"),
    "tiff of 16 bits": lambda: _save(_deep(), "TIFF"),
    "tiff rgba": lambda: _save(_rgba(), "TIFF"),
    "tiff lab": lambda: _save(_rgb().convert("LAB"), "TIFF"),
    "avif": lambda: _save(_rgb(), "AVIF", quality=90),
    "heif": lambda: _heic(_rgb()),
    "heif rgba": lambda: _heic(_rgba()),
}

GOLDEN = {  # of Pillow 13.0.0: a change here is another space, and all is embedded anew
    "png rgb": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "png grey": "938b3b9911e890207a5bb2f3aafd5685",
    "png black and white": "53e2cdabcf1678c6ee0e792de715729c",
    "png palette": "9fb50fb60defb3f74a2ca7fe3b40bc17",
    "png palette with a transparent colour": "a95f1ea02b56c7e049fcf735946b6d7d",
    "png rgba": "c15135ba819090b01e8c846260f87c23",
    "png grey and alpha": "0ca4f7095e8ccea4fcda663ab9556a50",
    "png grey of 16 bits": "e4b7f0c84eddfdb7505ceae060acda5a",
    "apng": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "jpeg": "eddcb0ab08ab50af38b9448d356e050a",
    "jpeg progressive": "eddcb0ab08ab50af38b9448d356e050a",
    "jpeg grey": "2513a8451037a4022ed38f08c4cab456",
    "jpeg cmyk": "38021e50ee1483baf4778e034d811314",
    "webp": "00328aa26b127c1615feeaf02a1a68e6",
    "webp lossless": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "webp rgba": "c15135ba819090b01e8c846260f87c23",
    "webp animated": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "gif": "9fb50fb60defb3f74a2ca7fe3b40bc17",
    "gif animated": "9fb50fb60defb3f74a2ca7fe3b40bc17",
    "bmp": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "pcx": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "tiff": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "tiff lzw": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "tiff cmyk": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "tiff of 16 bits": "e4b7f0c84eddfdb7505ceae060acda5a",
    "tiff rgba": "c15135ba819090b01e8c846260f87c23",
    "tiff lab": "99bacc9b49948602299d670c2743b29a",
    "avif": "3653fceea6597b0aa9674b26cdae858f",
    "heif": "a39dc8fb2bc7b01b44b5dda5bbe03ed2",
    "heif rgba": "c15135ba819090b01e8c846260f87c23",
}


def _decode_quietly(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode(data)


@pytest.mark.parametrize("name", FILES)
def test_each_mode_and_format_has_the_pixels_that_it_had(name: str) -> None:
    data = FILES[name]()
    pixels = _decode_quietly(data)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    assert format_of(data) == name.split()[0].replace("apng", "png")
    assert digest(pixels) == GOLDEN[name]


def test_what_is_encoded_without_loss_is_the_same_and_so_is_a_first_frame() -> None:
    same = {"png rgb", "apng", "webp lossless", "webp animated", "bmp", "pcx", "tiff", "tiff lzw"}
    same |= {"tiff cmyk", "heif"}
    assert {name for name, code in GOLDEN.items() if code == digest(SCENE)} == same


def test_transparency_is_laid_on_white() -> None:
    alpha = np.arange(WIDTH)[None, :, None] * 17
    white = np.rint((SCENE.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)
    assert (decode(FILES["png rgba"]()) == white).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_shade_of_grey_is_white_at_each_depth(depth: int) -> None:
    top = 2**depth - 1
    samples = [0, top, 0, top, 0, top, 0, top]  # a byte each at depth 8, else packed
    packed = np.packbits(
        np.unpackbits(np.array(samples, np.uint8)[:, None], axis=1)[:, -depth:]
    ).tobytes()
    for value, expected in ((0, [255] * 8), (top, [0, 255] * 4)):
        data = _png(depth, 0, b"\0" + packed, 8, (b"tRNS", struct.pack(">H", value)))
        assert decode(data)[0, :, 0].tolist() == expected


def test_a_transparent_colour_is_white_with_8_and_with_16_bits() -> None:
    colours = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    data = _png(8, 2, b"\0" + colours.tobytes(), 2, (b"tRNS", struct.pack(">3H", 255, 0, 0)))
    assert decode(data)[0].tolist() == [[255, 255, 255], [0, 0, 255]]
    row = b"\0" + (colours.astype(">u2") * 257).tobytes()
    data = _png(16, 2, row, 2, (b"tRNS", struct.pack(">3H", 65535, 0, 0)))
    assert decode(data)[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_a_palette_is_looked_up_and_may_be_transparent_in_degrees() -> None:
    palette = (b"PLTE", bytes([10, 20, 30, 200, 100, 0, 0, 0, 0]))
    data = _png(8, 3, bytes([0, 0, 1, 2]), 3, palette, (b"tRNS", bytes([255, 0, 51])))
    assert decode(data)[0].tolist() == [[10, 20, 30], [255] * 3, [204] * 3]  # 51/255 of black


def test_16_bits_are_cut_to_the_upper_8_and_a_transparent_one_is_told_by_all_16() -> None:
    samples = np.array([0x1234, 0x1235, 0xFFFF], ">u2")
    data = _png(16, 0, b"\0" + samples.tobytes(), 3, (b"tRNS", b"\x12\x35"))
    assert decode(data)[0].tolist() == [[0x12] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_each_orientation_is_undone(orientation: int, kind: str) -> None:
    """EXIF says where the stored first row and column stand in the picture: built from that."""
    stored = {
        1: SCENE,
        2: SCENE[:, ::-1],  # first column on the right
        3: SCENE[::-1, ::-1],
        4: SCENE[::-1],
        5: SCENE.transpose(1, 0, 2),  # first row on the left
        6: np.rot90(SCENE, 1),  # first row on the right: a camera held upright
        7: SCENE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(SCENE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    register_heif_opener()
    options = LOSSLESS.get(kind, {})
    data = _save(
        Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes(), **options
    )
    error = np.abs(decode(data).astype(int) - SCENE)
    assert error.max() <= (4 if kind == "AVIF" else 0)  # which rounds in another colour space


def test_metadata_that_are_damaged_turn_nothing() -> None:
    data = _save(_rgb(), "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert (_decode_quietly(data) == SCENE).all()


def test_cmyk_goes_by_its_profile_and_plainly_without_one_that_can_be_used() -> None:
    inks = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        plain = decode(_save(inks, kind))[0, 0].tolist()
        assert plain == [0, 255, 255]
        grey = decode(_save(inks, kind, icc_profile=_cmyk_profile()))[0, 0]
        assert grey == pytest.approx([119, 119, 119], abs=4)  # L* = 50 in sRGB
        wrong = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        for broken in (wrong, b"no profile", _cmyk_profile()[:200]):
            assert decode(_save(inks, kind, icc_profile=broken))[0, 0].tolist() == plain


def test_samples_without_a_white_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(ImageError, match="32-bit numbers"):
            decode(_save(Image.new(mode, (2, 2)), "TIFF"))


# What is no image, or too much of one.


@pytest.mark.parametrize(
    "name", [name for name in FILES if name not in ("apng", "webp animated", "gif animated")]
)
def test_each_format_that_is_cut_short_is_refused(name: str) -> None:
    data = FILES[name]()
    keep = 60 if name.startswith("tiff") else len(data) * 6 // 10
    with pytest.raises(ImageError):
        _decode_quietly(data[:keep])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 1000, "no image of a format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a format"),
        (_png(8, 0, b"\0\1", 0x7FFFFFFF), "pixels"),
        (_png(8, 0, b"\0\1", 100_000_000), "pixels"),
        (_png(8, 0, b"\0\1", 9_000, height=9_000), "9,000 x 9,000 pixels"),
        (_png(8, 0, b"", 0), "broken|no image"),
    ],
)
def test_what_is_no_image_or_a_bomb_is_refused_by_its_header(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        _decode_quietly(data)


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_read_where_its_package_is_installed_and_named_where_not(
    brand: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _heic(_rgb())
    data = data[:8] + brand + data[12:]  # AVIF may say mif1, too
    assert (_decode_quietly(data) == SCENE).all()
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    with pytest.raises(ImageError, match="it is HEIC: run pip install pillow-heif"):
        _decode_quietly(data)


def test_more_bytes_than_are_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="bytes; at most 100 are read"):
        decode(bytes(101))


# What a model is shown, and what tells images apart.


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (224, 224), (100, 37), (33, 500)])
def test_the_square_is_what_transformers_cut(shape: tuple[int, int]) -> None:
    """By its steps: resize the whole image, then cut out the middle."""
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = shape
    short = min(shape)
    size = (int(224 * width / short), int(224 * height / short))
    whole = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - 224) // 2, (size[0] - 224) // 2
    square = prepare(pixels, Resize(224, True, "bicubic"))
    assert (square == whole[top : top + 224, left : left + 224]).all()
    squeezed = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR))
    assert (prepare(pixels, Resize(224, False, "bilinear")) == squeezed).all()


def test_a_strip_is_cut_before_it_is_enlarged() -> None:
    strip = np.zeros((1, 1_000_000, 3), np.uint8)  # 224 high it would be 224 million wide
    assert prepare(strip, Resize(224, True, "bicubic")).shape == (224, 224, 3)


def test_shrinking_takes_the_mean_of_what_it_covers() -> None:
    board = np.indices((512, 512)).sum(axis=0) % 2 * 255  # every other pixel white
    pixels = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    inner = prepare(pixels, Resize(64, True, "bicubic"))[4:-4, 4:-4]
    assert np.abs(inner.astype(int) - 127).max() <= 2


def test_a_digest_tells_shapes_and_pixels_apart_and_not_how_they_lie_in_memory() -> None:
    other = SCENE.copy()
    other[3, 4, 1] ^= 1
    turned = SCENE.reshape(WIDTH, HEIGHT, 3)
    assert len({digest(pixels) for pixels in (SCENE, other, turned)}) == 3
    assert digest(np.asfortranarray(SCENE)) == digest(SCENE)
    assert len(digest(SCENE)) == 32


def test_a_perceptual_hash_says_which_field_is_darker_than_the_one_on_its_right() -> None:
    slope = np.tile(np.arange(9, dtype=np.uint8)[None, :, None] * 20, (8, 1, 3))
    assert perceptual(slope) == "f" * 16
    assert perceptual(slope[:, ::-1]) == "0" * 16
    large = slope.repeat(30, axis=0).repeat(30, axis=1)
    large[:30, :30] = 255  # the first field, now lighter than its neighbour
    assert perceptual(large) == "7" + "f" * 15


def test_the_recipe_names_its_version_and_those_of_the_decoders() -> None:
    assert recipe().startswith("rgb-1 pillow-")
    assert "libjpeg_turbo-" in recipe()
