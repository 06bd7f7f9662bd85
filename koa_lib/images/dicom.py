"""DICOM with one gray picture: refused by its header before anything large is read, and shown as its header
says.

pydicom is imported late: it is an extra, and reading other files does without it.
"""

import logging
import struct
from contextlib import suppress

import numpy as np

from koa_lib.images.checks import Refused, check_size, oblong

_LARGE = 2**20  # bytes: longer elements are read when they are asked for
_FRAMES = b"\xc0\xc1\xc2\xc3\xc5\xc6\xc7\xc9\xca\xcb\xcd\xce\xcf\xf7"  # markers that a size follows
# Each down, then across.
_SPACINGS = ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def size(path):
    """Width, height and number of pictures, from the header."""
    dataset = _dataset(path)
    return int(dataset.Columns), int(dataset.Rows), int(dataset.get("NumberOfFrames") or 1)


def decode(path):
    """Stored pixels and photometric interpretation, as `koa_lib.images.read.decode` says."""
    dataset, stored = _stored(path)
    if dataset.PixelRepresentation == 1:
        stored = stored.astype(np.int32) + 2 ** (dataset.BitsStored - 1)
    depth = np.uint8 if dataset.BitsAllocated <= 8 else np.uint16
    return stored.astype(depth), dataset.PhotometricInterpretation


def read(path):
    """Gray picture, facts (none) and doubts of a file, as `koa_lib.images.read.read` says."""
    dataset, stored = _stored(path)
    padding = _padding(dataset, stored)
    gray = _windowed(dataset, _rescaled(dataset, stored), padding)
    inverse = dataset.get("PresentationLUTShape") == "INVERSE"
    if inverse or dataset.PhotometricInterpretation == "MONOCHROME1":
        gray = 1 - gray
    gray[padding] = 0
    doubts = oblong(dataset.get, _SPACINGS)
    if inverse and dataset.PhotometricInterpretation == "MONOCHROME2":
        doubts.append("PresentationLUTShape INVERSE beside MONOCHROME2: it was inverted")
    return gray, (), doubts


def _dataset(path):
    """Everything but large elements, which are read when they are asked for."""
    try:
        from pydicom import dcmread, uid
        from pydicom.filereader import read_dataset, read_preamble
    except ImportError as error:
        raise Refused("it is DICOM. Run: pip install pydicom (our extra 'dicom').") from error
    # It comments on files that it reads well, and its import sets the level of its own log.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with open(path, "rb") as file:
        read_preamble(file, force=True)  # force: also without the first 132 bytes
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:  # inflated without any bound
        raise Refused("it is deflated as a whole. Export it uncompressed.")
    dataset = dcmread(path, force=True, defer_size=_LARGE)
    if any(name not in dataset for name in ("PixelData", "Rows", "Columns")):
        raise ValueError("no pixels")
    dataset.file_meta.setdefault("TransferSyntaxUID", uid.ImplicitVRLittleEndian)  # the standard's default
    return dataset


def _stored(path):
    """Header and stored values, integers (H, W)."""
    dataset = _dataset(path)
    kind, frames = dataset.PhotometricInterpretation, dataset.get("NumberOfFrames") or 1
    if kind not in ("MONOCHROME1", "MONOCHROME2") or frames > 1 or dataset.BitsStored > 16:
        said = f"it has {frames} frame(s) of {dataset.BitsStored} bits, {kind}"
        raise Refused(f"{said}. Export one as 16-bit MONOCHROME2.")
    check_size(dataset.Columns, dataset.Rows)
    _check_decoder(dataset)
    if dataset["PixelData"].is_undefined_length:
        _check_stream(dataset)
    stored = dataset.pixel_array
    if stored.ndim != 2:  # pydicom takes what is too long for several pictures
        raise ValueError(f"pixels of the shape {stored.shape}")
    return dataset, stored


def _check_decoder(dataset):
    from pydicom import uid
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    with suppress(NotImplementedError):  # pydicom knows no decoder of it at all
        decoder = get_decoder(syntax)
        eight_bits_only = syntax == uid.JPEGExtended12Bit and decoder.available_plugins == ("pillow",)
        if decoder.is_available and (dataset.BitsStored == 8 or not eight_bits_only):
            return
    raise Refused(f"no installed decoder reads {syntax.name}. Run: pip install 'pylibjpeg[all]'.")


