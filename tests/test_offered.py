"""What `koa_lib` itself offers: each name has an example in its docstring that works."""

import doctest
import importlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import easy_image
from PIL import Image

import koa_lib
from koa_lib import protocols
from koa_lib.experiment import Experiment


@pytest.fixture(scope="module")
def known(easy_study):
    """What the examples take as given."""
    results = Experiment(easy_study).run(protocols.our_arm(easy_study), splits=["unseen", "external"])
    return {"study": easy_study, "results": results}


@pytest.mark.parametrize("name", koa_lib.__all__)
def test_the_example_of_each_offered_name_works(name, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(easy_image(2, np.random.default_rng(0))).save("knee.png")
    offered = getattr(koa_lib, name)
    monkeypatch.setattr("koa_lib.study.BUILD", tmp_path)
    monkeypatch.setattr("koa_lib.progress.tell", lambda *told, **event: None)  # lines about steps
    module = importlib.import_module(offered.__module__)
    examples = doctest.DocTestFinder(recurse=False).find(offered, name, module, {**vars(module), **known})
    assert sum(len(test.examples) for test in examples) > 0
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples[0])
    assert not failed


def test_what_is_not_offered_is_said():
    with pytest.raises(AttributeError, match="Experiment"):
        importlib.import_module("koa_lib").__getattr__("Experimnet")


def test_the_library_is_quick_to_import():
    """`koa` commands that compute nothing do not wait for torch."""
    code = "import koa_lib, sys; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
