"""Label efficiency: how many graded patients a frozen tower needs, for towers that were started in different ways.

A classifier on frozen embeddings learns from growing, nested fractions of the training patients; its result is held against CLIP
that was fine-tuned with all grades.
"""

import numpy as np
import pandas as pd

from koa_lib import encoders, metrics, predictions, selfsupervised, splits, stats, subsets
from koa_lib.claims import Answer
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.harmonisation import VIEWS
from koa_lib.protocols import START, our_arm, unseen_split
from koa_lib.runner import Runner
from koa_lib.scorecard import Ours
from koa_lib.settings import Encoder

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the logistic regression, inverse regularisation from strong to weak
METRIC = "qwk"
MARGIN = 0.03  # quadratic kappa: what may be lost by a start that still equals the supervised result; the scorecard's tolerance for ratios
HALF = 0.5
SELF_SUPERVISED = "self-supervised"


def starts(study):
    """The towers to compare, as `settings.Encoder`s; a reason where the profile has no such weights."""
    chosen, model = selfsupervised.settings(study), study.profile.model
    none = "" if model.start != "random" or study.dry else "this profile's CLIP starts from random weights: no contrastive weights are there before it is fine-tuned"
    own = (chosen.architecture, chosen.image_size, 1.0, "")
    return (Encoder("random", "random", *own), Encoder("contrastive", "start", "", model.image_size, 1.0, none), Encoder(SELF_SUPERVISED, "dino", *own))


def towers(study):
    """What the starts are and how far they tell the training pictures apart.

    Returns
    -------
    DataFrame
        start, tower, weights, dimensions, spread, effective_rank (`selfsupervised.spread`; NaN where not in the run), reason.
    """
    chosen, rows = selfsupervised.settings(study), []
    own = chosen.architecture or f"image tower of {study.profile.model.name}"
    learned = {"random": "random", "contrastive": START[study.profile.model.start], SELF_SUPERVISED: "DINO on the training split"}
    for spec in starts(study):
        tower = f"image tower of {study.profile.model.name}" if spec.source == "start" else own
        row = {"start": spec.name, "tower": f"{tower}, {spec.image_size} px", "weights": learned[spec.name], "dimensions": pd.NA, "spread": np.nan, "effective_rank": np.nan}
        if not spec.reason:
            part, values = _training(study, spec)
            row |= {"dimensions": values.shape[1], **selfsupervised.spread(values[part.index])}
        rows.append({**row, "reason": f"not run: {spec.reason}" if spec.reason else ""})
    return pd.DataFrame(rows)


def draw(rows, fraction, seed):
    """Positions of the pictures of a fraction of the patients, stratified by grade.

    A patient's stratum is the higher grade of the two knees (our reading); each stratum gives its rounded share, at least one patient. Draws with
    the same seed are nested: a larger fraction contains a smaller one.

    Parameters
    ----------
    rows : DataFrame
        group_id, kl_grade.
    fraction : float
        In (0, 1].

    Raises
    ------
    StudyError
        Another fraction, or no picture.
    """
    if not 0 < fraction <= 1:
        raise StudyError(f"A label fraction is {fraction:g}; give more than 0 and at most 1.")
    if not len(rows):
        raise StudyError("There is no training picture to draw from. Check the folder and the split of the manifest.")
    generator, chosen = np.random.default_rng(seed), []
    worst = rows.groupby("group_id")["kl_grade"].max()
    for grade in GRADES:
        patients = generator.permutation(worst.index[worst == grade].to_numpy(copy=True))
        chosen.extend(patients[: max(1, int(fraction * len(patients) + 0.5))])
    return np.flatnonzero(rows["group_id"].isin(chosen))


def classify(embeddings, fit, select):
    """A logistic regression on frozen embeddings, its regularisation chosen on an inner part.

    Parameters
    ----------
    embeddings : array (N, d)
        Of the whole cohort; a part's `index` points into it.
    fit, select : KneeDataset
        Roles 'fit' and 'select'. The strength with the least cross-entropy on `select` is taken (the stronger regularisation on ties), and
        the classifier is fitted once more on both.

    Returns
    -------
    callable
        Embeddings (n, d) to probabilities (n, 5); a grade that was not drawn gets 0.

    Raises
    ------
    StudyError
        A part with another role.
    """
    for part, role in ((fit, "fit"), (select, "select")):
        if part.role != role:
            raise StudyError(f"A part with the role '{part.role}' was given where '{role}' is needed: nothing is fitted or chosen on data that is reported.")
    losses = [_cross_entropy(_fitted(embeddings, strength, fit), embeddings, select) for strength in STRENGTHS]
    return _fitted(embeddings, STRENGTHS[int(np.argmin(losses))], fit, select)


