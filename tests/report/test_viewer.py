"""The trace viewer: its JSON against the tables, and the page in a real Chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from browser import Browser

from oxa.records import schemas
from oxa.report import viewer

OXA = Path(viewer.__file__).parent
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>"


def trace(
    problem: str, key: str, example: str, before: list[float], after: list[float], **other: Any
) -> dict[str, Any]:
    """A row of records.TRACES; one piece a log-probability unless `tokens` says otherwise."""
    row = {
        "example_id": example,
        "role": "example" if key == example else "beside",
        "objective": "",
        "response_id": key,
        "problem_id": problem,
        "question": f"What is {problem}?",
        "answers": [problem.removeprefix("p")],
        "origin": "teacher",
        "verdict": "correct",
        "ppl": math.exp(-float(np.mean(before))),
        "num_tokens": len(before),
        "cut": False,
        "tokens": [f" w{i}" for i in range(len(before))],
        "before": before,
        "after": after,
    }
    return row | other


def make_tables() -> dict[str, pa.Table]:
    """Two arms with six CE examples of growing ppl and length; the second arm has two UL examples, one of them cut."""
    ce, ul = [], []
    for i in range(6):
        before = [-0.1 * (i + 1)] * (4 + i)
        own = {"origin": "self", "verdict": "incorrect" if i % 3 else "correct", "ppl": math.nan}
        ce += [
            trace(f"p{i}", f"t{i}", f"t{i}", before, [-0.05] * (4 + i), objective="ce"),
            trace(f"p{i}", f"s{i}", f"t{i}", [-1.0, -0.5], [-3.5, -0.5], tokens=["so\n", "7"], **own),
        ]
    for i in (7, 8):
        own = {"origin": "self", "verdict": "incorrect", "num_tokens": 3000, "cut": i == 8}
        ul += [
            trace(f"p{i}", f"s{i}", f"s{i}", [-0.01, -0.02], [-2.5, -0.5], objective="ul", **own),
            trace(f"p{i}", f"t{i}", f"s{i}", [-0.7, -0.1], [-0.2, -0.1]),
        ]
    return {
        "sft": pa.Table.from_pylist(ce, schema=schemas.TRACES),
        "oxa_full": pa.Table.from_pylist(ce + ul, schema=schemas.TRACES),
    }


def write_page(path: Path, tables: dict[str, pa.Table] | None) -> Path:
    """A page with the viewer and nothing else, which may run the viewer's script and no other."""
    script = (OXA / "viewer.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    block = ""
    if tables is not None:
        text = json.dumps(viewer.data(tables), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        block = f'<script type="application/json" id="traces">{text}</script>'
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>traces</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>body {{ margin: 1rem }} {(OXA / 'viewer.css').read_text()}</style>"
        f"{(OXA / 'viewer.html').read_text()}{block}<script>{script}</script>",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "page.html", make_tables())


def find(browser: Browser, name: str) -> Any:
    return browser.driver.find_element("id", f"trace-{name}")


def texts(browser: Browser, selector: str) -> list[str]:
    """What the elements hold, by `textContent`."""
    return browser.run(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
    )


def questions(browser: Browser) -> list[str]:
    return texts(browser, ".trace-option-question")


def put(browser: Browser, name: str, value: str) -> None:
    """Writes into a field, or walks to an option, as a person does."""
    from selenium.webdriver.common.keys import Keys

    field = find(browser, name)
    if field.tag_name == "select":
        values = browser.run("return [...arguments[0].options].map((option) => option.value)", field)
        field.send_keys(Keys.HOME, *[Keys.ARROW_DOWN] * values.index(value))
        assert field.get_attribute("value") == value
    else:
        field.clear()
        field.send_keys(value)


def click(browser: Browser, name: str, value: str) -> None:
    """Chooses a radio button, which lies under its label."""
    selector = f"label:has(input[name=trace-{name}][value={value}])"
    browser.driver.find_element("css selector", selector).click()


def press(browser: Browser, *keys: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    actions = ActionChains(browser.driver)
    for key in keys:
        actions.send_keys(getattr(Keys, key))
    actions.perform()


def test_the_json_gives_the_tables_back() -> None:
    tables = make_tables()
    data = json.loads(json.dumps(viewer.data(tables), allow_nan=False))
    assert [arm["name"] for arm in data["arms"]] == list(tables)
    for arm, table in zip(data["arms"], tables.values(), strict=True):
        shown = []
        for example in arm["examples"]:
            shown += [(example, "example", example["objective"])]
            shown += [(beside, "beside", "") for beside in example["beside"]]
        for (part, role, objective), row in zip(shown, table.to_pylist(), strict=True):
            response = data["responses"][part["response"]]
            problem = data["problems"][response["problem"]]
            assert (role, objective) == (row["role"], row["objective"])
            assert problem == {"question": row["question"], "answers": row["answers"]}
            assert [data["tokens"][token] for token in response["tokens"]] == row["tokens"]
            for key in ("origin", "verdict", "num_tokens", "cut"):
                assert response[key] == row[key]
            assert response["ppl"] == (
                None if math.isnan(row["ppl"]) else pytest.approx(row["ppl"], abs=1e-4)
            )
            assert np.array(response["before"]) / -100 == pytest.approx(row["before"], abs=0.0051)
            assert np.array(part["after"]) / -100 == pytest.approx(row["after"], abs=0.0051)


def test_what_arms_share_is_stored_once() -> None:
    data = viewer.data(make_tables())
    assert len(data["responses"]) == 6 * 2 + 2 * 2
    assert len(data["problems"]) == 8
    assert len(data["tokens"]) == len(set(data["tokens"])) == 9 + 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_without_a_message_on_wide_and_narrow_screens_light_and_dark(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.errors() == []
    assert browser.overflow() == 0
    assert find(browser, "count").text == "6 of 6 CE examples of oxa_full, by ppl"
    assert questions(browser) == [f"What is p{i}?" for i in range(6)]
    main, beside = (
        browser.driver.find_element("css selector", selector).rect
        for selector in (".trace-main", ".trace-beside")
    )
    if width == 1280:
        assert beside["x"] >= main["x"] + main["width"]
        assert beside["y"] == main["y"]
    else:
        assert beside["y"] >= main["y"] + main["height"]


def test_an_example_is_read_with_its_facts_and_what_stands_beside_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert find(browser, "question").text == "What is p0?"
    assert find(browser, "gold").text == "0"
    assert texts(browser, ".trace-text") == [" w0 w1 w2 w3", "so\n7"]
    main, own = (card.text for card in browser.driver.find_elements("css selector", ".trace-card"))
    for fact in ("CE example", "correct", "1.105", "−0.10 → −0.05", "+0.05"):
        assert fact in main
    for fact in ("student's own", "correct", "not scored", "−0.75 → −2.00", "−1.25"):
        assert fact in own
    assert "Cut" not in main + own
    click(browser, "set", "ul")
    find(browser, "list").click()
    press(browser, "END")
    assert "Cut: the first 2 of 3,000 tokens." in find(browser, "columns").text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("ppl-low", "1.3", [2, 3, 4, 5]),
        ("ppl-high", "1.3", [0, 1]),
        ("length-low", "8", [4, 5]),
        ("length-high", "8", [0, 1, 2, 3, 4]),
        ("verdict", "beside:correct", [0, 3]),
        ("verdict", "example:correct", [0, 1, 2, 3, 4, 5]),
        ("text", "wHAT IS P4", [4]),
        ("text", "w7 w8", [5]),
    ],
)
def test_a_filter_narrows_the_list_and_its_count_and_can_be_cleared(
    browser: Browser, page: Path, name: str, value: str, shown: list[int]
) -> None:
    browser.open(page)
    put(browser, name, value)
    assert questions(browser) == [f"What is p{i}?" for i in shown]
    assert find(browser, "count").text == f"{len(shown)} of 6 CE examples of oxa_full, by ppl"
    assert find(browser, "question").text == f"What is p{shown[0]}?"
    find(browser, "clear").click()
    assert len(questions(browser)) == 6
    assert find(browser, "question").text == f"What is p{shown[0]}?", "what is read stays"


def test_filters_that_nothing_passes_and_arms_without_a_set_say_so(browser: Browser, page: Path) -> None:
    browser.open(page)
    put(browser, "text", "nowhere")
    assert find(browser, "count").text.startswith("0 of 6 CE examples of oxa_full")
    assert "None passes these filters" in find(browser, "count").text
    assert not find(browser, "body").is_displayed()
    find(browser, "clear").click()
    assert find(browser, "body").is_displayed()
    click(browser, "set", "ul")
    assert find(browser, "count").text == "2 of 2 UL examples of oxa_full, by ppl"
    put(browser, "arm", "0")
    assert find(browser, "count").text == "sft has no UL examples: choose another arm or set."
    assert not find(browser, "body").is_displayed()
    assert browser.errors() == []


def test_the_list_is_walked_with_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("arguments[0].focus()", find(browser, "list"))
    for key, index in (("DOWN", 1), ("DOWN", 2), ("UP", 1), ("END", 5), ("DOWN", 5), ("HOME", 0), ("UP", 0)):
        press(browser, f"ARROW_{key}" if key in ("UP", "DOWN") else key)
        assert find(browser, "question").text == f"What is p{index}?"
        selected = browser.driver.find_elements("css selector", "[role=option][aria-selected=true]")
        assert [item.get_attribute("id") for item in selected] == [f"trace-option-{index}"]
        assert find(browser, "list").get_attribute("aria-activedescendant") == f"trace-option-{index}"


def test_every_control_is_reached_with_the_tab_key(browser: Browser, page: Path) -> None:
    browser.open(page)
    reached = []
    for _ in range(14):
        press(browser, "TAB")
        reached.append(
            browser.run("const e = document.activeElement; return e.id || e.name || e.textContent")
        )
    assert reached[:11] == [
        "trace-arm",
        "trace-set",
        "trace-ppl-low",
        "trace-ppl-high",
        "trace-length-low",
        "trace-length-high",
        "trace-verdict",
        "trace-text",
        "trace-clear",
        "trace-list",
        "trace-mode",
    ]
    assert reached[11:13] == [" w0", "so\n"], "each text is one stop"


def test_tokens_are_walked_and_pointed_at_and_tell_their_probabilities(browser: Browser, page: Path) -> None:
    from selenium.webdriver import ActionChains

    browser.open(page)
    own = browser.driver.find_elements("css selector", ".trace-text")[1]
    first, second = own.find_elements("css selector", ".trace-token")
    ActionChains(browser.driver).move_to_element(first).perform()
    assert find(browser, "tip").text.split("\n")[0] == "so↵"
    assert find(browser, "tip").text.split("\n")[1:] == [
        "before",
        "37 %",
        "after",
        "3 %",
        "change",
        "−2.50 nats",
    ]
    ActionChains(browser.driver).move_to_element(find(browser, "question")).perform()
    assert not find(browser, "tip").is_displayed()
    browser.run("arguments[0].focus()", first)
    press(browser, "ARROW_RIGHT")
    assert browser.driver.switch_to.active_element == second
    assert second.get_attribute("aria-describedby") == "trace-tip"
    assert find(browser, "tip").text.split("\n")[0] == "7"
    press(browser, "ARROW_RIGHT", "ARROW_LEFT")
    assert browser.driver.switch_to.active_element == first
    press(browser, "ESCAPE")
    assert not find(browser, "tip").is_displayed()


def shades(browser: Browser, index: int) -> list[str]:
    return browser.run(
        "return [...document.querySelectorAll('.trace-text')[arguments[0]].children].map((e) => e.classList[1])",
        index,
    )


def test_the_three_modes_shade_the_tokens_by_what_they_say(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert shades(browser, 1) == ["trace-down-4", "trace-up-0"]
    changed = texts(browser, "#trace-legend")
    click(browser, "mode", "before")
    assert shades(browser, 1) == ["trace-nats-2", "trace-nats-1"], "37 % and 61 %"
    surprise = texts(browser, "#trace-legend")
    assert surprise != changed
    click(browser, "mode", "after")
    assert shades(browser, 1) == ["trace-nats-4", "trace-nats-1"], "3 % and 61 %"
    assert texts(browser, "#trace-legend") == surprise
    find(browser, "list").click()
    press(browser, "END")
    assert set(shades(browser, 0)) == {"trace-nats-0"}, "the mode stays with the next example"
    click(browser, "mode", "change")
    assert set(shades(browser, 0)) == {"trace-up-2"}, "from -0.6 to -0.05"
    assert texts(browser, "#trace-legend") == changed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_every_shade_has_a_contrast_of_4_5(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, scheme=scheme)
    names = [f"trace-{kind}-{i}" for kind in ("up", "down") for i in range(5)]
    names += [f"trace-nats-{i}" for i in range(6)]
    data = browser.run(
        """
        const box = document.querySelector('.trace-text');
        return arguments[0].map((name) => {
          const span = document.createElement('span');
          span.className = name;
          box.append(span);
          const style = getComputedStyle(span);
          return [style.color, style.backgroundColor, getComputedStyle(box).backgroundColor];
        });
        """,
        names,
    )
    backgrounds = set()
    for name, (color, background, below) in zip(names, data, strict=True):
        seen = below if background == "rgba(0, 0, 0, 0)" else background
        light, dark = sorted((luminance(color), luminance(seen)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name
        backgrounds.add(seen)
    assert len(backgrounds) == 4 + 4 + 5 + 1


def luminance(color: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    channels = (
        np.array([int(value) for value in color.removeprefix("rgb(").removesuffix(")").split(",")]) / 255
    )
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_what_a_model_wrote_is_text_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    hostile = {
        "tokens": [HOSTILE, "", HOSTILE],
        "question": HOSTILE,
        "answers": [HOSTILE],
        "verdict": HOSTILE,
    }
    row = trace("p", "t", "t", [-1.0] * 3, [-0.5] * 3, objective="ce", **hostile)
    tables = {HOSTILE: pa.Table.from_pylist([row], schema=schemas.TRACES)}
    browser.open(write_page(tmp_path / "page.html", tables))
    assert texts(browser, ".trace-text") == [HOSTILE * 2]
    assert find(browser, "question").text == HOSTILE
    assert find(browser, "gold").text == HOSTILE
    assert HOSTILE in find(browser, "count").text
    assert texts(browser, "#trace-arm option") == [HOSTILE]
    browser.run("document.querySelector('.trace-token').focus()")
    assert HOSTILE.replace(" ", "␣") in find(browser, "tip").text
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.driver.title == "traces"
    assert browser.errors() == [], "the policy refused nothing, since nothing tried"


def test_a_character_of_several_tokens_leaves_none_of_them_out_of_sight(
    browser: Browser, tmp_path: Path
) -> None:
    row = trace("p", "t", "t", [-1.0] * 3, [-0.5] * 3, objective="ce", tokens=["😀", "", "!"])
    tables = {"sft": pa.Table.from_pylist([row], schema=schemas.TRACES)}
    browser.open(write_page(tmp_path / "page.html", tables))
    spans = browser.driver.find_elements("css selector", ".trace-token")
    assert all(span.rect["width"] > 3 for span in spans)
    assert not browser.driver.find_elements("css selector", ".trace-beside")


def test_without_traces_there_is_a_sentence_and_without_their_json_no_error(
    browser: Browser, tmp_path: Path
) -> None:
    browser.open(write_page(tmp_path / "none.html", {}))
    assert find(browser, "count").text == "No traces were made."
    assert not find(browser, "controls").is_displayed()
    assert browser.errors() == []
    browser.open(write_page(tmp_path / "nothing.html", None))
    assert browser.errors() == []
