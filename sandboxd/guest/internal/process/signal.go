package process

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/tree"
	"sandlot.dev/guest/internal/wire"
)

const (
	maxRememberedSignals = 64
	firstRealTime        = 34
	lastRealTime         = 64
)

// Signal sends a signal, once for each key ("": always). `process_ended`; `invalid_request` for a name that is none.
func (r *Record) Signal(request wire.Signal, key string) *wire.Problem {
	signal, known := signalNumber(request.Signal)
	if !known {
		return wire.Fail("invalid_request", "no signal %q", request.Signal)
	}
	if request.Scope != "" && request.Scope != "tree" && request.Scope != "process" {
		return wire.Fail("invalid_request", "no scope %q", request.Scope)
	}
	repeated, problem := r.admit(signal, request.Scope != "process", key)
	if problem != nil || repeated {
		return problem
	}
	switch {
	case request.Scope == "process":
		r.table.reaper.whileAlive(r.view.PID, func() { _ = syscall.Kill(r.view.PID, signal) })
	case signal == syscall.SIGKILL:
		r.kill()
	default:
		tree.Signal(r.tree, signal)
	}
	return nil
}

func (r *Record) admit(signal syscall.Signal, wholeTree bool, key string) (repeated bool, problem *wire.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key != "" && slices.Contains(r.signaled, key) {
		return true, nil
	}
	if r.exited || r.view.State != "running" {
		if r.view.State == "running" {
			<-r.soonDone()
		}
		return false, r.endedProblem()
	}
	if key != "" {
		r.signaled = append(r.signaled, key)
		if len(r.signaled) > maxRememberedSignals {
			r.signaled = r.signaled[1:]
		}
	}
	if wholeTree && signal == syscall.SIGKILL && r.ending == endItself {
		r.ending = endSignal
	}
	return false, nil
}

// soonDone gives the lock away until the end of an exited process is reported.
func (r *Record) soonDone() <-chan struct{} {
	r.mu.Unlock()
	<-r.done
	r.mu.Lock()
	return r.done
}

func signalNumber(name string) (syscall.Signal, bool) {
	if number := unix.SignalNum(name); number != 0 {
		return number, true
	}
	for prefix, base := range map[string]int{"SIGRTMIN": firstRealTime, "SIGRTMAX": lastRealTime} {
		if rest, found := strings.CutPrefix(name, prefix); found {
			offset := 0
			if rest != "" {
				var err error
				if offset, err = strconv.Atoi(rest); err != nil {
					return 0, false
				}
			}
			number := base + offset
			return syscall.Signal(number), number >= firstRealTime && number <= lastRealTime
		}
	}
	return 0, false
}

func signalName(signal syscall.Signal) string {
	if name := unix.SignalName(signal); name != "" {
		return name
	}
	return "SIGRTMIN+" + strconv.Itoa(int(signal)-firstRealTime)
}
