"""CLIP-KOA's ablation, as we read it: what mirror images add to standard CLIP in training or grading."""

import copy
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import open_clip
import pandas as pd

from koa_lib import metrics, protocols, stats
from koa_lib.data import sets
from koa_lib.device import compute_device
from koa_lib.errors import StudyError
from koa_lib.model import ClipGrader
from koa_lib.pairs import PairRecipe
from koa_lib.paper import claims
from koa_lib.paper.scorecard import over_runs
from koa_lib.predictions import PROBABILITIES
from koa_lib.runner import Runner
from koa_lib.store import made_from

STANDARD, FLIPPED, AT_TEST = "standard CLIP", "flip augmentation", "flip at test time"
# PAIRS has the cross-entropy of both pictures, as the arms with a loss have, and no loss: the fair comparison for what a loss adds.
PAIRS, SYMMETRY, CONSISTENCY, BOTH = "pairs", "symmetry loss", "consistency loss", "both losses"
WITH_LOSS = (SYMMETRY, CONSISTENCY, BOTH)
ARMS = (STANDARD, FLIPPED, AT_TEST, PAIRS, *WITH_LOSS)
TRAINED = tuple(name for name in ARMS if name != AT_TEST)
COMPARED = (*((name, STANDARD) for name in ARMS[1:]), *((name, PAIRS) for name in WITH_LOSS))  # arm and less
METRICS = ("accuracy", "macro_f1", "qwk", "flip_disagreement")
CLAIMED = ("accuracy", "flip_disagreement")  # what the paper's claims are about
SYSTEM = "CLIP-KOA"
_SECOND = [f"{name}_b" for name in PROBABILITIES]


def settings_of(study):
    """The profile's settings of this notebook; a dry run has one epoch, one weight and one seed."""
    settings = study.profile.systems.symmetry
    return replace(settings, epochs=1, weights=settings.weights[:1], seeds=1) if study.dry else settings


def arm(study, seen, symmetry=0.0, consistency=0.0, seed=None):
    """CLIP by our protocol on the official split, its start or trained trunk frozen, trained with pictures and mirror images only.

    Parameters
    ----------
    seen : {'picture', 'either', 'both'}
        What the cross-entropy sees.
    symmetry, consistency : float
        Weights of the two losses.
    seed : int, optional
        By default the study's own.

    Raises
    ------
    StudyError
        A trained trunk whose training had folds: it would have seen the inner part of the official split.
    """
    settings, ours, seed = settings_of(study), study.profile.our_protocol, study.seed if seed is None else seed
    # Where our protocol trains the same part, its cached features are shared; only their unchanged pictures are used.
    views = {} if settings.part == ours.part else {"views": 1, "augmentation": "none"}
    own = {"part": settings.part, "epochs": settings.epochs, "learning_rate": settings.learning_rate, "patience": 0, "folds": 0, "loss": "pairs", **views}
    recipe = PairRecipe(**{**ours.__dict__, **own, "seen": seen, "symmetry": symmetry, "consistency": consistency})
    name = f"koa-{seen}" + "".join(f"-{what}_{weight:g}".replace(".", "_") for what, weight in (("symmetry", symmetry), ("consistency", consistency)) if weight)
    made = protocols.clip_arm(study, name, recipe, "official", seed=seed)
    return _on_trained_trunk(study, made) if settings.trunk == "trained" else made


def _on_trained_trunk(study, made):
    ours, recipe = protocols.our_arm(study), made.recipe
    if ours.recipe.folds:
        raise StudyError("systems.symmetry.trunk is 'trained', but our_protocol trains folds that hold the inner part. Use 'start', or our_protocol with folds: 0.")
    runner = Runner(study)
    trained = cache(lambda: runner.grader(ours).clip)

    def build():
        tokenizer = open_clip.get_tokenizer(study.profile.model.name)
        return ClipGrader(copy.deepcopy(trained()), tokenizer, recipe.part, recipe.prompts, recipe.residual).to(compute_device())

    return replace(made, build=build, key={**made.key, "trunk": made_from(runner.checkpoint(ours))})


