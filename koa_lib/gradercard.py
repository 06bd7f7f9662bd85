"""The card of exported weights (`grader.json`): read, checked once for all, and sealed by the hash that the
weights carry."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from koa_lib import model as models
from koa_lib.datasets import STATISTICS
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.images.shape import GEOMETRIES, INTENSITIES, LEVELS
from koa_lib.profile import ALLOWED, PARTS
from koa_lib.prompts import PROMPT_SETS

CARD, FORMAT = "grader.json", 2
SEAL = "card_sha256"  # name in the weights' metadata
HASH = "weights_sha256"
REMEDY = "Copy the whole folder again."
EXPORT = "Export the weights again by 'make reproduce'."


@dataclass(frozen=True)
class Number:
    """A number of a card within bounds."""

    low: float = -1e300  # no infinity, and NaN is nowhere
    high: float = 1e300

    def fits(self, value):
        return type(value) in (int, float) and self.low <= value <= self.high


COUNT, SHARE = Number(0), Number(0, 1)
# What a key holds: a type, a `Number`, the known values (tuple), a list of n things ([thing, n]), or a
# mapping with keys of its own.
KEYS = {
    "name": str,
    "quick_gelu": bool,
    "image_size": int,
    "part": PARTS,
    "residual": SHARE,
    "prompts": tuple(PROMPT_SETS),
    "statistics": tuple(STATISTICS),
    "geometry": GEOMETRIES,
    "intensity": INTENSITIES,
    "trained": ALLOWED["geometry"],
    "grades": [int, 5],
    "names": [str, 5],
    "descriptions": [str, 5],
    "cohort": str,
    "synthetic": bool,
    "pictures": COUNT,
    "groups": COUNT,
    "profile": str,
    "run": str,
    "dry": bool,
    "only_a_test": bool,
    "arm": str,
    "fold": int,
    "seed": int,
    "commit": str,
    "data": str,
    "start": str,
    "versions": dict,
    "performance": dict,
    HASH: str,
    "novelty": {
        "threshold": Number(1e-12),
        "rate": SHARE,
        "fitted": COUNT,
        "set_by": COUNT,
        "checked_on": str,
        "checked": COUNT,
        "alarms": COUNT,
        "joint_fits": SHARE,
    },
}
PERFORMANCE = {"split": str, "pictures": COUNT, "groups": COUNT}
METRIC = {"metric": str, "value": Number()}


def read(folder):
    """The checked card of an exported folder, a dict.

    Raises
    ------
    StudyError
        When it is missing, unreadable, of another format, or holds what no export writes: names the key.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise StudyError(f"{folder} holds no {CARD}. Give the folder 'weights' of a finished run.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is no JSON ({error}). {REMEDY}") from error
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror}). Look at its permissions.") from error
    if not isinstance(card, dict) or type(card.get("format")) is not int:
        raise StudyError(f"{path} is no card of exported weights. {REMEDY}")
    if card["format"] != FORMAT:
        raise StudyError(
            f"{path} is of format {card['format']}, but this version reads format {FORMAT}. {EXPORT}"
        )
    wrong = _wrong(card)
    if wrong:
        raise StudyError(f"{path} is damaged or was edited: {wrong}. {REMEDY}")
    if card["quick_gelu"] != models.activation(card["name"]):
        raise StudyError(
            f"{folder} was made with quick_gelu={card['quick_gelu']}, which '{card['name']}' does not "
            "build here: results would change silently."
        )
    return card


def seal(card):
    """SHA-256 of a card without the hash of its weights, whatever the order of its keys: the weights carry
    it."""
    return hashlib.sha256(
        json.dumps({key: value for key, value in card.items() if key != HASH}, sort_keys=True).encode()
    ).hexdigest()


def _wrong(card):
    """'' or the first thing that is wrong with a card, in words."""
    wrong = _mismatch(card, KEYS)
    if wrong:
        return wrong
    if card["name"] not in models.open_clip.list_models():
        return f"'name' is {card['name'][:40]!r}, an unknown CLIP model"
    size = models.open_clip.get_model_config(card["name"])["vision_cfg"]["image_size"]
    if card["image_size"] != size:
        return f"'image_size' is {card['image_size']}, but '{card['name']}' needs {size}"
    if card["grades"] != list(GRADES):
        return f"'grades' is {card['grades']}, not {list(GRADES)}"
    reference = card.get("reference", "missing")
    if not (reference is None and card["intensity"] != "match_train") and not _fits(
        reference, [SHARE, LEVELS]
    ):
        return f"'reference' is not the gray distribution that intensity '{card['intensity']}' needs"
    return _wrong_performance(card["performance"])


def _wrong_performance(found):
    if "metrics" not in found:
        return _mismatch(found, {"split": str, "reason": str}, "performance.")
    rows = found["metrics"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return "'performance.metrics' is no list of metrics"
    bounds = [(row.get("ci_low", ""), row.get("ci_high", "")) for row in rows]
    if not all(pair == (None, None) or all(Number().fits(bound) for bound in pair) for pair in bounds):
        return "'performance.metrics' holds an interval without numbers"
    return _mismatch(found, PERFORMANCE, "performance.") or next(
        filter(None, (_mismatch(row, METRIC, "performance.metrics.") for row in rows)), ""
    )


def _mismatch(values, keys, prefix=""):
    for key, wanted in keys.items():
        if key not in values:
            return f"'{prefix}{key}' is missing"
        if isinstance(wanted, dict) and isinstance(values[key], dict):
            inner = _mismatch(values[key], wanted, f"{prefix}{key}.")
            if inner:
                return inner
        elif not _fits(values[key], wanted):
            return f"'{prefix}{key}' is {json.dumps(values[key])[:60]}"
    return ""


def _fits(value, wanted):
    if isinstance(wanted, Number):
        return wanted.fits(value)
    if isinstance(wanted, tuple):
        return isinstance(value, str) and value in wanted
    if isinstance(wanted, list):
        return (
            isinstance(value, list)
            and len(value) == wanted[1]
            and all(_fits(item, wanted[0]) for item in value)
        )
    return type(value) is wanted
