"""Graded pictures as text for the terminal, as JSON lines and as one HTML page."""

import base64
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from koa_lib import grading
from koa_lib.errors import StudyError
from koa_lib.listing import listing, short_names

NO_DEVICE = "This is research software and no medical device: its grades must not be used for diagnosis or treatment."
FEW = 3  # up to so many pictures are told in detail
MANY = 20  # from so many on a bar shows the progress
SHORT = {grading.UNLIKE: "unlike", grading.NO_KNEE: "no knee", grading.COLOUR: "colour"}  # warnings in a table's row; explained once below
SEVERAL = "several"
LEAST = 20  # columns of a description, however narrow the terminal
NAME = 26  # columns of a file's name in the terminal
SIDE = 320  # pixels of a picture's longer side on the page
TINT = np.array([255, 120, 0])  # orange: seen by most colour-blind readers, dark on white as on black


def run(given, weights=None, as_json=False, page=None):
    """What `koa grade` does; prints as it goes.

    Returns
    -------
    int
        0 when every picture was graded, 1 when at least one could not be.

    Raises
    ------
    StudyError
        Wrong use: an empty name, no such weights, an existing page, nothing to grade.
    """
    from koa_lib import exported

    for option, value in (("--weights", weights), ("--html", page)):
        if value is not None and not value.strip():
            raise StudyError(f"{option} was given without a name. Name it, or leave {option} away.")
    paths = listing(given, sys.stdin if "-" in given else ())
    if not paths:
        raise StudyError("The list names no picture. Give picture files, folders or lists of them.")
    target = _new(page)
    folder = Path(weights) if weights else exported.newest()
    model = grading.load(folder)
    names = short_names(paths)
    write = _json_writer(model) if as_json else _text_writer(model, len(paths))
    rows = [_told(write, name, row) for name, row in zip(names, _with_bar(grading.grade(model, paths), len(paths), "grading"), strict=True)]
    if target:
        write_page(target, model, names, rows)
        print(f"page written to {page}", file=sys.stderr)
    if not as_json:
        told = explained(rows) if len(paths) > FEW else []
        print("\n".join(["", *told, *[""] * bool(told), summary(rows), NO_DEVICE]))
    return int(any(row.problem for row in rows))


def _new(page):
    if not page:
        return None
    if Path(page).exists():
        raise StudyError(f"{page} exists already. Give another name with --html, so that nothing is overwritten.")
    if not os.access(Path(page).absolute().parent, os.W_OK):
        raise StudyError(f"The folder of {page} does not exist or is read-only. Give another name with --html.")
    return Path(page)


def _told(write, name, row):
    write(name, row)
    return row


def _with_bar(rows, count, what):
    if count < MANY or not sys.stderr.isatty():
        return rows
    from tqdm import tqdm

    return tqdm(rows, total=count, desc=what, unit="picture", file=sys.stderr)


def facts(model):
    """One line per fact that a reader of grades must know about the model: lists of (name, text)."""
    card, found = model.card, model.card["performance"]
    kind = "synthetic phantoms" if card["synthetic"] else "radiographs"
    values = {row["metric"]: row for row in found.get("metrics", [])}
    tested = ", ".join(f"{label} {_interval(values[name])}" for name, label in (("accuracy", "accuracy"), ("qwk", "quadratic kappa")) if name in values)
    tested = f"{tested} (95 % intervals; {found['pictures']:,} pictures, {found['groups']:,} patients, {found['split']} split of the same cohort)" if tested else found.get("reason", "unknown")
    known = card["novelty"]
    return [
        ("Model", f"{card['name']}, {card['image_size']} px, {card['arm']}, fold {card['fold']}, seed {card['seed']}; run '{card['run']}', commit {card['commit']}, data {card['data']}, weights {card['weights_sha256'][:8]}"),
        ("Trained on", f"{card['pictures']:,} {kind} of {card['groups']:,} patients ({card['cohort']})"),
        ("Held out", tested),
        ("Warnings", f"'unlike the training pictures' was meant for {known['rate']:.0%} of pictures of the same origin; on the {known['checked_on']} split it came for {known['alarms']} of {known['checked']}"),
    ]


def cautions(model):
    """What limits all grades of a model, as a list of sentences."""
    card = model.card
    said = ["The model knows synthetic phantoms only: its grades of real radiographs mean nothing."] if card["synthetic"] else []
    return said + ["The weights come from a test of the software (a smoke or dry run): no grade means anything."] * card["only_a_test"]


def _interval(row):
    low_high = f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})" if row["ci_low"] is not None else ""
    return f"{row['value']:.2f}{low_high}"


def summary(rows):
    """One sentence that counts what came of the rows."""
    graded, unlike = [row for row in rows if row.grade is not None], [row for row in rows if row.novelty > 1]
    no_knee = sum(grading.NO_KNEE in row.warnings for row in unlike)
    parts = [f"{len(graded):,} of {len(rows):,} picture{'s' * (len(rows) != 1)} graded"]
    parts += [f"{len(unlike):,} unlike the training pictures, {no_knee:,} of them probably no knee radiograph"] * bool(unlike)
    return "; ".join(parts) + "."


