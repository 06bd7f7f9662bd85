"""An image tower that can be cut in two: a frozen trunk, whose output is cached, and a tail."""

import torch.nn.functional as F
from torch import nn


class Tower(nn.Module):
    """Uniform access to open_clip's two kinds of image tower: its own ViT and timm's CNNs."""

    def __init__(self, visual):
        super().__init__()
        # In a list, so that the tower's weights are not registered a second time under this module.
        self._visual = [visual]
        self.is_vit = hasattr(visual, "transformer")

    @property
    def visual(self):
        return self._visual[0]

    @property
    def projection(self):
        return self.visual.proj if self.is_vit else self.visual.head

    def head_modules(self):
        return [self.visual.ln_post] if self.is_vit else [self.visual.head]

    def last_blocks(self):
        return list(self.visual.transformer.resblocks[-2:]) if self.is_vit else [self.visual.trunk.layer4]

    def entering(self, images):
        """What enters the last blocks: tokens (n, t, c) of a ViT, a map (n, c, h, w) of a CNN."""
        if self.is_vit:
            tokens = self.visual._embeds(images)
            for block in self.visual.transformer.resblocks[:-2]:
                tokens = block(tokens)
            return tokens
        trunk = self.visual.trunk
        features = trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(images))))
        return trunk.layer3(trunk.layer2(trunk.layer1(features)))

    def until(self, images, stage):
        """Pictures to the features of a stage, see `model.stage`."""
        return images if stage == "image" else self.onward(self.entering(images), stage)

    def onward(self, entered, stage):
        """What enters the last blocks to the features of a stage."""
        if stage == "tokens":
            return entered
        last = self._last(entered)
        if stage == "pooled":
            return last[:, 0] if self.is_vit and self.visual.pool_type == "tok" else last
        return self._projected(last)

    def after(self, features, stage):
        """Features of a stage to embeddings (n, d)."""
        if stage == "image":
            return self.visual(features)
        if stage == "embedding":
            return features
        return self._projected(self._last(features) if stage == "tokens" else features)

    def placed(self, maps, size):
        """Maps (n, 1, h, w) of the last blocks at the pictures' size, where they were read."""
        return getattr(getattr(self.visual, "trunk", None), "placed", spread)(maps, size)

    def _last(self, entered):
        # What leaves the last block: where only the class token of a wide ViT is read, no other is made.
        visual = self.visual
        if not self.is_vit:
            return visual.trunk.global_pool(visual.trunk.layer4(entered))
        before, last = visual.transformer.resblocks[-2:]
        alone = visual.pool_type == "tok" and low_precision(visual)
        return _class_token(last, before(entered)) if alone else last(before(entered))

    def _projected(self, last):
        visual = self.visual
        if not self.is_vit:
            return visual.head(last)
        pooled = visual.ln_post(last) if last.ndim == 2 else visual._pool(last)[0]
        return pooled @ visual.proj


def spread(maps, size):
    """Maps (n, c, h, w) in another size (height, width), bilinear."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _class_token(block, tokens):
    # What a block of a ViT makes of its first token, (n, 1, c): it looks at all, the others are not made.
    normed = block.ln_1(tokens)
    token = tokens[:, :1] + block.ls_1(block.attention(normed[:, :1], normed, normed))
    return token + block.ls_2(block.mlp(block.ln_2(token)))


class Frozen(nn.Module):
    """A frozen network of pictures: its `trunk` makes of normalised images (n, 3, H, W) embeddings (n, d)."""

    def __init__(self, network, low_precision=True):
        super().__init__()
        self.trunk, self.low_precision = network.eval().requires_grad_(False), low_precision


def low_precision(visual):
    """Whether bf16 autocast pays for an image tower: 3 times faster for a CNN on a CPU, slower for a narrow
    ViT's small products."""
    return not Tower(visual).is_vit or visual.proj.shape[0] >= 512
