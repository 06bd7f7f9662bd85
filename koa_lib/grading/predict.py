"""Grading picture files with exported weights, exactly as the run graded its cohorts: one row per file,
whatever the file holds."""

import hashlib
import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

from koa_lib import explain, inference
from koa_lib import model as models
from koa_lib.datasets import to_tensor
from koa_lib.device import autocast, compute_device, device_of
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.grading import novelty
from koa_lib.images import shape
from koa_lib.images.read import header, read, to_uint8
from koa_lib.prompts import prompts

FILE, FORMAT = "grader.safetensors", 3
NOVELTY = "novelty."  # prefix of the arrays that are not the grader's
EXPORT = "Export the weights again by 'make reproduce'."
MOST_PIXELS = 50_000_000  # a large radiograph has 20 million
SMALLEST = 32  # pixels of the shorter side
BATCH = 32
UNLIKE = "unlike the training pictures: the grade may mean little"
NO_KNEE = "probably no knee radiograph: or turned, cut or badly deformed; the grade is not to be trusted"


@dataclass(frozen=True)
class Model:
    """A grader ready for about so many pictures: its network, its card, and what its training pictures look
    like."""

    grader: models.ClipGrader
    card: dict
    novelty: novelty.Novelty
    pictures: int = 1

    @cached_property
    def quick(self):
        """The grader to grade with, see `ready`; made when a picture is first graded."""
        return ready(self.grader, self.card["image_size"], self.pictures)

    def square(self, image):
        """A gray picture (H, W) in [0, 1] as the network sees it: uint8 array (size, size)."""
        square = to_uint8(shape.squares(image, self.card["geometry"], self.card["image_size"])[0])
        return to_uint8(shape.adjust(square / 255, self.card["intensity"]))


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
    """

    path: Path
    grade: int | None = None
    probabilities: np.ndarray | None = None
    similarities: np.ndarray | None = None
    novelty: float = float("nan")
    warnings: list = field(default_factory=list)
    problem: str = ""


def load(folder, pictures=1):
    """The `Model` of a folder with exported weights, to grade about so many pictures.

    Raises
    ------
    StudyError
        When they are missing, damaged, edited, or not of the format and architecture that this code builds.
    """
    path = Path(folder) / FILE
    card, arrays = _read_weights(path)
    try:
        usual = {name: arrays.pop(NOVELTY + name) for name in novelty.ARRAYS}
        usual = novelty.Novelty(**usual, threshold=card["novelty"]["threshold"])
        return Model(_build(card, arrays), card, usual, pictures)
    except (KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise StudyError(f"{path} is of another version or architecture ({why}). {EXPORT}") from error


def _read_weights(path):
    try:
        with safe_open(path, "numpy") as file:
            noted = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:  # safetensors finds a cut file by its header
        raise StudyError(
            f"{path} cannot be read ({error}). Give the folder 'weights' of a finished run."
        ) from error
    if "card" not in noted:
        raise StudyError(f"{path} is of an older version: there is no card in it. {EXPORT}")
    if noted.get("sha256") != sha256(noted["card"], arrays):
        raise StudyError(f"{path} was damaged or edited after the export. Copy it again.")
    return {**json.loads(noted["card"]), "weights_sha256": noted["sha256"]}, arrays


def sha256(card, arrays):
    """SHA-256 over a card (str) and named arrays: damage to either is found."""
    found = hashlib.sha256(card.encode())
    for name, values in sorted(arrays.items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values)
    return found.hexdigest()


def built(name):
    """The part of a card that follows from the architecture as this code builds it."""
    config = models.architecture(name)
    return {
        "format": FORMAT,
        "quick_gelu": models.activation(name),
        "image_size": config["vision_cfg"]["image_size"],
        "grades": list(GRADES),
    }


def _build(card, arrays):
    clip, _, tokenizer = models.load_clip(card["name"])
    for key, here in built(card["name"]).items():
        if card[key] != here:
            raise ValueError(f"{key} is {card[key]}, but {here} here")
    # With fixed prototypes a grader whose text tower was trained, too, grades like one whose image tower was.
    part = "full_image" if card["part"] == "both_encoders" else card["part"]
    grader = models.ClipGrader(clip, tokenizer, part, prompts(card["prompts"]), card["residual"])
    if unfit := arrays.keys() ^ needed(grader):
        raise ValueError(f"{min(unfit)} is missing or unknown")
    grader.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()}, strict=False)
    return grader.eval().to(compute_device())


def needed(grader):
    """Names of the weights that grading needs: image tower, adapter, scale and prototypes, no text tower."""
    kept = ("clip.visual.", "adapter.", "clip.logit_scale", "fixed_prototypes")
    return {name for name in grader.state_dict() if name.startswith(kept)}


def ready(grader, side, pictures):
    """A grader made quick (`inference.quick`) for `forward`; the given one is not changed."""
    return inference.quick(grader, "entering", side, pictures)


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
    pictures = to_tensor(squares, statistics).contiguous(memory_format=torch.channels_last)
    with autocast(grader):
        entered = grader.entering(pictures.to(device_of(grader)))
        if grader.stage == "image":
            embedding = F.normalize(grader.tower.after(entered, "tokens").float(), dim=-1)
        else:
            features = grader.tower.onward(entered, grader.stage).half().float()
            embedding = grader.embed_features(features)
        logits = grader.logits(embedding)
        cosines = logits.float() / grader.scale
    traits = novelty.traits(entered.float().cpu().numpy(), squares)
    return logits.float().softmax(-1).cpu().numpy(), cosines.cpu().numpy(), traits


def grade(model, paths):
    """Grade picture files in order, a batch at a time; no file stops the others.

    One picture is held at a time; of a batch only what the network sees and what `novelty.is_knee` looks at.

    Yields
    ------
    Graded
    """
    for start in range(0, len(paths), BATCH):
        rows, seen = [Graded(Path(path)) for path in paths[start : start + BATCH]], []
        with warnings.catch_warnings(action="ignore"):  # decoders'; what matters is in the rows
            for row in rows:
                with _noting(row):
                    seen.append((row, *_read(model, row)))
            if seen:
                _grade_batch(model, *zip(*seen, strict=True))
        yield from rows


def look(model, row):
    """A graded row's picture again: gray (H, W) and the square (size, size), both uint8, and where the model
    looks in the square, a float array in [0, 1]: `explain.heatmap` of its grade."""
    with warnings.catch_warnings(action="ignore"):
        image = read(row.path).gray
    square = model.square(image)
    heat = explain.heatmap(model.grader, to_tensor(square[None], model.card["statistics"]))[0]
    return to_uint8(image), square, heat


@contextmanager
def _noting(*rows):
    """Whatever a decoder or a lack of memory brings becomes the rows' problem: other files are graded."""
    try:
        yield
    except Exception as error:
        for row in rows:
            name = row.path.name
            why = f"{name} cannot be graded ({type(error).__name__}: {error}). Save it as 8-bit gray PNG."
            row.problem = str(error).replace(str(row.path), name) if isinstance(error, StudyError) else why


