"""Few requests of each session are judged: those of one session are too alike to be evidence."""

from collections import Counter

MAX_PER_SESSION = 3


class SessionCap:
    """Counts the requests of sessions.

    A session stays on its side, so its requests come and go together. The gates' guarantee is for
    requests that could as well have been on the other side, one by one. With Zipf-distributed
    sessions that differ by 30% in speed, three of each keep it (benchmarks/rollout_sessions.py).
    """

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def admits(self, session_id: str | None) -> bool:
        """Whether the next request of a session is judged; one without a session always is."""
        if session_id is None:
            return True
        self._counts[session_id] += 1
        return self._counts[session_id] <= MAX_PER_SESSION
