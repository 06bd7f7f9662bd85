"""Weights for use outside the study: what grading needs of a run's model, in one file with its card."""

import json
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

from koa_lib import predictions, stats, study
from koa_lib.device import autocast
from koa_lib.errors import StudyError
from koa_lib.grades import NAMES, prompts
from koa_lib.grading import novelty, predict
from koa_lib.protocols import folds, main_fold, our_arm, prediction_name, unseen_split
from koa_lib.reach import versions
from koa_lib.runner import Runner
from koa_lib.store import made_from

FOLDER = "weights"
MOST_FITTED = 2000  # pictures that teach what is usual; more change little
SHOWN = ["accuracy", "qwk", "mae", "macro_f1"]


def export(of):
    """Write the weights of a study's model by our protocol, its main fold, to `<run>/weights/`; kept while
    the model is the same.

    Parameters
    ----------
    of : Study
        With the arm trained: notebook 03 does it.

    Returns
    -------
    Path
        Folder with `grader.safetensors`.
    """
    runner, arm = Runner(of), our_arm(of)
    number = min(main_fold(of), max(1, arm.recipe.folds))
    grader, parts = runner.grader(arm, number), folds(runner.data("training", arm.recipe), arm, of.seed)
    fold = next(fold for fold in parts if fold.number == number)
    performance = _performance(of, arm, fold)
    key = {
        "checkpoint": made_from(runner.checkpoint(arm, number)),
        "dry": of.dry,
        "performance": performance,
        "parts": {name: part.fingerprint for name, part in fold.reported.items()},
    }

    def build(folder):
        usual, known = _usual(grader, arm.recipe, fold)
        card = {**architecture(of.profile.model.name, arm.recipe), **_origin(of, arm, fold)}
        write(folder, grader, {**card, "performance": performance, "novelty": known}, usual)

    return of.store.make(FOLDER, key, build)


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


def architecture(name, recipe):
    """The part of a card that says how a grader is built and fed."""
    same = ("part", "residual", "prompts", "geometry", "intensity")
    return {
        "name": name,
        **predict.built(name),
        **{key: getattr(recipe, key) for key in same},
        "statistics": recipe.normalisation,
        "names": NAMES,
        "descriptions": prompts(recipe.prompts),
    }


def _origin(of, arm, fold):
    """The part of a card that says where a grader comes from."""
    profile, fitted = of.profile, fold.fit.rows
    return {
        "cohort": profile.training.name,
        "synthetic": of.synthetic,
        "pictures": len(fitted),
        "groups": fitted["group_id"].nunique(),
        "profile": profile.name,
        "run": of.run_dir.name,
        "dry": of.dry,
        "only_a_test": of.dry or profile.name == "smoke",
        "arm": arm.name,
        "fold": fold.number,
        "seed": arm.seed,
        "commit": of.commit,
        "data": of.data_note()["training"]["hash"][:12],
        "start": profile.model.start,
        "versions": versions(),
    }


def _usual(grader, recipe, fold):
    """The `Novelty` of a fold's fitted pictures, and what the card tells of it: its threshold is set by the
    inner and the held-out part (their labels are not read), its false alarms are counted on the part that is
    only reported."""
    checked = unseen_split(fold.reported)
    others = (fold.reported.get(name) for name in ("held_out", "val") if name != checked)
    unseen = [_traits(grader, part, recipe) for part in (fold.select, *others) if part is not None]
    if not unseen:
        raise StudyError("The main fold has no inner part to set a threshold on. Use a larger cohort.")
    fitted, unseen = _traits(grader, fold.fit, recipe), np.vstack(unseen)
    usual = novelty.fit(fitted, unseen)
    distances = usual.score(_traits(grader, fold.reported[checked], recipe))
    return usual, {
        "threshold": usual.threshold,
        "rate": novelty.RATE,
        "fitted": len(fitted),
        "set_by": len(unseen),
        "checked_on": checked,
        "checked": len(distances),
        "alarms": int((distances > 1).sum()),
    }


def _traits(grader, part, recipe):
    """`novelty.traits` of at most `MOST_FITTED` pictures of a `KneeDataset`, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(part) - 1, min(len(part), MOST_FITTED)).astype(int))
    batches = map(part.images, np.array_split(chosen, max(1, len(chosen) // predict.BATCH)))
    return np.vstack([predict.forward(grader, images, recipe.normalisation)[2] for images in batches])


def _performance(of, arm, fold):
    """Metrics, with intervals, of the run's own predictions on the part that was only reported."""
    split = unseen_split(fold.reported)
    path = of.file(f"predictions/{prediction_name(of, arm, split, fold.number).file}")
    if not path.is_file():
        return {"split": split, "reason": "the run has not graded this part"}
    graded = predictions.join(predictions.read(path), fold.reported[split].rows)
    summary = stats.bootstrap_summary(graded, of.profile.draws, of.seed).set_index("metric").loc[SHOWN]
    rows = summary.astype(float).round(4).astype(object).where(summary.notna(), None).reset_index()
    return {
        "split": split,
        "pictures": len(graded),
        "groups": graded["group_id"].nunique(),
        "interval": "95 % group bootstrap",
        "metrics": rows.to_dict("records"),
    }


def newest():
    """The weights folder of the newest finished run; of one that only tests the software (smoke or dry) where
    there is no other. A newer one that is passed over is told on stderr.

    Raises
    ------
    StudyError
        When no run is finished.
    """
    runs = sorted(study.BUILD.glob("*/headline.txt"), key=lambda path: path.stat().st_mtime, reverse=True)
    runs = [path.parent for path in runs]
    if not runs:
        raise StudyError("No run is finished that has weights. Run 'make reproduce' or give --weights.")
    run = next((run for run in runs if not _is_test(run)), runs[0])
    if run != runs[0]:
        print(f"koa: '{run.name}' grades; '{runs[0].name}' is newer, but a test", file=sys.stderr)
    return run / FOLDER


def _is_test(run):
    inputs = study.stored_inputs(run / "inputs.yaml")
    return inputs.get("dry") or inputs.get("profile") == "smoke"
