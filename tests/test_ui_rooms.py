"""How pages use their room, in an offscreen window of no daemon: no half is empty, and words are not cut where there is room."""

import math

import pytest
import windowed
from windowed import Hand

import batos

ui = windowed.ui


@pytest.fixture(scope="module")
def hand():
    hand = Hand("tcp://127.0.0.1:9")
    yield hand
    hand.close()


def turned(hand, times=3):
    for _ in range(times):
        hand.loop.idle()


def said_of(rows):
    return "\n".join(ui.unmarked(one["text"]) for one in rows.data)


def test_a_figure_s_line_has_as_many_points_as_can_be_told_apart_and_looks_the_same():
    values = [(60.0 * n, 50 + 40 * math.sin(n / 20)) for n in range(2880)]
    values[1234] = 60.0 * 1234, 999.0
    few = ui.thinned(values, 100)
    assert len(few) <= 404 and few == sorted(few) and set(few) <= set(values)
    assert values[1234] in few and few[0] == values[0] and few[-1] == values[-1]
    assert min(few, key=lambda one: one[1])[1] == min(values, key=lambda one: one[1])[1]
    assert ui.thinned(values[:50], 100) == values[:50] and ui.thinned([], 100) == []
    spark = ui.Spark(size=(220, 110))
    assert len(spark._places(values, 0, 999)) < 800


def test_what_a_figure_says_is_whole_where_there_is_room_for_it(hand, monkeypatch):
    said, texture_of = [], ui.texture_of

    def noted(markup, *how):
        said.append(ui.unmarked(markup))
        return texture_of(markup, *how)
    monkeypatch.setattr(ui, "texture_of", noted)
    spark = ui.Spark(size=(172, 110))
    values = [(0.0, 50834.0), (60.0, 50835.0)]
    data = {"title": "disk free", "unit": "MB", "values": values, "when": lambda s: "now" if s else "4.6 min ago"}
    with spark.canvas:
        spark.draw(data)
    assert {"disk free", "50,835 MB", "4.6 min ago"} <= set(said)
    said.clear()
    spark.width = 110
    with spark.canvas:
        spark.draw(data)
    assert "50,835 MB" in said and "disk free" not in said               # the figure stands, its name is cut
    with spark.canvas:
        spark.draw({**data, "values": [], "nothing": "measured at each heartbeat"})
    assert said[-1] == "measured at each heartbeat"


def test_figures_that_were_not_measured_yet_have_no_empty_place(hand):
    page = hand.page("life")
    page.store.samples.clear()
    page.draw_figures()
    turned(hand)
    assert len(page.ids.sparks.children) == len(ui.SPEC["sparks"]) and page.ids.sparks.cols == 5
    for at in (1.0, 2.0):
        page.store.samples.append((at, {"memory_mb": 80.0, "image_mb": 3.0, "disk_free_mb": 5e4}))
    page.draw_figures()
    turned(hand)
    titles = [spark.data["title"] for spark in page.ids.sparks.children[::-1]]
    assert titles == ["memory", "image", "disk free"] and page.ids.sparks.cols == 2
    page.store.samples.append((3.0, {"heartbeat": {"cem": {"cem": 0.5}}, "memory_mb": 81.0}))
    page.draw_figures()
    assert "entropy" in [spark.data["title"] for spark in page.ids.sparks.children]
    page.store.samples.clear()
    page.draw_figures()


def test_where_a_list_says_all_or_nothing_it_has_the_whole_room(hand):
    page = hand.page("life")
    halves, lines = page.ids.halves, page.ids.lines
    page.store.state["settings"] = {"read_threads": 7, "core_key": "(not set)", "core": batos.SETTINGS["core"].default}
    page.ids.tabs.chosen = "settings"
    turned(hand)
    assert lines.parent is None and page.ids.rows.width == pytest.approx(halves.width, abs=2)
    said = " ".join(said_of(page.ids.rows).split())
    for name in ("read_threads", "core_key", "core"):
        assert " ".join(batos.SETTINGS[name].help.split())[:40] in said
    assert f"as it comes: {batos.SETTINGS['read_threads'].default}" in said and "not set" in said
    page.ids.tabs.chosen = "failures"
    page._listed({"status": "OK", "results": []}, page._failure_row)
    assert lines.parent is None and said_of(page.ids.rows) == page.NOTHING["failures"]
    change = {"change": "1.0", "at": {"$time": "2026-11-30T02:00:00Z"}, "command": "uses", "who": "local",
              "cycle": None, "why": "", "changes": []}
    page.ids.tabs.chosen = "changes"
    page._listed({"status": "OK", "results": [change]}, ui.change_row)
    turned(hand)
    assert lines.parent == halves and lines.data and 0.5 < page.ids.rows.width / halves.width < 0.7
    page.store.state.pop("settings")
    page.ids.tabs.chosen = "events"


def test_a_setting_s_words_are_those_of_the_daemon():
    assert set(ui.SETTINGS) == set(batos.SETTINGS)
    for name, (default, unit, what_for) in ui.SETTINGS.items():
        assert (default, unit, what_for) == (batos.SETTINGS[name].default, batos.SETTINGS[name].unit, batos.SETTINGS[name].help)
    assert not [name for name, one in batos.SETTINGS.items() if one.secret and one.default]


