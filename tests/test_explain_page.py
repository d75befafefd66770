"""The page of a trace: whole in itself, harmless, and in a real browser, usable."""

import base64
import hashlib
import html.parser
import json
import re
import shutil

import pytest
import traces

from nvg.explain.page import make_page
from nvg.explain.reader import read_trace

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script ",
    "</script <b",
    "<img src=x onerror=alert(1)>",
    "@DATA@@SCRIPT@",
    "\u2028'\"&amp;",
    "\ud800",
    "\x00\x1b[31m",
    "\u202eesrever",
    "]]>{{constructor}}${1}",
    "",
]


def page_of(path, *records):
    return make_page(read_trace(str(traces.write(path, *records)), print))


@pytest.fixture
def hostile(tmp_path):
    records = [traces.token(index, HOSTILE[index:] + HOSTILE[:index], HOSTILE[:3]) for index in range(len(HOSTILE))]
    branches = [traces.branch(3, 1, HOSTILE[0], HOSTILE)]
    head = traces.header(HOSTILE[:3], model=HOSTILE[0], dtype=HOSTILE[2], prompt_texts=[HOSTILE[0]], nvg=HOSTILE[1])
    return page_of(tmp_path / "x.jsonl", head, *records, *branches, traces.end(0, HOSTILE[2], HOSTILE[0]))


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.inside = [], {}, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.texts.setdefault(tag, []).append("")
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            self.texts[self.inside][-1] += data


def test_nothing_in_a_trace_becomes_markup(hostile, tmp_path):
    harmless = page_of(tmp_path / "y.jsonl", traces.header(), traces.token(0, ["a", "b"]))
    assert [tag for tag, _ in Tags(hostile).tags] == [tag for tag, _ in Tags(harmless).tags]
    data = Tags(hostile).texts["script"]
    assert len(data) == 2
    parsed = json.loads(data[0])
    assert {text for _, text in parsed["texts"]} >= set(HOSTILE)
    assert parsed["about"]["model"] == HOSTILE[0]
    assert data[1] == Tags(harmless).texts["script"][1]
    assert hostile.isascii() == harmless.isascii()


