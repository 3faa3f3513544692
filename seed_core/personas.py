"""Train the four persona experts of BAT OS on the embedded core: LoRA adapters in lora_adapters/NAME/, as PEFT writes them.

    python seed_core/personas.py --minutes 20 [--out lora_adapters] [--core seed_core] [--seed 7] [--threads 2]

Each expert is trained on facets and weaves of its own persona alone. ALFRED learns thrift as well: one quote where others tell
two. The voice itself (openings, links, closings) is in the core's tasks and guaranteed by the grammar; which of its parts
come, an expert decides. Experts were also taught to tell, beside what answers, what suits their persona (figures for BABS,
causes for BRICK): so small a core learnt to tell more, and not what suits, so it is not done. An adapter that exists is not
trained again unless its core is another; so the command can be killed and run again.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import pathlib
import random
import re
import time

import train

batos = train.batos

RANK, ALPHA, TARGETS = 8, 32, ["q_proj", "k_proj", "v_proj", "o_proj"]


def thrifty(example):
    """Return a facet's example with the first of its quotes alone."""
    task, fields, answer = example
    value = batos.facet_value(answer, fields)
    numbers, voice = value["quotes"][:1], batos.VOICES[fields["persona"]]
    group = batos.PILLARS[fields["persona"]].index(fields["pillar"])
    frame = train.framed(
        fields["persona"], group, train.topic_of(value["frame"], voice), numbers, fields["evidence"]
    )
    return task, fields, f"{numbers[0]}\n{frame}"


def example_of(persona, maker):
    """Return an example of a persona's facets or weaves."""
    if maker.rng.random() < 0.4:
        return maker.weave(persona)
    example = maker.facet(persona)
    return thrifty(example) if persona == "ALFRED" else example


def adapted(directory):
    """Return the core of a directory with its four-bit weights unpacked, and a LoRA adapter to train."""
    import peft
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(directory).dequantize().float()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.05
    )
    return peft.get_peft_model(model, config)


def trained(persona, model, tokenizer, maker, options):
    """Train the adapter of a persona for its part of the time."""
    import torch

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    start, limit_s, smooth, steps = (
        time.monotonic(),
        options.minutes * 60 / len(batos.PILLARS),
        None,
        0,
    )
    model.train()
    while (share := (time.monotonic() - start) / limit_s) < 1:
        rows = sorted(
            train.encoded(tokenizer, [example_of(persona, maker) for _ in range(96)]),
            key=lambda row: len(row[0]),
        )
        for at in range(0, len(rows), 16):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, steps / 20, 0.05 + 1.5 * (1 - share))
            loss = train.loss_of(model.base_model.model, rows[at : at + 16])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        print(
            f"{persona} step {steps} {time.monotonic() - start:.0f} s loss {smooth:.3f}", flush=True
        )


def save(persona, model, out, base):
    """Write an adapter as PEFT does, with the core that it is made for."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = batos.SEED_CORE_NAME, base
    # else it asks a hub for the core
    model.save_pretrained(out / persona, save_embedding_layers=False)
    (out / persona / "README.md").unlink(missing_ok=True)


def base_of(directory):
    """Return the fingerprint of a core's files."""
    return batos.core_base(
        [(path.name, batos.file_hash(path, "sha256")) for path in batos.core_files(directory)]
    )


# Evaluation ###################################################################


def asked(core, fields, expert):
    """Return the facet values of examples, each by an expert or by the base."""
    values = []
    for at in range(0, len(fields), 16):
        rows = [
            batos.CoreRequest("facet", one, core.expert(one["persona"]) if expert else batos.BASE)
            for one in fields[at : at + 16]
        ]
        values += [answer.value for answer in core.infer(rows)]
    return values


def told(fields, value):
    """Return a facet as text: its frame and quotes."""
    return " ".join([value["frame"], *(fields["evidence"][n - 1] for n in value["quotes"])])


def samples(count, seed):
    """Return facet fields of composed examples: each question through a pillar of every persona."""
    maker = train.Maker(seed, *train.docstring_passages(), held_words=True, held_phrases=True)
    return [spread for _ in range(count) for spread in through_all(maker.facet()[1], maker.rng)]


def through_all(fields, rng):
    """Return the fields of one question once for each persona."""
    return [
        fields | {"persona": persona, "pillar": rng.choice(pillars)}
        for persona, pillars in batos.PILLARS.items()
    ]


def words_in(text):
    return set(re.findall(r"[a-z']+", text.lower()))


def classifier(rows):
    """Return {persona: {word: log odds}} of naive Bayes over the words of (persona, text) rows."""
    counts, total = collections.defaultdict(collections.Counter), collections.Counter()
    for persona, text in rows:
        counts[persona].update(words_in(text))
        total[persona] += 1
    words = {word for counter in counts.values() for word in counter}
    return {
        persona: {
            word: math.log((counts[persona][word] + 0.1) / (total[persona] + 0.2))
            - math.log(
                (sum(counts[p][word] for p in total if p != persona) + 0.1)
                / (sum(total[p] for p in total if p != persona) + 0.2)
            )
            for word in words
        }
        for persona in total
    }


