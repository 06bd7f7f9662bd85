"""Picture files: the one room that reads them, from PNG, WebP, JPEG, TIFF, BMP and DICOM.

`decode` gives the stored pixels, by which a picture is recognised in any container; `read_gray` gives what an
observer sees: bone bright, in [0, 1]. A file that cannot be read is a StudyError with its name, the cause and the remedy.
"""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from koa_lib.errors import StudyError

FORMATS = {"PNG": (".png",), "WEBP": (".webp",), "JPEG": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff"), "BMP": (".bmp",), "DICOM": (".dcm", ".dicom")}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags


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
    height, width = pixels.shape[:2]
    colour = "x3" if pixels.ndim == 3 else ""
    digest = hashlib.sha256(f"{height}x{width}{colour}:{pixels.dtype.name}:".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def is_picture(path):
    """Whether a file's name has the suffix of a picture."""
    return Path(path).suffix.lower() in SUFFIXES


def decode(path):
    """The stored pixels of a picture file and the name of its mode: what the hash is taken from, not what is seen.

    Equal RGB channels become one, alpha is dropped, a palette is expanded, CMYK becomes RGB; 16-bit gray stays
    16-bit and float gray in [0, 1] becomes 16-bit. Polarity and window of 16-bit TIFF and DICOM are not applied;
    signed DICOM values are shifted by half their range, 2 ** (bits stored - 1), so that the lowest is 0.

    Returns
    -------
    pixels : uint8 or uint16 array, (H, W) or (H, W, 3)
    mode : str
        Pillow's name, or the photometric interpretation of a DICOM file.

    Raises
    ------
    StudyError
        When the file is no readable picture or holds values outside 16 bits.
    """
    if _format(path) == "DICOM":
        dataset, stored = _read_dicom(path)
        if dataset.PixelRepresentation == 1:
            stored = stored.astype(np.int32) + 2 ** (dataset.BitsStored - 1)
        return stored.astype(np.uint8 if dataset.BitsAllocated <= 8 else np.uint16), dataset.PhotometricInterpretation
    values, mode, _ = _read_pillow(path)
    return (np.rint(values * 65535).astype(np.uint16) if mode == "F" else values), mode


def decoded_sha256(path):
    """`pixel_sha256` of a picture file; errors as `decode`."""
    return pixel_sha256(decode(path)[0])


def read_gray(path):
    """A picture as an observer sees it, bone bright: gray in [0, 1].

    Eight and 16 bits are divided by 255 and 65,535, 12-bit TIFF by 4,095; colour is averaged; TIFF in which zero is
    white is inverted. DICOM is shown as its header says: modality table or rescale, then the first table or window
    of interest, scaled to [0, 1] by the output range of that table or window, then MONOCHROME1 inverted. DICOM without
    a window runs from the picture's own minimum (0) to its maximum (1).

    Returns
    -------
    float32 array, (H, W)

    Raises
    ------
    StudyError
        As `decode`; also when the window of a DICOM file cannot be applied.
    """
    if _format(path) == "DICOM":
        return _dicom_gray(path)
    values, mode, tags = _read_pillow(path)
    gray = values.astype(np.float32)
    if mode != "F":
        gray /= 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else np.iinfo(values.dtype).max
    if tags.get(_PHOTOMETRIC) == 0 and mode in ("I;16", "F"):  # Pillow itself inverts up to 8 bits, and only those
        gray = 1 - gray
    return gray if gray.ndim == 2 else gray.mean(axis=2)


@dataclass(frozen=True)
class Picture:
    """A picture as an observer sees it.

    Attributes
    ----------
    gray : float32 array, (H, W)
        In [0, 1], bone bright.
    notes : tuple of str
        What a person should know of how the file was read, a phrase each; empty as a rule.
    """

    gray: np.ndarray
    notes: tuple = ()


@dataclass(frozen=True)
class Header:
    """What a file says of itself before anything is decoded: kind ('PNG', 'DICOM', ...), size in pixels, number of pictures."""

    kind: str
    width: int
    height: int
    frames: int = 1


def describe(path):
    """The manifest columns that a file alone determines: two hashes, size, depth, channels, mode; errors as `decode`."""
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
    """'' when a file's content fits its suffix, else a line with its true format and the remedy; StudyError when it is no picture."""
    path, true = Path(path), _format(path)
    suffixes = FORMATS.get(true, ())
    if path.suffix.lower() in suffixes:
        return ""
    name = path.stem if path.suffix.lower() in SUFFIXES else path.name  # DICOM names such as 1.2.840.1 have no suffix
    remedy = f"Rename it to {name}{suffixes[0]}" if suffixes else "Save it as PNG"
    return f"{path.name} is a {true} file. {remedy}."


def _unreadable(path, reason, remedy="Fetch it again or replace it."):
    return StudyError(f"{path} cannot be read as a picture: {reason}. {remedy}")


@contextmanager
def _named_errors(path, reason="it is truncated or damaged"):
    """Turn whatever a decoder raises into a StudyError about the file."""
    try:
        yield
    except (StudyError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(path, "it is no picture, or of a kind that Pillow does not know", "Fetch it again or save it as PNG.") from error
    except Image.DecompressionBombError as error:
        raise _unreadable(path, f"it claims more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels", "Replace it by a smaller picture.") from error
    except Exception as error:
        system = getattr(error, "strerror", None)  # of the operating system: no permission, no such disk
        raise _unreadable(path, f"the system says '{system}'" if system else f"{reason} ({error})") from error


def _format(path):
    """'DICOM' or Pillow's name of a format. The content decides, the suffix only for DICOM that lacks its first 132 bytes."""
    path = Path(path)
    with _named_errors(path):
        if not path.is_file():
            raise _unreadable(path, "it is a folder" if path.is_dir() else "there is no such file", "Correct the path.")
        with open(path, "rb") as file:
            head = file.read(132)
        if not head:
            raise _unreadable(path, "it is empty (0 bytes)")
        if head[128:] == b"DICM":
            return "DICOM"
        try:
            with Image.open(path) as picture:
                return "JPEG" if picture.format == "MPO" else picture.format  # MPO: a JPEG with a second picture behind it
        except UnidentifiedImageError:
            if path.suffix.lower() in FORMATS["DICOM"]:
                return "DICOM"
            raise


def _read_pillow(path):
    """Values (uint8, uint16, or float32 in mode F; gray or colour), mode, and the TIFF tags (empty for other formats)."""
    with _named_errors(path), Image.open(path) as picture:
        mode, tags = picture.mode, getattr(picture, "tag_v2", {})
        if mode == "F" or mode.startswith("I"):
            return _checked(np.asarray(picture), path), mode, tags
        pixels = np.asarray(picture.convert("L" if mode in ("L", "1", "LA") else "RGB"))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return pixels, mode, tags


def _checked(values, path):
    # Pillow opens deep integers as 32 bits ("I"), whatever their range; a float picture may have any.
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (0 <= low and high <= 1):
            raise _unreadable(path, f"its float values run from {low:g} to {high:g} instead of 0 to 1", "Rescale it or save it as 16-bit gray.")
        return values
    if low < 0 or high > 65535:
        raise _unreadable(path, f"it holds values outside 16 bits ({low} to {high})", "Convert it to 16-bit gray.")
    return values.astype(np.uint16)


def _read_dicom(path):
    """Header and stored values (integers, (H, W)) of a DICOM file with one gray picture."""
    try:
        import pydicom
    except ImportError as error:
        raise _unreadable(path, "it is a DICOM file and pydicom is not installed", "Run: pip install pydicom (our extra 'dicom').") from error
    with _named_errors(path):
        dataset = pydicom.dcmread(path, force=True)  # force: also without the first 132 bytes
        _check_dicom(dataset, path)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # the standard's default
        try:
            return dataset, dataset.pixel_array
        except (RuntimeError, NotImplementedError) as error:  # what pydicom raises for compressed values that no decoder takes
            reason = f"no installed decoder reads its compressed pixels ({dataset.file_meta.TransferSyntaxUID.name})"
            raise _unreadable(path, reason, "Run: pip install 'pylibjpeg[all]', or export it uncompressed.") from error


def _check_dicom(dataset, path):
    photometric, frames, bits = (dataset.get(name) for name in ("PhotometricInterpretation", "NumberOfFrames", "BitsStored"))
    for bad, reason, remedy in (
        ("PixelData" not in dataset, "it holds no pixels, so it is truncated or no DICOM picture", "Fetch it again or replace it."),
        (photometric not in ("MONOCHROME1", "MONOCHROME2"), f"it is DICOM in colour ({photometric})", "Export it as gray (MONOCHROME2)."),
        ((frames or 1) > 1, f"it is DICOM with {frames} frames", "Export the frame that you need as its own file."),
        ((bits or 1) > 16, f"it stores {bits} bits per pixel", "Export it with at most 16 bits."),
    ):
        if bad:
            raise _unreadable(path, reason, remedy)


def _dicom_gray(path):
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    dataset, stored = _read_dicom(path)
    with _named_errors(path, "its window or table cannot be applied"), np.errstate(over="ignore"):  # exp of a far sigmoid
        values = apply_modality_lut(stored.astype(np.int32), dataset)  # int32: an index overflows in the stored type
        low, high = values.min(), values.max()
        if dataset.get("VOILUTSequence"):
            # pydicom holds the index in the type of the entries, where it wraps: keep it inside, and entries at 16 bits.
            table = dataset.VOILUTSequence[0]
            length, first, bits = table.LUTDescriptor
            table.LUTDescriptor = [length, first, 16]
            index = np.clip(np.rint(values), first, first + (length or 65536) - 1).astype(np.int32)
            values, low, high = apply_voi(index, dataset), 0, 2**bits - 1
        elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:  # often there, but empty
            # The output range depends on bits, sign and rescale (a negative slope reverses it): ask pydicom at both ends.
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
            values = apply_windowing(values, dataset)
    span = float(high) - float(low) or 1.0  # a picture of one value is all 0
    gray = np.clip((values - float(low)) / span, 0, 1).astype(np.float32)
    return 1 - gray if dataset.PhotometricInterpretation == "MONOCHROME1" else gray


def read(path):
    """A picture as an observer sees it, with what a person should know of how it was read: a `Picture`; errors as `decode`."""
    found = header(path)
    notes = ["colour picture: its channels were averaged"] if decode(path)[0].ndim == 3 else []
    notes += [f"file of {found.frames} pictures: the first was read"] if found.frames > 1 else []
    return Picture(read_gray(path), tuple(notes))


def header(path):
    """What a file says of itself: a `Header`; nothing is decoded, so that a gigantic picture costs no memory."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        kind = _format(path)
        if kind == "DICOM":
            import pydicom

            found = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            return Header(kind, int(found.get("Columns") or 32), int(found.get("Rows") or 32))
        with Image.open(path) as picture:
            return Header(kind, *picture.size, 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def to_uint8(gray):
    """A gray picture in [0, 1] as uint8, rounded."""
    return np.round(255 * np.clip(gray, 0, 1)).astype(np.uint8)
