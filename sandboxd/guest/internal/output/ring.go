// Package output keeps what a process wrote: a bounded ring addressed by byte position, and its readers.
package output

import (
	"sync"

	"sandlot.dev/guest/internal/wire"
)

const (
	headLimit = 64 * 1024
	// Segments cost memory too: a process that alternates channels byte by byte must not hold more than its ring.
	segmentCost = 64
	// Short writes this close together share a segment, and so a time.
	mergeWindowUS = 100_000
	smallSegment  = 4096
	// What two pipes may hold when a process ends; a blocking ring keeps it without waiting.
	releaseRoom = 2 << 20
)

type segment struct {
	seq  uint64
	at   int64
	kind wire.Kind
	data []byte
}

// Ring holds the last bytes of one process's output and the first bytes of each channel.
//
// Bytes handed to a reader are never written again: a segment only grows at its end, so readers copy outside the lock.
type Ring struct {
	mu       sync.Mutex
	limit    int
	segments []segment
	first    uint64
	next     uint64
	bytes    [4]uint64
	heads    []segment
	headLeft [4]int
	exit     []byte
	exitAt   int64
	readers  map[*Reader]struct{}
	block    bool
	sent     uint64
	space    *sync.Cond
}

// NewRing makes an empty ring of `limit` bytes. With block, Append waits while more than half of it was sent to no reader.
func NewRing(limit int, block bool) *Ring {
	ring := &Ring{limit: limit, block: block, readers: map[*Reader]struct{}{}}
	ring.headLeft = [4]int{0, headLimit, headLimit, headLimit}
	ring.space = sync.NewCond(&ring.mu)
	return ring
}

// Append adds output. In block mode it waits for readers, until Release.
func (r *Ring) Append(kind wire.Kind, data []byte, atUS int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.block && r.full() {
		r.space.Wait()
	}
	for len(data) > 0 {
		data = data[r.appendSome(kind, data, atUS):]
	}
	r.trim()
	r.wake()
}

func (r *Ring) appendSome(kind wire.Kind, data []byte, atUS int64) int {
	if count := len(r.segments); count > 0 {
		last := &r.segments[count-1]
		if last.kind == kind && len(last.data) < wire.MaxPayload && (len(last.data) < smallSegment || atUS-last.at < mergeWindowUS) {
			taken := min(len(data), wire.MaxPayload-len(last.data))
			last.data = append(last.data, data[:taken]...)
			r.count(kind, taken)
			return taken
		}
	}
	taken := min(len(data), wire.MaxPayload)
	r.segments = append(r.segments, segment{seq: r.next, at: atUS, kind: kind, data: append([]byte(nil), data[:taken]...)})
	r.count(kind, taken)
	return taken
}

func (r *Ring) count(kind wire.Kind, taken int) {
	r.next += uint64(taken)
	r.bytes[kind] += uint64(taken)
}

// trim drops the oldest bytes beyond the limit. A blocking ring drops nothing that was sent to no reader.
func (r *Ring) trim() {
	for len(r.segments) > 0 {
		excess := int64(r.next-r.first) - int64(r.limit)
		if r.crowded() {
			excess = max(excess, int64(len(r.segments[0].data)))
		}
		if r.block {
			excess = min(excess, int64(r.sent)-int64(r.first))
		}
		if excess <= 0 {
			return
		}
		r.dropFront(int(excess))
	}
}

// full says that a blocking ring must not grow before a reader took something.
func (r *Ring) full() bool {
	unsent := r.next - max(r.sent, r.first)
	return unsent > uint64(r.limit/2) || (unsent > 0 && r.crowded())
}

func (r *Ring) crowded() bool { return len(r.segments) > r.limit/segmentCost }

func (r *Ring) dropFront(excess int) {
	front := &r.segments[0]
	dropped := min(excess, len(front.data))
	r.keepHead(segment{seq: front.seq, at: front.at, kind: front.kind, data: front.data[:dropped]})
	r.first += uint64(dropped)
	if dropped == len(front.data) {
		r.segments[0] = segment{}
		r.segments = r.segments[1:]
		return
	}
	front.data = front.data[dropped:]
	front.seq += uint64(dropped)
}

func (r *Ring) keepHead(dropped segment) {
	taken := min(len(dropped.data), r.headLeft[dropped.kind])
	if taken == 0 {
		return
	}
	r.headLeft[dropped.kind] -= taken
	if count := len(r.heads); count > 0 {
		last := &r.heads[count-1]
		if last.kind == dropped.kind && last.seq+uint64(len(last.data)) == dropped.seq && len(last.data)+taken <= wire.MaxPayload {
			last.data = append(last.data, dropped.data[:taken]...)
			return
		}
	}
	dropped.data = append([]byte(nil), dropped.data[:taken]...)
	r.heads = append(r.heads, dropped)
}

func (r *Ring) wake() {
	for reader := range r.readers {
		reader.wake()
	}
}

// Release lets a blocked Append go on, for ever: the process has ended, what its pipes still hold must be kept.
func (r *Ring) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.block {
		r.block = false
		r.limit += releaseRoom
	}
	r.space.Broadcast()
}

// Close ends the output with the payload of its exit frame. The first one counts.
func (r *Ring) Close(exit []byte, atUS int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exit != nil {
		return
	}
	r.exit = exit
	r.exitAt = atUS
	r.wake()
}

// Positions returns where the ring begins and ends, and the bytes of (stdout or terminal) and stderr.
func (r *Ring) Positions() (first, next, stdout, stderr uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first, r.next, r.bytes[wire.KindStdout] + r.bytes[wire.KindTerminal], r.bytes[wire.KindStderr]
}

// Cost is the memory the ring holds.
func (r *Ring) Cost() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	total := 0
	for _, list := range [][]segment{r.segments, r.heads} {
		for i := range list {
			total += cap(list[i].data) + segmentCost
		}
	}
	return int64(total)
}

// Head renders the first 64 KiB of each channel as frames, in the order they were written.
func (r *Ring) Head() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	var frames []byte
	for i := range r.heads {
		frames = appendSegment(frames, &r.heads[i])
	}
	left := r.headLeft
	for i := range r.segments {
		part := r.segments[i]
		part.data = part.data[:min(len(part.data), left[part.kind])]
		if len(part.data) > 0 {
			left[part.kind] -= len(part.data)
			frames = appendSegment(frames, &part)
		}
	}
	return frames
}

func appendSegment(dst []byte, part *segment) []byte {
	return wire.AppendFrame(dst, part.kind, part.seq, part.at, part.data)
}
