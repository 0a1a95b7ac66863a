"""The dashboard in a real browser: pages load soundly, a sample leads to its heads, strangers' text stays text."""

import http.client
import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Locator, expect

from dashboard.data.intervention_effects import choice_logprobs
from evals.explain.explain import explain
from evals.results.runs import list_runs
from probes.attention.head_map import MAX_CELLS
from tests.browser.conftest import Tab, World
from tests.browser.drawn import HARMLESS, click_square, map_values, ring, toolbar
from tests.browser.fitting import cut_off
from tests.dashboard.world import NASTY
from workbench.checkpoint import load_model

pytestmark = pytest.mark.browser

WITHOUT_A_HEAD = '[{"kind": "ablate", "target": "L1H2"}]'

PAGES = {
    "": ("Overview", []),
    "attention": ("Attention", ["atlas", "head_map"]),
    "rope": ("RoPE", ["wavelengths", "decay"]),
    "rope?view=This+head": ("RoPE", ["band_contribution", "score_by_distance"]),
    "rope?view=Shift": ("RoPE", ["relative_invariance"]),
    "rope?view=What+if&theta=500": ("RoPE", ["what_if"]),
    "norms": ("Norms", ["input_rms"]),
    "norms?look=Gains": ("Norms", ["gain_quantiles"]),
    "norms?look=Activations": ("Norms", ["massive_activations"]),
    "norms?look=Contributions": ("Norms", ["contribution_ratios"]),
    "lens": ("Lens", ["lens_grid", "token_curves", "attribution"]),
    "neurons": ("Neurons", ["activations", "neuron_tokens", "neuron_statistics"]),
    f"intervene?perhead=true&{urlencode({'changes': WITHOUT_A_HEAD})}": ("Intervene", ["shift", "atlas"]),
    "generate?temperature=0&new=8&written=1": ("Generate", ["atlas", "surprise"]),
    "benchmarks": ("Benchmarks", ["forest"]),
    f"compare?{urlencode({'changes': WITHOUT_A_HEAD})}": ("Compare", ["atlas", "logit_differences", "side_by_side"]),
}

FIGURES_OF_A_SAMPLE = ("heads", "attribution", "token_curves")


def query(tab: Tab) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(tab.page.url).query).items()}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_with_its_figures_and_without_a_complaint(tab: Tab, path: str) -> None:
    title, figures = PAGES[path]
    tab.open(path)
    expect(tab.page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    for figure in figures:
        tab.chart(figure)
    assert tab.page.locator(".js-plotly-plot").count() <= 3
    expect(tab.page).to_have_title(f"{title} · Llama workbench")
    assert toolbar(tab.page) <= HARMLESS
    assert not figures or "Save as PNG" in toolbar(tab.page)
    expect(tab.page.locator("[data-testid=stAlertContentError]")).to_have_count(0)
    assert cut_off(tab) == []


def test_the_list_of_questions_fits_beside_another_run(tab: Tab, world: World) -> None:
    names = {run.name.partition("/")[0]: run.name for run in list_runs(world.results)}
    tab.open("samples", run=names["second"], baseline=names["first"], task="tiny_quiz")
    expect(tab.page.get_by_text("The other run's answer is")).to_be_visible()
    assert cut_off(tab) == []


def test_the_address_reproduces_the_view_for_somebody_else(tab: Tab, new_tab: Callable[..., Tab]) -> None:
    tab.open("attention")
    tab.page.get_by_role("textbox", name="Prompt").fill("The dog ran")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.page.locator(".token")).to_have_count(4)
    tab.page.get_by_role("radio", name="Sink mass").click()
    click_square(tab.settle(), 1, 3)
    tab.wait_for_chart("head_map", layer=1, head=3)
    tab.page.locator(".token").nth(2).click()
    expect(tab.page.get_by_role("heading", name="Strongest keys for token 2")).to_be_visible()
    tab.settle()

    other = new_tab(stranger=True)
    other.page.goto(tab.page.url)
    other.settle()
    assert other.chart("head_map") == tab.chart("head_map")
    assert map_values(other) == map_values(tab)
    assert ring(other) == [1, 3]
    assert tokens(other) == tokens(tab)
    expect(other.page.get_by_role("heading", name="Strongest keys for token 2")).to_be_visible()
    expect(other.page.get_by_role("radio", name="Sink mass")).to_be_checked()


def tokens(tab: Tab) -> list[str]:
    return tab.page.locator(".token").all_text_contents()


