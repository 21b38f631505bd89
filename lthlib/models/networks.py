"""The modules: LeNet, Conv, VGG, ResNet."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS_PER_STAGE = {
    "conv-2": (2,),
    "conv-4": (2, 2),
    "conv-6": (2, 2, 2),
    "vgg-11": (1, 1, 2, 2, 2),
    "vgg-13": (2, 2, 2, 2, 2),
    "vgg-16": (2, 2, 3, 3, 3),
    "vgg-19": (2, 2, 4, 4, 4),
}


def _lenet(hidden: list[int], shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    widths = [shape[0] * shape[1] * shape[2], *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def halved(images: Tensor) -> Tensor:
    """Halves height and width by the maximum; a side of 1 stays, so that small images pass any depth."""
    window = (min(2, images.shape[-2]), min(2, images.shape[-1]))
    return images if window == (1, 1) else functional.max_pool2d(images, window)


class Conv(nn.Module):
    """Conv-2, -4 and -6 (Frankle & Carbin, arXiv 1803.03635, Figure 2): pairs of 3x3 convolutions, then 256, 256.

    On CIFAR-10 Conv-2 has 4.3 M and Conv-4 2.4 M weights, as printed there; Conv-6 as described has 2.26 M (1.14 M in
    convolutions), where the paper prints 1.7 M (1.1 M).
    """

    def __init__(self, stages: tuple[int, ...], width: int, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, columns = shape
        self.stages = nn.ModuleList()
        for number, count in enumerate(stages):
            stage: list[nn.Module] = []
            for _ in range(count):
                stage += [nn.Conv2d(channels, width * 2**number, 3, padding=1), nn.ReLU()]
                channels = width * 2**number
            self.stages.append(nn.Sequential(*stage))
            height, columns = max(1, height // 2), max(1, columns // 2)
        self.hidden1 = nn.Linear(channels * height * columns, 4 * width)
        self.hidden2 = nn.Linear(4 * width, 4 * width)
        self.output = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = halved(stage(images))
        hidden = torch.relu_(self.hidden1(images.flatten(1)))
        return self.output(torch.relu_(self.hidden2(hidden)))


class ConvolutionUnit(nn.Module):
    """A VGG layer: 3x3 convolution with bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        # In place: no later gradient reads what it overwrites, and a pass over memory is saved.
        return torch.relu_(self.norm(self.conv(images)))


class VGG(nn.Module):
    """VGG with BatchNorm for small images: `stages[s]` is the s-th stage's `Sequential` of convolution units.

    `layers` counts the linear layers after pooling; those before `output` are square, each with a ReLU, in `hidden`
    (arXiv 2103.16547, section 4.4).
    """

    def __init__(self, stages: tuple[int, ...], width: int, channels: int, classes: int, layers: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for number, count in enumerate(stages):
            outputs = width * 2 ** min(number, 3)
            inputs = [channels, *[outputs] * (count - 1)]
            self.stages.append(nn.Sequential(*(ConvolutionUnit(size, outputs) for size in inputs)))
            channels = outputs
        square = [part for _ in range(layers - 1) for part in (nn.Linear(channels, channels), nn.ReLU())]
        self.hidden = nn.Sequential(*square)
        self.output = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        for number, stage in enumerate(self.stages):
            images = stage(images if number == 0 else halved(images))
        return self.output(self.hidden(images.mean((2, 3))))


class Block(nn.Module):
    """A residual block of two 3x3 convolutions; its shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(torch.relu_(self.norm1(self.conv1(images)))))
        return torch.relu_(residual + (images if self.shortcut is None else self.shortcut(images)))


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2: `stages[s]` is the s-th stage's `Sequential` of n blocks (width, 2x, 4x)."""

    def __init__(self, blocks: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.stages = nn.ModuleList()
        channels = width
        for number in range(3):
            outputs = width * 2**number
            first = Block(channels, outputs, stride=1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
            channels = outputs
        self.output = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        images = torch.relu_(self.stem(images))
        for stage in self.stages:
            images = stage(images)
        return self.output(images.mean((2, 3)))
