"""Texts of other scripts, as Kivy draws them here: shaped, from right to left, in fonts that fontconfig knows, never blank."""

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


def test_a_phrase_from_right_to_left_is_one_run_with_its_blanks():
    font = ui.FONTS._paths[1]
    assert ui._drawn(f"{ARABIC} {ARABIC}, x") == f"[font={font}]{ARABIC} {ARABIC}[/font], x"
    assert ui._drawn(f"{ARABIC} 12 {ARABIC}").count("[font=") == 2     # figures go from left to right


PEACE, WORLD = "\u05e9\u05dc\u05d5\u05dd", "\u05e2\u05d5\u05dc\u05dd"


@pytest.mark.parametrize("line, seen", [
    ("all from left, 12", "all from left, 12"),
    (f"say {PEACE} {WORLD} 2 times", f"say 2 {PEACE} {WORLD} times"),   # the figure goes with what stands before it
    (f"say {PEACE}, then go", f"say {PEACE}, then go"),
    (f"{PEACE} BAT OS {WORLD}", f"{WORLD} BAT OS {PEACE}"),
    (f"{PEACE} 12 {WORLD}", f"{WORLD} 12 {PEACE}"),
    (f"{PEACE} a 1 b {WORLD}.", f".{WORLD} a 1 b {PEACE}"),
    (f"a {PEACE}\u05b0 b", f"a {PEACE}\u05b0 b")])
def test_runs_of_both_directions_stand_in_a_line_as_unicode_has_it(line, seen):
    plain = [""] * len(line)
    drawn = ui.unmarked(ui._dressed(line, plain, [False] * len(line), 15))
    drawn = drawn.replace(f"{WORLD}.", f".{WORLD}")      # one run, which its font draws from right to left
    assert drawn.split() == seen.split()
    assert ui.unmarked(ui._dressed(line, plain, [False] * len(line), 15, is_line=False)) == line


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
