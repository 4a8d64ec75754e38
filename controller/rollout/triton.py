"""A Triton server as a rollout sees it: what is loaded, loading and unloading, asking a model.

Every change is one that may be made twice. A new variant is a model of its own name beside the old
one, not a version of it: Triton 2.51 loads all versions of a model again whenever one of them is
added or the configuration changes, the running one included, and unloads only all of them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from trt_mtp.build.variant import EngineVariant
from trt_mtp.controller.client import Prompt, StreamClient, TimedAnswer
from trt_mtp.controller.gateway.access.tls import channel_credentials
from trt_mtp.controller.rollout.spec import Server, Tls
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import SMALL, read_text
from trt_mtp.serve.hosts import channel_options, normal_target
from trt_mtp.serve.repository import (
    VARIANT_FOLDER,
    interval_of,
    model_name,
    remove_model,
    write_model,
)
from trt_mtp.serve.tls_files import TlsFiles

CALL_S = 10.0
LOAD_S = 1800.0  # a large engine takes minutes
UNLOAD_S = 10.0  # to wait for the last streams, which end in any case; those of a dead model never
POLL_S = 0.1
ADMIN_HEADER = "triton-grpc-protocol-admin-key"
UNREACHABLE = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")


class UnreachableError(TrtMtpError):
    """The server does not answer, so that its state is not known."""


class RefusedError(TrtMtpError):
    """The server answered that it can't do it, or won't."""


class TritonSite:
    """One server of the rollout; close it at the end."""

    def __init__(self, server: Server, public_name: str) -> None:
        """Connect; raises InputError if its files do not exist."""
        self.name = server.grpc
        self._server, self._public_name = server, public_name
        key = read_text(server.admin_key_file, SMALL).strip()
        if not server.repository.is_dir():
            raise InputError(f"{server.repository} is not a folder: it should be the repository")
        self._headers = {ADMIN_HEADER: key}
        self._credentials = _credentials(server.tls)
        self._client = grpcclient.InferenceServerClient(
            normal_target(server.grpc),
            creds=self._credentials,
            channel_args=list(channel_options(server.grpc)) or None,
        )

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
        """The state of each model in the repository: READY, LOADING, UNLOADING or UNAVAILABLE."""
        index = self._call(
            lambda: self._client.get_model_repository_index(
                headers=self._headers, client_timeout=CALL_S
            )
        )
        return {entry.name: entry.state for entry in index.models}

    def is_ready(self, variant: str) -> bool:
        """True if Triton says that the variant takes requests."""
        return bool(
            self._call(
                lambda: self._client.is_model_ready(self.model(variant), client_timeout=CALL_S)
            )
        )

    def variant_folder(self, variant: str) -> Path | None:
        """The directory that a loaded variant was made from; None if its model names none."""
        config = self._call(
            lambda: self._client.get_model_config(self.model(variant), client_timeout=CALL_S)
        ).config
        if VARIANT_FOLDER not in config.parameters:
            return None
        return Path(config.parameters[VARIANT_FOLDER].string_value)

    def load(self, variant: EngineVariant, still_ours: Callable[[], None]) -> None:
        """Write the variant's model, load it, and wait until it is ready.

        It first waits for a load of the same model that is running, or Triton would load it twice.
        Raises RefusedError with the model's own reason.
        """
        self._wait_for_end(model_name(variant, self._public_name), "LOADING", LOAD_S, still_ours)
        if self.is_ready(variant.name):
            return
        interval = interval_of(self.repository)
        name = write_model(variant, self.repository, self._public_name, interval)
        self._call(
            lambda: self._client.load_model(name, headers=self._headers, client_timeout=LOAD_S)
        )
        if not self.is_ready(variant.name):
            raise RefusedError(f"{name} is loaded on {self.name} and not ready")

    def load_again(self, variant: str) -> None:
        """Load a variant whose model is already in the repository."""
        if not self.is_ready(variant):
            self._call(
                lambda: self._client.load_model(
                    self.model(variant), headers=self._headers, client_timeout=LOAD_S
                )
            )

    def unload(self, variant: str, still_ours: Callable[[], None]) -> bool:
        """Unload a variant after its streams end; False if they did not within UNLOAD_S."""
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
        """Remove a variant's model from the repository."""
        remove_model(self.repository / self.model(variant))

    def answers(self, variant: str, prompts: list[Prompt], timeout_s: float) -> list[TimedAnswer]:
        """The variant's answers, one after the other; raises RefusedError if one fails."""
        try:
            with StreamClient(self.name, timeout_s, self._credentials) as client:
                return [client.ask(self.model(variant), prompt) for prompt in prompts]
        except TrtMtpError as error:
            raise RefusedError(str(error)) from None

    def margin(
        self, variant: str, prompt: Prompt, prefix: tuple[int, ...], timeout_s: float
    ) -> float | None:
        """The lead of the best token over the second one after `prefix` of an answer, in logits.

        None if it is not known: the engine gives no logits, the model is too old to be asked, or
        the answer has ended.
        """
        asked = replace(prompt, emitted_ids=prefix, max_tokens=len(prefix) + 1, wants_margin=True)
        try:
            return self.answers(variant, [asked], timeout_s)[0].margin
        except RefusedError:
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
            kind = UnreachableError if str(error.status()) in UNREACHABLE else RefusedError
            reason = " ".join(error.message().split())
            raise kind(f"Triton at {self.name}: {reason}") from None


@contextmanager
def sites(servers: tuple[Server, ...], public_name: str) -> Iterator[list[TritonSite]]:
    """The servers, connected until the context ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(TritonSite(s, public_name))) for s in servers]


def _credentials(tls: Tls | None) -> Any:
    """gRPC's credentials, None for a connection in clear; raises InputError for wrong files."""
    if tls is None:
        return None
    files = TlsFiles(tls.cert, tls.key, tls.ca)
    return channel_credentials(files.read())
