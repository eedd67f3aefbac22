#!/usr/bin/env python3
"""Measures Chatter against stock Erlang distribution, in one run on one machine.

In every round each measurement runs once per carrier, the two in turn, between fresh nodes,
so that a machine that slows down slows both. What counts is the ratio of the medians.

  bench/compare.py                      direct link, against inet_tcp
  bench/compare.py --path relay         A - R - B; stock stays direct
  bench/compare.py --against inet_tls
  bench/compare.py --rate 100mbit       two network namespaces and a shaped wire (root);
                                        a relay is in that of A: its outgoing link is shaped
  bench/compare.py --all                all of these, then the table with the bar

The nodes use an epmd port and a cookie of their own and die with this program.
"""
import argparse
import contextlib
import ctypes
import json
import os
import platform
import queue
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HOST = socket.gethostname().split(".")[0]
BASIC = ["latency", "small1", "small8", "mid", "large"]
BESIDE = ["hol", "flood", "streams"]
# Without a connection: chatter:send/3 and chatter:call/5 against `!` and erpc:call/5.
MESSAGES = ["send", "send1", "send8", "send_mid", "call", "call8", "absent"]
BOOT_TIMEOUT_S = 20

# What the project holds itself to: ratios to stock inet_tcp, encryption on.
# (what, section, figure, must, aim); a section is (path, against, rate). What a carrier keeps of its
# own rate is no ratio to stock.
AT_MOST, AT_LEAST = "<=", ">="
DIRECT, RELAY = ("direct", "inet_tcp", None), ("relay", "inet_tcp", None)
GIGABIT, FAST = ("direct", "inet_tcp", "1gbit"), ("direct", "inet_tcp", "100mbit")
RELAY_GIGABIT, RELAY_FAST = ("relay", "inet_tcp", "1gbit"), ("relay", "inet_tcp", "100mbit")
TLS = ("direct", "inet_tls", None)
BAR = [
    ("round trip p50, direct", DIRECT, "rtt_p50_us", AT_MOST, 0.6, 0.35),
    ("100-byte messages, 1 sender", DIRECT, "small_1_sender_per_s", AT_LEAST, 4, 6),
    ("100-byte messages, 8 senders", DIRECT, "small_8_senders_per_s", AT_LEAST, 4, 6),
    ("4 KiB messages", DIRECT, "mid_4_senders_per_s", AT_LEAST, 3, 5),
    ("8 MiB messages", DIRECT, "large_mb_per_s", AT_LEAST, 0.8, 1.0),
    ("round trip p99 beside bulk, loopback", DIRECT, "hol_p99_us", AT_MOST, 0.15, 0.05),
    ("round trip p99 beside bulk, 1 Gbit/s", GIGABIT, "hol_p99_us", AT_MOST, 0.06, 0.03),
    ("round trip p99 beside bulk, 100 Mbit/s", FAST, "hol_p99_us", AT_MOST, 0.12, 0.06),
    ("round trip p99 in a flood, loopback", DIRECT, "flood_p99_us", AT_MOST, 0.02, 0.005),
    ("round trip p99 in a flood, 1 Gbit/s", GIGABIT, "flood_p99_us", AT_MOST, 0.06, 0.03),
    ("round trip p99 in a flood, 100 Mbit/s", FAST, "flood_p99_us", AT_MOST, 0.1, 0.05),
    ("round trip p50, one relay / stock direct", RELAY, "rtt_p50_us", AT_MOST, 1.2, 0.8),
    ("100-byte messages, one relay / stock direct", RELAY, "small_1_sender_per_s",
     AT_LEAST, 2.5, 4),
] + [
    ("streams beside round trips / alone, " + where, section, "streams_kept", AT_LEAST, 0.9, 1)
    for where, section in (("loopback", DIRECT), ("1 Gbit/s", GIGABIT), ("100 Mbit/s", FAST))
] + [
    ("p99 %s, relay onto %s" % (beside, where), section, figure, AT_MOST, must, aim)
    for where, section, musts in (("1 Gbit/s", RELAY_GIGABIT, ((0.06, 0.03), (0.06, 0.03))),
                                  ("100 Mbit/s", RELAY_FAST, ((0.12, 0.06), (0.1, 0.05))))
    for (beside, figure), (must, aim) in zip(
        (("beside bulk", "hol_p99_us"), ("in a flood", "flood_p99_us")), musts)
]


