# >>> shim
from __future__ import annotations

import collections
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import logging
import pathlib
import re
import threading
import time
import typing


class BatosError(Exception):
    def __init__(self, message="", **fields):
        super().__init__(message)
        self.message, self.fields = message, fields


class ConfigError(BatosError, ValueError):
    """Shim."""


class DamagedImage(BatosError):
    """Shim."""


class Busy(BatosError):
    """Shim."""


class DeadlineExceeded(BatosError, TimeoutError):
    """Shim."""


class BadRequest(BatosError, ValueError):
    """Shim."""


# Not yet in Errors: to be added there.
class Cancelled(BatosError):
    """The request was cancelled before it was answered."""


class Truncated(BatosError):
    """The answer did not end within its budget of tokens; nothing of it was used. Fields: tokens."""


class CoreOffline(BatosError):
    """There is no cognitive core, or it is not ready. Fields: state."""


def need(module, feature):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{feature} needs {module}: {error}") from error


def mend(name, known, what="known"):
    return f"{what} are " + ", ".join(sorted(known))


# <<< shim

################################################################################
# Cognitive core ###############################################################
################################################################################
# PARAGRAPH

logger_core = logging.getLogger("batos.core")

ARCHETYPES = ("Technical Deconstruction", "Emotional Processing", "Factual Inquiry", "Systemic Self-Improvement")

PILLARS = {                                              # persona -> its facets, in canonical order
    "ROBIN": ("sage_facet_", "simple_heart_facet_", "joyful_spark_facet_"),
    "BRICK": ("tamland_facet_", "lego_batman_facet_", "guide_facet_"),
    "BABS": ("tech_bat_facet_", "iceman_facet_", "hitchhiker_facet_"),
    "ALFRED": ("pragmatist_facet_", "disruptor_facet_", "butler_facet_"),
}
PILLAR_ORDER = tuple(pillar for pillars in PILLARS.values() for pillar in pillars)

ARCHETYPE_PERSONAS = {                                   # archetype -> (lead, *support)
    "Technical Deconstruction": ("BRICK", "ROBIN"),
    "Emotional Processing": ("ROBIN", "BRICK"),
    "Factual Inquiry": ("BABS", "BRICK", "ROBIN"),
    "Systemic Self-Improvement": ("ALFRED", "BRICK", "BABS"),
}

# persona -> the parts of its frames. An opening is followed by a verbatim topic, that by a link, that by quotes,
# and a weave ends with a closing. None of them states a fact. Openings stand two by two for the persona's pillars;
# links are for one quote, a quote with figures, a long quote, then the same for several quotes.
VOICES = {
    "ROBIN": {
        "openings": (
            "Let us sit for a moment with ", "Slowly and gently, let us look at ",
            "You are not alone with ", "With an open heart I turn to ",
            "Oh, how good to wonder about ", "Come, let us walk around "),
        "links": (
            "; this is what was kept for us:", "; even the numbers speak softly:",
            "; let us listen to the whole of it:", "; two voices answer one another:",
            "; count along with me:", "; there is room to breathe between these words:"),
        "closings": (
            "Hold it lightly, and see what it says to you.", "May that be a small light on the way.",
            "Both belong together, like two hands.", "Rest with that, as long as you need.",
            "So the threads come together, and you hold them.", "There is a quiet pattern here, and you are in it."),
    },
    "BRICK": {
        "openings": (
            "Stated plainly, the matter is ", "Observation one. The object before us is ",
            "Mission accepted. The target is ", "Briefing for tonight, subject: ",
            "The entry under review reads ", "For the full picture, open the file on "),
        "links": (
            ". The record states:", ". Measured, and on record:",
            ". The long version, complete:", ". Two parts, taken in order:",
            ". The figures, lined up:", ". The full dossier, piece by piece:"),
        "closings": (
            "One part, one function. Question disassembled.", "End of file. Nothing was added.",
            "Two parts, one mechanism. Question disassembled.", "Both pieces are on the table. Mission complete.",
            "All parts are laid out in order. Question disassembled.", "System mapped. Mission complete."),
    },
    "BABS": {
        "openings": (
            "Scan locked on ", "Full sweep done for ",
            "Clean approach on ", "Cool and exact, straight to ",
            "Detour worth taking: ", "Out there among the stacks I found "),
        "links": (
            ", one clean hit:", ", the readout:",
            ", the whole signal:", ", two hits on the grid:",
            ", readings in sequence:", ", the complete trace:"),
        "closings": (
            "One source, cited. Query answered.", "One source, cited. Data delivered.",
            "Two sources, cross-checked by you. Query answered.", "Two sources on the board. Data delivered.",
            "All sources listed. Query answered.", "All sources listed. Data delivered."),
    },
    "ALFRED": {
        "openings": (
            "In practice, then: ", "To the point, if I may, on ",
            "One might well question ", "Before we keep it, let us doubt ",
            "At your service, concerning ", "I have put in order what we hold on "),
        "links": (
            ". It says, and no more:", ". The sum, as noted:",
            ". At some length, I fear:", ". Two notes will suffice:",
            ". The accounts, side by side:", ". In full, for the patient:"),
        "closings": (
            "That will do.", "Noted, and filed.",
            "Two notes; act on the cheaper one.", "Both are filed where you will find them.",
            "Enough to act upon, I should think.", "Everything is in its place again."),
    },
}

