"""The report: pages from executed notebooks, offline, complete, whole or not at all."""

import base64
import json
import os
import re
import shutil
import time

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from koa_lib import study
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from reports import build, pages, places, provenance

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABc3UBGAAAAABJRU5ErkJggg==")
STAMP = "05_external_evaluation · commit 1a2b3c4 · data 5d6e7f8 · seed 42 · synthetic phantoms"


def exhibit(name):
    """The markup of a stand-in table or figure, as the exhibits of the library print it."""
    anchor, label = name.replace("_", "-"), name.replace("_", " ").title()
    label += "" if "_s" in name else " of the paper"
    if name.startswith("figure"):
        body = f'<img alt="stand-in" src="data:image/png;base64,{base64.b64encode(PIXEL).decode()}">'
        link = f"../figures/{name}.png"
    else:
        head = "".join(f'<th scope="col">column {i}</th>' for i in range(12))
        row = '<tr><th scope="row">KL 0</th>' + "<td>0.1234</td>" * 11 + "</tr>"
        body = f'<div class="koa-scroll"><table><thead><tr>{head}</tr></thead><tbody>{row * 5}</tbody></table></div>'
        link = f"../tables/{name}.csv"
    return (f'<figure class="koa-exhibit" id="{anchor}" role="group">{body}<figcaption><strong>{label}.'
            f'</strong> Stand-in caption. More words.<br><a href="{link}" download>file</a> '
            f'<small class="koa-stamp">{STAMP}</small></figcaption></figure>')


def html_output(markup):
    return new_output("display_data", data={"text/html": markup, "text/plain": "exhibit"})


