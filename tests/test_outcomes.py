"""How missions ended, as statistics: what an audit notices in them, and what it does not."""

import random

import pytest
from test_autotelic import kept  # noqa: F401  (a fixture)

import batos

TYPES, SELECTORS = ("self_audit", "systemic_self_improvement"), (
    "perform_cognitive_efficiency_audit", "analyze_and_resolve_cycle_failures")
TOPICS = ("valve", "brass", "harbour", "canal", "signal", "timber", "granite", "copper", "pigment", "lantern", "orchard",
          "ledger")


class Day:
    """A root with missions as a replay makes them: fake in all but what statistics read."""

    def __init__(self, seed):
        self.random, self.missions = random.Random(seed), []

    def ask(self, text=None, archetype="Factual Inquiry", seconds=None, end="answered", sent_back=False, wrong=False,
            personas=("BABS", "BRICK"), idle=()):
        row = batos.Ended(f"0x{len(self.missions):x}", archetype if end == "answered" else None,
                          seconds or self.random.lognormvariate(-1, 0.5), end, sent_back, wrong, personas,
                          text or self.question(), idle=idle)
        self.missions.append(row)
        return row.cycle

    def question(self):
        about = self.random.sample(TOPICS, 2)
        return f"How does the {about[0]} number {self.random.randrange(1000)} meet the {about[1]}?"

    def quiet(self, count):
        """Ask as on a quiet day: a few per cent of everything that can go wrong."""
        for _ in range(count):
            chance = self.random.random
            end = "answered" if chance() > 0.06 else self.random.choice(["unanswered", "failed", "aside"])
            archetype = self.random.choices(batos.ARCHETYPES, (5, 1, 12, 1))[0]
            personas = self.random.choices([("BABS", "BRICK"), ("BRICK", "ROBIN"), ("ALFRED", "BABS")], (6, 3, 1))[0]
            idle = personas[1:] if chance() < 0.05 else ()
            self.ask(None, archetype, None, end, chance() < 0.03, chance() < 0.02, personas, idle)

    def rows(self):
        return self.missions[::-1][:2 * batos._WINDOW]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    image = batos.Image.open(f"{tmp_path_factory.mktemp('outcomes')}/image.fs")
    batos.genesis(image)
    with batos.reading(image) as root:
        yield root
    image.close()


def noticed(day, root):
    return {finding["of"]: finding for finding in batos._outcome_findings(root, day.rows())}


def plant_gap(day):
    about = "giraffes"
    return [day.ask(f"{words} giraffes?", end="unanswered") for words in ("What eat", "Where live", "How tall are")], \
        f"asked 3 times about {about}"


def plant_sent_back(day):
    return [day.ask(sent_back=True) for _ in range(day.random.randint(30, 50))], "were sent back (before"


def plant_refused(day):
    return [day.ask(end="refused") for _ in range(day.random.randint(30, 50))], "were refused"


def plant_failed(day):
    return [day.ask(end="failed") for _ in range(day.random.randint(40, 60))], "questions failed (before"


def plant_unanswered(day):
    return [day.ask(end="unanswered") for _ in range(day.random.randint(45, 60))], "were unanswered"


def plant_wrong(day):
    return [day.ask(wrong=True) for _ in range(day.random.randint(30, 50))], "were marked wrong"


def plant_slow(day):
    return [day.ask(seconds=day.random.lognormvariate(0, 0.5)) for _ in range(50)], "Factual Inquiry takes"


def plant_unused(day):
    """ALFRED spoke in each tenth answer before."""
    return [day.ask(personas=("BABS",)) for _ in range(220)], "ALFRED spoke in none of the last"


def plant_bloat(day):
    return [day.ask(idle=("BRICK",)) for _ in range(day.random.randint(40, 60))], "asked somebody of whom nothing was told"


