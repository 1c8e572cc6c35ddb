"""A worker that keeps docs/worker-contract.md with Python's standard library alone: what another language has to do.

Usage: plain_worker.py [STEPS [SECONDS]]. A step takes so many seconds; every tenth is a checkpoint. It resumes from
what was committed, stops in good time when it is asked to, and writes what `holdfast checkpoint verify` and
`holdfast.load` read. Checkpoints go to a directory, training waits for each commit, and no other job's checkpoints are
begun with (HOLDFAST_RESUME_FROM); the library does all of that.

    holdfast job submit -n 2 --checkpoint-dir /tmp/plain -- python3 examples/plain_worker.py 1000 0.01
"""

import array
import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

ENV = os.environ
RANK = int(ENV["RANK"])
ATTEMPT = int(ENV["HOLDFAST_ATTEMPT"])
JOB = ENV["HOLDFAST_JOB_ID"]
WELCOME, COMMITTED, REFUSED, NOTED, STOP = 1, 2, 3, 4, 5  # in WorkerReply
HELLO, PREPARE, REPORT, STOP_ANSWER = 1, 2, 3, 4  # in WorkerMessage
CORRUPT, DROPPED = 2, 4  # of Report.Kind


# xxh3_64, of more than 240 bytes: nothing shorter is hashed here. Your language has the xxhash library.

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
LANES = (
    0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
    0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1,
)  # fmt: skip
MASK = 2**64 - 1
WORDS = struct.Struct("<8Q")


