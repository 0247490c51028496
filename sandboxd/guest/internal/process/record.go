package process

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sandlot.dev/guest/internal/inittable"
	"sandlot.dev/guest/internal/journal"
	"sandlot.dev/guest/internal/metrics"
	"sandlot.dev/guest/internal/output"
	"sandlot.dev/guest/internal/spawn"
	"sandlot.dev/guest/internal/tree"
	"sandlot.dev/guest/internal/wire"
)

// ending says who ended a process, if not the process itself.
type ending int

const (
	endItself ending = iota
	endTimeout
	endLimit
	endSignal
	endTerminate
	endKill
)

// shownArgvBytes is the most that is shown of a command line.
const shownArgvBytes = 4096

const killPatience = 5 * time.Second

// Record is one process, running or ended.
type Record struct {
	id      string
	mark    [32]byte
	settled chan struct{}
	refused *wire.Problem
	done    chan struct{}

	table   *Table
	spec    wire.Spec
	ring    *output.Ring
	tree    tree.Tree
	child   *spawn.Child
	started time.Time
	// open counts what must be over before the end is reported: the process and each of its output channels.
	open atomic.Int32
	// Booked by the table, under its lock.
	over bool
	cost int64

	mu       sync.Mutex
	view     wire.Process
	exited   bool
	death    death
	ending   ending
	timer    *time.Timer
	stdin    stdin
	signaled []string
	produced int64
	// inputs of those attached now.
	inputs map[*Input]struct{}
	// room is told when attachments' input was written, or never will be.
	room *sync.Cond
	// turn is held by whoever writes to standard input.
	turn chan struct{}
}

func newRecord(id string, mark [32]byte) *Record {
	r := &Record{id: id, mark: mark, settled: make(chan struct{}), done: make(chan struct{}), turn: make(chan struct{}, 1), inputs: map[*Input]struct{}{}}
	r.room = sync.NewCond(&r.mu)
	return r
}

// start fills a claimed record and runs its program. A problem refuses it; a program that cannot be executed does not.
func (r *Record) start(t *Table, station *inittable.Station, spec wire.Spec) *wire.Problem {
	place, problem := station.Place(spec.User, spec.Cwd)
	if problem != nil {
		return problem
	}
	argv := spec.Argv
	if spec.Shell != nil {
		shell := station.Shell()
		if shell == "" {
			return wire.Fail("no_shell", "the image has neither /bin/bash nor /bin/sh")
		}
		argv = []string{shell, "-c", *spec.Shell}
	}
	grown, err := t.forest.New()
	if err != nil {
		return wire.Fail("internal", "%v", err)
	}
	r.table, r.spec, r.tree, r.started = t, spec, grown, time.Now()
	r.ring = output.NewRing(spec.Output.RingBytes, spec.Output.Mode == "block")
	r.ring.Announce(t.changed)
	r.view = wire.Process{
		ID: r.id, Argv: argv, Cwd: place.Cwd, User: place.User.Name, UID: place.User.UID, GID: place.User.GID,
		TTY: spec.TTY, Tag: spec.Tag, State: "running", TimeoutSeconds: spec.TimeoutSeconds, StartedAt: wire.Stamp(r.started),
	}
	env, search := station.Environment(place.User, inittable.Own{
		Env: spec.Env, WithSecrets: spec.WithSecrets == nil || *spec.WithSecrets, Terminal: spec.TTY != nil,
	})
	return r.launch(spawn.Order{
		Argv: argv, Env: env, Search: search, Dir: place.Cwd, User: place.User, TTY: spec.TTY, Tree: grown,
		Stdin: spec.Stdin || spec.InputBase64 != nil, MergeStderr: spec.MergeStderr,
	})
}

func (r *Record) launch(order spawn.Order) *wire.Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	var startError *wire.StartError
	var err error
	r.open.Store(1)
	r.table.reaper.start(func() int {
		r.child, startError, err = r.table.spawner.Start(order)
		if r.child == nil {
			return 0
		}
		r.view.PID = r.child.PID
		r.pumps()
		return r.child.PID
	}, func(over death) { go r.hasExited(over) })
	if err != nil {
		r.tree.Remove()
		if problem := (*wire.Problem)(nil); errors.As(err, &problem) {
			return problem
		}
		journal.Note("process %s: %v", r.id, err)
		return wire.Fail("internal", "the process could not be set up: %v", err)
	}
	if startError != nil {
		r.neverStarted(startError)
		return nil
	}
	r.stdin = stdin{file: r.child.Stdin, closed: r.child.Stdin == nil}
	if r.child.Terminal != nil {
		r.stdin = stdin{file: r.child.Terminal, terminal: true}
	}
	if r.spec.InputBase64 != nil {
		r.stdin.own = true
		go r.feed(*r.spec.InputBase64)
	}
	if r.spec.TimeoutSeconds != nil {
		r.timer = time.AfterFunc(seconds(*r.spec.TimeoutSeconds), r.timedOut)
	}
	return nil
}

func seconds(value float64) time.Duration {
	return time.Duration(min(value, 1e9) * float64(time.Second))
}

