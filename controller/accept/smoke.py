"""Smoke checks through the gateway: requests as clients send them, each check with its verdict."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trt_mtp.controller.accept.asking import Ask, Asker, Said
from trt_mtp.controller.accept.stack import Stack
from trt_mtp.controller.accept.verdict import (
    CheckName,
    Parting,
    Verdict,
    compared,
    failed,
    leaves_at,
    not_tried,
    noted,
    passed,
)
from trt_mtp.controller.calibrate.prompt_sets import SHIPPED, read_prompt_set
from trt_mtp.controller.client import Prompt
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.verify import EXACT_TOKENS, is_near_tie

NUM_PROMPTS = 8
MAX_TOKENS = 256
MOST_AT_ONCE = 16
TEMPERATURE = 0.8
STOP_CHARS = (6, 3, 1)  # the longest that is there


@dataclass(slots=True)
class Smoke:
    """What the checks share."""

    stack: Stack
    asker: Asker
    over: threading.Event
    is_exact: bool  # the engine gives the same tokens at every draft length
    prompts: Sequence[Prompt]
    undisturbed: dict[int, Said] = field(default_factory=dict)  # greedy, by the prompt's place

    def alone(self, place: int) -> Said:
        """The greedy answer to a prompt, asked alone."""
        if place not in self.undisturbed:
            self.undisturbed[place] = self.asker.ask(self.request(place))
        return self.undisturbed[place]

    def request(self, place: int) -> Ask:
        """The greedy request of a prompt."""
        return Ask(self.prompts[place])

    def parting(self, place: int, expected: Said, got: Said) -> Parting | None:
        """Where `got` leaves `expected`, both answers to a prompt; None if it doesn't."""
        at = leaves_at(expected.token_ids, got.token_ids)
        if at is None:
            return None
        is_late = at >= EXACT_TOKENS
        return Parting(at, not (self.is_exact or is_late) and self.is_near_tie(place, expected, at))

    def is_near_tie(self, place: int, expected: Said, at: int) -> bool:
        """Whether draft length 0 says that two tokens were as good as equal there."""
        if self.stack.variants[0].draft_length:
            return False
        prompt = replace(
            self.prompts[place],
            max_tokens=at + 1,
            emitted_ids=expected.token_ids[:at],
            wants_margin=True,
        )
        return is_near_tie(self.asker.ask(Ask(prompt).on(0)).margin)

    def by_length(self) -> list[int]:
        """Prompts by the length of their answers, the longest first."""
        places = range(len(self.prompts))
        return sorted(places, key=lambda place: -self.alone(place).num_output_tokens)


Check = Callable[[Smoke], Verdict]


def prompts_for(checkpoint: Path) -> str:
    """The prompt set to ask with: the checkpoint's own, because a small one answers no other."""
    own = checkpoint / "prompts.jsonl"
    return str(own) if own.is_file() else SHIPPED


def smoke_prompts(source: str) -> list[Prompt]:
    """NUM_PROMPTS prompts of different tasks, to be answered greedily."""
    by_task = read_prompt_set(source).drawn(None, 0.0, 0).prompts
    rounds = range(max(map(len, by_task.values())))
    mixed = [part[at] for at in rounds for part in by_task.values() if at < len(part)]
    return [replace(prompt, max_tokens=MAX_TOKENS) for prompt in mixed[:NUM_PROMPTS]]


def run_checks(smoke: Smoke, checks: Mapping[CheckName, Check]) -> dict[CheckName, Verdict]:
    """The verdict of every check; a request that fails is its check's failure."""
    verdicts: dict[CheckName, Verdict] = {}
    for name, check in checks.items():
        if smoke.over.is_set():
            break
        try:
            verdicts[name] = check(smoke)
        except TrtMtpError as error:
            verdicts[name] = replace(failed("request-failed"), detail=str(error))
    return verdicts