def _read(model, row):
    """The square and the small picture of a row's file; its notes become the row's warnings."""
    _check(row.path)
    picture = read(row.path)
    if picture.gray.min() == picture.gray.max():
        raise StudyError(f"{row.path} has one gray value everywhere. Give the radiograph itself.")
    row.warnings += picture.notes
    return model.square(picture.gray), novelty.small(picture.gray)


def _check(path):
    found = header(path)
    if min(found.width, found.height) < SMALLEST or found.width * found.height > MOST_PIXELS:
        raise StudyError(
            f"{path} has {found.width:,} x {found.height:,} pixels. Give a radiograph of at "
            f"least {SMALLEST} a side and at most {MOST_PIXELS:,}."
        )


def _grade_batch(model, rows, squares, images):
    with _noting(*rows):
        *found, traits = forward(model.quick, np.stack(squares), model.card["statistics"])
        for row, image, *numbers in zip(rows, images, *found, model.novelty.score(traits), strict=True):
            with _noting(row):
                _conclude(row, image, *numbers)


def _conclude(row, image, probabilities, similarities, distance):
    """Write a picture's numbers, (5,), (5,) and one, into its row."""
    if not all(np.isfinite(values).all() for values in (probabilities, similarities, distance)):
        raise StudyError(f"The model gives no number for {row.path}. Grade with other weights.")
    if distance > 1:
        row.warnings.append(UNLIKE if novelty.is_knee(image) else NO_KNEE)
    row.probabilities, row.similarities, row.novelty = probabilities, similarities, float(distance)
    row.grade = int(probabilities.argmax())
