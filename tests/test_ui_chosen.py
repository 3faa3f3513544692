"""Text that is chosen with the mouse and copied, in an offscreen window: in lists, in labels, in what is drawn."""

import gc

import pytest
import windowed
from windowed import Hand

ui = windowed.ui
HASH = "0123456789abcdef" * 3
PROSE = "The rain gauge tips once for each 0.2 millimetres. " * 2


@pytest.fixture(scope="module")
def hand():
    """An Inspector of no daemon."""
    hand = Hand("tcp://127.0.0.1:9")
    yield hand
    hand.close()


@pytest.fixture
def copied(monkeypatch):
    from kivy.core.clipboard import Clipboard
    kept = []
    monkeypatch.setattr(Clipboard, "copy", kept.append)
    yield kept
    ui.CHOICE.clear()


def touched(widget, x, y, button=None):
    """Press the mouse at a place of a widget's own coordinates; returns the touch."""
    from kivy.tests.common import UnitTestTouch
    touch = UnitTestTouch(*widget.to_window(x, y))
    if button:
        touch.button, touch.profile = button, [*touch.profile, "button"]
    touch.touch_down()
    return touch


def view_of(hand, rows, index):
    return hand.until(lambda: next((one for one in rows.children[0].children if one.index == index and one._places), None))


def place_of(view, char, line=0):
    """Return where a character of a row stands, in the list's own coordinates."""
    left, top, label = view._places[line]
    drawn = label._cached_lines[0]
    return left + ui.x_of(label, drawn, char), top - drawn.h / 2


def drag(hand, rows, start, end):
    """Choose text of a list from (row, character) to (row, character)."""
    first, last = (view_of(hand, rows, index) for index, _ in (start, end))
    touch = touched(first, *place_of(first, start[1]))
    touch.touch_move(*last.to_window(*place_of(last, end[1])))
    touch.touch_up()
    hand.loop.idle()


def filled(hand, rows):
    page = hand.page("life")
    page.ids.halves.fold(page.ids.lines, False)          # without a daemon there is nothing to show in full
    page.ids.lines.fill(rows)
    for _ in range(4):
        hand.loop.idle()
    return page.ids.lines


def test_a_part_that_is_folded_away_is_there_when_it_is_wanted_again(hand):
    page = hand.page("life")
    for is_folded in (False, True):
        page.ids.halves.fold(page.ids.lines, is_folded)
        hand.loop.idle()
    gc.collect()                                         # which takes what nobody holds
    page.ids.halves.fold(page.ids.lines, False)
    assert page.ids.lines.parent.__self__ is page.ids.halves.__self__


def menu(hand):
    return next(one for one in hand.window.children if isinstance(one, ui.Menu))


def test_text_is_chosen_over_rows_and_copied(hand, copied):
    rows = filled(hand, [ui.row(ui.marked(f"row [{number}] of lamps", bold=number == 1), value=number) for number in range(5)])
    drag(hand, rows, (0, 4), (2, 7))
    assert ui.CHOICE.said() == "[0] of lamps\nrow [1] of lamps\nrow [2]"
    hand.key(ord("c"), "ctrl")
    assert copied == ["[0] of lamps\nrow [1] of lamps\nrow [2]"]
    drag(hand, rows, (3, 7), (3, 4))                     # backwards
    assert ui.CHOICE.said() == "[3]"
    touched(rows, *rows.children[0].children[0].center).touch_up()
    assert ui.CHOICE.said() == ""                        # a click chooses none


def test_lines_of_one_paragraph_are_copied_as_one_and_a_long_value_whole(hand, copied):
    blocks = ui.blocks_of("markdown", [(1, PROSE, 0), (2, "", 0), (3, HASH, 0)])
    rows = filled(hand, [one for block in blocks for one in ui.block_rows(block, 270)])
    assert len(rows.data) >= 5
    hand.loop.idle()
    last = len(rows.data) - 1
    drag(hand, rows, (0, 4), (last, len(rows.data[last]["copy"])))
    assert ui.CHOICE.said() == f"{PROSE.strip()[4:]}\n\n{HASH}"
    rows.choose_all()
    ui.CHOICE.clear()
    rows.copy()
    assert copied[-1].replace("\n", " ").split() == [*PROSE.split(), HASH]


