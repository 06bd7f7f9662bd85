"""Picture files: the one room that reads them, from PNG, WebP, JPEG, TIFF, BMP and DICOM.

`decode` gives the stored pixels, by which a picture is recognised in any container; `read` gives what an
observer sees: bone bright, in [0, 1]. A file that cannot be read is a StudyError with its name, the cause
and the remedy.
"""

import hashlib
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from koa_lib.errors import StudyError
from koa_lib.images import dicom, raster
from koa_lib.images.checks import Refused, ended_early

FORMATS = {"PNG": (".png",), "WEBP": (".webp",), "JPEG": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff"),
           "BMP": (".bmp",), "DICOM": (".dcm", ".dicom")}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_BEGINNINGS = {"DICOM": rb".{128}DICM", "PNG": rb"\x89PNG\r\n\x1a\n", "WEBP": rb"RIFF....WEBP",
               "JPEG": rb"\xff\xd8\xff", "TIFF": rb"(II|MM)(\0[*+]|[*+]\0)", "BMP": rb"BM"}


@dataclass(frozen=True)
class Picture:
    """A picture as an observer sees it.

    Attributes
    ----------
    gray : float32 array, (H, W)
        In [0, 1], bone bright.
    notes : tuple of str
        What a person should know of how the file was read, a phrase each; empty as a rule.
    doubts : tuple of str
        Those of the notes by which the values or the shape may not be what was meant.
    """

    gray: np.ndarray
    notes: tuple = ()
    doubts: tuple = ()


@dataclass(frozen=True)
class Header:
    """What a file says of itself before anything is decoded.

    Kind ('PNG', 'DICOM', ...), number of pictures, and size in pixels as it is decoded, like in a manifest.
    """

    kind: str
    width: int
    height: int
    frames: int = 1


def to_uint8(gray):
    """A float picture in [0, 1] as uint8, rounded to the nearest."""
    return np.round(255 * gray).astype(np.uint8)


def file_sha256(path):
    """SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pixel_sha256(pixels):
    """SHA-256 of decoded pixels, equal for the same picture in another container.

    Parameters
    ----------
    pixels : uint8 or uint16 array, (H, W) or (H, W, 3)
        As returned by `decode`.
    """
    size = "x".join(map(str, pixels.shape))
    digest = hashlib.sha256(f"{size}:{pixels.dtype.name}:".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def is_picture(path):
    """Whether a file's name has the suffix of a picture."""
    return Path(path).suffix.lower() in SUFFIXES


def kind_of(path):
    """Name of a file's format, a key of `FORMATS`, by its content; StudyError when it is no picture."""
    with _recognised(path) as kind:
        return kind


def header(path):
    """What a file says of itself, without decoding it: a gigantic picture costs no memory.

    Returns
    -------
    Header

    Raises
    ------
    StudyError
        When the file is no picture.
    """
    with _recognised(path) as kind:
        return Header(kind, *(dicom.size(path) if kind == "DICOM" else raster.size(path, kind)))


def decode(path):
    """The stored pixels of a picture file and the name of its mode: what the hash is taken from, not what is
    seen.

    Equal RGB channels become one, alpha is dropped, a palette is expanded, CMYK becomes RGB; 16-bit gray
    stays 16-bit and float gray in [0, 1] becomes 16-bit. Polarity and window of 16-bit TIFF and DICOM are
    not applied, nor is the orientation that JPEG, PNG and WebP name (TIFF is turned upright); signed DICOM
    values are shifted by half their range, 2 ** (bits stored - 1), so that the lowest is 0.

    Returns
    -------
    pixels : uint8 or uint16 array, (H, W) or (H, W, 3)
    mode : str
        Pillow's name, or the photometric interpretation of a DICOM file.

    Raises
    ------
    StudyError
        When the file is no readable picture, holds values outside 16 bits, or 16 bits in several channels.
    """
    with _recognised(path) as kind:
        return dicom.decode(path) if kind == "DICOM" else raster.decode(path, kind)


