"""What the grades are called in words: Table 1 and the prompt sets,
worded as in Table 1 and section 4.4 of the paper (doi:10.3390/jpm16060314)."""

from koa_lib.grades import GRADES, NAMES

_WORDS = ("none", "doubtful", "mild", "moderate", "severe")
_FINDINGS = (
    "definite absence of X-ray changes of osteoarthritis",
    "doubtful joint space narrowing and possible osteophytic lipping",
    "definite osteophytes and possible joint space narrowing",
    "moderate multiple osteophytes, definite narrowing of joint space, some sclerosis, "
    "and possible deformity of bone ends",
    "large osteophytes, marked narrowing of joint space, severe sclerosis, "
    "and definite deformity of bone ends",
)

# Table 1 numbers its rows 1-5 although KL grades run 0-4: kept as printed, and corrected beside it.
PROMPT_SETS = {
    "as_printed": tuple(f"Grade {g + 1} ({_WORDS[g]}): {_FINDINGS[g]}" for g in GRADES),
    "corrected": tuple(f"Grade {g} ({_WORDS[g]}): {_FINDINGS[g]}" for g in GRADES),
    "no_digits": tuple(f"{_WORDS[g]}: {_FINDINGS[g]}" for g in GRADES),
    # Section 3.3 prints only "this is Mild OA"; the other four are our reading.
    "template": tuple(f"this is {name} OA" for name in NAMES),
    "queries": ("Normal knee", "Doubtful osteoarthritis", "Mild osteoarthritis", "Moderate osteoarthritis",
                "Severe knee"),
}
TABLE_1 = PROMPT_SETS["as_printed"]


def prompts(name):
    """The five prompts of a named set, grade 0 first.

    Raises
    ------
    KeyError
        When the set is unknown; the message lists the known ones.
    """
    if name not in PROMPT_SETS:
        raise KeyError(f"prompt set '{name}' is unknown; known: {', '.join(PROMPT_SETS)}")
    return PROMPT_SETS[name]
