"""The study's figures are the same on every machine, whatever the user's matplotlibrc says."""

import matplotlib
import pytest

from koa_lib.report import show, style

RC = {"axes.facecolor": "black", "text.usetex": True, "savefig.bbox": "tight", "xtick.direction": "in",
      "axes.grid": True}


@style.styled
def draw():
    figure, axes = style.canvas(2)
    axes.plot([0, 3, 1], label="a")
    axes.legend(title="b")
    return figure


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_matplotlibrc_changes_no_figure(kind):
    plain = show._image(draw(), "one", kind)
    with matplotlib.rc_context(RC):
        assert show._image(draw(), "one", kind) == plain
