"""The API over the scheduler: routes, and what becomes of a request.

    POST /v1/chat/completions  /v1/completions  /tokenize
    GET  /v1/models  /health  /metrics  /server_info  /openapi.json  /docs  /  (a page to chat on)

Answers stream as server-sent events. A request that fails gets `serve.api.Error`.
"""

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from configs.errors import UserError
from models.target import TargetConfig, check_ids
from models.tokenizer import Tokenizer
from serve import api, openapi
from serve.answers import RETRY_SECONDS, Call, Choice
from serve.api import Refusal
from serve.dialects import CHAT, TEXT, Dialect, Prompt
from serve.guard import Guard, Limits, log_line
from serve.metrics import Metrics
from serve.requests import Request, TokenLogprob
from serve.scheduler import Scheduler

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
GONE = 499  # nginx's status, for the log: nobody is there to read it
AnyBody = TypeVar("AnyBody", bound=BaseModel)


@dataclasses.dataclass(frozen=True)
class Served:
    """What answers, as clients are told."""

    name: str
    drafter: str
    device: str
    rows: int
    fingerprint: str
    plain_ms_per_token: float | None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


class Service:
    """The application: `app` is what a web server runs."""

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        config: TargetConfig,
        served: Served,
        *,
        limits: Limits,
        keys: Sequence[str] = (),
        hosts: Collection[str] | None = None,
        log: Callable[[dict[str, Any]], None] = log_line,
        log_prompts: bool = False,
    ):
        self.scheduler, self.tokenizer, self.config, self.served = scheduler, tokenizer, config, served
        self.limits, self.log_prompts = limits, log_prompts
        self.metrics = Metrics(served.name, scheduler.stats)
        described = openapi.describe(served.name)
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.scrape),
            Route("/server_info", self.server_info),
            Route("/openapi.json", lambda request: JSONResponse(described)),
            Route("/docs", lambda request: HTMLResponse(openapi.listing(described))),
            Route("/", page),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, limits=limits, keys=keys, hosts=hosts, log=log)],
            exception_handlers={Refusal: refuse, HTTPException: refuse_route, Exception: fail},
        )

    async def chat(self, request: HttpRequest) -> Response:
        return await self.answer(request, CHAT)

    async def complete(self, request: HttpRequest) -> Response:
        return await self.answer(request, TEXT)

    async def answer(self, request: HttpRequest, dialect: Dialect) -> Response:
        """All of the answers at once, or a stream of them."""
        body = await read(request, dialect.request)
        self.check_model(body.model)
        given = dialect.prompts(body)
        prompts = await run_in_threadpool(lambda: [self.encode(prompt) for prompt in given])
        requests = self.requests(body, [where for where, _ in given], prompts, request.state.id)
        call = Call(self.scheduler, self.tokenizer, self.metrics, requests)
        head = {
            "id": f"{dialect.prefix}-{request.state.id}",
            "created": int(time.time()),
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
        }
        request.state.log |= {"stream": bool(body.stream), "speculative": requests[0].speculative}
        if self.log_prompts:
            request.state.log["prompts"] = [self.tokenizer.decode(prompt) for prompt in prompts]
        try:
            call.submit()
        except UserError as error:
            raise Refusal(400, str(error), param=given[0][0]) from error
        if body.stream:
            return Events(self.stream(call, dialect, body, head), request, call)
        try:
            if not await unless_gone(request, finish(call)):
                return Response(status_code=GONE)
        finally:
            call.cancel()
            request.state.log |= call.summary()
        choices = [dialect.whole(choice, self.logprobs(dialect, body, choice)) for choice in call.choices]
        return as_json(dialect.answer(**head, choices=choices, usage=call.usage, **measured(call, body, head["id"])))

    async def stream(
        self, call: Call, dialect: Dialect, body: api.ChatRequest | api.CompletionRequest, head: dict[str, Any]
    ) -> AsyncIterator[str]:
        """Server-sent events: one for every piece of an answer, at last what was asked for about all of them."""

        def event(choices: list[Any], **more: Any) -> str:
            usage = {"usage": call.usage} if body.usage_so_far else {}
            return f"data: {dialect.chunk(**{**head, 'choices': choices, **usage, **more}).model_dump_json()}\n\n"

        try:
            for choice in call.choices:
                for piece in dialect.begin(choice):
                    yield event([piece])
            async for choice, progress in call.progress():
                new = progress.logprobs or ()
                logprobs = self.logprobs(dialect, body, choice, new) if new else None
                steps = choice.steps(progress, self.tokenizer) if body.measured else None
                if progress.text or logprobs or steps:
                    yield event([dialect.piece(choice, progress.text, logprobs, steps=steps)])
                if choice.finish_reason is not None:
                    yield event([dialect.piece(choice, "", None, finish_reason=choice.finish_reason)])
            if body.include_usage or body.measured:
                usage = call.usage if body.include_usage else None
                yield event([], usage=usage, **measured(call, body, head["id"]))
        except Refusal as refusal:
            yield f"data: {json.dumps(refusal.body)}\n\n"
        yield "data: [DONE]\n\n"

    def logprobs(
        self, dialect: Dialect, body: Any, choice: Choice, tokens: Sequence[TokenLogprob] | None = None
    ) -> Any:
        """Of the `tokens` that came last, or of all; None where none were asked for."""
        if body.alternatives is None:
            return None
        return dialect.logprobs(choice.logprobs if tokens is None else tokens, choice, self.tokenizer)

    # From a request's body to what the scheduler takes

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.served.name):
            message = f"model: {name!r} is not served here; expected {self.served.name!r}"
            raise Refusal(404, message, param="model", code="model_not_found")

    def encode(self, prompt: Prompt) -> list[int]:
        """Its ids; an empty text has none, which is refused."""
        where, given = prompt
        try:
            if isinstance(given, str):
                ids = self.tokenizer.encode(given)
            elif where == "messages":
                ids = self.tokenizer.encode_chat(cast(list[dict[str, str]], given))
            else:
                ids = cast(list[int], given)
                check_ids(ids, self.config, where)
        except UserError as error:
            message = f"{where}: {str(error).removeprefix(f'{where}: ')}"
            raise Refusal(400, message, param=where, code="invalid_value") from error
        if not ids:
            raise Refusal(400, f"{where}: expected at least one token, got none", param=where, code="invalid_value")
        return ids

    def requests(
        self, body: api.ChatRequest | api.CompletionRequest, where: Sequence[str], prompts: list[list[int]], id: str
    ) -> list[Request]:
        """n for every prompt, each with a seed of its own."""
        n = body.n or 1
        if len(prompts) * n > api.MOST_CHOICES:
            message = f"n: expected at most {api.MOST_CHOICES} answers, got {len(prompts)} prompts x {n}"
            raise Refusal(400, message, param="n", code="invalid_value")
        room = [self.room(body.asked_tokens, *prompt) for prompt in zip(where, prompts, strict=True)]
        seed = secrets.randbits(32) if body.seed is None else body.seed
        return [
            Request(
                id=f"{id}/{number * n + again}",
                prompt=tuple(prompt),
                max_new_tokens=room[number],
                sampling=body.sampling,
                seed=(seed + again) % 2**32,
                stop=tuple(body.stop or ()),
                logprobs=body.alternatives,
                speculative=body.speculative is not False,
                cache_salt=body.cache_salt or "",
            )
            for number, prompt in enumerate(prompts)
            for again in range(n)
        ]

    def room(self, asked: tuple[str, int | None], where: str, prompt: Sequence[int]) -> int:
        """Tokens the answer may have: as many as were asked for, or else as there is room for."""
        (name, wanted), limits, context = asked, self.limits, self.scheduler.capacity
        most = min(limits.prompt_tokens or context, context - 1)
        if len(prompt) > most:
            message = f"{where}: {len(prompt)} tokens; expected at most {most}"
            raise Refusal(400, message, param=where, code="context_length_exceeded")
        most = min(limits.new_tokens or context, context)
        if wanted is not None and wanted > most:
            raise Refusal(400, f"{name}: expected at most {most}, got {wanted}", param=name, code="invalid_value")
        left = context - len(prompt)
        if wanted is not None and wanted > left:
            message = (
                f"{name}: {wanted} after the {len(prompt)} of {where} exceed the context of {context}; ask for less"
            )
            raise Refusal(400, message, param=name, code="context_length_exceeded")
        return min(left, most) if wanted is None else wanted

    # What else there is to ask

    async def tokenize(self, request: HttpRequest) -> Response:
        body = await read(request, api.TokenizeRequest)
        self.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refusal(400, "prompt: expected it or messages, one of the two", param="prompt", code="invalid_value")
        if body.prompt is not None:
            ids = await run_in_threadpool(self.tokenizer.encode, body.prompt)
        else:
            turns = [message.turn() for message in body.messages or ()]
            ids = await run_in_threadpool(self.encode, ("messages", turns))
        return as_json(api.Tokens(tokens=ids, count=len(ids), max_model_len=self.scheduler.capacity))

    @property
    def described(self) -> api.Model:
        return api.Model(id=self.served.name, created=self.served.created, max_model_len=self.scheduler.capacity)

    async def models(self, request: HttpRequest) -> Response:
        return as_json(api.Models(data=[self.described]))

    async def model(self, request: HttpRequest) -> Response:
        self.check_model(request.path_params["model"])
        return as_json(self.described)

    async def health(self, request: HttpRequest) -> Response:
        return as_json(api.Health(status="ok"))

    async def scrape(self, request: HttpRequest) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def server_info(self, request: HttpRequest) -> Response:
        stats, served = self.scheduler.stats(), self.served
        # plain steps leave drafts out of the mean, as SGLang's does
        tau = 1 + stats.accepted_tokens / stats.drafts if stats.drafts else None
        return as_json(
            api.ServerInfo(
                version=metadata.version("wideblock"),
                model=served.name,
                drafter=served.drafter,
                device=served.device,
                rows=served.rows,
                max_model_len=self.scheduler.capacity,
                plain_ms_per_token=served.plain_ms_per_token,
                internal_states=[api.InternalState(avg_spec_accept_length=tau)],
            )
        )


