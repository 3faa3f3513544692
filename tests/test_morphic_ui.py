"""The Inspector in an offscreen window, in this process, against a real daemon: what is typed and clicked, then seen."""

import itertools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import conftest
import pytest
import windowed
from windowed import DOWN, END, ENTER, ESCAPE, F1, F5, Hand, until

import batos

ui = windowed.ui
ui.LOOKED_AT_S = 0.0                                     # these hands are quick
ROOT = pathlib.Path(ui.__file__).parent
MANUAL = (ROOT / "tests" / "data" / "vesper.md").read_text("utf-8")
HOSTILE = "[color=ff0000]red[/color] [ref=x]click[/ref] & \x1b[31m \u202e back \u4e2d\u6587 \U00012000 valve [b]bold"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def shot(hand, name):
    """Keep a picture of the window for who wants to look: where INSPECTOR_SHOTS names a folder."""
    if "INSPECTOR_SHOTS" in os.environ:
        for _ in range(4):
            hand.loop.idle()
        hand.root.export_to_png(str(pathlib.Path(os.environ["INSPECTOR_SHOTS"], f"{name}.png")))


class World:
    """A daemon with documents and objects, and one Inspector on it for all tests; Kivy has one window in a process."""

    def __init__(self, folder):
        self.folder, self.endpoint = folder, f"tcp://127.0.0.1:{free_port()}"
        self.start()
        self.client = batos.Client(self.endpoint)
        for number in range(300):
            self.client.call("index_document", doc_id=f"note {number}", text=f"Lamp {number} hangs in hall {number % 7}.")
        self.client.call("index_document", doc_id="vesper.md", text=MANUAL)
        self.client.call("index_document", doc_id="hostile", text=HOSTILE)
        self.hand = Hand(self.endpoint)
        self.hand.online()

    def start(self):
        options = {"endpoint": self.endpoint, "generate": False}
        self.daemon = conftest.DaemonProcess(self.folder, *options.items(), core=0.3)

    def close(self):
        self.hand.close()
        self.client.close()
        self.daemon.stop(kill=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    windowed.need_gl()
    world = World(tmp_path_factory.mktemp("inspector"))
    yield world
    world.close()


@pytest.fixture
def hand(world):
    for one in [one for one in world.hand.window.children if isinstance(one, ui.Dialog)]:
        one.dismiss(animation=False)
    world.hand.online()
    return world.hand


@pytest.fixture
def clone(world):
    """A new object with a slot."""
    oid = world.client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
    world.client.call("send_message", target=oid, selector="setSlot_value_", args=["price", 4])
    return oid


def slot(world, oid, name):
    return world.client.call("inspect", target=oid)["result"]["slots"].get(name, {}).get("value")


# Everywhere


def test_every_page_opens_by_its_key_and_shows_something(hand):
    for number, name in enumerate(ui.PAGES, 1):
        hand.key(ord(str(number)), "ctrl")
        hand.settle()
        assert hand.root.page.name == name and len(hand.shown(hand.root.page)) > 100


def test_f1_tells_what_the_page_does_and_escape_closes_that_but_never_the_window(hand):
    hand.page("search")
    hand.key(F1)
    assert ui.PAGES["search"]["help"][:40] in hand.shown(hand.dialog())
    for _ in range(5):
        hand.key(ESCAPE)
        hand.settle()
    hand.until(lambda: not [one for one in hand.window.children if isinstance(one, ui.Dialog)])
    assert hand.loop.status == "started" and hand.root.page.name == "search"


def test_hidden_pages_are_told_nothing(hand):
    pages = [hand.page(name) for name in ui.PAGES]
    heard = {getattr(function, "__self__", None) for functions in hand.store._listeners.values() for function in functions}
    assert [page.name for page in pages if page in heard] == [hand.root.page.name]
    assert sum(page.parent is not None for page in pages) == 1


def test_a_splitter_that_is_dragged_stays_so_at_the_next_launch(hand):
    from kivy.tests.common import UnitTestTouch
    page = hand.page("search")
    split = next(one for one in ui._all_below(page) if isinstance(one, ui.Split))
    touch = UnitTestTouch(*split.to_window(split._edge() + 2, split.center_y))
    touch.touch_down()
    touch.touch_move(split.x + split.width * 0.6, split.center_y)
    touch.touch_up()
    ui.write_layout(hand.app.layout)
    assert ui.read_layout()["splits"]["search"] == pytest.approx(0.6, abs=0.02)
    split.share = 0.46


# Search


def test_words_are_searched_by_keys_alone_and_a_result_opens_at_its_place(hand):
    page = hand.page("search")
    page.ids.query.text = ""
    page.ids.rows.focus = True
    hand.key(ord("/"))
    hand.until(lambda: page.ids.query.focus, "the cursor")
    hand.type('darkness "twelve"')
    page.ids.query.dispatch("on_text_validate")
    hand.settle()
    row = page.ids.rows.data[0]
    assert "vesper.md:20" in row["text"] and "darkness" in row["text"] and row["bar"] > 0 and "words (rank 1)" in row["text"]
    hand.key(DOWN)
    assert page.ids.rows.focus
    hand.key(ENTER)
    hand.settle()
    assert "vesper.md" in page.ids.reader.title
    lit = [line for line in page.ids.reader.ids.rows.data if line["value"] and line["value"][0] in range(20, 25)]
    assert lit and all(line["ground"] == "raised" for line in lit) and any("[ref=span]darkness" in line["text"] for line in lit)
    assert hand.shown(page.ids.reader.ids.rows).count("\n") > 5        # what is lit is in sight
    wide = hand.dialog()                                 # Enter opened it in front of everything too
    hand.until(lambda: "vesper.md" in hand.shown(wide), "the wide reader")
    hand.key(ESCAPE)
    hand.until(lambda: not [one for one in hand.window.children if isinstance(one, ui.Dialog)])
    hand.key(ESCAPE)
    assert not page.ids.reader.title


def test_filters_narrow_and_nothing_found_is_said(hand):
    page = hand.page("search")
    page.ids.query.text = "lamp"
    page.filters["doc_id"].text = "note 12"
    page.ask()
    hand.settle()
    assert [one["value"]["chunk"]["doc_id"] for one in page.ids.rows.data] == ["note 12"]
    page.filters["doc_id"].text, page.ids.query.text = "", "zzqqxx"
    page.ask()
    hand.settle()
    assert ui.TEXTS["nothing"] in hand.shown(page)
    page.ids.query.text = "lamp"
    page.filters["since"].text = "never"
    page.ask()
    hand.settle()
    assert "ISO 8601" in page.ids.note.text
    page.filters["since"].text = ""
    page.filters["level"].dispatch("on_release")
    hand.settle()
    assert page._fields["level"] != ui.COMMANDS["search_memory"]["fields"]["level"]["default"]
    page.filters["level"].value = ui.COMMANDS["search_memory"]["fields"]["level"]["default"]


def test_the_list_of_results_goes_on_where_it_ends(hand):
    page = hand.page("search")
    page.ids.query.text = "lamp hangs hall"
    page.ask()
    hand.settle()
    assert len(page.ids.rows.data) == page.PAGE
    page.ids.rows.focus = True
    for _ in range(3):
        hand.key(END)
        page.ids.rows.keyboard_on_key_down(None, (END, "end"), "", [])
        hand.settle()
    found = [one["value"]["chunk"]["doc_id"] for one in page.ids.rows.data]
    assert len(found) > page.PAGE and len(set(found)) == len(found)


def test_ten_thousand_rows_are_a_few_widgets(hand):
    rows = hand.page("life").ids.lines
    rows.fill([ui.row(f"row {number}", height=30 + number % 3, value=number) for number in range(10_000)])
    for _ in range(5):
        hand.loop.idle()
    assert len(rows.children[0].children) < 100
    rows.keyboard_on_key_down(None, (END, "end"), "", [])
    hand.until(lambda: any(one.index == 9999 and one.chosen for one in rows.children[0].children), "the last row")
    assert rows.chosen_row == 9999


def test_a_window_that_nobody_touches_wakes_seldom_until_something_comes(world, hand):
    app, clock = hand.app, ui.Clock
    hand.settle()
    app._take_pace(ui.LEFT)
    health = {"event": "health", "health": hand.store.health}
    hand.store.bridge.arrived.append(("event", health))  # as each second
    app._drain()
    assert app.pace == ui.LEFT and clock._max_fps == ui.PACES[ui.LEFT][0] < 10
    hand.store.look_anew()
    hand.until(lambda: app.pace == ui.BUSY, "an answer")
    app._take_pace(ui.LEFT)
    hand.key(F1)
    assert app.pace == ui.BUSY and clock._max_fps == ui.PACES[ui.BUSY][0]


def test_its_pace_gets_slower_by_itself(hand, monkeypatch):
    monkeypatch.setattr(ui, "PACES", [(frames, lasts_s and 0.01) for frames, lasts_s in ui.PACES])
    hand.app._busy()
    hand.until(lambda: hand.app.pace == ui.LEFT, "the slowest pace")


def test_text_that_would_be_markup_is_shown_as_text(hand):
    page = hand.page("search")
    page.ids.query.text = "valve bold"
    page.ask()
    hand.settle()
    row = page.ids.rows.data[0]
    assert row["value"]["chunk"]["doc_id"] == "hostile" and "[color=ff0000]" not in row["text"] and "[ref=x" not in row["text"]
    page.ids.rows.choose(0)
    page.look()
    hand.settle()
    assert "&bl;ref=x&br;" in hand.shown(page.ids.reader) and "\x1b" not in hand.shown(page)
    assert ("cuneiform" in hand.root.ids.status.text) == ("CUNEIFORM" in ui.FONTS.missing)


def drawn(rows, index):
    """Return the text that is drawn of a row, after what does not fit was cut."""
    view = next(one for one in rows.children[0].children if one.index == index)
    return " ".join(word.text for label in view.labels for line in label._cached_lines for word in line.words)


@pytest.fixture
def narrow(hand):
    before = hand.window.size
    hand.window.size = 1024, 768
    for _ in range(4):
        hand.loop.idle()
    yield hand
    hand.window.size = before
    for _ in range(4):
        hand.loop.idle()


def test_a_result_shows_its_passage_in_a_narrow_window_and_a_title_for_a_path(world, narrow):
    hand, page = narrow, narrow.page("search")
    path = "/home/somebody/documents/of/the/observatory/at/the/very/end/of/a/long/path/quokkas.md"
    text = "# Quokkas at noon\n\n## Where they sleep when the sun is high\n\n"
    text += "The marker5555 stands beside the filled dish of quokkas. " * 9
    world.client.call("index_document", doc_id=path, text=text)
    page.ids.query.text = "quokkas marker5555 file beside dish giraffes"
    page.ask()
    hand.settle()
    hand.until(lambda: page.ids.rows.width < 500 and any(one.index == 0 for one in page.ids.rows.children[0].children), "rows")
    hand.until(lambda: "words (rank" in drawn(page.ids.rows, 0), "the row was made for this width")
    said = drawn(page.ids.rows, 0)
    shot(hand, "search at 1024")
    assert said.split()[4:8] == ["The", "marker5555", "stands", "beside"]
    assert "quokkas.md:" in said and path not in said.replace(" ", "")
    assert said.split()[1:3] == ["Quokkas", "at"]
    page.ids.rows.choose(0)
    page.look()
    hand.settle()
    assert page.ids.reader.title.startswith("[b]Quokkas at noon[/b]")
    world.client.call("unindex_document", doc_id=path)
    page.ids.reader.clear()


def test_bars_tell_relevance_and_what_matched_alone_is_lit(world, hand):
    page = hand.page("search")
    world.client.call("index_document", doc_id="lights", text="Café marker5555, marker5553, a file, filled Files.")
    page.ids.query.text = "marker5555 file cafe"
    page.ask()
    hand.settle()

    def lit():
        found = next(one for one in page.ids.rows.data if one["value"]["chunk"]["doc_id"] == "lights")
        return re.findall(r"\[ref=hit\](.*?)\[/ref\]", found["text"])
    hand.until(lambda: lit() == ["Café", "marker5555", "file", "Files"], "what matched is lit")
    assert (page.ids.rows.data[0]["bar"], page.ids.rows.data[0]["side"]) == (1, ui.marked("100%", "soft"))
    page.ids.query.text = "lights of zyzzyva brontosaurus halogen quux"
    page.ask()
    hand.settle()
    assert page.ids.rows.data and max(one["bar"] for one in page.ids.rows.data) < 0.5
    world.client.call("unindex_document", doc_id="lights")


# Ask


def said(page):
    """Return the markup of all that the page Ask shows below its tabs."""
    return "\n".join(one["text"] for one in page.ids.said.data)


def asked(hand, question):
    page = hand.page("ask")
    before = page.cycle                                  # which may have been of the same question
    page.ids.ask.focus = True
    hand.type(question)
    page.ids.ask.dispatch("on_text_validate")
    hand.until(lambda: page.cycle != before and page._report.get("mission") == question, "the cycle")
    return page


def test_a_question_is_thought_about_and_its_citations_open(world, hand):
    page, seen = asked(hand, "How long does the mast run in full darkness?"), []

    page.ids.tabs.chosen = "thought"

    def look():
        seen.extend(state for state, *_, running in page.timeline() if running)
        return page.finished
    hand.until(look, "the answer")
    hand.settle()
    entered = {state for state, _ in hand.store.cycles[page.cycle]}
    assert {"DECOMPOSING", "DELEGATING", "SYNTHESIZING"} <= entered and set(seen) <= entered | {"IDLE"}
    steps = page.ids.drawing.data["steps"]
    facets = {ui.facet_text(pillar): took_s for pillar, took_s in page._data["facet_seconds"].items()}
    assert len(facets) == 2 and all(took_s >= 0 for took_s in facets.values())
    assert [name for _, name, *_ in steps] == ["recall", "plan", "who speaks", "recall for facets", *facets, "facets", "gate"]
    bars = {name: (persona, took_s) for persona, name, _, took_s, _ in steps if name in facets}
    assert bars == {name: ("BABS", took_s) for name, took_s in facets.items()}
    assert sum(facets.values()) <= next(one[3] for one in steps if one[1] == "recall for facets") + 0.01
    steps = [one for one in steps if one[1] not in facets]
    begins, ends = [one[2] for one in steps], [one[2] + one[3] for one in steps]
    assert begins == sorted(begins) and max(ends) <= page.ids.drawing.data["seconds"] + 0.05
    voices = page.ids.voices
    assert len(voices.lists) == 2 and [said_of(rows).split()[0] for rows in voices.lists.values()] == ["BABS", "BABS"]
    first, second = voices.lists.values()                # side by side, each where the other is not
    hand.until(lambda: first.right < second.x and first.top == second.top, "their places")
    assert "was asked: " in said_of(first) and page.ids.said.height == 0
    key = next(one["value"] for one in first.data if one["value"])
    voices.dispatch("on_choice", key)                    # its passage opens in place
    hand.until(lambda: any(one.get("lit") for one in first.data) and "solar panel" in said_of(first), "all of its passage")
    voices.dispatch("on_choice", key)
    assert "solar panel" not in said_of(first)
    page.ids.tabs.chosen = "steps"
    assert "gate" in said(page)
    page.ids.tabs.chosen = "answer"
    assert "twelve" in said(page) and "[ref=1]" in said(page)
    lit = " ".join("".join(re.findall(r"\[ref=span\](.*?)\[/ref\]", one["text"])) for one in page.ids.said.data)
    assert " ".join(lit.split()) == "In full darkness the mast runs for twelve days."     # of its passage
    page.pressed("1")
    assert page.ids.said.chosen_row == "1"
    page.pressed("read 1")
    reader = next(one for one in ui._all_below(hand.dialog()) if isinstance(one, ui.Reader))

    def opened():                                        # whole, however much of it the window has room for
        rows = " ".join(one["text"] for one in reader.ids.rows.data)
        return "vesper.md" in hand.shown(hand.dialog()) and "darkness" in rows
    hand.until(opened, "the document")
    hand.key(ESCAPE)


def test_an_answer_is_marked_with_what_would_be_right(world, hand):
    page = asked(hand, "Where must the wind vane point?")
    hand.until(lambda: page.finished, "the answer")
    page.ids.remark.text = "to [b]true[/b] north"
    hand.press("Wrong", page)
    hand.settle()
    report = next(one for one in world.client.call("list_cycles")["results"] if one["cycle"] == page.cycle)
    assert (report["feedback"]["mark"], report["feedback"]["note"]) == ("wrong", "to [b]true[/b] north")
    assert "marked wrong" in said(page) and "\u2717" in page.ids.rows.data[0]["text"]


def test_what_memory_does_not_know_is_said_and_a_cycle_can_be_cancelled(world, hand):
    page = asked(hand, "What do giraffes eat?")
    hand.until(lambda: page.finished, "the answer")
    assert "nothing in memory" in said(page)
    page = asked(hand, "How is the mast paired with a base station?")
    hand.press("Cancel", page)
    hand.until(lambda: not page.running, "its end")
    hand.settle()
    assert page._report["state"] in ui.ENDED and page.ids.note.text


def test_the_words_of_an_answer_are_shown_as_they_come(hand):
    page = hand.page("ask")
    page.cycle, page._report, page.finished = "0xffff", {"state": "SYNTHESIZING", "mission": "x"}, False
    for piece in ("Scan it. [1]", " Scan [b]locked [1]."):
        hand.store._on_event({"event": "tokens", "cycle": "0xffff", "text": piece})
    shown = ui.unmarked(said(page))
    assert "Scan it. [1] Scan [b]locked [1]." in shown and "provisional" in shown
    page.cycle = None


# Objects


def listed(page):
    """Return the text of all rows of the page Objects."""
    return "\n".join(ui.unmarked(one["text"]) for one in page.rows.data)


def test_objects_are_dived_into_and_back(hand):
    page = hand.page("objects")
    page.open("genesis_obj")
    hand.settle()
    page.open("robin_prototype_obj")
    hand.settle()
    names = [one["value"][0] for one in page.rows.data]
    page.rows.choose(names.index("synthesize_response_for_"))
    page.dive(page.rows.chosen_row)
    hand.settle()
    assert page.kind == "method" and "primitive" in listed(page)
    hand.key(276, "alt")
    hand.settle()
    assert page.value("name") == "ROBIN"
    hand.key(275, "alt")
    hand.settle()
    assert page.kind == "method"


def test_who_answers_a_selector_and_who_delegates_is_shown(world, hand, clone):
    world.client.call("send_message", target=clone, selector="setSlot_value_", args=["parent*", [{"$ref": "genesis_obj"}]])
    page = hand.page("objects")
    page.open("genesis_obj")
    page.ids.tabs.chosen = "selectors"
    hand.settle()
    said = {one["value"][0]: one["text"] for one in page.rows.data}
    assert "its own" in said["description"] and "pLLM_obj" in said["lora_repository"] and "BAT OS itself" in said["clone"]
    page.ids.tabs.chosen = "graph"
    hand.until(lambda: clone in ranked(page, "below", 0), "who delegates to it")
    assert {node["name"] for node in page.graph.data["above"][0]} == {"pLLM_obj", "traits_obj"}
    hand.until(lambda: node_spot(page, clone), "its node")
    hand.click(None, *page.graph.to_window(*node_spot(page, clone)))
    hand.until(lambda: page.oid == clone, "what was clicked")
    page.ids.tabs.chosen = "slots"


def ranked(page, side, hop):
    """Return the oids of a rank of the graph, or ()."""
    ranks = page.graph.data[side]
    return [node["oid"] for node in ranks[hop]] if hop < len(ranks) else ()


def node_spot(page, oid):
    """Return the middle of a node of the graph, where it is drawn."""
    found = next((spot for spot in page.graph.spots if spot[4] == oid), None)
    return found and ((found[0] + found[2]) / 2, (found[1] + found[3]) / 2)


def test_the_graph_goes_several_hops_zooms_moves_and_its_nodes_tell_more(world, hand, clone):
    from kivy.tests.common import UnitTestTouch
    client = world.client
    child, grandchild = (client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"] for _ in range(2))
    for oid, parent in ((clone, "genesis_obj"), (child, clone), (grandchild, child)):
        client.call("send_message", target=oid, selector="setSlot_value_", args=["parent*", [{"$ref": parent}]])
    genesis, traits = (hand.store.state["objects"][name]["oid"] for name in ("genesis_obj", "traits_obj"))
    page = hand.page("objects")
    page.open(clone)
    hand.until(lambda: page.oid == clone, "the object")
    page.ids.tabs.chosen = "graph"
    hand.until(lambda: ranked(page, "above", 0) == [genesis] and traits in ranked(page, "above", 1), "what is further up")
    hand.until(lambda: ranked(page, "below", 0) == [child] and ranked(page, "below", 1) == [grandchild], "what is further down")
    hand.until(lambda: all(node_spot(page, oid) for oid in (genesis, traits, child, grandchild)), "all ranks are seen")
    assert (child, clone) in page.graph.data["edges"] and (clone, genesis) in page.graph.data["edges"]
    graph, before, place = page.graph, page.graph.scale, node_spot(page, child)
    wheel = UnitTestTouch(*graph.to_window(*place))
    wheel.button, wheel.profile = "scrolldown", [*wheel.profile, "button"]
    wheel.touch_down()
    hand.until(lambda: node_spot(page, child) and graph.scale > before, "it is larger")
    assert node_spot(page, child) == pytest.approx(place, abs=30)          # what the mouse is on stays there
    free = graph.x + 6, graph.y + 6
    drag = UnitTestTouch(*graph.to_window(*free))
    drag.touch_down()
    drag.touch_move(drag.x + 40, drag.y + 20)
    drag.touch_up()
    assert (graph.pan_x, graph.pan_y) != (0, 0)
    page.graph.as_at_first()
    hand.until(lambda: graph.scale == before and node_spot(page, genesis), "as at first")
    right = UnitTestTouch(*graph.to_window(*node_spot(page, genesis)))
    right.button, right.profile = "right", [*right.profile, "button"]
    right.touch_down()
    hand.loop.idle()
    menu, = (one for one in hand.window.children if isinstance(one, ui.Menu))
    hand.press("History", menu)
    hand.until(lambda: page.oid == genesis and page.ids.tabs.chosen == "history", "the history of the node")
    page.ids.tabs.chosen = "slots"


def test_objects_are_found_by_words_and_slots(world, hand, clone):
    page = hand.page("objects")
    page.ids.query.text = "slot:price"
    page.find()
    hand.settle()
    assert clone in [one["value"] for one in page.ids.list.data]
    page.ids.query.text = "kind:Method synthesize"
    page.find()
    hand.settle()
    assert len(page.ids.list.data) >= 4 and all("Method" in one["text"] for one in page.ids.list.data)
    page.ids.query.text = ""
    page.find()
    assert "traits_obj" in page.ids.list.data[0]["text"]


def edited(hand, name=None, text=None):
    """Type into the editor and accept it twice: the difference, then the sending. Returns the difference as shown."""
    dialog = hand.dialog()
    field, code = (next(one for one in ui._all_below(dialog) if type(one).__name__ == kind) for kind in ("Field", "Code"))
    field.text, code.text = name or field.text, text
    hand.key(ENTER, "ctrl")
    hand.loop.idle()
    shown = hand.shown(dialog)
    hand.key(ENTER, "ctrl")
    hand.settle()
    return shown


@pytest.mark.slow
def test_a_slot_is_edited_after_its_difference_was_seen_and_undone_by_keys(world, hand, clone):
    page = hand.page("objects")
    page.ids.tabs.chosen = "slots"
    page.open(clone)
    hand.settle()
    page.rows.choose([one["value"][0] for one in page.rows.data].index("price"))
    page.edit()
    shown = edited(hand, text="12.5")
    assert "-4" in shown and "+12.5" in shown and slot(world, clone, "price") == 12.5
    page.ids.tabs.chosen = "history"
    hand.settle()
    page.rows.choose(0)
    hand.settle()
    page.toggle()
    assert "+12.5" in listed(page) and "undo this change" in listed(page)
    page.ids.query.focus = False
    page.rows.focus = True
    hand.key(ord("z"), "ctrl")
    hand.settle()
    assert "+4" in hand.shown(hand.dialog())
    hand.press("Undo", hand.dialog())
    hand.settle()
    assert slot(world, clone, "price") == 4
    page.ids.tabs.chosen = "slots"


def test_what_is_no_json_is_not_sent(world, hand, clone):
    page = hand.page("objects")
    page.open(clone)
    hand.settle()
    page.edit_slot("price", 4)
    edited(hand, text="four")
    assert "is not JSON" in hand.shown(hand.dialog()) and slot(world, clone, "price") == 4
    hand.key(ESCAPE)


@pytest.mark.slow
def test_a_method_passes_the_same_gate(world, hand, clone):
    page = hand.page("objects")
    page.open(clone)
    hand.settle()
    hand.press("Add method", page)
    edited(hand, "twice_", "def twice_(self, n):\n    return __import__('os').getpid()\n")
    assert "__import__" in hand.shown(hand.dialog()) and slot(world, clone, "twice_") is None
    code = next(one for one in ui._all_below(hand.dialog()) if type(one).__name__ == "Code")
    edited(hand, "twice_", code.text.replace("__import__('os').getpid()", "2 * n"))
    assert world.client.call("send_message", target=clone, selector="twice_", args=[21])["result"] == 42
    page.open(clone)
    hand.settle()
    page.rows.choose([one["value"][0] for one in page.rows.data].index("twice_"))
    page.dive(page.rows.chosen_row)
    hand.settle()
    assert "status trial" in listed(page) and "return 2 * n" in listed(page)
    hand.press("Edit", page)
    shown = edited(hand, text="def twice_(self, n):\n    return n + n\n")
    assert "-    return 2 * n" in shown
    assert world.client.call("send_message", target=clone, selector="twice_", args=[4])["result"] == 8
    page.open(world.client.call("inspect", target=clone)["result"]["slots"]["twice_"]["value"]["$ref"], owner=(clone, "twice_"))
    hand.until(lambda: "version 2 in place of 1" in listed(page), "its versions")
    assert "-    return 2 * n" in listed(page) and "+    return n + n" in listed(page)
    assert any(ui.colour("violet") in one["text"] for one in page.rows.data)             # code has colours
    page.pressed("version 1")
    twice = {"target": clone, "selector": "twice_", "args": [[1]]}
    hand.until(lambda: world.client.call("send_message", **twice)["result"] == [1, 1], "version 1")
    hand.settle()
    page.pressed("run")
    hand.settle()
    form = hand.root.page
    assert form.name == "messages" and form._fields["selector"].text == "twice_" and form._fields["target"].text == clone
    form._fields["args"].text = "[8]"
    form.send()
    hand.settle()
    assert "16" in hand.shown(form.ids.reply)


# Messages


@pytest.mark.slow
def test_every_command_has_a_form_that_reads_what_is_typed(hand):
    page = hand.page("messages")
    for command in ui.COMMANDS:
        page.choose(command)
        assert set(page._fields) == {name for name, _ in page._flat(ui.COMMANDS[command]["fields"])}
    mission = {"mission_brief": {"type": "direct_synthesis", "selector": "answer_", "args": ["x?"]}}
    page.choose("initiate_cognitive_cycle", mission)
    assert page.fields() == mission
    page.choose("search_memory", {"query": "x", "max_results": 3})
    page._fields["max_results"].text = "many"
    page.send()
    assert "max_results" in page.ids.note.text
    page.choose("cancel")
    page.send()
    assert "cycle is needed" in page.ids.note.text


@pytest.mark.slow
def test_a_message_is_sent_its_reply_is_a_tree_and_its_script_does_the_same(world, hand):
    from kivy.core.clipboard import Clipboard
    page = hand.page("messages")
    page.go(target="genesis_obj")
    hand.settle()
    hand.press("clone", page)
    page.send()
    hand.settle()
    reply = page._reply.reply
    assert reply["status"] == "OK" and page.change == reply["change"]
    rows = page.ids.reply.data
    at = next(n for n, one in enumerate(rows) if ui.ref_of(one["value"]["value"]))
    page.ids.reply.choose(at)
    page._fields["selector"].text = "slotNames"
    hand.press("Script", page)                           # its name in a narrow window
    told = subprocess.run([sys.executable, "-c", Clipboard.paste()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "description" in told.stdout, told.stderr
    page.ids.side.chosen = "history"
    assert "clone" in page.ids.list.data[0]["text"]
    page.chose(page.ids.list.data[0]["value"])
    assert page._fields["selector"].text == "clone"
    page.ids.side.chosen = "commands"
    page.open_branch(rows[at]["value"])
    hand.settle()
    assert hand.root.page.name == "objects" and hand.root.page.oid == reply["result"]["$ref"]


def test_a_new_command_and_a_new_setting_show_by_data_alone(hand, monkeypatch):
    monkeypatch.setitem(ui.COMMANDS, "dream", {"help": "Dream.", "effect": False, "role": "read", "fields": {
        "hours": {"type": "integer", "required": True}}})
    page = hand.page("messages")
    page.fill_side()
    assert any("dream" in one["text"] for one in page.ids.list.data)
    page.choose("dream")
    page._fields["hours"].text = "8"
    assert page.fields() == {"hours": 8}
    page.choose("health")                                # its script is written a moment later: not of what is gone by then
    hand.store.state["settings"] = {**hand.store.state["settings"], "dreams_max": 3}
    life = hand.page("life")
    life.ids.tabs.chosen = "settings"
    assert any("dreams_max" in one["lead"] for one in life.ids.rows.data)
    life.ids.tabs.chosen = "events"


def test_enter_in_a_field_sends_nothing_but_what_reads(world, hand):
    page = hand.page("messages")
    before = len(hand.store.sent)
    page.choose("unindex_document", {"doc_id": "hostile"})
    page._fields["doc_id"].dispatch("on_text_validate")
    hand.settle()
    assert len(hand.store.sent) == before and "Ctrl+Enter" in page.ids.note.text
    page.choose("show_document", {"doc_id": "hostile"})
    page._fields["doc_id"].dispatch("on_text_validate")
    hand.settle()
    assert len(hand.store.sent) == before + 1 and page._reply.reply["status"] == "OK"


def test_what_nothing_brings_back_is_asked_about(world, hand):
    page = hand.page("messages")
    world.client.call("index_document", doc_id="secret", text="Quolls dance at night.")
    page.choose("forget", {"doc_id": "secret"})
    hand.key(ENTER, "ctrl")
    hand.settle()
    dialog = hand.dialog()
    assert "Forget this?" in hand.shown(dialog) and "secret" in hand.shown(dialog)
    shot(hand, "forget asks")
    hand.key(ENTER, "ctrl")                              # a key that is held does not answer it
    hand.settle()
    assert world.client.call("show_document", doc_id="secret")["results"]
    page.send()
    hand.settle()
    hand.press("Forget", hand.dialog())
    hand.settle()
    assert page._reply.reply["status"] == "OK"
    with pytest.raises(batos.NotFound):
        world.client.call("show_document", doc_id="secret")
    page.choose("shutdown")
    page.send()
    hand.settle()
    assert "Shut the daemon down?" in hand.shown(hand.dialog())
    hand.press("Close", hand.dialog())
    hand.settle()
    assert world.client.call("health")["status"] == "OK"


def test_undo_shows_what_it_does_and_of_several_slots_no_held_key_answers(world, hand, clone):
    page = hand.page("messages")
    change = world.client.call("send_message", target=clone, selector="setSlot_value_", args=["price", 5])["change"]
    page.choose("undo", {"change": change})
    page.send()
    hand.settle()
    assert "+4" in hand.shown(hand.dialog()) and slot(world, clone, "price") == 5
    hand.key(ENTER, "ctrl")
    hand.settle()
    assert slot(world, clone, "price") == 4
    two = world.client.call("index_document", doc_id="two", text="Numbats eat termites.")["change"]
    rows = world.client.call("history", limit=5)["results"]
    found = {**next(one for one in rows if one["change"] == change), "change": two}
    found["changes"] = found["changes"] * 2
    hand.root._offer_undo({"status": "OK", "results": [found]}, two, None)
    hand.settle()
    assert "of 2 slots" in hand.shown(hand.dialog())
    hand.key(ENTER, "ctrl")
    hand.settle()
    assert world.client.call("show_document", doc_id="two")["results"]


def test_one_click_looks_and_a_double_click_edits(world, hand, clone):
    page = hand.page("objects")
    page.ids.tabs.chosen = "slots"
    page.open(clone)
    hand.settle()
    hand.until(lambda: page.rows.children[0].children, "rows")
    at = [one["value"][0] for one in page.rows.data].index("price")
    view = next(one for one in page.rows.children[0].children if one.index == at)
    hand.click(view)
    hand.settle()
    assert "price" in page._open and page.rows.chosen == at
    assert not [one for one in hand.window.children if isinstance(one, ui.Dialog)]
    page.rows.focus = True
    page.rows.keyboard_on_key_down(None, (ENTER, "enter"), "", [])
    assert "price" in hand.shown(hand.dialog())
    hand.key(ESCAPE)


# The look


def test_another_theme_and_size_keep_the_place_and_are_kept(world, hand):
    page = hand.page("search")
    page.ids.query.text = "darkness"
    page.ask()
    hand.settle()
    before = page.ids.query.height
    for keys, theme, zoom in (((ord("="), "ctrl"), "dark", 1.1), ((ord("-"), "ctrl"), "dark", 1.0)):
        hand.key(*keys)
        hand.settle()
        assert (ui.read_layout()["theme"], ui.read_layout()["zoom"]) == (theme, zoom)
        assert hand.root.page.ids.query.height == pytest.approx(before * zoom, abs=1)
    hand.app.turn_theme()
    hand.settle()
    page = hand.root.page
    assert ui.read_layout()["theme"] == "light" and page.name == "search" and page.ids.query.text == "darkness"
    hand.until(lambda: page.ids.rows.data[0]["value"] and "chunk" in page.ids.rows.data[0]["value"], "the results")
    assert hand.window.clearcolor[0] > 0.8
    shot(hand, "light")
    hand.app.choose_look(theme="dark")
    hand.settle()
    assert sum(isinstance(one, ui.MemoryInspector) for one in hand.window.children) == 1


def test_rows_stand_denser_where_that_is_wanted_and_that_is_kept(world, hand):
    page = hand.page("life")
    page.ids.tabs.chosen = "settings"
    hand.settle()
    before = page.ids.rows.data[0]["height"]
    hand.key(ord("k"), "ctrl")
    palette = hand.dialog()
    hand.until(lambda: palette.field.focus, "the cursor")
    hand.type("compact")
    palette.field.dispatch("on_text_validate")
    hand.settle()
    hand.root.page.ids.tabs.chosen = "settings"
    hand.settle()
    assert hand.root.page.ids.rows.data[0]["height"] < before and ui.read_layout()["density"] == "compact"
    hand.app.choose_look(density="comfortable")
    hand.settle()


def test_a_field_that_has_the_keyboard_shows_its_cursor_over_its_ground(hand):
    field = hand.page("search").ids.query
    field.focus = True
    hand.type("lamp")
    parts = [one for one in field.canvas.before.children if type(one).__name__ in ("Rectangle", "RoundedRectangle")]
    assert [type(one).__name__ for one in parts] == ["RoundedRectangle", "Rectangle"]     # what comes later is above
    assert parts[1].pos == pytest.approx(field._cursor_visual_pos) and parts[1].size[0] > 0


@pytest.mark.parametrize("theme", ui.THEMES)
@pytest.mark.parametrize("accent", ["#82aaff", "#f0b03f", "#777777", "#000000", "#ffffff"])
def test_all_text_can_be_read(theme, accent, monkeypatch):
    monkeypatch.setitem(ui.SPEC, "accent", accent)
    ui.palette.cache_clear()
    tones = ui.palette(theme)
    ui.palette.cache_clear()
    for tone in set(tones) - {"ground", "panel", "raised", "chosen", "edge", "mark"}:
        for ground in ("ground", "panel", "raised", "chosen"):
            assert ui.contrast(tones[tone], tones[ground]) >= 4.5, (tone, ground)
    assert ui.contrast(tones["ink"], tones["mark"]) >= 4.5 and ui.contrast(tones["ground"], tones["accent"]) >= 4.5


def test_every_control_that_has_the_keyboard_shows_it(hand):
    page = hand.page("messages")
    page.choose("send_message")
    for one in ui._all_below(hand.root):
        if isinstance(one, (ui.Push, ui.Rows)) and not one.disabled:
            hand.root.ids.navigation.children[0].focus = False
            colours = [[tuple(part.rgba) for part in group.children if isinstance(part, ui.Color)]
                       for group in (one.canvas.before, one.canvas.after)]
            one.focus = True
            hand.loop.idle()
            assert colours != [[tuple(part.rgba) for part in group.children if isinstance(part, ui.Color)]
                               for group in (one.canvas.before, one.canvas.after)], one
            one.focus = False


def test_the_palette_does_what_is_typed(hand):
    hand.page("ask")
    hand.key(ord("k"), "ctrl")
    palette = hand.dialog()
    hand.until(lambda: palette.field.focus, "the cursor")
    hand.type("life")
    assert palette.rows.chosen_row[0] == "Life"
    hand.key(ENTER)
    palette.field.dispatch("on_text_validate")
    hand.settle()
    assert hand.root.page.name == "life"
    hand.key(ord("k"), "ctrl")
    palette = hand.dialog()
    hand.until(lambda: palette.field.focus, "the cursor")
    hand.type("lamp 12")
    hand.key(DOWN)
    assert palette.rows.chosen_row[0].startswith("Ask")
    hand.key(273)
    palette.field.dispatch("on_text_validate")
    hand.settle()
    page = hand.root.page
    assert page.name == "search" and page.ids.query.text == "lamp 12" and "note 12" in page.ids.rows.data[0]["text"]


def test_the_best_result_is_shown_at_once_until_it_is_closed(hand):
    page = hand.page("search")
    reader = page.ids.reader
    reader.closed = False
    page.ids.query.text = "true north"
    page.ask()
    hand.until(lambda: "vesper.md" in reader.title, "the document")
    assert page.ids.rows.chosen == 0 and not page.ids.rows.focus
    page.ids.query.text = "zyzzyva quux"
    page.ask()
    hand.until(lambda: not reader.title, "nothing is found, and nothing shown")
    page.ids.query.text = "darkness"
    page.ask()
    hand.until(lambda: reader.title, "the document")
    assert page.back() and not reader.title
    page.ids.query.text = "true north"
    page.ask()
    hand.settle()
    assert page.ids.rows.chosen == -1 and not reader.title
    page.ids.rows.choose(0)                              # by hand
    hand.until(lambda: "vesper.md" in reader.title, "the document")


def test_what_is_typed_is_searched_for_after_a_pause(hand):
    page = hand.page("search")
    page.ids.query.text = ""
    page.ask()
    hand.settle()
    page.ids.query.focus = True
    hand.type("darkness")
    hand.until(lambda: page.ids.rows.data[0]["value"] and "chunk" in page.ids.rows.data[0]["value"], "results")
    assert page.ids.query.focus and "darkness" in page.ids.rows.data[0]["text"]


def test_several_rows_are_chosen_and_copied(hand, monkeypatch):
    from kivy.core.clipboard import Clipboard
    kept = []
    monkeypatch.setattr(Clipboard, "copy", kept.append)
    rows = hand.page("life").ids.lines
    rows.fill([ui.row(ui.marked(f"[row] {number} & more", "good"), value=number) for number in range(9)])
    rows.choose(2)
    for _ in range(2):
        rows.keyboard_on_key_down(None, (DOWN, "down"), "", ["shift"])
    rows.keyboard_on_key_down(None, (ord("c"), "c"), "", ["ctrl"])
    assert kept == ["[row] 2 & more\n[row] 3 & more\n[row] 4 & more"]
    rows.keyboard_on_key_down(None, (ord("a"), "a"), "", ["ctrl"])
    rows.copy()
    assert kept[-1].count("\n") == 8


def test_passages_are_marked_as_right_and_not_in_place(world, hand):
    page = asked(hand, "How is the mast paired with a base station?")
    hand.until(lambda: page.finished and len(page._report.get("evidence", ())) > 1, "passages")
    hand.settle()
    assert "this answers" in said(page)
    page.pressed("right 2")
    page.pressed("not 1")
    page.pressed("not 2")
    page.pressed("right 2")                              # the last word holds
    assert page._picked == {2} and page._struck == {1}
    assert "2 is right, 1 is not" in page.ids.note.text
    hand.press("Wrong", page)
    hand.until(lambda: page._report.get("feedback"), "the mark")
    row = world.client.call("list_golden", limit=1)["results"][0]
    assert row["question"] == "How is the mast paired with a base station?" and page.cycle in str(row)


def test_three_hundred_children_are_counted_and_reached(world, hand, clone):
    client = world.client
    for _ in range(300):
        client.call("send_message", target=client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"],
                    selector="setSlot_value_", args=["parent*", [{"$ref": clone}]])
    page = hand.page("objects")
    page.open(clone)
    hand.settle()
    page.ids.tabs.chosen = "graph"
    hand.until(lambda: len(ranked(page, "below", 0)) == 300, "all of them")
    hand.settle()
    assert "300 delegate to it" in listed(page)
    page.rows.focus = True
    page.rows.keyboard_on_key_down(None, (END, "end"), "", [])
    last = page.rows.chosen_row
    page.rows.keyboard_on_key_down(None, (ENTER, "enter"), "", [])
    hand.until(lambda: page.oid == last, "the last one")
    page.ids.tabs.chosen = "slots"


def test_the_slider_shows_an_object_as_it_was_and_undoes_from_there(world, hand, clone):
    for price in (5, 6):
        world.client.call("send_message", target=clone, selector="setSlot_value_", args=["price", price])
    page = hand.page("objects")
    page.open(clone)
    hand.settle()
    page.ids.tabs.chosen = "history"
    hand.until(lambda: len(page._changes) == 3 and page.slider.value == page.slider.max == 3, "its history")
    page.rows.focus = True
    hand.key(276)                                        # left

    def prices():
        rows = page.rows.data if page._then else ()
        return [one["text"] for one in rows if isinstance(one["value"], tuple) and one["value"][0] == "price"]
    hand.until(lambda: [ui.unmarked(one) for one in prices()] == ["5"], "the past")
    assert ui.colour("warm") in prices()[0]
    world.client.call("send_message", target=clone, selector="setSlot_value_", args=["colour", "red"])
    hand.until(lambda: len(page._changes) == 4, "what another changed")
    assert page.slider.value == 2 and [ui.unmarked(one) for one in prices()] == ["5"]     # it stays in the past
    world.client.call("undo", change=page._changes[0]["change"])
    hand.until(lambda: len(page._changes) == 5 and prices(), "its undo")
    link = next(one["text"] for one in page.rows.data if "undo the change that came after" in one["text"])
    page.pressed(re.search(r"\[ref=(undo [^\]]+)\]", link)[1])
    hand.dialog()
    hand.settle()
    hand.key(ENTER, "ctrl")
    hand.until(lambda: slot(world, clone, "price") == 5, "it is undone")
    page.ids.tabs.chosen = "slots"


def test_a_list_of_maps_is_a_table(world, hand, clone):
    rows = [{"at": f"2026-11-0{n}", "heat": 600 + n, "cone": "04"} for n in range(1, 6)]
    world.client.call("send_message", target=clone, selector="setSlot_value_", args=["readings", rows])
    page = hand.page("objects")
    page.ids.tabs.chosen = "slots"
    page.open(clone)
    hand.until(lambda: "5 rows: at, heat, cone" in listed(page), "its head")
    page.rows.choose([one["value"][0] for one in page.rows.data].index("readings"))
    page.rows.dispatch("on_look")
    assert "2026-11-03    603   04" in listed(page)


# Long values, short lists, and the keyboard

HASH = "abcdef0123456789" * 30


def test_a_value_without_blanks_is_seen(world, narrow, clone):
    hand, page = narrow, narrow.page("objects")
    world.client.call("send_message", target=clone, selector="setSlot_value_", args=["hash", HASH])
    page.ids.tabs.chosen = "slots"
    page.open(clone)
    hand.settle()
    at = [one["value"][0] for one in page.rows.data].index("hash")
    page.rows.choose(at)
    hand.until(lambda: any(one.index == at for one in page.rows.children[0].children), "its row")
    hand.until(lambda: "abcdef0123456789abcdef" in drawn(page.rows, at), "its beginning")
    page.toggle()
    hand.until(lambda: HASH in listed(page).replace("\n", ""), "all of it")
    shot(hand, "a hash in objects")
    page = hand.page("messages")
    page.choose("send_message", {"target": clone, "selector": "hash"})
    page.send()
    hand.settle()
    at = next(n for n, one in enumerate(page.ids.reply.data) if one["value"]["key"] == "result")
    hand.until(lambda: HASH in drawn(page.ids.reply, at).replace(" ", ""), "all of it")
    shot(hand, "a hash in messages")
    page = hand.page("search")
    world.client.call("index_document", doc_id="long", text=f"Hash {HASH} of bandicoots.")
    page.ids.query.text = "bandicoots"
    page.ask()
    hand.settle()
    hand.until(lambda: "bandicoots" in drawn(page.ids.rows, 0), "what matched")
    world.client.call("unindex_document", doc_id="long")


def test_a_short_list_stands_at_the_top_also_after_a_long_one(hand):
    rows = hand.page("life").ids.lines
    rows.fill([ui.row(f"row {number}", value=number) for number in range(300)])
    hand.loop.idle()
    rows.choose(299, show=True)
    for _ in range(3):
        hand.loop.idle()
    rows.fill([ui.row("the only one", value=0)], keep=True)
    hand.until(lambda: len(rows.children[0].children) == 1, "one row")
    for scroll_y in (rows.scroll_y, 0):                  # as it came to be, and as a wheel would have it
        rows.scroll_y = scroll_y
        hand.loop.idle()
        inner = rows.children[0]
        assert inner.to_window(0, inner.top)[1] == pytest.approx(rows.to_window(0, rows.top)[1], abs=2)


def test_a_dialog_gives_the_keyboard_back(hand):
    page = hand.page("messages")
    page.choose("send_message", {"target": "genesis_obj"})
    page._fields["args"].focus = True
    hand.key(F1)
    hand.settle()
    assert not page._fields["args"].focus
    hand.key(ESCAPE)
    hand.until(lambda: page._fields["args"].focus, "the keyboard")
    page._fields["args"].focus = False


# Experts and life


def test_experts_are_shown_by_tier(world, hand):
    page = hand.page("experts")
    told = world.client.call("list_experts")
    assert {one["value"] for one in page.ids.rows.data} == {row["expert"] for row in told["results"]}
    assert all(one["tier"] in row["text"] for one, row in zip(told["results"], page.ids.rows.data, strict=True))
    assert all(gauge.data["words"] for gauge in page.gauges.values())
    first = told["results"][0]                           # of the one that is chosen all is told
    hand.until(lambda: first["expert"] in said_of(page.ids.steps), "its facts")
    leads = {ui.unmarked(one["lead"]) for one in page.ids.steps.data if one.get("lead")}
    assert {name.replace("_", " ") for name in first} <= leads | set(said_of(page.ids.steps).split("\n"))


def test_life_shows_figures_events_and_settings(world, hand):
    page = hand.page("life")
    world.client.call("index_document", doc_id="one more", text="The heater pad is part VM-18.")
    hand.until(lambda: any("uvm_state_update" in one["text"] for one in page.ids.rows.data), "an event")
    told = [(spark, spec) for spark, spec in zip(page.sparks, ui.SPEC["sparks"], strict=True) if not spec.get("rate")]
    assert all(spark.data["values"] for spark, spec in told if not spec["path"].startswith("heartbeat"))  # none has come yet
    page.ids.filter.text = "uvm_state"
    assert page.ids.rows.data and all("uvm_state_update" in one["text"] for one in page.ids.rows.data)
    page.ids.filter.text = ""
    page.ids.rows.focus = True
    hand.key(32)
    assert page.paused
    count = len(page._rows)
    hand.store._on_event({"event": "error", "at": {"$time": "2026-01-01T00:00:00Z"}, "code": "X", "details": "y"})
    assert len(page._rows) == count
    hand.key(32)
    assert not page.paused and any("error" in one["text"] for one in page.ids.rows.data[:5])
    page.ids.tabs.chosen = "settings"
    assert [one["value"] for one in page.ids.rows.data] and set(batos.SETTINGS) <= {
        name for one in page.ids.rows.data for name in one["value"]}
    for name in ("missions", "failures", "changes", "upkeep", "events"):
        page.ids.tabs.chosen = name
        hand.settle()


def test_life_shows_what_audits_found_and_opens_the_mission_that_tells_of_it(world, hand):
    page = hand.page("life")
    page.ids.tabs.chosen = "report"
    hand.until(lambda: page.ids.rows.data, "the report")
    for words in ("What eat okapis?", "Where live okapis?", "How tall are okapis?"):
        brief = {"type": "direct_synthesis", "selector": "q", "args": [words]}
        asked = world.client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)["result"]["cycle"]
    brief = {"type": "self_audit", "selector": "perform_cognitive_efficiency_audit"}
    world.client.call("initiate_cognitive_cycle", mission_brief=brief, target_oid="alfred_prototype_obj", wait=True)
    page.refresh()
    hand.until(lambda: any("asked 3 times about okapis" in one["text"] for one in page.ids.rows.data), "the report")
    line = next(one for one in page.ids.rows.data if "okapis" in one["text"])
    assert "gap" in line["text"] and "learn a document about okapis" in line["text"] and line["value"]["cycle"] == asked
    page.open(line["value"])
    hand.until(lambda: hand.page("ask").cycle == asked, "the mission")


def test_figures_have_axes_tell_what_is_below_the_mouse_and_go_back_in_time(world, hand):
    page = hand.page("life")
    hand.until(lambda: len(hand.store.samples) > 2, "some figures")
    page.draw_figures()
    spark = page.sparks[4]                               # the memory
    values = spark.data["values"]
    _, low, wide, tall = spark._room()
    page._hover(None, spark.to_window(spark._room()[0], spark.center_y))
    assert spark.at >= 0 and spark._below_mouse(spark.data) == values[0]
    page._hover(None, (0, 0))
    assert spark.at == -1
    for name in ("48 hours", "90 days", "now"):
        page.ids.spans.chosen = name
        hand.settle()
    assert page._measured["minutes"][0] and [spec["path"] for spec in ui.SPEC["sparks"]] == page._measured["minutes"][0]
    now = 1_800_000_000
    count = len(ui.SPEC["sparks"])
    page._measured["minutes"] = page._measured["minutes"][0], [[now + 60 * n, *[float(n)] * count] for n in range(90)]
    page.store.ask, ask = lambda *_, **__: None, page.store.ask
    try:
        page.ids.spans.chosen = "48 hours"
        assert spark.data["values"] == [(now + 60 * n, float(n)) for n in range(90)] and ":" in spark.data["when"](now)
        page.ids.spans.chosen = "now"
    finally:
        page.store.ask = ask


def test_the_page_of_life_shows_its_newest_row_and_says_why_a_figure_has_no_line(world, hand):
    page = hand.page("life")
    for name in ("missions", "settings"):
        page.ids.tabs.chosen = name
        hand.settle()
        assert page._looked_at == page.ids.rows.data[0]["value"] and page.ids.lines.data
        page.ids.rows.choose(len(page.ids.rows.data) - 1)  # the choice of somebody stands
        page.fill()
        assert page._looked_at == page.ids.rows.data[-1]["value"]
    spark = ui.Spark()
    for path, values, why in (("heartbeat.cem.cem", [], "measured at each heartbeat"), ("memory_mb", [], "nothing measured yet"),
                              ("memory_mb", [(0, 1.0)], "one figure so far")):
        said = []
        spark.say = lambda text, *_, said=said, **__: said.append(text)
        spark.draw({"title": "x", "unit": "MB", "values": values, "when": str, "nothing": ui.told_of_none(path)})
        assert said[-1] == why


def test_heartbeats_are_folded_and_nothing_says_none(world, hand):
    page = hand.page("life")
    page.ids.tabs.chosen = "events"

    def beats_follow():
        kinds = [event["event"] for event in hand.store.events]
        return any(one == other == "health" for one, other in itertools.pairwise(kinds))
    hand.until(beats_follow, "heartbeats")
    page._take_events()
    kinds = [one["value"]["event"] for one in page.ids.rows.data]
    assert not any(one == other == "health" for one, other in zip(kinds, kinds[1:], strict=False))
    assert any("times" in one["side"] for one in page.ids.rows.data)
    for name in page.spec["columns"]:
        page.ids.tabs.chosen = name
        hand.settle()
        page.ids.rows.choose(0)
        assert "None" not in hand.shown(page)
    page.store.health, health = {}, page.store.health
    page.draw_figures()
    assert "None" not in hand.shown(page)
    page.store.health = health
    page.ids.tabs.chosen = "events"


def test_why_a_mission_failed_is_one_click_away_from_wherever_it_is_shown(world, hand):
    page = hand.page("messages")
    page.choose("send_message", {"target": "genesis_obj", "selector": "grumble_the_frob", "generate": True, "wait": True})
    page.send()
    hand.until(lambda: page._reply.reply, "the reply")
    failed = world.client.call("list_cycles", state="FAILED", limit=1)["results"][0]
    code = failed["reason"]["code"]
    assert "grumble" in failed["mission"] and code in page.ids.told.text
    page = hand.page("life")
    for name in ("missions", "failures"):
        page.ids.tabs.chosen = name

        def places():                                    # an audit of it may be newer
            return [n for n, one in enumerate(page.ids.rows.data) if "grumble" in one["text"]]
        at = hand.until(places, "the mission")[0]
        assert code in page.ids.rows.data[at]["text"]
        page.ids.rows.choose(at)
        assert code in said_of(page.ids.lines)
    for name in ("events", "changes"):                   # which name the cycle alone
        page.ids.tabs.chosen = name
        values = hand.until(lambda: [one["value"] for one in page.ids.rows.data if one["value"]], "the list")
        page.ids.rows.choose(next(n for n, one in enumerate(values) if one.get("cycle") == failed["cycle"]))
        hand.until(lambda: code in said_of(page.ids.lines) and "grumble" in said_of(page.ids.lines), "why")
    page = hand.page("objects")
    page.open(failed["cycle"])
    hand.until(lambda: code in listed(page) and "grumble" in listed(page), "why, on the object")
    page.pressed("ask")
    hand.until(lambda: code in said(hand.root.page), "the reason under Ask")
    hand.settle()
    entered = {step[0] for step in hand.root.page.timeline()}
    assert "SYNTHESIZING" not in entered                 # what it never came to is not shown
    hand.page("life").ids.tabs.chosen = "events"


def said_of(rows):
    return "\n".join(ui.unmarked(one["text"]) for one in rows.data)


def test_a_waiting_cycle_says_what_it_waits_for_wherever_it_is_shown(world, hand):
    before = {"cycle": "0x1", "mission": "one", "state": "DELEGATING", "accepted_at": {"$time": "2026-11-30T01:00:00Z"}}
    waits = {"cycle": "0x2", "mission": "two", "state": "IDLE", "accepted_at": {"$time": "2026-11-30T02:00:00Z"}}
    told = {"status": "OK", "results": [waits, before]}
    page = hand.page("ask")
    page._listed(told)
    assert "1 mission was accepted before it" in " ".join(ui.unmarked(page.ids.rows.data[0]["text"]).split())
    page = hand.page("life")
    page.ids.tabs.chosen = "missions"
    hand.settle()
    page._missions_came(told)
    assert "1 mission was accepted before it" in " ".join(ui.unmarked(page.ids.rows.data[0]["text"]).split())
    page.ids.rows.choose(0)
    assert "1 mission was accepted before it" in " ".join(said_of(page.ids.lines).split())
    page.ids.tabs.chosen = "events"
    page = hand.page("objects")
    slots = {"accepted_at": waits["accepted_at"], "mission_brief": {"args": ["two"]}, "result": None, "journal": []}
    page.oid, page._shown = "0x2", {"slots": {name: {"value": value} for name, value in slots.items()}}
    page.store.health = {**page.store.health, "missions": {"running": 2}}
    assert "2 missions are at work" in " ".join(one["text"] for one in page._cycle_rows())


def test_the_list_of_changes_follows_what_another_client_changes(world, hand, clone):
    page = hand.page("life")
    page.ids.tabs.chosen = "changes"
    hand.until(lambda: page.ids.rows.data and page.ids.rows.data[0]["value"], "the changes")
    world.client.call("send_message", target=clone, selector="setSlot_value_", args=["followed", 7])
    hand.until(lambda: ".followed" in page.ids.rows.data[0]["text"], "the newest change")
    page.ids.tabs.chosen = "events"


# The daemon goes and comes


def test_a_daemon_that_goes_is_told_in_a_banner_and_nothing_is_sent_later(world, hand):
    page = hand.page("search")
    world.daemon.stop(kill=True)
    hand.until(lambda: hand.root.line == "absent", "absent")
    assert "No daemon answers" in hand.root.ids.banner.text
    assert f"--endpoint {world.endpoint}" in hand.root.ids.banner.text and hand.root.ids.banner.height > 20
    messages = hand.page("messages")
    messages.choose("index_document", {"doc_id": "stale", "text": "This must not be sent."})
    messages.send()
    hand.settle()
    assert "not sent" in messages.ids.told.text
    hand.page("search")
    page.ask()
    hand.settle()
    assert page.ids.rows.data and "old: not sent" in page.ids.note.text
    page.ids.query.text = ""
    world.start()
    hand.online()
    hand.settle()
    assert hand.root.ids.banner.text == "" and any("hostile" in row["text"] for row in page.ids.rows.data)
    with batos.Client(world.endpoint) as client, pytest.raises(batos.NotFound):
        client.call("show_document", doc_id="stale")


def test_a_daemon_that_hangs_is_said_to_hang_and_waiting_is_said(world, hand, monkeypatch):
    monkeypatch.setattr(ui, "HUNG_S", 2.0)
    monkeypatch.setattr(ui, "PING_S", 0.5)
    page = hand.page("search")
    os.kill(world.daemon.process.pid, signal.SIGSTOP)
    try:
        page.ids.query.text = "lamp"
        page.ask()
        hand.until(lambda: "still searching" in hand.root.ids.waiting.text, "slow")
        hand.until(lambda: hand.root.line == "hung", "hung")
        assert "has not answered" in hand.root.ids.banner.text
    finally:
        os.kill(world.daemon.process.pid, signal.SIGCONT)
    hand.online()
    hand.settle()
    assert page.ids.rows.data and hand.root.ids.waiting.text == ""


def test_f5_asks_anew(world, hand):
    page = hand.page("search")
    page.ids.query.text = ""
    world_client = batos.Client(world.endpoint)
    world_client.call("index_document", doc_id="aaa first", text="Something new.")
    world_client.close()
    hand.key(F5)
    hand.settle()
    assert re.search("aaa first", page.ids.rows.data[0]["text"])


# What is shown is what is


def test_an_object_that_was_searched_for_follows_what_others_change(world, hand, clone):
    page = hand.page("objects")
    page.ids.tabs.chosen = "slots"
    page.ids.query.text = "slot:price"
    page.find()
    page.open(clone)
    hand.settle()
    found = [one["value"] for one in page.ids.list.data]
    page.ids.list.choose(found.index(clone))
    changed = world.client.call("send_message", target=clone, selector="setSlot_value_", args=["price", 777])["change"]
    other = world.client.call("send_message", target=clone, selector="clone")["result"]["$ref"]
    world.client.call("send_message", target=other, selector="setSlot_value_", args=["price", 1])

    def follows():
        prices = [one["text"] for one in page.rows.data if one["value"] and one["value"][0] == "price"]
        return "777" in prices[0] and other in [one["value"] for one in page.ids.list.data]
    hand.until(follows, "what others changed")
    assert page.ids.list.chosen_row == clone
    world.client.call("undo", change=changed)
    hand.key(F5)
    hand.settle()
    assert page.value("price") == 4
    page.ids.query.text = ""
    page.find()


def test_an_open_history_follows_an_undo_and_a_page_that_was_hidden_is_asked_anew(world, hand, clone):
    page = hand.page("objects")
    page.open(clone)
    page.ids.tabs.chosen = "history"
    hand.settle()
    page.rows.choose(0)
    before = [one["value"]["change"] for one in page.rows.data]
    world.client.call("undo", change=before[0])
    hand.until(lambda: len(page.rows.data) > len(before), "the undo in the history")
    assert page.rows.chosen_row["change"] == before[0] and page.value("price") is None
    hand.page("life")
    world.client.call("send_message", target=clone, selector="setSlot_value_", args=["price", 9])
    hand.until(lambda: page.stale, "it is told that it is stale")
    hand.page("objects")
    hand.until(lambda: page.value("price") == 9, "it was asked anew")
    page.ids.tabs.chosen = "slots"


def test_lists_of_search_follow_what_is_learnt_or_say_that_they_are_old(world, hand):
    page = hand.page("search")
    page.ids.query.text = ""
    page.ask()
    hand.settle()
    page.ids.rows.choose([one["value"]["doc_id"] for one in page.ids.rows.data].index("hostile"))
    page.look()
    hand.settle()
    world.client.call("index_document", doc_id="0 quokka", text="Quokkas sleep at noon.")
    hand.until(lambda: page.ids.rows.data[0]["value"]["doc_id"] == "0 quokka", "what was learnt")
    assert page.ids.rows.chosen_row["doc_id"] == "hostile" and page.ids.reader.old == ""
    world.client.call("index_document", doc_id="hostile", text=HOSTILE + " once more")
    hand.until(lambda: "old: version" in page.ids.reader.old, "it is said to be old")
    page.ids.query.text = "quokkas"
    page.ask()
    hand.settle()
    world.client.call("unindex_document", doc_id="0 quokka")
    hand.until(lambda: ui.TEXTS["nothing"] in hand.shown(page), "it is found no more")
    page.ids.query.text = "lamp hangs hall"
    page.ask()
    hand.settle()
    page.more()
    hand.settle()
    count = len(page.ids.rows.data)
    world.client.call("index_document", doc_id="hostile", text=HOSTILE)
    hand.until(lambda: "old: " in page.ids.note.text, "they are said to be old")
    assert len(page.ids.rows.data) == count > page.PAGE
    hand.key(F5)
    hand.settle()
    assert "old: " not in page.ids.note.text
    page.ids.reader.clear()


# The process


@pytest.mark.slow
def test_the_process_ends_with_its_window(world, tmp_path):
    script = ("import sys; sys.path.insert(0, 'tests'); import windowed; from kivy.clock import Clock; "
              "app = windowed.ui.MorphicUIApp(sys.argv[1]); "
              "app.bind(on_start=lambda _: Clock.schedule_once(lambda _: app.root_window.dispatch('on_request_close') or "
              "app.root_window.close(), 1)); app.run()")
    env = {**os.environ, "KIVY_HOME": str(tmp_path)}
    words = [sys.executable, "-c", script, world.endpoint]
    assert subprocess.run(words, cwd=ROOT, env=env, timeout=windowed.GUARD_S).returncode == 0


@pytest.mark.parametrize("option, value, told_of", [
    ("--keys", "none.json", "keys add NAME"), ("--endpoint", "nonsense", "tcp://ADDRESS:PORT"),
    ("--endpoint", "http://x", "tcp://ADDRESS:PORT"), ("--endpoint", "tcp://127.0.0.1:70000", "1 to 65535"),
    ("--endpoint", "tcp://127.0.0.1:0", "1 to 65535"), ("--endpoint", "tcp://no..where:5555", "not found")])
def test_wrong_options_are_told_before_kivy_takes_stderr(tmp_path, option, value, told_of):
    env = {name: told for name, told in os.environ.items() if not name.startswith("KIVY")} | {"KIVY_HOME": str(tmp_path)}
    told = subprocess.run([sys.executable, "-X", "importtime", ROOT / "morphic_ui.py", option, value], cwd=tmp_path, env=env,
                          capture_output=True, text=True, timeout=60)
    said = [line for line in told.stderr.splitlines() if not line.startswith("import time:")]
    assert told.returncode == 2 and len(said) == 1 and value in said[0] and told_of in said[0]
    assert "kivy" not in told.stderr.replace(value, "")


def test_until_is_a_guard():
    assert until(lambda: True)


def test_a_chord_is_no_text(hand):
    query = hand.page("search").ids.query
    query.text, query.focus = "", True
    for modifiers, char, told in ((["ctrl"], "1", ""), (["ctrl", "alt"], "@", "@"), ([], "a", "@a")):
        hand.window._modifiers = modifiers
        hand.type(char)
        assert query.text == told
    query.text = ""


def test_a_difference_stands_a_while_before_it_is_sent_and_nothing_is_not_sent(world, hand, monkeypatch):
    monkeypatch.setattr(ui, "LOOKED_AT_S", 1000.0)
    page = hand.page("objects")
    clone = world.client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
    page.open(clone)
    hand.settle()
    sent = []
    monkeypatch.setattr(page.store, "ask", lambda command, *_, **fields: sent.append((command, fields)))
    page.edit_slot("description", "a text")
    editor = next(one for one in hand.window.children if isinstance(one, ui.Dialog)).accept.__self__
    editor.text.text = '"another"'
    editor.accept()
    editor.accept()
    assert sent == [] and editor.go_on.text == "Send"    # a key that is held sends nothing
    monkeypatch.setattr(ui, "LOOKED_AT_S", 0.0)
    page.oid = "0x1"                                     # another object is shown meanwhile
    editor.accept()
    assert sent[0][1]["target"] == clone
    editor.go_on.disabled, editor.text.text = False, '"a text"'
    editor.accept()
    editor.accept()
    assert len(sent) == 1 and "nothing would change" in editor.error.text
    editor.dialog.dismiss()
    page.oid = clone


def test_what_stands_in_front_has_the_keyboard(hand):
    page = hand.page("messages")
    page.choose("send_message", {"target": "genesis_obj", "selector": "slotNames"})
    page._fields["args"].focus = True
    hand.root.show_help()
    hand.settle()
    assert not page._fields["args"].focus
    dialog = next(one for one in hand.window.children if isinstance(one, ui.Dialog))
    assert any(getattr(one, "focus", False) for one in dialog.walk())
    dialog.dismiss()


def test_selectors_that_come_late_go_to_no_other_form(hand):
    page = hand.page("messages")
    page.choose("send_message", {"target": "genesis_obj"})
    page._ask_selectors("genesis_obj")
    page.choose("cancel")
    hand.settle()
    page._selectors_came({"status": "OK", "result": {"selectors": ["clone"]}})
    assert not page.offered.children


def test_another_cycle_shows_nothing_of_the_one_before(hand):
    page = hand.page("ask")
    page.finished = True
    page.ids.said.fill([ui.row("an answer")])
    page.go(cycle="0x1")
    assert not page.finished and said(page) == ""
    hand.settle()
    assert "none of the last" in page.ids.note.text
    page.cycle = None


def test_an_error_leaves_no_results_of_the_query_before(hand):
    page = hand.page("search")
    page.ids.query.text = "lamp"
    page.ask()
    hand.settle()
    assert page.ids.rows.data
    page.came({"status": "ERROR", "details": "no"}, None)
    assert not [row for row in page.ids.rows.data if row["value"]] and "no" in page.ids.note.text
    page.ids.query.text = ""


def test_lists_of_life_do_not_mix(hand):
    page = hand.page("life")
    hand.settle()
    page.ids.tabs.chosen = "missions"
    page.ids.tabs.chosen = "upkeep"
    hand.settle()
    assert not any(isinstance(one["value"], dict) and "mission" in one["value"] for one in page.ids.rows.data)
    page.paused = True
    page.paused = False
    assert not any(isinstance(one["value"], dict) and "event" in one["value"] for one in page.ids.rows.data)
    page.ids.tabs.chosen = "events"


def test_a_place_that_has_gone_is_said(hand):
    page = hand.page("search")
    page.ids.reader.open("tests/data/vesper.md", chunk=0)
    hand.settle()
    page.ids.reader._chunks = {}
    page.ids.reader._came({"status": "OK", "results": [], "result": {"chunks": 3}}, False)
    assert "no such place" in page.ids.reader.ids.rows.data[0]["text"]
    page.ids.reader.clear()


def test_what_nobody_foresaw_ends_no_window(hand, capfd):
    handler, manager = ui.Unforeseen(), ui.ExceptionManager
    try:
        raise ZeroDivisionError("of a page")
    except ZeroDivisionError as error:
        assert handler.handle_exception(error) == manager.PASS
    assert "ZeroDivisionError: of a page" in capfd.readouterr().err
    assert handler.handle_exception(SystemExit()) == manager.RAISE


def test_life_tells_the_heartbeat(hand):
    page = hand.page("life")
    hand.settle()
    page.store.health = {**page.store.health, "heartbeat": {"on": True, "next_s": 60.0, "last": {
        "at": {"$time": "2026-01-01T00:00:00Z"}, "told": "1 methods are in quarantine; ALFRED looks at it", "cycle": "0x1"}}}
    page.ids.tabs.chosen = "upkeep"
    page.refresh()
    assert "heartbeat in" in page.ids.vitals.text
    assert any("ALFRED looks at it" in row["text"] for row in page.ids.rows.data)
    page.store.health["heartbeat"] = {"on": False, "next_s": None, "last": None}
    page.refresh()
    assert "heartbeat off" in page.ids.vitals.text
    page.ids.tabs.chosen = "events"
