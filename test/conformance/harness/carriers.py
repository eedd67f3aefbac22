"""How a node is told to use a carrier. Everything goes through the environment: nodes that a suite starts inherit nothing else."""
import os

RELAY = "conformance_relay"


def quoted(word):
    """A word as erlexec reads it from ERL_FLAGS, where quotes and blanks have a meaning of their own."""
    return "".join("\\" + c if c in " \t\n\"'\\" else c for c in word)


def words(carrier, path, ebin, shim, relay_port, extra=()):
    """The command-line words that ERL_FLAGS carries. The relay is given by its port: some cases bring their own epmd module."""
    if carrier == "stock":
        return []
    if carrier == "control":
        return ["-pa", ebin, "-pa", shim, *extra]
    words = chatter(ebin) + list(extra)
    if shim:
        words = ["-pa", shim] + words
    else:
        words = ["-proto_dist", "chatter"] + words
    if path == "relay":
        words += ["-chatter", "links", "static", "-chatter", "neighbours", '[{"127.0.0.1",%d}]' % relay_port]
    return words


def chatter(ebin):
    return ["-pa", ebin, "-epmd_module", "chatter_epmd", "-start_epmd", "false", "-chatter", "multicast", "false"]


def relay_command(ebin, host, port):
    """The node in the middle. It is hidden and never asked for a connection, so it shows in no node's nodes()."""
    return (["erl", "-noinput", "-hidden", "-sname", "%s@%s" % (RELAY, host), "-proto_dist", "chatter", "-chatter", "links", "static",
             "-chatter", "my_port", str(port)] + chatter(ebin))


def environment(carrier, path, flags, key, mark, home):
    """The environment of a run. A cluster key that does not hang on the cookie is given where nodes of several
    cookies must share a network: on the relay path, and where variants.txt asks for it with the word `key`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ERL_", "CHATTER_"))}
    env.update(CONFORMANCE_RUN=mark, HOME=home, LC_ALL="C.UTF-8")
    if flags:
        env["ERL_FLAGS"] = " ".join(quoted(word) for word in flags)
    if carrier == "chatter" and (key or path == "relay"):
        env["CHATTER_KEY"] = os.urandom(32).hex()
    return env
