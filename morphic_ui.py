"""The Memory Inspector of BAT OS: a window on the living image, by Kivy.

    python morphic_ui.py [--endpoint tcp://127.0.0.1:5555] [--keys FILE]

It shows what the system remembers, what it is thinking, which objects there are and how they delegate, and where the
experts sit; it changes them by the same messages as any other client. It needs kivy, pyzmq and ormsgpack, and nothing
else of the system: a daemon on another machine is shown as well as one on this.

    Ctrl+1 … Ctrl+7   the pages            Up, Down, Page, Home, End   move in a list
    Ctrl+K            all that can be done Enter                       open what is selected
    /                 to the search field  Shift+Up, Down, Ctrl+A      choose several, or all
    Ctrl+Z            undo a change        Ctrl+C                      copy what is chosen
    Ctrl+plus, minus  larger, smaller      Escape                      back; it never quits
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
import ctypes
import dataclasses
import datetime
import difflib
import functools
import itertools
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
import subprocess
import sys
import threading
import time
import traceback
import typing
import unicodedata
import zlib
from collections.abc import Callable, Iterable

import ormsgpack
import zmq
import zmq.utils.monitor

SPEC: dict  # what is shown, as data; it follows
COMMANDS: dict

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
    "accent": "#82aaff",
    "palette": {
        "ground": "#0e1116",
        "panel": "#151a21",
        "raised": "#1e252f",
        "edge": "#2f3947",
        "chosen": "#22324d",
        "mark": "#523f10",
        "ink": "#e8ebf0",
        "soft": "#adb7c5",
        "faint": "#929dad",
        "good": "#6fd39b",
        "bad": "#ff8f86",
        "cool": "#7cc4ff",
        "warm": "#f2b84b",
        "violet": "#c3a6ff",
    },
    "light": {
        "ground": "#eef0f4",
        "panel": "#ffffff",
        "raised": "#f0f2f6",
        "edge": "#cfd6e0",
        "chosen": "#dfe8ff",
        "mark": "#ffe9a8",
        "ink": "#1b222d",
        "soft": "#48525f",
        "faint": "#586270",
        "good": "#0b6638",
        "bad": "#b3261e",
        "cool": "#0a58a6",
        "warm": "#7a4d00",
        "violet": "#6339b5",
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
                "Ask a question; the answer stands over the passages that it is taken from, what answers on a ground. [1] "
                "goes to its passage, read opens that in its document; below stands what was found beside them. Thread shows "
                "the turns of its conversation, each with how it was marked and corrected. Thought shows each step as long as"
                " it took and, side by side, what each persona said; a click unfolds a passage. Why tells who was let in and "
                "what was pruned, Steps all that the journal holds. Mark an answer as right, or as wrong with what would be "
                "right. A name in the field Conversation makes questions turns of one."
            ),
            "columns": ["answer", "thread", "thought", "why", "steps"],
            "empty": "No questions yet. What do you want to know?",
        },
        {
            "name": "objects",
            "title": "Objects",
            "help": (
                "Root objects stand on the left; words find others in the whole image, slot:NAME those that have a slot, "
                "kind:Method methods. Enter dives into what a slot refers to, Alt+Left and Alt+Right go back and forward. E "
                "edits a slot or a method; the difference is shown before it is sent. Selectors tell who answers. In the "
                "graph the wheel zooms, a drag moves, a click opens a node, and the right button offers its methods and "
                "history."
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
                "how full each is. Enter or Activate makes an expert hot and tells each step. Forge shows the jobs that "
                "trained something, how much they erred as they learnt, and the verdict on each."
            ),
            "columns": ["hot", "warm", "cold"],
            "empty": "No experts; put adapters into lora_adapters/ and send incarnate.",
        },
        {
            "name": "life",
            "title": "Life",
            "help": (
                "How the daemon is: waiting work, commits, memory and disk over time; events as they come (Space pauses "
                "them); missions and what failed; the report of what ALFRED's audits found; settings and where they stand."
            ),
            "columns": ["events", "missions", "failures", "report", "changes", "upkeep", "settings"],
            "empty": "Nothing happened yet.",
        },
        {
            "name": "pages",
            "title": "Pages",
            "help": (
                "Pages of your own. Say in a sentence what one shall show, and Enter: kind, objects and slots are read off "
                "it, and the page is shown with its form. Change what is not meant, then Keep. Each change of a page is a "
                "version: Before has the former one stand again, Ctrl+Z undoes. A click on an object opens it."
            ),
            "empty": "No pages yet. Say above what one shall show.",
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
        {"title": "entropy", "path": "heartbeat.cem.cem", "unit": "CEM"},
        {"title": "voices", "path": "heartbeat.cem.h_cog", "unit": "H_cog"},
    ],
    "tiers": [
        {
            "name": "hot",
            "title": "Hot: slots on the device",
            "tone": "good",
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
        "EXPLORING": "cool",
        "VERIFYING": "cool",
        "DECOMPOSING": "cool",
        "DELEGATING": "violet",
        "CONTRAPUNTO": "violet",
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
            "Cancel a cycle that waits or runs, a job of the forge (\"job-3\"), or \"upkeep\": the backup or pack at work. Too "
            "late once its effect is being stored."
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
            "machine, unless `show` is false."
        ),
        "effect": False,
        "role": "admin",
        "fields": {"wait": {"type": "switch", "default": True}, "show": {"type": "switch", "default": True}},
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
                    "not": {"type": "list", "default": []},
                    "lead": {"type": "text", "longest": 40, "default": None},
                    "pillars": {"type": "list", "default": None},
                    "method": {"type": "text", "longest": 20000, "default": None},
                    "answer": {"type": "text", "longest": 4000, "default": None},
                },
                "default": None,
            },
        },
    },
    "forge": {
        "help": (
            "Train a target with a dataset, its last one where none is named: READER, which judges passages for every core; "
            "BASE, the core's own tasks; or an expert by its name, such as BRICK. The reply names the job; it is judged "
            "against what stands, and promoted or rejected by rule."
        ),
        "effect": True,
        "role": "admin",
        "fields": {
            "target": {"type": "text", "longest": 100, "default": "READER"},
            "dataset": {"type": "integer", "default": None},
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
            "experts": {"type": "switch", "default": False},
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
        "fields": {"wait": {"type": "switch", "default": True}, "show": {"type": "switch", "default": True}},
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
                "choices": [
                    "IDLE",
                    "EXPLORING",
                    "VERIFYING",
                    "DECOMPOSING",
                    "DELEGATING",
                    "CONTRAPUNTO",
                    "SYNTHESIZING",
                    "COMPLETE",
                    "FAILED",
                ],
                "default": None,
            },
            "conversation": {"type": "text", "longest": 200, "default": None},
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
    "list_jobs": {
        "help": "Show the jobs of the forge, the newest first, with what they learnt and their verdicts.",
        "effect": False,
        "role": "read",
        "fields": {"limit": {"type": "integer", "min": 1, "max": 200, "default": 20}},
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
    "list_pages": {
        "help": "Show the pages of one's own that are kept, and the grammar that pages are made by.",
        "effect": False,
        "role": "read",
        "fields": {},
    },
    "measures": {
        "help": "Show figures of health over time: by the minute for two days, by the hour for ninety.",
        "effect": False,
        "role": "read",
        "fields": {"span": {"type": "choice", "choices": ["minutes", "hours"], "default": "minutes"}},
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
    "show_page": {
        "help": "Show a page of one's own, by name or as it would be, with what its parts hold by now.",
        "effect": False,
        "role": "read",
        "fields": {
            "name": {"type": "text", "longest": 60, "default": None},
            "version": {"type": "integer", "min": 1, "default": None},
            "page": {"type": "map", "default": None},
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
            "Be sent events from now on: what the state is, where cycles are, what went wrong, how the daemon is, which "
            "program a channel offers, which version of the mind is the mind; on request, as `tokens`, the sentences that "
            "answer before their cycle has ended, the first with its passages; they are provisional."
        ),
        "effect": False,
        "role": "read",
        "fields": {
            "topics": {
                "type": "list",
                "choices": ["uvm_state_update", "cycle", "error", "health", "upgrade", "mind", "tokens"],
                "default": ["uvm_state_update", "cycle", "error", "health", "upgrade", "mind"],
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
                "choices": ["uvm_state_update", "cycle", "error", "health", "upgrade", "mind", "tokens"],
                "default": ["uvm_state_update", "cycle", "error", "health", "upgrade", "mind", "tokens"],
            },
        },
    },
    "why": {
        "help": (
            "Show in plain words who spoke in a cycle and why: scores, traces, draws, who was let in, which ways were pruned."
        ),
        "effect": False,
        "role": "read",
        "fields": {"cycle": {"type": "text", "longest": 40, "required": True}},
    },
}

SETTINGS = {
    "image": [
        "live_image.fs",
        "path or URI",
        "the image: a data file, in the folder BATOS_HOME where that is set, or a URI that zodburi knows",
    ],
    "endpoint": ["tcp://127.0.0.1:5555", "ZeroMQ endpoint", "where to listen; port 0 lets the system choose"],
    "curve": [False, "true or false", "ask for keys on this machine too; other interfaces always do"],
    "keys": ["", "file", "the key file of a client, as `keys add` made it"],
    "read_threads": [2, "threads", "threads that answer reads on snapshots"],
    "core": [
        "auto",
        "auto, none, smollm2, a model file (GGUF), a folder, a name of the hub or a URL",
        "the language model: auto is the embedded seed_core/, none goes without; a URL is a server of OpenAI's protocol",
    ],
    "core_urls": [
        "",
        "URLs, blanks between",
        "servers to be asked in this order, the next where one fails; where `core` is a URL, that one is asked before them",
    ],
    "core_model": [
        "",
        "name",
        "the model to ask of a server; empty is the first that it tells of; of several, those that have it are asked for it",
    ],
    "core_key": ["", "key", "what a server wants as its key; of several, one for all or one for each, - for none"],
    "core_parallel": [4, "rows", "that each server is asked at a time"],
    "core_queue": [32, "rows", "that wait for a server; who comes then is told Busy"],
    "core_voices": [
        True,
        "true or false",
        "where it answers in moments, let each persona say what it sees before the one that leads answers",
    ],
    "core_price": [
        "",
        "READ/WRITTEN",
        "what a million tokens cost, in your currency, as 0.15/0.6; one for all servers or one for each, blanks between",
    ],
    "embedder": [
        "auto",
        "auto, none, a folder or a name",
        (
            "the model that finds by meaning: auto is all-MiniLM-L6-v2 as installed, none searches by words alone; a name is "
            "of a model of sentence-transformers in the hub's cache or in an installed package"
        ),
    ],
    "core_threads": [0, "threads", "processor cores for the model; 0 is one for the embedded core, else PyTorch's choice"],
    "adapters": [
        "auto",
        "auto, none or a folder",
        "LoRA experts to bring into the image: auto is lora_adapters/ beside batos.py and the image, none looks nowhere",
    ],
    "adapter_slots": [8, "experts", "adapters that the device holds at a time; the four personas always are among them"],
    "vram_mb": [0.0, "MB", "of a card that core, adapters and batches may take; 0 is all that it has, the seeds have 6900"],
    "adapter_rank": [16, "rank", "of the adapter slots; experts of a higher rank are refused"],
    "ram_cache_mb": [0.0, "MB", "experts kept in memory; 0 is 20 GB, or half of what is free where that is less"],
    "core_deadline_s": [120.0, "s", "time for one answer of the core"],
    "generate": [True, "true or false", "write methods for messages that nobody understands"],
    "methods_per_hour": [60.0, "missions", "that may start for such messages in an hour"],
    "heartbeat": [True, "true or false", "look after failed missions and methods while nobody wants anything"],
    "heartbeat_first_s": [60.0, "s", "from the start to the first heartbeat"],
    "heartbeat_s": [3600.0, "s", "from one heartbeat to the next"],
    "heartbeat_per_day": [12, "audits", "that heartbeats may begin within a day; each sees to one thing at most"],
    "cem_cog": [0.4, "weight", "of how many personas speak, in the Composite Entropy Metric"],
    "cem_sol": [0.4, "weight", "of how far answers are from those before"],
    "cem_struc": [0.2, "weight", "of what grew within a week"],
    "stagnation": [0.35, "CEM", "below which it is low"],
    "stagnation_beats": [3, "heartbeats", "in a row at which it is low, until that is seen to"],
    "gate": [True, "true or false", "now and then let in one more who speaks, whom the plan does not name"],
    "gate_noise": [0.08, "deviation", "of the draws by which that one is let in; 0 lets only traces and the router do it"],
    "gate_floor": [0.45, "score", "from which on that one is let in"],
    "contrapunto": [True, "true or false", "let BRICK and ROBIN answer each other where both spoke"],
    "branches": [True, "true or false", "think along several ways where a question tells of something in place of naming it"],
    "improve_per_day": [3, "times a day", "that the mind may be improved by what was learnt, for any reason"],
    "forge_auto": [
        "ask",
        "off, ask or on",
        "corrections begin a curation by themselves, unless off; a dataset that is ready is told of, or forged",
    ],
    "forge_hours": [
        "0-24",
        "hours of the day",
        "in which the forge may begin by itself, once a day at most: 22-6 is the night",
    ],
    "forge_engine": [
        "process",
        "process, celery or stub",
        (
            "what trains: a process beside the daemon, or a worker of Celery (`forge-worker --celery`); stub, stub nothing "
            "and stub for ever learn nothing, for tests, also behind celery"
        ),
    ],
    "forge_broker": [
        "redis://localhost:6379/0",
        "URL",
        "where the engine celery sends work; a password in it is better in the environment or the settings file",
    ],
    "forge_results": ["redis://localhost:6379/0", "URL", "where its workers tell what came of it"],
    "forge_worker_dir": ["", "folder", "that daemon and workers of Celery both see, for rows and weights"],
    "forge_inline": [
        False,
        "true or false",
        "send the workers of Celery rows and weights through the broker, up to 16 MB; else by forge_worker_dir",
    ],
    "forge_yields": [
        True,
        "true or false",
        "hold the training while missions wait; it runs 12 s of each minute all the same",
    ],
    "forge_offload": [
        False,
        "true or false",
        "have the core's weights lie on the disk while an expert is trained: slower, with less memory",
    ],
    "forge_deadline_s": [3600.0, "s", "time that one training or judging may take"],
    "method_idle_days": [90.0, "days", "after which a stored method that nobody used is told of; 0 tells of none"],
    "method_workers": [4, "threads", "stored methods that run at the same time, each in a process of its own"],
    "method_deadline_s": [10.0, "s", "time for one message to a stored method; then its process is ended"],
    "method_memory_mb": [256.0, "MB", "memory that such a process may have"],
    "method_output_mb": [8.0, "MB", "what one message to a method may tell and write; 25,000 values for each MB"],
    "ui": [
        "auto",
        "auto or a file",
        (
            "where the Memory Inspector that the system makes is written; auto is morphic_ui.py beside the image, or in "
            "IMAGE.ui/ where the image lies in a checkout"
        ),
    ],
    "workers": [2, "threads", "missions that are thought about at the same time"],
    "mission_deadline_s": [300.0, "s", "time for one mission, from its first thought"],
    "missions_max": [10000, "missions", "missions that wait or run; more are refused as Busy"],
    "missions_kept": [10000, "missions", "ended missions that list_cycles remembers"],
    "journal_days": [7.0, "days", "journals of ended missions are kept so long"],
    "evidence_chunks": [8, "chunks", "passages that one recall looks into"],
    "evidence_sentences": [3, "passages", "passages that an answer tells, each round the sentence that answers, 1 to 8"],
    "semantic_chunk_kb": [8.0, "kB", "smaller documents are cut where their meaning changes, others by words"],
    "self_knowledge": [True, "true or false", "index the README and the docstrings of batos.py, with scope self"],
    "relevance": [0.55, "share", "share of a question's idf mass that the best chunk must hold"],
    "similarity": [0.62, "cosine", "or how near the best passage must be to the question"],
    "pending_max": [1024, "requests", "accepted requests at work; more are refused as Busy"],
    "client_pending_max": [256, "requests", "the same for one client: a key, or a connection without one"],
    "client_rate": [
        0.0,
        "requests/s",
        "requests of one such client, on average over a second; more are Busy; 0 sets no limit",
    ],
    "outbox_max": [256, "replies", "replies held for one slow client; at this bound its requests are Busy"],
    "subscribers_max": [64, "connections", "connections that may be subscribed to events; more are refused as Busy"],
    "client_subscribers_max": [16, "connections", "the same for one key"],
    "client_stall_s": [30.0, "s", "a client that reads nothing for so long is dropped"],
    "message_max_mb": [32.0, "MB", "largest message taken from the wire; one of twice as much ends its connection"],
    "message_values_max": [100000, "values", "values in one message: numbers, texts, lists, maps and names together"],
    "document_max_mb": [8.0, "MB", "largest text of a document"],
    "source_max_mb": [200.0, "MB", "largest file that a document is read from"],
    "group_max": [64, "commands", "short commands in one commit"],
    "request_memory_min_h": [24.0, "h", "idempotency keys are remembered at least so long"],
    "request_memory_max": [200000, "keys", "keys remembered at most; beyond it keyed requests are Busy"],
    "history_days": [30.0, "days", "pages of the ledger and retired documents are kept so long"],
    "log_entries_max": [10000, "entries", "entries in message_log, and in failed_cycle_log"],
    "open_check_mb": [64.0, "MB", "part of the data file whose seals are checked before listening"],
    "seal_mb": [8.0, "MB", "a seal is written each time so much was added"],
    "lease_s": [
        15.0,
        "s",
        "of an image that another engine keeps: who writes it is taken for gone after so long without a sign of it",
    ],
    "backup_dir": ["", "folder", "where backups go; empty makes none by itself"],
    "backup_hours": [24.0, "h", "a backup is made each time so much has passed, where backup_dir is set"],
    "backup_full_days": [7.0, "days", "a backup begins anew with the whole image after so long, else it adds what is new"],
    "backup_keep_days": [30.0, "days", "older backups go, but never the last ones that make a whole"],
    "pack_hours": [24.0, "h", "what history_days has passed by is packed away each time so much has passed; 0 never"],
    "upgrade_channel": [
        "",
        "folder",
        "where another batos.py may be put, which is told of and run by `upgrade` alone; empty looks nowhere",
    ],
    "upgrade_trial_s": [120.0, "s", "time for the trial of such a program, and for it to be ready once it takes over"],
    "upgrade_probation_s": [
        60.0,
        "s",
        "how long such a program answers reads alone, where it makes the image one of a newer version",
    ],
    "drain_s": [10.0, "s", "time given to accepted work at shutdown"],
    "metrics_port": [0, "TCP port", "figures in the text form that Prometheus reads, at 127.0.0.1; 0 tells none"],
    "log_file_mb": [8.0, "MB", "size at which the log file is rotated"],
    "watch_folders": ["", "paths", "folders that `learn --watch` goes by where none is named, parted by ':'"],
    "learn_roots": ["", "paths", "folders whose files index_document may read by path, parted by ':'"],
}
# fmt: on

# ---- end of specification


# ---- words: values, differences and scripts as text

PAGES = {page["name"]: page for page in SPEC["pages"]}
TEXTS = SPEC["texts"]
ENDED = ("COMPLETE", "FAILED")
SHOWN_CHARS = 20_000  # of one text in a label; a longer one is a list of lines


def told(name: str, **fields) -> str:
    """Return one of the specification's texts with its fields filled in."""
    return TEXTS[name].format(**fields)


def plain(text: str) -> str:
    """Return text as a font can draw it: control characters as pictures, lone surrogates replaced."""
    text = str(text).replace("\t", "    ").replace("\r\n", "\n").encode("utf-8", "replace").decode()
    return "".join(
        char if char >= " " and char != "\x7f" or char == "\n" else "\u00b7" for char in text
    )


def short(value: typing.Any, most: int = 120) -> str:
    """Return a value in one line of at most `most` characters."""
    text = value if isinstance(value, str) else to_json(value, None)
    text = " ".join(text[: most * 4].split())
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def spoken(text: str) -> str:
    """Return a text of the daemon's without the marks around names of code."""
    return re.sub(r"`([^`]*)`", r"\1", text)


def _unfit(value):
    return {"$bytes": value.hex()} if isinstance(value, bytes) else repr(value)


def _keyed(value):
    """Return a value with text keys only, as JSON has them."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else repr(key): _keyed(item) for key, item in value.items()
        }
    return [_keyed(item) for item in value] if isinstance(value, (list, tuple)) else value


def to_json(value: typing.Any, indent: int | None = 1) -> str:
    """Return a value of the wire as JSON text."""
    return json.dumps(_keyed(value), ensure_ascii=False, indent=indent, default=_unfit)


def pretty(value: typing.Any, width: float = 88) -> str:
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


def from_json(text: str, what: str = "value") -> typing.Any:
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


def read_file(name: str, path: str) -> bytes:
    """Return the bytes of a file of this machine. Raises ValueError that names the field."""
    try:
        return pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{name} takes the path of a file here: {error}") from None


def ref_of(value: typing.Any) -> str | None:
    """Return the oid that a value of the wire refers to, or None."""
    return (
        value["$ref"]
        if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("$ref"), str)
        else None
    )


def named_refs(value: typing.Any, name: str = "", most: int = 24) -> dict:
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


def refs_in(value: typing.Any, most: int = 24) -> list:
    """Return up to `most` oids that a value refers to."""
    return list(named_refs(value, "", most))


def value_text(value: typing.Any, names: dict, most: int = 150) -> str:
    """Return a value in one line for people: objects by their names, trees by their size and first entries."""
    if ref_of(value):
        return f"{names.get(ref_of(value), '')} {ref_of(value)}".strip()
    tree = value.get("$tree") if isinstance(value, dict) else None
    if isinstance(tree, dict):
        first = ", ".join(
            f"{key} \u2192 {value_text(item, names, 40)}" for key, item in tree["entries"][:6]
        )
        count = f"more than {tree['size']}" if tree.get("more") else tree["size"]
        return short(f"{count} entries: {first}", most)
    if isinstance(value, list) and value and all(ref_of(item) for item in value[:50]):
        return short(", ".join(value_text(item, names, 60) for item in value[:50]), most)
    return (
        value["$time"]
        if isinstance(value, dict) and set(value) == {"$time"}
        else short(value, most)
    )


def kind_of(shown: dict) -> str:
    """Return the kind of an inspected object, by the table of kinds; 'object' where none fits."""
    for row in SPEC["kinds"]:
        if (
            row.get("class") == shown.get("class")
            or row.get("slots")
            and set(row["slots"]) <= set(shown.get("slots", ()))
        ):
            return row["kind"]
    return "object"


def tree_rows(
    value: typing.Any, opened: set, key: str = "", path: tuple = (), depth: int = 0
) -> list:
    """Return the rows of a value as a tree: {"key", "path", "depth", "value", "open"}; `open` is None for a leaf.

    opened: set of paths; a $tree shows its entries.
    """
    inner = (
        value["$tree"]["entries"]
        if isinstance(value, dict) and isinstance(value.get("$tree"), dict)
        else None
    )
    items: list | None = (
        [(to_json(name, None), item) for name, item in inner] if inner is not None else None
    )
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


def difference(before: str, after: str) -> list:
    """Return [(tone, line)] of the difference of two texts; tone is one of '', 'good' (added) and 'bad' (taken out)."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "as it is", "as it would be", lineterm="", n=3
    )
    tones = {"+": "good", "-": "bad", "@": "cool"}
    return [(tones.get(line[:1], ""), line) for line in lines]


def beside(before: str, after: str) -> list:
    """Return [(line before, line after)] of two texts side by side; None where one of them has no such line."""
    old, new, pairs = before.splitlines(), after.splitlines(), []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for _, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        pairs += itertools.zip_longest(old[old_from:old_to], new[new_from:new_to])
    return pairs


def script_for(endpoint: str, keys: str | None, command: str, fields: dict) -> str:
    """Return a Python script that sends a request by batos.Client."""
    where = [] if endpoint == DEFAULT_ENDPOINT else [repr(endpoint)]
    where += [f"keys={keys!r}"] if keys else []
    key = ["idempotency_key=uuid7()"] if COMMANDS.get(command, {}).get("effect") else []
    named = all(name.isidentifier() for name in fields)
    given = [f"{name}={value!r}" for name, value in fields.items()] if named else [f"**{fields!r}"]
    call = "".join(f"        {one},\n" for one in [repr(command), *given, *key])
    return (
        f"from batos import Client{', uuid7' if key else ''}\n\n"
        f"with Client({', '.join(where)}) as client:\n    reply = client.call(\n{call}    )\n"
        f"print(reply)\n"
    )


def width_of(char):
    """Return how many columns of a fixed font a character takes."""
    return (
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
    )


def wrapped(line: str, columns: int) -> list:
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


def hits_in(text: str, words: Iterable) -> list:
    """Return [(start, end)] of where a text holds `words`, which are spelt as the daemon tells."""
    wanted = {folded(word) for word in words if word}
    found = re.finditer(r"\w+(?:['\u2019]\w+)*", text) if wanted else ()
    spans = [match.span() for match in found if folded(match[0]) in wanted]
    # of scripts without blanks, and of pictures, a part of what stands together is meant
    for part in (re.escape(word) for word in words if word[:1] >= "\u0e00"):
        spans += [match.span() for match in re.finditer(part, text)]
    return sorted(spans)


SAY_LITTLE = frozenset(
    "changelog changes copying copyright index license licence news readme todo".split()
)


def name_of(doc_id: str) -> str:
    """Return the name of the file of a document that is named by its whole path, with its folder's where it says little."""
    if not doc_id.startswith(("/", "~/")):
        return doc_id
    path = pathlib.PurePath(doc_id)
    says_little = path.name.partition(".")[0].casefold() in SAY_LITTLE
    return f"{path.parent.name}/{path.name}" if says_little and path.parent.name else path.name


def is_name_of(title: str | None, doc_id: str) -> bool:
    """Whether a title says no more than the name of the document does."""
    return title in (None, "", doc_id, name_of(doc_id), pathlib.PurePath(doc_id).name)


def folder_of(doc_id: str) -> str:
    """Return the folder of a document that is named by its whole path, or ''."""
    return str(pathlib.PurePath(doc_id).parent) if doc_id.startswith(("/", "~/")) else ""


def place_of(told: dict) -> str:
    """Return where a passage stands: its document's name, and the lines or pages of the file."""
    name, pages = name_of(told["doc_id"]), told.get("pages")
    lines = pages or told.get("file_lines") or told["lines"]
    return f"{name}:{'page ' if pages else ''}{'-'.join(map(str, dict.fromkeys(lines)))}"


def has_lines(told: dict) -> bool:
    """Whether the lines of a passage are those of its file, and not those of the text that was read off it."""
    return list(told.get("file_lines") or told["lines"]) == list(told["lines"])


def seconds_text(seconds: float | None) -> str:
    """Return a time span as people say it."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "<1 ms"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"


def clock_text(time_value: dict | None) -> str:
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


def at_unix(time_value: dict | None) -> float:
    """Return {"$time": …} in seconds since 1970, 0 where there is none."""
    text = time_value.get("$time") if isinstance(time_value, dict) else None
    return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0


def at_time(at_s: float) -> dict:
    """Return seconds since 1970 as {"$time": …}."""
    return {"$time": datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat()}


def number_text(number: float) -> str:
    """Return a number for people: no more digits than say something."""
    if not isinstance(number, (int, float)):
        return str(number)
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.2f}"


def figure(health: dict, path: str) -> float | None:
    """Return a figure of a health map by its dotted path, `*` sums over all; None where it is not told."""
    name, _, rest = path.partition(".")
    if not isinstance(health, dict):
        return health if isinstance(health, (int, float)) else None
    inner = list(health.values()) if name == "*" else [health.get(name)]
    figures = [figure(one, rest) if rest else one for one in inner]
    figures = [one for one in figures if isinstance(one, (int, float))]
    return sum(figures) if figures else None


def found_at(value: typing.Any, path: str) -> typing.Any:
    """Return what stands in maps at a dotted path, or None."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def uuid7() -> str:
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


def read_keys(path: str) -> tuple:
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

    def send(self, number: int, request: dict) -> None:
        """Have a request sent; its reply will have this number."""
        self._requests.put((number, request))
        self._nudge()

    def close(self) -> None:
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

    def on(self, topic: str, function: Callable) -> None:
        self._listeners[topic].append(function)

    def off(self, function: Callable) -> None:
        for functions in self._listeners.values():
            if function in functions:
                functions.remove(function)

    def forget_listeners(self) -> None:
        """Tell nobody any more: another window is made."""
        self._listeners.clear()
        self._newest.clear()

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
        self,
        command: str,
        then: Callable | None = None,
        slot: str | None = None,
        doing: str = "waiting",
        by_hand: bool = False,
        fields: dict | None = None,
        **more,
    ) -> Sent:
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

    def forget(self, slot: str) -> None:
        """Drop the answer that a slot waits for."""
        self._newest.pop(slot, None)

    def waiting(self) -> list[Sent]:
        """Return the Sent of slots and hands that wait for their answer, the longest first."""
        return [
            sent
            for sent in self._asked.values()
            if sent.by_hand or sent.slot and self._newest.get(sent.slot) == sent.number
        ]

    # -------- what comes

    def drain(self, budget_s: float = 0.004) -> bool:
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

    def look_anew(self) -> None:
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
from kivy.core.text import Label as CoreLabel
from kivy.core.text.markup import MarkupLabel
from kivy.core.text.text_layout import LayoutWord
from kivy.factory import Factory
from kivy.graphics import (
    ClearBuffers,
    ClearColor,
    Color,
    InstructionGroup,
    Line,
    Mesh,
    Rectangle,
    RoundedRectangle,
)
from kivy.graphics.scissor_instructions import ScissorPop, ScissorPush
from kivy.lang import Builder
from kivy.lang.parser import global_idmap as kv_names
from kivy.metrics import Metrics, dp, sp
from kivy.properties import (
    BooleanProperty,
    ColorProperty,
    ListProperty,
    NumericProperty,
    ObjectProperty,
    StringProperty,
)
from kivy.uix.behaviors import ButtonBehavior, FocusBehavior
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.gridlayout import GridLayout
from kivy.uix.label import Label
from kivy.uix.modalview import ModalView
from kivy.uix.recycleboxlayout import RecycleBoxLayout
from kivy.uix.recycleview import RecycleView
from kivy.uix.recycleview.views import RecycleDataViewBehavior
from kivy.uix.stencilview import StencilView
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
# first word of a character's name -> (its script as ISO 15924 names it, direction): what takes more than glyphs side by side
SHAPED = {
    "ARABIC": ("Arab", "rtl"),
    "HEBREW": ("Hebr", "rtl"),
    "SYRIAC": ("Syrc", "rtl"),
    "DEVANAGARI": ("Deva", "ltr"),
    "BENGALI": ("Beng", "ltr"),
    "TAMIL": ("Taml", "ltr"),
    "THAI": ("Thai", "ltr"),
}
FIRST_SHAPED = "\u0590"  # what is below it is drawn from left to right, a glyph for a letter
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
        self._asked = set()  # scripts of which fontconfig was asked
        self.shapes = None  # whether texts are shaped here; None: it was not tried yet

    def font_for(self, char: str) -> str | None:
        """Return the path of a font that has a character, or None for the base font, which may lack it too."""
        if char < "\u0250" or unicodedata.category(char) in BARE:
            return None
        if char not in self._chosen:
            self._chosen[char] = self._find(char)
        return self._chosen[char]

    def _find(self, char):
        script = unicodedata.name(char, "UNNAMED").split()[0]
        if script in SHAPED and not self._is_shaped():
            self.unshaped.add(script)
        path = next((path for path in self._candidates(char) if self._has(path, ord(char))), None)
        if path is None:
            is_letter = unicodedata.category(char)[0] == "L"
            self.missing.add(script if is_letter else "SOME SIGNS")
        return path if path != self.base else None

    def _is_shaped(self):
        """Whether SDL2_ttf shapes here: two letters that Arabic joins into one are narrower than both."""
        if self.shapes is None:
            widths = [_wide_as(self._paths[1], way) for way in (("Latin", "ltr"), SHAPED["ARABIC"])]
            self.shapes = widths[1] < widths[0]
        return self.shapes

    def _candidates(self, char):
        """Yield paths of fonts that may have a character: Kivy's, those that fontconfig knows for it, then all."""
        yield from self._paths[:2]
        script = unicodedata.name(char, "UNNAMED").split()[0]
        if script not in self._asked:
            self._asked.add(script)
            self._paths += [path for path in _by_fontconfig(char) if path not in self._paths]
        yield from self._paths[2:]
        if not self._searched:
            self._searched = True
            known = len(self._paths)
            self._paths += [path for path in _system_fonts() if path not in self._paths]
            yield from self._paths[known:]

    def has(self, path, text):
        """Whether a font has all characters of a text."""
        return all(self._has(path, ord(char)) for char in text)

    def _has(self, path, code):
        if path not in self._covered:
            self._covered[path] = coverage(path)
        ranges = self._covered[path]
        at = bisect.bisect_right(ranges, (code, 0x110000)) - 1
        return at >= 0 and ranges[at][0] <= code <= ranges[at][1]

    def input_font(self, text: str, usual: str) -> str:
        """Return the font of an input, which can only have one: that of the first character that the usual font lacks."""
        return next(filter(None, map(self.font_for, text[:2000])), usual)

    def note(self) -> str:
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
    return _plain_first(found)[:FONTS_TRIED]


def _plain_first(paths):
    """Return paths of fonts, those for many scripts and of usual weight first; none of pictures."""
    plain = [path for path in paths if "color" not in path.lower()]
    return sorted(
        plain, key=lambda path: ("noto" not in path.lower(), "regular" not in path.lower(), path)
    )


