"""Has the tests of llama.cpp's server ask a gateway: a pytest plugin, for its environment.

Their models are not ours, so what an answer says is not looked at. Their requests name no model,
and go to paths without /v1.
"""

import importlib
from typing import Any


def pytest_sessionstart() -> None:
    """Change what the tests import, before they do."""
    utils: Any = importlib.import_module("utils")
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.match_regex = lambda _pattern, _text: True
    make_url, post = utils.ServerProcess.make_url, utils.requests.post

    def url_of(self: Any, path: str, host: str | None = None) -> str:
        is_ours = path.endswith("/completions") and not path.startswith("/v1")
        return str(make_url(self, f"/v1{path}" if is_ours else path, host))

    def posted(url: str, **options: Any) -> Any:
        body = options.get("json")
        if isinstance(body, dict) and body.get("model") is None:
            options["json"] = {**body, "model": "llama-test-model"}
        return post(url, **options)

    utils.ServerProcess.make_url, utils.requests.post = url_of, posted
