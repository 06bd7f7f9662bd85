"""An image tower that reads the two halves of a knee alike: a grade cannot depend on left and right.

Pictures (n, 3, H, W) -> `Upright` -> `Parted` (2n, 1, h, w) -> three stages -> `Joined` (n, c, h', 2w')
-> the last stage, parted and joined again -> `MeanAndMaximum` (n, 2c).
"""

import torch
import torch.nn.functional as F
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from koa_lib import tower

WIDTH = 0.55  # of a picture: each half reaches a little beyond the middle, so that both see the spines
TOP, BOTTOM = 0.1, 0.9  # of its height: the joint line is in the middle, shafts above and below say little
THUMBNAIL = 8  # pixels a side
# Correlation with the mean thumbnail below which a picture is a negative: of Chen's 6,604 train and val
# pictures 85 lie below -0.3, none between that and -0.1.
NEGATIVE = -0.2
MEMORY = 0.01  # share of a batch in the running mean thumbnail


class Upright(nn.Module):
    """Pictures (n, c, H, W) as one channel with mean 0 and spread 1 each; negatives are turned.

    What is a negative is told by the running mean of the training pictures' thumbnails, alike for a picture
    and its mirror image.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("thumbnail", torch.zeros(1, 1, THUMBNAIL, THUMBNAIL))

    def forward(self, images):
        gray = images.float().mean(1, keepdim=True)
        spread = gray.std((2, 3), keepdim=True).clamp(min=1e-6)
        gray = (gray - gray.mean((2, 3), keepdim=True)) / spread
        small = F.adaptive_avg_pool2d(gray, THUMBNAIL)
        small = (small + small.flip(-1)) / 2
        alike = F.cosine_similarity(small.flatten(1), self.thumbnail.flatten(1))
        sign = torch.where(alike < NEGATIVE, -1.0, 1.0).view(-1, 1, 1, 1)
        if self.training:
            self.thumbnail.lerp_((sign * small).detach().mean(0, keepdim=True), MEMORY)
        return sign * gray


class Parted(nn.Module):
    """The left part of each picture or map (n, c, h, w) and the mirrored right one, all left parts first:
    (2n, c, rows, share * w)."""

    def __init__(self, share=0.5, top=0.0, bottom=1.0):
        super().__init__()
        self.share, self.top, self.bottom = share, top, bottom

    def forward(self, pictures):
        rows, columns = self.area(*pictures.shape[-2:])
        seen = pictures[..., rows, :]
        return torch.cat([seen[..., columns], seen.flip(-1)[..., columns]])

    def area(self, height, width):
        """Rows and columns of the left part, as slices."""
        rows = slice(round(self.top * height), round(self.bottom * height))
        return rows, slice(0, round(self.share * width))


class Joined(nn.Module):
    """Maps (2n, c, h, w) of parted pictures, the left beside the right one turned back, (n, c, h, 2w)."""

    def forward(self, parts):
        left, right = parts.chunk(2)
        return torch.cat([left, right.flip(-1)], dim=-1)


class MeanAndMaximum(nn.Module):
    """Joined maps (n, c, h, 2w) to features (n, 2c): mean and maximum over the two halves' means."""

    def forward(self, maps):
        halves = torch.stack(maps.chunk(2, dim=-1)).mean((-2, -1))
        return torch.cat([halves.mean(0), halves.amax(0)], dim=-1)


class SymmetricResNet(ResNet):
    """A ResNet-18 over both halves of a picture with shared weights; a picture and its mirror image have the
    same answer."""

    def __init__(self):
        super().__init__(BasicBlock, (2, 2, 2, 2), in_chans=1, num_classes=0)
        self.default_cfg = {"pool_size": (4, 3)}  # open_clip asks for it: 102 x 70 pixels, 32 times smaller
        self.reads = Parted(WIDTH, TOP, BOTTOM)
        self.conv1 = nn.Sequential(Upright(), self.reads, self.conv1)
        # A picture has one map before and after the last stage, so that a trunk can end there.
        self.layer3 = nn.Sequential(self.layer3, Joined())
        self.layer4 = nn.Sequential(Parted(), self.layer4, Joined())
        self.num_features *= 2
        self.reset_classifier(0)

    def reset_classifier(self, num_classes, global_pool="avg"):
        """New outputs; the halves are pooled in one way only."""
        super().reset_classifier(num_classes, global_pool)
        self.global_pool = MeanAndMaximum()

    def placed(self, maps, size):
        """Joined maps (n, 1, h, 2w) at the pictures' size (height, width), each half where it was read; the
        larger value where both were, 0 where none was."""
        rows, columns = self.reads.area(*size)
        whole = maps.new_zeros(2, len(maps), 1, *size)
        seen = whole[..., rows, columns]
        for half, part in zip(seen, Parted()(maps).chunk(2), strict=True):
            half[:] = tower.spread(part, seen.shape[-2:])
        return torch.maximum(whole[0], whole[1].flip(-1))


@register_model
def resnet18_two_halves(pretrained=False, **_):
    """`SymmetricResNet` as timm makes networks, by name; there are no weights and no options of it."""
    return SymmetricResNet()