def test_what_is_chosen_is_drawn_and_goes_when_other_rows_come(hand, copied):
    rows = filled(hand, [ui.row("a lamp that hangs in the hall", value=1)])
    view = view_of(hand, rows, 0)

    def grounds():
        return [one for one in view._inner.children if isinstance(one, ui.Color) and one.a == pytest.approx(ui.CHOSEN_ALPHA)]
    assert not grounds()
    drag(hand, rows, (0, 2), (0, 6))
    assert len(grounds()) == 1
    rows.fill([ui.row("a lamp that hangs in the hall", value=1)])
    assert ui.CHOICE.said() == "lamp"                    # the same text stays chosen
    rows.fill([ui.row("another", value=1)])
    assert ui.CHOICE.said() == ""


def test_a_list_moves_on_where_the_mouse_leaves_it(hand, copied):
    rows = filled(hand, [ui.row(f"row {number}", value=number) for number in range(200)])
    first = view_of(hand, rows, 0)
    touch = touched(first, *place_of(first, 0))
    x, y = rows.to_window(rows.x + 40, rows.y - 30)
    for step in range(30):
        touch.touch_move(x, y - step % 2)
        hand.loop.idle()
    touch.touch_up()
    assert rows.scroll_y < 1 and ui.CHOICE.said().startswith("row 0\nrow 1\n") and ui.CHOICE.said().count("\n") > 20


def test_text_of_a_label_is_chosen_and_copied_by_its_menu(hand, copied):
    page = hand.page("life")
    label = page.ids.vitals
    label.text = ui.marked("up 2 d   ") + ui.marked("core ready", "good")
    for _ in range(3):
        hand.loop.idle()
    (left, top, drawn), = label._drawn()
    line = drawn._cached_lines[0]
    spots = [left + ui.x_of(drawn, line, char) for char in (9, 13)]
    touch = touched(label.parent, spots[0], top - line.y - 4)
    touch.touch_move(*label.parent.to_window(spots[1], top - line.y - 4))
    touch.touch_up()
    assert ui.CHOICE.said() == "core"
    touched(label.parent, spots[0], top - line.y - 4, "right").touch_up()
    hand.press("Copy", menu(hand))
    assert copied == ["core"]
    label.text = "other"
    for _ in range(3):
        hand.loop.idle()
    assert ui.CHOICE.said() == ""


def test_a_field_and_a_drawing_have_their_menus(hand, copied):
    page = hand.page("life")
    field = page.ids.filter
    field.text = "lamps"
    field.focus = True
    field.select_all()
    touched(field.parent, *field.center, button="right").touch_up()
    hand.press("Cut", menu(hand))
    assert copied == ["lamps"] and field.text == ""
    spark = page.sparks[0]
    spark.data = {"title": "waiting", "unit": "jobs", "values": [(1.0, 3), (2.0, 4)], "when": str}
    for _ in range(3):
        hand.loop.idle()
    touched(spark.parent, *spark.center, button="right").touch_up()
    hand.press("Copy", menu(hand))
    assert copied[-1] == "waiting\tjobs\n1.0\t3\n2.0\t4"


def test_arabic_is_chosen_from_the_right(hand, copied):
    rows = filled(hand, [ui.row(ui.marked("\u0645\u0631\u062d\u0628\u0627"), value=0)])
    label = view_of(hand, rows, 0)._places[0][2]
    line = label._cached_lines[0]
    places = [ui.x_of(label, line, char) for char in range(len(ui.line_text(line)) + 1)]
    assert places[0] > places[1] > places[2] > places[3] or ui.FONTS.missing
