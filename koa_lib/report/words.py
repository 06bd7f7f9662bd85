"""Names for people: what arms, cohorts and other codes of the files are called on the pages. Files keep the
codes."""

import re

# Codes that are no words: replaced wherever they stand.
_CODES = {
    "clip-as_printed": "CLIP as printed", "clip-our_protocol": "CLIP by our protocol",
    "clip-as_printed-patients": "CLIP as printed, folds over patients",
    "as_printed": "as printed", "our_protocol": "our protocol",
    "phantom_a": "phantom cohort A", "phantom_b": "phantom cohort B",
    "oai_chen2018": "OAI (Chen 2018)", "gornale2020": "Gornale 2020",
    "held_out": "held-out fold", "center_crop": "centre crop", "joint_crop": "joint crop",
    "match_train": "matched to training", "no_digits": "no digits", "last_blocks": "last blocks",
    "full_image": "full image tower", "both_encoders": "both encoders", "jpm2026": "the paper",
}
# Words of a file that need another only where they are all that a cell says.
_CELLS = {"train": "training part", "val": "validation split", "test": "test split",
          "external": "external cohort", "auto_test": "automatic crops", "queries": "short queries"}
# What a part of a cohort is for, by the roles of `cohorts.yaml`.
USES = {"training": "fitting and choosing", "internal test": "reported once",
        "external": "external evaluation, no confirmatory choice uses it"}
_CODE = re.compile(
    rf"(?<![\w/.-])(?:{'|'.join(sorted(map(re.escape, _CODES), key=len, reverse=True))})"
    r"(?![\w/-]|\.\w)")
_ITEM = re.compile(r"(?<![\w/#.-])(table|figure)_(\d)(?![\w.])")
_PER_CENT, _MINUS = re.compile(r"(?<=\d) ?%(?!\w)"), re.compile(r"(?:^|(?<=[\s(\[]))-(?=\.?\d)")


def people(text):
    """A text with the codes of files, and of items of the paper, replaced by what people call them."""
    text = _CODE.sub(lambda found: _CODES[found[0]], _CELLS.get(text, text))
    return _ITEM.sub(lambda found: f"{found[1].capitalize()} {found[2]}", text)


def typeset(text):
    """One style of numbers: "47%" becomes "47 %" that stays on one line, "-0.3" gets a minus sign."""
    return _MINUS.sub("−", _PER_CENT.sub("\N{NO-BREAK SPACE}%", text))


def capital(text):
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]
