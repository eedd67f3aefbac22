"""One run of one suite over one carrier, walled off from the machine, and what became of its cases."""
import json, os, shutil, signal, socket, subprocess, sys, time

INSIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside.py")


def run_suite(plan, timeout_s, isolate):
    """Carries out `plan` (see inside.py). Returns (cases, ended): cases {name: (result, ms, why)}, ended None or what went wrong."""
    os.makedirs(plan["home"], exist_ok=True)
    spec = os.path.join(plan["out"], "plan.json")
    with open(spec, "w") as f:
        json.dump(plan, f, indent=1)
    options = ["{results, %s}." % erl_string(plan["results"]), "{ports, %s}." % plan["ports"],
               "{only, %s}." % erl_atoms(plan["only"]), "{leave, %s}." % erl_atoms(plan["leave"])]
    if plan["relay"]:
        options.append("{relay, '%s'}." % plan["relay_node"])
    with open(plan["hook_options"], "w") as f:
        f.write("\n".join(options) + "\n")
    open(plan["results"], "w").close()
    with open(plan["console"], "w") as console:
        child = subprocess.Popen(walls(isolate) + [sys.executable, "-B", INSIDE, spec], stdin=subprocess.DEVNULL, stdout=console,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            child.wait(timeout_s)
            ended = None if child.returncode in (0, 1) else "ended with status %d" % child.returncode
        except subprocess.TimeoutExpired:
            ended = "did not end within %.1f minutes" % (timeout_s / 60)
        finally:
            sweep(child, plan["env"]["CONFORMANCE_RUN"])
    return cases(plan["results"]), ended


def walls(isolate):
    """Own process ids: whatever the run leaves behind dies with it. Own network: no port is taken and no node is met by chance."""
    if not isolate:
        return []
    return ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def can_isolate():
    """Whether walls can be had, and whether the name of this host is known without asking a server outside of them."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    named = subprocess.run(["getent", "-s", "files", "hosts", socket.gethostname()], capture_output=True).returncode == 0
    return named and subprocess.run(walls(True) + ["ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


def sweep(child, mark):
    """Kills what is left: the run's own session, then detached nodes, known by a variable in their environment."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    wanted = ("CONFORMANCE_RUN=" + mark).encode()
    for _ in range(20):
        left = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if wanted in environ(pid)]
        if not left:
            return
        for pid in left:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.1)


def environ(pid):
    try:
        with open("/proc/%s/environ" % pid, "rb") as f:
            return f.read().split(b"\0")
    except OSError:
        return []


def cases(path):
    """The hook's file as {case: (result, ms, why)}. A case that began and has no end was cut off; a failure outweighs an ok."""
    seen = {}
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            what, _suite, case, *more = line.rstrip("\n").split("\t")
            ms, why = (int(more[0]) if more else 0), (more[1] if len(more) > 1 else "")
            if what == "start":
                seen.setdefault(case, ("cut off", 0, "the run ended in this case"))
            elif seen.get(case, ("",))[0] != "fail":
                seen[case] = (what, ms, why)
    return seen


def erl_string(text):
    return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')


def erl_atoms(names):
    return "all" if names == "all" else "[%s]" % ", ".join("'%s'" % name for name in names)