def test_users_keep_their_prompts_over_pages_and_from_each_other(new_tab: Callable[..., Tab]) -> None:
    first, other = new_tab().open("attention"), new_tab(stranger=True).open("attention")
    for tab, text in ((first, "the cat"), (other, "a park")):
        tab.page.get_by_role("textbox", name="Prompt").fill(text)
        tab.page.keyboard.press("Control+Enter")
        expect(tab.page.get_by_role("textbox", name="Prompt")).to_have_value(text)
        tab.settle()
    for tab, text in ((first, "the cat"), (other, "a park")):
        tab.page.get_by_role("link", name="Benchmarks").click()
        expect(tab.page.get_by_role("heading", name="Benchmarks", exact=True)).to_be_visible()
        tab.settle()
        tab.page.get_by_role("link", name="Norms").click()
        expect(tab.page.get_by_role("textbox", name="Prompt")).to_have_value(text)
        tab.settle()
        assert query(tab)["prompt"] == text


@pytest.mark.parametrize(
    "path", ["", "attention", "norms", "rope?view=What+if&theta=500", "lens", "neurons", "intervene", "generate"]
)
def test_hostile_text_is_shown_as_text(tab: Tab, path: str) -> None:
    tab.open(f"{path}{'&' if '?' in path else '?'}{urlencode({'prompt': NASTY})}")
    expect(tab.page.get_by_role("textbox", name="Prompt")).to_have_value(NASTY)
    if path in ("", "attention"):
        shown = "".join(tokens(tab)).replace("·", " ")
        assert "<script>alert(1)</script> `code` **b** $x^2$ &amp; <b>bold</b>" in shown
        assert "⟨F0⟩⟨9F⟩" in shown and "⟨E2⟩⟨80⟩⟨AE⟩" in shown  # an emoji and an override, in pieces
    harmless(tab)


def test_plotly_shows_markup_as_it_was_typed(tab: Tab) -> None:
    tab.open("attention", prompt="<b>&amp;$x$")
    tab.chart("head_map")
    labels = tab.page.locator(".js-plotly-plot .ytick").all_text_contents()
    assert {"1 <", "2 b", "3 >", "4 &", "5 a", "6 m", "7 p", "8 ;", "9 $", "10 x", "11 $"} <= set(labels)
    harmless(tab)


def harmless(tab: Tab) -> None:
    """Nothing of the text became an element of the page. (A dialog would have been a complaint.)"""
    page = tab.page
    inside: Locator = page.locator("[data-testid=stMain]")
    assert inside.locator("script, .katex, a[href*='example.com'], iframe").count() == 0
    assert [b for b in inside.locator("b, strong").all_text_contents() if b in ("b", "bold")] == []
    labels = inside.locator(".js-plotly-plot .xtick, .js-plotly-plot .ytick")
    assert labels.locator("tspan:not(.line), a").count() == 0  # plotly's elements for markup


def test_a_sample_opens_in_attention_on_its_very_tokens(tab: Tab) -> None:
    tab.open("samples", task="tiny_sums", show="Wrong")
    expect(tab.page.get_by_role("heading", name="Sample 4: wrong")).to_be_visible()
    harmless(tab)
    tab.page.get_by_role("link", name="Open in Attention").click()
    expect(tab.page.get_by_text("Sample 4 of tiny_sums")).to_be_visible()
    expect(tab.page.locator(".token")).to_have_count(7)
    assert tokens(tab.settle()) == list("ABCDEFG")
    tab.page.get_by_role("button", name="Back to a prompt").click()
    expect(tab.page.get_by_role("textbox", name="Prompt")).to_be_visible()
    tab.settle()
    assert "sample" not in query(tab)


