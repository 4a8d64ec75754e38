"""The tasks a request can be: SPEED-Bench's eleven categories, and two it lacks."""

TASKS = (
    "coding",
    "math",
    "reasoning",
    "stem",
    "humanities",
    "qa",
    "rag",
    "summarization",
    "multilingual",
    "writing",
    "roleplay",
    "structured_output",
    "tool_call",
)