MISSION_CHARS, SUB_QUERY_CHARS, SENTENCE_CHARS, EVIDENCE_MOST, QUOTES_MOST = 600, 300, 240, 8, 2
CORE_FORMAT_VERSION = 1


def one_line(text, most_chars):
    """Return `text` with every run of white space as one space, cut after a whole word within `most_chars`."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    if len(line) <= most_chars:
        return line
    return line[:most_chars + 1].rpartition(" ")[0] or line[:most_chars]


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
    return re.findall(r" |\w+(?:[^\w\s]+\w+)*|[^\w\s]+", line)


def run_of(chunks):
    """Return the Lark regex of any non-empty run of `chunks` that is blank at neither end."""
    return f'%regex {json.dumps({"substring_chunks": chunks}, ensure_ascii=False)} & /[^ ](.*[^ ])?/'


def clauses_of(line):
    """Return the chunks of `line` cut at . , ; : ? ! so that a topic cannot run into the mark that a link begins with."""
    clauses = [[]]
    for chunk in chunked(line):
        if set(chunk) & set(".,;:?!") and not re.search(r"\w", chunk):
            clauses.append([])
        else:
            clauses[-1].append(chunk)
    return [chunks for chunks in clauses if set(chunks) - {" "}] or [chunked(line)]


def one_of(texts):
    """Return a Lark alternative of the literal `texts`."""
    return "(" + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + ")"


def numbers_rule(name, count, most):
    """Return Lark rules for 1 to `most` of the numbers 1..`count`, in any order, none twice, blank between.

    The parameter of a rule is the set of numbers told so far, one bit each.
    """
    rules = []
    for depth in range(1, most + 1):
        tail = f' {name}{depth}more::set_bit' if depth < most else ""
        picks = [f'"{n + 1}"{tail}({n}) %if bit_clear({n})' if tail else f'"{n + 1}" %if bit_clear({n})'
                 for n in range(count)]
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


def pillar_rules(least=2, most=4):
    """Return Lark rules `picks`: `least` to `most` pillar lines in canonical order; so none comes twice."""
    def after(i, picked):
        choices = [f"line{j} after{j}_{picked + 1}" for j in range(i + 1, len(PILLAR_ORDER))
                   if picked < most and picked + 1 + len(PILLAR_ORDER) - 1 - j >= least]
        return " | ".join(choices + (['""'] if picked >= least else []))

    rules = [f"picks: {after(-1, 0)}\n"]
    for i, pillar in enumerate(PILLAR_ORDER):
        rules.append(f'line{i}: "\\n{pillar}: " SPAN\n')
        rules += [f"after{i}_{n}: {after(i, n)}\n" for n in range(1, most + 1) if after(i, n)]
    return "".join(rules)


def checked_line(task, field, value, most_chars):
    """Return `value` as one line. Raises BadRequest where it is no text or blank."""
    line = one_line(value, most_chars) if isinstance(value, str) else ""
    if not line:
        raise BadRequest(f"task {task}: field {field} is {value!r}; give a text that is not blank")
    return line


def checked_sentences(task, field, value):
    """Return the list `value` as lines. Raises BadRequest unless it has 1 to EVIDENCE_MOST texts, none blank."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= EVIDENCE_MOST:
        got = len(value) if isinstance(value, list | tuple) else repr(value)
        raise BadRequest(f"task {task}: field {field} has {got}; give a list of 1 to {EVIDENCE_MOST} sentences")
    return [checked_line(task, field, sentence, SENTENCE_CHARS) for sentence in value]


