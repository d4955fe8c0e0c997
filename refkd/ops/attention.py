"""Scaled dot-product attention of several heads, forward and backward.

The projections that make queries, keys and values, and that merge the heads, are linear
layers; they are elsewhere.
"""

from __future__ import annotations

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ShapeError, check_float_dtypes, check_positive
from refkd.ops.softmax import softmax_backward

__all__ = ["attention_backward", "attention_backward_stepwise", "attention_forward"]


@kernel
def attention_forward(q: Array, k: Array, v: Array, *, scale: float) -> tuple[Array, Array]:
    """Return y = softmax(scale · q kᵀ) v, head by head: means of values, weighted by keys.

    Parameters
    ----------
    q : array, shape (B, heads, M, d)
        Queries.
    k : array, shape (B, heads, N, d)
        Keys, N >= 1 of them.
    v : array, shape (B, heads, N, e)
        Values, one for each key.
    scale : float, > 0
        Usually 1/√d: products of d independent numbers of variance 1 have variance d.

    Returns
    -------
    y : array, shape (B, heads, M, e)
    probabilities : array, shape (B, heads, M, N)
        How much of each value is in y, for the backward; a row sums to 1.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together, there is no key, or ``scale`` is not positive.

    Notes
    -----
    Within a head::

        S_mn = scale · Σ_i q_mi k_ni      P_mn = exp(S_mn) / Σ_j exp(S_mj)      y = P v

    Of a row of S only the differences matter, so that its maximum is subtracted.

    References
    ----------
    Vaswani et al.: Attention Is All You Need, arXiv:1706.03762, §3.2.1.
    """
    where = "attention_forward"
    check_float_dtypes(where, q=q, k=k, v=v)
    _check(where, q, k, v, scale)
    # Softmax in place: the scores are the largest array here, by N/d and more.
    scores = (q * float(scale)) @ k.swapaxes(-1, -2)
    scores -= scores.real.max(axis=-1, keepdims=True)
    probabilities = namespace(q).exp(scores, out=scores)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities @ v, probabilities


@kernel
def attention_backward(
    dy: Array, q: Array, k: Array, v: Array, probabilities: Array, *, scale: float
) -> tuple[Array, Array, Array]:
    """Backward of :func:`attention_forward`; its probabilities have no cotangent.

    Parameters
    ----------
    dy : array, shape (B, heads, M, e)
    q, k, v : array
        As in the forward.
    probabilities : array, shape (B, heads, M, N)
        From the forward.
    scale : float
        As in the forward.

    Returns
    -------
    dq : array, shape (B, heads, M, d)
    dk : array, shape (B, heads, N, d)
    dv : array, shape (B, heads, N, e)

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        As the forward.

    Notes
    -----
    y = P v is linear in both factors, and so is S = scale · q kᵀ::

        dP = dy vᵀ               dv = Pᵀ dy
        dq = scale · dS k        dk = scale · dSᵀ q

    Between them is the softmax of each row, ∂P_n/∂S_j = P_n (δ_nj − P_j)::

        dS_mj = P_mj (dP_mj − Σ_n dP_mn P_mn)

    :func:`attention_backward_stepwise` finds the same, node by node. The sum is ⟨dy_m, y_m⟩,
    which is how kernels find it that keep y instead of P (Dao et al., arXiv:2205.14135).
    """
    where = "attention_backward"
    check_float_dtypes(where, dy=dy, q=q, k=k, v=v, probabilities=probabilities)
    _check(where, q, k, v, scale, dy=dy, probabilities=probabilities)
    dv = probabilities.swapaxes(-1, -2) @ dy
    dscores = softmax_backward(dy @ v.swapaxes(-1, -2), probabilities)
    dq = dscores @ k
    dq *= float(scale)
    dk = dscores.swapaxes(-1, -2) @ q
    dk *= float(scale)
    return dq, dk, dv


def attention_backward_stepwise(
    dy: Array, q: Array, k: Array, v: Array, probabilities: Array, *, scale: float
) -> tuple[Array, Array, Array]:
    """Backward of :func:`attention_forward`, node by node.

    Finds what :func:`attention_backward` does, more slowly: every line inverts the line of
    the forward that stands beside it. The exponentials and their sums are taken anew, as
    the forward does not return them. Its arguments are not checked.
    """
    scores = scale * (q @ k.swapaxes(-1, -2))
    e = namespace(q).exp(scores - scores.real.max(axis=-1, keepdims=True))
    z = e.sum(axis=-1, keepdims=True)

    dp = dy @ v.swapaxes(-1, -2)  # y = P v
    dv = probabilities.swapaxes(-1, -2) @ dy
    de = dp / z  # P = e / z
    dz = -(dp * e).sum(axis=-1, keepdims=True) / z**2
    de = de + dz  # z = Σ e
    dscores = de * e  # e = exp(S − max S), and y does not depend on what is subtracted
    dproducts = scale * dscores  # S = scale · s
    dq = dproducts @ k  # s = q kᵀ
    dk = dproducts.swapaxes(-1, -2) @ q
    return dq, dk, dv


def _check(
    where: str,
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    *,
    dy: Array | None = None,
    probabilities: Array | None = None,
) -> None:
    check_positive(where, "scale", scale)
    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[3] == k.shape[3]
        and k.shape[2] == v.shape[2]
    )
    if not fits:
        raise ShapeError(
            f"{where}: expected q (B, heads, M, d), k (B, heads, N, d) and v (B, heads, N, e), "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if k.shape[2] == 0:
        raise ShapeError(f"{where}: expected at least one key, got k {tuple(k.shape)}")
    rows = tuple(q.shape[:3])
    for name, array, width in (
        ("dy", dy, v.shape[3]),
        ("probabilities", probabilities, k.shape[2]),
    ):
        if array is not None and tuple(array.shape) != (*rows, int(width)):
            raise ShapeError(
                f"{where}: {name} must have shape {(*rows, int(width))} to match "
                f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}, "
                f"got {tuple(array.shape)}"
            )
