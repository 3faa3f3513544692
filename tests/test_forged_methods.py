"""What should have been written in place of a method becomes a row, which teaches the core's own task, or a core that writes."""

import pytest
from test_kernel import kernel  # noqa: F401  (a fixture)

import batos

PRICES = {"prices": [3, 9, -4]}


def say(one, report, source, mark="wrong"):
    """Say which method should have been written; returns the rows that came of it."""
    def apply(root):
        cycle, correction = batos.find_cycle(root, report["cycle"]), {"method": source}
        batos.mark_answer(root, report["cycle"], mark, "", correction)
        rows = root["golden_obj"].rows
        return [rows[n] for n in batos.keep_rows(cycle, mark, correction, "me", True)]
    return one.write(apply)


@pytest.mark.parametrize("source, body", [
    ("def largest(self):\n    return max(self.prices)\n", "return max(self.prices)"),
    ("def largest(self):\n    \"\"\"The largest.\"\"\"\n    return sum( self.prices )\n", "return sum(self.prices)")])
def test_a_method_that_the_core_could_have_written_is_a_row_of_its_task(kernel, source, body):  # noqa: F811
    one = kernel()
    report = one.mission("largest_price", **PRICES)
    row, = say(one, report, source)
    assert (row["target"], row["task"], batos._fault_of_text(row)) == ("BASE", "method", "")
    value = batos.CORE_TASKS["method"].value(row["wanted"], row["fields"])
    assert value["source"] == f"def largest_price(self):\n    {body}\n"
    assert batos._is_right(row, value)


def test_arguments_may_be_called_as_one_likes(kernel):  # noqa: F811
    one = kernel()
    report = one.mission("add_price_", 5, **PRICES)
    row, = say(one, report, "def add_price_(self, price):\n    self.prices = [*self.prices, price]\n    self._p_changed = True\n")
    told = batos.CORE_TASKS["method"].value(row["wanted"], row["fields"])["source"] if row["wanted"] else row["lacks"]
    assert "self.prices = [*self.prices, value]" in told


def test_a_mission_that_failed_learns_too(kernel):  # noqa: F811
    one = kernel()
    report = one.mission("word_count", text="it was so", author="B")
    assert report["state"] == "FAILED"
    row, = say(one, report, "def word_count(self):\n    return len(self.text.split())\n")
    assert row["wanted"].endswith("return len(self.text.split())") and row["question"].startswith("word count")


@pytest.mark.parametrize("source", [
    "def f(self):\n    total = 0\n    return total\n", "def f(self:", "x = 1\n", "return max(self.prices)", "\0"])
def test_what_the_cores_own_task_has_not_is_refused_by_name(kernel, source):  # noqa: F811
    one = kernel()
    row, = say(one, one.mission("largest_price", **PRICES), source)
    assert row["wanted"] == "" and "has no such method" in batos._fault_of_text(row)


def test_a_core_that_writes_learns_the_source_as_it_stands(kernel):  # noqa: F811
    wrong = "def dearest(self):\n    best = 0\n    return best\n"
    one = kernel(method=lambda fields: {"idiom": batos.FREE, "source": wrong})
    one.uvm.core.writes, one.uvm.core.infer_ = True, lambda prompt, **fields: "dearest(prices=[1, 7, 2]) -> 7"
    report = one.mission("dearest", **PRICES)
    right = "def dearest(self):\n    best = max(self.prices)\n    return best\n"
    row, = say(one, report, right)
    assert (row["target"], row["task"], row["wanted"]) == ("BASE", "write", right.strip())
    assert "def dearest(self):" in row["fields"]["prompt"] and "prices" in row["fields"]["prompt"]
    assert batos._fault_of_text(row) == ""


def test_methods_that_were_corrected_are_a_gap_of_the_mind(kernel):  # noqa: F811
    one = kernel()
    for _ in range(2):
        say(one, one.mission("largest_price", **PRICES), "def f(self):\n    return sum(self.prices)\n")

    def gap(root):
        return batos._failures_by_task(root)["method"], batos._rows_by_task(root)["method"]
    assert one.write(gap) == (2, 2)