def checked_name(task, field, value, known):
    """Return `value`, one of `known`. Raises BadRequest otherwise."""
    if value not in known:
        raise BadRequest(f"task {task}: field {field} is {value!r}; known are {', '.join(known)}")
    return value


def plan_lines(fields):
    """Return the prompt lines of a plan: the mission."""
    return [checked_line("plan", "mission", fields["mission"], MISSION_CHARS)]


def plan_grammar(lines):
    """Return the Lark grammar of a plan: an archetype, then lines `pillar: words of the mission`."""
    return f"start: {one_of(ARCHETYPES)} picks\n" + pillar_rules() + f"SPAN: {run_of(chunked(lines[0]))}\n"


def plan_value(answer, fields):
    """Return {strategy, relevant_pillars, sub_queries} of a plan's answer; sub-queries are the mission's own words."""
    strategy, *picks = answer.split("\n")
    pairs = [pick.split(": ", 1) for pick in picks]
    return {"strategy": strategy, "relevant_pillars": [pillar for pillar, _ in pairs],
            "sub_queries": {pillar: verbatim(span, fields["mission"]) for pillar, span in pairs}}


def numbered(sentences):
    """Return each sentence with its number behind it, where a reader from the left knows what it says."""
    return [f"{sentence} [{n}]" for n, sentence in enumerate(sentences, 1)]


def facet_lines(fields):
    """Return the prompt lines of a facet: persona and pillar, the sub-query, the numbered evidence."""
    persona = checked_name("facet", "persona", fields["persona"], tuple(PILLARS))
    pillar = checked_name("facet", "pillar", fields["pillar"], PILLARS[persona])
    sub_query = checked_line("facet", "sub_query", fields["sub_query"], SUB_QUERY_CHARS)
    return [f"{persona} {pillar}", sub_query, *numbered(checked_sentences("facet", "evidence", fields["evidence"]))]


def facet_grammar(lines):
    """Return the Lark grammar of a facet: one or two evidence numbers, then the frame around them."""
    persona, count = lines[0].split(" ")[0], len(lines) - 2
    return ('start: quotes "\\n" frame\n' + numbers_rule("quotes", count, min(QUOTES_MOST, count))
            + frame_rule(persona, lines[1]))


def facet_value(answer, fields):
    """Return {frame, quotes} of a facet's answer."""
    quotes, frame = answer.split("\n")
    return {"frame": frame, "quotes": [int(n) for n in quotes.split()]}


def weave_lines(fields):
    """Return the prompt lines of a weave: the lead, the mission, the numbered quotes."""
    lead = checked_name("weave", "lead", fields["lead"], tuple(PILLARS))
    mission = checked_line("weave", "mission", fields["mission"], MISSION_CHARS)
    return [lead, mission, *numbered(checked_sentences("weave", "quotes", fields["quotes"]))]


def weave_grammar(lines):
    """Return the Lark grammar of a weave: the quotes in the order to tell them, the frame, a closing."""
    lead, count = lines[0], len(lines) - 2
    return (f'start: order "\\n" frame "\\n" {one_of(VOICES[lead]["closings"])}\n'
            + numbers_rule("order", count, count) + frame_rule(lead, lines[1]))