def described(study):
    """How the arms are run, e.g. 'koa-tiny, 112 px, projection, 10 epochs, pre-trained on phantoms'."""
    said = protocols.described(arm(study, "picture"), study)
    return said.rsplit(", ", 1)[0] + ", trunk of the CLIP trained by our protocol" if settings_of(study).trunk == "trained" else said


def choice(study, runner):
    """Every pair of weights on the inner part of the training split, which alone chooses.

    Returns
    -------
    DataFrame
        arm (`PAIRS` or one of `WITH_LOSS`), symmetry_weight, consistency_weight, accuracy, qwk, flip_disagreement (ratios), chosen ('yes' for
        the highest quadratic kappa of an arm with a loss, the smallest weights among equals).
    """
    weights = settings_of(study).weights
    grid = [(PAIRS, 0.0, 0.0), *((SYMMETRY, weight, 0.0) for weight in weights), *((CONSISTENCY, 0.0, weight) for weight in weights),
            *((BOTH, *pair) for pair in product(weights, repeat=2))]
    rows = []
    for name, symmetry, consistency in grid:
        values = _values(runner.inner(arm(study, "both", symmetry, consistency)))
        rows.append({"arm": name, "symmetry_weight": symmetry, "consistency_weight": consistency, **{metric: values[metric] for metric in ("accuracy", "qwk", "flip_disagreement")}})
    table = pd.DataFrame(rows)
    order = table.assign(total=table["symmetry_weight"] + table["consistency_weight"]).sort_values(["qwk", "total"], ascending=[False, True], kind="stable")
    first = order[order["arm"] != PAIRS].drop_duplicates("arm").index
    return table.assign(chosen=np.where(table.index.isin(first), "yes", ""))


def arms(study, chosen, seed=None):
    """The trained arms of the ablation, with the weights that `choice` found: name -> Arm."""
    found = chosen[chosen["chosen"] == "yes"].set_index("arm")[["symmetry_weight", "consistency_weight"]]
    plain = {name: arm(study, seen, seed=seed) for name, seen in ((STANDARD, "picture"), (FLIPPED, "either"), (PAIRS, "both"))}
    return plain | {name: arm(study, "both", *map(float, found.loc[name]), seed=seed) for name in WITH_LOSS}


def ablation(study, runner, chosen):
    """Each arm graded on pictures and mirror images, for each seed.

    Returns
    -------
    dict of int to dict of str to dict of str to DataFrame
        Seed -> split ('test' or 'val'; 'external', without repeats and conflicts, where it is given) -> arm -> `stats.paired` frame.
    """
    runs = {}
    for seed in range(study.seed, study.seed + settings_of(study).seeds):
        found = {name: runner.both_ways(made) for name, made in arms(study, chosen, seed).items()}
        found[AT_TEST] = {split: at_test(both) for split, both in found[STANDARD].items()}
        runs[seed] = {split: {name: _reported(found[name][split], split) for name in ARMS} for split in found[STANDARD]}
    return runs


def at_test(both):
    """The mean of a picture's and its mirror image's probabilities as the answer to either: by construction it never changes."""
    mean = np.mean(stats.paired_probabilities(both), axis=0)
    mean = mean / mean.sum(axis=1, keepdims=True)
    return both.assign(**dict(zip([*PROBABILITIES, *_SECOND], [*mean.T, *mean.T], strict=True)))


def _reported(both, split):
    return both[both["image_id"].isin(sets.subset(both, "deduplicated"))] if split == "external" else both


def _values(both):
    return {metric: float(value) for metric, (value, _) in measured(both, 1, 0).items()}


