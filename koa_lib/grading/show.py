"""`koa grade`: graded pictures as text for the terminal, as JSON lines and as one HTML page."""

import base64
import io
import json
import sys

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageOps
from rich.console import Console
from tqdm import tqdm

from koa_lib.errors import StudyError, printable
from koa_lib.grading import export, predict
from koa_lib.grading.listing import listing, short_names
from koa_lib.store import write_text

NO_DEVICE = "This is research software and no medical device: not for diagnosis or treatment."
MANY = 20  # from so many pictures on a bar shows the progress
NAME, NUMBERS = 22, 23  # columns of a file's name, where the terminal has them, and of its numbers
SIDE = 320  # pixels of a picture's longer side on the page
TINT = np.array([255, 120, 0])  # orange: seen by most colour-blind readers, dark on white as on black


def run(given, weights=None, as_json=False, page=None):
    """What `koa grade` does; prints as it goes.

    Parameters
    ----------
    given : list of str
        As in `listing`.
    weights : str, optional
        Folder of exported weights; by default those of the newest run.
    page : Path, optional
        An HTML page to write, which does not exist yet.

    Returns
    -------
    int
        0 when every picture was graded, 1 when at least one could not be.

    Raises
    ------
    StudyError
        Wrong use: an empty name, no such weights, nothing to grade.
    """
    paths = listing(given, sys.stdin)
    if not paths:
        raise StudyError("The list names no picture. Give picture files, folders or lists of them.")
    model = predict.load(export.newest() if weights is None else weights, len(paths))
    names, graded = short_names(paths), _with_bar(predict.grade(model, paths), len(paths), "grading")
    rows = list((_as_json if as_json else _as_text)(model.card, names, graded))
    if page:
        write_page(page, model, names, rows)
        print(f"page written to {printable(str(page))}", file=sys.stderr)
    return int(any(row.problem for row in rows))


def _with_bar(rows, count, what):
    return tqdm(rows, what, count, unit="picture", disable=None if count >= MANY else True)


def facts(card):
    """What a reader of grades must know about the model: list of (name, text)."""
    found, known = card["performance"], card["novelty"]
    tested, kind = found.get("reason"), "synthetic phantoms" if card["synthetic"] else "radiographs"
    if "metrics" in found:
        accuracy, kappa = map(_interval, found["metrics"][:2])
        tested = (
            f"accuracy {accuracy}, quadratic kappa {kappa} (95 % intervals; {found['pictures']:,} "
            f"pictures, {found['groups']:,} patients, {found['split']} split of the same cohort)"
        )
    return [
        (
            "Model",
            "{name}, {image_size} px, {arm}, fold {fold}, seed {seed}; run '{run}', commit {commit}, "
            "data {data}, weights {weights_sha256:.8}".format_map(card),
        ),
        ("Trained on", f"{card['pictures']:,} {kind} of {card['groups']:,} patients ({card['cohort']})"),
        ("Held out", tested),
        (
            "Warnings",
            "'unlike the training pictures' was meant for {rate:.0%} of pictures of the same origin; "
            "on the {checked_on} split it came for {alarms} of {checked}".format_map(known),
        ),
    ]


def _interval(row):
    low_high = " ({ci_low:.2f} to {ci_high:.2f})".format_map(row) if row["ci_low"] is not None else ""
    return f"{row['value']:.2f}{low_high}"


def cautions(card):
    """What limits all grades of a model, as a list of sentences."""
    limits = {
        "synthetic": "The model knows synthetic phantoms only: its grades of real radiographs mean nothing.",
        "only_a_test": "The weights come from a test of the software (smoke or dry): grades mean nothing.",
    }
    return [text for key, text in limits.items() if card[key]]


def summary(rows):
    """One sentence that counts what came of the rows."""
    graded = sum(row.grade is not None for row in rows)
    text = f"{graded:,} of {len(rows):,} picture{'s' * (len(rows) != 1)} graded"
    if unlike := sum(row.novelty > 1 for row in rows):
        no_knee = sum(predict.NO_KNEE in row.warnings for row in rows)
        text += f"; {unlike:,} unlike the training pictures, {no_knee:,} of them probably no knee radiograph"
    return f"{text}."


