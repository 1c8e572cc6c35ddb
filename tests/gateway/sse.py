"""Readers of server-sent events: as a browser's, over a socket of its own, which can be cut anywhere."""

import http.client
import json
import socket
import struct
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Event:
    name: str
    data: dict
    id: str


@dataclass
class Reader:
    """Keeps the id of the last event over connections, as EventSource does. Only whole events count."""

    base: str
    path: str
    last_id: str = ""
    events: list[Event] = field(default_factory=list)
    comments: int = 0

    def connect(self) -> http.client.HTTPResponse:
        self._rest, self._id, self._lines = b"", self.last_id, []
        self.connection = http.client.HTTPConnection(urlsplit(self.base).netloc, timeout=60)
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        self.connection.request("GET", self.path, headers=headers)
        self.response = self.connection.getresponse()
        return self.response

    def cut(self) -> None:
        """End the connection at once, whatever is on its way."""
        if self.connection.sock is not None:
            self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.response.close()
        self.connection.close()

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line:
                self._lines.append(line.decode())
            else:
                self._dispatch()

    def _dispatch(self) -> None:
        name, data = "message", []
        for line in self._lines:
            key, _, value = line.partition(": ")
            if key == "id":
                self._id = value
            elif key == "event":
                name = value
            elif key == "data":
                data.append(value)
            elif not key:
                self.comments += 1
        self._lines = []
        self.last_id = self._id
        if data:
            self.events.append(Event(name, json.loads("\n".join(data)), self.last_id))

    def read_until(self, condition) -> list[Event]:
        """Connect and read until an event is as wanted, then cut."""
        response = self.connect()
        assert response.status == 200, response.read()
        begun = len(self.events)
        while not any(condition(event) for event in self.events[begun:]):
            data = response.read1(65_536)
            assert data, f"the stream ended: {self.events[-3:]}"
            self.feed(data)
        self.cut()
        return self.events[begun:]