def _by_fontconfig(char):
    """Return paths of the fonts that fontconfig knows for a character; [] where it is not installed."""
    try:
        asked = ["fc-list", f":charset={ord(char):x}", "file"]
        ran = subprocess.run(asked, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return []
    paths = [line.strip().rstrip(":") for line in ran.stdout.splitlines()]
    return _plain_first([path for path in paths if path.endswith((".ttf", ".otf", ".ttc"))])


# Shaping. SDL2_ttf joins letters and goes from right to left where it was built with HarfBuzz, as Kivy's is, and is told
# script and direction. Kivy tells a font that when it draws, and not when it measures: so each script has its own font, which
# draws a blank before it is measured. A text of both ways is drawn run by run, in the order in which they stand.


def way_of(text):
    """Return (script, direction) of a run of text: that of its first letter which takes shaping."""
    if text < FIRST_SHAPED and max(text, default="") < FIRST_SHAPED:
        return "Latin", "ltr"
    for char in text:
        if char >= FIRST_SHAPED:
            found = SHAPED.get(unicodedata.name(char, "UNNAMED").split()[0])
            if found:
                return found
    return "Latin", "ltr"


def _wide_as(path, way):
    """Return how wide lam and alef are in a font, told to go a way."""
    label = CoreLabel(font_name=path, font_size=40)
    label.way = way
    return label.get_extents("\u0644\u0627")[0]


_BY_KIVY = {name: getattr(CoreLabel, name) for name in ("get_extents", "_render_text")}


def _go_way(label, text):
    """Have a label's font go the way of a run of text. Returns whether that is another than the usual one."""
    script, direction = getattr(label, "way", None) or way_of(text)
    label.options["font_script_name"], label.options["font_direction"] = script, direction
    return script != "Latin"


def _shaped_font_id(label):
    """A font for each script, as what a font was told stays with it."""
    return f"{_KIVY_FONT_ID(label)}|{label.options['font_script_name']}"


def _shaped_extents(label, text):
    runs = _runs_as_seen(label, text)
    if len(runs) > 1:
        wides, highs = zip(*(_shaped_extents(label, run) for run in runs), strict=True)
        return sum(wides), max(highs)
    if _go_way(label, text):
        _draw_blank(label)
    return _BY_KIVY["get_extents"](label, text)


def _draw_blank(label):
    """Draw a blank nowhere, so that the font is told its script."""
    kept = {name: getattr(label, name, None) for name in ("_size", "_surface")}
    label._size = 1, 1
    label._render_begin()
    _BY_KIVY["_render_text"](label, " ", 0, 0)
    vars(label).update(kept)


def _runs_as_seen(label, text):
    """Return the runs of a text that is drawn by itself, from left to right; of a line's words each is one already."""
    by_itself = not (getattr(label, "way", None) or "level" in label.options)
    return runs_as_seen(text) if by_itself and goes_left(text) else (text,)


def _shaped_text(label, text, x, y):
    runs = _runs_as_seen(label, text)
    if len(runs) > 1:
        for run in runs:
            _shaped_text(label, run, x, y)
            x += _shaped_extents(label, run)[0]
        return
    _go_way(label, text)
    _BY_KIVY["_render_text"](label, text, x, y)


if CoreLabel.__name__ == "LabelSDL2":
    _KIVY_FONT_ID = CoreLabel._get_font_id
    CoreLabel._get_font_id = _shaped_font_id
    CoreLabel.get_extents, CoreLabel._render_text = _shaped_extents, _shaped_text

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


# ---- both ways: lines in which some runs go from right to left, as they stand (Unicode's rules, UAX 9)
#
# Kivy lays out the words of a line as they are written, and draws each the way that its font is told. So the words of a line
# that Kivy has laid out, and wrapped, are put in the order in which they stand: in all that shows markup. What stands by
# itself in a line, such as a name among facts, is set apart: it has a way of its own, and turns nothing around it. That is told
# in the tag of the language, which SDL2 has no other use for; Unicode's own marks for that count for nothing here.

# what a letter is by its bidirectional category: R and A (of Arabic) go left; E and N are figures, S, C and T what stands in and
# at these; o is what takes the way of its neighbours, M what belongs to the letter before it
LETTERS = {
    "L": "L",
    "R": "R",
    "AL": "A",
    "EN": "E",
    "AN": "N",
    "ES": "S",
    "CS": "C",
    "ET": "T",
    "NSM": "M",
}
PAIRS = dict(zip("([{<\u00ab\u2039", ")]}>\u00bb\u203a", strict=True))
MIRRORED = {**PAIRS, **{shut: opened for opened, shut in PAIRS.items()}}
FIRST_LEFTWARD = "\u0590"
SIDE_OF = {"ltr": "left", "rtl": "right"}  # where the lines of a paragraph begin


def goes_left(text: str) -> bool:
    """Whether some of a text goes from right to left."""
    if text.isascii() or max(text) < FIRST_LEFTWARD:
        return False
    return any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in text)


def base_of(text: str) -> str:
    """Return the way of a paragraph, "ltr" or "rtl": that of its first letter."""
    strong = (LETTERS.get(unicodedata.bidirectional(char)) for char in text)
    first = next((letter for letter in strong if letter in ("L", "R", "A")), "L")
    return "ltr" if first == "L" else "rtl"


def levels_of(text: str, way: str = "") -> list:
    """Return the level of each letter of a paragraph: runs of odd ones go from right to left. Source: UAX 9."""
    base = "R" if (way or base_of(text)) == "rtl" else "L"
    letters = "".join(LETTERS.get(unicodedata.bidirectional(char), "o") for char in text)
    sides = _with_neutrals(_with_pairs(text, _with_figures(letters, base), base), base)
    level = {"L": 2 * (base == "R"), "R": 1, "E": 2, "N": 2}
    return [level[side] for side in sides]


def _with_figures(letters, base):
    """Return the letters with figures settled, and what stands in them: rules W1 to W7."""
    letters = re.sub("(.)(M+)", lambda m: m[1] * len(m[0]), base + letters)
    letters = re.sub("A[^LR]*", lambda m: m[0].replace("E", "N"), letters)
    letters = re.sub("(?<=E)[SC](?=E)", "E", letters.replace("A", "R"))
    letters = re.sub("(?<=N)C(?=N)", "N", letters)
    letters = re.sub("T+(?=E)|(?<=E)T+", lambda m: "E" * len(m[0]), letters)
    letters = re.sub("L[^R]*", lambda m: m[0].replace("E", "L"), letters)
    return re.sub("[SCT]", "o", letters)[1:]


def _with_pairs(text, letters, base):
    """Return the letters with those of brackets settled: both of a pair go one way. Source: rule N0."""
    made, opened, found = list(letters), [], []
    for at, char in enumerate(text):
        if made[at] == "o" and char in PAIRS:
            opened.append(at)
        elif made[at] == "o" and char in PAIRS.values():
            start = next((one for one in reversed(opened) if PAIRS[text[one]] == char), None)
            if start is not None:
                del opened[opened.index(start) :]
                found.append((start, at))
    for start, end in sorted(found):
        side = _side_of_pair(made, start, end, base)
        if side:
            made[start] = made[end] = side
    return "".join(made)


def _side_of_pair(letters, start, end, base):
    """Return the side of a pair of brackets, or None where nothing in it has one."""
    inside = {_side(letter) for letter in letters[start + 1 : end]} - {None}
    if base in inside or not inside:
        return base if inside else None
    before = next((_side(one) for one in reversed(letters[:start]) if _side(one)), base)
    return before if before in inside else base


def _side(letter):
    return {"L": "L", "R": "R", "E": "R", "N": "R"}.get(letter)


def _with_neutrals(letters, base):
    """Return the letters where blanks and signs have the side of both neighbours, else that of the line."""

    def settled(found):
        before, after = _side(found[1]), _side(found[3])
        return found[1] + (before if before == after else base) * len(found[2])

    return re.sub("([LREN])(o+)(?=([LREN]))", settled, f"{base}{letters}{base}")[1:-1]


def seen_order(levels: list) -> list:
    """Return the numbers of runs with levels as they stand from left to right."""
    order = list(range(len(levels)))
    for level in range(max(levels, default=0), 0, -1):
        made = []
        for turns, group in itertools.groupby(order, lambda run, level=level: levels[run] >= level):
            part = list(group)
            made += part[::-1] if turns else part
        order = made
    return order


def runs_of(levels: list) -> list:
    """Return [(start, end, level)] of letters that stand together."""
    made, start = [], 0
    for level, group in itertools.groupby(levels):
        end = start + len(list(group))
        made.append((start, end, level))
        start = end
    return made


def as_drawn(said: str, level: int) -> str:
    """Return a run as it is given to its font, which turns letters of scripts that go left, and nothing else."""
    if level % 2 == 0 or way_of(said)[1] == "rtl":
        return said
    return "".join(MIRRORED.get(char, char) for char in reversed(said))


@functools.lru_cache(maxsize=256)
def runs_seen(text: str) -> tuple:
    """Return (start, end, level) of the runs of a line as they stand from left to right."""
    runs = runs_of(levels_of(text))
    return tuple(runs[number] for number in seen_order([level for *_, level in runs]))


def runs_as_seen(text: str) -> tuple:
    """Return the runs of a line as they are drawn, from left to right."""
    return tuple(as_drawn(text[start:end], level) for start, end, level in runs_seen(text))


def apart(said: str, way: str) -> str:
    """Return markup that goes a way of its own, whatever stands around it."""
    return f"[text_language={way}]{said}[/text_language]" if TURNS else said


def _parts_apart(words):
    """Return [(way or None, number of letters)] of words: what is set apart, and what is between."""
    ways = ((word.options["text_language"], len(word.text)) for word in words)
    grouped = itertools.groupby(ways, lambda one: one[0])
    return [
        (way if way in ("ltr", "rtl") else None, sum(n for _, n in group)) for way, group in grouped
    ]


def _levels_of_words(words):
    """Return the level of each letter of a paragraph's words, with what is set apart in it."""
    text, parts, at, outer = "".join(word.text for word in words), _parts_apart(words), 0, ""
    for way, count in parts:
        outer += "\ufffc" * count if way else text[at : at + count]
        at += count
    levels, at = levels_of(outer, base_of(outer)), 0
    for way, count in parts:
        if way:
            inner, is_left = levels_of(text[at : at + count], way), way == "rtl"
            lifted = levels[at] + (1 if levels[at] % 2 != is_left else 2) - is_left
            levels[at : at + count] = [lifted + level for level in inner]
        at += count
    return levels


def _turn_lines(label, lines):
    """Put the words of lines that Kivy has laid out in the order in which they stand."""
    paragraphs = []
    for line in lines:
        if line.line_wrap and paragraphs:
            paragraphs[-1].append(line)
        else:
            paragraphs.append([line])
    for one in paragraphs:
        words = [word for line in one for word in line.words]
        if any(goes_left(word.text) for word in words):
            _turn_paragraph(label, one, _levels_of_words(words))


def _turn_paragraph(label, lines, levels):
    base, at = min(levels), 0
    for line in lines:
        count = sum(len(word.text) for word in line.words)
        text = "".join(word.text for word in line.words)
        mine, at = levels[at : at + count], at + count
        ended = len(text.rstrip(" "))
        mine[ended:] = [base] * (count - ended)  # blanks at an end stand at the end: rule L1
        _turn_line(label, line, mine)


def _turn_line(label, line, levels):
    """Put a line's words in order; each run tells in its options where it stands in what the line says."""
    runs, at, kept = [], 0, label.options
    for word in line.words:
        for start, end, level in runs_of(levels[at : at + len(word.text)]):
            said = word.text[start:end]
            label.options = {**word.options, "said": said, "at": at + start, "level": level}
            drawn = as_drawn(said, level)
            wide = label.get_extents(drawn)[0]
            runs.append(LayoutWord(label.options, wide, word.lh, drawn))
        at += len(word.text)
    label.options = kept
    line.w += sum(run.lw for run in runs) - sum(word.lw for word in line.words)
    line.words = [runs[number] for number in seen_order([run.options["level"] for run in runs])]


_LAID_OUT = MarkupLabel._pre_render


def _laid_out_and_turned(label):
    size = _LAID_OUT(label)
    if goes_left(label.label):
        _turn_lines(label, label._cached_lines)
    return size


TURNS = CoreLabel.__name__ == "LabelSDL2"  # others than SDL2 turn lines themselves, or nothing
if TURNS:
    MarkupLabel._pre_render = _laid_out_and_turned


# ---- look: colours by theme, one scale of type, texts cut and measured

THEMES = ("dark", "light")
DENSITIES = {"comfortable": 1.0, "compact": 0.8}  # what the room around the texts of a row is times
ZOOMS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0)
SMALL, BODY, LEAD, TITLE = 12.5, 14, 16, 20  # sp
READABLE = 4.5  # contrast of text, WCAG 2 level AA
NOBODY = "Roboto"  # Kivy's own family, with its bold and italic
LOOK = {"theme": THEMES[0], "density": next(iter(DENSITIES))}


@functools.lru_cache(maxsize=2)
def palette(theme: str) -> dict:
    """Return {tone: colour} of a theme; the accent is moved until it can be read."""
    tones = {**SPEC["palette"], **(SPEC["light"] if theme == "light" else {})}
    grounds = [tones[name] for name in ("ground", "panel", "raised", "chosen")]
    return {**tones, "accent": legible(SPEC["accent"], grounds, tones["ink"])}


def colour(tone: str) -> str:
    """Return the hex colour of a tone of the palette."""
    return palette(LOOK["theme"]).get(tone, tone)


def _lightness(hexed):
    """Return the relative luminance of a colour. Source: WCAG 2."""
    parts = get_color_from_hex(hexed)[:3]
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@functools.lru_cache(maxsize=1024)
def contrast(one, other):
    """Return how well two colours can be told apart, from 1 to 21. Source: WCAG 2."""
    low, high = sorted((_lightness(one), _lightness(other)))
    return (high + 0.05) / (low + 0.05)


def _mixed(one, other, share):
    """Return a colour that is another by a share."""
    pairs = zip(get_color_from_hex(one)[:3], get_color_from_hex(other)[:3], strict=True)
    return "#" + "".join(f"{round(255 * (a + (b - a) * share)):02x}" for a, b in pairs)


def legible(tone, grounds, ink):
    """Return a tone, moved towards the ink as far as it must be so that it can be read on all grounds."""
    for share in range(0, 11):
        moved = _mixed(tone, ink, share / 10)
        if all(contrast(moved, ground) >= READABLE for ground in grounds):
            return moved
    return ink


def marked(
    text: str, tone: str = "", hits: Iterable = (), bold: bool = False, way: str = ""
) -> str:
    """Return untrusted text as markup: escaped, drawn in fonts that have it, in a tone; spans `hits` stand on a ground.

    It goes the way of its first letter, or of the paragraph that it is a line of, whatever stands beside it.
    """
    text, parts, at = plain(text)[:SHOWN_CHARS], [], 0
    for start, end in hits:
        if start >= at:
            parts += [_drawn(text[at:start]), "[ref=hit]", _drawn(text[start:end]), "[/ref]"]
            at = end
    said = "".join([*parts, _drawn(text[at:])])
    said = apart(said, way or base_of(text)) if goes_left(text) else said
    said = f"[b]{said}[/b]" if bold else said
    return f"[color={colour(tone)}]{said}[/color]" if tone else said


def unmarked(said: str) -> str:
    """Return the text that markup shows."""
    said = re.sub(r"\[/?\w[^\[\]]*\]", "", said)
    return said.replace("&bl;", "[").replace("&br;", "]").replace("&amp;", "&")


@functools.lru_cache(maxsize=20_000)
def _advance(char, font, size, bold):
    """Return how wide a character is, in pixels, in the font that has it."""
    if unicodedata.category(char) in BARE:
        return 0
    return MarkupLabel(
        font_name=FONTS.font_for(char) or font, font_size=size, bold=bold
    ).get_extents(char)[0]


def width_in(text, size=BODY, bold=False, font=NOBODY):
    """Return how wide a line of text is, in pixels."""
    pixels = sp(size)
    return sum(_advance(char, font, pixels, bold) for char in text)


def fitting(text, width, size=BODY, bold=False, font=NOBODY):
    """Return how many of a text's characters fit into a width."""
    pixels, used = sp(size), 0.0
    for number, char in enumerate(text):
        used += _advance(char, font, pixels, bold)
        if used > width:
            return number
    return len(text)


def cut(text: str, width: float, size: float = BODY, bold: bool = False) -> str:
    """Return a text in one line that fits, with an ellipsis where it did not."""
    text = " ".join(plain(text[:2000]).split())
    fits = fitting(text, width, size, bold)
    if fits == len(text):
        return text
    return (
        text[: max(1, fitting(text, width - width_in("\u2026", size, bold), size, bold))].rstrip()
        + "\u2026"
    )


def lines_in(
    text: str,
    width: float,
    size: float = BODY,
    most: int = 0,
    bold: bool = False,
    font: str = NOBODY,
) -> list:
    """Return the (start, end) of a text's lines at a width, cut at blanks where there are some; no more than `most`."""
    spans, start = [], 0
    while start < len(text) and not (most and len(spans) == most):
        end = start + max(1, fitting(text[start : start + 400], width, size, bold, font))
        blank = text.rfind(" ", start, end + 1)
        if end < len(text) and blank > start:
            spans.append((start, blank))
            start = blank + 1
        else:
            spans.append((start, end))
            start = end
    return spans


def in_lines(text: str, width: float, size: float = BODY, most: int = 3) -> list:
    """Return a text as at most so many lines of a width, the last with an ellipsis where it goes on."""
    text = " ".join(plain(text[: 400 * most]).split())
    spans = lines_in(text, width, size, most)
    lines = [text[start:end] for start, end in spans]
    if spans and spans[-1][1] < len(text):
        lines[-1] = cut(text[spans[-1][0] :], width, size)
    return lines


def lines_marked(text: str, width: float, tone: str = "", most: int = 3) -> list:
    """Return markup of a text's lines, as in_lines; each goes the way of the whole."""
    way = base_of(text)
    return [marked(line, tone, way=way) for line in in_lines(text, width, most=most)]


def cut_markup(said, width, size=BODY, font=NOBODY):
    """Return markup of one line that fits, with an ellipsis where it did not."""
    pixels, room, used, is_bold, opened, at = sp(size), width - sp(size) * 0.8, 0.0, False, [], None
    for found in re.finditer(r"\[(/?)(\w+)[^\]]*\]|&\w+;|.", said, re.DOTALL):
        if found[2]:
            opened = opened[:-1] if found[1] else [*opened, found[2]]
            is_bold = "b" in opened
            continue
        used += _advance(unmarked(found[0]), font, pixels, is_bold)
        if used <= room:
            at = found.end(), list(opened)
        elif used > width:
            break
    if used <= width or at is None:
        return said
    end, opened = at
    return said[:end].rstrip() + "\u2026" + "".join(f"[/{name}]" for name in reversed(opened))


@functools.lru_cache(maxsize=128)  # more than a window shows: each holds its picture
def text_of(
    said: str,
    font: str,
    size: float,
    width: float,
    lines: int,
    halign: str = "left",
    line_height: float = 1.0,
) -> MarkupLabel:
    """Return a label that has drawn markup: its texture, and in refs the boxes of what stands on a ground."""
    label = MarkupLabel(
        text=cut_markup(said, width, size, font) if lines == 1 else said,
        font_name=font,
        font_size=sp(size),
        text_size=(width, None),
        halign=halign,
        valign="top",
        max_lines=lines,
        line_height=line_height,
        color=get_color_from_hex(colour("ink")),
    )
    label.refresh()
    if label.texture and "[ref=" in said:
        label.texture.bind()  # it is drawn, and the boxes told, when it is used first
    return label


# strokes in a square of 24: points, or ("o", x, y, radius)
ICONS = {
    "search": [("o", 10.5, 13.5, 6.5), (15.2, 8.8, 21, 3)],
    "ask": [
        (4, 20, 20, 20, 20, 8, 12, 8, 7, 3.5, 7, 8, 4, 8, 4, 20),
        (8, 16, 16, 16),
        (8, 12, 13, 12),
    ],
    "objects": [
        (12, 22, 20, 17.5, 20, 7, 12, 2, 4, 7, 4, 17.5, 12, 22),
        (4, 17.5, 12, 12.5, 20, 17.5),
        (12, 12.5, 12, 2),
    ],
    "messages": [(3, 19, 21, 19, 21, 5, 3, 5, 3, 19), (3, 18, 12, 11, 21, 18)],
    "experts": [
        (12, 21, 21, 16, 12, 11, 3, 16, 12, 21),
        (3, 11.5, 12, 6.5, 21, 11.5),
        (3, 7, 12, 2, 21, 7),
    ],
    "life": [(2, 12, 7, 12, 10, 20, 14, 4, 17, 12, 22, 12)],
    "pages": [(4, 21, 20, 21, 20, 3, 4, 3, 4, 21), (8, 8, 8, 12), (12, 8, 12, 16), (16, 8, 16, 13)],
    "commands": [(5, 19, 12, 12, 5, 5), (13, 5, 20, 5)],
    "theme": [("o", 12, 12, 5), (12, 20, 12, 22), (12, 2, 12, 4), (2, 12, 4, 12), (20, 12, 22, 12)],
}


# ---- selecting: text that is chosen with the mouse, in whatever shows it
#
# A place in what a widget shows is (row, line, character): a row of a list (0 in what is no list), a line of what is drawn
# of it as Kivy laid it out, a character of that line. Places follow one another as their text does.

DRAGGED = 4  # dp that the mouse moves, held down, until it chooses text
ALL = 10**9  # more than there are lines, or characters
CHOSEN_ALPHA = 0.3  # of the accent over what is chosen, as in a field


def _said_words(line):
    """Return [(first, x, word, what it says)] of a line's words in the order of what it says: `first` is the number of the
    word's first character, x how far from the label's left it stands."""
    x, count, made = line.x, 0, []
    for number, word in enumerate(line.words):
        said = word.options.get("said", word.text)
        made.append((word.options.get("at", count), number, x, word, said))
        x += word.lw
        count += len(said)
    return [(first, *told_of) for first, _, *told_of in sorted(made, key=lambda one: one[:2])]


def line_text(line: typing.Any) -> str:
    """Return what a line says that Kivy laid out."""
    return "".join(said for *_, said in _said_words(line))


def _wide_until(label, word, said, count):
    """Return how far from a word's left its `count`-th character begins; from its right, where it goes that way."""
    kept, label.options = label.options, word.options
    wide = label.get_extents(said[:count])[0] if count else 0
    label.options = kept
    return word.lw - wide if word.options.get("level", 0) % 2 else wide


def x_of(label: typing.Any, line: typing.Any, char: int) -> float:
    """Return how far from a label's left a character of a line begins."""
    end = line.x
    for first, x, word, said in _said_words(line):
        if char <= first + len(said):
            return x + _wide_until(label, word, said, char - first)
        end = max(end, x + word.lw)
    return end


def char_at(label: typing.Any, line: typing.Any, x: float) -> int:
    """Return before which character of a line a place stands, `x` from the label's left."""
    for first, left, word, said in sorted(_said_words(line), key=lambda one: one[1]):
        if x <= left + word.lw:
            near = [abs(left + _wide_until(label, word, said, n) - x) for n in range(len(said) + 1)]
            return first + near.index(min(near))
    return len(line_text(line))


def _parts_between(label, line, start, end):
    """Return [(x, right)] of what a line shows of the characters between two: in a line of both ways these stand apart."""
    parts = []
    for first, x, word, said in _said_words(line):
        low, high = max(start, first) - first, min(end, first + len(said)) - first
        if low < high:
            parts.append(sorted(x + _wide_until(label, word, said, n) for n in (low, high)))
    joined = []
    for left, right in sorted(parts):
        if joined and left <= joined[-1][1]:
            joined[-1][1] = max(right, joined[-1][1])
        else:
            joined.append([left, right])
    return joined


def _each_line(drawn):
    """Return [(left, top, label, line)] of what labels draw; drawn: [(left, top, label)], from above."""
    return [
        (left, top - line.y, label, line)
        for left, top, label in drawn
        for line in label._cached_lines
    ]


def place_in(drawn: list, x: float, y: float) -> tuple:
    """Return the (line, character) nearest to a place."""
    lines = _each_line(drawn)
    if not lines:
        return 0, 0
    number = max((n for n, one in enumerate(lines) if y <= one[1]), default=0)
    left, _, label, line = lines[number]
    return number, char_at(label, line, x - left)


def boxes_between(drawn: list, first: tuple, last: tuple) -> list:
    """Return [(x, y, width, height)] of what is drawn between two (line, character)."""
    boxes = []
    for number, (left, top, label, line) in enumerate(_each_line(drawn)):
        start = first[1] if number == first[0] else 0
        end = min(last[1] if number == last[0] else ALL, len(line_text(line)))
        if first[0] <= number <= last[0] and end > start:
            for low, high in _parts_between(label, line, start, end):
                boxes.append((left + low, top - line.h, high - low, line.h))
    return boxes


def joined_between(lines: list, first: tuple, last: tuple) -> str:
    """Return the text between two (line, character); lines: [(text, what stands before it unless it is the first)]."""
    said = ""
    for number, (text, before) in enumerate(lines[first[0] : last[0] + 1], first[0]):
        start = first[1] if number == first[0] else 0
        end = last[1] if number == last[0] else len(text)
        said += (before if number > first[0] else "") + text[start:end]
    return said


class TextChoice:
    """The text that is chosen in the window: one at a time, in one widget, which draws it and tells what it says."""

    def __init__(self):
        self.owner, self.anchor, self.end = None, (0, 0, 0), (0, 0, 0)

    def begin(self, touch: typing.Any, owner: Widget, place: tuple) -> None:
        """Remember where the mouse was pressed; nothing is chosen yet."""
        touch.ud["text"] = owner, place

    def follow(self, touch: typing.Any, owner: Widget) -> bool:
        """Choose from where the mouse was pressed to where it is; returns whether it was pressed in this widget."""
        pressed_in, place = touch.ud.get("text", (None, None))
        if pressed_in is not owner:
            return False
        moved = max(abs(touch.x - touch.ox), abs(touch.y - touch.oy)) >= dp(DRAGGED)
        if moved or self.owner is owner:
            self.owner, self.anchor, self.end = owner, place, owner.place_at(touch.x, touch.y)
            owner.show_choice()
        return True

    def between(self, owner: Widget) -> tuple:
        """Return the (first, last) place that is chosen in a widget; nothing is between them where none is."""
        if self.owner is not owner:
            return (0, 0, 0), (0, 0, 0)
        return tuple(sorted((self.anchor, self.end)))

    def clear(self) -> None:
        """Choose nothing."""
        had, self.owner = self.owner, None
        if had is not None:
            had.show_choice()

    def said(self) -> str:
        """Return what is chosen."""
        return self.owner.said_between(*self.between(self.owner)) if self.owner else ""

    def copy(self) -> bool:
        """Put what is chosen into the clipboard; returns whether anything is."""
        said = self.said()
        if said:
            copy_text(said)
        return bool(said)


CHOICE = TextChoice()


def copy_text(said: str, lines: int = 0) -> None:
    """Put a text into the clipboard, and say so: how many `lines` it is, as they were chosen, or as it has them."""
    from kivy.core.clipboard import Clipboard

    Clipboard.copy(said)
    lines = lines or said.count("\n") + 1
    App.get_running_app().inspector.say(f"copied {lines} {'line' if lines == 1 else 'lines'}")


def is_click(touch: typing.Any, name: str) -> bool:
    """Whether a button of the mouse was pressed: left, which a touch without buttons is as well, or right."""
    return (getattr(touch, "button", None) or "left") == name


# ---- widgets


def tell_kv() -> None:
    """Tell the rules of kv the colours and sizes; what is made from now on has them."""
    tones = {
        name.upper(): get_color_from_hex(tone) for name, tone in palette(LOOK["theme"]).items()
    }
    sizes = {"SMALL": sp(SMALL), "BODY": sp(BODY), "LEAD": sp(LEAD), "TITLE": sp(TITLE)}
    nothing = {"CLEAR": (0, 0, 0, 0), "NOWHERE": (0, 0, 0, 0, 0)}  # what is nowhere is not drawn
    kv_names.update({**tones, **sizes, **nothing, "MONO": FONTS.mono})


LONG_LINE = 400  # characters of a line of a field that are one texture


class Unchorded:
    """What is mixed into a field: X11 tells Ctrl+1 as a key and as the text "1"; a chord is no text, but with AltGr it may be."""

    def keyboard_on_textinput(self, keyboard, text):
        modifiers = App.get_running_app().root_window.modifiers
        if "ctrl" not in modifiers or "alt" in modifiers:
            super().keyboard_on_textinput(keyboard, text)

    def on_touch_down(self, touch):
        if not (self.collide_point(*touch.pos) and is_click(touch, "right")):
            return super().on_touch_down(touch)
        self._offer(touch)
        return True

    def on_scroll_x(self, *_):
        """Show as much of a line as there is room for: Kivy leaves the start of a shorter text behind the left edge."""
        row = int(self.cursor_row)
        if row < len(self._lines):
            left, _, right, _ = self.padding
            hidden = self._wide(self._lines[row]) - (self.width - left - right)
            self.scroll_x = min(self.scroll_x, max(0, hidden))

    def _create_line_label(self, text, hint=False):
        return super()._create_line_label(text[:LONG_LINE], hint)

    def _draw_line(self, value, line_num, texture, viewport_pos, *where):
        if len(value) > LONG_LINE:
            texture, viewport_pos = self._part_seen(value, *viewport_pos)
        return super()._draw_line(value, line_num, texture, viewport_pos, *where)

    def _part_seen(self, line, left, low):
        """Return the texture of what is seen of a long line, and where the view begins in it: no texture holds it whole."""

        def wide(count):
            return self._wide(line[:count])

        every = range(len(line))
        first = max(0, bisect.bisect_right(every, left, key=wide) - 1)
        last = bisect.bisect_left(every, left + self.width, key=wide)
        return super()._create_line_label(line[first : last + 1]), (left - wide(first), low)

    def cursor_offset(self):
        row, line = int(self.cursor_row), ""
        if row < len(self._lines):
            line = self._lines[row]
        return (
            self._seen_x(line, int(self.cursor_col)) if goes_left(line) else super().cursor_offset()
        )

    def get_cursor_from_xy(self, x, y):
        column, row = super().get_cursor_from_xy(x, y)
        line = self._lines[row]
        if not goes_left(line):
            return column, row
        place = x - self.x - self.padding[0] + self.scroll_x
        places = [abs(self._seen_x(line, one) - place) for one in range(len(line) + 1)]
        return places.index(min(places)), row

    def _seen_x(self, line, column):
        """Return where a place between two letters stands in a line of which some goes left: behind the one before it."""
        x = 0
        for start, end, level in runs_seen(line):
            wide = self._wide(line[start:end])
            if start < column <= end or column == start == 0:
                part = self._wide(line[start:column])
                return x + (wide - part if level % 2 else part)
            x += wide
        return x

    def _wide(self, text):
        return self._get_text_width(text, self.tab_width, self._label_cached) if text else 0

    def colour_of(self, text: str) -> list:
        """Return the colour of the text, or of the hint where there is none."""
        return self.foreground_color if text else self.hint_text_color

    def shows_cursor(self, place: tuple) -> bool:
        """Whether the cursor's place is inside of me."""
        left, _, right, _ = self.padding
        return int(self.x + left) <= place[0] <= int(self.right - right)

    def _offer(self, touch):
        """Offer what can be done with the text, or with what is chosen of it."""
        FocusBehavior.ignored_touch.append(touch)  # to let it go leaves the cursor where it is
        chosen = (self.selection_from, self.selection_to) if self.selection_text else None
        does = {"Cut": self.cut, "Copy": self.copy} if chosen else {}
        does |= {"Paste": self.paste, "Choose all": self.select_all}

        def do(then):
            self.focus = True
            if chosen:  # the menu had the keyboard
                self.select_text(min(chosen), max(chosen))
            then()

        Menu.offer(touch, [(name, functools.partial(do, then)) for name, then in does.items()])


Factory.register("Unchorded", cls=Unchorded)
SHARED_KV = """
<Label>:
    color: INK
    font_size: BODY

<Words>:
    markup: True
    size_hint_y: None
    text_size: self.width, None
    height: max(self.texture_size[1], self.least)
    halign: 'left'
    valign: 'top'

<Caption@Words>:
    font_size: SMALL
    color: SOFT

<Field@Unchorded+TextInput>:
    accept_tab: False
    multiline: False
    write_tab: False
    text_validate_unfocus: False
    size_hint_y: None
    height: dp(36)
    padding: dp(10), dp(9)
    cursor_blink: False
    cursor_width: dp(2)
    font_size: BODY
    mono: False
    font_name: app.input_font(self.text, self.mono)
    foreground_color: INK
    disabled_foreground_color: FAINT
    hint_text_color: FAINT
    cursor_color: ACCENT
    selection_color: ACCENT[:3] + [0.3]
    canvas.before:
        Clear:  # Kivy's cursor stands below a ground that is added
        Color:
            rgba: RAISED
        RoundedRectangle:
            pos: self.pos
            size: self.size
            radius: [dp(7)]
        Color:
            rgba: ACCENT if self.focus else EDGE
        Line:
            width: 1.4 if self.focus else 1
            rounded_rectangle: self.x, self.y, self.width, self.height, dp(7)
        Color:
            rgba: self.cursor_color if self.focus and self.shows_cursor(self._cursor_visual_pos) else CLEAR
        Rectangle:
            pos: self._cursor_visual_pos
            size: self.cursor_width, -self._cursor_visual_height
        Color:
            rgba: self.disabled_foreground_color if self.disabled else self.colour_of(self.text)

<Code@Field>:
    multiline: True
    size_hint_y: 1
    mono: True
    font_size: sp(13.5)

# a line that cannot be seen is thin: a wide one with alpha costs a stencil
<Push>:
    markup: True
    size_hint: None, None
    height: dp(34)
    width: max(self.texture_size[0] + dp(26), dp(36))
    font_size: BODY
    color: FAINT if self.disabled else GROUND if self.strong else INK
    disabled_color: FAINT
    canvas.before:
        Color:
            rgba: self.ground_of(self.strong, self.down, self.state, self.quiet, self.disabled)
        RoundedRectangle:
            pos: self.pos
            size: self.size if self.down or self.strong or not self.quiet or self.state == 'down' else (0, 0)
            radius: [dp(7)]
        Color:
            rgba: (INK if self.strong else ACCENT) if self.focus else EDGE
        Line:
            width: 1.4 if self.focus else 1
            rounded_rectangle: self.edge_of(self.pos, self.size, self.focus, self.strong or self.quiet or self.down)

<Bare@Push>:
    height: dp(30)

<Tab>:
    height: dp(34)
    width: self.texture_size[0] + dp(22)
    quiet: True
    color: INK if self.down else SOFT
    canvas.before:
        Clear:
        Color:
            rgba: ACCENT if self.down else CLEAR
        Rectangle:
            pos: self.x + dp(11), self.y
            size: self.width - dp(22), dp(2)
        Color:
            rgba: ACCENT if self.focus else CLEAR
        Line:
            width: 1.4 if self.focus else 1
            rounded_rectangle: self.edge_of(self.pos, self.size, self.focus, True)

<Pane>:
    orientation: 'vertical'
    padding: dp(12)
    spacing: dp(8)
    tone: PANEL

<Framed>:
    orientation: 'vertical'
    canvas.before:
        Color:
            rgba: EDGE
        RoundedRectangle:
            pos: self.x - dp(1), self.y - dp(1)
            size: self.width + dp(2), self.height + dp(2)
            radius: [dp(8)]
        Color:
            rgba: RAISED
        RoundedRectangle:
            pos: self.pos
            size: self.size
            radius: [dp(7)]

<Strip@BoxLayout>:
    size_hint_y: None
    height: dp(36)
    spacing: dp(8)

<Flow@StackLayout>:
    size_hint_y: None
    height: self.minimum_height
    spacing: dp(8)

<Tabs>:
    size_hint_y: None
    height: dp(36)
    canvas.before:
        Color:
            rgba: EDGE
        Rectangle:
            pos: self.pos
            size: self.width, dp(1)

<Rows>:
    always_overscroll: False
    bar_width: dp(8)
    bar_color: EDGE
    bar_inactive_color: EDGE
    scroll_type: ['bars']  # the mouse held down chooses text
    scroll_wheel_distance: dp(60)
    viewclass: 'Row'
    canvas.after:
        Color:
            rgba: ACCENT if self.focus else CLEAR
        Line:
            width: 1.2 if self.focus else 1
            rounded_rectangle: (self.x, self.y, self.width, self.height, dp(6)) if self.focus else NOWHERE
    RowsLayout:
        default_size: None, None
        default_size_hint: 1, None
        size_hint_y: None
        height: self.minimum_height
        orientation: 'vertical'

<Reader>:
    orientation: 'vertical'
    spacing: dp(8)
    Strip:
        height: dp(34) if root.title else 0
        opacity: 1 if root.title else 0
        Words:
            text: root.old + root.title
            size_hint_y: 1
            text_size: self.size
            valign: 'middle'
            shorten: False
            max_lines: 1
        Push:
            text: 'Wide'
            quiet: True
            disabled: not root.title or root.wide
            opacity: 0 if root.wide else 1
            on_release: root.widen()
        Push:
            text: 'Close'
            quiet: True
            disabled: not root.title or root.wide
            opacity: 0 if root.wide else 1
            on_release: root.close()
    Rows:
        id: rows
        clicks: 2
        empty: root.hint
        on_open: root.go_on(self.chosen_row)

<Dialog>:
    size_hint: 0.74, 0.82
    auto_dismiss: False
    background: ''
    background_color: CLEAR
    overlay_color: 0, 0, 0, 0.55
    Pane:
        padding: dp(20)
        spacing: dp(12)
        Words:
            text: root.title
            font_size: TITLE
            height: self.texture_size[1] if self.text else 0
        Caption:
            text: root.note
            height: self.texture_size[1] if self.text else 0
        BoxLayout:
            id: body
            orientation: 'vertical'
            spacing: dp(8)
        Strip:
            id: buttons
            Widget:
"""


