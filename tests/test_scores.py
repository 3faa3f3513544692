"""Which chunks score best, sought without a look at all of them: by words as if all were looked at, by meaning nearly so."""

import types

import numpy
import pytest

import batos

WORDS = [f"w{rank}" for rank in range(60)]


def segments_of(chance, count):
    """Return segments of texts whose words are as unlike in frequency as those of a language; every second chunk's number."""
    made, number = {}, 0
    for key, share in enumerate((count // 2, count // 3, count - count // 2 - count // 3)):
        rows = []
        for _ in range(share):
            number += 2
            rows.append((number, [WORDS[rank] for rank in chance.geometric(0.12, chance.integers(5, 90)) % len(WORDS)]))
        made[key] = batos.Segment(batos.in_record(batos.collect_postings(rows)))
    return types.SimpleNamespace(text_index=made)


@pytest.mark.parametrize("seed", range(12))
def test_by_words_none_is_missed_that_a_look_at_all_would_find(seed, monkeypatch):
    monkeypatch.setattr(batos, "_WORTH_LEAVING", 0)
    chance = numpy.random.default_rng(seed)
    catalog = segments_of(chance, 900)
    said = chance.choice(WORDS, 12, replace=False)
    weights = {word: float(weight) for word, weight in zip(said, chance.exponential(1.0, 12) ** 3 + 0.001, strict=True)}
    scores = batos.WordScores(catalog, weights, 40.0)
    def test(number):
        return number % 3 != seed % 3
    whole = scores.scores_of(range(2000))
    right = sorted((row for row in whole.items() if test(row[0])), key=lambda row: (-row[1], row[0]))[:20]
    assert list(scores.best(None, test, 20).items()) == [(number, pytest.approx(score)) for number, score in right]
    some = numpy.arange(0, 700, 3)
    among = [row for row in sorted(whole.items(), key=lambda row: (-row[1], row[0])) if row[0] in some and test(row[0])]
    assert list(scores.best(some, test, 20)) == [number for number, _ in among[:20]]


def test_common_words_are_left_where_rarer_ones_make_sure_of_who_is_best(monkeypatch):
    monkeypatch.setattr(batos, "_WORTH_LEAVING", 0)
    chance = numpy.random.default_rng(1)
    catalog = segments_of(chance, 900)
    added = []
    gains = batos.Segment.gains
    monkeypatch.setattr(batos.Segment, "gains", lambda self, word, *more: added.append(word) or gains(self, word, *more))
    scores = batos.WordScores(catalog, {"w30": 9.0, "w31": 8.0, "w1": 0.01, "w2": 0.01}, 40.0)
    assert scores.best(None, lambda number: True, 5) and set(added) <= {"w30", "w31"}


def test_no_words_find_nothing():
    none = batos.WordScores(types.SimpleNamespace(text_index={}), {}, 40.0)
    assert none.best(None, lambda number: True, 5) == {} and none.scores_of([1]) == {}


def vectors_of(chance, count):
    """Return unit vectors that lie in clusters, as texts' do."""
    centres = chance.standard_normal((count // 20, 384))
    rows = centres[chance.integers(len(centres), size=count)] + 0.7 * chance.standard_normal((count, 384))
    return batos.unit_rows(rows).astype(numpy.float32)


def pack_of(numbers, rows):
    built = batos.in_record(batos.Vectors(numbers, rows))
    return batos.VectorPack(built, embedder="double")


def nearness_of(packs, vector):
    catalog = types.SimpleNamespace(vectors=dict(enumerate(packs)), _p_jar=None, unembedded=batos.RunTree())
    return batos.Nearness(catalog, vector, "double")


def test_by_meaning_nearly_all_are_found_that_a_look_at_all_would_find(monkeypatch):
    chance = numpy.random.default_rng(3)
    rows, numbers = vectors_of(chance, 12_000), numpy.arange(12_000) * 3
    packs = [pack_of(numbers[:6000], rows[:6000]), pack_of(numbers[6000:11_000], rows[6000:11_000]),
             pack_of(numbers[11_000:], rows[11_000:])]
    held = [isinstance(pack.arrays.vectors, batos.Codes) for pack in packs]
    assert held == [True, True, False]
    found = 0
    for _ in range(20):
        near = rows[chance.integers(12_000)][None] + 0.02 * chance.standard_normal((1, 384))
        vector = batos.unit_rows(near)[0].astype("float32")
        cosines = rows @ vector
        right = set(numbers[numpy.argsort(-cosines)[:20]].tolist())
        best = nearness_of(packs, vector).best(None, lambda number: True, 100)
        found += len(right & set(best))
        assert list(best.values()) == sorted(best.values(), reverse=True)
        assert all(abs(cosines[number // 3] - score) < 0.005 for number, score in best.items())
    assert found > 0.97 * 400
    near = nearness_of(packs, rows[5])
    among = numbers[4000:7000]
    assert set(near.best(among, lambda number: number % 2 == 0, 10)) <= {number for number in among.tolist() if number % 2 == 0}
    assert set(near.scores_of([0, 1, 15, 40_000])) == {0, 15}


def test_signs_are_counted_as_they_stand():
    chance = numpy.random.default_rng(4)
    for width in (384, 100, 64):
        rows, vector = chance.standard_normal((70, width)).astype("float32"), chance.standard_normal(width).astype("float32")
        codes = batos.Codes(*batos._in_bytes(rows))
        counted = ((codes.codes > 0) != (vector > 0)).sum(1)
        assert codes.distances(vector).tolist() == counted.tolist()


def test_packs_of_bytes_are_merged_without_a_change(monkeypatch, tmp_path):
    monkeypatch.setattr(batos, "_WIDENED_MOST", 10)
    rows = vectors_of(numpy.random.default_rng(5), 80)
    numbers = numpy.arange(40), numpy.arange(40, 48), numpy.arange(60, 92)
    packs = [pack_of(some, part) for some, part in zip(numbers, (rows[:40], rows[40:48], rows[48:]), strict=True)]
    gone = {3, 41}
    filed = batos.RunTree()
    filed.add(20, 20)
    catalog = types.SimpleNamespace(vectors=dict(enumerate(packs)), chunk_storage=set(range(100)) - gone,
                                    metadata_index={"scope": {"world": filed}})
    merged = batos._merged_vectors(catalog, (2, 0, 1))
    before = {number: row for pack in packs for number, row in zip(pack.numbers(), pack.arrays.vectors[:], strict=True)}
    assert merged.numbers.tolist() == sorted(before.keys() - gone)
    with batos.built_file(merged, tmp_path) as built:
        again = pack_of(merged.numbers, built.arrays.vectors).arrays
        assert all((before[number] == row).all() for number, row in zip(again.numbers.tolist(), again.vectors[:], strict=True))


# Few among many


def test_few_notes_are_found_without_a_look_at_the_many_that_stand_beside_them(monkeypatch):
    catalog = batos.new_catalog()
    for number in range(300):
        batos.index_document_(catalog, f"note {number}", f"The gauge {number} is read each day.", scope="self")
    for number in range(5):
        batos.index_document_(catalog, f"gauge {number}", f"Whoever reads it writes of gauge {number} what each day was.")
    tested, holds = [], batos.RunTree.holds
    monkeypatch.setattr(batos.RunTree, "holds", lambda tree, number: tested.append(number) or holds(tree, number))

    def found(**where):
        tested.clear()
        told = batos.search_(catalog, "Which gauge is read each day?", max_results=3, **where)["results"]
        return [(row["chunk"]["doc_id"], row["score"]) for row in told]
    few, tested_few = found(), len(tested)
    many = found(scope="self")
    monkeypatch.setattr(batos, "_FEW_RUNS", -1)          # nothing is few
    assert found() == few and len(few) == 3 and tested_few < 20 < 200 < len(tested)
    assert found(scope="self") == many


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32", "int64"])
def test_a_number_is_found_in_order_whatever_the_numbers_are_kept_as(kind):
    numbers = numpy.array([1, 3, 200], kind)
    places = [batos._place_in_order(numbers, number) for number in (0, 1, 2, 3, 200, 201, 257, 70_000, 2 ** 40 + 1)]
    assert places == [None, 0, None, 1, 2, None, None, None, None]
