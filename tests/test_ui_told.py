"""What the daemon tells of its own ways, in an offscreen window: why it was answered so, the metric, the forge, menus."""

import conftest
import pytest
import windowed
from windowed import ENTER, Hand

import batos

ui = windowed.ui
TEXT = "The brass valve is shut by turning it to the left.\n\nThe pump lifts forty litres of water in a minute."
JOB = {"job": 2, "target": "READER", "status": "PROMOTED", "dataset": 1, "at": {"$time": "2026-11-02T10:00:00Z"},
       "told": "It is better by 0.04 on what was held back, and stands.", "result": None,
       "report": {"losses": [0.9, 0.5, 0.3], "steps": 30}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(an Inspector, a client of the same daemon)."""
    windowed.need_gl()
    daemon = conftest.DaemonProcess(tmp_path_factory.mktemp("told"), ("self_knowledge", False), ("gate", True), core=0)
    with batos.Client(daemon.endpoint, 60) as client:
        client.call("index_document", doc_id="valve.md", text=TEXT)
        hand = Hand(daemon.endpoint)
        hand.online()
        yield hand, client
        hand.close()
    daemon.stop(kill=True)


@pytest.fixture
def hand(world):
    for one in [one for one in world[0].window.children if isinstance(one, ui.Dialog)]:
        one.dismiss(animation=False)
    return world[0]


def ask(hand, words):
    """Ask a question on its page, and wait for the answer; returns the page."""
    page = hand.page("ask")
    page.ids.ask.text = words
    page.ids.ask.focus = True
    hand.key(ENTER)
    hand.until(lambda: page.finished and page._report.get("mission") == words, "an answer")
    hand.settle()
    return page


def said(rows):
    return " ".join(ui.unmarked(one["text"]) for one in rows.data)


def test_the_ask_page_tells_why_as_the_command_does(world, hand):
    _, client = world
    page = ask(hand, "How is the brass valve shut?")
    page.ids.tabs.chosen = "why"
    lines = client.call("why", cycle=page.cycle)["results"]
    assert any("led" in line for line in lines) and any("let in beside them" in line for line in lines)
    hand.until(lambda: "let in beside them" in said(page.ids.said), "why")
    shown = said(page.ids.said)
    assert all(line.split()[0] in shown for line in lines)
    page.ids.tabs.chosen = "answer"
    hand.settle()
    answer, head, below = said(page.ids.said).partition("why it is answered so")
    assert "turning it to the left" in answer and "let in beside them" not in answer
    assert not head or "let in beside them" in below     # a short answer has room for it


def test_why_of_what_is_no_cycle_is_refused(world):
    with pytest.raises(batos.NotFound, match="list_cycles"):
        world[1].call("why", cycle="genesis_obj")


def test_the_metric_stands_among_the_vitals():
    beat = {"cem": {"cem": 0.31, "h_cog": 0.5, "h_sol": 0.25, "h_struc": 0.1, "low": True}}
    assert ui.metric_texts(beat) == ["CEM 0.31 (cog 0.50, sol 0.25, struc 0.10, low)"]
    assert ui.metric_texts({}) == ui.metric_texts({"cem": None}) == []
    assert any("CEM 0.31" in one for one in ui.LifePage._vitals({"heartbeat": {"on": True, "next_s": 3, **beat}}))


def test_the_experts_page_shows_jobs_of_the_forge_with_loss_and_verdict(hand):
    page = hand.page("experts")
    hand.settle()
    assert "Nothing was forged yet" in said(page.ids.jobs) and "no rows yet" in page.ids.golden.text
    hand.until(lambda: page.ids.loss.width == 0 and "Activate an expert" in said(page.ids.steps), "what an expert is")
    page._jobs_came({"status": "OK", "results": [JOB]})
    hand.settle()
    shown = said(page.ids.jobs)
    assert "job 2" in shown and "promoted" in shown and "better by 0.04" in shown
    assert [value for _, value in page.ids.loss.data["values"]] == [0.9, 0.5, 0.3] and page.ids.loss.width > 100
    page.ids.jobs.dispatch("on_ref", "reader")           # a promotion is a change, undone where its history is
    objects = hand.root.page
    hand.until(lambda: objects.name == "objects" and "reader" in hand.shown(objects.ids.title), "the reader")
    assert objects.ids.tabs.chosen == "history"
    objects.ids.tabs.chosen = "slots"
    page = hand.page("experts")
    hand.settle()
    assert page.ids.loss.data is None                    # there is no such job by now
    hand.press("Forge the reader", page)
    hand.until(lambda: "dataset" in page.ids.golden.text, "why it does not begin")


def test_the_experts_page_tells_what_a_persona_is_for_and_what_was_learnt_of_marks(world, hand):
    _, client = world
    answered = ask(hand, "What does the pump lift?")
    client.call("feedback", cycle=answered.cycle, mark="wrong", note="", correction={"quotes": [], "not": [1]})
    page = hand.page("experts")
    hand.until(lambda: page.ids.learnt.data, "what was learnt")
    shown = said(page.ids.learnt)
    assert "What does the pump lift?" in shown and "passage 1 is not" in shown
    page._came({"status": "OK", "result": {}, "results": [{"expert": "ALFRED", "tier": "hot", "version": 1, "rank": 8, "bytes": 9,
                                                           "always_hot": True, "note": "", "uses": 1}]})
    hand.until(lambda: "free of waste" in said(page.ids.steps), "its mission")
    assert "butler" in said(page.ids.steps)
    page.ids.learnt.choose(0)
    page.ids.learnt.dispatch("on_open")
    hand.until(lambda: hand.root.page.name == "ask" and hand.root.page.cycle == answered.cycle, "the answer that was marked")


def test_the_menu_of_a_row_opens_copies_and_goes_by_a_right_click(hand):
    from kivy.core.clipboard import Clipboard
    from kivy.tests.common import UnitTestTouch
    page = ask(hand, "What does the pump lift?")
    rows = page.ids.rows
    one = next(one for one in rows.children[0].children if one.index == 0)
    touch = UnitTestTouch(*one.to_window(*one.center))
    touch.button = "right"
    touch.profile = [*touch.profile, "button"]
    touch.touch_down()
    touch.touch_up()
    hand.settle()
    menu, = (one for one in hand.window.children if isinstance(one, ui.Menu))
    x, y = one.to_window(*one.center)
    assert (menu.x, menu.top) == pytest.approx((x, max(y, menu.height)), abs=2)     # where the mouse is
    named = [one.text for one in ui._all_below(menu) if isinstance(one, ui.Push)]
    assert "Open" in named and "Copy" in named
    hand.press("Copy", menu)
    hand.settle()
    assert not [one for one in hand.window.children if isinstance(one, ui.Menu)]
    assert "What does the pump lift?" in " ".join(Clipboard.paste().split()) and "copied 1 line" in hand.root._said


def test_a_conversation_is_a_thread_with_its_marks_and_corrections(world, hand):
    _, client = world
    page = hand.page("ask")
    page.ids.conversation.text = "the pump room"
    for words in ("How is the brass valve shut?", "What does the pump lift?"):
        page = ask(hand, words)
    first = client.call("list_cycles", conversation="the pump room")["results"][1]["cycle"]
    page.pressed("not 1")
    page.ids.remark.text = "forty litres"
    hand.press("Wrong", page)
    page.ids.tabs.chosen = "thread"
    hand.until(lambda: "marked wrong: forty litres" in said(page.ids.said), "the mark")
    shown = said(page.ids.said)
    assert shown.index("How is the brass valve shut?") < shown.index("What does the pump lift?")
    assert "passage 1 is not right" in shown

    def threads():
        return [one["text"] for one in page.ids.rows.data if "2 turns of" in one["text"]]
    hand.until(lambda: len(threads()) == 1 and "\u2717" in threads()[0], "the mark in the list")
    client.call("feedback", cycle=first, mark="right", note="to the left")
    hand.until(lambda: "marked right: to the left" in said(page.ids.said), "what another client marked")
    page.pressed(f"turn {first}")
    hand.until(lambda: page.finished and page.cycle == first, "the turn")
    hand.until(lambda: "marked right: to the left" in said(page.ids.said), "its mark")
    assert page.ids.tabs.chosen == "answer" and page.ids.conversation.text == "the pump room"
    page.ids.conversation.text = ""


def test_what_is_of_no_conversation_has_no_thread(world, hand):
    hand.page("ask").ids.conversation.text = ""
    page = ask(hand, "How is the pump lifted?")
    page.ids.tabs.chosen = "thread"
    hand.until(lambda: "of no conversation" in said(page.ids.said), "no thread")
    assert world[1].call("list_cycles", conversation="nowhere")["results"] == []
    page.ids.tabs.chosen = "answer"


def guessed(hand, client, selector, intent):
    """Send a message that nobody understands to a new object, from the page; returns (the page, the object)."""
    oid = client.call("send_message", target="traits_obj", selector="clone")["result"]["$ref"]
    client.call("send_message", target=oid, selector="setSlot_value_", args=["prices", [4, 5.5, 10]])
    page = hand.page("messages")
    page._reply, page.guess = None, ""
    page.choose("send_message", {"target": oid, "selector": selector, "intent": intent, "wait": True})
    page.send()
    hand.until(lambda: page._reply and page._reply.reply and page.guess, "a guess")
    hand.settle()
    return page, oid


def slots_of(client, oid):
    return client.call("inspect", target=oid)["result"]["slots"]


def test_a_passage_that_was_found_and_not_told_is_named_as_right(world, hand):
    _, client = world
    page = ask(hand, "What does the pump lift?")
    told = page._report["evidence"][0]
    other = {**told, "text": "The brass valve is shut by turning it to the left.", "chunk_index": told["chunk_index"] + 7,
             "mark": None}
    page._steps = [{"name": "recall", "state": "IDLE", "answer": {"evidence": [told, other]}, "at": None, "seconds": 0.1}]
    page.show()
    assert "found beside it" in said(page.ids.said) and "turning it to the left" in said(page.ids.said)
    page.pressed("answers 1")
    assert "turning it" in page.ids.note.text and "is right" in page.ids.note.text
    page.pressed("answers 1")
    assert not page.ids.note.text                        # once more, and nothing is said of it
    page.pressed("answers 1")
    hand.press("Wrong", page)
    hand.until(lambda: page._report.get("feedback"), "the mark")
    row = client.call("list_golden", limit=1)["results"][0]
    assert row["question"] == "What does the pump lift?" and "turning it to the left" in str(row)


def test_a_guess_is_confirmed_where_it_was_told(world, hand):
    _, client = world
    page, oid = guessed(hand, client, "sum_prices", "what all of it costs")
    assert "sum_prices" not in slots_of(client, oid) and "19.5" in said(page.ids.reply)
    hand.press("Confirm the guess", page)
    hand.until(lambda: not page.guess, "confirmed")
    assert "sum_prices" in slots_of(client, oid)


def test_a_guess_is_refused_by_other_words_and_nothing_is_installed(world, hand):
    _, client = world
    page, oid = guessed(hand, client, "mean_prices", "what one costs in the middle")
    page.otherwise()
    hand.settle()
    assert not page.guess and page._fields["intent"].focus and "Say in the intent" in page.ids.note.text
    assert "mean_prices" not in slots_of(client, oid)
