"""Captions for pre-training: anatomy and findings in free wording, never a grade."""

import numpy as np

_LEVELS = {
    "jsn": ((0.22, 0.45, 0.72), (("preserved", "normal", "of full width"), ("slightly narrowed", "doubtfully narrowed", "a little reduced"),
                                 ("clearly narrowed", "definitely narrowed", "reduced"), ("markedly narrowed", "almost gone", "bone on bone"))),
    "osteophytes": ((0.16, 0.36, 0.7), (("no osteophytes", "smooth margins without spurs", "absence of osteophytes"),
                                        ("possible lipping", "tiny doubtful osteophytes", "minute spurs at the margin"),
                                        ("definite osteophytes", "definite marginal spurs", "several osteophytes"),
                                        ("large osteophytes", "multiple large spurs", "bulky osteophytes on both sides"))),
    "sclerosis": ((0.2, 0.4, 0.6), (("no sclerosis", "normal subchondral bone"), ("faint sclerosis", "slightly dense subchondral bone"),
                                    ("some sclerosis", "dense subchondral bone"), ("severe sclerosis", "very dense subchondral bone"))),
    "deformity": ((0.3, 0.55), (("regular bone ends", "well shaped bone ends"), ("possible deformity of the bone ends", "slightly flattened bone ends"),
                                ("deformed bone ends", "definite deformity of the bones"))),
}
_OTHERS = {
    "hand": ("radiograph of a hand with fingers and wrist", "frontal view of a hand, five digits", "bones of a hand"),
    "hip": ("radiograph of a hip with femoral head and pelvis", "frontal view of a hip joint", "hip joint and acetabulum"),
    "chest": ("radiograph of a chest with lungs, ribs and heart", "frontal view of the thorax", "chest with clear lungs"),
}
_KNEES = ("radiograph of a {side} knee", "frontal view of a {side} knee", "{side} knee, standing", "knee joint, {side}")
_WHOLE = ("no changes of osteoarthritis", "normal knee", "healthy joint")


def caption(kind, findings, side, rng):
    """A sentence about a phantom.

    Parameters
    ----------
    kind : {'knee', 'hand', 'hip', 'chest'}
    findings : Findings or None
    side : {'L', 'R', ''}
    rng : numpy Generator
        Chooses the wording and the order of the findings.
    """
    if kind != "knee":
        return str(rng.choice(_OTHERS[kind]))
    head = str(rng.choice(_KNEES)).format(side={"L": "left", "R": "right"}[side])
    parts = [_narrowing(findings, rng), *(_level(name, getattr(findings, name), rng) for name in ("osteophytes", "sclerosis", "deformity"))]
    if findings.jsn < 0.22 and findings.osteophytes < 0.16:
        parts.append(str(rng.choice(_WHOLE)))
    # The two findings that carry most come first; wording and the rest vary.
    rest = [parts[k] for k in 2 + rng.permutation(len(parts) - 2)]
    return ", ".join([head, *(parts[k] for k in rng.permutation(2)), *rest])


def _narrowing(findings, rng):
    medial = findings.medial_jsn >= findings.lateral_jsn
    word = _level("jsn", findings.jsn, rng)
    place = ("medial" if medial else "lateral") + " " if findings.jsn >= 0.22 else ""
    return f"{place}joint space {word}"


def _level(name, value, rng):
    limits, wordings = _LEVELS[name]
    return str(rng.choice(wordings[int(np.searchsorted(limits, value, side="right"))]))
