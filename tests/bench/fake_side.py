"""A side that computes nothing; its mode says how it behaves."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import refkd.dispatch
import refkd.threads


def open_side(workload: str, mode: str, threads: int) -> FakeSide:
    if mode == "unopenable":
        raise ValueError("no such side")
    if mode == "tells its team":
        refkd.dispatch.set_default_backend(workload)
    print("libraries print things")
    return FakeSide(mode, threads)


class FakeSide:
    def __init__(self, mode: str, threads: int) -> None:
        self.mode, self.threads = mode, threads
        self.backend_seconds = 0.25

    def verify(self, dtype: str) -> dict[str, np.ndarray]:
        wrong = 1.5 if self.mode == f"wrong in {dtype}" else 1.0
        return {"loss": np.array([2.0], dtype), "gradient of w": np.array([wrong, -3.0], dtype)}

    def run(self, steps: int) -> list[float]:
        if self.mode == "dies":
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)
        if self.mode == "sleeps":
            time.sleep(60)
        if self.mode == "raises":
            raise RuntimeError("no compiler")
        if self.mode == "tells a variable":
            return [float(os.environ["FAKE_SECONDS"])] * steps
        if self.mode == "tells its team":
            return [float(refkd.threads.worker_threads())] * steps
        print("and more things")
        threads = {os.environ[f"{pool}_NUM_THREADS"] for pool in ("OPENBLAS", "OMP", "MKL")}
        assert threads == {str(self.threads)}
        seconds = {"compile": 0.002, "channels_last": 0.003, "eager": 0.004}
        return [seconds.get(self.mode, 0.001)] * steps
