package process

import (
	"encoding/json"
	"time"

	"sandlot.dev/guest/internal/wire"
)

// Least bytes of one process in one batch, however many have something to say.
const leastShare = 4096

// Feed goes through the newest output of all processes, again and again. One goroutine uses it.
type Feed struct {
	table *Table
	most  int
	at    map[string]uint64
	ended map[string]bool
	open  []*Record
	known map[*Record]struct{}
}

// NewFeed goes on from positions, and leaves out processes whose end is known already.
func (t *Table) NewFeed(positions map[string]uint64, ended []string, most int) *Feed {
	feed := &Feed{table: t, most: most, at: positions, ended: map[string]bool{}, known: map[*Record]struct{}{}}
	if feed.at == nil {
		feed.at = map[string]uint64{}
	}
	for _, id := range ended {
		feed.ended[id] = true
	}
	return feed
}

// Changed receives after any output was written and after any end.
func (t *Table) Changed() <-chan struct{} { return t.changed }

// Take appends what is new, before each process a frame that names it.
func (f *Feed) Take(dst []byte, processes func() int) []byte {
	f.look()
	var ready []*Record
	for _, record := range f.open {
		if record.ring.HasSince(f.at[record.id]) {
			ready = append(ready, record)
		}
	}
	if len(ready) == 0 {
		return dst
	}
	share := max(f.most/len(ready), leastShare)
	count := processes()
	over := map[*Record]bool{}
	for _, record := range ready {
		name, _ := json.Marshal(map[string]any{"process_id": record.id, "processes": count})
		dst = wire.AppendFrame(dst, wire.KindAttached, f.at[record.id], time.Now().UnixMicro(), name)
		var ended bool
		dst, f.at[record.id], ended = record.ring.Since(dst, f.at[record.id], share)
		if ended {
			over[record] = true
			delete(f.at, record.id)
		}
	}
	f.close(over)
	return dst
}

// look takes in processes that are new, whatever the table forgets of them later.
func (f *Feed) look() {
	f.table.mu.Lock()
	records := append([]*Record(nil), f.table.order...)
	f.table.mu.Unlock()
	known := make(map[*Record]struct{}, len(records))
	for _, record := range records {
		if _, seen := f.known[record]; seen {
			known[record] = struct{}{}
			continue
		}
		select {
		case <-record.settled:
		default:
			continue
		}
		known[record] = struct{}{}
		if record.refused == nil && !f.ended[record.id] {
			f.open = append(f.open, record)
		}
	}
	f.known = known
}

func (f *Feed) close(over map[*Record]bool) {
	if len(over) == 0 {
		return
	}
	left := f.open[:0]
	for _, record := range f.open {
		if !over[record] {
			left = append(left, record)
		}
	}
	clear(f.open[len(left):])
	f.open = left
}

// Done says that every process it knows has ended and was taken to its end.
func (f *Feed) Done() bool {
	running, _ := f.table.Running()
	return running == 0 && len(f.open) == 0
}