def weave_value(answer, fields):
    """Return {open, order, close} of a weave's answer."""
    order, opening, close = answer.split("\n")
    return {"open": opening, "order": [int(n) for n in order.split()], "close": close}


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

    def prompt(self, fields):
        """Return (prompt text, Lark grammar) for `fields`. Raises BadRequest naming the field that is wrong."""
        if not isinstance(fields, dict) or set(fields) != set(self.fields):
            got = sorted(fields) if isinstance(fields, dict) else fields
            raise BadRequest(f"task {self.tag}: got the fields {got}, needed are {', '.join(self.fields)}")
        lines = self.lines(fields)
        return "\n".join([self.tag, *lines, "=", ""]), self.grammar(lines)


CORE_TASKS = {task.tag: task for task in (
    CoreTask("plan", ("mission",), plan_lines, plan_grammar, plan_value, 480),
    CoreTask("facet", ("persona", "pillar", "sub_query", "evidence"), facet_lines, facet_grammar, facet_value, 320),
    CoreTask("weave", ("lead", "mission", "quotes"), weave_lines, weave_grammar, weave_value, 480),
)}

# What fingerprint and self-test render: one set of fields for each task. Part of the format.
CORE_SAMPLES = {
    "plan": {"mission": "How does the old pump keep the water moving, and who built it?"},
    "facet": {"persona": "BRICK", "pillar": "tamland_facet_", "sub_query": "the old pump",
              "evidence": ["The old pump lifts water with two pistons.", "Bread needs flour."]},
    "weave": {"lead": "BRICK", "mission": "How does the old pump keep the water moving?",
              "quotes": ["The old pump lifts water with two pistons.", "It was built by Mara Quill."]},
}


def core_tasks_fingerprint():
    """Return the BLAKE2b digest (32 hex digits) of all that a core is trained on: tags, fields, tables, grammars."""
    rendered = [[task.tag, task.fields, task.max_new_tokens, *task.prompt(CORE_SAMPLES[task.tag])]
                for task in CORE_TASKS.values()]
    table = [CORE_FORMAT_VERSION, ARCHETYPES, PILLARS, ARCHETYPE_PERSONAS, VOICES, MISSION_CHARS, SUB_QUERY_CHARS,
             SENTENCE_CHARS, EVIDENCE_MOST, QUOTES_MOST, rendered]
    return hashlib.blake2b(json.dumps(table).encode(), digest_size=16).hexdigest()


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


