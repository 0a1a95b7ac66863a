"""The same weights in TransformerLens: every activation by its name, and the numbers that are made of them.

A random Llama of Hugging Face's is the common source: TransformerLens converts it by its own code, and the workbench
loads the folder that transformers saved. Runs in an environment of its own: `make test-peers`.
Tolerance: 1e-4 on float32 activations of size 1 to 10, whose rounding over three layers is 1e-6 to 1e-5; an error of
meaning, a wrong order or a missing factor, is 1e-1 and more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from probes.attention import head_metrics
from probes.logits import logit_attribution, logit_lens
from probes.patching import activation_patching
from workbench.hooks.capture import Capture
from workbench.layers.rope import to_half_split
from workbench.model import Transformer

peer = pytest.importorskip("transformer_lens", reason="transformer_lens is not installed; run `make test-peers`")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; run `make test-peers`")

# Its version 4 wraps transformers' model; the one of version 3 is an implementation of its own, which is the point.
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")

TOLERANCE = 1e-4
THETA = 500
# Their names for two of ours, whose place in the model they name by what comes next.
NAMED_OTHERWISE = {"unembed.hook_in": "ln_final.hook_out", "unembed.hook_out": "hook_logits"}


@dataclass(frozen=True)
class Pair:
    """One run of each on the same tokens, every hook kept."""

    model: Transformer
    cap: Capture
    logits: torch.Tensor
    theirs: Any
    cache: Any
    their_logits: torch.Tensor


@pytest.fixture(scope="module", params=["plain", "llama3"])
def source(request: pytest.FixtureRequest) -> Any:
    """A random Llama: 3 layers, 4 query heads over 2 key/value heads, gains around 1; with Llama 3.1's scaling too."""
    rope = {"rope_type": "default", "rope_theta": THETA}
    if request.param == "llama3":
        factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope = {**rope, "rope_type": "llama3", **factors, "original_max_position_embeddings": 32}
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=200,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 else 1.5 * noise * parameter.shape[-1] ** -0.5)
    return model