class Failed(Exception):
    """A run that gave no figures; the message says why."""


def lower_is_better(figure):
    return figure.endswith(("_us", "_bytes"))


# --- nodes --------------------------------------------------------------------------------

def die_with_parent():
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def environment(epmd_port):
    env = {k: v for k, v in os.environ.items()
           if not re.match(r"ERL_(A|Z)?FLAGS$|ERL_LIBS$|ERL_EPMD_|CHATTER_", k)}
    return dict(env, ERL_EPMD_PORT=str(epmd_port), ERL_CRASH_DUMP="/dev/null")


class Program:
    """A child whose output is read all the time, line by line."""

    def __init__(self, command, env, namespace=None):
        command = (["ip", "netns", "exec", namespace] if namespace else []) + command
        self.lines, self.output = queue.Queue(), []
        self.process = subprocess.Popen(
            command, env=env, text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=die_with_parent)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.output.append(line)
            self.lines.put(line)
        self.lines.put(None)

    def said(self):
        """The end of what it said: enough for a reader, not all of a crash report."""
        return "".join(self.output[-15:]).strip()[-600:] or "(nothing)"

    def await_line(self, start, timeout):
        for line in self.until_end(timeout):
            if line.startswith(start):
                return
        raise Failed("a node ended before it was ready; it said: " + self.said())

    def until_end(self, timeout):
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self.lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise Failed("nothing came within %d s; it said: %s"
                             % (timeout, self.said())) from None
            if line is None:
                return
            yield line

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port():
    while True:
        port = random.SystemRandom().randrange(20000, 29000)
        with socket.socket() as s:
            with contextlib.suppress(OSError):
                s.bind(("", port))
                return port


class Cluster:
    """The nodes of one run. Leaving it kills all of them."""

    def __init__(self, bench, carrier):
        self.bench, self.carrier, self.programs = bench, carrier, []
        self.cookie = secrets.token_hex(16)
        self.env = environment(free_port())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in self.programs:
            program.kill()

    def run(self, command, namespace=None):
        self.programs.append(Program(command, self.env, namespace))
        return self.programs[-1]

    def epmd(self, namespaces):
        if self.carrier != "chatter":
            for namespace in namespaces:
                self.run(["epmd", "-port", self.env["ERL_EPMD_PORT"]], namespace)

    def erl(self, name, neighbours, code, namespace=None):
        kind = "-name" if "." in name else "-sname"
        return self.run(["erl", "-noinput", kind, name, "-setcookie", self.cookie,
                         "-pa", self.bench.beams, *self.flags(neighbours), "-eval", code],
                        namespace)

    def node(self, name, neighbours, namespace=None):
        program = self.erl(name, neighbours, "chatter_bench:serve()", namespace)
        program.await_line("ready ", BOOT_TIMEOUT_S)

    def flags(self, neighbours):
        if self.carrier == "inet_tcp":
            return ["-start_epmd", "false"]
        if self.carrier == "inet_tls":
            return ["-start_epmd", "false", "-proto_dist", "inet_tls",
                    "-ssl_dist_optfile", self.bench.tls_options()]
        flags = ["-pa", self.bench.ebin, "-proto_dist", "chatter",
                 "-epmd_module", "chatter_epmd", "-start_epmd", "false",
                 "-chatter", "multicast", "false"]
        if neighbours is not None:
            names = ",".join("'%s'" % name for name in neighbours)
            flags += ["-chatter", "links", "static", "-chatter", "neighbours", "[%s]" % names]
        return flags + self.bench.extra


