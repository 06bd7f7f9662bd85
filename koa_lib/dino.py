"""DINO (Caron et al. 2021): a student is shown crops of a picture and must answer as its teacher does, who
sees only large crops.

The teacher is the running average of the student. Grades are never read, and only pictures of the training
split are seen.
"""

import copy
import math
import time
import warnings

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from koa_lib import crops, progress
from koa_lib.device import autocast, seeded
from koa_lib.errors import StudyError
from koa_lib.optimisation import adamw, descend

STUDENT, TEACHER, CENTRE = 0.1, 0.04, 0.9  # temperatures; momentum of the centre
WEIGHT_DECAY, CLIP = 0.01, 3.0  # of AdamW; largest norm of the gradient (DINO's, our reading)
STATE, HISTORY = "state.safetensors", "history.csv"
HEAD = {"hidden_dim": 2048, "bottleneck_dim": 256}  # at most, see `_head`


def pretrain(folder, network, data, chosen, seed):
    """Pre-train the tower that `network` makes, and write the teacher's weights and the history into a
    folder; the rest as `train`."""
    teacher, rows = train(network(), data, chosen, seed)
    folder.mkdir()
    save_file(
        {name: value.cpu().contiguous() for name, value in teacher.state_dict().items()}, folder / STATE
    )
    rows.to_csv(folder / HISTORY, index=False)


def train(network, data, chosen, seed):
    """Pre-train a tower by DINO.

    Parameters
    ----------
    network : Module
        Pictures (n, 3, H, W) to embeddings (n, d); it is the student and is changed.
    data : KneeDataset
        Role 'fit', split 'train'; its grades are not read.
    chosen : settings.Labels

    Returns
    -------
    (Module, DataFrame)
        The teacher's tower, and per epoch: epoch, loss, teacher_entropy (nats), seconds.

    Raises
    ------
    StudyError
        Pictures of another role or split, or a loss that is no number.
    """
    _check(data)
    dino, generator = seeded(seed, Dino, network, chosen), torch.Generator().manual_seed(seed)
    batch = min(chosen.batch, len(data))
    steps = chosen.epochs * (len(data) // batch)
    optimiser = adamw(dino.student, chosen.learning_rate, WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, steps, power=1.0)
    rows, start = [], time.perf_counter()
    for epoch in range(1, chosen.epochs + 1):
        order, found = torch.randperm(len(data), generator=generator).numpy(), []
        for number in range(len(data) // batch):
            images = data.images(np.sort(order[number * batch : (number + 1) * batch]))
            views = crops.views(images, chosen, generator)
            decay = momentum(schedule.last_epoch, steps, chosen.momentum)
            found.append(dino.update(views, optimiser, decay))
            schedule.step()
        means = dict(zip(("loss", "teacher_entropy"), np.mean(found, axis=0).tolist(), strict=True))
        seconds = time.perf_counter() - start
        rows.append({"epoch": epoch, **means, "seconds": seconds})
        left = seconds / epoch * (chosen.epochs - epoch)
        progress.epoch("self-supervised", epoch, chosen.epochs, {"loss": means["loss"]}, left)
    return dino.teacher[0].network, pd.DataFrame(rows)


def momentum(step, steps, first):
    """Momentum of the teacher at a step: from `first` to 1 by a cosine."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * step / max(1, steps))) / 2


def _check(data):
    if data.role != "fit":
        raise StudyError(
            f"Pictures with the role '{data.role}' were given to the pre-training, which takes 'fit': "
            "nothing is learned from pictures that choose or are reported."
        )
    others = sorted(set(data.rows["split"]) - {"train"})
    if others:
        raise StudyError(
            f"The pre-training was given pictures of the split '{others[0]}'. It sees the split 'train' "
            "alone, without its grades."
        )


class Dino(nn.Module):
    """Student and teacher: each a tower and a projection head.

    Parameters
    ----------
    network : Module
        The student's tower; the teacher starts as its copy.
    chosen : settings.Labels
    """

    def __init__(self, network, chosen):
        super().__init__()
        from lightly.loss import DINOLoss

        size = chosen.crop
        with torch.no_grad():
            width = AnySize(network).eval()(torch.zeros(1, 3, size, size)).shape[1]
        # A CNN gains from bf16 on a CPU, a small ViT does not.
        self.low_precision = width >= 512
        self.student = nn.Sequential(AnySize(network), _head(width, chosen)).train()
        teacher = nn.Sequential(AnySize(copy.deepcopy(network)), _head(width, chosen))
        self.teacher = teacher.train().requires_grad_(False)
        self.teacher[1].load_state_dict(self.student[1].state_dict())
        self.loss = DINOLoss(
            chosen.prototypes, TEACHER, TEACHER, student_temp=STUDENT, center_momentum=CENTRE
        )

    def update(self, views, optimiser, decay):
        """One step on the crops of a batch: the student learns, then the teacher follows.

        Parameters
        ----------
        views : list of tensors (n, 3, h, w)
            Two large crops, then small ones.
        decay : float
            Share of its old weights that the teacher keeps.

        Returns
        -------
        (float, float)
            The loss and the mean entropy of the teacher's answers, in nats; the latter is the least loss that
            any student can reach.
        """
        views = [view.to(self.loss.center.device) for view in views]
        with autocast(self):
            with torch.no_grad():
                asked = self.teacher(torch.cat(views[:2])).float().chunk(2)
            sizes = filter(None, (views[:2], views[2:]))
            answered = [self.student(torch.cat(same)).float().chunk(len(same)) for same in sizes]
        entropy = self._entropy(torch.stack(asked))
        loss = self.loss(list(asked), [view for same in answered for view in same])
        value = descend(loss, self.student, optimiser, CLIP)
        self.follow(decay)
        return value, entropy

    def follow(self, decay):
        """Move the teacher's weights towards the student's: ``decay * teacher + (1 - decay) * student``."""
        from lightly.models.utils import update_momentum

        update_momentum(self.student, self.teacher, decay)

    def _entropy(self, asked):
        answers = (asked - self.loss.center) / TEACHER
        return -(answers.softmax(-1) * answers.log_softmax(-1)).sum(-1).mean().item()


class AnySize(nn.Module):
    """A tower that takes crops of any size: the position embedding of CLIP's own ViT is resampled to fewer
    patches."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        table = getattr(self.network, "positional_embedding", None)
        if table is None or images.shape[-1] == self.network.image_size[0]:
            return self.network(images)
        side = images.shape[-1] // self.network.patch_size[0]
        grid = table[1:].T.reshape(1, table.shape[1], *self.network.grid_size)
        patches = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True).flatten(2)[0].T
        return torch.func.functional_call(
            self.network, {"positional_embedding": torch.cat([table[:1], patches])}, images
        )


def _head(width, chosen):
    # DINO's head; a narrow tower gets a narrower one, because the head would else be many times the tower. A
    # random tower answers nearly alike to all pictures, and centring then leaves nothing: batch
    # normalisation, as DINO has it for CNNs, keeps pictures apart.
    from lightly.models.modules import DINOProjectionHead

    hidden, bottleneck = min(HEAD["hidden_dim"], 4 * width), min(HEAD["bottleneck_dim"], width)
    with warnings.catch_warnings():  # lightly uses torch's older weight_norm
        warnings.simplefilter("ignore", FutureWarning)
        return DINOProjectionHead(
            width, hidden, bottleneck, chosen.prototypes, batch_norm=not chosen.published
        )