class Clip:
    """What clips a widget's drawing by scissors, which cost nothing where stencils cost a third of a frame without a
    graphics card. Such a widget stands in nothing that scrolls or turns."""

    def __init__(self, widget):
        self.widget = widget
        self._scissors = ScissorPush(x=0, y=0, width=1, height=1)
        for group, ends in (
            (widget.canvas.before, self._scissors),
            (widget.canvas.after, ScissorPop()),
        ):
            self._without_stencil(group)
            group.insert(0, ends)
        widget.bind(pos=self._place, size=self._place)
        self._place()

    @staticmethod
    def _without_stencil(group):
        """Take away what draws and uses a stencil, each with the rectangle that it is made of."""
        last = ""
        for one in list(group.children):
            name = type(one).__name__
            if name.startswith("Stencil") or name == "Rectangle" and last.startswith("Stencil"):
                group.remove(one)
            last = last if name == "BindTexture" else name

    def _place(self, *_):
        one, part = self.widget, self._scissors
        part.x, part.y = int(one.x), int(one.y)
        part.width, part.height = max(0, int(one.width)), max(0, int(one.height))


class Pane(BoxLayout):
    """What stands together on a ground with round corners. What lies between the corners is cleared to the ground's colour,
    which without a graphics card is many times cheaper than to draw it; so I stand in nothing that scrolls or turns."""

    tone = ColorProperty((0, 0, 0, 1))
    ROUND = 8  # dp, of the corners

    def __init__(self, **how):
        super().__init__(**how)
        with self.canvas.before:
            self._colour = Color(*self.tone)
            self._bands = [RoundedRectangle(), RoundedRectangle()]
            self._between = ScissorPush(x=0, y=0, width=0, height=0)
            self._cleared = ClearColor(*self.tone)
            ClearBuffers()
            ScissorPop()
        self.bind(pos=self._ground, size=self._ground, tone=self._ground)
        self._ground()

    def _ground(self, *_):
        """Draw the bands with the corners, and clear what is between them."""
        corner, part = dp(self.ROUND), self._between
        self._colour.rgba = self._cleared.rgba = self.tone
        low, high = self._bands
        low.size = high.size = self.width, min(self.height, 2 * corner)
        low.pos, high.pos = self.pos, (self.x, self.top - high.size[1])
        low.radius = high.radius = [corner]
        part.x, part.y = int(self.x), int(self.y + corner)
        part.width = max(0, int(self.right) - part.x)
        part.height = max(0, int(self.top - corner) - part.y)


class Words(Label):
    """A text that takes the height it needs, at least `least`; it can be chosen with the mouse, and copied."""

    least = NumericProperty(0)

    def __init__(self, **how):
        super().__init__(**how)
        self._choice = InstructionGroup()
        self.canvas.after.add(self._choice)
        self.bind(texture=lambda *_: self._forget_choice())

    def _forget_choice(self):
        if CHOICE.owner is self:
            CHOICE.clear()

    def _drawn(self):
        """Return where the text stands, as place_in wants it."""
        wide, high = self.texture_size
        left, top = int(self.center_x - wide / 2), int(self.center_y - high / 2) + high
        return [(left, top, self._label)]

    def place_at(self, x: float, y: float) -> tuple:
        """Return the place of what is shown at a place of the window."""
        return (0, *place_in(self._drawn(), x, y))

    def said_between(self, first: tuple, last: tuple) -> str:
        """Return what the text says between two places."""
        lines = [line_text(line) for line in self._label._cached_lines]
        return joined_between([(line, "\n") for line in lines], first[1:], last[1:])

    def show_choice(self) -> None:
        """Draw what is chosen."""
        self._choice.clear()
        first, last = CHOICE.between(self)
        if first < last:
            self._choice.add(Color(*get_color_from_hex(colour("accent"))[:3], CHOSEN_ALPHA))
            for x, y, wide, high in boxes_between(self._drawn(), first[1:], last[1:]):
                self._choice.add(Rectangle(pos=(x, y), size=(wide, high)))

    def on_touch_down(self, touch):
        if not self.collide_point(*touch.pos) or not self.text or touch.is_mouse_scrolling:
            return super().on_touch_down(touch)
        if is_click(touch, "right"):
            said = CHOICE.said() if CHOICE.owner is self else ""
            Menu.offer(touch, [("Copy", lambda: copy_text(said or unmarked(self.text)))])
            return True
        CHOICE.begin(touch, self, self.place_at(*touch.pos))
        return super().on_touch_down(touch)

    def on_touch_move(self, touch):
        return CHOICE.follow(touch, self) or super().on_touch_move(touch)


class Push(FocusBehavior, ButtonBehavior, Label):
    """A button, also by Enter and Space. `down` shows it as chosen, `strong` as what one most likely wants, `quiet` bare."""

    down, strong, quiet = BooleanProperty(False), BooleanProperty(False), BooleanProperty(False)

    @staticmethod
    def ground_of(strong, down, state, quiet, disabled):
        """Return the colour that stands below the words."""
        shows = {"accent": strong and not disabled, "chosen": down or state == "down", "": quiet}
        tone = next((tone for tone, is_so in shows.items() if is_so), "raised")
        return get_color_from_hex(colour(tone)) if tone else (0, 0, 0, 0)

    @staticmethod
    def edge_of(pos, size, focus, bare):
        """Return the line around it: where it has the keyboard, and where on a light ground nothing else would show it."""
        if bare and not focus:
            return 0, 0, 0, 0, 0  # what is nowhere is not drawn
        return pos[0] + dp(1), pos[1] + dp(1), size[0] - dp(2), size[1] - dp(2), dp(6)

    def keyboard_on_key_down(self, window, keycode, text, modifiers):
        if keycode[1] in ("enter", "numpadenter", "spacebar") and not self.disabled:
            self.dispatch("on_release")
            return True
        return super().keyboard_on_key_down(window, keycode, text, modifiers)


class Tab(Push):
    """One name of Tabs."""


class Chooser(Push):
    """A button that goes through choices; of the first, None, it says that it is `unset`."""

    value, title, choices = ObjectProperty(None, allownone=True), StringProperty(), ListProperty()
    unset = StringProperty("any")

    def on_kv_post(self, _):
        self.bind(value=self._show, title=self._show)
        self._show()

    def _show(self, *_):
        shown = marked(
            self.unset if self.value is None else to_json(self.value, None).strip('"'),
            "" if self.value is None else "accent",
        )
        self.text = f"{marked(self.title, 'soft')}  {shown}"

    def on_release(self):
        if self.choices:
            at = self.choices.index(self.value) if self.value in self.choices else -1
            self.value = self.choices[(at + 1) % len(self.choices)]


class Tabs(BoxLayout):
    """Some names of which one is chosen. A TabbedPanel of Kivy keeps a widget for each; here one list is filled anew."""

    names, chosen = ListProperty(), StringProperty()

    def on_names(self, *_):
        self.clear_widgets()
        for name in self.names:
            push = Tab(text=name.capitalize(), down=name == self.chosen)
            push.name = name
            push.bind(on_release=lambda _, name=name: setattr(self, "chosen", name))
            self.add_widget(push)
        self.add_widget(Widget())

    def on_chosen(self, *_):
        for push in self.children:
            if isinstance(push, Tab):
                push.down = push.name == self.chosen


BAR_WIDE = 56  # dp, of the bar that stands above a side note


class Row(RecycleDataViewBehavior, Widget):
    """A line of a list: text on the left, a side note on the right, perhaps a bar above it.

    I draw my texts myself, from textures that are kept: a list that is scrolled shows them anew and makes few.
    """

    chosen, index = BooleanProperty(False), NumericProperty(0)

    def __init__(self, **how):
        super().__init__(**how)
        self.given, self.labels, self._places, self.text, self.side = {}, [], [], "", ""
        self.rows = None  # the list that I am a line of
        with self.canvas:
            self._tones = {name: Color(0, 0, 0, 0) for name in ("ground",)}
            self._ground = RoundedRectangle(radius=[dp(5)])
        self._inner = InstructionGroup()
        self.canvas.add(self._inner)
        self._anew = Clock.create_trigger(lambda _: self._draw(), -1)
        self.bind(pos=self._anew, size=self._anew, chosen=self._light)

    def refresh_view_attrs(self, rows, index, data):
        self.index, self.given, self.rows = index, data, rows
        self.chosen = rows.holds(index)
        self.text, self.side = data["text"], data["side"]
        self.height = data["height"]
        self._anew()

    def _light(self, *_):
        """Draw the ground of the row, where it has one; rows of one ground are one box."""
        tone = self.rows.ground_of(self.index) if self.rows else None
        self._tones["ground"].rgba = self._tone(tone)
        self._ground.pos, self._ground.size = self.pos, self.size if tone else (0, 0)
        if tone:
            above, below = (self.rows.ground_of(self.index + step) == tone for step in (-1, 1))
            top, low = dp(0 if above else 5), dp(0 if below else 5)
            self._ground.radius = [top, top, low, low]

    @staticmethod
    def _tone(name, share=1.0):
        return (*get_color_from_hex(colour(name))[:3], share) if name else (0, 0, 0, 0)

    def _draw(self):
        """Draw what the row was given, at the place that it has."""
        given, inner = self.given, self._inner
        self._light()
        inner.clear()
        if not given or self.width < 30:
            return
        left, pad = self.x + dp(10) + given["indent"], dp(given["pad"])
        side_width = given["side_width"]
        self.labels = self.labels_of(given, self.width)
        one = given["lines"] == 1
        top = self._top_of(self.labels[0], one, pad)
        self._places = []  # (left, top, label) of each text, for what can be pressed and chosen
        for label in self.labels:
            self._text(label, left, top)
            self._places.append((int(left), top, label))
            top -= label.texture.height if label.texture else 0
        self._show_choice()
        if given.get("margin"):
            self._margin(left, *given["margin"])
        if given.get("lead"):
            font, size = given.get("lead_font", NOBODY), given.get("lead_size", BODY)
            lead = text_of(given["lead"], font, size, int(given["indent"] - dp(12)), 1)
            self._text(lead, self.x + dp(10), self._top_of(lead, one, pad))
        if given["side"]:
            side = text_of(given["side"], NOBODY, SMALL, int(side_width), 3, "right")
            below = dp(16) if given["bar"] >= 0 else dp(2)
            top = self._top_of(side, one and given["bar"] < 0, pad + below)
            self._text(side, self.right - side_width - dp(10), top)
        if given["bar"] >= 0:
            self._bar(given["bar"], pad)

    @staticmethod
    def labels_of(given: dict, wide: float) -> list:
        """Return what a row so wide draws of its text: where it comes in lines, each of them cut to the room."""
        aside = given["side_width"] + dp(8) if given["side_width"] else 0
        width = max(8, int(wide - dp(22) - given["indent"] - aside))
        lines = given["text"].split("\n") if given["each"] else [given["text"]]
        count = 1 if given["each"] else given["lines"]
        how = given["font"], given["type"], width, count, given.get("halign", "left")
        return [text_of(line, *how) for line in lines]

    def _margin(self, left, number, sign, offset):
        """Draw what stands before a text: its line's number, the sign of an item."""
        for said, size, x, tone in (
            (number, 11.5, self.x + self.given.get("aside", 0), "faint"),
            (sign, BODY, left - dp(26), "soft"),
        ):
            if said:
                label = text_of(
                    marked(said, tone),
                    NOBODY,
                    size,
                    int(dp(34 if said is number else 22)),
                    1,
                    "right",
                )
                self._text(label, x, self._top_of(label, True, 0))

    def _top_of(self, label, middle, pad):
        height = label.texture.height if label.texture else 0
        return int(self.center_y + height / 2) if middle else int(self.top - pad)

    def _text(self, label, x, top):
        """Draw a label, and below its texts the grounds that some of it stands on."""
        texture, inner = label.texture, self._inner
        if texture is None:
            return
        inner.add(Color(*self._tone("mark")))
        for name, boxes in label.refs.items():
            for box in boxes if name in ("hit", "span") else ():
                x0, y0, x1, y1 = box
                inner.add(Rectangle(pos=(x + x0 - 1, top - y1), size=(x1 - x0 + 2, y1 - y0)))
        inner.add(Color(1, 1, 1, 1))
        inner.add(Rectangle(texture=texture, pos=(int(x), top - texture.height), size=texture.size))

    def _bar(self, share, pad):
        wide, x, y = dp(BAR_WIDE), self.right - dp(BAR_WIDE + 10), self.top - pad - dp(10)
        for tone, width in (("edge", wide), ("soft", wide * max(0, min(1, share)))):
            self._inner.add(Color(*self._tone(tone)))
            self._inner.add(RoundedRectangle(pos=(x, y), size=(width, dp(5)), radius=[dp(2)]))

    def _show_choice(self):
        """Draw a ground over what is chosen of my text."""
        first, last = self.rows.choice_in(self.index) if self.rows else ((0, 0), (0, 0))
        if first < last:
            self._inner.add(Color(*self._tone("accent", CHOSEN_ALPHA)))
            for x, y, wide, high in boxes_between(self._places, first, last):
                self._inner.add(Rectangle(pos=(x, y), size=(wide, high)))

    def place_at(self, x, y):
        """Return the (line, character) of my text nearest to a place."""
        return place_in(self._places, x, y)

    def ref_at(self, x, y):
        """Return what stands at a place of the text, such as the number of a citation, or None."""
        for left, top, label in self._places:
            for name, boxes in label.refs.items():
                for x0, y0, x1, y1 in boxes if name not in ("hit", "span") else ():
                    if x0 <= x - left <= x1 and y0 <= top - y <= y1:
                        return name
        return None

    def on_touch_down(self, touch):
        rows = self._rows()
        if not self.collide_point(*touch.pos) or rows is None or touch.is_mouse_scrolling:
            return super().on_touch_down(touch)
        rows.focus = True
        if is_click(touch, "right"):
            rows.menu(self.index, touch)
            return True
        CHOICE.begin(touch, rows, (self.index, *self.place_at(*touch.pos)))
        modifiers = App.get_running_app().root_window.modifiers if touch.device == "mouse" else ()
        rows.choose(self.index, extend="shift" in modifiers)
        ref = self.ref_at(*touch.pos)
        if ref is not None:
            rows.dispatch("on_ref", ref)
        elif rows.clicks == 1 or touch.is_double_tap:
            rows.dispatch("on_open")
        elif not touch.is_double_tap and "shift" not in modifiers:
            rows.dispatch("on_look")
        return True

    def _rows(self):
        return self.parent.recycleview if self.parent else None


def row(
    text: str, side: str = "", height: float | None = None, value: typing.Any = None, **how
) -> dict:
    """Return a list row's data; text and side are markup, value is what the row stands for.

    height is in dp; without one it is as many `lines` as the text has, of its `size`, with the room of `pad` around them.
    """
    lines = how.pop("lines", text.count("\n") + 1)
    size, pad = how.pop("size", BODY), how.pop("pad", 6) * DENSITIES[LOOK["density"]]
    tall = dp(height) if height else lines * line_high(size) + 2 * dp(pad) + dp(1)
    plain_of = {
        "bar": -1,
        "indent": 0,
        "font": NOBODY,
        "each": lines > 1 and in_balance(text),
        "side_width": dp(76) if side else 0,
    }
    return {
        **plain_of,
        "text": text,
        "side": side,
        "height": tall,
        "value": value,
        "lines": lines,
        "type": size,
        "pad": pad,
        **how,
    }


def in_balance(text):
    """Whether text comes in lines, each of which is markup by itself."""
    parts = text.split("\n")
    return len(parts) > 1 and all(part.count("[") == 2 * part.count("[/") for part in parts)


@functools.lru_cache(maxsize=64)
def line_high(size: float, font: str = NOBODY) -> float:
    """Return how tall a line of text is, in pixels."""
    return MarkupLabel(font_name=font, font_size=sp(size)).get_extents("Ay")[1]


class RowsLayout(RecycleBoxLayout):
    """Lays rows out below one another; which of many stands at a place is found by halves, not one by one."""

    def get_view_index_at(self, pos):
        lows = self._rv_positions  # the lower edges, from below
        return len(lows) - bisect.bisect_right(lows, pos[1], 1) if lows else 0


NAMED_BY = ("chunk_id", "change", "cycle", "oid", "doc_id")


def stands_for(value):
    """Return what a row's value is of, whatever else is told of it by now."""
    if isinstance(value, tuple):
        return value[:1]
    if not isinstance(value, dict) or "event" in value:  # of one cycle there are many events
        return value
    told_of = value.get("chunk", value)
    return next((told_of[name] for name in NAMED_BY if name in told_of), value)


class Rows(FocusBehavior, RecycleView):
    """A list that takes ten thousand rows. Arrows move, Enter (or `clicks` clicks) opens, the end asks for more.

    Shift chooses several rows, the mouse held down any text of them; Ctrl+C copies that.
    """

    chosen, clicks, empty = NumericProperty(-1), NumericProperty(1), StringProperty()
    MOVES = {"up": -1, "down": 1, "pageup": -12, "pagedown": 12, "home": -(10**9), "end": 10**9}

    def __init__(self, **how):
        self._tops, self.anchor, self._is_empty = [0], -1, True
        super().__init__(**how)
        self.clip = Clip(self)
        self.bind(width=self.on_empty)
        for event in ("on_open", "on_move", "on_more", "on_ref", "on_look"):
            self.register_event_type(event)

    def on_open(self):
        """What is chosen shall be opened."""

    def on_move(self):
        """Another row was chosen."""

    def on_more(self):
        """The end was scrolled to."""

    def on_look(self):
        """What is chosen was clicked once, or Space was pressed on it."""

    def on_ref(self, ref):
        """A part of a text that stands for something was clicked."""

    def on_empty(self, *_):
        if self.layout_manager and self._is_empty:
            self.fill([])

    @property
    def chosen_row(self) -> typing.Any:
        """The value of the chosen row, or None."""
        return self.data[self.chosen]["value"] if 0 <= self.chosen < len(self.data) else None

    def ground_of(self, index: int) -> str | None:
        """Return the tone that a row stands on, or None."""
        if not 0 <= index < len(self.data):
            return None
        return "chosen" if self.holds(index) else self.data[index].get("ground")

    def holds(self, index):
        """Whether a row is among what is chosen."""
        return self.chosen >= 0 and min(self.anchor, self.chosen) <= index <= max(
            self.anchor, self.chosen
        )

    def fill(self, rows: list, keep: bool = False) -> None:
        """Show rows, or the empty text; `keep` keeps what is chosen, and the place."""
        self._is_empty = not rows
        rows = rows or self._nothing()
        above = (1 - self.scroll_y) * self._room() if keep else 0
        chosen = self._place_in(rows) if keep else -1
        self._tops = [0]
        for one in rows:
            self._tops.append(self._tops[-1] + one["height"])
        if CHOICE.owner is self and [one["text"] for one in rows] != [
            one["text"] for one in self.data
        ]:
            CHOICE.clear()
        self.data, self.chosen, self.anchor = rows, chosen, chosen
        room = self._room()
        self.scroll_y = 1 - min(1, above / room) if room else 1
        self._light()

    def _nothing(self):
        """Return the row that says why there is nothing."""
        if not self.empty:
            return []
        lines = max(1, len(in_lines(self.empty, max(dp(160), self.width - dp(24)), most=9)))
        return [row(marked(self.empty, "faint"), lines=lines, pad=16)]

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

    def add(self, rows: list) -> None:
        """Add rows at the end; the place stays."""
        self.fill([*self.data, *rows], keep=True)

    def choose(self, index: int, show: bool = False, extend: bool = False) -> None:
        """Choose a row; `show` scrolls to it, `extend` chooses all from the one that was chosen first."""
        if not self.data:
            return
        moved = index != self.chosen
        self.chosen = max(0, min(len(self.data) - 1, index))
        if not extend or self.anchor < 0:
            self.anchor = self.chosen
        if show:
            self.show(self.chosen)
        self._light()
        if moved:
            self.dispatch("on_move")

    def _light(self):
        for view in self._views():
            view.chosen = self.holds(view.index)
            view._light()

    def _views(self):
        return list(self.children[0].children) if self.children else []

    # -------- text that is chosen

    def on_touch_move(self, touch):
        return CHOICE.follow(touch, self) or super().on_touch_move(touch)

    def place_at(self, x: float, y: float) -> tuple:
        """Return the place of what is shown at a place of the window; beyond an edge the list moves on."""
        if not self.y <= y <= self.top and self._room():
            moved = dp(40) / self._room()
            self.scroll_y = max(0, min(1, self.scroll_y + (moved if y > self.top else -moved)))
        x, y = self.to_local(x, max(self.y, min(self.top, y)))
        views = sorted(self._views(), key=lambda view: -view.top)
        at = next((view for view in views if y >= view.y), views[-1])
        return (at.index, *at.place_at(x, y))

    def choice_in(self, index: int) -> tuple:
        """Return the first and last (line, character) that is chosen of a row."""
        first, last = CHOICE.between(self)
        if not first[0] <= index <= last[0]:
            return (0, 0), (0, 0)
        end = last[1:] if index == last[0] else (ALL, ALL)
        return first[1:] if index == first[0] else (0, 0), end

    def show_choice(self) -> None:
        """Draw what is chosen."""
        for view in self._views():
            view._anew()

    def said_between(self, first: tuple, last: tuple) -> str:
        """Return what rows say between two places."""
        said = ""
        for index in range(first[0], last[0] + 1):
            mine = (last if index == last[0] else (index, ALL, ALL))[1:]
            start = first[1:] if index == first[0] else (0, 0)
            said += self._before(index) if index > first[0] else ""
            if start == (0, 0) and mine == (ALL, ALL):  # also what there was no room for
                said += self._said_by(index)
            else:
                said += joined_between(self._lines_of(index), start, mine)
        return said

    def _said_by(self, index):
        one = self.data[index]
        return one.get("copy") or unmarked(one["text"])

    def _lines_of(self, index):
        """Return [(text, what stands before it)] of the lines that are drawn of a row."""
        labels = Row.labels_of(self.data[index], self.width)
        lines = [line for label in labels for line in label._cached_lines]
        return [(line_text(line), " " if line.line_wrap else "\n") for line in lines]

    def _before(self, index):
        """Return what stands between a row and the one before it: lines of one paragraph go on."""
        return self.data[index].get("joint", "\n")

    def said(self) -> str:
        """Return what the chosen rows say; of none, what all say."""
        said, last = "", None
        for index in range(len(self.data)):
            if self.chosen < 0 or self.holds(index):
                said += "" if last is None else self._before(index)
                said += self._said_by(index)
                last = index
        return said

    def copy(self) -> None:
        """Put the text that is chosen into the clipboard, or what the chosen rows say."""
        text = CHOICE.said() if CHOICE.owner is self else ""
        count = sum(map(self.holds, range(len(self.data)))) or len(self.data)
        copy_text(text or self.said(), 0 if text else count)

    def menu(self, index, touch):
        """Offer what can be done with the row below the mouse."""
        if not self.holds(index) and CHOICE.owner is not self:
            self.choose(index)
        Menu.offer(
            touch,
            [
                ("Open", lambda: self.dispatch("on_open")),
                ("Copy", self.copy),
                ("Choose all", self.choose_all),
            ],
        )

    def choose_all(self):
        """Choose all rows."""
        self.anchor = 0
        self.choose(len(self.data) - 1, extend=True)

    def show(self, index: int, at: float | None = None) -> None:
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
        name, held = keycode[1], [one for one in modifiers if one in ("shift", "ctrl", "alt")]
        if name in self.MOVES and held in ([], ["shift"]):
            self.choose(self.chosen + self.MOVES[name], show=True, extend=bool(held))
            if self.chosen == len(self.data) - 1:
                self.dispatch("on_more")
            return True
        if name in ("enter", "numpadenter") and self.chosen >= 0 and not held:
            self.dispatch("on_open")
            return True
        if name == "spacebar" and not held and self.chosen >= 0:
            self.dispatch("on_look")
            return True
        if held == ["ctrl"] and name in ("c", "a"):
            self.copy() if name == "c" else self.choose_all()
            return True
        return super().keyboard_on_key_down(window, keycode, text, modifiers)


CODE = 13.5  # sp, of what stands in the fixed font


def line_rows(lines: list, columns: int, numbers: bool = True) -> list:
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
            joint = {"joint": ""} if n else {}
            rows.append(code_row(margin + marked(piece, tone, lit), value, copy=piece, **joint))
    return rows


def code_row(said: str, value: typing.Any = None, **how) -> dict:
    """Return a row of the fixed font."""
    return row(said, height=19, font=FONTS.mono, size=CODE, value=value, lines=1, pad=0, **how)


def columns_of(rows: list, margin: int = 9) -> int:
    """Return how many columns of the fixed font fit into a list."""
    return max(20, int((rows.width - dp(24)) / (sp(CODE) * 0.6)) - margin)


class Framed(BoxLayout):
    """What stands in front of others, with a line around it."""


class Menu(ModalView):
    """Some things that can be done, at the place of the mouse."""

    @classmethod
    def offer(cls, touch: typing.Any, things: list) -> "Menu":
        """Show names; that which is pressed is done."""
        wide, high = dp(170), dp(32) * len(things) + dp(8)
        window = App.get_running_app().root_window
        # of the window: a list that is scrolled tells places of its own
        at_x, at_y = touch.sx * window.width, touch.sy * window.height
        x, y = min(at_x, window.width - wide), max(0, at_y - high)
        menu = cls(
            size_hint=(None, None), size=(wide, high), overlay_color=(0, 0, 0, 0), background=""
        )
        menu.background_color = (0, 0, 0, 0)
        menu.pos_hint = {"x": x / window.width, "y": y / window.height}
        pane = Framed(padding=dp(4))
        for name, then in things:
            push = Push(text=name, quiet=True, size_hint_x=1, height=dp(32))
            push.bind(on_release=lambda _, then=then: (menu.dismiss(animation=False), then()))
            pane.add_widget(push)
        menu.add_widget(pane)
        menu.open(animation=False)
        return menu


# ---- reading: documents as they are meant to be read

COLUMN = 720  # dp, the widest that a text to read is set
HEADINGS = (21, 18, 16, 15, 15, 15)  # sp, by level
READ = 15  # sp
ROW_LONG = 160  # letters of a line up to which it may be a row that is drawn with blanks
JOINED = 55  # letters of a line from which on the next one goes on with it
# kinds whose headings and code the daemon tells as Markdown does
MARKED_KINDS = ("markdown", "html")
INLINE = re.compile(
    r"(?P<code>`+)(?P<coded>[^`]+)(?P=code)|(?P<bold>\*\*|__)(?=\S)(?P<bolded>.+?)(?<=\S)(?P=bold)"
    r"|(?<![\w*])\*(?=[^\s*])(?P<leaned>[^*]+?)(?<=[^\s*])\*(?![\w*])|!?\[(?P<linked>[^\]]+)\]\([^)\s]*\)"
)
STYLES = {"coded": "code", "bolded": "bold", "leaned": "lean", "linked": "link"}
ITEM = re.compile(r"(\s*)(?:[-*+\u2022]|\d{1,3}[.)])\s+")
HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
NUMBERED = re.compile(r"\s*\d+(\.\d+)+\.?\s")  # a line of a table of contents
RULE = re.compile(r"\s*([-*_=~])(\s*\1){2,}\s*$")
FENCE = re.compile(r"\s*(```|~~~)\s*(\w*)")


@dataclasses.dataclass
class Block:
    """What stands together in a document: a heading, a paragraph, an item, a line of code."""

    kind: str  # heading, text, item, quote, code, rule
    text: str
    place: tuple  # (line, chunk) where it begins
    level: int = 0  # of a heading, or how far it is set in
    language: str = ""
    ended: int = 0  # letters of its last line


def blocks_of(kind: str, lines: list, name: str = "") -> list:
    """Return the Blocks of a document's lines [(number, text, chunk)]; kind as the daemon tells it."""
    if kind == "code":
        return [Block("code", text, (number, chunk), 0, name) for number, text, chunk in lines]
    blocks, fenced = [], None
    for number, text, chunk in lines:
        fence = FENCE.match(text) if kind == "markdown" else None
        if fence:
            fenced = None if fenced is not None else fence[2]
        elif (
            fenced is not None
            or kind in MARKED_KINDS
            and text.startswith("    ")
            and not ITEM.match(text)
        ):
            blocks.append(Block("code", text, (number, chunk), 1, fenced or ""))
        else:
            _add_line(blocks, kind, number, text, chunk)
    return blocks


def _add_line(blocks, kind, number, text, chunk):
    """Add a line of prose to the Blocks: it goes on with the one before, or begins one."""
    last, heading, item = blocks[-1] if blocks else None, HEADING.match(text), ITEM.match(text)
    if not text.strip():
        blocks.append(Block("space", "", (number, chunk)))
    elif kind in MARKED_KINDS and heading:
        blocks.append(Block("heading", heading[2], (number, chunk), len(heading[1])))
    elif RULE.match(text) and "|" not in text:
        blocks.append(Block("rule", "", (number, chunk)))
    elif _in_columns(text):  # which keep their places
        blocks.append(Block("code", text, (number, chunk), 1))
    elif item:
        blocks.append(
            Block(
                "item",
                text[item.end() :],
                (number, chunk),
                len(item[1]) // 2 + 1,
                item[0].strip(),
                len(text),
            )
        )
    elif last and last.kind in ("text", "item", "quote") and _goes_on(last, text, kind):
        last.text += " " + text.strip().removeprefix(">").strip()
        last.ended = len(text)
    elif text.startswith(">"):
        blocks.append(Block("quote", text.lstrip("> "), (number, chunk), 1))
    else:
        said = re.sub(r"\s{3,}", " ", text.strip())
        blocks.append(Block("text", said, (number, chunk), ended=len(text)))


def _in_columns(text):
    """Whether a line is a row of a table; in a line that is longer than one sets, wide gaps are slips of who typed it."""
    return text.lstrip().startswith("|") or bool(
        len(text) <= ROW_LONG and re.search(r"\S\s{3,}\S", text)
    )


def _goes_on(last, text, kind):
    """Whether a line goes on with the Block before it."""
    if kind == "markdown":
        return True
    if NUMBERED.match(text):
        return False
    return (
        last.ended >= JOINED or text[:1].islower() or last.kind == "item" and text.startswith(" ")
    )


def styled(text: str) -> tuple:
    """Return (the text that inline Markdown shows, [style of each character])."""
    said, styles, at = "", [], 0
    for found in INLINE.finditer(text):
        name = next(name for name in STYLES if found[name] is not None)
        for piece, style in ((text[at : found.start()], ""), (found[name], STYLES[name])):
            said, styles = said + piece, styles + [style] * len(piece)
        at = found.end()
    return said + text[at:], styles + [""] * (len(text) - at)


def quoted_in(text, quotes):
    """Return [(start, end)] of where a text says one of some quotes, whatever stands between the words."""
    whole = " ".join(quotes)
    spans = _spans_of(text, [whole])
    if spans or len(quotes) < 2:
        return spans
    # a sentence in several lines, each of which may stand by itself; two words are said anywhere
    return _spans_of(text, [quote for quote in quotes if len(re.findall(r"\w+", quote)) > 2])


def _spans_of(text, quotes):
    spans = []
    for quote in quotes:
        words = re.findall(r"\w+", quote)[:200]
        found = (
            re.search(r"\W+".join(map(re.escape, words)) + r"[.!?:;)\"'\u201d]*", text)
            if words
            else None
        )
        if found and spans and not text[spans[-1][1] : found.start()].strip():
            spans[-1] = (spans[-1][0], found.end())  # lines of one sentence
        else:
            spans += [found.span()] if found else []
    return sorted(spans)


def _wrapped_styled(text, styles, width, size):
    """Return the (start, end) of the lines of a text whose characters have styles."""
    fonts = {"code": (FONTS.mono, sp(size) * 0.92, False), "bold": (NOBODY, sp(size), True)}
    usual, spans, start, used, blank = (NOBODY, sp(size), False), [], 0, 0.0, -1
    for n, char in enumerate(text):
        used += _advance(char, *fonts.get(styles[n], usual))
        if char == " ":
            blank = n
        if used > width and n > start:
            end = blank if blank > start else n
            spans.append((start, end))
            start = end + (text[end] == " ")
            used = sum(_advance(text[k], *fonts.get(styles[k], usual)) for k in range(start, n + 1))
    return [*spans, (start, len(text))] if start < len(text) or not spans else spans


DRESS = {
    "": ("", ""),
    "bold": ("[b]", "[/b]"),
    "lean": ("[i]", "[/i]"),
    "code": ("[font={mono}][size={small}]", "[/size][/font]"),
    "link": ("[color={cool}]", "[/color]"),
}


def _dressed(text, styles, lit, size, way=""):
    """Return markup of a text: each run of one style, and of what is lit, in its dress; it goes the way of its paragraph."""
    runs = []
    for char, *dress in zip(text, styles, lit, strict=True):
        if runs and runs[-1][1:] == dress:
            runs[-1][0] += char
        else:
            runs.append([char, *dress])
    told_of = {"mono": FONTS.mono, "small": int(sp(size) * 0.92), "cool": colour("cool")}
    said = []
    for run, style, is_lit in runs:
        before, after = (part.format(**told_of) for part in DRESS[style])
        said.append(f"{before}{_drawn(run)}{after}")
        if is_lit:
            said[-1] = f"[ref=span]{said[-1]}[/ref]"
    return apart("".join(said), way or base_of(text)) if goes_left(text) else "".join(said)


def block_rows(
    block: typing.Any,
    width: float,
    words: Iterable = (),
    quotes: Iterable = (),
    ground: str | None = None,
    numbers: bool = True,
) -> list:
    """Return the rows of a Block at a width; what is spelt as `words`, or is one of `quotes`, stands on a ground."""
    if block.kind in ("space", "rule"):
        return [row("", height=9, value=block.place, ground=ground, lines=1, pad=0)]
    if block.kind == "code":
        return _code_rows(block, width, words, quotes, ground, numbers)
    size = HEADINGS[block.level - 1] if block.kind == "heading" else READ
    indent = dp(44) * numbers + dp(18) * (block.level if block.kind in ("item", "quote") else 0)
    text, styles = styled(plain(block.text))
    styles = ["bold"] * len(text) if block.kind == "heading" else styles
    spans = quoted_in(text, quotes) if quotes else hits_in(text, words)
    lit = [False] * len(text)
    for start, end in spans:
        lit[start:end] = [True] * (end - start)
    rows, ended, way = [], 0, base_of(text)
    side = SIDE_OF[way] if block.kind in ("text", "heading") else "left"
    for start, end in _wrapped_styled(text, styles, min(width, dp(COLUMN)) - indent - dp(24), size):
        said = _dressed(text[start:end], styles[start:end], lit[start:end], size, way)
        high = line_high(size) * 1.34 + (dp(8) if block.kind == "heading" and not rows else 0)
        margin = _margin(block, numbers) if not rows else None
        one = row(
            said,
            value=block.place,
            size=size,
            lines=1,
            pad=0,
            indent=indent,
            ground=ground,
            margin=margin,
            halign=side,
        )
        joint = {"joint": " " if start > ended else ""} if rows else {}
        one |= {"height": high, "copy": text[start:end], "lit": any(lit[start:end])}
        rows.append(one | joint)
        ended = end
    return rows


