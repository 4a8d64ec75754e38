"""What the tokens in the caches add to a step: each reads the keys and values of all of them.

T(K, B, C) = T(K, B, C0) + (C - C0) * (a + b K), with C the tokens of all requests in flight
together and C0 those at which the table of step times holds. Where a verify step reads keys and
values once for all of its rows, b is what a draft reads; where it reads them for each row, b is a.
"""

from dataclasses import dataclass

LEAST = 0.25  # of a table's step that is left at no context, whatever the line says


@dataclass(frozen=True, slots=True)
class ContextCost:
    """Seconds that a token in a cache adds: `plain_s` to any step, `draft_s` more per draft.

    `at_tokens` is the context of each request at which the table holds.
    """

    at_tokens: float = 0.0
    plain_s: float = 0.0
    draft_s: float = 0.0

    def step_s(
        self, table_s: float, draft_length: int, batch: float, context_tokens: float | None
    ) -> float:
        """A step's seconds, `table_s` in the table, at `context_tokens` of all requests together.

        None stands for the table's own.
        """
        if context_tokens is None:
            return table_s
        more = context_tokens - batch * self.at_tokens
        step_s = table_s + more * (self.plain_s + draft_length * self.draft_s)
        return step_s if step_s > LEAST * table_s else LEAST * table_s


NO_CONTEXT = ContextCost()
