"""Arms side by side: fold tables, paired tests, sensitivity of the external result, the scorecard of a run."""

import numpy as np
import pandas as pd

from koa_lib import metrics, scorecard, stats, subsets
from koa_lib.harmonisation import EXPLORATORY, VIEWS
from koa_lib.predictions import PROBABILITIES, arrays
from koa_lib.protocols import main_fold

_SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "qwk", "mae", "within_one")


def fold_table(results):
    """Metrics of each fold on each part.

    Parameters
    ----------
    results : dict of str to list of DataFrame
        As from `Runner.run`.

    Returns
    -------
    DataFrame
        part, fold, n, accuracy, balanced_accuracy, macro_f1, qwk, mae, within_one (ratios; mae in grades).
    """
    rows = []
    for part, frames in results.items():
        for number, graded in enumerate(frames, start=1):
            fold = graded.attrs.get("fold", number)
            rows.append({"part": part, "fold": fold, "n": len(graded), **_values(graded)})
    return pd.DataFrame(rows)


def fold_sentence(table):
    """Mean and standard deviation over the folds of the unseen parts, in words."""
    sentences = []
    for part, rows in table[table["part"] != "train"].groupby("part", sort=False):
        spread = f" ± {rows['qwk'].std():.3f}" if len(rows) > 1 else ""
        sentences.append(f"{part.replace('_', '-')}: accuracy {rows['accuracy'].mean():.3f}, quadratic kappa {rows['qwk'].mean():.3f}{spread} ({len(rows)} fold(s))")
    return "; ".join(sentences) + "."


def _values(graded):
    grades, probabilities = arrays(graded)
    values = metrics.from_confusion(metrics.confusion(grades, probabilities.argmax(1)))
    return {name: float(values[name]) for name in _SHOWN}


def paired_tests(results, others, split, fold, draws, seed):
    """CLIP against each baseline on the same pictures of a split, repeats and conflicts left out.

    Returns
    -------
    DataFrame
        baseline, n, clip_only, baseline_only (discordant counts), p_exact, p_mid, p_holm, difference, ci_low, ci_high.
    """
    rows = []
    for name, found in others.items():
        ours, theirs = (frames[min(fold, len(frames)) - 1] for frames in (results[split], found[split]))
        both = ours.merge(theirs[["image_id", *PROBABILITIES]], on="image_id", suffixes=("", "_b"))
        both = both[both["image_id"].isin(subsets.subset(both, "single_knee"))]
        a, b = both[PROBABILITIES].to_numpy().argmax(1), both[[f"{p}_b" for p in PROBABILITIES]].to_numpy().argmax(1)
        test = stats.mcnemar(a == both["kl_grade"], b == both["kl_grade"])
        gap = stats.paired_difference(both["kl_grade"], a, b, both["group_id"], "accuracy", draws, seed)
        rows.append({"baseline": name, "n": len(both), "clip_only": test["b"], "baseline_only": test["c"], "p_exact": test["p_exact"], "p_mid": test["p_mid"],
                     "difference": gap["difference"], "ci_low": gap["ci_low"], "ci_high": gap["ci_high"]})
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(6, "p_holm", stats.holm(table["p_exact"]))
    return table


def external_rows(study, arms):
    """The external result by protocol, derived set and reader, from the mean probabilities of the folds.

    Parameters
    ----------
    arms : dict of str to DataFrame
        Arm name to its joined external frame (fold mean).

    Returns
    -------
    DataFrame
        arm, set, reader, n, accuracy, ci_low, ci_high, macro_f1, qwk.
    """
    rows = []
    for name, graded in arms.items():
        for subset in subsets.SUBSETS:
            kept = graded[graded["image_id"].isin(subsets.subset(graded, subset))]
            for reader, column in (("first", "kl_grade"), ("second", "kl_grade_reader2")):
                read = kept[kept[column].notna()]
                if len(read):
                    rows.append({"arm": name, "set": subset.replace("_", " "), "reader": reader, "n": len(read), **_with_interval(study, read, column)})
    return pd.DataFrame(rows)


def view_rows(study, views):
    """The external result in each geometry and intensity, on the deduplicated set against the first reader.

    Parameters
    ----------
    views : dict of (geometry, intensity) to DataFrame
        As from `Runner.external_views`.

    Returns
    -------
    DataFrame
        status ('confirmatory', 'sensitivity' or 'exploratory'), geometry, intensity, as_trained (whether the model was
        trained on such pictures), n, accuracy, ci_low, ci_high, macro_f1, qwk.
    """
    rows, trained = [], (study.profile.our_protocol.geometry, study.profile.our_protocol.intensity)
    for (geometry, intensity), graded in views.items():
        kept = graded[graded["image_id"].isin(subsets.subset(graded, "deduplicated"))]
        status = "exploratory" if {geometry, intensity} & EXPLORATORY else "confirmatory" if (geometry, intensity) == VIEWS[0] else "sensitivity"
        rows.append({"status": status, "geometry": geometry, "intensity": intensity, "as_trained": "yes" if (geometry, intensity) == trained else "no", "n": len(kept), **_with_interval(study, kept, "kl_grade")})
    return pd.DataFrame(rows)


def _with_interval(study, graded, column):
    graded = graded.assign(kl_grade=graded[column].astype(int))
    summary = stats.bootstrap_summary(graded, study.profile.draws, study.seed).set_index("metric")
    accuracy = summary.loc["accuracy"]
    return {"accuracy": accuracy.value, "ci_low": accuracy.ci_low, "ci_high": accuracy.ci_high,
            "macro_f1": summary.value["macro_f1"], "qwk": summary.value["qwk"]}


def verdicts(study, results, others, published, counts):
    """The scorecard of a run: each published number beside ours, the interval over the folds.

    Parameters
    ----------
    results : dict
        Main arm, as from `Runner.run`.
    others : dict of str to dict
        Baselines, likewise.
    counts : dict of str to DataFrame
        Published manifests by name, for the rows that need no model.
    """
    external = results.get("external", [])
    absent = "not run: no external cohort was given"
    ours = {("text", "data", "train_images"): (len(counts["oai_chen2018"]), np.nan, np.nan),
            ("text", "data", "participants"): (counts["oai_chen2018"]["group_id"].nunique(), np.nan, np.nan),
            ("text", "data", "external_images"): (len(counts["gornale2020"]), np.nan, np.nan)}
    ours |= scorecard.measured("table_2", "train", results["train"])
    ours |= scorecard.measured("table_2", "test", external) | scorecard.measured("table_3", "", external)
    for name, found in others.items():
        ours |= scorecard.measured("table_4", name, found.get("external", []))
    for row in published[published["kind"] == "model"].itertuples():
        if not external:
            ours.setdefault((row.item, str(row.row), row.metric), absent)
    known = set(zip(published["item"], published["row"].astype(str), published["metric"], strict=True))
    return scorecard.scorecard(published, {key: value for key, value in ours.items() if key in known}, *_comparable(study))


def _comparable(study):
    if study.synthetic:
        return False, "synthetic phantoms"
    if study.profile.as_printed is None:
        return False, f"{study.profile.model.name} from a random start is not the paper's ViT-B/32"
    return True, ""


def shown_fold(study, results, split):
    """The frame of the main fold for a split (the only one when an arm ran one fold)."""
    frames = results[split]
    return frames[min(main_fold(study), len(frames)) - 1]
