"""What the readers of raster files and of DICOM both look at, and how they refuse."""

MOST_PIXELS = 178_956_970  # as Pillow: more is an attack or a mistake


class Refused(Exception):
    """Why a file is not read, and the remedy; whoever knows the path makes a StudyError of it."""

    def __init__(self, reason, remedy="Fetch it again or replace it."):
        super().__init__(reason, remedy)


def check_size(width, height):
    """Refuse a gigantic picture before it is decoded."""
    if width * height > MOST_PIXELS:
        reason = f"it claims {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}"
        raise Refused(reason, "Replace it by a smaller picture.")


def not_square(ratio):
    """The doubts about pixels of this height over width: none where they are square to within 1 %."""
    return () if abs(ratio - 1) < 0.01 else (f"its pixels are not square (height to width {ratio:.3g})",)
