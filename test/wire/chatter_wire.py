#!/usr/bin/env python3
"""A second implementation of Chatter's datagrams and broadcasts, written from docs/wire-format.md alone.

    chatter_wire.py golden DOCUMENT
        Reads the golden bytes of the document, and writes them again.
    chatter_wire.py listen GROUP PORT ADDRESS [TYPE TEXT TARGET...]
        Joins the group on the interface that has the address. The cluster key (64 hexadecimal
        digits) is the first line of standard input; at its end the program ends. Prints a line for
        every message that it hears. Once it has heard beacons of all TARGETs (full names), it sends
        them {TYPE, <<"TEXT">>} as a broadcast, by multicast.

Needs the module `cryptography` with AES-GCM-SIV (OpenSSL 3.2 or newer).
"""

import hashlib
import hmac
import os
import re
import socket
import struct
import sys
import threading
import time
from collections import namedtuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

MAX_DATAGRAM, HEADER, TAG = 1400, 40, 16
BEACON, CAST, NAK, CAST_HELLO = 0x01, 0x10, 0x11, 0x12
DIRECT, OWN_PREV, LINKS_ONLY, LZ4 = 1, 2, 4, 4


class Malformed(Exception):
    """Bytes that the document does not allow."""


def must(condition, what):
    if not condition:
        raise Malformed(what)


