"""Pixels of image files: the one recipe from bytes to what a model is shown.

The first frame is turned as its orientation says, laid on white where it is transparent, and
converted to 8-bit RGB: grey and black-and-white repeated in three channels, a palette looked up,
16 bits cut to their upper 8, CMYK by its ICC profile. Profiles of RGB are left aside, as in the
training of CLIP and SigLIP. A file is read by its content, whatever its name says; in full, never
at a reduced size; and a broken one is an error, never half a picture.

All of it is Pillow's and numpy's, so it does not matter what else is installed.
"""

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.extras import need

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    ImageLike = bytes | str | Path | Image

Pixels = NDArray[np.uint8]  # [height, width, 3]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

MAX_BYTES = 256 * 2**20  # of a file
MAX_PIXELS = 64_000_000  # a camera's 61 megapixels; 256 MB while it is decoded, at 4 bytes each
# Pillow's names. Of the others, some start programs (EPS) or are no pictures (PDF).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PCX", "PNG", "TIFF", "WEBP")
_HEIF_BRANDS = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"hevc", b"mif1")}
HEIF = "HEIF"  # HEIC, where the package pillow-heif is installed
ORIENTATION = 0x0112  # EXIF's tag
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N"}
_DIGEST_BYTES = 16  # as in schemas.py, whose Arrow a process that decodes need not load
_HASH_SIDE = 8  # of the perceptual hash: 8 x 8 bits


class ImageError(ValueError):
    """Bytes that are no image, a broken one, or one beyond the limits; the text says which."""


@dataclass(frozen=True)
class Look:
    """What is on record of an image, in place of its pixels."""

    format: str  # as `format_of` says
    width: int  # as it is looked at, with its orientation
    height: int
    digest: str
    perceptual: str


@dataclass(frozen=True)
class Resize:
    """How pixels become the square that a model takes.

    With `crop` the shorter side becomes `size` and the middle is cut out, as CLIP was trained;
    without, the image is squeezed into the square, as SigLIP.
    """

    size: int
    crop: bool
    filter: Filter


def recipe() -> str:
    """The recipe's name with the versions of what decodes and resizes, for identities.

    Raises ConfigError without Pillow.
    """
    features = need("PIL.features", "images")
    parts = [f"rgb-1 pillow-{features.version('pil')}"]
    for name in ("libjpeg_turbo", "webp", "avif", "littlecms2"):
        parts.append(f"{name}-{features.version(name)}")
    return " ".join(parts)


def decode(data: bytes) -> Pixels:
    """The pixels [height, width, 3] uint8 of an image file. Raises ImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, which decide nothing here
        return _decode(data)


def format_of(data: bytes) -> str:
    """The format by content, in small letters: `jpeg`. Reads the header. Raises ImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = (_open(data).format or "").lower()
    return {"mpo": "jpeg"}.get(name, name)  # a JPEG with further pictures, as phones write them


def too_large(size_bytes: int) -> str:
    """Why a file of so many bytes is not read."""
    return f"the file has {size_bytes:,} bytes; at most {MAX_BYTES:,} are read"


def look(data: bytes) -> Look:
    """Decode an image file and describe it. Raises ImageError."""
    pixels = decode(data)
    height, width = pixels.shape[:2]
    return Look(format_of(data), width, height, digest(pixels), perceptual(pixels))


def digest(pixels: Pixels) -> str:
    """128 bits over shape and pixels, in hexadecimal: the same for every lossless encoding."""
    hasher = hashlib.blake2b(np.asarray(pixels.shape, "<u4").tobytes(), digest_size=_DIGEST_BYTES)
    hasher.update(np.ascontiguousarray(pixels).data)
    return hasher.hexdigest()


def pixels_of(image: "ImageLike") -> tuple[str, Pixels]:
    """A name for people, and the pixels of an image by its file's path, by its bytes, or as one of
    Pillow. Raises ImageError, OSError for a file that cannot be read, and TypeError."""
    if isinstance(image, bytes):
        return "an image", decode(image)
    if isinstance(image, str | Path):
        with open(os.path.expanduser(image), "rb") as file:
            return str(image), decode(file.read(MAX_BYTES + 1))
    if not hasattr(image, "getexif"):
        raise TypeError(f"An image is a path, bytes, or an image of Pillow, not {image!r}.")
    # As a file without loss, so that it is decoded as all others are.
    written, kind = io.BytesIO(), "TIFF" if image.mode == "CMYK" else "PNG"
    options = {"exif": image.getexif(), "icc_profile": image.info.get("icc_profile")}
    try:
        image.save(written, kind, **options)
    except (OSError, ValueError, SystemError) as error:
        raise ImageError(
            f"an image of {image.width} x {image.height} pixels in mode {image.mode} is not read; give "
            "one that is not empty, converted to RGB"
        ) from error
    return "an image", decode(written.getvalue())


def perceptual(pixels: Pixels) -> str:
    """A hash of 64 bits in hexadecimal that differs in few bits for images that look alike.

    Each bit says whether a field of 8 rows x 9 columns is darker than the one on its right.
    """
    pillow = need("PIL.Image", "images")
    grey = pillow.fromarray(pixels).convert("L")
    fields = np.asarray(grey.resize((_HASH_SIDE + 1, _HASH_SIDE), pillow.Resampling.BOX))
    return np.packbits(fields[:, :-1] < fields[:, 1:]).tobytes().hex()


