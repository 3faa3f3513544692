"""The Memory Inspector of BAT OS: a window on the living image, by Kivy.

    python morphic_ui.py [--endpoint tcp://127.0.0.1:5555] [--keys FILE]

It shows what the system remembers, what it is thinking, which objects there are and how they delegate, and where the
experts sit; it changes them by the same messages as any other client. It needs kivy, pyzmq and ormsgpack, and nothing
else of the system: a daemon on another machine is shown as well as one on this.

    Ctrl+1 … Ctrl+6   the pages            Up, Down, Page, Home, End   move in a list
    Ctrl+K or /       to the search field  Enter                       open what is selected
    Ctrl+Z            undo a change        Escape                      back; it never quits
    F1                help of the page     F5                          ask anew
    Ctrl+Q            quit                 Tab, Shift+Tab              next field, the one before

The order of the file:

    specification   SPEC and COMMANDS: what is shown, as data; all below is made from them
    Words           values, differences and scripts as text
    Bridge          one thread that owns the socket; the Store, which knows what was told
    Options         where the daemon is
    Fonts           which font shows which script
    Widgets         fields, lists, readers, drawings
    pages           one class and its kv rule each
    Inspector       the window: navigation, banners, layout
"""

import argparse
import bisect
import collections
import contextlib
import dataclasses
import datetime
import difflib
import functools
import json
import math
import os
import pathlib
import queue
import re
import secrets
import socket
import stat
import struct
import sys
import threading
import time
import traceback
import unicodedata

import ormsgpack
import zmq
import zmq.utils.monitor

# ---- made by BAT OS
#
# What the personas were asked for, and whence each part of the specification is:
#
# generate_requirements  BABS    the canonical one
# generate_kivy_classes  BRICK   the canonical one
# generate_kv_layout     ROBIN   the canonical one
# assemble_and_execute   ALFRED  the canonical one

# ---- specification

# fmt: off
SPEC = {
    "title": "BAT OS Memory Inspector",
    "accent": "#f0b03f",
    "palette": {
        "ground": "#11141a",
        "panel": "#181d26",
        "raised": "#222a36",
        "edge": "#303b4a",
        "chosen": "#2b3a4d",
        "ink": "#e6e9ee",
        "soft": "#98a3b3",
        "faint": "#6b7686",
        "good": "#5fc98f",
        "bad": "#f0716c",
        "cool": "#5aa9f0",
        "warm": "#f0b03f",
        "violet": "#b48cf2",
    },
    "pages": [
        {
            "name": "search",
            "title": "Search",
            "help": (
                "Type words and press Enter. \"In quotes\" must be there, -this must not. Each result tells how relevant it is "
                "(what share of the words it holds, weighed by how rare they are, or how near its meaning is) and where it "
                "ranks by both; Enter or a click opens the document at its place. Filters narrow by kind, scope, tag and "
                "time. Without words all documents are listed."
            ),
            "columns": ["level", "scope", "kind", "tags", "since", "until", "doc_id"],
            "empty": "No documents yet. Teach it some:  python batos.py learn FOLDER",
        },
        {
            "name": "ask",
            "title": "Ask",
            "help": (
                "Ask a question and see the cycle think: its states, the facets side by side, the words as they come. "
                "Brackets such as [1] open the document at the lines quoted. Mark an answer as right, or as wrong with what "
                "would be right. A name in the field Conversation makes questions turns of one."
            ),
            "columns": ["answer", "personas", "steps"],
            "empty": "No questions yet. What do you want to know?",
        },
        {
            "name": "objects",
            "title": "Objects",
            "help": (
                "Root objects stand on the left; words find others in the whole image, slot:NAME those that have a slot, "
                "kind:Method methods. Enter dives into what a slot refers to, Alt+Left and Alt+Right go back and forward. E "
                "edits a slot or a method; the difference is shown before it is sent. Selectors tell who answers."
            ),
            "columns": ["slots", "selectors", "graph", "history"],
            "empty": "The image has not been shown yet.",
        },
        {
            "name": "messages",
            "title": "Messages",
            "help": (
                "Choose a command, fill its fields (lists and maps as JSON) and send it with Ctrl+Enter; Enter sends what "
                "only reads. What nothing brings back is asked about. Selectors that the target answers are offered. The "
                "reply is a tree: Enter opens a branch, or an object. Copy as script gives Python."
            ),
            "empty": "Nothing was sent yet.",
        },
        {
            "name": "experts",
            "title": "Experts",
            "help": (
                "LoRA experts live in three tiers: cold in the image, warm in memory, hot in slots on the device. Bars show "
                "how full each is. Enter or Activate makes an expert hot and tells each step."
            ),
            "columns": ["hot", "warm", "cold"],
            "empty": "No experts; put adapters into lora_adapters/ and send incarnate.",
        },
        {
            "name": "life",
            "title": "Life",
            "help": (
                "How the daemon is: waiting work, commits, memory and disk over time; events as they come (Space pauses "
                "them); missions and what failed; settings and where they stand."
            ),
            "columns": ["events", "missions", "failures", "changes", "upkeep", "settings"],
            "empty": "Nothing happened yet.",
        },
    ],
    "sparks": [
        {"title": "waiting", "path": "lanes.*.waiting", "unit": "jobs"},
        {"title": "commits", "path": "lanes.*.commits", "unit": "/s", "rate": True},
        {"title": "commit p99", "path": "commit.write.p99_ms", "unit": "ms"},
        {"title": "fsync p99", "path": "fsync.p99_ms", "unit": "ms"},
        {"title": "memory", "path": "memory_mb", "unit": "MB"},
        {"title": "image", "path": "image_mb", "unit": "MB"},
        {"title": "disk free", "path": "disk_free_mb", "unit": "MB"},
        {"title": "tokens", "path": "core.tokens", "unit": "/s", "rate": True},
    ],
    "tiers": [
        {
            "name": "hot",
            "title": "Hot: slots on the device",
            "tone": "bad",
            "used": "experts",
            "room": "slots",
            "unit": "slots",
            "empty": "No expert is on the device.",
        },
        {
            "name": "warm",
            "title": "Warm: memory",
            "tone": "warm",
            "used": "mb",
            "room": "budget_mb",
            "unit": "MB",
            "empty": "None is here alone: hot ones are held here too.",
        },
        {
            "name": "cold",
            "title": "Cold: in the image",
            "tone": "cool",
            "used": "mb",
            "room": None,
            "unit": "MB",
            "empty": "None is here alone: warm and hot ones are stored here too.",
        },
    ],
    "states": {
        "IDLE": "faint",
        "DECOMPOSING": "cool",
        "DELEGATING": "violet",
        "SYNTHESIZING": "warm",
        "COMPLETE": "good",
        "FAILED": "bad",
    },
    "events": {
        "health": ["state", "pending", "missions.running", "missions.waiting", "image_mb", "memory_mb"],
        "uvm_state_update": ["memory.documents", "memory.chunks", "missions.running", "missions.complete", "missions.failed"],
        "cycle": ["cycle", "state"],
        "error": ["command", "code", "details"],
        "lagged": ["missed"],
    },
    "kinds": [
        {"kind": "method", "class": "Method"},
        {"kind": "cycle", "slots": ["mission_brief", "journal"]},
        {"kind": "step", "slots": ["digest", "next_state", "seconds"]},
        {"kind": "persona", "slots": ["core_mission", "pillars"]},
        {"kind": "expert", "slots": ["adapter_name", "model_blob"]},
    ],
    "views": {"method": "method", "cycle": "cycle"},
    "texts": {
        "absent": (
            "No daemon answers at {endpoint}. It is tried again by itself; start it with  python batos.py --endpoint "
            "{endpoint}"
        ),
        "hung": "The daemon at {endpoint} is there but has not answered for {seconds} s. What you ask now is not sent.",
        "refused": "The daemon at {endpoint} does not let this client in ({why}). Give the key file with --keys.",
        "connecting": "Looking for the daemon at {endpoint} \u2026",
        "offline": "not sent: no daemon answers; ask again once it is back",
        "lost": "the connection was lost before the answer; whether it took effect is not known. Look before you ask again",
        "nothing": "Nothing in memory matches.",
        "slow": "still {doing} \u2026 {seconds} s",
        "glyphs": "no font here shows {scripts}: install one, such as fonts-noto",
        "shaping": "{scripts} is shown unshaped, from left to right",
    },
}

COMMANDS = {
    "activate_expert": {
        "help": "Make a LoRA expert hot, by the memory manager's protocol; says step by step what was asked and answered.",
        "effect": False,
        "role": "write",
        "fields": {"expert": {"type": "text", "longest": 64, "required": True}},
    },
    "backup": {
        "help": "Back the image up into a folder of the daemon's machine, whole or what is new; read back and verified.",
        "effect": False,
        "role": "admin",
        "fields": {
            "folder": {"type": "text", "longest": 4000, "default": None},
            "full": {"type": "switch", "default": False},
        },
    },
    "cancel": {
        "help": (
            "Cancel a cycle that waits or runs, or \"upkeep\": the backup or pack at work. Too late once its effect is being "
            "stored."
        ),
        "effect": False,
        "role": "write",
        "fields": {"cycle": {"type": "text", "longest": 20, "required": True}},
    },
    "confirm": {
        "help": (
            "Take a person's word for a method that was guessed: it is installed, on trial. The reply's message sends it "
            "again."
        ),
        "effect": True,
        "role": "write",
        "fields": {"method": {"type": "text", "longest": 1000, "required": True}},
    },
    "create_method": {
        "help": (
            "Give an object a method: Python source of one function and of what stands beside it, which is audited first."
        ),
        "effect": True,
        "role": "write",
        "fields": {
            "target_oid": {"type": "text", "required": True},
            "method_name": {"type": "text", "longest": 200, "required": True},
            "method_code": {"type": "text", "longest": 1000000, "required": True},
            "intent": {"type": "text", "longest": 2000, "default": None},
        },
    },
    "display_yourself": {
        "help": (
            "Have the system make its client, the Memory Inspector, where that is due, and open its window on the daemon's "
            "machine."
        ),
        "effect": False,
        "role": "admin",
        "fields": {"wait": {"type": "switch", "default": True}},
    },
    "export": {
        "help": (
            "Return an object and what hangs on it but root objects, with methods and LoRA experts: a parcel for another "
            "image."
        ),
        "effect": False,
        "role": "read",
        "fields": {"target": {"type": "text", "required": True}},
    },
    "feedback": {
        "help": (
            "Mark the answer of a cycle as right or wrong. With a `correction`, or a note such as \"2 is right, 1 is not\", it "
            "becomes a row of the golden dataset."
        ),
        "effect": True,
        "role": "write",
        "fields": {
            "cycle": {"type": "text", "longest": 40, "required": True},
            "mark": {"type": "choice", "choices": ["right", "wrong"], "required": True},
            "note": {"type": "text", "longest": 4000, "default": ""},
            "correction": {
                "type": "map",
                "fields": {
                    "quotes": {"type": "list", "default": []},
                    "not_": {"type": "list", "default": []},
                    "lead": {"type": "text", "longest": 40, "default": None},
                    "pillars": {"type": "list", "default": None},
                    "method": {"type": "text", "longest": 20000, "default": None},
                    "answer": {"type": "text", "longest": 4000, "default": None},
                },
                "default": None,
            },
        },
    },
    "forget": {
        "help": (
            "Forget a document, a conversation, or all that holds these words: no text of it stays. `preview` only tells what"
            " it is."
        ),
        "effect": False,
        "role": "write",
        "fields": {
            "doc_id": {"type": "text", "longest": 1000, "default": None},
            "conversation": {"type": "text", "longest": 200, "default": None},
            "matching": {"type": "text", "longest": 4000, "default": None},
            "preview": {"type": "switch", "default": False},
        },
        "asks": "Forget this? No text of it stays, and no undo brings it back.",
    },
    "get_full_state": {
        "help": "Show the root objects, counts, missions and settings. Answered from memory.",
        "effect": False,
        "role": "read",
        "fields": {},
    },
    "health": {
        "help": "Say how the daemon is: lanes, queues, core, image. Answered from memory.",
        "effect": False,
        "role": "read",
        "fields": {},
    },
    "history": {
        "help": "Show what changed, the newest first: everywhere, of an object or its slot, or of a document.",
        "effect": False,
        "role": "read",
        "fields": {
            "target": {"type": "text", "longest": 1000, "default": None},
            "slot": {"type": "text", "longest": 200, "default": None},
            "doc_id": {"type": "text", "longest": 1000, "default": None},
            "before": {"type": "text", "longest": 60, "default": None},
            "limit": {"type": "integer", "min": 1, "max": 1000, "default": 20},
        },
    },
    "import": {
        "help": (
            "Put the object of a parcel into a free slot of an object; its methods are audited and on trial. `preview` only "
            "checks."
        ),
        "effect": True,
        "role": "write",
        "fields": {
            "parcel": {"type": "bytes", "required": True},
            "target": {"type": "text", "required": True},
            "slot": {"type": "text", "longest": 200, "required": True},
            "preview": {"type": "switch", "default": False},
            "adapters": {"type": "switch", "default": True},
        },
    },
    "incarnate": {
        "help": "Bring new or changed LoRA adapters of the staging folder (setting adapters) into the image.",
        "effect": True,
        "role": "admin",
        "fields": {},
    },
    "index_document": {
        "help": "Put a document into the memory, or a new version of it.",
        "effect": True,
        "role": "write",
        "fields": {
            "doc_id": {"type": "text", "longest": 1000, "required": True},
            "text": {"type": "text", "default": None},
            "path": {"type": "text", "default": None},
            "upload": {"type": "text", "default": None},
            "parts": {"type": "integer", "min": 0, "max": 1000, "default": 0},
            "metadata": {"type": "map", "default": {}},
            "scope": {"type": "choice", "choices": ["world", "self"], "default": "world"},
            "rechunk": {"type": "switch", "default": False},
        },
    },
    "index_part": {
        "help": (
            "Keep a part of a text that is larger than a message, for a day: index_document of that `upload` makes it a "
            "document."
        ),
        "effect": False,
        "role": "write",
        "fields": {
            "upload": {"type": "text", "required": True},
            "number": {"type": "integer", "min": 0, "required": True},
            "text": {"type": "text", "required": True},
        },
    },
    "ingest_and_display_yourself": {
        "help": "As display_yourself, once the memory holds the system's own documents.",
        "effect": False,
        "role": "admin",
        "fields": {"wait": {"type": "switch", "default": True}},
    },
    "initiate_cognitive_cycle": {
        "help": "Let the composite mind think. Replies at once with the cycle's id, or with `wait` when it has ended.",
        "effect": True,
        "role": "write",
        "fields": {
            "mission_brief": {
                "type": "map",
                "fields": {
                    "type": {
                        "type": "choice",
                        "choices": ["direct_synthesis", "unhandled_message", "self_audit", "systemic_self_improvement"],
                        "required": True,
                    },
                    "selector": {"type": "text", "longest": 200, "required": True},
                    "args": {"type": "list", "default": []},
                    "kwargs": {"type": "map", "default": {}},
                    "intent": {"type": "text", "longest": 2000, "default": None},
                    "conversation": {"type": "text", "default": None},
                    "generate": {"type": "switch", "default": None},
                },
                "required": True,
            },
            "target_oid": {"type": "text", "longest": 1000, "default": None},
            "wait": {"type": "switch", "default": False},
        },
    },
    "inspect": {
        "help": "Show one object: its slots with type and value, its pointers, its selectors; `as_of` a change or a time.",
        "effect": False,
        "role": "read",
        "fields": {
            "target": {"type": "text", "required": True},
            "limit": {"type": "integer", "min": 1, "max": 1000, "default": 50},
            "as_of": {"type": "text", "longest": 60, "default": None},
        },
    },
    "judge_golden": {
        "help": "Trust rows of the golden dataset that others than who asked have corrected, or refuse them.",
        "effect": True,
        "role": "admin",
        "fields": {"rows": {"type": "list", "required": True}, "accept": {"type": "switch", "required": True}},
    },
    "list_cycles": {
        "help": "Show cycles, the newest first.",
        "effect": False,
        "role": "read",
        "fields": {
            "state": {
                "type": "choice",
                "choices": ["IDLE", "DECOMPOSING", "DELEGATING", "SYNTHESIZING", "COMPLETE", "FAILED"],
                "default": None,
            },
            "limit": {"type": "integer", "min": 1, "max": 1000, "default": 20},
        },
    },
    "list_documents": {
        "help": "Show the documents in the memory by their doc_id, those after `after` first.",
        "effect": False,
        "role": "read",
        "fields": {
            "prefix": {"type": "text", "longest": 1000, "default": ""},
            "after": {"type": "text", "longest": 1000, "default": ""},
            "limit": {"type": "integer", "min": 1, "max": 1000, "default": 100},
            "taught": {"type": "switch", "default": False},
        },
    },
    "list_experts": {
        "help": "Show the LoRA experts and in which tier each is. Answered from memory.",
        "effect": False,
        "role": "read",
        "fields": {},
    },
    "list_golden": {
        "help": "Show rows of the golden dataset, the newest first, and how many there are in each state.",
        "effect": False,
        "role": "read",
        "fields": {
            "state": {"type": "choice", "choices": ["raw", "accepted", "refused"], "default": None},
            "limit": {"type": "integer", "min": 1, "max": 1000, "default": 20},
        },
    },
    "list_objects": {
        "help": (
            "Show objects by oid, those after `after` first: of a class, with words in what they say, a slot, or a parent."
        ),
        "effect": False,
        "role": "read",
        "fields": {
            "words": {"type": "text", "longest": 1000, "default": ""},
            "kind": {"type": "choice", "choices": ["UvmObject", "Method", "ClientIncarnation"], "default": None},
            "slot": {"type": "text", "longest": 200, "default": None},
            "parent": {"type": "text", "longest": 1000, "default": None},
            "after": {"type": "text", "default": "0x0"},
            "limit": {"type": "integer", "min": 1, "max": 1000, "default": 100},
        },
    },
    "move_document": {
        "help": (
            "Have a document stand under another name from now on, as when its file was renamed; the former name leads to it."
        ),
        "effect": True,
        "role": "write",
        "fields": {
            "doc_id": {"type": "text", "longest": 1000, "required": True},
            "to": {"type": "text", "longest": 1000, "required": True},
        },
    },
    "pack": {
        "help": (
            "Pack away what was replaced more than `days` (else history_days) ago; it can not be looked at or undone then."
        ),
        "effect": False,
        "role": "admin",
        "fields": {"days": {"type": "number", "min": 0, "default": None}},
        "asks": "Pack what was replaced away? It cannot be looked at or undone then.",
    },
    "rollback": {
        "help": "Let a former version of an object's method be the one that runs.",
        "effect": True,
        "role": "write",
        "fields": {
            "target_oid": {"type": "text", "required": True},
            "method_name": {"type": "text", "longest": 200, "required": True},
            "version": {"type": "integer", "default": None},
        },
    },
    "search_memory": {
        "help": (
            "Find passages by words and by meaning. Every result says why it was found; \"in quotes\" counts more where it "
            "stands so, +\"in quotes\" must be there, -this must not. With `expression` the query is words with AND, OR, NOT, "
            "\"phrases\" and globs* and only what it matches is found."
        ),
        "effect": False,
        "role": "read",
        "fields": {
            "query": {"type": "text", "longest": 4000, "required": True},
            "expression": {"type": "switch", "default": False},
            "max_results": {"type": "integer", "min": 1, "max": 100, "default": 5},
            "offset": {"type": "integer", "min": 0, "max": 1000, "default": 0},
            "neighbours": {"type": "integer", "min": 0, "max": 5, "default": 0},
            "level": {"type": "choice", "choices": ["document", "section", "chunk", "sentence"], "default": "chunk"},
            "doc_id": {"type": "text", "default": None},
            "scope": {"type": "choice", "choices": ["world", "self", "said", "asked"], "default": None},
            "kind": {"type": "text", "longest": 20, "default": None},
            "conversation": {"type": "text", "longest": 200, "default": None},
            "tags": {"type": "list", "default": []},
            "since": {"type": "text", "default": None},
            "until": {"type": "text", "default": None},
        },
    },
    "send_message": {
        "help": "Send a message to an object: `selector` with args and kwargs.",
        "effect": True,
        "role": "write",
        "fields": {
            "target": {"type": "text", "required": True},
            "selector": {"type": "text", "longest": 200, "required": True},
            "args": {"type": "list", "default": []},
            "kwargs": {"type": "map", "default": {}},
            "intent": {"type": "text", "longest": 2000, "default": None},
            "generate": {"type": "switch", "default": None},
            "wait": {"type": "switch", "default": False},
        },
    },
    "show_document": {
        "help": (
            "Show chunks of a document, in their order from chunk `first` on; `version` a former one that is still kept. A "
            "chunk may be named as it is cited: `DOC_chunk_N`."
        ),
        "effect": False,
        "role": "read",
        "fields": {
            "doc_id": {"type": "text", "longest": 1000, "required": True},
            "version": {"type": "integer", "default": None},
            "first": {"type": "integer", "min": 0, "default": 0},
            "limit": {"type": "integer", "min": 1, "max": 1000, "default": 20},
        },
    },
    "shutdown": {
        "help": "Drain and stop the daemon.",
        "effect": False,
        "role": "admin",
        "fields": {},
        "asks": "Shut the daemon down? It answers nobody until it is started again.",
    },
    "subscribe": {
        "help": (
            "Be sent events from now on: what the state is, where cycles are, what went wrong, how the daemon is; on request,"
            " as `tokens`, the sentences that answer before their cycle has ended, the first with its passages; they are "
            "provisional."
        ),
        "effect": False,
        "role": "read",
        "fields": {
            "topics": {
                "type": "list",
                "choices": ["uvm_state_update", "cycle", "error", "health", "tokens"],
                "default": ["uvm_state_update", "cycle", "error", "health"],
            },
        },
    },
    "supersede": {
        "help": "Have the document `newer` stand for `older`, which stays, says so, and ranks below.",
        "effect": True,
        "role": "write",
        "fields": {
            "older": {"type": "text", "longest": 1000, "required": True},
            "newer": {"type": "text", "longest": 1000, "required": True},
        },
    },
    "undo": {
        "help": "Put back what stood before a change. Refused where any of it was changed again.",
        "effect": True,
        "role": "write",
        "fields": {"change": {"type": "text", "longest": 60, "required": True}},
    },
    "unindex_document": {
        "help": "Take a document out of the memory.",
        "effect": True,
        "role": "write",
        "fields": {"doc_id": {"type": "text", "longest": 1000, "required": True}},
    },
    "unsubscribe": {
        "help": "Be sent no more events, of these topics or of all.",
        "effect": False,
        "role": "read",
        "fields": {
            "topics": {
                "type": "list",
                "choices": ["uvm_state_update", "cycle", "error", "health", "tokens"],
                "default": ["uvm_state_update", "cycle", "error", "health", "tokens"],
            },
        },
    },
}
# fmt: on

