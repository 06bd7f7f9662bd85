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

KNOWN = np.eye(5, dtype=np.float32) + 0.01


def features(part, values=None):
    """Embeddings of a part, by default its grades themselves."""
    return sources.Features(part, (KNOWN[part.grades] if values is None else values)[None])


@pytest.fixture
def parts():
    return easy_dataset(60, 16, "fit"), easy_dataset(40, 16, "select", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_learns_what_embeddings_hold(kind, parts):
    found = Classifier(kind, 16).fit(*map(features, parts), 0)
    probabilities = found.probabilities(KNOWN)
    assert probabilities.shape == (5, 5) and probabilities.sum(1) == pytest.approx(1)
    assert probabilities.argmax(1).tolist() == [0, 1, 2, 3, 4] and found.kappa == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("roles", [("report", "select"), ("fit", "report"), ("fit", "fit")])
def test_nothing_is_fitted_or_chosen_on_what_is_reported(kind, roles):
    with pytest.raises(StudyError, match="nothing is fitted or chosen"):
        Classifier(kind, 8).fit(*(features(easy_dataset(60, 16, role)) for role in roles), 0)


def grid(kind):
    """Every setting with its untrained model, in the order in which equals are decided."""
    if kind != "XGBoost":
        return {
            (penalty,): make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
            for penalty in classifiers.PENALTIES
        }
    from xgboost import XGBClassifier

    settings = [(depth, rounds) for depth in classifiers.DEPTHS for rounds in (4, 8, 16)]
    return {
        one: XGBClassifier(max_depth=one[0], n_estimators=one[1], random_state=0, **classifiers.BOOSTING)
        for one in settings
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_setting_of_the_inner_part_is_fitted_on_both_parts(kind, parts, tmp_path):
    rng = np.random.default_rng(11)  # neither the first nor the last setting is the best
    noisy = [(KNOWN[part.grades] + rng.normal(0, 0.8, (len(part), 5))).astype(np.float32) for part in parts]
    found = Classifier(kind, 16).fit(*map(features, parts, noisy), 0)
    grades, kappas = [part.grades for part in parts], {}
    for settings, model in grid(kind).items():
        predicted = model.fit(noisy[0], grades[0]).predict(noisy[1])
        kappas[settings] = cohen_kappa_score(grades[1], predicted, weights="quadratic")
    best = max(kappas, key=kappas.get)
    assert len(set(kappas.values())) > 1 and found.kappa == pytest.approx(kappas[best])
    again = grid(kind)[best].fit(np.concatenate(noisy), np.concatenate(grades))
    assert found.probabilities(noisy[1]) == pytest.approx(again.predict_proba(noisy[1]), abs=1e-5)
    classifiers.write(tmp_path / "note.json", lambda: found)
    settings, kappa = classifiers.chosen(tmp_path / "note.json")
    assert tuple(settings.values()) == best and kappa == pytest.approx(kappas[best])


@pytest.mark.parametrize("kind", KINDS)
def test_a_grade_that_was_not_fitted_gets_no_probability_and_does_not_choose(kind, parts):
    fit, select = parts
    some = fit.part(np.flatnonzero(np.isin(fit.grades, (0, 3))), "fit")
    found = Classifier(kind, 4).fit(sources.Features(some, features(fit).array), features(select), 0)
    probabilities = found.probabilities(KNOWN)
    assert (probabilities[:, [1, 2, 4]] == 0).all() and probabilities.sum(1) == pytest.approx(1)
    assert found.kappa == 1


def test_one_grade_alone_is_refused(parts):
    fit, select = parts
    with pytest.raises(StudyError, match="same grade"):
        Classifier("XGBoost", 4).fit(
            features(fit.part(np.flatnonzero(fit.grades == 2), "fit")), features(select), 0
        )
