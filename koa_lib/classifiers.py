"""Classifiers of scikit-learn and XGBoost on cached embeddings."""

import json
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.metrics import confusion, from_confusion
from koa_lib.store import write_text
from koa_lib.training import check_role

# What may be chosen between (our reading), simplest first: equals are decided for it.
PENALTIES, DEPTHS, SHARES_OF_TREES = (0.01, 0.1, 1.0), (2, 4), (4, 2, 1)
BOOSTING = {"learning_rate": 0.2, "subsample": 0.8, "colsample_bytree": 0.3, "max_bin": 64}
KINDS = BOOSTED, LOGISTIC = ("XGBoost", "logistic regression")


def linear(C=1.0):
    """Logistic regression on standardised embeddings."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


@dataclass(frozen=True)
class Classifier:
    """A classifier to be fitted; of `KINDS`. `trees` is the largest number of boosting rounds."""

    kind: str
    trees: int = 0

    def fit(self, fit, select, seed):
        """Try every setting on `fit`, keep the one with the best quadratic kappa on `select`, and fit it once
        more on both.

        Parameters
        ----------
        fit, select : sources.Features
            Roles 'fit' and 'select'; unchanged pictures are used. Grades that the fitted part lacks do not
            choose.

        Returns
        -------
        Fitted

        Raises
        ------
        StudyError
            A part with another role, or one grade alone in the fitted part.
        """
        for part, role in ((fit, "fit"), (select, "select")):
            check_role(part, role)
        levels = np.unique(fit.grades)
        if len(levels) < 2:
            raise StudyError(
                "All fitted pictures have the same grade: there is nothing to tell apart. Add pictures of "
                "other grades."
            )
        known = np.isin(select.grades, levels)
        pictures = np.concatenate([fit.all(), select.all()[known]])
        numbers = np.searchsorted(levels, np.concatenate([fit.grades, select.grades[known]]))
        inner = PredefinedSplit(np.repeat([-1, 0], [len(fit), known.sum()]))

        def kappa(model, embeddings, truth):
            given = levels[model.predict(embeddings)]
            return float(np.nan_to_num(from_confusion(confusion(levels[truth], given))["qwk"]))

        search = GridSearchCV(*self._candidates(seed), scoring=kappa, cv=inner).fit(pictures, numbers)
        return Fitted(search.best_params_, search.best_score_, levels, search.best_estimator_)

    def _candidates(self, seed):
        if self.kind != "XGBoost":
            return linear(), {"logisticregression__C": PENALTIES}
        from xgboost import XGBClassifier  # takes two seconds to import

        rounds = sorted({max(1, self.trees // share) for share in SHARES_OF_TREES})
        return XGBClassifier(random_state=seed, **BOOSTING), {"max_depth": DEPTHS, "n_estimators": rounds}


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier: the settings that it chose and their quadratic kappa on the inner part."""

    settings: dict
    kappa: float
    levels: np.ndarray
    model: object

    def probabilities(self, embeddings):
        """Embeddings (n, d) to probabilities (n, 5); a grade that the fitted part lacks gets 0."""
        out = np.zeros((len(embeddings), len(GRADES)))
        out[:, self.levels] = self.model.predict_proba(embeddings)
        return out / out.sum(1, keepdims=True)


def write(path, fitted):
    """Note what a classifier chose; `fitted` gives it."""
    made = fitted()
    settings = {name.removeprefix("logisticregression__"): value for name, value in made.settings.items()}
    write_text(path, json.dumps({"settings": settings, "qwk": made.kappa}))


def chosen(path):
    """What `write` noted: (settings, quadratic kappa on the inner part)."""
    with open(path, encoding="utf-8") as file:
        note = json.load(file)
    return note["settings"], note["qwk"]
