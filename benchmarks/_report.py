"""What benchmarks take on the command line, and how they print what they found."""

import argparse
import json
from collections.abc import Iterable
from typing import Any


def arguments(what: str, short: str, **switches: str) -> argparse.Namespace:
    """`json`, `short` and other switches of the command line.

    `short` says what is less of it, each of `switches` what it does.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help=short)
    for name, does in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=does)
    return parser.parse_args()


def print_report(is_json: bool, values: dict[str, Any], lines: Iterable[str]) -> None:
    """`values` for programs, or `lines` for people."""
    if is_json:
        print(json.dumps({"schema_version": 1, **values}))
    else:
        print("\n".join(lines))