def decoded_sha256(path):
    """`pixel_sha256` of a picture file; errors as `decode`."""
    return pixel_sha256(decode(path)[0])


def read(path):
    """A picture as an observer sees it, bone bright, and what a person should know of how it was read.

    Eight and 16 bits are divided by 255 and 65,535, and by less where the file says that it uses fewer bits
    (12-bit TIFF, `MaxSampleValue`, `sBIT`); colour is averaged; TIFF in which zero is white is inverted; an
    orientation tag is obeyed. DICOM is shown as its header says: modality table or rescale, then the first
    table or window of interest, whose range becomes [0, 1], then MONOCHROME1 or PresentationLUTShape INVERSE
    inverted. Without a window it runs from the lowest (0) to the highest (1) value of the picture. Padding is
    black and part of no range.

    Returns
    -------
    Picture

    Raises
    ------
    StudyError
        As `decode`; also when the window of a DICOM file cannot be applied.
    """
    with _recognised(path) as kind:
        gray, facts, doubts = dicom.read(path) if kind == "DICOM" else raster.read(path, kind)
        doubts = [*doubts, *ended_early(gray)]
        return Picture(gray, (*facts, *doubts), tuple(doubts))


def read_gray(path):
    """The gray of `read`, float32 (H, W) in [0, 1]; a doubtful picture is named in a warning.

    Raises
    ------
    StudyError
        As `read`: no picture, or one that can't be read rightly.

    Examples
    --------
    >>> picture = read_gray("knee.png")
    >>> picture.shape, bool(0 <= picture.min() <= picture.max() <= 1)
    ((40, 40), True)
    """
    picture = read(path)
    for doubt in picture.doubts:
        warnings.warn(f"{Path(path).name}: {doubt}", stacklevel=2)
    return picture.gray


def describe(path):
    """The manifest columns that a file alone determines: hashes, size, depth, mode; errors as `decode`."""
    pixels, mode = decode(path)
    return {
        "sha256": file_sha256(path),
        "pixel_sha256": pixel_sha256(pixels),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "bit_depth": 8 * pixels.dtype.itemsize,
        "channels": 1 if pixels.ndim == 2 else 3,
        "mode": mode,
    }


def mislabelled(path):
    """'' where content and suffix agree, else the true format and the remedy; StudyError for no picture."""
    path, kind = Path(path), kind_of(path)
    if path.suffix.lower() in FORMATS[kind]:
        return ""
    name = path.stem if is_picture(path) else path.name  # DICOM names such as 1.2.840.1 have no suffix
    return f"{path.name} is a {kind} file. Rename it to {name}{FORMATS[kind][0]}."


def _kind(path):
    """Name of a format. The content decides, the suffix only for DICOM that lacks its first 132 bytes."""
    path = Path(path)
    if not path.is_file():  # reading a pipe would wait for ever
        raise Refused(f"it is {'a folder' if path.is_dir() else 'no such file'}. Correct the path.")
    with open(path, "rb") as file:
        head = file.read(132)
    if not head:
        raise Refused("it is empty (0 bytes). Fetch it again.")
    for kind, beginning in _BEGINNINGS.items():
        if re.match(beginning, head, re.DOTALL):
            return kind
    if path.suffix.lower() in FORMATS["DICOM"]:
        return "DICOM"
    raise Refused(f"it is none of {', '.join(FORMATS)}. Fetch it again or save it as PNG.")


@contextmanager
def _recognised(path):
    """A file's format, by `_kind`; whatever a decoder raises becomes a StudyError about the file."""
    try:
        yield _kind(path)
    except MemoryError:
        raise
    except Exception as error:
        said = f"it is truncated or damaged, or unusual ({error}). Fetch it again or save it as PNG."
        if isinstance(error, Refused):
            said = error
        elif isinstance(error, OSError) and error.strerror:  # no permission, no such disk
            said = f"the system says '{error.strerror}'."
        raise StudyError(f"{path} cannot be read as a picture: {' '.join(str(said).split())}") from error
