"""How near the two best tokens are where greedy answers part at another draft length.

`python -m benchmarks.near_ties HOST:PORT [--models A,B,…] [--prompts N] [--tokens N] [--json]`

HOST:PORT is a Triton with variants of an engine whose kernels round differently at another draft
length, such as vLLM; the first of the models is the one without speculation. All answer the small
checkpoint's held-out prompts, BATCH at a time; the first model a second time one by one, which is
the same draft length in other batches. Where an answer leaves the first one, the first model is
asked how far its best token is above the second. No time is measured.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from benchmarks._report import print_report
from tests.engine_fixtures import ASSET
from trt_mtp.controller.calibrate.prompt_sets import read_prompt_set
from trt_mtp.controller.client import Prompt, StreamClient
from trt_mtp.serve.divergence import first_difference
from trt_mtp.serve.verify import EXACT_TOKENS, NEAR_TIE

BATCH = 4
REPLY_S = 600.0  # on a busy machine
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parting:
    """Where an answer leaves the first model's."""

    task: str
    position: int
    margin: float


@dataclass(frozen=True, slots=True)
class Row:
    """The answers of one run against the first model's."""

    run: str
    num_answers: int
    num_tokens: int
    partings: tuple[Parting, ...]

    @property
    def text(self) -> str:
        """The row for people."""
        start = f"{self.run:<26}{self.num_answers:>8}{self.num_tokens:>8}{len(self.partings):>6}"
        if not self.partings:
            return start
        margins = [parting.margin for parting in self.partings]
        early = sum(parting.position < EXACT_TOKENS for parting in self.partings)
        above = sum(margin > NEAR_TIE for margin in margins)
        return f"{start}{early:>7}{statistics.median(margins):>9.4f}{max(margins):>9.4f}{above:>7}"


def read_prompts(count: int, tokens: int | None) -> list[tuple[str, Prompt]]:
    """`count` prompts with their tasks, one of each task in turn."""
    by_task = read_prompt_set(str(ASSET / "prompts.jsonl")).drawn(tokens, 0.0, 0).prompts
    rounds = range(max(map(len, by_task.values())))
    mixed = [(task, part[at]) for at in rounds for task, part in by_task.items() if at < len(part)]
    return mixed[:count]


def answers(url: str, model: str, prompts: Sequence[Prompt], at_once: int) -> list[Tokens]:
    """The answers of `model`, `at_once` at a time."""

    def ask(part: Sequence[Prompt]) -> list[Tokens]:
        with StreamClient(url, REPLY_S) as client:
            return [client.ask(model, prompt).token_ids for prompt in part]

    with ThreadPoolExecutor(at_once) as pool:
        parts = list(pool.map(ask, (prompts[start::at_once] for start in range(at_once))))
    found = [parts[index % at_once][index // at_once] for index in range(len(prompts))]
    print(f"{model}: {len(found)} answers", file=sys.stderr, flush=True)
    return found


def margin(client: StreamClient, model: str, prompt: Prompt, emitted: Tokens) -> float:
    """How far the best token after `emitted` is above the second, in logits."""
    asked = replace(prompt, max_tokens=len(emitted) + 1, emitted_ids=emitted, wants_margin=True)
    told = client.ask(model, asked).margin
    assert told is not None, f"{model} tells no margins"
    return told


def row(
    client: StreamClient,
    run: str,
    model: str,
    prompts: Sequence[tuple[str, Prompt]],
    expected: Sequence[Tokens],
    got: Sequence[Tokens],
) -> Row:
    """`got` against `expected`, with the margins that `model` tells."""
    partings = []
    for (task, prompt), one, other in zip(prompts, expected, got, strict=True):
        if one != other:
            at = first_difference(one, other)
            told = margin(client, model, prompt, one[:at])
            partings.append(Parting(task, at, round(told, 4)))
    return Row(run, len(got), sum(map(len, got)), tuple(partings))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--models", default="qwen_mtp_k0,qwen_mtp_k3")
    parser.add_argument("--prompts", type=int, default=140)
    parser.add_argument("--tokens", type=int, help="of each answer  [default: as the prompts say]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.url is None:  # as in `make bench`
        print("nothing was measured: start vLLM's variants (docs/vllm.md) and name their Triton")
        return
    first, *others = options.models.split(",")
    prompts = read_prompts(options.prompts, options.tokens)
    asked = [prompt for _, prompt in prompts]
    expected = answers(options.url, first, asked, BATCH)
    runs = {f"{first}, one by one": answers(options.url, first, asked, 1)}
    runs |= {model: answers(options.url, model, asked, BATCH) for model in others}
    with StreamClient(options.url, REPLY_S) as client:
        rows = [row(client, run, first, prompts, expected, got) for run, got in runs.items()]
    head = f"{'against ' + first:<26}{'answers':>8}{'tokens':>8}{'part':>6}{'early':>7}"
    head += f"{'median':>9}{'largest':>9}{'above':>7}"
    note = f"early: before token {EXACT_TOKENS}; margins in logits; above: {NEAR_TIE}"
    values = {"near_tie": NEAR_TIE, "rows": [asdict(one) for one in rows]}
    print_report(options.json, values, [head, *[one.text for one in rows], note])


if __name__ == "__main__":
    main()
