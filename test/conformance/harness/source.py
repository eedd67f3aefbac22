"""OTP's sources of exactly the installed version, fetched with apt from Debian and kept under _build."""
import glob, os, re, shutil, subprocess

# What the suites need of the whole source; the rest stays packed.
WANTED = ["OTP_VERSION", "erts/emulator/test", "lib/kernel/test", "lib/kernel/examples", "lib/stdlib/test",
          "lib/common_test/test_server"]


class Unavailable(Exception):
    """The sources cannot be had; the message says why and what to do."""


def installed_otp():
    """The version in full (25.2.3, not 25), as OTP itself records it."""
    program = ('R = code:root_dir(), {ok, V} = file:read_file(filename:join([R, "releases", erlang:system_info(otp_release),'
               ' "OTP_VERSION"])), io:put_chars(V), halt().')
    got = subprocess.run(["erl", "-noinput", "-eval", program], capture_output=True, text=True)
    if got.returncode or not got.stdout.strip():
        raise Unavailable("cannot find out which OTP is installed: " + (got.stdout + got.stderr).strip())
    return got.stdout.strip().rstrip("*")


def unpacked(cache, version, given, say):
    """The folder with the unpacked sources of `version`; fetches and unpacks them the first time."""
    tree = os.path.join(cache, "otp-" + version, "source")
    if os.path.exists(os.path.join(tree, "complete")):
        return tree
    tar = given or fetched(os.path.join(cache, "otp-" + version), version, say)
    say("unpacking %s" % os.path.basename(tar))
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(tree)
    patterns = ["*/" + part for part in WANTED]
    done = subprocess.run(["tar", "-xf", tar, "-C", tree, "--strip-components=1", "--wildcards", "--no-same-owner"] + patterns,
                          capture_output=True, text=True)
    found = version_of(tree)
    if found != version:
        raise Unavailable("%s holds OTP %s, but %s is installed %s" % (tar, found, version, done.stderr.strip()[-300:]))
    open(os.path.join(tree, "complete"), "w").close()
    return tree


def version_of(tree):
    try:
        with open(os.path.join(tree, "OTP_VERSION")) as f:
            return f.read().strip()
    except OSError:
        return "of no known version"


def fetched(folder, version, say):
    """Downloads the original tar of Debian's source package `erlang`; apt verifies it. Touches nothing of the system."""
    tars = os.path.join(folder, "erlang_%s*.orig.tar.*" % version)
    for tar in glob.glob(tars):
        return tar
    if not shutil.which("apt-get"):
        raise Unavailable("no apt-get here: give the tar of OTP %s with --otp-source" % version)
    apt = private_apt(os.path.join(folder, "apt"))
    say("reading the package index of the sources")
    run(apt + ["update"], folder)
    package = "erlang=" + debian_version() if debian_version() else "erlang"
    say("downloading the source package of OTP %s (about 50 MB)" % version)
    run(apt + ["source", "--download-only", package], folder)
    for tar in glob.glob(tars):
        return tar
    raise Unavailable("the source package has no original tar of OTP %s: give one with --otp-source" % version)


def private_apt(folder):
    """An apt-get that reads deb-src lines made from the system's own lists and keeps its state in `folder`."""
    for part in ("lists/partial", "cache/archives/partial", "parts"):
        os.makedirs(os.path.join(folder, part), exist_ok=True)
    for name in glob.glob("/etc/apt/sources.list.d/*.sources"):
        with open(name) as f:
            text = re.sub(r"(?m)^Types:.*$", "Types: deb-src", f.read())
        write(os.path.join(folder, "parts", os.path.basename(name)), text)
    for name in ["/etc/apt/sources.list"] + glob.glob("/etc/apt/sources.list.d/*.list"):
        if os.path.exists(name):
            with open(name) as f:
                lines = {re.sub(r"^deb(-src)?\s", "deb-src ", line.strip()) for line in f if re.match(r"deb(-src)?\s", line)}
            write(os.path.join(folder, "parts", os.path.basename(name).replace("sources.list", "main") .removesuffix(".list") + ".list"),
                  "".join(line + "\n" for line in sorted(lines)))
    return ["apt-get", "-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=" + os.path.join(folder, "parts"),
            "-o", "Dir::State::lists=" + os.path.join(folder, "lists"), "-o", "Dir::Cache=" + os.path.join(folder, "cache"),
            "-o", "APT::Sandbox::User=root"]


def debian_version():
    got = subprocess.run(["dpkg-query", "-W", "-f", "${source:Version}", "erlang-base"], capture_output=True, text=True)
    return got.stdout.strip() if got.returncode == 0 else None


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable("%s failed: %s" % (" ".join(command[:2]), (done.stdout + done.stderr).strip()[-800:]))


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
