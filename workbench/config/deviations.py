"""Configuration keys with which a model is not a Llama: what they change, and the values that change nothing.

The keys are those of Llama-like models (Granite, Phi, Qwen, Gemma, OLMo, Cohere, Mixtral, StableLM, Falcon, DeepSeek,
MiniCPM, ...), whose files are sometimes relabelled "llama".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.config.keys import short
from workbench.errors import ConfigError


@dataclass(frozen=True)
class _Rule:
    """`names` is a pattern of whole keys; values other than `plain`, null and empty ones mean `what`."""

    what: str
    names: str
    plain: tuple[Any, ...] = (False,)


_OFF = (False, 0)

# The first rule whose pattern matches decides.
_RULES = (
    _Rule("the model has biases", r"no_bias|bias_free", (True,)),
    _Rule("the model has biases", r"(.*_)?bias(es)?(_.*)?|add_bias.*"),
    _Rule(
        "the MLP has another activation",
        r"hidden_act(ivation)?|act(ivation)?(_fn|_func|_function|_type)?|(mlp|ffn)_act.*",
        ("silu", "swish"),
    ),
    _Rule(
        "some layers are not full attention",
        r"layer_types?|layers_block_type|block_types?|attn_type_list|attention_types?|attn_types?",
        ("full_attention", "attention", "full", "global"),
    ),
    _Rule("some layers have no RoPE", r"no_?rope_layers?|nope_layers?|rope_layers?", (True, 1)),
    _Rule("some layers have no RoPE", r"(no_?rope|nope)_.*|use_nope", _OFF),
    _Rule(
        "only a part of each head is rotated",
        r"partial_rot.*|rotary_(pct|percent|percentage)|rope_(pct|percent|percentage)|rotary_emb_fraction|rotary_fraction",
        (1,),
    ),
    _Rule("RoPE pairs are interleaved", r"(mrope_|rope_|rotary_|rotary_emb_)interleaved?"),
    _Rule("RoPE is computed in another way", r"(rope|rotary)_ratio", (1,)),
    _Rule(
        "RoPE is computed in another way", r"(use_)?(rope|rotary|rotary_emb.*|rotary_pos.*|rotary_position.*)", (True,)
    ),
    _Rule("RoPE is computed in another way", r".*(ntk|yarn|logn_?attn|mrope|xpos|rope_local|local_rope|global_rope).*"),
    _Rule(
        "positions are not RoPE's",
        r"(position(al)?_?(embedding|encoding)|pos_emb|pos_enc|pe)_?(type|mode|kind)",
        ("rope", "rotary", "rope_theta"),
    ),
    _Rule("positions are not RoPE's", r".*alibi.*|learned_pos.*|use_(learned_)?pos(ition)?_emb.*"),
    _Rule("scores or logits are capped", r".*(soft_?cap|clip_qkv|qkv_clip|attn_clip|logits?_cap).*", _OFF),
    _Rule("queries and keys are normalised", r"(.*_)?((qk|q|k|query_key|query|key)_?(layer)?_?norm|norm_qk)(_.*)?"),
    _Rule("attention scores are scaled in another way", r"scale_attn_weights", (True,)),
    _Rule(
        "attention scores are scaled in another way", r"attn_temp.*|floor_scale|scale_att.*|reorder_and_upcast.*", _OFF
    ),
    _Rule("parts of the model are scaled", r"scale_depth|dim_model_base|scale_emb.*|.*_scale_emb.*|mup|use_mup|mup_.*"),
    _Rule("parts of the model are scaled", r".*(multiplier|scalar|scaling|scale)s?(_factor)?", (False, 1)),
    _Rule("the MLP has experts", r".*(expert|_moe|moe_).*|moe|first_k_dense_replace|decoder_sparse_step", _OFF),
    _Rule("attention and MLP run in parallel", r".*parallel_(attn|attention|residual|block|layer).*"),
    _Rule("attention and MLP run in parallel", r"new_decoder_architecture|num_ln_in_parallel_attn"),
    _Rule("attention is not causal", r"is_causal|causal", (True,)),
    _Rule("attention is not causal", r".*bidirectional.*|.*prefix_lm|is_encoder_decoder|use_encoder.*"),
    _Rule("the model has cross-attention", r"add_cross_attention|cross_attention_(layers|freq.*|every.*)|num_cross_.*"),
    _Rule("attention is cut into chunks", r".*(attention_chunk|chunked_att|sparse_att|block_sparse|local_att).*", _OFF),
    _Rule("attention has sinks", r".*attention_sink.*|attn_sink.*|use_sink.*|num_sink.*", _OFF),
    _Rule("attention has low-rank projections", r"(q|kv|o)_lora_rank|qk_(nope|rope)_head_dim|(use_)?mla", _OFF),
    _Rule(
        "layers share parts",
        r"num_kv_shared_layers|(layer_shar|shar(ed?|ing)_layer|cross_layer).*|num_mem_blocks",
        _OFF,
    ),
    _Rule("some layers are left out", r"(skip|drop)_?layers?|layer_?(skip|drop)|layers_to_skip|early_exit.*", _OFF),
    _Rule(
        "another norm is used",
        r"norm(alization)?_?(type|function|fn|class)?|(ln|layer_?norm)_type",
        ("rmsnorm", "rms_norm", "rms"),
    ),
    _Rule("another norm is used", r"(use_)?rms_?norm", (True,)),
    _Rule("the MLP has no gate", r"(use_)?(gated_mlp|mlp_gated|gated_ffn|glu)", (True,)),
    _Rule("norms are placed in another way", r"do_layer_norm_before|pre_?norm|normalize_before", (True,)),
    _Rule(
        "norms are placed in another way",
        r"(use_)?(post_?norm|sandwich_?norm|norm_head|norm_after|post_.*norm|.*_post_layernorm|pre_post.*norm).*"
        r"|.*unit_offset|.*zero_centered.*|.*norm_emb.*|.*emb.*_norm|normali[sz]e_emb.*|use_stable_emb.*"
        r"|.*_residual_connection_.*",
    ),
    _Rule("the model is not a plain transformer", r".*(mamba|altup|laurel|per_layer_input|rwkv|medusa|lambda_std).*"),
    _Rule(
        "the model is not a plain transformer", r"ssm_.*|.*conv(_.*)?|linear_(attn|key|value|num|conv).*|recurrent.*"
    ),
    _Rule("the model is not a plain transformer", r"activation_sparsity.*|swiglu_(limit|alpha)|diff_?att.*|ngram.*"),
    _Rule(
        "the model has a vision or audio part",
        r"(vision|visual|image|audio|video|speech|mm|text)_(config|tower|.*enc).*",
    ),
    _Rule("the model has a vision or audio part", r"mm_.*|vision_.*|audio_config|image_(size|token_index)|visual"),
    _Rule("weights are quantised", r".*(quantization|quantize|quant_method).*|quant(_.*)?|load_in_(4|8)bit"),
    _Rule("the model has another attention", r"attn_config|multi_query"),
)

# Other names of sizes that ModelConfig has under its own.
_ALIASES = {
    "n_heads": "n_head n_heads num_heads num_attn_heads",
    "n_kv_heads": "num_kv_heads n_kv_heads n_head_kv num_query_groups multi_query_group_num",
    "head_dim": "kv_channels attention_head_dim attention_head_size d_head dim_head rotary_dim rotary_ndims "
    "v_head_dim qk_head_dim query_pre_attn_scalar",
    "dim": "d_model n_embd dim embedding_size word_embed_proj_dim",
    "n_layers": "n_layer n_layers num_layers",
    "ffn_dim": "ffn_hidden_size ffn_dim n_inner d_ff intermediate_size_mlp",
    "tied_output": "tie_embeddings tie_weights share_embeddings shared_input_output_embedding tie_lm_head",
    "rope_theta": "rotary_base rope_base rotary_emb_base rotary_theta base_theta rope_freq_base",
    "norm_eps": "norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon layernorm_eps norm_epsilon",
}
_FIELD_OF = {alias: field for field, aliases in _ALIASES.items() for alias in aliases.split()}

# Keys that never change the forward pass in inference.
_HARMLESS = re.compile(
    r"""_.*|unsloth.*|.*transformers.*|architectures|auto_map|name_or_path|model_name.*|.*_token(_ids?)?|.*dropout.*
    |.*_p?drop|.*_loss_coef.*|.*z_loss.*|output_.*|init(ializer)?_.*|.*_init|tokenizer_.*|use_flash.*|.*flash_attn.*
    |attn_implementation|use_cache|.*gradient_checkpoint.*|chunk_size_feed_forward|cross_attention_hidden_size|prefix
    |(torch_|compute_|model_)?dtype|id2label|label2id|num_labels|problem_type|classifier_.*|is_decoder|pretraining_tp
    |pruned_heads|remove_invalid_values|return_dict.*|task_specific_params|tf_legacy_loss|finetuning_task|torchscript
    |tie_encoder_decoder|use_bfloat16|bad_words_ids|begin_suppress_tokens|diversity_penalty|do_sample|early_stopping
    |encoder_no_repeat_ngram_size|exponential_decay_length_penalty|length_penalty|(max|min)_(new_)?(length|tokens)
    |no_repeat_ngram_size|num_beam_groups|num_beams|num_return_sequences|repetition_penalty|suppress_tokens
    |temperature|top_k|top_p|min_p|typical_p|chat_template|max_sequence_length|model_max_length|seq_length|max_seq_len
    |neftune.*|is_llama_config|multiple_of|(block_)?ffn_dim_multiplier|router_.*|norm_topk_prob|use_return_dict
    |max_window_layers|sliding_window_pattern|attn_mask_type|vocab_size_.*|text_vocab_size|pad_vocab.*
    |sampler_.*|summary_.*|n_ctx|n_positions|generation_config|num_logits_to_keep|fused_.*|use_fused.*|use_liger.*""",
    re.VERBOSE,
)


def is_harmless(name: str) -> bool:
    """Whether a key is known not to change the forward pass, whatever its value."""
    return bool(_HARMLESS.fullmatch(name))


def unknown_keys(values: Mapping[str, Any], fields: Mapping[str, Any], source: str) -> list[str]:
    """Those of the keys of which nobody knows whether they change the computation.

    `fields` are the model's fields under ModelConfig's names, which some files state a second time.
    Raises: ConfigError for a key that makes the model something else than a Llama.
    """
    fields = {**fields, "head_dim": fields["head_dim"] or max(1, fields["dim"] // max(fields["n_heads"], 1))}
    unknown = []
    for name, value in values.items():
        change = _deviation(name, value, fields)
        if change:
            raise ConfigError(
                f"{source}: {name} is {short(value)}: {change}. Only Llama's own computation is supported."
            )
        if change is None:
            unknown.append(name)
    return unknown


def _deviation(name: str, value: Any, fields: Mapping[str, Any]) -> str | None:
    """What a key changes in a Llama, in a few words; "" if this value changes nothing; None for an unknown key."""
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return ""
    lower = name.lower()
    if field := _FIELD_OF.get(lower):
        return "" if _equal(value, fields.get(field)) else f"another value of {field}, which is {fields.get(field)}"
    if re.fullmatch(r"(attention|attn|softmax|qk)_(multiplier|scale)|softmax_scaling", lower):
        plain: tuple[Any, ...] = (False, 1, fields["head_dim"] ** -0.5)
        return "" if any(_equal(value, other) for other in plain) else "attention scores are scaled in another way"
    for rule in _RULES:
        if re.fullmatch(rule.names, lower):
            values = value if isinstance(value, list) else [value]
            return "" if all(any(_equal(item, other) for other in rule.plain) for item in values) else rule.what
    return None


def _equal(value: Any, other: Any) -> bool:
    """Equality that tells true and false from 1 and 0, forgives letter case, and a float's last digits."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, str) and isinstance(other, str):
        return value.lower() == other
    if isinstance(value, (int, float)) and isinstance(other, (int, float)):
        return value == other or abs(value) < 1e30 and abs(value - other) <= 1e-6 * abs(other)
    return False