class Wire:
    """Two network namespaces joined by a pair of interfaces, each shaped to a rate. The queue
    holds 10 ms, as that of a shallow switch."""

    def __init__(self, rate):
        mark = "%x" % os.getpid()
        self.rate = rate
        self.ends = [("chb%s%s" % (mark, x), "cv%s%s" % (mark, x), "10.77.0.%d" % i)
                     for i, x in ((1, "a"), (2, "b"))]
        self.namespaces = [end[0] for end in self.ends]

    def __enter__(self):
        self.remove()
        for namespace in self.namespaces:
            ip("netns", "add", namespace)
        ip("link", "add", self.ends[0][1], "type", "veth", "peer", "name", self.ends[1][1])
        for namespace, device, address in self.ends:
            ip("link", "set", device, "netns", namespace)
            ip("-n", namespace, "addr", "add", address + "/24", "dev", device)
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "link", "set", device, "up")
            ip("netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, "root",
               "tbf", "rate", self.rate, "burst", "64kb", "latency", "10ms")
        return self

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)


def ip(*args):
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if done.returncode:
        raise Failed("ip %s: %s" % (" ".join(args), done.stderr.strip()))


# --- one run ------------------------------------------------------------------------------

class Bench:
    """What all runs share: the compiled measuring code, options, a scratch directory."""

    def __init__(self, args, scratch):
        self.args, self.scratch = args, scratch
        self.ebin, self.extra = os.path.abspath(args.ebin), shlex.split(args.extra)
        self.beams = os.path.join(scratch, "beams")
        os.mkdir(self.beams)
        sources = [os.path.join(HERE, name + ".erl")
                   for name in ("chatter_bench", "chatter_bench_messages")]
        subprocess.run(["erlc", "-o", self.beams, *sources], check=True)

    def tls_options(self):
        conf, pem = os.path.join(self.scratch, "tls.conf"), os.path.join(self.scratch, "pem")
        if not os.path.exists(conf):
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
                            "2", "-subj", "/CN=" + HOST, "-keyout", pem, "-out", pem + ".cert"],
                           check=True, stderr=subprocess.DEVNULL)
            with open(conf, "w") as out:
                out.write('[{server, [{certfile, "%s.cert"}, {keyfile, "%s"}]},\n'
                          ' {client, [{verify, verify_none}]}].\n' % (pem, pem))
        return conf

    def run(self, carrier, path, wire, what):
        """The figures of one measurement over one carrier: {name: value}."""
        with Cluster(self, carrier) as cluster:
            a, b, spaces, near_a, near_b, hops = self.layout(cluster, carrier, path, wire)
            cluster.node(b, near_b, spaces[-1])
            module = "chatter_bench_messages" if what in MESSAGES else "chatter_bench"
            code = "%s:main('%s', %s, %f)" % (module, b, what, self.args.scale)
            client = cluster.erl(a, near_a, code, spaces[0])
            return self.figures(client, hops)

    def layout(self, cluster, carrier, path, wire):
        spaces = wire.namespaces if wire else [None]
        cluster.epmd(spaces)
        if wire:
            a, b = ("%s@%s" % (n, end[2]) for n, end in zip("ab", wire.ends))
            if carrier != "chatter" or path == "direct":
                return a, b, spaces, [b], [a], 1
            r = "r@" + wire.ends[0][2]
            cluster.node(r, [], spaces[0])
            return a, b, spaces, [r], [r], 2
        mark = secrets.token_hex(3)
        a, b, r, s = ("bench_%s_%s@%s" % (x, mark, HOST) for x in "abrs")
        if carrier != "chatter" or path == "direct":
            return a, b, spaces, None, None, 1
        cluster.node(r, [])
        if path == "relay":
            return a, b, spaces, [r], [r], 2
        cluster.node(s, [r])
        return a, b, spaces, [r], [s], 3

    def figures(self, client, hops):
        found, route = {}, None
        for line in client.until_end(self.args.timeout):
            words = line.split()
            if words[:1] == ["figure"] and len(words) == 3:
                found[words[1]] = float(words[2])
            elif words[:1] == ["route"]:
                route = int(words[1])
        if client.process.wait() != 0 or not found:
            raise Failed("no figures; it said: " + client.said())
        if route != hops:
            raise Failed("measured over %s hops instead of %d" % (route, hops))
        return found


