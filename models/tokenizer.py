"""Text to token ids and back, and the chat template, without torch.

In: the target's source, as for `sources`, and arguments for its template (`enable_thinking` of Qwen3, say). A Hugging
Face directory brings its own tokenizer files. A GGUF brings its vocabulary, merges and template as metadata; from those
the exact tokenizer is rebuilt where the file's pre-tokenizer is SmolLM's, and for any other a tokenizer.json is
expected beside it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from configs.errors import UserError
from models.sources import EMBEDDED, parse, tokenizer_directory
from models.sources.gguf import embedded_file, open_gguf
from models.target import TargetConfig

TemplateArgs = Mapping[str, bool | int | float | str]
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")  # what every template is rendered with
_ANSWER = "THE-ANSWER-OF-THE-ASSISTANT"  # stands for an answer where the template's own text around it is wanted


class Tokenizer:
    """Encodes chats as the target was trained to read them, its template rendered with `template_args`."""

    def __init__(self, fast: Any, template_args: TemplateArgs):
        self._fast, self._template_args = fast, dict(template_args)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`.

        Raises:
          UserError: half of a surrogate pair is in it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"expected text, got {error.object[error.start]!a}, half of a surrogate pair; mend it"
            ) from error
        return self._fast.encode(text, add_special_tokens=False)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of the conversation with the generation prompt appended.

        Raises:
          UserError: the chat template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            text = self._render(messages, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            roles = ", ".join(turn["role"] for turn in messages)
            raise UserError(f"the chat template refuses the turns {roles}: {error}; mend or remove it") from error
        return self.encode(text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return self._fast.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def turn_end(self, eos_ids: Sequence[int]) -> list[int]:
        """What the template writes after an assistant's answer, up to the first of the ids that end one.

        Where it writes none of them, the only one there is.
        Raises:
          UserError: it writes none of several.
        """
        turns = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": _ANSWER}]
        after = self.encode(self._render(turns, add_generation_prompt=False).rpartition(_ANSWER)[2])
        for place, token in enumerate(after):
            if token in eos_ids:
                return after[: place + 1]
        if len(eos_ids) > 1:
            raise UserError(
                f"chat template: it ends an answer with {self.decode(after)!r}, which holds none of the ids that end "
                f"one ({', '.join(map(str, eos_ids))}); name its end in generation_config.json"
            )
        return list(eos_ids)

    def unused_token_id(self, config: TargetConfig) -> int:
        """A token no chat contains, to stand for "not yet drafted".

        The tokenizer's mask token; else the embedding's first row that no token has; else the last special token that
        ends nothing and that the template does not write.
        Raises:
          UserError: there is none.
        """
        fast = self._fast
        if fast.mask_token_id is not None:
            return fast.mask_token_id
        beyond = max(fast.get_vocab().values()) + 1
        if beyond < config.vocab_size:
            return beyond
        named = {fast.bos_token, fast.eos_token, fast.pad_token, fast.unk_token}
        written = fast.get_chat_template() + self._rendered_roles()
        for token, added in sorted(fast.added_tokens_decoder.items(), reverse=True):
            free = added.special and token < config.vocab_size and token not in config.eos_ids
            if free and added.content not in named and added.content not in written:
                return token
        raise UserError(
            f"drafter.mask_token_id: {config.name} has neither an embedding row without a token nor a special token "
            "that its chat template leaves alone; set it to an id no text uses"
        )

    def _rendered_roles(self) -> str:
        """Conversations of every role the template takes."""
        from jinja2 import TemplateError

        turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user", "tool")]
        text = ""
        for begin, end in ((0, 5), (0, 4), (1, 4), (1, 3), (1, 2)):  # some refuse a system or a tool
            try:
                text += self._render(turns[begin:end], add_generation_prompt=True)
            except TemplateError:
                continue
        return text

    def _render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        return self._fast.apply_chat_template(
            list(map(dict, messages)),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self._template_args,
        )


def load_tokenizer(source: str, template_args: TemplateArgs = MappingProxyType({})) -> Tokenizer:
    """The tokenizer of the target named by `source`, its chat template taking `template_args`.

    Raises:
      UserError: no tokenizer files there, no chat template among them, or one that does not read an argument.
    """
    if source == EMBEDDED:
        fast = _from_gguf(embedded_file())
    else:
        path, directory = parse(source).path, tokenizer_directory(source)
        rebuilt = path.suffix == ".gguf" and not (directory / "tokenizer.json").is_file()
        fast = _from_gguf(path) if rebuilt else _from_directory(directory)
    template = fast.get_chat_template()
    for name in template_args:
        if name in _GIVEN or not re.search(rf"\b{re.escape(name)}\b", template):
            raise UserError(
                f"chat template argument {name!r}: the template of {source} reads nothing of that name from outside; "
                "mend the name or leave it out (target.chat_template_args of a recipe, wideblock.chat_template_args in "
                "the config.json of a drafter)"
            )
    return Tokenizer(fast, template_args)


def _from_directory(path: Path) -> Any:
    """transformers' fast tokenizer."""
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"target {path}: no usable tokenizer ({reason}); expected tokenizer.json beside it") from error
    if fast.chat_template is None:
        raise UserError(f"target {path}: its tokenizer has no chat template; add chat_template.jinja beside it")
    return fast


class _Rebuilt:
    """The tokenizer in a GGUF's metadata, with what we use of transformers'.

    Made of `tokenizers` and jinja2, as transformers' is; transformers itself would import torch where that is there.
    """

    mask_token_id = None

    def __init__(self, backend: Any, template: str, names: Mapping[str, str]):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._backend, self._source, self._names = backend, template, names
        self.bos_token, self.eos_token = names["bos_token"], names["eos_token"]
        self.pad_token, self.unk_token = names.get("pad_token"), names.get("unk_token")
        self._template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        return self._backend.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        return self._backend.get_added_tokens_decoder()

    def get_chat_template(self) -> str:
        return self._source

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **template_args: Any
    ) -> str:
        assert not tokenize
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return self._template.render({**given, **self._names, **template_args})


def _from_gguf(path: Path) -> _Rebuilt:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    fields = open_gguf(path).fields
    pre = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else None
    if pre != "smollm":
        raise UserError(
            f"target {path}: its tokenizer ({pre or 'not named'}) is not rebuilt from the file; put the tokenizer.json "
            "and tokenizer_config.json of its Hugging Face repository beside it"
        )
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    ids = {name: fields[f"tokenizer.ggml.{name}_id"].contents() for name in ("bos_token", "eos_token")}
    optional = {"pad_token": "tokenizer.ggml.padding_token_id", "unk_token": "tokenizer.ggml.unknown_token_id"}
    ids |= {name: fields[field].contents() for name, field in optional.items() if field in fields}
    names = {name: tokens[index] for name, index in ids.items()}
    return _Rebuilt(backend, fields["tokenizer.chat_template"].contents(), names)
