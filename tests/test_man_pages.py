"""Pages of the manual: what a terminal shows of one, as a text with headings, under the lines of its file."""

import contextlib
import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batos

MAN = r"""'\" t
.\" Copyright nobody
.ie \n(.g .ds Aq \(aq
.el       .ds Aq '
.de FN
\fI\|\\$1\|\fP\\$2
..
.de OR
.  ie \\n(.$-1 \
.    RI "\fB\\$1\fP" "\ \\$2"
.  el .BR \\$1
..
.TH "BUOY.CONF" "5" "2026" "buoy 1" "Files"
.SH "NAME"
Buoy.conf, buoyd \- what a buoy does \(em by night
.SH DESCRIPTION
The
.B buoyd
daemon reads
.FN /etc/buoy.conf .
It\*(Aqs never
.\" a comment
.IR changed " by " it\c
\&.
.if t Printed.
.if n On a terminal.
.ie t \{\
.IP no
\}
.el \{\
.PP
\}
Caf\('e \[u00E9]\s-1BIG\s0 \(lqq\(rq 2\e3 a\(enb.
.SS Options
.TP
.BR \-l ", " \-\-lamp = \fIcolour\fP
.\" between
The colour of the lamp.
.TP
.PD 0
.B \-\-
.TP
.B \-x
.PD
Ends
the options.
.IP \(bu 2
one
.IP \(bu
two
.PP
.OR server
.OR host name
.RS 4
Where it asks.
.sp
More.
.RE
.SH EXAMPLES
.nf
buoyd \-\-lamp 'red'  # at night

    echo \(aqa\(aq
.fi
# is a prompt.
.TS
tab(:);
lb lb
l l.
Name:What
_
T{
.B port
T}:T{
the red
lamp
T}
green:a|b
.TE
See
.UR https://example.org/
the page
.UE .
"""
MAN_TOLD = """# Buoy.conf(5)

## NAME

Buoy.conf, buoyd - what a buoy does — by night

## DESCRIPTION

The buoyd daemon reads /etc/buoy.conf. It's never changed by it. On a terminal.

Café éBIG “q” 2\\3 a–b.

### Options

-l, --lamp=colour
The colour of the lamp.

`--`
-x
Ends the options.

- one

- two

server host name
Where it asks.

More.

## EXAMPLES

    buoyd --lamp 'red'  # at night

        echo 'a'

`#` is a prompt.

| Name | What |
|---|---|
| port | the red lamp |
| green | a\\|b |

See the page <https://example.org/>."""

LONG = "which is told in a line of its own that is a good deal longer than the width to which others are joined, "
MDOC = r"""
.Dd May 1, 2026
.Dt BUOYCTL 8
.Os
.Sh NAME
.Nm buoyctl
.Nd tell a buoy what to do
.Sh SYNOPSIS
.Nm
.Op Fl lv
.Op Fl -lamp Ar colour | Fl n
.Oo
.Ar host Ns Op : Ns Ar port
.Oc
.In buoy.h
.Sh DESCRIPTION
The
.Nm
utility (see
.Xr buoy.conf 5 ,
.Sx FILES )
tells
.Dq a buoy .
.Bl -tag -width Ds
.It Fl l Ns , Fl -lamp Ar colour
Sets
.Ar colour .
.It Fl n Xo
.Op Ar count
.Xc
Blinks.
.El
.Bl -bullet
.It
one
.El
.Bl -enum -compact
.It
first
.It
second
.El
.Bl -column a b
.It Sy Name Ta Sy What
.It a	b c
.El
.Bd -literal -offset indent
$ buoyctl  -l red
.Ed
.Dl buoyctl -n
.Fn turn "int left" "int far"
.Sh EXIT STATUS
.Ex -std
"""
MDOC_TOLD = """# buoyctl(8)

## NAME

buoyctl - tell a buoy what to do

## SYNOPSIS

buoyctl [-lv] [--lamp colour | -n] [host[:port]]
#include <buoy.h>

## DESCRIPTION

The buoyctl utility (see buoy.conf(5), “FILES”) tells “a buoy”.

-l, --lamp colour
Sets colour.

-n [count]
Blinks.

- one

1. first

2. second

| Name | What |
| a | b c |

    $ buoyctl  -l red

    buoyctl -n

turn(int left, int far)

## EXIT STATUS

The buoyctl utility exits 0 on success, and >0 if an error occurs."""


@pytest.mark.parametrize(("page", "told", "title", "places"), [
    (MAN, MAN_TOLD, "Buoy.conf(5) - what a buoy does — by night", {
        "## NAME": '.SH "NAME"', "The colour of the lamp.": "The colour of the lamp.", "Where it asks.": "Where it asks.",
        "- two": "two",
        "    buoyd --lamp 'red'  # at night": "buoyd \\-\\-lamp 'red'  # at night", "| port | the red lamp |": "T{"}),
    (MDOC, MDOC_TOLD, "buoyctl(8) - tell a buoy what to do", {
        "-n [count]": ".Op Ar count", "Blinks.": "Blinks.", "1. first": "first", "| a | b c |": ".It a\tb c"})])
