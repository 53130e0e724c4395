"""Two common networks that know nothing of branches: a residual network and a transformer.

The table `networks` trains them; `--backbone=experiments.tables.backbones:ResNet` takes one.
"""

from functools import partial
from typing import Any

import flax.linen as nn
from jax import Array

_BLOCKS = (2, 2, 2, 2)  # of ResNet-18 (He et al., 2016, Table 1)


class ResNet(nn.Module):
    """ResNet-18 as it is common for small images: a 3x3 stem without pooling (He et al., 2016).

    Attributes:
      width: channels of the first stage, 64 in the paper; they double from stage to stage.
      num_classes: of the head.
    """

    width: int = 64
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Class logits, [batch, num_classes], of [batch, height, width, channels]."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        for stage, count in enumerate(_BLOCKS, start=1):
            for block in range(1, count + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                channels = self.width * 2 ** (stage - 1)
                x = _Block(channels, stride, norm, name=f"stage{stage}_block{block}")(x)
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


class _Block(nn.Module):
    channels: int
    stride: int
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = partial(nn.Conv, self.channels, use_bias=False)
        y = nn.relu(self.norm()(conv((3, 3), self.stride)(x)))
        y = self.norm()(conv((3, 3))(y))
        if x.shape != y.shape:
            x = self.norm(name="shortcut_norm")(conv((1, 1), self.stride, name="shortcut")(x))
        return nn.relu(x + y)


class ViT(nn.Module):
    """A vision transformer with normalisation before attention (Dosovitskiy et al., 2021).

    Attributes:
      patch: height and width of a token, in pixels.
      width: of a token.
      depth: number of blocks, each attention and a perceptron of four times the width.
      heads: of the attention.
      num_classes: of the head.
    """

    patch: int = 8
    width: int = 48
    depth: int = 4
    heads: int = 4
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Class logits, [batch, num_classes], of [batch, height, width, channels]."""
        x = nn.Conv(self.width, (self.patch,) * 2, (self.patch,) * 2, name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        places = self.param("places", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + places
        for block in range(1, self.depth + 1):
            x = _TransformerBlock(self.heads, name=f"block{block}")(x)
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


class _TransformerBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x + nn.MultiHeadAttention(self.heads)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)
