"""Ranking: a small judged collection for each weight, which tells when the weight is changed for the worse; typos; scripts."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batos

FILLING = [f"The {a} of the {b} was painted {c} in spring." for a in ("door", "fence", "boat", "roof", "wall")
           for b in ("mill", "school", "harbour", "station") for c in ("green", "white")]


def catalog_of(documents, vectors=None, scope="world", conversation=None, titles=None):
    """Return a catalog of {name: text}, with the vectors {name: [numbers]} where they are told."""
    catalog, metadata = batos.new_catalog(), {"conversation": conversation} if conversation else {}
    for name, text in documents.items():
        batos.store_document(catalog, name, text, metadata | {"title": (titles or {}).get(name, "")}, scope, kind="text")
    if vectors:
        numbers = [number for number, _ in batos.waiting_chunks(catalog, 10_000)]
        rows = [vectors.get(catalog.chunk_storage[number].doc_id, [0.0, 0.0, 0.1]) for number in numbers]
        unit = [numpy.array(row) / (numpy.linalg.norm(row) or 1.0) for row in rows]
        made = batos.Vectors(numpy.array(numbers), numpy.array(unit, numpy.float32))
        batos.publish_vectors(catalog, batos.in_record(made), "double")
    return catalog


def found(catalog, query, vector=None, most=5, **where):
    vector = None if vector is None else numpy.array(vector, numpy.float32)
    terms = batos.parse_query(query)
    rows = batos.search_(catalog, terms.text, most, vector, terms, **where)["results"]
    return [row["chunk"]["doc_id"] for row in rows]


@pytest.fixture
def weighing(monkeypatch):
    """Return a function that sets weights of the Ranking for the rest of a test."""
    return lambda **weights: monkeypatch.setattr(batos, "RANKING", batos.RANKING._replace(**weights))


def filling():
    return {f"f{n}": text for n, text in enumerate(FILLING)}


def middling():
    """Documents of which one is good by words and middling by meaning, one the other way round, one fair by both."""
    documents = filling() | {"words": "valve pressure valve pressure", "both": "The valve of the boiler keeps the pressure.",
                             "meaning": "What holds steam back."}
    return catalog_of(documents, {"words": [0.1, 0.0, 1.0], "both": [1.0, 0.0, 0.35], "meaning": [1.0, 0.0, 0.0]})


def test_neither_words_nor_meaning_rule_alone(weighing):
    catalog = middling()
    assert found(catalog, "valve pressure", [1.0, 0.0, 0.0])[0] == "both"
    weighing(words=0.97, feedback=0.0)
    assert found(catalog, "valve pressure", [1.0, 0.0, 0.0])[0] == "words"
    weighing(words=0.03)
    assert found(catalog, "valve pressure", [1.0, 0.0, 0.0])[0] == "meaning"


def test_a_heading_alone_is_not_best_for_its_words(weighing):
    long = "The valve opens by itself. It was set by hand, and the pressure of the boiler is read from the dial every hour."
    catalog = catalog_of(filling() | {"heading": "Valve", "text": long})
    assert found(catalog, "valve of the boiler")[0] == "text" and found(catalog, "valve")[0] in ("heading", "text")
    scores = {row["chunk"]["doc_id"]: row["score"] for row in batos.search_(catalog, "valve")["results"]}
    assert scores["heading"] == pytest.approx(scores["text"])
    weighing(floor_words=1)
    scores = {row["chunk"]["doc_id"]: row["score"] for row in batos.search_(catalog, "valve")["results"]}
    assert scores["heading"] > 1.2 * scores["text"]


def test_what_a_title_says_weighs_more(weighing):
    def first():
        body = "It is oiled each week. The dial is read."
        documents = filling() | {"about": body, "names": body + " The governor is another part."}
        return found(catalog_of(documents, titles={"about": "Governor"}), "governor")[0]
    assert first() == "about"
    weighing(title=1)
    documents = filling() | {"about": "It is oiled each week.", "names": "The governor, governor of all."}
    assert found(catalog_of(documents, titles={"about": "Governor"}), "governor")[0] == "names"


def fed():
    """Three documents say what the query says and `regulator`; one says only that; one of another matter is as near."""
    words = enumerate(("one", "two", "three"))
    told = {f"seed{n}": f"The governor of engine {word} is a regulator with two balls." for n, word in words}
    documents = filling() | told | {"other": "Two balls make a regulator.", "foreign": "Bread is baked in the oven."}
    vectors = {name: [1.0, 0.2, 0.0] for name in told} | {"other": [0.5, 0.5, 0.5], "foreign": [0.5, 0.5, 0.5]}
    return catalog_of(documents, vectors)


def test_words_that_the_best_passages_say_help_and_are_not_told_as_found(weighing):
    catalog = fed()
    ranked = found(catalog, "governor", [1.0, 0.2, 0.0])
    assert ranked[3] == "other"
    rows = batos.search_(catalog, "governor", 5, numpy.array([1.0, 0.2, 0.0], numpy.float32))["results"]
    assert rows[3]["why"]["words"] == {} and rows[3]["why"]["mass"] == 0 and rows[3]["why"]["missing"] == ["governor"]
    ahead = score_ahead(catalog)
    for changed in ({"feedback": 0.0}, {"feedback_chunks": 0}, {"feedback_words": 0}):
        weighing(**batos.Ranking()._asdict() | changed)
        assert score_ahead(catalog) < ahead / 2


def score_ahead(catalog, query="governor"):
    """Return by how much `other` is before `foreign`, which is just as near."""
    rows = batos.search_(catalog, query, 60, numpy.array([1.0, 0.2, 0.0], numpy.float32), batos.parse_query(query))["results"]
    scores = {row["chunk"]["doc_id"]: row["score"] for row in rows}
    return scores["other"] - scores["foreign"]


def test_no_words_are_added_to_codes_and_quotes():
    catalog = fed()
    assert score_ahead(catalog) > 0.05
    assert abs(score_ahead(catalog, '"governor"')) < 0.01 and abs(score_ahead(catalog, "governor 17")) < 0.01


def test_a_turn_is_lifted_by_those_beside_it_and_a_conversation_has_its_own_idf(weighing):
    turns = {"t0": "Shall we eat?", "t1": "Where did you put the keys?", "t2": "On the shelf.", "t3": "Good.",
             "t4": "On the shelf?", "t5": "It rains again.", "t6": "Fine."}
    vectors = {name: [0.3, 0.3, 0.3] for name in turns} | {"t1": [1.0, 0.0, 0.0], "t2": [0.6, 0.1, 0.3], "t4": [0.6, 0.1, 0.3]}
    catalog = catalog_of(turns, vectors, "said", "home")
    ranked = found(catalog, "where are the keys", [1.0, 0.0, 0.0], conversation="home")
    assert ranked.index("t2") < ranked.index("t4") and ranked[0] == "t1"
    weighing(neighbours=3.0)
    assert found(catalog, "where are the keys", [1.0, 0.0, 0.0], conversation="home")[0] != "t1"
    for n in range(60):
        batos.index_document_(catalog, f"w{n}", "The keys of the piano.")
    asked = batos.prepared(catalog, "keys shelf")
    only = batos._chosen(catalog, batos.Where(conversation="home"))[0]
    weights = batos._own_weights(catalog, asked, only)
    assert weights[batos.stems("keys")[0]] > weights[batos.stems("shelf")[0]]
    assert asked.weights[batos.stems("keys")[0]] < asked.weights[batos.stems("shelf")[0]]


TABLE = {"head": "| Valve | Opening pressure |\n|---|---|\n| Valve 001 | 2.1 bar |",
         "row": "| Valve 086 | 3.4 bar |\n| Valve 087 | 3.2 bar |", "rows": "| Valve 870 | 3.0 bar |\n| Valve 08 | 7 bar |"}


@pytest.mark.parametrize("vector", [None, [1.0, 0.0, 0.0]])
def test_a_number_weighs_as_what_it_is(weighing, vector):
    catalog = catalog_of(filling() | TABLE, {"head": [1.0, 0.1, 0.0], "row": [0.9, 0.4, 0.1], "rows": [0.9, 0.4, 0.1]})
    assert found(catalog, "Valve 087 opening pressure", vector)[0] == "row"
    weighing(coded=0.0)
    assert found(catalog, "Valve 087 opening pressure", vector)[0] == "head"


def test_a_code_is_one_thing():
    rows = {"right": "bracket-200 comes from Tyrell", "other": "bracket-31: supplier Ilves, 200 pieces",
            "part": "the supplier of the bracket"} | {f"b{n}": f"bracket-{n} comes from Ilves" for n in (44, 75, 90)}
    assert found(catalog_of(filling() | rows), "bracket-200 supplier")[0] == "right"


def test_what_is_quoted_weighs_more(weighing):
    few = {f"r{n}": f"The {what} is red." for n, what in enumerate(("mill", "door", "fence", "boat", "roof", "wall"))}
    documents = few | {"so": "They had a long meeting of the red council and the town.",
                       "apart": "The council of the red door, a council."}
    catalog = catalog_of(documents)
    assert found(catalog, 'the "red council"')[0] == "so"
    weighing(quoted=0.0)
    assert found(catalog, 'the "red council"')[0] == "apart"


def test_what_is_superseded_comes_after(weighing):
    catalog = catalog_of(filling() | {"old": "The meeting is on Monday, the meeting.", "new": "The meeting is on Thursday.",
                                      "third": "A meeting of the choir."})
    batos.supersede_(catalog, "old", "new")
    assert found(catalog, "meeting")[-1] == "old"
    weighing(superseded=1.0)
    assert found(catalog, "meeting")[-1] != "old"


def test_enough_candidates_are_looked_at(weighing):
    catalog = middling()
    weighing(candidates=1)
    assert found(catalog, "valve pressure", [1.0, 0.0, 0.0], most=1) != ["both"]


def test_a_typo_is_taken_for_the_nearest_word_and_told():
    catalog = catalog_of(filling() | {"pg": "PostgreSQL needs a vacuum now and then.", "v": "The vacuum flask."})
    outcome = batos.search_(catalog, "postgressql vaccum", mend_typos=True)
    assert outcome["results"][0]["chunk"]["doc_id"] == "pg"
    assert outcome["taken"] == {"postgressql": "postgresql", "vaccum": "vacuum"} and outcome["unknown"] == []
    plain = batos.search_(catalog, "postgressql vaccum")
    assert plain["results"] == [] and plain["taken"] == {} and plain["unknown"] == ["postgressql", "vaccum"]
    for kept in ("087", "pg9", "qat", "zzzzzz"):           # numbers, codes, short words, and what is like nothing
        assert batos.search_(catalog, kept, mend_typos=True)["taken"] == {}


def test_a_word_is_no_better_known_once_it_was_asked():
    notes = {"pg": "PostgreSQL needs a vacuum now and then.", "list": "The list of allergies hangs here."}
    catalog = catalog_of(filling() | notes)
    asked = ("What is postgressql vaccum?", "Who is allergic?", "What is a giraffe?")
    before = [batos.search_(catalog, text, mend_typos=True) for text in asked]
    for text in asked * 2:
        batos.remember_episode(catalog, text)
    assert [batos.search_(catalog, text, mend_typos=True)["taken"] for text in asked] == [one["taken"] for one in before]
    assert found(catalog, "allergic")[0] == "list"
    for text in asked:                                    # and yet it is found, and forgotten, by its own words
        named = {batos.episode_id(text, None)}
        assert {row["chunk"]["doc_id"] for row in batos.search_(catalog, text, scope="asked")["results"]} == named
        assert batos.documents_matching(catalog, text) == named


@given(st.text("abc", min_size=1, max_size=6), st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=6))
def test_edits_are_those_of_the_textbook(word, others):
    width = max(map(len, others))
    table = numpy.array([list(other.encode().ljust(width, b"\0")) for other in others])
    counted = batos._edit_distances(numpy.frombuffer(word.encode(), numpy.uint8), table, numpy.array([len(o) for o in others]))
    assert counted.tolist() == [textbook(word, other) for other in others]


def textbook(one, other):
    """Return the edits between two words: optimal string alignment, by recursion."""
    if not one or not other:
        return len(one) + len(other)
    ways = [textbook(one[1:], other) + 1, textbook(one, other[1:]) + 1, textbook(one[1:], other[1:]) + (one[0] != other[0])]
    if len(one) > 1 and len(other) > 1 and one[:2] == other[1::-1]:
        ways.append(textbook(one[2:], other[2:]) + 1)
    return min(ways)


@pytest.mark.parametrize("text, query", [
    ("我把护照放在厨房的抽屉里。", "护照在哪里"), ("冷蔵庫の上に鍵を置いた。", "鍵を置い"), ("열쇠는 냉장고위에있다.", "냉장고"),
    ("กุญแจอยู่บนตู้เย็นในครัว", "ตู้เย็น"), ("Party 🎈 on Friday", "🎈")])
def test_scripts_without_blanks_are_found_by_their_parts(text, query):
    catalog = catalog_of(filling() | {"told": text, "other": "它下雨了。雨が降る。비가 온다. ฝนตก 🚲"})
    assert found(catalog, query)[0] == "told"


def test_words_in_a_script_with_blanks_stay_whole():
    assert batos.stems("Ωmega café naïve o’clock 10€") == ["ωmega", "cafe", "naiv", "o'clock", "10"]
    assert batos.stems("Python的内存") == ["python", "的内", "内存"]


def test_segments_of_an_older_way_of_cutting_words_are_made_anew_by_a_merge():
    catalog = catalog_of({"a": "我把护照放在厨房。", "b": "The valve."})
    for segment in catalog.text_index.values():
        segment.pipeline = 1
    older = batos.in_record(batos.collect_postings([(1, ["我把护照放在厨房"]), (2, ["valv"])]))
    catalog.text_index.clear()
    batos.add_mapped(catalog, catalog.text_index, batos.Segment, older)
    catalog.text_index[1].pipeline = 1
    assert found(catalog, "护照") == [] and not list(batos._faults_of_words(catalog))
    keys = batos._due_words(catalog)
    assert keys == (1,)
    batos.publish_words(catalog, keys, batos.in_record(batos.merged_postings(catalog, keys)))
    assert found(catalog, "护照") == ["a"] and batos._due_words(catalog) is None and not list(batos._faults_of_words(catalog))


EXPRESSIONS = (("valve AND brass", {"a", "b"}), ("valve OR lamp", {"a", "b", "c"}), ("valve NOT old", {"a"}),
               ('"old valve"', {"b"}), ("valve AND (open OR lamp)", {"a"}), ("bra* NOT lamp", {"a", "b"}),
               ("brass -open", {"b", "c"}), ("valve lamp", set()), ("Valves", {"a", "b"}), ("l?mp", {"c"}))


def test_an_expression_finds_what_it_matches_and_nothing_else():
    catalog = catalog_of({"a": "Open the brass valve.", "b": "An old valve of brass.", "c": "A brass lamp.", "d": "Bread."})
    for expression, wanted in EXPRESSIONS:
        matching = batos.match_expression(catalog, expression)
        rows = batos.search_(catalog, matching.text, among=matching.among)["results"]
        assert {row["chunk"]["doc_id"] for row in rows} == wanted, expression
    for wrong in ("valve AND", "(valve", "valve)", "the", "NOT valve", "*x", "(" * 40 + "a", ""):
        with pytest.raises(batos.BadRequest, match="such as valve AND"):
            batos.match_expression(catalog, wrong)


def test_a_glob_stands_for_so_many_words_and_says_so():
    catalog = catalog_of({f"d{n}": f"z{chr(97 + n % 26)}{chr(97 + n // 26)}x" for n in range(70)} | {"common": "zaax"})
    matching = batos.match_expression(catalog, "z*")
    assert matching.notes == ("z* stands for the 64 most frequent words of 70",) and len(matching.among) == 65
    assert batos.match_expression(catalog, "za*").notes == ()


GERMAN = "Die Aktualisierungen stehen auf dem Server bereit. Öffnen Sie die größeren Dateien nicht mit der Hand, wenn es geht."
FRENCH = "L'installation des paquets est enregistrée dans un fichier, et les systèmes ne sont pas redémarrés pour cela."
TEXTS = {"de": GERMAN, "fr": FRENCH, "en": "The valve is opened by hand, and all of the doors are shut.",
         "es": "Los archivos se guardan en el directorio que el usuario ha elegido, pero no siempre.",
         "it": "I file sono salvati nella cartella che l'utente ha scelto, ma non sempre.",
         "pt": "Os arquivos são guardados na pasta que o usuário escolheu, mas nem sempre.",
         "nl": "De bestanden worden in de map bewaard die de gebruiker heeft gekozen, maar niet altijd."}


def test_the_language_of_a_text_is_known_by_its_common_words():
    assert {name: batos.language_of(text) for name, text in TEXTS.items()} == {name: name for name in TEXTS}
    neither = ("", "brass valve 087", "def f(a): return a", "The Los Angeles hotels", "die casting", "in la la land", "我把护照")
    assert [text for text in neither if batos.language_of(text) != "en"] == []
    asked = {"Wer hat Debian gegründet?": "de", "Combien y a-t-il d'architectures ?": "fr", "¿Dónde está el archivo?": "es"}
    assert {text: batos.language_of(text) for text in asked} == asked


@pytest.mark.parametrize("query, first", [
    ("Wo steht die Aktualisierung?", "de"), ("groesser Datei", "de"), ("oeffnet", "de"), ("Aktualisierung", "de"),
    ("Comment installer un système ?", "fr"), ("l'installation", "fr"), ("enregistre", "fr"), ("opening the door", "en"),
    ('"größere Datei"', "de"), ('où sont les +"systèmes"', "fr")])
def test_words_of_other_languages_are_found_by_their_stems(query, first):
    catalog = catalog_of(filling() | {name: TEXTS[name] for name in ("de", "fr", "en")})
    assert {name: catalog.documents[name].language for name in ("de", "fr", "en")} == {"de": "de", "fr": "fr", "en": "en"}
    terms = batos.parse_query(query, catalog)
    rows = batos.search_(catalog, terms.text, 5, None, terms)["results"]
    assert rows and rows[0]["chunk"]["doc_id"] == first and rows[0]["chunk"]["language"] == first


def test_stop_words_of_other_languages_find_nothing_and_are_not_unknown():
    catalog = catalog_of(filling() | {"de": GERMAN})
    outcome = batos.search_(catalog, "Wie sind die Aktualisierungen?")
    assert outcome["unknown"] == [] and outcome["query_words"] == 1
    assert batos.match_expression(catalog, "Aktualisierung AND Server").among.tolist() == list(catalog.documents["de"].numbers)
    assert batos.documents_matching(catalog, "Aktualisierung größer") == {"de"}


def test_compounds_are_found_by_their_parts():
    catalog = catalog_of(filling() | {"de": "Die Module des Kernels und die Verwaltung der Sicherheit stehen in der Datei."})
    asked = {"Wo sind die Kernelmodule?": {"kernel", "module"},
             "Wo ist die Sicherheitsverwaltung?": {"sicherheits", "verwaltung"}}
    for query, words in asked.items():
        outcome = batos.search_(catalog, query)
        assert outcome["results"][0]["why"]["words"].keys() == words and outcome["unknown"] == []
    assert batos.search_(catalog, "Wo sind die Kernelfarben?")["unknown"] == ["kernelfarben"]


def test_a_document_from_before_there_were_languages_is_found_as_it_was():
    catalog = catalog_of(filling() | {"de": GERMAN})
    del catalog.documents["de"].__dict__["language"]
    catalog.text_index.clear()
    made = batos.postings_of(catalog, [number for document in catalog.documents.values() for number in document.numbers])
    batos.add_mapped(catalog, catalog.text_index, batos.Segment, batos.in_record(made))
    assert catalog.documents["de"].language == "en" and found(catalog, "Aktualisierungen stehen") == ["de"]
    assert batos.index_document_(catalog, "de", GERMAN)["unchanged"] is False and catalog.documents["de"].language == "de"