# --- sections and tables ------------------------------------------------------------------

def title(section):
    path, against, rate = section
    return "%s, against %s%s%s" % (
        {"direct": "direct link", "relay": "through one relay",
         "relay2": "through two relays"}[path],
        against, "" if path == "direct" else " direct", ", at " + rate if rate else "")


def measure_section(bench, section, measurements):
    path, against, rate = section
    samples, errors = {}, []
    total, done = bench.args.rounds * len(measurements) * 2, 0
    with Wire(rate) if rate else contextlib.nullcontext() as wire:
        for _ in range(bench.args.rounds):
            for what in measurements:
                for carrier in (against, "chatter"):
                    done += 1
                    progress("%d/%d %s over %s" % (done, total, what, carrier))
                    try:
                        figures = bench.run(carrier, path, wire, what)
                    except Failed as failure:
                        errors.append("%s over %s: %s" % (what, carrier, failure))
                        continue
                    for name, value in figures.items():
                        samples.setdefault(name, {}).setdefault(carrier, []).append(value)
    progress("")
    return rows(samples, against), errors


def rows(samples, against):
    result = []
    for name, by_carrier in samples.items():
        stock, chatter = (statistics.median(by_carrier[c]) if c in by_carrier else None
                          for c in (against, "chatter"))
        result.append({"figure": name, "stock": stock, "chatter": chatter,
                       "ratio": chatter / stock if stock and chatter else None,
                       "lower_is_better": lower_is_better(name)})
    return result


def progress(text):
    if sys.stderr.isatty():
        print("\r\033[K" + text, end="", file=sys.stderr, flush=True)


def number(value, form="%.2f"):
    return "-" if value is None else form % value


def print_section(section, table, errors):
    print("\n%s" % title(section))
    print("  %-24s %14s %14s %8s" % ("figure", section[1], "chatter", "ratio"))
    for row in table:
        print("  %-24s %14s %14s %8s  (%s is better)" % (
            row["figure"], number(row["stock"]), number(row["chatter"]), number(row["ratio"]),
            "lower" if row["lower_is_better"] else "higher"))
    for error in errors:
        print("  ! " + error.replace("\n", "\n    "))
    sys.stdout.flush()


def judge(sections):
    """The bar, for the sections that were measured: (what, ratio, rule, aim, verdict)."""
    verdicts = []
    for what, section, figure, rule, must, aim in BAR:
        if section in sections and wanted(sections[section], figure):
            ratio = ratio_of(sections[section], figure, "chatter" if "_kept" in figure else "ratio")
            verdicts.append((what, ratio, "%s %g" % (rule, must), "%g" % aim,
                             verdict(ratio, rule, must, aim)))
    for row in sections.get(TLS, {"rows": []})["rows"]:
        if row["figure"].endswith("_max_us"):
            continue  # one sample, of both: shown, not judged
        rule = AT_MOST if row["lower_is_better"] else AT_LEAST
        verdicts.append((row["figure"] + " against inet_tls", row["ratio"], rule + " 1", "",
                         verdict(row["ratio"], rule, 1, None)))
    return verdicts


def wanted(section, figure):
    """Whether the figure belongs to what was measured; one that did not come out does."""
    names = {"latency": "rtt", "small1": "small_1", "small8": "small_8", "mid": "mid",
             "large": "large", "hol": "hol", "flood": "flood", "streams": "streams"}
    return any(figure.startswith(names[what] + "_") for what in section["measured"]
               if what in names)


def ratio_of(section, figure, what="ratio"):
    return next((r[what] for r in section["rows"] if r["figure"] == figure), None)


def verdict(ratio, rule, must, aim):
    if ratio is None:
        return "FAIL (no figure)"
    good = (lambda bound: ratio <= bound) if rule == AT_MOST else (lambda bound: ratio >= bound)
    if not good(must):
        return "FAIL"
    return "pass, aim reached" if aim is not None and good(aim) else "pass"


