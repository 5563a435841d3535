"""Public data sets by name: where they are published, and a cache of what was downloaded.

    rmd17:<molecule>   revised MD17 (PBE/def2-SVP), five published splits of 1000 + 1000 frames
    md17:<molecule>    original MD17 (PBE+TS), the whole trajectory
    ccsd:<molecule>    MD17 geometries at CCSD or CCSD(T), published training and test files

Every download is held against its sha256. Where the hash was not known when this was written, the
one of the first download is kept beside the file, and a file that no longer has it is refused.
"""

import difflib
import hashlib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from forcefield.errors import DataError

CACHE_VARIABLE = "HEGNN_FORCEFIELD_DATA"
"""Environment variable that names another cache folder."""

_RMD17_URL = "https://raw.githubusercontent.com/andersx/rmd17-npz/master/rmd17-npz/"
_SGDML_URL = "http://www.quantum-machine.org/gdml/data/npz/"

_MOLECULES = (
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
_ALIASES = {"salicylic_acid": "salicylic", "acetaminophen": "paracetamol"}

# sha256 of the training and test files of split 1.
_RMD17_SHA256 = {
    "aspirin": (
        "d460f0e43a1a9411b55cdcd9cdbeb9466ae62851ac91392516ab88e4ebc68143",
        "a3c3b61e782d01e6dd649a126004903f7873e8e7ee5034135abfdb8873be711d",
    ),
    "azobenzene": (
        "7a2ce543773f6cb7a2cccecbc37fd479781e27ec2d0bb4e5f9ecff8e404e5857",
        "e83c87fe541a95e7349684e47294821ada708a780b59c469d3792588213cfc05",
    ),
    "benzene": (
        "6e69deb5dc8663c2d2461cc50e522c74742acea7b4185da348fc08585a15cdc7",
        "4aad4aa2f5ae6aa78d2d9f5da7cb285c97864cfbdf054b67de12a1429b249534",
    ),
    "ethanol": (
        "096946747b8d9dcfa042b44f8debbd3da387dfe1586b659e3be789cc4927316a",
        "c3594a0f93d5992e02f9eb671392fb2e5021b3fa4f902417886966d1e4f64e1e",
    ),
    "malonaldehyde": (
        "95723385cdfd7f8446a84cdff607f14901e4c2b3949db7a965147dc5098d8ee1",
        "147404574d4fe3204dea7eb3799426d264e36b7900012f27fd2d26a26832fdaf",
    ),
    "naphthalene": (
        "940f41110785fb0d3fa5feac68800cf4c68bd05fd55d563d3adacf5247d7688a",
        "80a19bca6aaa5cdf241007d6a7332e7b96a8e6ef362c1badcdb86a574ac3fe06",
    ),
    "paracetamol": (
        "819513d42011a63773ff1baf61b06f9f0884370fbdb6539d6f11fc6cb580a0ba",
        "99e09ff10b54c55830c011c0959b643bede0512a89ae5b5b9a11e8abea9b3eaa",
    ),
    "salicylic": (
        "9f96d79ec7a66dec666dbba60307c083ede80ecc919e0c9513ad9accfe43b5c0",
        "4a03f66c719d7684f39620b2bae6842613482a86cdd4e6f95115ae4d37f03cc0",
    ),
    "toluene": (
        "24d0642f897a1da1fdc4dbdd0a9c2a7f6082dd88e02954b12896a45a7a5fbac7",
        "8a658b9bf1b7a5c1abaa03846ee6302725e02bdcd2ab720ef94da0be55625faa",
    ),
    "uracil": (
        "e1d450430362e3bebdeea96b24501f5e56a5a8af1eb02d50cb763f48b51523cf",
        "ceda757f7670d97080ec3c28dfb559aeb8ca54f49e7f0da0682fa1eb5ac00907",
    ),
}
_MD17_FILES = {
    **{name: f"md17_{name}.npz" for name in _MOLECULES},
    "benzene": "md17_benzene2017.npz",
    "azobenzene": "azobenzene_dft.npz",
    "paracetamol": "paracetamol_dft.npz",
}
_CCSD_STEMS = {
    "aspirin": "aspirin_ccsd",
    "benzene": "benzene_ccsd_t",
    "ethanol": "ethanol_ccsd_t",
    "malonaldehyde": "malonaldehyde_ccsd_t",
    "toluene": "toluene_ccsd_t",
}
_FAMILIES = {"rmd17": _MOLECULES, "md17": tuple(_MD17_FILES), "ccsd": tuple(_CCSD_STEMS)}

_LICENSES = {
    "rmd17": "CC0 1.0",
    "md17": "see http://www.sgdml.org",
    "ccsd": "see http://www.sgdml.org",
}
_CITATIONS = {
    "rmd17": "A. S. Christensen, O. A. von Lilienfeld, "
    "Mach. Learn.: Sci. Technol. 1, 045018 (2020)",
    "md17": "S. Chmiela et al., Sci. Adv. 3, e1603015 (2017)",
    "ccsd": "S. Chmiela, H. E. Sauceda, K.-R. Müller, A. Tkatchenko, Nat. Commun. 9, 3887 (2018)",
}


@dataclass(frozen=True)
class RemoteFile:
    """One file on the network.

    Attributes:
        url: Where it is.
        name: What it is called in the cache.
        sha256: Its hash, or None if it was not known.
        member: For a zip archive, the file in it that is wanted.
    """

    url: str
    name: str
    sha256: str | None = None
    member: str | None = None


@dataclass(frozen=True)
class PublicSet:
    """A named set and how it is published.

    Attributes:
        family: "rmd17", "md17" or "ccsd".
        molecule: Name in the publishers' spelling.
    """

    family: str
    molecule: str

    @property
    def name(self) -> str:
        """The name by which a user asks for it."""
        return f"{self.family}:{self.molecule}"

    @property
    def license(self) -> str:
        """Licence of the data."""
        return _LICENSES[self.family]

    @property
    def citation(self) -> str:
        """The paper to cite."""
        return _CITATIONS[self.family]

    def files(self, split: int) -> list[RemoteFile]:
        """One file to be divided, or the published training and test files.

        Raises:
            DataError: The set has no such split.
        """
        last = 5 if self.family == "rmd17" else 1
        if not 1 <= split <= last:
            raise DataError(
                f"{self.name} has the published splits 1 to {last}; found split={split}"
            )
        if self.family == "md17":
            name = _MD17_FILES[self.molecule]
            return [RemoteFile(_SGDML_URL + name, name)]
        if self.family == "ccsd":
            stem = _CCSD_STEMS[self.molecule]
            archive = f"{stem}.zip"
            return [
                RemoteFile(_SGDML_URL + archive, archive, member=f"{stem}-{part}.npz")
                for part in ("train", "test")
            ]
        known = _RMD17_SHA256[self.molecule] if split == 1 else (None, None)
        names = [f"rmd17_{self.molecule}_{part}_0{split}.npz" for part in ("train", "test")]
        return [
            RemoteFile(_RMD17_URL + name, name, sha256)
            for name, sha256 in zip(names, known, strict=True)
        ]


def find_public_set(source: str) -> PublicSet | None:
    """The set that a name such as ``rmd17:ethanol`` means; None if it is no name but a path.

    Raises:
        DataError: The family or the molecule is unknown; the nearest known name is given.
    """
    family, colon, molecule = source.partition(":")
    if not colon or len(family) < 2 or Path(source).exists():  # One letter: a Windows drive.
        return None
    family = family.lower()
    if family not in _FAMILIES:
        near = difflib.get_close_matches(family, _FAMILIES, n=1)
        hint = f" Did you mean '{near[0]}:{molecule}'?" if near else ""
        raise DataError(
            f"'{source}' is neither a file nor a known data set.{hint} "
            f"Known are {', '.join(f'{name}:<molecule>' for name in _FAMILIES)}"
        )
    known = _FAMILIES[family]
    wanted = molecule.lower().strip().replace("-", "_").replace(" ", "_")
    wanted = _ALIASES.get(wanted, wanted)
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f" Did you mean '{family}:{near[0]}'?" if near else ""
        raise DataError(f"'{family}' has no molecule '{molecule}'.{hint} It has {', '.join(known)}")
    return PublicSet(family, wanted)


def local_file(remote: RemoteFile, cache_dir: Path | str | None = None) -> Path:
    """The file on this machine: shipped with the package, cached, or downloaded now.

    Args:
        remote: What is wanted.
        cache_dir: Cache folder; None takes the environment variable ``HEGNN_FORCEFIELD_DATA``, or
            the user's cache folder.

    Returns:
        Its path; for a member of an archive, that of the unpacked member.

    Raises:
        DataError: The download failed, or the file is not the one that was published or first
            downloaded.
    """
    embedded = Path(str(resources.files("training.datasets") / "data" / remote.name))
    if embedded.is_file():
        return embedded
    path = _cache_folder(cache_dir) / remote.name
    record = path.with_name(path.name + ".sha256")
    expected = remote.sha256 or (record.read_text().strip() if record.is_file() else None)
    if not path.is_file():
        _download(remote, path, expected)
    found = _sha256(path)
    if expected is None:
        _write_text(record, found + "\n")
    elif found != expected:
        raise DataError(
            f"{path}: the sha256 is {found}, but {expected} was "
            f"{'published' if remote.sha256 else 'downloaded first'}. Delete the file (and "
            f"{record.name}, if it is there) to download it again from {remote.url}"
        )
    return path if remote.member is None else _unpack(path, remote.member)


def _cache_folder(cache_dir: Path | str | None) -> Path:
    import pooch

    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or pooch.os_cache("hegnn-forcefield")
    return Path(chosen).expanduser()


def _download(remote: RemoteFile, path: Path, expected: str | None) -> None:
    """Fetch a file; pooch gives it its name only when it is complete and its hash is right."""
    import pooch
    import requests

    try:
        pooch.retrieve(
            remote.url,
            known_hash=expected and f"sha256:{expected}",
            fname=path.name,
            path=path.parent,
            progressbar=_has_tqdm(),
        )
    except ValueError as error:  # What pooch raises for a wrong hash.
        raise DataError(
            f"{remote.url}: what was downloaded is not the published file ({error}). Nothing was "
            f"kept; try again, or fetch the file elsewhere and put it at {path}"
        ) from error
    except (OSError, requests.RequestException) as error:
        raise DataError(
            f"cannot download {remote.url} ({type(error).__name__}: {error}). Without a network, "
            f"put the file at {path} by hand; rmd17:ethanol (split 1) comes with the package and "
            "needs none"
        ) from error


def _has_tqdm() -> bool:
    """Pooch draws its bar with tqdm and refuses to without."""
    from importlib.util import find_spec

    return find_spec("tqdm") is not None


def _unpack(archive: Path, member: str) -> Path:
    """One file of a zip archive, unpacked beside it."""
    import zipfile

    target = archive.with_suffix("") / member
    if target.is_file():
        return target
    try:
        with zipfile.ZipFile(archive) as opened:
            inside = next((n for n in opened.namelist() if Path(n).name == member), None)
            if inside is None:
                raise DataError(
                    f"{archive}: no {member} in this archive; it has {opened.namelist()}"
                )
            content = opened.read(inside)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{archive}: not a zip archive ({error}); delete it to try again"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_bytes(content)
    partial.replace(target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    partial.replace(path)
