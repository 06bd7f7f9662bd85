"""`koa grade`: the same grades as the run, whatever the files hold; row and exit code say what was wrong."""

import io
import json
import os
import shutil
import sys
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from koa_lib import cli, explain, model, predictions, profile, protocols, study
from koa_lib.errors import StudyError
from koa_lib.experiment import Experiment
from koa_lib.grading import export, predict, show
from koa_lib.grading import weights as weights_file
from koa_lib.grading.listing import listing, short_names
from koa_lib.prompts import prompts


@pytest.fixture(scope="module")
def weights(easy_study):
    """Weights exported from the study of easy pictures, after its training."""
    Experiment(easy_study).run(protocols.our_arm(easy_study))
    return export.export(easy_study)


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
    loaded, names = predict.load(folder), set()
    card = loaded.card
    view, fold = f"{card['geometry']}-{card['intensity']}", f"fold{card['fold']}__seed{card['seed']}"
    for path in (run_dir / "predictions").glob(f"{card['arm']}__*__{view}__{fold}.csv"):
        expected = predictions.read(path)
        rows = list(predict.grade(loaded, [files_of(path.name)[image] for image in expected["image_id"]]))
        got = np.stack([row.probabilities for row in rows])
        assert np.abs(got - expected[predictions.PROBABILITIES].to_numpy()).max() < 1e-4
        names.add(path.name.split("__")[1])
    return names


def test_grades_are_those_of_the_run(weights, easy_study):
    folders = [easy_study.folder_of(role) for role in ("training", "external")]
    files = {path.stem: path for folder in folders for path in folder.rglob("*.png")}
    assert same_as_run(weights, easy_study.run_dir, lambda name: files) >= {"easy_a-test", "easy_b-external"}


def test_grades_of_a_smoke_run_are_those_of_koa_grade(smoke_run):
    def files(name):
        cohort = smoke_run / "data" / name.split("__")[1].split("-")[0]
        rows = pd.read_csv(cohort / "manifest.csv", dtype=str)
        return {image: cohort / path for image, path in zip(rows["image_id"], rows["path"], strict=True)}

    assert len(same_as_run(export.export(study.Study.open("smoke", step="tests")), smoke_run, files)) >= 4


@pytest.mark.parametrize("part", ["adapter", "both_encoders"])
def test_weights_of_every_reading_grade_alike_without_the_text_tower(part, tmp_path, weights):
    recipe, known = (
        replace(profile.load("smoke").our_protocol, part=part, residual=0.3),
        predict.load(weights),
    )
    clip, _, tokenizer = model.load_clip("koa-tiny", seed=3)
    grader = model.ClipGrader(clip, tokenizer, part, prompts(recipe.prompts), 0.3).eval()
    with torch.no_grad():
        for value in grader.parameters():  # also what was frozen, so that nothing can come from a fresh start
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    weights_file.write(
        tmp_path / "w", grader, {**card_of(weights), **export.architecture("koa-tiny", recipe)}, known.novelty
    )
    squares, again = (
        np.random.default_rng(0).integers(0, 256, (3, 112, 112), dtype=np.uint8),
        predict.load(tmp_path / "w"),
    )
    one, two = (predict.forward(which, squares, "clip")[0] for which in (grader, again.grader))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert not [
        name for name in load_file(tmp_path / "w" / predict.FILE) if name.startswith("clip.transformer")
    ]


# Whatever the files hold

BAD = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("no picture"),
    "nan.tif": lambda path: Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(path),
    "large.png": lambda path: Image.fromarray(np.eye(8000, 9000) > 0).save(path),
    "thin.png": lambda path: Image.new("L", (9, 300)).save(path),
    "no.dcm": lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(20)),
    "folder": lambda path: (path / ".git").mkdir(parents=True),
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
    assert code == 1 and first["grade"] is not None and last["grade"] is not None and err == ""
    assert bad["grade"] is None and name in bad["problem"] and str(tmp_path) not in bad["problem"]
    code, out, _ = koa(tmp_path / name)  # and alone
    assert code == 1 and "0 of 1 picture graded." in out and "\x1b" not in out


