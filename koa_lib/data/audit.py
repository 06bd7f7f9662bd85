"""Data audit: what repeats, contradicts, leaks or looks odd in a cohort, found in its files."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from koa_lib import metrics, splits, stats
from koa_lib.data.looks import INTENSITY, THRESHOLD, near_groups
from koa_lib.data.sets import SUBSETS, conflicting, subset, two_knees
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.store import write_table

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


class Audit(NamedTuple):
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

    def write(self, folder, names=None):
        """Write its tables, or those of these names, as CSV, e.g. findings.csv."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in names or self._fields:
            write_table(Path(folder, f"{name}.csv"), getattr(self, name))


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
    results, known = [], None
    for name, rows in inspected.items():
        results.append(audit(rows, name, seed, draws, known))
        known = rows.assign(cohort=name) if known is None else known
    return Audit(*(pd.concat(tables, ignore_index=True) for tables in zip(*results, strict=True)))


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
    left_out = inspected[~inspected["readable"]]
    found = [("unreadable files", left_out, "image_id", "left out of the rest of the audit")]
    for check in (_pictures(rows), _leaks(rows, seed), _oddities(rows), _shortcut(rows, betrayed)):
        found += [(name, rows[affected], group, detail) for name, affected, group, detail in check]
    found += _shared(rows, known)
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


# Each check gives findings: name, whether each row is affected, the column that groups them, and the rule or
# a remark.


def _pictures(rows):
    near = conflicting(rows, "near_group", "pixel_sha256")  # groups that hold more than copies of one picture
    changed = "re-encoded or changed copies; 'koa data verify' tells which"
    unique = f"{rows['pixel_sha256'].nunique():,} unique pictures of {len(rows):,}"
    rule = (
        f"perceptual hashes differ in at most {THRESHOLD} of 256 bits, pixels not equal; "
        f"{rows['near_group'].nunique():,} groups remain"
    )
    readers, agreed = "one reader only", reader_agreement(rows)
    if agreed:
        readers = (
            f"of {agreed['pictures']} pictures with two grades: kappa {agreed['kappa']:.3f}, "
            f"linear {agreed['linear_kappa']:.3f}, quadratic {agreed['qwk']:.3f}"
        )
    second = rows["kl_grade_reader2"].fillna(rows["kl_grade"])
    return [
        ("suffix and content differ", rows["problem"].notna(), "image_id", "read by their content"),
        ("pixels differ from the manifest", ~rows["as_in_manifest"], "image_id", changed),
        ("equal pixels", rows.duplicated("pixel_sha256", keep=False), "pixel_sha256", unique),
        (
            "equal pixels under different grades",
            conflicting(rows),
            "pixel_sha256",
            "left out of the deduplicated set",
        ),
        ("near-duplicates", near, "near_group", rule),
        (
            "near-duplicates under different grades",
            near & conflicting(rows, "near_group"),
            "near_group",
            "kept in the sets, resampled together",
        ),
        ("readers disagree", second != rows["kl_grade"], "image_id", readers),
    ]


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
            across = conflicting(rows.assign(part=parts), group, "part")
            rule = f"in more than one of {parts.nunique()} parts, of {rows[group].nunique():,} {what} in all"
            yield f"{what} across {place}", across, group, rule


def _folds(pairs, rows):
    number = pd.Series(0, rows.index)
    for fold, (_, held_out) in enumerate(pairs):
        number.iloc[held_out] = fold
    return number


def _oddities(rows):
    double, sizes = two_knees(rows), rows[["width", "height"]].value_counts()
    width, height = sizes.index[0]
    other = (rows["width"].ne(width) | rows["height"].ne(height)) & ~double
    listed = "; ".join(f"{wide} x {high}: {n:,}" for (wide, high), n in sizes.head(4).items())
    modes = ", ".join(f"{mode} {n:,}" for mode, n in rows["mode"].value_counts().items())
    table = {
        "inverted pictures": (
            rows["polarity"] < INVERTED,
            f"correlation with the cohort's median picture below {INVERTED:g}",
        ),
        "two knees in one picture": (double, "width at least 3 times the height"),
        "other sizes": (other, f"one knee, not {width} x {height}; all sizes: {listed}"),
        "16-bit pictures": (rows["bit_depth"] == 16, f"file modes: {modes}"),
        "colour pictures": (rows["channels"] == 3, "averaged when read"),
    }
    return [(name, odd, "near_group", detail) for name, (odd, detail) in table.items()]