class LoadedCore:
    """A model in memory, with all that turns prompts into rows. Belongs to the model thread.

    `card` is core.json or None for a model that never saw CORE_TASKS; `adapters` are the names a row may use.
    """

    def __init__(self, model, tokenizer, card):
        self.model, self.tokenizer, self.card = model, tokenizer, card
        self.adapters = {BASE}
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
            adapt = need("llguidance.hf", "the cognitive core").from_tokenizer
            self.grammar_tokenizer = adapt(self.tokenizer, n_vocab=self.vocabulary, eos_token=self.eos_ids)
        matcher = llguidance.LLMatcher(self.grammar_tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise BadRequest(f"the grammar cannot be used: {matcher.get_error()[:300]}")
        return matcher

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

    def add_adapter(self, name, config, tensors=None):
        """Add a LoRA adapter under `name`; `tensors` is its state dict, or None for one newly made.

        config: keywords of peft.LoraConfig. The first adapter wraps the model in PEFT; there are no files.
        """
        peft = need("peft", "LoRA adapters")
        if name in self.adapters:
            raise BadRequest(f"the core has an adapter {name!r} already")
        lora = peft.LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **config)
        if self.adapters == {BASE}:
            self.model = peft.PeftModel(self.model, lora, adapter_name=name)
        else:
            self.model.add_adapter(name, lora)
        if tensors is not None:
            peft.set_peft_model_state_dict(self.model, tensors, adapter_name=name)
        self.model.eval()
        self.adapters.add(name)


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
    options = {"dtype": torch.float32 if card else torch.bfloat16, "local_files_only": True}
    if "quantization_config" not in settings:
        options["quantization_config"] = quantization(torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    check_dimensions(model)
    core = LoadedCore(model, tokenizer, card)
    self_test(core)
    return core


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


@dataclasses.dataclass(frozen=True)
class CoreAnswer:
    """What the core answered: its text, the task's value read from it, and what it took."""

    text: str
    value: typing.Any
    tokens: int
    seconds: float


class CoreRow:
    """A row at work: its prompt, its limits, and how it ended.

    `ended` is None, "done", "deadline", "cancelled", "truncated" or "failed" (then `error` says why).
    """

    def __init__(self, make_ids, read, grammar=None, request=None, budget=512, only_task=False):
        self.make_ids = make_ids                         # LoadedCore -> token ids of the prompt
        self.read = read                                 # answer text -> value
        self.grammar, self.budget, self.only_task = grammar, budget, only_task
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

    def prepare(self, core):
        """Make ids and matcher. Raises BadRequest where the core cannot serve the row."""
        if self.adapter not in core.adapters:
            raise BadRequest(f"the core has no adapter {self.adapter!r}; {mend(self.adapter, core.adapters)}")
        if self.only_task and core.card is None:
            raise BadRequest("this model was not trained for the tasks of BAT OS: it answers infer_ alone; "
                             "use --core auto or seed_core for missions")
        self.ids = list(self.make_ids(core))
        if len(self.ids) + self.budget > core.positions:
            self.budget = core.positions - len(self.ids)
        if self.budget < 16:
            raise BadRequest(f"the prompt has {len(self.ids)} tokens and the core {core.positions} positions; shorten it")
        self.matcher = core.matcher(self.grammar) if self.grammar else None

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
            else BatosError(f"the core failed at this row: {self.error!r}"),
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
                    if not (step(core, row, last[i] if last else None, closing) and fill(row, i)):
                        bits[i] = only_end
                except Exception as error:               # see the docstring: nothing may pass
                    row.ended, row.error = "failed", error
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
            raise BatosError(f"the grammar failed: {row.matcher.get_error()[:300]}")
        return True

    return BatchHook()


def step(core, row, token, closing):
    """Take in the token that a row said last (None at first). Return whether the row goes on."""
    if row.ended:
        return False
    if token in core.eos_ids:
        row.ended = "done"
        return False
    if token is not None:
        row.new_ids.append(token)
        if row.matcher is not None and not row.matcher.is_stopped() and not row.matcher.consume_token(token):
            raise BatosError(f"the grammar refused a token it had allowed: {row.matcher.get_error()[:300]}")
        tell(core, row)
    row.ended = row.stopped(closing)
    if not row.ended and len(row.new_ids) >= row.budget and not (row.matcher is not None and row.matcher.is_stopped()):
        row.ended = "truncated"
    return not row.ended


def tell(core, row):
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
    names = {} if core.adapters == {BASE} else {"adapter_names": [row.adapter for row in rows]}
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

    def __init__(self, directory_of=None, rows_most=16, queued_rows_most=256, threads=0):
        self.rows_most, self.queued_rows_most, self.threads = rows_most, queued_rows_most, threads
        self.state, self.error, self.progress = "offline", None, "the core is off (--core none)"
        self.rows_served, self.tokens_told, self.batch_s = 0, 0, 0.0
        self.load_s = {}                                 # part of loading -> seconds
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
        prompt, grammar = task.prompt(request.fields)
        return CoreRow(lambda core: core.encode(prompt), lambda text: task.value(text, request.fields), grammar, request,
                       request.max_new_tokens or task.max_new_tokens, only_task=True)

    def infer_(self, prompt, persona=None, system_prompt=None, temperature=0.6, top_p=0.9, max_new_tokens=512,
               deadline_s=None, cancel=None, on_text=None):
        """Answer a free prompt with text; `persona` names an adapter, where one of that name is loaded.

        The embedded core answers greedily (it knows its tasks, not the world); temperature 0 makes any core so.
        Raises as `infer`, except that an answer as long as max_new_tokens is simply cut there.
        """
        self._require_ready()
        adapter = persona if persona in self._loaded.adapters else BASE
        request = CoreRequest("", {}, adapter, deadline_s, cancel, max_new_tokens, on_text)
        row = CoreRow(lambda core: core.chat_ids(prompt, system_prompt), lambda text: text, None, request, max_new_tokens)
        greedy = self._loaded.card is not None or not temperature
        sampling = {} if greedy else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        return self._ask([row], sampling, cut_is_fine=True)[0].text

    def on_model_thread(self, function):
        """Run function(LoadedCore) in the model thread, between batches; return what it returns, or raise it."""
        self._require_ready()
        ticket = CoreTicket(function=function)
        self._submit(ticket)
        return self._wait(ticket).result

    def _ask(self, rows, sampling, cut_is_fine=False):
        if not 1 <= len(rows) <= self.rows_most:
            raise BadRequest(f"a batch has 1 to {self.rows_most} rows, got {len(rows)}; ask in several")
        ticket = CoreTicket(rows, sampling)
        self._submit(ticket)
        self._wait(ticket)
        for row in rows:
            if row.failure() and not (cut_is_fine and row.ended == "truncated"):
                raise row.failure()
        texts = [self._loaded.decode(row.new_ids) for row in rows]
        return [CoreAnswer(text, row.read(text), len(row.new_ids), ticket.seconds)
                for text, row in zip(texts, rows, strict=True)]

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
        except Exception as error:                       # the boundary of the thread: told by state and error
            logger_core.exception("the cognitive core did not load")
            self.state, self.error, self.progress = "failed", error, "the core did not load"
            self._settled.set()
            return
        while batch := self._next_batch():
            self._serve(batch)
        for ticket in self._tickets:
            ticket.finish(error=CoreOffline("the cognitive core was closed"))

    def _load(self):
        for part, module in (("torch", "torch"), ("transformers", "transformers"), ("bitsandbytes", "bitsandbytes")):
            self._timed(f"import {part}", lambda module=module: need(module, "the cognitive core"))
        torch = need("torch", "the cognitive core")
        if self.threads:
            torch.set_num_threads(self.threads)
        directory = self._timed("find files", self._directory_of)
        self._loaded = self._timed("weights and self-test", lambda: load_core(directory))
        self._loaded.count = self._loaded.parameters
        self.state, self.progress = "ready", f"the core is ready, {self._loaded.count} parameters"
        logger_core.info("%s, loaded in %.1f s", self.progress, sum(self.load_s.values()))
        self._settled.set()

    def _timed(self, part, function):
        self.progress = f"the core is loading: {part}"
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
            rows = len(batch[0].rows)
            while self._tickets and batch[0].function is None and self._joins(batch[0], self._tickets[0], rows):
                batch.append(self._tickets.popleft())
                rows += len(batch[-1].rows)
            return batch

    def _joins(self, first, other, rows):
        """Whether a waiting ticket may run in the batch of `first`, which has `rows` rows by now."""
        return other.function is None and other.sampling == first.sampling and rows + len(other.rows) <= self.rows_most

    def _serve(self, batch):
        """Answer a batch of tickets; an error of one ticket's prompts is that ticket's alone."""
        start, rows = time.monotonic(), []
        if batch[0].function is not None:
            self._call(batch[0])
            return
        for ticket in batch:
            rows += self._prepared(ticket)
        error = self._generate(rows, batch[0].sampling) if rows else None
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
        except Exception as error:                       # belongs to the caller, who waits for it
            ticket.finish(error=error)

    def _prepared(self, ticket):
        """Return the ticket's rows, ready to run; [] where one is bad or over already, then the ticket is finished."""
        try:
            for row in ticket.rows:
                row.ended = row.stopped(self._closing)
                row.prepare(self._loaded)
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
        except Exception as error:                       # the boundary of the model: the thread lives on
            logger_core.exception("a batch of %d rows failed", len(rows))
            return BatosError(f"the core failed: {error!r}")
        return None
