"""The format shortcut test: how well do a file's format and the statistics of its gray values predict the grade?

Where they do, a model may have learnt the scanner, the exposure or the clinic instead of the knee. Gray values also
carry some anatomy (sclerosis is bright), so a little above chance need not be a fault.
"""

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.data.inspection import INTENSITY

FORMAT = ["width", "height", "bit_depth", "channels"]
FEATURES = {"size and depth": FORMAT, "gray values": INTENSITY, "both": [*FORMAT, *INTENSITY]}
FOLDS = 5


def predictability(rows, group, seed=0, draws=1000):
    """Cross-validated prediction of the grade from format and intensity statistics alone.

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
    folds = min(FOLDS, int(usable.min()))
    if folds < 2 or len(usable) < 2:
        return pd.DataFrame(columns=["features", "n", "balanced_accuracy", "ci_low", "ci_high", "chance", "qwk", "above_chance"])
    return pd.DataFrame([_row(name, rows, columns, group, folds, seed, draws) for name, columns in FEATURES.items()])


def _row(name, rows, columns, group, folds, seed, draws):
    grades, chance = rows["kl_grade"].to_numpy(), 1 / rows["kl_grade"].nunique()
    if (rows[columns].nunique() == 1).all():
        nothing = dict.fromkeys(("balanced_accuracy", "ci_low", "ci_high"), np.nan)
        return {"features": name, "n": len(rows), **nothing, "chance": chance, "qwk": np.nan, "above_chance": False}
    predicted = _predict(rows[columns].to_numpy(float), grades, rows[group], folds, seed)
    observed = metrics.from_confusion(metrics.confusion(grades, predicted))
    drawn = metrics.from_confusion(stats.group_bootstrap(grades, predicted, rows[group], draws, seed))
    low, high = stats.interval(drawn["balanced_accuracy"])
    return {"features": name, "n": len(rows), "balanced_accuracy": float(observed["balanced_accuracy"]), "ci_low": low, "ci_high": high,
            "chance": chance, "qwk": float(observed["qwk"]), "above_chance": low > chance}


def _predict(features, grades, groups, folds, seed):
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    predicted = np.zeros(len(grades), dtype=int)
    with threadpool_limits(1):  # trees this small wait longer for a second thread than they gain
        for fit, out in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, grades, groups):
            model = HistGradientBoostingClassifier(max_iter=50, max_depth=3, class_weight="balanced", early_stopping=False, random_state=seed)
            predicted[out] = model.fit(features[fit], grades[fit]).predict(features[out])
    return predicted