def named(model, text, masked=frozenset()):
    """Return the persona that a classifier names for a text."""
    words = words_in(text) - masked
    return max(model, key=lambda persona: sum(model[persona].get(word, 0.0) for word in words))


def most_telling(model, count):
    """Return the words that tell each persona most, together."""
    return frozenset(
        word for odds in model.values() for word in sorted(odds, key=odds.get, reverse=True)[:count]
    )


def evaluate(options):
    """Return {criterion: [experts, base alone]} on the missions written by hand, and print it."""
    core, close = loaded(options)
    embedder = batos.Embedder("auto")
    embedder.start()
    embedder.close(600)
    rng = random.Random(options.seed)
    hand = [(fields, right) for _, fields, right in train.hand_facets(embedder, rng)]
    fields = [spread for one, _ in hand for spread in through_all(one, rng)]
    right = [numbers for _, numbers in hand for _ in batos.PILLARS]
    practice, scores = samples(150, f"{options.seed} voices"), {}
    for column, expert in enumerate((True, False)):
        values = asked(core, fields, expert)
        model = classifier(
            [
                (one["persona"], told(one, value))
                for one, value in zip(practice, asked(core, practice, expert), strict=True)
            ]
        )
        masked = most_telling(model, 20)
        rows = list(zip(fields, values, right, strict=True))
        found = {
            "persona named": [
                named(model, told(one, value)) == one["persona"] for one, value, _ in rows
            ],
            "persona named, its 20 words masked": [
                named(model, told(one, value), masked) == one["persona"] for one, value, _ in rows
            ],
            "right evidence first": [value["quotes"][0] in numbers for _, value, numbers in rows],
            "nothing else cited": [
                set(value["quotes"]) <= set(numbers) for _, value, numbers in rows
            ],
        }
        for criterion, each in found.items():
            scores.setdefault(criterion, [None, None])[column] = round(
                100 * sum(each) / len(each), 1
            )
    close()
    for criterion, columns in scores.items():
        print(criterion, columns, flush=True)
    return scores


def loaded(options):
    """Return a CognitiveCore of --core with the experts of --out in its slots, through an image as the daemon does it."""
    import tempfile

    folder = tempfile.TemporaryDirectory()
    image = batos.Image.open(f"{folder.name}/image.fs")
    settings = batos.load_settings({"adapters": str(options.out), "core": str(options.core)})
    batos.genesis(image, options.core)
    print(batos.incarnate_staged(image, settings)["details"])
    synapses = batos.SynapticMemory(image, settings)
    synapses.refresh()
    core = batos.CognitiveCore(lambda: options.core, threads=options.threads)
    core.synapses = synapses
    core.start().wait_ready(300)

    def close():
        core.close()
        image.close()
        folder.cleanup()

    return core, close


CARD = """# The persona experts

LoRA adapters (rank {rank}, alpha {alpha}, {targets}) of the embedded core, trained by `seed_core/personas.py`: {minutes:.0f}
minutes each on facets and weaves of its persona alone; ALFRED was taught thrift too, one quote where others tell two. They are
made for the core {base}; BAT OS refuses them with another.

On the {count} missions of `seed_core/missions.txt` that have evidence, each asked through a pillar of every persona; percent.
*Persona named*: by naive Bayes over single words, trained on other samples (composed, of words and phrasings that training
never saw); *masked*: without the twenty words of each persona that tell most.

| criterion | experts | the core alone |
|---|---|---|
{rows}
"""


def main():
    """Train what is missing, evaluate, write the card."""
    options = arguments()
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    base, sources = base_of(options.core), train.docstring_passages()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.core).backend_tokenizer
    for persona in batos.PILLARS:
        config = options.out / persona / batos.ADAPTER_CONFIG
        if config.is_file() and json.loads(config.read_text("utf-8")).get("revision") == base:
            continue
        model = adapted(options.core)
        trained(
            persona, model, tokenizer, train.Maker(f"{options.seed} {persona}", *sources), options
        )
        save(persona, model, options.out, base)
    scores = evaluate(options)
    rows = "\n".join(
        f"| {name} | {' | '.join(f'{score:.1f}' for score in columns)} |"
        for name, columns in scores.items()
    )
    count = sum(bool(row[3]) for row in train.by_hand_missions())
    (options.out / "README.md").write_text(
        CARD.format(
            rank=RANK,
            alpha=ALPHA,
            targets=", ".join(TARGETS),
            minutes=options.minutes / len(batos.PILLARS),
            base=base,
            rows=rows,
            count=count,
        ),
        "utf-8",
    )


def arguments():
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=20, help="length of the training, of all four together"
    )
    parser.add_argument("--out", type=pathlib.Path, default=train.HERE.parent / "lora_adapters")
    parser.add_argument("--core", type=pathlib.Path, default=train.HERE)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    return parser.parse_args()


if __name__ == "__main__":
    main()
