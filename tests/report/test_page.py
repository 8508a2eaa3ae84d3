"""The report's page: its numbers are the summary's, nothing in the data can inject, and it works in a real Chromium."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from report_inputs import ALL, Arm, make_inputs, run

from oxa.comparison.measures import pass_at
from oxa.config.selection import CeSet
from oxa.report import page, page_tables, training_sets
from oxa.report.training_sets import Panel
from oxa.runtime import files

ROOT = Path(page.__file__).parent
HOSTILE = "\"'><img src=x onerror=document.title='hit'><script>document.title='hit'<!--"


class Parsed(HTMLParser):
    """Cells that show a number of the summary, and the headings, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, Any, str]] = []  # key, value, text
        self.headings: list[int] = []
        self._open: dict[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self._open = values if "data-key" in values else None
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.numbers.append((self._open["data-key"], json.loads(self._open["data-value"]), data))
            self._open = None


def lookup(summary: Any, key: str) -> Any:
    for name in key.split("."):
        summary = summary[int(name) if isinstance(summary, list) else name]
    return summary


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole report: four arms, two benchmarks, one seed, RL."""
    folder = tmp_path_factory.mktemp("page")
    made = make_inputs(
        folder,
        benchmarks={"world": 60, "aime24": 20},
        rates={"base": 0.2, "oxa_full": 0.48, "sft_lp": 0.3},
        rl_steps=(10, 20),
    )
    run(made, lambda step, **values: None)
    return made


@pytest.fixture(scope="module")
def html(paths: dict[str, Path]) -> str:
    return (paths["output"] / "index.html").read_text(encoding="utf-8")


@pytest.mark.whole
def test_every_number_on_the_page_is_the_summary_s(paths: dict[str, Path], html: str) -> None:
    summary = files.read_json(paths["summary"])
    shown = Parsed(html).numbers
    for key, value, text in shown:
        assert lookup(summary, key) == value, key
        number = float(text.replace("−", "-").replace(",", ""))
        assert min(abs(number - scale * value) for scale in (1, 100)) <= 0.5, key
        if "pass_at" in key or "pass_hat" in key or "maj_at" in key:
            scale = 1 if key.endswith(("p_value", "p_holm")) else 100
            assert number == pytest.approx(scale * value, abs=0.0501), key


def test_the_page_shows_how_hard_the_problems_of_rl_are(html: str) -> None:
    assert "Pass rates of the problems of split rlvr" in html
    assert "20 problems, 49% of the answers right." in html


def test_an_interval_reads_from_its_low_end_to_its_high_end(html: str) -> None:
    keys = [key for key, _, _ in Parsed(html).numbers]
    lows = [place for place, key in enumerate(keys) if re.search(r"[._]low$", key)]
    assert len(lows) > 100
    for place in lows:
        assert keys[place + 1] == re.sub("low$", "high", keys[place])
        if "bayes" not in keys[place]:
            assert keys[place - 1] == re.sub(r"_low$", "", keys[place]).replace(".low", ".difference")


def test_the_page_shows_arms_differences_gains_and_steps_of_every_benchmark(
    paths: dict[str, Path], html: str
) -> None:
    summary = files.read_json(paths["summary"])
    keys = {key for key, _, _ in Parsed(html).numbers}
    ends = ("", "_low", "_high")
    wanted = {
        f"arms.{arm}.{group}.{metric}{end}"
        for arm in summary["order"]
        for group in summary["groups"]
        for metric in (
            "pass_at_1",
            "pass_at_2",
            "pass_at_4",
            "pass_at_8",
            "maj_at_8",
            "pass_hat_8",
            "response_entropy",
            "token_entropy",
        )
        for end in ends
    }
    for part in ("differences", "gains"):
        assert len(summary[part]) >= 4
        wanted |= {
            f"{part}.{arm}.{group}.{metric}.{field}"
            for arm in summary[part]
            for group in summary["groups"]
            for metric in ("pass_at_1", "pass_at_8", "response_entropy", "token_entropy")
            for field in ("difference", "low", "high", "p_holm")
        }
    wanted |= {
        f"steps.{arm}.{group}.{place}.{metric}{end}"
        for arm in ALL
        for group in summary["groups"]
        for place in range(3)
        for metric in ("pass_at_1", "pass_at_8", "response_entropy", "token_entropy")
        for end in ends
    }
    assert wanted <= keys
    assert summary["answer"]["sentence"] in re.sub(r"\s+", " ", html.replace("&#39;", "'"))


def test_what_is_not_shown_to_differ_is_never_marked_as_shown(paths: dict[str, Path], html: str) -> None:
    summary = files.read_json(paths["summary"])
    cells = re.findall(r'<div class="(shown|unshown)"><span data-key="([^"]+)\.difference"', html)
    assert {state for state, _ in cells} == {"shown", "unshown"}
    for state, key in cells:
        assert lookup(summary, key)["shown"] is (state == "shown"), key


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_without_a_word_in_the_console_and_never_scrolls_sideways(
    browser: Browser, paths: dict[str, Path], width: int, scheme: str
) -> None:
    browser.open(paths["output"] / "index.html", width=width, scheme=scheme)
    assert browser.errors() == []
    assert browser.overflow() == 0
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert browser.overflow() == 0
    figures = browser.run(
        "return [...document.querySelectorAll('figure svg')].map(one => {"
        " const box = one.getBoundingClientRect(); return [box.left, box.width, box.height] })"
    )
    assert len(figures) > 30
    for left, across, high in figures:
        assert left >= 0
        assert left + across <= width
        assert across >= 250
        assert high >= 120
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(245, 245, 242)" if scheme == "light" else "rgb(18, 20, 22)"
    )


def test_the_answer_is_on_the_first_screen(browser: Browser, paths: dict[str, Path]) -> None:
    browser.open(paths["output"] / "index.html", width=1280, height=720)
    top, bottom = browser.run(
        "const box = document.querySelector('.answer').getBoundingClientRect(); return [box.top, box.bottom]"
    )
    assert 0 < top < bottom < 720


def test_labels_of_the_charts_are_not_clipped_and_large_enough_on_a_phone(
    browser: Browser, paths: dict[str, Path]
) -> None:
    browser.open(paths["output"] / "index.html", width=400)
    labels = browser.run(
        "return [...document.querySelectorAll('figure')].filter(one => one.checkVisibility()).flatMap(figure => {"
        " const card = figure.getBoundingClientRect();"
        " return [...figure.querySelectorAll('svg text')].map(one => { const box = one.getBoundingClientRect();"
        " return [one.textContent, Math.min(box.left - card.left, card.right - box.right),"
        " Math.min(box.width, box.height)] }) })"
    )
    assert len(labels) > 100
    for text, margin, size in labels:
        assert margin >= 0, text
        assert size >= 5 if len(text) < 2 else size >= 9, text


def test_an_arm_is_brought_out_by_the_keyboard_in_every_chart(
    browser: Browser, paths: dict[str, Path]
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def color(place: int) -> str:
        return browser.run(
            "const one = document.createElement('i'); one.style.color = `var(--arm-${arguments[0]})`;"
            " document.body.append(one); const color = getComputedStyle(one).color; one.remove(); return color",
            place,
        )

    browser.open(paths["output"] / "index.html")
    before = [color(place) for place in range(4)]
    assert len(set(before)) == 4
    button = next(
        one
        for one in browser.driver.find_elements(By.CSS_SELECTOR, ".legend button")
        if one.text == "oxa_mle"
    )
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "true"
    place = list(ALL).index("oxa_mle")
    faded = [color(other) for other in range(4) if other != place]
    assert color(place) == before[place]
    assert len(set(faded)) == 1
    assert not set(faded) & set(before)
    button.send_keys(Keys.SPACE)
    assert [color(place) for place in range(4)] == before


def test_what_arms_share_is_brought_out_with_each_of_them_in_its_color(
    browser: Browser, paths: dict[str, Path], html: str
) -> None:
    places = [list(ALL).index(name) for name in ("oxa_mle", "oxa_full")]
    assert set(re.findall(r'data-arms="([^"]*)"', html)) == {f"{places[0]} {places[1]}"}
    assert "The line of oxa_mle is that of oxa_full, too: one set." in html
    browser.open(paths["output"] / "index.html")

    def colors(choose: str) -> tuple[set[str], list[str], int]:
        """Of what is shared, of the arms' variables; and in how many figures something is shared."""
        browser.run(
            "[...document.querySelectorAll('.legend button')]"
            ".find(one => one.querySelector('span').textContent === arguments[0]).click()",
            choose,
        )
        shared, arms, num_figures = browser.run(
            "const parts = [...document.querySelectorAll('[data-arms]')];"
            "const filled = parts.flatMap(part => [...part.querySelectorAll('path, use')])"
            "  .map(one => getComputedStyle(one)).flatMap(style => [style.fill, style.stroke]);"
            "const probe = document.body.appendChild(document.createElement('i'));"
            "const arms = [0, 1, 2, 3].map(place => {"
            "  probe.style.color = `var(--arm-${place})`; return getComputedStyle(probe).color });"
            "probe.remove();"
            "return [filled.filter(color => color.startsWith('rgb(')), arms,"
            "  new Set(parts.map(part => part.closest('figure'))).size]"
        )
        return set(shared) - {"rgb(0, 0, 0)"}, arms, num_figures

    shared, arms, num_figures = colors("oxa_full")
    assert num_figures == 2  # the set, and its length
    assert shared == {arms[places[1]]}
    assert arms[places[0]] == arms[0]
    shared, arms, _ = colors("oxa_mle")
    assert shared == {arms[places[0]]}
    shared, arms, _ = colors("sft")
    assert shared == {arms[places[0]]} == {arms[places[1]]} != {arms[0]}
    shared, arms, _ = colors("sft")  # none is chosen any more
    assert shared == {arms[places[0]]}
    assert len(set(arms)) == 4


def test_nothing_in_the_data_can_inject(browser: Browser, tmp_path: Path) -> None:
    name = "\"><img src=x onerror=document.title='hit'>"
    arms = {"sft": ALL["sft"], name: ALL["oxa_mle"]}
    paths = make_inputs(
        tmp_path, arms, benchmarks={"world": 10, HOSTILE: 10}, num_samples=2, num_steps=10, question=HOSTILE
    )
    ingested = files.read_json(paths["metrics"] / "ingest.json")
    ingested["totals"]["dropped"][HOSTILE] = 3
    files.write_json(paths["metrics"] / "ingest.json", ingested)
    run(paths, lambda step, **values: None, list(arms))
    browser.open(paths["output"] / "index.html")
    assert browser.errors() == []
    assert browser.driver.title == "OXA report"
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return document.querySelectorAll('script:not([type])').length") == 2
    for text in (name, HOSTILE):
        assert browser.run("return document.body.textContent.includes(arguments[0])", text)
    assert not browser.run(
        "return [...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames())"
        ".filter(name => name.startsWith('on')).length"
    )
    block = browser.run("return JSON.parse(document.getElementById('traces').textContent)")
    assert block["problems"][0]["question"] == HOSTILE


def test_the_policy_runs_the_page_s_own_scripts_only(browser: Browser, html: str, tmp_path: Path) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    (allowed,) = re.findall(r"script-src ([^;]*);", html.replace("&#39;", "'"))
    assert allowed.split() == [f"'sha256-{value}'" for value in hashes]
    path = tmp_path / "foreign.html"
    path.write_text(
        html.replace("</body>", "<script>document.title = 'hit'</script></body>"), encoding="utf-8"
    )
    browser.open(path)
    assert browser.driver.title == "OXA report"
    assert "Content Security Policy" in browser.errors()[0]


def test_the_page_refers_to_nothing_outside_itself(html: str) -> None:
    assert not re.search(r'(?:src|href|action)="(?!#)', html)
    assert not re.search(r"url\((?!#)|@import", html)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for name in re.findall(r'(?:url\(#|href="#)([^")]+)', html):
        assert name in ids


def test_every_chart_follows_the_scheme_and_says_in_words_what_it_shows(html: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)
    assert len(figures) > 30
    for figure in figures:
        assert not re.search(r"#[0-9a-fA-F]{6}|rgb\(|font-family", figure)
        assert "var(--fg)" in figure
        assert "<text" in figure  # text stays text
        assert re.search(r'role="img" aria-label="[^"]{30,}"', figure)
        assert re.search(r"<figcaption><strong>[^<]+</strong> [^<]{20,}</figcaption>", figure)


def test_lengths_are_set_against_responses_of_the_same_ppl() -> None:
    draws = np.random.default_rng(0)
    ppl = draws.uniform(1, 2, 4000)
    tokens = (100 * ppl + draws.integers(-20, 21, 4000)).astype(np.int64)
    high = ppl > 1.5
    longest = high & (tokens > 100 * ppl)
    (by_ppl, confounded) = training_sets.lengths(
        [Panel("ce", ["a"], ppl[taken], tokens[taken], ppl, tokens, []) for taken in (high, longest)]
    )
    assert by_ppl[1] == pytest.approx(175, abs=1.5)
    assert by_ppl[2] == pytest.approx(175, abs=1.5)  # a set of high ppl is long, as all of its ppl are
    assert confounded[1] - confounded[2] == pytest.approx(10, abs=1.5)


def test_that_the_longest_go_first_is_said_only_of_gaussian_sets_chosen_so(
    tmp_path: Path, paths: dict[str, Path], html: str
) -> None:
    def confound(text: str) -> str:
        (passage,) = re.findall(r"The confound to look for.*?</p>", text, flags=re.DOTALL)
        return re.sub(r"\s+", " ", passage)

    words = "Gaussian CE sets of oxa_mle and oxa_full, the longest responses inside a bin of ppl were taken first. CE"
    assert words in confound(html)
    arms = {name: ALL[name] for name in ("sft", "oxa_mle")}
    made = make_inputs(tmp_path, arms, benchmarks={"world": 6}, num_samples=2, num_steps=3)
    path = made["metrics"] / "selection" / "ce" / "oxa_mle.json"
    files.write_json(path, files.read_json(path) | {"within_bin": "random"})
    run(made, lambda step, **values: None, list(arms))
    assert "longest" not in confound((made["output"] / "index.html").read_text(encoding="utf-8"))


def test_ce_sets_of_unequal_size_are_told_under_the_answer(tmp_path: Path, html: str) -> None:
    assert "differ in size" not in html
    arms = {name: ALL[name] for name in ("sft", "oxa_mle", "oxa_full")}
    made = make_inputs(tmp_path, arms, benchmarks={"world": 6}, num_samples=2, num_steps=3)
    for arm in ("oxa_mle", "oxa_full"):
        path = made["metrics"] / "selection" / "ce" / f"{arm}.json"
        selection = files.read_json(path)
        selection["ce"]["chosen"] = 144
        files.write_json(path, selection)
        trained = made["metrics"] / "train" / f"{arm}-0.json"
        files.write_json(trained, files.read_json(trained) | {"ce_rows": 144})
    run(made, lambda step, **values: None, list(arms))
    table = (made["output"] / "table.md").read_text(encoding="utf-8")
    assert "differ in size: 150 responses for sft; 144 responses for oxa_mle" in " ".join(table.split())
    text = (made["output"] / "index.html").read_text(encoding="utf-8")
    (note,) = re.findall(r'<p class="note">(The CE sets.*?)</p>', text, flags=re.DOTALL)
    assert Parsed(note).numbers == [
        ("selection.sft.ce.chosen", 150, "150"),
        ("selection.oxa_mle.ce.chosen", 144, "144"),
    ]
    words = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", note))
    assert words.endswith("differ in size: 150 responses for sft; 144 responses for oxa_mle and oxa_full.")


def test_several_seeds_are_shown_one_by_one_and_what_is_taken_of_them_is_said(
    tmp_path: Path, html: str
) -> None:
    arms = {name: ALL[name] for name in ("sft", "sft_lp")}
    made = make_inputs(tmp_path, arms, (0, 1), benchmarks={"world": 10}, num_samples=2, num_steps=3)
    summary = run(made, lambda step, **values: None, list(arms), (0, 1))
    text = (made["output"] / "index.html").read_text(encoding="utf-8")
    shown = [(key, value) for key, value, _ in Parsed(text).numbers if "by_seed" in key]
    assert shown == [
        (
            f"arms.{arm}.world.pass_at_1_by_seed.{place}",
            summary["arms"][arm]["world"]["pass_at_1_by_seed"][place],
        )
        for arm in arms
        for place in (0, 1)
    ]
    assert "2 fine-tuning seeds: an arm" in text
    assert "One fine-tuning seed" not in text
    assert "by_seed" not in html
    assert "cannot be known" in html


def test_a_difference_after_rl_is_headed_by_what_it_is_compared_to(paths: dict[str, Path]) -> None:
    table = page_tables.arms(files.read_json(paths["summary"]), "world")
    assert [line.name for line in table.lines if not line.cells] == ["Before RL", "After RL, Δ to sft-rl"]
    assert "pass@1: Δ to sft, points" in table.header
    assert "token entropy: Δ to sft, nats a token" in table.header


def test_words_say_no_more_than_what_was_done(html: str, tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", html.replace("&#39;", "'"))
    assert "Rollouts cut before their answer earn nothing" in text
    assert "at least 300 resamples" in text
    assert "checkpoint of the first fine-tuning seed" in text
    assert "compare with an arm without UL before crediting suppression to UL" in text
    assert "Teacher: right ones alone. Self: those of the verdicts in score.self_verdicts" in text
    arms = {"sft": ALL["sft"]}
    made = make_inputs(tmp_path, arms, benchmarks={"world": 6}, num_samples=2, num_steps=3)
    (made["scores"] / "self.parquet").unlink()
    run(made, lambda step, **values: None, list(arms))
    text = (made["output"] / "index.html").read_text(encoding="utf-8")
    assert "Teacher: right ones alone. Further right" in text
    assert "crediting suppression" not in text
    assert "self_verdicts" not in text


def test_headings_go_down_one_level_at_a_time(html: str) -> None:
    levels = Parsed(html).headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


def test_without_rl_and_with_a_single_sample_the_page_says_so(browser: Browser, tmp_path: Path) -> None:
    arms = {"sft": ALL["sft"]}
    paths = make_inputs(tmp_path, arms, benchmarks={"world": 12}, num_samples=1, num_steps=3)
    (paths["traces"] / "sft.parquet").unlink()
    paths["traces"].rmdir()
    summary = run(paths, lambda step, **values: None, list(arms))
    assert summary["steps"] == {}
    html = (paths["output"] / "index.html").read_text(encoding="utf-8")
    assert "No arm has been through RL yet." in html
    assert 'id="rlvr"' not in html
    assert 'id="traces"' not in html
    browser.open(paths["output"] / "index.html", width=400)
    assert browser.errors() == []
    assert browser.overflow() == 0


def test_many_arms_with_long_names_on_many_benchmarks_fit_a_phone(browser: Browser, tmp_path: Path) -> None:
    names = ["sft", *(f"an_arm_whose_name_says_all_of_its_settings_{place}" for place in range(6)), "b"]
    arms = {name: Arm(CeSet(rule="random")) for name in names}
    paths = make_inputs(
        tmp_path,
        arms,
        benchmarks={f"benchmark_{'long_' * place}{place}": 6 for place in (0, 6)},
        num_samples=2,
        num_steps=5,
        rl_steps=(3,),
    )
    run(paths, lambda step, **values: None, names)
    browser.open(paths["output"] / "index.html", width=400)
    assert browser.errors() == []
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert browser.overflow() == 0
    assert (paths["output"] / "index.html").stat().st_size < 5e6


def test_a_json_block_gives_its_data_back_and_holds_no_tag() -> None:
    value = {"text": "</script><!-- & \u2028 <b>", "numbers": [1, -2.5, None]}
    block = str(page.json_block("name", value))
    inside = block.removeprefix('<script type="application/json" id="name">').removesuffix("</script>")
    assert not set("<>&\u2028") & set(inside)
    assert json.loads(inside) == value


def test_differences_that_round_to_nothing_have_no_sign() -> None:
    assert [page_tables.signed(pass_at(1).signed(value)) for value in (0.0, -0.0001, 0.0572, -0.0572)] == [
        "0.0",
        "0.0",
        "+5.7",
        "−5.7",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_have_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    light, dark = (ROOT / "page.css").read_text().split("@media (prefers-color-scheme: dark)")
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark if scheme == "dark" else light))
    for behind in ("bg", "card"):
        for name in ("fg", "muted", "accent"):
            assert contrast(colors[name], colors[behind]) >= 4.5, (name, behind)
    for place in range(8):
        assert contrast(colors[f"arm-{place}"], colors["card"]) >= 3, place


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