def _margin(block, numbers):
    """Return what stands before the first line of a Block: its number, or the sign of an item."""
    sign = (
        (block.language if block.language[:1].isdigit() else "\u2022")
        if block.kind == "item"
        else ""
    )
    return (str(block.place[0]) if numbers else "", sign, dp(18) * (block.level - 1))


def _spans_within(spans, first, last):
    """Return what of some (start, end) lies between two places, counted from the first."""
    cut = [(max(start, first) - first, min(end, last) - first) for start, end in spans]
    return [(start, end) for start, end in cut if start < end]


def _code_rows(block, width, words, quotes, ground, numbers):
    """Return the rows of a line of code, in the fixed font."""
    indent = dp(44) * numbers + dp(10) * block.level
    columns, rows = max(20, int((width - indent - dp(24)) / (sp(CODE) * 0.6))), []
    text, at = plain(block.text), 0
    lit = quoted_in(text, quotes) if quotes else hits_in(text, words)
    for piece in wrapped(text, columns):
        spans, at = _spans_within(lit, at, at + len(piece)), at + len(piece)
        said = marked(piece, "", spans) if spans else coloured(piece, block.language)
        margin = _margin(block, numbers) if not rows else None
        how = {
            "ground": ground or ("raised" if block.level else None),
            "margin": margin,
            "lit": bool(spans),
            **({"joint": ""} if rows else {}),
        }
        rows.append({**code_row(said, block.place, copy=piece, indent=indent), **how})
    return rows


@functools.lru_cache(maxsize=64)
def _lexer(name):
    """Return the lexer of pygments for a language or a file's name, or None."""
    import pygments.lexers
    import pygments.util

    with contextlib.suppress(pygments.util.ClassNotFound):
        if "." in name:
            return pygments.lexers.get_lexer_for_filename(name)
        return pygments.lexers.get_lexer_by_name(name)
    return None


CODE_TONES = (  # what pygments calls a piece of code -> tone; the first that fits
    ("Token.Comment", "faint"),
    ("Token.Literal.String.Doc", "soft"),
    ("Token.Literal.String", "good"),
    ("Token.Literal.Number", "warm"),
    ("Token.Keyword", "violet"),
    ("Token.Name.Function", "cool"),
    ("Token.Name.Class", "cool"),
    ("Token.Name.Builtin", "cool"),
    ("Token.Name.Decorator", "warm"),
    ("Token.Operator.Word", "violet"),
)


@functools.lru_cache(maxsize=4096)
def _coloured(text, language, theme):
    lexer = _lexer(language) if language else None
    if lexer is None:
        return marked(text)
    said = []
    for token, piece in lexer.get_tokens(text):
        tone = next((tone for name, tone in CODE_TONES if str(token).startswith(name)), "")
        said.append(marked(piece, tone) if piece.strip() else piece)
    lead = len(text) - len(text.lstrip(" \n"))  # a lexer may leave out what stands before
    return " " * lead + "".join(said).strip("\n").lstrip(" ") if text.strip() else text


def coloured(text: str, language: str) -> str:
    """Return markup of code in the colours of its language, by pygments; a name of a file tells one as well."""
    return _coloured(text, language, LOOK["theme"])


def code_lines(source: str, language: str = "python") -> list:
    """Return markup of each line of code; what goes over several lines is told as such."""
    lexer, lines = _lexer(language), [""]
    for token, piece in lexer.get_tokens(plain(source)):
        tone = next((tone for name, tone in CODE_TONES if str(token).startswith(name)), "")
        first, *rest = piece.split("\n")
        lines[-1] += marked(first, tone) if first else ""
        lines += [marked(one, tone) if one else "" for one in rest]
    return lines[:-1] if lines[-1] == "" else lines


