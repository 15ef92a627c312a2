"""The page answers in a browser: it streams, tints what a step committed, and its figures are the answer's."""

import json
from pathlib import Path

import pytest

from tests.chromium import PROGRAM, browsing
from tests.tiny_server import serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")]
TOKENS = 40


def test_a_question_is_answered_and_measured(tmp_path: Path):
    body = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": TOKENS, "temperature": 0}
    with serving(tmp_path) as server, browsing(tmp_path / "profile") as page:
        expected = server.post("/v1/chat/completions", **body, per_request_metrics=True).json()
        page.call("Page.enable")
        page.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.wait("document.getElementById('name').textContent === 'tiny'")
        page.value(f"document.getElementById('tokens').value = {TOKENS}")
        page.type("Why?")  # the question has the focus from the beginning
        page.press("Enter")
        page.wait("document.querySelector('.figures')?.dataset.whole === 'true'")
        assert (
            page.value("document.querySelector('.answer > div').textContent")
            == (expected["choices"][0]["message"]["content"])
        )
        figures = json.loads(page.value("JSON.stringify(document.querySelector('.figures').dataset)"))
        steps = expected["meta_info"]["spec_verify_ct"]
        assert int(figures["tokens"]) == expected["usage"]["completion_tokens"]
        assert float(figures["tau"]) == pytest.approx(int(figures["tokens"]) / steps)
        assert float(figures["rate"]) > 0
        accepted = expected["metrics"]["speculative_decoding"]["acceptance_histogram"]
        assert page.value("document.querySelectorAll('.run').length") == sum(accepted[1:])
        page.value("document.querySelector('.compare').click()")
        page.wait("document.querySelector('.answer').textContent.includes('The plain loop writes the same.')")
        assert float(page.value("document.querySelector('.figures').dataset.speedup")) > 0
        page.value("document.getElementById('speculative').click()")
        page.value("document.getElementById('question').focus()")
        page.type("And why is that?")
        page.press("Enter")
        page.wait("document.querySelectorAll('.figures')[1]?.dataset.whole === 'true'")
        assert float(page.value("document.querySelectorAll('.figures')[1].dataset.tau")) == 1.0
        assert server.settles(lambda: server.log[-1]["speculative"] is False)


def test_nothing_is_fetched_from_elsewhere():
    text = (Path(__file__).resolve().parent.parent / "serve" / "page.html").read_text()
    assert not any(word in text for word in ("http:", "https:", "//cdn", "@import", "src=", "url("))