def test_a_failing_file_stays_in_its_row_and_one_picture_is_held_at_a_time(weights, fine, monkeypatch):
    pictures, held, read = [], [], predict.read

    def reading(path):
        if path == fine[1]:
            raise RuntimeError("odd")
        picture = replace(read(path), gray=np.kron(read(path).gray, np.ones((9, 9), np.float32)))
        pictures.append(weakref.ref(picture.gray))
        held.append(sum(one() is not None for one in pictures))
        return picture

    monkeypatch.setattr(predict, "read", reading)
    rows = []
    for row in predict.grade(predict.load(weights), fine * 3):
        rows.append(row)
        with pytest.warns(UserWarning, match="callers"):  # whose warnings are his own
            warnings.warn("callers", stacklevel=1)
    assert [row.grade is None for row in rows] == [False, True, False] * 3 and "odd" in rows[1].problem
    assert max(held) == 1 < len(held)


def test_too_little_memory_for_a_batch_is_told_in_its_rows(weights, fine, monkeypatch):
    loaded = predict.load(weights)
    monkeypatch.setattr(loaded.grader, "trunk", lambda *_: np.empty(10**15))
    rows = list(predict.grade(loaded, fine))
    assert len(rows) == 3 and all(row.grade is None and row.path.name in row.problem for row in rows)


def test_no_number_is_a_problem_and_no_grade(weights, fine):
    loaded = predict.load(weights)
    with torch.no_grad():
        loaded.grader.fixed_prototypes[0, 0] = float("nan")
    (row,) = predict.grade(loaded, fine[:1])
    assert row.grade is None and row.probabilities is None and fine[0].name in row.problem


# Which files are meant


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_lists_are_read_as_windows_writes_them(koa, fine, tmp_path, encoding):
    names = ["a.png", "ü b.png", "back\\slash.png"]
    for file, name in zip(fine, names, strict=True):
        shutil.copy(file, tmp_path / name)
    mark = "\ufeff" * ("16" in encoding)
    text = f'{mark}a.png\r\n\r\n"ü b.png"\r\n ""\n back\\slash.png '
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    stdin = "\r\n".join(
        [mark + str(tmp_path / names[0]), f'"{tmp_path / names[1]}"', str(tmp_path / names[2])]
    )
    for given in (tmp_path / "list.txt", "-"):
        code, out, _ = koa(given, "--json", stdin=stdin.encode(encoding))
        assert code == 0 and [row["name"] for row in rows_of(out)] == names


def test_folder_means_its_pictures_without_what_is_hidden_and_each_once(tmp_path):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    hidden = [".ipynb_checkpoints/2-checkpoint.png", "._2.png"]
    for name in ["2.png", "10.png", "sub/3.jpg", *hidden, "notes.md", "1.2.840"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(128) + b"DICM" * (name == "1.2.840"))
    elsewhere.mkdir()
    (elsewhere / "4.png").write_bytes(b"")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub" / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    found = [path.relative_to(folder).as_posix() for path in listing([str(folder)])]
    assert found == ["1.2.840", "2.png", "10.png", "linked/4.png", "sub/3.jpg"]


def test_same_names_are_told_apart(tmp_path):
    paths = [tmp_path / "one" / "k.png", tmp_path / "two" / "k.png", tmp_path / "0.png"]
    assert short_names(paths) == ["one/k.png", "two/k.png", "0.png"]


# What is told


@pytest.mark.parametrize("count", [1, 5])
def test_terminal_says_what_a_reader_must_know(koa, fine, count):
    code, out, err = koa(*(fine * 2)[:count])
    assert code == 0 and "no medical device" in out and f"{count} of {count} picture" in out and err == ""
    assert "CAUTION" in out and "accuracy" in out and "koa-tiny" in out