def hooked(source: Any, *, folded: bool) -> Any:
    """The source as TransformerLens's own model; `folded` has the norms' gains in the weights that read them."""
    from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

    config = source.config
    shape = peer.HookedTransformerConfig(
        d_model=config.hidden_size,
        d_head=config.head_dim,
        d_mlp=config.intermediate_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
        eps=config.rms_norm_eps,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=config.head_dim,
        rotary_base=THETA,
        use_NTK_by_parts_rope=config.rope_parameters["rope_type"] == "llama3",
        NTK_by_parts_factor=8.0,
        NTK_by_parts_low_freq_factor=1.0,
        NTK_by_parts_high_freq_factor=4.0,
        NTK_original_ctx_len=32,
        final_rms=True,
        use_attn_result=True,
        device="cpu",
    )
    model = peer.HookedTransformer(shape)
    with torch.no_grad():
        model.load_and_process_state_dict(
            convert_llama_weights(source, shape),
            fold_ln=folded,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
    model.set_use_attn_result(True)
    return model.eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """Two rows of 24 tokens out of 40, so that tokens repeat."""
    return torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pair(source: Any, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp("llama")
    source.save_pretrained(folder)
    model = wb.load_model(folder, device="cpu", dtype="float32").eval()
    theirs = hooked(source, folded=False)
    with torch.no_grad():
        logits, cap = model.run_with_capture(tokens, "*")
        their_logits, cache = theirs.run_with_cache(tokens)
    return Pair(model, cap, logits, theirs, cache, their_logits)


def in_their_order(name: str, x: torch.Tensor) -> torch.Tensor:
    """Our activation as theirs is laid out: q and k in half-split order, and everything else as it is.

    Shapes: as the hook's axes -> the same
    """
    if not name.endswith(("hook_q", "hook_k", "hook_rot_q", "hook_rot_k")):
        return x
    heads, width = x.shape[-2:]
    flat = x.movedim((-2, -1), (0, 1)).reshape(heads * width, -1)  # the permutation of the weights' rows
    return to_half_split(flat, heads).view(heads, width, *x.shape[:-2]).movedim((0, 1), (-2, -1))


def test_logits_agree(pair: Pair) -> None:
    assert pair.logits.abs().max() > 1
    assert (pair.logits - pair.their_logits).abs().max() < TOLERANCE


def test_every_activation_agrees_by_its_name(pair: Pair) -> None:
    wrong = {}
    for theirs_name, theirs in pair.cache.items():
        name = NAMED_OTHERWISE.get(theirs_name, theirs_name)
        ours = in_their_order(name, pair.cap[name])
        if name.endswith("hook_attn_scores"):  # the future is masked with -inf here, by a large number there
            causal = torch.ones(ours.shape[-2:], dtype=torch.bool).tril()
            assert torch.isneginf(ours[..., ~causal]).all()
            ours, theirs = ours[..., causal], theirs[..., causal]
        assert ours.shape == theirs.shape, name
        error = float((ours - theirs).abs().max())
        if not error < TOLERANCE:
            wrong[name] = error
    assert wrong == {}


def test_every_name_of_theirs_is_ours(pair: Pair) -> None:
    theirs = {NAMED_OTHERWISE.get(name, name) for name in pair.cache}
    assert theirs - set(pair.cap.names) == set()
    assert len(theirs) == 1 + 3 * 21 + 4  # the embedding, what each layer has, the final norm and the output


def test_the_order_of_q_and_k_matters(pair: Pair) -> None:
    """As they stand, our q and theirs differ: adjacent pairs against halves."""
    ours, theirs = pair.cap["blocks.1.attn.hook_rot_q"], pair.cache["blocks.1.attn.hook_rot_q"]
    assert (ours - theirs).abs().max() > 0.1


@pytest.mark.parametrize("position", [5, -1])
@torch.no_grad()
def test_logit_attribution_agrees(pair: Pair, source: Any, tokens: torch.Tensor, position: int) -> None:
    """Their stack of embedding, heads and MLPs, scaled by their frozen norm, against their unembedding's columns."""
    wanted: list[logit_attribution.Target] = [3, 17, (150, 3)]  # the last is a difference of two logits
    folded = hooked(source, folded=True)
    _, cache = folded.run_with_cache(tokens)
    at = position % tokens.shape[1]
    attribution = logit_attribution.logit_attribution(pair.model, pair.cap, wanted, position=position, row=1)
    heads = cache.stack_head_results(pos_slice=at)  # [layer * head, batch, dim]
    mlps = torch.stack([cache[f"blocks.{layer}.hook_mlp_out"][:, at] for layer in range(3)])
    embed = cache["hook_embed"][None, :, at]
    for i, target in enumerate(wanted):
        first, less = target if isinstance(target, tuple) else (target, None)
        both = {
            name: torch.tensor([t, t]) for name, t in (("tokens", first), ("incorrect_tokens", less)) if t is not None
        }
        attrs = [cache.logit_attrs(stack, pos_slice=at, **both)[:, 1] for stack in (embed, heads, mlps)]
        parts = {
            kind: [p for p, part in enumerate(attribution.parts) if part[0] == kind]
            for kind in ("embed", "head", "mlp")
        }
        for theirs, kind in zip(attrs, parts, strict=True):
            assert attribution.values[i, parts[kind]] == pytest.approx(theirs.numpy(), abs=TOLERANCE), kind
        total = float(sum(part.sum() for part in attrs))
        logits = pair.logits[1, at]
        expected = float(logits[first] - (0 if less is None else logits[less]))
        assert total == pytest.approx(expected, abs=1e-3)  # a sum of 16 parts


def test_logit_lens_agrees(pair: Pair) -> None:
    """Their accumulated stream, normed as the last one would be, through their unembedding."""
    lens = logit_lens.logit_lens(pair.model, pair.cap, k=3, targets=[3, 17], row=0)
    for layer in range(3):
        stream = pair.theirs.ln_final(pair.cache[f"blocks.{layer}.hook_resid_post"])
        theirs = pair.theirs.unembed(stream)[0].log_softmax(-1).detach()
        at = lens.layers.index(layer)
        assert lens.logprobs[at] == pytest.approx(theirs.topk(3, -1).values.numpy(), abs=TOLERANCE)
        assert lens.curves.logprobs[at] == pytest.approx(theirs[:, [3, 17]].numpy(), abs=TOLERANCE)
        mine = torch.from_numpy(lens.ids[at].copy())
        assert lens.logprobs[at] == pytest.approx(theirs.gather(-1, mine).numpy(), abs=TOLERANCE)


def test_induction_scores_agree(pair: Pair) -> None:
    """A[i, i - L + 1] over the second copy, read off their patterns' diagonal."""
    block = 16
    scores = head_metrics.induction_scores(pair.model, block=block, batch=3, seed=2)
    repeated = head_metrics.repeated_blocks(pair.model, block=block, batch=3, seed=2)
    with torch.no_grad():
        _, cache = pair.theirs.run_with_cache(repeated)
    start = repeated.shape[1] - block
    for layer in range(3):
        stripe = cache["pattern", layer].diagonal(1 - block, dim1=-2, dim2=-1)  # from query L - 1
        assert scores.induction[layer] == pytest.approx(
            stripe[..., start - (block - 1) :].mean((0, 2)).numpy(), abs=TOLERANCE
        )


def test_head_detectors_agree(pair: Pair, tokens: torch.Tensor) -> None:
    """Their previous-token and duplicate-token detectors: the share of all attention on the wanted keys."""
    from transformer_lens import head_detector

    n = tokens.shape[1]
    metrics = [head_metrics.query_metrics(pair.cap, layer).values for layer in range(3)]
    for name, wanted in (
        ("previous", head_detector.get_previous_token_head_detection_pattern),
        ("duplicate", head_detector.get_duplicate_token_head_detection_pattern),
    ):
        for layer in range(3):
            for row in range(2):
                for head in range(4):
                    theirs = head_detector.compute_head_attention_similarity_score(
                        pair.cache["pattern", layer][row, head],
                        wanted(tokens[row : row + 1]),
                        exclude_bos=False,
                        exclude_current_token=False,
                        error_measure="mul",
                    )
                    ours = np.nansum(metrics[layer][name][row, head]) / n
                    assert theirs == pytest.approx(ours, abs=TOLERANCE), (name, layer, head)


@pytest.mark.parametrize(
    ("what", "theirs"),
    [
        ("resid_pre", "get_act_patch_resid_pre"),
        ("resid_mid", "get_act_patch_resid_mid"),
        ("attn_out", "get_act_patch_attn_out"),
        ("mlp_out", "get_act_patch_mlp_out"),
        ("heads", "get_act_patch_attn_head_out_all_pos"),
        ("heads_by_position", "get_act_patch_attn_head_out_by_pos"),
    ],
)
@torch.no_grad()
def test_activation_patching_agrees(pair: Pair, what: activation_patching.What, theirs: str) -> None:
    """Their sweeps, one whole run for each patch: the logit difference of the corrupted prompt with one clean part."""
    from transformer_lens import patching as their_patching

    clean = torch.randint(40, (1, 8), generator=torch.Generator().manual_seed(5))
    corrupted = clean.clone()
    corrupted[0, 3] = 150
    prompt_pair = activation_patching.Pair(clean, corrupted, activation_patching.LogitDifference(11, 12))
    result = activation_patching.patching(pair.model, prompt_pair, what)
    _, cache = pair.theirs.run_with_cache(clean)
    sweep = getattr(their_patching, theirs)
    expected = sweep(pair.theirs, corrupted, cache, lambda logits: logits[0, -1, 11] - logits[0, -1, 12])
    ours = result.patched[..., 0].transpose(0, 2, 1)  # [layer, pos, head]; theirs [layer(, pos)(, head)]
    assert np.ptp(ours) > 0.1  # the patches do something
    assert ours.reshape(expected.shape) == pytest.approx(expected.numpy(), abs=TOLERANCE)


@torch.no_grad()
def test_ablation_agrees(pair: Pair, tokens: torch.Tensor) -> None:
    """A head's z set to zero by a hook of theirs."""

    def without(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z[:, :, 2] = 0
        return z

    expected = pair.theirs.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", without)])
    with pair.model.intervene(wb.Ablate("L1H2")):
        result = pair.model(tokens)
    assert (result - pair.logits).abs().max() > 0.1
    assert (result - expected).abs().max() < TOLERANCE
