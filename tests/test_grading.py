"""`koa grade`: the same grades as the run, whatever the files hold; row and exit code say what was wrong."""

import io
import json
import os
import shutil
import sys
import time
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from koa_lib.runner import Runner
from PIL import Image
from safetensors.numpy import load_file, save_file

from koa_lib import cli, exported, graded, gradercard, grading, listing, predictions, profile, protocols, study
from koa_lib.errors import StudyError
from koa_lib.images.read import file_sha256


@pytest.fixture(scope="module")
def weights(easy_study):
    """Weights exported from the study of easy pictures, after its training."""
    Runner(easy_study).run(protocols.our_arm(easy_study))
    return exported.export(easy_study)


@pytest.fixture
def copy(weights, tmp_path):
    """A copy of the weights to spoil."""
    return shutil.copytree(weights, tmp_path / "w")


@pytest.fixture
def koa(monkeypatch, capsys, weights):
    """A function that runs `koa grade` in this process: exit code, stdout, stderr."""

    def run(*arguments, stdin=b""):
        given = [] if "--weights" in arguments else ["--weights", weights]
        monkeypatch.setattr(sys, "argv", ["koa", "grade", *map(str, [*arguments, *given])])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def fine(easy_study):
    """Three pictures that can be graded."""
    return sorted(easy_study.folder_of("training").rglob("*.png"))[:3]


def rows_of(out):
    return [json.loads(line) for line in out.splitlines()[1:]]


def noise(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (300, 200, 3), dtype=np.uint8)).save(path)


# The same as the run


def same_as_run(folder, run_dir, files_of):
    """Grade every file of the prediction files of the exported arm and compare with what the run wrote."""
    model, names = grading.load(folder), set()
    card = model.card
    view, fold = f"{card['geometry']}-{card['intensity']}", f"fold{card['fold']}__seed{card['seed']}"
    pattern = f"{card['arm']}__*__{view}__{fold}.csv"
    for path in (run_dir / "predictions").glob(pattern):
        expected = predictions.read(path)
        rows = list(grading.grade(model, [files_of(path.name)[image] for image in expected["image_id"]]))
        got = np.stack([row.probabilities for row in rows])
        assert np.abs(got - expected[predictions.PROBABILITIES].to_numpy()).max() < 1e-4
        names.add(path.name.split("__")[1])
    return names


def test_grades_are_those_of_the_run(weights, easy_study):
    files = {
        path.stem: path
        for role in ("training", "external")
        for path in easy_study.folder_of(role).rglob("*.png")
    }
    assert same_as_run(weights, easy_study.run_dir, lambda name: files) >= {"easy_a-test", "easy_b-external"}


def test_grades_of_a_smoke_run_are_those_of_koa_grade(smoke_run):
    def files(name):
        cohort = smoke_run / "data" / name.split("__")[1].split("-")[0]
        rows = pd.read_csv(cohort / "manifest.csv", dtype=str)
        return {image: cohort / path for image, path in zip(rows["image_id"], rows["path"], strict=True)}

    assert len(same_as_run(exported.export(study.Study.open("smoke", step="tests")), smoke_run, files)) >= 4


@pytest.mark.parametrize("part", ["adapter", "both_encoders"])
def test_weights_of_every_reading_grade_alike_without_the_text_tower(part, tmp_path, weights):
    recipe, known = replace(profile.load("smoke").our_protocol, part=part), grading.load(weights)
    clip, _, tokenizer = grading.models.load_clip("koa-tiny", seed=3)
    grader = grading.models.ClipGrader(clip, tokenizer, part, recipe.prompts, 0.3).eval()
    with torch.no_grad():
        for value in grader.parameters():  # also what was frozen, so that nothing can come from a fresh start
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    card = {**known.card, **exported.architecture("koa-tiny", recipe), "residual": 0.3}
    exported.write(tmp_path / "w", grader, card, known.novelty)
    squares = np.random.default_rng(0).integers(0, 256, (3, 112, 112), dtype=np.uint8)
    one, two = (
        grading.forward(which, squares, "clip") for which in (grader, grading.load(tmp_path / "w").grader)
    )
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    assert not [
        name for name in load_file(tmp_path / "w" / grading.WEIGHTS) if name.startswith("clip.transformer")
    ]


@pytest.mark.parametrize("grays", [(50, 230), (230, 50)])
def test_worse_knee_of_two_is_graded(weights, tmp_path, grays):
    model = grading.load(weights)
    model.card["geometry"] = "split"
    pixels = np.repeat(np.uint8([grays]), 320, axis=1).repeat(160, axis=0)
    Image.fromarray(pixels).save(tmp_path / "two.png")
    (row,) = grading.grade(model, [tmp_path / "two.png"])
    expected = grading.forward(model.grader, np.stack(model.squares(pixels / 255)), model.card["statistics"])[
        0
    ]
    assert row.knee == (expected @ np.arange(5)).argmax() and np.allclose(
        row.probabilities, expected[row.knee], atol=1e-5
    )