def stream(smoke: Smoke) -> Verdict:
    """A streamed answer comes in pieces that make up what its last message counts."""
    said = smoke.alone(0)
    numbers = {"num_messages": said.num_messages, "num_tokens": len(said.token_ids)}
    if not said.token_ids or said.finish_reason not in ("stop", "length"):
        return failed("no-answer", **numbers)
    if said.num_output_tokens != len(said.token_ids):
        return failed("other-count", **numbers, num_told=said.num_output_tokens)
    if said.num_messages < 2 and said.num_steps > 1:
        return failed("one-message", **numbers)
    return passed(**numbers)


def draft_lengths(smoke: Smoke) -> Verdict:
    """Each hosted draft length answers a request for it, as draft length 0 does."""
    answers = [
        (variant, smoke.asker.ask(smoke.request(0).on(variant.draft_length)))
        for variant in smoke.stack.variants
    ]
    for variant, said in answers:
        if said.variant != variant.name:
            return failed("other-variant", draft_length=variant.draft_length)
    first = answers[0][1]
    verdict = compared(
        [smoke.parting(0, first, said) for _, said in answers[1:]],
        smoke.is_exact,
        **{
            f"acceptance_length_{variant.name}": round(
                1 + said.num_accepted_draft_tokens / said.num_steps, 3
            )
            for variant, said in answers
            if said.num_steps
        },
    )
    for variant, said in answers:
        is_untold = variant.draft_length > 0 and not said.accepted_per_position
        if verdict.status == "passed" and is_untold:
            return noted("positions-untold", draft_length=variant.draft_length)
    return verdict


def seed(smoke: Smoke) -> Verdict:
    """A request without a seed is told the drawn one, which gives its answer again."""
    length = smoke.stack.variants[-1].draft_length
    prompt = replace(smoke.prompts[0], temperature=TEMPERATURE)
    unseeded = Ask(prompt, is_seeded=False).on(length)
    first, other = smoke.asker.ask(unseeded), smoke.asker.ask(unseeded)
    if not first.seed:
        return failed("seed-not-told")
    if first.seed == other.seed:
        return failed("seed-constant")
    again = smoke.asker.ask(Ask(replace(prompt, seed=first.seed)).on(length))
    place = leaves_at(first.token_ids, again.token_ids)
    if place is None:
        return passed(num_tokens=len(first.token_ids))
    told = failed if smoke.is_exact else noted
    return told("seed-not-repeated", left_at=place, num_tokens=len(first.token_ids))


def stop_text(smoke: Smoke) -> Verdict:
    """An answer ends at its stop text, which is not part of it."""
    for place in smoke.by_length():
        whole = smoke.alone(place).text
        stop = stop_in(whole)
        if stop is None:
            continue
        request = replace(smoke.request(place), stop=(stop,))
        said = smoke.asker.ask(request)
        expected = whole[: whole.index(stop)]
        if said.finish_reason != "stop" or stop in said.text or said.text != expected:
            return failed("not-stopped", num_chars=len(said.text), num_expected=len(expected))
        return passed(num_chars=len(said.text), num_undisturbed=len(whole))
    return not_tried("no-stop-text")


def stop_in(text: str) -> str | None:
    """Printable ASCII characters of the first third of a text, after some text; None without any.

    >>> stop_in("The answer is forty-two, as everybody knows.")
    'er is '
    """
    for length in STOP_CHARS:
        for start in range(max(1, len(text) // 5), len(text) // 3):
            part = text[start : start + length]
            if part.isascii() and part.isprintable():
                return part
    return None


def concurrency(smoke: Smoke) -> Verdict:
    """More requests than one variant has room for are all answered, each as if it were alone."""
    most = max(variant.record.max_batch_size for variant in smoke.stack.variants)
    places = [at % len(smoke.prompts) for at in range(min(most + 1, MOST_AT_ONCE))]
    expected = [smoke.alone(place) for place in places]
    answers = smoke.asker.ask_all([smoke.request(place) for place in places])
    triples = zip(places, expected, answers, strict=True)
    left = [smoke.parting(place, one, other) for place, one, other in triples]
    return compared(left, smoke.is_exact)
