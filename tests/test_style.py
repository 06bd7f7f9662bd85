"""The study's figures are the same on every machine, whatever the user's matplotlibrc says."""

import os
import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from koa_lib.report import show, style

@style.styled
def draw():
    figure, axes = style.canvas(2)
    axes.plot([0, 3, 1], label="a")
    axes.legend(title="b")
    return figure

figure, folder = draw(), Path(sys.argv[1])
folder.mkdir()
for kind in ("png", "svg"):
    (folder / f"one.{kind}").write_bytes(show._image(figure, "one", kind))
"""
RC = "axes.facecolor: black\ntext.usetex: True\nsavefig.bbox: tight\nxtick.direction: in\naxes.grid: True\n"


def test_matplotlibrc_changes_no_figure(tmp_path):
    (tmp_path / "matplotlibrc").write_text(RC)
    for name, more in (
        ("with", {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}),
        ("without", {"MATPLOTLIBRC": ""}),
    ):
        subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / name], env={**os.environ, **more}, check=True
        )
    drawn = [
        [(tmp_path / name / f"one.{kind}").read_bytes() for kind in ("png", "svg")]
        for name in ("with", "without")
    ]
    assert drawn[0] == drawn[1]
