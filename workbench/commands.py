"""The core's own commands: info, generate, capture, convert, train.

Each reads its arguments, calls one thing of the core, and prints the result. Imports of the core stand inside the
functions, so that `--help` does not wait for them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from workbench.errors import CaptureError, GenerationError, TokenizerError

if TYPE_CHECKING:
    from workbench.model import Transformer
    from workbench.text.tokenizer import Tokenizer

Model = Annotated[str, typer.Argument(help="A Meta or Hugging Face checkpoint folder, or 'demo'.")]
Shape = Annotated[
    str, typer.Argument(help="A folder with params.json or config.json, a published model (llama-3.1-8b), or 'demo'.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto: the checkpoint's own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Settings(TypedDict):
    """What `generate` and `stream` take alike."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]


def register(app: typer.Typer) -> None:
    """Give a program these commands."""
    examples: dict[Callable[..., None], str] = {
        info: "workbench info demo",
        generate: "workbench generate demo 'Question: Tom has 3 apples.' --max-new-tokens 40",
        capture: "workbench capture demo 'one two one two' --hooks 'blocks.*.attn.hook_pattern' -o run.safetensors",
        convert: "workbench convert checkpoints/Llama-3.2-1B converted --layout hf",
        train: "workbench train workbench/assets/demo/recipe.toml --output runs/first",
    }
    for command, example in examples.items():
        app.command(epilog=f"Example: {example}")(command)


