package output

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"sandlot.dev/guest/internal/wire"
)

type frame struct {
	kind    wire.Kind
	seq     uint64
	at      int64
	payload []byte
}

func parsed(t *testing.T, data []byte) []frame {
	t.Helper()
	var frames []frame
	for len(data) > 0 {
		length := int(binary.BigEndian.Uint32(data[4:8]))
		if length > wire.MaxPayload {
			t.Fatalf("a payload of %d bytes", length)
		}
		frames = append(frames, frame{
			wire.Kind(data[0]), binary.BigEndian.Uint64(data[8:16]), int64(binary.BigEndian.Uint64(data[16:24])),
			data[wire.HeaderBytes : wire.HeaderBytes+length],
		})
		data = data[wire.HeaderBytes+length:]
	}
	return frames
}

func readAll(t *testing.T, ring *Ring, after uint64) []frame {
	t.Helper()
	reader, problem := ring.Open(after)
	if problem != nil {
		t.Fatal(problem)
	}
	defer reader.Close()
	var data []byte
	for rest := More; rest == More; {
		data, rest = reader.Take(data)
	}
	return parsed(t, data)
}

func TestWritesApartInTimeKeepTheirOwn(t *testing.T) {
	ring := NewRing(1<<16, false)
	for i := range 3 {
		ring.Append(wire.KindStdout, []byte("line\n"), int64(i)*200_000)
	}
	frames := readAll(t, ring, 0)
	if len(frames) != 3 || frames[0].at != 0 || frames[1].at != 200_000 || frames[2].at != 400_000 {
		t.Fatalf("times of %v", frames)
	}
}

func TestWritesCloseInTimeShareAFrame(t *testing.T) {
	ring := NewRing(1<<16, false)
	for i := range 3 {
		ring.Append(wire.KindStdout, []byte("x"), int64(i))
	}
	if frames := readAll(t, ring, 0); len(frames) != 1 || string(frames[0].payload) != "xxx" {
		t.Fatalf("%v", frames)
	}
}

// However slowly bytes drip, the ring holds its bytes and no more than a few times their memory.
func TestDripsDoNotPushBytesOut(t *testing.T) {
	const limit = 1 << 16
	ring := NewRing(limit, false)
	for i := range limit {
		ring.Append(wire.KindStdout, []byte{byte(i)}, int64(i)*1_000_000)
	}
	if first, next, _, _ := ring.Positions(); first != 0 || next != limit {
		t.Fatalf("holds %d to %d", first, next)
	}
	if cost := ring.Cost(); cost > 4*limit {
		t.Fatalf("costs %d", cost)
	}
}

// Byte by byte, what is kept of each byte costs far more than the byte; it must not grow with the output.
func TestChannelsThatAlternateAreBounded(t *testing.T) {
	const limit = 1 << 16
	ring := NewRing(limit, false)
	var costs [2]int64
	for round := range costs {
		for i := range 4 * limit {
			ring.Append(wire.KindStdout+wire.Kind(i%2), []byte{byte(i)}, 0)
		}
		costs[round] = ring.Cost()
	}
	if costs[1] > costs[0] || costs[0] > 2*headLimit*2*segmentCost {
		t.Fatalf("costs %v", costs)
	}
}

func TestAnyReaderSeesTheSameBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		ring := NewRing(1<<16, false)
		var whole []byte
		for i := range 40 {
			chunk := make([]byte, random.IntN(9000))
			for at := range chunk {
				chunk[at] = byte(random.IntN(256))
			}
			whole = append(whole, chunk...)
			ring.Append(wire.KindStdout, chunk, int64(i)*int64(random.IntN(20_000)))
		}
		ring.Close([]byte("{}"), 1)
		after := uint64(random.IntN(len(whole)))
		at, ended := after, false
		for _, frame := range readAll(t, ring, after) {
			switch {
			case frame.seq != at:
				t.Fatalf("a frame at %d, not %d", frame.seq, at)
			case frame.kind == wire.KindLost:
				first, _, _, _ := ring.Positions()
				at = first
			case frame.kind == wire.KindExit:
				ended = true
			default:
				if !bytes.Equal(frame.payload, whole[at:at+uint64(len(frame.payload))]) {
					t.Fatalf("other bytes at %d", at)
				}
				at += uint64(len(frame.payload))
			}
		}
		if at != uint64(len(whole)) || !ended {
			t.Fatalf("ended at %d of %d, exit %v", at, len(whole), ended)
		}
	}
}

func TestTheHeadIsKeptBesideTheRing(t *testing.T) {
	ring := NewRing(1<<16, false)
	ring.Append(wire.KindStdout, []byte("first\n"), 0)
	ring.Append(wire.KindStderr, []byte("error\n"), 0)
	for range 100 {
		ring.Append(wire.KindStdout, make([]byte, 50_000), 0)
	}
	kept := map[wire.Kind]int{}
	for _, frame := range parsed(t, ring.Head()) {
		kept[frame.kind] += len(frame.payload)
	}
	if kept[wire.KindStdout] != headLimit || kept[wire.KindStderr] != len("error\n") {
		t.Fatalf("kept %v", kept)
	}
}

func TestReadersAreCountedAndPositionsChecked(t *testing.T) {
	ring := NewRing(1<<16, false)
	ring.Append(wire.KindStdout, []byte("abc"), 0)
	if _, problem := ring.Open(4); problem == nil || problem.Code != "seq_out_of_range" {
		t.Fatalf("%v", problem)
	}
	readers := make([]*Reader, MaxReaders)
	for i := range readers {
		readers[i], _ = ring.Open(3)
	}
	if _, problem := ring.Open(0); problem == nil || problem.Code != "too_many_streams" {
		t.Fatalf("%v", problem)
	}
	readers[0].Close()
	if _, problem := ring.OpenTail(2); problem != nil {
		t.Fatal(problem)
	}
}

func TestABlockingRingLosesNothing(t *testing.T) {
	ring := NewRing(1<<16, true)
	reader, _ := ring.Open(0)
	const total = 1 << 20
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range total / 4096 {
			ring.Append(wire.KindStdout, make([]byte, 4096), 0)
		}
		ring.Close([]byte("{}"), 0)
	}()
	got := 0
	for rest := More; rest != Ended; {
		var data []byte
		data, rest = reader.Take(nil)
		reader.Sent()
		for _, frame := range parsed(t, data) {
			if frame.kind == wire.KindLost {
				t.Fatal("something was lost")
			}
			if frame.kind == wire.KindStdout {
				got += len(frame.payload)
			}
		}
		if rest == Later {
			<-reader.Ready()
		}
	}
	<-written
	if got != total {
		t.Fatalf("%d bytes", got)
	}
}
