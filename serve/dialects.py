"""The two ways of asking for answers, chat and plain completion: what differs between them, in one place each.

A dialect reads prompts out of its request and puts a choice, or a streamed piece of one, into its shape.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from models.tokenizer import Tokenizer
from serve import api
from serve.answers import Choice
from serve.requests import TokenLogprob

Prompt = tuple[str, str | list[int] | list[dict[str, str]]]  # the field it stands in; text, ids or turns


@runtime_checkable
class Dialect(Protocol):
    """What `serve.http` asks of one."""

    @property
    def prefix(self) -> str: ...  # of a request's id
    @property
    def request(self) -> type[api.ChatRequest] | type[api.CompletionRequest]: ...
    @property
    def answer(self) -> type[api.ChatCompletion] | type[api.Completion]: ...
    @property
    def chunk(self) -> type[api.ChatChunk] | type[api.CompletionChunk]: ...
    def prompts(self, body: Any) -> list[Prompt]: ...
    def begin(self, choice: Choice) -> list[Any]: ...
    def piece(self, choice: Choice, text: str, logprobs: Any, **more: Any) -> Any: ...
    def whole(self, choice: Choice, logprobs: Any) -> Any: ...
    def logprobs(self, tokens: Sequence[TokenLogprob], choice: Choice, tokenizer: Tokenizer) -> Any: ...


class Chat:
    """/v1/chat/completions"""

    prefix, request, answer, chunk = "chatcmpl", api.ChatRequest, api.ChatCompletion, api.ChatChunk

    def prompts(self, body: api.ChatRequest) -> list[Prompt]:
        return [("messages", [message.turn() for message in body.messages])]

    def begin(self, choice: Choice) -> list[api.ChatPiece]:
        """What a stream opens with."""
        return [api.ChatPiece(index=choice.index, delta=api.Delta(role="assistant", content=""))]

    def piece(self, choice: Choice, text: str, logprobs: Any, **more: Any) -> api.ChatPiece:
        return api.ChatPiece(index=choice.index, delta=api.Delta(content=text or None), logprobs=logprobs, **more)

    def whole(self, choice: Choice, logprobs: Any) -> api.ChatChoice:
        assert choice.finish_reason is not None
        message = api.AnswerMessage(content=choice.text)
        return api.ChatChoice(
            index=choice.index, message=message, logprobs=logprobs, finish_reason=choice.finish_reason
        )

    def logprobs(self, tokens: Sequence[TokenLogprob], choice: Choice, tokenizer: Tokenizer) -> api.ChatLogprobs:
        def named(id: int, logprob: float) -> dict[str, Any]:
            text = tokenizer.decode([id])
            return {"token": text, "logprob": logprob, "bytes": None if "�" in text else list(text.encode())}

        def with_others(token: TokenLogprob) -> api.ChatToken:
            others = [api.Alternative(**named(*other)) for other in token.top]
            return api.ChatToken(**named(token.id, token.logprob), top_logprobs=others)

        return api.ChatLogprobs(content=list(map(with_others, tokens)))


class Text:
    """/v1/completions"""

    prefix, request, answer, chunk = "cmpl", api.CompletionRequest, api.Completion, api.CompletionChunk

    def prompts(self, body: api.CompletionRequest) -> list[Prompt]:
        return [(f"prompt[{index}]", prompt) for index, prompt in enumerate(body.prompt)]

    def begin(self, choice: Choice) -> list[api.TextChoice]:
        return []

    def piece(self, choice: Choice, text: str, logprobs: Any, **more: Any) -> api.TextChoice:
        return api.TextChoice(index=choice.index, text=text, logprobs=logprobs, **{"finish_reason": None} | more)

    def whole(self, choice: Choice, logprobs: Any) -> api.TextChoice:
        return self.piece(choice, choice.text, logprobs, finish_reason=choice.finish_reason)

    def logprobs(self, tokens: Sequence[TokenLogprob], choice: Choice, tokenizer: Tokenizer) -> api.TextLogprobs:
        """`tokens` are the last of the choice so far."""
        named: Callable[[int], str] = lambda id: tokenizer.decode([id])  # noqa: E731
        texts = [named(token.id) for token in choice.logprobs]
        offsets, new = [sum(map(len, texts[:place])) for place in range(len(texts))], len(texts) - len(tokens)
        return api.TextLogprobs(
            tokens=texts[new:],
            token_logprobs=[token.logprob for token in tokens],
            # of tokens with one text, parts of characters say, the likeliest, which comes first
            top_logprobs=[{named(id): logprob for id, logprob in reversed(token.top)} for token in tokens],
            text_offset=offsets[new:],
        )


CHAT, TEXT = Chat(), Text()
