"""The plain ways: open_clip's model in float32, torchvision's transforms, a DataLoader, the whole network in
every epoch, and loops over scikit-learn."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import recall_score, roc_auc_score
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from koa_lib.datasets import STATISTICS
from koa_lib.grades import GRADES

BATCH = 64


class Files(Dataset):
    """Picture files and their grades, stretched to `side` pixels with CLIP's statistics."""

    def __init__(self, files, grades, side):
        self.files, self.grades = files, grades
        self.transform = transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor(),
                                             transforms.Normalize(*STATISTICS["clip"])])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, place):
        return self.transform(Image.open(self.files[place]).convert("RGB")), self.grades[place]


def logits(grader, pictures):
    """Logits (n, 5) of normalised pictures by the weights of a `ClipGrader`."""
    embedding = grader.clip.encode_image(pictures)
    embedding = embedding if grader.adapter is None else grader.adapter(embedding)
    return grader.scale * F.normalize(embedding, dim=-1) @ grader.fixed_prototypes.T


@torch.inference_mode()
def embeddings(clip, files):
    """Unit embeddings (n, d) of `Files`."""
    found = [clip.encode_image(pictures) for pictures, _ in DataLoader(files, BATCH)]
    return F.normalize(torch.cat(found), dim=-1).numpy()


@torch.inference_mode()
def probabilities(grader, files):
    """Probabilities (n, 5) of `Files`."""
    found = [logits(grader, pictures) for pictures, _ in DataLoader(files, BATCH)]
    return torch.cat(found).softmax(-1).numpy()


@torch.inference_mode()
def grade(grader, files, place):
    """Probabilities (5,) of one of the `Files`."""
    return logits(grader, files[place][0][None]).softmax(-1)[0].numpy()


def epoch(grader, files, batches, learning_rate):
    """Train what a `ClipGrader` trains for one epoch over `batches`, lists of places in `Files`."""
    trained = [value for value in grader.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    for pictures, grades in DataLoader(files, batch_sampler=batches):
        optimiser.zero_grad()
        F.cross_entropy(logits(grader, pictures), grades).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()


def drawn(grades, probabilities, groups, draws, seed):
    """Sensitivity of each grade and macro-AUC, (draws, 6), when whole groups are drawn with replacement."""
    rng, predicted, found = np.random.default_rng(seed), probabilities.argmax(1), []
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(draws):
        picked = rng.integers(len(members), size=len(members))
        taken = np.concatenate([members[group] for group in picked])
        recall = recall_score(grades[taken], predicted[taken], labels=GRADES, average=None)
        auc = roc_auc_score(grades[taken], probabilities[taken], multi_class="ovr", labels=GRADES)
        found.append([*recall, auc])
    return np.array(found)
