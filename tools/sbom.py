"""A bill of materials of what is installed: CycloneDX JSON, with the hashes of the lock files.

Run `python -m tools.sbom` in the environment that it should tell of; needs no network.
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from trt_mtp import __version__
from trt_mtp.files import read_text, to_json

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")
BUNDLED = {"nvidia-pytriton": ("tritonserver", "2.51.0")}  # a program inside a package


def locked_hashes(text: str) -> dict[tuple[str, str], list[str]]:
    """(name, version) -> sha256 of each of its files, as a lock file has them."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in re.sub(r"\\\n", " ", text).splitlines():
        pin = re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry)
        if pin:
            found[normal(pin[1]), pin[2]] = re.findall(r"sha256:([0-9a-f]{64})", entry)
    return found


def normal(name: str) -> str:
    """A package's name in the form that all spellings share (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def components(
    installed: Iterator[Distribution], hashes: dict[tuple[str, str], list[str]]
) -> list[dict[str, Any]]:
    """One component for each package, by name, and one for each program that a package brings."""
    found = {}
    for package in installed:
        name, version = normal(package.metadata["Name"]), package.version
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
        }
        if "License-Expression" in package.metadata:
            component["licenses"] = [{"expression": package.metadata["License-Expression"]}]
        files = hashes.get((name, version), [])
        if files:
            component["externalReferences"] = [
                {
                    "type": "distribution",
                    "url": f"https://pypi.org/simple/{name}/",
                    "hashes": [{"alg": "SHA-256", "content": digest} for digest in files],
                }
            ]
        if name in BUNDLED:
            program, its_version = BUNDLED[name]
            part = {"type": "application", "name": program, "version": its_version}
            component["components"] = [{**part, "bom-ref": f"{program}@{its_version}"}]
        found[name] = component
    return [found[name] for name in sorted(found) if name != "trt-mtp"]


def bill() -> dict[str, Any]:
    """The document; the same bytes for the same environment."""
    hashes: dict[tuple[str, str], list[str]] = {}
    for lock in LOCKS:
        hashes |= locked_hashes(read_text(ROOT / lock))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "trt-mtp", "version": __version__}
        },
        "components": components(iter(distributions()), hashes),
    }


if __name__ == "__main__":
    sys.stdout.write(to_json(bill()))
