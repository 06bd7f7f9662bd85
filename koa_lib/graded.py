"""Graded pictures as text for the terminal, as JSON lines and as one HTML page."""

import base64
import io
import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from koa_lib import grading
from koa_lib.errors import StudyError, printable
from koa_lib.images.read import to_uint8
from koa_lib.listing import listing, short_names

NO_DEVICE = (
    "This is research software and no medical device: its grades must not be used for diagnosis or treatment."
)
FEW = 3  # up to so many pictures are told in detail
MANY = 20  # from so many on a bar shows the progress
# How warnings begin, and the word for them in a table's row; they are explained once below it.
SHORT = {
    grading.UNLIKE: "unlike",
    grading.NO_KNEE: "no knee",
    "colour": "colour",
    "file of": "several",
    "": "note",
}
LEAST = 20  # columns of a description, however narrow the terminal
NAME = 26  # columns of a file's name in the terminal
METRICS = {"accuracy": "accuracy", "qwk": "quadratic kappa"}
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
    from koa_lib import exported

    paths = listing(given, sys.stdin)
    if not paths:
        raise StudyError("The list names no picture. Give picture files, folders or lists of them.")
    model = grading.load(exported.newest() if weights is None else Path(weights))
    names = short_names(paths)
    write = _json_writer(model) if as_json else _text_writer(printable(model.card), len(paths))
    graded = _with_bar(grading.grade(model, paths), len(paths), "grading")
    rows = [_told(write, name, row) for name, row in zip(names, graded, strict=True)]
    if page:
        write_page(page, model, names, rows)
        print(f"page written to {printable(str(page))}", file=sys.stderr)
    if not as_json:
        told = explained(rows) if len(paths) > FEW else []
        print("\n".join(["", *told, *[""] * bool(told), summary(rows), NO_DEVICE]))
    return int(any(row.problem for row in rows))


def _told(write, name, row):
    write(name, row)
    return row


def _with_bar(rows, count, what):
    if count < MANY or not sys.stderr.isatty():
        return rows
    from tqdm import tqdm

    return tqdm(rows, total=count, desc=what, unit="picture", file=sys.stderr)


def facts(card):
    """One line per fact that a reader of grades must know about the model: lists of (name, text)."""
    found, known = card["performance"], card["novelty"]
    kind = "synthetic phantoms" if card["synthetic"] else "radiographs"
    values = {row["metric"]: row for row in found.get("metrics", [])}
    tested = ", ".join(
        f"{label} {_interval(values[name])}" for name, label in METRICS.items() if name in values
    )
    if tested:
        tested += (
            f" (95 % intervals; {found['pictures']:,} pictures, {found['groups']:,} patients, "
            f"{found['split']} split of the same cohort)"
        )
    return [
        (
            "Model",
            f"{card['name']}, {card['image_size']} px, {card['arm']}, fold {card['fold']}, seed "
            f"{card['seed']}; "
            f"run '{card['run']}', commit {card['commit']}, data {card['data']}, weights "
            f"{card['weights_sha256'][:8]}",
        ),
        ("Trained on", f"{card['pictures']:,} {kind} of {card['groups']:,} patients ({card['cohort']})"),
        ("Held out", tested or found.get("reason", "unknown")),
        (
            "Warnings",
            f"'unlike the training pictures' was meant for {known['rate']:.0%} of pictures of the "
            "same origin; "
            f"on the {known['checked_on']} split it came for {known['alarms']} of {known['checked']}",
        ),
    ]


def cautions(card):
    """What limits all grades of a model, as a list of sentences."""
    limits = {
        "synthetic": "The model knows synthetic phantoms only: its grades of real radiographs mean nothing.",
        "only_a_test": "The weights come from a test of the software (a smoke or dry run): "
        "no grade means anything.",
    }
    return [text for key, text in limits.items() if card[key]]


def _interval(row):
    low_high = f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})" if row["ci_low"] is not None else ""
    return f"{row['value']:.2f}{low_high}"


def summary(rows):
    """One sentence that counts what came of the rows."""
    graded, unlike = [row for row in rows if row.grade is not None], [row for row in rows if row.novelty > 1]
    no_knee = sum(grading.NO_KNEE in row.warnings for row in unlike)
    parts = [f"{len(graded):,} of {len(rows):,} picture{'s' * (len(rows) != 1)} graded"]
    parts += [
        f"{len(unlike):,} unlike the training pictures, {no_knee:,} of them probably no knee radiograph"
    ] * bool(unlike)
    return "; ".join(parts) + "."


def explained(rows):
    """The short words of a table's rows, a line for each that occurs and each thing that it means, whatever
    its numbers."""
    told = {re.sub(r"\d[\d,.]*", "N", text): _short(text) for row in rows for text in row.warnings}
    return [f"! {word + ':':8} {printable(text)}" for text, word in told.items()]


def _short(warning):
    return next(word for start, word in SHORT.items() if warning.startswith(start))


