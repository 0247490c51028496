package output

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"

	"sandlot.dev/guest/internal/wire"
)

// model is what was written, byte by byte.
type model struct {
	kinds []wire.Kind
	bytes []byte
}

func (m *model) check(t *testing.T, frames []frame, after uint64) {
	t.Helper()
	position := after
	for _, one := range frames {
		if one.seq != position {
			t.Fatalf("frame at %d, expected %d", one.seq, position)
		}
		switch one.kind {
		case wire.KindLost:
			var lost struct {
				Bytes uint64 `json:"lost_bytes"`
			}
			if err := json.Unmarshal(one.payload, &lost); err != nil || lost.Bytes == 0 {
				t.Fatalf("lost %q", one.payload)
			}
			position += lost.Bytes
		case wire.KindStdout, wire.KindStderr:
			if !bytes.Equal(one.payload, m.bytes[position:position+uint64(len(one.payload))]) {
				t.Fatalf("other bytes at %d", position)
			}
			for i := range one.payload {
				if m.kinds[position+uint64(i)] != one.kind {
					t.Fatalf("another channel at %d", position)
				}
			}
			position += uint64(len(one.payload))
		}
	}
	if position != uint64(len(m.bytes)) {
		t.Fatalf("ended at %d of %d", position, len(m.bytes))
	}
}

func write(ring *Ring, m *model, kind wire.Kind, size int, at int64) {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Int())
		m.kinds = append(m.kinds, kind)
	}
	m.bytes = append(m.bytes, data...)
	ring.Append(kind, data, at)
}

func TestAnyWritesAnyReads(t *testing.T) {
	for round := range 6 {
		ring := NewRing(65536, false)
		var m model
		for step := range 200 {
			size := 1 + rand.IntN([]int{2, 200, 5000, 150_000}[rand.IntN(4)])
			write(ring, &m, wire.Kind(1+rand.IntN(2)), size, int64(step)*int64(rand.IntN(200_000)))
			if rand.IntN(10) == 0 {
				after := rand.Uint64N(uint64(len(m.bytes)) + 1)
				m.check(t, readAll(t, ring, after), after)
			}
		}
		first, next, stdout, stderr := ring.Positions()
		if next != uint64(len(m.bytes)) || next-first > 65536 || stdout+stderr != next {
			t.Fatal(round, first, next, stdout, stderr)
		}
		if cost := ring.Cost(); cost > 10*65536 {
			t.Fatalf("it holds %d bytes", cost)
		}
		checkHead(t, ring, &m)
	}
}

func checkHead(t *testing.T, ring *Ring, m *model) {
	t.Helper()
	want := map[wire.Kind][]byte{}
	for i, kind := range m.kinds {
		if len(want[kind]) < headLimit {
			want[kind] = append(want[kind], m.bytes[i])
		}
	}
	got := map[wire.Kind][]byte{}
	var last uint64
	for _, one := range parsed(t, ring.Head()) {
		if one.seq < last {
			t.Fatal("head frames are out of order")
		}
		last = one.seq
		got[one.kind] = append(got[one.kind], one.payload...)
	}
	for kind := range want {
		if !bytes.Equal(got[kind], want[kind]) {
			t.Fatalf("head of %d: %d bytes, expected %d", kind, len(got[kind]), len(want[kind]))
		}
	}
}

func TestReleaseKeepsAllAndWaitsForNobody(t *testing.T) {
	ring := NewRing(65536, true)
	ring.Append(wire.KindStdout, make([]byte, 60_000), 1)
	done := make(chan struct{})
	go func() {
		ring.Append(wire.KindStdout, make([]byte, 131_072), 2)
		close(done)
	}()
	ring.Release()
	<-done
	frames := readAll(t, ring, 0)
	total := 0
	for _, one := range frames {
		if one.kind == wire.KindLost {
			t.Fatal("something was lost")
		}
		total += len(one.payload)
	}
	if total != 191_072 {
		t.Fatal(total)
	}
}

func TestATailSkipsWithoutLoss(t *testing.T) {
	ring := NewRing(65536, false)
	ring.Append(wire.KindStdout, []byte("0123456789"), 1)
	for tail, want := range map[uint64]string{0: "", 4: "6789", 100: "0123456789"} {
		reader, _ := ring.OpenTail(tail)
		data, _ := reader.Take(nil)
		var got []byte
		for _, one := range parsed(t, data) {
			got = append(got, one.payload...)
		}
		if string(got) != want {
			t.Errorf("%d: %q", tail, got)
		}
	}
}
