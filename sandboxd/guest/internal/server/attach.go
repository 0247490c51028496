package server

import (
	"bufio"
	"encoding/json"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/output"
	"sandlot.dev/guest/internal/process"
	"sandlot.dev/guest/internal/wire"
)

const (
	attachProtocol = "sandlot.process.v1"
	// Problems that wait for the peer to read; one that does not read them is read from no further.
	waitingProblems = 16
	lastWords       = 5 * time.Second
)

// attachment is one connection to a process: output and what became of input one way, input the other.
type attachment struct {
	record     *process.Record
	reader     *output.Reader
	input      *process.Input
	connection net.Conn
	early      *bufio.Reader
	obeying    atomic.Bool
	keepalive  time.Duration
	problems   chan []byte
	// deaf is closed when nothing more comes in, gone when nobody sends any more.
	deaf chan struct{}
	gone chan struct{}
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, id string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "after", "tail_bytes", "keepalive_seconds")
	after, tail, keepalive := q.count("after"), q.count("tail_bytes"), keepaliveOf(q)
	if after != nil && tail != nil {
		q.refuse("give at most one of after and tail_bytes")
	}
	if q.problem != nil {
		return q.problem
	}
	if problem := asks(r, attachProtocol); problem != nil {
		return problem
	}
	record, problem := s.table.Find(id)
	if problem != nil {
		return problem
	}
	reader, problem := open(record.Ring(), after, tail)
	if problem != nil {
		return problem
	}
	defer reader.Close()
	connection, early, problem := upgrade(w, attachProtocol)
	if connection == nil {
		return problem
	}
	defer connection.Close()
	a := &attachment{
		record: record, reader: reader, connection: connection, early: early, keepalive: keepalive,
		problems: make(chan []byte, waitingProblems), deaf: make(chan struct{}), gone: make(chan struct{}),
	}
	a.input = record.OpenInput(a.busy)
	go a.receive()
	a.send()
	close(a.gone)
	a.input.Close()
	a.finish()
	return nil
}

// send writes until exit was written, the peer has said that it is done, or the connection broke.
func (a *attachment) send() {
	held := streamBuffers.Get().(*[]byte)
	defer streamBuffers.Put(held)
	*held = a.begin((*held)[:0])
	silence := time.NewTimer(a.keepalive)
	defer silence.Stop()
	for {
		select {
		case <-a.deaf:
			return
		default:
		}
		frames, rest := a.reader.Take(a.answers(*held))
		*held = frames[:0]
		if len(frames) > 0 {
			if _, err := a.connection.Write(frames); err != nil {
				return
			}
			a.reader.Sent()
		}
		switch rest {
		case output.Ended:
			return
		case output.Later:
			silence.Reset(a.keepalive)
			if !a.pause(held, silence.C) {
				return
			}
		case output.More:
		}
	}
}

// begin renders the first frame.
func (a *attachment) begin(dst []byte) []byte {
	first := wire.Attached{Process: a.record.View(), After: a.reader.At()}
	first.StdinOffset = a.input.Base()
	payload, _ := json.Marshal(first)
	return wire.AppendFrame(dst, wire.KindAttached, first.After, time.Now().UnixMicro(), payload)
}

// answers appends what is to be said about input.
func (a *attachment) answers(dst []byte) []byte {
	passed, news, failed := a.input.Taken()
	if news {
		dst = wire.AppendFrame(dst, wire.KindStdinAck, uint64(passed), 0, nil)
	}
	if failed != nil {
		dst = append(dst, problemFrame(uint64(passed), failed)...)
	}
	for {
		select {
		case frame := <-a.problems:
			dst = append(dst, frame...)
		default:
			return dst
		}
	}
}

// pause waits until there is something to write; false when the peer is done.
func (a *attachment) pause(held *[]byte, silence <-chan time.Time) bool {
	select {
	case <-a.reader.Ready():
	case <-a.input.Ready():
	case frame := <-a.problems:
		*held = append(*held, frame...)
	case <-silence:
		*held = wire.AppendFrame(*held, wire.KindKeepalive, a.reader.At(), 0, nil)
	case <-a.deaf:
		return false
	}
	return true
}

// finish lets the peer read what was written: closing while input is unread would take it away from it.
func (a *attachment) finish() {
	_ = a.connection.(interface{ CloseWrite() error }).CloseWrite()
	_ = a.connection.SetReadDeadline(time.Now().Add(lastWords))
	<-a.deaf
}

// receive does what comes in, until the peer is done, or sends what is no input.
func (a *attachment) receive() {
	defer close(a.deaf)
	defer a.input.Close()
	for {
		a.obeying.Store(a.early.Buffered() > 0)
		if _, err := a.early.Peek(1); err != nil {
			return
		}
		a.obeying.Store(true)
		frame, err := wire.ReadFrame(a.early)
		if err != nil {
			return
		}
		if problem := a.obey(frame); problem != nil {
			select {
			case a.problems <- problemFrame(frame.Seq, problem):
			case <-a.gone:
				return
			}
		}
	}
}

// busy says whether something came in that has not been obeyed yet.
func (a *attachment) busy() bool {
	if a.obeying.Load() {
		return true
	}
	raw, err := a.connection.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	unread := 0
	_ = raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return unread > 0
}

func (a *attachment) obey(frame wire.Frame) *wire.Problem {
	if frame.Seq > 1<<62 {
		return wire.Fail("invalid_request", "no position is as far as %d", frame.Seq)
	}
	switch frame.Kind {
	case wire.KindStdin:
		return a.input.Write(int64(frame.Seq), frame.Payload)
	case wire.KindStdinClose:
		return a.input.End(int64(frame.Seq))
	case wire.KindResize:
		var size wire.Size
		if problem := wire.Decode(frame.Payload, &size); problem != nil {
			return problem
		}
		if !process.SizeOK(size) {
			return wire.Fail("invalid_request", "rows and cols are from 1 to 1000")
		}
		return a.record.Resize(size)
	case wire.KindSignal:
		var signal wire.Signal
		if problem := wire.Decode(frame.Payload, &signal); problem != nil {
			return problem
		}
		return a.record.Signal(signal, "")
	}
	return wire.Fail("invalid_request", "no input is of kind %d", frame.Kind)
}

// problemFrame says what is wrong with the input frame at a position.
func problemFrame(seq uint64, problem *wire.Problem) []byte {
	payload, _ := json.Marshal(problem)
	return wire.AppendFrame(nil, wire.KindError, seq, 0, payload)
}
