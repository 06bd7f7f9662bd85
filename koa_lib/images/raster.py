"""PNG, WebP, JPEG, TIFF and BMP, each by the class of Pillow that its content asks for, and no other."""

import re
from contextlib import contextmanager, suppress

import numpy as np
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.WebPImagePlugin import WebPImageFile

from koa_lib.images.checks import Refused, check_size, oblong

_CLASSES = {
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_BITS, _PHOTOMETRIC, _ORIENTATION, _HIGHEST, _SAMPLE_FORMAT = 258, 262, 274, 281, 339  # TIFF and EXIF tags
NARROW = 0.26  # of its range: 14 bits in 16 are 25 %


def size(path, kind):
    """Width, height and number of pictures, from the header."""
    with _opened(path, kind) as (picture, _):
        return *picture.size, _frames(picture)


def decode(path, kind):
    """Stored pixels and mode, as `koa_lib.images.read.decode` says."""
    with _opened(path, kind) as (picture, tags):
        values = _values(picture, tags)
    if values.dtype.kind == "f":
        values = np.rint(values * 65535).astype(np.uint16)
    return values, picture.mode


def read(path, kind):
    """Gray picture, facts and doubts of a file, as `koa_lib.images.read.read` says."""
    facts = []
    with _opened(path, kind) as (picture, tags):
        values = _values(picture, tags)
        doubts = oblong(picture.info.get, ("dpi", "aspect", "jfif_density"))
        if (frames := _frames(picture)) > 1:
            facts.append(f"file of {frames} pictures: the first was read")
        gray = values.astype(np.float32)
        if values.dtype.kind == "u":
            gray /= _white(values, path, tags)
        if values.dtype != np.uint8:
            if np.ptp(gray) < NARROW:
                doubts.append(f"uses {100 * np.ptp(gray):.0f} % of its range")
            if tags.get(_PHOTOMETRIC) == 0:  # Pillow itself inverts up to 8 bits, and only those
                gray = 1 - gray
        if gray.ndim == 3:
            gray = gray.mean(axis=2)
            facts.append("colour picture: its channels were averaged")
        return _upright(gray, picture), facts, doubts


@contextmanager
def _opened(path, kind):
    """A file as Pillow sees it, and its TIFF tags."""
    with open(path, "rb") as file:  # not by name: Pillow scrambles its memory map of a TIFF on its side
        picture = _CLASSES[kind](file)
        yield picture, getattr(picture, "tag_v2", {})


def _frames(picture):
    with suppress(Exception):  # what is damaged behind the first picture is not needed
        return getattr(picture, "n_frames", 1)
    return 1


def _values(picture, tags):
    """Stored values, gray (H, W) or colour (H, W, 3): uint8, uint16, or float32 in [0, 1]."""
    check_size(*picture.size)
    mode = picture.mode
    if mode == "F" or mode.startswith("I"):
        return _checked(np.asarray(picture))
    if max(tags.get(_BITS, (1,))) > 8 if tags else picture.format == "PNG" and ";16" in str(picture.tile):
        raise Refused("it has 16 bits in each of several channels. Save it as 16-bit gray without alpha.")
    pixels = np.asarray(picture.convert("L" if mode in ("L", "1", "LA") else "RGB"))
    if 2 in tags.get(_SAMPLE_FORMAT, ()):
        _checked(pixels.view(np.int8))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return pixels


def _checked(values):
    # Pillow opens deep integers as 32 bits ("I"), whatever their range; a float picture may have any.
    low, high, exact = values.min(), values.max(), values.dtype.kind != "f"
    white = 65535 if exact else 1
    if not (0 <= low and high <= white):  # so also NaN
        raise Refused(f"its values run from {low:g} to {high:g}, not 0 to {white}. Save it as 16-bit gray.")
    return values.astype(np.uint16) if exact else values


def _white(values, path, tags):
    """The stored value of white: the highest of the bits that the file says it uses, where its values fit."""
    if values.dtype == np.uint8:
        return 255
    highest = int(np.max(tags.get(_HIGHEST, 0)))
    bits = highest.bit_length() or max(tags.get(_BITS, (1,))) if tags else _significant_bits(path)
    white = 2**bits - 1
    return white if values.max() <= white <= 65535 else 65535


def _significant_bits(path):
    """The number in the sBIT chunk of a gray PNG file, which stands before its pixels; 16 without one."""
    with open(path, "rb") as file:
        head = file.read(2**20).partition(b"IDAT")[0]
    found = re.search(rb"\x01sBIT(.)", head, re.DOTALL)
    return found[1][0] if found else 16


def _upright(gray, picture):
    """Turned as the EXIF of a picture says; Pillow itself turns TIFF, and takes the tag away."""
    with suppress(Exception):  # unreadable EXIF turns nothing
        turned = Image.fromarray(gray)
        turned.getexif()[_ORIENTATION] = picture.getexif().get(_ORIENTATION)
        return np.array(ImageOps.exif_transpose(turned))
    return gray