def _shortcut(rows, betrayed):
    told = betrayed.set_index("features").reindex(["size and depth", "gray values"])
    for row in told.itertuples():
        detail = (
            f"balanced accuracy {row.balanced_accuracy:.2f} ({row.ci_low:.2f} to {row.ci_high:.2f}), "
            f"chance {row.chance:.2f}"
        )
        detail = "all files are alike" if pd.isna(row.balanced_accuracy) else detail
        detail = "too few pictures of a grade to tell" if pd.isna(row.chance) else detail
        yield f"{row.Index} predict the grade", [row.ci_low > row.chance] * len(rows), "near_group", detail


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

    features, grades = rows[FEATURES[name]], rows["kl_grade"]
    row = {"features": name, "n": len(rows), "chance": 1 / grades.nunique(), "above_chance": False}
    if (features.nunique() == 1).all():
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
    row |= {"ci_low": low, "ci_high": high, "above_chance": low > row["chance"]}
    return row | {name: float(observed[name]) for name in ("balanced_accuracy", "qwk")}


def reader_agreement(rows):
    """Agreement of two readers on the same pixels: pictures, confusion, its metrics; None with one reader."""
    both = rows.dropna(subset="kl_grade_reader2")
    if both.empty:
        return None
    cm = metrics.confusion(both["kl_grade"], both["kl_grade_reader2"])
    return {"pictures": len(both), "confusion": cm, **metrics.from_confusion(cm)}


def two_readers(inspected):
    """Grades of two readers on the same pixels, for the cohorts that have a second one.

    Parameters
    ----------
    inspected : dict of str to DataFrame
        Cohort to its rows, as for `audit_all`.

    Returns
    -------
    DataFrame
        cohort, reader_1, "reader II: KL 0" to 4 (pictures), and of the whole cohort n, accuracy, kappa,
        linear_kappa, qwk; empty when no cohort has a second reader.
    """
    agreed = {name: reader_agreement(rows) for name, rows in inspected.items()}
    columns, tables = [f"reader II: KL {grade}" for grade in GRADES], []
    for cohort, found in agreed.items():
        if found:
            whole = {name: float(found[name]) for name in ("accuracy", "kappa", "linear_kappa", "qwk")}
            named = pd.DataFrame({"cohort": cohort, "reader_1": GRADES})
            counts = pd.DataFrame(found["confusion"], columns=columns)
            tables.append(named.join(counts).assign(n=found["pictures"], **whole))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def side_by_side(findings):
    """Findings of several cohorts: finding, what it means, and of each cohort groups, files and detail.

    Parameters
    ----------
    findings : DataFrame
        Of an `Audit`.
    """
    table = pd.DataFrame({"finding": findings["finding"].drop_duplicates()})
    for cohort, part in findings.groupby("cohort", sort=False):
        found = part.set_index("finding")[["groups", "files", "detail"]]
        found = found.astype({"groups": "Int64", "files": "Int64"})
        table = table.join(found.add_prefix(f"{cohort} "), on="finding")
    return table.assign(meaning=table["finding"].map(meaning)).reset_index(drop=True)


def meaning(finding):
    """What a finding says, in a few plain words."""
    if " across " in finding:
        return "belong together and lie in several parts"
    return MEANING.get(finding, "equal to, or alike, a picture of the other cohort")


def as_text(result):
    """Findings and sets for the terminal."""
    lines = [
        f"  {row.finding:<54}{row.groups:>7,}{row.files:>7,}  {row.detail}"
        for row in result.findings.itertuples()
    ]
    sets = ", ".join(f"{name.replace('_', ' ')} {result.sets[name].sum():,}" for name in SUBSETS)
    return "\n".join([f"  {'finding':<54}{'groups':>7}{'files':>7}", *lines, f"derived sets: {sets}"])
