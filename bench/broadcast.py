#!/usr/bin/env python3
"""Measures chatter:broadcast/2 against `[{n, N} ! M || N <- Nodes]` over stock distribution.

One node sends messages of less than 100 bytes to processes on one and on four others, which count
them and check their order. Both ways run in turn, in every round, between fresh nodes on this host,
without multicast, which is for small amounts; what counts is the ratio of the medians of all messages
delivered a second.

  bench/broadcast.py [--rounds 3] [--count 300000]
"""
import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile

from compare import HERE, HOST, Bench, Cluster, Failed

# Receivers, and the least ratio of messages delivered a second.
BAR = [(1, 5), (4, 8)]


class Fanout(Bench):
    """As Bench, with the measuring code for several receivers."""

    def __init__(self, args, scratch):
        super().__init__(args, scratch)
        source = os.path.join(HERE, "chatter_fanout.erl")
        subprocess.run(["erlc", "-pa", self.ebin, "-o", self.beams, source], check=True)

    def deliveries(self, carrier, receivers):
        """Messages delivered a second, at all receivers together."""
        with Cluster(self, carrier) as cluster:
            cluster.epmd([None])
            mark = secrets.token_hex(3)
            names = ["fan%d_%s@%s" % (n, mark, HOST) for n in range(receivers + 1)]
            for name in names[1:]:
                program = cluster.erl(name, None, "chatter_fanout:serve()")
                program.await_line("ready ", 20)
            how = "plain" if carrier == "inet_tcp" else "broadcast"
            to = ",".join("'%s'" % name for name in names[1:])
            code = 'chatter_fanout:main([%s], %s, %d, "deliveries")' % (to, how, self.args.count)
            client = cluster.erl(names[0], None, code)
            for line in client.until_end(self.args.timeout):
                words = line.split()
                if words[:1] == ["figure"]:
                    return float(words[2])
            raise Failed("no figure; it said: " + client.said())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=300000, help="messages of each run")
    parser.add_argument("--receivers", type=int, nargs="*", help="instead of 1 and 4")
    parser.add_argument("--ebin", default=os.path.join(HERE, "../_build/default/lib/chatter/ebin"))
    parser.add_argument("--extra", default="", help="more flags for the nodes of Chatter")
    parser.add_argument("--timeout", type=int, default=300)
    args = parser.parse_args()
    bar = dict(BAR)
    print("%-10s %14s %14s %7s %5s" % ("receivers", "stock, 1/s", "Chatter, 1/s", "ratio", "bar"))
    missed = False
    with tempfile.TemporaryDirectory() as scratch:
        bench = Fanout(args, scratch)
        for receivers in args.receivers or [receivers for receivers, _ in BAR]:
            rates = {"inet_tcp": [], "chatter": []}
            for _ in range(args.rounds):
                for carrier, found in rates.items():
                    found.append(bench.deliveries(carrier, receivers))
            stock, ours = (statistics.median(found) for found in rates.values())
            least = bar.get(receivers, 0)
            missed = missed or ours / stock < least
            print("%-10d %14.0f %14.0f %7.2f %5s" % (receivers, stock, ours, ours / stock, least or ""),
                  flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit("failed: %s" % failure)