def test_an_answer_of_one_line_is_followed_by_why_and_a_failure_by_what_was_done(hand):
    page = hand.page("ask")
    page.cycle, page._steps = "0x1", []
    page._whys = {"0x1": ["there was nothing over which anybody could speak"]}
    page._report = {"cycle": "0x1", "mission": "What do giraffes eat?", "state": "COMPLETE", "answer": "Nothing is known."}
    page.show()
    assert "why it is answered so" in said_of(page.ids.said) and "nothing over which" in said_of(page.ids.said)
    page._report = {**page._report, "answer": "One line of many.\n" * 90}
    page.show()
    assert "why it is answered so" not in said_of(page.ids.said)         # a long one stands by itself
    page._report = {**page._report, "state": "FAILED", "type": "direct_synthesis", "reason": {"code": "X", "details": "no."}}
    del page._report["answer"]
    page._steps = [{"name": "recall", "state": "DECOMPOSING", "seconds": 0.5, "at": {"$time": "2026-11-30T02:00:00Z"},
                    "answer": {"found": 7}}]
    page.show()
    said = said_of(page.ids.said)
    assert said.index("X") < said.index("ask it again") < said.index("what it did until then") < said.index("recall")
    page.pressed("again 0")
    assert page.ids.ask.text == "What do giraffes eat?"
    page.ids.ask.text, page.cycle, page._report, page._steps = "", None, {}, []


def test_tiers_are_as_high_as_what_they_say(hand):
    page = hand.page("experts")
    pane = page.ids.tiers.children[0]
    pane.add_widget(ui.Widget(size_hint_y=None, height=300))
    turned(hand, 5)
    assert page.ids.tiers.height >= pane.minimum_height > 300
    pane.remove_widget(pane.children[0])
    turned(hand, 5)
    assert page.ids.tiers.height < 300


def test_who_delegates_further_down_is_looked_for_through_the_whole_image(hand, monkeypatch):
    page, asked = hand.page("objects"), []
    monkeypatch.setattr(page.store, "ask", lambda command, then, **how: asked.append((how["parent"], how["after"], then)))
    monkeypatch.setattr(page, "_fill_graph", lambda: None)
    page.oid, page.ids.tabs.chosen = "0x1", "graph"
    page._children, page._below, page._grandchildren = [{"oid": "0x2"}], {}, []
    page._ask_grandchildren(["0x2"])
    nobody = {"status": "OK", "results": [], "result": {"after": "0x7d0"}}
    asked[-1][2](nobody)
    asked[-1][2]({"status": "OK", "results": [{"oid": "0x900", "name": "far", "slots": []}], "result": {"after": None}})
    assert [one[:2] for one in asked] == [("0x2", "0x0"), ("0x2", "0x7d0")] and page._below == {"0x900": "0x2"}
    page.oid, page.ids.tabs.chosen = "", "slots"


def test_a_long_line_in_a_field_is_seen_where_the_cursor_is(hand):
    page = hand.page("search")
    field, rest = page.ids.query, " the lamp burns" * 400
    field.text = f"first{rest} last"
    line, ends = field._lines[0], field._get_text_width(field.text, field.tab_width, field._label_cached)
    for column in (0, len(line) // 2, len(line)):
        field.cursor = column, 0
        turned(hand)
        rect = field._lines_rects[0]
        assert rect.texture and rect.texture.width < 4000 and rect.size[0] > 0.5 * field.width
        texture, (inside, _) = field._part_seen(line, field.scroll_x, 0)
        assert 0 <= inside < 20 and texture.width - inside >= min(field.width - 40, ends - field.scroll_x - 2)
    assert field.scroll_x > field.width
    field.text = "battery"                               # a page sets it, or all is chosen and typed over
    turned(hand)
    assert field.scroll_x == 0 and field._lines_rects[0].size[0] == pytest.approx(field._wide("battery"), abs=2)
    field.text = ""
    turned(hand)


def test_objects_are_looked_for_as_one_types(hand, monkeypatch):
    page, asked = hand.page("objects"), []
    monkeypatch.setattr(page.store, "ask", lambda command, then, **how: asked.append((command, how.get("fields", {}))))
    page.ids.query.focus = True
    hand.type("lamp")
    hand.until(lambda: any(fields.get("words") == "lamp" for _, fields in asked), "what is typed")
    assert page.ids.query.focus
    page.ids.query.text = ""
    page.find()


def test_the_cursor_of_a_field_stands_where_the_next_letter_comes_also_in_what_goes_left(hand):
    field = hand.page("search").ids.query
    words = "\u05e9\u05dc\u05d5\u05dd"
    field.text = f"{words} ab"
    turned(hand)
    line, left = field._lines[0], field.x + field.padding[0]
    whole, ab = field._wide(line), field._wide("ab")
    field.cursor = 0, 0
    assert field.cursor_offset() == pytest.approx(whole, abs=2)          # it begins at the right
    field.cursor = len(words), 0
    assert ab < field.cursor_offset() < whole - field._wide(words) + 3
    field.cursor = len(line), 0
    assert field.cursor_offset() == pytest.approx(ab, abs=2)             # behind its last letter
    for column in (0, 2, len(words), len(line)):
        field.cursor = column, 0
        x = field.cursor_offset()
        assert field._seen_x(line, field.get_cursor_from_xy(left + x, field.center_y)[0]) == pytest.approx(x, abs=2)
    field.text = "ab"
    field.cursor = 1, 0
    assert field.cursor_offset() == pytest.approx(field._wide("a"), abs=1)
    field.text = ""


def test_what_an_expert_is_stands_at_the_width_that_there_is(hand):
    page = hand.page("experts")
    page._told = {"ALFRED": {"expert": "ALFRED", "tier": "hot"}}
    page.ids.rows.fill([ui.row("ALFRED", value="ALFRED")])
    page.ids.steps.width = 12                            # as before the page was laid out
    page.ids.rows.choose(0)
    assert page.PROTOCOL not in said_of(page.ids.steps).replace("\n", " ")
    page.ids.steps.width = 500
    hand.until(lambda: page.PROTOCOL in said_of(page.ids.steps).replace("\n", " "), "the hint is whole")
    page._told = {}
    page.ids.rows.fill([])