def _fitted(embeddings, strength, *parts):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    grades = np.concatenate([part.grades for part in parts])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-3))
    model.fit(embeddings[np.concatenate([part.index for part in parts])], grades)

    def probabilities(values):
        found = np.zeros((len(values), len(GRADES)))
        found[:, model.classes_] = model.predict_proba(values)
        return found

    return probabilities


def _cross_entropy(probabilities, embeddings, part):
    given = probabilities(embeddings[part.index])[np.arange(len(part)), part.grades]
    return float(-np.log(np.clip(given, 1e-9, 1)).mean())


def run(study):
    """Grade the unseen and the external pictures from every start, with every fraction of the labels and every seed.

    Returns
    -------
    DataFrame
        start, fraction, seed, cohort (the unseen split's name or 'external'), patients, pictures (drawn for training) and `graded`, a joined
        predictions frame; a prediction file is written for each row.
    """
    chosen, rows = selfsupervised.settings(study), []
    for spec in starts(study):
        if not spec.reason:
            parts = _parts(study, spec)
            for seed in range(study.seed, study.seed + chosen.seeds):
                for fraction in chosen.fractions:
                    rows += _grade(study, spec, parts, seed, fraction)
    return pd.DataFrame(rows)


def _parts(study, spec):
    # (part, its cohort's embeddings) to train on and to report, by name.
    data = encoders.pictures_of(study, spec, "training")
    train, values = _training(study, spec)
    parts = {"train": (train, values)}
    name = unseen_split(dict.fromkeys(data.rows["split"]))
    parts[name] = (splits.official(data, name, "report"), values)
    outside = encoders.embed(study, spec, "external", VIEWS[0][0])
    if outside is not None:
        parts["external"] = (encoders.pictures_of(study, spec, "external", VIEWS[0][0]), outside)
    return parts


def _training(study, spec):
    return splits.official(encoders.pictures_of(study, spec, "training"), "train", "fit"), encoders.embed(study, spec, "training")


def _grade(study, spec, parts, seed, fraction):
    pool, values = parts["train"]
    drawn = pool.part(draw(pool.rows, fraction, seed), "fit")
    classifier = classify(values, *splits.inner(drawn, seed))
    rows = []
    for name, (part, embeddings) in parts.items():
        if name != "train":
            frame = predictions.frame(part.rows["image_id"], classifier(embeddings[part.index]))
            predictions.write(frame, study.run_dir / "predictions" / _name(study, spec, name, seed, fraction).file)
            rows.append({"start": spec.name, "fraction": fraction, "seed": seed, "cohort": name, "patients": drawn.rows["group_id"].nunique(), "pictures": len(drawn),
                         "graded": _reported(predictions.join(frame, part.rows), name)})
    return rows


def _name(study, spec, split, seed, fraction):
    ours, role = study.profile.our_protocol, "external" if split == "external" else "training"
    geometry, intensity = VIEWS[0] if role == "external" else (ours.geometry, ours.intensity)
    return predictions.Name(f"labels-{spec.name}", getattr(study.profile, role).name, split, geometry, intensity, "1", seed, f"labels{100 * fraction:g}")


def _reported(graded, cohort):
    # External pictures without repeats and conflicting grades.
    return graded[graded["image_id"].isin(subsets.subset(graded, "deduplicated"))].reset_index(drop=True) if cohort == "external" else graded


def supervised(study):
    """Our protocol's CLIP, fine-tuned with all labels: cohort to the graded frames of its folds, on the same pictures as `run`."""
    runner, arm = Runner(study), our_arm(study)
    results = runner.run(arm)
    name = unseen_split(results)
    frames = {name: results[name]}
    if "external" in results:
        trained = (arm.recipe.geometry, arm.recipe.intensity)
        shown = results["external"] if trained == VIEWS[0] else [runner.external_views(arm)[VIEWS[0]]]
        frames["external"] = [_reported(graded, "external") for graded in shown]
    return frames


def curve(study, found, reference):
    """The result for each start and fraction, held against the supervised result on the same pictures.

    A value is the mean over the seeds (over the folds, for the supervised result). Its interval resamples the patients of the reported pictures, the same
    for all seeds, folds and starts, and holds nothing of the draw of the labels, which `sd_over_seeds` shows.

    Parameters
    ----------
    found : DataFrame
        As from `run`.
    reference : dict
        As from `supervised`.

    Returns
    -------
    DataFrame
        cohort, start, fraction, patients, pictures (means over seeds, rounded), n, qwk, ci_low, ci_high, sd_over_seeds, accuracy, difference, difference_low,
        difference_high (qwk minus the supervised); the supervised rows have the start 'supervised' and fraction 1.
    """
    rows = []
    for cohort, frames in reference.items():
        full = _Mean(study, frames)
        rows.append({"cohort": cohort, "start": "supervised", "fraction": 1.0, **full.row()})
        for (start, fraction), group in found[found["cohort"] == cohort].groupby(["start", "fraction"], sort=False):
            mean = _Mean(study, [_in_order(graded, frames[0]) for graded in group["graded"]])
            low, high = stats.interval(mean.draws - full.draws)
            rows.append({"cohort": cohort, "start": start, "fraction": fraction, "patients": round(group["patients"].mean()), "pictures": round(group["pictures"].mean()),
                         **mean.row(), "difference": mean.value - full.value, "difference_low": low, "difference_high": high})
    table = pd.DataFrame(rows)
    order = ["cohort", "start", "fraction", "patients", "pictures", "n", METRIC, "ci_low", "ci_high", "sd_over_seeds", "accuracy"]
    table = table[[*order, "difference", "difference_low", "difference_high"]]
    return table.astype({"patients": "Int64", "pictures": "Int64"})


