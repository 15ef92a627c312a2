"""What the server says of its speculation, in each dialect, is what its answers' steps were."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.drafters import Draft
from serve.session import Decoder
from tests.tiny_server import Running, serving

PROMPTS = ["Twice", "The", "A tale of"]
TOKENS = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


def scraped(server: Running) -> dict[tuple[str, str], float]:
    """Values by name and what tells them apart beside the model."""
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["model_name"] for sample in samples} == {"tiny"}
    known = ("position", "le", "finished_reason")
    return {(s.name, "".join(s.labels.get(name, "") for name in known)): s.value for s in samples}


def test_counters_and_histograms_add_up(server):
    """Greedy steps of offline decoding are the server's: 3 drafts in each, of which run - 1 were accepted."""
    before = scraped(server)
    bodies = [
        server.post("/v1/completions", prompt=prompt, max_tokens=TOKENS, temperature=0, return_meta_info=True).json()
        for prompt in PROMPTS
    ]
    tokenizer = server.service.tokenizer
    decoder = Decoder(server.engine, tokenizer, Draft("drafter", 4))
    answers = [decoder.generate([tokenizer.encode(prompt)], max_new_tokens=TOKENS)[0] for prompt in PROMPTS]
    steps = [run for answer in answers for run in answer.runs]
    assert server.settles(lambda: server.idle)
    gained = {name: value - before.get(name, 0) for name, value in scraped(server).items()}
    expected = {
        ("vllm:spec_decode_num_drafts_total", ""): len(steps),
        ("vllm:spec_decode_num_draft_tokens_total", ""): 3 * len(steps),
        ("vllm:spec_decode_num_accepted_tokens_total", ""): sum(run - 1 for run in steps),
        ("vllm:prompt_tokens_total", ""): sum(map(len, PROMPTS)),
        ("vllm:generation_tokens_total", ""): len(PROMPTS) * TOKENS,
        ("vllm:request_success_total", "length"): len(PROMPTS),
        ("vllm:request_success_total", "stop"): 0,
        ("vllm:num_requests_running", ""): 0,
        ("vllm:e2e_request_latency_seconds_count", ""): len(PROMPTS),
        ("vllm:time_to_first_token_seconds_count", ""): len(PROMPTS),
        ("vllm:request_queue_time_seconds_count", ""): len(PROMPTS),
        ("vllm:request_generation_tokens_sum", ""): len(PROMPTS) * TOKENS,
        ("vllm:request_generation_tokens_bucket", "50.0"): len(PROMPTS),
    }
    expected |= {
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", str(place)): sum(run - 1 > place for run in steps)
        for place in range(3)
    }
    assert {name: gained[name] for name in expected} == expected
    for body, answer in zip(bodies, answers, strict=True):
        runs, accepted = answer.runs, sum(answer.runs) - len(answer.runs)
        assert body["metrics"]["speculative_decoding"] == {
            "mean_acceptance_length": pytest.approx(1 + accepted / len(runs)),
            "draft_acceptance_rate": pytest.approx(accepted / (3 * len(runs))),
            "acceptance_histogram": [runs.count(run) for run in range(1, max(runs) + 1)],
            "num_spec_steps": len(runs),
            "num_draft_tokens": 3 * len(runs),
            "num_accepted_draft_tokens": accepted,
        }
        assert body["meta_info"]["spec_verify_ct"] == len(runs)
        assert body["meta_info"]["spec_accept_length"] == pytest.approx(TOKENS / len(runs))
    (state,) = server.client.get("/server_info").json()["internal_states"]
    totals = scraped(server)
    drafts, accepted = (
        totals["vllm:spec_decode_num_" + name, ""] for name in ("drafts_total", "accepted_tokens_total")
    )
    assert state["avg_spec_accept_length"] == pytest.approx(1 + accepted / drafts)


def test_a_request_is_one_line_of_the_log_without_its_text(server):
    line = server.line(server.post("/v1/completions", prompt="Twice", max_tokens=7, temperature=0, speculative=False))
    assert (line["status"], line["completion_tokens"], line["steps"], line["tau"]) == (200, 7, 7, 1.0)
    assert line["finish_reasons"] == ["length"]
    assert "Twice" not in json.dumps(line)


def test_plain_requests_draft_nothing(server):
    before = scraped(server)
    given = {"prompt": "The", "max_tokens": 9, "temperature": 0, "speculative": False, "per_request_metrics": True}
    body = server.post("/v1/completions", **given).json()
    assert body["metrics"]["speculative_decoding"]["num_spec_steps"] == 0
    assert body["meta_info"]["spec_verify_ct"] == 9
    name = ("vllm:spec_decode_num_drafts_total", "")
    assert scraped(server)[name] == before[name]
