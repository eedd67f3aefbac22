"""The first process within the walls: brings up the loopback, the relay if there is one, then Common Test.

Reads a plan (JSON): suite, folder, hook (folder of the hook), hook_options, out, sname, env, isolated, host_addresses,
relay (command or null), flags of the relay's environment come from env without ERL_FLAGS.
"""
import json, os, subprocess, sys, time

RELAY_DIED = 3


def main():
    with open(sys.argv[1]) as f:
        plan = json.load(f)
    if plan["isolated"]:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for address in plan["host_addresses"]:
            subprocess.run(["ip", "addr", "add", address, "dev", "lo"], check=False)
    relay = start_relay(plan) if plan["relay"] else None
    suite = subprocess.Popen(ct_command(plan), env=plan["env"], cwd=plan["out"], stdin=subprocess.DEVNULL)
    status = reap_until(suite.pid, relay.pid if relay else None)
    if relay and status != RELAY_DIED:
        relay.kill()
    sys.exit(status)


def reap_until(suite, relay):
    """Waits for the suite and buries what it orphans: every node started leaves an epmd behind, hundreds in a suite."""
    while True:
        pid, status = os.wait()
        if pid == suite:
            return os.waitstatus_to_exitcode(status)
        if pid == relay:
            print("the relay ended before the suite did: see relay.log", flush=True)
            return RELAY_DIED


def start_relay(plan):
    env = {k: v for k, v in plan["env"].items() if k != "ERL_FLAGS"}
    log = open(os.path.join(plan["out"], "relay.log"), "w")
    node = subprocess.Popen(plan["relay"] + ["-setcookie", "relay"], env=env, cwd=plan["out"], stdin=subprocess.DEVNULL, stdout=log,
                            stderr=subprocess.STDOUT)
    time.sleep(2)
    if node.poll() is not None:
        print("the relay does not start: see %s" % log.name, flush=True)
        sys.exit(RELAY_DIED)
    return node


def ct_command(plan):
    logs = os.path.join(plan["out"], "ct")
    os.makedirs(logs, exist_ok=True)
    return ["ct_run", "-noinput", "-sname", plan["sname"], "-pa", plan["hook"], "-dir", plan["folder"], "-suite", plan["suite"],
            "-logdir", logs, "-no_auto_compile", "-ct_hooks", "conformance_cth", '"%s"' % plan["hook_options"]]


main()
