"""Small networks of each family, with the shape of their images."""

from __future__ import annotations

from typing import Any

__all__ = ["NETWORKS"]

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"num_classes": 5, "in_features": 60, "hidden": (20, 12)}, (60,)),
    "small_cnn": ({"num_classes": 5, "image_size": 32, "dropout": 0.0}, (3, 32, 32)),
    "vgg": ({"num_classes": 5, "blocks": ((4, 4), (8,)), "image_size": 16}, (3, 16, 16)),
    "cifar_resnet": ({"num_classes": 5, "depth": 8}, (3, 16, 16)),
    "googlenet": (
        {"num_classes": 5, "image_size": 96, "dropout": 0.0, "aux_logits": False},
        (3, 96, 96),
    ),
}
