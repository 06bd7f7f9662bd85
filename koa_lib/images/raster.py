"""PNG, WebP, JPEG, TIFF and BMP, each by the class of Pillow that its content asks for, and no other."""

from contextlib import contextmanager, suppress

import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import DecompressionBombError

from koa_lib.images.checks import Refused, check_size, not_square

_CLASSES = {
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_BITS, _PHOTOMETRIC, _ORIENTATION, _HIGHEST, _SAMPLE_FORMAT = 258, 262, 274, 281, 339  # TIFF and EXIF tags
NARROW = 0.26  # of its range: 14 bits in 16 are 25 %


def size(path, kind):
    """Width, height and number of pictures, from the header."""
    with _opened(path, kind) as picture:
        return *picture.size, _frames(picture)


def decode(path, kind):
    """Stored pixels and mode, as `koa_lib.images.read.decode` says."""
    with _opened(path, kind) as picture:
        values = _values(picture)
    if values.dtype.kind == "f":
        values = np.rint(values * 65535).astype(np.uint16)
    return values, picture.mode


def read(path, kind):
    """Gray picture, facts and doubts of a file, as `koa_lib.images.read.read` says."""
    facts = []
    with _opened(path, kind) as picture:
        values, tags = _values(picture), getattr(picture, "tag_v2", {})
        turn = 1 if kind == "TIFF" else _orientation(picture)  # Pillow itself turns TIFF
        doubts = [*_pixel_shape(picture)]
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
    return _upright(gray, turn), facts, doubts


@contextmanager
def _opened(path, kind):
    with open(path, "rb") as file:  # not by name: Pillow scrambles its memory map of a TIFF on its side
        try:
            picture = _CLASSES[kind](file)
        except DecompressionBombError as error:
            raise Refused(f"it is gigantic ({error})", "Replace it by a smaller picture.") from error
        except SyntaxError as error:
            reason = f"it is truncated, damaged or a {kind} that Pillow does not know ({error})"
            raise Refused(reason, "Fetch it again or save it as PNG.") from error
        yield picture


def _frames(picture):
    with suppress(Exception):  # what is damaged behind the first picture is not needed
        return getattr(picture, "n_frames", 1)
    return 1


def _values(picture):
    """Stored values, gray (H, W) or colour (H, W, 3): uint8, uint16, or float32 in [0, 1]."""
    check_size(*picture.size)
    mode, tags = picture.mode, getattr(picture, "tag_v2", {})
    if mode == "F" or mode.startswith("I"):
        return _checked(np.asarray(picture))
    if max(tags.get(_BITS, (1,))) > 8 if tags else picture.format == "PNG" and ";16" in str(picture.tile):
        reason = f"it has 16 bits in each of several channels ({mode}), of which Pillow keeps 8"
        raise Refused(reason, "Save it as 16-bit gray without alpha.")
    pixels = np.asarray(picture.convert("L" if mode in ("L", "1", "LA") else "RGB"))
    if 2 in tags.get(_SAMPLE_FORMAT, ()):
        _checked(pixels.view(np.int8))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return pixels


def _checked(values):
    # Pillow opens deep integers as 32 bits ("I"), whatever their range; a float picture may have any.
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if 0 <= low and high <= 1:
            return values
        reason = f"its float values run from {low:g} to {high:g} instead of 0 to 1"
        raise Refused(reason, "Rescale it or save it as 16-bit gray.")
    if low < 0 or high > 65535:
        reason = f"it holds signed values, or values outside 16 bits ({low} to {high})"
        raise Refused(reason, "Convert it to unsigned 16-bit gray.")
    return values.astype(np.uint16)


def _white(values, path, tags):
    """The stored value of white: the highest of the bits that the file says it uses, where its values fit."""
    if values.dtype == np.uint8:
        return 255
    highest = int(np.max(tags.get(_HIGHEST, 0)))
    bits = highest.bit_length() or max(tags.get(_BITS, (1,))) if tags else _significant_bits(path)
    white = 2**bits - 1
    return white if values.max() <= white <= 65535 else 65535


def _significant_bits(path):
    """The number in a PNG file's sBIT chunk; 16 without one."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            length = int.from_bytes(head[:4])
            if head[4:] == b"sBIT":
                return file.read(1)[0]
            file.seek(length + 4, 1)
    return 16


def _orientation(picture):
    with suppress(Exception):  # unreadable EXIF turns nothing
        return picture.getexif().get(_ORIENTATION)
    return 1


def _upright(gray, orientation):
    """Turned as EXIF says: its eight codes are two flips, from the fifth on after a transposition."""
    if orientation not in range(2, 9):
        return gray
    turned = gray.T if orientation > 4 else gray
    down, across = ((1, 1), (1, -1), (-1, -1), (-1, 1))[(orientation - 1) % 4]
    return np.ascontiguousarray(turned[::down, ::across])


def _pixel_shape(picture):
    for name in ("dpi", "aspect", "jfif_density"):
        with suppress(TypeError, ZeroDivisionError):
            across, down = picture.info.get(name)
            return not_square(across / down)
    return ()
