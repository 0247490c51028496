package output

import (
	"bytes"
	"testing"

	"sandlot.dev/guest/internal/wire"
)

func TestSinceKeepsTheNewestWithinItsBytes(t *testing.T) {
	ring := NewRing(1<<20, false)
	for i := range 1000 {
		ring.Append(wire.Kind(1+i%2), []byte("0123456789"), int64(i)*100_000)
	}
	for _, most := range []int{1, 100, 4096, 20_000, 1 << 20} {
		frames, next, ended := ring.Since(nil, 0, most)
		if next != 10_000 || ended {
			t.Fatalf("%d: %d %v", most, next, ended)
		}
		if lost := len(wire.AppendLost(nil, 0, 10_000)); len(frames) > most+lost+wire.HeaderBytes {
			t.Errorf("%d bytes where %d were asked for", len(frames), most)
		}
	}
	whole, _, _ := ring.Since(nil, 0, 1<<20)
	if bytes.Count(whole, []byte("0123456789")) != 1000 {
		t.Error("not everything, although it fits")
	}
	if !ring.HasSince(9_999) || ring.HasSince(10_000) {
		t.Error("what is new")
	}
	if frames, next, _ := ring.Since(nil, 1<<40, 100); len(frames) != 0 || next != 10_000 {
		t.Error("a position beyond the end")
	}
}

func TestSinceEndsWithTheExitOnce(t *testing.T) {
	ring := NewRing(1<<16, false)
	changed := make(chan struct{}, 1)
	ring.Announce(changed)
	ring.Append(wire.KindStdout, []byte("a"), 1)
	<-changed
	ring.Close([]byte("{}"), 2)
	<-changed
	frames, next, ended := ring.Since(nil, 1, 100)
	if !ended || next != 1 || frames[0] != byte(wire.KindExit) || !ring.HasSince(1) {
		t.Fatalf("%x %d %v", frames, next, ended)
	}
}