def measured(both, draws, seed):
    """Each metric of an arm with its draws of whole groups; the same seed and pictures give every arm the same draws.

    Parameters
    ----------
    both : DataFrame
        As from `stats.paired`: the picture's probabilities and its mirror image's.

    Returns
    -------
    dict of str to (float, float array (draws,))
        accuracy, macro_f1, qwk of the pictures as they are; flip_disagreement (ratios).
    """
    plain, mirrored = stats.predicted(both)
    pairs = ((both["kl_grade"], plain), (plain, mirrored))  # the second: the mirror image's grade against the picture's
    of_grades, of_flips = ([metrics.from_confusion(cm) for cm in (metrics.confusion(*pair), stats.group_bootstrap(*pair, both["group_id"], draws, seed))] for pair in pairs)
    found = {name: tuple(values[name] for values in of_grades) for name in METRICS[:3]}
    return {**found, "flip_disagreement": tuple(1 - values["accuracy"] for values in of_flips)}


def table(study, frames):
    """The arms on one part: arm, n, then each metric with its 95 % group-bootstrap interval (..._low, ..._high).

    Parameters
    ----------
    frames : dict of str to DataFrame
        Arm -> `stats.paired` frame.
    """
    return pd.DataFrame([{"arm": name, "n": len(both), **_with_intervals(measured(both, study.profile.draws, study.seed))} for name, both in frames.items()])


def overview(study, runs, chosen):
    """What was run: each arm on each part, with its losses' weights and what its other seeds gave.

    Parameters
    ----------
    runs : dict
        From `ablation`.
    chosen : DataFrame
        From `choice`.

    Returns
    -------
    DataFrame
        arm, part, symmetry_weight, consistency_weight, n, each metric of the study's own seed with its
        interval (..._low, ..._high), seeds, then mean and standard deviation of each metric over the seeds
        (<metric>_mean, <metric>_sd).
    """
    weights = chosen.loc[chosen["chosen"] == "yes", ["arm", "symmetry_weight", "consistency_weight"]]
    tables = [table(study, frames).assign(part=part) for part, frames in runs[study.seed].items()]
    means = seed_table(runs).rename(columns={metric: f"{metric}_mean" for metric in METRICS})
    named = list(weights.columns[1:])
    merged = pd.concat(tables).merge(weights, on="arm", how="left").fillna(dict.fromkeys(named, 0.0))
    first = ["arm", "part", *named]
    return merged[[*first, *merged.columns.drop(first)]].merge(means, on=["arm", "part"])


def differences(study, runs):
    """Paired differences: each arm to standard CLIP, those with a loss to `PAIRS`, too, which lacks only that.

    Parameters
    ----------
    runs : dict
        From `ablation`.

    Returns
    -------
    DataFrame
        comparison, arm, less, part, n, the difference of each metric with the study's own seed and its 95 %
        interval (..._low, ..._high; ratios; the same groups are drawn for both arms); the difference with
        each seed of what the claims are about (<metric>_seed_<seed>), and seeds_agree, whether those of
        accuracy have one sign (None with one seed).
    """
    rows = []
    for part, frames in runs[study.seed].items():
        found = {name: measured(both, study.profile.draws, study.seed) for name, both in frames.items()}
        each = {seed: {name: _values(both) for name, both in parts[part].items()}
                for seed, parts in runs.items()}
        for name, less in COMPARED:
            pairs = {metric: zip(found[name][metric], found[less][metric], strict=True) for metric in METRICS}
            gaps = {metric: tuple(a - b for a, b in pair) for metric, pair in pairs.items()}
            rows.append({"comparison": f"{name} − {less}", "arm": name, "less": less, "part": part,
                         "n": len(frames[name]), **_with_intervals(gaps), **_of_seeds(each, name, less)})
    return pd.DataFrame(rows)


def _of_seeds(values, name, less):
    gaps = {f"{metric}_seed_{seed}": found[name][metric] - found[less][metric]
            for metric in CLAIMED for seed, found in values.items()}
    signs = {np.sign(gaps[f"accuracy_seed_{seed}"]) for seed in values}
    return {**gaps, "seeds_agree": signs in ({1.0}, {-1.0}) if len(values) > 1 else None}