def prepare(pixels: Pixels, resize: Resize) -> Pixels:
    """The square [size, size, 3] uint8 that a model takes, with antialiasing.

    Equals transformers' processors on Pillow, bit for bit. Of a strip that would be enlarged to
    more than MAX_PIXELS only the middle is computed, which may differ in what Pillow rounds.
    """
    pillow = need("PIL.Image", "images")
    image = pillow.fromarray(pixels)
    resampling = pillow.Resampling[resize.filter.upper()]
    square = (resize.size, resize.size)
    if not resize.crop:
        return np.asarray(image.resize(square, resampling))
    short = min(image.size)
    width, height = (
        resize.size if side == short else int(resize.size * side / short) for side in image.size
    )
    left, top = (width - resize.size) // 2, (height - resize.size) // 2
    right, bottom = left + resize.size, top + resize.size
    if width * height <= MAX_PIXELS:
        whole = image.resize((width, height), resampling)
        return np.asarray(whole.crop((left, top, right, bottom)))
    across, down = image.width / width, image.height / height
    middle = (left * across, top * down, right * across, bottom * down)
    return np.asarray(image.resize(square, resampling, middle))


def _decode(data: bytes) -> Pixels:
    image = _open(data)
    deep = ";16" in _raw_mode(image)  # asked before loading, which forgets it
    scale = {"1": 255, "L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)
    try:
        image.load()
        _check_pixels(image)  # a GIF's first frame may be larger than its screen
        orientation = _orientation(image)
        rgb = _rgb(image, deep, scale)
        del image  # of 64 million pixels it takes 256 MB
        turn = _turns().get(orientation)
        return np.asarray(rgb.transpose(turn) if turn is not None else rgb)  # type: ignore[arg-type]
    except ImageError:
        raise
    except Exception as error:  # whatever Pillow makes of damaged bytes
        raise _broken(error) from error


def _open(data: bytes) -> "ImageFile":
    """The image, its header read and within the limits."""
    pillow = need("PIL.Image", "images")
    if not data:
        raise ImageError("the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(too_large(len(data)))
    try:
        image: ImageFile = pillow.open(io.BytesIO(data), formats=_formats())
    except pillow.UnidentifiedImageError as error:
        if data[4:12] in _HEIF_BRANDS and HEIF not in _formats():
            raise ImageError("it is HEIC: run pip install pillow-heif, which reads it") from error
        kinds = ", ".join(name.lower() for name in _formats())
        raise ImageError(
            f"the content is no image of a format that is read ({kinds}), or its beginning is broken"
        ) from error
    except pillow.DecompressionBombError as error:
        raise ImageError(f"it has more pixels than the {MAX_PIXELS:,} that are read") from error
    except Exception as error:  # whatever Pillow makes of damaged bytes
        raise _broken(error) from error
    _check_pixels(image)
    return image


def _check_pixels(image: "Image") -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"it has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} in all are read"
        )


def _formats() -> tuple[str, ...]:
    """The formats that are read here."""
    if find_spec("pillow_heif") is None:
        return FORMATS
    import_module("pillow_heif").register_heif_opener()
    return (*FORMATS, HEIF)


def _broken(error: Exception) -> ImageError:
    words = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"the image is broken: {words}")


def _raw_mode(image: "ImageFile") -> str:
    """How the file packs its samples, as Pillow's decoder is told: `L;4`, `RGB;16B`."""
    for tile in image.tile:
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        return next((str(arg) for arg in args if isinstance(arg, str)), "")
    return ""


def _orientation(image: "Image") -> int:
    """1 to 8 by EXIF or XMP; 1 if there is none that can be read, as viewers take it."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # metadata are no part of the picture
        return 1


def _turns() -> dict[int, object]:
    Transpose = need("PIL.Image", "images").Transpose
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


def _rgb(image: "Image", deep: bool, scale: int) -> "Image":
    """8-bit RGB on white. `deep`: 16 bits per sample; `scale`: what makes a grey sample 8 bits."""
    if image.mode in _DEEP:
        return _deep_grey(image)
    if image.mode in ("I", "F"):
        raise ImageError(
            "its samples are 32-bit numbers, which have no black and white; save it with 8 or 16"
        )
    if image.mode == "CMYK":
        return _of_cmyk(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    see_through = image.info.get("transparency")
    if see_through is not None and image.mode in ("1", "L"):
        image.info["transparency"] = int(see_through) * scale
    elif see_through is not None and image.mode == "RGB" and deep:
        image.info["transparency"] = tuple(value >> 8 for value in see_through)
    return _on_white(image if image.mode == "RGBA" else image.convert("RGBA"))


def _on_white(image: "Image") -> "Image":
    """Each channel c at opacity a becomes round((c * a + 255 * (255 - a)) / 255)."""
    pillow = need("PIL.Image", "images")
    canvas: Image = pillow.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def _deep_grey(image: "Image") -> "Image":
    pillow = need("PIL.Image", "images")
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    see_through = image.info.get("transparency")
    if see_through is not None:
        grey[samples == see_through] = 255
    rgb: Image = pillow.fromarray(grey).convert("RGB")
    return rgb


def _of_cmyk(image: "Image") -> "Image":
    """By the file's ICC profile to sRGB; plainly without one, or with one that cannot be used."""
    ImageCms = need("PIL.ImageCms", "images")
    profile = image.info.get("icc_profile")
    if profile:
        try:
            converted: Image | None = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            return image.convert("RGB")
        if converted is not None:
            return converted
    return image.convert("RGB")
