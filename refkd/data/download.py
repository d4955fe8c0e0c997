"""Downloads of public data sets, checked by SHA-256 before anything reads them."""

from __future__ import annotations

import os
from pathlib import Path

from refkd.errors import DataError, check_choice, import_extra

__all__ = ["fetch"]

_MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_SHA256 = """\
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  t10k-labels-idx1-ubyte.gz
"""


def fetch(
    name: str, folder: str | os.PathLike[str] | None = None, mirror: str | None = None
) -> Path:
    """Download a data set, or find it where an earlier call put it.

    Parameters
    ----------
    name : str
        ``"mnist"``.
    folder : path-like, optional
        Where the files go; by default ``mnist`` in the user's cache folder for
        refkd. Files already there with the right SHA-256 are not downloaded.
    mirror : str, optional
        Address of a folder with the files, http, https or ftp; by default the
        environment variable ``REFKD_MNIST_MIRROR``, else the copy that
        torchvision uses.

    Returns
    -------
    Path
        The folder, for `load_mnist`.

    Raises
    ------
    ConfigError
        If the name is unknown.
    MissingExtra
        If pooch is not installed (extra ``data``).
    DataError
        If a file cannot be downloaded or has the wrong SHA-256; the message
        says which files to put where.
    """
    check_choice("fetch", "name", name, ["mnist"])
    pooch = import_extra("pooch", "data", "fetch")
    target = Path(folder) if folder is not None else Path(pooch.os_cache("refkd")) / "mnist"
    address = mirror or os.environ.get("REFKD_MNIST_MIRROR") or _MNIST_MIRROR
    digests = {file: digest for digest, file in map(str.split, _MNIST_SHA256.splitlines())}
    registry = {file: f"sha256:{digest}" for file, digest in digests.items()}
    files = pooch.create(path=target, base_url=f"{address.rstrip('/')}/", registry=registry)
    try:
        for file in registry:
            files.fetch(file)
    except (OSError, ValueError) as error:  # no connection, no permission; a wrong hash
        raise DataError(
            f"fetch: could not get {name} from {address} ({error})\n"
            f"Name another mirror (mirror= or --mirror, or REFKD_MNIST_MIRROR), or put these "
            f"files, SHA-256 first, into {target}:\n{_MNIST_SHA256}"
        ) from error
    return target