def _check_stream(dataset):
    """Refuse compressed pixels of another size than the header's: decoding them could need any memory."""
    from pydicom import encaps, uid

    stream = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    rows, columns = dataset.Rows, dataset.Columns
    if dataset.file_meta.TransferSyntaxUID == uid.RLELossless:
        fits = 64 * len(stream) >= rows * columns  # two bytes make 128 at most
    else:
        fits = _stream_size(stream) == (rows, columns)
    if not fits:
        raise ValueError(f"its {len(stream)} bytes are not {rows} x {columns} pixels")


def _stream_size(stream):
    """Height and width by the markers of a JPEG, JPEG-LS or JPEG 2000 stream; None where they do not say."""
    place = max(0, stream.find(b"\xff\x4f\xff\x51")) + 2  # JPEG 2000 may lie in a container
    while place + 22 < len(stream) and stream[place] == 0xFF:
        marker, length = struct.unpack_from(">xBH", stream, place)
        if marker == 0x51:
            width, height, left, top = struct.unpack_from(">4I", stream, place + 6)
            return height - top, width - left
        if marker in _FRAMES:
            return struct.unpack_from(">HH", stream, place + 5)
        place += 1 if marker == 0xFF else 2 + length
    return None


def _padding(dataset, stored):
    """Where a picture is only filled up, bool (H, W); nowhere when that were everywhere."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, bool)
    # Many write a negative value as an unsigned one: as the stored type it is right.
    ends = np.array([value, value if limit is None else limit]).astype(stored.dtype)
    padding = (stored >= ends.min()) & (stored <= ends.max())
    return padding & ~padding.all()


def _table(dataset, sequence):
    """Entries and first index of the first table of a sequence that is not empty; None without one."""
    for item in dataset.get(sequence) or ():
        if item.get("LUTDescriptor") and item.get("LUTData"):
            length, first, _ = item.LUTDescriptor
            length, data = length % 65536 or 65536, item.LUTData
            if isinstance(data, bytes):
                order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
                data = np.frombuffer(data, "u1" if len(data) <= length + 1 else order + "u2")
            if len(data) < length:
                raise ValueError(f"{sequence} holds {len(data)} of its {length} entries")
            return np.asarray(data[:length]), first
    return None


def _looked_up(values, entries, first):
    return entries[np.clip(np.rint(values).astype(int) - first, 0, len(entries) - 1)]


def _rescaled(dataset, stored):
    """What the stored values mean: after the modality table, or else slope and intercept."""
    if table := _table(dataset, "ModalityLUTSequence"):
        return _looked_up(stored, *table)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    slope, intercept = float(1 if slope in (None, "") else slope), float(intercept or 0)
    if not np.isfinite([slope, intercept]).all():
        raise ValueError(f"rescale slope {slope:g} and intercept {intercept:g}")
    return stored * slope + intercept


def _windowed(dataset, values, padding):
    """The values of interest as float32 in [0, 1]: by a table, a window, or the picture's own range."""
    windows = [np.atleast_1d(dataset.get(name)) for name in ("WindowCenter", "WindowWidth")]
    window = next((pair for pair in zip(*windows, strict=False) if None not in pair and "" not in pair), None)
    if table := _table(dataset, "VOILUTSequence"):
        values = _looked_up(values, *table)
        # The bits that the entries need: what the descriptor says of them is often wrong.
        values = values / max(1, 2 ** int(table[0].max()).bit_length() - 1)
    elif window:
        values = _window(values, *map(float, window), dataset.get("VOILUTFunction") or "LINEAR")
    else:
        low, high = values[~padding].min(), values[~padding].max()
        values = (values - low) / (float(high - low) or 1.0)  # a picture of one value is all 0
    return np.clip(values, 0, 1).astype(np.float32)


def _window(values, centre, width, function):
    """Standard PS3.3 C.11.2.1, with an output from 0 to 1."""
    if not np.isfinite([centre, width]).all() or width <= 0 or width < 1 and function == "LINEAR":
        raise ValueError(f"window centre {centre:g} and width {width:g}")
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the window
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"VOILUTFunction {function}")
    return (values - centre) / width + 0.5 if width else values > centre
