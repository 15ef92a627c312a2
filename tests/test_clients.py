"""Programs that were made for other servers work with this one: clients, benchmarks, a fuzzer.

They run in an environment of their own (`make test-clients`), whose interpreter CLIENTS_PYTHON names.
"""

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.test_http_refusals import mutated, ways
from tests.tiny_run import start
from tests.tiny_server import serving

pytestmark = pytest.mark.clients
ROOT = Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("CLIENTS_PYTHON", "python")
DRAFTER = ROOT / "models" / "released" / "smollm2-135m"
OPTIONS = ["--target", "smollm2-135m", "--drafter", str(DRAFTER), "--width", "8", "--rows", "4", "--context", "512"]
TASK = ROOT / "configs" / "tasks" / "knowledge.jsonl"


def serve(port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """A server and its address."""
    process = start(["serve", "http", *OPTIONS, "--port", str(port), "--max-new-tokens", "64"])
    assert process.stdout is not None
    for output in (process.stdout, process.stderr):
        if output is process.stderr:
            threading.Thread(target=output.read, daemon=True).start()
    address = next(filter(None, (re.search(r"http://\S+(?=: a page)", line) for line in process.stdout)))[0]
    return process, address


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process, address = serve()
    with process:
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same server over a random target of two layers: thousands of answers, and what they say is no matter."""
    with serving(tmp_path_factory.mktemp("tiny"), rows=4, queue=64) as running:
        yield f"http://127.0.0.1:{running.port}"


def run(*arguments: str, seconds: float = 600) -> str:
    """What a program of the clients' environment prints."""
    done = subprocess.run([*arguments], capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def beside(program: str) -> str:
    """A program in the directory of the clients' interpreter."""
    return str(Path(PYTHON).parent / program)


def test_openais_package(address: str):
    assert run(PYTHON, "tests/clients/openai_package.py", address) == "fine\n"


def test_dflashs_benchmark_reads_the_acceptance_length(address: str):
    said = run(PYTHON, "tests/clients/dflash_benchmark.py", address, "smollm2-135m", str(TASK))
    tau = re.search(r"Accept length: +([\d.]+)", said)
    assert tau is not None
    assert 1 < float(tau[1]) < 8
    print(said)


def test_guidellm(address: str, tmp_path: Path):
    prompts = [{"prompt": json.loads(line)["messages"][0]["content"]} for line in TASK.read_text().splitlines()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    given = ["--backend", f"kind=openai_http,target={address},max_tokens=32,http2=false"]
    given += ["--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=6"]
    given += ["--data", f"kind=json_file,path={tmp_path / 'prompts.jsonl'}"]
    report = tmp_path / "report.json"
    run(beside("guidellm"), "run", *given, "--output", f"kind=json,path={report}", "--disable-console")
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (6, 0)
    print(json.dumps(benchmark["metrics"]["output_tokens_per_second"]["successful"], indent=1)[:400])


def test_schemathesis(fuzzed: str):
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    given = ["--checks", checks, "--max-examples", "60", "--seed", "1", "--request-timeout", "120"]
    print(run(beside("schemathesis"), "run", f"{fuzzed}/openapi.json", *given, seconds=1500)[-1500:])


def test_prometheus_reads_the_metrics(address: str):
    text = httpx.get(f"{address}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["vllm:spec_decode_num_accepted_tokens_per_pos"].samples[0].value > 0


def test_a_thousand_mutated_bodies(fuzzed: str):
    draw, seen = random.Random(1), []
    with httpx.Client(base_url=fuzzed, timeout=120) as client:
        for path, body in ((path, body) for _ in range(500) for path, body in ways()):
            response = client.post(path, content=mutated(body, draw))
            seen.append(response.status_code)
            assert response.status_code < 500, response.text
            if response.status_code != 200:
                error = response.json()["error"]
                assert error["param"] is None or error["message"].startswith(error["param"])
    print({status: seen.count(status) for status in sorted(set(seen))})


def test_clients_that_retry_outlive_a_server_that_is_killed():
    """kill -9 amid answers, then the same command again: everybody has his answer at last."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process, address = serve(port)
    texts: list[str] = []

    def insist() -> None:
        body = {"prompt": "Once upon a time", "max_tokens": 48, "temperature": 0}
        end = time.monotonic() + 300
        while time.monotonic() < end:
            try:
                texts.append(
                    httpx.post(f"{address}/v1/completions", json=body, timeout=120).json()["choices"][0]["text"]
                )
                return
            except (httpx.HTTPError, http.client.HTTPException):
                time.sleep(0.5)

    clients = [threading.Thread(target=insist) for _ in range(8)]
    for client in clients:
        client.start()
    while not re.search(r"^vllm:num_requests_running\S* [1-9]", httpx.get(f"{address}/metrics").text, re.MULTILINE):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    process, _ = serve(port)
    with process:
        for client in clients:
            client.join()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert len(texts) == 8
    assert len(set(texts)) == 1
