"""What clients send and get: the shapes of OpenAI's API, its errors, and what vLLM, SGLang and we add to them.

Every field of a request is either honoured, or known to have no effect on an answer and passed over, or refused by its
name unless it holds the value for what is done anyway (`tools: []`). A field nobody declared is refused too.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from models.sampling import GREEDY, Sampling

LEAST_TEMPERATURE = 1e-5  # below it the likeliest token is all there is, and float32 has no room for the quotients
LEAST_TOP_P = 1e-6
MOST_CHOICES = 16  # answers of one request: prompts times n
MOST_ALTERNATIVES = 20  # of a token, with its log-probability
MOST_STOPS, LONGEST_STOP = 16, 256  # strings, characters
LONGEST_SALT = 256


class Refusal(Exception):
    """A request that is not served, as the client is told it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refused_fields(error: ValidationError, body: Any) -> Refusal:
    """The first complaint of a `ValidationError` about `body`, naming the field by its path."""
    first = error.errors(include_url=False)[0]
    param = _path(first["loc"], body, missing=first["type"] == "missing")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"{param}: this server does not honour it; leave it out", param=param, code="unsupported")
    code = first["type"] if first["type"] == "unsupported" else "invalid_value"
    given = "" if first["type"] in ("missing", "unsupported") else f", got {_shortened(first['input'])}"
    return Refusal(400, f"{param or 'body'}: {first['msg']}{given}", param=param, code=code)


def _path(location: Sequence[int | str], body: Any, *, missing: bool) -> str | None:
    """`messages[0].content`; pydantic's names of a union's members, which the body does not have, are left out."""
    words = ""
    for part in location:
        if isinstance(part, int):
            words += f"[{part}]"
            body = body[part] if isinstance(body, list) and part < len(body) else None
        elif isinstance(body, dict) and (part in body or missing):
            words, body = f"{words}.{part}", body.get(part)
    return words.removeprefix(".") or None


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def only(*values: Any) -> Any:
    """A field that changes nothing at `values` (or null), which are the only ones taken."""
    return Field(None, json_schema_extra={"enum": [*values, None]})


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    one = isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int)
    return [value] if one else value


Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]],
    Field(max_length=MOST_STOPS),
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]


