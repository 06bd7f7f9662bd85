"""What the readers of raster files and of DICOM both look at, and how they refuse."""

from contextlib import suppress

MOST_PIXELS = 178_956_970  # as Pillow: more is an attack or a mistake
BLOCK = 8  # rows that a JPEG codes together


class Refused(Exception):
    """Why a file is not read, and the remedy; whoever knows the path makes a StudyError of it."""


def check_size(width, height):
    """Refuse a gigantic picture before it is decoded."""
    if width * height > MOST_PIXELS:
        raise Refused(f"it claims {width:,} x {height:,} pixels. Replace it by a smaller picture.")


def oblong(get, names):
    """The doubts about pixels that are not square to within 1 %, from the first pair (height to width) that
    a header gives under one of these names."""
    for name in names:
        with suppress(TypeError, ValueError, ZeroDivisionError):  # absent, or nonsense
            height, width = map(float, get(name))
            square = abs(height / width - 1) < 0.01
            return [] if square else [f"its pixels are not square (height to width {height / width:.3g})"]
    return []


def ended_early(gray):
    """The doubt that a file ended before its picture (H, W): a decoder of JPEG fills what is missing with one
    gray, neither the darkest nor the brightest of the picture."""
    alike = (gray == gray[-1, 0]).all(axis=1)[::-1]
    rows = len(alike) if alike.all() else int(alike.argmin())
    if rows < BLOCK or not gray.min() < gray[-1, 0] < gray.max():
        return []
    return [f"its last {rows} rows are one gray: did the file end early?"]
