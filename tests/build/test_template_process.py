"""Chat templates that take all they can get end with an error, and soon."""

import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_mtp.build import template_process
from trt_mtp.build.chat_template import ChatTemplate, read_chat_template
from trt_mtp.build.template_process import RENDERERS, TemplateError, TemplateLimitError

MESSAGES = [{"role": "user", "content": "x" * 1000}]
BIG = "{% set x = 'a' * 16000000 %}"
GREEDY = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    # in one operation, which nothing in the same process can end
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'x' | center(9999999999) }}",
    "{{ range(90000) | join('x' * 90000) }}",
    "{{ ('a' * 60000) | replace(new='b' * 60000, old='a') }}",
    "{{ ('a ' * 20000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "{{ strftime_now('%c' * 8000000) }}",
    "{% set l = range(3000) | list %}{{ l | tojson(indent=100000) }}",
    BIG + "{{ " + " ~ ".join(["x"] * 100) + " }}",
    BIG + "{% for i in range(100) %}{{ x }}{% endfor %}",
]


@pytest.fixture(scope="module")
def tight() -> Iterator[None]:
    """Limits that are soon reached; the process with them is gone at the end."""
    RENDERERS.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template_process, "SECONDS", 1)
        patch.setattr(template_process, "NUM_BYTES", 1 << 27)
        yield
    RENDERERS.close()


def chat(source: str) -> ChatTemplate:
    """A template of its own."""
    return ChatTemplate({"default": "t"}, {"default": source}, {})


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


@pytest.mark.parametrize("source", GREEDY)
@pytest.mark.usefixtures("tight")
def test_a_greedy_template_ends(source: str) -> None:
    """Whether it takes time or memory, in many steps or in one; the process goes on."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((TemplateLimitError, TemplateError)):
        chat(source).render(MESSAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB
    assert chat("{{ messages[0].content }}").render(MESSAGES) == "x" * 1000


@pytest.mark.usefixtures("tight")
def test_one_that_is_cut_takes_nobody_with_it() -> None:
    """Beside a template without end, another thread's are rendered."""
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