class Reader:
    """A cursor over received bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        must(self.at + count <= len(self.data), "truncated")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "big")

    def rest(self):
        return self.take(len(self.data) - self.at)

    def is_empty(self):
        return self.at == len(self.data)


# ===== keys and datagrams: "Datagrams" =====

def expand(secret, info):
    """HKDF-Expand-SHA256 to 32 bytes."""
    return hmac.digest(secret, info + b"\x01", "sha256")


def derive(cluster_key, label):
    """HKDF-SHA256 with the salt of this version."""
    return expand(hmac.digest(b"chatter/1", cluster_key, "sha256"), label)


def node_id(name):
    return hashlib.sha256(b"chatter node\0" + name.encode()).digest()[:8]


Header = namedtuple("Header", "sender life counter")


class Cluster:
    """Seals and opens datagrams."""

    def __init__(self, key):
        must(len(key) == 32, "cluster key")
        self.check_key = derive(key, b"datagram check")
        self.secret = derive(key, b"datagram secret")
        self.seen = set()

    def check(self, first):
        return hmac.digest(self.check_key, first, "sha256")[:8]

    def cipher(self, sender, life):
        return AESGCMSIV(expand(self.secret, b"sender " + sender + struct.pack(">Q", life)))

    def seal(self, header, plain):
        first = b"CHTD\1\0\0\0" + header.sender + struct.pack(">QQ", header.life, header.counter)
        head = first + self.check(first)
        nonce = struct.pack(">IQ", 0, header.counter)
        datagram = head + self.cipher(header.sender, header.life).encrypt(nonce, plain, head)
        must(len(datagram) <= MAX_DATAGRAM, "too long")
        return datagram

    def open(self, datagram):
        """Header and plaintext. Every datagram opens once."""
        must(HEADER + TAG <= len(datagram) <= MAX_DATAGRAM, "length")
        head = datagram[:HEADER]
        must(head[:8] == b"CHTD\1\0\0\0", "magic or version")
        must(hmac.compare_digest(self.check(head[:32]), head[32:]), "another cluster")
        header = Header(head[8:16], *struct.unpack(">QQ", head[16:32]))
        must(header not in self.seen, "repeated")
        nonce = struct.pack(">IQ", 0, header.counter)
        plain = self.cipher(header.sender, header.life).decrypt(nonce, datagram[HEADER:], head)
        self.seen.add(header)
        return header, plain


def messages_of(plain):
    reader = Reader(plain)
    while not reader.is_empty():
        kind = reader.number(1)
        yield kind, reader.take(reader.number(2))


def message(kind, body):
    return struct.pack(">BH", kind, len(body)) + body


# ===== BEACON =====

Beacon = namedtuple("Beacon", "name port addresses seen")


def read_beacon(body):
    reader = Reader(body)
    reader.number(1)
    port = reader.number(2)
    name = reader.take(reader.number(1)).decode()
    addresses = []
    for _ in range(reader.number(1)):
        family = {4: (socket.AF_INET, 4), 6: (socket.AF_INET6, 16)}[reader.number(1)]
        addresses.append((socket.inet_ntop(family[0], reader.take(family[1])), reader.number(2)))
    seen = [(reader.take(8), reader.number(8)) for _ in range(reader.number(1))]
    must(reader.is_empty(), "trailing bytes")
    return Beacon(name, port, addresses, seen)


def put_beacon(beacon):
    out = struct.pack(">BHB", 0, beacon.port, len(beacon.name.encode())) + beacon.name.encode()
    out += bytes([len(beacon.addresses)])
    for address, port in beacon.addresses:
        family = (6, socket.AF_INET6) if ":" in address else (4, socket.AF_INET)
        out += bytes([family[0]]) + socket.inet_pton(family[1], address) + struct.pack(">H", port)
    out += bytes([len(beacon.seen)])
    return out + b"".join(node + struct.pack(">Q", life) for node, life in beacon.seen)


# ===== CAST, CAST_HELLO, NAK and BCAST =====

Target = namedtuple("Target", "node life flags prev")
Part = namedtuple("Part", "flags kind body")
Batch = namedtuple("Batch", "origin life first targets parts")


def read_targets(reader, count, first):
    """From the common prev on."""
    common = reader.number(8)
    targets = []
    for _ in range(count):
        node, life, flags = reader.take(8), reader.number(2), reader.number(1)
        must(flags & ~(DIRECT | OWN_PREV | LINKS_ONLY) == 0, "target flags")
        prev = reader.number(8) if flags & OWN_PREV else common
        must(prev < first, "prev")
        targets.append(Target(node, life, flags, prev))
    must(targets, "no targets")
    return targets


def put_targets(targets):
    out = struct.pack(">Q", targets[0].prev)
    for node, life, flags, prev in targets:
        out += node + struct.pack(">HB", life, flags)
        out += struct.pack(">Q", prev) if flags & OWN_PREV else b""
    return out


def read_parts(reader):
    parts = []
    while not reader.is_empty():
        flags = reader.number(1)
        must(flags < 8, "message flags")
        kind = reader.take(reader.number(1)).decode()
        parts.append(Part(flags, kind, reader.take(reader.number(3))))
    must(parts, "no messages")
    return parts


def put_parts(parts):
    return b"".join(bytes([flags, len(kind.encode())]) + kind.encode()
                    + len(body).to_bytes(3, "big") + body for flags, kind, body in parts)


def read_cast(body):
    reader = Reader(body)
    must(reader.number(1) == 0, "flags")
    count = reader.number(1)
    origin, life, first = reader.take(8), reader.number(8), reader.number(8)
    targets = read_targets(reader, count, first)
    return Batch(origin, life, first, targets, read_parts(reader))


def put_cast(batch):
    return (bytes([0, len(batch.targets)]) + batch.origin + struct.pack(">QQ", batch.life, batch.first)
            + put_targets(batch.targets) + put_parts(batch.parts))


def read_bcast(packet):
    """A whole packet: hop limit, number, batch."""
    reader = Reader(packet)
    length, kind = reader.number(3), reader.number(1)
    must(kind == 0x20 and length == len(packet) - 4, "packet header")
    must(reader.number(1) == 0, "flags")
    hops, count, number = reader.number(1), reader.number(2), reader.number(8)
    origin, life, first = reader.take(8), reader.number(8), reader.number(8)
    targets = read_targets(reader, count, first)
    return hops, number, Batch(origin, life, first, targets, read_parts(reader))


def put_bcast(hops, number, batch):
    body = (struct.pack(">BBHQ", 0, hops, len(batch.targets), number) + batch.origin
            + struct.pack(">QQ", batch.life, batch.first) + put_targets(batch.targets)
            + put_parts(batch.parts))
    return len(body).to_bytes(3, "big") + b"\x20" + body


def read_nak(body):
    reader = Reader(body)
    must(reader.number(1) == 0, "flags")
    count = reader.number(1)
    gaps = [(reader.take(8), reader.number(8), reader.number(8), reader.number(8))
            for _ in range(count)]
    must(reader.is_empty(), "trailing bytes")
    return gaps


def put_nak(gaps):
    return bytes([0, len(gaps)]) + b"".join(
        origin + struct.pack(">QQQ", life, after, upto) for origin, life, after, upto in gaps)


def read_cast_hello(body):
    reader = Reader(body)
    must(reader.number(1) == 0, "flags")
    count = reader.number(1)
    origin, life = reader.take(8), reader.number(8)
    targets = [(reader.take(8), reader.number(2), reader.number(8)) for _ in range(count)]
    must(targets and reader.is_empty(), "targets")
    return origin, life, targets


def put_cast_hello(origin, life, targets):
    return bytes([0, len(targets)]) + origin + struct.pack(">Q", life) + b"".join(
        node + struct.pack(">HQ", tag, last) for node, tag, last in targets)


# ===== what a message says =====

def unpack(block, size):
    """Decompresses an LZ4 block of so many bytes."""
    out, reader = bytearray(), Reader(block)

    def length(nibble):
        more = nibble == 15
        while more:
            byte = reader.number(1)
            nibble += byte
            more = byte == 255
        return nibble

    while not reader.is_empty():
        token = reader.number(1)
        out += reader.take(length(token >> 4))
        if reader.is_empty():
            break
        offset = int.from_bytes(reader.take(2), "little")
        must(0 < offset <= len(out), "offset")
        for _ in range(length(token & 15) + 4):
            out.append(out[-offset])
        must(len(out) <= size, "too long")
    must(len(out) == size, "length")
    return bytes(out)


def body_of(part):
    """The table of NetIDs and the rest of a whole message."""
    must(part.flags & 3 == 0, "a part of a message")
    body = part.body
    if part.flags & LZ4:
        body = unpack(body[4:], int.from_bytes(body[:4], "little"))
    reader = Reader(body)
    count = reader.number(1)
    if count & 128:
        count = count & 127 | reader.number(1) << 7
    ids = []
    for _ in range(count):
        family = {4: (socket.AF_INET, 4), 6: (socket.AF_INET6, 16)}[reader.number(1)]
        ids.append((socket.inet_ntop(family[0], reader.take(family[1])), reader.number(2)))
    return ids, reader.rest()


def term(data):
    """What is in the external term format, as Erlang writes it; the kinds that the test needs."""
    reader = Reader(data)
    must(reader.number(1) == 131, "term")
    text = read_term(reader)
    must(reader.is_empty(), "trailing bytes")
    return text


def read_term(reader):
    tag = reader.number(1)
    if tag == 97:
        return str(reader.number(1))
    if tag == 98:
        return str(struct.unpack(">i", reader.take(4))[0])
    if tag in (100, 118, 119):
        return reader.take(reader.number(1 if tag == 119 else 2)).decode()
    if tag == 104:
        return "{" + ",".join(read_term(reader) for _ in range(reader.number(1))) + "}"
    if tag == 106:
        return "[]"
    if tag == 107:
        return "[" + ",".join(str(byte) for byte in reader.take(reader.number(2))) + "]"
    if tag == 108:
        text = "[" + ",".join(read_term(reader) for _ in range(reader.number(4))) + "]"
        must(read_term(reader) == "[]", "improper list")
        return text
    if tag == 109:
        return '<<"' + reader.take(reader.number(4)).decode("latin-1") + '">>'
    raise Malformed(f"term of kind {tag}")


def tuple_of(kind, text):
    """{Kind, <<"Text">>} in the external term format, behind an empty table of NetIDs."""
    kind, text = kind.encode(), text.encode()
    return (b"\0\x83\x68\2\x77" + bytes([len(kind)]) + kind
            + b"\x6d" + struct.pack(">I", len(text)) + text)


# ===== the two programs =====

def golden(document):
    with open(document, encoding="utf-8") as file:
        text = file.read()
    blocks = {name: bytes.fromhex("".join(line.split(";")[0] for line in block.splitlines()))
              for name, block in re.findall(r"```hex (\S+)\n(.*?)```", text, re.S)}
    key = bytes.fromhex(re.search(r"cluster key `([0-9a-f]{64})`", text).group(1))
    header, plain = Cluster(key).open(blocks["datagram"])
    checks = {
        "beacon": put_beacon(read_beacon(blocks["beacon"])),
        "cast": put_cast(read_cast(blocks["cast"])),
        "nak": put_nak(read_nak(blocks["nak"])),
        "cast-hello": put_cast_hello(*read_cast_hello(blocks["cast-hello"])),
        "bcast": put_bcast(*read_bcast(blocks["bcast"])),
        "datagram": Cluster(key).seal(header, plain),
    }
    for name, again in checks.items():
        must(again == blocks[name], name)
        print("golden", name)
    must(plain == message(BEACON, blocks["beacon"]), "the datagram has the beacon")


class Member:
    """Hears what is said in the group, and says one thing."""

    def __init__(self, key, group, port, address):
        self.cluster = Cluster(key)
        self.life = time.time_ns() // 1000
        self.me, self.counter = os.urandom(8), 0
        self.names, self.lives = {}, {}
        self.to = (group, port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((group, port))
        interface = socket.inet_aton(address)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                               socket.inet_aton(group) + interface)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)

    def name_of(self, node):
        return self.names.get(node, node.hex())

    def hear(self):
        try:
            header, plain = self.cluster.open(self.socket.recv(2000))
            for kind, body in messages_of(plain):
                self.show(header, kind, body)
        except Malformed as why:
            print("dropped:", why, flush=True)

    def show(self, header, kind, body):
        if header.sender == self.me:
            return
        self.lives[header.sender] = header.life
        if kind == BEACON:
            beacon = read_beacon(body)
            must(not beacon.name or node_id(beacon.name) == header.sender, "name")
            self.names[header.sender] = beacon.name
            print("beacon", beacon.name, beacon.port, flush=True)
        elif kind == CAST:
            batch = read_cast(body)
            targets = ",".join(sorted(self.name_of(target.node) for target in batch.targets))
            for number, part in enumerate(batch.parts, batch.first):
                ids, rest = body_of(part)
                said = term(rest) if rest[:1] == b"\x83" else rest.hex()
                print("cast", self.name_of(batch.origin), number, "to", targets, part.kind,
                      "lz4" if part.flags & LZ4 else "plain", ids, said, flush=True)
        elif kind == NAK:
            print("nak", self.name_of(header.sender), len(read_nak(body)), flush=True)
        elif kind == CAST_HELLO:
            origin, _, targets = read_cast_hello(body)
            print("hello", self.name_of(origin), len(targets), flush=True)

    def say(self, kind, text, targets):
        nodes = [node_id(name) for name in targets]
        if not all(node in self.lives for node in nodes):
            return False
        to = [Target(node, self.lives[node] & 0xffff, 0, 0) for node in nodes]
        batch = Batch(self.me, self.life, 1, to, [Part(0, kind, tuple_of(kind, text))])
        # It may get lost, and nobody repairs it for one who has no link: three times, one delivery.
        for _ in range(3):
            self.counter += 1
            header = Header(self.me, self.life, self.counter)
            datagram = self.cluster.seal(header, message(CAST, put_cast(batch)))
            self.socket.sendto(datagram, self.to)
        print("sent as", self.me.hex(), flush=True)
        return True


def listen(group, port, address, saying):
    member = Member(bytes.fromhex(sys.stdin.readline().strip()), group, int(port), address)
    # Whoever has started this program ends it by closing its standard input.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print("ready", flush=True)
    while True:
        member.hear()
        if saying and member.say(saying[0], saying[1], saying[2:]):
            saying = None


if __name__ == "__main__":
    if sys.argv[1:2] == ["golden"] and len(sys.argv) == 3:
        golden(sys.argv[2])
    elif sys.argv[1:2] == ["listen"] and len(sys.argv) in (5, *range(8, 99)):
        listen(*sys.argv[2:5], sys.argv[5:])
    else:
        sys.exit(__doc__)
