"""Pages of one's own in an offscreen window, against a real daemon: said, confirmed, changed, undone, seen by another."""

import conftest
import pytest
import test_pages
import windowed
from windowed import ENTER, Hand

import batos

ui = windowed.ui
WORLD = {"kiln": {"temperature": 1040, "hot": True, "feeds": {"$ref": "rack"},
                  "readings": [{"day": "2026-11-01", "heat": 600}, {"day": "2026-11-02", "heat": 700}]},
         "rack": {"temperature": 40, "shelves": 6}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(an Inspector, a client of the same daemon, {name: oid})."""
    windowed.need_gl()
    daemon = conftest.DaemonProcess(tmp_path_factory.mktemp("pages"), ("self_knowledge", False), core=0)
    with batos.Client(daemon.endpoint, 60) as client:
        oids = test_pages.make(client, WORLD)
        client.call("index_document", doc_id="glaze.md", text="The ash glaze melts at cone six and runs.")
        hand = Hand(daemon.endpoint)
        hand.online()
        yield hand, client, oids
        hand.close()
    daemon.stop(kill=True)


def say(hand, words):
    """Type what a page shall show, and wait for its form."""
    page = hand.page("pages")
    page.ids.wish.text = ""
    page.ids.wish.focus = True
    hand.type(words)
    hand.key(ENTER)
    hand.until(lambda: page.is_draft and page.page.get("words") == words and page._told is not None, "its form")
    hand.settle()
    return page


def texts(hand, page):
    """What the labels of the parts say."""
    return hand.shown(page.ids.parts)


def drawn(page, kind):
    return [one for one in ui._all_below(page.ids.parts) if isinstance(one, kind)]


def named(page):
    """The names in the list of pages."""
    return [one["value"] for one in page.ids.kept.data if one["value"]]


def test_a_page_is_said_confirmed_kept_changed_and_undone_in_a_window(world):
    hand, client, _ = world
    page = say(hand, "the temperature of my kiln over time")
    assert page.ids.kind.value == "course" and page.ids.objects.text == "kiln" and page.ids.slots.text == "temperature"
    assert drawn(page, ui.Spark)[0].data["values"][-1][1] == 1040
    assert client.call("list_pages")["results"] == []
    hand.press("Keep", page)
    hand.until(lambda: not page.is_draft and page.version == 1, "kept")
    hand.settle()
    row, = client.call("list_pages")["results"]
    assert named(page) == [row["name"]]
    page.ids.title.text = "Heat"
    page.ids.title.dispatch("on_text_validate")
    hand.until(lambda: page.version == 2, "another title")
    assert client.call("show_page", name=row["name"])["result"]["page"]["title"] == "Heat"
    hand.root.undo_last()
    hand.dialog().accept()
    hand.until(lambda: page.version == 1 and page.ids.title.text == row["title"], "undone, and seen")
    page.ids.kind.value = "figures"
    page.fill_anew()
    hand.until(lambda: page.is_draft and page.page["kind"] == "figures", "another kind")
    hand.settle()
    assert "1,040" in texts(hand, page)
    hand.press("Keep", page)
    hand.until(lambda: not page.is_draft and page.version == 2, "kept")
    hand.press("Before", page)
    hand.until(lambda: page.version == 3 and page.page["kind"] == "course", "the version before")
    hand.press("Remove", page)
    hand.until(lambda: page.page is None, "removed")
    hand.settle()
    assert client.call("list_pages")["results"] == [] and named(page) == []
    hand.root.undo_last()
    hand.dialog().accept()
    hand.until(lambda: named(page) == [row["name"]], "it is back")


def test_what_another_client_changes_is_seen_with_the_next_event(world):
    hand, client, oids = world
    page = say(hand, "the current temperature of the rack")
    assert page.ids.kind.value == "figures" and "40" in texts(hand, page)
    test_pages.send(client, oids["rack"], "setSlot_value_", "temperature", 77)
    hand.until(lambda: "77" in texts(hand, page), "the new value")
    made = {"name": "others", "title": "Of another", "kind": "object", "layout": "one",
            "parts": [{"part": "slots", "object": oids["rack"]}]}
    test_pages.send(client, "morphic_ui_obj", "keep_page_", made)
    hand.until(lambda: "others" in named(page), "the page of another")
    page.show("others")
    hand.until(lambda: page.page == made, "it is shown")
    test_pages.send(client, "morphic_ui_obj", "change_page_", "others", "title", "Of somebody")
    hand.until(lambda: page.ids.title.text == "Of somebody", "its new title")


EVERY = [{"part": "heading", "text": "All there is"}, {"part": "text", "text": "A **page** of each."},
         {"part": "figure", "object": "kiln", "slot": "temperature", "unit": "\u00b0C"}, {"part": "slots", "object": "kiln"},
         {"part": "table", "objects": ["kiln", "rack"], "slots": ["temperature", "hot"]},
         {"part": "rows", "object": "kiln", "slot": "readings"},
         {"part": "plot", "objects": ["kiln"], "slot": "readings", "column": "heat"},
         {"part": "bars", "objects": ["kiln", "rack"], "slot": "temperature"}, {"part": "graph", "objects": ["kiln"], "hops": 1},
         {"part": "history", "objects": ["kiln"], "most": 4}, {"part": "passages", "words": "ash glaze", "most": 2},
         {"part": "message", "object": "kiln", "selector": "slotNames", "label": "Name the slots"},
         {"part": "figure", "object": "kiln", "slot": "nowhere"}]


def every(oids):
    """A page of all kinds of parts."""
    parts = []
    for part in EVERY:
        told = dict(part)
        if "object" in told:
            told["object"] = oids[told["object"]]
        if "objects" in told:
            told["objects"] = [oids[name] for name in told["objects"]]
        parts.append(told)
    return {"name": "every", "title": "Every part", "kind": "object", "layout": "one", "parts": parts}


def test_each_kind_of_part_is_drawn_and_one_that_is_not_known_says_so(world):
    hand, client, oids = world
    assert {part["part"] for part in EVERY} == set(batos._PAGE_PARTS)
    page = hand.page("pages")
    page.offer(every(oids))
    hand.until(lambda: page._told and len(page._told) == len(EVERY), "its parts")
    hand.settle()
    said = texts(hand, page)
    for words in ("All there is", "1,040", "\u00b0C", "ash glaze", "changes", "Name the slots", "no slot 'nowhere'"):
        assert words in said, words
    tables, bars, net = (drawn(page, kind) for kind in (ui.TableDrawing, ui.BarsDrawing, ui.NetDrawing))
    assert [len(table.data["rows"]) for table in tables] == [6, 2, 2] and len(bars[0].data["bars"]) == 2
    assert {name for _, name in net[0].data["nodes"]} == {"kiln", "rack"} and len(net[0].spots) == 2
    assert [value for _, value in drawn(page, ui.Spark)[0].data["values"]] == [600, 700]
    hand.press("Name the slots", page)
    hand.until(lambda: "readings" in texts(hand, page).split("Name the slots")[1], "its answer")
    unknown = ui.Drawn(page).widget({"part": "hologram"})
    assert "draws no hologram" in hand.shown(unknown)


def test_a_click_on_an_object_opens_it(world):
    hand, _, oids = world
    page = hand.page("pages")
    page.offer({**every(oids), "parts": [{"part": "graph", "objects": [oids["kiln"]], "hops": 1}]})
    hand.until(lambda: page._told and len(page._told) == 1 and drawn(page, ui.NetDrawing)[0].spots, "the graph")
    hand.settle()
    net, = drawn(page, ui.NetDrawing)
    x, y, right, top, _ = next(spot for spot in net.spots if spot[4] == oids["rack"])
    hand.click(net, *net.to_window((x + right) / 2, (y + top) / 2))
    hand.until(lambda: hand.root.page.name == "objects" and hand.root.page.oid == oids["rack"], "the object")


def test_what_cannot_be_is_said_where_one_looks(world):
    hand, _, _ = world
    page = say(hand, "the temperature of my kiln over time")
    page.ids.objects.text = "kilm"
    page.fill_anew()
    hand.until(lambda: "kilm" in page.ids.note.text, "why not")
    assert page.is_draft and page.page["kind"] == "course"
    page.ids.objects.text, page.ids.kind.value = "rack", "rows"
    page.fill_anew()
    hand.until(lambda: "nothing that a page of the kind rows shows" in page.ids.note.text, "why not")
