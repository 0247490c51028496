"""Stands for a video program in a sandbox: sends RTP packets over UDP to whoever asks, at a steady rate.

    python3 camera.py PORT

A datagram `play FRAMES PER_SECOND PACKETS` starts it: so many frames, each of so many packets of 1,500 bytes at once,
as an encoder hands them over. Each packet has when it was sent behind its RTP header. `bye` ends the stream.
"""

import socket
import struct
import sys
import time

RTP = struct.Struct(">BBHIIq")
"""The header of RTP (version 2, type 96), and the time in nanoseconds."""
PACKET_BYTES = 1500 - 28
"""With the headers of IP and UDP, 1,500 bytes."""
CLOCK_HZ = 90_000
SOURCE = 0x5A4D


def play(out: socket.socket, to: tuple[str, int], frames: int, per_second: int, packets: int) -> None:
    """Send a stream, each frame when it is due."""
    sequence = 0
    began = time.monotonic()
    rest = bytes(PACKET_BYTES - RTP.size)
    for frame in range(frames):
        time.sleep(max(0.0, began + frame / per_second - time.monotonic()))
        for packet in range(packets):
            last = 0x80 if packet == packets - 1 else 0
            stamp = frame * CLOCK_HZ // per_second
            head = RTP.pack(0x80, last | 96, sequence & 0xFFFF, stamp, SOURCE, time.time_ns())
            out.sendto(head + rest, to)
            sequence += 1
    for _ in range(10):
        out.sendto(b"bye %d" % sequence, to)
        time.sleep(0.05)


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        # Not 127.0.0.1: a tunnel comes out at the sandbox's own address.
        out.bind(("0.0.0.0", int(sys.argv[1])))
        while True:
            asked, who = out.recvfrom(100)
            words = asked.split()
            if words[:1] == [b"play"] and len(words) == 4:
                play(out, who, *(int(word) for word in words[1:]))


if __name__ == "__main__":
    main()
