"""Addresses that somebody edited: on no page does any value of any parameter end in a traceback."""

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from tests.dashboard.world import NASTY

App = Callable[..., AppTest]

NONSENSE = ("", "x", "-7", "99999999999", "1e309", "nan", "[]", "[{}]", '{"a": 1}', "../../etc", "\x00", NASTY)
PAGES = {
    "overview": "prompt sample guide model",
    "attention": "sample guide colour layer head log nosink extent start strip token",
    "rope": "sample guide view layer head theta scaling",
    "norms": "sample look norm nofirst from",
    "lens": "sample position targets k cells curves logit chosen lens",
    "neurons": "sample layer neuron",
    "intervene": "sample guide changes position targets perhead layer head",
    "generate": "sample temperature top_k top_p new seed written step layer head mode",
    "compare": "compare run baseline task changes sample what prompt layer head",
    "benchmarks": "run baseline published task",
    "samples": "guide run baseline task show order filter doc behind",
    "runs": "id run job follow",
}


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("page", PAGES)
def test_an_edited_address_is_no_traceback(app: App, page: str, value: str) -> None:
    """All parameters at once; those that name a sample or a run end a page early, and are left out the second time."""
    names = PAGES[page].split()
    session = app(page, **dict.fromkeys(names, value))
    assert not session.exception, session.exception[0].message
    early = {"sample", "run", "changes", "prompt", "targets"}
    session = app(page, **{name: value for name in names if name not in early})
    assert not session.exception, session.exception[0].message
    assert not [error for error in session.error if "Traceback" in error.value or "\n" in error.value]