def explained(rows):
    """The short words of a table's rows, a line for each that occurs."""
    words = {_short(text): text if text in SHORT else "file of several pictures: the first was graded" for row in rows for text in row.warnings}
    return [f"! {word + ':':8} {text}" for word, text in words.items()]


def _short(warning):
    return SHORT.get(warning, SEVERAL)


def _text_writer(model, count):
    print("\n".join(f"{name + ':':11} {text}" for name, text in facts(model)[:3]))
    print("\n".join(["", *(f"CAUTION: {text}" for text in cautions(model)), *[""] * bool(cautions(model))]), end="")
    if count > FEW:
        print(f"\n{'picture':{NAME}}  KL  {'':8}  probability of KL 0-4 in %")
    return lambda name, row: _print((_lines if count > FEW else _details)(name, row, model.card))


def _print(text):
    tqdm = sys.modules.get("tqdm")
    tqdm.tqdm.write(text, file=sys.stdout) if tqdm else print(text, flush=True)  # a bar must step aside


def _lines(name, row, card):
    shown = f"{_fitted(name):{NAME}}"
    if row.problem:
        return f"{shown}   -  not graded: {_clean(row.problem)}"
    percent = " ".join(f"{100 * value:3.0f}" for value in row.probabilities)
    warned = f"  ! {', '.join(map(_short, row.warnings))}" if row.warnings else ""
    return f"{shown}   {row.grade}  {card['names'][row.grade]:8}  {percent}{warned}"


def _details(name, row, card):
    if row.problem:
        return f"\n{_clean(name)}: not graded\n  {_clean(row.problem)}"
    lines = [f"\n{_clean(name)}: KL {row.grade}, {card['names'][row.grade].lower()}", *(f"  ! {text}" for text in row.warnings),
             f"  {'KL':3} {'probability':18} {'similarity':10}  description"]
    for grade, (probability, cosine) in enumerate(zip(row.probabilities, row.similarities, strict=True)):
        bar = "#" * round(10 * probability)
        numbers = f"  {grade:<3} {100 * probability:5.1f} % {bar:10} {cosine:10.3f}  "
        lines.append(numbers + _cut(card["descriptions"][grade], _columns() - len(numbers)))
    if card["prompts"] == "as_printed":
        lines.append("  (descriptions as the paper prints them: it numbers them 1 to 5)")
    return "\n".join(lines)


def _columns():
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000  # a file has no width


def _cut(text, room):
    room = max(room, LEAST)
    return text if len(text) <= room else f"{text[: room - 3].rstrip()}..."


def _fitted(name):
    name = _clean(name)
    return name if len(name) <= NAME else f"{name[: NAME // 2 - 2]}...{name[-(NAME // 2 - 1):]}"


def _clean(text):
    # A file's name may hold anything, commands to the terminal among them.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _json_writer(model):
    print(json.dumps({"type": "model", **model.card, "cautions": cautions(model), "not_a_medical_device": NO_DEVICE}), flush=True)
    return lambda name, row: print(json.dumps(as_dict(name, row)), flush=True)


def as_dict(name, row):
    """A row as plain values: what `--json` prints, one line per picture."""
    plain = {"type": "picture", "path": str(row.path), "name": name, "grade": row.grade}
    if row.problem:
        return {**plain, "problem": row.problem}
    return {**plain, "probabilities": [round(float(value), 6) for value in row.probabilities], "similarities": [round(float(value), 6) for value in row.similarities],
            "unlike_training": bool(row.novelty > 1), "probably_no_knee": grading.NO_KNEE in row.warnings, "novelty": round(row.novelty, 4), "warnings": row.warnings}


def write_page(target, model, names, rows):
    """Write one self-contained HTML page; pictures are read again one by one, so that memory never holds many."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("koa_lib", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    entries = (_entry(model, name, row) for name, row in zip(names, _with_bar(rows, len(rows), "page"), strict=True))
    stream = environment.get_template("graded.html.jinja").stream(
        entries=entries, card=model.card, facts=facts(model), cautions=cautions(model), summary=summary(rows), no_device=NO_DEVICE)
    part = target.with_name(f".part-{os.getpid()}-{target.name}")
    try:
        with open(part, "wb") as file:
            stream.dump(file, encoding="utf-8", errors="replace")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)  # of a page that was stopped


def _entry(model, name, row):
    if row.problem:
        return {"name": _clean(name), "row": row, "problem": _clean(row.problem)}
    try:
        image, square = grading.look(model, row)
    except (StudyError, OSError) as error:
        return {"name": _clean(name), "row": row, "unseen": _clean(str(error))}
    return {"name": _clean(name), "row": row, "picture": _uri(_gray(image)), "map": _uri(_overlaid(square, grading.attended(model, square)))}


def _gray(image):
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _overlaid(square, heat):
    share = 0.6 * heat[..., None]
    return np.round((1 - share) * square[..., None] + share * TINT).astype(np.uint8)


def _uri(pixels):
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    grow = SIDE / max(picture.size)
    picture = picture.resize(tuple(max(1, round(side * grow)) for side in picture.size), Image.Resampling.BICUBIC)
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