def _with_intervals(found):
    cells = {}
    for metric, (value, drawn) in found.items():
        cells[metric], (cells[f"{metric}_low"], cells[f"{metric}_high"]) = float(value), stats.interval(drawn)
    return cells


def seed_table(runs):
    """Mean and standard deviation of each metric over the seeds, for each arm and part; no interval for other patients.

    Returns
    -------
    DataFrame
        arm, part, seeds, then each metric and '<metric>_sd' (NaN with one seed).
    """
    rows = [{"part": part, "arm": name, **_values(both)} for parts in runs.values() for part, frames in parts.items() for name, both in frames.items()]
    grouped = pd.DataFrame(rows).groupby(["arm", "part"], sort=False)[[*METRICS]]
    merged = grouped.mean().join(grouped.std().add_suffix("_sd"))
    columns = [name for metric in METRICS for name in (metric, f"{metric}_sd")]
    return merged[columns].reset_index().pipe(lambda frame: frame.assign(seeds=len(runs)))[["arm", "part", "seeds", *columns]]


def answers(study, runs):
    """What CLIP-KOA's rows of the scorecard take, for `answers.keep`.

    Accuracy is the mean over the seeds, its interval Student's t over them; the gain is the paired difference of both losses to standard CLIP of the study's own seed,
    in percentage points with its group-bootstrap interval, and the relative reading stands in the note.
    """
    part = next(iter(runs[study.seed]))
    frames, key = runs[study.seed][part], (SYSTEM, "abstract")
    accuracies = {name: [_values(parts[part][name])["accuracy"] for parts in runs.values()] for name in (STANDARD, BOTH)}
    gaps = differences(study, {seed: {part: parts[part]} for seed, parts in runs.items()})
    gap = gaps.query("arm == @BOTH and less == @STANDARD").iloc[0]
    several = len(runs) > 1
    sample = f"{part} split, n = {len(frames[BOTH]):,}"
    seeds, first = f"{sample}, {len(runs)} seed{'s' * several}", f"{sample}" + f"; first of {len(runs)} seeds" * several
    boot = tuple(100 * value for value in stats.interval(measured(frames[BOTH], study.profile.draws, study.seed)["accuracy"][1]))
    without, with_losses = (100 * _values(frames[name])["flip_disagreement"] for name in (STANDARD, BOTH))
    gained = np.array([100 * gap[f"accuracy_seed_{seed}"] for seed in runs])
    each = f"; gain of each seed: {', '.join(f'{gain:+.2f}' for gain in gained)}" * several
    relative = gained.mean() / np.mean(accuracies[STANDARD]) / 100
    return {
        (*key, "CLIP-KOA", "accuracy"): over_runs(100 * np.array(accuracies[BOTH]), f"{BOTH}, our reading; {seeds}", boot),
        (*key, "gain over standard CLIP", "accuracy_gain"): over_runs(
            gained, f"read as percentage points; as a relative gain ours is {relative:+.2%}; {seeds}{each}",
            (100 * gap["accuracy_low"], 100 * gap["accuracy_high"])),
        (*key, "symmetry and consistency losses raise accuracy over standard CLIP"): _claim(gap, "accuracy", 1, f"accuracy of standard CLIP {100 * accuracies[STANDARD][0]:.1f} %, with both losses {100 * accuracies[BOTH][0]:.1f} %; {first}"),
        (*key, "predictions agree between original and flipped image"): _claim(gap, "flip_disagreement", -1, f"the grade changes for {without:.1f} % of the pictures with standard CLIP, for {with_losses:.1f} % with both losses; {first}"),
    }


def _claim(gap, metric, wanted, reason):
    # Replicated when the whole interval lies on the claimed side of 0, not replicated when it lies on the other, else inconclusive.
    value, *ends = (100 * float(gap[name]) for name in (metric, f"{metric}_low", f"{metric}_high"))
    low, high = sorted(wanted * end for end in ends)
    verdict = "replicated" if low > 0 else "not replicated" if high < 0 else "inconclusive"
    return claims.Answer(value, *ends, "points", verdict, reason)
