"""PyTorch twins of :mod:`refkd.models`, written from the papers and in torchvision's terms.

They share nothing with refkd but the names of the parameters. Dropout takes its mask from a
NumPy generator, in the order in which a network meets its dropouts, so that both sides can
drop the same entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


class NumpyDropout(nn.Module):
    """Dropout whose mask is drawn in float32 from the generator it is given."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: np.random.Generator | None = None

    def forward(self, x: Any) -> Any:
        if not self.training or self.p == 0:
            return x
        drawn = self.generator.random(tuple(x.shape), dtype=np.float32)
        return x * torch.from_numpy(drawn >= self.p) / (1 - self.p)


def set_generator(network: nn.Module, generator: np.random.Generator) -> None:
    """Let every dropout of the network draw from ``generator``."""
    for module in network.modules():
        if isinstance(module, NumpyDropout):
            module.generator = generator


class SmallCNN(nn.Module):
    def __init__(self, num_classes: int, features: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=7, stride=2, padding=3)
        self.conv2 = nn.Conv2d(32, 32, kernel_size=3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)
        self.dropout = NumpyDropout(dropout)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Any) -> Any:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc(self.dropout(torch.flatten(x, 1)))


class VGG(nn.Module):
    def __init__(
        self,
        num_classes: int,
        blocks: tuple[tuple[int, ...], ...],
        dropout: float,
        track_running_stats: bool,
        features: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in blocks:
            for width in block:
                if dropout > 0:
                    layers.append(NumpyDropout(dropout))
                layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
                layers.append(nn.BatchNorm2d(width, track_running_stats=track_running_stats))
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Any) -> Any:
        return self.fc(self.layers(x).flatten(1))


class ConvReLU(nn.Module):
    def __init__(self, *args: int, **options: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*args, **options)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.conv(x))


class Inception(nn.Module):
    def __init__(
        self, channels: int, c1: int, r3: int, c3: int, r5: int, c5: int, proj: int
    ) -> None:
        super().__init__()
        self.branch1 = ConvReLU(channels, c1, kernel_size=1)
        self.branch2 = nn.Sequential(
            ConvReLU(channels, r3, kernel_size=1), ConvReLU(r3, c3, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            ConvReLU(channels, r5, kernel_size=1), ConvReLU(r5, c5, kernel_size=5, padding=2)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1),
            ConvReLU(channels, proj, kernel_size=1),
        )

    def forward(self, x: Any) -> Any:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], dim=1)


class AuxiliaryClassifier(nn.Module):
    def __init__(self, channels: int, features: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(kernel_size=5, stride=3)
        self.conv = ConvReLU(channels, 128, kernel_size=1)
        self.fc1 = nn.Linear(features, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = NumpyDropout(dropout)

    def forward(self, x: Any) -> Any:
        x = self.dropout(self.conv(self.pool(x)).flatten(1))
        return self.fc2(self.dropout(torch.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    def __init__(
        self,
        num_classes: int,
        aux_features: int | None,
        dropout: float = 0.4,
        aux_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.conv1 = ConvReLU(3, 64, kernel_size=7, stride=2, padding=3)
        self.conv2 = ConvReLU(64, 64, kernel_size=1)
        self.conv3 = ConvReLU(64, 192, kernel_size=3, padding=1)
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        self.dropout = NumpyDropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        self.aux_logits = aux_features is not None
        if aux_features is not None:
            self.aux1 = AuxiliaryClassifier(512, aux_features, num_classes, aux_dropout)
            self.aux2 = AuxiliaryClassifier(528, aux_features, num_classes, aux_dropout)

    def forward(self, x: Any) -> Any:
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv3(self.conv2(x)))
        x = self.pool(self.inception3b(self.inception3a(x)))
        at_4a = self.inception4a(x)
        at_4d = self.inception4d(self.inception4c(self.inception4b(at_4a)))
        x = self.pool(self.inception4e(at_4d))
        x = self.inception5b(self.inception5a(x)).mean(dim=(2, 3))
        logits = self.fc(self.dropout(x))
        if not self.aux_logits:
            return logits
        return logits, self.aux2(at_4d), self.aux1(at_4a)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut_of(shortcut, channels, width, stride)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut_of(shortcut, channels, 4 * width, stride)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class OptionA(nn.Module):
    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x: Any) -> Any:
        half = self.missing // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


def shortcut_of(option: str, channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out_channels:
        return nn.Identity()
    if option == "A":
        return OptionA(out_channels - channels)
    conv = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def stage(block: Any, channels: int, width: int, count: int, stride: int, option: str) -> Any:
    blocks = [block(channels, width, stride, option)]
    blocks += [block(width * block.expansion, width, 1, option) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        block = Bottleneck if depth == 50 else BasicBlock
        counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        e = block.expansion
        self.layer1 = stage(block, 64, 64, counts[0], 1, "B")
        self.layer2 = stage(block, 64 * e, 128, counts[1], 2, "B")
        self.layer3 = stage(block, 128 * e, 256, counts[2], 2, "B")
        self.layer4 = stage(block, 256 * e, 512, counts[3], 2, "B")
        self.fc = nn.Linear(512 * e, num_classes)

    def forward(self, x: Any) -> Any:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


class CifarResNet(nn.Module):
    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(BasicBlock, 16, 16, n, 1, "A")
        self.layer2 = stage(BasicBlock, 16, 32, n, 2, "A")
        self.layer3 = stage(BasicBlock, 32, 64, n, 2, "A")
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))
