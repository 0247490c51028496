package process

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/creack/pty"

	"sandlot.dev/guest/internal/wire"
)

const (
	stdinPatience = 30 * time.Second
	stdinChunk    = 64 * 1024
	endOfInput    = "\x04"
)

type stdin struct {
	file     *os.File
	terminal bool
	// own: the input came with the start, nobody else may write.
	own    bool
	closed bool
	// offset counts what was written; the marks that end a terminal's input are not part of it.
	offset  int64
	midLine bool
	// What attachments sent, see Input.
	queue   []piece
	queued  int64
	ending  bool
	pouring bool
}

func (r *Record) closeStdin() {
	if r.stdin.closed {
		return
	}
	r.stdin.closed = true
	if !r.stdin.terminal {
		r.stdin.file.Close()
	}
}

// feed writes the input that came with the start, then ends it.
func (r *Record) feed(input []byte) {
	for len(input) > 0 {
		count, err := r.stdin.file.Write(input[:min(len(input), stdinChunk)])
		r.mu.Lock()
		r.stdin.offset += int64(count)
		r.mu.Unlock()
		if err != nil {
			break
		}
		input = input[count:]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeStdin()
}

// WriteStdin passes input on from `offset` (nil: append); bytes already written are skipped. It stops early when the pipe
// stays full for 30 seconds. `stdin_closed`, `stdin_gap`, `process_ended`.
func (r *Record) WriteStdin(body io.Reader, offset *int64, end bool) (wire.StdinResult, *wire.Problem) {
	if !r.takeTurn() {
		return r.stdinState(), nil
	}
	defer func() { <-r.turn }()
	skip, refusal := r.openStdin(offset)
	if refusal != nil {
		return r.stdinState(), onlyNew(body, skip, refusal)
	}
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, body, skip); err != nil {
			return r.endStdin(body, end && errors.Is(err, io.EOF))
		}
	}
	buffer := make([]byte, stdinChunk)
	for {
		count, bodyErr := body.Read(buffer)
		if count > 0 {
			if early, problem := r.pass(buffer[:count]); early || problem != nil {
				return r.stdinState(), problem
			}
		}
		if bodyErr != nil {
			return r.endStdin(body, end && errors.Is(bodyErr, io.EOF))
		}
	}
}

// takeTurn waits until nobody else writes; false when that takes as long as a full pipe may.
func (r *Record) takeTurn() bool {
	patience := time.NewTimer(stdinPatience)
	defer patience.Stop()
	select {
	case r.turn <- struct{}{}:
		return true
	case <-patience.C:
		return false
	}
}

// openStdin says how many bytes of the body are already written (-1: not by whoever sends it), and what refuses more.
func (r *Record) openStdin(offset *int64) (written int64, refusal *wire.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stdin.own, offset == nil, *offset > r.stdin.offset:
		written = -1
	default:
		written = r.stdin.offset - *offset
	}
	switch {
	case r.view.State != "running":
		return written, r.endedProblem()
	case r.stdin.closed, r.stdin.ending, r.stdin.own:
		return written, wire.Fail("stdin_closed", "standard input of %s is closed", r.id)
	case offset == nil:
		return 0, nil
	case written < 0:
		return written, wire.Fail("stdin_gap", "%d bytes were written so far", r.stdin.offset).With("offset", r.stdin.offset)
	}
	return written, nil
}

// onlyNew refuses a body that has more than the bytes already written: one that repeats them has had its effect.
func onlyNew(body io.Reader, written int64, refusal *wire.Problem) *wire.Problem {
	if written < 0 {
		return refusal
	}
	if count, err := io.CopyN(io.Discard, body, written+1); count > written || !errors.Is(err, io.EOF) {
		return refusal
	}
	return nil
}

func (r *Record) pass(data []byte) (early bool, problem *wire.Problem) {
	_ = r.stdin.file.SetWriteDeadline(time.Now().Add(stdinPatience))
	count, err := r.stdin.file.Write(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrote(data[:count])
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return true, nil
	case r.view.State != "running":
		return true, r.endedProblem()
	}
	r.closeStdin()
	return true, wire.Fail("stdin_closed", "the process closed its standard input")
}

func (r *Record) endStdin(_ io.Reader, end bool) (wire.StdinResult, *wire.Problem) {
	if end {
		r.sayEnd()
	}
	return r.stdinState(), nil
}

func (r *Record) stdinState() wire.StdinResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	return wire.StdinResult{Offset: r.stdin.offset, Closed: r.stdin.closed || r.stdin.ending}
}

func (r *Record) endedProblem() *wire.Problem {
	return wire.Fail("process_ended", "process %s has ended", r.id).With("exit_code", r.view.ExitCode).With("reason", r.view.Reason)
}

// Resize changes the terminal's size; `invalid_request` without one.
func (r *Record) Resize(size wire.Size) *wire.Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.view.State != "running":
		return r.endedProblem()
	case r.child.Terminal == nil:
		return wire.Fail("invalid_request", "process %s has no terminal", r.id)
	}
	if err := pty.Setsize(r.child.Terminal, &pty.Winsize{Rows: uint16(size.Rows), Cols: uint16(size.Cols)}); err != nil {
		return wire.Fail("internal", "resize: %v", err)
	}
	r.view.TTY = &size
	return nil
}
