"""koa_lib: the library behind the koa-clip study.

What a reader of the paper looks for first is offered here; each has an example in its docstring.
"""

import warnings
from importlib import import_module

# tqdm complains about a missing browser widget in every notebook; the study prints plain lines instead.
warnings.filterwarnings("ignore", message="IProgress not found")

OFFERED = {
    "read_gray": "images", "KneeDataset": "datasets", "load_clip": "model", "ClipGrader": "model",
    "Study": "study", "Arm": "arm", "Experiment": "experiment", "Results": "results",
}
__all__ = list(OFFERED)


def __getattr__(name):
    # Imported when asked for: torch takes seconds, and most commands need none of it.
    if name not in OFFERED:
        offered = ", ".join(OFFERED)
        raise AttributeError(f"koa_lib has no '{name}'. It offers {offered}; all else is in its modules.")
    return getattr(import_module(f"koa_lib.{OFFERED[name]}"), name)