def test_from_a_score_to_the_head_behind_a_wrong_answer_and_to_the_answer_without_it(tab: Tab, world: World) -> None:
    run = next(run for run in list_runs(world.results) if "asked_quiz" in run.tasks)
    tab.open("benchmarks", run=run.name, task="asked_quiz")
    tab.page.get_by_role("link", name="Wrong answers, most confident first").click()
    expect(tab.page.get_by_role("heading", name="Samples", exact=True)).to_be_visible()
    tab.settle()
    assert tab.page.get_by_role("heading", name=re.compile("Sample \\d: wrong")).count() == 1
    first = tab.page.get_by_role("heading", name=re.compile("Sample \\d: wrong")).inner_text()

    # Another wrong answer: the second row of the list.
    tab.page.locator(".st-key-questions tbody tr").nth(1).click()
    expect(tab.page.get_by_role("heading", name=re.compile("Sample \\d: wrong"))).not_to_have_text(first)
    tab.settle()
    expect(tab.page.get_by_text("Replay: matches the stored log-probabilities")).to_be_visible()
    wrong = int(query(tab)["doc"])
    assert {"heads", "attribution", "token_curves"} == {str(tab.chart(n)["kind"]) for n in FIGURES_OF_A_SAMPLE}
    assert tab.page.locator(".js-plotly-plot").count() <= 3
    harmless(tab)
    prompt = tab.page.locator(".verbatim").filter(has_text="Question")
    expect(prompt.first).to_contain_text("<script>alert(1)</script> `code` **b** $x^2$ &amp; <b>bold</b>")
    expect(prompt.first).to_contain_text("⟨U+202E⟩abc [a](http://example.com) :red[hot]")

    model = load_model(world.model)
    explanation = explain(model, run, "asked_quiz", wrong)
    head = explanation.heads().iloc[0]
    tab.page.get_by_role("link", name=f"L{head['layer']}H{head['head']} in Attention").click()
    tab.wait_for_chart("head_map", layer=int(head["layer"]), head=int(head["head"]))
    expect(tab.page.get_by_text("of asked_quiz")).to_be_visible()
    tab.settle()
    heading = f"Strongest keys for token {explanation.decision.position}"
    expect(tab.page.get_by_role("heading", name=heading)).to_be_visible()
    harmless(tab)

    name = f"L{head['layer']}H{head['head']}"
    tab.page.get_by_role("link", name=f"Without {name} in Intervene").click()
    expect(tab.page.get_by_role("heading", name="Intervene", exact=True)).to_be_visible()
    expect(tab.page.get_by_text(f"1. ablate {name}")).to_be_visible()
    row = run.samples("asked_quiz").set_index("doc_id").loc[wrong]
    changes = "[]", json.dumps([{"kind": "ablate", "target": name}])
    scored = np.array(choice_logprobs(model, row["prompt_ids"], row["choice_ids"], changes))
    was, now = ("ABCD"[number] for number in scored.argmax(0))
    assert "ABCD"[int(row["answer"])] == was  # what the run answered
    expect(tab.page.get_by_text(re.compile(f"Answer before: {was}\\s+Answer after:\\s+{now}"))).to_be_visible()
    harmless(tab)


def test_a_question_is_chosen_with_the_keyboard_alone(tab: Tab, world: World) -> None:
    run = next(run for run in list_runs(world.results) if "asked_quiz" in run.tasks)
    tab.open("samples", run=run.name, task="asked_quiz", doc=1)
    row = tab.page.locator(".st-key-questions tbody tr")
    expect(row.nth(1)).to_have_attribute("aria-selected", "true")
    expect(tab.page.get_by_text("n = 4. Choose a row to open it;")).to_be_visible()
    expect(tab.page.get_by_role("button", name="Next rows")).to_be_hidden()
    row.nth(1).focus()
    tab.page.keyboard.press("ArrowDown")
    expect(row.nth(2)).to_be_focused()
    assert query(tab)["doc"] == "1"
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("heading", name=re.compile("Sample 2: "))).to_be_visible()
    expect(tab.page.get_by_role("grid").get_by_role("row", selected=True)).to_have_count(1)
    expect(row.nth(2)).to_have_attribute("aria-selected", "true")
    assert query(tab.settle())["doc"] == "2"
    tab.page.get_by_role("radio", name="Right", exact=True).click()  # another list: its first row is open
    expect(row).to_have_count(1)
    expect(row.first).to_have_attribute("aria-selected", "true")


def test_a_changed_model_is_looked_at_by_link_and_left_by_the_menu(tab: Tab) -> None:
    tab.open("intervene", changes=WITHOUT_A_HEAD, prompt="The cat sat on the mat")
    tab.page.get_by_role("link", name="Norms →").click()
    changed = tab.page.get_by_text("The model is changed: ablate L1H2.")
    expect(changed).to_be_visible()
    tab.chart("input_rms")
    assert json.loads(query(tab.settle())["under"]) == json.loads(WITHOUT_A_HEAD)
    for page in ("Intervene", "Attention"):
        tab.page.get_by_role("link", name=page, exact=True).click()
        expect(tab.page.get_by_role("heading", name=page, exact=True)).to_be_visible()
        tab.settle()
    tab.chart("head_map")
    expect(changed).to_have_count(0)