# ---- end of specification


# ---- words: values, differences and scripts as text

PAGES = {page["name"]: page for page in SPEC["pages"]}
TEXTS = SPEC["texts"]
ENDED = ("COMPLETE", "FAILED")
SHOWN_CHARS = 20_000  # of one text in a label; a longer one is a list of lines


def told(name, **fields):
    """Return one of the specification's texts with its fields filled in."""
    return TEXTS[name].format(**fields)


def plain(text):
    """Return text as a font can draw it: control characters as pictures, lone surrogates replaced."""
    text = str(text).replace("\t", "    ").replace("\r\n", "\n").encode("utf-8", "replace").decode()
    return "".join(
        char if char >= " " and char != "\x7f" or char == "\n" else "\u00b7" for char in text
    )


def short(value, most=120):
    """Return a value in one line of at most `most` characters."""
    text = value if isinstance(value, str) else to_json(value, None)
    text = " ".join(text[: most * 4].split())
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def _unfit(value):
    return {"$bytes": value.hex()} if isinstance(value, bytes) else repr(value)


def _keyed(value):
    """Return a value with text keys only, as JSON has them."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else repr(key): _keyed(item) for key, item in value.items()
        }
    return [_keyed(item) for item in value] if isinstance(value, (list, tuple)) else value


def to_json(value, indent=1):
    """Return a value of the wire as JSON text."""
    return json.dumps(_keyed(value), ensure_ascii=False, indent=indent, default=_unfit)


def pretty(value, width=88):
    """Return a value as JSON, what fits into one line in one line."""
    line = to_json(value, None)
    if len(line) <= width or not isinstance(value, (dict, list)) or not value:
        return line
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {pretty(item, width - 2)}"
            for key, item in value.items()
        ]
    else:
        parts = [pretty(item, width - 2) for item in value]
    inner = ",\n".join(parts).replace("\n", "\n  ")
    return f"{{\n  {inner}\n}}" if isinstance(value, dict) else f"[\n  {inner}\n]"


DEPTH_MOST = 40  # of a value that is sent; the daemon takes 32


def depth_of(value):
    """Return how deep a value is nested; no more than is too deep is looked at."""
    depth, level = 0, [value]
    while level and depth <= DEPTH_MOST:
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        depth += bool(level)
    return depth


def from_json(text, what="value"):
    """Return what JSON text says. Raises ValueError that says where it is wrong."""
    try:
        value = json.loads(text)
        if depth_of(value) > DEPTH_MOST:
            raise ValueError(f"it is nested deeper than {DEPTH_MOST}")
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{what} is not JSON: {error}. Text stands in double quotes, such as "valve"'
        ) from None


def read_file(name, path):
    """Return the bytes of a file of this machine. Raises ValueError that names the field."""
    try:
        return pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{name} takes the path of a file here: {error}") from None


def ref_of(value):
    """Return the oid that a value of the wire refers to, or None."""
    return (
        value["$ref"]
        if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("$ref"), str)
        else None
    )


def named_refs(value, name="", most=24):
    """Return {oid: the nearest name on the way to it} of up to `most` objects that a value refers to."""
    found, todo = {}, [(name, value)]
    while todo and len(found) < most:
        near, one = todo.pop(0)
        if ref_of(one):
            found.setdefault(ref_of(one), near)
        elif isinstance(one, dict):
            todo[:0] = [
                (near if key.startswith("$") or key == "entries" else key, item)
                for key, item in _keyed(one).items()
            ]
        elif isinstance(one, list):
            keyed = len(one) == 2 and isinstance(one[0], str)  # an entry of a tree
            todo[:0] = [(one[0] if keyed else near, item) for item in one]
    return found


def refs_in(value, most=24):
    """Return up to `most` oids that a value refers to."""
    return list(named_refs(value, "", most))


def value_text(value, names, most=150):
    """Return a value in one line for people: objects by their names, trees by their size and first entries."""
    if ref_of(value):
        return f"{names.get(ref_of(value), '')} {ref_of(value)}".strip()
    tree = value.get("$tree") if isinstance(value, dict) else None
    if isinstance(tree, dict):
        first = ", ".join(
            f"{key} \u2192 {value_text(item, names, 40)}" for key, item in tree["entries"][:6]
        )
        return short(f"{tree['size']} entries: {first}", most)
    if isinstance(value, list) and value and all(ref_of(item) for item in value[:50]):
        return short(", ".join(value_text(item, names, 60) for item in value[:50]), most)
    return (
        value["$time"]
        if isinstance(value, dict) and set(value) == {"$time"}
        else short(value, most)
    )


def kind_of(shown):
    """Return the kind of an inspected object, by the table of kinds; 'object' where none fits."""
    for row in SPEC["kinds"]:
        if (
            row.get("class") == shown.get("class")
            or row.get("slots")
            and set(row["slots"]) <= set(shown.get("slots", ()))
        ):
            return row["kind"]
    return "object"


def tree_rows(value, opened, key="", path=(), depth=0):
    """Return the rows of a value as a tree: {"key", "path", "depth", "value", "open"}; `open` is None for a leaf.

    opened: set of paths; a $tree shows its entries.
    """
    inner = (
        value["$tree"]["entries"]
        if isinstance(value, dict) and isinstance(value.get("$tree"), dict)
        else None
    )
    items = [(to_json(name, None), item) for name, item in inner] if inner is not None else None
    if items is None and not ref_of(value):
        items = (
            list(value.items())
            if isinstance(value, dict)
            else list(enumerate(value))
            if isinstance(value, list)
            else None
        )
    row = {
        "key": str(key),
        "path": path,
        "depth": depth,
        "value": value,
        "open": path in opened if items else None,
    }
    if not row["open"]:
        return [row]
    return [row] + [
        inside
        for number, (name, item) in enumerate(items)
        for inside in tree_rows(item, opened, name, (*path, number), depth + 1)
    ]


def difference(before, after):
    """Return [(tone, line)] of the difference of two texts; tone is one of '', 'good' (added) and 'bad' (taken out)."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "as it is", "as it would be", lineterm="", n=3
    )
    tones = {"+": "good", "-": "bad", "@": "cool"}
    return [(tones.get(line[:1], ""), line) for line in lines]


def script_for(endpoint, keys, command, fields):
    """Return a Python script that sends a request by batos.Client."""
    where = [] if endpoint == DEFAULT_ENDPOINT else [repr(endpoint)]
    where += [f"keys={keys!r}"] if keys else []
    key = ["idempotency_key=uuid7()"] if COMMANDS.get(command, {}).get("effect") else []
    named = all(name.isidentifier() for name in fields)
    given = [f"{name}={value!r}" for name, value in fields.items()] if named else [f"**{fields!r}"]
    call = ", ".join([repr(command), *given, *key])
    return (
        f"from batos import Client{', uuid7' if key else ''}\n\n"
        f"with Client({', '.join(where)}) as client:\n    print(client.call({call}))\n"
    )


def width_of(char):
    """Return how many columns of a fixed font a character takes."""
    return (
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
    )


def wrapped(line, columns):
    """Return a line cut into pieces of at most `columns` columns, at blanks where there are some."""
    if len(line) <= columns and line.isascii():
        return [line]
    pieces, piece, wide = [], "", 0
    for char in line:
        if wide + width_of(char) > columns:
            cut = piece.rfind(" ") + 1
            cut = cut if cut > columns // 3 else len(piece)
            pieces.append(piece[:cut])
            piece = piece[cut:]
            wide = sum(map(width_of, piece))
        piece, wide = piece + char, wide + width_of(char)
    return [*pieces, piece]


def folded(word):
    """Return a word as the daemon spells it: without case and accents."""
    parts = unicodedata.normalize("NFKD", word.replace("\u2019", "'").casefold())
    return "".join(part for part in parts if not unicodedata.combining(part))


def hits_in(text, words):
    """Return [(start, end)] of where a text holds `words`, which are spelt as the daemon tells."""
    wanted = {folded(word) for word in words if word}
    found = re.finditer(r"\w+(?:['\u2019]\w+)*", text) if wanted else ()
    spans = [match.span() for match in found if folded(match[0]) in wanted]
    # of scripts without blanks, and of pictures, a part of what stands together is meant
    for part in (re.escape(word) for word in words if word[:1] >= "\u0e00"):
        spans += [match.span() for match in re.finditer(part, text)]
    return sorted(spans)


def name_of(doc_id):
    """Return the name of the file of a document that is named by its whole path, else its own."""
    return pathlib.PurePath(doc_id).name if doc_id.startswith(("/", "~/")) else doc_id


def folder_of(doc_id):
    """Return the folder of a document that is named by its whole path, or ''."""
    return str(pathlib.PurePath(doc_id).parent) if doc_id.startswith(("/", "~/")) else ""


def place_of(told):
    """Return where a passage stands: its document's name, and the lines or pages of the file."""
    name, pages = name_of(told["doc_id"]), told.get("pages")
    lines = pages or told.get("file_lines") or told["lines"]
    return f"{name}:{'page ' if pages else ''}{'-'.join(map(str, dict.fromkeys(lines)))}"


def seconds_text(seconds):
    """Return a time span as people say it."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"


def clock_text(time_value):
    """Return the local time of {"$time": …} as HH:MM:SS, with the date where it is not today's."""
    text = time_value.get("$time") if isinstance(time_value, dict) else None
    if not text:
        return ""
    at = datetime.datetime.fromisoformat(text).astimezone()
    return (
        f"{at:%H:%M:%S}"
        if at.date() == datetime.datetime.now().astimezone().date()
        else f"{at:%Y-%m-%d %H:%M}"
    )


def number_text(number):
    """Return a number for people: no more digits than say something."""
    if not isinstance(number, (int, float)):
        return str(number)
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.2f}"


def figure(health, path):
    """Return a figure of a health map by its dotted path, `*` sums over all; None where it is not told."""
    name, _, rest = path.partition(".")
    if not isinstance(health, dict):
        return health if isinstance(health, (int, float)) else None
    inner = list(health.values()) if name == "*" else [health.get(name)]
    figures = [figure(one, rest) if rest else one for one in inner]
    figures = [one for one in figures if isinstance(one, (int, float))]
    return sum(figures) if figures else None


def found_at(value, path):
    """Return what stands in maps at a dotted path, or None."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def uuid7():
    """Return a UUIDv7 as text, which the daemon takes as an idempotency key."""
    value = (
        (time.time_ns() // 1_000_000) << 80
        | 7 << 76
        | secrets.randbits(12) << 64
        | 2 << 62
        | secrets.randbits(62)
    )
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# ---- bridge

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
# in BATOS_HOME: where a daemon says, while it runs, that it listens
HOME_FILE = "live_image.fs.endpoint"
PING_S = 2.0  # a daemon that said nothing for so long is asked how it is
HUNG_S = 5.0  # and hangs where it says nothing for so long
RETRY_MS, RETRY_MAX_MS = 200, 5000  # how soon a connection is tried again, doubling
TOPICS = COMMANDS["subscribe"]["fields"]["topics"]["choices"]
EVENTS_KEPT = 2000
SAMPLES_KEPT = 180  # of health
SENT_KEPT = 200


def read_keys(path):
    """Return (server, public, secret) of a key file that only its owner reads. Raises ValueError that says what to do."""
    try:
        if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            raise ValueError(f"others may read it; run  chmod 600 {path}")
        keys = json.loads(pathlib.Path(path).read_bytes())
        return tuple(keys[name].encode() for name in ("server", "public", "secret"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no key file ({error}); take the one that `python batos.py keys add NAME` made"
        ) from None


class Bridge:
    """I am the line to the daemon: one thread that owns the DEALER, its monitor and the end of a wake-up pair.

    `send` takes requests from any thread; what comes is in `arrived`, as ("reply", number, map), ("event", map) or
    ("line", state, words), and `wake()` is called in my thread. A line is one of connecting, absent, refused, hung and
    online; what is sent while it is not online fails at once, and nothing is delivered later. The Inspector drains me.
    """

    def __init__(self, endpoint, keys=None, wake=lambda: None):
        self.endpoint, self.line, self.wake, self.arrived = (
            endpoint,
            "connecting",
            wake,
            collections.deque(),
        )
        self._keys = read_keys(keys) if keys else None
        self._requests, self._closing = queue.SimpleQueue(), False
        self._ours, self._theirs = socket.socketpair()
        # numbers of requests without a reply yet; -n are ours
        self._waiting, self._number = set(), 0
        # numbers of pings unanswered
        self._pings, self._ping_s, self._heard_s, self._linked_s = set(), 0.0, 0.0, None
        self._began_s, self._context = time.monotonic(), zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)  # the thread's from its start on
        self._monitor = self._open()
        self._thread = threading.Thread(target=self._run, name="bridge", daemon=True)
        self._thread.start()

    def send(self, number, request):
        """Have a request sent; its reply will have this number."""
        self._requests.put((number, request))
        self._nudge()

    def close(self):
        """End the thread and close everything."""
        self._closing = True
        self._nudge()
        self._thread.join(10)

    def _nudge(self):
        with contextlib.suppress(OSError):
            self._ours.send(b"!")

    # -------- in the thread

    def _run(self):
        poller = zmq.Poller()
        for one in (self._socket, self._monitor, self._theirs):
            poller.register(one, zmq.POLLIN)
        try:
            while not self._closing:
                ready = {one for one, _ in poller.poll(500)}
                self._turn({one if isinstance(one, int) else id(one) for one in ready})
        finally:
            self._close_sockets()
            self._ours.close()
            self._theirs.close()

    def _close_sockets(self):
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()

    def _open(self):
        """Set the DEALER up and connect it; returns the socket that tells of the connection. Raises ValueError."""
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, RETRY_MS),
            (zmq.RECONNECT_IVL_MAX, RETRY_MAX_MS),
            (zmq.IPV6, int("[" in self.endpoint)),
        ):
            self._socket.setsockopt(option, value)
        if self._keys:
            (
                self._socket.curve_serverkey,
                self._socket.curve_publickey,
                self._socket.curve_secretkey,
            ) = self._keys
        monitor = self._socket.get_monitor_socket()
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self._monitor = monitor
            self._close_sockets()
            raise ValueError(
                f"{self.endpoint} is no endpoint ({error}); allowed are tcp://ADDRESS:PORT and "
                "ipc:///PATH"
            ) from None
        return monitor

    def _turn(self, ready):
        if self._theirs.fileno() in ready:
            self._theirs.recv(4096)
        if id(self._monitor) in ready:
            self._read_line()
        if id(self._socket) in ready:
            self._read_replies()
        self._send_requests()
        self._look_after()

    def _read_line(self):
        while self._monitor.poll(0):
            told_of = zmq.utils.monitor.recv_monitor_message(self._monitor)
            step = LINE_STEPS.get(told_of["event"])
            if step:
                step(self, told_of["value"])

    def _linked(self, _):
        self._linked_s = time.monotonic()
        self._pings.clear()

    def _greeted(self, _):
        """The daemon's end shook hands: we are online once it has said how it is."""
        self._linked_s = self._heard_s = time.monotonic()
        self._send_ping()

    def _unlinked(self, _):
        self._linked_s = None
        self._pings.clear()
        if self.line != "refused":
            self._tell_line("absent")
        self._give_up()

    def _denied(self, value):
        self._linked_s = None
        self._pings.clear()
        self._tell_line(
            "refused", "it does not know this key" if self._keys else "it asks for a key"
        )
        self._give_up()

    def _give_up(self):
        for number in self._waiting:
            self._arrive(
                "reply", number, {"status": "ERROR", "code": "Lost", "details": told("lost")}
            )
        self._waiting.clear()

    def _read_replies(self):
        while True:
            try:
                message = ormsgpack.unpackb(
                    self._socket.recv(zmq.NOBLOCK), option=ormsgpack.OPT_NON_STR_KEYS
                )
            except zmq.Again:
                return
            except ValueError:
                continue  # no daemon's; what is heard counts all the same
            self._heard_s = time.monotonic()
            self._take(message)

    def _take(self, message):
        number = message.get("id")
        if "event" in message:
            self._arrive("event", message)
        elif number in self._pings:
            self._pings.clear()
            self._is_online()
            self._arrive("event", {"event": "health", "health": message.get("result") or {}})
        elif number in self._waiting:
            self._waiting.discard(number)
            self._arrive("reply", number, message)

    def _is_online(self):
        if self.line != "online":
            self._post({"command": "subscribe", "topics": TOPICS, "id": self._next_own()})
            self._tell_line("online")

    def _send_requests(self):
        while not self._requests.empty():
            number, request = self._requests.get()
            refusal = {"status": "ERROR", "code": "Offline", "details": told("offline")}
            try:
                if self.line == "online" and self._post({**request, "id": number}):
                    self._waiting.add(number)
                    continue
            except (TypeError, ValueError) as error:
                # a number of more than 64 bits, half of a surrogate pair
                refusal = {
                    "status": "ERROR",
                    "code": "BadRequest",
                    "details": f"this cannot be sent: {error}",
                }
            self._arrive("reply", number, refusal)

    def _post(self, message):
        try:
            self._socket.send(
                ormsgpack.packb(message, option=ormsgpack.OPT_NON_STR_KEYS), zmq.NOBLOCK
            )
            return True
        except zmq.Again:
            return False

    def _next_own(self):
        self._number -= 1
        return self._number

    def _send_ping(self):
        number, self._ping_s = self._next_own(), time.monotonic()
        if self._post({"command": "health", "id": number}):
            self._pings.add(number)

    def _look_after(self):
        """Ask a silent daemon how it is; tell one that hangs, or that is nowhere."""
        now_s = time.monotonic()
        if self._linked_s is None:
            if self.line == "connecting" and now_s - self._began_s > HUNG_S:
                self._tell_line("absent")
            return
        if self.line != "hung" and now_s - max(self._heard_s, self._linked_s) > HUNG_S:
            self._tell_line("hung")
        if now_s - max(self._ping_s, self._linked_s) > (HUNG_S if self._pings else PING_S):
            self._send_ping()

    def _tell_line(self, line, why=""):
        if line != self.line:
            self.line = line
            self._arrive("line", line, why)

    def _arrive(self, *what):
        self.arrived.append(what)
        self.wake()


LINE_STEPS = {
    zmq.EVENT_CONNECTED: Bridge._linked,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Bridge._greeted,
    zmq.EVENT_DISCONNECTED: Bridge._unlinked,
    zmq.EVENT_CLOSED: Bridge._unlinked,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Bridge._denied,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Bridge._denied,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Bridge._denied,
}


@dataclasses.dataclass
class Sent:
    """One request at work or answered."""

    number: int
    command: str
    fields: dict
    then: object  # function(reply) or None
    slot: str | None  # whose newest question this is; older answers are dropped
    doing: str  # what it does, for people: "searching"
    at_s: float
    reply: dict | None = None
    seconds: float = 0.0
    by_hand: bool = False  # asked by a person: it stays in the history


class Store:
    """I know what the daemon told: the line, its state and health, events, what was asked. Used by one thread.

    Who wants to know more calls `on(topic, function)`; topics are line, state, sent, waiting, fault and those of events.
    """

    def __init__(self, bridge):
        self.bridge, self.line, self.why = bridge, "connecting", ""
        self.state, self.health, self.cycles = {}, {}, {}  # cycle id -> [(state, monotonic s)]
        self.events = collections.deque(maxlen=EVENTS_KEPT)
        self.samples = collections.deque(maxlen=SAMPLES_KEPT)  # (monotonic s, health)
        self.sent = collections.deque(maxlen=SENT_KEPT)
        self.changes = []  # names of changes made from here that can be undone, oldest first
        self._asked, self._newest, self._number = {}, {}, 0
        self._listeners = collections.defaultdict(list)

    # -------- who wants to know

    def on(self, topic, function):
        self._listeners[topic].append(function)

    def off(self, function):
        for functions in self._listeners.values():
            if function in functions:
                functions.remove(function)

    def _tell(self, topic, *what):
        for function in list(self._listeners[topic]):
            self._guarded(function, *what)

    def _guarded(self, function, *what):
        """Call what takes an answer or event: one that nobody foresaw shall not end the window."""
        try:
            function(*what)
        except Exception as error:  # a boundary: the daemon may be of another version
            traceback.print_exc(file=sys.__stderr__)  # Kivy makes a log of sys.stderr
            for told_of in self._listeners["fault"]:
                told_of(error)

    # -------- asking

    def ask(
        self, command, then=None, slot=None, doing="waiting", by_hand=False, fields=None, **more
    ):
        """Send a command with `fields` and `more`; then(reply) is called when it is answered, unless its slot has asked anew."""
        self._number += 1
        fields = {**(fields or {}), **more}
        sent = Sent(
            self._number, command, fields, then, slot, doing, time.monotonic(), by_hand=by_hand
        )
        self._asked[sent.number] = sent
        if slot:
            self._newest[slot] = sent.number
        effect = (
            {"idempotency_key": uuid7()}
            if COMMANDS.get(command, {}).get("effect") and "idempotency_key" not in fields
            else {}
        )
        if by_hand:
            self.sent.append(sent)
        self.bridge.send(
            sent.number,
            {"command": command, **fields, **effect, **({"client": "inspector"} if effect else {})},
        )
        self._tell("waiting")
        return sent

    def forget(self, slot):
        """Drop the answer that a slot waits for."""
        self._newest.pop(slot, None)

    def waiting(self):
        """Return the Sent of slots and hands that wait for their answer, the longest first."""
        return [
            sent
            for sent in self._asked.values()
            if sent.by_hand or sent.slot and self._newest.get(sent.slot) == sent.number
        ]

    # -------- what comes

    def drain(self, budget_s=0.004):
        """Take what came, for a few ms. Returns whether there is more."""
        until_s = time.monotonic() + budget_s
        while self.bridge.arrived:
            kind, *what = self.bridge.arrived.popleft()
            getattr(self, f"_on_{kind}")(*what)
            if time.monotonic() > until_s:
                return bool(self.bridge.arrived)
        return False

    def _on_reply(self, number, reply):
        sent = self._asked.pop(number, None)
        if sent is None:
            return
        sent.reply, sent.seconds = reply, time.monotonic() - sent.at_s
        if (
            reply.get("change")
            and not reply.get("repeated")
            and sent.command != "initiate_cognitive_cycle"
        ):
            self.changes.append(reply["change"])
        newest = sent.slot is None or self._newest.get(sent.slot) == number
        if sent.slot and newest:
            del self._newest[sent.slot]
        if sent.then and newest:
            self._guarded(sent.then, reply)
        self._tell("sent", sent)
        self._tell("waiting")

    def _on_line(self, line, why):
        self.line, self.why = line, why
        self._tell("line")
        if line == "online":
            self.look_anew()

    def look_anew(self):
        """Ask for the whole state; events tell a part of it."""
        self.ask("get_full_state", self._on_state, slot="state", doing="asking for the state")

    def _on_state(self, reply):
        if reply["status"] == "OK":
            self.state = reply["result"]
            self._tell("state")

    def _on_event(self, event):
        topic = event["event"]
        if topic == "health":
            self.health = event["health"]
            self.samples.append((time.monotonic(), self.health))
        elif topic == "cycle":
            self.cycles.setdefault(event["cycle"], []).append((event["state"], time.monotonic()))
            while len(self.cycles) > SENT_KEPT:
                self.cycles.pop(next(iter(self.cycles)))
        elif topic == "uvm_state_update":
            # the whole of it is asked for already
            self.state = {**self.state, **event["state"]} if self.state else {}
            self._tell("state")
        if topic != "tokens" and "at" in event:  # what answers our own pings has no time
            self.events.append(event)
        self._tell(topic, event)