def notebook(stem, items):
    log = "\n".join(f"fold 0 epoch {epoch} loss 1.{epoch:03d} accuracy 0.{epoch:03d}" for epoch in range(30))
    cells = [
        new_markdown_cell(f"# {stem[3:].replace('_', ' ').capitalize()}\n\nWhich question is asked, with $p_k$ in it."),
        new_code_cell('profile = "demo"\nseed = 42', metadata={"tags": ["parameters"]}),
        new_code_cell('profile = "smoke"', metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell("## Loss\n\n$$\\mathcal{L} = -\\frac{1}{B}\\sum_{i=1}^{B} "
                          "\\log \\frac{e^{s_{iy_i}}}{\\sum_k e^{s_{ik}}}$$\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
        new_code_cell("fit(study)", outputs=[new_output("stream", name="stdout", text=log),
                                             new_output("stream", name="stderr", text="/a/folder/x.py: UserWarning")]),
        *[new_code_cell(f"tables.{name}(study)", outputs=[html_output(exhibit(name))]) for name in items],
    ]
    papermill = {"duration": 61.5, "end_time": "2026-02-03T04:05:06.000000", "input_path": "/a/folder/x.ipynb"}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "papermill": papermill}
    return new_notebook(cells=cells, metadata=metadata)


STEMS = sorted({maker for _, maker in places.PAPER_ITEMS.values()})
# Exhibits of the study's own that pages written by hand link to: (notebook, exhibit).
LINKED = sorted({(stem, name.replace("-", "_")) for path in (ROOT / "reports").glob("*.md*")
                 for stem, name in re.findall(r"notebooks/(\w+)\.ipynb#((?:table|figure)-s\d+)", path.read_text(encoding="utf-8"))})


def write_run(folder, stems=STEMS):
    """A finished stand-in run with the files of all items of the paper and the notebooks in `stems`."""
    for name in ("nb", "tables", "figures"):
        (folder / name).mkdir(parents=True)
    for stem in stems:
        items = [name for name, (_, maker) in places.PAPER_ITEMS.items() if maker == stem]
        items += ["table_s1"] * (stem == "06_statistics") + [name for maker, name in LINKED if maker == stem and name != "table_s1"]
        nbformat.write(notebook(stem, items), folder / "nb" / f"{stem}.ipynb")
    for name in (*places.PAPER_ITEMS, "table_s1", *(name for _, name in LINKED)):
        if name.startswith("table"):
            (folder / "tables" / f"{name}.csv").write_text("a,b\n1,2\n")
        else:
            (folder / "figures" / f"{name}.png").write_bytes(PIXEL)
    inputs = {"profile": "smoke", "seed": 42, "data": "", "external": "", "weights": "", "synthetic": True}
    (folder / "inputs.yaml").write_text(yaml.safe_dump(inputs))
    line = {"step": "features/a.npz", "reason": "seed changed", "time": "2026-02-03T04:04:10", "notebook": "03_x"}
    lines = [line | {"status": "built", "seconds": 1.25, "peak_mib": 1234.4}, line | {"status": "reused", "seconds": 0.0}]
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half a li')
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stand-in run, built once; tests that change it work on a copy."""
    folder = write_run(tmp_path_factory.mktemp("reports") / "smoke")
    (folder / "tables" / "scorecard.csv").write_text(
        "source,item,row,metric,unit,published,ours,ci_low,ci_high,rule,verdict,reason\n"
        "jpm2026,table_2,test,accuracy,percent,76.94,31.0123,28.5,33.52,3 points,not comparable,synthetic <phantoms>\n"
        "jpm2026,text,images,count,images,8260,8260,,,equal,replicated,\n")
    assert build.build(folder) == folder / "html" / "index.html"
    return folder


def page(run, name):
    return (run / "html" / name).read_text(encoding="utf-8")


def test_the_report_is_whole(run):
    assert build.verify(run) == []
    assert not (run / "html.tmp").exists()


def test_every_page_says_synthetic(run):
    written = sorted((run / "html").glob("*.html")) + sorted((run / "html" / "nb").glob("*.html"))
    assert len(written) >= 11
    for path in written:
        assert "Synthetic phantoms" in path.read_text(encoding="utf-8"), path.name


def test_front_page_states_the_run_and_leads_to_every_item(run):
    text = page(run, "index.html")
    for wanted in ("1a2b3c4", "5d6e7f8", "7.2 minutes", "2026-02-03 04:05", "nb/05_external_evaluation.html#figure-6",
                   "nb/01_data_audit.html#table-1", "tables/table_3.csv", "figures/figure_8.png",
                   "Table S1</a>: Stand-in caption</li>"):
        assert wanted in text, wanted


def test_scorecard_is_read_and_escaped(run):
    text = page(run, "index.html")
    assert ">31.01<" in text and "28.50 to 33.52" in text and "not comparable" in text and ">8,260<" in text
    assert "synthetic &lt;phantoms&gt;" in text


def test_notebook_page_folds_code_hides_parameters_and_sets_math(run):
    text = page(run, "nb/05_external_evaluation.html")
    assert "/a/folder" not in text and "/a/folder" not in page(run, "_sources/nb/05_external_evaluation.ipynb")
    assert "Show source" in text and "<math" in text and "epoch 29" in text
    assert "seed" not in text.split("bd-article")[1].split("<h2")[0]
    assert "mathjax.js" not in text.lower() and "mathjax@" not in text and "require.js" not in text


def test_environment_page_lists_steps_and_versions(run):
    text = page(run, "environment.html")
    for wanted in ("features/a.npz", "seed changed", ">1.2<", ">1,234<", "torch", "Memory", "5d6e7f8"):
        assert wanted in text, wanted


def test_steps_are_those_of_the_last_execution(tmp_path):
    def line(step, status, seconds, **more):
        return json.dumps({"step": step, "status": status, "seconds": seconds, "reason": "because", "notebook": "03_x", "time": "2026-02-03T04:04:10", **more})

    other = json.dumps({"step": "features/b", "status": "built", "seconds": 9.0, "notebook": "interactive"})
    old = [line("features/gone", "built", 5.0), line("03_x", "built", 60.0, peak_mib=4000)]
    new = [line("features/a", "built", 2.0, peak_mib=900), line("features/a", "reused", 2.0, peak_mib=950), line("features/c", "reused", 3.0), line("03_x", "built", 7.5, peak_mib=1000)]
    (tmp_path / "run.jsonl").write_text("\n".join([*old, other, *new, '{"half', "[1]", '{"status": "built"}']))
    (found,) = provenance.steps(tmp_path)
    assert [(step["step"], step["status"], step["seconds"], step["peak_mib"]) for step in found["steps"]] == [("features/a", "built", 2.0, 950), ("features/c", "reused", 3.0, None)]
    assert (found["seconds"], found["peak_mib"], found["built"], found["reused"]) == (7.5, 1000, 1, 1)
    assert provenance.total([found, found | {"peak_mib": None, "seconds": None}]) == {"seconds": 7.5, "peak_mib": 1000, "built": 2, "reused": 2}
    assert provenance.steps(tmp_path / "nowhere") == []


@pytest.mark.parametrize("text", ["profile: [", "just words", "- a\n- b", "key: \x00"])
def test_damaged_inputs_are_a_sentence(tmp_path, text):
    (tmp_path / "inputs.yaml").write_text(text)
    with pytest.raises(StudyError, match="Delete it and run make again"):
        provenance.inputs(tmp_path)
    with pytest.raises(StudyError, match="Delete it and run make again"):
        study._read_inputs(tmp_path / "inputs.yaml")


def test_inputs_with_a_key_less_are_a_sentence(tmp_path):
    (tmp_path / "inputs.yaml").write_text("profile: smoke\nseed: 1\n")
    with pytest.raises(StudyError, match="lacks data, external, weights, content"):
        study._read_inputs(tmp_path / "inputs.yaml")


def test_pages_of_later_notebooks_and_a_glossary_join_by_themselves(tmp_path, monkeypatch, quick):
    sources = shutil.copytree(build.SOURCES, tmp_path / "reports", ignore=shutil.ignore_patterns("_build", "reference"))
    (sources / "glossary.md").write_text("# Glossary\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setitem(places.PAPER_ITEMS, "table_1", ("x", "12_explainability"))
    run = write_run(tmp_path / "smoke", stems=["12_explainability", "00_start_here", "04_baselines"])
    build.build(run)
    text = page(run, "index.html")
    order = [text.index(f"nb/{stem}\n") for stem in ("00_start_here", "04_baselines", "12_explainability")]
    assert order == sorted(order) and "\ndeviations\nglossary\ntripod_ai\n" in text


def test_each_reference_has_an_address_and_is_cited():
    folder = ROOT / "reports"
    entries = dict(re.findall(r"@\w+\{(\w+),(.*?)\n\}", (folder / "references.bib").read_text(encoding="utf-8"), re.DOTALL))
    assert len(entries) > 10 and not [key for key, body in entries.items() if not re.search(r"\b(doi|url) = ", body)]
    pages_of = [*folder.glob("*.md*"), *folder.glob("checklists/*.yaml"), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages_of)
    cited = set(re.findall(r"citation: (\w+)", text)) | {key for keys in re.findall(r"\{cite[:\w]*\}`([^`{]+)`", text) for key in keys.split(",")}
    assert cited == set(entries)


def test_deviations_and_references_are_linked(run):
    assert "references.html#id" in page(run, "deviations.html")
    assert "10.3390/jpm16060314" in page(run, "references.html")


@pytest.fixture
def quick(monkeypatch):
    """Stand in for Sphinx: pages that hold nothing but the raw HTML of the notebooks' outputs."""
    def write_pages(work):
        (work / "html" / "nb").mkdir(parents=True)
        (work / "html" / "index.html").write_text((work / "source" / "index.md").read_text(encoding="utf-8"))
        for path in (work / "source" / "nb").glob("*.ipynb"):
            markup = provenance.html_outputs(nbformat.read(path, as_version=4))
            (work / "html" / "nb" / f"{path.stem}.html").write_text("".join(markup))
    monkeypatch.setattr(build, "_run_sphinx", write_pages)


def test_missing_notebooks_are_said_not_fatal(tmp_path, capsys, quick):
    run = write_run(tmp_path / "smoke", stems=["05_external_evaluation", "06_statistics"])
    (run / "nb" / "04_baselines.failed.ipynb").write_text("{}")
    build.build(run)
    text = page(run, "index.html")
    assert "04_baselines has not been run" in text and "nb/05_external_evaluation\n" in text
    assert "no page shows table 4" in build.verify(run) and "no page shows table 5" not in build.verify(run)
    assert "no page shows table 4" in capsys.readouterr().out
    assert not list((run / "html" / "nb").glob("*failed*"))


def test_a_warning_keeps_the_last_good_report(run, tmp_path):
    broken = write_run(tmp_path / "smoke", stems=["04_baselines"])
    shutil.copytree(run / "html", broken / "html")
    book = notebook("04_baselines", ["table_4"])
    book.cells.append(new_markdown_cell("{cite}`nobody1900`"))
    nbformat.write(book, broken / "nb" / "04_baselines.ipynb")
    with pytest.raises(StudyError, match="nobody1900"):
        build.build(broken)
    assert page(broken, "index.html") == page(run, "index.html")
    assert (broken / "html.tmp" / "source" / "conf.py").is_file()


def test_verify_names_what_is_wrong(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "smoke")
    (copy / "tables" / "table_3.csv").unlink()
    (copy / "html" / "figures" / "figure_2.png").unlink()
    os.utime(copy / "nb" / "01_data_audit.ipynb", (time.time() + 60,) * 2)
    found = "\n".join(build.verify(copy))
    assert "tables/table_3.csv is missing" in found
    assert "html/figures/figure_2.png is missing" in found
    assert "index.html links to figures/figure_2.png" in found
    assert "01_data_audit.ipynb is older" in found


@pytest.mark.parametrize("markup", [
    '<script src="https://cdn.example/x.js"></script>', '<link rel="stylesheet" href="//cdn.example/x.css">',
    '<img src="http://cdn.example/x.png">', '<img srcset="a.png 1x, https://cdn.example/b.png 2x">',
    '<iframe src="https://cdn.example"></iframe>', '<form action="https://cdn.example"></form>',
    '<p style="background: url(https://cdn.example/x.png)">', '<style>@import "https://cdn.example/x.css";</style>'])
def test_remote_resources_are_found(tmp_path, markup):
    (tmp_path / "a.html").write_text(f"<html><body>{markup}</body></html>")
    assert len(pages.remote_resources(tmp_path)) == 1
    (tmp_path / "a.html").write_text('<a href="https://doi.org/10.1">paper</a><img src="data:image/png;base64,AA//BB">')
    assert pages.remote_resources(tmp_path) == []


def test_remote_resource_in_an_output_stops_the_build(tmp_path, quick):
    run = write_run(tmp_path / "smoke", stems=["04_baselines"])
    loud = notebook("04_baselines", ["table_4"])
    loud.cells.append(new_code_cell("loud()", outputs=[html_output('<script src="https://cdn.example/x.js"></script>')]))
    nbformat.write(loud, run / "nb" / "04_baselines.ipynb")
    with pytest.raises(StudyError, match="cdn.example"):
        build.build(run)
    assert not (run / "html").exists()


def test_a_heading_is_no_exhibit(tmp_path):
    (tmp_path / "a.html").write_text('<h2 id="table-4">Table 4</h2><figure class="koa-exhibit" id="table-5"></figure>')
    assert pages.exhibits(tmp_path) == {"table-5"}


def test_dead_links_are_found(tmp_path):
    links = '<a href="b.html"></a><a href="#here"></a><a href="a.html#there"></a>'
    (tmp_path / "a.html").write_text(f'<p id="there">{links}</p>')
    found = [line.split(", ")[0] for line in pages.dead_links(tmp_path)]
    assert found == ["a.html links to #here", "a.html links to b.html"]


def test_an_item_shown_twice_is_linked_where_it_belongs():
    books = {stem: notebook(stem, ["table_2", "figure_s1"]) for stem in ("03_fine_tune", "05_external_evaluation")}
    found = places.exhibits(books)
    assert found["table_2"]["notebook"] == "05_external_evaluation" and found["figure_s1"]["notebook"] == "03_fine_tune"


def test_an_empty_place_gives_its_reason():
    reason = '<p class="koa-missing">Not in this run: no GPU &amp; no time</p>'
    markup = exhibit("table_4").replace("<figcaption>", f"{reason}<figcaption>")
    book = new_notebook(cells=[new_code_cell("x", outputs=[html_output(markup)])])
    assert places.exhibits({"04_baselines": book})["table_4"]["reason"] == "no GPU & no time"


def test_a_folder_without_run_is_refused(tmp_path):
    (tmp_path / "nb").mkdir()
    with pytest.raises(StudyError, match="no executed notebook"):
        build.build(tmp_path)
    (tmp_path / "nb" / "01_data_audit.ipynb").write_text("not json")
    with pytest.raises(StudyError, match="01_data_audit.ipynb is not a notebook"):
        build.build(tmp_path)
    assert build.verify(tmp_path)[0].endswith("does not exist")


def test_real_data_is_named_without_its_folder(tmp_path):
    content = {"profile": "oai", "seed": 1, "data": "/some/where/oai_webp", "external": ""}
    assert not provenance.is_synthetic(content)
    (tmp_path / "inputs.yaml").write_text(yaml.safe_dump(content))
    facts = dict(provenance.facts(provenance.Run.read(tmp_path, {})))
    assert facts["Training data"] == "oai_webp" and facts["External data"] == "none given"
    assert facts["Data hash"] == facts["Commit"] == "unknown"


def test_citation_file_is_valid():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0" and content["license"] == "MIT"
    assert content["authors"] == [{"name": "koa-clip authors"}]
    assert {"message", "title", "type", "version"} <= set(content)
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_smoke_report_is_whole(smoke_run):
    assert build.verify(smoke_run) == []


def test_smoke_pages_are_newer_than_their_inputs(smoke_run):
    index = smoke_run / "html" / "index.html"
    assert index.stat().st_mtime >= (smoke_run / "inputs.yaml").stat().st_mtime
    notebooks = sorted((smoke_run / "nb").glob("0[1-7]_*.ipynb"))
    assert len(notebooks) == 7
    for path in notebooks:
        built = smoke_run / "html" / "nb" / f"{path.stem}.html"
        assert built.stat().st_mtime >= path.stat().st_mtime, path.name


@pytest.mark.parametrize("name", places.PAPER_ITEMS)
def test_smoke_report_shows_every_item(smoke_run, name):
    text = page(smoke_run, "index.html")
    stem = next(path.stem for path in sorted((smoke_run / "html" / "nb").glob("*.html"))
                if f'id="{name.replace("_", "-")}"' in path.read_text(encoding="utf-8"))
    assert f'href="nb/{stem}.html#{name.replace("_", "-")}"' in text
    folder, kind = ("tables", "csv") if name.startswith("table") else ("figures", "png")
    assert (smoke_run / folder / f"{name}.{kind}").stat().st_size > 0


def test_smoke_report_is_stamped_and_offline(smoke_run):
    assert pages.remote_resources(smoke_run / "html") == []
    for path in (smoke_run / "html").glob("nb/*.html"):
        assert "Synthetic phantoms" in path.read_text(encoding="utf-8"), path.name