func (r *Record) neverStarted(startError *wire.StartError) {
	code := 126
	if startError.Code == "command_not_found" {
		code = 127
	}
	r.view.StartError = startError
	r.stdin.closed = true
	r.report(wire.Exit{ExitCode: code, Reason: "not_started", Message: &startError.Message, StartError: startError})
}

// hasExited books the death of the process itself; what it had written is still to be drained.
func (r *Record) hasExited(over death) {
	r.mu.Lock()
	r.exited = true
	r.death = over
	if r.timer != nil && r.ending == endItself {
		r.timer.Stop()
	}
	r.mu.Unlock()
	r.ring.Release()
	r.drain()
	r.closeOne()
}

// closeOne reports the end once the process and all its channels are over.
func (r *Record) closeOne() {
	if r.open.Add(-1) > 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeStdin()
	r.report(r.verdict())
	r.room.Broadcast()
}

func (r *Record) verdict() wire.Exit {
	status := r.death.status
	exit := wire.Exit{ExitCode: status.ExitStatus(), Reason: "exited"}
	if status.Signaled() {
		name := signalName(status.Signal())
		exit = wire.Exit{ExitCode: 128 + int(status.Signal()), Reason: "signaled", Signal: &name}
	}
	switch {
	case r.ending == endTimeout:
		exit.ExitCode, exit.Reason, exit.Message = 124, "timed_out", message("the process did not end within its time-out")
	case r.ending == endLimit:
		exit.ExitCode, exit.Reason, exit.Message = 137, "output_limit", message("the process wrote more than its limit")
	case r.ending == endTerminate, r.ending == endKill:
		exit.ExitCode, exit.Reason, exit.Message = 137, "sandbox_stopped", message("the sandbox was stopped")
	case r.ending == endSignal && status.Signaled() && status.Signal() == syscall.SIGKILL:
		exit.ExitCode, exit.Reason = 137, "killed"
	}
	return exit
}

func message(text string) *string { return &text }

// report makes the end visible, with the lock held.
func (r *Record) report(exit wire.Exit) {
	now := time.Now()
	ended := wire.Stamp(now)
	exit.DurationSeconds = now.Sub(r.started).Seconds()
	r.view.State = "ended"
	r.view.ExitCode, r.view.Signal, r.view.Reason, r.view.Message = &exit.ExitCode, exit.Signal, &exit.Reason, exit.Message
	r.view.EndedAt, r.view.DurationSeconds = &ended, exit.DurationSeconds
	r.view.CPUUsedSeconds = time.Duration(r.death.usage.Utime.Nano() + r.death.usage.Stime.Nano()).Seconds()
	r.view.PeakMemoryBytes = r.death.usage.Maxrss * 1024
	payload, _ := json.Marshal(exit)
	r.ring.Close(payload, now.UnixMicro())
	close(r.done)
	r.table.hasEnded(r)
}

// Done is closed at the end.
func (r *Record) Done() <-chan struct{} { return r.done }

// Ring is the output.
func (r *Record) Ring() *output.Ring { return r.ring }

// View describes the process now, with what it used so far.
func (r *Record) View() wire.Process {
	view := r.Sketch()
	if view.State == "running" {
		view.CPUUsedSeconds, view.PeakMemoryBytes = metrics.Process(view.PID)
	}
	return view
}

// Sketch is View without the use of a running process, which is slow to ask for.
func (r *Record) Sketch() wire.Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	view := r.view
	view.Argv = shown(view.Argv)
	view.FirstSeq, view.NextSeq, view.StdoutBytes, view.StderrBytes = r.ring.Positions()
	view.StdinOffset, view.StdinClosed = r.taken(), r.stdin.closed || r.stdin.ending
	if view.State == "running" {
		view.DurationSeconds = time.Since(r.started).Seconds()
	}
	return view
}

// shown cuts arguments, so that a process fits into a frame: who started it knows them.
func shown(argv []string) []string {
	left := shownArgvBytes
	for i, argument := range argv {
		if len(argument) > left {
			short := append([]string(nil), argv[:i]...)
			return append(short, strings.ToValidUTF8(argument[:left], "")+"…")
		}
		left -= len(argument)
	}
	return argv
}

func (r *Record) timedOut() { r.terminate(endTimeout) }

// terminate ends the tree: SIGTERM, SIGKILL after the grace.
func (r *Record) terminate(how ending) {
	if !r.endBy(how) {
		return
	}
	tree.Signal(r.tree, syscall.SIGTERM)
	time.AfterFunc(seconds(*r.spec.KillGraceSeconds), r.kill)
}

// endBy notes who ends the process. False if it has ended, or somebody ended it before.
func (r *Record) endBy(how ending) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exited || r.view.State != "running" || r.ending != endItself {
		return false
	}
	r.ending = how
	return true
}

func (r *Record) kill() {
	if !tree.Kill(r.tree, killPatience, r.table.reaper.changes) {
		journal.Note("process %s: members survive SIGKILL", r.id)
	}
}

// stop ends the process for good, and what it left behind. True if the process itself was running.
func (r *Record) stop(how ending) bool {
	running := r.endBy(how)
	if how == endKill {
		r.kill()
	} else {
		tree.Signal(r.tree, syscall.SIGTERM)
	}
	return running
}
