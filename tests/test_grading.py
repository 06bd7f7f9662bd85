"""`koa grade`: the same grades as the run, whatever the files hold; row and exit code say what was wrong."""

import fcntl
import io
import json
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
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


# The same as the run


def test_grades_are_those_of_the_run(weights, easy_study):
    loaded, graded = predict.load(weights), set()
    folders = [easy_study.folder_of(role) for role in ("training", "external")]
    files = {path.stem: path for folder in folders for path in folder.rglob("*.png")}
    name = "{arm}__*__{geometry}-{intensity}__fold{fold}__seed{seed}.csv".format_map(loaded.card)
    for path in (easy_study.run_dir / "predictions").glob(name):
        expected = predictions.read(path)
        rows = predict.grade(loaded, [files[image] for image in expected["image_id"]])
        got = np.stack([row.probabilities for row in rows])
        assert np.abs(got - expected[predictions.PROBABILITIES].to_numpy()).max() < 1e-4
        graded.add(path.name.split("__")[1])
    assert graded >= {"easy_a-test", "easy_b-external"}


@pytest.mark.parametrize("part", ["adapter", "both_encoders"])
def test_weights_of_every_reading_grade_alike_without_the_text_tower(part, tmp_path, weights):
    recipe = replace(profile.load("smoke").our_protocol, part=part, residual=0.3)
    clip, _, tokenizer = model.load_clip("koa-tiny", seed=3)
    grader = model.ClipGrader(clip, tokenizer, part, prompts(recipe.prompts), 0.3).eval()
    with torch.no_grad():
        for value in grader.parameters():  # also what was frozen, so that nothing can come from a fresh start
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    card = {**card_of(weights), **export.architecture("koa-tiny", recipe)}
    weights_file.write(tmp_path / "w", grader, card, predict.load(weights).novelty)
    assert not [name for name in load_file(tmp_path / "w" / predict.FILE) if "clip.transformer" in name]
    squares = np.random.default_rng(0).integers(0, 256, (3, 112, 112), dtype=np.uint8)
    one, two = (
        predict.forward(which, squares, "clip")[0] for which in (grader, predict.load(tmp_path / "w").grader)
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


# Whatever the files hold

BAD = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("no picture"),
    "nan.tif": lambda path: Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(path),
    "large.png": lambda path: Image.new("1", (9000, 8000)).save(path),
    "thin.png": lambda path: Image.new("L", (9, 300)).save(path),
    "flat.png": lambda path: Image.new("L", (200, 200), 90).save(path),
    "no.dcm": lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(20)),
    "folder": lambda path: (path / ".git").mkdir(parents=True),
    "pipe.png": os.mkfifo,
    "missing.txt": lambda path: None,
    "a\x1b[2J.png": lambda path: path.write_text("no picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_told_and_the_others_are_graded(koa, fine, tmp_path, name):
    BAD[name](tmp_path / name)
    code, out, err = koa(fine[0], tmp_path / name, fine[1], "--json")
    grades = [row["grade"] for row in rows_of(out)]
    assert code == 1 and err == "" and [grade is None for grade in grades] == [False, True, False]
    problem = rows_of(out)[1]["problem"]
    assert name in problem and str(tmp_path) not in problem
    code, out, _ = koa(tmp_path / name)  # and alone
    assert code == 1 and "0 of 1 picture graded." in out and "\x1b" not in out


def test_an_unforeseen_error_stays_in_the_row_of_its_file(weights, fine, monkeypatch):
    def reading(path, real=predict.read):
        return real(path) if path != fine[1] else 1 / 0

    monkeypatch.setattr(predict, "read", reading)
    rows = list(predict.grade(predict.load(weights), fine))
    assert [row.grade is None for row in rows] == [False, True, False] and fine[1].name in rows[1].problem


def test_too_little_memory_for_a_batch_is_told_in_its_rows(weights, fine, monkeypatch):
    loaded = predict.load(weights)
    monkeypatch.setattr(loaded.grader, "entering", lambda *_: np.empty(10**15))
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
def test_lists_are_read_as_windows_writes_them(tmp_path, encoding):
    names = ["a.png", "ü b.png", "back\\slash.png"]
    for name in names:
        (tmp_path / name).touch()
    mark = "\ufeff" * ("16" in encoding)
    content = f'{mark}a.png\r\n\r\n"ü b.png"\r\n ""\n back\\slash.png '.encode(encoding)
    (tmp_path / "list.txt").write_bytes(content)
    assert [path.name for path in listing([str(tmp_path / "list.txt")])] == names
    piped = io.TextIOWrapper(io.BytesIO(content))
    assert [path.name for path in listing(["-"], piped)] == names


def test_folder_means_its_pictures_in_natural_order_and_dicom_without_a_suffix(tmp_path):
    for name in ("2.png", "10.png", "sub/3.jpg", "._2.png", "notes.md", "1.2.840"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" * (name == "1.2.840"))
    os.mkfifo(tmp_path / "pipe")
    found = [path.relative_to(tmp_path).as_posix() for path in listing([str(tmp_path)])]
    assert found == ["1.2.840", "2.png", "10.png", "sub/3.jpg"]


def test_same_names_are_told_apart(tmp_path):
    paths = [tmp_path / "one" / "k.png", tmp_path / "two" / "k.png", tmp_path / "0.png"]
    assert short_names(paths) == ["one/k.png", "two/k.png", "0.png"]


# What is told


@pytest.mark.parametrize("count", [1, 5])
def test_terminal_says_what_a_reader_must_know_in_whole_words(koa, fine, monkeypatch, count):
    code, out, err = koa(*(fine * 2)[:count])
    assert code == 0 and "no medical device" in out and f"{count} of {count} picture" in out and err == ""
    assert "CAUTION" in out and "accuracy" in out and "koa-tiny" in out
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    narrow = koa(*(fine * 2)[:count])[1]
    assert max(map(len, narrow.splitlines())) <= 40 and "\x1b" not in narrow
    assert narrow.split() == out.split()


def test_neither_card_nor_names_can_command_the_terminal(koa, copy, fine, tmp_path):
    evil, page = "\x1b[2J\u202e", tmp_path / "page.html"
    texts = dict.fromkeys(("arm", "run", "commit", "data", "cohort"), evil)
    performance = {"split": evil, "reason": evil}
    rewrite(copy, **texts, names=[evil] * 5, descriptions=[evil] * 5, performance=performance)
    _, *shown = koa(fine[0], tmp_path / f"no{evil}", "--weights", copy, "--html", page)
    shown += [page.read_text(), *koa(fine[0], "--weights", tmp_path / f"no{evil}")[1:]]
    assert not [text for text in shown if "\x1b" in text or "\u202e" in text]
    first = koa(fine[0], "--weights", copy, "--json")[1].splitlines()[0]
    assert json.loads(first)["arm"] == evil and "\x1b" not in first  # values stay as they are


def test_warnings_stand_in_the_rows_and_are_explained_once(koa, tmp_path, fine):
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    for name in ("0.png", "1.png"):
        Image.fromarray(noise).save(tmp_path / name)
    page = Image.open(fine[0])
    page.save(tmp_path / "2.tif", save_all=True, append_images=[page])
    first, _, pages = rows_of(koa(tmp_path, "--json")[1])
    assert first["unlike_training"] and first["probably_no_knee"] and first["grade"] in range(5)
    assert predict.NO_KNEE in first["warnings"] and "2 pictures" in str(pages["warnings"])
    out = koa(tmp_path)[1]
    lines = {line[:5]: line for line in out.splitlines()}
    assert "no knee" in lines["0.png"] and "colour" in lines["1.png"] and "2 pictures" in lines["2.tif"]
    assert out.count(predict.NO_KNEE) == 1


@pytest.mark.parametrize("arguments", [
    ["--weights", "nowhere", "x.png"], ["-"], [], [""], ["x.png", "--html", "."], ["x.png", "--html", "no/x"],
    ["x.png", "--out", "no/x"], ["x.png", "--out", "x", "--html", "y"],
])  # fmt: skip
def test_wrong_use_is_exit_2(koa, arguments):
    code, out, err = koa(*arguments)
    assert code == 2 and out == "" and err and "Traceback" not in err


def test_page_is_complete_self_contained_and_never_written_over(koa, fine, tmp_path, monkeypatch):
    page, strange = tmp_path / "page.html", tmp_path / "<b>&.png"
    strange.write_text("no picture")
    assert koa(fine[0], strange, "--html", page)[0] == 1
    text = page.read_text(encoding="utf-8")
    assert text.count("<article>") == 2 and "&lt;b&gt;&amp;.png" in text
    assert text.count("data:image/jpeg") == text.count("<img") == text.count('alt="T') == 2
    assert "no medical device" in text and "test of the software" in text
    assert "://" not in text and str(tmp_path) not in text
    assert koa(fine[0], "--html", page)[0] == 2 and page.read_text(encoding="utf-8") == text
    monkeypatch.setattr(explain, "heatmap", lambda *_: 1 / 0)
    assert koa(fine[0], "--html", tmp_path / "unseen.html")[0] == 0


# A large archive


def test_what_a_file_of_grades_holds_is_kept_and_the_rest_is_added(koa, fine, tmp_path):
    out, bad, names = tmp_path / "out.jsonl", tmp_path / "bad.png", tmp_path / "list.txt"
    bad.write_text("no picture")
    expected = koa(*fine, bad, "--json")[1].splitlines()
    assert koa(*fine[:2], "--out", out)[:2] == (0, "")
    assert [json.loads(line) for line in out.read_text().splitlines()] == list(map(json.loads, expected[:3]))
    first = out.read_bytes()
    out.write_bytes(first + first[-100:-40])  # killed while it wrote
    names.write_text("\n".join(map(str, [*fine, bad])))
    code, _, err = koa(names, "--out", out)
    assert code == 1 and "4 pictures, 2 of them new; 1 could not be graded" in err
    assert out.read_bytes().startswith(first)
    assert [row["path"] for row in rows_of(out.read_text())] == [*map(str, fine), str(bad)]
    before = out.read_bytes()
    assert koa(fine[0], bad.parent, "--out", out)[0] == 1 and out.read_bytes() == before


def test_an_archive_in_a_folder_of_another_name_is_another(koa, fine, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(fine[0], tmp_path / name / "k.png")
        monkeypatch.chdir(tmp_path / name)
        assert koa("k.png", "--out", "../out.jsonl")[0] == 0
    assert len(rows_of((tmp_path / "out.jsonl").read_text())) == 2


@pytest.mark.parametrize("spoil", [
    lambda out, copy: rewrite(copy, arm="other"),
    lambda out, copy: out.write_text("my notes\nof today"),
    lambda out, copy: out.write_text("my notes of today"),
    lambda out, copy: out.write_text(out.read_text() + "half a li\n" + "half"),
    lambda out, copy: fcntl.flock(os.open(out, os.O_RDONLY), fcntl.LOCK_EX),
])  # fmt: skip
def test_a_file_that_is_not_this_archives_stays_as_it_is(koa, copy, fine, tmp_path, spoil):
    out = tmp_path / "out.jsonl"
    assert koa(fine[0], "--weights", copy, "--out", out)[0] == 0
    spoil(out, copy)
    before = out.read_bytes()
    code, said, err = koa(*fine, "--weights", copy, "--out", out)
    assert code == 2 and said == "" and len(err.splitlines()) == 1 and str(out) in err
    assert out.read_bytes() == before


# The weights and their card


def card_of(folder):
    with safe_open(folder / predict.FILE, "numpy") as file:
        return json.loads(file.metadata()["card"])


def rewrite(folder, arrays=(), **facts):
    """Weights with another card or other arrays (None: without it), sealed as an export seals them."""
    path, card = folder / predict.FILE, json.dumps({**card_of(folder), **facts})
    arrays = {**load_file(path), **dict(arrays)}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    save_file(arrays, path, {"card": card, "sha256": predict.sha256(card, arrays)})


@pytest.mark.parametrize("spoil", [
    lambda folder: (folder / predict.FILE).unlink(),
    lambda folder: (folder / predict.FILE).write_bytes((folder / predict.FILE).read_bytes()[:-99]),
    lambda folder: save_file(load_file(folder / predict.FILE), folder / predict.FILE),
    lambda folder: rewrite(folder, format=2),
    lambda folder: rewrite(folder, quick_gelu=True),
    lambda folder: rewrite(folder, part="adapter"),
    lambda folder: rewrite(folder, grades=[1, 2, 3, 4, 5]),
    lambda folder: rewrite(folder, {"fixed_prototypes": None}),
    lambda folder: rewrite(folder, {"novelty.mean": None}),
    lambda folder: rewrite(folder, {"unknown": np.zeros(3, np.float32)}),
])  # fmt: skip
def test_damaged_or_foreign_weights_are_refused_in_a_line(koa, copy, spoil):
    spoil(copy)
    code, out, err = koa("x.png", "--weights", copy)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and str(copy) in err


def test_a_single_wrong_bit_anywhere_is_found(copy):
    path = copy / predict.FILE
    whole = path.read_bytes()
    for place in [*range(8, 5000, 500), *range(5000, len(whole), len(whole) // 10)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StudyError, match=predict.FILE):
            predict.load(copy)


def test_card_tells_what_the_model_is(weights, easy_study):
    card = predict.load(weights).card
    performance = card["performance"]
    assert str(easy_study.run_dir.parent) not in json.dumps(card) and len(list(weights.iterdir())) == 1
    assert performance["split"] == "test"
    assert performance["pictures"] == card["novelty"]["checked"] == 20
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in performance["metrics"])
    assert len(show.cautions({**card, "synthetic": True})) == 2 and card["only_a_test"]
    assert show.cautions({**card, "only_a_test": False, "synthetic": False}) == []


def test_export_is_kept_while_the_model_is_the_same(weights, easy_study):
    before = (weights / predict.FILE).stat().st_mtime_ns
    assert export.export(easy_study) == weights and (weights / predict.FILE).stat().st_mtime_ns == before


def test_newest_run_that_is_no_test_is_taken_and_none_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "BUILD", tmp_path)
    with pytest.raises(StudyError, match="--weights"):
        export.newest()
    runs = {"older": "demo", "old": "demo", "smoke": "smoke", "dry": "paper\ndry: true"}
    for when, (name, settings) in enumerate(runs.items()):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inputs.yaml").write_text(f"profile: {settings}\n")
        (tmp_path / name / "headline.txt").touch()
        os.utime(tmp_path / name / "headline.txt", (when, when))
    assert export.newest().parent.name == "old"
    for name in ("old", "older"):
        shutil.rmtree(tmp_path / name)
    assert export.newest().parent.name == "dry"
