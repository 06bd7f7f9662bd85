"""Classifiers of scikit-learn on frozen embeddings."""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def linear(C=1.0):
    """Logistic regression with an L2 penalty on standardised embeddings, untrained."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
