"""What attacks cost a gateway: memory, open files, processor time, and a good client's answer.

`git worktree add ../before COMMIT`, then
`python -m benchmarks.attacks [--before ../before] [--only TEXT] [--json]`

Each attack (_attacks.py) has a gateway of its own, with tokens, in front of one Triton of doubles
that has 24 places. Memory is the resident set, from proc(5) /proc/PID/status; the most is since the
gateway's start. "After" is when the attacker is gone for two seconds.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from benchmarks._attacks import ATTACKS
from benchmarks._report import print_report
from benchmarks.gateway import cpu_s, started_gateway
from tests.fuzz.fuzz_wire import num_files
from tests.fuzz.wire_seeds import write_tokens
from tests.gateway_fixtures import script_request, triton_of_doubles
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.triton import TritonServer

OTHER = "other"  # the good client's token, of a tenant of its own
GOOD = (("authorization", f"Bearer {OTHER}"),)
PATIENCE_S = 20.0  # of the good client
LATER_S = 2.0  # after the attacker left


@dataclass(frozen=True, slots=True)
class Cost:
    """What one attack did to one gateway."""

    attack: str
    code: str  # before or after
    memory_mib: tuple[int, int, int]  # before the attack, the most, after it
    num_files: tuple[int, int, int]  # before the attack, while it is held, after it
    cpu_s: float  # of the gateway
    is_answered: bool  # the good client, while the attack is held


def memory_mib(pid: int, name: str = "VmRSS") -> int:
    """What a process has in memory; "VmHWM" is the most that it ever had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return round(int(status.partition(f"{name}:")[2].split()[0]) / 1024)


def is_answered(address: str) -> bool:
    """Does a good client get its answer?"""
    request = script_request(tokens=1).SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        try:
            call = stream(iter([request]), timeout=PATIENCE_S, metadata=GOOD)
            return any(b"w0" in raw for raw in call)
        except grpc.RpcError:
            return False


def cost(name: str, code: str, triton: TritonServer, tokens: Path, checkout: Path | None) -> Cost:
    """Attack a gateway of its own."""
    options = ("--http-port", "0", "--tokens", str(tokens))
    with started_gateway(triton.grpc_url, *options, checkout=checkout) as (ready, pid):
        assert is_answered(ready["gateway"])
        memory, files, cpu = memory_mib(pid), num_files(pid), cpu_s(pid)
        with ATTACKS[name](ready):
            answered, held = is_answered(ready["gateway"]), num_files(pid)
        time.sleep(LATER_S)
        return Cost(
            name,
            code,
            (memory, memory_mib(pid, "VmHWM"), memory_mib(pid)),
            (files, held, num_files(pid)),
            round(cpu_s(pid) - cpu, 1),
            answered,
        )


def costs(triton: TritonServer, tokens: Path, before: Path | None, only: str) -> Iterator[Cost]:
    """All attacks, each on the code before, if there is some, and on this one."""
    codes = {"before": before} if before else {}
    for name in (each for each in ATTACKS if only in each):
        for code, checkout in {**codes, "after": None}.items():
            found = cost(name, code, triton, tokens, checkout)
            print(row(found), file=sys.stderr, flush=True)
            yield found


def row(found: Cost) -> str:
    """A cost as a line of the table."""
    memory, files = (" → ".join(map(str, it)) for it in (found.memory_mib, found.num_files))
    client = "answered" if found.is_answered else f"not within {PATIENCE_S:.0f} s"
    return f"| {found.attack} | {found.code} | {memory} | {files} | {found.cpu_s:.1f} | {client} |"


def lines(found: list[Cost]) -> Iterator[str]:
    """The costs as a table in Markdown."""
    yield "| attack | code | memory, MiB | open files | CPU s | a good client |"
    yield "| --- | --- | --- | --- | ---: | --- |"
    yield from map(row, found)


def main() -> None:
    """Attack, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, attacked as well")
    parser.add_argument("--only", default="", help="attacks whose name has this text")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        triton_of_doubles(Path(name) / "triton", max_batch_size=8) as triton,
    ):
        tokens = write_tokens(Path(name) / "tokens.json", OTHER)
        found = list(costs(triton, tokens, options.before, options.only))
    print_report(options.json, {"attacks": [asdict(each) for each in found]}, lines(found))


if __name__ == "__main__":
    main()
