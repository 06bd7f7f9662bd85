"""Captions for pre-training: anatomy and findings in free wording, never a grade."""

from koa_lib.phantoms.findings import level

# One tuple of wordings for each level of a finding, see `findings.LIMITS`.
_WORDINGS = {
    "jsn": (("no", "absent"), ("doubtful", "possible"), ("definite", "clear"), ("marked", "severe")),
    "osteophytes": (
        ("no osteophytes", "smooth margins without spurs"),
        ("possible osteophytic lipping", "doubtful small osteophytes"),
        ("definite osteophytes", "definite moderate osteophytes"),
        ("large osteophytes", "multiple large osteophytes"),
    ),
    "sclerosis": (
        ("no sclerosis", "normal subchondral bone"),
        ("faint sclerosis", "slight sclerosis"),
        ("some sclerosis", "moderate sclerosis"),
        ("severe sclerosis", "dense severe sclerosis"),
    ),
    "deformity": (
        ("regular bone ends", "no deformity of bone ends"),
        ("possible deformity of bone ends", "slightly flattened bone ends"),
        ("definite deformity of bone ends", "deformed bone ends"),
    ),
}
_NARROWING = ("{word} {place}joint space narrowing", "{word} narrowing of the {place}joint space")
_HEADS = {
    "knee": (
        "radiograph of a {side} knee",
        "frontal view of a {side} knee",
        "{side} knee, standing",
        "knee joint, {side}",
    ),
    "hand": (
        "radiograph of a hand with fingers and wrist",
        "frontal view of a hand, five digits",
        "bones of a hand",
    ),
    "hip": (
        "radiograph of a hip with femoral head and pelvis",
        "frontal view of a hip",
        "hip joint and acetabulum",
    ),
    "chest": (
        "radiograph of a chest with lungs, ribs, heart",
        "frontal view of the thorax",
        "chest with clear lungs",
    ),
}
_WHOLE = ("absence of osteoarthritis", "normal joint", "no X-ray changes")


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
    head = _one(_HEADS[kind], rng).format(side="left" if side == "L" else "right")
    if not findings:
        return head
    spurs, *rest = (_words(name, findings, rng) for name in ("osteophytes", "sclerosis", "deformity"))
    narrowed = level("jsn", findings.jsn)
    compartment = "medial " if findings.medial_jsn >= findings.lateral_jsn else "lateral "
    narrowing = _one(_NARROWING, rng).format(
        word=_words("jsn", findings, rng), place=compartment if narrowed else ""
    )
    if narrowed == level("osteophytes", findings.osteophytes) == 0:
        rest.append(_one(_WHOLE, rng))
    # The two findings that carry most come first; wording and the rest vary.
    rest = rng.permutation(rest)
    return ", ".join([head, *rng.permutation([narrowing, spurs]), *rest])


def _words(name, findings, rng):
    return _one(_WORDINGS[name][level(name, getattr(findings, name))], rng)


def _one(wordings, rng):
    return str(rng.choice(wordings))