PLANTS = {
    "gap": plant_gap, "sent back": plant_sent_back, "refused": plant_refused, "failed": plant_failed,
    "unanswered": plant_unanswered, "marked wrong": plant_wrong, "slow": plant_slow, "unused": plant_unused,
    "bloat": plant_bloat}


@pytest.mark.parametrize("kind, seed", [(kind, seed) for kind in PLANTS for seed in (1, 2)])
def test_a_planted_trouble_is_found_with_its_cycles(root, kind, seed):
    day = Day(seed)
    day.quiet(400)
    before = noticed(day, root)
    cycles, words = PLANTS[kind](day)
    if kind not in ("slow", "gap", "unused"):
        day.quiet(20)
    found = [row for row in noticed(day, root).values() if words in row["what"]]
    assert len(found) == 1 and found[0]["kind"] == kind and set(found[0]["cycles"]) & set(cycles), (found, before)


@pytest.mark.parametrize("kind, remedy", [
    ("sent back", batos._TRY_WORKFLOW), ("marked wrong", batos._CURATE), ("unused", [batos.DRAW_IN, "ALFRED"]), ("gap", None)])
def test_a_trouble_has_its_remedy(root, kind, remedy):
    day = Day(1)
    day.quiet(400)
    PLANTS[kind](day)
    found = [row for row in noticed(day, root).values() if row["kind"] == kind and row["remedy"] == remedy]
    assert len(found) == 1
    assert remedy is None or batos._is_finding(found[0])


def test_who_was_asked_and_told_nothing_is_idle():
    def quoted(*ids):
        return {"quotes": [{"chunk_id": one} for one in ids]}
    parts = {"guide_facet_": quoted("a"), "sage_facet_": quoted("b", "c"), "iceman_facet_": quoted("d"),
             "tech_bat_facet_": quoted("a")}
    assert batos._idle_in(parts, [{"chunk_id": "a"}, {"chunk_id": "e"}]) == ("ROBIN",)


def test_twenty_quiet_weeks_have_one_false_finding_at_most(root):
    false = 0
    for seed in range(20):
        day, told = Day(100 + seed), set()
        for _ in range(7 * 4):
            day.quiet(15)
            told |= noticed(day, root).keys()
        false += len(told)
    assert false <= 1


def test_a_topic_that_is_answered_as_well_is_no_gap(root):
    day = Day(1)
    for n in range(6):
        day.ask(f"What is the height of tower {n}?", end="unanswered" if n % 2 else "answered")
    assert not noticed(day, root)


def test_figures_are_told_for_each_archetype():
    rows = [batos.Ended("0x1", "Factual Inquiry", 1.0, "answered", False, True, ("BABS",), "x"),
            batos.Ended("0x2", "Factual Inquiry", 3.0, "answered", True, False, ("BABS", "ROBIN"), "x")]
    assert batos.outcome_figures(rows) == {"Factual Inquiry": {
        "missions": 2, "p50_s": 2.0, "p95_s": 1.0, "sent back": 1, "refused": 0, "failed": 0, "unanswered": 0, "marked wrong": 1,
        "bloat": 0, "personas": {"BABS": 2, "ROBIN": 1}}}


def test_a_finding_is_told_once_in_a_window(monkeypatch):
    monkeypatch.setattr(batos, "_LOOKS", (lambda rows, root: [batos.outcome_finding("gap", "giraff", "x", "y", ["0x1"])],))

    def new(now, **told):
        root = {"missions": batos.LOBTree({now: None}), "autotelic_obj": batos.UvmObject(told=told)}
        return len(batos.new_findings(root, []))
    assert (new(10), new(10, **{"gap: giraff": 10}), new(10 + batos._WINDOW, **{"gap: giraff": 10})) == (1, 0, 1)


# In a mind


def ask(one, *questions):
    """Have questions asked, each a mission."""
    for question in questions:
        one.write(lambda root, question=question: batos.cycle_id(batos.send(
            root["orchestrator_obj"], "start_cognitive_cycle_for_",
            {"type": "direct_synthesis", "selector": "q", "args": [question], "kwargs": {}})))


