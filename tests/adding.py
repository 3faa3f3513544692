"""BAT OS with one more of each thing that it has tables of, for the tests: each is added as somebody would add it to batos.py,
in the two places at most that stand here.

    python tests/adding.py WORDS            as batos.py
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import batos

FACET = "I ask first what it costs."


def add_a_setting():
    row = batos.Setting("words_most", 7, "words", "how many words are counted at most")
    batos.SETTINGS[row.name] = row


def add_a_command():
    class CountWordsCommand(batos.Command):
        """Count the words of a text, up to `words_most`."""

        text: str

    @batos.command(CountWordsCommand, lane="counting", role="read")
    def count_words(request, root):
        count = min(len(request.command.text.split()), int(request.settings.words_most))
        return {"details": f"{count} words, beside {len(root)} root objects", "result": {"count": count}}


def add_a_lane():
    made = batos.BatOS_UVM._make_lanes

    def with_another(uvm):
        made(uvm)
        uvm.lanes["counting"] = batos.ReadLane(uvm.image, "counting")
    batos.BatOS_UVM._make_lanes = with_another


def add_a_format():
    def read_notes(data, name):
        return batos.Extract("\n\n".join(json.loads(data)["notes"]), {"title": name})
    batos.FORMATS[".notes"] = batos.Format("text", read_notes)


def add_a_facet():
    batos.CODEX["BRICK"][1]["purser_facet_"] = FACET


def main(words):
    """Run the command line with all of them. Returns the exit status."""
    for add in (add_a_setting, add_a_command, add_a_lane, add_a_format, add_a_facet):
        add()
    return batos.main(words)


if __name__ == "__main__":
    batos._leave(main(sys.argv[1:]))