def test_the_head_behind_a_wrong_answer_opens_ablated_and_in_lens(tab: Tab, world: World) -> None:
    run = next(run for run in list_runs(world.results) if "asked_quiz" in run.tasks)
    address = {"run": run.name, "task": "asked_quiz", "doc": 3}
    tab.open("samples", **address)
    head = explain(load_model(world.model), run, "asked_quiz", 3).heads().iloc[0]
    tab.page.get_by_role("link", name=f"Without L{head['layer']}H{head['head']}").click()
    expect(tab.page.get_by_role("heading", name="Intervene", exact=True)).to_be_visible()
    expect(tab.page.get_by_text("Sample 3 of asked_quiz")).to_be_visible()
    tab.settle()
    assert json.loads(query(tab)["changes"]) == [{"kind": "ablate", "target": f"L{head['layer']}H{head['head']}"}]
    tab.open("samples", **address)
    tab.page.get_by_role("link", name="This decision in Lens").click()
    expect(tab.page.get_by_role("heading", name="Lens", exact=True)).to_be_visible()
    tab.settle()
    assert query(tab)["sample"].endswith("asked_quiz/3")
    expect(tab.page.locator("[data-testid=stAlertContentError]")).to_have_count(0)


def test_hovering_and_choosing_tokens(tab: Tab) -> None:
    tab.open("attention", layer=1, head=1, prompt="The cat sat on the mat")
    spans, readout = tab.page.locator(".token"), tab.page.locator(".readout")
    expect(readout).to_contain_text("token 6 “·mat” looks most at")
    spans.nth(3).hover()
    expect(readout).to_contain_text("token 3 “·sat” looks most at")
    expect(spans.nth(5)).to_have_class("token outside")
    spans.nth(3).click()
    expect(tab.page.get_by_role("heading", name="Strongest keys for token 3")).to_be_visible()
    tab.settle()
    assert query(tab)["token"] == "3"
    tab.page.get_by_role("radio", name="Who looks at it").click()
    expect(readout).to_contain_text("token 3 “·sat” is looked at most by")
    expect(spans.nth(1)).to_have_class("token outside")


