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
	mergeWindowUS = 10_000
	smallSegment  = 4096
	// What two pipes may hold when a process ends; a blocking ring keeps it without waiting.
	releaseRoom = 2 << 20
	muchAtOnce  = 16 * 1024
	maxSpare    = 8
)

// segment is a run of one channel. Its bytes are those of buffer from `from` on.
type segment struct {
	seq    uint64
	at     int64
	kind   wire.Kind
	from   int
	buffer []byte
}

func (s *segment) bytes() []byte { return s.buffer[s.from:] }

func (s *segment) end() uint64 { return s.seq + uint64(len(s.buffer)-s.from) }

// Ring holds the last bytes of one process's output and the first bytes of each channel. Nothing outside ever points into
// it: what is dropped is used again.
type Ring struct {
	mu       sync.Mutex
	limit    int
	segments []segment
	first    uint64
	next     uint64
	bytes    [4]uint64
	heads    []segment
	headLeft [4]int
	spare    [][]byte
	exit     []byte
	exitAt   int64
	readers  map[*Reader]struct{}
	block    bool
	sent     uint64
	space    *sync.Cond
	changed  chan<- struct{}
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
		used := len(last.buffer)
		if last.kind == kind && used < wire.MaxPayload && (atUS-last.at < mergeWindowUS || (used < smallSegment && r.scattered())) {
			taken := min(len(data), wire.MaxPayload-used)
			last.buffer = append(last.buffer, data[:taken]...)
			r.count(kind, taken)
			return taken
		}
	}
	taken := min(len(data), wire.MaxPayload)
	buffer := append(r.room(len(data)), data[:taken]...)
	r.segments = append(r.segments, segment{seq: r.next, at: atUS, kind: kind, buffer: buffer})
	r.count(kind, taken)
	return taken
}

// room returns an empty buffer: a whole one where much comes at once, else one that grows.
func (r *Ring) room(coming int) []byte {
	if coming < muchAtOnce {
		return nil
	}
	if last := len(r.spare) - 1; last >= 0 {
		buffer := r.spare[last]
		r.spare = r.spare[:last]
		return buffer
	}
	return make([]byte, 0, wire.MaxPayload)
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
			excess = max(excess, int64(len(r.segments[0].bytes())))
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

// scattered says that so many small writes are kept apart that the next ones rather lose their time than push bytes out.
func (r *Ring) scattered() bool { return len(r.segments) > r.limit/segmentCost/2 }

func (r *Ring) dropFront(excess int) {
	front := &r.segments[0]
	dropped := min(excess, len(front.bytes()))
	r.keepHead(front, front.bytes()[:dropped])
	r.first += uint64(dropped)
	front.seq += uint64(dropped)
	front.from += dropped
	if front.from < len(front.buffer) {
		return
	}
	if cap(front.buffer) == wire.MaxPayload && len(r.spare) < maxSpare {
		r.spare = append(r.spare, front.buffer[:0])
	}
	r.segments[0] = segment{}
	r.segments = r.segments[1:]
}

// keepHead copies what the head still lacks of bytes about to be dropped.
func (r *Ring) keepHead(front *segment, dropped []byte) {
	dropped = dropped[:min(len(dropped), r.headLeft[front.kind])]
	if len(dropped) == 0 {
		return
	}
	r.headLeft[front.kind] -= len(dropped)
	if count := len(r.heads); count > 0 {
		last := &r.heads[count-1]
		if last.kind == front.kind && last.end() == front.seq && len(last.buffer)+len(dropped) <= wire.MaxPayload {
			last.buffer = append(last.buffer, dropped...)
			return
		}
	}
	kept := segment{seq: front.seq, at: front.at, kind: front.kind, buffer: append([]byte(nil), dropped...)}
	r.heads = append(r.heads, kept)
}

// Announce makes every change of the ring known on a channel that may be full.
func (r *Ring) Announce(changed chan<- struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = changed
}

func (r *Ring) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
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
	r.spare = nil
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
			total += cap(list[i].buffer) + segmentCost
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
		frames = appendPart(frames, &r.heads[i], r.heads[i].bytes())
	}
	left := r.headLeft
	for i := range r.segments {
		one := &r.segments[i]
		part := one.bytes()[:min(len(one.bytes()), left[one.kind])]
		if len(part) > 0 {
			left[one.kind] -= len(part)
			frames = appendPart(frames, one, part)
		}
	}
	return frames
}

// appendPart renders the first bytes of a segment.
func appendPart(dst []byte, from *segment, part []byte) []byte {
	return wire.AppendFrame(dst, from.kind, from.seq, from.at, part)
}
