"""Data audit: what repeats, contradicts, leaks or looks odd in a cohort, found in its files."""

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from koa_lib import metrics, splits, stats
from koa_lib.data.looks import INTENSITY, THRESHOLD, near_groups
from koa_lib.data.sets import SUBSETS, conflicting, subset, two_knees
from koa_lib.errors import StudyError

INVERTED = -0.5  # correlation with the cohort's median picture below which a picture is a negative
FOLDS = 5  # of the printed protocol, and of the format shortcut
FORMAT = ["width", "height", "bit_depth", "channels"]
FEATURES = {"size and depth": FORMAT, "gray values": INTENSITY, "both": [*FORMAT, *INTENSITY]}
COLUMNS = ["finding", "cohort", "groups", "files", "detail"]
AFFECTED = ["finding", "cohort", "group", "image_id", "path"]
PREDICTED = ["features", "n", "balanced_accuracy", "ci_low", "ci_high", "chance", "qwk", "above_chance"]
MEANING = {
    "unreadable files": "cannot be opened as pictures",
    "suffix and content differ": "for example a JPEG file called .png",
    "pixels differ from the manifest": "re-encoded or changed copies of the published files",
    "equal pixels": "the same picture in several files",
    "equal pixels under different grades": "the same picture with two grades: both can't be right",
    "near-duplicates": "other pixels, but alike to a perceptual hash",
    "near-duplicates under different grades": "pictures that look alike with different grades",
    "readers disagree": "the second reader gave the same pixels another grade",
    "inverted pictures": "negatives: bone is dark",
    "two knees in one picture": "which knee the grade belongs to is not known",
    "other sizes": "one knee in a picture of unusual size",
    "16-bit pictures": "65,536 gray levels instead of 256",
    "colour pictures": "the three colour channels differ; lossy compression alone can do that",
    "size and depth predict the grade": "whether width, height, bit depth and channels tell the grade",
    "gray values predict the grade": "whether mean and quantiles of the gray values tell the grade",
}
ODD = {
    "inverted pictures": "inverted",
    "two knees in one picture": "two knees",
    "other sizes": "other size",
    "16-bit pictures": "16 bits",
    "colour pictures": "colour",
}


