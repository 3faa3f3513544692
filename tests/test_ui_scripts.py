"""Texts of other scripts, as Kivy draws them here: shaped, from right to left, in fonts that fontconfig knows, never blank."""

import re

import pytest
import windowed

ui = windowed.ui
HEBREW, ARABIC, KANJI, CUNEIFORM = "\u05d0\u05d1", "\u0643\u062a\u0627\u0628", "\u4e2d\u6587", "\U00012000"


@pytest.fixture(scope="module", autouse=True)
def gl():
    windowed.need_gl()
    from kivy.core.window import Window
    assert Window


def columns(text, font=None):
    """The ink in each column of a text, without the bare ones at its ends."""
    label = ui.CoreLabel(text=text, font_name=font or ui.FONTS._paths[1], font_size=40)
    label.refresh()
    wide, high = label.texture.size
    pixels = label.texture.pixels
    ink = [sum(pixels[(y * wide + x) * 4 + 3] for y in range(high)) for x in range(wide)]
    inked = [x for x, one in enumerate(ink) if one]
    return ink[inked[0]:inked[-1] + 1] if inked else []


def test_arabic_letters_are_joined_and_latin_is_as_before():
    latin = columns("ab")
    apart = sum(len(columns(one)) for one in ARABIC)
    assert len(columns(ARABIC)) < 0.9 * apart and columns("ab") == latin
    assert ui.FONTS._is_shaped()
    assert [ui.FONTS.font_for(one) for one in ARABIC] and not ui.FONTS.unshaped


def test_hebrew_goes_from_right_to_left():
    aleph, bet = (columns(one) for one in HEBREW)
    whole = columns(HEBREW)
    assert whole[:len(bet)] == bet and whole[-len(aleph):] == aleph


def test_what_is_measured_is_what_is_drawn():
    for text in (ARABIC, HEBREW, "ab", ARABIC):
        label = ui.CoreLabel(text=text, font_name=ui.FONTS._paths[1], font_size=40)
        label.refresh()
        assert label.texture.size[0] == label.get_extents(text)[0] and len(columns(text)) <= label.texture.size[0]


def test_a_paragraph_that_goes_left_stands_at_the_right_and_takes_the_room_that_was_measured():
    long = f"{PEACE} {WORLD} BAT 12, " * 30
    for text, side in ((long, "right"), (f"a {long}", "left")):
        block, = ui.blocks_of("markdown", [(1, text, 0)])
        rows = ui.block_rows(block, 700)
        assert len(rows) > 3 and {one["halign"] for one in rows} == {side}
        labels = [label for one in rows for label in ui.Row.labels_of(one, 700)]
        assert [len(label._cached_lines) for label in labels] == [1] * len(rows)
        assert len({line.x == 0 for label in labels for line in label._cached_lines}) == 1


PEACE, WORLD = "\u05e9\u05dc\u05d5\u05dd", "\u05e2\u05d5\u05dc\u05dd"


def label_of(said, width=None):
    label = ui.MarkupLabel(text=said, font_size=15, text_size=(width, None))
    label.refresh()
    return label


def seen(label, between=""):
    """What stands in each line of a label from left to right, each run as it is read."""
    return [between.join(word.options.get("said", word.text) for word in line.words) for line in label._cached_lines]


ORDERS = [
    ("all from left, 12", "all from left, 12"),
    (f"say {PEACE} {WORLD} 2 times", f"say 2 {WORLD} {PEACE} times"),   # the figure goes with what stands before it
    (f"say {PEACE}, then go", f"say {PEACE}, then go"),
    (f"{PEACE} BAT OS {WORLD}", f"{WORLD} BAT OS {PEACE}"),
    (f"{PEACE} 12:30 {WORLD}", f"{WORLD} 12:30 {PEACE}"),
    (f"{PEACE} 5% {WORLD}", f"{WORLD} 5% {PEACE}"),
    (f"{PEACE} a 1 b {WORLD}.", f".{WORLD} a 1 b {PEACE}"),
    (f"a {PEACE}\u05b0 b", f"a {PEACE}\u05b0 b")]


@pytest.mark.parametrize("line, order", ORDERS)
def test_runs_of_both_directions_stand_in_a_line_as_unicode_has_it(line, order):
    plain = [""] * len(line)
    for said in (ui.marked(line), ui._dressed(line, plain, [False] * len(line), 15)):
        drawn, = seen(label_of(said))
        assert drawn.replace(f"{WORLD}.", f".{WORLD}").split() == order.split()
        assert ui.unmarked(said) == line                 # what is copied is what was written


def test_levels_are_those_of_the_standard_s_rules_also_for_brackets_and_figures():
    told = {"a(\u05d0)b": "00100", "\u05d0(a)\u05d1": "11211", "\u05d0 a (b) \u05d1": "112222211", "a(\u05d0": "001",
            "\u0628 12-13": "1122122", "\u05d0 12-13": "1122222"}
    assert {text: "".join(map(str, ui.levels_of(text))) for text in told} == told
    assert ui.levels_of("a \u05d0", "rtl") == [2, 1, 1] and ui.levels_of("12") == [0, 0] and ui.levels_of("") == []


