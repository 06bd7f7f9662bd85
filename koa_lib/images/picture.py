"""What reading a file gives: a picture, its header, or the reason why not."""

from dataclasses import dataclass

import numpy as np

MOST_PIXELS = 178_956_970  # as Pillow: more is an attack or a mistake


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
        Those of the notes that say that the values or the shape may not be what was meant.
    """

    gray: np.ndarray
    notes: tuple = ()
    doubts: tuple = ()


@dataclass(frozen=True)
class Header:
    """What a file says of itself before anything is decoded: kind ('PNG', 'DICOM', ...), size in pixels, number of
    pictures. Width and height are those of the stored pixels, as in a manifest."""

    kind: str
    width: int
    height: int
    frames: int = 1


class Refused(Exception):
    """Why a file is not read, and the remedy; whoever knows the path makes a StudyError of it."""

    def __init__(self, reason, remedy="Fetch it again or replace it."):
        super().__init__(reason, remedy)


def to_uint8(gray):
    """A float picture in [0, 1] as uint8, rounded to the nearest."""
    return np.round(255 * gray).astype(np.uint8)


def check_size(width, height):
    """Refuse a gigantic picture before it is decoded."""
    if width * height > MOST_PIXELS:
        reason = f"it claims {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}"
        raise Refused(reason, "Replace it by a smaller picture.")


def not_square(ratio):
    """The doubts about pixels of this height over width: none where they are square to within 1 %."""
    return () if abs(ratio - 1) < 0.01 else (f"its pixels are not square (height to width {ratio:.3g})",)