class Body(BaseModel):
    """A JSON object whose fields are all known; numbers are numbers, not texts of numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def refuse_what_is_not_honoured(cls, value: Any, info: Any) -> Any:
        extra = cls.model_fields[info.field_name].json_schema_extra
        if not isinstance(extra, dict) or "enum" not in extra:
            return value
        fine = extra["enum"]
        assert isinstance(fine, list)
        if any(value == taken and type(value) is type(taken) for taken in fine):
            return value
        instead = "".join(f" or give {json.dumps(taken)}" for taken in fine[:1] if taken is not None)
        raise PydanticCustomError(
            "unsupported", "this server does not honour it; leave it out{instead}", {"instead": instead}
        )


class TextPart(Body):
    type: Any = only("text")
    text: str


class Message(Body):
    """A turn of the conversation; `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        BeforeValidator(
            lambda value: [{"text": value}] if isinstance(value, str) else value,
            json_schema_input_type=str | list[TextPart],
        ),
    ]
    name: Any = only()
    refusal: Any = only()
    annotations: Any = only([])
    audio: Any = only()
    tool_calls: Any = only([])
    tool_call_id: Any = only()
    function_call: Any = only()
    reasoning_content: Any = only("")

    def turn(self) -> dict[str, str]:
        """As chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Any = None
    continuous_usage_stats: bool | None = Field(None, description="with include_usage: in every piece of a stream")


class Generation(Body):
    """What both ways of asking have in common."""

    model: str | None = Field(None, description="the served model's name; it alone is served, so it may be left out")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="1 unless given; 0: the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: all")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="taken modulo 2^32; drawn where there is none")
    stop: Stops | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # ours
    speculative: bool | None = Field(None, description="false: the plain loop, one token a step")
    per_request_metrics: bool | None = Field(None, description="adds `metrics`, `meta_info` and the steps of a stream")
    return_meta_info: bool | None = Field(None, description="SGLang's name of per_request_metrics")
    cache_salt: str | None = Field(
        None, max_length=LONGEST_SALT, description="beginnings of prompts are found again among requests of one salt"
    )
    # without effect on an answer
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    # refused, but for what is done anyway
    presence_penalty: Any = only(0, 0.0)
    frequency_penalty: Any = only(0, 0.0)
    repetition_penalty: Any = only(1, 1.0)
    logit_bias: Any = only({})
    best_of: Any = only(1)
    response_format: Any = only({"type": "text"})
    ignore_eos: Any = only(False)
    min_tokens: Any = only(0)
    stop_token_ids: Any = only([])
    include_stop_str_in_output: Any = only(False)
    skip_special_tokens: Any = only(True)
    chat_template_kwargs: Any = only({})

    @property
    def sampling(self) -> Sampling:
        """The API's temperature is 1 where none is given."""
        temperature = 1.0 if self.temperature is None else self.temperature
        if temperature < LEAST_TEMPERATURE:
            return GREEDY
        top_k = self.top_k if self.top_k and self.top_k > 0 else None
        top_p = 1.0 if self.top_p is None else max(self.top_p, LEAST_TOP_P)
        return Sampling(float(temperature), top_k, float(top_p), float(self.min_p or 0.0))

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_so_far(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def measured(self) -> bool:
        """Whether the client asked what each step did."""
        return bool(self.per_request_metrics or self.return_meta_info)


class ChatRequest(Generation):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    tools: Any = only([])
    tool_choice: Any = only("none", "auto")
    parallel_tool_calls: Any = None
    functions: Any = only([])
    function_call: Any = only("none", "auto")
    modalities: Any = only(["text"])
    audio: Any = only()
    prediction: Any = only()
    reasoning_effort: Any = only()
    verbosity: Any = only()
    web_search_options: Any = only()
    add_generation_prompt: Any = only(True)
    continue_final_message: Any = only(False)

    @property
    def asked_tokens(self) -> tuple[str, int | None]:
        """The field that bounds the answer, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    prompt: Annotated[
        list[str | Ids],
        Field(min_length=1, max_length=MOST_CHOICES),
        BeforeValidator(_prompts, json_schema_input_type=str | list[str] | Ids | list[Ids]),
    ]
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: Any = only(False)
    suffix: Any = only("")

    @property
    def asked_tokens(self) -> tuple[str, int | None]:
        """The API's bound is 16 tokens where none is given."""
        return "max_tokens", 16 if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class TokenizeRequest(Body):
    """A text, or a conversation as the model would read it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: Any = only(False)
    add_generation_prompt: Any = only(True)


# Answers. What is added to OpenAI's shapes is there only when asked for.

Extra = Field(default=None, exclude_if=lambda value: value is None)


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Speculation(BaseModel):
    """vLLM's names. A step that drafted counts; `acceptance_histogram[i]` of them accepted i drafts."""

    mean_acceptance_length: float | None
    draft_acceptance_rate: float | None
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int


class Times(BaseModel):
    """Milliseconds of a request that wrote one answer."""

    queued_ms: float
    prefill_ms: float
    first_token_ms: float
    decode_ms: float
    preemptions: int


class Metrics(BaseModel):
    speculative_decoding: Speculation
    times: Times | None = Extra


class MetaInfo(BaseModel):
    """SGLang's names: steps of the target, tokens a step."""

    id: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    spec_verify_ct: int
    spec_accept_length: float


class Alternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None  # null: the token is part of a character


class ChatToken(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    content: list[ChatToken]
    refusal: None = None


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Step(BaseModel):
    """What a step brought to a streamed piece; `text` goes on in a later piece where a character was unfinished."""

    index: int
    text: str
    tokens: int
    drafted: int


Finish = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class Delta(BaseModel):
    role: Literal["assistant"] | None = Extra
    content: str | None = Extra


class ChatPiece(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    steps: list[Step] | None = Extra


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    steps: list[Step] | None = Extra


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    metrics: Metrics | None = Extra
    meta_info: MetaInfo | None = Extra


class ChatCompletion(_Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatChunk(_Answer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatPiece]
    usage: Usage | None = None


class Completion(_Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class CompletionChunk(Completion):
    usage: Usage | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["wideblock"] = "wideblock"
    max_model_len: int


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class InternalState(BaseModel):
    """SGLang's name: tokens a verify step of all requests so far, the bonus token included."""

    avg_spec_accept_length: float | None


class ServerInfo(BaseModel):
    version: str
    model: str
    drafter: str
    device: str
    rows: int
    max_model_len: int
    plain_ms_per_token: float | None = Field(description="a step of the plain loop alone, as measured at the start")
    internal_states: list[InternalState]


class Health(BaseModel):
    status: Literal["ok"]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorBody
