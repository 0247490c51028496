"""Reads from the pictures themselves when they were made, and how many are missing.

    ffmpeg -i STREAM -vf crop=512:16:0:0,format=gray -f rawvideo - | python3 meter.py

`encoder.py` paints 64 squares of 8 pixels along the upper edge of each picture: the time in milliseconds (40 bits) and
the picture's number (24 bits). What is measured is the whole way: encoder, network, decoder. Both ends must go by one
clock, as they do on one box; else what is shown is off by as much as the clocks are. Prints one line of JSON.
"""

import json
import statistics
import sys
import time

SQUARE = 8
TIME_BITS, NUMBER_BITS = 40, 24
WIDTH, HEIGHT = SQUARE * (TIME_BITS + NUMBER_BITS), 16
LONGEST_MS = 60_000


def read_stamp(picture: bytes) -> tuple[int, int]:
    """Return the time and the number that a picture shows: from the middle of each square."""
    row = (HEIGHT // 2) * WIDTH
    bits = [picture[row + at * SQUARE + SQUARE // 2] > 127 for at in range(TIME_BITS + NUMBER_BITS)]
    value = sum(bit << at for at, bit in enumerate(bits))
    return value & ((1 << TIME_BITS) - 1), value >> TIME_BITS


def main() -> None:
    pictures, damaged = 0, 0
    numbers: set[int] = set()
    ways: list[float] = []
    while len(picture := sys.stdin.buffer.read(WIDTH * HEIGHT)) == WIDTH * HEIGHT:
        now = time.time() * 1000 % (1 << TIME_BITS)
        made, number = read_stamp(picture)
        pictures += 1
        way = now - made
        if -1 <= way < LONGEST_MS:
            numbers.add(number)
            ways.append(way)
        else:
            damaged += 1
    ways.sort()
    measured = {
        "pictures": pictures,
        "damaged": damaged,
        "first": min(numbers, default=None),
        "last": max(numbers, default=None),
        "missing": max(numbers) - min(numbers) + 1 - len(numbers) if numbers else None,
        "latency_p50_ms": round(statistics.median(ways), 1) if ways else None,
        "latency_p99_ms": round(ways[len(ways) * 99 // 100], 1) if ways else None,
    }
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
