"""Back and Forward in a real browser: one entry for each page, which shows the page as it was left."""

import re

import pytest
from playwright.sync_api import expect

from evals.results.runs import list_runs
from tests.browser.conftest import Tab, World

pytestmark = pytest.mark.browser


def checked(tab: Tab, name: str) -> None:
    expect(tab.page.get_by_role("radio", name=name, exact=True)).to_be_checked()


def follow(tab: Tab, name: str) -> None:
    tab.page.get_by_role("link", name=name, exact=True).click()
    expect(tab.page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    tab.settle()


def entries(tab: Tab) -> int:
    return int(tab.page.evaluate("history.length"))


def test_back_and_forward_show_each_page_as_it_was_left(tab: Tab) -> None:
    tab.open("attention")
    first = entries(tab)
    tab.page.get_by_role("radio", name="Sink mass").click()
    tab.settle()
    follow(tab, "Lens")
    tab.page.get_by_role("radio", name="KL to the output").click()
    tab.settle()
    follow(tab, "RoPE")
    assert entries(tab) == first + 2
    tab.page.go_back()
    tab.settle()
    checked(tab, "KL to the output")
    tab.page.go_back()
    tab.settle()
    checked(tab, "Sink mass")
    assert "colour=Sink" in tab.page.url
    tab.page.go_forward()
    tab.settle()
    checked(tab, "KL to the output")
    tab.page.go_back()  # and the menu still brings the last choice
    tab.settle()
    follow(tab, "RoPE")
    follow(tab, "Attention")
    checked(tab, "Sink mass")


def test_a_wrong_answer_is_left_for_a_head_and_found_again_by_back(tab: Tab, world: World) -> None:
    run = next(run.name for run in list_runs(world.results) if "asked_quiz" in run.tasks)
    tab.open("samples", run=run, task="asked_quiz")
    tab.page.get_by_role("radio", name="Wrong", exact=True).click()
    tab.settle()
    address = tab.page.url
    assert "show=Wrong" in address
    tab.page.get_by_role("link", name=re.compile(r"^L\d+H\d+ in Attention →$")).first.click()
    expect(tab.page.get_by_role("heading", name="Attention", exact=True)).to_be_visible()
    tab.settle()
    tab.page.go_back()
    expect(tab.page.get_by_role("heading", name="Samples", exact=True)).to_be_visible()
    tab.settle()
    checked(tab, "Wrong")
    assert tab.page.url == address
