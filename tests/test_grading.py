"""`koa grade`: the same grades as the run, whatever the files hold; the row says what was wrong and the exit code tells."""

import errno
import io
import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from koa_lib import cli, exported, graded, gradercard, grading, listing, predictions, profile, protocols, study
from koa_lib.errors import StudyError
from koa_lib.images.read import file_sha256
from koa_lib.runner import Runner


@pytest.fixture(scope="module")
def weights(easy_study):
    """Weights exported from the study of easy pictures, after its training."""
    Runner(easy_study).run(protocols.our_arm(easy_study))
    return exported.export(easy_study)


@pytest.fixture
def koa(monkeypatch, capsys, weights):
    """A function that runs `koa grade` in this process: exit code, stdout, stderr."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["koa", "grade", *map(str, arguments), *([] if "--weights" in arguments else ["--weights", str(weights)])])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode())))
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code or 0, *capsys.readouterr()

    return run


def rows_of(out):
    model, *rows = map(json.loads, out.splitlines())
    assert model["type"] == "model"
    return rows


def good(easy_study, number=3):
    return sorted((easy_study.folder_of("training")).rglob("*.png"))[:number]


def same_as_run(folder, run_dir, files_of):
    """Grade every file of a prediction file of the exported arm and compare with what the run wrote."""
    model = grading.load(folder)
    card = model.card
    for path in (run_dir / "predictions").glob(f"{card['arm']}__*__{card['geometry']}-{card['intensity']}__fold{card['fold']}__seed{card['seed']}.csv"):
        expected = predictions.read(path)
        rows = list(grading.grade(model, [files_of(path.name)[image] for image in expected["image_id"]]))
        assert not [row.problem for row in rows if row.problem]
        assert np.abs(np.stack([row.probabilities for row in rows]) - expected[predictions.PROBABILITIES].to_numpy()).max() < 1e-4
        yield path.name


def test_grades_are_those_of_the_run(weights, easy_study):
    files = {path.stem: path for role in ("training", "external") for path in easy_study.folder_of(role).rglob("*.png")}
    assert {name.split("__")[1] for name in same_as_run(weights, easy_study.run_dir, lambda name: files)} >= {"easy_a-test", "easy_b-external"}


def test_grades_of_a_smoke_run_are_those_of_koa_grade(smoke_run):
    folder = exported.export(study.Study.open("smoke", step="tests"))
    assert grading.load(folder).card["only_a_test"]

    def files(name):
        cohort = smoke_run / "data" / name.split("__")[1].split("-")[0]
        rows = pd.read_csv(cohort / "manifest.csv", dtype=str)
        return {image: cohort / path for image, path in zip(rows["image_id"], rows["path"], strict=True)}

    assert len(list(same_as_run(folder, smoke_run, files))) >= 4


@pytest.mark.parametrize("part", ["adapter", "projection", "last_blocks", "full_image", "both_encoders"])
def test_weights_of_every_reading_grade_alike_without_the_text_tower(part, tmp_path, weights):
    import torch

    recipe = profile.Recipe(**{**vars(profile.load("smoke").our_protocol), "part": part})
    clip, _, tokenizer = grading.models.load_clip("koa-tiny", seed=3)
    grader = grading.models.ClipGrader(clip, tokenizer, part, recipe.prompts, 0.3).eval()
    with torch.no_grad():
        for value in grader.parameters():  # also what was frozen, so that nothing can come from a fresh start
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    known = grading.load(weights)
    exported.write(tmp_path / "w", grader, {**known.card, **exported.architecture("koa-tiny", recipe), "residual": 0.3}, known.novelty)
    squares = np.random.default_rng(0).integers(0, 256, (3, 112, 112), dtype=np.uint8)
    again = grading.forward(grading.load(tmp_path / "w").grader, squares, "clip")
    for one, two in zip(grading.forward(grader, squares, "clip")[:2], again[:2], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert not [name for name in load_file(tmp_path / "w" / grading.WEIGHTS) if "transformer" in name and "visual" not in name]


def test_half_precision_is_only_used_where_nothing_is_lost():
    exact, inexact, large = np.float32([0.5, -2, 0]), np.float32([0.1, 1]), np.float32([1e6])
    assert exported._short(exact).dtype == np.float16 and exported._short(inexact).dtype == exported._short(large).dtype == np.float32


BAD = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("no picture"),
    "cut.png": lambda path: (Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)).save(path), path.write_bytes(path.read_bytes()[:5000])),
    "nan.tif": lambda path: Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(path),
    "huge.png": lambda path: Image.new("1", (20_000, 20_000)).save(path),
    "large.png": lambda path: Image.new("1", (9000, 8000)).save(path),
    "thin.png": lambda path: Image.new("L", (9, 300)).save(path),
    "no.dcm": lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(20)),
    "folder": lambda path: path.mkdir(),
    "flat.png": lambda path: Image.new("L", (200, 200), 90).save(path),
    "pipe.png": os.mkfifo,
}


@pytest.mark.parametrize("name, words", [
    ("empty.png", "empty"), ("text.png", "no picture"), ("cut.png", "truncated"), ("nan.tif", "nan"), ("huge.png", "20,000 x 20,000 pixels, more than 50,000,000"), ("large.png", "9,000 x 8,000"),
    ("thin.png", "too few"), ("no.dcm", "DICOM"), ("folder", "folder without a picture"), ("missing.png", "no such file or folder"), ("missing.txt", "no such file or folder"), ("flat.png", "nothing to see"), ("pipe.png", "pipe")])
def test_bad_file_is_told_and_the_others_are_graded(koa, easy_study, tmp_path, name, words):
    path = tmp_path / name
    BAD.get(name, lambda path: None)(path)
    fine = good(easy_study, 2)
    code, out, err = koa(fine[0], path, fine[1], "--json")
    first, bad, last = rows_of(out)
    assert code == 1 and bad["grade"] is None and words in bad["problem"] and name in bad["problem"] and str(tmp_path) not in bad["problem"]
    assert first["grade"] is not None and last["grade"] is not None and "Traceback" not in err


def test_any_failure_of_a_decoder_stays_in_its_row(koa, easy_study, monkeypatch):
    fine, read = good(easy_study, 3), grading.read_gray

    def failing(path):
        if path == fine[1]:
            raise MemoryError("no room")
        return read(path)

    monkeypatch.setattr(grading, "read_gray", failing)
    code, out, _ = koa(*fine, "--json")
    assert code == 1 and [row["grade"] is None for row in rows_of(out)] == [False, True, False] and "no room" in rows_of(out)[1]["problem"]


def test_colour_and_noise_are_graded_with_a_warning(koa, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    code, out, _ = koa(tmp_path / "noise.png", "--json")
    row, = rows_of(out)
    assert code == 0 and row["grade"] in range(5) and row["unlike_training"] and row["probably_no_knee"] and any("colour" in text for text in row["warnings"])


def test_sixteen_bit_and_dicom_grade_like_eight_bit(koa, easy_study, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pixels = np.asarray(Image.open(good(easy_study, 1)[0]).resize((64, 64)))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "b.png")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = pydicom.dataset.FileDataset("c", {}, file_meta=meta, preamble=bytes(128))
    file.Rows, file.Columns, file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation, file.SamplesPerPixel = 64, 64, 8, 8, 7, 0, 1
    file.PhotometricInterpretation, file.WindowCenter, file.WindowWidth, file.PixelData = "MONOCHROME2", 128, 256, pixels.tobytes()
    file.save_as(tmp_path / "1.2.840.1")
    code, out, _ = koa(tmp_path, "--json")
    rows = rows_of(out)
    assert code == 0 and sorted(row["name"] for row in rows) == ["1.2.840.1", "a.png", "b.png"]
    assert np.ptp([row["probabilities"] for row in rows], axis=0).max() < 0.02


def test_lists_folders_and_stdin_mean_the_same_files(koa, easy_study, tmp_path):
    files = good(easy_study, 3)
    for file in files:
        shutil.copy(file, tmp_path / file.name)
    (tmp_path / "list.txt").write_text("\n".join(file.name for file in files) + "\n\n")
    expected = [row["probabilities"] for row in rows_of(koa(*files, "--json")[1])]
    for arguments, stdin in (([tmp_path], ""), ([tmp_path / "list.txt"], ""), (["-"], "\n".join(map(str, files)))):
        assert [row["probabilities"] for row in rows_of(koa(*arguments, "--json", stdin=stdin)[1])] == expected


def test_same_names_are_told_apart(tmp_path):
    assert listing.short_names([tmp_path / "one" / "k.png", tmp_path / "two" / "k.png", tmp_path / "l.png"]) == ["one/k.png", "two/k.png", "l.png"]


@pytest.mark.parametrize("count", [1, 5])
def test_terminal_says_what_issue_5_asks_for(koa, easy_study, count):
    code, out, err = koa(*good(easy_study, count))
    assert code == 0 and "no medical device" in out and "KL" in out and f"{count} of {count} picture" in out and err == ""
    assert ("similarity" in out and "definite absence" in out) == (count == 1)


def test_pipe_in_a_folder_does_not_hang(koa, easy_study, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    shutil.copy(good(easy_study, 1)[0], tmp_path / "a.png")
    assert koa(tmp_path)[0] == 0


def test_table_says_warnings_in_short_words_and_explains_them_once(koa, tmp_path):
    for number in range(5):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (300, 200, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    out = koa(tmp_path)[1]
    assert out.count("  ! colour, no knee") == 5 and out.count(grading.NO_KNEE) == out.count(grading.COLOUR) == 1
    assert max(len(line) for line in out.splitlines() if line.startswith(tuple("01234"))) <= 80 and "\n\npicture " in out


def test_descriptions_are_cut_to_the_terminal(koa, easy_study, monkeypatch):
    monkeypatch.setattr(graded, "_columns", lambda: 70)
    lines = [line for line in koa(*good(easy_study, 1))[1].splitlines() if line[2:3].isdigit() and " % " in line]
    assert len(lines) == 5 and max(map(len, lines)) <= 70 and any(line.endswith("...") for line in lines)


@pytest.mark.parametrize("raised, code, words", [(KeyboardInterrupt(), 130, "koa: stopped\n"), (OSError(errno.ENOSPC, "No space"), 2, "koa: The disk is full. Free some space.\n")])
def test_stopped_grading_promises_nothing(koa, easy_study, monkeypatch, raised, code, words):
    def stop(*_):
        raise raised

    monkeypatch.setattr(graded.grading, "grade", stop)
    ended, _, err = koa(*good(easy_study, 1))
    assert ended == code and err == words


def test_file_name_cannot_command_the_terminal(koa, easy_study, tmp_path):
    path = tmp_path / "a\x1b[2J.png"
    shutil.copy(good(easy_study, 1)[0], path)
    assert "\x1b" not in koa(path)[1]


@pytest.mark.parametrize("arguments, words", [(["--weights", "nowhere", "x.png"], "grader.json"), (["-"], "names no picture"), (["x.png", "--html", "."], "exists already"), ([], "pictures"), ([""], "empty name"),
    (["x.png", "--weights", ""], "--weights"), (["x.png", "--html", ""], "--html")])
def test_wrong_use_is_exit_2(koa, arguments, words):
    code, out, err = koa(*arguments)
    assert code == 2 and words in err and out == "" and "Traceback" not in err


@pytest.mark.parametrize("spoil, words", [
    (lambda folder: (folder / grading.WEIGHTS).write_bytes(b"x"), "not the file"), (lambda folder: (folder / grading.WEIGHTS).unlink(), "missing"),
    (lambda folder: damage(folder, b"x"), "damaged"), (lambda folder: damage(folder, (folder / grading.WEIGHTS).read_bytes()[:-99]), "damaged"),
    (lambda folder: (folder / gradercard.CARD).write_text("{"), "no JSON"), (lambda folder: (folder / gradercard.CARD).write_text("[" * 99999), "no JSON"),
    (lambda folder: change(folder, format=9), "format 9"), (lambda folder: change(folder, format=1), "make reproduce"), (lambda folder: change(folder, quick_gelu=True), "quick_gelu"),
    (lambda folder: change(folder, True, part="adapter"), "does not fit"), (lambda folder: change(folder, True, name="koa-conv", image_size=grading.models.open_clip.get_model_config("koa-conv")["vision_cfg"]["image_size"]), "shape|does not fit"),
    (lambda folder: spoil_novelty(folder, mean=np.zeros(3, np.float32)), "usual"), (lambda folder: spoil_novelty(folder, more=np.zeros(3, np.float32)), "usual"),
    (lambda folder: change(folder, synthetic=True), "edited"), (lambda folder: change(folder, only_a_test=False, commit="0"), "edited")])
def test_damaged_or_foreign_weights_are_refused(koa, weights, tmp_path, spoil, words):
    shutil.copytree(weights, tmp_path / "w")
    spoil(tmp_path / "w")
    with pytest.raises(StudyError, match=words):
        grading.load(tmp_path / "w")
    code, out, err = koa("x.png", "--weights", tmp_path / "w")
    assert code == 2 and out == "" and err.startswith("koa: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("value", ["missing", None, True, -1, 10**400, float("nan"), "no such", [], [1, "a"], {}, {"threshold": "a"}, {"metrics": [{}]}, {"metrics": 3}])
def test_every_key_of_the_card_is_checked(weights, tmp_path, value):
    card = json.loads((weights / gradercard.CARD).read_text())
    shutil.copytree(weights, tmp_path / "w")
    for key in card:
        changed = {**card, key: value}
        if value == "missing":
            del changed[key]
        (tmp_path / "w" / gradercard.CARD).write_text(json.dumps(changed))
        if changed.get(key, "missing") != card[key]:
            with pytest.raises(StudyError, match="json|quick_gelu"):
                grading.load(tmp_path / "w")


def test_card_may_be_laid_out_anew(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    card = json.loads((weights / gradercard.CARD).read_text())
    (tmp_path / "w" / gradercard.CARD).write_text(json.dumps(dict(reversed(card.items()))))
    assert grading.load(tmp_path / "w").card == card


def change(folder, sealed=False, **facts):
    """Edit a card; sealed as if an export had written it, to reach the checks behind the seal."""
    card = json.loads((folder / gradercard.CARD).read_text()) | facts
    if sealed:
        save_file(load_file(folder / grading.WEIGHTS), folder / grading.WEIGHTS, {gradercard.SEAL: gradercard.seal(card)})
        card[gradercard.HASH] = file_sha256(folder / grading.WEIGHTS)
    (folder / gradercard.CARD).write_text(json.dumps(card))


def damage(folder, content):
    (folder / grading.WEIGHTS).write_bytes(content)
    change(folder, **{gradercard.HASH: file_sha256(folder / grading.WEIGHTS)})


def spoil_novelty(folder, **arrays):
    save_file(load_file(folder / grading.WEIGHTS) | {grading.NOVELTY + name: value for name, value in arrays.items()}, folder / grading.WEIGHTS)
    change(folder, True)


def test_card_tells_what_the_model_is(weights, easy_study):
    card = grading.load(weights).card
    test = predictions.read(easy_study.run_dir / "predictions" / f"clip-our_protocol__easy_a-test__stretch-none__fold{card['fold']}__seed{card['seed']}.csv")
    assert card["performance"]["split"] == "test" and card["performance"]["pictures"] == len(test) == card["novelty"]["checked"]
    accuracy = next(row for row in card["performance"]["metrics"] if row["metric"] == "accuracy")
    assert accuracy["ci_low"] <= accuracy["value"] <= accuracy["ci_high"]
    assert card["name"] == "koa-tiny" and len(card["descriptions"]) == 5 and str(easy_study.run_dir.parent) not in json.dumps(card)


def test_export_is_kept_while_the_model_is_the_same(weights, easy_study):
    before = (weights / grading.WEIGHTS).stat().st_mtime_ns
    assert exported.export(easy_study) == weights and (weights / grading.WEIGHTS).stat().st_mtime_ns == before


def test_newest_run_that_is_no_test_is_taken_and_none_is_told(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "BUILD", tmp_path)
    with pytest.raises(StudyError, match="make reproduce.*--weights"):
        exported.newest()
    for name, when in (("old", 1), ("new", 2)):
        shutil.copytree(weights, tmp_path / name / "weights")
        (tmp_path / name / "headline.txt").write_text("")
        exported.os.utime(tmp_path / name / "headline.txt", (when, when))
    assert exported.newest() == tmp_path / "new" / "weights" and capsys.readouterr().err == ""
    (tmp_path / "old" / "inputs.yaml").write_text("profile: demo\ndry: false\n")
    assert exported.newest() == tmp_path / "old" / "weights" and "'new' is passed over" in capsys.readouterr().err
    (tmp_path / "old" / "inputs.yaml").write_text("profile: demo\ndry: true\n")
    assert exported.newest() == tmp_path / "new" / "weights"


def test_page_is_complete_and_self_contained(koa, easy_study, tmp_path):
    fine, page = good(easy_study, 1)[0], tmp_path / "page.html"
    strange = tmp_path / "<b>&.png"
    strange.write_text("no picture")
    code, _, err = koa(fine, strange, "--html", page)
    text = page.read_text(encoding="utf-8")
    assert code == 1 and "page written" in err and text.count("<article>") == 2 and text.count("data:image/jpeg") == text.count("<img") == text.count('alt="T') == 2
    assert "no medical device" in text and '<html lang="en">' in text and "&lt;b&gt;&amp;.png" in text and "://" not in text and str(tmp_path) not in text
    assert koa(fine, "--html", page)[0] == 2 and page.read_text(encoding="utf-8") == text


def test_weights_that_know_phantoms_say_so(weights):
    model = grading.load(weights)
    told = {synthetic: " ".join(graded.cautions(grading.Model(model.grader, {**model.card, "synthetic": synthetic, "only_a_test": False}, model.novelty))) for synthetic in (True, False)}
    assert "phantoms" in told[True] and told[False] == ""


def test_worse_knee_of_two_is_graded(weights):
    model = grading.load(weights)
    split = grading.Model(model.grader, {**model.card, "geometry": "split"}, model.novelty)
    left, right = np.full((160, 320), 0.2, np.float32), np.full((160, 320), 0.9, np.float32)
    squares = split.squares(np.hstack([left, right]))
    assert len(squares) == 2
    expected = grading.forward(model.grader, np.stack(squares), model.card["statistics"])[0]
    row = grading.Graded(path=None)
    grading._grade_batch(split, [row], [(np.hstack([left, right]), squares)])
    assert row.knee == (expected @ np.arange(5)).argmax() and np.allclose(row.probabilities, expected[row.knee], atol=1e-5)


