package process

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/wire"
)

const (
	pumpBytes = 256 * 1024
	// What a pipe may hold at most; more than this after the exit was written by somebody else.
	drainBytes   = 1 << 20
	discardBytes = 16 * 1024
)

var pumpBuffers = sync.Pool{New: func() any { return new([pumpBytes]byte) }}

// longAgo as a deadline interrupts a read at once, without a timer.
var longAgo = time.Unix(1, 0)

func (r *Record) pumps() {
	for _, channel := range r.channels() {
		r.open.Add(1)
		go r.pump(channel.file, channel.kind)
	}
}

type channel struct {
	file *os.File
	kind wire.Kind
}

func (r *Record) channels() []channel {
	if r.child.Terminal != nil {
		return []channel{{r.child.Terminal, wire.KindTerminal}}
	}
	all := []channel{{r.child.Stdout, wire.KindStdout}}
	if r.child.Stderr != nil {
		all = append(all, channel{r.child.Stderr, wire.KindStderr})
	}
	return all
}

// drain makes every pump take what is there and let go.
func (r *Record) drain() {
	for _, channel := range r.channels() {
		_ = channel.file.SetReadDeadline(longAgo)
	}
}

// pump moves one channel into the ring, until its end or the process's. What others write later is dropped.
func (r *Record) pump(file *os.File, kind wire.Kind) {
	over := r.take(file, kind)
	if !over {
		over = r.rest(file, kind)
	}
	r.closeOne()
	if !over {
		discard(file)
	}
	// A terminal is written to until the end, even when nothing can be read from it any more.
	<-r.done
	file.Close()
}

// take reads until the end of the channel (true) or of the process. A channel nobody writes to holds no buffer.
func (r *Record) take(file *os.File, kind wire.Kind) bool {
	raw, err := file.SyscallConn()
	if err != nil {
		return true
	}
	flow := flow{file: file}
	for {
		var buffer *[pumpBytes]byte
		var count int
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			buffer = pumpBuffers.Get().(*[pumpBytes]byte)
			count, readErr = readOnce(int(fd), buffer[:])
			if readErr == syscall.EAGAIN {
				pumpBuffers.Put(buffer)
				return false
			}
			return true
		})
		if err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
		if count > 0 {
			r.deliver(kind, buffer[:count])
		}
		pumpBuffers.Put(buffer)
		if readErr != nil || count == 0 {
			return true
		}
		flow.pace(count)
	}
}

func readOnce(fd int, into []byte) (int, error) {
	for {
		count, err := unix.Read(fd, into)
		if err != syscall.EINTR {
			return max(count, 0), err
		}
	}
}

// rest takes what the ended process had written. True at the end of the channel.
func (r *Record) rest(file *os.File, kind wire.Kind) bool {
	raw, err := file.SyscallConn()
	if err != nil {
		return true
	}
	buffer := pumpBuffers.Get().(*[pumpBytes]byte)
	defer pumpBuffers.Put(buffer)
	over := false
	for taken := 0; taken < drainBytes && !over; {
		count := 0
		_ = raw.Control(func(fd uintptr) { count, err = readOnce(int(fd), buffer[:]) })
		switch {
		case err == syscall.EAGAIN:
			return false
		case err != nil || count == 0:
			over = true
		default:
			r.deliver(kind, buffer[:count])
			taken += count
		}
	}
	return over
}

func discard(file *os.File) {
	_ = file.SetReadDeadline(time.Time{})
	buffer := make([]byte, discardBytes)
	for {
		if _, err := file.Read(buffer); err != nil {
			return
		}
	}
}

func (r *Record) deliver(kind wire.Kind, data []byte) {
	if limit := r.spec.Output.LimitBytes; limit != nil {
		r.mu.Lock()
		left := *limit - r.produced
		r.produced += int64(len(data))
		r.mu.Unlock()
		if left < int64(len(data)) {
			data = data[:max(left, 0)]
			r.overLimit()
		}
	}
	if len(data) > 0 {
		r.ring.Append(kind, data, time.Now().UnixMicro())
	}
}

// overLimit ends the process; one that ends by itself first has still written too much.
func (r *Record) overLimit() {
	r.mu.Lock()
	first := r.ending == endItself && r.view.State == "running"
	if first {
		r.ending = endLimit
	}
	r.mu.Unlock()
	if first {
		go r.kill()
	}
}
