"""config.json of a block drafter as PyPI `speculators` writes it, put into the words of the public DFlash layout.

    speculators_model_type        dflash, dspark or xpress; its EAGLE-3 is read by `.eagle3_artifact`
    transformer_layer_config      the layers, as a Qwen3 model has them, what is at its default left out at times
    aux_hidden_state_layer_ids    taps as vLLM counts them: tap l, what layer l gives, is input l + 1
    sliding_window_non_causal     in-block attention of sliding layers, which are causal otherwise

The rest has the same names in both. The tensors do too; beside them lies lm_head.weight where there is a draft
vocabulary, which must be the target's own rows.
"""

from collections.abc import Mapping
from typing import Any

from configs.errors import UserError

TYPE = "speculators_model_type"
_KINDS = ("dflash", "dspark", "xpress")
_SAME = ("block_size", "mask_token_id", "sample_from_anchor", "draft_vocab_size")
_OF_HEADS = {
    "dspark": ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov"),
    "xpress": ("xpress_rank", "xpress_mlp_ratio", "num_jacobi_passes"),
}
_PUT_OTHERWISE = (TYPE, "transformer_layer_config", "aux_hidden_state_layer_ids", "sliding_window_non_causal")
_PUT_OTHERWISE += ("target_hidden_size",)
_WITHOUT_EFFECT = ("speculators_config", "speculators_version", "tie_word_embeddings")
_OF_LAYERS = (
    *("num_hidden_layers", "layer_types", "hidden_size", "intermediate_size", "head_dim", "num_attention_heads"),
    *("num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window"),
    *("use_sliding_window", "max_position_embeddings", "vocab_size", "tie_word_embeddings", "attention_bias"),
    "hidden_act",
)


def in_public_words(raw: Mapping[str, Any], architecture: str, where: str) -> dict[str, Any]:
    """The same drafter's config.json in the public layout, of the `architecture` that may have every head.

    Raises:
      UserError: a kind or a layer that is not known, a field missing.
    """
    kind = raw[TYPE]
    if kind not in _KINDS:
        raise UserError(f"{where}: {TYPE} {kind!r}; expected {', '.join(_KINDS)} or eagle3")
    heads = _OF_HEADS.get(kind, ())
    others = {name: value for name, value in raw.items() if name not in {*_PUT_OTHERWISE, *_WITHOUT_EFFECT}}
    try:
        layers, taps = raw["transformer_layer_config"], raw["aux_hidden_state_layer_ids"]
        model = layers.get("model_type", "qwen3")
        missing = next((name for name in (*_SAME, *heads) if name not in raw), None)
        if missing is not None:
            raise KeyError(missing)
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing; expected a {kind} drafter of speculators") from error
    if model != "qwen3" or not taps:
        raise UserError(
            f"{where}: transformer_layer_config of {model!r} with aux_hidden_state_layer_ids {taps}; expected layers "
            "of 'qwen3', and the inputs that they are told of"
        )
    layers = _whole(layers)
    sizes = {"target_hidden_size": raw.get("target_hidden_size") or layers["hidden_size"]}
    if raw["draft_vocab_size"] == layers["vocab_size"]:
        del others["draft_vocab_size"]  # the whole one
    if raw.get("sliding_window_non_causal") and "sliding_attention" in (layers["layer_types"] or ()):
        others["is_causal"] = False
    named = {"architectures": [architecture], "num_target_layers": None, "target_layer_ids": [tap - 1 for tap in taps]}
    return {name: layers[name] for name in _OF_LAYERS if layers.get(name) is not None} | others | sizes | named


def _whole(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers' fields, with those that stand at their default."""
    from transformers import Qwen3Config

    return Qwen3Config(**{name: layers[name] for name in _OF_LAYERS if name in layers}).to_dict()