GIRAFFES = ("What do giraffes eat?", "Where do giraffes sleep?", "How tall are giraffes?")


def begin(one, type, selector, args=(), target=None):
    def apply(root):
        brief = {"type": type, "selector": selector, "args": list(args), "kwargs": {}}
        return batos.cycle_id(batos.send(root["orchestrator_obj"], "start_cognitive_cycle_for_", brief, target))
    return one.write(apply)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("target", [None, "alfred_prototype_obj", "genesis_obj"])
def test_audits_are_understood_as_the_seeds_send_them(kept, type, selector, target):  # noqa: F811
    one = kept()
    begin(one, type, selector, target=target)
    report, = one.reports(1)
    assert "Nothing has failed since the last audit" in report["answer"]


def test_failures_that_a_mission_names_are_audited_in_place_of_the_log(kept):  # noqa: F811
    one = kept()
    told = [{"cycle": "0x9", "code": "Drought", "details": "the well is dry", "mission": "water", "type": "direct_synthesis"}]
    begin(one, "systemic_self_improvement", SELECTORS[1], [told, 7, {"code": None}], None)
    report, = one.reports(1)
    assert "1 mission (direct_synthesis) failed by Drought: the well is dry" in report["answer"]
    assert one.write(lambda root: root["autotelic_obj"].audited_through) == -1


def test_what_was_asked_three_times_and_never_answered_is_told_once_with_what_to_learn(kept):  # noqa: F811
    one = kept({"heartbeat_first_s": 0.0, "heartbeat_s": 1000.0})
    ask(one, *GIRAFFES)
    asked = {report["cycle"] for report in one.reports(3)}
    one.uvm.heartbeat.look()
    audit = one.reports(4)[3]
    assert "asked 3 times about giraffes, unanswered: no document holds it" in audit["answer"]
    assert "1 thing is noticed in how missions end; ALFRED looks at it" in one.uvm.heartbeat.health()["last"]["told"]
    line, = one.write(lambda root: batos.send(root["autotelic_obj"], "audit_report_"))
    assert line["kind"] == "gap" and set(line["cycles"]) == asked and "learn FILE" in line["why"]
    one.uvm.heartbeat._due_s = 0.0
    one.uvm.heartbeat.look()
    while one.uvm.heartbeat._asking:
        pass
    assert one.uvm.heartbeat.health()["last"]["told"] == "nothing went wrong since the last audit" and len(one.ended) == 4


def test_what_an_audit_told_of_a_mission_is_forgotten_with_it(kept):  # noqa: F811
    one = kept()
    ask(one, *GIRAFFES)
    one.reports(3)
    one.audit()
    audit = one.reports(4)[3]["cycle"]

    def erase(root):
        found = batos._what_to_forget(root, "matching", "giraffes")
        return batos._erase_unless_changed(root, "matching", "giraffes", *found, [])
    one.uvm.lanes["bulk"].call(batos.Job("forget", erase, token=True))

    def left(root):
        cycle = batos.find_cycle(root, audit)
        return len(root["autotelic_obj"].report), len(root["autotelic_obj"].told), repr((cycle.result, cycle.journal))
    lines, told, text = one.write(left)
    assert lines == told == 0 and "giraffes" not in text


def test_thoughts_are_kept_as_long_as_their_journal(kept):  # noqa: F811
    one = kept({"journal_days": 0.0})
    ask(one, *GIRAFFES)
    one.reports(3)
    data = one.write(lambda root: [cycle._tmp_synthesis_data for cycle in root["missions"].values()])
    assert data[0] == {} and len(data) == 3


