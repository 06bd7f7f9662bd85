"""Label efficiency: how many graded patients a frozen tower needs, for towers that were started in different ways.

A classifier on frozen embeddings learns from growing, nested fractions of the training patients; `equivalence` holds its result against
CLIP that was fine-tuned with all grades.
"""

import numpy as np
import pandas as pd

from koa_lib import encoders, metrics, predictions, selfsupervised, splits
from koa_lib.data import sets
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.images.shape import VIEWS
from koa_lib.losses import chance_loss
from koa_lib.protocols import START, our_arm, unseen_split
from koa_lib.settings import Encoder

STRENGTHS = (0.01, 0.1, 1.0)  # of the logistic regression, inverse regularisation from strong to weak
RANDOM, SELF_SUPERVISED = "random", "self-supervised"
COUNTED = ("pictures", "dimensions", "unlabelled", "steps", "batch")


def starts(study):
    """The towers to compare, as `settings.Encoder`s; a reason where the profile has no such weights."""
    chosen, model = study.profile.systems.labels, study.profile.model
    none = "" if model.start != "random" or study.dry else "this profile's CLIP starts from random weights: no contrastive weights are there before it is fine-tuned"
    own = (chosen.architecture, chosen.image_size, 1.0, "")
    return (Encoder(RANDOM, "random", *own), Encoder("contrastive", "start", "", model.image_size, 1.0, none), Encoder(SELF_SUPERVISED, "dino", *own))


def towers(study):
    """What the starts are, and how far they tell the training pictures apart.

    Returns
    -------
    DataFrame
        start, tower, learned_from, not_run (why it is not), pictures (of the training split), dimensions,
        spread, effective_rank (`selfsupervised.spread`), collapsed; of our own pre-training also unlabelled
        (pictures seen), steps, batch, and from its last epoch loss, loss_floor (entropy of the teacher's
        answers) and uniform_loss (the same answer for all prototypes), in nats.
    """
    learned = _learned_from(study)
    rows = [{"start": spec.name, "tower": _tower(study, spec), "learned_from": learned[spec.name],
             "not_run": spec.reason, **({} if spec.reason else _seen(study, spec))} for spec in starts(study)]
    return pd.DataFrame(rows).astype(dict.fromkeys(COUNTED, "Int64"))


def _tower(study, spec):
    chosen, clip = study.profile.systems.labels, f"image tower of {study.profile.model.name}"
    return f"{clip if spec.source == 'start' else chosen.architecture or clip}, {spec.image_size} px"


def _seen(study, spec):
    part = splits.official(encoders.pictures_of(study, spec, "training"), "train", "fit")
    values = encoders.embed(study, spec, "training")
    found = selfsupervised.spread(values[part.index])
    row = {"pictures": len(part), "dimensions": values.shape[1], **found,
           "collapsed": selfsupervised.collapsed(found)}
    if spec.source != "dino":
        return row
    last = selfsupervised.history(study).iloc[-1]
    return {**row, **selfsupervised.training(study), "loss": last["loss"],
            "loss_floor": last["teacher_entropy"],
            "uniform_loss": chance_loss(study.profile.systems.labels.prototypes)}


def _learned_from(study):
    # On phantoms the sentences name findings, from which a grade follows: such a start knows more than pictures alone.
    start, published = study.profile.model.start, study.profile.systems.labels.published
    contrastive = {"pretrain": "other phantoms with sentences about their findings (stand-in for OpenAI's weights)", "openai": "OpenAI's pairs of pictures and texts"}
    dino = "the training split's pictures, without grades (DINO)"
    return {RANDOM: "nothing: random weights", "contrastive": contrastive.get(start, START[start]), SELF_SUPERVISED: f"timm's published weights, then {dino}" if published else dino}


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
        Roles 'fit' and 'select'. The strength with the best quadratic kappa on `select` is taken (on ties the one with less cross-entropy), and
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
    best = max(STRENGTHS, key=lambda strength: _worth(_fitted(embeddings, strength, fit), embeddings, select))
    return _fitted(embeddings, best, fit, select)


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