@pytest.mark.parametrize("count", [1, 5])
def test_a_narrow_terminal_shows_whole_words(koa, fine, monkeypatch, count):
    wide = koa(*(fine * 2)[:count])[1]
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    narrow = koa(*(fine * 2)[:count])[1]
    assert max(map(len, narrow.splitlines())) <= 40 and "\x1b" not in narrow
    assert narrow.split() == wide.split()


def test_neither_card_nor_names_can_command_the_terminal(koa, copy, fine, tmp_path):
    evil, page = "\x1b[2J\u202e", tmp_path / "page.html"
    texts = dict.fromkeys(("arm", "run", "commit", "data", "cohort"), evil)
    rewrite(
        copy, **texts, names=[evil] * 5, descriptions=[evil] * 5, performance={"split": evil, "reason": evil}
    )
    absent, given = tmp_path / f"no{evil}", [(fine[0], "--html", page), (*fine, *fine)]
    shown = [koa(*files, tmp_path / f"no{evil}", "--weights", copy) for files in given]
    shown = (
        str([*shown, koa(fine[0], "--weights", absent)]).replace(repr(evil)[1:-1], evil) + page.read_text()
    )
    assert "\x1b" not in shown and "\u202e" not in shown and "no?[2J?" in shown
    first = koa(fine[0], "--weights", copy, "--json")[1].splitlines()[0]
    assert json.loads(first)["arm"] == evil and "\x1b" not in first  # values stay as they are


def test_table_names_warnings_in_its_rows_and_explains_them_once(koa, tmp_path, fine):
    for number in range(4):
        noise(tmp_path / f"{number}.png", number)
    page = Image.open(fine[0])
    page.save(tmp_path / "4.tif", save_all=True, append_images=[page])
    rows, out = rows_of(koa(tmp_path, "--json")[1]), koa(tmp_path)[1]
    assert rows[0]["unlike_training"] and rows[0]["probably_no_knee"] and rows[0]["grade"] in range(5)
    assert predict.NO_KNEE in rows[0]["warnings"] and "2 pictures" in str(rows[4]["warnings"])
    table = {line[:5]: line for line in out.splitlines() if line[1:2] == "."}
    assert len(table) == 5 and all(
        "!" in line and "no knee" in line for name, line in table.items() if name[2] == "p"
    )
    assert "colour" in table["0.png"] and "2 pictures" in table["4.tif"]
    assert all(out.count(text) == 1 for text in (predict.NO_KNEE, "channels were averaged", "the first was"))


def test_a_long_work_has_a_bar_on_a_terminal_only(koa, fine, monkeypatch):
    assert koa(*fine * 7)[2] == ""
    monkeypatch.setattr(show.sys.stderr, "isatty", lambda: True, raising=False)
    assert "21/21" in koa(*fine * 7)[2]


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

    monkeypatch.setattr(predict, "grade", stop)
    code, _, err = koa(fine[0])
    assert code == 130 and err == "koa: stopped.\n"


def test_page_is_complete_and_self_contained(koa, fine, tmp_path, monkeypatch):
    page, strange = tmp_path / "page.html", tmp_path / "<b>&.png"
    strange.write_text("no picture")
    code, _, err = koa(fine[0], strange, "--html", page)
    text = page.read_text(encoding="utf-8")
    assert code == 1 and "page.html" in err and text.count("<article>") == 2 and "&lt;b&gt;&amp;.png" in text
    assert text.count("data:image/jpeg") == text.count("<img") == text.count('alt="T') == 2
    assert "no medical device" in text and '<html lang="en">' in text and "test of the software" in text
    assert "://" not in text and str(tmp_path) not in text
    assert koa(fine[0], "--html", page)[0] == 2 and page.read_text(encoding="utf-8") == text
    monkeypatch.setattr(explain, "heatmap", lambda *_: 1 / 0)
    assert koa(fine[0], "--html", tmp_path / "unseen.html")[0] == 0
    assert "cannot be shown" in (tmp_path / "unseen.html").read_text()


# The weights and their card


