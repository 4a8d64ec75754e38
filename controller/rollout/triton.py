"""A Triton server as a rollout sees it: what is loaded, loading and unloading, asking a model.

Every change is one that may be made twice. A new variant is a model of its own name beside the old
one, not a version of it: Triton 2.51 loads all versions of a model again whenever one of them is
added or the configuration changes, the running one included, and unloads only all of them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from trt_mtp.build.variant import EngineVariant
from trt_mtp.controller.client import Prompt, StreamClient, TimedAnswer
from trt_mtp.controller.rollout.spec import Server
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.repository import VARIANT_FOLDER, model_name, remove_model, write_model

CALL_S = 10.0
LOAD_S = 1800.0  # a large engine takes minutes
UNLOAD_S = 10.0  # to wait for the last streams, which end in any case; those of a dead model never
POLL_S = 0.1
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
UNREACHABLE = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")


class Unreachable(TrtMtpError):
    """The server does not answer; what it does is not known."""


class Refused(TrtMtpError):
    """The server answered that it can't or won't."""


class TritonSite:
    """One server of the rollout; close it at the end."""

    def __init__(self, server: Server, public_name: str) -> None:
        """Connect; raises InputError when its files are not there."""
        self.name = server.grpc
        self._server, self._public_name = server, public_name
        try:
            key = server.admin_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{server.admin_key_file} can't be read: {error}") from None
        if not server.repository.is_dir():
            raise InputError(f"{server.repository} is no folder: it should be the repository")
        self._headers = {ADMIN_HEADER: key}
        self._client = grpcclient.InferenceServerClient(server.grpc)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def repository(self) -> Path:
        """Its model repository."""
        return self._server.repository

    def model(self, variant: str) -> str:
        """The model of a variant's name."""
        return f"{self._public_name}_{variant}"

    def states(self) -> dict[str, str]:
        """READY, LOADING, UNLOADING or UNAVAILABLE of every model in the repository."""
        index = self._call(
            lambda: self._client.get_model_repository_index(
                headers=self._headers, client_timeout=CALL_S
            )
        )
        return {entry.name: entry.state for entry in index.models}

    def is_ready(self, variant: str) -> bool:
        """True when the variant takes requests, as far as Triton knows."""
        return bool(
            self._call(
                lambda: self._client.is_model_ready(self.model(variant), client_timeout=CALL_S)
            )
        )

    def variant_folder(self, variant: str) -> Path | None:
        """The folder that a loaded variant was made from; None for a model that has none."""
        config = self._call(
            lambda: self._client.get_model_config(self.model(variant), client_timeout=CALL_S)
        ).config
        if VARIANT_FOLDER not in config.parameters:
            return None
        return Path(config.parameters[VARIANT_FOLDER].string_value)

    def load(self, variant: EngineVariant, still_ours: Callable[[], None]) -> None:
        """Write the variant's model and load it; done when it is ready.

        Triton loads one model at a time for us: a second load of the same one while the first
        still runs would load it twice. Raises Refused with the model's own reason.
        """
        self._wait_for_end(model_name(variant, self._public_name), "LOADING", LOAD_S, still_ours)
        if self.is_ready(variant.name):
            return
        name = write_model(variant, self.repository, self._public_name)
        self._call(
            lambda: self._client.load_model(name, headers=self._headers, client_timeout=LOAD_S)
        )
        if not self.is_ready(variant.name):
            raise Refused(f"{name} is loaded on {self.name} and not ready")

    def load_again(self, variant: str) -> None:
        """Load a variant whose model is in the repository already."""
        if not self.is_ready(variant):
            self._call(
                lambda: self._client.load_model(
                    self.model(variant), headers=self._headers, client_timeout=LOAD_S
                )
            )

    def unload(self, variant: str, still_ours: Callable[[], None]) -> bool:
        """Unload a variant; its streams end first. False when it still ended after UNLOAD_S."""
        name = self.model(variant)
        self._wait_for_end(name, "LOADING", LOAD_S, still_ours)
        if self.states().get(name, "UNAVAILABLE") == "READY":
            self._call(
                lambda: self._client.unload_model(
                    name, headers=self._headers, client_timeout=CALL_S
                )
            )
        return self._wait_for_end(name, "UNLOADING", UNLOAD_S, still_ours)

    def remove(self, variant: str) -> None:
        """Take a variant's model out of the repository."""
        remove_model(self.repository / self.model(variant))

    def answers(self, variant: str, prompts: list[Prompt], timeout_s: float) -> list[TimedAnswer]:
        """The variant's answers, one after the other; raises Refused for one that fails."""
        try:
            with StreamClient(self.name, timeout_s) as client:
                return [client.ask(self.model(variant), prompt) for prompt in prompts]
        except TrtMtpError as error:
            raise Refused(str(error)) from None

    def margin(
        self, variant: str, prompt: Prompt, prefix: tuple[int, ...], timeout_s: float
    ) -> float | None:
        """By how much the best token leads the second one after `prefix` of an answer, in logits.

        None where that can't be known: an engine that gives no logits, a model that was written
        before it could be asked, an answer that has ended.
        """
        asked = replace(prompt, emitted_ids=prefix, max_tokens=len(prefix) + 1, wants_margin=True)
        try:
            return self.answers(variant, [asked], timeout_s)[0].margin
        except Refused:
            return None

    def _wait_for_end(
        self, model: str, state: str, timeout_s: float, still_ours: Callable[[], None]
    ) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.states().get(model) == state:
            still_ours()
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except InferenceServerException as error:
            kind = Unreachable if str(error.status()) in UNREACHABLE else Refused
            reason = " ".join(error.message().split())
            raise kind(f"Triton at {self.name}: {reason}") from None


@contextmanager
def sites(servers: tuple[Server, ...], public_name: str) -> Iterator[list[TritonSite]]:
    """The servers, connected, and closed at the end."""
    found: list[TritonSite] = []
    try:
        for server in servers:
            found.append(TritonSite(server, public_name))
        yield found
    finally:
        for site in found:
            site.close()
