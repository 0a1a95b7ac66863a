"""Text generation of a session: the request, the steps so far, and streaming that can be stopped.

The steps are stored only in the session, as they come, so that they remain if the script is interrupted by the Stop
button or by another widget.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import streamlit as st

from dashboard.panels.prompt_input import running
from dashboard.session import computed
from dashboard.session.computed import NO_CHANGES
from probes.generation.token_choices import Choice, SamplingTrace, choices, gathered
from workbench.hooks.interventions import from_json
from workbench.inference.sampling import Sampling
from workbench.model import Transformer

ALTERNATIVES = 8
FRAME_SECONDS = 0.05
"""Interval at which the growing text is sent to the browser: short enough to read along, long enough to be cheap."""

_KEY = "_written"


@dataclass(frozen=True)
class GenerationPrompt:
    """The ids to continue, the code that makes them in a notebook, and, in a chat, the user's message.

    `changes` are the interventions in force, as `workbench.hooks.interventions.to_json` writes them.
    """

    ids: tuple[int, ...]
    code: str
    message: str | None = None
    changes: str = NO_CHANGES


@dataclass(frozen=True)
class GenerationRequest:
    """Model, prompt and settings of a generation; `path` names the model."""

    model: str  # its fingerprint
    path: str
    prompt: GenerationPrompt
    sampling: Sampling
    seed: int
    max_new_tokens: int

    def notebook(self, n_tokens: int, query: int, layer: int, head: int) -> str:
        """A notebook cell that reproduces the first `n_tokens` of the text, its numbers, and one head's row at a "
        "step."""
        sampling, step = self.sampling, query + 2 - len(self.prompt.ids)
        return f"""
import torch, workbench as wb
from probes.attention.head_metrics import HOOKS, head_metrics
from probes.generation.token_choices import sampling_trace
from workbench.inference.sampling import Sampling

model = wb.load_model({self.path!r}).eval().requires_grad_(False)
prompt = {self.prompt.code}
sampling = {sampling!r}
{running(self.prompt.changes)}
    trace = sampling_trace(model, prompt, sampling, seed={self.seed}, max_new_tokens={n_tokens},
                           alternatives={ALTERNATIVES})
    _, cap = model.run_with_capture(torch.tensor([[*prompt, *trace.tokens[:-1]]], device=model.device), HOOKS)
print(trace.text)
trace.frame()
trace.alternatives()
head_metrics(cap, queries=[{query}]).frame()  # every head, for the query that chose step {step}
cap.pattern({layer}, heads=[{head}], queries=[{query}])[0, 0, 0, :{query + 1}]
"""


@dataclass
class GeneratedText:
    """The steps of one request so far, with the seconds to the first step and to the last."""

    request: GenerationRequest
    steps: list[Choice] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0
    _trace: SamplingTrace | None = None

    @property
    def trace(self) -> SamplingTrace:
        """The steps as a SamplingTrace, cached while their number stays the same."""
        if self._trace is None or len(self._trace.tokens) != len(self.steps):
            self._trace = gathered(self.request.prompt.ids, self.steps)
        return self._trace

    @property
    def id(self) -> str:
        """Identifies the text for the browser."""
        request = self.request
        return f"{request.model}/{hash((request.prompt, tuple(step.token for step in self.steps)))}"


def last_text(model: Transformer) -> GeneratedText | None:
    """The last text of this session, if it has a token and is from this model."""
    written: GeneratedText | None = st.session_state.get(_KEY)
    if written is None or not written.steps or written.request.model != computed.fingerprint(model):
        return None
    return written


def forget() -> None:
    """Discard the last text."""
    st.session_state.pop(_KEY, None)


def request(
    model: Transformer, prompt: GenerationPrompt, sampling: Sampling, seed: int, max_new_tokens: int
) -> GenerationRequest:
    """A request to the model of this server."""
    return GenerationRequest(computed.fingerprint(model), computed.model_path(), prompt, sampling, seed, max_new_tokens)


def write(model: Transformer, request: GenerationRequest, show: Callable[[str], None]) -> None:
    """Generate, and `show` the text so far, at most once per FRAME_SECONDS.

    Streamlit ends the script inside `show` if a button is pressed; the steps until then remain.
    Raises: GenerationError if the prompt leaves no room in the context.
    """
    started = time.perf_counter()
    written, text, drawn = GeneratedText(request), "", 0.0
    with model.intervene(*from_json(request.prompt.changes)):
        steps = choices(
            model,
            request.prompt.ids,
            request.sampling,
            seed=request.seed,
            max_new_tokens=request.max_new_tokens,
            alternatives=ALTERNATIVES,
        )
        st.session_state[_KEY] = written
        for step in steps:
            now = time.perf_counter()
            written.steps.append(step)
            written.first = written.first or now - started
            written.last = now - started
            text += step.text if model.tokenizer is not None else f"#{step.token} "
            if now - drawn >= FRAME_SECONDS or step.finish_reason is not None:
                drawn = now
                show(text)
