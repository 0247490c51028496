package output

import (
	"sort"

	"sandlot.dev/guest/internal/wire"
)

// Since appends the newest bytes behind a position, `most` at the most, with a lost frame for what lies between, and the exit
// if there is one. It returns the position after them. It is no reader: a process that is blocked stays so.
func (r *Ring) Since(dst []byte, at uint64, most int) (frames []byte, next uint64, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at = min(at, r.next)
	begin := max(at, r.newest(most))
	if begin > at {
		dst = wire.AppendLost(dst, at, begin-at)
	}
	start := sort.Search(len(r.segments), func(i int) bool { return r.segments[i].end() > begin })
	for _, part := range r.segments[start:] {
		part.from += int(begin - part.seq)
		part.seq = begin
		dst = appendPart(dst, &part, part.bytes())
		begin = part.end()
	}
	if r.exit == nil {
		return dst, r.next, false
	}
	return wire.AppendFrame(dst, wire.KindExit, r.next, r.exitAt, r.exit), r.next, true
}

// newest is the position from which on everything fits into `most` bytes of frames, their headers counted.
func (r *Ring) newest(most int) uint64 {
	for i := len(r.segments) - 1; i >= 0; i-- {
		most -= wire.HeaderBytes
		size := len(r.segments[i].bytes())
		if size > most {
			return r.segments[i].end() - uint64(max(most, 0))
		}
		most -= size
	}
	return r.first
}

// HasSince says whether Since would append anything.
func (r *Ring) HasSince(at uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return at < r.next || r.exit != nil
}
