"""Take pictures of every page of the Inspector, in a window of one size, in both themes.

    python pictures.py ENDPOINT KILN WIDTH HEIGHT FOLDER
"""

import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import windowed
from windowed import Hand

ui = windowed.ui


def show_search(hand, kiln):
    page = hand.page("search")
    page.ids.query.text = "battery darkness"
    page.ask()
    hand.settle()
    page.ids.rows.choose(0)


def show_ask(hand, kiln):
    page = hand.page("ask")
    page.go(cycle=next(one["cycle"] for one in page._reports if "darkness" in one["mission"]))
    page.ids.tabs.chosen = "answer"


def show_thread(hand, kiln):
    page = hand.page("ask")
    page.go(cycle=next(one["cycle"] for one in page._reports if "conversation" in one))
    page.ids.tabs.chosen = "thread"
    hand.until(lambda: len(page._thread) == 3, "the thread")


def show_thought(hand, kiln):
    show_ask(hand, kiln)
    page = hand.page("ask")
    page.ids.tabs.chosen = "thought"
    voices = hand.until(lambda: list(page.ids.voices.lists.values()), "who spoke")
    page.unfold(next(one["value"] for one in voices[0].data if one["value"]))


def show_objects(hand, kiln):
    page = hand.page("objects")
    page.ids.tabs.chosen = "slots"
    page.open(kiln)
    hand.settle()
    page.rows.choose([one["value"][0] for one in page.rows.data].index("readings"))
    page.toggle()


def show_graph(hand, kiln):
    page = hand.page("objects")
    page.open(kiln)
    hand.settle()
    page.ids.tabs.chosen = "graph"
    hand.until(lambda: page._grandchildren, "those further down")


def show_method(hand, kiln):
    page = hand.page("objects")
    page.ids.tabs.chosen = "slots"
    page.open(kiln)
    hand.settle()
    page.open(ui.ref_of(page.value("hottest")), owner=(kiln, "hottest"))
    hand.until(lambda: len(page._versions) > 1, "its versions")


def show_messages(hand, kiln):
    page = hand.page("messages")
    page.choose("send_message", {"target": kiln, "selector": "hottest"})
    page.send()


def show_experts(hand, kiln):
    hand.page("experts")


def show_life(hand, kiln):
    page = hand.page("life")
    page.ids.tabs.chosen = "changes"
    hand.until(lambda: len(hand.store.samples) > 1, "figures")
    page.ids.rows.choose(0)


def show_pages(hand, kiln):
    page = hand.page("pages")
    page.show("how_hot_the_kiln_was")
    hand.until(lambda: page._told and page.sparks, "the page that is kept")


def show_palette(hand, kiln):
    hand.page("search")
    hand.root.show_palette()
    hand.until(lambda: hand.dialog().field.focus, "the palette")
    hand.type("mess")


PICTURES = {name.removeprefix("show_"): show for name, show in globals().items() if name.startswith("show_")}


def take(hand, show, kiln, path):
    """Show something and keep its picture, which is not empty, in few colours."""
    show(hand, kiln)
    for _ in range(3):
        hand.settle()
    made = hand.window.screenshot(name=str(path.with_name("raw.png")))
    told = subprocess.check_output(["convert", made, "-format", "%k %w %h", "info:"], text=True, timeout=60)
    colours, width, height = map(int, told.split())
    assert colours > 60 and [width, height] == list(map(int, hand.window.size)), path.name
    subprocess.run(["convert", made, "+dither", "-colors", "96", "-strip", str(path)], check=True, timeout=60)
    os.unlink(made)
    for one in [one for one in hand.window.children if isinstance(one, ui.Dialog)]:
        one.dismiss(animation=False)


def main(endpoint, kiln, width, height, folder):
    from kivy.config import Config
    Config.set("graphics", "width", width)               # a surface that nobody sees keeps its first size
    Config.set("graphics", "height", height)
    hand = Hand(endpoint)
    hand.online()
    for theme in ui.THEMES:
        hand.app.choose_look(theme=theme)
        for name, show in PICTURES.items():
            take(hand, show, kiln, pathlib.Path(folder, f"{name}-{width}-{theme}.png"))
    hand.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
