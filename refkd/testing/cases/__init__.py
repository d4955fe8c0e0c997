"""Inputs for every kernel pair, one file per file of ``refkd.ops`` and ``refkd.losses``.

A file defines ``CASES``, a tuple of :class:`refkd.testing.pairs.PairCase`; it is found
by itself. Kernels are named, not imported.
"""
