"""Foundations: what msgpack holds is counted before it is built; what a boundary catches."""

import asyncio
import datetime
import errno
import pathlib
import subprocess
import sys
import unicodedata

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batos
from batos import Bounds, Busy, Malformed, caught, count_packed, unpack_bounded

BOUNDS = Bounds(values=1000, depth=8, name_bytes=100)
WIDE = Bounds(values=10 ** 9, depth=10 ** 6, name_bytes=10 ** 9)
PLAIN = st.none() | st.booleans() | st.integers(-2 ** 63, 2 ** 64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner))


def counted(value):
    """Return how many values a value is, by walking what is built."""
    if isinstance(value, list):
        return 1 + sum(counted(item) for item in value)
    if isinstance(value, dict):
        return 1 + sum(1 + counted(item) for item in value.values())
    return 1


def packed(value):
    return ormsgpack.packb(value, option=ormsgpack.OPT_NON_STR_KEYS)


def many(head, count, item):
    """Return a list or map (its first byte) that says that it has `count` items, and as many bytes of `item`."""
    return head + count.to_bytes(4) + item * count


# Counting


@given(VALUES)
def test_as_many_values_are_counted_as_are_built(value):
    assert count_packed(packed(value), WIDE) == counted(value)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536, 70_000])
def test_every_form_of_a_size_is_read(size):
    for value in ("a" * size, b"a" * size, [0] * size, dict.fromkeys(range(size))):
        data = packed(value)
        assert count_packed(data, WIDE) == counted(value) and unpack_bounded(data, WIDE) == value


@given(VALUES, st.data())
def test_what_is_cut_short_is_not_whole_and_what_follows_is_a_second_value(value, data):
    whole = packed(value)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Malformed, match="not whole"):
        count_packed(whole[:cut], WIDE)
    with pytest.raises(Malformed, match="more than one value"):
        count_packed(whole + packed({"command": "health"}), WIDE)


@given(st.binary(max_size=300))
def test_any_bytes_are_built_or_refused_by_name(data):
    try:
        assert counted(unpack_bounded(data, WIDE)) <= count_packed(data, WIDE)       # a name given twice is built once
    except Malformed as error:
        assert error.message.startswith("the message ")


# Bounds


@pytest.mark.parametrize("data", [
    many(b"\xdd", 32 << 20, b"\x80"), b"\x81\xa4args" + many(b"\xdd", 1 << 20, b"\x80"), many(b"\xdf", 1 << 20, b"\x01\x80"),
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", packed([[[0] * 300] * 2] * 2)])
def test_too_many_values_are_refused_at_the_head_that_tells_of_them(data):
    with pytest.raises(Malformed, match="values or more; allowed are 1,000") as caught:
        count_packed(data, BOUNDS)
    assert caught.value.fields == {"bound": "values", "allowed": 1000}


def test_as_many_as_are_allowed_are_taken():
    assert count_packed(packed([0] * 999), BOUNDS) == 1000
    with pytest.raises(Malformed, match="1,001 values"):
        count_packed(packed([0] * 1000), BOUNDS)


@pytest.mark.parametrize("one", [b"\x91", b"\x81\xa1a"])
def test_what_is_nested_deeper_than_allowed_is_refused(one):
    assert count_packed(one * 8 + b"\x01", BOUNDS)
    with pytest.raises(Malformed, match="nested 9 deep; allowed are 8"):
        count_packed(one * 100_000 + b"\x01", BOUNDS)


@pytest.mark.parametrize("name", ["a" * 101, b"a" * 101])
def test_only_names_are_bounded_in_length(name):
    assert count_packed(packed({"a": name, "b": [name, name]}), BOUNDS) == 7
    for value in ({name: 1}, [{"a": {"b": 1, name: 2}}]):
        with pytest.raises(Malformed, match="a name of 101 bytes; allowed are 100"):
            count_packed(packed(value), BOUNDS)


@pytest.mark.parametrize(("data", "named"), [
    (ormsgpack.packb(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), option=ormsgpack.OPT_DATETIME_AS_TIMESTAMP_EXT),
     "a timestamp of msgpack"),
    (packed([ormsgpack.Ext(5, b"x")]), "the extension 5 of msgpack"),
    (packed([ormsgpack.Ext(6, b"x" * 500)]), "the extension 6 of msgpack")])
def test_extensions_are_named(data, named):
    with pytest.raises(Malformed, match=named):
        count_packed(data, BOUNDS)


def test_an_extension_that_is_known_is_read():
    bounds = Bounds(values=10, depth=2, name_bytes=10, extensions=frozenset({5}))
    for size in (0, 1, 2, 3, 4, 8, 16, 17, 300, 70_000):
        data = packed(["a", ormsgpack.Ext(5, b"x" * size), 7])
        assert unpack_bounded(data, bounds, special=lambda tag, told: (tag, len(told))) == ["a", (5, size), 7]


def test_bytes_that_no_value_begins_with_are_named():
    with pytest.raises(Malformed, match="c1"):
        count_packed(b"\x91\xc1", BOUNDS)
    with pytest.raises(Malformed, match="the parcel is not msgpack"):
        unpack_bounded(b"\xa1\xff", BOUNDS, "the parcel")
    with pytest.raises(Malformed, match="is not msgpack"):
        unpack_bounded(b"\x81\x81\x01\x01\x01", BOUNDS)              # a map as a name


def test_text_is_stepped_over_however_long_it_is():
    """Counted in reads of the bytes, not in time: as many for 10 MB as for 10."""
    class Counting(bytes):
        reads = 0

        def __getitem__(self, at):
            Counting.reads += 1
            return super().__getitem__(at)

    def reads_of(value):
        Counting.reads = 0
        count_packed(Counting(packed(value)), BOUNDS)
        return Counting.reads
    assert reads_of({"text": "a" * 10_000_000}) <= reads_of({"text": "a" * 10}) + 1


# Boundaries


class Panic(BaseException):
    """As libraries written in Rust raise it."""


def test_a_boundary_takes_every_error_and_holds_up_nothing_that_ends_on_purpose():
    for error in (Panic("x"), ValueError("x"), MemoryError(), RecursionError()):
        assert caught(error) is error
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):
        with pytest.raises(kind):
            caught(kind())


