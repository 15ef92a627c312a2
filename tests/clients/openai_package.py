"""OpenAI's Python package against a server, URL its argument: ways of asking that are honoured, and some that are not.

Run by `tests/test_clients.py` with an interpreter that has `openai`, not with this project's.
"""

import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none is asked for")
(model,) = client.models.list().data
assert client.models.retrieve(model.id).id == model.id
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
asked = {"model": model.id, "messages": messages, "max_completion_tokens": 24, "temperature": 0}

whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
(choice,) = whole.choices
assert choice.message.role == "assistant"
assert choice.finish_reason in ("stop", "length")
assert len(choice.logprobs.content) == whole.usage.completion_tokens
assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in choice.logprobs.content)

pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
assert text == choice.message.content
assert pieces[-1].usage == whole.usage.model_copy(
    update={"prompt_tokens_details": pieces[-1].usage.prompt_tokens_details}
)

# what its answers hold may be sent back as the conversation's next turn
again = [
    *messages,
    choice.message.model_dump(),
    {"role": "user", "content": [{"type": "text", "text": "And at night?"}]},
]
assert client.chat.completions.create(**asked | {"messages": again}).choices[0].message.content is not None

several = client.chat.completions.create(**asked | {"temperature": 1.2, "n": 3, "seed": 5, "top_p": 0.9})
assert [choice.index for choice in several.choices] == [0, 1, 2]
word = text[2:6]
stopped = client.chat.completions.create(**asked, stop=[word]).choices[0]
assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(word)], "stop")

completion = client.completions.create(
    model=model.id, prompt=["Once upon", "a time"], max_tokens=8, temperature=0, logprobs=1
)
assert [len(choice.logprobs.tokens) for choice in completion.choices] == [8, 8]
streamed = list(client.completions.create(model=model.id, prompt="Once upon", max_tokens=8, temperature=0, stream=True))
assert "".join(piece.choices[0].text for piece in streamed) == completion.choices[0].text

for wrong, kind, param in (
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
    ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
    ({"model": "another"}, openai.NotFoundError, "model"),
):
    try:
        client.chat.completions.create(**asked | wrong)
    except kind as error:
        refused = error.param
    else:
        refused = None
    assert refused == param, wrong
print("fine")
