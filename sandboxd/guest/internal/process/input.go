package process

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"sandlot.dev/guest/internal/wire"
)

// inputRoom is how much input is taken in ahead of the process, from all attachments together. A whole window of one
// client fits, so that what it sends behind it (a signal, a size) is never held up by a process that does not read.
const inputRoom = 1 << 20

const (
	othersPatience = time.Second
	othersPause    = time.Millisecond
)

// Input is one attachment's way into standard input. Its positions begin where the process's input stood when it was
// opened and count what came through it alone: inputs of several interleave whole, and of each a repeated byte is known.
// What was taken is written even when the attachment is gone. Its methods but Taken are for one goroutine.
type Input struct {
	record *Record
	base   int64
	// Under the record's lock.
	next   int64
	passed int64
	told   int64
	failed *wire.Problem
	gone   bool
	ready  chan struct{}
	busy   func() bool
}

// piece is input that was taken and is still to be written.
type piece struct {
	data []byte
	from *Input
}

// OpenInput begins an attachment's input at the present position, what is still to be written counted in. What others have
// sent before is taken first: one of them may be an earlier attachment of whoever opens this one, and what it was cut off
// from must count. `busy` says whether something has been sent that no Write has returned from yet.
func (r *Record) OpenInput(busy func() bool) *Input {
	for end := time.Now().Add(othersPatience); r.othersBusy() && time.Now().Before(end); {
		time.Sleep(othersPause)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	base := r.taken()
	in := &Input{record: r, base: base, next: base, passed: base, told: base, ready: make(chan struct{}, 1), busy: busy}
	r.inputs[in] = struct{}{}
	return in
}

func (r *Record) othersBusy() bool {
	r.mu.Lock()
	others := slices.Collect(maps.Keys(r.inputs))
	r.mu.Unlock()
	return slices.ContainsFunc(others, func(one *Input) bool { return one.busy() })
}

// taken is the position of standard input, with what is still to be written.
func (r *Record) taken() int64 { return r.stdin.offset + r.stdin.queued }

// Base is where its positions begin.
func (in *Input) Base() int64 { return in.base }

// Close lets go of it. A Write that waits returns.
func (in *Input) Close() {
	in.record.mu.Lock()
	defer in.record.mu.Unlock()
	in.gone = true
	delete(in.record.inputs, in)
	in.record.room.Broadcast()
}

// Write takes input at a position; bytes taken before are skipped. It waits for room. It keeps the data.
// `stdin_gap`, `stdin_closed`, `process_ended`.
func (in *Input) Write(at int64, data []byte) *wire.Problem {
	r := in.record
	r.mu.Lock()
	defer r.mu.Unlock()
	if at > in.next {
		return in.gap()
	}
	data = data[min(in.next-at, int64(len(data))):]
	if len(data) == 0 {
		return nil
	}
	for r.stdin.queued >= inputRoom && !in.gone && r.refusesInput() == nil {
		r.room.Wait()
	}
	if problem := r.refusesInput(); problem != nil || in.gone {
		return problem
	}
	in.next += int64(len(data))
	r.stdin.queue = append(r.stdin.queue, piece{data: data, from: in})
	r.stdin.queued += int64(len(data))
	r.pour()
	return nil
}

// End closes standard input behind everything taken; `total` is the position where that is. Once more does nothing.
func (in *Input) End(total int64) *wire.Problem {
	r := in.record
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stdin.closed, r.stdin.ending:
		return nil
	case total > in.next:
		return in.gap()
	case total < in.next:
		return wire.Fail("invalid_request", "%d bytes were sent, and the end is said to be at %d", in.next, total)
	}
	if problem := r.refusesInput(); problem != nil {
		return problem
	}
	r.stdin.ending = true
	r.pour()
	return nil
}

func (in *Input) gap() *wire.Problem {
	return wire.Fail("stdin_gap", "%d bytes were taken so far", in.next).With("offset", in.next)
}

// Ready receives after something was written, or cannot be.
func (in *Input) Ready() <-chan struct{} { return in.ready }

// Taken returns the position up to which it was written, whether that is news, and what befell the rest, once.
func (in *Input) Taken() (passed int64, news bool, failed *wire.Problem) {
	in.record.mu.Lock()
	defer in.record.mu.Unlock()
	news, in.told = in.passed > in.told, in.passed
	failed, in.failed = in.failed, nil
	return in.passed, news, failed
}

func (in *Input) wake() {
	select {
	case in.ready <- struct{}{}:
	default:
	}
}

// refusesInput says why no more is taken, with the lock held.
func (r *Record) refusesInput() *wire.Problem {
	switch {
	case r.view.State != "running":
		return r.endedProblem()
	case r.stdin.closed, r.stdin.ending, r.stdin.own:
		return wire.Fail("stdin_closed", "standard input of %s is closed", r.id)
	}
	return nil
}

// pour has what was taken written, with the lock held.
func (r *Record) pour() {
	if !r.stdin.pouring {
		r.stdin.pouring = true
		go r.pourAll()
	}
}

func (r *Record) pourAll() {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	_ = r.stdin.file.SetWriteDeadline(time.Time{})
	for r.pourOne() {
	}
}

// pourOne writes one piece, or the end. False when nothing is left to do.
func (r *Record) pourOne() bool {
	r.mu.Lock()
	if len(r.stdin.queue) == 0 {
		ending := r.stdin.ending && !r.stdin.closed
		r.stdin.pouring = ending
		r.mu.Unlock()
		if ending {
			r.sayEnd()
		}
		return ending
	}
	data := r.stdin.queue[0].data
	part := data[:min(len(data), stdinChunk)]
	r.mu.Unlock()
	count, err := r.stdin.file.Write(part)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrote(part[:count])
	r.stdin.queued -= int64(count)
	first := &r.stdin.queue[0]
	first.from.passed += int64(count)
	first.from.wake()
	first.data = first.data[count:]
	if len(first.data) == 0 {
		r.stdin.queue[0] = piece{}
		r.stdin.queue = r.stdin.queue[1:]
	}
	if err != nil {
		r.dropInput()
	}
	r.room.Broadcast()
	return true
}

// dropInput forgets what can no longer be written, and says so to whoever sent it.
func (r *Record) dropInput() {
	r.closeStdin()
	for _, one := range r.stdin.queue {
		one.from.failed = r.refusesInput()
		one.from.wake()
	}
	r.stdin.queue, r.stdin.queued = nil, 0
}

// wrote books bytes that standard input was given, with the lock held.
func (r *Record) wrote(data []byte) {
	r.stdin.offset += int64(len(data))
	if len(data) > 0 {
		r.stdin.midLine = !bytes.ContainsRune([]byte("\r\n"+endOfInput), rune(data[len(data)-1]))
	}
}

// sayEnd ends standard input. A terminal in the middle of a line takes the first mark for the end of what was typed.
func (r *Record) sayEnd() {
	r.mu.Lock()
	terminal, midLine := r.stdin.terminal, r.stdin.midLine
	r.mu.Unlock()
	if terminal {
		marks := endOfInput
		if midLine {
			marks += endOfInput
		}
		_ = r.stdin.file.SetWriteDeadline(time.Now().Add(stdinPatience))
		_, _ = r.stdin.file.WriteString(marks)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeStdin()
}