# Whatever the files hold

BAD = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("no picture"),
    "nan.tif": lambda path: Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(path),
    "large.png": lambda path: Image.fromarray(np.eye(8000, 9000) > 0).save(path),
    "thin.png": lambda path: Image.new("L", (9, 300)).save(path),
    "no.dcm": lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(20)),
    "folder": lambda path: path.mkdir(),
    "hidden": lambda path: (path / ".git").mkdir(parents=True),
    "flat.png": lambda path: Image.new("L", (200, 200), 90).save(path),
    "pipe.png": os.mkfifo,
    "missing.txt": lambda path: None,
    "a\x1b[2J.png": lambda path: path.write_text("no picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_told_and_the_others_are_graded(koa, fine, tmp_path, name):
    BAD[name](tmp_path / name)
    code, out, err = koa(fine[0], tmp_path / name, fine[1], "--json")
    first, bad, last = rows_of(out)
    assert (
        code == 1 and bad["grade"] is None and name in bad["problem"] and str(tmp_path) not in bad["problem"]
    )
    assert first["grade"] is not None and last["grade"] is not None and err == ""
    code, out, _ = koa(tmp_path / name)  # and alone
    assert code == 1 and "0 of 1 picture graded." in out and "\x1b" not in out


def test_a_failing_file_stays_in_its_row_and_one_picture_is_held_at_a_time(weights, fine, monkeypatch):
    pictures, held, read = [], [], grading.read

    def reading(path):
        if path == fine[1]:
            raise RuntimeError("odd")
        picture = replace(read(path), gray=np.kron(read(path).gray, np.ones((9, 9), np.float32)))
        pictures.append(weakref.ref(picture.gray))
        held.append(sum(one() is not None for one in pictures))
        return picture

    monkeypatch.setattr(grading, "read", reading)
    rows = []
    for row in grading.grade(grading.load(weights), fine * 3):
        rows.append(row)
        with pytest.warns(UserWarning, match="callers"):  # whose warnings are his own
            warnings.warn("callers", stacklevel=1)
    assert [row.grade is None for row in rows] == [False, True, False] * 3 and "odd" in rows[1].problem
    assert max(held) == 1 < len(held)


def test_no_number_is_a_problem_and_no_grade(weights, fine):
    model = grading.load(weights)
    with torch.no_grad():
        model.grader.fixed_prototypes[0, 0] = float("nan")
    (row,) = grading.grade(model, fine[:1])
    assert row.grade is None and "no number" in row.problem and fine[0].name in row.problem


# Which files are meant


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_lists_are_read_as_windows_writes_them(koa, fine, tmp_path, encoding):
    names = ["a.png", "ü b.png", "back\\slash.png"]
    for file, name in zip(fine, names, strict=True):
        shutil.copy(file, tmp_path / name)
    mark = "\ufeff" * ("16" in encoding)
    (tmp_path / "list.txt").write_bytes(
        f'{mark}a.png\r\n\r\n"ü b.png"\r\n ""\n back\\slash.png '.encode(encoding)
    )
    stdin = "\r\n".join(
        [mark + str(tmp_path / names[0]), f'"{tmp_path / names[1]}"', str(tmp_path / names[2])]
    )
    for given in (tmp_path / "list.txt", "-"):
        code, out, _ = koa(given, "--json", stdin=stdin.encode(encoding))
        assert code == 0 and [row["name"] for row in rows_of(out)] == names


def test_folder_means_its_pictures_without_what_is_hidden_and_each_once(tmp_path):
    names = [
        "2.png",
        "10.png",
        "sub/3.jpg",
        ".ipynb_checkpoints/2-checkpoint.png",
        "._2.png",
        "notes.md",
        "1.2.840",
    ]
    for name in names:
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(bytes(128) + b"DICM" * (name == "1.2.840"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "4.png").write_bytes(b"")
    (tmp_path / "pictures" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "sub" / "loop").symlink_to(tmp_path / "pictures")
    os.mkfifo(tmp_path / "pictures" / "pipe")
    found = [
        path.relative_to(tmp_path / "pictures").as_posix()
        for path in listing.listing([str(tmp_path / "pictures")])
    ]
    assert found == ["1.2.840", "2.png", "10.png", "linked/4.png", "sub/3.jpg"]


def test_same_names_are_told_apart_also_in_a_hundred_thousand(tmp_path):
    paths = [
        tmp_path / "one" / "k.png",
        tmp_path / "two" / "k.png",
        *(tmp_path / f"{n}.png" for n in range(100_000)),
    ]
    start = time.perf_counter()
    assert listing.short_names(paths)[:3] == ["one/k.png", "two/k.png", "0.png"]
    assert time.perf_counter() - start < 10


# What is told


@pytest.mark.parametrize("count", [1, 5])
def test_terminal_says_what_a_reader_must_know(koa, fine, count):
    code, out, err = koa(*(fine * 2)[:count])
    assert code == 0 and "no medical device" in out and f"{count} of {count} picture" in out and err == ""
    assert ("definite absence" in out) == (count == 1)


def test_neither_card_nor_names_can_command_the_terminal(koa, copy, fine, tmp_path):
    evil, page = "\x1b[2J\u202e", tmp_path / "page.html"
    texts = dict.fromkeys(("arm", "run", "commit", "data", "cohort"), evil)
    change(
        copy,
        True,
        **texts,
        names=[evil] * 5,
        descriptions=[evil] * 5,
        performance={"split": evil, "reason": evil},
    )
    absent, json_lines = tmp_path / f"no{evil}", koa(fine[0], "--weights", copy, "--json")[1]
    shown = [
        koa(*given, "--weights", copy)
        for given in ((fine[0], absent, "--html", page), (*fine, *fine, absent))
    ]
    shown = (
        str([*shown, koa(fine[0], "--weights", absent)]).replace(repr(evil)[1:-1], evil) + page.read_text()
    )
    assert "\x1b" not in shown and "\u202e" not in shown and "no?[2J?" in shown
    assert json.loads(json_lines.splitlines()[0])["arm"] == evil  # values stay as they are


def test_table_says_warnings_in_short_words_and_explains_them_once(koa, tmp_path, fine):
    for number in range(4):
        noise(tmp_path / f"{number}.png", number)
    page = Image.open(fine[0])
    page.save(tmp_path / "4.tif", save_all=True, append_images=[page])
    rows, out = rows_of(koa(tmp_path, "--json")[1]), koa(tmp_path)[1]
    assert rows[0]["unlike_training"] and rows[0]["probably_no_knee"] and rows[0]["grade"] in range(5)
    assert out.count("  ! colour, no knee") == 4 and "! several" in out
    assert all(out.count(text) == 1 for text in (grading.NO_KNEE, "channels were averaged", "the first was"))
    assert max(len(line) for line in out.splitlines() if line.startswith(tuple("01234"))) <= 80


def test_descriptions_are_cut_to_the_terminal(koa, fine, monkeypatch):
    monkeypatch.setattr(graded, "_columns", lambda: 70)
    lines = [line for line in koa(fine[0])[1].splitlines() if line[2:3].isdigit() and " % " in line]
    assert len(lines) == 5 and max(map(len, lines)) <= 70


@pytest.mark.parametrize(
    "arguments",
    [
        ["--weights", "nowhere", "x.png"],
        ["-"],
        ["x.png", "--html", "."],
        [],
        [""],
        ["x.png", "--weights", ""],
        ["x.png", "--html", ""],
        ["x.png", "--html", "no/page.html"],
    ],
)
def test_wrong_use_is_exit_2(koa, arguments):
    code, out, err = koa(*arguments)
    assert code == 2 and out == "" and "Traceback" not in err


def test_stopped_grading_promises_nothing(koa, fine, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(grading, "grade", stop)
    code, _, err = koa(fine[0])
    assert code == 130 and err == "koa: stopped.\n"


def test_page_is_complete_and_self_contained(koa, fine, tmp_path, monkeypatch):
    page, strange = tmp_path / "page.html", tmp_path / "<b>&.png"
    strange.write_text("no picture")
    code, _, err = koa(fine[0], strange, "--html", page)
    text = page.read_text(encoding="utf-8")
    assert code == 1 and "page.html" in err and text.count("<article>") == 2 and "&lt;b&gt;&amp;.png" in text
    assert text.count("data:image/jpeg") == text.count("<img") == text.count('alt="T') == 2
    assert (
        "no medical device" in text
        and '<html lang="en">' in text
        and "://" not in text
        and str(tmp_path) not in text
    )
    assert koa(fine[0], "--html", page)[0] == 2 and page.read_text(encoding="utf-8") == text
    monkeypatch.setattr(grading, "look", lambda *_: 1 / 0)
    assert koa(fine[0], "--html", tmp_path / "unseen.html")[0] == 0
    assert "cannot be shown" in (tmp_path / "unseen.html").read_text()


# The weights and their card


def exchange(folder):
    """Other weights under the same card."""
    arrays, card = load_file(folder / grading.WEIGHTS), json.loads((folder / gradercard.CARD).read_text())
    arrays["fixed_prototypes"] = arrays["fixed_prototypes"][::-1].copy()
    save_file(arrays, folder / grading.WEIGHTS, {gradercard.SEAL: gradercard.seal(card)})


def change(folder, sealed=False, **facts):
    """Edit a card; sealed as if an export had written it, to reach the checks behind the seal."""
    card = json.loads((folder / gradercard.CARD).read_text()) | facts
    if sealed:
        seal = {gradercard.SEAL: gradercard.seal(card)}
        save_file(load_file(folder / grading.WEIGHTS), folder / grading.WEIGHTS, seal)
        card[gradercard.HASH] = file_sha256(folder / grading.WEIGHTS)
    (folder / gradercard.CARD).write_text(json.dumps(card))


def damage(folder, content):
    (folder / grading.WEIGHTS).write_bytes(content)
    change(folder, **{gradercard.HASH: file_sha256(folder / grading.WEIGHTS)})


def spoil_novelty(folder, **arrays):
    more = {grading.NOVELTY + name: value for name, value in arrays.items()}
    save_file(load_file(folder / grading.WEIGHTS) | more, folder / grading.WEIGHTS)
    change(folder, True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / grading.WEIGHTS).unlink(),
        lambda folder: exchange(folder),
        lambda folder: damage(folder, b"x"),
        lambda folder: damage(folder, (folder / grading.WEIGHTS).read_bytes()[:-99]),
        lambda folder: (folder / gradercard.CARD).write_text("[" * 99999),
        lambda folder: change(folder, format=1),
        lambda folder: change(folder, True, quick_gelu=True),
        lambda folder: change(folder, True, part="adapter"),
        lambda folder: change(folder, True, name="koa-conv", image_size=64),
        lambda folder: change(folder, True, grades=[1, 2, 3, 4, 5]),
        lambda folder: spoil_novelty(folder, mean=np.zeros(3, np.float32)),
        lambda folder: spoil_novelty(folder, more=np.zeros(3, np.float32)),
        lambda folder: change(folder, synthetic=True),
    ],
)
def test_damaged_or_foreign_weights_are_refused(koa, copy, spoil):
    spoil(copy)
    code, out, err = koa("x.png", "--weights", copy)
    assert (
        code == 2
        and out == ""
        and err.startswith("koa: ")
        and len(err.splitlines()) == 1
        and str(copy) in err
    )


@pytest.mark.parametrize(
    "value",
    [
        "missing",
        None,
        True,
        -1,
        10**400,
        float("nan"),
        "no such",
        [],
        [1, "a"],
        {},
        {"threshold": "a"},
        {"metrics": [{}]},
        {"metrics": 3},
    ],
)
def test_every_key_of_the_card_is_checked(copy, value):
    card = json.loads((copy / gradercard.CARD).read_text())
    for key in card:
        changed = {**card, key: value}
        if value == "missing":
            del changed[key]
        (copy / gradercard.CARD).write_text(json.dumps(changed))
        if changed.get(key, "missing") != card[key]:
            with pytest.raises(StudyError):
                grading.load(copy)


def test_card_tells_what_the_model_is_and_may_be_laid_out_anew(weights, copy, easy_study):
    card = grading.load(weights).card
    (copy / gradercard.CARD).write_text(json.dumps(dict(reversed(card.items()))))
    assert grading.load(copy).card == card and str(easy_study.run_dir.parent) not in json.dumps(card)
    assert (
        card["performance"]["split"] == "test"
        and card["performance"]["pictures"] == card["novelty"]["checked"] == 20
    )
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in card["performance"]["metrics"])
    assert "phantoms" in str(graded.cautions({**card, "synthetic": True})) and card["only_a_test"]
    assert graded.cautions({**card, "only_a_test": False, "synthetic": False}) == []


def test_export_is_kept_while_the_model_is_the_same(weights, easy_study):
    before = (weights / grading.WEIGHTS).stat().st_mtime_ns
    assert exported.export(easy_study) == weights and (weights / grading.WEIGHTS).stat().st_mtime_ns == before


def test_newest_run_that_is_no_test_is_taken_and_none_is_told(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "BUILD", tmp_path)
    with pytest.raises(StudyError, match="--weights"):
        exported.newest()
    for name, when in (("old", 1), ("new", 2)):
        shutil.copytree(weights, tmp_path / name / "weights")
        (tmp_path / name / "headline.txt").write_text("")
        os.utime(tmp_path / name / "headline.txt", (when, when))
    for dry, taken in (("", "new"), ("false", "old"), ("true", "new")):
        if dry:
            (tmp_path / "old" / "inputs.yaml").write_text(f"profile: demo\ndry: {dry}\n")
        assert exported.newest() == tmp_path / taken / "weights"
        assert ("'new'" in capsys.readouterr().err) == (taken == "old")