def info(
    model: Shape,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens; without it, the model's own.")] = None,
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the cache.")] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Print a model's shape, and its parameters, arithmetic and cache by part, without loading weights."""
    from workbench import model_cost
    from workbench.checkpoint import fingerprint, read_shape
    from workbench.published import PUBLISHED

    if model in PUBLISHED and not Path(model).exists():
        config, weights = PUBLISHED[model], False
    else:
        config, weights = read_shape(model)
    length = config.max_seq_len if context is None else context
    itemsize = 4 if dtype == "float32" else 2
    parts, work = config.parameters_by_part, model_cost.flops(config, context=length)
    kinds = model_cost.variants(config, context=length, itemsize=itemsize)
    digest = fingerprint(model) if weights else None
    if as_json:
        facts = {
            "config": config.to_meta(),
            "parameters": config.n_params,
            "parameters_by_part": parts,
            "context": length,
            "flops_per_token": sum(work.values()),
            "flops_by_part": work,
            "kv_cache_dtype": dtype,
            "kv_cache_bytes_per_token": model_cost.cache_bytes_per_token(config, itemsize=itemsize),
            "attention": [asdict(kind) | {"cache_bytes": kind.cache_bytes} for kind in kinds],
            "checkpoint_sha256": digest,
        }
        print(json.dumps(facts, indent=2))
        return
    tied = ", output tied to the embedding" if config.tied_output else ""
    scaling = str(config.rope_scaling) if config.rope_scaling else "unscaled"
    shape = {
        "width": config.dim,
        "layers": config.n_layers,
        "heads": f"{config.n_heads} query, {config.n_kv_heads} key/value, of {config.head_dim}",
        "MLP": config.ffn_dim,
        "vocabulary": f"{config.vocab_size:,} tokens{tied}",
        "context": f"{config.max_seq_len:,} tokens",
        "RoPE": f"theta {config.rope_theta:,.0f}, {scaling}",
        "parameters": f"{config.n_params:,}",
        "SHA-256": digest or "no weights",
    }
    for name, value in shape.items():
        print(f"{name:<12}{value}")
    print(f"\n{'part':<20}{'parameters':>18}{'FLOPs a token*':>20}")
    for part in model_cost.PARTS:
        print(f"{part:<20}{parts.get(part, 0):>18,}{work.get(part, 0):>20,}")
    print(f"{'all':<20}{config.n_params:>18,}{sum(work.values()):>20,}")
    token, whole = f"{dtype} cache a token", f"at {length:,}"
    print(f"\n{'attention':<12}{'K/V heads':>10}{'parameters':>18}{token:>28}{whole:>14}")
    for kind in kinds:
        name = "/".join(kind.kinds) + (" (this)" if kind.this_model else "")
        held = (model_cost.readable_bytes(size) for size in (kind.cache_bytes_per_token, kind.cache_bytes))
        print(f"{name:<12}{kind.kv_heads:>10}{kind.parameters:>18,}{next(held):>28}{next(held):>14}")
    print(f"\n* matrix products of one token that sees {length:,} positions: two for each multiply-add.")


def generate(
    model: Model,
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts; '-' reads one from stdin.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add to each prompt.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from this much probability; 1 is all.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from this many tokens; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be given again.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Each prompt is a user's message in the chat format.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Continue prompts; the continuations go to stdout, a single one as it is written."""
    from workbench.checkpoint import load_model
    from workbench.inference.generate import generate as generate_all
    from workbench.inference.generate import stream
    from workbench.inference.sequence import Prompt
    from workbench.text.chat_format import Message, encode_chat

    loaded = load_model(model, device=device, dtype=dtype)
    tokenizer = tokenizer_of(loaded, model)
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    given: list[Prompt] = list(texts)
    if chat:
        given = [encode_chat(tokenizer, [Message("user", text)]) for text in texts]
    settings = Settings(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop or ()
    )
    if len(given) == 1 and not as_json:
        for piece in stream(loaded, given[0], **settings):
            print(piece.text, end="", flush=True)
        print()
        return
    for text, result in zip(texts, generate_all(loaded, given, **settings), strict=True):
        if as_json:
            row = {"prompt": text, "text": result.text, "tokens": result.tokens}
            print(json.dumps({**row, "logprobs": result.logprobs, "finish_reason": result.finish_reason}))
        else:
            print(result.text)


def capture(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="Text to run; begin-of-text is put before it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    hooks: Annotated[list[str], typer.Option(help="Hook name or pattern; may be given again.")],
    layers: Annotated[str | None, typer.Option(help="Only these layers: 0,2,5-7.")] = None,
    heads: Annotated[str | None, typer.Option(help="Only these heads: 0,2,5-7.")] = None,
    positions: Annotated[str | None, typer.Option(help="Only these positions: 0,2,5-7.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Run a prompt, keep what the hooks name, and write it with its provenance."""
    import torch

    from workbench.checkpoint import load_model

    if not output.parent.is_dir():
        raise CaptureError(f"--output {output}: there is no folder {output.parent}; make it first.")
    kept_layers, kept_heads = numbers(layers, "--layers"), numbers(heads, "--heads")
    kept_positions = numbers(positions, "--positions")
    loaded = load_model(model, device=device, dtype=dtype)
    ids = tokenizer_of(loaded, model).encode(prompt, bos=True)
    with torch.no_grad():
        tokens = torch.tensor([ids], device=loaded.device)
        _, captured = loaded.run_with_capture(
            tokens, hooks, layers=kept_layers, heads=kept_heads, positions=kept_positions
        )
    source = loaded.source
    hashed = {} if source is None else {"checkpoint_sha256": source.checkpoint_sha256}
    replace(captured, provenance={**captured.provenance, **hashed}).save(output)
    print(f"{output}: {len(captured.names)} hook points over {len(ids)} tokens")


def convert(
    source: Model,
    target: Annotated[Path, typer.Argument(help="Folder to write; must not hold a checkpoint yet.")],
    layout: Annotated[Literal["meta", "hf"], typer.Option(help="Whose layout to write.")],
    shards: Annotated[int, typer.Option(min=1, help="Files to write; Meta's tensor-parallel size.")] = 1,
    container: Annotated[
        Literal["safetensors", "pth"], typer.Option(help="File format; pth is for Meta's own code.")
    ] = "safetensors",
) -> None:
    """Write a checkpoint in the other layout; there and back is identical to the last bit."""
    from workbench.checkpoint import convert as convert_checkpoint

    print(convert_checkpoint(source, target, layout=layout, shards=shards, container=container))


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint and the loss log.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse a folder that holds a training already.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "cpu",
) -> None:
    """Train a model from a recipe; a training that was stopped goes on where it was last saved."""
    from workbench.checkpoint.load import resolve_device
    from workbench.training.recipe import Recipe
    from workbench.training.train import train as run_training

    on = str(resolve_device(device))
    print(run_training(Recipe.from_file(recipe), output, resume=not fresh, device=on))


def tokenizer_of(model: Transformer, name: str) -> Tokenizer:
    """The model's tokenizer. Raises: TokenizerError where its folder holds none."""
    if model.tokenizer is None:
        raise TokenizerError(f"{name} holds no tokenizer.model or tokenizer.json; text needs one. Put it there.")
    return model.tokenizer


def numbers(text: str | None, option: str) -> list[int] | None:
    """`0,2,5-7` as [0, 2, 5, 6, 7]; None stays None."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise GenerationError(f"{option} takes numbers and ranges such as 0,2,5-7; found {text!r}.")
        found += range(int(first), int(last or first) + 1)
    return found
