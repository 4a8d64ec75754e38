"""Versions of TensorRT-LLM: their order, which ones serve Qwen MTP, and why others don't."""

import importlib.metadata
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trt_mtp.errors import InputError
from trt_mtp.files import read_json

# as PEP 440 has them; a local part is a builder's own
PATTERN = re.compile(
    r"v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?:rc(\d{1,5}))?(?:\.post\d{1,6})?(?:\+[a-z0-9.]{1,64})?"
)
FINAL = 10**6  # a release sorts after all of its candidates


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A release or release candidate; post-releases and local builds count as what they repair."""

    major: int
    minor: int
    patch: int
    candidate: int = FINAL

    def __str__(self) -> str:
        suffix = "" if self.candidate == FINAL else f"rc{self.candidate}"
        return f"{self.major}.{self.minor}.{self.patch}{suffix}"


def parse_version(text: str) -> Version:
    """`text` as a version; raises InputError when it is none.

    >>> parse_version("1.3.0rc22.post1") == parse_version("1.3.0rc22") < parse_version("1.3")
    True
    """
    match = PATTERN.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a TensorRT-LLM version; expected one like 1.3.0rc27")
    major, minor, patch, candidate = match.groups()
    number = FINAL if candidate is None else int(candidate)
    return Version(int(major), int(minor), int(patch or 0), number)


@cache
def version_facts() -> dict[str, Any]:
    """build/data/trtllm_versions.json."""
    facts: dict[str, Any] = read_json(Path(__file__).with_name("data") / "trtllm_versions.json")
    return facts


def known_versions() -> tuple[Version, ...]:
    """The versions whose configuration is known, oldest first."""
    return tuple(sorted(parse_version(text) for text in version_facts()["known"]))


def supported_version(text: str) -> Version:
    """`text` as a version that serves Qwen MTP and whose configuration is known.

    Raises InputError with the reason and the version to use instead.
    """
    version = parse_version(text)
    if version in known_versions():
        return version
    advice = f"use {version_facts()['recommended']}"
    for rule in version_facts()["refused"]:
        if version < parse_version(rule["below"]):
            reason = f"{rule['reason']} ({rule['source']})"
            raise InputError(f"TensorRT-LLM {version} can't serve Qwen MTP: {reason}; {advice}")
    newest = known_versions()[-1]
    raise InputError(
        f"TensorRT-LLM {version} is not known here (known: {known_versions()[0]} to {newest}), "
        f"so its configuration can't be written; {advice}, or --trtllm-version {newest}"
    )


def installed_version() -> str | None:
    """The installed tensorrt_llm's version, found without importing it."""
    try:
        return importlib.metadata.version("tensorrt_llm")
    except importlib.metadata.PackageNotFoundError:
        return None


def chosen_version(text: str | None) -> Version:
    """The version asked for, or the installed one; raises InputError when there is neither."""
    text = text or installed_version()
    if text is None:
        raise InputError(
            "tensorrt_llm is not installed here, so name the version of the server with "
            f"--trtllm-version (recommended: {version_facts()['recommended']})"
        )
    return supported_version(text)


def container_of(version: Version) -> str | None:
    """The release image of `version`, where a public Qwen recipe names it."""
    image = version_facts()["containers"].get(str(version))
    return None if image is None else str(image)


def what_was_read(version: Version) -> str:
    """Which published reference the fields of `version` come from; empty for its whole one."""
    read = version_facts()["read"]
    versions = [parse_version(text) for text in read if text != "about"]
    return str(read[str(max(found for found in versions if found <= version))])