def print_bar(verdicts):
    print("\nThe bar: ratios to stock, encryption on")
    print("  %-46s %8s %9s %6s  %s" % ("measure", "ratio", "must", "aim", ""))
    for what, ratio, must, aim, result in verdicts:
        print("  %-46s %8s %9s %6s  %s" % (what, number(ratio, "%.3f"), must, aim, result))
    failed = sum(1 for v in verdicts if v[4].startswith("FAIL"))
    print("  %d of %d reach the bar" % (len(verdicts) - failed, len(verdicts)))


def machine():
    otp = subprocess.run(["erl", "-boot", "no_dot_erlang", "-noinput", "-eval",
                          "io:put_chars(erlang:system_info(system_version)), halt()."],
                         capture_output=True, text=True).stdout.strip()
    return {"system": platform.platform(), "cpus": os.cpu_count(), "otp": otp,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


# --- command line -------------------------------------------------------------------------

def plan(args):
    if not args.all:
        return {(args.path, args.against, args.rate): args.what.split(",")}
    sections = {DIRECT: BASIC + BESIDE, RELAY: ["latency", "small1"], TLS: BASIC + ["hol"]}
    if os.geteuid() == 0 and shutil.which("tc"):
        sections.update({GIGABIT: BESIDE, FAST: BESIDE})
        sections.update({RELAY_GIGABIT: BESIDE[:2], RELAY_FAST: BESIDE[:2]})
    else:
        print("not root, or no tc: nothing is measured over shaped wires", file=sys.stderr)
    return sections


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--all", action="store_true", help="every section, then the bar")
    add("--path", default="direct", choices=["direct", "relay", "relay2"])
    add("--against", default="inet_tcp", choices=["inet_tcp", "inet_tls"])
    add("--rate", help="shape the wire: 100mbit, 1gbit, ... (root)")
    add("--what", default=",".join(BASIC + ["hol"]),
        help="of %s (default: %%(default)s)" % ",".join(BASIC + BESIDE + MESSAGES))
    add("--rounds", type=int, default=3)
    add("--scale", type=float, default=1.0, help="less than 1: fewer messages, quicker")
    add("--ebin", default=os.path.join(HERE, "..", "_build/default/lib/chatter/ebin"))
    add("--extra", default="", help="more flags for Chatter: '-chatter encryption false'")
    add("--json", metavar="FILE", help="write all figures to FILE as well")
    add("--timeout", type=int, default=120, metavar="SECONDS", help="for one measurement")
    add("--enforce", action="store_true", help="exit with 1 where the bar is missed")
    args = parser.parse_args()
    unknown = set(args.what.split(",")) - set(BASIC + BESIDE + MESSAGES)
    if unknown:
        parser.error("no such measurement: " + ", ".join(sorted(unknown)))
    if args.rate and args.path == "relay2":
        parser.error("--rate is for --path direct and relay")
    if args.rate and os.geteuid() != 0:
        parser.error("--rate makes network namespaces, which needs root")
    return args


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    about, sections = machine(), {}
    print("%s, %d CPUs, %s" % (about["system"], about["cpus"], about["otp"]))
    with tempfile.TemporaryDirectory(prefix="chatter-bench") as scratch:
        bench = Bench(args, scratch)
        for section, measurements in plan(args).items():
            table, errors = measure_section(bench, section, measurements)
            sections[section] = {"rows": table, "errors": errors, "measured": measurements}
            print_section(section, table, errors)
    verdicts = judge(sections)
    if verdicts:
        print_bar(verdicts)
    if args.json:
        with open(args.json, "w") as out:
            json.dump({"machine": about,
                       "sections": [dict(path=p, against=a, rate=r, **sections[p, a, r])
                                    for p, a, r in sections],
                       "bar": [dict(zip(("measure", "ratio", "must", "aim", "verdict"), v))
                               for v in verdicts]}, out, indent=1)
    if any(s["errors"] for s in sections.values()):
        return 2
    return 1 if args.enforce and any(v[4].startswith("FAIL") for v in verdicts) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except Failed as failure:
        sys.exit("bench: %s" % failure)
