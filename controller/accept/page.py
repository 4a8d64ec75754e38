"""The record of an acceptance as one page of Markdown."""

from collections.abc import Iterator, Sequence

from trt_mtp.controller.accept.differences import differences
from trt_mtp.controller.accept.record import CellLine, CheckLine, Machine, Record, VariantLine
from trt_mtp.controller.accept.verdict import REASONS

ENGINES = {"cpu": "the embedded CPU engine", "tensorrt-llm": "TensorRT-LLM", "vllm": "vLLM"}
Rows = Sequence[Sequence[str]]


def page_of(record: Record) -> str:
    """The page."""
    parts = [
        _head(record),
        _section("What ran", table(("step", "ended", "took", "budget", ""), list(_steps(record)))),
        _section("What differs from the docs", _differences(record)),
        _section("On what", table(("", ""), list(_platform(record)))),
        _section("Each variant, alone", _variants(record)),
        _section("Through the gateway", _checks(record)),
        _section("A short calibration", _tasks(record)),
        _section("Findings of doctor and build", _findings(record)),
    ]
    return "\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table; empty without rows.

    >>> print(table(("a", "b"), [("1", "2")]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    <BLANKLINE>
    """
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def verdict(record: Record) -> str:
    """How the whole ended, in one line.

    Steps that did not run are named, so that nobody takes the page for more than it is.
    """
    by_status: dict[str, list[str]] = {}
    for step in record.steps:
        by_status.setdefault(step.status, []).append(step.name)
    wrong = [status for status in by_status if status not in ("passed", "skipped")]
    if not wrong and "skipped" not in by_status:
        return "all steps passed"
    order = ("bad input", "failed", "over budget", "not run", "skipped", "passed")
    return "; ".join(f"{s}: {', '.join(by_status[s])}" for s in order if s in by_status)


def _head(record: Record) -> str:
    engine = ENGINES[record.engine]
    model = "a checkpoint" if record.family is None else f"a {record.family} checkpoint"
    when = str(record.created)[:16].replace("T", " ")
    return (
        f"# trt-mtp accept: {verdict(record)}\n\n"
        f"{model[0].upper()}{model[1:]} on {engine}, {when} UTC. "
        f"Made by `trt-mtp accept` to be attached to an issue: it holds no prompt, answer, token, "
        f"path, host or user name. Speeds are of this machine; compare ratios.\n"
    )


def _steps(record: Record) -> Iterator[Sequence[str]]:
    for step in record.steps:
        notes = ["from an earlier run"] if step.is_resumed else []
        notes += [f"says: {', '.join(step.phrases)}"] if step.phrases else []
        has_run = step.status not in ("skipped", "not run")
        yield (
            step.name,
            step.status,
            f"{step.took_s:.0f} s" if has_run else "",
            f"{step.budget_s:.0f} s" if has_run else "",
            "; ".join(notes),
        )


def _platform(record: Record) -> Iterator[Sequence[str]]:
    if record.machine is not None:
        yield from _machine(record.machine)
    yield from record.versions.items()


def _machine(machine: Machine) -> Iterator[Sequence[str]]:
    gpus = f"{machine.num_gpus} × {machine.gpu}" if machine.gpu else "none"
    yield "GPUs", gpus
    yield "driver", machine.driver or "none"
    yield "processor", f"{machine.processor}, {machine.num_cores} cores"
    yield "in a container", "yes" if machine.is_container else "no"
    yield "Python", machine.python


def _variants(record: Record) -> str:
    verified = [variant for variant in record.variants if variant.is_passed is not None]
    if not verified:
        return table(
            ("variant", "drafts"), [(v.name, str(v.draft_length)) for v in record.variants]
        )
    head = ("variant", "drafts", "answers as without drafts", "AL", "loaded in", "host memory")
    rows = [
        (
            one.name,
            str(one.draft_length),
            _compared(one),
            f"{one.acceptance_length:.2f}",
            f"{one.load_s:.1f} s",
            f"{(one.host_bytes or 0) / 1e6:.0f} MB{_on_gpu(one)}",
        )
        for one in verified
    ]
    return (
        f"{table(head, rows)}\nAL is the acceptance length: tokens of a verify step, here over "
        f"verify's eight prompts.\n\nA step in ms by requests at a time, and in steps of draft "
        f"length 0:\n\n{_step_table(verified)}"
    )


def _on_gpu(variant: VariantLine) -> str:
    if variant.gpu_bytes is None:
        return ""
    planned = (
        "" if variant.planned_bytes is None else f" ({variant.planned_bytes / 1e9:.1f} planned)"
    )
    return f", {variant.gpu_bytes / 1e9:.1f} GB on GPUs{planned}"


def _compared(variant: VariantLine) -> str:
    words = "yes" if variant.is_passed else "NO"
    if variant.left_at:
        places = ", ".join(map(str, variant.left_at))
        words += f"; {len(variant.left_at)} of {variant.num_prompts} leave, at token {places}"
    elif variant.num_tokens is not None:
        words += f", {variant.num_tokens} tokens"
    if variant.p_value is not None:
        words += f"; sampled: p = {variant.p_value:.4f}"
    return words


def _step_table(variants: Sequence[VariantLine]) -> str:
    sizes = [step.batch_size for step in variants[0].steps]
    plain = {step.batch_size: step.step_ms for step in variants[0].steps}
    has_plain = variants[0].draft_length == 0
    rows = []
    for one in variants:
        cells = {step.batch_size: step.step_ms for step in one.steps}
        ratios = [
            f" ({cells[size] / plain[size]:.2f}×)"
            if has_plain and one.draft_length and plain.get(size)
            else ""
            for size in sizes
        ]
        rows.append(
            [one.name]
            + [
                f"{cells[s]:.2f}{r}" if s in cells else ""
                for s, r in zip(sizes, ratios, strict=True)
            ]
        )
    return table(["variant", *map(str, sizes)], rows)


def _checks(record: Record) -> str:
    return table(("check", "ended", "", "numbers"), [_check(one) for one in record.checks])


def _check(check: CheckLine) -> Sequence[str]:
    words = [REASONS.get(check.reason, check.reason), *check.phrases]
    numbers = [f"{name} {value:g}" for name, value in check.numbers.items()]
    return check.name, check.status, "; ".join(filter(None, words)), ", ".join(numbers)


def _tasks(record: Record) -> str:
    if not record.cells:
        return ""
    rows = [_cell(one) for one in record.cells]
    best = [
        (
            one.task,
            str(one.concurrency),
            f"K={one.draft_length}{'' if one.is_settled else ', not settled'}",
            _interval(one.speedup),
        )
        for one in record.best
    ]
    head = ("task", "at a time", "drafts", "answers", "AL", "tokens/s", "speedup (95%)")
    advice = table(("task", "at a time", "best", "speedup (95%)"), best)
    return f"{table(head, rows)}\nBest, as far as so short a run can tell:\n\n{advice}"


def _cell(cell: CellLine) -> Sequence[str]:
    return (
        cell.task,
        str(cell.concurrency),
        str(cell.draft_length),
        "failed" if cell.is_failed else str(cell.num_requests),
        f"{cell.acceptance_length:.2f}",
        f"{cell.tokens_per_s:.0f}",
        "" if cell.speedup is None else _interval(cell.speedup),
    )


def _interval(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f}–{values[2]:.2f})"


def _differences(record: Record) -> str:
    lines = differences(record)
    if not lines:
        return "Nothing of what was tried.\n"
    return "".join(f"- {line}\n" for line in lines)


def _findings(record: Record) -> str:
    rows = [(one.subject, one.severity, one.rule) for one in record.findings]
    return table(("of", "severity", "rule"), rows)
