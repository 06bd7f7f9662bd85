"""Grading picture files with exported weights, exactly as the run graded its cohorts: one row per file,
whatever the file holds."""

import logging
import os
import stat
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from koa_lib import explain, gradercard, novelty
from koa_lib import model as models
from koa_lib.datasets import to_tensor
from koa_lib.device import autocast, compute_device, device_of
from koa_lib.errors import StudyError
from koa_lib.images import shape
from koa_lib.images.read import file_sha256, header, read, to_uint8

WEIGHTS = "grader.safetensors"
NOVELTY = "novelty."  # prefix of the arrays that are not the grader's
MOST_PIXELS = 50_000_000  # a large radiograph has 20 million
SMALLEST = 32  # pixels of the shorter side
BATCH = 32
UNLIKE = "unlike the training pictures: the grade may mean little"
NO_KNEE = (
    "probably not a knee radiograph, or one that is turned, cut or badly deformed: "
    "the grade is not to be trusted"
)


@dataclass(frozen=True)
class Model:
    """A grader ready for pictures: its network, what is told about it (the JSON card) and what its training
    pictures look like."""

    grader: models.ClipGrader
    card: dict
    novelty: novelty.Novelty

    def squares(self, image):
        """A gray picture (H, W) in [0, 1] as the network sees it: a list of uint8 arrays (size, size), one
        per knee that the geometry parts."""
        found = shape.squares(image, self.card["geometry"], self.card["image_size"], self.card["trained"])
        reference = self.card["reference"] and np.array(self.card["reference"])
        seen = [to_uint8(square) for square in found]
        if self.card["intensity"] == "none":
            return seen
        return [
            to_uint8(shape.adjust(square / 255, self.card["intensity"], reference))
            for square in seen
        ]


@dataclass
class Graded:
    """A file and what came of it.

    Attributes
    ----------
    path : Path
    grade : int or None
        None when the file could not be graded; `problem` then says why.
    probabilities, similarities : float arrays (5,)
        Of the grades, and the cosine with their descriptions.
    novelty : float
        Distance from the training pictures as a multiple of the threshold.
    warnings : list of str
    knee : int
        Which knee of a parted picture was graded: the worse one.
    """

    path: Path
    grade: int | None = None
    probabilities: np.ndarray | None = None
    similarities: np.ndarray | None = None
    novelty: float = float("nan")
    warnings: list = field(default_factory=list)
    knee: int = 0
    problem: str = ""


def load(folder):
    """The `Model` of an exported folder (`grader.json` and `grader.safetensors`).

    Raises
    ------
    StudyError
        When a file is missing, damaged, edited, of another format or for another activation than this
        version builds.
    """
    folder = Path(folder)
    card = gradercard.read(folder)
    arrays = _read_weights(folder / WEIGHTS, card)
    known = {name.removeprefix(NOVELTY): value for name, value in arrays.items() if name.startswith(NOVELTY)}
    state = {name: torch.as_tensor(value) for name, value in arrays.items() if not name.startswith(NOVELTY)}
    grader = _build(card, state, folder)
    return Model(grader, card, _usual(grader, card, known, folder))


def _read_weights(path, card):
    try:
        if not path.is_file() or file_sha256(path) != card[gradercard.HASH]:
            raise StudyError(
                f"{path} is missing or not the file that {gradercard.CARD} describes. {gradercard.REMEDY}"
            )
        with safe_open(path, "numpy") as file:
            sealed = (file.metadata() or {}).get(gradercard.SEAL)
        if sealed != gradercard.seal(card):
            raise StudyError(
                f"{path.parent / gradercard.CARD} was edited after the export: what it says need not "
                f"be true. {gradercard.REMEDY}"
            )
        return load_file(path)
    except OSError as error:
        raise StudyError(
            f"{path} cannot be read ({error.strerror or error}). Look at its permissions."
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} is damaged ({error}). {gradercard.REMEDY}") from error


def _usual(grader, card, known, folder):
    """The `Novelty` of an exported folder; its arrays must fit what the grader gives of a picture."""
    size = card["image_size"]
    wide = forward(grader, np.zeros((1, size, size), np.uint8), card["statistics"])[2].shape[1]
    shapes = {"mean": (wide,), "deviation": (wide,), "precision": (wide, wide)}
    fine = {name: value.shape for name, value in known.items()} == shapes and all(
        np.isfinite(value).all() for value in known.values()
    )
    if not fine or not (known["deviation"] > 0).all():
        raise StudyError(
            f"{folder} does not hold what is usual for the pictures of '{card['name']}'. {gradercard.EXPORT}"
        )
    return novelty.Novelty(**known, threshold=card["novelty"]["threshold"])


def _build(card, state, folder):
    clip, _, tokenizer = models.load_clip(card["name"])
    # With fixed prototypes a grader whose text tower was trained, too, grades like one whose image tower was.
    part = "full_image" if card["part"] == "both_encoders" else card["part"]
    grader = models.ClipGrader(clip, tokenizer, part, card["prompts"], card["residual"])
    try:
        missing, unknown = grader.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()},
            strict=False,
        )
    except RuntimeError as error:
        raise StudyError(
            f"{folder} holds weights of another shape than '{card['name']}' has. {gradercard.EXPORT}"
        ) from error
    missing = [name for name in missing if name in needed(grader)]
    if missing or unknown:
        raise StudyError(
            f"{folder} does not fit '{card['name']}': {[*missing, *unknown][0]} is missing or "
            f"unknown. {gradercard.EXPORT}"
        )
    return grader.eval().to(compute_device())


def needed(grader):
    """Names of the weights that grading needs: image tower, adapter, scale and prototypes, but no text
    tower."""
    return {
        name
        for name in grader.state_dict()
        if name.startswith(("clip.visual.", "adapter.")) or name in ("clip.logit_scale", "fixed_prototypes")
    }