# ---- options: read before Kivy, which takes a second to load and makes a log of stderr


def usual_endpoint():
    """Return where to look for a daemon: as the environment says, else as the one of BATOS_HOME (or of this folder) says."""
    if "BATOS_ENDPOINT" in os.environ:
        return os.environ["BATOS_ENDPOINT"]
    file = pathlib.Path(os.environ.get("BATOS_HOME", "")).expanduser() / HOME_FILE
    try:
        endpoint, pid = file.read_text("utf-8").split()
        os.kill(int(pid), 0)
    except (OSError, ValueError):  # none runs there, or one was killed
        return DEFAULT_ENDPOINT
    return endpoint


def check_endpoint(endpoint):
    """Raise ValueError, which says what to do, where no daemon can listen at an endpoint."""
    if re.fullmatch("ipc://.+", endpoint):
        return
    found = re.fullmatch(r"tcp://(\[[^]]+\]|[^:/]+):([0-9]+)", endpoint)
    if not found:
        raise ValueError(
            f"{endpoint} is no endpoint; allowed are tcp://ADDRESS:PORT and ipc:///PATH"
        )
    host, port = found[1].strip("[]"), int(found[2])
    if not 0 < port < 65536:
        raise ValueError(
            f"{endpoint} has no port from 1 to 65535, such as that of {DEFAULT_ENDPOINT}"
        )
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"{endpoint} names a host that is not found ({error}); mend it, or give its address"
        ) from None