def failed_for(number):
    """Return an error of the system as it comes out of what took it for something else."""
    try:
        try:
            raise OSError(number, "as the system says")
        except OSError as error:
            raise batos.DamagedImage("the blob is missing") from error
    except batos.DamagedImage as error:
        return error


def test_a_shortage_of_descriptors_is_busy_whatever_it_was_taken_for():
    for error in (OSError(errno.EMFILE, "x"), OSError(errno.ENFILE, "x"), failed_for(errno.EMFILE)):
        told = caught(error)
        assert isinstance(told, Busy) and told.fields["resource"] == "descriptors" and told.retry
    for error in (OSError(errno.ENOENT, "x"), failed_for(errno.ENOENT)):
        assert caught(error) is error


# Imports


ALONE = """
import sys
import batos
assert [row["text"] for row in batos.sentences("Turn it. Done!")] == ["Turn it.", "Done!"]
assert not any(name.split(".")[0] == "nltk" for name in sys.modules), "nltk is there"
import nltk
assert nltk.word_tokenize and nltk.tokenize.punkt.PunktSentenceTokenizer
"""


@pytest.mark.slow
def test_sentences_are_cut_without_the_rest_of_nltk_and_it_can_be_imported_later():
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=pathlib.Path(batos.__file__).parent, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_missing_is_told_also_where_it_is_wanted_alone():
    with pytest.raises(batos.ConfigError, match="needs the Python package 'nltk.nothing'"):
        batos.need("nltk.nothing", "a test", alone=True)
    with pytest.raises(batos.ConfigError, match="needs the Python package 'nowhere.nothing'"):
        batos.need("nowhere.nothing", "a test", alone=True)


WITHOUT_TORCH = """
import sys
import batos
sys.modules["torch"] = None
try:
    batos.need("peft", "a test")
except batos.ConfigError as error:
    assert "needs the Python package 'peft'" in error.message and "torch" in error.message, error.message
else:
    raise SystemExit("it was imported")
assert not {"torch._dynamo", "scipy"} & set(sys.modules)
"""


@pytest.mark.slow
def test_what_stood_in_for_a_compiler_hides_no_missing_package():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=pathlib.Path(batos.__file__).parent, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# What a terminal is shown


FOREIGN = "\x00\x07\x08\t\n\x0b\r\x1b\x7f\x85\x9b\xad\u200b\u200c\u200d\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\ud800\udfff"
ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from(FOREIGN))


def steering(text):
    """Return the characters that a terminal would act on, turn or hide by, but for joiners."""
    return {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set(batos.JOINERS)


@given(ANY_TEXT)
def test_of_any_text_nothing_steers_the_terminal(text):
    shown = batos.shown_line(text)
    assert not steering(shown) and len(shown) == len(text) and batos.shown_line(shown) == shown
    shown.encode()


@given(st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" ")))
def test_a_text_that_steers_nothing_is_shown_as_it_is(text):
    assert batos.shown_line(text) == text and batos.shown_block(text, "> ") == [f"> {text}"] * bool(text)


@given(ANY_TEXT)
def test_each_line_of_a_block_stands_behind_the_indent(text):
    lines = batos.shown_block(text, "   ")
    assert len(lines) == len(text.splitlines()) and not steering("".join(lines))
    assert all(line.startswith("   ") for line in lines)


@pytest.mark.parametrize("text, shown", [
    ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"), ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
    ("pay\u200dpal", "pay\ufffdpal"), ("\u200cx", "\ufffdx"), ("\u0645\u200c\u200d\u062e", "\u0645\ufffd\ufffd\u062e"),
    ("\u0645\u200d \u062e", "\u0645\ufffd \u062e"),
])
def test_a_joiner_stands_only_where_it_joins(text, shown):
    assert batos.shown_line(text) == shown


def test_tabs_of_a_block_are_blanks():
    assert batos.shown_block("a\n\tb\r\n\x1b[2J") == ["a", "    b", "\ufffd[2J"]


def test_a_pattern_is_compiled_when_it_is_used_and_not_before():
    pattern = batos.Pattern(r"b(\d+)", batos.re.IGNORECASE)
    assert "search" not in pattern.__dict__ and not batos.Pattern("(").__dict__.keys() & {"search", "match"}
    assert pattern.search("a B12")[1] == "12" and pattern.sub("c", "b1 b2") == "c c" and pattern.pattern == r"b(\d+)"
    assert pattern.search == pattern.__dict__["search"]
    assert not hasattr(pattern, "scanner")


def test_an_error_that_stands_behind_itself_is_told_as_it_is():
    one, other = ValueError("one"), OSError(errno.EMFILE, "too many")
    one.__context__, other.__context__ = other, one
    assert isinstance(batos.named_shortage(one), batos.Busy)
    other.errno = errno.ENOENT
    assert batos.named_shortage(one) is one


@pytest.mark.slow
def test_a_part_of_transformers_that_came_first_does_not_keep_it_from_being_needed():
    program = ("import batos, transformers.utils as utils; assert utils.is_scipy_available(); "
               "batos.need('transformers', 'a test'); print(utils.is_scipy_available())")
    here = pathlib.Path(batos.__file__).parent
    told = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True, text=True)
    assert told.stdout == "False\n", told.stderr
