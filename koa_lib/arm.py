"""One way of making a grader: what varies from row to row of a table."""

from collections.abc import Callable
from dataclasses import dataclass

from koa_lib import classifiers, sources


@dataclass(frozen=True)
class Trunk:
    """The frozen part of a grader: `build` makes the module whose features are cached, `key` says what its
    weights are."""

    name: str
    build: Callable
    key: dict


@dataclass(frozen=True)
class Arm:
    """One way of making a grader: what varies from row to row of a table.

    Attributes
    ----------
    name : str
        Of its row and files.
    recipe : settings.Recipe
    size : int
        Side of its pictures, in pixels.
    build : callable
        Makes the untrained grader, or a `classifiers.Classifier`.
    key : dict
        What that starts from.
    seed : int
    scheme : str
        'images', 'patients' or 'official', see `splits.folds`.
    trunk : Trunk or None
        None when everything is trained, on live pictures.
    loss : callable or None
        As in `losses`; None for the recipe's.
    seen : str
        What a step sees: 'views' (a random one of each picture), or the picture with its mirror image:
        'picture' or 'both', and 'either' where the first of the two is drawn.
    only : tuple of int
        Folds to train; all when empty.
    watch : bool
        Whether the held-out fold is measured after each epoch, for the curves only.
    task : str
        Column of the manifest in place of the KL grade.
    fraction : float
        Of the training patients whose grades are used.
    split_seed : int or None
        Of folds and inner part; None for the study's.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from koa_lib import protocols
    >>> arm = protocols.our_arm(study)
    >>> slower = replace(arm, name="slower", recipe=replace(arm.recipe, learning_rate=1e-5))
    >>> slower.recipe.part == arm.recipe.part
    True
    """

    name: str
    recipe: object
    size: int
    build: Callable
    key: dict
    seed: int
    scheme: str = "official"
    trunk: Trunk | None = None
    loss: Callable | None = None
    seen: str = "views"
    only: tuple = ()
    watch: bool = False
    task: str = "kl_grade"
    fraction: float = 1.0
    split_seed: int | None = None

    @property
    def fits(self):
        """Whether it is a classifier, which is fitted once, and not trained in epochs."""
        return isinstance(self.build, classifiers.Classifier)

    @property
    def code(self):
        """The functions that make the grader and the features that it reads."""
        return [self.build, sources.extract, *([self.trunk.build] if self.trunk else [])]

    def named(self, fold):
        """Name of a trained fold (a `splits.Fold`) in the run folder."""
        return f"{self.name}__fold{fold.number}__seed{self.seed}"

    def depends_on(self, fold):
        """All that a fold's weights depend on beside code and the study's seed: recipe, start, loss, seeds,
        and each part's pictures, grades and groups."""
        watched = fold.reported.get("held_out") if self.watch else None
        parts = {"fit": fold.fit, "select": fold.select, "watched": watched}
        own = ("recipe", "seed", "scheme", "seen", "task", "fraction", "size")
        said = {name: getattr(self, name) for name in own}
        if self.fits:  # a classifier reads no other setting of a recipe
            said |= {"recipe": self.recipe.shaping, "classifier": self.build}
        loss = self.loss and {"loss_of": type(self.loss).__name__, "loss": self.loss}
        trunk = self.trunk and {"trunk": self.trunk.name, "trunk_of": self.trunk.key}
        return {
            **said,
            **(loss or {}),
            **(trunk or {}),
            **self.key,
            "fold": fold.number,
            **{name: part and part.fingerprint for name, part in parts.items()},
        }