def test_the_policy_allows_the_page_s_own_script_and_style_alone(hostile):
    tags = Tags(hostile)
    (policy,) = [a["content"] for tag, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for rule, texts in (("script-src", tags.texts["script"][1:]), ("style-src", tags.texts["style"])):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert rules.pop(rule) == "'sha256-" + digests[0] + "'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


def test_it_refers_to_nothing_outside(hostile):
    for _, attributes in Tags(hostile).tags:
        assert not {"src", "srcset", "action", "style"} & attributes.keys()
        assert attributes.get("href", "data:,") == "data:,"
    style = Tags(hostile).texts["style"][0]
    assert "url(" not in style
    assert "@import" not in style
    script = Tags(hostile).texts["script"][1]
    assert re.findall(r"https?:[^\"]+", script) == ["http://www.w3.org/2000/svg"]  # a name, which is not fetched
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|fetch|XMLHttp|import\(", script)


def data_of(page):
    return json.loads(re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", page, re.S)[1])


def test_characters_of_the_prompt_are_whole_though_their_tokens_are_not(tmp_path):
    texts = ["a\\xe6", "\\x9d\\xb1", "b\\xe6", "\\x9d", "c\\x41"]
    page = page_of(tmp_path / "x.jsonl", traces.header(prompt_token_ids=[1, 2, 3, 4, 5], prompt_texts=texts))
    assert data_of(page)["prompt"] == "a\N{CJK UNIFIED IDEOGRAPH-6771}b\\xe6\\x9dc\\x41"


SPLIT = [" a\\xe6", "\\x9d", "\\xb1\\xe6", "\\x9d\\xb1!", "\\xff", "\\xf0\\x9f", "\ud800", "\\x9f"]
"""Tokens of a text with the character U+6771 twice, and bytes of none."""


@pytest.fixture
def split(tmp_path):
    records = [traces.token(i, [text, " x"]) for i, text in enumerate(SPLIT)]
    way = ["\\x9d", "\\x9c", "\\xe2"]
    branches = [traces.branch(1, 1, way[0], way[1:]), traces.branch(2, 1, "\\xb2", ["\\xc3", "\\xa9"])]
    head = traces.header(prompt_token_ids=[1, 2], prompt_texts=["say", "\\xc3"])
    return page_of(tmp_path / "x.jsonl", head, *records, traces.end(), *branches)


def test_a_character_of_the_text_is_shown_by_the_last_of_its_tokens(split):
    tokens = data_of(split)["choices"][0]["tokens"]
    shown = [token.get("s", text) for token, text in zip(tokens, SPLIT, strict=True)]
    east = "\N{CJK UNIFIED IDEOGRAPH-6771}"
    assert shown == [" a", "", east, f"{east}!", "\\xff", "\\xf0\\x9f", "\\xed\\xa0\\x80", "\\x9f"]
    assert [branch[2] for token in tokens for branch in token["b"]] == [
        ["", "\N{CJK UNIFIED IDEOGRAPH-675C}", "\\xe2"],
        ["\N{CJK UNIFIED IDEOGRAPH-6772}", "", "\N{LATIN SMALL LETTER E WITH ACUTE}"],
    ]


def test_a_long_text_makes_a_page_of_a_bearable_size(tmp_path):
    stages = [f"stage{number}" for number in range(6)]
    texts = [f" word{number}" for number in range(14)]
    records = [traces.token(index, texts, stages) for index in range(1000)]
    assert len(page_of(tmp_path / "x.jsonl", traces.header(stages), *records)) < 2_000_000


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install nvg[browser]")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=ARGUMENTS, viewport={"width": 1300, "height": 900}
        )
        yield context
        context.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page; fails if it logs anything, raises, or asks for anything but itself."""
    page = browser.new_page()
    faults = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append("a dialog"), dialog.dismiss()))
    page.on(
        "request", lambda request: faults.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
    )
    requests = []
    page.on("request", lambda request: requests.append(request.url))

    def open_page(text):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_page
    page.close()
    assert faults == []
    assert {url for url in requests if not url.startswith("data:")} == {(tmp_path / "page.html").as_uri()}


WORDS = [" there", " was", " a", " king", "\n", " who", " had", " two", " sons", "."] * 9


@pytest.fixture
def story(tmp_path):
    records = [traces.token(i, [word, " other", " third", " fourth"]) for i, word in enumerate(WORDS)]
    branches = [traces.branch(2, 1, " other", [" way", " to", " go"]), traces.branch(2, 2, " third", [" one"])]
    return page_of(tmp_path / "x.jsonl", traces.header(), *records, traces.end(), *branches)


slow = pytest.mark.slow


@slow
def test_tokens_can_be_pointed_at_clicked_and_reached_by_keys(opened, story):
    page = opened(story)
    title, selected = page.locator("#panel h2"), page.locator(".token[aria-selected=true]")
    assert title.inner_text() == "␣there"
    assert (
        page.locator("#about").inner_text()
        == f"made-up, float32 · seed {2**64 - 1} · 90 tokens · ended by length · nvg 0"
    )
    page.hover("#token-3")
    assert (title.inner_text(), selected.inner_text()) == ("␣king", " there")
    page.hover("h1")
    assert title.inner_text() == "␣there"
    page.click("#token-5")
    assert (title.inner_text(), selected.inner_text()) == ("␣who", " who")
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == "␣had"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == "⏎"
    page.keyboard.press("End")
    assert selected.get_attribute("id") == "token-89"
    page.keyboard.press("Home")
    assert selected.get_attribute("id") == "token-0"
    page.keyboard.press("ArrowDown")
    assert selected.get_attribute("id") in ("token-5", "token-6")  # in the line after the first end of line
    page.keyboard.press("ArrowUp")
    assert selected.get_attribute("id") in ("token-0", "token-1")
    page.click("#token-0")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "panel"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "token-0"  # of all tokens one is a tab stop


@slow
def test_the_keyboard_alone_reaches_the_text(opened, story):
    page = opened(story)
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "token-1"


@slow
def test_a_token_shows_its_candidates_through_every_stage(opened, story):
    page = opened(story)
    record = traces.token(0, [WORDS[0], " other", " third", " fourth"])
    rows = [row.inner_text().split("\t") for row in page.locator(".stages tbody tr").all()]
    assert [row[0] for row in rows] == ["model", "topk", "topp"]
    assert [row[1] for row in rows] == ["50,257", "50,257", "2"]
    assert [row[2] for row in rows] == ["", "− 12.5", "− 12.5"]
    assert [row[3].split()[0] for row in rows] == ["4.00", "1.47", "0.54"]
    candidates = [row.inner_text().split("\t") for row in page.locator(".candidates tbody tr").all()]
    rows = [[f"{100 * p:.{1 if p > 0.0995 else 2}f}" for p in probs if p] for _, _, probs in record["candidates"]]
    expected = [[*row, "✕"] if len(row) == 2 else row for row in rows]
    assert [row[1:] for row in candidates] == expected
    assert page.locator(".candidates tr.drawn th").inner_text().startswith("␣there")
    assert page.locator(".candidates .cut").first.get_attribute("title") == "removed by topp"


@slow
def test_branches_can_be_followed_and_left(opened, story):
    page = opened(story)
    told = page.locator("#text").inner_text()
    page.click("#token-2")
    assert page.locator(".branches li").count() == 2
    page.locator(".branches button").first.click()
    assert [span.inner_text() for span in page.locator("#tokens .detour").all()] == [" other", " way", " to", " go"]
    assert page.locator("#detour").inner_text().startswith("If ␣other had come instead of ␣a at token 3")
    assert page.locator("#token-2").get_attribute("class") == "token swapped"
    assert page.locator("#token-3").get_attribute("class") == "token left-behind"
    assert page.locator("#token-1").get_attribute("class") == "token"
    page.keyboard.press("2")
    assert [span.inner_text() for span in page.locator("#tokens .detour").all()] == [" third", " one"]
    page.keyboard.press("Escape")
    assert page.locator("#text").inner_text() == told
    assert not page.locator("#detour").is_visible()
    page.keyboard.press("1")
    page.get_by_text("Back to the text").click()
    assert page.locator("#text").inner_text() == told
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")  # a token without branches
    assert page.locator("#tokens .detour").count() == 0


@slow
def test_tokens_of_a_character_can_each_be_pointed_at(opened, split):
    page = opened(split)
    east = "\N{CJK UNIFIED IDEOGRAPH-6771}"
    assert page.locator("#tokens").inner_text().startswith(f" a{east}{east}!")
    title = page.locator("#panel h2")
    for index, text in enumerate(["␣a\\xe6", "\\x9d", "\\xb1\\xe6"]):
        page.hover(f"#token-{index}")
        assert title.inner_text() == text
    page.click("#token-1")
    page.keyboard.press("1")
    assert page.locator("#tokens").inner_text().startswith(" a\N{CJK UNIFIED IDEOGRAPH-675C}")


@slow
def test_hostile_texts_are_shown_and_do_nothing(opened, hostile):
    page = opened(hostile)
    assert page.locator("#token-0").inner_text() == HOSTILE[0]
    assert page.locator("#token-7").inner_text() == "\\u0000\\u001b[31m"
    assert page.locator("#token-8").inner_text() == "\\u202eesrever"
    assert page.locator("#about").inner_text().startswith(HOSTILE[0])
    assert page.locator(".stages tbody th").nth(3).inner_text() == HOSTILE[2]
    page.click("#token-3")
    page.keyboard.press("1")
    assert page.locator("#tokens .detour").count() == 1 + len(HOSTILE)
    assert page.locator("img, script:not([type])").count() == 1


@slow
def test_choices_are_taken_in_turn(opened, tmp_path):
    records = [
        traces.token(i, [word, " x"], choice=choice) for choice, i, word in [(0, 0, "a"), (0, 1, "b"), (1, 0, "c")]
    ]
    page = opened(page_of(tmp_path / "x.jsonl", traces.header(n=2), *records, traces.end(1, "error", "out of luck")))
    assert page.locator("#tokens").inner_text() == "ab"
    assert "cut off" in page.locator("#about").inner_text()
    page.get_by_text("choice 2").click()
    assert page.locator("#tokens").inner_text() == "c"
    assert page.locator("#about .error").inner_text() == "out of luck"


@slow
def test_a_trace_without_tokens_has_a_page(opened, tmp_path):
    page = opened(page_of(tmp_path / "x.jsonl", traces.header()))
    assert page.locator("#text").inner_text().strip() == "Once"
    assert page.locator("#panel").inner_text() == "No token was drawn."


@slow
def test_a_long_text_is_quick(opened, tmp_path):
    stages = [f"stage{number}" for number in range(6)]
    records = [traces.token(i, [f" word{i}", *(f" w{n}" for n in range(13))], stages) for i in range(1000)]
    page = opened(page_of(tmp_path / "x.jsonl", traces.header(stages), *records))
    page.click("#token-0")
    page.keyboard.press("End")
    assert page.locator("#panel h2").inner_text() == "␣word999"


@slow
@pytest.mark.parametrize("width", [360, 700, 1300])
def test_nothing_runs_out_of_the_window(opened, story, width):
    page = opened(story)
    page.set_viewport_size({"width": width, "height": 800})
    page.click("#token-2")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
