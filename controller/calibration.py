"""The measurements and conclusions of a calibration: the part of a profile for people.

Cells are task x draft length x concurrency. Times are milliseconds as a client sees them, speeds
are output tokens a second, intervals hold the true value with 95% confidence.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trt_mtp.build.variant import MAX_DRAFT_LENGTH

MAX_CONCURRENCY = 1 << 20
Count = Annotated[int, Field(ge=0)]
Length = Annotated[int, Field(ge=0, le=MAX_DRAFT_LENGTH)]
Concurrency = Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

ALLOWED_LOSS = 0.05  # what a choice of a draft length may cost against the best one (95%)

# why a cell was measured no further; settled: the choice that it matters for is clear
Ended = Literal["tight", "hopeless", "settled", "budget", "max", "failed"]


class Interval(NamedTuple):
    """An estimate and its 95% confidence interval; JSON: [value, low, high]."""

    value: Finite
    low: Finite
    high: Finite


class Percentiles(NamedTuple):
    """Percentiles of one latency, in milliseconds; JSON: [p50, p95, p99]."""

    p50: Finite
    p95: Finite
    p99: Finite


class CellKey(NamedTuple):
    """The key of a cell: a task, a draft length and a concurrency."""

    task: str
    draft_length: Length
    concurrency: Concurrency


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Record):
    """The measurements of one task at one draft length and one concurrency."""

    task: str
    draft_length: Length
    concurrency: Concurrency
    num_requests: Count
    num_output_tokens: Count
    num_steps: Count  # verify steps after the prompt; plain steps at draft length 0
    # [K], steps whose first j+1 drafts were accepted
    accepted_per_position: Annotated[tuple[Count, ...], Field(max_length=MAX_DRAFT_LENGTH)] = ()
    ttft_ms: Percentiles
    tpot_ms: Percentiles  # (last token - first token) / (tokens - 1), of each request
    itl_ms: Percentiles  # between two messages of an answer that bring tokens
    tokens_per_s: Interval  # of all requests at a time together
    # time per token without speculation over this one's, on the same prompts in the same run;
    # none at draft length 0
    speedup: Interval | None = None
    ended: Ended

    @property
    def key(self) -> CellKey:
        """The key of this cell."""
        return CellKey(self.task, self.draft_length, self.concurrency)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens a verify step emits, 1 to K + 1."""
        return 1 + sum(self.accepted_per_position) / self.num_steps if self.num_steps else 1.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted of the drafted tokens; 0 at draft length 0."""
        return (self.acceptance_length - 1) / self.draft_length if self.draft_length else 0.0


class PredictionQuality(_Record):
    """How well AL(task, K) / R(K, load) says the speedups of the cells that were measured.

    Each cell is predicted from all the others.
    """

    num_cells: Count
    median_abs_error: Finite  # a fraction
    p90_abs_error: Finite


class Crossover(_Record):
    """From which concurrency on a draft length loses against no speculation."""

    task: str
    draft_length: Length
    concurrency: float | None  # interpolated; none where it wins up to the highest one measured


class BestLength(_Record):
    """The draft length to use for a task at a concurrency; 0 is no speculation."""

    task: str
    concurrency: Concurrency
    draft_length: Length
    speedup: Interval  # over no speculation; 1 if the draft length is 0
    ties: tuple[Length, ...] = ()  # other lengths whose interval can't be told from it
    may_lose: Finite | None = None  # of its speed, against the best other length at most (95%)

    @property
    def is_settled(self) -> bool:
        """True if it loses no more than is allowed, or if that is not known."""
        return self.may_lose is None or self.may_lose <= ALLOWED_LOSS


class Recommendation(_Record):
    """The draft lengths to use, and their gain."""

    draft_length: Length  # the best single one for all tasks, at the lowest concurrency
    speedup: Interval  # of it over no speculation, all tasks alike
    routed_speedup: Interval  # of the best length per task and concurrency over that single one
    hold_one: bool  # true if routing gains less than its uncertainty: host one variant
    best: tuple[BestLength, ...]

    @property
    def num_open(self) -> int:
        """Choices that may lose more than ALLOWED_LOSS of the speed."""
        return sum(not one.is_settled for one in self.best)


class Calibration(_Record):
    """The results of a calibration run."""

    created: str  # ISO 8601, UTC
    seed: int
    prompts: str  # the prompt set's name and short hash
    temperature: float
    max_tokens: int
    duration_s: float
    tasks: tuple[str, ...]
    draft_lengths: tuple[Length, ...]
    concurrencies: tuple[Concurrency, ...]
    environment: dict[str, str]  # machine, processor, GPU, Triton, engine, trt-mtp …
    cells: tuple[Cell, ...]
    unmeasured: tuple[CellKey, ...] = ()
    prediction: PredictionQuality | None = None  # none with too few cells
    crossovers: tuple[Crossover, ...] = ()
    recommendation: Recommendation | None = None  # none without a variant at draft length 0

    @field_validator("cells", mode="before")
    @classmethod
    def _from_table(cls, value: Any) -> Any:
        """The cells in the file's form: the names of columns once, then a row for each cell."""
        if not isinstance(value, dict):
            return value
        return [dict(zip(value["columns"], row, strict=True)) for row in value["rows"]]


def cells_table(cells: Any) -> dict[str, Any]:
    """Dumped cells in the file's form, which `Calibration` reads back."""
    columns = list(Cell.model_fields)
    return {"columns": columns, "rows": [[cell[name] for name in columns] for cell in cells]}
