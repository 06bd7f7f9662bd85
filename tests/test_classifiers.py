"""Classifiers on embeddings: what they choose, what they are fitted on, and what they know."""

import numpy as np
import pytest
from conftest import easy_dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from koa_lib import classifiers, sources
from koa_lib.classifiers import KINDS, Classifier
from koa_lib.errors import StudyError

KNOWN = np.eye(5, dtype=np.float32) + 0.01  # the embedding of each grade
each_kind = pytest.mark.parametrize("kind", KINDS)


def features(role, kept=range(5), noise=0.0):
    """A part with so many grades, whose embeddings are its grades and some noise."""
    data = easy_dataset(60, 16, role)
    drawn = np.random.default_rng(len(role)).normal(0, noise, (60, 5))
    places = np.flatnonzero(np.isin(data.grades, list(kept)))
    return sources.Features(data.part(places, role), (KNOWN[data.grades] + drawn)[None].astype(np.float32))


@each_kind
@pytest.mark.parametrize("roles", [("report", "select"), ("fit", "report"), ("fit", "fit")])
def test_nothing_is_fitted_or_chosen_on_what_is_reported(kind, roles):
    with pytest.raises(StudyError, match="needed"):
        Classifier(kind, 8).fit(*map(features, roles), 0)


def grid(kind):
    """Every setting with its untrained model, in the order in which equals are decided."""
    if kind != "XGBoost":
        return {(penalty,): make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
                for penalty in classifiers.PENALTIES}
    from xgboost import XGBClassifier

    settings = [(depth, rounds) for depth in classifiers.DEPTHS for rounds in (4, 8, 16)]
    return {one: XGBClassifier(max_depth=one[0], n_estimators=one[1], random_state=0, **classifiers.BOOSTING)
            for one in settings}


@each_kind
def test_the_best_setting_of_the_inner_part_is_fitted_on_both_parts(kind, tmp_path):
    fit, select = features("fit", noise=0.8), features("select", noise=0.8)
    found, kappas = Classifier(kind, 16).fit(fit, select, 0), {}
    for settings, model in grid(kind).items():
        predicted = model.fit(fit.all(), fit.grades).predict(select.all())
        kappas[settings] = cohen_kappa_score(select.grades, predicted, weights="quadratic")
    best = max(kappas, key=kappas.get)
    assert len(set(kappas.values())) > 1 and found.kappa == pytest.approx(kappas[best])
    grades = np.concatenate([fit.grades, select.grades])
    again = grid(kind)[best].fit(np.concatenate([fit.all(), select.all()]), grades)
    assert found.probabilities(KNOWN) == pytest.approx(again.predict_proba(KNOWN), abs=1e-5)
    classifiers.write(tmp_path / "note.json", lambda: found)
    settings, kappa = classifiers.chosen(tmp_path / "note.json")
    assert tuple(settings.values()) == best and kappa == pytest.approx(kappas[best])


@each_kind
@pytest.mark.parametrize("fitted", [range(5), (0, 3)], ids=["all grades", "two"])
def test_fitted_grades_are_learned_and_others_get_no_probability_and_do_not_choose(kind, fitted):
    found = Classifier(kind, 16).fit(features("fit", fitted), features("select"), 0)
    probabilities = found.probabilities(KNOWN)
    assert probabilities.sum(1) == pytest.approx(1) and found.kappa == 1
    assert probabilities[list(fitted)].argmax(1).tolist() == list(fitted)
    assert (np.delete(probabilities, list(fitted), axis=1) == 0).all()


def test_one_grade_alone_is_refused():
    with pytest.raises(StudyError, match="same grade"):
        Classifier("XGBoost", 4).fit(features("fit", [2]), features("select"), 0)
