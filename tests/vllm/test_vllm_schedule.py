"""vLLM's own schedule of draft lengths by batch, behind Triton."""

from typing import Any

from tests.triton_client import streaming
from trt_mtp.serve.triton import TritonServer

MODEL = "qwen_mtp_k2"
REQUEST: dict[str, Any] = {
    "text_input": "Return JSON with the keys name, city and year: Ada Lovelace, London, 1843.",
    "streaming": True,
    "sampling_param_max_tokens": 96,
    "sampling_param_temperature": 0.0,
    "sampling_param_ignore_eos": True,
}


def test_it_drafts_less_in_larger_batches(scheduled: TritonServer) -> None:
    """Alone a request gets two drafts a step, beside others fewer, which its counters tell."""
    with streaming(scheduled.grpc_url) as stream:
        alone = stream.ask(MODEL, **REQUEST)[-1]
        for name in ("a", "b", "c"):
            stream.send(MODEL, request_id=name, **REQUEST)
        together: list[Any] = []
        while len(together) < 3:
            response = stream.receive()
            together += [response] if response.is_final else []
    assert not alone.error, alone.error
    steps, drafts = (alone.outputs[f"num_{what}"][0] for what in ("steps", "draft_tokens"))
    assert drafts == 2 * steps
    assert len(alone.outputs["accepted_per_position"]) == 2
    for response in together:
        steps, drafts = (response.outputs[f"num_{what}"][0] for what in ("steps", "draft_tokens"))
        assert steps <= drafts < 2 * steps
        assert response.outputs["num_output_tokens"][0] == 96
