"""Servers that speak OpenAI's API, one for each draft length, as a calibration measures them."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from trt_mtp.controller.calibrate.load_client import Batch
from trt_mtp.controller.calibrate.lost_server import POLL_S, ServerLostError, until_whole
from trt_mtp.controller.calibrate.openai.client import OpenAiClient
from trt_mtp.controller.calibrate.openai.restart import LENGTH_MARK, restart
from trt_mtp.controller.calibrate.openai.server import OpenAiServer, base_url, found_server
from trt_mtp.controller.calibrate.rig import RigFacts
from trt_mtp.controller.client import Prompt
from trt_mtp.controller.position_counts import MAX_POSITIONS
from trt_mtp.errors import InputError, TrtMtpError

FINGERPRINT_CHARS = 16


class OpenAiRig:
    """A server, or a model of one, for each draft length."""

    def __init__(
        self,
        servers: Mapping[int, OpenAiServer],
        model: str,
        wait_s: float,
        say: Callable[[str], None],
        command: str = "",
    ) -> None:
        """`model` is the name for all of them, {k} in place of the length.

        With a `command` all are one server, which it restarts at another length; it runs at 0 now.
        """
        self.facts = _facts(servers, model)
        self._command = command
        self._running: int | None = 0  # the length that it runs at; None while that is not known
        self._servers = servers
        self._wait_s = wait_s
        self._say = say
        self._notes: dict[int, dict[str, None]] = {length: {} for length in servers}
        self._clients = {
            length: OpenAiClient(server, length, self._notes[length])
            for length, server in servers.items()
        }

    @property
    def notes(self) -> Sequence[str]:
        """What the servers don't tell, with the draft lengths of those that don't."""
        lengths: dict[str, list[str]] = {}
        for length, notes in sorted(self._notes.items()):
            for note in notes:
                lengths.setdefault(note, []).append(f"K={length}")
        return [f"the server at {', '.join(at)} {note}" for note, at in lengths.items()]

    async def answers(
        self, draft_length: int, prompts: Sequence[Prompt], concurrency: int
    ) -> Batch:
        """A whole batch of one draft length; raises ServerLostError if it is lost for good."""
        server, client = self._servers[draft_length], self._clients[draft_length]
        requests = [server.body(prompt) for prompt in prompts]
        if self._command and draft_length != self._running:
            await self._restart(draft_length)
            await client.answers(requests[:2], concurrency)  # warm-up, thrown away

        async def back(reason: str) -> None:
            self._say(
                f"the server at {server.base_url} was lost ({reason}); waiting "
                f"{self._wait_s:.0f} s at most until it has {server.model}, then the batch is "
                f"measured again"
            )
            if self._command:
                await self._restart(draft_length)
            else:
                await self._wait_for(server, reason)

        return await until_whole(
            lambda: client.answers(requests, concurrency), back, server.base_url
        )

    async def close(self) -> None:
        """End all connections."""
        for client in self._clients.values():
            await client.close()

    async def _restart(self, draft_length: int) -> None:
        self._running = None
        await restart(self._command, draft_length, self._wait_s)
        await self._wait_for(self._servers[draft_length], "it was restarted")
        self._running = draft_length

    async def _wait_for(self, server: OpenAiServer, reason: str) -> None:
        await awaited_server(server.base_url, server.model, server.key, self._wait_s, reason)


async def awaited_server(
    url: str, model: str | None, key: str, wait_s: float, reason: str
) -> OpenAiServer:
    """The server at `url` once it answers; raises ServerLostError if it doesn't within `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return await found_server(url, model, key)
        except TrtMtpError as error:
            if time.monotonic() > deadline:
                raise ServerLostError(
                    f"the server at {url} was lost ({reason}) and not back within {wait_s:.0f} s: "
                    f"{error}"
                ) from None
        await asyncio.sleep(POLL_S)


def addresses(option: str, texts: Sequence[str]) -> dict[int, str]:
    """Base URLs by draft length, of options in the form K=URL.

    Raises InputError for another form, a length given twice, and a list without 0 or with 0 alone.
    """
    found: dict[int, str] = {}
    for text in texts:
        length, equals, url = text.partition("=")
        if not (equals and length.isascii() and length.isdecimal() and len(length) < 3):
            raise InputError(
                f"{option} {text!r}: expected a draft length and its server, as in "
                f"3=http://127.0.0.1:8000/v1"
            )
        if int(length) > MAX_POSITIONS:
            raise InputError(f"{option} {text!r}: draft lengths go up to {MAX_POSITIONS}")
        if int(length) in found:
            raise InputError(f"{option}: draft length {int(length)} is given twice")
        found[int(length)] = base_url(option, url)
    if 0 not in found or len(found) < 2:
        raise InputError(
            f"{option}: a calibration compares draft lengths with no speculation: give 0=URL and "
            f"at least one other; there are {', '.join(f'{length}=' for length in sorted(found))}"
        )
    return dict(sorted(found.items()))


async def found_servers(
    urls: Mapping[int, str],
    model: str | None,
    key: str,
    wait_s: float,
    say: Callable[[str], None],
    command: str = "",
) -> OpenAiRig:
    """The servers at `urls`, by draft length; `{k}` in `model` stands for the length.

    A server that is lost has `wait_s` to come back. Raises as `found_server` does, and InputError
    where two lengths would be the same model of the same server. With a `command`, which restarts
    it at the length in place of {k}, they may be.
    """
    if command:
        await restart(command, 0, wait_s)
        await awaited_server(urls[0], model and named(model, 0), key, wait_s, "it was restarted")
    servers = {
        length: await found_server(url, model and named(model, length), key)
        for length, url in urls.items()
    }
    if not command:
        _require_apart(servers)
    names = dict.fromkeys(server.model for server in servers.values())
    return OpenAiRig(servers, model or ", ".join(names), wait_s, say, command)


def named(model: str, draft_length: int) -> str:
    """The model's name at a draft length.

    >>> named("qwen_mtp:k{k}", 3)
    'qwen_mtp:k3'
    """
    return model.replace(LENGTH_MARK, str(draft_length))


def _require_apart(servers: Mapping[int, OpenAiServer]) -> None:
    """Raise InputError where two draft lengths are the same model of one server."""
    lengths: dict[tuple[str, str], int] = {}
    for length, server in servers.items():
        other = lengths.setdefault((server.base_url, server.model), length)
        if other != length:
            raise InputError(
                f"--openai: draft lengths {other} and {length} are the same model {server.model!r} "
                f"of {server.base_url}: give each a server, --model a name with {LENGTH_MARK} in "
                f"it, or --openai-restart a command"
            )


def _facts(servers: Mapping[int, OpenAiServer], model: str) -> RigFacts:
    """What is known of the servers; addresses are no part of the fingerprint."""
    kinds = ", ".join(dict.fromkeys(server.kind or "unknown" for server in servers.values()))
    measured_on = {"server": kinds, "model": model}
    digest = hashlib.sha256(repr(sorted(measured_on.items())).encode()).hexdigest()
    fingerprint = f"openai-{digest[:FINGERPRINT_CHARS]}"
    hosts = {urlsplit(server.base_url).hostname for server in servers.values()}
    return RigFacts(
        draft_lengths=tuple(sorted(servers)),
        max_concurrency=None,
        identity={"fingerprint": fingerprint, "draft_lengths": sorted(servers)},
        fingerprint=fingerprint,
        measured_on=measured_on,
        environment={f"server_k{k}": server.base_url for k, server in servers.items()},
        shared_device=len(hosts) == 1,
    )