def test_the_report_is_told_on_the_command_line(daemon, monkeypatch, capsys):
    monkeypatch.setenv("BATOS_ENDPOINT", daemon(core=0).endpoint)
    assert batos.main(["report"]) == 0 and capsys.readouterr().out == "no audit has found anything yet\n"
    row = {"at": {"$time": "2026-01-02T03:04:05Z"}, "kind": "gap", "what": "asked", "why": "learn", "cycles": ["0x1"]}
    assert batos._told_finding(row) == ["2026-01-02T03:04:05  gap: asked", "    learn; see 0x1"]
    message = '{"target": "autotelic_obj", "selector": "outcomes_"}'
    assert batos.main(["send", message]) == 0 and '"OK"' in capsys.readouterr().out


def test_what_audits_found_and_the_figures_stand_in_the_picture_of_top(daemon):
    failed = {"cycle": "0x9", "code": "Drought", "details": "the well is dry", "mission": "water", "type": "direct_synthesis"}
    audit = {"type": "self_audit", "selector": SELECTORS[1], "args": [[failed]]}
    with batos.Client(daemon(core=0).endpoint) as client:
        assert not any("ALFRED found" in line for line in batos._drawn(batos._looked(client))["Daemon"])
        client.call("initiate_cognitive_cycle", mission_brief=audit, wait=True)
        told = batos._looked(client)
    line, = [line for line in batos._drawn(told)["Daemon"] if line.startswith("ALFRED found, 20")]
    assert "failures: 1 mission (direct_synthesis) failed by Drought: the well is dry (`report` tells all)" in line
    told["health"]["heartbeat"]["cem"], told["figures"] = {"cem": 0.4, "low": False}, [{"cem": 0.4}, {"cem": 0.9}]
    assert any(line.endswith("; CEM 0.40 █▄") for line in batos._drawn(told)["Daemon"])




def test_what_takes_milliseconds_is_not_slow():
    def times(seconds):
        return [batos.Ended(f"0x{n:x}", "Factual Inquiry", seconds, "answered", False, False, (), "q", "a") for n in range(60)]
    assert not list(batos._look_for_slow(times(0.06) + times(0.02), None))
    assert list(batos._look_for_slow(times(0.6) + times(0.2), None))


# What is begun


def audited(one, monkeypatch, remedy):
    """Have an audit notice one thing with a remedy; returns its report."""
    found = batos.outcome_finding("x", "y", "something", "why", ["0x1"], remedy=remedy)
    monkeypatch.setattr(batos, "new_findings", lambda root, rows: [found])
    one.audit()
    return one.reports(1)[0]


def test_an_audit_draws_in_who_was_not_heard(kept, monkeypatch):  # noqa: F811
    one = kept()
    report = audited(one, monkeypatch, [batos.DRAW_IN, "ALFRED"])
    assert report["answer"] == "something (why). I begin with this: something."
    traces = one.write(lambda root: [(t.kind, t.attracts, t.cycle) for t in root["digital_ether"].pheromones.values()])
    assert traces == [("STAGNATION", ["ALFRED"], report["cycle"])]


@pytest.mark.parametrize("remedy", batos.REMEDIES_OF_OUTCOMES)
def test_an_audit_begins_what_sees_to_it(kept, monkeypatch, remedy):  # noqa: F811
    one = kept()
    audited(one, monkeypatch, remedy)
    brief, target = remedy
    begun = one.reports(2)[1]
    assert begun["who"] == "UVM_AUTOTELIC"
    told = one.write(lambda root: (batos.find_cycle(root, begun["cycle"]).mission_brief["selector"],
                                   batos.find_cycle(root, begun["cycle"]).target_oid == batos.oid_text(root[target]._p_oid)))
    assert told == (brief["selector"], True)


@pytest.mark.parametrize("remedy", [[batos.DRAW_IN, "NOBODY"], [{"type": "systemic_self_improvement", "selector": "other"}, "x"],
                                    ["again"], None])
def test_what_somebody_put_among_what_waits_is_begun_only_where_it_is_a_remedy(remedy):
    assert not batos._is_finding({"what": "x", "times": 1, "remedy": remedy, "of": "x", "why": "x"})
