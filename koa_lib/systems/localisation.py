"""Where the models of a study look: which are explained, what is kept of them, and how their maps score."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from koa_lib import explain, networks, protocols, stats
from koa_lib.device import seeded
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.explain import CENTRE, RANDOM, SIDE
from koa_lib.model import ClipGrader, load_clip
from koa_lib.phantoms import regions
from koa_lib.prompts import prompts
from koa_lib.store import made_from

CLIPS = {"clip-as_printed": "CLIP as printed", "clip-our_protocol": "CLIP by our protocol"}
NO_MODEL, BLOB = "no model", "bright in the middle"
CURVES = {"deletion": -1, "insertion": 1}  # whether a good map's area is low or high
LEVEL = 0.05  # of the family of tests against each control
SIGN_FLIPS = 10_000  # for a p-value
# Verdicts on a map that is held against two controls; none for a model that has not learnt to grade.
BETTER, WORSE, UNCLEAR, NONE = "better than both", "worse than one", "unclear", "none"


@dataclass(frozen=True)
class Explained:
    """A trained model and its maps over the pictures that it explains: the same ones for every model.

    Attributes
    ----------
    name, as_run : str
    rows : DataFrame
        Manifest rows of the explained pictures, by grade.
    pictures : uint8 array (n, side, side)
        As the model sees them.
    trained_patients : int
        How many of their patients have another knee in the model's training.
    layer : str
        What Grad-CAM maps.
    kappa : (float, float, float)
        Quadratic kappa on the unseen part of the training cohort with its 95 % interval, patients resampled.
    grades : int array (n,)
        The model's own grades, which its maps explain.
    maps : dict of str to float array (n, SIDE, SIDE)
        By method.
    curves : dict of str to dict of str to float array (n, steps + 1)
        By 'deletion' and 'insertion', then by order (a method or a control); without steps on real pictures.
    cascade : dict of str to float array (n, steps)
        By method: rank correlation with the trained model's map while layers become random.
    """

    name: str
    as_run: str
    rows: pd.DataFrame
    pictures: np.ndarray
    trained_patients: int
    layer: str
    kappa: tuple
    grades: np.ndarray
    maps: dict
    curves: dict
    cascade: dict

    @property
    def learnt(self):
        """Whether the model has learnt to grade: the interval of its kappa lies above 0, which is chance."""
        return bool(self.kappa[1] > 0)


def explained(study):
    """Where each CLIP model and baseline of a study looks, from the store or made now.

    What is explained are pictures of the training cohort that none of the models was fitted on or chosen by.

    Returns
    -------
    list of Explained

    Raises
    ------
    StudyError
        When there is no such picture.
    """
    experiment, models = Experiment(study), list(_models(study))
    jobs = [experiment.job(arm, _fold(study, arm)) for _, arm, *_ in models]
    seen = {name for job in jobs for name in job.fold.reported["train"].rows["image_id"]}
    return [_explained(experiment, *model, job, seen) for model, job in zip(models, jobs, strict=True)]


def _fold(study, arm):
    return protocols.main_fold(study) if arm.scheme == "images" else protocols.OUR_FOLD


def _models(study):
    # Name, arm, how it is run, and what makes the same architecture with random weights.
    for arm in {arm.name: arm for arm in (protocols.main_arm(study), protocols.our_arm(study))}.values():
        yield CLIPS[arm.name], arm, protocols.described(arm, study), partial(_random_clip, study, arm.recipe)
    for spec in study.profile.baselines:
        if not spec.reason:
            untrained = partial(networks.untrained, study.seed + 1, spec)
            yield spec.name, protocols.baseline_arm(study, spec), networks.described(spec), untrained


def _random_clip(study, recipe):
    # Another seed than that of the trainings: their start is no random network of its own.
    seed, sentences = study.seed + 1, prompts(recipe.prompts)
    clip, _, tokenizer = load_clip(study.profile.model.name, None, seed)
    return seeded(seed, ClipGrader, clip, tokenizer, recipe.part, sentences, recipe.residual)


def _explained(experiment, name, arm, as_run, untrained, job, seen):
    study, trained = experiment.study, job.fold.reported["train"].rows
    data, settings = experiment.data("training", arm), _settings(study)
    unseen = data.part(np.flatnonzero(~data.rows["image_id"].isin(trained["image_id"])), "report")
    chosen = _sample(unseen.rows, seen, settings.pictures)
    steps = settings.steps if study.synthetic else 0  # on real pictures nothing is claimed
    what = {"chosen": chosen.tolist(), "statistics": arm.recipe.normalisation, "steps": steps,
            "losses": settings.cascade, "seed": study.seed}
    key = what | {"weights": made_from(job.checkpoint), "unseen": unseen.fingerprint}
    build = partial(explain.write, job.grader, untrained, unseen, **what)
    with np.load(study.store.make(f"attributions/{arm.name}.npz", key, build)) as file:
        kept = {name: values if values.ndim else values.item() for name, values in file.items()}

    def named(names, values):
        return dict(zip(kept[names].tolist(), kept[values], strict=True))

    graded = experiment.run(arm, splits=("unseen",)).of(fold=job.fold.number)
    kappa = graded.measured(["qwk"])
    rows = unseen.rows.iloc[chosen].reset_index(drop=True)
    return Explained(
        name, as_run, rows, pictures=unseen.images(chosen), layer=kept["layer"],
        trained_patients=len(set(trained["group_id"]).intersection(rows["group_id"])),
        kappa=tuple(kappa[name] for name in ("qwk", "qwk_low", "qwk_high")), grades=kept["grades"],
        maps=named("methods", "maps"),
        curves={kind: named("orders", kind) for kind in CURVES}, cascade=named("methods", "cascade"))


def _settings(study):
    # A dry run shows that all steps work, on true architectures: two pictures and steps are enough.
    settings = study.profile.systems.attention
    return replace(settings, pictures=2, steps=2, cascade=1) if study.dry else settings


def _sample(rows, seen, number):
    # The first picture of each grade, then the second, until there are enough: as many of each as can be.
    rows = rows[~rows["image_id"].isin(seen)]
    if rows.empty:
        raise StudyError("Every picture was in the training of one of the models. Give more pictures.")
    turns = rows.assign(turn=rows.groupby("kl_grade").cumcount()).sort_values(["turn", "kl_grade"])
    return turns.head(number).sort_values(["kl_grade", "image_id"]).index.to_numpy()


def known(study, rows):
    """Where the findings of pictures are drawn.

    Returns
    -------
    bool array (n, regions, SIDE, SIDE)
        Without any region on real pictures: nobody knows where on them a model should look.
    """
    if study.synthetic:
        return regions.of_cohort(study, rows, SIDE)
    return np.zeros((len(rows), 0, SIDE, SIDE), bool)


def mapped(found):
    """What is explained, and how alike a map stays while the model loses its weights (Adebayo 2018).

    Parameters
    ----------
    found : list of Explained

    Returns
    -------
    DataFrame
        One row per model and map: model, method; qwk, qwk_low, qwk_high (on the unseen part), learnt; n
        (explained pictures), as_run, layer, trained_patients; and the mean rank correlation with the trained
        model's map in a column per share of random weights, from the output to the input, such as "rank
        correlation, 25 %"; NaN where no map has any.
    """
    rows = []
    for one in found:
        model = {name: getattr(one, name) for name in ("as_run", "layer", "trained_patients")}
        for method, alike in one.cascade.items():
            shares = np.linspace(0, 100, alike.shape[1] + 1)[1:]
            row = {"n": len(alike)} | model | _means("rank correlation, {:.0f} %", shares, alike)
            rows.append(_named(one, method) | row)
    return pd.DataFrame(rows)


def _named(one, method):
    names = {"model": one.name, "method": method}
    return names | dict(zip(("qwk", "qwk_low", "qwk_high"), one.kappa, strict=True)) | {"learnt": one.learnt}


def _means(column, shares, values):
    # Of the defined values (n, shares), in a column per share.
    return dict(zip(map(column.format, shares), pd.DataFrame(values).mean(), strict=True))


def scores(found, masks, draws, seed):
    """How much of each map lies in the regions of the findings, beside other patients' maps and a blob.

    Parameters
    ----------
    found : list of Explained
    masks : bool array (n, 3, SIDE, SIDE)
        From `known`.
    draws, seed : int
        Of the bootstrap over patients.

    Returns
    -------
    DataFrame
        One row per model and map, then the blob, a map without a model: model, method; qwk with its interval
        and learnt, see `Explained`; n (maps that are not all 0), inside (share), other_patients: what other
        patients' maps have over the same knees; own_gain and blob_gain: inside minus other_patients and minus
        that of the blob, paired, each with its interval and p-value (signs of whole patients flipped,
        corrected for all rows); chance_area: what a map that knows nothing has; verdict: `BETTER` where both
        gains are clearly above 0, `WORSE` where one is clearly below, else `UNCLEAR`; `NONE` for a model that
        has not learnt to grade.
    """
    whole, groups = masks.any(1), found[0].rows["group_id"].to_numpy()
    blob = explain.inside(explain.blob(len(groups)), whole)
    rows = []
    for one in found:
        for method, maps in one.maps.items():
            own, others = explain.inside(maps, whole), explain.of_others(maps, whole, groups)
            row = {"n": np.isfinite(own).sum(), "inside": _mean(own), "other_patients": _mean(others)}
            gains = _gains(own, {"own": others, "blob": blob}, groups, draws, seed)
            rows.append(_named(one, method) | row | gains)
    rows.append({"model": NO_MODEL, "method": BLOB, "n": len(blob), "inside": blob.mean()})
    return _judged(rows, "own", "blob").assign(chance_area=whole.mean())


def _mean(values):
    return pd.Series(values).mean()  # of the defined ones


def _gains(values, controls, groups, draws, seed):
    row = {}
    for control, others in controls.items():
        gains = np.round(values - others, 12)  # equal but for rounding errors is equal
        names = [f"{control}_gain", f"{control}_gain_low", f"{control}_gain_high"]
        row |= zip(names, stats.mean_interval(gains, groups, draws, seed), strict=True)
        row[f"{control}_p_holm"] = flip_p(gains, groups, seed)
    return row


def flip_p(values, groups, seed):
    """Two-sided p-value of a mean of 0: signs of whole groups are flipped, `SIGN_FLIPS` times or in every
    way.

    NaN is left out; the p-value is NaN with fewer than two groups.
    """
    from scipy.stats import permutation_test

    sums = pd.Series(values).groupby(np.asarray(groups)).sum()
    if len(sums) < 2:
        return np.nan
    how = {"permutation_type": "samples", "n_resamples": SIGN_FLIPS, "rng": seed}
    return permutation_test((sums,), np.sum, **how).pvalue


def _judged(rows, *controls):
    # p-values corrected for all rows, and what those of both controls say together; nothing without a model.
    table, clear = pd.DataFrame(rows), []
    for control in controls:
        corrected = table[f"{control}_p_holm"] = stats.holm(table[f"{control}_p_holm"])
        clear.append(np.where(corrected < LEVEL, np.sign(table[f"{control}_gain"]), 0))
    lowest = np.min(clear, axis=0)
    cases = [table["learnt"].isna(), table["learnt"].isin([False]), lowest < 0, lowest > 0]
    return table.assign(verdict=np.select(cases, ["", NONE, WORSE, BETTER], UNCLEAR))


def faithfulness(found, draws, seed):
    """Deletion and insertion curves of each map, and of two orders that know no model.

    Returns
    -------
    DataFrame
        model, method (a map, or `explain.RANDOM` or `explain.CENTRE`), curve, n, curve_area (mean probability
        of the model's grade), and the mean probability in a column per share of the cells that are changed,
        such as "at 50 %". For a map also qwk with its interval and learnt; random_gain and centre_gain: how
        much lower (deletion) or higher (insertion) its area is than in that order, paired, each with its
        interval and p-value, corrected for all rows; verdict as of `scores`, of both orders.
    """
    rows = []
    for one in found:
        for curve, sign in CURVES.items():
            areas = {order: sign * explain.area(values) for order, values in one.curves[curve].items()}
            controls = {"random": areas[RANDOM], "centre": areas[CENTRE]}
            for order, values in one.curves[curve].items():
                row = {"model": one.name, "method": order, "curve": curve, "n": len(values)}
                row |= _means("at {:.0f} %", np.linspace(0, 100, values.shape[1]), values)
                row["curve_area"] = abs(areas[order].mean())
                if order in one.maps:
                    gains = _gains(areas[order], controls, one.rows["group_id"], draws, seed)
                    row |= _named(one, order) | gains
                rows.append(row)
    return _judged(rows, "random", "centre")