def test_a_page_of_the_manual_is_what_a_terminal_shows_and_knows_its_files_lines(tmp_path, page, told, title, places):
    path = tmp_path / "page.1ssl.gz"
    path.write_bytes(gzip.compress(page.encode()))
    text, metadata = batos.read_file(path, 10_000)
    assert text == told and metadata["title"] == title and batos.guess_kind(text, path.name) == "markdown"
    source = page.split("\n")
    shown = {line: source[batos.file_lines(metadata, [number])[0] - 1] for number, line in enumerate(text.split("\n"), 1)}
    assert {line: shown.get(line, "") for line in places} == places


def test_words_that_a_generator_puts_into_lines_of_their_own_go_on_with_the_sentence():
    """As DocBook writes pages: a sentence a line, however long, and what is bold in it alone."""
    page = f"Sets the folder, {LONG * 2}with the\n\\fBchroot\\fR(2)\ncall, {LONG}see\n\\fIRootImage=\\fR\nas {LONG}\n{LONG}\n"
    told = f"Sets the folder, {LONG * 2}with the chroot(2) call, {LONG}see RootImage= as {LONG.strip()}"
    assert batos.read_man(b".TH A 1\n.SH B\n" + page.encode(), "a.1").text.split("\n")[4:] == [told, LONG.strip()]


def test_a_heading_of_a_page_of_the_manual_is_over_its_options():
    drafts = batos.cut_text(MAN_TOLD.replace("The colour of the lamp.", "The colour of the lamp. " * 60), "markdown")
    assert ("Buoy.conf(5)", "DESCRIPTION", "Options") in [draft.headings for draft in drafts]


@pytest.mark.parametrize("text", ["Nov 1 00:00:00 buoyd: started\n.TH\n", "* 1.0 first\n\n.conf files are read\n", "# a\n"])
def test_what_is_named_as_a_page_of_the_manual_and_is_none_is_read_as_it_is(text):
    assert batos.read_man(text.encode(), "changelog.1") == (text, {})


def test_a_page_that_only_leads_to_another_is_no_document():
    with pytest.raises(batos.BadRequest, match="only leads to the page man1/xz.1") as refused:
        batos.read_man(b".\\\" alias\n.so man1/xz.1\n", "unxz.1")
    assert refused.value.fields["no_document"]


@pytest.mark.parametrize(("written", "told"), [
    (r"\fBa\fR\f(CWb\fP\f[I]c\f[]", "abc"), (r"\s-2a\s0\s+1b\s'1'c\s[2]d", "abcd"),
    (r"\(co \[u2014] \[char65] \(:a\(ss \N'66'", "© — A äß B"),
    (r"a\h'-04'\(bu\h'+03'b", "a• b"), (r"\w'x'u\v'1'\o'ab'\z.x\k(aa\n(zzb", "ua.xb"),
    (r"a\~b\ c\0d\|e\^f\&g\%h\:i\/j\,k", "a b c defghijk"),
    (r"\- \e \\ \' \` \. \_ \@", r"- \ \ ' ` . _ @"), ("a\\\" gone", "a"),
    (r"\*(lqx\*(rq \*[none]\*x", "“x” "), (r"\(nn\[none]a", "a")])
def test_fonts_and_escapes_of_a_page_of_the_manual_become_characters(written, told):
    assert batos._Roff().plain(written) == told


def test_what_a_page_of_the_manual_defines_is_bounded():
    loop = ".TH A 1\n.SH B\n.de a\n.b \\\\$1\n.b x\n..\n.de b\n.a \\\\$1\n.a y\n..\n.ds s \\*s\\*s\\*sz\n" + ".a 1\n\\*s\n" * 100
    assert len(batos.read_man(loop.encode(), "a.1").text) < 20_000


@pytest.mark.parametrize("unit", [
    "\\*a", "\\c\n", "a\\c\n", ".Oo\n", ".TP\n", ".TP\na\n", ".if n ", ".if n \\{\\\n", ".ie t \\{\n", ".de a\n.a\n..\n.a\n",
    ".TS\nl.\nT{\n",
    "a\tT{\n", ".Op ", ".It Xo\n", "\\[a\\(", '"', "\\", "\\\n", ".x \\\n", "\\h'", "\\w'a", "'", ".ig\n",
    ".als a b\n.als b a\n.a\n",
    ".if 'a'b'", "\t", ".nf\n"])
def test_no_page_of_the_manual_takes_more_than_a_moment(unit):
    batos.read_man((".TH A 1\n.SH NAME\na \\- b\n" + unit * 20_000).encode(), "a.1")


@given(st.text(st.sampled_from(".\\'\"[](*{}fBTPSHIneio \n\tc&x-"), max_size=200))
@settings(max_examples=300)
def test_any_page_of_the_manual_is_read_and_its_lines_are_the_files(text):
    page = ".TH A 1\n" + text
    with contextlib.suppress(batos.BadRequest):
        told, metadata = batos.read_man(page.encode(), "a.1")
        numbers = [batos.file_lines(metadata, [number])[0] for number in range(1, told.count("\n") + 2)]
        assert numbers == sorted(numbers) and numbers[-1] <= page.count("\n") + 1 and "\0" not in told
