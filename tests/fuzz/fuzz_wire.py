"""Bytes that claim to be HTTP/1.1 or HTTP/2, sent to a gateway's ports, each on its own connection.

`python -m tests.fuzz.fuzz_wire --runs N [--seed S] [--corpus DIR]` starts a gateway with tokens in
front of doubles and prints what came of it. Not guided by coverage, which another process doesn't
tell: what brings an answer of a kind that was not seen before joins the corpus. The gateway has to
live, to answer a good client, to log no unhandled exception, and to keep its memory.
"""

import argparse
import asyncio
import random
import re
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.controller.gateway.gateway_process import Process, gateway_process
from tests.fuzz.wire_seeds import ONE, PATH, SEEDS, TOKEN, TOKENS, write_tokens
from tests.gateway_fixtures import raw_stream, script_request, text_of, triton_of_doubles
from tests.http2_client import GOAWAY, RST_STREAM
from tests.http_client import ask

CORPUS = Path(__file__).parent / "corpus"
NUM_AT_ONCE = 256
FIRST_S = 0.5  # for the first bytes of an answer
QUIET_S = 0.1  # after what came: then no more is waited for
MAX_ANSWER = 4096
MAX_GROWTH_MIB = 128
MAX_STEPS = 6  # of mutation
# gRPC prints by itself that it can't send a status to a client that has left
GRPCS_OWN = re.compile(r"Traceback.*\n(?:  .*\n)+grpc\._cython\.cygrpc\.ExecuteBatchError")
HALF_SAID = re.compile(r"Traceback.*\n(?:  .*\n)*(?:  .*)?\Z")
SAY_S = 2.0  # for the gateway to end a sentence
NUMBERS = (0, 1, 127, 128, 255, 16_384, 2**16, 2**24 - 1, 2**31 - 1, 2**32 - 1)


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """`data` with a few of its bytes changed, moved, left out, repeated, or joined with `other`."""
    for _ in range(rng.randint(1, MAX_STEPS)):
        at, size = rng.randint(0, len(data)), rng.choice((1, 2, 4, 9, 20, 100))
        piece = data[at : at + size]
        step = rng.randrange(7)
        if step == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif step == 1:
            data = data[:at] + data[at + size :]
        elif step == 2:
            data = data[:at] + piece * rng.choice((2, 3, 50)) + data[at + size :]
        elif step == 3:
            data = data[:at] + rng.choice(TOKENS) + data[at + rng.choice((0, size)) :]
        elif step == 4:
            number = struct.pack(">I", rng.choice(NUMBERS))[rng.randrange(4) :]
            data = data[:at] + number + data[at + len(number) :]
        elif step == 5:
            data = data[:at] + other[rng.randint(0, len(other)) :]
        else:
            data = data[:at] + bytes(rng.choices(range(256), k=size)) + data[at:]
    return data