def read_options(argv=None):
    """Return the options; ends the process with status 2 where one is wrong."""
    parser = argparse.ArgumentParser(
        prog="morphic_ui", description="The Memory Inspector of BAT OS."
    )
    parser.add_argument(
        "--endpoint",
        default=usual_endpoint(),
        help=f"where the daemon listens (default: as that of BATOS_HOME says, else {DEFAULT_ENDPOINT})",
    )
    parser.add_argument(
        "--keys",
        default=os.environ.get("BATOS_KEYS"),
        metavar="FILE",
        help="the key file that `batos.py keys add NAME` made",
    )
    options = parser.parse_args(argv)
    try:
        check_endpoint(options.endpoint)
        if options.keys:
            read_keys(options.keys)
    except ValueError as error:
        print(f"morphic_ui: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return options


OPTIONS = read_options() if __name__ == "__main__" else None


# ---- fonts

os.environ.setdefault("KIVY_NO_ARGS", "1")  # the options are ours
os.environ.setdefault("KIVY_NO_FILELOG", "1")
# it tells of clipboards that it did not find; faults are raised
os.environ.setdefault("KIVY_NO_CONSOLELOG", "1")

from kivy import kivy_data_dir
from kivy.app import App
from kivy.base import ExceptionHandler, ExceptionManager
from kivy.clock import Clock
from kivy.config import Config
from kivy.core.text.markup import MarkupLabel
from kivy.factory import Factory
from kivy.graphics import Color, Line, Mesh, Rectangle, RoundedRectangle
from kivy.lang import Builder
from kivy.metrics import dp, sp
from kivy.properties import (
    BooleanProperty,
    ListProperty,
    NumericProperty,
    ObjectProperty,
    StringProperty,
)
from kivy.uix.behaviors import ButtonBehavior, FocusBehavior
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.label import Label
from kivy.uix.modalview import ModalView
from kivy.uix.recycleview import RecycleView
from kivy.uix.recycleview.views import RecycleDataViewBehavior
from kivy.uix.widget import Widget
from kivy.utils import escape_markup, get_color_from_hex

FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
FONTS_TRIED = 600
UNSHAPED = ("ARABIC", "HEBREW", "SYRIAC", "DEVANAGARI", "BENGALI", "TAMIL", "THAI")
BARE = frozenset(("Cf", "Mn", "Me", "Cc"))  # categories that take no glyph of their own


def _ranges_of_4(table):
    """Return [(first, last)] of a cmap subtable of format 4."""
    count = struct.unpack_from(">H", table, 6)[0] // 2
    ends = struct.unpack_from(f">{count}H", table, 14)
    starts = struct.unpack_from(f">{count}H", table, 16 + 2 * count)
    return list(zip(starts, ends, strict=True))


def _ranges_of_12(table):
    """Return [(first, last)] of a cmap subtable of format 12."""
    count = struct.unpack_from(">I", table, 12)[0]
    return [struct.unpack_from(">II", table, 16 + 12 * n) for n in range(count)]


CMAP_FORMATS = {4: _ranges_of_4, 12: _ranges_of_12}


def coverage(path):
    """Return [(first, last)], sorted, of the characters that a font file has glyphs for; [] where it does not read.

    Source: the OpenType specification, chapter cmap; of a collection the first font.
    """
    try:
        data = pathlib.Path(path).read_bytes()
        at = struct.unpack_from(">I", data, 12)[0] if data[:4] == b"ttcf" else 0
        tables = {
            data[at + 12 + 16 * n : at + 16 + 16 * n]: struct.unpack_from(
                ">I", data, at + 20 + 16 * n
            )[0]
            for n in range(struct.unpack_from(">H", data, at + 4)[0])
        }
        cmap = data[tables[b"cmap"] :]
        found = []
        for n in range(struct.unpack_from(">H", cmap, 2)[0]):
            table = cmap[struct.unpack_from(">I", cmap, 8 + 8 * n)[0] :]
            read = CMAP_FORMATS.get(struct.unpack_from(">H", table)[0])
            found += read(table) if read else []
        return sorted(set(found))
    except (OSError, KeyError, struct.error):
        return []


class Fonts:
    """I choose fonts: Roboto, where it lacks a character DejaVu Sans, and then what the system has.

    `missing` names the scripts that were asked for and that no font here has.
    """

    def __init__(self):
        folder = pathlib.Path(kivy_data_dir) / "fonts"
        self.base, self.mono = (
            str(folder / name) for name in ("Roboto-Regular.ttf", "RobotoMono-Regular.ttf")
        )
        self._paths, self._searched, self._covered = (
            [self.base, str(folder / "DejaVuSans.ttf")],
            False,
            {},
        )
        self._chosen, self.missing, self.unshaped = {}, set(), set()

    def font_for(self, char):
        """Return the path of a font that has a character, or None for the base font, which may lack it too."""
        if char < "\u0250" or unicodedata.category(char) in BARE:
            return None
        if char not in self._chosen:
            self._chosen[char] = self._find(char)
        return self._chosen[char]

    def _find(self, char):
        script = unicodedata.name(char, "UNNAMED").split()[0]
        if script in UNSHAPED:
            self.unshaped.add(script)
        path = next((path for path in self._candidates() if self._has(path, ord(char))), None)
        if path is None:
            self.missing.add(script)
        return path if path != self.base else None

    def _candidates(self):
        yield from self._paths[:2]
        if not self._searched:
            self._searched = True
            self._paths += _system_fonts()
        yield from self._paths[2:]

    def _has(self, path, code):
        if path not in self._covered:
            self._covered[path] = coverage(path)
        ranges = self._covered[path]
        at = bisect.bisect_right(ranges, (code, 0x110000)) - 1
        return at >= 0 and ranges[at][0] <= code <= ranges[at][1]

    def input_font(self, text, usual):
        """Return the font of an input, which can only have one: that of the first character that the usual font lacks."""
        return next(filter(None, map(self.font_for, text[:2000])), usual)

    def note(self):
        """Return what to say of scripts that are not shown well, or ''."""
        said = (
            [told("glyphs", scripts=", ".join(sorted(self.missing)).lower())]
            if self.missing
            else []
        )
        said += (
            [told("shaping", scripts=", ".join(sorted(self.unshaped - self.missing)).lower())]
            if self.unshaped - self.missing
            else []
        )
        return "; ".join(said)


def _system_fonts():
    """Return paths of the system's fonts, those for many scripts first."""
    found = []
    for folder in FONT_FOLDERS:
        for where, _, names in os.walk(os.path.expanduser(folder)):
            found += [
                os.path.join(where, name)
                for name in names
                if name.lower().endswith((".ttf", ".otf", ".ttc"))
            ]
    plain_first = sorted(
        (path for path in found if "color" not in path.lower()),
        key=lambda path: ("noto" not in path.lower(), "regular" not in path.lower(), path),
    )
    return plain_first[:FONTS_TRIED]


FONTS = Fonts()


def _drawn(text):
    """Return plain text as markup, in fonts that have its characters."""
    if text.isascii():
        return escape_markup(text)
    runs, last = [], None
    for char in text:
        font = last if unicodedata.category(char) in BARE else FONTS.font_for(char)
        if runs and font == last:
            runs[-1][1] += char
        else:
            runs.append([font, char])
        last = font
    return "".join(
        escape_markup(run) if font is None else f"[font={font}]{escape_markup(run)}[/font]"
        for font, run in runs
    )


def colour(tone):
    """Return the hex colour of a tone of the palette."""
    return SPEC["accent"] if tone == "accent" else SPEC["palette"].get(tone, tone)


def marked(text, tone="", hits=(), bold=False):
    """Return untrusted text as markup: escaped, drawn in fonts that have it, in a tone, with spans `hits` lit up."""
    text, parts, at = plain(text)[:SHOWN_CHARS], [], 0
    for start, end in hits:
        if start >= at:
            parts += [
                _drawn(text[at:start]),
                f"[b][color={colour('accent')}]",
                _drawn(text[start:end]),
                "[/color][/b]",
            ]
            at = end
    said = "".join([*parts, _drawn(text[at:])])
    said = f"[b]{said}[/b]" if bold else said
    return f"[color={colour(tone)}]{said}[/color]" if tone else said


# ---- widgets

PREAMBLE = "".join(
    f"#:set {name.upper()} {get_color_from_hex(value)}\n"
    for name, value in {**SPEC["palette"], "accent": SPEC["accent"]}.items()
)


class Unchorded:
    """What is mixed into a field: X11 tells Ctrl+1 as a key and as the text "1"; a chord is no text, but with AltGr it may be."""

    def keyboard_on_textinput(self, keyboard, text):
        modifiers = App.get_running_app().root_window.modifiers
        if "ctrl" not in modifiers or "alt" in modifiers:
            super().keyboard_on_textinput(keyboard, text)


Factory.register("Unchorded", cls=Unchorded)
SHARED_KV = (
    PREAMBLE
    + """
#:set MONO {mono!r}

<Label>:
    color: INK
    font_size: '14sp'

<Words>:
    markup: True
    size_hint_y: None
    text_size: self.width, None
    height: max(self.texture_size[1], self.least)
    halign: 'left'
    valign: 'top'

<Caption@Words>:
    font_size: '12.5sp'
    color: SOFT

<Field@Unchorded+TextInput>:
    accept_tab: False
    multiline: False
    write_tab: False
    text_validate_unfocus: False
    size_hint_y: None
    height: '34dp'
    padding: dp(9), dp(8)
    cursor_blink: False
    font_size: '14sp'
    mono: False
    font_name: app.input_font(self.text, self.mono)
    background_normal: ''
    background_active: ''
    background_disabled_normal: ''
    background_color: 0, 0, 0, 0
    foreground_color: INK
    disabled_foreground_color: FAINT
    hint_text_color: FAINT
    cursor_color: ACCENT
    selection_color: ACCENT[:3] + [0.3]
    canvas.before:
        Color:
            rgba: RAISED
        RoundedRectangle:
            pos: self.pos
            size: self.size
            radius: [dp(5)]
        Color:
            rgba: ACCENT if self.focus else EDGE
        Line:
            rounded_rectangle: self.x, self.y, self.width, self.height, dp(5)
        Color:
            rgba: self.foreground_color if self.text else self.hint_text_color

<Code@Field>:
    multiline: True
    size_hint_y: 1
    mono: True
    font_size: '13.5sp'

<Push>:
    markup: True
    size_hint: None, None
    height: '34dp'
    width: max(self.texture_size[0] + dp(24), dp(36))
    font_size: '13.5sp'
    color: (GROUND if self.strong else INK) if not self.disabled else FAINT
    disabled_color: FAINT
    canvas.before:
        Color:
            rgba: PANEL if self.disabled else ACCENT if self.strong else CHOSEN if self.down or self.state == 'down' else RAISED
        RoundedRectangle:
            pos: self.pos
            size: self.size
            radius: [dp(5)]
        Color:
            rgba: ACCENT if self.focus else EDGE
        Line:
            width: 1.2 if self.focus else 1
            rounded_rectangle: self.x, self.y, self.width, self.height, dp(5)

<Bare@Push>:
    height: '30dp'

<Pane@BoxLayout>:
    orientation: 'vertical'
    padding: dp(10)
    spacing: dp(8)
    canvas.before:
        Color:
            rgba: PANEL
        RoundedRectangle:
            pos: self.pos
            size: self.size
            radius: [dp(6)]

<Strip@BoxLayout>:
    size_hint_y: None
    height: '34dp'
    spacing: dp(6)

<Flow@StackLayout>:
    size_hint_y: None
    height: self.minimum_height
    spacing: dp(6)

<Tabs>:
    size_hint_y: None
    height: '30dp'
    spacing: dp(4)

<Row>:
    canvas.before:
        Color:
            rgba: CHOSEN if self.chosen else (1, 1, 1, 0.018 if self.index % 2 and not self.mono else 0)
        Rectangle:
            pos: self.pos
            size: self.size
        Color:
            rgba: ACCENT if self.chosen else (0, 0, 0, 0)
        Rectangle:
            pos: self.pos
            size: dp(3), self.height
        Color:
            rgba: EDGE if self.bar >= 0 else (0, 0, 0, 0)
        RoundedRectangle:
            pos: self.right - dp(74), self.top - dp(20)
            size: dp(64), dp(7)
            radius: [dp(3)]
        Color:
            rgba: ACCENT if self.bar >= 0 else (0, 0, 0, 0)
        RoundedRectangle:
            pos: self.right - dp(74), self.top - dp(20)
            size: dp(64) * max(0, min(1, self.bar)), dp(7)
            radius: [dp(3)]
    Label:
        id: main
        markup: True
        font_name: MONO if root.mono else 'Roboto'
        font_size: '13.5sp' if root.mono else '14sp'
        text: root.text
        pos: root.x + dp(10) + root.indent, root.y
        size: max(1, root.width - dp(16) - root.indent - root.side_width), root.height
        text_size: self.width, self.height - (root.pad * 2 if root.lines > 1 else 0)
        halign: 'left'
        valign: 'middle' if root.lines == 1 else 'top'
        shorten: root.lines == 1 and not root.mono
        shorten_from: 'right'
        max_lines: root.lines
        line_height: 1.06 if root.lines > 1 else 1
    Label:
        markup: True
        text: root.side
        font_size: '12.5sp'
        color: SOFT
        pos: root.right - root.side_width - dp(8), root.y
        size: max(1, root.side_width), root.height - (dp(24) if root.bar >= 0 else 0)
        text_size: self.width, self.height - (root.pad * 2 if root.lines > 1 else 0)
        halign: 'right'
        valign: 'middle' if root.lines == 1 else 'top'
        max_lines: max(1, root.lines)

<Rows>:
    always_overscroll: False
    bar_width: dp(7)
    bar_color: EDGE
    bar_inactive_color: EDGE
    scroll_type: ['bars', 'content']
    scroll_wheel_distance: dp(60)
    viewclass: 'Row'
    canvas.after:
        Color:
            rgba: ACCENT[:3] + [0.55] if self.focus else (0, 0, 0, 0)
        Line:
            rounded_rectangle: self.x, self.y, self.width, self.height, dp(4)
    RecycleBoxLayout:
        default_size: None, None
        default_size_hint: 1, None
        size_hint_y: None
        height: self.minimum_height
        orientation: 'vertical'

<Reader>:
    orientation: 'vertical'
    spacing: dp(6)
    Strip:
        height: '30dp'
        Words:
            text: root.old + root.title
            size_hint_y: 1
            text_size: self.size
            valign: 'middle'
            shorten: False
            max_lines: 1
        Push:
            text: 'Close'
            height: '28dp'
            opacity: 1 if root.title else 0
            disabled: not root.title
            on_release: root.clear()
    Rows:
        id: rows
        clicks: 2
        empty: root.hint
        on_open: root.go_on(self.chosen_row)

<Dialog>:
    size_hint: 0.74, 0.82
    auto_dismiss: False
    background: ''
    background_color: PANEL
    overlay_color: 0, 0, 0, 0.6
    Pane:
        Words:
            text: root.title
            font_size: '17sp'
        Caption:
            text: root.note
        BoxLayout:
            id: body
            orientation: 'vertical'
            spacing: dp(8)
        Strip:
            id: buttons
            Widget:
"""
)


class Words(Label):
    """A text that takes the height it needs, at least `least`."""

    least = NumericProperty(0)


class Push(FocusBehavior, ButtonBehavior, Label):
    """A button, also by Enter and Space. `down` shows it as chosen, `strong` as what one most likely wants."""

    down, strong = BooleanProperty(False), BooleanProperty(False)

    def keyboard_on_key_down(self, window, keycode, text, modifiers):
        if keycode[1] in ("enter", "numpadenter", "spacebar") and not self.disabled:
            self.dispatch("on_release")
            return True
        return super().keyboard_on_key_down(window, keycode, text, modifiers)


class Chooser(Push):
    """A button that goes through choices; the first, None, is any."""

    value, title, choices = ObjectProperty(None, allownone=True), StringProperty(), ListProperty()

    def on_kv_post(self, _):
        self.bind(value=self._show, title=self._show)
        self._show()

    def _show(self, *_):
        shown = marked(
            "any" if self.value is None else str(self.value), "" if self.value is None else "accent"
        )
        self.text = f"{marked(self.title, 'soft')}  {shown}"

    def on_release(self):
        if self.choices:
            at = self.choices.index(self.value) if self.value in self.choices else -1
            self.value = self.choices[(at + 1) % len(self.choices)]


class Tabs(BoxLayout):
    """Some names of which one is chosen."""

    names, chosen = ListProperty(), StringProperty()

    def on_names(self, *_):
        self.clear_widgets()
        for name in self.names:
            push = Push(text=name, height=dp(30), down=name == self.chosen)
            push.bind(on_release=lambda _, name=name: setattr(self, "chosen", name))
            self.add_widget(push)
        self.add_widget(Widget())

    def on_chosen(self, *_):
        for push in self.children:
            push.down = getattr(push, "text", None) == self.chosen


class Row(RecycleDataViewBehavior, Widget):
    """A line of a list: text on the left, a side note on the right, perhaps a bar above it."""

    text, side, tone = StringProperty(), StringProperty(), StringProperty()
    bar, indent, side_width, lines, pad = (NumericProperty(value) for value in (-1, 0, 0, 1, 4))
    mono, chosen = BooleanProperty(False), BooleanProperty(False)
    index = NumericProperty(0)
    PLAIN = {
        "text": "",
        "side": "",
        "bar": -1,
        "indent": 0,
        "side_width": 0,
        "lines": 1,
        "mono": False,
    }

    def refresh_view_attrs(self, rows, index, data):
        self.index, self.chosen = index, index == rows.chosen
        for name, value in self.PLAIN.items():
            setattr(self, name, data.get(name, value))
        self.height = data["height"]

    def on_touch_down(self, touch):
        rows = self._rows()
        if not self.collide_point(*touch.pos) or rows is None or touch.is_mouse_scrolling:
            return super().on_touch_down(touch)
        rows.focus = True
        rows.choose(self.index)
        if rows.clicks == 1 or touch.is_double_tap:
            rows.dispatch("on_open")
        return True

    def _rows(self):
        return self.parent.recycleview if self.parent else None


def row(text, side="", height=30, value=None, **how):
    """Return a list row's data; text and side are markup, height is in dp, value is what the row stands for."""
    return {
        "text": text,
        "side": side,
        "height": dp(height),
        "value": value,
        "side_width": dp(86) if side else 0,
        **how,
    }


NAMED_BY = ("chunk_id", "change", "cycle", "oid", "doc_id")


def stands_for(value):
    """Return what a row's value is of, whatever else is told of it by now."""
    if isinstance(value, tuple):
        return value[:1]
    if not isinstance(value, dict):
        return value
    told_of = value.get("chunk", value)
    return next((told_of[name] for name in NAMED_BY if name in told_of), value)


class Rows(FocusBehavior, RecycleView):
    """A list that takes ten thousand rows. Arrows move, Enter (or `clicks` clicks) opens, the end asks for more."""

    chosen, clicks, empty = NumericProperty(-1), NumericProperty(1), StringProperty()
    MOVES = {"up": -1, "down": 1, "pageup": -12, "pagedown": 12, "home": -(10**9), "end": 10**9}

    def __init__(self, **how):
        self._tops = [0]
        super().__init__(**how)
        self.register_event_type("on_open")
        self.register_event_type("on_move")
        self.register_event_type("on_more")

    def on_open(self):
        """What is chosen shall be opened."""

    def on_move(self):
        """Another row was chosen."""

    def on_more(self):
        """The end was scrolled to."""

    def on_empty(self, *_):
        if self.layout_manager and all(one["value"] is None for one in (self.data or ())[:2]):
            self.fill([])

    @property
    def chosen_row(self):
        """The value of the chosen row, or None."""
        return self.data[self.chosen]["value"] if 0 <= self.chosen < len(self.data) else None

    def fill(self, rows, keep=False):
        """Show rows, or the empty text; `keep` keeps what is chosen, and the place."""
        rows = rows or (
            [row(marked(self.empty, "faint"), height=120, lines=6)] if self.empty else []
        )
        above = (1 - self.scroll_y) * self._room() if keep else 0
        chosen = self._place_in(rows) if keep else -1
        self._tops = [0]
        for one in rows:
            self._tops.append(self._tops[-1] + one["height"])
        self.data, self.chosen = rows, chosen
        room = self._room()
        self.scroll_y = 1 - min(1, above / room) if room else 1
        self._light()

    def _room(self):
        """Return how much more there is than is seen at a time."""
        return max(0, self._tops[-1] - self.height)

    def _place_in(self, rows):
        """Return where what is chosen stands among new rows; where it has gone, the place that it had."""
        if not 0 <= self.chosen < len(self.data):
            return -1
        wanted = stands_for(self.data[self.chosen]["value"])
        near = min(self.chosen, len(rows) - 1)
        if rows and stands_for(rows[near]["value"]) == wanted:
            return near
        places = (n for n, one in enumerate(rows) if stands_for(one["value"]) == wanted)
        return near if wanted is None else next(places, near)

    def add(self, rows):
        """Add rows at the end; the place stays."""
        self.fill([*self.data, *rows], keep=True)

    def choose(self, index, show=False):
        """Choose a row; `show` scrolls to it."""
        if not self.data:
            return
        moved = index != self.chosen
        self.chosen = max(0, min(len(self.data) - 1, index))
        if show:
            self.show(self.chosen)
        self._light()
        if moved:
            self.dispatch("on_move")

    def _light(self):
        for view in self.children[0].children if self.children else ():
            view.chosen = view.index == self.chosen

    def show(self, index, at=None):
        """Scroll so that a row is seen; `at` is where, from 0 (top) to 1, else only as far as needed."""
        room = self._tops[-1] - self.height
        if room <= 0 or index + 1 >= len(self._tops):
            return
        top = (1 - self.scroll_y) * room
        if at is not None:
            top = self._tops[index] - self.height * at
        else:
            top = min(max(top, self._tops[index + 1] - self.height), self._tops[index])
        self.scroll_y = 1 - max(0, min(room, top)) / room

    def on_scroll_y(self, *_):
        if self.data and (self.scroll_y <= 0.001 or self._tops[-1] <= self.height):
            self.dispatch("on_more")

    def keyboard_on_key_down(self, window, keycode, text, modifiers):
        if keycode[1] in self.MOVES and not modifiers:
            self.choose(self.chosen + self.MOVES[keycode[1]], show=True)
            if self.chosen == len(self.data) - 1:
                self.dispatch("on_more")
            return True
        if keycode[1] in ("enter", "numpadenter") and self.chosen >= 0:
            self.dispatch("on_open")
            return True
        return super().keyboard_on_key_down(window, keycode, text, modifiers)


def line_rows(lines, columns, numbers=True):
    """Return rows of text lines in a fixed font: lines is [(number or '', text, tone, hits, value)]."""
    rows = []
    for number, text, tone, hits, value in lines:
        for n, piece in enumerate(wrapped(plain(text), columns)):
            margin = (
                f"[color={colour('faint')}]{number if n == 0 else '':>5}[/color]  "
                if numbers
                else ""
            )
            lit = hits_in(piece, hits) if hits else ()
            rows.append(row(margin + marked(piece, tone, lit), height=20, mono=True, value=value))
    return rows


def columns_of(rows, margin=9):
    """Return how many columns of the fixed font fit into a list."""
    return max(20, int((rows.width - dp(24)) / (sp(13.5) * 0.6)) - margin)


class Reader(BoxLayout):
    """A pane that shows a document around a place, and goes on in both directions."""

    title, hint, store = StringProperty(), StringProperty(), ObjectProperty(None, allownone=True)
    old = StringProperty()  # why what is shown is not what memory holds by now
    PAGE = 24  # chunks that are asked for at a time

    def __init__(self, **how):
        super().__init__(**how)
        self._clear()
        self._seen = None  # the value of the row that was first, where more is asked for above
        self.bind(width=lambda *_: self._again())
        self._again = Clock.create_trigger(lambda _: self._show() if self._chunks else None, 0.1)

    def _clear(self):
        self.old = ""
        self._doc, self._chunks, self._lines, self._words, self._facts, self._goal = (
            None,
            {},
            None,
            (),
            {},
            0,
        )

    def clear(self):
        """Close what is open."""
        self._clear()
        self.title = ""
        self.ids.rows.fill([])

    def open(self, doc_id, version=None, chunk=0, lines=None, words=()):
        """Show a document at a chunk; `lines` (first, last) and what is spelt as `words` are lit up."""
        self._clear()
        self._doc, self._lines, self._words, self._goal = (doc_id, version), lines, words, chunk
        self.title = marked(name_of(doc_id), bold=True)
        self._ask(max(0, chunk - self.PAGE // 3), goal=True)

    def look_whether_old(self):
        """Say so where memory holds another version by now, or none."""
        if self._facts:
            self.store.ask(
                "show_document",
                self._say_whether_old,
                slot=f"whether old{id(self)}",
                doing="looking",
                doc_id=self._doc[0],
                limit=1,
            )

    def _say_whether_old(self, reply):
        """Say which version there is by now, where it is not the one that is shown."""
        version = (reply.get("result") or {}).get("version")
        if not self._facts or version == self._facts["version"]:
            self.old = ""
        elif version is None:
            self.old = marked(f"old: {reply['details']}   ", "warm")
        else:
            self.old = marked(f"old: version {version} is there by now   ", "warm")

    def _ask(self, first, goal=False, limit=PAGE):
        doc_id, version = self._doc
        self.store.ask(
            "show_document",
            lambda reply: self._came(reply, goal),
            slot=f"reader{id(self)}",
            doing="reading",
            doc_id=doc_id,
            version=version,
            first=first,
            limit=limit,
        )

    def _came(self, reply, goal):
        if reply["status"] != "OK":
            self.ids.rows.fill([row(marked(reply["details"], "bad"), height=90, lines=4)])
            return
        self._facts = reply["result"]
        self._chunks |= {one["chunk_index"]: one for one in reply["results"]}
        if not self._chunks:
            what = (
                "the document has no such place any more"
                if self._facts["chunks"]
                else "the document is empty"
            )
            self.ids.rows.fill([row(marked(what, "soft"))])
            return
        name, title = name_of(self._facts["doc_id"]), self._facts["title"]
        where = [name, f"version {self._facts['version']}, {self._facts['kind']}"]
        where += [folder_of(self._facts["doc_id"])]
        where = where[1:] if title in (None, "", name) else where
        self.title = f"{marked(title or name, bold=True)}  " + marked("  ".join(where), "soft")
        self._show()
        if goal:
            Clock.schedule_once(lambda _: self._go_to_lines(), 0)
        elif self._seen:  # what stood at the top stays in sight
            at = next(
                (n for n, one in enumerate(self.ids.rows.data) if one["value"] == self._seen), 0
            )
            Clock.schedule_once(lambda _, at=at: self.ids.rows.show(at, 0), 0)

    def _show(self):
        """Show what is held of the document, with rows that go on above and below."""
        first, last = min(self._chunks), max(self._chunks)
        lines, at = [], None
        # of which several chunks may be parts
        one_line = self._lines and self._lines[0] == self._lines[1]
        for index in range(first, last + 1):
            chunk = self._chunks.get(index)
            for number, text in (
                enumerate(chunk["text"].split("\n"), chunk["lines"][0]) if chunk else ()
            ):
                lines += (
                    [("", "", "", (), None)]
                    if at is not None and number > at + 1 and not self._is_code()
                    else []
                )
                lit = (
                    self._lines
                    and self._lines[0] <= number <= self._lines[1]
                    and not (one_line and index != self._goal)
                )
                lines.append((number, text, "accent" if lit else "", self._words, (number, index)))
                at = number
        rows = line_rows(lines, columns_of(self.ids.rows))
        above = (
            [row(marked(f"\u2191 {first} chunks above", "cool"), value=("above", first))]
            if first
            else []
        )
        below = self._facts["chunks"] - 1 - last
        rows = (
            above
            + rows
            + (
                [row(marked(f"\u2193 {below} chunks below", "cool"), value=("below", last))]
                if below
                else []
            )
        )
        self.ids.rows.fill(rows, keep=True)

    def _is_code(self):
        return self._facts.get("kind") == "code"

    def _go_to_lines(self):
        line = self._lines[0] if self._lines else None
        # (line, chunk) -> row
        places = {one["value"]: n for n, one in reversed(list(enumerate(self.ids.rows.data)))}
        first = next((n for value, n in reversed(places.items()) if value and value[0] == line), 0)
        self.ids.rows.show(places.get((line, self._goal), first), 0.3)

    def go_on(self, value):
        """Open the row that goes on above or below."""
        where, chunk = value or ("", 0)
        if where in ("above", "below"):
            first = max(0, chunk - self.PAGE) if where == "above" else chunk + 1
            self._seen = self.ids.rows.data[1]["value"] if where == "above" else None
            self._ask(first, limit=min(self.PAGE, chunk) if where == "above" else self.PAGE)


class Split(BoxLayout):
    """Two parts with a handle between them to drag; where it stands is kept under `name`."""

    share, name, pages = (
        NumericProperty(0.4),
        StringProperty(),
        ObjectProperty(None, allownone=True),
    )
    GRIP = 8

    def on_kv_post(self, _):
        self.spacing = dp(self.GRIP)
        layout = App.get_running_app().layout
        self.share = layout["splits"].get(self.name, self.share)
        self.bind(share=self._place)
        self._place()

    def _place(self, *_):
        if len(self.children) == 2:
            second, first = self.children
            which = 0 if self.orientation == "horizontal" else 1
            for part, share in ((first, self.share), (second, 1 - self.share)):
                part.size_hint = (share, 1) if which == 0 else (1, share)

    def _edge(self):
        first = self.children[1]
        return first.right if self.orientation == "horizontal" else first.y - dp(self.GRIP)

    def on_touch_down(self, touch):
        if (
            len(self.children) == 2
            and self.collide_point(*touch.pos)
            and not touch.is_mouse_scrolling
        ):
            at = touch.x if self.orientation == "horizontal" else touch.y
            if self._edge() - dp(1) <= at <= self._edge() + dp(self.GRIP + 1):
                touch.grab(self)
                return True
        return super().on_touch_down(touch)

    def on_touch_move(self, touch):
        if touch.grab_current is not self:
            return super().on_touch_move(touch)
        share = (
            (touch.x - self.x) / self.width
            if self.orientation == "horizontal"
            else (self.top - touch.y) / self.height
        )
        self.share = max(0.12, min(0.88, share))
        App.get_running_app().layout["splits"][self.name] = round(self.share, 4)
        return True

    def on_touch_up(self, touch):
        if touch.grab_current is self:
            touch.ungrab(self)
            return True
        return super().on_touch_up(touch)


@functools.lru_cache(maxsize=512)
def texture_of(said, size, width, halign, lines):
    """Return the texture of a text with markup; figures that stand still are not drawn each time."""
    label = MarkupLabel(
        text=said,
        font_size=sp(size),
        text_size=(width, sp(size) * 1.4 * lines),
        halign=halign,
        valign="top",
        max_lines=lines,
    )
    label.refresh()
    return label.texture


class Drawing(Widget):
    """A widget that draws itself anew, once a frame, when its data or size changed."""

    data = ObjectProperty(None, allownone=True)

    def __init__(self, **how):
        super().__init__(**how)
        self.again = Clock.create_trigger(lambda _: self._draw())
        self.bind(pos=self.again, size=self.again, data=self.again)
        self.spots = []  # [(x, y, right, top, value)] that a click opens
        self.register_event_type("on_spot")

    def on_spot(self, value):
        """A part that stands for something was clicked."""

    def _draw(self):
        self.canvas.clear()
        self.spots = []
        if self.data is not None and self.width > 20 and self.height > 20:
            with self.canvas:
                self.draw(self.data)

    def draw(self, data):
        """Draw the data on the canvas."""

    def box(self, x, y, width, height, tone, alpha=1.0, outline=None):
        """Draw a rounded box."""
        Color(*get_color_from_hex(colour(tone))[:3], alpha)
        RoundedRectangle(pos=(x, y), size=(width, height), radius=[dp(5)])
        if outline:
            Color(*get_color_from_hex(colour(outline)))
            Line(rounded_rectangle=(x, y, width, height, dp(5)), width=1.1)

    def say(self, text, x, y, width, tone="ink", size=13, halign="left", lines=1):
        """Draw text, the top of its first line at y; it is cut at a width."""
        said = marked(short(text, max(4, int(width / (sp(size) * 0.5)) * lines)), tone)
        texture = texture_of(said, size, width, halign, lines)
        if texture:
            Color(1, 1, 1, 1)
            Rectangle(texture=texture, pos=(x, y - texture.height), size=texture.size)

    def line(self, points, tone, width=1.2):
        Color(*get_color_from_hex(colour(tone)))
        Line(points=points, width=width)

    def on_touch_down(self, touch):
        for x, y, right, top, value in reversed(self.spots):
            if x <= touch.x <= right and y <= touch.y <= top and self.collide_point(*touch.pos):
                self.dispatch("on_spot", value)
                return True
        return super().on_touch_down(touch)


class Spark(Drawing):
    """A figure over time: data is {"title", "unit", "values": [(s, figure)]}."""

    def draw(self, data):
        values = [value for _, value in data["values"]]
        self.box(self.x, self.y, self.width, self.height, "raised")
        self.say(data["title"], self.x + dp(9), self.top - dp(6), self.width / 2, "soft", 12)
        last = f"{number_text(values[-1])} {data['unit']}" if values else "\u2013"
        self.say(
            last,
            self.x + self.width / 2 - dp(9),
            self.top - dp(6),
            self.width / 2,
            "ink",
            13,
            "right",
        )
        if len(values) < 2:
            return
        low, high = min(values), max(values)
        span, since = (high - low) or 1, data["values"][0][0]
        time_s = data["values"][-1][0] - since or 1
        points = []
        for at, value in data["values"]:
            points += [
                self.x + dp(9) + (self.width - dp(18)) * (at - since) / time_s,
                self.y
                + dp(9)
                + (self.height - dp(44)) * ((value - low) / span if high > low else 0.1),
            ]
        self._fill(points)
        self.line(points, "accent", 1.3)

    def _fill(self, points):
        Color(*get_color_from_hex(colour("accent"))[:3], 0.13)
        base, corners = self.y + dp(7), []
        for x, y in zip(points[::2], points[1::2], strict=True):
            corners += [x, base, 0, 0, x, y, 0, 0]
        Mesh(vertices=corners, indices=list(range(len(corners) // 4)), mode="triangle_strip")


class Gauge(Drawing):
    """How full something is: data is {"used", "room" or None, "tone", "words"}."""

    def draw(self, data):
        self.box(self.x, self.y, self.width, self.height, "raised")
        share = min(1, data["used"] / data["room"]) if data["room"] else 0
        if share:
            self.box(
                self.x, self.y, max(dp(6), self.width * share), self.height, data["tone"], 0.75
            )
        self.say(
            data["words"], self.x + dp(8), self.center_y + sp(9), self.width - dp(16), "ink", 13
        )


def _all_below(widget):
    """Yield a widget and all below it, in reading order."""
    yield widget
    for child in reversed(widget.children):
        yield from _all_below(child)


class Dialog(ModalView):
    """Asks something in front of everything; Escape closes it."""

    title, note = StringProperty(), StringProperty()

    def button(self, text, then, strong=False):
        """Add a button; then() is called when it is pressed."""
        push = Push(text=text, strong=strong)
        push.bind(on_release=lambda _: then())
        self.ids.buttons.add_widget(push)
        return push

    def on_pre_open(self):
        """Take the keyboard from what is behind."""
        self._had = None
        for one in _all_below(App.get_running_app().root):
            if getattr(one, "focus", False):
                self._had, one.focus = one, False

    def on_dismiss(self):
        """Give the keyboard back, where what had it is still shown and nothing else took it."""
        behind = _all_below(App.get_running_app().root)
        if (
            self._had
            and self._had.get_root_window()
            and not any(getattr(one, "focus", False) for one in behind)
        ):
            self._had.focus = True


class Page(BoxLayout):
    """A page of the Inspector: made when first shown, told what `wants` names only while it is."""

    name, wants, kv = "", {}, ""  # wants: {topic of the store: name of a method}
    live = False  # it looks anew each time that it is shown

    def __init__(self, inspector, **how):
        self.inspector, self.store, self.spec = inspector, inspector.store, PAGES[self.name]
        self.stale = True  # what is shown was not asked since the daemon came, or since a change
        super().__init__(**how)
        self.made()

    def made(self):
        """Fill what does not change."""

    def shown(self):
        """Listen, and look anew."""
        for topic, method in self.wants.items():
            self.store.on(topic, getattr(self, method))
        if self.live or self.stale:
            self.look_anew()

    def look_anew(self):
        """Ask for what is shown, where a daemon is there to answer."""
        self.stale = self.store.line != "online"
        self.refresh()

    def hidden(self):
        """Listen no more."""
        for method in self.wants.values():
            self.store.off(getattr(self, method))

    def refresh(self):
        """Ask anew what is shown."""

    def go(self, **where):
        """Show what another page refers to."""

    def begin(self):
        """Put the cursor where one would begin."""

    def back(self):
        """Take one step back; returns whether there was one."""
        return False

    def key(self, key, modifiers):
        """Take a key that no field wanted; returns whether it meant something."""
        return False


def cycle_row(report):
    """Return the row of a cycle as list_cycles tells it."""
    tone = SPEC["states"].get(report["state"], "soft")
    mark = {"right": "\u2713 ", "wrong": "\u2717 "}.get(report.get("feedback", {}).get("mark"), "")
    told_of = f"{mark}{report['state'].lower()}  {seconds_text(report.get('seconds'))}"
    return row(
        f"{marked(short(report['mission'], 110))}\n{marked(told_of, tone)}  "
        f"{marked(clock_text(report['accepted_at']), 'faint')}",
        height=64,
        value=report,
        lines=3,
        pad=6,
    )


def change_row(change):
    """Return the row of a change of the ledger."""
    slots = (
        ", ".join(f"{part['name'] or part['oid']}.{part['slot']}" for part in change["changes"])
        or "no slot"
    )
    by = ", ".join(
        filter(None, [change["who"], change["cycle"] and f"cycle {change['cycle']}", change["why"]])
    )
    return row(
        f"{marked(change['command'], 'cool')}  {marked(short(slots, 90))}\n{marked(short(by, 90), 'soft')}  "
        f"{marked(change['change'], 'faint')}",
        marked(clock_text(change["at"])),
        46,
        change,
        lines=2,
        pad=4,
    )


def change_lines(change, oid=None):
    """Return [(tone, line)] of what a change did to its slots, or to those of one object."""
    lines = []
    for part in change["changes"]:
        if oid in (None, part["oid"]):
            before, after = (
                "" if part.get(side) is None and side not in part else pretty(part[side])
                for side in ("before", "after")
            )
            lines += [
                ("soft", f"{part['name'] or part['oid']}.{part['slot']}"),
                *difference(before, after)[2:],
                ("", ""),
            ]
    return lines or [("faint", "it changed no slot")]


# ---- page: search


def relevance(found):
    """Return, from 0 to 1, how much of the question's weight a result holds, or how near it is by meaning."""
    why = found["why"]
    return max(why.get("mass", 0), why.get("similarity") or 0)


def spelt_of(found):
    """Return the words that a result was found by, as its text spells them."""
    return found["why"].get("spelt", list(found["why"]["words"]))


class SearchPage(Page):
    """Words in, ranked passages out, each with its reason; the chosen one stands in its document.

    I follow what memory learns. Where more than the first results are shown I say that they are old: to ask for all of
    them anew would take the place away.
    """

    name, wants = "search", {"uvm_state_update": "memory_came"}
    # figures of the memory: one of them changes when what is found may
    FIGURES = ("documents", "chunks", "retired")
    PAGE = 50
    kv = """
<SearchPage>:
    orientation: 'vertical'
    spacing: dp(8)
    Strip:
        height: '38dp'
        Field:
            id: query
            height: '38dp'
            font_size: '16sp'
            hint_text: 'Search the memory    +"in quotes" must be there, -this must not'
            on_text_validate: root.ask()
        Push:
            text: 'Search'
            strong: True
            height: '38dp'
            on_release: root.ask()
    Strip:
        id: filters
        height: '30dp'
    Words:
        id: note
        font_size: '13sp'
    Split:
        name: 'search'
        share: 0.46
        Pane:
            padding: dp(4)
            Rows:
                id: rows
                on_move: root.look()
                on_open: root.look(True)
                on_more: root.more()
        Pane:
            Reader:
                id: reader
                store: root.store
                hint: 'Choose a result to see it in its document.'
"""

    def made(self):
        self._after, self._fields, self.filters = None, {}, {}
        fit = Clock.create_trigger(lambda _: self._fit(), 0.1)
        self.ids.rows.bind(width=lambda *_: fit())
        # the figures as last told; whether more than the first results are shown
        self._figures, self._is_more = self._figures_now(), False
        given = COMMANDS["search_memory"]["fields"]
        for name in self.spec["columns"]:
            self._add_filter(name, given.get(name, {}))
        self.ids.filters.add_widget(Widget())

    def _add_filter(self, name, field):
        if field.get("choices"):
            first = field.get("default")
            one = Chooser(
                title=name,
                choices=[first, *(choice for choice in field["choices"] if choice != first)],
                value=first,
                height=dp(30),
            )
            one.bind(value=lambda *_: self.ask())
        else:
            one = Factory.Field(
                hint_text=name,
                size_hint_x=None,
                width=dp(118),
                height=dp(30),
                padding=(dp(8), dp(6)),
                font_size=sp(13),
            )
            one.bind(on_text_validate=lambda _: self.ask())
        self.filters[name] = one
        self.ids.filters.add_widget(one)

    def begin(self):
        self.ids.query.focus = True
        Clock.schedule_once(lambda _: self.ids.query.select_all(), 0)

    def refresh(self):
        self.ask(keep=True)
        self.ids.reader.look_whether_old()

    def memory_came(self, _):
        """Follow what memory holds by now."""
        before, self._figures = self._figures, self._figures_now()
        if before == self._figures:
            return
        if self._is_more:
            self.ids.note.text = marked("old: memory has changed since; F5 asks anew", "warm")
        else:
            self._ask(None, keep=True)
        self.ids.reader.look_whether_old()

    def _figures_now(self):
        memory = self.store.state.get("memory", {})
        return [memory.get(name) for name in self.FIGURES]

    def _asked(self):
        """Return the fields of the filters as they stand."""
        fields = {}
        for name, one in self.filters.items():
            value = one.value if isinstance(one, Chooser) else one.text.strip() or None
            if value is not None:
                fields[name] = (
                    value.replace(",", " ").split()
                    if COMMANDS["search_memory"]["fields"][name]["type"] == "list"
                    else value
                )
        return fields

    def ask(self, keep=False):
        """Ask for the first results; without words for the documents."""
        query = self.ids.query.text.strip()
        self._fields = {"query": query, **self._asked()} if query else {}
        self._ask(None, keep)

    def _ask(self, after, keep=False):
        self._after = None
        if self._fields:
            self.store.ask(
                "search_memory",
                lambda reply: self.came(reply, after, keep),
                slot="search",
                doing="searching",
                max_results=self.PAGE,
                offset=after or 0,
                **self._fields,
            )
        else:
            self.store.ask(
                "list_documents",
                lambda reply: self.came(reply, after, keep),
                slot="search",
                doing="listing",
                after=after or "",
                limit=200,
            )

    def more(self):
        """The end was reached: ask for what follows."""
        if self._after is not None:
            self._ask(self._after)

    def came(self, reply, after, keep=False):
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            if after:
                self._after = after  # scrolling tries it again
            else:
                self.ids.rows.empty = ""
                self.ids.rows.fill([])
            return
        found, searched = reply["results"], bool(self._fields)
        before = len(self.ids.rows.data) if after else 0
        rows = self._rows_of(found, before)
        if searched:
            whole = (
                len(found) == self.PAGE
                and before + self.PAGE <= COMMANDS["search_memory"]["fields"]["offset"]["max"]
            )
            self._after = before + len(found) if whole else None
        else:
            self._after = reply["result"]["after"]
        self._is_more = bool(after)
        if after:
            self.ids.rows.add(rows)
        else:
            self.ids.rows.empty = TEXTS["nothing"] if searched else self.spec["empty"]
            self.ids.rows.fill(rows, keep)
        self._note(reply, before + len(found))

    def _rows_of(self, found, before=0):
        if found and "chunk" in found[0]:
            return [self._result_row(before + n, one) for n, one in enumerate(found, 1)]
        return [self._document_row(one) for one in found]

    def _fit(self):
        """Make the rows anew for another width of the list."""
        found = [one["value"] for one in self.ids.rows.data if one["value"]]
        if found:
            self.ids.rows.fill(self._rows_of(found), keep=True)

    def _note(self, reply, count):
        what = "passages" if self._fields else "documents"
        more = ", and more as you scroll" if self._after is not None else ""
        notes = reply["details"].split("; ")[1:]
        self.ids.note.text = marked("; ".join([f"{count} {what}{more}", *notes]), "soft")

    def _result_row(self, rank, found):
        """Return a result's row: what it is, where, three lines of what it says, and why it was found.

        All but the passage is cut to a line, so that the passage is seen however narrow the list is.
        """
        columns, chunk, spelt = self._columns(), found["chunk"], spelt_of(found)
        text = self._around(self._text_of(found), spelt, min(180, 3 * columns - 12))
        place, title = place_of(chunk), chunk["title"]
        headings = " \u203a ".join(chunk["headings"])
        where = [place, headings, folder_of(chunk["doc_id"])]
        if title in (chunk["doc_id"], name_of(chunk["doc_id"])):  # it has no title
            title, where = place, where[1:]
        said = [
            f"{marked(f'{rank}.', 'faint')}  {marked(short(title, int(columns * 0.9) - 5), bold=True)}",
            marked(short(" \u00b7 ".join(filter(None, where)), columns), "soft")
            if any(where)
            else "",
            marked(text, "", hits_in(text, spelt)),
            marked(short(self._why(found), columns), "cool"),
        ]
        share = relevance(found)
        return row(
            "\n".join(filter(None, said)),
            marked(f"{share:.0%}"),
            122,
            found,
            bar=share,
            lines=6,
            pad=6,
        )

    def _columns(self):
        """Return how many letters fit beside a row's side note."""
        return max(24, int((self.ids.rows.width - dp(110)) / (sp(14) * 0.53)))

    @staticmethod
    def _text_of(found):
        inner = found.get("sentence") or found.get("section") or found["chunk"]
        return (found.get("document") or {}).get("written") or inner["text"]

    @staticmethod
    def _around(text, words, most):
        """Return the part of a text around its first hit."""
        text = " ".join(plain(text).split())
        hits = hits_in(text, words)
        begin = text.rfind(" ", 0, max(0, hits[0][0] - 40)) + 1 if hits else 0
        begin = max(begin, hits[0][0] - 60) if hits else 0  # a word before it may be long
        return ("\u2026" if begin else "") + short(text[begin:], most)

    @staticmethod
    def _why(found):
        why, said = found["why"], []
        if why["words"]:
            said.append(f"words (rank {why['rank_by_words'] or '-'}) {', '.join(why['words'])}")
        if why.get("similarity") is not None:
            said.append(f"meaning (rank {why['rank_by_meaning'] or '-'}) {why['similarity']:.2f}")
        said += [f"without {', '.join(why['missing'])}"] if why.get("missing") else []
        said += [f"{len(found['also'])} more alike"] if found["also"] else []
        said += [f"superseded by {found['superseded_by']}"] if found["superseded_by"] else []
        return short("; ".join(said), 80)

    def _document_row(self, document):
        columns, name = self._columns(), name_of(document["doc_id"])
        title = document["title"] or name
        head = marked(short(title, int(columns * 0.9)), bold=True)
        facts = f"{document['kind']}, version {document['version']}, {document['chunks']} chunks, {document['scope']}"
        where = [name] * (name != title) + [facts, folder_of(document["doc_id"])]
        below = short(" \u00b7 ".join(filter(None, where)), columns)
        said = f"{head}\n{marked(below, 'soft')}"
        return row(said, marked(clock_text(document["added_at"])), 54, document, lines=2, pad=7)

    def look(self, enter=False):
        """Open the chosen result in the reader; by Enter the cursor goes there too."""
        found = self.ids.rows.chosen_row
        if not found:
            return
        if "chunk" in found:
            chunk = found["chunk"]
            self.ids.reader.open(
                chunk["doc_id"],
                chunk["version"],
                chunk["chunk_index"],
                chunk["lines"],
                spelt_of(found),
            )
        else:
            self.ids.reader.open(found["doc_id"], found["version"])

    def go(self, doc_id=None, version=None, chunk=0, lines=None, query=None):
        if query is not None:
            self.ids.query.text = query
            self.ask()
        elif doc_id:
            self.ids.reader.open(doc_id, version, chunk, lines)

    def back(self):
        if self.ids.reader.title:
            self.ids.reader.clear()
            self.ids.rows.focus = True
            return True
        if self.ids.query.text:
            self.ids.query.text = ""
            self.ask()
            return True
        return False


# ---- page: ask


class CycleDrawing(Drawing):
    """A cycle of thought: its states in a row with their times, the facets of DELEGATING side by side below."""

    def draw(self, data):
        states, gap = data["states"], dp(10)
        width, height, top = (
            (self.width - gap * (len(states) - 1)) / max(1, len(states)),
            dp(48),
            self.top,
        )
        for n, (state, seconds, running) in enumerate(states):
            x, tone = self.x + n * (width + gap), SPEC["states"].get(state, "soft")
            known = seconds is not None
            self.box(
                x,
                top - height,
                width,
                height,
                tone if known else "raised",
                0.2 if known else 1,
                tone if running else None,
            )
            self.box(x, top - height, dp(4), height, tone if known else "edge")
            self.say(
                state,
                x + dp(13),
                top - dp(6),
                width - dp(16),
                "ink" if known else "faint",
                min(13, width / dp(9.6)),
            )
            note = seconds_text(seconds) + (" \u2026" if running else "")
            self.say(note, x + dp(13), top - dp(25), width - dp(16), "soft", 12)
            if n:
                self.line([x - gap + dp(2), top - height / 2, x - dp(2), top - height / 2], "faint")
        self._facets(data["facets"], top - height - dp(10))

    def _facets(self, facets, top):
        count, gap = len(facets), dp(8)
        if not count or top - self.y < dp(30):
            return
        width = (self.width - gap * (count - 1)) / count
        for n, facet in enumerate(facets):
            x = self.x + n * (width + gap)
            self.box(
                x,
                self.y,
                width,
                top - self.y,
                "raised",
                1,
                "violet" if facet["said"] is None else None,
            )
            name = (
                f"{facet['persona']}  {facet['pillar'].removesuffix('_facet_').replace('_', ' ')}"
            )
            self.say(name, x + dp(9), top - dp(6), width - dp(16), "violet", 13)
            self.say(
                f"\u201c{facet['asks']}\u201d", x + dp(9), top - dp(25), width - dp(16), "soft", 12
            )
            lines = int((top - self.y - dp(46)) / (sp(12.5) * 1.4))
            if lines > 0:
                said = "thinks \u2026" if facet["said"] is None else facet["said"]
                self.say(
                    said,
                    x + dp(9),
                    top - dp(43),
                    width - dp(16),
                    "ink" if facet["said"] else "faint",
                    12.5,
                    lines=lines,
                )
            self.spots.append((x, self.y, x + width, top, facet))


class AskPage(Page):
    """Questions and answers: the cycle as it runs, the words as they come, citations that open, marks."""

    name, live, wants = "ask", True, {"cycle": "cycle_moved", "tokens": "token_came"}
    PATH = [state for state in SPEC["states"] if state != "FAILED"]
    kv = """
<AskPage>:
    Split:
        name: 'ask'
        share: 0.25
        Pane:
            padding: dp(4)
            Rows:
                id: rows
                on_move: root.choose()
                on_open: root.choose()
        Split:
            name: 'ask reader'
            share: 0.62
            Pane:
                Words:
                    id: question
                    font_size: '17sp'
                CycleDrawing:
                    id: drawing
                    size_hint_y: None
                    height: dp(58) + (dp(112) if self.data and self.data['facets'] else 0)
                    on_spot: root.show_facet(args[1])
                Tabs:
                    id: tabs
                    names: root.spec['columns']
                    chosen: root.spec['columns'][0]
                    on_chosen: root.show()
                ScrollView:
                    bar_width: dp(7)
                    Words:
                        id: answer
                        font_size: '15.5sp'
                        line_height: 1.15
                        padding: dp(2), dp(6)
                        on_ref_press: root.open_citation(args[1])
                Rows:
                    id: evidence
                    size_hint_y: None
                    height: min(dp(150), max(dp(2), len(self.data) * dp(44)))
                    on_move: root.open_citation(self.chosen_row)
                    on_open: root.open_citation(self.chosen_row)
                Strip:
                    id: marks
                    Field:
                        id: remark
                        hint_text: 'What would be right (a note to the mark)'
                        on_text_validate: root.mark('wrong')
                    Push:
                        text: 'Right'
                        disabled: not root.finished
                        on_release: root.mark('right')
                    Push:
                        text: 'Wrong'
                        disabled: not root.finished
                        on_release: root.mark('wrong')
                    Push:
                        text: 'Cancel'
                        disabled: not root.running
                        on_release: root.cancel()
                Words:
                    id: note
                    font_size: '13sp'
                Strip:
                    height: '38dp'
                    Field:
                        id: ask
                        height: '38dp'
                        font_size: '16sp'
                        hint_text: 'Ask a question'
                        on_text_validate: root.ask()
                    Field:
                        id: conversation
                        height: '38dp'
                        size_hint_x: None
                        width: dp(150)
                        hint_text: 'Conversation'
                    Push:
                        text: 'Ask'
                        strong: True
                        height: '38dp'
                        on_release: root.ask()
            Pane:
                Reader:
                    id: reader
                    store: root.store
                    hint: 'Click a citation such as [1] to see it in its document.'
"""
    finished, running = BooleanProperty(False), BooleanProperty(False)

    def made(self):
        # cycle -> text so far
        self.cycle, self._report, self._data, self._steps, self._spoken = None, {}, {}, [], {}
        self._personas, self._clock = {}, None  # facet -> persona
        self._look_later = Clock.create_trigger(lambda _: self._look(), 0.05)

    def begin(self):
        self.ids.ask.focus = True

    def hidden(self):
        super().hidden()
        self._tick(False)

    def refresh(self):
        self.store.ask("list_cycles", self._listed, slot="cycles", doing="listing", limit=100)
        if not self._personas:
            for name, known in self.store.state.get("objects", {}).items():
                if "pillars" in (known["slots"] or ()):
                    self.store.ask("inspect", self._persona, target=name)

    def _persona(self, reply):
        if reply["status"] == "OK":
            slots = reply["result"]["slots"]
            entries = slots["pillars"]["value"].get("$tree", {}).get("entries", [])
            self._personas |= {pillar: str(slots["name"]["value"]) for pillar, _ in entries}
            self.draw()

    def _listed(self, reply):
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            return
        reports, self.ids.rows.empty = reply["results"], self.spec["empty"]
        self.ids.rows.fill([cycle_row(one) for one in reports], keep=True)
        mine = next(
            (n for n, one in enumerate(reports) if one["cycle"] == self.cycle),
            0 if self.cycle is None else -1,
        )
        if reports and mine >= 0:
            self.ids.rows.choose(mine)
            self._take(reports[mine])
        elif mine < 0:
            self.ids.note.text = marked(
                f"{self.cycle} is none of the last {len(reports)} missions; see it under Objects",
                "soft",
            )

    def choose(self):
        report = self.ids.rows.chosen_row
        if report and report["cycle"] != self.cycle:
            self.ids.note.text = self.ids.remark.text = ""
            self._data, self._steps = {}, []
            self._take(report)

    def _take(self, report):
        """Show a cycle as list_cycles tells it, then look into the object itself."""
        self.cycle, self._report = report["cycle"], report
        self.finished, self.running = "answer" in report, report["state"] not in ENDED
        self._tick(self.running)
        self.show()
        self._look()

    def _look(self):
        """Look at the cycle's own object: its plan, what the facets said, the steps of its journal."""
        if self.cycle:
            self.store.ask(
                "inspect", self._looked, slot="cycle", doing="looking", target=self.cycle
            )

    def _looked(self, reply):
        if reply["status"] != "OK" or reply["result"]["oid"] != self.cycle:
            return
        slots = reply["result"]["slots"]
        self._data = slots["_tmp_synthesis_data"]["value"] or {}
        steps = refs_in(slots["journal"]["value"], 40)
        self._steps = self._steps[: len(steps)]
        for n, oid in enumerate(steps[len(self._steps) :], len(self._steps)):
            self._steps.append({})
            self.store.ask(
                "inspect",
                lambda reply, n=n, cycle=self.cycle: self._step(reply, n, cycle),
                target=oid,
            )
        self.show()

    def _step(self, reply, n, cycle):
        if reply["status"] == "OK" and cycle == self.cycle and n < len(self._steps):
            self._steps[n] = {
                name: slot["value"] for name, slot in reply["result"]["slots"].items()
            }
            self.show()

    # -------- what happens

    def ask(self):
        question = self.ids.ask.text.strip()
        if not question:
            return
        if any(sent.command == "initiate_cognitive_cycle" for sent in self.store.waiting()):
            return  # it is handed in at this moment
        conversation = self.ids.conversation.text.strip()
        brief = {
            "type": "direct_synthesis",
            "selector": "answer_",
            "args": [question],
            **({"conversation": conversation} if conversation else {}),
        }
        self.ids.note.text = ""
        self.store.ask(
            "initiate_cognitive_cycle",
            lambda reply: self._accepted(reply, question),
            slot="mission",
            doing="handing the question in",
            mission_brief=brief,
        )

    def _accepted(self, reply, question):
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            return
        if self.ids.ask.text.strip() == question:
            self.ids.ask.text = ""
        self._turn_to(reply["result"]["cycle"])

    def _turn_to(self, cycle):
        """Show another cycle, of which nothing is known yet."""
        self.cycle, self._report, self._data, self._steps = cycle, {}, {}, []
        self.finished = self.running = False
        self.ids.question.text = self.ids.answer.text = self.ids.note.text = ""
        self.ids.evidence.fill([])
        self.refresh()

    def cycle_moved(self, event):
        if event["state"] in ENDED:
            self._spoken.pop(event["cycle"], None)
        if event["cycle"] == self.cycle:
            self._report = {**self._report, "state": event["state"]}
            self._look_later()
        if event["state"] in ENDED or event["state"] == "DECOMPOSING":
            self.refresh()
        self.draw()

    def token_came(self, event):
        cycle = event["cycle"]
        self._spoken[cycle] = (self._spoken.get(cycle, "") + event["text"])[-SHOWN_CHARS:]
        if cycle == self.cycle and self.ids.tabs.chosen == "answer":
            self.ids.answer.text = self._provisional()

    def _tick(self, running):
        """Count seconds while a cycle runs, and only then."""
        if self._clock:
            self._clock.cancel()
        self._clock = Clock.schedule_interval(lambda _: self.draw(), 0.5) if running else None

    def cancel(self):
        self.store.ask("cancel", self._say, slot="mark", doing="cancelling", cycle=self.cycle)

    def mark(self, mark):
        if self.finished:
            self.store.ask(
                "feedback",
                self._marked,
                slot="mark",
                doing="marking",
                cycle=self.cycle,
                mark=mark,
                note=self.ids.remark.text.strip(),
            )

    def _say(self, reply):
        self.ids.note.text = marked(reply["details"], "good" if reply["status"] == "OK" else "bad")

    def _marked(self, reply):
        self._say(reply)
        self.refresh()

    # -------- what is seen

    def show(self, *_):
        if self.cycle is None:
            return
        self.ids.question.text = marked(short(self._report.get("mission", ""), 300), bold=True)
        self.ids.answer.text = getattr(self, f"_show_{self.ids.tabs.chosen}", self._show_answer)()
        evidence = self._report.get("evidence", []) if self.ids.tabs.chosen == "answer" else []
        self.ids.evidence.fill([self._evidence_row(n, one) for n, one in enumerate(evidence, 1)])
        self.draw()

    @staticmethod
    def _evidence_row(n, quote):
        place = place_of(quote)
        said = f"{marked(f'[{n}]', 'accent')}  {marked(short(place, 60), 'cool')}\n{marked(short(quote['text'], 130), 'soft')}"
        return row(said, height=44, value=str(n), lines=2, pad=3)

    def _show_answer(self):
        report = self._report
        if "answer" in report:
            lit = rf"[ref=\1][color={colour('accent')}][b]\g<0>[/b][/color][/ref]"
            said = re.sub(r"&bl;(\d+)&br;", lit, marked(report["answer"]))
            marks = report.get("feedback")
            return said + (
                f"\n\n{marked('marked ' + marks['mark'] + '  ' + marks['note'], 'soft')}"
                if marks
                else ""
            )
        if "reason" in report:
            return marked(f"{report['state']}: {report['reason']['details']}", "bad")
        return self._provisional()

    def _provisional(self):
        spoken = self._spoken.get(self.cycle, "")
        return marked(spoken, "soft") + marked(
            "  \u2026 provisional" if spoken else "It thinks \u2026", "faint"
        )

    def _show_personas(self):
        parts = []
        for pillar, said in (self._data.get("partial_responses") or {}).items():
            quotes = "\n".join(
                f"      {marked(short(quote['text'], 400), 'soft')}\n      "
                f"{marked(place_of(quote), 'cool')}"
                for quote in said["quotes"]
            )
            parts.append(
                f"{marked(self._personas.get(pillar, ''), 'violet', bold=True)}  {marked(pillar, 'faint')}\n"
                f"{marked(said['frame'])}\n{quotes}"
            )
        return "\n\n".join(parts) or marked("No persona has said anything yet.", "faint")

    def _show_steps(self):
        lines = [
            f"{marked(step['state'], SPEC['states'].get(step['state'], 'soft'))}  {marked(step['name'])}  "
            f"{marked(seconds_text(step['seconds']), 'soft')}  {marked(short(step['answer'], 140), 'faint')}"
            for step in self._steps
            if step
        ]
        return "\n".join(lines) or marked("Its journal is empty.", "faint")

    def show_facet(self, facet):
        self.ids.tabs.chosen = "personas"

    def draw(self, *_):
        """Draw the states with their times, as they were told or as the journal has them, and the facets."""
        if self.cycle is None:
            return
        state = self._report.get("state", "IDLE")
        path = [*self.PATH[:-1], "FAILED"] if state == "FAILED" else self.PATH
        at = path.index(state) if state in path else 0
        states = [
            (
                name,
                self._seconds_in(name, n == at) if n <= at else None,
                n == at and state not in ENDED,
            )
            for n, name in enumerate(path)
        ]
        plan, said = self._data.get("plan") or {}, self._data.get("partial_responses") or {}
        facets = [
            {
                "pillar": pillar,
                "persona": self._personas.get(pillar, ""),
                "asks": plan["sub_queries"].get(pillar, ""),
                "said": self._facet_said(said.get(pillar)),
            }
            for pillar in plan.get("relevant_pillars", ())
        ]
        self.ids.drawing.data = {"states": states, "facets": facets}

    @staticmethod
    def _facet_said(said):
        return (
            f"{said['frame']} {' '.join(quote['text'] for quote in said['quotes'])}"
            if said
            else None
        )

    def _seconds_in(self, state, is_last):
        """Return how long a cycle was in a state: as watched, else by the steps of its journal; of the last its whole time."""
        if is_last and state in ENDED:
            return self._report.get("seconds", 0.0)
        seen = self.store.cycles.get(self.cycle, [])
        starts = [at for name, at in seen if name == state]
        if starts:
            following = [at for _, at in seen if at > starts[-1]]
            return (following[0] if following else time.monotonic()) - starts[-1]
        return sum(step["seconds"] for step in self._steps if step and step["state"] == state)

    def open_citation(self, number):
        evidence = self._report.get("evidence", [])
        if isinstance(number, str) and number.isdigit() and 0 < int(number) <= len(evidence):
            quote = evidence[int(number) - 1]
            self.ids.reader.open(
                quote["doc_id"], quote["version"], quote["chunk_index"], quote["lines"]
            )

    def go(self, cycle=None):
        if cycle:
            self._turn_to(cycle)

    def back(self):
        if self.ids.reader.title:
            self.ids.reader.clear()
            return True
        return False


# ---- page: objects


class GraphDrawing(Drawing):
    """Who delegates to whom: what an object delegates to above it, what delegates to it below, what it refers to aside."""

    NODE, HIGH = 168, 44

    def draw(self, data):
        across = max(1, int((self.width * 0.78) / dp(self.NODE + 14)))
        middle = (self.x + self.width * 0.4, self.center_y)
        for rank, y, word, tone in (
            ("parents", self.top - dp(self.HIGH + 26), "delegates to", "cool"),
            ("children", self.y + dp(26), "delegate to it", "good"),
        ):
            hidden = len(data[rank]) - across
            self._rank(
                data[rank][:across],
                y,
                middle,
                f"{word}, with {hidden} more" if hidden > 0 else word,
                tone,
            )
        self._aside(data["refs"], middle)
        self._node(
            data["self"], middle[0] - dp(self.NODE) / 2, middle[1] - dp(self.HIGH) / 2, "accent"
        )

    def _rank(self, nodes, y, middle, word, tone):
        step = dp(self.NODE + 14)
        start = middle[0] - step * len(nodes) / 2 + dp(7)
        up = y > middle[1]
        for n, node in enumerate(nodes):
            x = start + n * step
            self.line(
                [
                    middle[0],
                    middle[1] + dp(self.HIGH / 2) * (1 if up else -1),
                    x + dp(self.NODE) / 2,
                    y if up else y + dp(self.HIGH),
                ],
                tone,
            )
            self._node(node, x, y, tone)
        if nodes:
            self.say(word, start, y + dp(self.HIGH + 20) if up else y - dp(3), dp(200), "soft", 12)

    def _aside(self, nodes, middle):
        shown = nodes[: max(1, int(self.height / dp(self.HIGH + 8)))]
        x, step = self.right - dp(self.NODE + 10), dp(self.HIGH + 8)
        top = self.center_y + step * len(shown) / 2 - dp(self.HIGH)
        for n, node in enumerate(shown):
            y = top - n * step
            self.line([middle[0] + dp(self.NODE) / 2, middle[1], x, y + dp(self.HIGH) / 2], "edge")
            self._node(node, x, y, "violet")

    def _node(self, node, x, y, tone):
        self.box(x, y, dp(self.NODE), dp(self.HIGH), "raised", 1, tone)
        self.say(node["name"], x + dp(9), y + dp(self.HIGH - 4), dp(self.NODE - 14), "ink", 13)
        self.say(node["note"], x + dp(9), y + dp(self.HIGH - 23), dp(self.NODE - 14), "faint", 12)
        self.spots.append((x, y, x + dp(self.NODE), y + dp(self.HIGH), node["oid"]))


EDITED_CHARS = 100_000  # of a slot that is edited here
LOOKED_AT_S = 0.8  # a difference stands at least so long before it is sent


class Editor:
    """A dialog that edits a text, shows the difference, and only then has it sent."""

    def __init__(self, page, what, name, text, check, send, is_new=False):
        self.page, self.before, self.check, self.send = (
            page,
            "" if is_new or not name else text,
            check,
            send,
        )
        self.oid, self.seen_s = page.oid, 0.0
        self.dialog = Dialog(
            title=marked(f"Edit {what} {name}" if name else f"Add a {what}", bold=True),
            note=marked(
                "Ctrl+Enter shows the difference; what is then sent passes the same gate as any "
                "client's message."
            ),
        )
        self.name = Factory.Field(text=name, hint_text=f"name of the {what}", readonly=bool(name))
        self.text = Factory.Code(text=text)
        self.lines, self.error = Rows(clicks=2), Words()
        for widget in (self.name, self.text, self.error):
            self.dialog.ids.body.add_widget(widget)
        self.dialog.button("Close", self.dialog.dismiss)
        self.go_on = self.dialog.button("Show the difference", self.accept, strong=True)
        self.dialog.accept = self.accept
        self.seen = None  # (name, text) whose difference is shown

    def open(self):
        self.dialog.open()
        (self.text if self.name.text else self.name).focus = True

    def accept(self):
        """Show the difference of what is typed; send it where that was shown already."""
        typed = self.name.text.strip(), self.text.text
        try:
            if not typed[0]:
                raise ValueError("give it a name")
            checked = self.check(*typed)
            if self.seen == typed:
                if time.monotonic() - self.seen_s < LOOKED_AT_S or self.go_on.disabled:
                    return None  # a key that is held
                if checked == self.before:
                    raise ValueError("nothing would change")
                self.go_on.disabled = True
                return self.send(*typed, self._answered)
        except ValueError as error:
            self.error.text = marked(str(error), "bad")
            return None
        self.seen, self.seen_s, self.error.text, self.go_on.text = (
            typed,
            time.monotonic(),
            "",
            "Send",
        )
        if not self.lines.parent:
            self.dialog.ids.body.add_widget(self.lines)
        lines = difference(self.before, checked) or [("soft", "nothing would change")]
        self.lines.fill(line_rows([("", line, tone, (), None) for tone, line in lines], 110, False))
        return None

    def _answered(self, reply):
        self.go_on.disabled, self.seen = False, None
        if reply["status"] == "OK":
            self.dialog.dismiss()
            self.page.open(self.oid, keep=True)
            self.page.inspector.say(reply["details"], "good")
        else:
            self.error.text = marked(f"{reply.get('code', '')}: {reply['details']}", "bad")


FOUND_BY = tuple(
    name for name in COMMANDS["list_objects"]["fields"] if name not in ("words", "after", "limit")
)


class ObjectsPage(Page):
    """The image as objects: a list to choose from, and the chosen one's slots, selectors, delegation and history."""

    name, wants = "objects", {"state": "fill_list", "uvm_state_update": "changed"}
    CHILDREN = 100  # at most, in the graph
    FEW = 20  # rows of a search from which on no more is looked for until they are wanted
    kv = """
<ObjectsPage>:
    Split:
        name: 'objects'
        share: 0.27
        Pane:
            padding: dp(6)
            Field:
                id: query
                hint_text: 'Find: words, slot:NAME, kind:Method'
                on_text_validate: root.find()
            Rows:
                id: list
                empty: root.spec['empty']
                on_open: root.open(self.chosen_row)
                on_more: root.more()
        Pane:
            Strip:
                Push:
                    text: 'Back'
                    disabled: not root.past
                    on_release: root.step(-1)
                Push:
                    text: 'Forward'
                    disabled: not root.future
                    on_release: root.step(1)
                Words:
                    id: title
                    size_hint_y: 1
                    text_size: self.size
                    valign: 'middle'
                    font_size: '16sp'
                    max_lines: 1
                Push:
                    text: 'Edit'
                    disabled: not root.oid
                    on_release: root.edit()
                Push:
                    text: 'Add slot'
                    disabled: not root.oid
                    on_release: root.edit_slot('', None)
                Push:
                    text: 'Add method'
                    disabled: not root.oid
                    on_release: root.edit_method(root.oid, '', '')
                Push:
                    text: 'Message'
                    disabled: not root.oid
                    on_release: root.inspector.open('messages', target=root.oid)
            Tabs:
                id: tabs
                names: root.spec['columns']
                chosen: root.spec['columns'][0]
                on_chosen: root.show()
            Words:
                id: note
                font_size: '13sp'
            BoxLayout:
                id: body
"""
    oid, past, future = StringProperty(), ListProperty(), ListProperty()

    def made(self):
        self._after, self._fields, self._shown, self.kind = None, {}, {}, "object"
        self._found_rows = []
        self._names, self._holders, self._children, self._owner = {}, {}, [], None
        self.rows, self.lines = Rows(clicks=2), Rows(clicks=2)
        self.rows.bind(
            on_open=lambda _: self.dive(self.rows.chosen_row), on_move=lambda _: self._moved()
        )
        self.graph = GraphDrawing()
        self.graph.bind(on_spot=lambda _, oid: self.open(oid))
        self.split = Factory.Split(name="object", share=0.55, orientation="vertical")
        self.change_box = BoxLayout(orientation="vertical", spacing=dp(6))
        self.undo = Push(text="Undo this change", disabled=True)
        self.undo.bind(on_release=lambda _: self._undo())

    def begin(self):
        self.ids.query.focus = True

    def changed(self, _):
        """Something was committed."""
        self.store.look_anew()
        self.refresh()

    def refresh(self):
        self.fill_list()
        if self._fields:
            self._find("0x0", [], max(self.FEW, len(self._found_rows)))
        if self.oid:
            self._open_again()
        elif self._names:
            self.open(next(iter(self.store.state.get("objects", {})), ""))

    # -------- the list

    def fill_list(self):
        """List the root objects, with what they are."""
        objects = self.store.state.get("objects", {})
        self._names |= {known["oid"]: name for name, known in objects.items()}
        if not self._fields:
            self.ids.list.fill(
                [
                    self._list_row(known["oid"], name, known["type"], known["slots"] or ())
                    for name, known in objects.items()
                ],
                keep=True,
            )

    @staticmethod
    def _list_row(oid, name, kind, slots):
        return row(
            f"{marked(short(name or oid, 40), bold=bool(name))}  {marked(f'{kind} {oid}', 'faint')}\n"
            f"{marked(short(', '.join(slots), 64), 'soft')}",
            height=48,
            value=oid,
            lines=2,
            pad=5,
        )

    def find(self):
        """Ask for objects with words, a slot, or of a class; without words for the roots."""
        self.store.forget("objects")
        words, self._fields = [], {}
        for word in self.ids.query.text.split():
            name, colon, value = word.partition(":")
            if colon and value and name in FOUND_BY:
                self._fields[name] = value
            else:
                words.append(word)
        if words or self._fields:
            self._fields["words"] = " ".join(words)
            self._found_rows = []
            self.ids.list.fill([])
            self._find("0x0", [], self.FEW)
        else:
            self.fill_list()

    def _find(self, after, before, most):
        """Ask for what follows the rows `before`, until there are `most`."""
        self.store.ask(
            "list_objects",
            lambda reply: self._found(reply, before, most),
            slot="objects",
            doing="looking through the image",
            fields={"after": after, "limit": 200, **self._fields},
        )

    def _found(self, reply, before, most):
        if reply["status"] != "OK":
            self.ids.list.fill([row(marked(reply["details"], "bad"), height=100, lines=5)])
            return
        self._names |= {one["oid"]: one["name"] for one in reply["results"] if one["name"]}
        rows = [
            self._list_row(one["oid"], one["name"], one["class"], one["slots"])
            for one in reply["results"]
        ]
        rows, self._after = [*before, *rows], reply["result"]["after"]
        looks_on = self._after and len(rows) < most  # few are what is wanted
        if looks_on:
            self._find(self._after, rows, most)
        if not looks_on or len(rows) >= len(self._found_rows):
            self._found_rows = rows
            self.ids.list.empty = TEXTS["nothing"]
            self.ids.list.fill(rows, keep=True)

    def more(self):
        if self._fields and self._after:
            after, self._after = self._after, None
            self._find(after, self._found_rows, len(self._found_rows) + 1)

    # -------- one object

    def go(self, oid=None, selector=None):
        if selector:
            self.ids.query.text = f"slot:{selector}"
            self.find()
        if oid:
            self.open(oid)

    def open(self, oid, keep=False, owner=None):
        """Show an object; it goes into the past, unless `keep`. owner: (oid, slot) of the slot that led here."""
        if oid:
            self.store.ask(
                "inspect",
                lambda reply: self._opened(reply, oid, keep, owner),
                slot="object",
                doing="looking",
                target=oid,
                limit=200,
            )

    def _open_again(self):
        """Show the object as it is by now, unless another one was opened meanwhile."""
        self.store.ask(
            "inspect",
            lambda reply, of=self.oid: (
                self._opened(reply, of, True, None) if of == self.oid else None
            ),
            slot="object again",
            doing="looking",
            target=self.oid,
            limit=200,
        )

    def _opened(self, reply, asked, keep, owner):
        if reply["status"] != "OK":
            is_old = "; what is shown is old" if asked == self.oid else ""
            self.ids.note.text = marked(reply["details"] + is_old, "bad")
            return
        shown = reply["result"]
        if "slots" not in shown:  # a tree of the image's root, which is no object
            shown = {
                "oid": asked,
                "class": shown["type"],
                "slots": {"": {"type": shown["type"], "value": shown["value"]}},
                "delegates_to": [],
                "selectors": [],
            }
        if keep and not owner and shown == self._shown:
            self.ids.note.text = ""
            return self._look_around()
        stays = keep and shown["oid"] == self.oid
        if not keep and self.oid and shown["oid"] != self.oid:
            self.past, self.future = [*self.past, (self.oid, self._owner)], []
        self._shown, self.oid, self.kind = shown, shown["oid"], kind_of(shown)
        self._owner = owner if owner or not keep else self._owner
        self._holders, self._children = {}, []
        name = self.value("name") or self._names.get(self.oid) or self.value("selector")
        self._names[self.oid] = str(name or self.oid)
        self.ids.title.text = (
            f"{marked(short(self._names[self.oid], 60), bold=True)}  {marked(shown['class'], 'cool')}  "
            f"{marked(self.oid, 'faint')}  {marked(self.kind, 'violet')}"
        )
        self.ids.note.text = ""
        if stays and self.ids.tabs.chosen == "history":
            self._ask_history()
        else:
            self.show()

    def _look_around(self):
        """Ask anew what may have changed about an object that is as it was."""
        if self.ids.tabs.chosen == "history":
            self._ask_history()
        elif self.ids.tabs.chosen == "graph" and self.graph.data:
            self._ask_children(self.oid, "0x0", [])

    def value(self, slot):
        """Return the value of one of the object's slots, or None."""
        return self._shown.get("slots", {}).get(slot, {}).get("value")

    def step(self, way):
        """Go back (-1) or forward (1)."""
        stack, other = (self.past, self.future) if way < 0 else (self.future, self.past)
        if stack:
            oid, owner = stack[-1]
            other.append((self.oid, self._owner))
            stack.pop()
            self.open(oid, keep=True, owner=owner)

    def back(self):
        if self.past:
            self.step(-1)
            return True
        if self._fields:
            self.ids.query.text = ""
            self.find()
            return True
        return False

    def key(self, key, modifiers):
        moves = {("left", "alt"): -1, ("right", "alt"): 1}
        if modifiers and (key, modifiers[0]) in moves:
            self.step(moves[key, modifiers[0]])
        elif key == "e" and not modifiers and self.oid:
            # the key itself shall not be typed there
            Clock.schedule_once(lambda _: self.edit(), 0.05)
        else:
            return False
        return True

    # -------- what is seen of it

    def show(self, *_):
        if not self._shown:
            return
        for one in (self.ids.body, self.split, self.change_box):
            one.clear_widgets()
        getattr(self, f"_show_{self.ids.tabs.chosen}")()

    def _halves(self, upper, lower):
        self.split.add_widget(upper)
        self.split.add_widget(lower)
        self.split._place()
        self.ids.body.add_widget(self.split)

    def _show_slots(self):
        self.rows.fill(
            [self._slot_row(name, slot) for name, slot in self._shown["slots"].items()], keep=True
        )
        self._halves(self.rows, self.lines)
        view = getattr(self, f"_view_{SPEC['views'].get(self.kind, 'slots')}", self._view_slots)
        Clock.schedule_once(lambda _: view(), 0)

    def _slot_row(self, name, slot):
        tone, text = (
            "cool" if refs_in(slot["value"], 1) else "",
            value_text(slot["value"], self._names),
        )
        said = f"{marked(short(name, 40), bold=True)}   {marked(text, tone)}"
        return row(said, marked(slot["type"], "faint"), 28, (name, slot)) | {"side_width": dp(110)}

    def _moved(self):
        if self.ids.tabs.chosen == "history":
            self._show_change()
        elif self.ids.tabs.chosen == "slots":
            self._view_slots()

    def _view_slots(self):
        """Show the chosen slot's value in full."""
        chosen = self.rows.chosen_row
        if chosen:
            text = (
                chosen[1]["value"]
                if isinstance(chosen[1]["value"], str)
                else pretty(chosen[1]["value"])
            )
            self._fill_lines(
                [(n, line, "", (), None) for n, line in enumerate(text.split("\n"), 1)]
            )
        else:
            self.lines.fill(
                [
                    row(
                        marked(
                            "Choose a slot to see its value; Enter or a double click opens what it refers to, or edits it.",
                            "faint",
                        )
                    )
                ]
            )

    def _fill_lines(self, lines):
        self.lines.fill(line_rows(lines, columns_of(self.lines)))

    def _view_method(self):
        """Show a method: source, author, trust and counts; then what the mission that wrote it said, if one did."""
        facts = [
            "status",
            "version",
            "author",
            "intent",
            "uses",
            "failures",
            "clean_in_a_row",
            "primitive",
        ]
        said = [
            f"{name} {short(self.value(name), 90)}"
            for name in facts
            if self.value(name) not in (None, "")
        ]
        source = self.value("source") or f"# a part of BAT OS itself: {self.value('primitive')}"
        lines = [("", "   ".join(said), "soft", (), None), ("", "", "", (), None)]
        self._fill_lines(
            lines
            + [(n, line, "", (), None) for n, line in enumerate(source.strip("\n").split("\n"), 1)]
        )
        if self._owner and self.value("source"):
            self.store.ask("history", self._made_by, target=self._owner[0], limit=100)

    def _made_by(self, reply):
        """Find the mission whose change put this method in place."""
        rows = reply["results"] if reply["status"] == "OK" else []
        cycle = next(
            (
                one["cycle"]
                for one in rows
                if one["cycle"]
                and any(ref_of(change.get("after")) == self.oid for change in one["changes"])
            ),
            None,
        )
        if cycle:
            self.store.ask("inspect", self._told_by, target=cycle)

    def _told_by(self, reply):
        result = (
            reply["result"]["slots"].get("result", {}).get("value")
            if reply["status"] == "OK"
            else None
        )
        if not isinstance(result, dict) or self.kind != "method":
            return
        said = [("tests", test) for test in result.get("tests", ())] + [
            ("reason", result.get("why", ""))
        ]
        rows = line_rows(
            [
                ("", "", "", (), None),
                *(("", f"{name}: {text}", "good", (), None) for name, text in said),
            ],
            columns_of(self.lines),
        )
        self.lines.add(rows)

    def _view_cycle(self):
        said = f"{marked('This is a cycle of thought.', 'soft')}  {marked('Enter shows it on the page Ask.', 'cool')}"
        self.lines.fill([row(said, value=("cycle", self.oid))])
        self.lines.unbind(on_open=self._open_line)
        self.lines.bind(on_open=self._open_line)

    def _open_line(self, lines):
        if isinstance(lines.chosen_row, tuple):
            self.inspector.open("ask", cycle=lines.chosen_row[1])

    def dive(self, value):
        """Open what a row refers to."""
        if not value:
            return
        if self.ids.tabs.chosen == "slots":
            refs = refs_in(value[1]["value"], 200)
            if len(refs) == 1:
                self.open(refs[0], owner=(self.oid, value[0]))
            elif refs:
                self._choose_ref(value[0], refs)
            else:
                self.edit()
        elif self.ids.tabs.chosen == "selectors" and value[1]:
            self.open(value[1])

    def _choose_ref(self, slot, refs):
        dialog, rows = Dialog(title=marked(f"{slot} refers to", bold=True)), Rows()
        rows.fill(
            [
                row(f"{marked(self._names.get(oid, ''))} {marked(oid, 'cool')}", value=oid)
                for oid in refs
            ]
        )

        def opened(_):
            dialog.dismiss()
            self.open(rows.chosen_row, owner=(self.oid, slot))

        rows.bind(on_open=opened)
        dialog.ids.body.add_widget(rows)
        dialog.button("Close", dialog.dismiss)
        dialog.open()
        rows.focus = True
        rows.choose(0)

    def _show_selectors(self):
        """Say who answers each selector: the first in the order of delegation that has the slot, else BAT OS itself."""
        chain = [ref_of(one) for one in self._shown["delegates_to"]]
        self._holders = dict.fromkeys(self._shown["slots"], self.oid)
        self.rows.size_hint = 1, 1
        self.ids.body.add_widget(self.rows)
        self._fill_selectors()
        for oid in chain:
            self.store.ask(
                "inspect",
                lambda reply, of=self.oid, chain=chain: self._holder_came(reply, of, chain),
                target=oid,
                limit=1,
            )
        self._came = {}

    def _holder_came(self, reply, of, chain):
        if reply["status"] != "OK" or of != self.oid or self.ids.tabs.chosen != "selectors":
            return
        shown = reply["result"]
        name = shown["slots"].get("name", {}).get("value")
        self._names.setdefault(shown["oid"], str(name or shown["oid"]))
        self._came[shown["oid"]] = set(shown["slots"])
        if len(self._came) == len(set(chain)):
            for oid in chain:
                for slot in self._came[oid]:
                    self._holders.setdefault(slot, oid)
            self._fill_selectors()

    def _fill_selectors(self):
        rows = []
        for name in self._shown["selectors"]:
            oid = self._holders.get(name)
            who = (
                "its own"
                if oid == self.oid
                else f"{self._names.get(oid, '')} {oid}"
                if oid
                else "BAT OS itself"
            )
            tone = "good" if oid == self.oid else "cool" if oid else "faint"
            rows.append(
                row(
                    f"{marked(name, bold=True)}    {marked(who, tone)}",
                    value=(name, oid if oid != self.oid else None),
                )
            )
        self.rows.fill(rows, keep=True)

    def _show_graph(self):
        self.ids.body.add_widget(self.graph)
        pointers = {
            name: slot["value"] for name, slot in self._shown["slots"].items() if name.endswith("*")
        }
        above = [(oid, name) for name, value in pointers.items() for oid in refs_in(value)]
        aside = [
            (oid, name)
            for name, slot in self._shown["slots"].items()
            if name not in pointers
            for oid, near in named_refs(slot["value"], name, 8).items()
            if self._names.setdefault(oid, near)
        ]
        chain = [
            (ref_of(one), "further up")
            for one in self._shown["delegates_to"]
            if ref_of(one) not in {oid for oid, _ in above}
        ]
        self.graph.data = {
            "self": self._node(self.oid, self.kind),
            "children": [],
            **{
                rank: [self._node(*one) for one in nodes]
                for rank, nodes in (("parents", above + chain), ("refs", aside))
            },
        }
        if self._shown["delegates_to"] or self._shown["selectors"]:
            self._ask_children(self.oid, "0x0", [])

    def _node(self, oid, note):
        return {"oid": oid, "name": self._names.get(oid, oid), "note": f"{note}  {oid}"}

    def _ask_children(self, of, after, before):
        self.store.ask(
            "list_objects",
            lambda reply: self._children_came(reply, of, before),
            slot="children",
            doing="looking who delegates here",
            parent=of,
            after=after,
            limit=self.CHILDREN,
        )

    def _children_came(self, reply, of, before):
        """Show what delegates to the object, and look on where the image goes on."""
        if reply["status"] != "OK" or of != self.oid or self.ids.tabs.chosen != "graph":
            return
        self._names |= {one["oid"]: one["name"] for one in reply["results"] if one["name"]}
        nodes = [self._node(one["oid"], f"{len(one['slots'])} slots") for one in reply["results"]]
        nodes, after = [*before, *nodes], reply["result"]["after"]
        looks_on = after and len(nodes) < self.CHILDREN
        if looks_on:
            self._ask_children(of, after, nodes)
        if not looks_on or len(nodes) >= len(self.graph.data["children"]):
            self.graph.data = {**self.graph.data, "children": nodes}

    def _show_history(self):
        self.rows.fill([])
        self.change_box.add_widget(self.undo)
        self.change_box.add_widget(self.lines)
        self._halves(self.rows, self.change_box)
        self.lines.fill(
            [row(marked("Choose a change to see the difference that it made.", "faint"))]
        )
        self._ask_history()

    def _ask_history(self):
        self.store.ask(
            "history",
            lambda reply, of=self.oid: self._history_came(reply, of),
            slot="history",
            doing="looking back",
            target=self.oid,
            limit=200,
        )

    def _history_came(self, reply, of):
        if of != self.oid or self.ids.tabs.chosen != "history":
            return
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            return
        self.rows.empty = "Nothing changed here since the first transaction."
        self.rows.fill([change_row(one) for one in reply["results"]], keep=True)

    def _show_change(self):
        change = self.rows.chosen_row
        self.undo.disabled = not change
        if change:
            self._fill_lines(
                [("", line, tone, (), None) for tone, line in change_lines(change, self.oid)]
            )

    def _undo(self):
        if self.rows.chosen_row:
            self.inspector.undo(
                self.rows.chosen_row["change"], lambda: self.open(self.oid, keep=True)
            )

    # -------- edits, by the same messages as any client's

    def edit(self):
        """Edit the method shown, or the chosen slot."""
        chosen = self.rows.chosen_row if self.ids.tabs.chosen == "slots" else None
        if self.kind == "method" and self.value("source") is not None:
            owner = self._owner[0] if self._owner else ""
            return self.edit_method(owner, self.value("selector"), self.value("source"))
        if chosen and chosen[1]["type"] == "Method":
            return self.open(ref_of(chosen[1]["value"]), owner=(self.oid, chosen[0]))
        if chosen:
            return self.edit_slot(chosen[0], chosen[1]["value"])
        self.ids.note.text = marked("Choose a slot to edit.", "soft")

    def edit_slot(self, name, value):
        if "$bytes" in to_json(value, None):
            self.ids.note.text = marked(
                "Bytes are not edited here; send setSlot_value_ from a script.", "bad"
            )
            return

        # another object may be shown by the time that it is sent
        shown, oid = pretty(value), self.oid
        if len(shown) > EDITED_CHARS:
            self.ids.note.text = marked(
                "It is too large to be edited here; send setSlot_value_ from a script.", "bad"
            )
            return

        def send(name, text, then):
            self.store.ask(
                "send_message",
                then,
                doing="sending",
                by_hand=True,
                target=oid,
                selector="setSlot_value_",
                args=[name, from_json(text)],
            )

        Editor(self, "slot", name, shown, lambda name, text: pretty(from_json(text)), send).open()

    def edit_method(self, owner, name, source):
        def send(name, text, then):
            if not owner:
                raise ValueError(
                    "which object has this method is not known: open it from that object's slot"
                )
            self.store.ask(
                "create_method",
                then,
                doing="auditing",
                by_hand=True,
                target_oid=owner,
                method_name=name,
                method_code=text,
            )

        Editor(
            self,
            "method",
            name,
            source or "def name_(self):\n    return None\n",
            lambda name, text: text,
            send,
            is_new=not source,
        ).open()


# ---- page: messages


class MessagesPage(Page):
    """Any command by hand: a form made of the message table, the reply as a tree, and what was sent before."""

    name, wants = "messages", {"sent": "was_answered"}
    kv = """
<MessagesPage>:
    Split:
        name: 'messages'
        share: 0.24
        Pane:
            padding: dp(6)
            Tabs:
                id: side
                names: ['commands', 'history']
                chosen: 'commands'
                on_chosen: root.fill_side()
            Rows:
                id: list
                on_open: root.chose(self.chosen_row)
        Split:
            name: 'messages form'
            share: 0.46
            Pane:
                Words:
                    id: title
                    font_size: '17sp'
                Caption:
                    id: help
                ScrollView:
                    bar_width: dp(7)
                    BoxLayout:
                        id: form
                        orientation: 'vertical'
                        spacing: dp(4)
                        size_hint_y: None
                        height: self.minimum_height
                Words:
                    id: note
                    font_size: '13sp'
                Strip:
                    Push:
                        text: 'Send'
                        strong: True
                        on_release: root.send()
                    Push:
                        text: 'Copy as script'
                        on_release: root.copy()
                    Push:
                        text: 'Clear'
                        on_release: root.choose(root.command)
            Pane:
                Words:
                    id: told
                    font_size: '13.5sp'
                Rows:
                    id: reply
                    clicks: 2
                    empty: root.spec['empty']
                    on_open: root.open_branch(self.chosen_row)
                Strip:
                    Push:
                        text: 'Open object'
                        on_release: root.open_object()
                    Push:
                        text: 'Undo'
                        disabled: not root.change
                        on_release: root.inspector.undo(root.change)
                    Caption:
                        text: 'Enter opens a branch, or an object'
                        size_hint_y: 1
                        text_size: self.size
                        valign: 'middle'
"""
    FIRST, LEAF_CHARS = "send_message", 2000
    command, change = StringProperty(), StringProperty()

    def made(self):
        self._reply, self._opened, self._known = None, {()}, {}
        self.choose(self.FIRST)
        self.fill_side()

    def begin(self):
        for first in list(self._fields.values())[:1]:  # shutdown has none
            first.focus = True

    def shown(self):
        super().shown()
        self.fill_side()

    def fill_side(self):
        if self.ids.side.chosen == "commands":
            first = [self.FIRST, *sorted(set(COMMANDS) - {self.FIRST})]
            rows = [
                row(
                    f"{marked(name, bold=True)}\n{marked(short(COMMANDS[name]['help'], 70), 'soft')}",
                    height=46,
                    value=name,
                    lines=2,
                    pad=4,
                )
                for name in first
            ]
        else:
            self.ids.list.empty = self.spec["empty"]
            rows = [self._sent_row(one) for one in reversed(self.store.sent)]
        self.ids.list.fill(rows, keep=True)

    @staticmethod
    def _sent_row(sent):
        state = "waiting" if sent.reply is None else sent.reply["status"]
        tone = {"OK": "good", "ERROR": "bad"}.get(state, "soft")
        return row(
            f"{marked(sent.command, bold=True)}  {marked(f'{state}  {seconds_text(sent.seconds)}', tone)}\n"
            f"{marked(short(sent.fields, 70), 'soft')}",
            height=46,
            value=sent,
            lines=2,
            pad=4,
        )

    def chose(self, value):
        if isinstance(value, str):
            self.choose(value)
        elif value:
            self.choose(value.command, value.fields)
            self.show_reply(value)

    # -------- the form

    def choose(self, command, fields=None):
        """Make the form of a command, filled with fields."""
        self.store.forget("selectors")
        self.command, self._fields, told_of = command, {}, COMMANDS[command]
        self.ids.title.text, self.ids.help.text = (
            marked(command, bold=True),
            marked(told_of["help"]),
        )
        self.ids.form.clear_widgets()
        for name, field in self._flat(told_of["fields"]):
            self._add_field(name, field, self._given(fields or {}, name))
        self.offered = Factory.Flow()
        self.ids.form.add_widget(self.offered)
        self.ids.note.text = ""

    @staticmethod
    def _flat(fields):
        """Yield (path, field) of a command's fields, those of maps with known fields one by one."""
        for name, field in fields.items():
            if "fields" in field:
                yield from ((f"{name}.{inner}", row) for inner, row in field["fields"].items())
            else:
                yield name, field

    @staticmethod
    def _given(fields, path):
        for name in path.split("."):
            fields = fields.get(name) if isinstance(fields, dict) else None
        return fields

    def _add_field(self, name, field, given):
        needed = "  needed" if field.get("required") else ""
        default = field.get("default")
        hint = field["type"] + (
            f", default {short(default, 40)}" if default not in (None, "", [], {}) else ""
        )
        self.ids.form.add_widget(
            Factory.Caption(text=f"{marked(name)}  {marked(hint + needed, 'faint')}")
        )
        if field["type"] in ("choice", "switch"):
            choices = [None, *(field.get("choices") or (False, True))]
            one = Chooser(title=name, choices=choices, value=given if given in choices else None)
        else:
            one = Factory.Field(
                text=""
                if given is None
                else given
                if isinstance(given, str)
                else to_json(given, None),
                hint_text=self._hint(field),
            )
            if field["type"] == "text" and field.get("longest", 0) > 10_000:
                one.multiline, one.height, one.mono = True, dp(150), True
            one.bind(on_text_validate=lambda _: self._entered())
            if name == "target":
                one.bind(
                    focus=lambda field, focus: (
                        None if focus else self._ask_selectors(field.text.strip())
                    )
                )
        self._fields[name] = one
        self.ids.form.add_widget(one)

    @staticmethod
    def _hint(field):
        return {
            "list": '["text", 1, {"$ref": "genesis_obj"}]',
            "map": '{"name": 1}',
            "bytes": "the path of a file here",
        }.get(field["type"], "")

    def _ask_selectors(self, target):
        """Offer the selectors that the target answers."""
        if target and "selector" in self._fields:
            self.store.ask(
                "inspect", self._selectors_came, slot="selectors", target=target, limit=1
            )

    def _selectors_came(self, reply):
        self.offered.clear_widgets()
        selector = self._fields.get("selector")
        if selector is None:
            return
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            return
        self.ids.note.text = ""
        for name in reply["result"].get("selectors", ())[:40]:
            push = Factory.Bare(text=marked(short(name, 40)))
            push.bind(on_release=lambda _, name=name: setattr(selector, "text", name))
            self.offered.add_widget(push)

    def fields(self):
        """Return the fields as they are typed. Raises ValueError that names the field."""
        typed = {}
        for name, field in self._flat(COMMANDS[self.command]["fields"]):
            value = self._read(name, field, self._fields[name])
            if value is not None:
                *above, last = name.split(".")
                into = typed
                for part in above:
                    into = into.setdefault(part, {})
                into[last] = value
            elif field.get("required"):
                raise ValueError(f"{name} is needed")
        return typed

    @staticmethod
    def _read(name, field, widget):
        if isinstance(widget, Chooser):
            return widget.value
        text = widget.text if field["type"] == "text" else widget.text.strip()
        if not text:
            return None
        if field["type"] == "bytes":
            return read_file(name, text)
        value = text if field["type"] == "text" else from_json(text, name)
        wanted = {"integer": int, "number": (int, float), "list": list, "map": dict}.get(
            field["type"], object
        )
        if not isinstance(value, wanted) or isinstance(value, bool) and wanted is not object:
            raise ValueError(f"{name} takes a {field['type']}, not {short(text, 40)}")
        return value

    def _entered(self):
        """Enter in a field sends what only reads; a key that slipped shall change nothing."""
        if COMMANDS[self.command]["role"] == "read":
            self.send()
        else:
            self.ids.note.text = marked("Ctrl+Enter sends it", "soft")

    def send(self):
        """Send what is typed; what nothing brings back is asked about before."""
        try:
            fields = self.fields()
        except ValueError as error:
            self.ids.note.text = marked(str(error), "bad")
            return
        self.ids.note.text = ""
        asks = COMMANDS[self.command].get("asks")
        if self.command == "undo":
            self.inspector.undo(fields["change"])
        elif asks and not fields.get("preview"):
            self._ask_before(asks, self.command, fields)
        else:
            self._send(self.command, fields)

    def _send(self, command, fields):
        self.show_reply(
            self.store.ask(command, None, doing=f"doing {command}", by_hand=True, fields=fields)
        )

    def _ask_before(self, asks, command, fields):
        """Ask whether to send it; of what can be looked at before, tell what it would be."""
        dialog = Dialog(title=marked(asks, bold=True), size_hint=(0.6, 0.4))
        dialog.note, told_of = marked(short(fields, 400)) if fields else "", Words()
        dialog.ids.body.add_widget(told_of)
        dialog.ids.body.add_widget(Widget())

        def accept():
            dialog.dismiss()
            self._send(command, fields)

        close = dialog.button("Close", dialog.dismiss)
        dialog.button(command.capitalize(), accept, strong=True)
        dialog.open()
        close.focus = True
        if "preview" in COMMANDS[command]["fields"]:
            self.store.ask(
                command,
                lambda reply: setattr(told_of, "text", marked(reply["details"], "warm")),
                fields={**fields, "preview": True},
            )

    def copy(self):
        """Put a Python script that does the same into the clipboard."""
        from kivy.core.clipboard import Clipboard

        try:
            Clipboard.copy(
                script_for(
                    self.inspector.endpoint, self.inspector.keys, self.command, self.fields()
                )
            )
            self.ids.note.text = marked("The script is in the clipboard.", "good")
        except ValueError as error:
            self.ids.note.text = marked(str(error), "bad")

    # -------- the reply

    def was_answered(self, sent):
        if sent.by_hand and self._reply is sent:
            self.show_reply(sent)
        if sent.by_hand and self.ids.side.chosen == "history":
            self.fill_side()

    def show_reply(self, sent):
        self._reply, self._opened = sent, {(), (0,), (1,)}
        self.change = (sent.reply or {}).get("change", "")
        if sent.reply is None:
            self.ids.told.text = marked("sent; waiting for the reply \u2026", "soft")
        else:
            ok = sent.reply["status"] == "OK"
            code = f"{sent.reply.get('code', '')}: " if not ok else ""
            self.ids.told.text = (
                f"{marked(code + sent.reply['details'], 'good' if ok else 'bad')}  "
                f"{marked(seconds_text(sent.seconds), 'faint')}"
            )
        self._fill_reply()

    def _fill_reply(self, keep=False):
        shown = {
            name: value
            for name, value in (self._reply.reply or {}).items()
            if name not in ("id", "details")
        }
        rows = [self._tree_row(one) for one in tree_rows(shown, self._opened)[1:]]
        self.ids.reply.fill(rows, keep=keep)

    def _tree_row(self, one):
        value, oid = one["value"], ref_of(one["value"])
        sign = "" if one["open"] is None else "\u25be " if one["open"] else "\u25b8 "
        text = (
            marked(oid, "cool")
            if oid
            else marked(short(value, 160), "faint")
            if one["open"] is not None
            else marked(short(value, self.LEAF_CHARS))
        )
        lines = self._lines_of(one)
        return row(
            f"{marked(sign, 'soft')}{marked(short(one['key'], 40), 'soft')}   {text}",
            height=26 + 18 * (lines - 1),
            value=one,
            lines=lines,
            indent=dp(16) * (one["depth"] - 1),
        )

    def _lines_of(self, one):
        """Return how many lines a row of the tree needs: a leaf is shown in full, a branch in one."""
        if one["open"] is not None or ref_of(one["value"]):
            return 1
        room = self.ids.reply.width - dp(40) - dp(16) * (one["depth"] - 1)
        letters = len(short(one["key"], 40)) + 4 + len(short(one["value"], self.LEAF_CHARS))
        return max(1, math.ceil(letters * sp(14) * 0.62 / max(dp(60), room)))

    def open_branch(self, one):
        if not one:
            return
        if one["open"] is not None:
            self._opened ^= {one["path"]}
            self._fill_reply(keep=True)
        elif ref_of(one["value"]):
            self.inspector.open("objects", oid=ref_of(one["value"]))

    def open_object(self):
        """Open the object that the chosen row, or the reply, refers to."""
        one = self.ids.reply.chosen_row
        refs = refs_in(
            one["value"]
            if one
            else (self._reply.reply or {}).get("result")
            if self._reply
            else None
        )
        if refs:
            self.inspector.open("objects", oid=refs[0])

    def go(self, target=None):
        if target:
            self.choose(self.FIRST, {"target": target})
            self._ask_selectors(target)
            self._fields["selector"].focus = True


# ---- page: experts


class ExpertsPage(Page):
    """The three tiers of the experts' memory, how full each is, and who is where."""

    name, live, wants = "experts", True, {"health": "refresh"}
    kv = """
<ExpertsPage>:
    orientation: 'vertical'
    spacing: dp(8)
    BoxLayout:
        id: tiers
        spacing: dp(8)
    Pane:
        size_hint_y: None
        height: '164dp'
        Words:
            id: note
            font_size: '13sp'
        Rows:
            id: steps
            clicks: 2
            empty: 'Activate an expert to see the protocol of the memory manager, step by step.'
"""

    def made(self):
        self.lists, self.gauges, self.facts = {}, {}, {}
        for tier in SPEC["tiers"]:
            if tier["name"] in self.spec["columns"]:
                self._add_tier(tier)

    def _add_tier(self, tier):
        pane, name = Factory.Pane(), tier["name"]
        pane.add_widget(
            Words(text=marked(tier["title"], tier["tone"], bold=True), font_size=sp(15))
        )
        self.gauges[name] = Gauge(size_hint_y=None, height=dp(28))
        self.facts[name] = Factory.Caption()
        self.lists[name] = Rows(clicks=2, empty=tier["empty"])
        self.lists[name].bind(on_open=lambda rows: self.activate(rows.chosen_row))
        push = Push(text="Activate", width=dp(110))
        push.bind(on_release=lambda _, rows=self.lists[name]: self.activate(rows.chosen_row))
        for widget in (self.gauges[name], self.facts[name], self.lists[name], push):
            pane.add_widget(widget)
        self.ids.tiers.add_widget(pane)

    def begin(self):
        next(iter(self.lists.values())).focus = True

    def refresh(self, *_):
        self.store.ask("list_experts", self._came, slot="experts", doing="listing")

    def _came(self, reply):
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            return
        if not reply["results"]:
            self.ids.note.text = marked(self.spec["empty"], "soft")
        for tier in SPEC["tiers"]:
            if tier["name"] in self.lists:
                self._show_tier(tier, reply)

    def _show_tier(self, tier, reply):
        name, figures = tier["name"], reply["result"].get(tier["name"], {})
        mine = [one for one in reply["results"] if one["tier"] == name]
        self.lists[name].fill([self._expert_row(one) for one in mine], keep=True)
        used = figures.get(tier["used"], 0)
        used, room = len(used) if isinstance(used, list) else used, figures.get(tier["room"])
        said = (
            f"{number_text(used)} of {number_text(room)} {tier['unit']}"
            if room
            else f"{number_text(used)} {tier['unit']}"
        )
        self.gauges[name].data = {"used": used, "room": room, "tone": tier["tone"], "words": said}
        times = reply["result"].get("times", {}).get(name, {})
        facts = [
            f"{reply['result'].get('found', {}).get(name, 0)} hits",
            f"p50 {number_text(times.get('p50_ms', 0))} ms",
        ]
        facts += [
            f"{key.replace('_', ' ')} {number_text(value)}"
            for key, value in figures.items()
            if isinstance(value, (int, float)) and key not in (tier["used"], tier["room"])
        ]
        facts += [f"{key} {value}" for key, value in figures.items() if isinstance(value, str)]
        self.facts[name].text = marked("   ".join(facts), "soft")

    @staticmethod
    def _expert_row(one):
        always = "  always hot" if one["always_hot"] else ""
        facts = (
            f"version {one['version']}, rank {one['rank']}, {one['bytes'] / 1e3:,.0f} kB{always}"
        )
        note = f"  {marked(one['note'], 'warm')}" if one["note"] else ""
        return row(
            f"{marked(one['expert'], bold=True)}{note}\n{marked(facts, 'soft')}",
            marked(f"{one['uses']} uses"),
            48,
            one["expert"],
            lines=2,
            pad=5,
        )

    def activate(self, expert):
        if expert:
            self.ids.note.text = marked(f"activating {expert} \u2026", "soft")
            self.store.ask(
                "activate_expert",
                self._activated,
                slot="activate",
                doing="activating",
                expert=expert,
            )

    def _activated(self, reply):
        ok = reply["status"] == "OK"
        self.ids.note.text = marked(reply["details"], "good" if ok else "bad")
        steps = reply["result"]["steps"] if ok else []
        self.ids.steps.fill(
            [
                row(f"{marked(step, 'cool')}    {marked(short(answer, 160))}", height=26)
                for step, answer in steps
            ]
        )
        self.refresh()


# ---- page: life


FIGURES_S = 4.5  # a drawing costs some 50 ms where there is no graphics card


def heartbeat_text(beat):
    """Return when the heartbeat comes, as health tells it."""
    return f"heartbeat in {seconds_text(beat.get('next_s'))}" if beat.get("on") else "heartbeat off"


class LifePage(Page):
    """How the daemon is, over time; what happens, what failed, what changed, and how it is set."""

    name, live = "life", True
    wants = {
        "health": "beat",
        "state": "state_came",
        **{topic: "happened" for topic in TOPICS if topic not in ("tokens", "health")},
        "lagged": "happened",
    }
    kv = """
<LifePage>:
    orientation: 'vertical'
    spacing: dp(8)
    GridLayout:
        id: sparks
        cols: 4
        spacing: dp(8)
        size_hint_y: None
        height: dp(196)
    Words:
        id: vitals
        font_size: '13sp'
    Pane:
        Strip:
            height: '30dp'
            Tabs:
                id: tabs
                names: root.spec['columns']
                chosen: root.spec['columns'][0]
                on_chosen: root.turn()
            Field:
                id: filter
                height: '30dp'
                padding: dp(8), dp(6)
                size_hint_x: 0.36
                hint_text: 'Filter'
                on_text: root.fill()
            Push:
                text: 'Go on' if root.paused else 'Pause'
                height: '30dp'
                down: root.paused
                on_release: root.paused = not root.paused
        Split:
            name: 'life'
            share: 0.6
            Rows:
                id: rows
                empty: root.spec['empty']
                on_move: root.look()
                on_open: root.open(self.chosen_row)
            Rows:
                id: lines
                clicks: 2
                empty: 'Choose a row to see it in full.'
"""
    paused = BooleanProperty(False)

    def made(self):
        self.sparks, self._rows, self._drawn_s = [Spark() for _ in SPEC["sparks"]], [], 0.0
        for spark in self.sparks:
            self.ids.sparks.add_widget(spark)

    def begin(self):
        self.ids.rows.focus = True

    def on_paused(self, *_):
        if self.ids.tabs.chosen == "events":
            self._take_events()

    # -------- figures

    def beat(self, *_):
        """Health was told; figures that nobody touches are drawn now and then."""
        if time.monotonic() - self._drawn_s > FIGURES_S:
            self.draw_figures()

    def draw_figures(self):
        """Draw the figures of health."""
        self._drawn_s = time.monotonic()
        for spark, spec in zip(self.sparks, SPEC["sparks"], strict=True):
            spark.data = {
                "title": spec["title"],
                "unit": spec["unit"],
                "values": self._values(spec),
            }
        health = self.store.health
        core, missions, upkeep = (
            health.get("core", {}),
            health.get("missions", {}),
            health.get("upkeep", {}),
        )
        said = [
            f"version {health.get('version')}",
            f"pid {health.get('pid')}",
            f"up {seconds_text(health.get('uptime_s'))}",
            f"core {core.get('state')}: {core.get('progress')}",
            "missions "
            + ", ".join(
                f"{count} {name}" for name, count in missions.items() if isinstance(count, int)
            ),
            f"upkeep {upkeep.get('doing') or 'rests'}",
            heartbeat_text(health.get("heartbeat") or {}),
        ]
        self.ids.vitals.text = marked("   ".join(said), "soft")

    def _values(self, spec):
        values = [(at, figure(health, spec["path"])) for at, health in self.store.samples]
        values = [(at, value) for at, value in values if value is not None]
        if not spec.get("rate"):
            return values
        pairs = zip(values, values[1:], strict=False)
        return [
            (later, max(0, (high - low) / (later - at)))
            for (at, low), (later, high) in pairs
            if later - at > 0.5
        ]

    # -------- lists

    def turn(self):
        """Show another list."""
        self.store.forget("life")
        self._rows = []
        self.ids.lines.fill([])
        self.ids.rows.fill([])
        self.refresh()

    def refresh(self, *_):
        self.draw_figures()
        getattr(self, f"_take_{self.ids.tabs.chosen}")()

    def _take_events(self):
        if not self.paused or not self._rows:
            self._show([(self._event_row(event), event) for event in reversed(self.store.events)])

    def _take_missions(self):
        self.store.ask(
            "list_cycles",
            lambda reply: self._listed(reply, cycle_row),
            slot="life",
            doing="listing",
            limit=500,
        )

    def _take_failures(self):
        self.store.ask(
            "list_cycles",
            lambda reply: self._listed(reply, self._failure_row),
            slot="life",
            doing="listing",
            limit=500,
            state="FAILED",
        )

    def _take_changes(self):
        self.store.ask(
            "history",
            lambda reply: self._listed(reply, change_row),
            slot="life",
            doing="looking back",
            limit=200,
        )

    def _take_upkeep(self):
        health = self.store.health
        told_of, beat = (
            health.get("upkeep", {}).get("last", {}),
            (health.get("heartbeat") or {}).get("last"),
        )
        ended = {True: marked("went well", "good"), False: marked("failed", "bad")}
        self._show(
            [
                (
                    row(
                        f"{marked(name, bold=True)}  {ended[one['ok']]}  {marked(short(one['details'], 120), 'soft')}",
                        marked(seconds_text(one["seconds"])),
                        30,
                    ),
                    one,
                )
                for name, one in told_of.items()
            ]
            + (
                [
                    (
                        row(
                            f"{marked('heartbeat', bold=True)}  {marked(beat['told'], 'soft')}",
                            marked(clock_text(beat["at"])),
                            30,
                        ),
                        beat,
                    )
                ]
                if beat
                else []
            )
        )

    def _take_settings(self):
        settings = self.store.state.get("settings", {})
        self._show(
            [
                (
                    row(
                        f"{marked(name, bold=True)}    {marked(short(value, 120), 'cool')}",
                        height=28,
                    ),
                    {name: value},
                )
                for name, value in settings.items()
            ]
        )

    def state_came(self, *_):
        if self.ids.tabs.chosen == "settings":
            self._take_settings()

    def _listed(self, reply, make):
        if reply["status"] == "OK":
            self._show([(make(one), one) for one in reply["results"]])
        else:
            self.ids.rows.fill([row(marked(reply["details"], "bad"), height=90, lines=4)])

    def _show(self, rows):
        self._rows = [{**one, "value": value} for one, value in rows]
        self.fill()

    def fill(self):
        """Show the rows in which the filter's words are."""
        words = self.ids.filter.text.casefold().split()
        rows = [one for one in self._rows if all(word in one["text"].casefold() for word in words)]
        self.ids.rows.fill(rows, keep=True)

    @staticmethod
    def _failure_row(report):
        reason = report.get("reason", {})
        return row(
            f"{marked(short(report['mission'], 110))}\n{marked(reason.get('code', ''), 'bad')}  "
            f"{marked(short(reason.get('details', ''), 110), 'soft')}",
            marked(clock_text(report["accepted_at"])),
            48,
            lines=2,
            pad=5,
        )

    @staticmethod
    def _event_row(event):
        name = event["event"]
        tone = {"error": "bad", "cycle": "violet", "lagged": "warm"}.get(name, "cool")
        inner = (
            event[name]
            if isinstance(event.get(name), dict)
            else event.get("state")
            if isinstance(event.get("state"), dict)
            else event
        )
        parts = [
            (path.rpartition(".")[2].replace("_", " "), found_at(inner, path))
            for path in SPEC["events"].get(name, ())
        ]
        said = "   ".join(
            f"{word} {number_text(value)}" for word, value in parts if value is not None
        ) or short(inner, 150)
        return row(
            f"{marked(clock_text(event.get('at')), 'faint')}  {marked(event['event'], tone)}  {marked(said)}",
            height=26,
        )

    def happened(self, event):
        if not isinstance(event, dict):
            return
        if self.ids.tabs.chosen == "events":
            self._take_events()
        elif event["event"] == "cycle" and self.ids.tabs.chosen in ("missions", "failures"):
            self.refresh()

    def look(self):
        """Show the chosen row in full."""
        value = self.ids.rows.chosen_row
        if value is not None:
            lines = [("", line, "", (), None) for line in pretty(value, 52).split("\n")[:2000]]
            self.ids.lines.fill(line_rows(lines, columns_of(self.ids.lines, 0), False))

    def open(self, value):
        if isinstance(value, dict) and isinstance(value.get("cycle"), str):
            self.inspector.open("ask", cycle=value["cycle"])

    def key(self, key, modifiers):
        if key == "spacebar":
            self.paused = not self.paused
            return True
        return False


# ---- inspector

PAGE_CLASSES = {kind.name: kind for kind in Page.__subclasses__() if kind.name in PAGES}
INSPECTOR_KV = """
<MemoryInspector>:
    orientation: 'vertical'
    canvas.before:
        Color:
            rgba: GROUND
        Rectangle:
            pos: self.pos
            size: self.size
    Words:
        id: banner
        least: dp(0)
        height: self.texture_size[1] if self.text else 0
        opacity: 1 if self.text else 0
        padding: dp(14), dp(9)
        halign: 'center'
        color: GROUND
        canvas.before:
            Color:
                rgba: BAD if root.line == 'absent' or root.line == 'refused' else WARM
            Rectangle:
                pos: self.pos
                size: self.size
    BoxLayout:
        padding: dp(8)
        spacing: dp(8)
        Pane:
            id: navigation
            size_hint_x: None
            width: dp(150)
            spacing: dp(4)
        BoxLayout:
            id: room
    BoxLayout:
        size_hint_y: None
        height: '26dp'
        padding: dp(12), 0
        canvas.before:
            Color:
                rgba: PANEL
            Rectangle:
                pos: self.pos
                size: self.size
        Words:
            id: status
            size_hint_y: 1
            text_size: self.size
            valign: 'middle'
            font_size: '12.5sp'
            max_lines: 1
        Words:
            id: waiting
            size_hint: 0.5, 1
            text_size: self.size
            valign: 'middle'
            halign: 'right'
            font_size: '12.5sp'
            max_lines: 1

<NavigationPush>:
    size_hint_x: 1
    height: '40dp'
    halign: 'left'
    text_size: self.width - dp(20), None
"""
# frames a second while something is done, and when it is not
FRAMES_BUSY, FRAMES_IDLE, BUSY_S = 60, 12, 1.5
LAYOUT = {"width": 1366, "height": 820, "page": next(iter(PAGES)), "splits": {}}


class NavigationPush(Push):
    """The button of a page."""


KEY_NAMES = {
    27: "escape",
    13: "enter",
    271: "enter",
    32: "spacebar",
    273: "up",
    274: "down",
    276: "left",
    275: "right",
    282: "f1",
    286: "f5",
}


class MemoryInspector(BoxLayout):
    """The window's content: navigation, banner, one page at a time, a line that says how things are."""

    line = StringProperty("connecting")

    def __init__(self, store, endpoint, keys=None, **how):
        super().__init__(**how)
        self.store, self.endpoint, self.keys, self.pages, self.page = (
            store,
            endpoint,
            keys,
            {},
            None,
        )
        self.pushes, self._said, self._ticking = {}, "", None
        store.on("uvm_state_update", lambda _: self.make_stale())
        for number, page in enumerate(SPEC["pages"], 1):
            push = NavigationPush(text=f"{marked(str(number), 'faint')}   {marked(page['title'])}")
            push.bind(on_release=lambda _, name=page["name"]: self.open(name))
            self.pushes[page["name"]] = push
            self.ids.navigation.add_widget(push)
        self.ids.navigation.add_widget(Widget())
        keys = "F1  help\nF5  ask anew\nCtrl+K  search\nCtrl+Z  undo"
        self.ids.navigation.add_widget(Factory.Caption(text=marked(keys, "faint")))
        for topic, function in (
            ("line", self.show_line),
            ("waiting", self.show_waiting),
            ("health", self.show_status),
            ("state", self.show_status),
            ("sent", self.show_status),
            ("fault", self.show_fault),
        ):
            store.on(topic, function)
        self.show_line()

    # -------- pages

    def open(self, name, **where):
        """Show a page, made when first asked for, and what `where` names on it."""
        if name not in PAGE_CLASSES:
            return self.say(f"this Inspector was made without the page {name}", "bad")
        page = self.pages.get(name)
        if page is None:
            Builder.load_string(PAGE_CLASSES[name].kv)
            page = self.pages[name] = PAGE_CLASSES[name](self)
        if page is not self.page:
            if self.page:
                self.page.hidden()
                self.ids.room.remove_widget(self.page)
            self.page = page
            self.ids.room.add_widget(page)
            page.shown()
            App.get_running_app().layout["page"] = name
            for other, push in self.pushes.items():
                push.down = other == name
        if where:
            page.go(**where)
        else:
            page.begin()

    # -------- what is told

    def show_line(self):
        self.line = self.store.line
        fields = {"endpoint": self.endpoint, "why": self.store.why, "seconds": int(HUNG_S)}
        self.ids.banner.text = (
            "" if self.line == "online" else f"[b]{_drawn(told(self.line, **fields))}[/b]"
        )
        if self.line == "online":
            for page in self.pages.values():
                page.stale = True
            if self.page:
                self.page.look_anew()
        self.show_status()

    def make_stale(self):
        """Have each page ask anew when it is shown next; one that is shown follows by itself."""
        for page in self.pages.values():
            page.stale |= page is not self.page

    def say(self, words, tone="soft"):
        """Say something in the status line, until the next thing is said."""
        self._said = marked(words, tone)
        self.show_status()

    def show_fault(self, error):
        """Say that an answer could not be shown."""
        self.say(
            f"an answer could not be shown ({type(error).__name__}: {short(str(error), 80)}); is the daemon of another "
            "version?",
            "bad",
        )

    def show_status(self, *_):
        memory, health = self.store.state.get("memory", {}), self.store.health
        facts = [self.endpoint, self.line]
        if self.line == "online":
            facts += [
                f"{number_text(memory[name])} {name}"
                for name in ("documents", "chunks")
                if name in memory
            ]
            facts += [f"core {health['core']['state']}"] if "core" in health else []
        said = "   ".join(
            filter(
                None, [marked("   ".join(facts), "soft"), self._said, marked(FONTS.note(), "warm")]
            )
        )
        if self.ids.status.text != said:
            self.ids.status.text = said

    def show_waiting(self):
        """Say what is still waited for, second by second, while there is something."""
        if self.store.waiting() and not self._ticking:
            self._ticking = Clock.schedule_interval(lambda _: self._tick(), 0.5)
        elif not self.store.waiting():
            self._tick()

    def _tick(self):
        waiting = self.store.waiting()
        if not waiting and self._ticking:
            self._ticking.cancel()
            self._ticking = None
        seconds = time.monotonic() - waiting[0].at_s if waiting else 0
        self.ids.waiting.text = (
            marked(told("slow", doing=waiting[0].doing, seconds=int(seconds)), "warm")
            if seconds >= 1
            else ""
        )

    # -------- keys

    def on_key(self, window, key, scancode=None, text=None, modifiers=()):
        """Take a key before the fields do; returns whether it meant something."""
        modifiers = [one for one in modifiers if one in ("ctrl", "alt", "shift", "meta")]
        name = KEY_NAMES.get(key, chr(key) if 32 <= key < 127 else "")
        dialogs = [one for one in window.children if isinstance(one, Dialog)]
        if dialogs:
            return self._dialog_key(dialogs[0], name, modifiers)
        typing = any(
            getattr(one, "focus", False) and type(one).__name__ in ("Field", "Code")
            for one in _all_below(self.page)
        )
        does = self._meaning(name, modifiers, typing)
        if does:
            does()
            return True
        pressing = any(isinstance(one, Push) and one.focus for one in _all_below(self))
        plain = not modifiers and (typing or pressing and name in ("enter", "spacebar"))
        return not plain and self.page.key(name, modifiers)

    def _meaning(self, name, modifiers, typing):
        """Return the function that a key stands for everywhere, or None."""
        if modifiers == ["ctrl"]:
            names = list(PAGES)
            if name.isdigit() and 0 < int(name) <= len(names):
                return lambda: self.open(names[int(name) - 1])
            return {
                "k": self._go_search,
                "q": App.get_running_app().stop,
                "enter": getattr(self.page, "send", None),
                "z": None if typing and self._typed() else self.undo_last,
            }.get(name)
        if modifiers:
            return None
        focused = any(getattr(one, "focus", False) for one in _all_below(self.page))
        move = {"down": self._into_list} if typing or not focused else {}
        move |= {} if typing else {"/": self._go_search}
        return {"f1": self.show_help, "f5": self.page.look_anew, "escape": self._back, **move}.get(
            name
        )

    def _typed(self):
        """Whether the field with the cursor has text of its own to undo."""
        return any(
            getattr(one, "focus", False) and getattr(one, "_undo", None)
            for one in _all_below(self.page)
        )

    def _go_search(self):
        # the key itself shall not be typed there
        Clock.schedule_once(lambda _: self.open(next(iter(PAGES))), 0.05)

    def _into_list(self):
        rows = next(
            (one for one in _all_below(self.page) if isinstance(one, Rows) and one.data), None
        )
        if rows:
            rows.focus = True
            rows.choose(max(0, rows.chosen), show=True)

    def _back(self):
        focused = next((one for one in _all_below(self.page) if getattr(one, "focus", False)), None)
        if not self.page.back() and focused:
            focused.focus = False

    def _dialog_key(self, dialog, name, modifiers):
        if name == "escape":
            dialog.dismiss()
        elif name == "q" and modifiers == ["ctrl"]:
            App.get_running_app().stop()
        elif name == "enter" and modifiers == ["ctrl"] and hasattr(dialog, "accept"):
            dialog.accept()
        else:
            return False
        return True

    # -------- help and undo

    def show_help(self):
        dialog = Dialog(
            title=marked(self.page.spec["title"], bold=True), size_hint=(0.66, None), height=dp(380)
        )
        keys = __doc__.partition("    Ctrl+1")[2].partition("\n\n")[0]
        keys = f"[font={FONTS.mono}]{marked('    Ctrl+1' + keys, 'soft')}[/font]"
        for text in (marked(self.page.spec["help"]), keys):
            dialog.ids.body.add_widget(Words(text=text, line_height=1.2))
        dialog.ids.body.add_widget(Widget())
        close = dialog.button("Close", dialog.dismiss, strong=True)
        dialog.open()
        close.focus = True

    def undo_last(self):
        """Offer to undo the last change that was made from here."""
        if self.store.changes:
            self.undo(self.store.changes[-1])
        else:
            self.say("nothing was changed from here that could be undone")

    def undo(self, change, then=None):
        """Show what a change did, and undo it where that is wanted."""
        self.store.ask(
            "history",
            lambda reply: self._offer_undo(reply, change, then),
            slot="undo",
            doing="looking back",
            limit=200,
        )

    def _offer_undo(self, reply, change, then):
        if reply["status"] != "OK":
            return self.say(reply["details"], "bad")
        found = next((one for one in reply["results"] if one["change"] == change), None)
        lines = (
            change_lines(found)
            if found
            else [("faint", f"{change} is older than the last 200 changes")]
        )
        turned = {"good": "bad", "bad": "good"}
        slots = len(found["changes"]) if found else 0
        asks = f"Undo this change of {slots} slots?" if slots > 1 else "Undo this change?"
        dialog, rows = Dialog(title=marked(asks, bold=True)), Rows(clicks=2)
        dialog.note = marked(
            f"{change}  {found['command'] if found else ''}: what is green comes back, what is red goes"
        )
        rows.fill(
            line_rows(
                [
                    ("", self._turned(line), turned.get(tone, tone), (), None)
                    for tone, line in lines
                ],
                110,
                False,
            )
        )
        dialog.ids.body.add_widget(rows)

        def accept():
            dialog.dismiss()
            self.store.ask(
                "undo",
                lambda reply: self._undone(reply, change, then),
                doing="undoing",
                by_hand=True,
                change=change,
            )

        close = dialog.button("Close", dialog.dismiss)
        go_on = dialog.button("Undo", accept, strong=True)
        dialog.open()
        if slots == 1:
            dialog.accept, go_on.focus = accept, True
        else:  # a key that is held undoes no more than one
            close.focus = True

    @staticmethod
    def _turned(line):
        return {"+": "-", "-": "+"}.get(line[:1], line[:1]) + line[1:]

    def _undone(self, reply, change, then):
        ok = reply["status"] == "OK"
        self.say(reply["details"], "good" if ok else "bad")
        if ok:
            gone = {change, reply.get("change")}
            self.store.changes = [one for one in self.store.changes if one not in gone]
            then() if then else self.page.refresh()


def layout_path():
    """Return the file that keeps the window's layout."""
    home = os.environ.get("KIVY_HOME")
    folder = (
        pathlib.Path(home)
        if home
        else pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "batos"
    )
    return folder / "inspector.json"


def read_layout():
    """Return the layout of the last launch, or the first one; what is damaged counts as absent."""
    layout = {**LAYOUT, "splits": {}}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kept = json.loads(layout_path().read_text("utf-8"))
        layout |= {
            name: kept[name]
            for name, first in layout.items()
            if type(kept.get(name)) is type(first)
        }
    layout["splits"] = {
        name: share
        for name, share in layout["splits"].items()
        if isinstance(share, float) and 0 < share < 1
    }
    layout["page"] = layout["page"] if layout["page"] in PAGES else LAYOUT["page"]
    return layout


def write_layout(layout):
    """Keep a layout, whole or not at all."""
    path = layout_path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(layout), "utf-8")
        fresh.replace(path)


class MorphicUIApp(App):
    """The application: a bridge, a store, the Inspector; fewer frames while nothing happens."""

    def __init__(self, endpoint=DEFAULT_ENDPOINT, keys=None, **how):
        super().__init__(**how)
        self.endpoint, self.keys, self.layout, self.title = (
            endpoint,
            keys,
            read_layout(),
            SPEC["title"],
        )
        size = {
            "width": self.layout["width"],
            "height": self.layout["height"],
            "minimum_width": 900,
            "minimum_height": 560,
        }
        for section, settings in {
            "kivy": {"exit_on_escape": 0, "log_level": "warning", "desktop": 1},
            "graphics": {"multisamples": 0, **size},
            "input": {"mouse": "mouse,disable_multitouch"},
        }.items():
            for name, value in settings.items():
                Config.set(section, name, value)
        self.wake = Clock.create_trigger(lambda _: self._drain())
        self.bridge = Bridge(endpoint, keys, self.wake)
        self.store = Store(self.bridge)

    def input_font(self, text, mono=False):
        """Return the font for what is typed."""
        return FONTS.input_font(text, FONTS.mono if mono else FONTS.base)

    def build(self):
        from kivy.core.window import Window

        Builder.load_string(SHARED_KV.replace("{mono!r}", repr(FONTS.mono)) + INSPECTOR_KV)
        Window.clearcolor = get_color_from_hex(colour("ground"))
        self.inspector = MemoryInspector(self.store, self.endpoint, self.keys)
        Window.bind(on_key_down=self._key, on_resize=self._resized)
        for event in (
            "on_touch_down",
            "on_touch_move",
            "on_touch_up",
            "on_mouse_move",
            "on_textinput",
            "on_resize",
        ):
            Window.fbind(event, self._busy)
        self._rest = Clock.create_trigger(lambda _: setattr(Clock, "_max_fps", FRAMES_IDLE), BUSY_S)
        return self.inspector

    def on_start(self):
        self.inspector.open(self.layout["page"])
        self._busy()

    def _busy(self, *_):
        """Draw often for a while: somebody does something."""
        Clock._max_fps = FRAMES_BUSY
        self._rest.cancel()
        self._rest()

    def _key(self, window, *key):
        self._busy()
        return self.inspector.on_key(window, *key)

    def _resized(self, window, width, height):
        self.layout["width"], self.layout["height"] = int(width), int(height)

    def _drain(self):
        if self.store.drain():
            self.wake()

    def on_stop(self):
        write_layout(self.layout)
        self.bridge.close()


class Unforeseen(ExceptionHandler):
    """What nobody foresaw is told, and ends no window."""

    def handle_exception(self, inst):
        if not isinstance(inst, Exception):
            return ExceptionManager.RAISE
        traceback.print_exception(inst, file=sys.__stderr__)
        App.get_running_app().inspector.show_fault(inst)
        return ExceptionManager.PASS


def main(options):
    """Run the Inspector until its window is closed; returns the exit status."""
    ExceptionManager.add_handler(Unforeseen())
    try:
        MorphicUIApp(options.endpoint, options.keys).run()
    except ValueError as error:
        print(f"morphic_ui: {error}", file=sys.__stderr__)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(OPTIONS))
