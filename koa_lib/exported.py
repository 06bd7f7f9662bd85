"""Weights for use outside the study: what grading needs of a finished run's model, with a card that says what it is."""

import json
import os
import sys
from contextlib import redirect_stdout

import numpy as np
import torch
from safetensors.numpy import save_file

from koa_lib import gradercard, grading, novelty, predictions, stats, study
from koa_lib import model as models
from koa_lib.device import autocast
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.images.read import file_sha256
from koa_lib.prompts import prompts
from koa_lib.protocols import folds, main_fold, our_arm, prediction_name, unseen_split
from koa_lib.reach import reached, versions
from koa_lib.runner import Runner
from koa_lib.store import made_from

FOLDER = "weights"
MOST_FITTED = 2000  # pictures that teach what is usual; more change little and cost a pass through the tower each
SHOWN = ("accuracy", "qwk", "mae", "macro_f1")


def export(of):
    """Write the weights of a study's model by our protocol, its main fold, to `<run>/weights/`; kept while the model is the same.

    Parameters
    ----------
    of : Study
        With the arm trained: notebook 03 does it.

    Returns
    -------
    Path
        Folder with `grader.safetensors` and `grader.json`.
    """
    runner, (arm, number) = Runner(of), _exported(of)
    grader = runner.grader(arm, number)
    fold = next(fold for fold in folds(runner.data("training", arm.recipe), arm, of.seed) if fold.number == number)
    performance = _performance(of, arm, number, fold)
    key = {"checkpoint": made_from(runner.checkpoint(arm, number)), "dry": of.dry, "performance": performance,
           "parts": {name: part.fingerprint for name, part in fold.reported.items()}}

    def build(folder):
        usual, facts = _usual(grader, arm.recipe, fold)
        write(folder, grader, {**_model_facts(of, arm, number, fold), "performance": performance, "novelty": facts}, usual)

    return of.store.make(FOLDER, key, build)


def _exported(of):
    arm = our_arm(of)
    return arm, min(main_fold(of), max(1, arm.recipe.folds))


