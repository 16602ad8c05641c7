"""A reader and writer of Lockstep's logs after docs/LogFormat.md alone: it shares no code with the library."""

import struct

MAGIC = bytes.fromhex("894c534c4f470d0a")
TEXTS = {1: "model"} | {
    first + index: f"{side}_{name}" for first, side in ((16, "trainer"), (32, "rollout"))
    for index, name in enumerate(("engine", "version", "weights", "body", "head", "logits"))}
NUMBERS = {2: ("created", "<q"), 3: ("log_prob_mode", "<I"), 4: ("temperature", "<d"), 5: ("top_p", "<d"),
           6: ("min_p", "<d"), 7: ("top_k", "<I")}
TOKEN_IDS, ROLLOUT, TRAINER, MASK, STEP, PROMPT, REWARD, ADVANTAGE = (1 << bit for bit in range(8))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def header_bytes(fields=b"", version=1, length=None):
    """A header with good checksums, whatever it says."""
    prefix = MAGIC + struct.pack("<III", version, len(fields) if length is None else length, crc32c(fields))
    return prefix + struct.pack("<I", crc32c(prefix)) + fields


def frame_bytes(payload, kind=b"R", length=None):
    """A frame with good checksums, whatever is in it."""
    prefix = b"\xd1LS" + kind + struct.pack("<II", len(payload) if length is None else length, crc32c(payload))
    return prefix + struct.pack("<I", crc32c(prefix)) + payload


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count:self.at]

    def unpack(self, kind):
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def column(self, count):
        words = []
        while len(words) < count:
            width, shift, base = self.unpack("<B"), self.unpack("<B"), self.unpack("<I")
            length = min(128, count - len(words))
            bits = int.from_bytes(self.take((length * width + 7) // 8), "little")
            for index in range(length):
                words.append(base + ((bits >> index * width & (1 << width) - 1) << shift) & 0xFFFFFFFF)
        return words


def read(data):
    """(header fields, sequences, whether it was closed) of a whole log. Log-probs are bit patterns."""
    version, length, fields_crc, prefix_crc = struct.unpack_from("<IIII", data, 8)
    assert data[:8] == MAGIC and version == 1 and crc32c(data[:20]) == prefix_crc
    cursor, header = Cursor(data[24:24 + length]), {}
    assert crc32c(cursor.data) == fields_crc
    while cursor.at < len(cursor.data):
        tag, count = cursor.unpack("<H"), cursor.unpack("<I")
        value = cursor.take(count)
        if tag in TEXTS:
            header[TEXTS[tag]] = value.decode()
        elif tag in NUMBERS:
            name, kind = NUMBERS[tag]
            header[name] = struct.unpack(kind, value)[0]
        else:
            assert tag == 64
            key, text = value.split(b"\0", 1)
            header.setdefault("extra", {})[key.decode()] = text.decode()
    at, sequences, closed = 24 + length, [], False
    while at < len(data):
        prefix = data[at:at + 16]
        length, payload_crc, prefix_crc = struct.unpack_from("<III", prefix, 4)
        payload = data[at + 16:at + 16 + length]
        assert prefix[:3] == b"\xd1LS" and crc32c(prefix[:12]) == prefix_crc and crc32c(payload) == payload_crc
        closed = prefix[3:4] == b"E"
        if closed:
            assert struct.unpack("<QQ", payload) == (len(sequences), sum(each["tokens"] for each in sequences))
        else:
            sequences.append(sequence(Cursor(payload)))
        at += 16 + length
    return header, sequences, closed


def sequence(cursor):
    parts, tokens = cursor.unpack("<B"), cursor.varint()
    found = {"tokens": tokens, "id": cursor.varint()}
    if parts & STEP:
        coded = cursor.varint()
        found["step"] = coded >> 1 ^ -(coded & 1)
    if parts & PROMPT:
        found["prompt_tokens"] = cursor.varint()
    if parts & REWARD:
        found["reward"] = cursor.unpack("<f")
    if parts & ADVANTAGE:
        found["advantage"] = cursor.unpack("<f")
    mask = [] if parts & MASK else [True] * tokens
    counts = False
    while len(mask) < tokens:
        mask += [counts] * cursor.varint()
        counts = not counts
    found["mask"] = mask
    order = sorted(range(tokens), key=lambda token: not mask[token])
    if parts & TOKEN_IDS:
        found["token_ids"] = [word - (word >> 31 << 32) for word in cursor.column(tokens)]
    rollout = [0] * tokens
    for part, name in ((ROLLOUT, "rollout"), (TRAINER, "trainer")):
        if parts & part:
            words = [word + before & 0xFFFFFFFF for word, before in zip(cursor.column(tokens), rollout)]
            found[name] = [word for _, word in sorted(zip(order, words))]
            rollout = words
    assert cursor.at == len(cursor.data)
    return found
