"""Has vLLM's entry-point tests ask a gateway: a pytest plugin, for its environment.

vLLM, torch and fastapi are not installed there; mocks stand in for them, and tests that ask no
server are left out.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

MOCKED = ("vllm", "torch", "fastapi")


class RemoteOpenAIServer:
    """The gateway, in place of a server that the test would start."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.url_root = f"http://{os.environ['DOOR']}"

    def __enter__(self) -> "RemoteOpenAIServer":
        return self

    def __exit__(self, *_: object) -> None:
        """It goes on."""

    def url_for(self, *parts: str) -> str:
        """The address of a path."""
        return "/".join((self.url_root, *parts))

    def get_async_client(self, **options: Any) -> Any:
        """A client of it."""
        import openai

        settings: dict[str, Any] = {"api_key": "none", "max_retries": 0, **options}
        return openai.AsyncOpenAI(base_url=f"{self.url_root}/v1", **settings)


class Mocks(MetaPathFinder, Loader):
    """Modules with whatever is asked of them."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """One for what is not installed."""
        return ModuleSpec(name, self) if name.partition(".")[0] in MOCKED else None

    def create_module(self, spec: ModuleSpec) -> Any:
        """A mock, and a package."""
        long = SimpleNamespace(min=-(2**63), max=2**63 - 1)
        return MagicMock(
            __name__=spec.name, __path__=[], __spec__=spec, iinfo=lambda _: long
        )  # iinfo is torch's

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run."""


def pytest_configure() -> None:
    """Before any test is imported."""
    sys.meta_path.insert(0, Mocks())
    stand_in: Any = ModuleType("tests.utils")
    stand_in.RemoteOpenAIServer = RemoteOpenAIServer
    sys.modules["tests.utils"] = stand_in


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what is of vLLM's own classes."""
    others = list(_without_server(items))
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _without_server(items: Sequence[Any]) -> Iterator[Any]:
    return (item for item in items if not {"client", "server"} & set(item.fixturenames))