def test_a_long_prompt_is_pooled_and_a_window_shows_single_tokens(tab: Tab) -> None:
    words = " cat sat on the mat and the dog ran to the park" * 59  # 651 tokens
    tab.open("attention", layer=0, head=0, prompt=words)
    assert tab.chart("head_map")["factor"] == 2
    expect(tab.page.get_by_text("Each cell is the largest of 2 x 2 positions")).to_be_visible()
    tab.page.get_by_role("radio", name="Window").click()
    tab.wait_for_chart("head_map", factor=1, start=0)
    tab.page.get_by_label("From position").fill("300")
    tab.page.keyboard.press("Enter")
    tab.wait_for_chart("head_map", factor=1, start=300)
    expect(tab.page.locator(".token")).to_have_count(MAX_CELLS // 2)


def test_what_is_wrong_says_what_to_do(tab: Tab) -> None:
    tab.open("attention", prompt="")
    tab.page.get_by_role("textbox", name="Prompt").fill("")
    tab.open("attention", sample="no/such/run/5")
    expect(tab.page.get_by_text("There is no input to run.")).to_be_visible()
    expect(tab.page.get_by_text("Open a sample from the Benchmarks page")).to_be_visible()


def test_csv_download_holds_the_numbers(tab: Tab) -> None:
    tab.open("attention", layer=2, head=4)
    tab.page.get_by_role("button", name="Download", exact=True).click()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Layer 2 head 4 (CSV)").click()
    path = download.value.path()
    lines = path.read_text().splitlines()
    assert lines[0] == "layer,head,query,key,weight"
    rows = [line.split(",") for line in lines[1:]]
    assert {row[0] for row in rows} == {"2"} and {row[1] for row in rows} == {"4"}
    totals: dict[str, float] = {}
    for row in rows:
        totals[row[2]] = totals.get(row[2], 0.0) + float(row[4])
    assert all(abs(total - 1) < 1e-4 for total in totals.values())


def test_a_table_as_parquet_and_a_figure_as_html_that_needs_no_other_host(tab: Tab, tmp_path: Path) -> None:
    tab.open("attention", layer=2, head=4)
    tab.chart("head_map")
    tab.page.get_by_role("button", name="Download", exact=True).click()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Layer 2 head 4 (Parquet)").click()
    table = pd.read_parquet(download.value.path())
    assert list(table.columns) == ["layer", "head", "query", "key", "weight"]
    np.testing.assert_allclose(table.groupby("query")["weight"].sum(), 1, atol=1e-4)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Head map (HTML)").click()
    download.value.save_as(tmp_path / "map.html")
    alone = tab.page.context.new_page()
    requests: list[str] = []
    alone.on("request", lambda request: requests.append(request.url))
    alone.goto((tmp_path / "map.html").as_uri())
    alone.wait_for_selector(".js-plotly-plot .heatmaplayer", state="attached")
    assert toolbar(alone) <= HARMLESS | {"Download plot as a PNG", "Box Select", "Lasso Select"}
    assert "Zoom" in toolbar(alone)
    assert "prompt: The capital of Peru" in str(alone.locator(".js-plotly-plot").text_content())
    alone.close()
    assert [address for address in requests if not address.startswith(("file:", "data:", "blob:"))] == []


def test_the_servers_settings_apply_from_any_folder(world: World) -> None:
    """The server was started elsewhere; its own config must still be in force."""
    log = world.log.read_text(errors="replace")
    assert "127.0.0.1" in world.url and "Network URL" not in log and "External URL" not in log
    with urllib.request.urlopen(f"{world.url}/_stcore/host-config") as reply:
        assert json.load(reply)
    assert handshake(world, "localhost") == 101
    assert handshake(world, "evil.example") == 403


def handshake(world: World, host: str) -> int:
    """The status of a WebSocket's opening with a Host header that a rebound name would carry."""
    address = urlsplit(world.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    connection.putrequest("GET", "/_stcore/stream", skip_host=True)
    headers = {"Host": host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    for name, value in {**headers, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}.items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_prompt_that_no_address_holds_leaves_it_and_the_page_can_be_reloaded(tab: Tab) -> None:
    tab.open("neurons", prompt="the cat")
    prompt = tab.page.get_by_role("textbox", name="Prompt")
    prompt.fill("漢" * 660)  # of three tokens each
    tab.page.keyboard.press("Control+Enter")
    tab.settle()
    assert query(tab)["prompt"] == "漢" * 660
    prompt.fill("漢" * 7500)
    tab.page.keyboard.press("Control+Enter")
    expect(tab.page.get_by_text("too long for the URL")).to_be_visible()
    tab.settle()
    assert "prompt" not in query(tab)
    tab.page.reload()
    expect(tab.page.get_by_role("heading", name="Neurons", exact=True)).to_be_visible()
    tab.settle()
    prompt.fill("漢" * 7500)
    tab.page.keyboard.press("Control+Enter")
    expect(tab.page.get_by_text("too long for the URL")).to_be_visible()
    prompt.fill("the dog")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.page.get_by_text("too long for the URL")).to_have_count(0)
    tab.settle()
    assert query(tab)["prompt"] == "the dog"
    tab.sound()


def test_a_header_sorts_a_table_and_j_opens_the_next_question(tab: Tab, world: World) -> None:
    tab.open("attention")
    header = tab.page.locator(".read-table[data-sortable] th[data-name=layer]").first
    column = header.locator("xpath=ancestor::table//tbody/tr/td[1]")
    shown = [int(text) for text in column.all_inner_texts()]
    assert len(shown) == 5
    header.click()
    assert [int(text) for text in column.all_inner_texts()] == sorted(shown, reverse=True)
    header.press("Enter")
    assert [int(text) for text in column.all_inner_texts()] == sorted(shown)
    assert header.get_attribute("aria-sort") == "ascending"
    run = next(run.name for run in list_runs(world.results) if "asked_quiz" in run.tasks)
    tab.open("samples", run=run, task="asked_quiz")
    numbers = [int(text) for text in tab.page.locator(".st-key-questions tbody tr td:first-child").all_inner_texts()]
    assert "data-sortable" not in tab.page.locator(".st-key-questions .read-table").evaluate("e => e.outerHTML")[:200]
    for key, at in (("j", 1), ("j", 2), ("k", 1)):
        tab.page.keyboard.press(key)
        expect(tab.page.get_by_role("heading", name=re.compile(f"^Sample {numbers[at]}:"))).to_be_visible()
        tab.settle()
    tab.page.get_by_role("textbox", name="Search").fill("jj")
    expect(tab.page.get_by_role("heading", name=re.compile(f"^Sample {numbers[1]}:"))).to_be_visible()