def test_a_text_of_both_ways_that_kivy_wraps_stands_as_it_is_read_in_every_line():
    text = f"{PEACE} alpha beta {WORLD} gamma delta, {PEACE} 12 {WORLD} (epsilon) {PEACE}"
    label = label_of(ui.marked(text), 150)
    lines = label._cached_lines
    assert len(lines) > 2 and " ".join(map(ui.line_text, lines)) == text
    for line, drawn in zip(lines, seen(label, " "), strict=True):
        said = ui.line_text(line)
        runs = ui.runs_of(ui.levels_of(said, "rtl"))
        order = ui.seen_order([level for *_, level in runs])
        stands = " ".join(said[runs[n][0]:runs[n][1]] for n in order)
        assert re.findall(r"\w+", drawn) == re.findall(r"\w+", stands) and drawn != said
        assert sum(word.lw for word in line.words) <= line.w <= 150


def test_brackets_in_what_goes_left_are_turned_and_a_text_set_apart_turns_nothing_around_it():
    drawn, = label_of(ui.marked(f"({PEACE})"))._cached_lines
    assert "".join(word.text for word in drawn.words) == f"({PEACE})"   # Kivy's own order shows the same: both are mirrored
    assert [word.options["said"] for word in drawn.words] == [")", PEACE, "("]
    apart = f"{ui.marked('12:03')}  {ui.marked(PEACE, 'warm')}  {ui.marked('by me', 'faint')}"
    assert seen(label_of(apart)) == [f"12:03  {PEACE}  by me"]
    lines = ui.lines_marked(f"go {PEACE} {WORLD} BAT " * 2, 100)
    assert len(lines) > 1 and all("[text_language=ltr]" in one for one in lines if ui.goes_left(one))


def test_a_field_draws_both_ways_run_by_run():
    font = ui.FONTS._paths[1]
    mixed, parts = columns(f"ab {PEACE}", font), [columns(one, font) for one in ("ab", PEACE)]
    assert mixed[:len(parts[0])] == parts[0] and mixed[-len(parts[1]):] == parts[1]
    assert ui.runs_as_seen(f"{PEACE} 12 ab") == ("ab", " ", "12", f"{PEACE} ")


def test_what_is_chosen_in_a_line_of_both_ways_is_lit_where_it_stands():
    label = label_of(ui.marked(f"go {PEACE} 12 on"))
    line, = label._cached_lines
    whole = ui.boxes_between([(0, 0, label)], (0, 0), (0, ui.ALL))
    assert len(whole) == 1 and abs(whole[0][2] - line.w) <= 2
    part = ui.boxes_between([(0, 0, label)], (0, 0), (0, 3 + len(PEACE)))
    assert len(part) == 2 and part[0][0] + part[0][2] < part[1][0]      # the figure stands between
    for char in range(len(ui.line_text(line)) + 1):
        x = ui.x_of(label, line, char)
        assert abs(ui.x_of(label, line, ui.char_at(label, line, x)) - x) <= 1


@pytest.mark.parametrize("text, way", [
    ("plain", ("Latin", "ltr")), ("", ("Latin", "ltr")), (KANJI, ("Latin", "ltr")), (HEBREW, ("Hebr", "rtl")),
    (f"a {ARABIC}", ("Arab", "rtl")), ("\u0915\u094d\u0937", ("Deva", "ltr"))])
def test_a_run_goes_the_way_of_its_first_letter_that_takes_shaping(text, way):
    assert ui.way_of(text) == way


def test_fontconfig_is_asked_once_for_a_script_and_found_fonts_are_taken(monkeypatch, tmp_path):
    asked = []
    font = tmp_path / "Noto-Regular.ttf"
    font.write_bytes(b"")

    def ran(words, **how):
        asked.append(words)
        return ui.subprocess.CompletedProcess(words, 0, f"{font}: \n/x/NotoColorEmoji.ttf: \n", "")
    monkeypatch.setattr(ui.subprocess, "run", ran)
    monkeypatch.setattr(ui, "_system_fonts", list)
    monkeypatch.setattr(ui, "coverage", lambda path: [(0x4e00, 0x9fff)] if path == str(font) else [])
    fonts = ui.Fonts()
    assert [fonts.font_for(one) for one in KANJI] == [str(font)] * 2 and not fonts.missing
    assert asked == [["fc-list", ":charset=4e2d", "file"]]
    fonts.font_for(CUNEIFORM)
    assert fonts.missing == {"CUNEIFORM"} and len(asked) == 2


def test_where_fontconfig_is_not_there_the_folders_are_walked(monkeypatch):
    def none(*_, **__):
        raise FileNotFoundError("fc-list")
    monkeypatch.setattr(ui.subprocess, "run", none)
    assert ui._by_fontconfig("\u4e2d") == []


def test_what_no_font_has_is_a_box_and_said(monkeypatch):
    monkeypatch.setattr(ui, "_system_fonts", list)
    monkeypatch.setattr(ui, "_by_fontconfig", lambda char: [])
    fonts = ui.Fonts()
    assert fonts.font_for(CUNEIFORM) is None and "cuneiform" in fonts.note()
    assert len(columns(CUNEIFORM, fonts.base)) > 5


def test_where_nothing_is_shaped_that_is_said():
    fonts = ui.Fonts()
    fonts.shapes = False
    fonts.font_for(ARABIC[0])
    assert "arabic" in fonts.note() and "unshaped" in fonts.note()