def write(folder, grader, card, usual):
    """Write a grader, its card and its `Novelty` to a new folder; 32-bit weights that lose nothing as 16-bit are stored so."""
    folder.mkdir(parents=True)
    with torch.no_grad(), autocast(grader):
        prototypes = grader.prototypes().float()
    state = {name: value for name, value in grader.state_dict().items() if name in grading.needed(grader)} | {"fixed_prototypes": prototypes}
    arrays = {name: _short(value.cpu().numpy()) for name, value in state.items()}
    arrays |= {grading.NOVELTY + name: np.ascontiguousarray(getattr(usual, name), dtype=np.float32) for name in ("mean", "deviation", "precision")}
    card = json.loads(json.dumps({"format": gradercard.FORMAT, **card}))  # as it will be read
    save_file(arrays, folder / grading.WEIGHTS, {gradercard.SEAL: gradercard.seal(card)})
    card[gradercard.HASH] = file_sha256(folder / grading.WEIGHTS)
    (folder / gradercard.CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")


def _short(values):
    with np.errstate(over="ignore"):
        half = values.astype(np.float16) if values.dtype == np.float32 else values
    return np.ascontiguousarray(half if np.array_equal(half.astype(values.dtype), values) else values)


def _model_facts(of, arm, number, fold):
    recipe, settings = arm.recipe, of.profile.model
    data = of.data_note()["training"]["hash"]
    return {
        **architecture(settings.name, recipe),
        "trained": recipe.geometry, "reference": _reference(of, recipe),
        "cohort": of.profile.training.name, "synthetic": of.synthetic, "pictures": len(fold.fit), "groups": int(fold.fit.rows["group_id"].nunique()),
        "profile": of.profile.name, "run": of.run_dir.name, "dry": of.dry, "only_a_test": of.dry or of.profile.name == "smoke",
        "arm": arm.name, "fold": number, "seed": arm.seed, "commit": of.commit, "data": data[:12], "start": settings.start, "versions": versions(),
    }


def architecture(name, recipe):
    """The part of a card that says how a grader is built and fed."""
    size = models.open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    return {"name": name, "quick_gelu": models.activation(name), "image_size": size, "part": recipe.part, "residual": recipe.residual, "prompts": recipe.prompts,
            "statistics": recipe.normalisation, "geometry": recipe.geometry, "intensity": recipe.intensity, "trained": recipe.geometry, "reference": None,
            "grades": list(GRADES), "names": list(NAMES), "descriptions": list(prompts(recipe.prompts))}


def _reference(of, recipe):
    if recipe.intensity != "match_train":
        return None
    from koa_lib.datasets import training_histogram

    return training_histogram(of, of.profile.model.image_size).tolist()


def _usual(grader, recipe, fold):
    """The `Novelty` of a fold's fitted pictures, and what the card tells: its threshold is set by the inner and the held-out
    part (their labels are not read), its false alarms are counted on the part that is only reported."""
    checked = unseen_split(fold.reported)
    unseen = [part for part in (fold.select, *(fold.reported.get(name) for name in ("held_out", "val") if name != checked)) if part is not None]
    if not unseen:
        raise StudyError("The main fold has no inner part to set a threshold on. Give our_protocol more pictures.")
    fitted = traits(grader, fold.fit, recipe.normalisation)
    usual = novelty.fit(fitted, np.vstack([traits(grader, part, recipe.normalisation) for part in unseen]))
    alarms = usual.score(traits(grader, fold.reported[checked], recipe.normalisation)) > 1
    return usual, {"threshold": usual.threshold, "rate": novelty.RATE, "fitted": len(fitted), "set_by": int(sum(min(len(part), MOST_FITTED) for part in unseen)),
                   "checked_on": checked, "checked": len(alarms), "alarms": int(alarms.sum()), "joint_fits": novelty.FITS}


def traits(grader, part, statistics):
    """`novelty.traits` of at most `MOST_FITTED` pictures of a `KneeDataset`, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(part) - 1, min(len(part), MOST_FITTED)).astype(int))
    batches = np.array_split(chosen, max(1, len(chosen) // grading.BATCH))
    return np.vstack([grading.forward(grader, part.images(positions), statistics)[2] for positions in batches])


def _performance(of, arm, number, fold):
    """Metrics with 95 % group-bootstrap intervals of the run's own predictions on the part that was only reported."""
    split = unseen_split(fold.reported)
    path = of.file(f"predictions/{prediction_name(of, arm, split, number).file}")
    if not path.is_file():
        return {"split": split, "reason": "the run has not graded this part"}
    graded = predictions.join(predictions.read(path), fold.reported[split].rows)
    summary = stats.bootstrap_summary(graded, of.profile.draws, of.seed).set_index("metric").loc[list(SHOWN)].astype(float).round(4)
    rows = [{"metric": name, **row} for name, row in summary.to_dict("index").items()]
    rows = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    return {"split": split, "pictures": len(graded), "groups": int(graded["group_id"].nunique()), "interval": "95 % group bootstrap", "metrics": rows}


def newest():
    """The weights folder of the newest finished run that is no test of the software, made now where the run has a model and no weights.

    A test is only taken where there is nothing else; a newer one that is passed over is told on stderr.

    Raises
    ------
    StudyError
        When no run is finished, or the model of the newest was made by other code, so that it would be trained again.
    """
    runs = sorted((path.parent for path in study.BUILD.glob("*/headline.txt")), key=lambda run: (run / "headline.txt").stat().st_mtime)
    if not runs:
        raise StudyError("There is no finished run whose weights could be used. Run 'make reproduce', or give --weights FOLDER.")
    run = next((run for run in reversed(runs) if not _is_test(run)), runs[-1])
    if run != runs[-1]:
        print(f"koa: the newer run '{runs[-1].name}' is passed over, as it only tests the software; '{run.name}' grades", file=sys.stderr)
    folder = run / FOLDER
    return folder if (folder / gradercard.CARD).is_file() else _exported_now(run)


def _is_test(run):
    """Whether a run is dry or a smoke test, by its inputs, or else by the card of its weights."""
    try:
        inputs = study.stored_inputs(run / "inputs.yaml")
        return bool(inputs.get("dry")) or inputs.get("profile") == "smoke"
    except (OSError, StudyError):
        pass
    try:
        return gradercard.read(run / FOLDER)["only_a_test"]
    except StudyError:
        return False


def _exported_now(run):
    inputs = study.stored_inputs(run / "inputs.yaml")
    if inputs.get("dry"):
        os.environ[study.DRY] = "1"
    of = study.Study.open(inputs["profile"], inputs["seed"], "koa grade")
    arm, number = _exported(of)
    note = run / "checkpoints" / f"{arm.name}__fold{number}__seed{of.seed}.json"
    if not note.is_file() or json.loads(note.read_text())["key"]["code"] != reached(Runner.run, arm.build)["code"]:
        raise StudyError(f"The run '{run.name}' has no weights folder, and its model was not made by this version of the code. "
                         f"Run 'make reproduce PROFILE={inputs['profile']}' again, or give --weights FOLDER.")
    with redirect_stdout(sys.stderr):  # the standard output is for grades
        print(f"koa: exporting the weights of the run '{run.name}', once", flush=True)
        return export(of)