class Events(StreamingResponse):
    """A stream of events whose rows are freed however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], request: HttpRequest, call: Call):
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.state, self.call = request.state, call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.call.cancel()
            self.state.log |= self.call.summary()


async def read(request: HttpRequest, model: type[AnyBody]) -> AnyBody:
    """The body, whatever type it says it is: `curl -d` names none of JSON's."""
    try:
        body = from_json(await request.body(), allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"body: expected JSON: {error}", code="invalid_json") from error
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise api.refused_fields(error, body) from error


async def finish(call: Call) -> bool:
    async for _ in call.progress():
        pass
    return True


async def unless_gone(request: HttpRequest, work: Any) -> bool:
    """What `work` gives; False if the client hangs up before."""
    running, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        return running.done() and running.result()
    finally:
        running.cancel()
        gone.cancel()


def measured(call: Call, body: api.ChatRequest | api.CompletionRequest, id: str) -> dict[str, Any]:
    return {"metrics": call.speculation(), "meta_info": call.meta_info(id)} if body.measured else {}


def as_json(model: BaseModel, status: int = 200) -> Response:
    return Response(model.model_dump_json(), status, media_type="application/json")


async def page(request: HttpRequest) -> Response:
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY})


async def refuse(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    request.state.log["error"] = error.message
    return refusal_response(error)


def refusal_response(refusal: Refusal) -> Response:
    headers = {"retry-after": str(RETRY_SECONDS)} if refusal.status in (429, 503) else None
    return JSONResponse(refusal.body, refusal.status, headers)


async def refuse_route(request: HttpRequest, error: Exception) -> Response:
    """No such path, or not by this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is"
    return JSONResponse(Refusal(error.status_code, message).body, error.status_code, error.headers)


async def fail(request: HttpRequest, error: Exception) -> Response:
    """A fault of ours: its traceback is logged, the client gets the id to ask for it by."""
    message = f"a fault of the server's (request {request.state.id}); its log says more"
    return JSONResponse(Refusal(500, message, code="fault").body, 500)
