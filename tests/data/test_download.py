from __future__ import annotations

import hashlib
import http.server
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refkd.data import download, fetch, load_mnist, read_idx
from refkd.errors import ConfigError, DataError, MissingExtra

NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CONTENT = {
    name: b"\0\0\x08\3\0\0\0\2\0\0\0\1\0\0\0\1\7\7"
    if "images" in name
    else b"\0\0\x08\1\0\0\0\2\0\1"
    for name in NAMES
}


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect the hashes of CONTENT, at no address that the environment names."""
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {n}\n" for n, data in CONTENT.items())
    monkeypatch.setattr(download, "_MNIST_SHA256", sums)
    monkeypatch.delenv("REFKD_MNIST_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A server on this machine: its address, the folder it serves, the paths asked of it."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def unused_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


Served = tuple[str, Path, list[str]]


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_files_arrive_and_can_be_read(served: Served, tmp_path: Path, slash: str) -> None:
    folder = fetch("mnist", tmp_path / "got", mirror=served[0].rstrip("/") + slash)
    assert folder == tmp_path / "got"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert load_mnist(folder).train.labels.tolist() == [0, 1]


def test_the_environment_names_a_mirror(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFKD_MNIST_MIRROR", served[0])
    assert len(list(fetch("mnist", tmp_path / "got").iterdir())) == 4


def test_the_default_folder_is_the_cache_of_the_user(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    assert fetch("mnist", mirror=served[0]) == tmp_path / "cache" / "refkd" / "mnist"


def test_files_that_are_there_are_not_downloaded_again(served: Served, tmp_path: Path) -> None:
    for _ in range(2):
        fetch("mnist", tmp_path / "got", mirror=served[0])
    assert len(served[2]) == 4
    fetch("mnist", tmp_path / "got", mirror=unused_address())


def test_a_file_with_another_hash_is_never_kept(served: Served, tmp_path: Path) -> None:
    (served[1] / NAMES[2]).write_bytes(b"something else")
    with pytest.raises(DataError, match="hash of downloaded file"):
        fetch("mnist", tmp_path / "got", mirror=served[0])
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == sorted(NAMES[:2])


def test_a_damaged_file_in_the_cache_is_fetched_anew(served: Served, tmp_path: Path) -> None:
    folder = fetch("mnist", tmp_path / "got", mirror=served[0])
    (folder / NAMES[0]).write_bytes(b"damaged")
    fetch("mnist", folder, mirror=served[0])
    np.testing.assert_array_equal(read_idx(folder / NAMES[0]).ravel(), [7, 7])


def test_a_mirror_without_the_files_is_an_error_that_names_it(
    served: Served, tmp_path: Path
) -> None:
    (served[1] / NAMES[0]).unlink()
    with pytest.raises(DataError, match="404"):
        fetch("mnist", tmp_path / "got", mirror=served[0])


def test_offline_names_each_file_its_hash_and_its_place(tmp_path: Path) -> None:
    address = unused_address()
    with pytest.raises(DataError, match=address) as caught:
        fetch("mnist", tmp_path / "got", mirror=address)
    text = str(caught.value)
    for name, data in CONTENT.items():
        assert f"{hashlib.sha256(data).hexdigest()}  {name}" in text
    assert str(tmp_path / "got") in text
    assert "REFKD_MNIST_MIRROR" in text


@pytest.mark.parametrize("mirror", ["not an address", "gopher://127.0.0.1/mnist"])
def test_an_address_of_no_use_is_a_data_error(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(DataError, match="could not get mnist"):
        fetch("mnist", tmp_path / "got", mirror=mirror)


def test_a_folder_that_cannot_be_made_is_a_data_error(served: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="could not get mnist"):
        fetch("mnist", tmp_path / "file" / "folder", mirror=served[0])


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        fetch("mnst")


def test_without_pooch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtra, match=r"refkd\[data\]"):
        fetch("mnist")


def test_the_published_hashes_are_those_of_the_real_files(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    lines = dict(reversed(line.split()) for line in download._MNIST_SHA256.splitlines())
    assert sorted(lines) == sorted(NAMES)
    for name in NAMES[1:]:  # the first is compressed anew in the folder of real data
        content = (real_data / "mnist" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == lines[name]


@pytest.fixture(autouse=True)
def quiet_pooch() -> Iterator[None]:
    logger = logging.getLogger("pooch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)
