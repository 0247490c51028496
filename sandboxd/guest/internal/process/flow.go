package process

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Reads that follow each other this closely, this often, are a stream.
	closeTogether = time.Millisecond
	streamReads   = 8
	// A stream is read in gulps: its writer is woken, and the reader sent on, once for many small writes.
	gulpPause = 500 * time.Microsecond
	leastGulp = 32 * 1024
	wideBytes = 1 << 20
)

// flow paces the reading of one channel. Until it proves to be a stream, every write is passed on at once.
type flow struct {
	file  *os.File
	last  time.Time
	close int
	wide  bool
}

func (f *flow) pace(count int) {
	now := time.Now()
	if now.Sub(f.last) < closeTogether {
		f.close++
	} else {
		f.close = 0
	}
	f.last = now
	if f.close < streamReads {
		return
	}
	if f.close > streamReads && count < leastGulp {
		// It paused and little came: not a stream any more.
		f.close = 0
		return
	}
	f.widen()
	time.Sleep(gulpPause)
	f.last = time.Now()
}

// widen makes room for what a stream writes meanwhile.
func (f *flow) widen() {
	if f.wide {
		return
	}
	f.wide = true
	if raw, err := f.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, wideBytes) })
	}
}
