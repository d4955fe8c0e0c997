"""Checking gradients: hand-written ones against numeric derivatives; needs only NumPy."""

from refkd.testing.gradcheck import check_grad
from refkd.testing.report import Comparison, GradCheckError, GradReport, Verdict

__all__ = ["Comparison", "GradCheckError", "GradReport", "Verdict", "check_grad"]
