"""Chat templates that take all they can get end with an error, and soon."""

import contextlib
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trt_mtp.build import template_limits
from trt_mtp.build.chat_template import ChatTemplate, compile_template, read_chat_template
from trt_mtp.build.template_limits import TemplateLimitError, limited

MESSAGES = [{"role": "user", "content": "x" * 1000}]
GREEDY = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ [1] * 999999999 }}",
    "{{ 'x'.center(10 ** 10) }}",
    "{{ 'x' | center(9999999999) }}",
    "{{ 'x' | indent(9999999999) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ [1] | tojson(indent=9999999999) }}",
    "{% set y = 'x' * 99999 %}{{ y.replace('x', y) }}",
    "{% set y = 'x' * 99999 %}{{ y | replace('x', y) }}",
    "{% set y = 'x' * 99999 %}{{ ([y] * 99999) | join }}",
    "{% set y = 'x' * 99999 %}{{ y.join(['a'] * 99999) }}",
]


def chat(source: str) -> ChatTemplate:
    """A template of its own."""
    return ChatTemplate({"default": "t"}, {"default": compile_template(source)}, {})


@pytest.mark.parametrize("source", GREEDY)
def test_a_greedy_template_ends(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it takes time or memory, in many steps or in one; the process goes on."""
    monkeypatch.setattr(template_limits, "SECONDS", 1.0)
    monkeypatch.setattr(template_limits, "NUM_BYTES", 1 << 27)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateLimitError):
        chat(source).render(MESSAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 21  # KiB
    assert chat("{{ messages[0].content }}").render(MESSAGES) == "x" * 1000


def test_a_limit_never_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that was on its way when the work ended reaches nobody; one thread watches all."""
    monkeypatch.setattr(template_limits, "SECONDS", 0.002)
    num_threads = threading.active_count()
    for _ in range(100):
        with contextlib.suppress(TemplateLimitError), limited():
            time.sleep(0.002)
        sum(range(1000))
    assert threading.active_count() <= num_threads + 1


def test_one_that_is_cut_takes_nobody_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a template without end, another thread's are rendered."""
    monkeypatch.setattr(template_limits, "SECONDS", 1.0)
    endless, ended = chat(GREEDY[0]), list[type[Exception]]()

    def render() -> None:
        try:
            endless.render(MESSAGES)
        except TemplateLimitError as error:
            ended.append(type(error))

    rendering = threading.Thread(target=render)
    rendering.start()
    while rendering.is_alive():
        assert chat("{{ messages[0].content }}").render(MESSAGES) == "x" * 1000
    assert ended == [TemplateLimitError]


FORKED = """
import os
from trt_mtp.build import template_limits
from trt_mtp.build.template_limits import TemplateLimitError, limited
with limited():
    pass
if (child := os.fork()) == 0:
    template_limits.SECONDS = 0.1
    try:
        with limited():
            while True:
                pass
    except TemplateLimitError:
        os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_limits_hold_after_a_fork() -> None:
    """The watching thread isn't copied; a new one takes its place."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "7\n"


def test_honest_templates_are_rendered(checkpoint: Path) -> None:
    """Long conversations are no reason to refuse."""
    template = read_chat_template(checkpoint)
    assert template is not None
    messages = [{"role": "user", "content": "word, " * 50_000}] * 20
    assert template.render(messages).count("word") == 1_000_000
    content = "{'%s': 1234567890123}" * 100_000
    split = "{{ messages[0].content.split('x', 1)[0].strip('y').replace('%', '&') | trim }}"
    assert chat(split).render([{"content": content}]) == content.replace("%", "&")
    numbers = (
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ 1234567 | tojson }} {{ m(7654321) }} {{ 9**9 }}"
    )
    assert chat(numbers).render([]) == "1234567 7654321 387420489"
    assert chat("{{ 7 % 2 }} {{ 'a' * 3 }} {{ '%s!' % 'b' }} {{ [1, 2] | tojson }}").render([]) == (
        "1 aaa b! [1, 2]"
    )