class Reader(BoxLayout):
    """A pane that shows a document around a place, as it is meant to be read, and goes on in both directions."""

    title, hint, store = StringProperty(), StringProperty(), ObjectProperty(None, allownone=True)
    old = StringProperty()  # why what is shown is not what memory holds by now
    wide = BooleanProperty(False)
    closed = False  # whether who reads wants nothing shown by itself
    PAGE = 24  # chunks that are asked for at a time

    def __init__(self, **how):
        super().__init__(**how)
        self._clear()
        self._seen = None  # the value of the row that was first, where more is asked for above
        self._again = Clock.create_trigger(lambda _: self._show() if self._chunks else None, 0.1)
        self.bind(width=lambda *_: self._again())

    def _clear(self):
        self.old = ""
        self._doc, self._chunks, self._facts = None, {}, {}
        self._asked = {"chunk": 0, "lines": None, "words": (), "quotes": ()}
        if self.store:  # what is still on its way is of what was open
            for slot in (f"reader{id(self)}", f"whether old{id(self)}"):
                self.store.forget(slot)

    def close(self) -> None:
        """Close what is open; until something is opened by hand nothing is shown by itself any more."""
        self.clear()
        self.closed = True

    def clear(self) -> None:
        """Show nothing."""
        self._clear()
        self.title = ""
        self.ids.rows.fill([])

    def open(
        self,
        doc_id: str,
        version: int | None = None,
        chunk: int = 0,
        lines: tuple | None = None,
        words: Iterable = (),
        quotes: Iterable = (),
    ) -> None:
        """Show a document at a chunk: `lines` (first, last) of it, and what is spelt as `words` or says `quotes` lit up."""
        self._clear()
        self._doc, self.closed = (doc_id, version), False
        self._asked = {
            "chunk": chunk,
            "lines": lines,
            "words": tuple(words),
            "quotes": tuple(quotes),
        }
        self.title = marked(name_of(doc_id), bold=True)
        self._ask(max(0, chunk - self.PAGE // 3), goal=True)

    def widen(self) -> None:
        """Show the same in front of everything, as wide as one reads."""
        if self._doc:
            read_wide(self.store, *self._doc, **self._asked)

    def look_whether_old(self) -> None:
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
            self._tell(reply["details"], "bad")
            return
        self._facts = reply["result"]
        self._chunks |= {one["chunk_index"]: one for one in reply["results"]}
        if not self._chunks:
            self._tell(
                "the document has no such place any more"
                if self._facts["chunks"]
                else "the document is empty",
                "soft",
            )
            return
        self._show_title()
        self._show()
        if goal:
            Clock.schedule_once(lambda _: self._go_to_lines(), 0)
        elif self._seen:  # what stood at the top stays in sight
            at = next(
                (n for n, one in enumerate(self.ids.rows.data) if one["value"] == self._seen), 0
            )
            Clock.schedule_once(lambda _, at=at: self.ids.rows.show(at, 0), 0)

    def _tell(self, words, tone):
        self.ids.rows.fill([row(marked(words, tone), height=140, lines=6, pad=16)])

    def _show_title(self):
        """Say what the document is called, and what it is."""
        name, title = name_of(self._facts["doc_id"]), self._facts["title"]
        where = [name, f"version {self._facts['version']}, {self._facts['kind']}"]
        where += [folder_of(self._facts["doc_id"])]
        if is_name_of(title, self._facts["doc_id"]):
            title, where = name, where[1:]
        self.title = f"{marked(title, bold=True)}   " + marked("   ".join(where), "faint")

    def _lines(self):
        """Return [(number, text, chunk)] of what is held of the document; where it leaves out, a line without text."""
        lines, at, is_code = [], None, self._facts.get("kind") == "code"
        for index in range(min(self._chunks), max(self._chunks) + 1):
            chunk = self._chunks.get(index)
            for number, text in (
                enumerate(chunk["text"].split("\n"), chunk["lines"][0]) if chunk else ()
            ):
                if at is not None and number > at + 1 and not is_code:
                    lines.append((number, "", index))
                lines.append((number, text, index))
                at = number
        return lines

    def _show(self):
        """Show what is held of the document, with rows that go on above and below."""
        first, last = min(self._chunks), max(self._chunks)
        below = self._facts["chunks"] - 1 - last
        rows = [self._more("\u2191", first, "above", first)] if first else []
        for block in blocks_of(self._facts["kind"], self._lines(), name_of(self._facts["doc_id"])):
            rows += self._rows_of(block)
        rows += [self._more("\u2193", below, "below", last)] if below else []
        self.ids.rows.fill(rows, keep=True)

    @staticmethod
    def _more(sign, count, where, chunk):
        return row(
            marked(f"{sign} {count} more {'part' if count == 1 else 'parts'}", "accent"),
            value=(where, chunk),
        )

    def _rows_of(self, block):
        """Return the rows of a Block, those of the lines that were asked for on a ground."""
        asked, (number, chunk) = self._asked, block.place
        first, last = asked["lines"] or (0, -1)
        # of one long line several chunks may be parts
        inside = first <= number <= last and (first != last or chunk == asked["chunk"])
        quotes = asked["quotes"] if chunk == asked["chunk"] else ()
        words = () if asked["quotes"] else asked["words"]
        numbers, tone = all(map(has_lines, self._chunks.values())), "raised" if inside else None
        rows = block_rows(block, self.ids.rows.width, words, quotes, tone, numbers)
        aside = max(0, self.ids.rows.width - dp(COLUMN)) / 2 if self.wide else 0
        return [{**one, "indent": one["indent"] + aside, "aside": aside} for one in rows]

    def _go_to_lines(self):
        """Scroll to what was asked for: what is lit there, else where its lines begin."""
        if not self._chunks:  # it was closed meanwhile
            return
        first, last = self._asked["lines"] or (0, 0)
        wanted = [
            (n, one)
            for n, one in enumerate(self.ids.rows.data)
            if isinstance(one["value"][0], int) and first <= one["value"][0] <= last
        ]
        mine = [(n, one) for n, one in wanted if one["value"][1] == self._asked["chunk"]] or wanted
        lit = next((n for n, one in mine if one.get("lit")), mine[0][0] if mine else 0)
        self.ids.rows.show(lit, 0.3)

    def go_on(self, value: typing.Any) -> None:
        """Open the row that goes on above or below."""
        where, chunk = value or ("", 0)
        if where in ("above", "below"):
            first = max(0, chunk - self.PAGE) if where == "above" else chunk + 1
            self._seen = self.ids.rows.data[1]["value"] if where == "above" else None
            self._ask(first, limit=min(self.PAGE, chunk) if where == "above" else self.PAGE)


def read_wide(store: Store, *what, **how) -> "Dialog":
    """Show a document in front of everything, as wide as one reads; arguments as for Reader.open."""
    dialog = Dialog(size_hint=(0.9, 0.96))
    reader = Reader(store=store, wide=True)
    dialog.ids.body.add_widget(reader)
    dialog.button("Close", dialog.dismiss)
    dialog.open()
    reader.ids.rows.focus = True
    reader.open(*what, **how)
    return dialog


class Split(BoxLayout):
    """Two parts with a handle between them to drag; where it stands is kept under `name`.

    Kivy's Splitter is one part that has an edge, in pixels, and draws it with pictures; a share fits a window of any size.
    """

    share, name, pages = (
        NumericProperty(0.4),
        StringProperty(),
        ObjectProperty(None, allownone=True),
    )
    GRIP = 8

    _folded: Widget | None = None

    def on_kv_post(self, _):
        self.spacing = dp(self.GRIP)
        layout = App.get_running_app().layout
        self.share = layout["splits"].get(self.name, self.share)
        self.bind(share=self._place)
        self._place()

    def fold(self, part: Widget, is_folded: bool) -> None:
        """Have the first part alone stand, over the whole room, where the other would tell nothing more; or both again."""
        if is_folded and part.parent is self:
            self._folded = part.__self__  # ids hold it weakly, and nothing else does
            self.remove_widget(part)
        elif not is_folded and part.parent is None:
            self.add_widget(part)
            self._folded = None
        self._place()

    def _place(self, *_):
        if len(self.children) == 1:
            self.children[0].size_hint = (1, 1)
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
def texture_of(said: str, size: float, width: float, halign: str, lines: int) -> typing.Any:
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
        self.told: list = []  # the texts that are drawn
        self.register_event_type("on_spot")

    def on_spot(self, value):
        """A part that stands for something was clicked."""

    def _draw(self):
        self.canvas.clear()
        self.spots, self.told = [], []
        if self.data is not None and self.width > 20 and self.height > 4:
            with self.canvas:
                self.draw(self.data)

    def draw(self, data: typing.Any) -> None:
        """Draw the data on the canvas."""

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float | None,
        tone: str,
        alpha: float = 1.0,
        outline: str | None = None,
    ) -> None:
        """Draw a rounded box; an outline is what stands out of a box below it, as wide all around."""
        edge = dp(1.5) if outline else 0
        if outline:
            Color(*get_color_from_hex(colour(outline)))
            RoundedRectangle(pos=(x, y), size=(width, height), radius=[dp(5)])
        Color(*get_color_from_hex(colour(tone))[:3], alpha)
        size = width - 2 * edge, height - 2 * edge
        RoundedRectangle(pos=(x + edge, y + edge), size=size, radius=[dp(5) - edge])

    def say(
        self,
        text: str,
        x: float,
        y: float,
        width: float,
        tone: str = "ink",
        size: float = 13,
        halign: str = "left",
        lines: int = 1,
    ) -> None:
        """Draw text, the top of its first line at y; it is cut at a width."""
        self.told.append(text)
        room = max(4, int(width / (sp(size) * 0.5)) * lines)
        said = marked(cut(text, width, size) if lines == 1 else short(text, room), tone)
        texture = texture_of(said, size, width, halign, lines)
        if texture:
            Color(1, 1, 1, 1)
            Rectangle(texture=texture, pos=(x, y - texture.height), size=texture.size)

    def line(self, points: list, tone: str, width: float = 1.2) -> None:
        Color(*get_color_from_hex(colour(tone)))
        Line(points=points, width=width)

    def said(self) -> str:
        """Return as text what is drawn."""
        return "\n".join(self.told)

    def on_touch_down(self, touch):
        if is_click(touch, "right") and self.collide_point(*touch.pos) and self.told:
            Menu.offer(touch, [("Copy", lambda: copy_text(self.said()))])
            return True
        for x, y, right, top, value in reversed(self.spots):
            if x <= touch.x <= right and y <= touch.y <= top and self.collide_point(*touch.pos):
                self.dispatch("on_spot", value)
                return True
        return super().on_touch_down(touch)


def told_of_none(path: str) -> str:
    """Return why a figure of health is not there yet."""
    beats = path.startswith("heartbeat.")
    return "measured at each heartbeat" if beats else "nothing measured yet"


THINNED = 2  # dp of a line that its figures are told apart in: each point costs, at every frame


def thinned(values: list, parts: int) -> list:
    """Return [(s, figure)] with the first, least, most and last of each of so many parts of its time: it looks the same."""
    if len(values) <= 4 * parts:
        return values
    first, span = values[0][0], values[-1][0] - values[0][0] or 1
    made = []
    for _, group in itertools.groupby(values, lambda one: int(parts * (one[0] - first) / span)):
        part = list(group)
        least, most = (end(part, key=lambda one: one[1]) for end in (min, max))
        made += sorted({part[0], least, most, part[-1]})
    return made


class Spark(Drawing):
    """A figure over time: data is {"title", "unit", "values": [(s, figure)], "when": function(s) -> words}.

    kivy_garden.graph 0.4.0 is not used: ten of its graphs take 33 to 65 MB and 160 to 270 ms of a processor until Life is shown
    where these take 15 to 18 and 42 to 57 (180 and 2,880 figures each; a frame that draws all ten anew costs 7 ms there and 22
    to 30 here), and the window has 15 MB to its goal. Times on an axis and what is below the mouse it would leave to us.
    Its axes tell the least and the most, the first time and the last; below the mouse stands what was measured there.
    """

    at = NumericProperty(-1)  # where the mouse is, or -1

    def __init__(self, **how):
        super().__init__(**how)
        self.bind(at=self.again)

    def draw(self, data: dict | None) -> None:
        values = [value for _, value in data["values"]]
        self.box(self.x, self.y, self.width, self.height, "panel")
        known = self._below_mouse(data) or (data["values"][-1] if values else None)
        last = f"{number_text(known[1])} {data['unit']}" if known else "\u2013"
        wide = self.width - dp(24)
        of_last = min(wide, width_in(last) + dp(3))
        self.say(
            last, self.right - dp(12) - of_last, self.top - dp(7), of_last, "ink", BODY, "right"
        )
        of_title = wide - of_last - dp(4)
        self.say(data["title"], self.x + dp(12), self.top - dp(8), of_title, "soft", SMALL)
        if len(values) < 2:
            return self._say_nothing(data, bool(values))
        low, high = min(values), max(values)
        places = self._places(data["values"], low, high)
        self._fill(places)
        self.line(places, "accent", 1.3)
        self._axes(data, low, high, known)

    def _say_nothing(self, data, is_known):
        """Say why no line is drawn yet."""
        why = "one figure so far" if is_known else data.get("nothing", told_of_none(""))
        self.say(why, self.x + dp(12), self.y + dp(40), self.width - dp(24), "faint", 11, lines=2)

    def said(self) -> str:
        """Return the figures as lines of a table: when, and what was measured."""
        lines = [f"{self.data['when'](at)}\t{value}" for at, value in self.data["values"]]
        return "\n".join([f"{self.data['title']}\t{self.data['unit']}", *lines])

    def _room(self):
        """Return (left, low, width, height) of what is drawn in."""
        return self.x + dp(12), self.y + dp(24), self.width - dp(64), self.height - dp(56)

    def _places(self, values, low, high):
        left, base, wide, tall = self._room()
        since, span = values[0][0], values[-1][0] - values[0][0] or 1
        points = []
        for at, value in thinned(values, int(wide / dp(THINNED))):
            share = (value - low) / (high - low) if high > low else 0.5
            points += [left + wide * (at - since) / span, base + tall * share]
        return points

    def _axes(self, data, low, high, known):
        """Write the least and the most at the right, the times below."""
        left, base, wide, tall = self._room()
        top = number_text(high)
        self.say(top, left + wide + dp(4), base + tall + dp(7), dp(46), "faint", 11)
        if high > low:
            self.say(number_text(low), left + wide + dp(4), base + dp(7), dp(46), "faint", 11)
        when = data["when"]
        first, last = data["values"][0][0], data["values"][-1][0]
        below = when(known[0]) if self.at >= 0 else when(last)
        of_first = wide - width_in(below, 11) - dp(8)
        self.say(when(first), left, base - dp(5), of_first, "faint", 11)
        self.say(
            below,
            left + wide / 2,
            base - dp(5),
            wide / 2,
            "ink" if self.at >= 0 else "faint",
            11,
            "right",
        )
        if self.at >= 0:
            x = left + wide * (known[0] - first) / ((last - first) or 1)
            self.line([x, base, x, base + tall], "soft", 1)

    def _below_mouse(self, data):
        """Return the (s, figure) nearest to the mouse, or None."""
        values = data["values"]
        if self.at < 0 or len(values) < 2:
            return None
        left, _, wide, _ = self._room()
        wanted = values[0][0] + (values[-1][0] - values[0][0]) * (self.at - left) / max(1, wide)
        return min(values, key=lambda one: abs(one[0] - wanted))

    def _fill(self, points):
        Color(*get_color_from_hex(colour("accent"))[:3], 0.14)
        base, corners = self._room()[1], []
        for x, y in zip(points[::2], points[1::2], strict=True):
            corners += [x, base, 0, 0, x, y, 0, 0]
        Mesh(vertices=corners, indices=list(range(len(corners) // 4)), mode="triangle_strip")


class Gauge(Drawing):
    """A bar that tells how full something is: data is {"used", "room" or None, "tone", "words" that stand beside it}.

    Kivy's ProgressBar is two pictures in colours of its own, of which a light theme would need others.
    """

    def draw(self, data: typing.Any) -> None:
        self.box(self.x, self.y, self.width, self.height, "raised")
        share = min(1, data["used"] / data["room"]) if data["room"] else 0
        if share:
            self.box(
                self.x, self.y, max(dp(6), self.width * share), self.height, data["tone"], 0.75
            )


def _all_below(widget):
    """Yield a widget and all below it, in reading order."""
    yield widget
    for child in reversed(widget.children):
        yield from _all_below(child)


class Dialog(ModalView):
    """Asks something in front of everything; Escape closes it."""

    title, note = StringProperty(), StringProperty()

    def button(self, text: str, then: Callable, strong: bool = False) -> Push:
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

    TYPED_S = 0.3  # a pause after which what is typed is searched for

    name, wants, kv = "", {}, ""  # wants: {topic of the store: name of a method}
    live = False  # it looks anew each time that it is shown

    def __init__(self, inspector, **how):
        self.inspector, self.store, self.spec = inspector, inspector.store, PAGES[self.name]
        self.stale = True  # what is shown was not asked since the daemon came, or since a change
        super().__init__(**how)
        self.made()

    def made(self) -> None:
        """Fill what does not change."""

    def shown(self) -> None:
        """Listen, and look anew."""
        for topic, method in self.wants.items():
            self.store.on(topic, getattr(self, method))
        if self.live or self.stale:
            self.look_anew()

    def look_anew(self) -> None:
        """Ask for what is shown, where a daemon is there to answer."""
        self.stale = self.store.line != "online"
        self.refresh()

    def hidden(self) -> None:
        """Listen no more."""
        for method in self.wants.values():
            self.store.off(getattr(self, method))

    def refresh(self) -> None:
        """Ask anew what is shown."""

    def go(self, **where) -> None:
        """Show what another page refers to."""

    def place(self) -> dict:
        """Return what `go` is given so that another page of my kind shows what I show."""
        return {}

    def begin(self) -> None:
        """Put the cursor where one would begin."""

    def back(self) -> bool:
        """Take one step back; returns whether there was one."""
        return False

    def key(self, key: str, modifiers: list) -> bool:
        """Take a key that no field wanted; returns whether it meant something."""
        return False


COMMITTED_S = 0.4  # how soon after a commit a list is asked for anew


def waits_for(report: dict, health: dict, others: list) -> str:
    """Return what a cycle that has not begun, or stands still, waits for; '' where that is not known."""
    core, at_work = health.get("core", {}), health.get("missions", {}).get("running", 0)
    if core.get("state") == "loading":
        return f"It waits for the core, which is loading: {core.get('progress', '')}"
    since = report.get("accepted_at", {}).get("$time", "")
    before = [
        one for one in others if one["state"] not in ENDED and one["accepted_at"]["$time"] < since
    ]
    if report.get("state") == "IDLE" and before:
        count = len(before)
        return f"It waits for its turn: {count} {'mission was' if count == 1 else 'missions were'} accepted before it"
    if report.get("state") == "IDLE" and at_work:
        return f"It waits for its turn: {at_work} {'mission is' if at_work == 1 else 'missions are'} at work"
    if core.get("state") not in (None, "ready"):
        return f"The core is {core['state']}: {core.get('progress', '')}"
    return ""


def cycle_row(report: dict, wide: float = 0, waits: str = "", turns: int = 1) -> dict:
    """Return the row of a cycle as list_cycles tells it, with why it failed, or what it waits for; of `turns` in its thread."""
    tone, room = SPEC["states"].get(report["state"], "soft"), max(dp(140), wide - dp(34))
    mark = {"right": "\u2713 ", "wrong": "\u2717 "}.get(report.get("feedback", {}).get("mark"), "")
    told_of = f"{mark}{report['state'].lower()}  {seconds_text(report.get('seconds'))}"
    said = lines_marked(report["mission"], room, most=2)
    said.append(f"{marked(told_of, tone)}  {marked(clock_text(report['accepted_at']), 'faint')}")
    if "reason" in report:
        why = f"{report['reason']['code']}: {spoken(report['reason']['details'])}"
        said.append(marked(cut(why, room), "soft"))
    if waits:
        said += lines_marked(waits, room, "warm", most=3)
    if "conversation" in report:
        thread = f"{turns} {'turn' if turns == 1 else 'turns'} of {report['conversation']}"
        said.append(marked(cut(thread, room), "faint"))
    return row("\n".join(said), value=report, pad=8)


def threads_of(reports: list) -> list:
    """Return [[report]]: the missions of one conversation together, the newest first; one of no conversation by itself."""
    threads = {}
    for report in reports:
        threads.setdefault(report.get("conversation") or (report["cycle"],), []).append(report)
    return list(threads.values())


def how_it_went(report: dict, health: dict, others: list) -> list:
    """Return [(tone, line)]: why a cycle failed and what to do about it, or what it waits for; [] of one that is well."""
    if "reason" in report:
        what, *todo = spoken(report["reason"]["details"]).split("; ")
        said = [("bad", f"{report['state']}: {report['reason']['code']}"), ("", what)]
        return said + [("soft", f"\u2192 {part}") for part in todo]
    waits = "" if report["state"] in ENDED else waits_for(report, health, others)
    return [("warm", waits)] if waits else []


def report_of(cycle: str, slots: dict) -> dict:
    """Return what list_cycles tells of a cycle, as far as its inspected slots tell it."""
    value = {name: slot["value"] for name, slot in slots.items()}
    result, brief = value.get("result") or {}, value.get("mission_brief") or {}
    texts = [one for one in brief.get("args") or () if isinstance(one, str)]
    state = "COMPLETE" if "answer" in result else "FAILED" if "reason" in result else ""
    begun = "at work" if value.get("journal") else "IDLE"
    mission = " ".join(texts) or str(brief.get("selector", "")).replace("_", " ").strip()
    return {
        "cycle": cycle,
        "mission": mission,
        "accepted_at": value.get("accepted_at") or {},
        **result,
        "state": state or begun,
    }


def change_row(change: dict) -> dict:
    """Return the row of a change of the ledger."""
    slots = ", ".join(f"{part['name'] or part['oid']}.{part['slot']}" for part in change["changes"])
    by = ", ".join(
        filter(None, [change["who"], change["cycle"] and f"cycle {change['cycle']}", change["why"]])
    )
    return row(
        f"{marked(change['command'], bold=True)}   {marked(short(slots, 120))}\n{marked(short(by, 120), 'soft')}  "
        f"{marked(change['change'], 'faint')}",
        marked(clock_text(change["at"]), "soft"),
        value=change,
    )


CODE_NAMES = ("source", "method_code")  # facts that are code


def _as_told(name, value):
    """Return (name, value) of a fact as people say it: times as times, numbers with no more digits than say something."""
    if isinstance(value, dict) and set(value) == {"$time"}:
        return name, clock_text(value)
    if name == "at_s" and isinstance(value, (int, float)):
        return "at", clock_text(at_time(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return name, number_text(value)
    return name, value


def fact_rows(name: str, value: typing.Any, wide: float) -> list:
    """Return the rows of one fact: in one line where it fits, else below its name."""
    name, value = _as_told(name, value)
    text = "\u2013" if value is None else value if isinstance(value, str) else to_json(value, None)
    lead = marked(name.replace("_", " "), "soft")
    if "\n" not in text and width_in(text[:400]) <= wide - dp(166):
        said = f"{name}  {text}"
        return [row(marked(text), lead=lead, indent=dp(132), lines=1, pad=3, copy=said)]
    return [row(lead, lines=1, pad=3), *_long_fact(name, value, text, wide)]


def _long_fact(name, value, text, wide):
    """Return the rows of a fact that takes more than a line: a text as it reads, code in its colours, else JSON."""
    if isinstance(value, str):
        lines = [(number, line, 0) for number, line in enumerate(text.split("\n")[:400], 1)]
        blocks = blocks_of("code" if name in CODE_NAMES else "text", lines, "python")
        made = [block_rows(block, wide, ground="raised", numbers=False) for block in blocks]
        return [one | {"value": None} for rows in made for one in rows]
    columns = max(20, int((wide - dp(24)) / (sp(CODE) * 0.6)) - 2)
    shown = pretty(value, columns).split("\n")[:400]
    pieces = [piece for line in shown for piece in wrapped(plain(line), columns)]
    return [code_row(coloured(piece, "json"), copy=piece, ground="raised") for piece in pieces]


def change_lines(change: dict, oid: str | None = None) -> list:
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
                *(one for one in difference(before, after)[2:] if not one[1].startswith("@@")),
                ("", ""),
            ]
    return lines or [("faint", "it changed no slot")]


class ShowsFigures:
    """What makes a Page one with figures over time, its `sparks`: the one below the mouse tells what was measured there."""

    sparks = ()

    def shown(self) -> None:
        super().shown()
        App.get_running_app().root_window.bind(mouse_pos=self._hover)

    def hidden(self) -> None:
        super().hidden()
        App.get_running_app().root_window.unbind(mouse_pos=self._hover)

    def _hover(self, _, place):
        for spark in self.sparks:
            if spark.get_root_window():
                x, y = spark.to_widget(*place)
                spark.at = x if spark.collide_point(x, y) else -1


# ---- page: search


def relevance(found):
    """Return, from 0 to 1, how much of the question's weight a result holds, or how near it is by meaning."""
    why = found["why"]
    return max(why.get("mass", 0), why.get("similarity") or 0)


def spelt_of(found):
    """Return the words that a result was found by, as its text spells them."""
    return found["why"].get("spelt", list(found["why"]["words"]))


def without_headings(text):
    """Return a passage without the headings of Markdown that it begins with, where more follows."""
    lines = text.lstrip("\n").split("\n")
    first = next((n for n, line in enumerate(lines) if line.strip() and not HEADING.match(line)), 0)
    return "\n".join(lines[first:])


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
    spacing: dp(10)
    Strip:
        height: dp(42)
        Field:
            id: query
            height: dp(42)
            padding: dp(14), dp(11)
            font_size: LEAD
            hint_text: 'Search the memory    +"in quotes" must be there, -this must not'
            on_text_validate: root.ask()
            on_text: root.typed()
        Push:
            text: 'Search'
            strong: True
            height: dp(42)
            on_release: root.ask()
    Flow:
        id: filters
    Words:
        id: note
        font_size: SMALL
    Split:
        name: 'search'
        share: 0.46
        Pane:
            padding: dp(6)
            Rows:
                id: rows
                clicks: 2
                on_move: root.look()
                on_open: root.look(True)
                on_more: root.more()
        Pane:
            Reader:
                id: reader
                store: root.store
                hint: 'Choose a result to read it in its document; Enter opens it wide.'
"""

    def made(self) -> None:
        self._after, self._fields, self.filters = None, {}, {}
        fit = Clock.create_trigger(lambda _: self._fit(), 0.1)
        self._ask_typed = Clock.create_trigger(lambda _: self.ask(), self.TYPED_S)
        self.ids.rows.bind(width=lambda *_: fit())
        # the figures as last told; whether more than the first results are shown
        self._figures, self._is_more = self._figures_now(), False
        given = COMMANDS["search_memory"]["fields"]
        for name in self.spec["columns"]:
            self._add_filter(name, given.get(name, {}))

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
                width=dp(112),
                height=dp(30),
                padding=(dp(10), dp(7)),
                font_size=sp(SMALL),
            )
            one.bind(on_text_validate=lambda _: self.ask())
        self.filters[name] = one
        self.ids.filters.add_widget(one)

    def begin(self) -> None:
        self.ids.query.focus = True
        Clock.schedule_once(lambda _: self.ids.query.select_all(), 0)

    def refresh(self) -> None:
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

    def typed(self) -> None:
        """Search for what is typed, after a pause; what is set by a page is asked for by that."""
        if self.ids.query.focus:
            self._ask_typed.cancel()
            self._ask_typed()

    def ask(self, keep: bool = False) -> None:
        """Ask for the first results; without words for the documents."""
        self._ask_typed.cancel()
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

    def more(self) -> None:
        """The end was reached: ask for what follows."""
        if self._after is not None:
            self._ask(self._after)

    def came(self, reply: dict, after: str | None, keep: bool = False) -> None:
        if reply["status"] != "OK":
            return self._refused(reply, after)
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
            if not keep:
                self._show_best(rows)
        self._note(reply, before + len(found))

    def _refused(self, reply, after):
        """Say why nothing came; where only the daemon is away, what was found before stands, and is said to be old."""
        is_away = reply.get("code") in ("Offline", "Lost") and bool(self.ids.rows.data)
        told_of = f"old: {reply['details']}" if is_away else reply["details"]
        self.ids.note.text = marked(told_of, "bad")
        if after:
            self._after = after  # scrolling tries it again
        elif not is_away:
            self.ids.rows.empty = ""
            self.ids.rows.fill([])

    def _show_best(self, rows):
        """Show the best of what was found beside the list, at once."""
        if not rows:
            self.ids.reader.clear()
        elif not self.ids.reader.closed:
            self.ids.rows.choose(0)

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
        what = what[:-1] if count == 1 else what
        self.ids.note.text = marked("; ".join([f"{count} {what}{more}", *notes]), "soft")

    def _result_row(self, rank, found):
        """Return a result's row: what it is, three lines of what it says, where that stands, and why it was found.

        All is cut to the width of the list, so that the passage is seen however narrow that is.
        """
        width, chunk, spelt = self._room_for_text(), found["chunk"], spelt_of(found)
        place, title = place_of(chunk), chunk["title"]
        where = [place, " \u203a ".join(chunk["headings"]), folder_of(chunk["doc_id"])]
        if is_name_of(title, chunk["doc_id"]):
            title, where = place, where[1:]
        around = self._around(self._text_of(found), spelt)
        lines, way = in_lines(around, width, most=3), base_of(around)
        below = " \u00b7 ".join(filter(None, where))
        said = [
            marked(cut(f"{rank}  {title}", width, bold=True), bold=True, way="ltr"),
            *(marked(line, "", hits_in(line, spelt), way=way) for line in lines),
            *([marked(cut(below, width), "soft", way="ltr")] if below else []),
            marked(cut(self._why(found), width), "faint"),
        ]
        share = relevance(found)
        return row("\n".join(said), marked(f"{share:.0%}", "soft"), value=found, bar=share, pad=9)

    def _room_for_text(self):
        """Return how wide the text beside a row's side note is."""
        return max(dp(140), self.ids.rows.width - dp(22) - dp(76) - dp(12))

    @staticmethod
    def _text_of(found):
        inner = found.get("sentence") or found.get("section") or found["chunk"]
        return (found.get("document") or {}).get("written") or without_headings(inner["text"])

    @staticmethod
    def _around(text, words):
        """Return a text from a little before its first hit on."""
        text = " ".join(plain(text).split())
        hits = hits_in(text, words)
        begin = text.rfind(" ", 0, max(0, hits[0][0] - 40)) + 1 if hits else 0
        begin = max(begin, hits[0][0] - 60) if hits else 0  # a word before it may be long
        return ("\u2026" if begin else "") + text[begin : begin + 600]

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
        return short("; ".join(said), 200)

    def _document_row(self, document):
        width, name = self._room_for_text(), name_of(document["doc_id"])
        title = name if is_name_of(document["title"], document["doc_id"]) else document["title"]
        facts = f"{document['kind']}, version {document['version']}, {document['chunks']} parts, {document['scope']}"
        where = [name] * (name != title) + [facts, folder_of(document["doc_id"])]
        below = " \u00b7 ".join(filter(None, where))
        said = f"{marked(cut(title, width, bold=True), bold=True)}\n{marked(cut(below, width), 'soft')}"
        return row(said, marked(clock_text(document["added_at"]), "soft"), value=document, pad=8)

    def look(self, enter: bool = False) -> None:
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
        if enter:
            self.ids.reader.widen()

    def place(self) -> dict:
        return {"query": self.ids.query.text}

    def go(
        self,
        doc_id: str | None = None,
        version: int | None = None,
        chunk: int = 0,
        lines: tuple | None = None,
        query: str | None = None,
    ) -> None:
        if query is not None:
            self.ids.query.text = query
            self.ask()
        elif doc_id:
            self.ids.reader.open(doc_id, version, chunk, lines)

    def back(self) -> bool:
        if self.ids.reader.title:
            self.ids.reader.close()
            self.ids.rows.focus = True
            return True
        if self.ids.query.text:
            self.ids.query.text = ""
            self.ask()
            return True
        return False


# ---- page: ask


class ThoughtDrawing(Drawing):
    """A thought as a timeline: below an axis of seconds each step as a bar where it began and as long as it took.

    data: {"steps": [(state, name, begin s, seconds, running)], "seconds": of it all}.
    """

    LANE, NAMED, LEFT, RIGHT = 26, 132, 226, 76  # dp

    @staticmethod
    def high(count: int) -> float:
        """Return how tall the timeline of so many steps is."""
        return dp(ThoughtDrawing.LANE * count + 34)

    def draw(self, data: typing.Any) -> None:
        whole = max(data["seconds"], 1e-3)
        left, right = self.x + dp(self.LEFT), self.right - dp(self.RIGHT)
        wide = max(dp(40), right - left)
        self._axis(whole, left, wide)
        for number, step in enumerate(data["steps"]):
            self._step(step, self.top - dp(28 + self.LANE * number), whole, left, wide)

    def _axis(self, whole, left, wide):
        for at in ticks(whole, max(2, int(wide / dp(110)))):
            x = left + wide * at / whole
            self.line([x, self.y, x, self.top - dp(22)], "edge", 1)
            self.say(
                seconds_text(at) if at else "0", x + dp(3), self.top - dp(2), dp(60), "faint", 11.5
            )

    def _step(self, step, top, whole, left, wide):
        state, name, begin_s, seconds, running = step
        tone = SPEC["states"].get(state, "violet")  # the bar of a facet has its persona for a state
        middle = top - dp(self.LANE) / 2
        named = dp(self.NAMED)
        self.say(name, self.x, middle + sp(BODY) * 0.62, named, "ink", 13)
        self.say(state.lower(), self.x + named, middle + sp(SMALL) * 0.6, dp(90), tone, 11.5)
        x, long = left + wide * min(1, begin_s / whole), max(dp(3), wide * min(1, seconds / whole))
        self.box(
            x,
            middle - dp(7),
            min(long, left + wide - x + dp(3)),
            dp(14),
            tone,
            0.55 if running else 0.9,
        )
        said = seconds_text(seconds) + (" \u2026" if running else "")
        self.say(
            said, left + wide + dp(8), middle + sp(SMALL) * 0.6, dp(self.RIGHT - 8), "soft", 12
        )


class Voice(BoxLayout):
    """What one persona was asked and said, in a list of its own."""


class Voices(GridLayout):
    """Who spoke in a thought, side by side, in as many columns as there is room for."""

    WIDE = 216  # dp, of a column at least
    lists_shown = BooleanProperty(False)

    def __init__(self, **how):
        super().__init__(**how)
        self.lists: dict = {}  # facet -> its list
        self.register_event_type("on_choice")
        self.register_event_type("on_room")
        self.bind(width=lambda *_: self._part())

    def on_choice(self, value):
        """A row that stands for something was opened."""

    def on_room(self):
        """A list is wider now, or less wide."""

    def _part(self):
        self.cols = max(1, min(len(self.lists), int(self.width // dp(self.WIDE))))

    def take(self, facets: list) -> None:
        """Have a list for each facet."""
        if list(self.lists) == facets:
            return
        self.clear_widgets()
        self.lists = {}
        for facet in facets:
            voice = Voice()
            rows = self.lists[facet] = voice.ids.rows
            rows.bind(on_open=lambda rows: self.dispatch("on_choice", rows.chosen_row))
            rows.bind(width=lambda *_: self.dispatch("on_room"))
            self.add_widget(voice)
        self.lists_shown = bool(facets)
        self._part()


def facet_text(pillar: str) -> str:
    """Return what a facet is called."""
    return pillar.removesuffix("_facet_").replace("_", " ")


def ticks(whole, most):
    """Return round figures from 0 to `whole`, at most so many."""
    step = 10.0 ** math.floor(math.log10(max(whole, 1e-6) / most))
    step = next(
        (step * factor for factor in (1, 2, 5, 10) if whole / (step * factor) <= most), step * 10
    )
    return [number * step for number in range(int(whole / step) + 1)]


THREAD_TURNS = 200  # of a conversation, that are shown


def correction_lines(feedback: dict | None) -> list:
    """Return how an answer was marked and corrected, in words: the mark and its note, then which passages are right and not."""
    if not feedback:
        return []
    note = f": {feedback['note']}" if feedback["note"] else ""
    lines = [f"marked {feedback['mark']}{note}"]
    judged = feedback.get("correction") or {}
    for side, word in (("quotes", "right"), ("not", "not right")):
        lines += [f"{_named_passage(one)} is {word}" for one in judged.get(side, ())]
    return lines


def _named_passage(one):
    return f"passage {one}" if isinstance(one, int) else f"\u201c{short(one, 80)}\u201d"


READ_AS = {
    "markdown": ("md", "markdown", "docx", "odt", "ipynb"),
    "html": ("html", "htm", "xhtml", "epub"),
}


def kind_by_name(doc_id):
    """Return the kind that a passage is read as; of which document it is, is told without its kind."""
    ending = doc_id.lower().rpartition(".")[2]
    return next((kind for kind, endings in READ_AS.items() if ending in endings), "text")


def sentence_of(quote):
    """Return the lines of the sentence of a passage that answers; none where the daemon told of none."""
    start, end = quote.get("mark") or (0, 0)
    return tuple(filter(str.strip, quote["text"][start:end].split("\n")))


class AskPage(Page):
    """Questions and answers: what was asked, the answer over its evidence, and how it was thought."""

    name, live = "ask", True
    wants = {"cycle": "cycle_moved", "tokens": "token_came", "uvm_state_update": "committed"}
    kv = """
<Voices>:
    spacing: dp(10)

<Voice>:
    orientation: 'vertical'
    padding: dp(4), dp(6)
    canvas.before:
        Color:
            rgba: RAISED
        RoundedRectangle:
            pos: self.pos
            size: self.size
            radius: [dp(7)]
    Rows:
        id: rows

<AskPage>:
    Split:
        name: 'ask'
        share: 0.27
        Pane:
            padding: dp(6)
            Rows:
                id: rows
                on_move: root.choose()
                on_open: root.choose()
        Pane:
            padding: dp(18), dp(14)
            Words:
                id: question
                font_size: TITLE
            Tabs:
                id: tabs
                names: root.spec['columns']
                chosen: root.spec['columns'][0]
                on_chosen: root.show()
            ThoughtDrawing:
                id: drawing
                size_hint_y: None
                height: 0
            Rows:
                id: said
                clicks: 2
                size_hint_y: None if voices.lists_shown else 1
                height: 0 if voices.lists_shown else 1
                on_ref: root.pressed(args[1])
            Voices:
                id: voices
                size_hint_y: 1 if self.lists_shown else None
                height: 1 if self.lists_shown else 0
                opacity: 1 if self.lists_shown else 0
                on_choice: root.unfold(args[1])
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
                font_size: SMALL
            Strip:
                height: dp(42)
                Field:
                    id: ask
                    height: dp(42)
                    padding: dp(14), dp(11)
                    font_size: LEAD
                    hint_text: 'Ask a question'
                    on_text_validate: root.ask()
                Field:
                    id: conversation
                    height: dp(42)
                    padding: dp(10), dp(12)
                    size_hint_x: 0.28
                    hint_text: 'Conversation'
                Push:
                    text: 'Ask'
                    strong: True
                    height: dp(42)
                    on_release: root.ask()
"""
    finished, running = BooleanProperty(False), BooleanProperty(False)
    ANSWERED = 18  # sp, of the words of an answer

    def made(self) -> None:
        self._whys = {}  # the cycle that was asked of -> lines
        # cycle -> text so far
        self.cycle, self._report, self._data, self._steps, self._spoken = None, {}, {}, [], {}
        self._personas, self._clock, self._reports = {}, None, []  # facet -> persona
        self._quoted = {}  # cycle -> the passages that came before its answer
        self._struck, self._picked = set(), set()  # numbers of passages
        self._named: list = []  # texts of passages that were not told, and answer
        self._unfolded: set = set()  # (facet, number) of passages that are shown whole in a thought
        self._thread = []  # the missions of the conversation, the oldest first
        self._look_later = Clock.create_trigger(lambda _: self._look(), 0.05)
        self._refresh_later = Clock.create_trigger(lambda _: self.refresh(), COMMITTED_S)
        fit = Clock.create_trigger(lambda _: self._fit(), 0.1)
        self.ids.said.bind(width=lambda *_: fit())
        self.ids.rows.bind(width=lambda *_: fit())
        self.ids.voices.bind(on_room=lambda *_: fit())

    def begin(self) -> None:
        self.ids.ask.focus = True

    def hidden(self) -> None:
        super().hidden()
        self._tick(False)

    def _fit(self):
        self._fill_list()
        self.show()

    def _fill_list(self):
        """List the missions, those of one conversation as one thread, which stands for its newest turn or the one shown."""
        rows, wide = [], self.ids.rows.width
        for turns in threads_of(self._reports):
            shown = next((one for one in turns if one["cycle"] == self.cycle), turns[0])
            waits = "" if shown["state"] in ENDED else self._waits(shown)
            rows.append(cycle_row(shown, wide, waits, len(turns)))
        self.ids.rows.fill(rows, keep=True)

    def _waits(self, report):
        return waits_for(report, self.store.health, self._reports)

    def refresh(self) -> None:
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
            self.show()

    def _listed(self, reply):
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            return
        self._reports, self.ids.rows.empty = reply["results"], self.spec["empty"]
        self._fill_list()
        listed = [one["value"] for one in self.ids.rows.data if one["value"]]
        mine = next(
            (n for n, one in enumerate(listed) if one["cycle"] == self.cycle),
            0 if self.cycle is None else -1,
        )
        if listed and mine >= 0:
            self.ids.rows.choose(mine)
            self._take(listed[mine])
        elif mine < 0:
            self.ids.note.text = marked(
                f"{self.cycle} is none of the last {len(self._reports)} missions; see it under Objects",
                "soft",
            )

    def choose(self) -> None:
        report = self.ids.rows.chosen_row
        if report and report["cycle"] != self.cycle:
            self.ids.note.text = self.ids.remark.text = ""
            self._data, self._steps, self._struck, self._picked = {}, [], set(), set()
            self._unfolded, self._named = set(), []
            self._take(report)

    def _take(self, report):
        """Show a cycle as list_cycles tells it, then look into the object itself."""
        self._follow_thread(report.get("conversation", ""))
        self.cycle, self._report = report["cycle"], report
        self.finished, self.running = "answer" in report, report["state"] not in ENDED
        self._tick(self.running)
        self.show()
        self._look()

    def _follow_thread(self, name):
        """Have the next question be a turn of the conversation that is shown, and ask for its turns."""
        field, before = self.ids.conversation, self._report.get("conversation", "")
        if name != before and field.text.strip() in ("", before):
            field.text = name
        self._thread = self._thread if name == before else []
        if name:
            self.store.ask(
                "list_cycles",
                lambda reply: self._thread_came(reply, name),
                slot="thread",
                conversation=name,
                limit=THREAD_TURNS,
            )

    def _thread_came(self, reply, name):
        if reply["status"] == "OK" and name == self._report.get("conversation"):
            self._thread = reply["results"][::-1]
            self.show()

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

    def ask(self) -> None:
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
        self.cycle, self._data, self._steps = cycle, {}, []
        self._report = {name: one for name, one in self._report.items() if name == "conversation"}
        self.finished = self.running = False
        self._struck, self._picked, self._unfolded, self._named = set(), set(), set(), []
        self.ids.question.text = self.ids.note.text = ""
        self.ids.said.fill([])
        self.refresh()

    def cycle_moved(self, event):
        if event["state"] in ENDED:
            self._spoken.pop(event["cycle"], None)
            self._quoted.pop(event["cycle"], None)
        if event["cycle"] == self.cycle:
            self._report = {**self._report, "state": event["state"]}
            self._look_later()
        if event["state"] in ENDED or event["state"] == "DECOMPOSING":
            self.refresh()
        self.draw()

    def token_came(self, event):
        cycle = event["cycle"]
        self._spoken[cycle] = (self._spoken.get(cycle, "") + event["text"])[-SHOWN_CHARS:]
        quoted = self._quoted.setdefault(cycle, [])  # the core's sentences may bring more
        quoted += [item for item in event.get("evidence", ()) if item not in quoted]
        if cycle == self.cycle and self.ids.tabs.chosen == "answer":
            self.show()

    def committed(self, _):
        """Something was committed, by whomever: a mission may have been marked, or begun."""
        self._refresh_later()

    def _tick(self, running):
        """Count seconds while a cycle runs, and only then."""
        if self._clock:
            self._clock.cancel()
        self._clock = Clock.schedule_interval(lambda _: self.draw(), 0.5) if running else None

    def cancel(self) -> None:
        self.store.ask("cancel", self._say, slot="mark", doing="cancelling", cycle=self.cycle)

    def mark(self, mark: str) -> None:
        if self.finished:
            right = [*sorted(self._picked), *self._named]
            judged = {"quotes": right, "not": sorted(self._struck)}
            correction = {"correction": judged} if right or self._struck else {}
            self._send_mark(self.cycle, mark, note=self.ids.remark.text.strip(), **correction)

    def _send_mark(self, cycle, mark, **more):
        self.store.ask(
            "feedback", self._marked, slot="mark", doing="marking", cycle=cycle, mark=mark, **more
        )

    def _say(self, reply):
        self.ids.note.text = marked(reply["details"], "good" if reply["status"] == "OK" else "bad")

    def _marked(self, reply):
        self._say(reply)
        self.refresh()

    # -------- what is seen

    def show(self, *_) -> None:
        if self.cycle is None:
            return
        self.ids.question.text = marked(short(self._report.get("mission", ""), 300))
        self._fill_voices()
        rows = getattr(self, f"_show_{self.ids.tabs.chosen}", self._show_answer)()
        self.ids.said.fill(rows, keep=True)
        self.draw()

    def _wide(self):
        return max(dp(160), self.ids.said.width)

    def _prose(self, text, tone="", size=READ, cited=True, wide=0, **how):
        """Return the rows of a text of several lines, no wider than one reads; `cited`: [1] is a passage of what is shown."""
        width, rows = min(wide or self._wide(), dp(COLUMN)) - dp(30), []
        for part in plain(text).split("\n"):
            ended, way = None, base_of(part)
            for start, end in lines_in(part, width, size) or [(0, 0)]:
                said = marked(part[start:end], tone, way=way)
                said = self._cited(said) if cited else said
                one = row(said, size=size, lines=1, pad=0, halign=SIDE_OF[way], **how)
                joint = {} if ended is None else {"joint": " " if start > ended else ""}
                rows.append({**one, "height": line_high(size) * 1.36, **joint})
                ended = end
        return rows

    @staticmethod
    def _cited(said):
        """Return markup in which [1] can be pressed."""
        return re.sub(
            r"&bl;(\d+)&br;", rf"[ref=\1][color={colour('accent')}][b]\g<0>[/b][/color][/ref]", said
        )

    @staticmethod
    def _space(high=10):
        return row("", height=high, lines=1)

    def _show_answer(self):
        report = self._report
        if "answer" in report:
            marks = report.get("feedback")
            rows = [self._space(6), *self._prose(report["answer"], "", self.ANSWERED)]
            for line in correction_lines(marks):
                rows += self._prose(line, "soft", SMALL)
            for note in report.get("notes", ()):
                rows += self._prose(f"ALFRED notes: {note}", "soft", SMALL)
            rows += [*self._evidence(report.get("evidence", ())), *self._beside_rows()]
            is_short = sum(one["height"] for one in rows) < self.ids.said.height * self.SHORT
            if is_short and report.get("state") in ENDED:
                rows += self._below("why it is answered so", self._show_why())
            return rows
        if "reason" in report:
            return self._ended_badly(report)
        return self._provisional()

    SHORT = 0.55  # of the page's height: what stands below a shorter answer is told there too

    def _below(self, head, rows):
        """Return rows below a heading, where what stands above them is short."""
        return [self._space(22), row(marked(head, "faint"), size=SMALL, lines=1, pad=4), *rows]

    def _ended_badly(self, report):
        """Return why a mission failed, what can be done, and what it did until then."""
        again = f"[ref=again 0]{marked('ask it again', 'accent')}[/ref]"
        can = [row(again, lines=1, pad=6)] if report.get("type") == "direct_synthesis" else []
        did = self._below("what it did until then", self._show_steps())
        return [*self._failed(report), *can, *self._beside_rows(), *did]

    def _again(self):
        """Put the question into its field, to be asked once more or otherwise."""
        self.ids.ask.text = self._report.get("mission", "")
        self.ids.ask.focus = True

    def _evidence(self, quotes):
        """Return the passages that an answer stands on, each with what answers on a ground."""
        rows = []
        for number, quote in enumerate(quotes, 1):
            rows += [self._space(14), row(self._head_of(number, quote), value=str(number), pad=4)]
            lines = [
                (quote["lines"][0] + n, text, 0) for n, text in enumerate(quote["text"].split("\n"))
            ]
            tone = None if number in self._struck else "raised"
            for block in blocks_of(kind_by_name(quote["doc_id"]), lines, name_of(quote["doc_id"])):
                lit, numbers = sentence_of(quote), has_lines(quote)
                made = block_rows(block, self._wide(), (), lit, tone, numbers)
                rows += [{**one, "value": str(number)} for one in made]
        return rows

    BESIDE = 5  # passages that were found and not told, that are shown

    def _beside(self):
        """Return the passages that recall found and the answer does not stand on, the best first."""
        told = {(one["doc_id"], one["chunk_index"]) for one in self._report.get("evidence", ())}
        recalls = [step["answer"] for step in self._steps if step.get("name") == "recall"]
        found = recalls[0].get("evidence", ()) if recalls else ()
        rest = [one for one in found if (one["doc_id"], one["chunk_index"]) not in told]
        return rest[: self.BESIDE]

    def _beside_rows(self):
        """Return what was found beside the answer, a line each: perhaps the right one is among it."""
        rows, room = [], min(self._wide(), dp(COLUMN)) - dp(34)
        for number, quote in enumerate(self._beside(), 1):
            is_right = quote["text"] in self._named
            place = cut(
                " \u203a ".join([place_of(quote), *quote.get("headings", ())[-1:]]), room / 2
            )
            can = {"found": ("read", "accent"), "answers": ("✓ this answers", "accent")}
            if is_right:
                can["answers"] = ("✓ this answers", "good")
            links = [
                f"[ref={verb} {number}]{marked(said, tone, bold=tone == 'good')}[/ref]"
                for verb, (said, tone) in can.items()
            ]
            shown = " ".join(sentence_of(quote)) or quote["text"]
            rows.append(row("    ".join([marked(place, "soft"), *links]), pad=3))
            rows += [
                row(line, lines=1, pad=0) for line in lines_marked(shown, room, "faint", most=2)
            ]
            rows.append(self._space(8))
        head = row(marked("found beside it, and not told", "faint"), size=SMALL, lines=1, pad=4)
        return [self._space(22), head, *rows] if rows else []

    def _name_passage(self, number):
        """Say of a passage that was not told that it answers; once more, and nothing is said of it."""
        text = self._beside()[number - 1]["text"]
        self._named = [one for one in self._named if one != text] + [text] * (
            text not in self._named
        )
        self._say_judged()

    def _read_beside(self, number):
        quote = self._beside()[number - 1]
        place = quote["version"], quote["chunk_index"], quote["lines"]
        read_wide(self.store, quote["doc_id"], *place, (), sentence_of(quote))

    def _head_of(self, number, quote):
        """Return what stands above a passage: where it is, and what can be done with it."""
        place = " \u203a ".join([place_of(quote), *quote.get("headings", ())[-1:]])
        place += f" (also, by {quote['also']})" if quote.get("also") else ""
        can = {"read": ("read", "accent", False)}
        if self.finished:
            is_right, is_not = number in self._picked, number in self._struck
            can["right"] = ("✓ this answers", "good" if is_right else "accent", is_right)
            can["not"] = ("✗ this does not", "bad" if is_not else "accent", is_not)
        links = [
            f"[ref={verb} {number}]{marked(said, tone, bold=bold)}[/ref]"
            for verb, (said, tone, bold) in can.items()
        ]
        taken = width_in(
            f"[{number}]      " + "      ".join(said for said, *_ in can.values()), bold=True
        )
        place = cut(place, max(dp(80), self._wide() - dp(30) - taken))
        head = f"[b]&bl;{number}&br;[/b]"
        first = (
            f"[ref={number}][color={colour('accent')}]{head}[/color]  {marked(place, 'soft')}[/ref]"
        )
        return "    ".join([first, *links])

    def _judge(self, number, mine, other):
        """Say of a passage that it answers, or that it does not; once more, and nothing is said of it."""
        other.discard(number)
        mine ^= {number}
        self._say_judged()

    def _say_judged(self):
        """Say what will be sent with the mark."""
        self.show()
        said = [f"{n} is right" for n in sorted(self._picked)]
        said += [f"{n} is not" for n in sorted(self._struck)]
        said += [f"\u201c{short(text, 40)}\u201d is right" for text in self._named]
        if said:
            self.ids.note.text = marked(f"Right or Wrong sends it: {', '.join(said)}", "soft")
        else:
            self.ids.note.text = ""

    def _failed(self, report):
        (tone, first), *rest = how_it_went(report, {}, ())
        entered = [step["state"] for step in self._steps if step]
        where = f", in {entered[-1].lower()}" if entered else ""
        rows = [self._space(6), *self._prose(first + where, tone, self.ANSWERED)]
        return rows + [one for tone, line in rest for one in self._prose(line, tone)]

    def _show_thread(self):
        """Return the turns of the conversation, the oldest first, each with how it was marked and corrected."""
        if not self._report.get("conversation"):
            hint = "This question is of no conversation. A name in the field Conversation makes those that follow turns of one."
            return self._prose(hint, "faint")
        return [one for turn in self._thread for one in self._turn_rows(turn)]

    def _turn_rows(self, turn):
        """Return the rows of one turn; that which is shown on the other tabs stands on a ground."""
        ground = {"ground": "raised"} if turn["cycle"] == self.cycle else {}
        rows = [self._space(12), *self._prose(turn["mission"], "", LEAD, **ground)]
        if "answer" in turn:
            rows += self._prose(turn["answer"], "soft", cited=bool(ground), **ground)
        for tone, line in how_it_went(turn, self.store.health, self._reports):
            rows += self._prose(line, tone, **ground)
        for line in correction_lines(turn.get("feedback")):
            tone = "good" if turn["feedback"]["mark"] == "right" else "bad"
            rows += self._prose(line, tone, SMALL, **ground)
        rows.append(row("    ".join(self._turn_links(turn)), lines=1, pad=3, size=SMALL, **ground))
        return [{**one, "value": {"cycle": turn["cycle"]}} for one in rows]

    @staticmethod
    def _turn_links(turn):
        """Return what can be pressed below a turn."""
        can, is_marked = {"turn": "show it"}, turn.get("feedback", {}).get("mark")
        if "answer" in turn:
            marks = {"right": "\u2713 right", "wrong": "\u2717 wrong"}
            can |= {f"mark {mark}": said for mark, said in marks.items() if mark != is_marked}
            can["correct"] = "correct it"
        return [
            f"[ref={verb} {turn['cycle']}]{marked(said, 'accent')}[/ref]"
            for verb, said in can.items()
        ]

    def _provisional(self):
        spoken = self._spoken.get(self.cycle, "")
        if spoken:
            rows = [
                *self._prose(spoken, "soft", self.ANSWERED),
                *self._prose("\u2026 provisional", "faint"),
            ]
            return [self._space(6), *rows, *self._evidence(self._quoted.get(self.cycle, ()))]
        waits = self._waits(self._report) if "state" in self._report else ""
        return [self._space(6), *self._prose(waits or "It thinks \u2026", "soft", self.ANSWERED)]

    def _show_thought(self):
        """Return what is said where no persona stands below the timeline."""
        if self.ids.voices.lists_shown:
            return []
        ended = self._report.get("state") in ENDED
        none = "No persona was asked." if ended else "No persona has said anything yet."
        return self._prose(none, "faint")

    def _fill_voices(self):
        """Show what each persona was asked and said, side by side below the timeline."""
        plan, voices = self._data.get("plan") or {}, self.ids.voices
        shown = self.ids.tabs.chosen == "thought"
        voices.take(list(plan.get("relevant_pillars", ())) if shown else [])
        for pillar, rows in voices.lists.items():
            wide = max(dp(120), rows.width)
            name = f"{marked(self._personas.get(pillar, ''), 'violet', bold=True)}  {marked(facet_text(pillar), 'soft')}"
            asked = f"was asked: {plan['sub_queries'].get(pillar, '')}"
            said = self._of_persona(pillar, wide)
            took_s = (self._data.get("facet_seconds") or {}).get(pillar)
            side = "" if took_s is None else marked(seconds_text(took_s), "faint")
            first = [row(name, side, lines=1, pad=4), *self._prose(asked, "soft", BODY, wide=wide)]
            rows.fill([*first, self._space(8), *said], keep=True)

    def _of_persona(self, pillar, wide):
        """Return what a persona said, and its passages: what answers of each, or all of it where it was unfolded."""
        said = (self._data.get("partial_responses") or {}).get(pillar)
        if said is None:
            waits = self._report.get("state") not in ENDED
            return self._prose("thinks \u2026" if waits else "said nothing", "faint", wide=wide)
        rows = self._prose(said["frame"], "", BODY, wide=wide) if said["frame"] else []
        for number, quote in enumerate(said["quotes"], 1):
            rows += self._passage(quote, (pillar, number), wide)
        return rows or self._prose("found no passage that answers", "faint", BODY, wide=wide)

    def _passage(self, quote, key, wide):
        """Return the rows of a persona's passage, which a click unfolds in place."""
        is_open = key in self._unfolded
        place = cut(f"{chr(0x25BE if is_open else 0x25B8)} {place_of(quote)}", wide - dp(30), SMALL)
        rows = [row(marked(place, "accent"), lines=1, pad=3, size=SMALL)]
        if is_open:
            numbered = enumerate(quote["text"].split("\n"), quote["lines"][0])
            lines = [(number, text, 0) for number, text in numbered]
            blocks = blocks_of(kind_by_name(quote["doc_id"]), lines, name_of(quote["doc_id"]))
            lit = sentence_of(quote)
            rows += [
                one for block in blocks for one in block_rows(block, wide, (), lit, numbers=False)
            ]
        else:
            start, end = quote.get("mark") or (0, 0)
            shown = quote["text"][start:end] or short(quote["text"], 300)
            rows += self._prose(f"\u201c{' '.join(shown.split())}\u201d", "", BODY, wide=wide)
        return [{**one, "value": key} for one in rows] + [self._space(8)]

    def unfold(self, key: tuple | None) -> None:
        """Show a persona's passage whole, or no more."""
        if key:
            self._unfolded ^= {key}
            self.show()

    def _show_why(self):
        """Return in the daemon's words who spoke and why; asked once for a cycle that has ended."""
        if self._report.get("state") not in ENDED:
            return self._prose("It has not ended yet.", "faint")
        if "reason" in self._report:
            return self._failed(self._report)
        if self.cycle not in self._whys:
            self._whys = {self.cycle: ["looking \u2026"]}
            of = self.cycle
            self.store.ask("why", lambda reply: self._why_came(of, reply), slot="why", cycle=of)
        rows = []
        for line in self._whys[self.cycle]:
            inset = len(line) - len(line.lstrip())
            line = re.sub(r"(?<!\S)/\S*/(?=\S+_chunk_\d)", "", line)  # a document by its name
            rows += self._prose(line.strip(), "soft" if inset else "", indent=dp(8 * inset))
        return rows

    def _why_came(self, cycle, reply):
        ok = reply["status"] == "OK"
        self._whys = {cycle: reply["results"] if ok else [reply["details"]]}
        self.show()

    def _show_steps(self):
        """Return each step of the journal with all that it told."""
        rows = []
        for step in filter(None, self._steps):
            tone = SPEC["states"].get(step["state"], "soft")
            head = f"{marked(step['name'], bold=True)}  {marked(step['state'].lower(), tone)}"
            rows.append(row(head, marked(seconds_text(step["seconds"]), "soft"), pad=6))
            columns = columns_of(self.ids.said, 4)
            lines = pretty(step["answer"], min(columns, 100)).split("\n")[:60]
            pieces = [piece for line in lines for piece in wrapped(plain(line), columns)]
            rows += [code_row(coloured(piece, "json"), copy=piece) for piece in pieces]
        return rows or self._prose("Its journal is empty.", "faint")

    def draw(self, *_) -> None:
        """Draw the timeline where the thought is shown."""
        shown = self.cycle is not None and self.ids.tabs.chosen == "thought"
        steps = self.timeline() if self.cycle is not None else []
        self.ids.drawing.height = ThoughtDrawing.high(len(steps)) if shown else 0
        whole = max(
            [self._report.get("seconds") or 0, *(begin + took for _, _, begin, took, _ in steps)],
            default=0,
        )
        self.ids.drawing.data = {"steps": steps, "seconds": whole} if shown else None

    def timeline(self):
        """Return [(state, name, begin s, seconds, running)]: what the journal has, and where it is at this moment."""
        accepted = at_unix(self._report.get("accepted_at"))
        steps, begin = [], 0.0
        for step in filter(None, self._steps):
            # a step is noted a moment after its end; it never began before the one that stands before it
            begin = max(begin, at_unix(step["at"]) - step["seconds"] - accepted)
            steps.append((step["state"], step["name"], begin, step["seconds"], False))
            if step["name"] == "recall for facets":
                steps += self._facet_steps(begin)
        if self.running and accepted:
            begin = max((begin + took for _, _, begin, took, _ in steps), default=0.0)
            now = max(begin, time.time() - accepted)
            steps.append((self._report.get("state", "IDLE"), "at work", begin, now - begin, True))
        return steps

    def _facet_steps(self, begin):
        """Return a bar for each facet: they are sought and asked for one behind the other."""
        bars = []
        for pillar, seconds in (self._data.get("facet_seconds") or {}).items():
            bars.append((self._personas.get(pillar, ""), facet_text(pillar), begin, seconds, False))
            begin += seconds
        return bars

    # -------- passages

    def pressed(self, ref: str) -> None:
        """A number was pressed: show its passage; `read N` opens it in its document."""
        verb, _, what = ref.rpartition(" ")
        {
            "right": lambda: self._judge(int(what), self._picked, self._struck),
            "not": lambda: self._judge(int(what), self._struck, self._picked),
            "read": lambda: self.read(what),
            "found": lambda: self._read_beside(int(what)),
            "answers": lambda: self._name_passage(int(what)),
            "again": self._again,
            "turn": lambda: self._to_turn(what, "answer"),
            "correct": lambda: self._correct(what),
            "mark right": lambda: self._send_mark(what, "right", note=""),
            "mark wrong": lambda: self._send_mark(what, "wrong", note=""),
            "": lambda: self.open_citation(what),
        }[verb]()

    def _to_turn(self, cycle, tab):
        """Show another turn of the thread."""
        self.ids.tabs.chosen = tab
        if cycle != self.cycle:
            self._turn_to(cycle)

    def _correct(self, cycle):
        """Show a turn over its passages, to be marked there; what would be right is typed."""
        self._to_turn(cycle, "answer")
        self.ids.remark.focus = True

    def _quote(self, number):
        evidence = self._report.get("evidence", [])
        known = isinstance(number, str) and number.isdigit() and 0 < int(number) <= len(evidence)
        return evidence[int(number) - 1] if known else None

    def open_citation(self, number):
        """Scroll to a passage of the evidence."""
        if self._quote(number) is None:
            return
        self.ids.tabs.chosen = "answer"
        at = next((n for n, one in enumerate(self.ids.said.data) if one["value"] == number), 0)
        self.ids.said.choose(at)
        self.ids.said.show(at, 0.2)

    def read(self, number: str) -> None:
        """Open a passage in its document, in front of everything."""
        quote = self._quote(number)
        if quote:
            quotes = sentence_of(quote)
            read_wide(
                self.store,
                quote["doc_id"],
                quote["version"],
                quote["chunk_index"],
                quote["lines"],
                (),
                quotes,
            )

    def place(self) -> dict:
        return {"cycle": self.cycle} if self.cycle else {}

    def go(self, cycle: str | None = None, question: str | None = None) -> None:
        if cycle:
            self._turn_to(cycle)
        if question:
            self.ids.ask.text = question
            self.ask()


# ---- page: objects, values


def is_table(value):
    """Whether a value is a list of flat maps with the same few keys."""
    if (
        not isinstance(value, list)
        or len(value) < 2
        or not all(isinstance(one, dict) and one for one in value)
    ):
        return False
    flat = all(not isinstance(item, (dict, list)) for one in value[:200] for item in one.values())
    named = all(isinstance(name, str) and not name.startswith("$") for name in value[0])
    return flat and named and len({tuple(one) for one in value[:200]}) == 1 and len(value[0]) <= 8


def table_lines(value, columns, most=500):
    """Return a list of flat maps as lines of a table in a fixed font, its head first."""
    head = [str(name) for name in value[0]]
    body = [
        [short("" if item is None else item, 40) for item in one.values()] for one in value[:most]
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    numbers = [
        all(isinstance(one[name], (int, float)) for one in value[:most]) for name in value[0]
    ]
    lines = []
    for cells in (head, *body):
        padded = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(cells, widths, numbers, strict=True)
        ]
        lines.append("   ".join(padded)[:columns].rstrip())
    return lines


class ShowsValues:
    """What makes the page of objects one that shows slots: a row for each, and below it, where it is opened, all of its value."""

    NAMED = 168  # dp, of the column with the names of slots

    def _fill_slots(self):
        view = getattr(self, f"_{SPEC['views'].get(self.kind, 'object')}_rows", None)
        first = view() if view else []
        slots = [
            one
            for name, slot in self._shown["slots"].items()
            for one in self._slot_rows(name, slot)
        ]
        self.rows.fill([*first, *slots], keep=True)

    def _slot_rows(self, name, slot, tone=""):
        """Return a slot's row, and below it, where it is opened, its whole value."""
        value, refs = slot["value"], refs_in(slot["value"], 1)
        text = value_text(value, self._names, 400)
        if is_table(value):
            text = f"{len(value)} rows: {', '.join(map(str, value[0]))}"
        elif slot["type"] == "Method":
            text = f"method {ref_of(value) or ''}"
        head = row(
            marked(text, "accent" if refs else tone),
            marked(slot["type"], "faint"),
            value=(name, slot),
            lead=marked(name, tone, bold=True),
            indent=dp(self.NAMED),
            copy=f"{name}  {text}",
            lines=1,
        )
        return [
            head | {"side_width": dp(96)},
            *(self._value_rows(name, slot) if name in self._open else ()),
        ]

    def _value_rows(self, name, slot):
        """Return the rows of a slot's whole value: a table, a text as it reads, or JSON in colours."""
        value, kept = slot["value"], {"value": (name, slot), "ground": "raised"}
        columns = columns_of(self.rows, 3)
        if isinstance(value, str):
            lines = [(n, line, 0) for n, line in enumerate(value.split("\n")[:2000], 1)]
            made = [
                one
                for block in blocks_of("text", lines)
                for one in block_rows(block, self.rows.width)
            ]
            return [{**one, **kept} for one in made]
        if is_table(value):
            head, *body = table_lines(value, columns)
            said = [marked(head, "soft"), *(marked(line) for line in body)]
            return [code_row(line, **kept) for line in said]
        lines = [
            piece
            for line in pretty(value, columns).split("\n")[:2000]
            for piece in wrapped(plain(line), columns)
        ]
        return [code_row(coloured(line, "json"), copy=line, **kept) for line in lines]


# ---- page: objects, methods


class ShowsMethods:
    """What makes the page of objects one that shows methods: what one does, whether it is trusted, what it was before."""

    FACTS = (
        "status",
        "version",
        "author",
        "uses",
        "failures",
        "clean_in_a_row",
        "confirmed",
        "primitive",
    )

    def _method_rows(self):
        """Return the rows of a method: facts, what can be done with it, its source in colours, and its versions."""
        said = [
            f"{name.replace('_', ' ')} {short(self.value(name), 90)}"
            for name in self.FACTS
            if self.value(name) not in (None, "")
        ]
        rows = [row(marked(self.value("intent"), "ink"), lines=1)] if self.value("intent") else []
        rows.append(
            row(marked("   ".join(said), "soft"), value=("facts", {"value": None}), lines=1)
        )
        rows.append(row("    ".join(self._can_be_done()), lines=1))
        source = (
            self.value("source") or f"# a part of BAT OS itself: {self.value('primitive')}"
        ).strip("\n")
        rows += self._source_rows(source)
        rows += [row(marked(f"{name}: {text}", "good"), lines=1) for name, text in self._why]
        for (version, after, facts), (former, before, _) in zip(
            self._versions, self._versions[1:], strict=False
        ):
            rows.append(
                row(
                    f"{marked(f'version {version} in place of {former}', bold=True)}   {marked(facts, 'faint')}"
                )
            )
            rows += self._versions_rows(before, after)
        return [*rows, row("", height=10, lines=1)]

    BESIDE_FROM = 640  # dp, of a list in which two versions stand side by side

    def _versions_rows(self, before, after):
        """Return the difference of two versions: side by side where there is room, else below one another."""
        if self.rows.width < dp(self.BESIDE_FROM):
            return [
                code_row(marked(line, tone), copy=line)
                for tone, line in difference(before, after)[3:]
            ]
        half = (self.rows.width - dp(22)) / 2
        columns = max(20, int((half - dp(12)) / (sp(CODE) * 0.6)) - 2)
        return [
            one for pair in beside(before, after) for one in self._pair_rows(*pair, half, columns)
        ]

    @staticmethod
    def _pair_rows(old, new, half, columns):
        """Return the rows of a line as it was and as it is, each in its half."""
        signs = (" ", " ") if old == new else ("-", "+")
        sides = [wrapped(plain(line), columns) if line is not None else [] for line in (old, new)]
        rows = []
        for pieces in itertools.zip_longest(*sides):
            said = [
                None if piece is None else f"{sign} {piece}"
                for sign, piece in zip(signs, pieces, strict=True)
            ]
            left, right = (
                "" if text is None else marked(text, tone if signs[0] == "-" else "")
                for text, tone in zip(said, ("bad", "good"), strict=True)
            )
            copied = said[1:] if old == new else [text for text in said if text is not None]
            how = {"lead": left, "lead_font": FONTS.mono, "lead_size": CODE, "indent": half}
            rows.append(code_row(right, copy="\n".join(filter(None, copied)), **how))
        return rows

    def _can_be_done(self):
        """Return what can be pressed below a method."""
        can = [self._link("run", "run with arguments")]
        if self.value("status") == "guess" or self.value("guess") and not self.value("confirmed"):
            can += [
                self._link("confirm", "confirm the guess"),
                self._link("otherwise", "not right: say it otherwise"),
            ]
        can += [
            self._link(f"version {version}", f"back to version {version}")
            for version, *_ in self._versions[1:]
        ]
        return can

    @staticmethod
    def _source_rows(source):
        lines = source.split("\n")
        rows = []
        for number, (said, line) in enumerate(zip(code_lines(source), lines, strict=False), 1):
            margin = (str(number), "", 0)
            rows.append(code_row(said, copy=line, indent=dp(44), margin=margin, ground="raised"))
        return rows

    def _ask_versions(self):
        """Ask for the former versions of the method shown, and for the mission that wrote it."""
        self._versions = [self._version_of(self._shown["slots"])]
        self._ask_former(self.value("former"))
        if self._owner and self.value("source"):
            self.store.ask("history", self._made_by, target=self._owner[0], limit=100)

    @staticmethod
    def _version_of(slots):
        told_of = {name: slot["value"] for name, slot in slots.items()}
        facts = f"{told_of.get('author') or ''}  {clock_text(told_of.get('at'))}".strip()
        return told_of.get("version"), (told_of.get("source") or "").strip("\n"), facts

    def _ask_former(self, former):
        if ref_of(former) and len(self._versions) < 10:
            of = self.oid
            self.store.ask(
                "inspect", lambda reply: self._former_came(reply, of), target=ref_of(former)
            )

    def _former_came(self, reply, of):
        if reply["status"] == "OK" and of == self.oid and self.ids.tabs.chosen == "slots":
            slots = reply["result"]["slots"]
            self._versions.append(self._version_of(slots))
            self._ask_former(slots.get("former", {}).get("value"))
            self._fill_slots()

    def _home(self):
        """Return the oid of the object that has the method shown, or ''."""
        return self._owner[0] if self._owner else ref_of(self.value("home")) or ""

    def run(self) -> None:
        """Open the form that sends this method's message."""
        self.inspector.open("messages", target=self._home(), selector=self.value("selector"))

    def confirm(self) -> None:
        """Take the user's word for the method that was guessed."""
        self.store.ask("confirm", self._judged, doing="confirming", by_hand=True, method=self.oid)

    def _judged(self, reply):
        self.ids.note.text = marked(reply["details"], "good" if reply["status"] == "OK" else "bad")
        self.open(self.oid, keep=True, owner=self._owner)

    def otherwise(self) -> None:
        """Refuse a guess: its message is said anew, with other words."""
        self.inspector.open(
            "messages",
            target=self._home(),
            selector=self.value("selector"),
            intent=self.value("intent") or "",
        )

    def _roll_back(self, version):
        self.store.ask(
            "rollback",
            self._judged,
            doing="going back",
            by_hand=True,
            target_oid=self._home(),
            method_name=self.value("selector"),
            version=version,
        )

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
        self._why = [("test", test) for test in result.get("tests", ())] + [
            ("why it was written", result.get("why", ""))
        ]
        if self.ids.tabs.chosen == "slots":
            self._fill_slots()


# ---- page: objects, delegation


class GraphDrawing(StencilView, Drawing):
    """Who delegates to whom, hop by hop: what an object delegates to above it, what delegates to it below, what it names.

    The wheel zooms, a drag moves, a double click on no node shows it as at first. data: {"self": a node, "above": [[node]],
    nearest first, "below": [[node]], "refs": [node], "edges": [(oid, oid of what it delegates to)], "words": {rank: text}}.
    """

    NODE, HIGH, APART, BETWEEN = 168, 46, 14, 34  # dp
    SMALLEST, LARGEST = 0.4, 2.5  # how far it is zoomed
    zoom, pan_x, pan_y = NumericProperty(0), NumericProperty(0), NumericProperty(0)

    def __init__(self, **how):
        super().__init__(**how)
        self.bind(zoom=self.again, pan_x=self.again, pan_y=self.again)
        self.register_event_type("on_menu")

    def on_menu(self, value, touch):
        """A node was clicked with the right button."""

    def as_at_first(self) -> None:
        """Show it as large as it fits, its object amid."""
        self.zoom = self.pan_x = self.pan_y = 0

    @property
    def scale(self) -> float:
        """How large it is: as it was zoomed, else so that all ranks are seen."""
        if self.zoom or not self.data:
            return self.zoom or 1
        ranks = 1 + len(self.data["above"]) + len(self.data["below"])
        fits = self.height / dp(ranks * (self.HIGH + self.BETWEEN) + self.BETWEEN)
        return max(self.SMALLEST, min(1, fits))

    def draw(self, data: dict) -> None:
        self.unit = dp(1) * self.scale
        places = self._places(data)
        for lower, upper in data["edges"]:
            if lower in places and upper in places:
                self._edge(places[lower], places[upper])
        middle = places[data["self"]["oid"]]
        ended = max(place[0] for place in places.values()) + self.unit * self.NODE
        self._aside(data["refs"], middle, ended)
        for x, y, node, tone in places.values():
            self._node(node, x, y, tone)

    def _places(self, data):
        """Return {oid: (x, y, node, tone)} of the nodes that there is room for, and draw what each rank is."""
        above, below = data["above"], data["below"]
        share = 0.36 if data["refs"] else 0.5
        x = self.x + self.width * share + self.pan_x
        y = self.center_y + self.pan_y - self._step() * (len(above) - len(below)) / 2
        places = {data["self"]["oid"]: (*self._corner(x, y), data["self"], "accent")}
        for way, ranks, tone in ((1, above, "cool"), (-1, below, "good")):
            for hop, nodes in enumerate(ranks, 1):
                self._rank(places, nodes, x, y + way * hop * self._step(), tone)
                word = data["words"].get(way * hop)
                if word and nodes:
                    self._say_of_rank(word, nodes, x, y + way * hop * self._step())
        return places

    def _step(self):
        return self.unit * (self.HIGH + self.BETWEEN)

    def _corner(self, x, y):
        return x - self.unit * self.NODE / 2, y - self.unit * self.HIGH / 2

    def _across(self, nodes):
        """Return how many nodes of a rank there is room for; more where it is zoomed out."""
        return max(
            1, min(len(nodes), int(self.width * 0.72 / (self.unit * (self.NODE + self.APART))))
        )

    def _rank(self, places, nodes, x, y, tone):
        step, count = self.unit * (self.NODE + self.APART), self._across(nodes)
        for n, node in enumerate(nodes[:count]):
            corner = self._corner(x + step * (n - (count - 1) / 2), y)
            places.setdefault(node["oid"], (*corner, node, tone))

    def _say_of_rank(self, word, nodes, x, y):
        """Draw what a rank is, left of it; below its first node where there is no room."""
        left = x - self.unit * (self.NODE + self.APART) * self._across(nodes) / 2
        if left - dp(104) >= self.x:
            self.say(word, left - dp(104), y + sp(SMALL) * 0.7, dp(96), "soft", 12, lines=2)
        else:
            low = y - self.unit * self.HIGH / 2 - dp(3)
            self.say(word, left + self.unit * self.APART / 2, low, dp(150), "soft", 12)

    def _edge(self, lower, upper):
        wide, high = self.unit * self.NODE, self.unit * self.HIGH
        if abs(lower[1] - upper[1]) < high:  # of one rank: from side to side
            left, right = sorted((lower, upper), key=lambda place: place[0])
            ends = [left[0] + wide, left[1] + high / 2, right[0], right[1] + high / 2]
        else:
            ends = [lower[0] + wide / 2, lower[1] + high, upper[0] + wide / 2, upper[1]]
        self.line(ends, "cool" if upper[3] == "cool" else "good")

    def _aside(self, nodes, middle, ended):
        """Draw what the object names, right of all ranks, which end there."""
        high = self.unit * (self.HIGH + 8)
        shown = nodes[: max(1, int(self.height / high))]
        room = self.right - self.unit * self.NODE - dp(4) + self.pan_x
        x = min(room, ended + self.unit * 2 * self.BETWEEN)
        right, half = middle[0] + self.unit * self.NODE, self.unit * self.HIGH / 2
        for n, node in enumerate(shown):
            y = middle[1] + high * ((len(shown) - 1) / 2 - n)
            self.line([right, middle[1] + half, x, y + half], "edge")
            self._node(node, x, y, "violet")

    def _node(self, node, x, y, tone):
        unit = self.unit
        self.box(x, y, unit * self.NODE, unit * self.HIGH, "raised", 1, tone)
        room, size = unit * (self.NODE - 16), max(8, 13 * self.scale)
        self.say(node["name"], x + 9 * unit, y + unit * (self.HIGH - 4), room, "ink", size)
        note = "note" in node and self.scale > 0.5
        if note:
            self.say(
                node["note"], x + 9 * unit, y + unit * (self.HIGH - 24), room, "faint", size - 1
            )
        self.spots.append((x, y, x + unit * self.NODE, y + unit * self.HIGH, node["oid"]))

    # -------- the mouse

    def on_touch_down(self, touch):
        if not self.collide_point(*touch.pos):
            return False
        if touch.is_mouse_scrolling:
            self.zoom_at(1.15 if touch.button == "scrolldown" else 1 / 1.15, *touch.pos)
            return True
        node = self.node_at(*touch.pos)
        if getattr(touch, "button", "") == "right":
            self.dispatch("on_menu", node, touch)
        elif node:
            self.dispatch("on_spot", node)
        elif touch.is_double_tap:
            self.as_at_first()
        else:
            touch.grab(self)
        return True

    def on_touch_move(self, touch):
        if touch.grab_current is not self:
            return False
        self.pan_x, self.pan_y = self.pan_x + touch.dx, self.pan_y + touch.dy
        return True

    def on_touch_up(self, touch):
        if touch.grab_current is self:
            touch.ungrab(self)
            return True
        return False

    def node_at(self, x: float, y: float) -> str | None:
        """Return the oid of the node at a place, or None."""
        spots = (
            one for one in reversed(self.spots) if one[0] <= x <= one[2] and one[1] <= y <= one[3]
        )
        return next((oid for *_, oid in spots), None)

    def zoom_at(self, factor: float, x: float, y: float) -> None:
        """Zoom; what stands below a place stays there."""
        before = self.scale
        self.zoom = max(self.SMALLEST, min(self.LARGEST, before * factor))
        by = self.zoom / before
        middle_x = self.x + self.width * (0.36 if self.data["refs"] else 0.5)
        self.pan_x += (x - middle_x - self.pan_x) * (1 - by)
        self.pan_y += (y - self.center_y - self.pan_y) * (1 - by)


def methods_text(slots: dict) -> str:
    """Return how many slots an object has, and how many of them are methods."""
    methods = sum(slot["type"] == "Method" for slot in slots.values())
    told_of = f"{len(slots)} {'slot' if len(slots) == 1 else 'slots'}"
    return f"{methods} {'method' if methods == 1 else 'methods'}, {told_of}" if methods else told_of


class ShowsDelegation:
    """What makes the page of objects one that shows who answers a selector, and who delegates to whom."""

    CHILDREN = 5000  # at most, of those that delegate to an object
    FOLLOWED = 8  # of so few it is asked who delegates to them in turn
    BELOW_EACH = 50  # of those in turn

    def _show_selectors(self):
        """Say who answers each selector: the first in the order of delegation that has the slot, else BAT OS itself."""
        chain = [ref_of(one) for one in self._shown["delegates_to"]]
        self._holders = dict.fromkeys(self._shown["slots"], self.oid)
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
        """Show who delegates to whom: at once what the object itself tells, the rest as it comes."""
        self.ids.body.add_widget(self.graph)
        self.ids.body.add_widget(self.rows)
        pointers = {
            name: slot["value"] for name, slot in self._shown["slots"].items() if name.endswith("*")
        }
        aside = [
            (oid, name)
            for name, slot in self._shown["slots"].items()
            if name not in pointers
            for oid, near in named_refs(slot["value"], name, 8).items()
            if self._names.setdefault(oid, near)
        ]
        self._refs = [self._node(*one) for one in aside]
        self._parents = {self.oid: [oid for value in pointers.values() for oid in refs_in(value)]}
        self._notes, self._below = dict.fromkeys(self._parents[self.oid], "delegated to"), {}
        self._children, self._grandchildren = [], []
        if self.graph.data is None or self.graph.data["self"]["oid"] != self.oid:
            self.graph.as_at_first()
        self._fill_graph()
        self._ask_above()
        if self._shown["delegates_to"] or self._shown["selectors"]:
            self._ask_children(self.oid, "0x0", [])

    def _ask_above(self):
        """Ask each object that is delegated to whom it delegates to."""
        for oid in {ref_of(one) for one in self._shown["delegates_to"]}:
            self.store.ask(
                "inspect",
                lambda reply, of=self.oid: self._above_came(reply, of),
                target=oid,
                limit=1,
            )

    def _above_came(self, reply, of):
        if reply["status"] != "OK" or of != self.oid or self.ids.tabs.chosen != "graph":
            return
        oid, slots = reply["result"]["oid"], reply["result"]["slots"]
        name = slots.get("name", {}).get("value")
        self._names.setdefault(oid, str(name or oid))
        self._notes[oid] = methods_text(slots)
        self._parents[oid] = [
            one
            for slot, told_of in slots.items()
            if slot.endswith("*")
            for one in refs_in(told_of["value"])
        ]
        self._fill_graph()

    def _ranks_above(self):
        """Return [[oid]] of what is delegated to, by the fewest hops to it; what is not known yet stands last."""
        ranks, seen = [], {self.oid}
        reached = list(dict.fromkeys(self._parents[self.oid]))
        while reached := [oid for oid in reached if oid not in seen]:
            ranks.append(reached)
            seen.update(reached)
            reached = list(
                dict.fromkeys(one for oid in reached for one in self._parents.get(oid, ()))
            )
        left = [ref_of(one) for one in self._shown["delegates_to"] if ref_of(one) not in seen]
        return [*ranks, left] if left else ranks

    def _fill_graph(self):
        """Draw what is known by now, and list all of it: the graph has room for some alone."""
        ranks = self._ranks_above()
        above = [[self._node(oid, self._notes.get(oid, "")) for oid in rank] for rank in ranks]
        below = [rank for rank in (self._children, self._grandchildren) if rank]
        edges = [(oid, parent) for oid, parents in self._parents.items() for parent in parents]
        edges += [(node["oid"], self.oid) for node in self._children] + list(self._below.items())
        count = f"{len(self._children)} delegate to it"
        self.graph.data = {
            "self": self._node(self.oid, methods_text(self._shown["slots"])),
            "above": above,
            "below": below,
            "refs": self._refs,
            "edges": edges,
            "words": {1: "delegates to", 2: "further up", -1: count, -2: "further down"},
        }
        self._list_graph(above, below, count)

    def _list_graph(self, above, below, count):
        words = ["delegates to", *["further up"] * len(above)][: len(above)]
        parts = [*zip(words, above, strict=True), ("refers to", self._refs)]
        parts += zip((count, "further down"), below, strict=False)
        rows = []
        for word, nodes in parts:
            rows += [row(marked(word, "soft"), lines=1)] if nodes else []
            rows += [self._node_row(node) for node in nodes]
        self.rows.empty = "Nothing delegates to it, and it refers to nothing."
        self.rows.fill(rows, keep=True)

    @staticmethod
    def _node_row(node):
        said = f"{marked(node['name'], bold=True)}   {marked(node['note'], 'faint')}"
        return row(said, value=node["oid"], lines=1, pad=3)

    def _node(self, oid, note):
        return {"oid": oid, "name": self._names.get(oid, oid), "note": f"{note}  {oid}".strip()}

    def node_menu(self, oid: str | None, touch: typing.Any) -> None:
        """Offer what can be done with a node, or with the graph."""
        at_first = ("Show all of it", self.graph.as_at_first)
        of_node = [
            ("Open", lambda: self.open(oid)),
            ("Slots and methods", lambda: self._open_on(oid, "slots")),
            ("Who answers what", lambda: self._open_on(oid, "selectors")),
            ("History", lambda: self._open_on(oid, "history")),
            ("Send a message", lambda: self.inspector.open("messages", target=oid)),
        ]
        Menu.offer(touch, [*(of_node if oid else ()), at_first])

    def _open_on(self, oid, tab):
        self.open(oid)
        self.ids.tabs.chosen = tab

    def _ask_children(self, of, after, before):
        self.store.ask(
            "list_objects",
            lambda reply: self._children_came(reply, of, before),
            slot="children",
            doing="looking who delegates here",
            parent=of,
            after=after,
            limit=500,
        )

    def _children_came(self, reply, of, before):
        """Show what delegates to the object, and look on where the image goes on."""
        if reply["status"] != "OK" or of != self.oid or self.ids.tabs.chosen != "graph":
            return
        nodes, after = [*before, *self._nodes_of(reply)], reply["result"]["after"]
        looks_on = after and len(nodes) < self.CHILDREN
        if looks_on:
            self._ask_children(of, after, nodes)
        if not looks_on or len(nodes) >= len(self._children):
            self._children = nodes
            self._fill_graph()
        if not looks_on and len(nodes) <= self.FOLLOWED:
            self._ask_grandchildren([node["oid"] for node in nodes])

    def _nodes_of(self, reply):
        self._names |= {one["oid"]: one["name"] for one in reply["results"] if one["name"]}
        return [self._node(one["oid"], f"{len(one['slots'])} slots") for one in reply["results"]]

    def _ask_grandchildren(self, children):
        """Ask who delegates to those that delegate to the object, where they are few."""
        self._grandchildren, self._below = [], {}
        for oid in children:
            self._ask_below(oid, "0x0")

    def _ask_below(self, child, after):
        self.store.ask(
            "list_objects",
            lambda reply, of=self.oid: self._grandchildren_came(reply, of, child),
            parent=child,
            after=after,
            limit=self.BELOW_EACH,
        )

    def _grandchildren_came(self, reply, of, child):
        """Show who delegates to a child, and look on where the image goes on."""
        if reply["status"] != "OK" or of != self.oid or self.ids.tabs.chosen != "graph":
            return
        known = {self.oid, *self._below, *(node["oid"] for node in self._children)}
        nodes = [node for node in self._nodes_of(reply) if node["oid"] not in known]
        self._grandchildren += nodes
        self._below |= {node["oid"]: child for node in nodes}
        if nodes:
            self._fill_graph()
        if reply["result"]["after"] and list(self._below.values()).count(child) < self.BELOW_EACH:
            self._ask_below(child, reply["result"]["after"])


# ---- page: objects, history


class ShowsHistory:
    """What makes the page of objects a time machine: the changes of one, and what it was before any of them."""

    def _show_history(self):
        self.rows.fill([])
        for one in (self.slider, self.moment, self.rows):
            self.ids.body.add_widget(one)
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
        stood = self._past()
        self._changes = reply["results"]
        self.rows.empty = "Nothing changed here since the first transaction."
        self.slider.max = max(1, len(self._changes))
        self.slider.value = self.slider.max - self._newer_than(stood)
        self._then = self._then if self._past() else None
        self._fill_history()

    def _newer_than(self, change):
        """Return how many of the changes came after one; 0 for now, and where it is not among them."""
        named = [one["change"] for one in self._changes]
        return named.index(change["change"]) if change and change["change"] in named else 0

    def _fill_history(self):
        """Show what changed; where the slider is moved to the past, the object as it was."""
        if self._then:
            return self._fill_then()
        count = len(self._changes)
        self.moment.text = marked(
            f"now; {count} {'change' if count == 1 else 'changes'}, the slider goes back in time",
            "soft",
        )
        rows = []
        for change in self._changes:
            rows.append(change_row(change))
            if change["change"] in self._open:
                link = self._link(f"undo {change['change']}", "undo this change")
                rows.append(row(link, value=change, ground="raised"))
                lines = change_lines(change, self.oid)
                rows += [
                    code_row(marked(piece, tone), change, copy=piece, ground="raised")
                    for tone, line in lines
                    for piece in wrapped(plain(line), columns_of(self.rows, 3))
                ]
        self.rows.fill(rows, keep=True)

    def _past(self):
        """Return the change after which the slider stands, the newest of those shown; None for now."""
        at = len(self._changes) - int(self.slider.value)
        return self._changes[at] if 0 < at < len(self._changes) else None

    def _ask_then(self):
        """Ask for the object as it was where the slider stands."""
        change = self._past()
        if self.ids.tabs.chosen != "history":
            return
        if change is None:
            self._then = None
            self._fill_history()
        else:
            self.store.ask(
                "inspect",
                lambda reply, change=change: self._then_came(reply, change),
                slot="then",
                doing="looking back",
                target=self.oid,
                limit=200,
                as_of=change["change"],
            )

    def _then_came(self, reply, change):
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
        elif (self._past() or {}).get("change") == change["change"]:
            self._then = (change, reply["result"]["slots"])
            self._fill_history()

    def _fill_then(self):
        """Show the object as it was: what is otherwise by now stands out, and the change that came after can be undone."""
        change, slots = self._then
        now = self._shown["slots"]
        after = self._changes[self._newer_than(change) - 1]
        link = self._link(f"undo {after['change']}", "undo the change that came after")
        self.moment.text = marked(
            f"as it was after {change['command']} at {clock_text(change['at'])}", "warm"
        )
        rows = [row(link, lines=1)]
        for name, slot in slots.items():
            tone = "" if now.get(name, {}).get("value") == slot["value"] else "warm"
            rows += self._slot_rows(name, slot, tone)
        rows += [
            row(marked(f"{name} was not there", "faint"), lines=1)
            for name in now
            if name not in slots
        ]
        self.rows.fill(rows, keep=True)


# ---- page: objects, edits


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
        if what == "slot" and text.count("\n") + len(text) / 80 < 4:
            self.dialog.size_hint = (0.6, 0.56)
        self.dialog.button("Close", self.dialog.dismiss)
        self.go_on = self.dialog.button("Show the difference", self.accept, strong=True)
        self.dialog.accept = self.accept
        self.seen = None  # (name, text) whose difference is shown

    def open(self) -> None:
        self.dialog.open()
        (self.text if self.name.text else self.name).focus = True

    def accept(self) -> None:
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
            self.dialog.size_hint = (0.74, 0.82)
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


class EditsObjects:
    """What makes the page of objects one that edits: by the same messages as any client's, after the difference was seen."""

    def edit(self) -> None:
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


# ---- page: objects


FOUND_BY = tuple(
    name for name in COMMANDS["list_objects"]["fields"] if name not in ("words", "after", "limit")
)


class ObjectsPage(ShowsValues, ShowsMethods, ShowsDelegation, ShowsHistory, EditsObjects, Page):
    """The image as objects: a list to choose from, and the chosen one's slots, selectors, delegation and history."""

    name, wants = "objects", {"state": "fill_list", "uvm_state_update": "changed"}
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
                hint_text: 'Words, slot:NAME, kind:Method'
                on_text: root.typed()
                on_text_validate: root.find()
            Rows:
                id: list
                empty: root.spec['empty']
                on_open: root.open(self.chosen_row)
                on_more: root.more()
        Pane:
            padding: dp(18), dp(14)
            Strip:
                spacing: dp(2)
                Push:
                    text: '\u2039'
                    quiet: True
                    font_size: TITLE
                    disabled: not root.past
                    on_release: root.step(-1)
                Push:
                    text: '\u203a'
                    quiet: True
                    font_size: TITLE
                    disabled: not root.future
                    on_release: root.step(1)
                Words:
                    id: title
                    size_hint_y: 1
                    text_size: self.size
                    valign: 'middle'
                    font_size: LEAD
                    shorten: True
                    shorten_from: 'right'
                    max_lines: 1
                Push:
                    text: 'Edit'
                    quiet: True
                    disabled: not root.oid
                    on_release: root.edit()
                Push:
                    text: 'Add slot'
                    quiet: True
                    disabled: not root.oid
                    on_release: root.edit_slot('', None)
                Push:
                    text: 'Add method'
                    quiet: True
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
                on_chosen: root.turn()
            Words:
                id: note
                font_size: SMALL
                height: self.texture_size[1] if self.text else 0
            BoxLayout:
                id: body
                orientation: 'vertical'
                spacing: dp(8)

<TimeSlider@Slider>:
    size_hint_y: None
    height: dp(32)
    step: 1
    padding: dp(14)
    cursor_size: dp(18), dp(18)
    value_track: True
    value_track_color: ACCENT
    value_track_width: dp(2)
    background_width: dp(24)
"""
    oid, past, future = StringProperty(), ListProperty(), ListProperty()

    def made(self) -> None:
        self._after, self._fields, self._shown, self.kind = None, {}, {}, "object"
        self._found_rows = []
        self._find_typed = Clock.create_trigger(lambda _: self.find(), self.TYPED_S)
        self._names, self._holders, self._children, self._owner = {}, {}, [], None
        self.rows = Rows(clicks=2)
        self.rows.bind(
            on_open=lambda _: self.dive(self.rows.chosen_row),
            on_look=lambda _: self.toggle(),
            on_ref=lambda _, ref: self.pressed(ref),
        )
        self._wider = Clock.create_trigger(lambda _: self.fill_rows(), 0.1)
        self.rows.bind(width=lambda *_: self._wider())
        self.ids.list.bind(width=lambda *_: self.fill_list())
        self.graph = GraphDrawing(size_hint_y=1.3)
        self.graph.bind(on_spot=lambda _, oid: self.open(oid))
        self.graph.bind(on_menu=lambda _, oid, touch: self.node_menu(oid, touch))
        self._open, self._changes, self._then = (
            set(),
            [],
            None,
        )  # what is opened; the history; the object as of then
        self._versions, self._why = (
            [],
            [],
        )  # of a method: [(version, source, facts)], what its mission said
        self.slider, self.moment = Factory.TimeSlider(), Factory.Caption()
        self.slider.bind(value=lambda *_: self._ask_then())

    def begin(self) -> None:
        self.ids.query.focus = True

    def changed(self, _):
        """Something was committed."""
        self.store.look_anew()
        self.refresh()

    def refresh(self) -> None:
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
        kind = "" if kind == "UvmObject" else kind
        return row(
            f"{marked(short(name or oid, 60), bold=bool(name))}  {marked(f'{kind} {oid}', 'faint')}\n"
            f"{marked(short(', '.join(slots) or 'no slots', 120), 'soft')}",
            value=oid,
        )

    def typed(self) -> None:
        """Look for what is typed, after a pause."""
        if self.ids.query.focus:
            self._find_typed.cancel()
            self._find_typed()

    def find(self):
        """Ask for objects with words, a slot, or of a class; without words for the roots."""
        self._find_typed.cancel()
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

    def more(self) -> None:
        if self._fields and self._after:
            after, self._after = self._after, None
            self._find(after, self._found_rows, len(self._found_rows) + 1)

    # -------- one object

    def place(self) -> dict:
        return {"oid": self.oid} if self.oid else {}

    def go(
        self, oid: str | None = None, selector: str | None = None, tab: str | None = None
    ) -> None:
        if selector:
            self.ids.query.text = f"slot:{selector}"
            self.find()
        if tab:
            self.ids.tabs.chosen = tab
        if oid:
            self.open(oid)

    def open(self, oid: str | None, keep: bool = False, owner: tuple | None = None) -> None:
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
        self._changes, self._then = (self._changes, self._then) if stays else ([], None)
        self._versions, self._why = (self._versions, self._why) if stays else ([], [])
        self._open = self._open if stays else set()
        self.rows.chosen = self.rows.chosen if stays else -1
        name = self.value("name") or self._names.get(self.oid) or self.value("selector")
        self._names[self.oid] = str(name or self.oid)
        self.ids.title.text = (
            f"{marked(short(self._names[self.oid], 60), bold=True)}   "
            f"{marked('' if self.kind == 'method' else shown['class'], 'faint')}  {marked(self.oid, 'faint')}  "
            f"{marked('' if self.kind == 'object' else self.kind, 'violet')}"
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
            self._ask_above()
            self._ask_children(self.oid, "0x0", [])

    def value(self, slot: str) -> typing.Any:
        """Return the value of one of the object's slots, or None."""
        return self._shown.get("slots", {}).get(slot, {}).get("value")

    def step(self, way: int) -> None:
        """Go back (-1) or forward (1)."""
        stack, other = (self.past, self.future) if way < 0 else (self.future, self.past)
        if stack:
            oid, owner = stack[-1]
            other.append((self.oid, self._owner))
            stack.pop()
            self.open(oid, keep=True, owner=owner)

    def back(self) -> bool:
        if self.past:
            self.step(-1)
            return True
        if self._fields:
            self.ids.query.text = ""
            self.find()
            return True
        return False

    def key(self, key: str, modifiers: list) -> bool:
        moves = {("left", "alt"): -1, ("right", "alt"): 1}
        if key in ("left", "right") and not modifiers and self.ids.tabs.chosen == "history":
            slider = self.slider
            slider.value = max(1, min(slider.max, slider.value + (1 if key == "right" else -1)))
        elif modifiers and (key, modifiers[0]) in moves:
            self.step(moves[key, modifiers[0]])
        elif key == "e" and not modifiers and self.oid:
            # the key itself shall not be typed there
            Clock.schedule_once(lambda _: self.edit(), 0.05)
        else:
            return False
        return True

    # -------- what is seen of it

    def turn(self) -> None:
        """Show another side of it."""
        self._then = None
        self.show()

    def show(self, *_) -> None:
        if not self._shown:
            return
        self.ids.body.clear_widgets()
        getattr(self, f"_show_{self.ids.tabs.chosen}")()

    def fill_rows(self):
        """Fill the rows anew: what was opened, came, or became wider."""
        fill = getattr(self, f"_fill_{self.ids.tabs.chosen}", None)
        if self._shown and fill:
            fill()

    def toggle(self):
        """Open what is chosen in place, or close it."""
        value = self.rows.chosen_row
        name = (
            value[0]
            if isinstance(value, tuple)
            else value["change"]
            if isinstance(value, dict)
            else None
        )
        if name is not None and self.ids.tabs.chosen in ("slots", "history"):
            self._open ^= {name}
            self.fill_rows()

    def pressed(self, ref):
        """What stands in a row to be pressed was pressed."""
        verb, _, what = ref.partition(" ")
        {
            "undo": lambda: self.inspector.undo(what, lambda: self.open(self.oid, keep=True)),
            "run": self.run,
            "confirm": self.confirm,
            "otherwise": self.otherwise,
            "version": lambda: self._roll_back(int(what)),
            "ask": lambda: self.inspector.open("ask", cycle=self.oid),
            "object": lambda: self.open(what),
        }[verb]()

    @staticmethod
    def _link(ref, words):
        return f"[ref={ref}]{marked(words, 'accent')}[/ref]"

    def _show_slots(self):
        self.ids.body.add_widget(self.rows)
        if self.kind == "method" and not self._versions:
            self._ask_versions()
        self._fill_slots()

    def _cycle_rows(self):
        """Return the rows of a cycle of thought: its question, and why it failed or what it waits for."""
        report = report_of(self.oid, self._shown["slots"])
        said = [("", report["mission"]), *how_it_went(report, self.store.health, ())]
        lines = [
            line
            for tone, text in said
            for line in lines_marked(text, self.rows.width - dp(34), tone, most=8)
        ]
        return [
            *(row(line, lines=1, pad=2) for line in lines),
            row(self._link("ask", "show it under Ask"), lines=1),
        ]

    def dive(self, value):
        """Open what a row refers to."""
        if not value:
            return
        if self.ids.tabs.chosen == "slots" and isinstance(value, tuple):
            refs = refs_in(value[1]["value"], 200)
            if len(refs) == 1:
                self.open(refs[0], owner=(self.oid, value[0]))
            elif refs:
                self._choose_ref(value[0], refs)
            else:
                self.edit()
        elif self.ids.tabs.chosen == "selectors" and value[1]:
            self.open(value[1])
        elif self.ids.tabs.chosen == "graph":
            self.open(value)

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


# ---- page: messages


def cycle_in(reply: dict) -> str:
    """Return the cycle that a reply tells of, or ''."""
    result = reply.get("result")
    told_of = {**(result if isinstance(result, dict) else {}), **reply.get("fields", {}), **reply}
    return told_of["cycle"] if isinstance(told_of.get("cycle"), str) else ""


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
                        text: 'Copy as script' if root.width > dp(860) else 'Script'
                        on_release: root.copy()
                    Push:
                        text: 'Clear'
                        on_release: root.choose(root.command)
            Split:
                orientation: 'vertical'
                name: 'messages script'
                share: 0.6
                Pane:
                    Words:
                        id: told
                        on_ref_press: root.inspector.open('ask', cycle=root.cycle)
                    Strip:
                        id: guess
                        height: dp(36) if root.guess else 0
                        opacity: 1 if root.guess else 0
                        Push:
                            text: 'Confirm the guess'
                            disabled: not root.guess
                            on_release: root.confirm()
                        Push:
                            text: 'Not right'
                            quiet: True
                            disabled: not root.guess
                            on_release: root.otherwise()
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
                Pane:
                    padding: dp(12), dp(10)
                    Caption:
                        text: 'The same as a script'
                    Rows:
                        id: script
                        clicks: 2
"""
    FIRST, LEAF_CHARS = "send_message", 2000
    command, change, guess = StringProperty(), StringProperty(), StringProperty()
    cycle = StringProperty()  # of which the reply tells
    _no_target = ""  # what was said of a target that there is not

    def made(self) -> None:
        self._reply, self._opened, self._known = None, {()}, {}
        self._write_later = Clock.create_trigger(lambda _: self._show_script(), 0.1)
        self.choose(self.FIRST)
        self.fill_side()

    def begin(self) -> None:
        for first in list(self._fields.values())[:1]:  # shutdown has none
            first.focus = True

    def shown(self) -> None:
        super().shown()
        self.fill_side()

    def fill_side(self):
        if self.ids.side.chosen == "commands":
            first = [self.FIRST, *sorted(set(COMMANDS) - {self.FIRST})]
            rows = [
                row(
                    f"{marked(name, bold=True)}\n{marked(short(spoken(COMMANDS[name]['help']), 160), 'soft')}",
                    value=name,
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
            f"{marked(short(sent.fields, 160), 'soft')}",
            value=sent,
        )

    def chose(self, value):
        if isinstance(value, str):
            self.choose(value)
        elif value:
            self.choose(value.command, value.fields)
            self.show_reply(value)

    # -------- the form

    def choose(self, command: str, fields: dict | None = None) -> None:
        """Make the form of a command, filled with fields."""
        self.store.forget("selectors")
        self.command, self._fields, told_of = command, {}, COMMANDS[command]
        self.ids.title.text, self.ids.help.text = (
            marked(command, bold=True),
            marked(spoken(told_of["help"])),
        )
        self.ids.form.clear_widgets()
        for name, field in self._flat(told_of["fields"]):
            self._add_field(name, field, self._given(fields or {}, name))
        self.offered = Factory.Flow()
        self.ids.form.add_widget(self.offered)
        self.ids.note.text = ""
        for field in self._fields.values():
            field.bind(**{"value" if isinstance(field, Chooser) else "text": self._write_later})
        self._write_later()

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
        needed = ", needed" if field.get("required") else ""
        default = field.get("default")
        hint = field["type"] + (
            f", default {short(default, 40)}" if default not in (None, "", [], {}) else ""
        )
        label = f"{marked(name)}   {marked(hint + needed, 'faint')}"
        self.ids.form.add_widget(Words(text=label, font_size=sp(13), padding=(0, dp(6), 0, 0)))
        if field["type"] in ("choice", "switch"):
            choices = [None, *(field.get("choices") or (False, True))]
            value = given if given in choices else None
            one = Chooser(title=name, choices=choices, value=value, unset="as usual")
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
            self.ids.note.text = self._no_target = marked(reply["details"], "bad")
            return
        if self.ids.note.text == self._no_target:  # what else was said stands
            self.ids.note.text = ""
        for name in reply["result"].get("selectors", ())[:40]:
            push = Factory.Bare(text=marked(short(name, 40)))
            push.bind(on_release=lambda _, name=name: setattr(selector, "text", name))
            self.offered.add_widget(push)

    def fields(self) -> dict:
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

    def send(self) -> None:
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

    def script(self) -> str:
        """Return a Python script that does the same. Raises ValueError that names a field which cannot be read."""
        return script_for(self.inspector.endpoint, self.inspector.keys, self.command, self.fields())

    def _show_script(self):
        """Show the script of what is typed, or why there is none yet."""
        try:
            rows = [code_row(line) for line in code_lines(self.script())]
        except ValueError as error:
            rows = [row(marked(f"Not yet: {error}.", "faint"), lines=1, pad=3)]
        self.ids.script.fill(rows)

    def copy(self) -> None:
        """Put a Python script that does the same into the clipboard."""
        from kivy.core.clipboard import Clipboard

        try:
            Clipboard.copy(self.script())
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
        reply = sent.reply or {}
        self.change, self.cycle = reply.get("change", ""), cycle_in(reply)
        self.guess = ref_of(reply.get("method")) or "" if reply.get("guess") else ""
        if sent.reply is None:
            self.ids.told.text = marked("sent; waiting for the reply \u2026", "soft")
        else:
            ok = sent.reply["status"] == "OK"
            code = f"{sent.reply.get('code', '')}: " if not ok else ""
            self.ids.told.text = (
                f"{marked(code + sent.reply['details'], 'good' if ok else 'bad')}  "
                f"{marked(seconds_text(sent.seconds), 'faint')}"
            )
            if self.cycle and "ask" in PAGE_CLASSES:
                self.ids.told.text += f"\n[ref=cycle]{marked('how it was thought', 'accent')}[/ref]"
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
            height=27 + 18 * (lines - 1),
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

    def confirm(self) -> None:
        """Take the user's word for the method that was guessed; its message is there to be sent again."""
        sent = self._reply
        self.store.ask(
            "confirm",
            lambda reply: self._confirmed(reply, sent),
            doing="confirming",
            by_hand=True,
            method=self.guess,
        )

    def _confirmed(self, reply, sent):
        ok = reply["status"] == "OK"
        self.ids.note.text = marked(reply["details"], "good" if ok else "bad")
        if ok and self._reply is sent:
            self.guess = ""

    def otherwise(self) -> None:
        """Refuse a guess: the message is said anew, with other words for what it means."""
        self.guess = ""
        self._fields["intent"].focus = True
        self.ids.note.text = marked(
            "Say in the intent what it means, with an example such as: of [1, 2] it is 3", "soft"
        )

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

    def place(self) -> dict:
        return {"command": self.command}

    def go(self, target: str | None = None, command: str | None = None, **given) -> None:
        if command:
            self.choose(command)
            self.begin()
        if target:
            self.choose(self.FIRST, {"target": target, **given})
            self._ask_selectors(target)
            first = "intent" if "intent" in given else "args" if "selector" in given else "selector"
            self._fields[first].focus = True


# ---- page: experts


class ExpertsPage(Page):
    """The three tiers of the experts' memory, how full each is, and who is where."""

    name, live, wants = "experts", True, {"health": "refresh"}
    kv = """
<ExpertsPage>:
    orientation: 'vertical'
    spacing: dp(10)
    BoxLayout:
        id: tiers
        spacing: dp(10)
        size_hint_y: None
        height: dp(104)
    Split:
        orientation: 'vertical'
        name: 'experts forge'
        share: 0.58
        Split:
            name: 'experts'
            share: 0.5
            Pane:
                padding: dp(6)
                Rows:
                    id: rows
                    clicks: 2
                    empty: root.spec['empty']
                    on_move: root.look()
                    on_open: root.activate(self.chosen_row)
                Strip:
                    Push:
                        text: 'Activate'
                        disabled: root.ids.rows.chosen < 0
                        on_release: root.activate(root.ids.rows.chosen_row)
                    Words:
                        id: note
                        size_hint_y: 1
                        text_size: self.size
                        valign: 'middle'
                        font_size: SMALL
            Pane:
                padding: dp(6)
                Rows:
                    id: steps
                    clicks: 2
                    empty: root.PROTOCOL
        Pane:
            padding: dp(12), dp(8)
            Strip:
                Words:
                    id: golden
                    size_hint_y: 1
                    text_size: self.size
                    valign: 'middle'
                    font_size: SMALL
                Push:
                    id: forge
                    text: 'Forge the reader'
                    on_release: root.forge()
            BoxLayout:
                spacing: dp(8)
                Rows:
                    id: jobs
                    clicks: 2
                    empty: root.NO_JOBS
                    on_move: root.show_loss()
                    on_ref: root.show_reader()
                Spark:
                    id: loss
                    size_hint_x: 0.8 if self.data else None
                    width: 1 if self.data else 0
                    opacity: 1 if self.data else 0
                Rows:
                    id: learnt
                    clicks: 2
                    on_open: root.show_cycle(self.chosen_row)
"""
    PROTOCOL = "Activate an expert to see the protocol of the memory manager, step by step."
    NO_JOBS = (
        "Nothing was forged yet. Mark answers as right and as wrong: what is learnt of them becomes a dataset, and of "
        "that an expert, which is judged before it stands."
    )

    def made(self) -> None:
        fill_anew = Clock.create_trigger(lambda _: self._fill_steps())
        self.ids.steps.bind(width=lambda *_: fill_anew())
        self.gauges, self.facts, self._protocol, self._told = {}, {}, [], {}
        self.titles: dict = {}
        self._persona_slots: dict = {}  # name of a persona -> what it is for
        for tier in SPEC["tiers"]:
            if tier["name"] in self.spec["columns"]:
                self._add_tier(tier)

    def _add_tier(self, tier):
        pane, name = Pane(), tier["name"]
        self.titles[name] = Words(text=marked(tier["title"], bold=True))
        pane.add_widget(self.titles[name])
        self.gauges[name] = Gauge(size_hint_y=None, height=dp(8))
        self.facts[name] = Factory.Caption()
        for widget in (self.gauges[name], self.facts[name], Widget()):
            pane.add_widget(widget)
        self.ids.tiers.add_widget(pane)
        pane.bind(minimum_height=self._fit_tiers)

    def _fit_tiers(self, *_):
        """Have the tiers as high as what the fullest of them says."""
        self.ids.tiers.height = max(pane.minimum_height for pane in self.ids.tiers.children)

    def begin(self) -> None:
        self.ids.rows.focus = True

    def refresh(self, *_) -> None:
        self.store.ask("list_experts", self._came, slot="experts", doing="listing")

    def look_anew(self) -> None:
        super().look_anew()
        self._ask_forge()

    # -------- the forge

    def _ask_forge(self):
        """Ask for the jobs of the forge, and how much was learnt of marks."""
        self.store.ask("list_jobs", self._jobs_came, slot="jobs", doing="listing jobs")
        self.store.ask("list_golden", self._golden_came, slot="golden", limit=50)

    def look(self) -> None:
        """Show the facts of the expert that is chosen."""
        self._protocol = []
        self._fill_steps()

    def _fill_steps(self):
        """Show the facts of the expert that is chosen, at the width that there is now, unless a protocol is shown."""
        if not self._protocol:
            self.ids.steps.fill(self._facts_of_chosen(), keep=True)

    def _facts_of_chosen(self):
        told_of = self._told.get(self.ids.rows.chosen_row)
        if not told_of:
            return []
        wide = self.ids.steps.width
        known = {name: value for name, value in told_of.items() if value not in (None, "", [], {})}
        facts = [one for name, value in known.items() for one in fact_rows(name, value, wide)]
        hint = [
            row(marked(line, "faint"), lines=1, pad=2)
            for line in in_lines(self.PROTOCOL, wide - dp(34))
        ]
        return [*facts, *self._persona_rows(told_of["expert"]), row("", height=10, lines=1), *hint]

    def _persona_rows(self, expert):
        """Return what the persona of an expert is for, once it was looked at; one that no persona has has none."""
        name = f"{expert.lower()}_prototype_obj"
        if name not in self.store.state.get("objects", {}):
            return []
        if name not in self._persona_slots:
            self._persona_slots[name] = {}
            self.store.ask("inspect", lambda reply: self._persona_came(name, reply), target=name)
        wide, slots = self.ids.steps.width, self._persona_slots[name]
        return [one for key, value in slots.items() for one in fact_rows(key, value, wide)]

    def _persona_came(self, name, reply):
        if reply["status"] != "OK":
            return
        slots = {key: slot["value"] for key, slot in reply["result"]["slots"].items()}
        entries = (slots.get("pillars") or {}).get("$tree", {}).get("entries", [])
        facets = [pillar.removesuffix("_facet_").replace("_", " ") for pillar, _ in entries]
        told = {key: slots.get(key) for key in ("core_mission", "archetype")}
        told["facets"] = ", ".join(facets)
        self._persona_slots[name] = {key: value for key, value in told.items() if value}
        self._fill_steps()

    def _jobs_came(self, reply):
        if reply["status"] != "OK":
            self._say_of_forge(reply["details"], "bad")
            return
        self.ids.jobs.fill([self._job_row(job) for job in reply["results"]], keep=True)
        if reply["results"]:
            self.ids.jobs.choose(max(0, self.ids.jobs.chosen))
        self.show_loss()

    def _golden_came(self, reply):
        self._say_of_forge(f"what was learnt of marks: {reply['details']}")
        rows = [self._golden_row(one) for one in reply.get("results", ())]
        self.ids.learnt.fill(rows, keep=True)

    def _golden_row(self, one):
        """Return the row of what was learnt of a mark: what was asked, and which of its passages are right."""
        wide = max(dp(160), self.ids.learnt.width - dp(120))
        told = [f"passage {number} is right" for number in one["quotes"]]
        told += [f"passage {number} is not right" for number in one.get("not", ())]
        facts = ", ".join([*told, one["state"], *filter(None, [one.get("why", "")])])
        said = f"{marked(cut(one['question'], wide))}\n{marked(cut(facts, wide), 'soft')}"
        return row(said, marked(clock_text(one["at"]), "faint"), value=one, pad=5)

    def show_cycle(self, learnt: dict | None) -> None:
        """Show the answer that was marked."""
        if learnt:
            self.inspector.open("ask", cycle=learnt["cycle"])

    def _say_of_forge(self, words, tone="soft"):
        self.ids.golden.text = f"{marked('Forge', bold=True)}   {marked(words, tone)}"

    TONES = {"promoted": "good", "rejected": "warm", "failed": "bad", "rolled back": "warm"}

    def _job_row(self, job):
        status = job["status"].lower()
        tone = self.TONES.get(status, "cool")
        head = f"{marked('job ' + str(job['job']), bold=True)}  {marked(status, tone)}"
        wide = max(dp(160), self.ids.jobs.width - dp(34))
        facts = f"{job['target']}, dataset {job['dataset']}, {clock_text(job['at'])}"
        said = lines_marked(job["told"], wide, "soft", most=4)
        if status == "promoted":
            said.append(
                f"[ref=reader]{marked('what it changed, and how to undo it', 'accent')}[/ref]"
            )
        return row("\n".join([head, marked(facts, "faint"), *said]), value=job, pad=8)

    def show_reader(self):
        """Show the history of the reader, in which a promotion is a change that can be undone."""
        reader = self.store.state.get("objects", {}).get("reader_obj", {})
        self.inspector.open("objects", oid=reader.get("oid"), tab="history")

    def show_loss(self):
        """Draw how much the chosen job erred as it learnt."""
        job = self.ids.jobs.chosen_row
        losses = ((job or {}).get("report") or {}).get("losses") if isinstance(job, dict) else None
        values = list(enumerate(losses or (), 1))
        shown = {"title": "loss, as it learnt", "unit": "", "values": values, "when": self._of}
        self.ids.loss.data = shown if values else None

    @staticmethod
    def _of(number):
        return f"{number:.0f}"

    def forge(self):
        """Have the reader learn from the last dataset; the job is judged before it stands."""
        self.store.ask("forge", self._begun, slot="forge", doing="beginning a job", by_hand=True)

    def _begun(self, reply):
        tone = "good" if reply["status"] == "OK" else "bad"
        self._ask_forge()
        self.store.forget("golden")
        self._say_of_forge(reply["details"], tone)

    def _came(self, reply):
        if reply["status"] != "OK":
            self.ids.note.text = marked(reply["details"], "bad")
            return
        self._told = {one["expert"]: one for one in reply["results"]}
        self.ids.rows.fill([self._expert_row(one) for one in reply["results"]], keep=True)
        if self.ids.rows.chosen < 0:
            self.ids.rows.choose(0)
        else:
            self._fill_steps()
        for tier in SPEC["tiers"]:
            if tier["name"] in self.gauges:
                self._show_tier(tier, reply)

    FACTS = ("evictions", "fills", "device", "left_mb")  # of a tier, where it tells them

    def _show_tier(self, tier, reply):
        name, figures = tier["name"], reply["result"].get(tier["name"], {})
        used = figures.get(tier["used"], 0)
        used, room = len(used) if isinstance(used, list) else used, figures.get(tier["room"])
        said = (
            f"{number_text(used)} of {number_text(room)} {tier['unit']}"
            if room
            else f"{number_text(used)} {tier['unit']}"
        )
        self.gauges[name].data = {"used": used, "room": room, "tone": "cool", "words": said}
        title = marked(tier["title"], bold=True)
        self.titles[name].text = f"{title}   {marked(said, 'soft')}"
        times = reply["result"].get("times", {}).get(name, {})
        facts = [
            f"{reply['result'].get('found', {}).get(name, 0)} hits",
            f"p50 {number_text(times.get('p50_ms', 0))} ms",
        ]
        facts += [
            f"{key.replace('_', ' ')} {number_text(figures[key])}"
            for key in self.FACTS
            if key in figures
        ]
        self.facts[name].text = marked("   ".join(facts), "soft")

    @staticmethod
    def _expert_row(one):
        always = ", always hot" if one["always_hot"] else ""
        facts = (
            f"version {one['version']}, rank {one['rank']}, {one['bytes'] / 1e3:,.0f} kB{always}"
        )
        tone = next((tier["tone"] for tier in SPEC["tiers"] if tier["name"] == one["tier"]), "soft")
        note = f"  {marked(one['note'], 'warm')}" if one["note"] else ""
        uses = f"{one['uses']} {'use' if one['uses'] == 1 else 'uses'}"
        return row(
            f"{marked(one['expert'], bold=True)}   {marked(one['tier'], tone)}{note}\n{marked(facts, 'soft')}",
            marked(uses, "soft"),
            value=one["expert"],
            pad=8,
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
        self._protocol = [
            row(marked(short(answer, 300)), lead=marked(step, "soft"), indent=dp(170), lines=1)
            for step, answer in steps
        ]
        self.ids.steps.fill(self._protocol)
        self.refresh()


# ---- page: life


FIGURES_S = 4.5  # a drawing costs some 50 ms where there is no graphics card
SPANS = {"now": None, "48 hours": "minutes", "90 days": "hours"}  # what the figures are of


def heartbeat_text(beat):
    """Return when the heartbeat comes, as health tells it."""
    return f"heartbeat in {seconds_text(beat.get('next_s'))}" if beat.get("on") else "heartbeat off"


def metric_texts(beat):
    """Return what the last heartbeat told of the Composite Entropy Metric: the figure, its parts, whether it is low."""
    told_of = beat.get("cem")
    if not told_of:
        return []
    parts = ", ".join(f"{name[2:]} {told_of[name]:.2f}" for name in ("h_cog", "h_sol", "h_struc"))
    low = ", low" if told_of.get("low") else ""
    return [f"CEM {told_of['cem']:.2f} ({parts}{low})"]


class LifePage(ShowsFigures, Page):
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
    Strip:
        Tabs:
            id: spans
            names: root.span_names
            chosen: root.span_names[0]
            on_chosen: root.turn_span()
        Words:
            id: vitals
            size_hint_x: 1.6
            text_size: self.size
            size_hint_y: 1
            valign: 'middle'
            halign: 'right'
            shorten: True
            shorten_from: 'right'
    GridLayout:
        id: sparks
        cols: max(1, (len(self.children) + 1) // 2)
        spacing: dp(8)
        size_hint_y: None
        height: dp(232)
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
                size_hint_x: None
                width: dp(92) if root.width < dp(860) else root.width * 0.24
                hint_text: 'Filter'
                on_text: root.fill()
            Push:
                text: 'Go on' if root.paused else 'Pause'
                height: '30dp'
                down: root.paused
                on_release: root.paused = not root.paused
        Split:
            id: halves
            name: 'life'
            share: 0.6
            Rows:
                id: rows
                empty: root.spec['empty']
                clicks: 2
                on_move: root.look()
                on_open: root.open(self.chosen_row)
                on_ref: root.open(self.chosen_row)
            Rows:
                id: lines
                on_ref: root.open(root.ids.rows.chosen_row)
                clicks: 2
                empty: 'Choose a row to see it in full.'
"""
    paused, span_names = BooleanProperty(False), ListProperty(list(SPANS))
    NOTHING = {
        "failures": "No mission has failed.",
        "report": "No audit has found anything yet.",
        "upkeep": "Nothing was done yet: the image is packed where it grew, and the heartbeat comes by itself.",
    }
    TOLD_WHOLE = ("upkeep", "settings")  # whose rows say all that there is
    # what an event has asked for anew, where it is shown
    FOLLOWS = {
        "cycle": ("missions", "failures"),
        "uvm_state_update": ("missions", "failures", "changes"),
    }

    def made(self) -> None:
        self._take_later = Clock.create_trigger(lambda _: self._take(), COMMITTED_S)
        self._looked_at = None  # the value of the row that is shown in full
        self._measured = {}  # span -> (names of the figures, rows)
        wider = Clock.create_trigger(lambda _: self._looked_at and self.look(), 0.1)
        self.ids.lines.bind(width=lambda *_: wider())
        self.sparks, self._rows, self._drawn_s = [Spark() for _ in SPEC["sparks"]], [], 0.0
        self._show_sparks(self.sparks)

    def begin(self) -> None:
        self.ids.rows.focus = True

    def turn_span(self):
        """Show the figures of another time."""
        span = SPANS[self.ids.spans.chosen]
        if span:
            self.store.ask(
                "measures",
                lambda reply: self._measures_came(reply, span),
                slot="measures",
                span=span,
            )
        self.draw_figures()

    def _measures_came(self, reply, span):
        if reply["status"] == "OK":
            self._measured[span] = reply["result"]["figures"], reply["results"]
            self.draw_figures()

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
                "when": self._when,
                "nothing": told_of_none(spec["path"]),
            }
        self._show_sparks([one for one in self.sparks if one.data["values"]] or self.sparks)
        self.ids.vitals.text = marked("   ".join(self._vitals(self.store.health)), "soft")

    def _show_sparks(self, shown):
        """Show the figures of which something was measured; what comes with the first heartbeat has no empty place until then."""
        if shown != self.ids.sparks.children[::-1]:
            self.ids.sparks.clear_widgets()
            for spark in shown:
                self.ids.sparks.add_widget(spark)

    @staticmethod
    def _vitals(health):
        """Return what else health tells, in words; nothing of what it does not tell."""
        core, missions = health.get("core", {}), health.get("missions", {})
        said = [f"up {seconds_text(health['uptime_s'])}"] if "uptime_s" in health else []
        said += [f"core {core['state']}"] if "state" in core else []
        said += [
            f"{missions[name]} {name}" for name in ("running", "waiting") if missions.get(name)
        ]
        said += (
            [f"upkeep: {health['upkeep']['doing']}"]
            if health.get("upkeep", {}).get("doing")
            else []
        )
        said += [heartbeat_text(health["heartbeat"])] if health.get("heartbeat") else []
        said += metric_texts(health.get("heartbeat") or {})
        said += [f"version {health['version']}", f"pid {health['pid']}"] if "pid" in health else []
        return said

    def _when(self, at_s):
        """Return when something was measured, for people."""
        span = SPANS[self.ids.spans.chosen]
        if span is None:
            ago = time.monotonic() - at_s
            return "now" if ago < FIGURES_S else f"{seconds_text(ago)} ago"
        at = datetime.datetime.fromtimestamp(at_s)
        return f"{at:%a %H:%M}" if span == "minutes" else f"{at:%d %b %H}h"

    def _values(self, spec):
        span = SPANS[self.ids.spans.chosen]
        if span is None:
            values = [(at, figure(health, spec["path"])) for at, health in self.store.samples]
        else:
            names, rows = self._measured.get(span, ([], []))
            column = names.index(spec["path"]) + 1 if spec["path"] in names else 0
            values = [(one[0], one[column]) for one in rows] if column else []
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

    def turn(self) -> None:
        """Show another list."""
        self.store.forget("life")
        self._rows = []
        self.ids.lines.fill([])
        self.ids.rows.fill([])
        self.refresh()

    def refresh(self, *_) -> None:
        if SPANS[self.ids.spans.chosen]:
            self.turn_span()
        self.draw_figures()
        self._take()

    def _take(self):
        """Ask for, or make, the rows of the list that is shown."""
        getattr(self, f"_take_{self.ids.tabs.chosen}")()

    def _take_events(self):
        if not self.paused or not self._rows:
            self._show(self._event_rows())

    def _event_rows(self):
        """Return [(row, event)] of the events, the newest first; those of health that follow one another are one row."""
        rows, count = [], 0
        for event in reversed(self.store.events):
            is_beat = event["event"] == "health"
            if is_beat and rows and rows[-1][1]["event"] == "health":
                count += 1
                newest = rows[-1][1]
                side = marked(f"{count} times", "faint")
                rows[-1] = (self._event_row(newest) | {"side": side, "side_width": dp(76)}, newest)
            else:
                count = 1
                rows.append((self._event_row(event), event))
        return rows

    def _take_missions(self):
        self.store.ask("list_cycles", self._missions_came, slot="life", doing="listing", limit=500)

    def _missions_came(self, reply):
        reports, health = reply.get("results", ()), self.store.health
        turns = {turn["cycle"]: len(thread) for thread in threads_of(reports) for turn in thread}

        def made(one):
            waits = "" if one["state"] in ENDED else waits_for(one, health, reports)
            return cycle_row(one, self.ids.rows.width, waits, turns[one["cycle"]])

        self._listed(reply, made)

    def _take_failures(self):
        self.store.ask(
            "list_cycles",
            lambda reply: self._listed(reply, self._failure_row),
            slot="life",
            doing="listing",
            limit=500,
            state="FAILED",
        )

    def _take_report(self):
        """Show what the audits found, the newest first."""
        self.store.ask(
            "send_message",
            self._report_came,
            slot="life",
            doing="reading the report",
            target="autotelic_obj",
            selector="audit_report_",
            args=[200],
        )

    def _report_came(self, reply):
        self._listed(reply | {"results": reply.get("result")}, self._finding_row)

    @staticmethod
    def _finding_row(finding):
        """Return a row for a finding: what it is and what may be done; it opens the first mission that tells of it."""
        finding["cycle"] = next(iter(finding["cycles"]), finding["audit"])
        what = f"{marked(finding['kind'], 'warm')}  {marked(short(finding['what'], 200))}"
        return row(
            f"{what}\n{marked(short(finding['why'], 240), 'soft')}",
            marked(clock_text(finding["at"]), "soft"),
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
        health, rows = self.store.health, []
        beat = (health.get("heartbeat") or {}).get("last")
        for name, one in health.get("upkeep", {}).get("last", {}).items():
            how = marked("went well", "good") if one["ok"] else marked("failed", "bad")
            when = f"{clock_text(one.get('at'))}   {seconds_text(one['seconds'])}"
            rows.append((self._done_row(name, how, one["details"], when), one))
        if beat:
            said = self._done_row("heartbeat", "", beat["told"], clock_text(beat["at"]))
            rows.append((said, beat))
        self._show(rows)

    def _done_row(self, name, how, details, when):
        """Return a row for what was done: how it went, and all that was told of it."""
        room = max(dp(160), self.ids.halves.width - dp(180))
        head = f"{marked(name, bold=True)}  {how}"
        lines = [head, *lines_marked(details, room, "soft", most=5)]
        return row("\n".join(lines), marked(when.strip(), "soft"), side_width=dp(140), pad=6)

    def _take_settings(self):
        settings = self.store.state.get("settings", {})
        self._show([(self._setting_row(*one), dict([one])) for one in settings.items()])

    def _setting_row(self, name, value):
        """Return a row for a setting: how it is set, in what, what for; what is not as it comes stands bold."""
        default, unit, what_for = SETTINGS.get(name, (value, "", ""))
        room = max(dp(120), self.ids.halves.width - dp(240))
        is_set = value not in (None, "", [], "(not set)")
        usual = value == default or not is_set
        said = marked(short(value, 160) if is_set else "not set", bold=not usual)
        said += f"   {marked(unit, 'soft')}" if unit else ""
        said += "" if usual else f"   {marked(f'as it comes: {short(default, 60)}', 'faint')}"
        lines = [said, *lines_marked(what_for, room, "faint", most=3)]
        return row(
            "\n".join(lines),
            lead=marked(name, bold=True),
            indent=dp(210),
            pad=5,
            copy=f"{name}  {short(value, 400)}  {what_for}",
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
        tab = self.ids.tabs.chosen
        self.ids.rows.empty = self.NOTHING.get(tab, self.spec["empty"])
        self.ids.halves.fold(self.ids.lines, tab in self.TOLD_WHOLE or not rows)
        self.fill()

    def fill(self) -> None:
        """Show the rows in which the filter's words are."""
        words = self.ids.filter.text.casefold().split()
        rows = [
            one
            for one in self._rows
            if all(word in f"{one.get('lead', '')} {one['text']}".casefold() for word in words)
        ]
        self.ids.rows.fill(rows, keep=True)
        if rows and self.ids.rows.chosen_row is None and self.ids.tabs.chosen != "events":
            self.ids.rows.choose(0)  # no half is empty; of events the newest is another each second
        if self.ids.rows.chosen_row != self._looked_at:
            self.look()

    @staticmethod
    def _failure_row(report):
        reason = report.get("reason", {})
        return row(
            f"{marked(short(report['mission'], 160))}\n{marked(reason.get('code', ''), 'bad')}  "
            f"{marked(short(spoken(reason.get('details', '')), 200), 'soft')}",
            marked(clock_text(report["accepted_at"]), "soft"),
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
            lines=1,
        )

    def happened(self, event):
        if not isinstance(event, dict):
            return
        chosen = self.ids.tabs.chosen
        if chosen == "events":
            self._take_events()
        elif chosen in self.FOLLOWS.get(event["event"], ()):
            self._take_later()

    def look(self) -> None:
        """Show the chosen row in full: why it failed first, where it did."""
        self._looked_at = value = self.ids.rows.chosen_row
        self.store.forget("life cycle")
        if not isinstance(value, dict):
            return self.ids.lines.fill([])
        cycle = value.get("cycle")
        if (
            isinstance(cycle, str) and "mission" not in value
        ):  # an event or a change names its cycle alone
            self.store.ask(
                "inspect",
                lambda reply: self._cycle_came(reply, value),
                slot="life cycle",
                target=cycle,
            )
        self._fill_lines(value, value if "mission" in value else {})

    def _cycle_came(self, reply, value):
        """Tell of the cycle of an event or a change how it went."""
        if reply["status"] == "OK" and self.ids.rows.chosen_row == value:
            self._fill_lines(value, report_of(value["cycle"], reply["result"]["slots"]))

    def _fill_lines(self, value, report):
        """Show a row in full: how its cycle went first, then what is told of it."""
        rows, wide = [], self.ids.lines.width
        if report and report is not value:
            rows += self._said_rows("", report["mission"], wide)
        went = how_it_went(report, self.store.health, self._reports()) if report else ()
        rows += [one for tone, line in went for one in self._said_rows(tone, line, wide)]
        if isinstance(value.get("cycle"), str):
            rows += [row(f"[ref=cycle]{marked('show it under Ask', 'accent')}[/ref]", lines=1)]
        for name, inner in value.items():
            if name != "reason" and inner not in (None, "", [], {}):
                rows += fact_rows(name, inner, wide)
        self.ids.lines.fill(rows)

    @staticmethod
    def _said_rows(tone, text, wide):
        lines = lines_marked(text, wide - dp(34), tone, most=12)
        return [row(line, lines=1, pad=2) for line in lines]

    def _reports(self):
        """Return the missions that are listed, of which one may wait for another."""
        return [one["value"] for one in self._rows if "mission" in (one["value"] or ())]

    def open(self, value: typing.Any) -> None:
        if isinstance(value, dict) and isinstance(value.get("cycle"), str):
            self.inspector.open("ask", cycle=value["cycle"])

    def key(self, key: str, modifiers: list) -> bool:
        if key == "spacebar":
            self.paused = not self.paused
            return True
        return False


# ---- page: pages


LINE = 26  # dp, of a line in a drawn part
LINES_DRAWN = 40  # of a table; the rest is told by its number


class TableDrawing(Drawing):
    """A table: data is {"columns", "rows"}; a cell {"$ref", "name"} opens what it refers to."""

    def draw(self, data: typing.Any) -> None:
        rows = data["rows"][:LINES_DRAWN]
        self._sides = [self._side_of(column) for column in zip(*rows, strict=True)]
        self._sides = self._sides or ["left"] * len(data["columns"])
        shares = self._shares(data)
        self._line(data["columns"], shares, 0, "soft")
        for number, cells in enumerate(rows, 1):
            low = self.top - dp(LINE) * number
            self.line([self.x, low, self.right, low], "edge", 1)
            self._line(cells, shares, number, "ink")

    @staticmethod
    def _side_of(column):
        """Return the side that a column stands at: numbers, where it has nothing else, at the right."""
        held = [cell for cell in column if cell is not None]
        plain_numbers = [type(cell) in (int, float) for cell in held]
        return "right" if held and all(plain_numbers) else "left"

    @staticmethod
    def _shares(data):
        """Return which share of the width each column takes: by its longest cell."""
        columns = zip(data["columns"], *data["rows"][:LINES_DRAWN], strict=True)
        longest = [max(len(cell_text(cell)) for cell in column) for column in columns]
        wide = [max(5, min(30, one)) for one in longest]
        return [one / sum(wide) for one in wide]

    def _line(self, cells, shares, number, tone):
        left, top = self.x + dp(4), self.top - dp(LINE) * number - dp(5)
        for cell, share, side in zip(cells, shares, self._sides, strict=True):
            width = (self.width - dp(8)) * share
            refers = isinstance(cell, dict) and "$ref" in cell
            said = "accent" if refers else tone
            self.say(cell_text(cell), left, top, width - dp(10), said, 13, side)
            if refers:
                self.spots.append((left, top - dp(LINE), left + width, top, cell["$ref"]))
            left += width


def cell_text(cell):
    """Return what a cell says."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, dict):
        return str(cell.get("name", short(cell, 40)))
    return number_text(cell) if isinstance(cell, (int, float)) else one_line(cell)


def one_line(text):
    return " ".join(str(text).split())


class BarsDrawing(Drawing):
    """A number of each object as a bar: data is {"bars": [(name, number)]}."""

    def draw(self, data: typing.Any) -> None:
        numbers = [number for _, number in data["bars"]]
        low, high = min(0, *numbers), max(0, *numbers)
        span = (high - low) or 1
        named = min(dp(190), self.width * 0.3)
        wide = self.width - named - dp(84)
        zero = self.x + named + wide * (0 - low) / span
        for place, (name, number) in enumerate(data["bars"]):
            top = self.top - dp(LINE + 6) * place
            self.say(name, self.x + dp(4), top - dp(6), named - dp(12), "ink", 13)
            long = wide * number / span
            left = min(zero, zero + long)
            self.box(left, top - dp(LINE), max(dp(2), abs(long)), dp(LINE - 6), "accent", 0.75)
            right = max(zero, zero + long) + dp(8)
            self.say(number_text(number), right, top - dp(6), dp(74), "ink", 13)


class NetDrawing(Drawing):
    """Objects and what their slots refer to: data is {"nodes": [(oid, name)], "edges": [(oid, oid, slot)], "roots"}."""

    HIGH = 34

    def draw(self, data: typing.Any) -> None:
        ranks = self.ranks(data)
        places = self._places(ranks)
        names = dict(data["nodes"])
        wide = self._wide(ranks)
        for one, other, slot in data["edges"]:
            if one in places and other in places:
                self._edge(places[one], places[other], slot, wide)
        for oid, (x, y) in places.items():
            tone = "accent" if oid in data["roots"] else "violet"
            self.box(x, y, wide, dp(self.HIGH), "raised", 1, tone)
            self.say(names[oid], x + dp(9), y + dp(self.HIGH - 8), wide - dp(14), "ink", 13)
            self.spots.append((x, y, x + wide, y + dp(self.HIGH), oid))

    @staticmethod
    def ranks(data):
        """Return [[oid]] by how many steps each is from a root."""
        ranks, seen = (
            [[oid for oid, _ in data["nodes"] if oid in data["roots"]]],
            set(data["roots"]),
        )
        while ranks[-1]:
            following = []
            for one, other, _ in data["edges"]:
                if one in ranks[-1] and other not in seen:
                    seen.add(other)
                    following.append(other)
            ranks.append(following)
        return ranks[:-1]

    def _wide(self, ranks):
        return min(dp(170), self.width / (len(ranks) * 1.5))

    def _places(self, ranks):
        """Return {oid: (x, y)}: a column for each rank, in the middle of the height."""
        places, step = {}, self.width / len(ranks)
        for rank, oids in enumerate(ranks):
            down = min(dp(self.HIGH + 12), self.height / max(1, len(oids)))
            top = self.center_y + down * len(oids) / 2
            for place, oid in enumerate(oids, 1):
                places[oid] = self.x + step * rank + dp(4), top - down * place
        return places

    def _edge(self, one, other, slot, wide):
        forward = other[0] > one[0]
        begin = one[0] + wide if forward else one[0]
        end = other[0] if forward else other[0] + wide
        high = dp(self.HIGH / 2)
        self.line([begin, one[1] + high, end, other[1] + high], "edge")
        middle = (begin + end) / 2, (one[1] + other[1]) / 2 + high + dp(16)
        self.say(slot, middle[0] - dp(46), middle[1], dp(92), "faint", 11, "center")


def series_of(points):
    """Return ([(where, number)], where -> words): along the time where all tell one, else along their order."""
    try:
        told_at = [datetime.datetime.fromisoformat(where) for where, _ in points]
        values = [(at.timestamp(), number) for at, (_, number) in zip(told_at, points, strict=True)]
        days = all(at.time() == datetime.time() for at in told_at)
        days = days or values[-1][0] - values[0][0] > 2 * 86400
    except (TypeError, ValueError, IndexError):
        words = [str(where) for where, _ in points]
        return [(n, number) for n, (_, number) in enumerate(points)], lambda n: words[round(n)]
    form = "%Y-%m-%d" if days else "%H:%M:%S"
    return sorted(values), lambda s: f"{datetime.datetime.fromtimestamp(s):{form}}"


class Drawn:
    """The parts of a page as widgets: a method for each kind of part of the daemon's grammar, which knows no more of it than
    what it is told."""

    def __init__(self, page):
        self.page = page

    def widget(self, part: dict) -> Widget:
        """Return the widget of a part; one that this client cannot draw, or that shows nothing, says so."""
        if "fault" in part:
            return self._framed(part, [Words(text=marked(part["fault"], "bad"))])
        draw = getattr(self, f"_{part['part']}", None)
        if draw is None:
            said = f"this client draws no {part['part']}; take one of the daemon's version"
            return self._framed(part, [Words(text=marked(said, "warm"))])
        return draw(part, part.get("data", {}))

    def _framed(self, part, widgets, title=""):
        pane = BoxLayout(orientation="vertical", padding=dp(12), spacing=dp(8), size_hint_y=None)
        pane.bind(minimum_height=pane.setter("height"))
        if title:
            pane.add_widget(Words(text=marked(title, "soft"), font_size=sp(SMALL)))
        for widget in widgets:
            pane.add_widget(widget)
        return pane

    def _heading(self, part, data):
        return Words(text=marked(part["text"], bold=True), font_size=sp(LEAD), padding=(0, dp(8)))

    def _text(self, part, data):
        lines = [(n, line, 0) for n, line in enumerate(part["text"].split("\n"), 1)]
        said = "\n\n".join(self._paragraph(block) for block in blocks_of("markdown", lines))
        return self._framed(part, [Words(text=said, font_size=sp(READ), line_height=1.25)])

    @staticmethod
    def _paragraph(block):
        text, styles = styled(plain(block.text))
        return _dressed(text, styles, [False] * len(text), READ)

    def _figure(self, part, data):
        unit = f" {marked(part['unit'], 'soft')}" if part.get("unit") else ""
        said = marked(cell_text(data["value"]), bold=True) + unit
        return self._framed(
            part,
            [Words(text=said, font_size=sp(30))],
            part.get("label") or f"{data['name']}: {part['slot']}",
        )

    def _tall(self, drawing, lines):
        drawing.size_hint_y, drawing.height = None, dp(LINE) * lines + dp(4)
        drawing.bind(on_spot=lambda _, oid: self.page.inspector.open("objects", oid=oid))
        return drawing

    def _table(self, part, data, title=""):
        drawn = self._tall(TableDrawing(data=data), min(LINES_DRAWN, len(data["rows"])) + 1)
        more = len(data["rows"]) - LINES_DRAWN + data.get("left_out", 0)
        widgets = [drawn]
        if more > 0:
            widgets.append(Words(text=marked(f"and {more} more", "faint")))
        return self._framed(part, widgets, title)

    def _slots(self, part, data):
        return self._table(part, {"columns": ["slot", "holds"], "rows": data["rows"]})

    def _rows(self, part, data):
        return self._table(part, data, part["slot"])

    def _plot(self, part, data):
        sparks = []
        for series in data["series"]:
            values, when = series_of(series["points"])
            title = f"{series['name']}: {series['what']}"
            shown = {"title": title, "unit": part.get("unit", ""), "values": values, "when": when}
            spark = Spark(data=shown, size_hint_y=None, height=dp(190))
            self.page.sparks.append(spark)
            sparks.append(spark)
        return self._framed(part, sparks)

    def _bars(self, part, data):
        lines = len(data["bars"]) * (LINE + 6) / LINE
        return self._framed(part, [self._tall(BarsDrawing(data=data), lines)], part["slot"])

    def _graph(self, part, data):
        roots = [oid for oid, _ in data["nodes"][: len(part["objects"])]]
        shown = {**data, "roots": roots}
        tallest = max(len(rank) for rank in NetDrawing.ranks(shown))
        return self._framed(part, [self._tall(NetDrawing(data=shown), 2 + 2 * min(tallest, 8))])

    def _history(self, part, data):
        lines = []
        for change in data["changes"]:
            at = clock_text({"$time": change["at"]})
            head = f"{marked(at, 'soft')}   {marked(change['name'], bold=True)}   {marked(change['who'], 'faint')}"
            sides = [self._side_by_side(*one) for one in change["slots"][:4]]
            lines.append("   ".join([head, *sides]))
        said = "\n".join(lines) or marked("Nothing changed in the kept history.", "faint")
        return self._framed(part, [Words(text=said, line_height=1.35)], "changes, the newest first")

    @staticmethod
    def _side_by_side(slot, before, after):
        """Return the words of a slot that changed."""
        was = (
            f"{marked(cell_text(before), 'bad')} {marked('to', 'faint')} "
            if before is not None
            else ""
        )
        return f"{marked(slot, 'soft')}  {was}{marked(cell_text(after), 'good')}"

    def _passages(self, part, data):
        widgets = []
        for one in data["passages"]:
            head = Push(text=marked(name_of(one["doc_id"]), "accent"), quiet=True, height=dp(28))
            chunk = int(one["chunk_id"].rpartition("_")[2])
            head.bind(
                on_release=lambda _, one=one, chunk=chunk: self.page.inspector.open(
                    "search", doc_id=one["doc_id"], chunk=chunk
                )
            )
            words = Words(text=marked(one["text"].strip()), line_height=1.2)
            widgets += [head, words]
        nothing = Words(text=marked(TEXTS["nothing"], "faint"))
        return self._framed(part, widgets or [nothing], part["words"])

    def _message(self, part, data):
        said = part.get("label") or f"{data['name']}: {part['selector']}"
        push, told_of = Push(text=marked(said), disabled=not data["understood"]), Words()
        push.bind(on_release=lambda _: self.page.send_message(data["oid"], part, told_of))
        return self._framed(part, [push, told_of])


class PagesPage(ShowsFigures, Page):
    """Pages of one's own: said in a sentence, offered as a form, kept, changed and undone."""

    name, live, wants = "pages", True, {"uvm_state_update": "follow"}
    kv = """
<PagesPage>:
    orientation: 'vertical'
    spacing: dp(10)
    Strip:
        height: dp(40)
        Field:
            id: wish
            height: dp(40)
            font_size: LEAD
            hint_text: 'What shall a page show?  Such as: the temperature of my kiln over time'
            on_text_validate: root.choose()
        Push:
            text: 'Choose'
            strong: True
            height: dp(40)
            on_release: root.choose()
    Split:
        name: 'pages'
        share: 0.22
        Pane:
            padding: dp(6)
            Rows:
                id: kept
                empty: root.spec['empty']
                on_open: root.show(self.chosen_row)
        Pane:
            id: shown
            BoxLayout:
                id: form
                size_hint_y: None
                height: dp(36)
                spacing: dp(8)
                Field:
                    id: title
                    hint_text: 'title'
                    disabled: not root.page
                    on_text_validate: root.retitle()
                Push:
                    id: keep
                    text: 'Keep'
                    strong: True
                    disabled: not root.is_draft
                    on_release: root.keep()
                Push:
                    text: 'Before'
                    disabled: root.is_draft or root.version < 2
                    on_release: root.restore()
                Push:
                    text: 'Remove'
                    disabled: root.is_draft or not root.page
                    on_release: root.remove()
            BoxLayout:
                size_hint_y: None
                height: dp(36)
                spacing: dp(8)
                Chooser:
                    id: kind
                    title: 'kind'
                    disabled: not root.page
                    on_release: root.fill_anew()
                Field:
                    id: objects
                    hint_text: 'objects, by name'
                    disabled: not root.page
                    on_text_validate: root.fill_anew()
                Field:
                    id: slots
                    size_hint_x: 0.6
                    hint_text: 'slots; none: those that fit'
                    disabled: not root.page
                    on_text_validate: root.fill_anew()
            Words:
                id: note
                font_size: SMALL
            ScrollView:
                id: scroll
                bar_width: dp(8)
                bar_color: EDGE
                bar_inactive_color: EDGE
                scroll_type: ['bars', 'content']
                scroll_wheel_distance: dp(60)
                GridLayout:
                    id: parts
                    cols: 1
                    spacing: dp(10)
                    padding: 0, 0, dp(10), 0
                    size_hint_y: None
                    height: self.minimum_height
"""
    page = ObjectProperty(None, allownone=True)  # as it is shown
    is_draft = BooleanProperty(False)  # it is not kept yet
    version = NumericProperty(0)

    def made(self) -> None:
        self.sparks, self.grammar, self._told, self._names = [], None, None, []

    def begin(self) -> None:
        self.ids.wish.focus = True

    def go(self, page: str | None = None, wish: str | None = None) -> None:
        if page:
            self.show(page)
        if wish:
            self.ids.wish.text = wish
            self.choose()

    def place(self) -> dict:
        return {"page": self.page["name"]} if self.page and not self.is_draft else {}

    # -------- what is kept

    def refresh(self, *_) -> None:
        self.store.ask("list_pages", self._listed, slot="pages", doing="listing pages")

    def follow(self, *_):
        """Something was changed, here or by another client: what is shown is asked anew."""
        self.refresh()
        self.look()

    def _listed(self, reply):
        if reply["status"] != "OK":
            return self._note(reply["details"], "bad")
        self.grammar = reply["result"]["grammar"]
        self.ids.kind.choices = list(self.grammar["kinds"])
        rows = [
            row(
                f"{marked(one['title'], bold=True)}\n{marked(self._facts(one), 'soft')}",
                value=one["name"],
                pad=8,
            )
            for one in reply["results"]
        ]
        self._names = [one["name"] for one in reply["results"]]
        self.ids.kept.fill(rows, keep=True)
        if self.page is None and rows:
            self.show(rows[0]["value"])

    @staticmethod
    def _facts(one):
        return f"{one['kind']}   version {one['version']}   {clock_text(one['at'])}"

    def show(self, name: str) -> None:
        """Show a page that is kept."""
        if name:
            self.is_draft, self.page = False, {"name": name}
            self.look()

    def look(self) -> None:
        """Ask for what is shown, with what its parts hold by now."""
        if self.page is None:
            return
        which = {"page": self.page} if self.is_draft else {"name": self.page["name"]}
        self.store.ask(
            "show_page", self._came, slot="page", doing="looking at the page", fields=which
        )

    def _came(self, reply):
        if reply["status"] != "OK":
            self._note(reply["details"], "bad")
            return self._clear() if reply.get("code") == "NotFound" else None
        told_of = reply["result"]
        anew = self.page != told_of["page"]
        self.page, self.version = told_of["page"], told_of.get("version", 0)
        if anew or not self.ids.title.text:
            self._fill_form(told_of)
        if told_of["parts"] != self._told:
            self._told = told_of["parts"]
            self._draw(told_of["parts"])

    def _clear(self):
        self.page, self.version, self._told, self.is_draft = None, 0, None, False
        self.ids.parts.clear_widgets()
        self.sparks = []
        for name in ("title", "objects", "slots"):
            self.ids[name].text = ""

    def _draw(self, parts):
        """Put a widget for each part; what was scrolled to stays there."""
        at, grid, drawn = self.ids.scroll.scroll_y, self.ids.parts, Drawn(self)
        grid.clear_widgets()
        self.sparks = []
        grid.cols = 2 if self.page["layout"] == "two" and self.width > dp(700) else 1
        for part in parts:
            grid.add_widget(drawn.widget(part))
        self.ids.scroll.scroll_y = at

    def _note(self, words, tone="soft"):
        self.ids.note.text = marked(words, tone)

    # -------- the form

    def choose(self) -> None:
        """Have the page chosen that a sentence means."""
        words = self.ids.wish.text.strip()
        if not words:
            return
        brief = {"type": "unhandled_message", "selector": "page_for_", "args": [words]}
        self._note("choosing \u2026")
        self.store.ask(
            "initiate_cognitive_cycle",
            self._chosen,
            slot="choice",
            doing="choosing a page",
            by_hand=True,
            mission_brief=brief,
            target_oid="morphic_ui_obj",
            wait=True,
        )

    def _chosen(self, reply):
        report = reply.get("result") or {}
        if reply["status"] != "OK" or "page" not in report:
            why = (report.get("reason") or {}).get("details")
            return self._note(why or reply["details"], "bad")
        self.offer(report["page"], f"{report['answer']}", report["form"]["names"])

    def offer(self, page: dict, said: str = "", names: dict | None = None) -> None:
        """Show a page that is not kept, with its form to confirm."""
        self.is_draft, self.page, self._told = True, page, None
        self._fill_form({"page": page}, names)
        self._note(said, "warm")
        self.look()

    def _fill_form(self, told_of, names=None):
        page = told_of["page"]
        self.ids.title.text, self.ids.kind.value = page["title"], page["kind"]
        self.ids.objects.text = ", ".join(names or told_of.get("names") or [])
        self.ids.slots.text = ", ".join(self._slots_of(page))

    @staticmethod
    def _slots_of(page):
        """Return the slots that the parts of a page show."""
        slots = [part["slot"] for part in page["parts"] if "slot" in part]
        for part in page["parts"]:
            slots += part.get("slots", [])
        return list(dict.fromkeys(slots))

    @staticmethod
    def _listed_in(text):
        return [one.strip() for one in text.split(",") if one.strip()]

    def fill_anew(self):
        """Have the page made that the form says: another kind, other objects or slots."""
        if not self.page:
            return
        same = self.ids.kind.value == self.page["kind"]
        slots = self._listed_in(self.ids.slots.text) if same else []
        how = {"slots": slots, "title": self.ids.title.text, "words": self.page.get("words", "")}
        self._send(
            "page_of_",
            [self.ids.kind.value, self._listed_in(self.ids.objects.text)],
            self._filled,
            kwargs={**how, "name": self.page["name"]},
        )

    def _filled(self, result):
        self.offer(
            result, "Keep it, or change what is not meant.", self._listed_in(self.ids.objects.text)
        )

    def retitle(self):
        """Change the title of what is shown, and nothing else of it."""
        title = self.ids.title.text
        if self.is_draft:
            self.page = {**self.page, "title": title}
        elif self.page:
            self._send("change_page_", [self.page["name"], "title", title], self._kept)

    def keep(self) -> None:
        if self.is_draft:
            page = {**self.page, "title": self.ids.title.text}
            self._send("keep_page_", [page], self._kept)

    def restore(self):
        """Have the version before stand again."""
        self._send("restore_page_", [self.page["name"]], self._kept)

    def remove(self) -> None:
        self._send("remove_page_", [self.page["name"]], self._removed)

    def _removed(self, result):
        self._clear()
        self._note(f"{result['name']} is removed; Ctrl+Z brings it back")
        self.refresh()

    def _kept(self, result):
        self._note(
            f"{result['name']} is kept as version {result['version']}; Ctrl+Z undoes it", "good"
        )
        self.show(result["name"])
        self.refresh()

    def _send(self, selector, args, then, kwargs=None):
        def came(reply):
            if reply["status"] == "OK":
                return then(reply["result"])
            self._note(reply["details"], "bad")

        fields = {"target": "morphic_ui_obj", "selector": selector, "args": args}
        fields |= {"kwargs": kwargs or {}, "generate": False}
        self.store.ask("send_message", came, slot="page message", by_hand=True, fields=fields)

    def send_message(self, oid, part, told_of):
        """Send the message of a button, and show what came of it."""

        def came(reply):
            ok = reply["status"] == "OK"
            said = short(reply.get("result"), 400) if ok else reply["details"]
            told_of.text = marked(said, "ink" if ok else "bad")
            self.look()

        self.store.ask(
            "send_message",
            came,
            by_hand=True,
            target=oid,
            selector=part["selector"],
            generate=False,
        )


# ---- inspector

PAGE_CLASSES = {kind.name: kind for kind in Page.__subclasses__() if kind.name in PAGES}
INSPECTOR_KV = """
<MemoryInspector>:
    orientation: 'vertical'
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
        BoxLayout:
            id: navigation
            orientation: 'vertical'
            size_hint_x: None
            width: dp(76)
            padding: dp(8), dp(10)
            spacing: dp(4)
        BoxLayout:
            id: room
            padding: 0, dp(10), dp(10), dp(8)
    BoxLayout:
        size_hint_y: None
        height: dp(28)
        padding: dp(14), 0
        Words:
            id: status
            size_hint_y: 1
            text_size: self.size
            valign: 'middle'
            font_size: SMALL
            max_lines: 1
            shorten: True
            shorten_from: 'right'
        Words:
            id: waiting
            size_hint: 0.4 if self.text else None, 1
            width: 1 if self.text else 0
            text_size: self.size
            valign: 'middle'
            halign: 'right'
            font_size: SMALL
            max_lines: 1

<NavigationPush>:
    quiet: True
    size_hint_x: 1
    height: dp(58)
    font_size: sp(11.5)
    color: INK if self.down else SOFT
    halign: 'center'
    valign: 'bottom'
    text_size: self.width, self.height - dp(10)
"""
# How often it looks for keys and messages, and draws where there is cause: each look wakes the processor, whatever has come.
# (frames a second, for how many s), from where something is done to where nobody has touched it for long
PACES = ((60, 1.5), (8, 15), (5, None))
BUSY, CALM, LEFT = range(len(PACES))
LAYOUT = {
    "width": 1366,
    "height": 820,
    "page": next(iter(PAGES)),
    "splits": {},
    "theme": THEMES[0],
    "zoom": 1.0,
    "density": next(iter(DENSITIES)),
}


class NavigationPush(Push):
    """The button of a page, with its icon."""

    icon = StringProperty()

    def __init__(self, **how):
        super().__init__(**how)
        self._drawn = InstructionGroup()
        self.canvas.after.add(self._drawn)
        draw = Clock.create_trigger(lambda _: self._draw())
        self.bind(pos=draw, size=draw, down=draw, icon=draw)
        draw()

    def _draw(self):
        """Draw the icon above the name."""
        wide = dp(22)
        left, low = self.center_x - wide / 2, self.top - dp(10) - wide
        self._drawn.clear()
        self._drawn.add(Color(*get_color_from_hex(colour("accent" if self.down else "soft"))))
        for stroke in ICONS.get(self.icon, ()):
            scaled = [one * wide / 24 for one in stroke if one != "o"]
            if stroke[0] == "o":
                x, y, radius = scaled
                self._drawn.add(Line(circle=(left + x, low + y, radius), width=1.25))
            else:
                points = [one + (low if n % 2 else left) for n, one in enumerate(scaled)]
                self._drawn.add(Line(points=points, width=1.25, joint="round", cap="round"))


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
    45: "-",
    61: "=",
    269: "-",
    270: "+",
}


class MemoryInspector(BoxLayout):
    """The window's content: navigation, banner, one page at a time, a line that says how things are."""

    line = StringProperty("connecting")
    ruled = set()  # names of the pages whose rules kv has read; "" is what all have

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
        self.places = {}  # name of a page that is not made yet -> where on it one was
        store.on("uvm_state_update", lambda _: self.make_stale())
        for page in SPEC["pages"]:
            self.pushes[page["name"]] = self._add_push(
                page["name"], page["title"], self.open, page["name"]
            )
        self.ids.navigation.add_widget(Widget())
        self._add_push("theme", "Theme", App.get_running_app().turn_theme)
        self._add_push("commands", "Ctrl+K", self.show_palette)
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

    def _add_push(self, icon, title, then, *what):
        push = NavigationPush(icon=icon, text=marked(title))
        push.bind(on_release=lambda _: then(*what))
        self.ids.navigation.add_widget(push)
        return push

    # -------- pages

    def open(self, name: str, **where) -> None:
        """Show a page, made when first asked for, and what `where` names on it."""
        if name not in PAGE_CLASSES:
            return self.say(f"this Inspector was made without the page {name}", "bad")
        page = self.pages.get(name)
        if page is None:
            if name not in self.ruled:
                Builder.load_string(PAGE_CLASSES[name].kv)
                self.ruled.add(name)
            page = self.pages[name] = PAGE_CLASSES[name](self)
            where = where or self.places.pop(name, {})
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

    def say(self, words: str, tone: str = "soft") -> None:
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
        tone = {"online": "good", "hung": "warm", "connecting": "warm"}.get(self.line, "bad")
        sign = marked("\u25cf", tone)
        facts = [f"{self.line} at {self.endpoint}"]
        if self.line == "online":
            facts += [
                f"{number_text(memory[name])} {name}" for name in ("documents",) if name in memory
            ]
            facts += [f"core {health['core']['state']}"] if "core" in health else []
        said = "   ".join(
            filter(
                None,
                [
                    f"{sign}  " + marked("   ".join(facts), "soft"),
                    self._said,
                    marked(FONTS.note(), "warm"),
                ],
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
        if (name, modifiers) == ("c", ["ctrl"]) and CHOICE.copy():
            return True
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
        app = App.get_running_app()
        if sorted(modifiers) == ["ctrl", "shift"] and name in ("=", "+"):
            return lambda: app.zoom(1)
        if modifiers == ["ctrl"]:
            names = list(PAGES)
            if name.isdigit() and 0 < int(name) <= len(names):
                return lambda: self.open(names[int(name) - 1])
            return {
                "k": self.show_palette,
                "=": lambda: app.zoom(1),
                "+": lambda: app.zoom(1),
                "-": lambda: app.zoom(-1),
                "0": lambda: app.zoom(0),
                "q": app.stop,
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
        elif hasattr(dialog, "key") and dialog.key(name, modifiers):
            return True
        elif name == "q" and modifiers == ["ctrl"]:
            App.get_running_app().stop()
        elif name == "enter" and modifiers == ["ctrl"] and hasattr(dialog, "accept"):
            dialog.accept()
        else:
            return False
        return True

    # -------- help and undo

    def show_palette(self):
        """Offer all that can be done, by its name."""
        # the key itself shall not be typed there
        Clock.schedule_once(lambda _: Palette(self).open(), 0.05)

    def show_help(self):
        dialog = Dialog(
            title=marked(self.page.spec["title"], bold=True), size_hint=(0.66, None), height=dp(440)
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

    def undo(self, change: str, then: Callable | None = None) -> None:
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


class Palette(Dialog):
    """All that can be done, by its name: what is typed narrows it, Enter does it. What nothing is called is searched for."""

    def __init__(self, inspector, **how):
        super().__init__(size_hint=(0.56, 0.62), pos_hint={"center_x": 0.5, "top": 0.94}, **how)
        self.inspector = inspector
        self.field = Factory.Field(
            hint_text="What do you want to do, find or ask?", font_size=sp(LEAD), height=dp(42)
        )
        self.field.padding = dp(14), dp(11)
        self.rows = Rows()
        for widget in (self.field, self.rows):
            self.ids.body.add_widget(widget)
        self.field.bind(text=lambda *_: self.narrow(), on_text_validate=lambda _: self.do())
        self.rows.bind(on_open=lambda _: self.do())
        self.rows.fbind("width", lambda *_: self.narrow())

    def on_open(self):
        self.narrow()
        self.field.focus = True

    def narrow(self):
        """Show what fits the words that are typed, what begins with them first."""
        typed = self.field.text.strip()
        words = typed.casefold().split()
        fits = [
            one
            for one in self._known()
            if all(word in f"{one[0]} {one[1]}".casefold() for word in words)
        ]
        first = [one for one in fits if words and one[0].casefold().startswith(typed.casefold())]
        rest = [one for one in fits if one not in first]
        shown = [*first, *self._free(typed), *rest] if typed else rest
        rows = [
            row(f"{marked(name)}   {marked(note, 'faint')}", value=(name, then), pad=8)
            for name, note, then in shown
        ]
        self.rows.fill(rows[:60])
        self.rows.choose(0)

    def _free(self, typed):
        """Return what can be done with any words."""
        open_page = self.inspector.open
        free = [
            (
                f"Search for \u201c{typed}\u201d",
                "in the memory",
                lambda: open_page("search", query=typed),
            )
        ]
        free += [(f"Ask \u201c{typed}\u201d", "", lambda: open_page("ask", question=typed))]
        make = f"Make the page \u201c{typed}\u201d"
        free += [(make, "of one's own", lambda: open_page("pages", wish=typed))]
        named = zip(free, ("search", "ask", "pages"), strict=True)
        return [one for one, page in named if page in PAGE_CLASSES]

    def _known(self):
        """Return [(name, note, function)] of all that has a name."""
        inspector, app = self.inspector, App.get_running_app()
        known = [
            (
                page["title"],
                f"page   Ctrl+{number}",
                functools.partial(inspector.open, page["name"]),
            )
            for number, page in enumerate(SPEC["pages"], 1)
        ]
        other = next(theme for theme in THEMES if theme != LOOK["theme"])
        dense = next(density for density in DENSITIES if density != LOOK["density"])
        known += [
            (f"{other.capitalize()} theme", "look", app.turn_theme),
            (f"{dense.capitalize()} rows", "look", lambda: app.choose_look(density=dense)),
            ("Larger", "look   Ctrl+plus", lambda: app.zoom(1)),
            ("Smaller", "look   Ctrl+minus", lambda: app.zoom(-1)),
            ("Usual size", "look   Ctrl+0", lambda: app.zoom(0)),
            ("Undo", "the last change from here   Ctrl+Z", inspector.undo_last),
            ("Ask anew", "F5", inspector.page.look_anew),
            ("Help", "F1", inspector.show_help),
            ("Quit", "Ctrl+Q", app.stop),
        ]
        if "messages" in PAGE_CLASSES:
            known += [
                (
                    name,
                    f"message   {short(spoken(told_of['help']), 60)}",
                    functools.partial(inspector.open, "messages", command=name),
                )
                for name, told_of in COMMANDS.items()
            ]
        if "objects" in PAGE_CLASSES:
            known += [
                (
                    name,
                    f"object   {one['oid']}",
                    functools.partial(inspector.open, "objects", oid=one["oid"]),
                )
                for name, one in self.inspector.store.state.get("objects", {}).items()
            ]
        return known

    def key(self, name: str, modifiers: list) -> bool:
        """Move in the list while the words are typed."""
        if name in ("up", "down") and not modifiers:
            self.rows.choose(self.rows.chosen + (1 if name == "down" else -1), show=True)
            return True
        return False

    def do(self):
        """Do what is chosen."""
        chosen = self.rows.chosen_row
        self.dismiss(animation=False)
        if chosen:
            chosen[1]()


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
    for name, allowed in (
        ("page", PAGES),
        ("theme", THEMES),
        ("zoom", ZOOMS),
        ("density", DENSITIES),
    ):
        layout[name] = layout[name] if layout[name] in allowed else LAYOUT[name]
    return layout


def fit_screen(window):
    """Make a window no larger than the screen, where SDL tells how large that is."""
    if os.environ.get("SDL_VIDEODRIVER") in ("offscreen", "dummy"):
        return
    x, y, width, height = screen_bounds() or (0, 0, 10**6, 10**6)
    wide, high = window.system_size
    if wide > width or high > height:
        window.minimum_width, window.minimum_height = min(900, width), min(560, height)
        window.size = min(wide, width), min(high, height)
        window.left, window.top = x, y


def screen_bounds():
    """Return (x, y, width, height) of what the first screen leaves to windows, by the SDL that Kivy has loaded; None without."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        maps = pathlib.Path("/proc/self/maps").read_text("utf-8").split("\n")
        path = next(
            (line.split(maxsplit=5)[5] for line in maps if re.search(r"/libSDL2-[^/]*$", line)),
            None,
        )
        found = (ctypes.c_int * 4)()
        if path and ctypes.CDLL(path).SDL_GetDisplayUsableBounds(0, found) == 0:
            return tuple(found)
    return None


def icon_file():
    """Return the path of the icon of the application: a bat in the colours of the window, drawn at the first start."""
    path = layout_path().with_name("inspector.png")
    with contextlib.suppress(OSError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(icon_png(64))
    return str(path)


BAT = (  # half a bat in a square of 64, from the middle of the head along the wing: (x, y) from below
    (32, 44), (35, 44), (37, 50), (39, 43), (44, 46), (52, 48), (61, 44), (57, 39),
    (55, 31), (51, 35), (46, 30), (42, 34), (37, 26), (32, 17),
)  # fmt: skip


def icon_png(size):
    """Return the icon as the bytes of a PNG."""
    points = [*BAT, *((64 - x, y) for x, y in reversed(BAT))]
    ground, ink = (_bytes_of(SPEC["palette"]["ground"]), _bytes_of(SPEC["accent"]))
    lines = []
    for y in range(size):
        at = [(x + 0.5) * 64 / size for x in range(size)]
        lines.append(
            b"\0"
            + b"".join(
                ink if _inside(x, 64 - (y + 0.5) * 64 / size, points) else ground for x in at
            )
        )
    head = struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*part) for part in parts)


def _png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bytes_of(tone):
    return bytes(round(255 * part) for part in get_color_from_hex(tone))


def _inside(x, y, points):
    """Whether a place is inside of a polygon: a line from it to the right crosses its border an odd number of times."""
    crossed = False
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            crossed = not crossed
    return crossed


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
        self._slower, self.pace = Clock.create_trigger(lambda _: None), BUSY
        self.bridge = Bridge(endpoint, keys, self.wake)
        self.store = Store(self.bridge)

    def input_font(self, text, mono=False):
        """Return the font for what is typed."""
        return FONTS.input_font(text, FONTS.mono if mono else FONTS.base)

    def build(self):
        from kivy.core.window import Window

        self._usual_density = Metrics.density
        self._dress()
        if "" not in MemoryInspector.ruled:  # read twice, a rule would be followed twice
            Builder.load_string(SHARED_KV + INSPECTOR_KV)
            MemoryInspector.ruled.add("")
        Window.set_icon(icon_file())
        fit_screen(Window)
        self.inspector = MemoryInspector(self.store, self.endpoint, self.keys)
        Window.bind(on_key_down=self._key, on_resize=self._resized)
        Window.fbind("on_touch_down", self._let_go)
        for event in (
            "on_touch_down",
            "on_touch_move",
            "on_touch_up",
            "on_mouse_move",
            "on_textinput",
            "on_resize",
        ):
            Window.fbind(event, self._busy)
        return self.inspector

    # -------- how it looks

    def _dress(self):
        """Have all that is made from now on look as the layout says."""
        from kivy.core.window import Window

        LOOK.update(theme=self.layout["theme"], density=self.layout["density"])
        Metrics.density = self._usual_density * self.layout["zoom"]
        for kept in (text_of, _advance, line_high, texture_of, _coloured):
            kept.cache_clear()
        tell_kv()
        Window.clearcolor = get_color_from_hex(colour("ground"))

    def choose_look(self, **look):
        """Take another theme, zoom or density, and make the window anew: what was asked and where one was stays."""
        self.layout.update(look)
        self._dress()
        write_layout(self.layout)
        page, places = (
            self.inspector.page,
            {name: one.place() for name, one in self.inspector.pages.items()},
        )
        page.hidden()
        self.store.forget_listeners()
        self.root_window.remove_widget(self.inspector)
        self.inspector = self.root = MemoryInspector(self.store, self.endpoint, self.keys)
        self.root_window.add_widget(self.inspector)
        self.inspector.places = places
        self.inspector.open(page.name)

    def turn_theme(self):
        """Take the next theme."""
        self.choose_look(theme=THEMES[(THEMES.index(self.layout["theme"]) + 1) % len(THEMES)])

    def zoom(self, way):
        """Show all larger (1), smaller (-1) or as it was made (0)."""
        at = ZOOMS.index(self.layout["zoom"]) + way if way else ZOOMS.index(1.0)
        zoom = ZOOMS[max(0, min(len(ZOOMS) - 1, at))]
        if zoom != self.layout["zoom"]:
            self.choose_look(zoom=zoom)
        self.inspector.say(f"zoom {zoom:.0%}")

    def on_start(self):
        self.inspector.open(self.layout["page"])
        self._busy()

    def _busy(self, *_):
        """Draw often for a while: somebody does something."""
        self._take_pace(BUSY)

    def _take_pace(self, pace):
        """Draw as often as a pace says, and after its time at the next, slower one."""
        self.pace = pace
        Clock._max_fps, lasts_s = PACES[pace]
        self._slower.cancel()
        if lasts_s:
            self._slower = Clock.schedule_once(lambda _: self._take_pace(pace + 1), lasts_s)

    def _let_go(self, _, touch):
        """Choose no text any more, as the mouse is pressed anew; the right button asks about what is chosen."""
        if is_click(touch, "left"):
            CHOICE.clear()

    def _key(self, window, *key):
        self._busy()
        return self.inspector.on_key(window, *key)

    def _resized(self, window, width, height):
        self.layout["width"], self.layout["height"] = int(width), int(height)

    def _drain(self):
        """Take what came; more than how the daemon is, is seen at once by who looks at a window that nobody touches."""
        if any(tells_more(*one) for one in self.bridge.arrived.copy()):
            self._take_pace(BUSY)
        if self.store.drain():
            self.wake()

    def on_stop(self):
        write_layout(self.layout)
        self.bridge.close()


def tells_more(kind, *what):
    """Whether what came from the line tells more than that all is as it was: each reply and event, but those of health."""
    return kind != "event" or what[0]["event"] != "health"


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