def card_of(folder):
    with safe_open(folder / predict.FILE, "numpy") as file:
        return json.loads(file.metadata()["card"])


def rewrite(folder, arrays=(), **facts):
    """Weights with another card or other arrays (None: without it), sealed as an export seals them."""
    path, card = folder / predict.FILE, json.dumps({**card_of(folder), **facts})
    arrays = {
        name: values for name, values in {**load_file(path), **dict(arrays)}.items() if values is not None
    }
    save_file(arrays, path, {"card": card, "sha256": predict.sha256(card, arrays)})


def older(folder):
    """As an export of the former version left it: a card beside the weights."""
    save_file(load_file(folder / predict.FILE), folder / predict.FILE, {"card_sha256": "0"})
    (folder / "grader.json").write_text('{"format": 2}')


SMALL = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / predict.FILE).unlink(),
        lambda folder: (folder / predict.FILE).write_bytes(b""),
        lambda folder: (folder / predict.FILE).write_bytes((folder / predict.FILE).read_bytes()[:-99]),
        older,
        lambda folder: rewrite(folder, format=2),
        lambda folder: rewrite(folder, quick_gelu=True),
        lambda folder: rewrite(folder, part="adapter"),
        lambda folder: rewrite(folder, name="koa-conv", image_size=64),
        lambda folder: rewrite(folder, grades=[1, 2, 3, 4, 5]),
        lambda folder: rewrite(folder, {"fixed_prototypes": None}),
        lambda folder: rewrite(folder, {"novelty.mean": None}),
        lambda folder: rewrite(folder, {"unknown": SMALL}),
    ],
)
def test_damaged_or_foreign_weights_are_refused_in_a_sentence(koa, copy, spoil):
    spoil(copy)
    code, out, err = koa("x.png", "--weights", copy)
    assert (
        code == 2
        and out == ""
        and err.startswith("koa: ")
        and len(err.splitlines()) == 1
        and str(copy) in err
    )
    assert spoil is not older or "make reproduce" in err


def test_a_single_wrong_bit_anywhere_is_found(copy):
    path = copy / predict.FILE
    whole = path.read_bytes()
    for place in [*range(8, 5000, 250), *range(5000, len(whole), len(whole) // 20)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StudyError, match=predict.FILE):
            predict.load(copy)


def test_card_tells_what_the_model_is(weights, easy_study):
    card = predict.load(weights).card
    assert str(easy_study.run_dir.parent) not in json.dumps(card) and [
        path.name for path in weights.iterdir()
    ] == [predict.FILE]
    assert (
        card["performance"]["split"] == "test"
        and card["performance"]["pictures"] == card["novelty"]["checked"] == 20
    )
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in card["performance"]["metrics"])
    assert len(show.cautions({**card, "synthetic": True})) == 2 and card["only_a_test"]
    assert show.cautions({**card, "only_a_test": False, "synthetic": False}) == []


def test_export_is_kept_while_the_model_is_the_same(weights, easy_study):
    before = (weights / predict.FILE).stat().st_mtime_ns
    assert export.export(easy_study) == weights and (weights / predict.FILE).stat().st_mtime_ns == before


def test_newest_run_that_is_no_test_is_taken_and_none_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "BUILD", tmp_path)
    with pytest.raises(StudyError, match="--weights"):
        export.newest()
    runs = {"older": "demo", "old": "demo", "smoke": "smoke", "dry": "paper\ndry: true"}
    for when, (name, settings) in enumerate(runs.items()):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inputs.yaml").write_text(f"profile: {settings}\n")
        (tmp_path / name / "headline.txt").write_text("")
        os.utime(tmp_path / name / "headline.txt", (when, when))
    assert export.newest() == tmp_path / "old" / "weights" and "'dry'" in capsys.readouterr().err
    for name in ("old", "older"):
        shutil.rmtree(tmp_path / name)
    assert export.newest() == tmp_path / "dry" / "weights" and capsys.readouterr().err == ""