async def answer(port: int, data: bytes) -> bytes:
    """What comes back for `data` until nothing more does for a moment."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b"refused"
    came = b""
    try:
        writer.write(data)
        while len(came) < MAX_ANSWER:
            async with asyncio.timeout(QUIET_S if came else FIRST_S):
                piece = await reader.read(MAX_ANSWER)
            if not piece:
                return came + b"closed"
            came += piece
        return came
    except TimeoutError:
        return came
    except OSError:
        return came + b"reset"
    finally:
        writer.transport.abort()


def end_of(came: bytes) -> bytes:
    """How a connection ended, if it did."""
    return came[-6:] if came.endswith((b"closed", b"reset")) else b""


def kind_of_http(came: bytes) -> bytes:
    """The statuses in an answer, and how it ended."""
    found = {line[9:12] for line in came.split(b"\r\n") if line.startswith(b"HTTP/1.")}
    return b" ".join(sorted(found)) + end_of(came)


def kind_of_grpc(came: bytes) -> bytes:
    """The kinds of frames in an answer with the codes of errors, and how it ended."""
    kinds, at = set[bytes](), 0
    while at + 9 <= len(came):
        size, kind = int.from_bytes(came[at : at + 3]), came[at + 3]
        code_at = at + {RST_STREAM: 9, GOAWAY: 13}.get(kind, 9)
        is_error = kind in (RST_STREAM, GOAWAY)
        kinds.add(bytes([kind]) + (came[code_at : code_at + 4] if is_error else b""))
        at += 9 + size
    return b"|".join(sorted(kinds)) + end_of(came)


KINDS: dict[str, Callable[[bytes], bytes]] = {"http": kind_of_http, "grpc": kind_of_grpc}


class Target:
    """One port, its corpus, and the kinds of answers that were seen."""

    def __init__(self, name: str, port: int, corpus: Path, rng: random.Random) -> None:
        self.name, self._port, self._folder, self._rng = name, port, corpus / name, rng
        self.kinds = set[bytes]()
        self.num_runs = 0
        self._inputs = list(SEEDS[name])
        self._inputs += [path.read_bytes() for path in sorted(self._folder.glob("*"))]
        self._first = iter(tuple(self._inputs))

    async def run(self, num_runs: int) -> None:
        """Send so many more inputs."""
        last = self.num_runs + num_runs
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_AT_ONCE):
                group.create_task(self._work(last))

    async def _work(self, last: int) -> None:
        while self.num_runs < last:
            self.num_runs += 1
            data = next(self._first, None)
            if data is None:
                one, other = self._rng.choices(self._inputs, k=2)
                data = mutated(one, other, self._rng)
            kind = KINDS[self.name](await answer(self._port, data))
            if kind not in self.kinds:
                self.kinds.add(kind)
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        if data not in self._inputs:
            self._inputs.append(data)
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{len(self._inputs):04}").write_bytes(data)


def memory_mib(pid: int) -> float:
    """What a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def num_files(pid: int) -> int:
    """Files that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def problems(gateway: Process, before_mib: float) -> Iterator[str]:
    """What is wrong with a gateway that was sent all that."""
    if gateway.process.poll() is not None:
        yield f"the gateway ended with {gateway.process.returncode}"
        return
    if (grown := memory_mib(gateway.process.pid) - before_mib) > MAX_GROWTH_MIB:
        yield f"its memory grew by {grown:.0f} MiB"
    if HALF_SAID.search(gateway.log):
        time.sleep(SAY_S)
    log = GRPCS_OWN.sub("", gateway.log)
    at = log.find("Traceback")
    if at >= 0:
        yield f"its log has an exception: {log[max(at - 300, 0) : at + 2000]}"
    reply = ask(gateway.ready["http"], "POST", PATH.decode(), ONE, TOKEN)
    if reply.status != 200:
        yield f"a good client gets {reply.status} over HTTP"
    with raw_stream(gateway.ready["gateway"], (("authorization", f"Bearer {TOKEN}"),)) as stream:
        stream.send(script_request(tokens=1))
        if text_of(stream.receive()) != "w0":
            yield "a good client gets another answer over gRPC"


def fuzz(gateway: Process, num_runs: int, seed: int, corpus: Path, block: int) -> Iterator[str]:
    """Run both targets, block by block; a line for each block, RuntimeError for a problem."""
    pid = gateway.process.pid
    rng = random.Random(seed)
    ports = {
        "http": int(gateway.ready["http"].rpartition(":")[2]),
        "grpc": int(gateway.ready["gateway"].rpartition(":")[2]),
    }
    targets = [Target(name, port, corpus, rng) for name, port in ports.items()]
    before_mib = memory_mib(pid)
    yield f"before: {before_mib:.0f} MiB, {num_files(pid)} files"
    while (left := num_runs - targets[-1].num_runs) > 0:
        for target in targets:
            asyncio.run(target.run(min(block, left)))
        for problem in problems(gateway, before_mib):
            raise RuntimeError(problem)
        runs = ", ".join(
            f"{each.name} {each.num_runs} runs {len(each.kinds)} kinds" for each in targets
        )
        yield f"{runs}; {memory_mib(pid):.0f} MiB, {num_files(pid)} files"


def main() -> None:
    """Fuzz a gateway that is started for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="for each of the two ports")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="read, and grown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, triton_of_doubles(Path(name) / "triton") as triton:
        tokens = write_tokens(Path(name) / "tokens.json")
        arguments = ("--triton", triton.grpc_url, "--port", "0", "--http-port", "0")
        log = Path(name) / "log"
        with gateway_process(log, *arguments, "--tokens", str(tokens)) as gateway:
            for line in fuzz(gateway, options.runs, options.seed, options.corpus, 1_000):
                print(line, flush=True)


if __name__ == "__main__":
    main()
