"""The complete Llama 3 model in reading order, with its hook points.

It knows nothing of files, text or sampling. Weights have Meta's names. A hook point without subscriptions costs
nothing: `tap` is None, and no function is called. Tensor-parallel layers come from `layers.tensor_parallel`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.config import ModelConfig, Scaling
from workbench.errors import ConfigError, InterventionError, WorkbenchError
from workbench.hooks import hook_points
from workbench.hooks.intervention import Intervention
from workbench.hooks.run_limits import layer_number, warn_beyond_context
from workbench.layers import attention, rope, tensor_parallel
from workbench.layers.attention_mask import Mask
from workbench.layers.fast_linear import matmul_few_rows
from workbench.layers.kv_cache import KVCache
from workbench.layers.memory import out_of_memory, too_little_memory
from workbench.provenance import ModelSource, weight_fingerprint

if TYPE_CHECKING:
    from workbench.hooks.capture import Capture
    from workbench.hooks.capture_request import Positions
    from workbench.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ForwardContext:
    """Inputs of one run that all layers share.

    `rope_positions` are the positions by which q and k are rotated, counted from each sequence's first real token.
    Shapes: rotation complex [pos | batch, pos, head_dim / 2]; rope_positions [pos | batch, pos] int64; allowed bool
            [1 or batch, 1, query_pos, key_pos], None for plain causal attention (or one query that sees every key).
    """

    rotation: Tensor
    rope_positions: Tensor
    mask: Mask
    allowed: Tensor | None
    cache: KVCache | None


class Transformer(nn.Module):
    """A Llama 3 text model: tokens in, logits out.

    Shapes: tokens [batch, pos] int64 -> logits [batch, pos, vocab] float32
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.notes: tuple[str, ...] = ()  # sentences about the files that a user should read
        self._loaded: tuple[ModelSource, ModelConfig, tuple[Any, ...]] | None = None
        self.tok_embeddings = tensor_parallel.embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output: nn.Module | None = None
        if not config.tied_output:
            self.output = tensor_parallel.column(config.dim, config.vocab_size, gather=True)
        elif tensor_parallel.size() > 1 and config.vocab_size % tensor_parallel.size():
            raise ConfigError(
                f"a vocabulary of {config.vocab_size} cannot be split over {tensor_parallel.size()} processes; "
                "use a number that divides it."
            )

    @property
    def source(self) -> ModelSource | None:
        """The files that the weights were loaded from; None without files, or if weights or files changed since.

        Answers are cached by this source, so a model that was changed in memory must not have one.
        """
        if self._loaded is None:
            return None
        source, config, fingerprint = self._loaded
        return source if source.intact and config == self.config and weight_fingerprint(self) == fingerprint else None

    @source.setter
    def source(self, source: ModelSource) -> None:
        self._loaded = (source, self.config, weight_fingerprint(self))

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def forward(self, tokens: Tensor, cache: KVCache | None = None, *, stop_at_layer: int | None = None) -> Tensor:
        """Logits for the token after each position.

        stop_at_layer: as in `hidden`; the result is the residual stream.
        Shapes: tokens [batch, pos] int64 -> [batch, pos, vocab] float32
        Raises: WorkbenchError for token ids outside the vocabulary, no tokens, or memory that runs out;
                GenerationError if the cache has no room.
        """
        start = 0 if cache is None else cache.length
        try:
            hidden = self.hidden(tokens, cache, stop_at_layer)
            warn_beyond_context(self, self.config.max_seq_len, start, tokens.shape[1])
            return self.unembed(hidden, start=start) if stop_at_layer is None else hidden
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Outside the handler: the error holds the failed run's tensors.
        raise too_little_memory(tokens.shape, self.device, "use run_with_capture with logits='last' or None")

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, stop_at_layer: int | None = None) -> Tensor:
        """The normalised residual stream after the last block, which the unembedding reads.

        stop_at_layer: run only the layers below it; the result is the residual stream at its input, not normalised. A
        negative number counts from the last layer. As in TransformerLens. Not with a cache.
        Shapes: tokens [batch, pos] int64 -> [batch, pos, dim]
        Raises: WorkbenchError for token ids outside the vocabulary, no tokens, or a layer that the model does not have.
        """
        self._check(tokens)
        if stop_at_layer is not None:
            stop_at_layer = layer_number(stop_at_layer, len(self.layers))
            if cache is not None:
                raise WorkbenchError("stop_at_layer cannot be used with a cache: later layers would miss these tokens.")
        context = self._context(tokens, cache)
        tap = hook_points.tap_for(self, self.config, context.mask.positions)
        if tap:
            context = self._with_rope_override(context, tap)
        x: Tensor = self.tok_embeddings(tokens)  # [batch, pos, dim]
        if tap:
            x = tap("hook_embed", x)
        for layer, block in enumerate(self.layers):
            if layer == stop_at_layer:
                break
            x = block(x, layer, context, tap and tap.at(f"blocks.{layer}."))
        if cache is not None:
            cache.advance(tokens.shape[1])
        if stop_at_layer is not None:
            return x
        normed: Tensor = self.norm(x, tap and tap.at("ln_final."))
        return normed

    def forward_from_layer(self, x: Tensor, layer: int) -> Tensor:
        """`hidden` of a run that starts with the residual stream at the input of a layer; earlier layers do not run.

        Hooks fire from that layer on, including its `hook_resid_pre`. The input is the previous layer's
        `hook_resid_post`, or `hook_embed`.
        Shapes: x [batch, pos, dim], from position 0 -> [batch, pos, dim]
        Raises: WorkbenchError for a layer or a width that the model does not have.
        """
        n_layers, dim = len(self.layers), self.config.dim
        if not 0 <= layer <= n_layers or x.dim() != 3 or x.shape[-1] != dim:
            raise WorkbenchError(
                f"a run starts at layers 0 to {n_layers} from [batch, pos, {dim}]; found {layer}, {tuple(x.shape)}."
            )
        context = self._context(x[..., 0], None)
        tap = hook_points.tap_for(self, self.config, context.mask.positions)
        if tap:
            context = self._with_rope_override(context, tap)
        for i in range(layer, n_layers):
            x = self.layers[i](x, i, context, tap and tap.at(f"blocks.{i}."))
        normed: Tensor = self.norm(x, tap and tap.at("ln_final."))
        return normed

    def unembed(self, x: Tensor, *, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """Logits of a normalised residual stream whose first position is `start`, cast to float32.

        positions: those of x, if they do not follow each other.
        Shapes: x [batch, pos, dim], positions [pos] int64 -> [batch, pos, vocab]
        """
        if self.output is not None:
            logits: Tensor = self.output(x)
        else:
            weight: Tensor = self.tok_embeddings.weight  # type: ignore[assignment]
            logits = tensor_parallel.gather(matmul_few_rows(tensor_parallel.copy_to(x), weight), -1)
        logits = logits.float()
        if positions is None:
            positions = torch.arange(start, start + x.shape[-2], device=x.device)
        tap = hook_points.tap_for(self, self.config, positions, only_logits=True)
        return tap("hook_logits", logits) if tap else logits

    def empty_cache(self, batch: int, capacity: int, *, pad: Tensor | None = None) -> KVCache:
        """A key/value cache of this model's dtype and device."""
        return KVCache.empty(self.config, batch, capacity, dtype=self.dtype, device=self.device, pad=pad)

    def intervene(self, *interventions: Intervention) -> AbstractContextManager[None]:
        """Run with interventions inside the `with` block; blocks nest, and those entered first apply first.

        Blocks may be left in any order. They act in the context (thread or task) that enters them: a thread that is
        started inside the block runs the plain model, unless it gets the context with `contextvars.copy_context().run`
        (`asyncio.to_thread` does so). `workbench.active_interventions` lists what acts,
        `workbench.clear_interventions` ends it. On leaving, a WorkbenchWarning names positions that no run reached.
        Raises: InterventionError or UnknownHookError for what does not fit the model.
        """
        for i in interventions:
            if not isinstance(i, Intervention):
                raise InterventionError(
                    f'expected interventions such as Ablate("L5H3"), one argument each; found {type(i).__name__}.'
                )
        return hook_points.subscribe(self, *(i.subscription(self.config) for i in interventions))

    @overload
    def run_with_capture(
        self,
        tokens: Tensor,
        names: str | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Positions | None = None,
        logits: Literal["all", "last"] = "all",
        stop_at_layer: int | None = None,
        grad: bool = False,
        cache: KVCache | None = None,
        budget: int | None = None,
        materialize: bool = False,
    ) -> tuple[Tensor, Capture]: ...

    @overload
    def run_with_capture(
        self,
        tokens: Tensor,
        names: str | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Positions | None = None,
        logits: None,
        stop_at_layer: int | None = None,
        grad: bool = False,
        cache: KVCache | None = None,
        budget: int | None = None,
        materialize: bool = False,
    ) -> tuple[None, Capture]: ...

    def run_with_capture(
        self,
        tokens: Tensor,
        names: str | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Positions | None = None,
        logits: Literal["all", "last"] | None = "all",
        stop_at_layer: int | None = None,
        grad: bool = False,
        cache: KVCache | None = None,
        budget: int | None = None,
        materialize: bool = False,
    ) -> tuple[Tensor | None, Capture]:
        """Logits, and a capture of the hooks with these names or patterns.

        positions: absolute ones, or negative ones from the end of the run: `[-1]` is the last token. The same for every
        row; or for each row as `[batch][n]` or a tensor [batch], for instance the last tokens of unequal prompts. The
        capture holds them as absolute numbers in ascending order.
        logits: "last" makes those of the last position only, None none; then layers after the last hook do not run.
        stop_at_layer: run only the layers below it, as in TransformerLens; the first value is the residual stream at
        its input. Hooks beyond it are refused.
        grad: record the run for autograd, even under `torch.no_grad()`. Off by default: a run's graph keeps everything
        alive. With it `torch.autograd.grad(logits[...], cap[name])` works for every tensor but the summaries of a
        pattern, also for patterns, scores, results and narrowed captures; patterns are computed in the run. Not with a
        cache.
        budget: most bytes of the capture and of the logits while they are made (with their copy in the model's dtype);
        None: half of the memory that is free now. The layers' own memory, and a graph, do not count.
        materialize: compute scores and patterns in the run instead of when they are read.
        Shapes: tokens [batch, pos] int64 -> logits [batch, pos, vocab] float32 ("last": [batch, 1, vocab]), and the
                capture
        Raises: CaptureBudgetError before the run, naming the largest parts; CaptureError for what does not fit the run;
                UnknownHookError; WorkbenchError if memory runs out.
        """
        from workbench.hooks.capture_request import Request
        from workbench.hooks.capture_run import Run, run

        self._check(tokens)
        request = Request.of(self.config, names, layers=layers, heads=heads, positions=positions, batch=tokens.shape[0])
        settings = Run(logits, stop_at_layer, grad, materialize)
        return run(self, tokens, request, settings, cache=cache, budget=budget)

    def _check(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor):
            raise WorkbenchError(f"tokens must be a tensor of shape [batch, pos], found {type(tokens).__name__}.")
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise WorkbenchError(
                f"tokens must be int64 of shape [batch, pos], found {tokens.dtype} {tuple(tokens.shape)}."
            )
        if not tokens.numel():
            raise WorkbenchError(f"a run needs at least one token, found tokens of shape {tuple(tokens.shape)}.")
        # A GPU checks ids itself, and a check here would synchronise with it at every step.
        if tokens.device.type == "cpu":
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise WorkbenchError(f"token id {bad} is outside the vocabulary of {self.config.vocab_size}.")

    def _context(self, tokens: Tensor, cache: KVCache | None) -> ForwardContext:
        batch, seqlen = tokens.shape
        past, pad, tree, depth = 0, None, None, None
        if cache is not None:
            cache.room_for(batch, seqlen)
            past, pad, tree, depth = cache.length, cache.pad, cache.tree, cache.depth
        positions = torch.arange(past, past + seqlen, device=tokens.device)
        mask = Mask(positions, pad, tree, depth)
        rope_positions = positions if pad is None else (positions - pad.unsqueeze(-1)).clamp(min=0)
        rope_positions = rope_positions if tree is None else tree.depth
        rope_positions = rope_positions if depth is None else depth
        plain = pad is None and tree is None and depth is None and (past == 0 or seqlen == 1)
        allowed = None if plain else mask.allowed(past + seqlen)
        rotation = _rotary(self.config, tokens.device).rotations(rope_positions)
        return ForwardContext(rotation, rope_positions, mask, allowed, cache)

    def _with_rope_override(self, context: ForwardContext, tap: hook_points.Tap) -> ForwardContext:
        """The context, with the rotary embedding replaced if an intervention overrides it."""
        rotary = tap.rotary()
        return context if rotary is None else replace(context, rotation=rotary.rotations(context.rope_positions))


class Block(nn.Module):
    """One layer: attention and MLP; each reads the normalised residual stream and adds to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, layer: int, context: ForwardContext, tap: hook_points.Tap | None) -> Tensor:
        """Shapes: x [batch, pos, dim] -> [batch, pos, dim]"""
        if tap:
            x = tap("hook_resid_pre", x)
        out: Tensor = self.attention(self.attention_norm(x, tap and tap.at("ln1.")), layer, context, tap)
        if tap:
            out = tap("hook_attn_out", out)
        x = x + out
        if tap:
            x = tap("hook_resid_mid", x)
        out = self.feed_forward(self.ffn_norm(x, tap and tap.at("ln2.")), tap)
        if tap:
            out = tap("hook_mlp_out", out)
        x = x + out
        return tap("hook_resid_post", x) if tap else x


class Attention(nn.Module):
    """Grouped-query attention; under tensor parallelism a process has its shard of the heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        tensor_parallel.shard_size(config.n_heads, "n_heads")
        tensor_parallel.shard_size(config.n_kv_heads, "n_kv_heads")
        self.wq = tensor_parallel.column(config.dim, config.n_heads * config.head_dim)
        self.wk = tensor_parallel.column(config.dim, config.n_kv_heads * config.head_dim)
        self.wv = tensor_parallel.column(config.dim, config.n_kv_heads * config.head_dim)
        self.wo = tensor_parallel.row(config.n_heads * config.head_dim, config.dim)

    def forward(self, x: Tensor, layer: int, context: ForwardContext, tap: hook_points.Tap | None) -> Tensor:
        """Shapes: x [batch, pos, dim] -> [batch, pos, dim]"""
        by_head = (*x.shape[:2], -1, self.head_dim)
        q = self.wq(x).view(by_head)  # [batch, pos, head, head_dim]
        k = self.wk(x).view(by_head)  # [batch, pos, kv_head, head_dim]
        v = self.wv(x).view(by_head)
        if tap:
            q, k, v = tap("attn.hook_q", q), tap("attn.hook_k", k), tap("attn.hook_v", v)
        q, k = rope.rotate(q, context.rotation), rope.rotate(k, context.rotation)
        if tap:
            q, k = tap("attn.hook_rot_q", q), tap("attn.hook_rot_k", k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [batch, head, pos, head_dim]
        shared = None
        if context.cache is not None:
            k, v = context.cache.write(layer, k, v)
            shared = context.cache.shared(layer)
        if tap and tap.edits(hook_points.SCORES, hook_points.PATTERN):
            z = self._eager_attention(q, k, v, context, tap)
        elif shared is not None:
            z = attention.shared_prefix_attention(shared, q, k, v, context.allowed)
        else:
            z = attention.sdpa(q, k, v, context.allowed)
            if tap:
                inputs = attention.AttentionInputs.of(q, k, context.mask)
                for name in hook_points.FROM_INPUTS:
                    tap.inputs(name, inputs)
        z = z.transpose(1, 2)  # [batch, pos, head, head_dim]
        if tap:
            z = tap("attn.hook_z", z)
            if tap.wants("attn.hook_result"):
                result = tap("attn.hook_result", self._per_head(z))
                if tap.edits("attn.hook_result"):
                    return tensor_parallel.all_reduce(result.sum(2))
        out: Tensor = self.wo(z.flatten(2))
        return out

    def _eager_attention(
        self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, tap: hook_points.Tap
    ) -> Tensor:
        """Attention with explicit scores and pattern, for interventions that edit them; the mask stays in force."""
        allowed = context.mask.allowed(k.shape[2])
        scores = attention.scores(q, k, allowed)
        scores = tap(hook_points.SCORES, scores, lambda x: x.masked_fill(~allowed, float("-inf")))
        pattern = attention.weights(scores)
        pattern = tap(hook_points.PATTERN, pattern, lambda x: x.masked_fill(~allowed, 0.0))
        for name in hook_points.SUMMARIES:
            if tap.wants(name):
                tap(name, hook_points.summarise(name, attention.EditedPattern(pattern, context.mask)))
        return attention.weighted_values(pattern, v)

    def _per_head(self, z: Tensor) -> Tensor:
        """Each head's output in the residual stream. Shapes: [batch, pos, head, head_dim] -> [batch, pos, head, dim]"""
        weight = self.wo.weight.unflatten(1, (-1, self.head_dim))  # type: ignore[operator]  # [dim, head, head_dim]
        return torch.einsum("bphd,ehd->bphe", z, weight)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        tensor_parallel.shard_size(config.ffn_dim, "ffn_dim")
        self.w1 = tensor_parallel.column(config.dim, config.ffn_dim)
        self.w2 = tensor_parallel.row(config.ffn_dim, config.dim)
        self.w3 = tensor_parallel.column(config.dim, config.ffn_dim)

    def forward(self, x: Tensor, tap: hook_points.Tap | None) -> Tensor:
        """Shapes: x [batch, pos, dim] -> [batch, pos, dim]"""
        gate, up = self.w1(x), self.w3(x)  # [batch, pos, ffn]
        if tap:
            gate, up = tap("mlp.hook_pre", gate), tap("mlp.hook_pre_linear", up)
        post = F.silu(gate) * up
        if tap:
            post = tap("mlp.hook_post", post)
        out: Tensor = self.w2(post)
        return out


class RMSNorm(nn.Module):
    """x divided by its root mean square, times a gain; the division is in float32, as in Meta's code."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, tap: hook_points.Tap | None) -> Tensor:
        """Shapes: x [batch, pos, dim] -> [batch, pos, dim]"""
        wide = x.float()
        scale = (wide.square().mean(-1, keepdim=True) + self.eps).sqrt()  # [batch, pos, 1]
        if tap:
            scale = tap("hook_scale", scale)
        normalized = (wide / scale).to(x.dtype)
        if tap:
            normalized = tap("hook_normalized", normalized)
        out = normalized * self.weight
        return tap("hook_out", out) if tap else out


def _rotary(config: ModelConfig, device: torch.device) -> rope.Rotary:
    return _rotary_on(config.head_dim, config.rope_theta, config.rope_scaling, device)


@lru_cache(maxsize=32)
def _rotary_on(head_dim: int, theta: float, scaling: Scaling | None, device: torch.device) -> rope.Rotary:
    with torch.inference_mode(False):  # cached between runs, so it must work under autograd too
        return rope.Rotary(rope.frequencies(head_dim, theta, scaling).to(device), rope.temperature(scaling))
