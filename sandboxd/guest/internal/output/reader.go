package output

import (
	"sort"

	"sandlot.dev/guest/internal/wire"
)

// MaxReaders is the most a process has at once.
const MaxReaders = 16

const batchBytes = 256 * 1024

// Reader follows one ring from a position. It is used by one goroutine.
type Reader struct {
	ring  *Ring
	at    uint64
	ready chan struct{}
}

// Open attaches a reader at a position; `seq_out_of_range` beyond the end, `too_many_streams` beyond MaxReaders.
func (r *Ring) Open(after uint64) (*Reader, *wire.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if after > r.next {
		return nil, wire.Fail("seq_out_of_range", "position %d is beyond %d", after, r.next).With("next_seq", r.next)
	}
	return r.attach(after)
}

// OpenTail attaches a reader at most `tail` bytes before the present end, without a lost frame for what is older.
func (r *Ring) OpenTail(tail uint64) (*Reader, *wire.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attach(max(r.first, r.next-min(tail, r.next)))
}

func (r *Ring) attach(at uint64) (*Reader, *wire.Problem) {
	if len(r.readers) >= MaxReaders {
		return nil, wire.Fail("too_many_streams", "%d readers are attached", MaxReaders).With("limit", MaxReaders)
	}
	reader := &Reader{ring: r, at: at, ready: make(chan struct{}, 1)}
	r.readers[reader] = struct{}{}
	return reader, nil
}

// Close detaches it.
func (rd *Reader) Close() {
	rd.ring.mu.Lock()
	defer rd.ring.mu.Unlock()
	delete(rd.ring.readers, rd)
}

// Ready receives after output was appended or the ring was closed.
func (rd *Reader) Ready() <-chan struct{} { return rd.ready }

func (rd *Reader) wake() {
	select {
	case rd.ready <- struct{}{}:
	default:
	}
}

// At is the position after the last frame taken.
func (rd *Reader) At() uint64 { return rd.at }

// Rest is what a reader still has before it.
type Rest int

// After a Take there is more at hand, or nothing yet, or nothing ever again: exit was taken.
const (
	More Rest = iota
	Later
	Ended
)

// Take appends frames from the reader's position on, about 256 KiB at most.
func (rd *Reader) Take(dst []byte) ([]byte, Rest) {
	r := rd.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	if rd.at < r.first {
		dst = wire.AppendLost(dst, rd.at, r.first-rd.at)
		rd.at = r.first
	}
	start := sort.Search(len(r.segments), func(i int) bool { return r.segments[i].end() > rd.at })
	full := len(dst) + batchBytes
	for i := start; i < len(r.segments) && len(dst) < full; i++ {
		part := r.segments[i]
		part.from += int(rd.at - part.seq)
		part.seq = rd.at
		dst = appendPart(dst, &part, part.bytes())
		rd.at = part.end()
	}
	switch {
	case rd.at < r.next:
		return dst, More
	case r.exit == nil:
		return dst, Later
	}
	return wire.AppendFrame(dst, wire.KindExit, rd.at, r.exitAt, r.exit), Ended
}

// Sent says that everything taken has left: a blocked process may go on.
func (rd *Reader) Sent() {
	r := rd.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	if rd.at > r.sent {
		r.sent = rd.at
		r.trim()
		r.space.Broadcast()
	}
}