def xxh3_64(data):
    """Return 16 hex digits."""
    assert len(data) > 240
    lanes = list(LANES)
    for stripe in range((len(data) - 1) // 64):
        _accumulate(lanes, data, stripe * 64, stripe % 16 * 8)
        if stripe % 16 == 15:
            for i, key in enumerate(WORDS.unpack_from(SECRET, 128)):
                lanes[i] = (lanes[i] ^ lanes[i] >> 47 ^ key) * LANES[7] & MASK
    _accumulate(lanes, data, len(data) - 64, 121)
    found = len(data) * LANES[1]
    keys = WORDS.unpack_from(SECRET, 11)
    for i in range(0, 8, 2):
        product = (lanes[i] ^ keys[i]) * (lanes[i + 1] ^ keys[i + 1])
        found += product & MASK ^ product >> 64
    found &= MASK
    found = (found ^ found >> 37) * 0x165667919E3779F9 & MASK
    return f"{found ^ found >> 32:016x}"


def _accumulate(lanes, data, at, key_at):
    keys = WORDS.unpack_from(SECRET, key_at)
    for i, word in enumerate(WORDS.unpack_from(data, at)):
        key = word ^ keys[i]
        lanes[i ^ 1] = lanes[i ^ 1] + word & MASK
        lanes[i] = lanes[i] + (key & 0xFFFFFFFF) * (key >> 32) & MASK


# Protobuf: as much of it as worker.proto needs. Your language has a library for it.


def varint(number):
    """Return an unsigned number, seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def message(*fields):
    """Return a message of pairs of field number and value: int, float, str, or the bytes of a message."""
    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            found += varint(number << 3 | 1) + struct.pack("<d", value)
        else:
            data = value.encode() if isinstance(value, str) else value
            found += varint(number << 3 | 2) + varint(len(data)) + data
    return found


def parsed(data):
    """Return the fields of a message: lists by number, of ints, floats, and bytes for all else."""
    fields, at = {}, 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            value, at = _read_varint(data, at)
        elif tag & 7 == 1:
            (value,), at = struct.unpack_from("<d", data, at), at + 8
        elif tag & 7 == 5:  # of a newer agent, perhaps
            value, at = data[at : at + 4], at + 4
        else:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _read_varint(data, at):
    number = shift = 0
    while data[at] > 0x7F:
        number |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return number | data[at] << shift, at + 1


# The heartbeat file


class Page:
    """The page of HOLDFAST_HEARTBEAT_FILE."""

    def __init__(self):
        with Path(ENV["HOLDFAST_HEARTBEAT_FILE"]).open("a+b") as file:
            file.truncate(4096)
            self.page = mmap.mmap(file.fileno(), 4096)
        self.done = self.first = 0
        self._put("<8sq", 0, b"HOLDFST1", -1)
        self._put("<q", 120, 1)  # it can be asked to stop
        self.section("setup")

    def step(self, step, loss):
        """Say that a step is done."""
        now = time.monotonic_ns()
        self.done += 1
        if not self.first:
            self.first = now
            self.section("step")
        self._put("<40sd", 128, b"loss", loss)
        self._put("<q", 96, 1)
        self._put("<qqqq", 8, step, self.done, self.first, now)

    def section(self, name):
        """Say what it does from here on."""
        self._put("<q", 40, time.monotonic_ns())
        self._put("<32s", 64, name.encode())

    def _put(self, layout, at, *values):
        struct.pack_into(layout, self.page, at, *values)


# The agent's socket


class Link:
    """One connection at a time; what has no answer yet is said again on the next."""

    def __init__(self):
        self.socket = None
        self.unanswered = {}
        self.resume = None
        self.committed = -1
        self.promised = self.stops_at = None
        self.patience = 0

    def say(self, kind, content, key=None):
        """Send a message, and again on every connection until `key` is answered, if there is one."""
        frame = message((kind, content))
        frame = varint(len(frame)) + frame
        if key:
            self.unanswered[key] = frame
        if self.socket:
            with suppress(OSError):
                self.socket.sendall(frame)

    def listen(self, step, seconds=0):
        """Take what has come, and wait up to so many seconds for something to come."""
        if not self.socket and not self._connect():
            time.sleep(min(seconds, 0.1))
            return
        while select.select([self.socket], [], [], seconds)[0]:
            seconds = 0
            data = b""
            with suppress(OSError):
                data = self.socket.recv(65536)
            if not data:  # agents come and go; their workers stay
                self.socket.close()
                self.socket = None
                return
            self.buffer += data
            for frame in self._frames():
                self._hear(parsed(frame), step)

    def _connect(self):
        self.socket, self.buffer = socket.socket(socket.AF_UNIX), b""
        try:
            self.socket.connect(ENV["HOLDFAST_SOCKET"])
        except OSError:
            self.socket.close()
            self.socket = None
            return False
        self.say(HELLO, message((1, JOB), (2, RANK), (3, ATTEMPT), (4, os.getpid())))
        for frame in self.unanswered.values():
            with suppress(OSError):
                self.socket.sendall(frame)
        return True

    def _frames(self):
        while True:
            try:
                size, at = _read_varint(self.buffer, 0)
            except IndexError:
                return
            if len(self.buffer) < at + size:
                return
            frame, self.buffer = self.buffer[at : at + size], self.buffer[at + size :]
            yield frame

    def _hear(self, reply, step):
        for kind, (content,) in reply.items():
            fields = parsed(content)
            (at,) = fields.get(1, [0])
            if kind == WELCOME:
                self.resume = self.resume or fields
            elif kind == COMMITTED:
                self.committed = max(self.committed, at)
                self.unanswered.pop(("prepare", at), None)
                for record in fields.get(2, []):
                    publish(commit_of(record))
                for old in packed_numbers(fields.get(3, [])):
                    drop(old)
                    self.say(REPORT, message((1, DROPPED), (2, old)), (DROPPED, old))
            elif kind == REFUSED:
                self.unanswered.pop(("prepare", at), None)
            elif kind == NOTED:
                self.unanswered.pop((at, *fields.get(2, [0])), None)
            elif kind == STOP:
                self.promised = self.promised or step + 1
                self.patience = min(30, fields.get(2, [0])[0] / 1000)
                (at_step,) = fields.get(3, [None])
                if at_step is not None and at_step >= self.promised:
                    self.stops_at = at_step
                else:
                    self.say(STOP_ANSWER, message((1, self.promised), (2, 1)))


def packed_numbers(values):
    """Return repeated numbers, which protobuf packs into one field."""
    found = []
    for data in values:
        at = 0
        while at < len(data):
            number, at = _read_varint(data, at)
            found.append(number)
    return found


# Checkpoints in a directory

PLACE = Path(ENV["HOLDFAST_CHECKPOINT_URI"]) / JOB
if ENV["HOLDFAST_RESTART_SCOPE"] == "rank":
    PLACE = PLACE / f"rank-{RANK:05}"


def directory(step):
    """Return where the files of a step are."""
    return PLACE / f"step-{step:010}"


def write(path, data):
    """Put a file there, durable and whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = PLACE / f"tmp.rank-{RANK:05}.attempt-{ATTEMPT}"
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
    for folder in (path.parent, PLACE):
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def save(step, weights):
    """Write this rank's file of a step; return its Shard."""
    data = weights.tobytes()
    content = {
        "format": 2,
        "job_id": JOB,
        "step": step,
        "rank": RANK,
        "attempt": ATTEMPT,
        "cursor": "",
        "tree": {"dict": [["weights", {"array": "weights"}]]},
        "chunk_bytes": 8 << 20,
        "xxh3_64": {"weights": xxh3_64(data)},  # of less than 8 MiB; more has a digest for each 8 MiB
    }
    fields = {"__metadata__": {"holdfast": json.dumps(content)}}
    fields["weights"] = {"dtype": "F64", "shape": [len(weights)], "data_offsets": [0, len(data)]}
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    name = f"rank-{RANK:05}.attempt-{ATTEMPT}.safetensors"
    write(directory(step) / name, header + data)
    metrics = message((1, "loss"), (2, loss_of(weights)))
    return message((1, RANK), (2, name), (3, len(header + data)), (4, xxh3_64(header)), (6, metrics))


def load(commit):
    """Return what this rank saved in a commit. Raises ValueError when it is not that."""
    (shard,) = (shard for shard in commit["shards"] if shard["rank"] == RANK)
    try:
        whole = (directory(commit["step"]) / shard["file"]).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    (size,) = struct.unpack_from("<Q", whole) if len(whole) >= 8 else (0,)
    header, data = whole[: 8 + size], whole[8 + size :]
    if len(whole) != shard["size_bytes"] or xxh3_64(header) != shard["digest"]:
        raise ValueError(f"{shard['file']} is not what was committed")
    content = json.loads(json.loads(header[8:])["__metadata__"]["holdfast"])
    if xxh3_64(data) != content["xxh3_64"]["weights"]:
        raise ValueError(f"{shard['file']}: weights are not what was committed")
    return array.array("d", data)


def commit_of(record):
    """Return what a CommitRecord says, under the names of a manifest."""
    fields = parsed(record)

    def of(fields, number, absent):
        value = fields.get(number, [absent])[0]
        return value.decode() if isinstance(value, bytes) else value

    commit = {"job_id": of(fields, 1, ""), "step": of(fields, 2, 0), "attempt": of(fields, 3, 0)}
    if 4 in fields:  # in restart scope "rank" alone
        commit["rank"] = of(fields, 4, 0)
    commit |= {"world_size": of(fields, 5, 0), "committed_at_ms": of(fields, 6, 0), "shards": [], "format": 2}
    for shard in map(parsed, fields.get(7, [])):
        names = {1: ("rank", 0), 2: ("file", ""), 3: ("size_bytes", 0), 4: ("digest", ""), 5: ("cursor", "")}
        told = {name: of(shard, number, absent) for number, (name, absent) in names.items()}
        metrics = map(parsed, shard.get(6, []))
        told["metrics"] = {of(each, 1, ""): of(each, 2, 0.0) for each in metrics}
        commit["shards"].append(told)
    return commit


def publish(commit):
    """Make a commit visible: the manifest, then LATEST."""
    fields = {**commit, "xxh3_64": xxh3_64(json.dumps(commit, sort_keys=True).encode())}
    text = json.dumps(fields, sort_keys=True, indent=1) + "\n"
    write(directory(commit["step"]) / "manifest.json", text.encode())
    latest = PLACE / "LATEST"
    later = latest.read_text().strip() if latest.exists() else ""
    if later <= directory(commit["step"]).name or not (PLACE / later / "manifest.json").exists():
        write(latest, f"{directory(commit['step']).name}\n".encode())


def drop(step):
    """Delete a checkpoint that is no longer kept: first what makes it one."""
    with suppress(FileNotFoundError):
        (directory(step) / "manifest.json").unlink()
        for path in directory(step).iterdir():
            path.unlink()
        directory(step).rmdir()


# Training


def loss_of(weights):
    """Return how far it has to go."""
    return sum((weight - 1) ** 2 for weight in weights) / len(weights)


def restored(link):
    """Return the step and the weights to begin with."""
    if not ENV["HOLDFAST_RESUME_STEP"]:
        return 0, array.array("d", [0.0] * 64)
    while link.resume is None:
        link.listen(0, 0.1)
    commit = commit_of(link.resume[1][0])
    try:
        weights = load(commit)
    except ValueError as error:
        link.say(
            REPORT, message((1, CORRUPT), (2, commit["step"]), (3, str(error))), (CORRUPT, commit["step"])
        )
        while link.unanswered:
            link.listen(0, 0.1)
        sys.exit(str(error))  # the next attempt is under way
    publish(commit)  # whoever was to do it may have died
    return commit["step"], weights


def main():
    """Train."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    page, link = Page(), Link()
    step, weights = restored(link)
    print(f"rank {RANK} begins at step {step}", flush=True)
    while step < steps:
        time.sleep(pause)
        step += 1
        for i, weight in enumerate(weights):
            weights[i] = weight + (1 - weight) / 100
        page.step(step, loss_of(weights))
        link.listen(step)
        until = time.monotonic() + link.patience
        while link.promised is not None and step >= link.promised and link.stops_at is None:
            link.listen(step, 0.1)  # the others are asked how far they are
            if time.monotonic() > until:
                link.promised = None  # training goes on, and the next request is answered anew
        last = link.stops_at is not None and step >= link.stops_at
        if step % 10 == 0 or step == steps or last:
            page.section("checkpoint")
            link.say(PREPARE, message((1, step), (2, save(step, weights))), ("prepare", step))
            while ("prepare", step) in link.unanswered:
                link.listen(step, 0.1)
            page.section("step")
        if last:
            break


if __name__ == "__main__":
    main()
