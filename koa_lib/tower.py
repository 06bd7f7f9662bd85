"""An image tower that can be cut in two: a frozen trunk, whose output is cached, and a tail."""

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

    def until(self, images, stage):
        if stage == "image":
            return images
        if stage == "embedding":
            return self.visual(images)
        return self._until_vit(images, stage) if self.is_vit else self._until_cnn(images, stage)

    def _until_vit(self, images, stage):
        tokens = self.visual._embeds(images)
        blocks = self.visual.transformer.resblocks
        for block in blocks if stage == "pooled" else blocks[:-2]:
            tokens = block(tokens)
        return tokens[:, 0] if stage == "pooled" and self.visual.pool_type == "tok" else tokens

    def _until_cnn(self, images, stage):
        trunk = self.visual.trunk
        if stage == "pooled":
            return trunk(images)
        features = trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(images))))
        return trunk.layer3(trunk.layer2(trunk.layer1(features)))

    def after(self, features, stage):
        if stage == "image":
            return self.visual(features)
        if stage == "embedding":
            return features
        return self._after_vit(features, stage) if self.is_vit else self._after_cnn(features, stage)

    def _after_vit(self, features, stage):
        if stage == "tokens":
            for block in self.visual.transformer.resblocks[-2:]:
                features = block(features)
        if features.ndim == 2:
            return self.visual.ln_post(features) @ self.visual.proj
        pooled, _ = self.visual._pool(features)
        return pooled @ self.visual.proj

    def _after_cnn(self, features, stage):
        trunk = self.visual.trunk
        if stage == "tokens":
            features = trunk.global_pool(trunk.layer4(features))
        return self.visual.head(features)


class Frozen(nn.Module):
    """A frozen network of pictures: its `trunk` makes of normalised images (n, 3, H, W) embeddings (n, d)."""

    def __init__(self, network, low_precision=True):
        super().__init__()
        self.trunk, self.low_precision = network.eval().requires_grad_(False), low_precision


def low_precision(visual):
    """Whether bf16 autocast pays for an image tower: 3 times faster for a CNN on a CPU, slower for a narrow
    ViT's small products."""
    return not Tower(visual).is_vit or visual.proj.shape[0] >= 512
