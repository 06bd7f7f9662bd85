"""The file of exported weights: a grader without its text tower, its card,
and what is usual for its training pictures."""

import json

import numpy as np
import torch
from safetensors.numpy import save_file

from koa_lib.device import autocast
from koa_lib.errors import StudyError
from koa_lib.grading import novelty, predict

MOST_FITTED = 2000  # pictures that teach what is usual; more change little


def make(folder, grader, card, fold):
    """Write a trained grader (made by `grader`) with its card, and with what is usual for the pictures of its
    fold."""
    made = grader()
    ready = predict.ready(made, card["image_size"], len(fold.fit))
    usual, known = _usual(ready, card["statistics"], fold)
    write(folder, made, {**card, "novelty": known}, usual)


def write(folder, grader, card, usual):
    """Write a grader, its card (dict) and its `Novelty` to a new folder."""
    with torch.no_grad(), autocast(grader):
        prototypes = grader.prototypes().float()
    state = {**grader.state_dict(), "fixed_prototypes": prototypes}
    arrays = {name: state[name].cpu().contiguous().numpy() for name in predict.needed(grader)}
    for name in novelty.ARRAYS:
        arrays[predict.NOVELTY + name] = np.ascontiguousarray(getattr(usual, name), dtype=np.float32)
    text = json.dumps(card)
    folder.mkdir(parents=True)
    save_file(arrays, folder / predict.FILE, {"card": text, "sha256": predict.sha256(text, arrays)})


def _usual(grader, statistics, fold):
    """The `Novelty` of a fold's fitted pictures, and what the card tells of it: its threshold is set by the
    inner and the held-out fold (their labels are not read), its false alarms are counted on the part that is
    only reported."""
    checked = fold.unseen
    others = (fold.reported.get(name) for name in ("held_out", "val") if name != checked)
    unseen = [_traits(grader, part, statistics) for part in (fold.select, *others) if part is not None]
    if not unseen:
        raise StudyError("The main fold has no inner part to set a threshold on. Use a larger cohort.")
    fitted, unseen = _traits(grader, fold.fit, statistics), np.vstack(unseen)
    usual = novelty.fit(fitted, unseen)
    distances = usual.score(_traits(grader, fold.reported[checked], statistics))
    return usual, {
        "threshold": usual.threshold,
        "rate": novelty.RATE,
        "fitted": len(fitted),
        "set_by": len(unseen),
        "checked_on": checked,
        "checked": len(distances),
        "alarms": int((distances > 1).sum()),
    }


def _traits(grader, part, statistics):
    """`novelty.traits` of at most `MOST_FITTED` pictures of a `KneeDataset`, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(part) - 1, min(len(part), MOST_FITTED)).astype(int))
    batches = map(part.images, np.array_split(chosen, max(1, len(chosen) // predict.BATCH)))
    return np.vstack([predict.forward(grader, images, statistics)[2] for images in batches])
