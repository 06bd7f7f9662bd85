"""Weights for use outside the study: what grading needs of a run's model, in one file with its card."""

import math
import sys
from dataclasses import replace
from functools import partial

from koa_lib import study
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.grades import NAMES
from koa_lib.grading import predict, weights
from koa_lib.prompts import prompts
from koa_lib.protocols import OUR_FOLD, our_arm
from koa_lib.reach import versions
from koa_lib.store import made_from

FOLDER = "weights"
SHOWN = ["accuracy", "qwk", "mae", "macro_f1"]


def export(of):
    """Write the weights of a study's model by our protocol, its first fold, to `<run>/weights/`; kept while
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
    experiment, arm = Experiment(of), replace(our_arm(of), only=(OUR_FOLD,))
    job = experiment.job(arm, OUR_FOLD)
    performance = _performance(experiment, arm)
    key = {
        "checkpoint": made_from(job.checkpoint),
        "dry": of.dry,
        "performance": performance,
        "parts": {name: part.fingerprint for name, part in job.fold.reported.items()},
    }
    built, origin = architecture(of.profile.model.name, arm.recipe), _origin(of, arm, job.fold)
    card = {**built, **origin, "performance": performance}
    make = partial(weights.make, grader=job.grader, card=card, fold=job.fold)
    return of.store.make(FOLDER, key, make, [arm.build])


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


def _performance(experiment, arm):
    """Metrics, with intervals, of the run's own predictions on the part that was only reported."""
    results = experiment.run(arm, splits=("unseen",))
    graded, found = results.graded(), results.measured(SHOWN)
    ends = {"value": "", "ci_low": "_low", "ci_high": "_high"}
    return {
        "split": results.splits[0],
        "pictures": len(graded),
        "groups": graded["group_id"].nunique(),
        "interval": "95 % group bootstrap",
        "metrics": [
            {"metric": name, **{key: _rounded(found[name + end]) for key, end in ends.items()}}
            for name in SHOWN
        ],
    }


def _rounded(value):
    # What is undefined is null in the card.
    return None if math.isnan(value) else round(value, 4)


def newest():
    """The weights folder of the newest finished run; of one that only tests the software (smoke or dry) where
    there is no other. A newer one that is passed over is told on stderr.

    Raises
    ------
    StudyError
        When no run is finished.
    """
    runs = sorted(study.BUILD.glob("*/headline.txt"), key=lambda path: path.stat().st_mtime, reverse=True)
    runs = [path.parent for path in runs if path.with_name("inputs.yaml").is_file()]
    if not runs:
        raise StudyError("No run is finished that has weights. Run 'make reproduce' or give --weights.")
    run = next((run for run in runs if not _is_test(run)), runs[0])
    if run != runs[0]:
        print(f"koa: '{run.name}' grades; '{runs[0].name}' is newer, but a test", file=sys.stderr)
    return run / FOLDER


def _is_test(run):
    inputs = study.stored_inputs(run / "inputs.yaml")
    return inputs.get("dry") or inputs.get("profile") == "smoke"
