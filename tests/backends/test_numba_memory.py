"""Memory over a long training: after the first steps a step takes none that it does not return."""

from __future__ import annotations

import sys

import pytest

from refkd.dispatch import available_backends
from tests.backends.processes import run

if available_backends()["numba"]:
    pytest.skip(str(available_backends()["numba"]), allow_module_level=True)

STEPS = """
import sys
import numpy as np
from refkd import models
from refkd.dispatch import use_backend
from refkd.distill import Batch, LogitDistillation, Stage
from refkd.losses import KDSpec
from refkd.nn.layer import add_prefix
from refkd.train.optim import Adam
from refkd.train.schedule import Constant
from refkd.train.step import training_step

name, clip = sys.argv[1], float(sys.argv[2]) or None
options = {
    "mlp": {"in_features": 3 * 12 * 12, "hidden": (32,), "dropout": 0.2},
    "vgg": {"blocks": ((8,), (8,)), "image_size": 12},
}[name]
rng = np.random.default_rng(0)
network = models.create(name, num_classes=5, **options)
objective = LogitDistillation(network, network, KDSpec.preset("hinton", temperature=2.0, alpha=0.5))
optimizer = Adam(1e-4)
params, state = network.init(rng)
learning = add_prefix("student", {key: array.copy() for key, array in params.items()})
moments = optimizer.init(learning)
every = add_prefix("teacher", params) | learning
kept = add_prefix("teacher", state) | add_prefix("student", state)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

with use_backend("numba"):
    step = training_step(Stage(objective, optimizer, Constant(), 1, 8, clip_norm=clip))
    for i in range(10_000):
        count = 5 if i % 7 == 6 else 8
        batch = Batch(
            rng.standard_normal((count, 3, 12, 12), dtype=np.float32),
            rng.integers(5, size=count), None, 8, step=i,
        )
        terms, kept = step(every, kept, moments, batch, rng, lr=1e-4, where="here")
        if i == 1000:
            begun = resident()
print(resident() - begun)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
@pytest.mark.parametrize(
    ("name", "clip_norm"), [("mlp", 0.0), ("mlp", 1.0), ("vgg", 0.0)], ids=["mlp", "eager", "vgg"]
)
def test_ten_thousand_steps_take_no_more_memory_than_one_thousand(
    name: str, clip_norm: float
) -> None:
    grown = int(run(STEPS, name, clip_norm).stdout)
    print(f"{name}: {grown} bytes more")
    assert grown < 2 << 20