class _Mean:
    """Mean quadratic kappa of several models on the same pictures, with its draws over patients."""

    def __init__(self, study, frames):
        values, draws = [], []
        for graded in frames:
            grades, probabilities = predictions.arrays(graded)
            predicted = probabilities.argmax(1)
            values.append(metrics.from_confusion(metrics.confusion(grades, predicted)))
            draws.append(metrics.from_confusion(stats.group_bootstrap(grades, predicted, graded["group_id"], study.profile.draws, study.seed))[METRIC])
        self.n, self.each = len(frames[0]), np.array([float(value[METRIC]) for value in values])
        self.value, self.accuracy, self.draws = self.each.mean(), float(np.mean([value["accuracy"] for value in values])), np.mean(draws, axis=0)

    def row(self):
        low, high = stats.interval(self.draws)
        sd = self.each.std(ddof=1) if len(self.each) > 1 else np.nan
        return {"n": self.n, METRIC: self.value, "ci_low": low, "ci_high": high, "sd_over_seeds": sd, "accuracy": self.accuracy}


def _in_order(graded, like):
    # The same pictures in the same order, so that the same draws take the same patients.
    stats.paired(like, graded)
    return graded.set_index("image_id").loc[like["image_id"]].reset_index()


def seeds(found):
    """Quadratic kappa of each seed: cohort, start, fraction, seed, qwk."""
    rows = found.drop(columns=["graded", "patients", "pictures"])
    values = [metrics.from_confusion(metrics.confusion(grades, given.argmax(1)))[METRIC] for grades, given in map(predictions.arrays, found["graded"])]
    return rows.assign(**{METRIC: np.array(values, dtype=float)})


def equal(table):
    """From which fraction each start equals the supervised result.

    Returns
    -------
    DataFrame
        cohort, start, not_below (the smallest fraction whose interval of the difference reaches 0 or above: less can't be shown), within_margin (whose interval
        stays above minus `MARGIN`: much less can be excluded), as_high (whose value itself is as high); NaN where none is.
    """
    rows = []
    for (cohort, start), curve in table[table["start"] != "supervised"].groupby(["cohort", "start"], sort=False):
        rows.append({"cohort": cohort, "start": start, "not_below": _first(curve, curve["difference_high"] >= 0),
                     "within_margin": _first(curve, curve["difference_low"] > -MARGIN), "as_high": _first(curve, curve["difference"] >= 0)})
    return pd.DataFrame(rows)


def _first(curve, holds):
    return float(curve.loc[holds, "fraction"].min())


def answers(table):
    """The study's answers to OrthoFoundation's rows, from the unseen pictures of the training cohort.

    The claim is *replicated* when with at most half of the labels the interval of the difference stays above minus `MARGIN`, *not replicated* when with each such
    fraction it lies below 0, else *inconclusive*.
    """
    inside = table[(table["cohort"] != "external") & (table["start"] == SELF_SUPERVISED)]
    half, reached = inside[inside["fraction"] <= HALF], equal(inside).iloc[0]
    best = half.iloc[-1]
    verdict = "replicated" if (half["difference_low"] > -MARGIN).any() else "not replicated" if (half["difference_high"] < 0).all() else "inconclusive"
    said = (f"with {best.fraction:.0%} of the labels quadratic kappa is {best.difference:+.3f} ({best.difference_low:+.3f} to {best.difference_high:+.3f}) against CLIP fine-tuned with all; "
            f"the fraction is the smallest at which that interval reaches 0, {_share(reached.not_below)}; for the value itself it is {_share(reached.as_high)}")
    source = ("OrthoFoundation", "abstract")
    return {(*source, "label efficiency", "label_fraction"): Ours(reached.not_below, note=said),
            (*source, "half of the labels match the supervised full-label result"): Answer(reached.not_below, np.nan, np.nan, "ratio", verdict, said)}


def _share(fraction):
    return "none that was tried" if np.isnan(fraction) else f"{fraction:.0%}"
