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
	ended bool
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

// Take appends frames from the reader's position on, about 256 KiB at most. It says whether exit was among them.
func (rd *Reader) Take(dst []byte) (frames []byte, ended bool) {
	parts, lost, exit, exitAt := rd.collect()
	if lost > 0 {
		dst = wire.AppendLost(dst, rd.at, lost)
		rd.at += lost
	}
	for i := range parts {
		dst = appendSegment(dst, &parts[i])
		rd.at += uint64(len(parts[i].data))
	}
	if exit != nil && !rd.ended {
		rd.ended = true
		dst = wire.AppendFrame(dst, wire.KindExit, rd.at, exitAt, exit)
	}
	return dst, rd.ended
}

func (rd *Reader) collect() (parts []segment, lost uint64, exit []byte, exitAt int64) {
	r := rd.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	at := rd.at
	if at < r.first {
		lost = r.first - at
		at = r.first
	}
	start := sort.Search(len(r.segments), func(i int) bool {
		return r.segments[i].seq+uint64(len(r.segments[i].data)) > at
	})
	taken := 0
	for i := start; i < len(r.segments) && taken < batchBytes; i++ {
		part := r.segments[i]
		if part.seq < at {
			part.data = part.data[at-part.seq:]
			part.seq = at
		}
		parts = append(parts, part)
		taken += len(part.data) + wire.HeaderBytes
		at = part.seq + uint64(len(part.data))
	}
	if at == r.next {
		exit, exitAt = r.exit, r.exitAt
	}
	return parts, lost, exit, exitAt
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
