"""The peer of durable cycles: the same six states in LangGraph with its SQLite saver. Run in an environment of its own.

    python tests/bench/graph.py FOLDER AT_ONCE SECONDS
        prints {"cycles", "seconds", "commits", "rows" stored, "bytes" of them} as JSON

IDLE, DECOMPOSING, DELEGATING (four facets side by side), SYNTHESIZING, COMPLETE (FAILED by any error); each node answers at
once. Every step is durable before the next begins (durability="sync").
"""

import json
import operator
import sqlite3
import sys
import threading
import time
import typing

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

QUESTION = "How long does the mast run in full darkness?"
ANSWER = "In full darkness the mast runs for twelve days."


class Cycle(typing.TypedDict, total=False):
    mission: str
    state: str
    plan: dict
    partial: typing.Annotated[list, operator.add]
    answer: str


def idle(cycle):
    return {"state": "DECOMPOSING"}


def decomposing(cycle):
    return {"state": "DELEGATING", "plan": {f"facet{n}": cycle["mission"] for n in range(4)}}


def facet(request):
    return {"partial": [{"pillar": request["pillar"], "frame": "Stated plainly:", "quotes": [ANSWER]}]}


def synthesizing(cycle):
    return {"state": "COMPLETE", "answer": " ".join(cycle["partial"][0]["quotes"])}


def built(saver):
    """Return the compiled graph."""
    graph = StateGraph(Cycle)
    for node in (idle, decomposing, facet, synthesizing):
        graph.add_node(node.__name__, node)
    graph.add_node("complete", lambda cycle: {"state": "COMPLETE"})
    graph.add_edge(START, "idle")
    graph.add_edge("idle", "decomposing")
    facets = lambda cycle: [Send("facet", {"pillar": name}) for name in cycle["plan"]]
    graph.add_conditional_edges("decomposing", facets, ["facet"])
    graph.add_edge("facet", "synthesizing")
    graph.add_edge("synthesizing", "complete")
    graph.add_edge("complete", END)
    return graph.compile(checkpointer=saver)


def stored(connection):
    """Return {"rows", "bytes"} of what the saver stored, but for its first cycle."""
    rows, size = 0, 0
    for table, columns in (("checkpoints", ("checkpoint", "metadata")), ("writes", ("value",))):
        lengths = " + ".join(f"coalesce(length({column}), 0)" for column in columns)
        query = f"select count(*), coalesce(sum({lengths}), 0) from {table} where thread_id != 'first'"
        count, total = connection.execute(query).fetchone()
        rows, size = rows + count, size + total
    return {"rows": rows, "bytes": size}


def main():
    folder, at_once, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    connection = sqlite3.connect(f"{folder}/graph.sqlite", check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    commits, counts, numbers = [0], [0] * at_once, iter(range(10**9))
    connection.set_trace_callback(lambda line: commits.__setitem__(0, commits[0] + line.upper().startswith("COMMIT")))
    graph = built(SqliteSaver(connection))

    def run(worker):
        while time.perf_counter() < end_s:
            config = {"configurable": {"thread_id": str(next(numbers))}}
            result = graph.invoke({"mission": QUESTION}, config, durability="sync")
            assert result["answer"] == ANSWER and len(result["partial"]) == 4
            counts[worker] += 1
    graph.invoke({"mission": QUESTION}, {"configurable": {"thread_id": "first"}}, durability="sync")
    commits[0], start_s = 0, time.perf_counter()
    end_s = start_s + seconds
    threads = [threading.Thread(target=run, args=(n,)) for n in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = {"cycles": sum(counts), "seconds": time.perf_counter() - start_s, "commits": commits[0]}
    print(json.dumps(told | stored(connection)))


if __name__ == "__main__":
    main()