def _as_text(card, names, graded):
    """Print a heading, a line per row and what all have in common; pass the rows on."""
    # Whole lines in a pipe; a terminal breaks them between words.
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
    room, card, rows = min(NAME, max(8, console.width - NUMBERS)), printable(card), []
    limits = (f"CAUTION: {text}\n" for text in cautions(card))
    console.print(*(f"{name + ':':11} {text}" for name, text in facts(card)), "", *limits, sep="\n")
    console.print(f"{'picture':{room}}  KL  probability of 0-4 in %")
    for name, row in zip(names, graded, strict=True):
        with tqdm.external_write_mode():  # the bar steps aside
            console.print(f"{printable(name):{room}}  {_line(row)}")
        rows.append(row)
        yield row
    warned = dict.fromkeys(f"! {printable(text)}" for row in rows for text in row.warnings if ":" in text)
    console.print("", *warned, *_scale(card), "", summary(rows), NO_DEVICE, sep="\n")


def _line(row):
    if row.problem:
        return f"-  not graded: {printable(row.problem)}"
    percent = " ".join(f"{100 * value:3.0f}" for value in row.probabilities)
    short = ", ".join(printable(text.partition(":")[0]) for text in row.warnings)
    return f"{row.grade} {percent}" + f"  ! {short}" * bool(short)


def _scale(card):
    note = "; as printed in the paper, which numbers them 1 to 5" * (card["prompts"] == "as_printed")
    yield f"Descriptions of the grades{note}:"
    for grade, name, text in zip(card["grades"], card["names"], card["descriptions"], strict=True):
        yield f"KL {grade}, {name.lower()}: {text}"


def _as_json(card, names, graded):
    """Print a line for the card and one per row; pass the rows on."""
    print(json.dumps(heading(card)), flush=True)
    for name, row in zip(names, graded, strict=True):
        with tqdm.external_write_mode():
            print(json.dumps(described(row, name)), flush=True)
        yield row


def heading(card):
    """A model's card as the first of the JSON lines: dict."""
    return {"type": "model", **card, "cautions": cautions(card), "not_a_medical_device": NO_DEVICE}


def described(row, name):
    """A graded row as one of the JSON lines: dict."""
    return {"type": "picture", "path": str(row.path), "name": name, **_values(row)}


def _values(row):
    if row.problem:
        return {"grade": None, "problem": row.problem}
    return {
        "grade": row.grade,
        "probabilities": [round(float(value), 6) for value in row.probabilities],
        "similarities": [round(float(value), 6) for value in row.similarities],
        "unlike_training": row.novelty > 1,
        "probably_no_knee": predict.NO_KNEE in row.warnings,
        "novelty": round(row.novelty, 4),
        "warnings": row.warnings,
    }


def write_page(target, model, names, rows):
    """Write one self-contained HTML page; pictures are read again, one by one."""
    loader, card = PackageLoader("koa_lib.grading", "."), printable(model.card)
    page = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.jinja")
    both = zip(printable(names), _with_bar(rows, len(rows), "page"), strict=True)
    entries = ({"name": name, "row": row, **_pictures(model, row)} for name, row in both)
    write_text(
        target,
        page.render(
            entries=entries,
            card=card,
            facts=facts(card),
            cautions=cautions(card),
            scale=_scale(card),
            summary=summary(rows),
            no_device=NO_DEVICE,
        ),
    )


def _pictures(model, row):
    if row.problem:
        return {"unseen": printable(row.problem)}
    try:
        image, square, heat = predict.look(model, row)
    except Exception as error:  # the file may be gone by now, or the memory: its grades stay
        return {"unseen": printable(f"It cannot be shown ({error}).")}
    share = 0.6 * heat[..., None]
    tinted = np.round((1 - share) * square[..., None] + share * TINT).astype(np.uint8)
    return {"picture": _uri(image), "map": _uri(tinted)}


def _uri(pixels):
    buffer = io.BytesIO()
    ImageOps.contain(Image.fromarray(pixels), (SIDE, SIDE)).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
