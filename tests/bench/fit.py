"""Fit the weights of the section Intents to the requests of which it is known what is meant, all of them looked at.

    python tests/bench/fit.py gather FILE [--part 0/2]      the features of the likeliest methods of each request
    python tests/bench/fit.py fit FILE ...                  print weights by which the right ones are likeliest

A softmax over a request's methods, the right ones together; weights are drawn to those that stand in batos.py. Of "phrased" and
"wanted" only the half "look" is read.
"""

import argparse
import itertools
import pathlib
import pickle

import asked
import torch

import batos

FITTED_TO = (("asked", "all"), ("phrased", "look"), ("wanted", "look"), ("shaped", "all"))
LIKELIEST, TRIED_MOST = 120, 500                         # methods of a request that are weighed; in which right ones are sought
DRAWN = 0.15                                             # how much a weight is drawn to what it was
ROUNDS = 400


def gathered(request, shares):
    """Return [(features, whether right)] of the likeliest methods of a request, and of right ones less likely."""
    text = batos.routed_request(request.selector, request.intent)
    world = batos.world_of(text, request.slots, request.arguments)
    said = batos.what_is_said(request.selector, request.intent, world, shares.of(request, world))
    rows = sorted(itertools.chain(*batos.enumerated(world, said)), key=lambda row: -row[0])
    made = []
    for place, (_, candidate) in enumerate(rows[:TRIED_MOST]):
        if place < LIKELIEST or not any(right for _, right in made):
            right = request.is_right((candidate.target, candidate.code))
            if right or place < LIKELIEST:
                made.append((batos._features(candidate, said), right))
    return made


def gather(path, part):
    shares, place, made = asked.Shares(), 0, []
    number, count = map(int, part.split("/"))
    for name, half in FITTED_TO:
        for request in asked.requests(half, name):
            place += 1
            if place % count == number:
                made.append(((name, request.selector, request.intent), gathered(request, shares)))
    pathlib.Path(path).write_bytes(pickle.dumps(made))


def fit(paths):
    names = list(batos._WEIGHTS)
    requests = list(itertools.chain.from_iterable(pickle.loads(pathlib.Path(path).read_bytes()) for path in paths))
    before = torch.tensor([batos._WEIGHTS[name] for name in names])
    weights = before.clone().requires_grad_()
    tables = [tensors(rows, names) for _, rows in requests if any(right for _, right in rows)]
    adam = torch.optim.Adam([weights], lr=0.03)
    for _ in range(ROUNDS):
        adam.zero_grad()
        loss = sum(lost(table, weights) for table in tables) + DRAWN * ((weights - before) ** 2).sum() * len(tables) / 100
        loss.backward()
        adam.step()
    print(len(requests), "requests;", len(tables), "have a right one;", "lost", round(float(loss) / len(tables), 3))
    print("first and right:", sum(leads(table, before) for table in tables), sum(leads(table, weights) for table in tables))
    for name, old, new in zip(names, before.tolist(), weights.tolist(), strict=True):
        print(f"    {name!r}: {round(new, 2)},  # was {round(old, 2)}")


def tensors(rows, names):
    """Return (features, which are right) of a request's methods."""
    table = [[float(features.get(name) or 0) for name in names] for features, _ in rows]
    return torch.tensor(table), torch.tensor([right for _, right in rows])


def lost(table, weights):
    """Return how unlikely the right methods of a request are; no more than to a point, where words may be misleading."""
    features, right = table
    worth = features @ weights
    return torch.clamp(worth.logsumexp(0) - worth[right].logsumexp(0), max=8.0)


def leads(table, weights):
    features, right = table
    return bool(right[(features @ weights).argmax()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gather", "fit"))
    parser.add_argument("files", nargs="+")
    parser.add_argument("--part", default="0/1", help="of several that gather at once: which, and of how many")
    args = parser.parse_args()
    if args.what == "gather":
        gather(args.files[0], args.part)
    else:
        fit(args.files)


if __name__ == "__main__":
    main()
