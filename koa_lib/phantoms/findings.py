"""Latent findings of a knee: how they are drawn, the KL grade that follows, and how a reader sees it.

Severity is one standard normal number per knee; findings follow it with some freedom; the rules below turn
findings into the true grade; a reader's label differs from it by a neighbour at most.
"""

from dataclasses import astuple, dataclass

import numpy as np
from scipy.special import ndtr

# Shares of severity that lead to the five grades. Labels come near Chen's mix (0.394, 0.181, 0.263, 0.131,
# 0.030) in A with Chen's own shares; in B, near Gornale's (0.312, 0.289, 0.141, 0.134, 0.125), with shares
# found by trial.
MIX_A = (0.394, 0.181, 0.263, 0.131, 0.031)
MIX_B = (0.23, 0.43, 0.04, 0.15, 0.15)
# Where a finding becomes possible, definite and severe: the 0-3 grades of a manifest, and the words of a
# caption.
LIMITS = {
    "jsn": (0.22, 0.45, 0.72),
    "osteophytes": (0.16, 0.36, 0.70),
    "sclerosis": (0.20, 0.40, 0.60),
    "deformity": (0.30, 0.55),
}
SPREAD = 0.05  # of a finding around what the severity suggests
# Log of the factor by which a reader over- or under-reads a picture. True grades against labels have a
# quadratic kappa of 0.877 in A and 0.889 in B, which is the limit of a perfect grader.
READER_NOISE = 0.5


@dataclass(frozen=True)
class Findings:
    """Continuous latent findings in [0, 1]; 0 is a healthy knee."""

    medial_jsn: float
    lateral_jsn: float
    osteophytes: float
    sclerosis: float
    deformity: float

    @property
    def jsn(self):
        """Joint-space narrowing of the worse compartment."""
        return max(self.medial_jsn, self.lateral_jsn)


def kl_grade(findings):
    """KL grade 0-4 by rules that are nested, so that no finding can lower the grade when it grows.

    1: doubtful narrowing or possible lipping; 2: definite osteophytes; 3: with definite narrowing; 4: with
    marked narrowing and severe sclerosis or deformed bone ends (Kellgren and Lawrence 1957).
    """
    lipping, osteophytes, _ = LIMITS["osteophytes"]
    doubtful, narrowing, marked = LIMITS["jsn"]
    ends = max(findings.sclerosis - LIMITS["sclerosis"][2], findings.deformity - LIMITS["deformity"][1])
    if findings.osteophytes < osteophytes:
        return int(findings.osteophytes >= lipping or findings.jsn >= doubtful)
    if findings.jsn < narrowing:
        return 2
    return 4 if findings.jsn >= marked and ends >= 0 else 3


def finding_grades(findings):
    """Semi-quantitative grades 0-3 of osteophytes, joint-space narrowing and sclerosis."""
    return {name: level(name, getattr(findings, name)) for name in ("osteophytes", "jsn", "sclerosis")}


def level(name, value):
    """How many limits of a finding a value has reached."""
    return int(np.searchsorted(LIMITS[name], value, side="right"))


def draw_findings(severity, mix, rng):
    """Findings of a knee of some severity (standard normal), so that grades come close to a mix."""
    share, (a, b, c, d) = ndtr(severity), np.cumsum(mix)[:4]
    osteophytes = np.interp(share, (0, a, b, c, 1), (0.0, 0.11, 0.40, 0.66, 1.0))
    narrowing = np.interp(share, (0, a, b, c, d, 1), (0.0, 0.10, 0.22, 0.42, 0.56, 1.0))
    sclerosis = np.interp(share, (0, b, c, d, 1), (0, 0.1, 0.33, 0.60, 1.0))
    deformity = np.interp(share, (0, c, d, 1), (0, 0.2, 0.5, 1.0))
    other = narrowing * rng.uniform(0, 0.7)
    medial, lateral = (narrowing, other) if rng.random() < 0.75 else (other, narrowing)
    values = np.array([medial, lateral, osteophytes, sclerosis, deformity])
    return _clipped(values + rng.normal(0, SPREAD, 5) * (share > 0.05))


def read(findings, rng):
    """A reader's label: the rules on findings that are over- or under-read, at most one grade off."""
    truth = kl_grade(findings)
    perceived = kl_grade(_clipped(np.array(astuple(findings)) * np.exp(rng.normal(0, READER_NOISE))))
    return min(max(perceived, truth - 1), truth + 1)


def _clipped(values):
    return Findings(*np.clip(values, 0, 1).tolist())
