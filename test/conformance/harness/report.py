"""Tables, the verdict, and the two lists that go with the suites: exceptions.txt and variants.txt."""
import re

MARKS = {"ok": "ok", "alone": "alone", "fail": "FAIL", "skip": "skip", "cut off": "CUT OFF", None: "-"}


class BadList(Exception):
    """A line of a list file that cannot be read."""


def read_list(path, over):
    """Lines `suite:case  text`, or `suite:case@path  text` that count on that path only; empty lines and those that
    begin with # do not count. Returns {(suite, case): text} for the path `over`."""
    entries = {}
    with open(path) as f:
        for number, line in enumerate(f, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            found = re.match(r"(\w+):(\w+)(@direct|@relay)?\s+(\S.*)$", line)
            if not found:
                raise BadList("%s:%d: want `suite:case  text`, not: %s" % (path, number, line))
            if found[3] in (None, "@" + over):
                entries[(found[1].removesuffix("_SUITE"), found[2])] = found[4]
    return entries


def table(suite, results, carriers, exceptions, variants):
    """The lines of one suite: case, a column per carrier, the time of the last, and a remark."""
    cases = ordered(results, carriers)
    width = max([len(case) for case in cases] + [20])
    lines = ["", "%-*s  %s" % (width, suite + "_SUITE", "".join("%-18s" % carrier for carrier in carriers))]
    for case in cases:
        columns = "".join("%-18s" % cell(results.get(carrier, {}).get(case)) for carrier in carriers)
        remark = "excepted" if (suite, case) in exceptions else ""
        if (suite, case) in variants:
            remark = (remark + " with " + variants[(suite, case)]).strip()
        lines.append("%-*s  %s%s" % (width, case, columns, remark))
    return [line.rstrip() for line in lines]


def ordered(results, carriers):
    """Every case that any carrier has met, in the order in which they ran."""
    cases = {}
    for carrier in carriers:
        cases.update(dict.fromkeys(results.get(carrier, {})))
    return [case for case in cases if case not in ("init_per_suite", "end_per_suite") or failed(results, carriers, case)]


def failed(results, carriers, case):
    return any(results.get(carrier, {}).get(case, ("ok",))[0] != "ok" for carrier in carriers)


def cell(result):
    if not result:
        return MARKS[None]
    return "%-7s %7.1f s" % (MARKS[result[0]], result[1] / 1000) if result[0] != "skip" else "skip"


def verdict(results, reference, judged, exceptions):
    """Compares the carrier `judged` with `reference`. Returns (regressions, outdated): lists of (suite, case, why)."""
    regressions, outdated = [], []
    for suite, by_carrier in results.items():
        stock, ours = by_carrier.get(reference, {}), by_carrier.get(judged, {})
        for case in ordered(by_carrier, (reference, judged)):
            got = ours.get(case, ("not run", 0, "the run ended before it"))
            if got[0] in ("ok", "alone"):
                if (suite, case) in exceptions:
                    outdated.append((suite, case, exceptions[(suite, case)]))
            elif stock.get(case, ("ok",))[0] == "ok" and (suite, case) not in exceptions:
                regressions.append((suite, case, "%s: %s" % (got[0], got[2])))
    return regressions, outdated


def counts(cases):
    """`12 ok, 1 FAIL, 2 skip`"""
    tally = {}
    for result, _ms, _why in cases.values():
        tally[result] = tally.get(result, 0) + 1
    return ", ".join("%d %s" % (n, MARKS[result]) for result, n in sorted(tally.items(), key=lambda x: -x[1])) or "nothing ran"
