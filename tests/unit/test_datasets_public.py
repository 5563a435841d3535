"""Named sets: names, files, downloads through pooch from a server on this machine, the cache."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from forcefield.errors import DataError
from training.datasets import load_split
from training.datasets.public import RemoteFile, find_public_set, local_file

EMBEDDED = Path(__file__).parents[2] / "training/datasets/data"
MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rmd17:ethanol", "rmd17:ethanol"),
        ("RMD17:Aspirin", "rmd17:aspirin"),
        ("rmd17:salicylic_acid", "rmd17:salicylic"),
        ("rmd17:salicylic-acid", "rmd17:salicylic"),
        ("md17:Salicylic Acid", "md17:salicylic"),
        ("ccsd:toluene", "ccsd:toluene"),
    ],
)
def test_names(name: str, found: str) -> None:
    public = find_public_set(name)
    assert public is not None
    assert public.name == found


@pytest.mark.parametrize("path", ["own.extxyz", "C:\\data\\own.xyz", "folder/own.npz"])
def test_paths_are_no_names(path: str) -> None:
    assert find_public_set(path) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rmd17:ethnol", "no molecule 'ethnol'. Did you mean 'rmd17:ethanol'"),
        ("rmd17:caffeine", "It has aspirin, azobenzene"),
        ("ccsd:uracil", "'ccsd' has no molecule 'uracil'"),
        ("rmd:ethanol", "neither a file nor a known data set. Did you mean 'rmd17:ethanol'"),
        ("qm9:all", "Known are rmd17:<molecule>, md17:<molecule>, ccsd:<molecule>"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(DataError) as error:
        load_split(name)
    assert words in str(error.value)


def test_every_rmd17_molecule_has_its_hashes() -> None:
    hashes = set()
    for molecule in MOLECULES:
        public = find_public_set(f"rmd17:{molecule}")
        assert public is not None
        train, test = public.files(1)
        assert train.url.endswith(f"rmd17_{molecule}_train_01.npz")
        assert test.url.endswith(f"rmd17_{molecule}_test_01.npz")
        assert train.sha256 is not None
        assert test.sha256 is not None
        assert len(train.sha256) == len(test.sha256) == 64
        hashes |= {train.sha256, test.sha256}
        assert all(file.sha256 is None for file in public.files(5))
        with pytest.raises(DataError, match="splits 1 to 5; found split=6"):
            public.files(6)
    assert len(hashes) == 20


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("md17:ethanol", "md17_ethanol.npz"),
        ("md17:benzene", "md17_benzene2017.npz"),
        ("md17:paracetamol", "paracetamol_dft.npz"),
    ],
)
def test_original_files(name: str, file: str) -> None:
    public = find_public_set(name)
    assert public is not None
    (remote,) = public.files(1)
    assert remote.url.endswith("/" + file)
    with pytest.raises(DataError, match="splits 1 to 1"):
        public.files(2)


def test_download_with_a_known_hash(tmp_path: Path, server: tuple[Path, str]) -> None:
    folder, url = server
    (folder / "a.npz").write_bytes(b"published")
    remote = RemoteFile(url + "a.npz", "a.npz", sha256(folder / "a.npz"))
    cache = tmp_path / "cache"
    path = local_file(remote, cache)
    assert path == cache / "a.npz"
    assert path.read_bytes() == b"published"
    (folder / "a.npz").unlink()  # From now on the cache must do.
    assert local_file(remote, cache) == path
    assert [p.name for p in cache.iterdir()] == ["a.npz"]


def test_a_download_with_another_hash_is_refused(tmp_path: Path, server: tuple[Path, str]) -> None:
    folder, url = server
    (folder / "a.npz").write_bytes(b"tampered with")
    remote = RemoteFile(url + "a.npz", "a.npz", hashlib.sha256(b"published").hexdigest())
    with pytest.raises(DataError, match="not the published file"):
        local_file(remote, tmp_path / "cache")
    assert not (tmp_path / "cache" / "a.npz").exists()


def test_an_unknown_hash_is_kept_and_held_against_the_file(
    tmp_path: Path, server: tuple[Path, str]
) -> None:
    folder, url = server
    (folder / "b.npz").write_bytes(b"first")
    remote = RemoteFile(url + "b.npz", "b.npz")
    path = local_file(remote, tmp_path / "cache")
    record = path.with_name("b.npz.sha256")
    assert record.read_text().strip() == sha256(path)
    assert local_file(remote, tmp_path / "cache") == path
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match=r"downloaded first\. Delete the file"):
        local_file(remote, tmp_path / "cache")


def test_a_wrong_file_in_the_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rmd17_aspirin_train_01.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"the sha256 is .* was published\. Delete the file"):
        load_split("rmd17:aspirin", cache_dir=tmp_path)


def test_members_of_an_archive(tmp_path: Path, server: tuple[Path, str]) -> None:
    folder, url = server
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("inside/x-train.npz", b"training")
        archive.writestr("x-test.npz", b"testing")
    cache = tmp_path / "cache"
    paths = [
        local_file(RemoteFile(url + "x.zip", "x.zip", member=f"x-{part}.npz"), cache)
        for part in ("train", "test")
    ]
    assert [path.read_bytes() for path in paths] == [b"training", b"testing"]
    with pytest.raises(DataError, match=r"no x-valid\.npz in this archive"):
        local_file(RemoteFile(url + "x.zip", "x.zip", member="x-valid.npz"), cache)


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    # Port 9 (discard) of this machine: refused at once.
    remote = RemoteFile("http://127.0.0.1:9/rmd17_uracil_train_01.npz", "uracil.npz", "0" * 64)
    with pytest.raises(DataError) as error:
        local_file(remote, tmp_path)
    message = str(error.value)
    assert "http://127.0.0.1:9/rmd17_uracil_train_01.npz" in message
    assert f"put the file at {tmp_path / 'uracil.npz'} by hand" in message
    assert "rmd17:ethanol (split 1) comes with the package" in message


def test_a_missing_file_on_the_server(tmp_path: Path, server: tuple[Path, str]) -> None:
    with pytest.raises(DataError, match="404"):
        local_file(RemoteFile(server[1] + "none.npz", "none.npz"), tmp_path)


def test_the_environment_names_the_cache(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = server
    (folder / "c.npz").write_bytes(b"content")
    monkeypatch.setenv("HEGNN_FORCEFIELD_DATA", str(tmp_path / "elsewhere"))
    assert local_file(RemoteFile(url + "c.npz", "c.npz")) == tmp_path / "elsewhere" / "c.npz"
    given = local_file(RemoteFile(url + "c.npz", "c.npz"), tmp_path / "given")
    assert given == tmp_path / "given" / "c.npz"


def ethanol_arrays(part: str) -> dict[str, np.ndarray]:
    with np.load(EMBEDDED / f"rmd17_ethanol_{part}_01.npz") as archive:
        return {key: archive[key] for key in archive.files}


def test_files_put_into_the_cache_by_hand_are_used(tmp_path: Path) -> None:
    """Split 2 and the original set, rebuilt in the published layout from the embedded frames."""
    for part in ("train", "test"):
        np.savez(tmp_path / f"rmd17_ethanol_{part}_02.npz", **ethanol_arrays(part))
    split = load_split("rmd17:ethanol", split=2, cache_dir=tmp_path)
    assert [len(p) for p in (split.train, split.valid, split.test)] == [950, 50, 1000]
    assert split.train[0].source == "rmd17_ethanol_train_02.npz"

    train, test = ethanol_arrays("train"), ethanol_arrays("test")
    np.savez(
        tmp_path / "md17_ethanol.npz",
        z=train["nuclear_charges"],
        R=np.concatenate([train["coords"], test["coords"]]),
        E=np.concatenate([train["energies"], test["energies"]]).reshape(-1, 1),
        F=np.concatenate([train["forces"], test["forces"]]),
    )
    split = load_split("md17:ethanol", cache_dir=tmp_path)
    assert [len(p) for p in (split.train, split.valid, split.test)] == [950, 50, 1000]


def test_a_published_set_with_repeats_trains_on_none_of_its_test_frames(tmp_path: Path) -> None:
    arrays = ethanol_arrays("train")

    def rows(*chosen: int) -> dict[str, np.ndarray]:
        return {
            "z": arrays["nuclear_charges"],
            "R": arrays["coords"][list(chosen)],
            "E": arrays["energies"][list(chosen)],
            "F": arrays["forces"][list(chosen)],
        }

    for part, chosen in (("train", [*range(100), 7]), ("test", [*range(95, 150)])):
        np.savez(tmp_path / f"ethanol_ccsd_t-{part}.npz", **rows(*chosen))
    with zipfile.ZipFile(tmp_path / "ethanol_ccsd_t.zip", "w") as archive:
        for part in ("train", "test"):
            archive.write(tmp_path / f"ethanol_ccsd_t-{part}.npz", f"ethanol_ccsd_t-{part}.npz")
    split = load_split("ccsd:ethanol", cache_dir=tmp_path)
    assert len(split.train) + len(split.valid) == 95
    assert len(split.test) == 55
    assert max(f.index for f in split.train + split.valid) < 95
    assert "1 repeated frames" in split.warnings[0]
    assert "5 frames recur" in split.warnings[1]
