package process

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"
)

func never() bool { return false }

// piped is a running record whose standard input is a pipe, and the pipe's other end.
func piped(t *testing.T) (*Record, *os.File) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close(); writer.Close() })
	r := newRecord("prcaaaaaaaaaaaaaaaaaaaa", [32]byte{})
	r.view.State = "running"
	r.stdin.file = writer
	return r, reader
}

func await(t *testing.T, in *Input, position int64) {
	t.Helper()
	for late := time.After(10 * time.Second); ; {
		select {
		case <-in.Ready():
		case <-late:
			t.Fatalf("never written up to %d", position)
		}
		if passed, _, _ := in.Taken(); passed == position {
			return
		}
	}
}

func TestInputsInterleaveAndEachKnowsItsOwn(t *testing.T) {
	r, reader := piped(t)
	first, second := r.OpenInput(never), r.OpenInput(never)
	for _, step := range []struct {
		in   *Input
		at   int64
		data string
	}{{first, 0, "abc"}, {second, 0, "12"}, {first, 1, "bcde"}, {second, 0, "12"}, {second, 2, "3"}, {first, 5, "f"}} {
		if problem := step.in.Write(step.at, []byte(step.data)); problem != nil {
			t.Fatal(problem)
		}
	}
	if problem := first.Write(7, []byte("h")); problem == nil || problem.Members["offset"] != int64(6) {
		t.Fatalf("a gap: %v", problem)
	}
	if problem := second.End(4); problem == nil {
		t.Fatal("an end beyond what was sent")
	}
	if problem := second.End(3); problem != nil {
		t.Fatal(problem)
	}
	if problem := first.Write(6, []byte("g")); problem == nil || problem.Code != "stdin_closed" {
		t.Fatalf("behind the end: %v", problem)
	}
	if problem := first.Write(0, []byte("abcdef")); problem != nil {
		t.Fatalf("nothing new: %v", problem)
	}
	written, err := io.ReadAll(reader)
	if err != nil || string(written) != "abc12de3f" {
		t.Fatalf("%q %v", written, err)
	}
	await(t, first, 6)
	await(t, second, 3)
}

func TestWhatWasTakenCountsAtOnceAndOutlivesItsSender(t *testing.T) {
	r, reader := piped(t)
	first := r.OpenInput(never)
	data := bytes.Repeat([]byte("x"), 300_000)
	if problem := first.Write(0, data); problem != nil {
		t.Fatal(problem)
	}
	first.Close()
	second := r.OpenInput(never)
	if second.Base() != 300_000 {
		t.Fatalf("begins at %d", second.Base())
	}
	if problem := second.End(300_000); problem != nil {
		t.Fatal(problem)
	}
	if written, err := io.ReadAll(reader); err != nil || len(written) != 300_000 {
		t.Fatalf("%d bytes, %v", len(written), err)
	}
}

func TestTakenInputIsBounded(t *testing.T) {
	r, reader := piped(t)
	in := r.OpenInput(never)
	const frame = 256 * 1024
	at := int64(0)
	for ; at < 5*frame; at += frame { // the pipe holds a part of one
		if problem := in.Write(at, make([]byte, frame)); problem != nil {
			t.Fatal(problem)
		}
	}
	over := make(chan error)
	go func() {
		problem := in.Write(at, make([]byte, frame))
		if problem != nil {
			over <- problem
		}
		close(over)
	}()
	select {
	case <-over:
		t.Fatal("taken without room")
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := io.CopyN(io.Discard, reader, 2*frame); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	// One that waits returns when its attachment goes.
	at += frame
	if problem := in.Write(at, make([]byte, frame)); problem != nil {
		t.Fatal(problem)
	}
	at += frame
	gone := make(chan struct{})
	go func() { in.Write(at, make([]byte, frame)); close(gone) }()
	time.AfterFunc(20*time.Millisecond, in.Close)
	<-gone
}

func TestAPipeThatNobodyReadsAnyMoreSaysSo(t *testing.T) {
	r, reader := piped(t)
	in := r.OpenInput(never)
	reader.Close()
	if problem := in.Write(0, []byte("lost")); problem != nil {
		t.Fatal(problem)
	}
	<-in.Ready()
	if _, _, failed := in.Taken(); failed == nil || failed.Code != "stdin_closed" {
		t.Fatalf("failed: %v", failed)
	}
	if problem := in.Write(4, []byte("more")); problem == nil || problem.Code != "stdin_closed" {
		t.Fatalf("more: %v", problem)
	}
}

func TestOneThatOpensWaitsForWhatWasSentBefore(t *testing.T) {
	r, reader := piped(t)
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	sent := make(chan struct{})
	first := r.OpenInput(func() bool {
		select {
		case <-sent:
			return false
		default:
			return true
		}
	})
	time.AfterFunc(20*time.Millisecond, func() {
		_ = first.Write(0, []byte("under way"))
		close(sent)
	})
	if second := r.OpenInput(never); second.Base() != 9 {
		t.Fatalf("begins at %d", second.Base())
	}
}