@dataclass(frozen=True)
class Audit:
    """The result of an audit, as four tables that are files of the run.

    Attributes
    ----------
    findings : DataFrame
        finding, cohort, groups, files, detail; zero counts are kept, because a clean result is a result.
    affected_files : DataFrame
        finding, cohort, group, image_id, path: every file behind every count.
    sets : DataFrame
        cohort, image_id, near_group, and for each derived set whether the picture belongs to it.
    format_shortcut : DataFrame
        cohort and the columns of `predictability`.
    """

    findings: pd.DataFrame
    affected_files: pd.DataFrame
    sets: pd.DataFrame
    format_shortcut: pd.DataFrame

    def write(self, folder):
        """Write each table as CSV, e.g. findings.csv."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            getattr(self, field.name).to_csv(folder / f"{field.name}.csv", index=False, lineterminator="\n")


def audit_all(inspected, seed=42, draws=1000):
    """Audit cohorts one by one, and look in each later one for pictures of the first.

    Parameters
    ----------
    inspected : dict of str to DataFrame
        Cohort to its rows, see `audit`.

    Returns
    -------
    Audit
    """
    (first, known), *later = inspected.items()
    results = [audit(known, first, seed, draws)]
    results += [audit(rows, name, seed, draws, known.assign(cohort=first)) for name, rows in later]
    tables = ([getattr(result, field.name) for result in results] for field in fields(Audit))
    return Audit(*(pd.concat(parts, ignore_index=True) for parts in tables))


def audit(inspected, cohort, seed=42, draws=1000, known=None):
    """Audit one cohort.

    Parameters
    ----------
    inspected : DataFrame
        Rows from `looks.inspect`; `kl_grade_reader2` already matched by pixels.
    cohort : str
        Its name.
    seed, draws : int
        Of the folds and of the format shortcut's interval.
    known : DataFrame, optional
        Inspected rows of another cohort, named in `cohort`, whose pictures are looked for in this one.

    Returns
    -------
    Audit
    """
    inspected = inspected.assign(cohort=cohort)
    rows = inspected[inspected["readable"]].astype(dict.fromkeys(FORMAT, int))
    rows["near_group"] = near_groups(rows)
    # Where a side is known, so is the patient.
    unit = "group_id" if rows["side"].ne("").any() else "near_group"
    betrayed = predictability(rows, unit, seed, draws).assign(cohort=cohort)
    found = [
        *_files(inspected),
        *_repeats(rows),
        *_readers(rows),
        *_leaks(rows, seed),
        *_oddities(rows),
        *_shortcut(rows, betrayed),
        *_shared(rows, known),
    ]
    findings, affected = [], []
    for name, files, group, detail in found:
        own = files[files["cohort"] == cohort]
        findings.append((name, cohort, own[group].nunique(), len(own), detail))
        if not name.endswith("predict the grade"):  # which is about the cohort, not about single files
            affected.append(files.assign(finding=name, group=files[group])[AFFECTED])
    sets = rows.assign(**{name: rows["image_id"].isin(subset(rows, name)) for name in SUBSETS})
    return Audit(
        pd.DataFrame(findings, columns=COLUMNS),
        pd.concat(affected),
        sets[["cohort", "image_id", "near_group", *SUBSETS]],
        betrayed[["cohort", *PREDICTED]],
    )


# Each check gives findings: name, the affected rows, the column that groups them, and the rule or a remark.


def _files(rows):
    readable = rows[rows["readable"]]
    misnamed, other = readable[readable["problem"].notna()], readable[~readable["as_in_manifest"]]
    yield "unreadable files", rows[~rows["readable"]], "image_id", "left out of the rest of the audit"
    yield "suffix and content differ", misnamed, "image_id", "read by their content"
    told = "re-encoded or changed copies; 'koa data verify' tells which"
    yield "pixels differ from the manifest", other, "image_id", told


def _repeats(rows):
    equal = rows[rows.duplicated("pixel_sha256", keep=False)]
    unique = f"{rows['pixel_sha256'].nunique():,} unique pictures of {len(rows):,}"
    yield "equal pixels", equal, "pixel_sha256", unique
    disputed = equal[conflicting(equal)]
    yield "equal pixels under different grades", disputed, "pixel_sha256", "left out of the deduplicated set"
    # Groups that hold more than copies of one picture.
    near = rows[conflicting(rows, "near_group", "pixel_sha256")]
    rule = (
        f"perceptual hashes differ in at most {THRESHOLD} of 256 bits, pixels not equal; "
        f"{rows['near_group'].nunique():,} groups remain"
    )
    yield "near-duplicates", near, "near_group", rule
    kept = near[conflicting(near, "near_group")]
    yield "near-duplicates under different grades", kept, "near_group", "kept in the sets, resampled together"


def _readers(rows):
    second = rows[rows["kl_grade_reader2"].notna()]
    detail, found = "one reader only", reader_agreement(second)
    if found:
        detail = (
            f"of {len(second)} pictures with two grades: kappa {found['kappa']:.3f}, "
            f"linear {found['linear_kappa']:.3f}, quadratic {found['qwk']:.3f}"
        )
    yield "readers disagree", second[second["kl_grade"] != second["kl_grade_reader2"]], "image_id", detail


def _leaks(rows, seed):
    if rows["split"].nunique() < 2:
        return
    places = {"official split": rows["split"]}
    with suppress(StudyError):  # a part of a cohort may hold too few pictures of a grade
        places |= {  # over all pictures, as the printed protocol has them, whatever the profile trains
            "image-level folds, as printed": _folds(splits.image_folds(rows, FOLDS, seed), rows),
            "patient folds, our protocol": _folds(splits.patient_folds(rows, FOLDS, seed), rows),
        }
    units = {"group_id": "patients", "pixel_sha256": "equal pixels", "near_group": "near-duplicates"}
    for place, parts in places.items():
        for group, what in units.items():
            across = rows[conflicting(rows.assign(part=parts), group, "part")]
            rule = f"in more than one of {parts.nunique()} parts, of {rows[group].nunique():,} {what} in all"
            yield f"{what} across {place}", across, group, rule


def _folds(pairs, rows):
    number = pd.Series(0, rows.index)
    for fold, (_, held_out) in enumerate(pairs):
        number.iloc[held_out] = fold
    return number


def _oddities(rows):
    double, sizes = two_knees(rows), rows.groupby(["width", "height"]).size().sort_values(ascending=False)
    usual = sizes.index[0]
    listed = "; ".join(f"{width} x {height}: {n:,}" for (width, height), n in sizes.head(4).items())
    modes = ", ".join(f"{mode} {n:,}" for mode, n in rows["mode"].value_counts().items())
    rule = f"correlation with the cohort's median picture below {INVERTED:g}"
    yield "inverted pictures", rows[rows["polarity"] < INVERTED], "near_group", rule
    yield "two knees in one picture", rows[double], "near_group", "width at least 3 times the height"
    other = rows[rows[["width", "height"]].ne(list(usual)).any(axis=1) & ~double]
    yield "other sizes", other, "near_group", f"one knee, not {usual[0]} x {usual[1]}; all sizes: {listed}"
    yield "16-bit pictures", rows[rows["bit_depth"] == 16], "near_group", f"file modes: {modes}"
    yield "colour pictures", rows[rows["channels"] == 3], "near_group", "averaged when read"


def _shortcut(rows, betrayed):
    table = betrayed.set_index("features")[["balanced_accuracy", "ci_low", "ci_high", "chance"]]
    for features in ("size and depth", "gray values"):
        told, detail = rows[:0], "too few pictures of a grade to tell"
        if features in table.index:
            value, low, high, chance = table.loc[features]
            detail = f"balanced accuracy {value:.2f} ({low:.2f} to {high:.2f}), chance {chance:.2f}"
            detail = "all files are alike" if pd.isna(value) else detail
            told = rows if low > chance else told
        yield f"{features} predict the grade", told, "near_group", detail


def _shared(rows, known):
    if known is None:
        return
    both = pd.concat([rows, known[known["readable"]]], ignore_index=True)
    both["near_group"], name = near_groups(both), known["cohort"].iloc[0]
    shared = both[conflicting(both, "near_group", "cohort")]  # the files of both cohorts
    yield f"also in {name}", shared, "near_group", f"equal or at most {THRESHOLD} of 256 bits apart"


def predictability(rows, group, seed=0, draws=1000):
    """The format shortcut test: cross-validated prediction of the grade from format and gray values alone.

    Where it succeeds, a model may have learnt the scanner, the exposure or the clinic instead of the knee.
    Gray values also carry some anatomy (sclerosis is bright), so a little above chance need not be a fault.
    Gradient boosting with balanced grades; the folds and the interval keep groups together.

    Parameters
    ----------
    rows : DataFrame
        Inspected rows: kl_grade and the columns of `FEATURES`.
    group : str
        Column of what must stay together: patients or near-duplicates.
    seed, draws : int

    Returns
    -------
    DataFrame
        features, n, balanced_accuracy, ci_low, ci_high, chance (ratios), qwk, above_chance (whether the whole
        interval is); NaN where all files are alike; empty when a grade has too few groups for two folds.
    """
    usable = rows.groupby("kl_grade")[group].nunique()
    folds = min(FOLDS, usable.min())
    names = FEATURES if folds > 1 and len(usable) > 1 else ()
    results = [_predicted(name, rows, group, folds, seed, draws) for name in names]
    return pd.DataFrame(results, columns=PREDICTED)


def _predicted(name, rows, group, folds, seed, draws):
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    features, grades = rows[FEATURES[name]].to_numpy(float), rows["kl_grade"].to_numpy()
    row = {"features": name, "n": len(rows), "chance": 1 / len(np.unique(grades)), "above_chance": False}
    if (features == features[0]).all():
        return row
    model = HistGradientBoostingClassifier(
        max_iter=50, max_depth=3, class_weight="balanced", early_stopping=False, random_state=seed
    )
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with threadpool_limits(1):  # trees this small wait longer for a second thread than they gain
        predicted = cross_val_predict(model, features, grades, groups=rows[group], cv=parts)
    observed = metrics.from_confusion(metrics.confusion(grades, predicted))
    drawn = metrics.from_confusion(stats.group_bootstrap(grades, predicted, rows[group], draws, seed))
    low, high = stats.interval(drawn["balanced_accuracy"])
    return row | {
        "balanced_accuracy": float(observed["balanced_accuracy"]),
        "ci_low": low,
        "ci_high": high,
        "qwk": float(observed["qwk"]),
        "above_chance": low > row["chance"],
    }


def reader_agreement(rows):
    """Agreement of two readers on the same pixels: pictures, confusion, its metrics; None with one reader."""
    both = rows[rows["kl_grade_reader2"].notna()]
    if both.empty:
        return None
    cm = metrics.confusion(both["kl_grade"].to_numpy(), both["kl_grade_reader2"].to_numpy(dtype=int))
    return {"pictures": len(both), "confusion": cm, **metrics.from_confusion(cm)}


def meaning(finding):
    """What a finding says, in a few plain words."""
    if " across " in finding:
        return "belong together and lie in several parts"
    return MEANING.get(finding, "equal to, or alike, a picture of the other cohort")


def in_words(result):
    """What an audit found about folds, near-duplicates and pictures of the other cohort, in sentences."""
    found = result.findings
    told = found[found["finding"].str.contains("patients across image-level|^near-duplicates$|^also in")]
    return " ".join(
        f"{row.cohort}: {row.finding}, {row.groups:,} groups of {row.files:,} pictures."
        for row in told.itertuples()
    )


def one_of_each_oddity(result):
    """The first file of each kind of odd picture: finding, short (for a title), cohort, image_id."""
    odd = result.affected_files.drop_duplicates("finding").assign(short=lambda rows: rows["finding"].map(ODD))
    return odd.dropna(subset="short").reset_index(drop=True)


def as_text(result):
    """Findings and sets for the terminal."""
    lines = [
        f"  {row.finding:<54}{row.groups:>7,}{row.files:>7,}  {row.detail}"
        for row in result.findings.itertuples()
    ]
    sets = ", ".join(f"{name.replace('_', ' ')} {result.sets[name].sum():,}" for name in SUBSETS)
    return "\n".join([f"  {'finding':<54}{'groups':>7}{'files':>7}", *lines, f"derived sets: {sets}"])