@torch.no_grad()
def forward(grader, squares, statistics):
    """Grade squares as `training.predict` does, rounding the trunk's features to 16 bits as the run's cache
    does.

    Parameters
    ----------
    grader : ClipGrader
    squares : uint8 array (n, size, size)
    statistics : str
        Name of the normalisation, as in the recipe.

    Returns
    -------
    probabilities, similarities : float arrays (n, 5)
    traits : float array (n, d)
        For `novelty`.
    """
    tensor = (
        to_tensor(squares, statistics).contiguous(memory_format=torch.channels_last).to(device_of(grader))
    )
    with autocast(grader), novelty.entering(grader.tower.last_blocks()[0]) as entered:
        features = grader.trunk(tensor)
        features = features if grader.stage == "image" else features.half().float()
        embedding = grader.embed_features(features)
        logits = grader.logits(embedding)
        cosines = embedding.float() @ grader.prototypes().float().T
    return (
        logits.float().softmax(-1).cpu().numpy(),
        cosines.float().cpu().numpy(),
        novelty.traits(entered[0].cpu().numpy(), squares),
    )


def grade(model, paths):
    """Grade picture files in order, a batch at a time; no file stops the others.

    One picture is held at a time; of a batch only what the network sees and what `novelty.is_knee` looks at.

    Yields
    ------
    Graded
    """
    for start in range(0, len(paths), BATCH):
        rows = [Graded(Path(path)) for path in paths[start : start + BATCH]]
        with _quiet():
            seen = [(row, *found) for row in rows if (found := _told(row, _read, model, row))]
            if seen:
                _grade_batch(model, *zip(*seen, strict=True))
        yield from rows


def look(model, row):
    """A graded row's picture again, for a page: the gray picture (H, W), and the square (size, size) that
    was graded."""
    with _quiet():
        image = read(row.path).gray
        return image, model.squares(image)[row.knee]


def attended(model, square):
    """Where the model looks in a square (size, size): `explain.heatmap` of its grade."""
    return explain.heatmap(model.grader, to_tensor(square[None], model.card["statistics"]))[0]


def _told(row, work, *given):
    """What some work on a row gives, or None with the row's `problem` set."""
    try:
        return work(*given)
    except StudyError as error:
        row.problem = str(error).replace(str(row.path), row.path.name)
    except Exception as error:  # whatever a decoder or a lack of memory brings, the other files are graded
        row.problem = (
            f"{row.path.name} cannot be graded ({type(error).__name__}: {error}). Save it as 8-bit gray PNG."
        )
    return None


def _read(model, row):
    """The squares and the small picture of a row's file; its notes become the row's warnings."""
    _check(row.path)
    picture = read(row.path)
    if picture.gray.min() == picture.gray.max():
        raise StudyError(
            f"nothing to see: {row.path} has one gray value everywhere. Give the radiograph itself."
        )
    row.warnings += picture.notes
    return model.squares(picture.gray), novelty.small(picture.gray)


def _check(path):
    """StudyError for a file that is none, or too large or too small to be graded."""
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise StudyError(
            f"{path} is a folder without a picture that can be read. Give another folder, or look at "
            "its permissions."
        )
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise StudyError(f"{path} is a pipe or a device. Give a regular file.")
    found = header(path)
    width, height = found.width, found.height
    if width * height > MOST_PIXELS:
        raise StudyError(
            f"{path} has {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}. Scale it down or "
            "cut the knee out."
        )
    if min(width, height) < SMALLEST:
        raise StudyError(
            f"{path} has {width} x {height} pixels, too few to see a knee: the shorter side "
            f"needs {SMALLEST}. Give the radiograph itself, no preview."
        )


def _mode(path):
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise StudyError(f"{path}: there is no such file or folder. Correct the path.") from error
    except OSError as error:
        raise StudyError(
            f"{path} cannot be looked at ({error.strerror}). Correct the path or its permissions."
        ) from error


def _grade_batch(model, rows, squares, images):
    """Grade rows, each with the squares of its knees and its small picture."""
    try:
        found = forward(model.grader, np.concatenate(squares), model.card["statistics"])
    except Exception as error:  # too little memory, as a rule
        for row in rows:
            row.problem = (
                f"{row.path.name} cannot be graded ({type(error).__name__}: {error}). Free some memory."
            )
        return
    ends = np.cumsum([len(knees) for knees in squares])[:-1]
    parts = (np.split(values, ends) for values in (*found[:2], model.novelty.score(found[2])))
    for row, image, *numbers in zip(rows, images, *parts, strict=True):
        _told(row, _conclude, row, image, *numbers)


def _conclude(row, image, probabilities, similarities, distances):
    """Write the numbers of a picture's knees (n, 5), (n, 5) and (n,) into its row: those of the worse
    knee."""
    if not all(np.isfinite(values).all() for values in (probabilities, similarities, distances)):
        raise StudyError(
            f"the model gives no number for {row.path}. Grade with other weights, or give the picture "
            "as 8-bit gray PNG."
        )
    row.knee = int((probabilities @ np.arange(5)).argmax())
    row.probabilities, row.similarities = probabilities[row.knee], similarities[row.knee]
    row.grade, row.novelty = int(row.probabilities.argmax()), float(distances[row.knee])
    if row.novelty > 1:
        row.warnings.append(UNLIKE if novelty.is_knee(image) else NO_KNEE)


@contextmanager
def _quiet():
    # Decoders comment on files that they read well enough; what matters is in the rows.
    logger, level = logging.getLogger("pydicom"), logging.getLogger("pydicom").level
    logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
