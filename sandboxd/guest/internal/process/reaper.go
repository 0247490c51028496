package process

import (
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// death is how a child ended.
type death struct {
	status syscall.WaitStatus
	usage  syscall.Rusage
}

// reaper collects every child, adopted ones too. A child is peeked at first and collected under the lock, so that a pid a
// record still holds is never another process's.
type reaper struct {
	mu       sync.Mutex
	waiting  map[int]func(death)
	early    map[int]death
	starting int
	idle     bool
	born     *sync.Cond
	changed  chan struct{}
	orphan   func()
}

func newReaper(orphan func()) *reaper {
	r := &reaper{waiting: map[int]func(death){}, early: map[int]death{}, changed: make(chan struct{}), orphan: orphan}
	r.born = sync.NewCond(&r.mu)
	return r
}

// start runs a function that makes a child, and has `ended` called at its death. The function returns 0 if there is none.
func (r *reaper) start(make func() int, ended func(death)) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid := make()
	r.mu.Lock()
	r.starting--
	over, died := r.early[pid]
	delete(r.early, pid)
	if pid != 0 && !died {
		r.waiting[pid] = ended
	}
	if r.starting == 0 {
		clear(r.early)
	}
	r.idle = false
	r.born.Signal()
	r.mu.Unlock()
	if died {
		ended(over)
	}
}

// whileAlive calls a function while the child cannot be collected, so that its pid is its own. False if it is gone.
func (r *reaper) whileAlive(pid int, call func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, alive := r.waiting[pid]; !alive {
		return false
	}
	call()
	return true
}

// changes returns a channel that is closed at the next death of a child.
func (r *reaper) changes() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// childless waits until there is no child at all, for at most `patience`.
func (r *reaper) childless(patience time.Duration) bool {
	over := time.NewTimer(patience)
	defer over.Stop()
	for {
		r.mu.Lock()
		idle, changed := r.idle && r.starting == 0, r.changed
		r.mu.Unlock()
		if idle {
			return true
		}
		select {
		case <-changed:
		case <-over.C:
			return false
		}
	}
}

func (r *reaper) run() {
	for {
		pid, err := peek()
		switch {
		case err == unix.EINTR:
		case err != nil:
			r.rest()
		default:
			r.collect(pid)
		}
	}
}

// rest waits for the next child of the guest's own; only then can there be adopted ones.
func (r *reaper) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := peekNow(); err == nil {
		return
	}
	r.idle = true
	r.announce()
	for r.idle {
		r.born.Wait()
	}
}

func (r *reaper) collect(pid int) {
	var over death
	r.mu.Lock()
	got, err := syscall.Wait4(pid, &over.status, syscall.WNOHANG, &over.usage)
	if err != nil || got != pid {
		r.mu.Unlock()
		return
	}
	ended, known := r.waiting[pid]
	delete(r.waiting, pid)
	if !known && r.starting > 0 {
		r.early[pid] = over
	}
	r.announce()
	r.mu.Unlock()
	if known {
		ended(over)
		return
	}
	r.orphan()
}

func (r *reaper) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// waitInfo is siginfo_t as waitid fills it on 64-bit Linux.
type waitInfo struct {
	_   [4]int32
	pid int32
	_   [108]byte
}

func peek() (int, error) { return waitID(unix.WEXITED | unix.WNOWAIT) }

func peekNow() (int, error) { return waitID(unix.WEXITED | unix.WNOWAIT | unix.WNOHANG) }

func waitID(options uintptr) (int, error) {
	var info waitInfo
	_, _, failed := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), options, 0, 0)
	if failed != 0 {
		return 0, failed
	}
	return int(info.pid), nil
}

func killEverything() { _ = syscall.Kill(-1, syscall.SIGKILL) }