def _text_writer(card, count):
    for name, text in facts(card)[:3]:
        print(f"{name + ':':11} {text}")
    limits = [f"CAUTION: {text}" for text in cautions(card)]
    print("\n".join(["", *limits, *[""] * bool(limits)]), end="")
    if count > FEW:
        print(f"\n{'picture':{NAME}}  KL  {'':8}  probability of KL 0-4 in %")
    return lambda name, row: _print((_lines if count > FEW else _details)(printable(name), row, card))


def _print(text):
    tqdm = sys.modules.get("tqdm")
    tqdm.tqdm.write(text, file=sys.stdout) if tqdm else print(text, flush=True)  # a bar must step aside


def _lines(name, row, card):
    shown = f"{name if len(name) <= NAME else f'{name[: NAME // 2 - 2]}...{name[-(NAME // 2 - 1) :]}':{NAME}}"
    if row.problem:
        return f"{shown}   -  not graded: {printable(row.problem)}"
    percent = " ".join(f"{100 * value:3.0f}" for value in row.probabilities)
    warned = f"  ! {', '.join(map(_short, row.warnings))}" if row.warnings else ""
    return f"{shown}   {row.grade}  {card['names'][row.grade]:8}  {percent}{warned}"


def _details(name, row, card):
    if row.problem:
        return f"\n{name}: not graded\n  {printable(row.problem)}"
    lines = [
        f"\n{name}: KL {row.grade}, {card['names'][row.grade].lower()}",
        *(f"  ! {printable(text)}" for text in row.warnings),
        f"  {'KL':3} {'probability':18} {'similarity':10}  description",
    ]
    for grade, (probability, cosine) in enumerate(zip(row.probabilities, row.similarities, strict=True)):
        bar = "#" * round(10 * probability)
        numbers = f"  {grade:<3} {100 * probability:5.1f} % {bar:10} {cosine:10.3f}  "
        lines.append(
            numbers
            + textwrap.shorten(
                card["descriptions"][grade], max(_columns() - len(numbers), LEAST), placeholder="..."
            )
        )
    if card["prompts"] == "as_printed":
        lines.append("  (descriptions as the paper prints them: it numbers them 1 to 5)")
    return "\n".join(lines)


def _columns():
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000  # a file has no width


def _json_writer(model):
    print(
        json.dumps(
            {
                "type": "model",
                **model.card,
                "cautions": cautions(model.card),
                "not_a_medical_device": NO_DEVICE,
            }
        ),
        flush=True,
    )
    return lambda name, row: print(json.dumps(as_dict(name, row)), flush=True)


def as_dict(name, row):
    """A row as plain values: what `--json` prints, one line per picture."""
    plain = {"type": "picture", "path": str(row.path), "name": name, "grade": row.grade}
    if row.problem:
        return {**plain, "problem": row.problem}
    probabilities, similarities = (
        [round(float(value), 6) for value in values] for values in (row.probabilities, row.similarities)
    )
    return {
        **plain,
        "probabilities": probabilities,
        "similarities": similarities,
        "unlike_training": bool(row.novelty > 1),
        "probably_no_knee": grading.NO_KNEE in row.warnings,
        "novelty": round(row.novelty, 4),
        "warnings": row.warnings,
    }


def write_page(target, model, names, rows):
    """Write one self-contained HTML page; pictures are read again one by one, so that memory never holds
    many."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("koa_lib", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    entries = (
        _entry(model, name, row) for name, row in zip(names, _with_bar(rows, len(rows), "page"), strict=True)
    )
    card = printable(model.card)
    stream = environment.get_template("graded.html.jinja").stream(
        entries=entries,
        card=card,
        facts=facts(card),
        cautions=cautions(card),
        summary=summary(rows),
        no_device=NO_DEVICE,
    )
    part = target.with_name(f".part-{os.getpid()}-{target.name}")
    try:
        with open(part, "wb") as file:
            stream.dump(file, encoding="utf-8", errors="replace")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)  # of a page that was stopped


def _entry(model, name, row):
    entry = {"name": printable(name), "row": row, "problem": printable(row.problem)}
    if row.problem:
        return entry
    try:
        image, square = grading.look(model, row)
        return {
            **entry,
            "picture": _uri(to_uint8(image)),
            "map": _uri(_overlaid(square, grading.attended(model, square))),
        }
    except Exception as error:  # the file may be gone by now, or the memory: its grades stay
        return {**entry, "unseen": printable(f"{name} cannot be shown ({error}).")}


def _overlaid(square, heat):
    share = 0.6 * heat[..., None]
    return np.round((1 - share) * square[..., None] + share * TINT).astype(np.uint8)


def _uri(pixels):
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    grow = SIDE / max(picture.size)
    picture = picture.resize(
        tuple(max(1, round(side * grow)) for side in picture.size), Image.Resampling.BICUBIC
    )
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
