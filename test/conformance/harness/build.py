"""Compiles a suite, its helpers and our own modules into a scratch folder per carrier."""
import glob, os, shutil, subprocess

SUITE_FOLDERS = ["erts/emulator/test", "lib/kernel/test", "lib/stdlib/test"]
# Helpers of Common Test's own that suites name as hooks, and carriers that OTP ships as examples.
HOOKS = ["lib/common_test/test_server/ts_install_cth.erl", "lib/common_test/test_server/ts_lib.erl",
         "erts/emulator/test/erts_test_utils.erl"]
EXAMPLES = ["lib/kernel/examples/gen_tcp_dist/src/gen_tcp_dist.erl", "lib/kernel/examples/erl_uds_dist/src/erl_uds_dist.erl"]


class Broken(Exception):
    """Something that must compile does not."""


def suite_module(name):
    return name if name.endswith("_SUITE") else name + "_SUITE"


def find_suite(tree, name):
    for folder in SUITE_FOLDERS:
        path = os.path.join(tree, folder, suite_module(name) + ".erl")
        if os.path.exists(path):
            return path
    raise Broken("OTP has no %s in %s" % (suite_module(name), ", ".join(SUITE_FOLDERS)))


def suite(tree, name, folder, carrier):
    """Puts everything that the suite runs into `folder`. The chatter folder lacks gen_tcp_dist: there the shim takes its place."""
    source = find_suite(tree, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    needed = [source] + [os.path.join(tree, path) for path in HOOKS]
    needed += [os.path.join(tree, path) for path in EXAMPLES if carrier == "stock" or not path.endswith("gen_tcp_dist.erl")]
    compile_all(needed, folder, must=True)
    here = os.path.dirname(source)
    helpers = [path for path in sorted(glob.glob(os.path.join(here, "*.erl"))) if not path.endswith("_SUITE.erl")]
    compile_all([path for path in helpers if path not in needed], folder, must=False)
    data = source[:-len(".erl")] + "_data"
    if os.path.isdir(data):
        target = os.path.join(folder, os.path.basename(data))
        shutil.copytree(data, target)
        compile_all(sorted(glob.glob(os.path.join(target, "*.erl"))), target, must=False)
    return folder


def ours(home, folder):
    """The hook and the shim, compiled from this directory."""
    os.makedirs(folder, exist_ok=True)
    compile_all([os.path.join(home, "conformance_cth.erl")], folder, must=True)
    return folder


def shim(home, folder, target):
    """inet_tcp_dist and gen_tcp_dist, handing on to the module `target`."""
    os.makedirs(folder, exist_ok=True)
    compile_all(sorted(glob.glob(os.path.join(home, "shim", "*.erl"))), folder, must=True, defines=["CARRIER=" + target])
    return folder


def control(tree, folder):
    """OTP's example of a carrier made of processes, under another name: what the shim drives in a control run."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(tree, EXAMPLES[0])) as f:
        text = f.read().replace("-module(gen_tcp_dist).", "-module(control_dist).")
    path = os.path.join(folder, "control_dist.erl")
    with open(path, "w") as f:
        f.write(text)
    compile_all([path], folder, must=True)
    return folder


COMPILER = """
    [Out | Rest] = init:get_plain_arguments(), {Files, Defines} = lists:splitwith(fun(A) -> A =/= "--" end, Rest),
    Options = [{d, list_to_atom(K), list_to_atom(V)} || D <- Defines, D =/= "--", [K, V] <- [string:split(D, "=")]],
    Failed = [F || F <- Files, compile:file(F, [{outdir, Out}, {i, filename:dirname(F)}, report_errors | Options]) =:= error],
    [io:format("does not compile: ~ts~n", [F]) || F <- Failed],
    halt(length([x || _ <- Failed]))."""


def compile_all(files, folder, must, defines=()):
    """One VM compiles them all; with `must` a single failure is an error, else the failures are only logged."""
    if not files:
        return
    log = os.path.join(folder, "compile.log")
    with open(log, "a") as out:
        done = subprocess.run(["erl", "-noinput", "-eval", COMPILER, "-extra", folder, *files, "--", *defines],
                              stdout=out, stderr=subprocess.STDOUT)
    if must and done.returncode:
        raise Broken("does not compile: see " + log)
