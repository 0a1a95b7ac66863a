"""A text that a session generates: what was asked for, the steps so far, and the streaming that can be stopped.

The steps are kept in the session alone. They are kept as they come, so that a script that is interrupted, by the Stop
button or by any other widget, leaves what it has.
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
"""How often the growing text is sent to the browser: often enough to read along, seldom enough to cost nothing."""

_KEY = "_written"


@dataclass(frozen=True)
class Given:
    """The ids to go on from, the code that makes them in a notebook, and in a chat the message that is answered.

    `changes` are the interventions in force, as `workbench.hooks.interventions.to_json` writes them.
    """

    ids: tuple[int, ...]
    code: str
    said: str | None = None
    changes: str = NO_CHANGES


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate; `path` names the model."""

    model: str  # its fingerprint
    path: str
    given: Given
    sampling: Sampling
    seed: int
    max_new_tokens: int

    def notebook(self, n_tokens: int, query: int, layer: int, head: int) -> str:
        """A cell that gives the first `n_tokens` of the text again, its numbers, and one head's row at a step."""
        sampling, step = self.sampling, query + 2 - len(self.given.ids)
        return f"""
import torch, workbench as wb
from probes.attention.head_metrics import HOOKS, head_metrics
from probes.generation.token_choices import sampling_trace
from workbench.inference.sampling import Sampling

model = wb.load_model({self.path!r}).eval().requires_grad_(False)
prompt = {self.given.code}
sampling = Sampling(temperature={sampling.temperature!r}, top_p={sampling.top_p!r}, top_k={sampling.top_k!r})
{running(self.given.changes)}
    found = sampling_trace(model, prompt, sampling, seed={self.seed}, max_new_tokens={n_tokens}, alternatives={ALTERNATIVES})
    _, cap = model.run_with_capture(torch.tensor([[*prompt, *found.tokens[:-1]]], device=model.device), HOOKS)
print(found.text)
found.frame()
found.alternatives()
head_metrics(cap, queries=[{query}]).frame()  # every head, for the query that chose step {step}
cap.pattern({layer}, heads=[{head}], queries=[{query}])[0, 0, 0, :{query + 1}]
"""


@dataclass
class Written:
    """The steps of one request so far, and when they came: seconds to the first, and to the last."""

    request: GenerationRequest
    steps: list[Choice] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0
    _found: SamplingTrace | None = None

    @property
    def found(self) -> SamplingTrace:
        """The steps as a result, made once they no longer grow."""
        if self._found is None or len(self._found.tokens) != len(self.steps):
            self._found = gathered(self.request.given.ids, self.steps)
        return self._found

    @property
    def id(self) -> str:
        """Names the text, for the browser to know it again."""
        request = self.request
        return f"{request.model}/{hash((request.given, tuple(step.token for step in self.steps)))}"


def held(model: Transformer) -> Written | None:
    """What this session generated last, if it has a token and is by this model."""
    written: Written | None = st.session_state.get(_KEY)
    if written is None or not written.steps or written.request.model != computed.fingerprint(model):
        return None
    return written


def forget() -> None:
    """Throw it away."""
    st.session_state.pop(_KEY, None)


def request(model: Transformer, given: Given, sampling: Sampling, seed: int, max_new_tokens: int) -> GenerationRequest:
    """A request to the model of this server."""
    return GenerationRequest(computed.fingerprint(model), computed.model_path(), given, sampling, seed, max_new_tokens)


def write(model: Transformer, asked: GenerationRequest, show: Callable[[str], None]) -> None:
    """Generate, and `show` the text so far at every step, or as often as an eye can follow.

    Streamlit ends the script inside `show` when a button asks for it; the steps until then are held.
    Raises: GenerationError for a prompt that leaves no room.
    """
    begun = time.perf_counter()
    written, text, drawn = Written(asked), "", 0.0
    with model.intervene(*from_json(asked.given.changes)):
        found = choices(
            model,
            asked.given.ids,
            asked.sampling,
            seed=asked.seed,
            max_new_tokens=asked.max_new_tokens,
            alternatives=ALTERNATIVES,
        )
        st.session_state[_KEY] = written
        for step in found:
            now = time.perf_counter()
            written.steps.append(step)
            written.first = written.first or now - begun
            written.last = now - begun
            text += step.text if model.tokenizer is not None else f"#{step.token} "
            if now - drawn >= FRAME_SECONDS or step.finish_reason is not None:
                drawn = now
                show(text)
