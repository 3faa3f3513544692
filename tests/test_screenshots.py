"""Pictures of every page in two sizes and both themes, from a real daemon: made anew where INSPECTOR_SHOTS names a folder.

    INSPECTOR_SHOTS=tests/data/screenshots python -m pytest tests/test_screenshots.py
"""

import os
import pathlib
import shutil
import subprocess
import sys

import conftest
import pytest
import windowed

import batos

ROOT = pathlib.Path(batos.__file__).parent
SIZES = ((1024, 700), (1280, 800))
HOTTEST = '''def hottest(self):
    """Return the reading with the highest temperature."""
    best = None
    for reading in self.readings:
        if best is None or reading["heat"] > best["heat"]:
            best = reading
    return best
'''
SHORTER = '''def hottest(self):
    """Return the reading with the highest temperature."""
    return max(self.readings, key=lambda reading: reading["heat"])
'''


def fill(client):
    """Have a daemon remember and do what the pictures show."""
    for path in (ROOT / "tests" / "data" / "vesper.md", ROOT / "tests" / "data" / "marrow.md"):
        client.call("index_document", doc_id=path.name, text=path.read_text("utf-8"))
    kiln = client.call("send_message", target="genesis_obj", selector="clone")["result"]["$ref"]
    readings = [{"day": f"2026-11-{day:02d}", "heat": 600 + 37 * day % 300, "cone": ("06", "04", "6")[day % 3]}
                for day in range(1, 15)]
    for name, value in (("name", "kiln"), ("readings", readings), ("limit", 1200), ("limit", 1240)):
        client.call("send_message", target=kiln, selector="setSlot_value_", args=[name, value])
    for source in (HOTTEST, SHORTER):
        client.call("create_method", target_oid=kiln, method_name="hottest", method_code=source)
    for question in ("What do giraffes eat?", "How hot does the kiln get?", "How long does the mast run in full darkness?"):
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question]}
        client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)
    talk(client)
    child_of(client, kiln, "small kiln")
    child_of(client, child_of(client, kiln, "kiln of the school"), "its copy")
    pages = [("course", "How hot the kiln was", [kiln], ["readings"]), ("object", "All of the kiln", [kiln], [])]
    for kind, title, objects, slots in pages:
        how = {"target": "morphic_ui_obj", "generate": False}
        page = client.call("send_message", **how, selector="page_of_", args=[kind, objects, slots, title])["result"]
        client.call("send_message", **how, selector="keep_page_", args=[page])
    return kiln


def child_of(client, parent, name):
    """Make an object that delegates to another one alone; returns it."""
    child = client.call("send_message", target=parent, selector="clone")["result"]["$ref"]
    for slot, value in (("name", name), ("parent*", [{"$ref": parent}])):
        client.call("send_message", target=child, selector="setSlot_value_", args=[slot, value])
    return child


def talk(client):
    """Have a conversation, of which two answers are marked."""
    cycles = []
    for question in ("How is the rain gauge tipped?", "How is the mast paired with a base station?", "What charges the battery?"):
        brief = {"type": "direct_synthesis", "selector": "answer_", "args": [question], "conversation": "the mast"}
        told = client.call("initiate_cognitive_cycle", mission_brief=brief, wait=True)
        cycles.append(told["result"]["cycle"])
    client.call("feedback", cycle=cycles[0], mark="wrong", note="It gives 0.2 mm a tip", correction={"quotes": [], "not": [1]})
    client.call("feedback", cycle=cycles[1], mark="right", note="")


@pytest.mark.slow
def test_every_page_can_be_shown_in_two_sizes_and_both_themes(tmp_path):
    windowed.need_gl()
    windowed.need_programs("convert")
    folder = tmp_path / "pictures"
    folder.mkdir()
    daemon = conftest.DaemonProcess(tmp_path, core="auto")
    try:
        with batos.Client(daemon.endpoint) as client:
            kiln = fill(client)
        for size in SIZES:
            words = [daemon.endpoint, kiln, *map(str, size), str(folder)]
            subprocess.run([sys.executable, str(ROOT / "tests" / "pictures.py"), *words], check=True, timeout=600)
    finally:
        daemon.stop(kill=True)
    made = sorted(folder.glob("*.png"))
    assert len(made) == 12 * len(SIZES) * 2
    if "INSPECTOR_SHOTS" in os.environ:
        for path in made:
            shutil.copy(path, os.environ["INSPECTOR_SHOTS"])
