// Package process keeps every process of the sandbox: it starts, ends, joins and remembers them.
package process

import (
	"sync"
	"sync/atomic"
	"time"

	"sandlot.dev/guest/internal/inittable"
	"sandlot.dev/guest/internal/journal"
	"sandlot.dev/guest/internal/spawn"
	"sandlot.dev/guest/internal/tree"
	"sandlot.dev/guest/internal/wire"
)

const (
	maxEnded      = 1000
	maxEndedBytes = 64 << 20
)

// Table holds the records of all processes.
type Table struct {
	spawner *spawn.Spawner
	forest  tree.Forest
	reaper  *reaper
	station atomic.Pointer[inittable.Station]

	mu        sync.Mutex
	records   map[string]*Record
	order     []*Record
	ended     int
	endedCost int64
	running   int
	stopping  bool
	lastExit  time.Time
	lingering map[*Record]struct{}
	sweep     chan struct{}
	changed   chan struct{}
}

// NewTable makes an empty table and starts to reap. One process has one table.
func NewTable(spawner *spawn.Spawner, forest tree.Forest) *Table {
	t := &Table{
		spawner: spawner, forest: forest,
		records: map[string]*Record{}, lingering: map[*Record]struct{}{}, sweep: make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
	}
	t.reaper = newReaper(t.sweepSoon)
	go t.reaper.run()
	go t.sweepTrees()
	return t
}

// Settle makes the station of an init the one that starts follow from now on.
func (t *Table) Settle(station *inittable.Station) {
	t.forest.SetLimit(station.MaxProcesses())
	t.station.Store(station)
}

// Station is the present one, nil before the first init.
func (t *Table) Station() *inittable.Station { return t.station.Load() }

// Reset forgets every process there was, as if none had been. False while one is running: then nothing is forgotten.
func (t *Table) Reset() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running > 0 {
		return false
	}
	t.records, t.order, t.ended, t.endedCost, t.lastExit = map[string]*Record{}, nil, 0, 0, time.Time{}
	return true
}

// Start starts a process, or joins the one of the same id and spec.
func (t *Table) Start(spec wire.Spec) (record *Record, joined bool, problem *wire.Problem) {
	if problem := check(&spec); problem != nil {
		return nil, false, problem
	}
	station := t.Station()
	if station == nil {
		return nil, false, wire.Fail("sandbox_not_ready", "init has not been called")
	}
	mark := fingerprint(spec)
	record, joined, problem = t.claim(spec.ID, mark)
	if problem != nil {
		return nil, false, problem
	}
	if joined {
		<-record.settled
		return record, true, record.refused
	}
	if problem := record.start(t, station, spec); problem != nil {
		t.forget(record, problem)
		return nil, false, problem
	}
	close(record.settled)
	return record, false, nil
}

func (t *Table) claim(id string, mark [32]byte) (*Record, bool, *wire.Problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if record, known := t.records[id]; known {
		if record.mark != mark {
			return nil, false, wire.Fail("idempotency_mismatch", "process %s was started with another spec", id)
		}
		return record, true, nil
	}
	if t.stopping {
		return nil, false, wire.Fail("sandbox_not_ready", "the sandbox is shutting down")
	}
	record := newRecord(id, mark)
	t.records[id] = record
	t.order = append(t.order, record)
	t.running++
	return record, false, nil
}

// forget undoes a claim: a refused start leaves no trace, so that it can be repeated.
func (t *Table) forget(record *Record, problem *wire.Problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.records, record.id)
	t.drop(record)
	t.running--
	record.refused = problem
	close(record.settled)
}

func (t *Table) drop(record *Record) {
	for i := range t.order {
		if t.order[i] == record {
			t.order = append(t.order[:i], t.order[i+1:]...)
			return
		}
	}
}

// Find returns a process; `process_not_found`.
func (t *Table) Find(id string) (*Record, *wire.Problem) {
	t.mu.Lock()
	record, known := t.records[id]
	t.mu.Unlock()
	if known {
		<-record.settled
	}
	if !known || record.refused != nil {
		return nil, wire.Fail("process_not_found", "no process %s", id)
	}
	return record, nil
}

// List returns processes, oldest first. Empty filters match all.
func (t *Table) List(state string, tag *string) []wire.Process {
	t.mu.Lock()
	records := append([]*Record(nil), t.order...)
	t.mu.Unlock()
	items := []wire.Process{}
	for _, record := range records {
		<-record.settled
		if record.refused != nil || (tag != nil && (record.view.Tag == nil || *record.view.Tag != *tag)) {
			continue
		}
		if view := record.View(); state == "" || state == view.State {
			items = append(items, view)
		}
	}
	return items
}

// Running counts live processes and says when one last ended.
func (t *Table) Running() (running int, lastExit time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running, t.lastExit
}

// hasEnded books an end, and lets the oldest ended records go.
func (t *Table) hasEnded(record *Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	t.ended++
	t.lastExit = time.Now()
	record.over = true
	record.cost = record.ring.Cost()
	t.endedCost += record.cost
	for i := 0; i < len(t.order) && (t.ended > maxEnded || t.endedCost > maxEndedBytes); {
		oldest := t.order[i]
		if !oldest.over || oldest == record {
			i++
			continue
		}
		t.order = append(t.order[:i], t.order[i+1:]...)
		delete(t.records, oldest.id)
		t.ended--
		t.endedCost -= oldest.cost
	}
	t.lingering[record] = struct{}{}
	t.sweepSoon()
}

func (t *Table) sweepSoon() {
	select {
	case t.sweep <- struct{}{}:
	default:
	}
}

// sweepTrees forgets the trees of ended processes once their last member is gone.
func (t *Table) sweepTrees() {
	for range t.sweep {
		t.mu.Lock()
		var trees []*Record
		for record := range t.lingering {
			trees = append(trees, record)
		}
		t.mu.Unlock()
		for _, record := range trees {
			if record.tree.Remove() {
				t.mu.Lock()
				delete(t.lingering, record)
				t.mu.Unlock()
			}
		}
	}
}

// Shutdown ends every process: SIGTERM, SIGKILL after the grace. It returns when none is left, with the number of those
// that had to be ended. Starts are refused from then on.
func (t *Table) Shutdown(grace time.Duration, everything bool) int {
	t.mu.Lock()
	t.stopping = true
	t.mu.Unlock()
	ended := t.signalAll(endTerminate)
	if ended > 0 || everything {
		t.reaper.childless(grace)
	}
	for t.signalAll(endKill); !t.reaper.childless(20 * time.Millisecond); t.signalAll(endKill) {
		if everything {
			killEverything()
		}
	}
	journal.Note("shutdown: ended %d processes", ended)
	return ended
}

func (t *Table) signalAll(how ending) int {
	t.mu.Lock()
	records := append([]*Record(nil), t.order...)
	for record := range t.lingering {
		records = append(records, record)
	}
	t.mu.Unlock()
	count := 0
	for _, record := range records {
		<-record.settled
		if record.refused == nil && record.stop(how) {
			count++
		}
	}
	return count
}
