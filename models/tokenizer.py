"""Text to token ids and back, and the chat template, without torch.

In: the target's source, as for `sources`. A Hugging Face directory brings its own tokenizer files. A GGUF brings its
vocabulary, merges and template as metadata; from those the exact tokenizer is rebuilt where the file's pre-tokenizer is
SmolLM's, and for any other a tokenizer.json is expected beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.sources import EMBEDDED, parse, tokenizer_directory
from models.sources.gguf import embedded_file, open_gguf


class Tokenizer:
    """Encodes chats as the target was trained to read them."""

    def __init__(self, fast: Any, mask_token_id: int):
        self._fast = fast
        self.default_mask_token_id = mask_token_id

    def encode(self, text: str) -> list[int]:
        return self._fast.encode(text, add_special_tokens=False)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of the conversation with the generation prompt appended."""
        text = self._fast.apply_chat_template(list(map(dict, messages)), tokenize=False, add_generation_prompt=True)
        return self.encode(text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return self._fast.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of the target named by `source`.

    Raises:
      ValueError: no tokenizer files there, or no chat template among them.
    """
    if source == EMBEDDED:
        return _from_gguf(embedded_file())
    path, directory = parse(source).path, tokenizer_directory(source)
    if path.suffix == ".gguf" and not (directory / "tokenizer.json").is_file():
        return _from_gguf(path)
    return _from_directory(directory)


def _from_directory(path: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"target {path}: no usable tokenizer ({reason}); expected tokenizer.json beside it") from error
    if fast.chat_template is None:
        raise ValueError(f"target {path}: its tokenizer has no chat template; add chat_template.jinja beside it")
    return Tokenizer(fast, _spare_token(fast))


class _Rebuilt:
    """The tokenizer in a GGUF's metadata, with the three methods of transformers' that we use.

    Made of `tokenizers` and jinja2, as transformers' is; transformers itself would import torch where that is there.
    """

    def __init__(self, backend: Any, template: str, names: Mapping[str, str]):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._backend, self._names = backend, names
        self._template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        return self._template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None, **self._names
        )


def _from_gguf(path: Path) -> Tokenizer:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    fields = open_gguf(path).fields
    pre = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else None
    if pre != "smollm":
        raise ValueError(
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
    names = {name: tokens[index] for name, index in ids.items()}
    fast = _Rebuilt(backend, fields["tokenizer.chat_template"].contents(), names)
    spare = next(token for token in reversed(special) if token not in names.values())
    return Tokenizer(fast, tokens.index(spare))


def _spare_token(fast: Any) -> int:
    """A special token no chat contains, to stand for "not yet drafted": its mask token, else the last special one."""
    if fast.mask_token_id is not None:
        return fast.mask_token_id
    spare = sorted(fast.get_added_vocab(), key=fast.convert_tokens_to_ids)
    used = {fast.bos_token, fast.eos_token, fast.pad_token}
    for token in reversed(spare):
        if token not in used:
            return fast.convert_tokens_to_ids(token)
    raise ValueError("the tokenizer has no spare special token; set drafter.mask_token_id to an id no text uses")