def _worth(probabilities, embeddings, part):
    given = probabilities(embeddings[part.index])
    kappa = metrics.from_confusion(metrics.confusion(part.grades, given.argmax(1)))["qwk"]
    return float(np.nan_to_num(kappa)), float(np.log(np.clip(given[np.arange(len(part)), part.grades], 1e-9, 1)).mean())


def run(study):
    """Grade the unseen and the external pictures from every start, with every fraction of the labels and every seed.

    Returns
    -------
    DataFrame
        start, fraction, seed, cohort (the unseen split's name or 'external'), patients, pictures (drawn for training) and `graded`, a joined
        predictions frame; a prediction file is written for each row.
    """
    chosen, rows, labelled = study.profile.systems.labels, [], None
    for spec in starts(study):
        if not spec.reason:
            pool, values, reported = _parts(study, spec)
            labelled = labelled or _labelled(pool, chosen.fractions, range(study.seed, study.seed + chosen.seeds))  # the same for every start
            for (seed, fraction), parts in labelled.items():
                rows += _grade(study, spec, seed, fraction, parts, values, reported)
    return pd.DataFrame(rows)


def _labelled(pool, fractions, seeds):
    # What is drawn, as a part to fit on and one to choose with.
    return {(seed, fraction): splits.inner(pool.part(draw(pool.rows, fraction, seed), "fit"), seed) for seed in seeds for fraction in fractions}


def _parts(study, spec):
    # The training split, its cohort's embeddings, and what is reported: by name its part and the embeddings of its cohort.
    data, values = encoders.pictures_of(study, spec, "training"), encoders.embed(study, spec, "training")
    name = unseen_split(dict.fromkeys(data.rows["split"]))
    reported = {name: (splits.official(data, name, "report"), values)}
    outside = encoders.embed(study, spec, "external", VIEWS[0][0])
    if outside is not None:
        reported["external"] = (encoders.pictures_of(study, spec, "external", VIEWS[0][0]), outside)
    return splits.official(data, "train", "fit"), values, reported


def _grade(study, spec, seed, fraction, parts, values, reported):
    classifier, rows = classify(values, *parts), []
    patients, pictures = sum(part.rows["group_id"].nunique() for part in parts), sum(map(len, parts))
    for name, (part, embeddings) in reported.items():
        frame = predictions.frame(part.rows["image_id"], classifier(embeddings[part.index]))
        predictions.write(frame, study.shown_dir / "predictions" / _name(study, spec, name, seed, fraction).file)
        rows.append({"start": spec.name, "fraction": fraction, "seed": seed, "cohort": name, "patients": patients, "pictures": pictures,
                     "graded": _reported(predictions.join(frame, part.rows), name)})
    return rows


def _name(study, spec, split, seed, fraction):
    ours, role = study.profile.our_protocol, "external" if split == "external" else "training"
    geometry, intensity = VIEWS[0] if role == "external" else (ours.geometry, ours.intensity)
    return predictions.Name(f"labels-{spec.name}", getattr(study.profile, role).name, split, geometry, intensity, "1", seed, f"labels{100 * fraction:g}")


def _reported(graded, cohort):
    # External pictures without repeats and conflicting grades.
    return graded[graded["image_id"].isin(sets.subset(graded, "deduplicated"))].reset_index(drop=True) if cohort == "external" else graded


def supervised(study):
    """Our protocol's CLIP, fine-tuned with all labels.

    Returns
    -------
    (dict, DataFrame)
        Cohort to the graded frames of the folds, on the same pictures as `run`; and what each fold was fitted on and chose its epoch with, one row each:
        patients, pictures.
    """
    runner, arm = selfsupervised.opened(study), our_arm(study)
    results = runner.run(arm)
    labelled = pd.DataFrame([{"patients": graded["group_id"].nunique(), "pictures": len(graded)} for graded in results["train"]])
    name = unseen_split(results)
    frames = {name: results[name]}
    if "external" in results:
        trained = (arm.recipe.geometry, arm.recipe.intensity)
        shown = results["external"] if trained == VIEWS[0] else [runner.external_views(arm)[VIEWS[0]]]
        frames["external"] = [_reported(graded, "external") for graded in shown]
    return frames, labelled
